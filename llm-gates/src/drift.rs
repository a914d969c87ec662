//! Drift: whether inputs, outputs or embeddings are still what they were.

mod embedding;
mod stream;

use serde::{Deserialize, Serialize};

pub use embedding::{EmbeddingDrift, RandomFeatures, mmd_rbf};
pub use stream::{CategoryDrift, Cusum};

use crate::fixed::{BadSample, finite, sorted};
use crate::special::gamma;

/// How far two sets of category counts are apart.
#[expect(
    clippy::exhaustive_structs,
    reason = "the comparison gives these numbers"
)]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CategoryDistance {
    /// Population stability index: sum of (p - q) ln(p / q).
    pub psi: f64,
    /// Its expected value without drift, (B - 1)(1/n + 1/m): the folklore limits of .1 and .25 ignore the counts.
    pub psi_without_drift: f64,
    /// P(PSI at least this great) without drift: PSI n m / (n + m) is about chi-square with B - 1 degrees of freedom.
    pub p: f64,
    /// Kullback-Leibler divergence from baseline to candidate, in nats.
    pub kullback_leibler: f64,
    /// Jensen-Shannon divergence, in nats; at most ln 2.
    pub jensen_shannon: f64,
}

/// Compares category counts. Where any category of either is empty, half a count is added to all.
///
/// # Errors
/// [`BadSample`] for fewer than two categories, unequal lengths or an empty arm.
pub fn categories(baseline: &[u64], candidate: &[u64]) -> Result<CategoryDistance, BadSample> {
    if baseline.len() < 2 || baseline.len() != candidate.len() {
        return Err(BadSample::TooFew {
            needed: baseline.len().max(2),
            got: candidate.len(),
        });
    }
    let pseudo = if baseline.iter().chain(candidate).any(|k| *k == 0) {
        0.5
    } else {
        0.0
    };
    let sum = |counts: &[u64]| counts.iter().map(|k| *k as f64).sum::<f64>();
    let (n, m) = (sum(baseline), sum(candidate));
    if n <= 0.0 || m <= 0.0 {
        return Err(BadSample::TooFew { needed: 1, got: 0 });
    }
    let bins = baseline.len() as f64;
    let shares = |counts: &[u64], total: f64| {
        counts
            .iter()
            .map(|k| (*k as f64 + pseudo) / (total + bins * pseudo))
            .collect::<Vec<_>>()
    };
    let (p, q) = (shares(baseline, n), shares(candidate, m));
    let mut d = CategoryDistance {
        psi: 0.0,
        psi_without_drift: (bins - 1.0) * (1.0 / n + 1.0 / m),
        p: 1.0,
        kullback_leibler: 0.0,
        jensen_shannon: 0.0,
    };
    for (p, q) in p.iter().zip(&q) {
        let (ln, middle) = (libm::log(p / q), 0.5 * (p + q));
        d.psi += (p - q) * ln;
        d.kullback_leibler += p * ln;
        d.jensen_shannon += 0.5 * (p * libm::log(p / middle) + q * libm::log(q / middle));
    }
    d.p = gamma::chi2_sf(bins - 1.0, d.psi * n * m / (n + m));
    Ok(d)
}

/// Wasserstein-1 and energy distance of two samples, in the metric's unit and its square root.
///
/// # Errors
/// [`BadSample`] for an empty sample or values that are not finite.
pub fn distances(a: &[f64], b: &[f64]) -> Result<(f64, f64), BadSample> {
    finite(a, 1)?;
    finite(b, 1)?;
    let (a, b) = (sorted(a), sorted(b));
    let all = sorted(&[a.as_slice(), b.as_slice()].concat());
    let (mut wasserstein, mut square) = (0.0, 0.0);
    for pair in all.windows(2) {
        let below = |v: &[f64]| v.partition_point(|x| *x <= pair[0]) as f64 / v.len() as f64;
        let difference = (below(&a) - below(&b)).abs();
        wasserstein += difference * (pair[1] - pair[0]);
        square += difference * difference * (pair[1] - pair[0]);
    }
    Ok((wasserstein, libm::sqrt(2.0 * square)))
}
