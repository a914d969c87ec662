//! What the linter says of the presets at a traffic that suits them.

use llm_gates::Action;
use llm_rollout::plan::lint::Severity;
use llm_rollout::presets::{self, BlueGreen, Gates, Pace, Reference};
use llm_rollout::{Expected, Finish, MetricDef, Plan, Share, Traffic};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

fn traffic(metrics: &[(&str, f64, f64)]) -> Traffic {
    let traffic = Traffic::new(200.0).history(72 * HOUR);
    let add = |t: Traffic, (name, rate, effect): &(&str, f64, f64)| {
        t.metric(*name, Expected::new(*rate, *effect))
    };
    metrics.iter().fold(traffic, add)
}

fn answers(weight: f64, gates: Gates) -> Gates {
    gates.gate("answers", MetricDef::Pair("judge".to_owned()), weight, 0.02)
}

/// Presets, with the notes that their strategy deserves.
fn all() -> Vec<(&'static str, Plan, &'static [&'static str])> {
    let usual = || Gates::usual(Duration::from_millis(800));
    let pairs = || {
        let mut gates = usual();
        gates.gates.iter_mut().for_each(|g| g.weight *= 0.6);
        answers(0.4, gates)
    };
    let ten = Share::from_percent(10.0).unwrap();
    let shares = |list: &[f64]| presets::shares(list.iter().copied()).unwrap();
    let pace = Pace::new(2 * HOUR, 2_000);
    vec![
        (
            "canary",
            presets::canary(usual(), shares(&[1.0, 5.0, 25.0, 50.0]), pace).unwrap(),
            &[],
        ),
        (
            "exponential",
            presets::canary(
                usual(),
                presets::exponential(1.0, 4.0, 100.0).unwrap(),
                pace,
            )
            .unwrap(),
            &["blind-at-full-share"],
        ),
        (
            "linear",
            presets::canary(usual(), presets::linear(20.0, 100.0).unwrap(), pace).unwrap(),
            &["blind-at-full-share"],
        ),
        (
            "shadow",
            presets::shadow(answers(1.0, Gates::nothing()), ten, pace).unwrap(),
            &[],
        ),
        (
            "shadow then canary",
            presets::shadow_then_canary(pairs(), (ten, pace), shares(&[5.0, 50.0]), pace).unwrap(),
            &[],
        ),
        (
            "a/b",
            presets::a_b(usual(), ten, pace, Finish::Return).unwrap(),
            &[],
        ),
        (
            "blue-green",
            presets::blue_green(usual(), BlueGreen::default()).unwrap(),
            &["blind-at-full-share", "first-stage-large"],
        ),
        (
            "all at once",
            presets::all_at_once(usual(), HOUR, 24 * HOUR).unwrap(),
            &["blind-at-full-share", "first-stage-large"],
        ),
        ("instant", presets::instant(HOUR).unwrap(), &["no-way-back"]),
        (
            "reference",
            presets::reference(Reference::default()).unwrap(),
            &[],
        ),
    ]
}

#[test]
fn presets_lead_to_nothing_but_the_notes_of_their_strategy() {
    for (name, plan, notes) in all() {
        let known = [
            ("faults", 0.01, 2.0),
            ("slow", 0.05, 1.6),
            ("answers", 0.3, 1.3),
            ("latency", 0.05, 1.6),
            ("quality", 0.05, 1.5),
            ("safety", 0.01, 2.0),
            ("satisfaction", 0.05, 1.5),
        ];
        let measured = |m: &&(&str, f64, f64)| plan.spec().metrics.contains_key(m.0);
        let known: Vec<_> = known.iter().filter(measured).copied().collect();
        let findings = plan.lint(&traffic(&known)).unwrap();
        let text = toml::to_string(&plan).unwrap();
        let shown: Vec<_> = findings.iter().map(|f| f.show(&text)).collect();
        let codes: Vec<_> = findings.iter().map(|f| f.code.as_str()).collect();
        assert!(
            findings.iter().all(|f| f.severity == Severity::Note),
            "{name}:\n{}",
            shown.join("\n\n")
        );
        assert_eq!(codes, notes, "{name}:\n{}", shown.join("\n\n"));
    }
}

#[test]
fn the_same_canary_is_too_quick_for_a_small_service() {
    let plan = presets::canary(
        Gates::nothing().gate("faults", MetricDef::Fault {}, 1.0, 0.0),
        presets::shares([1.0, 5.0]).unwrap(),
        Pace::new(HOUR, 500),
    )
    .unwrap();
    assert_eq!(plan.spec().gates[0].action, Action::Rollback);
    let slow = Traffic {
        requests_per_second: 1.0,
        ..traffic(&[("faults", 0.01, 2.0)])
    };
    let codes = |t: &Traffic| {
        let findings = plan.lint(t).unwrap();
        findings.iter().map(|f| f.code.clone()).collect::<Vec<_>>()
    };
    assert!(codes(&traffic(&[("faults", 0.01, 2.0)])).is_empty());
    let found = codes(&slow);
    for code in ["gate-blind", "samples-unreachable"] {
        assert!(
            found.iter().any(|c| c == code),
            "{code} is not in {found:?}"
        );
    }
}

#[test]
fn a_preset_looks_as_often_as_its_shortest_stage_and_its_pairs_ask_for() {
    let ten = || Share::from_percent(10.0).unwrap();
    for (seconds, canary, shadow) in [
        (5, 1_000, 1_000),
        (300, 30_000, 3_000),
        (7_200, 60_000, 60_000),
    ] {
        let pace = Pace::new(Duration::from_secs(seconds), 50);
        let usual = Gates::usual(Duration::from_millis(800));
        let plans = [
            presets::canary(usual, vec![ten()], pace),
            presets::shadow(answers(1.0, Gates::nothing()), ten(), pace),
        ];
        let every = plans.map(|plan| plan.unwrap().spec().look_every.as_millis());
        assert_eq!(every, [canary, shadow], "{seconds} s");
    }
}
