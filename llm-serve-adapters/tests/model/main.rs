//! An exhaustive check of the rules that keep a rollout safe: every state that two controllers and two routers can reach
//! with the real machine (`llm_rollout::Rollout`) and the real router rules (`RouterCore`), while requests are lost, late or
//! doubled, appends are in doubt, store, controllers and routers fail, and people abort, force and promote.
//!
//! The controller is written again, small, after `src/controller.rs`: each of its steps can be interrupted, and all of its
//! state compared. With all rules nothing is ever broken; without any one of them something is, in as few steps as possible.
//!
//! Time has no limit: only differences of a router's clock readings matter, so clocks are put back, and may run at any rates.
//! A controller's deadlines may have passed at any moment. How long renewals go on without a store (the grace) is not modelled:
//! they may always go on. Nor are all faults of routers without a memory: they forget the fence and a forced baseline, so that
//! until the newest controller has read such a router back, an older one may still be obeyed, for a lease.
//!
//! | to find | look in |
//! |---|---|
//! | what may be missing | `rules.rs` |
//! | what must hold | `broken.rs` |
//! | what can happen | `world.rs` |
//! | what a controller does about it | `controller.rs` |
//! | how the real code is called | `kit.rs`, `router.rs` |
//! | how states are found, and traces told | `explore.rs` |

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![expect(
    clippy::print_stdout,
    reason = "what was explored is part of the result"
)]

mod broken;
mod controller;
mod explore;
mod kit;
mod router;
mod rules;
mod world;

use broken::Broken;
use explore::{Found, explore};
use rules::{Rule, Rules};
use std::collections::BTreeSet;
use std::sync::Mutex;
use world::{FAULTS, Fault, Limits};

/// Every kind of fault but a second controller, which multiplies the states by ten.
const ALONE: &[Fault] = &[
    Fault::Crash,
    Fault::Loss,
    Fault::Late,
    Fault::Doubt,
    Fault::Outage,
    Fault::Restart,
    Fault::Abort,
    Fault::Force,
    Fault::PromoteNow,
    Fault::OldVerdict,
    Fault::Deadline,
    Fault::Unservable,
];

/// Explores each of these worlds with all rules, on two threads; nothing is broken. From one state in `every` on it is shown
/// that it ends once faults stop. Returns what has been seen.
fn nothing_breaks(
    worlds: &[(&str, Limits)],
    most: usize,
    every: u64,
    exhausts: bool,
) -> BTreeSet<&'static str> {
    let next = Mutex::new(worlds.iter());
    let seen = Mutex::new(BTreeSet::new());
    let work = || {
        loop {
            let Some((name, limits)) = next.lock().expect("no panic").next() else {
                return;
            };
            let found = explore(Rules::all(), None, limits, most, every);
            println!("{name}: {found}");
            assert_eq!(found.broken.map(|b| b.0), None, "{name}");
            assert!(
                found.exhausted || !exhausts,
                "{name} has more states than {most}"
            );
            seen.lock().expect("no panic").extend(found.sights);
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        work();
        other.join().expect("nothing breaks");
    });
    seen.into_inner().expect("no panic")
}

/// What must have been seen for an exploration to mean anything: the ends, and each safeguard at work.
const SIGHTS: &[&str] = &[
    "abort acknowledged",
    "backend retired",
    "baking",
    "behind the log",
    "binding doubt",
    "blocked",
    "doubt",
    "fence installed",
    "gone back without the log",
    "lapse survived",
    "lapsed",
    "late request",
    "latch",
    "mark",
    "promoted",
    "restarted",
    "rolled back",
    "router ahead of the log",
    "settled",
    "store down",
];

#[test]
fn with_all_rules_nothing_breaks() {
    let worlds = [(
        "one fault of any kind, one controller at a time",
        Limits::of(1, ALONE),
    )];
    let seen = nothing_breaks(&worlds, usize::MAX, 32, true);
    assert!(
        SIGHTS.iter().all(|sight| seen.contains(sight)),
        "only {seen:?}"
    );
}

#[test]
#[ignore = "a minute: .ci/steps/model"]
fn with_all_rules_nothing_breaks_in_seven_million_states() {
    let worlds = [
        (
            "a second controller and an abort",
            Limits {
                fails: false,
                ..Limits::of(2, &[Fault::Takeover, Fault::Abort])
            },
        ),
        ("two faults, one controller at a time", Limits::of(2, ALONE)),
        ("one fault of any kind", Limits::of(1, FAULTS)),
        (
            "routers without a memory",
            Limits {
                forgetful: true,
                ..Limits::of(3, &[Fault::Outage, Fault::Crash, Fault::Restart])
            },
        ),
        (
            "two rollouts in a row",
            Limits {
                rollouts: 2,
                ..Limits::of(1, ALONE)
            },
        ),
        (
            "two stages",
            Limits {
                stages: 2,
                ..Limits::of(1, ALONE)
            },
        ),
    ];
    let seen = nothing_breaks(&worlds, usize::MAX, 16, true);
    let more = ["fenced out", "second rollout", "second stage"];
    assert!(
        SIGHTS.iter().chain(&more).all(|sight| seen.contains(sight)),
        "only {seen:?}"
    );
}

#[test]
#[ignore = "ten minutes: .ci/long model"]
fn with_all_rules_nothing_breaks_in_many_million_states() {
    let second = |faults, kinds| Limits {
        fails: false,
        ..Limits::of(faults, kinds)
    };
    let worlds = [
        (
            "three faults, one controller at a time",
            Limits::of(3, ALONE),
        ),
        (
            "two rollouts in a row, two faults",
            Limits {
                rollouts: 2,
                ..Limits::of(2, ALONE)
            },
        ),
        (
            "two stages, two faults",
            Limits {
                stages: 2,
                ..Limits::of(2, ALONE)
            },
        ),
        (
            "a second controller and a loss",
            second(2, &[Fault::Takeover, Fault::Loss]),
        ),
        (
            "a second controller and a late request",
            second(2, &[Fault::Takeover, Fault::Late]),
        ),
        (
            "a second controller and an outage",
            Limits::of(2, &[Fault::Takeover, Fault::Outage]),
        ),
        (
            "a second controller and a doubt",
            second(2, &[Fault::Takeover, Fault::Doubt]),
        ),
        (
            "a second controller and a restart",
            second(2, &[Fault::Takeover, Fault::Restart]),
        ),
        (
            "a second controller and a forced baseline",
            second(2, &[Fault::Takeover, Fault::Force]),
        ),
        (
            "a second controller in two rollouts",
            Limits {
                rollouts: 2,
                ..second(1, &[Fault::Takeover])
            },
        ),
        ("two faults of any kind", Limits::of(2, FAULTS)),
    ];
    nothing_breaks(&worlds, 30_000_000, 64, false);
}

/// A rule, and the smallest world in which its absence does harm.
#[derive(Debug, Clone, Copy)]
struct Missing {
    rule: Rule,
    limits: Limits,
    broken: Broken,
}

const fn missing(rule: Rule, faults: u8, kinds: &'static [Fault], broken: Broken) -> Missing {
    // Time is unbounded, but for routers whose clock has lost its meaning.
    let ticks = match rule {
        Rule::OwnReading | Rule::OwnBoot | Rule::Lapses => 4,
        _ => 0,
    };
    Missing {
        rule,
        limits: Limits {
            ticks,
            fails: false,
            ..Limits::of(faults, kinds)
        },
        broken,
    }
}

impl Missing {
    /// Verdicts may be that the candidate harms.
    const fn or_harms(mut self) -> Self {
        self.limits.fails = true;
        self
    }

    /// Two rollouts in a row.
    const fn twice(mut self) -> Self {
        self.limits.rollouts = 2;
        self
    }

    /// Routers remember nothing over a restart.
    const fn forgetful(mut self) -> Self {
        self.limits.forgetful = true;
        self
    }

    const fn in_stages(mut self) -> Self {
        self.limits.stages = 2;
        self
    }

    fn explored(&self) -> Found {
        explore(
            Rules::without(self.rule),
            Some(self.broken),
            &self.limits,
            1_000_000,
            1,
        )
    }
}

/// What each rule is good for.
///
/// Not in the list, because another rule covers for it here: the "not lapsed" of rule 8 (a lapsed share never comes back in its
/// epoch, and rule 9's read-back shows it); a controller going back because a router is ahead of the log (whatever runs ahead of
/// the log is marked, too); rule 13's equal pins at promotion (no router confirms under a latch that refuses).
/// Of rule 11 the number of lapses, and of rule 13 that a latch lets the way back pass, are bounds: the first is shown as such, the
/// second as a rollout that never ends.
const MISSING: &[Missing] = &[
    missing(
        Rule::AcquiresBeforeReading,
        1,
        &[Fault::Takeover],
        Broken::OutOfService,
    ),
    missing(
        Rule::OnlyNewestAppends,
        2,
        &[Fault::Takeover, Fault::Abort],
        Broken::Forgotten,
    ),
    missing(
        Rule::ReadsBackFirst,
        2,
        &[Fault::Takeover, Fault::Force],
        Broken::Deaf,
    ),
    missing(
        Rule::UnreachableBlocks,
        3,
        &[Fault::Crash, Fault::Force, Fault::Loss],
        Broken::Deaf,
    ),
    missing(Rule::InstallsFence, 1, &[Fault::Takeover], Broken::Outlives),
    missing(Rule::LoggedFirst, 1, &[Fault::Doubt], Broken::Undecided),
    missing(
        Rule::DoubtStops,
        2,
        &[Fault::Doubt, Fault::Abort],
        Broken::Disowned,
    ),
    missing(
        Rule::FreshAfterDoubt,
        2,
        &[Fault::Doubt, Fault::Force, Fault::Restart],
        Broken::Ungated,
    ),
    missing(Rule::RefusesOlder, 2, &[Fault::Late], Broken::OutOfService),
    missing(
        Rule::EqualRaisesNothing,
        2,
        &[Fault::Late, Fault::Loss],
        Broken::Gap,
    ),
    missing(
        Rule::SetsMark,
        2,
        &[Fault::Outage, Fault::Takeover],
        Broken::Rises,
    )
    .or_harms(),
    missing(
        Rule::MarkRefuses,
        2,
        &[Fault::Outage, Fault::Takeover],
        Broken::Rises,
    )
    .or_harms(),
    missing(
        Rule::SeenGoesBack,
        2,
        &[Fault::Crash, Fault::Force],
        Broken::Deaf,
    ),
    missing(
        Rule::BoundIsLoggedFirst,
        2,
        &[Fault::Abort, Fault::Doubt],
        Broken::OutOfService,
    ),
    missing(
        Rule::UnloggedBackHolds,
        3,
        &[Fault::Abort, Fault::Outage, Fault::Loss],
        Broken::Outlives,
    ),
    missing(
        Rule::Persists,
        3,
        &[Fault::Outage, Fault::Crash, Fault::Restart],
        Broken::Rises,
    )
    .or_harms(),
    missing(
        Rule::ForgottenGoesBack,
        3,
        &[Fault::Outage, Fault::Crash, Fault::Restart],
        Broken::Deaf,
    )
    .or_harms()
    .forgetful(),
    missing(
        Rule::UnreachableUnconfirmed,
        2,
        &[Fault::Loss],
        Broken::OutOfService,
    ),
    missing(Rule::OwnEpoch, 1, &[Fault::OldVerdict], Broken::Ungated).in_stages(),
    missing(
        Rule::WindowAfterConfirmation,
        1,
        &[Fault::OldVerdict],
        Broken::Ungated,
    ),
    missing(
        Rule::ReadBackAfterVerdict,
        1,
        &[Fault::Force, Fault::Restart],
        Broken::Ungated,
    ),
    missing(Rule::BaselineAfterPromotion, 1, &[], Broken::OutOfService),
    missing(
        Rule::CandidateAfterBack,
        1,
        &[Fault::Loss],
        Broken::OutOfService,
    )
    .or_harms(),
    missing(
        Rule::RetirementsOrdered,
        1,
        &[Fault::Late],
        Broken::OutOfService,
    )
    .twice(),
    missing(
        Rule::NeededIsNotRetired,
        1,
        &[Fault::Crash],
        Broken::OutOfService,
    )
    .twice(),
    missing(Rule::Lapses, 1, &[Fault::Crash], Broken::Outlives),
    missing(Rule::LapsedRefusesRenewal, 1, &[Fault::Loss], Broken::Gap),
    missing(Rule::LapseIsNoticed, 1, &[Fault::Loss], Broken::Ungated),
    missing(Rule::LapsesBounded, 1, &[], Broken::TooManyLapses),
    missing(Rule::OwnReading, 1, &[Fault::Loss], Broken::Outlives),
    missing(
        Rule::OwnBoot,
        2,
        &[Fault::Restart, Fault::Late],
        Broken::Outlives,
    ),
    missing(
        Rule::LatchDurable,
        2,
        &[Fault::Force, Fault::Restart],
        Broken::Unforced,
    ),
    missing(Rule::LatchRefuses, 1, &[Fault::Force], Broken::Rises),
    missing(Rule::LatchAcceptsBack, 1, &[Fault::Force], Broken::Stuck),
    missing(
        Rule::AckAfterAcceptance,
        2,
        &[Fault::Abort, Fault::Crash],
        Broken::Forgotten,
    ),
    missing(
        Rule::NextFromConfirmedEnd,
        2,
        &[Fault::Late, Fault::Force],
        Broken::Unforced,
    )
    .twice(),
    missing(
        Rule::FencedStops,
        2,
        &[Fault::Takeover, Fault::Loss],
        Broken::Outlives,
    ),
];

#[test]
fn without_any_rule_something_breaks() {
    for missing in MISSING {
        let found = missing.explored();
        println!("without {:?}: {found}", missing.rule);
        assert_eq!(
            found.broken.map(|b| b.0),
            Some(missing.broken),
            "without {:?}",
            missing.rule
        );
        // The same world with the rule: it is the rule that makes the difference.
        let limits = Limits {
            ticks: 0,
            ..missing.limits
        };
        let found = explore(Rules::all(), Some(missing.broken), &limits, 5_000, 1);
        assert_eq!(found.broken.map(|b| b.0), None, "with {:?}", missing.rule);
    }
}
