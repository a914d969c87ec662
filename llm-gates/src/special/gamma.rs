//! The gamma function, the gamma and chi-square distributions.

use super::quadrature::tail;
use crate::numbers::ln_1m_exp;

/// ln(2 pi) / 2.
const HALF_LN_2PI: f64 = 0.918_938_533_204_672_8;

/// ln |Gamma(x)|.
pub fn ln_gamma(x: f64) -> f64 {
    libm::lgamma(x)
}

/// What Stirling's formula lacks: ln Gamma(x) - ((x - 1/2) ln x - x + ln(2 pi) / 2), for x > 0.
pub(crate) fn stirling_error(x: f64) -> f64 {
    if x < 15.0 {
        return ln_gamma(x) - ((x - 0.5) * libm::log(x) - x + HALF_LN_2PI);
    }
    let r = 1.0 / (x * x);
    let series = 1.0 / 1188.0 - r * (691.0 / 360_360.0 - r / 156.0);
    (1.0 / 12.0 - r * (1.0 / 360.0 - r * (1.0 / 1260.0 - r * (1.0 / 1680.0 - r * series)))) / x
}

/// x ln(x / m) + m - x without cancellation near x = m (Loader 2000).
pub(crate) fn deviance(x: f64, m: f64) -> f64 {
    let d = x - m;
    if d.abs() < 0.1 * (x + m) {
        let v = d / (x + m);
        let (mut sum, mut term) = (d * v, 2.0 * x * v);
        for j in 1..=30 {
            term *= v * v;
            let next = sum + term / f64::from(2 * j + 1);
            if (next - sum).abs() <= 1e-17 * sum.abs() {
                return next;
            }
            sum = next;
        }
        sum
    } else if x > 0.0 {
        x * libm::log(x / m) - d
    } else {
        m
    }
}

/// ln(x^s e^-x / Gamma(s)): the density of ln X for X with the gamma distribution of shape s > 0, at x > 0.
fn ln_density_of_log(s: f64, x: f64) -> f64 {
    if s < 1e-300 || !s.is_finite() {
        return f64::NAN;
    }
    // s ln x - x - ln Gamma(s) = -(s ln(s / x) + x - s) + ln(s) / 2 - ln(2 pi) / 2 - error
    0.5 * libm::log(s) - HALF_LN_2PI - deviance(s, x) - stirling_error(s)
}

/// (ln P(s, x), ln Q(s, x)), the logs of the regularised lower and upper incomplete gamma functions; s > 0, x >= 0, else NaN.
pub fn ln_p_q(s: f64, x: f64) -> (f64, f64) {
    if !(s > 0.0 && x >= 0.0 && s.is_finite()) {
        return (f64::NAN, f64::NAN);
    }
    if x <= 0.0 {
        return (f64::NEG_INFINITY, 0.0);
    }
    if x.is_infinite() {
        return (0.0, f64::NEG_INFINITY);
    }
    let density = ln_density_of_log(s, x);
    if x < s {
        let p = (density + libm::log(tail(|u| -s * u - x * libm::expm1(-u)))).min(0.0);
        (p, ln_1m_exp(p))
    } else {
        let q = (density + libm::log(tail(|u| s * u - x * libm::expm1(u)))).min(0.0);
        (ln_1m_exp(q), q)
    }
}

/// P(X > x) of the chi-square distribution with `df` > 0 degrees of freedom.
pub fn chi2_sf(df: f64, x: f64) -> f64 {
    if x <= 0.0 {
        1.0
    } else {
        libm::exp(ln_p_q(0.5 * df, 0.5 * x).1)
    }
}

/// ln(Gamma(x + k) / Gamma(x)) for x > 0, k >= 0, without the cancellation of two log-gammas.
pub fn ln_rising(x: f64, k: f64) -> f64 {
    if k <= 0.0 {
        return 0.0;
    }
    (x - 0.5) * libm::log1p(k / x) + k * (libm::log(x + k) - 1.0) + stirling_error(x + k)
        - stirling_error(x)
}
