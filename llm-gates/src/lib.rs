//! What the numbers say: gates, verdicts and sequential tests with a false-alarm bound.
//!
//! - [`decide`]: the decision function of the field over point values.
//! - [`GateTable`]: gates before deployment, each with its criterion and interval.
//! - [`Evidence`]: live evidence under one false-alarm budget for the whole rollout, at any number of looks.
//!
//! Which test for which metric and why: [`guide`].
//!
//! Pure: no clock, no randomness, no environment, no network. What is time is an argument.
#![deny(missing_docs)]
#![expect(
    clippy::doc_markdown,
    clippy::many_single_char_names,
    reason = "formulas read better in the letters of their papers"
)]

pub mod anytime;
mod counts;
pub mod drift;
pub mod fixed;
mod limits;
mod live;
mod moments;
pub mod multiplicity;
mod numbers;
pub mod planner;
pub mod quality;
mod rate_ratio;
mod sketch;
pub mod special;
pub mod spending;
mod table;
mod verdict;

pub use counts::{BadCounts, Counts};
pub use limits::{Breach, Decision, Limit, decide};
pub use live::{
    Arm, Assumed, BadGatePlan, BadWindow, ColdStart, Direction, Evidence, Exposed, GateEvidence,
    GatePlan, HardLimit, HardLimitEvidence, Increment, Judgement, LiveGate, LiveThreshold, Look,
    Noise, PassWhen, Sustained, ThresholdEvidence, Window,
};
pub use moments::Moments;
pub use rate_ratio::{Alternative, BadRateRatio, Grid, RateRatio};
pub use sketch::{BadSketch, Sketch};
pub use table::{
    BadGateTable, Bound, Criterion, GateTable, Measurement, Measurements, Sample, TableGate,
    TableReport, TableRow, Threshold,
};
pub use verdict::{Action, Verdict};

#[doc = include_str!("../docs/guide.md")]
///
/// ## Plots
///
#[doc = include_str!("../docs/evidence.svg")]
#[doc = include_str!("../docs/peeking.svg")]
#[doc = include_str!("../docs/detection.svg")]
#[doc = include_str!("../docs/noise.svg")]
///
#[doc = include_str!("../docs/accuracy.md")]
pub mod guide {}
