//! One request from its decision to its end.

use super::cell::{
    ASSIGNED, CLASSES, Cell, DURATION, FIRST, FLAG_COUNT, FLAGS, STARTED, TOKENS, VAIN,
};
use super::histogram::bucket;
use super::shard::{Shard, bump, on_own};
use super::waiting::Place;
use crate::router::{Decision, Role};
use llm_rollout::Timestamp;
use std::fmt;
use std::mem::ManuallyDrop;

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
pub struct Ticket(Request);

/// What a ticket knows: plain values, so that a request that stays in one function can stay in registers.
#[derive(Clone, Copy)]
struct Request {
    /// The recorder's number: each call records on the shard of the thread that it is made on.
    recorder: u64,
    decision: Decision,
    begun: Timestamp,
    first: Option<Timestamp>,
    /// The last moment that anybody told.
    last: Timestamp,
    tokens: u64,
    flags: u16,
    place: Option<Place>,
}

impl Ticket {
    #[inline]
    pub(crate) fn begin(shard: &Shard, decision: Decision, now: Timestamp) -> Self {
        if let Some(cell) = shard.cell(&decision) {
            cell.bump(ASSIGNED, 1);
        }
        let load = shard.load(decision.version);
        bump(&load.begun);
        let mut place = None;
        if decision.role == Role::Candidate {
            bump(&load.exposed);
            place = shard.waiting.enter(shard.home, decision.version, now);
        }
        Self(Request {
            recorder: shard.recorder,
            decision,
            begun: now,
            first: None,
            last: now,
            tokens: 0,
            flags: 0,
            place,
        })
    }

    /// What was decided.
    pub fn decision(&self) -> &Decision {
        &self.0.decision
    }

    /// When it began.
    pub fn begun(&self) -> Timestamp {
        self.0.begun
    }

    /// The first non-empty piece of content, reasoning, tool call or refusal has come. Only the first call counts.
    #[inline]
    pub fn first_token(&mut self, now: Timestamp) {
        self.0.last = self.0.last.max(now);
        if self.0.first.is_some() {
            return;
        }
        self.0.first = Some(now);
        let (decision, place) = (self.0.decision, self.0.place.take());
        let _ = on_own(self.0.recorder, move |shard| {
            leave(shard, place);
            if let Some(cell) = shard.cell(&decision) {
                cell.bump(STARTED, 1);
            }
        });
    }

    /// Whether a first token has come.
    pub fn has_started(&self) -> bool {
        self.0.first.is_some()
    }

    /// This many more output tokens.
    #[inline]
    pub fn tokens(&mut self, more: u64) {
        self.0.tokens = self.0.tokens.saturating_add(more);
    }

    /// Raises a flag that the recorder was built with. `false`: there is none of that name, or the recorder is gone, and
    /// nothing was raised.
    pub fn flag(&mut self, name: &str) -> bool {
        let named = |shard: &Shard| shard.flags.iter().position(|flag| flag == name);
        let index = on_own(self.0.recorder, named).flatten();
        if let Some(index) = index {
            self.0.flags |= 1 << index;
        }
        index.is_some()
    }

    /// Raises flags by their place among the recorder's flags: bit 0 is the first.
    pub fn raise(&mut self, bits: u16) {
        self.0.flags |= bits;
    }

    /// Records how it ended.
    #[inline]
    pub fn finish(self, outcome: impl Into<Outcome>, now: Timestamp) {
        let class = outcome.into().class;
        // From here on nothing is left to be dropped: it owns nothing.
        let mut request = ManuallyDrop::new(self).0;
        request.last = request.last.max(now);
        request.close(class, true);
    }
}

impl Request {
    #[inline]
    fn close(self, class: OutcomeClass, timed: bool) {
        let elapsed = |until: Timestamp| until.as_millis().saturating_sub(self.begun.as_millis());
        let first = self.first.map(|first| bucket(elapsed(first)));
        let whole = timed.then(|| bucket(elapsed(self.last)));
        let class = match (class, first) {
            (OutcomeClass::ClientCancel, None) => OutcomeClass::EARLY_CANCEL,
            _ => class.index(),
        };
        // Nothing is left to record to when the recorder is gone.
        let _ = on_own(self.recorder, move |shard| {
            leave(shard, self.place);
            bump(&shard.load(self.decision.version).ended);
            let Some(cell) = shard.cell(&self.decision) else {
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
                cell.bump(TOKENS, self.tokens);
                if self.flags != 0 {
                    raise(cell, self.flags);
                }
            });
        });
    }
}

#[inline]
fn leave(shard: &Shard, place: Option<Place>) {
    if let Some(place) = place {
        shard.waiting.leave(place);
    }
}

#[cold]
fn raise(cell: &Cell, flags: u16) {
    for index in (0..FLAG_COUNT).filter(|index| flags >> index & 1 == 1) {
        cell.bump(FLAGS + index, 1);
    }
}

impl Drop for Ticket {
    #[inline]
    fn drop(&mut self) {
        self.0.close(OutcomeClass::ClientCancel, false);
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("decision", &self.0.decision)
            .finish_non_exhaustive()
    }
}
