//! The limits and outcomes that managed platforms document.

use crate::host::{Host, version};
use crate::oracle::{cases, check_reasons, id};
use llm_rollout::plan::Exposure;
use llm_rollout::presets::sagemaker::{Deployment, Refused, Shift, shadow};
use llm_rollout::presets::{Gates, Pace, canary, shares};
use llm_rollout::{Alarm, Cause, Input, Phase, Plan, Share};
use serde_json::{Value, json};
use std::time::Duration;

const CASES: &str = include_str!("../oracles/peers/platform_limits.json");

/// Cases that do not apply, and why.
const NOT_APPLICABLE: [(&str, &str); 5] = [
    (
        "plat-015",
        "a limit of Azure's gateway; here mirrored traffic has a bounded concurrency and budget of its own",
    ),
    (
        "plat-017",
        "an endpoint here always has a baseline: there is no empty split",
    ),
    (
        "plat-019",
        "shares here are per cent of the traffic, not proportions among any number of backends",
    ),
    (
        "plat-023",
        "a rule of decision, not of a rollout: the gates' own tests are about evidence",
    ),
    (
        "plat-025",
        "a rule of decision: `min_samples` and anytime-valid evidence take its place",
    ),
];

fn deployment(shift: Shift) -> Deployment {
    Deployment::new(shift)
}

fn plan(deployment: &Deployment) -> Result<Plan, Refused> {
    deployment.plan(Gates::nothing())
}

fn shift(given: &Value) -> Option<Shift> {
    let number = |name: &str| given[name].as_f64();
    number("canary_percent")
        .map(Shift::Canary)
        .or(number("linear_step").map(Shift::Linear))
        .or(number("rolling_batch").map(Shift::Rolling))
}

/// Replays one case; false where no rule here is about it.
fn replay(case: &Value) -> bool {
    let (given, expect) = (&case["given"], &case["expect"]);
    let valid = expect["valid"].as_bool();
    if let (true, Some(valid)) = (case["platform"] == "sagemaker", valid) {
        let built = if let Some(shift) = shift(given) {
            plan(&deployment(shift))
        } else if let Some(most) = given["max_timeout"].as_u64() {
            let max_execution = Duration::from_secs(most);
            plan(&Deployment {
                max_execution,
                ..deployment(Shift::AllAtOnce)
            })
        } else if let Some(count) = given["shadow_variants"].as_u64() {
            let names = vec!["shadow"; usize::try_from(count).unwrap()];
            shadow(Gates::nothing(), &names, 10.0, Duration::from_secs(60))
        } else {
            return false;
        };
        assert_eq!(built.is_ok(), valid, "{}", id(case));
        assert!(
            !matches!(built, Err(Refused::Plan(_))),
            "{}: it is named",
            id(case)
        );
    } else if let Some(weights) = expect["new_weights"].as_array() {
        let plan = plan(&deployment(Shift::Canary(25.0))).unwrap();
        let seen: Vec<_> = plan
            .stages()
            .iter()
            .map(|s| json!(s.serve.0.percent().round()))
            .collect();
        let expected: Vec<_> = weights.iter().map(|w| json!(w.as_f64())).collect();
        assert_eq!(seen, expected, "{}", id(case));
        assert!(plan.spec().ungated, "that no alarm watches is said");
    } else if given["alarm_at"] == "baking" {
        let mut deployment = deployment(Shift::AllAtOnce);
        deployment.termination_wait = Duration::from_secs(600);
        deployment.alarms = vec!["errors".to_owned()];
        // At 100 % before promotion, and while the old fleet is still there.
        for phase in [Phase::Soaking { stage: 0 }, Phase::Baking] {
            let mut host = Host::new();
            host.submit(version(2), plan(&deployment).unwrap());
            host.settle();
            while host.phase() != Some(phase) {
                host.advance(1);
            }
            let alarm = Alarm {
                name: "errors".into(),
                detail: "too many".into(),
            };
            host.give(Input::Alarm(alarm)).unwrap();
            host.settle();
            assert!(matches!(host.cause(), Some(Cause::Alarm { .. })));
            let new = host.router.split.share.basis_points() / 100;
            let weights = json!({ "new": new, "old": 100 - new });
            assert_eq!(weights, expect["weights_after"], "{}", id(case));
            assert_eq!(host.active(), version(1));
        }
    } else if given["new_revision_ready"] == false {
        let share = shares([given["canary_percent"].as_f64().unwrap()]).unwrap();
        let mut host = Host::new();
        let pace = Pace::new(Duration::from_secs(60), 0);
        host.submit(version(2), canary(Gates::nothing(), share, pace).unwrap());
        host.found();
        host.now = host.now.after(Duration::from_secs(60));
        host.give(Input::Tick).unwrap();
        assert_eq!(host.phase(), Some(Phase::Warming), "{}", id(case));
        assert_eq!(
            (host.router.split.share, host.active()),
            (Share::NONE, version(1))
        );
    } else if let Some(stages) = given["stages"].as_array() {
        // Stages that do not rise cannot be pooled there; here they are no plan.
        let list = shares(stages.iter().map(|s| s.as_f64().unwrap())).unwrap();
        assert!(list.first() > list.last());
        let pace = Pace::new(Duration::from_secs(60), 0);
        let refused = canary(Gates::nothing(), list, pace).unwrap_err();
        assert!(
            refused.to_string().contains("shrinks"),
            "{}: {refused}",
            id(case)
        );
    } else {
        return false;
    }
    true
}

#[test]
fn every_limit_is_kept() {
    let cases = cases(CASES);
    check_reasons(&cases, NOT_APPLICABLE.iter().map(|r| r.0));
    let mut replayed = 0;
    for case in &cases {
        if let Some((name, why)) = NOT_APPLICABLE.iter().find(|r| r.0 == id(case)) {
            println!("not applicable: {name}: {why}");
            continue;
        }
        assert!(
            replay(case),
            "{} is neither replayed nor explained",
            id(case)
        );
        replayed += 1;
    }
    assert_eq!(replayed + NOT_APPLICABLE.len(), cases.len());
    println!("{replayed} cases replayed");
}

#[test]
fn limits_hold_at_their_edges() {
    let hour = Duration::from_secs(3600);
    for shift in [
        Shift::Canary(50.0),
        Shift::Linear(10.0),
        Shift::Linear(50.0),
        Shift::Rolling(5.0),
    ] {
        plan(&deployment(shift)).unwrap();
    }
    for shift in [
        Shift::Canary(50.1),
        Shift::Canary(f64::NAN),
        Shift::Linear(51.0),
        Shift::Rolling(4.9),
    ] {
        assert!(
            matches!(plan(&deployment(shift)), Err(Refused::Percent { .. })),
            "{shift:?}"
        );
    }
    let waits = |wait, max_execution| Deployment {
        wait,
        max_execution,
        ..deployment(Shift::Linear(10.0))
    };
    assert!(matches!(
        plan(&waits(hour, 8 * hour)),
        Err(Refused::TooLittleTime { .. })
    ));
    assert!(matches!(
        plan(&waits(2 * hour, 8 * hour)),
        Err(Refused::Time { .. })
    ));
    let linear = plan(&waits(hour / 2, 8 * hour)).unwrap();
    assert_eq!(linear.stages().len(), 10);
    let month = Duration::from_secs(30 * 24 * 3600);
    let test = shadow(Gates::nothing(), &["s"], 100.0, month).unwrap();
    assert_eq!(test.stages()[0].mirror, Exposure(Share::ALL));
    assert!(matches!(
        shadow(Gates::nothing(), &["s"], 100.0, month + hour),
        Err(Refused::Time { .. })
    ));
}

#[test]
fn no_stage_lasts_longer_than_the_execution_may() {
    let plan = plan(&deployment(Shift::Linear(50.0))).unwrap();
    let most = Some(deployment(Shift::AllAtOnce).max_execution);
    assert!(plan.stages().iter().all(|s| s.limit == most));
}
