//! What the log of an endpoint adds up to: entries that cannot follow, the split that replicas serve, the story of each rollout.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use async_trait::async_trait;
use common::{Cuttable, Host, Reads, alike, id, plan, version};
use llm_gates::{GateTable, Measurements};
use llm_rollout::plan::PreFlightSpec;
use llm_rollout::{
    Effect, EndpointId, Epoch, Input, Phase, Plan, Response, Rollout, RolloutId, Seq, Share, Split,
    Step, Timestamp,
};
use llm_serve_adapters::host::{Evaluator, Result, StateStore as _};
use llm_serve_adapters::journal::{Entry, Event, Ledger};
use llm_version_core::VersionId;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn chat() -> EndpointId {
    EndpointId::new("chat").unwrap()
}

fn rollout(name: &str) -> Rollout {
    let (epoch, now) = (Epoch::new(1), Timestamp::from_millis(1_000));
    Rollout::new(id(name), version(1), version(2), plan(), 7, epoch, now)
}

fn bootstrapped() -> Event {
    Event::Bootstrapped {
        version: version(1),
        at: Timestamp::from_millis(1_000),
    }
}

fn submitted(name: &str) -> Event {
    Event::Submitted {
        rollout: Box::new(rollout(name)),
        said: None,
    }
}

fn stepped(step: Step) -> Event {
    Event::Stepped {
        step: Box::new(step),
        checkpoint: None,
        seen: None,
    }
}

fn follow(ledger: &mut Ledger, event: Event) -> std::result::Result<(), String> {
    let (entry, _) = Entry::after(ledger, event).unwrap();
    let fold = ledger.fold(&chat(), ledger.next, &entry);
    fold.map_err(|bad| bad.to_string())
}

fn begun() -> Ledger {
    let mut ledger = Ledger::default();
    follow(&mut ledger, bootstrapped()).unwrap();
    ledger
}

#[test]
fn what_cannot_follow_is_refused_and_changes_nothing() {
    let start = |seq| {
        let (now, start) = (Timestamp::from_millis(2_000), Input::Start);
        let step = rollout("r1").decide(Seq::new(seq), now, start);
        stepped(step.unwrap().unwrap())
    };
    let mut busy = begun();
    follow(&mut busy, submitted("r1")).unwrap();
    let mut moved = busy.clone();
    follow(&mut moved, start(2)).unwrap();
    for (ledger, event, problem) in [
        (begun(), bootstrapped(), "has been started"),
        (begun(), start(1), "a step of no rollout"),
        (busy, submitted("r2"), "another is in progress"),
        (moved, start(2), "cannot follow"),
    ] {
        let mut after = ledger.clone();
        let error = follow(&mut after, event).unwrap_err();
        assert!(error.contains(problem), "{error}");
        assert!(error.contains("chat"), "{error}");
        assert_eq!(after, ledger);
    }
}

fn alarmed(response: Response, detail: &str) -> Event {
    Event::Alarmed {
        probe: "canonical".to_owned(),
        rollout: id("r1"),
        response,
        detail: detail.to_owned(),
        at: Timestamp::from_millis(2_000),
    }
}

#[test]
fn a_watch_wakes_people_unless_it_only_warns() {
    for (response, wakes) in [
        (Response::Warn, false),
        (Response::Page, true),
        (Response::Hold, true),
    ] {
        let mut ledger = begun();
        follow(&mut ledger, alarmed(response, "3 of 4 failed")).unwrap();
        let told = ledger.outbox.values().map(|intent| match &intent.effect {
            Effect::Notify(notice) => (notice.page, notice.text.as_str()),
            other => panic!("{other:?}"),
        });
        let text = "watch \"canonical\": 3 of 4 failed";
        assert_eq!(told.collect::<Vec<_>>(), [(wakes, text)], "{response:?}");
        assert_eq!(ledger.bars.len(), usize::from(response == Response::Hold));
    }
}

#[test]
fn of_what_nobody_takes_the_newest_is_kept() {
    let mut ledger = begun();
    let mut kept = Vec::new();
    for n in 0..300 {
        let seq = ledger.next;
        follow(&mut ledger, alarmed(Response::Warn, &n.to_string())).unwrap();
        kept.push(seq);
    }
    kept.drain(..300 - 256);
    let outbox = ledger.outbox.keys().map(|id| id.seq);
    assert_eq!(outbox.collect::<Vec<_>>(), kept);
}

#[test]
fn replicas_serve_production_until_a_rollout_has_routed_something() {
    let mut ledger = begun();
    follow(&mut ledger, submitted("r1")).unwrap();
    let steady = Split::steady(None, version(1), Epoch::default());
    assert_eq!(ledger.split(), Some(steady));
    assert_ne!(ledger.split().unwrap(), rollout("r1").state().split);
}

#[tokio::test(start_paused = true)]
async fn a_story_is_read_page_by_page_where_it_is_long() {
    let store = Cuttable::default();
    let mut host = Host::start(&store).await;
    let endpoint = host.endpoint.clone();
    let run = endpoint.submit(id("r1"), version(2), plan()).await.unwrap();
    host.live(60, 40, &alike).await;
    run.abort("ana", "enough").await.unwrap();
    host.live(60, 40, &alike).await;
    let read = async |reads| {
        store.reads(reads);
        let before = store.pages.load(Ordering::SeqCst);
        let incident = endpoint.incident(&id("r1")).await.unwrap().unwrap();
        (incident, store.pages.load(Ordering::SeqCst) - before)
    };
    let (whole, one) = read(Reads::Whole).await;
    let (paged, many) = read(Reads::Small).await;
    assert_eq!(whole, paged);
    assert!(one == 1 && many > 5, "{one} and {many} pages");
}

#[tokio::test(start_paused = true)]
async fn the_store_holds_the_split_that_replicas_are_to_serve() {
    let store = Cuttable::default();
    let mut host = Host::start(&store).await;
    let split = async || store.split(&chat()).await.unwrap().unwrap();
    assert_eq!(
        split().await,
        Split::steady(None, version(1), Epoch::default())
    );
    let endpoint = host.endpoint.clone();
    let run = endpoint.submit(id("r1"), version(2), plan()).await.unwrap();
    host.live(20, 40, &alike).await;
    let soaking = split().await;
    assert_eq!(soaking.share, Share::from_percent(5.0).unwrap());
    assert_eq!(host.endpoint.status().ledger.split(), Some(soaking));
    host.live(600, 40, &alike).await;
    assert_eq!(run.finished().await.unwrap().phase, Phase::Promoted);
    let promoted = split().await;
    assert_eq!(
        (promoted.baseline, promoted.rollout),
        (version(2), Some(id("r1")))
    );
}

/// Never comes to an end.
#[derive(Debug)]
struct Pondering;

#[async_trait]
impl Evaluator for Pondering {
    async fn evaluate(&self, _: &VersionId, _: &VersionId) -> Result<Measurements> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn until_a_rollout_routes_something_the_store_holds_what_is_in_production() {
    let store = Cuttable::default();
    let mut host = Host::with(&store, |b| b.evaluator(Pondering)).await;
    let run = host.endpoint.submit(id("r1"), version(2), plan()).await;
    host.live(30, 40, &alike).await;
    run.unwrap().promote_now("ana", "it is fine").await.unwrap();
    host.live(120, 40, &alike).await;
    let mut spec = plan().spec().clone();
    spec.pre_flight = Some(PreFlightSpec {
        gates: GateTable::reference(),
        deadline: Duration::from_secs(60),
    });
    let plan: Plan = spec.try_into().unwrap();
    let run = host.endpoint.submit(id("r2"), version(3), plan).await;
    for _ in 0..5 {
        let ledger = host.endpoint.status().ledger;
        let split = store.split(&chat()).await.unwrap();
        assert_eq!(split, ledger.split());
        assert_eq!(split, Some(Split::steady(None, version(2), ledger.epoch)));
        host.live(1, 1, &alike).await;
    }
    assert_eq!(run.unwrap().rollout().unwrap().phase(), Phase::PreFlight);
}

#[tokio::test(start_paused = true)]
async fn each_rollout_has_its_own_story() {
    let store = Cuttable::default();
    let mut host = Host::start(&store).await;
    let endpoint = host.endpoint.clone();
    let mut ran = Vec::new();
    for n in [2, 3] {
        let name: RolloutId = id(&format!("r{n}"));
        let run = endpoint.submit(name, version(n), plan()).await.unwrap();
        host.live(60, 40, &alike).await;
        if n == 3 {
            run.abort("ana", "enough").await.unwrap();
        }
        host.live(600, 40, &alike).await;
        ran.push(run.finished().await.unwrap());
    }
    for end in ran {
        let incident = endpoint.incident(&end.rollout).await.unwrap().unwrap();
        assert_eq!((incident.phase, incident.since), (end.phase, end.at));
        assert_eq!(incident.candidate, end.candidate);
        assert_eq!(incident.exposure.largest_share, end.largest_share);
        assert!(incident.timeline[0].what.contains("started"));
        assert!(incident.timeline.is_sorted_by_key(|m| m.seq));
    }
    assert_eq!(endpoint.incident(&id("r9")).await.unwrap(), None);
}
