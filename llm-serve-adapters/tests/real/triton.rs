//! Versions of one model in a real Triton: loaded beside each other, tried on some users, unloaded when their requests are done.

use crate::canary::{Ask, Users, plan, shown, version};
use crate::process::{Process, free_port, http, ready, until};
use llm_rollout::{Fence, Phase, Position, RolloutId, Seq};
use llm_serve_adapters::backend::{KServeBackend, KServeBackendBuilder, KServeModel};
use llm_serve_adapters::host::{ErrorKind, ServingBackend as _};
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Bootstrap, Endpoint};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A model that knows its own number, and takes as long as it is told.
const MODEL: &str = r#"
import numpy, time
import triton_python_backend_utils as triton
class TritonPythonModel:
    def initialize(self, args):
        self.version = args["model_version"]
        if self.version == "3":
            raise RuntimeError("the weights are damaged")
    def execute(self, requests):
        replies = []
        for request in requests:
            prompt = triton.get_input_tensor_by_name(request, "text_input").as_numpy().reshape(-1)[0].decode()
            if prompt.startswith("wait "):
                time.sleep(float(prompt[5:]))
            if self.version == "4" and prompt == "as a user":
                raise RuntimeError("out of memory")
            text = numpy.array([f"{self.version} says {prompt}".encode()], dtype=object)
            replies.append(triton.InferenceResponse([triton.Tensor("text_output", text)]))
        return replies
"#;

const CONFIG: &str = r#"
name: "chat"
backend: "python"
max_batch_size: 0
input [{ name: "text_input" data_type: TYPE_STRING dims: [1] }]
output [{ name: "text_output" data_type: TYPE_STRING dims: [1] }]
version_policy: { specific: { versions: [1] } }
"#;

struct Triton {
    port: u16,
    metrics: u16,
    process: Process,
    _folder: TempDir,
}

impl Triton {
    async fn start() -> Self {
        let said = |name: &str| {
            std::env::var(name)
                .unwrap_or_else(|_| panic!("{name} is not set: e2e/run triton sets it"))
        };
        let (triton, site) = (said("LLM_E2E_TRITON"), said("LLM_E2E_TRITON_SITE"));
        let folder = tempfile::tempdir().unwrap();
        for number in 1..=4 {
            let version = folder.path().join(format!("models/chat/{number}"));
            std::fs::create_dir_all(&version).unwrap();
            std::fs::write(version.join("model.py"), MODEL).unwrap();
        }
        std::fs::write(folder.path().join("models/chat/config.pbtxt"), CONFIG).unwrap();
        let (port, metrics) = (free_port(), free_port());
        let python = format!("PATH={}:{}", said("LLM_E2E_TRITON_PYTHON"), said("PATH"));
        let args = [
            python,
            format!("PYTHONPATH={site}"),
            format!("LD_LIBRARY_PATH={site}/nvidia_pytriton.libs"),
            Path::new(&triton)
                .join("bin/tritonserver")
                .to_string_lossy()
                .into_owned(),
            "--model-repository=models".to_owned(),
            format!("--backend-directory={triton}/backends"),
            "--model-control-mode=explicit".to_owned(),
            "--http-address=127.0.0.1".to_owned(),
            format!("--http-port={port}"),
            "--allow-grpc=false".to_owned(),
            "--metrics-address=127.0.0.1".to_owned(),
            format!("--metrics-port={metrics}"),
            "--allow-gpu-metrics=false".to_owned(),
            "--exit-timeout-secs=5".to_owned(),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        // The program becomes Triton once its environment is set.
        let process = Process::start_family(folder.path(), "env", &args);
        ready(port, "/v2/health/live").await;
        Self {
            port,
            metrics,
            process,
            _folder: folder,
        }
    }

    fn backend(&self) -> KServeBackendBuilder {
        let golden = |n: u32| {
            let answer = format!("{n} says 2 + 2 =");
            KServeModel::new("chat")
                .version(n)
                .golden("2 + 2 =", answer)
        };
        let mut builder = KServeBackend::builder(format!("http://127.0.0.1:{}", self.port))
            .metrics(format!("http://127.0.0.1:{}/metrics", self.metrics));
        for n in 1..=4 {
            builder = builder.version(version(n), golden(n.into()));
        }
        builder
    }

    async fn stop(self) {
        self.process.signal("TERM");
        self.process.ended().await;
    }

    /// How many processes Triton has started for models: none is started twice while its version goes on.
    async fn states(&self) -> Vec<(String, String)> {
        let (_, index) = http(self.port, "POST", "/v2/repository/index", "{}")
            .await
            .unwrap();
        let index: Vec<Value> = serde_json::from_str(&index).unwrap();
        let text =
            |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
        index
            .iter()
            .map(|entry| (text(entry, "version"), text(entry, "state")))
            .collect()
    }
}

async fn infer(port: u16, number: &str, prompt: &str) -> (u16, String) {
    let body = json!({"inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1], "data": [prompt]}]}).to_string();
    let path = format!("/v2/models/chat/versions/{number}/infer");
    let (status, reply) = http(port, "POST", &path, &body).await.unwrap_or_default();
    let reply: Value = serde_json::from_str(&reply).unwrap_or_default();
    (
        status,
        reply
            .pointer("/outputs/0/data/0")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned(),
    )
}

fn at(seq: u64) -> Position {
    Position {
        fence: Fence::new(1),
        seq: Seq::new(seq),
    }
}

#[tokio::test]
#[ignore = "needs Triton: e2e/run triton"]
async fn versions_are_loaded_beside_each_other_and_unloaded_when_idle() {
    let triton = Triton::start().await;
    let backend = Arc::new(triton.backend().build().unwrap());
    assert_eq!(backend.healthy(&version(1)).await.unwrap(), Some(false));
    backend.prepare(&version(1), at(1)).await.unwrap();
    let begun = Instant::now();
    // Version 1 goes on answering while 2 is loaded, and while 3 cannot be.
    let port = triton.port;
    let user = tokio::spawn(async move {
        let mut answers = 0;
        loop {
            let (status, text) = infer(port, "1", "hello").await;
            assert_eq!((status, text.as_str()), (200, "1 says hello"));
            answers += 1;
            if begun.elapsed() > Duration::from_secs(600) {
                return answers;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    backend.prepare(&version(2), at(2)).await.unwrap();
    let damaged = backend.prepare(&version(3), at(3)).await.unwrap_err();
    assert_eq!(damaged.kind(), ErrorKind::Permanent);
    assert!(
        damaged.to_string().contains("the weights are damaged"),
        "{damaged}"
    );
    for n in [1, 2] {
        assert_eq!(backend.healthy(&version(n)).await.unwrap(), Some(true));
        assert!(backend.is_ready(&version(n)));
    }
    assert_eq!(backend.healthy(&version(3)).await.unwrap(), Some(false));
    assert!(
        !user.is_finished(),
        "version 1 failed meanwhile: {:?}",
        user.await
    );
    user.abort();

    // Requests on version 2: one executes, two wait, and all of them are answered although it is retired.
    assert_eq!(
        backend.in_flight(&version(2)).await.unwrap(),
        None,
        "nothing waits: unknown"
    );
    let running: Vec<_> = (0..3)
        .map(|_| tokio::spawn(async move { infer(port, "2", "wait 0.7").await }))
        .collect();
    until("a request that waits", async || {
        backend
            .in_flight(&version(2))
            .await
            .unwrap()
            .filter(|&n| n == 2)
    })
    .await;
    let hasty = triton
        .backend()
        .deadline(Duration::from_millis(300))
        .build()
        .unwrap();
    let begun = Instant::now();
    let unfinished = hasty.retire(&version(2), at(4)).await.unwrap_err();
    assert_eq!(unfinished.kind(), ErrorKind::Transient, "{unfinished}");
    let (status, _) = infer(port, "2", "too late").await;
    assert!(matches!(status, 404 | 503), "{status}");
    backend.retire(&version(2), at(5)).await.unwrap();
    let drained = begun.elapsed();
    for request in running {
        assert_eq!(request.await.unwrap(), (200, "2 says wait 0.7".to_owned()));
    }
    let states = triton.states().await;
    assert!(
        states.contains(&("1".to_owned(), "READY".to_owned())),
        "{states:?}"
    );
    assert!(
        states.contains(&("2".to_owned(), "UNAVAILABLE".to_owned())),
        "{states:?}"
    );
    backend.retire(&version(1), at(6)).await.unwrap();
    backend.retire(&version(1), at(6)).await.unwrap();
    assert_eq!(infer(port, "1", "gone").await.1, "");
    let unknown = KServeModel::new("poem").version(1);
    backend.add(version(9), unknown).unwrap();
    let unknown = backend.prepare(&version(9), at(7)).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Permanent, "{unknown}");
    assert!(unknown.to_string().contains("answers 500"), "{unknown}");
    // And what every backend must do.
    let fresh = triton.backend().build().unwrap();
    let within = Duration::from_secs(120);
    llm_serve_adapters::testing::backend::suite(&fresh, &version(1), &version(8), within)
        .await
        .unwrap();
    let (_, server) = http(port, "GET", "/v2", "").await.unwrap();
    let server: Value = serde_json::from_str(&server).unwrap();
    println!(
        "ok      triton loads and unloads: 3 requests of a retired version finished, {} ms after it took no more",
        drained.as_millis()
    );
    crate::verified("kserve", "Triton", server["version"].as_str().unwrap());
    triton.stop().await;
}

#[tokio::test]
#[ignore = "needs Triton: e2e/run triton"]
async fn a_canary_by_version_is_promoted_and_a_failing_one_is_rolled_back() {
    let triton = Triton::start().await;
    let port = triton.port;
    let backend = triton.backend().in_flight(|_| Some(0)).build().unwrap();
    backend.prepare(&version(1), at(0)).await.unwrap();
    let chat = Endpoint::builder("chat", MemoryStore::new(), Bootstrap(version(1)))
        .backend(backend)
        .open()
        .await
        .unwrap();
    let ask: Ask = Arc::new(move |version| {
        Box::pin(async move {
            let number = version.version().to_string();
            let number = number.split('.').next().unwrap();
            infer(port, number, "as a user").await == (200, format!("{number} says as a user"))
        })
    });
    let users = Users::start(chat.data_plane(), &ask);
    for (candidate, ends) in [
        (2, Phase::Promoted),
        (3, Phase::Blocked),
        (4, Phase::RolledBack),
    ] {
        let begun = Instant::now();
        let id = RolloutId::new(format!("v{candidate}")).unwrap();
        let run = chat.submit(id, version(candidate), plan()).await.unwrap();
        let end = run.finished().await.unwrap();
        assert_eq!(end.phase, ends, "{end:?}");
        let served = users.take();
        println!(
            "ok      triton, v{candidate}: {} after {:.1} s; {}",
            end.phase,
            begun.elapsed().as_secs_f64(),
            shown(&served)
        );
        for (id, (_, failed)) in served {
            assert!(
                failed == 0 || id == version(4),
                "{id} failed {failed} times"
            );
        }
        // Only what serves stays loaded.
        until(
            "the versions that do not serve to be unloaded",
            async || {
                let states = triton.states().await;
                let ready: Vec<_> = states
                    .iter()
                    .filter(|(_, state)| state == "READY")
                    .collect();
                (ready.len() == 1 && ready[0].0 == "2").then_some(())
            },
        )
        .await;
    }
    drop(users);
    drop(chat);
    triton.stop().await;
}
