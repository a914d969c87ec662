//! Two proportions, with and without margins.

use std::f64::consts::PI;

use super::{BadSample, Side, Tested, normal_p, open_unit, parameter};
use crate::Counts;
use crate::special::normal;

fn both(candidate: Counts, baseline: Counts) -> Result<[f64; 4], BadSample> {
    for c in [candidate, baseline] {
        c.check()?;
        if c.n == 0 {
            return Err(BadSample::TooFew { needed: 1, got: 0 });
        }
    }
    Ok([
        candidate.k as f64,
        candidate.n as f64,
        baseline.k as f64,
        baseline.n as f64,
    ])
}

/// The pooled z-test of equal proportions; for expected counts of at least 5, else [`super::fisher`]. Without any variation z = 0.
///
/// # Errors
/// [`BadSample`] for k > n or n = 0.
pub fn two_proportions(
    candidate: Counts,
    baseline: Counts,
    side: Side,
) -> Result<Tested, BadSample> {
    let [k1, n1, k2, n2] = both(candidate, baseline)?;
    let p = (k1 + k2) / (n1 + n2);
    let se = libm::sqrt(p * (1.0 - p) * (1.0 / n1 + 1.0 / n2));
    let z = if se > 0.0 {
        (k1 / n1 - k2 / n2) / se
    } else {
        0.0
    };
    Ok(Tested {
        statistic: z,
        p: normal_p(z, side),
    })
}

/// Score test of the hypothesis `candidate - baseline >= margin` against less (Farrington and Manning 1990): a small p shows that the candidate's bad rate
/// is not worse by the margin, which lies in (-1, 1).
///
/// # Errors
/// [`BadSample`] for k > n, n = 0 or a margin outside (-1, 1).
pub fn difference_non_inferiority(
    candidate: Counts,
    baseline: Counts,
    margin: f64,
) -> Result<Tested, BadSample> {
    let [k1, n1, k2, n2] = both(candidate, baseline)?;
    parameter(
        margin.abs() < 1.0,
        "margin",
        margin,
        "lie above -1 and below 1",
    )?;
    let (p1, p2, delta) = (k1 / n1, k2 / n2, margin);
    // The restricted maximum likelihood estimate is a root of a cubic.
    let theta = n2 / n1;
    let a = 1.0 + theta;
    let b = -(1.0 + theta + p1 + theta * p2 + delta * (theta + 2.0));
    let c = delta * delta + delta * (2.0 * p1 + theta + 1.0) + p1 + theta * p2;
    let d = -p1 * delta * (1.0 + delta);
    let v = b * b * b / (27.0 * a * a * a) - b * c / (6.0 * a * a) + d / (2.0 * a);
    let u = libm::copysign(
        libm::sqrt((b * b / (9.0 * a * a) - c / (3.0 * a)).max(0.0)),
        v,
    );
    let cosine = if u.abs() > 0.0 {
        (v / (u * u * u)).clamp(-1.0, 1.0)
    } else {
        0.0
    };
    let w = (PI + libm::acos(cosine)) / 3.0;
    let r1 = 2.0 * u * libm::cos(w) - b / (3.0 * a);
    difference_score(candidate, baseline, margin, r1 - delta)
}

/// The same score test with a given estimate of the baseline's rate under the hypothesis in place of the restricted maximum likelihood estimate.
///
/// # Errors
/// [`BadSample`] for k > n, n = 0 or a margin outside (-1, 1).
pub fn difference_score(
    candidate: Counts,
    baseline: Counts,
    margin: f64,
    baseline_rate: f64,
) -> Result<Tested, BadSample> {
    let [k1, n1, k2, n2] = both(candidate, baseline)?;
    parameter(
        margin.abs() < 1.0,
        "margin",
        margin,
        "lie above -1 and below 1",
    )?;
    let r2 = baseline_rate.clamp((-margin).max(0.0), (1.0 - margin).min(1.0));
    let r1 = (r2 + margin).clamp(0.0, 1.0);
    let se = libm::sqrt(r1 * (1.0 - r1) / n1 + r2 * (1.0 - r2) / n2);
    Ok(less(k1 / n1 - k2 / n2 - margin, se))
}

/// Score test of the hypothesis `candidate / baseline >= ratio` against less (Koopman 1984; Farrington and Manning 1990).
///
/// # Errors
/// [`BadSample`] for k > n, n = 0 or a ratio that is not finite and above 0.
pub fn ratio_non_inferiority(
    candidate: Counts,
    baseline: Counts,
    ratio: f64,
) -> Result<Tested, BadSample> {
    let [k1, n1, k2, n2] = both(candidate, baseline)?;
    parameter(
        ratio > 0.0 && ratio.is_finite(),
        "ratio",
        ratio,
        "be finite and above 0",
    )?;
    let a = ratio * (n1 + n2);
    let b = ratio * (n1 + k2) + k1 + n2;
    let c = k1 + k2;
    let r2 = (2.0 * c / (b + libm::sqrt((b * b - 4.0 * a * c).max(0.0)))).clamp(0.0, 1.0);
    let r1 = (ratio * r2).min(1.0);
    let se = libm::sqrt((r1 * (1.0 - r1) / n1 + ratio * ratio * r2 * (1.0 - r2) / n2).max(0.0));
    Ok(less(k1 / n1 - ratio * k2 / n2, se))
}

fn less(difference: f64, se: f64) -> Tested {
    let z = if se > 0.0 {
        difference / se
    } else if difference.abs() > 0.0 {
        libm::copysign(f64::MAX, difference)
    } else {
        0.0
    };
    Tested {
        statistic: z,
        p: normal_p(z, Side::Less),
    }
}

/// Samples of the candidate that a z-test of two proportions needs, for `ratio` baseline samples per candidate sample (Fleiss 1981, without correction).
///
/// # Errors
/// [`BadSample`] for probabilities outside (0, 1), equal proportions or a ratio not above 0.
pub(crate) fn needed(
    p1: f64,
    p2: f64,
    alpha: f64,
    power: f64,
    ratio: f64,
    two_sided: bool,
) -> Result<f64, BadSample> {
    for (name, value) in [("p1", p1), ("p2", p2), ("alpha", alpha), ("power", power)] {
        open_unit(name, value)?;
    }
    parameter(ratio > 0.0, "ratio", ratio, "be above 0")?;
    parameter((p1 - p2).abs() > 0.0, "p1", p1, "differ from p2")?;
    let z_a = normal::upper_quantile(if two_sided { 0.5 * alpha } else { alpha });
    let z_b = normal::quantile(power);
    let pooled = (p1 + ratio * p2) / (1.0 + ratio);
    let null = libm::sqrt(pooled * (1.0 - pooled) * (1.0 + 1.0 / ratio));
    let alternative = libm::sqrt(p1 * (1.0 - p1) + p2 * (1.0 - p2) / ratio);
    let z = (z_a * null + z_b * alternative) / (p1 - p2);
    Ok(z * z)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The restricted estimate maximises the likelihood: no other baseline rate makes the data more probable.
        #[test]
        fn the_restricted_estimate_is_the_most_likely(n1 in 5u64..2000, n2 in 5u64..2000, f1 in 0.01..0.99f64, f2 in 0.01..0.99f64, margin in 0.001..0.2f64) {
            let (c, b) = (Counts::new(n1, crate::numbers::whole(n1 as f64 * f1)), Counts::new(n2, crate::numbers::whole(n2 as f64 * f2)));
            let ln = |p: f64, k: u64| if k == 0 { 0.0 } else { k as f64 * p.max(1e-300).ln() };
            let likelihood = |r2: f64| {
                let r1 = r2 + margin;
                ln(r1, c.k) + ln(1.0 - r1, c.n - c.k) + ln(r2, b.k) + ln(1.0 - r2, b.n - b.k)
            };
            let (mut low, mut high) = (0.0, 1.0 - margin);
            for _ in 0..200 {
                let (x, y) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
                if likelihood(x) < likelihood(y) { low = x } else { high = y }
            }
            let exact = difference_non_inferiority(c, b, margin).unwrap();
            let searched = difference_score(c, b, margin, low).unwrap();
            prop_assert!((exact.statistic - searched.statistic).abs() < 1e-4 * (1.0 + exact.statistic.abs()));
        }
    }
}
