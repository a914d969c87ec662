//! After going back was decided, nobody who could know tells any router to raise, and no router that has been told raises: its
//! share of that rollout falls to nothing and stays there. What a router may still take, until it is told, is what was sent
//! before the decision, or by a controller that has been overtaken since; both end with their lease.

use super::violated;
use crate::history::{Asked, History, Number, Violation, What};
use llm_rollout::{Direction, Phase};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    // When, and under which fence, going back was decided.
    let mut back: BTreeMap<Number, (u64, u64)> = BTreeMap::new();
    let mut told: BTreeSet<(usize, Number)> = BTreeSet::new();
    let mut live: BTreeMap<usize, u16> = BTreeMap::new();
    for event in &history.events {
        let at = event.at;
        let raise = |asked| matches!(asked, Asked::Set(Direction::Forward | Direction::Promote));
        match &event.what {
            What::Decided(step) => {
                if matches!(step.after, Phase::RollingBack { .. }) {
                    back.entry(step.rollout).or_insert((at, step.fence));
                }
            }
            What::Calls {
                order: Some(sent), ..
            } if raise(sent.asked)
                && back
                    .get(&sent.rollout)
                    .is_some_and(|(_, fence)| sent.fence >= *fence) =>
            {
                let text = format!("a raise was sent after going back was decided: {sent:?}");
                return violated("rise", at, text);
            }
            What::Told {
                router,
                asked,
                fence,
                rollout,
                sent,
                seen,
                ..
            } => {
                let before = live.insert(*router, seen.live()).unwrap_or(0);
                // What it has accepted counts, not what it says that it remembers.
                if *asked == Asked::Set(Direction::Back) {
                    told.insert((*router, *rollout));
                }
                if raise(*asked)
                    && seen.live() > before
                    && let Some((when, newest)) = back.get(rollout)
                    && fence >= newest
                    && sent > when
                {
                    let text =
                        format!("router {router} raises after going back was decided: {seen:?}");
                    return violated("rise", at, text);
                }
                marked(at, *router, seen.rollout, seen.live(), &told)?;
            }
            What::Saw { router, seen } | What::Booted { router, seen } => {
                if matches!(event.what, What::Booted { .. }) && history.is_volatile(*router) {
                    told.retain(|(told, _)| told != router);
                }
                live.insert(*router, seen.live());
                marked(at, *router, seen.rollout, seen.live(), &told)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn marked(
    at: u64,
    router: usize,
    rollout: Number,
    live: u16,
    told: &BTreeSet<(usize, Number)>,
) -> Result<(), Violation> {
    if live > 0 && told.contains(&(router, rollout)) {
        let text =
            format!("router {router} serves rollout {rollout}, from which it was told to go back");
        return violated("rise", at, text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tale::{BACK, decided, history, saw, seen, step, told};
    use super::*;
    use crate::history::{Seen, Sent};

    fn back() -> What {
        decided(step(7, Phase::Soaking { stage: 0 }, BACK))
    }

    #[test]
    fn a_told_router_never_serves_it_again() {
        let marked = Seen {
            mark: 1,
            ..seen(0, 2)
        };
        let story = |share| {
            history(vec![
                (5, told(Direction::Back, 4, marked)),
                (9, saw(seen(share, 2))),
            ])
        };
        assert!(check(&story(0)).is_ok());
        assert!(check(&story(100)).is_err());
    }

    #[test]
    fn a_raise_after_the_decision_is_caught_one_that_was_on_its_way_is_not() {
        let raise = |sent| told(Direction::Forward, sent, seen(500, 2));
        assert!(check(&history(vec![(5, back()), (9, raise(4))])).is_ok());
        assert!(check(&history(vec![(5, back()), (9, raise(6))])).is_err());
        assert!(check(&history(vec![(5, raise(6)), (9, back())])).is_ok());
    }

    #[test]
    fn nobody_who_knows_sends_one() {
        let calls = |fence| What::Calls {
            process: 1,
            order: Some(Sent {
                router: 0,
                asked: Asked::Set(Direction::Promote),
                fence,
                seq: 3,
                rollout: 1,
            }),
        };
        assert!(check(&history(vec![(5, back()), (6, calls(1))])).is_err());
        assert!(check(&history(vec![(5, back()), (6, calls(0))])).is_ok());
    }
}
