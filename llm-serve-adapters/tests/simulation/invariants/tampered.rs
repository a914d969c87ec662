//! A router that somebody has changed by hand sends the rollout back: once its controller has read it back in a stage, no gates let
//! that rollout go on.

use super::violated;
use crate::history::{History, Millis, Number, Violation, What, Why};
use llm_rollout::Phase;
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    let mut by_hand: BTreeSet<(usize, (u64, u64))> = BTreeSet::new();
    let mut at: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    let mut owner = 0;
    let mut stage: Option<Number> = None;
    let mut noticed: BTreeMap<Number, Millis> = BTreeMap::new();
    for event in &history.events {
        match &event.what {
            What::Acquired { process, .. } => owner = *process,
            What::Tampered { router, seen } => {
                by_hand.insert((*router, seen.order));
            }
            What::Told { router, seen, .. } | What::Saw { router, seen } => {
                at.insert(*router, seen.order);
            }
            What::Heard {
                process,
                router,
                seen,
            } if *process == owner
                && by_hand.contains(&(*router, seen.order))
                // What has been put right since, by an order that was on its way, was not noticed.
                && at.get(router).is_none_or(|at| *at == seen.order) =>
            {
                if let Some(rollout) = stage {
                    noticed.entry(rollout).or_insert(event.at);
                }
            }
            What::Decided(step) => {
                stage = matches!(step.after, Phase::Soaking { .. } | Phase::Held { .. })
                    .then_some(step.rollout);
                let by_gates = matches!(step.why, Why::Look(_));
                let on = matches!(step.after, Phase::Shifting { .. } | Phase::Promoting);
                // What was on its way to the log before may still arrive.
                let knew = noticed.get(&step.rollout).is_some_and(|at| step.sent > *at);
                if on && by_gates && knew {
                    let text =
                        format!("a router was changed by hand, and now it is {}", step.after);
                    return violated("tampered", event.at, text);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tale::{BACK, decided, history, seen, step};
    use super::*;
    use crate::history::{Looked, Seen};

    #[test]
    fn a_rollout_does_not_go_on_over_a_changed_router() {
        let soaking = Phase::Soaking { stage: 0 };
        let changed = Seen {
            order: (1, 9),
            ..seen(10_000, 1)
        };
        let look = Why::Look(Looked {
            epoch: 1,
            from: 1,
            to: 2,
            failed: false,
            silent: false,
            passed: true,
            n: 10,
            k: 0,
            samples: 10,
            needed: 0,
            confirmed: true,
        });
        let story = |order, after, sent| {
            let mut next = step(9, soaking, after);
            next.why = look.clone();
            next.sent = sent;
            let heard = Seen { order, ..changed };
            history(vec![
                (1, decided(step(3, Phase::Shifting { stage: 0 }, soaking))),
                (
                    2,
                    What::Tampered {
                        router: 0,
                        seen: changed,
                    },
                ),
                (
                    3,
                    What::Heard {
                        process: 0,
                        router: 0,
                        seen: heard,
                    },
                ),
                (4, decided(next)),
            ])
        };
        assert!(check(&story((1, 9), BACK, 4)).is_ok());
        assert!(check(&story((1, 3), Phase::Promoting, 4)).is_ok());
        assert!(check(&story((1, 9), Phase::Promoting, 4)).is_err());
        assert!(check(&story((1, 9), Phase::Promoting, 2)).is_ok());
    }
}
