//! Chi-square tests of counts in categories (Pearson 1900).

use super::{BadSample, Tested, parameter};
use crate::special::gamma;

/// Whether counts fit shares: sample-ratio mismatch at the end of a rollout, say. The statistic is chi-square with one degree of freedom less than categories.
///
/// # Errors
/// [`BadSample`] for fewer than two categories, unequal lengths, or weights that are not finite and above 0.
pub fn chi_square_weights(observed: &[u64], weights: &[f64]) -> Result<Tested, BadSample> {
    if observed.len() < 2 || observed.len() != weights.len() {
        return Err(BadSample::TooFew {
            needed: observed.len().max(2),
            got: weights.len(),
        });
    }
    for w in weights {
        parameter(
            *w > 0.0 && w.is_finite(),
            "weight",
            *w,
            "be finite and above 0",
        )?;
    }
    let n: f64 = observed.iter().map(|k| *k as f64).sum();
    let total: f64 = weights.iter().sum();
    if n <= 0.0 {
        return Err(BadSample::TooFew { needed: 1, got: 0 });
    }
    let statistic = observed
        .iter()
        .zip(weights)
        .map(|(k, w)| {
            let expected = n * w / total;
            let d = *k as f64 - expected;
            d * d / expected
        })
        .sum();
    Ok(Tested {
        statistic,
        p: gamma::chi2_sf((observed.len() - 1) as f64, statistic),
    })
}

/// Whether two arms have the same mix of categories; empty categories are left out. With two categories Yates' correction (1934) applies.
///
/// # Errors
/// [`BadSample`] for unequal lengths, an empty arm, or fewer than two categories that occur.
pub fn chi_square_independence(candidate: &[u64], baseline: &[u64]) -> Result<Tested, BadSample> {
    if candidate.len() != baseline.len() {
        return Err(BadSample::TooFew {
            needed: candidate.len(),
            got: baseline.len(),
        });
    }
    let columns: Vec<_> = candidate
        .iter()
        .zip(baseline)
        .filter(|(a, b)| **a > 0 || **b > 0)
        .collect();
    let rows = [
        columns.iter().map(|(a, _)| **a as f64).sum::<f64>(),
        columns.iter().map(|(_, b)| **b as f64).sum::<f64>(),
    ];
    if columns.len() < 2 || rows.iter().any(|r| *r <= 0.0) {
        return Err(BadSample::TooFew {
            needed: 2,
            got: columns.len(),
        });
    }
    let total = rows[0] + rows[1];
    let mut statistic = 0.0;
    for (a, b) in &columns {
        let column = **a as f64 + **b as f64;
        for (count, row) in [(**a, rows[0]), (**b, rows[1])] {
            let expected = row * column / total;
            let mut d = (count as f64 - expected).abs();
            if columns.len() == 2 {
                d -= d.min(0.5);
            }
            statistic += d * d / expected;
        }
    }
    Ok(Tested {
        statistic,
        p: gamma::chi2_sf((columns.len() - 1) as f64, statistic),
    })
}
