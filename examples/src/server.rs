//! A model server inside the process: an OpenAI-compatible API over the real
//! small language model, one version beside the other.
//!
//! Which version answers was decided before the request comes here, by the
//! rollout's layer. Each version answers with its own system prompt, chat
//! template and generation settings; what a client says about those is not
//! looked at, except that it may ask for fewer tokens.

mod api;
mod engines;
mod generation;
#[cfg(test)]
mod tests;

pub use engines::{Engines, Limits};

use api::{ApiError, Asked};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use engines::NoTurn;
use http::{Extensions, HeaderValue, Request, StatusCode, header};
use llm_version_core::VersionId;
use serde_json::{Value, json};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The name under which the server offers its model.
pub const MODEL: &str = "desk";
/// The flag that is raised on a reply that no program could use.
pub const BAD_FORMAT: &str = "bad_format";

/// The most bytes of a request; the longest letter has about one thousand.
const LARGEST_REQUEST: usize = 64 << 10;
/// How long a request's body may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(10);

/// Raises flags on the request that carries it among its extensions.
#[derive(Clone)]
pub struct Flags(Arc<dyn Fn(&str) + Send + Sync>);

impl Flags {
    /// Calls `raise` with the name of each flag that is raised.
    pub fn new(raise: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(raise))
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flags").finish_non_exhaustive()
    }
}

/// The version that is to answer, as the layer has decided.
fn resolved(extensions: &Extensions) -> Option<VersionId> {
    extensions.get::<VersionId>().cloned()
}

/// The flags of a request, if anybody listens.
fn flags(extensions: &Extensions) -> Option<Flags> {
    extensions.get::<Flags>().cloned()
}

/// Raises a flag.
fn raise(flags: Option<&Flags>, name: &str) {
    if let Some(Flags(raise)) = flags {
        raise(name);
    }
}

/// The API. `layered` puts the rollout's layer around what it is to decide
/// about: the chat route, and not the requests for health and models, which
/// are no version's.
pub fn app(engines: &Engines, layered: impl FnOnce(Router) -> Router) -> Router {
    let chat = Router::new()
        .route("/v1/chat/completions", post(chat))
        .with_state(engines.clone());
    let about = Router::new()
        .route("/v1/models", get(models))
        .route("/health", get(health))
        .with_state(engines.clone());
    layered(chat)
        .merge(about)
        .method_not_allowed_fallback(|| async {
            ApiError::invalid(None, "this path has another method")
                .with_status(StatusCode::METHOD_NOT_ALLOWED)
        })
        .fallback(|| async {
            ApiError::invalid(None, "there is no such path").with_status(StatusCode::NOT_FOUND)
        })
}

async fn chat(State(engines): State<Engines>, request: Request<Body>) -> Response {
    match answer(&engines, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn answer(engines: &Engines, request: Request<Body>) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let version = resolved(&parts.extensions)
        .ok_or_else(|| ApiError::server("undecided", "nobody has decided which version answers"))?;
    let (engine, running) = engines.begin(&version).ok_or_else(|| {
        let message = format!("{} is not loaded", version.reference());
        ApiError::server("not_loaded", message)
    })?;
    let body = tokio::time::timeout(ARRIVAL, to_bytes(body, LARGEST_REQUEST)).await;
    let body = body
        .map_err(|_| {
            ApiError::invalid(None, "the request took too long to arrive")
                .with_status(StatusCode::REQUEST_TIMEOUT)
        })?
        .map_err(|_| {
            ApiError::invalid(None, "the request is cut off or too large")
                .with_status(StatusCode::PAYLOAD_TOO_LARGE)
        })?;
    let asked = Asked::parse(&body)?;
    let turn = engines.turn().await.map_err(|none| match none {
        NoTurn::Full => ApiError::overload(none.to_string()),
        NoTurn::Late => ApiError::server("overloaded", none.to_string()),
    })?;

    let stream = asked.stream;
    let flags = flags(&parts.extensions);
    let limit = engines.limits().reply;
    let mut reply = generation::start(engine, asked, turn, flags, limit, running);
    let (kind, body) = if stream {
        ("text/event-stream; charset=utf-8", Body::new(reply))
    } else {
        let whole = reply.whole().await.ok_or_else(|| {
            ApiError::server(
                "cut_off",
                "the version was taken out of service, or took too long",
            )
        })?;
        ("application/json", Body::new(whole))
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if stream {
        let no_cache = HeaderValue::from_static("no-cache");
        headers.insert(header::CACHE_CONTROL, no_cache);
    }
    Ok(response)
}

fn loaded(engines: &Engines) -> Vec<String> {
    let versions = engines.loaded();
    let references = versions.iter().map(VersionId::reference);
    references.map(|reference| reference.to_string()).collect()
}

async fn models(State(engines): State<Engines>) -> axum::Json<Value> {
    axum::Json(json!({"object": "list", "data": [{
        "id": MODEL,
        "object": "model",
        "created": 0,
        "owned_by": "examples",
        "versions": loaded(&engines),
    }]}))
}

async fn health(State(engines): State<Engines>) -> Response {
    let versions = loaded(&engines);
    if versions.is_empty() {
        return ApiError::server("not_loaded", "no version is loaded").into_response();
    }
    axum::Json(json!({"status": "ok", "versions": versions})).into_response()
}
