//! Confidence intervals of proportions.

use super::{BadSample, open_unit};
use crate::Counts;
use crate::special::{beta, normal};

fn proportion(c: Counts, alpha: f64) -> Result<(f64, f64), BadSample> {
    open_unit("alpha", alpha)?;
    c.check()?;
    if c.n == 0 {
        return Err(BadSample::TooFew { needed: 1, got: 0 });
    }
    Ok((c.k as f64, c.n as f64))
}

/// Wilson's score interval (1927) of k / n at confidence 1 - alpha: the usual one for display.
///
/// # Errors
/// [`BadSample`] for k > n, n = 0 or alpha outside (0, 1).
pub fn wilson(c: Counts, alpha: f64) -> Result<(f64, f64), BadSample> {
    let (k, n) = proportion(c, alpha)?;
    Ok(wilson_real(k, n, normal::upper_quantile(0.5 * alpha)))
}

/// Wilson's interval for a real number of successes.
pub(crate) fn wilson_real(k: f64, n: f64, z: f64) -> (f64, f64) {
    let p = k / n;
    let centre = p + z * z / (2.0 * n);
    let half = z * libm::sqrt(p * (1.0 - p) / n + z * z / (4.0 * n * n));
    let scale = 1.0 + z * z / n;
    let low = if k <= 0.0 {
        0.0
    } else {
        (centre - half) / scale
    };
    let high = if k >= n { 1.0 } else { (centre + half) / scale };
    (low, high)
}

/// The exact interval of Clopper and Pearson (1934) at confidence 1 - alpha: never too short, whatever n.
///
/// # Errors
/// [`BadSample`] for k > n, n = 0 or alpha outside (0, 1).
pub fn clopper_pearson(c: Counts, alpha: f64) -> Result<(f64, f64), BadSample> {
    clopper_pearson_one_sided(c, 0.5 * open_unit("alpha", alpha)?)
}

/// Lower and upper exact bounds, each alone at confidence 1 - alpha.
///
/// # Errors
/// [`BadSample`] for k > n, n = 0 or alpha outside (0, 1).
pub fn clopper_pearson_one_sided(c: Counts, alpha: f64) -> Result<(f64, f64), BadSample> {
    let (k, n) = proportion(c, alpha)?;
    let low = if c.k == 0 {
        0.0
    } else {
        beta::quantile(k, n - k + 1.0, alpha)
    };
    // The upper tail of Beta(k + 1, n - k) is the lower tail of its mirror image.
    let high = if c.k == c.n {
        1.0
    } else {
        1.0 - beta::quantile(n - k, k + 1.0, alpha)
    };
    Ok((low, high))
}

/// Newcombe's interval (1998, method 10) of the difference candidate - baseline, from two Wilson intervals.
///
/// # Errors
/// [`BadSample`] for k > n, n = 0 or alpha outside (0, 1).
pub fn newcombe(candidate: Counts, baseline: Counts, alpha: f64) -> Result<(f64, f64), BadSample> {
    let (l1, u1) = wilson(candidate, alpha)?;
    let (l2, u2) = wilson(baseline, alpha)?;
    let (p1, p2) = (
        candidate.k as f64 / candidate.n as f64,
        baseline.k as f64 / baseline.n as f64,
    );
    let d = p1 - p2;
    Ok((
        d - libm::hypot(p1 - l1, u2 - p2),
        d + libm::hypot(u1 - p1, p2 - l2),
    ))
}
