//! What an operator was told holds: a rollout whose abort was acknowledged is not promoted any more. It may be where the
//! baseline cannot serve: such an abort is logged, and waits for the baseline or for another word. What was on its way to the log
//! before the answer may still arrive; it leads nowhere. Where processes have no routers but their own, one that takes over while the
//! store cannot be reached asks no router that has heard of the abort.

use super::violated;
use crate::history::{Decided, History, Millis, Number, Violation, What, Why};
use llm_rollout::Phase;
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    let mut aborted: BTreeMap<Number, (Millis, u64)> = BTreeMap::new();
    let (mut shared, mut newest) = (false, 0);
    let mut stranded: BTreeSet<Number> = BTreeSet::new();
    for event in &history.events {
        match &event.what {
            What::Booted { .. } => shared = true,
            What::Acquired { fence, .. } => newest = newest.max(*fence),
            What::Answered {
                rollout,
                verb,
                accepted: true,
            } if verb.starts_with("abort") && !stranded.contains(rollout) => {
                aborted.entry(*rollout).or_insert((event.at, newest));
            }
            What::Decided(step) if is_stranded(step) => {
                stranded.insert(step.rollout);
            }
            What::Decided(step)
                if goes_on(step.after)
                    && step.after != step.before
                    && aborted.get(&step.rollout).is_some_and(|(at, fence)| {
                        step.sent > *at && (shared || step.fence == *fence)
                    }) =>
            {
                let text = format!("an abort was acknowledged, and now it is {}", step.after);
                return violated("acknowledged", event.at, text);
            }
            _ => {}
        }
    }
    Ok(())
}

fn goes_on(phase: Phase) -> bool {
    matches!(
        phase,
        Phase::Promoting | Phase::Promoted | Phase::Shifting { .. }
    )
}

/// Aborted, and still where it was.
fn is_stranded(step: &Decided) -> bool {
    let stays = step.after.stage().is_some() || step.after == Phase::Baking;
    stays && matches!(&step.why, Why::Verb(verb) if verb.starts_with("abort"))
}

#[cfg(test)]
mod tests {
    use super::super::tale::{BACK, decided, history, seen, step};
    use super::*;

    #[test]
    fn an_acknowledged_abort_is_kept() {
        let answer = |accepted| What::Answered {
            rollout: 1,
            verb: "abort".to_owned(),
            accepted,
        };
        let soaking = Phase::Soaking { stage: 0 };
        let mut promotes = step(3, soaking, Phase::Promoting);
        let late = decided(promotes.clone());
        promotes.sent = 2;
        let promotes = decided(promotes);
        let booted = What::Booted {
            router: 0,
            seen: seen(0, 1),
        };
        let told =
            |answer, then| check(&history(vec![(0, booted.clone()), (1, answer), (3, then)]));
        assert!(told(answer(true), late).is_ok());
        assert!(told(answer(true), decided(step(3, soaking, BACK))).is_ok());
        let stays = Phase::Shifting { stage: 0 };
        let mut waits = step(3, stays, stays);
        waits.sent = 2;
        assert!(told(answer(true), decided(waits)).is_ok());
        assert!(told(answer(true), promotes.clone()).is_err());
        assert!(told(answer(false), promotes.clone()).is_ok());
        // With no routers but its own, a successor may not have heard.
        for (fence, kept) in [(1, false), (0, true)] {
            let (process, answer) = (1, answer(true));
            let owner = What::Acquired { process, fence };
            let told = history(vec![(0, owner), (1, answer), (3, promotes.clone())]);
            assert_eq!(check(&told).is_ok(), kept);
        }
    }

    #[test]
    fn an_abort_that_waits_for_the_baseline_may_be_overtaken() {
        let soaking = Phase::Soaking { stage: 0 };
        let mut waits = step(3, soaking, Phase::Held { stage: 0 });
        waits.why = Why::Verb("abort".to_owned());
        let answer = What::Answered {
            rollout: 1,
            verb: "abort".to_owned(),
            accepted: true,
        };
        let mut promotes = step(4, Phase::Held { stage: 0 }, Phase::Promoting);
        promotes.sent = 2;
        let promotes = decided(promotes);
        let story = vec![(1, decided(waits)), (1, answer), (2, promotes)];
        assert!(check(&history(story)).is_ok());
    }
}
