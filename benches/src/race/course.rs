//! The course: the same lives for every rule.

use std::sync::atomic::{AtomicU64, Ordering};

use llm_gates::{Counts, Grid, RateRatio, anytime::EProcess};

use super::metrics::{Metric, Place, live};
use super::rng::Rng;
use super::rules::{ALPHA, Family, Racer, Setting, default, tried};
use super::world::{Baseline, DRIFT, QUIET, RATE, World, noisy};

/// How many lives.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Lives {
    /// Of a harmless candidate, per world.
    pub harmless: u64,
    /// Of a harmful one, per effect.
    pub harmful: u64,
    /// To choose the peers' settings, of either kind.
    pub tuning: u64,
}

impl Lives {
    /// Narrow intervals, in minutes.
    pub const FULL: Self = Self {
        harmless: 200,
        harmful: 100,
        tuning: 100,
    };
    /// Wide intervals, in less than a minute on two idle cores.
    pub const QUICK: Self = Self {
        harmless: 60,
        harmful: 40,
        tuning: 60,
    };
}

/// How often something happened.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Share {
    /// Lives in which it did.
    pub hits: u64,
    /// All lives.
    pub lives: u64,
}

impl Share {
    /// As a part of 1.
    pub fn value(self) -> f64 {
        self.hits as f64 / self.lives as f64
    }

    /// 95 % interval (Wilson 1927).
    pub fn interval(self) -> (f64, f64) {
        const Z: f64 = 1.959_963_984_540_054;
        let (n, p) = (self.lives as f64, self.value());
        let centre = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
        let half = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        ((centre - half).max(0.0), (centre + half).min(1.0))
    }
}

/// How a harmful candidate fared.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Found {
    /// Found in each of the four stages.
    pub stages: [Share; 4],
    /// Requests that the candidate served until it was found (or the ramp ended): median, with its 95 % interval.
    pub exposed: (f64, f64, f64),
    /// Events that the baseline would not have had, in the median life.
    pub harmed: f64,
}

/// One rule in one section.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Row {
    /// Whose rule.
    pub rule: &'static str,
    /// `default`, `tuned`, or `ours`.
    pub how: &'static str,
    /// Its settings.
    pub settings: String,
    /// False rollbacks per world.
    pub harmless: Vec<Share>,
    /// What became of harm per effect.
    pub harmful: Vec<Found>,
}

/// All rules on one metric.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Section {
    /// The metric.
    pub metric: &'static str,
    /// The worlds of a harmless candidate.
    pub worlds: Vec<&'static str>,
    /// The effects of a harmful one.
    pub effects: Vec<&'static str>,
    /// The rules.
    pub rows: Vec<Row>,
}

/// Everything.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Race {
    /// How many lives.
    pub lives: Lives,
    /// One per metric.
    pub sections: Vec<Section>,
}

/// A figure of the group `race`.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) unit: &'static str,
    pub(super) limit: Option<f64>,
}

/// What becomes of each of many lives, in order, on all cores.
fn lives<T: Send>(seed: u64, lives: u64, life: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let next = AtomicU64::new(0);
    let work = || {
        let mut mine = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= lives {
                return mine;
            }
            mine.push((i, life(seed.wrapping_mul(1_000_003).wrapping_add(i))));
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        // A thread that panicked has lost its lives: nothing is claimed about them.
        threads
            .into_iter()
            .filter_map(|t| t.join().ok())
            .flatten()
            .collect()
    });
    all.sort_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, t)| t).collect()
}

/// Where a rule ended a life: the stage, requests and events of the candidate until then.
#[derive(Debug, Clone, Copy)]
struct End {
    stage: Option<usize>,
    exposed: f64,
}

struct Course {
    metric: Metric,
    place: Place,
    effect: f64,
    stage: Option<usize>,
}

/// One life on which all rules look.
fn ends(course: &Course, settings: &[Setting], life: u64) -> Vec<End> {
    let mut own = Rng::new(life ^ 0x5DEE_CE66_D1CE_4E5B);
    let mut racers: Vec<_> = settings
        .iter()
        .map(|s| Some(Racer::new(*s, course.metric, course.place, &mut own, life)))
        .collect();
    let mut ends = vec![
        End {
            stage: None,
            exposed: 0.0
        };
        settings.len()
    ];
    let mut left = racers.len();
    live(
        &mut Rng::new(life),
        course.metric,
        course.place,
        course.effect,
        course.stage,
        |seen| {
            for (racer, end) in racers.iter_mut().zip(&mut ends) {
                let Some(running) = racer else {
                    continue;
                };
                end.exposed += seen.exposed as f64;
                if running.look(&seen) {
                    end.stage = Some(seen.stage);
                    *racer = None;
                    left -= 1;
                }
            }
            left == 0
        },
    );
    ends
}

fn all_ends(course: &Course, settings: &[Setting], seed: u64, count: u64) -> Vec<Vec<End>> {
    lives(seed, count, |life| ends(course, settings, life))
}

/// Rank statistics of sorted values: median, and the ranks that enclose it with 95 %.
fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let n = values.len() as f64;
    let at = |rank: f64| {
        let found = (0u32..).zip(&values).find(|(i, _)| f64::from(*i) >= rank);
        found
            .or((0u32..).zip(&values).last())
            .map_or(f64::NAN, |(_, v)| *v)
    };
    let off = 0.98 * n.sqrt();
    (
        at((0.5 * n).floor()),
        at((0.5 * n - off).floor()),
        at((0.5 * n + off).ceil()),
    )
}

const fn harmless(metric: Metric) -> f64 {
    match metric {
        Metric::Wins => 0.5,
        _ => 1.0,
    }
}

const SAFETY: f64 = 0.000_5;

const fn of_rate(metric: Metric, world: World) -> World {
    match metric {
        Metric::Safety => World {
            rate: SAFETY,
            ..world
        },
        _ => world,
    }
}

/// The share of requests that are harmed by an effect and would not be by the baseline.
fn excess(metric: Metric, effect: f64) -> f64 {
    match metric {
        Metric::Errors => RATE * (effect - 1.0),
        Metric::Safety => SAFETY * (effect - 1.0),
        // More than 1 % of replies are slower than the baseline's 99th percentile.
        Metric::Latency => {
            llm_gates::special::normal::sf(2.326_347_874_040_841 - effect.ln() / 0.6) - 0.01
        }
        Metric::Wins => 1.0 - 2.0 * effect,
    }
}

/// The setting of a peer that finds a doubled rate (or the like) after fewest requests among those with at most 5 % of false rollbacks in the stationary world.
fn tuned(family: Family, metric: Metric, effect: f64, count: u64) -> Option<Setting> {
    let settings = tried(family, metric);
    if settings.is_empty() {
        return None;
    }
    let place = Place::World(of_rate(metric, QUIET));
    let course = |effect| Course {
        metric,
        place,
        effect,
        stage: None,
    };
    let calm = all_ends(&course(harmless(metric)), &settings, 901, count);
    let valid: Vec<Setting> = settings
        .iter()
        .enumerate()
        .filter(|(i, _)| {
            let alarms = calm.iter().filter(|ends| ends[*i].stage.is_some()).count();
            alarms as f64 <= ALPHA * count as f64
        })
        .map(|(_, s)| *s)
        .collect();
    let harm = all_ends(&course(effect), &valid, 902, count);
    let exposed = |i: usize| median(harm.iter().map(|ends| ends[i].exposed).collect()).0;
    (0..valid.len())
        .min_by(|a, b| exposed(*a).total_cmp(&exposed(*b)))
        .map(|i| valid[i])
}

fn section(
    metric: Metric,
    name: &'static str,
    worlds: &[(&'static str, Place)],
    effects: &[(&'static str, f64)],
    count: Lives,
) -> Section {
    let target = effects[effects.len() / 2].1;
    let mut rules = vec![(Family::Ours, "ours", Setting::Ours)];
    for family in Family::PEERS {
        let as_documented = default(family, metric);
        let best = tuned(family, metric, target, count.tuning);
        rules.extend(as_documented.map(|s| (family, "default", s)));
        rules.extend(
            best.filter(|b| Some(*b) != as_documented)
                .map(|s| (family, "tuned", s)),
        );
    }
    let settings: Vec<_> = rules.iter().map(|r| r.2).collect();
    let mut rows: Vec<_> = rules
        .iter()
        .map(|(family, how, setting)| Row {
            rule: family.name(),
            how,
            settings: setting.text(),
            harmless: Vec::new(),
            harmful: Vec::new(),
        })
        .collect();
    for (i, (_, place)) in worlds.iter().enumerate() {
        let course = Course {
            metric,
            place: *place,
            effect: harmless(metric),
            stage: None,
        };
        let ends = all_ends(&course, &settings, 100 + i as u64, count.harmless);
        for (r, row) in rows.iter_mut().enumerate() {
            let hits = ends.iter().filter(|e| e[r].stage.is_some()).count() as u64;
            row.harmless.push(Share {
                hits,
                lives: ends.len() as u64,
            });
        }
    }
    for (i, (_, effect)) in effects.iter().enumerate() {
        let course = Course {
            metric,
            place: worlds[0].1,
            effect: *effect,
            stage: None,
        };
        let ends = all_ends(&course, &settings, 200 + i as u64, count.harmful);
        for (r, row) in rows.iter_mut().enumerate() {
            let stages = std::array::from_fn(|stage| Share {
                hits: ends.iter().filter(|e| e[r].stage == Some(stage)).count() as u64,
                lives: ends.len() as u64,
            });
            let exposed = median(ends.iter().map(|e| e[r].exposed).collect());
            row.harmful.push(Found {
                stages,
                exposed,
                harmed: exposed.0 * excess(metric, *effect),
            });
        }
    }
    Section {
        metric: name,
        worlds: worlds.iter().map(|w| w.0).collect(),
        effects: effects.iter().map(|e| e.0).collect(),
        rows,
    }
}

/// Worlds of error rates: name, place, and whether the bar of 5 % is about it.
fn error_worlds() -> [(&'static str, Place); 9] {
    let both = World {
        drift: true,
        ..noisy(0.5, 0.8)
    };
    let alone = World {
        baseline: Baseline::Quiet,
        ..noisy(0.5, 0.0)
    };
    [
        ("stationary", Place::World(QUIET)),
        ("day and bursts", Place::World(DRIFT)),
        ("CV .2", Place::World(noisy(0.2, 0.0))),
        ("CV .5", Place::World(noisy(0.5, 0.0))),
        ("CV .2, AR .8", Place::World(noisy(0.2, 0.8))),
        ("CV .5, AR .8", Place::World(noisy(0.5, 0.8))),
        ("CV .5, AR .8, day and bursts", Place::World(both)),
        ("candidate alone CV .5", Place::World(alone)),
        ("sticky, Zipf(1) keys", Place::Sticky(300, 1.0)),
    ]
}

/// Runs the whole race.
pub fn race(count: Lives) -> Race {
    let calm = |rate| Place::World(World { rate, ..QUIET });
    let drift = |rate| Place::World(World { rate, ..DRIFT });
    let sections = vec![
        section(
            Metric::Errors,
            "error rate, 1 %",
            &error_worlds(),
            &[("x 1.5", 1.5), ("x 2", 2.0), ("x 5", 5.0)],
            count,
        ),
        section(
            Metric::Latency,
            "latency, log-normal",
            &[
                ("stationary", calm(RATE)),
                ("day and bursts", drift(RATE)),
                ("replica noise 5 %", Place::World(noisy(0.05, 0.0))),
            ],
            &[("x 1.1", 1.1), ("x 1.2", 1.2), ("x 1.5", 1.5)],
            Lives {
                harmless: count.harmless / 2,
                harmful: count.harmful / 2,
                tuning: count.tuning / 2,
            },
        ),
        section(
            Metric::Wins,
            "win rate, a tenth judged",
            &[("stationary", calm(RATE)), ("topics drift", drift(RATE))],
            &[("48 %", 0.48), ("45 %", 0.45), ("40 %", 0.40)],
            count,
        ),
        section(
            Metric::Safety,
            "safety, one in 2,000",
            &[
                ("stationary", calm(SAFETY)),
                ("day and bursts", drift(SAFETY)),
            ],
            &[("x 2", 2.0), ("x 3", 3.0), ("x 10", 10.0)],
            count,
        ),
    ];
    Race {
        lives: count,
        sections,
    }
}

/// The bars on false rollbacks and detection.
pub(super) fn bars(count: Lives) -> Vec<Bar> {
    let mut bars = Vec::new();
    for (i, (name, place)) in error_worlds().into_iter().enumerate() {
        let course = Course {
            metric: Metric::Errors,
            place,
            effect: 1.0,
            stage: None,
        };
        let ends = all_ends(&course, &[Setting::Ours], 100 + i as u64, count.harmless);
        let share = Share {
            hits: ends.iter().filter(|e| e[0].stage.is_some()).count() as u64,
            lives: ends.len() as u64,
        };
        let (low, high) = share.interval();
        // A rule with exactly 5 % exceeds this for one seed in 200.
        let slack = 2.6 * (ALPHA * (1.0 - ALPHA) / share.lives as f64).sqrt();
        bars.push(Bar {
            name: format!(
                "false rollbacks, {name} ({} lives: {:.1} to {:.1} %; 5 % and their error)",
                share.lives,
                100.0 * low,
                100.0 * high
            ),
            value: 100.0 * share.value(),
            unit: "%",
            limit: Some(100.0 * (ALPHA + slack)),
        });
    }
    for (i, (stage, at, ratio, published)) in [
        (1, "5 %", 1.5, 3_099.0),
        (1, "5 %", 2.0, 1_023.0),
        (1, "5 %", 5.0, 173.0),
        (2, "25 %", 1.5, 4_228.0),
        (2, "25 %", 2.0, 1_524.0),
        (2, "25 %", 5.0, 306.0),
    ]
    .into_iter()
    .enumerate()
    {
        let course = Course {
            metric: Metric::Errors,
            place: Place::World(QUIET),
            effect: ratio,
            stage: Some(stage),
        };
        let msprt = Setting::Msprt {
            tau: 0.005,
            alpha: ALPHA,
        };
        let seed = 300 + i as u64;
        let ends = all_ends(&course, &[Setting::Ours, msprt], seed, 4 * count.harmful);
        let of = |r: usize| median(ends.iter().map(|e| e[r].exposed).collect());
        let (ours, low, high) = of(0);
        let seven = median(lives(seed, 4 * count.harmful, |life| {
            rate_ratio(&course, life)
        }));
        bars.push(Bar {
            name: format!(
                "requests until x {ratio} is found at {at}, median ({low:.0} to {high:.0}; published for AutoRatio: {published:.0})"
            ),
            value: ours,
            unit: "requests",
            limit: None,
        });
        for (peer, found, slack) in [("mSPRT's", of(1).0, 1.0), ("RateRatio's", seven.0, 1.1)] {
            bars.push(Bar {
                name: format!("x {ratio} at {at}: that median to {peer} ({found:.0})"),
                value: ours / found,
                unit: "x",
                limit: Some(slack),
            });
        }
    }
    bars
}

/// Requests until [`RateRatio`] finds harm, on the lives that all rules see.
fn rate_ratio(course: &Course, life: u64) -> f64 {
    let Ok(mut process) = RateRatio::new(1.0, Grid::Rr7) else {
        return f64::NAN;
    };
    let mut exposed = 0.0;
    live(
        &mut Rng::new(life),
        course.metric,
        course.place,
        course.effect,
        course.stage,
        |seen| {
            exposed += seen.exposed as f64;
            process.observe(
                Counts::new(seen.candidate.n, seen.candidate.k),
                Counts::new(seen.baseline.n, seen.baseline.k),
            );
            process.rejects(ALPHA)
        },
    );
    exposed
}
