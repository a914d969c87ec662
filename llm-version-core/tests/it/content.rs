//! Files that are not what they seem: repacks, lies, pickles, pointers, shards, secrets, files that change.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::{bundle, manifest, problems, write};
use llm_version_core::fs::{
    BuildError, BuildOptions, HashCache, ProblemKind, VerifyOptions, WarningKind, build, verify,
};
use llm_version_core::{ComponentKind, FileFormat, SafetensorsError};

/// A safetensors file with these F32 vectors in this order.
fn safetensors(tensors: &[(&str, &[f32])], note: &str) -> Vec<u8> {
    let (mut header, mut data) = (Vec::new(), Vec::new());
    for (name, values) in tensors {
        let from = data.len();
        values.iter().for_each(|v| data.extend(v.to_le_bytes()));
        header.push(format!(
            r#""{name}":{{"dtype":"F32","shape":[{}],"data_offsets":[{from},{}]}}"#,
            values.len(),
            data.len()
        ));
    }
    let header = format!(
        r#"{{"__metadata__":{{"note":"{note}"}},{}}}"#,
        header.join(",")
    );
    [
        &(header.len() as u64).to_le_bytes()[..],
        header.as_bytes(),
        &data,
    ]
    .concat()
}

fn write_bytes(root: &Path, path: &str, bytes: &[u8]) {
    write(root, path, "");
    fs::write(root.join(path), bytes).unwrap();
}

fn problem_at(root: &Path, path: &str) -> ProblemKind {
    let found = problems(root);
    let at = found.iter().find(|(p, _)| p == path);
    at.unwrap_or_else(|| panic!("{path} not among {found:?}"))
        .1
        .clone()
}

/// A zip archive of empty stored entries.
fn zip(names: &[&str]) -> Vec<u8> {
    let (mut files, mut list) = (Vec::new(), Vec::new());
    for name in names {
        let length = u16::try_from(name.len()).unwrap().to_le_bytes();
        let at = u32::try_from(files.len()).unwrap().to_le_bytes();
        list.extend(
            [
                b"PK\x01\x02",
                &[0; 24][..],
                &length,
                &[0; 12],
                &at,
                name.as_bytes(),
            ]
            .concat(),
        );
        files.extend(
            [
                b"PK\x03\x04",
                &[0; 22][..],
                &length,
                &[0; 2],
                name.as_bytes(),
            ]
            .concat(),
        );
    }
    let count = u16::try_from(names.len()).unwrap().to_le_bytes();
    let (size, at) = (
        u32::try_from(list.len()).unwrap(),
        u32::try_from(files.len()).unwrap(),
    );
    let end = [
        b"PK\x05\x06",
        &[0; 4][..],
        &count,
        &count,
        &size.to_le_bytes(),
        &at.to_le_bytes(),
        &[0; 2],
    ]
    .concat();
    [files, list, end].concat()
}

#[test]
fn a_repack_has_other_bytes_and_the_same_tensor_root() {
    let (one, two) = (bundle(), bundle());
    let (a, b): (&[f32], &[f32]) = (&[1.0, 2.0], &[3.0]);
    write_bytes(
        one.path(),
        "model/weights/model.safetensors",
        &safetensors(&[("a", a), ("b", b)], "x"),
    );
    // Other metadata, other order, other shards.
    write_bytes(
        two.path(),
        "model/weights/1.safetensors",
        &safetensors(&[("b", b)], "other"),
    );
    write_bytes(
        two.path(),
        "model/weights/2.safetensors",
        &safetensors(&[("a", a)], ""),
    );
    let (old, new) = (manifest(one.path()), manifest(two.path()));
    assert_ne!(old.digest(), new.digest());
    let root = old.tensor_root(ComponentKind::Weights);
    assert!(root.is_some());
    assert_eq!(root, new.tensor_root(ComponentKind::Weights));
    write_bytes(
        two.path(),
        "model/weights/2.safetensors",
        &safetensors(&[("a", &[1.0, 2.5])], ""),
    );
    assert_ne!(
        root,
        manifest(two.path()).tensor_root(ComponentKind::Weights)
    );
    let plain = build(one.path(), &BuildOptions::new().tensor_digests(false))
        .unwrap()
        .manifest;
    assert_eq!(
        (plain.id(), plain.tensor_root(ComponentKind::Weights)),
        (old.id(), None)
    );
}

#[test]
fn lying_weights_are_named() {
    let folder = bundle();
    let root = folder.path();
    let path = "model/weights/model.safetensors";
    let good = safetensors(&[("a", &[1.0, 2.0])], "x");
    write_bytes(root, path, &good[..good.len() - 1]);
    assert!(matches!(
        problem_at(root, path),
        ProblemKind::Safetensors(SafetensorsError::Length { .. })
    ));
    write_bytes(root, path, &good[..12]);
    assert!(matches!(
        problem_at(root, path),
        ProblemKind::Safetensors(SafetensorsError::TruncatedHeader { .. })
    ));
    write_bytes(root, path, b"abc");
    assert!(matches!(
        problem_at(root, path),
        ProblemKind::Safetensors(SafetensorsError::TruncatedHeader { .. })
    ));
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 99\n",
        "ab".repeat(32)
    );
    write(root, path, &pointer);
    assert_eq!(
        problem_at(root, path),
        ProblemKind::GitLfsPointer { size: 99 }
    );
    write_bytes(root, path, &good);
    assert!(build(root, &BuildOptions::new()).is_ok());
    write(
        root,
        "model/weights/model.gguf",
        "<!DOCTYPE html><html>404</html>",
    );
    assert_eq!(
        problem_at(root, "model/weights/model.gguf"),
        ProblemKind::WebPage
    );
    fs::remove_file(root.join("model/weights/model.gguf")).unwrap();
    write(root, "model/weights/model-2.safetensors.incomplete", "x");
    assert_eq!(
        problem_at(root, "model/weights/model-2.safetensors.incomplete"),
        ProblemKind::PartialDownload
    );
}

#[test]
fn pickles_are_found_by_content_wherever_they_hide() {
    let torch = zip(&["archive/data.pkl", "archive/data/0"]);
    // A valid safetensors file whose last tensor is a whole archive: loaders look for archives at the end.
    let mut padded = torch.clone();
    padded.resize(torch.len().div_ceil(4) * 4, 0);
    let tail = [vec![0; padded.len() - torch.len()], torch.clone()].concat();
    let words: Vec<f32> = tail
        .chunks_exact(4)
        .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
        .collect();
    let polyglot = safetensors(&[("a", &words)], "x");
    assert!(polyglot.ends_with(&torch));
    let cases: [(&str, Vec<u8>, FileFormat); 4] = [
        (
            "model/weights/model.bin",
            torch.clone(),
            FileFormat::TorchZip,
        ),
        (
            "model/weights/innocent.safetensors",
            polyglot,
            FileFormat::TorchZip,
        ),
        (
            "model/weights/notes.txt",
            b"\x80\x02cposix\nsystem\nq\x00.".to_vec(),
            FileFormat::Pickle,
        ),
        (
            "model/served.mar",
            zip(&["MAR-INF/MANIFEST.json", "model.pt"]),
            FileFormat::TorchServeArchive,
        ),
    ];
    for (path, bytes, format) in cases {
        let folder = bundle();
        let root = folder.path();
        write_bytes(root, path, &bytes);
        assert_eq!(
            problem_at(root, path),
            ProblemKind::Pickle { format },
            "{path}"
        );
        let built = build(root, &BuildOptions::new().allow_pickles(true)).unwrap();
        assert!(
            built
                .warnings
                .iter()
                .any(|w| w.path == path && w.kind == WarningKind::Pickle { format })
        );
        assert_eq!(built.formats[&path.parse().unwrap()], format);
    }
}

#[test]
fn shards_follow_the_index() {
    let folder = bundle();
    let root = folder.path();
    let index = "model/weights/model.safetensors.index.json";
    let map = r#"{"metadata":{"total_size":8},"weight_map":{"a":"odd-name.safetensors","b":"second.safetensors"}}"#;
    write(root, index, map);
    write_bytes(
        root,
        "model/weights/odd-name.safetensors",
        &safetensors(&[("a", &[1.0])], ""),
    );
    assert_eq!(
        problem_at(root, index),
        ProblemKind::MissingShard {
            shard: "second.safetensors".into()
        }
    );
    write_bytes(
        root,
        "model/weights/second.safetensors",
        &safetensors(&[("c", &[1.0])], ""),
    );
    assert_eq!(
        problem_at(root, index),
        ProblemKind::TensorNotInShard {
            tensor: "b".into(),
            shard: "second.safetensors".into()
        }
    );
    write_bytes(
        root,
        "model/weights/second.safetensors",
        &safetensors(&[("b", &[1.0]), ("c", &[])], ""),
    );
    write_bytes(
        root,
        "model/weights/third.safetensors",
        &safetensors(&[("d", &[1.0])], ""),
    );
    let warnings = build(root, &BuildOptions::new()).unwrap().warnings;
    let warned =
        |path: &str, kind: WarningKind| warnings.iter().any(|w| w.path == path && w.kind == kind);
    assert!(warned(
        "model/weights/third.safetensors",
        WarningKind::ExtraShard
    ));
    assert!(warned(
        "model/weights/second.safetensors",
        WarningKind::TensorNotInIndex { tensor: "c".into() }
    ));
    write(root, index, r#"{"weight_map":{"a":"x","a":"y"}}"#);
    assert!(matches!(
        problem_at(root, index),
        ProblemKind::BadIndex { .. }
    ));
}

#[test]
fn secrets_are_refused_and_never_shown() {
    let folder = bundle();
    let root = folder.path();
    let key = format!("sk{}{}", "-proj-", "a1B2".repeat(10));
    write(
        root,
        "prompt/system.txt",
        &format!("Be kind.\nUse {key}.\n"),
    );
    assert_eq!(
        problem_at(root, "prompt/system.txt"),
        ProblemKind::Secret {
            what: "API key",
            line: 2
        }
    );
    let error = build(root, &BuildOptions::new()).unwrap_err();
    assert!(!format!("{error} {error:?}").contains(&key));
    // However far down it stands.
    let long = format!("{}{key}\n", "a long example\n".repeat(40_000));
    write(root, "prompt/few_shot/long.txt", &long);
    assert_eq!(
        problem_at(root, "prompt/few_shot/long.txt"),
        ProblemKind::Secret {
            what: "API key",
            line: 40_001
        }
    );
    let built = build(root, &BuildOptions::new().allow_secrets(true)).unwrap();
    assert!(
        built
            .warnings
            .iter()
            .any(|w| matches!(w.kind, WarningKind::Secret { line: 2, .. }))
    );
}

#[test]
fn the_cache_is_a_hint_and_never_used_unasked() {
    let folder = bundle();
    let root = folder.path();
    let manifest = manifest(root);
    let cache = HashCache::new();
    assert!(verify(root, &manifest, &VerifyOptions::new().hint(&cache)).is_ok());
    assert_eq!(cache.len(), if cfg!(unix) { 6 } else { cache.len() });
    let again = HashCache::parse(&cache.to_bytes()).unwrap();
    assert_eq!(again.to_bytes(), cache.to_bytes());
    let bytes = AtomicU64::new(0);
    let count =
        |p: &llm_version_core::fs::Progress<'_>| bytes.store(p.done_bytes, Ordering::Relaxed);
    assert!(
        verify(
            root,
            &manifest,
            &VerifyOptions::new().hint(&again).progress(&count)
        )
        .is_ok()
    );
    assert_eq!(bytes.load(Ordering::Relaxed), 0, "nothing was read");
    // A change of content shows even with the hint, since the time of change moved.
    let modified = || {
        fs::metadata(root.join("prompt/system.txt"))
            .unwrap()
            .modified()
            .unwrap()
    };
    let before = modified();
    while modified() == before {
        write(root, "prompt/system.txt", "You are h3lpful.");
    }
    assert!(verify(root, &manifest, &VerifyOptions::new().hint(&again)).is_err());
    assert!(HashCache::parse(b"[{}]").is_err());
}

#[test]
fn files_that_change_while_they_are_read_are_named() {
    let folder = bundle();
    let root = folder.path();
    // The progress callback runs while hashing: a writer at the worst moment.
    let meddle = |_: &llm_version_core::fs::Progress<'_>| {
        let mut file = fs::File::options()
            .append(true)
            .open(root.join("prompt/system.txt"))
            .unwrap();
        file.write_all(b"!").unwrap();
    };
    let error = build(root, &BuildOptions::new().threads(1).progress(&meddle)).unwrap_err();
    let BuildError::Tree(found) = error else {
        panic!("{error}")
    };
    assert!(
        found
            .iter()
            .any(|p| p.path == "prompt/system.txt" && p.kind == ProblemKind::ChangedWhileReading)
    );
}
