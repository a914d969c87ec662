//! A store in one SQLite file, for one process.

mod file;
mod log;
#[cfg(test)]
mod tests;

use super::worker::Worker;
use super::{MAX_ENTRY_BYTES, admit_record};
use crate::host::{Error, Owned, Page, Result, RouterMemory, StateStore};
use async_trait::async_trait;
use file::Database;
use llm_rollout::{EndpointId, Fence, RouterId, Seq, Split};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a call may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Keeps everything in one SQLite file, **for a single process**: opening a file that another process (or another store of this
/// one) has open is refused. Several replicas need a store that they can share.
///
/// Writes are on disk when they return (write-ahead log, full synchronisation), entry and split in one transaction. Each entry,
/// split and record carries a checksum; what is damaged or missing is a `Permanent` error that names it, and nothing is ever
/// overwritten. Calls run in order on a thread of the store's own, under any executor, and take 10 seconds at most.
/// Beside the file lie `-wal` (a part of it while the store is open) and `.lock` (who has it open; leave it there).
/// Clones share the store; the file is closed with the last clone and the last [`RouterMemory`] of it, which waits until calls
/// that are under way have ended (5 seconds at most).
///
/// ```
/// use llm_serve_adapters::host::StateStore;
/// use llm_serve_adapters::store::SqliteStore;
///
/// let folder = tempfile::tempdir()?;
/// let store = SqliteStore::open(folder.path().join("rollouts.db"))?;
/// let second = SqliteStore::open(folder.path().join("rollouts.db"));
/// assert!(second.unwrap_err().to_string().contains("is open in another process"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct SqliteStore {
    worker: Arc<Worker<Database>>,
}

impl SqliteStore {
    /// Opens the file, creating it if it is not there. Blocks for some milliseconds, however long the logs are: what is damaged
    /// deep inside is found when it is read.
    ///
    /// # Errors
    /// `Transient` if it is open elsewhere or the disk is full; `Permanent` if it cannot be written, is damaged, is not one of
    /// ours, or was written by a newer program whose format this one does not know.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path.as_ref(), TIMEOUT)
    }

    fn open_with(path: &Path, timeout: Duration) -> Result<Self> {
        let database = Database::open(path)?;
        let name = format!("the store {}", path.display());
        Ok(Self {
            worker: Arc::new(Worker::start(name, timeout, database)?),
        })
    }
}

#[async_trait]
impl StateStore for SqliteStore {
    async fn acquire(&self, endpoint: &EndpointId) -> Result<Owned> {
        let endpoint = endpoint.clone();
        self.worker
            .call(move |db| log::acquire(db, &endpoint))
            .await
    }

    async fn append(
        &self,
        endpoint: &EndpointId,
        fence: Fence,
        at: Seq,
        entry: &[u8],
        split: Option<&Split>,
    ) -> Result<()> {
        let split = match split {
            Some(split) => Some(serde_json::to_vec(split).map_err(|e| {
                Error::permanent(format!(
                    "the split for position {at} of endpoint {endpoint} cannot be written"
                ))
                .because(e)
            })?),
            None => None,
        };
        let endpoint = endpoint.clone();
        // One byte above the limit is enough for the refusal.
        let entry = entry.get(..=MAX_ENTRY_BYTES).unwrap_or(entry).to_vec();
        self.worker
            .call(move |db| log::append(db, &endpoint, fence, at, &entry, split.as_deref()))
            .await
    }

    async fn read(&self, endpoint: &EndpointId, from: Seq) -> Result<Page> {
        let endpoint = endpoint.clone();
        self.worker
            .call(move |db| log::read(db, &endpoint, from))
            .await
    }

    async fn split(&self, endpoint: &EndpointId) -> Result<Option<Split>> {
        let endpoint = endpoint.clone();
        self.worker.call(move |db| log::split(db, &endpoint)).await
    }

    fn router_memory(
        &self,
        endpoint: &EndpointId,
        router: &RouterId,
    ) -> Option<Arc<dyn RouterMemory>> {
        Some(Arc::new(Cell {
            worker: Arc::clone(&self.worker),
            endpoint: endpoint.clone(),
            router: router.clone(),
        }))
    }
}

#[derive(Debug)]
struct Cell {
    worker: Arc<Worker<Database>>,
    endpoint: EndpointId,
    router: RouterId,
}

impl RouterMemory for Cell {
    fn load(&self) -> Result<Option<Vec<u8>>> {
        let (endpoint, router) = (self.endpoint.clone(), self.router.clone());
        self.worker
            .call_blocking(move |db| log::load(db, &endpoint, &router))
    }

    fn save(&self, record: &[u8]) -> Result<()> {
        admit_record(&self.endpoint, &self.router, record)?;
        let (endpoint, router, record) =
            (self.endpoint.clone(), self.router.clone(), record.to_vec());
        self.worker
            .call_blocking(move |db| log::save(db, &endpoint, &router, &record))
    }
}
