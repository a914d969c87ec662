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
use llm_serve_adapters::layer::Assignment;
use llm_version_core::VersionId;
use serde_json::{Value, json};
use std::time::Duration;

/// The name under which the server offers its model.
pub const MODEL: &str = "desk";
/// The flag that is raised on a reply that no program could use.
pub const BAD_FORMAT: &str = "bad_format";

/// The most bytes of a request; the longest letter has about one thousand.
const LARGEST_REQUEST: usize = 64 << 10;
/// How long a request's body may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(10);

/// The version that is to answer, as the layer has decided.
fn resolved(extensions: &Extensions) -> Option<&'static VersionId> {
    let assignment = extensions.get::<Assignment>()?;
    Some(assignment.version()?.id())
}

/// Raises a flag on a request, if it came through a layer that knows it.
fn raise(assignment: Option<&Assignment>, name: &str) {
    if let Some(assignment) = assignment {
        // a host that has not named the flag does not want to know
        let _known = assignment.flag(name);
    }
}

/// The whole API: [`chat`] and [`about`].
pub fn app(engines: Engines) -> Router {
    chat(engines.clone()).merge(about(engines))
}

/// The route that a version answers: what the rollout's layer goes around.
/// Layered alone, before it is merged with [`about`], no probe of a load
/// balancer counts as a request of some version.
pub fn chat(engines: Engines) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(complete))
        .method_not_allowed_fallback(other_method)
        .with_state(engines)
}

/// Health, models, and what to say about any other path.
pub fn about(engines: Engines) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/health", get(health))
        .method_not_allowed_fallback(other_method)
        .fallback(other_path)
        .with_state(engines)
}

async fn other_method() -> ApiError {
    ApiError::invalid(None, "this path has another method")
        .with_status(StatusCode::METHOD_NOT_ALLOWED)
}

async fn other_path() -> ApiError {
    ApiError::invalid(None, "there is no such path").with_status(StatusCode::NOT_FOUND)
}

async fn complete(State(engines): State<Engines>, request: Request<Body>) -> Response {
    match answer(&engines, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn answer(engines: &Engines, request: Request<Body>) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let version = resolved(&parts.extensions)
        .ok_or_else(|| ApiError::server("undecided", "nobody has decided which version answers"))?;
    let (engine, running) = engines.begin(version).ok_or_else(|| {
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
        NoTurn::Late => ApiError::server("overloaded", none.to_string())
            .with_status(StatusCode::SERVICE_UNAVAILABLE),
    })?;

    let stream = asked.stream;
    let assignment = parts.extensions.get::<Assignment>().cloned();
    let limit = engines.limits().reply;
    let mut reply = generation::start(engine, asked, turn, assignment, limit, running);
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
        return ApiError::server("not_loaded", "no version is loaded")
            .with_status(StatusCode::SERVICE_UNAVAILABLE)
            .into_response();
    }
    axum::Json(json!({"status": "ok", "versions": versions})).into_response()
}
