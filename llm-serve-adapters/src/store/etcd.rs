//! A store in etcd, for any number of replicas.

mod log;
mod server;
#[cfg(test)]
mod tests;

use super::admit_record;
use super::worker::Worker;
use crate::host::{Error, Owned, Page, Result, RouterMemory, StateStore};
use crate::http_client::Authorities;
use async_trait::async_trait;
use llm_rollout::{EndpointId, Fence, RouterId, Seq, Split};
use server::Server;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How long a call may take, its wait for the calls before it included.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Keeps everything under one prefix of an etcd cluster (3.4 or newer), for any number of replicas and controllers.
///
/// It speaks the JSON gateway of etcd's v3 API. Each append is one transaction that compares the revision of the endpoint's head,
/// in which fence and next position stand, and puts entry and head: two owners never write the same position, and an append that was
/// given up on cannot take effect once the endpoint was acquired anew. Reads are linearizable. Each entry, head and record
/// carries a checksum; what is damaged or missing is a `Permanent` error that names it, and nothing is overwritten.
///
/// Calls run in order on a thread of the store's own, under any executor, and take 10 seconds at most. A member that does not answer
/// costs a `Transient` error at worst; the next member is asked then.
///
/// # Limits
/// - An entry is at most [`EtcdStore::MAX_ENTRY_BYTES`] long, since etcd takes requests of 1.5 MiB.
/// - etcd keeps everything in memory and takes some gigabytes: have the cluster compact its history (`--auto-compaction-retention`), and
///   defragment it. A full one (`NOSPACE`) is a `Transient` error.
/// - No lease is used: ownership is the fence's.
///
/// ```
/// use llm_serve_adapters::store::EtcdStore;
///
/// let store = EtcdStore::open(&["http://10.0.0.1:2379", "http://10.0.0.2:2379"], "rollouts/")?;
/// # Ok::<(), llm_serve_adapters::host::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct EtcdStore {
    worker: Arc<Worker<Server>>,
}

/// Who a client of a cluster is, and whom it trusts.
///
/// ```no_run
/// use llm_serve_adapters::Authorities;
/// use llm_serve_adapters::store::{EtcdAccess, EtcdStore};
///
/// let authority = Authorities::from_pem(std::fs::read("etcd-ca.pem")?)?;
/// let access = EtcdAccess::default().user("rollouts", "secret").trust(authority);
/// let store = EtcdStore::open_as(&["https://10.0.0.1:2379"], "rollouts/", access)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct EtcdAccess {
    user: Option<(String, String)>,
    authorities: Authorities,
}

impl EtcdAccess {
    /// Logs in with this user and password.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some((user.into(), password.into()));
        self
    }

    /// Trusts these certificate authorities beside those of the system.
    #[must_use]
    pub fn trust(mut self, authorities: Authorities) -> Self {
        self.authorities = authorities;
        self
    }
}

impl fmt::Debug for EtcdAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(|(user, _)| user);
        f.debug_struct("EtcdAccess")
            .field("user", &user)
            .field("authorities", &self.authorities)
            .finish()
    }
}

impl EtcdStore {
    /// The longest entry that this store takes, in bytes.
    pub const MAX_ENTRY_BYTES: usize = 1 << 20;

    /// A store of the cluster with these members, under this prefix of its keys. Does not connect yet.
    ///
    /// # Errors
    /// `Permanent` for addresses that are none, or no address; `Transient` if no thread can be started.
    pub fn open(members: &[&str], prefix: &str) -> Result<Self> {
        Self::open_as(members, prefix, EtcdAccess::default())
    }

    /// The same for a cluster that demands a user, or whose certificates are of an authority of one's own.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_as(members: &[&str], prefix: &str, access: EtcdAccess) -> Result<Self> {
        Self::start(Server::new(members, prefix, access)?)
    }

    fn start(server: Server) -> Result<Self> {
        Ok(Self {
            worker: Arc::new(Worker::start(server.name().to_owned(), TIMEOUT, server)?),
        })
    }
}

#[async_trait]
impl StateStore for EtcdStore {
    async fn acquire(&self, endpoint: &EndpointId) -> Result<Owned> {
        let endpoint = endpoint.clone();
        self.worker
            .call(move |server| log::acquire(server, &endpoint))
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
        let split = split.map(serde_json::to_string).transpose().map_err(|e| {
            Error::permanent(format!(
                "the split for position {at} of endpoint {endpoint} cannot be written"
            ))
            .because(e)
        })?;
        let endpoint = endpoint.clone();
        // One byte above the limit is enough for the refusal.
        let entry = entry.get(..=Self::MAX_ENTRY_BYTES).unwrap_or(entry);
        let entry = entry.to_vec();
        self.worker
            .call(move |server| log::append(server, &endpoint, fence, at, &entry, split.as_deref()))
            .await
    }

    async fn read(&self, endpoint: &EndpointId, from: Seq) -> Result<Page> {
        let endpoint = endpoint.clone();
        self.worker
            .call(move |server| log::read(server, &endpoint, from))
            .await
    }

    async fn split(&self, endpoint: &EndpointId) -> Result<Option<Split>> {
        let endpoint = endpoint.clone();
        self.worker
            .call(move |server| log::split(server, &endpoint))
            .await
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
    worker: Arc<Worker<Server>>,
    endpoint: EndpointId,
    router: RouterId,
}

impl RouterMemory for Cell {
    fn load(&self) -> Result<Option<Vec<u8>>> {
        let (endpoint, router) = (self.endpoint.clone(), self.router.clone());
        self.worker
            .call_blocking(move |server| log::load(server, &endpoint, &router))
    }

    fn save(&self, record: &[u8]) -> Result<()> {
        admit_record(&self.endpoint, &self.router, record)?;
        let (endpoint, router) = (self.endpoint.clone(), self.router.clone());
        let record = record.to_vec();
        self.worker
            .call_blocking(move |server| log::save(server, &endpoint, &router, &record))
    }
}
