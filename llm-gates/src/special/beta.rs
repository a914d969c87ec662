//! The beta function and the beta distribution, at shapes from 1e-3 to 1e12.

use super::gamma::{deviance, stirling_error};
use super::quadrature::tail;
use crate::numbers::ln_1m_exp;

/// ln(2 pi) / 2.
const HALF_LN_2PI: f64 = 0.918_938_533_204_672_8;

/// ln B(a, b) for a, b > 0, without the cancellation of three log-gammas.
pub fn ln_beta(a: f64, b: f64) -> f64 {
    if !(a > 0.0 && b > 0.0) {
        return f64::NAN;
    }
    let (small, large) = (a.min(b), a.max(b));
    if large < 15.0 {
        return libm::lgamma(a) + libm::lgamma(b) - libm::lgamma(a + b);
    }
    let n = a + b;
    let error = stirling_error(a) + stirling_error(b) - stirling_error(n);
    error + HALF_LN_2PI - 0.5 * libm::log(small) + small * libm::log(small / n)
        - (large - 0.5) * libm::log1p(small / large)
}

/// ln(x^a y^b / B(a, b)): the density of the logit, at x = 1 - y.
fn ln_density_of_logit(a: f64, b: f64, x: f64, y: f64) -> f64 {
    let n = a + b;
    let error = stirling_error(n) - stirling_error(a) - stirling_error(b);
    error + 0.5 * libm::log(a * (b / n)) - HALF_LN_2PI - deviance(a, n * x) - deviance(b, n * y)
}

/// (ln I_x(a, b), ln(1 - I_x(a, b))): the logs of both tails of the beta distribution at x = 1 - y. Give y where it is known better than 1 - x.
///
/// NaN unless a, b > 0 are finite and x, y lie in [0, 1].
pub fn ln_tails(a: f64, b: f64, x: f64, y: f64) -> (f64, f64) {
    let proper = a > 0.0
        && b > 0.0
        && a.is_finite()
        && b.is_finite()
        && (0.0..=1.0).contains(&x)
        && (0.0..=1.0).contains(&y);
    if !proper {
        return (f64::NAN, f64::NAN);
    }
    if x <= 0.0 {
        return (f64::NEG_INFINITY, 0.0);
    }
    if y <= 0.0 {
        return (0.0, f64::NEG_INFINITY);
    }
    let n = a + b;
    let density = ln_density_of_logit(a, b, x, y);
    // Either tail can be written with x or with y; the lesser of them does not cancel against the shapes.
    if x * b < y * a {
        let integral = if x <= 0.5 {
            tail(|s| -a * s - n * libm::log1p(x * libm::expm1(-s)))
        } else {
            tail(|s| b * s - n * libm::log1p(y * libm::expm1(s)))
        };
        let lower = (density + libm::log(integral)).min(0.0);
        (lower, ln_1m_exp(lower))
    } else {
        let integral = if y <= 0.5 {
            tail(|s| -b * s - n * libm::log1p(y * libm::expm1(-s)))
        } else {
            tail(|s| a * s - n * libm::log1p(x * libm::expm1(s)))
        };
        let upper = (density + libm::log(integral)).min(0.0);
        (ln_1m_exp(upper), upper)
    }
}

/// P(X <= x) of the beta distribution.
pub fn cdf(a: f64, b: f64, x: f64) -> f64 {
    libm::exp(ln_tails(a, b, x, 1.0 - x).0)
}

/// The x with P(X <= x) = p. NaN unless a, b > 0 and p lies in [0, 1].
pub fn quantile(a: f64, b: f64, p: f64) -> f64 {
    if !(a > 0.0 && b > 0.0 && (0.0..=1.0).contains(&p)) {
        return f64::NAN;
    }
    if p <= 0.0 || p >= 1.0 {
        return p.round();
    }
    // Newton steps for the log of the smaller tail in the logit u, kept inside a shrinking bracket.
    let (lower_tail, ln_p) = if p <= 0.5 {
        (true, libm::log(p))
    } else {
        (false, libm::log1p(-p))
    };
    let (mut low, mut high) = (-745.0, 745.0);
    let mut u = libm::log(a / b);
    for _ in 0..200 {
        let (x, y) = (logistic(u), logistic(-u));
        let tails = ln_tails(a, b, x, y);
        let ln_tail = if lower_tail { tails.0 } else { tails.1 };
        let error = ln_tail - ln_p;
        if (error > 0.0) == lower_tail {
            high = u;
        } else {
            low = u;
        }
        let slope = libm::exp(ln_density_of_logit(a, b, x, y) - ln_tail);
        let mut next = if lower_tail {
            u - error / slope
        } else {
            u + error / slope
        };
        if !(next > low && next < high) {
            next = 0.5 * (low + high);
        }
        let done = (next - u).abs() <= 1e-15 * (1.0 + u.abs());
        u = next;
        if done {
            break;
        }
    }
    logistic(u)
}

fn logistic(u: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-u))
}
