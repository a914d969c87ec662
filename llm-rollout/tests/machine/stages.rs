//! Stages: how a rollout advances, what holds it, what sends it back.

use crate::life::{Life, plan, version};
use llm_gates::{TableReport, Verdict};
use llm_rollout::{
    Cause, Effect, Epoch, Heartbeat, Input, Observed, Outcome, Phase, Recovery, Rejected, Rollout,
    RolloutId, RouterId, RouterState, Seq, Share, Split, Timestamp, Verb,
};
use std::collections::BTreeMap;
use std::time::Duration;

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
    assert_eq!(
        life.rollout.phase(),
        Phase::Baking,
        "the old baseline still answers requests"
    );
    life.serve();
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

#[test]
fn a_log_that_is_out_of_order_is_refused() {
    let life = Life::soaking();
    let mut again = Life::new().rollout;
    again.apply(&life.log[1]).unwrap();
    let before = again.clone();
    assert!(again.apply(&life.log[0]).is_err());
    assert_eq!(again, before);
}

fn changed(change: impl FnOnce(&mut llm_rollout::PlanSpec)) -> llm_rollout::Plan {
    let mut spec = plan().spec().clone();
    change(&mut spec);
    spec.try_into().unwrap()
}

#[test]
fn a_stage_advances_by_the_gates_that_it_needs() {
    let needy = changed(|spec| spec.stages[0].needs = Some(vec!["faults".to_owned()]));
    for (plan, expected) in [
        (plan(), Phase::Soaking { stage: 0 }),
        (needy, Phase::Shifting { stage: 1 }),
    ] {
        let mut life = Life::soaking_with(plan);
        let mut look = life.look(Verdict::Inconclusive, 1);
        look.judgement.gates[0].verdict = Verdict::Pass;
        look.judgement.gates[1].verdict = Verdict::Inconclusive;
        life.give(Input::Judged(Box::new(look))).unwrap();
        assert_eq!(life.rollout.phase(), expected);
    }
    let mut spec = plan().spec().clone();
    spec.stages[0].needs = Some(vec!["latency".to_owned()]);
    let error = llm_rollout::Plan::try_from(spec).unwrap_err().to_string();
    assert!(
        error.contains("stages[0].needs[0]") && error.contains("latency"),
        "{error}"
    );
}

#[test]
fn a_preview_serves_nobody_and_a_shadow_mirrors() {
    let exposure = |percent| llm_rollout::plan::Exposure(Share::from_percent(percent).unwrap());
    let shadow = changed(|spec| {
        spec.finish = llm_rollout::Finish::Return;
        spec.stages.truncate(2);
        spec.stages[0].serve = exposure(0.0);
        spec.stages[1].serve = exposure(0.0);
        spec.stages[1].mirror = exposure(10.0);
        spec.stages[1].advance = llm_rollout::Advance::Auto;
    });
    let mut life = Life::soaking_with(shadow);
    assert_eq!(
        (life.router.split.exposes(), life.router.split.lease),
        (false, None)
    );
    assert!(
        life.rollout.plan().gate_plan(0).is_none(),
        "nobody is exposed"
    );
    life.judged(Verdict::Pass).unwrap();
    life.found();
    assert_eq!(life.router.split.share, Share::NONE);
    assert_eq!(life.router.split.mirror.basis_points(), 1_000);
    assert!(
        life.router.split.lease.is_some(),
        "a mirror is leased like a share"
    );
    life.judged(Verdict::Pass).unwrap();
    life.found();
    life.serve();
    life.serve();
    assert_eq!(
        life.rollout.phase(),
        Phase::Concluded,
        "it was never to be promoted"
    );
    assert_eq!(life.rollout.state().cause, Some(Cause::Concluded));
    assert_eq!(life.pages(), 0, "nothing has gone wrong");
    assert!(life.told("concluded"));
    life.found();
    assert!(life.rollout.is_settled());
}

#[test]
fn a_freeze_also_delays_the_first_stage() {
    let mut life = Life::new();
    let until = life.now.after(Duration::from_secs(60));
    life.give(Input::Start).unwrap();
    life.give(Input::Frozen { until }).unwrap();
    life.serve();
    assert_eq!(life.rollout.phase(), Phase::Warming);
    assert_eq!(life.rollout.next_wakeup(), Some(until));
    assert!(!life.give(Input::Tick).unwrap());
    life.wait(Duration::from_secs(60));
    life.give(Input::Tick).unwrap();
    assert_eq!(life.rollout.phase(), Phase::Shifting { stage: 0 });
}

#[test]
fn alarms_do_what_the_plan_says() {
    use llm_rollout::{Alarm, Response};
    let plan = || {
        changed(|spec| {
            spec.triggers.alarms = [
                ("quota".to_owned(), Response::Page),
                ("toxic".to_owned(), Response::Rollback),
            ]
            .into();
        })
    };
    let alarm = |name: &str| {
        Input::Alarm(Alarm {
            name: name.into(),
            detail: "5 of 7".into(),
        })
    };
    let mut life = Life::soaking_with(plan());
    life.give(alarm("quota")).unwrap();
    assert_eq!(
        (life.rollout.phase(), life.pages()),
        (Phase::Soaking { stage: 0 }, 1)
    );
    life.give(alarm("odd")).unwrap();
    assert_eq!(
        life.rollout.phase(),
        Phase::Held { stage: 0 },
        "an alarm that nobody has named holds"
    );
    assert!(!life.give(alarm("odd")).unwrap(), "a wait pages once");
    life.give(alarm("toxic")).unwrap();
    assert!(
        matches!(&life.rollout.state().cause, Some(Cause::Alarm { name, .. }) if name == "toxic")
    );

    let mut baking = Life::baking(plan());
    baking.give(alarm("toxic")).unwrap();
    assert_eq!(
        baking.rollout.phase(),
        Phase::RollingBack {
            part: Recovery::Redirecting
        },
        "until it is retired, the old baseline takes over at once"
    );
    let mut early = Life::with(plan());
    early.give(Input::Start).unwrap();
    early.give(alarm("toxic")).unwrap();
    assert_eq!(early.rollout.phase(), Phase::Blocked);
}

#[test]
fn before_deployment_a_gate_stops_holds_or_warns_as_its_action_says() {
    use llm_gates::Action;
    let table = || llm_rollout::plan::PreFlightSpec {
        gates: llm_gates::GateTable::reference(),
        deadline: Duration::from_secs(60),
    };
    for action in [Action::Warn, Action::Hold, Action::Block, Action::Rollback] {
        for verdict in [Verdict::Pass, Verdict::Inconclusive, Verdict::Fail] {
            let mut life = Life::with(changed(|spec| spec.pre_flight = Some(table())));
            life.give(Input::Start).unwrap();
            let mut report = table().gates.evaluate(&BTreeMap::default());
            report.rows.truncate(1);
            (report.rows[0].action, report.rows[0].verdict) = (action, verdict);
            life.give(Input::PreFlight(report)).unwrap();
            let stops = matches!(action, Action::Block | Action::Rollback);
            let expected = match verdict {
                Verdict::Inconclusive | Verdict::Fail if stops => Phase::Blocked,
                _ => Phase::Warming,
            };
            assert_eq!(life.rollout.phase(), expected, "{action:?} {verdict:?}");
            let held = action == Action::Hold && verdict == Verdict::Fail;
            let holds: Vec<_> = life.rollout.state().holds.keys().cloned().collect();
            let expected: &[&str] = if held { &["gate-toxicity"] } else { &[] };
            assert_eq!(holds, expected, "{action:?} {verdict:?}");
        }
    }
}

#[test]
fn a_split_is_all_that_the_stage_says() {
    let exposure = |percent| llm_rollout::plan::Exposure(Share::from_percent(percent).unwrap());
    let plan = changed(|spec| {
        let preview = llm_rollout::StageSpec {
            serve: exposure(0.0),
            advance: llm_rollout::Advance::Auto,
            ..spec.stages[1].clone()
        };
        spec.stages.insert(0, preview);
        spec.stages[1].control = exposure(5.0);
    });
    let mut life = Life::soaking_with(plan);
    let shares = |percent: &[f64]| -> Vec<_> { percent.iter().map(|p| exposure(*p).0).collect() };
    assert_eq!(life.router.split.ahead, shares(&[5.0, 50.0, 100.0]));
    life.judged(Verdict::Pass).unwrap();
    let split = life.router.split.clone();
    let expected = Split {
        candidate: Some(version(2)),
        share: exposure(5.0).0,
        control: exposure(5.0).0,
        salt: 7,
        lease: Some(life.rollout.plan().spec().lease.ttl),
        ramp: split.ramp.clone(),
        ..Split::steady(Some(life.rollout.id().clone()), version(1), Epoch::new(5))
    };
    assert_eq!(split, expected, "nothing is ahead of whom users see");
    assert_eq!((split.ramp.len(), split.ramp[0].share), (1, Share::NONE));
    assert_eq!(life.rollout.salt(), split.salt);
}

#[test]
fn a_failed_gate_that_warns_or_was_waived_does_not_stand_in_the_way() {
    use llm_gates::Action;
    let next = Phase::Shifting { stage: 1 };
    for (action, expected) in [
        (Action::Warn, next),
        (Action::Rollback, Phase::Soaking { stage: 0 }),
        (Action::Hold, Phase::Held { stage: 0 }),
    ] {
        let mut life = Life::soaking_with(changed(|spec| spec.gates[1].action = action));
        let mut look = life.look(Verdict::Pass, 1);
        look.judgement.gates[1].verdict = Verdict::Fail;
        life.give(Input::Judged(Box::new(look.clone()))).unwrap();
        assert_eq!(life.rollout.phase(), expected, "{action:?}");
        if action == Action::Hold {
            let name = "gate-slow".to_owned();
            life.operator(Verb::Resume { name }).unwrap();
            life.give(Input::Judged(Box::new(look))).unwrap();
            assert_eq!(life.rollout.phase(), next);
        }
    }
}

#[test]
fn a_lapse_as_long_as_the_plan_allows_is_resumed() {
    let mut life = Life::soaking();
    life.wait(Duration::from_secs(3600));
    life.router.lapsed = true;
    life.found();
    assert_eq!(life.rollout.phase(), Phase::Shifting { stage: 0 });
}

#[test]
fn a_router_that_falls_behind_has_drifted() {
    for bake in [false, true] {
        let mut life = if bake {
            Life::baking(plan())
        } else {
            Life::soaking()
        };
        life.router.at.seq = Seq::new(life.router.at.seq.get() - 1);
        assert!(life.found());
        let router = "a".into();
        assert_eq!(life.rollout.state().cause, Some(Cause::Drifted { router }));
    }
}

#[test]
fn routes_and_evaluations_are_not_answered_by_done() {
    let pre_flight = llm_rollout::plan::PreFlightSpec {
        gates: llm_gates::GateTable::reference(),
        deadline: Duration::from_secs(60),
    };
    let mut evaluating = Life::with(changed(|spec| spec.pre_flight = Some(pre_flight)));
    evaluating.give(Input::Start).unwrap();
    let mut routing = Life::new();
    routing.give(Input::Start).unwrap();
    routing.serve();
    for (mut life, what) in [
        (evaluating, "an evaluation without a report"),
        (routing, "an answer to a split"),
    ] {
        let phase = life.rollout.phase();
        let intent = life.rollout.pending()[0].id;
        let outcome = Outcome::Ok;
        assert_eq!(
            life.give(Input::Done { intent, outcome }),
            Err(Rejected::NotNow { what, phase })
        );
    }
}

#[test]
fn a_probe_of_the_plan_does_what_its_watch_says() {
    use llm_rollout::{Alarm, Response};
    let plan = || {
        changed(|spec| {
            let every = Duration::from_secs(60);
            spec.watch = vec![llm_rollout::plan::WatchSpec::new(
                "canonical",
                every,
                Response::Rollback,
            )];
        })
    };
    for (name, back) in [("canonical", true), ("other", false)] {
        let mut life = Life::soaking_with(plan());
        let (name, detail) = (name.into(), "x".into());
        life.give(Input::Alarm(Alarm { name, detail })).unwrap();
        assert_eq!(
            matches!(life.rollout.phase(), Phase::RollingBack { .. }),
            back
        );
    }
}

#[test]
fn it_says_what_it_was_last_told_and_when_it_wants_to_be_woken() {
    let mut life = Life::soaking();
    assert_eq!(life.rollout.judgement(), None);
    assert!(life.rollout.may_raise());
    let look = life.look(Verdict::Fail, 1);
    life.give(Input::Judged(Box::new(look.clone()))).unwrap();
    assert_eq!(life.rollout.judgement(), Some(&look.judgement));
    assert!(!life.rollout.may_raise());
    life.found();
    life.serve();
    life.serve();
    assert!(life.rollout.phase().is_end() && !life.rollout.is_settled());
    let shift = life.rollout.plan().spec().outcomes.shift;
    assert_eq!(life.rollout.next_wakeup(), Some(life.now.after(shift)));
    life.found();
    assert_eq!(life.rollout.next_wakeup(), None, "it is over");
    assert_eq!(life.log[3].intents[0].id.to_string(), "13.0");
}
