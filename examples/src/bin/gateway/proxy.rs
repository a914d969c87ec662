//! The request path: reads what a client asks, makes it its version's, and streams back what the version says.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use llm_serve_adapters::DataPlane;
use llm_serve_adapters::apply::{Api, ApplyError, Profile, Profiles};
use llm_serve_adapters::layer::{Assignment, ObservedBody};
use llm_serve_adapters::router::Role;
use llm_serve_adapters::shadow::{Pair, Request as Mirrored, Shadow};
use llm_version_core::VersionId;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tower_service::Service;

/// A request whose body is in memory: it can be looked into, and sent twice.
pub(crate) type Asked = Request<Bytes>;

/// The body's `user`, in a request's extensions.
#[derive(Debug, Clone)]
pub(crate) struct User(pub(crate) String);

/// The most bytes of a request, and of a whole reply that is compared.
const LARGEST: usize = 4 << 20;
/// How long a version may take until its reply begins.
const PATIENCE: Duration = Duration::from_secs(120);
/// Headers that belong to one connection, not to the request.
const HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::UPGRADE,
    header::ACCEPT_ENCODING,
];

type Boxed = Box<dyn Error + Send + Sync>;

/// The routes that clients call, around the layered service.
pub(crate) fn app<S, B>(service: S) -> Router
where
    S: Service<Asked, Response = Response<ObservedBody<B>>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Boxed>,
{
    Router::new()
        .route("/v1/chat/completions", post(ask::<S, B>))
        .route("/v1/completions", post(ask::<S, B>))
        .route("/v1/responses", post(ask::<S, B>))
        .with_state(service)
}

/// Reads the body, which says who the user is if no header does.
async fn ask<S, B>(State(mut service): State<S>, request: Request<Body>) -> Response
where
    S: Service<Asked, Response = Response<ObservedBody<B>>, Error = Infallible>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Boxed>,
{
    let (mut parts, body) = request.into_parts();
    let Ok(body) = Limited::new(body, LARGEST).collect().await else {
        return refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the request is cut off or too large",
        );
    };
    let body = body.to_bytes();
    let Ok(asked) = serde_json::from_slice::<Value>(&body) else {
        return refuse(StatusCode::BAD_REQUEST, "the request is not JSON");
    };
    if let Some(user) = asked
        .get("user")
        .and_then(Value::as_str)
        .filter(|user| !user.is_empty())
    {
        parts.extensions.insert(User(user.to_owned()));
    }
    let ready = std::future::poll_fn(|cx| service.poll_ready(cx)).await;
    let answered = match ready {
        Ok(()) => service.call(Request::from_parts(parts, body)).await,
        Err(never) => match never {},
    };
    match answered {
        Ok(response) => response.map(Body::new),
        Err(never) => match never {},
    }
}

fn refuse(status: StatusCode, message: &str) -> Response {
    let body = json!({"error": {"message": message, "type": "invalid_request_error"}});
    (status, axum::Json(body)).into_response()
}

/// The servers, and what each version makes of a request.
#[derive(Debug, Clone)]
pub(crate) struct Upstreams {
    profiles: Arc<Profiles>,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Upstreams {
    pub(crate) fn new(profiles: Profiles) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self {
            profiles: Arc::new(profiles),
            client: Client::builder(TokioExecutor::new()).build(connector),
        }
    }

    /// Asks a version for a few tokens. `Err` says why there were none.
    pub(crate) async fn generate(&self, version: &VersionId) -> Result<(), Boxed> {
        let profile = self
            .profiles
            .get(version)
            .ok_or("the version has no profile")?;
        let mut body =
            json!({"max_tokens": 16, "messages": [{"role": "user", "content": "Say hello."}]});
        profile.apply(Api::Chat, &mut body)?;
        let json = HeaderValue::from_static("application/json");
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, json)]);
        let asked = async {
            let asked = self.send(profile, "/v1/chat/completions", &headers, &body);
            let response = asked.await?;
            if !response.status().is_success() {
                return Err(Boxed::from(format!("status {}", response.status())));
            }
            let whole = Limited::new(response.into_body(), LARGEST)
                .collect()
                .await?;
            Ok(serde_json::from_slice::<Value>(&whole.to_bytes())?)
        };
        let reply = tokio::time::timeout(PATIENCE, asked).await??;
        let message = &reply["choices"][0]["message"];
        let says = |field: &str| message[field].as_str().is_some_and(|text| !text.is_empty());
        if ["content", "reasoning_content", "reasoning"]
            .into_iter()
            .any(says)
        {
            Ok(())
        } else {
            Err(Boxed::from("it says nothing"))
        }
    }

    async fn send(
        &self,
        profile: &Profile,
        path: &str,
        headers: &HeaderMap,
        body: &Value,
    ) -> Result<Response, Boxed> {
        let address = profile.address().ok_or("the version has no upstream")?;
        let mut request = Request::new(Full::new(Bytes::from(serde_json::to_vec(body)?)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = format!("{address}{path}").parse::<Uri>()?;
        *request.headers_mut() = headers.clone();
        for name in HOP {
            request.headers_mut().remove(name);
        }
        let response = self.client.request(request).await?;
        let (mut parts, body) = response.into_parts();
        for name in [header::CONNECTION, header::TRANSFER_ENCODING] {
            parts.headers.remove(name);
        }
        Ok(Response::from_parts(parts, Body::new(body)))
    }
}

/// Asks the version that was decided.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    plane: DataPlane,
    upstreams: Upstreams,
    shadow: Shadow,
}

impl Proxy {
    pub(crate) fn new(plane: DataPlane, upstreams: Upstreams, shadow: Shadow) -> Self {
        Self {
            plane,
            upstreams,
            shadow,
        }
    }

    async fn answer(self, request: Asked) -> Response {
        let Some(assignment) = request.extensions().get::<Assignment>().cloned() else {
            return refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "nobody has decided which version answers",
            );
        };
        let path = request.uri().path().to_owned();
        let (Some(api), Ok(mut body)) = (
            Api::of_path(&path),
            serde_json::from_slice::<Value>(request.body()),
        ) else {
            return refuse(
                StatusCode::BAD_REQUEST,
                "the request is not one of chat, completions or responses",
            );
        };
        let pair = self.mirror(&assignment, api, &path, &request, &body);
        let profile = match assignment
            .decision()
            .apply(&self.upstreams.profiles, api, &mut body)
        {
            Ok(profile) => profile,
            Err(wrong @ ApplyError::Shape { .. }) => {
                return refuse(StatusCode::BAD_REQUEST, &wrong.to_string());
            }
            Err(wrong) => return refuse(StatusCode::INTERNAL_SERVER_ERROR, &wrong.to_string()),
        };
        let asked = self
            .upstreams
            .send(profile, &path, request.headers(), &body);
        let response = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => return refuse(StatusCode::BAD_GATEWAY, "the version cannot be reached"),
            Err(_) => return refuse(StatusCode::GATEWAY_TIMEOUT, "the version does not answer"),
        };
        match pair.filter(|pair| pair.is_mirrored() && response.status().is_success()) {
            Some(pair) => paired(response, pair).await,
            None => response,
        }
    }

    /// Mirrors a whole reply's request to the candidate, if it is to be and may be.
    fn mirror(
        &self,
        assignment: &Assignment,
        api: Api,
        path: &str,
        request: &Asked,
        body: &Value,
    ) -> Option<Pair> {
        let now = self.plane.router.now();
        let session = request.headers().get("x-session-id");
        let session = session.map_or(&b""[..], |value| value.as_bytes());
        let streamed = body.get("stream").and_then(Value::as_bool).unwrap_or(false);
        let baseline = assignment.decision().role() != Role::Candidate;
        if session.is_empty() || streamed || !baseline || assignment.policy().no_shadow {
            return None;
        }
        let candidate = self.plane.router.mirror(session, now)?;
        let profile = self
            .upstreams
            .profiles
            .get(candidate.version()?.id())?
            .clone();
        let mut copy = body.clone();
        let (upstreams, path, headers) = (
            self.upstreams.clone(),
            path.to_owned(),
            request.headers().clone(),
        );
        let cost = (request.body().len() / 3) as u64 + 1_000;
        let mirrored = Mirrored::of_body(body).tokens(cost);
        Some(self.shadow.offer(candidate, mirrored, move || async move {
            profile.apply(api, &mut copy)?;
            let response = upstreams.send(&profile, &path, &headers, &copy).await?;
            if !response.status().is_success() {
                return Err(Boxed::from("the candidate refused"));
            }
            let whole = Limited::new(response.into_body(), LARGEST)
                .collect()
                .await?;
            Ok(said(&whole.to_bytes()))
        }))
    }
}

/// A reply that is compared is read whole first; it was not asked for as a stream.
async fn paired(response: Response, pair: Pair) -> Response {
    let (parts, body) = response.into_parts();
    match Limited::new(body, LARGEST).collect().await {
        Ok(whole) => {
            let whole = whole.to_bytes();
            pair.answered(said(&whole));
            Response::from_parts(parts, Body::from(whole))
        }
        Err(_) => refuse(StatusCode::BAD_GATEWAY, "the version's reply was cut off"),
    }
}

/// What a whole reply says, without the ids and times around it.
fn said(reply: &[u8]) -> String {
    let reply: Value = serde_json::from_slice(reply).unwrap_or_default();
    [
        "/choices/0/message/content",
        "/choices/0/text",
        "/output/0/content/0/text",
    ]
    .into_iter()
    .find_map(|place| reply.pointer(place)?.as_str().map(str::to_owned))
    .unwrap_or_default()
}

impl Service<Asked> for Proxy {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Asked) -> Self::Future {
        let me = self.clone();
        Box::pin(async move { Ok(me.answer(request).await) })
    }
}
