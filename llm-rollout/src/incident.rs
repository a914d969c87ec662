//! The incident record: what happened in a rollout, from what was submitted and its steps alone.
//!
//! A record is data ([`Incident`], serde), text for a ticket ([`Incident::to_markdown`]) and a page for a browser
//! ([`Incident::to_html`], self-contained). It ends with the parts of a post-mortem that people write.

mod render;

use crate::{
    Cause, Effect, Format, Input, IntentId, Outcome, Phase, Recovery, Rollout, RolloutId, Seq,
    Share, Step, Timestamp, Verb,
};
use llm_gates::{GateEvidence, Judgement, TableReport};
use llm_version_core::VersionId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// What happened in one rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Incident {
    /// Format of this record.
    pub format: Format,
    /// Which rollout.
    pub rollout: RolloutId,
    /// The version in production when it was submitted.
    pub baseline: VersionId,
    /// The version that was rolled out.
    pub candidate: VersionId,
    /// When it was submitted.
    pub submitted: Timestamp,
    /// Where it is, or how it ended.
    pub phase: Phase,
    /// Since when.
    pub since: Timestamp,
    /// Why it went back or did not begin.
    pub cause: Option<Cause>,
    /// When that was decided.
    pub decided: Option<Timestamp>,
    /// When every router had confirmed that the candidate gets nothing any more.
    pub contained: Option<Timestamp>,
    /// How much of the traffic the candidate had.
    pub exposure: Exposure,
    /// What the gates saw when it was decided, or last.
    pub evidence: Option<Evidence>,
    /// What the gates before deployment saw.
    pub pre_flight: Option<TableReport>,
    /// What happened, in order.
    pub timeline: Vec<Moment>,
    /// How many moments are left out in the middle of the timeline.
    #[serde(default)]
    pub omitted: usize,
    /// Who was told what, and whether it arrived.
    pub told: Vec<Told>,
    /// What was asked of routers and backends, and how it went.
    pub ran: Vec<Ran>,
}

/// How much of the traffic the candidate had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct Exposure {
    /// Requests that it was given, as last heard.
    pub requests: u64,
    /// The largest share that it was to answer.
    pub largest_share: Share,
    /// The largest share that was mirrored to it.
    pub largest_mirror: Share,
    /// From the first decision to expose it to the confirmation that it is not (or to the last step), in milliseconds.
    #[serde(with = "whole_millis")]
    pub time: Duration,
}

/// What the gates saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct Evidence {
    /// The step that held it.
    pub seq: Seq,
    /// When.
    pub at: Timestamp,
    /// ln of the evidence of all gates together.
    pub log_evidence: f64,
    /// The bound that rolls back.
    pub bound: f64,
    /// Candidate samples of the stage.
    pub samples: u64,
    /// Each gate.
    pub gates: Vec<GateEvidence>,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct Moment {
    /// The step.
    pub seq: Seq,
    /// When.
    pub at: Timestamp,
    /// What came.
    pub what: String,
    /// Where it led, if somewhere else.
    pub to: Option<Phase>,
    /// The candidate's share from here on, where it changed.
    pub share: Option<Share>,
}

/// How an intent went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "plain data")]
pub enum Went {
    /// Nothing has been heard of it.
    Open,
    /// Done.
    Done {
        /// When.
        at: Timestamp,
    },
    /// Given up.
    Failed {
        /// When.
        at: Timestamp,
        /// What went wrong.
        reason: String,
    },
    /// A later decision did not need it any more.
    Overtaken {
        /// When.
        at: Timestamp,
    },
}

/// Somebody was told something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct Told {
    /// The notice.
    pub intent: IntentId,
    /// When it was decided.
    pub at: Timestamp,
    /// Whether somebody was to be woken.
    pub page: bool,
    /// What.
    pub text: String,
    /// Whether it arrived.
    pub went: Went,
}

/// Something was asked of a router or backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct Ran {
    /// The intent.
    pub intent: IntentId,
    /// When it was asked for.
    pub asked: Timestamp,
    /// What.
    pub what: String,
    /// Whether it is a part of going back.
    pub recovery: bool,
    /// How it went.
    pub went: Went,
}

impl Incident {
    /// The most moments of a timeline: of a longer life the first and the last halves are kept.
    pub const LONGEST_TIMELINE: usize = 1_000;

    /// From the rollout as it was submitted (or as it is: only what does not change is read) and its steps, in order.
    ///
    /// Steps in which nothing but evidence came are left out of the timeline.
    pub fn new(rollout: &Rollout, steps: &[Step]) -> Self {
        let first = rollout.state();
        let (mut phase, mut since, mut cause) = (Phase::Planned, first.since, None);
        let submitted = match steps.first() {
            Some(step) if rollout.last().is_some() => step.at,
            _ => first.since,
        };
        let mut incident = Self {
            format: Format::CURRENT,
            rollout: rollout.id().clone(),
            baseline: rollout.baseline().clone(),
            candidate: rollout.candidate().clone(),
            submitted,
            phase,
            since,
            cause: None,
            decided: None,
            contained: None,
            exposure: Exposure::default(),
            evidence: None,
            pre_flight: None,
            timeline: Vec::new(),
            omitted: 0,
            told: Vec::new(),
            ran: Vec::new(),
        };
        let mut asked = BTreeMap::<IntentId, Ran>::new();
        let mut told = BTreeMap::<IntentId, Told>::new();
        let (mut share, mut exposed_at) = ((Share::NONE, Share::NONE), None);
        let mut deciding = None;
        for step in steps {
            let (state, at) = (&step.state, step.at);
            let moved = state.phase != phase;
            let now = (state.split.share, state.split.mirror);
            if now != share && state.split.exposes() {
                exposed_at.get_or_insert(at);
            }
            let exposure = &mut incident.exposure;
            exposure.requests = exposure.requests.max(state.exposed);
            exposure.largest_share = exposure.largest_share.max(now.0);
            exposure.largest_mirror = exposure.largest_mirror.max(now.1);
            match &step.input {
                Input::Judged(look) if deciding.is_none() => {
                    incident.evidence = Some(evidence(step, &look.judgement));
                }
                Input::PreFlight(report) => incident.pre_flight = Some(report.clone()),
                _ => {}
            }
            let new_cause = state.cause != cause;
            if new_cause && state.cause.is_some() {
                deciding.get_or_insert(at);
            }
            let gone = matches!(
                state.phase,
                Phase::RollingBack {
                    part: Recovery::Draining
                }
            );
            if gone && moved {
                incident.contained.get_or_insert(at);
            }
            if moved || new_cause || now != share || is_news(&step.input) {
                incident.timeline.push(Moment {
                    seq: step.seq,
                    at,
                    what: said(&step.input),
                    to: moved.then_some(state.phase),
                    share: (now.0 != share.0).then_some(now.0),
                });
            }
            follow(step, &mut asked, &mut told);
            if moved {
                since = at;
            }
            (phase, share) = (state.phase, now);
            cause.clone_from(&state.cause);
        }
        let until = incident.contained.or(steps.last().map(|s| s.at));
        if let (Some(from), Some(until)) = (exposed_at, until) {
            incident.exposure.time = until.since(from);
        }
        (incident.phase, incident.since) = (phase, since);
        (incident.cause, incident.decided) = (cause, deciding);
        incident.told = told.into_values().collect();
        incident.ran = asked.into_values().collect();
        incident.omitted = shorten(&mut incident.timeline);
        incident
    }

    /// With what is known of a notice that was delivered after the end of the rollout.
    #[must_use]
    pub fn delivered(mut self, intent: IntentId, outcome: &Outcome, at: Timestamp) -> Self {
        if let Some(told) = self.told.iter_mut().find(|t| t.intent == intent) {
            told.went = went(outcome, at);
        }
        self
    }
}

fn evidence(step: &Step, judgement: &Judgement) -> Evidence {
    Evidence {
        seq: step.seq,
        at: step.at,
        log_evidence: judgement.log_evidence,
        bound: judgement.bound,
        samples: judgement.samples,
        gates: judgement.gates.clone(),
    }
}

fn shorten(timeline: &mut Vec<Moment>) -> usize {
    let half = Incident::LONGEST_TIMELINE / 2;
    let surplus = timeline.len().saturating_sub(2 * half);
    if surplus > 0 {
        timeline.drain(half..half + surplus);
    }
    surplus
}

fn went(outcome: &Outcome, at: Timestamp) -> Went {
    match outcome {
        Outcome::Ok => Went::Done { at },
        Outcome::Failed { reason } => Went::Failed {
            at,
            reason: reason.clone(),
        },
    }
}

/// Notes what a step ends and what it asks for.
fn follow(step: &Step, asked: &mut BTreeMap<IntentId, Ran>, told: &mut BTreeMap<IntentId, Told>) {
    let answered = |id: IntentId| match &step.input {
        Input::Done { intent, outcome } if *intent == id => went(outcome, step.at),
        Input::PreFlight(_) => Went::Done { at: step.at },
        // A split is answered by reading it back.
        Input::Found { .. } | Input::Judged(_) => Went::Done { at: step.at },
        _ => Went::Overtaken { at: step.at },
    };
    for id in &step.done {
        if let Some(ran) = asked.get_mut(id) {
            ran.went = answered(*id);
        }
        if let Some(told) = told.get_mut(id) {
            told.went = answered(*id);
        }
    }
    let routes = |e: &Effect| matches!(e, Effect::Route { .. });
    if step.intents.iter().any(|i| routes(&i.effect)) {
        for ran in asked.values_mut() {
            if ran.went == Went::Open && ran.what.starts_with(ROUTE) {
                ran.went = Went::Overtaken { at: step.at };
            }
        }
    }
    let recovery = step.state.cause.is_some();
    for intent in &step.intents {
        let (id, at) = (intent.id, step.at);
        if let Effect::Notify(notice) = &intent.effect {
            let told_now = Told {
                intent: id,
                at,
                page: notice.page,
                text: notice.text.clone(),
                went: Went::Open,
            };
            told.insert(id, told_now);
        } else {
            let ran = Ran {
                intent: id,
                asked: at,
                what: wanted(&intent.effect),
                recovery,
                went: Went::Open,
            };
            asked.insert(id, ran);
        }
    }
}

const ROUTE: &str = "routers: ";

fn wanted(effect: &Effect) -> String {
    match effect {
        Effect::Evaluate(version) => format!("evaluate {version} before deployment"),
        Effect::Prepare(version) => format!("load and warm up {version}"),
        Effect::Standby(version) => format!("scale down {version}"),
        Effect::Route { split, .. } => match &split.candidate {
            Some(candidate) if split.mirror > Share::NONE => format!(
                "{ROUTE}{} to {candidate}, {} mirrored, in epoch {}",
                split.share, split.mirror, split.epoch
            ),
            Some(candidate) => format!(
                "{ROUTE}{} to {candidate} in epoch {}",
                split.share, split.epoch
            ),
            None => format!(
                "{ROUTE}everything to {} in epoch {}",
                split.baseline, split.epoch
            ),
        },
        Effect::Drain { version, deadline } => format!(
            "let requests on {version} run out, at most {} s",
            deadline.as_secs()
        ),
        Effect::Retire(version) => format!("take {version} out of service"),
        Effect::Notify(notice) => notice.text.clone(),
        Effect::Record(_) => "write this record".to_owned(),
    }
}

/// Whether a step is worth a line even where it leads nowhere else.
fn is_news(input: &Input) -> bool {
    !matches!(
        input,
        Input::Tick
            | Input::Judged(_)
            | Input::Done { .. }
            | Input::Found { .. }
            | Input::Heartbeat(_)
    )
}

/// An input in words.
pub(crate) fn said(input: &Input) -> String {
    match input {
        Input::Start => "started".to_owned(),
        Input::Tick => "time passed".to_owned(),
        Input::PreFlight(report) => format!("gates before deployment: {}", report.verdict),
        Input::Judged(look) => format!(
            "verdict {} after {} samples (ln E {:.2}, bound {:.2})",
            look.judgement.verdict,
            look.judgement.samples,
            look.judgement.log_evidence.max(-999.0),
            look.judgement.bound.min(999.0)
        ),
        Input::SourceFailed { reason } => format!("no metrics: {reason}"),
        Input::Heartbeat(beat) => format!(
            "a candidate request has waited {:.1} s for its first token",
            beat.waiting.as_secs_f64()
        ),
        Input::Alarm(alarm) => format!("alarm {:?}: {}", alarm.name, alarm.detail),
        Input::Health { baseline: true } => "the baseline can serve again".to_owned(),
        Input::Health { baseline: false } => "the baseline cannot serve".to_owned(),
        Input::Frozen { until } => format!("frozen until {}", render::moment(*until)),
        Input::Operator(command) => {
            let verb = match &command.verb {
                Verb::Approve => "approved".to_owned(),
                Verb::Hold { name } => format!("placed hold {name:?}"),
                Verb::Resume { name } => format!("cleared hold {name:?}"),
                Verb::Skip => "skipped the stage".to_owned(),
                Verb::PromoteNow => "promoted at once".to_owned(),
                Verb::Abort => "aborted".to_owned(),
                Verb::AbortNow => "aborted at once".to_owned(),
                Verb::Supersede { by } => format!("made way for rollout {by}"),
            };
            format!("{} {verb}: {}", command.by, command.why)
        }
        Input::Done {
            intent,
            outcome: Outcome::Ok,
        } => format!("intent {intent} done"),
        Input::Done {
            intent,
            outcome: Outcome::Failed { reason },
        } => format!("intent {intent} failed: {reason}"),
        Input::Found { .. } => "routers read back".to_owned(),
    }
}

mod whole_millis {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        u64::try_from(value.as_millis())
            .unwrap_or(u64::MAX)
            .serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        Ok(Duration::from_millis(u64::deserialize(from)?))
    }
}
