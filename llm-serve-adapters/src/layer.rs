//! A `tower` layer: decides, marks the request and the reply, follows the reply as it streams, and records how it ended.
//!
//! ```
//! # use llm_serve_adapters::DataPlane;
//! use llm_serve_adapters::layer::{KeySource as _, RolloutLayer, bearer_hash, header};
//!
//! # fn with(plane: &DataPlane) {
//! let layer = RolloutLayer::new(plane).key(header("x-session-id").or(bearer_hash()).or_request());
//! # drop(layer);
//! # }
//! ```
//!
//! Inside, handlers find an [`Assignment`] in the request's extensions. Neither axum nor tokio is in this API: any tower
//! service over `http` requests will do, with any body.
//!
//! How a request ends, by what the service inside does:
//!
//! | what | outcome |
//! |---|---|
//! | the service returns an error | upstream error |
//! | status 429, 503, 529 | overload |
//! | status 504 | timeout |
//! | status 499 | cancel by the client |
//! | status 424, by which text-generation-inference tells of a generation that failed, and any other 5xx | upstream error |
//! | any other 4xx | client error |
//! | the body fails | mid-stream error |
//! | an event stream with an error event, or without `[DONE]` (see [`RolloutLayer::done_marker`]) | mid-stream error |
//! | a JSON reply with an `error` object | upstream error |
//! | finish reason `content_filter` or `refusal` | safety block |
//! | a gRPC status other than 0 | by its code: 1 cancel, 4 timeout, 8 overload, 2, 13, 14, 15 and unknown ones upstream error (mid-stream after a message), others client error |
//! | a gRPC reply without a status | mid-stream error |
//! | the reply is dropped before its end | cancel by the client |
//! | anything else | ok |
//!
//! A handler that knows better puts an [`OutcomeClass`] into the response's extensions: it is recorded when the body ends.
//! What a handler finds out about a reply (a failed check, a bad format) it says with [`Assignment::flag`].
//!
//! The first token is the first non-empty piece of content, reasoning, tool call or refusal of an event stream, the first
//! message of a gRPC reply that is not empty, and the first byte of any other reply. Output tokens are what the reply's usage says, else the number of non-empty pieces. A body with
//! a content encoding is not looked into.
//!
//! Hosts that are no tower services, such as proxies with filter phases, follow replies with an [`Observer`].

mod body;
mod fail_over;
mod field;
mod grpc;
mod json;
mod key;
mod observer;
mod replay;
mod scan;
mod sse;
#[cfg(test)]
mod tests;

pub use self::body::ObservedBody;
pub use self::fail_over::{FailOver, FailOverFuture, FailOverService};
pub use self::field::{BodyField, BodyFieldFuture, BodyFieldService, FromBody, from_body};
pub use self::key::{
    BearerHash, BearerSubject, Dated, FromCookie, FromFn, FromHeader, Head, KeySource, Or,
    PerRequest, PinnedBy, Untrusted, bearer_hash, bearer_subject, cookie, from_fn, header,
};
pub use self::observer::{End, Observer};
pub use self::replay::Replayed;

use self::body::{Shared, Watch};
use self::key::Scratch;
use crate::DataPlane;
use crate::recorder::OutcomeClass;
use crate::router::{Decision, Key, Pin, TenantPolicy, Version, VersionSlot};
use http::header::HeaderName;
use http::{Request, Response, StatusCode};
use http_body::Body;
use pin_project_lite::pin_project;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tower_layer::Layer;
use tower_service::Service;

/// The response header that names the version that replied, as a bundle reference.
pub const VERSION_HEADER: HeaderName = HeaderName::from_static("x-llm-version");

/// Puts the data plane around a service: see the [module](self).
#[derive(Clone)]
pub struct RolloutLayer<K = PerRequest> {
    plane: Arc<DataPlane>,
    key: K,
    policy: Option<Arc<PolicyOf>>,
    done_required: bool,
    idle: Option<Duration>,
}

type PolicyOf = dyn for<'r> Fn(Head<'r>) -> TenantPolicy + Send + Sync;

impl<K: fmt::Debug> fmt::Debug for RolloutLayer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RolloutLayer")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl RolloutLayer {
    /// Around this data plane (or an endpoint's); assigns each request by itself until told by what: see [`Self::key`].
    pub fn new(plane: impl Into<DataPlane>) -> Self {
        Self {
            plane: Arc::new(plane.into()),
            key: PerRequest,
            policy: None,
            done_required: true,
            idle: None,
        }
    }
}

impl<K> RolloutLayer<K> {
    /// Assigns requests by this key. One for which the source has none goes to the baseline and is no evidence
    /// ([`KeySource::or_request`] assigns it by itself).
    #[must_use]
    pub fn key<L: KeySource>(self, key: L) -> RolloutLayer<L> {
        RolloutLayer {
            plane: self.plane,
            key,
            policy: self.policy,
            done_required: self.done_required,
            idle: self.idle,
        }
    }

    /// Asks for the policy of each request's tenant, which goes before what its key says: see [`crate::router::Policies`].
    #[must_use]
    pub fn policy(
        mut self,
        of: impl for<'r> Fn(Head<'r>) -> TenantPolicy + Send + Sync + 'static,
    ) -> Self {
        self.policy = Some(Arc::new(of));
        self
    }

    /// Ends an event stream that says nothing for so long, and records a timeout: the client gets what had come, without its
    /// end mark. It needs a tokio runtime with time.
    #[must_use]
    pub fn idle(mut self, limit: Duration) -> Self {
        self.idle = Some(limit);
        self
    }

    /// Whether an event stream that ends without `[DONE]` (or an event that ends a response) was cut off. It is so by
    /// default; say `false` where the service inside streams something that has no such mark.
    #[must_use]
    pub fn done_marker(mut self, required: bool) -> Self {
        self.done_required = required;
        self
    }
}

impl<S, K: Clone> Layer<S> for RolloutLayer<K> {
    type Service = RolloutService<S, K>;

    fn layer(&self, inner: S) -> Self::Service {
        RolloutService {
            inner,
            layer: Arc::new(self.clone()),
        }
    }
}

/// A service with the data plane around it: see [`RolloutLayer`].
#[derive(Debug)]
pub struct RolloutService<S, K = PerRequest> {
    inner: S,
    // Hosts clone services with each connection and each request.
    layer: Arc<RolloutLayer<K>>,
}

impl<S: Clone, K> Clone for RolloutService<S, K> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            layer: Arc::clone(&self.layer),
        }
    }
}

/// What was decided about a request; in its extensions.
#[derive(Clone)]
pub struct Assignment {
    decision: Decision,
    policy: TenantPolicy,
    shared: Arc<Shared>,
}

/// In a response's extensions: another version than the one that was decided has served it.
#[derive(Debug, Clone, Copy)]
struct ServedBy(VersionSlot);

impl Assignment {
    /// What was decided.
    pub fn decision(&self) -> Decision {
        self.decision
    }

    /// What its tenant has agreed to: whether it may be mirrored, or kept.
    pub fn policy(&self) -> TenantPolicy {
        self.policy
    }

    /// The version that is to reply.
    pub fn version(&self) -> Option<&'static Version> {
        self.decision.version()
    }

    /// Raises a flag of the recorder on this request, until its reply has ended. `false`: there is no such flag.
    pub fn flag(&self, name: &str) -> bool {
        self.shared.flag(name)
    }
}

impl fmt::Debug for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assignment")
            .field("decision", &self.decision)
            .finish_non_exhaustive()
    }
}

impl<S, K, B, R> Service<Request<B>> for RolloutService<S, K>
where
    S: Service<Request<B>, Response = Response<R>>,
    K: KeySource,
    R: Body,
{
    type Response = Response<ObservedBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let plane = &self.layer.plane;
        let now = plane.router.now();
        let scratch = Scratch::default();
        let key = self.layer.key.key(Head::of(&request, &scratch));
        let key = key.unwrap_or(Key::keyless().pinned(Pin::Baseline));
        let policy = self.layer.policy.as_ref();
        let other = Scratch::default();
        let policy = policy.map_or(TenantPolicy::OPEN, |of| of(Head::of(&request, &other)));
        let key = policy.key(key);
        let decision = plane.decide(&key, now);
        let ticket = plane.recorder.begin(decision, now);
        let shared = Shared::new(Arc::clone(plane));
        request.extensions_mut().insert(Assignment {
            decision,
            policy,
            shared: Arc::clone(&shared),
        });
        ResponseFuture {
            inner: self.inner.call(request),
            watch: Some(Watch::new(shared, ticket)),
            version: decision.version(),
            done_required: self.layer.done_required,
            idle: self.layer.idle,
        }
    }
}

pin_project! {
    /// The reply to come. Dropped before it has come, it records a cancel.
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        watch: Option<Watch>,
        version: Option<&'static Version>,
        done_required: bool,
        idle: Option<Duration>,
    }
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body,
{
    type Output = Result<Response<ObservedBody<R>>, E>;

    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let reply = ready!(this.inner.poll(cx));
        let watch = this.watch.take();
        Poll::Ready(match reply {
            Ok(mut response) => {
                let served = response.extensions_mut().remove::<ServedBy>();
                let version = served.map_or(*this.version, |ServedBy(slot)| slot.version());
                if let Some(reference) = version.and_then(Version::header) {
                    response.headers_mut().insert(VERSION_HEADER, reference);
                }
                let settled = response.extensions_mut().remove::<OutcomeClass>();
                let observer = match settled {
                    Some(class) => Observer::settled(class),
                    None => Observer::new(response.status(), response.headers())
                        .done_marker(*this.done_required),
                };
                Ok(response.map(|body| ObservedBody::new(body, watch, observer, *this.idle)))
            }
            Err(error) => {
                if let Some(mut watch) = watch {
                    watch.end(End::Broken);
                }
                Err(error)
            }
        })
    }
}

/// How a request ends whose reply has this status; none if the body decides.
fn by_status(status: StatusCode) -> Option<OutcomeClass> {
    match status.as_u16() {
        429 | 503 | 529 => Some(OutcomeClass::Overload),
        504 => Some(OutcomeClass::Timeout),
        499 => Some(OutcomeClass::ClientCancel),
        424 | 500.. => Some(OutcomeClass::UpstreamError),
        400..=499 => Some(OutcomeClass::ClientError),
        _ => None,
    }
}
