//! The candidate against fresh, equal-sized control arms.

use serde::{Deserialize, Serialize};

use super::{EProcess, Logs};
use crate::Grid;
use crate::fixed::BadSample;
use crate::numbers::LogSum;

/// Evidence that the candidate has more events than K equal control arms, exact if the K + 1 arms are exchangeable: `(K + 1) theta^k_0 / sum_i theta^k_i`. It needs no model of the
/// counts, but no noise of an arm may persist from batch to batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Swap {
    controls: usize,
    grid: Grid,
    logs: Logs,
}

impl Swap {
    /// Against exchangeability with `controls` control arms, 1 to 64.
    ///
    /// # Errors
    /// [`BadSample`] for no or too many control arms.
    pub fn new(controls: usize, grid: Grid) -> Result<Self, BadSample> {
        if controls == 0 {
            return Err(BadSample::TooFew { needed: 1, got: 0 });
        }
        if controls > 64 {
            return Err(BadSample::TooMany {
                limit: 64,
                got: controls,
            });
        }
        let logs = Logs::weighted(grid.alternatives().iter().map(|a| a.weight));
        Ok(Self {
            controls,
            grid,
            logs,
        })
    }

    /// Adds the events of a batch in which all arms had the same expected size.
    ///
    /// # Errors
    /// [`BadSample`] unless there is a count for each control arm; nothing changes then.
    pub fn observe(&mut self, candidate: u64, controls: &[u64]) -> Result<(), BadSample> {
        if controls.len() != self.controls {
            return Err(BadSample::TooFew {
                needed: self.controls,
                got: controls.len(),
            });
        }
        let ln_arms = libm::log((self.controls + 1) as f64);
        for (log, ln_theta) in self.logs.0.iter_mut().zip(self.grid.ln_thetas()) {
            let own = candidate as f64 * ln_theta;
            let mut all = LogSum::default();
            all.add(own);
            for k in controls {
                all.add(*k as f64 * ln_theta);
            }
            *log += ln_arms + own - all.ln();
        }
        Ok(())
    }
}

impl EProcess for Swap {
    fn log_e(&self) -> f64 {
        self.logs.log_e()
    }
}
