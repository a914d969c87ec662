//! Group `recording`: one outcome per request.

use crate::data::{self, SET, Seeded};
use crate::figure::{Figure, Limit};
use crate::measure::{Design, allocations, interleave};
use crate::peers::Prometheus;
use crate::routing::{SELDOM, absolute};
use crate::{Error, Scale};
use llm_rollout::Timestamp;
use llm_serve_adapters::recorder::{Local, OutcomeClass, Recorder};
use llm_serve_adapters::router::{Decision, Key, Role};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Its name.
pub const GROUP: &str = "recording";

/// One request, as it went.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Sample {
    /// What was decided.
    pub decision: Decision,
    /// When it began.
    pub begun: Timestamp,
    /// When its first token came.
    pub first: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// How many tokens it got.
    pub tokens: u64,
}

/// Requests as a rollout sees them, by a router with this share.
///
/// # Errors
/// The router refuses.
pub fn samples(percent: f64) -> Result<Vec<Sample>, Error> {
    let router = data::router(percent)?;
    let begun = router.now();
    let mut seeded = Seeded::new(2);
    Ok(data::keys()
        .iter()
        .map(|key| {
            let first = begun.after(Duration::from_millis(seeded.latency(300.0, 0.6)));
            Sample {
                decision: router.decide(&Key::session(key), begun),
                begun,
                first,
                end: first.after(Duration::from_millis(seeded.latency(2_000.0, 0.8))),
                tokens: seeded.next() % 500 + 1,
            }
        })
        .collect())
}

/// Records one request in full.
#[inline]
pub fn record(recorder: &Recorder, sample: &Sample) {
    let mut ticket = recorder.begin(sample.decision, sample.begun);
    ticket.first_token(sample.first);
    ticket.tokens(sample.tokens);
    ticket.finish(OutcomeClass::Ok, sample.end);
}

/// The same with the thread's counters in hand.
#[inline]
pub fn record_local(local: &Local, sample: &Sample) {
    let mut ticket = local.begin(sample.decision, sample.begun);
    ticket.first_token(sample.first);
    ticket.tokens(sample.tokens);
    local.finish(ticket, OutcomeClass::Ok, sample.end);
}

const BUCKETS: usize = 577;
const WORDS: usize = 8 + 2 * BUCKETS;

/// The floor: the words that an outcome changes, owned by one thread, stored without anything around them.
#[derive(Debug)]
struct Owned {
    roles: [Box<[AtomicU64]>; 3],
}

impl Owned {
    fn new() -> Self {
        Self {
            roles: std::array::from_fn(|_| (0..WORDS + 16).map(|_| AtomicU64::new(0)).collect()),
        }
    }

    #[inline]
    fn record(&self, sample: &Sample) {
        let role = match sample.decision.role() {
            Role::Baseline => 0,
            Role::Candidate => 1,
            Role::Control => 2,
        };
        let Some(words) = self.roles.get(role) else {
            return;
        };
        let bump = |index: usize, by: u64| {
            if let Some(word) = words.get(index) {
                word.store(
                    word.load(Ordering::Relaxed).wrapping_add(by),
                    Ordering::Relaxed,
                );
            }
        };
        let elapsed = |until: Timestamp| until.as_millis().saturating_sub(sample.begun.as_millis());
        // Begun, assigned, started, ended, its class, its tokens, and two histograms.
        for index in 0..5 {
            bump(index, 1);
        }
        bump(5, sample.tokens);
        bump(8 + bucket(elapsed(sample.first)), 1);
        bump(8 + BUCKETS + bucket(elapsed(sample.end)), 1);
    }
}

/// 32 buckets to a doubling.
#[inline]
fn bucket(ms: u64) -> usize {
    if ms < 32 {
        return usize::try_from(ms).unwrap_or(0);
    }
    let octave = ms.ilog2() - 5;
    let within = usize::try_from(ms >> octave).unwrap_or(0) & 31;
    (32 * (octave as usize + 1) + within).min(BUCKETS - 1)
}

fn each(samples: &[Sample], passes: usize, mut run: impl FnMut(&Sample)) {
    for _ in 0..passes {
        for sample in samples {
            run(black_box(sample));
        }
    }
}

/// Records all of them, as often as told. The one place that does: what begins or ends requests in several places gets a function
/// that is called, and with it values that go through memory; the floor is compiled in line, and so is a host's one place.
#[inline(never)]
fn recorded(recorder: &Recorder, samples: &[Sample], passes: usize) {
    each(samples, passes, |sample| record(recorder, sample));
}

/// Measures the group.
///
/// # Errors
/// A design cannot be set up.
pub fn run(_: Scale) -> Result<Vec<Figure>, Error> {
    let (few, all) = (samples(5.0)?, samples(100.0)?);
    let recorder = Recorder::new(["bad_format"])?;
    let owned = [Owned::new(), Owned::new()];
    let prometheus = Prometheus::new()?;
    let designs = [
        Design::new(
            "floor: raw owned stores of the same words",
            SET,
            |thread, passes| {
                let Some(owned) = owned.get(thread) else {
                    return;
                };
                each(&few, passes, |sample| owned.record(sample));
                black_box(owned);
            },
        ),
        Design::new(
            "full outcome, 5 % of them the candidate's",
            SET,
            |_, passes| {
                recorded(&recorder, &few, passes);
            },
        ),
        Design::new(
            "full outcome, the thread's counters in hand",
            SET,
            |_, passes| {
                let local = recorder.local();
                each(&few, passes, |sample| record_local(&local, sample));
            },
        ),
        Design::new(
            "full outcome, all of them the candidate's",
            SET,
            |_, passes| {
                recorded(&recorder, &all, passes);
            },
        ),
        // In hand: see `recorded`.
        Design::new(
            "begun and dropped, the thread's counters in hand",
            SET,
            |_, passes| {
                let local = recorder.local();
                each(&few, passes, |sample| {
                    drop(local.begin(sample.decision, sample.begun));
                });
            },
        ),
        Design::new(
            "the prometheus crate, three histograms and four counters by label",
            SET,
            |_, passes| {
                each(&few, passes, |sample| {
                    let role = match sample.decision.role() {
                        Role::Baseline => "baseline",
                        Role::Candidate => "candidate",
                        Role::Control => "control",
                    };
                    let (first, whole) = (sample.first, sample.end);
                    prometheus.record(
                        &["chat/v1.0.0", role],
                        first.since(sample.begun),
                        whole.since(sample.begun),
                        sample.tokens,
                    );
                });
            },
        ),
    ];
    let timings = interleave(&designs, Duration::from_secs(8));
    let mut figures = Vec::new();
    if let ([floor, ours, local, ..], [_, design, ..]) = (timings.as_slice(), &designs) {
        for (name, timing) in [
            ("full outcome (begin, first token, tokens, finish)", ours),
            ("full outcome, the thread's counters in hand", local),
        ] {
            figures.push(
                Figure::new(GROUP, name, timing.one / floor.one, "x floor")
                    .limit(Limit::AtMost(1.5)),
            );
        }
        let name = "full outcome, two threads against one";
        figures.push(match ours.scaling() {
            Some(ratio) => Figure::new(GROUP, name, ratio, "x").limit(Limit::AtMost(1.1)),
            None => Figure::missing(GROUP, name, "x", SELDOM),
        });
        figures.push(
            Figure::new(
                GROUP,
                "allocations per outcome, once warm",
                allocations(design),
                "",
            )
            .limit(Limit::AtMost(0.0)),
        );
    }
    figures.push(
        Figure::new(GROUP, "error of the p99 of a duration", p99_error()?, "%")
            .limit(Limit::AtMost(1.6)),
    );
    for (design, timing) in designs.iter().zip(&timings) {
        figures.extend(absolute(GROUP, design.name(), *timing));
    }
    if let ([_, ours, ..], Some(peer)) = (timings.as_slice(), timings.last()) {
        let name = "the prometheus crate, against an outcome";
        figures.push(Figure::new(GROUP, name, peer.one / ours.one, "x"));
        if let (Some(theirs), Some(own)) = (peer.two, ours.two) {
            let name = format!("{name}, two threads");
            figures.push(Figure::new(GROUP, name, theirs / own, "x"));
        }
    }
    Ok(figures)
}

/// In percent, over 100 000 durations; the worst of three shapes.
fn p99_error() -> Result<f64, Error> {
    let base = samples(5.0)?;
    let Some(sample) = base.iter().find(|s| s.decision.role() == Role::Baseline) else {
        return Err("no sample of the baseline".into());
    };
    let mut worst = 0.0_f64;
    for (seed, median) in [(3, 150.0), (4, 2_000.0), (5, 20_000.0)] {
        let recorder = Recorder::new(Vec::<String>::new())?;
        let mut seeded = Seeded::new(seed);
        let mut durations = (0..100_000)
            .map(|_| seeded.latency(median, 0.8))
            .collect::<Vec<_>>();
        let requests = durations.iter().map(|ms| Sample {
            first: sample.begun,
            end: sample.begun.after(Duration::from_millis(*ms)),
            ..*sample
        });
        recorded(&recorder, &requests.collect::<Vec<_>>(), 1);
        durations.sort_unstable();
        let exact = durations.get(98_999).copied().unwrap_or(1) as f64;
        let found = recorder
            .snapshot()?
            .version(sample.decision.slot(), Role::Baseline)
            .and_then(|row| row.duration(0.99))
            .ok_or("nothing was recorded")?;
        worst = worst.max((found.as_secs_f64() * 1e3 / exact - 1.0).abs() * 100.0);
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_stores_what_an_outcome_changes() {
        let (owned, samples) = (Owned::new(), samples(5.0).unwrap());
        each(&samples, 2, |sample| owned.record(sample));
        let sum = |index: usize| -> u64 {
            owned
                .roles
                .iter()
                .map(|words| words[index].load(Ordering::Relaxed))
                .sum()
        };
        assert_eq!(sum(0), 2 * SET as u64);
        assert_eq!((8..8 + BUCKETS).map(sum).sum::<u64>(), 2 * SET as u64);
        assert_eq!((8 + BUCKETS..WORDS).map(sum).sum::<u64>(), 2 * SET as u64);
        assert_eq!(sum(5), 2 * samples.iter().map(|s| s.tokens).sum::<u64>());
    }

    #[test]
    fn buckets_grow_and_end() {
        assert!((1..1_000_000).all(|ms| bucket(ms) >= bucket(ms - 1)));
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn the_error_of_quantiles_is_small() {
        assert!(p99_error().unwrap() <= 1.6);
    }
}
