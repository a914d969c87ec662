//! Each rule of a router, with a test that fails without it.

use super::*;
use crate::router::{Decision, Refused, RouterCore};
use llm_rollout::Raise;
use proptest::prelude::*;

const BOOT: u64 = 42;

fn clock(ms: u64) -> RouterClock {
    RouterClock {
        boot: BOOT,
        at: at(ms),
    }
}

fn serving(percent: f64) -> RouterCore {
    let mut core = RouterCore::new(BOOT, first());
    core.set(&forward(1, 10, 1, percent, clock(0)), at(0))
        .unwrap();
    core
}

fn points(core: &mut RouterCore, now: u64) -> u16 {
    if core.raised(at(now)) {
        core.state(at(now)).split.share.basis_points()
    } else {
        0
    }
}

#[test]
fn older_fences_are_refused_once_a_newer_one_is_seen() {
    let mut core = serving(5.0);
    core.observe(Fence::new(3), at(1)).unwrap();
    let fenced = |r: Result<(), Refused>| matches!(r, Err(Refused::Fenced { .. }));
    assert!(fenced(core.observe(Fence::new(2), at(1))));
    assert!(fenced(core.set(&forward(2, 90, 9, 50.0, clock(1)), at(1))));
    assert!(fenced(core.renew(position(1, 10), clock(1), at(1))));
    assert!(fenced(
        core.set(&steady(Direction::Promote, 2, 90, 9, 2, clock(1)), at(1))
    ));
    assert!(fenced(
        core.set(&steady(Direction::End, 2, 90, 9, 1, clock(1)), at(1))
    ));
    assert_eq!(core.state(at(1)).fence, Fence::new(3));
}

#[test]
fn orders_are_ordered_by_fence_then_position() {
    let mut core = serving(5.0);
    let older = core.set(&forward(1, 9, 9, 50.0, clock(1)), at(1));
    assert!(matches!(older, Err(Refused::Older { .. })));
    // A newer fence counts more than a smaller number.
    core.set(&forward(2, 3, 2, 25.0, clock(1)), at(1)).unwrap();
    assert_eq!(points(&mut core, 1), 2_500);
    assert_eq!(core.state(at(1)).at, position(2, 3));
}

#[test]
fn an_equal_order_is_acknowledged_and_changes_nothing() {
    let mut core = serving(5.0);
    let before = core.clone();
    core.set(&forward(1, 10, 9, 50.0, clock(30_000)), at(30_000))
        .unwrap();
    assert_eq!(core, before, "raised, or prolonged");
    assert_eq!(points(&mut core, 60_000), 0);
    core.set(&forward(1, 10, 9, 50.0, clock(60_000)), at(60_000))
        .unwrap();
    assert_eq!(points(&mut core, 60_000), 0, "revived");
}

#[test]
fn going_back_marks_its_rollout_whatever_its_number() {
    for (fence, seq) in [(1, 11), (1, 10), (1, 2), (2, 1), (0, 99)] {
        let mut core = serving(5.0);
        core.set(&steady(Direction::Back, fence, seq, 2, 1, clock(1)), at(1))
            .unwrap();
        assert_eq!(points(&mut core, 1), 0);
        let state = core.state(at(1));
        assert_eq!(state.mark, Some(rollout("a")), "{fence}.{seq}");
        assert_eq!(state.split.baseline, version(1));
        assert!(
            state.at >= position(1, 10),
            "its place in the order never goes back"
        );
        let raise = core.set(&forward(3, 50, 9, 50.0, clock(1)), at(1));
        assert_eq!(raise, Err(Refused::Marked(rollout("a"))));
        let promote = core.set(&steady(Direction::Promote, 3, 51, 9, 2, clock(1)), at(1));
        assert_eq!(promote, Err(Refused::Marked(rollout("a"))));
    }
}

#[test]
fn going_back_late_does_not_undo_a_promotion_or_an_end() {
    for direction in [Direction::Promote, Direction::End] {
        for (fence, seq) in [(1, 11), (2, 1), (2, 20)] {
            let mut core = serving(100.0);
            core.set(&steady(direction, 2, 20, 2, 2, clock(1)), at(1))
                .unwrap();
            let late = core.set(&steady(Direction::Back, fence, seq, 3, 1, clock(1)), at(1));
            assert!(late.is_err(), "{direction:?} {fence}.{seq}");
            assert_eq!(
                core.state(at(1)).split.baseline,
                version(2),
                "the old one may be gone"
            );
        }
    }
    let mut core = serving(100.0);
    core.set(&steady(Direction::Promote, 2, 20, 2, 2, clock(1)), at(1))
        .unwrap();
    core.set(&steady(Direction::Back, 2, 21, 3, 1, clock(1)), at(1))
        .unwrap();
    assert_eq!(
        core.state(at(1)).split.baseline,
        version(1),
        "a newer one does"
    );
}

#[test]
fn going_back_late_leaves_the_next_rollout_alone() {
    let mut core = serving(5.0);
    core.set(&steady(Direction::Back, 1, 11, 2, 1, clock(1)), at(1))
        .unwrap();
    core.set(&steady(Direction::End, 1, 12, 2, 1, clock(1)), at(1))
        .unwrap();
    let mut next = forward(1, 20, 3, 25.0, clock(1));
    next.split.rollout = Some(rollout("b"));
    core.set(&next, at(1)).unwrap();
    assert!(
        core.set(&steady(Direction::Back, 1, 11, 2, 1, clock(1)), at(1))
            .is_err()
    );
    assert_eq!(points(&mut core, 1), 2_500);
    assert_eq!(core.state(at(1)).mark, None);
}

#[test]
fn a_share_ends_by_itself_at_the_clock_reading_plus_the_lease() {
    let mut core = RouterCore::new(BOOT, first());
    // Sent with a reading of 10 s, on its way for 20 s: the lease counts from the reading.
    core.set(&forward(1, 10, 1, 5.0, clock(10_000)), at(30_000))
        .unwrap();
    assert_eq!(points(&mut core, 69_999), 500);
    assert!(!core.state(at(69_999)).lapsed);
    assert_eq!(points(&mut core, 70_000), 0);
    assert!(core.state(at(70_000)).lapsed);
    assert!(
        core.state(at(10_001)).lapsed,
        "a clock that goes back revives nothing"
    );
}

#[test]
fn a_renewal_prolongs_only_what_it_names() {
    let mut core = serving(5.0);
    core.renew(position(1, 10), clock(50_000), at(55_000))
        .unwrap();
    assert_eq!(points(&mut core, 109_999), 500);
    assert!(matches!(
        core.renew(position(1, 9), clock(55_000), at(55_000)),
        Err(Refused::Older { .. })
    ));
    assert!(matches!(
        core.renew(position(1, 11), clock(55_000), at(55_000)),
        Err(Refused::NothingToRenew(_))
    ));
    // An older reading shortens nothing.
    core.renew(position(1, 10), clock(20_000), at(56_000))
        .unwrap();
    assert_eq!(points(&mut core, 109_999), 500);
    assert_eq!(points(&mut core, 110_000), 0);
}

#[test]
fn a_lapsed_router_refuses_renewals_and_anything_but_a_newer_epoch() {
    let mut core = serving(5.0);
    let renewal = core.renew(position(1, 10), clock(59_999), at(60_000));
    assert_eq!(renewal, Err(Refused::Lapsed(Epoch::new(1))));
    let same = core.set(&forward(2, 10, 1, 5.0, clock(60_000)), at(60_000));
    assert_eq!(same, Err(Refused::Lapsed(Epoch::new(1))));
    core.set(&forward(2, 11, 2, 5.0, clock(60_000)), at(60_000))
        .unwrap();
    assert_eq!(points(&mut core, 60_000), 500);
    assert!(!core.state(at(60_000)).lapsed);
}

#[test]
fn what_arrives_after_its_deadline_is_refused() {
    let mut core = RouterCore::new(BOOT, first());
    let set = core.set(&forward(1, 10, 1, 5.0, clock(0)), at(60_000));
    assert_eq!(set, Err(Refused::Late(0)));
    let mut core = serving(5.0);
    core.renew(position(1, 10), clock(50_000), at(50_000))
        .unwrap();
    let renewal = core.renew(position(1, 10), clock(1_000), at(61_500));
    assert_eq!(renewal, Err(Refused::Late(500)));
}

#[test]
fn what_was_meant_for_another_boot_is_refused() {
    let mut core = serving(5.0);
    let other = RouterClock {
        boot: BOOT + 1,
        at: at(1),
    };
    let wrong = Err(Refused::OtherBoot {
        found: BOOT + 1,
        own: BOOT,
    });
    assert_eq!(core.set(&forward(1, 11, 2, 25.0, other), at(1)), wrong);
    assert_eq!(
        core.set(&steady(Direction::Promote, 1, 11, 2, 2, other), at(1)),
        wrong
    );
    assert_eq!(core.renew(position(1, 10), other, at(1)), wrong);
    // Going back and ending raise nothing.
    core.set(&steady(Direction::Back, 1, 11, 2, 1, other), at(1))
        .unwrap();
    core.set(&steady(Direction::End, 1, 12, 2, 1, other), at(1))
        .unwrap();
}

#[test]
fn a_reading_that_it_has_not_given_is_refused() {
    let mut core = serving(5.0);
    let set = core.set(&forward(1, 11, 2, 25.0, clock(2)), at(1));
    assert_eq!(set, Err(Refused::FromTheFuture(1)));
    assert!(core.renew(position(1, 10), clock(2), at(1)).is_err());
}

#[test]
fn an_end_at_a_newer_position_releases_mark_and_latch() {
    let mut core = serving(5.0);
    core.force_baseline("page 4711", at(1));
    core.set(&steady(Direction::Back, 1, 11, 2, 1, clock(1)), at(1))
        .unwrap();
    // Not newer: releases nothing.
    core.set(&steady(Direction::End, 1, 11, 2, 1, clock(1)), at(1))
        .unwrap();
    assert!(
        core.set(&steady(Direction::End, 1, 10, 2, 1, clock(1)), at(1))
            .is_err()
    );
    let state = core.state(at(1));
    assert_eq!(
        (state.mark, state.latch),
        (Some(rollout("a")), Some(version(1)))
    );
    core.set(&steady(Direction::End, 1, 12, 2, 1, clock(1)), at(1))
        .unwrap();
    let state = core.state(at(1));
    assert_eq!((state.mark, state.latch), (None, None));
}

#[test]
fn a_forced_baseline_refuses_raises_of_every_rollout_and_accepts_the_rest() {
    let mut core = serving(25.0);
    core.force_baseline("page 4711", at(1));
    assert_eq!(points(&mut core, 1), 0);
    assert_eq!(core.state(at(1)).latch, Some(version(1)));
    let mut other = forward(1, 12, 9, 5.0, clock(1));
    for raise in [
        forward(1, 11, 2, 5.0, clock(1)),
        steady(Direction::Promote, 1, 11, 2, 2, clock(1)),
    ] {
        assert!(matches!(
            core.set(&raise, at(1)),
            Err(Refused::Latched { .. })
        ));
    }
    other.split.rollout = Some(rollout("b"));
    assert!(matches!(
        core.set(&other, at(1)),
        Err(Refused::Latched { .. })
    ));
    assert!(
        core.renew(position(1, 10), clock(1), at(1)).is_err(),
        "there is no share to renew"
    );
    core.set(&steady(Direction::Back, 1, 11, 2, 1, clock(1)), at(1))
        .unwrap();
    assert_eq!(core.state(at(1)).at, position(1, 11));
}

#[test]
fn routers_that_were_forced_during_a_promotion_agree_once_it_has_gone_back() {
    let (mut before, mut after) = (serving(100.0), serving(100.0));
    after
        .set(&steady(Direction::Promote, 1, 11, 2, 2, clock(1)), at(1))
        .unwrap();
    for core in [&mut before, &mut after] {
        core.force_baseline("page 4711", at(2));
        core.set(&steady(Direction::Back, 1, 12, 3, 1, clock(1)), at(2))
            .unwrap();
    }
    assert_eq!(before.state(at(2)).split, after.state(at(2)).split);
    assert_eq!(after.state(at(2)).split.baseline, version(1));
}

#[test]
fn forcing_the_baseline_twice_keeps_the_first_pin() {
    let mut core = serving(100.0);
    core.force_baseline("first", at(1));
    core.force_baseline("second", at(2));
    assert_eq!(core.state(at(2)).latch, Some(version(1)));
}

#[test]
fn orders_that_make_no_sense_are_refused() {
    let change = |f: fn(&mut Order)| {
        let mut order = forward(1, 11, 2, 5.0, clock(1));
        f(&mut order);
        serving(5.0).set(&order, at(1))
    };
    let malformed = |r: Result<(), Refused>| matches!(r, Err(Refused::Malformed(_)));
    assert!(
        malformed(change(|o| o.split.lease = None)),
        "a share that never lapses"
    );
    assert!(malformed(change(|o| o.split.candidate = None)));
    assert!(malformed(change(|o| o.split.rollout = None)));
    assert!(malformed(change(|o| o.direction = Direction::Back)));
    assert!(malformed(change(|o| o.direction = Direction::Promote)));
    assert!(malformed(change(|o| o.direction = Direction::End)));
    assert!(malformed(change(|o| o.split.control = share(96.0))));
    let format = change(|o| o.split.format = serde_json::from_str("\"2.0\"").unwrap());
    assert!(matches!(format, Err(Refused::Format(_))));
}

#[test]
fn a_first_split_with_a_share_starts_lapsed() {
    let mut core = RouterCore::new(BOOT, forward(1, 1, 4, 25.0, clock(0)).split);
    assert_eq!(points(&mut core, 0), 0);
    assert!(core.state(at(0)).lapsed);
    assert!(core.set(&forward(1, 2, 4, 25.0, clock(0)), at(0)).is_err());
    core.set(&forward(1, 2, 5, 25.0, clock(0)), at(0)).unwrap();
}

/// Anything that may arrive, in any order, late or twice.
#[derive(Debug, Clone)]
enum Event {
    Observe(u64),
    Set(Box<Order>),
    Renew(u64, u64, RouterClock),
    Force,
    Wait(u64),
    Restart,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let clocks =
        (BOOT..BOOT + 3, 0..200_000_u64).prop_map(|(boot, ms)| RouterClock { boot, at: at(ms) });
    let orders = (
        1..4_u64,
        0..12_u64,
        0..8_u64,
        0..3_usize,
        0..4_u8,
        clocks.clone(),
    )
        .prop_map(|(fence, seq, epoch, percent, direction, clock)| {
            let percent = [1.0, 25.0, 100.0][percent];
            let mut order = match direction {
                0 => forward(fence, seq, epoch, percent, clock),
                1 => steady(Direction::Promote, fence, seq, epoch, 2, clock),
                2 => steady(Direction::Back, fence, seq, epoch, 1, clock),
                _ => steady(Direction::End, fence, seq, epoch, 1, clock),
            };
            if seq >= 8 {
                order.split.rollout = Some(rollout("b"));
            }
            order
        });
    let event = prop_oneof![
        1 => (1..4_u64).prop_map(Event::Observe),
        8 => orders.prop_map(|o| Event::Set(Box::new(o))),
        3 => (1..4_u64, 0..12_u64, clocks).prop_map(|(f, s, c)| Event::Renew(f, s, c)),
        1 => Just(Event::Force),
        4 => (0..70_000_u64).prop_map(Event::Wait),
        1 => Just(Event::Restart),
    ];
    proptest::collection::vec(event, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// What must hold whatever arrives.
    #[test]
    fn safety(events in events()) {
        let (mut boot, mut now) = (BOOT, 0);
        let mut core = RouterCore::new(boot, first());
        // The largest clock reading of an acknowledged order or renewal, plus the lease.
        let mut bound = 0;
        for event in events {
            let before = core.clone().state(at(now));
            let raised = core.raised(at(now)).then_some(before.split.share);
            let mut ended = false;
            match &event {
                Event::Wait(ms) => now += ms,
                Event::Observe(f) => { let _ = core.observe(Fence::new(*f), at(now)); }
                Event::Set(order) => {
                    if core.set(order, at(now)).is_ok() && order.clock.boot == boot {
                        bound = bound.max(order.clock.at.as_millis() + 60_000);
                    }
                    ended = order.direction == Direction::End;
                }
                Event::Renew(f, s, clock) => {
                    if core.renew(position(*f, *s), *clock, at(now)).is_ok() {
                        bound = bound.max(clock.at.as_millis() + 60_000);
                    }
                }
                Event::Force => core.force_baseline("test", at(now)),
                Event::Restart => {
                    boot += 1;
                    core = RouterCore::restored(boot, core.record());
                }
            }
            let state = core.state(at(now));
            let share = core.raised(at(now)).then_some(state.split.share);
            prop_assert!(state.fence >= before.fence && state.at >= before.at && state.fence >= state.at.fence);
            prop_assert!(share.is_none() || now < bound, "a share without a lease");
            prop_assert!(share.is_none() || (state.latch.is_none() && state.mark != state.split.rollout));
            prop_assert!(share.is_none() || !state.lapsed);
            // Mark and latch go only with an end.
            prop_assert!(ended || before.latch.is_none() || state.latch == before.latch);
            prop_assert!(ended || before.mark.is_none() || state.mark.is_some());
            if share > raised {
                let Event::Set(order) = &event else { return Err(TestCaseError::fail("raised by something else")) };
                prop_assert!(order.direction == Direction::Forward && order.at > before.at && order.clock.boot == boot);
                prop_assert!(!before.lapsed || order.split.epoch > before.split.epoch);
            }
            if state.split.baseline != before.split.baseline {
                let Event::Set(order) = &event else { return Err(TestCaseError::fail("another baseline")) };
                prop_assert!(order.at > before.at);
                prop_assert!(order.direction != Direction::Promote || before.latch.is_none());
            }
        }
    }
}

#[test]
fn the_most_that_an_order_may_hold_is_taken_and_no_more() {
    let taken = |change: &dyn Fn(&mut Split)| {
        let mut core = RouterCore::new(BOOT, first());
        let mut order = forward(1, 10, 1, 60.0, clock(0));
        change(&mut order.split);
        let answer = core.set(&order, at(0));
        assert!(
            matches!(answer, Ok(()) | Err(Refused::Malformed(_))),
            "{answer:?}"
        );
        answer.is_ok()
    };
    let raise = |candidate: f64, control: f64| Raise {
        before: at(0),
        share: share(candidate),
        control: share(control),
    };
    let ramp = |n| move |s: &mut Split| s.ramp = vec![raise(1.0, 1.0); n];
    let ahead = |n| move |s: &mut Split| s.ahead = vec![share(1.0); n];
    let epoch = |n| move |s: &mut Split| s.epoch = Epoch::new(n);
    assert!(taken(&ramp(Split::LONGEST_RAMP)) && !taken(&ramp(Split::LONGEST_RAMP + 1)));
    assert!(taken(&ahead(Split::MOST_AHEAD)) && !taken(&ahead(Split::MOST_AHEAD + 1)));
    let last = Decision::LAST_EPOCH;
    assert!(taken(&epoch(last)) && !taken(&epoch(last + 1)));
    let earlier = |sum| move |s: &mut Split| s.ramp = vec![raise(60.0, sum - 60.0)];
    assert!(taken(&earlier(100.0)) && !taken(&earlier(100.01)));
    let now = |sum: f64| move |s: &mut Split| s.control = share(sum - 60.0);
    assert!(taken(&now(100.0)) && !taken(&now(100.01)));
}

#[test]
fn a_lapsed_router_takes_a_promotion_in_its_epoch() {
    let mut core = serving(5.0);
    let late = 60_001;
    assert!(core.state(at(late)).lapsed);
    let again = forward(1, 11, 1, 5.0, clock(late));
    assert!(matches!(
        core.set(&again, at(late)),
        Err(Refused::Lapsed(_))
    ));
    let promote = steady(Direction::Promote, 1, 12, 1, 2, clock(late));
    core.set(&promote, at(late)).unwrap();
    let mut core = serving(5.0);
    // In force, the same epoch may go on.
    core.set(&forward(1, 11, 1, 5.0, clock(1)), at(1)).unwrap();
}
