//! The controller: decide, append, apply, carry out, feed back.
//!
//! On start it acquires a new fence, replays the log and reads the routers back, and only then acts. It is the only writer of
//! the endpoint's log; whoever acquires after it stops it. [`Controller::turn`] is one pass and returns how long nothing is due.

mod jobs;
mod learn;
mod look;
mod probes;
mod queue;
mod routers;

use crate::endpoint::{AdministerError, CommandError, Return, ReturnError, Status, SubmitError};
use crate::host::{
    Calendar, Clock, Error, ErrorKind, Evaluator, Incidents, Manifests, MetricSource, Notifier,
    Owned, Probe, Result, ServingBackend, StateStore, TrafficRouter,
};
use crate::journal::{Entry, Event, Ledger};
use crate::recorder::Recorder;
use jobs::{Finished, Jobs};
use learn::{Learner, Saved};
use llm_rollout::{
    Alarm, Command, Direction, Effect, EndpointId, Fence, Input, Observed, Phase, Position,
    Recovery, Rejected, Rollout, RolloutId, RouterId, Step, Timestamp,
};
use llm_version_core::VersionId;
use probes::Watching;
pub(crate) use queue::Wanted;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// What the controller drives.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(crate) endpoint: EndpointId,
    pub(crate) store: Arc<dyn StateStore>,
    pub(crate) routers: Vec<Arc<dyn TrafficRouter>>,
    pub(crate) source: Arc<dyn MetricSource>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) backend: Option<Arc<dyn ServingBackend>>,
    pub(crate) evaluator: Option<Arc<dyn Evaluator>>,
    pub(crate) notifiers: Vec<Arc<dyn Notifier>>,
    pub(crate) incidents: Option<Arc<dyn Incidents>>,
    pub(crate) calendar: Option<Arc<dyn Calendar>>,
    pub(crate) manifests: Option<Arc<dyn Manifests>>,
    pub(crate) probes: Vec<Arc<dyn Probe>>,
    /// How many versions of the past one may return to.
    pub(crate) window: usize,
    pub(crate) clock: Arc<dyn Clock>,
}

/// What an endpoint's handles ask for.
#[derive(Debug)]
pub(crate) enum Message {
    /// A new rollout, or one that is known already.
    Submit {
        wanted: Box<Wanted>,
        reply: oneshot::Sender<std::result::Result<(), SubmitError>>,
    },
    /// Something outside the gates has gone off; answered as a command is.
    Alarm {
        alarm: Alarm,
        reply: oneshot::Sender<std::result::Result<(), CommandError>>,
    },
    /// Back to a version of the past; answered with the id of the rollout that leads there.
    Return {
        way: Box<Return>,
        by: String,
        why: String,
        reply: oneshot::Sender<std::result::Result<RolloutId, ReturnError>>,
    },
    /// Something that is said about the endpoint rather than about a rollout.
    Administer {
        order: Administer,
        reply: oneshot::Sender<std::result::Result<(), AdministerError>>,
    },
    /// An operator's command; answered once it is logged, or a router has accepted what it means.
    Command {
        rollout: RolloutId,
        command: Command,
        reply: oneshot::Sender<std::result::Result<(), CommandError>>,
    },
    /// Something has changed in the data plane: read the routers back now.
    Wake,
}

/// What is said about an endpoint, by whom and why.
#[derive(Debug)]
pub(crate) struct Administer {
    pub(crate) what: What,
    pub(crate) by: String,
    pub(crate) why: String,
}

#[derive(Debug)]
pub(crate) enum What {
    /// No new rollout may begin.
    Bar(String),
    Unbar(String),
    RemoveRouter(RouterId),
    RestoreRouter(RouterId),
}

/// Longest time between two turns.
const IDLE: Duration = Duration::from_secs(5);
/// How often routers are asked while something waits for their confirmation.
const CONFIRM: Duration = Duration::from_millis(100);
/// How long after a failed store call the next one is tried.
const STORE_RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Controller {
    parts: Parts,
    fence: Fence,
    ledger: Ledger,
    jobs: Jobs,
    status: watch::Sender<Status>,
    /// All routers have been read back under this fence: forward steps may be taken.
    active: bool,
    /// Whether a promotion or a retirement may be in the log without our knowing.
    doubt: Option<Doubt>,
    /// A binding entry was in doubt and not found: a read may be behind, so that only an entry in its place shows that it is not there.
    suspected: bool,
    store_down_since: Option<Timestamp>,
    next_look: Option<Timestamp>,
    next_round: Timestamp,
    /// Requests that each version was given in this process, as last heard: the source counts from its own start.
    heard: BTreeMap<VersionId, u64>,
    /// What the machine's clock lags behind the log: time never goes back over a restart.
    behind: Duration,
    /// When each router was read last, and may have been told to go on; or this controller began.
    answered: BTreeMap<RouterId, Timestamp>,
    /// Routers that had a latch when they were last heard.
    latched: BTreeSet<RouterId>,
    watch: Watching,
    learner: Learner,
    /// How often in a row the backend has said that the baseline cannot serve.
    unhealthy: u32,
}

/// An append whose outcome is unknown: nothing goes forward until the log has been read again.
#[derive(Debug)]
struct Doubt {
    /// Going back without the log is no longer allowed: the entry promotes, or ends.
    binding: bool,
    /// What to decide again, should the entry not be there.
    input: Option<Input>,
    /// A decision to go back of which the routers are told without the log: no share is renewed meanwhile.
    left: Option<Box<Step>>,
    /// What routers said when one of them had a latch or a mark: nobody may say it again once it is known what is in the log.
    heard: Option<Observed>,
    retry_at: Timestamp,
}

impl Controller {
    /// Acquires the endpoint and replays its log.
    ///
    /// # Errors
    /// The store cannot be reached, or an entry is damaged (named; nothing is overwritten).
    pub(crate) async fn start(
        parts: Parts,
        bootstrap: &VersionId,
    ) -> Result<(Self, watch::Receiver<Status>)> {
        let Owned { fence, next } = parts.store.acquire(&parts.endpoint).await?;
        let now = parts.clock.now();
        let (status, watching) = watch::channel(Status::default());
        let mut controller = Self {
            jobs: Jobs::new(parts.clone()),
            parts,
            fence,
            ledger: Ledger::default(),
            status,
            active: false,
            doubt: None,
            suspected: false,
            store_down_since: None,
            next_look: None,
            next_round: Timestamp::default(),
            heard: BTreeMap::new(),
            behind: Duration::ZERO,
            answered: BTreeMap::new(),
            latched: BTreeSet::new(),
            unhealthy: 0,
            watch: Watching::default(),
            learner: Learner::default(),
        };
        controller.read_log().await?;
        if controller.ledger.next < next {
            // To act on an older state would be to do again what is over.
            return Err(Error::transient(format!(
                "the log of endpoint {} has {next} entries, and only {} could be read: its store's reads lag behind, try again",
                controller.parts.endpoint, controller.ledger.next
            )));
        }
        controller.behind = controller.ledger.latest.since(now);
        let begun = controller.now();
        let routers = controller.parts.routers.iter();
        controller.answered = routers.map(|r| (r.id().clone(), begun)).collect();
        if controller.ledger.production.is_none() {
            let event = Event::Bootstrapped {
                version: bootstrap.clone(),
                at: now,
            };
            controller.append(event).await?;
        }
        controller.publish();
        Ok((controller, watching))
    }

    /// Runs until it is fenced out or every handle is gone.
    pub(crate) async fn run(mut self, mut mailbox: mpsc::Receiver<Message>) {
        loop {
            let pause = match self.turn().await {
                Ok(pause) => pause,
                Err(error) => {
                    // Only the newest fence may act; a damaged log must not be acted upon.
                    self.status
                        .send_modify(|status| status.stopped = Some(Arc::new(error)));
                    return;
                }
            };
            let clock = Arc::clone(&self.parts.clock);
            tokio::select! {
                biased;
                message = mailbox.recv() => match message {
                    Some(message) => {
                        if let Err(error) = self.receive(message).await {
                            self.status.send_modify(|status| status.stopped = Some(Arc::new(error)));
                            return;
                        }
                    }
                    None => return,
                },
                () = self.jobs.finished() => {}
                () = self.watch.answered() => {}
                () = clock.sleep(pause) => {}
            }
        }
    }

    /// One pass over everything that is due; returns how long nothing else is.
    ///
    /// # Errors
    /// Fenced out, or the log is damaged: it must stop. Everything else is tried again.
    pub(crate) async fn turn(&mut self) -> Result<Duration> {
        let now = self.now();
        self.parts.recorder.note(now);
        if let Some(doubt) = &self.doubt {
            if now < doubt.retry_at {
                // Leases are renewed, and going back stays possible, while the store is down.
                self.look_for_harm().await?;
                self.renew_only().await?;
                return Ok(CONFIRM.min(STORE_RETRY));
            }
            if !self.resolve_doubt().await? {
                return Ok(CONFIRM);
            }
        }
        self.collect_jobs().await?;
        if now >= self.next_round || self.awaits_routers() {
            let routers = self.routers_round().await?;
            if self.doubt.is_none() {
                self.feed(Input::Found {
                    fence: self.fence,
                    routers,
                })
                .await?;
            }
            let every = self
                .rollout()
                .map_or(IDLE, |r| r.plan().spec().lease.renew_every);
            self.next_round = self.now().after(every.min(IDLE));
            self.check_baseline().await?;
        }
        if self.active && self.doubt.is_none() {
            self.next_in_line().await?;
            if let Some(until) = self.frozen_until() {
                self.feed(Input::Frozen { until }).await?;
            }
            if matches!(self.rollout().map(Rollout::phase), Some(Phase::Planned)) {
                self.feed(Input::Start).await?;
            }
            self.look().await?;
            self.feed(Input::Tick).await?;
            self.look_after().await?;
            self.begin_jobs();
        }
        Ok(self.pause())
    }

    /// Something that a handle asked for.
    ///
    /// # Errors
    /// As [`Self::turn`].
    pub(crate) async fn receive(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Submit { wanted, reply } => {
                let answer = self.submit(*wanted).await?;
                // A caller that has gone away needs no answer.
                drop(reply.send(answer));
            }
            Message::Alarm { alarm, reply } => {
                let answer = self.say(Input::Alarm(alarm)).await?;
                drop(reply.send(answer));
            }
            Message::Return {
                way,
                by,
                why,
                reply,
            } => {
                let answer = self.go_to(*way, by, why).await?;
                drop(reply.send(answer));
            }
            Message::Administer { order, reply } => {
                let answer = self.administer(order).await?;
                drop(reply.send(answer));
            }
            Message::Command {
                rollout,
                command,
                reply,
            } => {
                let answer = self.command(&rollout, command).await?;
                drop(reply.send(answer));
            }
            Message::Wake => self.next_round = self.now(),
        }
        Ok(())
    }

    /// Feeds what somebody waits for an answer to.
    async fn say(&mut self, input: Input) -> Result<std::result::Result<(), CommandError>> {
        let in_doubt = self.doubt.is_some() && !self.resolve_doubt().await?;
        Ok(match self.decide(input) {
            Err(rejected) => Err(CommandError::Rejected(rejected)),
            Ok(None) => Ok(()),
            // What may be in the log is looked up before anything goes forward.
            Ok(Some(step)) if in_doubt && !is_back(&step) => Err(CommandError::StoreUnavailable),
            Ok(Some(step)) => {
                if self.take(step, None).await? {
                    Ok(())
                } else {
                    Err(CommandError::StoreUnavailable)
                }
            }
        })
    }

    async fn command(
        &mut self,
        id: &RolloutId,
        command: Command,
    ) -> Result<std::result::Result<(), CommandError>> {
        if self.ledger.queue.iter().any(|queued| queued.id == *id) {
            return self.withdraw_on(id, &command).await;
        }
        if self.rollout().is_none_or(|r| r.id() != id) {
            return Ok(Err(CommandError::NotInProgress(id.clone())));
        }
        self.say(Input::Operator(command)).await
    }

    /// Feeds one input; rejections are no news here (a late answer, a verdict about an older epoch).
    async fn feed(&mut self, input: Input) -> Result<()> {
        if self.doubt.is_some() {
            return Ok(());
        }
        // Until every router has been read back, only what goes back may be decided.
        let Ok(Some(step)) = self.decide(input) else {
            return Ok(());
        };
        if !self.active && step.state.phase.stage().is_some() {
            return Ok(());
        }
        self.take(step, None).await?;
        Ok(())
    }

    fn decide(&self, input: Input) -> std::result::Result<Option<Step>, Rejected> {
        self.rollout()
            .map_or(Ok(None), |r| r.decide(self.ledger.next, self.now(), input))
    }

    /// Logs a step and folds it in. `false`: it is not in the log for certain; where it goes back, the routers have been told.
    async fn take(&mut self, step: Step, saved: Option<Saved>) -> Result<bool> {
        let back = is_back(&step);
        let binding = is_binding(&step);
        let logged = self.learner.logged(saved.as_ref());
        let (checkpoint, seen) = match saved {
            None => (None, None),
            Some(Saved::Whole(checkpoint)) => (Some(*checkpoint), None),
            Some(Saved::Added(seen)) => (None, Some(seen)),
        };
        let event = Event::Stepped {
            step: Box::new(step.clone()),
            checkpoint,
            seen,
        };
        match self.append(event).await {
            Ok(()) => {
                self.learner.since_whole = logged;
                if self.awaits_routers() {
                    self.next_round = self.now();
                }
                self.publish();
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::Fenced => Err(error),
            Err(_) => {
                // Going back does not wait for the store, as long as nothing binding is logged or in doubt.
                let free = self.may_go_back_unlogged() && !binding;
                let left = (back && free).then(|| Box::new(step.clone()));
                let again = (back || outlasts_a_doubt(&step.input)).then_some(step.input);
                self.in_doubt(binding, again);
                let Some(step) = left else {
                    return Ok(false);
                };
                if let Some(doubt) = &mut self.doubt {
                    doubt.left = Some(step.clone());
                }
                self.emergency(&step).await
            }
        }
    }

    fn may_go_back_unlogged(&self) -> bool {
        let exposed = matches!(
            self.rollout().map(Rollout::phase),
            Some(Phase::Shifting { .. } | Phase::Soaking { .. } | Phase::Held { .. })
        );
        exposed && !self.suspected && !self.doubt.as_ref().is_some_and(|d| d.binding)
    }

    fn in_doubt(&mut self, binding: bool, input: Option<Input>) {
        let now = self.now();
        self.store_down_since.get_or_insert(now);
        let (bound, left, heard) = match self.doubt.take() {
            Some(before) => (before.binding, before.left, before.heard),
            None => (false, None, None),
        };
        self.doubt = Some(Doubt {
            binding: binding || bound,
            input,
            left,
            heard,
            retry_at: now.after(STORE_RETRY),
        });
    }

    /// Reads the log again after an append whose outcome is unknown; then decides again what may be missing.
    async fn resolve_doubt(&mut self) -> Result<bool> {
        let before = self.ledger.next;
        match self.read_log().await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Transient => {
                let retry_at = self.now().after(STORE_RETRY);
                if let Some(doubt) = &mut self.doubt {
                    doubt.retry_at = retry_at;
                }
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        self.store_down_since = None;
        let missing = self.ledger.next == before;
        self.suspected =
            missing && (self.suspected || self.doubt.as_ref().is_some_and(|d| d.binding));
        let (again, heard) = match self.doubt.take() {
            // What is there may be an earlier entry that came late; routers that went back are not led on.
            Some(doubt) => {
                let missing = doubt.input.filter(|_| missing);
                (doubt.left.map(|step| step.input).or(missing), doubt.heard)
            }
            None => (None, None),
        };
        self.publish();
        if let Some(input) = again
            && let Ok(Some(step)) = self.decide(input)
        {
            self.take(step, None).await?;
        }
        let fence = self.fence;
        if let (None, Some(routers)) = (&self.doubt, heard)
            && let Ok(Some(step)) = self.decide(Input::Found { fence, routers })
            && is_back(&step)
        {
            self.take(step, None).await?;
        }
        Ok(self.doubt.is_none())
    }

    async fn collect_jobs(&mut self) -> Result<()> {
        while let Some(Finished {
            intent,
            input,
            outcome,
        }) = self.jobs.next(self.now())
        {
            if self.ledger.outbox.contains_key(&intent) {
                if let Err(error) = self.append(Event::Delivered { intent, outcome }).await {
                    if error.kind() == ErrorKind::Fenced {
                        return Err(error);
                    }
                    self.in_doubt(false, None);
                }
            } else {
                self.feed(input).await?;
            }
            if self.doubt.is_some() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn begin_jobs(&mut self) {
        let now = self.now();
        let fence = self.fence;
        let rollout = self.ledger.rollout.as_ref();
        let pending = rollout
            .into_iter()
            .flat_map(Rollout::pending)
            .chain(self.ledger.outbox.values());
        for intent in pending.filter(|i| !matches!(i.effect, Effect::Route { .. })) {
            let at = Position {
                fence,
                seq: intent.id.seq,
            };
            self.jobs.begin(now, intent, at, rollout);
        }
    }

    /// How long until something is due.
    fn pause(&self) -> Duration {
        let now = self.now();
        if self.awaits_routers() || self.doubt.is_some() || !self.active {
            return CONFIRM;
        }
        let due = [
            self.rollout().and_then(Rollout::next_wakeup),
            self.next_look,
            Some(self.next_round),
            self.jobs.next_try(),
            self.watch.next_due(),
        ];
        let soonest = due
            .into_iter()
            .flatten()
            .min()
            .unwrap_or_else(|| now.after(IDLE));
        soonest.since(now).clamp(Duration::from_millis(5), IDLE)
    }

    fn awaits_routers(&self) -> bool {
        self.rollout().is_some_and(|r| match r.phase() {
            Phase::Shifting { .. }
            | Phase::Promoting
            | Phase::RollingBack {
                part: Recovery::Redirecting,
            } => true,
            phase => phase.is_end() && !r.is_settled(),
        })
    }

    fn rollout(&self) -> Option<&Rollout> {
        self.ledger.rollout.as_ref()
    }

    fn now(&self) -> Timestamp {
        self.parts.clock.now().after(self.behind)
    }

    async fn append(&mut self, event: Event) -> Result<()> {
        let seq = self.ledger.next;
        let (entry, bytes) = Entry::after(&self.ledger, event).map_err(|e| {
            Error::permanent(format!("entry {seq} cannot be written as JSON")).because(e)
        })?;
        // The split as it will be once the entry is folded in, in the same commit.
        let split = self.ledger.split_after(&entry.event);
        let (store, endpoint) = (&self.parts.store, &self.parts.endpoint);
        store
            .append(endpoint, self.fence, seq, &bytes, split.as_ref())
            .await?;
        self.ledger
            .fold(endpoint, seq, &entry)
            .map_err(|e| Error::permanent(e.to_string()))?;
        self.store_down_since = None;
        self.suspected = false;
        Ok(())
    }

    async fn read_log(&mut self) -> Result<()> {
        loop {
            let page = self
                .parts
                .store
                .read(&self.parts.endpoint, self.ledger.next)
                .await?;
            let empty = page.entries.is_empty();
            for (seq, bytes) in page.entries {
                let entry = Entry::decode(&self.parts.endpoint, seq, &bytes)
                    .map_err(|e| Error::permanent(e.to_string()))?;
                self.ledger
                    .fold(&self.parts.endpoint, seq, &entry)
                    .map_err(|e| Error::permanent(e.to_string()))?;
            }
            if !page.more || empty {
                return Ok(());
            }
        }
    }

    fn publish(&self) {
        self.status.send_modify(|status| {
            status.fence = self.fence;
            status.ledger = Arc::new(self.ledger.clone());
        });
    }
}

fn is_back(step: &Step) -> bool {
    step.intents.iter().any(|i| {
        matches!(
            i.effect,
            Effect::Route {
                direction: Direction::Back,
                ..
            }
        )
    })
}

/// What is decided again after a doubt. What rests on a read-back is not: the routers may have changed since.
fn outlasts_a_doubt(input: &Input) -> bool {
    matches!(
        input,
        Input::Operator(_) | Input::Alarm(_) | Input::Done { .. } | Input::PreFlight(_)
    )
}

/// After it is logged, or may be, there is no going back without the log.
fn is_binding(step: &Step) -> bool {
    step.intents.iter().any(|i| {
        matches!(
            i.effect,
            Effect::Route {
                direction: Direction::Promote | Direction::End,
                ..
            } | Effect::Retire(_)
        )
    })
}

impl Controller {
    /// What the routers said in this round; a router that has never answered under this fence keeps the controller inactive.
    fn note_round(&mut self, routers: &Observed) {
        self.active = self.active || routers.iter().all(|(_, state)| state.is_some());
    }

    /// When a freeze ends that is not known yet.
    fn frozen_until(&self) -> Option<Timestamp> {
        let rollout = self.rollout().filter(|r| !r.phase().is_end())?;
        let until = self.parts.calendar.as_ref()?.frozen_until(self.now())?;
        (rollout.state().frozen_until != Some(until)).then_some(until)
    }

    /// Asks the backend whether the baseline can serve, where that matters. Twice in a row it must say no.
    async fn check_baseline(&mut self) -> Result<()> {
        let Some(rollout) = self.rollout() else {
            return Ok(());
        };
        let matters = rollout.phase().stage().is_some() || rollout.phase() == Phase::Baking;
        let (Some(backend), true, false) =
            (&self.parts.backend, matters, rollout.state().baseline_cold)
        else {
            return Ok(());
        };
        let healthy = routers::within(backend.healthy(rollout.baseline())).await;
        match healthy {
            Ok(Some(true)) => self.unhealthy = 0,
            Ok(Some(false)) => self.unhealthy += 1,
            Ok(None) | Err(_) => return Ok(()),
        }
        if self.unhealthy == 1 {
            return Ok(());
        }
        let baseline = self.unhealthy == 0;
        self.feed(Input::Health { baseline }).await
    }
}
