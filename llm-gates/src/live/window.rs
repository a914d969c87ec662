//! What a metric source hands over: disjoint increments per arm.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::anytime::Scores;
use crate::fixed::BadSample;
use crate::quality::Comparisons;
use crate::{BadCounts, BadGatePlan, BadSketch, Counts, Sketch};

/// What one metric gained in one window, per arm.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Increment {
    /// Requests, and those among them for which the event (an error, a refusal, a slow reply) happened.
    Binary {
        /// The candidate's gain.
        candidate: Counts,
        /// The gain of the baseline, or of the control arm where there is one.
        baseline: Counts,
    },
    /// The same, with the baseline's replicas in two stable groups: what differs between the groups is noise, and [`crate::Evidence::learn`] learns it from their history.
    Grouped {
        /// The candidate's gain.
        candidate: Counts,
        /// The gains of both groups of the baseline.
        baseline: [Counts; 2],
    },
    /// Events in exposure (replica-seconds, tokens), which may be more than one per unit.
    Events {
        /// The candidate's gain.
        candidate: Exposed,
        /// The baseline's gain.
        baseline: Exposed,
    },
    /// Positive values of which the distribution matters, greater meaning worse: latencies, time to first token. Both arms with one precision. Margins are relative.
    Latency {
        /// The candidate's values.
        candidate: Sketch,
        /// The baseline's values.
        baseline: Sketch,
    },
    /// Scores in [0, 1], greater meaning worse; margins are absolute differences of the means, below 1.
    Scores {
        /// The candidate's scores.
        candidate: Scores,
        /// The baseline's scores.
        baseline: Scores,
    },
    /// Answers of both arms compared in pairs; margins are absolute differences between the shares of losses and of wins, below 1.
    Compared(Comparisons),
}

/// Events that happened in some exposure.
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Exposed {
    /// How many events.
    pub events: u64,
    /// In how much exposure, in a unit that both arms share; finite and not negative. Whole units count as samples: choose one of which a window holds many (replica-seconds rather than
    /// replica-days).
    pub exposure: f64,
}

/// Increments of all metrics between two instants. Windows must be disjoint; a lost window counts as nothing.
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// The stage's epoch: observations of an older one are refused.
    pub epoch: u64,
    /// Start, milliseconds since the Unix epoch; belongs to the window.
    pub from: u64,
    /// End, milliseconds since the Unix epoch; belongs to the next window.
    pub to: u64,
    /// Gains by metric; metrics without a gate are checked and otherwise ignored.
    pub metrics: BTreeMap<String, Increment>,
}

/// One side of a comparison.
#[expect(clippy::exhaustive_enums, reason = "a comparison has two sides")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arm {
    /// The version being rolled out.
    Candidate,
    /// The version in production, or its control arm.
    Baseline,
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Candidate => "candidate",
            Self::Baseline => "baseline",
        })
    }
}

/// Why a window was refused. The evidence is as it was before.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Error)]
pub enum BadWindow {
    /// The plan makes no test.
    #[error("the gate plan makes no test: {0}")]
    Plan(#[from] BadGatePlan),
    /// The plan's null hypothesis is not the one this evidence was gathered against.
    #[error(
        "the gate on `{metric}` now tolerates a ratio of {now} where its evidence was gathered against {then}: a changed plan is a new attempt"
    )]
    PlanChanged {
        /// The metric.
        metric: String,
        /// The tolerated ratio of the saved evidence.
        then: f64,
        /// The tolerated ratio of the plan.
        now: f64,
    },
    /// The window belongs to an older stage.
    #[error("the window is of epoch {got}, and epoch {current} has begun: drop it")]
    OldEpoch {
        /// The newest epoch seen.
        current: u64,
        /// The window's epoch.
        got: u64,
    },
    /// The window ends before or where it starts.
    #[error(
        "the window ends at {to}, not after its start {from}: windows are half-open and not empty"
    )]
    NoTime {
        /// Start, ms.
        from: u64,
        /// End, ms.
        to: u64,
    },
    /// Part of the window, or all of it, has been counted.
    #[error(
        "the window starts at {from}, and everything before {end} has been counted: send each increment once, in order"
    )]
    Overlap {
        /// End of the last counted window, ms.
        end: u64,
        /// Start of this window, ms.
        from: u64,
    },
    /// A gated metric is not in the window.
    #[error(
        "the window lacks the gated metric `{metric}`: a source that cannot answer reports an error instead of a window"
    )]
    Missing {
        /// The metric.
        metric: String,
    },
    /// The metric changed its kind.
    #[error(
        "`{metric}` is of another kind than in the windows before: a metric keeps its kind for the whole attempt"
    )]
    Kind {
        /// The metric.
        metric: String,
    },
    /// Scores that cannot be, or a margin that scores cannot have.
    #[error("`{metric}`: {source}")]
    Scores {
        /// The metric.
        metric: String,
        /// What is wrong with them.
        source: BadSample,
    },
    /// Sketches that cannot be compared.
    #[error("`{metric}`: {source}")]
    Sketch {
        /// The metric.
        metric: String,
        /// What is wrong with them.
        source: BadSketch,
    },
    /// History that comes after the first window, or without a gate.
    #[error("history of `{metric}` {why}")]
    History {
        /// The metric.
        metric: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Counts that cannot be.
    #[error("`{metric}` of the {arm}: {source}")]
    Counts {
        /// The metric.
        metric: String,
        /// Whose counts.
        arm: Arm,
        /// What is wrong with them.
        source: BadCounts,
    },
}
