//! Tests on ranks: no assumption about the distribution.

use serde::{Deserialize, Serialize};

use super::{BadSample, Side, Tested, finite, open_unit, sorted};
use crate::numbers::index;
use crate::special::normal;

/// Most products of sample sizes, and most values, that the exact tests take.
const EXACT_PAIRS: usize = 2_500;
const EXACT_VALUES: usize = 100;

/// Ranks of two samples, shared ranks for ties.
struct Ranked {
    /// Mann-Whitney's U of the first sample.
    u: f64,
    /// Sum of t^3 - t over groups of ties.
    ties: f64,
}

fn ranked(a: &[f64], b: &[f64]) -> Result<Ranked, BadSample> {
    finite(a, 1)?;
    finite(b, 1)?;
    let mut all: Vec<_> = a
        .iter()
        .map(|v| (*v, true))
        .chain(b.iter().map(|v| (*v, false)))
        .collect();
    all.sort_unstable_by(|x, y| x.0.total_cmp(&y.0));
    let (mut sum, mut ties, mut i) = (0.0, 0.0, 0);
    while i < all.len() {
        let end = i + all[i..].iter().take_while(|v| v.0 <= all[i].0).count();
        let t = (end - i) as f64;
        let rank = 0.5 * ((i + 1) as f64 + end as f64);
        sum += rank * all[i..end].iter().filter(|v| v.1).count() as f64;
        ties += t * t * t - t;
        i = end;
    }
    let n = a.len() as f64;
    Ok(Ranked {
        u: sum - 0.5 * n * (n + 1.0),
        ties,
    })
}

/// Mann-Whitney's test (1947) by its normal approximation with ties and continuity correction. The statistic is U of the first sample: pairs in which it is
/// greater, ties half.
///
/// # Errors
/// [`BadSample`] for an empty sample or values that are not finite.
pub fn mann_whitney(a: &[f64], b: &[f64], side: Side) -> Result<Tested, BadSample> {
    let Ranked { u, ties } = ranked(a, b)?;
    let (m, n) = (a.len() as f64, b.len() as f64);
    let total = m + n;
    let sd = libm::sqrt((m * n / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)))).max(0.0));
    let extreme = match side {
        Side::Greater => u,
        Side::Less => m * n - u,
        Side::TwoSided => u.max(m * n - u),
    };
    let p = if sd > 0.0 {
        normal::sf((extreme - 0.5 * m * n - 0.5) / sd)
    } else {
        1.0
    };
    Ok(Tested {
        statistic: u,
        p: if side == Side::TwoSided {
            (2.0 * p).min(1.0)
        } else {
            p
        },
    })
}

/// Mann-Whitney's test by the exact distribution, for samples without ties whose sizes multiply to at most 2,500.
///
/// # Errors
/// [`BadSample`] for an empty sample, values that are not finite, ties, or samples that are too large.
pub fn mann_whitney_exact(a: &[f64], b: &[f64], side: Side) -> Result<Tested, BadSample> {
    let Ranked { u, ties } = ranked(a, b)?;
    if ties > 0.0 {
        return Err(BadSample::Ties);
    }
    let (m, n) = (a.len(), b.len());
    if m * n > EXACT_PAIRS {
        return Err(BadSample::TooMany {
            limit: EXACT_PAIRS,
            got: m * n,
        });
    }
    // P(U = u) for all u, by rows: the greatest value belongs to the first sample with probability i / (i + j).
    let mut rows: Vec<Vec<f64>> = vec![vec![1.0]; n + 1];
    for i in 1..=m {
        let mut next: Vec<Vec<f64>> = Vec::with_capacity(n + 1);
        next.push(vec![1.0]);
        for j in 1..=n {
            let share = i as f64 / (i + j) as f64;
            let mut row = vec![0.0; i * j + 1];
            for (k, p) in rows[j].iter().enumerate() {
                row[k + j] += share * p;
            }
            for (k, p) in next[j - 1].iter().enumerate() {
                row[k] += (1.0 - share) * p;
            }
            next.push(row);
        }
        rows = next;
    }
    let law = &rows[n];
    let at_least = |u: f64| law.iter().skip(index(libm::ceil(u))).sum::<f64>();
    let product = (m * n) as f64;
    let p = match side {
        Side::Greater => at_least(u),
        Side::Less => at_least(product - u),
        Side::TwoSided => (2.0 * at_least(u.max(product - u))).min(1.0),
    };
    Ok(Tested { statistic: u, p })
}

/// A shift between two samples.
#[expect(clippy::exhaustive_structs, reason = "an estimate with its interval")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ranks {
    /// The estimate.
    pub shift: f64,
    /// Its confidence interval.
    pub interval: (f64, f64),
}

/// The shift of Hodges and Lehmann (1963), the median of all differences first minus second, with the interval that inverts Mann-Whitney's test at
/// confidence 1 - alpha (normal approximation). Takes no more memory than sorted copies.
///
/// # Errors
/// [`BadSample`] for an empty sample, values that are not finite, or alpha outside (0, 1).
pub fn hodges_lehmann(a: &[f64], b: &[f64], alpha: f64) -> Result<Ranks, BadSample> {
    open_unit("alpha", alpha)?;
    finite(a, 1)?;
    finite(b, 1)?;
    let (a, b) = (sorted(a), sorted(b));
    let pairs = a.len() as f64 * b.len() as f64;
    let sd = libm::sqrt(pairs * ((a.len() + b.len()) as f64 + 1.0) / 12.0);
    let reach = libm::floor(0.5 * pairs - normal::upper_quantile(0.5 * alpha) * sd).max(0.0);
    let at = |k: f64| kth_difference(&a, &b, k.clamp(0.0, pairs - 1.0));
    let upper = libm::floor(0.5 * pairs);
    let lower = libm::ceil(0.5 * pairs) - 1.0;
    Ok(Ranks {
        shift: 0.5 * (at(lower) + at(upper)),
        interval: (at(reach), at(pairs - 1.0 - reach)),
    })
}

/// The k-th smallest (from 0) of all differences a_i - b_j of sorted samples, to the last bits, by bisection on the value.
fn kth_difference(a: &[f64], b: &[f64], k: f64) -> f64 {
    let at_most = |x: f64| {
        let (mut j, mut count) = (0, 0.0);
        // Descending a_i - x sweeps b downwards once: count pairs with b_j >= a_i - x.
        for v in a {
            while j < b.len() && v - b[j] > x {
                j += 1;
            }
            count += (b.len() - j) as f64;
        }
        count
    };
    let (mut low, mut high) = (a[0] - b[b.len() - 1], a[a.len() - 1] - b[0]);
    for _ in 0..1100 {
        let middle = low + 0.5 * (high - low);
        if middle <= low || middle >= high {
            break;
        }
        if at_most(middle) > k {
            high = middle;
        } else {
            low = middle;
        }
    }
    if at_most(low) > k { low } else { high }
}

/// Wilcoxon's signed-rank test (1945) of differences of pairs by its normal approximation with ties and continuity correction; zeros are left out.
/// The statistic is the sum of the ranks of the positive differences, for two sides the lesser of both sums.
///
/// # Errors
/// [`BadSample`] without a difference other than zero, or for values that are not finite.
pub fn wilcoxon(differences: &[f64], side: Side) -> Result<Tested, BadSample> {
    let Signed {
        plus,
        minus,
        n,
        ties,
    } = signed(differences)?;
    let sd = libm::sqrt(((n * (n + 1.0) * (2.0 * n + 1.0) - 0.5 * ties) / 24.0).max(0.0));
    let mean = 0.25 * n * (n + 1.0);
    let d = plus - mean;
    let (shift, statistic) = match side {
        Side::Greater => (0.5, plus),
        Side::Less => (-0.5, plus),
        Side::TwoSided if d.abs() > 0.0 => (libm::copysign(0.5, d), plus.min(minus)),
        Side::TwoSided => (0.0, plus),
    };
    let z = (d - shift) / sd;
    Ok(Tested {
        statistic,
        p: super::normal_p(z, side),
    })
}

/// Wilcoxon's signed-rank test by the exact distribution, for up to 100 differences without zeros or ties.
///
/// # Errors
/// [`BadSample`] for no or too many values, zeros, ties, or values that are not finite.
pub fn wilcoxon_exact(differences: &[f64], side: Side) -> Result<Tested, BadSample> {
    let Signed {
        plus,
        minus,
        n,
        ties,
    } = signed(differences)?;
    let count = differences.len();
    if ties > 0.0 || n < count as f64 {
        return Err(BadSample::Ties);
    }
    if count > EXACT_VALUES {
        return Err(BadSample::TooMany {
            limit: EXACT_VALUES,
            got: count,
        });
    }
    let mut law = vec![1.0];
    for rank in 1..=count {
        let mut next = vec![0.0; law.len() + rank];
        for (k, p) in law.iter().enumerate() {
            next[k] += 0.5 * p;
            next[k + rank] += 0.5 * p;
        }
        law = next;
    }
    let at_least = |w: f64| law.iter().skip(index(libm::ceil(w))).sum::<f64>();
    let (p, statistic) = match side {
        Side::Greater => (at_least(plus), plus),
        Side::Less => (at_least(minus), plus),
        Side::TwoSided => ((2.0 * at_least(plus.max(minus))).min(1.0), plus.min(minus)),
    };
    Ok(Tested { statistic, p })
}

struct Signed {
    plus: f64,
    minus: f64,
    n: f64,
    ties: f64,
}

fn signed(differences: &[f64]) -> Result<Signed, BadSample> {
    finite(differences, 1)?;
    let mut d: Vec<f64> = differences
        .iter()
        .copied()
        .filter(|v| v.abs() > 0.0)
        .collect();
    if d.is_empty() {
        return Err(BadSample::TooFew { needed: 1, got: 0 });
    }
    d.sort_unstable_by(|x, y| x.abs().total_cmp(&y.abs()));
    let mut out = Signed {
        plus: 0.0,
        minus: 0.0,
        n: d.len() as f64,
        ties: 0.0,
    };
    let mut i = 0;
    while i < d.len() {
        let end = i + d[i..].iter().take_while(|v| v.abs() <= d[i].abs()).count();
        let t = (end - i) as f64;
        let rank = 0.5 * ((i + 1) as f64 + end as f64);
        let positive = d[i..end].iter().filter(|v| **v > 0.0).count() as f64;
        out.plus += rank * positive;
        out.minus += rank * (t - positive);
        out.ties += t * t * t - t;
        i = end;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_shift_is_the_median_of_all_differences(a in prop::collection::vec(-9i32..9, 1..20), b in prop::collection::vec(-9i32..9, 1..20)) {
            let real = |v: &[i32]| v.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
            let (a, b) = (real(&a), real(&b));
            let mut all: Vec<f64> = a.iter().flat_map(|x| b.iter().map(move |y| x - y)).collect();
            all.sort_unstable_by(f64::total_cmp);
            let median = 0.5 * (all[(all.len() - 1) / 2] + all[all.len() / 2]);
            let found = hodges_lehmann(&a, &b, 0.05).unwrap();
            prop_assert!((found.shift - median).abs() < 1e-9);
            prop_assert!(found.interval.0 <= found.shift && found.shift <= found.interval.1);
        }
    }
}
