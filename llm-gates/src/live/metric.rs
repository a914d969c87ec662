//! The evidence of one gate.

use serde::{Deserialize, Serialize};

use super::{Arm, BadWindow, Increment, LiveGate, PassWhen};
use crate::anytime::{AutoRatio, BoundedMeans, EProcess, Scores};
use crate::{Action, Counts, Grid, RateRatio};

/// Length of a block of [`AutoRatio`], ms.
const BLOCK: u64 = 300_000;

/// The test of a metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Process {
    Ratio(RateRatio),
    Auto(Box<AutoRatio>),
    Means(BoundedMeans),
}

impl Process {
    pub(super) fn log_e(&self) -> f64 {
        match self {
            Self::Ratio(p) => p.log_e(),
            Self::Auto(p) => p.log_e(),
            Self::Means(p) => p.log_e(),
        }
    }
}

/// An increment, whatever its kind, as counts for display and as what its test takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gain {
    pub(super) candidate: Counts,
    pub(super) baseline: Counts,
    groups: [Counts; 2],
    /// Both arms' scores, for kinds that are tested on means.
    scores: Option<(Scores, Scores)>,
}

/// Sums as counts: whole events, rounded down.
fn display(scores: Scores) -> Counts {
    Counts {
        n: scores.n,
        k: crate::numbers::whole(scores.sum).min(scores.n),
    }
}

impl Gain {
    pub(super) fn of(metric: &str, increment: &Increment) -> Result<Self, BadWindow> {
        let checked = |arm: Arm, counts: Counts| {
            counts
                .check()
                .map(|()| counts)
                .map_err(|source| BadWindow::Counts {
                    metric: metric.to_owned(),
                    arm,
                    source,
                })
        };
        Ok(match *increment {
            Increment::Binary {
                candidate,
                baseline,
            } => Self {
                candidate: checked(Arm::Candidate, candidate)?,
                baseline: checked(Arm::Baseline, baseline)?,
                groups: [baseline, Counts::default()],
                scores: None,
            },
            Increment::Grouped {
                candidate,
                baseline: [one, two],
            } => {
                checked(Arm::Baseline, one)?;
                checked(Arm::Baseline, two)?;
                let sum = one.plus(two).map_err(|source| BadWindow::Counts {
                    metric: metric.to_owned(),
                    arm: Arm::Baseline,
                    source,
                })?;
                Self {
                    candidate: checked(Arm::Candidate, candidate)?,
                    baseline: sum,
                    groups: [one, two],
                    scores: None,
                }
            }
            Increment::Scores {
                candidate,
                baseline,
            } => {
                for scores in [candidate, baseline] {
                    scores.check().map_err(|source| BadWindow::Scores {
                        metric: metric.to_owned(),
                        source,
                    })?;
                }
                Self {
                    candidate: display(candidate),
                    baseline: display(baseline),
                    groups: [Counts::default(); 2],
                    scores: Some((candidate, baseline)),
                }
            }
            Increment::Compared(c) => {
                let n = [c.ties, c.losses]
                    .iter()
                    .try_fold(c.wins, |sum, k| sum.checked_add(*k))
                    .ok_or_else(|| BadWindow::Counts {
                        metric: metric.to_owned(),
                        arm: Arm::Candidate,
                        source: crate::BadCounts::Overflow,
                    })?;
                let (ties, n_real) = (c.ties as f64, n as f64);
                let scores = |k: u64| Scores {
                    n,
                    sum: (k as f64 + 0.5 * ties).min(n_real),
                    square: (k as f64 + 0.25 * ties).min(n_real),
                };
                Self {
                    candidate: Counts::new(n, c.losses),
                    baseline: Counts::new(n, c.wins),
                    groups: [Counts::default(); 2],
                    scores: Some((scores(c.losses), scores(c.wins))),
                }
            }
        })
    }

    pub(super) const fn is_score(&self) -> bool {
        self.scores.is_some()
    }
}

/// Slices of users before the ramp: how the slice that the candidate will get differs from the rest while both are served by the baseline.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Slice {
    pub(super) candidate: Counts,
    pub(super) baseline: Counts,
}

impl Slice {
    /// 95 % bounds of the ratio of the rates, from below at most 1 and from above at least 1: what the slices differ by may go either way.
    pub(super) fn bounds(&self) -> (f64, f64) {
        if self.candidate.n == 0 || self.baseline.n == 0 {
            return (1.0, 1.0);
        }
        let (k_c, k_b) = (self.candidate.k as f64 + 0.5, self.baseline.k as f64 + 0.5);
        let ln = libm::log(k_c / self.candidate.n as f64) - libm::log(k_b / self.baseline.n as f64);
        let half = 1.959_963_984_540_054 * libm::sqrt(1.0 / k_c + 1.0 / k_b);
        (
            libm::exp(ln - half).clamp(1e-2, 1.0),
            libm::exp(ln + half).clamp(1.0, 1e2),
        )
    }
}

/// What a metric's test tolerates at a look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tolerated {
    /// Bounds of the ratio that users alone may cause.
    pub(super) users: (f64, f64),
    /// Start of the window, ms.
    pub(super) at: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct MetricEvidence {
    pub(super) candidate: Counts,
    pub(super) baseline: Counts,
    /// Candidate samples of the current epoch that had a baseline beside them.
    pub(super) samples: u64,
    /// Sums over windows (Mantel and Haenszel 1959): k_c n_b / n and k_b n_c / n.
    mantel_haenszel: (f64, f64),
    /// Tolerated harm, and harm to be excluded, that the evidence was gathered against.
    margin: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    excluded: Option<f64>,
    harm: Process,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    no_harm: Option<Process>,
}

/// Margins of the null hypothesis and its test, for the first window of a metric.
fn process(margin: f64, is_score: bool, learnt: Option<AutoRatio>) -> Option<Process> {
    if is_score {
        return BoundedMeans::new(margin).ok().map(Process::Means);
    }
    Some(match learnt {
        Some(auto) => Process::Auto(Box::new(auto)),
        None => Process::Ratio(RateRatio::new(1.0 + margin, Grid::Rr7).ok()?),
    })
}

impl MetricEvidence {
    /// `None` where the gate's margin suits no test of this kind.
    pub(super) fn new(
        gate: &LiveGate,
        pass: &PassWhen,
        is_score: bool,
        learnt: Option<AutoRatio>,
    ) -> Option<Self> {
        let mut metric = Self {
            candidate: Counts::default(),
            baseline: Counts::default(),
            samples: 0,
            mantel_haenszel: (0.0, 0.0),
            margin: gate.margin,
            excluded: None,
            harm: process(gate.margin, is_score, learnt)?,
            no_harm: None,
        };
        metric.ask(pass).then_some(metric)
    }

    /// Starts the test of no harm where this stage asks for it and no earlier one did; false where its margin suits no test of this kind.
    pub(super) fn ask(&mut self, pass: &PassWhen) -> bool {
        if let (PassWhen::NonInferior { margin, .. }, None) = (*pass, self.excluded) {
            self.excluded = Some(margin);
            // The same kernel with the arms swapped.
            let opposite = if self.is_score() {
                -margin
            } else {
                1.0 / (1.0 + margin) - 1.0
            };
            self.no_harm = process(opposite, self.is_score(), None);
            return self.no_harm.is_some();
        }
        true
    }

    pub(super) const fn is_score(&self) -> bool {
        matches!(self.harm, Process::Means(_))
    }

    /// (then, now) where the plan's margins are not those of the evidence.
    pub(super) fn changed(&self, gate: &LiveGate, pass: &PassWhen) -> Option<(f64, f64)> {
        let differ =
            |then: f64, now: f64| ((then - now).abs() > 1e-12).then_some((1.0 + then, 1.0 + now));
        let excluded = match (*pass, self.excluded) {
            (PassWhen::NonInferior { margin, .. }, Some(then)) => differ(then, margin),
            _ => None,
        };
        differ(self.margin, gate.margin).or(excluded)
    }

    pub(super) fn observe(&mut self, gain: &Gain, tolerated: Tolerated) {
        let Gain {
            candidate,
            baseline,
            groups,
            scores,
        } = *gain;
        self.candidate = Counts {
            n: self.candidate.n.saturating_add(candidate.n),
            k: self.candidate.k.saturating_add(candidate.k),
        };
        self.baseline = Counts {
            n: self.baseline.n.saturating_add(baseline.n),
            k: self.baseline.k.saturating_add(baseline.k),
        };
        if baseline.n > 0 {
            self.samples = self.samples.saturating_add(candidate.n);
        }
        if candidate.n > 0 && baseline.n > 0 {
            let (n_c, n_b) = (candidate.n as f64, baseline.n as f64);
            let (above, below) = scores
                .map_or((candidate.k as f64, baseline.k as f64), |(c, b)| {
                    (c.sum, b.sum)
                });
            self.mantel_haenszel.0 += above * n_b / (n_c + n_b);
            self.mantel_haenszel.1 += below * n_c / (n_c + n_b);
        }
        let (least, most) = tolerated.users;
        // Everything that these tests refuse has been refused before: see `Gain::of` and `Evidence::check`.
        match (&mut self.harm, scores) {
            (Process::Ratio(p), _) => {
                let _ = p.set_theta0((1.0 + self.margin) * most);
                p.observe(candidate, baseline);
            }
            (Process::Auto(p), _) => {
                let _ = p.set_theta0((1.0 + self.margin) * most);
                let _ = p.observe(tolerated.at / BLOCK, candidate, groups);
            }
            (Process::Means(p), Some((c, b))) => {
                let _ = p.observe(c, b);
            }
            (Process::Means(_), None) => {}
        }
        match (&mut self.no_harm, scores, self.excluded) {
            (Some(Process::Ratio(p)), _, Some(margin)) => {
                let _ = p.set_theta0(1.0 / ((1.0 + margin) * least));
                p.observe(baseline, candidate);
            }
            (Some(Process::Means(p)), Some((c, b)), _) => {
                let _ = p.observe(b, c);
            }
            _ => {}
        }
    }

    pub(super) fn log_e(&self) -> f64 {
        self.harm.log_e()
    }

    /// Part of alpha that this metric spends on excluding noise levels.
    pub(super) const fn alpha1(&self) -> f64 {
        match &self.harm {
            Process::Auto(p) => p.alpha1(),
            Process::Ratio(_) | Process::Means(_) => 0.0,
        }
    }

    pub(super) fn ratio(&self) -> Option<f64> {
        let (above, below) = self.mantel_haenszel;
        (below > 0.0).then(|| above / below)
    }

    /// Whether what this metric must show for a stage to pass has been shown.
    pub(super) fn passes(&self, gate: &LiveGate, pass: &PassWhen) -> bool {
        self.samples >= pass.min_samples()
            && match (*pass, &self.no_harm) {
                (PassWhen::NoEvidenceOfHarm { .. }, _) => true,
                (PassWhen::NonInferior { .. }, _) if gate.action == Action::Warn => true,
                (PassWhen::NonInferior { beta, .. }, Some(no_harm)) => {
                    no_harm.log_e() >= -libm::log(beta)
                }
                (PassWhen::NonInferior { .. }, None) => false,
            }
    }
}
