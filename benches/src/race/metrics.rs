//! What each metric shows in a minute.

use llm_gates::quality::Comparisons;
use llm_gates::{Counts, Increment, Sketch};

use super::rng::Rng;
use super::world::{Minute, Noise, RAMP, REQUESTS_PER_MINUTE, Users, World, along, minutes};

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metric {
    /// 1 % of requests fail.
    Errors,
    /// Log-normal latencies, sd of the logarithm .6.
    Latency,
    /// A tenth of the answers is judged against the baseline's, a fifth of that tied.
    Wins,
    /// One answer in 2,000 is unsafe.
    Safety,
}

/// One look of all rules.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) at: u64,
    pub(super) stage: usize,
    pub(super) basis_points: u16,
    /// Requests that the candidate served.
    pub(super) exposed: u64,
    /// Events for tests: of latencies those above the baseline's 99th percentile; of comparisons losses and wins.
    pub(super) candidate: Counts,
    pub(super) baseline: Counts,
    /// Whether these are losses and wins of the same answers.
    pub(super) paired: bool,
    /// What thresholds are about: events, latencies above 1.2 times the 99th percentile, losses and half of the ties.
    pub(super) watched: (f64, f64),
    /// The metric's values in this minute, for judges of series.
    pub(super) values: Option<(f64, f64)>,
    /// What our gates take.
    pub(super) increment: Increment,
}

/// Where a life takes place.
#[derive(Clone, Copy)]
pub(super) enum Place {
    World(World),
    /// Sticky users: so many keys, and the standard deviation of the logarithm of their error rates.
    Sticky(u32, f64),
}

const SD: f64 = 0.6;
/// The standard normal's 99th percentile.
const Q99: f64 = 2.326_347_874_040_841;
const ATOMS: usize = 84;

fn atom(i: usize) -> f64 {
    -4.0 + 0.1 * i as f64
}

fn masses() -> [f64; ATOMS] {
    let mut masses: [f64; ATOMS] = std::array::from_fn(|i| (-0.5 * atom(i) * atom(i)).exp());
    let sum: f64 = masses.iter().sum();
    for mass in &mut masses {
        *mass /= sum;
    }
    masses
}

/// Latencies of one arm in a minute.
struct Latencies {
    sketch: Sketch,
    /// All, those above the 99th percentile, and those above 1.2 times it.
    n: u64,
    above: u64,
    slow: u64,
    p99: f64,
}

fn latencies(rng: &mut Rng, masses: &[f64; ATOMS], requests: f64, scale: f64) -> Latencies {
    let mut counts = [0; ATOMS];
    let mut seen = Latencies {
        sketch: Sketch::default(),
        n: 0,
        above: 0,
        slow: 0,
        p99: f64::NAN,
    };
    let limit = (SD * Q99).exp();
    for (i, (count, mass)) in counts.iter_mut().zip(masses).enumerate() {
        *count = rng.poisson(requests * mass);
        let value = scale * (SD * atom(i)).exp();
        if *count > 0 {
            seen.sketch.record_many(value, *count);
        }
        seen.n += *count;
        seen.above += if value > limit { *count } else { 0 };
        seen.slow += if value > 1.2 * limit { *count } else { 0 };
    }
    let mut left = seen.n as f64 * 0.01;
    for (i, count) in counts.iter().enumerate().rev() {
        left -= *count as f64;
        if left < 0.0 || (i == 0 && seen.n > 0) {
            seen.p99 = scale * (SD * atom(i)).exp();
            break;
        }
    }
    seen
}

fn rates(minute: &Minute, candidate: Counts, groups: [Counts; 2]) -> Seen {
    let baseline = Counts::new(groups[0].n + groups[1].n, groups[0].k + groups[1].k);
    let value = |c: Counts| c.k as f64 / c.n as f64;
    let values = (value(candidate), value(baseline));
    Seen {
        at: minute.at,
        stage: minute.stage,
        basis_points: minute.basis_points,
        exposed: candidate.n,
        candidate,
        baseline,
        paired: false,
        watched: (candidate.k as f64, candidate.n as f64),
        values: (!values.0.is_nan() && !values.1.is_nan()).then_some(values),
        increment: Increment::Grouped {
            candidate,
            baseline: groups,
        },
    }
}

/// A life: every minute of the ramp, or of one of its stages, until `look` says that it ends. `effect` is the ratio of error rates or latencies, or the share of comparisons won.
pub(super) fn live(
    rng: &mut Rng,
    metric: Metric,
    place: Place,
    effect: f64,
    stage: Option<usize>,
    mut look: impl FnMut(Seen) -> bool,
) -> bool {
    let world = match place {
        Place::Sticky(keys, sd) => return sticky(rng, keys, sd, effect, look),
        Place::World(world) => world,
    };
    let all = minutes(rng, world.drift);
    let minutes = all
        .filter(move |m| stage.is_none_or(|s| m.stage == s))
        .zip(0..)
        .map(|(m, at)| Minute { at, ..m });
    match metric {
        Metric::Errors | Metric::Safety => along(
            rng,
            world,
            |_| effect,
            minutes,
            |m, c, g| look(rates(m, c, g)),
        ),
        Metric::Latency => {
            let masses = masses();
            let mut noise = [0; 2].map(|_| Noise::new(world, rng));
            for m in minutes {
                // Slower by night and in bursts, all arms alike.
                let all = m.rate.sqrt();
                let c = latencies(
                    rng,
                    &masses,
                    m.traffic * m.share,
                    all * effect * noise[0].factor,
                );
                let b = latencies(
                    rng,
                    &masses,
                    m.traffic * (1.0 - m.share),
                    all * noise[1].factor,
                );
                let seen = Seen {
                    at: m.at,
                    stage: m.stage,
                    basis_points: m.basis_points,
                    exposed: c.n,
                    candidate: Counts::new(c.n, c.above),
                    baseline: Counts::new(b.n, b.above),
                    paired: false,
                    watched: (c.slow as f64, c.n as f64),
                    values: (c.n > 0 && b.n > 0).then_some((c.p99, b.p99)),
                    increment: Increment::Latency {
                        candidate: c.sketch,
                        baseline: b.sketch,
                    },
                };
                if look(seen) {
                    return true;
                }
                if m.at % 5 == 4 {
                    for n in &mut noise {
                        n.next(rng);
                    }
                }
            }
            false
        }
        Metric::Wins => {
            // Topics come and go: up to five points more or less are won, for half an hour.
            let mut topic = 0.0;
            for m in minutes {
                if world.drift && m.at % 30 == 0 {
                    topic = 0.1 * (rng.uniform() - 0.5);
                }
                let judged = 0.1 * m.traffic * m.share;
                let exposed = rng.poisson(m.traffic * m.share);
                let (wins, losses) = (
                    rng.poisson(judged * (effect + topic - 0.1)),
                    rng.poisson(judged * (0.9 - effect - topic)),
                );
                let ties = rng.poisson(0.2 * judged);
                let n = wins + losses + ties;
                let seen = Seen {
                    at: m.at,
                    stage: m.stage,
                    basis_points: m.basis_points,
                    exposed,
                    candidate: Counts::new(n, losses),
                    baseline: Counts::new(n, wins),
                    paired: true,
                    watched: (losses as f64 + 0.5 * ties as f64, n as f64),
                    values: None,
                    increment: Increment::Compared(Comparisons { wins, ties, losses }),
                };
                if look(seen) {
                    return true;
                }
            }
            false
        }
    }
}

/// The users of one life of a sticky world.
pub(super) fn users(rng: &mut Rng, keys: u32, sd: f64) -> Users {
    Users::new(rng, keys, sd)
}

fn sticky(
    rng: &mut Rng,
    keys: u32,
    sd: f64,
    effect: f64,
    mut look: impl FnMut(Seen) -> bool,
) -> bool {
    let users = users(rng, keys, sd);
    let mut at = 0;
    for (stage, (basis_points, minutes)) in RAMP.into_iter().enumerate() {
        let (inside, outside) = (
            users.arm(basis_points, true),
            users.arm(basis_points, false),
        );
        for _ in 0..minutes {
            let minute = Minute {
                at,
                stage,
                basis_points,
                share: inside.0,
                traffic: REQUESTS_PER_MINUTE,
                rate: 1.0,
            };
            let c = rng.counts(REQUESTS_PER_MINUTE * inside.0, (inside.1 * effect).min(1.0));
            let half = 0.5 * REQUESTS_PER_MINUTE * outside.0;
            let groups = [0; 2].map(|_| rng.counts(half, outside.1));
            if look(rates(&minute, c, groups)) {
                return true;
            }
            at += 1;
        }
    }
    false
}
