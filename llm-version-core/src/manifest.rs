//! The manifest: the canonical list of a bundle's components, its digest, and what is recorded beside it.
//!
//! `CANONICAL.md` in this crate specifies the byte form for other implementations.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::contract::Contract;
use crate::digest::Digest;
use crate::id::VersionId;
use crate::json::{self, JsonError, MAX_INTEGER};
use crate::kind::ComponentKind;
use crate::lineage::{Licence, Lineage};
use crate::name::Name;
use crate::path::{ComponentPath, PathConflict, check_conflicts};
use crate::version::{Version, clip};

/// Separates bundle digests from every other use of SHA-256.
const BUNDLE_DOMAIN: &[u8] = b"llm-version/bundle/1\0";
/// Separates the digest of a manifest's bytes.
const RECORD_DOMAIN: &[u8] = b"llm-version/manifest/1\0";

/// One file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
// Fields stand in ascending order: that is the canonical form.
pub struct Component {
    /// SHA-256 of each chunk of [`CHUNK_BYTES`] bytes, the last one shorter; empty where not recorded.
    ///
    /// A claim beside the digest, not part of it: see [`Manifest::record_digest`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chunks: Vec<Digest>,
    /// SHA-256 of the whole file.
    pub digest: Digest,
    /// What the component is.
    pub kind: ComponentKind,
    /// Where it lies in the bundle.
    pub path: ComponentPath,
    /// Its size in bytes.
    pub size: u64,
    /// The tensors of a safetensors file, ordered by name; empty where not recorded.
    ///
    /// A claim beside the digest, not part of it: see [`Manifest::record_digest`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<Tensor>,
}

/// Bytes in a chunk whose digest is recorded: 64 MiB.
pub const CHUNK_BYTES: u64 = 64 << 20;

/// A tensor of a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Tensor {
    /// SHA-256 of the tensor's bytes.
    pub digest: Digest,
    /// Element type as the file spells it, such as `BF16`.
    pub dtype: String,
    /// The tensor's name.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
}

impl Tensor {
    /// A tensor from its parts.
    pub fn new(
        name: impl Into<String>,
        dtype: impl Into<String>,
        shape: Vec<u64>,
        digest: Digest,
    ) -> Self {
        Self {
            digest,
            dtype: dtype.into(),
            name: name.into(),
            shape,
        }
    }
}

impl Component {
    /// A component without chunk or tensor digests.
    pub const fn new(path: ComponentPath, kind: ComponentKind, size: u64, digest: Digest) -> Self {
        Self {
            chunks: Vec::new(),
            digest,
            kind,
            path,
            size,
            tensors: Vec::new(),
        }
    }

    /// The chunks, by number, that hold `range`, with the bytes that each covers: what must be read to verify the range.
    /// Empty where no chunk digests are recorded, or nothing of the range lies in the file.
    pub fn chunks_of(&self, range: Range<u64>) -> impl Iterator<Item = (usize, Range<u64>)> + '_ {
        let end = range.end.min(self.size);
        let first = range.start / CHUNK_BYTES;
        let last = end.div_ceil(CHUNK_BYTES).min(self.chunks.len() as u64);
        let numbers = if range.start < end { first..last } else { 0..0 };
        numbers.filter_map(|number| {
            let start = number * CHUNK_BYTES;
            let bytes = start..self.size.min(start + CHUNK_BYTES);
            Some((usize::try_from(number).ok()?, bytes))
        })
    }

    /// Whether `bytes` are chunk `number`. As with all chunk digests, this says no more than the manifest, which must be
    /// trusted by its [record digest](Manifest::record_digest).
    pub fn verify_chunk(&self, number: usize, bytes: &[u8]) -> bool {
        self.chunks.get(number) == Some(&Digest::of(bytes))
    }
}

/// Everything a manifest is made of; [`Draft::finish`] checks it and computes the digest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Draft {
    /// The bundle's name.
    pub name: Name,
    /// The bundle's version.
    pub version: Version,
    /// The components, in any order.
    pub components: Vec<Component>,
    /// The interface contract.
    pub contract: Contract,
    /// Versions of what the bundle runs on.
    pub dependencies: BTreeMap<String, String>,
    /// Licences.
    pub licences: BTreeSet<Licence>,
    /// Where the version comes from.
    pub lineage: Lineage,
}

/// The canonical list of a bundle's components with their digests, plus contract, dependencies, licences and lineage.
///
/// A manifest that exists is valid: paths are unique on every file system, components are sorted, the digest in the id
/// is the one computed from the content. [`Manifest::parse`] accepts exactly the bytes that [`Manifest::to_bytes`]
/// writes and nothing else, so no second spelling of a manifest exists.
///
/// ```
/// use llm_version_core::{Component, ComponentKind, Digest, Draft, Manifest, Name, Version};
///
/// let prompt = b"You are helpful.";
/// let mut draft = Draft::new(Name::new("chat")?, Version::new(1, 0, 0));
/// draft.components.push(Component::new(
///     "prompt/system.txt".parse()?, ComponentKind::Prompt, prompt.len() as u64, Digest::of(prompt),
/// ));
/// let manifest = draft.finish()?;
/// assert_eq!(Manifest::parse(&manifest.to_bytes())?, manifest);
/// assert!(manifest.id().to_string().starts_with("chat/v1.0.0-"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    id: VersionId,
    draft: Draft,
}

/// Why a manifest was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Not JSON of the manifest's schema.
    #[error("manifest: {0}")]
    Json(#[from] JsonError),
    /// The bytes differ from the canonical form of what they say.
    #[error(
        "manifest: byte {at} differs from the canonical form; whitespace, field order, escapes and number forms have one spelling"
    )]
    NotCanonical {
        /// First differing byte.
        at: usize,
    },
    /// The id's digest is not the one computed from the content.
    #[error("manifest of {name} says digest {stated}, its content has {computed}; it was altered")]
    WrongDigest {
        /// The name and version stated.
        name: String,
        /// The digest stated.
        stated: Digest,
        /// The digest of the content.
        computed: Digest,
    },
    /// No components.
    #[error("a bundle needs at least one component")]
    Empty,
    /// Paths that cannot stand side by side.
    #[error("manifest: {0}")]
    Paths(#[from] PathConflict),
    /// A size beyond 2^53 - 1.
    #[error("{path}: size {size} exceeds 2^53 - 1")]
    Size {
        /// The component.
        path: ComponentPath,
        /// Its size.
        size: u64,
    },
    /// The number of chunk digests does not fit the size.
    #[error("{path}: {found} chunk digests, a file of {size} bytes has {expected} chunks")]
    Chunks {
        /// The component.
        path: ComponentPath,
        /// Its size.
        size: u64,
        /// Chunk digests given.
        found: usize,
        /// Chunks of that size.
        expected: u64,
    },
    /// Tensors out of order, or a name twice.
    #[error("{path}: tensor {tensor:?} is listed twice or out of order")]
    Tensors {
        /// The component.
        path: ComponentPath,
        /// The offending tensor.
        tensor: String,
    },
    /// A value in contract, dependencies, licences or lineage that has no canonical form.
    #[error("{section}: {error}")]
    Section {
        /// Which part of the manifest.
        section: &'static str,
        /// What is wrong.
        error: JsonError,
    },
    /// One output field or special token twice.
    #[error("contract: {what} {name:?} is listed twice")]
    Ambiguous {
        /// What is listed twice.
        what: &'static str,
        /// Its name.
        name: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire<'a> {
    components: std::borrow::Cow<'a, [Component]>,
    contract: std::borrow::Cow<'a, Contract>,
    dependencies: std::borrow::Cow<'a, BTreeMap<String, String>>,
    format: Format,
    id: std::borrow::Cow<'a, VersionId>,
    licences: std::borrow::Cow<'a, BTreeSet<Licence>>,
    lineage: std::borrow::Cow<'a, Lineage>,
}

#[derive(Serialize, Deserialize)]
enum Format {
    #[serde(rename = "llm-manifest/1")]
    V1,
}

impl Draft {
    /// A draft without components.
    pub fn new(name: Name, version: Version) -> Self {
        Self {
            name,
            version,
            components: Vec::new(),
            contract: Contract::default(),
            dependencies: BTreeMap::new(),
            licences: BTreeSet::new(),
            lineage: Lineage::default(),
        }
    }

    /// Checks the draft, sorts its components by path and computes the bundle digest.
    ///
    /// # Errors
    /// Says what has no canonical form or cannot exist on every file system.
    pub fn finish(mut self) -> Result<Manifest, ManifestError> {
        self.components.sort_by(|a, b| a.path.cmp(&b.path));
        self.check()?;
        let digest = bundle_digest(&self)?;
        Ok(Manifest {
            id: VersionId::new(self.name.clone(), self.version, digest),
            draft: self,
        })
    }

    fn check(&self) -> Result<(), ManifestError> {
        if self.components.is_empty() {
            return Err(ManifestError::Empty);
        }
        check_conflicts(self.components.iter().map(|c| &c.path))?;
        for component in &self.components {
            check_component(component)?;
        }
        if let Some(schema) = &self.contract.output_schema {
            refuse_twins(
                "output field",
                schema.fields.iter().map(|f| f.name.as_str()),
            )?;
        }
        if let Some(tokenizer) = &self.contract.tokenizer {
            refuse_twins(
                "special token",
                tokenizer.special.iter().map(|t| t.token.as_str()),
            )?;
        }
        canonical("dependencies", &self.dependencies)?;
        canonical("licences", &self.licences)?;
        canonical("lineage", &self.lineage)?;
        Ok(())
    }
}

fn check_component(component: &Component) -> Result<(), ManifestError> {
    let (path, size) = (&component.path, component.size);
    if size > MAX_INTEGER {
        return Err(ManifestError::Size {
            path: path.clone(),
            size,
        });
    }
    let expected = size.div_ceil(CHUNK_BYTES);
    if !component.chunks.is_empty() && component.chunks.len() as u64 != expected {
        return Err(ManifestError::Chunks {
            path: path.clone(),
            size,
            found: component.chunks.len(),
            expected,
        });
    }
    let disorder = component
        .tensors
        .windows(2)
        .find(|pair| pair[0].name >= pair[1].name);
    if let Some(pair) = disorder {
        return Err(ManifestError::Tensors {
            path: path.clone(),
            tensor: clip(&pair[1].name).to_owned(),
        });
    }
    match component
        .tensors
        .iter()
        .flat_map(|t| &t.shape)
        .find(|n| **n > MAX_INTEGER)
    {
        Some(size) => Err(ManifestError::Size {
            path: path.clone(),
            size: *size,
        }),
        None => Ok(()),
    }
}

fn refuse_twins<'a>(
    what: &'static str,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), ManifestError> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(ManifestError::Ambiguous {
                what,
                name: clip(name).to_owned(),
            });
        }
    }
    Ok(())
}

/// The canonical bytes of a part of the manifest.
fn canonical(section: &'static str, value: &impl Serialize) -> Result<Vec<u8>, ManifestError> {
    let bytes = encode(value);
    match json::check_canonical(&bytes) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(ManifestError::Section { section, error }),
    }
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    // Our types hold strings, integers, sequences and string-keyed maps, which serialise without failing; an empty
    // result would be refused by the canonical check.
    serde_json::to_vec(value).unwrap_or_default()
}

fn bundle_digest(draft: &Draft) -> Result<Digest, ManifestError> {
    let contract = canonical("contract", &draft.contract)?;
    let mut hash = Sha256::new_with_prefix(BUNDLE_DOMAIN);
    let length = |hash: &mut Sha256, n: usize| hash.update((n as u64).to_be_bytes());
    let text = |hash: &mut Sha256, text: &[u8]| {
        length(hash, text.len());
        hash.update(text);
    };
    length(&mut hash, draft.components.len());
    for component in &draft.components {
        text(&mut hash, component.path.as_str().as_bytes());
        text(&mut hash, component.kind.as_str().as_bytes());
        hash.update(component.size.to_be_bytes());
        hash.update(component.digest.as_bytes());
    }
    length(&mut hash, draft.dependencies.len());
    for (name, version) in &draft.dependencies {
        text(&mut hash, name.as_bytes());
        text(&mut hash, version.as_bytes());
    }
    text(&mut hash, &contract);
    Ok(Digest::new(hash.finalize().into()))
}

impl Manifest {
    /// The largest manifest that is read, in bytes.
    pub const MAX_BYTES: u64 = 256 << 20;

    /// Reads the canonical byte form.
    ///
    /// # Errors
    /// Refuses unknown fields, duplicate keys, any byte that differs from the canonical form, and a digest that does
    /// not belong to the content.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let wire: Wire<'_> = json::from_slice(bytes, Self::MAX_BYTES)?;
        let stated = wire.id.into_owned();
        let draft = Draft {
            name: stated.name().clone(),
            version: stated.version(),
            components: wire.components.into_owned(),
            contract: wire.contract.into_owned(),
            dependencies: wire.dependencies.into_owned(),
            licences: wire.licences.into_owned(),
            lineage: wire.lineage.into_owned(),
        };
        let manifest = draft.finish()?;
        if manifest.id != stated {
            return Err(ManifestError::WrongDigest {
                name: format!("{}/v{}", stated.name(), stated.version()),
                stated: *stated.digest(),
                computed: *manifest.id.digest(),
            });
        }
        let ours = manifest.to_bytes();
        if ours == bytes {
            return Ok(manifest);
        }
        let at = ours.iter().zip(bytes).take_while(|(a, b)| a == b).count();
        Err(ManifestError::NotCanonical { at })
    }

    /// The canonical byte form: JSON with ascending ASCII keys and no whitespace.
    pub fn to_bytes(&self) -> Vec<u8> {
        use std::borrow::Cow::Borrowed;
        encode(&Wire {
            components: Borrowed(&self.draft.components),
            contract: Borrowed(&self.draft.contract),
            dependencies: Borrowed(&self.draft.dependencies),
            format: Format::V1,
            id: Borrowed(&self.id),
            licences: Borrowed(&self.draft.licences),
            lineage: Borrowed(&self.draft.lineage),
        })
    }

    /// The version id: name, version and bundle digest.
    pub const fn id(&self) -> &VersionId {
        &self.id
    }

    /// The bundle's name.
    pub const fn name(&self) -> &Name {
        self.id.name()
    }

    /// The bundle's version.
    pub const fn version(&self) -> Version {
        self.id.version()
    }

    /// The bundle digest: binds path, kind, size and digest of every component, the contract and the dependencies.
    pub const fn digest(&self) -> &Digest {
        self.id.digest()
    }

    /// The digest of the manifest's own bytes, lineage, chunk and tensor digests included.
    ///
    /// The bundle digest says what a version *is*; this one says that nobody edited what is *recorded* about it.
    /// Registries log it, signatures cover it.
    pub fn record_digest(&self) -> Digest {
        let hash = Sha256::new_with_prefix(RECORD_DOMAIN).chain_update(self.to_bytes());
        Digest::new(hash.finalize().into())
    }

    /// The components, ordered by path.
    pub fn components(&self) -> &[Component] {
        &self.draft.components
    }

    /// The component at `path`.
    pub fn component(&self, path: &ComponentPath) -> Option<&Component> {
        let components = self.components();
        let at = components.binary_search_by(|c| c.path.cmp(path)).ok()?;
        components.get(at)
    }

    /// The sum of all sizes in bytes.
    pub fn total_size(&self) -> u64 {
        self.components()
            .iter()
            .fold(0, |sum, c| sum.saturating_add(c.size))
    }

    /// The interface contract.
    pub const fn contract(&self) -> &Contract {
        &self.draft.contract
    }

    /// Versions of what the bundle runs on.
    pub const fn dependencies(&self) -> &BTreeMap<String, String> {
        &self.draft.dependencies
    }

    /// Licences.
    pub const fn licences(&self) -> &BTreeSet<Licence> {
        &self.draft.licences
    }

    /// Where the version comes from.
    pub const fn lineage(&self) -> &Lineage {
        &self.draft.lineage
    }

    /// One digest over all tensors of one kind of component: equal for two bundles that hold the same tensors in other
    /// files, shards or order. `None` when a component of that kind has no recorded tensors, or there is none.
    pub fn tensor_root(&self, kind: ComponentKind) -> Option<Digest> {
        let mut tensors = Vec::new();
        for component in self.components().iter().filter(|c| c.kind == kind) {
            if component.tensors.is_empty() {
                return None;
            }
            tensors.extend(&component.tensors);
        }
        tensor_root(tensors)
    }

    /// Takes the manifest apart, to change and finish it again.
    pub fn into_draft(self) -> Draft {
        self.draft
    }
}

/// SHA-256 over name, element type, shape and digest of each tensor, in the order of names.
fn tensor_root(mut tensors: Vec<&Tensor>) -> Option<Digest> {
    if tensors.is_empty() {
        return None;
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.cmp(b)));
    let mut hash = Sha256::new_with_prefix(b"llm-version/tensors/1\0");
    hash.update((tensors.len() as u64).to_be_bytes());
    for tensor in tensors {
        for text in [&tensor.name, &tensor.dtype] {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text.as_bytes());
        }
        hash.update((tensor.shape.len() as u64).to_be_bytes());
        for dimension in &tensor.shape {
            hash.update(dimension.to_be_bytes());
        }
        hash.update(tensor.digest.as_bytes());
    }
    Some(Digest::new(hash.finalize().into()))
}
