//! Means of two samples with unequal variances (Welch 1947).

use super::{BadSample, Side, finite, open_unit};
use crate::Moments;
use crate::special::student;

/// The outcome of Welch's test.
#[expect(clippy::exhaustive_structs, reason = "the test gives these numbers")]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Welch {
    /// The statistic.
    pub t: f64,
    /// Degrees of freedom (Satterthwaite 1946).
    pub df: f64,
    /// The p-value.
    pub p: f64,
    /// Difference of the means, first minus second.
    pub difference: f64,
    /// Confidence interval of the difference, on the side of the test; infinite where a one-sided interval is open.
    pub interval: (f64, f64),
}

/// Welch's t-test on values, with a 95 % interval.
///
/// # Errors
/// [`BadSample`] for fewer than two values in a sample or values that are not finite.
pub fn welch(a: &[f64], b: &[f64], side: Side) -> Result<Welch, BadSample> {
    finite(a, 2)?;
    finite(b, 2)?;
    welch_moments(&Moments::of(a), &Moments::of(b), side, 0.05)
}

/// Welch's t-test on moments, with an interval at confidence 1 - alpha. Samples without any variation differ with p = 0 or not at all with p = 1.
///
/// # Errors
/// [`BadSample`] for fewer than two values in a sample or alpha outside (0, 1).
pub fn welch_moments(a: &Moments, b: &Moments, side: Side, alpha: f64) -> Result<Welch, BadSample> {
    open_unit("alpha", alpha)?;
    let parts = |m: &Moments| {
        m.mean()
            .zip(m.variance())
            .map(|(mean, var)| (mean, var / m.n() as f64, m.n() as f64 - 1.0))
    };
    let few = || BadSample::TooFew {
        needed: 2,
        got: usize::try_from(a.n().min(b.n())).unwrap_or(usize::MAX),
    };
    let ((m1, v1, d1), (m2, v2, d2)) = parts(a).zip(parts(b)).ok_or_else(few)?;
    let (difference, v) = (m1 - m2, v1 + v2);
    let se = libm::sqrt(v);
    if se <= 0.0 {
        let t = if difference.abs() > 0.0 {
            libm::copysign(f64::MAX, difference)
        } else {
            0.0
        };
        let p = match side {
            _ if difference.abs() <= 0.0 => 1.0,
            Side::TwoSided => 0.0,
            Side::Greater => f64::from(u8::from(difference < 0.0)),
            Side::Less => f64::from(u8::from(difference > 0.0)),
        };
        return Ok(Welch {
            t,
            df: d1 + d2,
            p,
            difference,
            interval: (difference, difference),
        });
    }
    let df = v * v / (v1 * v1 / d1 + v2 * v2 / d2);
    let t = difference / se;
    let p = match side {
        Side::Less => student::sf(df, -t),
        Side::Greater => student::sf(df, t),
        Side::TwoSided => (2.0 * student::sf(df, t.abs())).min(1.0),
    };
    let half = student::upper_quantile(
        df,
        if side == Side::TwoSided {
            0.5 * alpha
        } else {
            alpha
        },
    ) * se;
    let low = if side == Side::Less {
        f64::NEG_INFINITY
    } else {
        difference - half
    };
    let high = if side == Side::Greater {
        f64::INFINITY
    } else {
        difference + half
    };
    Ok(Welch {
        t,
        df,
        p,
        difference,
        interval: (low, high),
    })
}

/// Student's interval (1908) of a mean at confidence 1 - alpha.
///
/// # Errors
/// [`BadSample`] for fewer than two values or alpha outside (0, 1).
pub fn student_interval(m: &Moments, alpha: f64) -> Result<(f64, f64), BadSample> {
    open_unit("alpha", alpha)?;
    let (mean, variance) = m.mean().zip(m.variance()).ok_or(BadSample::TooFew {
        needed: 2,
        got: usize::from(m.n() > 0),
    })?;
    let n = m.n() as f64;
    let half = student::upper_quantile(n - 1.0, 0.5 * alpha) * libm::sqrt(variance / n);
    Ok((mean - half, mean + half))
}
