//! What happened in a life, as facts with a true time. Invariants read nothing else.

use crate::world::MOST;
use llm_rollout::{Cause, Direction, IntentId, Phase};

/// A version by its major number; 0 is none.
pub(crate) type Version = u8;
/// A rollout by its number, from 1; 0 is none.
pub(crate) type Number = u8;

/// True time, in milliseconds since the life began.
pub(crate) type Millis = u64;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) at: Millis,
    pub(crate) what: What,
}

/// A router as somebody outside sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) fence: u64,
    /// Position of the order in force: fence and number.
    pub(crate) order: (u64, u64),
    pub(crate) rollout: Number,
    pub(crate) baseline: Version,
    pub(crate) candidate: Version,
    /// Share of the candidate in basis points, as ordered.
    pub(crate) share: u16,
    pub(crate) epoch: u64,
    pub(crate) lapsed: bool,
    pub(crate) mark: Number,
    /// The version that is pinned.
    pub(crate) latch: Version,
}

impl Seen {
    /// What the candidate gets right now.
    pub(crate) fn live(&self) -> u16 {
        if self.lapsed { 0 } else { self.share }
    }
}

/// What a router was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Observe,
    Renew,
    Set(Direction),
}

/// A look that was decided upon.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is what one invariant asks"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Looked {
    pub(crate) epoch: u64,
    /// Window, by the controller's clock.
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) failed: bool,
    /// The candidate has answered nobody for as long as the plan allows.
    pub(crate) silent: bool,
    /// Every gate that the stage needs has passed.
    pub(crate) passed: bool,
    /// Candidate requests, and faults among them, since the rollout began.
    pub(crate) n: u64,
    pub(crate) k: u64,
    /// Candidate samples of the epoch, and how many the stage needs.
    pub(crate) samples: u64,
    pub(crate) needed: u64,
    /// Every router that was read back serves the split in force, under the fence of who looks.
    pub(crate) confirmed: bool,
}

/// What an intent does, and to which version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doing {
    Prepare(Version),
    Standby(Version),
    Retire(Version),
    Drain(Version),
    Notify,
    Other,
}

/// What a step is an answer to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Why {
    Look(Looked),
    Found,
    Verb(String),
    Other,
}

/// A logged step, with what was before.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decided {
    /// When it was sent to the store.
    pub(crate) sent: Millis,
    pub(crate) fence: u64,
    pub(crate) seq: u64,
    pub(crate) rollout: Number,
    pub(crate) baseline: Version,
    pub(crate) candidate: Version,
    pub(crate) before: Phase,
    pub(crate) after: Phase,
    /// Epoch in force before.
    pub(crate) epoch: u64,
    /// What the routers are told from here on, if that changes.
    pub(crate) route: Option<Route>,
    pub(crate) why: Why,
    /// Of the stage before: time with evidence, and how much of it the plan asks for; milliseconds.
    pub(crate) dwell: u64,
    pub(crate) dwell_needed: u64,
    /// By the controller's clock.
    pub(crate) clock: u64,
    pub(crate) intents: Vec<(IntentId, Doing)>,
    pub(crate) done: Vec<IntentId>,
    /// What is done has failed for good.
    pub(crate) failed: bool,
    pub(crate) cause: Option<Cause>,
    pub(crate) settled: bool,
    /// It would go back, and the baseline cannot serve.
    pub(crate) stranded: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) direction: Direction,
    pub(crate) baseline: Version,
    pub(crate) candidate: Version,
    pub(crate) share: u16,
    pub(crate) epoch: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum What {
    /// The store has given a process a new fence.
    Acquired {
        process: u32,
        fence: u64,
    },
    /// A process is gone.
    Died {
        process: u32,
    },
    /// A process was told that somebody newer owns the endpoint.
    Fenced {
        process: u32,
    },
    /// A process calls something outside; `order` is what it tells a router.
    Calls {
        process: u32,
        order: Option<Sent>,
    },
    /// The answer of an observation has reached its process.
    Heard {
        process: u32,
        router: usize,
        seen: Seen,
    },
    /// The store has taken an entry.
    Logged {
        process: u32,
        fence: u64,
        sent: Millis,
        seq: u64,
    },
    /// A process does not know whether what it has sent to the store is in the log. `binding`: after that there may be no way back
    /// beside the log.
    Unsure {
        process: u32,
        binding: bool,
    },
    /// A process has read the log.
    Read {
        process: u32,
    },
    /// A rollout begins to exist.
    Submitted {
        seq: u64,
        rollout: Number,
        baseline: Version,
        candidate: Version,
    },
    /// A step is in the log.
    Decided(Box<Decided>),
    /// A router has carried something out.
    Told {
        router: usize,
        asked: Asked,
        fence: u64,
        seq: u64,
        rollout: Number,
        /// True time at which the router's clock showed the reading that came with it.
        reading: Millis,
        /// When it was sent.
        sent: Millis,
        seen: Seen,
    },
    /// A router was looked at.
    Saw {
        router: usize,
        seen: Seen,
    },
    /// A router runs again.
    Booted {
        router: usize,
        seen: Seen,
    },
    /// A router does not run any more.
    Stopped {
        router: usize,
    },
    Forced {
        router: usize,
        seen: Seen,
    },
    /// Somebody has given a router another split by hand.
    Tampered {
        router: usize,
        seen: Seen,
    },
    /// Requests that a router gave a version.
    Served {
        router: usize,
        version: Version,
        candidate: bool,
        epoch: u64,
        n: u32,
    },
    /// The backend was told.
    Backend {
        process: u32,
        doing: Doing,
        fence: u64,
        seq: u64,
        accepted: bool,
    },
    /// People were told.
    Notified {
        process: u32,
        id: IntentId,
        text: u64,
    },
    /// An operator was answered.
    Answered {
        rollout: Number,
        verb: String,
        accepted: bool,
    },
    /// From here on nothing goes wrong any more.
    Calm,
    /// Every rollout is over, as the newest controller says.
    Settled,
    /// The time after which it should have been is over.
    Overdue,
}

/// A router is told to serve something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) router: usize,
    pub(crate) asked: Asked,
    pub(crate) fence: u64,
    pub(crate) seq: u64,
    pub(crate) rollout: Number,
}

/// A whole life.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct History {
    pub(crate) events: Vec<Event>,
    /// Largest relative error of any router's clock.
    pub(crate) drift: f64,
    pub(crate) lease: Millis,
    /// Routers that every controller registers; the others are within processes.
    pub(crate) routers: usize,
    /// Which of them forget everything when they start, and ask the store what to serve.
    pub(crate) volatile: Vec<bool>,
    /// Whether each version is one that should not be promoted.
    pub(crate) bad: [bool; MOST + 2],
    /// No fault was to happen, and no operator to act.
    pub(crate) quiet: bool,
    /// Whether the log replays to what the last controller knew.
    pub(crate) replays: bool,
    /// What requests showed in truth: by epoch and version, ended ones and faults.
    pub(crate) truth: Vec<(u64, Version, u64, u64)>,
}

impl History {
    pub(crate) fn is_volatile(&self, router: usize) -> bool {
        self.volatile.get(router).copied().unwrap_or(false)
    }

    pub(crate) fn steps(&self) -> impl Iterator<Item = (Millis, &Decided)> {
        self.events.iter().filter_map(|e| match &e.what {
            What::Decided(step) => Some((e.at, &**step)),
            _ => None,
        })
    }
}

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) invariant: &'static str,
    pub(crate) at: Millis,
    pub(crate) text: String,
}
