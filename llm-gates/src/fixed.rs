//! Tests and intervals with a fixed horizon: one look at a finished sample.
//!
//! Looking again and again at these makes their error rates meaningless; what is watched while it runs belongs to [`crate::anytime`].

mod categories;
mod distributions;
mod exact;
mod intervals;
mod means;
mod proportions;
mod quantiles;
mod ranks;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use categories::{chi_square_independence, chi_square_weights};
pub use distributions::{kolmogorov_smirnov, kolmogorov_smirnov_asymptotic};
pub use exact::{
    binomial, fisher, ln_noncentral_hypergeometric, mcnemar, mcnemar_chi_square, rates,
};
pub(crate) use intervals::wilson_real;
pub use intervals::{clopper_pearson, clopper_pearson_one_sided, newcombe, wilson};
pub use means::{Welch, student_interval, welch, welch_moments};
pub(crate) use proportions::needed;
pub use proportions::{
    difference_non_inferiority, difference_score, ratio_non_inferiority, two_proportions,
};
pub(crate) use quantiles::woodruff_ranks;
pub use quantiles::{QuantileEstimate, quantile_comparison, woodruff};
pub use ranks::{
    Ranks, hodges_lehmann, mann_whitney, mann_whitney_exact, wilcoxon, wilcoxon_exact,
};

use crate::BadCounts;
use crate::special::normal;

/// Which alternatives count as extreme.
#[expect(clippy::exhaustive_enums, reason = "a line has two ends")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The first sample, or the rate, is less.
    Less,
    /// The first sample, or the rate, is greater.
    Greater,
    /// Either.
    TwoSided,
}

/// A statistic and its p-value.
#[expect(clippy::exhaustive_structs, reason = "a test gives these two numbers")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Tested {
    /// The statistic; which one, the test says.
    pub statistic: f64,
    /// Probability, without an effect, of a statistic at least as extreme; in [0, 1].
    pub p: f64,
}

/// Why there is no answer.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Error)]
pub enum BadSample {
    /// Fewer values than the test needs.
    #[error("{got} values where the test needs at least {needed}")]
    TooFew {
        /// What the test needs.
        needed: usize,
        /// What there is.
        got: usize,
    },
    /// More values than the exact test can count in bounded time; use the asymptotic one.
    #[error("{got} values, above the {limit} that the exact test takes: use the asymptotic one")]
    TooMany {
        /// What the test takes.
        limit: usize,
        /// What there is.
        got: usize,
    },
    /// A value that is NaN or infinite.
    #[error("the value at index {index} is {value}: every value must be a finite number")]
    NotFinite {
        /// Where.
        index: usize,
        /// What.
        value: f64,
    },
    /// Ties where the exact null distribution has none.
    #[error(
        "the sample has ties or zeros, which the exact distribution leaves out: use the asymptotic test"
    )]
    Ties,
    /// Counts that cannot be.
    #[error(transparent)]
    Counts(#[from] BadCounts),
    /// A parameter outside its range.
    #[error("`{name}` is {value}: it must {range}")]
    Parameter {
        /// Which.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What it must be.
        range: &'static str,
    },
}

/// A parameter that must lie strictly between 0 and 1.
pub(crate) fn open_unit(name: &'static str, value: f64) -> Result<f64, BadSample> {
    parameter(
        value > 0.0 && value < 1.0,
        name,
        value,
        "lie above 0 and below 1",
    )
}

pub(crate) fn parameter(
    holds: bool,
    name: &'static str,
    value: f64,
    range: &'static str,
) -> Result<f64, BadSample> {
    if holds {
        Ok(value)
    } else {
        Err(BadSample::Parameter { name, value, range })
    }
}

/// At least `needed` values, all finite.
pub(crate) fn finite(values: &[f64], needed: usize) -> Result<(), BadSample> {
    if values.len() < needed {
        return Err(BadSample::TooFew {
            needed,
            got: values.len(),
        });
    }
    match values.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(BadSample::NotFinite {
            index,
            value: values[index],
        }),
        None => Ok(()),
    }
}

/// The p-value of a standard normal statistic.
fn normal_p(z: f64, side: Side) -> f64 {
    match side {
        Side::Less => normal::cdf(z),
        Side::Greater => normal::sf(z),
        Side::TwoSided => (2.0 * normal::sf(z.abs())).min(1.0),
    }
}

/// A sorted copy.
pub(crate) fn sorted(values: &[f64]) -> Vec<f64> {
    let mut copy = values.to_vec();
    copy.sort_unstable_by(f64::total_cmp);
    copy
}
