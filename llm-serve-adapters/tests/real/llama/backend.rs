//! Backends against a real llama-server: alone, and as a router of models.

use crate::stack::{Llama, env, long, model_file, send, version};
use http_body_util::BodyExt as _;
use llm_rollout::{Fence, Position, Seq};
use llm_serve_adapters::backend::{
    ChatClient, Golden, LlamaCpp, LlamaCppBackend, OpenAiBackend, OtherModel, Upstream,
};
use llm_serve_adapters::host::{ErrorKind, ServingBackend};
use llm_serve_adapters::testing::backend::{in_flight_tells_what_runs, suite};
use std::time::Duration;

const WITHIN: Duration = Duration::from_secs(120);

fn at(seq: u64) -> Position {
    Position {
        fence: Fence::new(100),
        seq: Seq::new(seq),
    }
}

fn upstream(server: &Llama, model: &str) -> Upstream {
    Upstream::new(format!("http://127.0.0.1:{}", server.port()), model)
}

async fn conforms(backend: &dyn ServingBackend) {
    suite(backend, &version("v1"), &version("bad"), WITHIN)
        .await
        .unwrap();
}

/// While a stream of this server runs, it is counted.
async fn counts(backend: &dyn ServingBackend, server: &Llama) {
    backend.prepare(&version("v1"), at(1)).await.unwrap();
    let mut asked = long(200);
    asked["model"] = "v1".into();
    let stream = async {
        let response = send(server.port(), "", &asked).await.unwrap();
        response.into_body().collect().await.unwrap().to_bytes()
    };
    in_flight_tells_what_runs(backend, &version("v1"), WITHIN, stream)
        .await
        .unwrap();
    backend.retire(&version("v1"), at(2)).await.unwrap();
}

#[tokio::test]
#[ignore = "needs llama-server and models: e2e/run llama"]
async fn a_server_of_one_model_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let server = Llama::loading(folder.path(), "v1", "v1");
    let place = LlamaCpp::server(upstream(&server, "v1")).file(model_file("v1").to_str().unwrap());
    let builder = LlamaCppBackend::builder().version(version("v1"), place);
    let backend = builder.deadline(WITHIN).build().unwrap();
    // It listens before it has loaded its model, or not yet at all.
    crate::process::until("the model", async || {
        match backend.prepare(&version("v1"), Position::default()).await {
            Ok(()) => Some(()),
            Err(e) => (e.kind() != ErrorKind::Transient).then(|| panic!("{e}")),
        }
    })
    .await;
    conforms(&backend).await;
    counts(&backend, &server).await;
    let general = OpenAiBackend::builder().upstream(version("v1"), upstream(&server, "v1"));
    conforms(&general.deadline(WITHIN).build().unwrap()).await;
    let build = env("LLM_E2E_LLAMA_VERSION");
    crate::verified("llama-cpp", "llama-server", &build);
    crate::verified("openai", "llama-server", &build);
    println!("ok      llama-server of one model: conforms, also as OpenAI's API; counts what runs");
}

#[tokio::test]
#[ignore = "needs llama-server and models: e2e/run llama"]
async fn a_router_of_models_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let server = Llama::router(folder.path()).await;
    let place = LlamaCpp::routed(upstream(&server, "v1")).file("v1.gguf");
    let other = LlamaCpp::routed(upstream(&server, "nothing"));
    let builder = LlamaCppBackend::builder().version(version("v1"), place);
    let builder = builder.version(version("v2"), other).deadline(WITHIN);
    let backend = builder.build().unwrap();
    conforms(&backend).await;
    counts(&backend, &server).await;
    let missing = backend.prepare(&version("v2"), at(1)).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Permanent);
    assert!(
        missing.to_string().contains("\"bad\", \"v1\", \"v2\""),
        "{missing}"
    );
    println!("ok      llama-server as a router: conforms; loads, counts and unloads a model");
}

#[tokio::test]
#[ignore = "needs llama-server and models: e2e/run llama"]
async fn another_model_in_the_name_of_the_right_one_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let right = Llama::start(folder.path(), "v1").await;
    let client = ChatClient::new(&upstream(&right, "v1")).unwrap();
    // Long enough that two quantisations part, however the processor rounds.
    let golden = Golden::record(&client, "Tell me a long story.", 64, WITHIN)
        .await
        .unwrap()
        .field("cache_prompt", false.into());
    let prepare = async |server: &Llama, model: &str| {
        let upstream = upstream(server, model).golden(golden.clone());
        let builder = LlamaCppBackend::builder().version(version("v1"), LlamaCpp::server(upstream));
        let backend = builder.deadline(WITHIN).build().unwrap();
        backend.prepare(&version("v1"), at(1)).await
    };
    prepare(&right, "v1").await.unwrap();
    for wrong in ["v2", "bad"] {
        // By its name alone nobody could tell.
        let server = Llama::loading(folder.path(), wrong, "v1");
        crate::process::ready(server.port(), "/health").await;
        let error = prepare(&server, "v1").await.unwrap_err();
        // What the damaged one says may be nothing that its server can read; that is refused as well.
        let unreadable = wrong == "bad" && error.to_string().contains("answers 500");
        if !unreadable {
            assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
            let source = std::error::Error::source(&error).unwrap();
            assert!(source.downcast_ref::<OtherModel>().is_some(), "{error}");
        }
        println!("ok      {wrong} in the name of v1 is refused: {error}");
    }
}
