//! Against a fake that answers as Triton 2.51 was seen to.

use super::super::fakes::{at, serve, version};
use super::*;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use std::collections::BTreeMap;

/// The repository has versions 1, 2 and 3 of "chat"; 3 is damaged.
#[derive(Debug, Default)]
struct Repository {
    /// Versions and their states.
    states: BTreeMap<u32, &'static str>,
    /// Looks at the index until what unloads is gone.
    looks: u32,
    /// What was asked for: each set of versions, or nothing for an unload.
    asked: Vec<Vec<u32>>,
    /// The policy in the repository, for a load that says nothing.
    policy: Vec<u32>,
    /// Started without explicit control.
    polling: bool,
    /// Answers in the name of another version.
    muddled: bool,
}

type Shared = Arc<std::sync::Mutex<Repository>>;
type Answer = (StatusCode, String);

fn says(status: u16, json: &Value) -> Answer {
    (StatusCode::from_u16(status).unwrap(), json.to_string())
}

fn fails(status: u16, error: &str) -> Answer {
    says(status, &json!({"error": error}))
}

impl Repository {
    fn switch(&mut self, versions: &[u32]) {
        for (number, state) in &mut self.states {
            if *state == "READY" && !versions.contains(number) {
                *state = "UNLOADING";
            }
        }
        self.looks = 3;
        for number in versions {
            self.states.insert(*number, "READY");
        }
    }

    fn ready(&self, number: u32) -> bool {
        self.states.get(&number) == Some(&"READY")
    }
}

async fn load(
    State(repository): State<Shared>,
    Path((model, verb)): Path<(String, String)>,
    body: String,
) -> Answer {
    let mut repository = repository.lock().unwrap();
    if repository.polling {
        return fails(
            503,
            "explicit model load / unload is not allowed if polling is enabled",
        );
    }
    if model != "chat" {
        return fails(
            500,
            &format!("failed to load '{model}', failed to poll from model repository"),
        );
    }
    if verb == "unload" {
        repository.asked.push(Vec::new());
        repository.switch(&[]);
        return (StatusCode::OK, String::new());
    }
    let body: Value = serde_json::from_str(&body).unwrap();
    let versions: Vec<u32> = match body.pointer("/parameters/config").and_then(Value::as_str) {
        None => repository.policy.clone(),
        Some(config) => {
            let config: Value = serde_json::from_str(config).unwrap();
            // The configuration replaces what the repository says: without a backend nothing could be loaded.
            assert_eq!(config["backend"], "python");
            serde_json::from_value(config["version_policy"]["specific"]["versions"].clone())
                .unwrap()
        }
    };
    repository.asked.push(versions.clone());
    if versions.contains(&3) {
        repository.states.insert(3, "UNAVAILABLE");
        return fails(
            400,
            "load failed for model 'chat': version 3 is at UNAVAILABLE state: Internal: RuntimeError: broken weights",
        );
    }
    repository.switch(&versions);
    (StatusCode::OK, String::new())
}

async fn index(State(repository): State<Shared>) -> Answer {
    let mut repository = repository.lock().unwrap();
    repository.looks = repository.looks.saturating_sub(1);
    if repository.looks == 0 {
        for state in repository
            .states
            .values_mut()
            .filter(|state| **state == "UNLOADING")
        {
            *state = "UNAVAILABLE";
        }
    }
    let mut entries = vec![json!({"name": "other", "version": "1", "state": "READY"})];
    entries.extend(
        repository
            .states
            .iter()
            .map(|(n, state)| json!({"name": "chat", "version": n.to_string(), "state": state})),
    );
    says(200, &Value::from(entries))
}

async fn about(State(repository): State<Shared>, Path((_, number)): Path<(String, u32)>) -> Answer {
    if repository.lock().unwrap().ready(number) {
        says(
            200,
            &json!({"name": "chat", "versions": [number.to_string()], "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [-1, 1]}]}),
        )
    } else {
        fails(404, "Request for unknown model")
    }
}

async fn ready(State(repository): State<Shared>, Path((_, number)): Path<(String, u32)>) -> Answer {
    if repository.lock().unwrap().ready(number) {
        (StatusCode::OK, String::new())
    } else {
        fails(400, "Model version not ready")
    }
}

async fn infer(
    State(repository): State<Shared>,
    Path((_, number)): Path<(String, u32)>,
    Json(body): Json<Value>,
) -> Answer {
    let repository = repository.lock().unwrap();
    if !repository.ready(number) {
        return fails(
            503,
            "Request for unknown model: 'chat' version is not at ready state",
        );
    }
    // A model that takes batches has one dimension more.
    assert_eq!(body["inputs"][0]["shape"], json!([1, 1]));
    let prompt = body["inputs"][0]["data"][0].as_str().unwrap();
    let answers = if repository.muddled {
        number + 1
    } else {
        number
    };
    let text = format!("{number} says {prompt}");
    says(
        200,
        &json!({
            "model_name": "chat", "model_version": answers.to_string(),
            "outputs": [{"name": "text_output", "datatype": "BYTES", "shape": [1], "data": [text]}],
        }),
    )
}

async fn config(State(repository): State<Shared>) -> Answer {
    let repository = repository.lock().unwrap();
    if (1..=3).any(|n| repository.ready(n)) {
        says(
            200,
            &json!({"name": "chat", "backend": "python", "version_policy": {"latest": {"num_versions": 1}}}),
        )
    } else {
        fails(
            404,
            "Request for unknown model: 'chat' has no available versions",
        )
    }
}

const METRICS: &str = "# TYPE nv_inference_pending_request_count gauge\n\
    nv_inference_pending_request_count{model=\"chat\",version=\"1\"} 0\n\
    nv_inference_pending_request_count{model=\"chat\",version=\"2\"} 2\n\
    nv_inference_pending_request_count{model=\"other\",version=\"2\"} 7\n";

async fn triton() -> (String, Shared) {
    let repository = Shared::default();
    repository.lock().unwrap().policy = vec![2];
    let app = Router::new()
        .route("/v2/repository/models/{model}/{verb}", post(load))
        .route("/v2/repository/index", post(index))
        .route("/v2/models/{model}/config", get(config))
        .route("/v2/models/{model}/versions/{number}", get(about))
        .route("/v2/models/{model}/versions/{number}/ready", get(ready))
        .route("/v2/models/{model}/versions/{number}/infer", post(infer))
        .route("/metrics", get(async || METRICS))
        .with_state(Arc::clone(&repository));
    (serve(app).await, repository)
}

fn backend(address: &str) -> KServeBackendBuilder {
    let builder = KServeBackend::builder(address).deadline(Duration::from_secs(20));
    (1..=3).fold(builder, |builder, n| {
        builder.version(version(n), KServeModel::new("chat").version(n.into()))
    })
}

#[tokio::test]
async fn versions_stay_loaded_beside_each_other() {
    let (address, repository) = triton().await;
    let backend = backend(&address).build().unwrap();
    assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(false));
    backend.prepare(&version(1), at(1)).await.unwrap();
    backend.prepare(&version(2), at(2)).await.unwrap();
    // The repository's own policy is asked once, for the configuration.
    assert_eq!(
        repository.lock().unwrap().asked,
        [vec![2], vec![1], vec![1, 2]]
    );
    let damaged = backend.prepare(&version(3), at(3)).await.unwrap_err();
    assert_eq!(damaged.kind(), ErrorKind::Permanent);
    assert!(damaged.to_string().contains("broken weights"), "{damaged}");
    assert!(backend.is_ready(&version(1)) && backend.is_ready(&version(2)));
    assert_eq!(backend.healthy(&version(2)).await.unwrap(), Some(true));
    backend.retire(&version(2), at(4)).await.unwrap();
    let states = repository.lock().unwrap().states.clone();
    assert_eq!(
        (states[&1], states[&2]),
        ("READY", "UNAVAILABLE"),
        "it waits for the end of unloading"
    );
    backend.retire(&version(1), at(5)).await.unwrap();
    let asked = repository.lock().unwrap().asked.clone();
    assert_eq!(asked[asked.len() - 2..], [vec![1], vec![]]);
    backend.retire(&version(1), at(5)).await.unwrap();
    assert_eq!(
        repository.lock().unwrap().asked.len(),
        asked.len(),
        "what is gone is left alone"
    );
}

#[tokio::test]
async fn it_does_what_every_backend_must() {
    let (address, _) = triton().await;
    let backend = backend(&address).build().unwrap();
    let within = Duration::from_secs(20);
    crate::testing::backend::suite(&backend, &version(1), &version(9), within)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_configuration_that_is_given_is_used_where_nothing_is_loaded() {
    let (address, repository) = triton().await;
    let model = KServeModel::new("chat")
        .version(1)
        .config(r#"{"backend": "python"}"#);
    let backend = KServeBackend::builder(&address)
        .version(version(1), model)
        .build()
        .unwrap();
    backend.prepare(&version(1), at(1)).await.unwrap();
    assert_eq!(repository.lock().unwrap().asked, [vec![1]]);
}

#[tokio::test]
async fn unloading_that_takes_too_long_may_pass() {
    let (address, repository) = triton().await;
    let backend = backend(&address).build().unwrap();
    backend.prepare(&version(1), at(1)).await.unwrap();
    let hasty = self::backend(&address)
        .deadline(Duration::from_millis(100))
        .build()
        .unwrap();
    // A request that takes for ever.
    let stays = Arc::clone(&repository);
    let keeper = tokio::spawn(async move {
        loop {
            stays.lock().unwrap().looks = 3;
            tokio::task::yield_now().await;
        }
    });
    let late = hasty.retire(&version(1), at(2)).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Transient, "{late}");
    assert!(late.to_string().contains("was not done within"), "{late}");
    keeper.abort();
    backend.retire(&version(1), at(3)).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_loaded_is_permanent_and_says_what_to_do() {
    let (address, repository) = triton().await;
    let unknown = KServeBackend::builder(&address)
        .version(version(1), KServeModel::new("poem").version(1))
        .version(version(2), KServeModel::new("song"))
        .build()
        .unwrap();
    for n in [1, 2] {
        let error = unknown.prepare(&version(n), at(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
        assert!(
            error.to_string().contains("into the server's repository"),
            "{error}"
        );
    }
    repository.lock().unwrap().polling = true;
    let error = backend(&address)
        .build()
        .unwrap()
        .prepare(&version(1), at(1))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    assert!(
        error.to_string().contains("--model-control-mode=explicit"),
        "{error}"
    );
    let nobody = backend("http://127.0.0.1:9").build().unwrap();
    let error = nobody.prepare(&version(1), at(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(nobody.healthy(&version(1)).await.is_err());
}

#[tokio::test]
async fn another_version_than_the_right_one_is_noticed() {
    let (address, repository) = triton().await;
    let golden = |answer: &str| {
        KServeModel::new("chat")
            .version(1)
            .golden("2 + 2 =", answer)
    };
    let backend = |model| {
        KServeBackend::builder(&address)
            .version(version(1), model)
            .build()
            .unwrap()
    };
    backend(golden("1 says 2 + 2 ="))
        .prepare(&version(1), at(1))
        .await
        .unwrap();
    let error = backend(golden(" 4"))
        .prepare(&version(1), at(1))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("golden answer"), "{error}");
    repository.lock().unwrap().muddled = true;
    let error = backend(golden("1 says 2 + 2 ="))
        .prepare(&version(1), at(1))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent);
    assert!(
        error.to_string().contains("\"chat\" version \"2\" answers"),
        "{error}"
    );
}

#[tokio::test]
async fn what_waits_is_counted_and_what_executes_is_unknown() {
    let (address, _) = triton().await;
    let metrics = format!("{address}/metrics");
    let plain = backend(&address).build().unwrap();
    assert_eq!(plain.in_flight(&version(2)).await.unwrap(), None);
    let scraped = backend(&address).metrics(&metrics).build().unwrap();
    assert_eq!(scraped.in_flight(&version(2)).await.unwrap(), Some(2));
    assert_eq!(
        scraped.in_flight(&version(1)).await.unwrap(),
        None,
        "none waits: one may execute"
    );
    let counted = backend(&address)
        .metrics(&metrics)
        .in_flight(|_| Some(1))
        .build()
        .unwrap();
    assert_eq!(counted.in_flight(&version(2)).await.unwrap(), Some(2));
    assert_eq!(counted.in_flight(&version(1)).await.unwrap(), Some(1));
}

#[test]
fn what_cannot_work_is_refused_when_it_is_built() {
    let with = |model| {
        KServeBackend::builder("http://localhost")
            .version(version(1), model)
            .build()
    };
    for bad in [
        KServeModel::new(""),
        KServeModel::new("../config"),
        KServeModel::new("chat").config("[]"),
        KServeModel::new("chat").with_tensor("max_tokens"),
    ] {
        assert_eq!(with(bad).unwrap_err().kind(), ErrorKind::Permanent);
    }
    assert!(KServeBackend::builder("ftp://x").build().is_err());
    let same = KServeModel::new("chat").version(1);
    assert!(
        backend("http://localhost")
            .version(version(9), same)
            .build()
            .is_err()
    );
}
