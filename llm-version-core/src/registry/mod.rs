//! A registry of versions: immutable, content-addressed, with aliases that move by compare-and-set and a log of
//! everything that was ever done.
//!
//! A [`Registry`] works on any [`Store`]. Its mutable state is one append-only log in which every entry holds the digest
//! of the one before it, and an entry is appended by creating the object of the next number: of two writers one wins,
//! the other reads what happened and decides again. So there are no locks to be left behind, a crash at any instant
//! leaves a whole log, and "what was production at time T?" is always answered.

mod aliases;
mod audit;
pub mod conformance;
mod error;
mod gc;
mod log;
mod publish;
mod store;
mod trace;

use std::sync::{Mutex, PoisonError};

pub use error::RegistryError;
pub use gc::{GcOptions, GcReport};
pub use log::{AliasMove, Event, LogEntry, LogHead, Note, RecordInfo, VersionInfo};
pub use publish::{Publish, Source};
pub use store::{Created, MemoryStore, Store, StoreError};
pub use trace::Trace;

pub(crate) use store::copy_verified;

use crate::digest::Digest;
use crate::id::{BundleRef, VersionId};
use crate::manifest::{Manifest, ManifestError};
use crate::name::Name;
use log::State;

/// A registry of versions in a store.
///
/// ```
/// use llm_version_core::registry::{MemoryStore, Note, Publish, Registry};
/// use llm_version_core::{Component, ComponentKind, Digest, Draft, Name, Version};
///
/// let prompt = b"You are helpful.";
/// let mut draft = Draft::new(Name::new("chat")?, Version::new(1, 0, 0));
/// draft.components.push(Component::new(
///     "prompt/system.txt".parse()?, ComponentKind::Prompt, prompt.len() as u64, Digest::of(prompt),
/// ));
/// let manifest = draft.finish()?;
///
/// let registry = Registry::open(MemoryStore::new())?;
/// let note = Note::new(1_700_000_000_000, "ana");
/// let source = |_: &Component| Ok(Box::new(&prompt[..]) as Box<dyn std::io::Read>);
/// let id = registry.publish(&manifest, &source, &Publish::new(), &note)?;
///
/// let (name, production) = (Name::new("chat")?, Name::new("production")?);
/// registry.move_alias(&name, &production, None, Some(&id), &note)?;
/// assert_eq!(registry.alias(&name, &production)?, Some(id.clone()));
/// assert_eq!(registry.resolve(&id.reference())?, id);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Registry<S> {
    store: S,
    state: Mutex<State>,
}

/// Attempts against other writers before giving up.
const ATTEMPTS: u32 = 1_000;

fn log_key(seq: u64) -> String {
    format!("log/{seq:020}.json")
}

fn manifest_key(record: &Digest) -> String {
    format!("manifests/{record}.json")
}

impl<S: Store> Registry<S> {
    /// Opens the registry in `store`, reading and checking its whole log. An empty store is an empty registry.
    ///
    /// # Errors
    /// When the store fails or the log is broken.
    pub fn open(store: S) -> Result<Self, RegistryError> {
        let registry = Self {
            store,
            state: Mutex::new(State::default()),
        };
        registry.state()?;
        Ok(registry)
    }

    /// The store.
    pub const fn store(&self) -> &S {
        &self.store
    }

    /// The state after everything that is in the log by now.
    fn state(&self) -> Result<State, RegistryError> {
        self.catch_up().map(|state| state.clone())
    }

    fn catch_up(&self) -> Result<std::sync::MutexGuard<'_, State>, RegistryError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let seq = state.head.entries;
            let Some(bytes) = self.store.read(&log_key(seq))? else {
                return Ok(state);
            };
            state
                .apply(&bytes)
                .map_err(|why| RegistryError::Log { seq, why })?;
        }
    }

    /// Appends what `decide` makes of the newest state; decides again whenever another writer was faster. `None` means
    /// that nothing is to be logged. Returns whether something was.
    fn append(
        &self,
        note: &Note,
        decide: impl Fn(&State) -> Result<Option<Event>, RegistryError>,
    ) -> Result<bool, RegistryError> {
        for _ in 0..ATTEMPTS {
            let mut state = self.catch_up()?;
            let Some(event) = decide(&state)? else {
                return Ok(false);
            };
            let entry = state.next(event, note);
            let bytes = entry.to_bytes();
            if bytes.len() as u64 > log::MAX_ENTRY {
                return Err(RegistryError::TooLarge {
                    what: "the log entry",
                    found: bytes.len() as u64,
                    limit: log::MAX_ENTRY,
                });
            }
            let key = log_key(entry.seq);
            // Who repeats a creation whose reply was lost finds his own entry.
            let ours = self.store.create(&key, &bytes)? == Created::New
                || self.store.read(&key)?.is_some_and(|found| found == bytes);
            if ours {
                state.apply(&bytes).map_err(|why| RegistryError::Log {
                    seq: entry.seq,
                    why,
                })?;
                return Ok(true);
            }
        }
        Err(RegistryError::Busy(ATTEMPTS))
    }

    /// The manifest of a version, checked against the log.
    ///
    /// # Errors
    /// When the version is unknown or removed, or its manifest was altered.
    pub fn manifest(&self, id: &VersionId) -> Result<Manifest, RegistryError> {
        let info = self.info(id)?;
        if info.removed {
            return Err(RegistryError::Removed(id.clone()));
        }
        self.read_manifest(id, &info.record)
    }

    fn read_manifest(&self, id: &VersionId, record: &Digest) -> Result<Manifest, RegistryError> {
        let bad = |why: String| RegistryError::BadManifest {
            id: id.clone(),
            why,
        };
        let bytes = self
            .store
            .read(&manifest_key(record))?
            .ok_or_else(|| bad("it is missing".to_owned()))?;
        let manifest = Manifest::parse(&bytes).map_err(|e: ManifestError| bad(e.to_string()))?;
        if manifest.id() != id || manifest.record_digest() != *record {
            return Err(bad("it is not the one that the log names".to_owned()));
        }
        Ok(manifest)
    }

    /// What is known about a version.
    ///
    /// # Errors
    /// When it is unknown or the store fails.
    pub fn info(&self, id: &VersionId) -> Result<VersionInfo, RegistryError> {
        let state = self.catch_up()?;
        let info = state.versions.get(id).cloned();
        info.ok_or_else(|| RegistryError::Unknown(id.to_string()))
    }

    /// The versions of a bundle whose bytes are here, ascending.
    ///
    /// # Errors
    /// When the store fails or the log is broken.
    pub fn versions(&self, name: &Name) -> Result<Vec<VersionId>, RegistryError> {
        let state = self.catch_up()?;
        let here = state.versions.iter().filter(|(_, info)| !info.removed);
        let ids = here.map(|(id, _)| id).filter(|id| id.name() == name);
        Ok(ids.cloned().collect())
    }

    /// The names of all bundles.
    ///
    /// # Errors
    /// When the store fails or the log is broken.
    pub fn names(&self) -> Result<Vec<Name>, RegistryError> {
        let state = self.catch_up()?;
        let mut names: Vec<Name> = state.versions.keys().map(|id| id.name().clone()).collect();
        names.dedup();
        Ok(names)
    }

    /// The one version that a reference means.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`] or [`RegistryError::Ambiguous`].
    pub fn resolve(&self, reference: &BundleRef) -> Result<VersionId, RegistryError> {
        let state = self.catch_up()?;
        let matching = state.versions.keys().filter(|id| reference.matches(id));
        let mut candidates: Vec<VersionId> = matching.cloned().collect();
        match (candidates.pop(), candidates.is_empty()) {
            (None, _) => Err(RegistryError::Unknown(reference.to_string())),
            (Some(only), true) => Ok(only),
            (Some(last), false) => {
                candidates.push(last);
                Err(RegistryError::Ambiguous {
                    reference: reference.clone(),
                    candidates,
                })
            }
        }
    }
}
