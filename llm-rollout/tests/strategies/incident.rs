//! Incident records: what they hold, and that every life gives one.

use crate::explore::{inputs, plans};
use crate::life::{Life, plan, version};
use llm_gates::Verdict;
use llm_rollout::incident::{Incident, Went};
use llm_rollout::{
    Cause, Command, Effect, Input, Outcome, Phase, Rollout, Share, Step, Timestamp, Verb,
};
use proptest::prelude::*;
use std::time::Duration;

const HOSTILE: &str = "<script>alert(1)</script> & \"quotes\" '|' [x](http://evil.example) `a` **b** <img src=x onerror=1>\n# no heading\u{7}";

/// A rollout that is found to be harmful at its first stage.
fn harmful() -> (Rollout, Life) {
    let fresh = Life::new();
    let mut life = Life::soaking();
    life.judged(Verdict::Pass).unwrap();
    life.found();
    life.judged(Verdict::Inconclusive).unwrap();
    life.judged(Verdict::Fail).unwrap();
    life.wait(Duration::from_secs(2));
    life.found();
    life.wait(Duration::from_secs(30));
    life.serve();
    life.serve();
    life.found();
    assert!(life.rollout.is_settled());
    (fresh.rollout, life)
}

#[test]
fn an_incident_says_what_happened() {
    let (submitted, life) = harmful();
    let incident = Incident::new(&submitted, &life.log);
    assert_eq!(incident.phase, Phase::RolledBack);
    assert!(matches!(incident.cause, Some(Cause::Gate { .. })));
    let contained = incident.contained.unwrap();
    assert_eq!(
        contained.since(incident.decided.unwrap()),
        Duration::from_secs(2)
    );
    assert_eq!(incident.exposure.requests, 42);
    assert_eq!(
        incident.exposure.largest_share,
        Share::from_percent(50.0).unwrap()
    );
    assert_eq!(incident.exposure.time, Duration::from_secs(3 * 300 + 2));
    let evidence = incident.evidence.as_ref().unwrap();
    assert_eq!(
        evidence.gates[0].verdict,
        Verdict::Fail,
        "what the gates saw at the decision"
    );
    let phases: Vec<_> = incident.timeline.iter().filter_map(|m| m.to).collect();
    assert!(phases.contains(&Phase::Soaking { stage: 0 }) && phases.contains(&Phase::RolledBack));
    let recovery: Vec<_> = incident.ran.iter().filter(|r| r.recovery).collect();
    assert!(
        recovery.len() >= 4,
        "redirect, drain, retire, end: {recovery:?}"
    );
    for ran in &recovery {
        let record = ran.what.contains("record");
        assert!(record || matches!(ran.went, Went::Done { .. }), "{ran:?}");
    }
    assert!(incident.told.iter().any(|t| t.page));

    let json = serde_json::to_string(&incident).unwrap();
    assert_eq!(serde_json::from_str::<Incident>(&json).unwrap(), incident);
    assert!(json.contains("\"format\":\"1."));
    let text = incident.to_markdown();
    for part in [
        "# Rollout r1: rolled back",
        "evidence of harm in \"faults\"",
        "42 requests, at most 50 %",
        "since 1970-01-12T14:02:12Z.",
        "from 1970-01-12T14:01:42Z on, 2s later.",
        "## What the gates saw",
        "## Timeline",
        "## What ran",
        "## Who was told",
        "## Root cause",
        "## Actions",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    for part in ["mirrored", "left out", "Gates before deployment"] {
        assert!(!text.contains(part), "{part:?} in {text}");
    }
    let idle = |what: &str| what.starts_with("verdict") || what.starts_with("intent");
    let mut still = incident.timeline.iter().filter(|m| m.to.is_none());
    assert!(!still.any(|m| idle(&m.what)), "evidence alone is no news");
    let first = incident.ran.iter().find(|r| r.what.starts_with("routers"));
    let candidate = version(2);
    assert_eq!(
        first.unwrap().what,
        format!("routers: 5 % to {candidate} in epoch 4")
    );
}

#[test]
fn gates_before_deployment_and_mirrored_requests_are_in_it() {
    use llm_rollout::plan::{Exposure, PreFlightSpec};
    let mut spec = plan().spec().clone();
    let gates = llm_gates::GateTable::reference();
    let mut report = gates.evaluate(&std::collections::BTreeMap::default());
    for row in &mut report.rows {
        row.verdict = Verdict::Pass;
    }
    spec.pre_flight = Some(PreFlightSpec {
        gates,
        deadline: Duration::from_secs(60),
    });
    spec.stages[0].serve = Exposure::default();
    spec.stages[0].mirror = Exposure(Share::from_percent(10.0).unwrap());
    let mut life = Life::with(spec.try_into().unwrap());
    life.give(Input::Start).unwrap();
    life.wait(Duration::from_secs(5));
    life.give(Input::PreFlight(report)).unwrap();
    life.serve();
    life.found();
    life.operator(Verb::Abort).unwrap();
    let incident = Incident::new(&life.rollout, &life.log);
    let asked = |what: &str| {
        let mut ran = incident.ran.iter();
        ran.find(|r| r.what.contains(what)).unwrap()
    };
    let at = asked("evaluate").asked.after(Duration::from_secs(5));
    assert_eq!(asked("evaluate").went, Went::Done { at });
    let candidate = version(2);
    let what = format!("routers: 0 % to {candidate}, 10 % mirrored, in epoch 4");
    assert_eq!(asked("mirrored").what, what);
    let text = incident.to_markdown();
    for part in [
        "at most 0 % of the traffic, 10 % mirrored, over",
        "## Gates before deployment",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn what_ends_beside_an_answer_is_overtaken_by_it() {
    let (submitted, life) = harmful();
    let mut steps = life.log;
    let notify = |e: &Effect| matches!(e, Effect::Notify(_));
    let mut intents = steps.iter().flat_map(|s| &s.intents);
    let other = intents.find(|i| notify(&i.effect)).unwrap().id;
    for step in &mut steps {
        step.done.retain(|id| *id != other);
    }
    let answers = |s: &&mut Step| matches!(s.input, Input::Done { .. }) && s.done.len() == 1;
    let step = steps.iter_mut().rev().find(answers).unwrap();
    let (intent, at) = (step.done[0], step.at);
    step.done.push(other);
    let incident = Incident::new(&submitted, &steps);
    let ran = |id| {
        let ran = incident.ran.iter().map(|r| (r.intent, &r.went));
        let told = incident.told.iter().map(|t| (t.intent, &t.went));
        ran.chain(told).find(|(i, _)| *i == id).unwrap().1.clone()
    };
    assert_eq!(ran(intent), Went::Done { at });
    assert_eq!(ran(other), Went::Overtaken { at });
}

#[test]
fn the_rollout_as_it_is_now_gives_the_same_record() {
    let (submitted, life) = harmful();
    let now = Incident::new(&life.rollout, &life.log);
    let then = Incident::new(&submitted, &life.log);
    assert_eq!(now.timeline, then.timeline);
    assert_eq!(now.submitted, then.submitted);
    assert_eq!((now.phase, now.since), (then.phase, then.since));
}

#[test]
fn what_was_delivered_later_can_be_added() {
    let (submitted, life) = harmful();
    let mut steps = life.log;
    let notice = steps
        .iter()
        .flat_map(|s| &s.intents)
        .find(|i| matches!(i.effect, Effect::Notify(_)))
        .unwrap()
        .id;
    // Nobody has heard whether it arrived.
    for step in &mut steps {
        step.done.retain(|id| *id != notice);
    }
    let incident = Incident::new(&submitted, &steps);
    let of = |incident: &Incident| {
        let mut told = incident.told.iter();
        told.find(|t| t.intent == notice).unwrap().went.clone()
    };
    assert_eq!(of(&incident), Went::Open);
    let at = Timestamp::from_millis(2_000_000_000);
    let outcome = Outcome::Failed {
        reason: "410 gone".into(),
    };
    let told = incident.delivered(notice, &outcome, at);
    assert!(matches!(of(&told), Went::Failed { .. }));
    assert!(told.to_markdown().contains("410 gone"));
}

/// Outside of what this crate writes itself, there is no tag, no attribute and no address in the page.
fn is_inert(html: &str) {
    let (head, body) = html.split_once("<body>").unwrap();
    assert!(!head.contains("<script") && !head.contains("//"), "{head}");
    let mut rest = body;
    while let Some(open) = rest.find('<') {
        let tag = &rest[open..];
        let end = tag.find('>').unwrap();
        let name = tag[1..end].trim_start_matches('/');
        let ours = [
            "h1", "h2", "p", "em", "table", "tr", "th", "td", "body", "html",
        ];
        assert!(ours.contains(&name), "a tag of somebody else: <{name}>");
        rest = &tag[end..];
    }
}

#[test]
fn hostile_text_stays_text() {
    let mut life = Life::soaking();
    let command = Command {
        verb: Verb::Abort,
        by: HOSTILE.into(),
        why: HOSTILE.into(),
    };
    life.give(Input::Operator(command)).unwrap();
    let incident = Incident::new(&life.rollout, &life.log);
    let html = incident.to_html();
    is_inert(&html);
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(html.contains("&quot;quotes&quot; &#39;|&#39;"));
    let text = incident.to_markdown();
    for bad in [
        "<script",
        "<img",
        "[x](",
        "http://",
        "\n# no heading",
        "**b**",
        "'|'",
    ] {
        assert!(!text.contains(bad), "{bad:?} in {text}");
    }
    let head = text.lines().find(|l| l.starts_with("| step")).unwrap();
    let bars = |line: &str| line.matches('|').count() - line.matches("\\|").count();
    let row = text.lines().find(|l| l.contains("aborted")).unwrap();
    assert!(
        text.lines()
            .filter(|l| l.starts_with("| "))
            .all(|l| bars(l) >= 5),
        "{text}"
    );
    assert!(bars(head) == 6 && !row.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever comes in whatever order: a record, which reads back and renders, and agrees with the rollout.
    #[test]
    fn every_life_gives_a_record(which in 0usize..4, moves in prop::collection::vec(0usize..40, 0..120)) {
        let mut life = Life::with(plans()[which].clone());
        let submitted = life.rollout.clone();
        let inputs = inputs();
        for i in moves {
            if let Some(input) = inputs[i % inputs.len()].1(&mut life) {
                drop(life.give(input));
            }
        }
        let incident = Incident::new(&submitted, &life.log);
        let (state, rollout) = (life.rollout.state(), &life.rollout);
        prop_assert_eq!(incident.phase, rollout.phase());
        prop_assert_eq!(&incident.cause, &state.cause);
        prop_assert_eq!(incident.decided.is_some(), state.cause.is_some());
        prop_assert!(incident.exposure.requests >= state.exposed);
        let largest = life.log.iter().map(|s| s.state.split.share).max().unwrap_or_default();
        prop_assert_eq!(incident.exposure.largest_share, largest);
        let open: Vec<_> = incident.ran.iter().filter(|r| r.went == Went::Open).map(|r| r.intent)
            .chain(incident.told.iter().filter(|t| t.went == Went::Open).map(|t| t.intent)).collect();
        let mut pending: Vec<_> = rollout.pending().iter().map(|i| i.id).collect();
        let mut open = open;
        pending.sort_unstable();
        open.sort_unstable();
        prop_assert_eq!(open, pending, "what is open is what is pending");
        is_inert(&incident.to_html());
        prop_assert!(incident.to_markdown().contains("## Actions"));
        let json = serde_json::to_string(&incident).unwrap();
        prop_assert_eq!(serde_json::from_str::<Incident>(&json).unwrap(), incident);
    }
}

#[test]
fn a_long_life_is_cut_in_the_middle() {
    let mut life = Life::with(plan());
    life.give(Input::Start).unwrap();
    for i in 0..1_200u64 {
        let until = Timestamp::from_millis(2_000_000_000 + i);
        life.give(Input::Frozen { until }).unwrap();
    }
    life.operator(Verb::Abort).unwrap();
    let incident = Incident::new(&Life::new().rollout, &life.log);
    assert_eq!(incident.timeline.len(), Incident::LONGEST_TIMELINE);
    assert_eq!(incident.omitted + incident.timeline.len(), life.log.len());
    assert!(incident.timeline[0].what.contains("started"));
    assert!(incident.timeline.last().unwrap().what.contains("aborted"));
    assert!(incident.to_markdown().contains("left out"));
}
