//! Increments as what their tests take.

use serde::{Deserialize, Serialize};

use super::{Arm, BadWindow, Direction, Exposed, Increment};
use crate::anytime::Scores;
use crate::fixed::{BadSample, parameter};
use crate::{BadCounts, BadSketch, Counts, Sketch};

/// Vectors of one arm in a window.
const VECTORS: usize = 10_000;

/// What kind of test an increment needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Rate,
    Exposure,
    Score,
    /// With the precision of the sketches.
    Latency(u8),
    Paired,
    /// With the precision of the sketches.
    Amount(u8),
    /// With the number of categories.
    Categories(usize),
    /// With the dimension of the vectors.
    Embedding(usize),
}

/// What a test takes; greater is worse.
#[derive(Debug, Clone, Copy)]
pub(super) enum Data<'a> {
    /// Candidate, baseline, and the baseline's groups.
    Counts(Counts, Counts, [Counts; 2]),
    Exposed(Exposed, Exposed),
    Scores(Scores, Scores),
    Sketches(&'a Sketch, &'a Sketch),
    /// Negative and positive flips among as many questions.
    Paired(Counts, Counts),
    Amounts(&'a Sketch, &'a Sketch),
    Categories(&'a [u64], &'a [u64]),
    Embeddings(&'a [Vec<f64>], &'a [Vec<f64>]),
}

/// An increment, whatever its kind, as counts for display and as what its test takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gain<'a> {
    pub(super) candidate: Counts,
    pub(super) baseline: Counts,
    pub(super) data: Data<'a>,
}

/// Sums as counts: whole events, rounded down.
fn display(scores: Scores) -> Counts {
    Counts {
        n: scores.n,
        k: crate::numbers::whole(scores.sum).min(scores.n),
    }
}

/// The events that did not happen.
pub(super) const fn others(counts: Counts) -> Counts {
    Counts {
        n: counts.n,
        k: counts.n.saturating_sub(counts.k),
    }
}

/// Scores x as 1 - x.
fn mirrored(scores: Scores) -> Scores {
    let n = scores.n as f64;
    let sum = (n - scores.sum).max(0.0);
    Scores {
        n: scores.n,
        sum,
        square: (n - 2.0 * scores.sum + scores.square).clamp(0.0, sum),
    }
}

fn sum(counts: &[u64]) -> Result<u64, BadCounts> {
    counts
        .iter()
        .try_fold(0u64, |sum, k| sum.checked_add(*k))
        .ok_or(BadCounts::Overflow)
}

/// Refuses too many vectors, another dimension and what is not finite.
fn check_vectors(dimension: usize, vectors: &[Vec<f64>]) -> Result<(), BadSample> {
    parameter(
        (1..=65_536).contains(&dimension),
        "dimension",
        dimension as f64,
        "lie between 1 and 65,536",
    )?;
    parameter(
        vectors.len() <= VECTORS,
        "vectors",
        vectors.len() as f64,
        "be at most 10,000 in a window: send a random part",
    )?;
    for vector in vectors {
        parameter(
            vector.len() == dimension,
            "vector length",
            vector.len() as f64,
            "be the dimension",
        )?;
        if let Some(index) = vector.iter().position(|v| !v.is_finite()) {
            return Err(BadSample::NotFinite {
                index,
                value: vector[index],
            });
        }
    }
    Ok(())
}

impl Kind {
    pub(super) const fn of(increment: &Increment) -> Self {
        match increment {
            Increment::Binary { .. } | Increment::Grouped { .. } => Self::Rate,
            Increment::Events { .. } => Self::Exposure,
            Increment::Latency { baseline, .. } => Self::Latency(baseline.precision()),
            Increment::Scores { .. } | Increment::Compared(_) => Self::Score,
            Increment::Paired(_) => Self::Paired,
            Increment::Amounts { baseline, .. } => Self::Amount(baseline.precision()),
            Increment::Categories { baseline, .. } => Self::Categories(baseline.len()),
            Increment::Embeddings { dimension, .. } => Self::Embedding(*dimension),
        }
    }
}

/// Whether an increment itself says what is worse.
pub(super) const fn directed(increment: &Increment) -> bool {
    matches!(
        increment,
        Increment::Compared(_)
            | Increment::Paired(_)
            | Increment::Categories { .. }
            | Increment::Embeddings { .. }
    )
}

impl<'a> Gain<'a> {
    pub(super) fn of(metric: &str, increment: &'a Increment) -> Result<Self, BadWindow> {
        let bad = |arm, source| BadWindow::Counts {
            metric: metric.to_owned(),
            arm,
            source,
        };
        let unfit = |source| BadWindow::Scores {
            metric: metric.to_owned(),
            source,
        };
        let checked = |arm: Arm, counts: Counts| {
            counts
                .check()
                .map(|()| counts)
                .map_err(|source| bad(arm, source))
        };
        let gain = |candidate, baseline, data| Self {
            candidate,
            baseline,
            data,
        };
        let alike = |candidate: &Sketch, baseline: &Sketch| {
            let (ours, theirs) = (baseline.precision(), candidate.precision());
            if ours == theirs {
                Ok((Counts::new(candidate.n(), 0), Counts::new(baseline.n(), 0)))
            } else {
                Err(BadWindow::Sketch {
                    metric: metric.to_owned(),
                    source: BadSketch::Unlike { ours, theirs },
                })
            }
        };
        Ok(match increment {
            &Increment::Binary {
                candidate,
                baseline,
            } => {
                checked(Arm::Candidate, candidate)?;
                checked(Arm::Baseline, baseline)?;
                let groups = [baseline, Counts::default()];
                gain(
                    candidate,
                    baseline,
                    Data::Counts(candidate, baseline, groups),
                )
            }
            &Increment::Grouped {
                candidate,
                baseline: [one, two],
            } => {
                checked(Arm::Baseline, one)?;
                checked(Arm::Baseline, two)?;
                checked(Arm::Candidate, candidate)?;
                let both = one.plus(two).map_err(|source| bad(Arm::Baseline, source))?;
                gain(candidate, both, Data::Counts(candidate, both, [one, two]))
            }
            &Increment::Events {
                candidate,
                baseline,
            } => {
                for exposure in [candidate.exposure, baseline.exposure] {
                    parameter(
                        exposure >= 0.0 && exposure.is_finite(),
                        "exposure",
                        exposure,
                        "be finite and not negative",
                    )
                    .map_err(unfit)?;
                }
                let counts = |e: Exposed| Counts {
                    n: crate::numbers::whole(e.exposure),
                    k: e.events,
                };
                gain(
                    counts(candidate),
                    counts(baseline),
                    Data::Exposed(candidate, baseline),
                )
            }
            Increment::Latency {
                candidate,
                baseline,
            } => {
                let (c, b) = alike(candidate, baseline)?;
                gain(c, b, Data::Sketches(candidate, baseline))
            }
            Increment::Amounts {
                candidate,
                baseline,
            } => {
                let (c, b) = alike(candidate, baseline)?;
                gain(c, b, Data::Amounts(candidate, baseline))
            }
            &Increment::Scores {
                candidate,
                baseline,
            } => {
                candidate.check().map_err(unfit)?;
                baseline.check().map_err(unfit)?;
                gain(
                    display(candidate),
                    display(baseline),
                    Data::Scores(candidate, baseline),
                )
            }
            Increment::Compared(c) => {
                let n = sum(&[c.wins, c.ties, c.losses])
                    .map_err(|source| bad(Arm::Candidate, source))?;
                let (ties, n_real) = (c.ties as f64, n as f64);
                let scores = |k: u64| Scores {
                    n,
                    sum: (k as f64 + 0.5 * ties).min(n_real),
                    square: (k as f64 + 0.25 * ties).min(n_real),
                };
                gain(
                    Counts::new(n, c.losses),
                    Counts::new(n, c.wins),
                    Data::Scores(scores(c.losses), scores(c.wins)),
                )
            }
            Increment::Paired(flips) => {
                let n = sum(&[
                    flips.both_right,
                    flips.negative,
                    flips.positive,
                    flips.both_wrong,
                ])
                .map_err(|source| bad(Arm::Candidate, source))?;
                let (worse, better) = (
                    Counts::new(n, flips.negative),
                    Counts::new(n, flips.positive),
                );
                gain(worse, better, Data::Paired(worse, better))
            }
            Increment::Categories {
                candidate,
                baseline,
            } => {
                parameter(
                    (2..=10_000).contains(&baseline.len()),
                    "categories",
                    baseline.len() as f64,
                    "lie between 2 and 10,000",
                )
                .map_err(unfit)?;
                parameter(
                    candidate.len() == baseline.len(),
                    "categories",
                    candidate.len() as f64,
                    "be as many in the candidate as in the baseline",
                )
                .map_err(unfit)?;
                let total = |arm: Arm, counts: &[u64]| {
                    sum(counts)
                        .map(|n| Counts::new(n, 0))
                        .map_err(|source| bad(arm, source))
                };
                gain(
                    total(Arm::Candidate, candidate)?,
                    total(Arm::Baseline, baseline)?,
                    Data::Categories(candidate, baseline),
                )
            }
            Increment::Embeddings {
                dimension,
                candidate,
                baseline,
            } => {
                let counts = |vectors: &[Vec<f64>]| {
                    check_vectors(*dimension, vectors)
                        .map(|()| Counts::new(vectors.len() as u64, 0))
                        .map_err(unfit)
                };
                gain(
                    counts(candidate)?,
                    counts(baseline)?,
                    Data::Embeddings(candidate, baseline),
                )
            }
        })
    }

    /// The same with greater meaning worse; `None` for drift, which has no direction.
    pub(super) fn toward(self, direction: Direction) -> Option<Self> {
        let data = match (direction, self.data) {
            (Direction::GreaterIsWorse, data) => data,
            (_, Data::Counts(c, b, [one, two])) => {
                Data::Counts(others(c), others(b), [others(one), others(two)])
            }
            (_, Data::Scores(c, b)) => Data::Scores(mirrored(c), mirrored(b)),
            // What is relative is asked with the arms swapped.
            (_, Data::Exposed(c, b)) => Data::Exposed(b, c),
            (_, Data::Sketches(c, b)) => Data::Sketches(b, c),
            (_, Data::Amounts(c, b)) => Data::Amounts(b, c),
            (_, Data::Paired(..) | Data::Categories(..) | Data::Embeddings(..)) => return None,
        };
        Some(Self { data, ..self })
    }
}
