//! What request threads read: a few words behind a sequence lock, in safe Rust.

use super::assign;
use super::decision::{Decision, Reason, Role};
use super::versions::VersionSlot;
use llm_rollout::{Epoch, Split, Timestamp};
use std::hint::spin_loop;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// The split in force, as request threads need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    /// Places below it belong to the candidate; at most 2^32.
    pub(crate) candidate_below: u64,
    /// Places from here on belong to the control arm; 2^32 for none.
    pub(crate) control_from: u64,
    pub(crate) epoch: u64,
    /// First moment at which not everything is as usual any more: zero if it has lapsed or the baseline is forced, the
    /// largest number for never.
    pub(crate) deadline: u64,
    pub(crate) salt: u64,
    pub(crate) baseline: VersionSlot,
    pub(crate) candidate: Option<VersionSlot>,
    pub(crate) forced: bool,
}

impl View {
    pub(crate) fn new(
        split: &Split,
        baseline: VersionSlot,
        candidate: Option<VersionSlot>,
        deadline: Option<Timestamp>,
        lapsed: bool,
        forced: bool,
    ) -> Self {
        let deadline = if lapsed || forced {
            0
        } else {
            deadline.map_or(u64::MAX, Timestamp::as_millis)
        };
        Self {
            candidate_below: if candidate.is_some() {
                assign::threshold(split.share)
            } else {
                0
            },
            control_from: assign::END - assign::threshold(split.control),
            epoch: split.epoch.get(),
            deadline,
            salt: split.salt,
            baseline,
            candidate,
            forced,
        }
    }

    fn pack(&self) -> [u64; WORDS] {
        let flag = |yes, flag| if yes { flag } else { 0 };
        let candidate = self.candidate.unwrap_or(self.baseline);
        [
            u64::from(self.baseline.index())
                | u64::from(candidate.index()) << SLOT_BITS
                | flag(self.candidate.is_some(), HAS_CANDIDATE)
                | flag(self.forced, FORCED),
            self.candidate_below,
            self.control_from,
            self.epoch,
            self.deadline,
            self.salt,
        ]
    }

    fn unpack([about, candidate_below, control_from, epoch, deadline, salt]: [u64; WORDS]) -> Self {
        Self {
            candidate_below,
            control_from,
            epoch,
            deadline,
            salt,
            baseline: slot_of(about, Role::Baseline),
            candidate: (about & HAS_CANDIDATE != 0).then(|| slot_of(about, Role::Candidate)),
            forced: about & FORCED != 0,
        }
    }
}

const WORDS: usize = 6;
/// Versions and flags: the baseline, then the candidate (without one the baseline again), then the flags.
const ABOUT: usize = 0;
const CANDIDATE_BELOW: usize = 1;
const CONTROL_FROM: usize = 2;
const EPOCH: usize = 3;
const DEADLINE: usize = 4;
const SALT: usize = 5;

const SLOT_BITS: u32 = 16;
const HAS_CANDIDATE: u64 = 1 << 32;
const FORCED: u64 = 1 << 33;

/// The version that serves a role.
#[inline]
fn slot_of(about: u64, role: Role) -> VersionSlot {
    let shift = u32::from(matches!(role, Role::Candidate)) * SLOT_BITS;
    VersionSlot::new((about >> shift & 0xffff) as u16)
}

/// Whose a place is.
#[inline]
pub(crate) fn role(place: u32, candidate_below: u64, control_from: u64) -> Role {
    let place = u64::from(place);
    if place < candidate_below {
        Role::Candidate
    } else if place >= control_from {
        Role::Control
    } else {
        Role::Baseline
    }
}

/// How often a reader tries before it falls back to the baseline: a few hundred nanoseconds.
const TRIES: usize = 64;

/// One writer at a time (the caller sees to that), any number of readers. A reader never waits for the writer.
#[repr(align(128))]
#[derive(Debug)]
pub(crate) struct Published {
    /// Odd while the words are being replaced.
    sequence: AtomicU64,
    words: [AtomicU64; WORDS],
    /// The baseline alone, for readers that cannot wait.
    baseline: AtomicU64,
}

impl Published {
    pub(crate) fn new(view: &View) -> Self {
        Self {
            sequence: AtomicU64::new(0),
            words: view.pack().map(AtomicU64::new),
            baseline: AtomicU64::new(u64::from(view.baseline.index())),
        }
    }

    pub(crate) fn write(&self, view: &View) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence
            .store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        for (word, value) in self.words.iter().zip(view.pack()) {
            word.store(value, Ordering::Relaxed);
        }
        self.sequence
            .store(sequence.wrapping_add(2), Ordering::Release);
        self.baseline
            .store(u64::from(view.baseline.index()), Ordering::Release);
    }

    /// The decision about a session in the usual case: nothing has lapsed, nobody has forced the baseline, and the words were
    /// not being replaced. None otherwise.
    ///
    /// The words are read where they are needed, and only afterwards is it checked that they are of one write.
    #[inline]
    pub(crate) fn assign(
        &self,
        session: &[u8],
        now: Timestamp,
        randomised: bool,
    ) -> Option<Decision> {
        let sequence = self.sequence.load(Ordering::Acquire);
        let place = assign::place(session, self.words[SALT].load(Ordering::Relaxed));
        let about = self.words[ABOUT].load(Ordering::Relaxed);
        let candidate_below = self.words[CANDIDATE_BELOW].load(Ordering::Relaxed);
        let control_from = self.words[CONTROL_FROM].load(Ordering::Relaxed);
        let epoch = self.words[EPOCH].load(Ordering::Relaxed);
        let deadline = self.words[DEADLINE].load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        // An odd number is never found again.
        if self.sequence.load(Ordering::Relaxed) != sequence & !1 || now.as_millis() >= deadline {
            return None;
        }
        let role = role(place, candidate_below, control_from);
        Some(Decision {
            role,
            reason: Reason::Assigned,
            epoch: Epoch::new(epoch),
            version: slot_of(about, role),
            randomised,
            controlled: control_from < assign::END,
        })
    }

    /// The words of one write, or none if it was being replaced all the time.
    pub(crate) fn read(&self) -> Option<View> {
        for _ in 0..TRIES {
            let before = self.sequence.load(Ordering::Acquire);
            let words = std::array::from_fn(|i| self.words[i].load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before {
                return Some(View::unpack(words));
            }
            spin_loop();
        }
        None
    }

    /// The baseline, and the epoch as far as it can be told: what a reader does that cannot wait.
    #[cold]
    pub(crate) fn fallback(&self) -> (VersionSlot, u64) {
        (
            slot_of(self.baseline.load(Ordering::Acquire), Role::Baseline),
            self.words[EPOCH].load(Ordering::Relaxed),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicBool;

    fn uniform(n: u64) -> View {
        let slot = VersionSlot::new(u16::try_from(n % 60_000).unwrap());
        View {
            candidate_below: n,
            control_from: n,
            epoch: n,
            deadline: n,
            salt: n,
            baseline: slot,
            candidate: Some(slot),
            forced: n.is_multiple_of(3),
        }
    }

    #[test]
    fn readers_never_see_a_mixture() {
        let published = Published::new(&uniform(0));
        let (done, seen) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut last = 0;
                    while !done.load(Ordering::Relaxed) {
                        let Some(view) = published.read() else {
                            continue;
                        };
                        assert_eq!(view, uniform(view.epoch));
                        assert!(
                            view.epoch >= last,
                            "went back from {last} to {}",
                            view.epoch
                        );
                        last = view.epoch;
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let begun = std::time::Instant::now();
            let mut n = 0;
            while (n < 100_000 || seen.load(Ordering::Relaxed) < 1_000)
                && begun.elapsed().as_secs() < 30
            {
                n += 1;
                published.write(&uniform(n));
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(seen.into_inner() >= 1_000);
    }

    #[test]
    fn a_reader_does_not_wait_for_a_stuck_writer() {
        let published = Published::new(&uniform(5));
        published.sequence.store(1, Ordering::Relaxed);
        assert_eq!(published.read(), None);
        assert_eq!(published.assign(b"k", Timestamp::default(), true), None);
        assert_eq!(published.fallback(), (VersionSlot::new(5), 5));
    }

    proptest! {
        #[test]
        fn packing_loses_nothing(
            below in 0..=assign::END, from in 0..=assign::END, rest in any::<(u64, u64, u64)>(),
            slots in any::<(u16, Option<u16>)>(), forced in any::<bool>(),
        ) {
            let view = View {
                candidate_below: below,
                control_from: from,
                epoch: rest.0,
                deadline: rest.1,
                salt: rest.2,
                baseline: VersionSlot::new(slots.0),
                candidate: slots.1.map(VersionSlot::new),
                forced,
            };
            prop_assert_eq!(View::unpack(view.pack()), view);
        }
    }
}
