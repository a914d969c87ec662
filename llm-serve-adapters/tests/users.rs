//! Users who differ persistently, in virtual time: what is counted before the ramp keeps them from being taken for harm.

#![expect(clippy::print_stdout, reason = "what was measured is said")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Cuttable, Fixed, Host, id, plan, version};
use llm_gates::Assumed;
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

/// Users as they are: a few ask most (Zipf), and everybody's requests fail at a rate of their own (log-normal, sd 1), whoever serves them.
struct Crowd {
    /// Sums of the weights of the users up to each.
    up_to: Vec<f64>,
    rates: Vec<f64>,
}

impl Crowd {
    fn new(users: u32) -> Self {
        let mut sum = 0.0;
        let weights = (1..=users).map(|rank| 1.0 / f64::from(rank));
        let up_to = weights
            .map(|w| {
                sum += w;
                sum
            })
            .collect();
        let rate = |user: u32| {
            let hash = llm_serve_adapters::router::place(&user.to_le_bytes(), 7);
            let parts = hash.to_le_bytes().map(|b| f64::from(b) / 256.0 - 0.5);
            0.03 * (parts.iter().sum::<f64>() * 3.0_f64.sqrt()).exp()
        };
        Self {
            up_to,
            rates: (0..users).map(rate).collect(),
        }
    }

    /// So many requests of them in a second; the candidate multiplies the rate of faults.
    fn serve(&self, host: &mut Host, requests: u32, harm: f64) {
        let plane = host.endpoint.data_plane().clone();
        let now = plane.router.now();
        for _ in 0..requests {
            let at = host.unit() * self.up_to.last().unwrap();
            let user = self.up_to.partition_point(|up_to| *up_to < at);
            let user = user.min(self.rates.len() - 1);
            let key = key(u32::try_from(user).unwrap());
            let decision = plane.router.decide(&Key::session(key.as_bytes()), now);
            let served = decision.role() == Role::Candidate;
            let rate = self.rates[user] * if served { harm } else { 1.0 };
            let failed = host.unit() < rate;
            let class = if failed {
                OutcomeClass::UpstreamError
            } else {
                OutcomeClass::Ok
            };
            plane.recorder.begin(decision, now).finish(class, now);
        }
    }
}

/// Whether a rollout with these users is rolled back, and whether its judgements said that users were taken to be alike.
async fn is_rolled_back(crowd: &Crowd, seed: u32, preview: bool, harm: f64) -> (bool, bool) {
    let mut host = Host::with(&Cuttable::default(), |b| b.clock(Fixed::new())).await;
    let mut spec = half(preview).spec().clone();
    spec.look_every = Duration::from_secs(20);
    for (at, minutes) in spec.stages.iter_mut().rev().zip([15, 30]) {
        at.dwell = Duration::from_secs(60 * minutes);
        at.limit = None;
    }
    let name = id(&format!("r{seed}"));
    let run = host
        .endpoint
        .submit(name, version(2), spec.try_into().unwrap());
    let run = run.await.unwrap();
    let mut taken_alike = false;
    while run.rollout().is_some_and(|r| !r.phase().is_end()) {
        crowd.serve(&mut host, 40, harm);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let rollout = run.rollout();
        if let Some(gate) = rollout.as_ref().and_then(|r| r.judgement()?.gates.first()) {
            taken_alike = gate.assumed.contains(&Assumed::EqualUsers);
        }
    }
    let end = run.finished().await.unwrap();
    (end.phase == Phase::RolledBack, taken_alike)
}

#[tokio::test(start_paused = true)]
async fn few_harmless_candidates_are_rolled_back_for_their_users_once_slices_were_counted() {
    // Seeded by the rollout's id, which is the salt. Were alpha, 5 %, the true rate, more than 6 of 40 would come in 0.3 % of all tests.
    let crowd = Crowd::new(300);
    let (mut blind, mut counted, mut found) = (0, 0, 0);
    for seed in 0..40 {
        let (back, taken_alike) = is_rolled_back(&crowd, seed, false, 1.0).await;
        blind += usize::from(back);
        assert!(taken_alike, "it says what it does not know");
        let (back, taken_alike) = is_rolled_back(&crowd, seed, true, 1.0).await;
        counted += usize::from(back);
        assert!(!taken_alike);
        if seed < 20 {
            found += usize::from(is_rolled_back(&crowd, seed, true, 2.0).await.0);
        }
    }
    println!("rolled back: {blind} of 40 blind, {counted} of 40 counted, {found} of 20 bad");
    assert!(blind >= 10, "{blind} of 40 without slices");
    assert!(counted <= 6, "{counted} of 40 with slices");
    assert!(found >= 16, "{found} of 20 doubled rates");
}
