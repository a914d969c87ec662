//! A real vLLM: asleep and awake, paused and resumed, known by its weights, and not healthy while it says that it is; and a LoRA
//! adapter beside its base.

use crate::process::{Process, free_port, http, until};
use crate::stack::env;
use llm_rollout::{Fence, Position, Seq};
use llm_serve_adapters::backend::{EngineBackend, EngineVersion, Golden};
use llm_serve_adapters::host::{ErrorKind, ServingBackend as _};
use llm_serve_adapters::testing::backend::suite;
use llm_version_core::VersionId;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// On a busy CPU a short answer takes some time.
const WITHIN: Duration = Duration::from_secs(300);

fn version(n: u8) -> VersionId {
    crate::canary::version(n)
}

fn at(seq: u64) -> Position {
    Position {
        fence: Fence::new(1),
        seq: Seq::new(seq),
    }
}

/// A vLLM of its own, whose base model is called `chat`. It takes a minute or more to start, on a busy CPU several.
async fn started(folder: &Path, more: &[&str]) -> (Process, u16) {
    let port = free_port();
    let (model, number) = (env("LLM_E2E_VLLM_MODEL"), port.to_string());
    let mut args = vec![
        "VLLM_SERVER_DEV_MODE=1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
        "VLLM_NO_USAGE_STATS=1",
        "DO_NOT_TRACK=1",
        "HF_HUB_OFFLINE=1",
    ];
    let on_cpu = env("LLM_E2E_VLLM_CPU") == "yes";
    if on_cpu {
        args.extend([
            "VLLM_CPU_KVCACHE_SPACE=1",
            "VLLM_CPU_OMP_THREADS_BIND=nobind",
            "OMP_NUM_THREADS=2",
        ]);
    }
    args.extend([
        "vllm",
        "serve",
        &model,
        "--host",
        "127.0.0.1",
        "--port",
        &number,
        "--served-model-name",
        "chat",
    ]);
    args.extend([
        "--max-model-len",
        "1024",
        "--max-num-seqs",
        "4",
        "--enforce-eager",
        "--dtype",
        "bfloat16",
        "--shutdown-timeout",
        "60",
    ]);
    if !on_cpu {
        args.push("--enable-sleep-mode");
    }
    args.extend(more);
    let process = Process::start_family(folder, "env", &args);
    let begun = Instant::now();
    while http(port, "GET", "/v1/models", "")
        .await
        .is_none_or(|(status, _)| status != 200)
    {
        assert!(
            begun.elapsed() < Duration::from_secs(900),
            "vLLM does not start"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    (process, port)
}

#[tokio::test]
#[ignore = "needs vLLM: e2e/run vllm"]
async fn a_server_rests_wakes_and_is_known_by_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let (mut process, port) = started(folder.path(), &[]).await;
    let up = begun.elapsed();

    let server = || EngineVersion::server(format!("http://127.0.0.1:{port}"), "chat");
    let of = |n: u8, place| {
        EngineBackend::vllm()
            .version(version(n), place)
            .deadline(WITHIN)
            .build()
            .unwrap()
    };
    let backend = of(1, server());
    let begun = Instant::now();
    backend.prepare(&version(1), at(1)).await.unwrap();
    let ready = begun.elapsed();
    // Of another rollout, that begins anew.
    suite(&of(1, server()), &version(1), &version(9), WITHIN)
        .await
        .unwrap();
    backend.prepare(&version(1), at(2)).await.unwrap();
    assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(true));
    assert_eq!(backend.in_flight(&version(1)).await.unwrap(), Some(0));

    // The weights that run, by name and by checksum.
    let (status, info) = http(port, "GET", "/weight_info", "").await.unwrap();
    assert_eq!(status, 200, "{info}");
    let name = serde_json::from_str::<Value>(&info).unwrap()["weight_version"]
        .as_str()
        .unwrap()
        .to_owned();
    of(1, server().weights(&name))
        .prepare(&version(1), at(1))
        .await
        .unwrap();
    let other = of(2, server().weights("another"))
        .prepare(&version(2), at(1))
        .await
        .unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Permanent, "{other}");
    let (status, sums) = http(port, "POST", "/weight_checker", r#"{"action": "checksum"}"#)
        .await
        .unwrap();
    assert_eq!(status, 200, "{sums}");
    let sums: Value = serde_json::from_str(&sums).unwrap();
    let sums: Vec<(String, String)> = sums["checksums"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned()))
        .collect();
    of(1, server().checksums(sums.clone()))
        .prepare(&version(1), at(1))
        .await
        .unwrap();
    let moved = sums.iter().map(|(k, _)| (k.clone(), "0".to_owned()));
    let other = of(2, server().checksums(moved))
        .prepare(&version(2), at(1))
        .await
        .unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Permanent, "{other}");

    // A request that runs is counted.
    let long = tokio::spawn(async move {
        let body = json!({"model": "chat", "max_tokens": 60, "ignore_eos": true, "messages": [{"role": "user", "content": "Tell me a story."}]});
        tokio::time::timeout(
            Duration::from_secs(120),
            http(port, "POST", "/v1/chat/completions", &body.to_string()),
        )
        .await
    });
    until("a request that runs", async || {
        backend
            .in_flight(&version(1))
            .await
            .unwrap()
            .filter(|&n| n > 0)
    })
    .await;
    let _answered_or_given_up = long.await.unwrap();

    // Retired it takes no more; prepared again it goes on.
    backend.retire(&version(1), at(3)).await.unwrap();
    let (_, paused) = http(port, "GET", "/is_paused", "").await.unwrap();
    assert!(paused.contains("true"), "{paused}");
    backend.prepare(&version(1), at(4)).await.unwrap();

    // Told to end it finishes what runs and says 200 under /health, while it answers nobody else.
    let slow = tokio::spawn(async move {
        let body = json!({"model": "chat", "max_tokens": 400, "ignore_eos": true, "messages": [{"role": "user", "content": "Tell me a long story."}]});
        http(port, "POST", "/v1/chat/completions", &body.to_string()).await
    });
    until("a request that runs", async || {
        backend
            .in_flight(&version(1))
            .await
            .unwrap()
            .filter(|&n| n > 0)
    })
    .await;
    process.signal("TERM");
    let told = until("an end of its health", async || {
        let health = http(port, "GET", "/health", "")
            .await
            .map(|(status, _)| status);
        match backend.healthy(&version(1)).await {
            Ok(Some(true)) => None,
            // It is gone, or it answers with an error.
            said => Some((health, said.ok().flatten())),
        }
    })
    .await;
    slow.abort();
    println!(
        "ok      vllm: started in {:.0} s, ready {:.1} s later, conforms; {} checksums of its weights; ending, /health says {:?} and a generation {:?}",
        up.as_secs_f64(),
        ready.as_secs_f64(),
        sums.len(),
        told.0,
        told.1
    );
    let (name, version) = ("vllm", std::env::var("LLM_E2E_VLLM_VERSION").unwrap());
    crate::verified(name, "vLLM", &version);
    // What it waits for was given up.
    until("the end of vLLM", async || {
        process.has_ended().then_some(())
    })
    .await;
}

const PROMPT: &str = "Name three colors.";

/// What this model answers, and with which status.
async fn ask(port: u16, model: &str) -> (u16, String) {
    let message = json!({"role": "user", "content": PROMPT});
    let body = json!({"model": model, "max_tokens": 8, "temperature": 0.0, "messages": [message]});
    let (status, reply) = http(port, "POST", "/v1/chat/completions", &body.to_string())
        .await
        .unwrap();
    let reply: Value = serde_json::from_str(&reply).unwrap();
    let text = reply["choices"][0]["message"]["content"].as_str();
    (status, text.unwrap_or_default().trim().to_owned())
}

/// The name of what the server has from this folder.
async fn name_of(port: u16, root: &str) -> Option<String> {
    let (_, models) = http(port, "GET", "/v1/models", "").await.unwrap();
    let models: Value = serde_json::from_str(&models).unwrap();
    let models = models["data"].as_array().unwrap();
    let mine = models.iter().find(|model| model["root"] == json!(root))?;
    mine["id"].as_str().map(str::to_owned)
}

#[tokio::test]
#[ignore = "needs vLLM: e2e/run vllm"]
async fn an_adapter_is_a_version_beside_its_base() {
    let folder = tempfile::tempdir().unwrap();
    let lora = ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "2"];
    let (_process, port) = started(folder.path(), &lora).await;
    let (address, adapter) = (
        format!("http://127.0.0.1:{port}"),
        env("LLM_E2E_VLLM_ADAPTER"),
    );
    let tuned = || EngineVersion::lora(&address, &adapter);
    let of = |places: Vec<(u8, EngineVersion)>| {
        let builder = EngineBackend::vllm().deadline(WITHIN);
        places
            .into_iter()
            .fold(builder, |all, (n, place)| all.version(version(n), place))
            .build()
            .unwrap()
    };
    let both = of(vec![
        (1, EngineVersion::server(&address, "chat")),
        (2, tuned()),
    ]);
    both.prepare(&version(1), at(1)).await.unwrap();
    let (_, base_says) = ask(port, "chat").await;

    // Loaded beside the base under a name that no other version has; the base goes on as it was.
    assert_eq!(name_of(port, &adapter).await, None);
    let begun = Instant::now();
    both.prepare(&version(2), at(2)).await.unwrap();
    let ready = begun.elapsed();
    let name = name_of(port, &adapter).await.unwrap();
    let digest = version(2).digest().to_string();
    let hash = digest.rsplit(':').next().unwrap();
    assert!(name.ends_with(&hash[..16]), "{name}");
    let (_, tuned_says) = ask(port, &name).await;
    assert_ne!(tuned_says, base_says);
    assert_eq!(ask(port, "chat").await, (200, base_says.clone()));

    // Known by what it says.
    let golden = |said: &str| tuned().golden(Golden::new(PROMPT, said).max_tokens(8));
    let right = of(vec![(2, golden(&tuned_says))]);
    right.prepare(&version(2), at(1)).await.unwrap();
    let other = of(vec![(2, golden(&base_says))]);
    let other = other.prepare(&version(2), at(1)).await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Permanent, "{other}");
    let empty = EngineVersion::lora(&address, folder.path().to_str().unwrap());
    let missing = of(vec![(3, empty)]).prepare(&version(3), at(1)).await;
    let missing = missing.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Permanent, "{missing}");

    // Retired it is gone, and the base is not.
    both.retire(&version(2), at(3)).await.unwrap();
    assert_eq!(ask(port, &name).await.0, 404);
    assert_eq!(ask(port, "chat").await, (200, base_says.clone()));
    suite(&of(vec![(2, tuned())]), &version(2), &version(9), WITHIN)
        .await
        .unwrap();
    println!(
        "ok      vllm LoRA: conforms, ready in {:.1} s; the base says {base_says:?}, {name} {tuned_says:?}; without an adapter: {missing}",
        ready.as_secs_f64()
    );
}
