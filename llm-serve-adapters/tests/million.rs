//! Requests over real HTTP on loopback while a controller promotes one candidate after another and rolls back those between:
//! none is lost, none is answered by another version than its own, no stream changes its version before it ends, and no
//! conversation that says when it began changes its version because a share was raised.
//!
//! `MILLION` says how many requests at the least; time runs faster for the controller than for everybody else.
#![cfg(feature = "tower")]
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::header::{CONTENT_TYPE, HOST, HeaderName};
use axum::http::{Request, StatusCode};
use axum::response::Response;
use axum::routing::post;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use llm_rollout::{Phase, Plan, RolloutId, RouterState, Timestamp};
use llm_serve_adapters::host::Clock;
use llm_serve_adapters::layer::{Assignment, KeySource as _, RolloutLayer, VERSION_HEADER, header};
use llm_serve_adapters::router::{Role, place};
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Bootstrap, DataPlane, Endpoint};
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};

/// How much faster time runs for the endpoint.
const FASTER: u32 = 10;
const CLIENTS: u64 = 48;
const STREAMS: u64 = 16;
/// How long a conversation goes on; every fourth client has short ones.
const CONVERSATION: Duration = Duration::from_millis(2_500);
const SHORT: Duration = Duration::from_millis(20);
/// Events of a stream, and the time between them.
const EVENTS: usize = 40;
const PAUSE: Duration = Duration::from_millis(20);
const ASSIGNED: HeaderName = HeaderName::from_static("x-assigned");

fn plan() -> Plan {
    Plan::from_toml(
        r#"
        alpha = 0.05
        look_every = "2s"
        bake = "5s"
        [metrics]
        faults = { fault = {} }
        [[gates]]
        metric = "faults"
        weight = 1.0
        [[stages]]
        serve = 30.0
        dwell = "14s"
        limit = "1h"
        min_samples = 50
        [[stages]]
        serve = 60.0
        dwell = "14s"
        limit = "1h"
        min_samples = 50
        [triggers]
        candidate_silent = "20m"
        no_verdict = "20m"
        [lease]
        ttl = "10m"
        renew_every = "5s"
        grace = "20m"
        [recovery]
        drain = "10m"
        [outcomes]
        shift = "20m"
    "#,
    )
    .unwrap()
}

fn version(n: u32) -> VersionId {
    format!("chat/v{n}.0.0-{}", format!("{n:08x}").repeat(8))
        .parse()
        .unwrap()
}

/// Every second candidate fails one request in four.
fn is_bad(n: u32) -> bool {
    n.is_multiple_of(2) && n > 0
}

#[derive(Debug)]
struct Faster(Instant);

#[async_trait]
impl Clock for Faster {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_900_000_000_000).after(self.0.elapsed() * FASTER)
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration / FASTER).await;
    }
}

/// A server of one version: it knows its own, and nothing of who was assigned to what.
#[derive(Debug)]
struct Upstream {
    reference: String,
    bad: bool,
    asked: AtomicU64,
}

impl Upstream {
    fn new(n: u32) -> Self {
        Self {
            reference: version(n).reference().to_string(),
            bad: is_bad(n),
            asked: AtomicU64::new(0),
        }
    }

    fn answer(&self, streamed: bool) -> Response {
        let nth = self.asked.fetch_add(1, Ordering::Relaxed);
        let name = &self.reference;
        if streamed {
            let event =
                format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{name}\"}}}}]}}\n\n");
            let end = "data: [DONE]\n\n".to_owned();
            let events = std::iter::repeat_n(event, EVENTS).chain([end]);
            let events = futures_util::stream::iter(events).then(|event| async {
                tokio::time::sleep(PAUSE).await;
                Ok::<_, std::io::Error>(Bytes::from(event))
            });
            let reply = Response::builder().header(CONTENT_TYPE, "text/event-stream");
            return reply.body(Body::from_stream(events)).unwrap();
        }
        let body = format!(
            "{{\"choices\":[{{\"message\":{{\"content\":\"{name}\"}}}}],\"usage\":{{\"completion_tokens\":3}}}}"
        );
        let status = match nth % 4 {
            0 if self.bad => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::OK,
        };
        let reply = Response::builder()
            .status(status)
            .header(CONTENT_TYPE, "application/json");
        reply.body(body.into()).unwrap()
    }
}

type Upstreams = Arc<BTreeMap<VersionId, Upstream>>;

async fn chat(
    State(upstreams): State<Upstreams>,
    Extension(assignment): Extension<Assignment>,
    wanted: String,
) -> Response {
    let assigned = assignment.version().unwrap();
    let mut reply = upstreams[&**assigned.id()].answer(wanted == "stream");
    let named = assigned.reference().parse().unwrap();
    reply.headers_mut().insert(ASSIGNED, named);
    reply
}

/// A keep-alive connection.
struct Client(SendRequest<Full<Bytes>>);

impl Client {
    async fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn ask(&mut self, session: &str, wanted: &'static str) -> Response<Incoming> {
        let request = Request::post("/chat")
            .header(HOST, "x")
            .header("x-session-id", session);
        let request = request.body(Full::from(wanted)).unwrap();
        self.0.ready().await.unwrap();
        self.0.send_request(request).await.unwrap()
    }
}

fn named<'a>(reply: &'a Response<Incoming>, by: &HeaderName) -> &'a str {
    reply.headers()[by].to_str().unwrap()
}

/// Who a request belongs to by the split alone: the assignment, written once more.
fn expected(state: &RouterState, session: &str, began: Option<Timestamp>) -> String {
    let split = &state.split;
    let kept = began.and_then(|began| split.ramp.iter().find(|raise| began < raise.before));
    let share = kept.map_or(split.share, |raise| raise.share.min(split.share));
    let below = u64::from(share.basis_points()) * (1 << 32) / 10_000;
    let of_candidate = !state.lapsed && u64::from(place(session.as_bytes(), split.salt)) < below;
    let version = match &split.candidate {
        Some(candidate) if of_candidate => candidate,
        _ => &split.baseline,
    };
    version.reference().to_string()
}

#[derive(Debug, Default)]
struct Tally {
    stop: AtomicBool,
    sent: AtomicU64,
    answered: AtomicU64,
    /// Of those answered, whose version was foretold from the split.
    foretold: AtomicU64,
    failed: AtomicU64,
    streams: AtomicU64,
    /// Streams that went on while the split changed.
    spanning: AtomicU64,
    open: AtomicU64,
    /// Conversations that went from one version to another, by why they may.
    promoted: AtomicU64,
    returned: AtomicU64,
    ramped: AtomicU64,
}

fn more(count: &AtomicU64) -> u64 {
    count.fetch_add(1, Ordering::Relaxed)
}

impl Tally {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// A conversation went from one version to another: why.
    fn moved(&self, state: &RouterState, from: &str, to: &str, dated: bool) {
        let split = &state.split;
        if split.baseline.reference().to_string() == to {
            // The candidate it had was promoted over it, or taken back.
            let number = |reference: &str| {
                (1..=u32::MAX).find(|n| version(*n).reference().to_string() == reference)
            };
            let (from, to) = (number(from).unwrap(), number(to).unwrap());
            assert!(
                is_bad(from) || !is_bad(to) && to > from,
                "from {from} to {to}"
            );
            more(if is_bad(from) {
                &self.returned
            } else {
                &self.promoted
            });
        } else {
            assert!(
                !dated,
                "a share was raised, and a conversation that had begun before went from {from} to {to}"
            );
            more(&self.ramped);
        }
    }
}

/// One conversation after the other.
async fn converse(to: SocketAddr, plane: DataPlane, tally: Arc<Tally>, client: u64) {
    let mut connection = Client::connect(to).await;
    for n in 0.. {
        let dated = (client + n) % 2 == 1;
        let begun = Instant::now();
        let longest = if client.is_multiple_of(4) {
            SHORT
        } else {
            CONVERSATION
        };
        let began = plane.router.now();
        let ms = began.as_millis();
        // A UUID of version 7, or an id that tells nothing.
        let session = if dated {
            format!(
                "{:08x}-{:04x}-7{:03x}-8{:03x}-{n:012x}",
                ms >> 16,
                ms & 0xffff,
                client,
                client
            )
        } else {
            format!("session-{client}-{n}")
        };
        let mut last: Option<String> = None;
        while begun.elapsed() < longest {
            if tally.stopped() {
                return;
            }
            let before = plane.router.state();
            more(&tally.sent);
            let reply = connection.ask(&session, "whole").await;
            let (by, assigned) = (
                named(&reply, &VERSION_HEADER).to_owned(),
                named(&reply, &ASSIGNED).to_owned(),
            );
            let status = reply.status();
            let body = reply.into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let says = body["choices"][0]["message"]["content"].as_str().unwrap();
            let after = plane.router.state();
            assert_eq!((by.as_str(), says), (assigned.as_str(), assigned.as_str()));
            if (before.at, &before.split, before.lapsed) == (after.at, &after.split, after.lapsed) {
                assert_eq!(by, expected(&before, &session, dated.then_some(began)));
                more(&tally.foretold);
            }
            match status {
                StatusCode::OK => {}
                StatusCode::INTERNAL_SERVER_ERROR => {
                    more(&tally.failed);
                }
                other => panic!("{other}"),
            }
            if let Some(last) = last.filter(|last| *last != by) {
                tally.moved(&after, &last, &by, dated);
            }
            last = Some(by);
            more(&tally.answered);
        }
    }
}

/// One stream after the other.
async fn follow(to: SocketAddr, plane: DataPlane, tally: Arc<Tally>, client: u64) {
    let mut connection = Client::connect(to).await;
    for n in 0.. {
        if tally.stopped() {
            return;
        }
        let before = plane.router.state().split.epoch;
        more(&tally.open);
        let reply = connection
            .ask(&format!("stream-{client}-{n}"), "stream")
            .await;
        let (by, assigned) = (
            named(&reply, &VERSION_HEADER).to_owned(),
            named(&reply, &ASSIGNED).to_owned(),
        );
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        let text = std::str::from_utf8(&body).unwrap();
        assert_eq!(by, assigned);
        assert_eq!(text.matches(by.as_str()).count(), EVENTS, "{text}");
        assert_eq!(text.matches("data: ").count(), EVENTS + 1);
        assert!(text.ends_with("data: [DONE]\n\n"), "a stream was cut");
        if plane.router.state().split.epoch != before {
            more(&tally.spanning);
        }
        more(&tally.streams);
    }
}

async fn run(requests: u64) {
    let begun = Instant::now();
    let endpoint = Endpoint::builder("chat", MemoryStore::default(), Bootstrap(version(1)))
        .clock(Faster(begun))
        .open()
        .await
        .unwrap();
    let plane = endpoint.data_plane().clone();
    let upstreams = (1..=2_000).map(|n| (version(n), Upstream::new(n)));
    let upstreams: Upstreams = Arc::new(upstreams.collect());
    let layer = RolloutLayer::new(&endpoint).key(header("x-session-id").dated());
    let app = Router::new()
        .route("/chat", post(chat))
        .with_state(Arc::clone(&upstreams));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, app.layer(layer)).await });

    let tally = Arc::new(Tally::default());
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        tasks.spawn(converse(to, plane.clone(), Arc::clone(&tally), client));
    }
    for client in 0..STREAMS {
        tasks.spawn(follow(to, plane.clone(), Arc::clone(&tally), client));
    }

    let (mut promoted, mut rolled_back, mut baseline) = (0, 0, 1);
    for n in 2.. {
        let id = RolloutId::new(format!("r{n}")).unwrap();
        let rollout = endpoint.submit(id, version(n), plan()).await.unwrap();
        let end = tokio::select! {
            end = rollout.finished() => end.unwrap(),
            // A client that panicked says why.
            Some(ended) = tasks.join_next() => { ended.unwrap(); panic!("a client has ended"); }
        };
        if is_bad(n) {
            assert_eq!(end.phase, Phase::RolledBack, "{end:?}");
            rolled_back += 1;
        } else {
            assert_eq!(end.phase, Phase::Promoted, "{end:?}");
            (promoted, baseline) = (promoted + 1, n);
        }
        assert_eq!(plane.router.state().split.baseline, version(baseline));
        let enough = tally.answered.load(Ordering::Relaxed) >= requests;
        if enough && promoted > 0 && rolled_back > 0 {
            break;
        }
    }
    tally.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let took = begun.elapsed();

    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let asked: u64 = upstreams
        .values()
        .map(|upstream| count(&upstream.asked))
        .sum();
    assert_eq!(
        count(&tally.sent),
        count(&tally.answered),
        "a request was lost"
    );
    assert_eq!(
        count(&tally.open),
        count(&tally.streams),
        "a stream was lost"
    );
    assert_eq!(
        asked,
        count(&tally.answered) + count(&tally.streams),
        "a request was served twice, or by nobody"
    );
    assert!(count(&tally.answered) >= requests);
    assert!(count(&tally.foretold) > count(&tally.answered) / 2);
    assert!(count(&tally.failed) > 0 && count(&tally.spanning) > 0);
    assert!(count(&tally.promoted) + count(&tally.returned) > 0);
    // The server may still have to see that the last replies have been read.
    for (id, upstream) in upstreams
        .iter()
        .filter(|(_, upstream)| count(&upstream.asked) > 0)
    {
        for _ in 0..1_000 {
            if plane.recorder.in_flight(id) == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(plane.recorder.in_flight(id), 0, "{}", upstream.reference);
    }
    let now = plane.router.now();
    let probe = llm_serve_adapters::router::Key::session(b"afterwards");
    assert_eq!(plane.router.decide(&probe, now).role(), Role::Baseline);
    server.abort();
    say(&format!(
        "{} requests and {} streams ({} over a change of the split) in {took:.0?}: {promoted} promoted, {rolled_back} rolled back; \
         {} foretold, {} failed by a bad candidate, none lost, none by another version; conversations moved: {} promoted, {} taken \
         back, {} at a raise without a date",
        count(&tally.answered),
        count(&tally.streams),
        count(&tally.spanning),
        count(&tally.foretold),
        count(&tally.failed),
        count(&tally.promoted),
        count(&tally.returned),
        count(&tally.ramped),
    ));
}

#[expect(clippy::print_stdout, reason = "the figures of a campaign")]
fn say(text: &str) {
    println!("{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_or_answered_by_another_version() {
    run(10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: `.ci/long million`"]
async fn no_request_of_a_million_is_lost_or_answered_by_another_version() {
    let requests = std::env::var("MILLION").ok().and_then(|n| n.parse().ok());
    run(requests.unwrap_or(1_000_000)).await;
}
