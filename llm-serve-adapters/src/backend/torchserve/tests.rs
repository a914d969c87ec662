//! Against a fake that answers as `TorchServe` 0.12 was seen to.

use super::super::fakes::{at, query, serve, version};
use super::*;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use std::collections::BTreeMap;

/// Archives `chat-v1.mar` to `chat-v3.mar`; the workers of 3.0 die.
#[derive(Debug, Default)]
struct Server {
    /// Workers and what waits for them, by version.
    models: BTreeMap<String, (u32, u64)>,
    default: Option<String>,
    /// Started without `--enable-model-api`.
    closed: bool,
}

type Shared = Arc<std::sync::Mutex<Server>>;
type Answer = (StatusCode, Json<Value>);

fn says(status: u16, text: &str) -> Answer {
    let json = if status < 300 {
        json!({"status": text})
    } else {
        json!({"code": status, "type": "X", "message": text})
    };
    (StatusCode::from_u16(status).unwrap(), Json(json))
}

async fn register(State(server): State<Shared>, uri: Uri) -> Answer {
    let asked = query(&uri);
    let mut server = server.lock().unwrap();
    if server.closed {
        return says(
            405,
            "Requested method is not allowed, please refer to API document.",
        );
    }
    let version = match asked["url"].as_str() {
        "chat-v1.mar" => "1.0",
        "chat-v2.mar" => "2.0",
        "chat-v3.mar" => "3.0",
        url => return says(404, &format!("Model not found at: {url}")),
    };
    if server.models.contains_key(version) {
        return says(
            409,
            &format!("Model version {version} is already registered for model chat"),
        );
    }
    server.models.insert(version.to_owned(), (0, 0));
    server.default.get_or_insert(version.to_owned());
    says(200, "registered")
}

async fn describe(
    State(server): State<Shared>,
    Path((_, version)): Path<(String, String)>,
) -> Answer {
    match server.lock().unwrap().models.get(&version) {
        None => says(404, "Model version not found"),
        Some((workers, waiting)) => {
            let workers: Vec<_> = (0..*workers)
                .map(|n| json!({"id": n.to_string(), "status": "READY"}))
                .collect();
            let model = json!([{"modelName": "chat", "workers": workers, "jobQueueStatus": {"pendingRequests": waiting}}]);
            (StatusCode::OK, Json(model))
        }
    }
}

async fn scale(
    State(server): State<Shared>,
    Path((_, version)): Path<(String, String)>,
    uri: Uri,
) -> Answer {
    let asked = query(&uri);
    assert_eq!(asked["min_worker"], asked["max_worker"]);
    let workers: u32 = asked["min_worker"].parse().unwrap();
    if version == "3.0" && workers > 0 {
        return says(500, "Failed to start workers for model chat version: 3.0");
    }
    match server.lock().unwrap().models.get_mut(&version) {
        None => says(404, "Model version not found"),
        Some(model) => {
            model.0 = workers;
            says(200, "scaled")
        }
    }
}

async fn unregister(
    State(server): State<Shared>,
    Path((_, version)): Path<(String, String)>,
) -> Answer {
    let mut server = server.lock().unwrap();
    if !server.models.contains_key(&version) {
        return says(404, "Model version not found");
    }
    if server.default.as_ref() == Some(&version) && server.models.len() > 1 {
        return says(403, "Cannot remove default version for model chat");
    }
    server.models.remove(&version);
    if server.models.is_empty() {
        server.default = None;
    }
    says(200, "unregistered")
}

async fn set_default(
    State(server): State<Shared>,
    Path((_, version)): Path<(String, String)>,
) -> Answer {
    let mut server = server.lock().unwrap();
    if !server.models.contains_key(&version) {
        return says(404, "Model version not found");
    }
    server.default = Some(version);
    says(200, "Default version successfully updated")
}

async fn predict(
    State(server): State<Shared>,
    Path((_, version)): Path<(String, String)>,
    Json(body): Json<Value>,
) -> Answer {
    match server.lock().unwrap().models.get(&version) {
        None => says(404, "Model version does not exist"),
        Some((0, _)) => says(503, "Model has no worker to serve inference request"),
        Some(_) => (
            StatusCode::OK,
            Json(json!({"text": format!("{version} says {}", body["prompt"].as_str().unwrap())})),
        ),
    }
}

async fn torchserve() -> (TorchServeBackendBuilder, Shared) {
    let server = Shared::default();
    let app = Router::new()
        .route("/models", post(register))
        .route(
            "/models/{model}/{version}",
            get(describe).put(scale).delete(unregister),
        )
        .route("/models/{model}/{version}/set-default", put(set_default))
        .route("/predictions/{model}/{version}", post(predict))
        .with_state(Arc::clone(&server));
    let address = serve(app).await;
    let builder = TorchServeBackend::builder(&address, &address).deadline(Duration::from_secs(20));
    let builder = (1..=3).fold(builder, |builder, n| {
        let archive = Archive::new("chat", format!("{n}.0"), format!("chat-v{n}.mar"));
        builder.version(
            version(n),
            archive.golden("2 + 2 =", format!("{n}.0 says 2 + 2 =")),
        )
    });
    (builder, server)
}

#[tokio::test]
async fn versions_are_registered_scaled_and_unregistered() {
    let (builder, server) = torchserve().await;
    let backend = builder.build().unwrap();
    assert_eq!(
        backend.in_flight(&version(1)).await.unwrap(),
        Some(0),
        "what is not there runs nothing"
    );
    backend.prepare(&version(1), at(1)).await.unwrap();
    backend.prepare(&version(1), at(2)).await.unwrap();
    assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(true));
    assert_eq!(backend.in_flight(&version(1)).await.unwrap(), None);
    server.lock().unwrap().models.get_mut("1.0").unwrap().1 = 3;
    assert_eq!(backend.in_flight(&version(1)).await.unwrap(), Some(3));
    backend.standby(&version(1), at(3)).await.unwrap();
    assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(false));
    assert_eq!(server.lock().unwrap().models["1.0"].0, 0);
    backend.standby(&version(2), at(3)).await.unwrap();
    backend.retire(&version(1), at(4)).await.unwrap();
    backend.retire(&version(1), at(4)).await.unwrap();
    assert!(server.lock().unwrap().models.is_empty());
}

#[tokio::test]
async fn it_does_what_every_backend_must() {
    let (builder, _) = torchserve().await;
    let backend = builder.build().unwrap();
    let within = Duration::from_secs(20);
    crate::testing::backend::suite(&backend, &version(1), &version(9), within)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_version_that_does_not_start_leaves_nothing_behind() {
    let (builder, server) = torchserve().await;
    let backend = builder.build().unwrap();
    for _ in 0..2 {
        let error = backend.prepare(&version(3), at(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
        assert!(
            server.lock().unwrap().models.is_empty(),
            "it would be the default"
        );
    }
    backend
        .add(version(9), Archive::new("chat", "9.0", "chat-v9.mar"))
        .unwrap();
    let error = backend.prepare(&version(9), at(1)).await.unwrap_err();
    assert!(error.to_string().contains("model store"), "{error}");
    backend
        .add(version(8), Archive::new("chat", "8.0", "chat-v1.mar"))
        .unwrap();
    let error = backend.prepare(&version(8), at(1)).await.unwrap_err();
    assert!(
        error.to_string().contains("give the names that are in it"),
        "{error}"
    );
    server.lock().unwrap().closed = true;
    let error = backend.prepare(&version(1), at(2)).await;
    assert!(
        error.is_ok(),
        "it is registered already, by the wrong name's archive"
    );
    let error = backend.prepare(&version(2), at(2)).await.unwrap_err();
    assert!(error.to_string().contains("--enable-model-api"), "{error}");
}

#[tokio::test]
async fn the_default_moves_before_it_goes() {
    let (builder, server) = torchserve().await;
    let backend = builder.build().unwrap();
    for n in [1, 2] {
        backend.prepare(&version(n), at(n.into())).await.unwrap();
    }
    let default = || server.lock().unwrap().default.clone().unwrap();
    assert_eq!(default(), "1.0", "the first that was registered");
    // The old baseline is retired: the candidate has won.
    backend.retire(&version(1), at(3)).await.unwrap();
    assert_eq!(default(), "2.0");
    backend.prepare(&version(1), at(4)).await.unwrap();
    backend.set_default(&version(1)).await.unwrap();
    assert_eq!(default(), "1.0");
    // Nobody takes its place who cannot serve.
    backend.standby(&version(2), at(5)).await.unwrap();
    let error = backend.retire(&version(1), at(6)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(
        error
            .to_string()
            .contains("make another version the default"),
        "{error}"
    );
    assert!(backend.set_default(&version(7)).await.is_err());
}

#[test]
fn what_cannot_work_is_refused_when_it_is_built() {
    let with = |archive| {
        TorchServeBackend::builder("http://localhost", "http://localhost")
            .version(version(1), archive)
            .build()
    };
    for bad in [
        Archive::new("", "1.0", "x.mar"),
        Archive::new("chat", "1/0", "x.mar"),
        Archive::new("chat", "1.0", ""),
        Archive::new("chat", "1.0", "x.mar").workers(0),
    ] {
        assert_eq!(with(bad).unwrap_err().kind(), ErrorKind::Permanent);
    }
    let nowhere = TorchServeBackend::builder("http://localhost", "localhost").build();
    assert!(nowhere.is_err());
}
