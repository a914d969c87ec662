//! Users who differ persistently, in virtual time: what is counted before the ramp keeps them from being taken for harm.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Cuttable, Host, id, plan, version};
use llm_rollout::plan::Exposure;
use llm_rollout::{Cause, Phase, Plan, Share};
use llm_serve_adapters::recorder::OutcomeClass;
use llm_serve_adapters::router::{Key, Role};
use std::collections::BTreeSet;
use std::time::Duration;

const USERS: u32 = 200;

fn key(user: u32) -> String {
    format!("user-{user}")
}

/// Half of the users get the candidate; before that, if wanted, a while in which the slices are counted.
fn half(preview: bool) -> Plan {
    let mut spec = plan().spec().clone();
    let mut stage = spec.stages[1].clone();
    stage.serve = Exposure(Share::from_percent(50.0).unwrap());
    stage.control = Exposure(Share::from_percent(50.0).unwrap());
    stage.dwell = Duration::from_secs(300);
    let mut before = stage.clone();
    before.serve = Exposure::default();
    before.control = Exposure::default();
    before.dwell = Duration::from_secs(600);
    spec.stages = if preview {
        vec![before, stage]
    } else {
        vec![stage]
    };
    spec.try_into().unwrap()
}

/// Every user asks once a second; the unlucky ones fail twice as often, whoever serves them.
async fn live(host: &mut Host, seconds: u32, unlucky: &BTreeSet<u32>) {
    for _ in 0..seconds {
        for user in 0..USERS {
            let plane = host.endpoint.data_plane().clone();
            let now = plane.router.now();
            let decision = plane
                .router
                .decide(&Key::session(key(user).as_bytes()), now);
            let ticket = plane.recorder.begin(decision, now);
            let rate = if unlucky.contains(&user) { 0.1 } else { 0.05 };
            let class = if host.unit() < rate {
                OutcomeClass::UpstreamError
            } else {
                OutcomeClass::Ok
            };
            ticket.finish(class, now.after(Duration::from_millis(80)));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Who gets the candidate: a function of the endpoint, the rollout's id and the user alone.
async fn slice() -> BTreeSet<u32> {
    let mut host = Host::start(&Cuttable::default()).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), half(false))
        .await;
    live(&mut host, 5, &BTreeSet::new()).await;
    let router = &host.endpoint.data_plane().router;
    let decide = |user: &u32| router.decide(&Key::session(key(*user).as_bytes()), router.now());
    let slice = (0..USERS).filter(|user| decide(user).role() == Role::Candidate);
    let slice: BTreeSet<u32> = slice.collect();
    assert!((60..140).contains(&slice.len()) && run.is_ok());
    slice
}

#[tokio::test(start_paused = true)]
async fn users_who_differ_are_not_taken_for_harm_once_their_slices_were_counted() {
    let unlucky = slice().await;
    for preview in [false, true] {
        let mut host = Host::start(&Cuttable::default()).await;
        let plan = half(preview);
        let run = host
            .endpoint
            .submit(id("r1"), version(2), plan)
            .await
            .unwrap();
        live(&mut host, 1_200, &unlucky).await;
        let end = run.finished().await.unwrap();
        if preview {
            assert_eq!((end.phase, end.cause), (Phase::Promoted, None));
        } else {
            assert!(
                matches!(end.cause, Some(Cause::Gate { .. })),
                "the candidate got the unlucky ones, and was blamed"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_candidate_is_found_all_the_same() {
    let unlucky = slice().await;
    let mut host = Host::start(&Cuttable::default()).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), half(true))
        .await
        .unwrap();
    live(&mut host, 630, &unlucky).await;
    assert_eq!(run.rollout().unwrap().phase(), Phase::Soaking { stage: 1 });
    // The candidate doubles the faults of those it serves: four in ten of the unlucky fail.
    for _ in 0..300 {
        for user in 0..USERS {
            let plane = host.endpoint.data_plane().clone();
            let now = plane.router.now();
            let decision = plane
                .router
                .decide(&Key::session(key(user).as_bytes()), now);
            let rate = if decision.role() == Role::Candidate {
                0.4
            } else {
                0.05
            };
            let failed = host.unit() < rate;
            let class = if failed {
                OutcomeClass::UpstreamError
            } else {
                OutcomeClass::Ok
            };
            plane
                .recorder
                .begin(decision, now)
                .finish(class, now.after(Duration::from_millis(80)));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(run.finished().await.unwrap().phase, Phase::RolledBack);
}
