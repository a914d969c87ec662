//! Publishing: blobs first, then the manifest, then the log entry that makes them a version.

use std::io::Read;
use std::path::PathBuf;

use super::log::{Event, Note, State};
use super::{Registry, RegistryError, Store, manifest_key};
use crate::diff::{Contents, diff_contents};
use crate::digest::Digest;
use crate::id::VersionId;
use crate::manifest::{Component, Manifest};

/// Where the bytes of components come from when a version is published. Closures do.
pub trait Source {
    /// Opens a component for reading.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self, component: &Component) -> std::io::Result<Box<dyn Read + '_>>;

    /// The file that holds a component, where it is a file of this machine: a registry on the same file system can share
    /// its blocks instead of copying it.
    fn file(&self, component: &Component) -> Option<PathBuf> {
        let _ = component;
        None
    }
}

impl<F> Source for F
where
    F: Fn(&Component) -> std::io::Result<Box<dyn Read>>,
{
    fn open(&self, component: &Component) -> std::io::Result<Box<dyn Read + '_>> {
        self(component)
    }
}

/// How to publish.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Publish {
    /// Why a version number that moved too little is right; such a version is refused without.
    pub small_bump: Option<String>,
    /// The version to compare with; by default the highest below the new one.
    pub previous: Option<VersionId>,
}

impl Publish {
    /// Compares with the highest version below the new one, and refuses a bump that is too small.
    pub fn new() -> Self {
        Self::default()
    }
}

/// A source as contents to compare.
struct NewContents<'a>(&'a dyn Source);

/// Reads one byte more than there should be, so that a longer content shows by its digest.
fn read_all(component: &Component, bytes: &mut dyn Read) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    let limit = component.size.saturating_add(1);
    bytes.take(limit).read_to_end(&mut content).ok()?;
    Some(content)
}

impl Contents for NewContents<'_> {
    fn read(&self, component: &Component) -> Option<Vec<u8>> {
        read_all(component, &mut *self.0.open(component).ok()?)
    }
}

/// A registry gives the contents of its versions, for [`diff_contents`].
impl<S: Store> Contents for Registry<S> {
    fn read(&self, component: &Component) -> Option<Vec<u8>> {
        let blob = self.store.open_blob(&component.digest).ok()?;
        read_all(component, &mut *blob?)
    }
}

impl<S: Store> Registry<S> {
    /// Publishes a version: stores the blobs that are not there yet, the manifest, and a log entry that makes them a
    /// version. Publishing the same version again changes nothing and restores blobs that were lost.
    ///
    /// # Errors
    /// Refuses a version number that is taken by other content, and one that moved less than the changes require unless
    /// [`Publish::small_bump`] says why. When the store fails nothing is published; try again.
    pub fn publish(
        &self,
        manifest: &Manifest,
        source: &dyn Source,
        options: &Publish,
        note: &Note,
    ) -> Result<VersionId, RegistryError> {
        let (id, record) = (manifest.id(), manifest.record_digest());
        let state = self.state()?;
        let published = check_taken(&state, id, &record)?;
        if self.is_own_ancestor(id, &manifest.lineage().parents)? {
            return Err(RegistryError::OwnAncestor(id.clone()));
        }
        let mut small_bump = String::new();
        if !published {
            if let Err(error) = self.check_bump(&state, manifest, source, options) {
                match (&options.small_bump, error) {
                    (Some(why), RegistryError::SmallBump(_)) => why.clone_into(&mut small_bump),
                    (_, error) => return Err(error),
                }
            }
            self.store
                .create(&manifest_key(&record), &manifest.to_bytes())?;
            // From here on garbage collection leaves the blobs alone.
            self.append(note, |state| {
                let id = id.clone();
                Ok((!check_taken(state, &id, &record)?).then_some(Event::Staged { id, record }))
            })?;
        }
        self.upload(manifest, source)?;
        self.append(note, |state| {
            let id = id.clone();
            let small_bump = small_bump.clone();
            let event = Event::Published {
                id: id.clone(),
                record,
                small_bump,
            };
            Ok((!check_taken(state, &id, &record)?).then_some(event))
        })?;
        // A collection that began before this version was staged may have taken a blob that was found above.
        self.upload(manifest, source)?;
        self.store
            .create(&manifest_key(&record), &manifest.to_bytes())?;
        Ok(id.clone())
    }

    fn upload(&self, manifest: &Manifest, source: &dyn Source) -> Result<(), RegistryError> {
        for component in manifest.components() {
            if self.store.blob_size(&component.digest)? == Some(component.size) {
                continue;
            }
            let failed = |error| RegistryError::Source {
                path: component.path.to_string(),
                error,
            };
            if let Some(file) = source.file(component)
                && self.store.share_blob(&component.digest, &file)?
            {
                continue;
            }
            let mut bytes = source.open(component).map_err(failed)?;
            self.store.put_blob(&component.digest, &mut *bytes)?;
        }
        Ok(())
    }

    fn check_bump(
        &self,
        state: &State,
        manifest: &Manifest,
        source: &dyn Source,
        options: &Publish,
    ) -> Result<(), RegistryError> {
        let below =
            |id: &&VersionId| id.name() == manifest.name() && id.version() < manifest.version();
        let previous = match &options.previous {
            Some(previous) => Some(previous),
            None => state
                .versions
                .iter()
                .filter(|(_, info)| !info.removed)
                .map(|(id, _)| id)
                .rfind(below),
        };
        let Some(previous) = previous else {
            return Ok(());
        };
        let previous = self.manifest(previous)?;
        Ok(
            diff_contents(&previous, manifest, self, &NewContents(source))
                .check_bump()
                .map_err(Box::new)?,
        )
    }
}

/// Whether the version is published already, with the same content and record.
fn check_taken(state: &State, id: &VersionId, record: &Digest) -> Result<bool, RegistryError> {
    let same_number =
        |other: &&VersionId| other.name() == id.name() && other.version() == id.version();
    match state.versions.keys().find(same_number) {
        None => Ok(false),
        Some(taken) if taken != id => Err(RegistryError::VersionTaken {
            taken: taken.clone(),
        }),
        Some(_) => match state.versions.get(id) {
            Some(info) if info.removed => Err(RegistryError::Removed(id.clone())),
            Some(info) if info.record != *record => Err(RegistryError::OtherRecord {
                id: id.clone(),
                published: info.record,
            }),
            _ => Ok(true),
        },
    }
}
