//! Where versions run, and which load or retirement of each was the newest.

use crate::host::{Error, Result};
use llm_rollout::Position;
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The places of versions. What was newest is kept in memory.
pub(crate) struct Slots<P>(Mutex<BTreeMap<VersionId, Slot<P>>>);

struct Slot<P> {
    place: P,
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

impl<P: Clone + PartialEq> Slots<P> {
    pub(crate) fn new() -> Self {
        Self(Mutex::default())
    }

    /// Says where a version runs. Saying the same again changes nothing.
    pub(crate) fn add(&self, version: VersionId, place: P) -> Result<()> {
        let mut slots = self.lock();
        match slots.get(&version) {
            Some(slot) if slot.place == place => Ok(()),
            Some(_) => Err(Error::permanent(format!(
                "version {version} has another upstream already: one version runs in one place; remove one of the two"
            ))),
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

    /// Takes note of a wish, from when on the version is not ready, or refuses it for its age. Its place, if it has one.
    pub(crate) fn begin(&self, wish: Wish, version: &VersionId, at: Position) -> Result<Option<P>> {
        let mut slots = self.lock();
        let Some(slot) = slots.get_mut(version) else {
            return Ok(None);
        };
        if let Some((_, newest)) = slot.newest.filter(|(_, newest)| at < *newest) {
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
    pub(crate) fn load(&self, version: &VersionId, at: Position) -> Result<P> {
        self.begin(Wish::Load, version, at)?.ok_or_else(|| {
            Error::permanent(format!(
                "version {version} has no upstream: say where it runs"
            ))
        })
    }

    /// Whether this wish is still the newest.
    pub(crate) fn stands(&self, wish: Wish, version: &VersionId, at: Position) -> Result<()> {
        match self.lock().get(version) {
            Some(slot) if slot.newest == Some((wish, at)) => Ok(()),
            _ => Err(Error::permanent(format!(
                "{} version {version} was overtaken: a later step loaded or retired it meanwhile",
                wish.doing()
            ))),
        }
    }

    /// It is loaded, unless a later wish came meanwhile.
    pub(crate) fn loaded(&self, version: &VersionId, at: Position) -> Result<()> {
        self.stands(Wish::Load, version, at)?;
        if let Some(slot) = self.lock().get_mut(version) {
            slot.ready |= slot.newest == Some((Wish::Load, at));
        }
        Ok(())
    }

    /// Whether it has been loaded, and nothing else since.
    pub(crate) fn is_ready(&self, version: &VersionId) -> bool {
        self.lock().get(version).is_some_and(|slot| slot.ready)
    }

    pub(crate) fn place(&self, version: &VersionId) -> Option<P> {
        self.lock().get(version).map(|slot| slot.place.clone())
    }

    /// Whether another version is, or is to be, loaded in such a place.
    pub(crate) fn is_shared(&self, version: &VersionId, such: impl Fn(&P) -> bool) -> bool {
        self.lock().iter().any(|(other, slot)| {
            let wanted = slot.newest.is_some_and(|(wish, _)| wish == Wish::Load);
            other != version && wanted && such(&slot.place)
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VersionId, Slot<P>>> {
        // Whoever panicked in here left it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P> fmt::Debug for Slots<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_list()
            .entries(slots.keys().map(ToString::to_string))
            .finish()
    }
}
