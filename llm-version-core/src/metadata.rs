//! `metadata.json`: what the author of a bundle states about it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::contract::Contract;
use crate::json::{self, JsonError};
use crate::lineage::{Licence, Lineage};
use crate::manifest::Manifest;
use crate::name::Name;
use crate::version::Version;

/// The content of `metadata.json`. Unknown fields and duplicate keys are refused.
///
/// ```
/// use llm_version_core::Metadata;
///
/// let text = br#"{
///   "format": "llm-metadata/1",
///   "name": "chat",
///   "version": "1.2.3",
///   "contract": {"api": "openai-chat/v1", "context_length": 8192},
///   "licences": [{"id": "Apache-2.0"}],
///   "lineage": {"base_model": {"name": "org/base"}, "seeds": {"torch": "9007199254740993"}}
/// }"#;
/// let metadata = Metadata::parse(text)?;
/// assert_eq!(metadata.name.as_str(), "chat");
/// # Ok::<(), llm_version_core::JsonError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Metadata {
    /// The schema of this file.
    pub format: MetadataFormat,
    /// The bundle's name.
    pub name: Name,
    /// The bundle's version.
    pub version: Version,
    /// The interface contract; in the digest.
    #[serde(default)]
    pub contract: Contract,
    /// Licences; in the manifest, outside the digest.
    #[serde(default)]
    pub licences: BTreeSet<Licence>,
    /// Lineage; in the manifest, outside the digest.
    #[serde(default)]
    pub lineage: Lineage,
}

/// The schema of a `metadata.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MetadataFormat {
    /// The first schema.
    #[serde(rename = "llm-metadata/1")]
    V1,
}

impl Metadata {
    /// The largest `metadata.json` that is read, in bytes.
    pub const MAX_BYTES: u64 = 16 << 20;

    /// Metadata with a name and a version and nothing else stated.
    pub fn new(name: Name, version: Version) -> Self {
        Self {
            format: MetadataFormat::V1,
            name,
            version,
            contract: Contract::default(),
            licences: BTreeSet::new(),
            lineage: Lineage::default(),
        }
    }

    /// Reads a `metadata.json`.
    ///
    /// # Errors
    /// Says what is wrong and where: not JSON, an unknown field, a duplicate key, a bad name or version.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        json::from_slice(bytes, Self::MAX_BYTES)
    }

    /// The metadata that a manifest holds.
    pub fn of(manifest: &Manifest) -> Self {
        Self {
            format: MetadataFormat::V1,
            name: manifest.name().clone(),
            version: manifest.version(),
            contract: manifest.contract().clone(),
            licences: manifest.licences().clone(),
            lineage: manifest.lineage().clone(),
        }
    }

    /// Writes the metadata as indented JSON, to be read by people. The bytes do not matter to any digest.
    pub fn to_pretty(&self) -> String {
        // Serialising strings, integers and string-keyed maps cannot fail.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_and_twins_are_refused_with_their_place() {
        let unknown =
            b"{\"format\":\"llm-metadata/1\",\"name\":\"a\",\"version\":\"1.0.0\",\n\"lineag\":{}}";
        let Err(JsonError::Invalid {
            line: 2, message, ..
        }) = Metadata::parse(unknown)
        else {
            panic!("unknown field accepted")
        };
        assert!(message.contains("lineag"), "{message}");
        let twice = br#"{"format":"llm-metadata/1","name":"a","name":"b","version":"1.0.0"}"#;
        assert!(matches!(
            Metadata::parse(twice),
            Err(JsonError::DuplicateKey { .. })
        ));
        let number = br#"{"format":"llm-metadata/1","name":"a","version":"1.0.0","lineage":{"seeds":{"torch":1}}}"#;
        assert!(matches!(
            Metadata::parse(number),
            Err(JsonError::Invalid { .. })
        ));
    }

    #[test]
    fn pretty_text_reads_back() {
        let mut metadata = Metadata::new(Name::new("chat").unwrap(), Version::new(1, 0, 0));
        metadata.contract.context_length = Some(4096);
        metadata.lineage.seeds.insert("torch".into(), "42".into());
        assert_eq!(
            Metadata::parse(metadata.to_pretty().as_bytes()).unwrap(),
            metadata
        );
    }
}
