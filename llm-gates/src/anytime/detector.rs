//! Change detection where there is no baseline any more: after 100 %.

use serde::{Deserialize, Serialize};

use super::Logs;
use super::one_sample::Slopes;
use crate::fixed::{BadSample, open_unit};
use crate::numbers::{LogSum, softplus};
use crate::{BadCounts, Counts, Grid};

/// Shiryaev-Roberts e-detector (Shin, Ramdas and Rinaldo 2022) for a rate that must stay at most p0. At ln ARL it alarms falsely after at least ARL
/// looks on average; it has no bound for all time, so it pages or holds, and rolls back only where the plan says so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub struct RateDetector {
    p0: f64,
    grid: Grid,
    slopes: Slopes,
    logs: Vec<f64>,
}

#[derive(Serialize, Deserialize)]
struct Raw {
    p0: f64,
    grid: Grid,
    logs: Logs,
}

impl TryFrom<Raw> for RateDetector {
    type Error = BadSample;

    fn try_from(raw: Raw) -> Result<Self, BadSample> {
        Ok(Self {
            logs: raw.logs.checked(raw.grid.alternatives().len())?.0,
            ..Self::new(raw.p0, raw.grid)?
        })
    }
}

impl From<RateDetector> for Raw {
    fn from(d: RateDetector) -> Self {
        Self {
            p0: d.p0,
            grid: d.grid,
            logs: Logs(d.logs),
        }
    }
}

impl RateDetector {
    /// For a rate of at most p0, in (0, 1).
    ///
    /// # Errors
    /// [`BadSample`] for p0 outside (0, 1).
    pub fn new(p0: f64, grid: Grid) -> Result<Self, BadSample> {
        open_unit("p0", p0)?;
        Ok(Self {
            p0,
            slopes: Slopes::of_rate(&grid, p0),
            logs: vec![f64::MIN; grid.alternatives().len()],
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
        for (log, increment) in self.logs.iter_mut().zip(increments) {
            *log = softplus(*log) + increment;
        }
        Ok(())
    }

    /// ln of the statistic; least float at the start.
    pub fn log_statistic(&self) -> f64 {
        let mut sum = LogSum::default();
        for (log, a) in self.logs.iter().zip(self.grid.alternatives()) {
            sum.add(log + libm::log(a.weight));
        }
        sum.ln().max(f64::MIN)
    }

    /// Whether to alarm, for at least `looks` looks between false alarms on average.
    pub fn alarms(&self, looks: f64) -> bool {
        self.log_statistic() >= libm::log(looks)
    }
}
