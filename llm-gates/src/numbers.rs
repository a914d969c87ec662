//! Sums in log space.

/// ln(sum of exp(v)); -inf for nothing, or for nothing but -inf.
pub(crate) fn log_sum_exp(v: &[f64]) -> f64 {
    let max = v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !max.is_finite() {
        return max;
    }
    max + libm::log(v.iter().map(|x| libm::exp(x - max)).sum())
}
