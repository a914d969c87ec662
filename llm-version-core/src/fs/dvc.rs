//! The digests by which DVC knows files and folders, so that a data set in a lineage can be held against its folder.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use md5::{Digest as _, Md5};
use thiserror::Error;

use super::problem::Problem;
use super::walk::{Symlinks, walk};

/// Why there is no digest.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DvcError {
    /// Something cannot be read.
    #[error("{path}: {error}")]
    Io {
        /// What.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// Entries that have no digest here: links, special files, odd names.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Tree(Vec<Problem>),
}

/// The digest that DVC 3 gives a file (`md5:<hex>`) or a folder (`md5:<hex>.dir`), in the form of
/// [`Dataset::digest`](crate::Dataset::digest).
///
/// That of a folder is the MD5 of a list of its files with their MD5, byte for byte as DVC writes it. What DVC always
/// leaves out (`.git`, `.hg`, `.dvc`) is left out here; a `.dvcignore` is not read. MD5 resists no attacker: it tells
/// which data set is meant, not that nobody forged it.
///
/// # Errors
/// Names what cannot be read, and every entry of a folder that is no plain file of a portable name.
pub fn dvc_digest(path: &Path) -> Result<String, DvcError> {
    let io = |path: &Path, error| DvcError::Io {
        path: path.display().to_string(),
        error,
    };
    let metadata = std::fs::metadata(path).map_err(|error| io(path, error))?;
    if !metadata.is_dir() {
        let md5 = md5_of(path).map_err(|error| io(path, error))?;
        return Ok(format!("md5:{md5}"));
    }
    let tree = walk(path, Symlinks::Refuse, &|_| true).map_err(|error| io(path, error))?;
    let mut problems = tree.problems;
    problems.retain(|p| !left_out(&p.path));
    if !problems.is_empty() {
        return Err(DvcError::Tree(problems));
    }
    // Files are ordered by path already.
    let mut entries = Vec::new();
    for file in tree.files.iter().filter(|f| !left_out(f.path.as_str())) {
        let md5 = md5_of(&file.location).map_err(|error| io(&file.location, error))?;
        entries.push((file.path.as_str(), md5));
    }
    let list = python_list(&entries);
    Ok(format!("md5:{}.dir", hex(&Md5::digest(list.as_bytes()))))
}

fn left_out(path: &str) -> bool {
    path.split('/')
        .any(|part| matches!(part, ".git" | ".hg" | ".dvc"))
}

fn md5_of(path: &Path) -> io::Result<String> {
    let (mut file, mut hash) = (File::open(path)?, Md5::new());
    let mut block = vec![0; 256 << 10];
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(read) => hash.update(block.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// `json.dumps([{"md5": ..., "relpath": ...}, ...], sort_keys=True)` of Python.
fn python_list(entries: &[(&str, String)]) -> String {
    let mut text = String::from("[");
    for (n, (path, md5)) in entries.iter().enumerate() {
        let comma = if n == 0 { "" } else { ", " };
        let _ = write!(text, "{comma}{{\"md5\": \"{md5}\", \"relpath\": \"");
        for c in path.chars() {
            match c {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '\u{8}' => text.push_str("\\b"),
                '\u{c}' => text.push_str("\\f"),
                ' '..='~' => text.push(c),
                _ => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(text, "\\u{unit:04x}");
                    }
                }
            }
        }
        text.push_str("\"}");
    }
    text.push(']');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn digests_are_those_of_dvc() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("b/.git")).unwrap();
        for (path, text) in [
            ("b/x.txt", "one\n"),
            ("b-y.txt", "two\n"),
            ("é😀 z.txt", ""),
            ("b/.git/config", "left out"),
        ] {
            fs::write(root.join(path), text).unwrap();
        }
        assert_eq!(
            dvc_digest(&root.join("b/x.txt")).unwrap(),
            "md5:5bbf5a52328e7439ae6e719dfe712200"
        );
        assert_eq!(
            dvc_digest(root).unwrap(),
            "md5:a10154068c337994854255bf5eaee3ac.dir"
        );
        assert!(matches!(
            dvc_digest(&root.join("none")),
            Err(DvcError::Io { .. })
        ));
    }

    #[test]
    fn names_are_escaped_as_python_does() {
        assert_eq!(python_list(&[]), "[]");
        let odd = "\"\\\n\r\t\u{8}\u{c}\u{1}\u{7f}\u{80}é😀";
        assert_eq!(
            python_list(&[(odd, "0".into())]),
            "[{\"md5\": \"0\", \"relpath\": \"\\\"\\\\\\n\\r\\t\\b\\f\\u0001\\u007f\\u0080\\u00e9\\ud83d\\ude00\"}]"
        );
    }

    #[cfg(unix)]
    #[test]
    fn links_have_no_digest() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("x", folder.path().join("y")).unwrap();
        assert!(matches!(
            dvc_digest(folder.path()),
            Err(DvcError::Tree(problems)) if problems.len() == 1
        ));
    }
}
