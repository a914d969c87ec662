//! A histogram of positive values with bounded relative error, small enough to ship at every look.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Counts;
use crate::anytime::Scores;
use crate::fixed::QuantileEstimate;
use crate::numbers::whole;

/// Octaves kept: values below 2^-30 count as 0, those of 2^34 and more as the greatest value kept.
const OCTAVES: u32 = 64;
const LEAST_EXPONENT: i32 = -30;
/// 2^LEAST_EXPONENT.
const LEAST: f64 = 1.0 / (1u64 << 30) as f64;

/// Log-linear histogram: each octave in 2^precision equal buckets, so that a quantile is off by at most 2^-(precision + 1) of itself: 1.6 % at the default precision 5, 0.1 % at 9. Counts
/// are exact, merging is adding, and memory is bounded by 64 octaves (16 KB at precision 5; only the octaves in use are kept).
///
/// ```
/// use llm_gates::Sketch;
/// let mut ttft = Sketch::default();
/// for ms in 1..=1000 {
///     ttft.record(f64::from(ms));
/// }
/// let p99 = ttft.quantile(0.99).unwrap();
/// assert!((p99 / 990.0 - 1.0).abs() < 0.016);
/// assert_eq!(ttft.above(512.0).n, 1000);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub struct Sketch {
    precision: u8,
    /// Values of 0 and those too small to tell from it.
    zeros: u64,
    /// Index of the first bucket kept.
    first: u32,
    counts: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
struct Raw {
    precision: u8,
    zeros: u64,
    first: u32,
    counts: Vec<u64>,
}

/// What a value is taken to be within its bucket.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Within {
    Lower,
    Middle,
    Upper,
}

/// What a sketch cannot take.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Error)]
pub enum BadSketch {
    /// A precision out of range.
    #[error("the precision is {0}: it must lie between 1 and 12")]
    Precision(u8),
    /// Sketches of unlike precision.
    #[error(
        "sketches of precision {ours} and {theirs} cannot be merged: use one precision for a metric"
    )]
    Unlike {
        /// Of this sketch.
        ours: u8,
        /// Of the other one.
        theirs: u8,
    },
    /// Buckets outside the range of the precision.
    #[error("a saved sketch has buckets beyond its 64 octaves")]
    Range,
    /// Bucket bounds or cumulative counts that fall.
    #[error(
        "bucket {at} of the histogram is not above the one before: bounds and cumulative counts must rise"
    )]
    Buckets {
        /// Index of the bucket.
        at: usize,
    },
    /// A native histogram's schema out of range.
    #[error("the schema is {0}: it must lie between -4 and 8")]
    Schema(i32),
}

impl TryFrom<Raw> for Sketch {
    type Error = BadSketch;

    fn try_from(raw: Raw) -> Result<Self, BadSketch> {
        let empty = Self::new(raw.precision)?;
        if (raw.first as usize).saturating_add(raw.counts.len()) > empty.limit() as usize {
            return Err(BadSketch::Range);
        }
        Ok(Self {
            zeros: raw.zeros,
            first: raw.first,
            counts: raw.counts,
            ..empty
        })
    }
}

impl From<Sketch> for Raw {
    fn from(s: Sketch) -> Self {
        Self {
            precision: s.precision,
            zeros: s.zeros,
            first: s.first,
            counts: s.counts,
        }
    }
}

impl Default for Sketch {
    /// Precision 5: 1.6 %.
    fn default() -> Self {
        Self {
            precision: 5,
            zeros: 0,
            first: 0,
            counts: Vec::new(),
        }
    }
}

impl Sketch {
    /// An empty sketch with 2^precision buckets in each octave; 1 to 12.
    ///
    /// # Errors
    /// [`BadSketch::Precision`].
    pub fn new(precision: u8) -> Result<Self, BadSketch> {
        if (1..=12).contains(&precision) {
            Ok(Self {
                precision,
                ..Self::default()
            })
        } else {
            Err(BadSketch::Precision(precision))
        }
    }

    /// Greatest relative error of a quantile.
    pub fn relative_error(&self) -> f64 {
        libm::exp2(-f64::from(self.precision) - 1.0)
    }

    const fn limit(&self) -> u32 {
        OCTAVES << self.precision
    }

    /// Exponent and leading bits of the mantissa of the least value kept; those of others follow in order of value.
    fn least_key(&self) -> u64 {
        u64::from((1023 + LEAST_EXPONENT).unsigned_abs()) << self.precision
    }

    /// The bucket of a value that is not too small.
    fn bucket(&self, value: f64) -> u32 {
        let key = value.to_bits() >> (52 - self.precision);
        u32::try_from(key.saturating_sub(self.least_key()))
            .unwrap_or(u32::MAX)
            .min(self.limit() - 1)
    }

    /// Lower edge of a bucket.
    fn edge(&self, bucket: u32) -> f64 {
        f64::from_bits((self.least_key() + u64::from(bucket)) << (52 - self.precision))
    }

    /// Upper edge of the bucket that holds a value.
    pub(crate) fn upper_edge(&self, value: f64) -> f64 {
        self.edge(self.bucket(value.max(LEAST)) + 1)
    }

    /// Bits of precision.
    pub const fn precision(&self) -> u8 {
        self.precision
    }

    fn middle(&self, bucket: u32) -> f64 {
        0.5 * (self.edge(bucket) + self.edge(bucket + 1))
    }

    /// Adds a value; returns false, and leaves it out, where it is negative or not a number. Infinity counts as the greatest value.
    pub fn record(&mut self, value: f64) -> bool {
        self.record_many(value, 1)
    }

    /// Adds a value that occurred `count` times.
    pub fn record_many(&mut self, value: f64, count: u64) -> bool {
        // What is negative, not a number, too small or too great has a key beyond all buckets.
        let kept = self.least_key() + u64::from(self.first);
        let key = (value.to_bits() >> (52 - self.precision)).wrapping_sub(kept);
        let known = usize::try_from(key).ok();
        if let Some(sum) = known.and_then(|at| self.counts.get_mut(at)) {
            *sum = sum.saturating_add(count);
            return true;
        }
        if value.is_nan() || value < 0.0 {
            return false;
        }
        if value < LEAST {
            self.zeros = self.zeros.saturating_add(count);
        } else {
            self.add(self.bucket(value), count);
        }
        true
    }

    fn add(&mut self, bucket: u32, count: u64) {
        if count > 0 {
            let at = self.place(bucket);
            self.counts[at] = self.counts[at].saturating_add(count);
        }
    }

    /// Index of a bucket, which is kept from now on.
    fn place(&mut self, bucket: u32) -> usize {
        if self.counts.is_empty() {
            self.first = bucket;
        }
        if bucket < self.first {
            let more = (self.first - bucket) as usize;
            self.counts.splice(0..0, std::iter::repeat_n(0, more));
            self.first = bucket;
        }
        let at = (bucket - self.first) as usize;
        if at >= self.counts.len() {
            self.counts.resize(at + 1, 0);
        }
        at
    }

    /// Refuses a sketch of another precision.
    pub(crate) const fn alike(&self, other: &Self) -> Result<(), BadSketch> {
        if self.precision == other.precision {
            Ok(())
        } else {
            Err(BadSketch::Unlike {
                ours: self.precision,
                theirs: other.precision,
            })
        }
    }

    /// Adds all of another sketch. Allocates only where the other reaches beyond the octaves of this one.
    ///
    /// # Errors
    /// [`BadSketch::Unlike`] for another precision; nothing changes then.
    pub fn merge(&mut self, other: &Self) -> Result<(), BadSketch> {
        self.alike(other)?;
        self.zeros = self.zeros.saturating_add(other.zeros);
        let used = |k: &u64| *k > 0;
        if let (Some(low), Some(high)) = (
            other.counts.iter().position(used),
            other.counts.iter().rposition(used),
        ) {
            let bucket = |at: usize| other.first.saturating_add(u32::try_from(at).unwrap_or(0));
            self.place(bucket(high));
            let at = self.place(bucket(low));
            for (sum, more) in self.counts[at..].iter_mut().zip(&other.counts[low..=high]) {
                *sum = sum.saturating_add(*more);
            }
        }
        Ok(())
    }

    fn buckets(&self) -> impl Iterator<Item = (u32, u64)> {
        (self.first..).zip(self.counts.iter().copied())
    }

    /// What a cumulative sketch gained since an earlier reading; `None` where any count fell, which means that the counter was reset: take this reading as the new start
    /// and drop the gain.
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        if self.precision != earlier.precision {
            return None;
        }
        let mut gain = self.clone();
        gain.zeros = self.zeros.checked_sub(earlier.zeros)?;
        for (bucket, count) in earlier.buckets() {
            if count > 0 {
                let at = bucket.checked_sub(self.first)? as usize;
                let now = gain.counts.get_mut(at)?;
                *now = now.checked_sub(count)?;
            }
        }
        Some(gain)
    }

    /// How many values.
    pub fn n(&self) -> u64 {
        self.counts
            .iter()
            .fold(self.zeros, |sum, k| sum.saturating_add(*k))
    }

    /// The values of ranks that do not fall, each from 1 to the number of values.
    fn at_ranks<const N: usize>(&self, ranks: [u64; N]) -> [f64; N] {
        let mut values = [0.0; N];
        let mut left = values.iter_mut().zip(ranks).peekable();
        let (mut seen, mut last) = (self.zeros, None);
        let above_zero = |(_, rank): &(_, u64)| *rank > seen;
        while left.next_if(|next| !above_zero(next)).is_some() {}
        for (bucket, count) in self.buckets() {
            if count > 0 {
                seen = seen.saturating_add(count);
                last = Some(bucket);
                while let Some((value, _)) = left.next_if(|(_, rank)| *rank <= seen) {
                    *value = self.middle(bucket);
                }
            }
            if left.peek().is_none() {
                break;
            }
        }
        for (value, _) in left {
            *value = last.map_or(0.0, |b| self.middle(b));
        }
        values
    }

    /// Quantiles that do not fall, each in [0, 1]; `None` without values.
    pub(crate) fn quantiles<const N: usize>(&self, q: [f64; N]) -> Option<[f64; N]> {
        let n = self.n();
        let rank = |q: f64| whole(libm::ceil(q * n as f64)).clamp(1, n);
        (n > 0).then(|| self.at_ranks(q.map(rank)))
    }

    /// The quantile q; `None` without values or for q outside [0, 1].
    pub fn quantile(&self, q: f64) -> Option<f64> {
        if !(0.0..=1.0).contains(&q) {
            return None;
        }
        self.quantiles([q]).map(|[value]| value)
    }

    /// The quantile q with Woodruff's bounds (1952) at confidence 1 - alpha, in the sketch's own accuracy; `None` without values or for q or alpha outside (0, 1).
    pub fn estimate(&self, q: f64, alpha: f64) -> Option<QuantileEstimate> {
        let n = self.n();
        if n == 0 || !(q > 0.0 && q < 1.0 && alpha > 0.0 && alpha < 1.0) {
            return None;
        }
        let (low, high) = crate::fixed::woodruff_ranks(n as f64, q, alpha);
        let at = |rank: f64| {
            let [value] = self.at_ranks([whole(rank).clamp(1, n)]);
            value
        };
        Some(QuantileEstimate {
            q,
            value: self.quantile(q)?,
            lower: at(libm::floor(low)),
            upper: at(libm::ceil(high)),
            n,
        })
    }

    /// How many of all values are in buckets above the one of `threshold`: give both arms the same threshold, and the sketch's error is the same in both.
    pub fn above(&self, threshold: f64) -> Counts {
        let [counts] = self.above_each([threshold]);
        counts
    }

    /// The same for thresholds that do not fall, in one walk.
    pub(crate) fn above_each<const N: usize>(&self, thresholds: [f64; N]) -> [Counts; N] {
        let edges = thresholds.map(|t| (t >= LEAST).then(|| self.bucket(t)));
        // Values above the first so many thresholds and not above the next.
        let (mut between, mut passed, mut below) = ([0u64; N], 0, self.zeros);
        for (bucket, count) in self.buckets() {
            while edges
                .get(passed)
                .is_some_and(|e| e.is_none_or(|e| bucket > e))
            {
                passed += 1;
            }
            let sum = match passed.checked_sub(1) {
                Some(i) => &mut between[i],
                None => &mut below,
            };
            *sum = sum.saturating_add(count);
        }
        let mut k = 0u64;
        for above in between.iter_mut().rev() {
            k = k.saturating_add(*above);
            *above = k;
        }
        let n = below.saturating_add(k);
        std::array::from_fn(|i| Counts {
            n,
            k: if thresholds[i] < 0.0 { n } else { between[i] },
        })
    }

    /// Sums of the values in units of caps above 0, none counting for more than 1.
    pub(crate) fn capped_each<const N: usize>(
        &self,
        caps: [f64; N],
        within: Within,
    ) -> [Scores; N] {
        let units = caps.map(|cap| 1.0 / cap);
        let mut all = [Scores::default(); N];
        for (bucket, count) in self.buckets() {
            if count > 0 {
                let (value, k) = (self.within(bucket, within), count as f64);
                for (scores, unit) in all.iter_mut().zip(units) {
                    let x = (value * unit).min(1.0);
                    scores.sum += k * x;
                    scores.square += k * x * x;
                }
            }
        }
        let n = self.n();
        all.map(|scores| Scores { n, ..scores })
    }

    fn within(&self, bucket: u32, within: Within) -> f64 {
        match within {
            Within::Lower => self.edge(bucket),
            Within::Middle => self.middle(bucket),
            Within::Upper => self.edge(bucket + 1),
        }
    }

    /// From a classic Prometheus histogram: upper bounds (the last may be infinite) with cumulative counts. Every value counts as its bucket's upper bound, so that no latency looks
    /// better than it was; the coarse buckets, not this sketch, limit the accuracy.
    ///
    /// # Errors
    /// [`BadSketch`] for bounds or counts that fall.
    pub fn from_prometheus(precision: u8, buckets: &[(f64, u64)]) -> Result<Self, BadSketch> {
        let mut sketch = Self::new(precision)?;
        let (mut bound, mut below) = (f64::NEG_INFINITY, 0);
        for (at, (le, cumulative)) in buckets.iter().enumerate() {
            if le.is_nan() || *le <= bound || *cumulative < below {
                return Err(BadSketch::Buckets { at });
            }
            sketch.record_many(le.max(0.0), cumulative - below);
            (bound, below) = (*le, *cumulative);
        }
        Ok(sketch)
    }

    /// From the positive buckets of a native Prometheus histogram: bucket i holds values in (b^(i-1), b^i], b = 2^(2^-schema). Every value counts as its bucket's geometric middle.
    ///
    /// # Errors
    /// [`BadSketch`] for a schema or precision out of range.
    pub fn from_prometheus_native(
        precision: u8,
        schema: i32,
        zeros: u64,
        buckets: &[(i32, u64)],
    ) -> Result<Self, BadSketch> {
        if !(-4..=8).contains(&schema) {
            return Err(BadSketch::Schema(schema));
        }
        let mut sketch = Self::new(precision)?;
        sketch.zeros = zeros;
        let width = libm::exp2(-f64::from(schema));
        for (i, count) in buckets {
            sketch.record_many(libm::exp2((f64::from(*i) - 0.5) * width), *count);
        }
        Ok(sketch)
    }

    /// A sketch's buckets that have values: (lower edge, upper edge, count), for plots.
    pub fn bars(&self) -> Vec<(f64, f64, u64)> {
        self.buckets()
            .filter(|(_, k)| *k > 0)
            .map(|(b, k)| (self.edge(b), self.edge(b + 1), k))
            .collect()
    }

    /// The greatest difference of both distribution functions, Kolmogorov-Smirnov's statistic over buckets; `None` where one is empty or the precisions differ.
    pub fn greatest_difference(&self, other: &Self) -> Option<f64> {
        let (n, m) = (self.n(), other.n());
        if n == 0 || m == 0 || self.precision != other.precision {
            return None;
        }
        let at = |s: &Self, b: u32| {
            b.checked_sub(s.first)
                .and_then(|i| s.counts.get(i as usize))
                .copied()
                .unwrap_or(0) as f64
        };
        let (mut f, mut g) = (self.zeros as f64, other.zeros as f64);
        let mut greatest = (f / n as f64 - g / m as f64).abs();
        let end = |s: &Self| {
            s.first
                .saturating_add(u32::try_from(s.counts.len()).unwrap_or(u32::MAX))
        };
        for bucket in self.first.min(other.first)..end(self).max(end(other)) {
            f += at(self, bucket);
            g += at(other, bucket);
            greatest = greatest.max((f / n as f64 - g / m as f64).abs());
        }
        Some(greatest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sketch(precision: u8, values: &[f64]) -> Sketch {
        let mut sketch = Sketch::new(precision).unwrap();
        assert!(values.iter().all(|v| sketch.record(*v)));
        sketch
    }

    proptest! {
        #[test]
        fn quantiles_are_within_the_stated_error(
            logs in prop::collection::vec(-19.0..22.0f64, 1..200), q in 0.0..1.0f64, precision in 1u8..=12,
        ) {
            let mut values: Vec<f64> = logs.iter().map(|l| l.exp()).collect();
            let sketch = sketch(precision, &values);
            values.sort_by(f64::total_cmp);
            let rank = crate::numbers::index((q * values.len() as f64).ceil()).clamp(1, values.len());
            let exact = values[rank - 1];
            let found = sketch.quantile(q).unwrap();
            prop_assert!((found / exact - 1.0).abs() <= sketch.relative_error() * (1.0 + 1e-12), "{found} {exact}");
        }

        #[test]
        fn merging_is_adding_and_json_keeps_everything(a in prop::collection::vec(0.0..1e5f64, 0..50), b in prop::collection::vec(0.0..1e-3f64, 0..50)) {
            let mut merged = sketch(5, &a);
            merged.merge(&sketch(5, &b)).unwrap();
            let whole = sketch(5, &[a.clone(), b].concat());
            prop_assert_eq!(merged.n(), whole.n());
            prop_assert_eq!(merged.bars(), whole.bars());
            let text = serde_json::to_string(&merged).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Sketch>(&text).unwrap(), &merged);
            let gain = merged.since(&sketch(5, &a)).unwrap();
            prop_assert_eq!(gain.n() + a.len() as u64, merged.n());
            if !a.is_empty() {
                prop_assert!(Sketch::default().since(&merged).is_none());
            }
        }

        #[test]
        fn bounds_hold_the_estimate(values in prop::collection::vec(0.001..1e4f64, 1..300), q in 0.01..0.99f64) {
            let e = sketch(5, &values).estimate(q, 0.05).unwrap();
            prop_assert!(e.lower <= e.value && e.value <= e.upper);
        }
    }

    #[test]
    fn is_total_and_refuses_nonsense() {
        let mut s = Sketch::default();
        assert!(
            !s.record(f64::NAN)
                && !s.record(-1.0)
                && s.record(f64::INFINITY)
                && s.record(0.0)
                && s.record(1e-300)
                && s.record(f64::MAX)
        );
        assert_eq!(s.n(), 4);
        assert!(
            s.quantile(f64::NAN).is_none()
                && Sketch::default().quantile(0.5).is_none()
                && s.quantile(1.0).unwrap().is_finite()
        );
        assert!(Sketch::new(0).is_err() && Sketch::new(13).is_err());
        assert!(s.merge(&Sketch::new(6).unwrap()).is_err());
        assert!(
            serde_json::from_str::<Sketch>(
                r#"{"precision":5,"zeros":0,"first":4294967295,"counts":[1]}"#
            )
            .is_err()
        );
        assert!(Sketch::from_prometheus(5, &[(1.0, 3), (2.0, 2)]).is_err());
        assert!(Sketch::from_prometheus_native(5, 9, 0, &[]).is_err());
    }

    #[test]
    fn prometheus_histograms_keep_their_counts() {
        let s = Sketch::from_prometheus(5, &[(0.1, 90), (0.5, 99), (f64::INFINITY, 100)]).unwrap();
        assert_eq!((s.n(), s.above(0.2).k, s.above(1.0).k), (100, 10, 1));
        let native = Sketch::from_prometheus_native(7, 3, 2, &[(0, 5), (8, 3)]).unwrap();
        assert_eq!((native.n(), native.above(1.5).k), (10, 3));
    }

    #[test]
    fn two_sketches_differ_by_their_distribution_functions() {
        let (a, b) = (
            sketch(5, &[1.0, 2.0, 3.0, 4.0]),
            sketch(5, &[3.0, 4.0, 5.0, 6.0]),
        );
        assert!((a.greatest_difference(&b).unwrap() - 0.5).abs() < 1e-12);
    }
}
