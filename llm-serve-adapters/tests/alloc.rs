//! The request path allocates nothing once a thread is warm. A binary of its own: it counts with a global allocator.
#![expect(clippy::unwrap_used, reason = "a test")]

use llm_rollout::{Direction, Epoch, Fence, Order, Position, RouterId, Seq, Share, Split};
use llm_serve_adapters::host::TrafficRouter;
use llm_serve_adapters::recorder::{OutcomeClass, Recorder};
use llm_serve_adapters::router::{InProcessRouter, Key, Pin, Role};
use llm_version_core::{Digest, Name, Version, VersionId};
use std::time::Duration;

fn version(n: u32) -> VersionId {
    VersionId::new(
        Name::new("chat").unwrap(),
        Version::new(n, 0, 0),
        Digest::of(&n.to_le_bytes()),
    )
}

fn router() -> InProcessRouter {
    let first = Split::steady(None, version(1), Epoch::new(0));
    let router = InProcessRouter::builder(RouterId::new("r1").unwrap(), first)
        .open()
        .unwrap();
    let split = Split {
        candidate: Some(version(2)),
        share: Share::from_percent(50.0).unwrap(),
        control: Share::from_percent(20.0).unwrap(),
        salt: 7,
        lease: Some(Duration::from_secs(600)),
        ..Split::steady(Some("a".parse().unwrap()), version(1), Epoch::new(1))
    };
    let at = Position {
        fence: Fence::new(1),
        seq: Seq::new(1),
    };
    let order = Order {
        at,
        direction: Direction::Forward,
        split,
        clock: router.state().clock,
    };
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(router.set(&order))
        .unwrap();
    router
}

#[test]
fn neither_deciding_nor_recording_allocates() {
    let router = router();
    let recorder = Recorder::new(["bad_format"]).unwrap();
    let now = router.now();
    let keys = (0..64)
        .map(|n| format!("018f3c2e-9b7a-7c31-8f10-2a6f1f0e7d{n:02}"))
        .collect::<Vec<_>>();
    let mut roles = [0; 3];
    let mut request = |key: &Key<'_>, n: u64| {
        let decision = router.decide(key, now);
        assert!(decision.version().is_some());
        roles[Role::ALL
            .iter()
            .position(|r| *r == decision.role())
            .unwrap()] += 1;
        let mut ticket = decision.begin(&recorder, now);
        ticket.first_token(now.after(Duration::from_millis(n)));
        ticket.tokens(17);
        ticket.flag("bad_format");
        match n % 3 {
            0 => ticket.finish(OutcomeClass::Ok, now.after(Duration::from_millis(2 * n))),
            1 => ticket.finish(OutcomeClass::Timeout, now),
            _ => drop(ticket),
        }
    };
    let mut all = || {
        for (key, n) in keys.iter().zip(0..) {
            request(&Key::session(key.as_bytes()), n);
            request(&Key::keyless(), n);
            request(&Key::session(key.as_bytes()).pinned(Pin::Candidate), n);
            request(&Key::session(key.as_bytes()).pinned(Pin::Baseline), n);
        }
    };
    for _ in 0..20 {
        all();
    }
    let counted = allocation_counter::measure(all);
    assert_eq!(counted.count_total, 0, "{counted:?}");
    assert!(roles.iter().all(|n| *n > 0), "{roles:?}");
}

#[test]
fn long_keys_do_not_allocate_either() {
    let (router, key) = (router(), vec![b'x'; 100_000]);
    let now = router.now();
    let counted = allocation_counter::measure(|| {
        std::hint::black_box(router.decide(&Key::session(&key), now));
    });
    assert_eq!(counted.count_total, 0);
}
