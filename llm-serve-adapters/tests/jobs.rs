//! What the controller has done beside it: tried again, given up, waited for, in virtual time.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use async_trait::async_trait;
use common::{Cuttable, Host, alike, id, plan, version};
use llm_gates::{GateTable, Measurements};
use llm_rollout::incident::Incident;
use llm_rollout::plan::{PreFlightSpec, Standby, WatchSpec};
use llm_rollout::{EndpointId, Phase, Plan, Position, Probed, Response};
use llm_serve_adapters::host::{
    Error, ErrorKind, Evaluator, Incidents, Letter, Notifier, Probe, Result, ServingBackend,
};
use llm_serve_adapters::recorder::OutcomeClass;
use llm_serve_adapters::router::Key;
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// Cannot be reached, for whatever reason it says.
#[derive(Debug, Clone)]
struct Deaf {
    kind: ErrorKind,
    /// When each letter came, by its key.
    tried: Arc<Mutex<BTreeMap<String, Vec<Instant>>>>,
}

impl Deaf {
    fn new(kind: ErrorKind) -> Self {
        let tried = Arc::default();
        Self { kind, tried }
    }
}

#[async_trait]
impl Notifier for Deaf {
    async fn notify(&self, letter: &Letter<'_>) -> Result<()> {
        let mut tried = self.tried.lock().unwrap();
        tried.entry(letter.key()).or_default().push(Instant::now());
        Err(Error::new(self.kind, "nobody listens"))
    }
}

async fn tried(kind: ErrorKind) -> Vec<Vec<Duration>> {
    let deaf = Deaf::new(kind);
    let pager = deaf.clone();
    let mut host = Host::with(&Cuttable::default(), |b| b.notifier(pager)).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(30, 40, &alike).await;
    run.abort("ana", "enough").await.unwrap();
    host.live(30, 1, &alike).await;
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    let tried = deaf.tried.lock().unwrap();
    assert!(!tried.is_empty());
    let gaps = |times: &Vec<Instant>| times.windows(2).map(|two| two[1] - two[0]).collect();
    tried.values().map(gaps).collect()
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_tried_at_growing_intervals_and_given_up_in_the_end() {
    let doubled = [2, 4, 8, 16, 32]
        .into_iter()
        .chain(std::iter::repeat_n(60, 14));
    let expected: Vec<_> = doubled.map(Duration::from_secs).collect();
    for gaps in tried(ErrorKind::Transient).await {
        assert_eq!(gaps.len(), expected.len(), "twenty tries");
        for (gap, expected) in gaps.iter().zip(&expected) {
            let late = gap.checked_sub(*expected).unwrap();
            assert!(
                late <= Duration::from_millis(2),
                "{gap:?} instead of {expected:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_pass_is_tried_once() {
    for gaps in tried(ErrorKind::Permanent).await {
        assert!(gaps.is_empty(), "{gaps:?}");
    }
}

/// Fails so often, in this way; then measures nothing.
#[derive(Debug, Clone)]
struct Judge {
    fails: Arc<Mutex<(u32, ErrorKind)>>,
    asked: Arc<Mutex<u32>>,
}

#[async_trait]
impl Evaluator for Judge {
    async fn evaluate(&self, _: &VersionId, _: &VersionId) -> Result<Measurements> {
        *self.asked.lock().unwrap() += 1;
        let mut fails = self.fails.lock().unwrap();
        if fails.0 > 0 {
            fails.0 -= 1;
            return Err(Error::new(fails.1, "the judge is out"));
        }
        Ok(Measurements::default())
    }
}

/// How often an evaluator was asked that fails so often, and why the rollout was blocked, within a minute.
async fn judged(fails: u32, kind: ErrorKind) -> (u32, Option<String>) {
    let judge = Judge {
        fails: Arc::new(Mutex::new((fails, kind))),
        asked: Arc::default(),
    };
    let of = judge.clone();
    let mut host = Host::with(&Cuttable::default(), |b| b.evaluator(of)).await;
    let mut spec = plan().spec().clone();
    spec.pre_flight = Some(PreFlightSpec {
        gates: GateTable::reference(),
        deadline: Duration::from_secs(3_600),
    });
    let plan: Plan = spec.try_into().unwrap();
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan)
        .await
        .unwrap();
    host.live(60, 1, &alike).await;
    let rollout = run.rollout();
    let state = rollout.as_ref().map(llm_rollout::Rollout::state);
    let blocked = state.filter(|s| s.phase == Phase::Blocked);
    let why = blocked.map(|s| s.cause.as_ref().unwrap().to_string());
    let asked = *judge.asked.lock().unwrap();
    (asked, why)
}

#[tokio::test(start_paused = true)]
async fn an_evaluator_that_is_out_is_asked_again_and_one_that_refuses_blocks() {
    let (asked, why) = judged(2, ErrorKind::Transient).await;
    assert_eq!(asked, 3);
    assert!(
        !why.unwrap().contains("out"),
        "blocked by what was not measured"
    );
    let (asked, why) = judged(2, ErrorKind::Permanent).await;
    assert_eq!(asked, 1);
    let why = why.unwrap();
    assert!(why.contains("the judge is out"), "{why}");
}

type Told = (&'static str, VersionId, Instant);

/// Writes down what it was told, and when.
#[derive(Debug, Clone)]
struct Engines {
    told: Arc<Mutex<Vec<Told>>>,
    running: Option<u64>,
    /// Nothing can be retired for now.
    stuck: Arc<AtomicBool>,
}

impl Engines {
    fn new(running: Option<u64>) -> Self {
        let (told, stuck) = Default::default();
        Self {
            told,
            running,
            stuck,
        }
    }

    fn note(&self, what: &'static str, version: &VersionId) {
        let now = Instant::now();
        self.told.lock().unwrap().push((what, version.clone(), now));
    }

    fn when(&self, what: &str, version: &VersionId) -> Option<Instant> {
        let told = self.told.lock().unwrap();
        let mut told = told.iter();
        told.find(|(w, v, _)| *w == what && v == version)
            .map(|(_, _, at)| *at)
    }
}

#[async_trait]
impl ServingBackend for Engines {
    async fn prepare(&self, version: &VersionId, _: Position) -> Result<()> {
        self.note("prepare", version);
        Ok(())
    }

    async fn standby(&self, version: &VersionId, _: Position) -> Result<()> {
        self.note("standby", version);
        Ok(())
    }

    async fn healthy(&self, version: &VersionId) -> Result<Option<bool>> {
        self.note("healthy", version);
        Ok(Some(true))
    }

    async fn in_flight(&self, _: &VersionId) -> Result<Option<u64>> {
        Ok(self.running)
    }

    async fn retire(&self, version: &VersionId, _: Position) -> Result<()> {
        if self.stuck.load(Ordering::SeqCst) {
            return Err(Error::transient("stuck"));
        }
        self.note("retire", version);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn the_old_version_is_retired_once_nothing_runs_on_it_or_its_time_is_over() {
    for (ends, running) in [(true, Some(0)), (false, Some(0)), (false, None)] {
        let engines = Engines::new(running);
        let backend = engines.clone();
        let mut host = Host::with(&Cuttable::default(), |b| b.backend(backend)).await;
        let plane = host.endpoint.data_plane().clone();
        let decision = plane
            .router
            .decide(&Key::session(b"a long answer"), plane.router.now());
        let ticket = plane.recorder.begin(decision, plane.router.now());
        let run = host
            .endpoint
            .submit(id("r1"), version(2), plan())
            .await
            .unwrap();
        host.live(30, 40, &alike).await;
        run.promote_now("ana", "it is fine").await.unwrap();
        // It bakes for 30 s.
        host.live(20, 40, &alike).await;
        assert!(engines.when("healthy", &version(1)).is_some());
        let asked = engines.told.lock().unwrap().len();
        host.live(12, 40, &alike).await;
        assert!(
            engines.told.lock().unwrap().len() > asked,
            "asked while it bakes"
        );
        host.live(20, 40, &alike).await;
        assert_eq!(
            engines.when("retire", &version(1)),
            None,
            "somebody is still reading"
        );
        let drained = Instant::now();
        let ticket = if ends {
            ticket.finish(OutcomeClass::Ok, plane.router.now());
            None
        } else {
            Some(ticket)
        };
        host.live(80, 40, &alike).await;
        let waited = engines.when("retire", &version(1)).unwrap() - drained;
        // 60 s of draining have begun with the promotion.
        let expected = if ends { 0..=1 } else { 5..=10 };
        assert!(expected.contains(&waited.as_secs()), "{waited:?}");
        drop((ticket, run));
    }
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_retired_is_retired_later_unless_the_next_rollout_needs_it() {
    for (candidate, retired) in [(3, true), (1, false)] {
        let engines = Engines::new(Some(0));
        engines.stuck.store(true, Ordering::SeqCst);
        let backend = engines.clone();
        let mut host = Host::with(&Cuttable::default(), |b| b.backend(backend)).await;
        let run = host.endpoint.submit(id("r1"), version(2), plan()).await;
        host.live(30, 40, &alike).await;
        run.unwrap().promote_now("ana", "it is fine").await.unwrap();
        host.live(120, 40, &alike).await;
        let next = host.endpoint.submit(id("r2"), version(candidate), plan());
        drop(next.await.unwrap());
        engines.stuck.store(false, Ordering::SeqCst);
        host.live(70, 40, &alike).await;
        assert_eq!(host.endpoint.status().ledger.production, Some(version(2)));
        let late = engines.when("retire", &version(1));
        assert_eq!(late.is_some(), retired, "{candidate}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_baseline_that_nobody_needs_is_scaled_down_where_the_plan_says_so() {
    let engines = Engines::new(Some(0));
    let backend = engines.clone();
    let mut host = Host::with(&Cuttable::default(), |b| b.backend(backend)).await;
    let mut spec = plan().spec().clone();
    spec.recovery.standby = Standby::Cold;
    let all = &mut spec.stages[1];
    all.serve = llm_rollout::plan::Exposure(llm_rollout::Share::ALL);
    all.needs = Some(Vec::new());
    let plan: Plan = spec.try_into().unwrap();
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan)
        .await
        .unwrap();
    host.live(60, 40, &alike).await;
    run.skip("ana", "in a hurry").await.unwrap();
    host.live(30, 40, &alike).await;
    assert!(engines.when("standby", &version(1)).is_some());
    assert_eq!(engines.when("retire", &version(1)), None);
}

#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<Vec<Incident>>>);

#[async_trait]
impl Incidents for Kept {
    async fn keep(&self, endpoint: &EndpointId, incident: &Incident) -> Result<()> {
        assert_eq!(endpoint.as_str(), "chat");
        self.0.lock().unwrap().push(incident.clone());
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn what_happened_is_kept_when_it_is_over() {
    let kept = Kept::default();
    let folder = kept.clone();
    let mut host = Host::with(&Cuttable::default(), |b| b.incidents(folder)).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(30, 40, &alike).await;
    run.abort("ana", "enough").await.unwrap();
    host.live(120, 1, &alike).await;
    let kept = kept.0.lock().unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(
        (&kept[0].rollout, kept[0].phase),
        (&id("r1"), Phase::RolledBack)
    );
}

/// Cuts the store off in the moment in which it is told something.
#[derive(Debug, Clone)]
struct Cutter(Cuttable, Arc<Mutex<u32>>);

#[async_trait]
impl Notifier for Cutter {
    async fn notify(&self, _: &Letter<'_>) -> Result<()> {
        let mut told = self.1.lock().unwrap();
        *told += 1;
        if *told == 1 {
            self.0.cut(true);
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_notice_whose_arrival_cannot_be_logged_is_told_again() {
    let store = Cuttable::default();
    // Nobody tells it before the next rollout has begun.
    let mut host = Host::with(&store, |b| b.notifier(Deaf::new(ErrorKind::Transient))).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(30, 40, &alike).await;
    run.abort("ana", "enough").await.unwrap();
    host.live(60, 1, &alike).await;
    run.finished().await.unwrap();
    drop(
        host.endpoint
            .submit(id("r2"), version(3), plan())
            .await
            .unwrap(),
    );
    drop(run);
    assert!(!host.endpoint.status().ledger.outbox.is_empty());
    host.kill().await;
    let cutter = Cutter(store.clone(), Arc::default());
    let pager = cutter.clone();
    let mut host = Host::with(&store, |b| b.notifier(pager)).await;
    host.live(3, 40, &alike).await;
    assert!(host.endpoint.status().stopped.is_none());
    store.cut(false);
    host.live(30, 40, &alike).await;
    assert!(host.endpoint.status().ledger.outbox.is_empty());
    assert!(*cutter.1.lock().unwrap() > 1);
}

/// Never answers.
#[derive(Debug, Clone)]
struct Hangs(&'static str, Arc<Mutex<Vec<Instant>>>);

#[async_trait]
impl Probe for Hangs {
    fn name(&self) -> &str {
        self.0
    }

    async fn probe(&self, _: &VersionId) -> Result<Probed> {
        self.1.lock().unwrap().push(Instant::now());
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn probes_are_asked_as_often_as_the_plan_says_and_not_waited_for_any_longer() {
    let (quick, slow) = (
        Hangs("quick", Arc::default()),
        Hangs("slow", Arc::default()),
    );
    let (one, other) = (quick.clone(), slow.clone());
    let mut host = Host::with(&Cuttable::default(), |b| b.probe(one).probe(other)).await;
    let mut spec = plan().spec().clone();
    let watch = |name, every| WatchSpec::new(name, Duration::from_millis(every), Response::Warn);
    spec.watch = vec![watch("slow", 43_700), watch("quick", 7_300)];
    let plan: Plan = spec.try_into().unwrap();
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan)
        .await
        .unwrap();
    host.live(30, 40, &alike).await;
    run.promote_now("ana", "it is fine").await.unwrap();
    host.live(400, 1, &alike).await;
    for (probe, every) in [(&quick, 7_300), (&slow, 43_700)] {
        let asked = probe.1.lock().unwrap();
        assert!(asked.len() > 3, "{asked:?}");
        for two in asked.windows(2) {
            let gap = (two[1] - two[0]).as_millis();
            // It is given up when it is due again, and asked when it is due after that.
            let late = gap.checked_sub(2 * every).unwrap();
            assert!(late < 25, "{gap} ms, every {every}");
        }
    }
}
