//! Representative inputs, and every state of the machine that they lead to.

#![expect(
    clippy::unnecessary_wraps,
    reason = "an input may make no sense in a life as it stands"
)]

use crate::life::{FENCE, Life, plan, version};
use llm_gates::{GateTable, TableReport, Verdict};
use llm_rollout::plan::{Exposure, PreFlightSpec};
use llm_rollout::{
    Advance, Alarm, Cause, Command, Effect, Finish, Heartbeat, Input, Observed, Outcome, Phase,
    Plan, Response, RouterId, Share, Standby, Verb,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Makes an input for a life as it stands, or nothing where it makes no sense.
pub(crate) type Make = fn(&mut Life) -> Option<Input>;

fn report(verdict: &str, action: &str) -> Option<Input> {
    let empty = GateTable::reference().evaluate(&BTreeMap::default());
    let mut value = serde_json::to_value(empty).unwrap();
    value["verdict"] = verdict.into();
    for row in value["rows"].as_array_mut().unwrap() {
        row["verdict"] = verdict.into();
        row["action"] = action.into();
    }
    let report: TableReport = serde_json::from_value(value).unwrap();
    Some(Input::PreFlight(report))
}

fn look(life: &mut Life, verdict: Verdict, hours: u64) -> Option<Input> {
    life.wait(Duration::from_secs(60));
    Some(Input::Judged(Box::new(life.look(verdict, hours))))
}

fn found(life: &Life) -> Option<Input> {
    let (fence, routers) = (FENCE, life.routers());
    Some(Input::Found { fence, routers })
}

fn done(life: &Life, outcome: Outcome, this: fn(&Effect) -> bool) -> Option<Input> {
    let intent = life.rollout.pending().iter().find(|i| this(&i.effect))?.id;
    Some(Input::Done { intent, outcome })
}

fn failed() -> Outcome {
    Outcome::Failed {
        reason: "no memory left".into(),
    }
}

fn say(verb: Verb) -> Option<Input> {
    Some(Input::Operator(Command {
        verb,
        by: "ana".into(),
        why: "because".into(),
    }))
}

fn alarm(name: &str) -> Option<Input> {
    Some(Input::Alarm(Alarm {
        name: name.into(),
        detail: "5 of 7".into(),
    }))
}

/// What can come, each under the name that people read.
pub(crate) fn inputs() -> Vec<(&'static str, Make)> {
    vec![
        ("start", |_| Some(Input::Start)),
        ("tick", |_| Some(Input::Tick)),
        ("tick when something is due", |life| {
            let due = life.rollout.next_wakeup()?;
            if due > life.now {
                life.now = due;
            }
            Some(Input::Tick)
        }),
        ("gates before deployment pass", |_| report("pass", "block")),
        ("a blocking gate before deployment fails", |_| {
            report("fail", "block")
        }),
        ("a holding gate before deployment fails", |_| {
            report("fail", "hold")
        }),
        ("verdict: pass", |life| look(life, Verdict::Pass, 1)),
        ("verdict: inconclusive", |life| {
            look(life, Verdict::Inconclusive, 0)
        }),
        ("verdict: harm", |life| look(life, Verdict::Fail, 1)),
        ("verdict: harm in a holding gate", |life| {
            let Some(Input::Judged(mut look)) = look(life, Verdict::Inconclusive, 1) else {
                return None;
            };
            look.judgement.gates[1].verdict = Verdict::Fail;
            Some(Input::Judged(look))
        }),
        ("verdict: pass, a router unreachable", |life| {
            let Some(Input::Judged(mut look)) = look(life, Verdict::Pass, 1) else {
                return None;
            };
            look.routers = Observed::new([(RouterId::new("a").unwrap(), None)]);
            Some(Input::Judged(look))
        }),
        ("verdict of an earlier epoch", |life| {
            let Some(Input::Judged(mut look)) = look(life, Verdict::Fail, 1) else {
                return None;
            };
            look.judgement.epoch = 0;
            Some(Input::Judged(look))
        }),
        ("metric source fails", |_| {
            let reason = "down".into();
            Some(Input::SourceFailed { reason })
        }),
        ("candidate silent", |_| {
            let waiting = Duration::from_secs(60);
            Some(Input::Heartbeat(Heartbeat {
                exposed: 1,
                waiting,
            }))
        }),
        ("alarm that pages", |_| alarm("page")),
        ("alarm that holds", |_| alarm("hold")),
        ("alarm that rolls back", |_| alarm("back")),
        ("baseline unhealthy", |_| {
            Some(Input::Health { baseline: false })
        }),
        ("baseline healthy", |_| {
            Some(Input::Health { baseline: true })
        }),
        ("freeze", |life| {
            let until = life.now.after(Duration::from_secs(600));
            Some(Input::Frozen { until })
        }),
        ("approve", |_| say(Verb::Approve)),
        ("hold", |_| {
            say(Verb::Hold {
                name: "audit".into(),
            })
        }),
        ("resume", |life| {
            let name = life.rollout.state().holds.keys().next()?.clone();
            say(Verb::Resume { name })
        }),
        ("skip", |_| say(Verb::Skip)),
        ("promote now", |_| say(Verb::PromoteNow)),
        ("abort", |_| say(Verb::Abort)),
        ("abort now", |_| say(Verb::AbortNow)),
        ("supersede", |_| {
            say(Verb::Supersede {
                by: "r2".parse().unwrap(),
            })
        }),
        ("evaluation impossible", |life| {
            done(life, failed(), |e| matches!(e, Effect::Evaluate(_)))
        }),
        ("loaded", |life| {
            done(life, Outcome::Ok, |e| matches!(e, Effect::Prepare(_)))
        }),
        ("not loaded", |life| {
            done(life, failed(), |e| matches!(e, Effect::Prepare(_)))
        }),
        ("drained", |life| {
            done(life, Outcome::Ok, |e| matches!(e, Effect::Drain { .. }))
        }),
        ("scaled down", |life| {
            done(life, Outcome::Ok, |e| matches!(e, Effect::Standby(_)))
        }),
        ("retired", |life| {
            done(life, Outcome::Ok, |e| matches!(e, Effect::Retire(_)))
        }),
        ("told or recorded", |life| {
            done(life, Outcome::Ok, |e| {
                matches!(e, Effect::Notify(_) | Effect::Record(_))
            })
        }),
        ("routers confirm", |life| found(life)),
        ("a router is unreachable", |_| {
            let routers = Observed::new([(RouterId::new("a").unwrap(), None)]);
            let fence = FENCE;
            Some(Input::Found { fence, routers })
        }),
        ("the share has lapsed", |life| {
            life.router.split.lease?;
            life.router.lapsed = true;
            found(life)
        }),
        ("a router serves something else", |life| {
            let mut other = life.clone();
            other.router.split.share = Share::from_percent(77.0).unwrap();
            found(&other)
        }),
        ("a router was forced to the baseline", |life| {
            let mut other = life.clone();
            other.router.latch = Some(version(1));
            found(&other)
        }),
    ]
}

/// Plans that between them lead everywhere: with gates before deployment, a stage by hand, a cold baseline, a shadow.
pub(crate) fn plans() -> Vec<Plan> {
    let mut warm = plan().spec().clone();
    warm.triggers.alarms = [
        ("page".to_owned(), Response::Page),
        ("back".to_owned(), Response::Rollback),
    ]
    .into();
    warm.stages.remove(1);
    warm.stages[1].advance = Advance::Manual;
    let mut gated = warm.clone();
    gated.pre_flight = Some(PreFlightSpec {
        gates: GateTable::reference(),
        deadline: Duration::from_secs(60),
    });
    gated.stages.truncate(1);
    let mut cold = warm.clone();
    cold.recovery.standby = Standby::Cold;
    cold.stages.remove(0);
    let mut shadow = warm.clone();
    shadow.finish = Finish::Return;
    shadow.stages.truncate(1);
    shadow.stages[0].serve = Exposure::default();
    shadow.stages[0].mirror = Exposure(Share::from_percent(10.0).unwrap());
    [warm, gated, cold, shadow]
        .map(|spec| spec.try_into().unwrap())
        .into()
}

/// What tells two states apart, but for times and numbers.
fn key(life: &Life) -> String {
    let (rollout, state) = (&life.rollout, life.rollout.state());
    let frozen = state.frozen_until.is_some_and(|until| until > life.now);
    let mut pending: Vec<_> = rollout
        .pending()
        .iter()
        .filter(|i| !matches!(i.effect, Effect::Notify(_) | Effect::Record(_)))
        .map(|i| format!("{:?}", std::mem::discriminant(&i.effect)))
        .collect();
    pending.sort();
    pending.dedup();
    // Which holds stand matters only where the machine knows them.
    let holds = (
        state.holds.len().min(1),
        ["approval", "baseline-unhealthy"].map(|name| state.holds.contains_key(name)),
    );
    let concluded = state.cause == Some(Cause::Concluded);
    let due = rollout.next_wakeup().is_some_and(|at| at <= life.now);
    format!(
        "{}|{holds:?}|{:?}|{:?}|{}{}{}{}{}{frozen}{due}{concluded}|{}|{pending:?}|{}{}|{}",
        rollout.phase(),
        state.approvals.keys(),
        state.load,
        state.baseline_cold,
        state.baseline_down,
        state.stranded.is_some(),
        state.superseded_by.is_some(),
        state.paged,
        state.lapses.min(1),
        life.router.lapsed,
        life.router.mark.is_some(),
        state.waived.len().min(1),
    )
}

/// Where a transition leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Leads {
    To(&'static str),
    /// Something is noted, and the phase stays.
    Stays,
    /// No news: nothing is logged.
    Nowhere,
    Refused,
}

/// A phase without its stage.
pub(crate) fn name(phase: Phase) -> &'static str {
    use llm_rollout::Recovery;
    match phase {
        Phase::Planned => "Planned",
        Phase::PreFlight => "PreFlight",
        Phase::Warming => "Warming",
        Phase::Shifting { .. } => "Shifting",
        Phase::Soaking { .. } => "Soaking",
        Phase::Held { .. } => "Held",
        Phase::Promoting => "Promoting",
        Phase::Baking => "Baking",
        Phase::RollingBack { part } => match part {
            Recovery::Warming => "RollingBackWarming",
            Recovery::Redirecting => "RollingBackRedirecting",
            Recovery::Draining => "RollingBackDraining",
            Recovery::Retiring => "RollingBackRetiring",
        },
        Phase::Promoted => "Promoted",
        Phase::RolledBack => "RolledBack",
        Phase::Blocked => "Blocked",
        Phase::Concluded => "Concluded",
    }
}

/// The phases, in the order of a life.
pub(crate) const PHASES: [&str; 16] = [
    "Planned",
    "PreFlight",
    "Warming",
    "Shifting",
    "Soaking",
    "Held",
    "Promoting",
    "Baking",
    "RollingBackWarming",
    "RollingBackRedirecting",
    "RollingBackDraining",
    "RollingBackRetiring",
    "Promoted",
    "RolledBack",
    "Blocked",
    "Concluded",
];

/// The table: by phase and input, where it can lead.
pub(crate) type Table = BTreeMap<(&'static str, usize), BTreeSet<Leads>>;

/// Every state that the inputs lead to from a fresh rollout of each plan, each tried with every input.
pub(crate) fn table() -> Table {
    let inputs = inputs();
    let mut table = Table::new();
    for plan in plans() {
        let first = Life::with(plan);
        let mut seen = BTreeSet::from([key(&first)]);
        let mut queue = VecDeque::from([first]);
        while let Some(life) = queue.pop_front() {
            let from = life.rollout.phase();
            for (i, (_, make)) in inputs.iter().enumerate() {
                let mut next = life.clone();
                let Some(input) = make(&mut next) else {
                    continue;
                };
                let leads = match next.give(input) {
                    Err(_) => Leads::Refused,
                    Ok(false) => Leads::Nowhere,
                    Ok(true) if next.rollout.phase() == from => Leads::Stays,
                    Ok(true) => Leads::To(name(next.rollout.phase())),
                };
                table.entry((name(from), i)).or_default().insert(leads);
                // What was no news changes no state but the clock and the router.
                if matches!(leads, Leads::To(_) | Leads::Stays) {
                    next.log.clear();
                    if seen.insert(key(&next)) {
                        queue.push_back(next);
                    }
                }
            }
        }
        assert!(seen.len() < 20_000, "the exploration has an end");
    }
    table
}
