//! Versions of one model on a real TorchServe: the default moves with promotion, and back again.

use crate::canary::{Ask, Users, plan, shown, version};
use crate::process::{Process, free_port, http, ready, until};
use llm_rollout::{Fence, Phase, Position, RolloutId, Seq};
use llm_serve_adapters::backend::{Archive, TorchServeBackend, TorchServeBackendBuilder};
use llm_serve_adapters::host::{ErrorKind, ServingBackend as _};
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Bootstrap, Endpoint, Return};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A model that knows its own version, and takes as long as it is told.
const HANDLER: &str = r#"
import json, time
version = None
def handle(data, context):
    global version
    if version is None:
        version = context.manifest["model"]["modelVersion"]
        if version == "3.0":
            raise RuntimeError("the weights are damaged")
    if data is None:
        return None
    replies = []
    for row in data:
        row = row.get("body") or row.get("data")
        prompt = (row if isinstance(row, dict) else json.loads(row))["prompt"]
        if prompt.startswith("wait "):
            time.sleep(float(prompt[5:]))
        replies.append({"text": f"{version} says {prompt}"})
    return replies
"#;

struct TorchServe {
    inference: u16,
    management: u16,
    process: Process,
    _folder: TempDir,
}

impl TorchServe {
    async fn start() -> Self {
        let said = |name: &str| {
            std::env::var(name)
                .unwrap_or_else(|_| panic!("{name} is not set: e2e/run torchserve sets it"))
        };
        let (python, site) = (
            said("LLM_E2E_TORCHSERVE_PYTHON"),
            said("LLM_E2E_TORCHSERVE_SITE"),
        );
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("handler.py"), HANDLER).unwrap();
        for number in 1..=3 {
            let export = format!("store/{number}");
            std::fs::create_dir_all(folder.path().join(&export)).unwrap();
            let version = format!("{number}.0");
            let archived = Command::new(Path::new(&python).join("torch-model-archiver"))
                .args([
                    "--model-name",
                    "chat",
                    "--version",
                    &version,
                    "--handler",
                    "handler.py",
                    "--export-path",
                    &export,
                ])
                .current_dir(folder.path())
                .output()
                .unwrap();
            assert!(archived.status.success(), "{archived:?}");
            std::fs::rename(
                folder.path().join(&export).join("chat.mar"),
                folder.path().join(format!("store/chat-v{number}.mar")),
            )
            .unwrap();
        }
        let (inference, management) = (free_port(), free_port());
        let config = format!(
            "inference_address=http://127.0.0.1:{inference}\nmanagement_address=http://127.0.0.1:{management}\n\
             metrics_address=http://127.0.0.1:{}\ngrpc_inference_address=127.0.0.1\ngrpc_management_address=127.0.0.1\n\
             grpc_inference_port={}\ngrpc_management_port={}\ndisable_token_authorization=true\nenable_model_api=true\n\
             enable_envvars_config=false\nnumber_of_netty_threads=2\njob_queue_size=20\ninstall_py_dep_per_model=false\n",
            free_port(),
            free_port(),
            free_port(),
        );
        std::fs::write(folder.path().join("ts.properties"), config).unwrap();
        // What the program `torchserve` starts, so that it is stopped itself.
        let args = [
            format!("PATH={python}:{}", said("PATH")),
            format!("LOG_LOCATION={}", folder.path().join("logs").display()),
            format!("METRICS_LOCATION={}", folder.path().join("logs").display()),
            "java".to_owned(),
            "-Xmx256m".to_owned(),
            format!("-Dmodel_server_home={site}"),
            format!("-Djava.io.tmpdir={}", folder.path().display()),
            "-cp".to_owned(),
            format!(".:{site}/ts/frontend/*"),
            "org.pytorch.serve.ModelServer".to_owned(),
            "--python".to_owned(),
            format!("{python}/python"),
            "-f".to_owned(),
            "ts.properties".to_owned(),
            "-s".to_owned(),
            folder.path().join("store").to_string_lossy().into_owned(),
            "-ncs".to_owned(),
            "--disable-token-auth".to_owned(),
            "--enable-model-api".to_owned(),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let process = Process::start_family(folder.path(), "env", &args);
        ready(inference, "/ping").await;
        Self {
            inference,
            management,
            process,
            _folder: folder,
        }
    }

    fn backend(&self) -> TorchServeBackendBuilder {
        let mut builder = TorchServeBackend::builder(
            format!("http://127.0.0.1:{}", self.inference),
            format!("http://127.0.0.1:{}", self.management),
        );
        for n in 1..=3 {
            let archive = Archive::new("chat", format!("{n}.0"), format!("chat-v{n}.mar"));
            let answer = format!("{n}.0 says 2 + 2 =");
            builder = builder.version(version(n), archive.golden("2 + 2 =", answer));
        }
        builder
    }

    async fn stop(self) {
        self.process.signal("TERM");
        self.process.ended().await;
    }
}

/// Status and text of an answer; a server that does not answer in time has none.
async fn predict(port: u16, version: &str, prompt: &str) -> (u16, String) {
    let body = json!({"prompt": prompt}).to_string();
    let path = format!("/predictions/chat{version}");
    let (status, reply) = http(port, "POST", &path, &body).await.unwrap_or_default();
    let reply: Value = serde_json::from_str(&reply).unwrap_or_default();
    (
        status,
        reply["text"].as_str().unwrap_or_default().to_owned(),
    )
}

fn at(seq: u64) -> Position {
    Position {
        fence: Fence::new(1),
        seq: Seq::new(seq),
    }
}

#[tokio::test]
#[ignore = "needs TorchServe: e2e/run torchserve"]
async fn versions_are_registered_scaled_and_handed_the_default() {
    let server = TorchServe::start().await;
    let port = server.inference;
    let backend = server.backend().build().unwrap();
    assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(false));
    let damaged = backend.prepare(&version(3), at(1)).await.unwrap_err();
    assert_eq!(damaged.kind(), ErrorKind::Permanent, "{damaged}");
    // Left behind, the damaged version would be the default of its model.
    let (status, _) = http(server.management, "GET", "/models/chat", "")
        .await
        .unwrap();
    assert_eq!(status, 404);
    for n in [1, 2] {
        backend.prepare(&version(n), at(2)).await.unwrap();
        assert_eq!(backend.healthy(&version(n)).await.unwrap(), Some(true));
    }
    assert_eq!(
        predict(port, "", "hi").await,
        (200, "1.0 says hi".to_owned())
    );
    assert_eq!(
        predict(port, "/2.0", "hi").await,
        (200, "2.0 says hi".to_owned())
    );

    // One request is executed, two wait: those are counted.
    assert_eq!(
        backend.in_flight(&version(2)).await.unwrap(),
        None,
        "nothing waits: unknown"
    );
    let running: Vec<_> = (0..3)
        .map(|_| tokio::spawn(async move { predict(port, "/2.0", "wait 0.5").await }))
        .collect();
    until("requests that wait", async || {
        backend
            .in_flight(&version(2))
            .await
            .unwrap()
            .filter(|&n| n == 2)
    })
    .await;
    for request in running {
        assert_eq!(request.await.unwrap().0, 200);
    }

    // Standing by, and back within a moment.
    backend.standby(&version(2), at(3)).await.unwrap();
    assert_eq!(predict(port, "/2.0", "hi").await.0, 503);
    assert_eq!(backend.healthy(&version(2)).await.unwrap(), Some(false));
    let begun = Instant::now();
    backend.prepare(&version(2), at(4)).await.unwrap();
    let back = begun.elapsed();
    assert_eq!(predict(port, "/2.0", "hi").await.0, 200);

    // The default cannot go before another takes its place.
    backend.set_default(&version(2)).await.unwrap();
    assert_eq!(predict(port, "", "hi").await.1, "2.0 says hi");
    let (status, _) = http(server.management, "DELETE", "/models/chat/2.0", "")
        .await
        .unwrap();
    assert_eq!(status, 403);
    backend.retire(&version(2), at(5)).await.unwrap();
    assert_eq!(
        predict(port, "", "hi").await,
        (200, "1.0 says hi".to_owned())
    );
    assert_eq!(predict(port, "/2.0", "hi").await.0, 404);
    backend.retire(&version(2), at(5)).await.unwrap();
    // What waits for a worker would never be answered: drain first.
    let running = tokio::spawn(async move { predict(port, "/1.0", "wait 2").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    backend.retire(&version(1), at(6)).await.unwrap();
    assert_ne!(running.await.unwrap().0, 200, "what runs is cut off");
    println!(
        "ok      torchserve: back from standby in {} ms",
        back.as_millis()
    );
    // And what every backend must do.
    let fresh = server.backend().build().unwrap();
    let within = Duration::from_secs(120);
    llm_serve_adapters::testing::backend::suite(&fresh, &version(1), &version(8), within)
        .await
        .unwrap();
    let server_version = std::env::var("LLM_E2E_TORCHSERVE_VERSION").unwrap();
    crate::verified("torchserve", "TorchServe", &server_version);
    server.stop().await;
}

#[tokio::test]
#[ignore = "needs TorchServe: e2e/run torchserve"]
async fn promotion_sets_the_default_and_a_return_sets_it_back() {
    let server = TorchServe::start().await;
    let port = server.inference;
    let backend = server.backend().in_flight(|_| Some(0)).build().unwrap();
    backend.prepare(&version(1), at(0)).await.unwrap();
    let chat = Endpoint::builder("chat", MemoryStore::new(), Bootstrap(version(1)))
        .backend(backend.clone())
        .rollback_window(1)
        .open()
        .await
        .unwrap();
    let status = chat.watch();
    let following = tokio::spawn(async move { backend.follow(status).await });
    let ask: Ask = Arc::new(move |version| {
        Box::pin(async move {
            let number = format!(
                "{}.0",
                version.version().to_string().split('.').next().unwrap()
            );
            predict(port, &format!("/{number}"), "hi").await == (200, format!("{number} says hi"))
        })
    });
    let users = Users::start(chat.data_plane(), &ask);
    let begun = Instant::now();
    let run = chat
        .submit(RolloutId::new("v2").unwrap(), version(2), plan())
        .await
        .unwrap();
    let end = run.finished().await.unwrap();
    assert_eq!(end.phase, Phase::Promoted, "{end:?}");
    until("the default to be version 2", async || {
        (predict(port, "", "hi").await.1 == "2.0 says hi").then_some(())
    })
    .await;
    let served = users.take();
    println!(
        "ok      torchserve, v2: {} after {:.1} s, and the default; {}",
        end.phase,
        begun.elapsed().as_secs_f64(),
        shown(&served)
    );
    assert!(
        served.values().all(|(_, failed)| *failed == 0),
        "{served:?}"
    );

    let begun = Instant::now();
    let back = chat
        .roll_back(Return::last(), "ana", "users want the old one")
        .await
        .unwrap();
    let end = back.finished().await.unwrap();
    assert_eq!(end.phase, Phase::Promoted, "{end:?}");
    until("the default to be version 1", async || {
        (predict(port, "", "hi").await.1 == "1.0 says hi").then_some(())
    })
    .await;
    let served = users.take();
    println!(
        "ok      torchserve, back to v1: {} after {:.1} s, and the default; {}",
        end.phase,
        begun.elapsed().as_secs_f64(),
        shown(&served)
    );
    assert!(
        served.values().all(|(_, failed)| *failed == 0),
        "{served:?}"
    );
    drop((users, run, back));
    drop(chat);
    // There is nothing to follow any more.
    tokio::time::timeout(Duration::from_secs(30), following)
        .await
        .unwrap()
        .unwrap();
    server.stop().await;
}
