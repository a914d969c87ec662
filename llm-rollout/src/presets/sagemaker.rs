//! The blue-green deployments of Amazon `SageMaker`, as plans, with its limits.
//!
//! What differs on purpose: that no alarm watches is written in the plan (`ungated = true`) instead of going unsaid.

use super::{Gates, linear, share, stage};
use crate::plan::Exposure;
use crate::{Finish, Plan, PlanError, Response, Share, StageSpec};
use std::time::Duration;

/// How traffic moves to the new fleet.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "plain data that hosts write as literals"
)]
pub enum Shift {
    /// All of it.
    AllAtOnce,
    /// A part of this size in per cent, at most 50, then the rest.
    Canary(f64),
    /// In steps of 10 to 50 per cent.
    Linear(f64),
    /// In batches of 5 to 50 per cent of the fleet.
    Rolling(f64),
}

/// A deployment.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
pub struct Deployment {
    /// How traffic moves.
    pub shift: Shift,
    /// Baking after each move, at most an hour.
    pub wait: Duration,
    /// How long the old fleet stays after the last, at most an hour.
    pub termination_wait: Duration,
    /// How long all of it may take: 10 minutes to 8 hours, and more than all waits.
    pub max_execution: Duration,
    /// Alarms that send the new fleet back.
    pub alarms: Vec<String>,
}

impl Deployment {
    /// With the longest execution time and no waits.
    pub const fn new(shift: Shift) -> Self {
        Self {
            shift,
            wait: Duration::ZERO,
            termination_wait: Duration::ZERO,
            max_execution: Duration::from_secs(28_800),
            alarms: Vec::new(),
        }
    }
}

/// What the platform does not allow.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// A share outside its limits.
    #[error("{what} of {percent} %: must be {least} to {most} %")]
    Percent {
        /// Of what.
        what: &'static str,
        /// What was asked for.
        percent: f64,
        /// The least.
        least: f64,
        /// The most.
        most: f64,
    },
    /// A time outside its limits.
    #[error("{what} of {} s: must be {} to {} s", .time.as_secs(), .least.as_secs(), .most.as_secs())]
    Time {
        /// Of what.
        what: &'static str,
        /// What was asked for.
        time: Duration,
        /// The least.
        least: Duration,
        /// The most.
        most: Duration,
    },
    /// The waits alone take longer than everything may.
    #[error("the waits take {} s, max_execution is {} s: it must be more", .waits.as_secs(), .max_execution.as_secs())]
    TooLittleTime {
        /// All waits.
        waits: Duration,
        /// What was allowed.
        max_execution: Duration,
    },
    /// More or fewer than one shadow variant.
    #[error("{0} shadow variants: a shadow test has exactly one")]
    ShadowVariants(usize),
    /// The plan makes no sense otherwise.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

fn percent(what: &'static str, percent: f64, least: f64, most: f64) -> Result<f64, Refused> {
    if (least..=most).contains(&percent) {
        Ok(percent)
    } else {
        Err(Refused::Percent {
            what,
            percent,
            least,
            most,
        })
    }
}

fn time(what: &'static str, time: Duration, least: u64, most: u64) -> Result<Duration, Refused> {
    let (least, most) = (Duration::from_secs(least), Duration::from_secs(most));
    if (least..=most).contains(&time) {
        Ok(time)
    } else {
        Err(Refused::Time {
            what,
            time,
            least,
            most,
        })
    }
}

impl Deployment {
    /// The plan. Each alarm rolls back until the old fleet is gone.
    ///
    /// # Errors
    /// A limit of the platform, by name.
    pub fn plan(&self, mut gates: Gates) -> Result<Plan, Refused> {
        let shares = match self.shift {
            Shift::AllAtOnce => vec![Share::ALL],
            Shift::Canary(size) => vec![
                share("canary", percent("a canary", size, 1.0, 50.0)?)?,
                Share::ALL,
            ],
            Shift::Linear(step) => linear(percent("a linear step", step, 10.0, 50.0)?, 100.0)?,
            Shift::Rolling(batch) => linear(percent("a rolling batch", batch, 5.0, 50.0)?, 100.0)?,
        };
        let wait = time("a wait", self.wait, 0, 3600)?;
        let bake = time("a termination wait", self.termination_wait, 0, 3600)?;
        let limit = time("max_execution", self.max_execution, 600, 28_800)?;
        let moves = u32::try_from(shares.len()).unwrap_or(u32::MAX);
        let waits = wait.saturating_mul(moves).saturating_add(bake);
        if waits >= limit {
            return Err(Refused::TooLittleTime {
                waits,
                max_execution: limit,
            });
        }
        let alarms = self.alarms.iter().cloned();
        gates
            .triggers
            .alarms
            .extend(alarms.map(|a| (a, Response::Rollback)));
        let stages = shares
            .into_iter()
            .map(|s| StageSpec {
                limit: Some(limit),
                ..stage(s, wait)
            })
            .collect();
        Ok(gates.plan(stages, Finish::Promote, bake).try_into()?)
    }
}

/// A shadow test: one shadow variant, 0 to 100 % of the requests, at most 30 days; then the shadow is taken out.
///
/// # Errors
/// A limit of the platform, by name.
pub fn shadow(
    gates: Gates,
    variants: &[&str],
    sampling: f64,
    duration: Duration,
) -> Result<Plan, Refused> {
    if variants.len() != 1 {
        return Err(Refused::ShadowVariants(variants.len()));
    }
    let mirror = share("sampling", percent("a sampling", sampling, 0.0, 100.0)?)?;
    let dwell = time("a shadow test", duration, 0, 30 * 24 * 3600)?;
    let stages = vec![StageSpec {
        mirror: Exposure(mirror),
        ..stage(Share::NONE, dwell)
    }];
    Ok(gates
        .plan(stages, Finish::Return, Duration::ZERO)
        .try_into()?)
}
