//! Every anytime test under its hypothesis, at 4,620 looks: alarms at most alpha.

use std::collections::BTreeMap;

use llm_gates::anytime::{
    AutoRatio, BettingMean, BoundedMeans, CappedMeans, EProcess, EmpiricalBernstein, EventRate,
    History, Mismatch, NormalMixture, OverdispersedRatio, QuantileShift, RateDetector, Scores,
    Sign, Slo, Swap, Symmetric, beta_binomial_one_sided, beta_binomial_two_sided,
    proportion_sequence, quantile_difference, quantile_sequence,
};
use llm_gates::drift::{CategoryDrift, EmbeddingDrift, RandomFeatures};
use llm_gates::quality::Flips;
use llm_gates::{
    Action, Counts, Evidence, GatePlan, Grid, Increment, LiveGate, PassWhen, RateRatio, Sketch,
    Verdict, Window,
};

use crate::rng::Rng;
use crate::world::{
    Baseline, DRIFT, LOOKS, Minute, QUIET, RAMP, RATE, World, history, minutes, noisy, ramp,
};
use crate::{
    ALPHA, at_least, at_most, auto_ratio_alarms, lives, many, rate_ratio_alarms, rr7, share,
};

/// Alarms of a process that looks each minute of the ramp, without and with drift that all arms share.
fn both_worlds(name: &str, seed: u64, count: u64, life: impl Fn(&mut Rng, bool) -> bool + Sync) {
    for (i, (world, drift)) in [("stationary", false), ("drift and bursts", true)]
        .into_iter()
        .enumerate()
    {
        let found = share(seed + i as u64, count, |rng| life(rng, drift));
        at_most(&format!("{name}, {world}"), found, ALPHA, count);
    }
}

/// Whether the life alarms at any look.
fn any_minute(rng: &mut Rng, drift: bool, mut look: impl FnMut(&mut Rng, &Minute) -> bool) -> bool {
    let minutes = minutes(rng, drift);
    for minute in minutes {
        if look(rng, &minute) {
            return true;
        }
    }
    false
}

/// Whether the life alarms at any of 4,620 looks that are all alike.
fn any_look(mut look: impl FnMut() -> bool) -> bool {
    (0..LOOKS).any(|_| look())
}

const fn world(drift: bool) -> World {
    if drift { DRIFT } else { QUIET }
}

#[test]
#[ignore = "minutes, in release: .ci/steps/simulations"]
fn tests_of_rates_keep_their_bound() {
    let n = many(1_000);
    both_worlds("RateRatio", 11, n, |rng, drift| {
        rate_ratio_alarms(rng, rr7(), world(drift), 1.0)
    });
    let found = share(13, n, |rng| rate_ratio_alarms(rng, rr7(), QUIET, 2.0));
    at_least("RateRatio, doubled rate", found, 0.99, n);
    let n = many(500);
    both_worlds("RateRatio with change points", 16, n, |rng, drift| {
        let process = RateRatio::with_late_starts(1.0, Grid::Rr7, 0.5, LOOKS).unwrap();
        rate_ratio_alarms(rng, process, world(drift), 1.0)
    });
    both_worlds("RateRatio per exposure", 18, n, |rng, drift| {
        let mut p = rr7();
        any_minute(rng, drift, |rng, m| {
            // Replica-minutes of eight replicas with a crash in 500.
            let mut arm = |share: f64| (rng.poisson(8.0 * share * m.rate / 500.0), 8.0 * share);
            let (c, b) = (arm(m.share), arm(1.0 - m.share));
            p.observe_exposure(c, b).unwrap();
            p.rejects(ALPHA)
        })
    });
    both_worlds(
        "OverdispersedRatio, arms noisy, CV .2",
        20,
        n,
        |rng, drift| {
            let s2 = 2.0 * 1.04f64.ln();
            let mut p = OverdispersedRatio::new(s2, Grid::Rr7).unwrap();
            let world = World {
                baseline: Baseline::OneArm,
                drift,
                ..noisy(0.2, 0.0)
            };
            let mut block = [Counts::default(); 2];
            ramp(rng, world, 1.0, |m, c, [one, two]| {
                let b = one.plus(two).unwrap();
                block = [block[0].plus(c).unwrap(), block[1].plus(b).unwrap()];
                if m.at % 5 == 4 {
                    p.observe(block[0], block[1]).unwrap();
                    block = [Counts::default(); 2];
                }
                p.rejects(ALPHA)
            })
        },
    );
    for (i, noise) in [0.0, 0.5].into_iter().enumerate() {
        let name = format!("Symmetric, blocks of 5 minutes, CV {noise}");
        both_worlds(&name, 22 + 2 * i as u64, n, |rng, drift| {
            let world = World {
                baseline: Baseline::Control,
                drift,
                ..noisy(noise, 0.0)
            };
            symmetric_alarms(rng, world)
        });
    }
    let loud = World {
        baseline: Baseline::Control,
        ..noisy(0.5, 0.8)
    };
    let found = share(26, n, |rng| symmetric_alarms(rng, loud));
    at_least("Symmetric is fooled by correlated noise", found, 0.15, n);
    both_worlds("Swap, one control arm", 27, n, |rng, drift| {
        let mut p = Swap::new(1, Grid::Rr7).unwrap();
        let world = World {
            baseline: Baseline::Control,
            ..world(drift)
        };
        ramp(rng, world, 1.0, |_, c, [control, _]| {
            p.observe(c.k, &[control.k]).unwrap();
            p.rejects(ALPHA)
        })
    });
    let found = share(29, n, |rng| {
        let mut p = Swap::new(3, Grid::Rr7).unwrap();
        any_look(|| {
            let k: [u64; 4] = std::array::from_fn(|_| rng.poisson(2.0));
            p.observe(k[0], &k[1..]).unwrap();
            p.rejects(ALPHA)
        })
    });
    at_most("Swap, three control arms", found, ALPHA, n);
}

pub(crate) fn symmetric_alarms(rng: &mut Rng, world: World) -> bool {
    let (mut p, mut d) = (Symmetric::new(), 0.0);
    ramp(rng, world, 1.0, |m, c, [control, _]| {
        d += c.k as f64 - control.k as f64;
        if m.at % 5 == 4 {
            p.observe(std::mem::take(&mut d)).unwrap();
        }
        p.rejects(ALPHA)
    })
}

#[test]
#[ignore = "minutes, in release: .ci/steps/simulations"]
fn auto_ratio_keeps_its_bound_whatever_the_noise() {
    let n = many(200);
    let noises = [
        ("stationary", QUIET),
        ("drift and bursts", DRIFT),
        ("CV .2", noisy(0.2, 0.0)),
        ("CV .5", noisy(0.5, 0.0)),
        ("CV .2, AR .8", noisy(0.2, 0.8)),
        ("CV .5, AR .8", noisy(0.5, 0.8)),
    ];
    for (i, (name, world)) in noises.into_iter().enumerate() {
        let found = share(30 + i as u64, n, |rng| {
            auto_ratio_alarms(rng, world, 1.0, History::Groups, 72)
        });
        at_most(&format!("AutoRatio, {name}"), found, ALPHA, n);
    }
    for (i, (name, world)) in noises.into_iter().take(3).enumerate() {
        let found = share(36 + i as u64, n, |rng| {
            auto_ratio_alarms(rng, world, 2.0, History::Groups, 72)
        });
        at_least(&format!("AutoRatio, doubled rate, {name}"), found, 0.95, n);
    }
}

#[test]
#[ignore = "minutes, in release: .ci/steps/simulations"]
fn continuous_noise_keeps_the_bound_where_nodes_do_not() {
    let n = many(200);
    let both = World {
        drift: true,
        ..noisy(0.5, 0.8)
    };
    let alone = World {
        baseline: Baseline::Quiet,
        ..noisy(0.5, 0.0)
    };
    let alarms = |rng: &mut Rng, world: World, ratio: f64| {
        let mut process = AutoRatio::continuous(1.0, History::Groups, 0.1 * ALPHA).unwrap();
        history(rng, world, 72, |groups| process.learn(groups).unwrap());
        ramp(rng, world, ratio, |minute, c, groups| {
            process.observe(minute.at / 5, c, groups).unwrap();
            process.rejects(ALPHA)
        })
    };
    for (i, (name, world)) in [
        ("stationary", QUIET),
        ("CV .5, AR .8, drift and bursts", both),
        ("CV .5 in the candidate only", alone),
    ]
    .into_iter()
    .enumerate()
    {
        let found = share(400 + i as u64, n, |rng| alarms(rng, world, 1.0));
        at_most(&format!("continuous noise, {name}"), found, ALPHA, n);
    }
    let found = share(404, n, |rng| alarms(rng, QUIET, 2.0));
    at_least("continuous noise, doubled rate", found, 0.95, n);
    let found = share(405, n, |rng| {
        auto_ratio_alarms(rng, both, 1.0, History::Groups, 72)
    });
    at_least("nodes, CV .5, AR .8, drift and bursts", found, 0.2, n);
}

#[test]
#[ignore = "minutes, in release: .ci/steps/simulations"]
fn tests_of_one_arm_keep_their_bound() {
    let n = many(1_000);
    both_worlds("Slo", 100, n, |rng, drift| {
        let mut p = Slo::new(RATE, Grid::Rr7).unwrap();
        any_minute(rng, drift, |rng, m| {
            p.observe(rng.counts(m.traffic * m.share, RATE)).unwrap();
            p.rejects(ALPHA)
        })
    });
    both_worlds("EventRate", 102, n, |rng, drift| {
        let mut p = EventRate::new(0.002, Grid::Rr7).unwrap();
        any_minute(rng, drift, |rng, m| {
            let exposure = m.traffic * m.share;
            p.observe(rng.poisson(0.002 * exposure), exposure).unwrap();
            p.rejects(ALPHA)
        })
    });
    let skewed = |rng: &mut Rng| rng.uniform().powi(2);
    let found = share(104, n, |rng| {
        let mut p = BettingMean::new(1.0 / 3.0, ALPHA).unwrap();
        any_look(|| {
            p.observe(skewed(rng)).unwrap();
            p.rejects(ALPHA)
        })
    });
    at_most("BettingMean", found, ALPHA, n);
    let found = share(105, n, |rng| {
        let mut p = EmpiricalBernstein::new(ALPHA).unwrap();
        any_look(|| {
            p.observe(skewed(rng)).unwrap();
            let (low, high) = p.interval();
            !(low..=high).contains(&(1.0 / 3.0))
        })
    });
    at_most("EmpiricalBernstein misses the mean", found, ALPHA, n);
    let n = many(300);
    let ln_20 = 20.0f64.ln();
    for (i, one_sided) in [false, true].into_iter().enumerate() {
        let found = share(106 + i as u64, n, |rng| {
            let mut sum = Counts::default();
            any_look(|| {
                sum = sum.plus(rng.counts(12.0, RATE)).unwrap();
                let log = if one_sided {
                    beta_binomial_one_sided(sum, RATE, 1.0, 99.0)
                } else {
                    beta_binomial_two_sided(sum, RATE, 1.0, 99.0)
                };
                log.unwrap() >= ln_20
            })
        });
        let side = if one_sided { "one-sided" } else { "two-sided" };
        at_most(&format!("beta-binomial mixture, {side}"), found, ALPHA, n);
        let found = share(108 + i as u64, n, |rng| {
            let p = NormalMixture::tight_at(1_000.0, ALPHA, one_sided).unwrap();
            let (mut s, mut v) = (0.0, 0.0);
            any_look(|| {
                s += rng.normal();
                v += 1.0;
                p.log_e(s, v) >= ln_20
            })
        });
        at_most(&format!("normal mixture, {side}"), found, ALPHA, n);
    }
}

/// Which of n + 1 possible numbers of successes keep the true rate inside the sequence, by walking along their edges.
struct Inside {
    low: u64,
    high: u64,
}

#[test]
#[ignore = "minutes, in release: .ci/steps/simulations"]
fn confidence_sequences_hold_the_truth_at_every_look() {
    let n = many(1_000);
    let q = 0.9;
    // The ranks of the bounds depend on the number of values alone: ask with ranks for values.
    let ranks: Vec<f64> = (1..=LOOKS).map(f64::from).collect();
    let bounds: Vec<_> = (1..=ranks.len())
        .map(|i| quantile_sequence(&ranks[..i], q, ALPHA, 1_000.0).unwrap())
        .collect();
    let found = share(120, n, |rng| {
        // Of uniform values, those up to the true quantile.
        let mut below = 0.0;
        bounds.iter().any(|(low, high)| {
            below += f64::from(u8::from(rng.uniform() <= q));
            below < *low || below >= *high
        })
    });
    at_most("quantile_sequence misses the quantile", found, ALPHA, n);
    let p = 0.1;
    let holds = |n: u64, k: u64| {
        let (low, high) = proportion_sequence(Counts::new(n, k), ALPHA, 1_000.0).unwrap();
        (low..=high).contains(&p)
    };
    let mut edge = Inside { low: 0, high: 0 };
    let inside: Vec<_> = (1..=u64::from(LOOKS))
        .map(|n| {
            while edge.low < n && !holds(n, edge.low) {
                edge.low += 1;
            }
            edge.high = edge.high.max(edge.low);
            while edge.high < n && holds(n, edge.high + 1) {
                edge.high += 1;
            }
            (edge.low, edge.high)
        })
        .collect();
    let found = share(121, n, |rng| {
        let mut k = 0;
        inside.iter().any(|(low, high)| {
            k += u64::from(rng.uniform() < p);
            k < *low || k > *high
        })
    });
    at_most("proportion_sequence misses the proportion", found, ALPHA, n);
    // Too dear for 4,620 looks: 66 looks at 70 new values for both arms.
    let n = many(100);
    let found = share(122, n, |rng| {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        (0..66).any(|_| {
            a.extend((0..35).map(|_| rng.uniform()));
            b.extend((0..35).map(|_| rng.uniform()));
            quantile_difference(&a, &b, q, 1_000.0).unwrap() <= ALPHA
        })
    });
    at_most("quantile_difference, 66 looks", found, ALPHA, n);
}

/// Scores of 0, 1/2 and 1 with these chances.
fn scores(rng: &mut Rng, n: f64, half: f64, one: f64) -> Scores {
    let (halves, ones) = (rng.poisson(n * half), rng.poisson(n * one));
    let (h, o) = (halves as f64, ones as f64);
    Scores {
        n: rng.poisson(n * (1.0 - half - one)) + halves + ones,
        sum: 0.5 * h + o,
        square: 0.25 * h + o,
    }
}

fn latencies(rng: &mut Rng, n: f64, scale: f64) -> Sketch {
    let mut sketch = Sketch::default();
    for _ in 0..rng.poisson(n) {
        sketch.record(scale * (0.6 * rng.normal()).exp());
    }
    sketch
}

#[test]
#[ignore = "minutes, in release: .ci/steps/simulations"]
fn tests_of_quality_keep_their_bound() {
    let n = many(500);
    // A tenth is judged.
    let judged = |m: &Minute, share: f64| 0.1 * m.traffic * share;
    both_worlds("Sign, decided comparisons", 200, n, |rng, drift| {
        let mut p = Sign::new();
        any_minute(rng, drift, |rng, m| {
            let decided = 0.4 * judged(m, m.share);
            p.observe(rng.poisson(decided), rng.poisson(decided));
            p.rejects(ALPHA)
        })
    });
    both_worlds("Sign, discordant pairs", 202, n, |rng, drift| {
        let mut p = Sign::new();
        any_minute(rng, drift, |rng, m| {
            let flips = 0.03 * m.rate * judged(m, m.share);
            p.observe(rng.poisson(flips), rng.poisson(flips));
            p.rejects(ALPHA)
        })
    });
    both_worlds(
        "RateRatio, negative against positive flips",
        204,
        n,
        |rng, drift| {
            let mut p = rr7();
            any_minute(rng, drift, |rng, m| {
                let pairs = judged(m, m.share);
                let mut flips = || rng.poisson(0.03 * m.rate * pairs);
                let (negative, positive) = (flips(), flips());
                let n = rng.poisson(pairs) + negative + positive;
                p.observe(Counts::new(n, negative), Counts::new(n, positive));
                p.rejects(ALPHA)
            })
        },
    );
    both_worlds("BoundedMeans", 206, n, |rng, drift| {
        let mut p = BoundedMeans::new(0.0).unwrap();
        any_minute(rng, drift, |rng, m| {
            let (half, one) = (0.3, 0.06 * m.rate);
            let c = scores(rng, judged(m, m.share), half, one);
            let b = scores(rng, judged(m, 1.0 - m.share), half, one);
            p.observe(c, b).unwrap();
            p.rejects(ALPHA)
        })
    });
    both_worlds("Mismatch", 208, n, |rng, drift| {
        let weights = |stage: usize| {
            let share = f64::from(RAMP[stage].0) / 10_000.0;
            [share, 1.0 - share]
        };
        let mut p = Mismatch::new(&weights(0), 10_000.0).unwrap();
        let mut stage = 0;
        any_minute(rng, drift, |rng, m| {
            if m.stage != stage {
                stage = m.stage;
                p.next_stage(&weights(stage)).unwrap();
            }
            let mut units = |share: f64| rng.poisson(0.1 * m.traffic * share);
            p.observe(&[units(m.share), units(1.0 - m.share)]).unwrap();
            p.rejects(ALPHA)
        })
    });
}

#[test]
#[ignore = "minutes, in release: .ci/steps/simulations"]
fn tests_of_distributions_keep_their_bound() {
    let n = many(200);
    // One reply a second, slower in bursts.
    let replies = |m: &Minute, share: f64| 0.05 * m.traffic * share;
    both_worlds("QuantileShift", 220, n, |rng, drift| {
        let mut p = QuantileShift::new(0.0, 5).unwrap();
        any_minute(rng, drift, |rng, m| {
            let c = latencies(rng, replies(m, m.share), m.rate.sqrt());
            let b = latencies(rng, replies(m, 1.0 - m.share), m.rate.sqrt());
            p.observe(&c, &b).unwrap();
            p.rejects(ALPHA)
        })
    });
    both_worlds("CappedMeans", 222, n, |rng, drift| {
        let mut p = CappedMeans::new(0.0, 5).unwrap();
        any_minute(rng, drift, |rng, m| {
            let c = latencies(rng, replies(m, m.share), m.rate.sqrt());
            let b = latencies(rng, replies(m, 1.0 - m.share), m.rate.sqrt());
            p.observe(&c, &b).unwrap();
            p.rejects(ALPHA)
        })
    });
    both_worlds("CategoryDrift", 224, n, |rng, drift| {
        let mut p = CategoryDrift::new(3, 0.0).unwrap();
        any_minute(rng, drift, |rng, m| {
            let rare = 0.05 * m.rate;
            let mix = [0.75 - rare, 0.25, rare];
            let mut arm = |share: f64| mix.map(|part| rng.poisson(replies(m, share) * part));
            let (c, b) = (arm(m.share), arm(1.0 - m.share));
            p.observe(&c, &b).unwrap();
            p.rejects(ALPHA)
        })
    });
    let found = share(226, n, |rng| {
        let mut p = EmbeddingDrift::new(RandomFeatures::new(3, 16, 0.2, 1).unwrap());
        let block = |rng: &mut Rng| {
            (0..2)
                .map(|_| (0..3).map(|_| rng.normal()).collect())
                .collect::<Vec<Vec<f64>>>()
        };
        any_look(|| {
            let (c, b) = (block(rng), block(rng));
            p.observe(&c, &b).unwrap();
            p.rejects(ALPHA)
        })
    });
    at_most("EmbeddingDrift", found, ALPHA, n);
}

/// After 100 % there is no bound for ever: false alarms are at least so many looks apart on average.
#[test]
#[ignore = "minutes, in release: .ci/steps/simulations"]
fn the_detector_alarms_as_seldom_as_it_says() {
    let (n, apart) = (many(1_000), 200.0);
    let looks = lives(240, n, |rng| {
        let mut p = RateDetector::new(RATE, Grid::Rr7).unwrap();
        (1..20 * LOOKS)
            .find(|_| {
                p.observe(rng.counts(240.0, RATE)).unwrap();
                p.alarms(apart)
            })
            .unwrap_or(20 * LOOKS)
    });
    let mean = looks.iter().map(|l| f64::from(*l)).sum::<f64>() / n as f64;
    println!("RateDetector: {mean:.0} looks between false alarms (at least {apart}, {n} lives)");
    assert!(mean >= apart);
}

/// Four metrics of four kinds share one budget.
#[test]
#[ignore = "minutes, in release: .ci/steps/simulations"]
fn a_whole_plan_keeps_its_budget() {
    let gate = |metric: &str, weight| LiveGate::new(metric, weight, 0.0, Action::Rollback);
    let plan = GatePlan::new(
        ALPHA,
        vec![
            gate("error", 0.4),
            gate("flips", 0.2),
            gate("score", 0.2),
            gate("crashes", 0.2),
        ],
        PassWhen::NoEvidenceOfHarm { min_samples: 1 },
    );
    let n = many(300);
    both_worlds("a plan of four gates", 250, n, |rng, drift| {
        let mut evidence = Evidence::new();
        let mut window = Window {
            epoch: 0,
            from: 0,
            to: 0,
            metrics: BTreeMap::new(),
        };
        any_minute(rng, drift, |rng, m| {
            let judged = 0.1 * m.traffic;
            let mut flips = || rng.poisson(0.03 * m.rate * judged * m.share);
            let (negative, positive) = (flips(), flips());
            let rate = RATE * m.rate;
            let (c, b) = (m.share, 1.0 - m.share);
            let crashes = |rng: &mut Rng, share: f64| llm_gates::Exposed {
                events: rng.poisson(8.0 * share * m.rate / 500.0),
                exposure: 8.0 * share,
            };
            let increments = [
                (
                    "error",
                    Increment::Binary {
                        candidate: rng.counts(m.traffic * c, rate),
                        baseline: rng.counts(m.traffic * b, rate),
                    },
                ),
                (
                    "flips",
                    Increment::Paired(Flips {
                        both_right: 0,
                        negative,
                        positive,
                        both_wrong: 0,
                    }),
                ),
                (
                    "score",
                    Increment::Scores {
                        candidate: scores(rng, judged * c, 0.3, 0.06 * m.rate),
                        baseline: scores(rng, judged * b, 0.3, 0.06 * m.rate),
                    },
                ),
                (
                    "crashes",
                    Increment::Events {
                        candidate: crashes(rng, c),
                        baseline: crashes(rng, b),
                    },
                ),
            ];
            window.epoch = m.stage as u64;
            (window.from, window.to) = (m.at * 60_000, (m.at + 1) * 60_000);
            window.metrics = increments.map(|(n, i)| (n.to_owned(), i)).into();
            evidence.look(&plan, &window).unwrap().verdict == Verdict::Fail
        })
    });
}

/// The interval that is shown holds the ratio at all looks; asymptotic, so it is looked at from the first ten events on.
#[test]
#[ignore = "minutes, in release: .ci/steps/simulations"]
fn the_interval_that_is_shown_holds_the_ratio() {
    let plan = GatePlan::new(
        ALPHA,
        vec![LiveGate::new("error", 1.0, 0.0, Action::Warn)],
        PassWhen::NoEvidenceOfHarm { min_samples: 1 },
    );
    let n = many(300);
    for (i, ratio) in [1.0, 1.5].into_iter().enumerate() {
        both_worlds(
            &format!("interval misses the ratio {ratio}"),
            260 + 2 * i as u64,
            n,
            |rng, drift| {
                let mut evidence = Evidence::new();
                ramp(rng, world(drift), ratio, |m, c, [one, two]| {
                    let increment = Increment::Binary {
                        candidate: c,
                        baseline: one.plus(two).unwrap(),
                    };
                    let window = Window {
                        epoch: m.stage as u64,
                        from: m.at * 60_000,
                        to: (m.at + 1) * 60_000,
                        metrics: [("error".to_owned(), increment)].into(),
                    };
                    let judgement = evidence.observe(&plan, &window).unwrap();
                    let interval = judgement.gates[0].interval;
                    interval.is_some_and(|(low, high)| ratio < low || ratio > high)
                })
            },
        );
    }
}
