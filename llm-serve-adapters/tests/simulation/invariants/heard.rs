//! Who has heard that a router was told to go back from a rollout, or that an operator has forced the baseline on it, leads no
//! router forward after that: one word is enough, wherever it was said. Where it was heard while an append was in doubt, one round may
//! still go out before it is thought about; no second one does. Nor does it prolong what a router serves: being in doubt is no reason,
//! but for who may have logged what binds everybody. A latch that was heard of before a rollout began, or before the split in force
//! was decided, says nothing about it: it belongs to the one before, until its router says it again.

use super::violated;
use crate::history::{Asked, History, Number, Violation, What};
use llm_rollout::Direction;
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    // By process: rollouts of which it has heard a mark, routers of which it has heard a latch, and when.
    let mut marks: BTreeMap<(u32, Number), (usize, usize)> = BTreeMap::new();
    let mut latches: BTreeMap<u32, BTreeMap<usize, usize>> = BTreeMap::new();
    // The last time that it asked a router how it stands: what it says in the same breath was decided before.
    let mut asked: BTreeMap<(u32, usize), usize> = BTreeMap::new();
    let mut released: BTreeSet<usize> = BTreeSet::new();
    let mut began: BTreeSet<Number> = BTreeSet::new();
    // Processes that may have logged what binds.
    let mut bound: BTreeSet<u32> = BTreeSet::new();
    // Whose split it is, by the number of the entry, and since when.
    let mut routed: BTreeMap<u64, (Number, usize)> = BTreeMap::new();
    // The first raise of a router by a process that knew better.
    let mut raised: BTreeMap<(u32, usize, Number), usize> = BTreeMap::new();
    for (when, event) in history.events.iter().enumerate() {
        match &event.what {
            What::Heard {
                process,
                router,
                seen,
            } => {
                if seen.mark > 0 {
                    marks
                        .entry((*process, seen.mark))
                        .or_insert((*router, when));
                }
                let latches = latches.entry(*process).or_default();
                // An answer may be old.
                if seen.latch > 0 && !released.contains(router) {
                    latches.entry(*router).or_insert(when);
                } else {
                    latches.remove(router);
                }
            }
            What::Calls {
                process,
                order: Some(sent),
            } => match sent.asked {
                Asked::Observe => {
                    asked.insert((*process, sent.router), when);
                }
                Asked::Set(Direction::Forward | Direction::Promote) | Asked::Renew => {
                    let renews = sent.asked == Asked::Renew;
                    if renews && bound.contains(process) {
                        continue;
                    }
                    let (rollout, decided) = match routed.get(&sent.seq) {
                        Some((rollout, decided)) if renews => (*rollout, Some(*decided)),
                        _ => (sent.rollout, None),
                    };
                    let marked = marks.get(&(*process, rollout)).copied();
                    let latched = latches.get(process).into_iter().flatten();
                    let latched =
                        latched.filter(|(_, when)| decided.is_none_or(|decided| **when > decided));
                    let bad = latched.map(|(router, when)| (*router, *when)).chain(marked);
                    // All are asked at once: it is told in a later round if that one has been asked again.
                    let since = |router| asked.get(&(*process, router)).copied().unwrap_or(0);
                    let knew = |(router, when)| since(router) > when && since(sent.router) > when;
                    if !bad.into_iter().any(knew) {
                        continue;
                    }
                    let first = *raised
                        .entry((*process, sent.router, rollout))
                        .or_insert(when);
                    if since(sent.router) > first {
                        let text = format!(
                            "process {process} leads router {} on, and knows better: {sent:?}",
                            sent.router
                        );
                        return violated("heard", event.at, text);
                    }
                }
                Asked::Set(_) => {}
            },
            // Released meanwhile, which its next answer will say.
            What::Told { router, seen, .. }
            | What::Saw { router, seen }
            | What::Booted { router, seen }
            | What::Forced { router, seen } => {
                if seen.latch == 0 {
                    released.insert(*router);
                    for heard in latches.values_mut() {
                        heard.remove(router);
                    }
                } else {
                    released.remove(router);
                }
            }
            What::Unsure {
                process,
                binding: true,
            } => {
                bound.insert(*process);
            }
            What::Decided(step) => {
                if began.insert(step.rollout) {
                    latches.clear();
                }
                if step.route.is_some() {
                    routed.insert(step.seq, (step.rollout, when));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tale::{decided, forward, history, seen, step};
    use super::*;
    use crate::history::{Seen, Sent};
    use llm_rollout::Phase;

    fn calls(asked: Asked, router: usize) -> What {
        What::Calls {
            process: 1,
            order: Some(Sent {
                router,
                asked,
                fence: 1,
                seq: 3,
                rollout: 1,
            }),
        }
    }

    fn heard(mark: Number, latch: u8) -> What {
        What::Heard {
            process: 1,
            router: 1,
            seen: Seen {
                mark,
                latch,
                ..seen(0, 1)
            },
        }
    }

    fn story(events: Vec<What>) -> History {
        history(events.into_iter().map(|what| (1, what)).collect())
    }

    #[test]
    fn who_has_heard_of_a_mark_or_a_latch_leads_nobody_on() {
        let raise = calls(Asked::Set(Direction::Forward), 0);
        let back = calls(Asked::Set(Direction::Back), 0);
        let (asks, again) = (calls(Asked::Observe, 0), calls(Asked::Observe, 1));
        for bad in [heard(1, 0), heard(0, 1)] {
            let round = |order: &What| [again.clone(), asks.clone(), order.clone()];
            let told = |order: &What| {
                let rounds = [round(order), round(order)].into_iter().flatten();
                story([bad.clone()].into_iter().chain(rounds).collect())
            };
            let once = [bad.clone()].into_iter().chain(round(&raise));
            assert!(check(&story(once.collect())).is_ok());
            assert!(check(&told(&raise)).is_err());
            assert!(check(&told(&back)).is_ok());
            let same_breath = vec![again.clone(), bad.clone(), asks.clone(), raise.clone()];
            assert!(check(&story(same_breath)).is_ok());
        }
        for good in [heard(0, 0), heard(2, 0)] {
            let events = vec![good, asks.clone(), again.clone(), raise.clone()];
            assert!(check(&story(events)).is_ok());
        }
        let released = vec![heard(0, 1), heard(0, 0), asks, again, raise];
        assert!(check(&story(released)).is_ok());
    }

    #[test]
    fn who_has_heard_of_a_latch_since_the_split_was_decided_prolongs_it_for_nobody() {
        let mut raise = step(3, Phase::Planned, Phase::Shifting { stage: 0 });
        raise.route = Some(forward(100, 2));
        let raise = decided(raise);
        let renew = calls(Asked::Renew, 0);
        let (asks, again) = (calls(Asked::Observe, 0), calls(Asked::Observe, 1));
        let round = [again, asks, renew];
        let told = |before: &[What]| {
            let rounds = [round.clone(), round.clone()].concat();
            story([before, &rounds].concat())
        };
        assert!(check(&told(&[raise.clone(), heard(0, 1)])).is_err());
        assert!(check(&told(&[raise.clone(), heard(1, 0)])).is_err());
        assert!(check(&told(&[heard(0, 1), raise.clone()])).is_ok());
        let unsure = What::Unsure {
            process: 1,
            binding: true,
        };
        assert!(check(&told(&[raise, unsure, heard(0, 1)])).is_ok());
    }
}
