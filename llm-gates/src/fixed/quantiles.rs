//! Quantiles of two arms (Woodruff 1952).

use serde::{Deserialize, Serialize};

use super::{BadSample, Tested, finite, open_unit, parameter, sorted};
use crate::numbers::index;
use crate::special::normal;

/// A quantile with confidence bounds.
#[expect(clippy::exhaustive_structs, reason = "an estimate with its bounds")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct QuantileEstimate {
    /// Which quantile, in (0, 1).
    pub q: f64,
    /// The estimate, in the metric's unit.
    pub value: f64,
    /// Lower confidence bound.
    pub lower: f64,
    /// Upper confidence bound.
    pub upper: f64,
    /// How many values.
    pub n: u64,
}

/// Ranks (from 1, as reals) of Woodruff's bounds at confidence 1 - alpha, kept inside the sample.
pub(crate) fn woodruff_ranks(n: f64, q: f64, alpha: f64) -> (f64, f64) {
    let half = normal::upper_quantile(0.5 * alpha) * libm::sqrt(n * q * (1.0 - q));
    ((n * q - half).max(1.0), (n * q + half + 1.0).min(n))
}

/// The quantile q of a sample, with Woodruff's bounds at confidence 1 - alpha.
///
/// # Errors
/// [`BadSample`] for an empty sample, values that are not finite, or q or alpha outside (0, 1).
pub fn woodruff(values: &[f64], q: f64, alpha: f64) -> Result<QuantileEstimate, BadSample> {
    finite(values, 1)?;
    open_unit("q", q)?;
    open_unit("alpha", alpha)?;
    let values = sorted(values);
    let n = values.len() as f64;
    let at = |rank: f64| values[index(libm::ceil(rank)).clamp(1, values.len()) - 1];
    let (low, high) = woodruff_ranks(n, q, alpha);
    Ok(QuantileEstimate {
        q,
        value: at(n * q),
        lower: at(libm::floor(low)),
        upper: at(high),
        n: values.len() as u64,
    })
}

/// Test that the candidate's quantile is at most (1 + margin) times the baseline's, from two estimates with bounds at confidence 1 - alpha: a small p shows harm. The statistic
/// is z of the log ratio.
///
/// # Errors
/// [`BadSample`] for values that are not above 0, bounds that coincide in both arms, or parameters out of range.
pub fn quantile_comparison(
    candidate: &QuantileEstimate,
    baseline: &QuantileEstimate,
    margin: f64,
    alpha: f64,
) -> Result<Tested, BadSample> {
    open_unit("alpha", alpha)?;
    parameter(
        margin > -1.0 && margin.is_finite(),
        "margin",
        margin,
        "be finite and above -1",
    )?;
    let z = normal::upper_quantile(0.5 * alpha);
    let se = |e: &QuantileEstimate| -> Result<f64, BadSample> {
        parameter(
            e.lower > 0.0 && e.upper >= e.lower && e.value > 0.0 && e.upper.is_finite(),
            "lower",
            e.lower,
            "be above 0, and at most the upper bound",
        )?;
        Ok((libm::log(e.upper) - libm::log(e.lower)) / (2.0 * z))
    };
    let spread = libm::hypot(se(candidate)?, se(baseline)?);
    parameter(
        spread > 0.0,
        "spread",
        spread,
        "be above 0: the bounds coincide, so there are too few values",
    )?;
    let statistic = (libm::log(candidate.value / baseline.value) - libm::log1p(margin)) / spread;
    Ok(Tested {
        statistic,
        p: normal::sf(statistic),
    })
}
