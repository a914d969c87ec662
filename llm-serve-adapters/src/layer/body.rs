//! A response body that is watched as it passes: untouched, and recorded when it ends.

use super::observer::{End, Observer};
use crate::DataPlane;
use crate::recorder::Ticket;
use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};

/// What those who know of a request share.
pub(crate) struct Shared {
    plane: Arc<DataPlane>,
    flags: AtomicU16,
}

impl Shared {
    pub(crate) fn new(plane: Arc<DataPlane>) -> Arc<Self> {
        Arc::new(Self {
            plane,
            flags: AtomicU16::new(0),
        })
    }

    /// Raises a flag of the recorder; whether there is such a flag.
    pub(crate) fn flag(&self, name: &str) -> bool {
        let flags = self.plane.recorder.flags();
        let index = flags.iter().position(|known| known == name);
        if let Some(index) = index {
            self.flags.fetch_or(1 << index, Ordering::Relaxed);
        }
        index.is_some()
    }
}

/// A request in flight; recorded once, at the latest when it is dropped.
pub(crate) struct Watch {
    shared: Arc<Shared>,
    ticket: Option<Ticket>,
    observer: Observer,
    bytes: u64,
}

impl Watch {
    pub(crate) fn new(shared: Arc<Shared>, ticket: Ticket) -> Self {
        Self {
            shared,
            ticket: Some(ticket),
            observer: Observer::awaiting(),
            bytes: 0,
        }
    }

    fn data(&mut self, data: &impl Buf) {
        let Some(ticket) = self.ticket.as_mut().filter(|_| data.has_remaining()) else {
            return;
        };
        self.bytes = self.bytes.saturating_add(data.remaining() as u64);
        let now = self.shared.plane.router.now();
        self.observer.frame(ticket, data, now);
    }

    fn is_stream(&self) -> bool {
        self.ticket.is_some() && self.observer.is_stream()
    }

    /// The service, or its body, has ended.
    pub(crate) fn end(&mut self, end: End) {
        let Some(mut ticket) = self.ticket.take() else {
            return;
        };
        let class = self.observer.class(end);
        ticket.tokens(self.observer.tokens());
        let Shared { plane, flags } = &*self.shared;
        ticket.raise(flags.load(Ordering::Relaxed));
        let now = plane.router.now();
        let decision = ticket.decision();
        ticket.finish(class, now);
        plane.observe(decision, class, now);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end(End::Dropped);
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("open", &self.ticket.is_some())
            .finish_non_exhaustive()
    }
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
        idle: Option<Pin<Box<Idle>>>,
    }
}

pin_project! {
    /// How long a stream may say nothing, and when that is over.
    #[derive(Debug)]
    struct Idle {
        limit: Duration,
        // Since when it says nothing.
        since: Instant,
        // It has said something since then.
        heard: bool,
        over: bool,
        #[pin]
        until: Sleep,
    }
}

impl Idle {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            since: Instant::now(),
            heard: false,
            over: false,
            until: sleep(limit),
        }
    }

    /// Nothing has come: ready when that has been so for too long. Only here the clock is read, and only when the timer has run
    /// out it is set again: not with every piece.
    fn poll_over(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if std::mem::take(this.heard) {
            *this.since = Instant::now();
        }
        loop {
            ready!(this.until.as_mut().poll(cx));
            match this.since.checked_add(*this.limit) {
                Some(end) if end > this.until.deadline() => this.until.as_mut().reset(end),
                Some(_) => break,
                // For longer than there are clocks.
                None => return Poll::Pending,
            }
        }
        *this.over = true;
        Poll::Ready(())
    }
}

impl<B: Body> ObservedBody<B> {
    pub(crate) fn new(
        inner: B,
        mut watch: Option<Watch>,
        observer: Observer,
        idle: Option<Duration>,
    ) -> Self {
        let length = inner.size_hint().exact();
        if let Some(watch) = &mut watch {
            watch.observer = observer;
            if inner.is_end_stream() || length == Some(0) {
                watch.end(End::Complete);
            }
        }
        let streams = watch.as_ref().is_some_and(Watch::is_stream);
        let idle = idle.filter(|_| streams);
        let idle = idle.map(|limit| Box::pin(Idle::new(limit)));
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
        let Poll::Ready(frame) = this.inner.as_mut().poll_frame(cx) else {
            let Some(idle) = this.idle else {
                return Poll::Pending;
            };
            ready!(idle.as_mut().poll_over(cx));
            if let Some(watch) = this.watch {
                watch.end(End::Idle);
            }
            return Poll::Ready(None);
        };
        if let Some(idle) = this.idle {
            *idle.as_mut().project().heard = true;
        }
        let Some(watch) = this.watch else {
            return Poll::Ready(frame);
        };
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    watch.data(data);
                }
                if let Some(trailers) = frame.trailers_ref() {
                    watch.observer.trailers(trailers);
                }
                let whole = this.length.is_some_and(|length| watch.bytes >= length);
                // Nothing comes after trailers, and nobody asks for it.
                if whole || frame.is_trailers() || this.inner.is_end_stream() {
                    watch.end(End::Complete);
                }
            }
            Some(Err(_)) => watch.end(End::Broken),
            None => watch.end(End::Complete),
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
