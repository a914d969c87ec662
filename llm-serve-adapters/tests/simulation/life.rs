//! One life: an endpoint with its gateways, users and operator, from a seed, until two rollouts are over.

use crate::extract::decided;
use crate::faults::{Fault, Weather};
use crate::history::{Event, History, Number, What};
use crate::hosts::{Backend, Engines, Pager, Quality, Source, Suite, Users, first};
use crate::plans::{LEASE, LONGEST, PLANS, WITH_PRE_FLIGHT};
use crate::rng::Rng;
use crate::routers::{Gateway, Remote, seen};
use crate::store::{Record, Store};
use crate::world::{
    Crooked, Link, MOST, Process, Shared, World, number_of, number_of_rollout, rollout, version,
};
use llm_rollout::Phase;
use llm_serve_adapters::router::{InProcessRouter, Key, Role};
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Bootstrap, Endpoint, SubmitError, Supersede};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Largest error of a router's clock, per mille.
const DRIFT: u64 = 20;
/// Routers within processes are numbered from here, by slot.
pub(crate) const WITHIN: usize = 10;

/// What became of a life.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) history: History,
    pub(crate) log: Vec<Vec<u8>>,
    pub(crate) fired: [u32; Fault::ALL.len()],
    pub(crate) trace: Vec<String>,
    pub(crate) ends: Vec<(Number, Phase)>,
}

/// What a life is made of, drawn before it begins.
#[derive(Debug, Clone)]
struct Script {
    weather: Weather,
    /// For each gateway, whether it forgets everything when it starts.
    gateways: Vec<bool>,
    quality: [Quality; MOST + 2],
    plans: [usize; MOST],
    rollouts: u8,
    /// What becomes of a rollout that is wanted while another is in progress.
    haste: Supersede,
    /// What an operator says per second, if anything.
    temper: f64,
    /// Somebody thinks better of a promotion that is under way.
    regret: bool,
    /// Milliseconds that it goes on after the last rollout.
    after: u64,
    /// When faults stop.
    calm: u64,
}

impl Script {
    fn draw(rng: &mut Rng) -> Self {
        let (weather, apart) = Weather::draw(rng);
        let plans = [(); MOST].map(|()| usize::try_from(rng.below(PLANS.len() as u64)).unwrap());
        let mut quality = [Quality::Good; MOST + 2];
        for (plan, quality) in plans.iter().zip(&mut quality[2..]) {
            *quality = match rng.below(20) {
                0..=11 => Quality::Good,
                12..=15 => Quality::Bad(0),
                16 => Quality::Bad(rng.between(5_000, 30_000)),
                17 => Quality::Silent,
                18 if WITH_PRE_FLIGHT.contains(plan) => Quality::Toxic,
                18 => Quality::Silent,
                _ => Quality::Unloadable,
            };
        }
        Self {
            gateways: (0..rng.below(3).max(u64::from(apart)))
                .map(|_| rng.below(8) == 0)
                .collect(),
            quality,
            plans,
            rollouts: rng.pick(&[1, 1, 1, 2, 2, 2, 2, 3]),
            haste: match rng.below(10) {
                0 => Supersede::Queue,
                1 => Supersede::Replace,
                _ => Supersede::Reject,
            },
            temper: if rng.chance(0.6) {
                0.0
            } else {
                rng.pick(&[0.02, 0.1])
            },
            regret: !weather.is_calm() && rng.chance(0.3),
            after: rng.pick(&[2_000, 2_000, 2_000, 20_000]),
            weather,
            calm: rng.between(10_000, 70_000),
        }
    }

    fn is_quiet(&self) -> bool {
        self.weather.is_calm() && self.temper <= 0.0 && self.haste == Supersede::Reject
    }
}

#[derive(Debug, Clone)]
enum Slot {
    Empty,
    Starting(Arc<Process>),
    Running(Arc<Process>, Arc<Crooked>, Endpoint),
}

impl Slot {
    fn process(&self) -> Option<&Arc<Process>> {
        match self {
            Self::Empty => None,
            Self::Starting(process) | Self::Running(process, ..) => Some(process),
        }
    }
}

/// Everything that there is in a life.
#[derive(Debug)]
struct Stage {
    world: Arc<World>,
    store: MemoryStore,
    gateways: Vec<Arc<Gateway>>,
    users: Arc<Users>,
    engines: Arc<Engines>,
    slots: Mutex<[Slot; 2]>,
    memories: [Arc<Record>; 2],
    script: Script,
}

/// Lives it.
pub(crate) fn live(seed: u64, trace: bool) -> Life {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(run(seed, trace))
}

async fn run(seed: u64, trace: bool) -> Life {
    let world = World::new(seed, trace);
    let script = Script::draw(&mut world.lock().rng);
    world.tell(|| format!("{script:?}"));
    let store = MemoryStore::new();
    let gateways = script.gateways.iter().enumerate();
    let gateways: Vec<_> = gateways
        .map(|(index, volatile)| Gateway::new(index, volatile.then(|| store.clone())))
        .collect();
    for gateway in &gateways {
        gateway.start(&world, 0);
    }
    let stage = Arc::new(Stage {
        store,
        gateways,
        users: Users::new(script.quality),
        engines: Engines::with_first(),
        slots: Mutex::new([Slot::Empty, Slot::Empty]),
        memories: Default::default(),
        script,
        world,
    });
    stage.begin(0);
    stage.world.lock().weather = stage.script.weather.clone();
    tokio::spawn(Arc::clone(&stage).traffic());
    tokio::spawn(Arc::clone(&stage).nervous());
    let trouble = tokio::spawn(Arc::clone(&stage).trouble());
    let work = Arc::clone(&stage).operator();
    let done = timeout(Duration::from_millis(stage.script.calm + 2 * LONGEST), work).await;
    stage.world.record(if done.is_ok() {
        What::Settled
    } else {
        What::Overdue
    });
    // A little longer, so that what is late arrives.
    sleep(Duration::from_millis(stage.script.after)).await;
    trouble.abort();
    stage.history()
}

impl Stage {
    fn slots(&self) -> MutexGuard<'_, [Slot; 2]> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process in a slot, beside the life of everything else.
    fn begin(self: &Arc<Self>, slot: usize) {
        let world = &self.world;
        let process = Process::new(u32::try_from(world.number()).unwrap(), slot);
        let ahead = if world.strikes(Fault::ClockBackward) {
            world.between(0, 3_600_000)
        } else {
            3_600_000
        };
        let clock = Arc::new(Crooked::new(world, 1_700_000_000_000 + ahead, 1_000));
        world.tell(|| format!("process {} starts in slot {slot}", process.number));
        self.slots()[slot] = Slot::Starting(Arc::clone(&process));
        let stage = Arc::clone(self);
        tokio::spawn(async move {
            let opening = stage.open(&process, &clock);
            let opened = tokio::select! {
                biased;
                () = process.died.notified() => None,
                opened = timeout(Duration::from_secs(30), opening) => opened.ok(),
            };
            match opened {
                Some(Ok(endpoint)) if process.is_alive() => {
                    stage.slots()[slot] = Slot::Running(process, clock, endpoint);
                }
                other => {
                    stage
                        .world
                        .tell(|| format!("process {} did not open: {other:?}", process.number));
                    process.die(&stage.world);
                    stage.slots()[slot] = Slot::Empty;
                }
            }
        });
    }

    async fn open(
        &self,
        process: &Arc<Process>,
        clock: &Arc<Crooked>,
    ) -> Result<Endpoint, llm_serve_adapters::OpenError> {
        let world = || Arc::clone(&self.world);
        let own = || Arc::clone(process);
        let store = Store {
            world: world(),
            process: own(),
            inner: self.store.clone(),
            memory: Arc::clone(&self.memories[process.slot]),
        };
        let mut builder = Endpoint::builder("chat", store, Bootstrap(first()))
            .boot(self.world.number())
            .clock(Shared(Arc::clone(clock)))
            .source(Source::new(world(), own(), Arc::clone(&self.users)))
            .backend(Backend {
                world: world(),
                process: own(),
                engines: Arc::clone(&self.engines),
                users: Arc::clone(&self.users),
            })
            .evaluator(Suite {
                world: world(),
                process: own(),
                users: Arc::clone(&self.users),
            })
            .notifier(Pager {
                world: world(),
                process: own(),
            });
        for gateway in &self.gateways {
            builder = builder.router(Remote {
                world: world(),
                process: own(),
                gateway: Arc::clone(gateway),
            });
        }
        builder.open().await
    }

    /// An endpoint that somebody could talk to, if there are more than one whichever.
    fn endpoint(&self) -> Option<Endpoint> {
        let mut there: Vec<_> = (0..2).filter_map(|slot| self.endpoint_in(slot)).collect();
        let last = there.pop()?;
        match there.pop() {
            Some(first) if self.world.between(0, 1) == 0 => Some(first),
            _ => Some(last),
        }
    }

    fn endpoint_in(&self, slot: usize) -> Option<Endpoint> {
        match &self.slots()[slot] {
            Slot::Running(process, _, endpoint) if process.is_alive() => endpoint
                .status()
                .stopped
                .is_none()
                .then(|| endpoint.clone()),
            _ => None,
        }
    }

    /// What is being rolled out, as a process knows it.
    fn current(endpoint: &Endpoint) -> Option<Number> {
        let ledger = endpoint.status().ledger;
        ledger.rollout.as_ref().map(|r| number_of_rollout(r.id()))
    }

    /// People who see that a process does not know what was logged, and do not wait until it does.
    async fn nervous(self: Arc<Self>) {
        loop {
            self.world.doubted.notified().await;
            for slot in std::mem::take(&mut self.world.lock().doubts) {
                tokio::spawn(Arc::clone(&self).act(slot));
            }
        }
    }

    /// Somebody has a word with a process that is in doubt; it may not live much longer, or not alone.
    async fn act(self: Arc<Self>, slot: usize) {
        sleep(Duration::from_millis(self.world.between(0, 1_500))).await;
        if self.world.now() >= self.script.calm {
            return;
        }
        let verb = self.world.between(0, 9);
        if let Some(endpoint) = self.endpoint_in(slot)
            && let Some(n) = Self::current(&endpoint)
            && let Some(run) = endpoint.attach(&rollout(n))
        {
            let why = "nobody knows where it stands";
            match verb {
                0..=2 => self.answered(n, "abort", run.abort("ben", why)).await,
                3 => {
                    self.answered(n, "abort_now", run.abort_now("ben", why))
                        .await
                }
                4 => {
                    self.answered(n, "alarm", endpoint.alarm("probe", why))
                        .await
                }
                5 => {
                    self.answered(n, "promote_now", run.promote_now("ben", why))
                        .await
                }
                6 => self.force(n, &endpoint),
                _ => {}
            }
        }
        if self.world.now() >= self.script.calm {
            return;
        }
        if self.world.between(0, 2) == 0
            && let Some(process) = self.slots()[slot].process()
        {
            process.die_after(self.world.between(0, 8));
        }
        let other = 1 - slot;
        if self.world.between(0, 1) == 0 && matches!(self.slots()[other], Slot::Empty) {
            self.begin(other);
        }
    }

    /// Buries the dead, and those that have been fenced out; starts somebody if nobody is there.
    fn keep(self: &Arc<Self>, calm: bool) {
        for slot in 0..2 {
            let here = self.slots()[slot].clone();
            let gone = match &here {
                Slot::Empty | Slot::Starting(_) => false,
                Slot::Running(process, _, endpoint) => {
                    // A host that has been fenced out goes on serving for a while before somebody stops it.
                    let stopped = endpoint.status().stopped.is_some();
                    if process.is_alive() && stopped && (calm || self.world.between(0, 3) == 0) {
                        process.die(&self.world);
                    }
                    !process.is_alive()
                }
            };
            if gone {
                self.slots()[slot] = Slot::Empty;
            }
        }
        if calm {
            // One that has nothing to do does not hear that it has been fenced out; whoever runs hosts leaves one of them.
            let newest = self.world.newest();
            for slot in self.slots().iter() {
                if let Slot::Running(process, _, endpoint) = slot
                    && endpoint.status().fence.get() < newest
                {
                    process.die(&self.world);
                }
            }
        }
        let idle = self.slots().iter().all(|s| match s {
            Slot::Running(_, _, endpoint) => endpoint.status().stopped.is_some(),
            Slot::Starting(_) => false,
            Slot::Empty => true,
        });
        if idle && (calm || self.world.between(0, 3) == 0) {
            let empty: Vec<usize> = (0..2)
                .filter(|s| matches!(self.slots()[*s], Slot::Empty))
                .collect();
            if !empty.is_empty() {
                let slot = self.world.lock().rng.pick(&empty);
                self.begin(slot);
            }
        }
    }

    /// Everything that goes wrong by itself, until it stops.
    async fn trouble(self: Arc<Self>) {
        let world = &self.world;
        while world.now() < self.script.calm {
            sleep(Duration::from_millis(world.between(200, 800))).await;
            self.keep(false);
            self.strike();
        }
        {
            let mut inner = world.lock();
            inner.weather = Weather::CALM;
            inner.cut.clear();
        }
        for slot in self.slots().iter() {
            if let Some(process) = slot.process() {
                process.die_after(u64::MAX);
            }
        }
        self.engines.take_down(0);
        world.record(What::Calm);
        world.tell(|| "from here on nothing goes wrong".to_owned());
        loop {
            for gateway in &self.gateways {
                if gateway.running().is_none() {
                    gateway.start(world, 0);
                }
            }
            self.keep(true);
            sleep(Duration::from_secs(1)).await;
        }
    }

    fn strike(self: &Arc<Self>) {
        let world = &self.world;
        let slot = usize::try_from(world.between(0, 1)).unwrap();
        if world.strikes(Fault::Crash)
            && let Some(process) = self.slots()[slot].process()
        {
            process.die_after(world.between(0, 40));
        }
        if world.strikes(Fault::ClockForward)
            && let Slot::Running(_, clock, _) = &self.slots()[slot]
        {
            clock.jump(world.between(500, 90_000));
        }
        if world.strikes(Fault::SecondController) && matches!(self.slots()[slot], Slot::Empty) {
            self.begin(slot);
        }
        if world.strikes(Fault::Paused)
            && let Some(process) = self.slots()[slot].process()
        {
            let lasts = world.between(200, 20_000);
            world.tell(|| format!("process {} stands still for {lasts} ms", process.number));
            process.pause(world.now() + lasts);
        }
        if world.strikes(Fault::Forced)
            && let Some(endpoint) = self.endpoint()
            && let Some(n) = Self::current(&endpoint)
        {
            self.force(n, &endpoint);
        }
        if !self.gateways.is_empty() {
            let index = usize::try_from(world.between(0, self.gateways.len() as u64 - 1)).unwrap();
            if world.strikes(Fault::PartitionRouter) {
                world.cut(&[Link::Router(slot, index)], 20_000);
            }
            if world.strikes(Fault::Tampered) {
                self.gateways[index].tamper(world);
            }
            if world.strikes(Fault::RouterRestart) {
                let gateway = Arc::clone(&self.gateways[index]);
                world.tell(|| format!("router {index} stops"));
                gateway.stop(world);
                let again = Arc::clone(world);
                let down = world.between(0, 8_000);
                tokio::spawn(async move {
                    sleep(Duration::from_millis(down)).await;
                    while gateway.running().is_none() {
                        gateway.start(&again, DRIFT);
                        sleep(Duration::from_millis(300)).await;
                    }
                });
            }
        }
        if world.strikes(Fault::PartitionStore) {
            world.cut(&[Link::Store(slot)], 20_000);
        }
        if world.strikes(Fault::StoreOutage) {
            world.cut(&[Link::Store(0), Link::Store(1)], 20_000);
        }
        if world.strikes(Fault::SourceOutage) {
            world.cut(&[Link::Source], 20_000);
        }
        if world.strikes(Fault::BaselineDown) {
            self.engines
                .take_down(u8::try_from(world.between(1, 2)).unwrap());
            let (stage, lasts) = (Arc::clone(self), world.between(1_000, 20_000));
            tokio::spawn(async move {
                sleep(Duration::from_millis(lasts)).await;
                stage.engines.take_down(0);
            });
        }
        if world.strikes(Fault::SourceReset) {
            self.users.forget();
        }
    }

    /// Requests of users, on every router that runs.
    async fn traffic(self: Arc<Self>) {
        loop {
            sleep(Duration::from_millis(500)).await;
            for gateway in &self.gateways {
                if let Some(running) = gateway.running() {
                    self.serve(gateway.index, &running.router);
                }
            }
            for slot in 0..2 {
                let here = self.slots()[slot].clone();
                if let Slot::Running(process, _, endpoint) = here
                    && process.is_alive()
                {
                    self.serve(WITHIN + slot, &endpoint.data_plane().router);
                }
            }
            self.users.pass();
        }
    }

    fn serve(&self, router: usize, process: &InProcessRouter) {
        let now = process.now();
        let mut served = BTreeMap::new();
        for _ in 0..12 {
            let session = self.world.lock().rng.next().to_le_bytes();
            let decision = process.decide(&Key::session(&session), now);
            let version = decision.version().map_or(0, |v| number_of(v.id()));
            let candidate = decision.role() == Role::Candidate;
            *served
                .entry((decision.epoch().get(), version, candidate))
                .or_insert(0) += 1;
        }
        let seen = seen(&process.state());
        self.world.record(What::Saw { router, seen });
        for ((epoch, version, candidate), n) in served {
            self.users.served(&self.world, epoch, version, candidate, n);
            self.world.record(What::Served {
                router,
                version,
                candidate,
                epoch,
                n,
            });
        }
    }

    /// Somebody who wants one rollout after the other, and has a word in them.
    async fn operator(self: Arc<Self>) {
        let last = self.script.rollouts;
        for n in 1..=last {
            while !self.submit(n).await {
                sleep(Duration::from_millis(700)).await;
            }
            if self.script.haste != Supersede::Reject && n < last {
                // Who is in haste does not wait for the end.
                sleep(Duration::from_millis(self.world.between(0, 20_000))).await;
                continue;
            }
            while !(1..=n).all(|n| self.is_over(n)) {
                sleep(Duration::from_millis(self.world.between(300, 1_200))).await;
                self.speak().await;
            }
        }
    }

    /// Over, or withdrawn before it began.
    fn is_over(&self, n: Number) -> bool {
        let Some(endpoint) = self.endpoint() else {
            return false;
        };
        let (ledger, id) = (endpoint.status().ledger, rollout(n));
        let current = ledger.rollout.as_ref();
        let settled = current.is_none_or(llm_rollout::Rollout::is_settled);
        let waits = ledger.queue.iter().any(|queued| queued.id == id);
        settled && !waits && ledger.ended.contains_key(&id)
    }

    async fn submit(&self, n: Number) -> bool {
        let Some(endpoint) = self.endpoint() else {
            return false;
        };
        let plan = PLANS[self.script.plans[usize::from(n) - 1]].clone();
        let submitting = endpoint.submit_or(self.script.haste, rollout(n), version(n + 1), plan);
        match timeout(Duration::from_secs(10), submitting).await {
            Ok(Ok(_)) => true,
            Ok(Err(SubmitError::OtherCandidate(_) | SubmitError::NoEvaluator)) => {
                unreachable!("the script submits what can be submitted")
            }
            _ => false,
        }
    }

    async fn speak(&self) {
        let Some(endpoint) = self.endpoint() else {
            return;
        };
        let Some(n) = Self::current(&endpoint) else {
            return;
        };
        let Some(run) = endpoint.attach(&rollout(n)) else {
            return;
        };
        let waits = run
            .rollout()
            .is_some_and(|r| r.state().holds.contains_key("approval"));
        let (verb, speaks) = {
            let mut inner = self.world.lock();
            let speaks = inner.rng.chance(self.script.temper);
            (inner.rng.below(9), speaks)
        };
        // Operators are silent once nothing goes wrong any more.
        let speaks = speaks && self.world.now() < self.script.calm;
        if waits && (verb < 7) {
            self.answered(n, "approve", run.approve("ana", "it looks good"))
                .await;
            return;
        }
        let promoted = run
            .rollout()
            .is_some_and(|r| matches!(r.phase(), Phase::Promoting | Phase::Baking));
        let regrets = self.script.regret && promoted && self.world.now() < self.script.calm;
        if regrets && verb < 3 {
            let why = "on second thoughts";
            return self.answered(n, "abort", run.abort("eve", why)).await;
        }
        if !speaks {
            return;
        }
        match verb {
            0 => {
                self.answered(n, "hold", run.hold("wait", "ana", "lunch"))
                    .await
            }
            1 | 2 => {
                self.answered(n, "resume", run.resume("wait", "ana", "back"))
                    .await
            }
            3 => {
                self.answered(n, "skip", run.skip("ana", "in a hurry"))
                    .await
            }
            4 => {
                self.answered(n, "promote_now", run.promote_now("ana", "in a hurry"))
                    .await
            }
            5 => {
                self.answered(n, "abort", run.abort("ana", "a bad feeling"))
                    .await
            }
            6 => {
                self.answered(n, "abort_now", run.abort_now("ana", "a bad feeling"))
                    .await
            }
            7 => {
                self.answered(n, "alarm", endpoint.alarm("probe", "it said no"))
                    .await
            }
            _ => self.force(n, &endpoint),
        }
    }

    async fn answered(
        &self,
        rollout: Number,
        verb: &str,
        saying: impl Future<Output = Result<(), llm_serve_adapters::CommandError>>,
    ) {
        let answer = timeout(Duration::from_secs(10), saying).await;
        self.world
            .tell(|| format!("operator says {verb} of r{rollout}: {answer:?}"));
        let accepted = matches!(answer, Ok(Ok(())));
        let verb = verb.to_owned();
        self.world.record(What::Answered {
            rollout,
            verb,
            accepted,
        });
    }

    /// Everything to the baseline, in some data plane.
    fn force(&self, rollout: Number, endpoint: &Endpoint) {
        let mut routers = vec![];
        for gateway in &self.gateways {
            if let Some(running) = gateway.running() {
                routers.push((gateway.index, running.router));
            }
        }
        let fence = endpoint.status().fence;
        let slot = (0..2).find(|slot| {
            self.endpoint_in(*slot)
                .is_some_and(|e| e.status().fence == fence)
        });
        let index = self.world.between(0, routers.len() as u64);
        let chosen = routers.get(usize::try_from(index).unwrap());
        let (router, forced) = if let Some((router, process)) = chosen {
            let forced = process.force_baseline("page");
            (*router, forced.map(|()| process.state()))
        } else {
            let forced = endpoint.force_baseline("page");
            let state = endpoint.data_plane().router.state();
            (WITHIN + slot.unwrap_or(0), forced.map(|()| state))
        };
        self.world
            .tell(|| format!("operator forces the baseline on router {router}: {forced:?}"));
        let (verb, accepted) = ("force_baseline".to_owned(), forced.is_ok());
        self.world.record(What::Answered {
            rollout,
            verb,
            accepted,
        });
        // What could not be saved is promised for this run of the router only.
        if let Ok(state) = forced {
            self.world.record(What::Forced {
                router,
                seen: seen(&state),
            });
        }
    }

    fn history(&self) -> Life {
        let status = (0..2).filter_map(|slot| Some(self.endpoint_in(slot)?.status()));
        let last = status.max_by_key(|s| s.fence).map(|s| s.ledger);
        *self.slots() = [Slot::Empty, Slot::Empty];
        let mut inner = self.world.lock();
        let log = std::mem::take(&mut inner.log);
        let events: Vec<Event> = std::mem::take(&mut inner.events);
        let fired = inner.fired;
        let trace = inner.trace.take().unwrap_or_default();
        drop(inner);
        let history = History {
            events,
            drift: DRIFT as f64 / 1_000.0,
            lease: LEASE,
            routers: self.gateways.len(),
            volatile: self.script.gateways.clone(),
            bad: std::array::from_fn(|n| self.users.quality(u8::try_from(n).unwrap()).is_bad()),
            quiet: self.script.is_quiet(),
            replays: true,
            truth: self.users.truth(),
        };
        let (history, ends) = decided(history, &log, last.as_deref());
        Life {
            history,
            log,
            fired,
            trace,
            ends,
        }
    }
}
