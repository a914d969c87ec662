//! A LoRA adapter of a real llama-server as a version: on the base's weights, beside it, and told from it.

use crate::process::http;
use crate::stack::{Llama, env, model_file, version};
use llm_rollout::{Fence, Position, Seq};
use llm_serve_adapters::backend::{Golden, LlamaCpp, LlamaCppBackend, OtherModel, Upstream};
use llm_serve_adapters::host::{ErrorKind, ServingBackend as _};
use llm_serve_adapters::testing::backend::suite;
use serde_json::{Value, json};
use std::time::Duration;

const WITHIN: Duration = Duration::from_secs(120);
const PROMPT: &str = "Name three colors.";

fn at(seq: u64) -> Position {
    Position {
        fence: Fence::new(100),
        seq: Seq::new(seq),
    }
}

/// The version of this scale: v1 is the base, v2 the adapter.
fn place(server: &Llama, scale: f32, said: &str) -> LlamaCpp {
    let golden = Golden::new(PROMPT, said).max_tokens(8);
    let address = format!("http://127.0.0.1:{}", server.port());
    LlamaCpp::lora(Upstream::new(address, "v1").golden(golden), 0, scale)
        .file(model_file("v1").to_str().unwrap())
        .adapter_file(env("LLM_E2E_ADAPTER"))
}

fn backend(places: impl IntoIterator<Item = (&'static str, LlamaCpp)>) -> LlamaCppBackend {
    let builder = LlamaCppBackend::builder().deadline(WITHIN);
    let builder = builder.warm_up(["Say hello."]).warm_up_tokens(2);
    places
        .into_iter()
        .fold(builder, |all, (name, place)| {
            all.version(version(name), place)
        })
        .build()
        .unwrap()
}

/// What a user of that version is told. Without a version there is no word of adapters in the request.
async fn ask(server: &Llama, of: Option<&LlamaCpp>) -> String {
    let message = json!({"role": "user", "content": PROMPT});
    let mut body = json!({"model": "v1", "max_tokens": 8, "temperature": 0.0, "seed": 1, "messages": [message]});
    if let Some(of) = of {
        body["lora"] = of.lora_field();
    }
    let path = "/v1/chat/completions";
    let (status, reply) = http(server.port(), "POST", path, &body.to_string())
        .await
        .unwrap();
    assert_eq!(status, 200, "{reply}");
    let reply: Value = serde_json::from_str(&reply).unwrap();
    let text = &reply["choices"][0]["message"]["content"];
    text.as_str().unwrap().trim().to_owned()
}

#[tokio::test]
#[ignore = "needs llama-server and models: e2e/run llama"]
async fn an_adapter_is_a_version_beside_its_base() {
    let folder = tempfile::tempdir().unwrap();
    let server = Llama::adapted(folder.path()).await;
    let prepare = async |place: LlamaCpp| {
        let backend = backend([("v2", place)]);
        backend
            .prepare(&version("v2"), at(1))
            .await
            .map(|()| backend)
    };

    // Started with what should keep the adapter from everybody, the server gives it to everybody.
    let given = prepare(place(&server, 1.0, "")).await.unwrap_err();
    assert_eq!(given.kind(), ErrorKind::Permanent, "{given}");
    assert!(given.to_string().contains("with scale 1"), "{given}");
    let (status, _) = http(
        server.port(),
        "POST",
        "/lora-adapters",
        r#"[{"id": 0, "scale": 0.0}]"#,
    )
    .await
    .unwrap();
    assert_eq!(status, 200);

    // Nobody has asked for the adapter yet: these are the words of the base.
    let base_says = ask(&server, None).await;
    let (base, tuned) = (place(&server, 0.0, &base_says), place(&server, 1.0, ""));
    let tuned_says = ask(&server, Some(&tuned)).await;
    assert_ne!(tuned_says, base_says);
    let tuned = place(&server, 1.0, &tuned_says);

    // Each is known by its own words and by its file.
    let both = backend([("v1", base.clone()), ("v2", tuned.clone())]);
    both.prepare(&version("v1"), at(1)).await.unwrap();
    both.prepare(&version("v2"), at(2)).await.unwrap();
    let other = prepare(place(&server, 1.0, &base_says)).await.unwrap_err();
    let source = std::error::Error::source(&other).unwrap();
    assert!(source.downcast_ref::<OtherModel>().is_some(), "{other}");
    let other = prepare(tuned.clone().adapter_file("another.gguf")).await;
    assert!(other.unwrap_err().to_string().contains("\"another.gguf\""));

    // Users of both, one after the other, on prompts that the server remembers.
    for _ in 0..3 {
        assert_eq!(ask(&server, Some(&base)).await, base_says);
        assert_eq!(ask(&server, Some(&tuned)).await, tuned_says);
    }
    let unsaid = ask(&server, None).await;

    suite(
        &backend([("v2", tuned)]),
        &version("v2"),
        &version("bad"),
        WITHIN,
    )
    .await
    .unwrap();
    assert_eq!(both.in_flight(&version("v2")).await.unwrap(), None);
    both.retire(&version("v2"), at(3)).await.unwrap();
    assert_eq!(both.healthy(&version("v1")).await.unwrap(), Some(true));
    assert_eq!(ask(&server, Some(&base)).await, base_says);
    println!(
        "ok      LoRA: conforms; the base says {base_says:?}, the adapter {tuned_says:?}, a request that names no scale, after one of the adapter, {unsaid:?}"
    );
}
