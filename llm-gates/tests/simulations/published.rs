//! Figures published with these tests, reproduced within the error of both simulations (theirs: 400 or 1,000 lives).

use llm_gates::anytime::{AutoRatio, EProcess, History, QuantileShift, Sign, Symmetric};
use llm_gates::{Counts, Grid, RateRatio, Sketch};

use crate::bounds::symmetric_alarms;
use crate::rng::Rng;
use crate::world::{
    Baseline, LOOKS, Minute, QUIET, RATE, REQUESTS_PER_MINUTE, World, along, minutes, noisy, ramp,
};
use crate::{ALPHA, auto_ratio_alarms, learnt, lives, many, rate_ratio_alarms, share};

fn wide() -> RateRatio {
    RateRatio::new(1.0, Grid::Wide16).unwrap()
}

/// A probability as published, from so many lives.
#[derive(Clone, Copy)]
struct Published {
    share: f64,
    lives: u64,
}

const fn published(share: f64, lives: u64) -> Published {
    Published { share, lives }
}

fn near(name: &str, found: f64, published: Published, count: u64) {
    println!(
        "{name}: {:.1} % of {count} lives (published {:.1} % of {})",
        100.0 * found,
        100.0 * published.share,
        published.lives
    );
    let both = 0.5 * (found + published.share);
    let lives = 1.0 / count as f64 + 1.0 / published.lives as f64;
    let error = (both * (1.0 - both) * lives).sqrt();
    assert!(
        (found - published.share).abs() <= 3.5 * error + lives,
        "{name}"
    );
}

/// Candidate requests until something is found, if it is: the share of lives in which it is, and their median, against what is published; looks come with `grain` requests.
fn soon(name: &str, mut found: Vec<Option<f64>>, median: f64, share: Published, grain: f64) {
    found.sort_by(|a, b| {
        a.unwrap_or(f64::INFINITY)
            .total_cmp(&b.unwrap_or(f64::INFINITY))
    });
    let all = found.len() as u64;
    let hits: Vec<f64> = found.into_iter().flatten().collect();
    // Rank of the median, off by 3.5 standard errors of both simulations.
    let (n, theirs) = (hits.len() as f64, share.lives as f64 * share.share);
    let off = 3.5 * 0.5 * n.sqrt() * (1.0 + n / theirs).sqrt();
    let at = |rank: f64| {
        (0u32..)
            .zip(&hits)
            .find(|(i, _)| f64::from(*i) >= rank)
            .map(|(_, r)| *r)
    };
    let (low, middle) = (at(0.5 * n - off), at(0.5 * n).unwrap_or(f64::NAN));
    let high = at(0.5 * n + off).unwrap_or(f64::INFINITY);
    println!("{name}: median {middle:.0} requests (published {median:.0})");
    near(&format!("{name}, found"), n / all as f64, share, all);
    assert!(
        low.is_none_or(|l| l - grain <= median) && median <= high + grain,
        "{name}: {middle}, between {low:?} and {high}"
    );
}

/// One stage of the ramp alone.
fn stage(rng: &mut Rng, basis_points: u16) -> impl Iterator<Item = Minute> + use<> {
    minutes(rng, false)
        .filter(move |m| m.basis_points == basis_points)
        .zip(0..)
        .map(|(m, at)| Minute { at, ..m })
}

/// Candidate requests of a stage until a process of rates alarms.
fn requests(
    rng: &mut Rng,
    basis_points: u16,
    world: World,
    ratio: f64,
    mut alarms: impl FnMut(&Minute, Counts, [Counts; 2]) -> bool,
) -> Option<f64> {
    let (mut sum, minutes) = (0, stage(rng, basis_points));
    along(
        rng,
        world,
        |_| ratio,
        minutes,
        |m, c, groups| {
            sum += c.n;
            alarms(m, c, groups)
        },
    )
    .then_some(sum as f64)
}

#[test]
#[ignore = "minutes, in release: .ci/steps/simulations"]
fn false_rollbacks_are_as_published() {
    let n = many(1_000);
    let arm = |noise| World {
        baseline: Baseline::OneArm,
        ..noisy(noise, 0.0)
    };
    for (i, (name, grid, world, said)) in [
        (
            "grid of 16, stationary",
            Grid::Wide16,
            QUIET,
            published(0.031, 1_000),
        ),
        (
            "grid of 16, CV .2",
            Grid::Wide16,
            arm(0.2),
            published(0.09, 400),
        ),
        (
            "grid of 16, CV .5",
            Grid::Wide16,
            arm(0.5),
            published(0.507, 400),
        ),
        (
            "grid of 7, stationary",
            Grid::Rr7,
            QUIET,
            published(0.048, 400),
        ),
        (
            "grid of 7, CV .2",
            Grid::Rr7,
            arm(0.2),
            published(0.083, 400),
        ),
        (
            "grid of 7, CV .5",
            Grid::Rr7,
            arm(0.5),
            published(0.505, 400),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let process = RateRatio::new(1.0, grid).unwrap();
        let found = share(300 + i as u64, n, |r| {
            rate_ratio_alarms(r, process.clone(), world, 1.0)
        });
        near(&format!("RateRatio, {name}"), found, said, n);
    }
    let n = many(500);
    let late = RateRatio::with_late_starts(1.0, Grid::Wide16, 0.5, LOOKS).unwrap();
    let found = share(311, n, |r| {
        rate_ratio_alarms(r, late.clone(), arm(0.5), 1.0)
    });
    near("change points, CV .5", found, published(1.0, 400), n);
    for (i, (noise, said)) in [(0.0, published(0.046, 1_000)), (0.5, published(0.04, 400))]
        .into_iter()
        .enumerate()
    {
        let world = World {
            baseline: Baseline::Control,
            ..noisy(noise, 0.0)
        };
        let found = share(314 + i as u64, n, |r| symmetric_alarms(r, world));
        near(&format!("Symmetric, CV {noise}"), found, said, n);
    }
    let found = share(318, n, |rng| {
        let mut p = Sign::new();
        let minutes = minutes(rng, false);
        for m in minutes {
            let decided = 0.4 * 0.1 * m.traffic * m.share;
            p.observe(rng.poisson(decided), rng.poisson(decided));
            if p.rejects(ALPHA) {
                return true;
            }
        }
        false
    });
    near("win rate", found, published(0.049, 1_000), n);
}

/// Each loss of evidence starts a new test with the full budget: saving it is not a matter of taste.
#[test]
#[ignore = "minutes, in release: .ci/steps/simulations"]
fn forgetting_the_evidence_is_as_bad_as_published() {
    let n = many(400);
    for (i, (name, every, said)) in [("hour", 60, 0.72), ("day", 1_440, 0.13)]
        .into_iter()
        .enumerate()
    {
        let found = share(330 + i as u64, n, |rng| {
            let mut process = wide();
            ramp(rng, QUIET, 1.0, |m, c, [one, two]| {
                if m.at % every == 0 {
                    process = wide();
                }
                process.observe(c, one.plus(two).unwrap());
                process.rejects(ALPHA)
            })
        });
        near(
            &format!("evidence lost every {name}"),
            found,
            published(said, 400),
            n,
        );
    }
}

#[test]
#[ignore = "minutes, in release: .ci/steps/simulations"]
fn harm_is_found_as_soon_as_published() {
    let n = many(1_000);
    for (i, (grid, basis_points, ratio, median, share)) in [
        (Grid::Wide16, 100, 1.5, 367.0, 0.10),
        (Grid::Wide16, 100, 2.0, 398.0, 0.38),
        (Grid::Wide16, 100, 5.0, 112.0, 1.0),
        (Grid::Wide16, 500, 1.5, 3_471.0, 0.99),
        (Grid::Wide16, 500, 2.0, 1_094.0, 1.0),
        (Grid::Wide16, 500, 5.0, 166.0, 1.0),
        (Grid::Wide16, 2_500, 1.5, 5_079.0, 1.0),
        (Grid::Wide16, 2_500, 2.0, 1_751.0, 1.0),
        (Grid::Wide16, 2_500, 5.0, 305.0, 1.0),
        (Grid::Rr7, 500, 1.5, 2_989.0, 0.995),
        (Grid::Rr7, 500, 2.0, 963.0, 1.0),
        (Grid::Rr7, 500, 5.0, 172.0, 1.0),
        (Grid::Rr7, 2_500, 1.5, 3_897.0, 1.0),
        (Grid::Rr7, 2_500, 2.0, 1_521.0, 1.0),
        (Grid::Rr7, 2_500, 5.0, 306.0, 1.0),
    ]
    .into_iter()
    .enumerate()
    {
        let process = RateRatio::new(1.0, grid.clone()).unwrap();
        let found = lives(340 + i as u64, n, |rng| {
            let mut process = process.clone();
            requests(rng, basis_points, QUIET, ratio, |_, c, [one, two]| {
                process.observe(c, one.plus(two).unwrap());
                process.rejects(ALPHA)
            })
        });
        let theirs = if grid == Grid::Rr7 { 400 } else { 1_000 };
        let name = format!(
            "{grid:?}, {} %, ratio {ratio}",
            f64::from(basis_points) / 100.0
        );
        let grain = REQUESTS_PER_MINUTE * f64::from(basis_points) / 10_000.0;
        soon(&name, found, median, published(share, theirs), grain);
    }
    let control = World {
        baseline: Baseline::Control,
        ..QUIET
    };
    for (i, (basis_points, ratio, median, share)) in [
        (500, 1.5, 6_597.0, 0.85),
        (500, 2.0, 3_196.0, 1.0),
        (500, 5.0, 1_806.0, 1.0),
        (2_500, 1.5, 13_383.0, 1.0),
        (2_500, 2.0, 10_472.0, 1.0),
        (2_500, 5.0, 7_510.0, 1.0),
    ]
    .into_iter()
    .enumerate()
    {
        let found = lives(360 + i as u64, n, |rng| {
            let (mut p, mut d) = (Symmetric::new(), 0.0);
            // A day before, in which both slices are served by the baseline.
            let slice = 5.0 * REQUESTS_PER_MINUTE * f64::from(basis_points) / 10_000.0;
            for _ in 0..288 {
                let mut errors = || rng.poisson(slice * RATE) as f64;
                let difference = errors() - errors();
                p.learn(difference).unwrap();
            }
            requests(rng, basis_points, control, ratio, |m, c, [control, _]| {
                d += c.k as f64 - control.k as f64;
                if m.at % 5 == 4 {
                    p.observe(std::mem::take(&mut d)).unwrap();
                }
                p.rejects(ALPHA)
            })
        });
        let name = format!(
            "Symmetric, {} %, ratio {ratio}",
            f64::from(basis_points) / 100.0
        );
        let grain = 5.0 * REQUESTS_PER_MINUTE * f64::from(basis_points) / 10_000.0;
        soon(&name, found, median, published(share, 1_000), grain);
    }
    for (i, (basis_points, wins, median, share)) in [
        (500, 0.48, 5_570.0, 0.21),
        (500, 0.45, 4_792.0, 0.94),
        (500, 0.40, 1_330.0, 1.0),
        (2_500, 0.45, 5_696.0, 1.0),
        (2_500, 0.40, 1_512.0, 1.0),
    ]
    .into_iter()
    .enumerate()
    {
        let found = lives(370 + i as u64, n, |rng| {
            let (mut p, mut requests) = (Sign::new(), 0.0);
            let minutes = stage(rng, basis_points);
            for m in minutes {
                requests += m.traffic * m.share;
                // A tenth is judged, a fifth of that tied; ties are half won.
                let judged = 0.1 * m.traffic * m.share;
                let losses = rng.poisson(judged * (0.9 - wins));
                p.observe(losses, rng.poisson(judged * (wins - 0.1)));
                if p.rejects(ALPHA) {
                    return Some(requests);
                }
            }
            None
        });
        let name = format!("win rate {wins}, {} %", f64::from(basis_points) / 100.0);
        let grain = REQUESTS_PER_MINUTE * f64::from(basis_points) / 10_000.0;
        soon(&name, found, median, published(share, 1_000), grain);
    }
}

/// Twice the errors from minute 1,020 on: delay in minutes.
#[test]
#[ignore = "minutes, in release: .ci/steps/simulations"]
fn late_harm_is_found_as_soon_as_published() {
    let n = many(500);
    let late = RateRatio::with_late_starts(1.0, Grid::Wide16, 0.5, LOOKS).unwrap();
    for (i, (name, process, said)) in [
        ("without change points", wide(), 68.0),
        ("with change points", late, 15.0),
    ]
    .into_iter()
    .enumerate()
    {
        let found = lives(380 + i as u64, n, |rng| {
            let (mut process, mut at) = (process.clone(), 0);
            let minutes = minutes(rng, false);
            let ratio = |m: &Minute| if m.at < 1_020 { 1.0 } else { 2.0 };
            let found = along(rng, QUIET, ratio, minutes, |m, c, [one, two]| {
                at = m.at;
                process.observe(c, one.plus(two).unwrap());
                process.rejects(ALPHA)
            });
            // What alarmed before was false.
            (found && at >= 1_020).then(|| (at - 1_019) as f64)
        });
        let mut delays: Vec<f64> = found.into_iter().flatten().collect();
        delays.sort_by(f64::total_cmp);
        let median = delays[delays.len() / 2];
        println!(
            "late harm {name}: {median} minutes (published {said}) in {} of {n} lives",
            delays.len()
        );
        assert!((median / said - 1.0).abs() < 0.2, "{name}: {median}");
    }
}

fn auto_found(
    rng: &mut Rng,
    world: World,
    ratio: f64,
    hours: u32,
    minutes: impl Iterator<Item = Minute>,
) -> Option<f64> {
    let history = if hours > 0 {
        History::Groups
    } else {
        History::Unknown
    };
    let mut process: AutoRatio = learnt(rng, world, history, hours);
    let mut sum = 0;
    along(
        rng,
        world,
        |_| ratio,
        minutes,
        |m, c, groups| {
            sum += c.n;
            process.observe(m.at / 5, c, groups).unwrap();
            process.rejects(ALPHA)
        },
    )
    .then_some(sum as f64)
}

#[test]
#[ignore = "minutes, in release: .ci/steps/simulations"]
fn auto_ratio_is_as_published() {
    let n = many(200);
    for (i, (name, world, mode, said)) in [
        ("groups, stationary", QUIET, History::Groups, 0.04),
        ("pooled, stationary", QUIET, History::Pooled, 0.033),
        ("groups, CV .2", noisy(0.2, 0.0), History::Groups, 0.018),
        (
            "groups, CV .2, AR .95",
            noisy(0.2, 0.95),
            History::Groups,
            0.003,
        ),
        (
            "groups, CV .5, AR .8",
            noisy(0.5, 0.8),
            History::Groups,
            0.005,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let found = share(400 + i as u64, n, |rng| {
            auto_ratio_alarms(rng, world, 1.0, mode, 72)
        });
        near(
            &format!("AutoRatio, {name}"),
            found,
            published(said, 400),
            n,
        );
    }
    for (i, (basis_points, ratio, median, share)) in [
        (500, 1.5, 3_099.0, 0.98),
        (500, 2.0, 1_023.0, 1.0),
        (500, 5.0, 173.0, 1.0),
        (2_500, 1.5, 4_228.0, 1.0),
        (2_500, 2.0, 1_524.0, 1.0),
        (2_500, 5.0, 306.0, 1.0),
    ]
    .into_iter()
    .enumerate()
    {
        let found = lives(410 + i as u64, n, |rng| {
            let minutes = stage(rng, basis_points);
            auto_found(rng, QUIET, ratio, 72, minutes)
        });
        let name = format!(
            "AutoRatio, {} %, ratio {ratio}",
            f64::from(basis_points) / 100.0
        );
        let grain = REQUESTS_PER_MINUTE * f64::from(basis_points) / 10_000.0;
        soon(&name, found, median, published(share, 400), grain);
    }
    for (i, (ratio, hours, said)) in [
        (1.5, 0, 0.03),
        (2.0, 0, 0.35),
        (5.0, 0, 0.85),
        (1.5, 2, 0.07),
        (2.0, 2, 0.61),
        (5.0, 2, 1.0),
        (1.5, 24, 0.88),
    ]
    .into_iter()
    .enumerate()
    {
        let n = many(100);
        let found = share(420 + i as u64, n, |rng| {
            let minutes = stage(rng, 500);
            auto_found(rng, QUIET, ratio, hours, minutes).is_some()
        });
        let name = format!("AutoRatio, 5 %, ratio {ratio}, {hours} h of history");
        near(&name, found, published(said, 400), n);
    }
}

#[test]
#[ignore = "minutes, in release: .ci/steps/simulations"]
fn slow_replies_are_found_as_soon_as_published() {
    let n = many(300);
    let replies = |rng: &mut Rng, mean: f64, scale: f64| {
        let mut sketch = Sketch::new(7).unwrap();
        for _ in 0..rng.poisson(mean) {
            sketch.record(scale * (0.6 * rng.normal()).exp());
        }
        sketch
    };
    for (i, (scale, median)) in [(1.2, 331.0), (1.5, 89.0)].into_iter().enumerate() {
        let found = lives(440 + i as u64, n, |rng| {
            let mut p = QuantileShift::new(0.0, 7).unwrap();
            p.learn(&replies(rng, 20_000.0, 1.0)).unwrap();
            let mut requests = 0.0;
            (0..240).find_map(|_| {
                let c = replies(rng, 0.05 * REQUESTS_PER_MINUTE, scale);
                requests += c.n() as f64;
                p.observe(&c, &replies(rng, 0.95 * REQUESTS_PER_MINUTE, 1.0))
                    .unwrap();
                p.rejects(ALPHA).then_some(requests)
            })
        });
        soon(
            &format!("latency, scale {scale}"),
            found,
            median,
            published(1.0, 500),
            60.0,
        );
    }
}
