//! The machine as a whole: lives of a rollout, and what holds in every life.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use llm_gates::{Judgement, TableReport, Verdict};
use llm_rollout::{
    Cause, Command, Direction, Effect, Epoch, Fence, Heartbeat, Input, Intent, IntentId, Look,
    Observed, Outcome, Phase, Plan, Position, Recovery, Rejected, Rollout, RolloutId, RouterClock,
    RouterId, RouterState, Seq, Share, Split, Step, Timestamp, Verb,
};
use llm_version_core::VersionId;
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

const FENCE: Fence = Fence::new(1);

fn version(n: u8) -> VersionId {
    format!("chat/v{n}.0.0-{}", format!("{n:02x}").repeat(32))
        .parse()
        .unwrap()
}

fn plan() -> Plan {
    Plan::from_toml(
        r#"
        alpha = 0.05
        bake = "1h"
        [metrics]
        faults = { fault = {} }
        slow = { first_token_over = "800ms" }
        [[gates]]
        metric = "faults"
        weight = 0.5
        [[gates]]
        metric = "slow"
        weight = 0.5
        action = "hold"
        [[stages]]
        serve = 5.0
        dwell = "1h"
        limit = "4h"
        [[stages]]
        serve = 50.0
        dwell = "1h"
        advance = "manual"
        [[stages]]
        serve = 100.0
        dwell = "1h"
        [lease]
        longest_lapse = "1h"
    "#,
    )
    .unwrap()
}

/// A rollout, its log, and one router that does what it is told.
#[derive(Debug, Clone)]
struct Life {
    rollout: Rollout,
    log: Vec<Step>,
    now: Timestamp,
    seq: Seq,
    router: RouterState,
}

impl Life {
    fn new() -> Self {
        let now = Timestamp::from_millis(1_000_000_000);
        let id = RolloutId::new("r1").unwrap();
        let rollout = Rollout::new(id, version(1), version(2), plan(), 7, Epoch::new(3), now);
        let router = RouterState {
            fence: FENCE,
            at: Position::default(),
            split: Split::steady(None, version(1), Epoch::new(3)),
            lapsed: false,
            mark: None,
            latch: None,
            clock: RouterClock::default(),
        };
        Self {
            rollout,
            log: Vec::new(),
            now,
            seq: Seq::new(10),
            router,
        }
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now.after(time);
    }

    /// Decide, log, apply, and let the router obey.
    fn give(&mut self, input: Input) -> Result<bool, Rejected> {
        let Some(step) = self.rollout.decide(self.seq, self.now, input)? else {
            return Ok(false);
        };
        self.rollout.apply(&step).unwrap();
        self.log.push(step);
        self.seq = self.seq.next();
        if let Some(order) = self.rollout.order(FENCE, self.router.clock)
            && order.at > self.router.at
        {
            self.router = RouterState {
                at: order.at,
                split: order.split,
                lapsed: false,
                ..self.router.clone()
            };
            match order.direction {
                Direction::Back => self.router.mark = Some(self.rollout.id().clone()),
                Direction::End => (self.router.mark, self.router.latch) = (None, None),
                _ => {}
            }
        }
        Ok(true)
    }

    fn routers(&self) -> Observed {
        Observed::new([(RouterId::new("a").unwrap(), Some(self.router.clone()))])
    }

    fn found(&mut self) -> bool {
        let routers = self.routers();
        self.give(Input::Found {
            fence: FENCE,
            routers,
        })
        .unwrap()
    }

    /// Every pending intent but the split is carried out.
    fn serve(&mut self) {
        let intents = self.rollout.pending().to_vec();
        for intent in intents
            .iter()
            .filter(|i| !matches!(i.effect, Effect::Route { .. }))
        {
            self.give(Input::Done {
                intent: intent.id,
                outcome: Outcome::Ok,
            })
            .unwrap();
        }
    }

    fn look(&self, verdict: Verdict, hours: u64) -> Look {
        let to = self.now.as_millis();
        // As an old log would hold it: what the gates say is data to the machine.
        let judgement: Judgement = serde_json::from_value(json!({
            "verdict": verdict,
            "action": null,
            "epoch": self.rollout.state().split.epoch.get(),
            "from": to - hours * 3_600_000,
            "to": to,
            "samples": 1000,
            "log_evidence": if verdict == Verdict::Fail { 4.0 } else { -1.0 },
            "bound": 20f64.ln(),
            "paused": false,
            "gates": [gate("faults", verdict), gate("slow", Verdict::Pass)],
        }))
        .unwrap();
        let heartbeat = Some(Heartbeat {
            exposed: 42,
            waiting: Duration::ZERO,
        });
        Look {
            judgement,
            heartbeat,
            fence: FENCE,
            routers: self.routers(),
        }
    }

    fn judged(&mut self, verdict: Verdict) -> Result<bool, Rejected> {
        self.wait(Duration::from_secs(300));
        let look = self.look(verdict, 1);
        self.give(Input::Judged(Box::new(look)))
    }

    fn operator(&mut self, verb: Verb) -> Result<bool, Rejected> {
        self.give(Input::Operator(Command {
            verb,
            by: "ana".into(),
            why: "because".into(),
        }))
    }

    /// Soaking in the first stage.
    fn soaking() -> Self {
        let mut life = Self::new();
        life.give(Input::Start).unwrap();
        life.serve();
        assert_eq!(life.rollout.phase(), Phase::Shifting { stage: 0 });
        assert!(life.found());
        assert_eq!(life.rollout.phase(), Phase::Soaking { stage: 0 });
        life
    }
}

fn gate(metric: &str, verdict: Verdict) -> serde_json::Value {
    json!({
        "metric": metric,
        "weight": 0.5,
        "log_e": if verdict == Verdict::Fail { 4.5 } else { -1.0 },
        "candidate": { "n": 1000, "k": 10 },
        "baseline": { "n": 9000, "k": 90 },
        "ratio": 1.0,
        "verdict": verdict,
    })
}

#[test]
fn a_good_candidate_is_promoted_stage_by_stage() {
    let mut life = Life::soaking();
    assert_eq!(life.router.split.share, Share::from_percent(5.0).unwrap());
    life.judged(Verdict::Pass).unwrap();
    assert_eq!(life.rollout.phase(), Phase::Shifting { stage: 1 });
    life.found();
    life.judged(Verdict::Pass).unwrap();
    assert_eq!(
        life.rollout.phase(),
        Phase::Held { stage: 1 },
        "a manual stage waits for a person"
    );
    life.operator(Verb::Approve).unwrap();
    life.judged(Verdict::Pass).unwrap();
    life.found();
    assert_eq!(life.router.split.share, Share::ALL);
    assert_eq!(
        life.router.split.baseline,
        version(1),
        "the baseline stays until promotion"
    );
    life.judged(Verdict::Pass).unwrap();
    assert_eq!(life.rollout.phase(), Phase::Promoting);
    assert!(
        !life
            .rollout
            .pending()
            .iter()
            .any(|i| matches!(i.effect, Effect::Retire(_))),
        "nothing is retired before confirmation"
    );
    life.found();
    assert_eq!(
        (life.rollout.phase(), &life.router.split.baseline),
        (Phase::Baking, &version(2))
    );
    life.give(Input::Tick).unwrap();
    assert_eq!(life.rollout.phase(), Phase::Baking);
    life.wait(Duration::from_secs(3600));
    life.give(Input::Tick).unwrap();
    assert_eq!(life.rollout.phase(), Phase::Promoted);
    assert!(
        life.rollout
            .pending()
            .iter()
            .any(|i| i.effect == Effect::Retire(version(1)))
    );
    assert!(!life.rollout.is_settled());
    life.found();
    assert!(life.rollout.is_settled());
    assert_eq!(
        life.router.split,
        Split {
            epoch: life.router.split.epoch,
            ..Split::steady(
                Some(life.rollout.id().clone()),
                version(2),
                Epoch::default()
            )
        }
    );
}

#[test]
fn harm_goes_back_by_the_recovery_procedure() {
    let mut life = Life::soaking();
    life.judged(Verdict::Fail).unwrap();
    assert_eq!(
        life.rollout.phase(),
        Phase::RollingBack {
            part: Recovery::Redirecting
        }
    );
    assert_eq!(
        (life.router.split.share, life.router.split.candidate.clone()),
        (Share::NONE, None)
    );
    assert!(
        matches!(&life.rollout.state().cause, Some(Cause::Gate { metric, .. }) if metric == "faults")
    );
    assert!(
        !life
            .rollout
            .pending()
            .iter()
            .any(|i| matches!(i.effect, Effect::Drain { .. } | Effect::Retire(_))),
        "the candidate runs until going back is confirmed"
    );
    life.found();
    assert_eq!(
        life.rollout.phase(),
        Phase::RollingBack {
            part: Recovery::Draining
        }
    );
    life.serve();
    assert_eq!(
        life.rollout.phase(),
        Phase::RollingBack {
            part: Recovery::Retiring
        }
    );
    life.serve();
    assert_eq!(life.rollout.phase(), Phase::RolledBack);
    life.found();
    assert!(life.rollout.is_settled());
    assert_eq!(life.rollout.state().exposed, 42);
    assert!(matches!(
        life.judged(Verdict::Pass),
        Err(Rejected::Over(Phase::RolledBack))
    ));
    assert!(matches!(
        life.operator(Verb::Approve),
        Err(Rejected::Over(_))
    ));
    assert!(matches!(life.give(Input::Start), Err(Rejected::Over(_))));
}

#[test]
fn failed_gates_block_before_anybody_is_exposed() {
    let mut spec = plan().spec().clone();
    spec.pre_flight = Some(llm_rollout::plan::PreFlightSpec {
        gates: llm_gates::GateTable::reference(),
        deadline: Duration::from_secs(60),
    });
    let mut life = Life::new();
    life.rollout = Rollout::new(
        life.rollout.id().clone(),
        version(1),
        version(2),
        spec.try_into().unwrap(),
        7,
        Epoch::default(),
        life.now,
    );
    life.give(Input::Start).unwrap();
    assert_eq!(life.rollout.phase(), Phase::PreFlight);
    // Nothing was measured: no gate can pass.
    let report: TableReport = llm_gates::GateTable::reference().evaluate(&BTreeMap::default());
    life.give(Input::PreFlight(report)).unwrap();
    assert_eq!(life.rollout.phase(), Phase::Blocked);
    assert!(
        matches!(&life.rollout.state().cause, Some(Cause::PreFlight { gates }) if !gates.is_empty())
    );
    assert!(life.log.iter().all(|s| s.state.split.share == Share::NONE));
    life.found();
    assert!(life.rollout.is_settled());
}

#[test]
fn a_silent_candidate_goes_back() {
    let mut life = Life::soaking();
    let beat = |s| {
        Input::Heartbeat(Heartbeat {
            exposed: 3,
            waiting: Duration::from_secs(s),
        })
    };
    assert!(!life.give(beat(59)).unwrap());
    assert!(life.give(beat(60)).unwrap());
    assert!(matches!(
        life.rollout.state().cause,
        Some(Cause::Silent { .. })
    ));
}

#[test]
fn without_a_verdict_it_does_not_wait_for_ever() {
    let mut life = Life::soaking();
    life.wait(Duration::from_secs(599));
    assert!(
        !life
            .give(Input::SourceFailed {
                reason: "down".into()
            })
            .unwrap(),
        "an error is neither good nor bad data"
    );
    assert_eq!(
        life.rollout.next_wakeup(),
        Some(life.now.after(Duration::from_secs(1)))
    );
    life.wait(Duration::from_secs(1));
    assert!(life.give(Input::Tick).unwrap());
    assert_eq!(life.rollout.state().cause, Some(Cause::NoVerdict));
}

#[test]
fn undecided_to_the_limit_goes_back() {
    let mut life = Life::soaking();
    while life.rollout.phase() == (Phase::Soaking { stage: 0 }) {
        life.judged(Verdict::Inconclusive).unwrap();
        life.give(Input::Tick).unwrap();
    }
    assert_eq!(
        life.rollout.state().cause,
        Some(Cause::Undecided { stage: 0 })
    );
    assert_eq!(
        life.now.since(Timestamp::from_millis(1_000_000_000)),
        Duration::from_secs(4 * 3600)
    );
}

#[test]
fn a_lapse_resumes_in_a_new_epoch_and_the_third_goes_back() {
    let mut life = Life::soaking();
    for lapse in 1..=3u32 {
        let epoch = life.rollout.state().split.epoch;
        life.wait(Duration::from_secs(120));
        life.router.lapsed = true;
        assert!(life.found());
        if lapse < 3 {
            assert_eq!(life.rollout.phase(), Phase::Shifting { stage: 0 });
            assert!(life.rollout.state().split.epoch > epoch);
            assert!(life.found());
        }
    }
    assert_eq!(life.rollout.state().cause, Some(Cause::Lapsed { times: 3 }));

    let mut long = Life::soaking();
    long.wait(Duration::from_secs(3601));
    long.router.lapsed = true;
    long.found();
    assert_eq!(
        long.rollout.state().cause,
        Some(Cause::Lapsed { times: 1 }),
        "away for too long"
    );
}

#[test]
fn a_mark_a_latch_drift_or_a_router_ahead_of_the_log_goes_back() {
    type Change = fn(&mut RouterState);
    let cases: [(&str, Change); 4] = [
        ("marked", |r| r.mark = Some(RolloutId::new("r1").unwrap())),
        ("latched", |r| r.latch = Some(version(1))),
        ("ahead", |r| r.at.seq = Seq::new(1_000)),
        ("drifted", |r| r.split.share = Share::ALL),
    ];
    for (name, change) in cases {
        let mut life = Life::soaking();
        change(&mut life.router);
        assert!(life.found(), "{name}");
        assert!(
            matches!(life.rollout.phase(), Phase::RollingBack { .. }),
            "{name}"
        );
    }
    let mut other = Life::soaking();
    other.router.mark = Some(RolloutId::new("r0").unwrap());
    assert!(!other.found(), "the mark of an earlier rollout is no news");
}

#[test]
fn a_verdict_counts_only_for_its_epoch_and_with_every_router_confirming() {
    let mut life = Life::soaking();
    let mut stale = life.look(Verdict::Fail, 1);
    stale.judgement.epoch -= 1;
    assert!(matches!(
        life.give(Input::Judged(Box::new(stale))),
        Err(Rejected::StaleEpoch { .. })
    ));
    let mut unreachable = life.look(Verdict::Pass, 1);
    unreachable.routers = Observed::new([
        (RouterId::new("a").unwrap(), Some(life.router.clone())),
        (RouterId::new("b").unwrap(), None),
    ]);
    assert_eq!(
        life.give(Input::Judged(Box::new(unreachable.clone()))),
        Err(Rejected::Unconfirmed)
    );
    unreachable.judgement.verdict = Verdict::Fail;
    assert!(
        life.give(Input::Judged(Box::new(unreachable))).unwrap(),
        "harm counts all the same"
    );
    let mut nobody = Life::soaking();
    let mut look = nobody.look(Verdict::Pass, 1);
    look.routers = Observed::default();
    assert_eq!(
        nobody.give(Input::Judged(Box::new(look))),
        Err(Rejected::Unconfirmed)
    );
}

#[test]
fn holds_are_named_and_cleared_one_by_one() {
    let mut life = Life::soaking();
    life.operator(Verb::Hold {
        name: "demo".into(),
    })
    .unwrap();
    life.operator(Verb::Hold {
        name: "audit".into(),
    })
    .unwrap();
    life.judged(Verdict::Pass).unwrap();
    assert_eq!(life.rollout.phase(), Phase::Held { stage: 0 });
    assert_eq!(
        life.operator(Verb::Resume {
            name: "typo".into()
        }),
        Err(Rejected::UnknownHold("typo".into()))
    );
    life.operator(Verb::Resume {
        name: "demo".into(),
    })
    .unwrap();
    assert_eq!(life.rollout.phase(), Phase::Held { stage: 0 });
    life.operator(Verb::Resume {
        name: "audit".into(),
    })
    .unwrap();
    assert_eq!(life.rollout.phase(), Phase::Soaking { stage: 0 });
    life.judged(Verdict::Pass).unwrap();
    assert_eq!(life.rollout.phase(), Phase::Shifting { stage: 1 });
}

#[test]
fn a_hold_gate_holds_once_and_does_not_roll_back() {
    let mut life = Life::soaking();
    let mut look = life.look(Verdict::Inconclusive, 1);
    look.judgement.gates[1].verdict = Verdict::Fail;
    life.give(Input::Judged(Box::new(look.clone()))).unwrap();
    assert!(life.rollout.state().holds.contains_key("gate-slow"));
    life.operator(Verb::Resume {
        name: "gate-slow".into(),
    })
    .unwrap();
    life.give(Input::Judged(Box::new(look))).unwrap();
    assert_eq!(
        life.rollout.phase(),
        Phase::Soaking { stage: 0 },
        "a person has cleared it for this stage"
    );
}

#[test]
fn a_freeze_stops_the_advance_only() {
    let mut life = Life::soaking();
    let until = life.now.after(Duration::from_secs(7200));
    assert!(life.give(Input::Frozen { until }).unwrap());
    assert!(!life.give(Input::Frozen { until }).unwrap(), "no news");
    life.judged(Verdict::Pass).unwrap();
    assert_eq!(life.rollout.phase(), Phase::Soaking { stage: 0 });
    life.wait(Duration::from_secs(7200));
    life.judged(Verdict::Pass).unwrap();
    assert_eq!(life.rollout.phase(), Phase::Shifting { stage: 1 });
}

#[test]
fn what_cannot_be_loaded_is_blocked() {
    let mut life = Life::new();
    life.give(Input::Start).unwrap();
    let prepare = life.rollout.pending()[0].id;
    let failed = Outcome::Failed {
        reason: "out of memory".into(),
    };
    life.give(Input::Done {
        intent: prepare,
        outcome: failed.clone(),
    })
    .unwrap();
    assert_eq!(life.rollout.phase(), Phase::Blocked);
    assert_eq!(
        life.give(Input::Done {
            intent: prepare,
            outcome: failed
        }),
        Err(Rejected::UnknownIntent(prepare))
    );
    assert!(
        life.rollout
            .pending()
            .iter()
            .any(|i| i.effect == Effect::Retire(version(2))),
        "half a load is cleaned up"
    );
}

/// Anything that can come, in any order.
#[derive(Debug, Clone)]
enum Any {
    Start,
    Tick(u32),
    Look(u8, bool),
    Found,
    FoundNobody,
    Lapse,
    Serve,
    Fail,
    Beat(u64),
    Approve,
    Hold,
    Resume,
    Abort,
    Source,
    Frozen(u32),
}

fn anything() -> impl Strategy<Value = Any> {
    prop_oneof![
        4 => Just(Any::Start),
        2 => (0u32..20_000).prop_map(Any::Tick),
        12 => (0u8..10, any::<bool>()).prop_map(|(v, reach)| Any::Look(v, reach)),
        12 => Just(Any::Found),
        1 => Just(Any::FoundNobody),
        1 => Just(Any::Lapse),
        12 => Just(Any::Serve),
        1 => Just(Any::Fail),
        1 => (0u64..80).prop_map(Any::Beat),
        3 => Just(Any::Approve),
        1 => Just(Any::Hold),
        2 => Just(Any::Resume),
        1 => Just(Any::Abort),
        1 => Just(Any::Source),
        1 => (0u32..20_000).prop_map(Any::Frozen),
    ]
}

fn feed(life: &mut Life, what: &Any) {
    let input = match *what {
        Any::Start => Input::Start,
        Any::Tick(s) => {
            life.wait(Duration::from_secs(s.into()));
            Input::Tick
        }
        Any::Look(v, reach) => {
            life.wait(Duration::from_secs(60));
            let verdict = match v {
                0 => Verdict::Fail,
                1..4 => Verdict::Inconclusive,
                _ => Verdict::Pass,
            };
            let mut look = life.look(verdict, 1);
            if !reach {
                look.routers = Observed::new([(RouterId::new("a").unwrap(), None)]);
            }
            Input::Judged(Box::new(look))
        }
        Any::Found => Input::Found {
            fence: FENCE,
            routers: life.routers(),
        },
        Any::FoundNobody => Input::Found {
            fence: FENCE,
            routers: Observed::new([(RouterId::new("a").unwrap(), None)]),
        },
        Any::Lapse => {
            life.router.lapsed = life.router.split.lease.is_some();
            Input::Found {
                fence: FENCE,
                routers: life.routers(),
            }
        }
        Any::Serve => return life.serve(),
        Any::Fail => {
            let id = life.rollout.pending().first().map_or(
                IntentId {
                    seq: Seq::new(0),
                    index: 0,
                },
                |i| i.id,
            );
            Input::Done {
                intent: id,
                outcome: Outcome::Failed { reason: "x".into() },
            }
        }
        Any::Beat(s) => Input::Heartbeat(Heartbeat {
            exposed: 1,
            waiting: Duration::from_secs(s),
        }),
        Any::Approve => return drop(life.operator(Verb::Approve)),
        Any::Hold => return drop(life.operator(Verb::Hold { name: "h".into() })),
        Any::Resume => {
            let name = life
                .rollout
                .state()
                .holds
                .keys()
                .next()
                .cloned()
                .unwrap_or_default();
            return drop(life.operator(Verb::Resume { name }));
        }
        Any::Abort => return drop(life.operator(Verb::Abort)),
        Any::Source => Input::SourceFailed {
            reason: "down".into(),
        },
        Any::Frozen(s) => Input::Frozen {
            until: life.now.after(Duration::from_secs(s.into())),
        },
    };
    drop(life.give(input));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// In every life: the log replays to the same state, what was decided is what is served, and nothing comes back.
    #[test]
    fn every_life_keeps_the_rules(inputs in prop::collection::vec(anything(), 1..80)) {
        let mut life = Life::new();
        let fresh = life.rollout.clone();
        for input in inputs {
            feed(&mut life, &input);
        }
        let mut replayed = fresh;
        let mut epoch = Epoch::default();
        let mut going_back = false;
        let mut ended = None;
        let allowed = [0, 500, 5_000, 10_000];
        for step in &life.log {
            let json = serde_json::to_string(step).unwrap();
            let read: Step = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(&read, step);
            replayed.apply(&read).unwrap();

            let split = &step.state.split;
            prop_assert!(split.epoch >= epoch, "epochs rise");
            epoch = split.epoch;
            prop_assert!(allowed.contains(&split.share.basis_points()));
            prop_assert_eq!(split.share > Share::NONE, split.lease.is_some(), "an exposure has a lease, and nothing else has");
            if going_back {
                prop_assert_eq!(split.share, Share::NONE, "no share rises after going back");
                prop_assert_eq!(&split.baseline, &version(1));
            }
            going_back |= matches!(step.state.phase, Phase::RollingBack { .. } | Phase::RolledBack | Phase::Blocked);
            if let Some(end) = ended {
                prop_assert_eq!(step.state.phase, end, "an end is an end");
            }
            ended = step.state.phase.is_end().then_some(step.state.phase);
            let retires = |v| step.intents.iter().any(|i| i.effect == Effect::Retire(version(v)));
            if retires(1) {
                prop_assert_eq!(step.state.phase, Phase::Promoted);
            }
            if retires(2) {
                let over = matches!(step.state.phase, Phase::RollingBack { part: Recovery::Retiring } | Phase::Blocked);
                prop_assert!(over, "the candidate is retired only after going back is confirmed");
            }
            if matches!(step.state.phase, Phase::Promoting) {
                let passed = !matches!(&step.input, Input::Judged(look) if look.judgement.verdict != Verdict::Pass);
                prop_assert!(passed, "promotion only through passed gates");
            }
        }
        prop_assert_eq!(&replayed, &life.rollout);
        let waits = |i: &Intent| matches!(i.effect, Effect::Evaluate(_) | Effect::Prepare(_) | Effect::Drain { .. });
        if life.rollout.phase().is_end() {
            prop_assert!(!life.rollout.pending().iter().any(waits), "an end waits for nothing of an earlier phase");
        }
        let state = serde_json::to_string(&life.rollout).unwrap();
        prop_assert_eq!(serde_json::from_str::<Rollout>(&state).unwrap(), life.rollout.clone());

        // Left alone with a working router and backend, it ends.
        for _ in 0..40 {
            life.router.lapsed = false;
            life.wait(Duration::from_secs(8 * 24 * 3600));
            drop(life.give(Input::Start));
            life.serve();
            life.found();
            drop(life.give(Input::Tick));
        }
        prop_assert!(life.rollout.is_settled(), "stuck in {}", life.rollout.phase());
    }
}

#[test]
fn a_log_that_is_out_of_order_is_refused() {
    let life = Life::soaking();
    let mut again = Life::new().rollout;
    again.apply(&life.log[1]).unwrap();
    let before = again.clone();
    assert!(again.apply(&life.log[0]).is_err());
    assert_eq!(again, before);
}
