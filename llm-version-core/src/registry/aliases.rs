//! Aliases, labels, pins, revocations and the floor.

use super::log::{AliasMove, Event, Note, State};
use super::{Registry, RegistryError, Store};
use crate::id::VersionId;
use crate::name::Name;
use crate::version::Version;

impl<S: Store> Registry<S> {
    /// Where an alias points.
    ///
    /// # Errors
    /// When the store fails or the log is broken.
    pub fn alias(&self, name: &Name, alias: &Name) -> Result<Option<VersionId>, RegistryError> {
        Ok(self.catch_up()?.alias(name, alias).cloned())
    }

    /// All aliases of a bundle that point somewhere.
    ///
    /// # Errors
    /// When the store fails or the log is broken.
    pub fn aliases(&self, name: &Name) -> Result<Vec<(Name, VersionId)>, RegistryError> {
        let state = self.catch_up()?;
        let of_name = state.aliases.iter().filter(|((n, _), _)| n == name);
        let current = of_name.filter_map(|((_, alias), moves)| {
            let to = moves.last()?.to.clone()?;
            Some((alias.clone(), to))
        });
        Ok(current.collect())
    }

    /// Every move of an alias, oldest first.
    ///
    /// # Errors
    /// When the store fails or the log is broken.
    pub fn alias_history(
        &self,
        name: &Name,
        alias: &Name,
    ) -> Result<Vec<AliasMove>, RegistryError> {
        let state = self.catch_up()?;
        let moves = state.aliases.get(&(name.clone(), alias.clone()));
        Ok(moves.cloned().unwrap_or_default())
    }

    /// Where an alias pointed at a time in Unix milliseconds.
    ///
    /// # Errors
    /// When the store fails or the log is broken.
    pub fn alias_at(
        &self,
        name: &Name,
        alias: &Name,
        at: u64,
    ) -> Result<Option<VersionId>, RegistryError> {
        let moves = self.alias_history(name, alias)?;
        let last = moves.into_iter().rev().find(|m| m.note.at <= at);
        Ok(last.and_then(|m| m.to))
    }

    /// Moves an alias from where the caller saw it to where it should point; `None` stands for nowhere.
    ///
    /// # Errors
    /// [`RegistryError::AliasMoved`] when it points elsewhere than `expected`: no update is ever lost. Refuses targets
    /// that are unknown, removed, revoked, below the floor or of another bundle.
    pub fn move_alias(
        &self,
        name: &Name,
        alias: &Name,
        expected: Option<&VersionId>,
        to: Option<&VersionId>,
        note: &Note,
    ) -> Result<(), RegistryError> {
        let decide = |state: &State| {
            let found = state.alias(name, alias);
            if found != expected {
                return Err(RegistryError::AliasMoved {
                    name: name.clone(),
                    alias: alias.clone(),
                    found: found.cloned(),
                });
            }
            if let Some(id) = to {
                check_target(state, name, id)?;
            }
            Ok(Some(Event::AliasMoved {
                alias: alias.clone(),
                from: expected.cloned(),
                name: name.clone(),
                to: to.cloned(),
            }))
        };
        self.append(note, decide).map(|_| ())
    }

    /// Sets a label of a version, or removes it with `None`.
    ///
    /// # Errors
    /// When the version is unknown or the store fails.
    pub fn tag(
        &self,
        id: &VersionId,
        key: &str,
        value: Option<&str>,
        note: &Note,
    ) -> Result<(), RegistryError> {
        self.about(id, note, |id| Event::Tagged {
            id,
            key: key.to_owned(),
            value: value.map(ToOwned::to_owned),
        })
    }

    /// Holds a version against garbage collection, as a running rollout does.
    ///
    /// # Errors
    /// When the version is unknown or removed, or the store fails.
    pub fn pin(&self, id: &VersionId, holder: &str, note: &Note) -> Result<(), RegistryError> {
        self.about(id, note, |id| Event::Pinned {
            holder: holder.to_owned(),
            id,
        })
    }

    /// Lets go of a version that [`Registry::pin`] held.
    ///
    /// # Errors
    /// When the version is unknown or the store fails.
    pub fn unpin(&self, id: &VersionId, holder: &str, note: &Note) -> Result<(), RegistryError> {
        self.about(id, note, |id| Event::Unpinned {
            holder: holder.to_owned(),
            id,
        })
    }

    /// Declares that a version must never be given an alias again. Aliases that point to it stay: move them.
    ///
    /// # Errors
    /// When the version is unknown or the store fails.
    pub fn revoke(&self, id: &VersionId, note: &Note) -> Result<(), RegistryError> {
        self.about(id, note, |id| Event::Revoked { id })
    }

    /// Declares the lowest version that may be given an alias. It only rises.
    ///
    /// # Errors
    /// When the store fails or the log is broken.
    pub fn set_floor(&self, name: &Name, floor: Version, note: &Note) -> Result<(), RegistryError> {
        let name = name.clone();
        self.append(note, |_| {
            let name = name.clone();
            Ok(Some(Event::FloorSet { floor, name }))
        })
        .map(|_| ())
    }

    /// The lowest version that may be given an alias.
    ///
    /// # Errors
    /// When the store fails or the log is broken.
    pub fn floor(&self, name: &Name) -> Result<Option<Version>, RegistryError> {
        Ok(self.catch_up()?.floors.get(name).copied())
    }

    fn about(
        &self,
        id: &VersionId,
        note: &Note,
        event: impl Fn(VersionId) -> Event,
    ) -> Result<(), RegistryError> {
        let decide = |state: &State| match state.versions.get(id) {
            None => Err(RegistryError::Unknown(id.to_string())),
            Some(info) if info.removed => Err(RegistryError::Removed(id.clone())),
            Some(_) => Ok(Some(event(id.clone()))),
        };
        self.append(note, decide).map(|_| ())
    }
}

fn check_target(state: &State, name: &Name, id: &VersionId) -> Result<(), RegistryError> {
    if id.name() != name {
        return Err(RegistryError::OtherName {
            name: name.clone(),
            id: id.clone(),
        });
    }
    match state.versions.get(id) {
        None => return Err(RegistryError::Unknown(id.to_string())),
        Some(info) if info.removed => return Err(RegistryError::Removed(id.clone())),
        Some(info) => {
            if let Some(note) = &info.revoked {
                return Err(RegistryError::Revoked {
                    id: id.clone(),
                    why: note.why.clone(),
                });
            }
        }
    }
    match state.floors.get(name) {
        Some(floor) if id.version() < *floor => Err(RegistryError::BelowFloor {
            id: id.clone(),
            floor: *floor,
        }),
        _ => Ok(()),
    }
}
