//! A rollout begins only when the one before it is over and every router has confirmed that.

use super::violated;
use crate::history::{History, Violation, What};
use llm_rollout::Direction;
use std::collections::BTreeMap;

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    let mut end: Option<u64> = None;
    let mut busy = false;
    let mut orders: BTreeMap<usize, u64> = BTreeMap::new();
    for event in &history.events {
        match &event.what {
            What::Told { router, seen, .. }
            | What::Saw { router, seen }
            | What::Booted { router, seen } => {
                orders.insert(*router, seen.order.1);
            }
            What::Decided(step) => {
                if step.route.is_some_and(|r| r.direction == Direction::End) {
                    end = Some(step.seq);
                }
                busy = !step.settled;
            }
            What::Submitted { rollout, .. } => {
                if busy {
                    return violated(
                        "next",
                        event.at,
                        format!("rollout {rollout} begins while another is in progress"),
                    );
                }
                for router in (0..history.routers).filter(|router| !history.is_volatile(*router)) {
                    let at = orders.get(&router).copied().unwrap_or(0);
                    if end.is_some_and(|end| at < end) {
                        let text = format!(
                            "rollout {rollout} begins, and router {router} has not heard of the end before it"
                        );
                        return violated("next", event.at, text);
                    }
                }
                busy = true;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tale::{decided, history, leads, saw, seen, step};
    use super::*;
    use crate::history::Seen;
    use llm_rollout::Phase;

    #[test]
    fn rollouts_follow_confirmed_ends() {
        let submitted = |rollout| What::Submitted {
            seq: 1,
            rollout,
            baseline: 1,
            candidate: 2,
        };
        let mut end = step(8, Phase::Baking, Phase::Promoted);
        (end.route, end.settled) = (Some(leads(Direction::End, 2)), true);
        let knows = |seq| {
            saw(Seen {
                order: (1, seq),
                ..seen(0, 9)
            })
        };
        let story = |seq| {
            history(vec![
                (1, submitted(1)),
                (2, decided(end.clone())),
                (3, knows(seq)),
                (4, submitted(2)),
            ])
        };
        assert!(check(&story(8)).is_ok());
        assert!(check(&story(7)).is_err());
        assert!(check(&history(vec![(1, submitted(1)), (2, submitted(2))])).is_err());
    }
}
