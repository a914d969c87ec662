//! The old baseline is taken out only after a promotion that is over, the candidate only after going back is confirmed; so no
//! router gives a request to a version that was never loaded, or has been taken out.

use super::violated;
use crate::history::{Doing, History, Number, Version, Violation, What};
use llm_rollout::{Phase, Recovery};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    let mut out: BTreeSet<Version> = BTreeSet::from([2, 3]);
    let mut rollouts: BTreeMap<Number, (Version, Version)> = BTreeMap::new();
    // Versions that may be taken out, by the number of the entry that says so.
    let mut free: BTreeSet<(u64, Version)> = BTreeSet::new();
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

#[cfg(test)]
mod tests {
    use super::super::tale::{decided, history, step};
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
        assert!(check(&history(vec![(1, end), (2, retire.clone())])).is_ok());
        assert!(check(&history(vec![(2, retire)])).is_err());
    }
}
