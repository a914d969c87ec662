//! The evidence of one gate.

use serde::{Deserialize, Serialize};

use super::{Arm, BadWindow, Exposed, Increment, LiveGate, PassWhen};
use crate::anytime::{AutoRatio, BoundedMeans, EProcess, QuantileShift, Scores};
use crate::fixed::BadSample;
use crate::{Action, BadCounts, BadSketch, Counts, Grid, RateRatio, Sketch};

/// Length of a block of [`AutoRatio`], ms.
const BLOCK: u64 = 300_000;

/// The test of a metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Process {
    Ratio(RateRatio),
    Auto(Box<AutoRatio>),
    Means(BoundedMeans),
    Quantiles(Box<QuantileShift>),
}

impl Process {
    pub(super) fn log_e(&self) -> f64 {
        match self {
            Self::Ratio(p) => p.log_e(),
            Self::Auto(p) => p.log_e(),
            Self::Means(p) => p.log_e(),
            Self::Quantiles(p) => p.log_e(),
        }
    }
}

/// What kind of test an increment needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Rate,
    Exposure,
    Score,
    /// With the precision of the sketches.
    Latency(u8),
}

/// What a test takes.
#[derive(Debug, Clone, Copy)]
enum Data<'a> {
    /// Groups of the baseline.
    Counts([Counts; 2]),
    Exposed(Exposed, Exposed),
    Scores(Scores, Scores),
    Sketches(&'a Sketch, &'a Sketch),
}

/// An increment, whatever its kind, as counts for display and as what its test takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gain<'a> {
    pub(super) candidate: Counts,
    pub(super) baseline: Counts,
    data: Data<'a>,
}

/// Sums as counts: whole events, rounded down.
fn display(scores: Scores) -> Counts {
    Counts {
        n: scores.n,
        k: crate::numbers::whole(scores.sum).min(scores.n),
    }
}

impl<'a> Gain<'a> {
    pub(super) fn of(metric: &str, increment: &'a Increment) -> Result<Self, BadWindow> {
        let bad = |arm, source| BadWindow::Counts {
            metric: metric.to_owned(),
            arm,
            source,
        };
        let checked = |arm: Arm, counts: Counts| {
            counts
                .check()
                .map(|()| counts)
                .map_err(|source| bad(arm, source))
        };
        Ok(match increment {
            &Increment::Binary {
                candidate,
                baseline,
            } => Self {
                candidate: checked(Arm::Candidate, candidate)?,
                baseline: checked(Arm::Baseline, baseline)?,
                data: Data::Counts([baseline, Counts::default()]),
            },
            &Increment::Grouped {
                candidate,
                baseline: [one, two],
            } => {
                checked(Arm::Baseline, one)?;
                checked(Arm::Baseline, two)?;
                let sum = one.plus(two).map_err(|source| bad(Arm::Baseline, source))?;
                Self {
                    candidate: checked(Arm::Candidate, candidate)?,
                    baseline: sum,
                    data: Data::Counts([one, two]),
                }
            }
            &Increment::Events {
                candidate,
                baseline,
            } => {
                let unfit = |exposure: f64| BadWindow::Scores {
                    metric: metric.to_owned(),
                    source: BadSample::Parameter {
                        name: "exposure",
                        value: exposure,
                        range: "be finite and not negative",
                    },
                };
                for exposure in [candidate.exposure, baseline.exposure] {
                    if !(exposure >= 0.0 && exposure.is_finite()) {
                        return Err(unfit(exposure));
                    }
                }
                let counts = |e: Exposed| Counts {
                    n: crate::numbers::whole(e.exposure),
                    k: e.events,
                };
                Self {
                    candidate: counts(candidate),
                    baseline: counts(baseline),
                    data: Data::Exposed(candidate, baseline),
                }
            }
            Increment::Latency {
                candidate,
                baseline,
            } => {
                let (ours, theirs) = (baseline.precision(), candidate.precision());
                if ours != theirs {
                    return Err(BadWindow::Sketch {
                        metric: metric.to_owned(),
                        source: BadSketch::Unlike { ours, theirs },
                    });
                }
                let counts = |s: &Sketch| Counts { n: s.n(), k: 0 };
                Self {
                    candidate: counts(candidate),
                    baseline: counts(baseline),
                    data: Data::Sketches(candidate, baseline),
                }
            }
            &Increment::Scores {
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
                    data: Data::Scores(candidate, baseline),
                }
            }
            Increment::Compared(c) => {
                let n = [c.ties, c.losses]
                    .iter()
                    .try_fold(c.wins, |sum, k| sum.checked_add(*k))
                    .ok_or_else(|| bad(Arm::Candidate, BadCounts::Overflow))?;
                let (ties, n_real) = (c.ties as f64, n as f64);
                let scores = |k: u64| Scores {
                    n,
                    sum: (k as f64 + 0.5 * ties).min(n_real),
                    square: (k as f64 + 0.25 * ties).min(n_real),
                };
                Self {
                    candidate: Counts::new(n, c.losses),
                    baseline: Counts::new(n, c.wins),
                    data: Data::Scores(scores(c.losses), scores(c.wins)),
                }
            }
        })
    }

    pub(super) const fn kind(&self) -> Kind {
        match self.data {
            Data::Counts(_) => Kind::Rate,
            Data::Exposed(..) => Kind::Exposure,
            Data::Scores(..) => Kind::Score,
            Data::Sketches(sketch, _) => Kind::Latency(sketch.precision()),
        }
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
    pub(super) kind: Kind,
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

impl MetricEvidence {
    /// `None` where the gate's margin suits no test of this kind.
    pub(super) fn new(
        gate: &LiveGate,
        pass: &PassWhen,
        kind: Kind,
        learnt: Option<AutoRatio>,
    ) -> Option<Self> {
        let harm = match (kind, learnt) {
            (Kind::Rate, Some(auto)) => Process::Auto(Box::new(auto)),
            (Kind::Rate | Kind::Exposure, _) => {
                Process::Ratio(RateRatio::new(1.0 + gate.margin, Grid::Rr7).ok()?)
            }
            (Kind::Score, _) => Process::Means(BoundedMeans::new(gate.margin).ok()?),
            (Kind::Latency(precision), _) => {
                Process::Quantiles(Box::new(QuantileShift::new(gate.margin, precision).ok()?))
            }
        };
        let mut metric = Self {
            kind,
            candidate: Counts::default(),
            baseline: Counts::default(),
            samples: 0,
            mantel_haenszel: (0.0, 0.0),
            margin: gate.margin,
            excluded: None,
            harm,
            no_harm: None,
        };
        metric.ask(pass).then_some(metric)
    }

    /// Starts the test of no harm where this stage asks for it and no earlier one did; false where its margin suits no test of this kind.
    pub(super) fn ask(&mut self, pass: &PassWhen) -> bool {
        if let (PassWhen::NonInferior { margin, .. }, None) = (*pass, self.excluded) {
            self.excluded = Some(margin);
            // The same kernel with the arms swapped.
            self.no_harm = match self.kind {
                Kind::Rate | Kind::Exposure => RateRatio::new(1.0 / (1.0 + margin), Grid::Rr7)
                    .ok()
                    .map(Process::Ratio),
                Kind::Score => BoundedMeans::new(-margin).ok().map(Process::Means),
                Kind::Latency(precision) => QuantileShift::no_worse(margin, precision)
                    .ok()
                    .map(|p| Process::Quantiles(Box::new(p))),
            };
            return self.no_harm.is_some();
        }
        true
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

    /// Everything that these tests refuse has been refused before: see `Gain::of` and `Evidence::check`.
    pub(super) fn observe(&mut self, gain: &Gain<'_>, tolerated: Tolerated) {
        let Gain {
            mut candidate,
            mut baseline,
            data,
        } = *gain;
        let (least, most) = tolerated.users;
        match (&mut self.harm, data) {
            (Process::Ratio(p), Data::Counts(_)) => {
                let _ = p.set_theta0((1.0 + self.margin) * most);
                p.observe(candidate, baseline);
            }
            (Process::Ratio(p), Data::Exposed(c, b)) => {
                let _ = p.set_theta0((1.0 + self.margin) * most);
                let _ = p.observe_exposure((c.events, c.exposure), (b.events, b.exposure));
            }
            (Process::Auto(p), Data::Counts(groups)) => {
                let _ = p.set_theta0((1.0 + self.margin) * most);
                let _ = p.observe(tolerated.at / BLOCK, candidate, groups);
            }
            (Process::Means(p), Data::Scores(c, b)) => {
                let _ = p.observe(c, b);
            }
            (Process::Quantiles(p), Data::Sketches(c, b)) => {
                let _ = p.set_theta0(most);
                if let Ok(shown) = p.observe(c, b) {
                    (candidate, baseline) = shown;
                }
            }
            _ => {}
        }
        match (&mut self.no_harm, data, self.excluded) {
            (Some(Process::Ratio(p)), Data::Counts(_), Some(margin)) => {
                let _ = p.set_theta0(1.0 / ((1.0 + margin) * least));
                p.observe(baseline, candidate);
            }
            (Some(Process::Ratio(p)), Data::Exposed(c, b), Some(margin)) => {
                let _ = p.set_theta0(1.0 / ((1.0 + margin) * least));
                let _ = p.observe_exposure((b.events, b.exposure), (c.events, c.exposure));
            }
            (Some(Process::Means(p)), Data::Scores(c, b), _) => {
                let _ = p.observe(b, c);
            }
            (Some(Process::Quantiles(p)), Data::Sketches(c, b), _) => {
                let _ = p.set_theta0(1.0 / least);
                let _ = p.observe(c, b);
            }
            _ => {}
        }
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
            let (above, below) = if let Data::Scores(c, b) = data {
                (c.sum, b.sum)
            } else {
                (candidate.k as f64, baseline.k as f64)
            };
            self.mantel_haenszel.0 += above * n_b / (n_c + n_b);
            self.mantel_haenszel.1 += below * n_c / (n_c + n_b);
        }
    }

    pub(super) fn log_e(&self) -> f64 {
        self.harm.log_e()
    }

    /// Part of alpha that this metric spends on excluding noise levels.
    pub(super) const fn alpha1(&self) -> f64 {
        match &self.harm {
            Process::Auto(p) => p.alpha1(),
            Process::Ratio(_) | Process::Means(_) | Process::Quantiles(_) => 0.0,
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
