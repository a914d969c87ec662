//! A body of which some has been read already: that comes first, then the rest.

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

pin_project! {
    /// A body of which some has been read already: that comes first, as it was, then the rest. Nothing is lost or copied.
    pub struct Replayed<B>
    where
        B: Body,
    {
        read: VecDeque<Frame<B::Data>>,
        ended: Option<Ended<B::Error>>,
        #[pin]
        rest: B,
    }
}

/// What came after what was read.
enum Ended<E> {
    Failed(E),
    Over,
}

/// A frame that was read ahead; `Err` where the body has failed.
type Ahead<'a, D> = Result<&'a Frame<D>, ()>;

impl<B: Body> Replayed<B> {
    /// Nothing of it has been read.
    pub(crate) fn new(rest: B) -> Self {
        Self {
            read: VecDeque::new(),
            ended: None,
            rest,
        }
    }

    /// Reads one more frame ahead of whoever will read the body: none at its end, `Err` if it has failed there.
    pub(crate) fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<Option<Ahead<'_, B::Data>>>
    where
        B: Unpin,
    {
        if let Some(ended) = &self.ended {
            return Poll::Ready(match ended {
                Ended::Failed(_) => Some(Err(())),
                Ended::Over => None,
            });
        }
        Pin::new(&mut self.rest)
            .poll_frame(cx)
            .map(|frame| match frame {
                Some(Ok(frame)) => {
                    self.read.push_back(frame);
                    self.read.back().map(Ok)
                }
                Some(Err(error)) => {
                    self.ended = Some(Ended::Failed(error));
                    Some(Err(()))
                }
                None => {
                    self.ended = Some(Ended::Over);
                    None
                }
            })
    }

    /// Whether there is nothing more to read ahead.
    pub(crate) fn is_end(&self) -> bool {
        self.ended.is_some() || self.rest.is_end_stream()
    }

    /// What has been read and not been passed on.
    pub(crate) fn read(&self) -> impl Iterator<Item = &B::Data> {
        self.read.iter().filter_map(Frame::data_ref)
    }
}

impl<B: Body> Body for Replayed<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        if let Some(frame) = this.read.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        match this.ended.take() {
            None => this.rest.poll_frame(cx),
            Some(ended) => {
                *this.ended = Some(Ended::Over);
                Poll::Ready(match ended {
                    Ended::Failed(error) => Some(Err(error)),
                    Ended::Over => None,
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty()
            && match &self.ended {
                None => self.rest.is_end_stream(),
                Some(Ended::Failed(_)) => false,
                Some(Ended::Over) => true,
            }
    }

    fn size_hint(&self) -> SizeHint {
        use bytes::Buf as _;
        let read = self.read().map(|data| data.remaining() as u64).sum::<u64>();
        let rest = match &self.ended {
            None => self.rest.size_hint(),
            Some(Ended::Failed(_)) => SizeHint::default(),
            Some(Ended::Over) => SizeHint::with_exact(0),
        };
        let mut hint = SizeHint::default();
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(read)) {
            hint.set_upper(upper);
        }
        hint.set_lower(
            rest.lower()
                .saturating_add(read)
                .min(hint.upper().unwrap_or(u64::MAX)),
        );
        hint
    }
}

impl<B: Body> fmt::Debug for Replayed<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replayed")
            .field("read", &self.read.len())
            .finish_non_exhaustive()
    }
}
