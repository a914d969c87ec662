//! The endpoint: what a host opens, and the handles it gets.

mod error;

pub use error::{AdministerError, CommandError, OpenError, ReturnError, SubmitError};

use crate::DataPlane;
use crate::clock::SystemClock;
use crate::controller::{Administer, Controller, Message, Parts, Wanted, What};
use crate::host::{
    Calendar, Clock, Error, ErrorKind, Evaluator, Incidents, Manifests, MetricSource, Notifier,
    Probe, ServingBackend, StateStore, TrafficRouter,
};
use crate::joined::Joined;
use crate::journal::{End, Entry, Ledger};
use crate::recorder::{Labels, Recorder};
use crate::router::InProcessRouter;
use crate::shadow::Shadow;
use llm_rollout::incident::Incident;
use llm_rollout::{
    Alarm, Command, EndpointId, Epoch, Fence, Phase, Plan, Rollout, RolloutId, RouterId, Seq,
    Split, Verb,
};
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// The version that serves before there has been any rollout: used the very first time, ignored ever after.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a wrapper")]
pub struct Bootstrap(pub VersionId);

/// What a new rollout does where it cannot begin at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there is nothing else to do")]
pub enum Supersede {
    /// It is refused.
    #[default]
    Reject,
    /// It waits for its turn.
    Queue,
    /// Whoever waits is withdrawn, and the rollout in progress goes back; one that is promoted already ends its baking.
    Replace,
}

/// A return to a version that was in production before.
#[derive(Debug, Clone)]
#[expect(clippy::exhaustive_structs, reason = "plain data, given by hosts")]
pub struct Return {
    /// Which version; none for the one that was in production last.
    pub to: Option<VersionId>,
    /// The steps that make it safe, if there are any, have been taken.
    pub steps_taken: bool,
}

impl Return {
    /// To the version that was in production last.
    pub fn last() -> Self {
        Self {
            to: None,
            steps_taken: false,
        }
    }
}

/// What an endpoint is doing, as last logged.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Status {
    /// The fence under which this controller acts.
    pub fence: Fence,
    /// What the log adds up to: the version in production, the rollout in progress, how earlier ones ended.
    pub ledger: Arc<Ledger>,
    /// Why the controller has stopped, if it has: a newer one owns the endpoint, or the log is damaged.
    pub stopped: Option<Arc<Error>>,
}

/// Builds an [`Endpoint`].
#[derive(Debug)]
pub struct EndpointBuilder {
    name: String,
    store: Arc<dyn StateStore>,
    bootstrap: VersionId,
    routers: Vec<Arc<dyn TrafficRouter>>,
    source: Option<Arc<dyn MetricSource>>,
    shadows: BTreeMap<String, Shadow>,
    labels: Option<Arc<Labels>>,
    backend: Option<Arc<dyn ServingBackend>>,
    evaluator: Option<Arc<dyn Evaluator>>,
    notifiers: Vec<Arc<dyn Notifier>>,
    incidents: Option<Arc<dyn Incidents>>,
    calendar: Option<Arc<dyn Calendar>>,
    manifests: Option<Arc<dyn Manifests>>,
    probes: Vec<Arc<dyn Probe>>,
    window: usize,
    clock: Option<Arc<dyn Clock>>,
    boot: Option<u64>,
    flags: Vec<String>,
}

/// Ways back that are offered unless the host says otherwise.
const WINDOW: usize = 3;

impl EndpointBuilder {
    /// Registers a router beside the in-process one: a rollout is confirmed only when all of them are.
    #[must_use]
    pub fn router(mut self, router: impl TrafficRouter) -> Self {
        self.routers.push(Arc::new(router));
        self
    }

    /// Reads metrics from here, instead of the in-process recorder.
    #[must_use]
    pub fn source(mut self, source: impl MetricSource) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// Judges the plan's metrics `{ pair = "name" }` by this shadow's comparisons, beside whatever the source counts. One for each name.
    #[must_use]
    pub fn shadow(mut self, name: impl Into<String>, shadow: &Shadow) -> Self {
        self.shadows.insert(name.into(), shadow.clone());
        self
    }

    /// Judges the plan's metrics `{ label = "name" }` and `{ unlabelled = "name" }` by these labels, beside whatever the source counts.
    /// The host tells them which requests have ended, and what is said about them.
    #[must_use]
    pub fn labels(mut self, labels: &Arc<Labels>) -> Self {
        self.labels = Some(Arc::clone(labels));
        self
    }

    /// Loads, drains and retires versions. Without one, the host keeps every version loaded.
    #[must_use]
    pub fn backend(mut self, backend: impl ServingBackend) -> Self {
        self.backend = Some(Arc::new(backend));
        self
    }

    /// Measures candidates for the pre-deployment gates.
    #[must_use]
    pub fn evaluator(mut self, evaluator: impl Evaluator) -> Self {
        self.evaluator = Some(Arc::new(evaluator));
        self
    }

    /// Tells people; more than one is fine.
    #[must_use]
    pub fn notifier(mut self, notifier: impl Notifier) -> Self {
        self.notifiers.push(Arc::new(notifier));
        self
    }

    /// Keeps the incident record of every rollout that was rolled back or blocked.
    #[must_use]
    pub fn incidents(mut self, incidents: impl Incidents) -> Self {
        self.incidents = Some(Arc::new(incidents));
        self
    }

    /// Freezes: nothing advances while the calendar says so.
    #[must_use]
    pub fn calendar(mut self, calendar: impl Calendar) -> Self {
        self.calendar = Some(Arc::new(calendar));
        self
    }

    /// Finds manifests: a candidate is then refused if the interface contracts forbid the way there or back, or if its adapters belong to other
    /// base weights; [`Endpoint::roll_back`] refuses what is not safe.
    #[must_use]
    pub fn manifests(mut self, manifests: impl Manifests) -> Self {
        self.manifests = Some(Arc::new(manifests));
        self
    }

    /// Looks after versions in production, as plans say under `[[watch]]`; more than one is fine.
    #[must_use]
    pub fn probe(mut self, probe: impl Probe) -> Self {
        self.probes.push(Arc::new(probe));
        self
    }

    /// How many versions of the past [`Endpoint::roll_back`] may return to: 3 unless told otherwise, at most [`crate::journal::HISTORY`].
    #[must_use]
    pub fn rollback_window(mut self, versions: usize) -> Self {
        self.window = versions;
        self
    }

    /// Flags that the host raises on requests (at most 16), by name: what [`llm_rollout::MetricDef::Flag`] counts.
    #[must_use]
    pub fn flags<I: IntoIterator<Item = S>, S: Into<String>>(mut self, flags: I) -> Self {
        self.flags = flags.into_iter().map(Into::into).collect();
        self
    }

    /// Another clock than the machine's.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// Uses this boot id for the in-process router instead of a random one; for reproducible tests. It must differ for every start.
    #[must_use]
    pub fn boot(mut self, boot: u64) -> Self {
        self.boot = Some(boot);
        self
    }

    /// Acquires the endpoint (whoever held it before stops), replays its log, starts the data plane from what is recorded, and
    /// starts the controller on the current tokio runtime. It runs until every handle is dropped.
    ///
    /// # Errors
    /// The name is not usable, the store cannot be reached, or a record is damaged (named; nothing is overwritten).
    pub async fn open(self) -> Result<Endpoint, OpenError> {
        let id = EndpointId::new(self.name)?;
        let failed = |source| OpenError::Component {
            endpoint: id.clone(),
            source,
        };
        let clock: Arc<dyn Clock> = self.clock.unwrap_or_else(|| Arc::new(SystemClock::new()));
        let recorder = Arc::new(Recorder::new(self.flags).map_err(failed)?);
        let name = RouterId::new(IN_PROCESS)?;

        // What the store says is in force, before anything is served.
        let recorded = self.store.split(&id).await.map_err(failed)?;
        let first = recorded
            .unwrap_or_else(|| Split::steady(None, self.bootstrap.clone(), Epoch::default()));
        let mut router = InProcessRouter::builder(name.clone(), first).clock(Arc::clone(&clock));
        if let Some(memory) = self.store.router_memory(&id, &name) {
            router = router.memory(memory);
        }
        if let Some(boot) = self.boot {
            router = router.boot(boot);
        }
        let router = Arc::new(router.open().map_err(failed)?);

        let mut routers = self.routers;
        routers.push(Arc::clone(&router) as Arc<dyn TrafficRouter>);
        let parts = Parts {
            endpoint: id.clone(),
            store: Arc::clone(&self.store),
            routers,
            source: Joined::of(
                self.source
                    .unwrap_or_else(|| Arc::clone(&recorder) as Arc<dyn MetricSource>),
                self.shadows,
                self.labels,
            ),
            recorder: Arc::clone(&recorder),
            backend: self.backend,
            evaluator: self.evaluator,
            notifiers: self.notifiers,
            incidents: self.incidents,
            calendar: self.calendar,
            manifests: self.manifests,
            probes: self.probes,
            window: self.window,
            clock,
        };
        let (controller, status) = Controller::start(parts, &self.bootstrap)
            .await
            .map_err(failed)?;
        let (mailbox, messages) = mpsc::channel(MAILBOX);
        tokio::spawn(controller.run(messages));
        Ok(Endpoint {
            id,
            store: self.store,
            plane: DataPlane::new(router, recorder),
            mailbox,
            status,
        })
    }
}

/// The name of the router that every endpoint has.
const IN_PROCESS: &str = "in-process";
/// Messages that may wait for the controller.
const MAILBOX: usize = 64;

/// What clients call: one rollout at a time, a log, a router and a recorder. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Endpoint {
    id: EndpointId,
    store: Arc<dyn StateStore>,
    plane: DataPlane,
    mailbox: mpsc::Sender<Message>,
    status: watch::Receiver<Status>,
}

impl Endpoint {
    /// Opens an endpoint with nothing beside its store: see [`EndpointBuilder::open`].
    ///
    /// # Errors
    /// As [`EndpointBuilder::open`].
    pub async fn open(
        name: &str,
        store: impl StateStore,
        bootstrap: Bootstrap,
    ) -> Result<Self, OpenError> {
        Self::builder(name, store, bootstrap).open().await
    }

    /// An endpoint with more: backend, evaluator, notifiers, flags.
    pub fn builder(name: &str, store: impl StateStore, bootstrap: Bootstrap) -> EndpointBuilder {
        EndpointBuilder {
            name: name.to_owned(),
            store: Arc::new(store),
            bootstrap: bootstrap.0,
            routers: Vec::new(),
            source: None,
            shadows: BTreeMap::new(),
            labels: None,
            backend: None,
            evaluator: None,
            notifiers: Vec::new(),
            incidents: None,
            calendar: None,
            manifests: None,
            probes: Vec::new(),
            window: WINDOW,
            clock: None,
            boot: None,
            flags: Vec::new(),
        }
    }

    /// Its name.
    pub fn id(&self) -> &EndpointId {
        &self.id
    }

    /// What serves requests: decide, begin a ticket, record.
    pub fn data_plane(&self) -> &DataPlane {
        &self.plane
    }

    /// What it is doing, as last logged.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Follows what it is doing.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Submits a rollout. The same id again attaches to it, or to its recorded end: it never runs twice.
    ///
    /// # Errors
    /// See [`SubmitError`]; nothing was exposed.
    pub async fn submit(
        &self,
        id: RolloutId,
        candidate: VersionId,
        plan: Plan,
    ) -> Result<Run, SubmitError> {
        self.submit_or(Supersede::Reject, id, candidate, plan).await
    }

    /// The same, and says what happens where another rollout is in progress, or something stands against new ones.
    ///
    /// # Errors
    /// See [`SubmitError`]; nothing was exposed.
    pub async fn submit_or(
        &self,
        supersede: Supersede,
        id: RolloutId,
        candidate: VersionId,
        plan: Plan,
    ) -> Result<Run, SubmitError> {
        self.want(Wanted {
            id,
            candidate,
            plan,
            supersede,
            said: None,
        })
        .await
    }

    async fn want(&self, wanted: Wanted) -> Result<Run, SubmitError> {
        let run = Run {
            id: wanted.id.clone(),
            endpoint: self.clone(),
        };
        let wanted = Box::new(wanted);
        match self.ask(|reply| Message::Submit { wanted, reply }).await {
            Some(answer) => answer.map(|()| run),
            None => Err(SubmitError::Stopped(self.why_stopped())),
        }
    }

    /// The handle of a rollout that was submitted before, by anybody.
    pub fn attach(&self, id: &RolloutId) -> Option<Run> {
        let known = {
            let status = self.status.borrow();
            status.ledger.ended.contains_key(id)
                || status.ledger.rollout.as_ref().is_some_and(|r| r.id() == id)
                || status.ledger.queue.iter().any(|q| q.id == *id)
        };
        known.then(|| Run {
            id: id.clone(),
            endpoint: self.clone(),
        })
    }

    /// All traffic of this process to the baseline, now: needs neither store nor controller, latches durably in the router, and
    /// sends the rollout in progress back.
    ///
    /// # Errors
    /// The latch holds in this process, but could not be saved: say it again, or keep the process running.
    pub fn force_baseline(&self, why: &str) -> crate::host::Result<()> {
        let forced = self.plane.router.force_baseline(why);
        // A full mailbox means that the controller is awake anyway.
        drop(self.mailbox.try_send(Message::Wake));
        forced
    }

    /// Goes back to a version that was in production before: a rollout of its own, at once and without gates, since the version
    /// has been judged already. While a promoted version still bakes, aborting its rollout is quicker.
    ///
    /// # Errors
    /// See [`ReturnError`]; nothing was changed.
    pub async fn roll_back(&self, way: Return, by: &str, why: &str) -> Result<Run, ReturnError> {
        let (way, by, why) = (Box::new(way), by.to_owned(), why.to_owned());
        let message = |reply| Message::Return {
            way,
            by,
            why,
            reply,
        };
        match self.ask(message).await {
            Some(answer) => answer.map(|id| Run {
                id,
                endpoint: self.clone(),
            }),
            None => Err(SubmitError::Stopped(self.why_stopped()).into()),
        }
    }

    /// Something outside the gates has gone off; what it does is the plan's choice. Without a rollout in progress it does nothing.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn alarm(&self, name: &str, detail: &str) -> Result<(), CommandError> {
        let alarm = Alarm {
            name: name.to_owned(),
            detail: detail.to_owned(),
        };
        match self.ask(|reply| Message::Alarm { alarm, reply }).await {
            Some(answer) => answer,
            None => Err(CommandError::Stopped(self.why_stopped())),
        }
    }

    /// No new rollout may begin until this is cleared by its name; the one in progress goes on.
    ///
    /// # Errors
    /// See [`AdministerError`].
    pub async fn bar(&self, name: &str, by: &str, why: &str) -> Result<(), AdministerError> {
        self.administer(What::Bar(name.to_owned()), by, why).await
    }

    /// Clears what stands against new rollouts.
    ///
    /// # Errors
    /// See [`AdministerError`].
    pub async fn unbar(&self, name: &str, by: &str, why: &str) -> Result<(), AdministerError> {
        self.administer(What::Unbar(name.to_owned()), by, why).await
    }

    /// A registered router is dead for good: rollouts do not wait for it any more. Refused until its lease has certainly run out.
    ///
    /// # Errors
    /// See [`AdministerError`].
    pub async fn remove_router(
        &self,
        router: &RouterId,
        by: &str,
        why: &str,
    ) -> Result<(), AdministerError> {
        let what = What::RemoveRouter(router.clone());
        self.administer(what, by, why).await
    }

    /// A router that was removed takes part again.
    ///
    /// # Errors
    /// See [`AdministerError`].
    pub async fn restore_router(
        &self,
        router: &RouterId,
        by: &str,
        why: &str,
    ) -> Result<(), AdministerError> {
        let what = What::RestoreRouter(router.clone());
        self.administer(what, by, why).await
    }

    async fn administer(&self, what: What, by: &str, why: &str) -> Result<(), AdministerError> {
        let order = Administer {
            what,
            by: by.to_owned(),
            why: why.to_owned(),
        };
        match self.ask(|reply| Message::Administer { order, reply }).await {
            Some(answer) => answer,
            None => Err(AdministerError::Stopped(self.why_stopped())),
        }
    }

    /// The endpoint's log from an entry on, at most a page.
    ///
    /// # Errors
    /// The store cannot be reached, or an entry is damaged.
    pub async fn log(&self, from: Seq) -> crate::host::Result<Vec<(Seq, Entry)>> {
        let page = self.store.read(&self.id, from).await?;
        let decode = |(seq, bytes): (Seq, Vec<u8>)| match Entry::decode(&self.id, seq, &bytes) {
            Ok(entry) => Ok((seq, entry)),
            Err(bad) => Err(Error::permanent(bad.to_string())),
        };
        page.entries.into_iter().map(decode).collect()
    }

    /// What happened in a rollout, in progress or over; none if this endpoint's log does not know it.
    ///
    /// # Errors
    /// The store cannot be reached, or an entry is damaged.
    pub async fn incident(&self, id: &RolloutId) -> crate::host::Result<Option<Incident>> {
        crate::journal::incident(&*self.store, &self.id, id).await
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.send(message(reply)).await.ok()?;
        answer.await.ok()
    }

    fn why_stopped(&self) -> String {
        let status = self.status.borrow();
        status
            .stopped
            .as_ref()
            .map_or_else(|| "its task is gone".to_owned(), ToString::to_string)
    }
}

impl From<&Endpoint> for DataPlane {
    fn from(endpoint: &Endpoint) -> Self {
        endpoint.plane.clone()
    }
}

/// A rollout that was submitted. Dropping it changes nothing.
#[derive(Debug, Clone)]
pub struct Run {
    id: RolloutId,
    endpoint: Endpoint,
}

impl Run {
    /// Its id.
    pub fn id(&self) -> &RolloutId {
        &self.id
    }

    /// The rollout as last logged, while it is the endpoint's newest.
    pub fn rollout(&self) -> Option<Rollout> {
        self.endpoint
            .status
            .borrow()
            .ledger
            .rollout
            .clone()
            .filter(|r| r.id() == &self.id)
    }

    /// Lets the current manual stage advance once its gates pass.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn approve(&self, by: &str, why: &str) -> Result<(), CommandError> {
        self.command(Verb::Approve, by, why).await
    }

    /// Places a hold: no advance until it is cleared.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn hold(&self, name: &str, by: &str, why: &str) -> Result<(), CommandError> {
        self.command(
            Verb::Hold {
                name: name.to_owned(),
            },
            by,
            why,
        )
        .await
    }

    /// Clears a hold.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn resume(&self, name: &str, by: &str, why: &str) -> Result<(), CommandError> {
        self.command(
            Verb::Resume {
                name: name.to_owned(),
            },
            by,
            why,
        )
        .await
    }

    /// Leaves the stage that is soaking now, whatever its dwell, samples, gates and approval; holds and freezes stand.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn skip(&self, by: &str, why: &str) -> Result<(), CommandError> {
        self.command(Verb::Skip, by, why).await
    }

    /// Makes the candidate the baseline now, whatever gates, holds and freezes say. Where the baseline is unhealthy, this is the way forward.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn promote_now(&self, by: &str, why: &str) -> Result<(), CommandError> {
        self.command(Verb::PromoteNow, by, why).await
    }

    /// Goes back at once, even to a baseline that is cold or unhealthy.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn abort_now(&self, by: &str, why: &str) -> Result<(), CommandError> {
        self.command(Verb::AbortNow, by, why).await
    }

    /// Tries again what has ended without promotion: a new rollout of the same candidate with the same plan, its evidence and
    /// its users drawn anew. Its id is this one's with the number of the attempt, such as `chat-v2.2`.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub async fn retry(&self) -> Result<Run, SubmitError> {
        let ledger = Arc::clone(&self.endpoint.status.borrow().ledger);
        let not = |why| SubmitError::NothingToRetry(self.id.clone(), why);
        let Some(rollout) = ledger.rollout.as_ref().filter(|r| *r.id() == self.id) else {
            return Err(not(
                "it is not the newest of its endpoint: submit its candidate again",
            ));
        };
        if !rollout.is_settled() {
            return Err(not("it has not ended yet"));
        }
        if rollout.phase() == Phase::Promoted {
            return Err(not("it was promoted"));
        }
        let attempts = (2..).map(|n| RolloutId::new(format!("{}.{n}", self.id)));
        let fresh = attempts
            .map_while(Result::ok)
            .find(|id| !ledger.ended.contains_key(id));
        let Some(id) = fresh else {
            return Err(not("its id is too long for the number of an attempt"));
        };
        let (candidate, plan) = (rollout.candidate().clone(), rollout.plan().clone());
        self.endpoint.submit(id, candidate, plan).await
    }

    /// Goes back to the baseline. Acknowledged once it is logged or every router has accepted it.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn abort(&self, by: &str, why: &str) -> Result<(), CommandError> {
        self.command(Verb::Abort, by, why).await
    }

    /// Waits for the end, confirmed by every router.
    ///
    /// # Errors
    /// The controller has stopped before that; another may have taken over.
    pub async fn finished(&self) -> Result<End, CommandError> {
        let mut status = self.endpoint.watch();
        loop {
            {
                let now = status.borrow_and_update();
                let newest = now.ledger.rollout.as_ref().filter(|r| r.id() == &self.id);
                let settled = newest.is_none_or(Rollout::is_settled);
                if settled && let Some(end) = now.ledger.ended.get(&self.id) {
                    return Ok(end.clone());
                }
                if now.stopped.is_some() {
                    break;
                }
            }
            if status.changed().await.is_err() {
                break;
            }
        }
        Err(CommandError::Stopped(self.endpoint.why_stopped()))
    }

    async fn command(&self, verb: Verb, by: &str, why: &str) -> Result<(), CommandError> {
        let command = Command {
            verb,
            by: by.to_owned(),
            why: why.to_owned(),
        };
        let rollout = self.id.clone();
        match self
            .endpoint
            .ask(|reply| Message::Command {
                rollout,
                command,
                reply,
            })
            .await
        {
            Some(answer) => answer,
            None => Err(CommandError::Stopped(self.endpoint.why_stopped())),
        }
    }
}

/// Whether the fault of an endpoint's controller is that a newer one owns the endpoint.
impl Status {
    /// A newer controller owns the endpoint.
    pub fn is_fenced_out(&self) -> bool {
        self.stopped
            .as_ref()
            .is_some_and(|error| error.kind() == ErrorKind::Fenced)
    }
}
