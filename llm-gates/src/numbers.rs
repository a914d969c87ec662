//! Sums in log space.

/// ln(sum of exp(v)); -inf for nothing, or for nothing but -inf.
pub(crate) fn log_sum_exp(v: &[f64]) -> f64 {
    let max = v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !max.is_finite() {
        return max;
    }
    max + libm::log(v.iter().map(|x| libm::exp(x - max)).sum())
}

/// ln(sum of exp(x)), term by term.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogSum {
    max: f64,
    /// In units of exp(max).
    sum: f64,
}

impl Default for LogSum {
    fn default() -> Self {
        Self {
            max: f64::NEG_INFINITY,
            sum: 0.0,
        }
    }
}

impl LogSum {
    pub(crate) fn add(&mut self, x: f64) {
        if x > self.max {
            let before = if self.sum > 0.0 {
                self.sum * libm::exp(self.max - x)
            } else {
                0.0
            };
            self.sum = before + 1.0;
            self.max = x;
        } else if x > f64::NEG_INFINITY {
            self.sum += libm::exp(x - self.max);
        }
    }

    /// -inf for nothing.
    pub(crate) fn ln(self) -> f64 {
        self.max + libm::log(self.sum)
    }
}

/// ln(exp(a) + exp(b)) of numbers.
pub(crate) fn log_add(a: f64, b: f64) -> f64 {
    a.max(b) + libm::log1p(libm::exp(-(a - b).abs()))
}

/// ln(1 - exp(x)) for x <= 0 (Maechler 2012).
pub(crate) fn ln_1m_exp(x: f64) -> f64 {
    if x > -std::f64::consts::LN_2 {
        libm::log(-libm::expm1(x))
    } else {
        libm::log1p(-libm::exp(x))
    }
}

/// ln(1 + exp(x)).
pub(crate) fn softplus(x: f64) -> f64 {
    if x > 0.0 {
        x + libm::log1p(libm::exp(-x))
    } else {
        libm::log1p(libm::exp(x))
    }
}

/// The whole number below, 0 for what is negative or NaN, at most `u64::MAX`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, which is what is wanted"
)]
pub(crate) const fn whole(x: f64) -> u64 {
    x as u64
}

/// The same as an index.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, which is what is wanted"
)]
pub(crate) const fn index(x: f64) -> usize {
    x as usize
}
