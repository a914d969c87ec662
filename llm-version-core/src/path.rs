//! Paths of components: relative, `/`-separated, the same on every machine.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;
use unicode_normalization::UnicodeNormalization;

use crate::digest::string_serde;

/// The path of a component inside its bundle, such as `model/config.json`.
///
/// Relative, separated by `/`, without empty, `.` or `..` segments, without backslashes, colons or control characters,
/// at most [`ComponentPath::MAX_LEN`] bytes of UTF-8. It is kept as written: no Unicode normalisation takes place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComponentPath(String);

/// Why a text is not a [`ComponentPath`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PathError {
    /// The path is empty.
    #[error("a path must not be empty")]
    Empty,
    /// The path is too long.
    #[error("a path has at most {max} bytes, this one has {found}", max = ComponentPath::MAX_LEN)]
    TooLong {
        /// Bytes in the path.
        found: usize,
    },
    /// The path starts with `/`.
    #[error("path {path:?} is absolute; paths are relative to the bundle")]
    Absolute {
        /// The path.
        path: String,
    },
    /// A segment is `..` or `.`.
    #[error(
        "path {path:?} has a `.` or `..` segment; it could leave the bundle or be spelled twice"
    )]
    Traversal {
        /// The path.
        path: String,
    },
    /// Two slashes in a row, or one at the end.
    #[error("path {path:?} has an empty segment")]
    EmptySegment {
        /// The path.
        path: String,
    },
    /// A backslash, colon or control character.
    #[error(
        "path {path:?} holds {found:?}, which means something else on other systems; rename the file"
    )]
    Character {
        /// The path.
        path: String,
        /// The offending character.
        found: char,
    },
}

/// Two paths that some file systems cannot hold side by side.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PathConflict {
    /// The same path twice.
    #[error("path {path:?} is listed twice")]
    Duplicate {
        /// The path.
        path: String,
    },
    /// The paths differ only by case or Unicode form.
    #[error(
        "{first:?} and {second:?} differ only by letter case or Unicode form, so they are one file on some systems; rename one"
    )]
    Folds {
        /// One spelling.
        first: String,
        /// The other spelling.
        second: String,
    },
    /// One path is a file and a folder at once.
    #[error("{file:?} is a file, but {inside:?} needs a folder of that name")]
    FileAndFolder {
        /// The file.
        file: String,
        /// A path below it.
        inside: String,
    },
}

impl ComponentPath {
    /// The longest path, in bytes.
    pub const MAX_LEN: usize = 1024;

    /// Checks `text` against the rules of the type.
    ///
    /// # Errors
    /// Says which rule `text` breaks.
    pub fn new(text: impl Into<String>) -> Result<Self, PathError> {
        let path = text.into();
        if path.is_empty() {
            return Err(PathError::Empty);
        }
        if path.len() > Self::MAX_LEN {
            return Err(PathError::TooLong { found: path.len() });
        }
        if path.starts_with('/') {
            return Err(PathError::Absolute { path });
        }
        if let Some(found) = path
            .chars()
            .find(|c| matches!(c, '\\' | ':') || c.is_control())
        {
            return Err(PathError::Character { path, found });
        }
        if path.split('/').any(|s| s == "." || s == "..") {
            return Err(PathError::Traversal { path });
        }
        if path.split('/').any(str::is_empty) {
            return Err(PathError::EmptySegment { path });
        }
        Ok(Self(path))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

/// The key under which case-insensitive or normalising file systems would store `path`.
fn fold(path: &str) -> String {
    if path.is_ascii() {
        return path.to_ascii_lowercase();
    }
    // Upper then lower approximates full case folding: it joins ß with ss, final sigma with sigma, the Kelvin sign with k.
    let upper: String = path.nfd().flat_map(char::to_uppercase).collect();
    let lower: String = upper.chars().flat_map(char::to_lowercase).collect();
    lower.nfd().collect()
}

/// Refuses lists of paths that cannot exist side by side on every file system.
///
/// Compares whole paths and every folder above them, by case and by Unicode form.
///
/// # Errors
/// Names the first pair in conflict.
pub fn check_conflicts<'a>(
    paths: impl IntoIterator<Item = &'a ComponentPath>,
) -> Result<(), PathConflict> {
    // Folded path -> (spelling, is it a file).
    let mut seen: BTreeMap<String, (&str, bool)> = BTreeMap::new();
    let mut last_folder = "";
    for path in paths {
        let text = path.as_str();
        let folder = text.rsplit_once('/').map_or("", |(folder, _)| folder);
        if folder != last_folder {
            for (end, _) in text.match_indices('/') {
                note(&mut seen, &text[..end], false, text)?;
            }
            last_folder = folder;
        }
        note(&mut seen, text, true, text)?;
    }
    Ok(())
}

fn note<'a>(
    seen: &mut BTreeMap<String, (&'a str, bool)>,
    part: &'a str,
    file: bool,
    whole: &'a str,
) -> Result<(), PathConflict> {
    match seen.insert(fold(part), (part, file)) {
        None => Ok(()),
        Some((other, _)) if other != part => Err(PathConflict::Folds {
            first: other.to_owned(),
            second: part.to_owned(),
        }),
        Some((_, true)) if file => Err(PathConflict::Duplicate {
            path: whole.to_owned(),
        }),
        Some((_, was_file)) if was_file != file => Err(PathConflict::FileAndFolder {
            file: part.to_owned(),
            inside: if file {
                format!("{part}/...")
            } else {
                whole.to_owned()
            },
        }),
        Some(_) => Ok(()),
    }
}

impl fmt::Display for ComponentPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ComponentPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl AsRef<str> for ComponentPath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

string_serde!(ComponentPath, "a relative path such as `model/config.json`");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn conflict(paths: &[&str]) -> Result<(), PathConflict> {
        let paths: Vec<_> = paths
            .iter()
            .map(|p| ComponentPath::new(*p).unwrap())
            .collect();
        check_conflicts(&paths)
    }

    #[test]
    fn bad_paths() {
        assert_eq!(ComponentPath::new(""), Err(PathError::Empty));
        assert!(matches!(
            ComponentPath::new("/a"),
            Err(PathError::Absolute { .. })
        ));
        for bad in ["..", "a/../b", "./a", "a/."] {
            assert!(
                matches!(ComponentPath::new(bad), Err(PathError::Traversal { .. })),
                "{bad}"
            );
        }
        for bad in ["a//b", "a/"] {
            assert!(
                matches!(ComponentPath::new(bad), Err(PathError::EmptySegment { .. })),
                "{bad}"
            );
        }
        for bad in ["a\\b", "c:x", "a\nb", "a\0b"] {
            assert!(
                matches!(ComponentPath::new(bad), Err(PathError::Character { .. })),
                "{bad}"
            );
        }
        assert!(ComponentPath::new("a..b/...").is_ok());
    }

    #[test]
    fn twins_by_case_and_unicode_form() {
        assert!(conflict(&["a/x", "a/y", "b"]).is_ok());
        assert!(matches!(
            conflict(&["A", "a"]),
            Err(PathConflict::Folds { .. })
        ));
        // The same letter composed and decomposed.
        assert!(matches!(
            conflict(&["caf\u{e9}", "cafe\u{301}"]),
            Err(PathConflict::Folds { .. })
        ));
        assert!(matches!(
            conflict(&["stra\u{df}e", "STRASSE"]),
            Err(PathConflict::Folds { .. })
        ));
        assert!(matches!(
            conflict(&["\u{212a}", "k"]),
            Err(PathConflict::Folds { .. })
        ));
        // Folders that would merge.
        assert!(matches!(
            conflict(&["Dir/x", "dir/y"]),
            Err(PathConflict::Folds { .. })
        ));
        assert!(matches!(
            conflict(&["a", "a/b"]),
            Err(PathConflict::FileAndFolder { .. })
        ));
        assert!(matches!(
            conflict(&["a/b", "a"]),
            Err(PathConflict::FileAndFolder { .. })
        ));
        assert!(matches!(
            conflict(&["a", "a"]),
            Err(PathConflict::Duplicate { .. })
        ));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            if let Ok(path) = ComponentPath::new(text.clone()) {
                prop_assert_eq!(path.as_str(), text.as_str());
                prop_assert!(conflict(&[path.as_str()]).is_ok());
            }
        }

        #[test]
        fn twins_are_found_wherever_they_stand(
            names in proptest::collection::btree_set("[a-z]{1,4}(/[a-z]{1,4}){0,2}", 1..8), at in any::<prop::sample::Index>(),
        ) {
            let mut paths: Vec<String> = names.into_iter().collect();
            paths.push(at.get(&paths).to_uppercase());
            let refs: Vec<&str> = paths.iter().map(String::as_str).collect();
            prop_assert!(conflict(&refs).is_err());
        }
    }
}
