//! A bad candidate is not promoted by gates, and a good one goes back only for a cause that really was: in a life without
//! faults and operators a good candidate is promoted, and over many lives wrong verdicts are as rare as the plan says.

use super::violated;
use crate::history::{Decided, History, Number, Version, Violation, What, Why};
use llm_rollout::{Cause, Phase};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    let forced = |step: &Decided| matches!(step.cause, Some(Cause::Forced { .. }));
    let was_forced = history
        .events
        .iter()
        .any(|e| matches!(&e.what, What::Answered { verb, .. } if verb == "force_baseline"));
    for (at, step) in history
        .steps()
        .filter(|(_, step)| step.after.is_end() && !step.before.is_end())
    {
        let bad = history.bad[usize::from(step.candidate)];
        if history.quiet && !bad && step.after != Phase::Promoted && !may_go_back(step) {
            let text = format!(
                "nothing was wrong, and it is {} because of {:?}",
                step.after, step.cause
            );
            return violated("justice", at, text);
        }
        if forced(step) && !was_forced {
            return violated("justice", at, "nobody has forced the baseline");
        }
    }
    Ok(())
}

/// Causes for going back in a life in which nothing else is wrong than the version, or nothing at all: evidence errs with
/// probability alpha, and a version that turned bad late, or that fails before any exposure, is rightly sent back.
fn may_go_back(step: &Decided) -> bool {
    matches!(
        step.cause,
        Some(
            Cause::Gate { .. }
                | Cause::Concluded
                | Cause::PreFlight { .. }
                | Cause::Undecided { .. }
        )
    )
}

/// Verdicts over many lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Rollouts of good candidates that users saw, and those among them that gates sent back.
    good: u64,
    wrongly_back: u64,
    /// Rollouts of bad candidates that users saw, and those among them that gates let through.
    bad: u64,
    wrongly_promoted: u64,
}

pub(crate) fn tally(history: &History) -> Tally {
    let mut tally = Tally::default();
    let mut exposed: BTreeSet<Number> = BTreeSet::new();
    let mut by_hand: BTreeMap<Number, bool> = BTreeMap::new();
    for (_, step) in history.steps() {
        if step.route.is_some_and(|r| r.share > 0) {
            exposed.insert(step.rollout);
        }
        if matches!(&step.why, Why::Verb(verb) if verb == "skip" || verb == "promote_now") {
            by_hand.insert(step.rollout, true);
        }
        let ends = step.after.is_end() && !step.before.is_end();
        if !ends || !exposed.contains(&step.rollout) {
            continue;
        }
        let candidate: Version = step.candidate;
        if history.bad[usize::from(candidate)] {
            tally.bad += 1;
            let let_through = step.after == Phase::Promoted && !by_hand.contains_key(&step.rollout);
            tally.wrongly_promoted += u64::from(let_through);
        } else {
            tally.good += 1;
            tally.wrongly_back += u64::from(matches!(step.cause, Some(Cause::Gate { .. })));
        }
    }
    tally
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.good += other.good;
        self.wrongly_back += other.wrongly_back;
        self.bad += other.bad;
        self.wrongly_promoted += other.wrongly_promoted;
    }

    /// Good ones include those that turn bad on the way, one in thirteen: together with alpha = 5 % at most 13 % go back. At most
    /// one bad one in a hundred gets through: two faults in five against two in a hundred stand out in thirty samples.
    pub(crate) fn verdict(&self) -> Result<(), String> {
        if self.good < 1_000 || self.bad < 300 {
            return Err(format!("too few lives to judge: {self:?}"));
        }
        if self.wrongly_back * 100 > self.good * 13 {
            return Err(format!("too many good candidates went back: {self:?}"));
        }
        if self.wrongly_promoted * 100 > self.bad {
            return Err(format!("too many bad candidates were promoted: {self:?}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tale::{BACK, decided, history, step};
    use super::*;
    use crate::world::MOST;

    fn ends(after: Phase, cause: Option<Cause>) -> History {
        let mut end = step(9, BACK, after);
        end.cause = cause;
        History {
            quiet: true,
            ..history(vec![(1, decided(end))])
        }
    }

    #[test]
    fn going_back_without_a_cause_is_caught() {
        assert!(check(&ends(Phase::Promoted, None)).is_ok());
        let drifted = || {
            Some(Cause::Drifted {
                router: "x".to_owned(),
            })
        };
        assert!(check(&ends(Phase::RolledBack, drifted())).is_err());
        let bad = History {
            bad: [true; MOST + 2],
            ..ends(Phase::RolledBack, drifted())
        };
        assert!(check(&bad).is_ok());
        let forced = Some(Cause::Forced {
            router: "x".to_owned(),
        });
        let loud = |cause| History {
            quiet: false,
            ..ends(Phase::RolledBack, cause)
        };
        assert!(check(&loud(drifted())).is_ok());
        assert!(check(&loud(forced)).is_err());
    }

    #[test]
    fn too_many_wrong_verdicts_are_caught() {
        let fair = Tally {
            good: 10_000,
            wrongly_back: 900,
            bad: 1_000,
            wrongly_promoted: 9,
        };
        assert!(fair.verdict().is_ok());
        assert!(
            Tally {
                wrongly_back: 1_400,
                ..fair
            }
            .verdict()
            .is_err()
        );
        assert!(
            Tally {
                wrongly_promoted: 11,
                ..fair
            }
            .verdict()
            .is_err()
        );
        assert!(Tally { good: 10, ..fair }.verdict().is_err());
    }
}
