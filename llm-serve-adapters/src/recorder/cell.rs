//! Counters of one epoch and kind of request, written by one thread and read by any.

use super::histogram::{self, BUCKETS};
use crate::router::Decision;
use crate::sync::{AtomicU64, Ordering, SMALL, fence, spin_loop, yield_now};
use std::ops::{Deref, Range};
use std::time::Duration;

pub(crate) const ASSIGNED: usize = 0;
pub(crate) const TOKENS: usize = 1;
/// One for each [`super::OutcomeClass`], and one for cancels before the first token.
pub(crate) const CLASSES: usize = 2;
pub(crate) const CLASS_COUNT: usize = 10;
pub(crate) const FLAGS: usize = CLASSES + CLASS_COUNT;
/// The most flags that a recorder knows.
pub(crate) const FLAG_COUNT: usize = if SMALL { 1 } else { 16 };
/// Times to the first token.
pub(crate) const FIRST: usize = FLAGS + FLAG_COUNT;
/// Times waited in vain for a first token.
pub(crate) const VAIN: usize = FIRST + BUCKETS;
/// Times from start to end.
pub(crate) const DURATION: usize = VAIN + BUCKETS;
/// Tenths of a millisecond per output token, of replies that came in pieces.
pub(crate) const PACE: usize = DURATION + BUCKETS;
/// The longest time between two pieces of a reply.
pub(crate) const GAP: usize = PACE + BUCKETS;
const WORDS: usize = GAP + BUCKETS;

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

    /// At least so many have been assigned.
    pub(crate) fn raise_assigned(&mut self, least: u64) {
        if let Some(assigned) = self.words.get_mut(ASSIGNED) {
            *assigned = least.max(*assigned);
        }
    }

    pub(crate) fn finished(&self) -> u64 {
        self.part(CLASSES..FLAGS).iter().sum()
    }

    pub(crate) fn first_token_over(&self, limit: Duration) -> u64 {
        histogram::over(self.part(FIRST..VAIN), limit)
            + histogram::over(self.part(VAIN..DURATION), limit)
    }

    pub(crate) fn duration_over(&self, limit: Duration) -> u64 {
        histogram::over(self.part(DURATION..PACE), limit)
    }

    /// Requests that ended with a first token.
    pub(crate) fn started(&self) -> u64 {
        self.part(FIRST..VAIN).iter().sum()
    }

    pub(crate) fn first_token(&self, part: f64) -> Option<Duration> {
        histogram::quantile(self.part(FIRST..VAIN), part)
    }

    pub(crate) fn duration(&self, part: f64) -> Option<Duration> {
        histogram::quantile(self.part(DURATION..PACE), part)
    }

    pub(crate) fn per_token(&self, part: f64) -> Option<Duration> {
        histogram::quantile(self.part(PACE..GAP), part).map(|tenths| tenths / 10)
    }

    pub(crate) fn longest_gap(&self, part: f64) -> Option<Duration> {
        histogram::quantile(self.part(GAP..WORDS), part)
    }

    /// Times from start to end, to the first token, and per output token.
    #[cfg(any(feature = "metrics", feature = "opentelemetry"))]
    pub(crate) fn heights(&self) -> [histogram::Heights; 3] {
        let seconds = |range| histogram::heights(self.part(range));
        let tenths = seconds(PACE..GAP);
        let pace = tenths.into_iter().map(|(value, n)| (value / 10.0, n));
        [
            seconds(DURATION..PACE),
            seconds(FIRST..VAIN),
            pace.collect(),
        ]
    }

    /// Adds what has come since an earlier reading.
    pub(crate) fn gain(&mut self, now: &Self, before: Option<&Self>) {
        for (index, word) in self.words.iter_mut().enumerate() {
            let before = before.map_or(0, |before| before.get(index));
            *word = word.wrapping_add(now.get(index).saturating_sub(before));
        }
    }

    /// What is not zero, by its place.
    pub(crate) fn sparse(&self) -> Box<[(u16, u32)]> {
        let words = (0_u16..).zip(&self.words).filter(|(_, word)| **word > 0);
        words
            .map(|(index, word)| (index, u32::try_from(*word).unwrap_or(u32::MAX)))
            .collect()
    }

    /// From what is not zero.
    pub(crate) fn dense(sparse: &[(u16, u32)]) -> Self {
        let mut totals = Self::default();
        for (index, value) in sparse {
            if let Some(word) = totals.words.get_mut(usize::from(*index)) {
                *word = u64::from(*value);
            }
        }
        totals
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

/// Counters of one epoch and kind of request. One thread writes; a sequence lock makes what belongs together whole for readers:
/// an end, and the change to a newer epoch. Beginnings are single words, which stand for themselves.
#[derive(Debug)]
pub(crate) struct Cell {
    /// Odd during a write.
    sequence: AtomicU64,
    /// What it is about: see [`Decision::subject`]; [`NOTHING`] before the first.
    subject: AtomicU64,
    words: [AtomicU64; WORDS],
}

/// A write in progress: see [`Cell::write`]. Not a closure's, since those that are called do not keep values in registers.
pub(crate) struct Write<'c> {
    cell: &'c Cell,
    after: u64,
}

impl Deref for Write<'_> {
    type Target = Cell;

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it is nothing")]
    fn deref(&self) -> &Cell {
        self.cell
    }
}

impl Drop for Write<'_> {
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    fn drop(&mut self) {
        self.cell.sequence.store(self.after, Ordering::Release);
    }
}

/// No decision's subject: its epoch is the last, and its role is not left out.
const NOTHING: u64 = u64::MAX;
/// How often a reader tries before it gives up; it lets others run in between.
const TRIES: usize = if SMALL { 2 } else { 2_000 };

impl Cell {
    pub(crate) fn new() -> Self {
        Self {
            sequence: AtomicU64::new(0),
            subject: AtomicU64::new(NOTHING),
            words: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Whether it is about exactly this.
    #[inline]
    pub(crate) fn is_about(&self, decision: Decision) -> bool {
        self.subject.load(Ordering::Relaxed) == decision.subject()
    }

    /// What it is about; none before the first.
    pub(crate) fn about(&self) -> Option<Decision> {
        let subject = self.subject.load(Ordering::Relaxed);
        (subject != NOTHING).then(|| Decision::from_bits(subject))
    }

    /// Makes it about this, forgetting what it has counted. Only its writer calls it.
    pub(crate) fn recycle(&self, decision: Decision) {
        let cell = self.write();
        cell.subject.store(decision.subject(), Ordering::Relaxed);
        for word in &cell.words {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Requests that have begun, and ended, the end first: what ends in between is still in flight then, never negative.
    pub(crate) fn load(&self) -> (u64, u64) {
        let ended = self.words[CLASSES..FLAGS].iter();
        let ended = ended.map(|word| word.load(Ordering::Acquire)).sum();
        (self.words[ASSIGNED].load(Ordering::Acquire), ended)
    }

    /// One write, whole for readers, until what comes back is dropped. Only its writer calls it.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    pub(crate) fn write(&self) -> Write<'_> {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence
            .store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        Write {
            cell: self,
            after: sequence.wrapping_add(2),
        }
    }

    /// Adds to one word. Only its writer calls it; what belongs together, within [`Self::write`].
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
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
        let cell = self.write();
        for (index, by) in other.words.iter().enumerate().filter(|(_, by)| **by > 0) {
            cell.bump(index, *by);
        }
    }

    /// What it is about (its kind left out) and holds, as of between two writes; none if it has never been used.
    pub(crate) fn read(&self) -> Result<Option<(Decision, Totals)>, Interrupted> {
        let mut totals = Totals::default();
        let about = self.whole(|| {
            // From the end, so that what has ended has been assigned.
            for (to, from) in totals.words.iter_mut().zip(&self.words).rev() {
                *to = from.load(Ordering::Relaxed);
            }
        })?;
        Ok(about.map(|about| (about, totals)))
    }

    /// The same of its beginnings alone.
    pub(crate) fn assigned(&self) -> Result<Option<(Decision, u64)>, Interrupted> {
        let mut count = 0;
        let about = self.whole(|| count = self.words[ASSIGNED].load(Ordering::Relaxed))?;
        Ok(about.map(|about| (about, count)))
    }

    /// Looks until nobody has written meanwhile; what it was about.
    fn whole(&self, mut look: impl FnMut()) -> Result<Option<Decision>, Interrupted> {
        for attempt in 0..TRIES {
            let before = self.sequence.load(Ordering::Acquire);
            let about = self.about();
            look();
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before {
                return Ok(about);
            }
            if attempt % 16 == 15 {
                yield_now();
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
    use crate::router::{Role, VersionSlot};
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    fn about(epoch: u64) -> Decision {
        Decision::new(VersionSlot::new(3), Role::Control, epoch, true)
    }

    #[test]
    fn what_it_is_about_is_told_and_a_new_subject_begins_at_zero() {
        let cell = Cell::new();
        assert!(cell.read().unwrap().is_none());
        for epoch in [0, 4, Decision::LAST_EPOCH] {
            assert!(!cell.is_about(about(epoch)));
            cell.recycle(about(epoch));
            cell.write().bump(ASSIGNED, 2);
            assert!(cell.is_about(about(epoch)));
            let (found, totals) = cell.read().unwrap().unwrap();
            assert_eq!((found.epoch().get(), totals.get(ASSIGNED)), (epoch, 2));
            assert_eq!(
                (found.slot(), found.controlled()),
                (VersionSlot::new(3), true)
            );
        }
    }

    #[test]
    fn a_reader_sees_whole_writes_only() {
        let cell = Cell::new();
        cell.recycle(about(0));
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
                let write = cell.write();
                write.bump(DURATION + 7, 1);
                write.bump(FLAGS + 15, 1);
                write.bump(CLASSES, 1);
                drop(write);
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
