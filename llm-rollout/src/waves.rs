//! Waves: one change over several endpoints (regions, cells, tenants), in order, under a limit on how much is in flight.
//!
//! A [`Waves`] is the parent record of many rollouts, and works as a rollout does: [`Waves::decide`] says what an input leads to, as
//! a [`Step`] to log, [`Waves::apply`] folds a logged step in. Each member is a rollout of its own with its own plan; the parent
//! submits, aborts and returns members, and hears how they end.
//!
//! ```
//! use llm_rollout::{Plan, Seq, Timestamp, waves::{Effect, Input, Member, Schedule, Spec, Wave, Waves}};
//! let plan = Plan::from_toml("alpha = 0.05\nungated = true\n[[stages]]\nserve = 100.0\ndwell = \"1h\"")?;
//! let candidate: llm_version_core::VersionId = format!("chat/v2.0.0-{}", "02".repeat(32)).parse()?;
//! let member = |endpoint: &str| Ok::<_, Box<dyn std::error::Error>>(Member {
//!     endpoint: endpoint.parse()?,
//!     rollout: "chat-v2".parse()?,
//!     candidate: candidate.clone(),
//!     plan: plan.clone(),
//!     traffic: 1.0,
//! });
//! let schedule = Schedule::try_from(Spec::new(vec![
//!     Wave::of([member("chat-eu")?]),
//!     Wave::of([member("chat-us")?, member("chat-ap")?]),
//! ]))?;
//! let mut waves = Waves::new("chat-v2".parse()?, schedule, Timestamp::default());
//! let step = waves.decide(Seq::new(0), Timestamp::default(), Input::Start)?.ok_or("no step")?;
//! waves.apply(&step)?;
//! assert!(matches!(&waves.pending()[0].effect, Effect::Submit { endpoint, .. } if endpoint.as_str() == "chat-eu"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod schedule;
mod transition;

pub use schedule::{BadSchedule, Limit, Member, OnFailure, Schedule, Spec, Wave};
pub use transition::Rejected;

use crate::{EndpointId, Format, IntentId, Notice, Outcome, Plan, RolloutId, Said, Seq, Timestamp};
use llm_version_core::VersionId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Where the waves are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(
    clippy::exhaustive_enums,
    reason = "the transition table must cover each"
)]
pub enum Phase {
    /// Written down, not begun.
    Planned,
    /// Before a wave: its pause, its approval, holds or a freeze.
    Waiting {
        /// Which wave, from 0.
        wave: usize,
    },
    /// Its members are being rolled out.
    Running {
        /// Which wave, from 0.
        wave: usize,
    },
    /// Nothing is submitted any more; what is in flight ends by itself.
    Stopping,
    /// What is in flight is aborted, and what was promoted is returned.
    RollingBack,
    /// End: every wave is over.
    Completed,
    /// End: it was stopped, and what had been promoted stays.
    Stopped,
    /// End: everything has gone back.
    RolledBack,
}

impl Phase {
    /// Whether it is one of the ends.
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::Stopped | Self::RolledBack)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Planned => f.write_str("planned"),
            Self::Waiting { wave } => write!(f, "waiting for wave {wave}"),
            Self::Running { wave } => write!(f, "in wave {wave}"),
            Self::Stopping => f.write_str("stopping"),
            Self::RollingBack => f.write_str("rolling back"),
            Self::Completed => f.write_str("completed"),
            Self::Stopped => f.write_str("stopped"),
            Self::RolledBack => f.write_str("rolled back"),
        }
    }
}

/// Where one member is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(
    clippy::exhaustive_enums,
    reason = "the transition table must cover each"
)]
pub enum Progress {
    /// Not submitted.
    Waiting,
    /// Submitted: its rollout is in progress, baking included.
    InFlight,
    /// Told to abort.
    Aborting,
    /// Over: promoted.
    Promoted {
        /// What it replaced: what a return goes back to.
        before: VersionId,
    },
    /// Over: its plan asks for no promotion.
    Concluded,
    /// Over: rolled back, blocked or refused.
    Failed {
        /// Why.
        why: String,
    },
    /// Being returned after promotion.
    Returning {
        /// To what.
        before: VersionId,
    },
    /// Over: returned after promotion.
    Returned,
    /// Over: it could not be returned, and still serves the candidate.
    Stuck {
        /// Why.
        why: String,
    },
}

impl Progress {
    /// Whether a rollout of the member is going on.
    pub const fn is_in_flight(&self) -> bool {
        matches!(
            self,
            Self::InFlight | Self::Aborting | Self::Returning { .. }
        )
    }
}

/// Everything that can happen to waves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Input {
    /// Begin.
    Start,
    /// Time has passed. A spurious tick is a no-op.
    Tick,
    /// No submission until then.
    Frozen {
        /// First moment at which it may go on.
        until: Timestamp,
    },
    /// A person says something.
    Operator(Command),
    /// A member's rollout or return is over.
    Member {
        /// Which.
        endpoint: EndpointId,
        /// How.
        news: News,
    },
    /// A notice has been delivered, or given up.
    Done {
        /// Which.
        intent: IntentId,
        /// How it went.
        outcome: Outcome,
    },
}

/// What is heard of a member. Hearing it twice changes nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(
    clippy::exhaustive_enums,
    reason = "the transition table must cover each"
)]
pub enum News {
    /// The rollout that was submitted has ended and is settled.
    Ended {
        /// In which end.
        phase: crate::Phase,
        /// The version that was in production when it was submitted.
        before: VersionId,
        /// Why it did not end in promotion.
        why: String,
    },
    /// The rollout was refused for good.
    Refused {
        /// Why.
        why: String,
    },
    /// The return has ended: the version before is in production again.
    Returned,
    /// The return was refused or has failed for good.
    NotReturned {
        /// Why.
        why: String,
    },
}

/// Something an operator says, with who and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct Command {
    /// What to do.
    pub verb: Verb,
    /// Who says so.
    pub by: String,
    /// Why.
    pub why: String,
}

/// What an operator can say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verb {
    /// Let the next manual wave begin.
    Approve,
    /// Submit nothing until this hold is cleared.
    Hold {
        /// Its name.
        name: String,
    },
    /// Clear a hold.
    Resume {
        /// Its name.
        name: String,
    },
    /// Submit nothing any more; what is in flight goes on.
    Stop,
    /// Abort what is in flight and return what was promoted.
    RollBack,
}

/// What changes; each step carries it whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct State {
    /// Where it is.
    pub phase: Phase,
    /// Since when.
    pub since: Timestamp,
    /// Where each member is.
    pub members: BTreeMap<EndpointId, Progress>,
    /// Waves that somebody has approved.
    pub approvals: BTreeMap<usize, Said>,
    /// Named reasons not to go on.
    pub holds: BTreeMap<String, Said>,
    /// No submission until then.
    pub frozen_until: Option<Timestamp>,
    /// Waves for which people have been asked.
    pub asked: BTreeSet<usize>,
    /// Why it was stopped or rolled back.
    pub cause: Option<String>,
}

/// One logged decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[must_use = "a step takes effect only once it is logged and applied"]
#[expect(clippy::exhaustive_structs, reason = "it is what logs hold")]
pub struct Step {
    /// Its position in the log of these waves.
    pub seq: Seq,
    /// When it was decided.
    pub at: Timestamp,
    /// What happened.
    pub input: Input,
    /// The state from here on.
    pub state: State,
    /// Intents that are over.
    pub done: Vec<IntentId>,
    /// What is to be brought about.
    pub intents: Vec<Intent>,
}

/// An absolute, idempotent thing to bring about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "it is what logs hold")]
pub struct Intent {
    /// Its name.
    pub id: IntentId,
    /// What.
    pub effect: Effect,
}

/// What an intent brings about. After a crash, every pending intent is simply carried out again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Effect {
    /// Submit this rollout (the same id attaches), wait for its end, and say [`News::Ended`] or [`News::Refused`].
    Submit {
        /// Where.
        endpoint: EndpointId,
        /// Under which id.
        rollout: RolloutId,
        /// What.
        candidate: VersionId,
        /// How.
        plan: Box<Plan>,
    },
    /// Abort this rollout, which is still submitted; its end is heard as before. Where it has ended already, nothing is left to do.
    Abort {
        /// Where.
        endpoint: EndpointId,
        /// Which.
        rollout: RolloutId,
        /// Why.
        why: String,
    },
    /// Bring the version before back into production as a rollout of this id (see [`crate::presets::instant`]), wait for its end,
    /// and say [`News::Returned`] or [`News::NotReturned`].
    Return {
        /// Where.
        endpoint: EndpointId,
        /// Under which id.
        rollout: RolloutId,
        /// To what.
        to: VersionId,
    },
    /// Tell people.
    Notify(Notice),
}

/// A step that does not belong here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("step {found} cannot follow step {last}: the log is out of order or holds an entry twice")]
pub struct Replay {
    last: Seq,
    found: Seq,
}

/// Waves: what was written down, and the steps folded so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Waves {
    format: Format,
    id: RolloutId,
    schedule: Schedule,
    last: Option<Seq>,
    state: State,
    pending: Vec<Intent>,
}

impl Waves {
    /// Waves that are written down and not begun.
    pub fn new(id: RolloutId, schedule: Schedule, now: Timestamp) -> Self {
        let members = schedule.members().map(|m| m.endpoint.clone());
        let state = State {
            phase: Phase::Planned,
            since: now,
            members: members.map(|m| (m, Progress::Waiting)).collect(),
            approvals: BTreeMap::new(),
            holds: BTreeMap::new(),
            frozen_until: None,
            asked: BTreeSet::new(),
            cause: None,
        };
        Self {
            format: Format::CURRENT,
            id,
            schedule,
            last: None,
            state,
            pending: Vec::new(),
        }
    }

    /// What to do about an input: a step to log and apply, or nothing. Pure.
    ///
    /// # Errors
    /// The input does not fit the phase; nothing has changed.
    pub fn decide(&self, seq: Seq, now: Timestamp, input: Input) -> Result<Option<Step>, Rejected> {
        let Some(draft) = transition::transition(self, now, &input)? else {
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

    /// Folds a logged step in; consults neither schedule nor time.
    ///
    /// # Errors
    /// The step is not later than the last one; nothing has changed.
    pub fn apply(&mut self, step: &Step) -> Result<(), Replay> {
        if let Some(last) = self.last
            && step.seq <= last
        {
            return Err(Replay {
                last,
                found: step.seq,
            });
        }
        self.last = Some(step.seq);
        self.state = step.state.clone();
        self.pending.retain(|i| !step.done.contains(&i.id));
        self.pending.extend(step.intents.iter().cloned());
        Ok(())
    }

    /// Its id.
    pub fn id(&self) -> &RolloutId {
        &self.id
    }

    /// What was written down.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.state.phase
    }

    /// Everything that the steps so far have changed.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Intents that are not over yet, oldest first.
    pub fn pending(&self) -> &[Intent] {
        &self.pending
    }

    /// Where the next step stands in the log.
    pub fn next(&self) -> Seq {
        self.last.map_or(Seq::new(0), Seq::next)
    }

    /// When something becomes due without any further input.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        transition::next_wakeup(self)
    }
}
