//! What must hold in every life, whatever goes wrong. Each file is one invariant: what it says, and stories of the kinds that it
//! lets pass and catches.

mod acknowledged;
mod evidence;
mod fenced;
mod gap;
mod harm;
mod heard;
mod inforce;
pub(crate) mod justice;
mod latch;
mod lease;
mod log;
mod next;
mod noticed;
mod once;
mod promotion;
mod retirement;
mod rise;
mod share;
mod tampered;
mod terminal;

use crate::history::{History, Millis, Violation};

type Check = fn(&History) -> Result<(), Violation>;

const ALL: [Check; 20] = [
    terminal::check,
    log::check,
    fenced::check,
    share::check,
    rise::check,
    lease::check,
    latch::check,
    promotion::check,
    evidence::check,
    retirement::check,
    once::check,
    acknowledged::check,
    next::check,
    noticed::check,
    justice::check,
    gap::check,
    harm::check,
    heard::check,
    inforce::check,
    tampered::check,
];

/// Every invariant that does not hold, with where it first did not.
pub(crate) fn check(history: &History) -> Vec<Violation> {
    ALL.iter()
        .filter_map(|check| check(history).err())
        .collect()
}

fn violated<T>(
    invariant: &'static str,
    at: Millis,
    text: impl Into<String>,
) -> Result<T, Violation> {
    Err(Violation {
        invariant,
        at,
        text: text.into(),
    })
}

/// Stories made by hand.
#[cfg(test)]
mod tale {
    use crate::history::{Asked, Decided, Event, History, Route, Seen, What, Why};
    use llm_rollout::{Direction, Phase};

    pub(crate) fn history(events: Vec<(u64, What)>) -> History {
        let events = events.into_iter().map(|(at, what)| Event { at, what });
        History {
            events: events.collect(),
            drift: 0.02,
            lease: 12_000,
            routers: 1,
            replays: true,
            ..History::default()
        }
    }

    pub(crate) const BACK: Phase = Phase::RollingBack {
        part: llm_rollout::Recovery::Redirecting,
    };

    /// A step of rollout 1, which wants to replace version 1 by version 2.
    pub(crate) fn step(seq: u64, before: Phase, after: Phase) -> Decided {
        Decided {
            sent: 0,
            fence: 1,
            seq,
            rollout: 1,
            baseline: 1,
            candidate: 2,
            before,
            after,
            epoch: 1,
            route: None,
            why: Why::Other,
            dwell: 0,
            dwell_needed: 0,
            clock: 0,
            intents: vec![],
            done: vec![],
            failed: false,
            cause: None,
            settled: false,
            stranded: false,
        }
    }

    pub(crate) fn decided(step: Decided) -> What {
        What::Decided(Box::new(step))
    }

    pub(crate) fn forward(share: u16, epoch: u64) -> Route {
        Route {
            direction: Direction::Forward,
            baseline: 1,
            candidate: 2,
            share,
            epoch,
        }
    }

    pub(crate) fn leads(direction: Direction, baseline: u8) -> Route {
        Route {
            direction,
            baseline,
            candidate: 0,
            share: 0,
            epoch: 9,
        }
    }

    /// A router that serves version 1, and version 2 this share.
    pub(crate) fn seen(share: u16, epoch: u64) -> Seen {
        Seen {
            rollout: 1,
            baseline: 1,
            candidate: 2,
            share,
            epoch,
            ..Seen::default()
        }
    }

    pub(crate) fn saw(seen: Seen) -> What {
        What::Saw { router: 0, seen }
    }

    pub(crate) fn told(direction: Direction, sent: u64, seen: Seen) -> What {
        What::Told {
            router: 0,
            asked: Asked::Set(direction),
            fence: 1,
            seq: 1,
            rollout: 1,
            reading: sent,
            sent,
            seen,
        }
    }
}
