//! The gateway as it is started: real HTTP on loopback, two model servers, a candidate that gets half, and the switch back.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use axum::Router;
use axum::response::IntoResponse as _;
use axum::routing::post;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

/// A model server that says who it is and what it was asked, whole or as a stream.
async fn model_server(name: &'static str) -> String {
    let answer = move |axum::Json(asked): axum::Json<Value>| async move {
        let content = format!("{name} was asked for {}", asked["model"].as_str().unwrap());
        if asked["stream"] == true {
            let piece = json!({"choices": [{"delta": {"content": content}}]});
            let stream = format!("data: {piece}\n\ndata: [DONE]\n\n");
            return ([("content-type", "text/event-stream")], stream).into_response();
        }
        axum::Json(json!({"choices": [{"message": {"content": content}}], "usage": {"completion_tokens": 5}})).into_response()
    };
    let app = Router::new().route("/v1/chat/completions", post(answer));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}")
}

struct Gateway {
    _process: Child,
    clients: String,
    admin: String,
    client: Client<hyper_util::client::legacy::connect::HttpConnector, Full<bytes::Bytes>>,
}

impl Gateway {
    async fn start(one: &str, two: &str, store: &std::path::Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_gateway"))
            .args([
                "--listen",
                "127.0.0.1:0",
                "--admin",
                "127.0.0.1:0",
                "--store",
            ])
            .arg(store)
            .args([
                "--version",
                "1.0.0",
                one,
                "small",
                "--version",
                "1.1.0",
                two,
                "large",
            ])
            .env("GATEWAY_TOKEN", "secret")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut address = async |name: &str| {
            let line = lines.next_line().await.unwrap().unwrap();
            line.strip_prefix(name).unwrap().to_owned()
        };
        let (clients, admin) = (address("clients: ").await, address("admin: ").await);
        Self {
            _process: process,
            clients,
            admin,
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    async fn post(
        &self,
        url: String,
        headers: &[(&str, &str)],
        body: String,
    ) -> (u16, String, String) {
        let mut request = http::Request::post(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body)).unwrap();
        read(self.client.request(request).await.unwrap()).await
    }

    async fn ask(&self, session: &str, stream: bool) -> (u16, String, String) {
        let body = json!({"model": "chat", "stream": stream, "messages": [{"role": "user", "content": "Hi"}]});
        let url = format!("{}/v1/chat/completions", self.clients);
        let headers = [
            ("x-session-id", session),
            ("content-type", "application/json"),
        ];
        self.post(url, &headers, body.to_string()).await
    }

    async fn admin(&self, path: &str, token: &str, body: &str) -> u16 {
        let token = format!("Bearer {token}");
        let url = format!("{}{path}", self.admin);
        let headers = [("authorization", token.as_str())];
        let (status, _, text) = self.post(url, &headers, body.to_owned()).await;
        println!("{path}: {status} {text}");
        status
    }

    async fn read(&self, path: &str) -> String {
        let uri = format!("{}{path}", self.admin).parse().unwrap();
        read(self.client.get(uri).await.unwrap()).await.2
    }

    /// Which versions answer these sessions, and whether the header says so.
    async fn answered_by(&self, sessions: usize) -> [usize; 2] {
        let mut counts = [0; 2];
        for n in 0..sessions {
            let (status, version, text) = self.ask(&format!("session-{n}"), n % 2 == 0).await;
            assert_eq!(status, 200, "{text}");
            let first = text.contains("one was asked for small");
            assert!(first || text.contains("two was asked for large"), "{text}");
            assert!(version.starts_with(if first {
                "chat/v1.0.0-"
            } else {
                "chat/v1.1.0-"
            }));
            assert!(n % 2 == 1 || text.contains("[DONE]"));
            counts[usize::from(!first)] += 1;
        }
        counts
    }
}

async fn read<B>(response: http::Response<B>) -> (u16, String, String)
where
    B: http_body::Body<Data = bytes::Bytes>,
    B::Error: std::fmt::Debug,
{
    let version = response.headers().get("x-llm-version");
    let version = version
        .map_or("", |value| value.to_str().unwrap())
        .to_owned();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, version, String::from_utf8(body.to_vec()).unwrap())
}

const PLAN: &str = r#"
alpha = 0.05
[metrics]
faults = { fault = {} }
[[gates]]
metric = "faults"
weight = 1.0
[[stages]]
serve = 50.0
dwell = "4h"
min_samples = 500
[[stages]]
serve = 100.0
dwell = "4h"
min_samples = 500
"#;

#[tokio::test]
async fn a_candidate_gets_its_share_and_the_switch_takes_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (model_server("one").await, model_server("two").await);
    let gateway = Gateway::start(&one, &two, &folder.path().join("gateway.db")).await;

    assert_eq!(gateway.answered_by(20).await, [20, 0]);
    assert_eq!(
        gateway.admin("/submit/chat-v2/1.1.0", "wrong", PLAN).await,
        401
    );
    assert_eq!(
        gateway.admin("/submit/chat-v2/9.9.9", "secret", PLAN).await,
        409
    );
    assert_eq!(
        gateway.admin("/submit/chat-v2/1.1.0", "secret", PLAN).await,
        200
    );
    for _ in 0..300 {
        let status: Value = serde_json::from_str(&gateway.read("/status").await).unwrap();
        if status["share"] == 50.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let counts = gateway.answered_by(100).await;
    // Expected 50 each, standard deviation 5; the keys are always the same.
    assert!(counts[1] > 25 && counts[0] > 25, "{counts:?}");
    let metrics = gateway.read("/metrics").await;
    assert!(metrics.contains("role=\"candidate\"") && metrics.contains("llm_output_tokens_total"));
    assert!(!metrics.contains("session-"));

    assert_eq!(gateway.admin("/force-baseline", "secret", "").await, 200);
    assert_eq!(gateway.answered_by(50).await, [50, 0]);
}

#[tokio::test]
async fn what_the_candidate_fails_the_baseline_answers() {
    let folder = tempfile::tempdir().unwrap();
    let one = model_server("one").await;
    // Nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let two = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let gateway = Gateway::start(&one, &two, &folder.path().join("gateway.db")).await;
    assert_eq!(
        gateway.admin("/submit/chat-v2/1.1.0", "secret", PLAN).await,
        200
    );
    for n in 0..60 {
        let (status, version, text) = gateway.ask(&format!("session-{n}"), n % 2 == 0).await;
        assert_eq!(
            (status, version.starts_with("chat/v1.0.0-")),
            (200, true),
            "{text}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let metrics = gateway.read("/metrics").await;
    let failed = metrics.lines().find(|line| {
        line.contains("role=\"candidate\"")
            && line.contains("outcome=\"UpstreamError\"")
            && !line.ends_with(" 0")
    });
    assert!(failed.is_some(), "{metrics}");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let one = model_server("one").await;
    let gateway = Gateway::start(&one, &one, &folder.path().join("gateway.db")).await;
    let url = format!("{}/v1/chat/completions", gateway.clients);
    for body in ["", "[]", "{\"messages\": 7}", "{"] {
        let (status, _, text) = gateway.post(url.clone(), &[], body.to_owned()).await;
        assert_eq!(status, 400, "{body}: {text}");
    }
    let large = "x".repeat(5 << 20);
    assert_eq!(gateway.post(url, &[], large).await.0, 413);
}
