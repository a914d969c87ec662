//! Candidate requests without a first token: a hung candidate finishes none, and must be visible all the same.

use crate::router::VersionSlot;
use crate::sync::{AtomicU64, Ordering, SMALL};
use llm_rollout::Timestamp;
use std::fmt;
use std::time::Duration;

/// Requests that can be waited for at once.
const SLOTS: usize = if SMALL { 2 } else { 4_096 };
/// How many places a request tries: bounds the time of a begin.
const PROBES: usize = 32;

/// When each waiting candidate request began. Bounded: with 4 096 requests waiting (or 32 neighbouring places taken) a further
/// one is not followed, only counted; those that are followed have then been waiting longer.
pub(crate) struct Waiting {
    /// Zero: free. Else 1, version and start, from the low end: 1 bit, 16 bits, 47 bits.
    places: Box<[AtomicU64]>,
    untracked: AtomicU64,
}

/// A place in the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place(u16);

impl Waiting {
    pub(crate) fn new() -> Self {
        Self {
            places: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            untracked: AtomicU64::new(0),
        }
    }

    /// Takes a place, beginning the search at the caller's own.
    #[inline(never)]
    pub(crate) fn enter(&self, from: usize, version: VersionSlot, now: Timestamp) -> Option<Place> {
        let word = 1 | u64::from(version.index()) << 1 | now.as_millis() << 17;
        for index in (from..from.saturating_add(PROBES)).map(|i| i % SLOTS) {
            let place = self.places.get(index)?;
            if place.load(Ordering::Relaxed) == 0
                && place
                    .compare_exchange(0, word, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
            {
                return u16::try_from(index).ok().map(Place);
            }
        }
        self.untracked.fetch_add(1, Ordering::Relaxed);
        None
    }

    pub(crate) fn leave(&self, place: Place) {
        if let Some(place) = self.places.get(usize::from(place.0)) {
            place.store(0, Ordering::Relaxed);
        }
    }

    /// For how long the oldest request of this version has been waiting; zero if none is.
    pub(crate) fn oldest(&self, version: VersionSlot, now: Timestamp) -> Duration {
        let begun = |word: u64| Timestamp::from_millis(word >> 17);
        self.places
            .iter()
            .map(|place| place.load(Ordering::Relaxed))
            .filter(|word| word & 1 == 1 && word >> 1 & 0xffff == u64::from(version.index()))
            .map(|word| now.since(begun(word)))
            .max()
            .unwrap_or_default()
    }

    pub(crate) fn untracked(&self) -> u64 {
        self.untracked.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_found_and_a_full_table_keeps_it() {
        let (waiting, version) = (Waiting::new(), VersionSlot::new(7));
        let at = Timestamp::from_millis;
        let start = 1_900_000_000_000;
        let first = waiting.enter(5, version, at(start)).unwrap();
        let places = (0..6_000_usize)
            .filter_map(|n| waiting.enter(n, version, at(start + 1 + n as u64)))
            .collect::<Vec<_>>();
        assert!(places.len() < SLOTS && waiting.untracked() > 0);
        assert_eq!(
            waiting.oldest(version, at(start + 10_000)),
            Duration::from_secs(10)
        );
        assert_eq!(
            waiting.oldest(VersionSlot::new(8), at(start + 10_000)),
            Duration::ZERO
        );
        waiting.leave(first);
        assert_eq!(
            waiting.oldest(version, at(start + 10_000)),
            Duration::from_millis(9_999)
        );
        for place in places {
            waiting.leave(place);
        }
        assert_eq!(waiting.oldest(version, at(start + 10_000)), Duration::ZERO);
    }
}
