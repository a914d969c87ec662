//! One life: the real machine and the real evidence, with a router that obeys and people who do as they are told.

use super::lives::Life;
use super::random::mix;
use super::world::{BEGIN, Interrupt, Served, Setting, World, millis};
use crate::draft::APPROVAL;
use crate::incident::Incident;
use crate::{
    Cause, Command, Direction, Effect, Epoch, Fence, Heartbeat, Input, Look, Observed, Outcome,
    Phase, Position, Rollout, RolloutId, RouterClock, RouterId, RouterState, Seq, Share, Split,
    Step, Timestamp, Verb,
};
use llm_gates::{Evidence, Judgement};
use llm_version_core::{Digest, Name, Version, VersionId};
use std::time::Duration;

const FENCE: Fence = Fence::new(1);
/// Turns of a life at the most: a backstop, looks each second for a month.
const MOST: u64 = 3_000_000;

pub(super) struct Driver<'a> {
    setting: &'a Setting<'a>,
    world: World<'a>,
    rollout: Rollout,
    fresh: Rollout,
    evidence: Evidence,
    router: RouterState,
    routers: Observed,
    now: u64,
    seq: Seq,
    /// Start of the open window.
    cursor: u64,
    next_look: u64,
    interrupts: usize,
    life: Life,
    log: Option<Vec<Step>>,
}

fn version(n: u32) -> Option<VersionId> {
    let name = Name::new("candidate").ok()?;
    Some(VersionId::new(
        name,
        Version::new(n, 0, 0),
        Digest::of(&n.to_le_bytes()),
    ))
}

impl<'a> Driver<'a> {
    #[expect(clippy::expect_used, reason = "these names are usable")]
    pub(super) fn new(setting: &'a Setting<'a>, index: u64, logged: bool) -> Self {
        let (one, two) = (
            version(1).expect("a usable name"),
            version(2).expect("a usable name"),
        );
        let id = RolloutId::new("life").expect("a usable name");
        let plan = setting.scenario.plan.clone();
        let seed = mix(setting.scenario.seed, index);
        let now = Timestamp::from_millis(BEGIN);
        let stages = plan.stages().len();
        let rollout = Rollout::new(id, one.clone(), two, plan, seed, Epoch::new(0), now);
        let router = RouterState {
            fence: FENCE,
            at: Position::default(),
            split: Split::steady(None, one, Epoch::new(0)),
            lapsed: false,
            mark: None,
            latch: None,
            clock: RouterClock::default(),
        };
        let mut driver = Self {
            setting,
            world: World::new(setting, seed),
            fresh: rollout.clone(),
            rollout,
            evidence: Evidence::new(),
            routers: observed(&router),
            router,
            now: 0,
            seq: Seq::new(0),
            cursor: 0,
            next_look: 0,
            interrupts: 0,
            life: Life::new(index, stages),
            log: logged.then(Vec::new),
        };
        driver.learn();
        driver
    }

    /// The tests learn the noise from what the baseline did before.
    fn learn(&mut self) {
        let gates = self.setting.gates.iter().flatten().next();
        let (Some(gates), true) = (gates, self.setting.history > 0) else {
            return;
        };
        let evidence = &mut self.evidence;
        self.world.history(|metric, groups| {
            // A metric that no gate of the first stage feeds learns nothing, as in a cold start.
            let _ = evidence.learn(gates, metric, groups);
        });
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_millis(BEGIN + self.now)
    }

    /// Decides, logs and folds in; what is refused changes nothing.
    fn give(&mut self, input: Input) -> bool {
        let Ok(Some(step)) = self.rollout.decide(self.seq, self.time(), input) else {
            return false;
        };
        let before = self.rollout.phase();
        let folded = match &mut self.log {
            Some(log) => {
                let folded = self.rollout.apply(&step);
                log.push(step);
                folded
            }
            None => self.rollout.absorb(step),
        };
        if folded.is_err() {
            return false;
        }
        self.seq = self.seq.next();
        let after = self.rollout.phase();
        if after != before {
            self.moved(after);
        }
        true
    }

    fn moved(&mut self, to: Phase) {
        if let Some(stage) = to.stage() {
            self.life.stage = stage;
        }
        if matches!(to, Phase::Held { .. }) {
            self.life.holds += 1;
        }
        let leaves = matches!(to, Phase::RollingBack { .. } | Phase::Promoting);
        if (leaves || to.is_end()) && self.life.decided.is_none() {
            self.life.decided = Some(Duration::from_millis(self.now));
        }
    }

    /// The life, and what happened in it if it was logged.
    pub(super) fn run(mut self) -> (Life, Option<Incident>) {
        let horizon = millis(self.setting.scenario.horizon);
        self.give(Input::Start);
        for _ in 0..MOST {
            if self.now >= horizon || !self.turn() {
                break;
            }
        }
        self.life.end = self.rollout.phase();
        self.life.cause.clone_from(&self.rollout.state().cause);
        let log = self.log.take();
        let incident = log.map(|log| Incident::new(&self.fresh, &log));
        (self.life, incident)
    }

    /// What is due next; false where nothing will ever be.
    fn turn(&mut self) -> bool {
        if self.obey() || self.answer() {
            return true;
        }
        match self.rollout.phase() {
            Phase::Soaking { stage } | Phase::Held { stage } => self.soak(stage),
            phase if phase.is_end() => return false,
            _ => return self.sleep(),
        }
        true
    }

    /// The router carries out what is due, a little later, and is read back.
    fn obey(&mut self) -> bool {
        let Some(order) = self.rollout.order(FENCE, self.router.clock) else {
            return false;
        };
        if order.at <= self.router.at {
            return false;
        }
        let late = millis(self.setting.scenario.reaction);
        self.pass(self.now.saturating_add(late), false);
        match order.direction {
            Direction::Back => self.router.mark = Some(self.rollout.id().clone()),
            Direction::End => self.router.mark = None,
            _ => {}
        }
        self.router.at = order.at;
        self.router.split = order.split;
        self.router.lapsed = false;
        self.found();
        if self.rollout.phase().stage().is_some() {
            // Windows begin where the share is confirmed.
            self.world.forget();
            self.cursor = self.now;
            self.next_look = self.now.saturating_add(self.every());
        }
        true
    }

    fn every(&self) -> u64 {
        millis(self.rollout.plan().spec().look_every)
    }

    fn found(&mut self) {
        self.routers = observed(&self.router);
        let routers = self.routers.clone();
        self.give(Input::Found {
            fence: FENCE,
            routers,
        });
    }

    /// Backends, notifiers and evaluators answer at once.
    fn answer(&mut self) -> bool {
        let open = |e: &Effect| !matches!(e, Effect::Route { .. });
        let mut pending = self.rollout.pending().iter();
        let Some(intent) = pending.find(|i| open(&i.effect)) else {
            return false;
        };
        let input = match &intent.effect {
            Effect::Evaluate(_) => Input::PreFlight(self.setting.report.clone()),
            _ => Input::Done {
                intent: intent.id,
                outcome: Outcome::Ok,
            },
        };
        self.give(input)
    }

    /// Time passes, with what the router serves.
    fn pass(&mut self, to: u64, counts: bool) {
        let split = &self.router.split;
        let lapsed = self.router.lapsed;
        let of = |share| if lapsed { Share::NONE } else { share };
        let served = Served {
            share: of(split.share),
            control: of(split.control),
            mirror: of(split.mirror),
            epoch: counts.then_some(split.epoch),
        };
        let span = self.world.pass(self.now, to, served);
        self.now = self.now.max(to);
        self.life.count(span.exposed, span.harmed);
    }

    /// Until the next look, or until something breaks.
    fn soak(&mut self, stage: usize) {
        let interrupt = self.setting.interrupts.get(self.interrupts).copied();
        match interrupt {
            Some((at, what)) if at <= self.next_look => {
                self.interrupts += 1;
                self.pass(at.max(self.now), true);
                match what {
                    Interrupt::Restart => self.router.lapsed = self.router.split.exposes(),
                    Interrupt::Crash(long) => self.crash(long),
                }
                self.found();
            }
            _ => {
                self.pass(self.next_look, true);
                self.next_look = self.now.saturating_add(self.every());
                self.look(stage);
                if self.is_due() {
                    self.give(Input::Tick);
                }
                self.people();
            }
        }
    }

    /// Nobody renews the lease: the share lapses once it has run out.
    fn crash(&mut self, long: u64) {
        let back = self.now.saturating_add(long);
        let lease = self.router.split.lease.map_or(u64::MAX, millis);
        if long > lease {
            self.pass(self.now.saturating_add(lease), true);
            self.router.lapsed = true;
        }
        self.pass(back, true);
        self.next_look = self.now.saturating_add(self.every());
    }

    fn is_due(&self) -> bool {
        let due = self.rollout.next_wakeup();
        due.is_some_and(|due| due <= self.time())
    }

    fn look(&mut self, stage: usize) {
        if self.setting.is_out(self.now) {
            let reason = "the source is out".to_owned();
            self.give(Input::SourceFailed { reason });
            return;
        }
        let epoch = self.rollout.state().split.epoch;
        let judgement = match self.setting.gates.get(stage) {
            Some(Some(gates)) => {
                let window = self.world.window(epoch, self.cursor, self.now);
                let share = self.rollout.state().split.share.basis_points();
                self.evidence.expose(share);
                match self.evidence.observe_brief(gates, window) {
                    Ok(judgement) => judgement,
                    Err(bad) => {
                        let reason = bad.to_string();
                        self.life.refused.get_or_insert(reason.clone());
                        self.give(Input::SourceFailed { reason });
                        return;
                    }
                }
            }
            _ => Judgement::ungated(epoch.get(), BEGIN + self.cursor, BEGIN + self.now),
        };
        self.cursor = self.now;
        let silence = self.setting.silence(self.now).unwrap_or(0);
        let heartbeat = Heartbeat {
            exposed: self.life.exposed,
            waiting: Duration::from_millis(silence),
        };
        let look = Look {
            judgement,
            heartbeat: Some(heartbeat),
            fence: FENCE,
            routers: self.routers.clone(),
        };
        self.give(Input::Judged(Box::new(look)));
    }

    /// What people do about holds.
    fn people(&mut self) {
        let holds = &self.rollout.state().holds;
        if holds.is_empty() {
            return;
        }
        let scenario = self.setting.scenario;
        let waited = |at: Timestamp| self.time().since(at);
        let ripe = |after: Option<Duration>, at| after.is_some_and(|after| waited(at) >= after);
        let verb = match holds.get(APPROVAL) {
            Some(said) if ripe(scenario.approval, said.at) => Some(Verb::Approve),
            Some(_) => None,
            None if holds.values().any(|said| ripe(scenario.abort, said.at)) => Some(Verb::Abort),
            None => None,
        };
        if let Some(verb) = verb {
            self.give(Input::Operator(Command {
                verb,
                by: "somebody".to_owned(),
                why: "the scenario says so".to_owned(),
            }));
        }
    }

    /// Nothing happens until the next deadline.
    fn sleep(&mut self) -> bool {
        self.people();
        let Some(due) = self.rollout.next_wakeup() else {
            return false;
        };
        self.now = self.now.max(due.as_millis().saturating_sub(BEGIN));
        self.give(Input::Tick)
    }
}

fn observed(router: &RouterState) -> Observed {
    let id = RouterId::new("router");
    Observed::new(id.into_iter().map(|id| (id, Some(router.clone()))))
}

impl Life {
    fn new(index: u64, stages: usize) -> Self {
        Self {
            index,
            end: Phase::Planned,
            cause: None,
            stage: 0,
            decided: None,
            exposed: 0,
            harmed: 0,
            stages: vec![(0, 0); stages],
            holds: 0,
            refused: None,
        }
    }

    fn count(&mut self, exposed: u64, harmed: u64) {
        self.exposed += exposed;
        self.harmed += harmed;
        if let Some(stage) = self.stages.get_mut(self.stage) {
            stage.0 += exposed;
            stage.1 += harmed;
        }
    }

    /// The metric whose gate, threshold or hard limit sent it back.
    pub fn metric(&self) -> Option<&str> {
        match &self.cause {
            Some(
                Cause::Gate { metric, .. }
                | Cause::Threshold { metric, .. }
                | Cause::HardLimit { metric, .. },
            ) => Some(metric),
            _ => None,
        }
    }
}
