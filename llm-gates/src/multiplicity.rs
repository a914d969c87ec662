//! Many tests at once: p-values and e-values.
//!
//! Input is taken as it comes; a p-value or e-value that is NaN counts as no evidence.

/// Adjusted p-values; reject where one is at most alpha.
fn adjust(p: &[f64], step: impl Fn(f64, f64) -> f64, up: bool) -> Vec<f64> {
    let p: Vec<f64> = p
        .iter()
        .map(|v| if v.is_nan() { 1.0 } else { v.clamp(0.0, 1.0) })
        .collect();
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut adjusted = vec![1.0; p.len()];
    let mut so_far: f64 = if up { 1.0 } else { 0.0 };
    let ranks: Vec<usize> = if up {
        (0..p.len()).rev().collect()
    } else {
        (0..p.len()).collect()
    };
    for rank in ranks {
        let value = step(p[order[rank]], (rank + 1) as f64);
        so_far = if up {
            so_far.min(value)
        } else {
            so_far.max(value)
        };
        adjusted[order[rank]] = so_far.min(1.0);
    }
    adjusted
}

/// Bonferroni: any dependence.
pub fn bonferroni(p: &[f64]) -> Vec<f64> {
    let m = p.len() as f64;
    adjust(p, |p, _| (m * p).min(1.0), false)
}

/// Holm (1979): any dependence, never worse than Bonferroni. The family-wise default.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let m = p.len() as f64;
    adjust(p, |p, rank| (m - rank + 1.0) * p, false)
}

/// Hochberg (1988): for independent or positively dependent tests.
pub fn hochberg(p: &[f64]) -> Vec<f64> {
    let m = p.len() as f64;
    adjust(p, |p, rank| (m - rank + 1.0) * p, true)
}

/// Benjamini and Hochberg (1995): false discovery rate, for independent or positively dependent tests.
pub fn benjamini_hochberg(p: &[f64]) -> Vec<f64> {
    let m = p.len() as f64;
    adjust(p, |p, rank| m / rank * p, true)
}

/// Benjamini and Yekutieli (2001): false discovery rate under any dependence.
pub fn benjamini_yekutieli(p: &[f64]) -> Vec<f64> {
    let m = p.len() as f64;
    let harmonic: f64 = (1..=p.len()).map(|i| 1.0 / i as f64).sum();
    adjust(p, |p, rank| harmonic * m / rank * p, true)
}

fn values(e: &[f64]) -> Vec<f64> {
    e.iter().map(|v| if *v > 0.0 { *v } else { 0.0 }).collect()
}

/// Which of many e-values to reject with a false discovery rate of at most alpha under any dependence (Wang and Ramdas 2022): the k greatest for the greatest k whose k-th is at
/// least K / (alpha k).
pub fn e_bh(e: &[f64], alpha: f64) -> Vec<bool> {
    let e = values(e);
    let mut order: Vec<usize> = (0..e.len()).collect();
    order.sort_by(|a, b| e[*b].total_cmp(&e[*a]));
    let mut reject = vec![false; e.len()];
    let passes = |rank: usize| e[order[rank]] * alpha * (rank + 1) as f64 >= e.len() as f64;
    if let Some(last) = (0..e.len()).rev().find(|rank| passes(*rank)) {
        for i in &order[..=last] {
            reject[*i] = true;
        }
    }
    reject
}

/// The mean of e-values, an e-value for "none of the hypotheses fails" under any dependence; 0 for none.
pub fn mean_e(e: &[f64]) -> f64 {
    if e.is_empty() {
        0.0
    } else {
        values(e).iter().sum::<f64>() / e.len() as f64
    }
}

/// Closed testing with means (Vovk and Wang 2021): the least mean over all sets that hold the hypothesis. Reject where one is at least 1 / alpha: then the family-wise
/// error is at most alpha, so this says *which* metric is to blame.
pub fn closed_mean_e(e: &[f64]) -> Vec<f64> {
    let e = values(e);
    let adjusted = |i: usize| {
        let mut others: Vec<f64> = e
            .iter()
            .enumerate()
            .filter(|(j, _)| *j != i)
            .map(|(_, v)| *v)
            .collect();
        others.sort_unstable_by(f64::total_cmp);
        let (mut sum, mut least) = (e[i], e[i]);
        for (m, other) in others.iter().enumerate() {
            sum += other;
            least = least.min(sum / (m + 2) as f64);
        }
        least
    };
    (0..e.len()).map(adjusted).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn adjustments_are_ordered(p in prop::collection::vec(0.0..1.0f64, 1..20)) {
            let (b, h, c, d, y) = (bonferroni(&p), holm(&p), hochberg(&p), benjamini_hochberg(&p), benjamini_yekutieli(&p));
            for i in 0..p.len() {
                prop_assert!(p[i] <= d[i] + 1e-15 && d[i] <= c[i] + 1e-15 && c[i] <= h[i] + 1e-15 && h[i] <= b[i] + 1e-15 && d[i] <= y[i] + 1e-15);
            }
        }

        /// By the definition, over every subset.
        #[test]
        fn closed_testing_takes_the_least_mean(e in prop::collection::vec(0.0..50.0f64, 1..8)) {
            for (i, found) in closed_mean_e(&e).into_iter().enumerate() {
                let least = (0u32..1 << e.len())
                    .filter(|set| set >> i & 1 == 1)
                    .map(|set| mean_e(&e.iter().enumerate().filter(|(j, _)| set >> j & 1 == 1).map(|(_, v)| *v).collect::<Vec<_>>()))
                    .fold(f64::INFINITY, f64::min);
                prop_assert!((found - least).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn what_is_not_a_number_is_no_evidence() {
        assert_eq!(holm(&[f64::NAN, 0.01]), [1.0, 0.02]);
        assert_eq!(e_bh(&[f64::NAN, 100.0], 0.05), [false, true]);
    }
}
