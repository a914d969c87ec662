//! Heavy-tailed amounts: means of values cut at a cap that was fixed before.

use serde::{Deserialize, Serialize};

use super::{BoundedMeans, EProcess};
use crate::fixed::{BadSample, parameter};
use crate::numbers::log_sum_exp;
use crate::sketch::Within;
use crate::{BadSketch, Sketch};

/// Quantiles of the baseline's past at which values are cut, and their weights: the lower the cap the bolder the bets, the higher the cap the more of the tail.
const CAPS: [(f64, f64); 3] = [(0.9, 0.4), (0.99, 0.3), (0.999, 0.3)];
/// The one that is shown, and that must show no harm.
const LAST: usize = 2;

/// Evidence that the candidate's mean is greater by more than a relative margin, for amounts with heavy tails (tokens, cost): values are cut at the 90, 99 and 99.9 % quantiles of the baseline's
/// *earlier* values (the candidate's at `1 + margin` times that), scaled to [0, 1] and bet on ([`BoundedMeans`] each, averaged). The first window only teaches the caps, unless history did.
///
/// What lies beyond the last cap counts as the cap: watch the tail itself with [`super::QuantileShift`]. The bets are by window, whatever it holds: expect a hundred windows for 30 %.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CappedMeans {
    margin: f64,
    /// Whether to show the opposite: that the candidate's mean is not greater by the margin.
    opposite: bool,
    past: Sketch,
    means: [BoundedMeans; 3],
}

impl CappedMeans {
    /// Against "no cut mean of the candidate is more than 1 + margin times the baseline's", margin in [0, 100], with sketches of the given precision.
    ///
    /// # Errors
    /// [`BadSample`] for a margin or precision out of range.
    pub fn new(margin: f64, precision: u8) -> Result<Self, BadSample> {
        Self::build(margin, precision, false)
    }

    /// Against "the candidate's mean, cut at the last cap, is at least 1 + margin times the baseline's": evidence of no harm beyond the margin, in [0, 100].
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
        let past = Sketch::new(precision).map_err(|_| BadSample::Parameter {
            name: "precision",
            value: f64::from(precision),
            range: "lie between 1 and 12",
        })?;
        Ok(Self {
            margin,
            opposite,
            past,
            means: [
                BoundedMeans::new(0.0)?,
                BoundedMeans::new(0.0)?,
                BoundedMeans::new(0.0)?,
            ],
        })
    }

    /// Learns the cap from the baseline before the ramp.
    ///
    /// # Errors
    /// [`BadSketch::Unlike`] for another precision; nothing changes then.
    pub fn learn(&mut self, baseline: &Sketch) -> Result<(), BadSketch> {
        self.past.merge(baseline)
    }

    /// Adds new values of both arms; returns the sums of the values of candidate and baseline, cut, in units of the baseline's greatest cap, for display; `None` while there is no cap. A window with an empty arm adds
    /// no evidence.
    ///
    /// # Errors
    /// [`BadSketch::Unlike`] for another precision; nothing changes then.
    pub fn observe(
        &mut self,
        candidate: &Sketch,
        baseline: &Sketch,
    ) -> Result<Option<(f64, f64)>, BadSketch> {
        self.past.alike(candidate)?;
        self.past.alike(baseline)?;
        // With a margin the arms' buckets do not match: their error then favours the hypothesis.
        let (ours, theirs) = match (self.margin > 0.0, self.opposite) {
            (false, _) => (Within::Middle, Within::Middle),
            (true, false) => (Within::Lower, Within::Upper),
            (true, true) => (Within::Upper, Within::Lower),
        };
        let relative = 1.0 + self.margin;
        let mut shown = None;
        let caps = self.past.quantiles(CAPS.map(|(q, _)| q));
        // Values that are mostly 0 have no cap above it.
        if let Some(caps) = caps {
            let theirs = baseline.capped_each(caps, theirs);
            let ours = candidate.capped_each(caps.map(|cap| cap * relative), ours);
            for (i, means) in self.means.iter_mut().enumerate() {
                if caps[i] <= 0.0 {
                    continue;
                }
                let (c, b) = (ours[i], theirs[i]);
                // Sums of values in [0, 1]: neither order can be refused.
                let _ = if self.opposite {
                    means.observe(b, c)
                } else {
                    means.observe(c, b)
                };
                shown = Some((c.sum * relative, b.sum));
            }
        }
        self.past.merge(baseline)?;
        Ok(shown)
    }
}

impl EProcess for CappedMeans {
    fn log_e(&self) -> f64 {
        if self.opposite {
            return self.means[LAST].log_e();
        }
        let logs: [f64; 3] = std::array::from_fn(|i| libm::log(CAPS[i].1) + self.means[i].log_e());
        log_sum_exp(&logs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pareto values with tail index 1.5 on an even grid of probabilities, shifted from batch to batch.
    fn batch(scale: f64, t: u32) -> Sketch {
        let mut sketch = Sketch::default();
        for i in 0..400 {
            let u = (f64::from(i) + f64::from(t * 37 % 100) / 100.0 + 0.005) / 400.0;
            sketch.record(scale * 100.0 * (1.0 - u).powf(-1.0 / 1.5));
        }
        sketch
    }

    fn after(mut process: CappedMeans, scale: f64, batches: u32) -> f64 {
        for t in 0..batches {
            process
                .observe(&batch(scale, t), &batch(1.0, t + 50))
                .unwrap();
        }
        process.log_e()
    }

    #[test]
    fn finds_what_costs_more_than_the_margin_and_nothing_else() {
        let bound = 20f64.ln();
        assert!(after(CappedMeans::new(0.0, 5).unwrap(), 1.3, 150) > bound);
        assert!(after(CappedMeans::new(0.2, 5).unwrap(), 1.6, 200) > bound);
        for (margin, scale) in [(0.0, 1.0), (0.0, 0.8), (0.2, 1.1), (0.2, 1.2), (0.5, 1.5)] {
            let log_e = after(CappedMeans::new(margin, 5).unwrap(), scale, 200);
            assert!(log_e < 0.5, "{margin} {scale} {log_e}");
        }
        assert!(after(CappedMeans::no_worse(1.0, 5).unwrap(), 1.0, 800) > bound);
        assert!(after(CappedMeans::no_worse(1.0, 5).unwrap(), 2.0, 200) < 0.5);
    }

    #[test]
    fn one_absurd_value_is_no_evidence() {
        let mut process = CappedMeans::new(0.0, 5).unwrap();
        process.learn(&batch(1.0, 0)).unwrap();
        let mut absurd = batch(1.0, 1);
        absurd.record(1e9);
        let (c, b) = process.observe(&absurd, &batch(1.0, 1)).unwrap().unwrap();
        assert!((c - b - 1.0).abs() < 1e-9, "{c} {b}");
        assert!(process.log_e() < 0.1);
    }

    #[test]
    fn refuses_another_precision_and_keeps_its_state() {
        let mut process = CappedMeans::new(0.0, 5).unwrap();
        assert_eq!(
            process.observe(&batch(1.0, 1), &Sketch::default()),
            Ok(None)
        );
        process.learn(&batch(1.0, 0)).unwrap();
        let before = process.clone();
        let other = Sketch::new(6).unwrap();
        assert!(
            process.observe(&other, &batch(1.0, 1)).is_err()
                && process.observe(&batch(1.0, 1), &other).is_err()
        );
        assert_eq!(process, before);
        let text = serde_json::to_string(&process).unwrap();
        assert_eq!(serde_json::from_str::<CappedMeans>(&text).unwrap(), process);
        assert!(CappedMeans::new(-0.1, 5).is_err() && CappedMeans::new(0.1, 0).is_err());
    }
}
