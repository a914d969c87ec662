//! `assign-v1`: which part of the hash range a key falls into. A wire format: replicas and releases agree on it.
//!
//! `hash = xxh3_64(key bytes, seed = salt)`; its top 32 bits are the key's place. A share of `b` basis points is the
//! threshold `t = floor(b * 2^32 / 10000)`. A place below `t(share)` belongs to the candidate, one at or above
//! `2^32 - t(control)` to the control arm, everything else to the baseline. 10 000 basis points are everything.
//! Test vectors: `tests/vectors/assign-v1.json`.

use llm_rollout::Share;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// One more than the largest place.
pub(crate) const END: u64 = 1 << 32;

/// The key's place in the hash range, below 2^32: a pure function of salt and key.
///
/// ```
/// use llm_serve_adapters::router::place;
///
/// assert_eq!(place(b"session-1", 7), place(b"session-1", 7));
/// assert_ne!(place(b"session-1", 7), place(b"session-1", 8));
/// ```
#[inline]
pub fn place(key: &[u8], salt: u64) -> u32 {
    (xxh3_64_with_seed(key, salt) >> 32) as u32
}

/// How many places a share covers: 0 to 2^32.
pub(crate) fn threshold(share: Share) -> u64 {
    u64::from(share.basis_points()) * END / 10_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    const VECTORS: &str = include_str!("../../tests/vectors/assign-v1.json");

    #[derive(Serialize, Deserialize)]
    struct Vectors {
        format: String,
        thresholds: Vec<(u16, u64)>,
        places: Vec<Vector>,
    }

    #[derive(Serialize, Deserialize)]
    struct Vector {
        key: String,
        salt: u64,
        place: u32,
    }

    #[test]
    fn vectors_hold() {
        let vectors: Vectors = serde_json::from_str(VECTORS).unwrap();
        assert_eq!(vectors.format, "assign-v1");
        assert!(vectors.places.len() >= 20);
        for (points, expected) in vectors.thresholds {
            assert_eq!(threshold(Share::new(points).unwrap()), expected, "{points}");
        }
        for v in vectors.places {
            assert_eq!(
                place(v.key.as_bytes(), v.salt),
                v.place,
                "{:?} {}",
                v.key,
                v.salt
            );
        }
    }

    #[test]
    fn everything_and_nothing_are_exact() {
        assert_eq!(threshold(Share::NONE), 0);
        assert_eq!(threshold(Share::ALL), END);
        assert!(u64::from(u32::MAX) < threshold(Share::ALL));
    }

    fn chi_square(keys: impl Iterator<Item = Vec<u8>>, salt: u64) -> f64 {
        const BUCKETS: usize = 100;
        let (mut counts, mut n) = ([0_u32; BUCKETS], 0_u32);
        for key in keys {
            counts
                [usize::try_from(u64::from(place(&key, salt)) * BUCKETS as u64 / END).unwrap()] +=
                1;
            n += 1;
        }
        let expected = f64::from(n) / BUCKETS as f64;
        let x2: f64 = counts
            .iter()
            .map(|&c| (f64::from(c) - expected).powi(2) / expected)
            .sum();
        // Wilson-Hilferty: about standard normal.
        let df = (BUCKETS - 1) as f64;
        ((x2 / df).cbrt() - (1.0 - 2.0 / (9.0 * df))) / (2.0 / (9.0 * df)).sqrt()
    }

    #[test]
    fn keys_of_every_shape_spread_evenly() {
        for salt in [0, 1, 0x5eed] {
            let z = [
                chi_square((0..100_000).map(|i| format!("user-{i}").into_bytes()), salt),
                chi_square((0..100_000_u64).map(|i| i.to_le_bytes().to_vec()), salt),
                chi_square(
                    (0..100_000).map(|i| format!("mail{i}@example.org").into_bytes()),
                    salt,
                ),
                chi_square(
                    (0..100_000_u128).map(|i| {
                        format!(
                            "{:032x}",
                            i.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
                        )
                        .into_bytes()
                    }),
                    salt,
                ),
            ];
            assert!(z.iter().all(|z| z.abs() < 4.5), "salt {salt}: {z:?}");
        }
    }

    #[test]
    fn two_salts_choose_independently() {
        let t = threshold(Share::from_percent(5.0).unwrap());
        let both = (0..200_000)
            .map(|i| format!("user-{i}"))
            .filter(|k| {
                u64::from(place(k.as_bytes(), 11)) < t && u64::from(place(k.as_bytes(), 12)) < t
            })
            .count();
        // Expected 500, standard deviation 22.
        assert!((400..600).contains(&both), "{both}");
    }

    proptest! {
        #[test]
        fn thresholds_grow_with_the_share(a in 0..=10_000_u16, b in 0..=10_000_u16) {
            let t = |p| threshold(Share::new(p).unwrap());
            prop_assert_eq!(a.cmp(&b), t(a).cmp(&t(b)));
        }

        #[test]
        fn candidate_and_control_never_overlap(a in 0..=10_000_u16, b in 0..=10_000_u16) {
            prop_assume!(a + b <= 10_000);
            let t = |p| threshold(Share::new(p).unwrap());
            prop_assert!(t(a) + t(b) <= END);
        }
    }
}
