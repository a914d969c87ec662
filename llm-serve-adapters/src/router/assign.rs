//! `assign-v1`: which part of the hash range a key falls into. A wire format: replicas and releases agree on it.
//!
//! `hash = xxh3_64(key bytes, seed = salt)`; its top 32 bits are the key's place. A share of `b` basis points is the
//! threshold `t = floor(b * 2^32 / 10000)`. A place below `t(share)` belongs to the candidate, one at or above
//! `2^32 - t(control)` to the control arm, everything else to the baseline. 10 000 basis points are everything.
//! Keys that their senders choose are hashed with a secret instead: `hash = SipHash-1-3(secret, salt as 8 little-endian bytes,
//! then the key bytes)`, the rest alike. Test vectors of both: `tests/vectors/assign-v1.json`.

use super::hash::Sip;
use llm_rollout::Share;
use std::fmt;
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

/// What keys are hashed with that their senders choose ([`super::Key::untrusted`]): the same on every replica of an
/// endpoint, and known to nobody else. Shown by nothing.
#[derive(Clone, Copy)]
pub struct Secret([u64; 2]);

impl Secret {
    /// From 16 random bytes.
    pub fn new(bytes: [u8; 16]) -> Self {
        let (halves, _) = bytes.as_chunks::<8>();
        Self(std::array::from_fn(|i| u64::from_le_bytes(halves[i])))
    }

    /// Of a router that was given none: another one for every process, so that replicas do not agree.
    pub(crate) const fn of_process(words: [u64; 2]) -> Self {
        Self(words)
    }

    /// The place of a key that its sender chose, below 2^32: a pure function of secret, salt and key.
    pub fn place(&self, key: &[u8], salt: u64) -> u32 {
        let sip = Sip::<1, 3>::new(self.0).write(&salt.to_le_bytes());
        (sip.write(key).finish() >> 32) as u32
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
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
        keyed: Vec<Keyed>,
    }

    #[derive(Serialize, Deserialize)]
    struct Keyed {
        secret: [u8; 16],
        #[serde(flatten)]
        vector: Vector,
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
        assert!(vectors.keyed.len() >= 10);
        for Keyed { secret, vector: v } in vectors.keyed {
            let found = Secret::new(secret).place(v.key.as_bytes(), v.salt);
            assert_eq!(found, v.place, "{:?} {}", v.key, v.salt);
        }
    }

    #[test]
    fn everything_and_nothing_are_exact() {
        assert_eq!(threshold(Share::NONE), 0);
        assert_eq!(threshold(Share::ALL), END);
        assert!(u64::from(u32::MAX) < threshold(Share::ALL));
    }

    /// About standard normal if places are uniform.
    fn chi_square(keys: impl Iterator<Item = Vec<u8>>, place: impl Fn(&[u8]) -> u32) -> f64 {
        const BUCKETS: usize = 100;
        let (mut counts, mut n) = ([0_u32; BUCKETS], 0_u32);
        for key in keys {
            let bucket = u64::from(place(&key)) * BUCKETS as u64 / END;
            counts[usize::try_from(bucket).unwrap()] += 1;
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

    /// A number that looks random; the same every time.
    fn mixed(i: u64) -> u128 {
        let i = u128::from(i) + 1;
        i.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
            .rotate_right(59)
    }

    fn uuid(version: char, bits: u128) -> Vec<u8> {
        let hex = format!("{bits:032x}");
        let (a, b, c, d, e) = (
            &hex[..8],
            &hex[8..12],
            &hex[13..16],
            &hex[17..20],
            &hex[20..],
        );
        format!("{a}-{b}-{version}{c}-a{d}-{e}").into_bytes()
    }

    type Shape = (&'static str, fn(u64) -> Vec<u8>);
    const SHAPES: [Shape; 7] = [
        ("user-N", |i| format!("user-{i}").into_bytes()),
        ("decimal", |i| i.to_string().into_bytes()),
        ("binary", |i| i.to_le_bytes().to_vec()),
        ("mail", |i| format!("mail{i}@example.org").into_bytes()),
        ("uuid v4", |i| uuid('4', mixed(i))),
        // A few in every millisecond, one after the other.
        ("uuid v7", |i| {
            uuid(
                '7',
                u128::from(1_700_000_000_000 + i / 3) << 80 | mixed(i) >> 48,
            )
        }),
        ("session_N", |i| format!("session_{i:012}").into_bytes()),
    ];
    const N: u64 = 100_000;

    #[test]
    fn keys_of_every_shape_spread_evenly() {
        let secret = Secret::new(*b"sixteen bytes ok");
        for (name, key) in SHAPES {
            for salt in [0, 1, 0x5eed] {
                // 42 normal deviates in all: one beyond 4.5 by chance has a probability of 0.0003.
                let z = chi_square((0..N).map(key), |key| place(key, salt));
                assert!(z.abs() < 4.5, "{name}, salt {salt}: {z}");
                let z = chi_square((0..N).map(key), |key| secret.place(key, salt));
                assert!(z.abs() < 4.5, "{name}, keyed, salt {salt}: {z}");
            }
        }
    }

    #[test]
    fn two_salts_choose_independently() {
        let t = threshold(Share::from_percent(5.0).unwrap());
        let secret = Secret::new([7; 16]);
        for (name, key) in SHAPES {
            let both = |place: &dyn Fn(&[u8], u64) -> u32| {
                let chosen =
                    |key: &Vec<u8>| u64::from(place(key, 11)) < t && u64::from(place(key, 12)) < t;
                (0..2 * N).map(key).filter(chosen).count()
            };
            // Expected 500, standard deviation 22: one of 14 beyond 4.5 of them has a probability of 0.0001.
            for found in [both(&place), both(&|key, salt| secret.place(key, salt))] {
                assert!((400..600).contains(&found), "{name}: {found}");
            }
        }
    }

    #[test]
    fn without_the_secret_the_place_cannot_be_told() {
        let (one, two) = (Secret::new([1; 16]), Secret::new([2; 16]));
        let same = (0..N).filter(|i| {
            let key = i.to_le_bytes();
            (one.place(&key, 7) ^ two.place(&key, 7)) >> 24 == 0
        });
        // Expected 391, standard deviation 20.
        assert!((290..490).contains(&same.count()));
        assert!(!format!("{one:?}").contains('1'));
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
