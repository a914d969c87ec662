//! No router ever gives a candidate more, or other, than what was logged before; and requests are answered by whom the router
//! says.

use super::violated;
use crate::history::{History, Seen, Violation, What};
use llm_rollout::Direction;
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    let mut logged = BTreeSet::new();
    let mut last: BTreeMap<usize, Seen> = BTreeMap::new();
    // Orders that somebody gave by hand; until the next one that router serves what nobody has logged.
    let mut by_hand = BTreeSet::new();
    for event in &history.events {
        let (router, seen) = match &event.what {
            What::Decided(step) => {
                if let Some(route) = step.route.filter(|r| r.direction == Direction::Forward) {
                    logged.insert((step.rollout, route.candidate, route.epoch, route.share));
                }
                continue;
            }
            What::Served {
                router,
                version,
                candidate,
                ..
            } => {
                let Some(seen) = last.get(router) else {
                    continue;
                };
                let right = if *candidate {
                    seen.live() > 0 && *version == seen.candidate
                } else {
                    *version == seen.baseline || seen.latch == *version
                };
                if right {
                    continue;
                }
                let text = format!("router {router} gives requests to version {version}: {seen:?}");
                return violated("share", event.at, text);
            }
            What::Told { router, seen, .. }
            | What::Saw { router, seen }
            | What::Booted { router, seen }
            | What::Forced { router, seen } => (*router, *seen),
            What::Tampered { router, seen } => {
                by_hand.insert((*router, seen.order));
                (*router, *seen)
            }
            _ => continue,
        };
        last.insert(router, seen);
        let live = seen.live();
        if by_hand.contains(&(router, seen.order)) {
            continue;
        }
        if live > 0 && !logged.contains(&(seen.rollout, seen.candidate, seen.epoch, live)) {
            let text = format!("router {router} serves what nobody has logged: {seen:?}");
            return violated("share", event.at, text);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tale::{decided, forward, history, saw, seen, step};
    use super::*;
    use llm_rollout::Phase;

    fn logged(share: u16) -> What {
        let mut step = step(3, Phase::Warming, Phase::Shifting { stage: 0 });
        step.route = Some(forward(share, 1));
        decided(step)
    }

    #[test]
    fn only_what_was_logged_before_is_served() {
        assert!(check(&history(vec![(1, logged(500)), (2, saw(seen(500, 1)))])).is_ok());
        assert!(check(&history(vec![(1, logged(500)), (2, saw(seen(600, 1)))])).is_err());
        assert!(check(&history(vec![(1, logged(500)), (2, saw(seen(500, 2)))])).is_err());
        assert!(check(&history(vec![(1, saw(seen(500, 1))), (2, logged(500))])).is_err());
        let tampered = What::Tampered {
            router: 0,
            seen: seen(600, 1),
        };
        assert!(check(&history(vec![(1, tampered), (2, saw(seen(600, 1)))])).is_ok());
        let lapsed = Seen {
            lapsed: true,
            ..seen(600, 1)
        };
        assert!(check(&history(vec![(1, saw(lapsed))])).is_ok());
    }

    #[test]
    fn requests_go_where_the_router_says() {
        let served = |version, candidate| What::Served {
            router: 0,
            version,
            candidate,
            epoch: 1,
            n: 3,
        };
        let story = |what| history(vec![(1, logged(500)), (2, saw(seen(500, 1))), (2, what)]);
        assert!(check(&story(served(2, true))).is_ok());
        assert!(check(&story(served(1, false))).is_ok());
        assert!(check(&story(served(2, false))).is_err());
        assert!(check(&story(served(3, true))).is_err());
        let nothing = history(vec![(1, saw(seen(0, 1))), (2, served(2, true))]);
        assert!(check(&nothing).is_err());
    }
}
