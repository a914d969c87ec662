//! What goes into the machine and what comes out: inputs, steps, intents.

use crate::{Fence, Observed, Seq, Split, State, Timestamp};
use llm_gates::{Judgement, TableReport};
use llm_version_core::VersionId;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Everything that can happen to a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Input {
    /// Begin: run the pre-deployment gates.
    Start,
    /// Time has passed. A spurious tick is a no-op.
    Tick,
    /// The pre-deployment gates have been evaluated.
    PreFlight(TableReport),
    /// The evidence of one more window has been judged.
    Judged(Box<Look>),
    /// The metric source could not answer: neither good nor bad data.
    SourceFailed {
        /// What it said.
        reason: String,
    },
    /// What the candidate is doing right now, apart from any verdict.
    Heartbeat(Heartbeat),
    /// Something outside the gates has gone off: a probe, a monitoring system, a guardrail.
    Alarm(Alarm),
    /// Whether the baseline can serve, as its backend says; said again only when it changes.
    Health {
        /// It can.
        baseline: bool,
    },
    /// No advance until then (a freeze window, resolved by the host).
    Frozen {
        /// First moment at which it may advance again.
        until: Timestamp,
    },
    /// A person or a pipeline says something.
    Operator(Command),
    /// An intent has been carried out, or has failed for good.
    Done {
        /// Which.
        intent: IntentId,
        /// How it went.
        outcome: Outcome,
    },
    /// The registered routers have been read back.
    Found {
        /// The fence of who reads.
        fence: Fence,
        /// What each said.
        routers: Observed,
    },
}

/// One look at the evidence, and at the routers right after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct Look {
    /// What the gates say.
    pub judgement: Judgement,
    /// What the candidate is doing, where the source can tell.
    pub heartbeat: Option<Heartbeat>,
    /// The fence of who looks.
    pub fence: Fence,
    /// The routers, read back after the judgement was made: an advance needs all of them unchanged.
    pub routers: Observed,
}

/// What the candidate is doing, independent of finished requests: a hung candidate finishes none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data: hosts write metric sources against it"
)]
pub struct Heartbeat {
    /// Requests that the candidate was given in this rollout.
    pub exposed: u64,
    /// For how long the oldest candidate request without a first token has been waiting; zero if none is.
    pub waiting: Duration,
}

/// Something that has gone off outside the gates. What it does is the plan's choice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct Alarm {
    /// Its name, as in the plan's `triggers.alarms`.
    pub name: String,
    /// In one line.
    pub detail: String,
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
    /// Let the current manual stage advance once its gates pass (before the first stage: the first manual one).
    Approve,
    /// Do not advance until this hold is cleared.
    Hold {
        /// Its name.
        name: String,
    },
    /// Clear a hold.
    Resume {
        /// Its name.
        name: String,
    },
    /// Leave the stage now, whatever its dwell, samples, gates and approval; holds and freezes stand.
    Skip,
    /// The candidate becomes the baseline now, whatever stage, gates, holds and freezes say; where the baseline is unhealthy, this is the way forward.
    PromoteNow,
    /// Go back to the baseline, which is warmed up first if it is cold, and waited for if it is unhealthy.
    Abort,
    /// Go back to the baseline at once, cold or unhealthy as it may be.
    AbortNow,
    /// Make way for another rollout: goes back, or ends baking.
    Supersede {
        /// Which.
        by: crate::RolloutId,
    },
}

/// How carrying out an intent ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "an intent is done, or it is not")]
pub enum Outcome {
    /// Done.
    Ok,
    /// Not done, and trying again would not help.
    Failed {
        /// What went wrong.
        reason: String,
    },
}

/// One logged decision. Folding it in ([`crate::Rollout::apply`]) consults neither plan, gates nor time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[must_use = "a step takes effect only once it is logged and applied"]
#[expect(clippy::exhaustive_structs, reason = "it is what logs hold")]
pub struct Step {
    /// Its position in the endpoint's log.
    pub seq: Seq,
    /// When it was decided.
    pub at: Timestamp,
    /// What happened.
    pub input: Input,
    /// The state from here on.
    pub state: State,
    /// Intents that are over, done or not.
    pub done: Vec<IntentId>,
    /// What is to be brought about.
    pub intents: Vec<Intent>,
}

/// Names an intent for ever: carrying it out twice has no further effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "a pair")]
pub struct IntentId {
    /// The step that asked for it.
    pub seq: Seq,
    /// Which of that step's intents.
    pub index: u32,
}

impl fmt::Display for IntentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.seq, self.index)
    }
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

/// What an intent brings about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Effect {
    /// Run the pre-deployment gates; answered by [`Input::PreFlight`].
    Evaluate(VersionId),
    /// Load and warm up a version until it can serve.
    Prepare(VersionId),
    /// Scale a version down that serves nobody now, so that it can be loaded again.
    Standby(VersionId),
    /// Every router serves this split. Confirmed by [`Input::Found`].
    Route {
        /// Where it leads.
        direction: crate::Direction,
        /// What to serve.
        split: Split,
    },
    /// Wait until no request runs on the version any more, at most this long; then cut the rest off.
    Drain {
        /// Which version.
        version: VersionId,
        /// How long at the most.
        deadline: Duration,
    },
    /// Take a version out of service.
    Retire(VersionId),
    /// Tell people.
    Notify(Notice),
    /// Keep the incident record of this rollout.
    Record(crate::RolloutId),
}

/// Something to tell people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data: hosts write notifiers against it"
)]
pub struct Notice {
    /// Whether somebody should be woken.
    pub page: bool,
    /// The rollout it is about.
    pub rollout: crate::RolloutId,
    /// In one line.
    pub text: String,
}
