//! One request from its decision to its end.

use super::cell::{
    ASSIGNED, CLASSES, Cell, DURATION, FIRST, FLAG_COUNT, FLAGS, GAP, PACE, TOKENS, VAIN,
};
use super::histogram::bucket;
use super::shard::{CellIndex, Registry, Shard, on_first, on_other};
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

    /// As it is written in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientCancel => "client_cancel",
            Self::ClientError => "client_error",
            Self::Overload => "overload",
            Self::Timeout => "timeout",
            Self::UpstreamError => "upstream_error",
            Self::MidStreamError => "mid_stream_error",
            Self::Malformed => "malformed",
            Self::SafetyBlock => "safety_block",
        }
    }

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

/// What a ticket knows: plain values, so that a request that stays in one function can stay in registers. It touches its
/// thread's counters when it begins and when it ends, and in between only if the candidate's first token is waited for.
#[derive(Clone, Copy)]
struct Request {
    /// The recorder's number: each call records on the shard of the thread that it is made on.
    recorder: u64,
    decision: Decision,
    begun: Timestamp,
    first: Option<Timestamp>,
    tokens: u64,
    /// Of a reply in pieces: how many came after the first, when the last came, and the longest time between two.
    pieces: u64,
    piece: Timestamp,
    gap: u64,
    flags: u16,
    /// Where its decision counts: worked out once.
    index: CellIndex,
    place: Option<Place>,
}

impl Ticket {
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    pub(crate) fn begin(registry: &Registry, decision: Decision, now: Timestamp) -> Self {
        let (recorder, index) = (registry.recorder, CellIndex::of(decision));
        let place = match on_first(recorder, |shard| enter(shard, index, decision, now)) {
            Some(place) => place,
            None => enter_elsewhere(registry, decision, now),
        };
        Self::opened(recorder, index, decision, now, place)
    }

    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    pub(crate) fn begin_on(shard: &Shard, decision: Decision, now: Timestamp) -> Self {
        let index = CellIndex::of(decision);
        let place = enter(shard, index, decision, now);
        Self::opened(shard.recorder, index, decision, now, place)
    }

    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    fn opened(
        recorder: u64,
        index: CellIndex,
        decision: Decision,
        now: Timestamp,
        place: Option<Place>,
    ) -> Self {
        Self(Request {
            recorder,
            decision,
            begun: now,
            first: None,
            tokens: 0,
            pieces: 0,
            piece: now,
            gap: 0,
            flags: 0,
            index,
            place,
        })
    }

    /// What was decided.
    pub fn decision(&self) -> Decision {
        self.0.decision
    }

    /// When it began.
    pub fn begun(&self) -> Timestamp {
        self.0.begun
    }

    /// When the first token came, if it has.
    pub fn started(&self) -> Option<Timestamp> {
        self.0.first
    }

    /// The first non-empty piece of content, reasoning, tool call or refusal has come. Only the first call counts.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    pub fn first_token(&mut self, now: Timestamp) {
        let request = &mut self.0;
        if request.first.is_some() {
            return;
        }
        request.first = Some(now);
        request.piece = now;
        if let Some(place) = request.place.take() {
            arrived(request.recorder, place);
        }
    }

    /// A non-empty piece of the reply has come, the first or a further one: besides the first token this records the time per
    /// output token and the longest gap.
    #[inline]
    pub fn piece(&mut self, now: Timestamp) {
        if self.0.first.is_none() {
            self.first_token(now);
            return;
        }
        let request = &mut self.0;
        request.pieces += 1;
        request.gap = request
            .gap
            .max(now.as_millis().saturating_sub(request.piece.as_millis()));
        request.piece = request.piece.max(now);
    }

    /// This many more output tokens.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    pub fn tokens(&mut self, more: u64) {
        self.0.tokens = self.0.tokens.saturating_add(more);
    }

    /// Raises a flag that the recorder was built with. `false`: there is none of that name, or the recorder is gone, and
    /// nothing was raised.
    pub fn flag(&mut self, name: &str) -> bool {
        let named = |shard: &Shard| shard.flags.iter().position(|flag| flag == name);
        let recorder = self.0.recorder;
        let index = on_first(recorder, named)
            .or_else(|| on_other(recorder, named))
            .flatten();
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
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    pub fn finish(self, outcome: impl Into<Outcome>, now: Timestamp) {
        let class = outcome.into().class;
        // From here on nothing is left to be dropped: it owns nothing.
        let request = ManuallyDrop::new(self).0;
        if on_first(request.recorder, |shard| {
            request.close(shard, class, Some(now));
        })
        .is_none()
        {
            close_elsewhere(request.apart(), class, Some(now));
        }
    }

    /// The same on a shard in hand, if it is of the same recorder.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    pub(crate) fn finish_on(self, shard: &Shard, outcome: Outcome, now: Timestamp) {
        let request = ManuallyDrop::new(self).0;
        if shard.recorder == request.recorder {
            request.close(shard, outcome.class, Some(now));
        } else {
            close_anywhere(request.apart(), outcome.class, Some(now));
        }
    }
}

impl Request {
    /// The same, made anew, for a function that is called: what itself goes to one has to be in memory from its beginning.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    fn apart(&self) -> Self {
        let Self {
            recorder,
            decision,
            begun,
            first,
            tokens,
            pieces,
            piece,
            gap,
            flags,
            index,
            place,
        } = *self;
        Self {
            // Opaque, or the compiler would see that it is a copy of itself, and hand itself over.
            recorder: std::hint::black_box(recorder),
            decision,
            begun,
            first,
            tokens,
            pieces,
            piece,
            gap,
            flags,
            index,
            place,
        }
    }

    /// `now`: none for one that was dropped, of which nobody knows how long it took.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    fn close(self, shard: &Shard, class: OutcomeClass, now: Option<Timestamp>) {
        if let Some(place) = self.place {
            shard.waiting.leave(place);
        }
        let Some(cell) = shard.cell(self.index, self.decision) else {
            shard.late(self.decision, true);
            return;
        };
        let elapsed = |until: Timestamp| until.as_millis().saturating_sub(self.begun.as_millis());
        let first = self.first.map(|first| bucket(elapsed(first)));
        let whole = now.map(|now| bucket(elapsed(now)));
        let class = match (class, first) {
            (OutcomeClass::ClientCancel, None) => OutcomeClass::EARLY_CANCEL,
            _ => class.index(),
        };
        let cell = cell.write();
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
        if let (Some(first), 1..) = (self.first, self.pieces) {
            // (last - first) / (n - 1) with n tokens, or pieces where nobody counted.
            let between = self.tokens.saturating_sub(1).max(self.pieces);
            let span = self.piece.as_millis().saturating_sub(first.as_millis());
            pace(&cell, span, between, self.gap);
        }
        if self.flags != 0 {
            raise(&cell, self.flags);
        }
    }
}

#[inline(never)]
fn pace(cell: &Cell, span: u64, tokens: u64, gap: u64) {
    let tenths = span.saturating_mul(10) / tokens.max(1);
    cell.bump(PACE + bucket(tenths), 1);
    cell.bump(GAP + bucket(gap), 1);
}

/// A request begins: it is counted, and its first token waited for.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "measured: a call, or a value that goes through memory, costs as much as the work"
)]
fn enter(shard: &Shard, index: CellIndex, decision: Decision, now: Timestamp) -> Option<Place> {
    match shard.cell(index, decision) {
        Some(cell) => cell.bump(ASSIGNED, 1),
        None => shard.late(decision, false),
    }
    if decision.role() == Role::Candidate {
        shard.waiting.enter(shard.home, decision.slot(), now)
    } else {
        None
    }
}

#[cold]
#[inline(never)]
fn enter_elsewhere(registry: &Registry, decision: Decision, now: Timestamp) -> Option<Place> {
    let begin = |shard: &Shard| enter(shard, CellIndex::of(decision), decision, now);
    // It is there as long as the registry is.
    on_other(registry.recorder, begin).unwrap_or_else(|| registry.on_retired(begin))
}

#[cold]
#[inline(never)]
fn close_elsewhere(request: Request, class: OutcomeClass, now: Option<Timestamp>) {
    // Nothing is left to record to when the recorder is gone.
    let _ = on_other(request.recorder, |shard| request.close(shard, class, now));
}

/// Nobody has said how it ended. Out of the way, so that a ticket that is finished need not be in memory.
#[inline(never)]
fn abandoned(request: Request) {
    close_anywhere(request, OutcomeClass::ClientCancel, None);
}

#[inline(never)]
fn close_anywhere(request: Request, class: OutcomeClass, now: Option<Timestamp>) {
    if on_first(request.recorder, |shard| request.close(shard, class, now)).is_none() {
        close_elsewhere(request, class, now);
    }
}

/// A first token has come that was waited for.
#[inline(never)]
fn arrived(recorder: u64, place: Place) {
    let leave = |shard: &Shard| shard.waiting.leave(place);
    if on_first(recorder, leave).is_none() {
        let _ = on_other(recorder, leave);
    }
}

#[cold]
fn raise(cell: &Cell, flags: u16) {
    for index in (0..FLAG_COUNT).filter(|index| flags >> index & 1 == 1) {
        cell.bump(FLAGS + index, 1);
    }
}

impl Drop for Ticket {
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    fn drop(&mut self) {
        abandoned(self.0);
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("decision", &self.0.decision)
            .finish_non_exhaustive()
    }
}
