//! One arm against a stated limit: for service levels, rare events without a baseline, and decided pairs.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::{EProcess, Logs};
use crate::fixed::{BadSample, open_unit, parameter};
use crate::{BadCounts, Counts, Grid};

/// What a look with k events in exposure n adds: k a - n b, with (a, b) per alternative. Computed once, no part of what is saved.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Slopes(Vec<(f64, f64)>);

impl Slopes {
    fn of(grid: &Grid, cost: impl Fn(f64) -> f64) -> Self {
        let thetas = grid.alternatives().iter().map(|a| a.theta);
        let slopes = thetas.zip(grid.ln_thetas());
        Self(slopes.map(|(theta, ln)| (ln, cost(theta))).collect())
    }

    /// Against a rate of p0.
    pub(super) fn of_rate(grid: &Grid, p0: f64) -> Self {
        Self::of(grid, |theta| libm::log1p(p0 * (theta - 1.0)))
    }

    pub(super) fn increments(&self, k: f64, n: f64) -> impl Iterator<Item = f64> {
        self.0.iter().map(move |(a, b)| k * a - n * b)
    }
}

/// What is saved of a process against one limit.
#[derive(Serialize, Deserialize)]
struct Raw {
    #[serde(alias = "p0", alias = "rate")]
    limit: f64,
    grid: Grid,
    logs: Logs,
}

/// Evidence that a rate exceeds a service-level objective p0, by tilting: `k ln theta - n ln(1 + p0 (theta - 1))`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub struct Slo {
    p0: f64,
    grid: Grid,
    slopes: Slopes,
    logs: Logs,
}

impl TryFrom<Raw> for Slo {
    type Error = BadSample;

    fn try_from(raw: Raw) -> Result<Self, BadSample> {
        Ok(Self {
            logs: raw.logs.checked(raw.grid.alternatives().len())?,
            ..Self::new(raw.limit, raw.grid)?
        })
    }
}

impl From<Slo> for Raw {
    fn from(s: Slo) -> Self {
        Self {
            limit: s.p0,
            grid: s.grid,
            logs: s.logs,
        }
    }
}

impl Slo {
    /// Against the hypothesis that the rate is at most p0, in (0, 1).
    ///
    /// # Errors
    /// [`BadSample`] for p0 outside (0, 1).
    pub fn new(p0: f64, grid: Grid) -> Result<Self, BadSample> {
        open_unit("p0", p0)?;
        Ok(Self {
            p0,
            slopes: Slopes::of_rate(&grid, p0),
            logs: Logs::weighted(grid.alternatives().iter().map(|a| a.weight)),
            grid,
        })
    }

    /// Adds new counts.
    ///
    /// # Errors
    /// [`BadCounts`] for k > n; nothing changes then.
    pub fn observe(&mut self, c: Counts) -> Result<(), BadCounts> {
        c.check()?;
        let increments = self.slopes.increments(c.k as f64, c.n as f64);
        self.logs.add(increments);
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
#[serde(try_from = "Raw", into = "Raw")]
pub struct EventRate {
    rate: f64,
    grid: Grid,
    slopes: Slopes,
    logs: Logs,
}

impl TryFrom<Raw> for EventRate {
    type Error = BadSample;

    fn try_from(raw: Raw) -> Result<Self, BadSample> {
        Ok(Self {
            logs: raw.logs.checked(raw.grid.alternatives().len())?,
            ..Self::new(raw.limit, raw.grid)?
        })
    }
}

impl From<EventRate> for Raw {
    fn from(e: EventRate) -> Self {
        Self {
            limit: e.rate,
            grid: e.grid,
            logs: e.logs,
        }
    }
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
        Ok(Self {
            rate,
            slopes: Slopes::of(&grid, |theta| rate * (theta - 1.0)),
            logs: Logs::weighted(grid.alternatives().iter().map(|a| a.weight)),
            grid,
        })
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
        let increments = self.slopes.increments(events as f64, exposure);
        self.logs.add(increments);
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

/// What each bet wins on a loss and on a win.
static PAYS: LazyLock<[(f64, f64); 8]> =
    LazyLock::new(|| LOSS.map(|q| (libm::log(2.0 * q), libm::log(2.0 * (1.0 - q)))));

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
        self.logs
            .add(PAYS.iter().map(|(lost, won)| k * lost + rest * won));
    }
}

impl EProcess for Sign {
    fn log_e(&self) -> f64 {
        self.logs.log_e()
    }
}
