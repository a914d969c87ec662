//! Each kind of increment: harm is found, its absence is not harm, what is malformed is refused.

use std::collections::BTreeMap;

use super::*;
use crate::anytime::Scores;
use crate::quality::{Comparisons, Flips};
use crate::{Action, Counts, Sketch, Verdict};

fn plan() -> GatePlan {
    GatePlan::new(
        0.05,
        vec![LiveGate::new("m", 1.0, 0.0, Action::Rollback)],
        PassWhen::NoEvidenceOfHarm { min_samples: 1 },
    )
}

fn sure(margin: f64) -> GatePlan {
    GatePlan {
        pass: PassWhen::NonInferior {
            min_samples: 1,
            margin,
            beta: 0.05,
        },
        ..plan()
    }
}

fn better() -> GatePlan {
    let mut plan = plan();
    plan.gates[0].direction = Direction::GreaterIsBetter;
    plan
}

fn one(at: u64, increment: Increment) -> Window {
    Window {
        epoch: 1,
        from: at,
        to: at + 1,
        metrics: BTreeMap::from([("m".to_owned(), increment)]),
    }
}

/// Whether 150 windows fail; the evidence survives JSON and refuses another kind.
fn fails(plan: &GatePlan, make: impl Fn(u64) -> Increment) -> bool {
    let mut evidence = Evidence::new();
    for t in 0..150 {
        evidence.observe(plan, &one(t, make(t))).unwrap();
    }
    let text = serde_json::to_string(&evidence).unwrap();
    assert_eq!(serde_json::from_str::<Evidence>(&text).unwrap(), evidence);
    evidence.failed()
}

fn passes(plan: &GatePlan, make: impl Fn(u64) -> Increment) -> bool {
    let mut evidence = Evidence::new();
    (0..2_000).any(|t| {
        let judgement = evidence.observe(plan, &one(t, make(t))).unwrap();
        assert_ne!(judgement.verdict, Verdict::Fail);
        judgement.verdict == Verdict::Pass
    })
}

fn refused(plan: &GatePlan, increment: Increment) -> BadWindow {
    let mut evidence = Evidence::new();
    let why = evidence.observe(plan, &one(0, increment)).unwrap_err();
    assert_eq!(evidence, Evidence::new());
    why
}

/// Heavy-tailed amounts.
fn amounts(scale: f64, t: u64) -> Sketch {
    let mut sketch = Sketch::default();
    for i in 0..200 {
        let u = (f64::from(i) + (t * 37 % 100) as f64 / 100.0 + 0.005) / 200.0;
        sketch.record(scale * (1.0 - u).powf(-1.0 / 1.5));
    }
    sketch
}

fn vectors(shift: f64, t: u64) -> Vec<Vec<f64>> {
    let value = |i: u64| ((t * 31 + i) as f64 * 0.618_033_988_749_895).fract() - 0.5;
    (0..40)
        .map(|i| vec![value(i) + shift, value(3 * i + 1), 7.0 + value(7 * i + 2)])
        .collect()
}

#[test]
fn pairs_are_judged_by_their_flips() {
    let flips = |negative, positive| {
        move |_| {
            Increment::Paired(Flips {
                both_right: 50,
                negative,
                positive,
                both_wrong: 10,
            })
        }
    };
    assert!(!fails(&plan(), flips(3, 3)) && fails(&plan(), flips(5, 3)));
    assert!(passes(&sure(0.3), flips(3, 3)));
    let too_many = Flips {
        both_right: u64::MAX,
        negative: 1,
        ..Flips::default()
    };
    assert!(matches!(
        refused(&plan(), Increment::Paired(too_many)),
        BadWindow::Counts { .. }
    ));
}

#[test]
fn a_flip_is_a_fair_bet_on_a_coin() {
    let mut evidence = Evidence::new();
    let flips = Flips {
        both_right: 8,
        negative: 6,
        positive: 1,
        both_wrong: 0,
    };
    let judgement = evidence
        .observe(&plan(), &one(0, Increment::Paired(flips)))
        .unwrap();
    let mixture: f64 = crate::Grid::Rr7
        .alternatives()
        .iter()
        .map(|a| {
            let q = a.theta / (1.0 + a.theta);
            a.weight * (2.0 * q).powi(6) * (2.0 * (1.0 - q))
        })
        .sum();
    assert!((judgement.gates[0].log_e - mixture.ln()).abs() < 1e-12);
}

#[test]
fn amounts_are_judged_by_their_cut_means() {
    let make = |scale: f64| {
        move |t: u64| Increment::Amounts {
            candidate: amounts(scale, t),
            baseline: amounts(1.0, t + 9),
        }
    };
    assert!(!fails(&plan(), make(1.0)) && fails(&plan(), make(1.4)));
    assert!(passes(&sure(1.0), make(1.0)));
    assert!(!fails(&better(), make(1.4)) && fails(&better(), make(0.7)));
    let mut evidence = Evidence::new();
    let shown = (0..50)
        .map(|t| evidence.observe(&plan(), &one(t, make(1.2)(t))).unwrap())
        .last()
        .unwrap();
    let ratio = shown.gates[0].ratio.unwrap();
    assert!((1.1..1.25).contains(&ratio), "{ratio}");
    let unlike = Increment::Amounts {
        candidate: Sketch::new(6).unwrap(),
        baseline: Sketch::default(),
    };
    assert!(matches!(refused(&plan(), unlike), BadWindow::Sketch { .. }));
}

#[test]
fn categories_are_judged_by_their_shares() {
    let mix = |candidate: [u64; 3]| {
        move |_| Increment::Categories {
            candidate: candidate.to_vec(),
            baseline: vec![500, 300, 200],
        }
    };
    assert!(!fails(&plan(), mix([50, 30, 20])) && fails(&plan(), mix([40, 30, 30])));
    let unlike = Increment::Categories {
        candidate: vec![1, 2],
        baseline: vec![1, 2, 3],
    };
    let single = Increment::Categories {
        candidate: vec![1],
        baseline: vec![1],
    };
    let many = Increment::Categories {
        candidate: vec![u64::MAX, 1],
        baseline: vec![1, 1],
    };
    assert!(matches!(refused(&plan(), unlike), BadWindow::Scores { .. }));
    assert!(matches!(refused(&plan(), single), BadWindow::Scores { .. }));
    assert!(matches!(refused(&plan(), many), BadWindow::Counts { .. }));
}

#[test]
fn embeddings_are_judged_by_random_features() {
    let make = |shift: f64| {
        move |t: u64| Increment::Embeddings {
            dimension: 3,
            candidate: vectors(shift, t),
            baseline: vectors(0.0, t + 500),
        }
    };
    assert!(!fails(&plan(), make(0.0)) && fails(&plan(), make(0.4)));
    // Vectors that are all alike say nothing of the scale, and harm nobody.
    let alike = |_| Increment::Embeddings {
        dimension: 1,
        candidate: vec![vec![1.0]; 3],
        baseline: vec![vec![1.0]; 3],
    };
    assert!(!fails(&plan(), alike));
    let of = |dimension: usize, vector: Vec<f64>| Increment::Embeddings {
        dimension,
        candidate: vec![vector],
        baseline: Vec::new(),
    };
    for bad in [of(0, vec![]), of(2, vec![1.0]), of(1, vec![f64::NAN])] {
        assert!(matches!(refused(&plan(), bad), BadWindow::Scores { .. }));
    }
    let many = Increment::Embeddings {
        dimension: 1,
        candidate: vec![vec![0.0]; 10_001],
        baseline: Vec::new(),
    };
    assert!(matches!(refused(&plan(), many), BadWindow::Scores { .. }));
    let mut tolerant = plan();
    tolerant.gates[0].margin = 0.1;
    assert!(
        refused(&tolerant, make(0.0)(0))
            .to_string()
            .contains("has no size")
    );
    // Another dimension is another kind.
    let mut evidence = Evidence::new();
    evidence.observe(&plan(), &one(0, make(0.0)(0))).unwrap();
    assert!(matches!(
        evidence.observe(&plan(), &one(1, of(1, vec![0.0]))),
        Err(BadWindow::Kind { .. })
    ));
}

#[test]
fn drift_shows_no_absence_of_harm() {
    let mix = |_| Increment::Categories {
        candidate: vec![50, 30, 20],
        baseline: vec![500, 300, 200],
    };
    assert!(matches!(
        refused(&sure(0.1), mix(0)),
        BadWindow::NoTest { .. }
    ));
    let mut warned = sure(0.1);
    warned.gates[0].action = Action::Warn;
    assert!(passes(&warned, mix));
}

#[test]
fn what_is_better_when_greater_is_judged_the_other_way() {
    let solved = |k: u64| {
        move |_| Increment::Binary {
            candidate: Counts::new(100, k),
            baseline: Counts::new(1_000, 900),
        }
    };
    assert!(!fails(&better(), solved(95)) && fails(&better(), solved(80)));
    assert!(fails(&plan(), solved(100)));
    let shown = Evidence::new()
        .observe(&better(), &one(0, solved(95)(0)))
        .unwrap();
    assert_eq!(shown.gates[0].candidate, Counts::new(100, 95));
    let rated = |mean: f64| {
        let scores = |n: u64, mean: f64| Scores {
            n,
            sum: mean * n as f64,
            square: (mean * mean + 0.02) * n as f64,
        };
        move |_| Increment::Scores {
            candidate: scores(50, mean),
            baseline: scores(50, 0.6),
        }
    };
    assert!(!fails(&better(), rated(0.8)) && fails(&better(), rated(0.4)));
    let done = |events: u64| {
        move |_| Increment::Events {
            candidate: Exposed {
                events,
                exposure: 10.0,
            },
            baseline: Exposed {
                events: 400,
                exposure: 200.0,
            },
        }
    };
    assert!(!fails(&better(), done(30)) && fails(&better(), done(12)));
    let speed = |scale: f64| {
        move |t: u64| Increment::Latency {
            candidate: amounts(scale, t),
            baseline: amounts(1.0, t + 9),
        }
    };
    assert!(!fails(&better(), speed(1.5)) && fails(&better(), speed(0.6)));
    for plan in [better(), plan()] {
        // The same question of no harm: these pass where they are no worse.
        let pass = GatePlan {
            pass: sure(0.4).pass,
            ..plan
        };
        assert!(passes(&pass, done(20)) && passes(&pass, speed(1.0)));
    }
}

#[test]
fn users_and_history_follow_the_direction() {
    let plan = better();
    let (mut blind, mut wise) = (Evidence::new(), Evidence::new());
    // The slice solves 80 % where the others solve 90 %, all served by the baseline.
    wise.learn_slice(
        "m",
        500,
        Counts::new(20_000, 16_000),
        Counts::new(400_000, 360_000),
    )
    .unwrap();
    wise.expose(500);
    let mut users = None;
    for t in 0..100 {
        let increment = Increment::Binary {
            candidate: Counts::new(500, 400),
            baseline: Counts::new(10_000, 9_000),
        };
        blind.observe(&plan, &one(t, increment.clone())).unwrap();
        users = wise.observe(&plan, &one(t, increment)).unwrap().gates[0].users;
    }
    assert!(blind.failed() && !wise.failed());
    assert!((2.0..2.2).contains(&users.unwrap()), "{users:?}");
    let mut learnt = Evidence::new();
    for t in 0..50 {
        let k = 900 + t % 5;
        learnt
            .learn(&plan, "m", [Counts::new(1_000, k), Counts::new(1_000, 902)])
            .unwrap();
    }
    assert!(
        learnt
            .learn(&plan, "m", [Counts::new(1, 2), Counts::default()])
            .is_err()
    );
    let mut harmed = learnt.clone();
    for t in 0..30 {
        let window = |k| Window {
            from: t * 300_000,
            to: (t + 1) * 300_000,
            ..one(
                0,
                Increment::Binary {
                    candidate: Counts::new(1_000, k),
                    baseline: Counts::new(1_000, 900),
                },
            )
        };
        learnt.observe(&plan, &window(950)).unwrap();
        harmed.observe(&plan, &window(800)).unwrap();
    }
    assert!(harmed.failed() && !learnt.failed());
}

#[test]
fn a_direction_that_says_nothing_or_turns_is_refused() {
    for directed in [
        Increment::Compared(Comparisons {
            wins: 1,
            ties: 1,
            losses: 1,
        }),
        Increment::Paired(Flips::default()),
        Increment::Categories {
            candidate: vec![1, 1],
            baseline: vec![1, 1],
        },
    ] {
        assert!(matches!(
            refused(&better(), directed),
            BadWindow::Directed { .. }
        ));
    }
    let binary = || Increment::Binary {
        candidate: Counts::new(10, 1),
        baseline: Counts::new(10, 1),
    };
    let mut evidence = Evidence::new();
    evidence.observe(&plan(), &one(0, binary())).unwrap();
    assert!(matches!(
        evidence.observe(&better(), &one(1, binary())),
        Err(BadWindow::Turned { .. })
    ));
}

#[test]
fn plans_and_evidence_without_direction_or_unit_still_read() {
    let text = r#"{"alpha":0.05,"gates":[{"metric":"m","weight":1.0}],"pass":{"no_evidence_of_harm":{"min_samples":1}}}"#;
    let old: GatePlan = serde_json::from_str(text).unwrap();
    assert_eq!(old, plan());
    // What has the default is not written, so that older readers read it too.
    let saved = serde_json::to_string(&old).unwrap();
    assert!(!saved.contains("direction") && !saved.contains("unit"));
    let text = r#"{"alpha":0.05,"gates":[{"metric":"m","weight":1.0,"direction":"greater_is_better","unit":"ms"}],"pass":{"no_evidence_of_harm":{"min_samples":1}}}"#;
    let new: GatePlan = serde_json::from_str(text).unwrap();
    assert_eq!(new.gates[0].direction, Direction::GreaterIsBetter);
    assert!(new.validate().is_ok());
    for unit in ["", "\n", &"m".repeat(33)] {
        let mut plan = plan();
        plan.gates[0].unit = Some(unit.to_owned());
        assert!(matches!(plan.validate(), Err(BadGatePlan::Unit { .. })));
    }
    let binary = Increment::Binary {
        candidate: Counts::new(10, 1),
        baseline: Counts::new(10, 1),
    };
    let mut evidence = Evidence::new();
    let judgement = evidence.observe(&new, &one(0, binary.clone())).unwrap();
    assert_eq!(judgement.gates[0].unit.as_deref(), Some("ms"));
    let mut evidence = Evidence::new();
    evidence.observe(&plan(), &one(0, binary)).unwrap();
    let saved = serde_json::to_string(&evidence).unwrap();
    assert!(!saved.contains("direction"));
}

/// Evidence that has learnt from two groups, of which the first's events swing by this much, and windows until harm that begins after 500 is found; whether late starts were on.
fn late_harm(late_starts: Option<u32>, blocks: u64, swing: u64) -> (u64, bool) {
    let mut plan = plan();
    plan.gates[0].late_starts = late_starts;
    let mut evidence = Evidence::new();
    for t in 0..blocks {
        let k = if (t / 3).is_multiple_of(2) {
            300 + swing
        } else {
            300 - swing
        };
        evidence
            .learn(
                &plan,
                "m",
                [Counts::new(30_000, k), Counts::new(30_000, 300)],
            )
            .unwrap();
    }
    for t in 0..2_000 {
        let k = if t < 500 { 10 } else { 20 };
        let increment = Increment::Binary {
            candidate: Counts::new(1_000, k),
            baseline: Counts::new(9_000, 90),
        };
        let window = Window {
            from: t * 60_000,
            to: (t + 1) * 60_000,
            ..one(0, increment)
        };
        let judgement = evidence.observe(&plan, &window).unwrap();
        if judgement.verdict == Verdict::Fail {
            let text = serde_json::to_string(&evidence).unwrap();
            assert_eq!(serde_json::from_str::<Evidence>(&text).unwrap(), evidence);
            assert!(blocks == 0 || (judgement.bound - (1.0f64 / 0.045).ln()).abs() < 1e-12);
            return (t, judgement.gates[0].late_starts);
        }
    }
    (u64::MAX, false)
}

#[test]
fn late_harm_is_found_sooner_on_quiet_arms_only() {
    let (patient, off) = late_harm(None, 900, 0);
    let (quick, on) = late_harm(Some(1_000), 900, 0);
    assert!(!off && on);
    // Ten windows and not as many as it takes to win back what 500 have cost.
    assert!(
        (500..520).contains(&quick) && patient > quick + 20,
        "{quick} {patient}"
    );
    // Noise, or no history of it: the guard keeps them off, and nothing changes.
    for (blocks, swing) in [(900, 100), (5, 0), (0, 0)] {
        let guarded = late_harm(Some(1_000), blocks, swing);
        assert_eq!(guarded, late_harm(None, blocks, swing));
        assert!(!guarded.1);
    }
    let mut plan = plan();
    for windows in [0, 1_000_001] {
        plan.gates[0].late_starts = Some(windows);
        assert!(matches!(
            plan.validate(),
            Err(BadGatePlan::LateStarts { .. })
        ));
    }
}
