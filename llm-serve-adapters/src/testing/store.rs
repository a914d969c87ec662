//! What every [`StateStore`] must do.

use super::{Violation, accepted, ensure};
use crate::host::{ErrorKind, Owned, Page, Result as HostResult, StateStore};
use llm_rollout::{EndpointId, Epoch, Fence, RouterId, Seq, Split};
use llm_version_core::VersionId;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

type Outcome = Result<(), Violation>;

/// Runs every check. `open` opens **the same store** each time that it is called; the suite drops all it holds of the store
/// before it opens it again, and then looks for everything that it wrote. The store may hold other endpoints, but none of the
/// endpoints `conformance-*`; those are left behind in it.
///
/// ```
/// # use llm_serve_adapters::{host::StateStore, store::MemoryStore, testing};
/// # use std::sync::Arc;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), testing::Violation> {
/// let store = MemoryStore::new();
/// testing::store::suite(async || Ok(Arc::new(store.clone()) as Arc<dyn StateStore>)).await
/// # }
/// ```
///
/// # Errors
/// The first rule that the store breaks.
pub async fn suite<O>(open: O) -> Outcome
where
    O: AsyncFn() -> HostResult<Arc<dyn StateStore>>,
{
    let reopen = async || accepted("a store opens again once it was dropped", open().await);
    let store = reopen().await?;
    fencing(store.as_ref()).await?;
    order(store.as_ref()).await?;
    split_and_entry_are_one(store.as_ref()).await?;
    pages(store.as_ref()).await?;
    endpoints_are_apart(store.as_ref()).await?;
    concurrent_owners(store.as_ref()).await?;
    let remembers = router_memory(store.as_ref())?;
    write_for_later(store.as_ref()).await?;
    drop(store);
    let store = reopen().await?;
    found_again(store.as_ref(), remembers).await
}

/// Each acquisition gives a newer fence, and only the newest can append.
///
/// # Errors
/// The rule that is broken.
pub async fn fencing(store: &dyn StateStore) -> Outcome {
    let e = endpoint("conformance-fencing")?;
    let unowned = store
        .append(&e, Fence::default(), Seq::default(), b"x", None)
        .await;
    refused("an append without an acquisition is refused", unowned)?;
    let first = owned(store, &e).await?;
    let rule = "the first position is 0";
    ensure(rule, first.next == Seq::new(0), first)?;
    let second = owned(store, &e).await?;
    ensure("fences rise", second.fence > first.fence, (first, second))?;
    let rule = "an older fence is refused as Fenced";
    is_kind(
        rule,
        ErrorKind::Fenced,
        store
            .append(&e, first.fence, Seq::new(0), b"old", None)
            .await,
    )?;
    accepted(
        "the newest fence appends",
        store
            .append(&e, second.fence, Seq::new(0), b"new", None)
            .await,
    )?;
    is_kind(
        rule,
        ErrorKind::Fenced,
        store
            .append(&e, first.fence, Seq::new(1), b"old", None)
            .await,
    )?;
    let beyond = store
        .append(&e, second.fence.next(), Seq::new(1), b"x", None)
        .await;
    refused("a fence that was never given is refused", beyond)?;
    ensure(
        "what was refused leaves no trace",
        log(store, &e).await? == [b"new".to_vec()],
        log(store, &e).await?,
    )
}

/// Entries go to exactly the next position, once.
///
/// # Errors
/// The rule that is broken.
pub async fn order(store: &dyn StateStore) -> Outcome {
    let e = endpoint("conformance-order")?;
    let o = owned(store, &e).await?;
    let rule = "another position than the next is refused as Permanent";
    is_kind(
        rule,
        ErrorKind::Permanent,
        store.append(&e, o.fence, Seq::new(1), b"gap", None).await,
    )?;
    accepted(
        "the next position is written",
        store.append(&e, o.fence, Seq::new(0), b"a", None).await,
    )?;
    is_kind(
        rule,
        ErrorKind::Permanent,
        store.append(&e, o.fence, Seq::new(0), b"a", None).await,
    )?;
    is_kind(
        rule,
        ErrorKind::Permanent,
        store
            .append(&e, o.fence, Seq::new(u64::MAX), b"far", None)
            .await,
    )?;
    accepted(
        "an empty entry is an entry",
        store.append(&e, o.fence, Seq::new(1), b"", None).await,
    )?;
    let all_bytes: Vec<u8> = (0..=255).collect();
    accepted(
        "entries are bytes",
        store
            .append(&e, o.fence, Seq::new(2), &all_bytes, None)
            .await,
    )?;
    let found = log(store, &e).await?;
    ensure(
        "a log gives back what was written, in order",
        found == [b"a".to_vec(), Vec::new(), all_bytes],
        &found,
    )?;
    let next = owned(store, &e).await?.next;
    ensure(
        "an acquisition says the next position",
        next == Seq::new(3),
        next,
    )
}

/// The split is replaced together with its entry, or not at all.
///
/// # Errors
/// The rule that is broken.
pub async fn split_and_entry_are_one(store: &dyn StateStore) -> Outcome {
    let e = endpoint("conformance-split")?;
    let none = accepted(
        "the split of a new endpoint can be read",
        store.split(&e).await,
    )?;
    ensure("there is no split before the first", none.is_none(), &none)?;
    let old = owned(store, &e).await?;
    let (a, b) = (split(1)?, split(2)?);
    accepted(
        "entry and split are written",
        store
            .append(&e, old.fence, Seq::new(0), b"0", Some(&a))
            .await,
    )?;
    let found = async || accepted("the split can be read", store.split(&e).await);
    ensure(
        "the split is what was written last",
        found().await?.as_ref() == Some(&a),
        found().await?,
    )?;
    refused(
        "a position is written once",
        store
            .append(&e, old.fence, Seq::new(0), b"0", Some(&b))
            .await,
    )?;
    let new = owned(store, &e).await?;
    refused(
        "an older fence is refused",
        store
            .append(&e, old.fence, Seq::new(1), b"1", Some(&b))
            .await,
    )?;
    ensure(
        "a refused append leaves the split",
        found().await?.as_ref() == Some(&a),
        found().await?,
    )?;
    accepted(
        "an entry alone is written",
        store.append(&e, new.fence, Seq::new(1), b"1", None).await,
    )?;
    ensure(
        "an entry without a split leaves the split",
        found().await?.as_ref() == Some(&a),
        found().await?,
    )?;
    accepted(
        "entry and split are written",
        store
            .append(&e, new.fence, Seq::new(2), b"2", Some(&b))
            .await,
    )?;
    ensure(
        "the split is what was written last",
        found().await?.as_ref() == Some(&b),
        found().await?,
    )
}

/// A log of any length is read in pages, each bounded, without gap or repetition.
///
/// # Errors
/// The rule that is broken.
pub async fn pages(store: &dyn StateStore) -> Outcome {
    const ENTRIES: u64 = 40;
    const EACH: usize = 100_000;
    let e = endpoint("conformance-pages")?;
    let empty = page(store, &e, 0).await?;
    ensure(
        "an unknown endpoint has an empty log",
        empty == Page::default(),
        empty.entries.len(),
    )?;
    let o = owned(store, &e).await?;
    for at in 0..ENTRIES {
        let entry = vec![u8::try_from(at).unwrap_or(0); EACH];
        accepted(
            "long entries are written",
            store.append(&e, o.fence, Seq::new(at), &entry, None).await,
        )?;
    }
    let mut from = 0;
    let mut number_of_pages = 0;
    loop {
        let page = page(store, &e, from).await?;
        number_of_pages += 1;
        for (at, entry) in &page.entries {
            ensure(
                "positions follow each other over pages",
                at.get() == from,
                (at, from),
            )?;
            let whole = entry.len() == EACH && entry.iter().all(|&b| u64::from(b) == from);
            ensure("an entry stands at its position", whole, (at, entry.len()))?;
            from += 1;
        }
        ensure(
            "a page that says more goes on",
            !page.more || !page.entries.is_empty(),
            from,
        )?;
        if !page.more {
            break;
        }
    }
    ensure("pages cover the log", from == ENTRIES, from)?;
    ensure(
        "4 MB do not come in one page",
        number_of_pages > 1,
        number_of_pages,
    )?;
    for beyond in [ENTRIES, ENTRIES + 7, u64::MAX] {
        let past = page(store, &e, beyond).await?;
        ensure(
            "a page beyond the end is empty and the last",
            past == Page::default(),
            past.entries.len(),
        )?;
    }
    Ok(())
}

/// Endpoints share neither fences, positions, logs nor splits.
///
/// # Errors
/// The rule that is broken.
pub async fn endpoints_are_apart(store: &dyn StateStore) -> Outcome {
    let (a, b) = (
        endpoint("conformance-apart")?,
        endpoint("conformance-apart-")?,
    );
    let of_a = owned(store, &a).await?;
    accepted(
        "an append",
        store
            .append(&a, of_a.fence, Seq::new(0), b"a", Some(&split(1)?))
            .await,
    )?;
    let of_b = owned(store, &b).await?;
    ensure(
        "each endpoint counts its own positions",
        of_b.next == Seq::new(0),
        of_b,
    )?;
    let rule = "an acquisition elsewhere does not fence";
    accepted(
        rule,
        store.append(&a, of_a.fence, Seq::new(1), b"aa", None).await,
    )?;
    let found = accepted("the split can be read", store.split(&b).await)?;
    ensure("each endpoint has its own split", found.is_none(), &found)?;
    ensure(
        "each endpoint has its own log",
        log(store, &b).await?.is_empty(),
        log(store, &b).await?,
    )
}

/// Owners at the same time get different fences, and one position is written once.
///
/// # Errors
/// The rule that is broken.
pub async fn concurrent_owners(store: &dyn StateStore) -> Outcome {
    const OWNERS: usize = 16;
    let e = endpoint("conformance-concurrent")?;
    let acquired = all((0..OWNERS).map(|_| store.acquire(&e)).collect()).await;
    let mut owners = Vec::new();
    for owned in acquired {
        owners.push(accepted("concurrent acquisitions succeed", owned)?);
    }
    let mut fences: Vec<_> = owners.iter().map(|o| o.fence).collect();
    fences.sort_unstable();
    fences.dedup();
    ensure(
        "concurrent owners get different fences",
        fences.len() == OWNERS,
        &fences,
    )?;
    let newest = fences.last().copied().unwrap_or_default();
    let entries: Vec<_> = owners.iter().map(|o| o.fence.get().to_le_bytes()).collect();
    let appends = owners
        .iter()
        .zip(&entries)
        .map(|(o, entry)| store.append(&e, o.fence, Seq::new(0), entry, None));
    let outcomes = all(appends.collect()).await;
    for (owner, outcome) in owners.iter().zip(outcomes) {
        let rule = "of concurrent owners only the newest appends";
        ensure(
            rule,
            outcome.is_ok() == (owner.fence == newest),
            (owner, newest, &outcome),
        )?;
    }
    let texts: Vec<[u8; 1]> = (0..OWNERS)
        .map(|n| [u8::try_from(n).unwrap_or(0)])
        .collect();
    let appends = texts
        .iter()
        .map(|text| store.append(&e, newest, Seq::new(1), text, None));
    let outcomes = all(appends.collect()).await;
    let winners: Vec<_> = (0..OWNERS)
        .filter(|&n| outcomes.get(n).is_some_and(HostResult::is_ok))
        .collect();
    ensure("one position is written once", winners.len() == 1, &winners)?;
    let found = log(store, &e).await?;
    let won = winners
        .first()
        .and_then(|&n| texts.get(n))
        .map(|text| text.to_vec());
    ensure(
        "the log holds what was acknowledged",
        found.len() == 2 && found.get(1).cloned() == won,
        &found,
    )
}

/// A router's memory gives back what was saved last, each router's apart. Says whether the store offers one.
///
/// # Errors
/// The rule that is broken.
pub fn router_memory(store: &dyn StateStore) -> Result<bool, Violation> {
    let e = endpoint("conformance-routers")?;
    let (one, two) = (router("one")?, router("two")?);
    let (Some(a), Some(b)) = (store.router_memory(&e, &one), store.router_memory(&e, &two)) else {
        return Ok(false);
    };
    let loaded = accepted("a new memory can be read", a.load())?;
    ensure("a new memory is empty", loaded.is_none(), &loaded)?;
    for record in [&b"first"[..], b"", b"last"] {
        accepted("a record is saved", a.save(record))?;
        let loaded = accepted("a memory can be read", a.load())?;
        ensure(
            "a memory holds what was saved last",
            loaded.as_deref() == Some(record),
            &loaded,
        )?;
    }
    let loaded = accepted("a memory can be read", b.load())?;
    ensure("each router has its own memory", loaded.is_none(), &loaded)?;
    let again = store.router_memory(&e, &one).map(|m| m.load());
    let same = matches!(&again, Some(Ok(Some(record))) if record == b"last");
    ensure(
        "a memory is the router's, whoever asks for it",
        same,
        &again,
    )?;
    Ok(true)
}

const LATER: &str = "conformance-later";

async fn write_for_later(store: &dyn StateStore) -> Outcome {
    let e = endpoint(LATER)?;
    let o = owned(store, &e).await?;
    for (at, entry) in [&b"one"[..], b"two", b"three"].into_iter().enumerate() {
        let wanted = split(at as u64)?;
        accepted(
            "an append",
            store
                .append(&e, o.fence, Seq::new(at as u64), entry, Some(&wanted))
                .await,
        )?;
    }
    let o = owned(store, &e).await?;
    ensure(
        "a fence follows the position",
        o.fence.get() >= 2 && o.next == Seq::new(3),
        o,
    )
}

async fn found_again(store: &dyn StateStore, remembers: bool) -> Outcome {
    let e = endpoint(LATER)?;
    let found = log(store, &e).await?;
    let rule = "entries are there after reopening";
    ensure(
        rule,
        found == [b"one".to_vec(), b"two".to_vec(), b"three".to_vec()],
        &found,
    )?;
    let found = accepted("the split can be read", store.split(&e).await)?;
    ensure(
        "the split is there after reopening",
        found == Some(split(2)?),
        &found,
    )?;
    let o = owned(store, &e).await?;
    ensure(
        "fences rise over reopening",
        o.fence.get() > 2 && o.next == Seq::new(3),
        o,
    )?;
    if remembers {
        let memory = store
            .router_memory(&endpoint("conformance-routers")?, &router("one")?)
            .map(|m| m.load());
        let same = matches!(&memory, Some(Ok(Some(record))) if record == b"last");
        ensure("a router's memory is there after reopening", same, &memory)?;
    }
    Ok(())
}

fn endpoint(name: &str) -> Result<EndpointId, Violation> {
    accepted("the suite's own names are good", EndpointId::new(name))
}

fn router(name: &str) -> Result<RouterId, Violation> {
    accepted("the suite's own names are good", RouterId::new(name))
}

fn split(epoch: u64) -> Result<Split, Violation> {
    let id = format!("conformance/v1.0.{epoch}-{}", "0".repeat(64));
    let version = accepted("the suite's own versions are good", id.parse::<VersionId>())?;
    Ok(Split::steady(None, version, Epoch::new(epoch)))
}

async fn owned(store: &dyn StateStore, e: &EndpointId) -> Result<Owned, Violation> {
    accepted("an acquisition succeeds", store.acquire(e).await)
}

async fn page(store: &dyn StateStore, e: &EndpointId, from: u64) -> Result<Page, Violation> {
    accepted("a page can be read", store.read(e, Seq::new(from)).await)
}

/// The whole log of an endpoint of the suite, none of which is long.
async fn log(store: &dyn StateStore, e: &EndpointId) -> Result<Vec<Vec<u8>>, Violation> {
    let mut found = Vec::new();
    loop {
        let page = page(store, e, found.len() as u64).await?;
        let stuck = page.more && page.entries.is_empty();
        ensure(
            "a page that says more goes on",
            !stuck && found.len() < 1_000,
            found.len(),
        )?;
        found.extend(page.entries.into_iter().map(|(_, entry)| entry));
        if !page.more {
            return Ok(found);
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "called on the call itself")]
fn refused(rule: &'static str, outcome: HostResult<()>) -> Outcome {
    ensure(rule, outcome.is_err(), &outcome)
}

#[expect(clippy::needless_pass_by_value, reason = "called on the call itself")]
fn is_kind(rule: &'static str, kind: ErrorKind, outcome: HostResult<()>) -> Outcome {
    ensure(
        rule,
        outcome.as_ref().is_err_and(|e| e.kind() == kind),
        &outcome,
    )
}

/// Drives all of them at once, on this task, whatever the executor.
async fn all<'a, T>(mut futures: Vec<Pin<Box<dyn Future<Output = T> + Send + 'a>>>) -> Vec<T> {
    let mut done: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    poll_fn(|cx| {
        let mut open = false;
        for (future, slot) in futures.iter_mut().zip(&mut done) {
            if slot.is_none() {
                match future.as_mut().poll(cx) {
                    Poll::Ready(value) => *slot = Some(value),
                    Poll::Pending => open = true,
                }
            }
        }
        if open { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    done.into_iter().flatten().collect()
}
