//! The gateway as it is started: real HTTP on loopback, two model servers, a candidate that gets half, and the switch back.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test"
)]

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

/// A model server that knows how to say hello, and breaks off whatever else it is asked, after a piece without a word.
async fn broken_server() -> String {
    let answer = |axum::Json(asked): axum::Json<Value>| async move {
        if asked["messages"][0]["content"] == "Say hello." {
            let reply = json!({"choices": [{"message": {"content": "hello"}}]});
            return axum::Json(reply).into_response();
        }
        let streamed = asked["stream"] == true;
        let (mut to, from) =
            http_body_util::channel::Channel::<bytes::Bytes, std::io::Error>::new(1);
        tokio::spawn(async move {
            let role = json!({"choices": [{"delta": {"role": "assistant", "content": ""}}]});
            if streamed {
                let _ = to.send_data(format!("data: {role}\n\n").into()).await;
            }
            to.abort(std::io::Error::other("out of memory"));
        });
        let kind = if streamed {
            "text/event-stream"
        } else {
            "application/json"
        };
        ([("content-type", kind)], axum::body::Body::new(from)).into_response()
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

    async fn metrics(&self) -> String {
        let uri = format!("{}/metrics", self.admin).parse().unwrap();
        read(self.client.get(uri).await.unwrap()).await.2
    }

    async fn status(&self) -> Value {
        let request = http::Request::get(format!("{}/status", self.admin));
        let request = request.header("authorization", "Bearer secret");
        let request = request.body(Full::default()).unwrap();
        let (status, _, text) = read(self.client.request(request).await.unwrap()).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Waits until the status is so.
    async fn until(&self, so: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..600 {
            let status = self.status().await;
            if so(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("it stays at {}", self.status().await);
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
    gateway.until(|status| status["share"] == 50.0).await;
    let counts = gateway.answered_by(100).await;
    // Expected 50 each, standard deviation 5; the keys are always the same.
    assert!(counts[1] > 25 && counts[0] > 25, "{counts:?}");
    let metrics = gateway.metrics().await;
    assert!(metrics.contains("role=\"candidate\"") && metrics.contains("llm_output_tokens_total"));
    assert!(!metrics.contains("session-"));

    assert_eq!(gateway.admin("/force-baseline", "secret", "").await, 200);
    assert_eq!(gateway.answered_by(50).await, [50, 0]);
}

#[tokio::test]
async fn what_the_candidate_fails_the_baseline_answers() {
    let folder = tempfile::tempdir().unwrap();
    let one = model_server("one").await;
    let two = broken_server().await;
    let gateway = Gateway::start(&one, &two, &folder.path().join("gateway.db")).await;
    assert_eq!(
        gateway.admin("/submit/chat-v2/1.1.0", "secret", PLAN).await,
        200
    );
    gateway.until(|status| status["share"] == 50.0).await;
    for n in 0..60 {
        let (status, version, text) = gateway.ask(&format!("session-{n}"), n % 2 == 0).await;
        assert_eq!(
            (status, version.starts_with("chat/v1.0.0-")),
            (200, true),
            "{text}"
        );
        assert!(text.contains("one was asked for small"), "{text}");
    }
    let metrics = gateway.metrics().await;
    let failed = metrics.lines().find(|line| {
        line.contains("role=\"candidate\"")
            && line.contains("outcome=\"MidStreamError\"")
            && !line.ends_with(" 0")
    });
    assert!(failed.is_some(), "{metrics}");
}

#[tokio::test]
async fn people_hold_approve_and_abort_over_the_admin_listener() {
    const STEPS: &str = r#"
alpha = 0.05
look_every = "200ms"
ungated = true
[[stages]]
serve = 20.0
dwell = "0s"
advance = "manual"
[[stages]]
serve = 40.0
dwell = "4h"
[[stages]]
serve = 100.0
dwell = "4h"
"#;
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (model_server("one").await, model_server("two").await);
    let gateway = Gateway::start(&one, &two, &folder.path().join("gateway.db")).await;

    // Without the token nothing is told or done, and clients cannot reach any of it.
    for path in [
        "/approve",
        "/hold/x",
        "/resume/x",
        "/abort",
        "/force-baseline",
    ] {
        assert_eq!(gateway.admin(path, "wrong", "").await, 401);
        assert_eq!(gateway.admin(path, "", "").await, 401);
        let public = format!("{}{path}", gateway.clients);
        assert_eq!(
            gateway
                .post(public, &[("authorization", "Bearer secret")], String::new())
                .await
                .0,
            404
        );
    }
    let uri = format!("{}/status", gateway.admin).parse().unwrap();
    assert_eq!(read(gateway.client.get(uri).await.unwrap()).await.0, 401);
    assert_eq!(
        gateway.admin("/approve", "secret", "").await,
        409,
        "there is nothing to approve"
    );

    assert_eq!(
        gateway
            .admin("/submit/chat-v2/1.1.0", "secret", STEPS)
            .await,
        200
    );
    let status = gateway.until(|status| status["share"] == 20.0).await;
    assert!(
        status["baseline"]
            .as_str()
            .unwrap()
            .starts_with("chat/v1.0.0-")
    );
    assert!(
        status["rollout"]["candidate"]
            .as_str()
            .unwrap()
            .starts_with("chat/v1.1.0-")
    );
    assert_eq!(
        gateway
            .admin("/hold/look", "secret", "the dashboard looks odd")
            .await,
        200
    );
    gateway
        .until(|status| status["rollout"]["holds"] == json!(["look"]))
        .await;
    assert_eq!(gateway.admin("/approve", "secret", "evals read").await, 200);
    assert_eq!(gateway.status().await["share"], 20.0, "it is held");
    assert_eq!(gateway.admin("/resume/look", "secret", "").await, 200);
    assert_eq!(
        gateway.admin("/resume/look", "secret", "").await,
        409,
        "there is no such hold any more"
    );
    gateway.answered_by(60).await;
    gateway.until(|status| status["share"] == 40.0).await;
    gateway.answered_by(60).await;

    let metrics = gateway.metrics().await;
    let value = |line: &str| {
        let found = metrics
            .lines()
            .find_map(|l| l.strip_prefix(line)?.trim().parse::<f64>().ok());
        found.unwrap_or_else(|| panic!("no {line} in {metrics}"))
    };
    assert!((value("llm_candidate_share{of=\"ordered\"}") - 0.4).abs() < 1e-9);
    assert!((0.1..0.8).contains(&value("llm_candidate_share{of=\"requests\"}")));
    assert!((0.1..0.8).contains(&value("llm_candidate_share{of=\"tokens\"}")));
    assert!(value("llm_flips_total") > 0.0 && value("llm_keyless_requests_total") < 1.0);
    // Each family is told once, its lines together.
    let families: Vec<&str> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let mut seen = Vec::new();
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        if seen.last() != Some(&name) {
            assert!(
                families.contains(&name) && !seen.contains(&name),
                "{name} in {metrics}"
            );
            seen.push(name);
        }
    }

    assert_eq!(gateway.admin("/abort", "secret", "enough").await, 200);
    gateway
        .until(|status| status["rollout"]["phase"] == "rolled back")
        .await;
    assert_eq!(gateway.answered_by(20).await, [20, 0]);
}

#[tokio::test]
async fn whole_replies_are_mirrored_and_streams_are_not() {
    const MIRROR: &str = r#"
alpha = 0.05
ungated = true
finish = "return"
[[stages]]
mirror = 100.0
dwell = "4h"
"#;
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (model_server("one").await, model_server("two").await);
    let gateway = Gateway::start(&one, &two, &folder.path().join("gateway.db")).await;
    assert_eq!(
        gateway
            .admin("/submit/chat-v2/1.1.0", "secret", MIRROR)
            .await,
        200
    );
    gateway
        .until(|status| status["rollout"]["phase"] == "soaking in stage 0")
        .await;
    // Half of these are streams; users get the baseline's answers only.
    assert_eq!(gateway.answered_by(20).await, [20, 0]);
    let url = format!("{}/v1/chat/completions", gateway.clients);
    let acting =
        json!({"model": "chat", "messages": [], "tools": [{"type": "function"}]}).to_string();
    for _ in 0..3 {
        let headers = [("x-session-id", "s"), ("content-type", "application/json")];
        assert_eq!(
            gateway.post(url.clone(), &headers, acting.clone()).await.0,
            200
        );
    }
    let wanted = [
        "llm_mirrored_total{became=\"pairs\"} 10",
        "llm_mirrored_total{became=\"skipped\"} 3",
    ];
    for _ in 0..600 {
        let metrics = gateway.metrics().await;
        if wanted
            .iter()
            .all(|line| metrics.lines().any(|found| found == *line))
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{}", gateway.metrics().await);
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
