use std::collections::BTreeMap;

use super::*;
use crate::planner::Detection;
use crate::{Action, Counts, Verdict};

fn plan(pass: PassWhen) -> GatePlan {
    let gate = |name, weight| LiveGate::new(name, weight, 0.0, Action::Rollback);
    GatePlan::new(0.05, vec![gate("a", 0.5), gate("b", 0.5)], pass)
}

fn window(at: u64, a: (u64, u64), b: (u64, u64)) -> Window {
    let increment = |candidate: (u64, u64)| Increment::Binary {
        candidate: Counts::new(candidate.0, candidate.1),
        baseline: Counts::new(1_900, 19),
    };
    Window {
        epoch: 1,
        from: at,
        to: at + 1,
        metrics: BTreeMap::from([
            ("a".to_owned(), increment(a)),
            ("b".to_owned(), increment(b)),
        ]),
    }
}

const WEAK: PassWhen = PassWhen::NoEvidenceOfHarm { min_samples: 1_000 };

#[test]
fn a_report_is_a_function_of_plan_and_evidence() {
    let mut evidence = Evidence::new();
    let judgement = evidence
        .observe(&plan(WEAK), &window(7, (100, 1), (100, 1)))
        .unwrap();
    assert_eq!(evidence.report(&plan(WEAK)), judgement);
    let look = evidence.judge(&plan(WEAK));
    assert_eq!(
        (look.verdict, look.samples, look.log_evidence.to_bits()),
        (
            judgement.verdict,
            judgement.samples,
            judgement.log_evidence.to_bits()
        )
    );
    assert_eq!((judgement.from, judgement.to), (7, 8));
}

#[test]
fn a_brief_report_lacks_only_the_estimates() {
    let (mut evidence, mut brief) = (Evidence::new(), Evidence::new());
    for at in 0..40 {
        let bad = window(at, (100, 1 + at / 5), (100, 1));
        let mut judgement = evidence.observe(&plan(WEAK), &bad).unwrap();
        assert_eq!(evidence.report(&plan(WEAK)), judgement);
        for gate in &mut judgement.gates {
            let seen = gate.interval.take().is_some() & gate.detectable.take().is_some();
            assert!(gate.needed.take().is_some() && (seen || at < 20));
        }
        assert_eq!(brief.observe_brief(&plan(WEAK), &bad).unwrap(), judgement);
    }
    assert!(evidence.failed() && brief == evidence);
}

#[test]
fn the_gate_to_blame_is_named_with_its_evidence() {
    let mut evidence = Evidence::new();
    let bad = (0..20).map(|at| {
        evidence
            .observe(&plan(WEAK), &window(at, (100, 9), (100, 1)))
            .unwrap()
    });
    let judgement = bad.last().unwrap();
    let [a, b] = &judgement.gates[..] else {
        unreachable!("two gates")
    };
    let verdicts = (judgement.verdict, a.verdict, b.verdict);
    assert_eq!(verdicts, (Verdict::Fail, Verdict::Fail, Verdict::Pass));
    assert!(a.blamed >= a.bound && b.blamed < b.bound);
    assert_eq!(a.bound, Some(judgement.bound));
    let text = judgement.to_string();
    for part in [
        "fail (rollback): 2000 samples in the stage, ln E",
        "\n  a: fail, 180 of 2000 against 380 of 38000, ratio 9.00",
        "\n  b: pass, 20 of 2000",
        "noise between the arms counts as harm, so false alarms may exceed alpha",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

#[test]
fn what_is_needed_falls_to_nothing_as_an_equal_candidate_passes() {
    let sure = plan(PassWhen::NonInferior {
        min_samples: 500,
        margin: 1.0,
        beta: 0.05,
    });
    let mut evidence = Evidence::new();
    let mut first = None;
    for at in 0..400 {
        let judgement = evidence
            .observe(&sure, &window(at, (100, 1), (100, 1)))
            .unwrap();
        let gate = &judgement.gates[0];
        let (log, bound) = gate.no_harm.unwrap();
        let needed = gate.needed.unwrap();
        first = first.or(Some(needed));
        assert_eq!(needed == 0, gate.verdict == Verdict::Pass);
        assert_eq!(log >= bound && (at + 1) * 100 >= 500, needed == 0);
        if needed == 0 {
            let (said, took) = (first.unwrap() as f64, (at * 100) as f64);
            assert!((said / took).ln().abs() < 0.5, "{said} for {took}");
            return;
        }
    }
    panic!("it never passed");
}

#[test]
fn what_would_have_been_found_is_found_with_that_power() {
    let mut evidence = Evidence::new();
    let looks = (0..20).map(|at| {
        evidence
            .observe(&plan(WEAK), &window(at, (100, 1), (100, 1)))
            .unwrap()
    });
    let gate = looks.last().unwrap().gates.remove(0);
    let ratio = gate.detectable.unwrap();
    let power = |ratio| {
        let detection = Detection::new(0.01, ratio, 0.05, 0.025, 1.5).unwrap();
        detection.probability_by(2_000.0)
    };
    assert!((power(ratio) - 0.8).abs() < 1e-3, "{ratio}");
    let mut early = Evidence::new();
    let few = early
        .observe(&plan(WEAK), &window(0, (2, 0), (2, 0)))
        .unwrap();
    assert_eq!(
        few.gates[0].detectable, None,
        "nothing is found in two requests"
    );
    assert_eq!(few.gates[0].needed, Some(998));
}

#[test]
fn what_is_known_of_noise_is_said() {
    let noise = |cold_start, history: u64| {
        let plan = GatePlan {
            cold_start,
            ..plan(WEAK)
        };
        let mut evidence = Evidence::new();
        for t in 0..history {
            let group = |t: u64| Counts::new(3_000, 30 + t % 3);
            evidence
                .learn(&plan, "a", [group(t), group(t + 1)])
                .unwrap();
        }
        evidence
            .observe(&plan, &window(0, (100, 1), (100, 1)))
            .unwrap()
            .gates[0]
            .noise
    };
    assert_eq!(noise(ColdStart::Quick, 0), Noise::Assumed);
    assert_eq!(noise(ColdStart::Careful, 0), Noise::Allowed);
    assert!(matches!(noise(ColdStart::Quick, 50), Noise::Learnt { blocks } if blocks > 0));
    assert!(Noise::Allowed.cost().is_some() && Noise::Learnt { blocks: 1 }.cost().is_none());
}
