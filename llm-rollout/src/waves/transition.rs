//! What each input does in each phase of the waves.

use super::{
    Command, Effect, Input, News, OnFailure, Phase, Progress, Schedule, State, Verb, Waves,
};
use crate::{Advance, EndpointId, IntentId, Notice, Said, Timestamp};
use std::collections::BTreeSet;

/// Why an input was not taken; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// They have ended.
    #[error("the waves have ended ({0}); write down new ones")]
    Over(Phase),
    /// The input belongs to another phase.
    #[error("{what} does not fit: the waves are {phase}")]
    NotNow {
        /// What came.
        what: &'static str,
        /// Where they are.
        phase: Phase,
    },
    /// There is no such member.
    #[error("endpoint {0} is no member of these waves")]
    UnknownMember(EndpointId),
    /// There is no such hold.
    #[error("there is no hold {0:?}")]
    UnknownHold(String),
    /// No manual wave is left to approve.
    #[error("no manual wave is left to approve")]
    NothingToApprove,
    /// An intent that is not a pending notice.
    #[error("intent {0} is no pending notice")]
    UnknownIntent(IntentId),
}

type Decision<'a> = Result<Option<Draft<'a>>, Rejected>;

/// A step in the making.
pub(super) struct Draft<'a> {
    waves: &'a Waves,
    now: Timestamp,
    pub(super) state: State,
    pub(super) done: Vec<IntentId>,
    pub(super) effects: Vec<Effect>,
}

pub(super) fn transition<'a>(waves: &'a Waves, now: Timestamp, input: &Input) -> Decision<'a> {
    let phase = waves.phase();
    let mut draft = Draft {
        waves,
        now,
        state: waves.state.clone(),
        done: Vec::new(),
        effects: Vec::new(),
    };
    match (phase, input) {
        // What may come at any time.
        (_, Input::Done { intent, .. }) => {
            let notice = |e: &Effect| matches!(e, Effect::Notify(_));
            let mut pending = waves.pending.iter();
            if !pending.any(|i| i.id == *intent && notice(&i.effect)) {
                return Err(Rejected::UnknownIntent(*intent));
            }
            draft.done.push(*intent);
            Ok(Some(draft))
        }
        (_, Input::Member { endpoint, news }) => member(draft, endpoint, news),

        (
            Phase::Completed | Phase::Stopped | Phase::RolledBack,
            Input::Tick | Input::Frozen { .. },
        ) => Ok(None),
        (Phase::Completed | Phase::Stopped | Phase::RolledBack, _) => Err(Rejected::Over(phase)),

        (Phase::Planned, Input::Start) => {
            draft.enter(Phase::Waiting { wave: 0 });
            draft.proceed();
            Ok(Some(draft))
        }
        (_, Input::Start) => Err(Rejected::NotNow {
            what: "start",
            phase,
        }),

        (_, Input::Tick) => {
            if is_out_of_patience(waves, now) {
                draft.stop("nobody has cleared a hold or approved a wave in time".to_owned());
            } else {
                draft.proceed();
            }
            Ok(draft.if_changed())
        }

        (_, Input::Frozen { until }) => {
            draft.state.frozen_until = Some(*until);
            Ok(draft.if_changed())
        }

        (_, Input::Operator(command)) => operator(draft, command),
    }
}

fn operator<'a>(mut draft: Draft<'a>, command: &Command) -> Decision<'a> {
    let phase = draft.state.phase;
    let said = |now| Said {
        by: command.by.clone(),
        why: command.why.clone(),
        at: now,
    };
    let cause = || format!("{}: {}", command.by, command.why);
    match (phase, &command.verb) {
        (Phase::RollingBack, _) => Err(Rejected::NotNow {
            what: "a command",
            phase,
        }),
        (_, Verb::RollBack) => {
            draft.roll_back(cause());
            Ok(Some(draft))
        }
        (Phase::Stopping, _) => Err(Rejected::NotNow {
            what: "a command other than going back",
            phase,
        }),
        (_, Verb::Stop) => {
            draft.stop(cause());
            Ok(Some(draft))
        }
        (_, Verb::Hold { name }) => {
            let said = said(draft.now);
            draft.state.holds.insert(name.clone(), said);
            Ok(Some(draft))
        }
        (_, Verb::Resume { name }) => {
            if draft.state.holds.remove(name).is_none() {
                return Err(Rejected::UnknownHold(name.clone()));
            }
            draft.proceed();
            Ok(Some(draft))
        }
        (_, Verb::Approve) => {
            let waves = &draft.waves.schedule.spec().waves;
            // A wave that has begun needed none, or has it.
            let open = |(i, wave): &(usize, &super::Wave)| {
                wave.advance == Advance::Manual && !draft.state.approvals.contains_key(i)
            };
            let Some((wave, _)) = waves.iter().enumerate().find(open) else {
                return Err(Rejected::NothingToApprove);
            };
            let said = said(draft.now);
            draft.state.approvals.insert(wave, said);
            draft.proceed();
            Ok(Some(draft))
        }
    }
}

fn member<'a>(mut draft: Draft<'a>, endpoint: &EndpointId, news: &News) -> Decision<'a> {
    let Some(progress) = draft.state.members.get(endpoint) else {
        return Err(Rejected::UnknownMember(endpoint.clone()));
    };
    let (next, failure) = match (progress, news) {
        (Progress::InFlight | Progress::Aborting, News::Ended { phase, before, why }) => {
            match phase {
                crate::Phase::Promoted => {
                    let before = before.clone();
                    (Progress::Promoted { before }, None)
                }
                crate::Phase::Concluded => (Progress::Concluded, None),
                crate::Phase::RolledBack | crate::Phase::Blocked => {
                    let why = format!("{phase}: {why}");
                    (Progress::Failed { why: why.clone() }, Some(why))
                }
                _ => return Ok(None),
            }
        }
        (Progress::InFlight | Progress::Aborting, News::Refused { why }) => {
            (Progress::Failed { why: why.clone() }, Some(why.clone()))
        }
        (Progress::Returning { .. }, News::Returned) => (Progress::Returned, None),
        (Progress::Returning { .. }, News::NotReturned { why }) => {
            draft.page(format!(
                "{endpoint} could not be returned and still serves the candidate: {why}"
            ));
            (Progress::Stuck { why: why.clone() }, None)
        }
        // Heard before, or of a member that was not asked.
        _ => return Ok(None),
    };
    draft.finish(endpoint);
    draft.state.members.insert(endpoint.clone(), next);
    match (draft.state.phase, failure) {
        (Phase::Waiting { .. } | Phase::Running { .. }, Some(why)) => {
            let why = format!("{endpoint} {why}");
            match draft.waves.schedule.spec().on_failure {
                OnFailure::Stop => draft.stop(why),
                OnFailure::RollBackAll => draft.roll_back(why),
                OnFailure::Continue => {
                    draft.page(format!("{why}; the other members go on"));
                    draft.proceed();
                }
            }
        }
        // Promoted before the abort came: it goes back all the same.
        (Phase::RollingBack, None) => {
            draft.take_back();
            draft.proceed();
        }
        _ => draft.proceed(),
    }
    Ok(Some(draft))
}

impl Draft<'_> {
    fn if_changed(self) -> Option<Self> {
        (self.state != self.waves.state).then_some(self)
    }

    fn enter(&mut self, phase: Phase) {
        self.state.phase = phase;
        self.state.since = self.now;
    }

    fn notify(&mut self, page: bool, text: String) {
        self.effects.push(Effect::Notify(Notice {
            page,
            rollout: self.waves.id.clone(),
            text,
        }));
    }

    fn page(&mut self, text: String) {
        self.notify(true, text);
    }

    /// What was pending for a member is over.
    fn finish(&mut self, member: &EndpointId) {
        let about = |effect: &Effect| match effect {
            Effect::Submit { endpoint, .. }
            | Effect::Abort { endpoint, .. }
            | Effect::Return { endpoint, .. } => endpoint == member,
            Effect::Notify(_) => false,
        };
        let pending = self.waves.pending.iter().filter(|i| about(&i.effect));
        self.done.extend(pending.map(|i| i.id));
    }

    fn stop(&mut self, cause: String) {
        self.page(format!("stopped: {cause}"));
        self.state.cause = Some(cause);
        self.enter(Phase::Stopping);
        self.proceed();
    }

    fn roll_back(&mut self, cause: String) {
        self.page(format!("rolling back: {cause}"));
        self.state.cause = Some(cause);
        self.enter(Phase::RollingBack);
        self.take_back();
        self.proceed();
    }

    /// Aborts what is in flight and returns what was promoted.
    fn take_back(&mut self) {
        let why = self.state.cause.clone().unwrap_or_default();
        for member in self.waves.schedule.members() {
            let Some(progress) = self.state.members.get_mut(&member.endpoint) else {
                continue;
            };
            let endpoint = member.endpoint.clone();
            match progress {
                Progress::InFlight => {
                    *progress = Progress::Aborting;
                    self.effects.push(Effect::Abort {
                        endpoint,
                        rollout: member.rollout.clone(),
                        why: why.clone(),
                    });
                }
                Progress::Promoted { before } => {
                    let before = before.clone();
                    // A schedule that exists has ids to which this can be appended.
                    let Some(rollout) = Schedule::return_id(&member.rollout) else {
                        continue;
                    };
                    *progress = Progress::Returning {
                        before: before.clone(),
                    };
                    self.effects.push(Effect::Return {
                        endpoint,
                        rollout,
                        to: before,
                    });
                }
                _ => {}
            }
        }
    }

    /// As far as it goes without another input.
    fn proceed(&mut self) {
        if self
            .state
            .frozen_until
            .is_some_and(|until| self.now >= until)
        {
            self.state.frozen_until = None;
        }
        let waves = &self.waves.schedule.spec().waves;
        // Each round enters another phase, and no wave is entered twice.
        for _ in 0..=2 * waves.len() {
            let before = self.state.phase;
            match before {
                Phase::Waiting { wave } => self.wait(wave),
                Phase::Running { wave } => self.run(wave),
                Phase::Stopping if !self.is_flying() => {
                    self.enter(Phase::Stopped);
                    self.notify(false, "stopped; nothing is in flight any more".to_owned());
                }
                Phase::RollingBack if !self.is_flying() => {
                    self.enter(Phase::RolledBack);
                    self.notify(false, "rolled back".to_owned());
                }
                _ => {}
            }
            if self.state.phase == before {
                return;
            }
        }
    }

    fn is_flying(&self) -> bool {
        self.state.members.values().any(Progress::is_in_flight)
    }

    fn may_go_on(&self) -> bool {
        self.state.holds.is_empty()
            && self
                .state
                .frozen_until
                .is_none_or(|until| self.now >= until)
    }

    fn wait(&mut self, wave: usize) {
        let Some(next) = self.waves.schedule.spec().waves.get(wave) else {
            self.enter(Phase::Completed);
            self.notify(false, "completed".to_owned());
            return;
        };
        if self.now < self.state.since.after(next.pause) || !self.may_go_on() {
            return;
        }
        if next.advance == Advance::Manual && !self.state.approvals.contains_key(&wave) {
            if self.state.asked.insert(wave) {
                self.page(format!("wave {wave} waits for approval"));
            }
            return;
        }
        self.enter(Phase::Running { wave });
    }

    fn run(&mut self, wave: usize) {
        let schedule = &self.waves.schedule;
        let Some(this) = schedule.spec().waves.get(wave) else {
            return;
        };
        if self.may_go_on() {
            for member in &this.members {
                let members = &self.state.members;
                if members.get(&member.endpoint) != Some(&Progress::Waiting) {
                    continue;
                }
                let flying = members.iter().filter(|(_, p)| p.is_in_flight());
                let flying: BTreeSet<_> = flying.map(|(endpoint, _)| endpoint).collect();
                if !schedule.has_room(&flying, member) {
                    break;
                }
                let endpoint = member.endpoint.clone();
                self.state
                    .members
                    .insert(endpoint.clone(), Progress::InFlight);
                self.effects.push(Effect::Submit {
                    endpoint,
                    rollout: member.rollout.clone(),
                    candidate: member.candidate.clone(),
                    plan: Box::new(member.plan.clone()),
                });
            }
        }
        let over = |p: &Progress| !p.is_in_flight() && *p != Progress::Waiting;
        let mut members = this.members.iter();
        if members.all(|m| self.state.members.get(&m.endpoint).is_some_and(over)) {
            self.enter(Phase::Waiting { wave: wave + 1 });
        }
    }
}

/// When a hold or a missing approval has lasted too long.
fn end_of_patience(waves: &Waves) -> Option<Timestamp> {
    let (state, spec) = (&waves.state, waves.schedule.spec());
    let going = matches!(state.phase, Phase::Waiting { .. } | Phase::Running { .. });
    if !going {
        return None;
    }
    let held = state.holds.values().map(|hold| hold.at).min();
    let asked = match state.phase {
        Phase::Waiting { wave } if state.asked.contains(&wave) => {
            let pause = spec.waves.get(wave).map(|w| w.pause).unwrap_or_default();
            Some(state.since.after(pause))
        }
        _ => None,
    };
    let since = held.into_iter().chain(asked).min()?;
    // A freeze is nobody's silence.
    let frozen = state.frozen_until.unwrap_or_default();
    Some(since.max(frozen).after(spec.patience))
}

fn is_out_of_patience(waves: &Waves, now: Timestamp) -> bool {
    end_of_patience(waves).is_some_and(|end| now >= end)
}

pub(super) fn next_wakeup(waves: &Waves) -> Option<Timestamp> {
    let (state, spec) = (&waves.state, waves.schedule.spec());
    if let Some(end) = end_of_patience(waves) {
        return Some(end);
    }
    let frozen = state.frozen_until.unwrap_or_default();
    match state.phase {
        Phase::Waiting { wave } => {
            let pause = spec.waves.get(wave).map(|w| w.pause).unwrap_or_default();
            Some(state.since.after(pause).max(frozen))
        }
        // Only a freeze ends by itself here; everything else is heard of.
        Phase::Running { .. } => state.frozen_until,
        _ => None,
    }
}
