//! Change detection where there is no baseline any more: after 100 %.

use serde::{Deserialize, Serialize};

use crate::fixed::{BadSample, open_unit};
use crate::numbers::{log_sum_exp, softplus};
use crate::{BadCounts, Counts, Grid};

/// Shiryaev-Roberts e-detector (Shin, Ramdas and Rinaldo 2022) for a rate that must stay at most p0. At ln ARL it alarms falsely after at least ARL
/// looks on average; it has no bound for all time, so it pages or holds, and rolls back only where the plan says so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RateDetector {
    p0: f64,
    grid: Grid,
    logs: Vec<f64>,
}

impl RateDetector {
    /// For a rate of at most p0, in (0, 1).
    ///
    /// # Errors
    /// [`BadSample`] for p0 outside (0, 1).
    pub fn new(p0: f64, grid: Grid) -> Result<Self, BadSample> {
        open_unit("p0", p0)?;
        let logs = vec![f64::MIN; grid.alternatives().len()];
        Ok(Self { p0, grid, logs })
    }

    /// Adds new counts.
    ///
    /// # Errors
    /// [`BadCounts`] for k > n; nothing changes then.
    pub fn observe(&mut self, c: Counts) -> Result<(), BadCounts> {
        c.check()?;
        let (n, k) = (c.n as f64, c.k as f64);
        for (log, a) in self.logs.iter_mut().zip(self.grid.alternatives()) {
            *log = softplus(*log) + k * libm::log(a.theta)
                - n * libm::log1p(self.p0 * (a.theta - 1.0));
        }
        Ok(())
    }

    /// ln of the statistic; least float at the start.
    pub fn log_statistic(&self) -> f64 {
        let weighted: Vec<_> = self
            .logs
            .iter()
            .zip(self.grid.alternatives())
            .map(|(l, a)| l + libm::log(a.weight))
            .collect();
        log_sum_exp(&weighted).max(f64::MIN)
    }

    /// Whether to alarm, for at least `looks` looks between false alarms on average.
    pub fn alarms(&self, looks: f64) -> bool {
        self.log_statistic() >= libm::log(looks)
    }
}
