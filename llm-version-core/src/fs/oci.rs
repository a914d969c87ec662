//! CNCF `ModelPack` artifacts in an OCI image layout: a bundle out, and in again.
//!
//! Every file is one uncompressed layer whose digest is the file's own SHA-256, so nothing is hashed twice and files
//! that two versions share are one blob. The bundle's `metadata.json` and `manifest.json` travel as documents.

mod artifact;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::VerifyError;
use super::build::read_small;
use crate::digest::Digest;
use crate::id::VersionId;
use crate::json::{self, JsonError};
use crate::manifest::{Manifest, ManifestError};
use crate::path::{PathConflict, PathError};
use crate::registry::{StoreError, copy_verified};
use artifact::{Descriptor, MODEL_MANIFEST};

pub use artifact::{OciArtifact, OciBlob, OciFiles, OciSource};

/// The largest index, manifest or configuration that is read.
const JSON_LIMIT: u64 = 64 << 20;

const TAG: &str = "org.opencontainers.image.ref.name";

/// Why a layout could not be written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OciError {
    /// Something cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// What.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// Not JSON of the expected shape.
    #[error("{path}: {error}")]
    Json {
        /// Which file.
        path: String,
        /// What is wrong.
        error: JsonError,
    },
    /// A tag outside `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`.
    #[error(
        "tag {tag:?} is not allowed: letters, digits, '_', '.' and '-', at most 128, not starting with '.' or '-'"
    )]
    Tag {
        /// The tag.
        tag: String,
    },
    /// No such tag, or more than one without a choice.
    #[error("no single artifact is meant; the layout has these tags: {}", tags.join(", "))]
    Choice {
        /// The tags there are.
        tags: Vec<String>,
    },
    /// Something that is not a `ModelPack` artifact, or a form of it that is not read here.
    #[error("{what}: {found:?} is not supported here")]
    Unsupported {
        /// What.
        what: &'static str,
        /// What was found.
        found: String,
    },
    /// A blob is missing.
    #[error("blob {0} is missing")]
    Missing(Digest),
    /// A blob has another size than is stated of it.
    #[error(
        "{what}: {found} bytes where {stated} are stated; the artifact was altered or badly made"
    )]
    Size {
        /// The blob, or the path of its layer.
        what: String,
        /// Bytes stated.
        stated: u64,
        /// Bytes found.
        found: u64,
    },
    /// A blob's bytes are not what its digest says.
    #[error(transparent)]
    Blob(#[from] StoreError),
    /// A layer's path cannot be in a bundle.
    #[error("layer: {0}")]
    Path(#[from] PathError),
    /// Layers that cannot lie side by side.
    #[error("layers: {0}")]
    Conflict(#[from] PathConflict),
    /// The manifest that travels with the files is not valid.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// What was unpacked is not what the manifest says.
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    manifests: Vec<Descriptor>,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> OciError + '_ {
    move |error| OciError::Io {
        path: path.display().to_string(),
        error,
    }
}

/// Writes a file under a temporary name and renames it, so that a crash leaves no part of it under its own.
fn write(
    path: &Path,
    fill: impl FnOnce(&mut File) -> Result<(), OciError>,
) -> Result<(), OciError> {
    let partial = path.with_extension("partial");
    let mut file = File::create(&partial).map_err(io_error(&partial))?;
    fill(&mut file)?;
    file.sync_all().map_err(io_error(&partial))?;
    fs::rename(&partial, path).map_err(io_error(path))
}

struct Layout<'a>(&'a Path);

impl Layout<'_> {
    fn blob(&self, digest: &Digest) -> PathBuf {
        self.0.join("blobs/sha256").join(digest.to_string())
    }

    fn put(&self, bytes: &[u8]) -> Result<Digest, OciError> {
        let digest = Digest::of(bytes);
        let path = self.blob(&digest);
        write(&path, |f| f.write_all(bytes).map_err(io_error(&path)))?;
        Ok(digest)
    }

    fn put_file(&self, source: &Path, digest: &Digest) -> Result<(), OciError> {
        let path = self.blob(digest);
        if path.is_file() {
            return Ok(());
        }
        let mut file = File::open(source).map_err(io_error(source))?;
        write(&path, |f| {
            Ok(copy_verified(digest, &mut file, f).map(|_| ())?)
        })
    }

    /// A small blob, checked against its digest.
    fn read(&self, descriptor: &Descriptor) -> Result<Vec<u8>, OciError> {
        let digest = parse_digest(&descriptor.digest)?;
        let path = self.blob(&digest);
        if !path.is_file() {
            return Err(OciError::Missing(digest));
        }
        let bytes = small(&path)?;
        let found = Digest::of(&bytes);
        if found != digest {
            let expected = digest;
            return Err(StoreError::WrongDigest { expected, found }.into());
        }
        check_size(&descriptor.digest, descriptor.size, bytes.len() as u64)?;
        Ok(bytes)
    }
}

fn check_size(what: &str, stated: u64, found: u64) -> Result<(), OciError> {
    if found == stated {
        return Ok(());
    }
    Err(OciError::Size {
        what: what.to_owned(),
        stated,
        found,
    })
}

fn small(path: &Path) -> Result<Vec<u8>, OciError> {
    let name = path.display().to_string();
    read_small(path, &name, JSON_LIMIT).map_err(|e| io_error(path)(io::Error::other(e.to_string())))
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, OciError> {
    json::from_slice(bytes, JSON_LIMIT).map_err(|error| OciError::Json {
        path: path.display().to_string(),
        error,
    })
}

fn parse_digest(text: &str) -> Result<Digest, OciError> {
    let hex = text
        .strip_prefix("sha256:")
        .and_then(|hex| hex.parse().ok());
    hex.ok_or_else(|| OciError::Unsupported {
        what: "digest",
        found: crate::version::clip(text).to_owned(),
    })
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    // Strings and integers serialise without failing.
    serde_json::to_vec(value).unwrap_or_default()
}

/// Writes the bundle in `dir`, which must verify against `manifest`, into the image layout `layout` under `tag`.
///
/// One export at a time may write to a layout. It may hold other artifacts already; an artifact of the same tag is replaced in its index. The same bundle
/// gives the same bytes. Returns the digest of the artifact's manifest, by which registries know it.
///
/// # Errors
/// When the bundle does not verify, the tag is not allowed, or something cannot be written.
pub fn export_oci(
    dir: &Path,
    manifest: &Manifest,
    layout: &Path,
    tag: &str,
) -> Result<Digest, OciError> {
    OciArtifact::check_tag(tag)?;
    let artifact = OciArtifact::pack(dir, manifest)?;
    let out = Layout(layout);
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(io_error(&blobs))?;
    for blob in artifact.blobs() {
        match &blob.source {
            OciSource::File(path) => out.put_file(path, &blob.digest)?,
            OciSource::Bytes(bytes) => drop(out.put(bytes)?),
        }
    }
    let image = artifact.manifest();
    let digest = out.put(image)?;
    let index_path = layout.join("index.json");
    let mut index = if index_path.is_file() {
        parse(&index_path, &small(&index_path)?)?
    } else {
        Index {
            schema_version: 2,
            media_type: Some("application/vnd.oci.image.index.v1+json".to_owned()),
            manifests: Vec::new(),
        }
    };
    index
        .manifests
        .retain(|m| m.annotations.get(TAG).map(String::as_str) != Some(tag));
    index.manifests.push(Descriptor {
        media_type: OciArtifact::MEDIA_TYPE.to_owned(),
        digest: format!("sha256:{digest}"),
        size: image.len() as u64,
        artifact_type: Some(MODEL_MANIFEST.to_owned()),
        annotations: [(TAG.to_owned(), tag.to_owned())].into(),
    });
    let marker = layout.join("oci-layout");
    write(&marker, |f| {
        let text = b"{\"imageLayoutVersion\":\"1.0.0\"}";
        f.write_all(text).map_err(io_error(&marker))
    })?;
    // Last: until here the layout does not mention the artifact.
    write(&index_path, |f| {
        f.write_all(&encode(&index)).map_err(io_error(&index_path))
    })?;
    Ok(digest)
}

/// Unpacks the artifact `tag` of an image layout (the only one, when `None`) into the new folder `dir`.
///
/// Every blob is checked against its digest and every path against the rules of bundles. An artifact that holds a
/// `manifest.json` of ours is verified against it, and the version id is returned; of others the files are unpacked as
/// they are, to be arranged and built.
///
/// # Errors
/// When something is missing, altered, climbs out of the folder, or is packed in a form that is not read here (layers
/// must be single raw files). What was unpacked until then is removed.
pub fn import_oci(
    layout: &Path,
    tag: Option<&str>,
    dir: &Path,
) -> Result<Option<VersionId>, OciError> {
    let index_path = layout.join("index.json");
    let index: Index = parse(&index_path, &small(&index_path)?)?;
    let mut tags: Vec<String> = Vec::new();
    let mut chosen = Vec::new();
    for descriptor in &index.manifests {
        let found = descriptor.annotations.get(TAG);
        tags.extend(found.cloned());
        if tag.is_none_or(|tag| found.is_some_and(|f| f == tag)) {
            chosen.push(descriptor);
        }
    }
    let [descriptor] = &chosen[..] else {
        return Err(OciError::Choice { tags });
    };
    let source = Layout(layout);
    let name = format!("blob {}", descriptor.digest);
    let files = OciFiles::parse(&name, &source.read(descriptor)?)?;
    fs::create_dir(dir).map_err(io_error(dir))?;
    let unpacked = unpack(&source, &files, dir);
    if unpacked.is_err() {
        // The folder was made above; what cannot be removed stays, unverified and unnamed.
        let _ = fs::remove_dir_all(dir);
    }
    unpacked
}

fn unpack(
    source: &Layout<'_>,
    files: &OciFiles,
    dir: &Path,
) -> Result<Option<VersionId>, OciError> {
    for (path, digest, stated) in files.iter() {
        let blob = source.blob(digest);
        let mut bytes = match File::open(&blob) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(OciError::Missing(*digest));
            }
            Err(error) => return Err(io_error(&blob)(error)),
        };
        let target = dir.join(path.as_str());
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(io_error(parent))?;
        }
        let mut file = File::create_new(&target).map_err(io_error(&target))?;
        let found = copy_verified(digest, &mut bytes, &mut file)?;
        check_size(path.as_str(), stated, found)?;
    }
    files.verify(dir)
}
