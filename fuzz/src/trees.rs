//! Targets that work on folders. An input is several files, apart from each other by `%%` lines.

use crate::parts::{file, parts};
use llm_version_core::fs::{
    BuildOptions, HfSnapshot, METADATA_FILE, VerifyOptions, build, import_oci, verify,
};
use llm_version_core::{ComponentPath, Digest, Metadata, Name, Version};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// An empty folder, in memory where the system has such a place.
fn folder() -> Option<TempDir> {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    made.ok()
}

/// Writes a file below `root`, if its path is one that a tree of others could have; whether it was written.
fn write(root: &Path, path: &str, bytes: &[u8]) -> Option<()> {
    let path = ComponentPath::new(path).ok()?;
    let target = root.join(path.as_str());
    fs::create_dir_all(target.parent()?).ok()?;
    fs::write(target, bytes).ok()
}

/// An image layout: its index, and blobs. Nothing may be written but below the folder that was named.
pub(crate) fn oci(input: &[u8]) -> bool {
    let Some(root) = folder() else {
        return false;
    };
    let (layout, out) = (root.path().join("layout"), root.path().join("out"));
    for (n, part) in parts(input, |part| part).iter().enumerate() {
        let written = if n == 0 {
            write(&layout, "index.json", part)
        } else {
            write(&layout, &format!("blobs/sha256/{}", Digest::of(part)), part)
        };
        if written.is_none() {
            return false;
        }
    }
    let imported = import_oci(&layout, None, &out);
    assert_eq!(
        imported.is_ok(),
        out.exists(),
        "all or nothing: {imported:?}"
    );
    let names = fs::read_dir(root.path()).into_iter().flatten().flatten();
    assert!(
        names
            .map(|e| e.file_name())
            .all(|n| n == "layout" || n == "out"),
        "nothing beside it"
    );
    if let Ok(Some(_)) = imported {
        assert!(build(&out, &BuildOptions::new().threads(1)).is_ok());
    }
    imported.is_ok()
}

/// A snapshot in a cache: the listing of its commit, then files: a path in a line, and bytes.
pub(crate) fn hf(input: &[u8]) -> bool {
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    let Some(root) = folder() else {
        return false;
    };
    let cache = root.path().join("models--org--name");
    let snapshot = cache.join("snapshots").join(COMMIT);
    let parts = parts(input, |part| file(part).map_or(part, |(_, bytes)| bytes));
    if fs::create_dir_all(cache.join("blobs")).is_err() || fs::create_dir_all(&snapshot).is_err() {
        return false;
    }
    for (n, part) in parts.iter().enumerate() {
        if n == 0 {
            if write(&cache, &format!("trees/{COMMIT}.json"), part).is_none() {
                return false;
            }
            continue;
        }
        let Some((path, bytes)) = file(part) else {
            continue;
        };
        let Ok(path) = ComponentPath::new(path) else {
            continue;
        };
        let digest = Digest::of(bytes).to_string();
        let up = "../".repeat(path.as_str().matches('/').count() + 2);
        let link = snapshot.join(path.as_str());
        let made = link.parent().is_some_and(|p| fs::create_dir_all(p).is_ok());
        if !made || write(&cache, &format!("blobs/{digest}"), bytes).is_none() {
            continue;
        }
        #[cfg(unix)]
        let linked = std::os::unix::fs::symlink(format!("{up}blobs/{digest}"), link);
        #[cfg(not(unix))]
        let linked = fs::write(link, bytes).map(|()| drop(up));
        if linked.is_err() {
            continue;
        }
    }
    let Ok(opened) = HfSnapshot::open(&snapshot) else {
        return false;
    };
    let (Ok(name), out) = (Name::new("imported"), root.path().join("out")) else {
        return false;
    };
    let metadata = Metadata::new(name, Version::new(1, 0, 0));
    if opened.import(&out, metadata).is_err() {
        return false;
    }
    assert!(opened.verify().is_ok());
    let _ = build(&out, &BuildOptions::new().threads(1));
    true
}

/// A bundle directory: files, each a path in a line, and bytes. What builds verifies.
pub(crate) fn tree(input: &[u8]) -> bool {
    let Some(root) = folder() else {
        return false;
    };
    let metadata = br#"{"format":"llm-metadata/1","name":"fuzzed","version":"1.0.0"}"#;
    if write(root.path(), METADATA_FILE, metadata).is_none() {
        return false;
    }
    for part in parts(input, |part| part) {
        if let Some((path, bytes)) = file(&part) {
            let _ = write(root.path(), path, bytes);
        }
    }
    let options = BuildOptions::new().threads(1);
    let options = options.allow_pickles(true).allow_secrets(true);
    let Ok(built) = build(root.path(), &options) else {
        return false;
    };
    let options = VerifyOptions::new().threads(1);
    let verified = verify(root.path(), &built.manifest, &options);
    assert!(verified.is_ok(), "{verified:?}");
    true
}
