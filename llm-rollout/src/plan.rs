//! The plan: stages, gates, triggers and recovery, as data that a person writes and reviews.
//!
//! A [`Plan`] that exists is valid: [`Plan::from_toml`], [`Plan::from_json`] and `Plan::try_from(spec)` are the ways in.

mod error;
pub mod lint;
mod place;
mod spec;

pub use error::PlanError;
pub use spec::{
    Advance, Exposure, Finish, Lease, MetricDef, Outcomes, PassSpec, PlanSpec, PreFlightSpec,
    RecoverySpec, Response, StageSpec, Standby, Triggers, Undecided, WatchSpec,
};

use llm_gates::{GatePlan, PassWhen};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A valid plan. Cheap to clone.
///
/// ```
/// use llm_rollout::Plan;
/// let plan = Plan::from_toml(r#"
///     alpha = 0.05
///     [metrics]
///     faults = { fault = {} }
///     [[gates]]
///     metric = "faults"
///     weight = 1.0
///     [[stages]]
///     serve = 5.0
///     dwell = "4h"
///     min_samples = 500
///     [[stages]]
///     serve = 100.0
///     dwell = "24h"
/// "#)?;
/// assert_eq!(plan.stages().len(), 2);
///
/// let error = Plan::from_toml("alpha = 0.05\nstagse = []").unwrap_err();
/// assert!(error.to_string().contains("line 2"));
/// # Ok::<(), llm_rollout::PlanError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "PlanSpec", into = "PlanSpec")]
pub struct Plan(Arc<PlanSpec>);

impl Plan {
    /// Reads a plan from TOML.
    ///
    /// # Errors
    /// Names the line and column, what is wrong there, and what to write instead.
    pub fn from_toml(text: &str) -> Result<Self, PlanError> {
        let spec: PlanSpec = toml::from_str(text).map_err(|e| PlanError::toml(text, &e))?;
        Self::try_from(spec).map_err(|e| e.located(text))
    }

    /// Reads a plan from JSON.
    ///
    /// # Errors
    /// Names the line and column, what is wrong there, and what to write instead.
    pub fn from_json(text: &str) -> Result<Self, PlanError> {
        let spec: PlanSpec = serde_json::from_str(text).map_err(|e| PlanError::json(text, &e))?;
        Self::try_from(spec).map_err(|e| e.located(text))
    }

    /// The JSON Schema of a plan, for editors and checks elsewhere; it stands in `docs/plan.schema.json`. What needs more than a schema (metrics that are named and not there, shares that shrink)
    /// is said by [`Plan::from_json`] and [`Plan::from_toml`].
    #[cfg(feature = "schema")]
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(PlanSpec).to_value()
    }

    /// The plan as written.
    pub fn spec(&self) -> &PlanSpec {
        &self.0
    }

    /// Its stages, in order.
    pub fn stages(&self) -> &[StageSpec] {
        &self.0.stages
    }

    /// What a verdict in this stage depends on: the gates, thresholds and hard limits that its exposure can feed. None where there is none (a preview, or
    /// an ungated plan): such a stage passes by time, alarms and people alone. An index past the last stage gives the last stage's.
    pub fn gate_plan(&self, stage: usize) -> Option<GatePlan> {
        let stage = self.0.stages.get(stage).or(self.0.stages.last())?;
        let min_samples = stage.min_samples;
        let fed = |metric: &str| self.0.feeds(stage, metric);
        let gates = self.0.gates.iter().filter(|g| fed(&g.metric));
        let thresholds = self.0.thresholds.iter();
        let thresholds = thresholds.filter(|t| self.0.judges(stage, t));
        let hard_limits = self.0.hard_limits.iter().filter(|l| fed(&l.metric));
        let pass = match self.0.pass {
            PassSpec::NoEvidenceOfHarm => PassWhen::NoEvidenceOfHarm { min_samples },
            PassSpec::NonInferior { margin, beta } => PassWhen::NonInferior {
                min_samples,
                margin,
                beta,
            },
        };
        let plan = GatePlan {
            pause_alpha: self.0.pause_alpha,
            thresholds: thresholds.cloned().collect(),
            hard_limits: hard_limits.cloned().collect(),
            cold_start: self.0.cold_start,
            ..GatePlan::new(self.0.alpha, gates.cloned().collect(), pass)
        };
        let watched = plan.gates.len() + plan.thresholds.len() + plan.hard_limits.len();
        (watched > 0).then_some(plan)
    }

    /// Whether the gates and thresholds of this metric must pass before the stage advances.
    pub(crate) fn needs(&self, stage: &StageSpec, metric: &str) -> bool {
        match &stage.needs {
            Some(needs) => needs.iter().any(|m| m == metric),
            None => self.0.feeds(stage, metric),
        }
    }
}

impl TryFrom<PlanSpec> for Plan {
    type Error = PlanError;

    fn try_from(spec: PlanSpec) -> Result<Self, PlanError> {
        spec.check()?;
        Ok(Self(Arc::new(spec)))
    }
}

impl From<Plan> for PlanSpec {
    fn from(plan: Plan) -> PlanSpec {
        Arc::unwrap_or_clone(plan.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
alpha = 0.05
[metrics]
faults = { fault = {} }
slow = { first_token_over = "800ms" }
broken = { flag = "bad_format" }

[[gates]]
metric = "faults"
weight = 0.6
[[gates]]
metric = "slow"
weight = 0.4
margin = 0.2
action = "hold"

[[stages]]
serve = 1.0
dwell = "1h"
[[stages]]
serve = 25.0
dwell = "4h"
advance = "manual"
[[stages]]
serve = 100.0
dwell = "1h"
"#;

    #[test]
    fn a_good_plan_survives_every_round_trip() {
        let plan = Plan::from_toml(GOOD).unwrap();
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(Plan::from_json(&json).unwrap(), plan);
        let toml = toml::to_string(&plan).unwrap();
        assert_eq!(Plan::from_toml(&toml).unwrap(), plan);
    }

    /// The message that a person gets: where, what, and what to do.
    #[track_caller]
    fn refused(change: (&str, &str), expect: &[&str]) {
        assert!(
            GOOD.contains(change.0),
            "the test changes something that is not there: {}",
            change.0
        );
        let message = Plan::from_toml(&GOOD.replacen(change.0, change.1, 1))
            .unwrap_err()
            .to_string();
        for part in expect {
            assert!(message.contains(part), "{message:?} does not say {part:?}");
        }
    }

    #[test]
    fn mistakes_are_named_and_located() {
        refused(
            ("dwell = \"1h\"", "dwel = \"1h\""),
            &["line 19", "dwel", "dwell"],
        );
        refused(
            ("serve = 25.0", "serve = 0.5"),
            &["line 21", "stages[1].serve", "0.5 %", "shrinks"],
        );
        refused(
            ("metric = \"slow\"", "metric = \"slwo\""),
            &["line 12", "gates[1].metric", "slwo", "slow"],
        );
        refused(
            ("alpha = 0.05", "alpha = 1.5"),
            &["line 2", "alpha", "between 0 and 1"],
        );
        refused(("action = \"hold\"", "weight = 1.4"), &["duplicate key"]);
        refused(
            (
                "weight = 0.6\n[[gates]]\nmetric = \"slow\"\nweight = 0.4\nmargin = 0.2\naction = \"hold\"",
                "weight = 0.7\n[[gates]]\nmetric = \"slow\"\nweight = 0.4",
            ),
            &["gates", "weight", "at most 1"],
        );
        refused(("serve = 1.0", "serve = 101.0"), &["line 18", "101"]);
        refused(("serve = 1.0", "serve = 1.005"), &["1.005", "0.01"]);
        refused(
            ("dwell = \"1h\"", "dwell = \"1 parsec\""),
            &["line 19", "parsec", "4h"],
        );
        refused(
            ("advance = \"manual\"", "advance = \"maybe\""),
            &["line 23", "maybe", "manual"],
        );
        refused(
            ("action = \"hold\"", "action = \"block\""),
            &["gates[1].action", "block", "rollback"],
        );
    }

    #[test]
    fn json_mistakes_are_located_too() {
        let json = serde_json::to_string_pretty(&Plan::from_toml(GOOD).unwrap()).unwrap();
        let message = Plan::from_json(&json.replacen("\"alpha\"", "\"alhpa\"", 1))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("line 2") && message.contains("alhpa"),
            "{message}"
        );
        let message = Plan::from_json(&json.replacen("\"serve\": 25.0", "\"serve\": 0.5", 1))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("stages[1].serve") && message.contains("\"serve\": 0.5"),
            "{message}"
        );
    }

    #[test]
    fn an_empty_plan_is_no_plan() {
        let message = Plan::from_toml("alpha = 0.05").unwrap_err().to_string();
        assert!(message.contains("stages"), "{message}");
    }
}
