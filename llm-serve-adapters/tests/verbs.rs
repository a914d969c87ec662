//! What the handles of an endpoint and of its rollouts say and do at once, in virtual time.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Cuttable, Host, alike, id, plan, version};
use llm_rollout::Phase;
use llm_serve_adapters::{Return, ReturnError, Supersede};

async fn release(host: &mut Host, name: &str, n: u8) {
    let run = host
        .endpoint
        .submit(id(name), version(n), plan())
        .await
        .unwrap();
    host.live(30, 40, &alike).await;
    run.promote_now("ana", "it is fine").await.unwrap();
    host.live(120, 40, &alike).await;
    assert_eq!(run.finished().await.unwrap().phase, Phase::Promoted);
}

#[tokio::test(start_paused = true)]
async fn a_rollout_is_found_by_its_id_whatever_has_become_of_it() {
    let mut host = Host::start(&Cuttable::default()).await;
    release(&mut host, "over", 2).await;
    drop(
        host.endpoint
            .submit(id("now"), version(3), plan())
            .await
            .unwrap(),
    );
    let queued = host
        .endpoint
        .submit_or(Supersede::Queue, id("next"), version(4), plan())
        .await;
    drop(queued.unwrap());
    for known in ["over", "now", "next"] {
        assert_eq!(host.endpoint.attach(&id(known)).unwrap().id(), &id(known));
    }
    assert!(host.endpoint.attach(&id("never")).is_none());
}

#[tokio::test(start_paused = true)]
async fn what_a_person_says_takes_effect_at_once() {
    let mut host = Host::start(&Cuttable::default()).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(30, 40, &alike).await;
    assert_eq!(run.rollout().unwrap().phase(), Phase::Soaking { stage: 0 });
    run.skip("ana", "in a hurry").await.unwrap();
    assert_eq!(run.rollout().unwrap().phase().stage(), Some(1));
    host.live(10, 40, &alike).await;
    run.promote_now("ana", "it is fine").await.unwrap();
    let phase = run.rollout().unwrap().phase();
    assert!(matches!(phase, Phase::Promoting | Phase::Baking), "{phase}");
    assert!(!host.endpoint.status().is_fenced_out());
}

#[tokio::test(start_paused = true)]
async fn the_way_back_has_a_number_of_its_own_and_names_what_it_cannot_find() {
    let mut host = Host::start(&Cuttable::default()).await;
    let none = host
        .endpoint
        .roll_back(Return::last(), "ana", "slow")
        .await
        .unwrap_err();
    let text = none.to_string();
    assert!(
        text.contains("a version of the past") && text.contains("inside are: none"),
        "{text}"
    );
    release(&mut host, "r1", 2).await;
    release(&mut host, "r2", 3).await;
    let far = Return {
        to: Some(version(9)),
        ..Return::last()
    };
    let outside = host
        .endpoint
        .roll_back(far, "ana", "slow")
        .await
        .unwrap_err();
    assert!(matches!(outside, ReturnError::OutsideWindow { .. }));
    let text = outside.to_string();
    for named in [version(9), version(2), version(1)] {
        assert!(text.contains(&named.to_string()), "{text}");
    }
    // Two are over, one waits: this is the fourth.
    host.endpoint
        .bar("freeze", "ana", "a holiday")
        .await
        .unwrap();
    let queued = host
        .endpoint
        .submit_or(Supersede::Queue, id("r3"), version(4), plan())
        .await;
    drop(queued.unwrap());
    let back = host
        .endpoint
        .roll_back(Return::last(), "ana", "slow")
        .await
        .unwrap();
    assert_eq!(back.id().as_str(), "return-4-to-2.0.0");
}
