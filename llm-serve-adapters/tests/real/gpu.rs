//! The quickstart's bundles on a GPU (or whatever device the lane names): what a token costs, a promotion, a rollback.

use crate::canary::{Ask, Users, plan, shown, version};
use crate::process::{Process, free_port, http, ready};
use crate::stack::{env, send};
use http_body_util::BodyExt as _;
use llm_rollout::{Phase, RolloutId};
use llm_serve_adapters::backend::{OpenAiBackend, Upstream};
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Bootstrap, Endpoint};
use llm_version_core::VersionId;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SHORT: &str = "Good morning. Could you send four lamps to Oslo this week?";
/// Long enough to push the system prompt out of a context that is too small.
const LONG: &str = "Good morning. We hope that all of you are well, and that the new hall is finished by now. We were glad to see \
    so many of you at the fair in spring, and we still talk about the dinner by the river. Could you send four lamps to Oslo this week? \
    Thank you very much, and kind regards to everybody in the office.";

/// A bundle on a server of its own, under the name of its version.
struct Served {
    port: u16,
    _process: Process,
    _folder: TempDir,
}

impl Served {
    async fn start(bundle: &Path, name: &str) -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let (server, bundle) = (env("LLM_E2E_GPU_SERVER"), bundle.to_string_lossy());
        let (number, device) = (port.to_string(), env("LLM_E2E_GPU_DEVICE"));
        let args = [
            &server, &*bundle, "--port", &number, "--name", name, "--device", &device,
        ];
        let process = Process::start(folder.path(), &env("LLM_E2E_PYTHON"), &args);
        ready(port, "/health").await;
        Self {
            port,
            _process: process,
            _folder: folder,
        }
    }
}

/// The folder of the bundle whose name begins so.
fn bundle(version: &str) -> PathBuf {
    let folders = std::fs::read_dir(env("LLM_E2E_BUNDLES")).unwrap();
    let mut paths = folders.map(|entry| entry.unwrap().path());
    let found = paths.find(|path| {
        path.file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with(version)
    });
    found.unwrap_or_else(|| panic!("the quickstart has built no {version}"))
}

fn asked(name: &str, letter: &str, stream: bool) -> Value {
    json!({"model": name, "messages": [{"role": "user", "content": letter}], "temperature": 0, "stream": stream})
}

/// Whether the desk understood the letter.
fn understood(reply: &str) -> bool {
    let reply: Value = serde_json::from_str(reply).unwrap_or_default();
    let text = reply
        .pointer("/choices/0/message/content")
        .and_then(Value::as_str)
        .unwrap_or_default();
    serde_json::from_str::<Value>(text.trim()).is_ok_and(|order| order["city"] == "Oslo")
}

/// Median time to the first token and per token after it, of so many streamed replies.
async fn times(port: u16, name: &str, replies: usize) -> (Duration, Duration) {
    let (mut first, mut each) = (Vec::new(), Vec::new());
    for _ in 0..replies {
        let begun = Instant::now();
        let reply = send(port, "", &asked(name, SHORT, true)).await.unwrap();
        assert_eq!(reply.status(), 200);
        let mut body = reply.into_body();
        let mut arrived = Vec::new();
        while let Some(frame) = tokio::time::timeout(Duration::from_secs(60), body.frame())
            .await
            .unwrap()
        {
            let data = frame.unwrap().into_data().unwrap();
            // One event each, in one frame or several.
            for _ in String::from_utf8_lossy(&data).matches("\"content\"") {
                arrived.push(begun.elapsed());
            }
        }
        assert!(arrived.len() > 2, "{arrived:?}");
        first.push(arrived[0]);
        each.push(
            arrived[arrived.len() - 1].saturating_sub(arrived[0])
                / u32::try_from(arrived.len() - 1).unwrap(),
        );
    }
    first.sort_unstable();
    each.sort_unstable();
    (first[replies / 2], each[replies / 2])
}

#[tokio::test]
#[ignore = "needs an NVIDIA GPU: e2e/run gpu"]
async fn a_better_version_is_promoted_and_a_narrow_one_rolled_back() {
    let names = [(1, "v1.0.0"), (2, "v1.1.0"), (3, "v2.0.0")];
    let mut servers = BTreeMap::new();
    let mut backend = OpenAiBackend::builder()
        .warm_up([SHORT])
        .in_flight(|_| Some(0));
    for (n, name) in names {
        let server = Served::start(&bundle(name), name).await;
        backend = backend.upstream(
            version(n),
            Upstream::new(format!("http://127.0.0.1:{}", server.port), name),
        );
        let (first, each) = times(server.port, name, 9).await;
        println!(
            "ok      {name} on {}: {:.2} ms to the first token, {:.2} ms for each after it (medians of 9 replies)",
            env("LLM_E2E_GPU_DEVICE"),
            first.as_secs_f64() * 1e3,
            each.as_secs_f64() * 1e3
        );
        servers.insert(version(n), (server, name));
    }
    let places: BTreeMap<VersionId, (u16, &str)> = servers
        .iter()
        .map(|(id, (server, name))| (id.clone(), (server.port, *name)))
        .collect();
    let chat = Endpoint::builder("chat", MemoryStore::new(), Bootstrap(version(1)))
        .backend(backend.build().unwrap())
        .open()
        .await
        .unwrap();
    // Every letter is long: the narrow version passes the short question of its warm-up, and loses what comes first.
    let ask: Ask = Arc::new(move |version| {
        let (port, name) = places[&version];
        Box::pin(async move {
            let body = asked(name, LONG, false).to_string();
            let reply = http(port, "POST", "/v1/chat/completions", &body).await;
            reply.is_some_and(|(status, reply)| status == 200 && understood(&reply))
        })
    });
    let users = Users::start(chat.data_plane(), &ask);
    for (candidate, what, ends) in [
        (2, "better", Phase::Promoted),
        (3, "narrow", Phase::RolledBack),
    ] {
        let begun = Instant::now();
        let run = chat
            .submit(RolloutId::new(what).unwrap(), version(candidate), plan())
            .await
            .unwrap();
        let end = run.finished().await.unwrap();
        let served = users.take();
        println!(
            "ok      {what}: {} after {:.1} s; {}",
            end.phase,
            begun.elapsed().as_secs_f64(),
            shown(&served)
        );
        assert_eq!(end.phase, ends, "{end:?}");
    }
}
