//! What a recorder holds, for dashboards and reports.

use super::cell::{self, Totals};
use super::ticket::OutcomeClass;
use crate::router::{Role, Slice, VersionSlot};
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
            sum.slice = sum.slice.filter(|slice| row.slice == Some(*slice));
            sum.totals.add(&row.totals);
        }
        Some(sum)
    }

    /// What the candidate has really got since this epoch began, of everything that was served.
    pub fn realised(&self, epoch: Epoch) -> Realised {
        let mut realised = Realised::default();
        for row in self.rows.iter().filter(|row| row.epoch == epoch) {
            realised.requests += row.assigned();
            realised.tokens += row.tokens();
            if row.role == Role::Candidate {
                realised.candidate_requests += row.assigned();
                realised.candidate_tokens += row.tokens();
            }
        }
        realised
    }
}

/// What the candidate has really got, of requests and of output tokens. A share of requests is not one of tokens: sessions
/// differ, and so do versions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Realised {
    /// Requests assigned, to whomever.
    pub requests: u64,
    /// Those of the candidate.
    pub candidate_requests: u64,
    /// Output tokens of requests that have ended, by whomever.
    pub tokens: u64,
    /// Those of the candidate.
    pub candidate_tokens: u64,
}

impl Realised {
    /// The candidate's part of the requests, 0 to 1; none before the first.
    pub fn request_share(&self) -> Option<f64> {
        (self.requests > 0).then(|| self.candidate_requests as f64 / self.requests as f64)
    }

    /// The candidate's part of the tokens, 0 to 1; none before the first.
    pub fn token_share(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.candidate_tokens as f64 / self.tokens as f64)
    }

    /// What has come since an earlier reading of the same epoch.
    #[must_use]
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            candidate_requests: self
                .candidate_requests
                .saturating_sub(before.candidate_requests),
            tokens: self.tokens.saturating_sub(before.tokens),
            candidate_tokens: self
                .candidate_tokens
                .saturating_sub(before.candidate_tokens),
        }
    }
}

/// What was counted of one epoch, role and kind of assignment.
#[derive(Debug, Clone)]
pub struct Row {
    pub(crate) epoch: Epoch,
    pub(crate) role: Role,
    pub(crate) randomised: bool,
    pub(crate) slice: Option<Slice>,
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

    /// The slice of users that they belong to, where the split counts slices ahead.
    pub fn slice(&self) -> Option<Slice> {
        self.slice
    }

    /// The version that served them.
    pub fn version(&self) -> VersionSlot {
        self.version
    }

    /// Adds what has come to another row since an earlier reading of that row.
    #[cfg(any(feature = "metrics", feature = "opentelemetry"))]
    pub(crate) fn gain(&mut self, now: &Self, before: Option<&Self>) {
        self.totals.gain(&now.totals, before.map(|row| &row.totals));
    }

    /// Times from start to end, to the first token, and per output token.
    #[cfg(any(feature = "metrics", feature = "opentelemetry"))]
    pub(crate) fn heights(&self) -> [super::Heights; 3] {
        self.totals.heights()
    }

    /// Requests assigned.
    pub fn assigned(&self) -> u64 {
        self.totals.get(cell::ASSIGNED)
    }

    /// Requests that have ended with a first token.
    pub fn started(&self) -> u64 {
        self.totals.started()
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
    /// A quantile (0 to 1) of the time per output token after the first, to 1.6 % or 0.1 ms, of replies that came in pieces.
    pub fn per_token(&self, quantile: f64) -> Option<Duration> {
        self.totals.per_token(quantile)
    }

    /// A quantile (0 to 1) of the longest time between two pieces of a reply, to 1.6 %.
    pub fn longest_gap(&self, quantile: f64) -> Option<Duration> {
        self.totals.longest_gap(quantile)
    }
}
