//! A server on the loopback interface that answers as MLflow 3.17 was seen to.

use super::*;
use crate::host::{Letter, Notifier as _, StateStore as _};
use crate::store::MemoryStore;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap as Headers, Method as Verb, StatusCode, Uri};
use llm_rollout::{EndpointId, Epoch, IntentId, Notice, RolloutId, Seq, Split};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

#[derive(Default)]
struct Mlflow {
    models: Vec<String>,
    /// Tags of each version, in the order of their numbers.
    versions: Vec<BTreeMap<String, String>>,
    aliases: BTreeMap<String, usize>,
    /// Requests that changed something.
    writes: Vec<String>,
    /// What the next requests are refused with.
    refusals: Vec<(u16, &'static str)>,
}

type Shared = Arc<Mutex<Mlflow>>;

fn refuse(status: u16, code: &str, message: &str) -> (StatusCode, String) {
    let body = json!({"error_code": code, "message": message, "sqlstate": "KAM00"});
    (StatusCode::from_u16(status).unwrap(), body.to_string())
}

fn version(mlflow: &Mlflow, number: usize) -> Value {
    let tags: Vec<_> = mlflow.versions[number - 1]
        .iter()
        .map(|(key, value)| json!({"key": key, "value": value}))
        .collect();
    json!({"name": "chat", "version": number.to_string(), "current_stage": "None", "status": "READY", "tags": tags})
}

async fn answer(
    State(mlflow): State<Shared>,
    method: Verb,
    uri: Uri,
    headers: Headers,
    body: String,
) -> (StatusCode, String) {
    let mut mlflow = mlflow.lock().unwrap();
    if let Some((status, code)) = mlflow.refusals.pop() {
        return refuse(status, code, "as told");
    }
    let path = uri
        .path()
        .strip_prefix("/api/2.0/mlflow/")
        .unwrap()
        .to_owned();
    let query: BTreeMap<String, String> =
        reqwest::Url::parse(&format!("http://x/?{}", uri.query().unwrap_or_default()))
            .unwrap()
            .query_pairs()
            .into_owned()
            .collect();
    if method == Verb::POST {
        assert_eq!(headers["content-type"], "application/json");
        mlflow.writes.push(format!("{path} {body}"));
    }
    let body: Value = serde_json::from_str(&body).unwrap_or_default();
    let reply = match (method, path.as_str()) {
        (Verb::POST, "registered-models/create") => {
            let name = body["name"].as_str().unwrap().to_owned();
            if mlflow.models.contains(&name) {
                let text = "Registered Model (name=chat) already exists.";
                return refuse(400, "RESOURCE_ALREADY_EXISTS", text);
            }
            mlflow.models.push(name);
            json!({"registered_model": {"name": "chat"}})
        }
        (Verb::POST, "model-versions/create") => {
            if body["source"].as_str().unwrap().starts_with("file:") {
                let text = "Invalid model version source";
                return refuse(400, "INVALID_PARAMETER_VALUE", text);
            }
            let tags = body["tags"].as_array().unwrap().iter().map(|tag| {
                let text = |field: &str| tag[field].as_str().unwrap().to_owned();
                (text("key"), text("value"))
            });
            let tags = tags.collect();
            mlflow.versions.push(tags);
            json!({"model_version": version(&mlflow, mlflow.versions.len())})
        }
        (Verb::GET, "model-versions/search") => {
            let wanted = query["filter"]
                .split("`='")
                .nth(1)
                .unwrap()
                .trim_end_matches('\'')
                .to_owned();
            let found = (1..=mlflow.versions.len())
                .filter(|n| mlflow.versions[n - 1][VERSION] == wanted)
                .map(|n| version(&mlflow, n));
            let found: Vec<_> = found.collect();
            // An empty list is left out.
            if found.is_empty() {
                json!({})
            } else {
                json!({"model_versions": found})
            }
        }
        (Verb::GET, "registered-models/alias") => match mlflow.aliases.get(&query["alias"]) {
            Some(number) => json!({"model_version": version(&mlflow, *number)}),
            None if mlflow.models.is_empty() => {
                return refuse(
                    404,
                    "RESOURCE_DOES_NOT_EXIST",
                    "Registered Model with name=chat not found",
                );
            }
            None => {
                return refuse(
                    400,
                    "INVALID_PARAMETER_VALUE",
                    "Registered model alias production not found.",
                );
            }
        },
        (Verb::POST, "registered-models/alias") => {
            let number = body["version"].as_str().unwrap().parse().unwrap();
            mlflow
                .aliases
                .insert(body["alias"].as_str().unwrap().to_owned(), number);
            json!({})
        }
        _ => return (StatusCode::NOT_FOUND, "<!doctype html>".to_owned()),
    };
    (StatusCode::OK, reply.to_string())
}

async fn server() -> (Shared, MlflowModel) {
    let mlflow = Shared::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new()
        .fallback(answer)
        .with_state(Arc::clone(&mlflow));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (mlflow, MlflowModel::open(&address, "chat").unwrap())
}

fn id(minor: u64) -> VersionId {
    let digest = format!("{minor:02}").repeat(32);
    format!("chat/v1.{minor}.0-{digest}").parse().unwrap()
}

#[tokio::test]
async fn versions_are_registered_once_and_found_by_their_digest() {
    let (mlflow, model) = server().await;
    assert_eq!(model.aliased("production").await.unwrap(), None);
    assert_eq!(model.register(&id(1), "oci://r/chat").await.unwrap(), "1");
    assert_eq!(model.register(&id(2), "oci://r/chat").await.unwrap(), "2");
    assert_eq!(
        model.register(&id(1), "oci://r/chat").await.unwrap(),
        "1",
        "again"
    );
    assert_eq!(mlflow.lock().unwrap().versions.len(), 2);
    assert_eq!(model.find(&id(2)).await.unwrap().as_deref(), Some("2"));
    assert_eq!(model.find(&id(3)).await.unwrap(), None);
    assert_eq!(model.aliased("production").await.unwrap(), None);
    model.set_alias("production", &id(2)).await.unwrap();
    assert_eq!(model.aliased("production").await.unwrap(), Some(id(2)));
    let error = model.set_alias("production", &id(3)).await.unwrap_err();
    assert!(
        matches!(&error, MlflowError::Unregistered { version, .. } if *version == id(3)),
        "{error}"
    );
    let error = model.register(&id(4), "file:///tmp/x").await.unwrap_err();
    assert!(error.is(&MlflowCode::InvalidParameterValue), "{error}");
    assert_eq!(error.kind(), ErrorKind::Permanent);
}

#[tokio::test]
async fn refusals_are_typed() {
    let (mlflow, model) = server().await;
    for (status, text, code, kind) in [
        (
            404,
            "RESOURCE_DOES_NOT_EXIST",
            MlflowCode::ResourceDoesNotExist,
            ErrorKind::Permanent,
        ),
        (
            403,
            "PERMISSION_DENIED",
            MlflowCode::PermissionDenied,
            ErrorKind::Permanent,
        ),
        (401, "", MlflowCode::Unauthenticated, ErrorKind::Permanent),
        (
            429,
            "REQUEST_LIMIT_EXCEEDED",
            MlflowCode::RequestLimitExceeded,
            ErrorKind::Transient,
        ),
        (
            503,
            "TEMPORARILY_UNAVAILABLE",
            MlflowCode::TemporarilyUnavailable,
            ErrorKind::Transient,
        ),
        (
            500,
            "INTERNAL_ERROR",
            MlflowCode::InternalError,
            ErrorKind::Transient,
        ),
        (
            400,
            "NEW_ONE",
            MlflowCode::Other("NEW_ONE".to_owned()),
            ErrorKind::Permanent,
        ),
    ] {
        mlflow.lock().unwrap().refusals = vec![(status, text)];
        let error = model.find(&id(1)).await.unwrap_err();
        assert!(error.is(&code) && error.kind() == kind, "{error}");
    }
    let secretive = model.clone().password("ana", "S3CRET").unwrap();
    assert!(!format!("{secretive:?}").contains("S3CRET"));
    let secretive = model.bearer("S3CRET").unwrap();
    assert!(!format!("{secretive:?}").contains("S3CRET"));
}

#[tokio::test]
async fn the_alias_follows_the_split_whatever_the_notice_says() {
    let (mlflow, model) = server().await;
    let endpoint = EndpointId::new("chat").unwrap();
    let store = MemoryStore::new();
    let alias = MlflowAlias::new(model.clone(), "production", Arc::new(store.clone()));
    let notice = Notice {
        page: false,
        rollout: RolloutId::new("chat-v2").unwrap(),
        text: "promoted".to_owned(),
    };
    let letter = Letter {
        endpoint: &endpoint,
        id: IntentId {
            seq: Seq::default(),
            index: 0,
        },
        notice: &notice,
    };
    // Before the first split there is nothing to follow.
    alias.notify(&letter).await.unwrap();
    let fence = store.acquire(&endpoint).await.unwrap().fence;
    let mut at = Seq::default();
    for minor in [1, 2, 1] {
        let split = Split::steady(None, id(minor), Epoch::new(at.get()));
        store
            .append(&endpoint, fence, at, b"step", Some(&split))
            .await
            .unwrap();
        at = at.next();
        if at.get() <= 2 {
            // Promoted before it was registered: again once it is.
            let error = alias.notify(&letter).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
            model.register(&id(minor), "oci://r/chat").await.unwrap();
        }
        alias.notify(&letter).await.unwrap();
        let writes = mlflow.lock().unwrap().writes.len();
        alias.notify(&letter).await.unwrap();
        assert_eq!(model.aliased("production").await.unwrap(), Some(id(minor)));
        assert_eq!(
            mlflow.lock().unwrap().writes.len(),
            writes,
            "twice changes nothing"
        );
    }
}
