//! Artifacts of Weights & Biases, as they are downloaded or cached, and the files of its runs: verified offline, then laid out as a
//! bundle.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding as _};
use md5::{Digest as _, Md5};
use serde::Deserialize;
use thiserror::Error;
use xxhash_rust::xxh3::Xxh3;

use super::arrange::{ArrangeError, arrange};
use super::build::read_small;
use super::dvc::hex;
use super::problem::{Problem, ProblemKind};
use super::walk::{Found, Symlinks, walk};
use crate::json::{self, JsonError};
use crate::lineage::BaseModel;
use crate::metadata::Metadata;
use crate::path::{ComponentPath, PathError};

/// The largest manifest that is read.
const MANIFEST_LIMIT: u64 = 64 << 20;
/// What the client itself writes into the folder of a run.
const RECORDS: [&str; 5] = [
    "conda-environment.yaml",
    "config.yaml",
    "diff.patch",
    "output.log",
    "requirements.txt",
];

/// Files of Weights & Biases, as they lie on disk.
///
/// A download (`artifacts/<name>:v<N>`) holds the files and nothing else: what they must hash to is in the artifact's manifest
/// (`wandb_manifest.json`, which the client keeps on its server; in Python `artifact.manifest.to_manifest_json()`). Without it nothing is
/// checked, and nothing that is missing is noticed. Its digests are MD5 or XXH128: they tell damage, not forgery. The identity of a bundle
/// is never taken from them.
///
/// What was logged and not yet uploaded lies under random names in the client's staging folder, and only the run's own log says which is which:
/// that cannot be imported; sync the run and download the artifact.
///
/// ```no_run
/// # fn import() -> Result<(), Box<dyn std::error::Error>> {
/// use llm_version_core::fs::WandbFolder;
/// use llm_version_core::{Metadata, Name, Version};
///
/// let metadata = Metadata::new(Name::new("chat")?, Version::new(1, 0, 0));
/// let found = WandbFolder::open("artifacts/chat:v3".as_ref(), Some("chat-v3.json".as_ref()))?;
/// assert_eq!((found.name.as_deref(), found.version.as_deref()), (Some("chat"), Some("v3")));
/// found.import("chat-1.0.0".as_ref(), metadata)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WandbFolder {
    /// The artifact's name, where the folder's name says it.
    pub name: Option<String>,
    /// The artifact's version, such as `v3`, where the folder's name says it.
    pub version: Option<String>,
    /// The digest by which Weights & Biases knows the artifact, computed from its manifest; if all of its digests are MD5.
    pub digest: Option<String>,
    /// The files, by their path in the artifact.
    pub files: BTreeMap<ComponentPath, WandbFile>,
    /// Whether a manifest was at hand, so that no file can be missing unnoticed.
    pub listed: bool,
}

/// A file of an artifact or of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WandbFile {
    /// Where its bytes are.
    pub location: PathBuf,
    /// What its bytes must hash to, where that is known. Of what an artifact only refers to (`s3://`, `https://`) it is not.
    pub expected: Option<WandbDigest>,
    /// Its size in bytes.
    pub size: u64,
}

/// A digest in a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WandbDigest {
    /// MD5.
    Md5([u8; 16]),
    /// `XXH3` of 128 bits, big end first.
    Xxh128([u8; 16]),
}

/// Why files of Weights & Biases were refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WandbError {
    /// Something cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// What.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// Entries that no download has: links, special files, odd names.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Tree(Vec<Problem>),
    /// A manifest that cannot be read.
    #[error("{path}: {error}")]
    Manifest {
        /// The manifest.
        path: String,
        /// What is wrong.
        error: JsonError,
    },
    /// A manifest of another kind.
    #[error("{path}: a manifest of version {version}; only version 1 is known")]
    Unsupported {
        /// The manifest.
        path: String,
        /// Its version.
        version: u64,
    },
    /// A path in the manifest that cannot be part of a bundle, or would leave it.
    #[error("{0}")]
    Path(#[from] PathError),
    /// A digest that is none.
    #[error(
        "{path}: the manifest's digest {digest:?} is no {algorithm}; take the manifest from the server again"
    )]
    BadDigest {
        /// The file.
        path: String,
        /// What stands there.
        digest: String,
        /// What should.
        algorithm: String,
    },
    /// A file that the manifest has and the folder or cache has not.
    #[error("{path}: is in the artifact's manifest and not at {location}; download it")]
    Missing {
        /// The file.
        path: String,
        /// Where it should be.
        location: String,
    },
    /// A file that the manifest does not have.
    #[error("{path}: is not in the artifact's manifest; remove it")]
    Extra {
        /// The file.
        path: String,
    },
    /// A file that the artifact only refers to, so that no cache holds it under a digest.
    #[error("{path}: only refers to {target}; download the artifact and open its folder")]
    Reference {
        /// The file.
        path: String,
        /// Where it is.
        target: String,
    },
    /// A file whose bytes are not what the manifest says.
    #[error("{path}: its bytes are not those of the artifact; download it again")]
    Altered {
        /// The file.
        path: String,
    },
    /// Two files that would have one place in a bundle.
    #[error("{path}: two files of the artifact would lie here")]
    Twice {
        /// The place in the bundle.
        path: String,
    },
    /// Nothing there.
    #[error("{path}: no files; is it a download, or a run with saved files?")]
    Empty {
        /// The folder.
        path: String,
    },
}

impl From<ArrangeError> for WandbError {
    fn from(error: ArrangeError) -> Self {
        match error {
            ArrangeError::Io { path, error } => Self::Io { path, error },
            ArrangeError::Twice { path } => Self::Twice { path },
        }
    }
}

#[derive(Deserialize)]
struct Manifest {
    version: u64,
    contents: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    digest: String,
    #[serde(rename = "ref", default)]
    reference: Option<String>,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    extra: Extra,
}

/// What storages say of a file; of it only the algorithm counts.
#[derive(Default, Deserialize)]
struct Extra {
    #[serde(rename = "alg", default)]
    algorithm: Option<String>,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> WandbError + '_ {
    move |error| WandbError::Io {
        path: path.display().to_string(),
        error,
    }
}

impl WandbDigest {
    fn bytes(&self) -> &[u8; 16] {
        match self {
            Self::Md5(bytes) | Self::Xxh128(bytes) => bytes,
        }
    }

    fn matches(&self, location: &Path) -> io::Result<bool> {
        let (mut file, mut block) = (File::open(location)?, vec![0; 256 << 10]);
        let mut each = |update: &mut dyn FnMut(&[u8])| loop {
            match file.read(&mut block) {
                Ok(0) => return Ok(()),
                Ok(read) => update(block.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        let found: [u8; 16] = match self {
            Self::Md5(_) => {
                let mut hash = Md5::new();
                each(&mut |bytes| hash.update(bytes))?;
                hash.finalize().into()
            }
            Self::Xxh128(_) => {
                let mut hash = Xxh3::new();
                each(&mut |bytes| hash.update(bytes))?;
                hash.digest128().to_be_bytes()
            }
        };
        Ok(found == *self.bytes())
    }
}

impl Entry {
    /// What the file must hash to; nothing for what is only referred to, whose digest is whatever its storage calls one.
    fn expected(&self, path: &str) -> Result<Option<WandbDigest>, WandbError> {
        if self.reference.is_some() {
            return Ok(None);
        }
        let algorithm = self.extra.algorithm.as_deref().unwrap_or("MD5");
        let mut bytes = [0; 16];
        let whole = Base64::decode(&self.digest, &mut bytes).is_ok_and(|found| found.len() == 16);
        match algorithm {
            "MD5" if whole => Ok(Some(WandbDigest::Md5(bytes))),
            "XXH128" if whole => Ok(Some(WandbDigest::Xxh128(bytes))),
            _ => Err(WandbError::BadDigest {
                path: path.to_owned(),
                digest: self.digest.clone(),
                algorithm: algorithm.to_owned(),
            }),
        }
    }
}

impl Manifest {
    fn read(path: &Path) -> Result<Self, WandbError> {
        let name = path.display().to_string();
        let bytes = read_small(path, &name, MANIFEST_LIMIT)
            .map_err(|e| io_error(path)(io::Error::other(e.to_string())))?;
        let manifest: Self =
            json::from_slice(&bytes, MANIFEST_LIMIT).map_err(|error| WandbError::Manifest {
                path: name.clone(),
                error,
            })?;
        match manifest.version {
            1 => Ok(manifest),
            version => Err(WandbError::Unsupported {
                path: name,
                version,
            }),
        }
    }

    /// What Weights & Biases calls the artifact's digest: the MD5 over paths and digests, in order.
    fn digest(&self) -> Option<String> {
        let mut hash = Md5::new_with_prefix("wandb-artifact-manifest-v1\n");
        for (path, entry) in &self.contents {
            if entry.extra.algorithm.as_deref().is_some_and(|a| a != "MD5") {
                return None;
            }
            hash.update(format!("{path}:{}\n", entry.digest));
        }
        Some(hex(&hash.finalize()))
    }
}

impl WandbFolder {
    fn of(files: BTreeMap<ComponentPath, WandbFile>, folder: &Path) -> Result<Self, WandbError> {
        if files.is_empty() {
            let path = folder.display().to_string();
            return Err(WandbError::Empty { path });
        }
        Ok(Self {
            name: None,
            version: None,
            digest: None,
            files,
            listed: false,
        })
    }

    /// Opens what an artifact was downloaded to: `artifacts/<name>:v<N>` (on Windows `<name>-v<N>`), or any other folder. With its
    /// manifest, every file of it must be there with the stated size, and no other.
    ///
    /// # Errors
    /// Names what is missing, extra or of another size, every link and odd name, or what is wrong with the manifest.
    pub fn open(folder: &Path, manifest: Option<&Path>) -> Result<Self, WandbError> {
        let tree = walk(folder, Symlinks::Refuse, &|_| true).map_err(io_error(folder))?;
        if !tree.problems.is_empty() {
            return Err(WandbError::Tree(tree.problems));
        }
        let files = tree.files.into_iter().map(file).collect();
        let mut me = Self::of(files, folder)?;
        if let Some((name, version)) = folder.file_name().and_then(|n| named(n.to_str()?)) {
            (me.name, me.version) = (Some(name), Some(version));
        }
        if let Some(manifest) = manifest {
            me.hold_against(&Manifest::read(manifest)?, folder)?;
        }
        Ok(me)
    }

    /// Finds the files of an artifact in the client's cache (`~/.cache/wandb/artifacts`), where they lie by their digests.
    ///
    /// # Errors
    /// Names what is missing or of another size, what the artifact only refers to, or what is wrong with the manifest.
    pub fn cached(cache: &Path, manifest: &Path) -> Result<Self, WandbError> {
        let known = Manifest::read(manifest)?;
        let mut files = BTreeMap::new();
        for (path, entry) in &known.contents {
            let key = ComponentPath::new(path.as_str())?;
            let Some(expected) = entry.expected(path)? else {
                return Err(WandbError::Reference {
                    path: path.clone(),
                    target: entry.reference.clone().unwrap_or_default(),
                });
            };
            let algorithm = match expected {
                WandbDigest::Md5(_) => "md5",
                WandbDigest::Xxh128(_) => "xxh128",
            };
            let id = hex(expected.bytes());
            let (first, rest) = id.split_at(2);
            let location = cache.join("obj").join(algorithm).join(first).join(rest);
            let size = match fs::symlink_metadata(&location) {
                Ok(found) if found.is_file() => found.len(),
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error(&location)(error));
                }
                _ => {
                    return Err(WandbError::Missing {
                        path: path.clone(),
                        location: location.display().to_string(),
                    });
                }
            };
            let expected = Some(expected);
            let file = WandbFile {
                location,
                expected,
                size,
            };
            files.insert(key, file);
        }
        let mut me = Self::of(files, cache)?;
        me.hold_against(&known, cache)?;
        Ok(me)
    }

    /// Opens the files that a run has saved: `wandb/run-<time>-<id>/files`, of which the client's own records are left out. The client
    /// links to what it saves: those links are followed into the folder `links`, such as the one that the run was started in, and nowhere
    /// else. Nothing says what these files must hash to.
    ///
    /// # Errors
    /// Names every link that leads elsewhere or nowhere, and every odd name.
    pub fn run(folder: &Path, links: Option<&Path>) -> Result<Self, WandbError> {
        let root = folder.join("files");
        let tree = walk(&root, Symlinks::InsideOnly, &|_| true).map_err(io_error(&root))?;
        let mut files: BTreeMap<_, _> = tree.files.into_iter().map(file).collect();
        let links = match links {
            Some(links) => Some(fs::canonicalize(links).map_err(io_error(links))?),
            None => None,
        };
        let mut problems = Vec::new();
        for problem in tree.problems {
            match (&problem.kind, &links) {
                (ProblemKind::SymlinkEscape { .. }, Some(links)) => {
                    let location = root.join(&problem.path);
                    let real = fs::canonicalize(&location).map_err(io_error(&location))?;
                    let found = fs::symlink_metadata(&real).map_err(io_error(&real))?;
                    if !real.starts_with(links) || !found.is_file() {
                        problems.push(problem);
                        continue;
                    }
                    let file = WandbFile {
                        location: real,
                        expected: None,
                        size: found.len(),
                    };
                    files.insert(ComponentPath::new(problem.path)?, file);
                }
                _ => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            return Err(WandbError::Tree(problems));
        }
        files.retain(|path, _| !is_record(path.as_str()));
        Self::of(files, &root)
    }

    /// Every file of the manifest must be here, and no other.
    fn hold_against(&mut self, manifest: &Manifest, folder: &Path) -> Result<(), WandbError> {
        for (path, entry) in &manifest.contents {
            let key = ComponentPath::new(path.as_str())?;
            let expected = entry.expected(path)?;
            let Some(file) = self.files.get_mut(&key) else {
                return Err(WandbError::Missing {
                    path: path.clone(),
                    location: folder.join(path).display().to_string(),
                });
            };
            if entry.size.is_some_and(|size| size != file.size) {
                return Err(WandbError::Altered { path: path.clone() });
            }
            file.expected = expected;
        }
        let unknown = |path: &&ComponentPath| !manifest.contents.contains_key(path.as_str());
        if let Some(extra) = self.files.keys().find(unknown) {
            let path = extra.to_string();
            return Err(WandbError::Extra { path });
        }
        (self.listed, self.digest) = (true, manifest.digest());
        Ok(())
    }

    /// Reads every file whose digest is known and checks it; returns how many had none to check against.
    ///
    /// # Errors
    /// Names the first file whose bytes are not those of the artifact.
    pub fn verify(&self) -> Result<usize, WandbError> {
        let mut unknown = 0;
        for (path, file) in &self.files {
            let Some(digest) = &file.expected else {
                unknown += 1;
                continue;
            };
            let same = digest.matches(&file.location);
            if !same.map_err(io_error(&file.location))? {
                let path = path.to_string();
                return Err(WandbError::Altered { path });
            }
        }
        Ok(unknown)
    }

    /// Verifies the files and copies them into the new bundle directory `dir`, in the native layout, with a `metadata.json`. A lineage without
    /// a base model gets this artifact at its version.
    ///
    /// The result is built and verified like any bundle: pickles, pointers and missing shards are found then.
    ///
    /// # Errors
    /// When a file does not verify, two files would have one place, or `dir` exists or cannot be written.
    pub fn import(&self, dir: &Path, mut metadata: Metadata) -> Result<(), WandbError> {
        self.verify()?;
        if let (None, Some(name)) = (&metadata.lineage.base_model, &self.name) {
            let mut base = BaseModel::new(name.as_str());
            base.revision.clone_from(&self.version);
            metadata.lineage.base_model = Some(base);
        }
        let files = self.files.iter();
        let files = files.map(|(path, file)| (path, file.location.as_path()));
        Ok(arrange(files, dir, &metadata)?)
    }
}

fn file(found: Found) -> (ComponentPath, WandbFile) {
    let file = WandbFile {
        location: found.location,
        expected: None,
        size: found.stamp.size,
    };
    (found.path, file)
}

/// The artifact and the version that a download folder is named after.
fn named(folder: &str) -> Option<(String, String)> {
    let (name, version) = folder
        .rsplit_once(":v")
        .or_else(|| folder.rsplit_once("-v"))?;
    let number = !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit());
    (number && !name.is_empty()).then(|| (name.to_owned(), format!("v{version}")))
}

/// Whether the client has written it, and not the run: by the names that it gives.
fn is_record(path: &str) -> bool {
    !path.contains('/') && (RECORDS.contains(&path) || path.starts_with("wandb"))
}
