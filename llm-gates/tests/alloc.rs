//! A look allocates nothing. A binary of its own: it counts with a global allocator.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test that prints what a look costs"
)]

use std::time::Instant;

use llm_gates::anytime::{
    AutoRatio, BettingMean, BoundedMeans, CappedMeans, EProcess, EmpiricalBernstein, EventRate,
    History, Mismatch, OverdispersedRatio, QuantileShift, RateDetector, Scores, Sign, Slo, Swap,
    Symmetric,
};
use llm_gates::drift::{CategoryDrift, Cusum, EmbeddingDrift, RandomFeatures};
use llm_gates::quality::{Comparisons, Flips};
use llm_gates::{
    Action, Counts, Evidence, Exposed, GatePlan, Grid, HardLimit, Increment, LiveGate,
    LiveThreshold, Moments, PassWhen, RateRatio, Sketch, Sustained, Threshold, Window,
};

/// Allocations of `looks` calls after a few that warm up, and nanoseconds of the quickest of twenty rounds.
fn cost(looks: u64, mut look: impl FnMut(u64)) -> (u64, f64) {
    (0..1_000).for_each(&mut look);
    let counted = allocation_counter::measure(|| (1_000..1_000 + looks).for_each(&mut look));
    let mut quickest = f64::INFINITY;
    for round in 0..20 {
        let (start, first) = (Instant::now(), 1_000 + looks * (round + 1));
        (first..first + looks).for_each(&mut look);
        quickest = quickest.min(start.elapsed().as_secs_f64() / looks as f64);
    }
    (counted.count_total, quickest * 1e9)
}

#[test]
fn looks_do_not_allocate() {
    let counts = |t: u64, n: u64, k: u64| Counts::new(n + t % 7, k + t % 3);
    let mut rate = RateRatio::new(1.0, Grid::Rr7).unwrap();
    let mut auto = AutoRatio::new(1.0, History::Groups, 0.005).unwrap();
    for t in 0..100 {
        auto.learn([counts(t, 3_000, 30), counts(t + 5, 3_000, 30)])
            .unwrap();
    }
    let mut means = BoundedMeans::new(0.0).unwrap();
    let mut shift = QuantileShift::new(0.0, 5).unwrap();
    let mut capped = CappedMeans::new(0.0, 5).unwrap();
    let sketch = |seed: u32| {
        let mut sketch = Sketch::default();
        for i in 0..200 {
            sketch.record(100.0 + f64::from(i * 37 % 200 + seed));
        }
        sketch
    };
    let sketches = [sketch(0), sketch(3), sketch(11)];
    let scores = Scores {
        n: 50,
        sum: 20.0,
        square: 12.0,
    };
    let mut late = RateRatio::with_late_starts(1.0, Grid::Rr7, 0.5, 10_000).unwrap();
    let mut overdispersed = OverdispersedRatio::new(0.04, Grid::Rr7).unwrap();
    let mut slo = Slo::new(0.01, Grid::Rr7).unwrap();
    let mut crashes = EventRate::new(0.01, Grid::Rr7).unwrap();
    let (mut sign, mut symmetric) = (Sign::new(), Symmetric::new());
    let mut swap = Swap::new(2, Grid::Rr7).unwrap();
    let mut betting = BettingMean::new(0.5, 0.05).unwrap();
    let mut bernstein = EmpiricalBernstein::new(0.05).unwrap();
    let mut mismatch = Mismatch::new(&[0.1, 0.9], 10_000.0).unwrap();
    let mut detector = RateDetector::new(0.01, Grid::Rr7).unwrap();
    let mut categories = CategoryDrift::new(3, 0.0).unwrap();
    let mut cusum = Cusum::new(0.0, 1.0, 0.5).unwrap();
    let mut embeddings = EmbeddingDrift::new(RandomFeatures::new(3, 16, 0.2, 1).unwrap());
    let vectors = vec![vec![0.1, 0.2, 0.3], vec![0.3, 0.1, -0.5]];
    let (mut moments, mut recorded) = (Moments::around(5.0), Sketch::default());
    let costs = [
        (
            "RateRatio with change points",
            cost(200, |t| {
                late.observe(counts(t, 60, 1), counts(t + 2, 1_140, 11));
                assert!(late.log_e().is_finite());
            }),
        ),
        (
            "OverdispersedRatio",
            cost(200, |t| {
                let (c, b) = (counts(t, 60, 1), counts(t + 2, 1_140, 11));
                overdispersed.observe(c, b).unwrap();
                assert!(overdispersed.log_e().is_finite());
            }),
        ),
        (
            "Slo, EventRate and RateDetector",
            cost(200, |t| {
                slo.observe(counts(t, 60, 1)).unwrap();
                crashes.observe(t % 2, 60.0).unwrap();
                detector.observe(counts(t, 60, 1)).unwrap();
                assert!(slo.log_e() + crashes.log_e() + detector.log_statistic() < f64::MAX);
            }),
        ),
        (
            "Sign, Symmetric and Swap",
            cost(200, |t| {
                sign.observe(t % 3, t % 2);
                symmetric.observe((t % 5) as f64 - 2.0).unwrap();
                swap.observe(t % 3, &[t % 2, t % 4]).unwrap();
                assert!((sign.log_e() + symmetric.log_e() + swap.log_e()).is_finite());
            }),
        ),
        (
            "BettingMean and EmpiricalBernstein",
            cost(200, |t| {
                betting.observe((t % 5) as f64 / 4.0).unwrap();
                bernstein.observe((t % 5) as f64 / 4.0).unwrap();
                assert!(bernstein.interval().0 + betting.log_e() < f64::MAX);
            }),
        ),
        (
            "Mismatch",
            cost(200, |t| {
                mismatch.observe(&[10 + t % 3, 90]).unwrap();
                assert!(mismatch.log_e().is_finite());
            }),
        ),
        (
            "CategoryDrift, Cusum and EmbeddingDrift",
            cost(200, |t| {
                categories.observe(&[7, 2, t % 2], &[60, 20, 9]).unwrap();
                embeddings.observe(&vectors, &vectors[..1]).unwrap();
                let sums = cusum.observe((t % 3) as f64);
                assert!((sums.0 + categories.log_e() + embeddings.log_e()).is_finite());
            }),
        ),
        (
            "Moments and Sketch, a value",
            cost(200, |t| {
                let value = 1.0 + (t % 100) as f64;
                assert!(moments.add(value) && recorded.record(value));
            }),
        ),
        (
            "RateRatio",
            cost(200, |t| {
                rate.observe(counts(t, 60, 1), counts(t + 2, 1_140, 11));
            }),
        ),
        (
            "AutoRatio",
            cost(200, |t| {
                let groups = [counts(t + 1, 570, 5), counts(t + 2, 570, 6)];
                auto.observe(t / 5, counts(t, 60, 1), groups).unwrap();
            }),
        ),
        (
            "BoundedMeans",
            cost(200, |_| means.observe(scores, scores).unwrap()),
        ),
        (
            "QuantileShift",
            cost(200, |t| {
                let one = &sketches[usize::try_from(t % 3).unwrap()];
                shift.observe(one, &sketches[0]).unwrap();
            }),
        ),
        (
            "CappedMeans",
            cost(200, |t| {
                let one = &sketches[usize::try_from(t % 3).unwrap()];
                let _ = capped.observe(one, &sketches[0]).unwrap();
            }),
        ),
    ];
    for (name, (allocations, nanoseconds)) in costs {
        println!("{name}: {nanoseconds:.0} ns a look");
        assert_eq!(allocations, 0, "{name}");
    }
    assert!(auto.log_e().is_finite() && shift.log_e().is_finite());
}

/// Ten gates of seven kinds, one of them in a dry run, with thresholds and a hard limit beside them.
fn plan() -> GatePlan {
    let names = [
        "error", "refusal", "timeout", "crash", "score", "judge", "flips", "ttft", "tokens",
        "intent",
    ];
    let gate = |name: &str| LiveGate {
        dry_run: name == "refusal",
        ..LiveGate::new(name, 0.1, 0.0, Action::Rollback)
    };
    let threshold = |name: &str, sustained| LiveThreshold {
        sustained,
        ..LiveThreshold::new(name, Threshold::BaselinePlus(1.0))
    };
    GatePlan {
        pause_alpha: Some(0.25),
        thresholds: vec![
            threshold("ttft", Sustained::Consecutive(3)),
            threshold(
                "error",
                Sustained::OfLast {
                    breaches: 3,
                    windows: 5,
                },
            ),
        ],
        hard_limits: vec![HardLimit::new("error")],
        ..GatePlan::new(
            0.05,
            names.map(gate).into(),
            PassWhen::NoEvidenceOfHarm { min_samples: 1 },
        )
    }
}

fn window(sketch: &Sketch) -> Window {
    let binary = || Increment::Binary {
        candidate: Counts::new(60, 1),
        baseline: Counts::new(1_140, 11),
    };
    let scores = Scores {
        n: 50,
        sum: 20.0,
        square: 12.0,
    };
    let exposed = |exposure: f64| Exposed {
        events: 1,
        exposure,
    };
    let pair = || (sketch.clone(), sketch.clone());
    let ((slow, slow_before), (tokens, tokens_before)) = (pair(), pair());
    let metrics = [
        ("error", binary()),
        ("refusal", binary()),
        ("timeout", binary()),
        (
            "crash",
            Increment::Events {
                candidate: exposed(60.0),
                baseline: exposed(540.0),
            },
        ),
        (
            "score",
            Increment::Scores {
                candidate: scores,
                baseline: scores,
            },
        ),
        (
            "judge",
            Increment::Compared(Comparisons {
                wins: 5,
                ties: 2,
                losses: 5,
            }),
        ),
        (
            "flips",
            Increment::Paired(Flips {
                both_right: 20,
                negative: 1,
                positive: 1,
                both_wrong: 3,
            }),
        ),
        (
            "ttft",
            Increment::Latency {
                candidate: slow,
                baseline: slow_before,
            },
        ),
        (
            "tokens",
            Increment::Amounts {
                candidate: tokens,
                baseline: tokens_before,
            },
        ),
        (
            "intent",
            Increment::Categories {
                candidate: vec![7, 2, 1],
                baseline: vec![70, 20, 10],
            },
        ),
    ];
    Window {
        epoch: 1,
        from: 0,
        to: 1,
        metrics: metrics.map(|(n, i)| (n.to_owned(), i)).into(),
    }
}

#[test]
fn a_look_over_ten_gates_allocates_nothing() {
    let mut sketch = Sketch::default();
    for i in 0..200 {
        sketch.record(100.0 + f64::from(i));
    }
    let (plan, mut window, mut evidence) = (plan(), window(&sketch), Evidence::new());
    let (allocations, nanoseconds) = cost(200, |_| {
        (window.from, window.to) = (window.to, window.to + 1);
        evidence.look(&plan, &window).unwrap();
    });
    println!("a look over ten gates: {nanoseconds:.0} ns");
    assert_eq!(allocations, 0);
    (window.from, window.to) = (window.to, window.to + 1);
    let judged = allocation_counter::measure(|| {
        assert!(evidence.judge(&plan).log_evidence.is_finite());
    });
    assert_eq!(judged.count_total, 0);
    let mut gates = 0;
    let asked = allocation_counter::measure(|| {
        let judgement = evidence.observe(&plan, &window).unwrap();
        assert_eq!(judgement, evidence.report(&plan));
        gates = judgement.gates.len() + judgement.thresholds.len() + judgement.hard_limits.len();
    });
    assert_eq!(gates, 13);
    assert!(asked.count_total > 0, "the counter counts");
}
