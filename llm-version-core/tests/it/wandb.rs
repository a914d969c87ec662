//! Artifacts of Weights & Biases and files of its runs: whole ones import, others are refused by name. The digests are those that its
//! client gives these files.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use llm_version_core::fs::{BuildOptions, WandbError, WandbFolder, build};
use llm_version_core::{ComponentKind, ComponentPath, Metadata, Name, Version};

const CONFIG: &str = r#"{"hidden_size": 8}"#;
const NOTE: &str = "hi\n";

type Damage = fn(&Path, &Path);
type Expected = fn(&WandbError) -> bool;

/// As the client writes it for a folder with these two files.
fn manifest(entries: &str) -> String {
    format!(
        r#"{{"version": 1, "storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {{"storageLayout": "V2"}}, "contents": {{{entries}}}}}"#
    )
}

const ENTRIES: &str = r#""config.json": {"digest": "6HpOAosR7Hv3cMbzq1xjSQ==", "size": 18}, "sub/a.txt": {"digest": "dk76iD3aHhHbR2ccSju9ng==", "size": 3}"#;
const XXH128: &str = r#""sub/a.txt": {"digest": "9NBJfPk5TKqzTRo6sr7OcA==", "size": 3, "extra": {"alg": "XXH128"}}, "config.json": {"digest": "DQ4VBmzMvYnPrHJdIkLs4w==", "size": 18, "extra": {"alg": "XXH128"}}"#;

/// A download, and its manifest beside it.
fn download(root: &Path) -> (PathBuf, PathBuf) {
    let (folder, list) = (root.join("artifacts/tiny:v3"), root.join("manifest.json"));
    fs::create_dir_all(folder.join("sub")).unwrap();
    fs::write(folder.join("config.json"), CONFIG).unwrap();
    fs::write(folder.join("sub/a.txt"), NOTE).unwrap();
    fs::write(&list, manifest(ENTRIES)).unwrap();
    (folder, list)
}

fn metadata() -> Metadata {
    Metadata::new(Name::new("tiny").unwrap(), Version::new(1, 0, 0))
}

#[test]
fn a_download_is_verified_by_its_manifest_and_imported() {
    let root = tempfile::tempdir().unwrap();
    let (folder, list) = download(root.path());
    let found = WandbFolder::open(&folder, Some(&list)).unwrap();
    assert_eq!(found.name.as_deref(), Some("tiny"));
    assert_eq!(found.version.as_deref(), Some("v3"));
    assert_eq!(
        found.digest.as_deref(),
        Some("97d1668068eac94ee780f318f9d86417")
    );
    assert!(found.listed);
    assert_eq!(found.verify().unwrap(), 0, "every file is checked");

    let out = root.path().join("bundle");
    found.import(&out, metadata()).unwrap();
    let built = build(&out, &BuildOptions::new()).unwrap().manifest;
    let kinds: Vec<_> = built
        .components()
        .iter()
        .map(|c| (c.path.as_str(), c.kind))
        .collect();
    assert_eq!(kinds[0], ("model/config.json", ComponentKind::ModelConfig));
    assert_eq!(kinds[1].0, "model/files/sub/a.txt");
    let base = built.lineage().base_model.as_ref().unwrap();
    assert_eq!(
        (base.name.as_str(), base.revision.as_deref()),
        ("tiny", Some("v3"))
    );
    assert!(
        matches!(found.import(&out, metadata()), Err(WandbError::Io { .. })),
        "never onto something"
    );

    // Without a manifest there is nothing to check against, and that is told.
    let found = WandbFolder::open(&folder, None).unwrap();
    assert_eq!((found.listed, found.verify().unwrap()), (false, 2));
    fs::rename(&folder, folder.with_file_name("tiny-v3")).unwrap();
    let windows = WandbFolder::open(&folder.with_file_name("tiny-v3"), Some(&list)).unwrap();
    assert_eq!((windows.name, windows.version), (found.name, found.version));
}

#[test]
fn digests_of_the_newer_kind_are_checked_too() {
    let root = tempfile::tempdir().unwrap();
    let (folder, list) = download(root.path());
    fs::write(&list, manifest(XXH128)).unwrap();
    let found = WandbFolder::open(&folder, Some(&list)).unwrap();
    assert_eq!((found.verify().unwrap(), found.digest), (0, None));
    fs::write(folder.join("sub/a.txt"), "ho\n").unwrap();
    let found = WandbFolder::open(&folder, Some(&list)).unwrap();
    assert!(matches!(found.verify(), Err(WandbError::Altered { path }) if path == "sub/a.txt"));
}

#[test]
fn what_is_only_referred_to_is_not_checked_but_must_be_there() {
    let root = tempfile::tempdir().unwrap();
    let (folder, list) = download(root.path());
    let there = r#""weights.bin": {"digest": "\"d41d8cd98f00b204-2\"", "ref": "s3://models/weights.bin", "size": 4, "extra": {"etag": "x", "versionID": "1"}}"#;
    fs::write(&list, manifest(&format!("{ENTRIES}, {there}"))).unwrap();
    let missing = WandbFolder::open(&folder, Some(&list));
    assert!(matches!(missing, Err(WandbError::Missing { path, .. }) if path == "weights.bin"));
    fs::write(folder.join("weights.bin"), "abcd").unwrap();
    let found = WandbFolder::open(&folder, Some(&list)).unwrap();
    assert_eq!(found.verify().unwrap(), 1);
    // No cache has it under a digest of ours.
    fs::write(&list, manifest(there)).unwrap();
    let cached = WandbFolder::cached(&folder, &list);
    assert!(
        matches!(cached, Err(WandbError::Reference { target, .. }) if target == "s3://models/weights.bin")
    );
}

#[test]
fn incomplete_and_altered_downloads_are_refused() {
    let cases: [(Damage, Expected); 13] = [
        (
            |folder, _| fs::remove_file(folder.join("config.json")).unwrap(),
            |e| matches!(e, WandbError::Missing { .. }),
        ),
        (
            |folder, _| fs::write(folder.join("extra.json"), "{}").unwrap(),
            |e| matches!(e, WandbError::Extra { .. }),
        ),
        (
            |folder, _| fs::write(folder.join("config.json"), "{}").unwrap(),
            |e| matches!(e, WandbError::Altered { .. }),
        ),
        (
            |folder, _| fs::write(folder.join("config.json"), CONFIG.replace('8', "9")).unwrap(),
            |e| matches!(e, WandbError::Altered { .. }),
        ),
        (
            |folder, _| {
                fs::remove_file(folder.join("config.json")).unwrap();
                symlink("/etc/hostname", folder.join("config.json")).unwrap();
            },
            |e| matches!(e, WandbError::Tree(_)),
        ),
        (
            |_, list| fs::write(list, manifest(&ENTRIES.replace("sub/", "../"))).unwrap(),
            |e| matches!(e, WandbError::Path(_)),
        ),
        (
            |_, list| fs::write(list, manifest(&ENTRIES.replace("sub/", "/"))).unwrap(),
            |e| matches!(e, WandbError::Path(_)),
        ),
        (
            |_, list| fs::write(list, manifest(&ENTRIES.replace("==", ""))).unwrap(),
            |e| matches!(e, WandbError::BadDigest { .. }),
        ),
        (
            |_, list| {
                let other = XXH128.replace("XXH128", "BLAKE3");
                fs::write(list, manifest(&other)).unwrap();
            },
            |e| matches!(e, WandbError::BadDigest { .. }),
        ),
        (
            |_, list| fs::write(list, manifest(&format!("{ENTRIES}, {ENTRIES}"))).unwrap(),
            |e| matches!(e, WandbError::Manifest { .. }),
        ),
        (
            |_, list| {
                let later = manifest(ENTRIES).replace("\"version\": 1", "\"version\": 2");
                fs::write(list, later).unwrap();
            },
            |e| matches!(e, WandbError::Unsupported { version: 2, .. }),
        ),
        (
            |_, list| fs::remove_file(list).unwrap(),
            |e| matches!(e, WandbError::Io { .. }),
        ),
        (
            |folder, _| {
                fs::remove_dir_all(folder).unwrap();
                fs::create_dir(folder).unwrap();
            },
            |e| matches!(e, WandbError::Empty { .. }),
        ),
    ];
    for (n, (damage, expected)) in cases.iter().enumerate() {
        let root = tempfile::tempdir().unwrap();
        let (folder, list) = download(root.path());
        damage(&folder, &list);
        let error = WandbFolder::open(&folder, Some(&list))
            .and_then(|found| found.verify().map(|_| ()))
            .unwrap_err();
        assert!(expected(&error), "case {n}: {error}");
    }
}

#[test]
fn a_cache_is_read_by_the_digests_of_a_manifest() {
    let root = tempfile::tempdir().unwrap();
    let list = root.path().join("manifest.json");
    for (algorithm, entries, objects) in [
        (
            "md5",
            ENTRIES,
            [
                ("e8/7a4e028b11ec7bf770c6f3ab5c6349", CONFIG),
                ("76/4efa883dda1e11db47671c4a3bbd9e", NOTE),
            ],
        ),
        (
            "xxh128",
            XXH128,
            [
                ("0d/0e15066cccbd89cfac725d2242ece3", CONFIG),
                ("f4/d0497cf9394caab34d1a3ab2bece70", NOTE),
            ],
        ),
    ] {
        fs::write(&list, manifest(entries)).unwrap();
        let cache = root.path().join(algorithm);
        let object = |n: usize| cache.join("obj").join(algorithm).join(objects[n].0);
        for (n, (_, text)) in objects.iter().enumerate() {
            fs::create_dir_all(object(n).parent().unwrap()).unwrap();
            fs::write(object(n), text).unwrap();
        }
        let found = WandbFolder::cached(&cache, &list).unwrap();
        assert_eq!((found.verify().unwrap(), found.files.len()), (0, 2));
        found
            .import(&root.path().join(format!("from-{algorithm}")), metadata())
            .unwrap();

        // A name proves nothing: an object may have been changed where it lies, or cut short.
        fs::write(object(0), CONFIG.replace('8', "9")).unwrap();
        let found = WandbFolder::cached(&cache, &list).unwrap();
        assert!(matches!(found.verify(), Err(WandbError::Altered { .. })));
        fs::write(object(0), "{").unwrap();
        let short = WandbFolder::cached(&cache, &list);
        assert!(matches!(short, Err(WandbError::Altered { .. })));
        fs::remove_file(object(0)).unwrap();
        let missing = WandbFolder::cached(&cache, &list);
        assert!(matches!(missing, Err(WandbError::Missing { path, .. }) if path == "config.json"));
        // Nor may a link lead out of the cache.
        symlink("/etc/hostname", object(0)).unwrap();
        assert!(WandbFolder::cached(&cache, &list).is_err());
    }
}

#[test]
fn files_of_a_run_are_followed_to_where_they_were_saved_from() {
    let root = tempfile::tempdir().unwrap();
    let run = root
        .path()
        .join("wandb/offline-run-20260101_000000-ers42bum");
    let (files, project) = (run.join("files"), root.path().join("project"));
    fs::create_dir_all(&files).unwrap();
    fs::create_dir(&project).unwrap();
    for record in [
        "requirements.txt",
        "output.log",
        "config.yaml",
        "wandb-metadata.json",
    ] {
        fs::write(files.join(record), "x").unwrap();
    }
    let nothing = WandbFolder::run(&run, None);
    assert!(matches!(nothing, Err(WandbError::Empty { .. })));

    fs::write(files.join("notes.txt"), "mine").unwrap();
    fs::write(project.join("config.json"), CONFIG).unwrap();
    symlink(project.join("config.json"), files.join("config.json")).unwrap();
    let found = WandbFolder::run(&run, Some(&project)).unwrap();
    let paths: Vec<_> = found.files.keys().map(ComponentPath::as_str).collect();
    assert_eq!(paths, ["config.json", "notes.txt"]);
    assert_eq!(found.verify().unwrap(), 2);
    let out = root.path().join("bundle");
    found.import(&out, metadata()).unwrap();
    assert!(
        fs::symlink_metadata(out.join("model/config.json"))
            .unwrap()
            .is_file()
    );

    // Links lead where they may, and nowhere else.
    for (links, target) in [
        (None, project.join("config.json")),
        (Some(&project), "/etc/hostname".into()),
        (Some(&project), project.clone()),
        (Some(&project), project.join("gone")),
    ] {
        fs::remove_file(files.join("config.json")).unwrap();
        symlink(&target, files.join("config.json")).unwrap();
        let refused = WandbFolder::run(&run, links.map(PathBuf::as_path));
        assert!(matches!(refused, Err(WandbError::Tree(_))), "{target:?}");
    }
}
