//! What is said about a request long after it has ended: thumbs, scores of judges, safety flags.

use crate::router::{Decision, Role};
use llm_rollout::{Epoch, Timestamp};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Remembers which version answered a request, so that what is said about it later counts for the right one.
///
/// Memory is bounded: at most `capacity` requests (about 100 bytes each) are remembered, the oldest are forgotten first. Ids
/// are kept hashed. A label counts if it comes within the maturity window of its request; so many requests count as matured
/// (labelled or not) as have had that time, so that a version whose users answer faster does not look better or worse.
///
/// ```
/// use llm_serve_adapters::recorder::Labels;
/// # use llm_serve_adapters::{DataPlane, router::Decision};
/// use std::time::Duration;
/// # fn with(plane: &DataPlane, decision: Decision) {
///
/// let labels = Labels::new(["thumbs_up", "judge"], 100_000, Duration::from_secs(3_600));
/// // When the request is answered, and when its user says something.
/// labels.remember(b"req-4711", decision, plane.router.now());
/// labels.label(b"req-4711", "thumbs_up", 1.0, plane.router.now()).ok();
/// # }
/// ```
pub struct Labels {
    names: Box<[String]>,
    capacity: usize,
    maturity: Duration,
    hasher: RandomState,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    requests: HashMap<u64, Remembered>,
    /// By age, the oldest first: when it ended, and its hash.
    ages: VecDeque<(Timestamp, u64)>,
    /// What each kind of request has been labelled with.
    sums: BTreeMap<Of, Sums>,
    forgotten: u64,
    unknown: u64,
}

#[derive(Debug, Clone, Copy)]
struct Remembered {
    decision: Decision,
    at: Timestamp,
    /// One bit for each name that it has been labelled with.
    labelled: u64,
}

/// Epoch, role (by its place in [`Role::ALL`]), and whether chance decided.
type Of = (u64, u8, bool);

#[derive(Debug, Clone, Default)]
struct Sums {
    matured: u64,
    by_name: Vec<LabelSum>,
}

/// What requests have been labelled with.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct LabelSum {
    /// Requests labelled.
    pub n: u64,
    /// Sum of the values.
    pub sum: f64,
    /// Sum of their squares.
    pub squares: f64,
}

/// Why a label did not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotLabelled {
    /// There is no label of that name.
    #[error("there is no label of that name: name it when the labels are made")]
    NoSuchLabel,
    /// The value is not a number from 0 to 1.
    #[error("a label's value is a number from 0 to 1")]
    NotAScore,
    /// The request is not remembered: it never was, or has been forgotten, or is another replica's.
    #[error("no such request is remembered here")]
    Unknown,
    /// It came after the maturity window.
    #[error("the request is too old to be labelled")]
    TooLate,
    /// It has that label already: the first one counts.
    #[error("the request has that label already")]
    Again,
}

/// The most names: one bit each.
const NAMES: usize = 64;
/// Epochs whose sums are kept.
const EPOCHS: usize = 8;

impl Labels {
    /// Labels of these names (the first 64), for so many requests at the most, that may come so long after a request has ended.
    pub fn new<I: IntoIterator<Item = S>, S: Into<String>>(
        names: I,
        capacity: usize,
        maturity: Duration,
    ) -> Self {
        Self {
            names: names.into_iter().take(NAMES).map(Into::into).collect(),
            capacity,
            maturity,
            hasher: RandomState::new(),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has ended; the same id again is another request, which takes its place.
    pub fn remember(&self, id: &[u8], decision: Decision, now: Timestamp) {
        let hash = self.hasher.hash_one(id);
        let mut state = self.lock();
        self.mature(&mut state, now);
        while state.ages.len() >= self.capacity.max(1) {
            // It has not had its time: what is said about it later will be unknown.
            let Some((at, oldest)) = state.ages.pop_front() else {
                break;
            };
            if state
                .requests
                .get(&oldest)
                .is_some_and(|held| held.at == at)
            {
                state.requests.remove(&oldest);
                state.forgotten += 1;
            }
        }
        // Whatever clocks say, ages stay in order.
        let at = state
            .ages
            .back()
            .map_or(now, |(newest, _)| now.max(*newest));
        state.ages.push_back((at, hash));
        state.requests.insert(
            hash,
            Remembered {
                decision,
                at,
                labelled: 0,
            },
        );
    }

    /// Something is said about a request: 0 to 1, 1 for yes.
    ///
    /// # Errors
    /// Why it did not count.
    pub fn label(
        &self,
        id: &[u8],
        name: &str,
        value: f64,
        now: Timestamp,
    ) -> Result<(), NotLabelled> {
        let index = self
            .names
            .iter()
            .position(|known| known == name)
            .ok_or(NotLabelled::NoSuchLabel)?;
        if !(0.0..=1.0).contains(&value) {
            return Err(NotLabelled::NotAScore);
        }
        let hash = self.hasher.hash_one(id);
        let mut state = self.lock();
        let Some(request) = state.requests.get_mut(&hash) else {
            state.unknown += 1;
            return Err(NotLabelled::Unknown);
        };
        if now.since(request.at) > self.maturity {
            return Err(NotLabelled::TooLate);
        }
        if request.labelled >> index & 1 == 1 {
            return Err(NotLabelled::Again);
        }
        request.labelled |= 1 << index;
        let of = of(request.decision);
        let sums = self.sums(&mut state, of);
        if let Some(sum) = sums.by_name.get_mut(index) {
            sum.n += 1;
            sum.sum += value;
            sum.squares += value * value;
        }
        Ok(())
    }

    /// Deletes what is remembered of a request: for a user who wants to be forgotten. What it was labelled with stays counted.
    pub fn forget(&self, id: &[u8]) {
        let hash = self.hasher.hash_one(id);
        self.lock().requests.remove(&hash);
    }

    /// What requests of an epoch and role, assigned by chance, have been labelled with; and how many of them have had the time
    /// to be. None for a name that is not known.
    pub fn of(
        &self,
        epoch: Epoch,
        role: Role,
        name: &str,
        now: Timestamp,
    ) -> Option<(LabelSum, u64)> {
        let index = self.names.iter().position(|known| known == name)?;
        let mut state = self.lock();
        self.mature(&mut state, now);
        let sums = state.sums.get(&(epoch.get(), role as u8, true));
        let labelled = sums.and_then(|sums| sums.by_name.get(index)).copied();
        Some((
            labelled.unwrap_or_default(),
            sums.map_or(0, |sums| sums.matured),
        ))
    }

    /// Requests that were forgotten before their time, for lack of room; and labels for requests that were not remembered.
    pub fn lost(&self) -> (u64, u64) {
        let state = self.lock();
        (state.forgotten, state.unknown)
    }

    /// Lets go of requests that have had their time.
    fn mature(&self, state: &mut State, now: Timestamp) {
        while let Some((at, hash)) = state.ages.front().copied() {
            if now.since(at) <= self.maturity {
                return;
            }
            state.ages.pop_front();
            let held = state.requests.get(&hash).filter(|held| held.at == at);
            if let Some(decision) = held.map(|held| held.decision) {
                state.requests.remove(&hash);
                self.sums(state, of(decision)).matured += 1;
            }
        }
    }

    fn sums<'s>(&self, state: &'s mut State, of: Of) -> &'s mut Sums {
        while state.sums.len() >= EPOCHS * 6 && !state.sums.contains_key(&of) {
            state.sums.pop_first();
        }
        state.sums.entry(of).or_insert_with(|| Sums {
            matured: 0,
            by_name: vec![LabelSum::default(); self.names.len()],
        })
    }
}

fn of(decision: Decision) -> Of {
    (
        decision.epoch().get(),
        decision.role() as u8,
        decision.randomised(),
    )
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Labels")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::VersionSlot;
    use crate::router::tests::at;
    use proptest::prelude::*;

    fn decision(role: Role, epoch: u64) -> Decision {
        Decision::new(VersionSlot::new(1), role, epoch, false)
    }

    fn labels(capacity: usize) -> Labels {
        Labels::new(["thumbs", "judge"], capacity, Duration::from_millis(100))
    }

    #[test]
    fn a_label_counts_for_the_version_that_answered() {
        let labels = labels(10);
        labels.remember(b"a", decision(Role::Candidate, 3), at(0));
        labels.remember(b"b", decision(Role::Baseline, 3), at(0));
        labels.remember(
            b"pinned",
            decision(Role::Candidate, 3).evidence_if(false),
            at(0),
        );
        assert_eq!(labels.label(b"a", "judge", 0.5, at(50)), Ok(()));
        assert_eq!(
            labels.label(b"a", "judge", 1.0, at(51)),
            Err(NotLabelled::Again)
        );
        assert_eq!(labels.label(b"a", "thumbs", 1.0, at(51)), Ok(()));
        assert_eq!(labels.label(b"pinned", "judge", 1.0, at(51)), Ok(()));
        assert_eq!(
            labels.label(b"c", "judge", 1.0, at(51)),
            Err(NotLabelled::Unknown)
        );
        assert_eq!(
            labels.label(b"b", "other", 1.0, at(51)),
            Err(NotLabelled::NoSuchLabel)
        );
        for bad in [f64::NAN, -0.1, 1.1, f64::INFINITY] {
            assert_eq!(
                labels.label(b"b", "judge", bad, at(51)),
                Err(NotLabelled::NotAScore)
            );
        }
        let of = |role, name, now| labels.of(Epoch::new(3), role, name, at(now));
        let half = LabelSum {
            n: 1,
            sum: 0.5,
            squares: 0.25,
        };
        assert_eq!(of(Role::Candidate, "judge", 60), Some((half, 0)));
        assert_eq!(
            of(Role::Baseline, "judge", 60),
            Some((LabelSum::default(), 0))
        );
        assert_eq!(of(Role::Candidate, "other", 60), None);
        // Their time is up, labelled or not.
        assert_eq!(
            labels.label(b"b", "judge", 1.0, at(101)),
            Err(NotLabelled::TooLate)
        );
        assert_eq!(of(Role::Candidate, "judge", 101), Some((half, 1)));
        assert_eq!(of(Role::Baseline, "judge", 101).unwrap().1, 1);
        assert_eq!(labels.lost(), (0, 1));
    }

    #[test]
    fn who_wants_to_be_forgotten_is() {
        let labels = labels(10);
        labels.remember(b"a", decision(Role::Candidate, 3), at(0));
        labels.forget(b"a");
        assert_eq!(
            labels.label(b"a", "judge", 1.0, at(1)),
            Err(NotLabelled::Unknown)
        );
        assert!(!format!("{labels:?}").contains("\"a\""));
    }

    proptest! {
        #[test]
        fn memory_is_bounded_and_nothing_counts_twice(
            steps in proptest::collection::vec((0..40_u8, 0..30_u64, any::<bool>(), 0..20_u64), 0..300),
        ) {
            let labels = labels(8);
            let (mut now, mut said, mut remembered) = (0, 0, 0);
            for (id, wait, end, epoch) in steps {
                now += wait;
                if end {
                    labels.remember(&[id], decision(Role::Baseline, epoch), at(now));
                    remembered += 1;
                } else if labels.label(&[id], "judge", 1.0, at(now)).is_ok() {
                    said += 1;
                }
                let state = labels.lock();
                prop_assert!(state.ages.len() <= 8 && state.requests.len() <= 8);
                prop_assert!(state.sums.len() <= EPOCHS * 6);
            }
            let sums = (0..20).filter_map(|epoch| labels.of(Epoch::new(epoch), Role::Baseline, "judge", at(now + 1_000)));
            let (n, matured) = sums.fold((0, 0), |(n, m), (sum, matured)| (n + sum.n, m + matured));
            prop_assert_eq!(n, said);
            prop_assert!(matured + labels.lost().0 <= remembered);
        }
    }
}
