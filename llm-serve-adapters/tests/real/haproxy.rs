//! Splits served by a real HAProxy: shares that stick and grow, changes by hand, orders that come late, a lease that runs out.

use crate::edge::{
    Conforming, Engine, Forced, LEASE, ask, candidates, order, shares_stick_grow_and_end,
    users_are_off, version,
};
use crate::process::{Process, free_port, until, version_of};
use llm_rollout::{Direction, Epoch, Fence, RouterId, Share, Split};
use llm_serve_adapters::host::{ErrorKind, StateStore as _, TrafficRouter as _};
use llm_serve_adapters::router::HaproxyRouter;
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::testing;
use llm_version_core::VersionId;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

/// When a share ends that nobody renews, as HAProxy is told.
const EXPIRE: Duration = Duration::from_secs(3);

/// A HAProxy between two engines.
pub(crate) struct Edge {
    folder: TempDir,
    pub(crate) port: u16,
    /// Where its metrics are.
    pub(crate) metrics: u16,
}

impl Edge {
    async fn new(expire: Duration) -> Self {
        let engines = [Engine::start("v1").await, Engine::start("v2").await];
        Self::between(engines.map(|engine| engine.port), expire)
    }

    /// The configuration of the documentation, elsewhere.
    pub(crate) fn between(engines: [u16; 2], expire: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (port, metrics) = (free_port(), free_port());
        let mut config = include_str!("../../src/router/haproxy.cfg").to_owned();
        let here = folder.path().display();
        for (documented, count, here) in [
            ("/run/haproxy/", 1, format!("{here}/")),
            ("/etc/haproxy/", 2, format!("{here}/")),
            ("expire 45s", 1, format!("expire {}s", expire.as_secs())),
            ("bind :8080", 1, format!("bind 127.0.0.1:{port}")),
            (":8405", 1, format!(":{metrics}")),
            (":8001", 1, format!(":{}", engines[0])),
            (":8002", 1, format!(":{}", engines[1])),
        ] {
            assert_eq!(config.matches(documented).count(), count, "{documented}");
            config = config.replace(documented, &here);
        }
        std::fs::write(folder.path().join("haproxy.cfg"), config).unwrap();
        let map = "baseline chat-v1\ncandidate chat-v1\n";
        std::fs::write(folder.path().join("chat.map"), map).unwrap();
        Self {
            folder,
            port,
            metrics,
        }
    }

    pub(crate) async fn start(&self) -> Process {
        let process = Process::start(self.folder.path(), "haproxy", &["-db", "-f", "haproxy.cfg"]);
        until("HAProxy", async || {
            UnixStream::connect(self.socket()).await.ok()?;
            TcpStream::connect(("127.0.0.1", self.port)).await.ok()
        })
        .await;
        process
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("admin.sock")
    }

    fn map(&self) -> String {
        self.folder.path().join("chat.map").display().to_string()
    }

    pub(crate) async fn by_hand(&self, command: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        stream
            .write_all(format!("{command}\n").as_bytes())
            .await
            .unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        said
    }

    pub(crate) fn router(&self, memory: &MemoryStore, versions: &[VersionId; 2]) -> HaproxyRouter {
        let id = RouterId::new("edge-1").unwrap();
        let endpoint = llm_rollout::EndpointId::new("chat").unwrap();
        HaproxyRouter::builder(
            id.clone(),
            self.socket(),
            Split::steady(None, versions[0].clone(), Epoch::default()),
        )
        .split_in("llm_split", self.map())
        .backend(versions[0].clone(), "chat-v1")
        .backend(versions[1].clone(), "chat-v2")
        .memory(memory.router_memory(&endpoint, &id).unwrap())
        .open()
        .unwrap()
    }
}

#[tokio::test]
#[ignore = "needs haproxy: e2e/run haproxy"]
async fn shares_stick_and_what_is_changed_by_hand_is_noticed() {
    let edge = Edge::new(EXPIRE).await;
    let _haproxy = edge.start().await;
    let memory = MemoryStore::new();
    let router = edge.router(&memory, &[version(1), version(2)]);
    shares_stick_grow_and_end(&router, edge.port, async || {
        edge.by_hand("set table llm_split key share data.gpt0 9000")
            .await;
    })
    .await;

    // A lease shorter than the table's would be no lease.
    let promoted = router.observe(Fence::new(5)).await.unwrap();
    let mut short = order(8, Direction::Forward, 10.0, EXPIRE / 2, &promoted);
    short.split.baseline = version(2);
    short.split.candidate = Some(version(1));
    let error = router.set(&short).await.unwrap_err();
    assert!(error.to_string().contains("beyond its lease"), "{error}");
    assert_eq!(candidates(edge.port).await.len(), 400);
}

#[tokio::test]
#[ignore = "needs haproxy: e2e/run haproxy"]
async fn a_share_ends_by_itself() {
    let edge = Edge::new(EXPIRE).await;
    let haproxy = edge.start().await;
    let memory = MemoryStore::new();
    let router = edge.router(&memory, &[version(1), version(2)]);
    let state = router.observe(Fence::new(5)).await.unwrap();
    let mut state = router
        .set(&order(1, Direction::Forward, 100.0, LEASE, &state))
        .await
        .unwrap();
    // Renewed, it outlives its expiry.
    let began = Instant::now();
    while began.elapsed() < EXPIRE + Duration::from_secs(1) {
        state = router.renew(state.at, state.clock).await.unwrap();
        assert_eq!(ask(edge.port, "a").await.as_deref(), Some("v2"));
        tokio::time::sleep(EXPIRE / 4).await;
    }
    // Nobody renews: every controller is dead.
    let ended = users_are_off(edge.port, Instant::now()).await;
    let lapsed = router.observe(Fence::new(5)).await.unwrap();
    assert!(lapsed.lapsed);
    let error = router.renew(lapsed.at, lapsed.clock).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    println!(
        "ok      nobody renews: users off after {:.1} s",
        ended.as_secs_f64()
    );

    // The admin socket is gone while the rollout goes back: the users are taken off all the same.
    let again = router
        .set(&order(2, Direction::Forward, 100.0, LEASE, &lapsed))
        .await
        .unwrap();
    assert_eq!(ask(edge.port, "a").await.as_deref(), Some("v2"));
    hide(&edge.socket());
    let began = Instant::now();
    let error = router
        .set(&order(3, Direction::Back, 0.0, LEASE, &again))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    println!(
        "ok      admin socket gone during going back: users off after {:.1} s",
        users_are_off(edge.port, began).await.as_secs_f64()
    );
    drop(haproxy);

    // HAProxy starts anew: what was told while it could not be reached is remembered, over a start of the router too.
    let _haproxy = edge.start().await;
    drop(router);
    let router = edge.router(&memory, &[version(1), version(2)]);
    let state = router.observe(Fence::new(5)).await.unwrap();
    assert!(
        state.mark.is_some() && state.clock.boot != again.clock.boot,
        "{state:?}"
    );
    assert_eq!(
        (state.split.share, state.split.baseline.clone()),
        (Share::NONE, version(1))
    );
    let error = router
        .set(&order(4, Direction::Forward, 10.0, LEASE, &state))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("go back"), "{error}");
    println!("ok      HAProxy and router started anew: still gone back");
    crate::verified("haproxy", "HAProxy", &version_of("haproxy", "-v"));

    router.force_baseline("page 4711").await.unwrap();
    assert_eq!(
        router.observe(Fence::new(5)).await.unwrap().latch,
        Some(version(1))
    );
}

fn hide(socket: &Path) {
    std::fs::rename(socket, socket.with_extension("hidden")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs haproxy: e2e/run haproxy"]
async fn it_passes_the_suite_of_routers() {
    let edge = Edge::new(Duration::from_secs(5)).await;
    let _haproxy = edge.start().await;
    let memory = MemoryStore::new();
    let subject = Conforming {
        port: edge.port,
        lease: Duration::from_secs(6),
        open: || Arc::new(edge.router(&memory, &[version(1), version(2)])) as Arc<dyn Forced>,
        router: Mutex::default(),
    };
    testing::router::suite(&subject).await.unwrap();
    println!("ok      the suite of routers");
}
