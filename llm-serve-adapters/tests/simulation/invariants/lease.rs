//! A share lasts no longer than lease / (1 - drift) from the clock reading that the last order or renewal carried that came from
//! the newest controller the router has heard: with it dead or cut off, everybody is back on the baseline by then, whatever an
//! older one still says. A router that starts serves no share.

use super::violated;
use crate::history::{Asked, History, Violation, What};
use llm_rollout::Direction;
use std::collections::BTreeMap;

/// Milliseconds that reading two clocks may be off.
const ROUNDING: u64 = 3;

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a lease of some seconds"
    )]
    let longest = (history.lease as f64 / (1.0 - history.drift)).ceil() as u64 + ROUNDING;
    let mut readings: BTreeMap<usize, u64> = BTreeMap::new();
    let mut owners: BTreeMap<usize, u64> = BTreeMap::new();
    for event in &history.events {
        let (router, seen) = match &event.what {
            What::Told {
                router,
                asked,
                reading,
                fence,
                seen,
                ..
            } => {
                let owner = owners.entry(*router).or_default();
                *owner = (*owner).max(*fence);
                let owned = *fence == *owner;
                if owned && matches!(asked, Asked::Set(Direction::Forward) | Asked::Renew) {
                    readings.insert(*router, *reading.max(readings.get(router).unwrap_or(&0)));
                }
                (*router, seen)
            }
            What::Saw { router, seen } => (*router, seen),
            What::Tampered { router, seen } => {
                readings.insert(*router, event.at);
                (*router, seen)
            }
            What::Booted { router, seen } => {
                readings.remove(router);
                if history.is_volatile(*router) {
                    owners.remove(router);
                }
                if seen.live() > 0 {
                    return violated(
                        "lease",
                        event.at,
                        format!("router {router} starts with a share: {seen:?}"),
                    );
                }
                continue;
            }
            _ => continue,
        };
        if seen.live() == 0 || router >= history.routers {
            continue;
        }
        let until = readings.get(&router).map_or(0, |reading| reading + longest);
        if event.at > until {
            let text = format!(
                "router {router} serves a share {} ms after its lease",
                event.at - until
            );
            return violated("lease", event.at, text);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tale::{history, saw, seen, told};
    use super::*;

    #[test]
    fn a_share_outlives_no_lease() {
        let set = told(Direction::Forward, 1_000, seen(500, 1));
        let story = |at| history(vec![(1_010, set.clone()), (at, saw(seen(500, 1)))]);
        assert!(check(&story(13_000)).is_ok());
        assert!(check(&story(13_300)).is_err());
    }

    #[test]
    fn a_renewal_prolongs_it_from_its_reading() {
        let set = told(Direction::Forward, 1_000, seen(500, 1));
        let mut renewal = told(Direction::Forward, 9_000, seen(500, 1));
        if let What::Told { asked, .. } = &mut renewal {
            *asked = Asked::Renew;
        }
        let story = |at| {
            history(vec![
                (1_010, set.clone()),
                (12_000, renewal.clone()),
                (at, saw(seen(500, 1))),
            ])
        };
        assert!(check(&story(21_000)).is_ok());
        assert!(check(&story(22_000)).is_err());
    }

    #[test]
    fn whoever_was_overtaken_prolongs_nothing() {
        let asked = |at, what, fence| {
            let mut told = told(Direction::Forward, at, seen(500, 1));
            if let What::Told {
                asked, fence: by, ..
            } = &mut told
            {
                (*asked, *by) = (what, fence);
            }
            (at, told)
        };
        let story = |newer| {
            history(vec![
                asked(1_000, Asked::Set(Direction::Forward), 1),
                asked(2_000, Asked::Observe, newer),
                asked(9_000, Asked::Renew, 1),
                (20_000, saw(seen(500, 1))),
            ])
        };
        assert!(check(&story(1)).is_ok());
        assert!(check(&story(2)).is_err());
    }

    #[test]
    fn a_share_that_survives_a_start_is_caught() {
        let boots = What::Booted {
            router: 0,
            seen: seen(500, 1),
        };
        assert!(check(&history(vec![(1, boots)])).is_err());
    }
}
