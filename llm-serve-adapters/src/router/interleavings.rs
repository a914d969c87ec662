//! What request threads see of a split while it is replaced, in every order of the threads.

use super::assign::{self, Secret};
use super::decision::{Decision, Role};
use super::key::Key;
use super::published::{Published, View};
use super::tests::{LEASE, at, first, forward, position};
use super::versions::VersionSlot;
use super::{InProcessRouter, Reason};
use crate::host::{Clock, TrafficRouter};
use crate::sync::{AtomicU64, Ordering, breaks, explore, superfluous};
use async_trait::async_trait;
use llm_rollout::{RouterId, Timestamp};
use loom::thread;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const KEY: &[u8] = b"a session's own id";

/// A split in which everything says its number: all to the candidate if it is odd, or to the baseline if it is even.
fn numbered(n: u16, deadline: u64) -> View {
    let all = u64::from(n % 2) * assign::END;
    View {
        candidate_below: all,
        control_from: assign::END,
        capped_from: assign::END,
        epoch: u64::from(n),
        deadline,
        salt: u64::from(n),
        baseline: VersionSlot::new(n),
        candidate: Some(VersionSlot::new(n)),
        mirror_below: all,
        forced: false,
        suspended_until: 0,
        ramp: Vec::new(),
        ahead: Vec::new(),
    }
}

fn check(decision: Decision, last: u64) -> u64 {
    let epoch = decision.epoch().get();
    assert_eq!(u64::from(decision.slot().index()), epoch);
    assert_eq!(decision.role() == Role::Candidate, epoch % 2 == 1);
    assert!(epoch >= last, "went back from {last} to {epoch}");
    epoch
}

/// A split is replaced while requests are decided.
fn replaced(decide: fn(&Published) -> Option<Decision>) {
    let published = Arc::new(Published::new(&numbered(1, 100)));
    let reader = Arc::clone(&published);
    let reader = thread::spawn(move || {
        let mut last = 0;
        for _ in 0..2 {
            if let Some(decision) = decide(&reader) {
                last = check(decision, last);
            }
        }
    });
    published.write(&numbered(2, 100));
    reader.join().unwrap();
    assert_eq!(decide(&published).map(|found| check(found, 0)), Some(2));
}

fn replaced_for_the_usual() {
    replaced(|published| published.assign(KEY, at(50)));
}

fn replaced_for_the_unusual() {
    replaced(|published| {
        let secret = Secret::new([7; 16]);
        published.decide(&Key::session(KEY).began(at(1)), at(50), 0, &secret)
    });
}

/// A split is replaced by another, and that one by a third, while a request is decided.
fn replaced_twice() {
    let published = Arc::new(Published::new(&numbered(1, 100)));
    let reader = Arc::clone(&published);
    let reader = thread::spawn(move || {
        let secret = Secret::new([7; 16]);
        if let Some(decision) = reader.decide(&Key::session(KEY).began(at(1)), at(50), 0, &secret) {
            check(decision, 1);
        }
    });
    published.write(&numbered(2, 100));
    published.write(&numbered(3, 100));
    reader.join().unwrap();
}

/// However long a writer takes, a request is served by the split before or after it.
fn replaced_slowly() {
    let published = Arc::new(Published::new(&numbered(1, 100)));
    let reader = Arc::clone(&published);
    let reader = thread::spawn(move || {
        let secret = Secret::new([7; 16]);
        let decision = reader.decide(&Key::session(KEY).began(at(1)), at(50), 0, &secret);
        check(decision.expect("nobody else writes"), 1);
    });
    published.write(&numbered(2, 100));
    reader.join().unwrap();
}

/// A lease has run out, and its split is replaced by one of the baseline alone, which needs none.
fn lapsed(decide: fn(&Published) -> Option<Decision>) {
    let published = Arc::new(Published::new(&numbered(1, 40)));
    let reader = Arc::clone(&published);
    let reader = thread::spawn(move || {
        if let Some(decision) = decide(&reader) {
            assert_eq!(decision.role(), Role::Baseline, "a lapsed share was served");
        }
    });
    published.write(&numbered(2, u64::MAX));
    reader.join().unwrap();
}

fn lapsed_for_the_usual() {
    lapsed(|published| published.assign(KEY, at(50)));
}

fn lapsed_for_the_unusual() {
    lapsed(|published| {
        let secret = Secret::new([7; 16]);
        published.decide(&Key::session(KEY).began(at(1)), at(50), 0, &secret)
    });
}

#[test]
fn a_request_sees_one_split_never_a_mixture_and_never_an_older_one() {
    explore(3, replaced_for_the_usual);
    explore(3, replaced_for_the_unusual);
    explore(3, replaced_twice);
}

#[test]
fn a_writer_that_takes_long_sends_nobody_elsewhere() {
    explore(3, replaced_slowly);
}

#[test]
fn no_request_is_served_by_a_lapsed_share() {
    explore(3, lapsed_for_the_usual);
    explore(3, lapsed_for_the_unusual);
}

/// Without any part of the sequence lock's order there is a way to a mixture.
#[test]
fn every_part_of_the_order_is_needed() {
    assert_eq!(superfluous(replaced_for_the_unusual), []);
    assert_eq!(superfluous(replaced_twice), []);
    assert_eq!(superfluous(lapsed_for_the_unusual), []);
    assert_eq!(superfluous(replaced_for_the_usual), []);
}

/// Two that replace a split at once: what the router's lock prevents.
#[test]
fn two_writers_at_once_are_found() {
    let model = || {
        let published = Arc::new(Published::new(&numbered(1, 100)));
        let other = Arc::clone(&published);
        let other = thread::spawn(move || other.write(&numbered(2, 100)));
        published.write(&numbered(3, 100));
        other.join().unwrap();
        let decision = published.assign(KEY, at(50));
        check(decision.unwrap(), 0);
    };
    assert!(breaks(model));
}

#[derive(Debug)]
struct Hand(AtomicU64);

#[async_trait]
impl Clock for Hand {
    fn now(&self) -> Timestamp {
        at(self.0.load(Ordering::Relaxed))
    }

    async fn sleep(&self, _: Duration) {}
}

fn at_once<T>(future: impl Future<Output = T>) -> T {
    let Poll::Ready(found) = pin!(future).poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("it waits");
    };
    found
}

/// The lease runs out while it is renewed and while a request is decided: either it has been renewed in time, or the share is
/// over for everybody.
#[test]
fn a_lease_is_renewed_or_has_lapsed() {
    let ends = u64::try_from(LEASE.as_millis()).unwrap();
    explore(2, move || {
        let clock = Arc::new(Hand(AtomicU64::new(0)));
        let builder = InProcessRouter::builder(RouterId::new("r").unwrap(), first());
        let router = builder
            .clock(Arc::clone(&clock) as _)
            .boot(1)
            .open()
            .unwrap();
        let router = Arc::new(router);
        let clocked = at_once(router.set(&forward(1, 1, 1, 100.0, router.state().clock)));
        let mut clocked = clocked.unwrap().clock;
        // As of a reading shortly before the end.
        clocked.at = at(ends - 1);
        clock.0.store(ends - 1, Ordering::Relaxed);
        let renewing = Arc::clone(&router);
        let renewed =
            thread::spawn(move || at_once(renewing.renew(position(1, 1), clocked)).is_ok());
        let watching = Arc::clone(&router);
        let seen = thread::spawn(move || {
            clock.0.store(ends, Ordering::Relaxed);
            let state = watching.state();
            (state.lapsed, watching.decide(&Key::session(KEY), at(ends)))
        });
        let asking = Arc::clone(&router);
        let decided = thread::spawn(move || {
            let now = asking.now();
            (now, asking.decide(&Key::session(KEY), now))
        });
        let (renewed, (lapsed, after)) = (renewed.join().unwrap(), seen.join().unwrap());
        let (now, decision) = decided.join().unwrap();
        let served = |decision: Decision| decision.role() == Role::Candidate;
        if now >= at(ends) && served(decision) {
            assert!(renewed, "served after the lease");
        }
        if lapsed {
            assert!(!renewed, "what has lapsed was renewed");
            assert!(!served(after) && after.reason() != Reason::Busy);
        }
        let last = router.decide(&Key::session(KEY), at(ends));
        assert_eq!((served(last), router.state().lapsed), (renewed, !renewed));
    });
}
