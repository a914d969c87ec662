//! What was measured of one metric, with what it takes to say how sure one can be.

use serde::{Deserialize, Serialize};

use crate::Counts;
use crate::fixed::{QuantileEstimate, wilson_real};
use crate::quality::Comparisons;
use crate::special::{normal, student};

/// A summary of the samples of one arm.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Sample {
    /// `k` of `n`; the value is k / n. Interval: Wilson (1927).
    Proportion {
        /// How many had the property.
        k: u64,
        /// How many were looked at.
        n: u64,
    },
    /// Candidate against baseline in pairs; the value is (wins + ties / 2) / all. Interval: Wilson's over all pairs, which is conservative where there are ties.
    Comparison {
        /// Pairs in which the candidate was better.
        wins: u64,
        /// Pairs without a difference.
        ties: u64,
        /// Pairs in which the baseline was better.
        losses: u64,
    },
    /// A mean of `n` values. Interval: Student (1908), the whole line for a single value.
    Mean {
        /// Mean.
        mean: f64,
        /// Standard deviation of a single value.
        sd: f64,
        /// How many values.
        n: u64,
    },
    /// A quantile of `n` values, with the confidence bounds that a sketch or the order statistics give at the table's confidence.
    Quantile {
        /// Which quantile, in (0, 1).
        q: f64,
        /// Its estimate.
        value: f64,
        /// Lower confidence bound.
        lower: f64,
        /// Upper confidence bound.
        upper: f64,
        /// How many values.
        n: u64,
    },
}

/// What was measured of one metric.
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// Of the candidate.
    pub candidate: Sample,
    /// Of the baseline, where a threshold is relative to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Sample>,
}

impl Measurement {
    /// Of the candidate alone.
    pub const fn of(candidate: Sample) -> Self {
        Self {
            candidate,
            baseline: None,
        }
    }

    /// Of both.
    pub const fn against(candidate: Sample, baseline: Sample) -> Self {
        Self {
            candidate,
            baseline: Some(baseline),
        }
    }
}

impl From<QuantileEstimate> for Sample {
    fn from(e: QuantileEstimate) -> Self {
        Self::Quantile {
            q: e.q,
            value: e.value,
            lower: e.lower,
            upper: e.upper,
            n: e.n,
        }
    }
}

impl From<Comparisons> for Sample {
    fn from(c: Comparisons) -> Self {
        Self::Comparison {
            wins: c.wins,
            ties: c.ties,
            losses: c.losses,
        }
    }
}

impl From<Counts> for Sample {
    fn from(c: Counts) -> Self {
        Self::Proportion { k: c.k, n: c.n }
    }
}

impl Sample {
    /// Why these numbers cannot be a sample.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let fine = match *self {
            _ if self.n() == 0 => return Err("no samples"),
            Self::Proportion { k, n } => k <= n,
            Self::Comparison { wins, ties, losses } => wins
                .checked_add(ties)
                .and_then(|s| s.checked_add(losses))
                .is_some(),
            Self::Mean { mean, sd, .. } => mean.is_finite() && sd.is_finite() && sd >= 0.0,
            Self::Quantile {
                q,
                value,
                lower,
                upper,
                ..
            } => {
                q > 0.0
                    && q < 1.0
                    && lower.is_finite()
                    && upper.is_finite()
                    && lower <= value
                    && value <= upper
            }
        };
        if fine {
            Ok(())
        } else {
            Err("the measurement contradicts itself or is not a number")
        }
    }

    /// How many samples.
    pub fn n(&self) -> u64 {
        match *self {
            Self::Proportion { n, .. } | Self::Mean { n, .. } | Self::Quantile { n, .. } => n,
            Self::Comparison { wins, ties, losses } => {
                wins.saturating_add(ties).saturating_add(losses)
            }
        }
    }

    /// The point estimate; NaN without samples.
    pub fn value(&self) -> f64 {
        match *self {
            Self::Proportion { k, n } => k as f64 / n as f64,
            Self::Comparison { wins, ties, .. } => {
                (wins as f64 + 0.5 * ties as f64) / self.n() as f64
            }
            Self::Mean { mean, .. } => mean,
            Self::Quantile { value, .. } => value,
        }
    }

    /// Two-sided confidence interval.
    pub(super) fn interval(&self, confidence: f64) -> (f64, f64) {
        let (n, z) = (
            self.n() as f64,
            normal::upper_quantile((1.0 - confidence) / 2.0),
        );
        match *self {
            Self::Proportion { k, .. } => wilson_real(k as f64, n, z),
            Self::Comparison { .. } => wilson_real(self.value() * n, n, z),
            Self::Mean { mean, sd, .. } => {
                if n < 2.0 {
                    return (f64::MIN, f64::MAX);
                }
                let half =
                    student::upper_quantile(n - 1.0, (1.0 - confidence) / 2.0) * sd / libm::sqrt(n);
                (mean - half, mean + half)
            }
            Self::Quantile { lower, upper, .. } => (lower, upper),
        }
    }

    /// Confidence interval of this over the baseline, by a normal log ratio.
    pub(super) fn ratio_interval(
        &self,
        baseline: &Self,
        confidence: f64,
    ) -> Result<(f64, f64), &'static str> {
        let z = normal::upper_quantile((1.0 - confidence) / 2.0);
        let (ln_c, var_c) = self.ln_and_variance(z)?;
        let (ln_b, var_b) = baseline.ln_and_variance(z)?;
        let half = z * libm::sqrt(var_c + var_b);
        Ok((libm::exp(ln_c - ln_b - half), libm::exp(ln_c - ln_b + half)))
    }

    /// ln of the value and its variance. Proportions add half an event (Walter 1975), quantiles use the width of their interval (Woodruff 1952).
    fn ln_and_variance(&self, z: f64) -> Result<(f64, f64), &'static str> {
        match *self {
            Self::Proportion { k, n } => {
                let (k, n) = (k as f64 + 0.5, n as f64 + 0.5);
                Ok((libm::log(k / n), (1.0 / k - 1.0 / n).max(0.0)))
            }
            Self::Comparison { .. } => {
                Err("a comparison is relative already: give it an absolute threshold")
            }
            Self::Mean { mean, sd, n } if mean > 0.0 => {
                let cv = sd / mean;
                Ok((libm::log(mean), cv * cv / n as f64))
            }
            Self::Quantile {
                value,
                lower,
                upper,
                ..
            } if lower > 0.0 => {
                let se = (libm::log(upper) - libm::log(lower)) / (2.0 * z);
                Ok((libm::log(value), se * se))
            }
            Self::Mean { .. } | Self::Quantile { .. } => {
                Err("a ratio to the baseline needs values above 0")
            }
        }
    }
}
