//! A stage is left forward only by passed gates - a verdict of the epoch in force, from a window opened after its confirmation,
//! with the plan's dwell and samples, while every router was what it should be - or by an operator who says so. No router makes
//! a candidate its baseline before that is logged.

use super::violated;
use crate::history::{Decided, History, Looked, Number, Version, Violation, What, Why};
use llm_rollout::{Cause, Direction, Phase};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    let mut confirmed: BTreeMap<Number, u64> = BTreeMap::new();
    let mut promoted: BTreeSet<Number> = BTreeSet::new();
    let mut candidates: BTreeMap<Number, Version> = BTreeMap::new();
    for event in &history.events {
        let (router, seen) = match &event.what {
            What::Decided(step) => {
                if let Phase::Shifting { .. } = step.before
                    && matches!(step.after, Phase::Soaking { .. } | Phase::Held { .. })
                {
                    confirmed.insert(step.rollout, step.clock);
                }
                let since = confirmed.get(&step.rollout).copied();
                if advances(step)
                    && let Err(why_not) = entitled(step, since)
                {
                    let text = format!("{} to {}: {why_not}", step.before, step.after);
                    return violated("promotion", event.at, text);
                }
                if step
                    .route
                    .is_some_and(|r| r.direction == Direction::Promote)
                {
                    promoted.insert(step.rollout);
                }
                continue;
            }
            What::Submitted {
                rollout, candidate, ..
            } => {
                candidates.insert(*rollout, *candidate);
                continue;
            }
            What::Told { router, seen, .. }
            | What::Saw { router, seen }
            | What::Booted { router, seen } => (*router, seen),
            _ => continue,
        };
        if candidates.get(&seen.rollout) == Some(&seen.baseline)
            && !promoted.contains(&seen.rollout)
        {
            let text = format!("router {router} has a baseline that was never promoted: {seen:?}");
            return violated("promotion", event.at, text);
        }
    }
    Ok(())
}

/// Whether a stage is left forward.
fn advances(step: &Decided) -> bool {
    let Some(stage) = step.before.stage() else {
        return false;
    };
    let concluded =
        matches!(step.after, Phase::RollingBack { .. }) && step.cause == Some(Cause::Concluded);
    concluded
        || step.after == Phase::Promoting
        || matches!(step.after, Phase::Shifting { stage: next } if next != stage)
}

fn entitled(step: &Decided, confirmed: Option<u64>) -> Result<(), String> {
    let look: Looked = match &step.why {
        Why::Look(look) => *look,
        Why::Verb(verb) if verb == "skip" || verb == "promote_now" => return Ok(()),
        other => return Err(format!("{other:?} lets nothing advance")),
    };
    let opened = confirmed.is_some_and(|at| look.from >= at);
    let holds = [
        (
            look.epoch == step.epoch,
            "its epoch is not the one in force",
        ),
        (!look.failed, "harm was found"),
        (look.passed, "a gate has not passed"),
        (look.samples >= look.needed, "samples are missing"),
        (
            step.dwell >= step.dwell_needed,
            "it has not lasted long enough",
        ),
        (look.confirmed, "a router was not what it should be"),
        (opened, "the window opened before the share was confirmed"),
    ];
    match holds.iter().find(|(holds, _)| !holds) {
        Some((_, why)) => Err(format!("{why} ({look:?})")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tale::{decided, history, leads, saw, seen, step};
    use super::*;
    use crate::history::Seen;

    const SOAKING: Phase = Phase::Soaking { stage: 0 };

    fn good() -> Looked {
        Looked {
            epoch: 1,
            from: 50,
            to: 80,
            failed: false,
            silent: false,
            passed: true,
            n: 10,
            k: 0,
            samples: 10,
            needed: 10,
            confirmed: true,
        }
    }

    fn story(why: Why, change: impl FnOnce(&mut Decided)) -> History {
        let mut confirmed = step(4, Phase::Shifting { stage: 0 }, SOAKING);
        confirmed.clock = 40;
        let mut promotes = step(5, SOAKING, Phase::Promoting);
        (promotes.why, promotes.dwell, promotes.dwell_needed) = (why, 10, 10);
        promotes.route = Some(leads(Direction::Promote, 2));
        change(&mut promotes);
        history(vec![(1, decided(confirmed)), (2, decided(promotes))])
    }

    #[test]
    fn only_a_verdict_that_counts_promotes() {
        assert!(check(&story(Why::Look(good()), |_| ())).is_ok());
        let bad: [fn(&mut Looked); 6] = [
            |l| l.epoch = 0,
            |l| l.failed = true,
            |l| l.passed = false,
            |l| l.samples = 9,
            |l| l.confirmed = false,
            |l| l.from = 39,
        ];
        for change in bad {
            let mut look = good();
            change(&mut look);
            assert!(check(&story(Why::Look(look), |_| ())).is_err(), "{look:?}");
        }
        assert!(check(&story(Why::Look(good()), |s| s.dwell = 9)).is_err());
        assert!(check(&story(Why::Found, |_| ())).is_err());
        assert!(check(&story(Why::Verb("approve".to_owned()), |_| ())).is_err());
        assert!(check(&story(Why::Verb("promote_now".to_owned()), |_| ())).is_ok());
    }

    #[test]
    fn a_baseline_that_was_never_promoted_is_caught() {
        let submitted = What::Submitted {
            seq: 1,
            rollout: 1,
            baseline: 1,
            candidate: 2,
        };
        let wrong = Seen {
            baseline: 2,
            ..seen(0, 9)
        };
        assert!(check(&history(vec![(1, submitted.clone()), (2, saw(wrong))])).is_err());
        let mut right = story(Why::Look(good()), |_| ());
        right
            .events
            .extend(history(vec![(1, submitted), (2, saw(wrong))]).events);
        assert!(check(&right).is_ok());
    }
}
