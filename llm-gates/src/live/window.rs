//! What a metric source hands over: disjoint increments per arm.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::anytime::Scores;
use crate::fixed::BadSample;
use crate::quality::{Comparisons, Flips};
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
    /// The same questions answered by both arms, graded right or wrong: only the questions on which they disagree tell anything. Margins are relative: 0.1 tolerates 1.1 negative flips for each
    /// positive one.
    Paired(Flips),
    /// Positive amounts of which the mean matters and the tail is heavy (tokens, cost), greater meaning worse. Both arms with one precision. Margins are relative; see
    /// [`crate::anytime::CappedMeans`].
    Amounts {
        /// The candidate's amounts.
        candidate: Sketch,
        /// The baseline's amounts.
        baseline: Sketch,
    },
    /// Counts per category (intent, language, finish reason), 2 to 10,000 categories in one order; any difference of the mix is harm beyond the margin, the factor by which shares may differ. Drift
    /// has no test of no harm, and slices of users do not enter it.
    Categories {
        /// The candidate's counts.
        candidate: Vec<u64>,
        /// The baseline's counts.
        baseline: Vec<u64>,
    },
    /// Vectors of answers or requests, at most 10,000 per arm; any difference of the distributions is harm, so the margin is 0. The first window with two vectors of the baseline only teaches the kernel's
    /// width. Drift has no test of no harm, and slices of users do not enter it.
    Embeddings {
        /// Numbers in each vector, 1 to 65,536.
        dimension: usize,
        /// The candidate's vectors.
        candidate: Vec<Vec<f64>>,
        /// The baseline's vectors.
        baseline: Vec<Vec<f64>>,
    },
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
    /// Values that cannot be, or a margin that the metric's kind cannot have.
    #[error("`{metric}`: {source}")]
    Scores {
        /// The metric.
        metric: String,
        /// What is wrong with them.
        source: BadSample,
    },
    /// A stage that asks for what no test can show.
    #[error(
        "the stage passes on evidence of no harm, and drift of `{metric}` has no test of that: let its gate warn, or the stage pass by `no_evidence_of_harm`"
    )]
    NoTest {
        /// The metric.
        metric: String,
    },
    /// A direction where the increment itself says what is worse.
    #[error(
        "`{metric}` says itself what is worse (losses, negative flips, drift): leave out `direction`"
    )]
    Directed {
        /// The metric.
        metric: String,
    },
    /// The plan's direction is not the one this evidence was gathered in.
    #[error("the gate on `{metric}` turned its direction: a changed plan is a new attempt")]
    Turned {
        /// The metric.
        metric: String,
    },
    /// A threshold on drift.
    #[error("drift of `{metric}` has no value to compare with a threshold: give it a gate")]
    NoValue {
        /// The metric.
        metric: String,
    },
    /// A hard limit on what is no share of requests.
    #[error(
        "`{metric}` is no share of requests, so no hard limit fits it: give it a threshold or a gate"
    )]
    NoShare {
        /// The metric.
        metric: String,
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
