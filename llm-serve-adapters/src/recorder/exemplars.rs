//! The worst requests of late, for people who want to see what a figure means.

use super::ticket::OutcomeClass;
use crate::router::Decision;
use llm_rollout::Timestamp;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// One of the worst requests.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Exemplar {
    /// What was decided about it.
    pub decision: Decision,
    /// How it ended.
    pub class: OutcomeClass,
    /// How long it took.
    pub took: Duration,
    /// When it ended.
    pub at: Timestamp,
    /// What the host says about it, redacted: a trace id, as a rule.
    pub note: String,
}

type Redact = Box<dyn Fn(&str) -> String + Send + Sync>;

/// Keeps the worst requests: those that failed by the version's fault before those that did not, then those that took longest.
///
/// Memory is bounded: so many requests, each note cut at 256 bytes. Notes go through a redactor first, which by default leaves
/// nothing of them. A request that is not among the worst costs one comparison.
pub struct Exemplars {
    most: usize,
    live: Duration,
    redact: Redact,
    /// How bad a request must be to be looked at.
    bar: AtomicU64,
    kept: Mutex<Vec<Exemplar>>,
}

/// The longest note.
const NOTE: usize = 256;
/// Faults come before anything that took less than half the life of the universe.
const FAULT: u64 = 1 << 63;

impl Exemplars {
    /// At most so many, for so long.
    pub fn new(most: usize, live: Duration) -> Self {
        Self {
            most,
            live,
            redact: Box::new(|_| String::new()),
            bar: AtomicU64::new(0),
            kept: Mutex::default(),
        }
    }

    /// Keeps of notes what this leaves of them.
    #[must_use]
    pub fn redact(mut self, redact: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        self.redact = Box::new(redact);
        self
    }

    /// A request has ended. `note` is asked for only if it is among the worst.
    pub fn offer(
        &self,
        decision: Decision,
        class: OutcomeClass,
        took: Duration,
        at: Timestamp,
        note: impl FnOnce() -> String,
    ) {
        if badness(class, took) < self.bar.load(Ordering::Relaxed) {
            return;
        }
        let mut note = (self.redact)(&note());
        let end = (0..=NOTE.min(note.len()))
            .rev()
            .find(|end| note.is_char_boundary(*end));
        note.truncate(end.unwrap_or(0));
        let new = Exemplar {
            decision,
            class,
            took,
            at,
            note,
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|old| at.since(old.at) <= self.live);
        let bad = |e: &Exemplar| badness(e.class, e.took);
        let place = kept.partition_point(|old| bad(old) >= bad(&new));
        kept.insert(place, new);
        kept.truncate(self.most);
        // Until there are enough, anything will do.
        let bar = kept
            .last()
            .filter(|_| kept.len() >= self.most)
            .map_or(0, bad);
        self.bar.store(bar, Ordering::Relaxed);
    }

    /// The worst first; none that is older than its time.
    pub fn worst(&self, now: Timestamp) -> Vec<Exemplar> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let before = kept.len();
        kept.retain(|old| now.since(old.at) <= self.live);
        if kept.len() < before {
            self.bar.store(0, Ordering::Relaxed);
        }
        kept.clone()
    }
}

fn badness(class: OutcomeClass, took: Duration) -> u64 {
    let millis = u64::try_from(took.as_millis())
        .unwrap_or(u64::MAX)
        .min(FAULT - 1);
    if class.is_fault() {
        millis | FAULT
    } else {
        millis
    }
}

impl fmt::Debug for Exemplars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exemplars")
            .field("most", &self.most)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::tests::at;
    use crate::router::{Role, VersionSlot};
    use proptest::prelude::*;

    fn decision() -> Decision {
        Decision::new(VersionSlot::new(1), Role::Candidate, 1, false)
    }

    proptest! {
        #[test]
        fn the_worst_are_kept(requests in proptest::collection::vec((any::<bool>(), 0..1_000_u64), 0..60), most in 0..8_usize) {
            let exemplars = Exemplars::new(most, Duration::from_secs(60)).redact(str::to_owned);
            let mut all = Vec::new();
            for (fault, ms) in requests {
                let class = if fault { OutcomeClass::Timeout } else { OutcomeClass::Ok };
                exemplars.offer(decision(), class, Duration::from_millis(ms), at(0), || ms.to_string());
                all.push((fault, ms));
            }
            all.sort_unstable_by(|a, b| b.cmp(a));
            all.truncate(most);
            let found = exemplars.worst(at(0));
            let found = found.iter().map(|e| (e.class.is_fault(), e.note.parse().unwrap()));
            prop_assert_eq!(found.collect::<Vec<(bool, u64)>>(), all);
        }
    }

    #[test]
    fn notes_are_redacted_cut_and_expire() {
        let exemplars = Exemplars::new(2, Duration::from_millis(100));
        let offer = |exemplars: &Exemplars, ms, now| {
            exemplars.offer(
                decision(),
                OutcomeClass::Ok,
                Duration::from_millis(ms),
                at(now),
                || "é".repeat(200),
            );
        };
        offer(&exemplars, 5, 0);
        assert_eq!(
            exemplars.worst(at(0))[0].note,
            "",
            "nothing unless a redactor leaves it"
        );
        let open = Exemplars::new(2, Duration::from_millis(100)).redact(str::to_owned);
        offer(&open, 50, 0);
        offer(&open, 60, 0);
        assert_eq!(open.worst(at(0))[0].note.len(), NOTE);
        // When the worst have gone, lesser ones count again.
        assert!(open.worst(at(101)).is_empty());
        offer(&open, 1, 101);
        assert_eq!(open.worst(at(101)).len(), 1);
    }
}
