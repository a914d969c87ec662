//! A registry in a bucket of S3, GCS, Azure or anything else that `object_store` reaches.

use super::io::Io;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use llm_version_core::registry::{Created, Store, StoreError};
use llm_version_core::{Digest, Manifest};
use object_store::path::Path;
use object_store::{
    Error, MultipartUpload, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload,
};
use sha2::{Digest as _, Sha256};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// A blob above this size is uploaded in parts of it. All are of one size, as some stores demand, and stores take ten
/// thousand of them: 312 GiB.
const PART: usize = 32 << 20;
/// Parts of one upload.
const PARTS: usize = 10_000;
/// Bytes of a blob that are fetched at a time, at the least.
const BLOCK: usize = 256 << 10;
/// How long one request may take by default.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The object that shows, at every opening, that creation is refused where an object exists.
const PROBE: &str = "conditional-creation";

/// A [`Store`] in a bucket: the registry of a fleet.
///
/// It takes any client of the crate `object_store`, which the host configures: S3, GCS and Azure behind features of that
/// crate, its in-memory store and its local folders. All that the registry needs is that an object can be created only
/// where there is none (`PutMode::Create`); [`BucketStore::open`] tries that, and refuses a store that cannot.
///
/// ```
/// use llm_serve_adapters::registry::BucketStore;
/// use llm_version_core::registry::Registry;
/// use object_store::memory::InMemory;
/// use std::sync::Arc;
///
/// let bucket = Arc::new(InMemory::new());
/// let registry = Registry::open(BucketStore::open(bucket.clone(), "models")?)?;
/// assert_eq!(registry.names()?, []);
///
/// // Another process opens the same bucket.
/// let other = Registry::open(BucketStore::open(bucket, "models")?)?;
/// assert_eq!(other.head()?, registry.head()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Waiting
/// The trait is synchronous and the clients are not: their futures run on a thread of this store's own, and callers wait,
/// each request up to two minutes (see [`BucketStore::open_with`]). Callers may be on any thread; on one of an asynchronous
/// runtime they hold up its other tasks, so use `spawn_blocking` there.
///
/// # Layout
/// Below the prefix lie the same names as in a `FolderStore`, so that a folder copied to a bucket is the same registry:
/// `objects/log/...`, `objects/manifests/...` and `blobs/sha256/<two digits>/<digest>`. Blobs up to 32 MiB are one request;
/// larger ones go up in parts and become visible once their digest is known to hold, with a few parts in memory. What a
/// process that dies leaves of an upload is invisible: have the bucket drop incomplete uploads after some days.
///
/// # What it relies on
/// Reads after writes and listings are strongly consistent, as S3, GCS and Azure promise. Durability is the store's:
/// `LocalFileSystem` syncs only with its `with_fsync(true)`. Clients that repeat a creation whose reply was lost may find
/// their own object; the registry recognises its own log entry then.
#[derive(Debug)]
pub struct BucketStore {
    client: Arc<dyn ObjectStore>,
    root: Path,
    io: Arc<Io>,
    part: usize,
}

/// Why a bucket cannot hold a registry.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BucketError {
    /// The prefix is no path of objects.
    #[error("prefix {prefix:?}: {why}; use segments such as `models/registry`, without empty ones")]
    Prefix {
        /// The prefix.
        prefix: String,
        /// What is wrong with it.
        why: String,
    },
    /// Creation is not refused where an object exists, so of two writers both would win.
    #[error(
        "{store} does not refuse to create what exists: {why}; enable conditional puts in its client or use another store"
    )]
    NotConditional {
        /// The store.
        store: String,
        /// What it did.
        why: String,
    },
    /// No thread could be started.
    #[error("no thread for the store: {0}")]
    Thread(io::Error),
    /// The bucket cannot be reached or refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BucketStore {
    /// Opens the registry below `prefix` (empty for the whole bucket), with two minutes for each request.
    ///
    /// It writes one small object where there is none, to see that conditional creation works. With credentials that may
    /// not write the store opens too, and its writes fail.
    ///
    /// # Errors
    /// When the prefix is no path, the bucket cannot be reached, or it cannot create objects conditionally.
    pub fn open(client: Arc<dyn ObjectStore>, prefix: &str) -> Result<Self, BucketError> {
        Self::open_with(client, prefix, TIMEOUT)
    }

    /// The same, with another time for each request: one object or listing, or one part of a blob.
    ///
    /// # Errors
    /// As [`BucketStore::open`].
    pub fn open_with(
        client: Arc<dyn ObjectStore>,
        prefix: &str,
        timeout: Duration,
    ) -> Result<Self, BucketError> {
        let root = Path::parse(prefix).map_err(|error| BucketError::Prefix {
            prefix: prefix.to_owned(),
            why: error.to_string(),
        })?;
        let io = Io::start(timeout).map_err(BucketError::Thread)?;
        let store = Self {
            client,
            root,
            io: Arc::new(io),
            part: PART,
        };
        store.probe()?;
        Ok(store)
    }

    /// Another size of parts, so that tests need no large blobs.
    #[cfg(test)]
    pub(super) const fn parts_of(mut self, bytes: usize) -> Self {
        self.part = bytes;
        self
    }

    fn probe(&self) -> Result<(), BucketError> {
        let not_conditional = |why: String| BucketError::NotConditional {
            store: self.client.to_string(),
            why,
        };
        let path = self.path(PROBE)?;
        // The first finds the place free or not; the second must find it taken.
        for last in [false, true] {
            match self.create_at(&path, Bytes::from_static(b"\n"))? {
                Err(Error::AlreadyExists { .. } | Error::PermissionDenied { .. }) => return Ok(()),
                Err(error @ (Error::NotImplemented { .. } | Error::NotSupported { .. })) => {
                    return Err(not_conditional(error.to_string()));
                }
                Err(error) => return Err(failed(&path)(error).into()),
                Ok(()) if last => {
                    return Err(not_conditional("it created an object twice".to_owned()));
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn path(&self, key: &str) -> Result<Path, StoreError> {
        let below = Path::parse(key).map_err(|error| StoreError::io(key, error))?;
        Ok(self.root.parts().chain(below.parts()).collect())
    }

    fn object(&self, key: &str) -> Result<Path, StoreError> {
        self.path(&format!("objects/{key}"))
    }

    fn blob(&self, digest: &Digest) -> Result<Path, StoreError> {
        let hex = digest.to_string();
        let first = hex.get(..2).unwrap_or_default();
        self.path(&format!("blobs/sha256/{first}/{hex}"))
    }

    /// Runs a request.
    fn request<T, F>(
        &self,
        path: &Path,
        request: impl FnOnce(Arc<dyn ObjectStore>, Path) -> F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let future = request(Arc::clone(&self.client), path.clone());
        self.io.wait(path.as_ref(), future)
    }

    /// Creates an object; the inner result is what the client said.
    fn create_at(&self, path: &Path, bytes: Bytes) -> Result<Result<(), Error>, StoreError> {
        self.request(path, |client, path| async move {
            let options = PutOptions::from(PutMode::Create);
            let put = client.put_opts(&path, PutPayload::from(bytes), options);
            put.await.map(|_| ())
        })
    }

    fn delete_at(&self, path: &Path) -> Result<(), StoreError> {
        let deleted = self.request(
            path,
            |client, path| async move { client.delete(&path).await },
        )?;
        absent(deleted, path).map(|_| ())
    }

    /// All objects below a prefix, with their sizes.
    fn list_at(&self, prefix: &Path) -> Result<Vec<(String, u64)>, StoreError> {
        let listed: Result<Vec<_>, Error> = self.request(prefix, |client, prefix| async move {
            let objects = client.list(Some(&prefix));
            objects
                .map_ok(|meta| (meta.location.to_string(), meta.size))
                .try_collect()
                .await
        })?;
        listed.map_err(failed(prefix))
    }

    /// Uploads a blob that has more than one part; the first has been read.
    fn put_parts(
        &self,
        path: &Path,
        digest: &Digest,
        first: Bytes,
        bytes: &mut dyn Read,
    ) -> Result<(), StoreError> {
        let begun = self.request(path, |client, path| async move {
            client.put_multipart(&path).await
        })?;
        let mut upload = Upload {
            io: &self.io,
            path,
            parts: begun.map_err(failed(path))?,
        };
        let sent = upload.send(self.part, first, bytes).and_then(|found| {
            if found == *digest {
                return Ok(());
            }
            Err(StoreError::WrongDigest {
                expected: *digest,
                found,
            })
        });
        match sent {
            Ok(()) => upload.complete(),
            Err(error) => {
                upload.abort();
                Err(error)
            }
        }
    }
}

/// An upload in parts.
struct Upload<'a> {
    io: &'a Io,
    path: &'a Path,
    parts: Box<dyn MultipartUpload>,
}

impl Upload<'_> {
    /// Sends a part while the next is read; the digest of all.
    fn send(
        &mut self,
        size: usize,
        first: Bytes,
        bytes: &mut dyn Read,
    ) -> Result<Digest, StoreError> {
        let (mut hash, mut part) = (Sha256::new(), first);
        for _ in 0..PARTS {
            let sent = self.io.begin(self.parts.put_part(part.clone().into()));
            hash.update(&part);
            let next = read_part(bytes, size);
            sent.wait(self.path.as_ref())?.map_err(failed(self.path))?;
            part = next.map_err(|error| StoreError::io(self.path.as_ref(), error))?;
            if part.is_empty() {
                return Ok(Digest::new(hash.finalize().into()));
            }
        }
        let why = format!("larger than {PARTS} parts of {size} bytes; split the file");
        Err(StoreError::io(self.path.as_ref(), why))
    }

    fn complete(self) -> Result<(), StoreError> {
        let mut parts = self.parts;
        let completed = self
            .io
            .wait(self.path.as_ref(), async move { parts.complete().await })?;
        completed.map(|_| ()).map_err(failed(self.path))
    }

    /// What cannot be aborted stays invisible.
    fn abort(self) {
        let mut parts = self.parts;
        let aborted = async move { parts.abort().await };
        let _ = self.io.wait(self.path.as_ref(), aborted);
    }
}

/// Reads until a part is full or the reader ends.
fn read_part(bytes: &mut dyn Read, size: usize) -> io::Result<Bytes> {
    let mut part = Vec::new();
    bytes.take(size as u64).read_to_end(&mut part)?;
    Ok(part.into())
}

fn failed(path: &Path) -> impl FnOnce(Error) -> StoreError + '_ {
    move |error| StoreError::io(path.as_ref(), error)
}

fn absent<T>(result: Result<T, Error>, path: &Path) -> Result<Option<T>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(failed(path)(error)),
    }
}

impl Store for BucketStore {
    fn create(&self, key: &str, bytes: &[u8]) -> Result<Created, StoreError> {
        let path = self.object(key)?;
        match self.create_at(&path, Bytes::copy_from_slice(bytes))? {
            Ok(()) => Ok(Created::New),
            Err(Error::AlreadyExists { .. }) => Ok(Created::Existed),
            Err(error) => Err(failed(&path)(error)),
        }
    }

    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.object(key)?;
        let read = self.request(&path, |client, path| async move {
            let found = client.get(&path).await?;
            if found.meta.size > Manifest::MAX_BYTES {
                return Err(Error::Generic {
                    store: "registry",
                    source: "larger than any object of a registry".into(),
                });
            }
            found.bytes().await
        })?;
        Ok(absent(read, &path)?.map(Vec::from))
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let prefix = self.object(prefix.trim_end_matches('/'))?;
        let objects = self.path("objects")?;
        let listed = self.list_at(&prefix)?;
        let key = |location: &str| {
            let below = location.strip_prefix(objects.as_ref())?;
            below.strip_prefix('/').map(ToOwned::to_owned)
        };
        let mut keys: Vec<String> = listed.iter().filter_map(|(l, _)| key(l)).collect();
        keys.sort();
        Ok(keys)
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.delete_at(&self.object(key)?)
    }

    fn put_blob(&self, digest: &Digest, bytes: &mut dyn Read) -> Result<(), StoreError> {
        if self.blob_size(digest)?.is_some() {
            return Ok(());
        }
        let path = self.blob(digest)?;
        let first =
            read_part(bytes, self.part).map_err(|error| StoreError::io(path.as_ref(), error))?;
        if first.len() == self.part {
            return self.put_parts(&path, digest, first, bytes);
        }
        let found = Digest::of(&first);
        if found != *digest {
            return Err(StoreError::WrongDigest {
                expected: *digest,
                found,
            });
        }
        match self.create_at(&path, first)? {
            // By somebody else, with the same bytes.
            Ok(()) | Err(Error::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(failed(&path)(error)),
        }
    }

    fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let path = self.blob(digest)?;
        let head = self.request(
            &path,
            |client, path| async move { client.head(&path).await },
        )?;
        Ok(absent(head, &path)?.map(|meta| meta.size))
    }

    fn open_blob(&self, digest: &Digest) -> Result<Option<Box<dyn Read + Send>>, StoreError> {
        let path = self.blob(digest)?;
        let got = self.request(&path, |client, path| async move {
            let found = client.get(&path).await?;
            Ok(found.into_stream())
        })?;
        Ok(absent(got, &path)?.map(|stream| -> Box<dyn Read + Send> {
            Box::new(Blob {
                io: Arc::clone(&self.io),
                path,
                blocks: VecDeque::new(),
                rest: Rest::Stream(stream),
            })
        }))
    }

    fn blobs(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        let listed = self.list_at(&self.path("blobs/sha256")?)?;
        // A name that is no digest is not ours.
        let digest = |location: &str| location.rsplit('/').next()?.parse().ok();
        let blobs = listed
            .iter()
            .filter_map(|(location, size)| Some((digest(location)?, *size)));
        let mut blobs: Vec<(Digest, u64)> = blobs.collect();
        blobs.sort();
        Ok(blobs)
    }

    fn delete_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        self.delete_at(&self.blob(digest)?)
    }
}

type Blocks = BoxStream<'static, Result<Bytes, Error>>;

/// A blob as it arrives.
struct Blob {
    io: Arc<Io>,
    path: Path,
    blocks: VecDeque<Bytes>,
    rest: Rest,
}

enum Rest {
    Stream(Blocks),
    /// All has arrived.
    Nothing,
    /// A read failed; what follows is lost.
    Lost,
}

/// Takes blocks from a stream until there are enough; whether there may be more.
async fn gather(mut stream: Blocks) -> Result<(VecDeque<Bytes>, Option<Blocks>), Error> {
    let (mut blocks, mut size) = (VecDeque::new(), 0);
    while size < BLOCK {
        match stream.next().await {
            Some(block) => {
                let block = block?;
                size += block.len();
                blocks.push_back(block);
            }
            None => return Ok((blocks, None)),
        }
    }
    Ok((blocks, Some(stream)))
}

impl Blob {
    fn fetch(&mut self, stream: Blocks) -> io::Result<()> {
        let gathered = self.io.wait(self.path.as_ref(), gather(stream));
        let (blocks, rest) = gathered
            .map_err(io::Error::other)?
            .map_err(io::Error::other)?;
        self.blocks = blocks;
        self.rest = rest.map_or(Rest::Nothing, Rest::Stream);
        Ok(())
    }
}

impl Read for Blob {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(block) = self.blocks.front_mut() {
                let size = block.len().min(to.len());
                let taken = block.split_to(size);
                if block.is_empty() {
                    self.blocks.pop_front();
                }
                if let Some(to) = to.get_mut(..size) {
                    to.copy_from_slice(&taken);
                }
                if size > 0 || to.is_empty() {
                    return Ok(size);
                }
                continue;
            }
            match std::mem::replace(&mut self.rest, Rest::Lost) {
                Rest::Stream(stream) => self.fetch(stream)?,
                Rest::Nothing => {
                    self.rest = Rest::Nothing;
                    return Ok(0);
                }
                Rest::Lost => {
                    return Err(io::Error::new(
                        ErrorKind::BrokenPipe,
                        "the blob was lost on the way; open it again",
                    ));
                }
            }
        }
    }
}
