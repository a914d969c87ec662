//! The strategies of Flagger, as plans.
//!
//! What differs on purpose: weights end at `max_weight` instead of overshooting it; promotion moves no traffic twice, since the
//! candidate itself becomes the baseline; failed checks are limited per stage, and a verdict of harm goes back at once; a weight that is
//! in no list is never served.

use super::{Gates, linear, shares, stage};
use crate::{Advance, Finish, Plan, PlanError, Share, StageSpec};
use std::time::Duration;

/// How the share grows.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "plain data that hosts write as literals"
)]
pub enum Weights {
    /// In equal steps, in per cent.
    Step {
        /// The step.
        step_weight: f64,
        /// The last weight before promotion.
        max_weight: f64,
    },
    /// These, in per cent.
    List(Vec<f64>),
    /// Everybody in scope for so many intervals: an A/B test of the requests that match, on an endpoint of their own, or blue-green.
    Iterations(u32),
}

/// A progressive delivery.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
pub struct Canary {
    /// Time between two checks.
    pub interval: Duration,
    /// How the share grows.
    pub weights: Weights,
    /// How many checks may fail in a stage; none means one.
    pub threshold: u32,
    /// Whether a person lets it be promoted.
    pub confirm_promotion: bool,
}

impl Canary {
    /// The plan: one stage per weight, each an interval long. A stage whose checks do not pass within `threshold` further
    /// intervals goes back.
    ///
    /// # Errors
    /// The weights shrink or are none.
    pub fn plan(&self, gates: Gates) -> Result<Plan, PlanError> {
        let (weights, intervals) = match &self.weights {
            Weights::Step {
                step_weight,
                max_weight,
            } => (linear(*step_weight, *max_weight)?, 1),
            Weights::List(list) => (shares(list.iter().copied())?, 1),
            Weights::Iterations(count) => (vec![Share::ALL], (*count).max(1)),
        };
        let dwell = self.interval.saturating_mul(intervals);
        let extra = self.interval.saturating_mul(self.threshold.max(1));
        let mut stages: Vec<_> = weights
            .into_iter()
            .map(|weight| StageSpec {
                limit: Some(dwell.saturating_add(extra)),
                ..stage(weight, dwell)
            })
            .collect();
        if let Some(last) = stages.last_mut()
            && self.confirm_promotion
        {
            last.advance = Advance::Manual;
        }
        let mut spec = gates.plan(stages, Finish::Promote, Duration::ZERO);
        spec.look_every = self.interval;
        // No verdict is what a failing check gives there: the stage's limit ends it, not silence.
        spec.triggers.no_verdict = spec
            .triggers
            .no_verdict
            .max(self.interval.saturating_mul(2));
        spec.try_into()
    }
}
