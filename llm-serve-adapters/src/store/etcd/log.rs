//! The keys: of each endpoint a head, its entries, and the records of its routers.
//!
//! ```text
//! PREFIX <endpoint>/head              JSON: format, fence, next position, split, checksum
//! PREFIX <endpoint>/log/<20 digits>   fence and checksum, 8 bytes each, little-endian, then the entry
//! PREFIX <endpoint>/routers/<router>  checksum, 8 bytes, then the record
//! ```

use super::EtcdStore;
use super::server::{Compare, Operation, Pair, Put, Range, Server, Task, Transaction};
use crate::host::{Error, Owned, Page, Result};
use crate::store::{PAGE_BYTES, PAGE_ENTRIES, admit, following, sums};
use llm_rollout::{EndpointId, Fence, Format, RouterId, Seq, Split};
use serde::{Deserialize, Serialize};

/// Entries of one request: eight of the longest are a bounded reply.
const AT_ONCE: usize = 8;

/// What stands at the head of a log.
#[derive(Serialize, Deserialize)]
struct Head {
    format: Format,
    fence: Fence,
    next: Seq,
    split: Option<String>,
    sum: i64,
}

/// A head, and the revision at which it was written.
struct At {
    head: Head,
    revision: String,
}

fn key(server: &Server, endpoint: &EndpointId, part: &str) -> String {
    format!("{}{endpoint}/{part}", server.prefix)
}

fn entry_key(server: &Server, endpoint: &EndpointId, at: u64) -> String {
    key(server, endpoint, &format!("log/{at:020}"))
}

/// Where the keys of entries end: '0' follows '/'.
fn entries_end(server: &Server, endpoint: &EndpointId) -> String {
    key(server, endpoint, "log0")
}

pub(super) fn acquire(server: &mut Server, endpoint: &EndpointId) -> Result<Owned> {
    let what = format!("give a fence for endpoint {endpoint}");
    let task = Task::begin(&what);
    loop {
        let mut found = head(server, &task, endpoint)?;
        let fence = Fence::new(following("fence", endpoint, found.head.fence.get())?);
        found.head.fence = fence;
        let next = found.head.next;
        let put = put_head(server, endpoint, found)?;
        if server.write(&task, &put)? {
            return Ok(Owned { fence, next });
        }
        again(server, &task)?;
    }
}

pub(super) fn append(
    server: &mut Server,
    endpoint: &EndpointId,
    fence: Fence,
    at: Seq,
    entry: &[u8],
    split: Option<&str>,
) -> Result<()> {
    let what = format!("write position {at} of endpoint {endpoint}");
    let task = Task::begin(&what);
    loop {
        let mut found = head(server, &task, endpoint)?;
        admit(
            endpoint,
            found.head.fence,
            found.head.next,
            fence,
            at,
            entry,
        )?;
        if entry.len() > EtcdStore::MAX_ENTRY_BYTES {
            return Err(Error::permanent(format!(
                "an entry for position {at} of endpoint {endpoint} is above the {} bytes that etcd takes",
                EtcdStore::MAX_ENTRY_BYTES
            )));
        }
        found.head.next = Seq::new(following("entry", endpoint, at.get())?);
        if let Some(split) = split {
            found.head.split = Some(split.to_owned());
        }
        let key = entry_key(server, endpoint, at.get());
        let mut value = fence.get().to_le_bytes().to_vec();
        value.extend(sums::entry(endpoint, at, fence, entry).to_le_bytes());
        value.extend_from_slice(entry);
        let mut put = put_head(server, endpoint, found)?;
        put.compare.push(Compare::absent(&key));
        put.success
            .push(Operation::RequestPut(Put::new(&key, &value)));
        if server.write(&task, &put)? {
            return Ok(());
        }
        // Somebody else was quicker: what he wrote says why this one is refused.
        again(server, &task)?;
    }
}

pub(super) fn read(server: &mut Server, endpoint: &EndpointId, from: Seq) -> Result<Page> {
    let what = format!("read endpoint {endpoint} from position {from}");
    let task = Task::begin(&what);
    let next = head(server, &task, endpoint)?.head.next;
    let mut page = Page::default();
    let (mut at, mut bytes) = (from, 0);
    while at < next && page.entries.len() < PAGE_ENTRIES && bytes < PAGE_BYTES {
        let range = Range::between(
            &entry_key(server, endpoint, at.get()),
            &entries_end(server, endpoint),
            AT_ONCE,
        );
        let found = server.read(&task, vec![range])?;
        let mut pairs = found.into_iter().flatten().peekable();
        if pairs.peek().is_none() {
            return Err(lost(endpoint, at, "missing"));
        }
        for pair in pairs {
            if at >= next || page.entries.len() >= PAGE_ENTRIES || bytes >= PAGE_BYTES {
                break;
            }
            if pair.key != entry_key(server, endpoint, at.get()) {
                return Err(lost(endpoint, at, "missing"));
            }
            let entry = entry(endpoint, at, &pair).ok_or_else(|| lost(endpoint, at, "damaged"))?;
            bytes += entry.len();
            page.entries.push((at, entry));
            at = at.next();
        }
    }
    page.more = at < next;
    Ok(page)
}

pub(super) fn split(server: &mut Server, endpoint: &EndpointId) -> Result<Option<Split>> {
    let what = format!("read the split of endpoint {endpoint}");
    let text = head(server, &Task::begin(&what), endpoint)?.head.split;
    let split = text.map(|text| serde_json::from_str(&text)).transpose();
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
    let key = key(server, endpoint, &format!("routers/{router}"));
    let found = server.read(&Task::begin(&what), vec![Range::one(&key)])?;
    let Some(pair) = found.into_iter().flatten().next() else {
        return Ok(None);
    };
    let whole = pair.value.split_first_chunk().filter(|(sum, record)| {
        i64::from_le_bytes(**sum) == sums::record(endpoint, router, record)
    });
    match whole {
        Some((_, record)) => Ok(Some(record.to_vec())),
        None => Err(Error::permanent(format!(
            "the record of router {router} of endpoint {endpoint} is damaged, nothing has been changed: put back a copy of the store"
        ))),
    }
}

pub(super) fn save(
    server: &mut Server,
    endpoint: &EndpointId,
    router: &RouterId,
    record: &[u8],
) -> Result<()> {
    let what = format!("write the record of router {router} of endpoint {endpoint}");
    let key = key(server, endpoint, &format!("routers/{router}"));
    let mut value = sums::record(endpoint, router, record)
        .to_le_bytes()
        .to_vec();
    value.extend_from_slice(record);
    let put = Transaction {
        compare: Vec::new(),
        success: vec![Operation::RequestPut(Put::new(&key, &value))],
    };
    server.write(&Task::begin(&what), &put).map(|_| ())
}

/// The head of a log, checked, as of now.
fn head(server: &mut Server, task: &Task<'_>, endpoint: &EndpointId) -> Result<At> {
    let first = entry_key(server, endpoint, 0);
    let ranges = vec![
        Range::one(&key(server, endpoint, "head")),
        Range::last(&first, &entries_end(server, endpoint)),
    ];
    let mut found = server.read(task, ranges)?.into_iter();
    let (head, last) = (
        found.next().and_then(|mut pairs| pairs.pop()),
        found.next().and_then(|mut pairs| pairs.pop()),
    );
    let damaged = |how: String| {
        Error::permanent(format!(
            "the head of endpoint {endpoint} is damaged ({how}), nothing has been changed: put back a copy of the store"
        ))
    };
    let found = match head {
        None => At {
            head: Head {
                format: Format::CURRENT,
                fence: Fence::default(),
                next: Seq::default(),
                split: None,
                sum: 0,
            },
            revision: "0".to_owned(),
        },
        Some(Pair {
            value, revision, ..
        }) => At {
            head: parse(endpoint, &value).map_err(|why| damaged(why.to_owned()))?,
            revision,
        },
    };
    if !found.head.format.readable() {
        return Err(Error::permanent(format!(
            "endpoint {endpoint} was written in format {}, this program knows {}: use the program version that wrote it",
            found.head.format,
            Format::CURRENT
        )));
    }
    let behind = match last {
        None => Some(0),
        Some(pair) => pair
            .key
            .get(pair.key.len().saturating_sub(20)..)
            .and_then(|digits| digits.parse::<u64>().ok()?.checked_add(1)),
    };
    let next = found.head.next.get();
    if behind != Some(next) {
        let behind = behind.unwrap_or_default();
        return Err(damaged(format!(
            "it counts {next} entries and the log has {behind}: see position {}",
            next.min(behind)
        )));
    }
    Ok(found)
}

/// A head whose format is known must match its checksum.
fn parse(endpoint: &EndpointId, value: &[u8]) -> std::result::Result<Head, &'static str> {
    let head: Head = serde_json::from_slice(value).map_err(|_| "it is no head")?;
    if head.format.readable() && head.sum != head_sum(endpoint, &head) {
        return Err("its checksum is wrong");
    }
    Ok(head)
}

fn head_sum(endpoint: &EndpointId, head: &Head) -> i64 {
    let split = head.split.as_deref().map(str::as_bytes);
    sums::head(endpoint, head.fence, head.next, split)
}

/// Replaces the head that was found, if nobody has meanwhile.
fn put_head(server: &Server, endpoint: &EndpointId, found: At) -> Result<Transaction> {
    let At { mut head, revision } = found;
    head.format = Format::CURRENT;
    head.sum = head_sum(endpoint, &head);
    let value = serde_json::to_vec(&head).map_err(|e| {
        Error::permanent(format!(
            "the head of endpoint {endpoint} cannot be written as JSON"
        ))
        .because(e)
    })?;
    let key = key(server, endpoint, "head");
    Ok(Transaction {
        compare: vec![Compare::written(&key, &revision)],
        success: vec![Operation::RequestPut(Put::new(&key, &value))],
    })
}

fn entry(endpoint: &EndpointId, at: Seq, pair: &Pair) -> Option<Vec<u8>> {
    let (fence, rest) = pair.value.split_first_chunk()?;
    let (sum, entry) = rest.split_first_chunk()?;
    let fence = Fence::new(u64::from_le_bytes(*fence));
    (i64::from_le_bytes(*sum) == sums::entry(endpoint, at, fence, entry)).then(|| entry.to_vec())
}

fn lost(endpoint: &EndpointId, at: Seq, how: &str) -> Error {
    Error::permanent(format!(
        "position {at} of endpoint {endpoint} is {how}, nothing has been changed: put back a copy of the store"
    ))
}

/// Another round, if there is time.
fn again(server: &Server, task: &Task<'_>) -> Result<()> {
    if task.is_over() {
        return Err(Error::transient(format!(
            "{} could not {}, nothing has been changed: others write all the time; try again",
            server.name(),
            task.what
        )));
    }
    Ok(())
}
