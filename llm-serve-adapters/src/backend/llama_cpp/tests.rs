//! Against a server of this process that does what `llama-server` was seen to do, its oddities included.

use super::*;
use crate::backend::Golden;
use crate::host::ErrorKind;
use axum::extract::State as Of;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use llm_rollout::{Fence, Seq};
use std::collections::BTreeMap;
use std::sync::Mutex as Cell;

const WITHIN: Duration = Duration::from_secs(60);

fn version(n: u8) -> VersionId {
    format!("chat/v{n}.0.0-{}", format!("{n:02x}").repeat(32))
        .parse()
        .unwrap()
}

fn at(seq: u64) -> Position {
    Position {
        fence: Fence::new(1),
        seq: Seq::new(seq),
    }
}

/// A `llama-server`: of one model called `v1`, or a router of `v1`, `v2` and one that cannot be loaded, `torn`.
#[derive(Debug, Clone, Default)]
struct Fake(Arc<Cell<Inside>>);

#[derive(Debug, Default)]
struct Inside {
    router: bool,
    /// State by model.
    models: BTreeMap<&'static str, &'static str>,
    /// How often it still says that it is loading.
    loading: u32,
    asked: Vec<String>,
    no_metrics: bool,
    no_slots: bool,
    busy: u32,
    adapters: Value,
}

impl Fake {
    fn alone() -> Self {
        let inside = Inside {
            models: [("v1", "loaded")].into(),
            adapters: json!([]),
            ..Inside::default()
        };
        Self(Arc::new(Cell::new(inside)))
    }

    fn router() -> Self {
        let inside = Inside {
            router: true,
            models: [("torn", "unloaded"), ("v1", "unloaded"), ("v2", "unloaded")].into(),
            ..Inside::default()
        };
        Self(Arc::new(Cell::new(inside)))
    }

    fn inside<T>(&self, look: impl FnOnce(&mut Inside) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    fn state(&self, model: &str) -> &'static str {
        self.inside(|inside| inside.models[model])
    }

    async fn serve(&self) -> String {
        let app = Router::new()
            .route("/health", get(health))
            .route("/models", get(models))
            .route("/v1/models", get(models))
            .route("/models/load", post(load))
            .route("/models/unload", post(unload))
            .route("/props", get(props))
            .route("/metrics", get(metrics))
            .route("/slots", get(slots))
            .route("/lora-adapters", get(adapters))
            .route("/v1/chat/completions", post(complete))
            .with_state(self.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        address
    }
}

fn refuse(status: u16, message: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    let body = json!({"error": {"code": status.as_u16(), "message": message, "type": "x"}});
    (status, Json(body)).into_response()
}

fn is_loading(inside: &mut Inside) -> bool {
    let still = inside.loading > 0;
    inside.loading = inside.loading.saturating_sub(1);
    still
}

async fn health(Of(fake): Of<Fake>) -> Response {
    if fake.inside(|inside| !inside.router && is_loading(inside)) {
        refuse(503, "Loading model")
    } else {
        Json(json!({"status": "ok"})).into_response()
    }
}

async fn models(Of(fake): Of<Fake>) -> Response {
    let data = fake.inside(|inside| {
        let still = inside.router && is_loading(inside);
        if !still {
            for (model, state) in &mut inside.models {
                if *state == "loading" {
                    *state = if *model == "torn" { "failed" } else { "loaded" };
                }
            }
        }
        let told = inside.models.iter().map(|(model, state)| {
            let status = match *state {
                "failed" => json!({"value": "unloaded", "failed": true, "exit_code": 1}),
                state => json!({"value": state}),
            };
            if inside.router {
                json!({"id": model, "status": status})
            } else {
                json!({"id": model, "meta": {}})
            }
        });
        told.collect::<Vec<_>>()
    });
    Json(json!({"object": "list", "data": data})).into_response()
}

async fn load(Of(fake): Of<Fake>, Json(asked): Json<Value>) -> Response {
    let model = asked["model"].as_str().unwrap().to_owned();
    fake.inside(|inside| match inside.models.get_mut(model.as_str()) {
        None => refuse(404, "File Not Found"),
        Some(state) if matches!(*state, "loaded" | "loading") => {
            refuse(400, "model is already running")
        }
        Some(state) => {
            (*state, inside.loading) = ("loading", 2);
            inside.asked.push(format!("load {model}"));
            Json(json!({"success": true})).into_response()
        }
    })
}

async fn unload(Of(fake): Of<Fake>, Json(asked): Json<Value>) -> Response {
    let model = asked["model"].as_str().unwrap().to_owned();
    fake.inside(|inside| match inside.models.get_mut(model.as_str()) {
        None => refuse(400, "model is not found"),
        Some(state) if *state == "unloaded" => refuse(400, "model is not running"),
        Some(state) => {
            *state = "unloaded";
            inside.asked.push(format!("unload {model}"));
            Json(json!({"success": true})).into_response()
        }
    })
}

/// Which model of a router is meant.
fn meant(uri: &Uri) -> Option<&str> {
    uri.query()?.strip_prefix("model=")
}

/// What a router says about a model that is not there: nothing else is answered then.
fn missing(inside: &Inside, uri: &Uri) -> Option<Response> {
    match (inside.router, meant(uri)) {
        (false, _) => None,
        (true, None) => Some(refuse(400, "model name is missing from the request")),
        (true, Some(model)) => match inside.models.get(model) {
            Some(&"loaded") => None,
            Some(&"loading") => Some(refuse(503, "Loading model")),
            _ => Some(refuse(400, "model is not loaded")),
        },
    }
}

async fn props(Of(fake): Of<Fake>, uri: Uri) -> Response {
    fake.inside(|inside| {
        missing(inside, &uri).unwrap_or_else(|| {
            let model = meant(&uri).unwrap_or("v1");
            Json(json!({"model_path": format!("/models/{model}.gguf")})).into_response()
        })
    })
}

async fn metrics(Of(fake): Of<Fake>, uri: Uri) -> Response {
    fake.inside(|inside| {
        inside.asked.push("metrics".to_owned());
        match missing(inside, &uri) {
            Some(refused) => refused,
            None if inside.no_metrics => refuse(501, "This server does not support metrics endpoint."),
            None => format!(
                "# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing {}\nllamacpp:requests_deferred 0\n",
                inside.busy
            )
            .into_response(),
        }
    })
}

async fn slots(Of(fake): Of<Fake>, uri: Uri) -> Response {
    fake.inside(|inside| match missing(inside, &uri) {
        Some(refused) => refused,
        None if inside.no_slots => refuse(501, "This server does not support slots endpoint."),
        None => Json(
            json!([{"id": 0, "is_processing": inside.busy > 0}, {"id": 1, "is_processing": false}]),
        )
        .into_response(),
    })
}

async fn adapters(Of(fake): Of<Fake>) -> Response {
    fake.inside(|inside| Json(inside.adapters.clone()).into_response())
}

/// A server of one model takes any name, and answers in its own.
async fn complete(Of(fake): Of<Fake>, Json(asked): Json<Value>) -> Response {
    let model = asked["model"].as_str().unwrap().to_owned();
    let model = fake.inside(|inside| {
        inside.asked.push(asked["lora"].to_string());
        match (inside.router, inside.models.get(model.as_str())) {
            (false, _) => Some("v1".to_owned()),
            (true, Some(&"loaded")) => Some(model.clone()),
            (true, _) => None,
        }
    });
    match model {
        Some(model) => {
            let message = json!({"role": "assistant", "content": format!("I am {model}.")});
            Json(
                json!({"model": model, "choices": [{"message": message, "finish_reason": "stop"}]}),
            )
            .into_response()
        }
        None => refuse(400, "model is not loaded"),
    }
}

fn backend(places: impl IntoIterator<Item = (u8, LlamaCpp)>) -> LlamaCppBackend {
    places
        .into_iter()
        .fold(LlamaCppBackend::builder(), |all, (n, place)| {
            all.version(version(n), place)
        })
        .build()
        .unwrap()
}

fn one(address: &str) -> LlamaCpp {
    LlamaCpp::server(Upstream::new(address, "v1"))
}

fn of_router(address: &str, model: &str) -> LlamaCpp {
    LlamaCpp::routed(Upstream::new(address, model))
}

async fn refused(place: LlamaCpp, kind: ErrorKind, part: &str) {
    let error = backend([(1, place)])
        .prepare(&version(1), at(1))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(
        error.to_string().contains(part),
        "{part:?} is not in: {error}"
    );
}

#[cfg(feature = "testing")]
#[tokio::test]
async fn both_modes_conform() {
    use crate::testing::backend::suite;
    let (alone, router) = (Fake::alone().serve().await, Fake::router().serve().await);
    for place in [one(&alone), of_router(&router, "v1")] {
        suite(&backend([(1, place)]), &version(1), &version(9), WITHIN)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_server_that_is_loading_is_waited_for() {
    let fake = Fake::alone();
    let address = fake.serve().await;
    fake.inside(|inside| inside.loading = 3);
    let backend = backend([(1, one(&address).file("v1.gguf"))]);
    assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(false));
    backend.prepare(&version(1), at(1)).await.unwrap();
    assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(true));
    fake.inside(|inside| inside.loading = 1);
    assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(false));
}

#[tokio::test]
async fn what_runs_must_be_the_version() {
    let address = Fake::alone().serve().await;
    let as_v2 = LlamaCpp::server(Upstream::new(&address, "v2"));
    refused(as_v2, ErrorKind::Permanent, "does not list model \"v2\"").await;
    for (file, good) in [
        ("/models/v1.gguf", true),
        ("v1.gguf", true),
        ("/v1.gguf", true),
        ("1.gguf", false),
        ("/models/v2.gguf", false),
    ] {
        let place = one(&address).file(file);
        if good {
            let backend = backend([(1, place)]);
            backend.prepare(&version(1), at(1)).await.unwrap();
        } else {
            refused(place, ErrorKind::Permanent, "start it with the right file").await;
        }
    }
    let golden = |says: &str| Upstream::new(&address, "v1").golden(Golden::new("Who?", says));
    let place = LlamaCpp::server(golden("I am v2."));
    refused(place, ErrorKind::Permanent, "is not what runs").await;
    let backend = backend([(1, LlamaCpp::server(golden("I am v1.")))]);
    backend.prepare(&version(1), at(1)).await.unwrap();
}

#[tokio::test]
async fn a_router_loads_and_unloads_what_it_has() {
    let fake = Fake::router();
    let address = fake.serve().await;
    let nope = of_router(&address, "nope");
    refused(
        nope,
        ErrorKind::Permanent,
        "has no model \"nope\", but [\"torn\"",
    )
    .await;
    let torn = of_router(&address, "torn");
    refused(
        torn,
        ErrorKind::Transient,
        "could not be loaded (unloaded, exit code 1)",
    )
    .await;
    let single = of_router(&Fake::alone().serve().await, "v1");
    refused(single, ErrorKind::Permanent, "say `LlamaCpp::server`").await;

    let backend = backend([(1, of_router(&address, "v1").file("v1.gguf"))]);
    fake.inside(|inside| inside.asked.clear());
    assert_eq!(backend.in_flight(&version(1)).await.unwrap(), Some(0));
    assert!(
        fake.inside(|inside| inside.asked.is_empty()),
        "a question may load it"
    );
    backend.prepare(&version(1), at(1)).await.unwrap();
    assert_eq!((fake.state("v1"), fake.state("v2")), ("loaded", "unloaded"));
    backend.standby(&version(1), at(2)).await.unwrap();
    assert_eq!(fake.state("v1"), "unloaded");
    assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(false));
    backend.prepare(&version(1), at(3)).await.unwrap();
    backend.retire(&version(1), at(4)).await.unwrap();
    assert_eq!(fake.state("v1"), "unloaded");
    // Somebody else has unloaded it.
    backend.prepare(&version(1), at(5)).await.unwrap();
    fake.inside(|inside| inside.models.insert("v1", "unloaded"));
    assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(false));
    backend.retire(&version(1), at(6)).await.unwrap();
}

#[tokio::test]
async fn a_model_that_another_version_runs_as_is_not_unloaded() {
    let fake = Fake::router();
    let address = fake.serve().await;
    let both = [
        (1, of_router(&address, "v1")),
        (2, of_router(&address, "v1")),
    ];
    let backend = backend(both);
    backend.prepare(&version(1), at(1)).await.unwrap();
    backend.prepare(&version(2), at(2)).await.unwrap();
    backend.retire(&version(2), at(3)).await.unwrap();
    assert_eq!(fake.state("v1"), "loaded");
    assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(true));
    assert_eq!(backend.healthy(&version(2)).await.unwrap(), Some(false));
    backend.retire(&version(1), at(4)).await.unwrap();
    assert_eq!(fake.state("v1"), "unloaded");
}

#[tokio::test]
async fn what_runs_is_counted_by_metrics_or_slots_or_not_at_all() {
    let fake = Fake::alone();
    let backend = backend([(1, one(&fake.serve().await))]);
    fake.inside(|inside| inside.busy = 2);
    assert_eq!(backend.in_flight(&version(1)).await.unwrap(), Some(2));
    fake.inside(|inside| inside.no_metrics = true);
    assert_eq!(backend.in_flight(&version(1)).await.unwrap(), Some(1));
    fake.inside(|inside| inside.no_slots = true);
    assert_eq!(backend.in_flight(&version(1)).await.unwrap(), None);
    assert_eq!(backend.in_flight(&version(9)).await.unwrap(), Some(0));
}

#[tokio::test]
async fn an_adapter_is_for_those_who_ask_for_it() {
    let fake = Fake::alone();
    let address = fake.serve().await;
    let tuned = || LlamaCpp::lora(Upstream::new(&address, "v1"), 0, 0.5);
    refused(tuned(), ErrorKind::Permanent, "start it with --lora").await;
    let path = "tuned.gguf";
    fake.inside(|inside| inside.adapters = json!([{"id": 0, "path": path, "scale": 1.0}]));
    // As the server is with `--lora-init-without-apply`, too.
    refused(tuned(), ErrorKind::Permanent, "--lora-scaled FILE:0").await;
    fake.inside(|inside| {
        let other = json!({"id": 1, "path": "other.gguf", "scale": 0.5});
        inside.adapters = json!([{"id": 0, "path": path, "scale": 0.0}, other]);
    });
    refused(tuned(), ErrorKind::Permanent, "adapter 1 with scale 0.5").await;
    fake.inside(|inside| inside.adapters[1]["scale"] = json!(0.0));
    refused(
        tuned().adapter_file("other.gguf"),
        ErrorKind::Permanent,
        "\"tuned.gguf\"",
    )
    .await;
    let tuned = || LlamaCpp::lora(Upstream::new(&address, "v1"), 0, 0.5).adapter_file(path);
    fake.inside(|inside| {
        inside.asked.clear();
    });
    let backend = backend([(1, tuned())]);
    backend.prepare(&version(1), at(1)).await.unwrap();
    let asked = fake.inside(|inside| inside.asked.clone());
    assert_eq!(asked, vec![r#"[{"id":0,"scale":0.5}]"#; 3]);
    assert_eq!(backend.in_flight(&version(1)).await.unwrap(), None);
    backend.standby(&version(1), at(2)).await.unwrap();
    assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(true));
    backend.retire(&version(1), at(3)).await.unwrap();
    assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(false));
}

#[tokio::test]
async fn a_server_that_is_gone_says_nothing_about_its_version() {
    let fake = Fake::alone();
    let backend = backend([
        (1, one(&fake.serve().await)),
        (2, one("http://127.0.0.1:1")),
    ]);
    backend.prepare(&version(1), at(1)).await.unwrap();
    let gone = backend.prepare(&version(2), at(1)).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::Transient);
    let gone = backend.in_flight(&version(2)).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::Transient);
}
