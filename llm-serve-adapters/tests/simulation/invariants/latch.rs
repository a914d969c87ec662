//! What an operator has forced stays: a latched router serves no candidate, over restarts too, until an end releases it.

use super::violated;
use crate::history::{Asked, History, Violation, What};
use llm_rollout::Direction;
use std::collections::BTreeMap;

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    // With the newest order that the router had then: only an end after that releases it.
    let mut latched: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    for event in &history.events {
        let (router, seen) = match &event.what {
            What::Forced { router, seen } => {
                // Routers within processes are told by their own controller, which is not seen.
                if *router < history.routers {
                    latched.entry(*router).or_insert(seen.order);
                }
                (*router, seen)
            }
            What::Told {
                router,
                asked,
                seen,
                ..
            } => {
                let ends = *asked == Asked::Set(Direction::End);
                if ends && latched.get(router).is_some_and(|at| seen.order > *at) {
                    latched.remove(router);
                }
                (*router, seen)
            }
            What::Booted { router, seen } => {
                if history.is_volatile(*router) {
                    latched.remove(router);
                }
                (*router, seen)
            }
            What::Saw { router, seen } => (*router, seen),
            _ => continue,
        };
        if seen.latch > 0 && seen.live() > 0 {
            return violated(
                "latch",
                event.at,
                format!("router {router} is latched and serves a share: {seen:?}"),
            );
        }
        if seen.latch == 0 && latched.contains_key(&router) {
            return violated(
                "latch",
                event.at,
                format!("router {router} has forgotten its latch: {seen:?}"),
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tale::{history, saw, seen, told};
    use super::*;
    use crate::history::Seen;

    #[test]
    fn a_latch_holds_until_an_end() {
        let latched = Seen {
            latch: 1,
            ..seen(0, 1)
        };
        let forced = What::Forced {
            router: 0,
            seen: latched,
        };
        let newer = Seen {
            order: (1, 3),
            ..seen(0, 1)
        };
        let end = told(Direction::End, 3, newer);
        let again = told(Direction::End, 3, seen(0, 1));
        assert!(check(&history(vec![(1, forced.clone()), (3, again)])).is_err());
        assert!(check(&history(vec![(1, forced.clone()), (2, saw(latched))])).is_ok());
        assert!(
            check(&history(vec![
                (1, forced.clone()),
                (3, end),
                (4, saw(seen(0, 1)))
            ]))
            .is_ok()
        );
        assert!(check(&history(vec![(1, forced.clone()), (2, saw(seen(0, 1)))])).is_err());
        let serving = Seen {
            share: 500,
            ..latched
        };
        assert!(check(&history(vec![(1, forced), (2, saw(serving))])).is_err());
    }
}
