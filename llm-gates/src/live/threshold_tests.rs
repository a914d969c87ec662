use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{Action, Counts, Sketch, Threshold, Verdict};

/// Thresholds and hard limits alone.
fn plan(thresholds: Vec<LiveThreshold>, hard_limits: Vec<HardLimit>) -> GatePlan {
    GatePlan {
        thresholds,
        hard_limits,
        ..GatePlan::new(
            0.05,
            Vec::new(),
            PassWhen::NoEvidenceOfHarm { min_samples: 1 },
        )
    }
}

fn window(epoch: u64, at: u64, increment: Increment) -> Window {
    Window {
        epoch,
        from: at,
        to: at + 1,
        metrics: BTreeMap::from([("m".to_owned(), increment)]),
    }
}

fn counts(candidate: (u64, u64), baseline: (u64, u64)) -> Increment {
    Increment::Binary {
        candidate: Counts::new(candidate.0, candidate.1),
        baseline: Counts::new(baseline.0, baseline.1),
    }
}

fn over(limit: Threshold, sustained: Sustained) -> LiveThreshold {
    LiveThreshold {
        sustained,
        min_samples: 10,
        ..LiveThreshold::new("m", limit)
    }
}

/// The look at which it goes back, of looks that are breaches (true), kept (false) or too small (none).
fn goes_back(sustained: Sustained, looks: &[Option<bool>]) -> Option<usize> {
    let plan = plan(vec![over(Threshold::Absolute(0.05), sustained)], Vec::new());
    let mut evidence = Evidence::new();
    looks.iter().enumerate().position(|(at, look)| {
        let candidate = match look {
            Some(true) => (100, 10),
            Some(false) => (100, 2),
            None => (5, 5),
        };
        let window = window(1, at as u64, counts(candidate, (1_000, 10)));
        evidence.look(&plan, &window).unwrap().verdict == Verdict::Fail
    })
}

/// The same by the book: a list of judged windows, counted anew at each look.
fn by_the_book(sustained: Sustained, looks: &[Option<bool>]) -> Option<usize> {
    (0..looks.len()).find(|at| {
        let judged: Vec<bool> = looks[..=*at].iter().flatten().copied().collect();
        let of = |windows: usize| {
            let from = judged.len().saturating_sub(windows);
            u32::try_from(judged[from..].iter().filter(|b| **b).count()).unwrap()
        };
        match sustained {
            Sustained::Total(n) => of(usize::MAX) >= n,
            Sustained::Consecutive(n) => of(n as usize) >= n,
            Sustained::OfLast { breaches, windows } => of(windows as usize) >= breaches,
        }
    })
}

proptest! {
    #[test]
    fn sustained_breaches_are_counted_by_the_book(
        looks in prop::collection::vec(prop::option::of(any::<bool>()), 0..90),
        n in 1u32..6,
        more in 0u32..60,
    ) {
        for sustained in [
            Sustained::Total(n),
            Sustained::Consecutive(n),
            Sustained::OfLast { breaches: n, windows: n + more.min(64 - n) },
        ] {
            prop_assert_eq!(
                goes_back(sustained, &looks),
                by_the_book(sustained, &looks),
                "{:?}", sustained
            );
        }
    }
}

#[test]
fn a_relative_threshold_compares_with_the_same_window() {
    let once = |more, candidate, baseline| {
        let plan = plan(
            vec![over(
                Threshold::BaselinePlus(more),
                Sustained::Consecutive(1),
            )],
            Vec::new(),
        );
        Evidence::new()
            .observe(&plan, &window(1, 0, counts(candidate, baseline)))
            .unwrap()
    };
    let verdict = |more, candidate, baseline| once(more, candidate, baseline).verdict;
    assert_eq!(verdict(0.2, (100, 13), (1_000, 100)), Verdict::Fail);
    assert_eq!(verdict(0.2, (100, 12), (1_000, 100)), Verdict::Pass);
    assert_eq!(
        verdict(0.2, (100, 13), (9, 0)),
        Verdict::Inconclusive,
        "too small a baseline says nothing"
    );
    assert_eq!(
        verdict(0.2, (100, 13), (1_000, 0)),
        Verdict::Inconclusive,
        "nothing is 20 % more than nothing"
    );
    let seen = once(0.2, (100, 13), (1_000, 100)).thresholds.remove(0);
    assert_eq!((seen.value, seen.judged, seen.breaches), (Some(0.13), 1, 1));
    assert!((seen.limit.unwrap() - 0.12).abs() < 1e-12);
}

#[test]
fn quantiles_and_smaller_values_have_thresholds_too() {
    let sketch = |scale: f64| {
        let mut sketch = Sketch::default();
        for i in 1..=200 {
            sketch.record(scale * f64::from(i));
        }
        sketch
    };
    let latency = |scale| Increment::Latency {
        candidate: sketch(scale),
        baseline: sketch(1.0),
    };
    let p50 = LiveThreshold {
        quantile: Some(0.5),
        ..over(Threshold::BaselinePlus(0.2), Sustained::Consecutive(1))
    };
    let fails = |threshold: &LiveThreshold, increment| {
        let plan = plan(vec![threshold.clone()], Vec::new());
        let look = Evidence::new().look(&plan, &window(1, 0, increment));
        look.unwrap().verdict == Verdict::Fail
    };
    assert!(fails(&p50, latency(1.3)) && !fails(&p50, latency(1.1)));
    let solved = LiveThreshold {
        direction: Direction::GreaterIsBetter,
        ..over(Threshold::Absolute(0.8), Sustained::Consecutive(1))
    };
    assert!(fails(&solved, counts((100, 79), (100, 90))));
    assert!(!fails(&solved, counts((100, 81), (100, 90))));
}

#[test]
fn a_stage_is_not_left_in_the_middle_of_a_breach() {
    let plan = plan(
        vec![over(Threshold::Absolute(0.05), Sustained::Consecutive(2))],
        Vec::new(),
    );
    let mut evidence = Evidence::new();
    let mut look = |epoch, at, k| {
        let window = window(epoch, at, counts((100, k), (1_000, 10)));
        evidence.look(&plan, &window).unwrap().verdict
    };
    assert_eq!(look(1, 0, 1), Verdict::Pass);
    assert_eq!(look(1, 1, 9), Verdict::Inconclusive);
    assert_eq!(look(2, 2, 9), Verdict::Inconclusive, "counts start afresh");
    assert_eq!(look(2, 3, 9), Verdict::Fail);
    assert_eq!(look(3, 4, 1), Verdict::Fail, "going back is absorbing");
}

#[test]
fn a_hard_limit_needs_no_baseline_and_forgets_good_times() {
    let plan = plan(Vec::new(), vec![HardLimit::new("m")]);
    let mut evidence = Evidence::new();
    let mut look = |at, candidate| {
        let window = window(1, at, counts(candidate, (0, 0)));
        evidence.look(&plan, &window).unwrap().verdict
    };
    assert_eq!(look(0, (19, 19)), Verdict::Pass, "too few to say");
    assert_eq!(look(1, (21, 0)), Verdict::Pass, "19 of 40");
    assert_eq!(look(2, (10_000, 100)), Verdict::Pass);
    assert_eq!(look(3, (10, 10)), Verdict::Pass);
    assert_eq!(look(4, (10, 0)), Verdict::Fail, "10 of 20");
    let report = evidence.report(&plan);
    assert_eq!(report.hard_limits[0].block, Some(Counts::new(20, 10)));
    assert!(report.hard_limits[0].hit);
}

#[test]
fn dry_runs_take_no_budget_and_do_nothing() {
    let gate = |weight, dry_run| LiveGate {
        dry_run,
        ..LiveGate::new("m", weight, 0.0, Action::Rollback)
    };
    let dry = GatePlan {
        gates: vec![gate(1.0, true)],
        thresholds: vec![LiveThreshold {
            dry_run: true,
            ..over(Threshold::Absolute(0.05), Sustained::Consecutive(1))
        }],
        ..plan(Vec::new(), Vec::new())
    };
    dry.validate().unwrap();
    let bad = window(1, 0, counts((1_000, 500), (1_000, 10)));
    let judgement = Evidence::new().observe(&dry, &bad).unwrap();
    assert_eq!((judgement.verdict, judgement.action), (Verdict::Pass, None));
    assert_eq!(judgement.gates[0].verdict, Verdict::Fail);
    assert_eq!(judgement.thresholds[0].verdict, Verdict::Fail);
    let wet = GatePlan {
        gates: vec![gate(1.0, false)],
        ..dry
    };
    let judgement = Evidence::new().observe(&wet, &bad).unwrap();
    assert_eq!(judgement.verdict, Verdict::Fail);
}

#[test]
fn a_careful_cold_start_wants_more_evidence() {
    let log_e = |cold_start| {
        let plan = GatePlan {
            gates: vec![LiveGate::new("m", 1.0, 0.0, Action::Rollback)],
            cold_start,
            ..plan(Vec::new(), Vec::new())
        };
        let mut evidence = Evidence::new();
        let looks = (0..30).map(|at| window(1, at * 300_000, counts((200, 4), (3_800, 38))));
        let log = looks.map(|w| evidence.look(&plan, &w).unwrap().log_evidence);
        log.last().unwrap()
    };
    let (quick, careful) = (log_e(ColdStart::Quick), log_e(ColdStart::Careful));
    assert!(quick > careful + 3.0, "{quick} {careful}");
}

#[test]
fn what_cannot_be_judged_is_refused() {
    let threshold = |change: fn(&mut LiveThreshold)| {
        let mut threshold = over(Threshold::Absolute(0.05), Sustained::default());
        change(&mut threshold);
        plan(vec![threshold], Vec::new())
            .validate()
            .unwrap_err()
            .to_string()
    };
    for (message, part) in [
        (
            threshold(|t| t.worse_than = Threshold::Absolute(f64::NAN)),
            "`worse_than` of the threshold `m` must be a finite number",
        ),
        (
            threshold(|t| t.worse_than = Threshold::BaselinePlus(-1.0)),
            "above -1",
        ),
        (threshold(|t| t.quantile = Some(99.0)), "0.99"),
        (threshold(|t| t.min_samples = 0), "`min_samples`"),
        (
            threshold(|t| t.sustained = Sustained::Total(0)),
            "at least one",
        ),
        (
            threshold(|t| {
                t.sustained = Sustained::OfLast {
                    breaches: 3,
                    windows: 2,
                };
            }),
            "as many as there are windows",
        ),
        (threshold(|t| t.action = Action::Block), "`block`"),
    ] {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
    let same = over(Threshold::Absolute(0.05), Sustained::default());
    let two = plan(vec![same.clone(), same], Vec::new());
    assert!(matches!(two.validate(), Err(BadGatePlan::SameName { .. })));
    let limits = plan(Vec::new(), vec![HardLimit::new("m"), HardLimit::new("m")]);
    assert!(matches!(
        limits.validate(),
        Err(BadGatePlan::TwoLimits { .. })
    ));
    let drift = Increment::Categories {
        candidate: vec![1, 2],
        baseline: vec![1, 2],
    };
    let limit = plan(Vec::new(), vec![HardLimit::new("m")]);
    let threshold = plan(
        vec![over(Threshold::Absolute(0.05), Sustained::default())],
        Vec::new(),
    );
    let mut evidence = Evidence::new();
    for plan in [&limit, &threshold] {
        let error = evidence.look(plan, &window(1, 0, drift.clone()));
        assert!(matches!(
            error,
            Err(BadWindow::NoValue { .. } | BadWindow::NoShare { .. })
        ));
    }
    let error = evidence.look(
        &limit,
        &Window {
            metrics: BTreeMap::new(),
            ..window(1, 0, drift)
        },
    );
    assert!(matches!(error, Err(BadWindow::Missing { .. })));
    assert_eq!(evidence, Evidence::new(), "nothing has changed");
}
