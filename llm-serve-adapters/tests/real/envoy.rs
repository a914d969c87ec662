//! Splits served by a real Envoy: shares that stick and grow, mirrors, changes by hand, lines that are cut, a lease that runs out.

use crate::edge::{
    Conforming, Engine, Forced, LEASE, Line, ask, candidates, order, percent,
    shares_stick_grow_and_end, users_are_off, version,
};
use crate::process::{Process, free_port, http, ready, until};
use llm_gates::Increment;
use llm_rollout::{Direction, Epoch, Fence, MetricDef, RouterId, Share, Split, Timestamp};
use llm_serve_adapters::host::{
    ErrorKind, MetricSource as _, Query, StateStore as _, TrafficRouter as _,
};
use llm_serve_adapters::router::{EnvoyRouter, EnvoyRuntime};
use llm_serve_adapters::source::{ScrapeSource, Series};
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::testing;
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::TcpStream;

/// An Envoy between two engines and a host.
pub(crate) struct Edge {
    folder: TempDir,
    runtime: EnvoyRuntime,
    /// From Envoy to the host, and from the host to Envoy's admin interface.
    pub(crate) to_host: Line,
    pub(crate) to_admin: Line,
    pub(crate) port: u16,
    pub(crate) admin: u16,
}

impl Edge {
    async fn new() -> (Self, [Engine; 2]) {
        let engines = [Engine::start("v1").await, Engine::start("v2").await];
        let edge = Self::between([engines[0].port, engines[1].port]).await;
        (edge, engines)
    }

    pub(crate) async fn between(engines: [u16; 2]) -> Self {
        let runtime = EnvoyRuntime::listen(([127, 0, 0, 1], 0).into())
            .await
            .unwrap();
        let to_host = Line::to(runtime.address()).await;
        let (port, admin) = (free_port(), free_port());
        let folder = tempfile::tempdir().unwrap();
        // The configuration of the documentation, elsewhere.
        let mut config = include_str!("../../src/router/envoy/envoy.yaml").to_owned();
        for (documented, here) in [
            (9901, admin),
            (8080, port),
            (8001, engines[0]),
            (8002, engines[1]),
            (18000, to_host.port),
        ] {
            let documented = format!("port_value: {documented}}}");
            assert_eq!(config.matches(&documented).count(), 1, "{documented}");
            config = config.replace(&documented, &format!("port_value: {here}}}"));
        }
        std::fs::write(folder.path().join("envoy.yaml"), config).unwrap();
        Self {
            to_admin: Line::to(([127, 0, 0, 1], admin).into()).await,
            folder,
            runtime,
            to_host,
            port,
            admin,
        }
    }

    pub(crate) async fn start(&self) -> Process {
        let args = "-c envoy.yaml --concurrency 1 --log-level warn --disable-hot-restart";
        let args: Vec<_> = args.split(' ').collect();
        let process = Process::start(self.folder.path(), &program(), &args);
        ready(self.admin, "/ready").await;
        until("Envoy", async || {
            TcpStream::connect(("127.0.0.1", self.port)).await.ok()
        })
        .await;
        process
    }

    pub(crate) async fn by_hand(&self, change: &str) {
        let (status, said) = http(self.admin, "POST", &format!("/runtime_modify?{change}"), "")
            .await
            .unwrap();
        assert_eq!(status, 200, "{said}");
    }

    /// Which Envoy it is.
    async fn version(&self) -> String {
        let (_, said) = http(self.admin, "GET", "/server_info", "").await.unwrap();
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        // Its commit, its version, how it was built.
        let version = said["version"].as_str().unwrap().split('/').nth(1);
        version.unwrap().to_owned()
    }

    /// Requests that this cluster has been sent.
    pub(crate) async fn requests(&self, cluster: &str) -> u64 {
        let filter = format!("/stats?filter=^cluster.{cluster}.upstream_rq_total");
        let (_, said) = http(self.admin, "GET", &filter, "").await.unwrap();
        let (_, count) = said.split_once(": ").unwrap();
        count.trim().parse().unwrap()
    }

    pub(crate) fn router(&self, memory: &MemoryStore, versions: &[VersionId; 2]) -> EnvoyRouter {
        let id = RouterId::new("edge-1").unwrap();
        let endpoint = llm_rollout::EndpointId::new("chat").unwrap();
        EnvoyRouter::builder(
            id.clone(),
            format!("http://127.0.0.1:{}", self.to_admin.port),
            &self.runtime,
            Split::steady(None, versions[0].clone(), Epoch::default()),
        )
        .cluster(versions[0].clone(), "chat-v1")
        .cluster(versions[1].clone(), "chat-v2")
        .memory(memory.router_memory(&endpoint, &id).unwrap())
        .open()
        .unwrap()
    }
}

fn program() -> String {
    std::env::var("LLM_E2E_ENVOY").expect("LLM_E2E_ENVOY: e2e/run envoy sets it")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs envoy: e2e/run envoy"]
async fn shares_stick_and_what_is_changed_by_hand_is_noticed() {
    let (edge, _engines) = Edge::new().await;
    let memory = MemoryStore::new();
    let router = edge.router(&memory, &[version(1), version(2)]);
    let _envoy = edge.start().await;
    shares_stick_grow_and_end(&router, edge.port, async || {
        edge.by_hand("llm.chat-v1=1000&llm.chat-v2=9000").await;
    })
    .await;
    // The operator's emergency, while this host does nothing.
    let state = router.observe(Fence::new(5)).await.unwrap();
    edge.by_hand("llm.chat-v1=10000&llm.chat-v2=0").await;
    let changed = router.observe(Fence::new(5)).await.unwrap();
    assert_eq!(
        (state.split.baseline, changed.split.baseline),
        (version(2), version(1))
    );
    // Nobody at all, and a cluster that is none of ours.
    edge.by_hand("llm.chat-v1=0&llm.chat-v2=0").await;
    let error = router.observe(Fence::new(5)).await.unwrap_err();
    assert!(error.to_string().contains("serves nobody"), "{error}");
    println!("ok      baseline changed by hand: noticed, and everybody taken away too");
    crate::verified("envoy", "Envoy", &edge.version().await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs envoy: e2e/run envoy"]
async fn what_envoy_counts_is_read_from_its_metrics() {
    let (edge, _engines) = Edge::new().await;
    let (baseline, candidate) = (version(1), version(2));
    let router = edge.router(&MemoryStore::new(), &[baseline.clone(), candidate.clone()]);
    let _envoy = edge.start().await;
    let state = router.observe(Fence::new(5)).await.unwrap();
    let third = order(1, Direction::Forward, 33.0, LEASE, &state);
    router.set(&third).await.unwrap();

    let metrics = format!("http://127.0.0.1:{}/stats/prometheus", edge.admin);
    let replies = Series::new("envoy_cluster_upstream_rq_xx");
    let source = ScrapeSource::builder()
        .labelled(baseline.clone(), &metrics, "envoy_cluster_name", "chat-v1")
        .labelled(candidate.clone(), &metrics, "envoy_cluster_name", "chat-v2")
        .ratio(
            "failed",
            replies.clone(),
            replies.is("envoy_response_code_class", "5"),
        )
        .build()
        .unwrap();
    let wanted = BTreeMap::from([("failed".to_owned(), MetricDef::Fault {})]);
    let query = Query {
        metrics: &wanted,
        epoch: Epoch::new(1),
        candidate: &candidate,
        baseline: &baseline,
    };
    let at = Timestamp::from_millis;
    // Its counters come with the first reply.
    ask(edge.port, "a").await.unwrap();
    let cursor = source.open(query, at(1_000)).await.unwrap();
    let by_candidate = candidates(edge.port).await.len() as u64;
    let reading = source.read(query, &cursor, at(2_000)).await.unwrap();
    let Increment::Binary {
        candidate,
        baseline,
    } = &reading.window.metrics["failed"]
    else {
        panic!("{reading:?}");
    };
    assert_eq!((candidate.n, candidate.k), (by_candidate, 0));
    assert_eq!((baseline.n, baseline.k), (400 - by_candidate, 0));
    println!(
        "ok      Envoy's own counters: {} of 400 requests by the candidate, {} by the baseline",
        candidate.n, baseline.n
    );
    crate::verified("scrape", "Envoy", &edge.version().await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs envoy: e2e/run envoy"]
async fn a_mirror_reaches_the_candidate_and_no_user() {
    let (edge, engines) = Edge::new().await;
    let memory = MemoryStore::new();
    let router = edge.router(&memory, &[version(1), version(2)]);
    let _envoy = edge.start().await;
    let mut state = router.observe(Fence::new(5)).await.unwrap();
    let mut mirrored = Vec::new();
    for (seq, share) in [(1, 100.0), (2, 25.5), (3, 0.0)] {
        let mut order = order(seq, Direction::Forward, 1.0, LEASE, &state);
        (order.split.share, order.split.mirror) = (Share::NONE, percent(share));
        if share == 0.0 {
            (order.split.candidate, order.split.lease) = (None, None);
        }
        state = router.set(&order).await.unwrap();
        assert_eq!(state.split, order.split);
        let (_, before) = engines[1].counts();
        assert!(candidates(edge.port).await.is_empty());
        // What is mirrored is on its way for longer than the user's answer.
        let mut last = None;
        until("the mirrored requests", async || {
            let now = engines[1].counts().1 - before;
            tokio::time::sleep(Duration::from_millis(200)).await;
            (last.replace(now) == Some(now)).then_some(())
        })
        .await;
        mirrored.push(last.unwrap());
    }
    // 102 of 400 are expected; fewer than 60 or more than 150 come about less than once in a million times.
    assert_eq!((mirrored[0], mirrored[2]), (400, 0), "{mirrored:?}");
    assert!((60..=150).contains(&mirrored[1]), "{mirrored:?}");
    let (answered, _) = engines[1].counts();
    assert_eq!(answered, 0);
    // A mirror is leased like a share.
    edge.by_hand("llm.mirror.chat-v2=7").await;
    let seen = router.observe(Fence::new(5)).await.unwrap();
    assert_eq!(
        (seen.split.mirror, seen.split.candidate),
        (percent(7.0), Some(version(2)))
    );
    println!(
        "ok      mirrored at 100, 25.5 and 0 %: {}, {} and {} of 400 requests, no user served by the candidate; changed by hand: noticed",
        mirrored[0], mirrored[1], mirrored[2]
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs envoy: e2e/run envoy"]
async fn a_share_ends_by_itself_and_restarts_are_noticed() {
    let short = Duration::from_secs(4);
    let (mut edge, _engines) = Edge::new().await;
    let memory = MemoryStore::new();
    let router = edge.router(&memory, &[version(1), version(2)]);
    let envoy = edge.start().await;
    let state = router.observe(Fence::new(5)).await.unwrap();
    let all = order(1, Direction::Forward, 100.0, short, &state);
    router.set(&all).await.unwrap();
    assert_eq!(ask(edge.port, "a").await.as_deref(), Some("v2"));
    // Nobody renews: every controller is dead, but the host lives.
    let ended = users_are_off(edge.port, Instant::now()).await;
    let lapsed = router.observe(Fence::new(5)).await.unwrap();
    assert!(lapsed.lapsed, "{lapsed:?}");
    println!(
        "ok      nobody renews a lease of 4 s: users off after {:.1} s",
        ended.as_secs_f64()
    );

    // The admin interface is cut off: the way back reaches Envoy all the same, and is told as in doubt.
    let state = router
        .set(&order(2, Direction::Forward, 100.0, LEASE, &lapsed))
        .await
        .unwrap();
    assert_eq!(ask(edge.port, "a").await.as_deref(), Some("v2"));
    edge.to_admin.cut().await;
    let began = Instant::now();
    let error = router
        .set(&order(3, Direction::Back, 0.0, LEASE, &state))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    let off = users_are_off(edge.port, began).await;
    println!(
        "ok      admin interface cut off during going back: users off after {:.1} s",
        off.as_secs_f64()
    );
    edge.to_admin.mend().await;
    drop(router);
    let router = edge.router(&memory, &[version(1), version(2)]);
    let back = until("the router", async || {
        router.observe(Fence::new(5)).await.ok()
    })
    .await;
    assert!(back.mark.is_some(), "{back:?}");

    // Everything is cut off: nobody can tell Envoy anything.
    let state = router
        .set(&order(4, Direction::End, 0.0, short, &back))
        .await
        .unwrap();
    let state = router
        .set(&order(5, Direction::Forward, 100.0, short, &state))
        .await
        .unwrap();
    assert_eq!(ask(edge.port, "a").await.as_deref(), Some("v2"));
    edge.to_host.cut().await;
    edge.to_admin.cut().await;
    let began = Instant::now();
    let error = router
        .set(&order(6, Direction::Back, 0.0, LEASE, &state))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    let off = users_are_off(edge.port, began).await;
    println!(
        "ok      Envoy cut off from everybody during going back, with a lease of 4 s: users off after {:.1} s",
        off.as_secs_f64()
    );
    drop(envoy);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs envoy: e2e/run envoy"]
async fn an_envoy_that_starts_anew_serves_the_recorded_baseline() {
    let (edge, _engines) = Edge::new().await;
    let memory = MemoryStore::new();
    let router = edge.router(&memory, &[version(1), version(2)]);
    let envoy = edge.start().await;
    let state = router.observe(Fence::new(5)).await.unwrap();
    let state = router
        .set(&order(1, Direction::Forward, 100.0, LEASE, &state))
        .await
        .unwrap();
    drop(envoy);
    let error = router.renew(state.at, state.clock).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    // Killed in the middle of a share: the baseline, until the share is ordered anew.
    let envoy = edge.start().await;
    assert!(candidates(edge.port).await.is_empty());
    let found = until("Envoy", async || router.observe(Fence::new(5)).await.ok()).await;
    assert!(
        found.lapsed && found.clock.boot != state.clock.boot,
        "{found:?}"
    );
    let again = router
        .set(&order(2, Direction::Forward, 100.0, LEASE, &found))
        .await
        .unwrap();
    assert!(!again.lapsed);
    let promoted = order(3, Direction::Promote, 0.0, LEASE, &again);
    router.set(&promoted).await.unwrap();
    drop(envoy);
    // Its configuration still says v1.
    let _envoy = edge.start().await;
    assert_eq!(candidates(edge.port).await.len(), 400);
    println!(
        "ok      killed during a share: baseline, lapsed, new boot; killed after a promotion: 400 of 400 sessions by the promoted version"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs envoy: e2e/run envoy"]
async fn it_passes_the_suite_of_routers() {
    let (edge, _engines) = Edge::new().await;
    let memory = MemoryStore::new();
    let _first = edge.router(&memory, &[version(1), version(2)]);
    let _envoy = edge.start().await;
    let subject = Conforming {
        port: edge.port,
        lease: Duration::from_secs(6),
        open: || Arc::new(edge.router(&memory, &[version(1), version(2)])) as Arc<dyn Forced>,
        router: Mutex::default(),
    };
    testing::router::suite(&subject).await.unwrap();
    println!("ok      the suite of routers");
}
