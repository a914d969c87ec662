//! The registry: immutable, raced for, crashed, tampered with, collected.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;

use llm_version_core::fs::{
    BuildOptions, FolderSource, FolderStore, Sharing, VerifyOptions, build, materialise, verify,
};
use llm_version_core::registry::{
    Created, GcOptions, LogHead, MemoryStore, Note, Publish, Registry, RegistryError, Store,
    StoreError, conformance,
};
use llm_version_core::{
    Bump, Component, ComponentKind, Digest, Draft, Manifest, Name, Version, VersionId,
};

use crate::common::{bundle, write};

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn note(at: u64) -> Note {
    Note::new(at, "ana")
}

pub(crate) fn manifest(version: (u32, u32, u32), prompt: &str) -> Manifest {
    let mut draft = Draft::new(name("chat"), Version::new(version.0, version.1, version.2));
    let (size, digest) = (prompt.len() as u64, Digest::of(prompt.as_bytes()));
    draft.components.push(Component::new(
        "prompt/system.txt".parse().unwrap(),
        ComponentKind::Prompt,
        size,
        digest,
    ));
    draft.finish().unwrap()
}

pub(crate) fn publish<S: Store>(
    registry: &Registry<S>,
    version: (u32, u32, u32),
    prompt: &str,
    at: u64,
) -> Result<VersionId, RegistryError> {
    let bytes = prompt.as_bytes().to_vec();
    let source = move |_: &Component| -> std::io::Result<Box<dyn Read>> {
        Ok(Box::new(std::io::Cursor::new(bytes.clone())))
    };
    registry.publish(
        &manifest(version, prompt),
        &source,
        &Publish::new(),
        &note(at),
    )
}

pub(crate) fn memory() -> Registry<MemoryStore> {
    Registry::open(MemoryStore::new()).unwrap()
}

#[test]
fn stores_conform() {
    let memory = MemoryStore::new();
    conformance::check(|| &memory).unwrap();
    let other = MemoryStore::new();
    conformance::check(|| -> Box<dyn Store + '_> { Box::new(&other) }).unwrap();
    // A place that is not empty is no place to start from.
    conformance::check(|| &other).unwrap_err();
    let folder = tempfile::tempdir().unwrap();
    conformance::check(|| FolderStore::open(folder.path()).unwrap()).unwrap();
    assert_eq!(
        FolderStore::open(folder.path())
            .unwrap()
            .remove_leftovers()
            .unwrap(),
        0
    );
}

/// A store that breaks one rule.
#[derive(Debug)]
struct Overwrites(MemoryStore);

impl Store for Overwrites {
    fn create(&self, key: &str, bytes: &[u8]) -> Result<Created, StoreError> {
        self.0.delete(key)?;
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
fn the_suite_finds_a_store_that_does_not_conform() {
    let store = Overwrites(MemoryStore::new());
    let found = conformance::check(|| &store).unwrap_err();
    assert_eq!(found.rule, "a second creation is refused");
}

#[test]
fn versions_are_immutable() {
    let registry = memory();
    let id = publish(&registry, (1, 0, 0), "a", 1).unwrap();
    assert_eq!(
        publish(&registry, (1, 0, 0), "a", 2).unwrap(),
        id,
        "again is no change"
    );
    assert_eq!(registry.head().unwrap().entries, 2);
    assert!(
        matches!(publish(&registry, (1, 0, 0), "b", 3), Err(RegistryError::VersionTaken { taken }) if taken == id)
    );
    let mut draft = manifest((1, 0, 0), "a").into_draft();
    draft.lineage.seeds.insert("x".into(), "1".into());
    let source = |_: &Component| -> std::io::Result<Box<dyn Read>> { Ok(Box::new(&b"a"[..])) };
    let other = registry.publish(&draft.finish().unwrap(), &source, &Publish::new(), &note(4));
    assert!(matches!(other, Err(RegistryError::OtherRecord { .. })));
    assert_eq!(registry.manifest(&id).unwrap(), manifest((1, 0, 0), "a"));
}

#[test]
fn a_bump_that_is_too_small_needs_a_reason() {
    let registry = memory();
    publish(&registry, (1, 0, 0), "a", 1).unwrap();
    match publish(&registry, (1, 0, 1), "b", 2) {
        Err(RegistryError::SmallBump(error)) => assert_eq!(
            (error.required, error.next.as_str()),
            (Bump::Minor, "1.1.0")
        ),
        other => panic!("{other:?}"),
    }
    assert_eq!(registry.versions(&name("chat")).unwrap().len(), 1);
    let source = |_: &Component| -> std::io::Result<Box<dyn Read>> { Ok(Box::new(&b"b"[..])) };
    let mut options = Publish::new();
    options.small_bump = Some("a typo".into());
    registry
        .publish(&manifest((1, 0, 1), "b"), &source, &options, &note(3))
        .unwrap();
    let log = registry.verify_log(None).unwrap();
    assert!(
        serde_json::to_string(&log.last().unwrap().event)
            .unwrap()
            .contains("a typo"),
        "the reason is kept"
    );
    publish(&registry, (1, 1, 0), "c", 4).unwrap();
}

#[test]
fn bytes_that_are_not_what_the_manifest_says_are_not_published() {
    let registry = memory();
    let source = |_: &Component| -> std::io::Result<Box<dyn Read>> { Ok(Box::new(&b"other"[..])) };
    let refused = registry.publish(
        &manifest((1, 0, 0), "a"),
        &source,
        &Publish::new(),
        &note(1),
    );
    assert!(matches!(
        refused,
        Err(RegistryError::Store(StoreError::WrongDigest { .. }))
    ));
    assert!(registry.versions(&name("chat")).unwrap().is_empty());
}

#[test]
fn references_resolve_or_say_why_not() {
    let registry = memory();
    let id = publish(&registry, (1, 0, 0), "a", 1).unwrap();
    assert_eq!(registry.resolve(&id.reference()).unwrap(), id);
    let unknown = "chat/v1.0.0-000000000000".parse().unwrap();
    assert!(matches!(
        registry.resolve(&unknown),
        Err(RegistryError::Unknown(_))
    ));
}

#[test]
fn what_was_production_at_a_time() {
    let registry = memory();
    let (chat, production) = (name("chat"), name("production"));
    let one = publish(&registry, (1, 0, 0), "a", 10).unwrap();
    let two = publish(&registry, (1, 1, 0), "b", 20).unwrap();
    registry
        .move_alias(&chat, &production, None, Some(&one), &note(30))
        .unwrap();
    registry
        .move_alias(&chat, &production, Some(&one), Some(&two), &note(40))
        .unwrap();
    let stale = registry.move_alias(&chat, &production, Some(&one), Some(&two), &note(50));
    assert!(
        matches!(stale, Err(RegistryError::AliasMoved { found: Some(found), .. }) if found == two)
    );
    registry
        .move_alias(&chat, &production, Some(&two), None, &note(60))
        .unwrap();
    // A clock that went back cannot rewrite history.
    registry
        .move_alias(&chat, &production, None, Some(&one), &note(5))
        .unwrap();
    let at = |t| registry.alias_at(&chat, &production, t).unwrap();
    assert_eq!(
        (at(29), at(30), at(40), at(59)),
        (None, Some(one.clone()), Some(two.clone()), Some(two))
    );
    assert_eq!(
        at(60),
        Some(one),
        "the later of two moves at one time counts"
    );
    assert_eq!(registry.alias_history(&chat, &production).unwrap().len(), 4);
}

#[test]
fn aliases_point_only_where_they_may() {
    let registry = memory();
    let (chat, production) = (name("chat"), name("production"));
    let one = publish(&registry, (1, 0, 0), "a", 1).unwrap();
    let two = publish(&registry, (1, 1, 0), "b", 2).unwrap();
    let three = publish(&registry, (1, 2, 0), "c", 3).unwrap();
    let to = |id: &VersionId| registry.move_alias(&chat, &production, None, Some(id), &note(4));
    registry
        .set_floor(&chat, Version::new(1, 1, 0), &note(4))
        .unwrap();
    registry
        .set_floor(&chat, Version::new(1, 0, 0), &note(4))
        .unwrap();
    assert!(
        matches!(to(&one), Err(RegistryError::BelowFloor { .. })),
        "a floor only rises"
    );
    registry.revoke(&two, &note(5).because("leaks")).unwrap();
    assert!(matches!(to(&two), Err(RegistryError::Revoked { why, .. }) if why == "leaks"));
    assert!(matches!(
        to(manifest((9, 0, 0), "x").id()),
        Err(RegistryError::Unknown(_))
    ));
    let elsewhere = registry.move_alias(&name("other"), &production, None, Some(&three), &note(6));
    assert!(matches!(elsewhere, Err(RegistryError::OtherName { .. })));
    to(&three).unwrap();
    assert_eq!(registry.aliases(&chat).unwrap(), [(production, three)]);
}

#[test]
fn records_tags_and_pins_never_change_a_version() {
    let registry = memory();
    let id = publish(&registry, (1, 0, 0), "a", 1).unwrap();
    registry
        .record(&id, "evaluation", b"{\"score\":1}", &note(2))
        .unwrap();
    registry.tag(&id, "team", Some("search"), &note(3)).unwrap();
    registry.tag(&id, "old", Some("x"), &note(3)).unwrap();
    registry.tag(&id, "old", None, &note(4)).unwrap();
    registry.pin(&id, "rollout chat-v2", &note(5)).unwrap();
    let again = registry.info(&id).unwrap();
    assert_eq!(
        again.tags,
        [("team".to_owned(), "search".to_owned())].into()
    );
    assert_eq!(again.pins, ["rollout chat-v2".to_owned()].into());
    let records = registry.records(&id).unwrap();
    assert_eq!(
        registry.read_record(&records[0]).unwrap().unwrap(),
        b"{\"score\":1}"
    );
    assert_eq!(registry.manifest(&id).unwrap().id(), &id);
}

#[test]
fn garbage_collection_keeps_what_is_held() {
    let registry = memory();
    let (chat, production) = (name("chat"), name("production"));
    let ids: Vec<VersionId> = (0..6)
        .map(|n| publish(&registry, (1, n, 0), &n.to_string(), 1).unwrap())
        .collect();
    let mut at = None;
    for id in [&ids[0], &ids[1], &ids[2]] {
        registry
            .move_alias(&chat, &production, at, Some(id), &note(2))
            .unwrap();
        at = Some(id);
    }
    registry.pin(&ids[3], "rollout", &note(3)).unwrap();
    registry
        .record(&ids[2], "evaluation", b"good", &note(3))
        .unwrap();
    registry
        .store()
        .put_blob(&Digest::of(b"stray"), &mut &b"stray"[..])
        .unwrap();
    let mut options = GcOptions::default();
    options.keep_latest = Some(1);
    options.dry_run = true;
    let planned = registry.gc(&options, &note(4)).unwrap();
    // Held: production and the one before it, the pinned one, the latest.
    assert_eq!(planned.versions, [ids[0].clone(), ids[4].clone()]);
    assert_eq!((planned.blobs.len(), planned.bytes), (3, 1 + 1 + 5));
    assert_eq!(
        registry.versions(&chat).unwrap().len(),
        6,
        "a dry run removes nothing"
    );
    options.dry_run = false;
    assert_eq!(registry.gc(&options, &note(4)).unwrap(), planned);
    for id in [&ids[1], &ids[2], &ids[3], &ids[5]] {
        registry.verify_version(id).unwrap();
    }
    assert!(matches!(
        registry.manifest(&ids[0]),
        Err(RegistryError::Removed(_))
    ));
    assert!(
        matches!(
            publish(&registry, (1, 0, 0), "0", 5),
            Err(RegistryError::Removed(_))
        ),
        "its number stays taken"
    );
    assert_eq!(registry.records(&ids[2]).unwrap().len(), 1);
    assert!(registry.gc(&options, &note(6)).unwrap().versions.is_empty());
    registry.unpin(&ids[3], "rollout", &note(7)).unwrap();
    assert_eq!(
        registry.gc(&options, &note(8)).unwrap().versions,
        [ids[3].clone()]
    );
}

#[test]
fn an_upload_under_way_is_left_alone_for_a_while() {
    let registry = memory();
    let new = manifest((1, 0, 0), "a");
    let broken =
        |_: &Component| -> std::io::Result<Box<dyn Read>> { Err(std::io::Error::other("cable")) };
    assert!(
        registry
            .publish(&new, &broken, &Publish::new(), &note(1_000))
            .is_err()
    );
    registry
        .store()
        .put_blob(&Digest::of(b"a"), &mut &b"a"[..])
        .unwrap();
    let mut options = GcOptions::default();
    options.upload_grace = 500;
    assert!(
        registry
            .gc(&options, &note(1_400))
            .unwrap()
            .blobs
            .is_empty()
    );
    let late = registry.gc(&options, &note(1_600)).unwrap();
    assert_eq!((late.blobs.len(), late.manifests.len()), (1, 1));
    publish(&registry, (1, 0, 0), "a", 1_700).unwrap();
    registry.verify_version(new.id()).unwrap();
}

#[test]
fn a_deployed_reference_is_traced_to_raw_data() {
    let registry = memory();
    let child =
        |version: (u32, u32, u32), prompt: &'static str, parents: Vec<VersionId>, data: &str| {
            let mut draft = manifest(version, prompt).into_draft();
            draft.lineage.parents = parents;
            draft
                .lineage
                .datasets
                .push(llm_version_core::Dataset::new(data, "1"));
            let manifest = draft.finish().unwrap();
            let source = move |_: &Component| -> std::io::Result<Box<dyn Read>> {
                Ok(Box::new(prompt.as_bytes()))
            };
            registry.publish(&manifest, &source, &Publish::new(), &note(1))
        };
    let elsewhere = manifest((0, 1, 0), "elsewhere").id().clone();
    let one = child((1, 0, 0), "a", vec![elsewhere.clone()], "crawl").unwrap();
    let two = child((1, 1, 0), "b", vec![one.clone()], "chats").unwrap();
    let three = child((1, 2, 0), "c", vec![two, one.clone()], "ratings").unwrap();
    let trace = registry.trace(&three.reference()).unwrap();
    assert_eq!(trace.lineages.len(), 3);
    assert_eq!(trace.unknown, [elsewhere].into());
    let text = trace.to_string();
    assert!(
        ["crawl", "chats", "ratings", "(not here)", "(see above)"]
            .iter()
            .all(|w| text.contains(w)),
        "{text}"
    );
    // Parents are outside the digest, so a circle could be stated; it is refused.
    let own = manifest((2, 0, 0), "d").id().clone();
    assert!(matches!(
        child((2, 0, 0), "d", vec![own], "x"),
        Err(RegistryError::OwnAncestor(_))
    ));
}

#[test]
fn a_bump_is_judged_by_contents() {
    let registry = memory();
    let publish_config = |patch: u32, config: &'static str| {
        let mut draft = manifest((1, 0, patch), "").into_draft();
        draft.components[0] = Component::new(
            "model/config.json".parse().unwrap(),
            ComponentKind::ModelConfig,
            config.len() as u64,
            Digest::of(config.as_bytes()),
        );
        let source = move |_: &Component| -> std::io::Result<Box<dyn Read>> {
            Ok(Box::new(config.as_bytes()))
        };
        registry.publish(&draft.finish().unwrap(), &source, &Publish::new(), &note(1))
    };
    publish_config(0, r#"{"hidden_size":8}"#).unwrap();
    publish_config(1, r#"{ "hidden_size": 8 }"#).unwrap();
    match publish_config(2, r#"{"hidden_size":9}"#) {
        Err(RegistryError::SmallBump(error)) => assert_eq!(error.required, Bump::Major),
        other => panic!("{other:?}"),
    }
}

fn log_file(root: &Path, n: u64) -> std::path::PathBuf {
    root.join(format!("objects/log/{n:020}.json"))
}

#[test]
fn a_log_that_was_edited_cut_or_replaced_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let registry = Registry::open(FolderStore::open(root).unwrap()).unwrap();
    for n in 0..3 {
        publish(&registry, (1, n, 0), &n.to_string(), u64::from(n)).unwrap();
    }
    let head = registry.head().unwrap();
    assert_eq!(registry.verify_log(Some(&head)).unwrap().len(), 6);
    let open = || Registry::open(FolderStore::open(root).unwrap());
    let original = fs::read(log_file(root, 2)).unwrap();
    let text = String::from_utf8(original.clone()).unwrap();
    let edits = [
        text.replace("ana", "eve"),
        text.replace("\"seq\":2", "\"seq\":3"),
        text.replace("{\"digest\"", "{ \"digest\""),
        text.replace("\"seq\":2", "\"seq\":2,\"seq\":2"),
        text[..text.len() / 2].to_owned(),
        String::new(),
    ];
    for edit in edits {
        fs::write(log_file(root, 2), &edit).unwrap();
        assert!(matches!(open(), Err(RegistryError::Log { .. })), "{edit}");
        assert!(registry.verify_log(None).is_err());
    }
    // An entry taken out of the middle.
    fs::remove_file(log_file(root, 2)).unwrap();
    assert!(matches!(
        open().unwrap().verify_log(None),
        Err(RegistryError::Log { seq: 2, .. })
    ));
    fs::write(log_file(root, 2), &original).unwrap();
    // Two entries swapped.
    fs::rename(log_file(root, 3), root.join("x")).unwrap();
    fs::rename(log_file(root, 2), log_file(root, 3)).unwrap();
    fs::rename(root.join("x"), log_file(root, 2)).unwrap();
    assert!(open().is_err());
    fs::rename(log_file(root, 2), root.join("x")).unwrap();
    fs::rename(log_file(root, 3), log_file(root, 2)).unwrap();
    fs::rename(root.join("x"), log_file(root, 3)).unwrap();
    // The last entry edited: its own digest shows it.
    let last = fs::read(log_file(root, 5)).unwrap();
    let edited = String::from_utf8(last.clone()).unwrap();
    fs::write(log_file(root, 5), edited.replace("ana", "eve")).unwrap();
    assert!(matches!(open(), Err(RegistryError::Log { seq: 5, .. })));
    // Cut off and replaced by another in good form: only a head kept elsewhere shows it, or a process that saw it.
    fs::remove_file(log_file(root, 5)).unwrap();
    let other = open().unwrap();
    let id = other.versions(&name("chat")).unwrap().remove(0);
    other.revoke(&id, &note(9)).unwrap();
    assert!(other.verify_log(None).is_ok());
    assert!(matches!(
        other.verify_log(Some(&head)),
        Err(RegistryError::LogCut { .. })
    ));
    fs::remove_file(log_file(root, 5)).unwrap();
    assert!(matches!(
        open().unwrap().verify_log(Some(&head)),
        Err(RegistryError::LogCut {
            found: 5,
            known: 6,
            ..
        })
    ));
    assert!(matches!(
        registry.verify_log(None),
        Err(RegistryError::LogCut { .. })
    ));
    fs::write(log_file(root, 5), last).unwrap();
    assert!(open().unwrap().verify_log(Some(&head)).is_ok());
    assert!(open().unwrap().verify_log(Some(&LogHead::empty())).is_ok());
}

#[test]
fn stored_bytes_that_were_altered_are_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let registry = Registry::open(FolderStore::open(root).unwrap()).unwrap();
    let id = publish(&registry, (1, 0, 0), "a", 1).unwrap();
    let hex = Digest::of(b"a").to_string();
    let blob = root.join("blobs/sha256").join(&hex[..2]).join(&hex);
    assert!(fs::metadata(&blob).unwrap().permissions().readonly());
    fs::remove_file(&blob).unwrap();
    assert!(matches!(
        registry.verify_version(&id),
        Err(RegistryError::BlobMissing { .. })
    ));
    fs::write(&blob, "b").unwrap();
    assert!(matches!(
        registry.verify_version(&id),
        Err(RegistryError::Store(StoreError::WrongDigest { .. }))
    ));
    assert!(materialise(&registry, &id, &root.join("out"), Sharing::Cheapest).is_err());
    assert!(!root.join("out").exists());
    fs::remove_file(&blob).unwrap();
    publish(&registry, (1, 0, 0), "a", 2).unwrap();
    registry.verify_version(&id).unwrap();
    let manifests = root.join("objects/manifests");
    let file = fs::read_dir(manifests)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("\"size\":1", "\"size\":2")).unwrap();
    assert!(matches!(
        registry.manifest(&id),
        Err(RegistryError::BadManifest { .. })
    ));
}

#[test]
fn directories_go_in_and_come_out_the_same() {
    let source = bundle();
    let folder = tempfile::tempdir().unwrap();
    let registry =
        Registry::open(FolderStore::open(folder.path().join("registry")).unwrap()).unwrap();
    let built = build(source.path(), &BuildOptions::new()).unwrap().manifest;
    let id = registry
        .publish(
            &built,
            &FolderSource::new(source.path()),
            &Publish::new(),
            &note(1),
        )
        .unwrap();
    for (n, sharing) in [Sharing::Cheapest, Sharing::Separate, Sharing::Copy]
        .into_iter()
        .enumerate()
    {
        let out = folder.path().join(format!("out/{n}"));
        let report = materialise(&registry, &id, &out, sharing).unwrap();
        assert_eq!(report.reflinked + report.hard_linked + report.copied, 6);
        assert_eq!(
            sharing == Sharing::Copy,
            report.copied == 6 && sharing != Sharing::Separate
        );
        assert_eq!(verify(&out, &built, &VerifyOptions::new()).unwrap(), id);
        assert_eq!(
            build(&out, &BuildOptions::new()).unwrap().manifest,
            built,
            "builds to the same manifest"
        );
        assert!(
            materialise(&registry, &id, &out, sharing).is_err(),
            "never onto something"
        );
    }
    assert_eq!(
        fs::read_dir(folder.path().join("out")).unwrap().count(),
        3,
        "nothing is left over"
    );
    // A change of the prompt adds one blob, not a copy of everything.
    let before: BTreeSet<Digest> = registry
        .store()
        .blobs()
        .unwrap()
        .into_iter()
        .map(|b| b.0)
        .collect();
    write(source.path(), "prompt/system.txt", "You are kind.");
    write(
        source.path(),
        "metadata.json",
        r#"{"format":"llm-metadata/1","name":"chat","version":"1.3.0","contract":{"api":"openai-chat/v1"}}"#,
    );
    let next = build(source.path(), &BuildOptions::new()).unwrap().manifest;
    registry
        .publish(
            &next,
            &FolderSource::new(source.path()),
            &Publish::new(),
            &note(2),
        )
        .unwrap();
    assert_eq!(registry.store().blobs().unwrap().len(), before.len() + 1);
}

#[test]
fn readers_make_no_registry() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("registry");
    let absent = FolderStore::open_existing(&root);
    assert!(matches!(absent, Err(StoreError::Absent { .. })));
    assert!(!root.exists());
    fs::create_dir(&root).unwrap();
    assert!(FolderStore::open_existing(&root).is_err());
    let registry = Registry::open(FolderStore::open(&root).unwrap()).unwrap();
    // What a crash right after the first folder would leave is a registry that can be written to.
    for folder in ["temporary", "blobs"] {
        fs::remove_dir_all(root.join(folder)).unwrap();
    }
    drop(registry);
    let registry = Registry::open(FolderStore::open_existing(&root).unwrap()).unwrap();
    assert_eq!(registry.store().blobs().unwrap(), []);
    assert_eq!(registry.store().remove_leftovers().unwrap(), 0);
    let id = publish(&registry, (1, 0, 0), "a", 1).unwrap();
    registry.verify_version(&id).unwrap();
}

#[test]
fn blobs_that_can_be_edited_in_place_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let registry = Registry::open(FolderStore::open(root).unwrap()).unwrap();
    publish(&registry, (1, 0, 0), "a", 1).unwrap();
    assert_eq!(registry.store().writable_blobs().unwrap(), []);
    let digest = Digest::of(b"a");
    let hex = digest.to_string();
    let blob = root.join("blobs/sha256").join(&hex[..2]).join(&hex);
    // What an editor does: a new file of the same bytes.
    let bytes = fs::read(&blob).unwrap();
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, bytes).unwrap();
    assert_eq!(registry.store().writable_blobs().unwrap(), [digest]);
}

#[test]
fn a_file_is_shared_where_that_can_be_and_verified_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let store = FolderStore::open(folder.path().join("registry")).unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "a").unwrap();
    let digest = Digest::of(b"a");
    // Whether blocks can be shared depends on the file system; never is something else stored.
    match store.share_blob(&Digest::of(b"b"), &file) {
        Ok(shared) => assert!(!shared),
        Err(error) => assert!(matches!(error, StoreError::WrongDigest { .. })),
    }
    assert_eq!(store.blobs().unwrap(), []);
    if store.share_blob(&digest, &file).unwrap() {
        fs::write(&file, "b").unwrap();
        let mut bytes = String::new();
        let mut blob = store.open_blob(&digest).unwrap().unwrap();
        blob.read_to_string(&mut bytes).unwrap();
        assert_eq!(
            (bytes.as_str(), store.writable_blobs().unwrap().len()),
            ("a", 0)
        );
    } else {
        assert_eq!(store.blob_size(&digest).unwrap(), None);
    }
    assert_eq!(store.remove_leftovers().unwrap(), 0);
    store.put_blob(&digest, &mut &b"a"[..]).unwrap();
    assert!(store.share_blob(&digest, &file).unwrap(), "it is there");
}
