//! The conformance suite of routers: on routers that keep all rules, and on ones that each break one.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use async_trait::async_trait;
use llm_rollout::{
    Direction, EndpointId, Epoch, Fence, Order, Position, RouterClock, RouterId, RouterState, Seq,
    Share, Split, Timestamp,
};
use llm_serve_adapters::SystemClock;
use llm_serve_adapters::host::{
    Clock as _, Error, Result as HostResult, RouterCapabilities, RouterMemory, StateStore as _,
    Support, TrafficRouter,
};
use llm_serve_adapters::router::{InProcessRouter, Key, Refused, RouterCore};
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::testing::router::{Subject, suite};
use llm_version_core::VersionId;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

fn version(n: u8) -> VersionId {
    format!("chat/v{n}.0.0-{}", n.to_string().repeat(64))
        .parse()
        .unwrap()
}

fn first() -> Split {
    Split::steady(None, version(1), Epoch::default())
}

/// What is wrong with a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// It says what it was ordered, and serves the baseline.
    ServesNothing,
    ServesTheOldBaselineAfterPromotion,
    ForgetsTheSalt,
    ObservationsLower,
    /// While it has a share.
    IgnoresFences,
    SaysAnotherFence,
    FencesPermanently,
    TakesOlderOrders,
    RefusesEqualOrders,
    RaisesByEqualOrders,
    RenewsAnything,
    RefusesOlderWaysBack,
    GoesBackWithoutMark,
    MarksAndGoesOn,
    RevivesByEqualOrders,
    MarkedGoesForward,
    MarkedPromotes,
    KeepsMarksAfterTheEnd,
    IgnoresLatches,
    HidesLatches,
    LatchedGoesForward,
    LatchedPromotes,
    ForgetsLatches,
    TakesAnyBoot,
    RenewsAnyBoot,
    ForgetsFences,
    ForgetsPositions,
    ForgetsMarks,
    ForgetsPromotions,
    KeepsItsBoot,
    KeepsItsShare,
    HidesLapsesAfterARestart,
    NeverEnds,
    HidesLapses,
    RenewsTheLapsed,
    RenewsTheRestarted,
    ResumesTheSameEpoch,
    CountsFromReceipt,
    RenewsLate,
    RenewsNothing,
    TakesLateOrders,
}

/// A router made of the rules, but for its flaw.
#[derive(Debug)]
struct Flawed {
    id: RouterId,
    flaw: Flaw,
    clock: SystemClock,
    memory: Arc<dyn RouterMemory>,
    core: Mutex<RouterCore>,
    /// Whether it was given a share in this life.
    raised: AtomicBool,
}

impl Flawed {
    fn open(flaw: Flaw, boot: u64, clock: SystemClock, memory: Arc<dyn RouterMemory>) -> Self {
        let boot = if flaw == Flaw::KeepsItsBoot { 1 } else { boot };
        let core = match memory.load().unwrap() {
            Some(record) => RouterCore::from_json(boot, &record).unwrap(),
            None => RouterCore::new(boot, first()),
        };
        let router = Self {
            id: RouterId::new("flawed").unwrap(),
            flaw,
            clock,
            memory,
            core: Mutex::new(core),
            raised: AtomicBool::new(false),
        };
        if flaw == Flaw::KeepsItsShare {
            router.resume();
        }
        router
    }

    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    /// Gives a lapsed share back, as if nothing had happened.
    fn resume(&self) {
        let mut core = self.core.lock().unwrap();
        let now = self.clock.now();
        let state = core.state(now);
        if state.lapsed && state.at.fence == state.fence {
            *core = rewritten(&core, |record| {
                let epoch = record["split"]["epoch"].as_u64().unwrap();
                record["split"]["epoch"] = epoch.saturating_sub(1).into();
                let seq = record["at"]["seq"].as_u64().unwrap();
                record["at"]["seq"] = (seq - 1).into();
            });
            let order = Order {
                at: state.at,
                direction: Direction::Forward,
                split: state.split,
                clock: core.state(now).clock,
            };
            core.set(&order, now).unwrap();
        }
    }

    fn outcome(&self, core: &mut RouterCore, done: Result<(), Refused>) -> HostResult<RouterState> {
        if let Err(refused) = done {
            return Err(match refused {
                Refused::Fenced { .. } if !self.is(Flaw::FencesPermanently) => {
                    Error::fenced(refused.to_string())
                }
                _ => Error::permanent(refused.to_string()),
            });
        }
        self.save(core);
        let mut state = core.state(self.clock.now());
        match self.flaw {
            Flaw::ForgetsTheSalt => state.split.salt = 0,
            Flaw::SaysAnotherFence => state.fence = state.at.fence,
            Flaw::HidesLatches => state.latch = None,
            // What was promised is more than was asked for, and not told.
            Flaw::NeverEnds => state.split.lease = state.split.lease.map(|lease| lease / 1_000),
            Flaw::HidesLapses if self.raised.load(Ordering::Relaxed) => state.lapsed = false,
            _ => {}
        }
        Ok(state)
    }

    fn save(&self, core: &RouterCore) {
        let record = rewritten_record(core, |record| match self.flaw {
            Flaw::ForgetsFences => record["fence"] = record["at"]["fence"].clone(),
            Flaw::ForgetsPositions => record["at"]["seq"] = 0.into(),
            Flaw::ForgetsMarks => record["mark"] = serde_json::Value::Null,
            Flaw::ForgetsLatches => record["latch"] = serde_json::Value::Null,
            Flaw::ForgetsPromotions if record["direction"] == "promote" => {
                record["split"]["baseline"] =
                    other(&state_of(core, Timestamp::default()).split.baseline)
                        .to_string()
                        .into();
            }
            Flaw::HidesLapsesAfterARestart => record["split"]["share"] = 0.into(),
            _ => {}
        });
        self.memory.save(&record).unwrap();
    }
}

fn other(than: &VersionId) -> VersionId {
    version(if *than == version(1) { 2 } else { 1 })
}

fn state_of(core: &RouterCore, now: Timestamp) -> RouterState {
    core.clone().state(now)
}

fn rewritten_record(core: &RouterCore, change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let mut record = serde_json::from_slice(&core.to_json().unwrap()).unwrap();
    change(&mut record);
    serde_json::to_vec(&record).unwrap()
}

/// What it remembers, changed; as after a restart.
fn rewritten(core: &RouterCore, change: impl FnOnce(&mut serde_json::Value)) -> RouterCore {
    let boot = state_of(core, Timestamp::default()).clock.boot;
    RouterCore::from_json(boot, &rewritten_record(core, change)).unwrap()
}

#[async_trait]
impl TrafficRouter for Flawed {
    fn id(&self) -> &RouterId {
        &self.id
    }

    fn capabilities(&self) -> RouterCapabilities {
        RouterCapabilities {
            fencing: Support::Native,
            lease: Support::Native,
        }
    }

    async fn observe(&self, fence: Fence) -> HostResult<RouterState> {
        let now = self.clock.now();
        let mut core = self.core.lock().unwrap();
        if self.is(Flaw::ObservationsLower)
            && core.raised(now)
            && state_of(&core, now).split.share != Share::ALL
        {
            core.force_baseline("", now);
            *core = without(&core, "latch");
        }
        let newest = state_of(&core, now).fence;
        let done = if self.is(Flaw::IgnoresFences) && core.raised(now) {
            core.observe(fence.max(newest), now)
        } else {
            core.observe(fence, now)
        };
        self.outcome(&mut core, done)
    }

    async fn set(&self, order: &Order) -> HostResult<RouterState> {
        let now = self.clock.now();
        let mut core = self.core.lock().unwrap();
        let before = state_of(&core, now);
        let mut order = order.clone();
        let raises = matches!(order.direction, Direction::Forward | Direction::Promote);
        let own = before.clock;
        match self.flaw {
            Flaw::TakesOlderOrders if order.at < before.at && raises => {
                order.at = Position {
                    fence: before.at.fence,
                    seq: Seq::new(before.at.seq.get() + 1),
                };
                order.split.epoch = before.split.epoch.next();
            }
            Flaw::RefusesEqualOrders if order.at == before.at => {
                return Err(Error::permanent("seen"));
            }
            Flaw::RaisesByEqualOrders if order.at == before.at && core.raised(now) => {
                *core = rewritten(&core, |record| record["at"]["seq"] = 0.into());
                order.split.epoch = before.split.epoch.next();
            }
            Flaw::RevivesByEqualOrders if order.at == before.at && !core.raised(now) => {
                *core = rewritten(&core, |record| {
                    record["at"]["seq"] = 0.into();
                    record["mark"] = serde_json::Value::Null;
                    record["split"]["epoch"] = 0.into();
                });
            }
            Flaw::RefusesOlderWaysBack
                if order.direction == Direction::Back && order.at < before.at =>
            {
                return Err(Error::permanent("too old"));
            }
            Flaw::MarkedGoesForward if order.direction == Direction::Forward => {
                *core = without(&core, "mark");
            }
            Flaw::MarkedPromotes if order.direction == Direction::Promote => {
                *core = without(&core, "mark");
            }
            Flaw::LatchedGoesForward if order.direction == Direction::Forward => {
                *core = without(&core, "latch");
            }
            Flaw::LatchedPromotes if order.direction == Direction::Promote => {
                *core = without(&core, "latch");
            }
            Flaw::TakesAnyBoot => order.clock.boot = own.boot,
            Flaw::ResumesTheSameEpoch if before.lapsed && order.at > before.at => {
                order.split.epoch = order.split.epoch.next();
            }
            Flaw::CountsFromReceipt if core.clone().set(&order, now).is_ok() => order.clock = own,
            Flaw::TakesLateOrders if order.clock.boot == own.boot => {
                order.clock.at = order.clock.at.max(Timestamp::from_millis(
                    now.as_millis().saturating_sub(59_000),
                ));
            }
            Flaw::NeverEnds => order.split.lease = order.split.lease.map(|lease| lease * 1_000),
            _ => {}
        }
        let mut done = core.set(&order, now);
        if core.raised(now) {
            self.raised.store(true, Ordering::Relaxed);
        }
        match self.flaw {
            Flaw::GoesBackWithoutMark if order.direction == Direction::Back => {
                *core = without(&core, "mark");
            }
            Flaw::KeepsMarksAfterTheEnd if order.direction == Direction::End => {
                if let Some(mark) = before.mark {
                    *core = rewritten(&core, |record| record["mark"] = mark.to_string().into());
                }
            }
            Flaw::IgnoresFences if matches!(done, Err(Refused::Fenced { .. })) => {
                order.at.fence = before.fence;
                done = core.set(&order, now);
            }
            _ => {}
        }
        self.outcome(&mut core, done)
    }

    async fn renew(&self, at: Position, mut clock: RouterClock) -> HostResult<RouterState> {
        let now = self.clock.now();
        let mut core = self.core.lock().unwrap();
        let before = state_of(&core, now);
        let at = match self.flaw {
            Flaw::RenewsAnything if at > before.at => before.at,
            Flaw::IgnoresFences if at.fence < before.fence => before.at,
            _ => at,
        };
        match self.flaw {
            Flaw::RenewsAnyBoot => clock.boot = before.clock.boot,
            Flaw::RenewsLate if clock.boot == before.clock.boot => clock = before.clock,
            Flaw::RenewsTheLapsed if before.lapsed && self.raised.load(Ordering::Relaxed) => {
                return Ok(before);
            }
            Flaw::RenewsTheRestarted if before.lapsed => return Ok(before),
            Flaw::RenewsNothing if core.clone().renew(at, clock, now).is_ok() => {
                return Ok(before);
            }
            _ => {}
        }
        let done = core.renew(at, clock, now);
        self.outcome(&mut core, done)
    }
}

fn without(core: &RouterCore, which: &str) -> RouterCore {
    rewritten(core, |record| record[which] = serde_json::Value::Null)
}

struct Bench {
    flaw: Flaw,
    clock: SystemClock,
    memory: Arc<dyn RouterMemory>,
    boots: AtomicU64,
    router: Mutex<Option<Arc<Flawed>>>,
}

impl Bench {
    fn new(flaw: Flaw) -> Self {
        let memory = MemoryStore::new();
        let (endpoint, id) = (
            EndpointId::new("chat").unwrap(),
            RouterId::new("flawed").unwrap(),
        );
        Self {
            flaw,
            clock: SystemClock::new(),
            memory: memory.router_memory(&endpoint, &id).unwrap(),
            boots: AtomicU64::new(1),
            router: Mutex::default(),
        }
    }

    fn router(&self) -> Arc<Flawed> {
        self.router.lock().unwrap().clone().unwrap()
    }
}

#[async_trait]
impl Subject for Bench {
    fn versions(&self) -> [VersionId; 2] {
        [version(1), version(2)]
    }

    async fn open(&self) -> HostResult<Arc<dyn TrafficRouter>> {
        let boot = self.boots.fetch_add(1, Ordering::Relaxed);
        let router = Flawed::open(self.flaw, boot, self.clock, Arc::clone(&self.memory));
        let router = Arc::new(router);
        *self.router.lock().unwrap() = Some(Arc::clone(&router));
        Ok(router)
    }

    async fn ask(&self) -> Option<VersionId> {
        let router = self.router();
        let now = self.clock.now();
        let core = router.core.lock().unwrap();
        let raised = core.raised(now) && state_of(&core, now).split.share == Share::ALL;
        let split = state_of(&core, now).split;
        Some(match (self.flaw, &split.candidate) {
            (Flaw::ServesNothing, _) => version(1),
            (Flaw::ServesTheOldBaselineAfterPromotion, None) => version(1),
            (Flaw::MarksAndGoesOn, _) if state_of(&core, now).mark.is_some() => {
                other(&split.baseline)
            }
            (Flaw::IgnoresLatches, _) if state_of(&core, now).latch.is_some() => {
                other(&split.baseline)
            }
            (_, Some(candidate)) if raised => candidate.clone(),
            _ => split.baseline.clone(),
        })
    }

    async fn force_baseline(&self) -> Option<HostResult<()>> {
        let router = self.router();
        let mut core = router.core.lock().unwrap();
        core.force_baseline("test", self.clock.now());
        router.save(&core);
        Some(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_router_that_keeps_the_rules_passes() {
    suite(&Bench::new(Flaw::None)).await.unwrap();
}

/// Each flaw is found by exactly the rule that it breaks.
#[tokio::test(start_paused = true)]
async fn a_router_that_breaks_a_rule_fails_by_that_rule() {
    let mut wrong = Vec::new();
    for (flaw, rule) in [
        (Flaw::ServesNothing, "what is read back is what users get"),
        (
            Flaw::ServesTheOldBaselineAfterPromotion,
            "after a promotion everybody gets the new version",
        ),
        (
            Flaw::ForgetsTheSalt,
            "what is read back is what was ordered",
        ),
        (Flaw::ObservationsLower, "an observation changes nothing"),
        (Flaw::IgnoresFences, "an older fence is refused as Fenced"),
        (Flaw::SaysAnotherFence, "an observation says its fence"),
        (Flaw::FencesPermanently, "a router can be observed"),
        (
            Flaw::TakesOlderOrders,
            "an older position is refused as Permanent",
        ),
        (
            Flaw::RefusesEqualOrders,
            "an equal position is acknowledged",
        ),
        (
            Flaw::RaisesByEqualOrders,
            "an equal position raises nothing",
        ),
        (Flaw::RenewsAnything, "only what was set can be renewed"),
        (
            Flaw::RefusesOlderWaysBack,
            "going back takes the candidate's users off, whatever its position",
        ),
        (
            Flaw::GoesBackWithoutMark,
            "going back sets a mark, whatever its position",
        ),
        (
            Flaw::MarksAndGoesOn,
            "going back takes the candidate's users off, whatever its position",
        ),
        (
            Flaw::RevivesByEqualOrders,
            "an equal position revives nothing",
        ),
        (Flaw::MarkedGoesForward, "a marked router refuses Forward"),
        (Flaw::MarkedPromotes, "a marked router refuses Promote"),
        (Flaw::KeepsMarksAfterTheEnd, "an end releases the mark"),
        (Flaw::IgnoresLatches, "a forced baseline serves everybody"),
        (Flaw::HidesLatches, "a forced baseline is told"),
        (Flaw::LatchedGoesForward, "a latched router refuses Forward"),
        (Flaw::LatchedPromotes, "a latched router refuses Promote"),
        (Flaw::ForgetsLatches, "a latch outlives a restart"),
        (
            Flaw::TakesAnyBoot,
            "what is meant for another boot is refused as Permanent",
        ),
        (
            Flaw::RenewsAnyBoot,
            "what is meant for another boot is refused as Permanent",
        ),
        (Flaw::ForgetsFences, "a fence outlives a restart"),
        (
            Flaw::ForgetsPositions,
            "the newest position outlives a restart",
        ),
        (Flaw::ForgetsMarks, "a mark outlives a restart"),
        (
            Flaw::ForgetsPromotions,
            "a promoted baseline outlives a restart",
        ),
        (Flaw::KeepsItsBoot, "a restarted router has a new boot"),
        (
            Flaw::KeepsItsShare,
            "a restarted router says that its share has lapsed",
        ),
        (
            Flaw::HidesLapsesAfterARestart,
            "a restarted router says that its share has lapsed",
        ),
        (Flaw::NeverEnds, "a share that nobody renews ends"),
        (Flaw::HidesLapses, "a router says that its share has lapsed"),
        (Flaw::RenewsTheLapsed, "a lapsed router refuses renewals"),
        (
            Flaw::RenewsTheRestarted,
            "a restarted router refuses renewals",
        ),
        (
            Flaw::ResumesTheSameEpoch,
            "a lapsed router refuses a Forward whose epoch is not newer",
        ),
        (
            Flaw::CountsFromReceipt,
            "a lease counts from the order's clock reading",
        ),
        (
            Flaw::RenewsLate,
            "a renewal that arrives after its lease is refused as Permanent",
        ),
        (Flaw::RenewsNothing, "a share goes on while it is renewed"),
        (
            Flaw::TakesLateOrders,
            "an order that arrives after its lease is refused as Permanent",
        ),
    ] {
        match suite(&Bench::new(flaw)).await {
            Err(violation) if violation.rule() == rule => {}
            found => wrong.push(format!("{flaw:?}: expected {rule:?}, found {found:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The router in the process, with users in front of it.
struct InProcess {
    memory: Arc<dyn RouterMemory>,
    router: Mutex<Option<Arc<InProcessRouter>>>,
}

#[async_trait]
impl Subject for InProcess {
    fn versions(&self) -> [VersionId; 2] {
        [version(1), version(2)]
    }

    async fn open(&self) -> HostResult<Arc<dyn TrafficRouter>> {
        let builder = InProcessRouter::builder(RouterId::new("gateway").unwrap(), first());
        let router = builder
            .memory(Arc::clone(&self.memory))
            .clock(Arc::new(SystemClock::new()))
            .open()?;
        let router = Arc::new(router);
        *self.router.lock().unwrap() = Some(Arc::clone(&router));
        Ok(router)
    }

    async fn ask(&self) -> Option<VersionId> {
        let router = self.router.lock().unwrap().clone()?;
        let decision = router.decide(&Key::keyless(), router.now());
        Some(decision.version()?.id().as_ref().clone())
    }

    async fn force_baseline(&self) -> Option<HostResult<()>> {
        let router = self.router.lock().unwrap().clone()?;
        Some(router.force_baseline("test"))
    }
}

#[tokio::test(start_paused = true)]
async fn the_router_in_the_process_passes() {
    let store = MemoryStore::new();
    let (endpoint, id) = (
        EndpointId::new("chat").unwrap(),
        RouterId::new("gateway").unwrap(),
    );
    let memory = store.router_memory(&endpoint, &id).unwrap();
    let router = Mutex::default();
    suite(&InProcess { memory, router }).await.unwrap();
}
