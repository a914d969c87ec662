//! What a recorder holds, for dashboards and reports.

use super::cell::{self, Totals};
use super::ticket::OutcomeClass;
use crate::router::{Role, VersionSlot};
use llm_rollout::Epoch;
use std::sync::Arc;
use std::time::Duration;

/// Everything that a recorder holds, as of one moment: the last few epochs in full.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Snapshot {
    /// One row for each epoch, role and kind of assignment.
    pub rows: Vec<Row>,
    /// Requests that ended so long after their epoch that they could not be counted there.
    pub late: u64,
    /// Candidate requests whose waiting could not be followed, since too many were waiting at once.
    pub untracked: u64,
}

impl Snapshot {
    /// All rows of a version in a role, as one; none if there are none.
    pub fn version(&self, version: VersionSlot, role: Role) -> Option<Row> {
        let mut rows = self
            .rows
            .iter()
            .filter(|row| row.version == version && row.role == role);
        let mut sum = rows.next()?.clone();
        for row in rows {
            sum.epoch = sum.epoch.max(row.epoch);
            sum.randomised &= row.randomised;
            sum.totals.add(&row.totals);
        }
        Some(sum)
    }
}

/// What was counted of one epoch, role and kind of assignment.
#[derive(Debug, Clone)]
pub struct Row {
    pub(crate) epoch: Epoch,
    pub(crate) role: Role,
    pub(crate) randomised: bool,
    pub(crate) version: VersionSlot,
    pub(crate) flags: Arc<[String]>,
    pub(crate) totals: Totals,
}

impl Row {
    /// The split that the requests were assigned under; of a sum, the newest.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What the requests counted as.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether chance decided: only then are they evidence.
    pub fn randomised(&self) -> bool {
        self.randomised
    }

    /// The version that served them.
    pub fn version(&self) -> VersionSlot {
        self.version
    }

    /// Requests assigned.
    pub fn assigned(&self) -> u64 {
        self.totals.get(cell::ASSIGNED)
    }

    /// Requests with a first token.
    pub fn started(&self) -> u64 {
        self.totals.get(cell::STARTED)
    }

    /// Requests that have ended.
    pub fn finished(&self) -> u64 {
        self.totals.finished()
    }

    /// Requests that ended like this.
    pub fn ended(&self, class: OutcomeClass) -> u64 {
        let early = match class {
            OutcomeClass::ClientCancel => self.cancelled_early(),
            _ => 0,
        };
        self.totals.get(cell::CLASSES + class.index()) + early
    }

    /// Cancels before the first token.
    pub fn cancelled_early(&self) -> u64 {
        self.totals.get(cell::CLASSES + OutcomeClass::EARLY_CANCEL)
    }

    /// Requests that failed by the version's fault.
    pub fn faults(&self) -> u64 {
        OutcomeClass::ALL
            .into_iter()
            .filter(|c| c.is_fault())
            .map(|c| self.ended(c))
            .sum()
    }

    /// Requests on which this flag was raised; none if there is no such flag.
    pub fn flagged(&self, name: &str) -> Option<u64> {
        let index = self.flags.iter().position(|flag| flag == name)?;
        Some(self.totals.get(cell::FLAGS + index))
    }

    /// Output tokens.
    pub fn tokens(&self) -> u64 {
        self.totals.get(cell::TOKENS)
    }

    /// A quantile (0 to 1) of the time to the first token, to 1.6 %, of the requests that had one.
    pub fn first_token(&self, quantile: f64) -> Option<Duration> {
        self.totals.first_token(quantile)
    }

    /// A quantile (0 to 1) of the time from start to end, to 1.6 %.
    pub fn duration(&self, quantile: f64) -> Option<Duration> {
        self.totals.duration(quantile)
    }
}
