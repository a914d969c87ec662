//! Going back where the baseline is cold or unhealthy, and waits that take long.

use crate::life::{FENCE, Life, plan, version};
use llm_gates::Verdict;
use llm_rollout::{
    Cause, Direction, Effect, Input, Observed, Outcome, Phase, Plan, Position, Recovery, Rejected,
    RouterId, Seq, Share, Split, Standby, Verb,
};
use std::time::Duration;

const WARMING: Phase = Phase::RollingBack {
    part: Recovery::Warming,
};
const REDIRECTING: Phase = Phase::RollingBack {
    part: Recovery::Redirecting,
};

fn health(baseline: bool) -> Input {
    Input::Health { baseline }
}

fn cold() -> Plan {
    let mut spec = plan().spec().clone();
    spec.recovery.standby = Standby::Cold;
    spec.stages = vec![spec.stages[2].clone()];
    spec.try_into().unwrap()
}

/// The candidate serves everything, and the baseline has been scaled down.
fn scaled_down() -> Life {
    let mut life = Life::soaking_with(cold());
    assert_eq!(life.router.split.share, Share::ALL);
    assert!(
        !life.asked(&Effect::Standby(version(1))),
        "not under the requests that it still answers"
    );
    life.serve();
    assert!(life.asked(&Effect::Standby(version(1))));
    life.serve();
    life
}

#[test]
fn a_baseline_that_cannot_serve_is_not_scaled_down() {
    let mut life = Life::soaking_with(cold());
    life.give(Input::Health { baseline: false }).unwrap();
    life.serve();
    assert!(
        !life.asked(&Effect::Standby(version(1))),
        "a version that is scaled down is not asked whether it is well again"
    );
    assert!(!life.rollout.state().baseline_cold);
    life.give(Input::Health { baseline: true }).unwrap();
    assert!(life.rollout.state().holds.is_empty());
}

#[test]
fn a_cold_baseline_is_warmed_before_anybody_is_sent_to_it() {
    let mut life = scaled_down();
    life.judged(Verdict::Fail).unwrap();
    assert_eq!(life.rollout.phase(), WARMING);
    assert!(life.asked(&Effect::Prepare(version(1))));
    assert!(!life.rollout.may_raise());
    assert_eq!(
        life.router.split.share,
        Share::ALL,
        "the candidate serves on"
    );
    life.serve();
    assert_eq!(life.rollout.phase(), REDIRECTING);
    assert_eq!(
        (life.router.split.share, &life.router.split.baseline),
        (Share::NONE, &version(1))
    );
}

#[test]
fn a_baseline_that_does_not_load_is_tried_again_and_people_are_told_once() {
    let mut life = scaled_down();
    life.operator(Verb::Abort).unwrap();
    let prepare = |life: &Life| {
        let mut pending = life.rollout.pending().iter();
        pending
            .find(|i| matches!(i.effect, Effect::Prepare(_)))
            .map(|i| i.id)
    };
    for _ in 0..3 {
        let intent = prepare(&life).unwrap();
        let outcome = Outcome::Failed {
            reason: "no GPU".into(),
        };
        life.give(Input::Done { intent, outcome }).unwrap();
        assert_eq!((prepare(&life), life.pages()), (None, 1));
        life.wait(Duration::from_secs(900));
        life.give(Input::Tick).unwrap();
    }
    life.wait(Duration::from_secs(900));
    life.give(Input::Tick).unwrap();
    assert!(!life.give(Input::Tick).unwrap(), "one page for one wait");
    life.serve();
    assert_eq!(life.rollout.phase(), REDIRECTING);
}

#[test]
fn in_an_emergency_nobody_waits_for_the_baseline() {
    let mut told = scaled_down();
    told.operator(Verb::AbortNow).unwrap();
    assert_eq!(told.rollout.phase(), REDIRECTING);
    assert!(
        told.asked(&Effect::Prepare(version(1))),
        "it is loaded all the same"
    );

    let mut later = scaled_down();
    later.operator(Verb::Abort).unwrap();
    later.operator(Verb::AbortNow).unwrap();
    assert_eq!(later.rollout.phase(), REDIRECTING);

    let mut silent = scaled_down();
    let mut look = silent.look(Verdict::Pass, 1);
    look.heartbeat.as_mut().unwrap().waiting = Duration::from_secs(60);
    silent.give(Input::Judged(Box::new(look))).unwrap();
    assert_eq!(
        silent.rollout.phase(),
        REDIRECTING,
        "who answers nobody is not worth waiting with"
    );

    let mut lapsed = scaled_down();
    lapsed.operator(Verb::Abort).unwrap();
    lapsed.router.lapsed = true;
    lapsed.found();
    assert_eq!(
        lapsed.rollout.phase(),
        REDIRECTING,
        "users are on the baseline already"
    );
}

#[test]
fn an_unhealthy_baseline_keeps_users_on_the_candidate_until_it_is_back() {
    let mut life = Life::soaking();
    assert!(!life.give(health(true)).unwrap(), "no news");
    life.give(health(false)).unwrap();
    assert_eq!(
        (life.rollout.phase(), life.pages()),
        (Phase::Held { stage: 0 }, 1),
        "a comparison with a broken baseline proves nothing"
    );
    let share = life.router.split.share;
    life.judged(Verdict::Fail).unwrap();
    assert_eq!(
        (life.rollout.phase(), life.pages()),
        (Phase::Held { stage: 0 }, 2)
    );
    assert!(matches!(
        life.rollout.state().stranded,
        Some(Cause::Gate { .. })
    ));
    life.judged(Verdict::Fail).unwrap();
    life.judged(Verdict::Pass).unwrap();
    assert_eq!((life.router.split.share, life.pages()), (share, 2));
    assert_eq!(
        life.operator(Verb::Resume {
            name: "baseline-unhealthy".into()
        }),
        Err(Rejected::BaselineDown)
    );
    life.wait(Duration::from_secs(30 * 24 * 3600));
    assert!(
        !life.give(Input::Tick).unwrap(),
        "no deadline sends users to a version that cannot serve"
    );
    life.give(health(true)).unwrap();
    assert_eq!(life.rollout.phase(), REDIRECTING);
    assert!(matches!(
        life.rollout.state().cause,
        Some(Cause::Gate { .. })
    ));
}

#[test]
fn a_healthy_baseline_again_lets_it_go_on() {
    let mut life = Life::soaking();
    life.give(health(false)).unwrap();
    life.give(health(true)).unwrap();
    assert_eq!(life.rollout.phase(), Phase::Soaking { stage: 0 });
}

#[test]
fn from_an_unhealthy_baseline_one_can_go_forward_or_back_by_hand() {
    let stranded = || {
        let mut life = Life::soaking();
        life.give(health(false)).unwrap();
        life.operator(Verb::Abort).unwrap();
        assert!(life.rollout.state().stranded.is_some());
        life
    };
    let mut forward = stranded();
    forward.operator(Verb::PromoteNow).unwrap();
    assert_eq!(forward.rollout.phase(), Phase::Promoting);
    forward.found();
    assert_eq!(forward.router.split.baseline, version(2));
    let mut back = stranded();
    back.operator(Verb::AbortNow).unwrap();
    assert_eq!(back.rollout.phase(), REDIRECTING);
}

#[test]
fn a_stranded_bake_neither_ends_nor_goes_back() {
    let mut life = Life::baking(plan());
    life.serve();
    life.give(health(false)).unwrap();
    life.operator(Verb::Abort).unwrap();
    life.wait(Duration::from_secs(30 * 24 * 3600));
    assert!(!life.give(Input::Tick).unwrap());
    life.give(health(true)).unwrap();
    assert_eq!(life.rollout.state().routed.unwrap().1, Direction::Back);
}

#[test]
fn a_router_that_never_confirms_is_named_once() {
    let mut life = Life::soaking();
    life.operator(Verb::Abort).unwrap();
    assert!(!life.give(Input::Tick).unwrap());
    life.wait(Duration::from_secs(300));
    life.give(Input::Tick).unwrap();
    assert_eq!(life.pages(), 1);
    life.wait(Duration::from_secs(300));
    assert!(!life.give(Input::Tick).unwrap());
}

#[test]
fn the_incident_is_recorded_when_it_is_over() {
    let mut life = Life::soaking();
    life.judged(Verdict::Fail).unwrap();
    life.found();
    life.serve();
    assert!(!life.asked(&Effect::Record("r1".parse().unwrap())));
    life.serve();
    assert!(life.asked(&Effect::Record("r1".parse().unwrap())));
}

#[test]
fn a_router_that_forgets_what_it_was_told_sends_it_back() {
    let mut life = Life::new();
    life.router.at = Position::default();
    life.give(Input::Start).unwrap();
    let never_told = life.router.clone();
    life.serve();
    let told = std::mem::replace(&mut life.router, never_told);
    assert!(
        !life.found(),
        "one that was never told anything is waited for"
    );
    // It starts again without a memory: all it has is the store's split.
    life.router.split = told.split;
    life.router.lapsed = true;
    assert!(life.found());
    assert_eq!(life.rollout.phase(), REDIRECTING);
    let cause = life.rollout.state().cause.clone();
    assert_eq!(cause, Some(Cause::Drifted { router: "a".into() }));
}

#[test]
fn a_router_that_is_ahead_of_the_split_in_force_sends_it_back() {
    let mut life = Life::soaking();
    let (routed, _) = life.rollout.state().routed.unwrap();
    let (last, _) = life.rollout.last().unwrap();
    assert!(routed < last, "a step of this rollout, but not an order");
    life.router.at.seq = last;
    assert!(life.found());
    assert_eq!(life.rollout.phase(), REDIRECTING);
    let cause = life.rollout.state().cause.clone();
    assert_eq!(cause, Some(Cause::Drifted { router: "a".into() }));
}

/// How often it has asked for this.
fn times(life: &Life, effect: impl Fn(&Effect) -> bool) -> usize {
    let intents = life.log.iter().flat_map(|s| &s.intents);
    intents.filter(|i| effect(&i.effect)).count()
}

fn drains_baseline(effect: &Effect) -> bool {
    matches!(effect, Effect::Drain { version: v, .. } if *v == version(1))
}

#[test]
fn a_baseline_is_scaled_down_once_and_only_when_everybody_has_left() {
    let two_stages = |standby| {
        let mut spec = plan().spec().clone();
        spec.recovery.standby = standby;
        spec.stages.remove(1);
        Plan::try_from(spec).unwrap()
    };
    for (standby, drained) in [(Standby::Cold, 1), (Standby::Warm, 0)] {
        let mut life = Life::soaking_with(two_stages(standby));
        assert_eq!(times(&life, drains_baseline), 0, "it serves 95 %");
        life.judged(Verdict::Pass).unwrap();
        life.found();
        assert_eq!(times(&life, drains_baseline), drained);
        if standby == Standby::Warm {
            continue;
        }
        let mut promoted = life.clone();
        promoted.pass_all();
        promoted.found();
        assert_eq!(promoted.rollout.phase(), Phase::Baking);
        assert_eq!(times(&promoted, drains_baseline), 1, "it drains already");
        life.serve();
        life.serve();
        life.router.lapsed = true;
        life.found();
        life.found();
        assert_eq!(life.rollout.phase(), Phase::Soaking { stage: 1 });
        assert_eq!(times(&life, drains_baseline), 1, "it is cold");
        life.pass_all();
        life.found();
        assert_eq!(life.rollout.phase(), Phase::Baking);
        assert_eq!(times(&life, drains_baseline), 1, "it is cold");
    }
}

#[test]
fn a_baseline_that_takes_long_to_load_is_not_loaded_twice() {
    let loads = |e: &Effect| *e == Effect::Prepare(version(1));
    let mut life = scaled_down();
    life.operator(Verb::Abort).unwrap();
    life.wait(Duration::from_secs(900));
    assert!(life.give(Input::Tick).unwrap());
    assert_eq!((life.pages(), times(&life, loads)), (1, 1));
    assert_eq!(life.rollout.next_wakeup(), None);
    life.operator(Verb::AbortNow).unwrap();
    assert_eq!(
        (life.rollout.phase(), times(&life, loads)),
        (REDIRECTING, 1)
    );
}

#[test]
fn the_hold_of_an_unhealthy_baseline_binds_only_who_would_go_back() {
    let name = || "baseline-unhealthy".to_owned();
    let mut held = Life::soaking();
    held.give(health(false)).unwrap();
    held.operator(Verb::Resume { name: name() }).unwrap();
    assert_eq!(held.rollout.phase(), Phase::Soaking { stage: 0 });

    let mut stranded = Life::soaking();
    stranded
        .operator(Verb::Hold {
            name: "demo".into(),
        })
        .unwrap();
    stranded.give(health(false)).unwrap();
    stranded.operator(Verb::Abort).unwrap();
    stranded
        .operator(Verb::Resume {
            name: "demo".into(),
        })
        .unwrap();
    let again = stranded.operator(Verb::Resume { name: name() });
    assert_eq!(again, Err(Rejected::BaselineDown));
}

/// Sent back; the router says that it is at a place so far from its order's, and serves something else there if so.
fn displaced(places: u64, strays: bool) -> Life {
    let mut life = Life::soaking();
    life.operator(Verb::Abort).unwrap();
    let order = life.router.at;
    let seq = Seq::new(order.seq.get() + places);
    life.router.at = Position { seq, ..order };
    if strays {
        life.router.split = Split::steady(None, version(9), life.router.split.epoch);
    }
    life
}

#[test]
fn a_router_ahead_of_its_order_is_told_again_at_a_newer_place() {
    for (places, strays) in [(0, true), (3, true), (3, false)] {
        let mut life = displaced(places, strays);
        let (stray, later) = (life.router.at, life.seq.get() + 5);
        life.seq = Seq::new(later);
        assert!(life.found(), "{places}");
        assert!(life.router.at > stray && life.router.at.seq == Seq::new(later));
        assert_eq!(life.router.split, life.rollout.state().split);
        assert_eq!(life.router.split.candidate, None);
        life.found();
        let part = Recovery::Draining;
        assert_eq!(life.rollout.phase(), Phase::RollingBack { part });
    }
    let mut obeys = displaced(0, false);
    obeys.found();
    let part = Recovery::Draining;
    assert_eq!(obeys.rollout.phase(), Phase::RollingBack { part });
    // Who does as told is left alone while another cannot be reached.
    let mut halfway = displaced(0, false);
    let routers = Observed::new([
        (RouterId::new("a").unwrap(), Some(halfway.router.clone())),
        (RouterId::new("b").unwrap(), None),
    ]);
    let fence = FENCE;
    let told = halfway.give(Input::Found { fence, routers });
    assert_eq!(told, Ok(false));
    // What comes no later than where it is would be refused: the log has to get there, which it does if that is not far.
    let mut far = displaced(50, true);
    let stray = far.router.at;
    far.seq = Seq::new(stray.seq.get() - 16);
    assert!(!far.found());
    far.seq = far.seq.next();
    for _ in 0..16 {
        assert!(far.found());
        assert_eq!(far.router.at, stray);
    }
    assert!(far.found());
    assert!(far.router.at > stray);
}
