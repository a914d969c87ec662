//! Hugging Face snapshots and download folders: verified offline, then laid out as a bundle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha1::Digest as _;
use thiserror::Error;

use super::arrange::{ArrangeError, arrange};
use super::build::read_small;
use crate::digest::Digest;
use crate::json::{self, JsonError};
use crate::lineage::BaseModel;
use crate::metadata::Metadata;
use crate::path::{ComponentPath, PathError};

/// The largest listing that is read.
const TREE_LIMIT: u64 = 64 << 20;

/// A Hugging Face repository at a commit, as it lies on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HfSnapshot {
    /// The repository, such as `org/name`, where the folder's name says it.
    pub repository: Option<String>,
    /// The commit, where the folder or its records say it.
    pub commit: Option<String>,
    /// The files, by their path in the repository.
    pub files: BTreeMap<ComponentPath, HfFile>,
    /// Whether a listing of the repository was at hand, so that no file can be missing unnoticed.
    pub listed: bool,
    /// Files of the listing that were not downloaded; empty unless [`HfSnapshot::open_part`] allowed that.
    pub left_out: BTreeSet<ComponentPath>,
}

/// A file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HfFile {
    /// Where its bytes are.
    pub location: PathBuf,
    /// What its bytes must hash to, where that is known.
    pub expected: Option<HfDigest>,
    /// Its size in bytes.
    pub size: u64,
}

/// The digest by which the hub knows a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HfDigest {
    /// SHA-256 of a large file.
    Sha256(Digest),
    /// The git blob id of a small one: SHA-1 over `blob <size>\0` and the bytes.
    GitBlob([u8; 20]),
}

/// Why a snapshot was refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HfError {
    /// Something cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// What.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// A link to nothing: the download never finished or its blob was deleted.
    #[error("{path}: its blob is missing; download the snapshot again")]
    Dangling {
        /// The file.
        path: String,
    },
    /// A link that leaves the repository's own blobs.
    #[error("{path}: links to {target}, outside the blobs of this repository")]
    Escape {
        /// The file.
        path: String,
        /// Where it leads.
        target: String,
    },
    /// A file that the listing has and the folder has not.
    #[error("{path}: is in the repository's listing and not in the snapshot; download it")]
    Missing {
        /// The file.
        path: String,
    },
    /// A file that the listing does not have.
    #[error("{path}: is not in the repository's listing; remove it")]
    Extra {
        /// The file.
        path: String,
    },
    /// A file whose bytes are not what the hub knows.
    #[error("{path}: its bytes are not those of the repository; download it again")]
    Altered {
        /// The file.
        path: String,
    },
    /// A name that cannot be part of a bundle.
    #[error("{0}")]
    Path(#[from] PathError),
    /// A name that is not UTF-8.
    #[error("{path}: the name is not UTF-8")]
    NotUtf8 {
        /// The file.
        path: String,
    },
    /// A listing that cannot be read.
    #[error("{path}: {error}")]
    Listing {
        /// The listing.
        path: String,
        /// What is wrong.
        error: JsonError,
    },
    /// Two files that would have one place in a bundle.
    #[error("{path}: two files of the repository would lie here")]
    Twice {
        /// The place in the bundle.
        path: String,
    },
    /// Nothing there.
    #[error("{path}: no files; is it a snapshot folder?")]
    Empty {
        /// The folder.
        path: String,
    },
}

impl From<ArrangeError> for HfError {
    fn from(error: ArrangeError) -> Self {
        match error {
            ArrangeError::Io { path, error } => Self::Io { path, error },
            ArrangeError::Twice { path } => Self::Twice { path },
        }
    }
}

#[derive(Deserialize)]
struct Listing {
    format_version: u64,
    files: BTreeMap<String, Listed>,
}

#[derive(Deserialize)]
struct Listed {
    size: u64,
    blob_id: String,
    #[serde(default)]
    lfs_sha256: Option<Digest>,
    #[serde(default)]
    lfs_size: Option<u64>,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> HfError + '_ {
    move |error| HfError::Io {
        path: path.display().to_string(),
        error,
    }
}

impl HfDigest {
    /// Reads 64 digits as SHA-256, 40 as a git blob id.
    fn parse(text: &str) -> Option<Self> {
        if let Ok(digest) = text.parse() {
            return Some(Self::Sha256(digest));
        }
        if text.len() != 40 || crate::digest::first_non_hex(text).is_some() {
            return None;
        }
        let mut bytes = [0; 20];
        for (byte, at) in bytes.iter_mut().zip((0..40).step_by(2)) {
            *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
        }
        Some(Self::GitBlob(bytes))
    }

    fn matches(&self, file: &HfFile) -> io::Result<bool> {
        let mut bytes = File::open(&file.location)?;
        let mut block = vec![0; 256 << 10];
        let mut each = |update: &mut dyn FnMut(&[u8])| -> io::Result<u64> {
            let mut size = 0;
            loop {
                match bytes.read(&mut block) {
                    Ok(0) => return Ok(size),
                    Ok(read) => {
                        update(block.get(..read).unwrap_or_default());
                        size += read as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        };
        match self {
            Self::Sha256(digest) => {
                let mut hash = sha2::Sha256::new();
                each(&mut |b| hash.update(b))?;
                Ok(Digest::new(hash.finalize().into()) == *digest)
            }
            Self::GitBlob(id) => {
                let mut hash = sha1::Sha1::new_with_prefix(format!("blob {}\0", file.size));
                let size = each(&mut |b| hash.update(b))?;
                Ok(size == file.size && <[u8; 20]>::from(hash.finalize()) == *id)
            }
        }
    }
}

impl HfSnapshot {
    /// Opens `models--org--name/snapshots/<commit>` of a cache, or a folder that was downloaded to (`local_dir`).
    ///
    /// Links are followed into the repository's own `blobs` and nowhere else. Where a listing of the commit lies in the
    /// cache or folder, every file of it must be there with the listed size, and no other.
    ///
    /// # Errors
    /// Names the first file that is missing, dangling, extra or outside.
    pub fn open(folder: &Path) -> Result<Self, HfError> {
        let snapshot = Self::open_part(folder)?;
        match snapshot.left_out.first() {
            None => Ok(snapshot),
            Some(path) => Err(HfError::Missing {
                path: path.to_string(),
            }),
        }
    }

    /// As [`HfSnapshot::open`], for a download of chosen files only (`allow_patterns`): files of the listing may be
    /// missing, and are named in [`HfSnapshot::left_out`].
    ///
    /// # Errors
    /// Names the first file that is dangling, extra or outside.
    pub fn open_part(folder: &Path) -> Result<Self, HfError> {
        let mut snapshot = Self {
            repository: None,
            commit: None,
            files: BTreeMap::new(),
            listed: false,
            left_out: BTreeSet::new(),
        };
        let in_cache = folder
            .parent()
            .filter(|p| p.file_name().is_some_and(|n| n == "snapshots"));
        let repository = in_cache.and_then(Path::parent);
        let blobs = match repository {
            Some(root) => Some(fs::canonicalize(root.join("blobs")).map_err(io_error(root))?),
            None => None,
        };
        snapshot.list(folder, blobs.as_deref())?;
        if snapshot.files.is_empty() {
            let path = folder.display().to_string();
            return Err(HfError::Empty { path });
        }
        if let Some(root) = repository {
            let text = |name: Option<&std::ffi::OsStr>| {
                name.and_then(|n| n.to_str()).map(ToOwned::to_owned)
            };
            snapshot.commit = text(folder.file_name());
            snapshot.repository = text(root.file_name())
                .and_then(|n| n.strip_prefix("models--").map(|n| n.replace("--", "/")));
            if let Some(commit) = snapshot.commit.clone() {
                snapshot.check_listing(&root.join("trees").join(format!("{commit}.json")))?;
            }
        } else {
            snapshot.read_download_records(folder);
            // A record could say anything; only a commit id is a part of a path.
            if let Some(commit) = &snapshot.commit
                && matches!(HfDigest::parse(commit), Some(HfDigest::GitBlob(_)))
            {
                let listing = format!(".cache/huggingface/trees/{commit}.json");
                snapshot.check_listing(&folder.join(listing))?;
            }
        }
        Ok(snapshot)
    }

    fn list(&mut self, root: &Path, blobs: Option<&Path>) -> Result<(), HfError> {
        let mut folders = vec![(root.to_owned(), String::new())];
        while let Some((folder, prefix)) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(io_error(&folder))? {
                let entry = entry.map_err(io_error(&folder))?;
                let location = entry.path();
                let Some(name) = entry.file_name().to_str().map(ToOwned::to_owned) else {
                    let path = location.display().to_string();
                    return Err(HfError::NotUtf8 { path });
                };
                let path = format!("{prefix}{name}");
                let kind = entry.file_type().map_err(io_error(&location))?;
                // Records of the download, not files of the repository.
                if prefix.is_empty() && matches!(name.as_str(), ".cache" | ".git") && kind.is_dir()
                {
                    continue;
                }
                if kind.is_dir() {
                    folders.push((location, format!("{path}/")));
                    continue;
                }
                let (location, expected) = resolve(&path, location, kind.is_symlink(), blobs)?;
                let size = fs::metadata(&location).map_err(io_error(&location))?.len();
                let file = HfFile {
                    location,
                    expected,
                    size,
                };
                self.files.insert(ComponentPath::new(path)?, file);
            }
        }
        Ok(())
    }

    /// A listing (`trees/<commit>.json`): the sizes and digests of every file of the commit.
    fn check_listing(&mut self, path: &Path) -> Result<(), HfError> {
        if !path.is_file() {
            return Ok(());
        }
        let name = path.display().to_string();
        let bytes = read_small(path, &name, TREE_LIMIT)
            .map_err(|e| io_error(path)(io::Error::other(e.to_string())))?;
        let listing: Listing = json::from_slice(&bytes, TREE_LIMIT)
            .map_err(|error| HfError::Listing { path: name, error })?;
        if listing.format_version != 1 {
            // A listing of another kind cannot be relied on; digests in the names of blobs still are.
            return Ok(());
        }
        let mut listed = BTreeSet::new();
        for (path, entry) in listing.files {
            let key = ComponentPath::new(path.as_str())?;
            let Some(file) = self.files.get_mut(&key) else {
                self.left_out.insert(key);
                continue;
            };
            let digest = entry
                .lfs_sha256
                .map(HfDigest::Sha256)
                .or_else(|| HfDigest::parse(&entry.blob_id));
            if file.size != entry.lfs_size.unwrap_or(entry.size) || digest.is_none() {
                return Err(HfError::Altered { path });
            }
            file.expected = digest;
            listed.insert(key);
        }
        if let Some(extra) = self.files.keys().find(|path| !listed.contains(*path)) {
            let path = extra.to_string();
            return Err(HfError::Extra { path });
        }
        self.listed = true;
        Ok(())
    }

    /// `.cache/huggingface/download/<file>.metadata`: commit, digest and time, one a line.
    fn read_download_records(&mut self, root: &Path) {
        let records = root.join(".cache/huggingface/download");
        for (path, file) in &mut self.files {
            let record = records.join(format!("{path}.metadata"));
            let Ok(bytes) = read_small(&record, path.as_str(), 4096) else {
                continue;
            };
            let text = String::from_utf8_lossy(&bytes);
            let mut lines = text.lines();
            let commit = lines.next().unwrap_or_default();
            file.expected = lines.next().and_then(HfDigest::parse);
            match &self.commit {
                // Files of several commits: none can be named for the whole.
                Some(other) if other != commit => self.commit = Some(String::new()),
                Some(_) => {}
                None => self.commit = Some(commit.to_owned()),
            }
        }
        self.commit = self.commit.take().filter(|c| !c.is_empty());
    }

    /// Reads every file whose digest is known and checks it; returns how many had none to check against.
    ///
    /// # Errors
    /// Names the first file whose bytes are not those of the repository.
    pub fn verify(&self) -> Result<usize, HfError> {
        let mut unknown = 0;
        for (path, file) in &self.files {
            match &file.expected {
                None => unknown += 1,
                Some(digest) => {
                    if !digest.matches(file).map_err(io_error(&file.location))? {
                        let path = path.to_string();
                        return Err(HfError::Altered { path });
                    }
                }
            }
        }
        Ok(unknown)
    }

    /// Verifies the snapshot and copies it into the new bundle directory `dir`, in the native layout, with a
    /// `metadata.json`. A lineage without a base model gets this repository at its commit.
    ///
    /// The result is built and verified like any bundle: pickles, pointers and missing shards are found then.
    ///
    /// # Errors
    /// When the snapshot does not verify, two files would have one place, or `dir` exists or cannot be written.
    pub fn import(&self, dir: &Path, mut metadata: Metadata) -> Result<(), HfError> {
        self.verify()?;
        if let (None, Some(repository)) = (&metadata.lineage.base_model, &self.repository) {
            let mut base = BaseModel::new(repository.as_str());
            base.revision.clone_from(&self.commit);
            metadata.lineage.base_model = Some(base);
        }
        let files = self
            .files
            .iter()
            .map(|(path, file)| (path, file.location.as_path()));
        Ok(arrange(files, dir, &metadata)?)
    }
}

/// The bytes behind an entry, and the digest that a blob's name states.
fn resolve(
    path: &str,
    location: PathBuf,
    link: bool,
    blobs: Option<&Path>,
) -> Result<(PathBuf, Option<HfDigest>), HfError> {
    if !link {
        return Ok((location, None));
    }
    let real = match fs::canonicalize(&location) {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(HfError::Dangling {
                path: path.to_owned(),
            });
        }
        Err(error) => return Err(io_error(&location)(error)),
    };
    let name = real
        .file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default();
    let digest = HfDigest::parse(name);
    // Only whole blobs, directly in this repository's own folder; an unfinished one has a suffix.
    if real.parent() != blobs || blobs.is_none() || digest.is_none() {
        return Err(HfError::Escape {
            path: path.to_owned(),
            target: real.display().to_string(),
        });
    }
    Ok((real, digest))
}
