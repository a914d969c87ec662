//! Against fakes that answer as vLLM 0.32 was seen to, and as SGLang 0.5.23 does by its source.

use super::super::fakes::{at, serve, version};
use super::*;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};

#[derive(Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent of each other"
)]
struct Engine {
    /// Adapters and their folders.
    adapters: BTreeMap<String, String>,
    /// Everything that was asked for, by path and query, but for lists and metrics.
    asked: Vec<String>,
    sleeping: bool,
    paused: bool,
    weights: String,
    /// Its API server is shutting down: `/health` still says 200.
    ending: bool,
    running: u64,
    load: u64,
    no_metrics: bool,
}

type Shared = Arc<std::sync::Mutex<Engine>>;

fn fails(status: u16, message: &str) -> Response {
    let error = json!({"error": {"message": message, "type": "BadRequestError", "param": null, "code": status}});
    (StatusCode::from_u16(status).unwrap(), Json(error)).into_response()
}

fn note(engine: &Shared, what: &str) {
    engine.lock().unwrap().asked.push(what.to_owned());
}

/// What both speak.
fn common() -> Router<Shared> {
    let models = async |State(engine): State<Shared>| {
        let mut data =
            vec![json!({"id": "chat", "object": "model", "root": "/models/chat", "parent": null})];
        let engine = engine.lock().unwrap();
        data.extend(engine.adapters.iter().map(
            |(id, root)| json!({"id": id, "object": "model", "root": root, "parent": "chat"}),
        ));
        Json(json!({"object": "list", "data": data}))
    };
    let complete = async |State(engine): State<Shared>, Json(body): Json<Value>| {
        // As a real vLLM does: what comes while it is paused waits until it goes on.
        let held = || {
            let engine = engine.lock().unwrap();
            (engine.paused || engine.sleeping) && !engine.ending
        };
        while held() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let engine = engine.lock().unwrap();
        let model = body["model"].as_str().unwrap();
        if engine.ending {
            return fails(500, "cannot schedule new futures after shutdown");
        }
        if model != "chat" && !engine.adapters.contains_key(model) {
            return fails(404, &format!("The model `{model}` does not exist."));
        }
        let prompt = body["messages"][0]["content"].as_str().unwrap();
        let text = format!("{model} says {prompt}");
        Json(json!({"model": model, "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]})).into_response()
    };
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/chat/completions", post(complete))
        .route("/health", get(async || ""))
}

async fn load_adapter(State(engine): State<Shared>, Json(body): Json<Value>) -> Response {
    let mut engine = engine.lock().unwrap();
    let text = |field: &str| body[field].as_str().unwrap().to_owned();
    let (name, path) = (text("lora_name"), text("lora_path"));
    engine.asked.push(format!("load {path}"));
    assert!(body.get("load_inplace").is_none(), "never in place");
    if engine.adapters.contains_key(&name) {
        return fails(
            400,
            &format!(
                "The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True."
            ),
        );
    }
    if path.contains("broken") {
        return fails(
            500,
            "Call to add_lora method failed: LoRA rank 64 is greater than max_lora_rank 16.",
        );
    }
    engine.adapters.insert(name, path);
    "Success: LoRA adapter added successfully.".into_response()
}

async fn unload_adapter(State(engine): State<Shared>, Json(body): Json<Value>) -> Response {
    let mut engine = engine.lock().unwrap();
    let name = body["lora_name"].as_str().unwrap();
    engine.asked.push("unload".to_owned());
    match engine.adapters.remove(name) {
        Some(_) => "Success: LoRA adapter removed successfully.".into_response(),
        None => fails(404, &format!("The lora adapter '{name}' cannot be found.")),
    }
}

#[cfg(feature = "vllm")]
async fn vllm(dev_mode: bool, lora: bool) -> (String, Shared) {
    use super::super::fakes::query;
    use axum::http::Uri;
    let engine = Shared::default();
    let mut app = common();
    if lora {
        app = app
            .route("/v1/load_lora_adapter", post(load_adapter))
            .route("/v1/unload_lora_adapter", post(unload_adapter));
    }
    let metrics = async |State(engine): State<Shared>| {
        let engine = engine.lock().unwrap();
        let running = engine.running;
        if engine.no_metrics {
            "# started with --disable-log-stats\n".to_owned()
        } else {
            // As the real one writes them.
            format!(
                "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{engine=\"0\",model_name=\"chat\"}} {running}.0\n\
                 # TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{{engine=\"0\",model_name=\"chat\"}} 0.0\n\
                 vllm:num_requests_waiting_by_reason{{engine=\"0\",model_name=\"chat\",reason=\"capacity\"}} 5.0\n"
            )
        }
    };
    let load = async |State(engine): State<Shared>| {
        Json(json!({"server_load": engine.lock().unwrap().load}))
    };
    app = app
        .route("/metrics", get(metrics))
        .route("/load", get(load));
    if dev_mode {
        let sleep = async |State(engine): State<Shared>, uri: Uri| {
            let asked = query(&uri);
            // Unless it is told to wait it aborts what runs.
            note(
                &engine,
                &format!(
                    "sleep {} {}",
                    asked["level"],
                    asked.get("mode").map_or("abort", String::as_str)
                ),
            );
            engine.lock().unwrap().sleeping = true;
            Json(json!({"status": "sleeping"}))
        };
        let wake = async |State(engine): State<Shared>| {
            note(&engine, "wake");
            engine.lock().unwrap().sleeping = false;
            Json(json!({"status": "awake", "tags": null}))
        };
        let pause = async |State(engine): State<Shared>, uri: Uri| {
            let asked = query(&uri);
            note(&engine, &format!("pause {}", asked["mode"]));
            engine.lock().unwrap().paused = true;
            Json(json!({"status": "paused"}))
        };
        let resume = async |State(engine): State<Shared>| {
            note(&engine, "resume");
            engine.lock().unwrap().paused = false;
            Json(json!({"status": "resumed"}))
        };
        let check = async |Json(body): Json<Value>| {
            let differs = body["baseline"]["lm_head.weight"] != "6e340b9c";
            let mismatches = if differs {
                vec!["lm_head.weight"]
            } else {
                vec![]
            };
            Json(json!({"match": !differs, "mismatches": mismatches}))
        };
        app = app
            .route("/sleep", post(sleep))
            .route("/wake_up", post(wake))
            .route(
                "/is_sleeping",
                get(async |State(engine): State<Shared>| {
                    Json(json!({"is_sleeping": engine.lock().unwrap().sleeping}))
                }),
            )
            .route("/pause", post(pause))
            .route("/resume", post(resume))
            .route(
                "/is_paused",
                get(async |State(engine): State<Shared>| {
                    Json(json!({"is_paused": engine.lock().unwrap().paused}))
                }),
            )
            .route(
                "/weight_info",
                get(async |State(engine): State<Shared>| {
                    Json(json!({"weight_version": engine.lock().unwrap().weights}))
                }),
            )
            .route("/weight_checker", post(check));
    }
    (serve(app.with_state(Arc::clone(&engine))).await, engine)
}

#[cfg(feature = "vllm")]
mod of_vllm {
    use super::*;

    fn of(n: u8, place: EngineVersion) -> EngineBackend {
        EngineBackend::vllm()
            .version(version(n), place)
            .deadline(Duration::from_secs(20))
            .build()
            .unwrap()
    }

    #[tokio::test]
    async fn it_does_what_every_backend_must() {
        for place in [
            EngineVersion::server(vllm(true, true).await.0, "chat"),
            EngineVersion::lora(vllm(true, true).await.0, "/adapters/v1"),
        ] {
            let backend = of(1, place);
            let within = Duration::from_secs(20);
            crate::testing::backend::suite(&backend, &version(1), &version(9), within)
                .await
                .unwrap();
        }
    }

    #[tokio::test]
    async fn an_adapter_has_a_name_of_its_own_and_is_never_loaded_in_place() {
        let (address, engine) = vllm(false, true).await;
        let adapter = |n: u8| EngineVersion::lora(&address, format!("/adapters/v{n}"));
        let backend = EngineBackend::vllm()
            .version(version(1), adapter(1))
            .version(version(2), adapter(2))
            .build()
            .unwrap();
        for n in [1, 2, 1] {
            backend.prepare(&version(n), at(1)).await.unwrap();
            assert_eq!(backend.healthy(&version(n)).await.unwrap(), Some(true));
        }
        let names: Vec<_> = engine.lock().unwrap().adapters.keys().cloned().collect();
        assert_eq!(names, ["chat-0101010101010101", "chat-0202020202020202"]);
        assert_eq!(backend.model(&version(2)).unwrap(), names[1]);
        assert_eq!(
            engine.lock().unwrap().asked,
            ["load /adapters/v1", "load /adapters/v2"],
            "what is there is left as it is"
        );
        backend.standby(&version(1), at(2)).await.unwrap();
        backend.retire(&version(2), at(2)).await.unwrap();
        backend.retire(&version(2), at(3)).await.unwrap();
        assert!(engine.lock().unwrap().adapters.is_empty());
        assert_eq!(
            backend.healthy(&version(2)).await.unwrap(),
            Some(false),
            "no such model"
        );
    }

    #[tokio::test]
    async fn adapters_that_cannot_be_loaded_say_why() {
        let (address, engine) = vllm(false, true).await;
        let broken = of(1, EngineVersion::lora(&address, "/adapters/broken"));
        let error = broken.prepare(&version(1), at(1)).await.unwrap_err();
        assert!(error.to_string().contains("LoRA rank 64"), "{error}");
        // Somebody has loaded another folder under the version's name.
        engine.lock().unwrap().adapters.insert(
            "chat-0202020202020202".to_owned(),
            "/adapters/else".to_owned(),
        );
        let other = of(2, EngineVersion::lora(&address, "/adapters/v2"));
        let error = other.prepare(&version(2), at(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent);
        assert!(error.to_string().contains("/adapters/else"), "{error}");
        let (address, _) = vllm(false, false).await;
        let closed = of(1, EngineVersion::lora(&address, "/adapters/v1"));
        let error = closed.prepare(&version(1), at(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent);
        assert!(
            error
                .to_string()
                .contains("VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_server_sleeps_wakes_is_paused_and_resumed() {
        let (address, engine) = vllm(true, false).await;
        let backend = of(1, EngineVersion::server(&address, "chat"));
        backend.prepare(&version(1), at(1)).await.unwrap();
        assert!(engine.lock().unwrap().asked.is_empty(), "it is awake");
        backend.standby(&version(1), at(2)).await.unwrap();
        assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(false));
        backend.prepare(&version(1), at(3)).await.unwrap();
        backend.retire(&version(1), at(4)).await.unwrap();
        assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(false));
        backend.prepare(&version(1), at(5)).await.unwrap();
        assert_eq!(
            engine.lock().unwrap().asked,
            ["sleep 1 wait", "wake", "pause abort", "resume"]
        );
        // Without the dev mode there is nothing to switch.
        let (address, _) = vllm(false, false).await;
        let backend = of(1, EngineVersion::server(&address, "chat"));
        backend.prepare(&version(1), at(1)).await.unwrap();
        backend.standby(&version(1), at(2)).await.unwrap();
        backend.retire(&version(1), at(3)).await.unwrap();
    }

    #[tokio::test]
    async fn the_weights_that_run_must_be_those_of_the_version() {
        let (address, engine) = vllm(true, false).await;
        engine.lock().unwrap().weights = "chat-v1".to_owned();
        let server = || EngineVersion::server(&address, "chat");
        let good = server()
            .weights("chat-v1")
            .checksums([("lm_head.weight", "6e340b9c")])
            .golden(Golden::new("2 + 2 =", "chat says 2 + 2 ="));
        of(1, good).prepare(&version(1), at(1)).await.unwrap();
        for (bad, part) in [
            (server().weights("chat-v2"), "runs weights \"chat-v1\""),
            (
                server().checksums([("lm_head.weight", "00000000")]),
                "1 checksums differ",
            ),
            (
                server().golden(Golden::new("2 + 2 =", "4")),
                "is not what runs",
            ),
        ] {
            let error = of(1, bad).prepare(&version(1), at(1)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Permanent);
            assert!(error.to_string().contains(part), "{error}");
        }
        let (address, _) = vllm(false, false).await;
        let blind = of(
            1,
            EngineVersion::server(&address, "chat").weights("chat-v1"),
        );
        let error = blind.prepare(&version(1), at(1)).await.unwrap_err();
        assert!(
            error.to_string().contains("does not tell which weights"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_real_generation_decides_about_health() {
        let (address, engine) = vllm(false, false).await;
        let backend = of(1, EngineVersion::server(&address, "chat"));
        backend.prepare(&version(1), at(1)).await.unwrap();
        engine.lock().unwrap().ending = true;
        assert_eq!(
            backend.healthy(&version(1)).await.unwrap(),
            Some(false),
            "although /health says 200"
        );
        assert_eq!(backend.healthy(&version(9)).await.unwrap(), None);
        let gone = of(1, EngineVersion::server("http://127.0.0.1:9", "chat"));
        assert!(
            gone.healthy(&version(1)).await.is_err(),
            "that says nothing about the version"
        );
    }

    #[tokio::test]
    async fn what_runs_is_counted_where_it_is_told() {
        let (address, engine) = vllm(false, true).await;
        let server = of(1, EngineVersion::server(&address, "chat"));
        let adapter = of(2, EngineVersion::lora(&address, "/adapters/v2"));
        assert_eq!(server.in_flight(&version(1)).await.unwrap(), Some(0));
        assert_eq!(adapter.in_flight(&version(2)).await.unwrap(), Some(0));
        engine.lock().unwrap().running = 3;
        assert_eq!(server.in_flight(&version(1)).await.unwrap(), Some(3));
        assert_eq!(
            adapter.in_flight(&version(2)).await.unwrap(),
            None,
            "whose they are is not told"
        );
        let counted = EngineBackend::vllm()
            .version(version(2), EngineVersion::lora(&address, "/adapters/v2"))
            .in_flight(|_| Some(1))
            .build()
            .unwrap();
        assert_eq!(counted.in_flight(&version(2)).await.unwrap(), Some(1));
        engine.lock().unwrap().no_metrics = true;
        assert_eq!(
            server.in_flight(&version(1)).await.unwrap(),
            None,
            "a load of 0 is what is said without tracking, too"
        );
        engine.lock().unwrap().load = 2;
        assert_eq!(server.in_flight(&version(1)).await.unwrap(), Some(2));
    }

    #[test]
    fn what_cannot_work_is_refused_when_it_is_built() {
        let with = |place| EngineBackend::vllm().version(version(1), place).build();
        assert!(with(EngineVersion::server("localhost", "chat")).is_err());
        assert!(with(EngineVersion::server("http://localhost", "")).is_err());
        let key = EngineVersion::server("http://localhost", "chat").api_key("sk-SECRET");
        let backend = with(key.clone()).unwrap();
        assert!(!format!("{key:?} {backend:?}").contains("SECRET"));
        assert!(
            EngineBackend::vllm()
                .deadline(Duration::ZERO)
                .build()
                .is_err()
        );
    }
}

#[cfg(feature = "sglang")]
mod of_sglang {
    use super::*;

    async fn sglang() -> (String, Shared) {
        let engine = Shared::default();
        engine.lock().unwrap().weights = "chat-v1".to_owned();
        let update = async |State(engine): State<Shared>, Json(body): Json<Value>| {
            let path = body["model_path"].as_str().unwrap();
            note(&engine, &format!("update {path}"));
            assert_eq!(
                (&body["abort_all_requests"], &body["flush_cache"]),
                (&json!(false), &json!(true))
            );
            if path.contains("broken") {
                let said = json!({"success": false, "message": "Failed to get weights iterator", "num_paused_requests": 0});
                return (StatusCode::BAD_REQUEST, Json(said)).into_response();
            }
            body["weight_version"]
                .as_str()
                .unwrap()
                .clone_into(&mut engine.lock().unwrap().weights);
            Json(json!({"success": true, "message": "Succeeded to update model weights.", "num_paused_requests": 0})).into_response()
        };
        let rename = async |State(engine): State<Shared>, Json(body): Json<Value>| {
            body["new_version"]
                .as_str()
                .unwrap()
                .clone_into(&mut engine.lock().unwrap().weights);
            Json(json!({"success": true}))
        };
        let release = async |State(engine): State<Shared>| {
            note(&engine, "release");
            let mut engine = engine.lock().unwrap();
            assert!(
                engine.running == 0 && !engine.sleeping,
                "the server would crash"
            );
            engine.sleeping = true;
        };
        let resume = async |State(engine): State<Shared>| {
            note(&engine, "resume");
            let mut engine = engine.lock().unwrap();
            assert!(engine.sleeping, "the server would crash");
            engine.sleeping = false;
        };
        let pause = async |State(engine): State<Shared>, Json(body): Json<Value>| {
            note(
                &engine,
                &format!("pause {}", body["mode"].as_str().unwrap()),
            );
            engine.lock().unwrap().paused = true;
            Json(json!({"message": "Generation paused successfully.", "status": "ok"}))
        };
        let go_on = async |State(engine): State<Shared>| {
            engine.lock().unwrap().paused = false;
            Json(json!({"message": "Generation continued successfully.", "status": "ok"}))
        };
        let metrics = async |State(engine): State<Shared>| {
            let mut engine = engine.lock().unwrap();
            let running = engine.running;
            // Whoever is waited for ends some time.
            engine.running = running.saturating_sub(1);
            format!(
                "sglang:num_running_reqs{{model_name=\"chat\"}} {running}.0\nsglang:num_queue_reqs{{model_name=\"chat\"}} 0.0\n"
            )
        };
        let info = async |State(engine): State<Shared>| {
            Json(
                json!({"model_path": "/models/chat", "served_model_name": "chat", "is_generation": true, "weight_version": engine.lock().unwrap().weights}),
            )
        };
        let app = common()
            .route("/load_lora_adapter", post(load_adapter))
            .route("/unload_lora_adapter", post(unload_adapter))
            .route("/update_weights_from_disk", post(update))
            .route("/update_weight_version", post(rename))
            .route("/release_memory_occupation", post(release))
            .route("/resume_memory_occupation", post(resume))
            .route("/pause_generation", post(pause))
            .route("/continue_generation", post(go_on))
            .route("/metrics", get(metrics))
            .route("/model_info", get(info))
            .with_state(Arc::clone(&engine));
        (serve(app).await, engine)
    }

    fn of(n: u8, place: EngineVersion) -> EngineBackend {
        EngineBackend::sglang()
            .version(version(n), place)
            .deadline(Duration::from_secs(20))
            .build()
            .unwrap()
    }

    #[tokio::test]
    async fn it_does_what_every_backend_must() {
        for place in [
            EngineVersion::server(sglang().await.0, "chat")
                .weights("chat-v1")
                .load_from("/models/v1"),
            EngineVersion::lora(sglang().await.0, "/adapters/v1"),
        ] {
            let backend = of(1, place);
            let within = Duration::from_secs(20);
            crate::testing::backend::suite(&backend, &version(1), &version(9), within)
                .await
                .unwrap();
        }
    }

    #[tokio::test]
    async fn an_idle_server_is_given_the_weights_of_the_version() {
        let (address, engine) = sglang().await;
        let place = |path: &str| {
            EngineVersion::server(&address, "chat")
                .weights("chat-v2")
                .load_from(path)
        };
        let backend = of(2, place("/models/v2"));
        backend.prepare(&version(2), at(1)).await.unwrap();
        backend.prepare(&version(2), at(2)).await.unwrap();
        assert_eq!(engine.lock().unwrap().asked, ["update /models/v2"], "once");
        // Retired it is paused; prepared again it goes on.
        backend.retire(&version(2), at(3)).await.unwrap();
        assert_eq!(backend.healthy(&version(2)).await.unwrap(), Some(false));
        backend.prepare(&version(2), at(4)).await.unwrap();
        let broken = EngineVersion::server(&address, "chat")
            .weights("chat-v3")
            .load_from("/models/broken");
        let error = of(3, broken).prepare(&version(3), at(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent);
        assert!(error.to_string().contains("weights iterator"), "{error}");
        let unnamed = EngineVersion::server(&address, "chat").load_from("/models/v2");
        assert!(of(3, unnamed).prepare(&version(3), at(1)).await.is_err());
    }

    #[tokio::test]
    async fn memory_is_released_when_nothing_runs_and_weights_are_loaded_again() {
        let (address, engine) = sglang().await;
        let place = EngineVersion::server(&address, "chat")
            .weights("chat-v1")
            .load_from("/models/v1");
        let backend = of(1, place.clone());
        backend.prepare(&version(1), at(1)).await.unwrap();
        engine.lock().unwrap().running = 3;
        backend.standby(&version(1), at(2)).await.unwrap();
        assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(false));
        // A controller that was started meanwhile sees it, too.
        of(1, place).prepare(&version(1), at(3)).await.unwrap();
        assert_eq!(
            engine.lock().unwrap().asked,
            ["release", "resume", "update /models/v1"]
        );
        // Its own drain has no end; waiting for it has.
        engine.lock().unwrap().running = u64::from(u32::MAX);
        let hasty = EngineBackend::sglang()
            .version(version(1), EngineVersion::server(&address, "chat"))
            .deadline(Duration::from_millis(200))
            .build()
            .unwrap();
        let late = hasty.standby(&version(1), at(4)).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Transient, "{late}");
    }

    #[tokio::test]
    async fn adapters_are_loaded_and_unloaded() {
        let (address, engine) = sglang().await;
        let backend = of(1, EngineVersion::lora(&address, "/adapters/v1"));
        backend.prepare(&version(1), at(1)).await.unwrap();
        backend.retire(&version(1), at(2)).await.unwrap();
        assert_eq!(
            engine.lock().unwrap().asked,
            ["load /adapters/v1", "unload"]
        );
    }
}
