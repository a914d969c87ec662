//! The progressions of Flagger, replayed on the machine tick by tick.

use crate::host::{Host, version};
use crate::oracle::{cases, check_reasons, id};
use llm_gates::Verdict;
use llm_rollout::presets::Gates;
use llm_rollout::presets::flagger::{Canary, Weights};
use llm_rollout::{Input, MetricDef, Phase, Verb};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

const CASES: &str = include_str!("../oracles/peers/flagger_progression.json");

/// Cases that do not apply, and why.
const NOT_APPLICABLE: [(&str, &str); 1] = [(
    "flg-013",
    "there is no second copy that could fail while it is promoted: the candidate itself becomes the baseline",
)];

/// What is seen at a tick instead, and why.
const DIFFERS: [(&str, u64, &str, &str, &str); 5] = [
    ("flg-001", 4, "canary_weight", "50.0", OVERSHOOT),
    ("flg-001", 5, "canary_weight", "50.0", OVERSHOOT),
    ("flg-005", 4, "phase", "\"Finalising\"", TWICE),
    ("flg-005", 4, "canary_weight", "0.0", TWICE),
    ("flg-005", 5, "phase", "\"Succeeded\"", TWICE),
];

const OVERSHOOT: &str = "no weight above max_weight is served";
const TWICE: &str = "promotion moves no traffic back to a primary that was copied from the canary";

const MINUTE: Duration = Duration::from_secs(60);

struct Peer {
    host: Host,
    canary: Canary,
    tick: u64,
    failed: u64,
    /// Whether a tick's checks pass, by the number of checks so far; the last goes on.
    checks: Vec<bool>,
    checked: usize,
}

impl Peer {
    fn new(spec: &Value) -> Self {
        let number = |name: &str| spec[name].as_f64();
        let weights = if let Some(count) = spec["iterations"].as_u64() {
            Weights::Iterations(u32::try_from(count).unwrap())
        } else if let Some(list) = spec["step_weights"].as_array() {
            Weights::List(list.iter().map(|w| w.as_f64().unwrap()).collect())
        } else {
            Weights::Step {
                step_weight: number("step_weight").unwrap_or(10.0),
                max_weight: number("max_weight").unwrap_or(
                    if number("step_weight") == Some(100.0) {
                        100.0
                    } else {
                        50.0
                    },
                ),
            }
        };
        let checks = match &spec["checks"] {
            Value::String(text) if text.starts_with("fail") => vec![false],
            Value::String(text) if text.starts_with("pass then") => vec![true, false],
            Value::Array(ticks) => vec![ticks.last() != Some(&json!("fail"))],
            _ => vec![true],
        };
        Self {
            host: Host::new(),
            canary: Canary {
                interval: spec["interval"]
                    .as_u64()
                    .map_or(MINUTE, Duration::from_secs),
                weights,
                threshold: u32::try_from(spec["threshold"].as_u64().unwrap_or(10)).unwrap(),
                confirm_promotion: spec["gate"] == "closed",
            },
            tick: 0,
            failed: spec["failed_checks"].as_u64().unwrap_or(0),
            checks,
            checked: 0,
        }
    }

    fn tick(&mut self) {
        self.tick += 1;
        self.host.now = self.host.now.after(self.canary.interval);
        let Some(phase) = self.host.phase() else {
            let gates = Gates::nothing().gate("checks", MetricDef::Fault {}, 1.0, 0.0);
            let plan = self.canary.plan(gates).unwrap();
            self.host.slow_promotion = true;
            return self.host.submit(version(2), plan);
        };
        match phase {
            Phase::Warming => self.host.settle(),
            Phase::Soaking { .. } | Phase::Held { .. } => self.check(),
            Phase::Promoting => {
                self.host.obey();
                self.host.found();
            }
            Phase::Baking => {
                self.host.serve();
                self.host.give(Input::Tick).unwrap();
            }
            _ => {}
        }
        if let Some(Phase::Shifting { .. }) = self.host.phase() {
            self.host.found();
        }
    }

    /// As there: first whether too many have failed, then this tick's checks.
    fn check(&mut self) {
        self.host.give(Input::Tick).unwrap();
        let goes_on = |host: &Host| host.phase().unwrap().stage().is_some();
        if goes_on(&self.host) && self.failed >= u64::from(self.canary.threshold.max(1)) {
            self.host.look(Verdict::Fail);
        }
        if !goes_on(&self.host) {
            return;
        }
        let passes = self.checks[self.checked.min(self.checks.len() - 1)];
        self.checked += 1;
        if !passes {
            self.failed += 1;
        }
        self.host.look(if passes {
            Verdict::Pass
        } else {
            Verdict::Inconclusive
        });
    }

    fn phase(&self) -> &'static str {
        let holds = || {
            self.host
                .rollout
                .as_ref()
                .unwrap()
                .state()
                .holds
                .contains_key("approval")
        };
        match self.host.phase() {
            None => "Initialized",
            Some(Phase::Held { .. }) if holds() => "WaitingPromotion",
            Some(Phase::Promoting) => "Promoting",
            Some(Phase::Baking) => "Finalising",
            Some(Phase::Promoted) => "Succeeded",
            Some(Phase::RollingBack { .. } | Phase::RolledBack | Phase::Blocked) => "Failed",
            Some(_) => "Progressing",
        }
    }

    fn sees(&self, key: &str) -> Value {
        match key {
            "phase" => json!(self.phase()),
            "canary_weight" | "routed_to_canary" => json!(self.host.weight()),
            "failed_checks" => json!(self.failed),
            _ => panic!("an unknown observation {key:?}"),
        }
    }

    /// Ticks until this weight is served; they do not count.
    fn until(&mut self, weight: f64) {
        for _ in 0..100 {
            if (self.host.weight() - weight).abs() < 1e-9
                && self.host.phase().is_some_and(|p| p.stage().is_some())
            {
                self.tick = 0;
                return;
            }
            self.tick();
        }
        panic!("{weight} % is never served");
    }
}

fn expect(case: &Value, peer: &Peer, expected: &Value, differed: &mut BTreeSet<usize>) {
    for (key, value) in expected.as_object().unwrap() {
        if key == "scope" {
            continue;
        }
        let this =
            |d: &(&str, u64, &str, &str, &str)| d.0 == id(case) && d.1 == peer.tick && d.2 == key;
        let value = match DIFFERS.iter().position(this) {
            Some(d) => {
                differed.insert(d);
                serde_json::from_str(DIFFERS[d].3).unwrap()
            }
            None => value.clone(),
        };
        let seen = peer.sees(key);
        let same = match (seen.as_f64(), value.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() < 1e-9,
            _ => seen == value,
        };
        assert!(
            same,
            "{}, tick {}: {key} is {seen}, not {value}",
            id(case),
            peer.tick
        );
    }
}

fn replay(case: &Value, differed: &mut BTreeSet<usize>) {
    let spec = &case["given"]["spec"];
    let mut peer = Peer::new(spec);
    if let Some(weight) = spec["start_weight"].as_f64() {
        peer.until(weight);
    } else if spec["phase"] == "Progressing" {
        peer.until(10.0);
    }
    for entry in case["timeline"].as_array().unwrap() {
        match (&entry["tick"], entry["do"].as_str(), entry["at"].as_str()) {
            (Value::Number(tick), ..) => {
                while peer.tick < tick.as_u64().unwrap() {
                    peer.tick();
                }
            }
            (Value::String(_), ..) => peer.tick(),
            // The first iteration is the tick on which traffic moves.
            (_, Some("iterations=10"), _) => {
                while peer.tick < 11 {
                    peer.tick();
                }
            }
            (_, _, Some("max weight")) => {
                while peer.phase() != "WaitingPromotion" {
                    peer.tick();
                    assert!(peer.tick < 10);
                }
            }
            (_, Some("2 failing ticks + 1"), _) => {
                for _ in 0..2 {
                    peer.tick();
                    assert_eq!(peer.phase(), "WaitingPromotion");
                }
                peer.tick();
            }
            other => panic!("an unknown entry {other:?}"),
        }
        if entry["expect"].is_object() {
            expect(case, &peer, &entry["expect"], differed);
        }
    }
}

/// Somebody says to go back, in every phase before promotion.
fn rollback_hook(case: &Value, differed: &mut BTreeSet<usize>) {
    for ticks in [1, 2, 3] {
        let spec = json!({ "step_weight": 50, "max_weight": 50, "gate": "closed" });
        let mut peer = Peer::new(&spec);
        for _ in 0..ticks {
            peer.tick();
        }
        peer.host.operator(Verb::Abort).unwrap();
        peer.tick = 1;
        expect(case, &peer, &case["timeline"][0]["expect"], differed);
    }
}

fn suspend(case: &Value, differed: &mut BTreeSet<usize>) {
    let mut peer = Peer::new(&json!({}));
    peer.until(
        case["given"]["spec"]["suspend_at"]["canary_weight"]
            .as_f64()
            .unwrap(),
    );
    let name = "suspended".to_owned();
    peer.host.operator(Verb::Hold { name }).unwrap();
    for _ in 0..10 {
        peer.tick();
    }
    expect(case, &peer, &case["timeline"][0]["expect"], differed);
}

#[test]
fn every_progression_goes_as_it_does_there() {
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
        let least = &case["timeline"][0]["expect"]["min_analysis_seconds"];
        if let Some(seconds) = least.as_u64() {
            let plan = Peer::new(spec).canary.plan(Gates::nothing()).unwrap();
            let dwell: Duration = plan.stages().iter().map(|s| s.dwell).sum();
            assert_eq!(dwell, Duration::from_secs(seconds), "{}", id(case));
        } else if !spec["rollback_hook"].is_null() {
            rollback_hook(case, &mut differed);
        } else if !spec["suspend_at"].is_null() {
            suspend(case, &mut differed);
        } else {
            replay(case, &mut differed);
        }
        replayed += 1;
    }
    assert_eq!(differed.len(), DIFFERS.len(), "every difference is seen");
    assert_eq!(replayed + NOT_APPLICABLE.len(), cases.len());
    println!("{replayed} progressions replayed");
}
