//! What it does with routers that it cannot reach, read, or tell.

use crate::common::{Cuttable, Fixed, Host, Reads, alike, id, plan, version};
use async_trait::async_trait;
use llm_rollout::{
    Cause, Epoch, Fence, Order, Phase, Position, RouterClock, RouterId, RouterState, Share, Split,
    Timestamp,
};
use llm_serve_adapters::host::{Clock, Error, Result, RouterCapabilities, Support, TrafficRouter};
use llm_serve_adapters::router::InProcessRouter;
use llm_serve_adapters::{AdministerError, CommandError, SubmitError, Supersede, SystemClock};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Counts how often somebody goes to sleep by it.
#[derive(Debug, Clone)]
struct Counting(Arc<Fixed>, Arc<AtomicU64>);

impl Counting {
    fn new() -> Self {
        Self(Arc::new(Fixed::new()), Arc::default())
    }

    fn slept(&self) -> u64 {
        self.1.swap(0, Ordering::SeqCst)
    }
}

#[async_trait]
impl Clock for Counting {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    async fn sleep(&self, duration: Duration) {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.sleep(duration).await;
    }
}

/// What it does with a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Line {
    #[default]
    Good,
    Cut,
    /// It cannot be read, and hears all the same.
    Blind,
    /// It can be read, and takes no orders.
    Deaf,
    /// It does what it is told, and its answers get lost.
    Mute,
}

type Change = fn(&mut RouterState);

/// A second gateway that counts what it is asked, behind a line that may be bad.
#[derive(Debug, Clone)]
struct Gateway {
    router: Arc<InProcessRouter>,
    line: Arc<Mutex<Line>>,
    /// What it says is changed on the way.
    says: Arc<Mutex<Option<Change>>>,
    observed: Arc<AtomicU64>,
    renewed: Arc<AtomicU64>,
    can: RouterCapabilities,
}

impl Gateway {
    fn open() -> Self {
        let first = Split::steady(None, version(1), Epoch::default());
        let router = InProcessRouter::builder(RouterId::new("second").unwrap(), first);
        let router = router.clock(Arc::new(SystemClock::new())).open().unwrap();
        Self {
            can: router.capabilities(),
            router: Arc::new(router),
            line: Arc::default(),
            says: Arc::default(),
            observed: Arc::default(),
            renewed: Arc::default(),
        }
    }

    fn is(&self, line: Line) {
        *self.line.lock().unwrap() = line;
    }

    fn reached(&self, lines: &[Line]) -> Result<()> {
        let line = *self.line.lock().unwrap();
        if lines.contains(&line) {
            return Err(Error::transient(format!("the line is {line:?}")));
        }
        Ok(())
    }

    fn share(&self) -> Share {
        self.router.state().split.share
    }

    fn counted(&self) -> (u64, u64) {
        let count = |of: &AtomicU64| of.swap(0, Ordering::SeqCst);
        (count(&self.observed), count(&self.renewed))
    }
}

#[async_trait]
impl TrafficRouter for Gateway {
    fn id(&self) -> &RouterId {
        self.router.id()
    }

    fn capabilities(&self) -> RouterCapabilities {
        self.can
    }

    async fn observe(&self, fence: Fence) -> Result<RouterState> {
        self.observed.fetch_add(1, Ordering::SeqCst);
        self.reached(&[Line::Cut, Line::Blind])?;
        let mut state = self.router.observe(fence).await?;
        if let Some(change) = *self.says.lock().unwrap() {
            change(&mut state);
        }
        Ok(state)
    }

    async fn set(&self, order: &Order) -> Result<RouterState> {
        self.reached(&[Line::Cut, Line::Deaf])?;
        let state = self.router.set(order).await;
        self.reached(&[Line::Mute])?;
        state
    }

    async fn renew(&self, at: Position, clock: RouterClock) -> Result<RouterState> {
        self.renewed.fetch_add(1, Ordering::SeqCst);
        self.reached(&[Line::Cut, Line::Deaf])?;
        let state = self.router.renew(at, clock).await;
        self.reached(&[Line::Mute])?;
        state
    }
}

#[tokio::test(start_paused = true)]
async fn routers_are_asked_often_while_they_are_waited_for_and_seldom_otherwise() {
    let (store, gateway) = (Cuttable::default(), Gateway::open());
    let second = gateway.clone();
    let mut host = Host::with(&store, |b| b.router(second)).await;
    host.live(10, 1, &alike).await;
    gateway.counted();
    host.live(60, 1, &alike).await;
    let (observed, renewed) = gateway.counted();
    assert!(
        observed <= 14 && renewed == 0,
        "idle: {observed} observations, {renewed} renewals a minute"
    );

    gateway.is(Line::Cut);
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(10, 1, &alike).await;
    let (observed, _) = gateway.counted();
    assert!(
        (80..=120).contains(&observed),
        "shifting: {observed} observations in ten seconds"
    );
    gateway.is(Line::Good);
    host.live(10, 40, &alike).await;
    assert!(matches!(
        run.rollout().unwrap().phase(),
        Phase::Soaking { .. }
    ));
    gateway.counted();
    host.live(60, 40, &alike).await;
    let (observed, renewed) = gateway.counted();
    assert!(observed <= 32, "soaking: {observed} observations a minute");
    assert!(
        (10..=30).contains(&renewed),
        "soaking: {renewed} renewals a minute"
    );

    // The way back is told until it is confirmed, and ends.
    gateway.is(Line::Cut);
    run.abort("ana", "enough").await.unwrap();
    gateway.counted();
    host.live(10, 1, &alike).await;
    let (observed, renewed) = gateway.counted();
    assert!(
        (80..=120).contains(&observed),
        "going back: {observed} observations in ten seconds"
    );
    assert_eq!(renewed, 0);
    gateway.is(Line::Good);
    host.live(120, 1, &alike).await;
    assert_eq!(run.finished().await.unwrap().phase, Phase::RolledBack);
    gateway.counted();
    host.live(60, 1, &alike).await;
    let (observed, renewed) = gateway.counted();
    assert!(
        observed <= 14 && renewed == 0,
        "over: {observed} observations, {renewed} renewals a minute"
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_begins_until_every_router_has_been_read_back() {
    let (store, gateway) = (Cuttable::default(), Gateway::open());
    let second = gateway.clone();
    let host = Host::with(&store, |b| b.router(second)).await;
    host.endpoint
        .bar("freeze", "ana", "a holiday")
        .await
        .unwrap();
    let queued = host
        .endpoint
        .submit_or(Supersede::Queue, id("r1"), version(2), plan())
        .await;
    drop(queued.unwrap());
    host.kill().await;
    gateway.is(Line::Cut);
    let second = gateway.clone();
    let mut host = Host::with(&store, |b| b.router(second)).await;
    host.endpoint
        .unbar("freeze", "ana", "it is over")
        .await
        .unwrap();
    host.live(30, 1, &alike).await;
    assert_eq!(host.endpoint.status().ledger.queue.len(), 1);
    gateway.is(Line::Good);
    host.live(30, 1, &alike).await;
    assert!(host.endpoint.status().ledger.queue.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_controller_sleeps_while_nothing_is_due_and_is_patient_with_who_does_not_answer() {
    let (store, gateway) = (Cuttable::default(), Gateway::open());
    let (second, clock) = (gateway.clone(), Counting::new());
    let of = clock.clone();
    let mut host = Host::with(&store, |b| b.router(second).clock(of)).await;
    host.live(10, 1, &alike).await;
    clock.slept();
    host.live(60, 1, &alike).await;
    let slept = clock.slept();
    assert!(slept <= 13, "idle: {slept} turns a minute");
    let run = host.endpoint.submit(id("r1"), version(2), plan()).await;
    host.live(30, 40, &alike).await;
    assert_eq!(
        run.unwrap().rollout().unwrap().phase(),
        Phase::Soaking { stage: 0 }
    );
    host.kill().await;
    // Another process that cannot reach the second gateway: what is due meanwhile has to wait.
    gateway.is(Line::Cut);
    let (second, of) = (gateway.clone(), clock.clone());
    let mut host = Host::with(&store, |b| b.router(second).clock(of)).await;
    host.live(200, 1, &alike).await;
    clock.slept();
    host.live(10, 1, &alike).await;
    let slept = clock.slept();
    assert!(slept <= 105, "waiting: {slept} turns in ten seconds");
}

/// Soaking at two gateways.
async fn soaking_at_two() -> (Cuttable, Gateway, Host, llm_serve_adapters::Run) {
    let (store, gateway) = (Cuttable::default(), Gateway::open());
    let second = gateway.clone();
    let mut host = Host::with(&store, |b| b.router(second)).await;
    let run = host.endpoint.submit(id("r1"), version(2), plan()).await;
    host.live(30, 40, &alike).await;
    assert!(host.candidate_share() > 30 && gateway.share() > Share::NONE);
    (store, gateway, host, run.unwrap())
}

#[tokio::test(start_paused = true)]
async fn who_cannot_be_read_hears_of_the_way_back_beside_the_log() {
    let (store, gateway, mut host, run) = soaking_at_two().await;
    store.cut(true);
    host.live(6, 40, &alike).await;
    gateway.is(Line::Blind);
    run.abort("ana", "enough").await.unwrap();
    assert_eq!((host.candidate_share(), gateway.share()), (0, Share::NONE));
}

#[tokio::test(start_paused = true)]
async fn who_is_not_the_newest_owner_takes_nobody_back_beside_the_log() {
    let (store, gateway, mut host, run) = soaking_at_two().await;
    store.cut(true);
    host.live(6, 40, &alike).await;
    gateway.router.observe(Fence::new(9)).await.unwrap();
    let said = run.abort("ana", "enough").await;
    assert!(matches!(said, Err(CommandError::Stopped(_))), "{said:?}");
    assert!(host.endpoint.status().is_fenced_out());
    assert!(gateway.share() > Share::NONE, "the owner's to decide");
}

#[tokio::test(start_paused = true)]
async fn a_router_that_says_to_go_back_is_believed_though_it_takes_no_orders() {
    let forced: Change = |state| state.latch = Some(version(1));
    let marked: Change = |state| state.mark = Some(id("r1"));
    let newer: Change = |state| state.split.epoch = state.split.epoch.next();
    for says in [forced, marked, newer] {
        let (_store, gateway, mut host, run) = soaking_at_two().await;
        gateway.is(Line::Deaf);
        *gateway.says.lock().unwrap() = Some(says);
        host.live(6, 40, &alike).await;
        let cause = run.rollout().unwrap().state().cause.clone();
        let router = "second".to_owned();
        let expected = [
            Cause::Forced {
                router: router.clone(),
            },
            Cause::Marked {
                router: router.clone(),
            },
            Cause::Drifted { router },
        ];
        assert!(
            cause.as_ref().is_some_and(|c| expected.contains(c)),
            "{cause:?}"
        );
        assert_eq!(host.candidate_share(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_router_said_while_the_first_share_was_in_doubt_is_not_forgotten() {
    for (says, phase) in [
        (true, Phase::RolledBack),
        (false, Phase::Soaking { stage: 0 }),
    ] {
        let (store, gateway) = (Cuttable::default(), Gateway::open());
        let second = gateway.clone();
        let mut host = Host::with(&store, |b| b.router(second)).await;
        store.lose_reply_about("shifting");
        let submitted = host.endpoint.submit(id("r1"), version(2), plan());
        let run = submitted.await.unwrap();
        store.reads(Reads::Down);
        host.live(10, 40, &alike).await;
        assert!(store.has_lost() && run.rollout().unwrap().phase() == Phase::Warming);
        let forced: Change = |state| state.latch = Some(version(1));
        *gateway.says.lock().unwrap() = says.then_some(forced);
        host.live(10, 40, &alike).await;
        // Nobody says it again, for a while.
        gateway.is(Line::Cut);
        *gateway.says.lock().unwrap() = None;
        store.reads(Reads::Whole);
        host.live(4, 40, &alike).await;
        assert_eq!(host.candidate_share() == 0, says);
        gateway.is(Line::Good);
        host.live(60, 40, &alike).await;
        assert_eq!(run.rollout().unwrap().phase(), phase);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_led_forward_while_a_router_that_was_latched_cannot_be_asked() {
    for latched in [true, false] {
        let (store, gateway) = (Cuttable::default(), Gateway::open());
        let second = gateway.clone();
        let mut host = Host::with(&store, |b| b.router(second)).await;
        let forced: Change = |state| state.latch = Some(version(1));
        *gateway.says.lock().unwrap() = latched.then_some(forced);
        host.live(10, 40, &alike).await;
        gateway.is(Line::Cut);
        *gateway.says.lock().unwrap() = None;
        let run = host.endpoint.submit(id("r1"), version(2), plan()).await;
        host.live(10, 40, &alike).await;
        let phase = run.unwrap().rollout().unwrap().phase();
        assert_eq!(phase, Phase::Shifting { stage: 0 });
        assert_eq!(host.candidate_share() == 0, latched);
        gateway.is(Line::Good);
        host.live(30, 40, &alike).await;
        assert!(host.candidate_share() > 30 && gateway.share() > Share::NONE);
    }
}

#[tokio::test(start_paused = true)]
async fn no_stage_is_left_while_a_router_takes_no_orders() {
    for (line, stage) in [(Line::Good, 1), (Line::Deaf, 0)] {
        let (_store, gateway, mut host, run) = soaking_at_two().await;
        host.live(90, 40, &alike).await;
        assert_eq!(run.rollout().unwrap().phase().stage(), Some(0));
        gateway.is(line);
        host.live(15, 40, &alike).await;
        let phase = run.rollout().unwrap().phase();
        assert_eq!(phase.stage(), Some(stage), "{line:?}: {phase}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_router_whose_answers_get_lost_is_not_left_out_while_it_is_renewed() {
    let (_store, gateway, mut host, run) = soaking_at_two().await;
    gateway.is(Line::Mute);
    host.live(60, 40, &alike).await;
    let state = gateway.router.state();
    assert!(state.split.share > Share::NONE && !state.lapsed);
    let remove = async |host: &Host| {
        let name = RouterId::new("second").unwrap();
        host.endpoint.remove_router(&name, "ana", "it burnt").await
    };
    let said = remove(&host).await;
    assert!(
        matches!(said, Err(AdministerError::MayServe(..))),
        "{said:?}"
    );
    gateway.is(Line::Cut);
    host.live(26, 40, &alike).await;
    assert!(gateway.router.state().lapsed);
    remove(&host).await.unwrap();
    drop(run);
}

#[tokio::test(start_paused = true)]
async fn a_router_without_fence_or_lease_is_refused() {
    let full = Gateway::open().can;
    for (fencing, lease, safe) in [
        (Support::None, full.lease, false),
        (full.fencing, Support::None, false),
        (Support::None, Support::None, false),
        (Support::Emulated, Support::Emulated, true),
    ] {
        let mut second = Gateway::open();
        second.can = RouterCapabilities { fencing, lease };
        let host = Host::with(&Cuttable::default(), |b| b.router(second)).await;
        let taken = host.endpoint.submit(id("r1"), version(2), plan()).await;
        assert_eq!(taken.is_ok(), safe, "{fencing:?} {lease:?}: {taken:?}");
        if let Err(refused) = taken {
            assert_eq!(
                refused,
                SubmitError::UnsafeRouter(RouterId::new("second").unwrap())
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_router_is_left_out_once_its_lease_has_certainly_run_out() {
    let (store, gateway) = (Cuttable::default(), Gateway::open());
    let second = gateway.clone();
    let mut host = Host::with(&store, |b| b.router(second)).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(30, 40, &alike).await;
    let name = RouterId::new("second").unwrap();
    let unknown = RouterId::new("third").unwrap();
    let remove = async |name: &RouterId| host.endpoint.remove_router(name, "ana", "it burnt").await;
    assert_eq!(
        remove(&unknown).await,
        Err(AdministerError::NoSuchRouter(unknown.clone()))
    );
    let restored = host.endpoint.restore_router(&name, "ana", "back").await;
    assert_eq!(restored, Err(AdministerError::NoSuchRouter(name.clone())));
    gateway.counted();
    for _ in 0..1_000 {
        if gateway.counted() != (0, 0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gateway.is(Line::Cut);
    // 20 s of lease, one part in a hundred of it, and five seconds for an answer.
    let Err(AdministerError::MayServe(_, left)) = remove(&name).await else {
        panic!("it may still serve")
    };
    let certain = Duration::from_millis(25_200);
    let heard = certain.checked_sub(left).unwrap();
    assert!(heard < Duration::from_millis(50), "{left:?}");
    tokio::time::sleep(left.saturating_sub(Duration::from_millis(100))).await;
    assert!(matches!(
        remove(&name).await,
        Err(AdministerError::MayServe(..))
    ));
    tokio::time::sleep(Duration::from_millis(100)).await;
    remove(&name).await.unwrap();
    assert_eq!(
        remove(&name).await,
        Err(AdministerError::NoSuchRouter(name))
    );
    drop(run);
}
