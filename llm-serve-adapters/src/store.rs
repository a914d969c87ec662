//! Where each endpoint's log is kept: in memory, in an SQLite file (feature `sqlite`), in PostgreSQL (feature
//! `postgres`), or in etcd (feature `etcd`).
//!
//! All keep to the rules of [`StateStore`](crate::host::StateStore) and pass the conformance suite of the feature `testing`,
//! which hosts can run on stores of their own.
//!
//! An append whose reply was lost is **not** acknowledged when it is repeated: the position is taken by then, so the repetition
//! is `Permanent`. A caller in doubt reads the log again and compares.

#[cfg(feature = "etcd")]
mod etcd;
mod memory;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(any(feature = "etcd", feature = "postgres", feature = "sqlite"))]
mod sums;
#[cfg(any(feature = "etcd", feature = "postgres", feature = "sqlite"))]
mod worker;

#[cfg(feature = "etcd")]
pub use etcd::{EtcdAccess, EtcdStore};
pub use memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;

use crate::host::{Error, Result};
use llm_rollout::{EndpointId, Fence, RouterId, Seq};

/// The longest entry that a log takes, in bytes.
pub const MAX_ENTRY_BYTES: usize = 16 << 20;
/// The longest record that a router's memory takes, in bytes.
pub const MAX_RECORD_BYTES: usize = 64 << 10;
/// The most entries in one page.
pub const PAGE_ENTRIES: usize = 256;
/// A page ends with the entry that brings it to this many bytes.
pub const PAGE_BYTES: usize = 1 << 20;

/// Whether an append by `fence` at `at` may go ahead on a log whose newest fence and next position are these.
fn admit(
    endpoint: &EndpointId,
    newest: Fence,
    next: Seq,
    fence: Fence,
    at: Seq,
    entry: &[u8],
) -> Result<()> {
    if fence < newest {
        return Err(Error::fenced(format!(
            "fence {fence} on endpoint {endpoint} is older than {newest}: another controller owns it now; stop this one"
        )));
    }
    if fence > newest || newest == Fence::default() {
        return Err(Error::permanent(format!(
            "fence {fence} on endpoint {endpoint} was never given by this store, whose newest is {newest}: acquire first; \
             if it was acquired, the store has been replaced by an older copy"
        )));
    }
    if at != next {
        return Err(Error::permanent(format!(
            "position {at} of endpoint {endpoint} cannot be written, the next one is {next}: read the log again"
        )));
    }
    if entry.len() > MAX_ENTRY_BYTES {
        return Err(Error::permanent(format!(
            "an entry of {} bytes for position {at} of endpoint {endpoint} is above the limit of {MAX_ENTRY_BYTES}",
            entry.len()
        )));
    }
    Ok(())
}

/// The number after `last`, or an error once they have run out.
fn following(what: &str, endpoint: &EndpointId, last: u64) -> Result<u64> {
    // SQLite counts to i64::MAX; all stores end there, so that they behave alike.
    match last.checked_add(1) {
        Some(next) if i64::try_from(next).is_ok() => Ok(next),
        _ => Err(Error::permanent(format!(
            "the {what} numbers of endpoint {endpoint} have run out"
        ))),
    }
}

fn admit_record(endpoint: &EndpointId, router: &RouterId, record: &[u8]) -> Result<()> {
    if record.len() > MAX_RECORD_BYTES {
        return Err(Error::permanent(format!(
            "a record of {} bytes for router {router} of endpoint {endpoint} is above the limit of {MAX_RECORD_BYTES}",
            record.len()
        )));
    }
    Ok(())
}
