//! What live gates look at, and the error budgets they share.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Action;
use crate::verdict::is_unit;

/// What is worse.
#[expect(clippy::exhaustive_enums, reason = "a number has two directions")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
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
        }
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

/// The gates of a whole rollout and its one false-alarm budget.
///
/// ```
/// use llm_gates::{Action, GatePlan, LiveGate, PassWhen};
/// let plan = GatePlan {
///     alpha: 0.05,
///     pause_alpha: Some(0.25),
///     gates: vec![LiveGate::new("error", 0.7, 0.0, Action::Rollback), LiveGate::new("refusal", 0.3, 0.1, Action::Rollback)],
///     pass: PassWhen::NoEvidenceOfHarm { min_samples: 500 },
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
    /// The gates, at least one, no metric twice.
    pub gates: Vec<LiveGate>,
    /// When a stage has seen enough.
    pub pass: PassWhen,
}

/// Gates that are compared pair by pair.
const FEW: usize = 64;

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
    /// No gates.
    #[error("the plan has no gates")]
    NoGates,
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
        if self.gates.is_empty() {
            return Err(BadGatePlan::NoGates);
        }
        // Looks check their plan too, and a few gates need no set for that.
        let (mut seen, mut sum) = (BTreeSet::new(), 0.0);
        for (i, gate) in self.gates.iter().enumerate() {
            let metric = || gate.metric.clone();
            let twice = if self.gates.len() <= FEW {
                self.gates[..i].iter().any(|g| g.metric == gate.metric)
            } else {
                !seen.insert(gate.metric.as_str())
            };
            if twice {
                return Err(BadGatePlan::Duplicate { metric: metric() });
            }
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
            if gate.action == Action::Rollback {
                sum += gate.weight;
            }
        }
        if sum > 1.0 + 1e-9 {
            return Err(BadGatePlan::Weights { sum });
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
