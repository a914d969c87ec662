//! A look allocates nothing. A binary of its own: it counts with a global allocator.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test that prints what a look costs"
)]

use std::time::Instant;

use llm_gates::anytime::{
    AutoRatio, BoundedMeans, CappedMeans, EProcess, History, QuantileShift, Scores,
};
use llm_gates::{Counts, Grid, RateRatio, Sketch};

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
    let costs = [
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
