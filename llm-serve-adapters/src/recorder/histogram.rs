//! Log-linear buckets over milliseconds: 32 to each doubling, so that a value is known to 1.6 %.

use crate::sync::SMALL;
use std::time::Duration;

/// 32 buckets to a doubling.
const SUB_BITS: u32 = if SMALL { 0 } else { 5 };
const SUB: usize = 1 << SUB_BITS;
/// Values from here on (70 minutes) share the last bucket.
const LIMIT_BITS: u32 = if SMALL { 1 } else { 22 };

/// Buckets of a histogram.
pub(crate) const BUCKETS: usize = SUB * (LIMIT_BITS - SUB_BITS + 1) as usize + 1;

/// The bucket of a value. Up to 64 ms every millisecond has its own.
#[inline]
pub(crate) fn bucket(ms: u64) -> usize {
    // Without a branch: the first two doublings are one run of buckets.
    let octave = (ms | SUB as u64).ilog2() - SUB_BITS;
    #[expect(clippy::cast_possible_truncation, reason = "below twice 32")]
    let within = (ms >> octave) as usize;
    (SUB * octave as usize + within).min(BUCKETS - 1)
}

/// The smallest value of a bucket.
fn lower(index: usize) -> u64 {
    let (octave, within) = (index / SUB, (index % SUB) as u64);
    if octave == 0 {
        within
    } else {
        (SUB as u64 + within) << (octave - 1)
    }
}

/// How many values are greater than this. The bucket that the threshold falls into counts as not greater: a threshold is
/// in effect rounded up, by at most 3.2 %, for all sides alike.
pub(crate) fn over(counts: &[u64], threshold: Duration) -> u64 {
    let ms = u64::try_from(threshold.as_millis()).unwrap_or(u64::MAX);
    counts
        .get(bucket(ms) + 1..)
        .unwrap_or_default()
        .iter()
        .sum()
}

/// The middle of a bucket, in milliseconds.
fn middle(index: usize) -> f64 {
    let (low, next) = (lower(index), lower(index + 1));
    if index + 1 == BUCKETS {
        low as f64
    } else {
        (low + next - 1) as f64 / 2.0
    }
}

/// Values in seconds, in order, and how often each was met.
#[cfg(any(feature = "metrics", feature = "opentelemetry"))]
pub(crate) type Heights = Vec<(f64, u64)>;

/// What was met, each value as the middle of its bucket.
#[cfg(any(feature = "metrics", feature = "opentelemetry"))]
pub(crate) fn heights(counts: &[u64]) -> Heights {
    let met = counts.iter().enumerate().filter(|(_, n)| **n > 0);
    met.map(|(index, n)| (middle(index) / 1_000.0, *n))
        .collect()
}

/// The value below which this part of all values lies; none if there are none.
pub(crate) fn quantile(counts: &[u64], part: f64) -> Option<Duration> {
    let n: u64 = counts.iter().sum();
    if n == 0 {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 1 and n"
    )]
    let rank = ((part.clamp(0.0, 1.0) * n as f64).ceil() as u64).clamp(1, n);
    let mut seen = 0;
    let index = counts.iter().position(|count| {
        seen += count;
        seen >= rank
    })?;
    Some(Duration::from_secs_f64(middle(index) / 1_000.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(values: &[u64]) -> Vec<u64> {
        let mut counts = vec![0; BUCKETS];
        for v in values {
            counts[bucket(*v)] += 1;
        }
        counts
    }

    #[test]
    fn buckets_follow_one_another() {
        let mut last = 0;
        for ms in 1..(1 << LIMIT_BITS) + 10_u64 {
            let index = bucket(ms);
            assert!(index == last || index == last + 1, "{ms}");
            if index != last {
                assert_eq!(lower(index), ms);
            }
            last = index;
        }
        assert_eq!(last, BUCKETS - 1);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    proptest! {
        #[test]
        fn quantiles_are_within_their_bound(
            mut values in proptest::collection::vec(0..4_000_000_u64, 1..300), part in 0.0..=1.0_f64,
        ) {
            let found = quantile(&counts(&values), part).unwrap().as_secs_f64() * 1_000.0;
            values.sort_unstable();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
            let rank = ((part * values.len() as f64).ceil() as usize).clamp(1, values.len());
            let exact = values[rank - 1] as f64;
            prop_assert!((found - exact).abs() <= exact * 0.016 + 1e-6, "{found} {exact}");
        }

        #[test]
        fn what_is_over_is_over(values in proptest::collection::vec(0..100_000_u64, 0..300), ms in 0..100_000_u64) {
            let found = over(&counts(&values), Duration::from_millis(ms));
            let beyond = |limit: f64| values.iter().filter(|v| **v as f64 > limit).count() as u64;
            prop_assert!(found <= beyond(ms as f64));
            prop_assert!(found >= beyond(ms as f64 * 1.032));
        }
    }
}
