//! What a look at the evidence says, in short and in full.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{HardLimitEvidence, ThresholdEvidence};
use crate::{Action, Counts, Verdict};

/// What one gate has seen.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateEvidence {
    /// Name of the metric.
    pub metric: String,
    /// Unit of the metric, where the plan states one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Share of the rollback budget.
    pub weight: f64,
    /// ln of the evidence against "no harm beyond the margin".
    pub log_e: f64,
    /// All counts of the candidate, as they came in: requests and events; for latencies those above the baseline's earlier 99th percentile; for comparisons and pairs the losses and negative flips; 0
    /// events for amounts and drift.
    pub candidate: Counts,
    /// All counts of the baseline; for comparisons and pairs the wins and positive flips.
    pub baseline: Counts,
    /// Ratio of the rates, stratified by window (Mantel and Haenszel 1959), for display; `None` while the baseline has no event.
    pub ratio: Option<f64>,
    /// Bounds of that ratio, for display: a confidence sequence at level 1 - alpha of the plan, which may be read at every look (asymptotic, and of rates that the requests of a window share). `None` for
    /// scores and amounts, and before ten events in each arm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<(f64, f64)>,
    /// `Fail` where this gate is to blame (closed testing with the other rollback gates; at its own level for hold and warn), `Pass` where it has shown what the stage asks for.
    pub verdict: Verdict,
    /// Ratio between the arms that their users alone may cause, from the period before the ramp, where that is above 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<f64>,
    /// Whether the gate's late starts are on: the plan asks for them, and the guard let them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late_starts: bool,
    /// Whether it only reports.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// What `log_e` is measured by: for a gate that shares the budget what the weighted sum of all must reach, for others what it must reach alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<f64>,
    /// For a gate that shares the budget: ln of its evidence after closed testing with the others (the least weighted mean over all sets of them). At the bound or above, this gate is to blame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blamed: Option<f64>,
    /// ln of the evidence that harm stays below the margin, and what a pass needs; where the stage passes by non-inferiority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_harm: Option<(f64, f64)>,
    /// Candidate samples that this stage still needs of the metric before the gate can pass, as an equal candidate would at the rates seen so far; `None` where nothing is known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needed: Option<u64>,
    /// The least ratio of the rates that would have been found by now with probability 0.8, where the arms differ by sampling alone; `None` where no ratio would, and for what is no rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detectable: Option<f64>,
    /// What is taken for granted, since nothing before the ramp has told it: alpha is kept as far as this is so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assumed: Vec<Assumed>,
    /// What is known of the noise between equal arms.
    #[serde(default, skip_serializing_if = "Noise::is_no_part")]
    pub noise: Noise,
}

/// What a gate takes for granted of which it has learnt nothing before the ramp.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Assumed {
    /// No noise of an arm outlasts a window: see [`crate::Evidence::learn`].
    QuietArms,
    /// The users of both arms are alike: see [`crate::Evidence::learn_slice`]. It is so where requests, not users, are assigned at random.
    EqualUsers,
}

impl fmt::Display for Assumed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::QuietArms => {
                "no history of the baseline: its noise is taken to be over within a look"
            }
            Self::EqualUsers => {
                "users were not counted before the ramp: those of both arms are taken to be alike"
            }
        })
    }
}

/// What a gate's test knows of how much equal arms differ beyond sampling.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Noise {
    /// The test has no part for it: everything but rates.
    #[default]
    NoPart,
    /// Learnt from so many blocks of the baseline's history.
    Learnt {
        /// Blocks of five minutes that said something.
        blocks: u64,
    },
    /// A careful cold start: any plausible noise is allowed for, and detection is slow.
    Allowed,
    /// A quick cold start: none is assumed, and what there is counts as harm.
    Assumed,
}

impl Noise {
    const fn is_no_part(&self) -> bool {
        matches!(self, Self::NoPart)
    }

    /// What the lack of history costs, in a sentence; `None` where nothing is lacking.
    pub const fn cost(self) -> Option<&'static str> {
        match self {
            Self::NoPart | Self::Learnt { .. } => None,
            Self::Allowed => Some(
                "cold start: without history of the baseline any plausible noise is allowed for, so harm is found late",
            ),
            Self::Assumed => Some(
                "cold start: without history of the baseline, noise between the arms counts as harm, so false alarms may exceed alpha",
            ),
        }
    }
}

/// What all gates together say after a window, and nothing of each.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// `Fail` iff the rollback gates together have reached their bound, a rollback threshold its count or a hard limit its share, now or ever before.
    pub verdict: Verdict,
    /// The graver of what failed gates do; a failed hold gate prevents `Pass`, a failed warn gate prevents nothing.
    pub action: Option<Action>,
    /// Candidate samples of this epoch, least over the gated metrics; windows whose baseline is empty do not count.
    pub samples: u64,
    /// ln of the weighted sum of the rollback gates' evidence; `f64::MIN` where there is no such gate.
    pub log_evidence: f64,
    /// ln(1 / alpha): evidence of at least this rolls back. Where tests learn noise, the part of alpha that this takes is left out, which adds ln(10 / 9) at most.
    pub bound: f64,
    /// Whether the evidence has reached the pause level.
    pub paused: bool,
}

/// What all gates say after a window, with what each has seen.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// `Fail` iff the rollback gates together have reached their bound, a rollback threshold its count or a hard limit its share, now or ever before.
    pub verdict: Verdict,
    /// The graver of what failed gates do; a failed hold gate prevents `Pass`, a failed warn gate prevents nothing.
    pub action: Option<Action>,
    /// Epoch of the window.
    pub epoch: u64,
    /// Start of the window, ms.
    pub from: u64,
    /// End of the window, ms.
    pub to: u64,
    /// Candidate samples of this epoch, least over the gated metrics; windows whose baseline is empty do not count.
    pub samples: u64,
    /// ln of the weighted sum of the rollback gates' evidence; `f64::MIN` where there is no such gate.
    pub log_evidence: f64,
    /// ln(1 / alpha): evidence of at least this rolls back. Where tests learn noise, the part of alpha that this takes is left out, which adds ln(10 / 9) at most.
    pub bound: f64,
    /// Whether the evidence has reached the pause level.
    pub paused: bool,
    /// Each gate, in the order of the plan.
    pub gates: Vec<GateEvidence>,
    /// Each threshold, in the order of the plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub thresholds: Vec<ThresholdEvidence>,
    /// Each hard limit, in the order of the plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hard_limits: Vec<HardLimitEvidence>,
}

impl Judgement {
    /// The judgement of a stage that no gate watches, because the plan says so or nobody is exposed: it passes, having looked at nothing.
    pub const fn ungated(epoch: u64, from: u64, to: u64) -> Self {
        Self {
            verdict: Verdict::Pass,
            action: None,
            epoch,
            from,
            to,
            samples: 0,
            log_evidence: f64::MIN,
            bound: f64::MAX,
            paused: false,
            gates: Vec::new(),
            thresholds: Vec::new(),
            hard_limits: Vec::new(),
        }
    }
}

impl fmt::Display for Judgement {
    /// The whole of it, a line for each gate, threshold and hard limit.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.verdict)?;
        if let Some(action) = self.action {
            write!(f, " ({action})")?;
        }
        write!(f, ": {} samples in the stage", self.samples)?;
        if self.log_evidence > f64::MIN {
            write!(
                f,
                ", ln E {:.2} of {:.2}",
                self.log_evidence.max(-999.0),
                self.bound
            )?;
        }
        if self.paused {
            f.write_str(", paused")?;
        }
        for gate in &self.gates {
            write!(f, "\n  {gate}")?;
        }
        for threshold in &self.thresholds {
            write!(f, "\n  {threshold}")?;
        }
        for limit in &self.hard_limits {
            write!(f, "\n  {limit}")?;
        }
        Ok(())
    }
}

impl fmt::Display for GateEvidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            candidate: c,
            baseline: b,
            ..
        } = self;
        write!(f, "{}: {}", self.metric, self.verdict)?;
        if self.dry_run {
            f.write_str(" (dry run)")?;
        }
        write!(f, ", {} of {} against {} of {}", c.k, c.n, b.k, b.n)?;
        if let Some(ratio) = self.ratio {
            write!(f, ", ratio {ratio:.2}")?;
        }
        if let Some((low, high)) = self.interval {
            write!(f, " ({low:.2} to {high:.2})")?;
        }
        write!(f, ", ln E {:.2}", self.log_e)?;
        if let Some(bound) = self.bound {
            write!(f, " of {bound:.2}")?;
        }
        if let Some(blamed) = self.blamed {
            write!(f, " (alone to blame: {blamed:.2})")?;
        }
        if let Some((log, bound)) = self.no_harm {
            write!(f, ", of no harm {log:.2} of {bound:.2}")?;
        }
        if let Some(ratio) = self.detectable {
            write!(f, ", would have found {ratio:.2} times as much")?;
        }
        if let Some(needed) = self.needed.filter(|n| *n > 0) {
            write!(f, ", needs {needed} samples more")?;
        }
        if let Some(cost) = self.noise.cost() {
            write!(f, "; {cost}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ThresholdEvidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "threshold {}: {}", self.name, self.verdict)?;
        if self.dry_run {
            f.write_str(" (dry run)")?;
        }
        if let (Some(value), Some(limit)) = (self.value, self.limit) {
            write!(f, ", {value:.4} beside {limit:.4}")?;
        }
        write!(
            f,
            ", {} of {} breaches in {} windows",
            self.breaches, self.fails_at, self.judged
        )
    }
}

impl fmt::Display for HardLimitEvidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.hit { "hit" } else { "kept" };
        write!(f, "hard limit on {}: {state}", self.metric)?;
        match self.block {
            Some(block) => write!(f, ", {} of {}", block.k, block.n),
            None => f.write_str(", no block yet"),
        }
    }
}
