//! The one place that decides control flow: what each input does in each phase.
//!
//! [`transition`] reads top to bottom as a table. What a row needs is a method of [`Draft`]; no row looks anywhere else.

#![expect(
    clippy::unnecessary_wraps,
    reason = "a row of the table may also lead nowhere, or be refused"
)]

use crate::plan::Undecided;
use crate::{
    Advance, Cause, Command, Direction, Effect, Fence, Hold, Input, IntentId, Look, Notice,
    Observed, Outcome, Phase, Position, Recovery, Rollout, Seq, Split, State, Timestamp, Verb,
};
use llm_gates::{Action, TableReport, Verdict};
use std::time::Duration;

/// Why an input was not taken; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// The rollout has ended.
    #[error("the rollout has ended ({0}); submit a new one")]
    Over(Phase),
    /// The input belongs to another phase.
    #[error("{what} does not fit: the rollout is {phase}")]
    NotNow {
        /// What came.
        what: &'static str,
        /// Where it is.
        phase: Phase,
    },
    /// A verdict about another split than the one in force.
    #[error("the verdict is about epoch {found}, in force is epoch {expected}")]
    StaleEpoch {
        /// The verdict's.
        found: u64,
        /// The one in force.
        expected: u64,
    },
    /// A verdict while not every router serves what it should.
    #[error("not every router confirms the split in force, so the verdict does not count")]
    Unconfirmed,
    /// An intent that is not pending: already over, or never asked for.
    #[error("intent {0} is not pending")]
    UnknownIntent(IntentId),
    /// There is no such hold.
    #[error("there is no hold {0:?}")]
    UnknownHold(String),
    /// No manual stage is left to approve.
    #[error("no manual stage is left to approve")]
    NothingToApprove,
}

/// A step in the making.
pub(crate) struct Draft<'a> {
    rollout: &'a Rollout,
    seq: Seq,
    now: Timestamp,
    pub(crate) state: State,
    pub(crate) done: Vec<IntentId>,
    pub(crate) effects: Vec<Effect>,
}

type Decision<'a> = Result<Option<Draft<'a>>, Rejected>;

pub(crate) fn transition<'a>(
    rollout: &'a Rollout,
    seq: Seq,
    now: Timestamp,
    input: &Input,
) -> Decision<'a> {
    let phase = rollout.phase();
    let draft = || Draft::new(rollout, seq, now);
    let not_now = |what| Err(Rejected::NotNow { what, phase });
    match (phase, input) {
        // What may come at any time.
        (_, Input::Done { intent, outcome }) => done(rollout, seq, now, *intent, outcome),
        (_, Input::Found { fence, routers }) => found(rollout, seq, now, *fence, routers),

        // The ends take nothing else.
        (
            Phase::Promoted | Phase::RolledBack | Phase::Blocked,
            Input::Tick | Input::Heartbeat(_) | Input::Frozen { .. },
        ) => Ok(None),
        (Phase::Promoted | Phase::RolledBack | Phase::Blocked, _) => Err(Rejected::Over(phase)),

        (Phase::Planned, Input::Start) => draft().start(),
        (_, Input::Start) => not_now("start"),

        (Phase::PreFlight, Input::PreFlight(report)) => draft().pre_flight(report),
        (_, Input::PreFlight(_)) => not_now("a pre-flight report"),

        (Phase::Soaking { stage } | Phase::Held { stage }, Input::Judged(look)) => {
            judged(rollout, seq, now, stage, look)
        }
        (_, Input::Judged(_)) => not_now("a verdict"),

        // Neither good nor bad data: `no_verdict` decides when it has lasted too long.
        (Phase::Soaking { .. } | Phase::Held { .. }, Input::SourceFailed { .. }) => {
            tick(rollout, seq, now)
        }
        (_, Input::SourceFailed { .. }) => Ok(None),

        (
            Phase::Shifting { .. } | Phase::Soaking { .. } | Phase::Held { .. },
            Input::Heartbeat(beat),
        ) if beat.waiting >= rollout.plan().spec().triggers.candidate_silent => {
            draft().go_back(Cause::Silent {
                waiting: beat.waiting,
            })
        }
        (_, Input::Heartbeat(_)) => Ok(None),

        (_, Input::Frozen { until }) if rollout.state().frozen_until == Some(*until) => Ok(None),
        (_, Input::Frozen { until }) => {
            let mut draft = draft();
            draft.state.frozen_until = Some(*until);
            Ok(Some(draft))
        }

        (Phase::RollingBack { .. }, Input::Operator(_)) => {
            not_now("a command (it is already going back)")
        }
        (_, Input::Operator(command)) => operator(rollout, seq, now, command),

        (_, Input::Tick) => tick(rollout, seq, now),
    }
}

/// What is due by the passing of time alone: the deadline of the phase.
pub(crate) fn next_deadline(rollout: &Rollout) -> Option<Timestamp> {
    let (state, spec) = (rollout.state(), rollout.plan().spec());
    match state.phase {
        Phase::PreFlight => spec
            .pre_flight
            .as_ref()
            .map(|p| state.since.after(p.deadline)),
        Phase::Warming if state.holds.is_empty() => Some(state.since.after(spec.outcomes.warm)),
        Phase::Warming => Some(
            state
                .since
                .after(spec.outcomes.warm.max(spec.outcomes.held)),
        ),
        Phase::Shifting { .. } | Phase::Promoting => Some(state.since.after(spec.outcomes.shift)),
        Phase::Soaking { stage } => {
            let longest = spec
                .stages
                .get(stage)
                .map(crate::StageSpec::longest)
                .unwrap_or_default();
            let limit = state.stage_since.after(longest);
            let frozen = state.frozen_until.unwrap_or_default();
            Some(
                limit
                    .max(frozen)
                    .min(state.heard.after(spec.triggers.no_verdict)),
            )
        }
        Phase::Held { .. } => Some(state.since.after(spec.outcomes.held)),
        Phase::Baking => Some(state.since.after(spec.bake)),
        Phase::Planned
        | Phase::RollingBack { .. }
        | Phase::Promoted
        | Phase::RolledBack
        | Phase::Blocked => None,
    }
}

fn tick(rollout: &Rollout, seq: Seq, now: Timestamp) -> Decision<'_> {
    if next_deadline(rollout).is_none_or(|due| now < due) {
        return Ok(None);
    }
    let (state, spec) = (rollout.state(), rollout.plan().spec());
    let mut draft = Draft::new(rollout, seq, now);
    match state.phase {
        Phase::Baking => draft.finish(Phase::Promoted),
        Phase::Soaking { stage } => {
            let silent = now >= state.heard.after(spec.triggers.no_verdict);
            let (outcome, cause, name) = if silent {
                (spec.outcomes.no_verdict, Cause::NoVerdict, "no-verdict")
            } else {
                (
                    spec.outcomes.undecided,
                    Cause::Undecided { stage },
                    "undecided",
                )
            };
            match outcome {
                Undecided::Rollback => draft.go_back(cause),
                Undecided::Hold => {
                    draft
                        .effects
                        .push(draft.notice(true, format!("held: {cause}")));
                    draft.hold(name, "plan", &cause.to_string());
                    Ok(Some(draft))
                }
            }
        }
        phase => draft.go_back(Cause::Deadline { phase }),
    }
}

fn done<'a>(
    rollout: &'a Rollout,
    seq: Seq,
    now: Timestamp,
    id: IntentId,
    outcome: &Outcome,
) -> Decision<'a> {
    let Some(intent) = rollout.pending().iter().find(|intent| intent.id == id) else {
        return Err(Rejected::UnknownIntent(id));
    };
    let mut draft = Draft::new(rollout, seq, now);
    draft.done.push(id);
    match (&intent.effect, outcome, rollout.phase()) {
        // Only what is read back confirms a split, and only a report answers an evaluation.
        (Effect::Route { .. }, _, phase) => Err(Rejected::NotNow {
            what: "an answer to a split",
            phase,
        }),
        (Effect::Evaluate(_), Outcome::Ok, phase) => Err(Rejected::NotNow {
            what: "an evaluation without a report",
            phase,
        }),
        (
            Effect::Evaluate(_) | Effect::Prepare(_),
            Outcome::Failed { reason },
            Phase::PreFlight | Phase::Warming,
        ) => draft.go_back(Cause::NotServable {
            reason: reason.clone(),
        }),
        (Effect::Prepare(_), Outcome::Ok, Phase::Warming) => draft.begin(),
        (
            Effect::Drain { .. },
            _,
            Phase::RollingBack {
                part: Recovery::Draining,
            },
        ) => draft.retire(),
        (
            Effect::Retire(_),
            _,
            Phase::RollingBack {
                part: Recovery::Retiring,
            },
        ) => draft.finish(Phase::RolledBack),
        // Over in a phase that does not wait for it: a notice, or what a later decision has overtaken.
        _ => Ok(Some(draft)),
    }
}

fn found<'a>(
    rollout: &'a Rollout,
    seq: Seq,
    now: Timestamp,
    fence: Fence,
    routers: &Observed,
) -> Decision<'a> {
    let (state, phase) = (rollout.state(), rollout.phase());
    let mut draft = Draft::new(rollout, seq, now);
    let going_on = !phase.is_end() && !matches!(phase, Phase::RollingBack { .. });
    if going_on && let Some(cause) = told_to_go_back(rollout, routers) {
        return draft.go_back(cause);
    }
    let confirmed = state
        .routed
        .is_some_and(|(at, _)| routers.confirms(Position { fence, seq: at }, &state.split));
    match phase {
        Phase::Shifting { .. } | Phase::Soaking { .. } | Phase::Held { .. }
            if has_lapsed(rollout, routers) =>
        {
            draft.resume_share()
        }
        Phase::Shifting { stage } if confirmed => draft.confirmed(stage),
        Phase::Soaking { .. } | Phase::Held { .. } | Phase::Baking => {
            match drifted(rollout, routers) {
                Some(router) => draft.go_back(Cause::Drifted { router }),
                None => Ok(None),
            }
        }
        Phase::Promoting if confirmed => {
            draft.done_routing();
            draft.enter(Phase::Baking);
            draft
                .effects
                .push(draft.notice(false, "promoted".to_owned()));
            Ok(Some(draft))
        }
        Phase::RollingBack {
            part: Recovery::Redirecting,
        } if confirmed => draft.drain(),
        Phase::Promoted | Phase::RolledBack | Phase::Blocked
            if confirmed && !rollout.is_settled() =>
        {
            draft.done_routing();
            Ok(Some(draft))
        }
        _ => Ok(None),
    }
}

/// A mark, a latch, or a router that is ahead of the log: somebody has already gone back.
fn told_to_go_back(rollout: &Rollout, routers: &Observed) -> Option<Cause> {
    let last = rollout.last().map(|(seq, _)| seq);
    routers.reachable().find_map(|(id, router)| {
        let name = id.to_string();
        if router.latch.is_some() {
            Some(Cause::Forced { router: name })
        } else if router.mark.as_ref() == Some(rollout.id())
            || (rollout.state().routed.is_some() && Some(router.at.seq) > last)
        {
            Some(Cause::Marked { router: name })
        } else {
            None
        }
    })
}

/// Whether a router had carried out the split in force and let it lapse, or has forgotten it in a restart.
fn has_lapsed(rollout: &Rollout, routers: &Observed) -> bool {
    let Some((routed, _)) = rollout.state().routed else {
        return false;
    };
    routers
        .reachable()
        .any(|(_, router)| router.lapsed && router.at.seq == routed)
}

/// A router that once confirmed the split in force, and serves another.
fn drifted(rollout: &Rollout, routers: &Observed) -> Option<String> {
    let (routed, _) = rollout.state().routed?;
    routers
        .reachable()
        .find(|(_, r)| {
            r.at.seq < routed
                || (r.at.seq == routed && !r.lapsed && r.split != rollout.state().split)
        })
        .map(|(id, _)| id.to_string())
}

fn judged<'a>(
    rollout: &'a Rollout,
    seq: Seq,
    now: Timestamp,
    stage: usize,
    look: &Look,
) -> Decision<'a> {
    let (state, spec, judgement) = (rollout.state(), rollout.plan().spec(), &look.judgement);
    let (found_epoch, expected) = (judgement.epoch, state.split.epoch.get());
    if found_epoch != expected {
        return Err(Rejected::StaleEpoch {
            found: found_epoch,
            expected,
        });
    }
    let mut draft = Draft::new(rollout, seq, now);
    if let Some(beat) = look.heartbeat {
        draft.state.exposed = beat.exposed;
        if beat.waiting >= spec.triggers.candidate_silent {
            return draft.go_back(Cause::Silent {
                waiting: beat.waiting,
            });
        }
    }
    // Harm counts even where a router cannot be reached: going back is always safe.
    if judgement.verdict == Verdict::Fail {
        let worst = judgement
            .gates
            .iter()
            .max_by(|a, b| weighted(a).total_cmp(&weighted(b)));
        return draft.go_back(Cause::Gate {
            metric: worst.map(|g| g.metric.clone()).unwrap_or_default(),
            log_evidence: judgement.log_evidence,
            bound: judgement.bound,
        });
    }
    // Everything else needs the routers to be what they were.
    if let Some(step) = found(rollout, seq, now, look.fence, &look.routers)? {
        return Ok(Some(step));
    }
    let confirmed = state.routed.is_some_and(|(at, _)| {
        look.routers.confirms(
            Position {
                fence: look.fence,
                seq: at,
            },
            &state.split,
        )
    });
    if !confirmed {
        return Err(Rejected::Unconfirmed);
    }
    draft.state.heard = now;
    for gate in judgement
        .gates
        .iter()
        .filter(|g| g.verdict == Verdict::Fail)
    {
        let holds = spec
            .gates
            .iter()
            .any(|g| g.metric == gate.metric && matches!(g.action, Action::Hold));
        let name = format!("gate-{}", gate.metric);
        if holds && !state.holds.contains_key(&name) && !state.waived.contains(&name) {
            draft
                .effects
                .push(draft.notice(true, format!("held: evidence of harm in {:?}", gate.metric)));
            draft.hold(&name, "gate", "evidence of harm");
        }
    }
    if let Phase::Held { .. } = draft.state.phase {
        return Ok(Some(draft));
    }
    draft.state.dwell += Duration::from_millis(judgement.to.saturating_sub(judgement.from));
    let Some(this) = spec.stages.get(stage) else {
        return Ok(Some(draft));
    };
    // A failed hold gate that a person has cleared in this stage does not stand in the way any more.
    let waived = |g: &llm_gates::GateEvidence| state.waived.contains(&format!("gate-{}", g.metric));
    let passed = judgement.verdict == Verdict::Pass
        || (judgement.gates.iter().any(waived)
            && judgement
                .gates
                .iter()
                .all(|g| g.verdict == Verdict::Pass || waived(g)));
    let ripe = passed && !judgement.paused && draft.state.dwell >= this.dwell;
    let frozen = state.frozen_until.is_some_and(|until| now < until);
    if !ripe || frozen {
        return Ok(Some(draft));
    }
    match this.advance {
        Advance::Manual if !state.approvals.contains(&stage) => {
            draft.effects.push(draft.notice(
                true,
                format!("stage {stage} has passed and waits for approval"),
            ));
            draft.hold(APPROVAL, "plan", "this stage advances by hand");
            Ok(Some(draft))
        }
        _ if stage + 1 < spec.stages.len() => draft.shift(stage + 1),
        _ => draft.promote(),
    }
}

fn weighted(gate: &llm_gates::GateEvidence) -> f64 {
    gate.weight.ln() + gate.log_e
}

/// The hold that a manual stage waits under.
const APPROVAL: &str = "approval";

fn operator<'a>(rollout: &'a Rollout, seq: Seq, now: Timestamp, command: &Command) -> Decision<'a> {
    let (state, spec) = (rollout.state(), rollout.plan().spec());
    let mut draft = Draft::new(rollout, seq, now);
    match &command.verb {
        Verb::Abort => draft.go_back(Cause::Operator {
            by: command.by.clone(),
            why: command.why.clone(),
        }),
        Verb::Approve => {
            let from = state.phase.stage().unwrap_or(0);
            let manual = |i: &usize| {
                spec.stages
                    .get(*i)
                    .is_some_and(|s| s.advance == Advance::Manual)
            };
            let open =
                (from..spec.stages.len()).find(|i| manual(i) && !state.approvals.contains(i));
            let Some(stage) = open else {
                return Err(Rejected::NothingToApprove);
            };
            draft.state.approvals.insert(stage);
            draft.clear(APPROVAL)
        }
        Verb::Hold { name } => {
            draft.hold(name, &command.by, &command.why);
            Ok(Some(draft))
        }
        Verb::Resume { name } if state.holds.contains_key(name) => {
            draft.state.waived.insert(name.clone());
            draft.clear(name)
        }
        Verb::Resume { name } => Err(Rejected::UnknownHold(name.clone())),
    }
}

impl<'a> Draft<'a> {
    fn new(rollout: &'a Rollout, seq: Seq, now: Timestamp) -> Self {
        Self {
            rollout,
            seq,
            now,
            state: rollout.state().clone(),
            done: Vec::new(),
            effects: Vec::new(),
        }
    }

    /// Another phase: what the last one waited for is not waited for any more.
    fn enter(&mut self, phase: Phase) {
        self.state.phase = phase;
        self.state.since = self.now;
        let overtaken = self.rollout.pending().iter().filter(|intent| {
            matches!(
                intent.effect,
                Effect::Evaluate(_) | Effect::Prepare(_) | Effect::Drain { .. }
            )
        });
        for id in overtaken.map(|intent| intent.id) {
            if !self.done.contains(&id) {
                self.done.push(id);
            }
        }
    }

    fn notice(&self, page: bool, text: String) -> Effect {
        Effect::Notify(Notice {
            page,
            rollout: self.rollout.id().clone(),
            text,
        })
    }

    /// The split as it is, at a new place in the log.
    fn route(&mut self, direction: Direction) {
        self.state.routed = Some((self.seq, direction));
        self.effects.push(Effect::Route {
            direction,
            split: self.state.split.clone(),
        });
    }

    fn done_routing(&mut self) {
        let routes = self
            .rollout
            .pending()
            .iter()
            .filter(|i| matches!(i.effect, Effect::Route { .. }));
        self.done.extend(routes.map(|i| i.id));
    }

    fn start(mut self) -> Decision<'a> {
        if self.rollout.plan().spec().pre_flight.is_some() {
            self.enter(Phase::PreFlight);
            self.effects
                .push(Effect::Evaluate(self.rollout.candidate().clone()));
            Ok(Some(self))
        } else {
            self.warm()
        }
    }

    fn pre_flight(mut self, report: &TableReport) -> Decision<'a> {
        let stopped = |action: Action| matches!(action, Action::Block | Action::Rollback);
        let gates = report
            .rows
            .iter()
            .filter(|row| row.verdict != Verdict::Pass && stopped(row.action))
            .map(|row| row.metric.clone())
            .collect::<Vec<_>>();
        if !gates.is_empty() {
            return self.go_back(Cause::PreFlight { gates });
        }
        for row in report
            .rows
            .iter()
            .filter(|row| row.verdict == Verdict::Fail && matches!(row.action, Action::Hold))
        {
            self.hold(
                &format!("gate-{}", row.metric),
                "pre-flight",
                "the gate failed before deployment",
            );
        }
        self.warm()
    }

    fn warm(mut self) -> Decision<'a> {
        self.enter(Phase::Warming);
        self.state.prepared = true;
        self.effects
            .push(Effect::Prepare(self.rollout.candidate().clone()));
        Ok(Some(self))
    }

    /// The candidate can serve: the first stage, unless something stands against it.
    fn begin(self) -> Decision<'a> {
        if self.state.holds.is_empty() {
            self.shift(0)
        } else {
            Ok(Some(self))
        }
    }

    fn shift(mut self, stage: usize) -> Decision<'a> {
        self.state.stage_since = self.now;
        self.state.waived.clear();
        self.set_share(stage)
    }

    fn set_share(mut self, stage: usize) -> Decision<'a> {
        let spec = self.rollout.plan().spec();
        let Some(exposure) = spec.stages.get(stage) else {
            return Ok(None);
        };
        self.enter(Phase::Shifting { stage });
        self.state.dwell = Duration::ZERO;
        let shares = (exposure.serve.0, exposure.control.0);
        let ahead = if exposure.serve.0.is_none() {
            let later = spec.stages.iter().skip(stage + 1);
            Split::ahead_of(later.map(|stage| stage.serve.0))
        } else {
            Vec::new()
        };
        self.state.split = Split {
            candidate: Some(self.rollout.candidate().clone()),
            share: exposure.serve.0,
            control: exposure.control.0,
            salt: self.rollout.salt(),
            lease: Some(spec.lease.ttl),
            ramp: self
                .state
                .split
                .ramp_to(self.rollout.id(), shares, self.now),
            ahead,
            ..Split::steady(
                Some(self.rollout.id().clone()),
                self.rollout.baseline().clone(),
                self.state.split.epoch.next(),
            )
        };
        self.route(Direction::Forward);
        Ok(Some(self))
    }

    /// A share has lapsed: the same share in a new epoch, unless that happens too often or took too long.
    fn resume_share(mut self) -> Decision<'a> {
        let lease = &self.rollout.plan().spec().lease;
        self.state.lapses += 1;
        let away = self
            .rollout
            .last()
            .map(|(_, at)| self.now.since(at))
            .unwrap_or_default();
        if self.state.lapses >= lease.lapses || away > lease.longest_lapse {
            let times = self.state.lapses;
            return self.go_back(Cause::Lapsed { times });
        }
        let Some(stage) = self.state.phase.stage() else {
            return Ok(None);
        };
        let dwell = self.state.dwell;
        // Time away does not use up the stage's limit.
        self.state.stage_since = self.state.stage_since.after(away);
        let mut draft = self.set_share(stage)?;
        if let Some(draft) = &mut draft {
            draft.state.dwell = dwell;
        }
        Ok(draft)
    }

    /// Every router serves the share: the stage's evidence begins here.
    fn confirmed(mut self, stage: usize) -> Decision<'a> {
        self.done_routing();
        self.state.heard = self.now;
        let held = !self.state.holds.is_empty();
        self.enter(if held {
            Phase::Held { stage }
        } else {
            Phase::Soaking { stage }
        });
        Ok(Some(self))
    }

    fn hold(&mut self, name: &str, by: &str, why: &str) {
        let hold = Hold {
            by: by.to_owned(),
            why: why.to_owned(),
            at: self.now,
        };
        self.state.holds.insert(name.to_owned(), hold);
        if let Phase::Soaking { stage } = self.state.phase {
            self.enter(Phase::Held { stage });
        }
    }

    /// Removes a hold; the last one gone, it goes on.
    fn clear(mut self, name: &str) -> Decision<'a> {
        self.state.holds.remove(name);
        if !self.state.holds.is_empty() {
            return Ok(Some(self));
        }
        match self.state.phase {
            Phase::Held { stage } => {
                // Time held does not use up the stage's limit.
                self.state.stage_since = self
                    .state
                    .stage_since
                    .after(self.now.since(self.state.since));
                self.state.heard = self.now;
                self.enter(Phase::Soaking { stage });
                Ok(Some(self))
            }
            Phase::Warming
                if !self
                    .rollout
                    .pending()
                    .iter()
                    .any(|i| matches!(i.effect, Effect::Prepare(_))) =>
            {
                self.shift(0)
            }
            _ => Ok(Some(self)),
        }
    }

    fn promote(mut self) -> Decision<'a> {
        self.enter(Phase::Promoting);
        let epoch = self.state.split.epoch.next();
        self.state.split = Split::steady(
            Some(self.rollout.id().clone()),
            self.rollout.candidate().clone(),
            epoch,
        );
        self.route(Direction::Promote);
        Ok(Some(self))
    }

    /// Away from the candidate, whatever the phase: before any exposure that is the end, after it the recovery procedure.
    fn go_back(mut self, cause: Cause) -> Decision<'a> {
        let text = cause.to_string();
        self.state.cause = Some(cause);
        self.state.holds.clear();
        self.state.split = Split::steady(
            Some(self.rollout.id().clone()),
            self.rollout.baseline().clone(),
            self.state.split.epoch.next(),
        );
        if self.state.routed.is_none() {
            self.effects
                .push(self.notice(true, format!("blocked: {text}")));
            return self.finish(Phase::Blocked);
        }
        self.enter(Phase::RollingBack {
            part: Recovery::Redirecting,
        });
        self.route(Direction::Back);
        self.effects
            .push(self.notice(true, format!("rolling back: {text}")));
        Ok(Some(self))
    }

    fn drain(mut self) -> Decision<'a> {
        self.done_routing();
        self.enter(Phase::RollingBack {
            part: Recovery::Draining,
        });
        let deadline = self.rollout.plan().spec().recovery.drain;
        self.effects.push(Effect::Drain {
            version: self.rollout.candidate().clone(),
            deadline,
        });
        Ok(Some(self))
    }

    fn retire(mut self) -> Decision<'a> {
        self.enter(Phase::RollingBack {
            part: Recovery::Retiring,
        });
        self.effects
            .push(Effect::Retire(self.rollout.candidate().clone()));
        Ok(Some(self))
    }

    /// An end: the routers are told that it is over, and who is not needed any more is retired.
    fn finish(mut self, end: Phase) -> Decision<'a> {
        self.enter(end);
        match end {
            Phase::Promoted => self
                .effects
                .push(Effect::Retire(self.rollout.baseline().clone())),
            Phase::Blocked if self.state.prepared => {
                self.effects
                    .push(Effect::Retire(self.rollout.candidate().clone()));
            }
            Phase::RolledBack => self
                .effects
                .push(self.notice(false, "rolled back".to_owned())),
            _ => {}
        }
        self.route(Direction::End);
        Ok(Some(self))
    }
}
