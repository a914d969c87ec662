//! The standard normal distribution, in both tails and in logs.

use std::f64::consts::{FRAC_1_SQRT_2, LN_2};

/// ln(sqrt(2 pi)).
const LN_SQRT_2PI: f64 = 0.918_938_533_204_672_8;

/// P(Z <= x).
pub fn cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x * FRAC_1_SQRT_2)
}

/// P(Z > x).
pub fn sf(x: f64) -> f64 {
    cdf(-x)
}

/// ln of the density.
pub fn ln_pdf(x: f64) -> f64 {
    -0.5 * x * x - LN_SQRT_2PI
}

/// ln P(Z <= x), without loss in either tail.
pub fn ln_cdf(x: f64) -> f64 {
    if x > -1.0 {
        libm::log1p(-sf(x))
    } else if x > -10.0 {
        libm::log(libm::erfc(-x * FRAC_1_SQRT_2)) - LN_2
    } else {
        ln_pdf(x) + libm::log(mills(-x))
    }
}

/// ln P(Z > x).
pub fn ln_sf(x: f64) -> f64 {
    ln_cdf(-x)
}

/// P(Z > x) / density(x) for x >= 10 by its continued fraction (Laplace), x + 1/(x + 2/(x + 3/...)).
fn mills(x: f64) -> f64 {
    let mut tail = x;
    for i in (1..=40).rev() {
        tail = x + f64::from(i) / tail;
    }
    1.0 / tail
}

/// The x with P(Z <= x) = p: -inf at 0, inf at 1, NaN outside [0, 1].
pub fn quantile(p: f64) -> f64 {
    if p > 0.5 {
        -lower_quantile(1.0 - p)
    } else {
        lower_quantile(p)
    }
}

/// The x with P(Z > x) = p.
pub fn upper_quantile(p: f64) -> f64 {
    -quantile(p)
}

/// p in [0, 0.5]: the rational approximation of Acklam (2003), then Newton steps on ln P.
fn lower_quantile(p: f64) -> f64 {
    if p.is_nan() || p < 0.0 {
        return f64::NAN;
    }
    if p <= 0.0 {
        return f64::NEG_INFINITY;
    }
    let ln_p = libm::log(p);
    let mut x = acklam(p, ln_p);
    for _ in 0..3 {
        let ln_cdf = ln_cdf(x);
        let step = (ln_cdf - ln_p) * libm::exp(ln_cdf - ln_pdf(x));
        x -= step;
        if step.abs() <= 1e-16 * x.abs() {
            break;
        }
    }
    x
}

fn horner(x: f64, coefficients: &[f64]) -> f64 {
    coefficients.iter().fold(0.0, |sum, c| sum * x + c)
}

fn acklam(p: f64, ln_p: f64) -> f64 {
    const A: [f64; 6] = [
        -39.696_830_286_653_76,
        220.946_098_424_520_5,
        -275.928_510_446_968_7,
        138.357_751_867_269,
        -30.664_798_066_147_16,
        2.506_628_277_459_239,
    ];
    const B: [f64; 6] = [
        -54.476_098_798_224_06,
        161.585_836_858_040_9,
        -155.698_979_859_886_6,
        66.801_311_887_719_72,
        -13.280_681_552_885_72,
        1.0,
    ];
    const C: [f64; 6] = [
        -0.007_784_894_002_430_293,
        -0.322_396_458_041_136_5,
        -2.400_758_277_161_838,
        -2.549_732_539_343_734,
        4.374_664_141_464_968,
        2.938_163_982_698_783,
    ];
    const D: [f64; 5] = [
        0.007_784_695_709_041_462,
        0.322_467_129_070_039_8,
        2.445_134_137_142_996,
        3.754_408_661_907_416,
        1.0,
    ];
    if p < 0.024_25 {
        let q = libm::sqrt(-2.0 * ln_p);
        horner(q, &C) / horner(q, &D)
    } else {
        let q = p - 0.5;
        let r = q * q;
        q * horner(r, &A) / horner(r, &B)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn quantile_inverts_cdf(ln_p in -690.0..-0.7f64) {
            let p = ln_p.exp();
            let x = quantile(p);
            prop_assert!((ln_cdf(x) - p.ln()).abs() < 1e-12 * ln_p.abs().max(1.0), "{x}");
        }

        #[test]
        fn tails_are_symmetric_and_monotone(x in -38.0..38.0f64, d in 0.0..1.0f64) {
            prop_assert!((cdf(x) + sf(x) - 1.0).abs() < 1e-15);
            prop_assert!(ln_cdf(x + d) >= ln_cdf(x) - 1e-15 * ln_cdf(x).abs());
        }
    }

    #[test]
    fn is_total() {
        assert!(quantile(0.0) == f64::NEG_INFINITY && quantile(1.0) == f64::INFINITY);
        assert!(quantile(-0.1).is_nan() && quantile(1.1).is_nan() && quantile(f64::NAN).is_nan());
        assert!((ln_cdf(-1e10) + 5e19).abs() < 1e8);
    }
}
