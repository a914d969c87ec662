//! What the tests of this module share.
mod core;
pub(crate) mod durable;
mod hot;

use llm_rollout::{
    Direction, Epoch, Fence, Order, Position, RolloutId, RouterClock, Seq, Share, Split, Timestamp,
};
use llm_version_core::{Digest, Name, VersionId};
use std::time::Duration;

pub(crate) fn version(n: u32) -> VersionId {
    let digest = Digest::of(&n.to_le_bytes());
    VersionId::new(
        Name::new("chat").unwrap(),
        llm_version_core::Version::new(1, n, 0),
        digest,
    )
}

pub(crate) fn rollout(name: &str) -> RolloutId {
    RolloutId::new(name).unwrap()
}

pub(crate) const LEASE: Duration = Duration::from_secs(60);

pub(crate) fn at(ms: u64) -> Timestamp {
    Timestamp::from_millis(ms)
}

pub(crate) fn share(percent: f64) -> Share {
    Share::from_percent(percent).unwrap()
}

/// Version 1 for all.
pub(crate) fn first() -> Split {
    Split::steady(None, version(1), Epoch::new(0))
}

/// Version 2 gets a share of rollout "a".
pub(crate) fn forward(fence: u64, seq: u64, epoch: u64, percent: f64, clock: RouterClock) -> Order {
    let split = Split {
        candidate: Some(version(2)),
        share: share(percent),
        salt: 7,
        lease: Some(LEASE),
        ..Split::steady(Some(rollout("a")), version(1), Epoch::new(epoch))
    };
    Order {
        at: position(fence, seq),
        direction: Direction::Forward,
        split,
        clock,
    }
}

/// All to one version, for rollout "a".
pub(crate) fn steady(
    direction: Direction,
    fence: u64,
    seq: u64,
    epoch: u64,
    to: u32,
    clock: RouterClock,
) -> Order {
    let split = Split::steady(Some(rollout("a")), version(to), Epoch::new(epoch));
    Order {
        at: position(fence, seq),
        direction,
        split,
        clock,
    }
}

pub(crate) fn position(fence: u64, seq: u64) -> Position {
    Position {
        fence: Fence::new(fence),
        seq: Seq::new(seq),
    }
}
