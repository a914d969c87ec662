//! The endpoint: what a host opens, and the handles it gets.

use crate::DataPlane;
use crate::clock::SystemClock;
use crate::controller::{Controller, Message, Parts};
use crate::host::{
    Clock, Error, ErrorKind, Evaluator, MetricSource, Notifier, ServingBackend, StateStore,
    TrafficRouter,
};
use crate::journal::{End, Entry, Ledger};
use crate::recorder::Recorder;
use crate::router::InProcessRouter;
use llm_rollout::{
    BadName, Command, EndpointId, Epoch, Fence, Plan, Rejected, Rollout, RolloutId, RouterId, Seq,
    Split, Verb,
};
use llm_version_core::VersionId;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// The version that serves before there has been any rollout: used the very first time, ignored ever after.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a wrapper")]
pub struct Bootstrap(pub VersionId);

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
    /// The id is taken by a rollout of another candidate.
    #[error(
        "rollout id {0} belongs to another candidate: ids are unique for ever, choose a new one"
    )]
    OtherCandidate(RolloutId),
    /// The plan has pre-deployment gates, and nothing evaluates them.
    #[error("the plan has pre-deployment gates: give the endpoint an evaluator, or take them out")]
    NoEvaluator,
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
    backend: Option<Arc<dyn ServingBackend>>,
    evaluator: Option<Arc<dyn Evaluator>>,
    notifiers: Vec<Arc<dyn Notifier>>,
    clock: Option<Arc<dyn Clock>>,
    flags: Vec<String>,
}

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
        let router = Arc::new(router.open().map_err(failed)?);

        let mut routers = self.routers;
        routers.push(Arc::clone(&router) as Arc<dyn TrafficRouter>);
        let parts = Parts {
            endpoint: id.clone(),
            store: Arc::clone(&self.store),
            routers,
            source: self
                .source
                .unwrap_or_else(|| Arc::clone(&recorder) as Arc<dyn MetricSource>),
            recorder: Arc::clone(&recorder),
            backend: self.backend,
            evaluator: self.evaluator,
            notifiers: self.notifiers,
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
            backend: None,
            evaluator: None,
            notifiers: Vec::new(),
            clock: None,
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
        let run = Run {
            id: id.clone(),
            endpoint: self.clone(),
        };
        let plan = Box::new(plan);
        match self
            .ask(|reply| Message::Submit {
                id,
                candidate,
                plan,
                reply,
            })
            .await
        {
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
