//! The endpoint's log: what an entry holds, and what the entries add up to.

use crate::host::Cursor;
use llm_gates::Evidence;
use llm_rollout::{
    Cause, Effect, EndpointId, Epoch, Format, Intent, IntentId, Outcome, Phase, Rollout, RolloutId,
    Seq, Share, Split, Step, Timestamp,
};
use llm_version_core::VersionId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One entry of an endpoint's log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "it is what logs hold")]
pub struct Entry {
    /// Format of the entry.
    pub format: Format,
    /// What happened.
    pub event: Event,
}

/// What an entry records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The endpoint's first version: everything before any rollout.
    Bootstrapped {
        /// The version.
        version: VersionId,
        /// When.
        at: Timestamp,
    },
    /// A rollout was submitted.
    Submitted {
        /// As submitted.
        rollout: Box<Rollout>,
    },
    /// A decision of the rollout in progress; with a look, the evidence as of that look, in the same commit.
    Stepped {
        /// The decision.
        step: Box<Step>,
        /// The evidence and where its source stood.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        checkpoint: Option<Checkpoint>,
    },
    /// An intent of an earlier rollout is over (a notice that could not be delivered before, say).
    Delivered {
        /// Which.
        intent: IntentId,
        /// How it went.
        outcome: Outcome,
    },
}

/// Evidence as state: saved with its cursor, so that no window counts twice and none is lost in a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "it is what logs hold")]
pub struct Checkpoint {
    /// The evidence so far.
    pub evidence: Evidence,
    /// Where the source stood.
    pub cursor: Cursor,
    /// The epoch that the cursor belongs to.
    pub epoch: Epoch,
}

/// An entry that cannot be used. Nothing is overwritten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {seq} of the log of endpoint {endpoint} {problem}")]
pub struct BadEntry {
    endpoint: EndpointId,
    seq: Seq,
    problem: String,
}

impl Entry {
    /// An entry of today's format.
    pub fn new(event: Event) -> Self {
        Self {
            format: Format::CURRENT,
            event,
        }
    }

    /// As bytes (JSON).
    ///
    /// # Errors
    /// When the event holds what JSON cannot, such as a number that is not finite.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// From bytes. Fields of a newer minor format are ignored; another major is refused.
    ///
    /// # Errors
    /// Names the endpoint and the entry.
    pub fn decode(endpoint: &EndpointId, seq: Seq, bytes: &[u8]) -> Result<Self, BadEntry> {
        #[derive(Deserialize)]
        struct Head {
            format: Format,
        }
        let bad = |problem: String| BadEntry {
            endpoint: endpoint.clone(),
            seq,
            problem,
        };
        let head: Head =
            serde_json::from_slice(bytes).map_err(|e| bad(format!("cannot be read: {e}")))?;
        if !head.format.readable() {
            return Err(bad(format!(
                "has format {}, this program reads {}: run a newer program",
                head.format,
                Format::CURRENT
            )));
        }
        serde_json::from_slice(bytes).map_err(|e| bad(format!("cannot be read: {e}")))
    }
}

/// How a rollout ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct End {
    /// Which rollout.
    pub rollout: RolloutId,
    /// What it wanted to replace.
    pub baseline: VersionId,
    /// With what.
    pub candidate: VersionId,
    /// [`Phase::Promoted`], [`Phase::RolledBack`] or [`Phase::Blocked`].
    pub phase: Phase,
    /// Why it was not promoted.
    pub cause: Option<Cause>,
    /// Requests that the candidate was given, as last heard.
    pub exposed: u64,
    /// The largest share that it was given.
    pub largest_share: Share,
    /// When it ended.
    pub at: Timestamp,
}

/// What the entries of an endpoint's log add up to.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Ledger {
    /// Position of the next entry.
    pub next: Seq,
    /// The version in production, apart from any rollout in progress.
    pub production: Option<VersionId>,
    /// The newest epoch.
    pub epoch: Epoch,
    /// The latest moment that an entry names.
    pub latest: Timestamp,
    /// The newest rollout, until the next is submitted.
    pub rollout: Option<Rollout>,
    /// Its evidence.
    pub checkpoint: Option<Checkpoint>,
    /// The largest share that it was given.
    pub largest_share: Share,
    /// How earlier rollouts ended.
    pub ended: BTreeMap<RolloutId, End>,
    /// Intents of ended rollouts that are not over.
    pub outbox: BTreeMap<IntentId, Intent>,
}

/// Intents of ended rollouts that are kept for another try.
const OUTBOX: usize = 256;

impl Ledger {
    /// Adds an entry.
    ///
    /// # Errors
    /// The entry does not follow; nothing has changed.
    pub fn fold(&mut self, endpoint: &EndpointId, seq: Seq, entry: &Entry) -> Result<(), BadEntry> {
        let bad = |problem: String| BadEntry {
            endpoint: endpoint.clone(),
            seq,
            problem,
        };
        if seq != self.next {
            return Err(bad(format!("is not the next one, {}", self.next)));
        }
        match &entry.event {
            Event::Bootstrapped { version, at } => {
                if self.production.is_some() {
                    return Err(bad("starts an endpoint that has been started".to_owned()));
                }
                self.production = Some(version.clone());
                self.latest = self.latest.max(*at);
            }
            Event::Submitted { rollout } => {
                if self.rollout.as_ref().is_some_and(|r| !r.is_settled()) {
                    return Err(bad(
                        "submits a rollout while another is in progress".to_owned()
                    ));
                }
                if let Some(over) = self.rollout.take() {
                    let kept = over
                        .pending()
                        .iter()
                        .filter(|i| matches!(i.effect, Effect::Notify(_) | Effect::Retire(_)));
                    self.outbox.extend(kept.map(|i| (i.id, i.clone())));
                    while self.outbox.len() > OUTBOX {
                        self.outbox.pop_first();
                    }
                }
                self.latest = self.latest.max(rollout.state().since);
                self.rollout = Some((**rollout).clone());
                self.checkpoint = None;
                self.largest_share = Share::NONE;
            }
            Event::Stepped { step, checkpoint } => {
                let Some(rollout) = &mut self.rollout else {
                    return Err(bad("is a step of no rollout".to_owned()));
                };
                rollout.apply(step).map_err(|e| bad(e.to_string()))?;
                if let Some(checkpoint) = checkpoint {
                    self.checkpoint = Some(checkpoint.clone());
                }
                self.latest = self.latest.max(step.at);
                let split = &step.state.split;
                self.epoch = self.epoch.max(split.epoch);
                self.largest_share = self.largest_share.max(split.share);
                let routed = step
                    .intents
                    .iter()
                    .any(|i| matches!(i.effect, Effect::Route { .. }));
                if routed && split.candidate.is_none() {
                    self.production = Some(split.baseline.clone());
                }
                if step.state.phase.is_end() && !self.ended.contains_key(rollout.id()) {
                    let end = End {
                        rollout: rollout.id().clone(),
                        baseline: rollout.baseline().clone(),
                        candidate: rollout.candidate().clone(),
                        phase: step.state.phase,
                        cause: step.state.cause.clone(),
                        exposed: step.state.exposed,
                        largest_share: self.largest_share,
                        at: step.at,
                    };
                    self.ended.insert(end.rollout.clone(), end);
                }
            }
            Event::Delivered { intent, .. } => {
                self.outbox.remove(intent);
            }
        }
        self.next = seq.next();
        Ok(())
    }

    /// The split that replicas are to serve; none before the first entry.
    pub fn split(&self) -> Option<Split> {
        match &self.rollout {
            Some(rollout) if rollout.state().routed.is_some() => {
                Some(rollout.state().split.clone())
            }
            _ => Some(Split::steady(None, self.production.clone()?, self.epoch)),
        }
    }
}
