//! Drift while it runs.

use serde::{Deserialize, Serialize};

use crate::anytime::EProcess;
use crate::fixed::{BadSample, parameter};
use crate::numbers::LogSum;
use crate::{BadCounts, BadRateRatio, Counts, Grid, RateRatio};

/// Evidence, valid at every look, that the mix of categories differs between arms: [`RateRatio`] for each category in both directions, averaged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CategoryDrift {
    /// More of the category in the candidate, and less.
    processes: Vec<[RateRatio; 2]>,
}

impl CategoryDrift {
    /// For this many categories, 2 to 10,000, and shares that may differ by the factor `1 + margin`.
    ///
    /// # Errors
    /// [`BadSample`] for a number of categories or a margin out of range.
    pub fn new(categories: usize, margin: f64) -> Result<Self, BadSample> {
        parameter(
            (2..=10_000).contains(&categories),
            "categories",
            categories as f64,
            "lie between 2 and 10,000",
        )?;
        parameter(
            (0.0..=100.0).contains(&margin),
            "margin",
            margin,
            "lie between 0 and 100",
        )?;
        let one = || RateRatio::new(1.0 + margin, Grid::Rr7);
        let processes = (0..categories)
            .map(|_| Ok([one()?, one()?]))
            .collect::<Result<_, BadRateRatio>>();
        processes
            .map(|processes| Self { processes })
            .map_err(|_| BadSample::Parameter {
                name: "margin",
                value: margin,
                range: "lie between 0 and 100",
            })
    }

    /// Adds new counts per category.
    ///
    /// # Errors
    /// [`BadSample`] unless both arms have a count per category, or for sums beyond 64 bits; nothing changes then.
    pub fn observe(&mut self, candidate: &[u64], baseline: &[u64]) -> Result<(), BadSample> {
        for counts in [candidate, baseline] {
            if counts.len() != self.processes.len() {
                return Err(BadSample::TooFew {
                    needed: self.processes.len(),
                    got: counts.len(),
                });
            }
        }
        let total = |counts: &[u64]| {
            counts
                .iter()
                .try_fold(0u64, |sum, k| sum.checked_add(*k))
                .ok_or(BadCounts::Overflow)
        };
        let (n_c, n_b) = (total(candidate)?, total(baseline)?);
        for (pair, (k_c, k_b)) in self
            .processes
            .iter_mut()
            .zip(candidate.iter().zip(baseline))
        {
            let (c, b) = (Counts::new(n_c, *k_c), Counts::new(n_b, *k_b));
            pair[0].observe(c, b);
            pair[1].observe(b, c);
        }
        Ok(())
    }

    /// ln E of each category, the greater of both directions, to see which one drifts.
    pub fn by_category(&self) -> Vec<f64> {
        self.processes
            .iter()
            .map(|[more, less]| more.log_e().max(less.log_e()))
            .collect()
    }
}

impl EProcess for CategoryDrift {
    fn log_e(&self) -> f64 {
        let mut sum = LogSum::default();
        for process in self.processes.iter().flatten() {
            sum.add(process.log_e());
        }
        sum.ln() - libm::log(2.0 * self.processes.len() as f64)
    }
}

/// Page's cumulative sum (1954) of standardised values: advisory, as its false-alarm probability grows with time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cusum {
    mean: f64,
    sd: f64,
    slack: f64,
    up: f64,
    down: f64,
}

impl Cusum {
    /// Around a known mean and standard deviation; `slack` in standard deviations, half the shift to be found by custom.
    ///
    /// # Errors
    /// [`BadSample`] for numbers that are not finite, a deviation not above 0 or a negative slack.
    pub fn new(mean: f64, sd: f64, slack: f64) -> Result<Self, BadSample> {
        parameter(mean.is_finite(), "mean", mean, "be finite")?;
        parameter(
            sd > 0.0 && sd.is_finite(),
            "sd",
            sd,
            "be finite and above 0",
        )?;
        parameter(
            slack >= 0.0 && slack.is_finite(),
            "slack",
            slack,
            "be finite and not negative",
        )?;
        Ok(Self {
            mean,
            sd,
            slack,
            up: 0.0,
            down: 0.0,
        })
    }

    /// Adds a value and returns the sums for upward and downward shifts, in standard deviations: alarm at 4 to 5 by custom. NaN adds nothing.
    pub fn observe(&mut self, value: f64) -> (f64, f64) {
        let z = (value - self.mean) / self.sd;
        if z.is_finite() {
            self.up = (self.up + z - self.slack).max(0.0);
            self.down = (self.down - z - self.slack).max(0.0);
        }
        (self.up, self.down)
    }
}
