//! A state of the model: two controllers, two routers, a store, a backend, and what is under way between them.

use crate::broken::{self, Broken};
use crate::kit::{Answer, CoreId, EntryId, Kit, LogId, OrderId, Question, Seen, lasts_until};
use crate::rules::Rule;
use llm_rollout::Phase;

/// What may go wrong how often, and what may happen at all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) stages: u8,
    pub(crate) rollouts: u8,
    /// Faults of all kinds together.
    pub(crate) faults: u8,
    /// The kinds that there are.
    pub(crate) kinds: &'static [Fault],
    /// Ticks of a router's clock while anything depends on it. Clocks tick apart, so they may run at any rates.
    pub(crate) ticks: u8,
    /// Owners of the endpoint, one after the other.
    pub(crate) fences: u8,
    /// Whether a verdict may be that the candidate harms.
    pub(crate) fails: bool,
    /// Routers remember nothing over a restart, and read the store's split before they serve.
    pub(crate) forgetful: bool,
}

impl Limits {
    /// One rollout of one stage, with as many faults of these kinds.
    pub(crate) const fn of(faults: u8, kinds: &'static [Fault]) -> Self {
        Self {
            stages: 1,
            rollouts: 1,
            faults,
            kinds,
            ticks: 0,
            fences: 3,
            fails: true,
            forgetful: false,
        }
    }
}

/// What goes wrong, and what people do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A controller dies.
    Crash,
    /// Another controller starts while one lives.
    Takeover,
    /// A request or its answer is lost.
    Loss,
    /// A request arrives late, or once more.
    Late,
    /// An append takes effect, or not, and its answer is lost.
    Doubt,
    /// The store cannot be reached.
    Outage,
    /// A router starts again.
    Restart,
    /// Somebody aborts.
    Abort,
    /// Somebody forces the baseline on a router.
    Force,
    /// Somebody promotes.
    PromoteNow,
    /// A verdict about an earlier split, or from before the split was confirmed.
    OldVerdict,
    /// A phase takes too long.
    Deadline,
    /// The candidate cannot be loaded.
    Unservable,
}

/// All of them.
pub(crate) const FAULTS: &[Fault] = &[
    Fault::Crash,
    Fault::Takeover,
    Fault::Loss,
    Fault::Late,
    Fault::Doubt,
    Fault::Outage,
    Fault::Restart,
    Fault::Abort,
    Fault::Force,
    Fault::PromoteNow,
    Fault::OldVerdict,
    Fault::Deadline,
    Fault::Unservable,
];

/// Everything, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct World {
    pub(crate) log: LogId,
    /// The newest.
    pub(crate) fence: u8,
    pub(crate) down: bool,
    pub(crate) controllers: [Controller; 2],
    pub(crate) routers: [Router; 2],
    /// Under way, and nobody waits for an answer.
    pub(crate) late: [Option<Late>; 2],
    pub(crate) backend: Backend,
    /// Faults so far.
    pub(crate) faults: u8,
    /// Rollouts of which an abort has been acknowledged, as bits.
    pub(crate) acknowledged: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct Controller {
    pub(crate) alive: bool,
    pub(crate) fence: u8,
    pub(crate) log: LogId,
    pub(crate) active: bool,
    pub(crate) doubt: Option<Doubt>,
    pub(crate) work: Work,
    /// It has read the log and has no fence yet (only without rule 1).
    pub(crate) peeked: bool,
    /// It has been told that somebody newer owns the endpoint (only without rule 14).
    pub(crate) deposed: bool,
    /// What it heard last (only without rule 9).
    pub(crate) heard: [Seen; 2],
    /// For the properties: rollouts that some router had been told to leave when it began.
    pub(crate) warned: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Doubt {
    /// Promotion or an end may be logged.
    pub(crate) binding: bool,
    /// What may be logged; none for a submission.
    pub(crate) entry: EntryId,
    /// It goes back, and the routers have been or are being told.
    pub(crate) back: bool,
}

/// What a controller is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) enum Work {
    #[default]
    Idle,
    /// It visits the routers.
    Round { why: Why, slots: [Slot; 2] },
    /// It is about to log what it has decided.
    Append {
        entry: EntryId,
        clean: bool,
        operator: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Why {
    Plain,
    /// A verdict has come. Clean: every router served the split when it came, and it is about this time only.
    Look {
        pass: bool,
        epoch: u8,
        clean: bool,
    },
    /// To go back without the log.
    Emergency {
        entry: EntryId,
        operator: bool,
    },
}

/// One router in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Slot {
    Observe,
    /// Being told; what it said before.
    Set {
        order: OrderId,
        seen: Seen,
    },
    Renew {
        order: OrderId,
        seen: Seen,
    },
    Done(Seen),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Router {
    pub(crate) core: CoreId,
    pub(crate) boot: u8,
    /// Its clock in this boot.
    pub(crate) now: u8,
    /// For the properties: rollouts that it has been told to leave, as bits.
    pub(crate) told: u8,
    /// The rollout in progress when the baseline was forced.
    pub(crate) forced: u8,
    /// One more than its clock reading as last heard by a controller that may prolong.
    pub(crate) heard: u8,
    /// The newest fence that has heard it.
    pub(crate) reader: u8,
    /// The newest epoch whose share it has had and lost.
    pub(crate) lost: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Late {
    Order {
        router: u8,
        order: OrderId,
        renew: bool,
    },
    Retire {
        version: u8,
        at: (u8, u8),
    },
}

/// Which versions can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Backend {
    pub(crate) loaded: [bool; 2],
    /// The newest load or retirement of each.
    pub(crate) newest: [(u8, u8); 2],
    /// Intents that have changed something, by position in the log.
    pub(crate) took: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// A controller starts: acquires, then replays.
    Start(u8),
    /// Without rule 1: it replays, and acquires later.
    Peek(u8),
    Crash(u8),
    Round(u8),
    Verdict(u8, bool),
    OldVerdict(u8),
    EarlyVerdict(u8),
    Deliver(u8, u8),
    Lose(u8, u8),
    LoseAnswer(u8, u8),
    Delay(u8, u8),
    Duplicate(u8, u8),
    Append(u8),
    /// Its answer is lost; whether it takes effect.
    AppendLost(u8, bool),
    ReadAgain(u8),
    Job(u8, u8),
    JobTwice(u8, u8),
    JobFails(u8, u8),
    Deadline(u8),
    Submit(u8),
    Begin(u8),
    Abort(u8),
    PromoteNow(u8),
    Force(u8),
    Restart(u8),
    Tick(u8),
    Arrive(u8),
    Down,
    Up,
}

pub(crate) type Next = Result<World, Broken>;

pub(crate) fn bit(number: u8) -> u8 {
    1 << number
}

impl World {
    /// One controller has begun; a rollout has been submitted.
    pub(crate) fn first(kit: &mut Kit) -> Self {
        let empty = kit.first_log();
        let submit = kit
            .decide(empty, crate::kit::Happens::Submit)
            .expect("it can be submitted");
        let log = kit.fold(empty, submit);
        let core = kit.first_router();
        let router = Router {
            core,
            boot: 1,
            now: 0,
            told: 0,
            forced: 0,
            heard: 0,
            reader: 0,
            lost: 0,
        };
        let first = Controller {
            alive: true,
            fence: 1,
            log,
            active: !kit.rules.hold(Rule::ReadsBackFirst),
            ..Controller::default()
        };
        Self {
            log,
            fence: 1,
            down: false,
            controllers: [first, Controller::default()],
            routers: [router; 2],
            late: [None; 2],
            backend: Backend {
                loaded: [true, false],
                newest: [(0, 0); 2],
                took: 0,
            },
            faults: 0,
            acknowledged: 0,
        }
    }

    /// The same state with routers and controllers in a fixed order, and whether the routers, the controllers were swapped.
    pub(crate) fn canonical(mut self) -> (Self, bool, bool) {
        self.late.sort_unstable();
        let controllers = self.controllers[0] < self.controllers[1];
        if controllers {
            self.controllers.swap(0, 1);
        }
        let mut mirrored = self;
        mirrored.routers.swap(0, 1);
        for controller in &mut mirrored.controllers {
            controller.heard.swap(0, 1);
            if let Work::Round { slots, .. } = &mut controller.work {
                slots.swap(0, 1);
            }
        }
        for late in mirrored.late.iter_mut().flatten() {
            if let Late::Order { router, .. } = late {
                *router = 1 - *router;
            }
        }
        mirrored.late.sort_unstable();
        let routers = mirrored < self;
        (if routers { mirrored } else { self }, routers, controllers)
    }

    pub(crate) fn told(&self) -> u8 {
        self.routers[0].told | self.routers[1].told
    }

    /// Whether every router serves the split of this epoch now.
    pub(crate) fn serves(&self, kit: &Kit, epoch: u8) -> bool {
        self.routers
            .iter()
            .all(|r| kit.raised(r.core, r.now) && kit.core(r.core).epoch == epoch)
    }

    fn may(&self, limits: &Limits, fault: Fault) -> bool {
        self.faults < limits.faults && limits.kinds.contains(&fault)
    }

    /// One more fault.
    fn worse(mut self) -> Self {
        self.faults += 1;
        self
    }

    /// Everything that can happen next.
    pub(crate) fn actions(&self, kit: &Kit, limits: &Limits, out: &mut Vec<Action>) {
        out.clear();
        for c in 0..2 {
            self.controller_actions(kit, limits, c, out);
        }
        for r in 0..2 {
            let router = &self.routers[usize::from(r)];
            if self.is_timed(kit, r) && (router.now < limits.ticks || limits.ticks == 0) {
                out.push(Action::Tick(r));
            }
            if self.may(limits, Fault::Restart) {
                out.push(Action::Restart(r));
            }
            let log = kit.log(self.log);
            if self.may(limits, Fault::Force) && !log.settled && log.routed.is_some() {
                out.push(Action::Force(r));
            }
        }
        for (i, late) in (0..).zip(&self.late) {
            if late.is_some() {
                out.push(Action::Arrive(i));
            }
        }
        if self.down {
            out.push(Action::Up);
        } else if self.may(limits, Fault::Outage) {
            out.push(Action::Down);
        }
    }

    fn controller_actions(&self, kit: &Kit, limits: &Limits, c: u8, out: &mut Vec<Action>) {
        let own = &self.controllers[usize::from(c)];
        if !own.alive {
            let other = self.controllers[usize::from(1 - c)].alive;
            let first_free = c == 0 || other;
            if first_free
                && self.fence < limits.fences
                && !self.down
                && (!other || self.may(limits, Fault::Takeover))
            {
                if kit.rules.hold(Rule::AcquiresBeforeReading) || own.peeked {
                    out.push(Action::Start(c));
                } else {
                    out.push(Action::Peek(c));
                }
            }
            return;
        }
        if self.may(limits, Fault::Crash) {
            out.push(Action::Crash(c));
        }
        let log = kit.log(own.log);
        match own.work {
            Work::Round { slots, .. } => {
                for (r, slot) in (0..).zip(slots) {
                    if matches!(slot, Slot::Done(_)) {
                        continue;
                    }
                    out.push(Action::Deliver(c, r));
                    if self.may(limits, Fault::Loss) {
                        out.push(Action::Lose(c, r));
                        out.push(Action::LoseAnswer(c, r));
                    }
                    if slot != Slot::Observe
                        && self.late.contains(&None)
                        && self.may(limits, Fault::Late)
                    {
                        out.push(Action::Delay(c, r));
                        out.push(Action::Duplicate(c, r));
                    }
                }
            }
            Work::Append { .. } => {
                out.push(Action::Append(c));
                if self.may(limits, Fault::Doubt) && !self.down {
                    out.extend([Action::AppendLost(c, true), Action::AppendLost(c, false)]);
                }
            }
            Work::Idle => {
                out.push(Action::Round(c));
                if self.may(limits, Fault::Abort) && !log.phase.is_end() {
                    out.push(Action::Abort(c));
                }
                if own.doubt.is_some() {
                    if !self.down {
                        out.push(Action::ReadAgain(c));
                    }
                    return;
                }
                let end = log.settled
                    || (log.phase.is_end() && !kit.rules.hold(Rule::NextFromConfirmedEnd));
                if end && log.number < limits.rollouts {
                    out.push(Action::Submit(c));
                }
                if !own.active {
                    return;
                }
                match log.phase {
                    Phase::Planned => out.push(Action::Begin(c)),
                    Phase::Soaking { .. } => {
                        out.push(Action::Verdict(c, true));
                        if limits.fails {
                            out.push(Action::Verdict(c, false));
                        }
                        if self.may(limits, Fault::OldVerdict) {
                            out.extend([Action::OldVerdict(c), Action::EarlyVerdict(c)]);
                        }
                        if self.may(limits, Fault::PromoteNow) {
                            out.push(Action::PromoteNow(c));
                        }
                    }
                    Phase::Baking => out.push(Action::Deadline(c)),
                    Phase::Warming | Phase::Shifting { .. } | Phase::Promoting
                        if self.may(limits, Fault::Deadline) =>
                    {
                        out.push(Action::Deadline(c));
                    }
                    _ => {}
                }
                for (j, job) in (0..).zip(&log.jobs) {
                    out.push(Action::Job(c, j));
                    if job.what == crate::kit::Carry::Retire
                        && self.late.contains(&None)
                        && self.may(limits, Fault::Late)
                    {
                        out.push(Action::JobTwice(c, j));
                    }
                    if job.what == crate::kit::Carry::Prepare && self.may(limits, Fault::Unservable)
                    {
                        out.push(Action::JobFails(c, j));
                    }
                }
            }
        }
    }

    /// What is so after it.
    pub(crate) fn after(&self, kit: &mut Kit, action: Action) -> Next {
        let next = self.act(kit, action)?.tidied(kit);
        broken::anywhere(kit, &next)?;
        Ok(next)
    }

    fn act(mut self, kit: &mut Kit, action: Action) -> Next {
        match action {
            Action::Start(c) => {
                let takeover = self.controllers[usize::from(1 - c)].alive;
                Ok(if takeover { self.worse() } else { self }.start(kit, c))
            }
            Action::Peek(c) => {
                let own = &mut self.controllers[usize::from(c)];
                (own.log, own.peeked) = (self.log, true);
                Ok(self)
            }
            Action::Crash(c) => {
                self.controllers[usize::from(c)] = Controller::default();
                Ok(self.worse())
            }
            Action::Round(c) => Ok(self.round(kit, c)),
            Action::Verdict(c, pass) => {
                let epoch = kit.log(self.controllers[usize::from(c)].log).epoch;
                let clean = self.serves(kit, epoch);
                Ok(self.look(kit, c, Why::Look { pass, epoch, clean }))
            }
            Action::OldVerdict(c) => {
                let epoch = kit.log(self.controllers[usize::from(c)].log).epoch - 1;
                let why = Why::Look {
                    pass: true,
                    epoch,
                    clean: false,
                };
                Ok(self.worse().look(kit, c, why))
            }
            Action::EarlyVerdict(c) => {
                let world = self.worse();
                // A cursor of this epoch is opened once the epoch is confirmed; what was counted before is left.
                if kit.rules.hold(Rule::WindowAfterConfirmation) {
                    return Ok(world);
                }
                let epoch = kit.log(self.controllers[usize::from(c)].log).epoch;
                let why = Why::Look {
                    pass: true,
                    epoch,
                    clean: false,
                };
                Ok(world.look(kit, c, why))
            }
            Action::Deliver(c, r) => self.deliver(kit, c, r),
            Action::Lose(c, r) => Ok(self.worse().unanswered(kit, c, r)),
            Action::LoseAnswer(c, r) => {
                let question = self.question(c, r);
                let (world, _) = self.worse().ask(kit, r, question)?;
                Ok(world.unanswered(kit, c, r))
            }
            Action::Delay(c, r) => Ok(self.worse().copied(c, r).unanswered(kit, c, r)),
            Action::Duplicate(c, r) => Ok(self.worse().copied(c, r)),
            Action::Append(c) => self.append(kit, c),
            Action::AppendLost(c, landed) => self.worse().append_lost(kit, c, landed),
            Action::ReadAgain(c) => Ok(self.read_again(kit, c)),
            Action::Job(c, j) => self.job(kit, c, j, true),
            Action::JobTwice(c, j) => {
                let own = &self.controllers[usize::from(c)];
                let job = kit.log(own.log).jobs[usize::from(j)];
                let late = Late::Retire {
                    version: job.version,
                    at: (own.fence, job.seq),
                };
                self.worse().with_late(late).job(kit, c, j, true)
            }
            Action::JobFails(c, j) => self.worse().job(kit, c, j, false),
            Action::Deadline(c) => {
                let baking = kit.log(self.controllers[usize::from(c)].log).phase == Phase::Baking;
                let world = if baking { self } else { self.worse() };
                Ok(world.feed(kit, c, crate::kit::Happens::Deadline))
            }
            Action::Submit(c) => Ok(self.feed(kit, c, crate::kit::Happens::Submit)),
            Action::Begin(c) => Ok(self.feed(kit, c, crate::kit::Happens::Begin)),
            Action::Abort(c) => Ok(self.worse().command(kit, c, crate::kit::Happens::Abort)),
            Action::PromoteNow(c) => {
                Ok(self
                    .worse()
                    .command(kit, c, crate::kit::Happens::PromoteNow))
            }
            Action::Force(r) => {
                let log = kit.log(self.log);
                let (number, end) = (log.number, log.phase.is_end());
                let mut world = self.worse().ask(kit, r, Question::Force)?.0;
                let router = &mut world.routers[usize::from(r)];
                router.told |= bit(number);
                if !end {
                    router.forced = number;
                }
                Ok(world)
            }
            Action::Restart(r) => {
                let boot = self.routers[usize::from(r)].boot + 1;
                let mut world = self.worse().ask(kit, r, Question::Restart(boot))?.0;
                if kit.forgetful {
                    world.routers[usize::from(r)].core = kit.reloaded(self.log, boot);
                }
                let router = &mut world.routers[usize::from(r)];
                (router.boot, router.now, router.heard) = (boot, 0, 0);
                Ok(world)
            }
            Action::Tick(r) => {
                let router = &mut self.routers[usize::from(r)];
                router.now += 1;
                let lost = kit.core(router.core);
                let world = self.ask(kit, r, Question::Nothing)?.0;
                // A share that has run out is lost, in its epoch.
                let mut world = world;
                let router = &mut world.routers[usize::from(r)];
                if lost.share > 0 && !lost.lapsed && !kit.raised(router.core, router.now) {
                    router.lost = router.lost.max(lost.epoch);
                }
                Ok(world)
            }
            Action::Arrive(i) => match self.late[usize::from(i)].take() {
                Some(Late::Order {
                    router,
                    order,
                    renew,
                }) => {
                    let question = if renew {
                        Question::Renew(order)
                    } else {
                        Question::Set(order)
                    };
                    Ok(self.ask(kit, router, question)?.0)
                }
                Some(Late::Retire { version, at }) => self.retire(kit, version, at),
                None => Ok(self),
            },
            Action::Down => {
                self.down = true;
                Ok(self.worse())
            }
            Action::Up => {
                self.down = false;
                Ok(self)
            }
        }
    }

    /// A router does what it is asked.
    pub(crate) fn ask(
        mut self,
        kit: &mut Kit,
        r: u8,
        question: Question,
    ) -> Result<(Self, Answer), Broken> {
        let before = self.routers[usize::from(r)];
        let (core, answer) = kit.ask(before.core, before.boot, before.now, question);
        let router = &mut self.routers[usize::from(r)];
        router.core = core;
        broken::moved(kit, &before, router, question)?;
        Ok((self, answer))
    }

    /// The request as it is under way.
    pub(crate) fn question(&self, c: u8, r: u8) -> Question {
        let own = &self.controllers[usize::from(c)];
        match own.work {
            Work::Round { slots, .. } => match slots[usize::from(r)] {
                Slot::Observe => Question::Observe(own.fence),
                Slot::Set { order, .. } => Question::Set(order),
                Slot::Renew { order, .. } => Question::Renew(order),
                Slot::Done(_) => Question::Nothing,
            },
            _ => Question::Nothing,
        }
    }

    fn copied(self, c: u8, r: u8) -> Self {
        match self.question(c, r) {
            Question::Set(order) => self.with_late(Late::Order {
                router: r,
                order,
                renew: false,
            }),
            Question::Renew(order) => self.with_late(Late::Order {
                router: r,
                order,
                renew: true,
            }),
            _ => self,
        }
    }

    fn with_late(mut self, late: Late) -> Self {
        if let Some(free) = self.late.iter_mut().find(|l| l.is_none()) {
            *free = Some(late);
        }
        self
    }

    /// Without what makes no difference any more.
    fn tidied(mut self, kit: &mut Kit) -> Self {
        for i in 0..self.late.len() {
            if let Some(Late::Order {
                router,
                order,
                renew,
            }) = self.late[i]
            {
                let Router {
                    core, boot, now, ..
                } = self.routers[usize::from(router)];
                let question = if renew {
                    Question::Renew(order)
                } else {
                    Question::Set(order)
                };
                if kit.ask(core, boot, now, question).1 == Answer::Never {
                    self.late[i] = None;
                }
            }
        }
        for r in 0..2 {
            self.rewind(kit, r);
        }
        self
    }

    /// Only differences of a clock's readings matter: it is put back as far as everything that depends on it allows.
    fn rewind(&mut self, kit: &mut Kit, r: u8) {
        let router = self.routers[usize::from(r)];
        if [Rule::OwnReading, Rule::OwnBoot, Rule::Lapses]
            .iter()
            .any(|rule| !kit.rules.hold(*rule))
        {
            return;
        }
        self.each_order(r, |order, _| {
            if kit.timed(*order) == Some(router.boot)
                && lasts_until(kit.reading(*order)) <= router.now
            {
                // Too late for ever: as good as one for another boot.
                *order = kit.outdated(*order);
            }
        });
        let raised = kit.raised(router.core, router.now);
        let mut back = if raised {
            kit.begun(router.core)
        } else {
            u8::MAX
        };
        self.each_order(r, |order, _| {
            if kit.timed(*order) == Some(router.boot) {
                back = back.min(kit.reading(*order));
            }
        });
        if router.heard > 0 && back < u8::MAX {
            back = back.min(router.heard - 1);
        }
        if back == u8::MAX {
            let router = &mut self.routers[usize::from(r)];
            (router.now, router.heard) = (0, 0);
            return;
        }
        let back = back.min(router.now);
        if back == 0 {
            return;
        }
        let Some(core) = kit.core_earlier(router.core, router.now, router.boot, back) else {
            return;
        };
        self.each_order(r, |order, _| {
            if kit.timed(*order) == Some(router.boot) {
                *order = kit.order_earlier(*order, back);
            }
        });
        let router = &mut self.routers[usize::from(r)];
        router.core = core;
        router.now -= back;
        router.heard = router.heard.saturating_sub(back);
    }

    /// Every order under way to a router, and whether it is a renewal.
    fn each_order(&mut self, r: u8, mut what: impl FnMut(&mut OrderId, bool)) {
        for late in self.late.iter_mut().flatten() {
            match late {
                Late::Order {
                    router,
                    order,
                    renew,
                } if *router == r => what(order, *renew),
                _ => {}
            }
        }
        for controller in &mut self.controllers {
            let Work::Round { slots, .. } = &mut controller.work else {
                continue;
            };
            match &mut slots[usize::from(r)] {
                Slot::Set { order, .. } => what(order, false),
                Slot::Renew { order, .. } => what(order, true),
                _ => {}
            }
        }
    }

    /// Whether anything depends on the router's clock: a share in force, or a leased order under way.
    fn is_timed(&self, kit: &Kit, r: u8) -> bool {
        let router = &self.routers[usize::from(r)];
        let mut timed = kit.raised(router.core, router.now);
        let mut copy = *self;
        copy.each_order(r, |order, _| {
            timed |= kit.timed(*order) == Some(router.boot);
        });
        timed
    }

    /// The backend takes a version out of service.
    pub(crate) fn retire(mut self, kit: &Kit, version: u8, at: (u8, u8)) -> Next {
        let v = usize::from(version - 1);
        if kit.rules.hold(Rule::RetirementsOrdered) && at < self.backend.newest[v] {
            return Ok(self);
        }
        self.backend.newest[v] = self.backend.newest[v].max(at);
        if std::mem::take(&mut self.backend.loaded[v]) {
            self.took(kit, at.1)
        } else {
            Ok(self)
        }
    }

    /// The backend loads a version.
    pub(crate) fn prepare(mut self, kit: &Kit, version: u8, at: (u8, u8)) -> Next {
        let v = usize::from(version - 1);
        if at < self.backend.newest[v] {
            return Ok(self);
        }
        self.backend.newest[v] = at;
        if std::mem::replace(&mut self.backend.loaded[v], true) {
            Ok(self)
        } else {
            self.took(kit, at.1)
        }
    }

    fn took(mut self, kit: &Kit, seq: u8) -> Next {
        self.backend.took = broken::takes_effect(kit, self.backend.took, seq)?;
        Ok(self)
    }
}
