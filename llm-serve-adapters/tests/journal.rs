//! What the log of an endpoint adds up to: entries that cannot follow, the split that replicas serve, the story of each rollout.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Cuttable, Host, alike, id, plan, version};
use llm_rollout::{
    EndpointId, Epoch, Input, Phase, Rollout, RolloutId, Seq, Share, Split, Step, Timestamp,
};
use llm_serve_adapters::host::StateStore as _;
use llm_serve_adapters::journal::{Entry, Event, Ledger};

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

fn follow(ledger: &mut Ledger, event: Event) -> Result<(), String> {
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
