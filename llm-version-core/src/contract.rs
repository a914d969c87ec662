//! What a version promises to its callers and demands from its surroundings.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The interface contract: what callers may rely on, and what the version needs.
///
/// It is part of the bundle digest by value. An absent field means "not stated"; nothing is concluded from it.
/// Fields are added over time and left out when absent, so digests of existing bundles stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
// Fields stand in ascending order: that is the canonical form.
pub struct Contract {
    /// Digest of the base model's weights that adapters in or beside this bundle apply to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter_base: Option<Digest>,
    /// The API that callers use, such as `openai-chat/v1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
    /// Digest of the chat template's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<Digest>,
    /// The longest context in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u64>,
    /// The embedding space, for versions whose vectors callers store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_space: Option<EmbeddingSpace>,
    /// Languages served, as BCP 47 tags.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub languages: BTreeSet<String>,
    /// Input and output modalities, such as `text` or `image`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub modalities: BTreeSet<String>,
    /// The structure of replies, where they have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<OutputSchema>,
    /// Probe conversations rendered by the chat template: name of the probe to digest of the rendered text. Templates
    /// with equal probes are one format even where their text differs.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub probes: BTreeMap<String, Digest>,
    /// Runtimes the version needs: name to semver requirement, such as `vllm` to `>=0.9, <0.11`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub runtime: BTreeMap<String, String>,
    /// Texts that end a reply.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub stop_tokens: BTreeSet<String>,
    /// The tokenizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerContract>,
    /// The format of tool calls, such as `hermes` or `openai`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_format: Option<String>,
}

/// An embedding space: vectors of different spaces must not be compared, even where their dimensions agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct EmbeddingSpace {
    /// Numbers in a vector.
    pub dimensions: u64,
    /// Names the space.
    pub id: String,
}

impl EmbeddingSpace {
    /// A space named `id` with vectors of `dimensions` numbers.
    pub fn new(id: impl Into<String>, dimensions: u64) -> Self {
        Self {
            dimensions,
            id: id.into(),
        }
    }
}

/// The structure of replies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct OutputSchema {
    /// Digest of the schema document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The fields of a reply. Two entries with one name are refused.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub fields: BTreeSet<OutputField>,
    /// The schema's own version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// A field of a structured reply.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct OutputField {
    /// Dotted path of the field, such as `answer.text`.
    pub name: String,
    /// Whether every reply has it.
    #[serde(default)]
    pub required: bool,
    /// JSON types it can take.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub types: BTreeSet<String>,
}

impl OutputField {
    /// A field called `name` that takes one of `types`.
    pub fn new<T: Into<String>>(
        name: impl Into<String>,
        required: bool,
        types: impl IntoIterator<Item = T>,
    ) -> Self {
        Self {
            name: name.into(),
            required,
            types: types.into_iter().map(Into::into).collect(),
        }
    }
}

/// The tokenizer as callers and caches see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TokenizerContract {
    /// Digest of the tokenizer's files or of its vocabulary and merges.
    pub digest: Digest,
    /// Special tokens and their ids.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub special: BTreeSet<SpecialToken>,
    /// Tokens in the vocabulary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary_size: Option<u64>,
}

impl TokenizerContract {
    /// A tokenizer known by its digest.
    pub fn new(digest: Digest) -> Self {
        Self {
            digest,
            special: BTreeSet::new(),
            vocabulary_size: None,
        }
    }
}

/// A special token and its id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SpecialToken {
    /// The token's id.
    pub id: u64,
    /// The token's text.
    pub token: String,
}

impl SpecialToken {
    /// A token with its id.
    pub fn new(token: impl Into<String>, id: u64) -> Self {
        Self {
            id,
            token: token.into(),
        }
    }
}
