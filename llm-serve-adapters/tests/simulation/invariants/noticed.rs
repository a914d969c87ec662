//! Who hears that a router has let the share in force lapse does something about it: it resumes the share, or goes back. While it
//! knows what is in the log and has heard of every router, it does not hear the same again and again.

use super::violated;
use crate::history::{Asked, History, Violation, What};
use llm_rollout::{Direction, Phase};
use std::collections::{BTreeMap, BTreeSet};

/// It may be heard once more while something else is decided.
const OFTEN: u32 = 4;

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    let mut newest = 0;
    // The number of the split in force, while it gives a share.
    let mut routed = None;
    let mut owner = None;
    // Whether the owner has led routers on, and so has read back every one.
    let mut active = false;
    let mut unsure: BTreeSet<u32> = BTreeSet::new();
    let mut times: BTreeMap<usize, u32> = BTreeMap::new();
    for event in &history.events {
        match &event.what {
            What::Acquired { process, fence } if *fence > newest => {
                newest = *fence;
                owner = Some(*process);
                active = false;
                times.clear();
            }
            What::Calls {
                process,
                order: Some(sent),
            } if owner == Some(*process) => {
                let leads = [Direction::Forward, Direction::Promote, Direction::End];
                let told = leads.map(Asked::Set).contains(&sent.asked);
                active |= told || sent.asked == Asked::Renew;
            }
            What::Unsure { process, .. } => {
                unsure.insert(*process);
                times.clear();
            }
            What::Read { process } => {
                unsure.remove(process);
            }
            What::Submitted { .. } => times.clear(),
            What::Decided(step) => {
                times.clear();
                let exposed = matches!(
                    step.after,
                    Phase::Shifting { .. } | Phase::Soaking { .. } | Phase::Held { .. }
                );
                routed = match step.route {
                    _ if !exposed || step.stranded => None,
                    Some(_) => Some(step.seq),
                    None => routed,
                };
            }
            What::Heard {
                process,
                router,
                seen,
            } if owner == Some(*process) && !unsure.contains(process) => {
                if !active || !seen.lapsed || Some(seen.order.1) != routed {
                    continue;
                }
                let times = times.entry(*router).or_default();
                *times += 1;
                if *times == OFTEN {
                    let text = format!(
                        "process {process} hears again and again that router {router} has lapsed: {seen:?}"
                    );
                    return violated("noticed", event.at, text);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tale::{decided, history, seen, step};
    use super::*;
    use crate::history::{Route, Seen, Sent};

    #[test]
    fn a_lapse_that_is_heard_again_and_again_is_caught() {
        let mut raise = step(7, Phase::Planned, Phase::Shifting { stage: 0 });
        raise.route = Some(Route {
            direction: Direction::Forward,
            baseline: 1,
            candidate: 2,
            share: 100,
            epoch: 2,
        });
        let begins = [
            (
                1,
                What::Acquired {
                    process: 1,
                    fence: 1,
                },
            ),
            (2, decided(raise)),
            (
                2,
                What::Calls {
                    process: 1,
                    order: Some(Sent {
                        router: 0,
                        asked: Asked::Set(Direction::Forward),
                        fence: 1,
                        seq: 7,
                        rollout: 1,
                    }),
                },
            ),
        ];
        let heard = |lapsed| {
            let seen = Seen {
                order: (1, 7),
                lapsed,
                ..seen(100, 2)
            };
            let (process, router) = (1, 0);
            What::Heard {
                process,
                router,
                seen,
            }
        };
        let story = |between: What, lapsed| {
            let heard = (0..6).map(|n| (3 + n, heard(lapsed))).collect::<Vec<_>>();
            let (first, then) = heard.split_at(3);
            let between = [(5, between)];
            history([&begins[..], first, &between[..], then].concat())
        };
        let nothing = What::Died { process: 9 };
        assert!(check(&story(nothing.clone(), true)).is_err());
        assert!(check(&story(nothing, false)).is_ok());
        let unsure = What::Unsure {
            process: 1,
            binding: false,
        };
        assert!(check(&story(unsure, true)).is_ok());
        let on = step(8, Phase::Shifting { stage: 0 }, Phase::Soaking { stage: 0 });
        assert!(check(&story(decided(on), true)).is_ok());
    }
}
