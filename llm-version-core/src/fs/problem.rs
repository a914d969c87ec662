//! What can be wrong with a tree, or worth a look, with the path and the remedy.

use std::fmt;

use super::onnx::OnnxError;
use crate::content::FileFormat;
use crate::gguf::GgufError;
use crate::path::PathError;
use crate::safetensors::SafetensorsError;

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
    /// The name of a download that has not finished.
    PartialDownload,
    /// A git-lfs pointer instead of the file.
    GitLfsPointer {
        /// Size of the file that it stands for; 0 where the pointer does not say.
        size: u64,
    },
    /// A web page where weights should be.
    WebPage,
    /// Loading the file can run code that it carries.
    Pickle {
        /// What it is.
        format: FileFormat,
    },
    /// Something that looks like a secret.
    Secret {
        /// What it looks like.
        what: &'static str,
        /// Line, from 1.
        line: usize,
    },
    /// A safetensors file whose header is malformed or untrue.
    Safetensors(SafetensorsError),
    /// A GGUF file whose header is malformed or untrue.
    Gguf(GgufError),
    /// An ONNX file that cannot be read as one.
    Onnx(OnnxError),
    /// Tensors of an ONNX model lie in a file that is not there.
    MissingExternalData {
        /// The file, as the model names it.
        location: String,
    },
    /// Tensors of an ONNX model lie beyond the end of their file.
    ExternalDataTooShort {
        /// The file, as the model names it.
        location: String,
        /// Bytes that it must have.
        needed: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// An index of shards that cannot be read.
    BadIndex {
        /// What is wrong.
        error: String,
    },
    /// An index names a shard that is not there.
    MissingShard {
        /// The shard.
        shard: String,
    },
    /// An index places a tensor in a shard that does not hold it.
    TensorNotInShard {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
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
    /// Loading the file can run code that it carries; the caller allowed it.
    Pickle {
        /// What it is.
        format: FileFormat,
    },
    /// Something that looks like a secret; the caller allowed it.
    Secret {
        /// What it looks like.
        what: &'static str,
        /// Line, from 1.
        line: usize,
    },
    /// Weights that the index beside them does not mention.
    ExtraShard,
    /// A shard holds a tensor that the index does not place there.
    TensorNotInIndex {
        /// The tensor.
        tensor: String,
    },
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
            Self::PartialDownload => {
                f.write_str("the name of an unfinished download; finish or remove it")
            }
            Self::GitLfsPointer { size } => write!(
                f,
                "a git-lfs pointer to a file of {size} bytes, not the file; run `git lfs pull`"
            ),
            Self::WebPage => f.write_str("a web page where weights should be; download it again"),
            Self::Pickle { format } => write!(
                f,
                "a {format}, which runs code when it is loaded; convert it to safetensors, or allow pickles"
            ),
            Self::Secret { what, line } => write!(
                f,
                "line {line} looks like a secret ({what}); remove and revoke it, or allow secrets if it is none"
            ),
            Self::Safetensors(error) => error.fmt(f),
            Self::Gguf(error) => error.fmt(f),
            Self::Onnx(error) => error.fmt(f),
            Self::MissingExternalData { location } => write!(
                f,
                "its tensors lie in {location:?}, which is not there; put it beside the model"
            ),
            Self::ExternalDataTooShort {
                location,
                needed,
                found,
            } => write!(
                f,
                "its tensors need {needed} bytes of {location:?}, which has {found}; download both again"
            ),
            Self::BadIndex { error } => write!(f, "not a usable index of shards: {error}"),
            Self::MissingShard { shard } => {
                write!(f, "names the shard {shard:?}, which is not there; download it")
            }
            Self::TensorNotInShard { tensor, shard } => write!(
                f,
                "places tensor {tensor:?} in {shard:?}, which does not hold it; download both again"
            ),
            Self::Unreadable { error } => write!(f, "cannot be read: {error}"),
        }
    }
}

impl fmt::Display for WarningKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyFile => f.write_str("the file is empty; check that this is meant"),
            Self::EmptyFolder => f.write_str("the folder holds no files and is not recorded"),
            Self::Pickle { format } => write!(f, "a {format}, which runs code when it is loaded"),
            Self::Secret { what, line } => write!(f, "line {line} looks like a secret ({what})"),
            Self::ExtraShard => f.write_str("the index beside it does not mention it"),
            Self::TensorNotInIndex { tensor } => {
                write!(
                    f,
                    "holds tensor {tensor:?}, which the index does not place there"
                )
            }
            Self::NotInDigest => {
                f.write_str("is not part of the digest; it may change without notice")
            }
        }
    }
}
