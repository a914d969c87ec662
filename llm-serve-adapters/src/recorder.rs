//! Counts what happens to requests: by epoch, role and outcome, without a lock on the request path.
//!
//! Each thread writes counters of its own; reading sums them up while they go on being written. A [`Ticket`] follows one
//! request from its decision to its end. The [`Recorder`] is a [`crate::host::MetricSource`]: it hands over what has been
//! counted since a cursor, of requests that chance assigned; pins, retries and the like are counted apart.
//!
//! Memory: about 25 KB for each thread, role and epoch in use, the last four epochs; 24 bytes for each thread and
//! version; 32 KB for the candidate requests that wait for a first token, 4 096 at the most. A thread keeps the counters of
//! its first four recorders until it ends, even when a recorder is gone.

mod cell;
mod exemplars;
mod histogram;
mod history;
#[cfg(all(test, loom_check))]
mod interleavings;
mod labels;
mod shard;
mod snapshot;
mod source;
#[cfg(test)]
mod tests;
mod ticket;
mod waiting;

pub use self::exemplars::{Exemplar, Exemplars};
#[cfg(any(feature = "metrics", feature = "opentelemetry"))]
pub(crate) use self::histogram::Heights;
pub(crate) use self::labels::Cohorts;
pub use self::labels::{LabelSum, Labels, NotLabelled};
pub use self::snapshot::{Realised, Row, Snapshot};
pub use self::source::SliceCounts;
pub use self::ticket::{Outcome, OutcomeClass, Ticket};

use self::cell::FLAG_COUNT;
use self::shard::{Registry, Shard};
use crate::host::{Error, Result};
use crate::router::{Decision, VersionSlot};
use llm_rollout::{Epoch, Timestamp};
use llm_version_core::VersionId;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::marker::PhantomData;
use std::sync::Arc;

/// Counts what happens to requests. One for each endpoint of a process.
#[derive(Debug)]
pub struct Recorder {
    registry: Arc<Registry>,
    /// Differs for every recorder: its counts begin at zero.
    boot: u64,
    overload_is_fault: bool,
    past: history::Ring,
}

impl Recorder {
    /// The most flags that a recorder knows.
    pub const MAX_FLAGS: usize = FLAG_COUNT;

    /// A recorder with these flags: what a host may raise on a request (a failed check, a thumbs-down).
    ///
    /// # Errors
    /// More than [`Self::MAX_FLAGS`], an empty name, or a name twice.
    pub fn new<I: IntoIterator<Item = S>, S: Into<String>>(flags: I) -> Result<Self> {
        let flags = flags
            .into_iter()
            .take(FLAG_COUNT + 1)
            .map(Into::into)
            .collect::<Vec<String>>();
        if flags.len() > FLAG_COUNT {
            return Err(Error::permanent(format!(
                "a recorder knows at most {FLAG_COUNT} flags"
            )));
        }
        for (i, flag) in flags.iter().enumerate() {
            if flag.is_empty() || flags[..i].contains(flag) {
                return Err(Error::permanent(format!(
                    "flag {flag:?} is empty or there twice"
                )));
            }
        }
        let boot = RandomState::new().hash_one("recorder");
        Ok(Self {
            registry: Registry::new(flags),
            boot,
            overload_is_fault: false,
            past: history::Ring::default(),
        })
    }

    /// Counts overload as the version's fault: right where the load is within the declared capacity.
    #[must_use]
    pub fn overload_is_fault(mut self, yes: bool) -> Self {
        self.overload_is_fault = yes;
        self
    }

    /// Its flags, in order: bit 0 of [`Ticket::raise`] is the first.
    pub fn flags(&self) -> &[String] {
        &self.registry.flags
    }

    /// A request begins. Without lock, clock or (once the thread is warm) allocation.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    pub fn begin(&self, decision: Decision, now: Timestamp) -> Ticket {
        Ticket::begin(&self.registry, decision, now)
    }

    /// This thread's counters, in hand: for hosts that stay on a thread (a worker loop, one runtime for each core), which then
    /// need not look for them with every request. It cannot leave the thread.
    ///
    /// ```
    /// # use llm_serve_adapters::{DataPlane, recorder::OutcomeClass, router::Key};
    /// # fn worker(plane: &DataPlane, requests: &[&[u8]]) {
    /// let local = plane.recorder.local();
    /// for session in requests {
    ///     let now = plane.router.now();
    ///     let mut ticket = local.begin(plane.router.decide(&Key::session(session), now), now);
    ///     // ... the reply ...
    ///     ticket.first_token(plane.router.now());
    ///     local.finish(ticket, OutcomeClass::Ok, plane.router.now());
    /// }
    /// # }
    /// ```
    pub fn local(&self) -> Local {
        let shard = shard::own(self.registry.recorder);
        Local {
            // A thread that is ending has none any more.
            shard: shard.unwrap_or_else(|| self.registry.add()),
            here: PhantomData,
        }
    }

    /// Requests that are running on a version, whatever split they were assigned under.
    pub fn in_flight(&self, version: &VersionId) -> u64 {
        let Some(slot) = VersionSlot::find(version) else {
            return 0;
        };
        match self.registry.load(slot) {
            Ok((begun, ended, _)) => begun.saturating_sub(ended),
            // Nobody can tell right now: something may be running.
            Err(_) => 1,
        }
    }

    /// Everything that it holds.
    ///
    /// # Errors
    /// `Transient`: a recording thread was interrupted in the middle of a write.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let totals = self
            .registry
            .totals(None)
            .map_err(|e| Error::transient(e.to_string()).because(e))?;
        let row =
            |((epoch, kind), (about, totals)): ((u64, shard::Kind), (Decision, cell::Totals))| {
                Row {
                    epoch: Epoch::new(epoch),
                    role: kind.role(),
                    randomised: kind.randomised(),
                    slice: kind.slice(),
                    version: about.slot(),
                    flags: Arc::clone(&self.registry.flags),
                    totals,
                }
            };
        Ok(Snapshot {
            rows: totals.into_iter().map(row).collect(),
            late: self.registry.late(),
            untracked: self.registry.waiting.untracked(),
        })
    }
}

/// One thread's counters of a recorder, in hand: see [`Recorder::local`].
pub struct Local {
    shard: Arc<Shard>,
    /// Only the thread that they belong to writes them.
    here: PhantomData<*const ()>,
}

impl Local {
    /// As [`Recorder::begin`].
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    pub fn begin(&self, decision: Decision, now: Timestamp) -> Ticket {
        Ticket::begin_on(&self.shard, decision, now)
    }

    /// As [`Ticket::finish`], for tickets of the same recorder (any other ticket is finished as ever).
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    pub fn finish(&self, ticket: Ticket, outcome: impl Into<Outcome>, now: Timestamp) {
        ticket.finish_on(&self.shard, outcome.into(), now);
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").finish_non_exhaustive()
    }
}

impl Decision {
    /// The request begins: see [`Recorder::begin`].
    #[inline]
    pub fn begin(self, recorder: &Recorder, now: Timestamp) -> Ticket {
        recorder.begin(self, now)
    }
}
