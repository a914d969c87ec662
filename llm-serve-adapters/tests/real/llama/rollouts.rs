//! From v1 to another quantisation of it, which is promoted; and to a damaged one, which is not.

use crate::stack::{Gateway, Llama, Places, Tally, Users, endpoint, plan, plan_of, version};
use llm_rollout::{Cause, Phase, Plan, RolloutId};
use llm_serve_adapters::journal::End;
use llm_serve_adapters::store::MemoryStore;
use std::time::{Duration, Instant};

/// One rollout from v1 under users who ask these questions (or the usual ones), in so many tokens.
async fn rollout(
    candidate: &str,
    plan: Plan,
    questions: Option<&[&'static str]>,
    tokens: u32,
) -> (End, Tally, Duration) {
    let folder = tempfile::tempdir().unwrap();
    let v1 = Llama::start(folder.path(), "v1").await;
    let other = Llama::start(folder.path(), candidate).await;
    let places = Places::default()
        .place("v1", v1.port())
        .place(candidate, other.port());
    let gateway = Gateway::open(endpoint(MemoryStore::new(), |b| b).await, places).await;
    let users = match questions {
        None => Users::begin(gateway.port(), 4, &gateway.manner()),
        Some(questions) => Users::asking(gateway.port(), 4, &gateway.manner(), questions, tokens),
    };
    let began = Instant::now();
    let id = RolloutId::new(format!("to-{candidate}")).unwrap();
    let run = gateway.endpoint.submit(id, version(candidate), plan);
    let end = run.await.unwrap().finished().await.unwrap();
    let took = began.elapsed();
    (end, users.finish().await, took)
}

#[tokio::test]
#[ignore = "needs llama-server and models: e2e/run llama"]
async fn another_quantisation_is_promoted_and_nobody_notices() {
    let plan = plan(&[1.0, 10.0, 50.0, 100.0]);
    let (end, tally, took) = rollout("v2", plan, None, 8).await;
    let ended = (end.phase, &end.cause);
    assert_eq!(ended, (Phase::Promoted, &None), "{end:?} {tally:?}");
    assert_eq!((tally.lost(), tally.flipped.len()), (0, 0), "{tally:?}");
    let (of_v1, of_v2) = (tally.by("v1"), tally.by("v2"));
    assert!(of_v1 > 0 && of_v2 > 0, "{tally:?}");
    println!(
        "ok      v1 to v2: promoted over 1, 10, 50 and 100 % in {took:.1?}; {} conversations, {of_v1} answers of v1 and {of_v2} of v2, \
         none lost, no conversation flipped ({} moved by the promotion)",
        tally.conversations, tally.moved
    );
}

/// It is rolled back by this metric.
fn rolled_back(end: &End, by: &str) -> bool {
    let gate = matches!(&end.cause, Some(Cause::Gate { metric, .. }) if metric == by);
    end.phase == Phase::RolledBack && gate
}

#[tokio::test]
#[ignore = "needs llama-server and models: e2e/run llama"]
async fn a_damaged_model_is_rolled_back_by_what_it_says() {
    let (end, tally, took) = rollout("bad", plan(&[10.0, 50.0]), None, 8).await;
    assert!(rolled_back(&end, "off_topic"), "{end:?} {tally:?}");
    assert_eq!(tally.flipped.len(), 0, "{tally:?}");
    println!(
        "ok      v1 to damaged, by quality: rolled back in {took:.1?} at {} %, {} requests exposed of {}, {} conversations taken back",
        end.largest_share.percent(),
        end.exposed,
        tally.sent,
        tally.moved
    );
}

#[tokio::test]
#[ignore = "needs llama-server and models: e2e/run llama"]
async fn a_damaged_model_is_rolled_back_by_its_own_errors() {
    // To these it answers with bytes that its server cannot read: status 500, or an error in the middle of a stream.
    let questions = ["Hi", "Tell me a joke", "No", "I like tea."];
    let plan = plan_of(&[10.0, 50.0], &["faults"], "");
    let (end, tally, took) = rollout("bad", plan, Some(&questions), 16).await;
    assert!(rolled_back(&end, "faults"), "{end:?} {tally:?}");
    let unsaved = (tally.flipped.len(), tally.refused.len(), tally.unanswered);
    assert_eq!(unsaved, (0, 0, 0), "{tally:?}");
    println!(
        "ok      v1 to damaged, by its 500s: rolled back in {took:.1?} at {} %, {} requests exposed of {}, of whose failures {} streams \
         had begun, and the others were answered by v1",
        end.largest_share.percent(),
        end.exposed,
        tally.sent,
        tally.cut
    );
}
