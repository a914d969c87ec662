//! A bundle as a `ModelPack` artifact: the image manifest that lists it, and the blobs that are its files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{OciError, encode, io_error};
use crate::digest::Digest;
use crate::fs::build::read_small;
use crate::fs::{MANIFEST_FILE, METADATA_FILE, VerifyOptions, verify};
use crate::id::VersionId;
use crate::json;
use crate::kind::ComponentKind;
use crate::manifest::Manifest;
use crate::metadata::Metadata;
use crate::path::{ComponentPath, PathConflict, check_conflicts};

pub(super) const MODEL_MANIFEST: &str = "application/vnd.cncf.model.manifest.v1+json";
const MODEL_CONFIG: &str = "application/vnd.cncf.model.config.v1+json";
const FILE_PATH: &str = "org.cncf.model.filepath";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
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

/// A bundle as a `ModelPack` artifact: what an OCI registry or an image layout holds of it.
///
/// The same bundle gives the same bytes, on every machine.
#[derive(Debug, Clone)]
pub struct OciArtifact {
    manifest: Vec<u8>,
    digest: Digest,
    blobs: Vec<OciBlob>,
}

/// A blob of an artifact.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OciBlob {
    /// The SHA-256 of its bytes.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Where its bytes are.
    pub source: OciSource,
}

/// Where the bytes of a blob are.
#[derive(Debug, Clone)]
#[expect(clippy::exhaustive_enums, reason = "whoever sends blobs handles each")]
pub enum OciSource {
    /// In this file, which may change until it is read: whoever reads it checks the digest.
    File(PathBuf),
    /// These.
    Bytes(Vec<u8>),
}

impl OciArtifact {
    /// The media type of an artifact's manifest, as registries are told.
    pub const MEDIA_TYPE: &'static str = "application/vnd.oci.image.manifest.v1+json";

    /// Lists the bundle in `dir`, which must verify against `manifest`.
    ///
    /// # Errors
    /// When the bundle does not verify.
    pub fn pack(dir: &Path, manifest: &Manifest) -> Result<Self, OciError> {
        verify(dir, manifest, &VerifyOptions::new())?;
        let (mut layers, mut blobs) = (Vec::new(), Vec::new());
        for component in manifest.components() {
            let path = component.path.as_str();
            let (digest, size) = (component.digest, component.size);
            let source = OciSource::File(dir.join(path));
            layers.push(layer(media_type(component.kind), path, &digest, size));
            blobs.push(OciBlob {
                digest,
                size,
                source,
            });
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
                let blob = OciBlob::of(bytes);
                layers.push(layer(DOCUMENT, path, &blob.digest, blob.size));
                blobs.push(blob);
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
        let config = OciBlob::of(encode(&config));
        let image = ImageManifest {
            schema_version: 2,
            media_type: Some(Self::MEDIA_TYPE.to_owned()),
            artifact_type: Some(MODEL_MANIFEST.to_owned()),
            config: Descriptor {
                media_type: MODEL_CONFIG.to_owned(),
                digest: format!("sha256:{}", config.digest),
                size: config.size,
                artifact_type: None,
                annotations: BTreeMap::new(),
            },
            layers,
        };
        blobs.push(config);
        let manifest = encode(&image);
        Ok(Self {
            digest: Digest::of(&manifest),
            manifest,
            blobs,
        })
    }

    /// The image manifest.
    pub fn manifest(&self) -> &[u8] {
        &self.manifest
    }

    /// The digest of the image manifest, by which registries know the artifact.
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// What the manifest refers to. Files of the same content are one blob, which comes more than once.
    pub fn blobs(&self) -> &[OciBlob] {
        &self.blobs
    }

    /// Whether this may be a tag: `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`.
    ///
    /// # Errors
    /// If it may not.
    pub fn check_tag(tag: &str) -> Result<(), OciError> {
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
}

impl OciBlob {
    fn of(bytes: Vec<u8>) -> Self {
        Self {
            digest: Digest::of(&bytes),
            size: bytes.len() as u64,
            source: OciSource::Bytes(bytes),
        }
    }
}

fn layer(media_type: &str, path: &str, digest: &Digest, size: u64) -> Descriptor {
    Descriptor {
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
    }
}

/// The files that an artifact unpacks to, none outside its folder, none in the way of another.
#[derive(Debug, Clone)]
pub struct OciFiles {
    files: BTreeMap<ComponentPath, (Digest, u64)>,
}

impl OciFiles {
    /// Reads the image manifest of an artifact, whose digest the caller has checked; `what` names it in errors.
    ///
    /// # Errors
    /// When it is no `ModelPack` artifact, is packed in a form that is not read here (layers must be single raw files), or has
    /// paths that cannot be in a bundle.
    pub fn parse(what: &str, manifest: &[u8]) -> Result<Self, OciError> {
        let image: ImageManifest =
            json::from_slice(manifest, super::JSON_LIMIT).map_err(|error| OciError::Json {
                path: what.to_owned(),
                error,
            })?;
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
            let file = (super::parse_digest(&layer.digest)?, layer.size);
            if files.insert(path.clone(), file).is_some() {
                let path = path.to_string();
                return Err(PathConflict::Duplicate { path }.into());
            }
        }
        check_conflicts(files.keys())?;
        Ok(Self { files })
    }

    /// The files, ascending by path, each with its digest and size in bytes.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&ComponentPath, &Digest, u64)> {
        self.files
            .iter()
            .map(|(path, (digest, size))| (path, digest, *size))
    }

    /// What the folder holds, once all files are there: an artifact with a `manifest.json` of ours is verified against it, and its version
    /// is returned; of another the files are what they are.
    ///
    /// # Errors
    /// When the manifest is not valid, or the files are not what it says.
    pub fn verify(&self, dir: &Path) -> Result<Option<VersionId>, OciError> {
        let ours = dir.join(MANIFEST_FILE);
        if !self.files.keys().any(|path| path.as_str() == MANIFEST_FILE) {
            return Ok(None);
        }
        let name = ours.display().to_string();
        let bytes = read_small(&ours, &name, Manifest::MAX_BYTES)
            .map_err(|e| io_error(&ours)(std::io::Error::other(e.to_string())))?;
        let manifest = Manifest::parse(&bytes)?;
        Ok(Some(verify(dir, &manifest, &VerifyOptions::new())?))
    }
}
