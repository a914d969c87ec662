//! The rollout: data that is decided upon, logged, and folded.

use crate::transition::transition;
use crate::{
    Direction, Effect, Epoch, Fence, Format, Input, Intent, IntentId, Order, Plan, Position,
    Rejected, RolloutId, RouterClock, Seq, Split, Step, Timestamp,
};
use llm_gates::Judgement;
use llm_version_core::VersionId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// Where a rollout is. Exhaustive on purpose: the table in `transition.rs` covers each with each input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(
    clippy::exhaustive_enums,
    reason = "the transition table must cover each"
)]
pub enum Phase {
    /// Submitted, not begun.
    Planned,
    /// The pre-deployment gates are being evaluated; no user sees the candidate.
    PreFlight,
    /// The candidate is being loaded and warmed up.
    Warming,
    /// Waiting for every router to confirm the stage's share.
    Shifting {
        /// Which stage, from 0.
        stage: usize,
    },
    /// The share is confirmed; evidence accumulates.
    Soaking {
        /// Which stage, from 0.
        stage: usize,
    },
    /// As soaking, but a named reason stands against advancing.
    Held {
        /// Which stage, from 0.
        stage: usize,
    },
    /// Waiting for every router to confirm the candidate as the new baseline.
    Promoting,
    /// Promoted, with the old baseline still warm.
    Baking,
    /// Going back.
    RollingBack {
        /// Which part of the recovery procedure.
        part: Recovery,
    },
    /// End: the candidate is the baseline.
    Promoted,
    /// End: the candidate was exposed and is gone.
    RolledBack,
    /// End: the candidate was never exposed.
    Blocked,
    /// End: every stage has passed, and the candidate is gone because the plan asks for no promotion.
    Concluded,
}

/// The recovery procedure, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(
    clippy::exhaustive_enums,
    reason = "the transition table must cover each"
)]
pub enum Recovery {
    /// The baseline was cold and is being loaded; the share stays what it is, and does not rise.
    Warming,
    /// All new traffic to the baseline; waiting for every router to confirm.
    Redirecting,
    /// Requests in flight on the candidate run out.
    Draining,
    /// The candidate is taken out of service.
    Retiring,
}

impl Phase {
    /// Whether it is one of the ends.
    pub const fn is_end(self) -> bool {
        matches!(
            self,
            Self::Promoted | Self::RolledBack | Self::Blocked | Self::Concluded
        )
    }

    /// The stage, where there is one.
    pub const fn stage(self) -> Option<usize> {
        match self {
            Self::Shifting { stage } | Self::Soaking { stage } | Self::Held { stage } => {
                Some(stage)
            }
            _ => None,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Planned => f.write_str("planned"),
            Self::PreFlight => f.write_str("pre-flight"),
            Self::Warming => f.write_str("warming"),
            Self::Shifting { stage } => write!(f, "shifting to stage {stage}"),
            Self::Soaking { stage } => write!(f, "soaking in stage {stage}"),
            Self::Held { stage } => write!(f, "held in stage {stage}"),
            Self::Promoting => f.write_str("promoting"),
            Self::Baking => f.write_str("baking"),
            Self::RollingBack {
                part: Recovery::Warming,
            } => f.write_str("rolling back: warming the baseline"),
            Self::RollingBack {
                part: Recovery::Redirecting,
            } => f.write_str("rolling back: redirecting"),
            Self::RollingBack {
                part: Recovery::Draining,
            } => f.write_str("rolling back: draining"),
            Self::RollingBack {
                part: Recovery::Retiring,
            } => f.write_str("rolling back: retiring"),
            Self::Promoted => f.write_str("promoted"),
            Self::RolledBack => f.write_str("rolled back"),
            Self::Blocked => f.write_str("blocked"),
            Self::Concluded => f.write_str("concluded"),
        }
    }
}

/// Why a rollout did not end in promotion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// A pre-deployment gate failed.
    PreFlight {
        /// The gates that failed.
        gates: Vec<String>,
    },
    /// The evaluation or the loading of the candidate failed.
    NotServable {
        /// What went wrong.
        reason: String,
    },
    /// Evidence of harm reached the bound.
    Gate {
        /// The metric with the most evidence.
        metric: String,
        /// ln of the weighted average of e-values.
        log_evidence: f64,
        /// ln(1 / alpha).
        bound: f64,
    },
    /// A metric stayed beyond a number for so many windows. No statistics stand behind it.
    Threshold {
        /// Name of the threshold.
        name: String,
        /// Name of the metric.
        metric: String,
        /// The last value, and what it was compared with.
        value: (f64, f64),
        /// Breaches that counted.
        breaches: u32,
    },
    /// So many requests of one block were bad that nobody waited for statistics.
    HardLimit {
        /// Name of the metric.
        metric: String,
        /// Bad requests.
        bad: u64,
        /// Of so many.
        of: u64,
    },
    /// A candidate request waited too long for its first token.
    Silent {
        /// How long.
        waiting: Duration,
    },
    /// No verdict came in time.
    NoVerdict,
    /// A stage reached its limit without passing.
    Undecided {
        /// Which.
        stage: usize,
    },
    /// A router does not serve what it was told.
    Drifted {
        /// Which router.
        router: String,
    },
    /// A router has been told to go back, or is ahead of the log.
    Marked {
        /// Which router.
        router: String,
    },
    /// Somebody forced the baseline in the data plane.
    Forced {
        /// Which router.
        router: String,
    },
    /// The share lapsed too often or for too long.
    Lapsed {
        /// How often by now.
        times: u32,
    },
    /// A phase took longer than the plan allows.
    Deadline {
        /// Which.
        phase: Phase,
    },
    /// An alarm from outside the gates.
    Alarm {
        /// Its name.
        name: String,
        /// What it said.
        detail: String,
    },
    /// It makes way for another rollout.
    Superseded {
        /// Which.
        by: RolloutId,
    },
    /// Every stage has passed, and the plan asks for no promotion.
    Concluded,
    /// Somebody aborted it.
    Operator {
        /// Who.
        by: String,
        /// Why.
        why: String,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PreFlight { gates } => {
                write!(f, "pre-deployment gates failed: {}", gates.join(", "))
            }
            Self::NotServable { reason } => {
                write!(f, "the candidate could not be served: {reason}")
            }
            Self::Gate {
                metric,
                log_evidence,
                bound,
            } => {
                write!(
                    f,
                    "evidence of harm in {metric:?}: ln E = {log_evidence:.2}, bound {bound:.2}"
                )
            }
            Self::Threshold {
                name,
                metric,
                value: (value, limit),
                breaches,
            } => {
                write!(
                    f,
                    "threshold {name:?}: {metric:?} was {value:.4}, beyond {limit:.4}, in {breaches} windows"
                )
            }
            Self::HardLimit { metric, bad, of } => {
                write!(
                    f,
                    "hard limit on {metric:?}: {bad} of {of} requests were bad"
                )
            }
            Self::Silent { waiting } => {
                write!(
                    f,
                    "a candidate request has waited {:.1} s for its first token",
                    waiting.as_secs_f64()
                )
            }
            Self::NoVerdict => f.write_str("no verdict came in time"),
            Self::Undecided { stage } => {
                write!(f, "stage {stage} reached its limit without passing")
            }
            Self::Drifted { router } => {
                write!(f, "router {router} does not serve what it was told")
            }
            Self::Marked { router } => write!(
                f,
                "router {router} has been told to go back, or is ahead of the log"
            ),
            Self::Forced { router } => write!(f, "the baseline was forced on router {router}"),
            Self::Lapsed { times } => write!(
                f,
                "the share lapsed (lapse {times}), too often or for too long"
            ),
            Self::Deadline { phase } => write!(f, "{phase} took longer than the plan allows"),
            Self::Alarm { name, detail } => write!(f, "alarm {name:?}: {detail}"),
            Self::Superseded { by } => write!(f, "superseded by rollout {by}"),
            Self::Concluded => {
                f.write_str("every stage has passed; the plan asks for no promotion")
            }
            Self::Operator { by, why } => write!(f, "aborted by {by}: {why}"),
        }
    }
}

/// Who said something, why and when: a hold (a named reason not to advance), or an approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct Said {
    /// Who.
    pub by: String,
    /// Why.
    pub why: String,
    /// When.
    pub at: Timestamp,
}

/// Whether the candidate is loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "there is nothing else")]
pub enum Load {
    /// Nobody has asked for it.
    #[default]
    None,
    /// The backend has been told to load it.
    Asked,
    /// It is loaded and warmed up.
    Ready,
}

/// What changes as a rollout goes on; each step carries it whole, so that folding a step in needs nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct State {
    /// Where it is.
    pub phase: Phase,
    /// Since when.
    pub since: Timestamp,
    /// When the current stage began to shift; time held is not counted.
    pub stage_since: Timestamp,
    /// What the routers are to serve.
    pub split: Split,
    /// Where that was decided, and in which direction it leads; none before the first share.
    pub routed: Option<(Seq, Direction)>,
    /// Time in this stage for which there is a window of evidence.
    pub dwell: Duration,
    /// When the last verdict of this epoch came, or the epoch was confirmed.
    pub heard: Timestamp,
    /// Stages that somebody has approved.
    pub approvals: BTreeMap<usize, Said>,
    /// Named reasons not to advance.
    pub holds: BTreeMap<String, Said>,
    /// Holds of gates that somebody has cleared in this stage: they are not placed again.
    pub waived: BTreeSet<String>,
    /// Gates and thresholds that only warn, or only in a dry run, of which people have been told.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub warned: BTreeSet<String>,
    /// No advance until then.
    pub frozen_until: Option<Timestamp>,
    /// How often the share has lapsed.
    pub lapses: u32,
    /// Whether the candidate is loaded.
    pub load: Load,
    /// Whether the baseline has been scaled down.
    pub baseline_cold: bool,
    /// Whether the baseline cannot serve, as its backend says.
    pub baseline_down: bool,
    /// Why it would go back if the baseline could serve.
    pub stranded: Option<Cause>,
    /// The rollout that it makes way for when baking can end.
    pub superseded_by: Option<RolloutId>,
    /// Whether people have been told that this phase takes long.
    pub paged: bool,
    /// Requests that the candidate was given, as last heard.
    pub exposed: u64,
    /// Why it is going back or did not begin.
    pub cause: Option<Cause>,
}

/// A rollout: what was submitted, and the steps folded so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    format: Format,
    id: RolloutId,
    baseline: VersionId,
    candidate: VersionId,
    plan: Plan,
    salt: u64,
    last: Option<(Seq, Timestamp)>,
    state: State,
    judgement: Option<Judgement>,
    pending: Vec<Intent>,
}

/// A step that does not belong to this rollout's log at this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("step {found} cannot follow step {last}: the log is out of order or holds an entry twice")]
pub struct Replay {
    last: Seq,
    found: Seq,
}

impl Rollout {
    /// A rollout that is submitted and not begun. The epoch is the endpoint's, so that epochs rise over all its rollouts;
    /// the salt is fixed from here on.
    pub fn new(
        id: RolloutId,
        baseline: VersionId,
        candidate: VersionId,
        plan: Plan,
        salt: u64,
        epoch: Epoch,
        now: Timestamp,
    ) -> Self {
        let state = State {
            phase: Phase::Planned,
            since: now,
            stage_since: now,
            split: Split::steady(Some(id.clone()), baseline.clone(), epoch),
            routed: None,
            dwell: Duration::ZERO,
            heard: now,
            approvals: BTreeMap::new(),
            holds: BTreeMap::new(),
            waived: BTreeSet::new(),
            warned: BTreeSet::new(),
            frozen_until: None,
            lapses: 0,
            load: Load::None,
            baseline_cold: false,
            baseline_down: false,
            stranded: None,
            superseded_by: None,
            paged: false,
            exposed: 0,
            cause: None,
        };
        Self {
            format: Format::CURRENT,
            id,
            baseline,
            candidate,
            plan,
            salt,
            last: None,
            state,
            judgement: None,
            pending: Vec::new(),
        }
    }

    /// What to do about an input: a step to log and apply, or nothing.
    ///
    /// Pure: the same rollout, time and input give the same step. `seq` is where the step would stand in the endpoint's log.
    ///
    /// # Errors
    /// The input does not fit the phase; nothing has changed.
    pub fn decide(&self, seq: Seq, now: Timestamp, input: Input) -> Result<Option<Step>, Rejected> {
        let Some(draft) = transition(self, seq, now, &input)? else {
            return Ok(None);
        };
        let intents = draft
            .effects
            .into_iter()
            .zip(0..)
            .map(|(effect, index)| Intent {
                id: IntentId { seq, index },
                effect,
            })
            .collect();
        Ok(Some(Step {
            seq,
            at: now,
            input,
            state: draft.state,
            done: draft.done,
            intents,
        }))
    }

    /// Folds a logged step in. Consults neither plan, gates nor time: an old log replays for ever.
    ///
    /// # Errors
    /// The step is not later than the last one; nothing has changed.
    pub fn apply(&mut self, step: &Step) -> Result<(), Replay> {
        self.follows(step)?;
        self.state = step.state.clone();
        if let Input::Judged(look) = &step.input {
            self.judgement = Some(look.judgement.clone());
        }
        self.fold(step);
        Ok(())
    }

    /// The same with a step that nobody keeps.
    ///
    /// # Errors
    /// As [`Self::apply`].
    #[cfg(feature = "policy-tests")]
    pub(crate) fn absorb(&mut self, mut step: Step) -> Result<(), Replay> {
        self.follows(&step)?;
        self.fold(&step);
        self.state = step.state;
        if let Input::Judged(look) = &mut step.input {
            let look = std::mem::replace(&mut look.judgement, Judgement::ungated(0, 0, 0));
            self.judgement = Some(look);
        }
        Ok(())
    }

    /// What a step changes besides the state that it carries.
    fn fold(&mut self, step: &Step) {
        self.last = Some((step.seq, step.at));
        self.pending
            .retain(|intent| !step.done.contains(&intent.id));
        if step
            .intents
            .iter()
            .any(|i| matches!(i.effect, Effect::Route { .. }))
        {
            self.pending
                .retain(|intent| !matches!(intent.effect, Effect::Route { .. }));
        }
        self.pending.extend(step.intents.iter().cloned());
    }

    /// Whether a step may be folded in next.
    ///
    /// # Errors
    /// It is not later than the last one.
    pub fn follows(&self, step: &Step) -> Result<(), Replay> {
        match self.last {
            Some((last, _)) if step.seq <= last => Err(Replay {
                last,
                found: step.seq,
            }),
            _ => Ok(()),
        }
    }

    /// Intents that are not over yet, oldest first.
    pub fn pending(&self) -> &[Intent] {
        &self.pending
    }

    /// Whether it has ended and the routers have confirmed it: the next rollout may begin.
    pub fn is_settled(&self) -> bool {
        self.state.phase.is_end()
            && !self
                .pending
                .iter()
                .any(|i| matches!(i.effect, Effect::Route { .. }))
    }

    /// What to tell a router with this clock, and what it must then read back.
    pub fn order(&self, fence: Fence, clock: RouterClock) -> Option<Order> {
        let (seq, direction) = self.state.routed?;
        Some(Order {
            at: Position { fence, seq },
            direction,
            split: self.state.split.clone(),
            clock,
        })
    }

    /// Whether its order may still give the candidate more than a router serves now: from the decision to go back on, it may not.
    pub const fn may_raise(&self) -> bool {
        !matches!(self.state.phase, Phase::RollingBack { .. })
    }

    /// When something becomes due without any further input: a deadline, or the end of baking.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        crate::transition::next_deadline(self)
    }

    /// Its id.
    pub fn id(&self) -> &RolloutId {
        &self.id
    }

    /// The version in production when it was submitted.
    pub fn baseline(&self) -> &VersionId {
        &self.baseline
    }

    /// The version being rolled out.
    pub fn candidate(&self) -> &VersionId {
        &self.candidate
    }

    /// Its plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Decides, with the key, who is assigned to what; fixed.
    pub fn salt(&self) -> u64 {
        self.salt
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.state.phase
    }

    /// Everything that the steps so far have changed.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The last judgement that was logged.
    pub fn judgement(&self) -> Option<&Judgement> {
        self.judgement.as_ref()
    }

    /// The position and time of the last step.
    pub fn last(&self) -> Option<(Seq, Timestamp)> {
        self.last
    }
}
