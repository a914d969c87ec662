//! A store that ends with its process.

use super::{PAGE_BYTES, PAGE_ENTRIES, admit, admit_record, following};
use crate::host::{Owned, Page, Result, RouterMemory, StateStore};
use async_trait::async_trait;
use llm_rollout::{EndpointId, Fence, RouterId, Seq, Split};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Keeps everything in memory, for tests and for programs that need not survive a restart: whatever was promoted or rolled back
/// is forgotten with the process. Clones share their content.
///
/// ```
/// use llm_serve_adapters::host::StateStore;
/// use llm_serve_adapters::store::MemoryStore;
///
/// let store: Box<dyn StateStore> = Box::new(MemoryStore::new());
/// ```
#[derive(Clone, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    logs: BTreeMap<EndpointId, Log>,
    routers: BTreeMap<(EndpointId, RouterId), Vec<u8>>,
}

#[derive(Default)]
struct Log {
    fence: Fence,
    entries: Vec<Vec<u8>>,
    split: Option<Split>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Whoever panicked while holding the lock left the state whole: each change is checked first and then made in one go.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn next(log: &Log) -> Seq {
    Seq::new(log.entries.len() as u64)
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("endpoints", &self.lock().logs.len())
            .finish()
    }
}

#[async_trait]
impl StateStore for MemoryStore {
    async fn acquire(&self, endpoint: &EndpointId) -> Result<Owned> {
        let mut state = self.lock();
        let log = state.logs.entry(endpoint.clone()).or_default();
        log.fence = Fence::new(following("fence", endpoint, log.fence.get())?);
        Ok(Owned {
            fence: log.fence,
            next: next(log),
        })
    }

    async fn append(
        &self,
        endpoint: &EndpointId,
        fence: Fence,
        at: Seq,
        entry: &[u8],
        split: Option<&Split>,
    ) -> Result<()> {
        let mut state = self.lock();
        let (newest, free) = state
            .logs
            .get(endpoint)
            .map_or_else(Default::default, |log| (log.fence, next(log)));
        admit(endpoint, newest, free, fence, at, entry)?;
        let log = state.logs.entry(endpoint.clone()).or_default();
        log.entries.push(entry.to_vec());
        if let Some(split) = split {
            log.split = Some(split.clone());
        }
        Ok(())
    }

    async fn read(&self, endpoint: &EndpointId, from: Seq) -> Result<Page> {
        let state = self.lock();
        let Some(log) = state.logs.get(endpoint) else {
            return Ok(Page::default());
        };
        let rest = usize::try_from(from.get())
            .ok()
            .and_then(|from| log.entries.get(from..))
            .unwrap_or_default();
        let mut page = Page::default();
        let mut bytes = 0;
        let mut at = from;
        for entry in rest {
            if page.entries.len() == PAGE_ENTRIES || bytes >= PAGE_BYTES {
                page.more = true;
                break;
            }
            bytes += entry.len();
            page.entries.push((at, entry.clone()));
            at = at.next();
        }
        Ok(page)
    }

    async fn split(&self, endpoint: &EndpointId) -> Result<Option<Split>> {
        Ok(self
            .lock()
            .logs
            .get(endpoint)
            .and_then(|log| log.split.clone()))
    }

    fn router_memory(
        &self,
        endpoint: &EndpointId,
        router: &RouterId,
    ) -> Option<Arc<dyn RouterMemory>> {
        Some(Arc::new(Cell {
            state: Arc::clone(&self.state),
            endpoint: endpoint.clone(),
            router: router.clone(),
        }))
    }
}

struct Cell {
    state: Arc<Mutex<State>>,
    endpoint: EndpointId,
    router: RouterId,
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cell")
            .field("endpoint", &self.endpoint)
            .field("router", &self.router)
            .finish_non_exhaustive()
    }
}

impl RouterMemory for Cell {
    fn load(&self) -> Result<Option<Vec<u8>>> {
        Ok(lock(&self.state)
            .routers
            .get(&(self.endpoint.clone(), self.router.clone()))
            .cloned())
    }

    fn save(&self, record: &[u8]) -> Result<()> {
        admit_record(&self.endpoint, &self.router, record)?;
        lock(&self.state).routers.insert(
            (self.endpoint.clone(), self.router.clone()),
            record.to_vec(),
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn conforms() {
        let store = MemoryStore::new();
        testing::store::suite(async || Ok(Arc::new(store.clone()) as Arc<dyn StateStore>))
            .await
            .unwrap();
    }
}
