//! What the controller does while it does not know what the log holds, in virtual time.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod gateways;

use async_trait::async_trait;
use common::{Cuttable, Host, Reads, alike, id, plan, second_is_bad, version};
use llm_gates::{Counts, Increment, Window};
use llm_rollout::plan::Advance;
use llm_rollout::{Phase, Plan, PlanSpec, Position, Timestamp};
use llm_serve_adapters::host::{
    Cursor, Error, MetricSource, Query, Reading, Result, ServingBackend,
};
use llm_serve_adapters::{
    AdministerError, Bootstrap, CommandError, Endpoint, SubmitError, Supersede,
};
use llm_version_core::VersionId;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// In the first stage, with a share of five per cent.
async fn soaking() -> (Cuttable, Host, llm_serve_adapters::Run) {
    let store = Cuttable::default();
    let mut host = Host::start(&store).await;
    let run = host.endpoint.submit(id("r1"), version(2), plan()).await;
    host.live(30, 40, &alike).await;
    assert!(host.candidate_share() > 30);
    (store, host, run.unwrap())
}

/// The reply to the next append is lost, and the log cannot be read: nobody knows whether it is there.
async fn in_doubt(store: &Cuttable, host: &mut Host) {
    store.reads(Reads::Down);
    store.lose_next_reply();
    host.live(6, 40, &alike).await;
}

#[tokio::test(start_paused = true)]
async fn a_log_that_reads_behind_is_not_acted_upon() {
    let (store, host, run) = soaking().await;
    drop(run);
    host.kill().await;
    store.reads(Reads::Behind);
    let error = Endpoint::open("chat", store.clone(), Bootstrap(version(1)))
        .await
        .unwrap_err();
    assert!(format!("{error:?}").contains("lag behind"), "{error:?}");
    store.reads(Reads::Whole);
    let again = Host::start(&store).await;
    assert!(again.endpoint.status().ledger.rollout.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_long_log_is_read_page_by_page_and_a_short_one_at_once() {
    let (store, host, run) = soaking().await;
    drop(run);
    host.kill().await;
    for reads in [Reads::Small, Reads::Whole] {
        store.reads(reads);
        let before = store.pages.load(Ordering::SeqCst);
        let host = Host::start(&store).await;
        let entries = host.endpoint.status().ledger.next.get();
        let pages = store.pages.load(Ordering::SeqCst) - before;
        let expected = if reads == Reads::Small { entries } else { 1 };
        assert!(
            entries > 5 && pages == expected,
            "{pages} pages for {entries} entries"
        );
        host.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_appended_until_the_log_has_been_read() {
    let (store, mut host, run) = soaking().await;
    in_doubt(&store, &mut host).await;
    let tries = store.tries();
    host.live(15, 40, &alike).await;
    for refused in [
        run.skip("ana", "in a hurry").await,
        run.hold("x", "ana", "look").await,
    ] {
        assert_eq!(refused, Err(CommandError::StoreUnavailable));
    }
    let other = host
        .endpoint
        .submit_or(Supersede::Queue, id("r2"), version(3), plan())
        .await;
    assert_eq!(other.unwrap_err(), SubmitError::StoreUnavailable);
    assert_eq!(store.tries(), tries);
    assert!(host.candidate_share() > 30, "renewed all the time");
    // It is read when somebody asks, and not only when its time has come.
    store.reads(Reads::Whole);
    run.hold("x", "ana", "look").await.unwrap();
    assert!(matches!(run.rollout().unwrap().phase(), Phase::Held { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_submission_in_doubt_is_taken_once_the_log_can_be_read() {
    let (store, mut host, run) = soaking().await;
    in_doubt(&store, &mut host).await;
    store.reads(Reads::Whole);
    let queued = host
        .endpoint
        .submit_or(Supersede::Queue, id("r2"), version(3), plan())
        .await;
    queued.unwrap();
    drop(run);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_log_stops_the_controller() {
    let (store, mut host, run) = soaking().await;
    store.reads(Reads::Damaged);
    store.lose_next_reply();
    host.live(10, 40, &alike).await;
    let stopped = host.endpoint.status().stopped.unwrap();
    assert!(stopped.to_string().contains("entry 7"), "{stopped}");
    assert!(!host.endpoint.status().is_fenced_out());
    let told = run.skip("ana", "in a hurry").await.unwrap_err();
    assert!(told.to_string().contains("entry 7"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_promotion_in_doubt_is_never_gone_back_from_beside_the_log() {
    let (store, mut host, run) = soaking().await;
    store.reads(Reads::Down);
    store.lose_next_reply();
    let said = run.promote_now("ana", "it is fine").await;
    assert_eq!(said, Err(CommandError::StoreUnavailable));
    let share = host.candidate_share();
    assert!(share > 30);
    for _ in 0..3 {
        assert_eq!(
            run.abort("ben", "it is not").await,
            Err(CommandError::StoreUnavailable)
        );
        host.live(2, 40, &alike).await;
        assert_eq!(
            host.candidate_share(),
            share,
            "users stay until the log can be read"
        );
    }
    store.reads(Reads::Whole);
    host.live(120, 40, &alike).await;
    assert_eq!(run.finished().await.unwrap().phase, Phase::Promoted);
}

#[tokio::test(start_paused = true)]
async fn a_promotion_that_a_late_read_does_not_show_is_not_gone_back_from() {
    let store = Cuttable::default();
    let mut host = Host::start(&store).await;
    let mut spec = plan().spec().clone();
    spec.stages.truncate(1);
    let plan: Plan = spec.try_into().unwrap();
    let run = host.endpoint.submit(id("r1"), version(2), plan).await;
    let run = run.unwrap();
    host.live(60, 40, &alike).await;
    store.reads(Reads::Behind);
    store.lose_reply_about(r#""direction":"promote""#);
    for _ in 0..200 {
        if !store.has_lost() {
            host.live(1, 40, &alike).await;
        }
    }
    assert!(store.has_lost());
    // The log has been read again, and did not show it.
    host.live(2, 40, &alike).await;
    store.cut(true);
    let share = host.candidate_share();
    assert!(share > 30);
    let said = run.abort("ben", "it is not").await;
    assert_eq!(said, Err(CommandError::StoreUnavailable));
    assert_eq!(host.candidate_share(), share);
    store.cut(false);
    store.reads(Reads::Whole);
    host.live(120, 40, &alike).await;
    assert_eq!(run.finished().await.unwrap().phase, Phase::Promoted);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_nothing_more_keeps_nobody_on_the_candidate() {
    let (store, mut host, run) = soaking().await;
    store.fill(true);
    host.live(10, 40, &alike).await;
    // What could not be written is certainly not there.
    run.abort("ana", "enough").await.unwrap();
    assert_eq!(host.candidate_share(), 0);
    store.fill(false);
    host.live(120, 1, &alike).await;
    assert_eq!(run.finished().await.unwrap().phase, Phase::RolledBack);
}

#[tokio::test(start_paused = true)]
async fn an_approval_that_did_not_reach_the_log_is_decided_again() {
    let store = Cuttable::default();
    let mut host = Host::start(&store).await;
    let mut spec = plan().spec().clone();
    spec.stages[0].advance = Advance::Manual;
    let plan: Plan = spec.try_into().unwrap();
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan)
        .await
        .unwrap();
    host.live(240, 40, &alike).await;
    assert!(matches!(
        run.rollout().unwrap().phase(),
        Phase::Held { stage: 0 }
    ));
    store.cut(true);
    let said = run.approve("ana", "read them").await;
    assert_eq!(said, Err(CommandError::StoreUnavailable));
    store.cut(false);
    host.live(20, 40, &alike).await;
    assert_eq!(run.rollout().unwrap().phase().stage(), Some(1));
}

/// Requests at a steady pace, one in a hundred of them faulty; and how often it was read. It may begin anew.
#[derive(Debug, Clone, Default)]
struct Steady {
    reads: Arc<AtomicU64>,
    life: Arc<AtomicU64>,
}

impl Steady {
    fn reads(&self) -> u64 {
        self.reads.load(Ordering::SeqCst)
    }

    fn cursor(&self, now: Timestamp) -> Cursor {
        let life = self.life.load(Ordering::SeqCst);
        Cursor::new(format!("{life} {}", now.as_millis()))
    }
}

#[async_trait]
impl MetricSource for Steady {
    async fn open(&self, _: Query<'_>, now: Timestamp) -> Result<Cursor> {
        Ok(self.cursor(now))
    }

    async fn read(&self, query: Query<'_>, cursor: &Cursor, now: Timestamp) -> Result<Reading> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let (life, from) = cursor.as_str().split_once(' ').unwrap();
        if life != self.life.load(Ordering::SeqCst).to_string() {
            return Err(Error::permanent("a cursor of an earlier life"));
        }
        let (from, to) = (from.parse().unwrap(), now.as_millis());
        let seconds = (to - from) / 1_000;
        let counts = |n: u64| Counts { n, k: n / 100 };
        let increment = Increment::Binary {
            candidate: counts(20 * seconds),
            baseline: counts(200 * seconds),
        };
        Ok(Reading {
            window: Window {
                epoch: query.epoch.get(),
                from,
                to,
                metrics: query
                    .metrics
                    .keys()
                    .map(|name| (name.clone(), increment.clone()))
                    .collect(),
            },
            cursor: self.cursor(now),
            heartbeat: None,
        })
    }
}

/// Routers are asked at another pace than the evidence.
fn often_renewed() -> PlanSpec {
    let mut spec = plan().spec().clone();
    spec.lease.renew_every = Duration::from_secs(2);
    spec
}

async fn steady() -> (Cuttable, Steady, Host, llm_serve_adapters::Run) {
    let (store, source) = (Cuttable::default(), Steady::default());
    let of = source.clone();
    let mut host = Host::with(&store, |b| b.source(of)).await;
    let plan: Plan = often_renewed().try_into().unwrap();
    let run = host.endpoint.submit(id("r1"), version(2), plan).await;
    host.live(30, 1, &alike).await;
    (store, source, host, run.unwrap())
}

#[tokio::test(start_paused = true)]
async fn looks_come_as_often_as_the_plan_says_in_doubt_too() {
    let (store, source, mut host, run) = steady().await;
    let before = source.reads();
    host.live(50, 1, &alike).await;
    assert!(
        (9..=11).contains(&(source.reads() - before)),
        "one in five seconds"
    );
    // In doubt the evidence is looked at for harm, at the same pace, and nothing of it is kept.
    store.cut(true);
    host.live(6, 1, &alike).await;
    let (before, tries) = (source.reads(), store.tries());
    host.live(40, 1, &alike).await;
    assert!(
        (7..=9).contains(&(source.reads() - before)),
        "one in five seconds"
    );
    assert_eq!(store.tries(), tries);
    // Once the way back was taken without the log there is nothing more to find.
    run.abort("ana", "looks wrong").await.unwrap();
    let before = source.reads();
    host.live(20, 1, &alike).await;
    assert_eq!(source.reads(), before);
}

#[tokio::test(start_paused = true)]
async fn while_a_promotion_is_in_doubt_nobody_looks_for_harm() {
    let (store, source, mut host, run) = steady().await;
    store.reads(Reads::Down);
    store.lose_next_reply();
    let said = run.promote_now("ana", "it is fine").await;
    assert_eq!(said, Err(CommandError::StoreUnavailable));
    let before = source.reads();
    host.live(20, 1, &alike).await;
    assert_eq!(source.reads(), before);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_begins_anew_is_read_from_where_it_begins() {
    let (_store, source, mut host, run) = steady().await;
    source.life.fetch_add(1, Ordering::SeqCst);
    host.live(600, 1, &alike).await;
    assert_eq!(run.finished().await.unwrap().phase, Phase::Promoted);
}

#[tokio::test(start_paused = true)]
async fn where_nothing_is_gated_time_is_logged_at_the_pace_of_looks() {
    let store = Cuttable::default();
    let mut host = Host::start(&store).await;
    let mut spec = often_renewed();
    spec.gates.clear();
    spec.ungated = true;
    spec.stages.truncate(1);
    spec.stages[0].min_samples = 0;
    let plan: Plan = spec.try_into().unwrap();
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan)
        .await
        .unwrap();
    host.live(10, 1, &alike).await;
    let before = host.endpoint.status().ledger.next.get();
    host.live(60, 1, &alike).await;
    let logged = host.endpoint.status().ledger.next.get() - before;
    assert!(
        (11..=13).contains(&logged),
        "{logged} entries in a minute of looks every five seconds"
    );
    drop(run);
}

/// Says that the baseline cannot serve.
#[derive(Debug)]
struct Sick;

#[async_trait]
impl ServingBackend for Sick {
    async fn prepare(&self, _: &VersionId, _: Position) -> Result<()> {
        Ok(())
    }

    async fn healthy(&self, _: &VersionId) -> Result<Option<bool>> {
        Ok(Some(false))
    }

    async fn in_flight(&self, _: &VersionId) -> Result<Option<u64>> {
        Ok(Some(0))
    }

    async fn retire(&self, _: &VersionId, _: Position) -> Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn harm_that_the_baseline_cannot_help_waits_for_the_log() {
    let store = Cuttable::default();
    let mut host = Host::with(&store, |b| b.backend(Sick)).await;
    let run = host.endpoint.submit(id("r1"), version(2), plan()).await;
    let run = run.unwrap();
    host.live(30, 40, &alike).await;
    assert!(run.rollout().unwrap().state().baseline_down);
    store.cut(true);
    host.live(6, 40, &alike).await;
    let tries = store.tries();
    host.live(40, 400, &second_is_bad).await;
    assert_eq!(store.tries(), tries, "nothing to be done beside the log");
    assert!(host.candidate_share() > 30);
    store.cut(false);
    host.live(20, 400, &second_is_bad).await;
    assert!(run.rollout().unwrap().state().stranded.is_some());
}

#[tokio::test(start_paused = true)]
async fn who_administers_an_endpoint_hears_that_the_store_is_down_and_that_somebody_else_owns_it() {
    let (store, mut host, run) = soaking().await;
    store.cut(true);
    let said = host.endpoint.bar("freeze", "ana", "a holiday").await;
    assert_eq!(said, Err(AdministerError::StoreUnavailable));
    store.cut(false);
    host.live(5, 1, &alike).await;
    assert!(host.endpoint.status().stopped.is_none());
    host.endpoint
        .bar("freeze", "ana", "a holiday")
        .await
        .unwrap();
    let other = Host::start(&store).await;
    assert!(!other.endpoint.status().is_fenced_out());
    let said = host.endpoint.bar("night", "ana", "sleep").await;
    assert!(matches!(said, Err(AdministerError::Stopped(_))), "{said:?}");
    assert!(host.endpoint.status().is_fenced_out());
    drop((run, other));
}
