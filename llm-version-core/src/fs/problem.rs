//! What can be wrong with a tree, or worth a look, with the path and the remedy.

use std::fmt;

use crate::path::PathError;

/// Something in the tree that makes it unfit to be a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// Where, relative to the bundle; bytes that are not UTF-8 are shown as `\xNN`.
    pub path: String,
    /// What.
    pub kind: ProblemKind,
}

/// What makes a tree unfit to be a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProblemKind {
    /// The name is not UTF-8.
    NotUtf8,
    /// The path breaks a rule of component paths.
    BadPath(PathError),
    /// A symbolic link, where links are refused.
    Symlink {
        /// Where it points.
        target: String,
    },
    /// A symbolic link that leaves the bundle.
    SymlinkEscape {
        /// Where it points.
        target: String,
    },
    /// A symbolic link to nothing.
    DanglingSymlink {
        /// Where it points.
        target: String,
    },
    /// A symbolic link to a folder, which could loop.
    SymlinkToFolder {
        /// Where it points.
        target: String,
    },
    /// Neither a file nor a folder: a socket, pipe or device.
    SpecialFile,
    /// A file or folder that no part of the layout has room for.
    OutsideLayout,
    /// The file changed between listing and the end of hashing.
    ChangedWhileReading,
    /// The file could not be read.
    Unreadable {
        /// What the system said.
        error: String,
    },
}

/// Something in the tree that is allowed but worth a look.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Warning {
    /// Where, relative to the bundle.
    pub path: String,
    /// What.
    pub kind: WarningKind,
}

/// What is allowed but worth a look.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WarningKind {
    /// A file of no bytes.
    EmptyFile,
    /// A folder without files; a manifest lists files only, so it is not recorded.
    EmptyFolder,
    /// A file at the top that is outside the digest, such as a README.
    NotInDigest,
}

impl Problem {
    pub(crate) fn new(path: impl Into<String>, kind: ProblemKind) -> Self {
        Self {
            path: path.into(),
            kind,
        }
    }
}

impl Warning {
    pub(crate) fn new(path: impl Into<String>, kind: WarningKind) -> Self {
        Self {
            path: path.into(),
            kind,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.kind)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.kind)
    }
}

impl fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUtf8 => f.write_str("the name is not UTF-8; rename the file"),
            Self::BadPath(error) => error.fmt(f),
            Self::Symlink { target } => write!(
                f,
                "a symbolic link to {target:?}; put the file itself there, or allow links that stay inside"
            ),
            Self::SymlinkEscape { target } => write!(
                f,
                "a symbolic link to {target:?}, outside the bundle; copy the file into the bundle"
            ),
            Self::DanglingSymlink { target } => write!(
                f,
                "a symbolic link to {target:?}, which does not exist; fetch the file or remove the link"
            ),
            Self::SymlinkToFolder { target } => write!(
                f,
                "a symbolic link to the folder {target:?}; put the folder itself there"
            ),
            Self::SpecialFile => {
                f.write_str("neither a file nor a folder (socket, pipe or device); remove it")
            }
            Self::OutsideLayout => f.write_str(
                "outside the layout; move it below model/, prompt/, config/ or tests/, or remove it",
            ),
            Self::ChangedWhileReading => {
                f.write_str("changed while it was read; stop whatever writes to it and try again")
            }
            Self::Unreadable { error } => write!(f, "cannot be read: {error}"),
        }
    }
}

impl fmt::Display for WarningKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EmptyFile => "the file is empty; check that this is meant",
            Self::EmptyFolder => "the folder holds no files and is not recorded",
            Self::NotInDigest => "is not part of the digest; it may change without notice",
        })
    }
}
