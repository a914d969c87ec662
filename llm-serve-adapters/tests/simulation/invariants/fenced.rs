//! A controller reads back every router before it tells any of them to go forward, and one that has been fenced out stops:
//! what it had begun is given up, at the latest when the answers that it waited for are in.

use super::violated;
use crate::history::{Asked, History, Violation, What};
use llm_rollout::Direction;
use std::collections::{BTreeMap, BTreeSet};

/// Longest that a round of calls to routers takes, with the last call of a job.
const ROUND: u64 = 8_000;

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    let mut fenced = BTreeMap::new();
    let mut heard: BTreeMap<u32, BTreeSet<usize>> = BTreeMap::new();
    for event in &history.events {
        match &event.what {
            What::Fenced { process } => {
                fenced.entry(*process).or_insert(event.at);
            }
            What::Heard {
                process, router, ..
            } => {
                heard.entry(*process).or_default().insert(*router);
            }
            What::Calls { process, order } => {
                if fenced.get(process).is_some_and(|at| event.at > at + ROUND) {
                    let text = format!("process {process} goes on though it was fenced out");
                    return violated("fenced", event.at, text);
                }
                let raises = order.is_some_and(|order| {
                    matches!(
                        order.asked,
                        Asked::Set(Direction::Forward | Direction::Promote)
                    )
                });
                let known = heard.get(process).map_or(0, BTreeSet::len);
                if raises && known < history.routers {
                    let text = format!(
                        "process {process} goes forward having heard of {known} of {} routers",
                        history.routers
                    );
                    return violated("fenced", event.at, text);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tale::history;
    use super::*;
    use crate::history::{Seen, Sent};

    fn calls(direction: Option<Direction>) -> What {
        let order = direction.map(|direction| Sent {
            router: 0,
            asked: Asked::Set(direction),
            fence: 1,
            seq: 1,
            rollout: 1,
        });
        What::Calls { process: 1, order }
    }

    #[test]
    fn whoever_is_fenced_out_stops() {
        let fenced = What::Fenced { process: 1 };
        assert!(check(&history(vec![(1, fenced.clone()), (2, calls(None))])).is_ok());
        assert!(check(&history(vec![(1, fenced), (20_000, calls(None))])).is_err());
    }

    #[test]
    fn nobody_goes_forward_before_all_routers_are_known() {
        let heard = What::Heard {
            process: 1,
            router: 0,
            seen: Seen::default(),
        };
        let forward = calls(Some(Direction::Forward));
        assert!(check(&history(vec![(1, heard), (2, forward.clone())])).is_ok());
        assert!(check(&history(vec![(2, forward)])).is_err());
        assert!(check(&history(vec![(2, calls(Some(Direction::Back)))])).is_ok());
    }
}
