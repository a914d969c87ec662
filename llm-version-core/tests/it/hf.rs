//! Hugging Face snapshots: whole ones import, others are refused by name.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use llm_version_core::fs::{BuildOptions, HfError, HfSnapshot, build};
use llm_version_core::{ComponentKind, Digest, Metadata, Name, Version};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// `git hash-object` of `{"hidden_size": 8}`, without a line feed.
const CONFIG_BLOB: &str = "ae17b36e4ae15109840cad63099233fe8d2e16c8";

type Damage = fn(&Path, &Path);
type Expected = fn(&HfError) -> bool;

/// A cache as the hub's client lays it out: blobs by digest, a snapshot of links, a listing of the commit.
fn cache(root: &Path) -> (PathBuf, PathBuf) {
    let repository = root.join("models--org--tiny");
    let snapshot = repository.join("snapshots").join(COMMIT);
    let weights = weights();
    let sha256 = Digest::of(&weights).to_string();
    for folder in ["blobs", "trees", "refs"] {
        fs::create_dir_all(repository.join(folder)).unwrap();
    }
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(
        repository.join("blobs").join(CONFIG_BLOB),
        r#"{"hidden_size": 8}"#,
    )
    .unwrap();
    fs::write(repository.join("blobs").join(&sha256), &weights).unwrap();
    symlink(
        format!("../../blobs/{CONFIG_BLOB}"),
        snapshot.join("config.json"),
    )
    .unwrap();
    symlink(
        format!("../../blobs/{sha256}"),
        snapshot.join("model.safetensors"),
    )
    .unwrap();
    let listing = format!(
        r#"{{"format_version":1,"files":{{
            "config.json":{{"size":18,"blob_id":"{CONFIG_BLOB}"}},
            "model.safetensors":{{"size":135,"blob_id":"{COMMIT}","lfs_sha256":"{sha256}","lfs_size":{},"xet_hash":"x"}}
        }}}}"#,
        weights.len()
    );
    fs::write(repository.join(format!("trees/{COMMIT}.json")), listing).unwrap();
    (repository, snapshot)
}

fn weights() -> Vec<u8> {
    let header = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
    [
        &(header.len() as u64).to_le_bytes()[..],
        header.as_bytes(),
        b"ab",
    ]
    .concat()
}

fn metadata() -> Metadata {
    Metadata::new(Name::new("tiny").unwrap(), Version::new(1, 0, 0))
}

#[test]
fn a_whole_snapshot_is_verified_offline_and_imported() {
    let folder = tempfile::tempdir().unwrap();
    let (_, snapshot) = cache(folder.path());
    let found = HfSnapshot::open(&snapshot).unwrap();
    assert_eq!(
        (
            found.repository.as_deref(),
            found.commit.as_deref(),
            found.listed
        ),
        (Some("org/tiny"), Some(COMMIT), true)
    );
    assert_eq!(
        found.verify().unwrap(),
        0,
        "every file has a digest to check against"
    );
    let out = folder.path().join("bundle");
    found.import(&out, metadata()).unwrap();
    let built = build(&out, &BuildOptions::new()).unwrap().manifest;
    let kinds: Vec<_> = built
        .components()
        .iter()
        .map(|c| (c.path.as_str(), c.kind))
        .collect();
    assert_eq!(
        kinds,
        [
            ("model/config.json", ComponentKind::ModelConfig),
            ("model/weights/model.safetensors", ComponentKind::Weights)
        ]
    );
    let base = built.lineage().base_model.as_ref().unwrap();
    assert_eq!(
        (base.name.as_str(), base.revision.as_deref()),
        ("org/tiny", Some(COMMIT))
    );
    assert!(
        matches!(found.import(&out, metadata()), Err(HfError::Io { .. })),
        "never onto something"
    );
}

#[test]
fn incomplete_and_altered_snapshots_are_refused() {
    let cases: [(Damage, Expected); 8] = [
        (
            |repo, _| fs::remove_file(repo.join("blobs").join(CONFIG_BLOB)).unwrap(),
            |e| matches!(e, HfError::Dangling { .. }),
        ),
        (
            |_, snap| fs::remove_file(snap.join("config.json")).unwrap(),
            |e| matches!(e, HfError::Missing { .. }),
        ),
        (
            |_, snap| fs::write(snap.join("extra.json"), "{}").unwrap(),
            |e| matches!(e, HfError::Extra { .. }),
        ),
        (
            |repo, _| {
                fs::write(repo.join("blobs").join(CONFIG_BLOB), "{\"hidden_size\": 9}").unwrap();
            },
            |e| matches!(e, HfError::Altered { .. }),
        ),
        (
            |repo, _| fs::write(repo.join("blobs").join(CONFIG_BLOB), "{}").unwrap(),
            |e| matches!(e, HfError::Altered { .. }),
        ),
        (
            |_, snap| {
                fs::remove_file(snap.join("config.json")).unwrap();
                symlink("/etc/hostname", snap.join("config.json")).unwrap();
            },
            |e| matches!(e, HfError::Escape { .. }),
        ),
        (
            |repo, snap| {
                let partial = format!("{CONFIG_BLOB}.incomplete");
                fs::write(repo.join("blobs").join(&partial), "{\"hid").unwrap();
                fs::remove_file(snap.join("config.json")).unwrap();
                symlink(format!("../../blobs/{partial}"), snap.join("config.json")).unwrap();
            },
            |e| matches!(e, HfError::Escape { .. }),
        ),
        (
            |repo, _| {
                fs::write(
                    repo.join(format!("trees/{COMMIT}.json")),
                    "{\"format_version\":1,\"files\":{},\"files\":{}}",
                )
                .unwrap();
            },
            |e| matches!(e, HfError::Listing { .. }),
        ),
    ];
    for (n, (damage, expected)) in cases.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let (repository, snapshot) = cache(folder.path());
        damage(&repository, &snapshot);
        let error = HfSnapshot::open(&snapshot)
            .and_then(|s| s.verify().map(|_| ()))
            .unwrap_err();
        assert!(expected(&error), "case {n}: {error}");
    }
}

#[test]
fn download_folders_are_verified_by_their_records() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("local");
    let records = root.join(".cache/huggingface/download");
    fs::create_dir_all(&records).unwrap();
    fs::write(root.join("config.json"), r#"{"hidden_size": 8}"#).unwrap();
    fs::write(root.join("notes.txt"), "mine").unwrap();
    fs::write(
        records.join("config.json.metadata"),
        format!("{COMMIT}\n{CONFIG_BLOB}\n1700000000.0\n"),
    )
    .unwrap();
    let found = HfSnapshot::open(&root).unwrap();
    assert_eq!(
        (found.commit.as_deref(), found.files.len(), found.listed),
        (Some(COMMIT), 2, false)
    );
    assert_eq!(found.verify().unwrap(), 1, "one file has no record");
    fs::write(root.join("config.json"), r#"{"hidden_size": 9}"#).unwrap();
    assert!(matches!(found.verify(), Err(HfError::Altered { .. })));

    // With the listing that newer versions of the library leave there, nothing is missing or extra unnoticed.
    fs::write(root.join("config.json"), r#"{"hidden_size": 8}"#).unwrap();
    let trees = root.join(".cache/huggingface/trees");
    fs::create_dir_all(&trees).unwrap();
    let listed = format!(r#""config.json":{{"size":18,"blob_id":"{CONFIG_BLOB}"}}"#);
    let tree = trees.join(format!("{COMMIT}.json"));
    fs::write(
        &tree,
        format!(r#"{{"format_version":1,"files":{{{listed}}}}}"#),
    )
    .unwrap();
    assert!(matches!(
        HfSnapshot::open(&root),
        Err(HfError::Extra { .. })
    ));
    fs::remove_file(root.join("notes.txt")).unwrap();
    assert!(HfSnapshot::open(&root).unwrap().listed);
    let more = listed.replace("config.json", "model.safetensors");
    fs::write(
        &tree,
        format!(r#"{{"format_version":1,"files":{{{listed},{more}}}}}"#),
    )
    .unwrap();
    assert!(matches!(
        HfSnapshot::open(&root),
        Err(HfError::Missing { .. })
    ));
    let part = HfSnapshot::open_part(&root).unwrap();
    assert_eq!((part.files.len(), part.left_out.len()), (1, 1));
    // A record that names a path in place of a commit leads nowhere.
    let record = format!("../../../{COMMIT}\n{CONFIG_BLOB}\n0\n");
    fs::write(records.join("config.json.metadata"), record).unwrap();
    assert!(!HfSnapshot::open(&root).unwrap().listed);
}
