//! The selection steps of other ways to split traffic, re-created at their smallest (the services themselves do more), and
//! the usual way to count what became of requests.

use crate::data::SALT;
use arc_swap::ArcSwap;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts};
use rand::distr::Distribution as _;
use rand::distr::weighted::WeightedIndex;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A weighted choice per request behind a reader-writer lock: not sticky.
#[derive(Debug)]
pub struct WeightedIndexLike {
    weights: RwLock<WeightedIndex<u32>>,
}

impl WeightedIndexLike {
    /// With this share, in percent, on the second version.
    ///
    /// # Errors
    /// The weights make no sense.
    pub fn new(percent: u32) -> Result<Self, crate::Error> {
        let weights = WeightedIndex::new([100_u32.saturating_sub(percent), percent])?;
        Ok(Self {
            weights: RwLock::new(weights),
        })
    }

    /// The version of one request.
    #[inline]
    pub fn select(&self) -> usize {
        let weights = self.weights.read().unwrap_or_else(PoisonError::into_inner);
        weights.sample(&mut rand::rng())
    }
}

/// A table of bounds behind an `ArcSwap`: sticky.
#[derive(Debug)]
pub struct ArcSwapLike {
    table: ArcSwap<Vec<(u32, u16)>>,
}

impl ArcSwapLike {
    /// With this share, in percent, on the second version.
    pub fn new(percent: u32) -> Self {
        let bound = u32::MAX / 100 * percent;
        Self {
            table: ArcSwap::from_pointee(vec![(bound, 1), (u32::MAX, 0)]),
        }
    }

    /// The version of this key.
    #[inline]
    pub fn select(&self, key: &[u8]) -> u16 {
        let table = self.table.load();
        let place = (xxh3_64_with_seed(key, SALT) >> 32) as u32;
        table
            .iter()
            .find(|(bound, _)| place <= *bound)
            .map_or(0, |(_, version)| *version)
    }
}

/// A variant as a gateway holds it.
#[derive(Debug, Default)]
pub struct Variant {
    _model: String,
}

/// The static experiment of a gateway like `TensorZero`: the variants of a function are copied for each request, and the key's
/// SHA-256 is looked up in cumulative weights by name.
#[derive(Debug)]
pub struct TensorZeroLike {
    variants: BTreeMap<String, Arc<Variant>>,
    weights: BTreeMap<String, f64>,
}

impl TensorZeroLike {
    /// With this share, in percent, on the second version.
    pub fn new(percent: u32) -> Self {
        let names = ["baseline-v1", "candidate-v2"].map(str::to_owned);
        let weights = [100.0 - f64::from(percent), f64::from(percent)];
        Self {
            variants: names
                .iter()
                .map(|name| (name.clone(), Arc::default()))
                .collect(),
            weights: names.into_iter().zip(weights).collect(),
        }
    }

    /// The variant of this key.
    pub fn select(&self, function: &str, key: &[u8]) -> Option<(String, Arc<Variant>)> {
        let mut active = self
            .variants
            .iter()
            .map(|(name, variant)| (name.clone(), Arc::clone(variant)))
            .collect::<BTreeMap<_, _>>();
        let hash = Sha256::new()
            .chain_update(function.as_bytes())
            .chain_update(key)
            .finalize();
        let first = hash
            .first_chunk::<4>()
            .copied()
            .map_or(0, u32::from_be_bytes);
        let weight = |name: &String| self.weights.get(name).copied().unwrap_or(0.0);
        let total: f64 = active.keys().map(weight).sum();
        let wanted = f64::from(first) / f64::from(u32::MAX) * total;
        let mut sum = 0.0;
        let chosen = active
            .keys()
            .find(|name| {
                sum += weight(name);
                sum >= wanted
            })?
            .clone();
        active.remove_entry(&chosen)
    }
}

/// The `prometheus` crate itself, as services use it: an outcome in three histograms and four counters, found by labels.
#[derive(Debug)]
pub struct Prometheus {
    histograms: [HistogramVec; 3],
    counters: [IntCounterVec; 4],
}

impl Prometheus {
    /// With default buckets, by version and role.
    ///
    /// # Errors
    /// A name is refused.
    pub fn new() -> Result<Self, crate::Error> {
        const LABELS: &[&str] = &["version", "role"];
        let histogram = |name| HistogramVec::new(HistogramOpts::new(name, "seconds"), LABELS);
        let counter = |name| IntCounterVec::new(Opts::new(name, "how many"), LABELS);
        Ok(Self {
            histograms: [
                histogram("first_token")?,
                histogram("duration")?,
                histogram("tokens")?,
            ],
            counters: [
                counter("begun")?,
                counter("started")?,
                counter("ended")?,
                counter("output_tokens")?,
            ],
        })
    }

    /// Records one outcome.
    pub fn record(&self, labels: &[&str; 2], first: Duration, whole: Duration, tokens: u64) {
        let [firsts, wholes, sizes] = &self.histograms;
        let seconds = [first.as_secs_f64(), whole.as_secs_f64(), tokens as f64];
        for (histogram, value) in [firsts, wholes, sizes].into_iter().zip(seconds) {
            histogram.with_label_values(labels).observe(value);
        }
        for (counter, by) in self.counters.iter().zip([1, 1, 1, tokens]) {
            counter.with_label_values(labels).inc_by(by);
        }
    }

    /// Outcomes so far.
    pub fn ended(&self, labels: &[&str; 2]) -> u64 {
        let [_, whole, _] = &self.histograms;
        whole.with_label_values(labels).get_sample_count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::keys;

    #[test]
    fn outcomes_are_counted() {
        let prometheus = Prometheus::new().unwrap();
        for n in 0..5 {
            let whole = Duration::from_millis(n);
            prometheus.record(&["v1", "baseline"], whole, whole, n);
        }
        assert_eq!(prometheus.ended(&["v1", "baseline"]), 5);
        assert_eq!(prometheus.ended(&["v2", "baseline"]), 0);
    }

    #[test]
    fn peers_split_too() {
        let keys = keys();
        let weighted = WeightedIndexLike::new(25).unwrap();
        let (swap, zero) = (ArcSwapLike::new(25), TensorZeroLike::new(25));
        let mut counts = [0; 3];
        for key in &keys {
            counts[0] += weighted.select();
            counts[1] += usize::from(swap.select(key));
            let (name, _) = zero.select("chat", key).unwrap();
            counts[2] += usize::from(name == "candidate-v2");
        }
        assert!(counts.iter().all(|n| (64..256).contains(n)), "{counts:?}");
    }
}
