//! Conformance suites: run them on implementations of your own (feature `testing`).

pub mod backend;
pub mod evaluator;
pub mod notifier;
pub mod router;
pub mod source;
pub mod store;

use std::fmt;

/// What an implementation did other than its trait demands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {found}")]
pub struct Violation {
    rule: &'static str,
    found: String,
}

impl Violation {
    /// The rule that was broken.
    pub fn rule(&self) -> &'static str {
        self.rule
    }
}

/// `Ok` if it holds; otherwise the rule is broken, and this was found.
fn ensure(rule: &'static str, holds: bool, found: impl fmt::Debug) -> Result<(), Violation> {
    if holds {
        Ok(())
    } else {
        Err(Violation {
            rule,
            found: format!("{found:?}"),
        })
    }
}

/// What it gave; otherwise the rule is broken.
fn accepted<T, E: fmt::Debug>(rule: &'static str, outcome: Result<T, E>) -> Result<T, Violation> {
    outcome.map_err(|e| Violation {
        rule,
        found: format!("{e:?}"),
    })
}
