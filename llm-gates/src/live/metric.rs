//! The evidence of one gate.

use serde::{Deserialize, Serialize};

use super::embedding::Embeddings;
use super::gain::{Data, Gain, Kind, others};
use super::{BadWindow, Direction, LiveGate, Noise, PassWhen};
use crate::anytime::{
    AutoRatio, BoundedMeans, CappedMeans, EProcess, NormalMixture, QuantileShift,
};
use crate::drift::CategoryDrift;
use crate::fixed::BadSample;
use crate::numbers::whole;
use crate::planner::{Detection, no_harm_needed};
use crate::{Action, Counts, Grid, RateRatio};

/// Length of a block of [`AutoRatio`], ms.
const BLOCK: u64 = 300_000;

/// Events of each arm before an interval is shown.
const EVENTS: u64 = 10;

/// Where intervals are tightest: standard errors of a tenth.
const INFORMATION: f64 = 100.0;

/// What a mixture over ratios costs, in nats.
const MIXTURE: f64 = 1.5;

/// With what probability a ratio would have been found.
const POWER: f64 = 0.8;

/// Weight kept for late starts.
const RESERVE: f64 = 0.5;

/// The test of a metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Process {
    Ratio(RateRatio),
    Auto(Box<AutoRatio>),
    /// With change points, on arms whose history is quiet; the part of alpha spent on saying so.
    Late {
        rate: RateRatio,
        alpha1: f64,
    },
    Means(BoundedMeans),
    Quantiles(Box<QuantileShift>),
    Capped(Box<CappedMeans>),
    Categories(CategoryDrift),
    Embeddings(Box<Embeddings>),
}

impl Process {
    pub(super) fn log_e(&self) -> f64 {
        match self {
            Self::Ratio(p) | Self::Late { rate: p, .. } => p.log_e(),
            Self::Auto(p) => p.log_e(),
            Self::Means(p) => p.log_e(),
            Self::Quantiles(p) => p.log_e(),
            Self::Capped(p) => p.log_e(),
            Self::Categories(p) => p.log_e(),
            Self::Embeddings(p) => p.log_e(),
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
    /// What the users' share of a metric's null hypothesis is where `direction` says what is worse.
    pub(super) fn tolerated(&self, direction: Direction, kind: Kind) -> (f64, f64) {
        match (direction, kind) {
            (_, Kind::Paired | Kind::Categories(_) | Kind::Embedding(_)) => (1.0, 1.0),
            (Direction::GreaterIsWorse, _) => self.bounds(),
            (Direction::GreaterIsBetter, Kind::Rate) => Self {
                candidate: others(self.candidate),
                baseline: others(self.baseline),
            }
            .bounds(),
            (Direction::GreaterIsBetter, _) => {
                let (least, most) = self.bounds();
                (1.0 / most, 1.0 / least)
            }
        }
    }

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
    /// Sum over windows (Greenland and Robins 1985): k n_c n_b / n^2; 0 where the metric is no count.
    #[serde(default)]
    spread: f64,
    #[serde(default, skip_serializing_if = "Direction::is_default")]
    pub(super) direction: Direction,
    /// Whether both arms answer the same requests.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) paired: bool,
    /// Tolerated harm, and harm to be excluded, that the evidence was gathered against.
    margin: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    excluded: Option<f64>,
    harm: Process,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    no_harm: Option<Process>,
    /// Blocks of history that were learnt before the first window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    learnt: Option<u64>,
}

/// Refuses a gate that suits no test of this kind of metric.
pub(super) fn suits(gate: &LiveGate, pass: &PassWhen, kind: Kind) -> Result<(), BadWindow> {
    let metric = || gate.metric.clone();
    let margin = |value, range| {
        Err(BadWindow::Scores {
            metric: metric(),
            source: BadSample::Parameter {
                name: "margin",
                value,
                range,
            },
        })
    };
    let asked = match *pass {
        PassWhen::NonInferior { margin, .. } => Some(margin),
        PassWhen::NoEvidenceOfHarm { .. } => None,
    };
    if kind == Kind::Score
        && let Some(value) = [Some(gate.margin), asked]
            .into_iter()
            .flatten()
            .find(|m| *m >= 1.0)
    {
        return margin(value, "be a difference of means below 1");
    }
    if let Kind::Embedding(_) = kind
        && gate.margin > 0.0
    {
        return margin(gate.margin, "be 0: a drift of embeddings has no size");
    }
    if let Kind::Categories(_) | Kind::Embedding(_) = kind
        && asked.is_some()
        && gate.action != Action::Warn
    {
        return Err(BadWindow::NoTest { metric: metric() });
    }
    Ok(())
}

impl MetricEvidence {
    /// `None` where the gate's margin suits no test of this kind.
    pub(super) fn new(
        gate: &LiveGate,
        pass: &PassWhen,
        kind: Kind,
        learnt: Option<AutoRatio>,
    ) -> Option<Self> {
        let blocks = learnt.as_ref().map_or(0, AutoRatio::blocks_learnt);
        let harm = match (kind, learnt) {
            (Kind::Rate, Some(auto)) if gate.late_starts.is_some() && auto.is_quiet() => {
                let horizon = gate.late_starts.unwrap_or(1);
                let theta0 = 1.0 + gate.margin;
                Process::Late {
                    rate: RateRatio::with_late_starts(theta0, Grid::Rr7, RESERVE, horizon).ok()?,
                    alpha1: auto.alpha1(),
                }
            }
            (Kind::Rate, Some(auto)) => Process::Auto(Box::new(auto)),
            (Kind::Rate | Kind::Exposure | Kind::Paired, _) => {
                Process::Ratio(RateRatio::new(1.0 + gate.margin, Grid::Rr7).ok()?)
            }
            (Kind::Score, _) => Process::Means(BoundedMeans::new(gate.margin).ok()?),
            (Kind::Latency(precision), _) => {
                Process::Quantiles(Box::new(QuantileShift::new(gate.margin, precision).ok()?))
            }
            (Kind::Amount(precision), _) => {
                Process::Capped(Box::new(CappedMeans::new(gate.margin, precision).ok()?))
            }
            (Kind::Categories(count), _) => {
                Process::Categories(CategoryDrift::new(count, gate.margin).ok()?)
            }
            (Kind::Embedding(dimension), _) => {
                Process::Embeddings(Box::new(Embeddings::new(dimension)))
            }
        };
        let mut metric = Self {
            kind,
            candidate: Counts::default(),
            baseline: Counts::default(),
            samples: 0,
            mantel_haenszel: (0.0, 0.0),
            spread: 0.0,
            direction: gate.direction,
            paired: false,
            margin: gate.margin,
            excluded: None,
            harm,
            no_harm: None,
            learnt: Some(blocks),
        };
        metric.ask(pass).then_some(metric)
    }

    /// Starts the test of no harm where this stage asks for it and no earlier one did; false where its margin suits no test of this kind.
    pub(super) fn ask(&mut self, pass: &PassWhen) -> bool {
        if let (PassWhen::NonInferior { margin, .. }, None) = (*pass, self.excluded)
            && !matches!(self.kind, Kind::Categories(_) | Kind::Embedding(_))
        {
            self.excluded = Some(margin);
            // The same kernel with the arms swapped.
            self.no_harm = match self.kind {
                Kind::Rate | Kind::Exposure | Kind::Paired => {
                    RateRatio::new(1.0 / (1.0 + margin), Grid::Rr7)
                        .ok()
                        .map(Process::Ratio)
                }
                Kind::Score => BoundedMeans::new(-margin).ok().map(Process::Means),
                Kind::Latency(precision) => QuantileShift::no_worse(margin, precision)
                    .ok()
                    .map(|p| Process::Quantiles(Box::new(p))),
                Kind::Amount(precision) => CappedMeans::no_worse(margin, precision)
                    .ok()
                    .map(|p| Process::Capped(Box::new(p))),
                Kind::Categories(_) | Kind::Embedding(_) => None,
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
            ..
        } = *gain;
        let (least, most) = tolerated.users;
        let mut shown = None;
        match (&mut self.harm, data) {
            (
                Process::Ratio(p) | Process::Late { rate: p, .. },
                Data::Counts(c, b, _) | Data::Paired(c, b),
            ) => {
                let _ = p.set_theta0((1.0 + self.margin) * most);
                p.observe(c, b);
            }
            (Process::Ratio(p), Data::Exposed(c, b)) => {
                let _ = p.set_theta0((1.0 + self.margin) * most);
                let _ = p.observe_exposure((c.events, c.exposure), (b.events, b.exposure));
            }
            (Process::Auto(p), Data::Counts(c, _, groups)) => {
                let _ = p.set_theta0((1.0 + self.margin) * most);
                let _ = p.observe(tolerated.at / BLOCK, c, groups);
            }
            (Process::Means(p), Data::Scores(c, b)) => {
                let _ = p.observe(c, b);
            }
            (Process::Quantiles(p), Data::Sketches(c, b)) => {
                let _ = p.set_theta0(most);
                if let Ok((worse, than)) = p.observe(c, b) {
                    (candidate, baseline) = match self.direction {
                        Direction::GreaterIsWorse => (worse, than),
                        Direction::GreaterIsBetter => (than, worse),
                    };
                }
            }
            (Process::Capped(p), Data::Amounts(c, b)) => {
                shown = p.observe(c, b).unwrap_or_default();
            }
            (Process::Categories(p), Data::Categories(c, b)) => {
                let _ = p.observe(c, b);
            }
            (Process::Embeddings(p), Data::Embeddings(c, b)) => {
                let _ = p.observe(c, b);
            }
            _ => {}
        }
        match (&mut self.no_harm, data, self.excluded) {
            (Some(Process::Ratio(p)), Data::Counts(c, b, _) | Data::Paired(c, b), Some(margin)) => {
                let _ = p.set_theta0(1.0 / ((1.0 + margin) * least));
                p.observe(b, c);
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
            (Some(Process::Capped(p)), Data::Amounts(c, b), _) => {
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
            let (above, below) = match (data, shown, self.direction) {
                (Data::Scores(c, b), _, Direction::GreaterIsWorse) => (c.sum, b.sum),
                (Data::Scores(c, b), _, Direction::GreaterIsBetter) => (n_c - c.sum, n_b - b.sum),
                (_, Some((c, b)), Direction::GreaterIsWorse) => (c, b),
                (_, Some((c, b)), Direction::GreaterIsBetter) => (b, c),
                _ => (candidate.k as f64, baseline.k as f64),
            };
            let n = n_c + n_b;
            self.mantel_haenszel.0 += above * n_b / n;
            self.mantel_haenszel.1 += below * n_c / n;
            let counted = !matches!(data, Data::Scores(..) | Data::Amounts(..));
            if counted {
                self.spread += (above + below) * (n_c / n) * (n_b / n);
            }
        }
    }

    pub(super) fn log_e(&self) -> f64 {
        self.harm.log_e()
    }

    /// Part of alpha that this metric spends on excluding noise levels.
    pub(super) const fn alpha1(&self) -> f64 {
        match &self.harm {
            Process::Auto(p) => p.alpha1(),
            Process::Late { alpha1, .. } => *alpha1,
            _ => 0.0,
        }
    }

    /// Whether the test allows for noise that outlasts a window, or has been told that there is none.
    pub(super) const fn knows_noise(&self) -> bool {
        matches!(self.harm, Process::Auto(_) | Process::Late { .. })
    }

    /// Whether evidence may start afresh.
    pub(super) const fn late_starts(&self) -> bool {
        matches!(self.harm, Process::Late { .. })
    }

    pub(super) fn ratio(&self) -> Option<f64> {
        let (above, below) = self.mantel_haenszel;
        (below > 0.0).then(|| above / below)
    }

    /// Confidence sequence of the ratio at level 1 - alpha, asymptotic: `None` before ten events in either arm, and where the metric is no count.
    pub(super) fn interval(&self, alpha: f64) -> Option<(f64, f64)> {
        let (above, below) = self.mantel_haenszel;
        let events = self.candidate.k.min(self.baseline.k);
        if self.spread <= 0.0 || events < EVENTS || !(above > 0.0 && below > 0.0) {
            return None;
        }
        // ln of the ratio has about the variance 1 / v.
        let v = above * below / self.spread;
        let half = NormalMixture::tight_at(INFORMATION, alpha, false)
            .ok()?
            .bound(v, alpha)
            / v;
        let ln = libm::log(above / below);
        Some((libm::exp(ln - half), libm::exp(ln + half)))
    }

    /// ln of the evidence of no harm, and what a pass needs.
    pub(super) fn no_harm(&self, pass: &PassWhen) -> Option<(f64, f64)> {
        match (*pass, &self.no_harm) {
            (PassWhen::NonInferior { beta, .. }, Some(no_harm)) => {
                Some((no_harm.log_e(), -libm::log(beta)))
            }
            _ => None,
        }
    }

    /// The baseline's rate and the candidate's share of the requests so far; `None` before both are known, and for what is no rate.
    fn rate_and_share(&self) -> Option<(f64, f64)> {
        let (c, b) = (self.candidate, self.baseline);
        let known = self.kind == Kind::Rate && c.n > 0 && b.k > 0 && b.k < b.n;
        let (n_c, n_b) = (c.n as f64, b.n as f64);
        let k = match self.direction {
            Direction::GreaterIsWorse => b.k,
            Direction::GreaterIsBetter => b.n.saturating_sub(b.k),
        };
        known.then(|| (k as f64 / n_b, n_c / (n_c + n_b)))
    }

    /// Candidate samples before an equal candidate would pass.
    pub(super) fn needed(&self, pass: &PassWhen) -> Option<u64> {
        let least = pass.min_samples().saturating_sub(self.samples);
        let PassWhen::NonInferior { margin, beta, .. } = *pass else {
            return Some(least);
        };
        let (log, bound) = self.no_harm(pass)?;
        if log >= bound {
            return Some(least);
        }
        let (rate, share) = self.rate_and_share()?;
        let all = no_harm_needed(rate, margin, share, beta, MIXTURE).ok()?;
        // The mixture has been paid for once evidence has grown.
        let part = (bound - log) / (bound + MIXTURE);
        Some(least.max(whole(libm::ceil(all * part.min(1.0)))))
    }

    /// The least ratio that would have been found by now with probability 0.8, at this level.
    pub(super) fn detectable(&self, alpha: f64) -> Option<f64> {
        let (rate, share) = self.rate_and_share()?;
        let (tolerated, n) = (1.0 + self.margin, self.candidate.n as f64);
        let base = rate * tolerated;
        let finds = |ratio: f64| {
            Detection::new(base, ratio, share, alpha, MIXTURE)
                .is_ok_and(|d| d.probability_by(n) >= POWER)
        };
        // By halving between no harm and a candidate that is always bad.
        let (mut low, mut high) = (1.0, 1.0 / base);
        if base >= 1.0 || !finds(high) {
            return None;
        }
        for _ in 0..30 {
            let middle = 0.5 * (low + high);
            if finds(middle) {
                high = middle;
            } else {
                low = middle;
            }
        }
        Some(high * tolerated)
    }

    pub(super) fn noise(&self) -> Noise {
        match (&self.harm, self.learnt) {
            (Process::Auto(_), Some(0)) => Noise::Allowed,
            (Process::Auto(_) | Process::Late { .. }, blocks) => Noise::Learnt {
                blocks: blocks.unwrap_or_default(),
            },
            (Process::Ratio(_), _) if self.kind == Kind::Rate => Noise::Assumed,
            _ => Noise::NoPart,
        }
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
