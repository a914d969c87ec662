//! What a host brings: the traits that the controller drives, each object-safe and free of third-party client types.
//!
//! Every method may be called again with the same arguments, after a crash or a lost reply: what it brings about is
//! absolute, so that doing it twice has no further effect. No method may wait without an end of its own.

pub use crate::recorder::SliceCounts;
use async_trait::async_trait;
use llm_gates::{Counts, Measurements, Window};
use llm_rollout::incident::Incident;
use llm_rollout::{
    EndpointId, Epoch, Fence, Heartbeat, IntentId, MetricDef, Notice, Order, Position, Probed,
    RouterClock, RouterId, RouterState, Seq, Split, Timestamp,
};
use llm_version_core::{Manifest, Surroundings, VersionId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

/// What to do about an error, rather than what broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the controller must handle each")]
pub enum ErrorKind {
    /// Somebody newer owns the endpoint: stop at once.
    Fenced,
    /// Trying again with the same arguments cannot help.
    Permanent,
    /// Trying again may help. Whether it took effect may be unknown.
    Transient,
}

/// An error of a host component.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of this kind; the message says what was wrong, where, and what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// Trying again may help.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Transient, message)
    }

    /// Trying again cannot help.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Permanent, message)
    }

    /// Somebody newer owns the endpoint.
    pub fn fenced(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Fenced, message)
    }

    /// With its cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// What a host component answers.
pub type Result<T> = std::result::Result<T, Error>;

/// Whether a router does a thing itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(clippy::exhaustive_enums, reason = "a plan depends on each")]
pub enum Support {
    /// It cannot.
    None,
    /// Something beside it does.
    Emulated,
    /// It does.
    Native,
}

/// What a router can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a plan depends on each")]
pub struct RouterCapabilities {
    /// Refuses older fences and positions.
    pub fencing: Support,
    /// Lapses to the baseline by itself.
    pub lease: Support,
}

/// Puts splits into effect on the request path.
///
/// To ensure correctness:
/// - A router orders what it gets by [`Position`]. Older is refused; equal is acknowledged, but never raises or revives a share.
/// - [`Self::observe`] installs the fence first: older fences are refused from then on.
/// - [`llm_rollout::Direction::Back`] sets a mark for its rollout, whatever its position; a marked or latched router refuses
///   `Forward` and `Promote` of that rollout.
/// - Fence, newest position, rollout, baseline, mark and latch are durable before they are acknowledged. A router that starts
///   serves the baseline, says that it has lapsed, and has a new boot.
/// - A share ends at `order.clock.at + lease` on the router's own clock; an order or renewal that arrives later, or carries
///   another boot, is refused. A lapsed router refuses renewals, and a `Forward` whose epoch is not newer.
#[async_trait]
pub trait TrafficRouter: Debug + Send + Sync + 'static {
    /// Its name among the endpoint's routers.
    fn id(&self) -> &RouterId;

    /// What it can do.
    fn capabilities(&self) -> RouterCapabilities;

    /// Installs the fence, then says what is served.
    ///
    /// # Errors
    /// `Fenced` if it has seen a newer fence; `Transient` if it cannot be reached or cannot persist.
    async fn observe(&self, fence: Fence) -> Result<RouterState>;

    /// Carries out an order, and says what is served from then on.
    ///
    /// # Errors
    /// `Fenced` for an older fence; `Permanent` for what it refuses (older position, mark, latch, late, other boot);
    /// `Transient` if it cannot be reached or cannot persist, in which case it may have taken effect.
    async fn set(&self, order: &Order) -> Result<RouterState>;

    /// Prolongs the lease of the split that was set at exactly this position.
    ///
    /// # Errors
    /// As [`Self::set`].
    async fn renew(&self, at: Position, clock: RouterClock) -> Result<RouterState>;
}

/// Where a metric source stood after a read; what it holds is the source's own business.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Cursor(String);

impl Cursor {
    /// From the source's own text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The source's own text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is to be read: the metrics of a plan, for one epoch.
#[derive(Debug, Clone, Copy)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data: hosts write metric sources against it"
)]
pub struct Query<'a> {
    /// What each metric counts.
    pub metrics: &'a BTreeMap<String, MetricDef>,
    /// Only requests that were assigned under this epoch count.
    pub epoch: Epoch,
    /// The version that is being rolled out.
    pub candidate: &'a VersionId,
    /// What it is compared with.
    pub baseline: &'a VersionId,
}

/// What a metric source has seen since the cursor.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data: hosts write metric sources against it"
)]
pub struct Reading {
    /// Disjoint increments since the cursor.
    pub window: Window,
    /// Where the next read goes on.
    pub cursor: Cursor,
    /// What the candidate is doing right now, if the source can tell.
    pub heartbeat: Option<Heartbeat>,
}

/// What one metric has counted of the baseline in past blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data: hosts write metric sources against it"
)]
pub struct Past {
    /// The metric's name.
    pub metric: String,
    /// Blocks of [`Self::BLOCK`], oldest first, without overlap. Of each the requests, and those that count, in two stable groups of the
    /// baseline's replicas; all in the first where replicas are not told apart.
    pub blocks: Vec<[Counts; 2]>,
}

impl Past {
    /// Length of a block.
    pub const BLOCK: Duration = Duration::from_secs(300);
    /// More blocks than these (three days) are of no use.
    pub const MOST: usize = 864;
}

/// Counts what happened.
///
/// A source that has no answer, an answer of NaN, or a stale one returns an error: it never makes up a window.
#[async_trait]
pub trait MetricSource: Debug + Send + Sync + 'static {
    /// Where it stands now: windows begin here. Called once the epoch is confirmed.
    ///
    /// # Errors
    /// `Transient` if it cannot answer now.
    async fn open(&self, query: Query<'_>, now: Timestamp) -> Result<Cursor>;

    /// What has happened since the cursor. A cursor of an earlier life of the source gives an error of kind `Permanent`:
    /// the caller opens anew, and what lies between counts as nothing.
    ///
    /// # Errors
    /// See above; `Transient` if it cannot answer now.
    async fn read(&self, query: Query<'_>, cursor: &Cursor, now: Timestamp) -> Result<Reading>;

    /// What each slice of users that later stages will expose has done in this epoch, while the baseline serves all of them: how much
    /// slices differ by themselves. All counts since the epoch began. Nothing, from a source that does not count slices.
    ///
    /// # Errors
    /// As [`Self::open`].
    async fn slices(&self, _query: Query<'_>) -> Result<Vec<SliceCounts>> {
        Ok(Vec::new())
    }

    /// What the baseline has counted before now, whatever the epoch: how much it varies by itself. Asked once, when a metric is about to
    /// be judged for the first time; three days are enough. Nothing, from a source that keeps no history.
    ///
    /// # Errors
    /// As [`Self::open`]; there is no history then.
    async fn history(&self, _query: Query<'_>, _now: Timestamp) -> Result<Vec<Past>> {
        Ok(Vec::new())
    }
}

/// Loads versions and takes them out of service.
#[async_trait]
pub trait ServingBackend: Debug + Send + Sync + 'static {
    /// Loads and warms up until the version can serve. It is retired only by [`Self::retire`].
    ///
    /// # Errors
    /// `Permanent` if it cannot serve (blocks the rollout); `Transient` is tried again until the plan's deadline.
    async fn prepare(&self, version: &VersionId, at: Position) -> Result<()>;

    /// Scales the version down until it is prepared again; it serves nobody now. A backend that has no way to do so keeps it.
    ///
    /// # Errors
    /// As [`Self::retire`].
    async fn standby(&self, _version: &VersionId, _at: Position) -> Result<()> {
        Ok(())
    }

    /// Whether the version can serve now. `None`: it cannot tell.
    ///
    /// # Errors
    /// `Transient` if it cannot be reached, which says nothing about the version.
    async fn healthy(&self, _version: &VersionId) -> Result<Option<bool>> {
        Ok(None)
    }

    /// Requests that are still running on the version. `None`: it cannot tell, and the drain deadline decides.
    ///
    /// # Errors
    /// `Transient` if it cannot be reached.
    async fn in_flight(&self, version: &VersionId) -> Result<Option<u64>>;

    /// Takes the version out of service; what still runs on it is cut off. Refuses what is older than its newest load or retirement.
    ///
    /// # Errors
    /// `Permanent` if it is refused; `Transient` is tried again.
    async fn retire(&self, version: &VersionId, at: Position) -> Result<()>;
}

/// Measures a candidate before any user sees it.
#[async_trait]
pub trait Evaluator: Debug + Send + Sync + 'static {
    /// What the plan's pre-deployment gates ask for, by metric name; what it cannot measure is left out.
    ///
    /// # Errors
    /// `Permanent` blocks the rollout; `Transient` is tried again until the plan's deadline.
    async fn evaluate(&self, candidate: &VersionId, baseline: &VersionId) -> Result<Measurements>;

    /// The metrics that it measures, if it can tell before it does: a plan whose gates ask for any other is refused when it is submitted.
    fn measures(&self) -> Option<BTreeSet<String>> {
        None
    }
}

/// A notice on its way to people.
#[derive(Debug, Clone, Copy)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data: hosts write notifiers against it"
)]
pub struct Letter<'a> {
    /// Whose rollout it is about.
    pub endpoint: &'a EndpointId,
    /// Unique within the endpoint; the same when it is sent again.
    pub id: IntentId,
    /// What to tell.
    pub notice: &'a Notice,
}

impl Letter<'_> {
    /// Unique among all endpoints, and the same when it is sent again: receivers drop what they have seen.
    pub fn key(&self) -> String {
        format!("{}.{}.{}", self.endpoint, self.notice.rollout, self.id)
    }
}

/// Tells people. A letter may arrive more than once, with the same key.
#[async_trait]
pub trait Notifier: Debug + Send + Sync + 'static {
    /// Tells it.
    ///
    /// # Errors
    /// `Transient` is tried again, `Permanent` is recorded; neither blocks anything.
    async fn notify(&self, letter: &Letter<'_>) -> Result<()>;
}

/// Keeps incident records: a folder, a ticket system. The same record may come more than once.
#[async_trait]
pub trait Incidents: Debug + Send + Sync + 'static {
    /// Keeps it.
    ///
    /// # Errors
    /// `Transient` is tried again, `Permanent` is recorded; neither blocks anything.
    async fn keep(&self, endpoint: &EndpointId, incident: &Incident) -> Result<()>;
}

/// Where manifests are found by version, such as a registry: whether there and back is safe is read from them.
#[async_trait]
pub trait Manifests: Debug + Send + Sync + 'static {
    /// The manifest of a version; `None` if it is not known here.
    ///
    /// # Errors
    /// `Transient` if it cannot be reached.
    async fn manifest(&self, version: &VersionId) -> Result<Option<Manifest>>;

    /// What runs and waits around the endpoint: sessions, consumers, stored vectors, base weights, revoked versions.
    ///
    /// # Errors
    /// `Transient` if it cannot be told.
    async fn surroundings(&self) -> Result<Surroundings> {
        Ok(Surroundings::default())
    }
}

/// Looks after a version in production: a suite of questions, sampled scores, a drift detector. Its name is what plans put under `[[watch]]`.
#[async_trait]
pub trait Probe: Debug + Send + Sync + 'static {
    /// Its name.
    fn name(&self) -> &str;

    /// Looks once.
    ///
    /// # Errors
    /// It could not look, which is neither good nor bad; five times in a row, people are told.
    async fn probe(&self, version: &VersionId) -> Result<Probed>;
}

/// When nothing may advance: release freezes, nights, holidays.
pub trait Calendar: Debug + Send + Sync + 'static {
    /// The first moment at which it may advance again; `None` if it may now.
    fn frozen_until(&self, now: Timestamp) -> Option<Timestamp>;
}

/// Ownership of an endpoint's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data: hosts write stores against it"
)]
pub struct Owned {
    /// The new fence: newer than every one before it on this endpoint.
    pub fence: Fence,
    /// Position of the next entry.
    pub next: Seq,
}

/// A part of an endpoint's log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data: hosts write stores against it"
)]
pub struct Page {
    /// Entries in order, each with its position.
    pub entries: Vec<(Seq, Vec<u8>)>,
    /// Whether there are more.
    pub more: bool,
}

/// Keeps each endpoint's log, and the split that its replicas serve.
///
/// To ensure correctness: fences rise per endpoint, over all its rollouts and for ever; only the newest fence can append, and only
/// at the next position; an append is durable when it returns, entry and split in one commit; what is damaged is an error that names the entry.
#[async_trait]
pub trait StateStore: Debug + Send + Sync + 'static {
    /// Takes ownership: every older fence is refused from then on.
    ///
    /// # Errors
    /// `Transient` if the store cannot be reached.
    async fn acquire(&self, endpoint: &EndpointId) -> Result<Owned>;

    /// Adds an entry at exactly this position and, if given, replaces the split, in one commit.
    ///
    /// # Errors
    /// `Fenced` for an older fence; `Permanent` for another position than the next; `Transient` if the outcome is unknown.
    async fn append(
        &self,
        endpoint: &EndpointId,
        fence: Fence,
        at: Seq,
        entry: &[u8],
        split: Option<&Split>,
    ) -> Result<()>;

    /// Entries from this position on, at most a page. Needs no ownership.
    ///
    /// # Errors
    /// `Permanent` for a damaged entry, named; `Transient` if the store cannot be reached.
    async fn read(&self, endpoint: &EndpointId, from: Seq) -> Result<Page>;

    /// The split that is in force, as of a linearizable read; none before the first.
    ///
    /// # Errors
    /// As [`Self::read`].
    async fn split(&self, endpoint: &EndpointId) -> Result<Option<Split>>;

    /// Somewhere durable for an in-process router, if the store offers it.
    fn router_memory(
        &self,
        endpoint: &EndpointId,
        router: &RouterId,
    ) -> Option<Arc<dyn RouterMemory>>;
}

/// A small durable cell: what an in-process router must remember before it acknowledges. Synchronous, since
/// `force_baseline` is; called on changes of the split, never per request.
pub trait RouterMemory: Debug + Send + Sync + 'static {
    /// What was saved last, if anything.
    ///
    /// # Errors
    /// If it cannot be read or is damaged.
    fn load(&self) -> Result<Option<Vec<u8>>>;

    /// Replaces it; durable when it returns.
    ///
    /// # Errors
    /// If it may not have been saved.
    fn save(&self, record: &[u8]) -> Result<()>;
}

/// Time, for the controller only; nothing on the request path reads it.
#[async_trait]
pub trait Clock: Debug + Send + Sync + 'static {
    /// Milliseconds that do not go back within a process.
    fn now(&self) -> Timestamp;

    /// Waits this long.
    async fn sleep(&self, duration: Duration);
}
