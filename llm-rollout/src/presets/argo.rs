//! The strategies of Argo Rollouts, as plans.
//!
//! What differs on purpose: gates watch every stage and not only the analysis steps; a candidate that went back is always retired;
//! a pause without an end is bounded by `outcomes.held`.

use super::{Gates, share, stage};
use crate::plan::{Exposure, Undecided};
use crate::{Advance, Finish, Plan, PlanError, PlanSpec, Share, StageSpec};
use std::time::Duration;

/// A step of a canary.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "plain data that hosts write as literals"
)]
pub enum Step {
    /// The candidate's share from here on, in per cent.
    SetWeight(f64),
    /// Wait for this long, or for a person.
    Pause(Option<Duration>),
    /// Go on only if these gates pass.
    Analysis(Analysis),
}

/// An analysis run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
pub struct Analysis {
    /// The metrics whose gates must pass.
    pub metrics: Vec<String>,
    /// How long it measures.
    pub takes: Duration,
}

/// A canary: steps in order, then everybody.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
pub struct Canary {
    /// The steps.
    pub steps: Vec<Step>,
    /// How long anything but a pause or an analysis may take (600 s there).
    pub progress_deadline: Duration,
    /// After going back: how long requests in flight may run on before the candidate is taken down (30 s there).
    pub abort_scale_down_delay: Duration,
    /// After promotion: how long the old version stays up (30 s there).
    pub scale_down_delay: Duration,
}

impl Canary {
    /// These steps, with the peer's defaults.
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
            progress_deadline: Duration::from_secs(600),
            abort_scale_down_delay: Duration::from_secs(30),
            scale_down_delay: Duration::from_secs(30),
        }
    }

    /// The plan. Each pause and each analysis is a stage at the weight set before it; a weight that neither follows is a stage
    /// of its own.
    ///
    /// # Errors
    /// A weight shrinks or is none, an analysis names a metric without a gate, or one that its weight cannot feed.
    pub fn plan(&self, gates: Gates) -> Result<Plan, PlanError> {
        let mut stages = Vec::new();
        let (mut weight, mut open) = (Share::NONE, false);
        for (i, step) in self.steps.iter().enumerate() {
            let last = match step {
                Step::SetWeight(percent) => {
                    if open {
                        stages.push(bare(weight, Duration::ZERO));
                    }
                    weight = share(&format!("steps[{i}]"), *percent)?;
                    open = true;
                    continue;
                }
                Step::Pause(Some(time)) => bare(weight, *time),
                Step::Pause(None) => StageSpec {
                    advance: Advance::Manual,
                    ..bare(weight, Duration::ZERO)
                },
                Step::Analysis(analysis) => analysed(weight, analysis),
            };
            stages.push(last);
            open = false;
        }
        if open {
            stages.push(bare(weight, Duration::ZERO));
        }
        if stages.is_empty() {
            stages.push(bare(Share::ALL, Duration::ZERO));
        }
        let mut spec = gates.plan(stages, Finish::Promote, self.scale_down_delay);
        deadlines(
            &mut spec,
            self.progress_deadline,
            self.abort_scale_down_delay,
        );
        spec.try_into()
    }

    /// The step, from 0, that a stage of the plan ends with; past the last, their number.
    pub fn step_of(&self, stage: usize) -> usize {
        let ends = |i: &usize| {
            !matches!(self.steps.get(*i), Some(Step::SetWeight(_)))
                || matches!(self.steps.get(i + 1), Some(Step::SetWeight(_)) | None)
        };
        (0..self.steps.len())
            .filter(ends)
            .nth(stage)
            .unwrap_or(self.steps.len())
    }
}

/// How a blue-green switch goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "plain data that hosts write as literals"
)]
pub enum Promotion {
    /// As soon as the analysis before it has passed, and not before this time.
    After(Duration),
    /// When a person says so.
    Manual,
}

/// Blue-green: a preview beside the active version, an analysis, the switch, another analysis, promotion.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
pub struct BlueGreen {
    /// What lets it switch.
    pub promotion: Promotion,
    /// The analysis before the switch. No user is on the preview, so it compares mirrored answers.
    pub before: Option<Analysis>,
    /// Share of the requests, in per cent, that is mirrored to the preview.
    pub mirror: f64,
    /// The analysis after the switch.
    pub after: Option<Analysis>,
    /// As [`Canary::abort_scale_down_delay`].
    pub abort_scale_down_delay: Duration,
    /// As [`Canary::scale_down_delay`]; for this long a return is one split.
    pub scale_down_delay: Duration,
}

impl Default for BlueGreen {
    fn default() -> Self {
        Self {
            promotion: Promotion::After(Duration::ZERO),
            before: None,
            mirror: 0.0,
            after: None,
            abort_scale_down_delay: Duration::from_secs(30),
            scale_down_delay: Duration::from_secs(30),
        }
    }
}

impl BlueGreen {
    /// The plan: the preview, then 100 %.
    ///
    /// # Errors
    /// An analysis names a metric without a gate; before the switch, one that is not mirrored, or nothing is mirrored.
    pub fn plan(&self, gates: Gates) -> Result<Plan, PlanError> {
        let (wait, advance) = match self.promotion {
            Promotion::After(wait) => (wait, Advance::Auto),
            Promotion::Manual => (Duration::ZERO, Advance::Manual),
        };
        let preview = match &self.before {
            Some(analysis) => analysed(
                Share::NONE,
                &Analysis {
                    takes: analysis.takes.max(wait),
                    ..analysis.clone()
                },
            ),
            None => bare(Share::NONE, wait),
        };
        let active = match &self.after {
            Some(analysis) => analysed(Share::ALL, analysis),
            None => bare(Share::ALL, Duration::ZERO),
        };
        let preview = StageSpec {
            advance,
            mirror: Exposure(share("mirror", self.mirror)?),
            ..preview
        };
        let mut spec = gates.plan(
            vec![preview, active],
            Finish::Promote,
            self.scale_down_delay,
        );
        deadlines(
            &mut spec,
            Duration::from_secs(600),
            self.abort_scale_down_delay,
        );
        spec.try_into()
    }
}

/// Whether a return from the version in production to an older one skips every step: versions by age, the oldest first; the target is
/// older, and fewer than the window lie strictly between.
pub fn is_within_window<T: PartialEq>(
    history: &[T],
    stable: &T,
    target: &T,
    window: usize,
) -> bool {
    let age = |version: &T| history.iter().position(|v| v == version);
    match (age(target), age(stable)) {
        (Some(target), Some(stable)) if target < stable => stable - target - 1 < window,
        _ => false,
    }
}

/// A stage that time or a person ends, whatever the gates have not shown yet.
fn bare(weight: Share, dwell: Duration) -> StageSpec {
    StageSpec {
        needs: Some(Vec::new()),
        ..stage(weight, dwell)
    }
}

fn analysed(weight: Share, analysis: &Analysis) -> StageSpec {
    StageSpec {
        needs: Some(analysis.metrics.clone()),
        ..stage(weight, analysis.takes)
    }
}

/// Only shifts have a deadline; an analysis without a verdict pauses, once it has had twice its time.
fn deadlines(spec: &mut PlanSpec, progress: Duration, drain: Duration) {
    spec.recovery.drain = drain;
    spec.outcomes.warm = progress;
    spec.outcomes.shift = progress;
    spec.outcomes.undecided = Undecided::Hold;
    spec.outcomes.held = Duration::from_secs(365 * 24 * 3600);
    for stage in &mut spec.stages {
        stage.limit = Some(stage.dwell.saturating_mul(2).saturating_add(progress));
    }
}
