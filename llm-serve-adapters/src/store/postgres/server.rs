//! The connection to the server: made when it is needed, made anew when it is gone, one transaction at a time.

use crate::host::{Error, ErrorKind, Result};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::config::{Host, TargetSessionAttrs};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, Config, IsolationLevel, Socket, Transaction};

/// How long a transaction may take, connecting included: less than the caller waits.
const LIMIT: Duration = Duration::from_secs(8);
const CONNECT: Duration = Duration::from_secs(4);
const MAJOR: i32 = 1;
const MINOR: i32 = 0;
/// Of all advisory locks, the one under which the tables are laid out ("llmroll").
const LAYOUT: i64 = 0x6c_6c6d_726f_6c6c;

/// What every session is set to: a commit is on disk, nothing waits for ever, and a client that died locks nothing for long.
const SESSION: &str = "SET synchronous_commit = on; SET statement_timeout = '8s'; SET lock_timeout = '8s'; \
                       SET idle_in_transaction_session_timeout = '10s'";

const TABLES: &str = r#"
CREATE TABLE IF NOT EXISTS llm_rollout_endpoints (
    endpoint text COLLATE "C" PRIMARY KEY, fence bigint NOT NULL, next bigint NOT NULL, split bytea, sum bigint NOT NULL);
CREATE TABLE IF NOT EXISTS llm_rollout_entries (
    endpoint text COLLATE "C", seq bigint, fence bigint NOT NULL, entry bytea NOT NULL, sum bigint NOT NULL,
    PRIMARY KEY (endpoint, seq));
CREATE TABLE IF NOT EXISTS llm_rollout_routers (
    endpoint text COLLATE "C", router text COLLATE "C", record bytea NOT NULL, sum bigint NOT NULL,
    PRIMARY KEY (endpoint, router));
CREATE TABLE IF NOT EXISTS llm_rollout_format (one boolean PRIMARY KEY CHECK (one), major integer NOT NULL, minor integer NOT NULL);
"#;

type Connecting = Pin<Box<dyn Future<Output = std::result::Result<Client, tokio_postgres::Error>>>>;

/// How a connection is made.
pub(super) struct Connect(Box<dyn Fn(Config) -> Connecting + Send>);

impl Connect {
    pub(super) fn by<T>(tls: T) -> Self
    where
        T: MakeTlsConnect<Socket> + Clone + Send + 'static,
        T::Stream: Send + 'static,
        T::TlsConnect: TlsConnect<Socket>,
    {
        Self(Box::new(move |config| {
            let tls = tls.clone();
            Box::pin(async move {
                let (client, connection) = config.connect(tls).await?;
                // It ends with the client; what it has to say the client says too.
                tokio::spawn(async move { drop(connection.await) });
                Ok(client)
            })
        }))
    }
}

/// Why a transaction did not come about.
pub(super) enum Failure {
    /// The server failed; nothing has been done.
    Postgres(tokio_postgres::Error),
    /// The connection failed at the commit: whether it took effect is unknown.
    Commit(tokio_postgres::Error),
    /// What the server holds is not right, or the request is not.
    Other(Error),
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

pub(super) type Attempt<T> = std::result::Result<T, Failure>;

/// Whether a transaction writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// A server, by its settings.
pub(super) struct Server {
    name: String,
    config: Config,
    connect: Connect,
    client: Option<Client>,
    runtime: Runtime,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Server {
    pub(super) fn new(mut config: Config, connect: Connect) -> Result<Self> {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT);
        }
        // The connection lives on a thread of its own: between calls too it notices its end, and locks nothing.
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|e| {
                Error::transient("cannot start a runtime for the store: free some resources")
                    .because(e)
            })?;
        Ok(Self {
            name: name(&config),
            config,
            connect,
            client: None,
            runtime,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Does it in one transaction, so that it is either whole or not there.
    pub(super) fn transact<T>(
        &mut self,
        what: &str,
        access: Access,
        work: &impl AsyncFn(&Transaction<'_>) -> Attempt<T>,
    ) -> Result<T> {
        let Self {
            config,
            connect,
            client,
            runtime,
            name,
        } = self;
        let all = async {
            // A connection that was idle may be gone, which shows at the first statement: nothing has been done then.
            let mut found =
                client.take_if(|client| client.is_closed()).is_none() && client.is_some();
            loop {
                let open = match &mut *client {
                    Some(open) => open,
                    none => none.insert(connected(config, connect).await?),
                };
                match attempt(open, access, work).await {
                    Err(Failure::Postgres(e)) if found && gone(&e) => {
                        *client = None;
                        found = false;
                    }
                    outcome => return outcome,
                }
            }
        };
        let outcome = runtime.block_on(async { tokio::time::timeout(LIMIT, all).await });
        let failed = |unknown: bool, error: tokio_postgres::Error| {
            let fate = if unknown {
                "whether it took effect is unknown"
            } else {
                "nothing has been changed"
            };
            let text = error
                .as_db_error()
                .map_or_else(|| root(&error), |e| e.message().to_owned());
            let message = format!(
                "{name} could not {what}, {fate} ({text}): {}",
                advice(&error)
            );
            Error::new(
                if unknown {
                    ErrorKind::Transient
                } else {
                    kind(&error)
                },
                message,
            )
            .because(error)
        };
        match outcome {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(Failure::Other(error))) => return Err(error),
            Ok(Err(Failure::Postgres(error))) => {
                if gone(&error) {
                    self.client = None;
                }
                return Err(failed(false, error));
            }
            Ok(Err(Failure::Commit(error))) => {
                self.client = None;
                return Err(failed(true, error));
            }
            Err(_) => self.client = None,
        }
        Err(Error::transient(format!(
            "{} did not {what} within {LIMIT:?}, and it may still take effect: look at the server, then read again",
            self.name
        )))
    }
}

async fn attempt<T>(
    client: &mut Client,
    access: Access,
    work: &impl AsyncFn(&Transaction<'_>) -> Attempt<T>,
) -> Attempt<T> {
    let tx = client.build_transaction().read_only(access == Access::Read);
    // A page and the head of its log are of one moment; writers wait for each other at the head's row.
    let level = match access {
        Access::Read => IsolationLevel::RepeatableRead,
        Access::Write => IsolationLevel::ReadCommitted,
    };
    let tx = tx.isolation_level(level).start().await?;
    match work(&tx).await {
        Ok(done) => {
            tx.commit().await.map_err(Failure::Commit)?;
            Ok(done)
        }
        Err(failure) => {
            // Now rather than some time: others wait for the lock. Where the connection is gone, the server does it.
            let _gone_otherwise = tx.rollback().await;
            Err(failure)
        }
    }
}

async fn connected(config: &Config, connect: &Connect) -> Attempt<Client> {
    let mut client = (connect.0)(config.clone()).await?;
    client.batch_execute(SESSION).await?;
    let tx = client.transaction().await?;
    let there = "SELECT to_regclass('llm_rollout_format') IS NOT NULL";
    let laid_out: bool = tx.query_one(there, &[]).await?.get(0);
    if !laid_out {
        // Whoever comes second finds it laid out: by name once more, as what a session has not found it remembers.
        tx.execute("SELECT pg_advisory_xact_lock($1)", &[&LAYOUT])
            .await?;
        tx.batch_execute(TABLES).await?;
        let first = "INSERT INTO llm_rollout_format (one, major, minor) VALUES (true, $1, $2) ON CONFLICT DO NOTHING";
        tx.execute(first, &[&MAJOR, &MINOR]).await?;
    }
    let format = tx
        .query_opt("SELECT major, minor FROM llm_rollout_format", &[])
        .await?;
    let format = format.map(|row| (row.get::<_, i32>(0), row.get::<_, i32>(1)));
    match format {
        Some((MAJOR, _)) => {}
        Some((major, minor)) => {
            return Err(Error::permanent(format!(
                "the store has format {major}.{minor} and this program knows {MAJOR}.x: use the program version that wrote it, \
                 or give another database"
            ))
            .into());
        }
        None => {
            return Err(Error::permanent(
                "the table llm_rollout_format of the store is empty: put back a copy of it",
            )
            .into());
        }
    }
    tx.commit().await?;
    Ok(client)
}

/// How errors call it: without user and password.
fn name(config: &Config) -> String {
    let hosts = config
        .get_hosts()
        .iter()
        .zip(config.get_ports().iter().chain(std::iter::repeat(&5432)));
    let hosts: Vec<_> = hosts
        .map(|(host, port)| match host {
            Host::Tcp(host) => format!("{host}:{port}"),
            #[cfg(unix)]
            Host::Unix(path) => path.display().to_string(),
        })
        .collect();
    format!(
        "the store {} at {}",
        config.get_dbname().unwrap_or_default(),
        hosts.join(",")
    )
}

/// Whether the connection is of no use any more.
fn gone(error: &tokio_postgres::Error) -> bool {
    error.is_closed()
        || error
            .as_db_error()
            .is_none_or(|e| e.code().code().starts_with("57P"))
}

fn kind(error: &tokio_postgres::Error) -> ErrorKind {
    let Some(code) = error.code() else {
        return ErrorKind::Transient;
    };
    // Connection, rollback, resources, state, operator, system; and a primary that has become a standby.
    let again = ["08", "40", "53", "55", "57", "58", "25"];
    if again.iter().any(|class| code.code().starts_with(class)) {
        ErrorKind::Transient
    } else {
        ErrorKind::Permanent
    }
}

fn advice(error: &tokio_postgres::Error) -> &'static str {
    match error.code() {
        None => "check that it runs, listens there and can be written, then try again",
        Some(code) if *code == SqlState::DISK_FULL => "free some space, then try again",
        Some(code) if code.code().starts_with("28") => "check user and password",
        Some(code) if code.code().starts_with("3D") => "create the database",
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
            "grant the user its tables, or CREATE on the schema for the first call"
        }
        Some(code) if code.code().starts_with("XX") => {
            "the database is damaged: put back a copy of it"
        }
        Some(_) => "see the server's log",
    }
}

/// The deepest reason: what lies above it says "error connecting to server".
fn root(error: &tokio_postgres::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
