//! The one place that decides control flow: what each input does in each phase.
//!
//! [`transition`] reads top to bottom as a table. What a row does is a method of [`Draft`].

use crate::draft::{APPROVAL, Decision, Draft, UNHEALTHY, drains, warms};
use crate::plan::Undecided;
use crate::{
    Advance, Alarm, Cause, Command, Effect, Fence, Input, IntentId, Load, Look, Observed, Outcome,
    Phase, PlanSpec, Position, Recovery, Response, Rollout, RouterState, Seq, Standby, Timestamp,
    Verb,
};
use llm_gates::{Action, GateEvidence, Judgement, ThresholdEvidence, Verdict};
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
    /// Named holds stand against it.
    #[error("held: {}; clear each by its name first", .0.join(", "))]
    Standing(Vec<String>),
    /// A freeze stands against it.
    #[error("frozen until {} ms: skip the stage then, or promote now", .0.as_millis())]
    Frozen(Timestamp),
    /// The hold stands for a baseline that cannot serve, and goes when it can.
    #[error("the baseline is unhealthy: bring it back, promote now, or abort now")]
    BaselineDown,
}

pub(crate) fn transition<'a>(
    rollout: &'a Rollout,
    seq: Seq,
    now: Timestamp,
    input: &Input,
) -> Decision<'a> {
    let phase = rollout.phase();
    // Made only where something happens: an input that is no news allocates nothing.
    let draft = || Draft::new(rollout, seq, now);
    let not_now = |what| Err(Rejected::NotNow { what, phase });
    match (phase, input) {
        // What may come at any time.
        (_, Input::Done { intent, outcome }) => done(rollout, seq, now, *intent, outcome),
        (_, Input::Found { fence, routers }) => found(rollout, seq, now, *fence, routers),
        (_, Input::Tick) => tick(rollout, seq, now),

        // The ends take nothing else.
        (
            Phase::Promoted | Phase::RolledBack | Phase::Blocked | Phase::Concluded,
            Input::Heartbeat(_)
            | Input::SourceFailed { .. }
            | Input::Frozen { .. }
            | Input::Alarm(_)
            | Input::Health { .. },
        ) => Ok(None),
        (Phase::Promoted | Phase::RolledBack | Phase::Blocked | Phase::Concluded, _) => {
            Err(Rejected::Over(phase))
        }

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

        (_, Input::Health { baseline }) if *baseline != rollout.state().baseline_down => Ok(None),
        (_, Input::Health { baseline: true }) => draft().baseline_up(),
        (_, Input::Health { baseline: false }) => draft().baseline_down(),

        (Phase::RollingBack { .. }, Input::Alarm(_)) => Ok(None),
        (_, Input::Alarm(alarm)) => alarmed(rollout, seq, now, alarm),

        (_, Input::Operator(command)) => operator(rollout, seq, now, command),
    }
}

/// What an operator's verb does in a phase that is no end.
fn operator<'a>(rollout: &'a Rollout, seq: Seq, now: Timestamp, command: &Command) -> Decision<'a> {
    let (phase, state) = (rollout.phase(), rollout.state());
    let not_now = |what| Err(Rejected::NotNow { what, phase });
    let mut draft = Draft::new(rollout, seq, now);
    match (phase, &command.verb) {
        (
            Phase::RollingBack {
                part: Recovery::Warming,
            },
            Verb::AbortNow,
        ) => draft.redirect(),
        (Phase::RollingBack { .. }, _) => not_now("a command (it is already going back)"),

        (_, Verb::Abort) => draft.go_back(command.into()),
        (_, Verb::AbortNow) => draft.go_back_now(command.into()),

        (Phase::Promoting | Phase::Baking, Verb::Supersede { by }) => {
            draft.state.superseded_by = Some(by.clone());
            Ok(Some(draft))
        }
        (_, Verb::Supersede { by }) => draft.go_back_now(Cause::Superseded { by: by.clone() }),

        (_, Verb::Hold { name }) => {
            draft.hold(name, &command.by, &command.why);
            Ok(Some(draft))
        }
        (_, Verb::Resume { name }) if !state.holds.contains_key(name) => {
            Err(Rejected::UnknownHold(name.clone()))
        }
        (_, Verb::Resume { name }) if name == UNHEALTHY && state.stranded.is_some() => {
            Err(Rejected::BaselineDown)
        }
        (_, Verb::Resume { name }) => {
            draft.state.waived.insert(name.clone());
            draft.clear(name)
        }

        (Phase::Promoting | Phase::Baking, Verb::Approve | Verb::Skip | Verb::PromoteNow) => {
            not_now("a command about stages")
        }
        (_, Verb::Approve) => draft.approve(command),
        (Phase::Soaking { stage } | Phase::Held { stage }, Verb::Skip) => draft.skip(stage),
        (_, Verb::Skip) => not_now("skipping a stage (none is soaking)"),
        (Phase::Soaking { .. } | Phase::Held { .. }, Verb::PromoteNow) => {
            draft.state.holds.clear();
            draft.state.stranded = None;
            draft.promote()
        }
        (_, Verb::PromoteNow) => not_now("promoting (no share has been confirmed)"),
    }
}

/// What is due by the passing of time alone: the deadline of the phase.
pub(crate) fn next_deadline(rollout: &Rollout) -> Option<Timestamp> {
    let (state, spec) = (rollout.state(), rollout.plan().spec());
    let since = state.since;
    match state.phase {
        Phase::PreFlight => spec.pre_flight.as_ref().map(|p| since.after(p.deadline)),
        Phase::Warming if state.load != Load::Ready => Some(since.after(spec.outcomes.warm)),
        // Ready, and frozen or held: it begins when the freeze is over.
        Phase::Warming if state.holds.is_empty() => Some(state.frozen_until.unwrap_or_default()),
        Phase::Warming => Some(
            since
                .after(spec.outcomes.warm.max(spec.outcomes.held))
                .max(state.frozen_until.unwrap_or_default()),
        ),
        Phase::Shifting { .. } | Phase::Promoting => Some(since.after(spec.outcomes.shift)),
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
        // It would go back if it could; people have been told.
        Phase::Held { .. } if state.stranded.is_some() => None,
        Phase::Held { .. } => Some(since.after(spec.outcomes.held)),
        // The old baseline is not retired under the requests that it still answers.
        Phase::Baking if drains(rollout) || state.stranded.is_some() => None,
        Phase::Baking if state.superseded_by.is_some() => Some(since),
        Phase::Baking if state.holds.is_empty() => Some(since.after(spec.bake)),
        Phase::Baking => Some(since.after(spec.bake.max(spec.outcomes.held))),
        Phase::RollingBack {
            part: Recovery::Warming,
        } => (!(state.paged && warms(rollout))).then(|| since.after(spec.recovery.warm)),
        Phase::RollingBack {
            part: Recovery::Redirecting,
        } => (!state.paged).then(|| since.after(spec.outcomes.shift)),
        Phase::Promoted | Phase::RolledBack | Phase::Blocked | Phase::Concluded => {
            (!state.paged && !rollout.is_settled()).then(|| since.after(spec.outcomes.shift))
        }
        // Draining and retiring have deadlines and tries of their own.
        Phase::Planned | Phase::RollingBack { .. } => None,
    }
}

fn tick(rollout: &Rollout, seq: Seq, now: Timestamp) -> Decision<'_> {
    if next_deadline(rollout).is_none_or(|due| now < due) {
        return Ok(None);
    }
    let (state, spec) = (rollout.state(), rollout.plan().spec());
    let mut draft = Draft::new(rollout, seq, now);
    match state.phase {
        Phase::Warming if state.load == Load::Ready && state.holds.is_empty() => draft.begin(),
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
                    draft.page(format!("held: {cause}"));
                    draft.hold(name, "plan", &cause.to_string());
                    Ok(Some(draft))
                }
            }
        }
        Phase::RollingBack {
            part: Recovery::Warming,
        } => {
            if warms(rollout) {
                draft.wait_aloud("the baseline takes long to load; the candidate still serves: abort now moves everybody at once");
            } else {
                draft.state.since = now;
                draft
                    .effects
                    .push(Effect::Prepare(rollout.baseline().clone()));
            }
            Ok(Some(draft))
        }
        Phase::RollingBack { .. }
        | Phase::Promoted
        | Phase::RolledBack
        | Phase::Blocked
        | Phase::Concluded => {
            draft.wait_aloud(
                "a router has not confirmed; once its lease has run out, it can be removed",
            );
            Ok(Some(draft))
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
        (Effect::Prepare(_), Outcome::Ok, Phase::Warming) => {
            draft.state.load = Load::Ready;
            draft.begin()
        }
        (
            Effect::Prepare(_),
            Outcome::Ok,
            Phase::RollingBack {
                part: Recovery::Warming,
            },
        ) => {
            draft.state.baseline_cold = false;
            draft.redirect()
        }
        (
            Effect::Prepare(_),
            Outcome::Failed { reason },
            Phase::RollingBack {
                part: Recovery::Warming,
            },
        ) => {
            draft.state.since = now;
            draft.wait_aloud(&format!(
                "the baseline could not be loaded ({reason}); the candidate still serves: abort now moves everybody at once"
            ));
            Ok(Some(draft))
        }
        (
            Effect::Drain { .. },
            _,
            Phase::RollingBack {
                part: Recovery::Draining,
            },
        ) => draft.retire(),
        (
            Effect::Drain { .. },
            _,
            Phase::Soaking { .. } | Phase::Held { .. } | Phase::Promoting | Phase::Baking,
        ) if rollout.plan().spec().recovery.standby == Standby::Cold
            // Nobody would ask any more whether it can serve again.
            && !rollout.state().baseline_down =>
        {
            draft.state.baseline_cold = true;
            draft
                .effects
                .push(Effect::Standby(rollout.baseline().clone()));
            Ok(Some(draft))
        }
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
    let draft = || Draft::new(rollout, seq, now);
    let going_on = !phase.is_end() && !matches!(phase, Phase::RollingBack { .. });
    if going_on && let Some(cause) = told_to_go_back(rollout, routers) {
        return draft().go_back(cause);
    }
    let confirmed = || {
        state
            .routed
            .is_some_and(|(at, _)| routers.confirms(Position { fence, seq: at }, &state.split))
    };
    match phase {
        Phase::Shifting { .. } | Phase::Soaking { .. } | Phase::Held { .. }
            if has_lapsed(rollout, routers) =>
        {
            draft().resume_share()
        }
        Phase::Shifting { stage } if confirmed() => draft().confirmed(stage),
        Phase::Soaking { .. } | Phase::Held { .. } | Phase::Baking => {
            match drifted(rollout, routers) {
                Some(router) => draft().go_back(Cause::Drifted { router }),
                None => Ok(None),
            }
        }
        Phase::Promoting if confirmed() => draft().promoted(),
        // Users are on the baseline already, cold as it is: nothing to wait for.
        Phase::RollingBack {
            part: Recovery::Warming,
        } if told_to_go_back(rollout, routers).is_some()
            || has_lapsed(rollout, routers)
            || drifted(rollout, routers).is_some() =>
        {
            draft().redirect()
        }
        Phase::RollingBack {
            part: Recovery::Redirecting,
        } if confirmed() => draft().drain(),
        Phase::Promoted | Phase::RolledBack | Phase::Blocked | Phase::Concluded
            if !rollout.is_settled() && confirmed() =>
        {
            let mut draft = draft();
            draft.done_routing();
            Ok(Some(draft))
        }
        Phase::RollingBack {
            part: Recovery::Redirecting,
        }
        | Phase::Promoted
        | Phase::RolledBack
        | Phase::Blocked
        | Phase::Concluded
            if !rollout.is_settled()
                && displaced(rollout, fence, routers)
                    .is_some_and(|at| at.get() < seq.get().saturating_add(REACH)) =>
        {
            let mut draft = draft();
            draft.route_again();
            Ok(Some(draft))
        }
        _ => Ok(None),
    }
}

/// A mark, a latch, or a router that is ahead of the log: somebody has already gone back.
fn told_to_go_back(rollout: &Rollout, routers: &Observed) -> Option<Cause> {
    let last = rollout.last().map(|(seq, _)| seq);
    routers.reachable().find_map(|(id, router)| {
        let named = || id.to_string();
        if router.latch.is_some() {
            Some(Cause::Forced { router: named() })
        } else if router.mark.as_ref() == Some(rollout.id())
            || (rollout.state().routed.is_some() && Some(router.at.seq) > last)
        {
            Some(Cause::Marked { router: named() })
        } else if has_forgotten(rollout, router) || is_ahead(rollout, router) {
            Some(Cause::Drifted { router: named() })
        } else {
            None
        }
    })
}

/// A router that carries out what comes after the split in force: this rollout never told it to.
fn is_ahead(rollout: &Rollout, router: &RouterState) -> bool {
    let routed = rollout.state().routed;
    routed.is_some_and(|(routed, _)| router.at.seq > routed)
}

/// A router that remembers nothing, and began with the split of this rollout: it may have been told to go back before.
fn has_forgotten(rollout: &Rollout, router: &RouterState) -> bool {
    rollout.phase().stage().is_some()
        && router.at == Position::default()
        && router.split.rollout.as_ref() == Some(rollout.id())
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
            r.at.seq < routed || (r.at.seq == routed && r.split != rollout.state().split)
        })
        .map(|(id, _)| id.to_string())
}

/// How far ahead of the log a router may have been put and is put right: the log grows up to there, an entry each time.
const REACH: u64 = 16;

/// A router that serves something else in the place of what it is told, or in a later one: it takes that for newer, and only what
/// is newer still puts it right. The latest such place.
fn displaced(rollout: &Rollout, fence: Fence, routers: &Observed) -> Option<Seq> {
    let (routed, _) = rollout.state().routed?;
    let at = Position { fence, seq: routed };
    let others = routers
        .reachable()
        .filter(|(_, r)| r.at > at || (r.at == at && r.split != rollout.state().split));
    others.map(|(_, r)| r.at.seq).max()
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
    if judgement.verdict == Verdict::Fail && state.stranded.is_none() {
        return draft.go_back(harm(judgement));
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
    for failed in failures(spec, judgement) {
        let Failed {
            name,
            what,
            by,
            action,
            dry_run,
        } = &failed;
        let known = state.holds.contains_key(name)
            || state.waived.contains(name)
            || state.warned.contains(name);
        match action {
            _ if known => {}
            Action::Hold if !dry_run => {
                draft.page(format!("held: {what}"));
                draft.hold(name, by, what);
            }
            // It has gone back already, or waits for the baseline.
            Action::Rollback if !dry_run => {}
            action => {
                let text = if *dry_run {
                    format!("dry run: would {action}: {what}")
                } else {
                    format!("warning: {what}")
                };
                draft.notify(false, text);
                draft.state.warned.insert(name.clone());
            }
        }
    }
    if let Phase::Held { .. } = draft.state.phase {
        return Ok(Some(draft));
    }
    draft.state.dwell += Duration::from_millis(judgement.to.saturating_sub(judgement.from));
    let Some(this) = spec.stages.get(stage) else {
        return Ok(Some(draft));
    };
    // A failed hold gate that a person has cleared in this stage does not stand in the way any more, a failed warn gate never does.
    let needs = |metric: &str, dry_run: bool| !dry_run && rollout.plan().needs(this, metric);
    let waived = |hold: String| state.waived.contains(&hold);
    let passes = |g: &GateEvidence| match g.verdict {
        Verdict::Pass => true,
        Verdict::Inconclusive => false,
        Verdict::Fail => {
            action_of(spec, &g.metric) == Some(Action::Warn) || waived(gate_hold(&g.metric))
        }
    };
    let keeps = |t: &ThresholdEvidence| match t.verdict {
        Verdict::Pass => true,
        _ if t.action == Action::Warn => true,
        Verdict::Inconclusive => false,
        Verdict::Fail => waived(threshold_hold(&t.name)),
    };
    let mut gates = judgement.gates.iter();
    let mut limits = judgement.thresholds.iter();
    let passed = judgement.verdict != Verdict::Fail
        && gates.all(|g| !needs(&g.metric, g.dry_run) || passes(g))
        && limits.all(|t| !needs(&t.metric, t.dry_run) || keeps(t));
    let ripe = passed && !judgement.paused && draft.state.dwell >= this.dwell;
    if !ripe || draft.is_frozen() {
        return Ok(Some(draft));
    }
    if this.advance == Advance::Manual && !state.approvals.contains_key(&stage) {
        draft.page(format!("stage {stage} has passed and waits for approval"));
        draft.hold(APPROVAL, "plan", "this stage advances by hand");
        return Ok(Some(draft));
    }
    draft.advance(stage)
}

/// Why a judgement sends the candidate back: what needs no statistics first.
fn harm(judgement: &Judgement) -> Cause {
    if let Some(limit) = judgement.hard_limits.iter().find(|l| l.hit) {
        let block = limit.block.unwrap_or_default();
        return Cause::HardLimit {
            metric: limit.metric.clone(),
            bad: block.k,
            of: block.n,
        };
    }
    let failed = |t: &&ThresholdEvidence| {
        t.verdict == Verdict::Fail && t.action == Action::Rollback && !t.dry_run
    };
    if judgement.log_evidence < judgement.bound
        && let Some(threshold) = judgement.thresholds.iter().find(failed)
    {
        return Cause::Threshold {
            name: threshold.name.clone(),
            metric: threshold.metric.clone(),
            value: threshold.value.zip(threshold.limit).unwrap_or_default(),
            breaches: threshold.breaches,
        };
    }
    let weighted = |gate: &GateEvidence| gate.weight.ln() + gate.log_e;
    let shares = judgement.gates.iter().filter(|g| !g.dry_run);
    let worst = shares.max_by(|a, b| weighted(a).total_cmp(&weighted(b)));
    Cause::Gate {
        metric: worst.map(|g| g.metric.clone()).unwrap_or_default(),
        log_evidence: judgement.log_evidence,
        bound: judgement.bound,
    }
}

/// A gate or threshold that has failed.
struct Failed {
    /// Of its hold, or of having told people.
    name: String,
    by: &'static str,
    what: String,
    action: Action,
    dry_run: bool,
}

fn failures(spec: &PlanSpec, judgement: &Judgement) -> Vec<Failed> {
    let gates = judgement
        .gates
        .iter()
        .filter(|g| g.verdict == Verdict::Fail);
    let gates = gates.filter_map(|g| {
        Some(Failed {
            name: gate_hold(&g.metric),
            by: "gate",
            what: format!("evidence of harm in {:?}", g.metric),
            action: action_of(spec, &g.metric)?,
            dry_run: g.dry_run,
        })
    });
    let limits = judgement.thresholds.iter();
    let limits = limits.filter(|t| t.verdict == Verdict::Fail).map(|t| {
        let (value, limit) = t.value.zip(t.limit).unwrap_or_default();
        Failed {
            name: threshold_hold(&t.name),
            by: "threshold",
            what: format!(
                "{:?} is {value:.4}, beyond the threshold of {limit:.4}",
                t.metric
            ),
            action: t.action,
            dry_run: t.dry_run,
        }
    });
    gates.chain(limits).collect()
}

fn gate_hold(metric: &str) -> String {
    format!("gate-{metric}")
}

fn threshold_hold(name: &str) -> String {
    format!("threshold-{name}")
}

/// What the plan's gate on this metric does.
fn action_of(spec: &PlanSpec, metric: &str) -> Option<Action> {
    spec.gates
        .iter()
        .find(|g| g.metric == metric)
        .map(|g| g.action)
}

fn alarmed<'a>(rollout: &'a Rollout, seq: Seq, now: Timestamp, alarm: &Alarm) -> Decision<'a> {
    let triggers = &rollout.plan().spec().triggers;
    let mut watch = rollout.plan().spec().watch.iter();
    let response = triggers
        .alarms
        .get(&alarm.name)
        .copied()
        .or_else(|| watch.find(|w| w.probe == alarm.name).map(|w| w.action))
        .unwrap_or(triggers.other_alarms);
    let hold = format!("alarm-{}", alarm.name);
    if response == Response::Hold && rollout.state().holds.contains_key(&hold) {
        return Ok(None);
    }
    let mut draft = Draft::new(rollout, seq, now);
    let text = format!("alarm {:?}: {}", alarm.name, alarm.detail);
    match response {
        Response::Warn => draft.notify(false, text),
        Response::Page => draft.page(text),
        Response::Hold => {
            draft.page(format!("held: {text}"));
            draft.hold(&hold, "alarm", &alarm.detail);
        }
        Response::Rollback => {
            return draft.go_back(Cause::Alarm {
                name: alarm.name.clone(),
                detail: alarm.detail.clone(),
            });
        }
    }
    Ok(Some(draft))
}
