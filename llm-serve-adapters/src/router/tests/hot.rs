//! Who is served by what: stickiness, monotonicity, shares, pins, keyless requests.

use super::durable::Virtual;
use super::*;
use crate::host::TrafficRouter;
use crate::router::{Decision, InProcessRouter, Key, Pin, Reason, Role, Secret, VersionSlot};
use llm_rollout::{Raise, RouterId};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

fn router_without_rollout() -> InProcessRouter {
    InProcessRouter::builder(RouterId::new("r1").unwrap(), first())
        .clock(Arc::<Virtual>::default())
        .open()
        .unwrap()
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

/// A router with this split in force.
fn with(share_points: u16, control_points: u16, salt: u64) -> InProcessRouter {
    let router = router_without_rollout();
    let mut order = forward(1, 1, 1, 0.0, router.state().clock);
    order.split.share = Share::new(share_points).unwrap();
    order.split.control = Share::new(control_points).unwrap();
    order.split.salt = salt;
    block(router.set(&order)).unwrap();
    router
}

#[test]
fn shares_are_what_was_ordered() {
    let router = with(500, 500, 3);
    let mut counts = [0_u32; 3];
    for i in 0..100_000 {
        let decision = router.decide(&Key::session(format!("session-{i}").as_bytes()), at(0));
        assert_eq!(
            (decision.reason(), decision.epoch(), decision.randomised()),
            (Reason::Assigned, Epoch::new(1), true)
        );
        assert!(decision.controlled());
        let id = decision.version().unwrap().id();
        assert_eq!(
            **id,
            version(if decision.role() == Role::Candidate {
                2
            } else {
                1
            })
        );
        counts[Role::ALL
            .iter()
            .position(|r| *r == decision.role())
            .unwrap()] += 1;
    }
    // Expected 5,000, standard deviation 69.
    assert!(
        (4_700..5_300).contains(&counts[1]) && (4_700..5_300).contains(&counts[2]),
        "{counts:?}"
    );
}

#[test]
fn everything_is_everything() {
    let router = with(10_000, 0, 3);
    for i in 0..10_000_u32 {
        assert_eq!(
            router.decide(&Key::session(&i.to_le_bytes()), at(0)).role(),
            Role::Candidate
        );
        assert_eq!(
            router.decide(&Key::keyless(), at(0)).role(),
            Role::Candidate
        );
    }
}

#[test]
fn keyless_requests_are_spread_and_counted() {
    let router = with(2_500, 0, 3);
    let candidates = (0..40_000).filter(|_| {
        let decision = router.decide(&Key::keyless(), at(0));
        assert_eq!(
            (decision.reason(), decision.randomised()),
            (Reason::Keyless, true)
        );
        decision.role() == Role::Candidate
    });
    // Expected 10,000, standard deviation 87.
    assert!((9_600..10_400).contains(&candidates.count()));
    assert_eq!(router.keyless(), 40_000);
}

#[test]
fn no_two_requests_without_a_key_get_the_same_number() {
    let router = router_without_rollout();
    let numbers: Mutex<BTreeSet<u64>> = Mutex::default();
    let many = || (0..100).map(|_| router.keyless.chance());
    std::thread::scope(|threads| {
        // More than there are places to count in.
        for _ in 0..20 {
            threads.spawn(|| numbers.lock().unwrap().extend(many()));
        }
    });
    assert_eq!(numbers.lock().unwrap().len(), 2_000);
    assert_eq!(router.keyless(), 2_000);
}

#[test]
fn pins_are_obeyed_and_are_no_evidence() {
    let router = with(1, 0, 3);
    for i in 0..100_u32 {
        let key = i.to_le_bytes();
        for (pin, role) in [
            (Pin::Candidate, Role::Candidate),
            (Pin::Baseline, Role::Baseline),
        ] {
            let decision = router.decide(&Key::session(&key).pinned(pin), at(0));
            assert_eq!(
                (decision.role(), decision.reason(), decision.randomised()),
                (role, Reason::Pinned, false)
            );
        }
        assert!(
            !router
                .decide(&Key::session(&key).apart(), at(0))
                .randomised()
        );
    }
    // Before the candidate serves anybody there is none to be pinned to.
    for idle in [router_without_rollout(), with(0, 0, 3)] {
        let decision = idle.decide(&Key::session(b"k").pinned(Pin::Candidate), at(0));
        assert_eq!(decision.role(), Role::Baseline);
        assert_eq!(**decision.version().unwrap().id(), version(1));
    }
}

#[test]
fn a_decision_keeps_its_version_when_the_split_changes() {
    let router = with(10_000, 0, 3);
    let decision = router.decide(&Key::session(b"k"), at(0));
    let clock = router.state().clock;
    block(router.set(&steady(Direction::Back, 1, 2, 2, 1, clock))).unwrap();
    for n in 0..300 {
        let split = Split::steady(Some(rollout("a")), version(n), Epoch::new(3));
        let order = Order {
            at: position(1, 3 + u64::from(n)),
            direction: Direction::End,
            split,
            clock,
        };
        block(router.set(&order)).unwrap();
    }
    assert_eq!(**decision.version().unwrap().id(), version(2));
}

/// A router in whose rollout the share rose from 1 to 5 to 25 %, at these times.
fn ramped(control: u16) -> InProcessRouter {
    let router = router_without_rollout();
    let mut order = forward(1, 1, 1, 25.0, router.state().clock);
    order.split.control = Share::new(control).unwrap();
    let raise = |ms, points| Raise {
        before: at(ms),
        share: Share::new(points).unwrap(),
        control: Share::new(control.min(points)).unwrap(),
    };
    order.split.ramp = vec![raise(1_000, 0), raise(2_000, 100), raise(3_000, 500)];
    block(router.set(&order)).unwrap();
    router
}

#[test]
fn a_conversation_keeps_the_version_that_it_began_with() {
    for control in [0, 500] {
        let router = ramped(control);
        let mut share = [0_u32; 4];
        for i in 0..20_000_u32 {
            let key = i.to_le_bytes();
            let begun = [500, 1_500, 2_999, 3_000].map(|ms| {
                let decision = router.decide(&Key::session(&key).began(at(ms)), at(0));
                assert_eq!(decision.reason(), Reason::Assigned);
                assert_eq!(decision.randomised(), ms >= 3_000 || control > 0);
                decision.role()
            });
            for (n, role) in share.iter_mut().zip(begun) {
                *n += u32::from(role == Role::Candidate);
            }
            // Those who began later are in wherever the earlier are, and the newest are as if nothing was said.
            assert!(begun.is_sorted_by_key(|role| *role == Role::Candidate));
            assert_eq!(begun[3], router.decide(&Key::session(&key), at(0)).role());
        }
        // Expected 0, 200, 1 000 and 5 000; standard deviations 14, 31 and 61.
        assert!(share[0] == 0 && (140..260).contains(&share[1]), "{share:?}");
        assert!(
            (860..1_140).contains(&share[2]) && (4_700..5_300).contains(&share[3]),
            "{share:?}"
        );
    }
}

#[test]
fn a_conversation_goes_back_with_everybody() {
    let router = ramped(0);
    let clock = router.state().clock;
    block(router.set(&steady(Direction::Back, 1, 2, 2, 1, clock))).unwrap();
    let all = (0..1_000_u32).map(u32::to_le_bytes);
    for key in all {
        let key = Key::session(&key).began(at(2_500));
        assert_eq!(router.decide(&key, at(0)).role(), Role::Baseline);
    }
}

#[test]
fn untrusted_keys_are_assigned_by_the_secret() {
    let with_secret = |byte: u8| {
        let router = InProcessRouter::builder(RouterId::new("r1").unwrap(), first())
            .clock(Arc::<Virtual>::default())
            .secret(Secret::new([byte; 16]))
            .open()
            .unwrap();
        let order = forward(1, 1, 1, 50.0, router.state().clock);
        block(router.set(&order)).unwrap();
        Box::new(router)
    };
    let routers = [
        with_secret(1),
        with_secret(1),
        with_secret(2),
        Box::new(with(5_000, 0, 7)),
    ];
    let (mut same, mut like_trusted) = (0, 0);
    for i in 0..2_000_u32 {
        let key = i.to_le_bytes();
        let [a, b, other, unset] = routers.each_ref().map(|router| {
            let decision = router.decide(&Key::untrusted(&key), at(0));
            assert!(decision.randomised());
            decision.role()
        });
        assert_eq!(a, b);
        same += u32::from(a == other) + u32::from(a == unset);
        like_trusted += u32::from(a == routers[0].decide(&Key::session(&key), at(0)).role());
    }
    // Expected 2 000 of 4 000 and 1 000 of 2 000, standard deviations 32 and 22.
    assert!(
        (1_850..2_150).contains(&same) && (900..1_100).contains(&like_trusted),
        "{same} {like_trusted}"
    );
}

#[test]
fn slices_are_told_while_the_baseline_serves_everybody() {
    let router = router_without_rollout();
    let mut order = forward(1, 1, 1, 0.0, router.state().clock);
    order.split.ahead = [100, 2_500, 10_000]
        .map(|points| Share::new(points).unwrap())
        .into();
    block(router.set(&order)).unwrap();
    let later = [with(100, 100, 7), with(2_500, 2_500, 7)];
    for i in 0..20_000_u32 {
        let key = i.to_le_bytes();
        let decision = router.decide(&Key::session(&key), at(0));
        assert_eq!(
            (decision.role(), decision.randomised()),
            (Role::Baseline, true)
        );
        let slice = decision.slice().unwrap();
        // Who is in a slice is in the share that it is named after, and in no smaller one.
        for (index, later) in later.iter().enumerate() {
            let role = later.decide(&Key::session(&key), at(0)).role();
            assert_eq!(
                role == Role::Candidate,
                slice.index() <= index && !slice.is_control()
            );
            assert_eq!(
                role == Role::Control,
                slice.index() <= index && slice.is_control()
            );
        }
        assert!(slice.index() < 2 || !slice.is_control());
    }
    assert_eq!(
        with(100, 0, 7).decide(&Key::session(b"k"), at(0)).slice(),
        None
    );
}

#[test]
fn a_cap_sends_those_back_who_came_in_last() {
    let router = with(2_000, 0, 7);
    let before = |points| with(points, 0, 7);
    router.cap(Share::from_percent(25.0).unwrap());
    let small = before(500);
    let mut capped = 0;
    for i in 0..20_000_u32 {
        let key = i.to_le_bytes();
        let decision = router.decide(&Key::session(&key), at(0));
        assert_eq!(
            decision.role(),
            small.decide(&Key::session(&key), at(0)).role()
        );
        if decision.reason() == Reason::Capped {
            assert_eq!(
                (decision.role(), decision.randomised()),
                (Role::Baseline, false)
            );
            capped += 1;
        }
    }
    // Expected 3 000, standard deviation 51.
    assert!((2_780..3_220).contains(&capped), "{capped}");
    router.cap(Share::ALL);
    let decisions = (0..1_000_u32).map(|i| router.decide(&Key::session(&i.to_le_bytes()), at(0)));
    assert!(
        decisions
            .into_iter()
            .all(|decision| decision.reason() == Reason::Assigned)
    );
}

#[test]
fn mirrored_sessions_are_a_share_of_their_own() {
    let router = router_without_rollout();
    let mut order = forward(1, 1, 1, 20.0, router.state().clock);
    order.split.mirror = Share::from_percent(10.0).unwrap();
    block(router.set(&order)).unwrap();
    let (mut mirrored, mut both) = (0, 0);
    for i in 0..50_000_u32 {
        let key = i.to_le_bytes();
        if let Some(slot) = router.mirror(&key, at(0)) {
            assert_eq!(**slot.version().unwrap().id(), version(2));
            mirrored += 1;
            both += u32::from(router.decide(&Key::session(&key), at(0)).role() == Role::Candidate);
        }
    }
    // Expected 5 000 and 1 000, standard deviations 67 and 31.
    assert!(
        (4_700..5_300).contains(&mirrored) && (860..1_140).contains(&both),
        "{mirrored} {both}"
    );
    assert_eq!(router.mirror(b"k", at(60_000)), None, "lapsed");
    // Mirroring alone serves nobody, and is leased too.
    let router = router_without_rollout();
    let mut order = forward(1, 1, 1, 0.0, router.state().clock);
    order.split.mirror = Share::ALL;
    block(router.set(&order)).unwrap();
    assert!(router.mirror(b"k", at(0)).is_some());
    let pinned = Key::session(b"k").pinned(Pin::Candidate);
    assert_eq!(router.decide(&pinned, at(0)).role(), Role::Baseline);
    assert_eq!(router.mirror(b"k", at(60_000)), None);
    router.force_baseline("page").unwrap();
    assert_eq!(router.mirror(b"k", at(0)), None);
}

#[test]
fn workers_are_filtered_by_the_version_that_was_decided() {
    let router = with(5_000, 0, 7);
    let slot = |n| VersionSlot::intern(&version(n)).unwrap();
    let workers = [
        ("a", slot(1)),
        ("b", slot(2)),
        ("c", slot(1)),
        ("d", slot(3)),
    ];
    let names = |decision: Decision| {
        let left = decision.filter(&workers, |(_, serves)| *serves);
        left.map(|(name, _)| *name).collect::<String>()
    };
    let decide = |pin| router.decide(&Key::session(b"k").pinned(pin), at(0));
    assert_eq!(names(decide(Pin::Baseline)), "ac");
    assert_eq!(names(decide(Pin::Candidate)), "b");
}

#[test]
fn keys_appear_in_no_output() {
    assert!(!format!("{:?}", Key::session(b"secret")).contains("secret"));
}

#[test]
fn decisions_while_the_split_changes_belong_to_one_split() {
    let router = router_without_rollout();
    let (done, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let decision = router.decide(&Key::session(b"k"), at(0));
                    // Odd epochs serve the candidate to all, even ones the baseline.
                    if decision.reason() != Reason::Busy {
                        assert_eq!(
                            decision.role() == Role::Candidate,
                            decision.epoch().get() % 2 == 1
                        );
                    }
                    let id = decision.version().unwrap().id();
                    assert_eq!(
                        **id,
                        version(if decision.role() == Role::Candidate {
                            2
                        } else {
                            1
                        })
                    );
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let clock = router.state().clock;
        let begun = std::time::Instant::now();
        let mut n = 1;
        while (n < 4_000 || seen.load(Ordering::Relaxed) < 1_000) && begun.elapsed().as_secs() < 30
        {
            block(router.set(&forward(1, n, n, 100.0, clock))).unwrap();
            block(router.set(&steady(Direction::End, 1, n + 1, n + 1, 1, clock))).unwrap();
            n += 2;
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(seen.into_inner() >= 1_000);
}

proptest! {
    #[test]
    fn the_same_key_goes_to_the_same_side_on_every_replica(
        key in proptest::collection::vec(any::<u8>(), 0..300), share in 0..=10_000_u16, salt in any::<u64>(),
    ) {
        let (one, two) = (with(share, 0, salt), with(share, 0, salt));
        let first = one.decide(&Key::session(&key), at(0)).role();
        prop_assert_eq!(one.decide(&Key::session(&key), at(1)).role(), first);
        prop_assert_eq!(two.decide(&Key::session(&key), at(2)).role(), first);
    }

    #[test]
    fn who_is_in_stays_in_as_the_share_grows(
        key in proptest::collection::vec(any::<u8>(), 0..40), shares in any::<(u16, u16)>(), salt in any::<u64>(),
    ) {
        let (a, b) = (shares.0 % 10_001, shares.1 % 10_001);
        let role = |points| with(points, 0, salt).decide(&Key::session(&key), at(0)).role();
        let (small, large) = (role(a.min(b)), role(a.max(b)));
        prop_assert!(small == Role::Baseline || large == Role::Candidate);
    }
}
