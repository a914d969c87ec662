//! A step in the making: what each row of the table does to the state, and what it asks for.

#![expect(
    clippy::unnecessary_wraps,
    reason = "a row of the table may also lead nowhere, or be refused"
)]

use crate::{
    Advance, Cause, Command, Direction, Effect, Finish, IntentId, Load, Notice, Phase, Recovery,
    Rejected, Rollout, Said, Seq, Share, Split, Standby, State, Timestamp,
};
use llm_gates::{Action, TableReport, Verdict};
use std::time::Duration;

pub(crate) type Decision<'a> = Result<Option<Draft<'a>>, Rejected>;

/// The hold that a manual stage waits under.
pub(crate) const APPROVAL: &str = "approval";
/// The hold while the baseline cannot serve.
pub(crate) const UNHEALTHY: &str = "baseline-unhealthy";

/// A step in the making.
pub(crate) struct Draft<'a> {
    rollout: &'a Rollout,
    seq: Seq,
    now: Timestamp,
    pub(crate) state: State,
    pub(crate) done: Vec<IntentId>,
    pub(crate) effects: Vec<Effect>,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(rollout: &'a Rollout, seq: Seq, now: Timestamp) -> Self {
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
    pub(crate) fn enter(&mut self, phase: Phase) {
        self.state.phase = phase;
        self.state.since = self.now;
        self.state.paged = false;
        let leaving = phase.is_end() || matches!(phase, Phase::RollingBack { .. });
        let overtaken = |effect: &Effect| match effect {
            Effect::Evaluate(_) => true,
            Effect::Prepare(version) => version == self.rollout.candidate(),
            Effect::Drain { .. } | Effect::Standby(_) => leaving,
            _ => false,
        };
        let pending = self.rollout.pending().iter();
        for intent in pending.filter(|i| overtaken(&i.effect)) {
            if !self.done.contains(&intent.id) {
                self.done.push(intent.id);
            }
        }
    }

    pub(crate) fn notify(&mut self, page: bool, text: String) {
        self.effects.push(Effect::Notify(Notice {
            page,
            rollout: self.rollout.id().clone(),
            text,
        }));
    }

    pub(crate) fn page(&mut self, text: String) {
        self.notify(true, text);
    }

    /// Pages once for as long as the phase lasts.
    pub(crate) fn wait_aloud(&mut self, text: &str) {
        if !self.state.paged {
            self.page(format!("{}: {text}", self.state.phase));
        }
        self.state.paged = true;
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.state
            .frozen_until
            .is_some_and(|until| self.now < until)
    }

    /// The split as it is, at a new place in the log.
    pub(crate) fn route(&mut self, direction: Direction) {
        self.state.routed = Some((self.seq, direction));
        self.effects.push(Effect::Route {
            direction,
            split: self.state.split.clone(),
        });
    }

    /// The same at a newer place, for a router that somebody has put ahead of it.
    pub(crate) fn route_again(&mut self) {
        if let Some((_, direction)) = self.state.routed {
            self.route(direction);
        }
    }

    pub(crate) fn done_routing(&mut self) {
        let routes = self
            .rollout
            .pending()
            .iter()
            .filter(|i| matches!(i.effect, Effect::Route { .. }));
        self.done.extend(routes.map(|i| i.id));
    }

    pub(crate) fn start(mut self) -> Decision<'a> {
        if self.rollout.plan().spec().pre_flight.is_some() {
            self.enter(Phase::PreFlight);
            self.effects
                .push(Effect::Evaluate(self.rollout.candidate().clone()));
            Ok(Some(self))
        } else {
            self.warm()
        }
    }

    pub(crate) fn pre_flight(mut self, report: &TableReport) -> Decision<'a> {
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

    pub(crate) fn warm(mut self) -> Decision<'a> {
        self.enter(Phase::Warming);
        self.state.load = Load::Asked;
        self.effects
            .push(Effect::Prepare(self.rollout.candidate().clone()));
        Ok(Some(self))
    }

    /// The candidate can serve: the first stage, unless something stands against it.
    pub(crate) fn begin(self) -> Decision<'a> {
        if self.state.holds.is_empty() && !self.is_frozen() {
            self.shift(0)
        } else {
            Ok(Some(self))
        }
    }

    pub(crate) fn approve(mut self, command: &Command) -> Decision<'a> {
        let stages = self.rollout.plan().stages();
        let from = self.state.phase.stage().unwrap_or(0);
        let open = |i: &usize| {
            stages.get(*i).is_some_and(|s| s.advance == Advance::Manual)
                && !self.state.approvals.contains_key(i)
        };
        let Some(stage) = (from..stages.len()).find(open) else {
            return Err(Rejected::NothingToApprove);
        };
        let said = Said {
            by: command.by.clone(),
            why: command.why.clone(),
            at: self.now,
        };
        self.state.approvals.insert(stage, said);
        self.clear(APPROVAL)
    }

    pub(crate) fn skip(mut self, stage: usize) -> Decision<'a> {
        self.state.holds.remove(APPROVAL);
        if !self.state.holds.is_empty() {
            let names = self.state.holds.keys().cloned().collect();
            return Err(Rejected::Standing(names));
        }
        match self.state.frozen_until {
            Some(until) if self.is_frozen() => Err(Rejected::Frozen(until)),
            _ => self.advance(stage),
        }
    }

    /// The next stage, or what follows the last.
    pub(crate) fn advance(self, stage: usize) -> Decision<'a> {
        let spec = self.rollout.plan().spec();
        if stage + 1 < spec.stages.len() {
            return self.shift(stage + 1);
        }
        match spec.finish {
            Finish::Promote => self.promote(),
            Finish::Return => self.go_back(Cause::Concluded),
        }
    }

    pub(crate) fn shift(mut self, stage: usize) -> Decision<'a> {
        self.state.stage_since = self.now;
        self.state.waived.clear();
        self.set_share(stage)
    }

    pub(crate) fn set_share(mut self, stage: usize) -> Decision<'a> {
        let spec = self.rollout.plan().spec();
        let Some(exposure) = spec.stages.get(stage) else {
            return Ok(None);
        };
        self.enter(Phase::Shifting { stage });
        self.state.dwell = Duration::ZERO;
        let mut split = Split {
            candidate: Some(self.rollout.candidate().clone()),
            share: exposure.serve.0,
            control: exposure.control.0,
            mirror: exposure.mirror.0,
            salt: self.rollout.salt(),
            ..Split::steady(
                Some(self.rollout.id().clone()),
                self.rollout.baseline().clone(),
                self.state.split.epoch.next(),
            )
        };
        split.lease = split.exposes().then_some(spec.lease.ttl);
        split.ramp =
            self.state
                .split
                .ramp_to(self.rollout.id(), (split.share, split.control), self.now);
        if split.share == Share::NONE {
            let later = spec.stages.iter().skip(stage);
            split.ahead = Split::ahead_of(later.map(|s| s.serve.0));
        }
        self.state.split = split;
        self.route(Direction::Forward);
        Ok(Some(self))
    }

    /// A share has lapsed: the same share in a new epoch, unless that happens too often or took too long.
    pub(crate) fn resume_share(mut self) -> Decision<'a> {
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
    pub(crate) fn confirmed(mut self, stage: usize) -> Decision<'a> {
        self.done_routing();
        self.state.heard = self.now;
        let held = !self.state.holds.is_empty();
        self.enter(if held {
            Phase::Held { stage }
        } else {
            Phase::Soaking { stage }
        });
        let cold = self.rollout.plan().spec().recovery.standby == Standby::Cold;
        if cold && self.state.split.share == Share::ALL && !self.state.baseline_cold {
            self.drain_off(self.rollout.baseline().clone());
        }
        Ok(Some(self))
    }

    pub(crate) fn hold(&mut self, name: &str, by: &str, why: &str) {
        let hold = Said {
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
    pub(crate) fn clear(mut self, name: &str) -> Decision<'a> {
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
            Phase::Warming if self.state.load == Load::Ready => self.begin(),
            _ => Ok(Some(self)),
        }
    }

    pub(crate) fn baseline_down(mut self) -> Decision<'a> {
        self.state.baseline_down = true;
        if self.state.phase.stage().is_some() || self.state.phase == Phase::Baking {
            self.page("held: the baseline is unhealthy".to_owned());
            self.hold(UNHEALTHY, "health", "the baseline cannot serve");
        }
        Ok(Some(self))
    }

    pub(crate) fn baseline_up(mut self) -> Decision<'a> {
        self.state.baseline_down = false;
        match self.state.stranded.take() {
            Some(cause) => self.go_back(cause),
            None => self.clear(UNHEALTHY),
        }
    }

    pub(crate) fn promote(mut self) -> Decision<'a> {
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

    /// Every router has the candidate as its baseline: the old one runs out, and stays for an instant return.
    pub(crate) fn promoted(mut self) -> Decision<'a> {
        self.done_routing();
        self.enter(Phase::Baking);
        self.notify(false, "promoted".to_owned());
        if !self.state.baseline_cold && !drains(self.rollout) {
            self.drain_off(self.rollout.baseline().clone());
        }
        Ok(Some(self))
    }

    /// Away from the candidate, whatever the phase: before any exposure that is the end, after it the recovery procedure.
    pub(crate) fn go_back(self, cause: Cause) -> Decision<'a> {
        if cause.is_urgent() || self.state.routed.is_none() {
            return self.go_back_now(cause);
        }
        let on_candidate = matches!(
            self.state.phase,
            Phase::Soaking { .. } | Phase::Held { .. } | Phase::Baking
        );
        if self.state.baseline_down && on_candidate {
            self.strand(cause)
        } else if self.state.baseline_cold {
            self.warm_baseline(cause)
        } else {
            self.go_back_now(cause)
        }
    }

    /// It should go back and the baseline cannot serve: users stay on the version that can.
    pub(crate) fn strand(mut self, cause: Cause) -> Decision<'a> {
        if self.state.stranded.is_some() {
            return Ok(None);
        }
        self.page(format!(
            "{cause}; but the baseline is unhealthy, so the candidate still serves: bring the baseline back, promote now, or abort now"
        ));
        self.state.stranded = Some(cause);
        self.hold(UNHEALTHY, "health", "the baseline cannot serve");
        Ok(Some(self))
    }

    pub(crate) fn leave(&mut self, cause: Cause) {
        let text = cause.to_string();
        let page = !cause.is_wanted();
        self.state.cause = Some(cause);
        self.state.stranded = None;
        self.state.holds.clear();
        let what = if self.state.routed.is_some() {
            "rolling back"
        } else {
            "blocked"
        };
        self.notify(page, format!("{what}: {text}"));
    }

    pub(crate) fn warm_baseline(mut self, cause: Cause) -> Decision<'a> {
        self.leave(cause);
        self.enter(Phase::RollingBack {
            part: Recovery::Warming,
        });
        self.effects
            .push(Effect::Prepare(self.rollout.baseline().clone()));
        Ok(Some(self))
    }

    pub(crate) fn go_back_now(mut self, cause: Cause) -> Decision<'a> {
        self.leave(cause);
        if self.state.routed.is_none() {
            self.state.split = self.back();
            return self.finish(Phase::Blocked);
        }
        self.redirect()
    }

    pub(crate) fn back(&self) -> Split {
        Split::steady(
            Some(self.rollout.id().clone()),
            self.rollout.baseline().clone(),
            self.state.split.epoch.next(),
        )
    }

    /// All new requests to the baseline, loaded or not.
    pub(crate) fn redirect(mut self) -> Decision<'a> {
        self.enter(Phase::RollingBack {
            part: Recovery::Redirecting,
        });
        self.state.split = self.back();
        if self.state.baseline_cold && !warms(self.rollout) {
            self.effects
                .push(Effect::Prepare(self.rollout.baseline().clone()));
        }
        self.state.baseline_cold = false;
        self.route(Direction::Back);
        Ok(Some(self))
    }

    pub(crate) fn drain_off(&mut self, version: llm_version_core::VersionId) {
        let deadline = self.rollout.plan().spec().recovery.drain;
        self.effects.push(Effect::Drain { version, deadline });
    }

    pub(crate) fn drain(mut self) -> Decision<'a> {
        self.done_routing();
        self.enter(Phase::RollingBack {
            part: Recovery::Draining,
        });
        self.drain_off(self.rollout.candidate().clone());
        Ok(Some(self))
    }

    pub(crate) fn retire(mut self) -> Decision<'a> {
        self.enter(Phase::RollingBack {
            part: Recovery::Retiring,
        });
        self.effects
            .push(Effect::Retire(self.rollout.candidate().clone()));
        Ok(Some(self))
    }

    /// An end: the routers are told that it is over, and who is not needed any more is retired.
    pub(crate) fn finish(mut self, end: Phase) -> Decision<'a> {
        let concluded = self.state.cause == Some(Cause::Concluded);
        let end = match end {
            Phase::RolledBack if concluded => Phase::Concluded,
            end => end,
        };
        self.enter(end);
        self.state.holds.clear();
        match end {
            Phase::Promoted => self
                .effects
                .push(Effect::Retire(self.rollout.baseline().clone())),
            Phase::Blocked => {
                if self.state.load != Load::None {
                    self.effects
                        .push(Effect::Retire(self.rollout.candidate().clone()));
                }
                self.effects.push(Effect::Record(self.rollout.id().clone()));
            }
            Phase::RolledBack => {
                self.notify(false, "rolled back".to_owned());
                self.effects.push(Effect::Record(self.rollout.id().clone()));
            }
            Phase::Concluded => self.notify(false, "concluded".to_owned()),
            _ => {}
        }
        self.route(Direction::End);
        Ok(Some(self))
    }
}

pub(crate) fn drains(rollout: &Rollout) -> bool {
    let drain = |e: &Effect| matches!(e, Effect::Drain { .. });
    rollout.pending().iter().any(|i| drain(&i.effect))
}

pub(crate) fn warms(rollout: &Rollout) -> bool {
    let prepare =
        |e: &Effect| matches!(e, Effect::Prepare(version) if version == rollout.baseline());
    rollout.pending().iter().any(|i| prepare(&i.effect))
}

impl From<&Command> for Cause {
    fn from(command: &Command) -> Self {
        Self::Operator {
            by: command.by.clone(),
            why: command.why.clone(),
        }
    }
}

impl Cause {
    /// Users have left the candidate already, or it answers nobody: nothing is gained by waiting for the baseline.
    pub(crate) const fn is_urgent(&self) -> bool {
        matches!(
            self,
            Self::Silent { .. }
                | Self::Drifted { .. }
                | Self::Marked { .. }
                | Self::Forced { .. }
                | Self::Lapsed { .. }
        )
    }

    /// Somebody has asked for it, or planned it: nobody needs to be woken.
    pub(crate) const fn is_wanted(&self) -> bool {
        matches!(
            self,
            Self::Operator { .. } | Self::Superseded { .. } | Self::Concluded
        )
    }
}
