//! Splits served by a real HAProxy: shares that stick and grow, changes by hand, orders that come late, a lease that runs out.

use crate::process::{Process, free_port, http_with, until, version_of};
use llm_rollout::{
    Direction, Epoch, Fence, Order, Position, RolloutId, RouterId, RouterState, Seq, Share, Split,
};
use llm_serve_adapters::host::{ErrorKind, StateStore as _, TrafficRouter as _};
use llm_serve_adapters::router::HaproxyRouter;
use llm_serve_adapters::store::MemoryStore;
use llm_version_core::VersionId;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// When a share ends that nobody renews, as HAProxy is told.
const EXPIRE: Duration = Duration::from_secs(2);

struct Edge {
    folder: TempDir,
    port: u16,
}

impl Edge {
    fn new() -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let here = folder.path().display();
        let config = format!(
            "global
  stats socket {here}/admin.sock mode 600 level admin
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
backend llm_split
  stick-table type string len 16 size 16 expire {}s store gpt0
frontend chat
  bind 127.0.0.1:{port}
  http-request set-var(txn.share) str(share),table_gpt0(llm_split)
  http-request set-var(txn.place) req.hdr(x-session-id),xxh32(7),mod(10000) if {{ req.hdr(x-session-id) -m found }}
  http-request set-var(txn.place) rand(10000) unless {{ req.hdr(x-session-id) -m found }}
  http-request set-var(txn.candidate) str(candidate),map({here}/chat.map,none)
  http-request set-var(txn.baseline) str(baseline),map({here}/chat.map,chat-v1)
  use_backend %[var(txn.candidate)] if {{ var(txn.place),sub(txn.share) lt 0 }}
  use_backend %[var(txn.baseline)]
backend chat-v1
  http-request return status 200 content-type text/plain string v1
backend chat-v2
  http-request return status 200 content-type text/plain string v2
",
            EXPIRE.as_secs()
        );
        std::fs::write(folder.path().join("haproxy.cfg"), config).unwrap();
        std::fs::write(
            folder.path().join("chat.map"),
            "baseline chat-v1\ncandidate chat-v1\n",
        )
        .unwrap();
        Self { folder, port }
    }

    async fn start(&self) -> Process {
        let process = Process::start(self.folder.path(), "haproxy", &["-db", "-f", "haproxy.cfg"]);
        until("HAProxy", async || self.ask("s").await).await;
        process
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("admin.sock")
    }

    fn map(&self) -> String {
        self.folder.path().join("chat.map").display().to_string()
    }

    /// Which version answers this session.
    async fn ask(&self, session: &str) -> Option<String> {
        let headers = format!("X-Session-Id: {session}\r\n");
        let (status, body) = http_with(self.port, "GET", "/", &headers, "").await?;
        (status == 200).then_some(body)
    }

    /// Of 400 sessions, those that the candidate answers.
    async fn candidates(&self) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        for session in 0..400 {
            if self.ask(&format!("session-{session}")).await.as_deref() == Some("v2") {
                found.insert(session);
            }
        }
        found
    }

    async fn by_hand(&self, command: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        stream
            .write_all(format!("{command}\n").as_bytes())
            .await
            .unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        said
    }

    fn router(&self, memory: &MemoryStore) -> HaproxyRouter {
        let id = RouterId::new("edge-1").unwrap();
        let endpoint = llm_rollout::EndpointId::new("chat").unwrap();
        HaproxyRouter::builder(
            id.clone(),
            self.socket(),
            Split::steady(None, version(1), Epoch::default()),
        )
        .split_in("llm_split", self.map())
        .backend(version(1), "chat-v1")
        .backend(version(2), "chat-v2")
        .memory(memory.router_memory(&endpoint, &id).unwrap())
        .open()
        .unwrap()
    }
}

fn version(n: u8) -> VersionId {
    format!("chat/v{n}.0.0-{}", n.to_string().repeat(64))
        .parse()
        .unwrap()
}

fn order(
    seq: u64,
    direction: Direction,
    percent: f64,
    lease: Duration,
    last: &RouterState,
) -> Order {
    let rollout = Some(RolloutId::new("chat-v2").unwrap());
    let baseline = if direction == Direction::Promote {
        version(2)
    } else {
        version(1)
    };
    let mut split = Split::steady(rollout, baseline, Epoch::new(seq));
    if percent > 0.0 {
        split.candidate = Some(version(2));
        split.share = Share::from_percent(percent).unwrap();
        split.lease = Some(lease);
    }
    Order {
        at: Position {
            fence: Fence::new(5),
            seq: Seq::new(seq),
        },
        direction,
        split,
        clock: last.clock,
    }
}

const LEASE: Duration = Duration::from_secs(20);

#[tokio::test]
#[ignore = "needs haproxy: e2e/run haproxy"]
async fn shares_stick_grow_and_end() {
    let edge = Edge::new();
    let _haproxy = edge.start().await;
    let memory = MemoryStore::new();
    let router = edge.router(&memory);
    let first = router.observe(Fence::new(5)).await.unwrap();
    assert_eq!(
        (first.split.baseline.clone(), first.split.share),
        (version(1), Share::NONE)
    );

    let ten = router
        .set(&order(1, Direction::Forward, 10.0, LEASE, &first))
        .await
        .unwrap();
    assert_eq!(ten.split.share, Share::from_percent(10.0).unwrap());
    let small = edge.candidates().await;
    // 40 are expected; fewer than 15 or more than 75 of 400 come about once in a hundred thousand hashes.
    assert!((15..=75).contains(&small.len()), "{}", small.len());
    let fifty = router
        .set(&order(2, Direction::Forward, 50.0, LEASE, &ten))
        .await
        .unwrap();
    let large = edge.candidates().await;
    assert!(
        small.is_subset(&large) && large.len() > 140,
        "{} {}",
        small.len(),
        large.len()
    );
    println!(
        "ok      10 %: {} of 400 sessions; 50 %: {}, those among them",
        small.len(),
        large.len()
    );

    let error = router
        .set(&order(1, Direction::Forward, 90.0, LEASE, &fifty))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    let error = router.observe(Fence::new(4)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    println!("ok      stale order and older fence refused");

    // An operator turns it up by hand: seen, and not prolonged.
    let at = fifty.at;
    edge.by_hand("set table llm_split key share data.gpt0 9000")
        .await;
    let seen = router.renew(at, fifty.clock).await.unwrap();
    assert_eq!(seen.split.share, Share::from_percent(90.0).unwrap());
    let back = router
        .set(&order(3, Direction::Back, 0.0, LEASE, &seen))
        .await
        .unwrap();
    assert_eq!((back.split.share, back.mark.is_some()), (Share::NONE, true));
    assert!(edge.candidates().await.is_empty());
    let error = router
        .set(&order(4, Direction::Forward, 10.0, LEASE, &back))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("go back"), "{error}");
    println!("ok      changed by hand: noticed; gone back, raises refused");

    // Another rollout, promoted.
    let end = router
        .set(&order(5, Direction::End, 0.0, LEASE, &back))
        .await
        .unwrap();
    let all = router
        .set(&order(6, Direction::Forward, 100.0, LEASE, &end))
        .await
        .unwrap();
    assert_eq!(edge.candidates().await.len(), 400);
    let promoted = router
        .set(&order(7, Direction::Promote, 0.0, LEASE, &all))
        .await
        .unwrap();
    assert_eq!(
        (promoted.split.baseline.clone(), promoted.split.share),
        (version(2), Share::NONE)
    );
    assert_eq!(edge.candidates().await.len(), 400);
    println!("ok      promoted: 400 of 400 sessions");

    // A lease shorter than the table's would be no lease.
    let short = order(8, Direction::Forward, 10.0, EXPIRE / 2, &promoted);
    let mut short = short;
    short.split.baseline = version(2);
    short.split.candidate = Some(version(1));
    let error = router.set(&short).await.unwrap_err();
    assert!(error.to_string().contains("beyond its lease"), "{error}");
    assert_eq!(edge.candidates().await.len(), 400);
}

#[tokio::test]
#[ignore = "needs haproxy: e2e/run haproxy"]
async fn a_share_ends_by_itself() {
    let edge = Edge::new();
    let haproxy = edge.start().await;
    let memory = MemoryStore::new();
    let router = edge.router(&memory);
    let state = router.observe(Fence::new(5)).await.unwrap();
    let mut state = router
        .set(&order(1, Direction::Forward, 100.0, LEASE, &state))
        .await
        .unwrap();
    // Renewed, it outlives its expiry.
    let began = Instant::now();
    while began.elapsed() < EXPIRE + Duration::from_secs(1) {
        state = router.renew(state.at, state.clock).await.unwrap();
        assert_eq!(edge.ask("a").await.as_deref(), Some("v2"));
        tokio::time::sleep(EXPIRE / 4).await;
    }
    // Nobody renews: every controller is dead.
    let began = Instant::now();
    until("the end of the share", async || {
        (edge.ask("a").await? == "v1").then_some(())
    })
    .await;
    let ended = began.elapsed();
    assert!(ended <= EXPIRE + Duration::from_millis(500), "{ended:?}");
    assert!(edge.candidates().await.is_empty());
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
    assert_eq!(edge.ask("a").await.as_deref(), Some("v2"));
    hide(&edge.socket());
    let began = Instant::now();
    let error = router
        .set(&order(3, Direction::Back, 0.0, LEASE, &again))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    until("the end of the share", async || {
        (edge.ask("a").await? == "v1").then_some(())
    })
    .await;
    println!(
        "ok      admin socket gone during going back: users off after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    drop(haproxy);

    // HAProxy starts anew: what was told while it could not be reached is remembered, over a start of the router too.
    let _haproxy = edge.start().await;
    drop(router);
    let router = edge.router(&memory);
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
