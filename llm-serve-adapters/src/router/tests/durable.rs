//! What survives a restart, and what happens when it cannot be made durable.

use super::*;
use crate::host::{self, Clock, ErrorKind, RouterMemory, TrafficRouter};
use crate::router::{InProcessRouter, Key, Pin, Reason, Role};
use async_trait::async_trait;
use llm_rollout::RouterId;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Debug, Default)]
pub(crate) struct Cell {
    bytes: Mutex<Option<Vec<u8>>>,
    pub(crate) broken: AtomicBool,
}

impl RouterMemory for Cell {
    fn load(&self) -> host::Result<Option<Vec<u8>>> {
        Ok(self.bytes.lock().unwrap().clone())
    }

    fn save(&self, record: &[u8]) -> host::Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(host::Error::transient("the disk is full"));
        }
        *self.bytes.lock().unwrap() = Some(record.to_vec());
        Ok(())
    }
}

#[derive(Debug, Default)]
pub(crate) struct Virtual(pub(crate) AtomicU64);

#[async_trait]
impl Clock for Virtual {
    fn now(&self) -> Timestamp {
        at(self.0.load(Ordering::Relaxed))
    }

    async fn sleep(&self, _: Duration) {}
}

struct World {
    memory: Arc<Cell>,
    clock: Arc<Virtual>,
}

impl World {
    fn new() -> Self {
        Self {
            memory: Arc::default(),
            clock: Arc::default(),
        }
    }

    fn open(&self) -> host::Result<InProcessRouter> {
        let (memory, clock) = (Arc::clone(&self.memory), Arc::clone(&self.clock));
        InProcessRouter::builder(RouterId::new("r1").unwrap(), first())
            .memory(memory)
            .clock(clock)
            .open()
    }

    fn at(&self, ms: u64) {
        self.clock.0.store(ms, Ordering::Relaxed);
    }
}

fn served(router: &InProcessRouter) -> VersionId {
    let decision = router.decide(&Key::session(b"k"), router.now());
    decision.version().unwrap().id().as_ref().clone()
}

#[tokio::test]
async fn a_promotion_survives_a_restart_whatever_was_configured() {
    let world = World::new();
    let router = world.open().unwrap();
    let clock = router.state().clock;
    router.set(&forward(1, 1, 1, 100.0, clock)).await.unwrap();
    router
        .set(&steady(Direction::Promote, 1, 2, 2, 2, clock))
        .await
        .unwrap();
    let before = router.state();
    drop(router);
    let router = world.open().unwrap();
    assert_eq!(served(&router), version(2));
    let after = router.state();
    assert_ne!(after.clock.boot, before.clock.boot);
    assert_eq!(
        ErrorKind::Fenced,
        router.observe(Fence::new(0)).await.unwrap_err().kind()
    );
    assert!(!after.lapsed);
    assert_eq!(
        (after.fence, after.at, after.split),
        (before.fence, before.at, before.split)
    );
}

#[tokio::test]
async fn a_share_does_not_survive_a_restart() {
    let world = World::new();
    let router = world.open().unwrap();
    let clock = router.state().clock;
    router.set(&forward(1, 1, 1, 100.0, clock)).await.unwrap();
    assert_eq!(served(&router), version(2));
    drop(router);
    let router = world.open().unwrap();
    assert_eq!(served(&router), version(1));
    let decision = router.decide(&Key::session(b"k").pinned(Pin::Candidate), router.now());
    assert_eq!(
        (decision.role(), decision.reason(), decision.randomised()),
        (Role::Baseline, Reason::Lapsed, false)
    );
    let state = router.state();
    assert!(state.lapsed);
    assert_eq!(state.at, position(1, 1));
    let clock = state.clock;
    assert!(router.renew(position(1, 1), clock).await.is_err());
    assert!(router.set(&forward(2, 2, 1, 100.0, clock)).await.is_err());
    router.set(&forward(2, 2, 2, 100.0, clock)).await.unwrap();
    assert_eq!(served(&router), version(2));
}

#[tokio::test]
async fn mark_and_latch_survive_a_restart() {
    let world = World::new();
    let router = world.open().unwrap();
    let clock = router.state().clock;
    router.set(&forward(1, 1, 1, 100.0, clock)).await.unwrap();
    router.force_baseline("page 4711").unwrap();
    router
        .set(&steady(Direction::Back, 1, 2, 2, 1, clock))
        .await
        .unwrap();
    drop(router);
    let state = world.open().unwrap().state();
    assert_eq!(
        (state.mark, state.latch),
        (Some(rollout("a")), Some(version(1)))
    );
    assert!(!state.lapsed);
}

#[test]
fn a_damaged_record_is_an_error_that_names_it_and_nothing_is_overwritten() {
    for damaged in [
        &b"{\"format\":\"1.0\""[..],
        b"",
        b"null",
        b"{\"format\":\"1.0\"}",
        b"{\"format\":\"2.0\"}",
    ] {
        let world = World::new();
        *world.memory.bytes.lock().unwrap() = Some(damaged.to_vec());
        let error = world.open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent);
        assert!(error.to_string().contains("router r1"), "{error}");
        assert_eq!(world.memory.bytes.lock().unwrap().as_deref(), Some(damaged));
    }
}

#[test]
fn unknown_fields_of_a_newer_minor_are_ignored() {
    let world = World::new();
    drop(world.open().unwrap());
    let bytes = world.memory.bytes.lock().unwrap().clone().unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    record["format"] = "1.9".into();
    record["colour"] = "green".into();
    *world.memory.bytes.lock().unwrap() = Some(serde_json::to_vec(&record).unwrap());
    world.open().unwrap();
}

#[tokio::test]
async fn a_raise_that_cannot_be_made_durable_is_not_served() {
    let world = World::new();
    let router = world.open().unwrap();
    let clock = router.state().clock;
    world.memory.broken.store(true, Ordering::Relaxed);
    for order in [
        forward(1, 1, 1, 100.0, clock),
        steady(Direction::Promote, 1, 1, 1, 2, clock),
    ] {
        let error = router.set(&order).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient);
        assert_eq!(served(&router), version(1));
    }
    assert!(router.observe(Fence::new(1)).await.is_err());
    world.memory.broken.store(false, Ordering::Relaxed);
    router.set(&forward(1, 1, 1, 100.0, clock)).await.unwrap();
    assert_eq!(served(&router), version(2));
}

#[tokio::test]
async fn going_back_takes_effect_first_and_is_acknowledged_only_once_durable() {
    let world = World::new();
    let router = world.open().unwrap();
    let clock = router.state().clock;
    router.set(&forward(1, 1, 1, 100.0, clock)).await.unwrap();
    world.memory.broken.store(true, Ordering::Relaxed);
    let back = steady(Direction::Back, 1, 2, 2, 1, clock);
    for _ in 0..2 {
        assert_eq!(
            router.set(&back).await.unwrap_err().kind(),
            ErrorKind::Transient
        );
        assert_eq!(served(&router), version(1));
    }
    world.memory.broken.store(false, Ordering::Relaxed);
    router.set(&back).await.unwrap();
    drop(router);
    assert_eq!(world.open().unwrap().state().mark, Some(rollout("a")));
}

#[tokio::test]
async fn forcing_works_without_a_disk_and_says_so() {
    let world = World::new();
    let router = world.open().unwrap();
    let clock = router.state().clock;
    router.set(&forward(1, 1, 1, 100.0, clock)).await.unwrap();
    world.memory.broken.store(true, Ordering::Relaxed);
    assert_eq!(
        router.force_baseline("page 4711").unwrap_err().kind(),
        ErrorKind::Transient
    );
    assert_eq!(served(&router), version(1));
    assert_eq!(
        router.decide(&Key::session(b"k"), at(0)).reason(),
        Reason::Forced
    );
    world.memory.broken.store(false, Ordering::Relaxed);
    router.force_baseline("page 4711").unwrap();
    drop(router);
    assert_eq!(world.open().unwrap().state().latch, Some(version(1)));
}

#[tokio::test]
async fn the_share_lapses_on_the_routers_own_clock() {
    let world = World::new();
    let router = world.open().unwrap();
    let clock = router.state().clock;
    router.set(&forward(1, 1, 1, 100.0, clock)).await.unwrap();
    world.at(59_999);
    assert_eq!(served(&router), version(2));
    world.at(60_000);
    assert_eq!(served(&router), version(1));
    assert_eq!(
        router.decide(&Key::session(b"k"), router.now()).reason(),
        Reason::Lapsed
    );
    assert_eq!(
        router
            .renew(position(1, 1), clock)
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Permanent
    );
}

#[tokio::test]
async fn a_volatile_router_starts_with_what_it_is_given_less_any_share() {
    let split = forward(1, 1, 3, 100.0, RouterClock::default()).split;
    let router = InProcessRouter::builder(RouterId::new("r1").unwrap(), split)
        .open()
        .unwrap();
    assert_eq!(served(&router), version(1));
    assert!(router.state().lapsed);
}

#[tokio::test]
async fn a_router_that_has_forgotten_is_led_back_by_no_order_of_before() {
    // Rollout "b" has been promoted since: the store says so.
    let split = Split::steady(Some(rollout("b")), version(3), Epoch::new(5));
    let router = InProcessRouter::builder(RouterId::new("r1").unwrap(), split)
        .open()
        .unwrap();
    let clock = router.state().clock;
    for direction in [Direction::End, Direction::Promote, Direction::Back] {
        let late = steady(direction, 2, 10, 4, 1, clock);
        assert!(router.set(&late).await.is_err(), "{direction:?}");
        assert_eq!(served(&router), version(3));
    }
    assert!(router.set(&forward(2, 10, 4, 100.0, clock)).await.is_err());
    let newer = steady(Direction::End, 2, 25, 5, 3, clock);
    assert!(router.set(&newer).await.is_ok());
    // From here on its place tells how old an order is.
    let restored = steady(Direction::Back, 3, 4, 1, 1, clock);
    assert!(router.set(&restored).await.is_ok());
    assert_eq!(served(&router), version(1));
}
