use super::*;
use axum::Router;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::routing::post;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tokio::net::TcpListener;

type Letters = Arc<Mutex<BTreeMap<String, Vec<String>>>>;

/// A server that answers everything with an unusable reply, of a version that
/// changes once per session, after its second letter.
async fn flipping(letters: Letters) -> SocketAddr {
    let app = Router::new().route(
        "/v1/chat/completions",
        post(move |headers: HeaderMap, body: String| async move {
            let session = headers["x-session-id"].to_str().unwrap().to_owned();
            let body: Value = serde_json::from_str(&body).unwrap();
            let text = body["messages"][0]["content"].as_str().unwrap().to_owned();
            let mut letters = letters.lock().unwrap();
            let seen = letters.entry(session).or_default();
            seen.push(text);
            let version = if seen.len() <= 2 { "old" } else { "new" };
            let events =
                "data: {\"choices\":[{\"delta\":{\"content\":\"no\"}}]}\n\ndata: [DONE]\n\n";
            ([("x-llm-version", version)], events).into_response()
        }),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    addr
}

fn settings(tally: Option<PathBuf>) -> Settings {
    Settings {
        sessions: 12,
        rate: 300.0,
        outstanding: 8,
        timeout: Duration::from_secs(5),
        tally,
        ..Settings::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_last_three_to_six_letters_and_flips_are_counted() {
    let letters = Letters::default();
    let addr = flipping(Arc::clone(&letters)).await;
    let load = Load::start(addr, 7, settings(None)).unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let running = load.tally();
    let end = load.stop().await.unwrap();
    assert!(running.replies() > 100 && running.replies() <= end.replies());

    let letters = letters.lock().unwrap();
    let sent: usize = letters.values().map(Vec::len).sum();
    assert_eq!(end.replies(), sent as u64, "every request is counted once");
    assert!(letters.values().all(|session| session.len() <= 6));
    let lengths: BTreeSet<usize> = letters.values().map(Vec::len).collect();
    assert!(lengths.is_superset(&BTreeSet::from([3, 4, 5, 6])));
    let all: BTreeSet<&String> = letters.values().flatten().collect();
    assert!(all.len() * 10 > sent * 9, "letters differ");

    let flipped = letters.values().filter(|session| session.len() > 2).count();
    assert_eq!(end.flips("old", "new"), flipped as u64);
    assert_eq!(
        (end.flips("new", "old"), end.all_flips()),
        (0, flipped as u64)
    );
    let (old, new) = (end.version("old"), end.version("new"));
    assert_eq!(old.bad_format + new.bad_format, sent as u64);
    assert_eq!(old.faulted() + new.faulted(), 0);
    assert_eq!(old.first.count() + new.total.count(), sent as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_go_on_in_the_next_life() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tally.jsonl");
    let letters = Letters::default();
    let addr = flipping(Arc::clone(&letters)).await;
    for life in 1..=2 {
        let load = Load::start(addr, 7, settings(Some(path.clone()))).unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
        let end = load.stop().await.unwrap();
        let sent: usize = letters.lock().unwrap().values().map(Vec::len).sum();
        assert_eq!(end.lives(), life);
        assert_eq!(end.replies(), sent as u64);
        assert_eq!(Tally::read(&path).unwrap(), end);
    }
    let letters = letters.lock().unwrap();
    let all: BTreeSet<&String> = letters.values().flatten().collect();
    let sent: usize = letters.values().map(Vec::len).sum();
    assert!(
        all.len() * 10 > sent * 9,
        "the second life writes other letters"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_due_beyond_the_bound_is_skipped_and_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut settings = settings(None);
    settings.timeout = Duration::from_millis(700);
    let load = Load::start(addr, 1, settings).unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    let began = std::time::Instant::now();
    let end = load.stop().await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "stopping is bounded"
    );
    assert_eq!(end.version(UNKNOWN).faults["time-out"], 8);
    assert_eq!(end.failed_elsewhere("any"), 8);
    assert!(end.skipped() > 20);
    drop(listener);
}
