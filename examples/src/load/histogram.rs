//! Latencies, counted in bins of 2 %.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// The ratio of a bin's upper to its lower end.
const RATIO: f64 = 1.02;
/// Ends the scale at about 90 minutes.
const BINS: u16 = 1_132;

/// How often each latency was seen, to within 2 %. Its size is bounded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Histogram {
    bins: BTreeMap<u16, u64>,
}

impl Histogram {
    /// Counts a latency.
    pub fn add(&mut self, latency: Duration) {
        let micros = (latency.as_secs_f64() * 1e6).max(1.0);
        let place = (micros.ln() / RATIO.ln()).floor();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to the range of bins"
        )]
        let bin = place.clamp(0.0, f64::from(BINS)) as u16;
        *self.bins.entry(bin).or_default() += 1;
    }

    /// Adds everything that another one has counted.
    pub fn merge(&mut self, other: &Self) {
        for (&bin, &count) in &other.bins {
            let sum = self.bins.entry(bin).or_default();
            *sum = sum.saturating_add(count);
        }
    }

    /// How many latencies it has counted.
    pub fn count(&self) -> u64 {
        self.bins.values().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// The latency that a share `q` of them does not exceed; none of none.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let count = self.count();
        let wanted = (q.clamp(0.0, 1.0) * count as f64).ceil().max(1.0);
        let mut seen = 0.0;
        for (&bin, &n) in &self.bins {
            seen += n as f64;
            if seen >= wanted {
                let micros = RATIO.powf(f64::from(bin.min(BINS)) + 0.5);
                return Some(Duration::from_secs_f64(micros / 1e6));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_the_width_of_a_bin() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for ms in 1..=1_000 {
            histogram.add(Duration::from_millis(ms));
        }
        assert_eq!(histogram.count(), 1_000);
        for (q, ms) in [(0.0, 1.0), (0.5, 500.0), (0.95, 950.0), (1.0, 1_000.0)] {
            let found = histogram.quantile(q).unwrap().as_secs_f64() * 1e3;
            assert!((found / ms).ln().abs() < 0.02, "{q}: {found} for {ms}");
        }
    }

    #[test]
    fn extremes_stay_in_range_and_merging_adds_up() {
        let mut histogram = Histogram::default();
        histogram.add(Duration::ZERO);
        histogram.add(Duration::MAX);
        let copy = histogram.clone();
        histogram.merge(&copy);
        assert_eq!(histogram.count(), 4);
        let text = serde_json::to_string(&histogram).unwrap();
        assert_eq!(serde_json::from_str::<Histogram>(&text).unwrap(), histogram);
    }
}
