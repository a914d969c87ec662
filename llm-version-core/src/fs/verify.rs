//! Verifying a directory against a manifest.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use thiserror::Error;

use super::build::{BuildError, Cancelled, read_metadata, sort_out};
use super::cache::HashCache;
use super::hash::{Hashes, Plan, Run, chunks, hash_files};
use super::problem::Problem;
use super::walk::{Found, Symlinks, walk};
use super::{METADATA_FILE, OnProgress};
use crate::digest::Digest;
use crate::id::VersionId;
use crate::manifest::{Component, Manifest};
use crate::metadata::Metadata;
use crate::path::ComponentPath;
use crate::verify::Mismatch;

/// How to verify a directory.
#[derive(Clone, Copy, Default)]
pub struct VerifyOptions<'a> {
    run: Run<'a>,
    symlinks: Symlinks,
    allow_extra: bool,
    by_chunks: Option<Digest>,
    hint: Option<&'a HashCache>,
}

impl<'a> VerifyOptions<'a> {
    /// All cores, strict: extra files are a difference.
    pub fn new() -> Self {
        Self::default()
    }

    /// Threads to hash on; 0 means one per core.
    #[must_use]
    pub const fn threads(mut self, threads: usize) -> Self {
        self.run.threads = threads;
        self
    }

    /// Calls `progress` while hashing.
    #[must_use]
    pub const fn progress(mut self, progress: OnProgress<'a>) -> Self {
        self.run.progress = Some(progress);
        self
    }

    /// Stops soon after `cancel` becomes true.
    #[must_use]
    pub const fn cancel(mut self, cancel: &'a AtomicBool) -> Self {
        self.run.cancel = Some(cancel);
        self
    }

    /// What to do with symbolic links.
    #[must_use]
    pub const fn symlinks(mut self, symlinks: Symlinks) -> Self {
        self.symlinks = symlinks;
        self
    }

    /// Tolerates entries that the manifest does not list.
    #[must_use]
    pub const fn allow_extra(mut self, allow: bool) -> Self {
        self.allow_extra = allow;
        self
    }

    /// Verifies files by their recorded chunk digests where there are some, so that one huge file uses all cores.
    ///
    /// Chunk digests are recorded beside the bundle digest and not bound by it, so this needs the manifest's
    /// [record digest](Manifest::record_digest) from a place you trust (a registry's log, a signature). It is checked
    /// first.
    #[must_use]
    pub const fn by_chunks(mut self, trusted_record: Digest) -> Self {
        self.by_chunks = Some(trusted_record);
        self
    }

    /// Takes the digests of files whose device, inode, size and times have not changed from `cache`, and notes new ones
    /// there. A hint for quick repeated checks; leave it out where it matters, since times can be forged.
    #[must_use]
    pub const fn hint(mut self, cache: &'a HashCache) -> Self {
        self.hint = Some(cache);
        self
    }
}

impl fmt::Debug for VerifyOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyOptions")
            .field("threads", &self.run.threads)
            .field("symlinks", &self.symlinks)
            .field("allow_extra", &self.allow_extra)
            .field("by_chunks", &self.by_chunks)
            .finish_non_exhaustive()
    }
}

/// Everything in which a directory differs from its manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Missing, extra and modified paths. `metadata.json` counts by what it says, not by its bytes.
    pub mismatch: Mismatch,
    /// Entries that could not be checked or cannot be part of a bundle.
    pub problems: Vec<Problem>,
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.mismatch.is_empty() || self.problems.is_empty() {
            self.mismatch.fmt(f)?;
        }
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

/// Why a directory does not verify.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The directory differs from the manifest.
    #[error("{0}")]
    Differs(Box<VerifyReport>),
    /// The folder itself cannot be listed or resolved.
    #[error("{folder}: {error}")]
    Folder {
        /// The folder.
        folder: String,
        /// What the system said.
        error: io::Error,
    },
    /// The manifest is not the one that the caller trusts.
    #[error(
        "the manifest's record digest is {found}, not the trusted {trusted}; fetch the manifest again"
    )]
    Untrusted {
        /// The digest that the caller trusts.
        trusted: Digest,
        /// The digest of the manifest given.
        found: Digest,
    },
    /// Cancelled by the caller.
    #[error("cancelled")]
    Cancelled,
}

/// Verifies that `dir` holds exactly what `manifest` says, and returns the version id that this proves.
///
/// Without [`VerifyOptions::hint`] every byte is read. `tests/` and a `manifest.json`, README or licence file at the top
/// are outside the digest and not looked at, unless the manifest lists them.
///
/// # Errors
/// Lists missing, extra and modified paths apart, and entries that cannot be checked.
pub fn verify(
    dir: &Path,
    manifest: &Manifest,
    options: &VerifyOptions<'_>,
) -> Result<VersionId, VerifyError> {
    if let Some(trusted) = options.by_chunks {
        let found = manifest.record_digest();
        if found != trusted {
            return Err(VerifyError::Untrusted { trusted, found });
        }
    }
    let component = |path: &str| {
        let components = manifest.components();
        let at = components.binary_search_by(|c| c.path.as_str().cmp(path));
        at.ok().and_then(|at| components.get(at))
    };
    let tree = walk(dir, options.symlinks, &|path| component(path).is_some()).map_err(|error| {
        VerifyError::Folder {
            folder: dir.display().to_string(),
            error,
        }
    })?;
    let mut report = VerifyReport::default();
    let mut to_hash: Vec<Found> = Vec::with_capacity(tree.files.len());
    let mut present = BTreeSet::new();
    for found in tree.files {
        match component(found.path.as_str()) {
            None => report.extra(found.path, options),
            Some(expected) => {
                present.insert(found.path.clone());
                if expected.size == found.stamp.size {
                    to_hash.push(found);
                } else {
                    report.mismatch.modified.insert(found.path);
                }
            }
        }
    }
    for problem in tree.problems {
        let listed = component(&problem.path).is_some();
        if listed || !options.allow_extra {
            report.problems.push(problem);
        }
    }
    for component in manifest.components() {
        let blocked = || {
            report
                .problems
                .iter()
                .any(|p| p.path == component.path.as_str())
        };
        if !present.contains(&component.path) && !blocked() {
            report.mismatch.missing.insert(component.path.clone());
        }
    }
    let chunked = |c: &Component| options.by_chunks.is_some() && !c.chunks.is_empty();
    let known: Vec<Option<Digest>> = to_hash
        .iter()
        .map(|f| options.hint.and_then(|cache| cache.get(&f.stamp)))
        .collect();
    let plans: Vec<Plan> = to_hash
        .iter()
        .zip(&known)
        .map(|(f, known)| match component(f.path.as_str()) {
            _ if known.is_some() => Plan::NOTHING,
            Some(c) if chunked(c) => Plan {
                regions: chunks(c.size).collect(),
                ..Plan::NOTHING
            },
            _ => Plan::WHOLE,
        })
        .collect();
    let results = hash_files(&to_hash, &plans, options.run);
    let hashes = sort_out(&to_hash, results, &mut report.problems)
        .map_err(|Cancelled| VerifyError::Cancelled)?;
    for ((found, hashes), known) in to_hash.into_iter().zip(hashes).zip(known) {
        let (Some(mut hashes), Some(expected)) = (hashes, component(found.path.as_str())) else {
            continue;
        };
        hashes.whole = hashes.whole.or(known);
        if let (Some(cache), Some(digest)) = (options.hint, hashes.whole) {
            cache.note(found.stamp, digest);
        }
        if !agrees(&hashes, expected) {
            report.mismatch.modified.insert(found.path);
        }
    }
    check_metadata(dir, manifest, tree.has_metadata, &mut report);
    if report.mismatch.is_empty() && report.problems.is_empty() {
        Ok(manifest.id().clone())
    } else {
        Err(VerifyError::Differs(Box::new(report)))
    }
}

impl VerifyReport {
    fn extra(&mut self, path: ComponentPath, options: &VerifyOptions<'_>) {
        if !options.allow_extra {
            self.mismatch.extra.insert(path);
        }
    }
}

fn agrees(hashes: &Hashes, expected: &Component) -> bool {
    match hashes.whole {
        Some(whole) => whole == expected.digest,
        None => hashes.regions == expected.chunks,
    }
}

/// `metadata.json` is compared by what it says.
fn check_metadata(dir: &Path, manifest: &Manifest, present: bool, report: &mut VerifyReport) {
    let Ok(path) = ComponentPath::new(METADATA_FILE) else {
        return;
    };
    if manifest.component(&path).is_some() {
        return;
    }
    if !present {
        report.mismatch.missing.insert(path);
        return;
    }
    match read_metadata(dir) {
        Ok(found) if found == Metadata::of(manifest) => {}
        Ok(_) | Err(BuildError::Content { .. }) => {
            report.mismatch.modified.insert(path);
        }
        Err(error) => report.problems.push(Problem::new(
            METADATA_FILE,
            super::problem::ProblemKind::Unreadable {
                error: error.to_string(),
            },
        )),
    }
}
