//! The properties, each by itself: what must never be so, and what must never happen.

use crate::controller::{order_of, over};
use crate::kit::{EntryId, Kit, LAPSES, Question};
use crate::world::{Controller, Router, World, bit};
use llm_rollout::{Direction, Phase};
use std::fmt;

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// A router serves a share, or a promoted version, that the log does not hold.
    Undecided,
    /// On a router that was told to go back, the candidate's share has risen.
    Rises,
    /// Who took over after a router had been told to go back tells another one to go forward.
    Deaf,
    /// The owner of the log goes forward where the log does not.
    Disowned,
    /// A stage has advanced, or the candidate was promoted, on a verdict about something else than what was served.
    Ungated,
    /// A router serves a version that is out of service.
    OutOfService,
    /// A share outlives its lease, counted from when a controller that may prolong it last heard the router.
    Outlives,
    /// A share that a router has lost has come back without a new epoch.
    Gap,
    /// The baseline was forced, and is not any more before the rollout's end.
    Unforced,
    /// An abort was acknowledged, and the candidate was promoted.
    Forgotten,
    /// An intent has taken effect twice.
    Twice,
    /// It goes forward after more lapses than the plan allows.
    TooManyLapses,
    /// Faults have stopped, and it does not end.
    Stuck,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Undecided => "a router serves what the log does not hold",
            Self::Rises => "the share rises on a router that was told to go back",
            Self::Deaf => "who took over after a router had been told to go back goes forward",
            Self::Disowned => "the owner of the log goes forward where the log does not",
            Self::Ungated => "it advances on a verdict about something else than what was served",
            Self::OutOfService => "a router serves a version that is out of service",
            Self::Outlives => "a share outlives its lease",
            Self::Gap => "a lost share comes back without a new epoch",
            Self::Unforced => "the baseline was forced and is not any more before the end",
            Self::Forgotten => "an acknowledged abort is forgotten",
            Self::Twice => "an intent takes effect twice",
            Self::TooManyLapses => "it goes on after more lapses than the plan allows",
            Self::Stuck => "faults have stopped and it does not end",
        })
    }
}

fn unless(kit: &Kit, holds: bool, broken: Broken) -> Result<(), Broken> {
    let watched = kit.watch.is_none_or(|only| only == broken);
    if holds || !watched {
        Ok(())
    } else {
        Err(broken)
    }
}

/// An intent takes effect.
pub(crate) fn takes_effect(kit: &Kit, took: u64, seq: u8) -> Result<u64, Broken> {
    unless(kit, took & 1 << seq == 0, Broken::Twice)?;
    Ok(took | 1 << seq)
}

/// What must hold in every state.
pub(crate) fn anywhere(kit: &mut Kit, world: &World) -> Result<(), Broken> {
    let log = kit.log(world.log);
    let (number, phase, lapses) = (log.number, log.phase, log.lapses);
    unless(kit, !goes_on_too_long(phase, lapses), Broken::TooManyLapses)?;
    unless(
        kit,
        !forgets(world.acknowledged, number, phase),
        Broken::Forgotten,
    )?;
    for router in &world.routers {
        let core = kit.core(router.core);
        let raised = kit.raised(router.core, router.now);
        let decided = kit.is_decided(world.log, router.core) || !(raised || core.share == 0);
        unless(kit, decided, Broken::Undecided)?;
        unless(
            kit,
            !raised || router.now < over(router.heard),
            Broken::Outlives,
        )?;
        let served = world.backend.loaded;
        unless(
            kit,
            is_served(
                served,
                core.baseline,
                if raised { core.candidate } else { 0 },
            ),
            Broken::OutOfService,
        )?;
        let forced = router.forced == number && number > 0 && !phase.is_end();
        unless(kit, !forced || core.latch, Broken::Unforced)?;
    }
    Ok(())
}

/// After the last lapse that the plan allows there is only the way back.
fn goes_on_too_long(phase: Phase, lapses: u32) -> bool {
    lapses >= LAPSES && phase.stage().is_some()
}

fn forgets(acknowledged: u8, number: u8, phase: Phase) -> bool {
    acknowledged & bit(number) != 0 && matches!(phase, Phase::Baking | Phase::Promoted)
}

fn is_served(loaded: [bool; 2], baseline: u8, candidate: u8) -> bool {
    let has = |v: u8| v == 0 || loaded[usize::from(v - 1)];
    has(baseline) && has(candidate)
}

/// What the candidate really gets here.
fn share(kit: &Kit, router: &Router, share: u16) -> u16 {
    if kit.raised(router.core, router.now) {
        share
    } else {
        0
    }
}

/// What must hold when a router has been asked something; notes what the properties need to know.
pub(crate) fn moved(
    kit: &Kit,
    before: &Router,
    after: &mut Router,
    question: Question,
) -> Result<(), Broken> {
    let (was, is) = (kit.core(before.core), kit.core(after.core));
    let had = share(kit, before, was.share);
    let has = share(kit, after, is.share);
    unless(
        kit,
        !(has > 0 && had == 0 && is.epoch <= before.lost),
        Broken::Gap,
    )?;
    // Somebody promotes it here who has been told to leave it here.
    let promoted = matches!(question, Question::Set(order) if kit.order(order).direction == Direction::Promote);
    let exposed = if promoted && is.baseline != was.baseline {
        10_000
    } else {
        has
    };
    unless(
        kit,
        !rises(before.told, is.number, had, exposed),
        Broken::Rises,
    )?;
    if had > 0 && has == 0 {
        after.lost = after.lost.max(was.epoch);
    }
    let back =
        order_of(question).is_some_and(|order| kit.order(order).direction == Direction::Back);
    if back && before.core != after.core {
        after.told |= bit(is.number);
    }
    Ok(())
}

fn rises(told: u8, number: u8, had: u16, has: u16) -> bool {
    number > 0 && told & bit(number) != 0 && has > had
}

/// What must hold when a controller tells a router something.
pub(crate) fn told(
    kit: &Kit,
    world: &World,
    own: &Controller,
    direction: Direction,
) -> Result<(), Broken> {
    if !matches!(direction, Direction::Forward | Direction::Promote) {
        return Ok(());
    }
    let (mine, theirs) = (kit.log(own.log), kit.log(world.log));
    unless(kit, own.warned & bit(mine.number) == 0, Broken::Deaf)?;
    let owner = own.fence == world.fence;
    unless(
        kit,
        !owner || (mine.number, mine.routed) == (theirs.number, theirs.routed),
        Broken::Disowned,
    )
}

/// What must hold when an entry gets into the log.
pub(crate) fn logged(kit: &Kit, _world: &World, entry: EntryId, clean: bool) -> Result<(), Broken> {
    unless(kit, clean || !kit.entry(entry).advances, Broken::Ungated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_property_tells_good_from_bad() {
        assert!(!goes_on_too_long(Phase::Soaking { stage: 0 }, LAPSES - 1));
        assert!(goes_on_too_long(Phase::Soaking { stage: 0 }, LAPSES));
        assert!(!forgets(bit(1), 2, Phase::Promoted));
        assert!(!forgets(bit(1), 1, Phase::RolledBack));
        assert!(forgets(bit(1), 1, Phase::Promoted));
        assert!(is_served([true, false], 1, 0));
        assert!(!is_served([true, false], 1, 2));
        assert!(!is_served([false, true], 1, 2));
        assert!(!rises(bit(1), 1, 1_000, 1_000));
        assert!(!rises(bit(1), 2, 0, 1_000));
        assert!(rises(bit(1), 1, 0, 1_000));
        assert_eq!(over(0), 0);
        assert_eq!(over(1), 2);
    }
}
