//! Nothing is done that was not logged before, what is recorded as done is never done again by a later controller, and a notice
//! that is over was heard, always with the same words.

use super::violated;
use crate::history::{Doing, History, Violation, What};
use llm_rollout::IntentId;
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    let mut asked: BTreeMap<u64, Vec<(IntentId, Doing)>> = BTreeMap::new();
    let mut done: BTreeMap<IntentId, u64> = BTreeMap::new();
    let mut words: BTreeMap<IntentId, u64> = BTreeMap::new();
    let mut notices: BTreeSet<IntentId> = BTreeSet::new();
    for event in &history.events {
        let wrong = |text: String| violated("once", event.at, text);
        match &event.what {
            What::Decided(step) => {
                for id in &step.done {
                    done.entry(*id).or_insert(step.fence);
                    if notices.contains(id) && !step.failed && !words.contains_key(id) {
                        return wrong(format!("notice {id} is over and nobody heard it"));
                    }
                }
                let told = step
                    .intents
                    .iter()
                    .filter(|(_, doing)| *doing == Doing::Notify);
                notices.extend(told.map(|(id, _)| *id));
                asked.insert(step.seq, step.intents.clone());
            }
            What::Backend {
                doing,
                fence,
                seq,
                accepted: true,
                ..
            } => {
                let intents = asked.get(seq).into_iter().flatten();
                let Some((id, _)) = intents.clone().find(|(_, asked)| asked == doing) else {
                    return wrong(format!(
                        "{doing:?} was done, and entry {seq} does not ask for it"
                    ));
                };
                if done.get(id).is_some_and(|by| fence > by) {
                    return wrong(format!(
                        "{doing:?} of entry {seq} was over, and is done again under fence {fence}"
                    ));
                }
            }
            What::Notified { id, text, .. } => {
                if !notices.contains(id) {
                    return wrong(format!("notice {id} was never logged"));
                }
                if *words.entry(*id).or_insert(*text) != *text {
                    return wrong(format!("notice {id} says something else than before"));
                }
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
    use llm_rollout::{Phase, Seq};

    const ID: IntentId = IntentId {
        seq: Seq::new(3),
        index: 0,
    };

    fn asks(doing: Doing) -> What {
        let mut step = step(3, Phase::Planned, Phase::Warming);
        step.intents = vec![(ID, doing)];
        decided(step)
    }

    fn over() -> What {
        let mut step = step(4, Phase::Warming, Phase::Warming);
        step.done = vec![ID];
        decided(step)
    }

    fn done(fence: u64) -> What {
        What::Backend {
            process: 1,
            doing: Doing::Prepare(2),
            fence,
            seq: 3,
            accepted: true,
        }
    }

    fn story(events: Vec<What>) -> History {
        history(events.into_iter().map(|what| (1, what)).collect())
    }

    #[test]
    fn doing_it_again_is_caught() {
        let asks = asks(Doing::Prepare(2));
        assert!(check(&story(vec![asks.clone(), done(1), over(), done(1)])).is_ok());
        assert!(check(&story(vec![asks.clone(), done(1), done(2)])).is_ok());
        assert!(check(&story(vec![asks, done(1), over(), done(2)])).is_err());
        assert!(check(&story(vec![done(1)])).is_err());
    }

    #[test]
    fn notices_are_heard_and_do_not_change() {
        let asks = asks(Doing::Notify);
        let heard = |text| What::Notified {
            process: 1,
            id: ID,
            text,
        };
        assert!(check(&story(vec![asks.clone(), heard(7), heard(7), over()])).is_ok());
        assert!(check(&story(vec![asks.clone(), heard(7), heard(8)])).is_err());
        assert!(check(&story(vec![asks, over()])).is_err());
        assert!(check(&story(vec![heard(7)])).is_err());
    }
}
