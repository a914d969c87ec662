//! Rollouts of real models behind real proxies: Envoy or HAProxy decides who gets what, and counts what users met. The endpoint's source
//! reads these counts, and users are asked nothing.

use crate::process::{PATIENCE, until};
use crate::stack::{Llama, Manner, Reply, Tally, Users, endpoint, send, version};
use crate::{envoy, haproxy};
use async_trait::async_trait;
use http_body_util::BodyExt as _;
use llm_rollout::presets::{self, Gates, Pace};
use llm_rollout::{Cause, MetricDef, Phase, Plan, RolloutId, Share};
use llm_serve_adapters::host::TrafficRouter;
use llm_serve_adapters::journal::End;
use llm_serve_adapters::router::{Key, Role};
use llm_serve_adapters::shadow::{Compare, Compared, Limits, Request, Shadow};
use llm_serve_adapters::source::{ScrapeSource, Series};
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Endpoint, Run};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Two real engines.
struct Engines {
    _folder: TempDir,
    v1: Llama,
    v2: Llama,
}

impl Engines {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let v1 = Llama::start(folder.path(), "v1").await;
        let v2 = Llama::start(folder.path(), "v2").await;
        Self {
            _folder: folder,
            v1,
            v2,
        }
    }

    fn ports(&self) -> [u16; 2] {
        [self.v1.port(), self.v2.port()]
    }
}

fn versions() -> [llm_version_core::VersionId; 2] {
    [version("v1"), version("v2")]
}

/// What users met, as the proxy counts it.
fn counted(address: String, label: &str, answered: Series, class: (&str, &str)) -> ScrapeSource {
    let [v1, v2] = versions();
    ScrapeSource::builder()
        .labelled(v1, address.clone(), label, "chat-v1")
        .labelled(v2, address, label, "chat-v2")
        .ratio("faults", answered.clone(), answered.is(class.0, class.1))
        .build()
        .unwrap()
}

fn counted_by_envoy(edge: &envoy::Edge) -> ScrapeSource {
    counted(
        format!("http://127.0.0.1:{}/stats/prometheus", edge.to_admin.port),
        "envoy_cluster_name",
        Series::new("envoy_cluster_upstream_rq_xx"),
        ("envoy_response_code_class", "5"),
    )
}

fn counted_by_haproxy(edge: &haproxy::Edge) -> ScrapeSource {
    counted(
        format!("http://127.0.0.1:{}/metrics", edge.metrics),
        "proxy",
        Series::new("haproxy_backend_http_responses_total"),
        ("code", "5xx"),
    )
}

/// A plan of seconds that watches what the proxy counts. It looks no more often than that both arms have answered somebody since, even on
/// a busy machine: only what had a baseline beside it counts.
fn plan(lease: &str, stages: &str) -> Plan {
    let text = format!(
        r#"
        alpha = 0.05
        look_every = "3s"
        bake = "1s"
        [metrics]
        faults = {{ fault = {{}} }}
        [[gates]]
        metric = "faults"
        weight = 1.0
        [recovery]
        drain = "2m"
        [lease]
        {lease}
        [outcomes]
        shift = "2m"
        [triggers]
        candidate_silent = "3m"
        no_verdict = "5m"
        {stages}
        "#
    );
    Plan::from_toml(&text).unwrap()
}

const LEASE: &str = "ttl = \"60s\"\nrenew_every = \"2s\"";

fn stage(share: f64, dwell: &str) -> String {
    // At 100 % there is no baseline beside the candidate to compare with.
    let samples = if share < 100.0 { 4 } else { 0 };
    format!(
        "[[stages]]\nserve = {share:.1}\ndwell = \"{dwell}\"\nlimit = \"20m\"\nmin_samples = {samples}\n"
    )
}

/// Users of a proxy: their sessions say nothing of when they began, so that a raise may move one to the candidate; they may be
/// moved back only while `may_go_back`.
fn manner(may_go_back: bool) -> Manner {
    static SESSIONS: AtomicU64 = AtomicU64::new(0);
    Manner {
        session: Arc::new(|| format!("session-{}", SESSIONS.fetch_add(1, Ordering::Relaxed))),
        may_move: Arc::new(move |to| may_go_back || to == "v2"),
    }
}

async fn answers_of(users: &Users, model: &str) {
    let before = users.tally().by(model);
    until("answers", async || {
        (users.tally().by(model) > before).then_some(())
    })
    .await;
}

/// Which model answers this session.
async fn answers(port: u16, session: &str) -> String {
    let asked = json!({"model": "chat", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 1});
    let reply = send(port, session, &asked).await.unwrap();
    let body = reply.into_body().collect().await.unwrap().to_bytes();
    Reply::of(&String::from_utf8_lossy(&body)).unwrap().model
}

/// How long it takes until nobody gets the candidate any more.
async fn users_are_off(port: u16, since: Instant) -> Duration {
    until("the end of the share", async || {
        (answers(port, "a").await == "v1").then_some(())
    })
    .await;
    let took = since.elapsed();
    for session in ["b", "c", "d", "e"] {
        assert_eq!(answers(port, session).await, "v1");
    }
    took
}

async fn submit(endpoint: &Endpoint, name: &str, plan: Plan) -> Run {
    let id = RolloutId::new(name).unwrap();
    endpoint.submit(id, version("v2"), plan).await.unwrap()
}

/// Waits for its end, however slow the machine is.
async fn finished(endpoint: &Endpoint, run: &Run) -> End {
    let end = tokio::time::timeout(5 * PATIENCE, run.finished()).await;
    end.unwrap_or_else(|_| panic!("it does not end: {:#?}", endpoint.status()))
        .unwrap()
}

/// v1 to v2 twice: once an operator changes the share by hand, which is noticed and ends the rollout; then it is promoted.
async fn disturbed_then_promoted(
    proxy: &str,
    port: u16,
    router: impl TrafficRouter,
    source: ScrapeSource,
    by_hand: impl AsyncFnOnce(),
) {
    let endpoint = endpoint(MemoryStore::new(), |b| b.router(router).source(source)).await;
    let users = Users::begin(port, 4, &manner(true));
    let run = submit(&endpoint, "disturbed", plan(LEASE, &stage(50.0, "10m"))).await;
    answers_of(&users, "v2").await;
    by_hand().await;
    let began = Instant::now();
    let end = finished(&endpoint, &run).await;
    let noticed = began.elapsed();
    assert_eq!(end.phase, Phase::RolledBack, "{end:?}");
    assert!(matches!(end.cause, Some(Cause::Drifted { .. })), "{end:?}");
    users_are_off(port, began).await;
    let disturbed = users.finish().await;
    assert_eq!(disturbed.lost(), 0, "{disturbed:?}");

    let users = Users::begin(port, 4, &manner(false));
    let began = Instant::now();
    let stages = [25.0, 50.0, 100.0].map(|share| stage(share, "1s")).concat();
    let run = submit(&endpoint, "undisturbed", plan(LEASE, &stages)).await;
    let end = finished(&endpoint, &run).await;
    let took = began.elapsed();
    assert_eq!((end.phase, &end.cause), (Phase::Promoted, &None), "{end:?}");
    assert_eq!(answers(port, "a").await, "v2");
    let tally = users.finish().await;
    assert_eq!((tally.lost(), tally.flipped.len()), (0, 0), "{tally:?}");
    assert!(tally.by("v1") > 0 && tally.by("v2") > 0, "{tally:?}");
    println!(
        "ok      v1 to v2 through {proxy}: share changed by hand, noticed and gone back after {noticed:.1?}; then promoted over 25, 50 and \
         100 % in {took:.1?}; {}, none lost",
        told(&[disturbed, tally])
    );
}

fn told(tallies: &[Tally]) -> String {
    let sum = |model: &str| tallies.iter().map(|tally| tally.by(model)).sum::<u64>();
    format!("{} answers of v1 and {} of v2", sum("v1"), sum("v2"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs envoy, llama-server and models: e2e/run proxies"]
async fn promoted_through_envoy_with_an_operator_in_between() {
    let engines = Engines::start().await;
    let edge = envoy::Edge::between(engines.ports()).await;
    let memory = MemoryStore::new();
    let router = edge.router(&memory, &versions());
    let _envoy = edge.start().await;
    let source = counted_by_envoy(&edge);
    disturbed_then_promoted("Envoy", edge.port, router, source, async || {
        edge.by_hand("llm.chat-v1=1000&llm.chat-v2=9000").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs haproxy, llama-server and models: e2e/run proxies"]
async fn promoted_through_haproxy_with_an_operator_in_between() {
    let engines = Engines::start().await;
    let edge = haproxy::Edge::between(engines.ports(), Duration::from_secs(45));
    let memory = MemoryStore::new();
    let router = edge.router(&memory, &versions());
    let _haproxy = edge.start().await;
    let source = counted_by_haproxy(&edge);
    disturbed_then_promoted("HAProxy", edge.port, router, source, async || {
        edge.by_hand("set table llm_split key share data.gpt0 9000")
            .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs envoy, llama-server and models: e2e/run proxies"]
async fn users_are_taken_off_whatever_of_envoy_cannot_be_reached() {
    let engines = Engines::start().await;
    let mut edge = envoy::Edge::between(engines.ports()).await;
    let memory = MemoryStore::new();
    let router = edge.router(&memory, &versions());
    let _envoy = edge.start().await;
    let source = counted_by_envoy(&edge);
    let endpoint = endpoint(MemoryStore::new(), |b| b.router(router).source(source)).await;
    let users = Users::begin(edge.port, 2, &manner(true));
    let lease = "ttl = \"8s\"\nrenew_every = \"1s\"";
    let mut off = Vec::new();
    for everything in [false, true] {
        let name = format!("cut-{everything}");
        let run = submit(&endpoint, &name, plan(lease, &stage(100.0, "10m"))).await;
        answers_of(&users, "v2").await;
        edge.to_admin.cut().await;
        if everything {
            edge.to_host.cut().await;
        }
        let began = Instant::now();
        run.abort("ana", "page 4711").await.unwrap();
        off.push(users_are_off(edge.port, began).await);
        // It ends when it has been confirmed.
        edge.to_admin.mend().await;
        if everything {
            edge.to_host.mend().await;
        }
        let end = finished(&endpoint, &run).await;
        assert_eq!(end.phase, Phase::RolledBack, "{end:?}");
    }
    let tally = users.finish().await;
    assert_eq!(tally.lost(), 0, "{tally:?}");
    println!(
        "ok      aborted while Envoy's admin interface was cut off: users off after {:.1?}; while Envoy was cut off from everybody, with a lease of \
         8 s: after {:.1?}; none lost of {}",
        off[0],
        off[1],
        told(&[tally])
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs envoy, llama-server and models: e2e/run proxies"]
async fn envoy_mirrors_to_a_candidate_that_no_user_meets() {
    let engines = Engines::start().await;
    let edge = envoy::Edge::between(engines.ports()).await;
    let memory = MemoryStore::new();
    let router = edge.router(&memory, &versions());
    let _envoy = edge.start().await;
    let source = counted_by_envoy(&edge);
    let endpoint = endpoint(MemoryStore::new(), |b| b.router(router).source(source)).await;
    let users = Users::begin(edge.port, 2, &manner(false));
    let stages = "[[stages]]\nmirror = 50.0\ndwell = \"4s\"\nlimit = \"20m\"\n";
    let run = submit(&endpoint, "mirrored", shadow(stages)).await;
    let end = finished(&endpoint, &run).await;
    assert_eq!(end.phase, Phase::Concluded, "{end:?}");
    assert_eq!((end.exposed, end.largest_share), (0, Share::NONE));
    let tally = users.finish().await;
    assert_eq!((tally.lost(), tally.by("v2")), (0, 0), "{tally:?}");
    let mirrored = edge.requests("chat-v2").await;
    assert!(mirrored > 0 && mirrored <= tally.sent, "{mirrored}");
    println!(
        "ok      mirrored by Envoy at 50 %: {mirrored} of {} requests; none lost, no user served by the candidate",
        tally.sent
    );
}

/// Ends by taking the candidate out again.
fn shadow(stages: &str) -> Plan {
    let mut spec = plan(LEASE, stages).spec().clone();
    spec.finish = llm_rollout::Finish::Return;
    spec.try_into().unwrap()
}

/// Two answers are alike if there are two.
struct Answered;

#[async_trait]
impl Compare for Answered {
    async fn compare(&self, baseline: &str, candidate: &str) -> Option<Compared> {
        let both = !baseline.is_empty() && !candidate.is_empty();
        Compared::by_likeness(f64::from(u8::from(both)), 1.0)
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs llama-server and models: e2e/run proxies"]
async fn the_process_mirrors_to_a_candidate_that_no_user_meets() {
    let engines = Engines::start().await;
    let [v1, v2] = engines.ports();
    let limits = Limits {
        deadline: Duration::from_secs(60),
        ..Limits::default()
    };
    let shadow = Shadow::new(limits, Answered);
    let endpoint = endpoint(MemoryStore::new(), |b| b.shadow("answered", &shadow)).await;
    let gates = Gates::nothing().gate("answers", MetricDef::Pair("answered".into()), 0.5, 0.1);
    let pace = Pace::new(Duration::from_secs(2), 10);
    let half = Share::from_percent(50.0).unwrap();
    let mut spec = presets::shadow(gates, half, pace).unwrap().spec().clone();
    spec.look_every = Duration::from_millis(200);
    let run = submit(&endpoint, "mirrored", spec.try_into().unwrap()).await;
    let plane = endpoint.data_plane();
    let (mut asked, mut by_v1) = (0, 0);
    let mut finished = std::pin::pin!(run.finished());
    let end = loop {
        if let Ok(end) = tokio::time::timeout(Duration::from_millis(1), finished.as_mut()).await {
            break end.unwrap();
        }
        asked += 1;
        let session = format!("session-{asked}");
        let now = plane.router.now();
        let decision = plane.router.decide(&Key::session(session.as_bytes()), now);
        assert_eq!(decision.role(), Role::Baseline);
        let pair = plane
            .router
            .mirror(session.as_bytes(), now)
            .map(|candidate| {
                shadow.offer(candidate, Request::safe(), move || async move {
                    Ok::<_, String>(answers(v2, "").await)
                })
            });
        let answer = answers(v1, "").await;
        by_v1 += u64::from(answer == "v1");
        if let Some(pair) = pair {
            pair.answered(answer);
        }
    };
    assert_eq!(end.phase, Phase::Concluded, "{end:?}");
    assert_eq!((end.exposed, by_v1), (0, asked));
    let counts = shadow.counts();
    assert!(counts.pairs >= 10, "{counts:?}");
    println!(
        "ok      mirrored in the process at 50 %: {} of {asked} requests, {} pairs; no user served by the candidate",
        counts.offered, counts.pairs
    );
}
