mod damage;

use super::*;
use crate::host::ErrorKind;
use crate::store::MemoryStore;
use crate::testing;
use llm_rollout::Epoch;
use proptest::prelude::*;
use rusqlite::Connection;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("rollouts.db")
    }

    fn open(&self) -> SqliteStore {
        SqliteStore::open(self.path()).unwrap()
    }

    fn refusal(&self) -> Error {
        SqliteStore::open(self.path()).unwrap_err()
    }

    /// Entries "entry 0", "entry 1", ... of endpoint "chat", then closed.
    async fn filled(&self, entries: u64) -> Fence {
        let store = self.open();
        let owned = store.acquire(&chat()).await.unwrap();
        for at in 0..entries {
            let entry = format!("entry {at}");
            store
                .append(
                    &chat(),
                    owned.fence,
                    Seq::new(at),
                    entry.as_bytes(),
                    Some(&split(at)),
                )
                .await
                .unwrap();
        }
        owned.fence
    }

    fn sql(&self, sql: &str) {
        Connection::open(self.path())
            .unwrap()
            .execute_batch(sql)
            .unwrap();
    }
}

fn chat() -> EndpointId {
    EndpointId::new("chat").unwrap()
}

fn split(epoch: u64) -> Split {
    let version = format!("chat/v1.0.0-{}", "ab".repeat(32)).parse().unwrap();
    Split::steady(None, version, Epoch::new(epoch))
}

fn contains(error: &Error, kind: ErrorKind, parts: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    for part in parts {
        assert!(
            error.to_string().contains(part),
            "{part:?} is not in: {error}"
        );
    }
}

#[tokio::test]
async fn conforms() {
    let place = Place::new();
    testing::store::suite(async || {
        Ok(Arc::new(SqliteStore::open(place.path())?) as Arc<dyn StateStore>)
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn an_unknown_major_is_refused_and_a_newer_minor_read() {
    let place = Place::new();
    place.filled(1).await;
    place.sql("PRAGMA user_version = 1007; ALTER TABLE entries ADD COLUMN note TEXT; CREATE TABLE more (x)");
    assert_eq!(
        place
            .open()
            .read(&chat(), Seq::new(0))
            .await
            .unwrap()
            .entries
            .len(),
        1
    );
    place.sql("PRAGMA user_version = 2000");
    contains(
        &place.refusal(),
        ErrorKind::Permanent,
        &["format 2.0", "knows 1.x", "rollouts.db"],
    );
    place.sql("PRAGMA user_version = 0");
    contains(&place.refusal(), ErrorKind::Permanent, &["format 0.0"]);
}

#[test]
fn files_of_others_are_refused_untouched() {
    let place = Place::new();
    place.sql("CREATE TABLE theirs (x)");
    let before = fs::read(place.path()).unwrap();
    contains(&place.refusal(), ErrorKind::Permanent, &["another program"]);
    assert_eq!(fs::read(place.path()).unwrap(), before);

    let text = "this is a text that is longer than the header of a database file of SQLite, which has 100 bytes";
    fs::write(place.path(), text.repeat(100)).unwrap();
    contains(
        &place.refusal(),
        ErrorKind::Permanent,
        &["not an SQLite file"],
    );
    assert_eq!(fs::read_to_string(place.path()).unwrap(), text.repeat(100));

    let folder = SqliteStore::open(place.folder.path()).unwrap_err();
    contains(&folder, ErrorKind::Permanent, &["is not a file"]);
    let nowhere = SqliteStore::open(place.folder.path().join("no/such.db")).unwrap_err();
    contains(
        &nowhere,
        ErrorKind::Permanent,
        &["folder", "create it first"],
    );
}

#[tokio::test]
async fn one_file_is_open_once() {
    let place = Place::new();
    let store = place.open();
    contains(
        &place.refusal(),
        ErrorKind::Transient,
        &["is open in another process", "rollouts.db"],
    );
    #[cfg(unix)]
    {
        let link = place.folder.path().join("link.db");
        std::os::unix::fs::symlink(place.path(), &link).unwrap();
        contains(
            &SqliteStore::open(link).unwrap_err(),
            ErrorKind::Transient,
            &["is open in another process"],
        );
        let hard = place.folder.path().join("hard.db");
        fs::hard_link(place.path(), &hard).unwrap();
        contains(
            &SqliteStore::open(hard).unwrap_err(),
            ErrorKind::Transient,
            &["is open in another process"],
        );
    }
    let memory = store
        .router_memory(&chat(), &RouterId::new("r").unwrap())
        .unwrap();
    drop(store.clone());
    drop(store);
    assert_eq!(
        place.refusal().kind(),
        ErrorKind::Transient,
        "a router's memory keeps it open"
    );
    memory.save(b"still there").unwrap();
    drop(memory);
    place.open();
}

#[test]
fn a_shell_that_writes_keeps_the_store_out_for_a_while() {
    let place = Place::new();
    drop(place.open());
    let shell = Connection::open(place.path()).unwrap();
    shell.execute_batch("BEGIN EXCLUSIVE").unwrap();
    contains(
        &place.refusal(),
        ErrorKind::Transient,
        &["another process", "try again"],
    );
    drop(shell);
    place.open();
}

#[cfg(unix)]
#[test]
fn what_cannot_be_written_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let set =
        |mode| fs::set_permissions(place.folder.path(), fs::Permissions::from_mode(mode)).unwrap();
    set(0o555);
    // Root writes where it likes.
    if fs::write(place.folder.path().join("probe"), "").is_err() {
        contains(
            &place.refusal(),
            ErrorKind::Permanent,
            &["rollouts.db", "belongs to this user"],
        );
    }
    set(0o755);
    place.open();
}

#[tokio::test]
async fn a_full_disk_is_transient_and_leaves_the_store_whole() {
    let place = Place::new();
    place.filled(3).await;
    let store = place.open();
    let limit = async |pages: i64| {
        let set = move |db: &mut Database| {
            db.connection()
                .pragma_update(None, "max_page_count", pages)
                .unwrap();
            Ok(())
        };
        store.worker.call(set).await.unwrap();
    };
    let owned = store.acquire(&chat()).await.unwrap();
    limit(1).await;
    let error = store
        .append(
            &chat(),
            owned.fence,
            Seq::new(3),
            &vec![1; 50_000],
            Some(&split(9)),
        )
        .await
        .unwrap_err();
    contains(
        &error,
        ErrorKind::Transient,
        &[
            "position 3",
            "endpoint chat",
            "disk is full",
            "free some space",
        ],
    );
    assert_eq!(
        store.split(&chat()).await.unwrap(),
        Some(split(2)),
        "neither entry nor split"
    );
    assert_eq!(
        store
            .read(&chat(), Seq::new(0))
            .await
            .unwrap()
            .entries
            .len(),
        3
    );
    limit(i64::from(u32::MAX - 1)).await;
    store
        .append(
            &chat(),
            owned.fence,
            Seq::new(3),
            &vec![1; 50_000],
            Some(&split(9)),
        )
        .await
        .unwrap();
    assert_eq!(store.split(&chat()).await.unwrap(), Some(split(9)));
}

#[tokio::test]
async fn oversized_entries_and_records_are_refused() {
    let place = Place::new();
    let store = place.open();
    let owned = store.acquire(&chat()).await.unwrap();
    let big = vec![0; MAX_ENTRY_BYTES + 1];
    let error = store
        .append(&chat(), owned.fence, owned.next, &big, None)
        .await
        .unwrap_err();
    contains(
        &error,
        ErrorKind::Permanent,
        &["position 0", "above the limit"],
    );
    store
        .append(&chat(), owned.fence, owned.next, &big[1..], None)
        .await
        .unwrap();
    let memory = store
        .router_memory(&chat(), &RouterId::new("r").unwrap())
        .unwrap();
    contains(
        &memory.save(&big).unwrap_err(),
        ErrorKind::Permanent,
        &["router r", "above the limit"],
    );
}

/// A process that is killed in the middle of writing loses nothing that it was told was written.
#[test]
fn killed_while_writing_loses_nothing_acknowledged() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};
    const CHILD: &str = "LLM_SERVE_STORE_TEST_CHILD";
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    if let Ok(path) = std::env::var(CHILD) {
        // The child: appends until it is killed, and says each position that was acknowledged.
        runtime.block_on(async {
            let store = SqliteStore::open(path).unwrap();
            let owned = store.acquire(&chat()).await.unwrap();
            for at in owned.next.get()..owned.next.get() + 100_000 {
                store
                    .append(
                        &chat(),
                        owned.fence,
                        Seq::new(at),
                        &[7; 3_000],
                        Some(&split(at)),
                    )
                    .await
                    .unwrap();
                writeln!(std::io::stderr(), "ack {at}").unwrap();
            }
        });
        return;
    }
    let place = Place::new();
    let mut least = 0;
    for kill_after in [1, 7, 40] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "store::sqlite::tests::killed_while_writing_loses_nothing_acknowledged",
                "--nocapture",
            ])
            .env(CHILD, place.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap())
            .lines()
            .map_while(std::result::Result::ok);
        let mut acked = lines
            .by_ref()
            .filter_map(|l| l.strip_prefix("ack ").and_then(|n| n.parse::<u64>().ok()));
        let mut last = acked.by_ref().take(kill_after).last().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        last = acked.last().unwrap_or(last).max(last);
        let store = place.open();
        let owned = runtime.block_on(store.acquire(&chat())).unwrap();
        assert!(
            owned.next.get() > last && owned.next.get() >= least,
            "{owned:?}, acknowledged up to {last}"
        );
        least = owned.next.get();
        assert_eq!(
            runtime.block_on(store.split(&chat())).unwrap(),
            Some(split(least - 1)),
            "entry and split are one"
        );
        assert_eq!(
            runtime
                .block_on(store.read(&chat(), Seq::new(least - 1)))
                .unwrap()
                .entries
                .len(),
            1
        );
    }
}

#[derive(Debug, Clone)]
enum Op {
    Acquire,
    Append {
        fence_back: u64,
        at_off: i64,
        len: usize,
        split: bool,
    },
    Read {
        from: u64,
    },
    Split,
    Reopen,
}

fn op() -> impl Strategy<Value = (bool, Op)> {
    let op = prop_oneof![
        2 => Just(Op::Acquire),
        8 => (0..3_u64, -1..2_i64, 0..300_000_usize, any::<bool>())
            .prop_map(|(back, off, len, split)| Op::Append { fence_back: back / 2, at_off: off, len, split }),
        2 => (0..20_u64).prop_map(|from| Op::Read { from }),
        2 => Just(Op::Split),
        1 => Just(Op::Reopen),
    ];
    (any::<bool>(), op)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is done to both, both stores answer alike.
    #[test]
    fn behaves_as_the_memory_store(ops in proptest::collection::vec(op(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let place = Place::new();
        let memory = MemoryStore::new();
        let mut sqlite = place.open();
        runtime.block_on(async {
            let mut newest = [Owned { fence: Fence::default(), next: Seq::default() }; 2];
            for (n, (first, op)) in ops.into_iter().enumerate() {
                let endpoint = EndpointId::new(if first { "one" } else { "two" }).unwrap();
                let known = &mut newest[usize::from(first)];
                let kind = |r: Result<()>| r.map_err(|e| (e.kind(), e.to_string()));
                match op {
                    Op::Acquire => {
                        let got = sqlite.acquire(&endpoint).await.unwrap();
                        prop_assert_eq!(got, memory.acquire(&endpoint).await.unwrap());
                        *known = got;
                    }
                    Op::Append { fence_back, at_off, len, split: with } => {
                        let fence = Fence::new(known.fence.get().saturating_sub(fence_back));
                        let at = Seq::new(known.next.get().saturating_add_signed(at_off));
                        let entry = vec![u8::try_from(n).unwrap(); len];
                        let split = split(n as u64);
                        let split = with.then_some(&split);
                        let got = kind(sqlite.append(&endpoint, fence, at, &entry, split).await);
                        prop_assert_eq!(&got, &kind(memory.append(&endpoint, fence, at, &entry, split).await));
                        if got.is_ok() {
                            known.next = at.next();
                        }
                    }
                    Op::Read { from } => prop_assert_eq!(
                        sqlite.read(&endpoint, Seq::new(from)).await.unwrap(),
                        memory.read(&endpoint, Seq::new(from)).await.unwrap()
                    ),
                    Op::Split => prop_assert_eq!(
                        sqlite.split(&endpoint).await.unwrap(),
                        memory.split(&endpoint).await.unwrap()
                    ),
                    Op::Reopen => {
                        drop(sqlite);
                        sqlite = place.open();
                    }
                }
            }
            Ok(())
        })?;
    }
}
