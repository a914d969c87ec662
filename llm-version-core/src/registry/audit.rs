//! Records about versions, the audit log, and checking what is stored.

use std::io::Read;
use std::sync::PoisonError;

use super::log::{Event, LogEntry, LogHead, Note, RecordInfo};
use super::{Registry, RegistryError, Store, copy_verified, log_key};
use crate::digest::Digest;
use crate::id::VersionId;

/// The largest body of a record, in bytes.
const MAX_RECORD: u64 = 64 << 20;

impl<S: Store> Registry<S> {
    /// Records something about a version, such as an evaluation. It never changes the version.
    ///
    /// # Errors
    /// When the version is unknown, the body too large, or the store fails.
    pub fn record(
        &self,
        id: &VersionId,
        kind: &str,
        body: &[u8],
        note: &Note,
    ) -> Result<(), RegistryError> {
        self.info(id)?;
        if body.len() as u64 > MAX_RECORD {
            return Err(RegistryError::TooLarge {
                what: "the record",
                found: body.len() as u64,
                limit: MAX_RECORD,
            });
        }
        let event = |body: &[u8]| Event::Recorded {
            body: Digest::of(body),
            digest: *id.digest(),
            kind: kind.to_owned(),
        };
        // Logged first: a blob that the log names is never garbage.
        self.append(note, |_| Ok(Some(event(body))))?;
        let mut bytes = body;
        Ok(self.store.put_blob(&Digest::of(body), &mut bytes)?)
    }

    /// What was recorded about a version, oldest first. The bodies are blobs: see [`Registry::read_record`].
    ///
    /// # Errors
    /// When the store fails or the log is broken.
    pub fn records(&self, id: &VersionId) -> Result<Vec<RecordInfo>, RegistryError> {
        let state = self.catch_up()?;
        Ok(state.records.get(id.digest()).cloned().unwrap_or_default())
    }

    /// The body of a record, verified; `None` where writing it never finished.
    ///
    /// # Errors
    /// When the store fails or the body was altered.
    pub fn read_record(&self, record: &RecordInfo) -> Result<Option<Vec<u8>>, RegistryError> {
        let Some(blob) = self.store.open_blob(&record.body)? else {
            return Ok(None);
        };
        let mut body = Vec::new();
        copy_verified(&record.body, &mut blob.take(MAX_RECORD + 1), &mut body)?;
        Ok(Some(body))
    }

    /// The end of the log. Keep it elsewhere (print it, sign it) to find out later whether the log was cut.
    ///
    /// # Errors
    /// When the store fails or the log is broken.
    pub fn head(&self) -> Result<LogHead, RegistryError> {
        Ok(self.catch_up()?.head)
    }

    /// Reads the log from the store and checks every entry and link, and that it contains `known`.
    ///
    /// # Errors
    /// Names the first entry that was altered or is missing, or says that the log was cut.
    pub fn verify_log(&self, known: Option<&LogHead>) -> Result<Vec<LogEntry>, RegistryError> {
        let (mut head, mut entries) = (LogHead::empty(), Vec::new());
        let mut contains = known.is_none_or(|k| *k == head);
        while let Some(bytes) = self.store.read(&log_key(head.entries))? {
            let entry = LogEntry::parse(&bytes, &head).map_err(|why| RegistryError::Log {
                seq: head.entries,
                why,
            })?;
            head = entry.head();
            contains |= known == Some(&head);
            entries.push(entry);
        }
        // Entries after a gap mean that one was taken out.
        let last = self.store.list("log/")?.pop();
        if last.is_some_and(|key| key >= log_key(head.entries)) {
            return Err(RegistryError::Log {
                seq: head.entries,
                why: "it is missing, although later ones exist".to_owned(),
            });
        }
        let seen = self
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .head;
        let known = known.filter(|_| !contains).copied();
        match known.or((seen.entries > head.entries).then_some(seen)) {
            Some(known) => Err(RegistryError::LogCut {
                found: head.entries,
                known: known.entries,
            }),
            None => Ok(entries),
        }
    }

    /// Reads every blob of a version and checks it.
    ///
    /// # Errors
    /// Names the first blob that is missing or altered.
    pub fn verify_version(&self, id: &VersionId) -> Result<(), RegistryError> {
        let manifest = self.manifest(id)?;
        for component in manifest.components() {
            let Some(mut blob) = self.store.open_blob(&component.digest)? else {
                return Err(RegistryError::BlobMissing {
                    path: component.path.to_string(),
                    digest: component.digest,
                });
            };
            copy_verified(&component.digest, &mut blob, &mut std::io::sink())?;
        }
        Ok(())
    }
}
