//! Building and verifying directories: the same tree gives the same id, and every tampering is named.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::{FILES, bundle, manifest, names, problems, report, write};
use llm_version_core::fs::{
    BuildError, BuildOptions, ProblemKind, Symlinks, VerifyError, VerifyOptions, WarningKind,
    build, verify,
};
use llm_version_core::{CHUNK_BYTES, ComponentKind, Mismatch};

#[test]
fn builds_what_the_layout_says() {
    let folder = bundle();
    let manifest = manifest(folder.path());
    assert_eq!(manifest.name().as_str(), "chat");
    assert_eq!(manifest.components().len(), 6);
    assert_eq!(manifest.dependencies()["vllm"], "0.9.1");
    assert_eq!(manifest.contract().api.as_deref(), Some("openai-chat/v1"));
    let kind = |p: &str| manifest.component(&p.parse().unwrap()).map(|c| c.kind);
    assert_eq!(kind("prompt/system.txt"), Some(ComponentKind::Prompt));
    assert_eq!(kind("tests/eval.json"), None);
    assert_eq!(
        &verify(folder.path(), &manifest, &VerifyOptions::new()).unwrap(),
        manifest.id()
    );
}

#[test]
fn order_mtime_mode_and_records_do_not_matter() {
    let one = bundle();
    let two = tempfile::tempdir().unwrap();
    for (path, text) in FILES.iter().rev() {
        write(two.path(), path, text);
    }
    let file = fs::File::options()
        .write(true)
        .open(two.path().join("prompt/system.txt"))
        .unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    write(two.path(), "tests/another.json", "{}");
    write(two.path(), "README.md", "hello");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(
            two.path().join("model/config.json"),
            fs::Permissions::from_mode(0o755),
        )
        .unwrap();
    }
    let built = build(two.path(), &BuildOptions::new().threads(1)).unwrap();
    assert_eq!(built.manifest, manifest(one.path()));
    assert!(
        built
            .warnings
            .iter()
            .any(|w| w.path == "README.md" && w.kind == WarningKind::NotInDigest)
    );
    assert!(verify(two.path(), &built.manifest, &VerifyOptions::new()).is_ok());
}

#[test]
fn missing_extra_and_modified_are_told_apart() {
    let folder = bundle();
    let root = folder.path();
    let manifest = manifest(root);
    fs::remove_file(root.join("model/config.json")).unwrap();
    write(root, "model/extra.bin", "x");
    write(root, "prompt/system.txt", "You are h3lpful.");
    write(root, "prompt/few_shot/1.json", "[] ");
    let Mismatch {
        missing,
        extra,
        modified,
        ..
    } = report(root, &manifest).mismatch;
    assert_eq!(names(&missing), ["model/config.json"]);
    assert_eq!(names(&extra), ["model/extra.bin"]);
    assert_eq!(
        names(&modified),
        ["prompt/few_shot/1.json", "prompt/system.txt"]
    );
}

#[test]
fn extra_files_can_be_tolerated_others_not() {
    let folder = bundle();
    let root = folder.path();
    let manifest = manifest(root);
    write(root, "model/extra.bin", "x");
    let lax = VerifyOptions::new().allow_extra(true);
    assert!(verify(root, &manifest, &VerifyOptions::new()).is_err());
    assert!(verify(root, &manifest, &lax).is_ok());
    fs::remove_file(root.join("prompt/system.txt")).unwrap();
    assert!(verify(root, &manifest, &lax).is_err());
}

#[test]
fn metadata_is_verified_by_what_it_says() {
    let folder = bundle();
    let root = folder.path();
    let manifest = manifest(root);
    let spaced = FILES[0].1.replace(',', ", ");
    write(root, "metadata.json", &spaced);
    assert!(verify(root, &manifest, &VerifyOptions::new()).is_ok());
    for tampered in [
        FILES[0].1.replace("1.2.3", "1.2.4"),
        FILES[0].1.replace("openai", "other"),
        FILES[0]
            .1
            .replace("\"name\"", "\"lineage\":{\"seeds\":{\"a\":\"1\"}},\"name\""),
        "{}".to_owned(),
    ] {
        write(root, "metadata.json", &tampered);
        assert_eq!(
            names(&report(root, &manifest).mismatch.modified),
            ["metadata.json"],
            "{tampered}"
        );
    }
    fs::remove_file(root.join("metadata.json")).unwrap();
    assert_eq!(
        names(&report(root, &manifest).mismatch.missing),
        ["metadata.json"]
    );
}

#[test]
fn renaming_and_swapping_are_modifications_of_the_bundle() {
    let folder = bundle();
    let root = folder.path();
    let manifest = manifest(root);
    fs::rename(
        root.join("prompt/system.txt"),
        root.join("prompt/System.txt"),
    )
    .unwrap();
    let found = report(root, &manifest).mismatch;
    assert_eq!(
        (names(&found.missing), names(&found.extra)),
        (vec!["prompt/system.txt"], vec!["prompt/System.txt"])
    );
    fs::rename(
        root.join("prompt/System.txt"),
        root.join("prompt/system.txt"),
    )
    .unwrap();
    // Same sizes, contents swapped.
    write(root, "model/tokenizer/tokenizer.json", "[]");
    write(root, "prompt/few_shot/1.json", "{}");
    assert_eq!(names(&report(root, &manifest).mismatch.modified).len(), 2);
}

#[test]
fn every_problem_of_a_tree_is_listed_with_its_remedy() {
    let folder = bundle();
    let root = folder.path();
    write(root, "model\\x", "a");
    write(root, "stray.bin", "a");
    write(root, "weights/model.bin", "a");
    let found = problems(root);
    assert!(
        found
            .iter()
            .any(|(p, k)| p == "stray.bin" && *k == ProblemKind::OutsideLayout)
    );
    assert!(
        found
            .iter()
            .any(|(p, k)| p == "weights/model.bin" && *k == ProblemKind::OutsideLayout)
    );
    assert!(
        found
            .iter()
            .any(|(p, k)| p == "model\\x" && matches!(k, ProblemKind::BadPath(_)))
    );
    let text = build(root, &BuildOptions::new()).unwrap_err().to_string();
    assert!(
        text.contains("stray.bin: outside the layout; move it"),
        "{text}"
    );
}

#[test]
fn empty_files_count_and_empty_folders_are_mentioned() {
    let folder = bundle();
    let root = folder.path();
    let before = manifest(root);
    write(root, "prompt/empty.txt", "");
    fs::create_dir_all(root.join("model/adapters/none")).unwrap();
    let built = build(root, &BuildOptions::new()).unwrap();
    assert_ne!(built.manifest.digest(), before.digest());
    let warned = |path: &str, kind: WarningKind| {
        built
            .warnings
            .iter()
            .any(|w| w.path == path && w.kind == kind)
    };
    assert!(warned("prompt/empty.txt", WarningKind::EmptyFile));
    assert!(warned("model/adapters/none/", WarningKind::EmptyFolder));
    // A zero-byte file is covered too.
    assert_eq!(
        names(&report(root, &before).mismatch.extra),
        ["prompt/empty.txt"]
    );
}

#[test]
fn case_twins_are_refused() {
    let folder = bundle();
    write(folder.path(), "prompt/SYSTEM.txt", "x");
    let error = build(folder.path(), &BuildOptions::new())
        .unwrap_err()
        .to_string();
    assert!(error.contains("differ only by letter case"), "{error}");
}

#[test]
fn without_metadata_there_is_no_bundle() {
    let folder = bundle();
    fs::remove_file(folder.path().join("metadata.json")).unwrap();
    assert!(matches!(
        build(folder.path(), &BuildOptions::new()),
        Err(BuildError::NoMetadata { .. })
    ));
    write(folder.path(), "metadata.json", "{");
    assert!(matches!(
        build(folder.path(), &BuildOptions::new()),
        Err(BuildError::Content { .. })
    ));
    assert!(matches!(
        build(&folder.path().join("nowhere"), &BuildOptions::new()),
        Err(BuildError::Folder { .. })
    ));
}

#[test]
fn progress_reaches_the_total() {
    let folder = bundle();
    let (seen, total) = (AtomicU64::new(0), AtomicU64::new(0));
    let note = |p: &llm_version_core::fs::Progress<'_>| {
        seen.fetch_max(p.done_bytes, Ordering::Relaxed);
        total.store(p.total_bytes, Ordering::Relaxed);
    };
    let built = build(folder.path(), &BuildOptions::new().progress(&note)).unwrap();
    assert_eq!(seen.load(Ordering::Relaxed), built.manifest.total_size());
    assert_eq!(total.load(Ordering::Relaxed), built.manifest.total_size());
}

#[test]
fn chunk_digests_verify_only_under_a_trusted_record() {
    let folder = bundle();
    let root = folder.path();
    fs::create_dir_all(root.join("model/weights")).unwrap();
    let big = root.join("model/weights/model.bin");
    fs::File::create(&big)
        .unwrap()
        .set_len(CHUNK_BYTES + 1)
        .unwrap();
    let plain = manifest(root);
    let chunked = build(root, &BuildOptions::new().chunk_digests(true))
        .unwrap()
        .manifest;
    assert_eq!(
        plain.id(),
        chunked.id(),
        "chunk digests are no part of the identity"
    );
    let options = VerifyOptions::new().by_chunks(chunked.record_digest());
    assert!(verify(root, &chunked, &options).is_ok());
    // A range verifies by the chunks that it lies in.
    let component = chunked.components().iter().find(|c| c.size > CHUNK_BYTES);
    let component = component.unwrap();
    let of = |range| component.chunks_of(range).collect::<Vec<_>>();
    let (first, second) = ((0, 0..CHUNK_BYTES), (1, CHUNK_BYTES..CHUNK_BYTES + 1));
    assert_eq!(of(5..6), std::slice::from_ref(&first));
    assert_eq!(of(CHUNK_BYTES - 1..u64::MAX), [first, second.clone()]);
    assert_eq!(of(CHUNK_BYTES..CHUNK_BYTES + 1), [second]);
    assert!(of(CHUNK_BYTES + 1..u64::MAX).is_empty() && of(7..7).is_empty());
    assert!(component.verify_chunk(1, &[0]) && !component.verify_chunk(1, &[1]));
    assert!(!component.verify_chunk(2, &[]));
    assert!(matches!(
        verify(root, &plain, &options),
        Err(VerifyError::Untrusted { .. })
    ));
    let mut file = fs::File::options().write(true).open(&big).unwrap();
    file.seek(SeekFrom::Start(CHUNK_BYTES)).unwrap();
    file.write_all(b"x").unwrap();
    drop(file);
    match verify(root, &chunked, &options) {
        Err(VerifyError::Differs(report)) => assert_eq!(
            names(&report.mismatch.modified),
            ["model/weights/model.bin"]
        ),
        other => panic!("{other:?}"),
    }
}

#[cfg(unix)]
mod unix {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_refused_or_followed_inside_only() {
        let folder = bundle();
        let root = folder.path();
        let outside = tempfile::tempdir().unwrap();
        write(outside.path(), "secret", "x");
        symlink("../prompt/system.txt", root.join("model/inside")).unwrap();
        let found = problems(root);
        assert_eq!(
            found,
            [(
                "model/inside".to_owned(),
                ProblemKind::Symlink {
                    target: "../prompt/system.txt".into()
                }
            )]
        );
        let inside = BuildOptions::new().symlinks(Symlinks::InsideOnly);
        let built = build(root, &inside).unwrap().manifest;
        assert_eq!(built.components().len(), 7);

        symlink(outside.path().join("secret"), root.join("model/escape")).unwrap();
        symlink("nowhere", root.join("model/dangling")).unwrap();
        symlink("../prompt", root.join("model/folder")).unwrap();
        symlink("loop", root.join("model/loop")).unwrap();
        let Err(BuildError::Tree(found)) = build(root, &inside) else {
            panic!("accepted")
        };
        let kind = |path: &str| &found.iter().find(|p| p.path == path).unwrap().kind;
        assert!(matches!(
            kind("model/escape"),
            ProblemKind::SymlinkEscape { .. }
        ));
        assert!(matches!(
            kind("model/dangling"),
            ProblemKind::DanglingSymlink { .. }
        ));
        assert!(matches!(
            kind("model/folder"),
            ProblemKind::SymlinkToFolder { .. }
        ));
        assert!(matches!(kind("model/loop"), ProblemKind::Unreadable { .. }));
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn a_component_replaced_by_a_link_to_itself_does_not_verify() {
        let folder = bundle();
        let root = folder.path();
        let manifest = manifest(root);
        fs::rename(
            root.join("prompt/system.txt"),
            root.join("tests/system.txt"),
        )
        .unwrap();
        symlink("../tests/system.txt", root.join("prompt/system.txt")).unwrap();
        for options in [VerifyOptions::new(), VerifyOptions::new().allow_extra(true)] {
            let Err(VerifyError::Differs(report)) = verify(root, &manifest, &options) else {
                panic!("accepted")
            };
            assert_eq!(report.problems[0].path, "prompt/system.txt");
        }
    }

    #[test]
    fn names_that_are_not_utf8_and_special_files_are_named() {
        let folder = bundle();
        let root = folder.path();
        fs::write(root.join("prompt").join(OsStr::from_bytes(b"a\xff")), "x").unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(root.join("model/socket")).unwrap();
        let found = problems(root);
        assert_eq!(
            found[0],
            ("model/socket".to_owned(), ProblemKind::SpecialFile)
        );
        assert_eq!(found[1], ("prompt/a\\xff".to_owned(), ProblemKind::NotUtf8));
    }

    #[test]
    fn hard_links_and_sparse_files_are_plain_files() {
        let folder = bundle();
        let root = folder.path();
        fs::hard_link(root.join("prompt/system.txt"), root.join("prompt/copy.txt")).unwrap();
        fs::File::create(root.join("model/sparse"))
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        let manifest = manifest(root);
        let digest = |p: &str| manifest.component(&p.parse().unwrap()).unwrap().digest;
        assert_eq!(digest("prompt/system.txt"), digest("prompt/copy.txt"));
        assert_eq!(
            digest("model/sparse"),
            llm_version_core::Digest::of(&vec![0; 1 << 20])
        );
    }
}
