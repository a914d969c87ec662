//! Group `statistics`: one look of every process, and one value of every sketch.
//!
//! The floor of each is the arithmetic of its formula on plain arrays: as many logarithms and exponentials, and nothing around
//! them.

use crate::data::{SET, Seeded};
use crate::figure::{Figure, Limit};
use crate::measure::{Design, interleave};
use crate::routing::absolute;
use crate::{Error, Scale};
use llm_gates::anytime::{
    AutoRatio, BettingMean, BoundedMeans, CappedMeans, EProcess, History, Mismatch, NormalMixture,
    OverdispersedRatio, QuantileShift, Scores, Sign, Slo, Swap, Symmetric, beta_binomial_two_sided,
};
use llm_gates::special::{gamma, normal};
use llm_gates::{
    Action, Alternative, Counts, Evidence, GatePlan, Grid, Increment, Limit as Limited, LiveGate,
    Moments, PassWhen, RateRatio, Sketch, Window, decide,
};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

/// Its name.
pub const GROUP: &str = "statistics";

/// A process and its floor, timed in the same run.
struct Case<'a> {
    designs: [Design<'a>; 2],
    allocations: f64,
}

/// `look` and `floor` each take one of the samples and answer with what they found.
fn case<'a, S: Sync, P: Clone + Sync + 'a, F: Clone + Sync + 'a>(
    name: &'static str,
    floor_name: &'static str,
    samples: &'a [S],
    (process, look): (P, impl Fn(&mut P, &S) -> f64 + Sync + 'a),
    (plain, floor): (F, impl Fn(&mut F, &S) -> f64 + Sync + 'a),
) -> Case<'a> {
    // Every pass starts from the same state, so that no mixture degenerates to one term while its floor does not.
    let mut warm = process.clone();
    let counted = allocation_counter::measure(|| {
        for sample in samples {
            black_box(look(&mut warm, black_box(sample)));
        }
    });
    let allocations = counted.count_total as f64 / samples.len() as f64;
    let per_pass = samples.len();
    Case {
        designs: [
            Design::new(floor_name, per_pass, move |_, passes| {
                for _ in 0..passes {
                    let mut state = plain.clone();
                    for sample in samples {
                        black_box(floor(&mut state, black_box(sample)));
                    }
                }
            }),
            Design::new(name, per_pass, move |_, passes| {
                for _ in 0..passes {
                    let mut state = process.clone();
                    for sample in samples {
                        black_box(look(&mut state, black_box(sample)));
                    }
                }
            }),
        ],
        allocations,
    }
}

fn log_sum_exp<const N: usize>(v: &[f64; N]) -> f64 {
    let max = v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + libm::log(v.iter().map(|x| libm::exp(x - max)).sum())
}

/// The seven ratios, their logarithms and those of their weights.
#[derive(Clone)]
struct Seven {
    theta: [f64; 7],
    ln: [f64; 7],
    logs: [f64; 7],
}

impl Seven {
    fn new() -> Self {
        let of = |f: fn(&Alternative) -> f64| {
            let mut values = [0.0; 7];
            let rows = Grid::Rr7;
            for (to, row) in values.iter_mut().zip(rows.alternatives()) {
                *to = f(row);
            }
            values
        };
        Self {
            theta: of(|a| a.theta),
            ln: of(|a| libm::log(a.theta)),
            logs: of(|a| libm::log(a.weight)),
        }
    }

    fn add(&mut self, gain: impl Fn(f64, f64) -> f64) {
        let grid = self.theta.iter().zip(&self.ln);
        for (log, (theta, ln)) in self.logs.iter_mut().zip(grid) {
            *log += gain(*theta, *ln);
        }
    }

    fn rate_ratio(&mut self, (c, b): &(Counts, Counts)) -> f64 {
        let (n_c, k_c) = (c.n as f64, c.k as f64);
        let k = k_c + b.k as f64;
        let pi = n_c / (n_c + b.n as f64);
        self.add(|theta, ln| k_c * ln - k * libm::log1p(pi * (theta - 1.0)));
        log_sum_exp(&self.logs)
    }
}

/// What both arms gain in a minute, at 5 %.
fn minutes() -> Vec<(Counts, Counts)> {
    let mut seeded = Seeded::new(5);
    let events =
        |seeded: &mut Seeded, n: u64| (0..n).filter(|_| seeded.unit() < 0.01).count() as u64;
    (0..SET)
        .map(|_| {
            let (n_c, n_b) = (50 + seeded.next() % 20, 1_100 + seeded.next() % 80);
            let (k_c, k_b) = (events(&mut seeded, n_c), events(&mut seeded, n_b));
            (Counts::new(n_c, k_c), Counts::new(n_b, k_b))
        })
        .collect()
}

fn sketches() -> Vec<(Sketch, Sketch)> {
    let mut seeded = Seeded::new(6);
    let mut sketch = |n: usize| {
        let mut sketch = Sketch::default();
        for _ in 0..n {
            sketch.record(seeded.latency(300.0, 0.6) as f64);
        }
        sketch
    };
    (0..32).map(|_| (sketch(60), sketch(1_140))).collect()
}

/// Buckets of a pair of sketches that their floor walks along: at each, a value and counts of both arms.
fn bars(pairs: &[(Sketch, Sketch)]) -> Vec<[Vec<(f64, u64)>; 2]> {
    let of = |s: &Sketch| s.bars().iter().map(|(low, _, k)| (*low, *k)).collect();
    pairs.iter().map(|(c, b)| [of(c), of(b)]).collect()
}

/// A window of ten rates, and one of these.
type Turn = (Window, (Counts, Counts));

/// Ten gates on rates, and what they look at.
fn ten() -> (GatePlan, Vec<Turn>) {
    let names: Vec<String> = (0..10).map(|i| format!("metric_{i}")).collect();
    let gate = |n: &String| LiveGate::new(n.clone(), 0.1, 0.0, Action::Rollback);
    let plan = GatePlan::new(
        0.05,
        names.iter().map(gate).collect(),
        PassWhen::NoEvidenceOfHarm { min_samples: 1 },
    );
    let turn = |(at, (candidate, baseline)): (u64, (Counts, Counts))| {
        let increment = Increment::Binary {
            candidate,
            baseline,
        };
        let window = Window {
            epoch: 1,
            from: at,
            to: at + 1,
            metrics: names
                .iter()
                .map(|n| (n.clone(), increment.clone()))
                .collect(),
        };
        (window, (candidate, baseline))
    };
    (plan, (0..).zip(minutes()).map(turn).collect())
}

/// Measures the group.
///
/// # Errors
/// A process cannot be set up.
pub fn run(_: Scale) -> Result<Vec<Figure>, Error> {
    let (minutes, seven) = (minutes(), Seven::new());
    let values: Vec<f64> = {
        let mut seeded = Seeded::new(7);
        (0..SET).map(|_| seeded.unit()).collect()
    };
    let pairs = sketches();
    let both: Vec<_> = pairs.iter().zip(bars(&pairs)).collect();
    let (plan, turns) = ten();
    let mut cases = rates(&minutes, &seven)?;
    cases.extend(one_arm(&minutes, &values, &seven)?);
    cases.extend(summaries(&values, &both, &seven)?);
    cases.extend(gates(&plan, &turns, &seven)?);
    let mut figures = Vec::new();
    for case in &cases {
        let timings = interleave(&case.designs, Duration::from_millis(400));
        if let ([floor, ours], [plain, design]) = (timings.as_slice(), &case.designs) {
            let ratio = Figure::new(GROUP, design.name(), ours.one / floor.one, "x floor");
            figures.push(ratio.limit(Limit::AtMost(2.0)));
            let allocations = format!("{}, allocations", design.name());
            figures.push(
                Figure::new(GROUP, allocations, case.allocations, "").limit(Limit::AtMost(0.0)),
            );
            figures.extend(absolute(GROUP, design.name(), *ours).into_iter().take(1));
            let floor = absolute(GROUP, plain.name(), *floor).into_iter().take(1);
            figures.extend(floor);
        }
    }
    Ok(figures)
}

fn rates<'a>(minutes: &'a [(Counts, Counts)], seven: &Seven) -> Result<Vec<Case<'a>>, Error> {
    let rate = |p: &mut RateRatio, (c, b): &(Counts, Counts)| {
        p.observe(*c, *b);
        p.log_e()
    };
    let groups = |b: Counts| {
        [
            Counts::new(b.n / 2, b.k / 2),
            Counts::new(b.n - b.n / 2, b.k - b.k / 2),
        ]
    };
    let mut auto = AutoRatio::new(1.0, History::Groups, 0.005)?;
    for (_, b) in minutes {
        auto.learn(groups(*b))?;
    }
    Ok(vec![
        case(
            "RateRatio, a batch",
            "floor: 7 ln(1 + x), 7 exp, 1 ln",
            minutes,
            (RateRatio::new(1.0, Grid::Rr7)?, rate),
            (seven.clone(), Seven::rate_ratio),
        ),
        case(
            "RateRatio with change points, a batch",
            "floor: the same and 7 sums of two logarithms",
            minutes,
            (
                RateRatio::with_late_starts(1.0, Grid::Rr7, 0.5, 1_000_000)?,
                rate,
            ),
            (seven.clone(), |s: &mut Seven, m: &(Counts, Counts)| {
                for log in &mut s.logs {
                    let d = -20.0 - *log;
                    *log += libm::log1p(libm::exp(d));
                }
                s.rate_ratio(m)
            }),
        ),
        case(
            "AutoRatio, a batch",
            "floor: 536 ln(1 + x), 809 exp, 5,599 products, 245 ln",
            minutes,
            (
                (auto, 0u64),
                move |(p, t): &mut (AutoRatio, u64), (c, b): &(Counts, Counts)| {
                    *t += 1;
                    // Groups of Counts::check'ed halves.
                    let _ = p.observe(*t / 5, *c, groups(*b));
                    p.log_e()
                },
            ),
            (
                [0.5f64; 704],
                |state: &mut [f64; 704], (c, b): &(Counts, Counts)| {
                    let pi = c.n as f64 / (c.n as f64 + b.n as f64);
                    let (k_c, k) = (c.k as f64, c.k as f64 + b.k as f64);
                    for (i, x) in state.iter_mut().enumerate().take(536) {
                        *x += k_c * (i as f64 * 0.001) - k * libm::log1p(pi * (i as f64 * 0.004));
                    }
                    // A block's end, every fifth look, is a fifth of this.
                    let mut weights = [0.0; 634];
                    for (w, x) in weights.iter_mut().zip(state.iter()) {
                        *w = libm::exp((*x).clamp(-50.0, 50.0));
                    }
                    let mut sums = [0.0; 509];
                    for (i, sum) in sums.iter_mut().enumerate() {
                        let row = weights.iter().skip(i).take(11);
                        *sum = row.map(|w| w * 0.3).sum::<f64>();
                    }
                    for sum in sums.iter_mut().take(245) {
                        *sum = libm::log(*sum);
                    }
                    sums.iter().take(175).map(|x| libm::exp(x - 50.0)).sum()
                },
            ),
        ),
        case(
            "OverdispersedRatio, a block",
            "floor: 32 ln gamma, 7 exp, 1 ln",
            minutes,
            (
                OverdispersedRatio::new(0.04, Grid::Rr7)?,
                |p: &mut OverdispersedRatio, (c, b): &(Counts, Counts)| {
                    // The counts have been checked.
                    let _ = p.observe(*c, *b);
                    p.log_e()
                },
            ),
            (seven.clone(), |s: &mut Seven, (c, b): &(Counts, Counts)| {
                let pi = c.n as f64 / (c.n as f64 + b.n as f64);
                let m = 1.0 / (pi * (1.0 - pi) * 0.04);
                let (k_c, k) = (c.k as f64, c.k as f64 + b.k as f64);
                let ratio = |a: f64, b: f64| {
                    libm::lgamma(a + k_c) - libm::lgamma(a) - libm::lgamma(a + b + k)
                        + libm::lgamma(a + b)
                };
                let null = ratio(pi * m, (1.0 - pi) * m);
                s.add(|theta, _| ratio(theta * pi * m, (1.0 - pi) * m) - null);
                log_sum_exp(&s.logs)
            }),
        ),
        case(
            "Swap with one control arm, a batch",
            "floor: 14 exp, 7 ln(1 + x), 1 ln",
            minutes,
            (
                Swap::new(1, Grid::Rr7)?,
                |p: &mut Swap, (c, b): &(Counts, Counts)| {
                    // One count for one control arm.
                    let _ = p.observe(c.k, &[b.k / 19]);
                    p.log_e()
                },
            ),
            (seven.clone(), |s: &mut Seven, (c, b): &(Counts, Counts)| {
                let d = (b.k / 19) as f64 - c.k as f64;
                s.add(|_, ln| std::f64::consts::LN_2 - libm::log1p(libm::exp(d * ln)));
                log_sum_exp(&s.logs)
            }),
        ),
    ])
}

fn one_arm<'a>(
    minutes: &'a [(Counts, Counts)],
    values: &'a [f64],
    seven: &Seven,
) -> Result<Vec<Case<'a>>, Error> {
    let mixture = NormalMixture::tight_at(1_000.0, 0.05, false)?;
    let scores = |c: &Counts| Scores {
        n: c.n,
        sum: c.k as f64,
        square: c.k as f64,
    };
    Ok(vec![
        case(
            "Slo, a batch",
            "floor: 14 products, 7 exp, 1 ln",
            minutes,
            (
                Slo::new(0.01, Grid::Rr7)?,
                |p: &mut Slo, (c, _): &(Counts, Counts)| {
                    // The counts have been checked.
                    let _ = p.observe(*c);
                    p.log_e()
                },
            ),
            (seven.clone(), |s: &mut Seven, (c, _): &(Counts, Counts)| {
                let (k, n) = (c.k as f64, c.n as f64);
                s.add(|theta, ln| k * ln - n * (0.01 * (theta - 1.0)));
                log_sum_exp(&s.logs)
            }),
        ),
        case(
            "Sign, a batch",
            "floor: 16 products, 8 exp, 1 ln",
            minutes,
            (Sign::new(), |p: &mut Sign, (c, b): &(Counts, Counts)| {
                p.observe(c.k, b.k / 19);
                p.log_e()
            }),
            (
                [-2.0; 8],
                |logs: &mut [f64; 8], (c, b): &(Counts, Counts)| {
                    let (k, rest) = (c.k as f64, (b.k / 19) as f64);
                    for (i, log) in logs.iter_mut().enumerate() {
                        *log += k * (0.02 * i as f64) - rest * (0.021 * i as f64);
                    }
                    log_sum_exp(logs)
                },
            ),
        ),
        case(
            "Symmetric, a block",
            "floor: 1 root, 10 exp, 5 ln(1 + x), 1 ln",
            minutes,
            (
                Symmetric::new(),
                |p: &mut Symmetric, (c, b): &(Counts, Counts)| {
                    // Differences of counts are finite.
                    let _ = p.observe(c.k as f64 - (b.k / 19) as f64);
                    p.log_e()
                },
            ),
            (
                ([-1.6; 5], 1.0),
                |(logs, square): &mut ([f64; 5], f64), (c, b): &(Counts, Counts)| {
                    let d = c.k as f64 - (b.k / 19) as f64;
                    let d = d / libm::sqrt(*square);
                    *square += 0.01 * d * d;
                    for (log, a) in logs.iter_mut().zip([0.1, 0.2, 0.4, 0.8, 1.6]) {
                        *log += std::f64::consts::LN_2 - libm::log1p(libm::exp(-2.0 * a * d));
                    }
                    log_sum_exp(logs)
                },
            ),
        ),
        case(
            "BoundedMeans, a block",
            "floor: 6 ln(1 + x), 6 exp, 1 ln",
            minutes,
            (
                BoundedMeans::new(0.0)?,
                move |p: &mut BoundedMeans, (c, b): &(Counts, Counts)| {
                    // Sums of zeros and ones.
                    let _ = p.observe(scores(c), scores(b));
                    p.log_e()
                },
            ),
            (
                ([-1.8; 6], [1.0; 3]),
                |(logs, past): &mut ([f64; 6], [f64; 3]), (c, b): &(Counts, Counts)| {
                    let (n_c, n_b) = (c.n as f64, b.n as f64);
                    let d = c.k as f64 / n_c - b.k as f64 / n_b;
                    let [n, sum, square] = *past;
                    let v = (square - sum * sum / n + 0.25) / (n + 1.0) * (1.0 / n_c + 1.0 / n_b);
                    for (log, delta) in logs.iter_mut().zip([0.005, 0.01, 0.02, 0.05, 0.1, 0.2f64])
                    {
                        *log += libm::log1p((delta / (v + delta * delta)).min(0.5) * d);
                    }
                    let k = (c.k + b.k) as f64;
                    *past = [n + n_c + n_b, sum + k, square + k];
                    log_sum_exp(logs)
                },
            ),
        ),
        case(
            "BettingMean, a value",
            "floor: 1 root, 2 ln(1 + x)",
            values,
            (
                BettingMean::new(0.5, 0.05)?,
                |p: &mut BettingMean, x: &f64| {
                    // Values between 0 and 1.
                    let _ = p.observe(*x);
                    p.log_e()
                },
            ),
            (
                [0.0, 0.5, 0.25, 0.0],
                |[t, sum, square, log]: &mut [f64; 4], x: &f64| {
                    *t += 1.0;
                    let v = *square / *t;
                    let bet = libm::sqrt(6.0 / (v * *t * libm::log1p(*t))).min(1.0);
                    *log += libm::log1p(bet * (x - 0.5));
                    *sum += x;
                    let d = x - *sum / (*t + 1.0);
                    *square += d * d;
                    *log
                },
            ),
        ),
        case(
            "Mismatch of two arms, a batch",
            "floor: 6 ln gamma, 2 ln",
            minutes,
            (
                Mismatch::new(&[0.05, 0.95], 10_000.0)?,
                |p: &mut Mismatch, (c, b): &(Counts, Counts)| {
                    // A count for each arm.
                    let _ = p.observe(&[c.n, b.n]);
                    p.log_e()
                },
            ),
            (
                [0.0f64; 2],
                |sums: &mut [f64; 2], (c, b): &(Counts, Counts)| {
                    *sums = [sums[0] + c.n as f64, sums[1] + b.n as f64];
                    let mut log = libm::lgamma(1e4) - libm::lgamma(1e4 + sums[0] + sums[1]);
                    for (k, share) in sums.iter().zip([0.05f64, 0.95]) {
                        let prior = 1e4 * share;
                        log += libm::lgamma(prior + k) - libm::lgamma(prior) - k * libm::log(share);
                    }
                    log
                },
            ),
        ),
        case(
            "beta-binomial mixture, a batch",
            "floor: 3 ln gamma, 2 ln",
            minutes,
            ((), |(): &mut (), (_, b): &(Counts, Counts)| {
                beta_binomial_two_sided(*b, 0.01, 1.0, 99.0).unwrap_or(f64::NAN)
            }),
            ((), |(): &mut (), (_, b): &(Counts, Counts)| {
                let (k, rest) = (b.k as f64, (b.n - b.k) as f64);
                libm::lgamma(1.0 + k) + libm::lgamma(99.0 + rest)
                    - libm::lgamma(100.0 + k + rest)
                    - k * libm::log(0.01)
                    - rest * libm::log1p(-0.01)
            }),
        ),
        case(
            "normal mixture, a value",
            "floor: 1 ln",
            values,
            ([0.0; 2], move |[s, v]: &mut [f64; 2], x: &f64| {
                *s += x - 0.5;
                *v += 1.0 / 12.0;
                mixture.log_e(*s, *v)
            }),
            ([0.0; 2], |[s, v]: &mut [f64; 2], x: &f64| {
                *s += x - 0.5;
                *v += 1.0 / 12.0;
                let whole = *v + 100.0;
                0.5 * libm::log(100.0 / whole) + *s * *s / (2.0 * whole)
            }),
        ),
    ])
}

type Bars = [Vec<(f64, u64)>; 2];

/// How many values lie above a threshold, along the buckets.
fn above(bars: &[(f64, u64)], threshold: f64) -> Counts {
    let (mut n, mut k) = (0, 0);
    for (low, count) in bars {
        n += count;
        k += if *low > threshold { *count } else { 0 };
    }
    Counts::new(n, k)
}

fn summaries<'a>(
    values: &'a [f64],
    both: &'a [(&'a (Sketch, Sketch), Bars)],
    seven: &Seven,
) -> Result<Vec<Case<'a>>, Error> {
    let five: [Seven; 5] = std::array::from_fn(|_| seven.clone());
    let (mut shift, mut capped) = (QuantileShift::new(0.0, 5)?, CappedMeans::new(0.0, 5)?);
    for ((c, b), _) in both {
        shift.learn(b)?;
        capped.learn(b)?;
        shift.learn(c)?;
        capped.learn(c)?;
    }
    Ok(vec![
        case(
            "QuantileShift, a window of 1,200 values",
            "floor: 10 walks along the filled buckets, 5 of RateRatio",
            both,
            (
                shift,
                |p: &mut QuantileShift, ((c, b), _): &(&(Sketch, Sketch), Bars)| {
                    // One precision.
                    let _ = p.observe(c, b);
                    p.log_e()
                },
            ),
            (
                five,
                |five: &mut [Seven; 5], (_, [c, b]): &(&(Sketch, Sketch), Bars)| {
                    let mut sum = 0.0;
                    for (seven, threshold) in five
                        .iter_mut()
                        .zip([300.0, 650.0, 1_200.0, 1_400.0, 1_900.0])
                    {
                        sum += seven.rate_ratio(&(above(c, threshold), above(b, threshold)));
                    }
                    sum
                },
            ),
        ),
        case(
            "CappedMeans, a window of 1,200 values",
            "floor: 6 walks along the filled buckets, 3 of BoundedMeans",
            both,
            (
                capped,
                |p: &mut CappedMeans, ((c, b), _): &(&(Sketch, Sketch), Bars)| {
                    // One precision.
                    let _ = p.observe(c, b);
                    p.log_e()
                },
            ),
            (
                [[-1.8; 6]; 3],
                |three: &mut [[f64; 6]; 3], (_, arms): &(&(Sketch, Sketch), Bars)| {
                    let mut all = 0.0;
                    for (logs, cap) in three.iter_mut().zip([650.0, 1_200.0, 1_900.0f64]) {
                        let [c, b] = arms.each_ref().map(|arm| {
                            let (mut n, mut sum, mut square) = (0.0, 0.0, 0.0);
                            for (low, count) in arm {
                                let (x, k) = ((low / cap).min(1.0), *count as f64);
                                n += k;
                                sum += k * x;
                                square += k * x * x;
                            }
                            [n, sum, square]
                        });
                        let d = c[1] / c[0] - b[1] / b[0];
                        let v = (b[2] - b[1] * b[1] / b[0]) / b[0] * (1.0 / c[0] + 1.0 / b[0]);
                        for (log, delta) in
                            logs.iter_mut().zip([0.005, 0.01, 0.02, 0.05, 0.1, 0.2f64])
                        {
                            *log += libm::log1p((delta / (v + delta * delta)).min(0.5) * d);
                        }
                        all += log_sum_exp(logs);
                    }
                    all
                },
            ),
        ),
        case(
            "Sketch, a value",
            "floor: 1 shift, 1 count",
            values,
            (
                {
                    let mut sketch = Sketch::default();
                    for value in values {
                        sketch.record(*value);
                    }
                    sketch
                },
                |s: &mut Sketch, x: &f64| f64::from(u8::from(s.record(*x))),
            ),
            (vec![0u64; 2_048], |counts: &mut Vec<u64>, x: &f64| {
                let at = usize::try_from((x.to_bits() >> 47) - (993 << 5)).unwrap_or(0);
                if let Some(count) = counts.get_mut(at) {
                    *count += 1;
                }
                at as f64
            }),
        ),
        case(
            "Moments, a value",
            "floor: 1 difference, 2 sums",
            values,
            (Moments::around(0.5), |m: &mut Moments, x: &f64| {
                f64::from(u8::from(m.add(*x)))
            }),
            ([0.0; 3], |[n, sum, square]: &mut [f64; 3], x: &f64| {
                let d = x - 0.5;
                *n += 1.0;
                *sum += d;
                *square += d * d;
                d
            }),
        ),
        case(
            "normal tail",
            "floor: 1 erfc",
            values,
            ((), |(): &mut (), x: &f64| normal::sf(4.0 * x)),
            ((), |(): &mut (), x: &f64| {
                0.5 * libm::erfc(x * 4.0 * std::f64::consts::FRAC_1_SQRT_2)
            }),
        ),
        case(
            "ln rising factorial",
            "floor: 2 ln gamma",
            values,
            ((), |(): &mut (), x: &f64| gamma::ln_rising(100.0 * x, 50.0)),
            ((), |(): &mut (), x: &f64| {
                libm::lgamma(100.0 * x + 50.0) - libm::lgamma(100.0 * x)
            }),
        ),
    ])
}

fn gates<'a>(plan: &'a GatePlan, turns: &'a [Turn], seven: &Seven) -> Result<Vec<Case<'a>>, Error> {
    let gates = plan.gates.iter();
    let ten: BTreeMap<_, _> = gates.map(|g| (g.metric.clone(), seven.clone())).collect();
    let (first, rest) = turns.split_first().ok_or("no windows")?;
    let mut evidence = Evidence::new();
    evidence.look(plan, &first.0)?;
    let limits: Vec<Limited> = plan
        .gates
        .iter()
        .map(|g| Limited::at_most(g.metric.clone(), 0.5))
        .collect();
    let measured: BTreeMap<String, f64> = limits.iter().map(|l| (l.metric.clone(), 0.1)).collect();
    let (theirs, names) = (measured.clone(), limits.clone());
    Ok(vec![
        case(
            "a look over ten gates",
            "floor: ten of RateRatio, each found by name in both maps",
            rest,
            (evidence, |evidence: &mut Evidence, (window, _): &Turn| {
                let look = evidence.look(plan, window);
                look.map_or(f64::NAN, |l| l.log_evidence)
            }),
            (
                ten,
                |ten: &mut BTreeMap<String, Seven>, (window, _): &Turn| {
                    let one = |g: &LiveGate| match window.metrics.get(&g.metric) {
                        Some(Increment::Binary {
                            candidate,
                            baseline,
                        }) => ten
                            .get_mut(&g.metric)
                            .map_or(0.0, |s| s.rate_ratio(&(*candidate, *baseline))),
                        _ => f64::NAN,
                    };
                    plan.gates.iter().map(one).sum()
                },
            ),
        ),
        case(
            "ten limits",
            "floor: ten look-ups in a map, ten comparisons",
            rest,
            ((), move |(): &mut (), _: &Turn| {
                decide(&limits, &measured).breaches.len() as f64
            }),
            ((), move |(): &mut (), _: &Turn| {
                let keeps = |l: &&Limited| theirs.get(&l.metric).is_some_and(|v| *v <= 0.5);
                names.iter().filter(keeps).count() as f64
            }),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_of_rate_ratio_is_its_formula() {
        let (mut floor, mut process) = (Seven::new(), RateRatio::new(1.0, Grid::Rr7).unwrap());
        for (c, b) in minutes() {
            process.observe(c, b);
            let expected = floor.rate_ratio(&(c, b));
            assert!((process.log_e() - expected).abs() < 1e-9 * (1.0 + expected.abs()));
        }
    }

    #[test]
    fn looks_over_gates_are_all_taken() {
        let (plan, turns) = ten();
        let mut evidence = Evidence::new();
        for (window, _) in &turns {
            evidence.look(&plan, window).unwrap();
        }
        assert_eq!(evidence.end(), SET as u64);
    }
}
