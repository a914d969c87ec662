//! Listing a tree: every entry ends up as a file, a problem or a warning; nothing is skipped silently.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use super::problem::{Problem, ProblemKind, Warning, WarningKind};
use super::{MANIFEST_FILE, METADATA_FILE, TESTS_FOLDER};
use crate::path::ComponentPath;

/// What to do with symbolic links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Symlinks {
    /// Every link is a problem.
    #[default]
    Refuse,
    /// Links to files inside the bundle are read as those files; others are problems.
    InsideOnly,
}

/// A file as it was listed.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) path: ComponentPath,
    pub(crate) location: PathBuf,
    pub(crate) stamp: Stamp,
}

/// What identifies a file and its state without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) modified: i128,
    pub(crate) changed: i128,
}

impl Stamp {
    #[cfg(unix)]
    pub(crate) fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let nanos = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: nanos(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanos(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    #[cfg(not(unix))]
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let modified = metadata
            .modified()
            .ok()
            .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok())
            .and_then(|d| i128::try_from(d.as_nanos()).ok())
            .unwrap_or_default();
        Self {
            device: 0,
            inode: 0,
            size: metadata.len(),
            modified,
            changed: 0,
        }
    }
}

/// Everything found below a root.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    /// Files, ordered by path.
    pub(crate) files: Vec<Found>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<Warning>,
    pub(crate) has_metadata: bool,
}

/// Files at the top that are records about the bundle and outside its digest.
fn is_record(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or(name).to_ascii_uppercase();
    matches!(
        stem.as_str(),
        "README" | "LICENSE" | "LICENCE" | "NOTICE" | "CHANGELOG"
    ) || matches!(
        name,
        MANIFEST_FILE | ".git" | ".gitignore" | ".gitattributes"
    )
}

struct Walk<'a> {
    root: &'a Path,
    /// The resolved root, for links.
    real_root: Option<PathBuf>,
    tree: Tree,
    /// Whether the path is in a manifest, whatever the layout says.
    expected: &'a dyn Fn(&str) -> bool,
}

/// Lists the tree below `root`.
///
/// `expected` names paths that count as components although they stand where records do.
pub(crate) fn walk(
    root: &Path,
    symlinks: Symlinks,
    expected: &dyn Fn(&str) -> bool,
) -> io::Result<Tree> {
    let real_root = match symlinks {
        Symlinks::InsideOnly => Some(fs::canonicalize(root)?),
        Symlinks::Refuse => None,
    };
    let mut walk = Walk {
        root,
        real_root,
        tree: Tree::default(),
        expected,
    };
    // Folders still to list, as (location, path with trailing slash).
    let mut folders = vec![(root.to_path_buf(), String::new())];
    while let Some((location, prefix)) = folders.pop() {
        let entries = match list(&location) {
            Ok(entries) => entries,
            Err(error) if prefix.is_empty() => return Err(error),
            Err(error) => {
                walk.unreadable(&prefix, &error);
                continue;
            }
        };
        if entries.is_empty() && !prefix.is_empty() {
            walk.warn(&prefix, WarningKind::EmptyFolder);
        }
        for (name, kind) in entries {
            walk.entry(&location, &prefix, &name, kind, &mut folders);
        }
    }
    let mut tree = walk.tree;
    tree.files.sort_by(|a, b| a.path.cmp(&b.path));
    tree.problems.sort_by(|a, b| a.path.cmp(&b.path));
    tree.warnings.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(tree)
}

type Entry = (std::ffi::OsString, fs::FileType);

fn list(folder: &Path) -> io::Result<Vec<Entry>> {
    fs::read_dir(folder)?
        .map(|entry| entry.and_then(|e| Ok((e.file_name(), e.file_type()?))))
        .collect()
}

/// A name that is not UTF-8, with the odd bytes as `\xNN`.
fn shown(name: &OsStr) -> String {
    name.as_encoded_bytes()
        .utf8_chunks()
        .fold(String::new(), |mut text, chunk| {
            text.push_str(chunk.valid());
            for byte in chunk.invalid() {
                let _ = write!(text, "\\x{byte:02x}");
            }
            text
        })
}

impl Walk<'_> {
    fn warn(&mut self, path: &str, kind: WarningKind) {
        self.tree.warnings.push(Warning::new(path, kind));
    }

    fn problem(&mut self, path: &str, kind: ProblemKind) {
        self.tree.problems.push(Problem::new(path, kind));
    }

    fn unreadable(&mut self, path: &str, error: &io::Error) {
        let error = error.to_string();
        self.problem(path, ProblemKind::Unreadable { error });
    }

    fn entry(
        &mut self,
        folder: &Path,
        prefix: &str,
        name: &OsStr,
        kind: fs::FileType,
        folders: &mut Vec<(PathBuf, String)>,
    ) {
        let Some(text) = name.to_str() else {
            let path = format!("{prefix}{}", shown(name));
            return self.problem(&path, ProblemKind::NotUtf8);
        };
        let path = format!("{prefix}{text}");
        if prefix.is_empty() && !(self.expected)(&path) {
            if text == METADATA_FILE && !kind.is_symlink() {
                self.tree.has_metadata = true;
                return;
            }
            if text == TESTS_FOLDER && kind.is_dir() {
                return;
            }
            if is_record(text) {
                return self.warn(&path, WarningKind::NotInDigest);
            }
        }
        let location = folder.join(name);
        if kind.is_dir() {
            // A path rule that a folder breaks is reported once, not for every file below it.
            if let Err(error) = ComponentPath::new(path.as_str()) {
                return self.problem(&path, ProblemKind::BadPath(error));
            }
            folders.push((location, format!("{path}/")));
        } else if kind.is_symlink() {
            self.link(&path, &location);
        } else if kind.is_file() {
            match fs::symlink_metadata(&location) {
                Ok(metadata) => self.file(&path, location, &metadata),
                Err(error) => self.unreadable(&path, &error),
            }
        } else {
            self.problem(&path, ProblemKind::SpecialFile);
        }
    }

    fn file(&mut self, path: &str, location: PathBuf, metadata: &Metadata) {
        let stamp = Stamp::of(metadata);
        if stamp.size == 0 {
            self.warn(path, WarningKind::EmptyFile);
        }
        match ComponentPath::new(path) {
            Ok(path) => self.tree.files.push(Found {
                path,
                location,
                stamp,
            }),
            Err(error) => self.problem(path, ProblemKind::BadPath(error)),
        }
    }

    fn link(&mut self, path: &str, location: &Path) {
        let target = match fs::read_link(location) {
            Ok(target) => target,
            Err(error) => return self.unreadable(path, &error),
        };
        let target = shown(target.as_os_str());
        let real = match fs::canonicalize(location) {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.problem(path, ProblemKind::DanglingSymlink { target });
            }
            Err(error) => return self.unreadable(path, &error),
        };
        let inside = match &self.real_root {
            Some(root) => real.starts_with(root),
            None => fs::canonicalize(self.root).is_ok_and(|root| real.starts_with(root)),
        };
        if !inside {
            return self.problem(path, ProblemKind::SymlinkEscape { target });
        }
        if self.real_root.is_none() {
            return self.problem(path, ProblemKind::Symlink { target });
        }
        match fs::symlink_metadata(&real) {
            Ok(metadata) if metadata.is_file() => self.file(path, real, &metadata),
            Ok(metadata) if metadata.is_dir() => {
                self.problem(path, ProblemKind::SymlinkToFolder { target });
            }
            Ok(_) => self.problem(path, ProblemKind::SpecialFile),
            Err(error) => self.unreadable(path, &error),
        }
    }
}
