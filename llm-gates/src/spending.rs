//! Group-sequential designs: a few planned looks that share one error (Lan and DeMets 1983).

use crate::fixed::{BadSample, open_unit, parameter};
use crate::special::normal;

/// Points of the density at each look; odd, for Simpson's rule.
const POINTS: usize = 601;
const REACH: f64 = 8.0;

/// Boundaries of z, one-sided, for looks at the given fractions of the information and the spending function `alpha t^rho` (Kim and DeMets 1987): rho = 1 spends evenly, 3 late. Accurate to
/// about 1e-6.
///
/// # Errors
/// [`BadSample`] for no looks or more than 100, fractions that do not rise within (0, 1], or parameters out of range.
pub fn power_spending(information: &[f64], alpha: f64, rho: f64) -> Result<Vec<f64>, BadSample> {
    open_unit("alpha", alpha)?;
    parameter(
        rho > 0.0 && rho.is_finite(),
        "rho",
        rho,
        "be finite and above 0",
    )?;
    if information.is_empty() {
        return Err(BadSample::TooFew { needed: 1, got: 0 });
    }
    if information.len() > 100 {
        return Err(BadSample::TooMany {
            limit: 100,
            got: information.len(),
        });
    }
    let mut before = 0.0;
    for t in information {
        before = parameter(
            *t > before && *t <= 1.0 + 1e-12,
            "information",
            *t,
            "rise from look to look and be at most 1",
        )?;
    }
    let mut bounds = Vec::with_capacity(information.len());
    // Density of the score B(t), where it has not crossed yet, on [low, high].
    let mut density: Option<Grid> = None;
    let (mut t_before, mut spent) = (0.0, 0.0);
    for t in information {
        let total = alpha * libm::pow(*t, rho);
        let step = total - spent;
        let sd = libm::sqrt(t - t_before);
        let crossing = |b: f64| {
            density.as_ref().map_or_else(
                || normal::sf(b / sd),
                |d| d.integral(|x| normal::sf((b - x) / sd)),
            )
        };
        // P(cross) falls with the boundary: bisect on z.
        let root = libm::sqrt(*t);
        let (mut low, mut high) = (-REACH, REACH);
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if crossing(middle * root) > step {
                low = middle;
            } else {
                high = middle;
            }
        }
        let z = 0.5 * (low + high);
        let next = Grid::over(-REACH * root, z * root, |y| {
            let kernel = |x: f64| libm::exp(normal::ln_pdf((y - x) / sd)) / sd;
            density
                .as_ref()
                .map_or_else(|| kernel(0.0), |d| d.integral(kernel))
        });
        bounds.push(z);
        density = Some(next);
        (t_before, spent) = (*t, total);
    }
    Ok(bounds)
}

/// A function on equidistant points.
struct Grid {
    low: f64,
    step: f64,
    values: Vec<f64>,
}

impl Grid {
    fn over(low: f64, high: f64, f: impl Fn(f64) -> f64) -> Self {
        let step = (high - low) / (POINTS - 1) as f64;
        Self {
            low,
            step,
            values: (0..POINTS).map(|i| f(low + step * i as f64)).collect(),
        }
    }

    /// Integral of the function times another, by Simpson's rule.
    fn integral(&self, f: impl Fn(f64) -> f64) -> f64 {
        let term = |(i, v): (usize, &f64)| {
            let weight = if i == 0 || i + 1 == POINTS {
                1.0
            } else if i % 2 == 1 {
                4.0
            } else {
                2.0
            };
            weight * v * f(self.low + self.step * i as f64)
        };
        self.values.iter().enumerate().map(term).sum::<f64>() * self.step / 3.0
    }
}
