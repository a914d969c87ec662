use super::*;
use crate::load::{Load, Settings};
use bytes::Bytes;
use desk_model::{Variant, desk};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use llm_rollout::{Fence, Position, Seq};
use llm_serve_adapters::host::{ErrorKind, ServingBackend as _};
use llm_serve_adapters::layer::{KeySource as _, RolloutLayer, header};
use llm_serve_adapters::recorder::Row;
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Bootstrap, Endpoint};
use llm_version_core::{Digest, Name, Version};
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};

fn version(minor: u32) -> VersionId {
    let digest = Digest::of(&minor.to_le_bytes());
    VersionId::new(
        Name::new("desk").unwrap(),
        Version::new(1, minor, 0),
        digest,
    )
}

fn at(seq: u64) -> Position {
    Position {
        fence: Fence::new(1),
        seq: Seq::new(seq),
    }
}

/// A server with a whole endpoint around its one version.
struct Site {
    addr: SocketAddr,
    engines: Engines,
    endpoint: Endpoint,
    directory: tempfile::TempDir,
}

async fn site(limits: Limits) -> Site {
    let directory = tempfile::tempdir().unwrap();
    Variant::Base.write(directory.path()).unwrap();
    let engines = Engines::with_limits(limits);
    engines.add(version(0), directory.path());
    engines.load(&version(0)).await.unwrap();
    let endpoint = Endpoint::builder("desk", MemoryStore::default(), Bootstrap(version(0)))
        .flags([BAD_FORMAT])
        .open()
        .await
        .unwrap();
    let layer = RolloutLayer::new(&endpoint).key(header("x-session-id").or_request());
    let app = chat(engines.clone())
        .layer(layer)
        .merge(about(engines.clone()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    Site {
        addr,
        engines,
        endpoint,
        directory,
    }
}

impl Site {
    async fn send(&self, request: Request<Full<Bytes>>) -> Response<hyper::body::Incoming> {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    }

    async fn post(&self, body: Value) -> Response<hyper::body::Incoming> {
        let request = Request::post("/v1/chat/completions").header("host", "test");
        let request = request.body(Full::from(body.to_string())).unwrap();
        self.send(request).await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let request = Request::get(path).header("host", "test");
        let response = self.send(request.body(Full::default()).unwrap()).await;
        read(response).await
    }

    /// What the endpoint's recorder has counted once `requests` have ended:
    /// faults and flags.
    async fn recorded(&self, requests: u64) -> (u64, u64) {
        for _ in 0..500 {
            let snapshot = self.endpoint.data_plane().recorder.snapshot().unwrap();
            let rows = &snapshot.rows;
            let ended: u64 = rows.iter().map(Row::finished).sum();
            if ended == requests {
                let faults = rows.iter().map(Row::faults).sum();
                let flagged = rows.iter().map(|row| row.flagged(BAD_FORMAT).unwrap());
                return (faults, flagged.sum());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("other than {requests} requests were recorded");
    }

    /// Waits until nothing runs any more.
    async fn quiet(&self) {
        for _ in 0..500 {
            if self.engines.running(&version(0)) == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("something still runs");
    }
}

async fn read(response: Response<hyper::body::Incoming>) -> (u16, Value) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

fn ask(text: &str, stream: bool) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": text}], "stream": stream})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_and_a_whole_answer_are_what_the_model_says() {
    let site = site(Limits::default()).await;
    let model = desk_model::Model::load(site.directory.path()).unwrap();
    let text = desk::live_request(3, 4).text;
    let want = model.answer(&text, 0);

    let (status, whole) = read(site.post(ask(&text, false)).await).await;
    assert_eq!(status, 200);
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["choices"][0]["message"]["content"], want.text);
    assert_eq!(whole["choices"][0]["finish_reason"], want.finish.as_str());
    assert_eq!(whole["usage"]["completion_tokens"], want.completion_tokens);
    assert_eq!(whole["usage"]["prompt_tokens"], want.prompt_tokens);
    assert_eq!(whole["model"], version(0).reference().to_string());

    let mut body = ask(&text, true);
    body["stream_options"] = json!({"include_usage": true});
    let response = site.post(body).await;
    let kind = response.headers()["content-type"].to_str().unwrap();
    assert!(kind.starts_with("text/event-stream"));
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let stream = std::str::from_utf8(&bytes).unwrap();
    let events: Vec<&str> = stream
        .split_terminator("\n\n")
        .map(|event| event.strip_prefix("data: ").unwrap())
        .collect();
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(*last, "[DONE]");
    let chunks: Vec<Value> = chunks
        .iter()
        .map(|chunk| serde_json::from_str(chunk).unwrap())
        .collect();
    let content = |chunk: &Value| {
        chunk["choices"][0]["delta"]["content"]
            .as_str()
            .map(str::to_owned)
    };
    let said: Vec<String> = chunks.iter().filter_map(content).collect();
    assert_eq!(said.concat(), want.text);
    assert!(said.len() > 4, "token by token");
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let [.., end, usage] = chunks.as_slice() else {
        panic!("too few chunks");
    };
    assert_eq!(end["choices"][0]["finish_reason"], want.finish.as_str());
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], want.completion_tokens);
    assert!(chunks[0]["usage"].is_null());
    site.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_no_program_could_use_raises_the_flag() {
    let site = site(Limits::default()).await;
    let mut body = ask(&desk::live_request(3, 4).text, false);
    body["max_tokens"] = json!(2);
    let (status, whole) = read(site.post(body).await).await;
    assert_eq!(
        (status, &whole["choices"][0]["finish_reason"]),
        (200, &json!("length"))
    );
    assert_eq!(site.recorded(1).await, (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_have_the_shape_that_clients_know() {
    let site = site(Limits::default()).await;
    let (status, body) = read(site.post(json!({"model": "gpt", "messages": []})).await).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (404, &json!("model_not_found"))
    );
    let large = ask(&"x".repeat(LARGEST_REQUEST), true);
    let (status, body) = read(site.post(large).await).await;
    assert_eq!(
        (status, &body["error"]["type"]),
        (413, &json!("invalid_request_error"))
    );
    assert_eq!(site.get("/nowhere").await.0, 404);
    let (status, body) = site.get("/v1/chat/completions").await;
    assert_eq!(status, 405);
    assert!(body["error"]["message"].is_string());
    assert_eq!(site.get("/v1/models").await.1["data"][0]["id"], MODEL);
    assert_eq!(site.get("/health").await.1["status"], "ok");
    site.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_to_do_is_said_at_once() {
    let limits = Limits {
        cores: 1,
        queue: 1,
        ..Limits::default()
    };
    let site = site(limits).await;
    let busy = site.engines.turn().await.unwrap();
    let waiting = tokio::spawn({
        let engines = site.engines.clone();
        async move { engines.turn().await.map(drop) }
    });
    while site.engines.turn_would_wait() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let response = site.post(ask("x", true)).await;
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, body) = read(response).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (429, &json!("rate_limit_exceeded"))
    );
    drop(busy);
    waiting.await.unwrap().unwrap();
    assert_eq!(site.post(ask("x", false)).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_is_not_counted_for_long() {
    let site = site(Limits::default()).await;
    for _ in 0..8 {
        let mut response = site.post(ask(&desk::live_request(3, 4).text, true)).await;
        response.body_mut().frame().await.unwrap().unwrap();
        drop(response);
    }
    site.quiet().await;
    assert_eq!(site.post(ask("x", false)).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_counts_until_it_has_been_read() {
    let site = site(Limits::default()).await;
    let (engine, running) = site.engines.begin(&version(0)).unwrap();
    let turn = site.engines.turn().await.unwrap();
    let asked = Asked::parse(ask("x", true).to_string().as_bytes()).unwrap();
    let reply = generation::start(engine, asked, turn, None, Duration::from_secs(9), running);
    // the computation needs no reader, and is over before anybody has read
    for _ in 0..2_000 {
        if site.engines.is_idle() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(site.engines.is_idle());
    assert_eq!(site.engines.in_flight(&version(0)).await.unwrap(), Some(1));
    let mut body = Body::new(reply);
    while body.frame().await.is_some() {}
    assert_eq!(site.engines.in_flight(&version(0)).await.unwrap(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retiring_cuts_off_what_still_runs() {
    let site = site(Limits::default()).await;
    let (engine, running) = site.engines.begin(&version(0)).unwrap();
    let turn = site.engines.turn().await.unwrap();
    site.engines.retire(&version(0), at(1)).await.unwrap();
    let asked = Asked::parse(ask("x", true).to_string().as_bytes()).unwrap();
    let reply = generation::start(engine, asked, turn, None, Duration::from_secs(9), running);
    let mut body = Body::new(reply);
    assert!(body.frame().await.unwrap().is_ok(), "the opening");
    assert!(body.frame().await.unwrap().is_err(), "cut, not ended");
    drop(body);
    site.quiet().await;
    let (status, body) = read(site.post(ask("x", true)).await).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (500, &json!("not_loaded"))
    );
    assert_eq!(site.recorded(1).await.0, 1, "the version's fault");
    assert_eq!(site.get("/health").await.0, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_older_than_the_newest_load_or_retirement_is_refused() {
    let site = site(Limits::default()).await;
    let engines = &site.engines;
    let permanent = |outcome: llm_serve_adapters::host::Result<()>| {
        outcome.is_err_and(|error| error.kind() == ErrorKind::Permanent)
    };
    engines.add(version(1), site.directory.path());
    engines.prepare(&version(1), at(5)).await.unwrap();
    engines.prepare(&version(1), at(5)).await.unwrap();
    assert!(permanent(engines.retire(&version(1), at(4)).await));
    assert_eq!(engines.loaded().len(), 2);
    engines.retire(&version(1), at(6)).await.unwrap();
    engines.retire(&version(1), at(6)).await.unwrap();
    assert!(permanent(engines.prepare(&version(1), at(5)).await));
    assert_eq!(engines.loaded(), [version(0)]);
    engines.prepare(&version(1), at(7)).await.unwrap();
    assert_eq!(engines.loaded().len(), 2);

    assert!(
        permanent(engines.prepare(&version(9), at(1)).await),
        "unknown"
    );
    engines.retire(&version(9), at(1)).await.unwrap();
    engines.add(version(2), site.directory.path().join("nowhere"));
    assert!(permanent(engines.prepare(&version(2), at(1)).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_load_generator_and_the_server_understand_each_other() {
    let site = site(Limits::default()).await;
    let settings = Settings {
        rate: 30.0,
        ..Settings::default()
    };
    let load = Load::start(site.addr, 11, settings).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let tally = load.stop().await.unwrap();
    let counts = tally.version(&version(0).reference().to_string());
    assert_eq!(counts.replies, tally.replies());
    assert!(counts.replies > 20, "{counts:?}");
    assert_eq!(counts.faulted(), 0, "{:?}", counts.faults);
    assert_eq!(tally.all_flips(), 0);
    let (faults, bad) = site.recorded(counts.replies).await;
    assert_eq!(faults, 0);
    assert_eq!(
        counts.bad_format, bad,
        "both sides agree on what is unusable"
    );
    assert!(counts.total.quantile(0.5) >= counts.first.quantile(0.5));
    site.quiet().await;
}
