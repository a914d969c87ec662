//! Blobs between files and the network: a few blocks in memory, hashed as they pass.

use super::{OciRegistryError, Result, error, source_path};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use llm_version_core::Digest;
use llm_version_core::fs::OciSource;
use sha2::{Digest as _, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Cursor, Read, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const BLOCK: usize = 256 << 10;
/// Blocks between the file and the network.
const AHEAD: usize = 2;

/// Runs what blocks beside the runtime's tasks.
pub(super) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| OciRegistryError::Io {
            path: "a thread for files".to_owned(),
            error: io::Error::other(e),
        })
}

/// A blob on its way out. Its last block is held back until its digest is known to hold.
pub(super) struct Outgoing {
    blocks: mpsc::Receiver<Bytes>,
    left: u64,
    moved: Arc<AtomicU64>,
}

/// What reads the blob, and says whether it was what it should be.
pub(super) type Reading = JoinHandle<Result<()>>;

/// Begins to read a blob. `moved` counts bytes that the network has taken.
pub(super) fn outgoing(
    source: &OciSource,
    digest: Digest,
    size: u64,
    moved: Arc<AtomicU64>,
) -> (Outgoing, Reading) {
    let (blocks, receiver) = mpsc::channel(AHEAD);
    let source = source.clone();
    let reading = tokio::task::spawn_blocking(move || read(&source, digest, size, &blocks));
    let body = Outgoing {
        blocks: receiver,
        left: size,
        moved,
    };
    (body, reading)
}

fn read(source: &OciSource, digest: Digest, size: u64, blocks: &mpsc::Sender<Bytes>) -> Result<()> {
    let path = source_path(source);
    let failed = |error| OciRegistryError::Io {
        path: path.clone(),
        error,
    };
    let mut from: Box<dyn Read> = match source {
        OciSource::File(path) => Box::new(File::open(path).map_err(failed)?),
        OciSource::Bytes(bytes) => Box::new(Cursor::new(bytes)),
    };
    let changed = || OciRegistryError::Changed {
        path: path.clone(),
        expected: digest,
    };
    let (mut hash, mut read, mut held) = (Sha256::new(), 0, Bytes::new());
    loop {
        let mut block = Vec::new();
        from.by_ref()
            .take(BLOCK as u64)
            .read_to_end(&mut block)
            .map_err(failed)?;
        hash.update(&block);
        read += block.len() as u64;
        if read > size {
            return Err(changed());
        }
        let last = block.is_empty();
        if last && (read < size || Digest::new(hash.clone().finalize().into()) != digest) {
            return Err(changed());
        }
        let ready = std::mem::replace(&mut held, block.into());
        // Nobody takes it any more if the registry has refused.
        if (!ready.is_empty() && blocks.blocking_send(ready).is_err()) || last {
            return Ok(());
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.blocks.poll_recv(cx).map(|block| match block {
            Some(block) => {
                let size = block.len() as u64;
                self.left = self.left.saturating_sub(size);
                self.moved.fetch_add(size, Ordering::Relaxed);
                Some(Ok(Frame::data(block)))
            }
            None if self.left == 0 => None,
            // The reader has given up: so must the request.
            None => Some(Err(io::ErrorKind::UnexpectedEof.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// A file that a blob goes to, with what is there of it already.
pub(super) struct Incoming {
    file: File,
    hash: Sha256,
    pub(super) there: u64,
    name: String,
}

impl Incoming {
    /// Opens it, and reads what is there.
    pub(super) fn open(target: &Path, size: u64) -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(target)
            .map_err(error::io(target))?;
        let mut incoming = Self {
            hash: Sha256::new(),
            there: 0,
            name: target.display().to_string(),
            file: file.try_clone().map_err(error::io(target))?,
        };
        let mut block = vec![0; BLOCK];
        loop {
            let read = file.read(&mut block).map_err(error::io(target))?;
            if read == 0 {
                break;
            }
            incoming.hash.update(block.get(..read).unwrap_or_default());
            incoming.there += read as u64;
            if incoming.there > size {
                incoming.restart()?;
                break;
            }
        }
        Ok(incoming)
    }

    /// From the first byte.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.hash = Sha256::new();
        self.there = 0;
        let emptied = self.file.set_len(0);
        emptied
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map(|_| ())
            .map_err(|error| self.failed(error))
    }

    fn failed(&self, error: io::Error) -> OciRegistryError {
        OciRegistryError::Io {
            path: self.name.clone(),
            error,
        }
    }

    pub(super) fn digest(&self) -> Digest {
        Digest::new(self.hash.clone().finalize().into())
    }

    fn write(&mut self, block: &[u8]) -> Result<()> {
        self.hash.update(block);
        self.there += block.len() as u64;
        self.file
            .write_all(block)
            .map_err(|error| self.failed(error))
    }

    /// Begins to write what comes through the channel; durable at the end.
    pub(super) fn receive(mut self) -> (mpsc::Sender<Bytes>, JoinHandle<Result<Self>>) {
        let (sender, mut blocks) = mpsc::channel::<Bytes>(AHEAD);
        let writing = tokio::task::spawn_blocking(move || {
            while let Some(block) = blocks.blocking_recv() {
                self.write(&block)?;
            }
            let synced = self.file.sync_all();
            synced.map_err(|error| self.failed(error))?;
            Ok(self)
        });
        (sender, writing)
    }
}
