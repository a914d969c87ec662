//! Waves over the endpoints of this process: the parent record, logged like a rollout, and what it asks for.

use crate::clock::SystemClock;
use crate::endpoint::{CommandError, Endpoint, SubmitError, Supersede};
use crate::host::{Clock, Error, ErrorKind, Letter, Notifier, Owned, Result, StateStore};
use crate::journal::{BadEntry, End, Seal};
use llm_rollout::waves::{
    Command, Effect, Input, Intent, News, Phase, Rejected, Schedule, Step, Verb, Waves,
};
use llm_rollout::{EndpointId, Fence, IntentId, Outcome, Plan, RolloutId, Seq, Timestamp, presets};
use llm_version_core::VersionId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// What the log of waves holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Event {
    /// As written down.
    Begun(Box<Waves>),
    Stepped(Box<Step>),
}

/// Runs waves over endpoints of this process. Each member is a rollout of its endpoint, with everything that belongs to one;
/// what has been decided is logged before it is done, so that a process that was killed goes on where it was.
///
/// The log lies in the store under the name of the waves, beside those of the endpoints: no endpoint may have that name.
#[derive(Debug)]
pub struct WavesBuilder {
    id: RolloutId,
    store: Arc<dyn StateStore>,
    endpoints: BTreeMap<EndpointId, Endpoint>,
    notifiers: Vec<Arc<dyn Notifier>>,
    clock: Arc<dyn Clock>,
}

/// Handle of waves that run. Dropping every one stops the driver; the members go on.
#[derive(Debug, Clone)]
pub struct WavesRun {
    orders: mpsc::Sender<Order>,
    status: watch::Receiver<Status>,
}

#[derive(Debug)]
struct Order {
    command: Command,
    reply: oneshot::Sender<std::result::Result<(), WavesError>>,
}

#[derive(Debug, Clone)]
struct Status {
    waves: Arc<Waves>,
    stopped: Option<Arc<Error>>,
}

/// Why something about waves was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WavesError {
    /// It does not fit.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// Whether it was logged is not known; saying it again is safe.
    #[error("the store cannot be reached: say it again")]
    StoreUnavailable,
    /// The driver has stopped.
    #[error("the waves are not driven any more: {0}")]
    Stopped(String),
}

impl WavesBuilder {
    /// Waves of this id, logged in this store.
    pub fn new(id: RolloutId, store: impl StateStore) -> Self {
        Self {
            id,
            store: Arc::new(store),
            endpoints: BTreeMap::new(),
            notifiers: Vec::new(),
            clock: Arc::new(SystemClock::new()),
        }
    }

    /// An endpoint that takes part.
    #[must_use]
    pub fn endpoint(mut self, endpoint: &Endpoint) -> Self {
        self.endpoints
            .insert(endpoint.id().clone(), endpoint.clone());
        self
    }

    /// Tells people what concerns the waves as a whole; the members tell of themselves.
    #[must_use]
    pub fn notifier(mut self, notifier: impl Notifier) -> Self {
        self.notifiers.push(Arc::new(notifier));
        self
    }

    /// Begins, or goes on where the log of this id ends: the schedule is then the one that is logged.
    ///
    /// # Errors
    /// A member's endpoint is missing, the store cannot be reached, or its log is damaged.
    pub async fn start(self, schedule: Schedule) -> Result<WavesRun> {
        let log = EndpointId::new(self.id.as_str()).map_err(|e| Error::permanent(e.to_string()))?;
        if self.endpoints.contains_key(&log) {
            return Err(Error::permanent(format!(
                "waves and an endpoint are both called {log}: give the waves another id"
            )));
        }
        let Owned { fence, .. } = self.store.acquire(&log).await?;
        let waves = Waves::new(self.id, schedule, self.clock.now());
        let (status, watching) = watch::channel(Status {
            waves: Arc::new(waves.clone()),
            stopped: None,
        });
        let mut driver = Driver {
            log,
            store: self.store,
            endpoints: self.endpoints,
            notifiers: self.notifiers,
            clock: self.clock,
            fence,
            waves,
            next: Seq::default(),
            seal: Seal::default(),
            running: BTreeSet::new(),
            jobs: JoinSet::new(),
            status,
        };
        driver.read_log().await?;
        if driver.next == Seq::default() {
            let begun = Event::Begun(Box::new(driver.waves.clone()));
            driver.append(&begun).await?;
        }
        if let Some(missing) = driver.missing() {
            return Err(Error::permanent(format!(
                "member {missing} is not among the endpoints: add it with endpoint()"
            )));
        }
        let (orders, inbox) = mpsc::channel(16);
        tokio::spawn(driver.run(inbox));
        Ok(WavesRun {
            orders,
            status: watching,
        })
    }
}

impl WavesRun {
    /// As last logged.
    pub fn waves(&self) -> Arc<Waves> {
        Arc::clone(&self.status.borrow().waves)
    }

    /// Says something, and waits until it is logged.
    ///
    /// # Errors
    /// See [`WavesError`].
    pub async fn say(
        &self,
        verb: Verb,
        by: &str,
        why: &str,
    ) -> std::result::Result<(), WavesError> {
        let command = Command {
            verb,
            by: by.to_owned(),
            why: why.to_owned(),
        };
        let (reply, answer) = oneshot::channel();
        let sent = self.orders.send(Order { command, reply }).await;
        match sent {
            Ok(()) => answer.await.unwrap_or_else(|_| Err(self.stopped())),
            Err(_) => Err(self.stopped()),
        }
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// The driver has stopped before that.
    pub async fn finished(&self) -> std::result::Result<Phase, WavesError> {
        let mut status = self.status.clone();
        loop {
            {
                let now = status.borrow_and_update();
                if now.waves.phase().is_end() {
                    return Ok(now.waves.phase());
                }
                if now.stopped.is_some() {
                    break;
                }
            }
            if status.changed().await.is_err() {
                break;
            }
        }
        Err(self.stopped())
    }

    fn stopped(&self) -> WavesError {
        let status = self.status.borrow();
        let why = status.stopped.as_ref().map(ToString::to_string);
        WavesError::Stopped(why.unwrap_or_else(|| "its task is gone".to_owned()))
    }
}

/// Longest time between two turns, and the pause after the store or an endpoint could not be reached.
const IDLE: Duration = Duration::from_secs(5);

/// After so many failures a notice is recorded as failed.
const TRIES: u32 = 100;

#[derive(Debug)]
struct Driver {
    log: EndpointId,
    store: Arc<dyn StateStore>,
    endpoints: BTreeMap<EndpointId, Endpoint>,
    notifiers: Vec<Arc<dyn Notifier>>,
    clock: Arc<dyn Clock>,
    fence: Fence,
    waves: Waves,
    next: Seq,
    seal: Seal,
    running: BTreeSet<IntentId>,
    jobs: JoinSet<(IntentId, Option<Input>)>,
    status: watch::Sender<Status>,
}

impl Driver {
    async fn run(mut self, mut inbox: mpsc::Receiver<Order>) {
        loop {
            let pause = match self.turn().await {
                Ok(pause) => pause,
                Err(error) if error.kind() == ErrorKind::Transient => IDLE,
                Err(error) => return self.stop(error),
            };
            let clock = Arc::clone(&self.clock);
            tokio::select! {
                biased;
                order = inbox.recv() => match order {
                    Some(Order { command, reply }) => match self.feed(Input::Operator(command)).await {
                        Ok(answer) => drop(reply.send(answer.map_err(Into::into))),
                        Err(error) if error.kind() == ErrorKind::Transient => {
                            drop(reply.send(Err(WavesError::StoreUnavailable)));
                        }
                        Err(error) => return self.stop(error),
                    },
                    None => return,
                },
                Some(job) = self.jobs.join_next() => {
                    // One that panicked is begun again.
                    let Ok((intent, input)) = job else {
                        self.running.clear();
                        continue;
                    };
                    let Some(input) = input else { continue };
                    match self.feed(input).await {
                        Ok(_) => {}
                        Err(error) if error.kind() == ErrorKind::Transient => {
                            // What was heard is heard again.
                            self.running.remove(&intent);
                        }
                        Err(error) => return self.stop(error),
                    }
                }
                () = clock.sleep(pause) => {}
            }
        }
    }

    fn missing(&self) -> Option<&EndpointId> {
        let mut members = self.waves.schedule().members().map(|m| &m.endpoint);
        members.find(|endpoint| !self.endpoints.contains_key(endpoint))
    }

    fn stop(&self, error: Error) {
        self.status
            .send_modify(|status| status.stopped = Some(Arc::new(error)));
    }

    async fn turn(&mut self) -> Result<Duration> {
        // What may have been logged without our knowing is read first.
        self.read_log().await?;
        if self.waves.phase() == Phase::Planned {
            drop(self.feed(Input::Start).await?);
        }
        drop(self.feed(Input::Tick).await?);
        for intent in self.waves.pending() {
            if self.running.insert(intent.id) {
                let job = self.job(intent);
                self.jobs.spawn(job);
            }
        }
        let due = self.waves.next_wakeup();
        let pause = due.map_or(IDLE, |due| due.since(self.clock.now()));
        Ok(pause.clamp(Duration::from_millis(5), IDLE))
    }

    /// What an intent comes to; nothing where its end is heard elsewhere.
    fn job(&self, intent: &Intent) -> impl Future<Output = (IntentId, Option<Input>)> + use<> {
        let (id, effect) = (intent.id, intent.effect.clone());
        let (log, notifiers) = (self.log.clone(), self.notifiers.clone());
        let (endpoints, clock) = (self.endpoints.clone(), Arc::clone(&self.clock));
        async move {
            let at = |endpoint: &EndpointId| endpoints.get(endpoint).cloned();
            let input = match effect {
                Effect::Submit {
                    endpoint,
                    rollout,
                    candidate,
                    plan,
                } => {
                    let news = match at(&endpoint) {
                        Some(there) => submit(&there, &*clock, rollout, candidate, *plan).await,
                        None => None,
                    };
                    news.map(|news| Input::Member { endpoint, news })
                }
                Effect::Abort {
                    endpoint,
                    rollout,
                    why,
                } => {
                    let run = at(&endpoint).and_then(|there| there.attach(&rollout));
                    while let Some(run) = &run {
                        match run.abort("waves", &why).await {
                            Err(CommandError::StoreUnavailable) => clock.sleep(IDLE).await,
                            // Taken, or over already: its end is heard as that of what was submitted.
                            _ => break,
                        }
                    }
                    None
                }
                Effect::Return {
                    endpoint,
                    rollout,
                    to,
                } => {
                    let news = match at(&endpoint) {
                        Some(there) => bring_back(&there, &*clock, rollout, to).await,
                        None => None,
                    };
                    news.map(|news| Input::Member { endpoint, news })
                }
                Effect::Notify(notice) => {
                    let letter = Letter {
                        endpoint: &log,
                        id,
                        notice: &notice,
                    };
                    let outcome = tell(&notifiers, &*clock, &letter).await;
                    Some(Input::Done {
                        intent: id,
                        outcome,
                    })
                }
                // What a newer program may ask for is not known here.
                _ => None,
            };
            (id, input)
        }
    }

    /// Decides, logs and folds. The outer error: the store, or somebody newer; the inner one: it does not fit.
    async fn feed(&mut self, input: Input) -> Result<std::result::Result<(), Rejected>> {
        let now: Timestamp = self.clock.now();
        let step = match self.waves.decide(self.next, now, input) {
            Ok(Some(step)) => step,
            Ok(None) => return Ok(Ok(())),
            Err(rejected) => return Ok(Err(rejected)),
        };
        self.append(&Event::Stepped(Box::new(step))).await?;
        Ok(Ok(()))
    }

    async fn append(&mut self, event: &Event) -> Result<()> {
        let (seal, bytes) = self.seal.close(self.next, event).map_err(|e| {
            Error::permanent(format!("entry {} cannot be written as JSON", self.next)).because(e)
        })?;
        self.store
            .append(&self.log, self.fence, self.next, &bytes, None)
            .await?;
        self.fold(seal, event)
    }

    async fn read_log(&mut self) -> Result<()> {
        loop {
            let page = self.store.read(&self.log, self.next).await?;
            let last = page.entries.is_empty() || !page.more;
            for (seq, bytes) in page.entries {
                let damaged = |e: BadEntry| Error::permanent(e.to_string());
                let (_, before, seal, event) =
                    Seal::open(&self.log, seq, &bytes).map_err(damaged)?;
                if seq != self.next || before != self.seal {
                    return Err(Error::permanent(format!(
                        "entry {seq} of the log of waves {} does not follow the one before it",
                        self.log
                    )));
                }
                self.fold(seal, &event)?;
            }
            if last {
                return Ok(());
            }
        }
    }

    fn fold(&mut self, seal: Seal, event: &Event) -> Result<()> {
        match event {
            Event::Begun(waves) => self.waves = (**waves).clone(),
            Event::Stepped(step) => self.waves.apply(step).map_err(|e| {
                Error::permanent(format!(
                    "entry {} of the log of waves {}: {e}",
                    self.next, self.log
                ))
            })?,
        }
        self.next = self.next.next();
        self.seal = seal;
        let waves = Arc::new(self.waves.clone());
        self.status.send_modify(|status| status.waves = waves);
        Ok(())
    }
}

/// Tells everybody; what may pass is tried again, at most [`TRIES`] times.
async fn tell(notifiers: &[Arc<dyn Notifier>], clock: &dyn Clock, letter: &Letter<'_>) -> Outcome {
    let mut outcome = Outcome::Ok;
    for notifier in notifiers {
        let mut tries = 1;
        while let Err(error) = notifier.notify(letter).await {
            if error.kind() != ErrorKind::Transient || tries == TRIES {
                let reason = error.to_string();
                outcome = Outcome::Failed { reason };
                break;
            }
            tries += 1;
            clock.sleep(IDLE).await;
        }
    }
    outcome
}

/// None: the endpoint's controller is gone; whoever owns it now goes on, and so do the waves there.
async fn submit(
    endpoint: &Endpoint,
    clock: &dyn Clock,
    id: RolloutId,
    candidate: VersionId,
    plan: Plan,
) -> Option<News> {
    let wanted = (id, candidate, plan);
    match run_to_end(endpoint, clock, Supersede::Queue, wanted).await? {
        Ok(end) => Some(News::Ended {
            phase: end.phase,
            before: end.baseline,
            why: end.cause.map(|c| c.to_string()).unwrap_or_default(),
        }),
        Err(why) => Some(News::Refused { why }),
    }
}

async fn bring_back(
    endpoint: &Endpoint,
    clock: &dyn Clock,
    id: RolloutId,
    to: VersionId,
) -> Option<News> {
    let plan = match presets::instant(Duration::ZERO) {
        Ok(plan) => plan,
        Err(error) => {
            let why = error.to_string();
            return Some(News::NotReturned { why });
        }
    };
    let end = run_to_end(endpoint, clock, Supersede::Replace, (id, to, plan)).await?;
    Some(match end {
        Ok(end) if end.phase == llm_rollout::Phase::Promoted => News::Returned,
        Ok(end) => News::NotReturned {
            why: end.cause.map(|c| c.to_string()).unwrap_or_default(),
        },
        Err(why) => News::NotReturned { why },
    })
}

async fn run_to_end(
    endpoint: &Endpoint,
    clock: &dyn Clock,
    supersede: Supersede,
    (id, candidate, plan): (RolloutId, VersionId, Plan),
) -> Option<std::result::Result<End, String>> {
    loop {
        let asked = endpoint.submit_or(supersede, id.clone(), candidate.clone(), plan.clone());
        match asked.await {
            Ok(run) => return run.finished().await.ok().map(Ok),
            Err(SubmitError::StoreUnavailable) => clock.sleep(IDLE).await,
            Err(SubmitError::Stopped(_)) => return None,
            Err(error) => return Some(Err(error.to_string())),
        }
    }
}
