//! Live evidence: what increments of both arms say, at any number of looks, under one false-alarm budget.

mod embedding;
mod evidence;
mod gain;
mod judgement;
mod metric;
mod plan;
mod threshold;
mod window;

pub use evidence::Evidence;
pub use judgement::{Assumed, GateEvidence, Judgement, Look, Noise};
pub use plan::{BadGatePlan, ColdStart, Direction, GatePlan, LiveGate, PassWhen};
pub use threshold::{HardLimit, HardLimitEvidence, LiveThreshold, Sustained, ThresholdEvidence};
pub use window::{Arm, BadWindow, Exposed, Increment, Window};

#[cfg(test)]
mod judgement_tests;
#[cfg(test)]
mod kind_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod threshold_tests;
