//! Between directories and a registry: publish a directory, lay a version out as one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use super::{MANIFEST_FILE, METADATA_FILE, VerifyOptions, verify};
use crate::id::VersionId;
use crate::manifest::{Component, Manifest};
use crate::metadata::Metadata;
use crate::registry::{Registry, RegistryError, Source, Store, copy_verified};

/// A bundle directory as the source of a publication.
#[derive(Debug, Clone, Copy)]
pub struct FolderSource<'a>(&'a Path);

impl<'a> FolderSource<'a> {
    /// The bundle directory `dir`.
    pub const fn new(dir: &'a Path) -> Self {
        Self(dir)
    }
}

impl Source for FolderSource<'_> {
    fn open(&self, component: &Component) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(File::open(self.0.join(component.path.as_str()))?))
    }

    fn file(&self, component: &Component) -> Option<PathBuf> {
        Some(self.0.join(component.path.as_str()))
    }
}

/// How a file may share its bytes with the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Sharing {
    /// Share blocks where the file system can (reflink), else link, else copy.
    #[default]
    Cheapest,
    /// Share blocks where the file system can, else copy: the files can be edited without harm to the registry.
    Separate,
    /// Always copy.
    Copy,
}

/// How many files came into a folder in which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Materialised {
    /// Files that share blocks with the registry until one is written to.
    pub reflinked: u64,
    /// Files that are the registry's own, read-only.
    pub hard_linked: u64,
    /// Files that were copied.
    pub copied: u64,
}

/// Lays a version out as a bundle directory `dir`, which must not exist, with its `metadata.json` and `manifest.json`.
///
/// The files are put together beside `dir` and verified before they get its name, so `dir` is whole or not there.
///
/// # Errors
/// When the version is unknown, a blob is missing or altered, or the folder exists or cannot be written.
pub fn materialise<S: Store>(
    registry: &Registry<S>,
    id: &VersionId,
    dir: &Path,
    sharing: Sharing,
) -> Result<Materialised, RegistryError> {
    let manifest = registry.manifest(id)?;
    let failed = |error| RegistryError::Folder {
        folder: dir.display().to_string(),
        error,
    };
    if fs::symlink_metadata(dir).is_ok() {
        return Err(failed(ErrorKind::AlreadyExists.into()));
    }
    let partial = make_partial(dir).map_err(failed)?;
    let done = fill(registry, &manifest, &partial, sharing).and_then(|report| {
        verify(&partial, &manifest, &VerifyOptions::new())
            .map_err(|error| failed(io::Error::other(error.to_string())))?;
        // Renaming onto an empty folder would succeed: look once more.
        if fs::symlink_metadata(dir).is_ok() {
            return Err(failed(ErrorKind::AlreadyExists.into()));
        }
        fs::rename(&partial, dir).map_err(failed)?;
        Ok(report)
    });
    if done.is_err() {
        // What cannot be removed is left beside the folder, under a name that says what it is.
        let _ = fs::remove_dir_all(&partial);
    }
    done
}

/// A new folder beside `dir`.
fn make_partial(dir: &Path) -> io::Result<PathBuf> {
    let name = dir
        .file_name()
        .ok_or_else(|| io::Error::other("the folder has no name"))?;
    if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent)?;
    }
    for n in 0..1_000 {
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(format!(".partial-{n}"));
        let partial = dir.with_file_name(partial);
        match fs::create_dir(&partial) {
            Ok(()) => return Ok(partial),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(
        "too many unfinished folders beside it; remove them",
    ))
}

fn fill<S: Store>(
    registry: &Registry<S>,
    manifest: &Manifest,
    folder: &Path,
    sharing: Sharing,
) -> Result<Materialised, RegistryError> {
    let mut report = Materialised::default();
    for component in manifest.components() {
        let path = folder.join(component.path.as_str());
        let failed = |error| RegistryError::Folder {
            folder: path.display().to_string(),
            error,
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        if let Some(blob) = registry.store().local_blob(&component.digest) {
            if sharing != Sharing::Copy && reflink(&blob, &path) {
                report.reflinked += 1;
                continue;
            }
            if sharing == Sharing::Cheapest && fs::hard_link(&blob, &path).is_ok() {
                report.hard_linked += 1;
                continue;
            }
        }
        let missing = || RegistryError::BlobMissing {
            path: component.path.to_string(),
            digest: component.digest,
        };
        let mut blob = registry
            .store()
            .open_blob(&component.digest)?
            .ok_or_else(missing)?;
        let mut file = new_file(&path).map_err(failed)?;
        copy_verified(&component.digest, &mut blob, &mut file)?;
        report.copied += 1;
    }
    let records = [
        (
            METADATA_FILE,
            Metadata::of(manifest).to_pretty().into_bytes(),
        ),
        (MANIFEST_FILE, manifest.to_bytes()),
    ];
    for (name, bytes) in records {
        let path = folder.join(name);
        if fs::symlink_metadata(&path).is_ok() {
            // The bundle has a component of that name.
            continue;
        }
        let written = new_file(&path).and_then(|mut f| f.write_all(&bytes));
        written.map_err(|error| RegistryError::Folder {
            folder: path.display().to_string(),
            error,
        })?;
    }
    Ok(report)
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

/// Makes `to` a file that shares the blocks of `from`; leaves nothing behind where the file system cannot.
fn reflink(from: &Path, to: &Path) -> bool {
    let Ok(source) = File::open(from) else {
        return false;
    };
    let Ok(target) = new_file(to) else {
        return false;
    };
    if share_blocks(&source, &target) {
        return true;
    }
    drop(target);
    // It was made above and is empty.
    let _ = fs::remove_file(to);
    false
}

/// Lets `to`, which is empty, share the blocks of `from` until one is written to; `false` where that cannot be.
#[cfg(target_os = "linux")]
pub(crate) fn share_blocks(from: &File, to: &File) -> bool {
    rustix::fs::ioctl_ficlone(to, from).is_ok()
}

/// Lets `to`, which is empty, share the blocks of `from` until one is written to; `false` where that cannot be.
#[cfg(not(target_os = "linux"))]
pub(crate) fn share_blocks(_: &File, _: &File) -> bool {
    false
}
