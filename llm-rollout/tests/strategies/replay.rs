//! Another plan on what happened.

use crate::life::{FENCE, Life, plan, version};
use llm_gates::{Counts, Evidence, Increment, Window};
use llm_rollout::plan::{PassSpec, Undecided};
use llm_rollout::replay::redecide;
use llm_rollout::{
    Advance, Cause, Heartbeat, Input, Look, MetricDef, Phase, Plan, PlanSpec, Position, Recovery,
    Rollout, RouterState, Seq, Share, Standby, Step, Verb,
};
use proptest::prelude::*;
use std::time::Duration;

/// What a recorded minute held: requests, faults and slow answers of the candidate, and of the baseline.
type Minute = ([u64; 3], [u64; 3]);

fn recorded() -> PlanSpec {
    let mut spec = plan().spec().clone();
    for stage in &mut spec.stages {
        stage.dwell = Duration::from_secs(600);
        stage.advance = Advance::Auto;
        stage.min_samples = 0;
    }
    spec
}

fn changed(change: impl FnOnce(&mut PlanSpec)) -> Plan {
    let mut spec = recorded();
    change(&mut spec);
    spec.try_into().unwrap()
}

/// A rollout judged by the real gates, minute by minute.
fn lived(plan: Plan, minutes: &[Minute]) -> (Rollout, Life) {
    let mut life = Life::with(plan);
    let submitted = life.rollout.clone();
    life.give(Input::Start).unwrap();
    life.wait(Duration::from_secs(1_200));
    life.serve();
    life.found();
    let mut evidence = Evidence::new();
    let mut exposed = 0;
    for (candidate, baseline) in minutes {
        let Some(stage) = life.rollout.phase().stage() else {
            break;
        };
        let from = life.now.as_millis();
        life.wait(Duration::from_secs(60));
        let counts = |arm: &[u64; 3], i: usize| Counts {
            n: arm[0],
            k: arm[i].min(arm[0]),
        };
        let increment = |i| Increment::Binary {
            candidate: counts(candidate, i),
            baseline: counts(baseline, i),
        };
        let window = Window {
            epoch: life.rollout.state().split.epoch.get(),
            from,
            to: life.now.as_millis(),
            metrics: [
                ("faults".into(), increment(1)),
                ("slow".into(), increment(2)),
            ]
            .into(),
        };
        let gates = life.rollout.plan().gate_plan(stage).unwrap();
        exposed += candidate[0];
        let look = Look {
            judgement: evidence.observe(&gates, &window).unwrap(),
            heartbeat: Some(Heartbeat {
                exposed,
                waiting: Duration::ZERO,
            }),
            fence: FENCE,
            routers: life.routers(),
        };
        life.give(Input::Judged(Box::new(look))).unwrap();
        for _ in 0..4 {
            life.found();
            life.serve();
        }
    }
    (submitted, life)
}

/// The candidate fails twice as often.
fn harmful() -> (Rollout, Vec<Step>) {
    let minute = ([100, 6, 1], [1_900, 57, 19]);
    let (submitted, life) = lived(changed(|_| {}), &[minute; 300]);
    assert!(matches!(
        life.rollout.state().cause,
        Some(Cause::Gate { .. })
    ));
    (submitted, life.log)
}

#[test]
fn the_same_plan_decides_the_same() {
    let (submitted, log) = harmful();
    let again = redecide(&submitted, &log, submitted.plan());
    assert_eq!(again.now, again.then);
    assert_eq!((again.parted, again.sooner()), (None, None));
    assert!(again.unjudged.is_empty(), "{:?}", again.unjudged);

    // What has been decided is carried through, as far as nobody says otherwise.
    let decided = log.iter().position(|s| s.state.cause.is_some()).unwrap();
    let cut = redecide(&submitted, &log[..=decided], submitted.plan());
    assert_eq!(
        (cut.now.phase, &cut.now.back),
        (Phase::RolledBack, &cut.then.back)
    );
    assert_eq!(cut.steps.last().unwrap().at, log[decided].at);

    // A verdict at its very deadline is in time.
    let strict = changed(|s| s.triggers.no_verdict = Duration::from_secs(60));
    let (submitted, life) = lived(strict, &[([100, 3, 1], [1_900, 57, 19]); 5]);
    let again = redecide(&submitted, &life.log, submitted.plan());
    assert_eq!((&again.now, again.now.back.is_some()), (&again.then, false));
}

#[test]
fn a_bolder_alpha_goes_back_sooner_and_a_wide_margin_never() {
    let (submitted, log) = harmful();
    let bold = redecide(&submitted, &log, &changed(|s| s.alpha = 0.5));
    assert!(bold.sooner().is_some());
    assert!(bold.now.exposed < bold.then.exposed);
    assert_eq!(
        bold.parted, None,
        "going back is told, and is no other ramp"
    );
    assert!(matches!(&bold.now.back, Some((_, Cause::Gate { metric, .. })) if metric == "faults"));

    let wide = redecide(&submitted, &log, &changed(|s| s.gates[0].margin = 3.0));
    assert_eq!(wide.now.back, None);
    assert!(wide.then.back.is_some());
    assert_eq!(wide.parted, None);
}

#[test]
fn another_ramp_parts_from_what_happened() {
    let minute = ([100, 3, 1], [1_900, 57, 19]);
    let (submitted, life) = lived(changed(|_| {}), &[minute; 30]);
    let log = life.log;
    let slow = changed(|s| {
        for stage in &mut s.stages {
            stage.dwell = Duration::from_secs(4 * 3600);
            stage.limit = None;
        }
    });
    let slow = redecide(&submitted, &log, &slow);
    let (at, had, has) = slow.parted.unwrap();
    assert!(had > has && at > submitted.state().since);
    assert!(slow.now.largest_share < slow.then.largest_share);
}

#[test]
fn what_the_log_does_not_hold_is_said() {
    let (submitted, log) = harmful();
    let other = changed(|s| {
        s.metrics
            .insert("new".into(), MetricDef::Flag("odd".into()));
        s.metrics.insert(
            "slow".into(),
            MetricDef::DurationOver(Duration::from_secs(9)),
        );
        s.gates[0].weight = 0.3;
        s.gates[1].weight = 0.3;
        let mut gate = s.gates[0].clone();
        gate.metric = "new".into();
        s.gates.push(gate);
        s.pre_flight = Some(llm_rollout::plan::PreFlightSpec {
            gates: llm_gates::GateTable::reference(),
            deadline: Duration::from_secs(60),
        });
    });
    let again = redecide(&submitted, &log, &other);
    let said: Vec<_> = again.unjudged.iter().map(String::as_str).collect();
    for part in [
        "gate on \"new\"",
        "gate on \"slow\"",
        "gates before deployment",
    ] {
        assert!(said.iter().any(|s| s.contains(part)), "{part} in {said:?}");
    }
    assert!(
        again.now.back.is_some(),
        "the faults are judged all the same"
    );
}

#[test]
fn what_people_said_and_routers_did_is_taken_along() {
    let mut life = Life::with(changed(|_| {}));
    let submitted = life.rollout.clone();
    life.give(Input::Start).unwrap();
    life.serve();
    life.found();
    life.wait(Duration::from_secs(30));
    life.router.lapsed = true;
    life.found();
    life.found();
    life.wait(Duration::from_secs(30));
    life.operator(Verb::Abort).unwrap();
    let again = redecide(&submitted, &life.log, &changed(|s| s.lease.lapses = 1));
    assert!(matches!(again.now.back, Some((_, Cause::Lapsed { .. }))));
    assert!(matches!(again.then.back, Some((_, Cause::Operator { .. }))));
    assert_eq!(again.sooner(), Some(Duration::from_secs(30)));
}

#[test]
fn what_a_router_does_sends_any_plan_back() {
    type Change = fn(&mut RouterState);
    let changes: [Change; 6] = [
        |r| r.mark = Some("r1".parse().unwrap()),
        |r| r.latch = Some(version(1)),
        |r| r.at.seq = Seq::new(1_000),
        |r| r.at.seq = Seq::new(r.at.seq.get() - 1),
        |r| r.at = Position::default(),
        |r| r.split.share = Share::ALL,
    ];
    let slower = changed(|s| s.stages[0].dwell = Duration::from_secs(1_200));
    for (i, change) in changes.into_iter().enumerate() {
        let (submitted, mut life) = lived(changed(|_| {}), &[([100, 3, 1], [1_900, 57, 19]); 3]);
        life.wait(Duration::from_secs(30));
        change(&mut life.router);
        assert!(life.found());
        for plan in [submitted.plan(), &slower] {
            let again = redecide(&submitted, &life.log, plan);
            assert!(again.then.back.is_some());
            assert_eq!(again.now.back, again.then.back, "change {i}");
        }
    }
}

#[test]
fn deadlines_of_the_new_plan_fall_when_they_are_due() {
    let hour = Duration::from_secs(3600);
    let patient = changed(|s| s.triggers.no_verdict = 9 * hour);
    let (submitted, mut life) = lived(patient, &[([100, 3, 1], [1_900, 57, 19]); 3]);
    let heard = life.now;
    life.wait(8 * hour);
    life.operator(Verb::Abort).unwrap();
    let other = changed(|s| {
        s.triggers.no_verdict = hour;
        s.outcomes.no_verdict = Undecided::Hold;
        s.outcomes.held = 2 * hour;
    });
    let again = redecide(&submitted, &life.log, &other);
    let phase = Phase::Held { stage: 0 };
    let back = (heard.after(3 * hour), Cause::Deadline { phase });
    assert_eq!(again.now.back, Some(back));
    assert_eq!(again.sooner(), Some(5 * hour));
}

#[test]
fn a_cold_baseline_is_taken_to_load_at_once() {
    let cold = changed(|s| {
        s.recovery.standby = Standby::Cold;
        s.stages.drain(..2);
    });
    let mut life = Life::with(cold);
    let submitted = life.rollout.clone();
    life.give(Input::Start).unwrap();
    life.serve();
    life.found();
    life.serve();
    life.serve();
    life.wait(Duration::from_secs(60));
    life.operator(Verb::Abort).unwrap();
    let again = redecide(&submitted, &life.log, submitted.plan());
    let part = Recovery::Warming;
    assert_eq!(again.then.phase, Phase::RollingBack { part });
    assert_eq!(again.now.phase, Phase::RolledBack);
}

#[test]
fn gates_before_deployment_say_what_they_said() {
    let table = |gates| {
        changed(|s| {
            let deadline = Duration::from_secs(60);
            s.pre_flight = Some(llm_rollout::plan::PreFlightSpec { gates, deadline });
        })
    };
    let gates = llm_gates::GateTable::reference();
    let mut report = gates.evaluate(&std::collections::BTreeMap::default());
    for row in &mut report.rows {
        row.verdict = llm_gates::Verdict::Pass;
    }
    let mut life = Life::with(table(gates.clone()));
    let submitted = life.rollout.clone();
    life.give(Input::Start).unwrap();
    life.wait(Duration::from_secs(30));
    life.give(Input::PreFlight(report)).unwrap();
    life.serve();
    life.found();
    let same = redecide(&submitted, &life.log, submitted.plan());
    assert_eq!(
        (&same.now, same.now.phase),
        (&same.then, Phase::Soaking { stage: 0 })
    );
    assert!(same.unjudged.is_empty(), "{:?}", same.unjudged);
    let mut other = gates;
    other.gates.pop();
    let other = redecide(&submitted, &life.log, &table(other));
    let said = other.unjudged.first().unwrap();
    assert!(said.contains("what the old table said"), "{said}");

    // Measured, and not gated: the log holds no counts.
    let odd = |s: &mut PlanSpec| {
        let flag = MetricDef::Flag("odd".into());
        s.metrics.insert("odd".into(), flag);
    };
    let (submitted, life) = lived(changed(odd), &[([100, 3, 1], [1_900, 57, 19]); 3]);
    let gated = changed(|s| {
        odd(s);
        s.gates[1].metric = "odd".into();
    });
    let again = redecide(&submitted, &life.log, &gated);
    let said: Vec<_> = again.unjudged.into_iter().collect();
    assert_eq!(
        said,
        ["the gate on \"odd\": no gate has counted the metric"]
    );
}

fn minute() -> impl Strategy<Value = Minute> {
    let arm = |most: u64| (1..most, 0..most / 8, 0..most / 8).prop_map(|(n, a, b)| [n, a, b]);
    (arm(80), arm(900))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever was counted: the recorded plan, decided again, gives the recorded fate, and any other plan some fate.
    #[test]
    fn every_log_can_be_decided_again(minutes in prop::collection::vec(minute(), 0..80), strict in any::<bool>(), alpha in 0.01..0.9f64) {
        let spec = changed(|s| {
            if strict {
                s.pass = PassSpec::NonInferior { margin: 0.5, beta: 0.2 };
                s.stages[0].min_samples = 300;
            }
        });
        let (submitted, life) = lived(spec, &minutes);
        let again = redecide(&submitted, &life.log, submitted.plan());
        prop_assert_eq!(&again.now.back, &again.then.back);
        prop_assert_eq!(again.now.exposed, again.then.exposed);
        prop_assert_eq!(again.parted, None);
        prop_assert!(again.unjudged.is_empty(), "{:?}", again.unjudged);
        let other = redecide(&submitted, &life.log, &changed(|s| s.alpha = alpha));
        let phase = other.now.phase;
        prop_assert_eq!(other.now.back.is_some(), matches!(phase, Phase::RollingBack { .. } | Phase::RolledBack | Phase::Blocked));
    }
}
