//! Quantiles at every look (Howard and Ramdas 2022).

use super::boundary::BetaBinomialMixture;
use crate::fixed::{BadSample, finite, open_unit, parameter, sorted};
use crate::numbers::index;

/// Confidence sequence of the quantile q at level 1 - alpha from all values so far, tightest at `n_opt` of them; infinite where there are too few values.
///
/// # Errors
/// [`BadSample`] for an empty sample, values that are not finite, or parameters out of range.
pub fn quantile_sequence(
    values: &[f64],
    q: f64,
    alpha: f64,
    n_opt: f64,
) -> Result<(f64, f64), BadSample> {
    finite(values, 1)?;
    open_unit("q", q)?;
    let values = sorted(values);
    let n = values.len() as f64;
    let v = q * (1.0 - q);
    // The count of values at or below the quantile has increments in [-q, 1 - q]; above it the other way round. Each side has half of alpha.
    let reach = |g: f64, h: f64| {
        let mixture = BetaBinomialMixture::tight_at(n_opt * v, 0.5 * alpha, g, h, true)?;
        Ok::<_, BadSample>(mixture.bound(n * v, 0.5 * alpha))
    };
    let below = libm::floor(n * q - reach(1.0 - q, q)?);
    let above = libm::ceil(n * q + reach(q, 1.0 - q)?);
    let low = if below >= 1.0 {
        values[index(below) - 1]
    } else {
        f64::NEG_INFINITY
    };
    let high = if above < n {
        values[index(above)]
    } else {
        f64::INFINITY
    };
    Ok((low, high))
}

/// p-value, valid at every look, of "both samples have the same quantile q": the least product of both samples' evidence against any common value, tightest at `n_opt` values
/// of each.
///
/// # Errors
/// [`BadSample`] for an empty sample, values that are not finite, or parameters out of range.
pub fn quantile_difference(a: &[f64], b: &[f64], q: f64, n_opt: f64) -> Result<f64, BadSample> {
    finite(a, 1)?;
    finite(b, 1)?;
    open_unit("q", q)?;
    parameter(
        n_opt > 0.0 && n_opt.is_finite(),
        "n_opt",
        n_opt,
        "be finite and above 0",
    )?;
    let (a, b) = (sorted(a), sorted(b));
    let mixture = BetaBinomialMixture::tight_at(n_opt * q * (1.0 - q), 0.05, q, 1.0 - q, false)?;
    let against = |count: f64, n: f64| mixture.log_e(count - n * q, n * q * (1.0 - q));
    // The mixture is convex in the count; where x lies within a gap or a tie, the count is the one that speaks least against x.
    let least_count = |n: f64| {
        let (mut low, mut high) = (0.0, n);
        for _ in 0..200 {
            let (x, y) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
            if against(x, n) < against(y, n) {
                high = y;
            } else {
                low = x;
            }
        }
        0.5 * (low + high)
    };
    let (least_a, least_b) = (least_count(a.len() as f64), least_count(b.len() as f64));
    let evidence = |values: &[f64], least: f64, x: f64| {
        let below = values.partition_point(|v| *v < x) as f64;
        let within = values.partition_point(|v| *v <= x) as f64;
        against(least.clamp(below, within), values.len() as f64)
    };
    let least = a
        .iter()
        .chain(&b)
        .map(|x| evidence(&a, least_a, *x) + evidence(&b, least_b, *x))
        .fold(f64::INFINITY, f64::min);
    Ok(libm::exp(-least).min(1.0))
}
