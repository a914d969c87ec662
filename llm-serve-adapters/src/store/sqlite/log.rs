//! The tables: logs, splits and router records, each row with a checksum.

use super::file::Database;
use crate::host::{Error, Owned, Page, Result};
use crate::store::{PAGE_BYTES, PAGE_ENTRIES, admit, following, sums};
use llm_rollout::{EndpointId, Fence, RouterId, Seq, Split};
use rusqlite::types::Type;
use rusqlite::{OptionalExtension as _, Row, Transaction, TransactionBehavior, params};

/// What stands at the head of a log.
#[derive(Default)]
struct Head {
    fence: Fence,
    next: Seq,
    split: Option<Vec<u8>>,
}

/// Either SQLite failed, or what it holds is not right.
enum Failure {
    Sqlite(rusqlite::Error),
    Other(Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

type Attempt<T> = std::result::Result<T, Failure>;

pub(super) fn acquire(db: &mut Database, endpoint: &EndpointId) -> Result<Owned> {
    transact(db, &format!("give a fence for endpoint {endpoint}"), |tx| {
        let mut head = head(tx, endpoint)?;
        head.fence = Fence::new(following("fence", endpoint, head.fence.get())?);
        put_head(tx, endpoint, &head)?;
        Ok(Owned {
            fence: head.fence,
            next: head.next,
        })
    })
}

pub(super) fn append(
    db: &mut Database,
    endpoint: &EndpointId,
    fence: Fence,
    at: Seq,
    entry: &[u8],
    split: Option<&[u8]>,
) -> Result<()> {
    transact(
        db,
        &format!("write position {at} of endpoint {endpoint}"),
        |tx| {
            let mut head = head(tx, endpoint)?;
            admit(endpoint, head.fence, head.next, fence, at, entry)?;
            tx.prepare(
                "INSERT INTO entries (endpoint, seq, fence, entry, sum) VALUES (?, ?, ?, ?, ?)",
            )?
            .execute(params![
                endpoint.as_str(),
                signed(endpoint, at.get())?,
                signed(endpoint, fence.get())?,
                entry,
                sums::entry(endpoint, at, fence, entry),
            ])?;
            head.next = Seq::new(following("entry", endpoint, head.next.get())?);
            if let Some(split) = split {
                head.split = Some(split.to_vec());
            }
            put_head(tx, endpoint, &head)
        },
    )
}

pub(super) fn read(db: &mut Database, endpoint: &EndpointId, from: Seq) -> Result<Page> {
    transact(
        db,
        &format!("read endpoint {endpoint} from position {from}"),
        |tx| {
            let next = head(tx, endpoint)?.next;
            let mut page = Page::default();
            if from >= next {
                return Ok(page);
            }
            let mut rows = tx
            .prepare("SELECT seq, fence, entry, sum FROM entries WHERE endpoint = ? AND seq >= ? ORDER BY seq LIMIT ?")?;
            let mut rows = rows.query(params![
                endpoint.as_str(),
                signed(endpoint, from.get())?,
                i64::try_from(PAGE_ENTRIES).unwrap_or(i64::MAX)
            ])?;
            let mut bytes = 0;
            let mut at = from;
            while at < next && page.entries.len() < PAGE_ENTRIES && bytes < PAGE_BYTES {
                let lost = |how: &str| {
                    Error::permanent(format!(
                        "position {at} of endpoint {endpoint} is {how}, nothing has been changed: put back a copy of the store"
                    ))
                };
                let row = rows.next()?.ok_or_else(|| lost("missing"))?;
                let seq = number(row, 0)?;
                if seq != at.get() {
                    return Err(lost("missing").into());
                }
                let fence = number(row, 1)?;
                let entry: Vec<u8> = row.get(2)?;
                let expected = sums::entry(endpoint, at, Fence::new(fence), &entry);
                if row.get::<_, i64>(3)? != expected {
                    return Err(lost("damaged").into());
                }
                bytes += entry.len();
                page.entries.push((at, entry));
                at = at.next();
            }
            page.more = at < next;
            Ok(page)
        },
    )
}

pub(super) fn split(db: &mut Database, endpoint: &EndpointId) -> Result<Option<Split>> {
    transact(
        db,
        &format!("read the split of endpoint {endpoint}"),
        |tx| {
            let Some(split) = head(tx, endpoint)?.split else {
                return Ok(None);
            };
            Ok(Some(serde_json::from_slice(&split).map_err(|e| {
                Error::permanent(format!(
                    "the split of endpoint {endpoint} cannot be read, nothing has been changed: \
                 it may be of a newer program; use the program version that wrote it"
                ))
                .because(e)
            })?))
        },
    )
}

pub(super) fn load(
    db: &mut Database,
    endpoint: &EndpointId,
    router: &RouterId,
) -> Result<Option<Vec<u8>>> {
    transact(
        db,
        &format!("read the record of router {router} of endpoint {endpoint}"),
        |tx| {
            let row = tx
                .prepare("SELECT record, sum FROM routers WHERE endpoint = ? AND router = ?")?
                .query_row([endpoint.as_str(), router.as_str()], |row| {
                    Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?))
                })
                .optional()?;
            match row {
            Some((record, expected)) if sums::record(endpoint, router, &record) != expected => Err(Error::permanent(format!(
                "the record of router {router} of endpoint {endpoint} is damaged, nothing has been changed: \
                 put back a copy of the store"
            ))
            .into()),
            row => Ok(row.map(|(record, _)| record)),
        }
        },
    )
}

pub(super) fn save(
    db: &mut Database,
    endpoint: &EndpointId,
    router: &RouterId,
    record: &[u8],
) -> Result<()> {
    transact(
        db,
        &format!("write the record of router {router} of endpoint {endpoint}"),
        |tx| {
            tx.prepare(
            "INSERT INTO routers (endpoint, router, record, sum) VALUES (?, ?, ?, ?)
             ON CONFLICT (endpoint, router) DO UPDATE SET record = excluded.record, sum = excluded.sum",
        )?
        .execute(params![endpoint.as_str(), router.as_str(), record, sums::record(endpoint, router, record)])?;
            Ok(())
        },
    )
}

/// Does it in one transaction, so that it is either whole or not there.
fn transact<T>(
    db: &mut Database,
    what: &str,
    work: impl FnOnce(&Transaction<'_>) -> Attempt<T>,
) -> Result<T> {
    let attempt = || -> Attempt<T> {
        let tx = db
            .connection()
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = work(&tx)?;
        tx.commit()?;
        Ok(done)
    };
    attempt().map_err(|e| match e {
        Failure::Sqlite(e) => db.failed(what, e),
        Failure::Other(e) => e,
    })
}

fn head(tx: &Transaction<'_>, endpoint: &EndpointId) -> Attempt<Head> {
    let row = tx
        .prepare("SELECT fence, next, split, sum FROM endpoints WHERE endpoint = ?")?
        .query_row([endpoint.as_str()], |row| {
            let head = Head {
                fence: Fence::new(number(row, 0)?),
                next: Seq::new(number(row, 1)?),
                split: row.get(2)?,
            };
            Ok((head, row.get::<_, i64>(3)?))
        })
        .optional()?;
    let last: Option<i64> = tx
        .prepare("SELECT max(seq) FROM entries WHERE endpoint = ?")?
        .query_row([endpoint.as_str()], |row| row.get(0))?;
    let behind = last.map_or(0, |last| last.saturating_add(1));
    let damaged = |how: String| {
        Error::permanent(format!(
            "the head of endpoint {endpoint} is damaged ({how}), nothing has been changed: put back a copy of the store"
        ))
    };
    let head = match row {
        None => Head::default(),
        Some((head, expected)) if head_sum(endpoint, &head) == expected => head,
        Some(_) => return Err(damaged("its checksum is wrong".to_owned()).into()),
    };
    let next = head.next.get();
    if i64::try_from(next) != Ok(behind) {
        let first = next.min(u64::try_from(behind).unwrap_or(0));
        return Err(damaged(format!(
            "it counts {next} entries and the log has {behind}: see position {first}"
        ))
        .into());
    }
    Ok(head)
}

fn put_head(tx: &Transaction<'_>, endpoint: &EndpointId, head: &Head) -> Attempt<()> {
    tx.prepare(
        "INSERT INTO endpoints (endpoint, fence, next, split, sum) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (endpoint) DO UPDATE
         SET fence = excluded.fence, next = excluded.next, split = excluded.split, sum = excluded.sum",
    )?
    .execute(params![
        endpoint.as_str(),
        signed(endpoint, head.fence.get())?,
        signed(endpoint, head.next.get())?,
        head.split,
        head_sum(endpoint, head),
    ])?;
    Ok(())
}

fn head_sum(endpoint: &EndpointId, head: &Head) -> i64 {
    sums::head(endpoint, head.fence, head.next, head.split.as_deref())
}

fn signed(endpoint: &EndpointId, value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| {
        Error::permanent(format!(
            "{value} is above what the store can number on endpoint {endpoint}"
        ))
    })
}

fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Integer, Box::new(e)))
}
