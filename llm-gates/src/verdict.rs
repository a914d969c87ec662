//! What a gate says and what failing it does.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the evidence says about a gate. A source that could not answer is an error, never a verdict.
#[expect(
    clippy::exhaustive_enums,
    reason = "a fourth verdict would change what every host must do"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// There is evidence of no harm beyond what the gate tolerates, or the gate asked for no evidence and has enough samples.
    Pass,
    /// Too little data to say.
    Inconclusive,
    /// There is evidence of harm beyond what the gate tolerates.
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pass => "pass",
            Self::Inconclusive => "inconclusive",
            Self::Fail => "fail",
        })
    }
}

/// What failing a gate does.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The rollout never starts (gates before deployment only).
    Block,
    /// The candidate is taken out of traffic. The only action that is absorbing.
    Rollback,
    /// The rollout does not advance while the gate fails.
    Hold,
    /// Somebody is told; nothing else happens.
    Warn,
}

impl Action {
    /// How grave the action is: 0 warn, 1 hold, 2 rollback, 3 block.
    pub const fn severity(self) -> u8 {
        match self {
            Self::Warn => 0,
            Self::Hold => 1,
            Self::Rollback => 2,
            Self::Block => 3,
        }
    }

    /// The graver of two actions, where there are any.
    pub(crate) fn worse(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        match (a, b) {
            (Some(x), Some(y)) => Some(if x.severity() >= y.severity() { x } else { y }),
            (x, y) => x.or(y),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Block => "block",
            Self::Rollback => "rollback",
            Self::Hold => "hold",
            Self::Warn => "warn",
        })
    }
}

/// Whether a unit is 1 to 32 characters that can be shown.
pub(crate) fn is_unit(unit: &str) -> bool {
    (1..=32).contains(&unit.chars().count()) && !unit.chars().any(char::is_control)
}
