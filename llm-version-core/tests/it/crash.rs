//! The registry when machines die and processes race.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI64, Ordering};

use llm_version_core::Digest;
use llm_version_core::fs::FolderStore;
use llm_version_core::registry::{
    Created, GcOptions, MemoryStore, Note, Registry, RegistryError, Store, StoreError,
};

use crate::registry::{name, note, publish};

/// A store whose machine dies at a chosen write: before it, or right after it.
#[derive(Debug)]
struct Mortal<'a> {
    store: &'a dyn Store,
    writes_left: AtomicI64,
    after: bool,
}

impl Mortal<'_> {
    fn write<T>(&self, write: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let dead = || StoreError::io("the machine", "is dead");
        match self.writes_left.fetch_sub(1, Ordering::Relaxed) {
            ..=-1 => Err(dead()),
            0 if self.after => write().and(Err(dead())),
            0 => Err(dead()),
            _ => write(),
        }
    }

    fn read<T>(&self, read: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        if self.writes_left.load(Ordering::Relaxed) < 0 {
            return Err(StoreError::io("the machine", "is dead"));
        }
        read()
    }
}

impl Store for Mortal<'_> {
    fn create(&self, key: &str, bytes: &[u8]) -> Result<Created, StoreError> {
        self.write(|| self.store.create(key, bytes))
    }
    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|| self.store.read(key))
    }
    fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.read(|| self.store.list(prefix))
    }
    fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.write(|| self.store.delete(key))
    }
    fn put_blob(&self, digest: &Digest, bytes: &mut dyn Read) -> Result<(), StoreError> {
        self.write(|| self.store.put_blob(digest, bytes))
    }
    fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.read(|| self.store.blob_size(digest))
    }
    fn open_blob(&self, digest: &Digest) -> Result<Option<Box<dyn Read + Send>>, StoreError> {
        self.read(|| self.store.open_blob(digest))
    }
    fn blobs(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        self.read(|| self.store.blobs())
    }
    fn delete_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        self.write(|| self.store.delete_blob(digest))
    }
}

/// A life of a registry that can be begun again after a crash anywhere in it.
fn life<S: Store>(store: S) -> Result<(), RegistryError> {
    let registry = Registry::open(store)?;
    let (chat, production) = (name("chat"), name("production"));
    for n in 0..3 {
        let id = match publish(&registry, (1, n, 0), &n.to_string(), 1) {
            Err(RegistryError::Removed(_)) => continue,
            other => other?,
        };
        let at = registry.alias(&chat, &production)?;
        if at.as_ref().is_none_or(|at| at.version() < id.version()) {
            registry.move_alias(&chat, &production, at.as_ref(), Some(&id), &note(2))?;
        }
        if registry.records(&id)?.is_empty() {
            registry.record(
                &id,
                "evaluation",
                n.to_string().repeat(9).as_bytes(),
                &note(3),
            )?;
        }
    }
    let mut options = GcOptions::default();
    options.keep_latest = Some(0);
    options.upload_grace = 0;
    registry.gc(&options, &note(10)).map(|_| ())
}

#[test]
fn a_crash_at_any_write_leaves_a_whole_registry() {
    let mut finished = 0;
    for (writes, after) in (0..100).flat_map(|n| [(n, false), (n, true)]) {
        let folder = tempfile::tempdir().unwrap();
        // A folder syncs at every write, so it dies at every seventh only; rules are the same for all stores.
        let store: Box<dyn Store> = if writes % 7 == 3 {
            Box::new(FolderStore::open(folder.path()).unwrap())
        } else {
            Box::new(MemoryStore::new())
        };
        let writes_left = AtomicI64::new(writes);
        let mortal = Mortal {
            store: &*store,
            writes_left,
            after,
        };
        let survived = life(&mortal).is_ok();
        // What is there is whole, whatever is missing.
        let registry = Registry::open(&store).unwrap();
        registry.verify_log(None).unwrap();
        let chat = name("chat");
        for id in registry.versions(&chat).unwrap() {
            registry.verify_version(&id).unwrap();
        }
        let history = registry.alias_history(&chat, &name("production")).unwrap();
        assert!(history.windows(2).all(|w| w[0].to == w[1].from));
        drop(registry);
        // The next process goes on, and ends where an undisturbed one does.
        life(&store).unwrap();
        let registry = Registry::open(&store).unwrap();
        let versions: Vec<u32> = registry
            .versions(&chat)
            .unwrap()
            .iter()
            .map(|id| id.version().minor())
            .collect();
        assert_eq!(versions, [1, 2], "after {writes} writes");
        let blobs: BTreeSet<Digest> = store.blobs().unwrap().into_iter().map(|b| b.0).collect();
        let records = registry.verify_log(None).unwrap().into_iter().filter(|e| {
            serde_json::to_string(&e.event)
                .unwrap()
                .contains("recorded")
        });
        assert!(blobs.len() <= 2 + records.count(), "no garbage is left");
        assert_eq!(store.list("manifests/").unwrap().len(), 2);
        finished += u32::from(survived);
        if finished > 4 {
            assert!(writes > 15, "the life is long enough to mean something");
            return;
        }
    }
    panic!("the life never ended");
}

/// A store whose creations are repeated by something below it, because their first replies were lost.
#[derive(Debug)]
struct Repeating(MemoryStore);

impl Store for Repeating {
    fn create(&self, key: &str, bytes: &[u8]) -> Result<Created, StoreError> {
        self.0.create(key, bytes)?;
        self.0.create(key, bytes)
    }
    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.read(key)
    }
    fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.0.list(prefix)
    }
    fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.0.delete(key)
    }
    fn put_blob(&self, digest: &Digest, bytes: &mut dyn Read) -> Result<(), StoreError> {
        self.0.put_blob(digest, bytes)
    }
    fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.0.blob_size(digest)
    }
    fn open_blob(&self, digest: &Digest) -> Result<Option<Box<dyn Read + Send>>, StoreError> {
        self.0.open_blob(digest)
    }
    fn blobs(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        self.0.blobs()
    }
    fn delete_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        self.0.delete_blob(digest)
    }
}

#[test]
fn a_repeated_creation_of_an_own_entry_is_no_lost_race() {
    let repeating = Repeating(MemoryStore::new());
    life(&repeating).unwrap();
    let registry = Registry::open(&repeating).unwrap();
    let undisturbed = MemoryStore::new();
    life(&undisturbed).unwrap();
    let expected = Registry::open(&undisturbed).unwrap();
    assert_eq!(registry.head().unwrap(), expected.head().unwrap());
}

/// Runs a test of this program in another process, in `folder`.
fn other_process(test: &str, folder: &Path, writer: &str) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture"])
        .env("LLM_VERSION_TEST_FOLDER", folder)
        .env("LLM_VERSION_TEST_WRITER", writer)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

const MOVES: usize = 25;

#[test]
#[ignore = "the other process of the tests below"]
#[expect(
    clippy::disallowed_methods,
    reason = "how a process of a test is told what to do"
)]
fn mover() {
    let folder = std::env::var_os("LLM_VERSION_TEST_FOLDER").unwrap();
    let writer = std::env::var("LLM_VERSION_TEST_WRITER").unwrap();
    let registry = Registry::open(FolderStore::open(&folder).unwrap()).unwrap();
    let (chat, production) = (name("chat"), name("production"));
    let ids = registry.versions(&chat).unwrap();
    let mut moved = 0;
    while moved < MOVES {
        let at = registry.alias(&chat, &production).unwrap();
        let to = if at.as_ref() == Some(&ids[0]) {
            &ids[1]
        } else {
            &ids[0]
        };
        match registry.move_alias(
            &chat,
            &production,
            at.as_ref(),
            Some(to),
            &Note::new(1, writer.as_str()),
        ) {
            Ok(()) => moved += 1,
            Err(RegistryError::AliasMoved { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn two_processes_racing_for_an_alias_lose_no_update() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(FolderStore::open(folder.path()).unwrap()).unwrap();
    publish(&registry, (1, 0, 0), "a", 1).unwrap();
    publish(&registry, (1, 1, 0), "b", 1).unwrap();
    let processes =
        ["one", "two"].map(|writer| other_process("crash::mover", folder.path(), writer));
    for mut process in processes {
        assert!(process.wait().unwrap().success());
    }
    let history = registry
        .alias_history(&name("chat"), &name("production"))
        .unwrap();
    assert_eq!(history.len(), 2 * MOVES);
    assert!(
        history
            .windows(2)
            .all(|w| w[0].to == w[1].from && w[0].to != w[1].to)
    );
    assert_eq!(history.iter().filter(|m| m.note.by == "one").count(), MOVES);
    registry.verify_log(None).unwrap();
}

#[test]
fn a_process_killed_while_it_writes_leaves_a_whole_registry() {
    for entries in [5, 9, 14, 20] {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::open(FolderStore::open(folder.path()).unwrap()).unwrap();
        publish(&registry, (1, 0, 0), "a", 1).unwrap();
        publish(&registry, (1, 1, 0), "b", 1).unwrap();
        let mut process = other_process("crash::mover", folder.path(), "one");
        while registry.head().unwrap().entries < entries {
            std::thread::yield_now();
        }
        process.kill().unwrap();
        process.wait().unwrap();
        let again = Registry::open(FolderStore::open(folder.path()).unwrap()).unwrap();
        again.verify_log(Some(&registry.head().unwrap())).unwrap();
        let at = again.alias(&name("chat"), &name("production")).unwrap();
        let to = again.versions(&name("chat")).unwrap();
        again
            .move_alias(
                &name("chat"),
                &name("production"),
                at.as_ref(),
                Some(&to[0]),
                &note(2),
            )
            .unwrap();
        assert!(again.store().remove_leftovers().unwrap() <= 1);
    }
}
