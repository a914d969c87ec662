//! The old baseline is taken out only after a promotion that is over, the candidate only after going back is confirmed; so no
//! router gives a request to a version that was never loaded, or has been taken out.

use super::violated;
use crate::history::{Doing, History, Number, Seen, Version, Violation, What};
use crate::world::MOST;
use llm_rollout::{Phase, Recovery};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    let mut out: BTreeSet<Version> = (2..).take(MOST).collect();
    let mut rollouts: BTreeMap<Number, (Version, Version)> = BTreeMap::new();
    // Versions that may be taken out, by the number of the entry that says so.
    let mut free: BTreeSet<(u64, Version)> = BTreeSet::new();
    // What each router that runs serves.
    let mut serves: BTreeMap<usize, Seen> = BTreeMap::new();
    for event in &history.events {
        match &event.what {
            What::Submitted {
                rollout,
                baseline,
                candidate,
                ..
            } => {
                rollouts.insert(*rollout, (*baseline, *candidate));
            }
            What::Decided(step) => match step.after {
                Phase::Promoted => {
                    free.insert((step.seq, step.baseline));
                }
                Phase::Blocked
                | Phase::RollingBack {
                    part: Recovery::Retiring,
                } => {
                    free.insert((step.seq, step.candidate));
                }
                _ => {}
            },
            What::Backend {
                doing: Doing::Prepare(version),
                accepted: true,
                ..
            } => {
                out.remove(version);
            }
            What::Backend {
                doing: Doing::Retire(version),
                accepted: true,
                seq,
                ..
            } => {
                if !free.contains(&(*seq, *version)) {
                    let text =
                        format!("version {version} was taken out, and nothing says that it may be");
                    return violated("retirement", event.at, text);
                }
                out.insert(*version);
                let serving = serves.iter().find(|(_, seen)| needs(seen, *version));
                if let Some((router, seen)) = serving {
                    let text = format!(
                        "version {version} is taken out, and router {router} serves it: {seen:?}"
                    );
                    return violated("retirement", event.at, text);
                }
            }
            What::Told { router, seen, .. }
            | What::Saw { router, seen }
            | What::Booted { router, seen }
            | What::Forced { router, seen }
            | What::Tampered { router, seen }
                if *router < history.routers =>
            {
                serves.insert(*router, *seen);
            }
            What::Stopped { router } => {
                serves.remove(router);
            }
            What::Served {
                router, version, ..
            } if *router < history.routers && out.contains(version) => {
                let text = format!(
                    "router {router} gives requests to version {version}, which is not loaded"
                );
                return violated("retirement", event.at, text);
            }
            _ => {}
        }
    }
    Ok(())
}

fn needs(seen: &Seen, version: Version) -> bool {
    seen.baseline == version || (seen.live() > 0 && seen.candidate == version)
}

#[cfg(test)]
mod tests {
    use super::super::tale::{decided, history, saw, seen, step};
    use super::*;

    fn backend(doing: Doing) -> What {
        What::Backend {
            process: 1,
            doing,
            fence: 1,
            seq: 9,
            accepted: true,
        }
    }

    fn served(version: Version) -> What {
        What::Served {
            router: 0,
            version,
            candidate: false,
            epoch: 1,
            n: 1,
        }
    }

    #[test]
    fn nothing_is_served_that_is_not_loaded() {
        let (load, retire) = (backend(Doing::Prepare(2)), backend(Doing::Retire(2)));
        let gone = decided(step(9, Phase::Warming, Phase::Blocked));
        assert!(check(&history(vec![(1, load.clone()), (2, served(2))])).is_ok());
        assert!(check(&history(vec![(2, served(2))])).is_err());
        assert!(
            check(&history(vec![
                (1, load),
                (2, gone),
                (3, retire),
                (4, served(2))
            ]))
            .is_err()
        );
    }

    #[test]
    fn retirements_need_an_end() {
        let retire = backend(Doing::Retire(1));
        let end = decided(step(9, Phase::Baking, Phase::Promoted));
        assert!(check(&history(vec![(1, end.clone()), (2, retire.clone())])).is_ok());
        let still = saw(seen(0, 1));
        let stops = What::Stopped { router: 0 };
        let events = [(1, end), (1, still), (1, stops), (2, retire.clone())];
        assert!(check(&history(events.to_vec())).is_ok());
        let events = events
            .into_iter()
            .filter(|(_, e)| !matches!(e, What::Stopped { .. }));
        assert!(check(&history(events.collect())).is_err());
        assert!(check(&history(vec![(2, retire)])).is_err());
    }
}
