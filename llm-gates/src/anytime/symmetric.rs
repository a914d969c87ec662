//! Any statistic at all, if both slices are exchangeable.

use serde::{Deserialize, Serialize};

use super::{EProcess, Logs};
use crate::fixed::{BadSample, parameter};
use crate::numbers::softplus;

const A: [f64; 5] = [0.1, 0.2, 0.4, 0.8, 1.6];

/// Evidence that differences between candidate and an equal-sized control slice, block by block, are not symmetric about 0 but positive: `ln 2 - softplus(-2 a d / s)`.
///
/// Valid for any statistic of a block (a count, a p99, a mean) as long as the slices are exchangeable given the past. That fails where the noise of an arm is correlated from block to
/// block (measured: 23 to 55 % false alarms): take blocks of at least three times the correlation time, or `AutoRatio`. A block gains at most ln 2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Symmetric {
    logs: Logs,
    /// Winsorised sum of squares and number of past differences.
    square: f64,
    blocks: u64,
}

impl Default for Symmetric {
    fn default() -> Self {
        Self {
            logs: Logs::uniform(A.len()),
            square: 0.0,
            blocks: 0,
        }
    }
}

impl Symmetric {
    /// No evidence yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Learns the scale from the difference of a block in which both slices were served alike, before the ramp; adds no evidence. Without it the harm itself sets the scale, which costs some
    /// blocks where it is great.
    ///
    /// # Errors
    /// [`BadSample`] for a difference that is not finite; nothing changes then.
    pub fn learn(&mut self, difference: f64) -> Result<(), BadSample> {
        self.scaled(difference).map(|_| ())
    }

    /// Adds the difference of one block, candidate minus control, greater meaning worse. The running root mean square of past differences is the scale, so without history the first difference other
    /// than 0 adds no evidence; differences beyond 4 scales count as 4.
    ///
    /// # Errors
    /// [`BadSample`] for a difference that is not finite; nothing changes then.
    pub fn observe(&mut self, difference: f64) -> Result<(), BadSample> {
        if let Some(d) = self.scaled(difference)? {
            self.observe_scaled(d);
        }
        Ok(())
    }

    /// A difference in units of the past ones, if there are any, and part of them from now on.
    fn scaled(&mut self, difference: f64) -> Result<Option<f64>, BadSample> {
        parameter(
            difference.is_finite(),
            "difference",
            difference,
            "be finite",
        )?;
        let (mut kept, mut scaled) = (difference, None);
        if self.blocks > 0 && self.square > 0.0 {
            let scale = libm::sqrt(self.square / self.blocks as f64);
            let d = (difference / scale).clamp(-4.0, 4.0);
            (kept, scaled) = (d * scale, Some(d));
        }
        self.square = (self.square + kept * kept).min(f64::MAX);
        self.blocks = self.blocks.saturating_add(1);
        Ok(scaled)
    }

    /// Adds a difference that the caller has scaled by something known before the block; NaN adds nothing.
    pub fn observe_scaled(&mut self, d: f64) {
        if !d.is_nan() {
            self.logs.add(
                A.iter()
                    .map(|a| std::f64::consts::LN_2 - softplus(-2.0 * a * d)),
            );
        }
    }
}

impl EProcess for Symmetric {
    fn log_e(&self) -> f64 {
        self.logs.log_e()
    }
}
