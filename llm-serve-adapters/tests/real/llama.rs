//! Rollouts on real models, each served by a llama-server of its own behind the project's layer.

use crate::stack::{Gateway, Llama, Places, Users, endpoint, plan, version};
use llm_rollout::{Phase, RolloutId};
use llm_serve_adapters::store::MemoryStore;
use std::time::Instant;

#[tokio::test]
#[ignore = "needs llama-server and models: e2e/run llama"]
async fn another_quantisation_is_promoted_and_nobody_notices() {
    let folder = tempfile::tempdir().unwrap();
    let v1 = Llama::start(folder.path(), "v1").await;
    let v2 = Llama::start(folder.path(), "v2").await;
    let places = Places::default()
        .place("v1", v1.port())
        .place("v2", v2.port());
    let gateway = Gateway::open(endpoint(MemoryStore::new(), |b| b).await, places).await;
    let users = Users::begin(gateway.port(), 4, gateway.manner());
    let began = Instant::now();
    let id = RolloutId::new("quantised").unwrap();
    let shares = [1.0, 10.0, 50.0, 100.0];
    let run = gateway
        .endpoint
        .submit(id, version("v2"), plan(&shares))
        .await
        .unwrap();
    let end = run.finished().await.unwrap();
    let took = began.elapsed();
    let tally = users.finish().await;
    assert_eq!(
        (end.phase, &end.cause),
        (Phase::Promoted, &None),
        "{end:?} {tally:?}"
    );
    assert_eq!((tally.lost(), tally.flipped.len()), (0, 0), "{tally:?}");
    assert!(tally.by("v1") > 0 && tally.by("v2") > 0, "{tally:?}");
    println!(
        "ok      v1 to v2: promoted over 1, 10, 50 and 100 % in {took:.1?}; {} conversations, {} answers of v1 and {} of v2, \
         none lost, no conversation flipped ({} moved by the promotion)",
        tally.conversations,
        tally.by("v1"),
        tally.by("v2"),
        tally.moved
    );
}
