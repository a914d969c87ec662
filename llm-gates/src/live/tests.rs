use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::anytime::Scores;
use crate::quality::Comparisons;
use crate::{Action, Counts, Sketch, Verdict};

fn plan() -> GatePlan {
    GatePlan {
        pause_alpha: Some(0.25),
        ..GatePlan::new(
            0.05,
            vec![
                LiveGate::new("error", 0.7, 0.0, Action::Rollback),
                LiveGate::new("slow", 0.3, 0.1, Action::Rollback),
            ],
            PassWhen::NoEvidenceOfHarm { min_samples: 500 },
        )
    }
}

fn increment(candidate: (u64, u64), baseline: (u64, u64)) -> Increment {
    Increment::Binary {
        candidate: Counts::new(candidate.0, candidate.1),
        baseline: Counts::new(baseline.0, baseline.1),
    }
}

fn window(epoch: u64, from: u64, to: u64, error: Increment, slow: Increment) -> Window {
    Window {
        epoch,
        from,
        to,
        metrics: BTreeMap::from([("error".to_owned(), error), ("slow".to_owned(), slow)]),
    }
}

fn good(epoch: u64, at: u64) -> Window {
    window(
        epoch,
        at,
        at + 1,
        increment((100, 1), (1000, 10)),
        increment((100, 2), (1000, 20)),
    )
}

fn bad(epoch: u64, at: u64) -> Window {
    window(
        epoch,
        at,
        at + 1,
        increment((100, 30), (1000, 10)),
        increment((100, 2), (1000, 20)),
    )
}

#[test]
fn passes_with_enough_samples_of_this_epoch_and_no_harm() {
    let (plan, mut evidence) = (plan(), Evidence::new());
    for t in 0..5 {
        let judgement = evidence.observe(&plan, &good(1, t)).unwrap();
        assert_eq!(judgement.samples, 100 * (t + 1));
        assert_eq!(
            judgement.verdict,
            if t == 4 {
                Verdict::Pass
            } else {
                Verdict::Inconclusive
            }
        );
    }
    let next = evidence.observe(&plan, &good(2, 5)).unwrap();
    assert_eq!((next.samples, next.verdict), (100, Verdict::Inconclusive));
    assert_eq!(next.gates[0].candidate, Counts::new(600, 6));
}

#[test]
fn failing_is_absorbing_and_survives_a_restart_and_a_new_epoch() {
    let (plan, mut evidence) = (plan(), Evidence::new());
    let judgement = evidence.observe(&plan, &bad(1, 0)).unwrap();
    assert_eq!(
        (judgement.verdict, judgement.action),
        (Verdict::Fail, Some(Action::Rollback))
    );
    assert!(judgement.log_evidence >= judgement.bound);
    let mut evidence: Evidence =
        serde_json::from_str(&serde_json::to_string(&evidence).unwrap()).unwrap();
    for t in 1..200 {
        assert_eq!(
            evidence.observe(&plan, &good(2, t)).unwrap().verdict,
            Verdict::Fail
        );
    }
}

#[test]
fn a_hold_gate_holds_while_it_fails_and_a_warning_does_not() {
    for (action, while_bad) in [
        (Action::Hold, Verdict::Inconclusive),
        (Action::Warn, Verdict::Pass),
    ] {
        let mut plan = plan();
        plan.gates[0].action = action;
        let mut evidence = Evidence::new();
        for t in 0..5 {
            evidence.observe(&plan, &bad(1, t)).unwrap();
        }
        let judgement = evidence.observe(&plan, &bad(1, 5)).unwrap();
        assert_eq!(
            (judgement.verdict, judgement.action),
            (while_bad, Some(action))
        );
        let clean = window(
            1,
            6,
            7,
            increment((100_000, 100), (1_000_000, 10_000)),
            increment((100, 2), (1000, 20)),
        );
        let judgement = evidence.observe(&plan, &clean).unwrap();
        assert_eq!((judgement.verdict, judgement.action), (Verdict::Pass, None));
    }
}

#[test]
fn pauses_before_it_rolls_back() {
    let (plan, mut evidence) = (plan(), Evidence::new());
    for t in 0..5 {
        evidence.observe(&plan, &good(1, t)).unwrap();
    }
    let judgement = evidence
        .observe(
            &plan,
            &window(
                1,
                5,
                6,
                increment((400, 14), (4000, 40)),
                increment((400, 8), (4000, 80)),
            ),
        )
        .unwrap();
    assert!(
        judgement.paused && judgement.verdict == Verdict::Inconclusive,
        "{judgement:?}"
    );
}

#[test]
fn non_inferiority_needs_evidence() {
    let mut plan = plan();
    plan.pass = PassWhen::NonInferior {
        min_samples: 100,
        margin: 0.5,
        beta: 0.05,
    };
    let mut evidence = Evidence::new();
    assert_eq!(
        evidence.observe(&plan, &good(1, 0)).unwrap().verdict,
        Verdict::Inconclusive
    );
    let last = (1..200)
        .map(|t| evidence.observe(&plan, &good(1, t)).unwrap().verdict)
        .find(|v| *v == Verdict::Pass);
    assert_eq!(last, Some(Verdict::Pass));
}

#[test]
fn a_later_stage_may_ask_for_non_inferiority() {
    let mut evidence = Evidence::new();
    evidence.observe(&plan(), &good(1, 0)).unwrap();
    let plan = GatePlan {
        pass: PassWhen::NonInferior {
            min_samples: 100,
            margin: 0.5,
            beta: 0.05,
        },
        ..plan()
    };
    assert!(
        (1..200).any(|t| evidence.observe(&plan, &good(2, t)).unwrap().verdict == Verdict::Pass)
    );
}

#[test]
fn bad_windows_are_named_and_change_nothing() {
    let plan = plan();
    let mut evidence = Evidence::new();
    evidence.observe(&plan, &good(2, 10)).unwrap();
    let before = evidence.clone();
    let ok = increment((1, 0), (1, 0));
    let mut lacking = good(2, 11);
    lacking.metrics.remove("slow");
    let mut ungated = good(2, 11);
    ungated
        .metrics
        .insert("other".to_owned(), increment((0, 1), (0, 0)));
    let other_margin = GatePlan {
        gates: vec![LiveGate::new("error", 1.0, 0.2, Action::Rollback)],
        ..plan.clone()
    };
    for (plan, window, wanted) in [
        (&plan, good(1, 11), "of epoch 1"),
        (&plan, good(2, 10), "everything before 11"),
        (
            &plan,
            Window {
                to: 11,
                ..good(2, 11)
            },
            "ends at 11",
        ),
        (
            &plan,
            window(2, 11, 12, increment((1, 2), (1, 0)), ok.clone()),
            "`error` of the candidate: 2 events among 1",
        ),
        (
            &plan,
            window(2, 11, 12, ok.clone(), increment((1, 0), (u64::MAX, 0))),
            "`slow` of the baseline: the sum",
        ),
        (&plan, lacking, "lacks the gated metric `slow`"),
        (&plan, ungated, "`other` of the candidate"),
        (&other_margin, good(2, 11), "now tolerates a ratio of 1.2"),
    ] {
        let error = evidence.observe(plan, &window).unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
        assert_eq!(evidence, before);
    }
}

#[test]
fn plans_that_make_no_test_are_refused() {
    let with = |f: &dyn Fn(&mut GatePlan)| {
        let mut plan = plan();
        f(&mut plan);
        plan.validate().unwrap_err().to_string()
    };
    for (said, wanted) in [
        (with(&|p| p.alpha = 0.0), "`alpha` is 0"),
        (with(&|p| p.alpha = f64::NAN), "`alpha` is NaN"),
        (with(&|p| p.pause_alpha = Some(0.01)), "never pause"),
        (with(&|p| p.gates.clear()), "no gates"),
        (
            with(&|p| p.gates[1].metric = "error".to_owned()),
            "two gates",
        ),
        (with(&|p| p.gates[0].weight = 0.8), "sum to 1.1"),
        (with(&|p| p.gates[0].weight = f64::NAN), "weight of `error`"),
        (with(&|p| p.gates[0].margin = -0.1), "margin of `error`"),
        (with(&|p| p.gates[0].action = Action::Block), "would block"),
        (
            with(&|p| {
                p.pass = PassWhen::NonInferior {
                    min_samples: 0,
                    margin: 0.0,
                    beta: 0.1,
                }
            }),
            "margin of `pass`",
        ),
    ] {
        assert!(said.contains(wanted), "{said}");
    }
}

#[test]
fn only_warnings_leave_logs_that_json_can_hold() {
    let plan = GatePlan {
        gates: vec![LiveGate::new("error", 1.0, 0.0, Action::Warn)],
        ..plan()
    };
    let judgement = Evidence::new().observe(&plan, &good(1, 0)).unwrap();
    let back: Judgement =
        serde_json::from_str(&serde_json::to_string(&judgement).unwrap()).unwrap();
    assert_eq!(back, judgement);
}

fn counts() -> impl Strategy<Value = Counts> {
    (0u64..2000)
        .prop_flat_map(|n| (Just(n), 0..=n))
        .prop_map(|(n, k)| Counts { n, k })
}

proptest! {
    /// Saving and loading after every look changes nothing, to the last bit, and lost windows change nothing but themselves.
    #[test]
    fn survives_json_at_every_look(looks in prop::collection::vec((counts(), counts(), counts(), counts(), 0u64..2), 1..30)) {
        let plan = plan();
        let (mut kept, mut saved) = (Evidence::new(), Evidence::new());
        let mut epoch = 0;
        for (t, &(a, b, c, d, step)) in looks.iter().enumerate() {
            epoch += step;
            let w = window(epoch, t as u64, t as u64 + 1,
                Increment::Binary { candidate: a, baseline: b }, Increment::Binary { candidate: c, baseline: d });
            let w: Window = serde_json::from_str(&serde_json::to_string(&w).unwrap()).unwrap();
            let judgement = kept.observe(&plan, &w).unwrap();
            prop_assert_eq!(&saved.observe(&plan, &w).unwrap(), &judgement);
            let text = serde_json::to_string(&saved).unwrap();
            saved = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&saved, &kept);
            let back: Judgement = serde_json::from_str(&serde_json::to_string(&judgement).unwrap()).unwrap();
            prop_assert_eq!(back, judgement);
            let twice = kept.observe(&plan, &w).is_err();
            prop_assert!(twice);
            prop_assert_eq!(&saved, &kept);
        }
    }
}

fn error_only(action: Action) -> GatePlan {
    GatePlan {
        gates: vec![LiveGate::new("error", 1.0, 0.0, action)],
        ..plan()
    }
}

fn one(at: u64, increment: Increment) -> Window {
    Window {
        epoch: 1,
        from: at,
        to: at + 1,
        metrics: BTreeMap::from([("error".to_owned(), increment)]),
    }
}

#[test]
fn users_that_differ_before_the_ramp_are_no_harm() {
    let plan = error_only(Action::Rollback);
    let (mut blind, mut wise) = (Evidence::new(), Evidence::new());
    // The slice of 5 % has twice the rate of the others while all are served by the baseline.
    wise.learn_slice(
        "error",
        500,
        Counts::new(20_000, 400),
        Counts::new(400_000, 4_000),
    )
    .unwrap();
    wise.expose(500);
    blind.expose(500);
    let window = |t| one(t, increment((500, 10), (10_000, 100)));
    let mut last = None;
    for t in 0..100 {
        blind.observe(&plan, &window(t)).unwrap();
        last = Some(wise.observe(&plan, &window(t)).unwrap());
    }
    assert!(blind.failed() && !wise.failed());
    let users = last.unwrap().gates[0].users.unwrap();
    assert!(users > 2.0 && users < 2.3, "{users}");
    // Harm on top of that is found, and another slice has no excuse.
    assert!((100..300).any(|t| {
        wise.observe(&plan, &one(t, increment((500, 20), (10_000, 100))))
            .unwrap()
            .verdict
            == Verdict::Fail
    }));
    assert!(
        wise.learn_slice("error", 500, Counts::new(1, 0), Counts::new(1, 0))
            .is_err()
    );
}

#[test]
fn what_is_taken_for_granted_is_said() {
    let plan = error_only(Action::Rollback);
    let assumed = |evidence: &Evidence, increment: Increment| {
        let judgement = evidence.clone().observe(&plan, &one(0, increment)).unwrap();
        judgement.gates[0].assumed.clone()
    };
    let rate = || increment((500, 5), (10_000, 100));
    let pairs = Increment::Compared(Comparisons {
        wins: 1,
        ties: 8,
        losses: 1,
    });
    let mut evidence = Evidence::new();
    let (quiet, equal) = (Assumed::QuietArms, Assumed::EqualUsers);
    assert_eq!(assumed(&evidence, rate()), [quiet, equal]);
    assert_eq!(assumed(&evidence, pairs), []);
    let half = Counts::new(5_000, 50);
    evidence
        .learn_slice("error", 500, Counts::new(400, 4), half)
        .unwrap();
    assert_eq!(assumed(&evidence, rate()), [quiet, equal], "another slice");
    evidence.expose(500);
    assert_eq!(assumed(&evidence, rate()), [quiet]);
    assert!(!evidence.has_begun("error"));
    evidence.learn(&plan, "error", [half, half]).unwrap();
    assert!(evidence.has_begun("error") && !evidence.has_begun("other"));
    assert_eq!(assumed(&evidence, rate()), []);
    // A metric that has begun keeps no other from being learnt.
    evidence.look(&plan, &one(0, rate())).unwrap();
    let late = |e: &mut Evidence, metric| e.learn_slice(metric, 500, half, half).is_err();
    assert!(late(&mut evidence, "error") && !late(&mut evidence, "slow"));
}

#[test]
fn learnt_noise_is_no_harm_and_survives_json() {
    let plan = error_only(Action::Rollback);
    let (mut blind, mut wise) = (Evidence::new(), Evidence::new());
    // Two groups of the baseline that differ by a factor of 3, now this way and now that.
    let swing = |t: u64| {
        if (t / 3).is_multiple_of(2) {
            (90, 30)
        } else {
            (30, 90)
        }
    };
    for t in 0..600 {
        let (a, b) = swing(t);
        wise.learn(
            &plan,
            "error",
            [Counts::new(3_000, a), Counts::new(3_000, b)],
        )
        .unwrap();
    }
    for t in 0..40 {
        let (a, b) = swing(t);
        let increment = Increment::Grouped {
            candidate: Counts::new(3_000, a),
            baseline: [Counts::new(3_000, b), Counts::new(3_000, a.midpoint(b))],
        };
        let window = Window {
            from: t * 300_000,
            to: (t + 1) * 300_000,
            ..one(0, increment)
        };
        blind.observe(&plan, &window).unwrap();
        let judgement = wise.observe(&plan, &window).unwrap();
        assert!((judgement.bound - (1.0f64 / 0.045).ln()).abs() < 1e-12);
        let text = serde_json::to_string(&wise).unwrap();
        let back: Evidence = serde_json::from_str(&text).unwrap();
        assert_eq!(back, wise);
        assert!(
            serde_json::from_str::<Evidence>(&text.replacen(
                "\"likelihood\":[",
                "\"likelihood\":[0.5,",
                1
            ))
            .is_err()
        );
    }
    assert!(blind.failed() && !wise.failed());
    let late = wise
        .learn(&plan, "error", [Counts::new(1, 0); 2])
        .unwrap_err();
    assert!(late.to_string().contains("before the ramp"), "{late}");
    assert!(
        wise.learn(&plan, "nothing", [Counts::new(1, 0); 2])
            .is_err()
    );
}

#[test]
fn scores_and_comparisons_are_judged_by_their_means() {
    let plan = error_only(Action::Rollback);
    let scores = |n: u64, mean: f64| Scores {
        n,
        sum: mean * n as f64,
        square: (mean * mean + 0.02) * n as f64,
    };
    let compared = |wins, ties, losses| Increment::Compared(Comparisons { wins, ties, losses });
    let worse = Increment::Scores {
        candidate: scores(50, 0.5),
        baseline: scores(50, 0.3),
    };
    let alike = Increment::Scores {
        candidate: scores(50, 0.3),
        baseline: scores(50, 0.3),
    };
    for (good, bad) in [(alike, worse), (compared(20, 10, 20), compared(10, 10, 30))] {
        let (mut fine, mut harmed) = (Evidence::new(), Evidence::new());
        for t in 0..50 {
            fine.observe(&plan, &one(t, good.clone())).unwrap();
            harmed.observe(&plan, &one(t, bad.clone())).unwrap();
        }
        assert!(!fine.failed() && harmed.failed());
        let text = serde_json::to_string(&harmed).unwrap();
        assert_eq!(serde_json::from_str::<Evidence>(&text).unwrap(), harmed);
        assert_eq!(
            harmed
                .observe(&plan, &one(50, increment((1, 0), (1, 0))))
                .unwrap_err(),
            BadWindow::Kind {
                metric: "error".to_owned()
            }
        );
        let sure = GatePlan {
            pass: PassWhen::NonInferior {
                min_samples: 1,
                margin: 0.1,
                beta: 0.05,
            },
            ..plan.clone()
        };
        assert!(
            (50..2_000).any(
                |t| fine.observe(&sure, &one(t, good.clone())).unwrap().verdict == Verdict::Pass
            )
        );
    }
    let impossible = Increment::Scores {
        candidate: Scores {
            n: 1,
            sum: 2.0,
            square: 1.0,
        },
        baseline: scores(1, 0.5),
    };
    assert!(Evidence::new().observe(&plan, &one(0, impossible)).is_err());
}

#[test]
fn blame_goes_to_the_gate_that_is_harmed() {
    let (plan, mut evidence) = (plan(), Evidence::new());
    let judgement = evidence.observe(&plan, &bad(1, 0)).unwrap();
    assert_eq!(
        judgement
            .gates
            .iter()
            .map(|g| g.verdict)
            .collect::<Vec<_>>(),
        [Verdict::Fail, Verdict::Inconclusive]
    );
}

#[test]
fn latencies_and_events_per_exposure_are_judged() {
    let plan = error_only(Action::Rollback);
    let latency = |scale: f64, t: u64| {
        let mut sketch = Sketch::default();
        for i in 0..100 {
            sketch.record(scale * (100.0 + (f64::from(i) * 7.3 + t as f64 * 3.1) % 50.0));
        }
        sketch
    };
    let slow = |scale: f64| {
        move |t: u64| Increment::Latency {
            candidate: latency(scale, t),
            baseline: latency(1.0, t + 9),
        }
    };
    let crashes = |k: u64| {
        move |_: u64| Increment::Events {
            candidate: Exposed {
                events: k,
                exposure: 10.5,
            },
            baseline: Exposed {
                events: 40,
                exposure: 200.0,
            },
        }
    };
    let fails = |make: &dyn Fn(u64) -> Increment| {
        let mut evidence = Evidence::new();
        for t in 0..100 {
            evidence.observe(&plan, &one(t, make(t))).unwrap();
            let text = serde_json::to_string(&evidence).unwrap();
            assert_eq!(serde_json::from_str::<Evidence>(&text).unwrap(), evidence);
        }
        evidence.failed()
    };
    assert!(!fails(&slow(1.0)) && fails(&slow(1.2)));
    assert!(!fails(&crashes(2)) && fails(&crashes(12)));
    let sure = GatePlan {
        pass: PassWhen::NonInferior {
            min_samples: 100,
            margin: 0.3,
            beta: 0.05,
        },
        ..plan.clone()
    };
    for make in [&slow(1.0) as &dyn Fn(u64) -> Increment, &crashes(2)] {
        let mut evidence = Evidence::new();
        assert!(
            (0..3_000).any(
                |t| evidence.observe(&sure, &one(t, make(t))).unwrap().verdict == Verdict::Pass
            )
        );
    }
    let unlike = Increment::Latency {
        candidate: Sketch::new(6).unwrap(),
        baseline: Sketch::default(),
    };
    assert!(matches!(
        Evidence::new().observe(&plan, &one(0, unlike)),
        Err(BadWindow::Sketch { .. })
    ));
    let never = Exposed {
        events: 1,
        exposure: f64::NAN,
    };
    assert!(
        Evidence::new()
            .observe(
                &plan,
                &one(
                    0,
                    Increment::Events {
                        candidate: never,
                        baseline: never
                    }
                )
            )
            .is_err()
    );
}
