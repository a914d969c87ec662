//! What request threads read: a few words behind a sequence lock, in safe Rust.

use super::assign;
use super::versions::VersionSlot;
use llm_rollout::{Split, Timestamp};
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
    /// First moment at which the candidate serves nothing any more: zero if it has lapsed, the largest number for never.
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
        let deadline = if lapsed {
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
        let candidate = self
            .candidate
            .map_or(0, |slot| HAS_CANDIDATE | slot_bits(slot));
        let flags = if self.forced { FORCED } else { 0 };
        [
            self.candidate_below | candidate | flags,
            self.control_from | slot_bits(self.baseline),
            self.epoch,
            self.deadline,
            self.salt,
        ]
    }

    #[inline]
    fn unpack([low, high, epoch, deadline, salt]: [u64; WORDS]) -> Self {
        Self {
            candidate_below: low & PLACES,
            control_from: high & PLACES,
            epoch,
            deadline,
            salt,
            baseline: slot_of(high),
            candidate: (low & HAS_CANDIDATE != 0).then(|| slot_of(low)),
            forced: low & FORCED != 0,
        }
    }
}

const WORDS: usize = 5;
const PLACES: u64 = (1 << 33) - 1;
const SLOT_SHIFT: u32 = 33;
const HAS_CANDIDATE: u64 = 1 << 49;
const FORCED: u64 = 1 << 50;

fn slot_bits(slot: VersionSlot) -> u64 {
    u64::from(slot.index()) << SLOT_SHIFT
}

#[inline]
fn slot_of(word: u64) -> VersionSlot {
    VersionSlot::new((word >> SLOT_SHIFT & 0xffff) as u16)
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
            baseline: AtomicU64::new(slot_bits(view.baseline)),
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
            .store(slot_bits(view.baseline), Ordering::Release);
    }

    /// The words of one write, or none if it was being replaced all the time.
    #[inline]
    pub(crate) fn read(&self) -> Option<View> {
        for _ in 0..TRIES {
            let before = self.sequence.load(Ordering::Acquire);
            let words = [
                self.words[0].load(Ordering::Relaxed),
                self.words[1].load(Ordering::Relaxed),
                self.words[2].load(Ordering::Relaxed),
                self.words[3].load(Ordering::Relaxed),
                self.words[4].load(Ordering::Relaxed),
            ];
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
            slot_of(self.baseline.load(Ordering::Acquire)),
            self.words[2].load(Ordering::Relaxed),
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
