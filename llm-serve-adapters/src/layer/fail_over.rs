//! A second chance on the baseline for requests that the candidate fails before its first token.

use super::observer::{End, Observer};
use super::replay::Replayed;
use super::{Assignment, ServedBy, by_status};
use crate::DataPlane;
use crate::recorder::OutcomeClass;
use crate::router::{InProcessRouter, Key, Pin, Role, VersionSlot};
use bytes::Buf as _;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use std::fmt;
use std::future::Future;
use std::pin::Pin as Pinned;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Sleep, sleep};
use tower_layer::Layer;
use tower_service::Service;

/// Retries on the baseline what the candidate fails before its first token: an error of the service, a status that says
/// server error, timeout or overload, a reply that breaks off, ends or says that it failed before it has said anything, or, with
/// [`Self::patience`], one that takes too long. To be put inside a [`super::RolloutLayer`].
///
/// The user gets the baseline's reply (its version is in the header), and the failure is charged to the candidate all the same:
/// a fallback that saves a request does not save the candidate. From the first token on nothing is retried, since tokens of two
/// versions do not go together. A request is retried once, and only if the host can copy it: bodies that are streamed in cannot
/// be, and what acts on the world should not be.
///
/// The head of a candidate's reply waits for its first token: the first non-empty piece of an event stream, the first message of
/// a gRPC reply, the first bytes of any other. What came before (a role, comments, pings) is kept meanwhile, up to
/// [`Self::hold`] bytes, and then passed on untouched. Replies of the baseline pass as they come.
///
/// ```
/// # use llm_serve_adapters::DataPlane;
/// use http::Request;
/// use llm_serve_adapters::layer::FailOver;
///
/// # fn with(plane: &DataPlane) {
/// // Bodies that are in memory can be sent twice.
/// let layer = FailOver::new(plane, |request: &Request<String>| Some(request.clone()));
/// # drop(layer);
/// # }
/// ```
#[derive(Clone)]
pub struct FailOver<C> {
    router: Arc<InProcessRouter>,
    copy: C,
    patience: Option<Duration>,
    hold: usize,
    done_required: bool,
}

impl<C> FailOver<C> {
    /// On this data plane (or an endpoint's); `copy` copies a request, or says that it must not be sent twice.
    pub fn new(plane: impl Into<DataPlane>, copy: C) -> Self {
        Self {
            router: plane.into().router,
            copy,
            patience: None,
            hold: 64 << 10,
            done_required: true,
        }
    }

    /// Waits so long for the candidate's first token, then counts a timeout and asks the baseline. It needs a tokio runtime with
    /// time. Without it, the candidate may take as long as the service inside lets it.
    #[must_use]
    pub fn patience(mut self, limit: Duration) -> Self {
        self.patience = Some(limit);
        self
    }

    /// At most so many bytes are kept of what comes before the first token, 64 KiB unless told otherwise; with more, the reply
    /// passes, and is not retried any more.
    #[must_use]
    pub fn hold(mut self, bytes: usize) -> Self {
        self.hold = bytes;
        self
    }

    /// As [`super::RolloutLayer::done_marker`]: without one, the first bytes of an event stream count as its first token.
    #[must_use]
    pub fn done_marker(mut self, required: bool) -> Self {
        self.done_required = required;
        self
    }
}

impl<C> fmt::Debug for FailOver<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FailOver").finish_non_exhaustive()
    }
}

impl<S, C: Clone> Layer<S> for FailOver<C> {
    type Service = FailOverService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        FailOverService {
            inner,
            layer: self.clone(),
        }
    }
}

/// A service with a second chance: see [`FailOver`].
#[derive(Debug, Clone)]
pub struct FailOverService<S, C> {
    inner: S,
    layer: FailOver<C>,
}

impl<S, C, B, R> Service<Request<B>> for FailOverService<S, C>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
    C: Fn(&Request<B>) -> Option<Request<B>>,
    R: Body + Unpin,
{
    type Response = Response<Replayed<R>>;
    type Error = S::Error;
    type Future = FailOverFuture<S, S::Future, Request<B>, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let assigned = request.extensions().get::<Assignment>();
        let assigned = assigned
            .filter(|assigned| assigned.decision.role() == Role::Candidate)
            .cloned();
        let second = assigned.and_then(|mut assigned| {
            let mut copy = (self.layer.copy)(&request)?;
            let router = &self.layer.router;
            let baseline = Key::session(&[]).pinned(Pin::Baseline);
            assigned.decision = router.decide(&baseline, router.now());
            let elsewhere = assigned.decision.slot();
            copy.extensions_mut().insert(assigned);
            Some(Second {
                // The one that is ready is used up by the first call.
                service: self.inner.clone(),
                request: copy,
                elsewhere,
                patience: self.layer.patience.map(|limit| Box::pin(sleep(limit))),
                hold: self.layer.hold,
                done_required: self.layer.done_required,
            })
        });
        FailOverFuture {
            attempt: self.inner.call(request),
            stage: match second {
                Some(second) => Stage::First { second, held: None },
                None => Stage::Only,
            },
        }
    }
}

/// What is left to try, while it may be, and when it is tried.
struct Second<S, Q> {
    service: S,
    request: Q,
    /// Who serves that.
    elsewhere: VersionSlot,
    patience: Option<Pinned<Box<Sleep>>>,
    hold: usize,
    done_required: bool,
}

/// The candidate's reply, until its first token.
struct Held<R: Body> {
    response: Response<Replayed<R>>,
    observer: Observer,
    bytes: usize,
}

impl<R: Body + Unpin> Held<R> {
    /// Ready once the reply may pass, or has failed like this.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        hold: usize,
        done_required: bool,
    ) -> Poll<Option<OutcomeClass>> {
        let body = self.response.body_mut();
        loop {
            let observer = &mut self.observer;
            // What has said that it failed is not waited for any longer.
            if body.is_end() || observer.has_failed() {
                return Poll::Ready(worth_another(observer.class(End::Complete)));
            }
            match ready!(body.poll_ahead(cx)) {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.bytes = self.bytes.saturating_add(data.remaining());
                        observer.look(data);
                    }
                    if let Some(trailers) = frame.trailers_ref() {
                        observer.trailers(trailers);
                    }
                    let pieces = observer.is_stream() && done_required;
                    let begun = if pieces {
                        observer.pieces() > 0 || observer.is_done() && !observer.has_failed()
                    } else {
                        self.bytes > 0 && !observer.has_failed()
                    };
                    if begun || self.bytes > hold {
                        return Poll::Ready(None);
                    }
                }
                Some(Err(())) => return Poll::Ready(worth_another(observer.class(End::Broken))),
                None => return Poll::Ready(worth_another(observer.class(End::Complete))),
            }
        }
    }
}

/// What the baseline may do better.
fn worth_another(class: OutcomeClass) -> Option<OutcomeClass> {
    Some(class).filter(|class| class.is_fault() || *class == OutcomeClass::Overload)
}

/// How far a request is.
enum Stage<S, Q, R: Body> {
    /// There is no second chance.
    Only,
    /// The candidate is at it; its reply may have begun.
    First {
        second: Second<S, Q>,
        held: Option<Box<Held<R>>>,
    },
    /// It has failed like this.
    Failed(Second<S, Q>, OutcomeClass),
    /// Another version is at it.
    Elsewhere(VersionSlot, OutcomeClass),
}

pin_project! {
    /// The reply to come, of whichever version.
    pub struct FailOverFuture<S, F, Q, R>
    where
        R: Body,
    {
        #[pin]
        attempt: F,
        stage: Stage<S, Q, R>,
    }
}

impl<S, F, B, R, E> Future for FailOverFuture<S, F, Request<B>, R>
where
    S: Service<Request<B>, Response = Response<R>, Error = E, Future = F>,
    F: Future<Output = Result<Response<R>, E>>,
    R: Body + Unpin,
{
    type Output = Result<Response<Replayed<R>>, E>;

    fn poll(self: Pinned<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Stage::First { second, held } = this.stage {
            let first = match poll_first(this.attempt.as_mut(), held, second, cx) {
                Poll::Ready(first) => first,
                Poll::Pending => {
                    let Some(patience) = &mut second.patience else {
                        return Poll::Pending;
                    };
                    ready!(patience.as_mut().poll(cx));
                    Some(OutcomeClass::Timeout)
                }
            };
            *this.stage = match (first, std::mem::replace(this.stage, Stage::Only)) {
                (Some(class), Stage::First { second, .. }) => Stage::Failed(second, class),
                (
                    None,
                    Stage::First {
                        held: Some(held), ..
                    },
                ) => {
                    return Poll::Ready(Ok(held.response));
                }
                (_, stage) => stage,
            };
        }
        if let Stage::Failed(second, _) = this.stage {
            ready!(second.service.poll_ready(cx))?;
        }
        *this.stage = match std::mem::replace(this.stage, Stage::Only) {
            Stage::Failed(mut second, class) => {
                this.attempt.set(second.service.call(second.request));
                Stage::Elsewhere(second.elsewhere, class)
            }
            stage => stage,
        };
        let mut reply = ready!(this.attempt.poll(cx))?;
        if let Stage::Elsewhere(slot, class) = this.stage {
            reply.extensions_mut().insert(*class);
            reply.extensions_mut().insert(ServedBy(*slot));
        }
        Poll::Ready(Ok(reply.map(Replayed::new)))
    }
}

/// Ready once the candidate's reply may pass, or it has failed like this.
fn poll_first<S, F, Q, R, E>(
    attempt: Pinned<&mut F>,
    held: &mut Option<Box<Held<R>>>,
    second: &Second<S, Q>,
    cx: &mut Context<'_>,
) -> Poll<Option<OutcomeClass>>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body + Unpin,
{
    if held.is_none() {
        let Ok(response) = ready!(attempt.poll(cx)) else {
            return Poll::Ready(Some(OutcomeClass::UpstreamError));
        };
        let observer = Observer::new(response.status(), response.headers());
        let settled = by_status(response.status());
        *held = Some(Box::new(Held {
            observer: observer.done_marker(second.done_required),
            response: response.map(Replayed::new),
            bytes: 0,
        }));
        if let Some(class) = settled {
            return Poll::Ready(worth_another(class));
        }
    }
    match held {
        Some(held) => held.poll(cx, second.hold, second.done_required),
        None => Poll::Pending,
    }
}

impl<S, F, Q, R: Body> fmt::Debug for FailOverFuture<S, F, Q, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FailOverFuture").finish_non_exhaustive()
    }
}
