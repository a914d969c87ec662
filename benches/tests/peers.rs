//! The peers' decision rules that the race runs answer as the peers do: every recorded case, weak points included.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a case that cannot be read is a failure"
)]

use benches::race::peers::argo::{self, Limits, Measured, Phase, Unevaluable};
use benches::race::peers::flagger::{self, Around, Canary, Weights};
use benches::race::peers::kayenta::{self, Class, Direction, Metric, Settings};
use benches::race::peers::sequential::{Alarm, Arm, Stopping, msprt, z};
use llm_gates::Counts;
use llm_gates::special::normal;
use serde_json::{Value, json};

fn cases(text: &str) -> Vec<Value> {
    let file: Value = serde_json::from_str(text).unwrap();
    file["cases"].as_array().unwrap().clone()
}

fn id(case: &Value) -> &str {
    case["id"].as_str().unwrap()
}

fn number(value: &Value) -> f64 {
    match value.as_str() {
        Some("NaN") => f64::NAN,
        Some("Inf") => f64::INFINITY,
        Some(other) => panic!("no number: {other}"),
        None => value.as_f64().unwrap(),
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(number).collect()
}

fn close(case: &Value, found: f64, expected: &Value, tolerance: f64) {
    let expected = number(expected);
    assert!(
        (found - expected).abs() <= tolerance || found.is_nan() && expected.is_nan(),
        "{}: {found}, not {expected}",
        id(case)
    );
}

fn phase(text: &str) -> Phase {
    match text {
        "Pending" => Phase::Pending,
        "Running" | "in-flight" => Phase::Running,
        "Successful" => Phase::Successful,
        "Inconclusive" => Phase::Inconclusive,
        "Error" => Phase::Error,
        "Failed" | "failed 1 > limit 0" => Phase::Failed,
        other => panic!("an unknown phase {other}"),
    }
}

/// The few expressions of the cases.
fn evaluate(value: &Value, expression: &str) -> Result<bool, Unevaluable> {
    let scalar = || match value {
        Value::Null | Value::Array(_) => Err(Unevaluable),
        value => Ok(number(value)),
    };
    match expression {
        "true" => Ok(true),
        "false" => Ok(false),
        "<invalid>" => Err(Unevaluable),
        "value >= 0.9" => Ok(scalar()? >= 0.9),
        "value < 0.9" => Ok(scalar()? < 0.9),
        "is_inf(value)" => Ok(scalar()?.is_infinite()),
        "10 in value" => Ok(value.as_array().unwrap().contains(&json!(10))),
        "len(value) != 2" => Ok(value.as_array().unwrap().len() != 2),
        other => panic!("an unknown expression {other}"),
    }
}

#[test]
fn argo_measurements_are_what_argo_says() {
    let cases = cases(include_str!("oracles/peers/argo_conditions.json"));
    for case in &cases {
        let given = &case["given"];
        let condition = |name: &str| given[name].as_str().map(|e| evaluate(&given["value"], e));
        let found = argo::measured(
            condition("success_condition"),
            condition("failure_condition"),
        );
        assert_eq!(
            found,
            phase(case["expect"]["phase"].as_str().unwrap()),
            "{}",
            id(case)
        );
    }
    assert_eq!(cases.len(), 10);
}

#[test]
fn argo_metrics_come_to_what_argo_says() {
    let cases = cases(include_str!("oracles/peers/argo_metric_assessment.json"));
    for case in &cases {
        let (metric, result) = (&case["given"]["metric"], &case["given"]["result"]);
        let limits = Limits {
            failure: match metric["failure_limit"].as_i64() {
                Some(-1) => None,
                limit => Some(limit.unwrap_or(0).try_into().unwrap()),
            },
            inconclusive: metric["inconclusive_limit"].as_u64().unwrap_or(0),
            consecutive_success: metric["consecutive_success_limit"].as_u64(),
            count: metric["count"].as_u64(),
            repeats: !metric["interval"].is_null(),
            ..Limits::default()
        };
        let of = |name: &str| result[name].as_u64().unwrap_or(0);
        let measured = Measured {
            count: of("count"),
            failed: of("failed"),
            inconclusive: of("inconclusive"),
            error: of("error"),
            consecutive_error: of("consecutive_error"),
            consecutive_success: of("consecutive_success"),
        };
        let last = result["last"].as_str().map(phase);
        let terminating = case["given"]["terminating"].as_bool().unwrap();
        let found = argo::assess(&limits, &measured, last, terminating);
        assert_eq!(
            found,
            phase(case["expect"]["phase"].as_str().unwrap()),
            "{}",
            id(case)
        );
    }
    assert_eq!(cases.len(), 35);
}

#[test]
fn argo_runs_come_to_what_argo_says() {
    let cases = cases(include_str!("oracles/peers/argo_run_assessment.json"));
    for case in &cases {
        let (given, expect) = (&case["given"], &case["expect"]);
        if !given["dry_run_rule"].is_null() {
            assert_eq!(argo::dry(&["a", "b"], |name| name == "no-match"), None);
            assert_eq!(expect["phase"], "Error");
            continue;
        }
        // A sibling that is told to stop becomes what its provider says.
        let stopped = given["terminate_result"].as_str().map(phase);
        let phases: Vec<Phase> = given["metrics"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| phase(m.as_str().unwrap()))
            .map(|p| {
                if p == Phase::Running {
                    stopped.unwrap_or(p)
                } else {
                    p
                }
            })
            .collect();
        let metrics: Vec<_> = phases
            .iter()
            .enumerate()
            .map(|(i, p)| (*p, given["dry_run"][i] == true))
            .collect();
        assert_eq!(
            argo::run(&metrics),
            phase(expect["phase"].as_str().unwrap()),
            "{}",
            id(case)
        );
        if let Some(expected) = expect["metric_phases"].as_array() {
            let expected: Vec<_> = expected
                .iter()
                .map(|p| phase(p.as_str().unwrap()))
                .collect();
            assert_eq!(phases, expected, "{}", id(case));
        }
        if let Some(named) = expect["message_metric"].as_u64() {
            assert_eq!(
                argo::named(&metrics),
                usize::try_from(named).ok(),
                "{}",
                id(case)
            );
        }
        if let Some(summary) = expect["dry_run_summary"].as_object() {
            let dry = || metrics.iter().filter(|(_, dry)| *dry);
            assert_eq!(summary["count"], dry().count());
            assert_eq!(
                summary["failed"],
                dry().filter(|(p, _)| *p == Phase::Failed).count()
            );
        }
    }
    assert_eq!(cases.len(), 9);
}

#[test]
fn argo_counts_as_argo_counts() {
    let cases = cases(include_str!(
        "oracles/peers/argo_measurement_scheduling.json"
    ));
    let mut counted = 0;
    for case in &cases {
        let given = &case["given"];
        if given["before"].is_null() {
            // When the next measurement is due: the race measures at fixed intervals.
            assert!(!case["expect"]["due"].is_null() || case["expect"].get("next_in").is_some());
            continue;
        }
        let read = |v: &Value| {
            (
                number(&v["consecutive_error"]),
                number(&v["count"]),
                number(&v["error"]),
            )
        };
        let of = |name: &str| given["before"][name].as_u64().unwrap();
        let mut measured = Measured {
            count: of("count"),
            error: of("error"),
            consecutive_error: of("consecutive_error"),
            ..Measured::default()
        };
        measured.record(phase(given["measurement"].as_str().unwrap()));
        let found = (
            measured.consecutive_error as f64,
            measured.count as f64,
            measured.error as f64,
        );
        assert_eq!(found, read(&case["expect"]["after"]), "{}", id(case));
        counted += 1;
    }
    assert_eq!((cases.len(), counted), (12, 2));
}

#[test]
fn flagger_checks_pass_as_there() {
    let cases = cases(include_str!("oracles/peers/flagger_checks.json"));
    let mut checked = 0;
    for case in &cases {
        let (given, expect) = (&case["given"], &case["expect"]);
        let bound = |name: &str| given[name].as_f64();
        let found = if let Some(metric) = given["metric"].as_str() {
            flagger::in_threshold(metric, number(&given["value"]), number(&given["threshold"]))
        } else if given["value"].is_array() {
            // Several series are an error, which fails like no number.
            flagger::in_range(f64::NAN, bound("min"), bound("max"))
        } else if !given["value"].is_null() {
            flagger::in_range(number(&given["value"]), bound("min"), bound("max"))
        } else if !given["canary_weight"].is_null() {
            let iterations = u32::try_from(given["iterations"].as_u64().unwrap()).unwrap();
            let looks = flagger::looks(
                number(&given["canary_weight"]),
                iterations,
                given["mirrored"] == true,
            );
            assert_eq!(expect["metrics_evaluated"], looks, "{}", id(case));
            checked += 1;
            continue;
        } else if !given["webhook_status"].is_null() {
            let status = given["webhook_status"].as_u64();
            flagger::webhook(status.map(|s| u16::try_from(s).unwrap()))
        } else {
            // Readiness of pods, the choice of a strategy and the syntax of intervals are no decisions about a version.
            assert!(
                ["ready", "strategy", "seconds"]
                    .iter()
                    .any(|k| !expect[*k].is_null())
            );
            continue;
        };
        assert_eq!(expect["pass_"], found, "{}", id(case));
        if expect["counts_as_failed_check"] == true {
            let mut canary = Canary::new(
                Weights::Step {
                    step: 10.0,
                    max: 50.0,
                },
                5,
            );
            for _ in 0..3 {
                canary.tick(Around::default(), || found);
            }
            assert_eq!(canary.failed, 1, "{}", id(case));
        }
        checked += 1;
    }
    assert_eq!((cases.len(), checked), (25, 16));
}

#[test]
fn flagger_progresses_as_there() {
    let cases = cases(include_str!(
        "../../llm-rollout/tests/oracles/peers/flagger_progression.json"
    ));
    for case in &cases {
        let spec = &case["given"]["spec"];
        let of = |name: &str| spec[name].as_f64();
        let weights = if let Some(list) = spec["step_weights"].as_array() {
            Weights::List(list.iter().map(number).collect())
        } else if let Some(count) = spec["iterations"].as_u64() {
            Weights::Iterations(u32::try_from(count).unwrap())
        } else {
            let step = of("step_weight").unwrap_or(10.0);
            Weights::Step {
                step,
                max: of("max_weight").unwrap_or(if step > 50.0 { 100.0 } else { 50.0 }),
            }
        };
        if let Some(seconds) = case["timeline"][0]["expect"]["min_analysis_seconds"].as_f64() {
            let least = Canary::new(weights, 5).least_seconds(of("interval").unwrap());
            assert!((least - seconds).abs() < 1e-9, "{}", id(case));
            continue;
        }
        let threshold = spec["threshold"].as_u64().unwrap_or(10);
        let mut canary = Canary::new(weights, u32::try_from(threshold).unwrap());
        canary.promotion_step = of("step_weight_promotion").unwrap_or(0.0);
        canary.failed = u32::try_from(spec["failed_checks"].as_u64().unwrap_or(0)).unwrap();
        match spec["phase"].as_str() {
            Some("Progressing") => {
                (canary.phase, canary.weight) = (flagger::Phase::Progressing, 10.0);
            }
            Some("Promoting") => (canary.phase, canary.weight) = (flagger::Phase::Promoting, 50.0),
            _ => {}
        }
        if let Some(weight) = of("start_weight") {
            (canary.phase, canary.weight) = (flagger::Phase::Progressing, weight);
        }
        let suspended = &spec["suspend_at"];
        if !suspended.is_null() {
            (canary.phase, canary.weight) = (
                flagger::Phase::Progressing,
                number(&suspended["canary_weight"]),
            );
        }
        let around = Around {
            suspended: !suspended.is_null(),
            rollback: spec["rollback_hook"] == "2xx",
            gate_closed: spec["gate"] == "closed",
            primary_dead: spec["primary"] == "deadline exceeded",
        };
        if around.rollback {
            canary.tick(Around::default(), || true);
        }
        let mut asked = 0;
        let mut passes = || {
            asked += 1;
            match &spec["checks"] {
                Value::String(text) if text.starts_with("fail") => false,
                Value::String(text) if text.starts_with("pass then") => asked < 2,
                Value::Array(_) => false,
                _ => true,
            }
        };
        let mut tick = 0;
        for entry in case["timeline"].as_array().unwrap() {
            let ticks = match (&entry["tick"], entry["do"].as_str(), entry["at"].as_str()) {
                (Value::Number(at), ..) => at.as_u64().unwrap() - tick,
                (Value::String(_), ..) => 1,
                // The tick on which all are routed is the first of them.
                (_, Some("iterations=10"), _) => 9,
                (_, Some("2 failing ticks + 1"), _) => 3,
                (_, Some("10 ticks"), _) => 10,
                (_, _, Some("max weight")) => 3,
                other => panic!("{}: an unknown entry {other:?}", id(case)),
            };
            for _ in 0..ticks {
                canary.tick(around, &mut passes);
                tick += 1;
            }
            let Some(expect) = entry["expect"].as_object() else {
                continue;
            };
            for (key, value) in expect {
                let place = format!("{}, tick {tick}, {key}", id(case));
                match key.as_str() {
                    "phase" => assert_eq!(*value, format!("{:?}", canary.phase), "{place}"),
                    "canary_weight" | "routed_to_canary" => {
                        assert!(
                            (number(value) - canary.weight).abs() < 1e-9,
                            "{place}: {}",
                            canary.weight
                        );
                    }
                    "failed_checks" => assert_eq!(*value, canary.failed, "{place}"),
                    "canary_kept" => assert!(canary.weight > 0.0, "{place}"),
                    "scope" => {}
                    other => panic!("an unknown observation {other}"),
                }
            }
        }
    }
    assert_eq!(cases.len(), 13);
}

fn settings(given: &Value) -> Settings {
    let of = |name: &str, otherwise: f64| given[name].as_f64().unwrap_or(otherwise);
    Settings {
        tolerance: of("tolerance", 0.25),
        confidence: of("conf_level", 0.98),
        allowed_increase: of("allowed_increase", 1.0),
        allowed_decrease: of("allowed_decrease", 1.0),
        critical_increase: of("critical_increase", 1.0),
        critical_decrease: of("critical_decrease", 1.0),
        cles: given["effect_measure"] == "cles",
        direction: match given["direction"].as_str().unwrap() {
            "increase" => Direction::Increase,
            "decrease" => Direction::Decrease,
            _ => Direction::Either,
        },
        replace: given["nan_strategy"] == "replace",
        critical: given["critical_metric"] == true,
        must_have_data: given["must_have_data"] == true,
    }
}

fn class(text: &str) -> Class {
    match text {
        "Pass" => Class::Pass,
        "High" => Class::High,
        "Low" => Class::Low,
        "Nodata" => Class::Nodata,
        "NodataFailMetric" => Class::NodataFailMetric,
        "Error" => Class::Error,
        other => panic!("an unknown class {other}"),
    }
}

#[test]
fn kayenta_classifies_as_there() {
    let cases = cases(include_str!("oracles/peers/kayenta_classifier.json"));
    for case in &cases {
        let (given, expect) = (&case["given"], &case["expect"]);
        let (x, y) = (numbers(&given["experiment"]), numbers(&given["control"]));
        if case["algorithm"] == "mean_inequality" {
            let found = kayenta::compare_means(&x, &y);
            assert_eq!(
                found,
                class(expect["class"].as_str().unwrap()),
                "{}",
                id(case)
            );
            continue;
        }
        // Fixed numbers for the noise that the peer draws.
        let mut turn = 0;
        let draw = || {
            turn += 1;
            normal::quantile(f64::from(turn * 37 % 101) / 101.0)
        };
        let found = kayenta::classify(&settings(&given["params"]), &x, &y, draw);
        if let Some(expected) = expect["class"].as_str() {
            assert_eq!(
                found.class,
                class(expected),
                "{}: {}",
                id(case),
                case["title"]
            );
        }
        if let Some(critical) = expect["critical"].as_bool() {
            assert_eq!(found.critical, critical, "{}", id(case));
        }
        if !expect["deviation"].is_null() {
            close(case, found.effect, &expect["deviation"], 0.0);
        }
        if expect["reason_nonempty"] == true {
            assert!(found.reason.is_some(), "{}", id(case));
        }
    }
    assert_eq!(cases.len(), 26);
}

#[test]
fn kayenta_ranks_as_there() {
    let cases = cases(include_str!("oracles/peers/kayenta_mannwhitney.json"));
    for case in &cases {
        let (given, expect) = (&case["given"], &case["expect"]);
        let tolerance = |name: &str| {
            expect[name]
                .as_f64()
                .or(expect["abs_tol"].as_f64())
                .unwrap()
        };
        match given["op"].as_str().unwrap() {
            "standardised_rank_statistic" => {
                let (x, y) = (numbers(&given["x"]), numbers(&given["y"]));
                let found = kayenta::statistic(&x, &y, number(&given["shift"])).unwrap();
                close(
                    case,
                    found - number(&given["quantile"]),
                    &expect["value"],
                    tolerance("abs_tol"),
                );
            }
            "normal_quantile" => {
                let found = normal::quantile(number(&given["p"]));
                close(case, found, &expect["value"], tolerance("abs_tol"));
            }
            "ci_and_estimate" => {
                let (x, y) = (numbers(&given["experiment"]), numbers(&given["control"]));
                let (ci, estimate) = kayenta::interval(&x, &y, number(&given["conf"])).unwrap();
                for (found, expected) in ci.iter().zip(expect["ci"].as_array().unwrap()) {
                    close(case, *found, expected, tolerance("ci_abs_tol"));
                }
                close(
                    case,
                    estimate,
                    &expect["estimate"],
                    tolerance("estimate_abs_tol"),
                );
            }
            other => panic!("an unknown operation {other}"),
        }
    }
    assert_eq!(cases.len(), 4);
}

#[test]
fn kayenta_measures_as_there() {
    let cases = cases(include_str!("oracles/peers/kayenta_stats.json"));
    for case in &cases {
        let (given, expect) = (&case["given"], &case["expect"]);
        let tolerance = expect["abs_tol"].as_f64().unwrap_or(1e-12);
        let both = || (numbers(&given["experiment"]), numbers(&given["control"]));
        let found = match given["op"].as_str().unwrap() {
            "percentile_r7" => {
                let mut data = numbers(&given["data"]);
                data.sort_by(f64::total_cmp);
                kayenta::percentile(&data, number(&given["p"]))
            }
            "summary" => {
                let data = numbers(&given["data"]);
                assert!(data.is_empty());
                close(case, kayenta::mean(&data), &expect["mean"], 0.0);
                kayenta::deviation(&data) + number(&expect["sample_std"])
            }
            "mean_ratio" => kayenta::mean_ratio(&both().0, &both().1),
            "cohen_d_abs_pooled" => kayenta::cohen_d(&both().0, &both().1),
            "cles" => kayenta::cles(&both().0, &both().1),
            "nan_remove" => {
                assert!(kayenta::cleaned(&numbers(&given["data"]), false).is_empty());
                continue;
            }
            op => {
                let data = numbers(&given["data"]);
                let found = match op {
                    "outliers_iqr" => kayenta::outliers(&data, number(&given["factor"]), false),
                    "outliers_ksigma" => kayenta::far(&data, number(&given["k"])),
                    other => panic!("an unknown operation {other}"),
                };
                assert_eq!(json!(found), expect["outlier_indexes"], "{}", id(case));
                continue;
            }
        };
        let expected = if expect["value"].is_null() {
            &json!(0)
        } else {
            &expect["value"]
        };
        close(case, found, expected, tolerance);
    }
    assert_eq!(cases.len(), 12);
}

#[test]
fn kayenta_scores_as_there() {
    let cases = cases(include_str!("oracles/peers/kayenta_scoring.json"));
    for case in &cases {
        let (given, expect) = (&case["given"], &case["expect"]);
        if let Some(verdict) = expect["verdict"].as_str() {
            let of = |name: &str| number(&given[name]);
            let found =
                kayenta::verdict(of("score"), of("pass_threshold"), of("marginal_threshold"));
            assert_eq!(verdict, format!("{found:?}"), "{}", id(case));
            continue;
        }
        let metric = |m: &Value| Metric {
            class: class(m["class"].as_str().unwrap()),
            critical: m["critical"] == true,
            groups: m["groups"]
                .as_array()
                .unwrap()
                .iter()
                .map(|g| g.as_str().unwrap().to_owned())
                .collect(),
        };
        let metrics: Vec<_> = given["metrics"]
            .as_array()
            .unwrap()
            .iter()
            .map(metric)
            .collect();
        let weights: Vec<_> = given["group_weights"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, w)| (name.clone(), number(w)))
            .collect();
        close(
            case,
            kayenta::score(&metrics, &weights),
            &expect["score"],
            1e-9,
        );
    }
    assert_eq!(cases.len(), 14);
}

/// What `TensorZero`'s own tests state of its rule, with numbers of ours.
#[test]
fn tensorzero_stops_as_there() {
    let arm = |pulls, mean, variance| Arm {
        pulls,
        mean,
        variance,
    };
    let rule = Stopping::default();
    assert_eq!(
        rule.winner(&[arm(9, 0.1, 0.1), arm(1_000, 0.9, 0.1)]),
        None,
        "too few"
    );
    assert_eq!(
        rule.winner(&[arm(900, 0.2, 0.1), arm(900, 0.8, 0.1), arm(900, 0.5, 0.1)]),
        Some(1)
    );
    assert_eq!(
        rule.winner(&[arm(50, 0.50, 0.2), arm(50, 0.52, 0.2)]),
        None,
        "too close"
    );
    // The gap of .2 is 400 / (2 * 2 * .1) = 10 / (1 + ...) nats at 500 each: just above and just below ln((1 + ln t) / delta).
    let nats = |n: u64| 0.04 * n as f64 / (2.0 * 2.0 * 0.1);
    let least = (1..1_000_000)
        .find(|n| nats(*n) > ((1.0 + (2.0 * *n as f64).ln()) / 0.05).ln())
        .unwrap();
    for (n, stops) in [(least - 1, None), (least, Some(0))] {
        assert_eq!(
            rule.winner(&[arm(n, 0.7, 0.1), arm(n, 0.5, 0.1)]),
            stops,
            "{n}"
        );
    }
    let close = [arm(500, 0.68, 0.1), arm(500, 0.70, 0.1)];
    assert_eq!(rule.winner(&close), None);
    assert_eq!(
        Stopping {
            epsilon: 0.2,
            ..rule
        }
        .winner(&close),
        Some(1)
    );
    assert_eq!(
        Stopping {
            ridge: 0.01,
            ..rule
        }
        .winner(&[arm(100, 0.5, 0.0), arm(100, 0.5, 0.0)]),
        None
    );
    // Tied means: the surer one leads, and nobody wins without a gap.
    assert_eq!(
        rule.winner(&[arm(9_000, 0.7, 0.3), arm(9_000, 0.7, 0.1)]),
        None
    );
}

#[test]
fn alarms_and_tests_of_rates_are_what_they_say() {
    let mut alarm = Alarm::new(3, 5);
    let on: Vec<bool> = [true, false, true, false, false, true, true, true]
        .map(|b| alarm.look(Some(b)))
        .to_vec();
    assert_eq!(on, [false, false, false, false, false, false, true, true]);
    assert!(alarm.look(None), "no data changes nothing");
    let (c, b) = (Counts::new(1_000, 20), Counts::new(9_000, 90));
    // (.02 - .01) / sqrt(.011 * .989 * (1/1000 + 1/9000)).
    assert!((z(c, b).unwrap() - 2.876_29).abs() < 1e-4, "{:?}", z(c, b));
    // Integrated numerically: the likelihood of the difference over a normal prior, against that at 0.
    let (v, d, tau) = (
        0.011 * 0.989 * (1.0 / 1_000.0 + 1.0 / 9_000.0),
        0.01f64,
        0.005f64,
    );
    let steps = 20_000;
    let mixture: f64 = (0..steps)
        .map(|i| {
            let at = 0.1 * (f64::from(i) + 0.5) / f64::from(steps) - 0.05;
            let density = (-0.5 * (at / tau).powi(2)).exp() / (tau * std::f64::consts::TAU.sqrt());
            density * ((d * at - 0.5 * at * at) / v).exp() * 0.1 / f64::from(steps)
        })
        .sum();
    assert!((msprt(c, b, tau).unwrap() - mixture.ln()).abs() < 1e-6);
    assert_eq!(
        (z(Counts::new(0, 0), b), msprt(c, Counts::new(0, 0), tau)),
        (None, None)
    );
}
