//! Closed forms: mixtures whose boundaries can be drawn, for confidence sequences and display (Howard, Ramdas, McAuliffe and Sekhon 2021).

use crate::fixed::{BadSample, open_unit, parameter};
use crate::special::{beta, normal};
use crate::{BadCounts, Counts};

/// rho for which a mixture is tightest at variance `v_opt`.
fn best_rho(v_opt: f64, alpha: f64) -> f64 {
    let l = -libm::log(alpha);
    v_opt / (2.0 * l + libm::log1p(2.0 * l))
}

/// The root of an increasing function on [low, high].
fn root(f: impl Fn(f64) -> f64, mut low: f64, mut high: f64) -> f64 {
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if f(middle) < 0.0 {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// Normal mixture over a sum S of centred increments with variance process V. Exact for sub-Gaussian increments; for anything else asymptotic, and then advisory:
/// refuse to alarm before 100 observations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormalMixture {
    rho: f64,
    one_sided: bool,
}

impl NormalMixture {
    /// The mixture that is tightest where the variance reaches `v_opt` > 0 for alpha in (0, 1), below 1/2 where it is one-sided.
    ///
    /// # Errors
    /// [`BadSample`] for parameters out of range.
    pub fn tight_at(v_opt: f64, alpha: f64, one_sided: bool) -> Result<Self, BadSample> {
        parameter(
            v_opt > 0.0 && v_opt.is_finite(),
            "v_opt",
            v_opt,
            "be finite and above 0",
        )?;
        let alpha = open_unit("alpha", if one_sided { 2.0 * alpha } else { alpha })?;
        Self::with_rho(best_rho(v_opt, alpha), one_sided)
    }

    /// The mixture over effects with variance 1 / rho per unit of variance.
    ///
    /// # Errors
    /// [`BadSample`] unless rho is finite and above 0.
    pub fn with_rho(rho: f64, one_sided: bool) -> Result<Self, BadSample> {
        parameter(
            rho > 0.0 && rho.is_finite(),
            "rho",
            rho,
            "be finite and above 0",
        )?;
        Ok(Self { rho, one_sided })
    }

    /// rho.
    pub const fn rho(&self) -> f64 {
        self.rho
    }

    /// ln E at the sum `s` with variance `v` >= 0.
    pub fn log_e(&self, s: f64, v: f64) -> f64 {
        let whole = v + self.rho;
        let square = s * s / (2.0 * whole);
        if self.one_sided {
            0.5 * libm::log(4.0 * self.rho / whole) + square + normal::ln_cdf(s / libm::sqrt(whole))
        } else {
            0.5 * libm::log(self.rho / whole) + square
        }
    }

    /// The sum at which E reaches 1 / alpha, for variance `v`.
    pub fn bound(&self, v: f64, alpha: f64) -> f64 {
        let whole = v + self.rho;
        let two_sided = libm::sqrt(whole * (-2.0 * libm::log(alpha) + libm::log(whole / self.rho)));
        if !self.one_sided {
            return two_sided;
        }
        // E one-sided is at most twice E two-sided and at least E two-sided where s > 0.
        root(
            |s| self.log_e(s, v) + libm::log(alpha),
            0.0,
            two_sided + 1.0,
        )
    }
}

/// Half width, at n observations of variance s2, of the asymptotic confidence sequence (Waudby-Smith et al. 2021) that is tightest at `n_star`; also returns its rho. One-sided
/// for half the error.
///
/// # Errors
/// [`BadSample`] for parameters out of range.
pub fn asymptotic_half_width(
    s2: f64,
    n: u64,
    alpha: f64,
    n_star: f64,
    one_sided: bool,
) -> Result<(f64, f64), BadSample> {
    parameter(
        s2 >= 0.0 && s2.is_finite(),
        "s2",
        s2,
        "be finite and not negative",
    )?;
    parameter(n > 0, "n", 0.0, "be above 0")?;
    let mixture = NormalMixture::tight_at(n_star, alpha, one_sided)?;
    let n = n as f64;
    let rho2 = 1.0 / mixture.rho();
    let growth = libm::sqrt(n * rho2 + 1.0);
    let ln = if one_sided {
        libm::log1p(growth / (2.0 * alpha))
    } else {
        libm::log(growth / alpha)
    };
    let half = libm::sqrt(s2) * libm::sqrt(2.0 * (n * rho2 + 1.0) / (n * n * rho2) * ln);
    Ok((half, libm::sqrt(rho2)))
}

/// Beta-binomial mixture over a sum S of increments in [-g, h] with variance process V (Howard et al. 2021).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BetaBinomialMixture {
    r: f64,
    g: f64,
    h: f64,
    one_sided: bool,
    normaliser: f64,
}

impl BetaBinomialMixture {
    /// The mixture that is tightest where the variance reaches `v_opt`.
    ///
    /// # Errors
    /// [`BadSample`] for parameters out of range.
    pub fn tight_at(
        v_opt: f64,
        alpha: f64,
        g: f64,
        h: f64,
        one_sided: bool,
    ) -> Result<Self, BadSample> {
        parameter(g > 0.0 && g.is_finite(), "g", g, "be finite and above 0")?;
        parameter(h > 0.0 && h.is_finite(), "h", h, "be finite and above 0")?;
        let rho = NormalMixture::tight_at(v_opt, alpha, one_sided)?.rho();
        let r = (rho - g * h).max(1e-3 * g * h);
        let mut mixture = Self {
            r,
            g,
            h,
            one_sided,
            normaliser: 0.0,
        };
        mixture.normaliser = mixture.ln_beta(0.0, 0.0);
        Ok(mixture)
    }

    fn ln_beta(&self, s: f64, v: f64) -> f64 {
        let (g, h) = (self.g, self.h);
        let a = (self.r + v - g * s) / (g * (g + h));
        let b = (self.r + v + h * s) / (h * (g + h));
        let whole = beta::ln_beta(a, b);
        if self.one_sided {
            whole + beta::ln_tails(a, b, h / (g + h), g / (g + h)).0
        } else {
            whole
        }
    }

    /// ln E at the sum `s` with variance `v` >= 0; s < (v + r) / g, else NaN.
    pub fn log_e(&self, s: f64, v: f64) -> f64 {
        let (g, h) = (self.g, self.h);
        v / (g * h) * libm::log(g + h)
            - (v + h * s) / (h * (g + h)) * libm::log(g)
            - (v - g * s) / (g * (g + h)) * libm::log(h)
            + self.ln_beta(s, v)
            - self.normaliser
    }

    /// The sum at which E reaches 1 / alpha, for variance `v`; at most v / g, the greatest sum that there can be.
    pub fn bound(&self, v: f64, alpha: f64) -> f64 {
        root(|s| self.log_e(s, v) + libm::log(alpha), 0.0, v / self.g)
    }
}

/// ln E of k among n against the rate p0, two-sided, for a Beta(a, b) prior.
///
/// # Errors
/// [`BadCounts`] for k > n.
pub fn beta_binomial_two_sided(c: Counts, p0: f64, a: f64, b: f64) -> Result<f64, BadCounts> {
    c.check()?;
    let (k, rest) = (c.k as f64, (c.n - c.k) as f64);
    Ok(beta::ln_beta(a + k, b + rest)
        - beta::ln_beta(a, b)
        - k * libm::log(p0)
        - rest * libm::log1p(-p0))
}

/// The same against rates of at most p0: the prior is cut off below p0.
///
/// # Errors
/// [`BadCounts`] for k > n.
pub fn beta_binomial_one_sided(c: Counts, p0: f64, a: f64, b: f64) -> Result<f64, BadCounts> {
    let two_sided = beta_binomial_two_sided(c, p0, a, b)?;
    let above = |a: f64, b: f64| beta::ln_tails(a, b, p0, 1.0 - p0).1;
    Ok(two_sided + above(a + c.k as f64, b + (c.n - c.k) as f64) - above(a, b))
}

/// Confidence sequence of a proportion at level 1 - alpha, tightest at `n_opt` observations: the rates whose two-sided beta-binomial mixture has not reached 1 / alpha. (0, 1) without data.
///
/// # Errors
/// [`BadSample`] for k > n or parameters out of range.
pub fn proportion_sequence(c: Counts, alpha: f64, n_opt: f64) -> Result<(f64, f64), BadSample> {
    c.check()?;
    open_unit("alpha", alpha)?;
    parameter(
        n_opt > 0.0 && n_opt.is_finite(),
        "n_opt",
        n_opt,
        "be finite and above 0",
    )?;
    if c.n == 0 {
        return Ok((0.0, 1.0));
    }
    let n = c.n as f64;
    let p_hat = c.k as f64 / n;
    let excess = |p: f64| {
        let v = p * (1.0 - p);
        let s = c.k as f64 - n * p;
        BetaBinomialMixture::tight_at(n_opt * v, 0.05, p, 1.0 - p, false)
            .map_or(f64::INFINITY, |m| m.log_e(s, n * v) + libm::log(alpha))
    };
    let low = if c.k == 0 {
        0.0
    } else {
        root(|p| -excess(p), f64::MIN_POSITIVE, p_hat)
    };
    let high = if c.k == c.n {
        1.0
    } else {
        root(excess, p_hat, 1.0 - f64::EPSILON)
    };
    Ok((low, high))
}
