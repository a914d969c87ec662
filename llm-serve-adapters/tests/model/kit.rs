//! The real machine and the real router, as tables: each different call is made once, and a state of the model holds numbers.
//!
//! The machine's clock stands still: a deadline may be found passed at any moment, and who said what, and why, is left out.
//! Notices and records matter to nothing that is checked here and count as delivered.

use crate::broken::Broken;
use crate::router::{self, LEASE, OrderKey};
use crate::rules::{Rule, Rules};
use llm_gates::{Judgement, Verdict};
use llm_rollout::{
    Cause, Command, Direction, Effect, Epoch, Fence, Input, IntentId, Look, Observed, Order,
    Outcome, Phase, Plan, Position, Recovery, Rollout, RolloutId, RouterClock, RouterId,
    RouterState, Seq, Split, Step, Timestamp, Verb,
};
use llm_serve_adapters::router::{Refused, RouterCore};
use llm_version_core::VersionId;
use std::collections::HashMap;
use std::time::Duration;

pub(crate) type LogId = u16;
pub(crate) type EntryId = u16;
pub(crate) type CoreId = u16;
pub(crate) type OrderId = u16;
/// What a router said; 0 is nothing.
pub(crate) type Seen = u16;

const NOW: u64 = 1_000_000;
/// Every deadline has passed by then.
const LATER: u64 = NOW * 1_000_000;

/// What happens to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Happens {
    Submit,
    Begin,
    Found {
        fence: u8,
        seen: [Seen; 2],
    },
    Judged {
        pass: bool,
        epoch: u8,
        fence: u8,
        seen: [Seen; 2],
    },
    Deadline,
    Done {
        job: u8,
        ok: bool,
    },
    Abort,
    PromoteNow,
}

impl Happens {
    /// Whether it is decided again after an append that did not reach the log: what rests on a read-back is not.
    pub(crate) fn lasts(self) -> bool {
        matches!(
            self,
            Self::Begin | Self::Done { .. } | Self::Abort | Self::PromoteNow
        )
    }
}

/// A log, folded.
#[derive(Debug, Clone)]
struct Log {
    next: u64,
    production: u8,
    epoch: Epoch,
    rollout: Option<Rollout>,
    number: u8,
    /// Retirements that earlier rollouts have left.
    outbox: Vec<Job>,
    /// What was decided, by epoch.
    decided: Vec<(Direction, Split)>,
}

/// Something to be carried out by the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) what: Carry,
    pub(crate) version: u8,
    pub(crate) seq: u8,
    /// The intent that waits for it; none for what an earlier rollout has left.
    intent: Option<IntentId>,
    /// Nobody has logged that it may be carried out now (only without rule 10).
    pub(crate) early: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carry {
    Prepare,
    Retire,
    Nothing,
}

/// What the model asks of a log, looked up once.
#[derive(Debug, Clone)]
pub(crate) struct LogFacts {
    pub(crate) next: u8,
    pub(crate) number: u8,
    pub(crate) phase: Phase,
    pub(crate) settled: bool,
    pub(crate) may_raise: bool,
    pub(crate) epoch: u8,
    pub(crate) lapses: u32,
    pub(crate) routed: Option<(u8, Direction)>,
    pub(crate) jobs: Vec<Job>,
}

impl LogFacts {
    pub(crate) fn exposed(&self) -> bool {
        self.phase.stage().is_some()
    }

    pub(crate) fn awaits_routers(&self) -> bool {
        match self.phase {
            Phase::Shifting { .. } | Phase::Promoting => true,
            Phase::RollingBack { part } => part == Recovery::Redirecting,
            phase => phase.is_end() && !self.settled,
        }
    }
}

/// An entry that is decided and not yet, or no more, in doubt.
#[derive(Debug, Clone)]
struct Entry {
    event: Event,
    facts: EntryFacts,
}

#[derive(Debug, Clone)]
enum Event {
    Submitted(Box<Rollout>),
    Stepped(Box<Step>),
    Delivered(u8),
}

/// What the model asks of an entry.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct EntryFacts {
    pub(crate) seq: u8,
    pub(crate) happens: Happens,
    /// It tells the routers to go back.
    pub(crate) back: bool,
    /// There is no going back without the log once it is logged.
    pub(crate) binding: bool,
    /// It leads to a phase with a share.
    pub(crate) stage: bool,
    /// It gives the candidate more: another stage, or promotion.
    pub(crate) advances: bool,
}

/// What the model asks of a router.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CoreFacts {
    /// The tick from which on the share in it is over; 0 without one.
    until: u8,
    pub(crate) number: u8,
    pub(crate) epoch: u8,
    pub(crate) share: u16,
    pub(crate) baseline: u8,
    pub(crate) candidate: u8,
    pub(crate) at: (u8, u8),
    pub(crate) fence: u8,
    pub(crate) mark: u8,
    pub(crate) latch: bool,
    pub(crate) lapsed: bool,
    /// The split is one that the log holds, or a steady one: index into the decided splits is checked by [`Kit::is_decided`].
    pub(crate) seen: Seen,
}

/// How an order was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    Fenced,
    /// It will never be taken.
    Never,
    Refused,
}

#[derive(Debug)]
pub(crate) struct Kit {
    pub(crate) rules: Rules,
    /// Only this property is looked at; none: all are.
    pub(crate) watch: Option<Broken>,
    /// Routers remember nothing over a restart, and read the store's split before they serve.
    pub(crate) forgetful: bool,
    plan: Plan,
    logs: Vec<(Log, LogFacts)>,
    entries: Vec<Entry>,
    cores: Vec<(RouterCore, CoreFacts)>,
    orders: Vec<OrderKey>,
    seen: Vec<RouterState>,
    names: HashMap<(u8, String), u16>,
    decided: HashMap<(LogId, Happens), Option<EntryId>>,
    folded: HashMap<(LogId, EntryId), LogId>,
    asked: HashMap<(CoreId, u8, u8, Question), (CoreId, Answer)>,
    told: HashMap<(LogId, u8, u8, u8), OrderId>,
    is_decided: HashMap<(LogId, CoreId), bool>,
    orders_earlier: HashMap<(OrderId, u8), OrderId>,
    cores_earlier: HashMap<(CoreId, u8), Option<CoreId>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Question {
    Observe(u8),
    Set(OrderId),
    Renew(OrderId),
    Force,
    Restart(u8),
    Nothing,
}

fn small(n: u64) -> u8 {
    u8::try_from(n).expect("the model is small")
}

fn index(n: usize) -> u16 {
    u16::try_from(n).expect("tables of the model are small")
}

fn version(n: u8) -> VersionId {
    format!("chat/v{n}.0.0-{}", format!("{n:02x}").repeat(32))
        .parse()
        .expect("a version")
}

fn version_number(id: &VersionId) -> u8 {
    if *id == version(1) { 1 } else { 2 }
}

fn rollout_id(number: u8) -> RolloutId {
    RolloutId::new(format!("r{number}")).expect("a name")
}

fn rollout_number(id: Option<&RolloutId>) -> u8 {
    id.map_or(0, |id| id.as_str()[1..].parse().expect("r1, r2"))
}

fn plan(stages: u8, rules: Rules) -> Plan {
    let stage = |share| format!("[[stages]]\nserve = {share}\ndwell = \"1s\"\n");
    let shares = ["10.0", "50.0"];
    let stages: Vec<_> = shares[..usize::from(stages)].iter().map(stage).collect();
    let stages = stages.concat();
    let lapses = if rules.hold(Rule::LapsesBounded) {
        LAPSES
    } else {
        1_000
    };
    Plan::from_toml(&format!(
        r#"
        alpha = 0.05
        bake = "1s"
        [metrics]
        faults = {{ fault = {{}} }}
        [[gates]]
        metric = "faults"
        weight = 1.0
        {stages}
        [lease]
        ttl = "{}ms"
        renew_every = "10ms"
        lapses = {lapses}
        "#,
        router::TTL.as_millis()
    ))
    .expect("a plan")
}

/// How many lapses end a rollout of the model.
pub(crate) const LAPSES: u32 = 2;

fn judgement(pass: bool, epoch: u8) -> Judgement {
    let verdict = if pass { Verdict::Pass } else { Verdict::Fail };
    serde_json::from_value(serde_json::json!({
        "verdict": verdict,
        "action": null,
        "epoch": epoch,
        "from": NOW - 1_000,
        "to": NOW,
        "samples": 1000,
        "log_evidence": if pass { -1.0 } else { 4.0 },
        "bound": 20f64.ln(),
        "paused": false,
        "gates": [{
            "metric": "faults",
            "weight": 1.0,
            "log_e": if pass { -1.0 } else { 4.0 },
            "candidate": { "n": 1000, "k": 10 },
            "baseline": { "n": 9000, "k": 90 },
            "ratio": 1.0,
            "verdict": verdict,
        }],
    }))
    .expect("a judgement")
}

impl Kit {
    pub(crate) fn new(stages: u8, rules: Rules, watch: Option<Broken>) -> Self {
        Self {
            rules,
            watch,
            forgetful: false,
            plan: plan(stages, rules),
            logs: Vec::new(),
            entries: Vec::new(),
            cores: Vec::new(),
            orders: Vec::new(),
            seen: Vec::new(),
            names: HashMap::new(),
            decided: HashMap::new(),
            folded: HashMap::new(),
            asked: HashMap::new(),
            told: HashMap::new(),
            is_decided: HashMap::new(),
            orders_earlier: HashMap::new(),
            cores_earlier: HashMap::new(),
        }
    }

    /// The number of what looks like this; a new one, and whether it is new.
    fn name(&mut self, table: u8, next: usize, text: String) -> (u16, bool) {
        let next = index(next);
        let number = *self.names.entry((table, text)).or_insert(next);
        (number, number == next)
    }

    /// A log with nothing but the first version.
    pub(crate) fn first_log(&mut self) -> LogId {
        self.add_log(Log {
            next: 1,
            production: 1,
            epoch: Epoch::default(),
            rollout: None,
            number: 0,
            outbox: Vec::new(),
            decided: Vec::new(),
        })
    }

    pub(crate) fn first_router(&mut self) -> CoreId {
        self.add_core(RouterCore::new(
            1,
            Split::steady(None, version(1), Epoch::default()),
        ))
    }

    /// A router without a memory of its own, after it has read the store's split.
    pub(crate) fn reloaded(&mut self, log: LogId, boot: u8) -> CoreId {
        let log = &self.logs[usize::from(log)].0;
        let split = match &log.rollout {
            Some(rollout) if rollout.state().routed.is_some() => rollout.state().split.clone(),
            _ => Split::steady(None, version(log.production), log.epoch),
        };
        self.add_core(RouterCore::new(boot.into(), split))
    }

    pub(crate) fn log(&self, id: LogId) -> &LogFacts {
        &self.logs[usize::from(id)].1
    }

    pub(crate) fn entry(&self, id: EntryId) -> EntryFacts {
        self.entries[usize::from(id)].facts
    }

    pub(crate) fn core(&self, id: CoreId) -> CoreFacts {
        self.cores[usize::from(id)].1
    }

    pub(crate) fn order(&self, id: OrderId) -> &Order {
        &self.orders[usize::from(id)].0
    }

    /// Whether the candidate serves anything at this tick.
    pub(crate) fn raised(&self, core: CoreId, ticks: u8) -> bool {
        self.core(core).until
            > if self.rules.hold(Rule::Lapses) {
                ticks
            } else {
                0
            }
    }

    fn add_log(&mut self, log: Log) -> LogId {
        let (id, new) = self.name(0, self.logs.len(), format!("{log:?}"));
        if new {
            let facts = self.log_facts(&log);
            self.logs.push((log, facts));
        }
        id
    }

    fn log_facts(&self, log: &Log) -> LogFacts {
        let mut jobs = log.outbox.clone();
        let next = small(log.next);
        let Some(rollout) = &log.rollout else {
            return LogFacts {
                next,
                number: 0,
                phase: Phase::Blocked,
                settled: true,
                may_raise: false,
                epoch: 0,
                lapses: 0,
                routed: None,
                jobs,
            };
        };
        for intent in rollout.pending() {
            let (what, version) = match &intent.effect {
                Effect::Prepare(version) => (Carry::Prepare, version),
                Effect::Retire(version) => (Carry::Retire, version),
                Effect::Route { .. } => continue,
                _ => (Carry::Nothing, rollout.baseline()),
            };
            let version = version_number(version);
            jobs.push(Job {
                what,
                version,
                seq: small(intent.id.seq.get()),
                intent: Some(intent.id),
                early: false,
            });
        }
        let routed = rollout
            .state()
            .routed
            .map(|(seq, direction)| (small(seq.get()), direction));
        // Without rule 10: as soon as it is decided rather than when it is confirmed.
        let early = match (rollout.phase(), routed) {
            (Phase::Promoting, Some((seq, _)))
                if !self.rules.hold(Rule::BaselineAfterPromotion) =>
            {
                Some((rollout.baseline(), seq))
            }
            (
                Phase::RollingBack {
                    part: Recovery::Redirecting,
                },
                Some((seq, _)),
            ) if !self.rules.hold(Rule::CandidateAfterBack) => Some((rollout.candidate(), seq)),
            _ => None,
        };
        if let Some((version, seq)) = early {
            jobs.push(Job {
                what: Carry::Retire,
                version: version_number(version),
                seq,
                intent: None,
                early: true,
            });
        }
        LogFacts {
            next,
            number: log.number,
            phase: rollout.phase(),
            settled: rollout.is_settled(),
            may_raise: rollout.may_raise(),
            epoch: small(rollout.state().split.epoch.get()),
            lapses: rollout.state().lapses,
            routed,
            jobs,
        }
    }

    fn add_core(&mut self, core: RouterCore) -> CoreId {
        let (id, new) = self.name(1, self.cores.len(), format!("{core:?}"));
        if new {
            let mut last = core.clone();
            // What has lapsed has been told so already: the reading does not matter.
            let state = last.state(Timestamp::default());
            let until = (0..u8::MAX)
                .find(|t| !core.raised(router::reading(*t)))
                .expect("leases are short");
            let split = &state.split;
            let facts = CoreFacts {
                until,
                number: rollout_number(split.rollout.as_ref()),
                epoch: small(split.epoch.get()),
                share: split.share.basis_points(),
                baseline: version_number(&split.baseline),
                candidate: split.candidate.as_ref().map_or(0, version_number),
                at: (small(state.at.fence.get()), small(state.at.seq.get())),
                fence: small(state.fence.get()),
                mark: rollout_number(state.mark.as_ref()),
                latch: state.latch.is_some(),
                lapsed: state.lapsed,
                seen: self.add_seen(RouterState {
                    clock: RouterClock::default(),
                    ..state.clone()
                }),
            };
            self.cores.push((core, facts));
        }
        id
    }

    fn add_seen(&mut self, state: RouterState) -> Seen {
        let (id, new) = self.name(2, self.seen.len(), format!("{state:?}"));
        if new {
            self.seen.push(state);
        }
        id + 1
    }

    fn add_order(&mut self, mut order: Order) -> OrderId {
        match order.direction {
            Direction::Forward => {}
            Direction::Promote => order.clock.at = Timestamp::default(),
            Direction::Back | Direction::End => order.clock = RouterClock::default(),
        }
        let (id, new) = self.name(3, self.orders.len(), format!("{order:?}"));
        if new {
            self.orders.push(OrderKey(order));
        }
        id
    }

    /// What the log tells a router with this clock.
    pub(crate) fn order_of(
        &mut self,
        log: LogId,
        fence: u8,
        boot: u8,
        ticks: u8,
    ) -> Option<OrderId> {
        if let Some(id) = self.told.get(&(log, fence, boot, ticks)) {
            return Some(*id);
        }
        let clock = RouterClock {
            boot: boot.into(),
            at: router::reading(ticks),
        };
        let rollout = self.logs[usize::from(log)].0.rollout.as_ref()?;
        let order = rollout.order(Fence::new(fence.into()), clock)?;
        let id = self.add_order(order);
        self.told.insert((log, fence, boot, ticks), id);
        Some(id)
    }

    /// Going back, before it is logged.
    pub(crate) fn unlogged_order(
        &mut self,
        entry: EntryId,
        fence: u8,
        boot: u8,
        ticks: u8,
    ) -> OrderId {
        let Event::Stepped(step) = &self.entries[usize::from(entry)].event else {
            panic!("only a step goes back");
        };
        let (seq, direction) = step.state.routed.expect("it goes back");
        let order = Order {
            at: Position {
                fence: Fence::new(fence.into()),
                seq,
            },
            direction,
            split: step.state.split.clone(),
            clock: RouterClock {
                boot: boot.into(),
                at: router::reading(ticks),
            },
        };
        self.add_order(order)
    }

    pub(crate) fn ask(
        &mut self,
        core: CoreId,
        boot: u8,
        ticks: u8,
        question: Question,
    ) -> (CoreId, Answer) {
        if let Some(known) = self.asked.get(&(core, boot, ticks, question)) {
            return *known;
        }
        let mut after = self.cores[usize::from(core)].0.clone();
        let ask = match question {
            Question::Observe(fence) => router::Ask::Observe(Fence::new(fence.into())),
            Question::Set(order) => router::Ask::Set(&self.orders[usize::from(order)]),
            Question::Renew(order) => router::Ask::Renew(&self.orders[usize::from(order)]),
            Question::Force => router::Ask::Force,
            Question::Restart(boot) => router::Ask::Restart(boot.into()),
            Question::Nothing => router::Ask::Nothing,
        };
        let answer = match router::ask(self.rules, &mut after, boot.into(), ticks, ask) {
            Ok(()) => Answer::Done,
            Err(Refused::Fenced { .. }) => Answer::Fenced,
            Err(Refused::Older { .. } | Refused::OtherBoot { .. } | Refused::Late(_)) => {
                Answer::Never
            }
            Err(_) => Answer::Refused,
        };
        let after = self.add_core(after);
        self.asked
            .insert((core, boot, ticks, question), (after, answer));
        (after, answer)
    }

    /// The boot that an order is for whose effect depends on time.
    pub(crate) fn timed(&self, order: OrderId) -> Option<u8> {
        let order = self.order(order);
        (order.direction == Direction::Forward && order.clock.boot > 0)
            .then(|| small(order.clock.boot))
    }

    /// The same order for no boot at all.
    pub(crate) fn outdated(&mut self, order: OrderId) -> OrderId {
        let mut order = self.order(order).clone();
        order.clock = RouterClock::default();
        self.add_order(order)
    }

    /// The tick that an order carries.
    pub(crate) fn reading(&self, order: OrderId) -> u8 {
        router::ticks(self.order(order).clock.at)
    }

    /// The tick from which the lease of the share in force counts.
    pub(crate) fn begun(&self, core: CoreId) -> u8 {
        self.core(core).until.saturating_sub(LEASE)
    }

    pub(crate) fn order_earlier(&mut self, order: OrderId, back: u8) -> OrderId {
        if let Some(known) = self.orders_earlier.get(&(order, back)) {
            return *known;
        }
        let mut earlier = self.order(order).clone();
        earlier.clock.at = router::reading(router::ticks(earlier.clock.at) - back);
        let id = self.add_order(earlier);
        self.orders_earlier.insert((order, back), id);
        id
    }

    /// The same router, had its clock begun later; none where that cannot be made of it.
    pub(crate) fn core_earlier(
        &mut self,
        core: CoreId,
        ticks: u8,
        boot: u8,
        back: u8,
    ) -> Option<CoreId> {
        if !self.raised(core, ticks) {
            return Some(core);
        }
        if let Some(known) = self.cores_earlier.get(&(core, back)) {
            return *known;
        }
        let begun = self.begun(core);
        let mut own = self.cores[usize::from(core)].0.clone();
        let same = router::serving(&mut own, boot.into(), begun, begun) == Some(own.clone());
        let earlier = router::serving(&mut own, boot.into(), begun, begun - back).filter(|_| same);
        let earlier = earlier.map(|core| self.add_core(core));
        self.cores_earlier.insert((core, back), earlier);
        earlier
    }

    /// Whether what this router serves is what the log says somebody decided.
    pub(crate) fn is_decided(&mut self, log: LogId, core: CoreId) -> bool {
        if let Some(known) = self.is_decided.get(&(log, core)) {
            return *known;
        }
        let decided = &self.logs[usize::from(log)].0.decided;
        let facts = self.core(core);
        let state = &self.seen[usize::from(facts.seen - 1)];
        let share = !state.split.exposes()
            || decided
                .iter()
                .any(|(d, split)| *d == Direction::Forward && *split == state.split);
        let promoted = |v: u8| {
            decided
                .iter()
                .any(|(d, split)| *d == Direction::Promote && split.baseline == version(v))
        };
        let known = share && (facts.baseline == 1 || promoted(2));
        self.is_decided.insert((log, core), known);
        known
    }

    /// What the machine does about it, if anything.
    pub(crate) fn decide(&mut self, log: LogId, happens: Happens) -> Option<EntryId> {
        if let Some(known) = self.decided.get(&(log, happens)) {
            return *known;
        }
        let entry = self.decide_anew(log, happens);
        self.decided.insert((log, happens), entry);
        entry
    }

    fn decide_anew(&mut self, id: LogId, happens: Happens) -> Option<EntryId> {
        let Log {
            next,
            production,
            epoch,
            rollout,
            number,
            ..
        } = self.logs[usize::from(id)].0.clone();
        let seq = small(next);
        let event = match happens {
            Happens::Submit => {
                let candidate = version(3 - production);
                let now = Timestamp::from_millis(NOW);
                let id = rollout_id(number + 1);
                Event::Submitted(Box::new(Rollout::new(
                    id,
                    version(production),
                    candidate,
                    self.plan.clone(),
                    7,
                    epoch,
                    now,
                )))
            }
            Happens::Done { job, .. } if self.log(id).jobs[usize::from(job)].intent.is_none() => {
                Event::Delivered(self.log(id).jobs[usize::from(job)].seq)
            }
            _ => {
                let rollout = rollout?;
                let now = if happens == Happens::Deadline {
                    LATER
                } else {
                    NOW
                };
                let input = self.input(id, &rollout, happens);
                let mut step = rollout
                    .decide(Seq::new(next), Timestamp::from_millis(now), input)
                    .ok()??;
                without_detail(&mut step, &rollout);
                Event::Stepped(Box::new(step))
            }
        };
        let facts = entry_facts(&event, seq, happens, &self.log(id).clone());
        let (id, new) = self.name(4, self.entries.len(), format!("{event:?}{happens:?}"));
        if new {
            self.entries.push(Entry { event, facts });
        }
        Some(id)
    }

    fn input(&self, log: LogId, rollout: &Rollout, happens: Happens) -> Input {
        let operator = |verb| {
            Input::Operator(Command {
                verb,
                by: "ana".into(),
                why: "x".into(),
            })
        };
        match happens {
            Happens::Begin | Happens::Submit => Input::Start,
            Happens::Deadline => Input::Tick,
            Happens::Abort => operator(Verb::Abort),
            Happens::PromoteNow => operator(Verb::PromoteNow),
            Happens::Found { fence, seen } => Input::Found {
                fence: Fence::new(fence.into()),
                routers: self.observed(seen),
            },
            Happens::Judged {
                pass,
                epoch,
                fence,
                seen,
            } => {
                let own = small(rollout.state().split.epoch.get());
                let epoch = if self.rules.hold(Rule::OwnEpoch) {
                    epoch
                } else {
                    own
                };
                Input::Judged(Box::new(Look {
                    judgement: judgement(pass, epoch),
                    heartbeat: None,
                    fence: Fence::new(fence.into()),
                    routers: self.observed(seen),
                }))
            }
            Happens::Done { job, ok } => Input::Done {
                intent: self.log(log).jobs[usize::from(job)]
                    .intent
                    .expect("of the rollout"),
                outcome: if ok {
                    Outcome::Ok
                } else {
                    Outcome::Failed { reason: "x".into() }
                },
            },
        }
    }

    /// What the machine is told that the routers said.
    fn observed(&self, seen: [Seen; 2]) -> Observed {
        let routers = seen.iter().zip(["a", "b"]).filter_map(|(seen, name)| {
            let state = seen.checked_sub(1).map(|i| {
                let mut state = self.seen[usize::from(i)].clone();
                if !self.rules.hold(Rule::SeenGoesBack) {
                    (state.mark, state.latch) = (None, None);
                }
                state.lapsed &= self.rules.hold(Rule::LapseIsNoticed);
                if state.at == Position::default() && !self.rules.hold(Rule::ForgottenGoesBack) {
                    state.split.rollout = None;
                }
                state
            });
            let counts = state.is_some() || self.rules.hold(Rule::UnreachableUnconfirmed);
            counts.then(|| (RouterId::new(name).expect("a name"), state))
        });
        Observed::new(routers)
    }

    /// The log with this entry; none if it does not belong there.
    pub(crate) fn fold(&mut self, log: LogId, entry: EntryId) -> LogId {
        if let Some(known) = self.folded.get(&(log, entry)) {
            return *known;
        }
        let mut after = self.logs[usize::from(log)].0.clone();
        match &self.entries[usize::from(entry)].event {
            Event::Submitted(rollout) => {
                if let Some(over) = after.rollout.take() {
                    let retire = self
                        .log(log)
                        .jobs
                        .iter()
                        .filter(|j| j.what == Carry::Retire && !j.early);
                    // One of the two versions is the new baseline, the other the new candidate.
                    let needed = self.rules.hold(Rule::NeededIsNotRetired);
                    after.outbox.extend(
                        retire
                            .filter(|_| !needed)
                            .map(|j| Job { intent: None, ..*j }),
                    );
                    drop(over);
                }
                after.rollout = Some((**rollout).clone());
                after.number += 1;
            }
            Event::Stepped(step) => {
                let rollout = after.rollout.as_mut().expect("a rollout");
                rollout.apply(step).expect("it follows");
                let split = &step.state.split;
                after.epoch = after.epoch.max(split.epoch);
                for intent in &step.intents {
                    let Effect::Route { direction, split } = &intent.effect else {
                        continue;
                    };
                    after.decided.push((*direction, split.clone()));
                    if split.candidate.is_none() {
                        after.production = version_number(&split.baseline);
                    }
                }
            }
            Event::Delivered(seq) => after.outbox.retain(|j| j.seq != *seq),
        }
        after.next += 1;
        let id = self.add_log(after);
        self.folded.insert((log, entry), id);
        id
    }

    /// How many different things the tables hold: logs, routers, orders.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        (self.logs.len(), self.cores.len(), self.orders.len())
    }
}

/// Who, why and when are left out, and what only tells people.
fn without_detail(step: &mut Step, rollout: &Rollout) {
    let now = Timestamp::from_millis(NOW);
    step.at = now;
    step.input = Input::Tick;
    (step.state.since, step.state.stage_since, step.state.heard) = (now, now, now);
    step.state.dwell = Duration::ZERO;
    step.state.paged = false;
    if step
        .state
        .cause
        .as_ref()
        .is_some_and(|cause| *cause != Cause::Concluded)
    {
        step.state.cause = Some(Cause::NoVerdict);
    }
    step.intents
        .retain(|i| !matches!(i.effect, Effect::Notify(_) | Effect::Record(_)));
    step.done
        .retain(|id| rollout.pending().iter().any(|i| i.id == *id));
}

fn entry_facts(event: &Event, seq: u8, happens: Happens, log: &LogFacts) -> EntryFacts {
    let mut facts = EntryFacts {
        seq,
        happens,
        back: false,
        binding: false,
        stage: false,
        advances: false,
    };
    let Event::Stepped(step) = event else {
        return facts;
    };
    for intent in &step.intents {
        match &intent.effect {
            Effect::Route {
                direction: Direction::Back,
                ..
            } => facts.back = true,
            Effect::Route {
                direction: Direction::Promote | Direction::End,
                ..
            }
            | Effect::Retire(_) => facts.binding = true,
            _ => {}
        }
    }
    facts.stage = step.state.phase.stage().is_some();
    let further = step.state.phase.stage() > log.phase.stage()
        && matches!(log.phase, Phase::Soaking { .. } | Phase::Held { .. });
    facts.advances =
        further || (step.state.phase == Phase::Promoting && log.phase != Phase::Promoting);
    facts
}

/// How long a share lasts, in ticks, from the reading that its order carried.
pub(crate) const fn lasts_until(reading: u8) -> u8 {
    reading + LEASE
}
