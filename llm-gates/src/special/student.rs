//! Student's t distribution at any number of degrees of freedom.

use super::{beta, normal};

/// P(T > t) for `df` > 0 degrees of freedom; the normal tail at infinity.
pub fn sf(df: f64, t: f64) -> f64 {
    if t < 0.0 {
        return 1.0 - sf(df, -t);
    }
    libm::exp(ln_sf_positive(df, t))
}

/// ln P(T > t) for t >= 0.
fn ln_sf_positive(df: f64, t: f64) -> f64 {
    if df.is_infinite() {
        return normal::ln_sf(t);
    }
    let square = t * t;
    if square.is_infinite() {
        return f64::NEG_INFINITY;
    }
    let whole = df + square;
    beta::ln_tails(0.5 * df, 0.5, df / whole, square / whole).0 - std::f64::consts::LN_2
}

/// The t with P(T > t) = p. NaN unless p lies in [0, 1] and df > 0.
pub fn upper_quantile(df: f64, p: f64) -> f64 {
    if !(df > 0.0 && (0.0..=1.0).contains(&p)) {
        return f64::NAN;
    }
    if p > 0.5 {
        return -upper_quantile(df, 1.0 - p);
    }
    if p <= 0.0 {
        return f64::INFINITY;
    }
    // Bisection on ln t, then on t: 120 halvings of [2^-60, 2^1000].
    let ln_p = libm::log(p);
    let mut high = 1.0;
    for _ in 0..1000 {
        if ln_sf_positive(df, high) <= ln_p {
            break;
        }
        high *= 2.0;
    }
    let mut low = if high > 1.0 { 0.5 * high } else { 0.0 };
    let mut t = 0.5 * (low + high);
    let mut before = (low, ln_sf_positive(df, low) - ln_p);
    for _ in 0..100 {
        let error = ln_sf_positive(df, t) - ln_p;
        if error > 0.0 {
            low = t;
        } else {
            high = t;
        }
        let slope = (error - before.1) / (t - before.0);
        before = (t, error);
        let mut next = t - error / slope;
        if !(next > low && next < high) {
            next = 0.5 * (low + high);
        }
        if (next - t).abs() <= 1e-15 * t.abs() {
            return next;
        }
        t = next;
    }
    t
}

/// Power of a two-sided t-test at level `alpha` where the statistic has noncentrality `delta` >= 0: the normal tail averaged over the chi distribution.
pub(crate) fn noncentral_two_sided(df: f64, delta: f64, alpha: f64) -> f64 {
    let critical = upper_quantile(df, 0.5 * alpha);
    // ln density of s = sqrt(chi2 / df), around its mode near 1 with deviation about 1 / sqrt(2 df).
    let constant =
        std::f64::consts::LN_2 + 0.5 * df * libm::log(0.5 * df) - super::gamma::ln_gamma(0.5 * df);
    let density = |s: f64| libm::exp(constant + (df - 1.0) * libm::log(s) - 0.5 * df * s * s);
    let tails = |s: f64| normal::sf(critical * s - delta) + normal::cdf(-critical * s - delta);
    let reach = 10.0 / libm::sqrt(2.0 * df);
    super::quadrature::integral(
        |s| density(s) * tails(s),
        (1.0 - reach).max(1e-12),
        1.0 + reach.max(10.0 / df),
        16,
    )
}
