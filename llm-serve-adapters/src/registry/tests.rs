use super::{BucketError, BucketStore};
use async_trait::async_trait;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use llm_version_core::fs::FolderStore;
use llm_version_core::registry::{
    Created, GcOptions, Note, Publish, Registry, RegistryError, Store, StoreError, conformance,
};
use llm_version_core::{
    Component, ComponentKind, Digest, Draft, Manifest, Name, Version, VersionId,
};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, UploadPart,
};
use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

fn open(client: &Arc<dyn ObjectStore>) -> BucketStore {
    BucketStore::open(Arc::clone(client), "models").unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn manifest(minor: u32, weights: &[u8]) -> Manifest {
    let mut draft = Draft::new(name("chat"), Version::new(1, minor, 0));
    draft.components.push(Component::new(
        "prompt/system.txt".parse().unwrap(),
        ComponentKind::Prompt,
        weights.len() as u64,
        Digest::of(weights),
    ));
    draft.finish().unwrap()
}

fn publish<S: Store>(registry: &Registry<S>, minor: u32) -> Result<VersionId, RegistryError> {
    // Larger than the parts of most tests here.
    let prompt = vec![u8::try_from(minor).unwrap(); 1_000];
    let source = |_: &Component| -> std::io::Result<Box<dyn Read>> {
        Ok(Box::new(std::io::Cursor::new(prompt.clone())))
    };
    registry.publish(
        &manifest(minor, &prompt),
        &source,
        &Publish::new(),
        &Note::new(1, "ana"),
    )
}

#[test]
fn conforms_in_memory() {
    for prefix in ["", "models/registry"] {
        for part in [7_000, 32 << 20] {
            let client: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            conformance::check(|| {
                let store = BucketStore::open(Arc::clone(&client), prefix).unwrap();
                store.parts_of(part)
            })
            .unwrap();
        }
    }
}

#[test]
fn conforms_in_a_folder() {
    for part in [100_000, 32 << 20] {
        let folder = tempfile::tempdir().unwrap();
        let client: Arc<dyn ObjectStore> =
            Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
        conformance::check(|| open(&client).parts_of(part)).unwrap();
    }
}

#[test]
fn a_folder_copied_to_a_bucket_is_the_same_registry() {
    let folder = tempfile::tempdir().unwrap();
    let local = Registry::open(FolderStore::open(folder.path().join("models")).unwrap()).unwrap();
    let id = publish(&local, 0).unwrap();
    let client: Arc<dyn ObjectStore> =
        Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
    let bucket = Registry::open(open(&client)).unwrap();
    assert_eq!(
        bucket.versions(&name("chat")).unwrap(),
        std::slice::from_ref(&id)
    );
    bucket.verify_version(&id).unwrap();
    let next = publish(&bucket, 1).unwrap();
    local.verify_version(&next).unwrap();
    assert_eq!(local.verify_log(None).unwrap().len(), 4);
    assert_eq!(
        local.store().blobs().unwrap(),
        bucket.store().blobs().unwrap()
    );
}

#[test]
fn bytes_with_another_digest_never_become_visible() {
    let client: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let store = open(&client).parts_of(10);
    for size in [0, 9, 10, 11, 20, 1_000] {
        let bytes = vec![1; size];
        let wrong = Digest::of(b"else");
        assert!(matches!(
            store.put_blob(&wrong, &mut &bytes[..]),
            Err(StoreError::WrongDigest { expected, found })
                if expected == wrong && found == Digest::of(&bytes)
        ));
        let digest = Digest::of(&bytes);
        store.put_blob(&digest, &mut &bytes[..]).unwrap();
        assert_eq!(store.blobs().unwrap(), [(digest, size as u64)]);
        let mut read = Vec::new();
        let mut blob = store.open_blob(&digest).unwrap().unwrap();
        // One byte at a time, and after the end.
        let mut byte = [0];
        while blob.read(&mut byte).unwrap() == 1 {
            read.push(byte[0]);
        }
        assert_eq!(blob.read(&mut byte).unwrap(), 0);
        assert_eq!(read, bytes);
        store.delete_blob(&digest).unwrap();
    }
}

#[test]
fn a_prefix_that_is_no_path_is_refused() {
    for prefix in ["a//b", "../a", "a/./b"] {
        let opened = BucketStore::open(Arc::new(InMemory::new()), prefix);
        assert!(
            matches!(opened, Err(BucketError::Prefix { .. })),
            "{prefix}"
        );
    }
}

#[test]
fn calls_from_threads_of_a_runtime_do_not_panic() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let registry = Registry::open(open(&client).parts_of(10)).unwrap();
        let id = publish(&registry, 0).unwrap();
        registry.verify_version(&id).unwrap();
        drop(registry);
    });
}

#[test]
fn readers_outlive_the_store() {
    let client: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let store = open(&client);
    let digest = Digest::of(b"x");
    store.put_blob(&digest, &mut &b"x"[..]).unwrap();
    let mut blob = store.open_blob(&digest).unwrap().unwrap();
    drop(store);
    let mut read = Vec::new();
    blob.read_to_end(&mut read).unwrap();
    assert_eq!(read, b"x");
}

/// What goes wrong in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Writes are refused from now on: the process is dead.
    Dies,
    /// The write takes effect and its reply is lost; then the process is dead.
    DiesAfter,
    /// One write is refused.
    Fails,
    /// One write takes effect and its reply is lost.
    LosesReply,
    /// One creation takes effect, its reply is lost and the client repeats it.
    Repeats,
    /// Creation is not supported.
    NoCreation,
    /// Creation overwrites.
    Overwrites,
    /// Nothing may be written.
    ReadOnly,
    /// Nothing is answered.
    Hangs,
}

/// A bucket in which something goes wrong at the n-th write.
#[derive(Debug, Clone)]
struct Faulty {
    store: Arc<InMemory>,
    fault: Fault,
    writes_left: Arc<AtomicI64>,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

fn broken() -> Error {
    Error::Generic {
        store: "faulty",
        source: "on purpose".into(),
    }
}

impl Faulty {
    fn client(store: &Arc<InMemory>, fault: Fault, writes: i64) -> Arc<dyn ObjectStore> {
        Arc::new(Self {
            store: Arc::clone(store),
            fault,
            writes_left: Arc::new(AtomicI64::new(writes)),
        })
    }

    /// Whether the write goes ahead, and whether its reply arrives.
    fn write(&self) -> (bool, bool) {
        let left = self.writes_left.fetch_sub(1, Ordering::Relaxed);
        match (self.fault, left) {
            (Fault::Dies | Fault::DiesAfter, ..=-1) => (false, false),
            (Fault::Dies | Fault::Fails, 0) => (false, false),
            (Fault::DiesAfter | Fault::LosesReply, 0) => (true, false),
            _ => (true, true),
        }
    }

    async fn writing<T>(&self, write: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let (ahead, reply) = self.write();
        if !ahead {
            return Err(broken());
        }
        let done = write.await?;
        if reply { Ok(done) } else { Err(broken()) }
    }

    fn dead(&self) -> bool {
        let dies = matches!(self.fault, Fault::Dies | Fault::DiesAfter);
        dies && self.writes_left.load(Ordering::Relaxed) < 0
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> Result<PutResult, Error> {
        match self.fault {
            Fault::NoCreation => {
                return Err(Error::NotImplemented {
                    operation: "create".to_owned(),
                    implementer: "faulty".to_owned(),
                });
            }
            Fault::ReadOnly => {
                return Err(Error::PermissionDenied {
                    path: location.to_string(),
                    source: "on purpose".into(),
                });
            }
            Fault::Hangs => return std::future::pending().await,
            Fault::Overwrites => options.mode = PutMode::Overwrite,
            Fault::Repeats => {
                if self.writes_left.fetch_sub(1, Ordering::Relaxed) == 0 {
                    let (payload, options) = (payload.clone(), options.clone());
                    // What the first attempt answered is lost.
                    let _ = self.store.put_opts(location, payload, options).await;
                }
                return self.store.put_opts(location, payload, options).await;
            }
            _ => {}
        }
        self.writing(self.store.put_opts(location, payload, options))
            .await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>, Error> {
        let begun = self.writing(self.store.put_multipart_opts(location, options));
        Ok(Box::new(FaultyUpload {
            upload: begun.await?,
            bucket: self.clone(),
        }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult, Error> {
        if self.dead() {
            return Err(broken());
        }
        self.store.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path, Error>>,
    ) -> BoxStream<'static, Result<Path, Error>> {
        let bucket = self.clone();
        let deletes = locations.and_then(move |path| {
            let bucket = bucket.clone();
            async move {
                let one = futures_util::stream::iter([Ok(path)]).boxed();
                let mut deleted = bucket.store.delete_stream(one);
                let delete = async { deleted.next().await.unwrap() };
                bucket.writing(delete).await
            }
        });
        deletes.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta, Error>> {
        if self.dead() {
            return futures_util::stream::iter([Err(broken())]).boxed();
        }
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult, Error> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<(), Error> {
        self.writing(self.store.copy_opts(from, to, options)).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    upload: Box<dyn MultipartUpload>,
    bucket: Faulty,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (part, bucket) = (self.upload.put_part(data), self.bucket.clone());
        Box::pin(async move { bucket.writing(part).await })
    }

    async fn complete(&mut self) -> Result<PutResult, Error> {
        self.bucket.clone().writing(self.upload.complete()).await
    }

    async fn abort(&mut self) -> Result<(), Error> {
        self.bucket.clone().writing(self.upload.abort()).await
    }
}

#[test]
fn stores_without_conditional_creation_are_refused() {
    for fault in [Fault::NoCreation, Fault::Overwrites] {
        let client = Faulty::client(&Arc::default(), fault, 0);
        let opened = BucketStore::open(client, "models");
        assert!(
            matches!(&opened, Err(BucketError::NotConditional { store, .. }) if store == "faulty"),
            "{opened:?}"
        );
    }
}

#[test]
fn who_may_only_read_reads() {
    let store = Arc::new(InMemory::new());
    let writer = Registry::open(open(&(Arc::clone(&store) as Arc<dyn ObjectStore>))).unwrap();
    let id = publish(&writer, 0).unwrap();
    let reader = Registry::open(open(&Faulty::client(&store, Fault::ReadOnly, 0))).unwrap();
    reader.verify_version(&id).unwrap();
    assert!(publish(&reader, 1).is_err());
}

#[test]
fn a_bucket_that_does_not_answer_is_an_error() {
    let client = Faulty::client(&Arc::default(), Fault::Hangs, 0);
    let opened = BucketStore::open_with(client, "", Duration::from_millis(10));
    let error = opened.unwrap_err().to_string();
    assert!(error.contains("no answer within 10ms"), "{error}");
}

/// A life of a registry that can be begun again after a fault anywhere in it.
fn life<S: Store>(store: S) -> Result<(), RegistryError> {
    let registry = Registry::open(store)?;
    let (chat, production) = (name("chat"), name("production"));
    for minor in 0..3 {
        let id = match publish(&registry, minor) {
            Err(RegistryError::Removed(_)) => continue,
            other => other?,
        };
        let at = registry.alias(&chat, &production)?;
        if at.as_ref().is_none_or(|at| at.version() < id.version()) {
            let note = Note::new(2, "ana");
            registry.move_alias(&chat, &production, at.as_ref(), Some(&id), &note)?;
        }
        if registry.records(&id)?.is_empty() {
            registry.record(&id, "evaluation", b"good", &Note::new(3, "ana"))?;
        }
    }
    let mut options = GcOptions::default();
    options.keep_latest = Some(0);
    options.upload_grace = 0;
    registry.gc(&options, &Note::new(10, "ana")).map(|_| ())
}

#[test]
fn a_fault_at_any_write_leaves_a_whole_registry() {
    let faults = [
        Fault::Dies,
        Fault::DiesAfter,
        Fault::Fails,
        Fault::LosesReply,
        Fault::Repeats,
    ];
    for fault in faults {
        let mut ended = false;
        for writes in 0..200 {
            let store = Arc::new(InMemory::new());
            let sound: Arc<dyn ObjectStore> = Arc::<InMemory>::clone(&store);
            let faulty = Faulty {
                store: Arc::clone(&store),
                fault,
                writes_left: Arc::new(AtomicI64::new(writes)),
            };
            let left = Arc::clone(&faulty.writes_left);
            let lived = BucketStore::open(Arc::new(faulty), "models")
                .map(|bucket| life(bucket.parts_of(300)));
            if fault == Fault::Repeats {
                // Nobody notices that a client repeats itself.
                lived.unwrap().unwrap();
            }
            // What is there is whole, whatever is missing.
            let registry = Registry::open(open(&sound)).unwrap();
            registry.verify_log(None).unwrap();
            let chat = name("chat");
            for id in registry.versions(&chat).unwrap() {
                registry.verify_version(&id).unwrap();
            }
            let production = name("production");
            let history = registry.alias_history(&chat, &production).unwrap();
            assert!(history.windows(2).all(|w| w[0].to == w[1].from));
            // The next process goes on, and ends where an undisturbed one does.
            life(open(&sound).parts_of(300)).unwrap();
            let versions = registry.versions(&chat).unwrap();
            let minors: Vec<u32> = versions.iter().map(|id| id.version().minor()).collect();
            assert_eq!(minors, [1, 2], "{fault:?} after {writes} writes");
            let entries = registry.verify_log(None).unwrap();
            let kept: BTreeSet<Digest> = registry
                .store()
                .blobs()
                .unwrap()
                .into_iter()
                .map(|blob| blob.0)
                .collect();
            assert_eq!(
                kept.len(),
                3,
                "two versions and what was recorded: {entries:?}"
            );
            assert_eq!(registry.store().list("manifests/").unwrap().len(), 2);
            if left.load(Ordering::Relaxed) >= 0 {
                assert!(writes > 25, "the life is long enough to mean something");
                ended = true;
                break;
            }
        }
        assert!(ended, "the life never ended");
    }
}

#[test]
fn racing_for_an_alias_over_a_bad_line_loses_no_update() {
    const MOVES: usize = 40;
    let store = Arc::new(InMemory::new());
    let sound: Arc<dyn ObjectStore> = Arc::<InMemory>::clone(&store);
    let registry = Registry::open(open(&sound)).unwrap();
    let ids = [
        publish(&registry, 0).unwrap(),
        publish(&registry, 1).unwrap(),
    ];
    let (chat, production) = (name("chat"), name("production"));
    let race = |writer: &str, fault| {
        let (mut moved, mut unknown) = (0, 0);
        for n in 0..MOVES {
            // Every fourth move meets the fault; opening takes a write.
            let client = Faulty::client(&store, fault, if n % 4 == 0 { 1 } else { 1_000 });
            let registry = Registry::open(open(&client)).unwrap();
            let at = registry.alias(&chat, &production).unwrap();
            let to = if at.as_ref() == Some(&ids[0]) {
                &ids[1]
            } else {
                &ids[0]
            };
            let note = Note::new(n as u64, writer);
            match registry.move_alias(&chat, &production, at.as_ref(), Some(to), &note) {
                Ok(()) => moved += 1,
                Err(RegistryError::AliasMoved { .. }) => {}
                Err(RegistryError::Store(_)) => unknown += 1,
                Err(error) => panic!("{error}"),
            }
        }
        (moved, unknown)
    };
    let results = std::thread::scope(|scope| {
        let writers = [("one", Fault::LosesReply), ("two", Fault::Repeats)]
            .map(|(writer, fault)| (writer, scope.spawn(move || race(writer, fault))));
        writers.map(|(writer, result)| (writer, result.join().unwrap()))
    });
    let history = registry.alias_history(&chat, &production).unwrap();
    assert!(
        history
            .windows(2)
            .all(|w| w[0].to == w[1].from && w[0].to != w[1].to)
    );
    for (writer, (moved, unknown)) in results {
        let found = history.iter().filter(|m| m.note.by == writer).count();
        assert!(
            (moved..=moved + unknown).contains(&found),
            "{writer}: {moved} acknowledged, {unknown} unknown, {found} found"
        );
        assert!(moved > 0);
    }
    registry.verify_log(None).unwrap();
}

#[test]
fn created_once_and_no_more() {
    let client: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (one, two) = (open(&client), open(&client));
    assert_eq!(one.create("log/x", b"1").unwrap(), Created::New);
    assert_eq!(two.create("log/x", b"2").unwrap(), Created::Existed);
    assert!(one.read("../x").is_err());
}
