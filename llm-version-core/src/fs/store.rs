//! A registry in a folder: for one machine, or for several on a shared file system that has hard links.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::materialise::share_blocks;
use crate::digest::Digest;
use crate::manifest::Manifest;
use crate::registry::{Created, Store, StoreError, copy_verified};

/// A [`Store`] in a folder.
///
/// An object is written to a temporary file, synced, and then linked to its name, which fails where the name exists:
/// creation is atomic and durable without locks, which silently do nothing on some shared file systems. What a crash
/// leaves behind is a temporary file that nobody reads. Blobs are read-only.
///
/// ```text
/// objects/log/00000000000000000000.json
/// objects/manifests/<digest>.json
/// blobs/sha256/<first two digits>/<digest>
/// temporary/
/// ```
#[derive(Debug)]
pub struct FolderStore {
    root: PathBuf,
    next: AtomicU64,
}

/// Attempts to find a free temporary name.
const ATTEMPTS: u64 = 1 << 20;

fn failed(path: &Path) -> impl FnOnce(io::Error) -> StoreError + '_ {
    move |error| StoreError::io(path.display().to_string(), error)
}

/// Makes the names in a folder durable.
fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    // Only Unix systems can sync a folder.
    if cfg!(unix) {
        let opened = File::open(folder).and_then(|f| f.sync_all());
        opened.map_err(failed(folder))?;
    }
    Ok(())
}

impl FolderStore {
    /// Opens the store in `root`, making the folder where there is none.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let store = Self::at(root);
        for folder in ["objects", "blobs/sha256", "temporary"] {
            store.make_folder(&store.root.join(folder))?;
        }
        Ok(store)
    }

    /// Opens a store that exists, making nothing: for readers, and so that a mistyped path is no empty registry.
    ///
    /// # Errors
    /// [`StoreError::Absent`] where there is none.
    pub fn open_existing(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let store = Self::at(root);
        let folder = store.root.join("objects");
        match absent(fs::metadata(&folder), &folder)? {
            Some(metadata) if metadata.is_dir() => Ok(store),
            _ => Err(StoreError::Absent {
                place: store.root.display().to_string(),
            }),
        }
    }

    fn at(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            next: AtomicU64::new(0),
        }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Blobs that are not read-only any more: folders that share them by hard links can be edited in place, and the
    /// registry with them. Ascending by digest.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn writable_blobs(&self) -> Result<Vec<Digest>, StoreError> {
        let mut writable = Vec::new();
        for (digest, _) in self.blobs()? {
            let path = self.blob(&digest);
            let metadata = absent(fs::metadata(&path), &path)?;
            if metadata.is_some_and(|m| !m.permissions().readonly()) {
                writable.push(digest);
            }
        }
        Ok(writable)
    }

    /// Removes temporary files that crashes left behind. Writers that are at work lose theirs, fail and try again, so
    /// call this when there are none.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn remove_leftovers(&self) -> Result<u64, StoreError> {
        let folder = self.root.join("temporary");
        let mut removed = 0;
        let Some(entries) = absent(fs::read_dir(&folder), &folder)? else {
            return Ok(0);
        };
        for entry in entries {
            let path = entry.map_err(failed(&folder))?.path();
            fs::remove_file(&path).map_err(failed(&path))?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Makes a folder and everything above it, durably.
    fn make_folder(&self, folder: &Path) -> Result<(), StoreError> {
        if folder.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(folder).map_err(failed(folder))?;
        for above in folder.ancestors().skip(1) {
            if above.as_os_str().is_empty() {
                break;
            }
            sync_folder(above)?;
            if above == self.root {
                // And the root's own name.
                if let Some(parent) = above.parent().filter(|p| !p.as_os_str().is_empty()) {
                    sync_folder(parent)?;
                }
                break;
            }
        }
        Ok(())
    }

    fn object(&self, key: &str) -> PathBuf {
        self.root.join("objects").join(key)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.to_string();
        let first = hex.get(..2).unwrap_or_default();
        self.root.join("blobs/sha256").join(first).join(&hex)
    }

    /// A new, empty temporary file that no other process has.
    fn temporary(&self) -> Result<(PathBuf, File), StoreError> {
        let folder = self.root.join("temporary");
        self.make_folder(&folder)?;
        for _ in 0..ATTEMPTS {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(n.to_string());
            match OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
            {
                Ok(file) => return Ok((path, file)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(&path)(error)),
            }
        }
        let full = io::Error::other("too many temporary files; remove leftovers");
        Err(failed(&folder)(full))
    }

    /// Writes a temporary file, syncs it and gives it its name unless that is taken.
    fn place(
        &self,
        target: &Path,
        read_only: bool,
        write: impl FnOnce(&mut File) -> Result<(), StoreError>,
    ) -> Result<Created, StoreError> {
        if let Some(folder) = target.parent() {
            self.make_folder(folder)?;
        }
        let (temporary, mut file) = self.temporary()?;
        let placed = write(&mut file).and_then(|()| {
            if read_only {
                let mut permissions = file.metadata().map_err(failed(&temporary))?.permissions();
                permissions.set_readonly(true);
                file.set_permissions(permissions)
                    .map_err(failed(&temporary))?;
            }
            file.sync_all().map_err(failed(&temporary))?;
            match fs::hard_link(&temporary, target) {
                Ok(()) => Ok(Created::New),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Created::Existed),
                Err(error) => Err(failed(target)(error)),
            }
        });
        // The name is in place or the write failed; a temporary file that stays is harmless.
        let _ = fs::remove_file(&temporary);
        let placed = placed?;
        // Also where somebody else was faster: their name may not be durable yet, and we are about to rely on it.
        if let Some(folder) = target.parent() {
            sync_folder(folder)?;
        }
        Ok(placed)
    }
}

fn absent<T>(result: io::Result<T>, path: &Path) -> Result<Option<T>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path)(error)),
    }
}

impl Store for FolderStore {
    fn create(&self, key: &str, bytes: &[u8]) -> Result<Created, StoreError> {
        let target = self.object(key);
        self.place(&target, false, |file| {
            file.write_all(bytes).map_err(failed(&target))
        })
    }

    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.object(key);
        let Some(file) = absent(File::open(&path), &path)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let limit = Manifest::MAX_BYTES;
        file.take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(failed(&path))?;
        if bytes.len() as u64 > limit {
            return Err(failed(&path)(io::Error::other(
                "larger than any object of a registry",
            )));
        }
        Ok(Some(bytes))
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let mut keys = Vec::new();
        let mut folders = vec![prefix.to_owned()];
        while let Some(prefix) = folders.pop() {
            let folder = self.object(&prefix);
            let Some(entries) = absent(fs::read_dir(&folder), &folder)? else {
                continue;
            };
            for entry in entries {
                let entry = entry.map_err(failed(&folder))?;
                let kind = entry.file_type().map_err(failed(&folder))?;
                // A name that is not UTF-8 is not one of our keys.
                let Some(name) = entry.file_name().to_str().map(ToOwned::to_owned) else {
                    continue;
                };
                if kind.is_dir() {
                    folders.push(format!("{prefix}{name}/"));
                } else {
                    keys.push(format!("{prefix}{name}"));
                }
            }
        }
        keys.sort();
        Ok(keys)
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        let path = self.object(key);
        absent(fs::remove_file(&path), &path).map(|_| ())
    }

    fn put_blob(&self, digest: &Digest, bytes: &mut dyn Read) -> Result<(), StoreError> {
        let target = self.blob(digest);
        if target.is_file() {
            return Ok(());
        }
        self.place(&target, true, |file| {
            copy_verified(digest, bytes, file).map(|_| ())
        })?;
        Ok(())
    }

    fn share_blob(&self, digest: &Digest, file: &Path) -> Result<bool, StoreError> {
        let target = self.blob(digest);
        if target.is_file() {
            return Ok(true);
        }
        let Ok(source) = File::open(file) else {
            return Ok(false);
        };
        let mut shared = true;
        let placed = self.place(&target, true, |blob| {
            shared = share_blocks(&source, blob);
            if !shared {
                return Err(StoreError::io(file.display().to_string(), "not shared"));
            }
            // What is read is our own file: whatever happens to the source does not matter any more.
            copy_verified(digest, blob, &mut io::sink()).map(|_| ())
        });
        if shared {
            placed.map(|_| true)
        } else {
            Ok(false)
        }
    }

    fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let path = self.blob(digest);
        Ok(absent(fs::metadata(&path), &path)?.map(|m| m.len()))
    }

    fn open_blob(&self, digest: &Digest) -> Result<Option<Box<dyn Read + Send>>, StoreError> {
        let path = self.blob(digest);
        let file = absent(File::open(&path), &path)?;
        Ok(file.map(|f| -> Box<dyn Read + Send> { Box::new(f) }))
    }

    fn blobs(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        let root = self.root.join("blobs/sha256");
        let mut blobs = Vec::new();
        let Some(folders) = absent(fs::read_dir(&root), &root)? else {
            return Ok(blobs);
        };
        for folder in folders {
            let folder = folder.map_err(failed(&root))?.path();
            for entry in fs::read_dir(&folder).map_err(failed(&folder))? {
                let entry = entry.map_err(failed(&folder))?;
                let name = entry.file_name();
                // A name that is no digest is not ours.
                let Some(digest) = name.to_str().and_then(|n| n.parse().ok()) else {
                    continue;
                };
                if let Some(metadata) = absent(entry.metadata(), &folder)? {
                    blobs.push((digest, metadata.len()));
                }
            }
        }
        blobs.sort();
        Ok(blobs)
    }

    fn delete_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.blob(digest);
        absent(fs::remove_file(&path), &path).map(|_| ())
    }

    fn local_blob(&self, digest: &Digest) -> Option<PathBuf> {
        Some(self.blob(digest)).filter(|path| path.is_file())
    }
}
