//! Who is served by what: stickiness, monotonicity, shares, pins, keyless requests.

use super::durable::Virtual;
use super::*;
use crate::host::TrafficRouter;
use crate::router::{InProcessRouter, Key, Pin, Reason, Role};
use llm_rollout::RouterId;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
            (decision.reason, decision.epoch, decision.randomised),
            (Reason::Assigned, Epoch::new(1), true)
        );
        assert!(decision.controlled);
        let id = decision.version.version().unwrap().id();
        assert_eq!(
            **id,
            version(if decision.role == Role::Candidate {
                2
            } else {
                1
            })
        );
        counts[Role::ALL.iter().position(|r| *r == decision.role).unwrap()] += 1;
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
            router.decide(&Key::session(&i.to_le_bytes()), at(0)).role,
            Role::Candidate
        );
        assert_eq!(router.decide(&Key::keyless(), at(0)).role, Role::Candidate);
    }
}

#[test]
fn keyless_requests_are_spread_and_counted() {
    let router = with(2_500, 0, 3);
    let candidates = (0..40_000).filter(|_| {
        let decision = router.decide(&Key::keyless(), at(0));
        assert_eq!(
            (decision.reason, decision.randomised),
            (Reason::Keyless, true)
        );
        decision.role == Role::Candidate
    });
    // Expected 10,000, standard deviation 87.
    assert!((9_600..10_400).contains(&candidates.count()));
    assert_eq!(router.keyless(), 40_000);
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
                (decision.role, decision.reason, decision.randomised),
                (role, Reason::Pinned, false)
            );
        }
        assert!(!router.decide(&Key::session(&key).apart(), at(0)).randomised);
    }
    let idle = router_without_rollout();
    assert_eq!(
        idle.decide(&Key::session(b"k").pinned(Pin::Candidate), at(0))
            .role,
        Role::Baseline
    );
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
    assert_eq!(**decision.version.version().unwrap().id(), version(2));
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
                    if decision.reason != Reason::Busy {
                        assert_eq!(
                            decision.role == Role::Candidate,
                            decision.epoch.get() % 2 == 1
                        );
                    }
                    let id = decision.version.version().unwrap().id();
                    assert_eq!(
                        **id,
                        version(if decision.role == Role::Candidate {
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
        let first = one.decide(&Key::session(&key), at(0)).role;
        prop_assert_eq!(one.decide(&Key::session(&key), at(1)).role, first);
        prop_assert_eq!(two.decide(&Key::session(&key), at(2)).role, first);
    }

    #[test]
    fn who_is_in_stays_in_as_the_share_grows(
        key in proptest::collection::vec(any::<u8>(), 0..40), shares in any::<(u16, u16)>(), salt in any::<u64>(),
    ) {
        let (a, b) = (shares.0 % 10_001, shares.1 % 10_001);
        let role = |points| with(points, 0, salt).decide(&Key::session(&key), at(0)).role;
        let (small, large) = (role(a.min(b)), role(a.max(b)));
        prop_assert!(small == Role::Baseline || large == Role::Candidate);
    }
}
