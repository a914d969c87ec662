//! What the groups measure with: seeded numbers, keys, and a router in the middle of a rollout.

use crate::Error;
use llm_rollout::{Direction, Epoch, Fence, Order, Position, RouterId, Seq, Share, Split};
use llm_serve_adapters::host::TrafficRouter;
use llm_serve_adapters::router::InProcessRouter;
use llm_version_core::{Digest, Name, Version, VersionId};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// The salt of every rollout here.
pub const SALT: u64 = 0x9e37_79b9_7f4a_7c15;
/// Keys, outcomes and the like come in sets of this many: they stay in the first cache.
pub const SET: usize = 512;

/// Reproducible numbers (`SplitMix64`).
#[derive(Debug, Clone)]
pub struct Seeded(u64);

impl Seeded {
    /// From a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between 0 and 1, neither of them.
    pub fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// Milliseconds as latencies are: log-normal about this median.
    pub fn latency(&mut self, median: f64, spread: f64) -> u64 {
        let normal = (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        let value = median * (spread * normal).exp();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive and far below 2^53"
        )]
        let millis = value.round().min(1e12) as u64;
        millis.max(1)
    }

    /// Fills a block.
    pub fn fill(&mut self, block: &mut [u8]) {
        for part in block.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            part.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        }
    }
}

/// Session keys: the text form of random UUIDs, 36 bytes each.
pub fn keys() -> Vec<Box<[u8]>> {
    let mut seeded = Seeded::new(1);
    (0..SET)
        .map(|_| {
            let (a, b) = (seeded.next(), seeded.next());
            let text = format!(
                "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
                a >> 32,
                a >> 16 & 0xffff,
                a & 0xfff,
                b >> 52,
                b & 0xffff_ffff_ffff
            );
            text.into_bytes().into()
        })
        .collect()
}

/// The n-th version of one bundle.
///
/// # Errors
/// None: the name is usable.
pub fn version(n: u32) -> Result<VersionId, Error> {
    Ok(VersionId::new(
        Name::new("chat")?,
        Version::new(n, 0, 0),
        Digest::of(&n.to_le_bytes()),
    ))
}

/// A router of two versions, with this share on the candidate and a lease.
///
/// # Errors
/// The router refuses, which it does not.
pub fn router(percent: f64) -> Result<InProcessRouter, Error> {
    let first = Split::steady(None, version(1)?, Epoch::new(0));
    let router = InProcessRouter::builder(RouterId::new("bench")?, first).open()?;
    let split = Split {
        candidate: Some(version(2)?),
        share: Share::from_percent(percent)?,
        salt: SALT,
        lease: Some(Duration::from_secs(24 * 3_600)),
        ..Split::steady(Some("bench".parse()?), version(1)?, Epoch::new(1))
    };
    let order = Order {
        at: Position {
            fence: Fence::new(1),
            seq: Seq::new(1),
        },
        direction: Direction::Forward,
        split,
        clock: router.state().clock,
    };
    // An in-process router never waits.
    let Poll::Ready(set) = pin!(router.set(&order)).poll(&mut Context::from_waker(Waker::noop()))
    else {
        return Err("the router waits for something".into());
    };
    set?;
    Ok(router)
}

#[cfg(test)]
mod tests {
    use super::*;
    use llm_serve_adapters::router::{Key, Role};

    #[test]
    fn keys_are_distinct_uuids() {
        let keys = keys();
        assert!(keys.iter().all(|key| key.len() == 36 && key.is_ascii()));
        let distinct = keys.iter().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(distinct.len(), SET);
    }

    #[test]
    fn the_router_splits() {
        let (router, keys) = (router(25.0).unwrap(), keys());
        let now = router.now();
        let role = |key: &[u8]| router.decide(&Key::session(key), now).role();
        let candidates = keys.iter().filter(|k| role(k) == Role::Candidate).count();
        assert!((SET / 8..SET / 2).contains(&candidates), "{candidates}");
    }

    #[test]
    fn seeded_numbers_repeat_and_blocks_fill() {
        assert_eq!(Seeded::new(7).next(), Seeded::new(7).next());
        let mut block = [0; 13];
        Seeded::new(7).fill(&mut block);
        assert!(block.iter().any(|b| *b != 0));
        let mut seeded = Seeded::new(3);
        assert!((0..1_000).all(|_| (0.0..1.0).contains(&seeded.unit())));
        let mut latencies = (0..1_001)
            .map(|_| seeded.latency(100.0, 0.5))
            .collect::<Vec<_>>();
        latencies.sort_unstable();
        assert!((80..125).contains(&latencies[500]), "{}", latencies[500]);
    }
}
