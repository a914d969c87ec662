//! Which versions a backend knows, where each runs, and which order was the newest for each.
#![allow(dead_code, reason = "each server needs its part of it")]

use crate::host::{Error, Result};
use llm_rollout::Position;
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Versions and where they run. Orders are kept in memory only: right after a restart an old one is not recognised.
pub(crate) struct Fleet<T>(Mutex<BTreeMap<VersionId, Slot<T>>>);

struct Slot<T> {
    place: T,
    newest: Option<(Wish, Position)>,
    ready: bool,
}

/// What is to become of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Load,
    Standby,
    Retire,
}

impl Wish {
    fn doing(self) -> &'static str {
        match self {
            Self::Load => "loading",
            Self::Standby => "putting on standby",
            Self::Retire => "retiring",
        }
    }
}

/// How often is looked whether a later order came.
const AGAIN: Duration = Duration::from_millis(50);

impl<T> Default for Fleet<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone + PartialEq> Fleet<T> {
    fn slots(&self) -> MutexGuard<'_, BTreeMap<VersionId, Slot<T>>> {
        // Whoever panicked in here left it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says where a version runs, which others may too. Saying the same again changes nothing.
    pub(crate) fn add(&self, version: VersionId, place: T) -> Result<()> {
        self.put(version, place, true)
    }

    /// The same for a place that takes one version.
    pub(crate) fn add_alone(&self, version: VersionId, place: T) -> Result<()> {
        self.put(version, place, false)
    }

    fn put(&self, version: VersionId, place: T, shared: bool) -> Result<()> {
        let mut slots = self.slots();
        match slots.get(&version) {
            Some(slot) if slot.place == place => Ok(()),
            Some(_) => Err(Error::permanent(format!(
                "version {version} runs somewhere else already: one version runs in one place; remove one of the two"
            ))),
            None if !shared && slots.values().any(|slot| slot.place == place) => {
                Err(Error::permanent(format!(
                    "another version runs where version {version} is to run: give each a place of its own"
                )))
            }
            None => {
                let slot = Slot {
                    place,
                    newest: None,
                    ready: false,
                };
                slots.insert(version, slot);
                Ok(())
            }
        }
    }

    pub(crate) fn place(&self, version: &VersionId) -> Option<T> {
        self.slots().get(version).map(|slot| slot.place.clone())
    }

    /// Takes note of an order, from when on the version is not ready, or refuses it for its age. Its place, if it has one: what runs
    /// nowhere has been retired.
    pub(crate) fn begin(&self, wish: Wish, version: &VersionId, at: Position) -> Result<Option<T>> {
        let mut slots = self.slots();
        let Some(slot) = slots.get_mut(version) else {
            return Ok(None);
        };
        if let Some((_, newest)) = slot.newest.filter(|&(_, newest)| at < newest) {
            return Err(Error::permanent(format!(
                "{} version {version} at fence {} step {} is refused: fence {} step {} came later; its controller has been replaced",
                wish.doing(),
                at.fence,
                at.seq,
                newest.fence,
                newest.seq
            )));
        }
        slot.newest = Some((wish, at));
        slot.ready = false;
        Ok(Some(slot.place.clone()))
    }

    /// The same for a load, which needs a place.
    pub(crate) fn load(&self, version: &VersionId, at: Position) -> Result<T> {
        self.begin(Wish::Load, version, at)?.ok_or_else(|| {
            Error::permanent(format!(
                "version {version} has no place to run: say where with `add`"
            ))
        })
    }

    /// Whether this order is still the newest, which a later one may have become in the meantime.
    pub(crate) fn stands(&self, wish: Wish, version: &VersionId, at: Position) -> Result<()> {
        match self.slots().get(version) {
            Some(slot) if slot.newest == Some((wish, at)) => Ok(()),
            _ => Err(Error::permanent(format!(
                "{} version {version} was overtaken: a later step loaded or retired it meanwhile",
                wish.doing()
            ))),
        }
    }

    /// Ends once a later order for this version came, with what to tell who wanted it loaded: some servers never answer what they
    /// were asked before it.
    pub(crate) async fn overtaken(&self, version: &VersionId, at: Position) -> Error {
        loop {
            tokio::time::sleep(AGAIN).await;
            if let Err(later) = self.stands(Wish::Load, version, at) {
                return later;
            }
        }
    }

    /// The version can serve, unless a later order came.
    pub(crate) fn ready(&self, version: &VersionId, at: Position) -> Result<()> {
        self.stands(Wish::Load, version, at)?;
        if let Some(slot) = self.slots().get_mut(version) {
            slot.ready |= slot.newest == Some((Wish::Load, at));
        }
        Ok(())
    }

    /// Whether the version has been prepared, and not retired since.
    pub(crate) fn is_ready(&self, version: &VersionId) -> bool {
        self.slots().get(version).is_some_and(|slot| slot.ready)
    }

    /// Whether the version has been told to rest: what was not told anything yet may run all the same.
    pub(crate) fn rests(&self, version: &VersionId) -> bool {
        let slots = self.slots();
        let newest = slots.get(version).and_then(|slot| slot.newest);
        newest.is_some_and(|(wish, _)| wish != Wish::Load)
    }

    /// Whether another version is, or is to be, loaded in such a place.
    pub(crate) fn is_shared(&self, version: &VersionId, such: impl Fn(&T) -> bool) -> bool {
        self.slots().iter().any(|(other, slot)| {
            let wanted = slot.newest.is_some_and(|(wish, _)| wish == Wish::Load);
            other != version && wanted && such(&slot.place)
        })
    }

    /// The place of the version that was prepared last and is still ready, other than this one.
    pub(crate) fn newest_ready_but(&self, version: &VersionId) -> Option<T> {
        let slots = self.slots();
        let others = slots
            .iter()
            .filter(|(id, slot)| slot.ready && *id != version);
        others
            .max_by_key(|(_, slot)| slot.newest.map(|(_, at)| at))
            .map(|(_, slot)| slot.place.clone())
    }
}

impl<T> fmt::Debug for Fleet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_list()
            .entries(slots.keys().map(ToString::to_string))
            .finish()
    }
}

/// The time that one order has, for all that it does.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    end: Instant,
    whole: Duration,
}

impl Deadline {
    pub(super) fn after(whole: Duration) -> Self {
        let end = Instant::now() + whole;
        Self { end, whole }
    }

    /// What is left of it.
    pub(super) fn left(&self, what: &str) -> Result<Duration> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.over(what));
        }
        Ok(left)
    }

    fn over(&self, what: &str) -> Error {
        Error::transient(format!(
            "{what} was not done within {:?}: give it more time, or look at its server",
            self.whole
        ))
    }

    /// Waits a little before the next question; longer each time, up to half a second.
    pub(super) async fn pause(&self, what: &str, pause: &mut Duration) -> Result<()> {
        *pause = (*pause * 2).clamp(Duration::from_millis(20), Duration::from_millis(500));
        tokio::time::sleep(self.left(what)?.min(*pause)).await;
        Ok(())
    }

    /// Does it within what is left.
    pub(super) async fn of<T>(&self, what: &str, work: impl Future<Output = T>) -> Result<T> {
        tokio::time::timeout(self.left(what)?, work)
            .await
            .map_err(|_| self.over(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use llm_rollout::{Fence, Seq};

    fn version(digit: char) -> VersionId {
        format!("chat/v1.0.0-{}", digit.to_string().repeat(64))
            .parse()
            .unwrap()
    }

    fn at(fence: u64, seq: u64) -> Position {
        Position {
            fence: Fence::new(fence),
            seq: Seq::new(seq),
        }
    }

    #[test]
    fn the_newest_order_decides_whether_a_version_is_ready() {
        let (fleet, v) = (Fleet::default(), version('1'));
        fleet.add(v.clone(), "a").unwrap();
        let retire = |at| fleet.begin(Wish::Retire, &v, at);
        assert_eq!(fleet.load(&v, at(2, 5)).unwrap(), "a");
        fleet.ready(&v, at(2, 5)).unwrap();
        for old in [at(2, 4), at(1, 9)] {
            assert!(fleet.load(&v, old).is_err() && retire(old).is_err());
        }
        assert!(fleet.is_ready(&v), "what is refused has no effect");
        fleet.load(&v, at(2, 6)).unwrap();
        assert!(!fleet.rests(&v));
        retire(at(2, 7)).unwrap();
        assert!(fleet.stands(Wish::Load, &v, at(2, 6)).is_err());
        assert!(fleet.ready(&v, at(2, 6)).is_err() && fleet.ready(&v, at(2, 7)).is_err());
        assert!(!fleet.is_ready(&v) && fleet.rests(&v));
        assert!(fleet.load(&version('9'), at(3, 0)).is_err());
        let nowhere = fleet.begin(Wish::Retire, &version('9'), at(3, 0));
        assert_eq!(nowhere.unwrap(), None);
    }

    #[test]
    fn each_version_has_a_place_of_its_own() {
        let fleet = Fleet::default();
        fleet.add_alone(version('1'), "a").unwrap();
        fleet.add_alone(version('1'), "a").unwrap();
        assert!(fleet.add_alone(version('1'), "b").is_err());
        assert!(fleet.add_alone(version('2'), "a").is_err());
        fleet.add_alone(version('2'), "b").unwrap();
        assert_eq!(fleet.newest_ready_but(&version('1')), None);
        for (v, seq) in [('1', 2), ('2', 1)] {
            fleet.load(&version(v), at(1, seq)).unwrap();
            fleet.ready(&version(v), at(1, seq)).unwrap();
        }
        assert_eq!(fleet.newest_ready_but(&version('1')), Some("b"));
        assert_eq!(fleet.newest_ready_but(&version('9')), Some("a"));
        // Where several may run, a place is needed while one of them is wanted there.
        fleet.add(version('3'), "a").unwrap();
        let at_a = |place: &&str| *place == "a";
        assert!(fleet.is_shared(&version('3'), at_a) && !fleet.is_shared(&version('1'), at_a));
    }
}
