//! What a registry needs of a place to keep things: small immutable objects and large content-addressed blobs.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::digest::Digest;

/// Why a store could not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The place cannot be reached or refuses; whether a write took effect is unknown.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the place said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No store there, where one must exist.
    #[error("{place}: no registry there; check the path, or publish to it, which makes one")]
    Absent {
        /// The place.
        place: String,
    },
    /// Bytes are not what their digest says.
    #[error(
        "blob {expected}: the bytes have digest {found}; they were altered or cut, put them again"
    )]
    WrongDigest {
        /// The digest under which they were to be stored or read.
        expected: Digest,
        /// The digest that they have.
        found: Digest,
    },
}

impl StoreError {
    /// An error of the place itself.
    pub fn io(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Io {
            what: what.into(),
            source: source.into(),
        }
    }
}

/// Whether an object was created or stood there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "an object exists or it does not")]
pub enum Created {
    /// It is new, and durable.
    New,
    /// An object of that key exists; nothing was written.
    Existed,
}

/// A place for a registry: the only thing that differs between a folder, an object store and memory.
///
/// All rules of a [`Registry`](super::Registry) are built on these few operations, so a store cannot get them wrong. To
/// ensure correctness a store must see to this:
///
/// - [`Store::create`] is atomic and durable: of any number of racing calls for one key exactly one gets
///   [`Created::New`], readers see the whole object or nothing, and an object outlives a crash once `New` was returned.
///   After an error it may or may not exist, but never in part.
/// - Reads see every object whose creation was acknowledged, to any process, before the read began.
/// - Blobs are verified on their way in; a blob that is there is whole.
/// - Keys are lower-case ASCII letters, digits, `/`, `-`, `_` and `.`; they never begin with `/` nor contain `..`.
///
/// [`conformance::check`](super::conformance::check) tests all of it.
pub trait Store: fmt::Debug + Send + Sync {
    /// Creates the object `key`, unless it exists.
    ///
    /// # Errors
    /// When the place fails; whether the object exists is then unknown.
    fn create(&self, key: &str, bytes: &[u8]) -> Result<Created, StoreError>;

    /// The object `key`.
    ///
    /// # Errors
    /// When the place fails.
    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// The keys that begin with `prefix`, ascending. `prefix` ends in `/`.
    ///
    /// # Errors
    /// When the place fails.
    fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError>;

    /// Deletes the object `key`; one that is not there counts as deleted.
    ///
    /// # Errors
    /// When the place fails.
    fn delete(&self, key: &str) -> Result<(), StoreError>;

    /// Stores a blob, verifying that it has this digest. One that is there already is left as it is.
    ///
    /// # Errors
    /// When the place fails, the reader fails, or the bytes have another digest.
    fn put_blob(&self, digest: &Digest, bytes: &mut dyn Read) -> Result<(), StoreError>;

    /// The size of a blob; `None` when it is not there.
    ///
    /// # Errors
    /// When the place fails.
    fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError>;

    /// Opens a blob for reading; `None` when it is not there. Callers verify what they read.
    ///
    /// # Errors
    /// When the place fails.
    fn open_blob(&self, digest: &Digest) -> Result<Option<Box<dyn Read + Send>>, StoreError>;

    /// All blobs with their sizes, ascending by digest.
    ///
    /// # Errors
    /// When the place fails.
    fn blobs(&self) -> Result<Vec<(Digest, u64)>, StoreError>;

    /// Deletes a blob; one that is not there counts as deleted.
    ///
    /// # Errors
    /// When the place fails.
    fn delete_blob(&self, digest: &Digest) -> Result<(), StoreError>;

    /// Takes over a blob from a file of this machine by sharing its blocks, verifying it as [`Store::put_blob`] does;
    /// `false` where it cannot be shared, and is to be put instead.
    ///
    /// # Errors
    /// When the place fails, or the bytes have another digest.
    fn share_blob(&self, digest: &Digest, file: &Path) -> Result<bool, StoreError> {
        let _ = (digest, file);
        Ok(false)
    }

    /// The file that holds a blob, for stores on this machine: it can be linked instead of copied.
    fn local_blob(&self, digest: &Digest) -> Option<PathBuf> {
        let _ = digest;
        None
    }
}

macro_rules! forward {
    ($($type:ty),*) => {$(
        impl<S: Store + ?Sized> Store for $type {
            fn create(&self, key: &str, bytes: &[u8]) -> Result<Created, StoreError> {
                (**self).create(key, bytes)
            }
            fn read(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
                (**self).read(key)
            }
            fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
                (**self).list(prefix)
            }
            fn delete(&self, key: &str) -> Result<(), StoreError> {
                (**self).delete(key)
            }
            fn put_blob(&self, digest: &Digest, bytes: &mut dyn Read) -> Result<(), StoreError> {
                (**self).put_blob(digest, bytes)
            }
            fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
                (**self).blob_size(digest)
            }
            fn open_blob(&self, digest: &Digest) -> Result<Option<Box<dyn Read + Send>>, StoreError> {
                (**self).open_blob(digest)
            }
            fn blobs(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
                (**self).blobs()
            }
            fn delete_blob(&self, digest: &Digest) -> Result<(), StoreError> {
                (**self).delete_blob(digest)
            }
            fn share_blob(&self, digest: &Digest, file: &Path) -> Result<bool, StoreError> {
                (**self).share_blob(digest, file)
            }
            fn local_blob(&self, digest: &Digest) -> Option<PathBuf> {
                (**self).local_blob(digest)
            }
        }
    )*};
}
forward!(&S, Box<S>, std::sync::Arc<S>);

/// Copies `from` to `to` in blocks and refuses bytes that do not have this digest.
pub(crate) fn copy_verified(
    expected: &Digest,
    from: &mut dyn Read,
    to: &mut dyn std::io::Write,
) -> Result<u64, StoreError> {
    let failed = |error| StoreError::io(format!("blob {expected}"), error);
    let mut block = vec![0_u8; 256 << 10];
    let (mut hash, mut size) = (Sha256::new(), 0);
    loop {
        let read = match from.read(&mut block) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        let bytes = block.get(..read).unwrap_or_default();
        hash.update(bytes);
        size += read as u64;
        to.write_all(bytes).map_err(failed)?;
    }
    let found = Digest::new(hash.finalize().into());
    if found == *expected {
        Ok(size)
    } else {
        Err(StoreError::WrongDigest {
            expected: *expected,
            found,
        })
    }
}

/// A store in memory: for tests, and for registries that need not outlive their process.
#[derive(Debug, Default)]
pub struct MemoryStore {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    blobs: Mutex<BTreeMap<Digest, Vec<u8>>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store for MemoryStore {
    fn create(&self, key: &str, bytes: &[u8]) -> Result<Created, StoreError> {
        let mut objects = lock(&self.objects);
        if objects.contains_key(key) {
            return Ok(Created::Existed);
        }
        objects.insert(key.to_owned(), bytes.to_vec());
        Ok(Created::New)
    }

    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(lock(&self.objects).get(key).cloned())
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let objects = lock(&self.objects);
        let from = objects.range(prefix.to_owned()..);
        let keys = from.map(|(key, _)| key.clone());
        Ok(keys.take_while(|key| key.starts_with(prefix)).collect())
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        lock(&self.objects).remove(key);
        Ok(())
    }

    fn put_blob(&self, digest: &Digest, bytes: &mut dyn Read) -> Result<(), StoreError> {
        let mut blob = Vec::new();
        copy_verified(digest, bytes, &mut blob)?;
        lock(&self.blobs).entry(*digest).or_insert(blob);
        Ok(())
    }

    fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        Ok(lock(&self.blobs).get(digest).map(|b| b.len() as u64))
    }

    fn open_blob(&self, digest: &Digest) -> Result<Option<Box<dyn Read + Send>>, StoreError> {
        let blob = lock(&self.blobs).get(digest).cloned();
        Ok(blob.map(|b| -> Box<dyn Read + Send> { Box::new(Cursor::new(b)) }))
    }

    fn blobs(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        let blobs = lock(&self.blobs);
        Ok(blobs.iter().map(|(d, b)| (*d, b.len() as u64)).collect())
    }

    fn delete_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        lock(&self.blobs).remove(digest);
        Ok(())
    }
}
