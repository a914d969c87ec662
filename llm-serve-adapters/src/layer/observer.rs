//! Follows a reply as it passes: when its first token comes, how many there are, and how it ends.

use super::by_status;
use super::grpc::Grpc;
use super::json::{Json, Seen};
use super::sse::Sse;
use crate::recorder::{OutcomeClass, Ticket};
use bytes::Buf;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use llm_rollout::Timestamp;
use std::io::IoSlice;

/// Follows a reply as it passes, without keeping or changing any of it: for hosts that see a reply in phases (a proxy's filters)
/// rather than as a tower service, where the [layer](super) does this by itself.
///
/// ```
/// use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE};
/// use llm_serve_adapters::layer::{End, Observer};
/// # fn with(plane: &llm_serve_adapters::DataPlane, mut ticket: llm_serve_adapters::recorder::Ticket) {
///
/// // The head has come ...
/// let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"))]);
/// let mut observer = Observer::new(StatusCode::OK, &headers);
/// // ... a piece of the body ...
/// observer.data(&mut ticket, b"data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n", plane.router.now());
/// // ... and its end.
/// observer.finish(ticket, End::Complete, plane.router.now());
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Observer {
    reply: Reply,
    done_required: bool,
}

/// How the body of a reply ended, as its host sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a body ends in no other way")]
pub enum End {
    /// It came to its end.
    Complete,
    /// The version's side broke it off.
    Broken,
    /// Nothing came for too long.
    Idle,
    /// Nobody wanted the rest.
    Dropped,
}

/// What is known about the reply.
#[derive(Debug, Clone)]
enum Reply {
    /// It has not come.
    Awaited,
    /// Its status, or the host, has said how the request ends, whatever the body says.
    Settled(OutcomeClass),
    Stream {
        sse: Sse,
        /// Some of it could not be looked at.
        blind: bool,
    },
    Json(Json),
    Grpc(Grpc),
    Opaque,
}

/// At most this many pieces of one frame are looked at; frames of hyper and axum have one.
const PIECES: usize = 8;

impl Observer {
    /// Of a reply whose head has not come yet.
    pub(crate) const fn awaiting() -> Self {
        Self {
            reply: Reply::Awaited,
            done_required: true,
        }
    }

    /// Of a reply with this head.
    pub fn new(status: StatusCode, headers: &HeaderMap) -> Self {
        let reply = match by_status(status) {
            Some(class) => Reply::Settled(class),
            None => content(headers),
        };
        Self {
            reply,
            done_required: true,
        }
    }

    /// Of a reply of which somebody knows how it ends, whatever its body says.
    pub const fn settled(class: OutcomeClass) -> Self {
        Self {
            reply: Reply::Settled(class),
            done_required: true,
        }
    }

    /// Whether an event stream without `[DONE]` was cut off, which it is by default: see [`super::RolloutLayer::done_marker`].
    #[must_use]
    pub const fn done_marker(mut self, required: bool) -> Self {
        self.done_required = required;
        self
    }

    /// More of the body has come, in order; wherever it is cut makes no difference.
    pub fn data(&mut self, ticket: &mut Ticket, data: &[u8], now: Timestamp) {
        self.frame(ticket, &data, now);
    }

    /// The same, of a body whose pieces are not in one place.
    pub(crate) fn frame(&mut self, ticket: &mut Ticket, data: &impl Buf, now: Timestamp) {
        let before = self.pieces();
        self.look(data);
        match self.reply {
            Reply::Stream { .. } | Reply::Grpc(_) if self.pieces() > before => ticket.piece(now),
            Reply::Json(_) | Reply::Opaque if data.has_remaining() => ticket.first_token(now),
            _ => {}
        }
    }

    /// Takes note of data that is on its way, without a ticket.
    pub(crate) fn look(&mut self, data: &impl Buf) {
        match &mut self.reply {
            Reply::Stream { sse, blind } => *blind |= !pieces(data, |piece| sse.feed(piece)),
            Reply::Json(json) => {
                pieces(data, |piece| json.feed_all(piece));
            }
            Reply::Grpc(grpc) => grpc.lost |= !pieces(data, |piece| grpc.feed(piece)),
            Reply::Awaited | Reply::Settled(_) | Reply::Opaque => {}
        }
    }

    /// The trailers have come, in which a gRPC reply says how it ended.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        if let Reply::Grpc(grpc) = &mut self.reply {
            grpc.status(trailers);
        }
    }

    /// The body has ended: records that.
    pub fn finish(self, mut ticket: Ticket, end: End, now: Timestamp) -> OutcomeClass {
        let class = self.class(end);
        ticket.tokens(self.tokens());
        ticket.finish(class, now);
        class
    }

    /// How the request ends if its body ends like this.
    pub(crate) fn class(&self, end: End) -> OutcomeClass {
        match (&self.reply, end) {
            (Reply::Settled(class), _) => *class,
            (Reply::Awaited, End::Broken) => OutcomeClass::UpstreamError,
            (Reply::Awaited, End::Complete) => OutcomeClass::Ok,
            (_, End::Idle) => OutcomeClass::Timeout,
            (_, End::Broken) => OutcomeClass::MidStreamError,
            (Reply::Stream { sse, blind }, End::Complete) => {
                if sse.failed() || (self.done_required && !sse.is_done() && !blind) {
                    OutcomeClass::MidStreamError
                } else {
                    filtered(sse.seen().filtered)
                }
            }
            (Reply::Stream { sse, .. }, End::Dropped) if sse.failed() => {
                OutcomeClass::MidStreamError
            }
            (Reply::Stream { sse, .. }, End::Dropped) if sse.is_done() => {
                filtered(sse.seen().filtered)
            }
            (Reply::Json(json), End::Complete) if json.seen.error => OutcomeClass::UpstreamError,
            (Reply::Json(json), End::Complete) => filtered(json.seen.filtered),
            (Reply::Grpc(grpc), End::Complete) => grpc.class(),
            (Reply::Grpc(grpc), End::Dropped) if grpc.has_ended() => grpc.class(),
            (Reply::Opaque, End::Complete) => OutcomeClass::Ok,
            (_, End::Dropped) => OutcomeClass::ClientCancel,
        }
    }

    /// Whether it is a reply that says how it goes as it passes: one with pieces.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self.reply, Reply::Stream { .. } | Reply::Grpc(_))
    }

    /// Non-empty pieces so far.
    pub(crate) fn pieces(&self) -> u64 {
        match &self.reply {
            Reply::Grpc(grpc) => grpc.messages(),
            _ => self.seen().deltas,
        }
    }

    /// Whether it has said that it failed.
    pub(crate) fn has_failed(&self) -> bool {
        match &self.reply {
            Reply::Stream { sse, .. } => sse.failed(),
            Reply::Json(json) => json.seen.error,
            Reply::Grpc(grpc) => grpc.has_ended() && grpc.class() != OutcomeClass::Ok,
            _ => false,
        }
    }

    /// Whether it has said that it ends here.
    pub(crate) fn is_done(&self) -> bool {
        match &self.reply {
            Reply::Stream { sse, .. } => sse.is_done(),
            Reply::Grpc(grpc) => grpc.has_ended(),
            _ => false,
        }
    }

    /// Output tokens: as the reply says, else its pieces, of which engines send about one a token.
    pub(crate) fn tokens(&self) -> u64 {
        let guess = if self.is_stream() { self.pieces() } else { 0 };
        self.seen().usage.unwrap_or(guess)
    }

    fn seen(&self) -> Seen {
        match &self.reply {
            Reply::Stream { sse, .. } => sse.seen(),
            Reply::Json(json) => json.seen,
            _ => Seen::default(),
        }
    }
}

/// What is looked for in a body with these headers.
fn content(headers: &HeaderMap) -> Reply {
    let is = |kind: &[u8]| {
        headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.as_bytes().get(..kind.len()))
            .is_some_and(|found| found.eq_ignore_ascii_case(kind))
    };
    if is(b"application/grpc") {
        Reply::Grpc(Grpc::new(headers))
    } else if headers.contains_key(CONTENT_ENCODING) {
        Reply::Opaque
    } else if is(b"text/event-stream") {
        Reply::Stream {
            sse: Sse::default(),
            blind: false,
        }
    } else if is(b"application/json") {
        Reply::Json(Json::default())
    } else {
        Reply::Opaque
    }
}

fn filtered(yes: bool) -> OutcomeClass {
    if yes {
        OutcomeClass::SafetyBlock
    } else {
        OutcomeClass::Ok
    }
}

/// Shows each piece without consuming any. `false` if there were too many to look at all.
pub(super) fn pieces(data: &impl Buf, mut look: impl FnMut(&[u8])) -> bool {
    let first = data.chunk();
    if first.len() == data.remaining() {
        look(first);
        return true;
    }
    let mut slices = [IoSlice::new(&[]); PIECES];
    let filled = data.chunks_vectored(&mut slices);
    let mut shown = 0;
    for slice in slices.iter().take(filled) {
        look(slice);
        shown += slice.len();
    }
    shown == data.remaining()
}
