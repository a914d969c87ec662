//! Seeded lives of whole rollouts: how often a harmless candidate is rolled back, and how often and how soon a harmful one is found.
//!
//! A short form runs always; the rest behind `--ignored`, in release, on all cores:
//!
//! ```text
//! cargo test --release -p llm-gates --test simulations -- --ignored --nocapture
//! ```
//!
//! `LLM_GATES_LIVES=5` takes five times the lives. Limits leave room for the simulation's own error: a bound of 5 % is tested at 5 % plus 2.6 standard errors, which a test with exactly
//! that rate exceeds for 0.5 % of all seeds; published figures are met within 3.5 standard errors of both simulations, .05 % of all seeds for each. The seeds are fixed, so a run repeats.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "the long forms print their figures, and what is valid here unwraps"
)]

mod bounds;
mod published;
mod rng;
mod sticky;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use llm_gates::anytime::{AutoRatio, EProcess, History};
use llm_gates::special::normal;
use llm_gates::{Grid, RateRatio};

use rng::Rng;
use world::{DRIFT, QUIET, World, history as history_of, ramp};

const ALPHA: f64 = 0.05;

/// What becomes of each of many lives, in order, on all cores.
fn lives<T: Send>(seed: u64, lives: u64, life: impl Fn(&mut Rng) -> T + Sync) -> Vec<T> {
    let next = AtomicU64::new(0);
    let work = || {
        let mut mine = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= lives {
                return mine;
            }
            let rng = &mut Rng::new(seed.wrapping_mul(1_000_003).wrapping_add(i));
            mine.push((i, life(rng)));
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .flat_map(|t| t.join().unwrap())
            .collect()
    });
    all.sort_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, t)| t).collect()
}

/// Share of lives in which something happens.
fn share(seed: u64, count: u64, life: impl Fn(&mut Rng) -> bool + Sync) -> f64 {
    let found = lives(seed, count, life).into_iter().filter(|f| *f).count();
    found as f64 / count as f64
}

/// This many lives, or as many times more as the environment asks for.
fn many(lives: u64) -> u64 {
    let factor = std::env::var("LLM_GATES_LIVES").ok();
    lives * factor.and_then(|f| f.parse().ok()).unwrap_or(1).max(1)
}

fn at_most(name: &str, found: f64, bound: f64, lives: u64) {
    println!(
        "{name}: {:.1} % (at most {:.1} %, {lives} lives)",
        100.0 * found,
        100.0 * bound
    );
    let slack = 2.6 * (bound * (1.0 - bound) / lives as f64).sqrt();
    assert!(
        found <= bound + slack,
        "{name}: {found} of {lives} lives, bound {bound}"
    );
}

fn at_least(name: &str, found: f64, bound: f64, lives: u64) {
    println!(
        "{name}: {:.1} % (at least {:.1} %, {lives} lives)",
        100.0 * found,
        100.0 * bound
    );
    assert!(
        found >= bound,
        "{name}: {found} of {lives} lives, bound {bound}"
    );
}

fn rate_ratio_alarms(rng: &mut Rng, mut process: RateRatio, world: World, ratio: f64) -> bool {
    ramp(rng, world, ratio, |_, c, [one, two]| {
        process.observe(c, one.plus(two).unwrap());
        process.rejects(ALPHA)
    })
}

fn rr7() -> RateRatio {
    RateRatio::new(1.0, Grid::Rr7).unwrap()
}

/// A process that has learnt from so many hours before the ramp.
fn learnt(rng: &mut Rng, world: World, history: History, hours: u32) -> AutoRatio {
    let mut process = AutoRatio::new(1.0, history, 0.1 * ALPHA).unwrap();
    history_of(rng, world, hours, |groups| process.learn(groups).unwrap());
    process
}

fn auto_ratio_alarms(
    rng: &mut Rng,
    world: World,
    ratio: f64,
    history: History,
    hours: u32,
) -> bool {
    let mut process = learnt(rng, world, history, hours);
    ramp(rng, world, ratio, |minute, c, groups| {
        process.observe(minute.at / 5, c, groups).unwrap();
        process.rejects(ALPHA)
    })
}

#[test]
fn a_harmless_candidate_stays_and_a_harmful_one_goes() {
    let lives = 30;
    for (i, (name, world)) in [("stationary", QUIET), ("drift", DRIFT)]
        .into_iter()
        .enumerate()
    {
        let found = share(1 + i as u64, lives, |r| {
            rate_ratio_alarms(r, rr7(), world, 1.0)
        });
        at_most(&format!("RateRatio, {name}"), found, ALPHA, lives);
    }
    let found = share(3, lives, |r| rate_ratio_alarms(r, rr7(), QUIET, 2.0));
    at_least("RateRatio, doubled rate", found, 0.95, lives);
    let found = share(4, 10, |r| sticky::alarms(r, 300, 1.0, 1.0, true));
    at_most("sticky users, slices counted", found, ALPHA, 10);
}

#[test]
fn the_generator_is_what_it_says() {
    let mut rng = Rng::new(7);
    let n = 20_000;
    for mean in [0.1, 5.0, 11.0, 100.0, 5_000.0] {
        let sample: Vec<f64> = (0..n).map(|_| rng.poisson(mean) as f64).collect();
        let average = sample.iter().sum::<f64>() / f64::from(n);
        let moment =
            |k: i32| sample.iter().map(|x| (x - average).powi(k)).sum::<f64>() / f64::from(n);
        assert!(
            (average - mean).abs() < 5.0 * (mean / f64::from(n)).sqrt(),
            "{mean}: {average}"
        );
        assert!(
            (moment(2) / mean - 1.0).abs() < 0.1,
            "{mean}: {}",
            moment(2)
        );
        let skew = moment(3) / moment(2).powf(1.5) * mean.sqrt();
        assert!(mean > 50.0 || (skew - 1.0).abs() < 0.5, "{mean}: {skew}");
    }
    let z: f64 = (0..n).map(|_| rng.normal()).sum::<f64>() / f64::from(n).sqrt();
    assert!(normal::sf(z.abs()) > 1e-4);
}
