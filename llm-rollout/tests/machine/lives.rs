//! What holds in every life, whatever comes in whatever order.

use crate::life::{FENCE, Life, plan, version};
use llm_gates::Verdict;
use llm_rollout::{
    Alarm, Direction, Effect, Epoch, Heartbeat, Input, Intent, IntentId, Observed, Outcome, Phase,
    Plan, Recovery, Response, Rollout, RouterId, Seq, Share, Standby, Step, Verb,
};
use proptest::prelude::*;
use std::time::Duration;

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
    Health(bool),
    Alarm(u8),
    Skip,
    PromoteNow,
    AbortNow,
    Supersede,
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
        1 => any::<bool>().prop_map(Any::Health),
        1 => (0u8..3).prop_map(Any::Alarm),
        1 => Just(Any::Skip),
        1 => Just(Any::PromoteNow),
        1 => Just(Any::AbortNow),
        1 => Just(Any::Supersede),
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
        Any::AbortNow => return drop(life.operator(Verb::AbortNow)),
        Any::Skip => return drop(life.operator(Verb::Skip)),
        Any::PromoteNow => return drop(life.operator(Verb::PromoteNow)),
        Any::Supersede => {
            let by = "r2".parse().unwrap();
            return drop(life.operator(Verb::Supersede { by }));
        }
        Any::Health(baseline) => Input::Health { baseline },
        Any::Alarm(n) => Input::Alarm(Alarm {
            name: ["page", "hold", "back"][usize::from(n)].into(),
            detail: "x".into(),
        }),
        Any::Source => Input::SourceFailed {
            reason: "down".into(),
        },
        Any::Frozen(s) => Input::Frozen {
            until: life.now.after(Duration::from_secs(s.into())),
        },
    };
    drop(life.give(input));
}

fn plan_with(cold: bool) -> Plan {
    let mut spec = plan().spec().clone();
    if cold {
        spec.recovery.standby = Standby::Cold;
    }
    spec.triggers.alarms = [
        ("page".to_owned(), Response::Page),
        ("back".to_owned(), Response::Rollback),
    ]
    .into();
    spec.try_into().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// In every life: the log replays to the same state, what was decided is what is served, and nothing comes back.
    #[test]
    fn every_life_keeps_the_rules(cold in any::<bool>(), inputs in prop::collection::vec(anything(), 1..80)) {
        let mut life = Life::with(plan_with(cold));
        let fresh = life.rollout.clone();
        for input in inputs {
            feed(&mut life, &input);
        }
        let mut replayed = fresh;
        let mut epoch = Epoch::default();
        let mut going_back: Option<Share> = None;
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
            if let Some(before) = going_back {
                prop_assert!(split.share <= before, "no share rises after going back");
                let forward = |i: &Intent| matches!(i.effect, Effect::Route { direction: Direction::Forward | Direction::Promote, .. });
                prop_assert!(!step.intents.iter().any(forward), "nothing goes forward after going back");
            }
            if matches!(step.state.phase, Phase::RollingBack { .. } | Phase::RolledBack | Phase::Blocked | Phase::Concluded) {
                going_back = Some(split.share);
            }
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
            let promotes = |i: &Intent| matches!(i.effect, Effect::Route { direction: Direction::Promote, .. });
            if step.intents.iter().any(promotes) {
                let passed = match &step.input {
                    Input::Judged(look) => look.judgement.verdict == Verdict::Pass,
                    Input::Operator(command) => matches!(command.verb, Verb::Skip | Verb::PromoteNow),
                    _ => false,
                };
                prop_assert!(passed, "promotion only through passed gates, or by a person");
            }
        }
        prop_assert_eq!(&replayed, &life.rollout);
        let waits = |i: &Intent| match &i.effect {
            Effect::Prepare(v) => *v == version(2),
            Effect::Evaluate(_) | Effect::Drain { .. } | Effect::Standby(_) => true,
            _ => false,
        };
        if life.rollout.phase().is_end() {
            prop_assert!(!life.rollout.pending().iter().any(waits), "an end waits for nothing of an earlier phase");
        }
        let state = serde_json::to_string(&life.rollout).unwrap();
        prop_assert_eq!(serde_json::from_str::<Rollout>(&state).unwrap(), life.rollout.clone());

        // Left alone with a working router and backend, it ends.
        for _ in 0..40 {
            life.router.lapsed = false;
            drop(life.give(Input::Health { baseline: true }));
            life.wait(Duration::from_secs(8 * 24 * 3600));
            drop(life.give(Input::Start));
            life.serve();
            life.found();
            drop(life.give(Input::Tick));
        }
        prop_assert!(life.rollout.is_settled(), "stuck in {}", life.rollout.phase());
    }
}
