//! The tables: logs, splits and router records, each row with a checksum.

use super::server::{Access, Attempt, Server};
use crate::host::{Error, Owned, Page, Result};
use crate::store::{PAGE_BYTES, PAGE_ENTRIES, admit, following, sums};
use llm_rollout::{EndpointId, Fence, RouterId, Seq, Split};
use tokio_postgres::{Row, Transaction};

/// What stands at the head of a log.
#[derive(Default)]
struct Head {
    fence: Fence,
    next: Seq,
    split: Option<Vec<u8>>,
}

pub(super) fn acquire(server: &mut Server, endpoint: &EndpointId) -> Result<Owned> {
    let what = format!("give a fence for endpoint {endpoint}");
    server.transact(&what, Access::Write, &async |tx| {
        // A row to lock, so that of two first owners one waits.
        let none = Head::default();
        let sum = head_sum(endpoint, &none);
        let insert = "INSERT INTO llm_rollout_endpoints (endpoint, fence, next, sum) VALUES ($1, 0, 0, $2) ON CONFLICT DO NOTHING";
        tx.execute(insert, &[&endpoint.as_str(), &sum]).await?;
        let mut head = head(tx, endpoint, Access::Write).await?;
        head.fence = Fence::new(following("fence", endpoint, head.fence.get())?);
        put_head(tx, endpoint, &head).await?;
        Ok(Owned { fence: head.fence, next: head.next })
    })
}

pub(super) fn append(
    server: &mut Server,
    endpoint: &EndpointId,
    fence: Fence,
    at: Seq,
    entry: &[u8],
    split: Option<&[u8]>,
) -> Result<()> {
    let what = format!("write position {at} of endpoint {endpoint}");
    server.transact(&what, Access::Write, &async |tx| {
        let mut head = head(tx, endpoint, Access::Write).await?;
        admit(endpoint, head.fence, head.next, fence, at, entry)?;
        let insert = "INSERT INTO llm_rollout_entries (endpoint, seq, fence, entry, sum) VALUES ($1, $2, $3, $4, $5)";
        let sum = sums::entry(endpoint, at, fence, entry);
        let (seq, by) = (signed(endpoint, at.get())?, signed(endpoint, fence.get())?);
        tx.execute(insert, &[&endpoint.as_str(), &seq, &by, &entry, &sum]).await?;
        head.next = Seq::new(following("entry", endpoint, head.next.get())?);
        if let Some(split) = split {
            head.split = Some(split.to_vec());
        }
        put_head(tx, endpoint, &head).await
    })
}

pub(super) fn read(server: &mut Server, endpoint: &EndpointId, from: Seq) -> Result<Page> {
    let what = format!("read endpoint {endpoint} from position {from}");
    server.transact(&what, Access::Read, &async |tx| {
        let next = head(tx, endpoint, Access::Read).await?.next;
        let mut page = Page::default();
        if from >= next {
            return Ok(page);
        }
        // Entries are long: no more come than the page takes.
        let select = "SELECT seq, fence, entry, sum FROM (
                SELECT *, sum(octet_length(entry)) OVER (ORDER BY seq) - octet_length(entry) AS before
                FROM llm_rollout_entries WHERE endpoint = $1 AND seq >= $2 ORDER BY seq LIMIT $3
            ) AS page WHERE before < $4 ORDER BY seq";
        let (entries, most) = (count(PAGE_ENTRIES), count(PAGE_BYTES));
        let start = signed(endpoint, from.get())?;
        let rows = tx.query(select, &[&endpoint.as_str(), &start, &entries, &most]).await?;
        let mut rows = rows.into_iter();
        let mut bytes = 0;
        let mut at = from;
        while at < next && page.entries.len() < PAGE_ENTRIES && bytes < PAGE_BYTES {
            let lost = |how: &str| {
                Error::permanent(format!(
                    "position {at} of endpoint {endpoint} is {how}, nothing has been changed: put back a copy of the store"
                ))
            };
            let row = rows.next().ok_or_else(|| lost("missing"))?;
            if number(&row, 0)? != at.get() {
                return Err(lost("missing").into());
            }
            let fence = Fence::new(number(&row, 1)?);
            let entry: Vec<u8> = row.try_get(2)?;
            if row.try_get::<_, i64>(3)? != sums::entry(endpoint, at, fence, &entry) {
                return Err(lost("damaged").into());
            }
            bytes += entry.len();
            page.entries.push((at, entry));
            at = at.next();
        }
        page.more = at < next;
        Ok(page)
    })
}

pub(super) fn split(server: &mut Server, endpoint: &EndpointId) -> Result<Option<Split>> {
    let what = format!("read the split of endpoint {endpoint}");
    let bytes = server.transact(&what, Access::Read, &async |tx| {
        Ok(head(tx, endpoint, Access::Read).await?.split)
    })?;
    let split = bytes
        .map(|bytes| serde_json::from_slice(&bytes))
        .transpose();
    split.map_err(|e| {
        Error::permanent(format!(
            "the split of endpoint {endpoint} cannot be read, nothing has been changed: it may be of a newer program; \
             use the program version that wrote it"
        ))
        .because(e)
    })
}

pub(super) fn load(
    server: &mut Server,
    endpoint: &EndpointId,
    router: &RouterId,
) -> Result<Option<Vec<u8>>> {
    let what = format!("read the record of router {router} of endpoint {endpoint}");
    server.transact(&what, Access::Read, &async |tx| {
        let select = "SELECT record, sum FROM llm_rollout_routers WHERE endpoint = $1 AND router = $2";
        let Some(row) = tx.query_opt(select, &[&endpoint.as_str(), &router.as_str()]).await? else {
            return Ok(None);
        };
        let record: Vec<u8> = row.try_get(0)?;
        if row.try_get::<_, i64>(1)? != sums::record(endpoint, router, &record) {
            return Err(Error::permanent(format!(
                "the record of router {router} of endpoint {endpoint} is damaged, nothing has been changed: put back a copy of the store"
            ))
            .into());
        }
        Ok(Some(record))
    })
}

pub(super) fn save(
    server: &mut Server,
    endpoint: &EndpointId,
    router: &RouterId,
    record: &[u8],
) -> Result<()> {
    let what = format!("write the record of router {router} of endpoint {endpoint}");
    server.transact(&what, Access::Write, &async |tx| {
        let put = "INSERT INTO llm_rollout_routers (endpoint, router, record, sum) VALUES ($1, $2, $3, $4)
             ON CONFLICT (endpoint, router) DO UPDATE SET record = excluded.record, sum = excluded.sum";
        let sum = sums::record(endpoint, router, record);
        tx.execute(put, &[&endpoint.as_str(), &router.as_str(), &record, &sum]).await?;
        Ok(())
    })
}

/// The head of a log; whoever writes has locked it from then on.
async fn head(tx: &Transaction<'_>, endpoint: &EndpointId, access: Access) -> Attempt<Head> {
    let lock = if access == Access::Write {
        " FOR UPDATE"
    } else {
        ""
    };
    let select = format!(
        "SELECT fence, next, split, sum FROM llm_rollout_endpoints WHERE endpoint = $1{lock}"
    );
    let row = tx.query_opt(&select, &[&endpoint.as_str()]).await?;
    // Only now: before the lock another one may have appended.
    let last = "SELECT coalesce(max(seq) + 1, 0) FROM llm_rollout_entries WHERE endpoint = $1";
    let behind = number(&tx.query_one(last, &[&endpoint.as_str()]).await?, 0)?;
    let damaged = |how: String| {
        Error::permanent(format!(
            "the head of endpoint {endpoint} is damaged ({how}), nothing has been changed: put back a copy of the store"
        ))
    };
    let head = match row {
        None => Head::default(),
        Some(row) => {
            let head = Head {
                fence: Fence::new(number(&row, 0)?),
                next: Seq::new(number(&row, 1)?),
                split: row.try_get(2)?,
            };
            if row.try_get::<_, i64>(3)? != head_sum(endpoint, &head) {
                return Err(damaged("its checksum is wrong".to_owned()).into());
            }
            head
        }
    };
    let next = head.next.get();
    if next != behind {
        let first = next.min(behind);
        return Err(damaged(format!(
            "it counts {next} entries and the log has {behind}: see position {first}"
        ))
        .into());
    }
    Ok(head)
}

async fn put_head(tx: &Transaction<'_>, endpoint: &EndpointId, head: &Head) -> Attempt<()> {
    let update = "UPDATE llm_rollout_endpoints SET fence = $2, next = $3, split = $4, sum = $5 WHERE endpoint = $1";
    let (fence, next) = (
        signed(endpoint, head.fence.get())?,
        signed(endpoint, head.next.get())?,
    );
    let sum = head_sum(endpoint, head);
    tx.execute(
        update,
        &[&endpoint.as_str(), &fence, &next, &head.split, &sum],
    )
    .await?;
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

fn count(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn number(row: &Row, column: usize) -> Attempt<u64> {
    let value: i64 = row.try_get(column)?;
    let negative = || {
        Error::permanent(format!(
            "a number of the store is {value}: put back a copy of the store"
        ))
    };
    Ok(u64::try_from(value).map_err(|_| negative())?)
}
