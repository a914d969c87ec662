//! What the data plane serves, what it is told, and what it says back.

use crate::{Epoch, Fence, Format, RolloutId, RouterId, Seq, Share, Timestamp};
use llm_version_core::VersionId;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What the data plane serves: a complete, absolute statement.
///
/// Candidate requests come from the low end of the hash range, control requests from the high end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data: hosts write routers against it"
)]
pub struct Split {
    /// Format of this record.
    pub format: Format,
    /// The rollout that it belongs to; none before the first.
    pub rollout: Option<RolloutId>,
    /// Who serves everything that nobody else does.
    pub baseline: VersionId,
    /// The version being rolled out, while there is one.
    pub candidate: Option<VersionId>,
    /// Share of the candidate; zero without one.
    pub share: Share,
    /// Share of the baseline that is treated like the candidate and compared with it; zero for none.
    pub control: Share,
    /// Share of the baseline's requests that is mirrored to the candidate, whose answers nobody sees; zero for none.
    #[serde(default, skip_serializing_if = "Share::is_none")]
    pub mirror: Share,
    /// Fixed for the whole rollout: assignment is a function of salt and key.
    pub salt: u64,
    /// Number of this split; what is observed under another does not count for it.
    pub epoch: Epoch,
    /// How long a candidate share outlives its last renewal; none where nothing can lapse.
    #[serde(with = "crate::split::millis")]
    pub lease: Option<Duration>,
    /// What conversations that have begun earlier keep, the oldest first; at most [`Self::LONGEST_RAMP`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ramp: Vec<Raise>,
    /// Shares that later stages will give the candidate, rising, while it has none: requests are counted by the slice that
    /// they will be in, so that it is known how the slices of one baseline differ. At most [`Self::MOST_AHEAD`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ahead: Vec<Share>,
}

/// An earlier split of the same rollout, as conversations know it that began while it was in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data: hosts write routers against it"
)]
pub struct Raise {
    /// Conversations that began before this moment keep the shares below.
    pub before: Timestamp,
    /// The candidate's share until then.
    pub share: Share,
    /// The control arm's share until then.
    pub control: Share,
}

impl Split {
    /// The most raises that a split remembers; beyond that the oldest is forgotten.
    pub const LONGEST_RAMP: usize = 16;
    /// The most future shares that are counted apart.
    pub const MOST_AHEAD: usize = 7;
    /// How long a new share may take to reach every router: conversations that begin within this time after it was decided
    /// still keep the shares before it, on every router alike.
    pub const SETTLING: Duration = Duration::from_secs(10);

    /// The ramp of the split that follows this one with these shares, decided now.
    #[must_use]
    pub fn ramp_to(
        &self,
        rollout: &RolloutId,
        (share, control): (Share, Share),
        now: Timestamp,
    ) -> Vec<Raise> {
        if self.rollout.as_ref() != Some(rollout) {
            return Vec::new();
        }
        let mut ramp = self.ramp.clone();
        if (self.share, self.control) != (share, control) {
            ramp.push(Raise {
                before: now.after(Self::SETTLING),
                share: self.share,
                control: self.control,
            });
        }
        let surplus = ramp.len().saturating_sub(Self::LONGEST_RAMP);
        ramp.drain(..surplus);
        ramp
    }

    /// What a split that gives the candidate nothing counts ahead, of the shares that later stages will give it.
    pub fn ahead_of(later: impl IntoIterator<Item = Share>) -> Vec<Share> {
        let shares = later.into_iter().filter(|share| !share.is_none());
        let rising: std::collections::BTreeSet<Share> = shares.collect();
        rising.into_iter().take(Self::MOST_AHEAD).collect()
    }

    /// All traffic to one version, for good: no candidate, no lease.
    pub fn steady(rollout: Option<RolloutId>, version: VersionId, epoch: Epoch) -> Self {
        Self {
            format: Format::CURRENT,
            rollout,
            baseline: version,
            candidate: None,
            share: Share::NONE,
            control: Share::NONE,
            mirror: Share::NONE,
            salt: 0,
            epoch,
            lease: None,
            ramp: Vec::new(),
            ahead: Vec::new(),
        }
    }

    /// Whether the candidate gets any request, be it to answer or mirrored: such a split has a lease.
    pub const fn exposes(&self) -> bool {
        self.share.basis_points() > 0 || self.mirror.basis_points() > 0
    }
}

/// Where an order stands: ordered by fence, then by log position. A router refuses older ones.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[expect(clippy::exhaustive_structs, reason = "a pair")]
pub struct Position {
    /// Who says it.
    pub fence: Fence,
    /// The logged step that decided it.
    pub seq: Seq,
}

/// What an order does to the candidate's share: a router treats each direction differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "a router must handle each")]
pub enum Direction {
    /// A share or a mirror for the candidate, or a resumption after a lapse. Refused by a mark or a latch.
    Forward,
    /// The candidate becomes the baseline. Refused by a mark or a latch.
    Promote,
    /// Back to the baseline of the split. Never refused for its age alone: it sets the mark whatever its number.
    Back,
    /// The rollout is over and confirmed: the split stays, mark and latch are released.
    End,
}

/// One thing to tell a router: absolute and idempotent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data: hosts write routers against it"
)]
pub struct Order {
    /// Fence and log position.
    pub at: Position,
    /// Where it leads.
    pub direction: Direction,
    /// What to serve.
    pub split: Split,
    /// The router's own clock as of its last reply: the lease counts from there, and what arrives later is refused.
    pub clock: RouterClock,
}

/// A router's own clock: its boot, and the milliseconds it has counted since.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "a pair")]
pub struct RouterClock {
    /// Differs for every start of the router.
    pub boot: u64,
    /// Monotonic milliseconds within that boot.
    pub at: Timestamp,
}

/// What one router said when it was read back, or why it could not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data: hosts write routers against it"
)]
pub struct RouterState {
    /// Newest fence that it has seen; older ones are refused from then on.
    pub fence: Fence,
    /// Newest order that it has carried out.
    pub at: Position,
    /// What it serves.
    pub split: Split,
    /// Whether the candidate's share has lapsed (or was forgotten in a restart): the baseline serves, renewals are refused.
    pub lapsed: bool,
    /// The rollout that it has been told to go back from.
    pub mark: Option<RolloutId>,
    /// The version that an operator has pinned.
    pub latch: Option<VersionId>,
    /// Its clock as of this reply.
    pub clock: RouterClock,
}

/// All registered routers, as read back: none is left out, an unreachable one is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Observed(std::collections::BTreeMap<RouterId, Option<RouterState>>);

impl Observed {
    /// From what each registered router said; `None` is "did not answer".
    pub fn new(routers: impl IntoIterator<Item = (RouterId, Option<RouterState>)>) -> Self {
        Self(routers.into_iter().collect())
    }

    /// Each registered router and what it said.
    pub fn iter(&self) -> impl Iterator<Item = (&RouterId, Option<&RouterState>)> {
        self.0.iter().map(|(id, state)| (id, state.as_ref()))
    }

    /// The routers that answered.
    pub fn reachable(&self) -> impl Iterator<Item = (&RouterId, &RouterState)> {
        self.0
            .iter()
            .filter_map(|(id, state)| state.as_ref().map(|state| (id, state)))
    }

    /// Whether every registered router, unreachable ones included, serves exactly this order and has not lapsed.
    pub fn confirms(&self, at: Position, split: &Split) -> bool {
        !self.0.is_empty()
            && self.0.values().all(|router| {
                router.as_ref().is_some_and(|r| {
                    r.fence == at.fence && r.at == at && r.split == *split && !r.lapsed
                })
            })
    }
}

pub(crate) mod millis {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::time::Duration;

    #[expect(
        clippy::ref_option,
        reason = "the signature that serde's `with` asks for"
    )]
    pub(crate) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        value
            .map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
            .serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use llm_version_core::{Digest, Name, Version};

    fn share(points: u16) -> Share {
        Share::new(points).unwrap()
    }

    #[test]
    fn a_ramp_remembers_what_was_in_force() {
        let id = RolloutId::new("a").unwrap();
        let version = VersionId::new(
            Name::new("chat").unwrap(),
            Version::new(1, 0, 0),
            Digest::of(b"1"),
        );
        let mut split = Split::steady(Some(id.clone()), version, Epoch::default());
        for step in 1..=20_u16 {
            let now = Timestamp::from_millis(u64::from(step) * 60_000);
            let next = (share(100 * step), share(100 * step));
            let ramp = split.ramp_to(&id, next, now);
            let newest = ramp.last().unwrap();
            assert_eq!(newest.before, now.after(Split::SETTLING));
            assert_eq!((newest.share, newest.control), (split.share, split.control));
            assert!(ramp.is_sorted_by_key(|raise| (raise.before, raise.share)));
            assert!(ramp.len() <= Split::LONGEST_RAMP);
            (split.share, split.control) = next;
            split.ramp = ramp;
            // The same shares again, after a lapse, are no raise.
            assert_eq!(split.ramp_to(&id, next, now), split.ramp);
        }
        assert_eq!(split.ramp.len(), Split::LONGEST_RAMP);
        let other = RolloutId::new("b").unwrap();
        assert!(
            split
                .ramp_to(&other, (share(1), share(0)), Timestamp::default())
                .is_empty()
        );
    }

    #[test]
    fn only_a_router_that_is_exactly_as_told_confirms() {
        let version = VersionId::new(
            Name::new("chat").unwrap(),
            Version::new(1, 0, 0),
            Digest::of(b"1"),
        );
        let at = Position {
            fence: Fence::new(2),
            seq: Seq::new(5),
        };
        let told = RouterState {
            fence: at.fence,
            at,
            split: Split::steady(None, version, Epoch::new(3)),
            lapsed: false,
            mark: None,
            latch: None,
            clock: RouterClock::default(),
        };
        let split = told.split.clone();
        let confirmed = |router: Option<RouterState>| {
            let good = (RouterId::new("a").unwrap(), Some(told.clone()));
            let other = (RouterId::new("b").unwrap(), router);
            Observed::new([good, other]).confirms(at, &split)
        };
        assert!(confirmed(Some(told.clone())));
        assert!(!confirmed(None));
        assert!(!Observed::default().confirms(at, &split));
        let changes: [fn(&mut RouterState); 5] = [
            |r| r.fence = Fence::new(3),
            |r| r.at.fence = Fence::new(1),
            |r| r.at.seq = Seq::new(4),
            |r| r.split.epoch = Epoch::new(4),
            |r| r.lapsed = true,
        ];
        for (i, change) in changes.into_iter().enumerate() {
            let mut router = told.clone();
            change(&mut router);
            assert!(!confirmed(Some(router)), "change {i}");
        }
    }

    #[test]
    fn what_is_ahead_rises_and_is_bounded() {
        let later = [0, 500, 100, 500, 10_000].map(share);
        assert_eq!(Split::ahead_of(later), [100, 500, 10_000].map(share));
        let many = Split::ahead_of((1..1_000).map(share));
        assert_eq!(many.len(), Split::MOST_AHEAD);
    }
}
