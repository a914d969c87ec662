//! The hashes behind an assignment: xxh3 with the salt worked into its secret beforehand, which is what a request pays
//! for, and `SipHash` for keys that their senders may choose.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The first 64 bytes of the secret that xxh3 defines, as little-endian words.
const DEFAULT: [u64; WORDS] = [
    0xbe4b_a423_396c_feb8,
    0x1cad_21f7_2c81_017c,
    0xdb97_9083_e96d_d4de,
    0x1f67_b3b7_a4a4_4072,
    0x78e5_c0cc_4ee6_79cb,
    0x2172_ffcc_7dd0_5a82,
    0x8e24_43f7_7446_08b8,
    0x4c26_3a81_e690_35e0,
];
pub(crate) const WORDS: usize = 8;

const PRIME: u64 = 0x9e37_79b1_85eb_ca87;

/// The secret with a salt worked in: made when a split is published, not for every request.
pub(crate) fn salted(salt: u64) -> [u64; WORDS] {
    std::array::from_fn(|i| {
        if i.is_multiple_of(2) {
            DEFAULT[i].wrapping_add(salt)
        } else {
            DEFAULT[i].wrapping_sub(salt)
        }
    })
}

/// `xxh3_64(key, seed = salt)`, where `secret(i)` is the i-th word of [`salted`].
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "measured: a call, or a value that goes through memory, costs as much as the work"
)]
pub(crate) fn xxh3(
    key: &[u8],
    salt: impl FnOnce() -> u64,
    secret: impl Fn(usize) -> u64 + Copy,
) -> u64 {
    let found = match key.len() {
        33..=64 => ends::<32>(key, secret),
        17..=32 => ends::<16>(key, secret),
        _ => None,
    };
    match found {
        Some(hash) => hash,
        None => whole(key, salt()),
    }
}

#[inline(never)]
fn whole(key: &[u8], salt: u64) -> u64 {
    xxh3_64_with_seed(key, salt)
}

/// Keys of 17 to 64 bytes, which session ids are: what lies within `N` bytes of either end.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "measured: a call, or a value that goes through memory, costs as much as the work"
)]
fn ends<const N: usize>(key: &[u8], secret: impl Fn(usize) -> u64 + Copy) -> Option<u64> {
    let (first, last) = (key.first_chunk::<N>()?, key.last_chunk::<N>()?);
    let mut sum = (key.len() as u64).wrapping_mul(PRIME);
    for i in 0..N / 16 {
        sum = sum.wrapping_add(mixed(first, 16 * i, 4 * i, secret));
        sum = sum.wrapping_add(mixed(last, N - 16 * (i + 1), 4 * i + 2, secret));
    }
    sum ^= sum >> 37;
    sum = sum.wrapping_mul(0x1656_6791_9e37_79f9);
    Some(sum ^ (sum >> 32))
}

#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "measured: a call, or a value that goes through memory, costs as much as the work"
)]
fn mixed<const N: usize>(
    bytes: &[u8; N],
    at: usize,
    word: usize,
    secret: impl Fn(usize) -> u64,
) -> u64 {
    let read = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    let (low, high) = (read(at) ^ secret(word), read(at + 8) ^ secret(word + 1));
    let product = u128::from(low) * u128::from(high);
    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    let folded = product as u64 ^ (product >> 64) as u64;
    folded
}

/// `SipHash` with `C` rounds a word and `D` at the end, of these parts one after the other.
#[derive(Debug)]
pub(crate) struct Sip<const C: usize, const D: usize> {
    state: [u64; 4],
    /// Bytes that do not fill a word yet, and how many have come in all.
    tail: u64,
    length: u64,
}

impl<const C: usize, const D: usize> Sip<C, D> {
    pub(crate) fn new([k0, k1]: [u64; 2]) -> Self {
        Self {
            state: [
                k0 ^ 0x736f_6d65_7073_6575,
                k1 ^ 0x646f_7261_6e64_6f6d,
                k0 ^ 0x6c79_6765_6e65_7261,
                k1 ^ 0x7465_6462_7974_6573,
            ],
            tail: 0,
            length: 0,
        }
    }

    pub(crate) fn write(mut self, bytes: &[u8]) -> Self {
        let (words, rest) = if self.length.is_multiple_of(8) {
            bytes.as_chunks::<8>()
        } else {
            (&[][..], bytes)
        };
        for word in words {
            self.absorb(u64::from_le_bytes(*word));
            self.length = self.length.wrapping_add(8);
        }
        for &byte in rest {
            self.tail |= u64::from(byte) << (8 * (self.length % 8));
            self.length = self.length.wrapping_add(1);
            if self.length.is_multiple_of(8) {
                self.absorb(self.tail);
                self.tail = 0;
            }
        }
        self
    }

    pub(crate) fn finish(mut self) -> u64 {
        self.absorb(self.tail | self.length << 56);
        self.state[2] ^= 0xff;
        self.rounds(D);
        self.state.iter().fold(0, |sum, word| sum ^ word)
    }

    fn absorb(&mut self, word: u64) {
        self.state[3] ^= word;
        self.rounds(C);
        self.state[0] ^= word;
    }

    fn rounds(&mut self, times: usize) {
        let [mut a, mut b, mut c, mut d] = self.state;
        for _ in 0..times {
            a = a.wrapping_add(b);
            c = c.wrapping_add(d);
            b = b.rotate_left(13) ^ a;
            d = d.rotate_left(16) ^ c;
            a = a.rotate_left(32).wrapping_add(d);
            c = c.wrapping_add(b);
            b = b.rotate_left(17) ^ c;
            d = d.rotate_left(21) ^ a;
            c = c.rotate_left(32);
        }
        self.state = [a, b, c, d];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::hash::{DefaultHasher, Hasher};

    proptest! {
        #[test]
        fn a_salt_worked_in_beforehand_changes_no_hash(
            key in proptest::collection::vec(any::<u8>(), 0..300), salt in any::<u64>(),
        ) {
            let secret = salted(salt);
            prop_assert_eq!(xxh3(&key, || salt, |i| secret[i]), xxh3_64_with_seed(&key, salt));
        }

        #[test]
        fn sip_is_that_of_the_standard_library(parts in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..40), 0..4)) {
            let (mut own, mut theirs) = (Sip::<1, 3>::new([0, 0]), DefaultHasher::new());
            for part in &parts {
                own = own.write(part);
                theirs.write(part);
            }
            prop_assert_eq!(own.finish(), theirs.finish());
        }
    }

    #[test]
    fn sip_is_keyed_as_its_paper_says() {
        // Appendix A of "SipHash: a fast short-input PRF": key 00 01 .. 0f, message 00 01 .. 0e.
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let message: Vec<u8> = (0..15).collect();
        let hash = Sip::<2, 4>::new(key).write(&message).finish();
        assert_eq!(hash, 0xa129_ca61_49be_45e5);
    }
}
