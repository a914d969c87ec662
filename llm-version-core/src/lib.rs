//! What an LLM version is: bundles, manifests, digests, references.
//!
//! A **bundle** is every artifact that determines the behaviour of a served model: weights, tokenizer, prompts, sampling
//! and safety configuration, dependency versions. A [`Manifest`] lists its components in one canonical byte form, and
//! the digest over that form makes the [`VersionId`] that logs, splits and commands hold. [`verify`](fn@verify) says
//! whether what was found is that version, [`diff`](fn@diff) says what changed between two and which version number
//! that requires.
//!
//! [`transition`](fn@transition) says whether going from one version to another, and back, is safe. A
//! [`registry`] keeps versions with their aliases, records and history; feature `oms` signs them, feature `sbom` writes their bills of materials.
//!
//! `CANONICAL.md` beside this crate specifies the byte form and the digests for other implementations.
//!
//! The crate is pure: no clock, no randomness, no environment, no network. Files are reached only through the module
//! `fs` (feature `fs`, on by default, standard library only).
#![deny(missing_docs)]

mod compat;
mod content;
mod contract;
mod diff;
mod digest;
#[cfg(feature = "fs")]
pub mod fs;
mod gguf;
mod id;
mod json;
mod kind;
mod lineage;
mod manifest;
mod metadata;
mod name;
#[cfg(feature = "oms")]
pub mod oms;
mod path;
pub mod registry;
mod safetensors;
#[cfg(feature = "sbom")]
pub mod sbom;
mod verify;
mod version;

pub use compat::{Obstacle, Requirement, Safety, Step, Surroundings, Transition, transition};
pub use content::{FileFormat, LfsPointer, SecretFound, find_secrets};
pub use contract::{
    Contract, EmbeddingSpace, OutputField, OutputSchema, SpecialToken, TokenizerContract,
};
pub use diff::{
    Action, BumpTooSmall, Change, Contents, Detail, Diff, MAX_COMPARED_BYTES, Risk, Subject, diff,
    diff_contents,
};
pub use digest::{Digest, ParseDigestError};
pub use gguf::{GgufError, GgufHeader, GgufTensor};
pub use id::{BundleRef, ParseIdError, VersionId};
pub use json::{JsonError, MAX_INTEGER};
pub use kind::ComponentKind;
pub use lineage::{BaseModel, CodeRevision, ConfigSnapshot, Dataset, Licence, Lineage};
pub use manifest::{CHUNK_BYTES, Component, Draft, Manifest, ManifestError, Tensor};
pub use metadata::{Metadata, MetadataFormat};
pub use name::{Name, ParseNameError};
pub use path::{ComponentPath, PathConflict, PathError, check_conflicts};
pub use safetensors::{SafetensorsError, SafetensorsHeader, TensorSpan};
pub use verify::{Mismatch, verify};
pub use version::{Bump, ParseVersionError, Version};
