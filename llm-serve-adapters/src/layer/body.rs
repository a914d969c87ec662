//! A response body that is watched as it passes: untouched, and recorded when it ends.

use super::json::Json;
use super::sse::Sse;
use crate::DataPlane;
use crate::recorder::{OutcomeClass, Ticket};
use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use llm_rollout::Timestamp;
use pin_project_lite::pin_project;
use std::fmt;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};

/// A request in flight; recorded once, at the latest when it is dropped.
pub(crate) struct Watch {
    plane: DataPlane,
    ticket: Option<Ticket>,
    flags: Arc<AtomicU16>,
    reply: Reply,
    bytes: u64,
}

/// What is known about the reply.
#[derive(Debug)]
enum Reply {
    /// It has not come.
    Awaited,
    /// Its status, or the host, has said how the request ends, whatever the body says.
    Settled(OutcomeClass),
    Stream {
        sse: Sse,
        done_required: bool,
        blind: bool,
    },
    Json(Json),
    Opaque,
}

/// What kind of body a reply has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Stream { done_required: bool },
    Json,
    Opaque,
}

/// At most this many pieces of one frame are looked at; frames of hyper and axum have one.
const PIECES: usize = 8;

impl Watch {
    pub(crate) fn new(plane: DataPlane, ticket: Ticket, flags: Arc<AtomicU16>) -> Self {
        Self {
            plane,
            ticket: Some(ticket),
            flags,
            reply: Reply::Awaited,
            bytes: 0,
        }
    }

    /// The reply's head has come.
    pub(crate) fn head(&mut self, settled: Option<OutcomeClass>, content: Content) {
        self.reply = match (settled, content) {
            (Some(class), _) => Reply::Settled(class),
            (None, Content::Stream { done_required }) => Reply::Stream {
                sse: Sse::default(),
                done_required,
                blind: false,
            },
            (None, Content::Json) => Reply::Json(Json::default()),
            (None, Content::Opaque) => Reply::Opaque,
        };
    }

    fn data(&mut self, data: &impl Buf) {
        if self.ticket.is_none() || !data.has_remaining() {
            return;
        }
        let now = self.plane.router.now();
        self.bytes = self.bytes.saturating_add(data.remaining() as u64);
        let Some(ticket) = &mut self.ticket else {
            return;
        };
        match &mut self.reply {
            Reply::Stream { sse, blind, .. } => {
                let before = sse.seen().deltas;
                *blind |= !pieces(data, |piece| sse.feed(piece));
                if sse.seen().deltas > before {
                    ticket.piece(now);
                }
            }
            Reply::Json(json) => {
                pieces(data, |piece| json.feed_all(piece));
                ticket.first_token(now);
            }
            Reply::Opaque => ticket.first_token(now),
            Reply::Awaited | Reply::Settled(_) => {}
        }
    }

    /// The body has come to its end.
    pub(crate) fn complete(&mut self) {
        let class = match &self.reply {
            Reply::Settled(class) => *class,
            Reply::Stream {
                sse,
                done_required,
                blind,
            } => {
                if sse.failed() || (*done_required && !sse.is_done() && !blind) {
                    OutcomeClass::MidStreamError
                } else {
                    filtered(sse.seen().filtered)
                }
            }
            Reply::Json(json) if json.seen.error => OutcomeClass::UpstreamError,
            Reply::Json(json) => filtered(json.seen.filtered),
            Reply::Opaque | Reply::Awaited => OutcomeClass::Ok,
        };
        self.finish(class);
    }

    /// The service or the body has failed.
    pub(crate) fn failed(&mut self) {
        let class = match &self.reply {
            Reply::Awaited => OutcomeClass::UpstreamError,
            Reply::Settled(class) => *class,
            Reply::Stream { .. } | Reply::Json(_) | Reply::Opaque => OutcomeClass::MidStreamError,
        };
        self.finish(class);
    }

    /// Nothing has come for too long.
    fn idle(&mut self) {
        let class = match &self.reply {
            Reply::Settled(class) => *class,
            _ => OutcomeClass::Timeout,
        };
        self.finish(class);
    }

    fn is_stream(&self) -> bool {
        self.ticket.is_some() && matches!(self.reply, Reply::Stream { .. })
    }

    /// Nobody wants the rest.
    fn dropped(&mut self) {
        let class = match &self.reply {
            Reply::Settled(class) => *class,
            Reply::Stream { sse, .. } if sse.failed() => OutcomeClass::MidStreamError,
            Reply::Stream { sse, .. } if sse.is_done() => filtered(sse.seen().filtered),
            _ => OutcomeClass::ClientCancel,
        };
        self.finish(class);
    }

    fn finish(&mut self, class: OutcomeClass) {
        let Some(mut ticket) = self.ticket.take() else {
            return;
        };
        let seen = match &self.reply {
            Reply::Stream { sse, .. } => sse.seen(),
            Reply::Json(json) => json.seen,
            _ => super::json::Seen::default(),
        };
        ticket.tokens(seen.usage.unwrap_or(match &self.reply {
            // Engines send about a token a piece.
            Reply::Stream { .. } => seen.deltas,
            _ => 0,
        }));
        ticket.raise(self.flags.load(Ordering::Relaxed));
        let now: Timestamp = self.plane.router.now();
        let decision = ticket.decision();
        ticket.finish(class, now);
        self.plane.observe(decision, class, now);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.ticket.is_some() {
            self.dropped();
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("open", &self.ticket.is_some())
            .finish_non_exhaustive()
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
fn pieces(data: &impl Buf, mut look: impl FnMut(&[u8])) -> bool {
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

pin_project! {
    /// A response body that is watched as it passes. Frames, size and end are those of the body inside.
    #[derive(Debug)]
    pub struct ObservedBody<B> {
        #[pin]
        inner: B,
        watch: Option<Watch>,
        // Hyper drops a body of known length without polling it to its end.
        length: Option<u64>,
        idle: Option<Idle>,
    }
}

/// How long a stream may say nothing, and when that is over.
#[derive(Debug)]
struct Idle {
    limit: Duration,
    until: Pin<Box<Sleep>>,
    over: bool,
}

impl<B: Body> ObservedBody<B> {
    pub(crate) fn new(
        inner: B,
        mut watch: Option<Watch>,
        settled: Option<OutcomeClass>,
        content: Content,
        idle: Option<Duration>,
    ) -> Self {
        let length = inner.size_hint().exact();
        if let Some(watch) = &mut watch {
            watch.head(settled, content);
            if inner.is_end_stream() || length == Some(0) {
                watch.complete();
            }
        }
        let streams = watch.as_ref().is_some_and(Watch::is_stream);
        let idle = idle.filter(|_| streams).map(|limit| Idle {
            limit,
            until: Box::pin(sleep(limit)),
            over: false,
        });
        Self {
            inner,
            watch,
            length,
            idle,
        }
    }
}

impl<B: Body> Body for ObservedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        if this.idle.as_ref().is_some_and(|idle| idle.over) {
            return Poll::Ready(None);
        }
        let frame = match (this.inner.as_mut().poll_frame(cx), this.idle.as_mut()) {
            (Poll::Pending, Some(idle)) => {
                ready!(idle.until.as_mut().poll(cx));
                idle.over = true;
                if let Some(watch) = this.watch {
                    watch.idle();
                }
                return Poll::Ready(None);
            }
            (Poll::Ready(frame), Some(idle)) => {
                let until = Instant::now() + idle.limit;
                idle.until.as_mut().reset(until);
                frame
            }
            (frame, None) => ready!(frame),
        };
        let Some(watch) = this.watch else {
            return Poll::Ready(frame);
        };
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    watch.data(data);
                }
                let whole = this.length.is_some_and(|length| watch.bytes >= length);
                if whole || this.inner.is_end_stream() {
                    watch.complete();
                }
            }
            Some(Err(_)) => watch.failed(),
            None => watch.complete(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.idle.as_ref().is_some_and(|idle| idle.over) || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
