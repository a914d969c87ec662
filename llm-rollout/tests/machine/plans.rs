//! What a plan may say: the last values that are taken, the first that are refused, and what is left out.

use crate::life::plan;
use llm_gates::{Action, ColdStart, PassWhen};
use llm_rollout::plan::{Exposure, PassSpec, PreFlightSpec, WatchSpec};
use llm_rollout::{Plan, PlanSpec, Response, Share};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

fn non_inferior(spec: &mut PlanSpec, margin: f64, beta: f64) {
    spec.pass = PassSpec::NonInferior { margin, beta };
}

fn watch(spec: &mut PlanSpec, fails: u32, of: u32, every: Duration) {
    let probe = WatchSpec::new("canonical", every, Response::Page);
    spec.watch.push(WatchSpec { fails, of, ..probe });
}

/// Two gates that roll back.
fn budget(spec: &mut PlanSpec, first: f64, second: f64) {
    (spec.gates[0].weight, spec.gates[1].weight) = (first, second);
    spec.gates[1].action = Action::Rollback;
}

fn arms(spec: &mut PlanSpec, serve: f64, control: f64) {
    let exposure = |percent| Exposure(Share::from_percent(percent).unwrap());
    (spec.stages[1].serve, spec.stages[1].control) = (exposure(serve), exposure(control));
}

#[test]
fn every_rule_has_its_bounds() {
    type Change = fn(&mut PlanSpec);
    let taken: [Change; 13] = [
        |s| s.alpha = 0.999,
        |s| s.pause_alpha = Some(0.051),
        |s| non_inferior(s, 0.01, 0.999),
        |s| s.look_every = 10 * MILLI,
        |s| s.lease.ttl = 2 * s.lease.renew_every + MILLI,
        |s| s.gates[0].margin = 0.0,
        |s| (s.gates[0].weight, s.gates[1].action) = (1.0, Action::Warn),
        // What parts of one may be off by, rounded.
        |s| budget(s, 0.5, (1.0 + 1e-9) - 0.5),
        |s| watch(s, 1, 1, SECOND),
        |s| watch(s, 100, 100, SECOND),
        |s| arms(s, 50.0, 50.0),
        |s| arms(s, 99.0, 1.0),
        |s| s.stages[0].limit = Some(s.stages[0].dwell),
    ];
    for (i, change) in taken.into_iter().enumerate() {
        let mut spec = plan().spec().clone();
        change(&mut spec);
        let made = Plan::try_from(spec.clone());
        assert_eq!(made.unwrap().spec(), &spec, "taken[{i}]");
    }
    let refused: [(Change, &str); 30] = [
        (|s| s.alpha = 0.0, "alpha"),
        (|s| s.alpha = 1.0, "alpha"),
        (|s| s.alpha = f64::NAN, "alpha"),
        (|s| s.pause_alpha = Some(0.05), "pause_alpha"),
        (|s| s.pause_alpha = Some(1.0), "pause_alpha"),
        (|s| non_inferior(s, 0.0, 0.1), "pass"),
        (|s| non_inferior(s, f64::INFINITY, 0.1), "pass"),
        (|s| non_inferior(s, 0.1, 0.0), "pass"),
        (|s| non_inferior(s, 0.1, 1.0), "pass"),
        (|s| s.look_every = 9 * MILLI, "look_every"),
        (|s| s.lease.renew_every = 9 * MILLI, "lease.renew_every"),
        (|s| s.lease.ttl = 2 * s.lease.renew_every, "lease.ttl"),
        (|s| s.gates[1].metric = "faults".into(), "gates[1].metric"),
        (|s| s.gates[1].weight = 0.0, "gates[1].weight"),
        (|s| s.gates[1].weight = 1.1, "gates[1].weight"),
        (|s| s.gates[1].weight = f64::NAN, "gates[1].weight"),
        (|s| s.gates[1].margin = -0.1, "gates[1].margin"),
        (|s| s.gates[1].margin = f64::INFINITY, "gates[1].margin"),
        (|s| budget(s, 0.5, 0.6), "gates"),
        (|s| watch(s, 1, 1, 999 * MILLI), "watch[0].every"),
        (|s| watch(s, 0, 1, SECOND), "watch[0].fails"),
        (|s| watch(s, 2, 1, SECOND), "watch[0].fails"),
        (|s| watch(s, 0, 0, SECOND), "watch[0].fails"),
        (|s| watch(s, 1, 101, SECOND), "watch[0].fails"),
        (
            |s| (watch(s, 1, 1, SECOND), watch(s, 1, 1, SECOND)).0,
            "watch[1].probe",
        ),
        (|s| arms(s, 5.0, 50.01), "stages[1].control"),
        (|s| arms(s, 50.01, 50.0), "stages[1].control"),
        (
            |s| s.stages[0].limit = Some(s.stages[0].dwell.saturating_sub(MILLI)),
            "stages[0].limit",
        ),
        (|s| (s.gates, s.ungated) = (Vec::new(), false), "gates"),
        (|s| s.stages.clear(), "stages"),
    ];
    for (i, (change, path)) in refused.into_iter().enumerate() {
        let mut spec = plan().spec().clone();
        change(&mut spec);
        let error = Plan::try_from(spec).unwrap_err();
        assert_eq!(error.path(), Some(path), "refused[{i}]: {error}");
        assert_eq!(error.position(), None, "there is no text");
    }
    let mut spec = plan().spec().clone();
    spec.stages[0].needs = Some(vec!["latency".to_owned()]);
    let error = Plan::try_from(spec).unwrap_err().to_string();
    assert!(error.contains("has no gate"), "{error}");
}

#[test]
fn what_is_judged_beside_the_gates_has_its_rules_too() {
    let text = r#"
        alpha = 0.05
        bake = "1h"
        [metrics]
        faults = { fault = {} }
        slow = { first_token_over = "1s" }
        worse = { pair = "judge" }
        [[gates]]
        metric = "faults"
        weight = 1.0
        [[thresholds]]
        metric = "worse"
        worse_than = { baseline_plus = 0.5 }
        [[hard_limits]]
        metric = "faults"
        [[stages]]
        mirror = 10.0
        serve = 0.0
        dwell = "1m"
        needs = ["worse"]
        [[stages]]
        serve = 5.0
        dwell = "1m"
    "#;
    let limited = |metric: &str| format!("{text}[[hard_limits]]\nmetric = \"{metric}\"\n");
    assert!(Plan::from_toml(&limited("slow")).is_ok());
    let error = Plan::from_toml(&limited("faults")).unwrap_err();
    assert_eq!(error.path(), Some("hard_limits[1].metric"));
    assert_eq!(error.problem(), "\"faults\" already has a hard limit");
    for (needs, why) in [
        (
            "needs = [\"faults\"]",
            "the candidate answers no user in this stage",
        ),
        ("needs = [\"slow\"]", "has no gate"),
    ] {
        let error = Plan::from_toml(&text.replace("needs = [\"worse\"]", needs)).unwrap_err();
        assert_eq!(error.path(), Some("stages[0].needs[0]"));
        assert!(error.problem().contains(why), "{error}");
    }
    let unmirrored = format!("{text}needs = [\"worse\"]\n");
    let error = Plan::from_toml(&unmirrored).unwrap_err();
    assert!(
        error
            .problem()
            .ends_with("nothing is mirrored in this stage"),
        "{error}"
    );
}

#[test]
fn a_stage_judges_what_its_exposure_feeds() {
    let text = r#"
        alpha = 0.05
        bake = "1h"
        [metrics]
        faults = { fault = {} }
        [[gates]]
        metric = "faults"
        weight = 1.0
        [[thresholds]]
        metric = "faults"
        worse_than = { baseline_plus = 0.5 }
        [[thresholds]]
        name = "ceiling"
        metric = "faults"
        worse_than = { absolute = 0.1 }
        [[stages]]
        serve = 0.0
        dwell = "1m"
        [[stages]]
        serve = 5.0
        dwell = "1m"
        [[stages]]
        serve = 100.0
        dwell = "1m"
    "#;
    let plan = Plan::from_toml(text).unwrap();
    let judged = |stage| {
        let plan = plan.gate_plan(stage);
        plan.map_or(0, |plan| plan.thresholds.len())
    };
    assert_eq!([judged(0), judged(1), judged(2)], [0, 2, 1]);
}

#[test]
fn a_threshold_or_a_hard_limit_is_judged_without_a_gate() {
    for alone in [
        "[[thresholds]]\nmetric = \"faults\"\nworse_than = { absolute = 0.1 }",
        "[[hard_limits]]\nmetric = \"faults\"",
    ] {
        let text = format!(
            "alpha = 0.05\nbake = \"1h\"\n[metrics]\nfaults = {{ fault = {{}} }}\n{alone}\n[[stages]]\nserve = 5.0\ndwell = \"1m\"\n"
        );
        let plan = Plan::from_toml(&text).unwrap();
        assert!(plan.gate_plan(0).is_some(), "{alone}");
    }
}

#[test]
fn gates_judge_by_what_the_whole_plan_says() {
    let mut spec = plan().spec().clone();
    spec.pause_alpha = Some(0.25);
    spec.cold_start = ColdStart::Careful;
    spec.pass = PassSpec::NonInferior {
        margin: 0.5,
        beta: 0.1,
    };
    let min_samples = spec.stages[1].min_samples;
    let pass = PassWhen::NonInferior {
        min_samples,
        margin: 0.5,
        beta: 0.1,
    };
    let gates = spec.gates.clone();
    let judged = Plan::try_from(spec).unwrap().gate_plan(1).unwrap();
    assert_eq!((judged.alpha, judged.pause_alpha), (0.05, Some(0.25)));
    assert_eq!(judged.cold_start, ColdStart::Careful);
    assert_eq!((judged.gates, judged.pass), (gates, pass));
}

#[test]
fn what_is_left_out_has_its_default_and_is_not_written() {
    let text = r#"
        alpha = 0.05
        ungated = true
        pre_flight = { gates = { confidence = 0.95, gates = [] } }
        [[watch]]
        probe = "canonical"
        every = "1m"
        action = "hold"
        [[stages]]
        serve = 100.0
        dwell = "1h"
        limit = "4h"
    "#;
    let read = Plan::from_toml(text).unwrap();
    let (spec, hour) = (read.spec(), 3600 * SECOND);
    assert_eq!((spec.watch[0].fails, spec.watch[0].of), (1, 1));
    let deadline = spec.pre_flight.as_ref().map(|p: &PreFlightSpec| p.deadline);
    assert_eq!(deadline, Some(hour));
    assert_eq!(spec.stages[0].limit, Some(4 * hour));
    let written = serde_json::to_string(&read).unwrap();
    for name in ["finish", "mirror", "control", "needs"] {
        assert!(!written.contains(&format!("\"{name}\"")), "{written}");
    }
}

#[test]
fn a_mistake_says_where_it_is() {
    let text = "look_every = \"1m\"\n  alpha = 1.5\n[[stages]]\nserve = 1.0\ndwell = \"1h\"";
    let error = Plan::from_toml(text).unwrap_err();
    assert_eq!(error.path(), Some("alpha"));
    assert_eq!(error.position(), Some((2, 11)));
    assert!(error.to_string().starts_with("line 2, column 11: alpha: "));
}
