//! A store in PostgreSQL, for any number of replicas.

mod log;
mod server;

use super::worker::Worker;
use super::{MAX_ENTRY_BYTES, admit_record};
use crate::host::{Error, Owned, Page, Result, RouterMemory, StateStore};
use async_trait::async_trait;
use llm_rollout::{EndpointId, Fence, RouterId, Seq, Split};
use server::{Connect, Server};
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::tls::{MakeTlsConnect, NoTls, TlsConnect};
use tokio_postgres::{Config, Socket};

/// How long a call may take, its wait for the calls before it included.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Keeps everything in four tables of a PostgreSQL database (12 or newer), for any number of replicas and controllers.
///
/// Each append is one transaction that locks the endpoint's row, checks fence and position, and writes entry and split; it is
/// committed with `synchronous_commit` on when it returns. Each entry, split and record carries a checksum; what is damaged or
/// missing is a `Permanent` error that names it, and nothing is ever overwritten. The tables, `llm_rollout_*`, are laid out in
/// the schema that the user's `search_path` names first, by the first call.
///
/// Calls run in order on one connection of a thread of the store's own, under any executor, and take 10 seconds at most. It connects
/// at the first call and whenever the connection is gone; a server that is stopped costs `Transient` errors. Only a primary is
/// used: of several hosts in the settings, the one that can be written. **What a failover loses, the store loses**: a standby that may
/// become the primary has to be synchronous. A pooler has to pool sessions, not transactions.
///
/// ```no_run
/// use llm_serve_adapters::store::PostgresStore;
///
/// // Without TLS, for a socket or a trusted network; `open_with` takes a TLS connector.
/// let store = PostgresStore::open("host=/run/postgresql user=rollouts dbname=rollouts")?;
/// # Ok::<(), llm_serve_adapters::host::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PostgresStore {
    worker: Arc<Worker<Server>>,
}

impl PostgresStore {
    /// A store in the database of these settings (`host=... user=...`, or a `postgresql://` address), without TLS. Does not
    /// connect yet.
    ///
    /// # Errors
    /// `Permanent` for settings that are none; `Transient` if no thread can be started.
    pub fn open(settings: &str) -> Result<Self> {
        Self::open_with(settings, NoTls)
    }

    /// The same with TLS, by a connector of the crate `tokio-postgres-rustls` or its like; say `sslmode=require` in the settings.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with<T>(settings: &str, tls: T) -> Result<Self>
    where
        T: MakeTlsConnect<Socket> + Clone + Send + 'static,
        T::Stream: Send + 'static,
        T::TlsConnect: TlsConnect<Socket>,
    {
        // The reason would quote the settings, which hold a password.
        let config: Config = settings.parse().map_err(|_| {
            Error::permanent(
                "the settings of the store cannot be read: write for example \"host=db.example user=rollouts dbname=rollouts\"",
            )
        })?;
        let server = Server::new(config, Connect::by(tls))?;
        Ok(Self {
            worker: Arc::new(Worker::start(server.name().to_owned(), TIMEOUT, server)?),
        })
    }
}

#[async_trait]
impl StateStore for PostgresStore {
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
        let split = split.map(serde_json::to_vec).transpose().map_err(|e| {
            Error::permanent(format!(
                "the split for position {at} of endpoint {endpoint} cannot be written"
            ))
            .because(e)
        })?;
        let endpoint = endpoint.clone();
        // One byte above the limit is enough for the refusal.
        let entry = entry.get(..=MAX_ENTRY_BYTES).unwrap_or(entry).to_vec();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ErrorKind;

    #[tokio::test]
    async fn settings_are_checked_and_their_secrets_kept() {
        for bad in ["host", "host=a port=x password=S3CRET", "nonsense=S3CRET"] {
            let error = PostgresStore::open(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Permanent);
            assert!(!format!("{error:?}").contains("S3CRET"), "{error:?}");
        }
        let store = PostgresStore::open(
            "host=127.0.0.1 port=9 user=u password=S3CRET dbname=d connect_timeout=1",
        )
        .unwrap();
        let error = store
            .split(&EndpointId::new("chat").unwrap())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient);
        let text = format!("{error} {error:?} {store:?}");
        assert!(
            text.contains("127.0.0.1") && !text.contains("S3CRET"),
            "{text}"
        );
    }
}
