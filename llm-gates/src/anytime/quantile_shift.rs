//! Latency: quantiles of both arms, by counting values above thresholds that were fixed before.

use serde::{Deserialize, Serialize};

use super::EProcess;
use crate::fixed::{BadSample, parameter};
use crate::numbers::log_sum_exp;
use crate::{BadRateRatio, BadSketch, Counts, Grid, RateRatio, Sketch};

/// Quantiles of the baseline's past and their weights: half on the body, the rest on the tail.
const THRESHOLDS: [(f64, f64); 5] = [
    (0.5, 0.3),
    (0.9, 0.1),
    (0.99, 0.3),
    (0.995, 0.15),
    (0.999, 0.15),
];
/// The one shown to people.
const SHOWN: usize = 2;

/// Evidence that the candidate's values are greater by more than a relative margin: at five quantiles of the baseline's *earlier* values, whether the candidate exceeds `(1 + margin)` times
/// the quantile more often than the baseline exceeds the quantile ([`RateRatio`] each, averaged). The first window only teaches the thresholds, unless history did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantileShift {
    margin: f64,
    /// Whether to show the opposite: that the candidate's values are not greater by the margin.
    opposite: bool,
    past: Sketch,
    processes: [RateRatio; 5],
}

impl QuantileShift {
    /// Against "no quantile of the candidate is more than 1 + margin times the baseline's", margin in [0, 100], with sketches of the given precision.
    ///
    /// # Errors
    /// [`BadSample`] for a margin or precision out of range.
    pub fn new(margin: f64, precision: u8) -> Result<Self, BadSample> {
        Self::build(margin, precision, false)
    }

    /// Against "the candidate's quantiles are at least 1 + margin times the baseline's": evidence of no harm beyond the margin, in (0, 100].
    ///
    /// # Errors
    /// [`BadSample`] for a margin or precision out of range.
    pub fn no_worse(margin: f64, precision: u8) -> Result<Self, BadSample> {
        Self::build(margin, precision, true)
    }

    fn build(margin: f64, precision: u8, opposite: bool) -> Result<Self, BadSample> {
        parameter(
            (0.0..=100.0).contains(&margin),
            "margin",
            margin,
            "lie between 0 and 100",
        )?;
        let unfit = |_| BadSample::Parameter {
            name: "precision",
            value: f64::from(precision),
            range: "lie between 1 and 12",
        };
        let past = Sketch::new(precision).map_err(unfit)?;
        let one = || RateRatio::new(1.0, Grid::Rr7);
        let all = || Ok::<_, BadRateRatio>([one()?, one()?, one()?, one()?, one()?]);
        let processes = all().map_err(|_| BadSample::Parameter {
            name: "margin",
            value: margin,
            range: "lie between 0 and 100",
        })?;
        Ok(Self {
            margin,
            opposite,
            past,
            processes,
        })
    }

    /// Learns the thresholds from the baseline before the ramp.
    ///
    /// # Errors
    /// [`BadSketch::Unlike`] for another precision; nothing changes then.
    pub fn learn(&mut self, baseline: &Sketch) -> Result<(), BadSketch> {
        self.past.merge(baseline)
    }

    /// Lets the users of the candidate exceed thresholds this many times as often by themselves; see [`RateRatio::set_theta0`].
    ///
    /// # Errors
    /// [`BadRateRatio::Theta0`] outside [0.001, 1000]; nothing changes then.
    pub fn set_theta0(&mut self, theta0: f64) -> Result<(), BadRateRatio> {
        for process in &mut self.processes {
            process.set_theta0(theta0)?;
        }
        Ok(())
    }

    /// Adds new values of both arms; returns how many of each exceeded the baseline's earlier 99th percentile (the candidate: times the margin), for display.
    ///
    /// # Errors
    /// [`BadSketch::Unlike`] for another precision; nothing changes then.
    pub fn observe(
        &mut self,
        candidate: &Sketch,
        baseline: &Sketch,
    ) -> Result<(Counts, Counts), BadSketch> {
        self.past.alike(candidate)?;
        self.past.alike(baseline)?;
        let mut shown = (Counts::new(candidate.n(), 0), Counts::new(baseline.n(), 0));
        if let Some(thresholds) = self.past.quantiles(THRESHOLDS.map(|(q, _)| q)) {
            // Whole buckets are counted: the candidate's threshold is rounded so that the error favours the hypothesis.
            let relative = if self.opposite {
                (1.0 + self.margin) / (1.0 + 2.0 * self.past.relative_error())
            } else {
                1.0 + self.margin
            };
            let theirs = if self.margin > 0.0 {
                thresholds.map(|t| relative * self.past.upper_edge(t))
            } else {
                thresholds
            };
            let counts = candidate.above_each(theirs).into_iter();
            let counts = counts.zip(baseline.above_each(thresholds));
            for (i, (process, (c, b))) in self.processes.iter_mut().zip(counts).enumerate() {
                if self.opposite {
                    process.observe(b, c);
                } else {
                    process.observe(c, b);
                }
                if i == SHOWN {
                    shown = (c, b);
                }
            }
        }
        self.past.merge(baseline)?;
        Ok(shown)
    }

    /// ln E at each of the quantiles .5, .9, .99, .995 and .999, to see where it is slower.
    pub fn by_quantile(&self) -> [(f64, f64); 5] {
        std::array::from_fn(|i| (THRESHOLDS[i].0, self.processes[i].log_e()))
    }
}

impl EProcess for QuantileShift {
    fn log_e(&self) -> f64 {
        let logs: [f64; 5] =
            std::array::from_fn(|i| libm::log(THRESHOLDS[i].1) + self.processes[i].log_e());
        log_sum_exp(&logs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Log-normal values on an even grid of probabilities, shifted from batch to batch.
    fn batch(scale: f64, t: u32) -> Sketch {
        let mut sketch = Sketch::default();
        for i in 0..200 {
            let u = (f64::from(i) + f64::from(t * 37 % 100) / 100.0).clamp(0.1, 199.9) / 200.0;
            sketch.record(scale * (0.6 * crate::special::normal::quantile(u)).exp());
        }
        sketch
    }

    fn after(process: QuantileShift, scale: f64, batches: u32) -> f64 {
        let mut process = process;
        for t in 0..batches {
            process
                .observe(&batch(scale, t), &batch(1.0, t + 50))
                .unwrap();
        }
        process.log_e()
    }

    #[test]
    fn finds_what_is_slower_than_the_margin_and_nothing_else() {
        let bound = 20f64.ln();
        assert!(after(QuantileShift::new(0.0, 5).unwrap(), 1.3, 30) > bound);
        assert!(after(QuantileShift::new(0.2, 5).unwrap(), 1.6, 30) > bound);
        for (margin, scale) in [(0.0, 1.0), (0.2, 1.1), (0.2, 1.2), (0.5, 1.5)] {
            assert!(
                after(QuantileShift::new(margin, 5).unwrap(), scale, 60) < bound,
                "{margin} {scale}"
            );
        }
        assert!(after(QuantileShift::no_worse(0.3, 5).unwrap(), 1.0, 60) > bound);
        assert!(after(QuantileShift::no_worse(0.3, 5).unwrap(), 1.3, 60) < bound);
    }

    #[test]
    fn refuses_another_precision_and_keeps_its_state() {
        let mut process = QuantileShift::new(0.0, 5).unwrap();
        process.learn(&batch(1.0, 0)).unwrap();
        let before = process.clone();
        let other = Sketch::new(6).unwrap();
        assert!(
            process.observe(&other, &batch(1.0, 1)).is_err()
                && process.observe(&batch(1.0, 1), &other).is_err()
        );
        assert_eq!(process, before);
        let text = serde_json::to_string(&process).unwrap();
        assert_eq!(
            serde_json::from_str::<QuantileShift>(&text).unwrap(),
            process
        );
        assert!(QuantileShift::new(-0.1, 5).is_err() && QuantileShift::new(0.1, 0).is_err());
    }
}
