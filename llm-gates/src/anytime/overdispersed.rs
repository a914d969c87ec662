//! Two rates whose ratio is noisy from block to block: replicas of unequal load, caches, topics.

use serde::{Deserialize, Serialize};

use super::{EProcess, Logs};
use crate::fixed::{BadSample, parameter};
use crate::special::gamma::ln_rising;
use crate::{BadCounts, Counts, Grid};

/// Beta-binomial likelihood ratio: like [`crate::RateRatio`], for arms whose log ratio carries independent noise of known variance in each block. Noise that is
/// correlated from block to block, or far from Gaussian, breaks the bound: learn it with `AutoRatio` where there is history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OverdispersedRatio {
    s2: f64,
    grid: Grid,
    logs: Logs,
}

impl OverdispersedRatio {
    /// Against "no worse than the baseline", for noise of variance `s2` of the log ratio per block, in [1e-6, 10]; below that there is no noise worth
    /// modelling, and sums of log-gammas would cancel: use [`crate::RateRatio`].
    ///
    /// # Errors
    /// [`BadSample`] for a variance out of range.
    pub fn new(s2: f64, grid: Grid) -> Result<Self, BadSample> {
        parameter(
            (1e-6..=10.0).contains(&s2),
            "s2",
            s2,
            "lie between 1e-6 and 10",
        )?;
        let logs = Logs::weighted(grid.alternatives().iter().map(|a| a.weight));
        Ok(Self { s2, grid, logs })
    }

    /// Adds a block of new counts; blocks with an empty arm add nothing.
    ///
    /// # Errors
    /// [`BadCounts`] for k > n; nothing changes then.
    pub fn observe(&mut self, candidate: Counts, baseline: Counts) -> Result<(), BadCounts> {
        candidate.check()?;
        baseline.check()?;
        if candidate.n == 0 || baseline.n == 0 {
            return Ok(());
        }
        let pi = candidate.n as f64 / (candidate.n as f64 + baseline.n as f64);
        let m = 1.0 / (pi * (1.0 - pi) * self.s2);
        let (a, b) = (pi * m, (1.0 - pi) * m);
        let (k_c, k_b) = (candidate.k as f64, baseline.k as f64);
        // ln B(x + k_c, b + k_b) - ln B(x, b), less what does not depend on x.
        let ratio = |x: f64| ln_rising(x, k_c) - ln_rising(x + b, k_c + k_b);
        let null = ratio(a);
        self.logs.add(
            self.grid
                .alternatives()
                .iter()
                .map(|t| ratio(t.theta * a) - null),
        );
        Ok(())
    }
}

impl EProcess for OverdispersedRatio {
    fn log_e(&self) -> f64 {
        self.logs.log_e()
    }
}

/// Variance of the log ratio between arms from block to block beyond sampling noise, by moments of successive differences, so that a constant difference between the arms
/// cancels; at least `floor`. Blocks are (candidate, baseline); `None` with fewer than two blocks that have events.
pub fn block_noise(blocks: &[(Counts, Counts)], floor: f64) -> Option<f64> {
    let mut before: Option<(f64, f64)> = None;
    let (mut excess, mut scale, mut pairs) = (0.0, 0.0, 0u32);
    for (c, b) in blocks {
        let (n, k) = (c.n as f64 + b.n as f64, c.k as f64 + b.k as f64);
        let pi = c.n as f64 / n;
        let m = k * pi * (1.0 - pi) * (1.0 - k / n);
        if m.is_nan() || m <= 0.0 {
            continue;
        }
        let r = (c.k as f64 - k * pi) / libm::sqrt(m);
        if let Some((r0, m0)) = before {
            excess += 0.5 * (r - r0) * (r - r0) - 1.0;
            scale += 0.5 * (m + m0);
            pairs += 1;
        }
        before = Some((r, m));
    }
    (pairs > 0).then(|| (excess / scale).max(floor))
}
