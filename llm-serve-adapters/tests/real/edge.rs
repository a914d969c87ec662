//! What the tests of proxies share: versions, orders, engines that only say who they are, and a line that can be cut.

use crate::process::{free_port, http_with, until};
use async_trait::async_trait;
use axum::Router;
use axum::extract::Request;
use llm_rollout::{
    Direction, Epoch, Fence, Order, Position, RolloutId, RouterState, Seq, Share, Split,
};
use llm_serve_adapters::host::{ErrorKind, Result, TrafficRouter};
use llm_serve_adapters::testing::router::Subject;
use llm_version_core::VersionId;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Longer than any test.
pub(crate) const LEASE: Duration = Duration::from_secs(60);

pub(crate) fn version(n: u8) -> VersionId {
    format!("chat/v{n}.0.0-{}", n.to_string().repeat(64))
        .parse()
        .unwrap()
}

pub(crate) fn percent(percent: f64) -> Share {
    Share::from_percent(percent).unwrap()
}

/// An order of fence 5 for the rollout from version 1 to version 2.
pub(crate) fn order(
    seq: u64,
    direction: Direction,
    share: f64,
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
    if share > 0.0 {
        split.candidate = Some(version(2));
        split.share = percent(share);
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

/// Which version answers this session, as "v1" or "v2".
pub(crate) async fn ask(port: u16, session: &str) -> Option<String> {
    let headers = format!("X-Session-Id: {session}\r\n");
    let (status, body) = http_with(port, "GET", "/", &headers, "").await?;
    (status == 200).then_some(body)
}

/// Of 400 sessions, those that the candidate answers.
pub(crate) async fn candidates(port: u16) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for session in 0..400 {
        if ask(port, &format!("session-{session}")).await.as_deref() == Some("v2") {
            found.insert(session);
        }
    }
    found
}

/// An engine that says who it is, and counts whom it answers.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    pub(crate) port: u16,
    answered: Arc<AtomicUsize>,
    mirrored: Arc<AtomicUsize>,
}

impl Engine {
    pub(crate) async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let engine = Self {
            port: listener.local_addr().unwrap().port(),
            answered: Arc::default(),
            mirrored: Arc::default(),
        };
        let counts = engine.clone();
        let app = Router::new().fallback(move |request: Request| async move {
            let host = request.headers().get("host");
            let shadow = host.is_some_and(|host| {
                let host = host.to_str().unwrap();
                host.split(':').next().unwrap().ends_with("-shadow")
            });
            let count = if shadow {
                &counts.mirrored
            } else {
                &counts.answered
            };
            count.fetch_add(1, Ordering::Relaxed);
            name
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
        engine
    }

    /// Requests of users, and mirrored ones.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (
            self.answered.load(Ordering::Relaxed),
            self.mirrored.load(Ordering::Relaxed),
        )
    }
}

/// A line between two programs, which can be cut.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) port: u16,
    address: SocketAddr,
    carrying: JoinSet<()>,
}

impl Line {
    pub(crate) async fn to(address: SocketAddr) -> Self {
        let mut line = Self {
            port: free_port(),
            address,
            carrying: JoinSet::new(),
        };
        line.mend().await;
        line
    }

    /// Nobody gets through any more.
    pub(crate) async fn cut(&mut self) {
        self.carrying.shutdown().await;
    }

    /// It carries again.
    pub(crate) async fn mend(&mut self) {
        let address = self.address;
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        self.carrying.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(address).await {
                        let _ended = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
    }
}

/// Shares stick and grow, stale orders are refused, what is changed by hand is noticed and goes away with going back, and a promotion
/// reaches everybody. `nine_in_ten` changes the share by hand to 90 %.
pub(crate) async fn shares_stick_grow_and_end(
    router: &impl TrafficRouter,
    port: u16,
    nine_in_ten: impl AsyncFnOnce(),
) {
    let first = router.observe(Fence::new(5)).await.unwrap();
    assert_eq!(
        (first.split.baseline.clone(), first.split.share),
        (version(1), Share::NONE)
    );
    let order_ten = order(1, Direction::Forward, 10.0, LEASE, &first);
    let ten = router.set(&order_ten).await.unwrap();
    assert_eq!(ten.split, order_ten.split);
    let small = candidates(port).await;
    // 40 are expected; fewer than 15 or more than 75 of 400 come about once in a hundred thousand hashes.
    assert!((15..=75).contains(&small.len()), "{}", small.len());
    let fifty = router
        .set(&order(2, Direction::Forward, 50.0, LEASE, &ten))
        .await
        .unwrap();
    let large = candidates(port).await;
    assert!(
        small.is_subset(&large) && (140..=260).contains(&large.len()),
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
    nine_in_ten().await;
    let seen = router.renew(fifty.at, fifty.clock).await.unwrap();
    assert_eq!(seen.split.share, percent(90.0));
    let back = router
        .set(&order(3, Direction::Back, 0.0, LEASE, &seen))
        .await
        .unwrap();
    assert_eq!((back.split.share, back.mark.is_some()), (Share::NONE, true));
    assert!(candidates(port).await.is_empty());
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
    assert_eq!(candidates(port).await.len(), 400);
    let promoted = router
        .set(&order(7, Direction::Promote, 0.0, LEASE, &all))
        .await
        .unwrap();
    assert_eq!(
        (promoted.split.baseline.clone(), promoted.split.share),
        (version(2), Share::NONE)
    );
    assert_eq!(candidates(port).await.len(), 400);
    println!("ok      promoted: 400 of 400 sessions");
}

/// How long it takes until nobody gets the candidate any more.
pub(crate) async fn users_are_off(port: u16, since: Instant) -> Duration {
    until("the end of the share", async || {
        (ask(port, "a").await? == "v1").then_some(())
    })
    .await;
    let took = since.elapsed();
    assert!(candidates(port).await.is_empty());
    took
}

/// A proxy in the suite of routers.
pub(crate) struct Conforming<O> {
    pub(crate) port: u16,
    pub(crate) lease: Duration,
    pub(crate) open: O,
    pub(crate) router: Mutex<Option<Arc<dyn Forced>>>,
}

/// What the suite needs beside the trait.
#[async_trait]
pub(crate) trait Forced: TrafficRouter {
    async fn force(&self) -> Result<()>;
}

#[async_trait]
impl Forced for llm_serve_adapters::router::EnvoyRouter {
    async fn force(&self) -> Result<()> {
        self.force_baseline("test").await
    }
}

#[async_trait]
impl Forced for llm_serve_adapters::router::HaproxyRouter {
    async fn force(&self) -> Result<()> {
        self.force_baseline("test").await
    }
}

#[async_trait]
impl<O: Fn() -> Arc<dyn Forced> + Sync> Subject for Conforming<O> {
    fn versions(&self) -> [VersionId; 2] {
        [version(1), version(2)]
    }

    async fn open(&self) -> Result<Arc<dyn TrafficRouter>> {
        let router = (self.open)();
        *self.router.lock().unwrap() = Some(Arc::clone(&router));
        Ok(router)
    }

    async fn ask(&self) -> Option<VersionId> {
        match ask(self.port, "somebody").await?.as_str() {
            "v1" => Some(version(1)),
            "v2" => Some(version(2)),
            _ => None,
        }
    }

    async fn force_baseline(&self) -> Option<Result<()>> {
        let router = self.router.lock().unwrap().clone()?;
        Some(router.force().await)
    }

    fn lease(&self) -> Duration {
        self.lease
    }
}
