//! The store: the real one in memory, behind the network.

use crate::faults::Fault;
use crate::history::What;
use crate::world::{Link, Process, World};
use async_trait::async_trait;
use futures_util::FutureExt;
use llm_rollout::{EndpointId, Fence, RouterId, Seq, Split};
use llm_serve_adapters::host::{Error, ErrorKind, Owned, Page, Result, RouterMemory, StateStore};
use llm_serve_adapters::store::MemoryStore;
use std::sync::{Arc, Mutex, PoisonError};

/// What a process holds of the store.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) world: Arc<World>,
    pub(crate) process: Arc<Process>,
    pub(crate) inner: MemoryStore,
    /// What the router within the process remembers.
    pub(crate) memory: Arc<Record>,
}

impl Store {
    fn link(&self) -> Link {
        Link::Store(self.process.slot)
    }

    fn unsure(&self, entry: &[u8]) {
        let process = self.process.number;
        let binding = is_binding(entry);
        self.world.record(What::Unsure { process, binding });
    }
}

/// Whether an entry promotes, ends, or takes a version out.
fn is_binding(entry: &[u8]) -> bool {
    let json: serde_json::Value = serde_json::from_slice(entry).unwrap();
    let intents = json["event"]["stepped"]["step"]["intents"].as_array();
    intents.into_iter().flatten().any(|intent| {
        let effect = &intent["effect"];
        let direction = effect["route"]["direction"].as_str();
        effect.get("retire").is_some() || matches!(direction, Some("promote" | "end"))
    })
}

/// The store never makes anybody wait.
fn at_once<T>(call: impl Future<Output = T>) -> T {
    call.now_or_never().unwrap()
}

#[async_trait]
impl StateStore for Store {
    async fn acquire(&self, endpoint: &EndpointId) -> Result<Owned> {
        let (inner, endpoint, process) =
            (self.inner.clone(), endpoint.clone(), self.process.number);
        let deliver = move |world: &World| {
            let owned = at_once(inner.acquire(&endpoint))?;
            let fence = owned.fence.get();
            world.record(What::Acquired { process, fence });
            world.tell(|| format!("process {process} acquires fence {fence}"));
            Ok(owned)
        };
        self.world
            .call(&self.process, self.link(), None, deliver)
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
        let (inner, endpoint, process) =
            (self.inner.clone(), endpoint.clone(), self.process.number);
        let (entry, split, sent) = (entry.to_vec(), split.cloned(), self.world.now());
        let kept = entry.clone();
        let deliver = move |world: &World| {
            let answer = at_once(inner.append(&endpoint, fence, at, &entry, split.as_ref()));
            if let Err(error) = &answer {
                world
                    .tell(|| format!("the store refuses entry {at} of process {process}: {error}"));
            } else {
                world.record(What::Logged {
                    process,
                    fence: fence.get(),
                    sent,
                    seq: at.get(),
                });
                world.tell(|| {
                    format!(
                        "entry {at} of process {process}, fence {fence}: {}",
                        told(&entry)
                    )
                });
                world.lock().log.push(entry.clone());
            }
            answer
        };
        let answer = self
            .world
            .call(&self.process, self.link(), None, deliver)
            .await;
        if answer
            .as_ref()
            .is_err_and(|e| e.kind() == ErrorKind::Transient)
        {
            self.unsure(&kept);
            self.world.doubt(self.process.slot);
        }
        if answer.is_ok() && self.world.strikes(Fault::AppendInDoubt) {
            if self.world.strikes(Fault::DoubtLasts) {
                self.world.cut(&[self.link()], 20_000);
            }
            self.unsure(&kept);
            self.world.doubt(self.process.slot);
            return Err(Error::transient("the store's reply was lost"));
        }
        answer
    }

    async fn read(&self, endpoint: &EndpointId, from: Seq) -> Result<Page> {
        let (inner, endpoint) = (self.inner.clone(), endpoint.clone());
        let deliver = move |world: &World| {
            let mut page = at_once(inner.read(&endpoint, from))?;
            if !page.entries.is_empty() && world.strikes(Fault::StaleRead) {
                let missing = world.between(1, 3).min(page.entries.len() as u64);
                page.entries
                    .truncate(page.entries.len() - usize::try_from(missing).unwrap());
                page.more = false;
            }
            Ok(page)
        };
        let page = self
            .world
            .call(&self.process, self.link(), None, deliver)
            .await;
        if page.is_ok() {
            let process = self.process.number;
            self.world.record(What::Read { process });
        }
        page
    }

    async fn split(&self, endpoint: &EndpointId) -> Result<Option<Split>> {
        let (inner, endpoint) = (self.inner.clone(), endpoint.clone());
        let deliver = move |_: &World| at_once(inner.split(&endpoint));
        self.world
            .call(&self.process, self.link(), None, deliver)
            .await
    }

    fn router_memory(&self, _: &EndpointId, _: &RouterId) -> Option<Arc<dyn RouterMemory>> {
        Some(Arc::new(Memory {
            world: Arc::clone(&self.world),
            record: Arc::clone(&self.memory),
            process: Some(Arc::clone(&self.process)),
        }))
    }
}

/// An entry in a line, for people.
fn told(entry: &[u8]) -> String {
    let text = String::from_utf8_lossy(entry);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let step = &json["event"]["stepped"]["step"];
    if step.is_null() {
        return text.chars().take(60).collect();
    }
    let mut input = step["input"].to_string();
    input.truncate(60);
    let intents = step["intents"].as_array().map_or(0, Vec::len);
    format!(
        "{} <- {input} ({intents} intents, share {})",
        step["state"]["phase"], step["state"]["split"]["share"]
    )
}

/// What a router has saved.
#[derive(Debug, Default)]
pub(crate) struct Record(Mutex<Option<Vec<u8>>>);

/// A router's way to its record.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) world: Arc<World>,
    pub(crate) record: Arc<Record>,
    /// The process that the router is in, if any: it saves nothing more once it is dead.
    pub(crate) process: Option<Arc<Process>>,
}

impl RouterMemory for Memory {
    fn load(&self) -> Result<Option<Vec<u8>>> {
        Ok(self
            .record
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone())
    }

    fn save(&self, record: &[u8]) -> Result<()> {
        if self.process.as_ref().is_some_and(|p| !p.is_alive()) {
            return Err(Error::transient("the process is dead"));
        }
        let fails = self.world.strikes(Fault::RouterSave);
        if !fails || self.world.between(0, 1) == 0 {
            *self.record.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(record.to_vec());
        }
        if fails {
            return Err(Error::transient("the record may not have been saved"));
        }
        Ok(())
    }
}
