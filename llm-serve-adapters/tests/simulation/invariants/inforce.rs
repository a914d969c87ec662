//! What a router says that it has carried out is in force: a share that it acknowledges is served at that moment. One that is over
//! before it begins would count as a lapse, and so many lapses send a good candidate back.

use super::violated;
use crate::history::{Asked, History, Violation, What};
use llm_rollout::Direction;
use std::collections::BTreeMap;

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    let mut orders: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    for event in &history.events {
        let (router, seen) = match &event.what {
            What::Told { router, seen, .. }
            | What::Saw { router, seen }
            | What::Booted { router, seen }
            | What::Forced { router, seen }
            | What::Tampered { router, seen } => (*router, seen),
            _ => continue,
        };
        let before = orders.insert(router, seen.order);
        let forward = matches!(
            event.what,
            What::Told {
                asked: Asked::Set(Direction::Forward),
                ..
            }
        );
        if forward && before != Some(seen.order) && seen.lapsed {
            let text = format!("router {router} acknowledges what it does not serve: {seen:?}");
            return violated("inforce", event.at, text);
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
    fn what_is_acknowledged_is_served() {
        let serves = |lapsed, order| Seen {
            lapsed,
            order: (1, order),
            ..seen(500, 1)
        };
        let story = |before, after| {
            history(vec![
                (1, saw(before)),
                (2, told(Direction::Forward, 1, after)),
            ])
        };
        assert!(check(&story(serves(false, 1), serves(false, 2))).is_ok());
        // An old order once more.
        assert!(check(&story(serves(true, 2), serves(true, 2))).is_ok());
        assert!(check(&story(serves(false, 1), serves(true, 2))).is_err());
    }
}
