//! Tests that hold at every look: e-processes, whose evidence may be read as often as one likes.
//!
//! Each starts at ln E = 0, takes disjoint increments, and satisfies P(ln E ever reaches ln(1 / alpha)) <= alpha where its hypothesis holds (Ville 1939). State is O(1)
//! and serde. Which test for which metric: see [`crate::guide`].

mod auto_ratio;
mod betting;
mod boundary;
mod capped_means;
mod detector;
mod mismatch;
mod one_sample;
mod overdispersed;
mod quantile;
mod quantile_shift;
mod swap;
mod symmetric;

pub use auto_ratio::{AutoRatio, History, NoiseLevel};
pub use betting::{BettingMean, BoundedMeans, EmpiricalBernstein, Scores};
pub use boundary::{
    BetaBinomialMixture, NormalMixture, asymptotic_half_width, beta_binomial_one_sided,
    beta_binomial_two_sided, proportion_sequence,
};
pub use capped_means::CappedMeans;
pub use detector::RateDetector;
pub use mismatch::Mismatch;
pub use one_sample::{EventRate, Sign, Slo};
pub use overdispersed::{OverdispersedRatio, block_noise};
pub use quantile::{quantile_difference, quantile_sequence};
pub use quantile_shift::QuantileShift;
pub use swap::Swap;
pub use symmetric::Symmetric;

use crate::fixed::BadSample;

/// What every process can say.
pub trait EProcess {
    /// ln of the evidence against the hypothesis; 0 at the start.
    fn log_e(&self) -> f64;

    /// Whether the hypothesis may be rejected at level `alpha`, at this look.
    fn rejects(&self, alpha: f64) -> bool {
        self.log_e() >= -libm::log(alpha)
    }

    /// A p-value that is valid at this look, whatever decided when to look: min(1, 1 / E).
    fn p(&self) -> f64 {
        libm::exp(-self.log_e()).min(1.0)
    }
}

impl EProcess for crate::RateRatio {
    fn log_e(&self) -> f64 {
        Self::log_e(self)
    }
}

/// Logs of a mixture over J alternatives, weights included.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Logs(Vec<f64>);

impl Logs {
    fn weighted(weights: impl Iterator<Item = f64>) -> Self {
        Self(weights.map(libm::log).collect())
    }

    fn uniform(count: usize) -> Self {
        Self(vec![-libm::log(count as f64); count])
    }

    /// Saved logs, if there is one per alternative and all are numbers.
    fn checked(self, alternatives: usize) -> Result<Self, BadSample> {
        if self.0.len() != alternatives {
            return Err(BadSample::TooFew {
                needed: alternatives,
                got: self.0.len(),
            });
        }
        crate::fixed::finite(&self.0, alternatives).map(|()| self)
    }

    /// Adds an increment per alternative.
    fn add(&mut self, increments: impl Iterator<Item = f64>) {
        for (log, increment) in self.0.iter_mut().zip(increments) {
            *log += increment;
        }
    }

    fn log_e(&self) -> f64 {
        crate::numbers::log_sum_exp(&self.0).max(f64::MIN)
    }
}
