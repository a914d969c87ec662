//! What a router answers: one word, whose parts are taken out when they are asked for.

use super::versions::{Version, VersionSlot};
use llm_rollout::Epoch;
use std::fmt;

/// What a request counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(clippy::exhaustive_enums, reason = "hosts and recorders handle each")]
pub enum Role {
    /// Served by the version in production.
    Baseline,
    /// Served by the version being rolled out.
    Candidate,
    /// Served by the version in production, treated like the candidate and compared with it.
    Control,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Baseline, Self::Candidate, Self::Control];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Baseline => "baseline",
            Self::Candidate => "candidate",
            Self::Control => "control",
        })
    }
}

/// Why a request was assigned as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// By the hash of its key.
    Assigned,
    /// It has no key: by chance, this once.
    Keyless,
    /// It was pinned.
    Pinned,
    /// The lease has run out, or the router has started anew: everything goes to the baseline.
    Lapsed,
    /// Somebody has forced the baseline.
    Forced,
    /// The split was being replaced for longer than a request waits: to the baseline, this once.
    Busy,
    /// The candidate has more than its cap: to the baseline.
    Capped,
    /// The candidate is suspended, since it fails: to the baseline.
    Suspended,
}

/// A part of the users that the candidate will get at a later stage, or that will be its control arm, while the baseline still
/// serves everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slice(u8);

impl Slice {
    /// At most this many on either side.
    pub(crate) const MOST: usize = 7;
    const CONTROL: u8 = 8;

    /// The slice between the share before and the one at this index of [`llm_rollout::Split::ahead`].
    pub(crate) fn new(index: usize, control: bool) -> Option<Self> {
        let number = u8::try_from(index).ok()?.checked_add(1)?;
        (usize::from(number) <= Self::MOST).then_some(Self(if control {
            number | Self::CONTROL
        } else {
            number
        }))
    }

    /// Which of [`llm_rollout::Split::ahead`] first includes it.
    pub fn index(self) -> usize {
        usize::from(self.0 & 7).saturating_sub(1)
    }

    /// Whether it will be compared with the candidate, rather than served by it.
    pub fn is_control(self) -> bool {
        self.0 & Self::CONTROL != 0
    }

    pub(crate) fn of(number: usize) -> Option<Self> {
        let number = u8::try_from(number).ok()?;
        (number & 7 != 0 && number < 16).then_some(Self(number))
    }
}

/// Where a request goes, and what it counts as.
///
/// It stays valid when the split changes: a request keeps its version until it ends.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Decision(u64);

// From the low end: the slot of the version (16 bits), the role (2), whether it is recorded apart (1), whether there is a
// control arm (1), the reason (3), a bit to spare, the slice (4), the epoch (36).
const ROLE: u32 = 16;
const APART: u32 = 18;
const CONTROLLED: u32 = 19;
const REASON: u32 = 20;
const SLICE: u32 = 24;
const EPOCH: u32 = 28;
/// Epoch, version and control arm: what all requests of one kind have in common.
const SUBJECT: u64 = u64::MAX << EPOCH | 1 << CONTROLLED | 0xffff;

impl Decision {
    /// The largest epoch that a decision can tell.
    pub(crate) const LAST_EPOCH: u64 = u64::MAX >> EPOCH;

    /// A decision by the hash, by chance.
    pub(crate) const fn new(slot: VersionSlot, role: Role, epoch: u64, controlled: bool) -> Self {
        Self(
            slot.index() as u64
                | (role as u64) << ROLE
                | (controlled as u64) << CONTROLLED
                | epoch << EPOCH,
        )
    }

    #[inline]
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    #[must_use]
    pub(crate) const fn because(self, reason: Reason) -> Self {
        Self(self.0 & !(7 << REASON) | (reason as u64) << REASON)
    }

    /// The same, recorded apart from the evidence unless this is so.
    #[must_use]
    pub(crate) const fn evidence_if(self, yes: bool) -> Self {
        if yes { self } else { Self(self.0 | 1 << APART) }
    }

    #[must_use]
    pub(crate) fn within(self, slice: Slice) -> Self {
        Self(self.0 & !(15 << SLICE) | u64::from(slice.0) << SLICE)
    }

    /// What the request counts as.
    #[inline]
    pub const fn role(self) -> Role {
        match self.0 >> ROLE & 3 {
            0 => Role::Baseline,
            1 => Role::Candidate,
            _ => Role::Control,
        }
    }

    /// Why.
    pub const fn reason(self) -> Reason {
        match self.0 >> REASON & 7 {
            0 => Reason::Assigned,
            1 => Reason::Keyless,
            2 => Reason::Pinned,
            3 => Reason::Lapsed,
            4 => Reason::Forced,
            5 => Reason::Busy,
            6 => Reason::Capped,
            _ => Reason::Suspended,
        }
    }

    /// The split it was decided under.
    #[inline]
    pub const fn epoch(self) -> Epoch {
        Epoch::new(self.0 >> EPOCH)
    }

    /// The version that serves it.
    #[inline]
    pub fn version(self) -> Option<&'static Version> {
        self.slot().version()
    }

    /// The version that serves it, as a small number.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the low 16 bits are the slot"
    )]
    pub const fn slot(self) -> VersionSlot {
        VersionSlot::new(self.0 as u16)
    }

    /// Whether chance decided: only then is it evidence.
    #[inline]
    pub const fn randomised(self) -> bool {
        self.0 >> APART & 1 == 0
    }

    /// Whether the split has a control arm, which is then what the candidate is compared with.
    #[inline]
    pub const fn controlled(self) -> bool {
        self.0 >> CONTROLLED & 1 == 1
    }

    /// The part of the users that its key belongs to, while the candidate serves nobody yet.
    pub fn slice(self) -> Option<Slice> {
        Slice::of((self.0 >> SLICE & 15) as usize)
    }

    /// The same in another role.
    #[must_use]
    pub(crate) const fn in_role(self, role: Role) -> Self {
        Self(self.0 & !(3 << ROLE) | (role as u64) << ROLE)
    }

    /// Epoch, version and whether there is a control arm, as one word: the rest of a decision is its kind.
    #[inline]
    pub(crate) const fn subject(self) -> u64 {
        self.0 & SUBJECT
    }

    /// What a recorder counts it as: 0 to 5 by role and whether chance decided, 7 and the slice's number within a slice.
    #[inline]
    pub(crate) const fn kind(self) -> usize {
        let slice = (self.0 >> SLICE & 15) as usize;
        if slice == 0 {
            (self.0 >> ROLE & 7) as usize
        } else {
            7 + slice
        }
    }

    /// Of these candidates (workers, replicas, pools), those that serve its version: for a host whose own balancer then chooses
    /// among them, by cache or load.
    ///
    /// ```
    /// # use llm_serve_adapters::router::{Decision, VersionSlot};
    /// struct Worker { name: &'static str, serves: VersionSlot }
    /// # fn pick(decision: Decision, workers: &[Worker]) -> Option<&Worker> {
    /// decision.filter(workers, |worker| worker.serves).min_by_key(|worker| worker.name)
    /// # }
    /// ```
    pub fn filter<T>(
        self,
        candidates: impl IntoIterator<Item = T>,
        version_of: impl Fn(&T) -> VersionSlot,
    ) -> impl Iterator<Item = T> {
        let slot = self.slot();
        candidates
            .into_iter()
            .filter(move |candidate| version_of(candidate) == slot)
    }
}

impl fmt::Debug for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decision")
            .field("role", &self.role())
            .field("reason", &self.reason())
            .field("epoch", &self.epoch())
            .field("version", &self.version().map(Version::reference))
            .field("randomised", &self.randomised())
            .field("controlled", &self.controlled())
            .field("slice", &self.slice())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REASONS: [Reason; 8] = [
        Reason::Assigned,
        Reason::Keyless,
        Reason::Pinned,
        Reason::Lapsed,
        Reason::Forced,
        Reason::Busy,
        Reason::Capped,
        Reason::Suspended,
    ];

    proptest! {
        #[test]
        fn what_is_put_in_comes_out(
            slot in any::<u16>(), role in 0..3_usize, reason in 0..8_usize, flags in any::<(bool, bool)>(),
            epoch in 0..=Decision::LAST_EPOCH, slice in proptest::option::of((0..7_usize, any::<bool>())),
        ) {
            let slot = VersionSlot::new(slot);
            let mut decision = Decision::new(slot, Role::ALL[role], epoch, flags.0)
                .because(REASONS[(reason + 1) % 8])
                .because(REASONS[reason])
                .evidence_if(flags.1);
            let slice = slice.map(|(index, control)| Slice::new(index, control).unwrap());
            if let Some(slice) = slice {
                decision = decision.within(slice);
            }
            prop_assert_eq!(decision.slot(), slot);
            prop_assert_eq!(decision.role(), Role::ALL[role]);
            prop_assert_eq!(decision.reason(), REASONS[reason]);
            prop_assert_eq!(decision.epoch().get(), epoch);
            prop_assert_eq!((decision.controlled(), decision.randomised()), flags);
            prop_assert_eq!(decision.slice(), slice);
        }
    }

    #[test]
    fn slices_are_numbered_from_either_end() {
        let (third, last) = (Slice::new(2, false).unwrap(), Slice::new(6, true).unwrap());
        assert_eq!((third.index(), third.is_control()), (2, false));
        assert_eq!((last.index(), last.is_control()), (6, true));
        assert_eq!(Slice::new(7, false), None);
        assert_eq!((Slice::of(3), Slice::of(15)), (Some(third), Some(last)));
        assert_eq!((Slice::of(0), Slice::of(8)), (None, None));
    }
}
