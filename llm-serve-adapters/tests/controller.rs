//! The controller in virtual time: what it promises, with real router, recorder and log code.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use async_trait::async_trait;
use common::{Cuttable, Host, alike, id, plan, second_is_bad, version};
use llm_rollout::{
    Cause, Effect, Epoch, Fence, Order, Phase, Position, RouterClock, RouterId, RouterState, Split,
};
use llm_serve_adapters::host::{Error, Result, RouterCapabilities, ServingBackend, TrafficRouter};
use llm_serve_adapters::router::InProcessRouter;
use llm_serve_adapters::{CommandError, Run, Status, SubmitError, SystemClock};
use llm_version_core::VersionId;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn candidate_counts(status: &Status) -> Option<(u64, u64)> {
    let judgement = status.ledger.rollout.as_ref()?.judgement()?;
    judgement
        .gates
        .first()
        .map(|g| (g.candidate.n, g.candidate.k))
}

#[tokio::test(start_paused = true)]
async fn a_good_candidate_is_promoted_and_stays_after_a_restart() {
    let store = Cuttable::default();
    let mut host = Host::start(&store).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(600, 40, &alike).await;
    let end = run.finished().await.unwrap();
    assert_eq!((end.phase, end.cause), (Phase::Promoted, None));
    let served = host.serve(100, &alike);
    assert_eq!(served.keys().collect::<Vec<_>>(), [&version(2)]);
    drop(run);
    host.kill().await;

    // Started again, still configured with version 1.
    let mut again = Host::start(&store).await;
    assert_eq!(
        again.serve(100, &alike).keys().collect::<Vec<_>>(),
        [&version(2)]
    );
    assert_eq!(again.endpoint.status().ledger.production, Some(version(2)));
}

#[tokio::test(start_paused = true)]
async fn a_bad_candidate_goes_away_by_itself_and_never_comes_back() {
    let store = Cuttable::default();
    let mut host = Host::start(&store).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(300, 40, &second_is_bad).await;
    let end = run.finished().await.unwrap();
    assert_eq!(end.phase, Phase::RolledBack);
    assert!(
        matches!(&end.cause, Some(Cause::Gate { metric, .. }) if metric == "faults"),
        "{:?}",
        end.cause
    );
    assert!(end.exposed < 200, "{} requests were exposed", end.exposed);
    assert_eq!(host.candidate_share(), 0);
    drop(run);
    host.kill().await;

    let mut again = Host::start(&store).await;
    let run = again
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    assert_eq!(
        run.finished().await.unwrap(),
        end,
        "the same id returns the recorded end"
    );
    let served = again.live(120, 40, &second_is_bad).await;
    assert_eq!(
        served.keys().collect::<Vec<_>>(),
        [&version(1)],
        "nobody is exposed again"
    );
    let other = again.endpoint.submit(id("r1"), version(3), plan()).await;
    assert_eq!(other.unwrap_err(), SubmitError::OtherCandidate(id("r1")));
}

#[tokio::test(start_paused = true)]
async fn without_a_controller_the_share_lapses_within_its_lease() {
    let store = Cuttable::default();
    let mut host = Host::start(&store).await;
    host.endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(30, 40, &alike).await;
    assert!(host.candidate_share() > 30);
    let plane = host.endpoint.data_plane().clone();
    let probe = Host::start(&store).await; // fences the first controller out
    assert!(probe.endpoint.status().stopped.is_none());
    host.live(10, 1, &alike).await;
    assert!(
        host.endpoint.status().is_fenced_out(),
        "a fenced-out controller stops"
    );
    // Nobody renews the first process' router any more: lease 20 s.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let now = plane.router.now();
    let lapsed = (0..500u32).all(|i| {
        let key = format!("k{i}");
        let decision = plane.router.decide(
            &llm_serve_adapters::router::Key::session(key.as_bytes()),
            now,
        );
        decision.role() == llm_serve_adapters::router::Role::Baseline
    });
    assert!(lapsed, "the dead-man's switch works without any controller");
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_moment_it_goes_on_from_its_log() {
    // A life of about ten minutes, killed once, at forty different moments; the outcome is the same.
    for at in (0..600).step_by(15) {
        for (bad, expected) in [(false, Phase::Promoted), (true, Phase::RolledBack)] {
            let faults: common::Faults<'_> = if bad { &second_is_bad } else { &alike };
            let store = Cuttable::default();
            let mut host = Host::start(&store).await;
            host.endpoint
                .submit(id("r1"), version(2), plan())
                .await
                .unwrap();
            host.live(at, 40, faults).await;
            host.kill().await;
            let mut again = Host::start(&store).await;
            let run = again
                .endpoint
                .submit(id("r1"), version(2), plan())
                .await
                .unwrap();
            again.live(700, 40, faults).await;
            let end = run.finished().await.unwrap();
            assert_eq!(end.phase, expected, "killed at {at} s");
            if bad {
                assert_eq!(again.serve(50, faults).len(), 1);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn evidence_survives_a_restart() {
    let store = Cuttable::default();
    let mut host = Host::start(&store).await;
    host.endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(100, 40, &alike).await;
    let (before, _) = candidate_counts(&host.endpoint.status()).unwrap();
    assert!(before > 100, "{before}");
    host.kill().await;
    let mut again = Host::start(&store).await;
    again.live(30, 40, &alike).await;
    let (after, _) = candidate_counts(&again.endpoint.status()).unwrap();
    assert!(
        after > before,
        "{before} samples before the restart, {after} after it"
    );
    let exposed = |host: &Host| {
        let ledger = host.endpoint.status().ledger;
        ledger.rollout.as_ref().unwrap().state().exposed
    };
    assert!(
        exposed(&again) >= after,
        "exposure counts over all processes: {}",
        exposed(&again)
    );
    assert!(
        after < before + 400,
        "no window counts twice: {before} before, {after} after"
    );
}

#[tokio::test(start_paused = true)]
async fn a_rollback_does_not_wait_for_the_store_and_is_logged_later() {
    let store = Cuttable::default();
    let mut host = Host::start(&store).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(30, 40, &alike).await;
    store.cut(true);
    assert_eq!(
        run.abort("ana", "looks wrong").await,
        Ok(()),
        "accepted by the router"
    );
    assert_eq!(host.candidate_share(), 0, "users are off at once");
    let appended = store.appends.load(Ordering::SeqCst);
    host.live(30, 10, &alike).await;
    assert_eq!(store.appends.load(Ordering::SeqCst), appended);
    store.cut(false);
    host.live(60, 10, &alike).await;
    let end = run.finished().await.unwrap();
    assert_eq!(end.phase, Phase::RolledBack);
    assert_eq!(
        end.cause,
        Some(Cause::Operator {
            by: "ana".into(),
            why: "looks wrong".into()
        }),
        "the reason is kept"
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_goes_forward_while_the_store_is_down_and_renewals_end_with_the_grace() {
    let store = Cuttable::default();
    let mut host = Host::start(&store).await;
    host.endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(60, 40, &alike).await;
    let share = host.candidate_share();
    store.cut(true);
    host.live(50, 40, &alike).await;
    assert_eq!(host.candidate_share(), share, "renewed within the grace");
    host.live(40, 40, &alike).await;
    assert_eq!(
        host.candidate_share(),
        0,
        "grace 60 s and lease 20 s are over"
    );
    store.cut(false);
    host.live(900, 40, &alike).await;
    assert_eq!(
        host.endpoint.status().ledger.production,
        Some(version(2)),
        "it goes on when the store is back"
    );
}

#[tokio::test(start_paused = true)]
async fn an_append_whose_reply_is_lost_is_read_again_and_not_repeated() {
    for at in [1, 20, 60, 150, 200, 300, 400] {
        let store = Cuttable::default();
        let mut host = Host::start(&store).await;
        let run = host
            .endpoint
            .submit(id("r1"), version(2), plan())
            .await
            .unwrap();
        host.live(at, 40, &alike).await;
        store.lose_next_reply();
        host.live(800, 40, &alike).await;
        assert_eq!(
            run.finished().await.unwrap().phase,
            Phase::Promoted,
            "lost at {at} s"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn forcing_the_baseline_is_immediate_latched_and_ends_the_rollout() {
    let store = Cuttable::default();
    let mut host = Host::start(&store).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(30, 40, &alike).await;
    store.cut(true);
    host.endpoint.force_baseline("page 4711").unwrap();
    assert_eq!(host.candidate_share(), 0, "synchronous, without the store");
    store.cut(false);
    host.live(60, 40, &alike).await;
    let end = run.finished().await.unwrap();
    assert_eq!(end.phase, Phase::RolledBack);
    assert!(
        matches!(end.cause, Some(Cause::Forced { .. })),
        "{:?}",
        end.cause
    );
    // The latch is released with the end of the rollout: the next one may begin.
    let next = host
        .endpoint
        .submit(id("r2"), version(3), plan())
        .await
        .unwrap();
    host.live(600, 40, &alike).await;
    assert_eq!(next.finished().await.unwrap().phase, Phase::Promoted);
}

#[tokio::test(start_paused = true)]
async fn one_rollout_at_a_time_and_commands_only_for_it() {
    let store = Cuttable::default();
    let mut host = Host::start(&store).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(10, 40, &alike).await;
    let busy = host.endpoint.submit(id("r2"), version(3), plan()).await;
    assert_eq!(busy.unwrap_err(), SubmitError::Busy(id("r1")));
    run.hold("audit", "ana", "reading evals").await.unwrap();
    host.live(300, 40, &alike).await;
    assert!(host.candidate_share() < 100, "held in the first stage");
    assert!(matches!(
        run.resume("typo", "ana", "").await,
        Err(CommandError::Rejected(_))
    ));
    run.resume("audit", "ana", "read").await.unwrap();
    host.live(600, 40, &alike).await;
    assert_eq!(run.finished().await.unwrap().phase, Phase::Promoted);
    assert!(matches!(
        run.abort("ana", "too late").await,
        Err(CommandError::Rejected(_))
    ));
    assert!(host.endpoint.attach(&id("r1")).is_some());
    assert!(host.endpoint.attach(&id("r9")).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_person_may_skip_stages_and_promote_at_once() {
    let store = Cuttable::default();
    let mut host = Host::start(&store).await;
    let endpoint = host.endpoint.clone();
    let run = endpoint.submit(id("r1"), version(2), plan()).await.unwrap();
    host.live(10, 40, &alike).await;
    run.skip("ana", "seen enough").await.unwrap();
    host.live(10, 40, &alike).await;
    let stage = |run: &Run| run.rollout().unwrap().phase().stage();
    assert_eq!(stage(&run), Some(1));
    assert!(host.candidate_share() > 400);
    run.promote_now("ana", "all is well").await.unwrap();
    host.live(60, 40, &alike).await;
    assert_eq!(run.finished().await.unwrap().phase, Phase::Promoted);
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_is_fenced_out_says_so() {
    let store = Cuttable::default();
    let mut old = Host::start(&store).await;
    old.live(10, 10, &alike).await;
    assert!(!old.endpoint.status().is_fenced_out());
    let new = Host::start(&store).await;
    let submit = old.endpoint.submit(id("r1"), version(2), plan());
    assert!(submit.await.is_err(), "only the newest fence appends");
    old.live(10, 10, &alike).await;
    assert!(old.endpoint.status().is_fenced_out());
    assert!(!new.endpoint.status().is_fenced_out());
    let late = old.endpoint.submit(id("r1"), version(2), plan()).await;
    let why = late.unwrap_err().to_string();
    assert!(why.contains("fence"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn no_traffic_decides_nothing_and_ends_where_the_plan_says() {
    let store = Cuttable::default();
    let mut host = Host::start(&store).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(1_100, 0, &alike).await;
    assert!(
        run.rollout()
            .is_some_and(|r| r.phase() == Phase::Soaking { stage: 0 }),
        "inconclusive is not failed"
    );
    host.live(200, 0, &alike).await;
    assert_eq!(
        run.finished().await.unwrap().cause,
        Some(Cause::Undecided { stage: 0 })
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_candidate_goes_back_although_it_finishes_nothing() {
    let store = Cuttable::default();
    let mut host = Host::start(&store).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(20, 40, &alike).await;
    // Requests that are begun and never answered: found among keys that the candidate is given.
    let plane = host.endpoint.data_plane().clone();
    let now = plane.router.now();
    let hung: Vec<_> = (0..400u32)
        .map(|i| {
            plane.router.decide(
                &llm_serve_adapters::router::Key::session(format!("hang-{i}").as_bytes()),
                now,
            )
        })
        .filter(|d| d.role() == llm_serve_adapters::router::Role::Candidate)
        .map(|d| plane.recorder.begin(d, now))
        .collect();
    assert!(!hung.is_empty());
    host.live(60, 0, &alike).await;
    let end = run.finished().await.unwrap();
    assert!(
        matches!(end.cause, Some(Cause::Silent { .. })),
        "{:?}",
        end.cause
    );
    drop(hung);
}

#[tokio::test(start_paused = true)]
async fn a_plan_with_offline_gates_needs_an_evaluator() {
    let store = Cuttable::default();
    let host = Host::start(&store).await;
    let mut spec = plan().spec().clone();
    spec.pre_flight = Some(llm_rollout::plan::PreFlightSpec {
        gates: llm_gates::GateTable::reference(),
        deadline: Duration::from_secs(60),
    });
    let refused = host
        .endpoint
        .submit(id("r1"), version(2), spec.try_into().unwrap())
        .await;
    assert_eq!(refused.unwrap_err(), SubmitError::NoEvaluator);
}

/// Says beforehand that it measures one thing.
#[derive(Debug)]
struct Toxicity;

#[async_trait]
impl llm_serve_adapters::host::Evaluator for Toxicity {
    async fn evaluate(&self, _: &VersionId, _: &VersionId) -> Result<llm_gates::Measurements> {
        Err(Error::transient("not now"))
    }

    fn measures(&self) -> Option<std::collections::BTreeSet<String>> {
        Some(["toxicity".to_owned()].into())
    }
}

#[tokio::test(start_paused = true)]
async fn a_gate_on_what_nothing_measures_is_refused_before_the_rollout_begins() {
    let store = Cuttable::default();
    let host = Host::with(&store, |builder| builder.evaluator(Toxicity)).await;
    let mut spec = plan().spec().clone();
    spec.pre_flight = Some(llm_rollout::plan::PreFlightSpec {
        gates: llm_gates::GateTable::reference(),
        deadline: Duration::from_secs(60),
    });
    let submit = async |spec: llm_rollout::plan::PlanSpec| {
        let plan = spec.try_into().unwrap();
        host.endpoint.submit(id("r1"), version(2), plan).await
    };
    let refused = submit(spec.clone()).await.unwrap_err();
    let known = ["toxicity".to_owned()].into();
    let metric = "win_rate".to_owned();
    assert_eq!(refused, SubmitError::NotMeasured { metric, known });
    let said = refused.to_string();
    assert!(
        said.contains("\"win_rate\", which nothing measures")
            && said.contains("there are \"toxicity\""),
        "{said}"
    );
    if let Some(pre_flight) = &mut spec.pre_flight {
        pre_flight.gates.gates.truncate(1);
    }
    submit(spec).await.unwrap();
}

/// A second gateway, which can be cut off from the controller.
#[derive(Debug, Clone)]
struct Gateway {
    router: Arc<InProcessRouter>,
    cut: Arc<AtomicBool>,
    /// It hears, and cannot be read back.
    mute: Arc<AtomicBool>,
}

impl Gateway {
    fn open() -> Self {
        let first = Split::steady(None, version(1), Epoch::default());
        let router = InProcessRouter::builder(RouterId::new("second").unwrap(), first);
        Self {
            router: Arc::new(router.clock(Arc::new(SystemClock::new())).open().unwrap()),
            cut: Arc::default(),
            mute: Arc::default(),
        }
    }

    fn reached(&self) -> Result<()> {
        if self.cut.load(Ordering::SeqCst) {
            return Err(Error::transient("cut off"));
        }
        Ok(())
    }
}

#[async_trait]
impl TrafficRouter for Gateway {
    fn id(&self) -> &RouterId {
        self.router.id()
    }

    fn capabilities(&self) -> RouterCapabilities {
        self.router.capabilities()
    }

    async fn observe(&self, fence: Fence) -> Result<RouterState> {
        self.reached()?;
        if self.mute.load(Ordering::SeqCst) {
            return Err(Error::transient("it says nothing"));
        }
        self.router.observe(fence).await
    }

    async fn set(&self, order: &Order) -> Result<RouterState> {
        self.reached()?;
        self.router.set(order).await
    }

    async fn renew(&self, at: Position, clock: RouterClock) -> Result<RouterState> {
        self.reached()?;
        self.router.renew(at, clock).await
    }
}

#[tokio::test(start_paused = true)]
async fn what_goes_back_without_the_log_is_told_again_and_never_renewed() {
    let store = Cuttable::default();
    let gateway = Gateway::open();
    let second = gateway.clone();
    let mut host = Host::with(&store, |builder| builder.router(second)).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(30, 40, &alike).await;
    assert!(gateway.router.state().split.exposes());
    store.cut(true);
    gateway.cut.store(true, Ordering::SeqCst);
    let aborted = run.abort("ana", "looks wrong").await;
    assert_eq!(aborted, Err(CommandError::StoreUnavailable));
    assert!(gateway.router.state().split.exposes(), "it has not heard");
    gateway.cut.store(false, Ordering::SeqCst);
    host.live(10, 10, &alike).await;
    let state = gateway.router.state();
    assert_eq!(state.mark, Some(id("r1")), "it has heard, without the log");
    assert!(!state.split.exposes());
    store.cut(false);
    host.live(60, 10, &alike).await;
    assert_eq!(run.finished().await.unwrap().phase, Phase::RolledBack);
}

#[tokio::test(start_paused = true)]
async fn who_cannot_be_read_back_is_told_to_go_back_all_the_same() {
    let gateway = Gateway::open();
    let second = gateway.clone();
    let mut host = Host::with(&Cuttable::default(), |builder| builder.router(second)).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(30, 40, &alike).await;
    assert!(gateway.router.state().split.exposes());
    gateway.mute.store(true, Ordering::SeqCst);
    run.abort("ana", "looks wrong").await.unwrap();
    // Long before the lease ends.
    host.live(5, 10, &alike).await;
    let state = gateway.router.state();
    assert_eq!(state.mark, Some(id("r1")), "it has heard");
    assert!(!state.split.exposes());
    // It is over when it has been confirmed.
    gateway.mute.store(false, Ordering::SeqCst);
    host.live(60, 10, &alike).await;
    assert_eq!(run.finished().await.unwrap().phase, Phase::RolledBack);
}

#[tokio::test(start_paused = true)]
async fn harm_sends_users_back_while_the_store_is_down() {
    let store = Cuttable::default();
    let mut host = Host::start(&store).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(30, 40, &alike).await;
    store.cut(true);
    host.live(15, 40, &alike).await;
    assert!(host.candidate_share() > 30, "nothing is wrong yet");
    // The grace is 60 s, the lease 20 s: it is not the lapse that helps.
    host.live(25, 100, &second_is_bad).await;
    assert_eq!(host.candidate_share(), 0, "users are off without the log");
    store.cut(false);
    host.live(60, 40, &alike).await;
    let end = run.finished().await.unwrap();
    assert_eq!(end.phase, Phase::RolledBack);
    assert!(
        matches!(end.cause, Some(Cause::Gate { .. })),
        "{:?}",
        end.cause
    );
}

/// A backend that cannot take anything out of service now.
#[derive(Debug)]
struct Stubborn;

#[async_trait]
impl ServingBackend for Stubborn {
    async fn prepare(&self, _: &VersionId, _: Position) -> Result<()> {
        Ok(())
    }

    async fn in_flight(&self, _: &VersionId) -> Result<Option<u64>> {
        Ok(Some(0))
    }

    async fn retire(&self, _: &VersionId, _: Position) -> Result<()> {
        Err(Error::transient("not now"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_retirement_that_is_late_spares_what_the_next_rollout_serves() {
    let store = Cuttable::default();
    let mut host = Host::with(&store, |builder| builder.backend(Stubborn)).await;
    let first = host.endpoint.submit(id("r1"), version(2), plan());
    let run = first.await.unwrap();
    host.live(600, 40, &alike).await;
    assert_eq!(run.finished().await.unwrap().phase, Phase::Promoted);
    let retires = |intents: Vec<&llm_rollout::Intent>| {
        let retire = Effect::Retire(version(1));
        intents.iter().any(|i| i.effect == retire)
    };
    let ledger = host.endpoint.status().ledger;
    let pending = ledger.rollout.as_ref().unwrap().pending();
    assert!(retires(pending.iter().collect()));
    let back = host.endpoint.submit(id("r2"), version(1), plan());
    drop(back.await.unwrap());
    let ledger = host.endpoint.status().ledger;
    assert!(!retires(ledger.outbox.values().collect()));
}
