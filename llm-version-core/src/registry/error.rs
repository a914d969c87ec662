//! What a registry refuses, and how it fails.

use thiserror::Error;

use super::StoreError;
use crate::diff::BumpTooSmall;
use crate::digest::Digest;
use crate::id::{BundleRef, VersionId};
use crate::name::Name;
use crate::version::Version;

/// Why a registry refused or failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The store failed. After a failed write the outcome is unknown until the registry is read again.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log is broken; nothing is overwritten.
    #[error("log entry {seq}: {why}")]
    Log {
        /// The entry.
        seq: u64,
        /// What is wrong with it.
        why: String,
    },
    /// The log is shorter than a head that was seen before, or is another log.
    #[error(
        "the log has {found} entries and does not contain the known head of {known}; it was cut or replaced"
    )]
    LogCut {
        /// Entries found.
        found: u64,
        /// Entries known.
        known: u64,
    },
    /// No such version.
    #[error("{0} is not published here")]
    Unknown(String),
    /// A version whose bytes were collected.
    #[error("{0} was published, and its bytes have been collected since")]
    Removed(VersionId),
    /// A reference that more than one version matches.
    #[error("{reference} is ambiguous: {}", candidates.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Ambiguous {
        /// The reference.
        reference: BundleRef,
        /// The versions that it matches.
        candidates: Vec<VersionId>,
    },
    /// The version number is taken by another content.
    #[error("{}/v{} is published as {}; versions are immutable, take the next number", taken.name(), taken.version(), taken.digest())]
    VersionTaken {
        /// The version that has it.
        taken: VersionId,
    },
    /// The version is published with another record (lineage, licences).
    #[error(
        "{id} is published with another lineage or licences (record {published}); records are immutable"
    )]
    OtherRecord {
        /// The version.
        id: VersionId,
        /// The record's digest.
        published: Digest,
    },
    /// A version states itself as one of its ancestors.
    #[error("{0} is stated as its own ancestor; parents must not form a circle")]
    OwnAncestor(VersionId),
    /// The version number moved too little.
    #[error("{0}; or state why it is right")]
    SmallBump(#[from] Box<BumpTooSmall>),
    /// The alias points elsewhere than expected: somebody was faster.
    #[error("{name}@{alias} points to {}, not where it was expected; look again", found.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string))]
    AliasMoved {
        /// The bundle's name.
        name: Name,
        /// The alias.
        alias: Name,
        /// Where it points.
        found: Option<VersionId>,
    },
    /// An alias can point only to versions of its own bundle.
    #[error("{id} is not a version of {name}")]
    OtherName {
        /// The bundle's name.
        name: Name,
        /// The version.
        id: VersionId,
    },
    /// A version that was revoked cannot be given an alias.
    #[error("{id} was revoked: {why}")]
    Revoked {
        /// The version.
        id: VersionId,
        /// Why.
        why: String,
    },
    /// A version below the anti-rollback floor cannot be given an alias.
    #[error("{id} is below {floor}, the lowest version that may serve")]
    BelowFloor {
        /// The version.
        id: VersionId,
        /// The floor.
        floor: Version,
    },
    /// A stored manifest is not what the log says.
    #[error("manifest of {id}: {why}")]
    BadManifest {
        /// The version.
        id: VersionId,
        /// What is wrong.
        why: String,
    },
    /// A blob is missing.
    #[error("{path}: blob {digest} is missing; publish the version again")]
    BlobMissing {
        /// The component.
        path: String,
        /// The blob.
        digest: Digest,
    },
    /// The component could not be read where it comes from.
    #[error("{path}: {error}")]
    Source {
        /// The component.
        path: String,
        /// What went wrong.
        error: std::io::Error,
    },
    /// An event or record is too large.
    #[error("{what} has {found} bytes, at most {limit} are kept")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Bytes found.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// Other writers were faster too many times in a row.
    #[error("the log moved on {0} times while this was tried; try again")]
    Busy(u32),
    /// A materialised folder exists already or cannot be written.
    #[error("{folder}: {error}")]
    Folder {
        /// The folder.
        folder: String,
        /// What the system said.
        error: std::io::Error,
    },
}
