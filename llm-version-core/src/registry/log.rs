//! The audit log: one entry per change, each holding the digest of the one before it. It is all the mutable state a
//! registry has; aliases, tags, pins and the rest are what its entries add up to.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::id::VersionId;
use crate::json::{self, MAX_INTEGER};
use crate::name::Name;
use crate::version::Version;

/// The largest entry that is read or written, in bytes.
pub(super) const MAX_ENTRY: u64 = 1 << 20;

/// Who does something to a registry, when and why. Time is an argument: Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Note {
    /// When, in Unix milliseconds. Times in a log never go back: an earlier one is raised to that of the entry before.
    pub at: u64,
    /// Who.
    pub by: String,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

impl Note {
    /// A note without a reason.
    pub fn new(at: u64, by: impl Into<String>) -> Self {
        Self {
            at,
            by: by.into(),
            why: String::new(),
        }
    }

    /// The same note with a reason.
    #[must_use]
    pub fn because(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
// Fields stand in ascending order: that is the canonical form.
pub enum Event {
    /// An alias was moved by compare-and-set.
    AliasMoved {
        /// The alias.
        alias: Name,
        /// Where it pointed.
        from: Option<VersionId>,
        /// The bundle's name.
        name: Name,
        /// Where it points.
        to: Option<VersionId>,
    },
    /// Garbage was collected: versions that nothing held, and blobs that no version needs.
    Collected {
        /// Blobs to delete.
        blobs: u64,
        /// Their bytes.
        bytes: u64,
        /// Versions removed.
        versions: Vec<VersionId>,
    },
    /// No version below this one may be given an alias any more.
    FloorSet {
        /// The lowest version that may serve.
        floor: Version,
        /// The bundle's name.
        name: Name,
    },
    /// A version is held, whatever happens to aliases.
    Pinned {
        /// Who holds it, such as a rollout.
        holder: String,
        /// The version.
        id: VersionId,
    },
    /// A version was published.
    Published {
        /// The version.
        id: VersionId,
        /// The digest of its manifest's bytes.
        record: Digest,
        /// Why a version number that moved too little was accepted; empty where it was not too small.
        small_bump: String,
    },
    /// Something was recorded about a version, such as an evaluation.
    Recorded {
        /// The blob that holds it.
        body: Digest,
        /// The bundle digest that it is about.
        digest: Digest,
        /// What it is.
        kind: String,
    },
    /// A version must never serve again.
    Revoked {
        /// The version.
        id: VersionId,
    },
    /// Somebody is about to upload a version; its blobs are held for a while.
    Staged {
        /// The version.
        id: VersionId,
        /// The digest of its manifest's bytes.
        record: Digest,
    },
    /// A label was set, or removed.
    Tagged {
        /// The version.
        id: VersionId,
        /// The label.
        key: String,
        /// Its value; `None` where it was removed.
        value: Option<String>,
    },
    /// A version is no longer held by this holder.
    Unpinned {
        /// Who held it.
        holder: String,
        /// The version.
        id: VersionId,
    },
}

/// An entry of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LogEntry {
    /// The digest of the fields below, by which the next entry refers to this one.
    pub digest: Digest,
    /// What happened.
    pub event: Event,
    /// Who, when and why.
    pub note: Note,
    /// The digest of the entry before, or of nothing for the first.
    pub previous: Digest,
    /// Position in the log, from 0.
    pub seq: u64,
}

/// The end of a log. An entry that was edited is found by its digest, one taken out by the next; entries cut off at the
/// end, or rewritten together with every digest after them, are found only by a head that was kept elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LogHead {
    /// Number of entries.
    pub entries: u64,
    /// The digest of the last one.
    pub digest: Digest,
}

impl LogHead {
    /// The head of an empty log.
    pub fn empty() -> Self {
        Self {
            entries: 0,
            digest: Digest::of(b"llm-version/log/1\0"),
        }
    }
}

/// An entry without its own digest.
#[derive(Serialize)]
struct Unsealed<'a> {
    event: &'a Event,
    note: &'a Note,
    previous: &'a Digest,
    seq: u64,
}

impl LogEntry {
    /// The entry after `head`.
    fn new(event: Event, note: Note, head: &LogHead) -> Self {
        let mut entry = Self {
            digest: head.digest,
            event,
            note,
            previous: head.digest,
            seq: head.entries,
        };
        entry.digest = entry.content_digest();
        entry
    }

    /// The digest of everything but the digest.
    fn content_digest(&self) -> Digest {
        let Self {
            event,
            note,
            previous,
            ..
        } = self;
        let unsealed = Unsealed {
            event,
            note,
            previous,
            seq: self.seq,
        };
        // Strings, integers and digests serialise without failing.
        let bytes = serde_json::to_vec(&unsealed).unwrap_or_default();
        let hash = Sha256::new_with_prefix(b"llm-version/log/1\0").chain_update(bytes);
        Digest::new(hash.finalize().into())
    }

    /// The head of a log that ends with this entry.
    pub(super) const fn head(&self) -> LogHead {
        LogHead {
            entries: self.seq + 1,
            digest: self.digest,
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        // Strings, integers and digests serialise without failing; an empty entry would be refused when read.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads an entry and checks that it follows `head`.
    pub(super) fn parse(bytes: &[u8], head: &LogHead) -> Result<Self, String> {
        let entry: Self = json::from_slice(bytes, MAX_ENTRY).map_err(|e| e.to_string())?;
        if entry.seq != head.entries {
            return Err(format!("it says that it is entry {}", entry.seq));
        }
        if entry.previous != head.digest {
            return Err(
                "it does not follow the entry before it; one of them was altered".to_owned(),
            );
        }
        if entry.to_bytes() != bytes {
            return Err("its bytes are not in the canonical form".to_owned());
        }
        if entry.digest != entry.content_digest() {
            return Err("it is not what its digest says; it was altered".to_owned());
        }
        Ok(entry)
    }
}

/// A move of an alias.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AliasMove {
    /// Where it pointed before.
    pub from: Option<VersionId>,
    /// Where it points since.
    pub to: Option<VersionId>,
    /// Who, when and why.
    pub note: Note,
    /// The log entry.
    pub seq: u64,
}

/// What is known about a published version.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VersionInfo {
    /// The digest of its manifest's bytes.
    pub record: Digest,
    /// Who published it, when and why.
    pub published: Note,
    /// Whether it must never serve again, and why.
    pub revoked: Option<Note>,
    /// Whether its bytes were collected.
    pub removed: bool,
    /// Labels.
    pub tags: BTreeMap<String, String>,
    /// Who holds it.
    pub pins: BTreeSet<String>,
}

/// Something recorded about a bundle digest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordInfo {
    /// What it is, such as `evaluation`.
    pub kind: String,
    /// The blob that holds it.
    pub body: Digest,
    /// Who, when and why.
    pub note: Note,
}

/// What the entries of a log add up to.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) head: LogHead,
    pub(super) last_at: u64,
    pub(super) versions: BTreeMap<VersionId, VersionInfo>,
    pub(super) aliases: BTreeMap<(Name, Name), Vec<AliasMove>>,
    pub(super) staged: BTreeMap<(VersionId, Digest), u64>,
    pub(super) records: BTreeMap<Digest, Vec<RecordInfo>>,
    pub(super) floors: BTreeMap<Name, Version>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            head: LogHead::empty(),
            last_at: 0,
            versions: BTreeMap::new(),
            aliases: BTreeMap::new(),
            staged: BTreeMap::new(),
            records: BTreeMap::new(),
            floors: BTreeMap::new(),
        }
    }
}

impl State {
    /// The entry that would record `event` next.
    pub(super) fn next(&self, event: Event, note: &Note) -> LogEntry {
        let mut note = note.clone();
        note.at = note.at.max(self.last_at).min(MAX_INTEGER);
        LogEntry::new(event, note, &self.head)
    }

    /// Folds in the bytes of the next entry.
    pub(super) fn apply(&mut self, bytes: &[u8]) -> Result<(), String> {
        let entry = LogEntry::parse(bytes, &self.head)?;
        self.head = entry.head();
        let LogEntry {
            event, note, seq, ..
        } = entry;
        self.last_at = self.last_at.max(note.at);
        match event {
            Event::Staged { id, record } => {
                self.staged.insert((id, record), note.at);
            }
            Event::Published { id, record, .. } => {
                self.staged.remove(&(id.clone(), record));
                self.versions.entry(id).or_insert(VersionInfo {
                    record,
                    published: note,
                    revoked: None,
                    removed: false,
                    tags: BTreeMap::new(),
                    pins: BTreeSet::new(),
                });
            }
            Event::AliasMoved {
                alias,
                from,
                name,
                to,
            } => {
                let moves = self.aliases.entry((name, alias)).or_default();
                moves.push(AliasMove {
                    from,
                    to,
                    note,
                    seq,
                });
            }
            Event::Tagged { id, key, value } => {
                if let Some(version) = self.versions.get_mut(&id) {
                    match value {
                        Some(value) => version.tags.insert(key, value),
                        None => version.tags.remove(&key),
                    };
                }
            }
            Event::Pinned { holder, id } => {
                if let Some(version) = self.versions.get_mut(&id) {
                    version.pins.insert(holder);
                }
            }
            Event::Unpinned { holder, id } => {
                if let Some(version) = self.versions.get_mut(&id) {
                    version.pins.remove(&holder);
                }
            }
            Event::Revoked { id } => {
                if let Some(version) = self.versions.get_mut(&id) {
                    version.revoked.get_or_insert(note);
                }
            }
            Event::Recorded { body, digest, kind } => {
                let records = self.records.entry(digest).or_default();
                records.push(RecordInfo { kind, body, note });
            }
            Event::FloorSet { floor, name } => {
                let current = self.floors.entry(name).or_insert(floor);
                *current = floor.max(*current);
            }
            Event::Collected { versions, .. } => {
                for id in versions {
                    if let Some(version) = self.versions.get_mut(&id) {
                        version.removed = true;
                    }
                }
            }
        }
        Ok(())
    }

    /// Where an alias points.
    pub(super) fn alias(&self, name: &Name, alias: &Name) -> Option<&VersionId> {
        let moves = self.aliases.get(&(name.clone(), alias.clone()))?;
        moves.last()?.to.as_ref()
    }
}
