//! What live gates look at, and the error budgets they share.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{HardLimit, LiveThreshold};
use crate::Action;
use crate::verdict::is_unit;

/// What is worse.
#[expect(clippy::exhaustive_enums, reason = "a number has two directions")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Errors, latencies, toxicity.
    #[default]
    GreaterIsWorse,
    /// Solved tasks, ratings, tokens per second. Of requests, those without the event are counted, and scores x are taken as 1 - x, so the margin is about these; of events in exposure, latencies and
    /// amounts, the margin is how many times as great the baseline's may be.
    GreaterIsBetter,
}

impl Direction {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the signature that serde asks for"
    )]
    pub(super) const fn is_default(&self) -> bool {
        matches!(self, Self::GreaterIsWorse)
    }
}

/// A metric that is watched while the candidate serves.
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LiveGate {
    /// Name of the metric, as in [`crate::Window::metrics`].
    pub metric: String,
    /// Share of the rollback budget, in (0, 1]. The weights of all rollback gates sum to at most 1; others have a budget of their own.
    pub weight: f64,
    /// Tolerated relative harm, in [0, 100]: 0.1 means that a rate up to 1.1 times the baseline's is no harm.
    #[serde(default)]
    pub margin: f64,
    /// What evidence of harm does: rollback (where not written), hold or warn.
    #[serde(default = "rollback")]
    pub action: Action,
    /// What is worse: the greater (where not written) or the smaller. Comparisons, pairs and drift say that themselves.
    #[serde(default, skip_serializing_if = "Direction::is_default")]
    pub direction: Direction,
    /// The metric's unit, for display: `ms`, `tokens`, `EUR`. At most 32 characters, none of them a control character.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Change points: over this many windows, 1 to 1,000,000, half of the evidence starts afresh step by step, so that harm that begins late is found as quickly as harm from the start, which costs an early
    /// one ln 2. Off where not written. As restarts chase bursts of noise, they stay off behind a guard: only for rates, and only where [`crate::Evidence::learn`] has shown, before the metric's first
    /// window, that every plausible noise level is none ([`crate::anytime::AutoRatio::is_quiet`]). [`crate::GateEvidence::late_starts`] says whether they are on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late_starts: Option<u32>,
    /// Judged and reported, never acted on: it takes nothing of the shared budget (it has a bound of its own), and a stage does not wait for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

fn rollback() -> Action {
    Action::Rollback
}

impl LiveGate {
    /// A gate on a metric of which the greater is worse.
    pub fn new(metric: impl Into<String>, weight: f64, margin: f64, action: Action) -> Self {
        Self {
            metric: metric.into(),
            weight,
            margin,
            action,
            direction: Direction::GreaterIsWorse,
            unit: None,
            late_starts: None,
            dry_run: false,
        }
    }

    /// Whether it takes its weight of the budget that all such gates share: it rolls back, and not only in a dry run.
    pub fn shares_budget(&self) -> bool {
        self.action == Action::Rollback && !self.dry_run
    }
}

/// When a stage has seen enough to go on.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PassWhen {
    /// Enough samples and no evidence of harm. Says nothing about harm too small to be seen.
    NoEvidenceOfHarm {
        /// Candidate samples of the stage, per gated metric.
        min_samples: u64,
    },
    /// Enough samples and, for every rollback and hold gate, evidence that the harm is below a margin. The evidence is [`crate::RateRatio`] with the arms swapped (or
    /// betting on means): it knows of users that differ, but not of noise that was learnt, so on noisy arms `beta` is nominal.
    NonInferior {
        /// Candidate samples of the stage, per gated metric.
        min_samples: u64,
        /// Relative harm that must be excluded, in (0, 100]: 0.2 asks for evidence that the rate is below 1.2 times the baseline's.
        margin: f64,
        /// Bound on the probability of ever passing a candidate that is worse than the margin, in (0, 1).
        beta: f64,
    },
}

impl PassWhen {
    /// Candidate samples that the stage needs, per gated metric.
    pub const fn min_samples(&self) -> u64 {
        match *self {
            Self::NoEvidenceOfHarm { min_samples } | Self::NonInferior { min_samples, .. } => {
                min_samples
            }
        }
    }
}

/// How a rate is tested whose noise nobody has learnt ([`crate::Evidence::learn`]).
#[expect(clippy::exhaustive_enums, reason = "one or the other")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ColdStart {
    /// As if the arms differed by sampling alone ([`crate::RateRatio`]): quick, and the false-alarm bound holds only where that is so. On noisy replicas it does not.
    #[default]
    Quick,
    /// As if the arms might differ by any plausible noise ([`crate::anytime::AutoRatio`] without history): the bound holds, and detection is slow. A doubled error rate at 5 % of the traffic is found
    /// in about a third of the rollouts instead of nearly all.
    Careful,
}

impl ColdStart {
    /// Whether it is the usual one.
    pub const fn is_quick(&self) -> bool {
        matches!(self, Self::Quick)
    }
}

/// The gates of a whole rollout and its one false-alarm budget, with what is judged beside them.
///
/// ```
/// use llm_gates::{Action, GatePlan, LiveGate, PassWhen};
/// let plan = GatePlan {
///     pause_alpha: Some(0.25),
///     ..GatePlan::new(
///         0.05,
///         vec![LiveGate::new("error", 0.7, 0.0, Action::Rollback), LiveGate::new("refusal", 0.3, 0.1, Action::Rollback)],
///         PassWhen::NoEvidenceOfHarm { min_samples: 500 },
///     )
/// };
/// assert!(plan.validate().is_ok());
/// ```
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatePlan {
    /// Bound on the probability that a harmless candidate is ever rolled back, over all rollback gates, stages and looks; in (0, 1).
    /// Each hold and warn gate has this bound for itself.
    pub alpha: f64,
    /// The stage does not advance while the evidence is at least 1 / this; in (alpha, 1). Cheap and reversible: .25 is usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_alpha: Option<f64>,
    /// The gates, no metric twice. At least one, or a threshold or hard limit.
    pub gates: Vec<LiveGate>,
    /// When a stage has seen enough.
    pub pass: PassWhen,
    /// What is compared with a number, window by window; no false-alarm bound.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub thresholds: Vec<LiveThreshold>,
    /// What sends back at once; no false-alarm bound, no metric twice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hard_limits: Vec<HardLimit>,
    /// How rates without history are tested.
    #[serde(default, skip_serializing_if = "ColdStart::is_quick")]
    pub cold_start: ColdStart,
}

/// Names that are compared pair by pair.
const FEW: usize = 64;

/// A name that comes twice. Looks check their plan too, and a few names need no set for that.
fn twice<'a, T>(list: &'a [T], name: impl Fn(&'a T) -> &'a str) -> Option<String> {
    let mut seen = BTreeSet::new();
    let again = list.iter().enumerate().find(|(i, item)| {
        if list.len() <= FEW {
            list[..*i].iter().any(|earlier| name(earlier) == name(item))
        } else {
            !seen.insert(name(item))
        }
    });
    again.map(|(_, item)| name(item).to_owned())
}

/// Why a plan makes no test.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Error)]
pub enum BadGatePlan {
    /// A probability outside (0, 1).
    #[error("`{field}` is {value}: it must lie above 0 and below 1")]
    Probability {
        /// Which one.
        field: &'static str,
        /// Its value.
        value: f64,
    },
    /// Pausing needs more evidence than going back.
    #[error(
        "`pause_alpha` is {pause_alpha}, not above `alpha` {alpha}: it would never pause before it rolls back"
    )]
    PauseAlpha {
        /// The pause level.
        pause_alpha: f64,
        /// The rollback level.
        alpha: f64,
    },
    /// Nothing to judge.
    #[error("the plan has no gates, thresholds or hard limits")]
    NoGates,
    /// A threshold that cannot be judged.
    #[error("`{field}` of the threshold `{name}` {why}")]
    Threshold {
        /// Its name.
        name: String,
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two thresholds of one name.
    #[error("two thresholds are called `{name}`: give each a `name`")]
    SameName {
        /// The name.
        name: String,
    },
    /// A hard limit that cannot be judged.
    #[error("`{field}` of the hard limit on `{metric}` {why}")]
    HardLimit {
        /// The metric.
        metric: String,
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two hard limits on one metric.
    #[error("two hard limits look at `{metric}`: keep one")]
    TwoLimits {
        /// The metric.
        metric: String,
    },
    /// Two gates on one metric.
    #[error("two gates look at `{metric}`: keep one")]
    Duplicate {
        /// The metric.
        metric: String,
    },
    /// A weight that is no share of the budget.
    #[error("the weight of `{metric}` is {weight}: it must lie above 0 and be at most 1")]
    Weight {
        /// The metric.
        metric: String,
        /// Its weight.
        weight: f64,
    },
    /// More budget shared out than there is.
    #[error(
        "the weights of the rollback gates sum to {sum}: they share one budget, so the sum is at most 1"
    )]
    Weights {
        /// Their sum.
        sum: f64,
    },
    /// A margin that is none.
    #[error("the margin of `{field}` is {margin}: it is a relative harm between 0 and 100{}", if *positive { ", above 0" } else { "" })]
    Margin {
        /// The metric, or `pass`.
        field: String,
        /// Its margin.
        margin: f64,
        /// Whether 0 is refused too.
        positive: bool,
    },
    /// A unit that is none.
    #[error("the unit of `{metric}` is not 1 to 32 characters that can be shown")]
    Unit {
        /// The metric.
        metric: String,
    },
    /// A horizon that is none.
    #[error("the late starts of `{metric}` are {windows}: 1 to 1,000,000 windows")]
    LateStarts {
        /// The metric.
        metric: String,
        /// How many windows.
        windows: u32,
    },
    /// An action that a live gate cannot take.
    #[error("the gate on `{metric}` would {action}: a live gate can rollback, hold or warn")]
    Action {
        /// The metric.
        metric: String,
        /// Its action.
        action: Action,
    },
}

fn probability(field: &'static str, value: f64) -> Result<(), BadGatePlan> {
    if value > 0.0 && value < 1.0 {
        Ok(())
    } else {
        Err(BadGatePlan::Probability { field, value })
    }
}

impl GatePlan {
    /// Gates and when a stage passes: no pause level, thresholds or hard limits, and a quick cold start.
    pub const fn new(alpha: f64, gates: Vec<LiveGate>, pass: PassWhen) -> Self {
        Self {
            alpha,
            pause_alpha: None,
            gates,
            pass,
            thresholds: Vec::new(),
            hard_limits: Vec::new(),
            cold_start: ColdStart::Quick,
        }
    }

    /// Whether anything here looks at the metric: such a metric must be in every window.
    pub fn watches(&self, metric: &str) -> bool {
        self.gates.iter().any(|g| g.metric == metric)
            || self.thresholds.iter().any(|t| t.metric == metric)
            || self.hard_limits.iter().any(|l| l.metric == metric)
    }

    /// Checks that the plan makes a test with the bounds that it states. Nothing is normalised.
    ///
    /// # Errors
    /// [`BadGatePlan`], the first thing that is wrong.
    pub fn validate(&self) -> Result<(), BadGatePlan> {
        probability("alpha", self.alpha)?;
        if let Some(pause_alpha) = self.pause_alpha {
            probability("pause_alpha", pause_alpha)?;
            if pause_alpha <= self.alpha {
                return Err(BadGatePlan::PauseAlpha {
                    pause_alpha,
                    alpha: self.alpha,
                });
            }
        }
        if self.gates.is_empty() && self.thresholds.is_empty() && self.hard_limits.is_empty() {
            return Err(BadGatePlan::NoGates);
        }
        if let Some(metric) = twice(&self.gates, |g| &g.metric) {
            return Err(BadGatePlan::Duplicate { metric });
        }
        let mut sum = 0.0;
        for gate in &self.gates {
            let metric = || gate.metric.clone();
            if gate.action == Action::Block {
                return Err(BadGatePlan::Action {
                    metric: metric(),
                    action: gate.action,
                });
            }
            if !(gate.weight > 0.0 && gate.weight <= 1.0) {
                return Err(BadGatePlan::Weight {
                    metric: metric(),
                    weight: gate.weight,
                });
            }
            if !(0.0..=100.0).contains(&gate.margin) {
                return Err(BadGatePlan::Margin {
                    field: metric(),
                    margin: gate.margin,
                    positive: false,
                });
            }
            if gate.unit.as_deref().is_some_and(|u| !is_unit(u)) {
                return Err(BadGatePlan::Unit { metric: metric() });
            }
            if let Some(windows) = gate.late_starts
                && !(1..=1_000_000).contains(&windows)
            {
                return Err(BadGatePlan::LateStarts {
                    metric: metric(),
                    windows,
                });
            }
            if gate.shares_budget() {
                sum += gate.weight;
            }
        }
        if sum > 1.0 + 1e-9 {
            return Err(BadGatePlan::Weights { sum });
        }
        self.thresholds
            .iter()
            .try_for_each(LiveThreshold::validate)?;
        if let Some(name) = twice(&self.thresholds, LiveThreshold::name) {
            return Err(BadGatePlan::SameName { name });
        }
        self.hard_limits.iter().try_for_each(HardLimit::validate)?;
        if let Some(metric) = twice(&self.hard_limits, |l| &l.metric) {
            return Err(BadGatePlan::TwoLimits { metric });
        }
        if let PassWhen::NonInferior { margin, beta, .. } = self.pass {
            probability("beta", beta)?;
            if !(margin > 0.0 && margin <= 100.0) {
                return Err(BadGatePlan::Margin {
                    field: "pass".to_owned(),
                    margin,
                    positive: true,
                });
            }
        }
        Ok(())
    }
}
