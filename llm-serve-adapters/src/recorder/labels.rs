//! What is said about a request long after it has ended: thumbs, scores of judges, safety flags.

use crate::router::{Decision, Role};
use llm_gates::Counts;
use llm_gates::anytime::Scores;
use llm_rollout::{Epoch, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Remembers which version answered a request, so that what is said about it later counts for the right one.
///
/// A request counts once its maturity window is over, with what it has been labelled with by then, in both arms alike: a version
/// whose users answer faster does not look better or worse, and a label that comes late in both arms does no harm. An endpoint that is
/// given the labels ([`crate::EndpointBuilder::labels`]) judges a plan's metrics `{ label = "name" }` by them, and by
/// `{ unlabelled = "name" }` how many requests were not labelled.
///
/// Memory is bounded: at most `capacity` requests (about 120 bytes each, and 4 for each label) are remembered, the oldest are forgotten
/// first. Ids are kept hashed.
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

#[derive(Debug, Clone)]
struct Remembered {
    decision: Decision,
    at: Timestamp,
    /// What it has been labelled with: the name's place, and the value in parts of [`WHOLE`].
    labels: Vec<(u8, u16)>,
}

/// Epoch, role (by its place in [`Role::ALL`]), and whether chance decided.
type Of = (u64, u8, bool);

#[derive(Debug, Clone, Default)]
struct Sums {
    matured: u64,
    /// Whether there is a control arm, with which the candidate is compared.
    controlled: bool,
    by_name: Vec<Whole>,
}

/// Values are whole numbers of this part of 1: sums of them are exact, whatever the order.
const WHOLE: u64 = 10_000;

/// Labels, in parts of [`WHOLE`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Whole {
    n: u64,
    sum: u64,
    squares: u64,
}

impl Whole {
    fn add(&mut self, value: u16) {
        let value = u64::from(value);
        self.n += 1;
        self.sum += value;
        self.squares += value * value;
    }
}

/// Requests of one arm that have had the time to be labelled, and their labels of one name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cohort {
    matured: u64,
    labels: Whole,
}

impl Cohort {
    fn since(self, before: Self) -> Option<Self> {
        let labels = Whole {
            n: self.labels.n.checked_sub(before.labels.n)?,
            sum: self.labels.sum.checked_sub(before.labels.sum)?,
            squares: self.labels.squares.checked_sub(before.labels.squares)?,
        };
        Some(Self {
            matured: self.matured.checked_sub(before.matured)?,
            labels,
        })
    }

    /// What they were labelled with.
    pub(crate) fn scores(self) -> Scores {
        let LabelSum { n, sum, squares } = self.labels.into();
        Scores {
            n,
            sum,
            square: squares,
        }
    }

    /// Requests, and those that were not labelled.
    pub(crate) fn unlabelled(self) -> Counts {
        Counts::new(self.matured, self.matured.saturating_sub(self.labels.n))
    }
}

/// The cohorts of both arms, as counted since an epoch began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cohorts {
    candidate: Cohort,
    baseline: Cohort,
    control: Cohort,
    controlled: bool,
}

impl Cohorts {
    /// What has come since; none where it does not go on from there.
    pub(crate) fn since(&self, before: &Self) -> Option<Self> {
        Some(Self {
            candidate: self.candidate.since(before.candidate)?,
            baseline: self.baseline.since(before.baseline)?,
            control: self.control.since(before.control)?,
            controlled: self.controlled,
        })
    }

    /// The candidate, and what it is compared with.
    pub(crate) const fn arms(&self) -> (Cohort, Cohort) {
        let against = if self.controlled {
            self.control
        } else {
            self.baseline
        };
        (self.candidate, against)
    }
}

/// What requests have been labelled with, in steps of 1/10,000.
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

impl From<Whole> for LabelSum {
    fn from(whole: Whole) -> Self {
        let one = WHOLE as f64;
        Self {
            n: whole.n,
            sum: whole.sum as f64 / one,
            squares: whole.squares as f64 / (one * one),
        }
    }
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

/// The most names.
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
                labels: Vec::new(),
            },
        );
    }

    /// Something is said about a request: 0 to 1, 1 for yes. It counts when the request matures.
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
        let index = u8::try_from(index).map_err(|_| NotLabelled::NoSuchLabel)?;
        if request.labels.iter().any(|(known, _)| *known == index) {
            return Err(NotLabelled::Again);
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and 10,000"
        )]
        let value = (value * WHOLE as f64).round() as u16;
        request.labels.push((index, value));
        Ok(())
    }

    /// Deletes what is remembered of a request, labels and all: for a user who wants to be forgotten. What has matured stays counted.
    pub fn forget(&self, id: &[u8]) {
        let hash = self.hasher.hash_one(id);
        self.lock().requests.remove(&hash);
    }

    /// Whether there is a label of this name.
    pub fn knows(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    /// Of the requests of an epoch and role, assigned by chance, that have had the time to be labelled: what they were labelled with,
    /// and how many they are. None for a name that is not known.
    pub fn of(
        &self,
        epoch: Epoch,
        role: Role,
        name: &str,
        now: Timestamp,
    ) -> Option<(LabelSum, u64)> {
        let cohorts = self.cohorts(epoch, name, now)?;
        let cohort = match role {
            Role::Baseline => cohorts.baseline,
            Role::Candidate => cohorts.candidate,
            Role::Control => cohorts.control,
        };
        Some((cohort.labels.into(), cohort.matured))
    }

    /// The same of every role.
    pub(crate) fn cohorts(&self, epoch: Epoch, name: &str, now: Timestamp) -> Option<Cohorts> {
        let index = self.names.iter().position(|known| known == name)?;
        let mut state = self.lock();
        self.mature(&mut state, now);
        let of = |role: Role| state.sums.get(&(epoch.get(), role as u8, true));
        let cohort = |role| {
            of(role).map_or_else(Cohort::default, |sums| Cohort {
                matured: sums.matured,
                labels: sums.by_name.get(index).copied().unwrap_or_default(),
            })
        };
        Some(Cohorts {
            candidate: cohort(Role::Candidate),
            baseline: cohort(Role::Baseline),
            control: cohort(Role::Control),
            controlled: Role::ALL
                .into_iter()
                .any(|role| of(role).is_some_and(|sums| sums.controlled)),
        })
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
            if state.requests.get(&hash).is_none_or(|held| held.at != at) {
                continue;
            }
            if let Some(held) = state.requests.remove(&hash) {
                let sums = self.sums(state, of(held.decision));
                sums.matured += 1;
                sums.controlled |= held.decision.controlled();
                for (index, value) in held.labels {
                    if let Some(sum) = sums.by_name.get_mut(usize::from(index)) {
                        sum.add(value);
                    }
                }
            }
        }
    }

    fn sums<'s>(&self, state: &'s mut State, of: Of) -> &'s mut Sums {
        while state.sums.len() >= EPOCHS * 6 && !state.sums.contains_key(&of) {
            state.sums.pop_first();
        }
        state.sums.entry(of).or_insert_with(|| Sums {
            matured: 0,
            controlled: false,
            by_name: vec![Whole::default(); self.names.len()],
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
        let nothing = Some((LabelSum::default(), 0));
        assert_eq!(of(Role::Candidate, "judge", 60), nothing, "not mature yet");
        assert_eq!(of(Role::Baseline, "judge", 60), nothing);
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

    #[test]
    fn a_label_counts_when_its_request_matures_whenever_it_came() {
        let (early, late) = (labels(1_000), labels(1_000));
        let mut before = [Cohorts::default(); 2];
        for t in 0..50_u64 {
            for role in Role::ALL {
                let id = [role as u64, t].map(u64::to_le_bytes).concat();
                for labels in [&early, &late] {
                    labels.remember(&id, decision(role, 3), at(10 * t));
                }
                assert_eq!(early.label(&id, "judge", 0.5, at(10 * t)), Ok(()));
            }
            // The other's come nine requests later.
            if let Some(then) = t.checked_sub(9) {
                for role in Role::ALL {
                    let id = [role as u64, then].map(u64::to_le_bytes).concat();
                    assert_eq!(late.label(&id, "judge", 0.5, at(10 * t)), Ok(()));
                }
            }
            let now =
                [&early, &late].map(|l| l.cohorts(Epoch::new(3), "judge", at(10 * t)).unwrap());
            let gained = [0, 1].map(|i| now[i].since(&before[i]).unwrap());
            assert_eq!(gained[0], gained[1], "the same windows, whatever the delay");
            let (candidate, baseline) = gained[0].arms();
            assert_eq!(candidate, baseline);
            assert_eq!(candidate.unlabelled().k, 0);
            before = now;
        }
        let (candidate, _) = before[0].arms();
        assert_eq!((candidate.scores().n, candidate.unlabelled().n), (39, 39));
        assert!((candidate.scores().sum - 19.5).abs() < 1e-12);
    }

    #[test]
    fn requests_that_nobody_labelled_are_counted_and_the_control_arm_is_what_is_compared() {
        let labels = labels(1_000);
        for n in 0..10_u8 {
            let role = if n < 4 {
                Role::Candidate
            } else {
                Role::Control
            };
            let decision = Decision::new(VersionSlot::new(1), role, 3, true);
            labels.remember(&[n], decision, at(0));
            if n % 2 == 0 {
                labels.label(&[n], "thumbs", 1.0, at(1)).unwrap();
            }
        }
        let cohorts = labels.cohorts(Epoch::new(3), "thumbs", at(200)).unwrap();
        let (candidate, baseline) = cohorts.arms();
        assert_eq!(candidate.unlabelled(), Counts::new(4, 2));
        assert_eq!(baseline.unlabelled(), Counts::new(6, 3));
        assert_eq!(labels.cohorts(Epoch::new(3), "other", at(200)), None);
        assert!(
            cohorts
                .since(&Cohorts {
                    candidate: Cohort {
                        matured: 9,
                        ..candidate
                    },
                    ..cohorts
                })
                .is_none()
        );
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
            prop_assert!(n <= said && n <= matured);
            prop_assert!(matured + labels.lost().0 <= remembered);
        }
    }
}
