//! Stopping a server: nobody is sent there, nothing runs there, and only then it is stopped. Beside it, what happens otherwise.

use crate::process::until;
use crate::stack::{Gateway, Llama, Places, Reply, endpoint, long, plan, send, version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use llm_rollout::{Phase, RolloutId};
use llm_serve_adapters::backend::{LlamaCpp, LlamaCppBackend, Upstream};
use llm_serve_adapters::host::ServingBackend as _;
use llm_serve_adapters::store::MemoryStore;
use std::path::Path;
use std::time::{Duration, Instant};

const TOKENS: u32 = 300;

/// What came of a reply until it ended.
async fn rest(mut text: String, mut body: Incoming) -> String {
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            text.push_str(&String::from_utf8_lossy(data));
        }
    }
    text
}

/// The reply up to its first token.
async fn begun(body: &mut Incoming) -> String {
    let mut text = String::new();
    while !text.contains("content\":\"") {
        let frame = body.frame().await.unwrap().unwrap();
        text.push_str(&String::from_utf8_lossy(frame.data_ref().unwrap()));
    }
    text
}

async fn done_right(folder: &Path) {
    let v1 = Llama::start(folder, "v1").await;
    let mut v2 = Llama::start(folder, "v2").await;
    let places = Places::default()
        .place("v1", v1.port())
        .place("v2", v2.port());
    let gateway = Gateway::open(endpoint(MemoryStore::new(), |b| b).await, places).await;
    let upstream = Upstream::new(format!("http://127.0.0.1:{}", v2.port()), "v2");
    let builder = LlamaCppBackend::builder().version(version("v2"), LlamaCpp::server(upstream));
    let backend = builder.build().unwrap();
    let id = RolloutId::new("drains").unwrap();
    let run = gateway.endpoint.submit(id, version("v2"), plan(&[50.0]));
    let run = run.await.unwrap();
    let manner = gateway.manner();
    let asked = long(TOKENS);
    let mut body = until("a stream of v2", async || {
        let response = send(gateway.port(), &(manner.session)(), &asked)
            .await
            .ok()?;
        let by_v2 = response.headers()["x-llm-version"]
            .to_str()
            .unwrap()
            .contains("1.1.0");
        by_v2.then(|| response.into_body())
    })
    .await;
    let text = begun(&mut body).await;
    assert!(backend.in_flight(&version("v2")).await.unwrap() >= Some(1));
    let began = Instant::now();
    // Share 0.
    run.abort("ana", "to be stopped").await.unwrap();
    let reader = tokio::spawn(rest(text, body));
    // The controller drains by its own count, and here the engine says the same.
    let end = run.finished().await.unwrap();
    assert_eq!(end.phase, Phase::RolledBack);
    until("the end of what runs", async || {
        let running = backend.in_flight(&version("v2")).await.unwrap();
        (running == Some(0)).then_some(())
    })
    .await;
    let drained = began.elapsed();
    // Only now.
    v2.process().signal("TERM");
    let reply = Reply::of(&reader.await.unwrap()).expect("a whole reply");
    assert_eq!(reply.model, "v2");
    println!(
        "ok      drain done right: share 0, nothing runs after {drained:.1?}, then stopped; the stream is whole ({} bytes of text)",
        reply.said.len()
    );
}

async fn done_wrong(folder: &Path) {
    let mut v2 = Llama::start(folder, "v2").await;
    let response = send(v2.port(), "", &long(TOKENS)).await.unwrap();
    let status = response.status();
    let mut body = response.into_body();
    let text = begun(&mut body).await;
    let began = Instant::now();
    v2.process().signal("TERM");
    let text = tokio::time::timeout(Duration::from_secs(120), rest(text, body)).await;
    let text = text.expect("llama-server cuts it off after 30 s");
    assert_eq!((status.as_u16(), Reply::of(&text)), (200, None), "{text}");
    println!(
        "ok      drain done wrong: status {status}, {} events, then cut off after {:.1?} without [DONE]",
        text.matches("data: ").count(),
        began.elapsed()
    );
}

#[tokio::test]
#[ignore = "needs llama-server and models: e2e/run llama"]
async fn a_server_is_stopped_once_nothing_runs_there() {
    let folder = tempfile::tempdir().unwrap();
    tokio::join!(done_right(folder.path()), done_wrong(folder.path()));
}
