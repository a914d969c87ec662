//! Garbage collection: what nothing holds, and nothing else.

use std::collections::BTreeSet;

use super::log::{Event, Note, State};
use super::{Registry, RegistryError, Store, manifest_key};
use crate::digest::Digest;
use crate::id::VersionId;

/// What to collect.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GcOptions {
    /// Only report.
    pub dry_run: bool,
    /// Remove versions that no alias and no pin holds, but for this many of the highest per bundle. `None` removes no
    /// version, only blobs and manifests that no version needs.
    pub keep_latest: Option<usize>,
    /// How many earlier targets of each alias are held besides the current one, so that a rollback finds its bytes.
    pub keep_previous: usize,
    /// How long, in milliseconds, an upload that was begun and not finished is left alone.
    pub upload_grace: u64,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self {
            dry_run: false,
            keep_latest: None,
            keep_previous: 1,
            upload_grace: 24 * 60 * 60 * 1000,
        }
    }
}

/// What was collected, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GcReport {
    /// Versions removed.
    pub versions: Vec<VersionId>,
    /// Blobs deleted.
    pub blobs: Vec<Digest>,
    /// Manifests deleted, by the digest of their bytes.
    pub manifests: Vec<Digest>,
    /// Bytes of the blobs deleted.
    pub bytes: u64,
    /// Blobs kept.
    pub kept_blobs: u64,
    /// Bytes of the blobs kept.
    pub kept_bytes: u64,
}

impl<S: Store> Registry<S> {
    /// Removes what nothing holds. Aliases with [`GcOptions::keep_previous`] of their earlier targets, pins, and uploads
    /// under way hold versions; versions hold blobs; the log holds records.
    ///
    /// The decision is logged before anything is deleted, against the state that it was made from; a crash in between
    /// leaves garbage, never a hole.
    ///
    /// # Errors
    /// When the store fails, the log is broken, or a manifest that is needed to decide is unreadable: then nothing is
    /// deleted.
    pub fn gc(&self, options: &GcOptions, note: &Note) -> Result<GcReport, RegistryError> {
        for _ in 0..super::ATTEMPTS {
            let state = self.state()?;
            let report = self.plan(&state, options, note.at)?;
            let nothing = report.versions.is_empty()
                && report.blobs.is_empty()
                && report.manifests.is_empty();
            if options.dry_run || nothing {
                return Ok(report);
            }
            let event = Event::Collected {
                blobs: report.blobs.len() as u64,
                bytes: report.bytes,
                versions: report.versions.clone(),
            };
            // Logged only if nothing happened since the plan was made.
            let seen = state.head;
            if !self.append(note, |now| Ok((now.head == seen).then(|| event.clone())))? {
                continue;
            }
            return self.sweep(report, options);
        }
        Err(RegistryError::Busy(super::ATTEMPTS))
    }

    fn plan(&self, state: &State, options: &GcOptions, at: u64) -> Result<GcReport, RegistryError> {
        let mut report = GcReport::default();
        let held = held(state, options);
        let (mut blobs, mut manifests) = (BTreeSet::new(), BTreeSet::new());
        for (id, info) in &state.versions {
            if info.removed {
                continue;
            }
            if held.contains(id) {
                manifests.insert(info.record);
                let manifest = self.read_manifest(id, &info.record)?;
                blobs.extend(manifest.components().iter().map(|c| c.digest));
            } else {
                report.versions.push(id.clone());
            }
        }
        let now = at.max(state.last_at);
        for ((id, record), begun) in &state.staged {
            if now.saturating_sub(*begun) <= options.upload_grace {
                manifests.insert(*record);
                if self.store.read(&manifest_key(record))?.is_some() {
                    let manifest = self.read_manifest(id, record)?;
                    blobs.extend(manifest.components().iter().map(|c| c.digest));
                }
            }
        }
        blobs.extend(state.records.values().flatten().map(|r| r.body));
        for (digest, size) in self.store.blobs()? {
            if blobs.contains(&digest) {
                report.kept_blobs += 1;
                report.kept_bytes += size;
            } else {
                report.blobs.push(digest);
                report.bytes += size;
            }
        }
        for key in self.store.list("manifests/")? {
            let name = key
                .strip_prefix("manifests/")
                .and_then(|k| k.strip_suffix(".json"));
            // A name that is no digest is not ours to delete.
            if let Some(record) = name.and_then(|n| n.parse::<Digest>().ok())
                && !manifests.contains(&record)
            {
                report.manifests.push(record);
            }
        }
        Ok(report)
    }

    /// Deletes what was planned, looking before each step whether somebody needs it again by now.
    fn sweep(&self, mut report: GcReport, options: &GcOptions) -> Result<GcReport, RegistryError> {
        let mut seen = self.head()?;
        let mut i = 0;
        while let Some(digest) = report.blobs.get(i).copied() {
            let now = self.head()?;
            if now != seen {
                seen = now;
                let state = self.state()?;
                let again = self.plan(&state, options, state.last_at)?;
                let garbage: BTreeSet<Digest> = again.blobs.into_iter().collect();
                let rest = report.blobs.split_off(i);
                report
                    .blobs
                    .extend(rest.into_iter().filter(|d| garbage.contains(d)));
                let garbage: BTreeSet<Digest> = again.manifests.into_iter().collect();
                report.manifests.retain(|d| garbage.contains(d));
                continue;
            }
            self.store.delete_blob(&digest)?;
            i += 1;
        }
        for record in &report.manifests {
            self.store.delete(&manifest_key(record))?;
        }
        Ok(report)
    }
}

/// The versions that something holds.
fn held(state: &State, options: &GcOptions) -> BTreeSet<VersionId> {
    let mut held = BTreeSet::new();
    for moves in state.aliases.values() {
        let mut targets = moves.iter().rev().filter_map(|m| m.to.as_ref());
        let mut distinct: Vec<&VersionId> = Vec::new();
        // The current target, even where the alias points nowhere now, and the ones before it.
        while let Some(id) = targets
            .next()
            .filter(|_| distinct.len() <= options.keep_previous)
        {
            if !distinct.contains(&id) {
                distinct.push(id);
            }
        }
        held.extend(distinct.into_iter().cloned());
    }
    let live = || state.versions.iter().filter(|(_, info)| !info.removed);
    held.extend(
        live()
            .filter(|(_, info)| !info.pins.is_empty())
            .map(|(id, _)| id.clone()),
    );
    let Some(latest) = options.keep_latest else {
        held.extend(live().map(|(id, _)| id.clone()));
        return held;
    };
    let mut ids: Vec<&VersionId> = live().map(|(id, _)| id).collect();
    ids.reverse();
    let (mut name, mut kept) = (None, 0);
    for id in ids {
        if name != Some(id.name()) {
            (name, kept) = (Some(id.name()), 0);
        }
        if kept < latest {
            held.insert(id.clone());
            kept += 1;
        }
    }
    held
}
