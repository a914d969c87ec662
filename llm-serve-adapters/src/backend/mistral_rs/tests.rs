//! Against a fake that answers as mistral.rs does by its source of August 2026.

use super::super::engine::{EngineBackend, EngineVersion};
use super::super::fakes::{at, serve, version};
use crate::host::{ErrorKind, ServingBackend as _};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Debug, Default)]
struct Server {
    models: BTreeMap<String, &'static str>,
    asked: Vec<String>,
    running: u64,
    /// So often it says that somebody else has it loaded already.
    reloading: u32,
}

type Shared = Arc<Mutex<Server>>;

/// A server of these models, none of which is loaded.
async fn mistral_rs(models: &[&str]) -> (String, Shared) {
    let server = Shared::default();
    let all = models.iter().map(|model| ((*model).to_owned(), "unloaded"));
    server.lock().unwrap().models = all.collect();
    let list = async |State(server): State<Shared>| {
        let server = server.lock().unwrap();
        let first = json!({"id": "default", "object": "model", "created": 1, "owned_by": "local"});
        let others = server.models.iter().map(
            |(id, status)| json!({"id": id, "object": "model", "created": 1, "owned_by": "local", "root": id, "status": status}),
        );
        let data: Vec<_> = std::iter::once(first).chain(others).collect();
        Json(json!({"object": "list", "data": data}))
    };
    let metrics = async |State(server): State<Shared>| {
        let mut server = server.lock().unwrap();
        let running = server.running;
        // Whoever is waited for ends some time.
        server.running = running.saturating_sub(1);
        format!(
            "# TYPE http_requests_in_flight gauge\n\
             http_requests_in_flight{{method=\"GET\",path=\"/metrics\",model=\"none\"}} 1\n\
             http_requests_in_flight{{method=\"POST\",path=\"/v1/chat/completions\",model=\"v2\"}} 7\n\
             http_requests_in_flight{{method=\"POST\",path=\"/v1/chat/completions\",model=\"v1\"}} {running}\n\n\
             # TYPE mistralrs_sequences_running gauge\nmistralrs_sequences_running 9\n"
        )
    };
    let app = Router::new()
        .route("/v1/models", get(list))
        .route("/v1/models/reload", post(reload))
        .route("/v1/models/unload", post(unload))
        .route("/v1/models/status", post(status))
        .route("/metrics", get(metrics))
        .route("/health", get(async || "OK"))
        .route("/v1/chat/completions", post(complete))
        .with_state(Arc::clone(&server));
    (serve(app).await, server)
}

/// Status 200, whatever it says.
fn says(model: &str, status: &str) -> Json<Value> {
    match status {
        "internal_error" => {
            Json(json!({"model_id": model, "status": status, "error": "out of memory"}))
        }
        _ => Json(json!({"model_id": model, "status": status})),
    }
}

async fn reload(State(server): State<Shared>, Json(body): Json<Value>) -> Json<Value> {
    let mut server = server.lock().unwrap();
    let model = body["model_id"].as_str().unwrap();
    server.asked.push(format!("reload {model}"));
    if server.reloading > 0 {
        return says(model, "reloading");
    }
    match server.models.get_mut(model) {
        None => says(model, "not_found"),
        Some(_) if model.contains("large") => says(model, "internal_error"),
        Some(status) => {
            *status = "loaded";
            says(model, "loaded")
        }
    }
}

async fn unload(State(server): State<Shared>, Json(body): Json<Value>) -> Json<Value> {
    let mut server = server.lock().unwrap();
    let model = body["model_id"].as_str().unwrap();
    let running = server.running;
    server
        .asked
        .push(format!("unload {model} with {running} running"));
    match server.models.get_mut(model) {
        None => says(model, "not_found"),
        Some(_) if model.contains("only") => says(model, "no_loader_config"),
        Some(status) => {
            *status = "unloaded";
            says(model, "unloaded")
        }
    }
}

async fn status(State(server): State<Shared>, Json(body): Json<Value>) -> Json<Value> {
    let mut server = server.lock().unwrap();
    let model = body["model_id"].as_str().unwrap().to_owned();
    server.reloading = server.reloading.saturating_sub(1);
    if server.reloading > 0 {
        return says(&model, "reloading");
    }
    server.models.insert(model.clone(), "loaded");
    says(&model, "loaded")
}

/// A request for a model that is unloaded loads it.
async fn complete(State(server): State<Shared>, Json(body): Json<Value>) -> Response {
    let mut server = server.lock().unwrap();
    let model = body["model"].as_str().unwrap().to_owned();
    let Some(status) = server.models.get_mut(&model) else {
        let said = json!({"message": format!("model {model} not found")});
        return (StatusCode::NOT_FOUND, Json(said)).into_response();
    };
    if *status != "loaded" {
        *status = "loaded";
        server.asked.push(format!("a request loads {model}"));
    }
    let message = json!({"role": "assistant", "content": "It is 4."});
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop", "logprobs": null});
    Json(json!({"id": "1", "object": "chat.completion", "created": 1, "model": model, "system_fingerprint": "local", "choices": [choice]}))
        .into_response()
}

fn of(places: impl IntoIterator<Item = (u8, EngineVersion)>) -> EngineBackend {
    let builder = EngineBackend::mistral_rs().deadline(Duration::from_secs(20));
    places
        .into_iter()
        .fold(builder, |all, (n, place)| all.version(version(n), place))
        .build()
        .unwrap()
}

#[tokio::test]
async fn it_does_what_every_backend_must() {
    let (address, _) = mistral_rs(&["v1", "v2"]).await;
    let backend = of([(1, EngineVersion::server(address, "v1"))]);
    let within = Duration::from_secs(20);
    crate::testing::backend::suite(&backend, &version(1), &version(9), within)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_model_is_loaded_and_unloaded_and_looking_at_it_does_not_load_it() {
    let (address, server) = mistral_rs(&["v1", "v2"]).await;
    let place = |model: &str| EngineVersion::server(&address, model);
    let backend = of([(1, place("v1")), (2, place("v2"))]);
    backend.prepare(&version(1), at(1)).await.unwrap();
    assert_eq!(backend.in_flight(&version(1)).await.unwrap(), Some(0));
    // A standby waits for what runs, since unloading cuts it off.
    server.lock().unwrap().running = 3;
    assert_eq!(backend.in_flight(&version(1)).await.unwrap(), Some(3));
    backend.standby(&version(1), at(2)).await.unwrap();
    assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(false));
    assert_eq!(backend.in_flight(&version(1)).await.unwrap(), Some(0));
    backend.prepare(&version(1), at(3)).await.unwrap();
    backend.prepare(&version(2), at(3)).await.unwrap();
    assert_eq!(backend.in_flight(&version(1)).await.unwrap(), Some(0));
    assert_eq!(backend.in_flight(&version(2)).await.unwrap(), Some(7));
    let silent = of([(3, place("v3"))]);
    assert_eq!(silent.in_flight(&version(3)).await.unwrap(), Some(0));
    backend.retire(&version(1), at(4)).await.unwrap();
    assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(false));
    let server = server.lock().unwrap();
    assert_eq!(
        server.asked,
        [
            "reload v1",
            "unload v1 with 0 running",
            "reload v1",
            "reload v2",
            "unload v1 with 0 running"
        ]
    );
    assert_eq!(server.models["v1"], "unloaded");
}

#[tokio::test]
async fn what_it_says_counts_and_not_its_status() {
    let (address, server) = mistral_rs(&["v1", "too-large", "only"]).await;
    let place = |model: &str| EngineVersion::server(&address, model);
    for (model, kind, part) in [
        ("v9", ErrorKind::Permanent, "has no model \"v9\""),
        ("too-large", ErrorKind::Transient, "out of memory"),
    ] {
        let backend = of([(1, place(model))]);
        let error = backend.prepare(&version(1), at(1)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    // Somebody else has it loaded: it is waited for.
    server.lock().unwrap().reloading = 3;
    let backend = of([(1, place("v1"))]);
    backend.prepare(&version(1), at(1)).await.unwrap();
    // A server of one model cannot unload it, and goes on.
    let backend = of([(1, place("only"))]);
    backend.prepare(&version(1), at(1)).await.unwrap();
    backend.retire(&version(1), at(2)).await.unwrap();
    let backend = of([(1, place("v1").weights("v1"))]);
    let error = backend.prepare(&version(1), at(1)).await.unwrap_err();
    assert!(
        error.to_string().contains("does not tell which weights"),
        "{error}"
    );
}
