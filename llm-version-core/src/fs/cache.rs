//! Digests of files that have not changed since they were last read: a hint, never a proof.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::walk::Stamp;
use crate::digest::Digest;
use crate::json::{self, JsonError};

/// Digests by device, inode, size, time of modification and time of change.
///
/// Keep it outside of the bundle, as bytes. It can go stale in ways that no key shows (forged times, a write within the
/// clock's granularity, a corrupt disk), so it answers "has anything obviously changed?" and nothing more.
#[derive(Debug, Default)]
pub struct HashCache {
    known: Mutex<BTreeMap<Stamp, Digest>>,
}

/// Why a cache could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("hash cache: {0}; remove the file, it will be made again")]
#[non_exhaustive]
pub struct CacheError(JsonError);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    changed: String,
    device: u64,
    digest: Digest,
    inode: u64,
    modified: String,
    size: u64,
}

impl HashCache {
    /// Entries kept at most; further files are simply hashed each time.
    pub const MAX_ENTRIES: usize = 1_000_000;

    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads what [`HashCache::to_bytes`] wrote.
    ///
    /// # Errors
    /// Says what is malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self, CacheError> {
        let entries: Vec<Entry> = json::from_slice(bytes, 512 << 20).map_err(CacheError)?;
        let known = entries
            .into_iter()
            .take(Self::MAX_ENTRIES)
            .filter_map(|e| {
                let stamp = Stamp {
                    device: e.device,
                    inode: e.inode,
                    size: e.size,
                    modified: e.modified.parse().ok()?,
                    changed: e.changed.parse().ok()?,
                };
                Some((stamp, e.digest))
            })
            .collect();
        Ok(Self {
            known: Mutex::new(known),
        })
    }

    /// The cache as JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let entries: Vec<Entry> = known
            .iter()
            .map(|(stamp, digest)| Entry {
                changed: stamp.changed.to_string(),
                device: stamp.device,
                digest: *digest,
                inode: stamp.inode,
                modified: stamp.modified.to_string(),
                size: stamp.size,
            })
            .collect();
        // Strings and integers serialise without failing.
        serde_json::to_vec(&entries).unwrap_or_default()
    }

    /// Number of files known.
    pub fn len(&self) -> usize {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn get(&self, stamp: &Stamp) -> Option<Digest> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Without inodes (not on Unix) a stamp says too little.
        known.get(stamp).filter(|_| stamp.inode != 0).copied()
    }

    pub(crate) fn note(&self, stamp: Stamp, digest: Digest) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < Self::MAX_ENTRIES {
            known.insert(stamp, digest);
        }
    }
}
