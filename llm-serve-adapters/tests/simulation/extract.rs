//! From a log's bytes to what was decided: by the real reading and folding of entries.

use crate::history::{Decided, Doing, Event, History, Looked, Number, Route, What, Why};
use crate::world::{number_of, number_of_rollout};
use llm_gates::Verdict;
use llm_rollout::{Effect, EndpointId, Input, Outcome, Phase, Position, Rollout, Seq, Step, Verb};
use llm_serve_adapters::journal::{Entry, Event as Written, Ledger};

/// Puts what each entry says where the history says that it was logged. Returns how each rollout ended.
pub(crate) fn decided(
    mut history: History,
    log: &[Vec<u8>],
    last: Option<&Ledger>,
) -> (History, Vec<(Number, Phase)>) {
    let endpoint = EndpointId::new("chat").unwrap();
    let mut ledger = Ledger::default();
    let mut events = Vec::with_capacity(history.events.len() + log.len());
    let mut bytes = log.iter();
    for event in std::mem::take(&mut history.events) {
        let at = event.at;
        let logged = match event.what {
            What::Logged {
                fence, seq, sent, ..
            } => Some((fence, seq, sent)),
            _ => None,
        };
        events.push(event);
        let Some((fence, seq, sent)) = logged else {
            continue;
        };
        let entry = Entry::decode(&endpoint, Seq::new(seq), bytes.next().unwrap()).unwrap();
        let before = match &entry.event {
            Written::Stepped { step, .. } => {
                ledger.rollout.as_ref().map(|r| step_of(fence, r, step))
            }
            _ => None,
        };
        ledger.fold(&endpoint, Seq::new(seq), &entry).unwrap();
        let what = match (&entry.event, before) {
            (Written::Submitted { rollout, .. }, _) => What::Submitted {
                seq,
                rollout: number_of_rollout(rollout.id()),
                baseline: number_of(rollout.baseline()),
                candidate: number_of(rollout.candidate()),
            },
            (_, Some(mut step)) => {
                step.sent = sent;
                step.settled = ledger.rollout.as_ref().is_some_and(Rollout::is_settled);
                What::Decided(Box::new(step))
            }
            _ => continue,
        };
        events.push(Event { at, what });
    }
    history.events = events;
    // The last controller may not have heard yet of what a network that is late has brought to the store.
    history.replays = last.is_none_or(|last| last.next != ledger.next || alike(last, &ledger));
    let ends = ledger.ended.values();
    let ends = ends
        .map(|end| (number_of_rollout(&end.rollout), end.phase))
        .collect();
    (history, ends)
}

/// Whether they hold the same, but for where a source stood when it was opened: that is logged with the first look.
fn alike(one: &Ledger, other: &Ledger) -> bool {
    let without = |ledger: &Ledger| {
        let mut ledger = ledger.clone();
        ledger.checkpoint = None;
        ledger
    };
    without(one) == without(other)
}

fn step_of(fence: u64, rollout: &Rollout, step: &Step) -> Decided {
    let before = rollout.state();
    let intents = step.intents.iter().map(|i| (i.id, doing(&i.effect)));
    let route = step.intents.iter().find_map(|i| match &i.effect {
        Effect::Route { direction, split } => Some(Route {
            direction: *direction,
            baseline: number_of(&split.baseline),
            candidate: split.candidate.as_ref().map_or(0, number_of),
            share: split.share.basis_points(),
            epoch: split.epoch.get(),
        }),
        _ => None,
    });
    let stage = rollout
        .phase()
        .stage()
        .and_then(|i| rollout.plan().stages().get(i));
    let dwell_needed = stage.map_or(0, |s| u64::try_from(s.dwell.as_millis()).unwrap());
    let gained = match &step.input {
        Input::Judged(look) => look.judgement.to - look.judgement.from,
        _ => 0,
    };
    Decided {
        sent: 0,
        fence,
        seq: step.seq.get(),
        rollout: number_of_rollout(rollout.id()),
        baseline: number_of(rollout.baseline()),
        candidate: number_of(rollout.candidate()),
        before: before.phase,
        after: step.state.phase,
        epoch: before.split.epoch.get(),
        route,
        why: why(rollout, step),
        dwell: u64::try_from(before.dwell.as_millis()).unwrap() + gained,
        dwell_needed,
        clock: step.at.as_millis(),
        intents: intents.collect(),
        done: step.done.clone(),
        failed: matches!(
            step.input,
            Input::Done {
                outcome: Outcome::Failed { .. },
                ..
            }
        ),
        cause: step.state.cause.clone(),
        settled: false,
        stranded: step.state.stranded.is_some(),
    }
}

fn doing(effect: &Effect) -> Doing {
    match effect {
        Effect::Prepare(v) => Doing::Prepare(number_of(v)),
        Effect::Standby(v) => Doing::Standby(number_of(v)),
        Effect::Retire(v) => Doing::Retire(number_of(v)),
        Effect::Drain { version, .. } => Doing::Drain(number_of(version)),
        Effect::Notify(_) => Doing::Notify,
        _ => Doing::Other,
    }
}

fn why(rollout: &Rollout, step: &Step) -> Why {
    match &step.input {
        Input::Found { .. } => Why::Found,
        Input::Operator(command) => Why::Verb(verb(&command.verb).to_owned()),
        Input::Judged(look) => {
            let judgement = &look.judgement;
            let stage = rollout
                .phase()
                .stage()
                .and_then(|i| rollout.plan().stages().get(i));
            let needs = |metric: &String| {
                stage.is_none_or(|s| s.needs.as_ref().is_none_or(|needs| needs.contains(metric)))
            };
            let mut needed = judgement.gates.iter().filter(|g| needs(&g.metric));
            let counts = judgement
                .gates
                .first()
                .map(|g| g.candidate)
                .unwrap_or_default();
            let state = rollout.state();
            // Not by the machine's own word for it.
            let confirmed = state.routed.is_some_and(|(seq, _)| {
                let at = Position {
                    fence: look.fence,
                    seq,
                };
                look.routers.iter().all(|(_, router)| {
                    router.is_some_and(|r| {
                        (r.fence, r.at, r.lapsed) == (at.fence, at, false) && r.split == state.split
                    })
                })
            });
            Why::Look(Looked {
                epoch: judgement.epoch,
                from: judgement.from,
                to: judgement.to,
                failed: judgement.verdict == Verdict::Fail,
                silent: look.heartbeat.is_some_and(|beat| {
                    beat.waiting >= rollout.plan().spec().triggers.candidate_silent
                }),
                passed: needed.all(|g| g.verdict == Verdict::Pass),
                n: counts.n,
                k: counts.k,
                samples: judgement.samples,
                needed: match stage {
                    Some(stage) if judgement.gates.iter().any(|g| needs(&g.metric)) => {
                        stage.min_samples
                    }
                    _ => 0,
                },
                confirmed,
            })
        }
        _ => Why::Other,
    }
}

fn verb(verb: &Verb) -> &'static str {
    match verb {
        Verb::Approve => "approve",
        Verb::Hold { .. } => "hold",
        Verb::Resume { .. } => "resume",
        Verb::Skip => "skip",
        Verb::PromoteNow => "promote_now",
        Verb::Abort => "abort",
        Verb::AbortNow => "abort_now",
        Verb::Supersede { .. } => "supersede",
        _ => "another",
    }
}
