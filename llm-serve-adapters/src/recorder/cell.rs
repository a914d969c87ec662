//! Counters of one epoch and kind of request, written by one thread and read by any.

use super::histogram::{self, BUCKETS};
use crate::router::VersionSlot;
use std::hint::spin_loop;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

pub(crate) const ASSIGNED: usize = 0;
pub(crate) const STARTED: usize = 1;
pub(crate) const TOKENS: usize = 2;
/// One for each [`super::OutcomeClass`], and one for cancels before the first token.
pub(crate) const CLASSES: usize = 3;
pub(crate) const CLASS_COUNT: usize = 10;
pub(crate) const FLAGS: usize = CLASSES + CLASS_COUNT;
/// The most flags that a recorder knows.
pub(crate) const FLAG_COUNT: usize = 16;
/// Times to the first token.
pub(crate) const FIRST: usize = FLAGS + FLAG_COUNT;
/// Times waited in vain for a first token.
pub(crate) const VAIN: usize = FIRST + BUCKETS;
/// Times from start to end.
pub(crate) const DURATION: usize = VAIN + BUCKETS;
const WORDS: usize = DURATION + BUCKETS;

/// What a reader found: plain numbers.
#[derive(Debug, Clone)]
pub(crate) struct Totals {
    words: Vec<u64>,
}

impl Default for Totals {
    fn default() -> Self {
        Self {
            words: vec![0; WORDS],
        }
    }
}

impl Totals {
    pub(crate) fn get(&self, index: usize) -> u64 {
        self.words.get(index).copied().unwrap_or(0)
    }

    fn part(&self, range: Range<usize>) -> &[u64] {
        self.words.get(range).unwrap_or_default()
    }

    pub(crate) fn finished(&self) -> u64 {
        self.part(CLASSES..FLAGS).iter().sum()
    }

    pub(crate) fn first_token_over(&self, limit: Duration) -> u64 {
        histogram::over(self.part(FIRST..VAIN), limit)
            + histogram::over(self.part(VAIN..DURATION), limit)
    }

    pub(crate) fn duration_over(&self, limit: Duration) -> u64 {
        histogram::over(self.part(DURATION..WORDS), limit)
    }

    pub(crate) fn first_token(&self, part: f64) -> Option<Duration> {
        histogram::quantile(self.part(FIRST..VAIN), part)
    }

    pub(crate) fn duration(&self, part: f64) -> Option<Duration> {
        histogram::quantile(self.part(DURATION..WORDS), part)
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (own, more) in self.words.iter_mut().zip(&other.words) {
            *own = own.wrapping_add(*more);
        }
    }
}

/// A reader could not get in between two writes, which a preempted writer explains: trying again helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a recording thread was interrupted in the middle of a write: read again")]
pub(crate) struct Interrupted;

/// What a cell is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) epoch: u64,
    pub(crate) version: VersionSlot,
    /// Whether the split has a control arm.
    pub(crate) controlled: bool,
}

/// Counters of one epoch and kind of request. One thread writes; a sequence lock makes what belongs together whole for readers:
/// an end, and the change to a newer epoch. Beginnings and first tokens are single words, which stand for themselves.
#[derive(Debug)]
pub(crate) struct Cell {
    /// Odd during a write.
    sequence: AtomicU64,
    /// Epoch + 1; zero before the first.
    epoch: AtomicU64,
    /// Version, and whether there is a control arm.
    about: AtomicU64,
    words: [AtomicU64; WORDS],
}

const CONTROLLED: u64 = 1 << 16;
/// How often a reader tries before it gives up; it lets others run in between.
const TRIES: usize = 2_000;

impl Cell {
    pub(crate) fn new() -> Self {
        Self {
            sequence: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            about: AtomicU64::new(0),
            words: [const { AtomicU64::new(0) }; WORDS],
        }
    }

    /// Makes it about this subject, forgetting an older one. `false` if it is already about a newer one. Only its writer calls it.
    #[inline]
    pub(crate) fn claim(&self, subject: Subject) -> bool {
        let (epoch, held) = (
            subject.epoch.saturating_add(1),
            self.epoch.load(Ordering::Relaxed),
        );
        if held < epoch {
            self.recycle(subject, epoch);
        }
        held <= epoch
    }

    #[cold]
    #[inline(never)]
    fn recycle(&self, subject: Subject, epoch: u64) {
        self.write(|cell| {
            let controlled = if subject.controlled { CONTROLLED } else { 0 };
            cell.about.store(
                u64::from(subject.version.index()) | controlled,
                Ordering::Relaxed,
            );
            cell.epoch.store(epoch, Ordering::Relaxed);
            for word in &cell.words {
                word.store(0, Ordering::Relaxed);
            }
        });
    }

    /// One write, whole for readers. Only its writer calls it.
    #[inline]
    pub(crate) fn write(&self, change: impl FnOnce(&Self)) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence
            .store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        change(self);
        self.sequence
            .store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// Adds to one word. Only its writer calls it; what belongs together, within [`Self::write`].
    #[inline]
    pub(crate) fn bump(&self, index: usize, by: u64) {
        if let Some(word) = self.words.get(index) {
            word.store(
                word.load(Ordering::Relaxed).wrapping_add(by),
                Ordering::Relaxed,
            );
        }
    }

    /// Adds everything that another cell holds. Only its writer calls it.
    pub(crate) fn absorb(&self, other: &Totals) {
        self.write(|cell| {
            for (index, by) in other.words.iter().enumerate().filter(|(_, by)| **by > 0) {
                cell.bump(index, *by);
            }
        });
    }

    /// What it is about and holds, as of between two writes; none if it has never been used.
    pub(crate) fn read(&self) -> Result<Option<(Subject, Totals)>, Interrupted> {
        let mut totals = Totals::default();
        for attempt in 0..TRIES {
            let before = self.sequence.load(Ordering::Acquire);
            let epoch = self.epoch.load(Ordering::Relaxed);
            let about = self.about.load(Ordering::Relaxed);
            // From the end, so that what has started has been assigned.
            for (to, from) in totals.words.iter_mut().zip(&self.words).rev() {
                *to = from.load(Ordering::Relaxed);
            }
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "the low 16 bits are the slot"
                )]
                let version = VersionSlot::new(about as u16);
                let subject = |epoch| Subject {
                    epoch,
                    version,
                    controlled: about & CONTROLLED != 0,
                };
                return Ok(epoch.checked_sub(1).map(|epoch| (subject(epoch), totals)));
            }
            if attempt % 16 == 15 {
                std::thread::yield_now();
            } else {
                spin_loop();
            }
        }
        Err(Interrupted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn subject(epoch: u64) -> Subject {
        Subject {
            epoch,
            version: VersionSlot::new(3),
            controlled: true,
        }
    }

    #[test]
    fn a_newer_epoch_begins_at_zero_and_an_older_one_is_refused() {
        let cell = Cell::new();
        assert!(cell.read().unwrap().is_none());
        assert!(cell.claim(subject(4)));
        cell.write(|c| c.bump(ASSIGNED, 2));
        assert!(cell.claim(subject(4)));
        let (found, totals) = cell.read().unwrap().unwrap();
        assert_eq!((found, totals.get(ASSIGNED)), (subject(4), 2));
        assert!(cell.claim(subject(8)));
        assert_eq!(cell.read().unwrap().unwrap().1.get(ASSIGNED), 0);
        assert!(!cell.claim(subject(4)));
    }

    #[test]
    fn a_reader_sees_whole_writes_only() {
        let cell = Cell::new();
        cell.claim(subject(0));
        let (done, read) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let Ok(Some((_, totals))) = cell.read() else {
                        continue;
                    };
                    assert_eq!(totals.get(CLASSES), totals.get(DURATION + 7));
                    assert_eq!(totals.get(CLASSES), totals.get(FLAGS + 15));
                    read.fetch_add(1, Ordering::Relaxed);
                }
            });
            let begun = std::time::Instant::now();
            while read.load(Ordering::Relaxed) < 1_000 && begun.elapsed().as_secs() < 30 {
                cell.write(|c| {
                    c.bump(DURATION + 7, 1);
                    c.bump(FLAGS + 15, 1);
                    c.bump(CLASSES, 1);
                });
                for _ in 0..200 {
                    spin_loop();
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(read.into_inner() > 0);
    }

    #[test]
    fn a_stuck_writer_is_reported() {
        let cell = Cell::new();
        cell.sequence.store(1, Ordering::Relaxed);
        assert_eq!(cell.read().unwrap_err(), Interrupted);
    }
}
