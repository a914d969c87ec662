//! One request from its decision to its end.

use super::cell::{ASSIGNED, CLASSES, DURATION, FIRST, FLAG_COUNT, FLAGS, STARTED, TOKENS, VAIN};
use super::histogram::bucket;
use super::shard::{Shard, bump, on_own};
use super::waiting::Place;
use crate::router::{Decision, Role};
use llm_rollout::Timestamp;
use std::fmt;
use std::sync::Arc;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(
    clippy::exhaustive_enums,
    reason = "each class counts as a fault or does not"
)]
pub enum OutcomeClass {
    /// A complete reply.
    Ok,
    /// The client went away; counted apart if it had not seen a token yet.
    ClientCancel,
    /// The client's own mistake.
    ClientError,
    /// Too much to do.
    Overload,
    /// It took too long. The version's fault.
    Timeout,
    /// The version failed. The version's fault.
    UpstreamError,
    /// The version failed after the reply had begun. The version's fault.
    MidStreamError,
    /// The reply is not what the interface promises. The version's fault.
    Malformed,
    /// A safety filter stopped it.
    SafetyBlock,
}

impl OutcomeClass {
    /// Every class.
    pub const ALL: [Self; 9] = [
        Self::Ok,
        Self::ClientCancel,
        Self::ClientError,
        Self::Overload,
        Self::Timeout,
        Self::UpstreamError,
        Self::MidStreamError,
        Self::Malformed,
        Self::SafetyBlock,
    ];

    /// Whether it is the version's fault, whatever the load.
    pub const fn is_fault(self) -> bool {
        matches!(
            self,
            Self::Timeout | Self::UpstreamError | Self::MidStreamError | Self::Malformed
        )
    }

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Ok => 0,
            Self::ClientCancel => 1,
            Self::ClientError => 2,
            Self::Overload => 3,
            Self::Timeout => 4,
            Self::UpstreamError => 5,
            Self::MidStreamError => 6,
            Self::Malformed => 7,
            Self::SafetyBlock => 8,
        }
    }

    /// Cancels before the first token.
    pub(crate) const EARLY_CANCEL: usize = 9;
}

/// How a request ended, and what is known about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// Its class.
    pub class: OutcomeClass,
}

impl Outcome {
    /// An outcome of this class.
    pub const fn new(class: OutcomeClass) -> Self {
        Self { class }
    }
}

impl From<OutcomeClass> for Outcome {
    fn from(class: OutcomeClass) -> Self {
        Self::new(class)
    }
}

/// One request in flight. Dropped without [`Self::finish`], it was abandoned: a cancel by the client.
///
/// It may move between threads. Nothing in it reads a clock, and nothing allocates once a thread is warm.
#[must_use = "dropping a ticket records an abandoned request"]
pub struct Ticket {
    shard: Arc<Shard>,
    decision: Decision,
    begun: Timestamp,
    first: Option<Timestamp>,
    /// The last moment that anybody told.
    last: Timestamp,
    tokens: u64,
    flags: u16,
    place: Option<Place>,
    open: bool,
}

impl Ticket {
    pub(crate) fn begin(shard: &Arc<Shard>, decision: Decision, now: Timestamp) -> Self {
        if let Some(cell) = shard.cell(&decision) {
            cell.write(|cell| cell.bump(ASSIGNED, 1));
        }
        let load = shard.load(decision.version);
        bump(&load.begun);
        let mut place = None;
        if decision.role == Role::Candidate {
            bump(&load.exposed);
            place = shard.waiting.enter(shard.home, decision.version, now);
        }
        Self {
            shard: Arc::clone(shard),
            decision,
            begun: now,
            first: None,
            last: now,
            tokens: 0,
            flags: 0,
            place,
            open: true,
        }
    }

    /// What was decided.
    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    /// When it began.
    pub fn begun(&self) -> Timestamp {
        self.begun
    }

    /// The first non-empty piece of content, reasoning, tool call or refusal has come. Only the first call counts.
    pub fn first_token(&mut self, now: Timestamp) {
        self.last = self.last.max(now);
        if self.first.is_some() {
            return;
        }
        self.first = Some(now);
        self.leave();
        let decision = self.decision;
        self.record(|shard| {
            if let Some(cell) = shard.cell(&decision) {
                cell.write(|cell| cell.bump(STARTED, 1));
            }
        });
    }

    /// Whether a first token has come.
    pub fn has_started(&self) -> bool {
        self.first.is_some()
    }

    /// This many more output tokens.
    pub fn tokens(&mut self, more: u64) {
        self.tokens = self.tokens.saturating_add(more);
    }

    /// Raises a flag that the recorder was built with. `false`: there is none of that name, and nothing was raised.
    pub fn flag(&mut self, name: &str) -> bool {
        let index = self.shard.flags.iter().position(|flag| flag == name);
        if let Some(index) = index {
            self.flags |= 1 << index;
        }
        index.is_some()
    }

    /// Raises flags by their place among the recorder's flags: bit 0 is the first.
    pub fn raise(&mut self, bits: u16) {
        self.flags |= bits;
    }

    /// Records how it ended.
    pub fn finish(mut self, outcome: impl Into<Outcome>, now: Timestamp) {
        self.last = self.last.max(now);
        self.close(outcome.into().class, true);
    }

    fn close(&mut self, class: OutcomeClass, timed: bool) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        self.leave();
        let elapsed = |until: Timestamp| until.as_millis().saturating_sub(self.begun.as_millis());
        let (decision, flags, tokens) = (self.decision, self.flags, self.tokens);
        let first = self.first.map(|first| bucket(elapsed(first)));
        let whole = timed.then(|| bucket(elapsed(self.last)));
        let class = match (class, first) {
            (OutcomeClass::ClientCancel, None) => OutcomeClass::EARLY_CANCEL,
            _ => class.index(),
        };
        self.record(|shard| {
            bump(&shard.load(decision.version).ended);
            let Some(cell) = shard.cell(&decision) else {
                return;
            };
            cell.write(|cell| {
                cell.bump(CLASSES + class, 1);
                match (first, whole) {
                    (Some(first), _) => cell.bump(FIRST + first, 1),
                    (None, Some(whole)) => cell.bump(VAIN + whole, 1),
                    (None, None) => {}
                }
                if let Some(whole) = whole {
                    cell.bump(DURATION + whole, 1);
                }
                if tokens > 0 {
                    cell.bump(TOKENS, tokens);
                }
                if flags != 0 {
                    for index in (0..FLAG_COUNT).filter(|index| flags >> index & 1 == 1) {
                        cell.bump(FLAGS + index, 1);
                    }
                }
            });
        });
    }

    fn leave(&mut self) {
        if let Some(place) = self.place.take() {
            self.shard.waiting.leave(place);
        }
    }

    fn record(&self, run: impl FnOnce(&Arc<Shard>)) {
        // Nothing is left to record to when the recorder is gone.
        let _ = on_own(self.shard.recorder, &self.shard.owner, run);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.close(OutcomeClass::ClientCancel, false);
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("decision", &self.decision)
            .finish_non_exhaustive()
    }
}
