//! What is judged without statistics: thresholds as teams write them, and hard limits.
//!
//! **Neither has a false-alarm bound.** A threshold compares the measured value of each window with a number; how often chance alone breaks it depends on the traffic, and grows with every look. Ask
//! for sustained breaches, or better for a [`LiveGate`](super::LiveGate).

use serde::{Deserialize, Serialize};

use super::gain::{Data, Gain, Kind};
use super::{BadGatePlan, BadWindow, Direction};
use crate::{Action, Counts, Threshold, Verdict};

/// Longest memory of [`Sustained::OfLast`], in windows.
const WINDOWS: u32 = 64;

/// A live metric beside a number: `error rate over 5 %`, `p99 20 % over the baseline`. Each window is judged for itself: rates, scores and events by their mean, latencies and amounts by a quantile.
///
/// It has **no false-alarm bound**: see the gates for that. Counts of breaches start afresh with each epoch.
///
/// ```
/// use llm_gates::{LiveThreshold, Sustained, Threshold};
/// let slo = LiveThreshold {
///     sustained: Sustained::OfLast { breaches: 3, windows: 5 },
///     ..LiveThreshold::new("error", Threshold::Absolute(0.05))
/// };
/// ```
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LiveThreshold {
    /// Its name, which no other threshold has. Not set: the metric's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Name of the metric, as in [`crate::Window::metrics`]. It needs no gate.
    pub metric: String,
    /// A window whose value is beyond this is a breach. Relative to the baseline's value in the same window, which must not be 0: 0.2 is 20 % more, -0.2 (where the greater is better) 20 % less.
    pub worse_than: Threshold,
    /// What is worse: the greater (where not written) or the smaller.
    #[serde(default, skip_serializing_if = "Direction::is_default")]
    pub direction: Direction,
    /// Which quantile of latencies and amounts, in (0, 1); the 99th percentile where not written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantile: Option<f64>,
    /// Candidate samples of a window (and where it is relative, of the baseline too) before it is judged; a smaller window is inconclusive and changes no count. At least 1, 100 where not written.
    #[serde(default = "hundred")]
    pub min_samples: u64,
    /// When breaches have become a failure.
    #[serde(default)]
    pub sustained: Sustained,
    /// What failing does: rollback (where not written), hold or warn.
    #[serde(default = "rollback")]
    pub action: Action,
    /// Judged and reported, never acted on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// How many breaches fail a threshold. Inconclusive windows count neither way.
#[expect(clippy::exhaustive_enums, reason = "the ways in which teams count")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Sustained {
    /// So many in the epoch, whatever lies between.
    Total(u32),
    /// So many one after the other.
    Consecutive(u32),
    /// So many of the last judged windows.
    OfLast {
        /// How many breaches.
        breaches: u32,
        /// Of how many windows, at most 64.
        windows: u32,
    },
}

impl Default for Sustained {
    fn default() -> Self {
        Self::Consecutive(3)
    }
}

/// A share of bad requests that nobody waits for statistics about: the candidate goes back at once.
///
/// Looks are added up to blocks of at least `min_samples` candidate requests, each judged alone, so that a candidate that dies late is noticed as soon as one that is born dead. It needs no baseline.
/// It has **no false-alarm bound**, so leave room between the share and what is usual.
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct HardLimit {
    /// Name of the metric: requests with an event, comparisons or pairs. It needs no gate.
    pub metric: String,
    /// Candidate requests of a block; at least 1, 20 where not written.
    #[serde(default = "twenty")]
    pub min_samples: u64,
    /// Share of them that is bad, in (0, 1]; a half where not written.
    #[serde(default = "half")]
    pub share: f64,
    /// What is worse: events (where not written) or requests without one.
    #[serde(default, skip_serializing_if = "Direction::is_default")]
    pub direction: Direction,
}

const fn hundred() -> u64 {
    100
}

const fn twenty() -> u64 {
    20
}

const fn half() -> f64 {
    0.5
}

const fn rollback() -> Action {
    Action::Rollback
}

impl LiveThreshold {
    /// Three breaches one after the other, in windows of 100 samples, roll back.
    pub fn new(metric: impl Into<String>, worse_than: Threshold) -> Self {
        Self {
            name: None,
            metric: metric.into(),
            worse_than,
            direction: Direction::GreaterIsWorse,
            quantile: None,
            min_samples: hundred(),
            sustained: Sustained::default(),
            action: rollback(),
            dry_run: false,
        }
    }

    /// Its name: its own, or the metric's.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.metric)
    }

    /// Checks that it can be judged.
    ///
    /// # Errors
    /// [`BadGatePlan::Threshold`], the first thing that is wrong.
    pub fn validate(&self) -> Result<(), BadGatePlan> {
        let bad = |field, why: &'static str| {
            Err(BadGatePlan::Threshold {
                name: self.name().to_owned(),
                field,
                why,
            })
        };
        match self.worse_than {
            Threshold::Absolute(value) if !value.is_finite() => {
                return bad("worse_than", "must be a finite number");
            }
            Threshold::BaselinePlus(value) if !(value > -1.0 && value.is_finite()) => {
                return bad(
                    "worse_than",
                    "must be a fraction above -1: 0.2 is 20 % more than the baseline",
                );
            }
            _ => {}
        }
        if self.quantile.is_some_and(|q| !(q > 0.0 && q < 1.0)) {
            return bad(
                "quantile",
                "must lie between 0 and 1: 0.99 is the 99th percentile",
            );
        }
        if self.min_samples == 0 {
            return bad(
                "min_samples",
                "must be at least 1: an empty window says nothing",
            );
        }
        let possible = match self.sustained {
            Sustained::Total(n) | Sustained::Consecutive(n) => n > 0,
            Sustained::OfLast { breaches, windows } => {
                breaches > 0 && breaches <= windows && windows <= WINDOWS
            }
        };
        if !possible {
            return bad(
                "sustained",
                "needs at least one breach, and at most as many as there are windows, of which 64 are remembered",
            );
        }
        if self.action == Action::Block {
            return bad(
                "action",
                "is `block`, which belongs to gates before deployment: rollback, hold or warn",
            );
        }
        Ok(())
    }

    /// The value of both arms in a window, with their samples; `None` where this kind of metric has no value.
    fn values(&self, gain: &Gain<'_>) -> Option<[Option<f64>; 2]> {
        let mean = |sum: f64, n: f64| (n > 0.0).then(|| sum / n);
        let counts = |c: Counts| mean(c.k as f64, c.n as f64);
        let quantile = self.quantile.unwrap_or(0.99);
        Some(match gain.data {
            Data::Counts(c, b, _) | Data::Paired(c, b) => [counts(c), counts(b)],
            Data::Exposed(c, b) => [c, b].map(|e| mean(e.events as f64, e.exposure)),
            Data::Scores(c, b) => [c, b].map(|s| mean(s.sum, s.n as f64)),
            Data::Sketches(c, b) | Data::Amounts(c, b) => [c, b].map(|s| s.quantile(quantile)),
            Data::Categories(..) | Data::Embeddings(..) => return None,
        })
    }
}

impl HardLimit {
    /// Half of 20 requests.
    pub fn new(metric: impl Into<String>) -> Self {
        Self {
            metric: metric.into(),
            min_samples: twenty(),
            share: half(),
            direction: Direction::GreaterIsWorse,
        }
    }

    /// Checks that it can be judged.
    ///
    /// # Errors
    /// [`BadGatePlan::HardLimit`], the first thing that is wrong.
    pub fn validate(&self) -> Result<(), BadGatePlan> {
        let bad = |field, why: &'static str| {
            Err(BadGatePlan::HardLimit {
                metric: self.metric.clone(),
                field,
                why,
            })
        };
        if self.min_samples == 0 {
            return bad(
                "min_samples",
                "must be at least 1: no request is no reason to go back",
            );
        }
        if !(self.share > 0.0 && self.share <= 1.0) {
            return bad(
                "share",
                "must lie above 0 and be at most 1: 0.5 is half of the requests",
            );
        }
        Ok(())
    }
}

/// Refuses a metric whose kind has no value to compare.
pub(super) fn has_value(metric: &str, kind: Kind) -> Result<(), BadWindow> {
    match kind {
        Kind::Categories(_) | Kind::Embedding(_) => Err(BadWindow::NoValue {
            metric: metric.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Refuses a metric that is no share of requests.
pub(super) fn has_share(metric: &str, kind: Kind) -> Result<(), BadWindow> {
    match kind {
        Kind::Rate | Kind::Paired | Kind::Score => Ok(()),
        _ => Err(BadWindow::NoShare {
            metric: metric.to_owned(),
        }),
    }
}

/// What a threshold has seen in the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Breaches {
    /// Candidate samples of the epoch.
    pub(super) samples: u64,
    /// Windows of the epoch that were large enough.
    pub(super) judged: u32,
    pub(super) total: u32,
    pub(super) consecutive: u32,
    /// The last windows, the newest in the lowest bit.
    recent: u64,
    /// The last judged value, and what it was compared with.
    pub(super) last: Option<(f64, f64)>,
    /// Whether it has failed in this epoch.
    pub(super) failed: bool,
}

impl Breaches {
    pub(super) fn observe(&mut self, threshold: &LiveThreshold, gain: &Gain<'_>) {
        self.samples = self.samples.saturating_add(gain.candidate.n);
        let enough = |counts: Counts| counts.n >= threshold.min_samples;
        let Some([Some(value), baseline]) = threshold.values(gain) else {
            return;
        };
        let limit = match threshold.worse_than {
            Threshold::Absolute(limit) => Some(limit),
            Threshold::BaselinePlus(more) => baseline
                .filter(|b| *b > 0.0 && enough(gain.baseline))
                .map(|b| b * (1.0 + more)),
        };
        let Some(limit) = limit.filter(|_| enough(gain.candidate)) else {
            return;
        };
        let breach = match threshold.direction {
            Direction::GreaterIsWorse => value > limit,
            Direction::GreaterIsBetter => value < limit,
        };
        self.last = Some((value, limit));
        self.judged = self.judged.saturating_add(1);
        self.total = self.total.saturating_add(u32::from(breach));
        self.consecutive = if breach {
            self.consecutive.saturating_add(1)
        } else {
            0
        };
        self.recent = self.recent << 1 | u64::from(breach);
        self.failed |= match threshold.sustained {
            Sustained::Total(n) => self.total >= n,
            Sustained::Consecutive(n) => self.consecutive >= n,
            Sustained::OfLast { breaches, windows } => self.of_last(windows) >= breaches,
        };
    }

    /// Breaches among the last windows, at most 64.
    fn of_last(&self, windows: u32) -> u32 {
        let unused = WINDOWS.saturating_sub(windows.max(1)).min(63);
        (self.recent << unused).count_ones()
    }

    /// The breaches that count, as this threshold counts them.
    pub(super) fn counted(&self, threshold: &LiveThreshold) -> u32 {
        match threshold.sustained {
            Sustained::Total(_) => self.total,
            Sustained::Consecutive(_) => self.consecutive,
            Sustained::OfLast { windows, .. } => self.of_last(windows),
        }
    }

    /// `Pass` needs a window that was judged and kept the threshold last: a stage is not left in the middle of a breach.
    pub(super) fn verdict(&self, min_samples: u64) -> Verdict {
        if self.failed {
            Verdict::Fail
        } else if self.judged > 0 && self.consecutive == 0 && self.samples >= min_samples {
            Verdict::Pass
        } else {
            Verdict::Inconclusive
        }
    }
}

/// What a hard limit has seen in the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Block {
    /// The requests of the block that is not full.
    open: Counts,
    /// The last full block.
    pub(super) last: Option<Counts>,
    pub(super) hit: bool,
}

impl Block {
    pub(super) fn observe(&mut self, limit: &HardLimit, gain: &Gain<'_>) {
        let candidate = match limit.direction {
            Direction::GreaterIsWorse => gain.candidate,
            Direction::GreaterIsBetter => super::gain::others(gain.candidate),
        };
        self.open = Counts {
            n: self.open.n.saturating_add(candidate.n),
            k: self.open.k.saturating_add(candidate.k),
        };
        if self.hit || self.open.n < limit.min_samples {
            return;
        }
        let full = std::mem::take(&mut self.open);
        self.last = Some(full);
        self.hit = full.k as f64 >= limit.share * full.n as f64;
    }
}

/// What a threshold has seen, for the report.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThresholdEvidence {
    /// Name of the threshold.
    pub name: String,
    /// Name of the metric.
    pub metric: String,
    /// What failing does.
    pub action: Action,
    /// The candidate's value in the last window that was large enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// What that was compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<f64>,
    /// Windows of this epoch that were large enough.
    pub judged: u32,
    /// Breaches of this epoch.
    pub total: u32,
    /// Breaches as the threshold counts them: in all, one after the other, or of the last windows.
    pub breaches: u32,
    /// How many of them fail it.
    pub fails_at: u32,
    /// `Fail` once the breaches have lasted, `Pass` where the last judged window kept the threshold and the stage has its samples.
    pub verdict: Verdict,
    /// Whether it only reports.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

impl ThresholdEvidence {
    pub(super) fn of(threshold: &LiveThreshold, seen: Breaches, min_samples: u64) -> Self {
        Self {
            name: threshold.name().to_owned(),
            metric: threshold.metric.clone(),
            action: threshold.action,
            value: seen.last.map(|(value, _)| value),
            limit: seen.last.map(|(_, limit)| limit),
            judged: seen.judged,
            total: seen.total,
            breaches: seen.counted(threshold),
            fails_at: match threshold.sustained {
                Sustained::Total(n) | Sustained::Consecutive(n) => n,
                Sustained::OfLast { breaches, .. } => breaches,
            },
            verdict: seen.verdict(min_samples),
            dry_run: threshold.dry_run,
        }
    }
}

/// What a hard limit has seen, for the report.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HardLimitEvidence {
    /// Name of the metric.
    pub metric: String,
    /// Requests of the candidate in the last full block, and the bad ones among them; `None` before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<Counts>,
    /// The share that is not allowed.
    pub share: f64,
    /// Whether it was reached in this epoch.
    pub hit: bool,
}

impl HardLimitEvidence {
    pub(super) fn of(limit: &HardLimit, seen: Block) -> Self {
        Self {
            metric: limit.metric.clone(),
            block: seen.last,
            share: limit.share,
            hit: seen.hit,
        }
    }
}
