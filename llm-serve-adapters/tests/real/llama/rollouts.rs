//! From v1 to another quantisation of it, which is promoted; and to a damaged one, which is not.

use crate::stack::{Gateway, Llama, Places, Tally, Users, endpoint, plan, plan_of, send, version};
use llm_rollout::{Cause, Phase, Plan, RolloutId};
use llm_serve_adapters::journal::End;
use llm_serve_adapters::store::MemoryStore;
use serde_json::json;
use std::time::{Duration, Instant};

/// How a rollout went.
struct Lived {
    end: End,
    tally: Tally,
    took: Duration,
    record: String,
}

/// One rollout from v1 under users who ask these questions (or the usual ones), in so many tokens.
async fn rollout(
    candidate: &str,
    plan: Plan,
    questions: Option<&[&'static str]>,
    tokens: u32,
) -> Lived {
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
    let run = gateway
        .endpoint
        .submit(id.clone(), version(candidate), plan);
    let end = run.await.unwrap().finished().await.unwrap();
    let took = began.elapsed();
    let record = gateway.endpoint.incident(&id).await.unwrap().unwrap();
    Lived {
        end,
        tally: users.finish().await,
        took,
        record: record.to_markdown(),
    }
}

#[tokio::test]
#[ignore = "needs llama-server and models: e2e/run llama"]
async fn another_quantisation_is_promoted_and_nobody_notices() {
    let plan = plan(&[1.0, 10.0, 50.0, 100.0]);
    let Lived {
        end,
        tally,
        took,
        record,
    } = rollout("v2", plan, None, 8).await;
    let ended = (end.phase, &end.cause);
    assert_eq!(ended, (Phase::Promoted, &None), "{record}{tally:?}");
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
    let Lived {
        end,
        tally,
        took,
        record,
    } = rollout("bad", plan(&[10.0, 50.0]), None, 8).await;
    assert!(rolled_back(&end, "off_topic"), "{record}{tally:?}");
    assert_eq!(tally.flipped.len(), 0, "{tally:?}");
    println!(
        "ok      v1 to damaged, by quality: rolled back in {took:.1?} at {} %, {} requests exposed of {}, {} conversations taken back",
        end.largest_share.percent(),
        end.exposed,
        tally.sent,
        tally.moved
    );
}

/// Some of these the damaged model answers with what its server cannot read: status 500, or an error in the middle of a stream.
/// Which, depends on how the processor rounds.
const SHORT: [&str; 40] = [
    "Hi",
    "Tell me a joke",
    "No",
    "I like tea.",
    "Hello",
    "Yes",
    "Why?",
    "Thanks",
    "Sing a song",
    "Where is Rome?",
    "Good morning",
    "Who are you?",
    "Write a poem",
    "Count to ten",
    "What is 2+2?",
    "Bye",
    "Help",
    "OK",
    "Explain rain.",
    "Cats or dogs?",
    "Tell me more",
    "Sorry",
    "Please",
    "I am sad.",
    "What time is it?",
    "Is it cold?",
    "Draw a tree",
    "Cook rice",
    "Good night",
    "Open the door",
    "How far is it?",
    "Who wrote this?",
    "Buy some milk",
    "I am late.",
    "Is it true?",
    "Spell your name",
    "Stop",
    "Plant a rose",
    "Where do birds go?",
    "Once more",
];

/// At most four questions that the damaged model fails at, here.
async fn unanswerable() -> Vec<&'static str> {
    let folder = tempfile::tempdir().unwrap();
    let bad = Llama::start(folder.path(), "bad").await;
    let mut found = Vec::new();
    for question in SHORT {
        let asked = json!({
            "model": "bad", "messages": [{"role": "user", "content": question}],
            "max_tokens": 16, "temperature": 0, "seed": 1, "cache_prompt": false,
        });
        if send(bad.port(), "", &asked).await.unwrap().status() == 500 {
            found.push(question);
        }
        if found.len() == 4 {
            break;
        }
    }
    assert!(!found.is_empty(), "it answers whatever it is asked");
    found
}

#[tokio::test]
#[ignore = "needs llama-server and models: e2e/run llama"]
async fn a_damaged_model_is_rolled_back_by_its_own_errors() {
    let questions = unanswerable().await;
    let plan = plan_of(&[10.0, 50.0], &["faults"], "");
    let Lived {
        end,
        tally,
        took,
        record,
    } = rollout("bad", plan, Some(&questions), 16).await;
    assert!(
        rolled_back(&end, "faults"),
        "{questions:?} {record}{tally:?}"
    );
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
