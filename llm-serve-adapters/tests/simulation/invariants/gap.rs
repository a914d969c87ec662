//! A share that a router has lost, by a lapse, a start or an operator, does not come back in the same epoch: what was counted
//! in it would have a gap that nobody sees.

use super::violated;
use crate::history::{History, Number, Violation, What};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn check(history: &History) -> Result<(), Violation> {
    let mut live: BTreeMap<usize, (Number, u64)> = BTreeMap::new();
    let mut lost: BTreeSet<(usize, (Number, u64))> = BTreeSet::new();
    for event in &history.events {
        let (router, seen) = match &event.what {
            What::Told { router, seen, .. }
            | What::Saw { router, seen }
            | What::Booted { router, seen }
            | What::Forced { router, seen }
            | What::Tampered { router, seen } => (*router, seen),
            _ => continue,
        };
        if matches!(event.what, What::Booted { .. }) && history.is_volatile(router) {
            lost.retain(|(of, _)| *of != router);
            live.remove(&router);
        }
        let now = (seen.live() > 0).then_some((seen.rollout, seen.epoch));
        let before = live.get(&router).copied();
        if let Some(before) = before.filter(|before| Some(*before) != now) {
            lost.insert((router, before));
        }
        let Some(now) = now else {
            live.remove(&router);
            continue;
        };
        if lost.contains(&(router, now)) {
            let text = format!("router {router} serves a share again that it had lost: {seen:?}");
            return violated("gap", event.at, text);
        }
        live.insert(router, now);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tale::{history, saw, seen};
    use super::*;
    use crate::history::Seen;

    #[test]
    fn a_lost_share_needs_a_new_epoch() {
        let lapsed = Seen {
            lapsed: true,
            ..seen(500, 1)
        };
        let story = |again| {
            history(vec![
                (1, saw(seen(500, 1))),
                (2, saw(lapsed)),
                (3, saw(again)),
            ])
        };
        assert!(check(&story(lapsed)).is_ok());
        assert!(check(&story(seen(500, 2))).is_ok());
        assert!(check(&story(seen(500, 1))).is_err());
    }
}
