//! Why an endpoint did not do what it was asked.

use crate::host::Error;
use llm_rollout::{BadName, EndpointId, Rejected, RolloutId, RouterId};
use llm_version_core::{Safety, VersionId};
use std::collections::BTreeSet;
use std::time::Duration;

/// Why there is no return.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReturnError {
    /// The version has not been in production within the window.
    #[error("{} is outside the rollback window; inside are: {}", wanted(.to.as_ref()), list(.window))]
    OutsideWindow {
        /// Which version was asked for.
        to: Option<VersionId>,
        /// Newest first.
        window: Vec<VersionId>,
    },
    /// Something must be done first, or nothing helps.
    #[error("going back to {to} is not safe: {safety}")]
    NotSafe {
        /// Which version.
        to: VersionId,
        /// What must be done, or what stands against it.
        safety: Safety,
    },
    /// The manifest of a version is needed to tell, and is not known.
    #[error("there is no manifest of {0}: whether going back is safe cannot be told")]
    NoManifest(VersionId),
    /// A component failed.
    #[error(transparent)]
    Component(#[from] Error),
    /// The rollout was not taken.
    #[error(transparent)]
    Submit(#[from] SubmitError),
}

fn wanted(to: Option<&VersionId>) -> String {
    to.map_or_else(|| "a version of the past".to_owned(), ToString::to_string)
}

fn list(window: &[VersionId]) -> String {
    if window.is_empty() {
        return "none".to_owned();
    }
    let names: Vec<_> = window.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// Why what was said about an endpoint was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdministerError {
    /// There is no such reason against new rollouts.
    #[error("nothing named {0:?} stands against new rollouts")]
    NoSuchBar(String),
    /// No router of that name is registered (or removed).
    #[error("no router {0} is there to remove or restore")]
    NoSuchRouter(RouterId),
    /// The router may still serve a share: it answered not long ago.
    #[error(
        "router {0} may still serve the candidate for {1:?}: wait until its lease has certainly run out"
    )]
    MayServe(RouterId, Duration),
    /// The store cannot be reached; whether it was logged is not known. Saying it again is safe.
    #[error("the store cannot be reached: say it again")]
    StoreUnavailable,
    /// The controller has stopped.
    #[error("the controller has stopped: {0}")]
    Stopped(String),
}

/// Why an endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The endpoint's name is not usable.
    #[error(transparent)]
    Name(#[from] BadName),
    /// A component failed.
    #[error("endpoint {endpoint} could not be opened: {source}")]
    Component {
        /// Which endpoint.
        endpoint: EndpointId,
        /// What failed.
        source: Error,
    },
}

/// Why a rollout was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// Another rollout is in progress: one endpoint has one at a time.
    #[error("rollout {0} is in progress: wait for its end, or abort it")]
    Busy(RolloutId),
    /// Something stands against new rollouts.
    #[error("no new rollout may begin: {0:?} ({1})")]
    Barred(String, String),
    /// Too many wait already.
    #[error("too many rollouts wait for their turn: withdraw one, or replace them")]
    QueueFull,
    /// The rollout cannot be tried again.
    #[error("rollout {0} cannot be tried again: {1}")]
    NothingToRetry(RolloutId, &'static str),
    /// The id is taken by a rollout of another candidate.
    #[error(
        "rollout id {0} belongs to another candidate: ids are unique for ever, choose a new one"
    )]
    OtherCandidate(RolloutId),
    /// There would be no safe way back from the candidate, or none to it.
    #[error("going to {candidate} and back is not safe: there, {there}; back, {back}")]
    NoWayBack {
        /// The candidate.
        candidate: VersionId,
        /// From the version in production to it.
        there: Box<Safety>,
        /// And back.
        back: Box<Safety>,
    },
    /// The manifests that say whether the way back is safe cannot be read.
    #[error("whether the way back is safe cannot be told: {0}")]
    Manifests(String),
    /// The plan wants the version watched by a probe that the endpoint does not have.
    #[error("the plan watches by {0:?}: give the endpoint a probe of that name, or take it out")]
    NoProbe(String),
    /// The plan has pre-deployment gates, and nothing evaluates them.
    #[error("the plan has pre-deployment gates: give the endpoint an evaluator, or take them out")]
    NoEvaluator,
    /// A pre-deployment gate looks at a metric that the evaluator does not measure.
    #[error(
        "a pre-deployment gate looks at {metric:?}, which nothing measures: correct its name (there are {}), or give the endpoint an evaluator for it",
        quoted(.known)
    )]
    NotMeasured {
        /// What the gate looks at.
        metric: String,
        /// What the evaluator measures.
        known: BTreeSet<String>,
    },
    /// A router cannot be trusted with a plan that advances by itself.
    #[error(
        "router {0} offers no fencing or no lease: such a router cannot take part in a rollout"
    )]
    UnsafeRouter(RouterId),
    /// The store cannot be reached; whether the rollout was logged is not known. Submitting the same id again is safe.
    #[error("the store cannot be reached: submit the same id again")]
    StoreUnavailable,
    /// The controller has stopped.
    #[error("the controller has stopped: {0}")]
    Stopped(String),
}

/// Why a command was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The rollout is not the one in progress.
    #[error("rollout {0} is not in progress")]
    NotInProgress(RolloutId),
    /// The rollout waits for its turn: it can only be aborted.
    #[error("rollout {0} waits for its turn: until then it can only be aborted")]
    Queued(RolloutId),
    /// It does not fit.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// Neither logged nor accepted by the routers yet; it is tried again, and may take effect.
    #[error("the store cannot be reached; the command is kept and tried again")]
    StoreUnavailable,
    /// The controller has stopped.
    #[error("the controller has stopped: {0}")]
    Stopped(String),
}

fn quoted(names: &BTreeSet<String>) -> String {
    const MOST: usize = 50;
    let mut out: Vec<_> = names.iter().take(MOST).map(|n| format!("{n:?}")).collect();
    if names.len() > MOST {
        out.push(format!("{} more", names.len() - MOST));
    }
    if out.is_empty() {
        out.push("none".to_owned());
    }
    out.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifty_names_are_listed_and_the_rest_counted() {
        let listed = |n: u32| quoted(&(0..n).map(|i| i.to_string()).collect());
        assert_eq!(listed(0), "none");
        assert_eq!(listed(2), "\"0\", \"1\"");
        assert_eq!(listed(50).matches(", ").count(), 49);
        assert!(listed(51).ends_with(", 1 more"), "{}", listed(51));
    }
}
