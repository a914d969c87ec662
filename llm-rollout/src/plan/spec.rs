//! The plan as it is written, and the check that makes it valid.

use super::PlanError;
use crate::Share;
use crate::time::Words;
use llm_gates::{
    Action, BadGatePlan, ColdStart, GateTable, HardLimit, LiveGate, LiveThreshold, Threshold,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::time::Duration;

/// A plan as written; [`super::Plan`] is the checked form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "plain data, written by people")]
pub struct PlanSpec {
    /// The probability that a harmless candidate is rolled back by statistics: over all gates, stages and looks. In (0, 1).
    pub alpha: f64,
    /// Evidence at this level (see `alpha`) freezes the ramp without rolling back; in (0, 1). Not set: no freeze.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_alpha: Option<f64>,
    /// Time between two looks at the evidence.
    #[serde(default = "defaults::look", with = "Words")]
    pub look_every: Duration,
    /// What is measured, by name.
    #[serde(default)]
    pub metrics: BTreeMap<String, MetricDef>,
    /// What the live metrics must not show, with one false-alarm bound for all of it.
    #[serde(default)]
    pub gates: Vec<LiveGate>,
    /// Metrics beside a number, window by window, as service levels are written. They have **no false-alarm bound**: how often chance alone breaks them depends on the traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub thresholds: Vec<LiveThreshold>,
    /// Shares of bad requests that send the candidate back at once, whatever the statistics say. They have no false-alarm bound either.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hard_limits: Vec<HardLimit>,
    /// How rates are tested whose noise no history has shown.
    #[serde(default, skip_serializing_if = "ColdStart::is_quick")]
    pub cold_start: ColdStart,
    /// Says in so many words that no gate, threshold or hard limit watches the candidate: only alarms, dead-man's switches and people send it back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ungated: bool,
    /// What it takes to advance.
    #[serde(default)]
    pub pass: PassSpec,
    /// What must hold before any user sees the candidate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_flight: Option<PreFlightSpec>,
    /// Exposures, in order.
    #[serde(default)]
    pub stages: Vec<StageSpec>,
    /// What follows the last stage.
    #[serde(default, skip_serializing_if = "Finish::is_promote")]
    pub finish: Finish,
    /// After promotion: how long the old baseline stays warm for an instant return.
    #[serde(default, with = "Words")]
    pub bake: Duration,
    /// Who looks after the candidate once it is promoted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub watch: Vec<WatchSpec>,
    /// What goes back by itself, besides gates.
    #[serde(default)]
    pub triggers: Triggers,
    /// How going back is done.
    #[serde(default)]
    pub recovery: RecoverySpec,
    /// The dead-man's switch in the data plane.
    #[serde(default)]
    pub lease: Lease,
    /// Where waiting ends.
    #[serde(default)]
    pub outcomes: Outcomes,
}

/// What one metric counts, per request that was assigned at random.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum MetricDef {
    /// Requests that failed by the version's fault: timeout, upstream error, error in mid-stream, malformed reply.
    Fault {},
    /// Requests whose first token came later than this.
    FirstTokenOver(#[serde(with = "Words")] Duration),
    /// Requests that took longer than this from start to end.
    DurationOver(#[serde(with = "Words")] Duration),
    /// Requests on which the host raised this flag (a failed check, a safety block, a thumbs-down).
    Flag(String),
    /// Mirrored requests, compared with the baseline's answer by the comparator of this name: wins, ties and losses of the candidate. A
    /// mirrored request that only the baseline has answered is a loss. Scores bet once a look: a stage needs about fifty looks at the
    /// least to send anything back by them.
    Pair(String),
    /// What requests have been labelled with after they ended (thumbs, a judge's score, a safety flag), 0 to 1, greater being worse
    /// unless the gate's direction says otherwise. Requests count once they have had the time to be labelled, in both arms alike: a stage
    /// must last longer than that, and hold about fifty looks. Margins are differences of means.
    Label(String),
    /// Requests that have had the time to be labelled so, and were not.
    Unlabelled(String),
}

impl MetricDef {
    /// Whether it is measured on mirrored requests; the others are measured on requests that the candidate answers.
    pub const fn is_mirrored(&self) -> bool {
        matches!(self, Self::Pair(_))
    }
}

/// What follows the last stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "one or the other")]
pub enum Finish {
    /// The candidate becomes the baseline.
    #[default]
    Promote,
    /// The candidate is taken out again, whatever it has shown: a shadow test, or an experiment.
    Return,
}

impl Finish {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the signature that serde's `skip_serializing_if` asks for"
    )]
    fn is_promote(&self) -> bool {
        *self == Self::Promote
    }
}

/// What it takes to advance, once dwell and samples are reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum PassSpec {
    /// No evidence of harm after the stage's samples: the weaker criterion, explicit.
    #[default]
    NoEvidenceOfHarm,
    /// Evidence of no harm beyond the margin, with probability of a wrong pass at most `beta`.
    NonInferior {
        /// Tolerated relative harm, above 0.
        margin: f64,
        /// Probability that a candidate worse than that passes; in (0, 1).
        beta: f64,
    },
}

/// The gates before any exposure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "plain data, written by people")]
pub struct PreFlightSpec {
    /// The table.
    pub gates: GateTable,
    /// How long the evaluation may take.
    #[serde(default = "defaults::hour", with = "Words")]
    pub deadline: Duration,
}

/// One stage: an exposure, how long, how many samples, and who lets it advance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "plain data, written by people")]
pub struct StageSpec {
    /// Share of the candidate in per cent, in steps of 0.01. With neither this nor `mirror`, the candidate runs and gets no requests of users: a preview.
    #[serde(default)]
    pub serve: Exposure,
    /// Share of the baseline's requests, in per cent, that is mirrored to the candidate; nobody sees its answers.
    #[serde(default, skip_serializing_if = "Exposure::is_none")]
    pub mirror: Exposure,
    /// Share of the control arm in per cent (a slice of the baseline, treated like the candidate); at most 50.
    #[serde(default, skip_serializing_if = "Exposure::is_none")]
    pub control: Exposure,
    /// Time at this share, confirmed and leased.
    #[serde(with = "Words")]
    pub dwell: Duration,
    /// Longest time in the stage, from when it began to shift; then `outcomes.undecided`. Default: four times the dwell, at least ten minutes.
    #[serde(default, with = "MaybeWords", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Words"))]
    pub limit: Option<Duration>,
    /// Candidate samples of every gated metric that a pass needs.
    #[serde(default)]
    pub min_samples: u64,
    /// The metrics whose gates and thresholds must pass before it advances; all of them go on sending harm back. Not set: everything that this exposure can feed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs: Option<Vec<String>>,
    /// Who lets it advance.
    #[serde(default)]
    pub advance: Advance,
}

impl StageSpec {
    /// Longest time in the stage.
    pub fn longest(&self) -> Duration {
        self.limit
            .unwrap_or_else(|| self.dwell.saturating_mul(4).max(Duration::from_secs(600)))
    }
}

/// A share, written in per cent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
#[expect(clippy::exhaustive_structs, reason = "a wrapper")]
pub struct Exposure(pub Share);

impl Exposure {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the signature that serde's `skip_serializing_if` asks for"
    )]
    fn is_none(&self) -> bool {
        self.0 == Share::NONE
    }
}

impl TryFrom<f64> for Exposure {
    type Error = crate::BadShare;
    fn try_from(percent: f64) -> Result<Self, crate::BadShare> {
        Share::from_percent(percent).map(Self)
    }
}

impl From<Exposure> for f64 {
    fn from(exposure: Exposure) -> f64 {
        exposure.0.percent()
    }
}

/// Who lets a stage advance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "one or the other")]
pub enum Advance {
    /// Nobody: it advances when its gates pass.
    #[default]
    Auto,
    /// A person, when its gates pass.
    Manual,
}

/// What goes back by itself, besides gates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::exhaustive_structs, reason = "plain data, written by people")]
pub struct Triggers {
    /// A candidate request has waited this long for its first token.
    #[serde(with = "Words")]
    pub candidate_silent: Duration,
    /// No verdict (of any kind) has come for this long; then `outcomes.no_verdict`.
    #[serde(with = "Words")]
    pub no_verdict: Duration,
    /// What an alarm from outside does, by its name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub alarms: BTreeMap<String, Response>,
    /// What an alarm does that is not named in `alarms`.
    pub other_alarms: Response,
}

/// What an alarm does, the least grave first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "the machine must handle each")]
pub enum Response {
    /// Tell people, and wake nobody.
    Warn,
    /// Wake people.
    Page,
    /// Hold and wake people.
    Hold,
    /// Go back.
    Rollback,
}

impl Default for Triggers {
    fn default() -> Self {
        Self {
            candidate_silent: Duration::from_secs(60),
            no_verdict: Duration::from_secs(600),
            alarms: BTreeMap::new(),
            other_alarms: Response::Hold,
        }
    }
}

/// A probe that goes on after promotion: a suite of questions, sampled scores, a drift detector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "plain data, written by people")]
pub struct WatchSpec {
    /// Which of the host's probes.
    pub probe: String,
    /// How often.
    #[serde(with = "Words")]
    pub every: Duration,
    /// How many failures ...
    #[serde(default = "defaults::one")]
    pub fails: u32,
    /// ... of so many last answers are an alarm.
    #[serde(default = "defaults::one")]
    pub of: u32,
    /// What an alarm does: `hold` keeps new rollouts out, `rollback` returns to the version before.
    pub action: Response,
}

impl WatchSpec {
    /// A probe whose first failure is an alarm.
    pub fn new(probe: impl Into<String>, every: Duration, action: Response) -> Self {
        Self {
            probe: probe.into(),
            every,
            fails: 1,
            of: 1,
            action,
        }
    }
}

/// How going back is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::exhaustive_structs, reason = "plain data, written by people")]
pub struct RecoverySpec {
    /// How long requests in flight may still run on a version before it is retired.
    #[serde(with = "Words")]
    pub drain: Duration,
    /// Whether the baseline stays loaded while the candidate serves everything.
    pub standby: Standby,
    /// How long warming up a cold baseline may take before people are told and it is tried again.
    #[serde(with = "Words")]
    pub warm: Duration,
}

/// What becomes of the baseline while the candidate serves everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "one or the other")]
pub enum Standby {
    /// It stays loaded: going back is one split.
    #[default]
    Warm,
    /// It is scaled down: going back loads it first, except in an emergency.
    Cold,
}

impl Default for RecoverySpec {
    fn default() -> Self {
        Self {
            drain: Duration::from_secs(60),
            standby: Standby::Warm,
            warm: Duration::from_secs(900),
        }
    }
}

/// The dead-man's switch in the data plane: a candidate share that is not renewed lapses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::exhaustive_structs, reason = "plain data, written by people")]
pub struct Lease {
    /// How long a share outlives its last renewal.
    #[serde(with = "Words")]
    pub ttl: Duration,
    /// How often it is renewed.
    #[serde(with = "Words")]
    pub renew_every: Duration,
    /// How long renewals go on while the store cannot be reached.
    #[serde(with = "Words")]
    pub grace: Duration,
    /// How many lapses end the rollout.
    pub lapses: u32,
    /// A lapse that lasts longer than this ends the rollout.
    #[serde(with = "Words")]
    pub longest_lapse: Duration,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(60),
            renew_every: Duration::from_secs(10),
            grace: Duration::from_secs(600),
            lapses: 3,
            longest_lapse: Duration::from_secs(3600),
        }
    }
}

/// Where waiting ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::exhaustive_structs, reason = "plain data, written by people")]
pub struct Outcomes {
    /// A stage has reached its limit without passing.
    pub undecided: Undecided,
    /// No verdict has come in time (`triggers.no_verdict`), be it that the source fails or that nobody judges.
    pub no_verdict: Undecided,
    /// How long loading and warming up the candidate may take; then it is blocked.
    #[serde(with = "Words")]
    pub warm: Duration,
    /// How long the routers may take to confirm a share; then it goes back.
    #[serde(with = "Words")]
    pub shift: Duration,
    /// How long it may be held; then it goes back.
    #[serde(with = "Words")]
    pub held: Duration,
}

impl Default for Outcomes {
    fn default() -> Self {
        Self {
            undecided: Undecided::Rollback,
            no_verdict: Undecided::Rollback,
            warm: Duration::from_secs(1800),
            shift: Duration::from_secs(300),
            held: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// What happens when waiting has an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "one or the other")]
pub enum Undecided {
    /// Go back.
    Rollback,
    /// Hold and page.
    Hold,
}

mod defaults {
    use std::time::Duration;

    pub(super) fn look() -> Duration {
        Duration::from_secs(60)
    }

    pub(super) fn one() -> u32 {
        1
    }

    pub(super) fn hour() -> Duration {
        Duration::from_secs(3600)
    }
}

/// A duration that may be left out.
struct MaybeWords;

impl MaybeWords {
    #[expect(
        clippy::ref_option,
        reason = "the signature that serde's `with` asks for"
    )]
    fn serialize<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => Words::serialize(value, to),
            None => to.serialize_none(),
        }
    }

    fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        Words::deserialize(from).map(Some)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Exposure {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Percent".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "number",
            "description": "A share in per cent, in steps of 0.01.",
            "minimum": 0,
            "maximum": 100
        })
    }
}

fn wrong<T>(path: impl Into<String>, problem: impl Into<String>) -> Result<T, PlanError> {
    Err(PlanError::new(path, problem))
}

impl PlanSpec {
    /// Everything that a type cannot say.
    pub(super) fn check(&self) -> Result<(), PlanError> {
        let inside = |x: f64| x > 0.0 && x < 1.0;
        if !inside(self.alpha) {
            return wrong(
                "alpha",
                format!(
                    "{} is no probability: give a number between 0 and 1, such as 0.05",
                    self.alpha
                ),
            );
        }
        if let Some(pause) = self.pause_alpha
            && !(inside(pause) && pause > self.alpha)
        {
            return wrong(
                "pause_alpha",
                format!(
                    "{pause} must lie between alpha ({}) and 1: a freeze comes before a rollback",
                    self.alpha
                ),
            );
        }
        if let PassSpec::NonInferior { margin, beta } = self.pass
            && !(margin > 0.0 && margin.is_finite() && inside(beta))
        {
            return wrong(
                "pass",
                format!("margin {margin} must be above 0 and beta {beta} between 0 and 1"),
            );
        }
        for (path, value) in [
            ("look_every", self.look_every),
            ("lease.ttl", self.lease.ttl),
            ("lease.renew_every", self.lease.renew_every),
        ] {
            if value < Duration::from_millis(10) {
                return wrong(path, "must be at least 10ms");
            }
        }
        if self.lease.ttl <= self.lease.renew_every.saturating_mul(2) {
            return wrong(
                "lease.ttl",
                "must be more than twice renew_every, or one lost renewal lapses the share",
            );
        }
        self.check_gates()?;
        self.check_limits()?;
        self.check_watch()?;
        self.check_stages()
    }

    fn check_gates(&self) -> Result<(), PlanError> {
        let mut weight = 0.0;
        for (i, gate) in self.gates.iter().enumerate() {
            let path = |field| format!("gates[{i}].{field}");
            self.check_metric(path("metric"), &gate.metric)?;
            if self.gates[..i].iter().any(|g| g.metric == gate.metric) {
                return wrong(
                    path("metric"),
                    format!("{:?} already has a gate", gate.metric),
                );
            }
            if !(gate.weight > 0.0 && gate.weight <= 1.0) {
                return wrong(
                    path("weight"),
                    format!("{} must be above 0 and at most 1", gate.weight),
                );
            }
            if !(gate.margin >= 0.0 && gate.margin.is_finite()) {
                return wrong(
                    path("margin"),
                    format!("{} must be 0 or more: 0.2 tolerates 20 % more", gate.margin),
                );
            }
            if matches!(gate.action, Action::Block) {
                return wrong(
                    path("action"),
                    "\"block\" belongs to pre_flight; a live gate does \"rollback\", \"hold\" or \"warn\"",
                );
            }
            if gate.shares_budget() {
                weight += gate.weight;
            }
        }
        if weight > 1.0 + 1e-9 {
            return wrong(
                "gates",
                format!(
                    "the weights of gates that roll back share one alpha and may sum to at most 1, not {weight}"
                ),
            );
        }
        Ok(())
    }

    /// What is judged beside the gates.
    fn check_limits(&self) -> Result<(), PlanError> {
        for (i, threshold) in self.thresholds.iter().enumerate() {
            let path = |field: &str| format!("thresholds[{i}].{field}");
            self.check_metric(path("metric"), &threshold.metric)?;
            threshold.validate().or_else(|bad| match bad {
                BadGatePlan::Threshold { field, why, .. } => wrong(path(field), why),
                other => wrong(format!("thresholds[{i}]"), other.to_string()),
            })?;
            let same = |t: &LiveThreshold| t.name() == threshold.name();
            if self.thresholds[..i].iter().any(same) {
                let problem = format!(
                    "another threshold is called {:?}: give this one a name of its own",
                    threshold.name()
                );
                let field = if threshold.name.is_some() {
                    "name"
                } else {
                    "metric"
                };
                return wrong(path(field), problem);
            }
        }
        for (i, limit) in self.hard_limits.iter().enumerate() {
            let path = |field: &str| format!("hard_limits[{i}].{field}");
            self.check_metric(path("metric"), &limit.metric)?;
            limit.validate().or_else(|bad| match bad {
                BadGatePlan::HardLimit { field, why, .. } => wrong(path(field), why),
                other => wrong(format!("hard_limits[{i}]"), other.to_string()),
            })?;
            if self.hard_limits[..i]
                .iter()
                .any(|l| l.metric == limit.metric)
            {
                let problem = format!("{:?} already has a hard limit", limit.metric);
                return wrong(path("metric"), problem);
            }
        }
        Ok(())
    }

    fn check_metric(&self, path: String, metric: &str) -> Result<(), PlanError> {
        if self.metrics.contains_key(metric) {
            return Ok(());
        }
        let known = self.metrics.keys().map(String::as_str);
        let list = if self.metrics.is_empty() {
            "none".to_owned()
        } else {
            known.clone().collect::<Vec<_>>().join(", ")
        };
        let problem = format!("{metric:?} is not a metric of this plan; [metrics] has: {list}");
        Err(PlanError::new(path, problem).meaning(metric, known))
    }

    fn check_watch(&self) -> Result<(), PlanError> {
        for (i, watch) in self.watch.iter().enumerate() {
            let path = |field| format!("watch[{i}].{field}");
            if self.watch[..i].iter().any(|w| w.probe == watch.probe) {
                return wrong(path("probe"), format!("{:?} is there already", watch.probe));
            }
            if watch.every < Duration::from_secs(1) {
                return wrong(path("every"), "must be at least 1s");
            }
            if !(1..=100).contains(&watch.of) || watch.fails == 0 || watch.fails > watch.of {
                return wrong(
                    path("fails"),
                    format!(
                        "{} of {}: give 1 to 100 answers, and at least one and at most all of them as failures",
                        watch.fails, watch.of
                    ),
                );
            }
        }
        Ok(())
    }

    fn check_stages(&self) -> Result<(), PlanError> {
        if self.stages.is_empty() {
            return wrong(
                "stages",
                "a plan needs at least one stage: [[stages]] with serve and dwell",
            );
        }
        if !self.watches() && !self.ungated {
            return wrong(
                "gates",
                "nothing would ever send a bad candidate back: add [[gates]], or write ungated = true",
            );
        }
        let mut before = Share::NONE;
        for (i, stage) in self.stages.iter().enumerate() {
            let (serve, control) = (stage.serve.0, stage.control.0);
            if serve < before {
                return wrong(
                    format!("stages[{i}].serve"),
                    format!(
                        "{serve} shrinks: the stage before serves {before}, and whoever is in stays in"
                    ),
                );
            }
            self.check_needs(i, stage)?;
            if control.basis_points() > 5_000
                || control.basis_points() + serve.basis_points() > 10_000
            {
                return wrong(
                    format!("stages[{i}].control"),
                    format!(
                        "{control} is too much: at most 50 %, and no more than the candidate leaves"
                    ),
                );
            }
            if let Some(limit) = stage.limit
                && limit < stage.dwell
            {
                return wrong(
                    format!("stages[{i}].limit"),
                    "is shorter than the dwell: the stage could never pass",
                );
            }
            before = serve;
        }
        Ok(())
    }

    fn check_needs(&self, i: usize, stage: &StageSpec) -> Result<(), PlanError> {
        for (j, metric) in stage.needs.iter().flatten().enumerate() {
            let path = format!("stages[{i}].needs[{j}]");
            if !self.gates.iter().any(|g| g.metric == *metric)
                && !self.thresholds.iter().any(|t| t.metric == *metric)
            {
                return wrong(
                    path,
                    format!("{metric:?} has no gate: add one under [[gates]]"),
                );
            }
            if !self.feeds(stage, metric) {
                let what = if stage.serve.0 == Share::NONE {
                    "the candidate answers no user in this stage"
                } else {
                    "nothing is mirrored in this stage"
                };
                return wrong(path, format!("{metric:?} could never pass: {what}"));
            }
        }
        Ok(())
    }

    /// Whether this stage's exposure lets the threshold be judged: a relative one needs a baseline beside the candidate.
    pub(super) fn judges(&self, stage: &StageSpec, threshold: &LiveThreshold) -> bool {
        let def = self.metrics.get(&threshold.metric);
        let beside = stage.serve.0 < Share::ALL || def.is_some_and(MetricDef::is_mirrored);
        let absolute = matches!(threshold.worse_than, Threshold::Absolute(_));
        self.feeds(stage, &threshold.metric) && (absolute || beside)
    }

    /// Whether anything but alarms, switches and people watches the candidate.
    pub(super) fn watches(&self) -> bool {
        !(self.gates.is_empty() && self.thresholds.is_empty() && self.hard_limits.is_empty())
    }

    /// Whether this stage's exposure gives the metric anything to count.
    pub(crate) fn feeds(&self, stage: &StageSpec, metric: &str) -> bool {
        let share = match self.metrics.get(metric) {
            Some(def) if def.is_mirrored() => stage.mirror,
            _ => stage.serve,
        };
        share.0 > Share::NONE
    }
}
