//! Before a rollout: what it can detect, how soon, and at what price in harmed requests.

mod no_harm;
mod passage;
mod users;

use serde::{Deserialize, Serialize};

pub use no_harm::no_harm_needed;
pub use passage::Passage;
pub use users::{UserSpread, design_effect};

use crate::fixed::{self, BadSample, open_unit, parameter};
use crate::special::{normal, student};

/// How [`crate::RateRatio`] drifts to its bound under a true regression, per candidate request.
#[expect(clippy::exhaustive_structs, reason = "the planner gives these numbers")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// Drift of ln E per candidate request.
    pub drift: f64,
    /// Variance of ln E per candidate request.
    pub variance: f64,
    /// ln(1 / alpha) plus what the mixture over ratios costs.
    pub barrier: f64,
}

impl Detection {
    /// For a baseline rate `p`, a true ratio `theta` > 1, the candidate's `share` of traffic, the budget `alpha` (times the gate's weight) and the price `c_mix` of the mixture in nats, measured as 0.8
    /// to 2.4 (1.5 by default).
    ///
    /// # Errors
    /// [`BadSample`] for parameters out of range.
    pub fn new(p: f64, theta: f64, share: f64, alpha: f64, c_mix: f64) -> Result<Self, BadSample> {
        for (name, value) in [("p", p), ("share", share), ("alpha", alpha)] {
            open_unit(name, value)?;
        }
        parameter(
            theta > 1.0 && theta.is_finite(),
            "theta",
            theta,
            "be finite and above 1",
        )?;
        parameter(
            c_mix >= 0.0 && c_mix.is_finite(),
            "c_mix",
            c_mix,
            "be finite and not negative",
        )?;
        let (ln, c, others) = (
            libm::log(theta),
            libm::log1p(share * (theta - 1.0)),
            (1.0 - share) / share,
        );
        Ok(Self {
            drift: p * (theta * ln - (theta + others) * c),
            variance: p * (theta * (ln - c) * (ln - c) + others * c * c),
            barrier: c_mix - libm::log(alpha),
        })
    }

    /// The same where requests of one user resemble each other: `deff` of 1 and more, from [`design_effect`], requests count as one.
    ///
    /// # Errors
    /// [`BadSample`] for a design effect that is not finite and at least 1.
    pub fn with_design_effect(self, deff: f64) -> Result<Self, BadSample> {
        parameter(
            deff >= 1.0 && deff.is_finite(),
            "deff",
            deff,
            "be finite and at least 1",
        )?;
        Ok(Self {
            drift: self.drift / deff,
            variance: self.variance / deff,
            ..self
        })
    }

    /// Expected candidate requests until detection.
    pub fn expected_requests(&self) -> f64 {
        self.barrier / self.drift
    }

    /// Probability of detection within n candidate requests (first passage of a Brownian motion with drift).
    pub fn probability_by(&self, n: f64) -> f64 {
        if n.is_nan() || n <= 0.0 {
            return 0.0;
        }
        let sd = libm::sqrt(self.variance * n);
        let direct = normal::cdf((n * self.drift - self.barrier) / sd);
        let reflected = libm::exp(
            2.0 * self.drift * self.barrier / self.variance
                + normal::ln_cdf(-(n * self.drift + self.barrier) / sd),
        );
        (direct + reflected).min(1.0)
    }
}

/// When a schedule reaches a number of candidate requests.
#[expect(clippy::exhaustive_structs, reason = "the planner gives these numbers")]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Reached {
    /// Stage, from 0.
    pub stage: usize,
    /// Hours into the stage.
    pub hours_into_stage: f64,
    /// Hours from the start.
    pub hours: f64,
}

/// Candidate requests at the end of each stage of (share, hours), and when `needed` of them are reached.
///
/// # Errors
/// [`BadSample`] for a traffic, shares or dwell times that are negative or not finite.
pub fn schedule(
    requests_per_second: f64,
    stages: &[(f64, f64)],
    needed: f64,
) -> Result<(Vec<f64>, Option<Reached>), BadSample> {
    let amount = |name, value: f64| {
        parameter(
            value >= 0.0 && value.is_finite(),
            name,
            value,
            "be finite and not negative",
        )
    };
    amount("requests_per_second", requests_per_second)?;
    let (mut total, mut hours, mut ends, mut reached) =
        (0.0, 0.0, Vec::with_capacity(stages.len()), None);
    for (stage, (share, dwell)) in stages.iter().enumerate() {
        let hourly = requests_per_second * amount("share", *share)? * 3600.0;
        let gained = hourly * amount("hours", *dwell)?;
        if reached.is_none() && total + gained >= needed && hourly > 0.0 {
            let hours_into_stage = ((needed - total) / hourly).max(0.0);
            reached = Some(Reached {
                stage,
                hours_into_stage,
                hours: hours + hours_into_stage,
            });
        }
        total += gained;
        hours += dwell;
        ends.push(total);
    }
    Ok((ends, reached))
}

/// Samples of the first arm for a z-test of two proportions (Fleiss 1981, without correction), `ratio` samples of the second for each of the first.
///
/// # Errors
/// [`BadSample`] for parameters out of range or equal proportions.
pub fn two_proportions_needed(
    p1: f64,
    p2: f64,
    alpha: f64,
    power: f64,
    ratio: f64,
    two_sided: bool,
) -> Result<f64, BadSample> {
    fixed::needed(p1, p2, alpha, power, ratio, two_sided)
}

/// The same by the arcsine transformation (Cohen 1988), with its effect size h.
///
/// # Errors
/// [`BadSample`] for parameters out of range or equal proportions.
pub fn arcsine_needed(
    p1: f64,
    p2: f64,
    alpha: f64,
    power: f64,
    ratio: f64,
    two_sided: bool,
) -> Result<(f64, f64), BadSample> {
    for (name, value) in [("p1", p1), ("p2", p2), ("alpha", alpha), ("power", power)] {
        open_unit(name, value)?;
    }
    parameter(ratio > 0.0, "ratio", ratio, "be above 0")?;
    let angle = |p: f64| 2.0 * libm::asin(libm::sqrt(p));
    let h = angle(p1) - angle(p2);
    parameter(h.abs() > 0.0, "p1", p1, "differ from p2")?;
    let z = normal::upper_quantile(if two_sided { 0.5 * alpha } else { alpha })
        + normal::quantile(power);
    Ok((z * z / (h * h) * (1.0 + 1.0 / ratio), h))
}

/// Values in each of two equal arms for a two-sided t-test of a difference of `d` standard deviations.
///
/// # Errors
/// [`BadSample`] for parameters out of range.
pub fn t_test_needed(d: f64, alpha: f64, power: f64) -> Result<f64, BadSample> {
    open_unit("alpha", alpha)?;
    open_unit("power", power)?;
    parameter(
        d.abs() > 1e-6 && d.is_finite(),
        "d",
        d,
        "be finite and not 0",
    )?;
    let reached = |n: f64| {
        student::noncentral_two_sided(2.0 * (n - 1.0), d.abs() * libm::sqrt(0.5 * n), alpha)
            >= power
    };
    let mut high = 2.0;
    for _ in 0..80 {
        if reached(high) {
            break;
        }
        high *= 2.0;
    }
    let mut low = (0.5 * high).max(1.5);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if reached(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    Ok(0.5 * (low + high))
}

/// Candidate values to find that a log-normal metric's quantile q has risen by the fraction `shift`, by counting values above the baseline's known quantile; also returns
/// how often the candidate exceeds it. One-sided.
///
/// # Errors
/// [`BadSample`] for parameters out of range.
pub fn quantile_shift_needed(
    q: f64,
    sigma: f64,
    shift: f64,
    alpha: f64,
    power: f64,
) -> Result<(f64, f64), BadSample> {
    open_unit("q", q)?;
    parameter(
        sigma > 0.0 && sigma.is_finite(),
        "sigma",
        sigma,
        "be finite and above 0",
    )?;
    parameter(
        shift > 0.0 && shift.is_finite(),
        "shift",
        shift,
        "be finite and above 0",
    )?;
    open_unit("alpha", alpha)?;
    open_unit("power", power)?;
    let exceed = normal::sf(normal::quantile(q) - libm::log1p(shift) / sigma);
    let deviation = |p: f64| libm::sqrt(p * (1.0 - p));
    let z = (normal::upper_quantile(alpha) * deviation(q)
        + normal::quantile(power) * deviation(exceed))
        / (exceed - (1.0 - q));
    Ok((z * z, exceed))
}

/// Standard error of the sample quantile q of n standard log-normal values with deviation `sigma` of the log, and the density there.
///
/// # Errors
/// [`BadSample`] for parameters out of range.
pub fn quantile_error(q: f64, sigma: f64, n: f64) -> Result<(f64, f64), BadSample> {
    open_unit("q", q)?;
    parameter(
        sigma > 0.0 && sigma.is_finite(),
        "sigma",
        sigma,
        "be finite and above 0",
    )?;
    parameter(n > 0.0, "n", n, "be above 0")?;
    let z = normal::quantile(q);
    let density = libm::exp(normal::ln_pdf(z) - sigma * z) / sigma;
    Ok((libm::sqrt(q * (1.0 - q) / n) / density, density))
}
