//! Against a fake that answers as text-generation-inference 3.3 does by its source.

use super::super::engine::{EngineBackend, EngineVersion};
use super::super::fakes::{at, serve, version};
use super::super::identity::Golden;
use crate::host::{ErrorKind, ServingBackend as _};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const MODEL: &str = "org/chat";
const SHA: &str = "e985a63cdc139290c5f700ff1929f0b5942cced2";

#[derive(Debug, Default)]
struct Server {
    /// None of a model from a folder.
    sha: Option<&'static str>,
    asked: u64,
    running: u64,
    /// Each generation fails with this status.
    fails: Option<u16>,
}

type Shared = Arc<Mutex<Server>>;

async fn tgi(sha: Option<&'static str>) -> (String, Shared) {
    let server = Shared::default();
    server.lock().unwrap().sha = sha;
    let info = async |State(server): State<Shared>| {
        let sha = server.lock().unwrap().sha;
        Json(
            json!({"model_id": MODEL, "model_sha": sha, "model_pipeline_tag": "text-generation", "max_concurrent_requests": 128,
            "router": "text-generation-router", "version": "3.3.6", "sha": null, "docker_label": null}),
        )
    };
    let models = async || {
        let model = json!({"id": MODEL, "object": "model", "created": 0, "owned_by": MODEL});
        Json(json!({"object": "list", "data": [model]}))
    };
    let metrics = async |State(server): State<Shared>| {
        let server = server.lock().unwrap();
        if server.asked == 0 {
            return String::new();
        }
        let (running, waiting) = (server.running, u64::from(server.running > 2));
        format!(
            "# TYPE tgi_request_count counter\ntgi_request_count {}\n\n# TYPE tgi_queue_size gauge\ntgi_queue_size {waiting}\n\n\
             # TYPE tgi_batch_current_size gauge\ntgi_batch_current_size {running}\n",
            server.asked
        )
    };
    let app = Router::new()
        .route("/info", get(info))
        .route("/v1/models", get(models))
        .route("/metrics", get(metrics))
        .route("/health", get(async || ""))
        .route("/v1/chat/completions", post(complete))
        .with_state(Arc::clone(&server));
    (serve(app).await, server)
}

/// It answers any name in that name.
async fn complete(State(server): State<Shared>, Json(body): Json<Value>) -> Response {
    let mut server = server.lock().unwrap();
    server.asked += 1;
    if let Some(status) = server.fails {
        let (error, kind) = match status {
            424 => (
                "Request failed during generation: out of memory",
                "generation",
            ),
            429 => ("Model is overloaded", "overloaded"),
            _ => ("Input validation error", "validation"),
        };
        let said = json!({"error": error, "error_type": kind});
        return (StatusCode::from_u16(status).unwrap(), Json(said)).into_response();
    }
    let model = match body["model"].as_str() {
        Some("tgi") | None => MODEL,
        Some(model) => model,
    };
    let message = json!({"role": "assistant", "content": "It is 4."});
    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"});
    Json(
        json!({"object": "chat.completion", "id": "", "created": 1, "model": model, "system_fingerprint": "3.3.6-native", "choices": [choice],
        "usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}}),
    )
    .into_response()
}

fn of(place: EngineVersion) -> EngineBackend {
    let builder = EngineBackend::tgi().version(version(1), place);
    builder.deadline(Duration::from_secs(20)).build().unwrap()
}

#[tokio::test]
async fn it_does_what_every_backend_must() {
    let backend = of(EngineVersion::server(tgi(Some(SHA)).await.0, MODEL).weights(SHA));
    let within = Duration::from_secs(20);
    crate::testing::backend::suite(&backend, &version(1), &version(9), within)
        .await
        .unwrap();
}

#[tokio::test]
async fn the_revision_that_runs_is_told_and_the_name_in_a_reply_proves_nothing() {
    let (address, server) = tgi(Some(SHA)).await;
    let refused = async |place: EngineVersion, part: &str| {
        let error = of(place).prepare(&version(1), at(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    let place = || EngineVersion::server(&address, MODEL);
    of(place()
        .weights(SHA)
        .golden(Golden::new("2 + 2 =", "It is 4.")))
    .prepare(&version(1), at(1))
    .await
    .unwrap();
    refused(place().weights("0123"), SHA).await;
    // It would answer in this name, too.
    let other = EngineVersion::server(&address, "org/other");
    refused(other, "org/chat").await;
    refused(
        place().golden(Golden::new("2 + 2 =", "5")),
        "is not what runs",
    )
    .await;
    refused(place().load_from("/models/chat"), "started with").await;
    server.lock().unwrap().sha = None;
    refused(place().weights(SHA), "does not tell which weights").await;
}

#[tokio::test]
async fn a_generation_that_fails_is_the_servers_fault() {
    let (address, server) = tgi(Some(SHA)).await;
    let backend = of(EngineVersion::server(&address, MODEL));
    for status in [424, 429] {
        server.lock().unwrap().fails = Some(status);
        let error = backend.prepare(&version(1), at(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
        assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(false));
    }
    server.lock().unwrap().fails = None;
    backend.prepare(&version(1), at(2)).await.unwrap();
    assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(true));
}

#[tokio::test]
async fn what_runs_is_the_queue_and_the_batch() {
    let (address, server) = tgi(Some(SHA)).await;
    let backend = of(EngineVersion::server(&address, MODEL));
    assert_eq!(backend.in_flight(&version(1)).await.unwrap(), None);
    backend.prepare(&version(1), at(1)).await.unwrap();
    server.lock().unwrap().running = 3;
    assert_eq!(backend.in_flight(&version(1)).await.unwrap(), Some(4));
    let adapter = EngineVersion::lora(&address, "/adapters/v2");
    let refused = EngineBackend::tgi().version(version(2), adapter).build();
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Permanent);
}
