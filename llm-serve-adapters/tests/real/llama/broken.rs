//! A candidate that is stopped or killed while users are reading its answers.

use crate::process::until;
use crate::stack::{
    Gateway, Limits, Llama, Places, Reply, Users, endpoint, long, plan_with, send, version,
};
use http_body_util::BodyExt as _;
use llm_rollout::{Phase, RolloutId};
use llm_serve_adapters::store::MemoryStore;
use std::time::{Duration, Instant};

/// Longer than any pause of a server that lives, whatever else the machine does.
const IDLE: Duration = Duration::from_secs(30);

async fn broken_by(signal: &str) {
    let folder = tempfile::tempdir().unwrap();
    let v1 = Llama::start(folder.path(), "v1").await;
    let mut v2 = Llama::start(folder.path(), "v2").await;
    let places = Places::default()
        .place("v1", v1.port())
        .place("v2", v2.port());
    let limits = Limits {
        idle: IDLE,
        patience: IDLE,
    };
    let endpoint = endpoint(MemoryStore::new(), |b| b).await;
    let gateway = Gateway::with(endpoint, places, limits).await;
    let users = Users::begin(gateway.port(), 3, &gateway.manner());
    // It soaks for longer than this lasts.
    let plan = plan_with(
        &[50.0],
        "[triggers]\ncandidate_silent = \"20s\"\nno_verdict = \"5m\"\n",
    );
    let mut spec = plan.spec().clone();
    spec.stages[0].dwell = Duration::from_secs(500);
    let id = RolloutId::new("breaks").unwrap();
    let run = gateway
        .endpoint
        .submit(id, version("v2"), spec.try_into().unwrap());
    let run = run.await.unwrap();
    until("answers of the candidate", async || {
        (users.tally().by("v2") >= 3).then_some(())
    })
    .await;

    // Somebody reads a long answer of the candidate.
    let manner = gateway.manner();
    let asked = long(700);
    let mut answer = until("a stream of the candidate", async || {
        let response = send(gateway.port(), &(manner.session)(), &asked)
            .await
            .ok()?;
        let by_v2 = response.headers()["x-llm-version"]
            .to_str()
            .unwrap()
            .contains("1.1.0");
        by_v2.then(|| response.into_body())
    })
    .await;
    let mut text = String::new();
    while !text.contains("content\":\"") {
        let frame = answer.frame().await.unwrap().unwrap();
        text.push_str(&String::from_utf8_lossy(frame.data_ref().unwrap()));
    }
    let began = Instant::now();
    v2.process().signal(signal);
    // It ends, with or without an error, and is not taken for a whole one.
    let rest = tokio::time::timeout(Duration::from_secs(120), answer.collect()).await;
    let rest = rest.expect("a stream that is cut off ends");
    if let Ok(rest) = rest {
        text.push_str(&String::from_utf8_lossy(&rest.to_bytes()));
    }
    assert_eq!(Reply::of(&text), None, "{text}");
    let cut = began.elapsed();

    let end = run.finished().await.unwrap();
    let took = began.elapsed();
    assert_eq!(end.phase, Phase::RolledBack, "{end:?}");
    let before = users.tally();
    until("answers of the baseline", async || {
        (users.tally().by("v1") >= before.by("v1") + 6).then_some(())
    })
    .await;
    let tally = users.finish().await;
    // Who had read nothing yet was answered by v1.
    let unsaved = (tally.flipped.len(), tally.refused.len(), tally.unanswered);
    assert_eq!(unsaved, (0, 0, 0), "{tally:?}");
    assert!(
        tally.cut <= 3,
        "at most one stream of each user had begun: {tally:?}"
    );
    println!(
        "ok      candidate SIG{signal} in mid-stream: the stream ended after {cut:.1?} as failed, rolled back after {took:.1?} ({:?}); {} of \
         {} requests cut off, the others answered",
        end.cause.as_ref().map(ToString::to_string),
        tally.cut,
        tally.sent
    );
}

#[tokio::test]
#[ignore = "needs llama-server and models: e2e/run llama"]
async fn a_candidate_that_is_stopped_in_mid_stream_goes_and_users_are_safe() {
    broken_by("STOP").await;
}

#[tokio::test]
#[ignore = "needs llama-server and models: e2e/run llama"]
async fn a_candidate_that_is_killed_in_mid_stream_goes_and_users_are_safe() {
    broken_by("KILL").await;
}
