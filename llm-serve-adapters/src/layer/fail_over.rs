//! A second chance on the baseline for requests that the candidate fails before its reply has begun.

use super::{Assignment, ServedBy, by_status};
use crate::DataPlane;
use crate::recorder::OutcomeClass;
use crate::router::{Key, Pin, Role, VersionSlot};
use http::{Request, Response};
use pin_project_lite::pin_project;
use std::fmt;
use std::future::Future;
use std::pin::Pin as Pinned;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// Retries on the baseline what the candidate fails before its reply has begun: an error of the service, or a status that says
/// server error, timeout or overload. To be put inside a [`super::RolloutLayer`].
///
/// The user gets the baseline's reply (its version is in the header), and the failure is charged to the candidate all the same:
/// a fallback that saves a request does not save the candidate. Once a reply has begun nothing is retried, since tokens of two
/// versions do not go together. A request is retried once, and only if the host can copy it: bodies that are streamed in cannot
/// be, and what acts on the world should not be.
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
    plane: DataPlane,
    copy: C,
}

impl<C> FailOver<C> {
    /// On this data plane (or an endpoint's); `copy` copies a request, or says that it must not be sent twice.
    pub fn new(plane: impl Into<DataPlane>, copy: C) -> Self {
        Self {
            plane: plane.into(),
            copy,
        }
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
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = FailOverFuture<S, S::Future, Request<B>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let assigned = request.extensions().get::<Assignment>();
        let assigned = assigned
            .filter(|assigned| assigned.decision.role() == Role::Candidate)
            .cloned();
        let mut elsewhere = None;
        let spare = assigned.and_then(|mut assigned| {
            let mut copy = (self.layer.copy)(&request)?;
            let router = &self.layer.plane.router;
            let baseline = Key::session(&[]).pinned(Pin::Baseline);
            assigned.decision = router.decide(&baseline, router.now());
            elsewhere = Some(assigned.decision.slot());
            copy.extensions_mut().insert(assigned);
            // The one that is ready is used up by the first call.
            Some((self.inner.clone(), copy))
        });
        FailOverFuture {
            attempt: self.inner.call(request),
            spare,
            elsewhere,
            class: None,
        }
    }
}

pin_project! {
    /// The reply to come, of whichever version.
    pub struct FailOverFuture<S, F, Q> {
        #[pin]
        attempt: F,
        // What is left to try, while it may be.
        spare: Option<(S, Q)>,
        // Who serves that.
        elsewhere: Option<VersionSlot>,
        // How the first attempt failed.
        class: Option<OutcomeClass>,
    }
}

impl<S, F, B, R, E> Future for FailOverFuture<S, F, Request<B>>
where
    S: Service<Request<B>, Response = Response<R>, Error = E, Future = F>,
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<R>, E>;

    fn poll(self: Pinned<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if this.class.is_none() {
            let reply = ready!(this.attempt.as_mut().poll(cx));
            let failed = match &reply {
                Err(_) => Some(OutcomeClass::UpstreamError),
                Ok(response) => by_status(response.status())
                    .filter(|class| class.is_fault() || *class == OutcomeClass::Overload),
            };
            if failed.is_none() || this.spare.is_none() {
                return Poll::Ready(reply);
            }
            *this.class = failed;
        }
        if let Some((service, _)) = this.spare {
            ready!(service.poll_ready(cx))?;
        }
        if let Some((mut service, request)) = this.spare.take() {
            this.attempt.set(service.call(request));
        }
        let mut reply = ready!(this.attempt.as_mut().poll(cx));
        if let (Ok(response), Some(class), Some(slot)) = (&mut reply, *this.class, *this.elsewhere)
        {
            response.extensions_mut().insert(class);
            response.extensions_mut().insert(ServedBy(slot));
        }
        Poll::Ready(reply)
    }
}

impl<S, F, Q> fmt::Debug for FailOverFuture<S, F, Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FailOverFuture").finish_non_exhaustive()
    }
}
