//! CNCF `ModelPack` artifacts in an OCI image layout: a bundle out, and in again.
//!
//! Every file is one uncompressed layer whose digest is the file's own SHA-256, so nothing is hashed twice and files
//! that two versions share are one blob. The bundle's `metadata.json` and `manifest.json` travel as documents.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::build::read_small;
use super::{MANIFEST_FILE, METADATA_FILE, VerifyError, VerifyOptions, verify};
use crate::digest::Digest;
use crate::id::VersionId;
use crate::json::{self, JsonError};
use crate::kind::ComponentKind;
use crate::manifest::{Manifest, ManifestError};
use crate::metadata::Metadata;
use crate::path::{ComponentPath, PathConflict, PathError, check_conflicts};
use crate::registry::{StoreError, copy_verified};

/// The largest index, manifest or configuration that is read.
const JSON_LIMIT: u64 = 64 << 20;

const IMAGE_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const MODEL_MANIFEST: &str = "application/vnd.cncf.model.manifest.v1+json";
const MODEL_CONFIG: &str = "application/vnd.cncf.model.config.v1+json";
const FILE_PATH: &str = "org.cncf.model.filepath";
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
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    manifests: Vec<Descriptor>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ImageManifest {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> OciError + '_ {
    move |error| OciError::Io {
        path: path.display().to_string(),
        error,
    }
}

fn check_tag(tag: &str) -> Result<(), OciError> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let fits = (1..=128).contains(&tag.len())
        && tag.starts_with(word)
        && tag.chars().all(|c| word(c) || matches!(c, '.' | '-'));
    if fits {
        return Ok(());
    }
    Err(OciError::Tag {
        tag: tag.to_owned(),
    })
}

/// The media type of a component. There is none for prompts, safety or generation settings: they configure the weights.
const fn media_type(kind: ComponentKind) -> &'static str {
    match kind {
        ComponentKind::Weights | ComponentKind::Adapter => {
            "application/vnd.cncf.model.weight.v1.raw"
        }
        ComponentKind::Code => "application/vnd.cncf.model.code.v1.raw",
        _ => "application/vnd.cncf.model.weight.config.v1.raw",
    }
}

const DOCUMENT: &str = "application/vnd.cncf.model.doc.v1.raw";

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

    /// A JSON blob, checked against its digest.
    fn json<T: serde::de::DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<T, OciError> {
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
        check_size(&descriptor.digest, descriptor, bytes.len() as u64)?;
        parse(&path, &bytes)
    }
}

fn check_size(what: &str, descriptor: &Descriptor, found: u64) -> Result<(), OciError> {
    let stated = descriptor.size;
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
    check_tag(tag)?;
    verify(dir, manifest, &VerifyOptions::new())?;
    let out = Layout(layout);
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(io_error(&blobs))?;
    let mut layers = Vec::new();
    let layer = |media_type: &str, path: &str, digest: &Digest, size: u64| Descriptor {
        media_type: media_type.to_owned(),
        digest: format!("sha256:{digest}"),
        size,
        artifact_type: None,
        annotations: [
            (FILE_PATH.to_owned(), path.to_owned()),
            (
                "org.cncf.model.file.mediatype.untested".to_owned(),
                "true".to_owned(),
            ),
            (
                "org.cncf.model.file.metadata+json".to_owned(),
                // Constants: real owners and times would make every export another artifact.
                serde_json::json!({
                    "name": path, "mode": 420, "uid": 0, "gid": 0, "size": size,
                    "mtime": "1970-01-01T00:00:00Z", "typeflag": 48
                })
                .to_string(),
            ),
        ]
        .into(),
    };
    for component in manifest.components() {
        let path = component.path.as_str();
        out.put_file(&dir.join(path), &component.digest)?;
        layers.push(layer(
            media_type(component.kind),
            path,
            &component.digest,
            component.size,
        ));
    }
    let records = [
        (
            METADATA_FILE,
            Metadata::of(manifest).to_pretty().into_bytes(),
        ),
        (MANIFEST_FILE, manifest.to_bytes()),
    ];
    for (path, bytes) in records {
        if manifest
            .components()
            .iter()
            .all(|c| c.path.as_str() != path)
        {
            let digest = out.put(&bytes)?;
            layers.push(layer(DOCUMENT, path, &digest, bytes.len() as u64));
        }
    }
    let licences: BTreeSet<&str> = manifest.licences().iter().map(|l| l.id.as_str()).collect();
    let config = serde_json::json!({
        "descriptor": {
            "name": manifest.name(),
            "version": manifest.version(),
            "revision": manifest.digest(),
            "licenses": licences,
        },
        "modelfs": {
            "type": "layers",
            "diffIds": layers.iter().map(|l| l.digest.as_str()).collect::<Vec<_>>(),
        },
        "config": {},
    });
    let config = encode(&config);
    let image = ImageManifest {
        schema_version: 2,
        media_type: Some(IMAGE_MANIFEST.to_owned()),
        artifact_type: Some(MODEL_MANIFEST.to_owned()),
        config: Descriptor {
            media_type: MODEL_CONFIG.to_owned(),
            digest: format!("sha256:{}", out.put(&config)?),
            size: config.len() as u64,
            artifact_type: None,
            annotations: BTreeMap::new(),
        },
        layers,
    };
    let image = encode(&image);
    let digest = out.put(&image)?;
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
        media_type: IMAGE_MANIFEST.to_owned(),
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
    let image: ImageManifest = source.json(descriptor)?;
    let kind = image
        .artifact_type
        .as_deref()
        .unwrap_or(&image.config.media_type);
    if kind != MODEL_MANIFEST && kind != MODEL_CONFIG {
        return Err(OciError::Unsupported {
            what: "artifact type",
            found: crate::version::clip(kind).to_owned(),
        });
    }
    let mut files = BTreeMap::new();
    for layer in &image.layers {
        if !layer.media_type.starts_with("application/vnd.cncf.model.")
            || layer.media_type.strip_suffix(".raw").is_none()
        {
            return Err(OciError::Unsupported {
                what: "layer",
                found: crate::version::clip(&layer.media_type).to_owned(),
            });
        }
        let path = layer.annotations.get(FILE_PATH).map_or("", String::as_str);
        let path = ComponentPath::new(path)?;
        if files.insert(path.clone(), layer).is_some() {
            let path = path.to_string();
            return Err(PathConflict::Duplicate { path }.into());
        }
    }
    check_conflicts(files.keys())?;
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
    files: &BTreeMap<ComponentPath, &Descriptor>,
    dir: &Path,
) -> Result<Option<VersionId>, OciError> {
    for (path, layer) in files {
        let digest = parse_digest(&layer.digest)?;
        let blob = source.blob(&digest);
        let mut bytes = match File::open(&blob) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(OciError::Missing(digest));
            }
            Err(error) => return Err(io_error(&blob)(error)),
        };
        let target = dir.join(path.as_str());
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(io_error(parent))?;
        }
        let mut file = File::create_new(&target).map_err(io_error(&target))?;
        let found = copy_verified(&digest, &mut bytes, &mut file)?;
        check_size(path.as_str(), layer, found)?;
    }
    let ours = dir.join(MANIFEST_FILE);
    if !files.keys().any(|path| path.as_str() == MANIFEST_FILE) {
        return Ok(None);
    }
    let name = ours.display().to_string();
    let bytes = read_small(&ours, &name, Manifest::MAX_BYTES)
        .map_err(|e| io_error(&ours)(io::Error::other(e.to_string())))?;
    let manifest = Manifest::parse(&bytes)?;
    Ok(Some(verify(dir, &manifest, &VerifyOptions::new())?))
}
