//! The binomial and hypergeometric distributions, up to counts of 10^12.

use super::beta;
use super::gamma::{deviance, stirling_error};

/// ln(2 pi) / 2.
const HALF_LN_2PI: f64 = 0.918_938_533_204_672_8;

/// ln P(K = k) for K ~ Bin(n, p) (Loader 2000); -inf outside 0..=n, NaN unless p lies in [0, 1].
pub fn ln_pmf(n: u64, k: u64, p: f64) -> f64 {
    ln_pmf_odds(n, k, p, 1.0 - p)
}

/// The same with q = 1 - p given.
fn ln_pmf_odds(n: u64, k: u64, p: f64, q: f64) -> f64 {
    if !(0.0..=1.0).contains(&p) {
        return f64::NAN;
    }
    if k > n {
        return f64::NEG_INFINITY;
    }
    let (total, hits, misses) = (n as f64, k as f64, (n - k) as f64);
    if k == 0 {
        return if n == 0 { 0.0 } else { total * libm::log1p(-p) };
    }
    if k == n {
        return total * libm::log(p);
    }
    let error = stirling_error(total) - stirling_error(hits) - stirling_error(misses);
    // x Gamma(x) = Gamma(x + 1) turns sqrt(n / (2 pi k (n - k))) into this form.
    error + 0.5 * libm::log(total / hits / misses)
        - HALF_LN_2PI
        - deviance(hits, total * p)
        - deviance(misses, total * q)
}

/// P(K <= k) for K ~ Bin(n, p).
pub fn cdf(n: u64, k: u64, p: f64) -> f64 {
    if k >= n {
        1.0
    } else {
        libm::exp(beta::ln_tails((n - k) as f64, (k + 1) as f64, 1.0 - p, p).0)
    }
}

/// P(K >= k) for K ~ Bin(n, p).
pub fn sf_inclusive(n: u64, k: u64, p: f64) -> f64 {
    if k == 0 {
        1.0
    } else if k > n {
        0.0
    } else {
        libm::exp(beta::ln_tails(k as f64, (n - k + 1) as f64, p, 1.0 - p).0)
    }
}

/// ln C(n, k); -inf where k > n.
pub fn ln_choose(n: u64, k: u64) -> f64 {
    if k > n {
        f64::NEG_INFINITY
    } else if k == 0 || k == n {
        0.0
    } else {
        -libm::log((n - k) as f64) - beta::ln_beta(k as f64 + 1.0, (n - k) as f64)
    }
}

/// ln P(X = x) where `drawn` of `total` are drawn and `marked` of the total are marked.
pub fn ln_hypergeometric(total: u64, marked: u64, drawn: u64, x: u64) -> f64 {
    if marked > total || drawn > total || x > marked || x > drawn || drawn - x > total - marked {
        return f64::NEG_INFINITY;
    }
    if drawn == 0 || drawn == total {
        return 0.0;
    }
    let (p, q) = (
        drawn as f64 / total as f64,
        (total - drawn) as f64 / total as f64,
    );
    ln_pmf_odds(marked, x, p, q) + ln_pmf_odds(total - marked, drawn - x, p, q)
        - ln_pmf_odds(total, drawn, p, q)
}
