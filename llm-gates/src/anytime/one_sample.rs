//! One arm against a stated limit: for service levels, rare events without a baseline, and decided pairs.

use serde::{Deserialize, Serialize};

use super::{EProcess, Logs};
use crate::fixed::{BadSample, open_unit, parameter};
use crate::{BadCounts, Counts, Grid};

/// Evidence that a rate exceeds a service-level objective p0, by tilting: `k ln theta - n ln(1 + p0 (theta - 1))`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Slo {
    p0: f64,
    grid: Grid,
    logs: Logs,
}

impl Slo {
    /// Against the hypothesis that the rate is at most p0, in (0, 1).
    ///
    /// # Errors
    /// [`BadSample`] for p0 outside (0, 1).
    pub fn new(p0: f64, grid: Grid) -> Result<Self, BadSample> {
        open_unit("p0", p0)?;
        let logs = Logs::weighted(grid.alternatives().iter().map(|a| a.weight));
        Ok(Self { p0, grid, logs })
    }

    /// Adds new counts.
    ///
    /// # Errors
    /// [`BadCounts`] for k > n; nothing changes then.
    pub fn observe(&mut self, c: Counts) -> Result<(), BadCounts> {
        c.check()?;
        let (n, k) = (c.n as f64, c.k as f64);
        let tilt = |theta: f64| k * libm::log(theta) - n * libm::log1p(self.p0 * (theta - 1.0));
        self.logs
            .add(self.grid.alternatives().iter().map(|a| tilt(a.theta)));
        Ok(())
    }
}

impl EProcess for Slo {
    fn log_e(&self) -> f64 {
        self.logs.log_e()
    }
}

/// Evidence that a Poisson rate exceeds a limit: `k ln theta - rate exposure (theta - 1)`. For crashes per replica-hour without a baseline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventRate {
    rate: f64,
    grid: Grid,
    logs: Logs,
}

impl EventRate {
    /// Against the hypothesis that there are at most `rate` > 0 events per unit of exposure.
    ///
    /// # Errors
    /// [`BadSample`] for a rate that is not finite and above 0.
    pub fn new(rate: f64, grid: Grid) -> Result<Self, BadSample> {
        parameter(
            rate > 0.0 && rate.is_finite(),
            "rate",
            rate,
            "be finite and above 0",
        )?;
        let logs = Logs::weighted(grid.alternatives().iter().map(|a| a.weight));
        Ok(Self { rate, grid, logs })
    }

    /// Adds events that happened in new exposure.
    ///
    /// # Errors
    /// [`BadSample`] for exposure that is negative or not finite; nothing changes then.
    pub fn observe(&mut self, events: u64, exposure: f64) -> Result<(), BadSample> {
        parameter(
            exposure >= 0.0 && exposure.is_finite(),
            "exposure",
            exposure,
            "be finite and not negative",
        )?;
        let tilt =
            |theta: f64| events as f64 * libm::log(theta) - self.rate * exposure * (theta - 1.0);
        self.logs
            .add(self.grid.alternatives().iter().map(|a| tilt(a.theta)));
        Ok(())
    }
}

impl EProcess for EventRate {
    fn log_e(&self) -> f64 {
        self.logs.log_e()
    }
}

/// Chances of a loss that [`Sign`] bets on.
const LOSS: [f64; 8] = [0.51, 0.525, 0.55, 0.575, 0.6, 0.65, 0.7, 0.8];

/// Evidence that more than half of the decided pairs are lost: judge comparisons without ties, or discordant pairs of a shadow comparison (negative flips
/// among flips). For scores of 0, 1/2 and 1 against one half, betting on the mean is the same test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sign {
    logs: Logs,
}

impl Default for Sign {
    fn default() -> Self {
        Self {
            logs: Logs::uniform(LOSS.len()),
        }
    }
}

impl Sign {
    /// Against the hypothesis that at most half of the decided pairs are lost. Swap losses for wins to show the opposite.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds decided pairs.
    pub fn observe(&mut self, losses: u64, wins: u64) {
        let (k, rest) = (losses as f64, wins as f64);
        self.logs.add(
            LOSS.iter()
                .map(|q| k * libm::log(2.0 * q) + rest * libm::log(2.0 * (1.0 - q))),
        );
    }
}

impl EProcess for Sign {
    fn log_e(&self) -> f64 {
        self.logs.log_e()
    }
}
