//! Where a version comes from: kept in the manifest, outside the bundle digest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::id::VersionId;

/// Where a version comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
// Fields stand in ascending order: that is the canonical form.
pub struct Lineage {
    /// The model this one was trained or derived from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_model: Option<BaseModel>,
    /// The code that built it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<CodeRevision>,
    /// The resolved configuration of the run, as Hydra or `OmegaConf` write it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<ConfigSnapshot>,
    /// What it was trained on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub datasets: Vec<Dataset>,
    /// Versions of the training environment: name to version.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Hyper-parameters as text, so that every implementation writes the same bytes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub hyper_parameters: BTreeMap<String, String>,
    /// Versions this one was made from (fine-tuned, merged, requantised).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<VersionId>,
    /// Seeds as text: a 64-bit seed does not survive JSON numbers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub seeds: BTreeMap<String, String>,
}

/// A base model by name, with the revision and digest that pin it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct BaseModel {
    /// Digest of its weights or of its bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Its name, such as `org/model`.
    pub name: String,
    /// The revision, such as a commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

impl BaseModel {
    /// A base model known by name.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            digest: None,
            name: name.into(),
            revision: None,
        }
    }
}

/// A data set, at a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Dataset {
    /// Digest of its content: SHA-256, or what its tool gives, named by its algorithm (`md5:...`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Its name.
    pub name: String,
    /// Where it lies, without credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Its version.
    pub version: String,
}

impl Dataset {
    /// A data set called `name` at `version`.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self {
            digest: None,
            name: name.into(),
            source: None,
            version: version.into(),
        }
    }
}

/// A commit, and whether the work tree agreed with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct CodeRevision {
    /// The full commit id.
    pub commit: String,
    /// Whether tracked files differed from the commit.
    pub dirty: bool,
    /// Where the repository lives, without credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
}

impl CodeRevision {
    /// A commit, and whether the work tree differed from it.
    pub fn new(commit: impl Into<String>, dirty: bool) -> Self {
        Self {
            commit: commit.into(),
            dirty,
            repository: None,
        }
    }
}

/// A resolved configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ConfigSnapshot {
    /// SHA-256 of the text.
    pub digest: Digest,
    /// Overrides given on the command line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<String>,
    /// The resolved text itself.
    pub text: String,
}

impl ConfigSnapshot {
    /// A snapshot of `text` with its digest.
    pub fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            digest: Digest::of(text.as_bytes()),
            overrides: Vec::new(),
            text,
        }
    }
}

/// A licence, and what it covers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Licence {
    /// SPDX expression, or `LicenseRef-...`.
    pub id: String,
    /// What it covers: a component path or a word such as `weights`; empty for the whole bundle.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scope: String,
}

impl Licence {
    /// A licence for the whole bundle.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            scope: String::new(),
        }
    }
}
