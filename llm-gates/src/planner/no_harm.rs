//! What it takes to show that there is no harm.

use crate::fixed::{BadSample, open_unit, parameter};

/// Expected candidate requests until an equal candidate has shown, with [`crate::RateRatio`] and the arms swapped, that its rate is below 1 + `margin` times the baseline's `p`: at its `share` of the
/// traffic, with probability of a wrong pass `beta`, the price of the mixture `c_mix` (1.5 by default).
///
/// # Errors
/// [`BadSample`] for parameters out of range.
pub fn no_harm_needed(
    p: f64,
    margin: f64,
    share: f64,
    beta: f64,
    c_mix: f64,
) -> Result<f64, BadSample> {
    for (name, value) in [("p", p), ("share", share), ("beta", beta)] {
        open_unit(name, value)?;
    }
    parameter(
        margin > 0.0 && margin.is_finite(),
        "margin",
        margin,
        "be finite and above 0",
    )?;
    parameter(
        c_mix >= 0.0 && c_mix.is_finite(),
        "c_mix",
        c_mix,
        "be finite and not negative",
    )?;
    let drift = p * (libm::log1p(share * margin) / share - libm::log1p(margin));
    Ok((c_mix - libm::log(beta)) / drift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::whole;
    use crate::{Counts, Grid, RateRatio};

    /// Against the mean increment of the test itself, at the counts that an equal candidate has on average.
    #[test]
    fn drift_is_that_of_the_swapped_test() {
        for (p, margin, share) in [(0.1, 0.5, 0.05), (0.2, 1.2, 0.5), (0.1, 2.5, 0.25)] {
            let n = no_harm_needed(p, margin, share, 0.05, 1.5).unwrap();
            let mut test = RateRatio::new(1.0 / (1.0 + margin), Grid::Rr7).unwrap();
            // In counts of a hundred candidate requests, so that rates come out whole.
            let (c, b) = (100.0, 100.0 * (1.0 - share) / share);
            let counts = |n: f64| Counts::new(whole(n), whole(p * n));
            let mut looks = 0.0;
            while test.log_e() < -0.05f64.ln() {
                test.observe(counts(b), counts(c));
                looks += 1.0;
            }
            let found = looks * c;
            assert!((n / found).ln().abs() < 0.5, "{n} for {found}");
        }
    }
}
