//! The scenarios of Argo Rollouts, replayed on the machine.

use crate::host::{Host, version};
use crate::oracle::{cases, check_reasons, id};
use llm_gates::Verdict;
use llm_rollout::presets::argo::{Analysis, BlueGreen, Canary, Promotion, Step, is_within_window};
use llm_rollout::presets::{Gates, instant};
use llm_rollout::{Advance, Effect, Input, MetricDef, Phase, Plan, Verb};
use llm_version_core::VersionId;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

const CASES: &str = include_str!("../oracles/peers/argo_scenarios.json");

/// Cases that say nothing about a library that does not count pods, and why.
const NOT_APPLICABLE: [(&str, &str); 2] = [
    (
        "argo-sc-039",
        "weights that follow the number of ready replicas: here the share stays until the baseline can serve, and then falls to 0 at once (tests of recovery)",
    ),
    (
        "argo-sc-045",
        "a delay of 0 keeps an aborted version up for ever: here a candidate that went back is always retired",
    ),
];

/// What is observed differently in a case that is replayed otherwise, and why.
const DIFFERS: [(&str, usize, &str, &str); 1] = [(
    "argo-sc-025",
    2,
    "preview",
    "the preview service goes on pointing to the failed version: here it is retired",
)];

enum Strategy {
    Canary(Canary),
    BlueGreen(BlueGreen),
}

struct Peer {
    host: Host,
    strategy: Strategy,
    plan: Plan,
    background: bool,
    window: Option<usize>,
    /// Versions that were deployed, oldest first.
    history: Vec<VersionId>,
    wanted: VersionId,
}

fn analysis(name: &str, spec: &Value) -> Option<Analysis> {
    let takes = match spec {
        Value::Null | Value::Bool(false) => return None,
        Value::String(text) => {
            let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().unwrap_or(1)
        }
        _ => 1,
    };
    Some(Analysis {
        metrics: vec![name.to_owned()],
        takes: Duration::from_secs(takes),
    })
}

fn seconds(value: &Value) -> Option<Duration> {
    value.as_u64().map(Duration::from_secs)
}

impl Peer {
    fn new(spec: &Value) -> Self {
        let gates = |names: &[(&str, MetricDef)]| {
            let weight = 1.0 / f64::from(u8::try_from(names.len()).unwrap());
            names.iter().fold(Gates::nothing(), |w, (name, what)| {
                w.gate(name, what.clone(), weight, 0.0)
            })
        };
        let delay = seconds(&spec["abort_scale_down_delay"]).unwrap_or(Duration::from_secs(30));
        let strategy = if spec["strategy"] == "blue_green" {
            let promotion = match seconds(&spec["auto_promotion_seconds"]) {
                Some(wait) => Promotion::After(wait),
                None => Promotion::Manual,
            };
            Strategy::BlueGreen(BlueGreen {
                promotion,
                before: analysis("pre", &spec["pre_analysis"]),
                mirror: 10.0,
                after: analysis("post", &spec["post_analysis"]),
                abort_scale_down_delay: delay,
                ..BlueGreen::default()
            })
        } else {
            let step = |step: &Value| match step.as_object().unwrap().iter().next().unwrap() {
                (name, weight) if name == "set_weight" => Step::SetWeight(weight.as_f64().unwrap()),
                (name, time) if name == "pause" => Step::Pause(seconds(time)),
                (name, run) if name == "analysis" => {
                    Step::Analysis(analysis(run.as_str().unwrap(), &json!("2s")).unwrap())
                }
                other => panic!("an unknown step {other:?}"),
            };
            let steps = spec["steps"].as_array();
            let mut canary = Canary::new(steps.into_iter().flatten().map(step));
            canary.abort_scale_down_delay = delay;
            if let Some(deadline) = seconds(&spec["progress_deadline"]) {
                canary.progress_deadline = deadline;
            }
            Strategy::Canary(canary)
        };
        let plan = match &strategy {
            Strategy::Canary(canary) => canary.plan(gates(&[("A", MetricDef::Fault {})])),
            Strategy::BlueGreen(how) => how.plan(gates(&[
                ("pre", MetricDef::Pair("same".into())),
                ("post", MetricDef::Fault {}),
            ])),
        };
        Self {
            host: Host::new(),
            strategy,
            plan: plan.unwrap(),
            background: !spec["background"].is_null(),
            window: spec["rollback_window"]
                .as_u64()
                .map(|w| usize::try_from(w).unwrap()),
            history: vec![version(1)],
            wanted: version(1),
        }
    }

    fn deploy(&mut self, to: VersionId) {
        let going = self
            .host
            .rollout
            .as_ref()
            .map(|r| (r.phase(), r.baseline().clone()));
        self.wanted = to.clone();
        match going {
            // The old version is still warm: back by one split.
            Some((Phase::Baking, before)) if before == to => {
                self.host.operator(Verb::Abort).unwrap();
                self.host.settle();
                return;
            }
            Some((Phase::Baking, _)) => self.host.advance(31),
            Some((phase, _)) if !phase.is_end() => {
                let by = "next".parse().unwrap();
                self.host.operator(Verb::Supersede { by }).unwrap();
                self.host.settle();
            }
            _ => {}
        }
        let stable = self.host.router.split.baseline.clone();
        let quick = self
            .window
            .is_some_and(|w| is_within_window(&self.history, &stable, &to, w));
        let plan = if quick {
            instant(Duration::from_secs(30)).unwrap()
        } else {
            self.plan.clone()
        };
        if !self.history.contains(&to) {
            self.history.push(to.clone());
        }
        self.host.says = Verdict::Pass;
        self.host.analyses += usize::from(self.background);
        self.host.submit(to, plan);
        self.host.settle();
    }

    fn act(&mut self, what: &str) {
        let words: Vec<_> = what.split(' ').collect();
        match words.as_slice() {
            ["initial", "deploy", ..] | ["at", ..] => {}
            ["deploy", to, ..] => {
                let n = to.trim_start_matches('v').parse().unwrap();
                self.deploy(version(n));
            }
            ["retry"] => {
                let again = self.wanted.clone();
                self.deploy(again);
            }
            ["abort"] => {
                self.host.operator(Verb::Abort).unwrap();
                self.host.settle();
            }
            ["promote"] => {
                let phase = self.host.phase().unwrap();
                let stage = phase.stage().unwrap();
                let manual = self.host.plan().stages()[stage].advance == Advance::Manual;
                let verb = if manual { Verb::Approve } else { Verb::Skip };
                self.host.operator(verb).unwrap();
            }
            ["promote_full"] => {
                let done = self.host.operator(Verb::PromoteNow);
                assert_eq!(done.is_err(), self.host.phase().unwrap().is_end());
                self.host.settle();
            }
            ["advance", "to", _] => self.host.advance(7),
            ["advance", time] => {
                self.host
                    .advance(time.trim_end_matches('s').parse().unwrap());
            }
            ["reconcile"] => {}
            ["analysis", "Failed"] | ["post", "fails"] => {
                self.host.says = Verdict::Fail;
                self.host.advance(1);
            }
            ["analysis", "Inconclusive"] => {
                self.host.says = Verdict::Inconclusive;
                let limit = self.host.plan().stages()[0].longest().as_secs();
                self.host.advance(limit + 1);
            }
            ["post", "ok"] => {}
            _ => panic!("an unknown action {what:?}"),
        }
    }

    fn rests(&self) -> bool {
        self.host
            .phase()
            .is_none_or(|p| p.is_end() || p == Phase::Baking)
    }

    fn phase(&self) -> &'static str {
        let stable = &self.host.router.split.baseline;
        match self.host.phase() {
            _ if self.rests() && *stable == self.wanted => "Healthy",
            Some(Phase::RollingBack { .. } | Phase::RolledBack | Phase::Blocked) => "Degraded",
            Some(Phase::Held { .. }) => "Paused",
            Some(Phase::Soaking { stage }) => match &self.strategy {
                Strategy::Canary(canary)
                    if matches!(
                        canary.steps.get(canary.step_of(stage)),
                        Some(Step::Pause(_))
                    ) =>
                {
                    "Paused"
                }
                Strategy::BlueGreen(_) if stage == 0 => "Paused",
                _ => "Progressing",
            },
            _ => "Progressing",
        }
    }

    fn step_index(&self) -> usize {
        let Strategy::Canary(canary) = &self.strategy else {
            panic!("only a canary has steps");
        };
        match self.host.phase().unwrap() {
            // The weight is being set.
            Phase::Shifting { stage } => {
                let end = canary.step_of(stage);
                match canary.steps.get(end.wrapping_sub(1)) {
                    Some(Step::SetWeight(_)) => end - 1,
                    _ => end,
                }
            }
            Phase::Soaking { stage } | Phase::Held { stage } => canary.step_of(stage),
            Phase::Promoting | Phase::Baking | Phase::Promoted => canary.steps.len(),
            _ => 0,
        }
    }

    fn name(this: &VersionId) -> Value {
        let known = (1..9).find(|n| version(*n) == *this).unwrap();
        json!(format!("v{known}"))
    }

    fn is_loaded(&self, name: &str) -> bool {
        let n = name.trim_start_matches('v').parse().unwrap();
        self.host.loaded.contains(&version(n))
    }

    /// Whether this is what is seen.
    fn sees(&self, key: &str, expected: &Value) -> bool {
        let host = &self.host;
        let seen = match key {
            "phase" | "outcome" => json!(self.phase()),
            "weight" => json!(host.weight()),
            "step_index" | "step_index_patch" => json!(self.step_index()),
            "stable" => Self::name(&host.router.split.baseline),
            "active" => Self::name(&host.active()),
            "analysis_runs" => json!(host.analyses),
            "aborted" => json!(host.cause().is_some()),
            "never" => json!(self.phase() != expected.as_str().unwrap()),
            "preview" => {
                let candidate = host.rollout.as_ref().unwrap().candidate();
                let alone = host.router.split.share.basis_points() == 0;
                json!((alone && host.loaded.contains(candidate)).then(|| Self::name(candidate)))
            }
            "pre_analysis" => {
                let runs = host.phase() == Some(Phase::Soaking { stage: 0 });
                json!(if runs { "Running" } else { "Successful" })
            }
            // A background run lasts as long as the rollout, and fails with it.
            "background" => json!(match host.phase() {
                Some(Phase::Baking | Phase::Promoted) => "Successful",
                Some(Phase::RollingBack { .. } | Phase::RolledBack) => "Failed",
                _ => "Running",
            }),
            // Only whether a version runs, not how often.
            "replicas" => {
                let mut all = expected.as_object().unwrap().iter();
                return all.all(|(name, count)| self.is_loaded(name) == (count.as_u64() > Some(0)));
            }
            "v1_replicas" | "v2_replicas" => {
                return self.is_loaded(&key[..2]) == (expected.as_u64() > Some(0));
            }
            _ => panic!("an unknown observation {key:?}"),
        };
        match (seen.as_f64(), expected.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() < 1e-9,
            _ => key == "never" && seen == true || seen == *expected,
        }
    }
}

/// Replays a timeline. As in the peer's own tests, what is expected after an action may take its time.
fn replay(case: &Value, differed: &mut BTreeSet<usize>) {
    let spec = &case["given"]["spec"];
    let mut peer = Peer::new(spec);
    for (at, entry) in case["timeline"].as_array().unwrap().iter().enumerate() {
        let what = entry["do"].as_str().unwrap();
        if what == "reconcile" {
            // A pause that has lasted a little too long.
            peer.deploy(version(2));
            peer.host
                .advance(spec["pause_started_ago"].as_u64().unwrap());
        }
        peer.act(what);
        let never = entry["expect"]["never"].as_str();
        let skipped = |key: &str| {
            let this = |d: &&(&str, usize, &str, &str)| d.0 == id(case) && d.1 == at && d.2 == key;
            DIFFERS.iter().position(|d| this(&d))
        };
        let mut waited = 0;
        loop {
            let wrong: Vec<_> = entry["expect"]
                .as_object()
                .unwrap()
                .iter()
                .filter(|(key, expected)| {
                    if let Some(d) = skipped(key) {
                        differed.insert(d);
                        return false;
                    }
                    !peer.sees(key, expected)
                })
                .collect();
            if wrong.is_empty() {
                break;
            }
            let exact = what.starts_with("advance")
                || what.starts_with("abort")
                || what.contains("fail")
                || what.starts_with("analysis");
            assert!(
                !exact && waited < 120,
                "{} {:?}: after {what:?} and {waited} s, {wrong:?} is not so: {:?}, {}",
                id(case),
                case["title"],
                peer.host.phase(),
                peer.phase(),
            );
            waited += 1;
            peer.host.advance(1);
            assert_ne!(Some(peer.phase()), never, "{}", id(case));
        }
    }
}

fn age(value: &Value) -> Option<usize> {
    value.as_u64().map(|n| usize::try_from(n).unwrap())
}

/// Whether a return is inside the window.
fn window(case: &Value) {
    let spec = &case["given"]["spec"];
    let expected = case["timeline"][0]["expect"]["fast_rollback"]
        .as_bool()
        .unwrap();
    let window = age(&spec["window_revisions"]).unwrap();
    let quick = if let Some(history) = spec["history"].as_array() {
        is_within_window(history, history.last().unwrap(), &spec["target"], window)
    } else {
        let stable = age(&spec["stable_age_rank"]).unwrap();
        // A target that was never deployed has no rank.
        let target = age(&spec["target_age_rank"]).unwrap_or(usize::MAX);
        let history: Vec<_> = (0..10).collect();
        is_within_window(&history, &stable, &target, window)
    };
    assert_eq!(quick, expected, "{}", id(case));
}

/// Whether a wait has run into the deadline for progress.
fn deadline(case: &Value) {
    let spec = &case["given"]["spec"];
    let expected = case["timeline"][0]["expect"]["timed_out"]
        .as_bool()
        .unwrap();
    let ago = spec["last_progress_ago"].as_u64().unwrap_or(0);
    let mut canary = Canary::new([Step::SetWeight(10.0), Step::Pause(None)]);
    canary.progress_deadline = seconds(&spec["deadline"]).unwrap_or(Duration::MAX);
    let mut host = Host::new();
    let plan = canary.plan(Gates::nothing()).unwrap();
    host.submit(version(2), plan);
    match spec["last_progress_reason"].as_str() {
        Some("paused") => host.settle(),
        Some("progress") => drop(host.serve()),
        _ => {}
    }
    host.now = host.now.after(Duration::from_secs(ago));
    host.give(Input::Tick).unwrap();
    assert_eq!(host.cause().is_some(), expected, "{}", id(case));
}

/// How long an aborted version may stay up.
fn abort_delay(case: &Value) {
    let mut spec = case["given"]["spec"].clone();
    spec["steps"] = json!([{ "set_weight": 50 }, { "pause": null }]);
    let mut peer = Peer::new(&spec);
    peer.deploy(version(2));
    if let Strategy::BlueGreen(_) = peer.strategy {
        peer.act("promote");
        peer.host.advance(1);
    }
    peer.host.operator(Verb::Abort).unwrap();
    peer.host.found();
    let expected = &case["timeline"][0]["expect"]["new_version_scaled_down_after_s"];
    let pending = peer.host.rollout.as_ref().unwrap().pending();
    let drain = pending.iter().find_map(|i| match &i.effect {
        Effect::Drain { deadline, .. } => Some(*deadline),
        _ => None,
    });
    assert_eq!(drain, seconds(expected), "{}", id(case));
    assert!(peer.is_loaded("v2"), "until the delay is over");
    peer.host.settle();
    assert!(!peer.is_loaded("v2"));
}

#[test]
fn every_scenario_goes_as_it_does_there() {
    let cases = cases(CASES);
    check_reasons(&cases, NOT_APPLICABLE.iter().map(|r| r.0));
    let mut differed = BTreeSet::new();
    let mut replayed = 0;
    for case in &cases {
        if let Some((name, why)) = NOT_APPLICABLE.iter().find(|r| r.0 == id(case)) {
            println!("not applicable: {name}: {why}");
            continue;
        }
        let spec = &case["given"]["spec"];
        let expect = &case["timeline"][0]["expect"];
        if !expect["fast_rollback"].is_null() {
            window(case);
        } else if !expect["timed_out"].is_null() {
            deadline(case);
        } else if !expect["new_version_scaled_down_after_s"].is_null() {
            abort_delay(case);
        } else if !spec["analysis_running_at_step"].is_null() {
            let mut case = case.clone();
            case["given"]["spec"] = json!({ "steps": [{ "set_weight": 10 }, { "analysis": "A" }, { "set_weight": 20 }, { "pause": null }] });
            let timeline = case["timeline"].as_array_mut().unwrap();
            timeline.insert(
                0,
                json!({ "do": "deploy v2", "expect": { "step_index": 1 } }),
            );
            replay(&case, &mut differed);
        } else if spec["stable_equals_current"] == true {
            let mut peer = Peer::new(&json!({ "steps": [] }));
            peer.deploy(version(2));
            peer.host.advance(40);
            let before = peer.host.rollout.clone();
            peer.act("promote_full");
            assert_eq!(peer.host.rollout, before, "{}: it is a no-op", id(case));
        } else {
            replay(case, &mut differed);
        }
        replayed += 1;
    }
    assert_eq!(differed.len(), DIFFERS.len(), "every difference is seen");
    assert_eq!(replayed + NOT_APPLICABLE.len(), cases.len());
    println!("{replayed} scenarios replayed");
}

#[test]
fn stages_end_with_the_steps_that_wait() {
    let minute = Duration::from_secs(60);
    let analysis = Analysis {
        metrics: vec!["faults".to_owned()],
        takes: 2 * minute,
    };
    let canary = Canary::new([
        Step::SetWeight(10.0),
        Step::Pause(None),
        Step::SetWeight(20.0),
        Step::SetWeight(30.0),
        Step::Analysis(analysis.clone()),
        Step::SetWeight(40.0),
    ]);
    let ends: Vec<_> = (0..5).map(|stage| canary.step_of(stage)).collect();
    assert_eq!(ends, [1, 2, 4, 5, 6]);
    let gates = || Gates::usual(minute);
    let plan = canary.plan(gates()).unwrap();
    let advance: Vec<_> = plan.stages().iter().map(|s| s.advance).collect();
    let auto = Advance::Auto;
    assert_eq!(advance, [Advance::Manual, auto, auto, auto]);
    let needs: Vec<_> = plan.stages().iter().map(|s| s.needs.clone()).collect();
    let (none, some) = (Some(Vec::new()), Some(analysis.metrics.clone()));
    assert_eq!(needs, [none.clone(), none.clone(), some, none]);
    let year = Duration::from_secs(365 * 24 * 3600);
    assert_eq!(plan.spec().outcomes.held, year);

    let pairs = gates().gate("answers", MetricDef::Pair("judge".to_owned()), 0.1, 0.05);
    let mut pairs = pairs;
    pairs.gates[0].weight = 0.5;
    for (wait, takes) in [(1, 2), (3, 3)] {
        let switch = BlueGreen {
            promotion: Promotion::After(wait * minute),
            before: Some(Analysis {
                metrics: vec!["answers".to_owned()],
                ..analysis.clone()
            }),
            mirror: 10.0,
            ..BlueGreen::default()
        };
        let plan = switch.plan(pairs.clone()).unwrap();
        assert_eq!(plan.stages()[0].dwell, takes * minute);
    }
}

#[test]
fn only_an_older_version_is_within_the_window() {
    let within = |stable, target| is_within_window(&[1, 2, 3], &stable, &target, 9);
    assert!(within(3, 1) && within(2, 1));
    assert!(!within(2, 2) && !within(1, 3) && !within(2, 4));
}
