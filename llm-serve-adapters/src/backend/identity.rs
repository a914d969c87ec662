//! Whether what runs is the bundle: names can be given to anything, so the model is known by what it says.

use super::chat::{ChatClient, ChatRequest, Role};
use crate::host::{Error, Result};
use crate::http_client::clip;
use llm_version_core::VersionId;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often is asked before an answer counts as another model's: what runs beside it may change the last digits, and with them a token.
const TRIES: usize = 3;

/// A generation that is known beforehand, by which a model is told from every other: prompt, sampling, and what it answers.
///
/// It is recorded on a server that is known to run the bundle ([`Self::record`]), and kept beside the version: as a record about its digest
/// (`tests/golden.json` in a bundle's folder, which is outside the digest since the text depends on the engine and its kernels too), or
/// with the upstream. Sampling is greedy. The same weights may answer in other words on another engine, another number of
/// threads or another accelerator: pin each of them ([`Self::or`]).
///
/// ```
/// use llm_serve_adapters::backend::{Golden, Upstream};
///
/// let golden = Golden::new("Name three colors.", "1. Red\n2. Blue\n3. Green").max_tokens(16);
/// let kept = serde_json::to_string(&golden)?;
/// let upstream = Upstream::new("http://10.0.0.7:8000", "chat-v2").golden(serde_json::from_str(&kept)?);
/// # drop(upstream);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    prompt: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    system: Option<String>,
    max_tokens: u32,
    seed: u64,
    /// Fields of the request that only this engine knows.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    fields: BTreeMap<String, Value>,
    /// Any of these will do.
    expected: Vec<String>,
}

impl Golden {
    /// The model answers this prompt so, in 16 tokens at most.
    pub fn new(prompt: impl Into<String>, expected: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            system: None,
            max_tokens: 16,
            seed: 1,
            fields: BTreeMap::new(),
            expected: vec![expected.into()],
        }
    }

    /// Or so: on another engine, or another machine.
    #[must_use]
    pub fn or(mut self, expected: impl Into<String>) -> Self {
        self.expected.push(expected.into());
        self
    }

    /// With this system prompt.
    #[must_use]
    pub fn system(mut self, prompt: impl Into<String>) -> Self {
        self.system = Some(prompt.into());
        self
    }

    /// In so many tokens at most.
    #[must_use]
    pub fn max_tokens(mut self, tokens: u32) -> Self {
        self.max_tokens = tokens;
        self
    }

    /// With a field of the request that only this engine knows, such as `cache_prompt` of llama.cpp.
    #[must_use]
    pub fn field(mut self, name: impl Into<String>, value: Value) -> Self {
        self.fields.insert(name.into(), value);
        self
    }

    /// What a model that is known to be the right one answers, asked three times: the same, or it cannot be told by this prompt.
    ///
    /// # Errors
    /// `Permanent` if it answers in different words, or not at all; else as [`ChatClient::complete`].
    pub async fn record(
        client: &ChatClient,
        prompt: impl Into<String>,
        tokens: u32,
        within: Duration,
    ) -> Result<Self> {
        let mut golden = Self::new(prompt, "").max_tokens(tokens);
        let mut said = Vec::new();
        for _ in 0..TRIES {
            let reply = client.complete(&golden.request(), within).await?;
            said.push(reply.text.trim().to_owned());
        }
        said.dedup();
        match said.pop() {
            Some(text) if said.is_empty() && !text.is_empty() => {
                golden.expected = vec![text];
                Ok(golden)
            }
            _ => Err(Error::permanent(format!(
                "model {:?} does not answer the same words each time, or none: take another prompt, or fewer tokens",
                client.model()
            ))),
        }
    }

    fn request(&self) -> ChatRequest {
        let mut request = ChatRequest::new(&self.prompt)
            .max_tokens(self.max_tokens)
            .temperature(0.0)
            .seed(self.seed);
        if let Some(system) = &self.system {
            request = request.before(Role::System, system);
        }
        for (name, value) in &self.fields {
            request = request.field(name, value.clone());
        }
        request
    }

    fn knows(&self, text: &str) -> bool {
        self.expected
            .iter()
            .any(|expected| expected.trim() == text.trim())
    }
}

/// Another model than the version's answers where the version should run: the source of a `Permanent` error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "version {version} is not what runs as model {model:?}: it answers {prompt:?} with {said:?} instead of {expected:?}; \
     load the bundle's own weights there, or record the golden generation anew if only the engine has changed"
)]
#[non_exhaustive]
pub struct OtherModel {
    /// Which version should run there.
    pub version: VersionId,
    /// Under which name.
    pub model: String,
    /// What was asked.
    pub prompt: String,
    /// What the version would have said.
    pub expected: String,
    /// What was said, cut short.
    pub said: String,
}

/// Checks that the model behind this client answers as the version would. `left` is the time that is left.
pub(crate) async fn verify(
    version: &VersionId,
    client: &ChatClient,
    golden: &Golden,
    left: impl Fn() -> Result<Duration>,
) -> Result<()> {
    let mut said = String::new();
    for _ in 0..TRIES {
        said = client.complete(&golden.request(), left()?).await?.text;
        if golden.knows(&said) {
            return Ok(());
        }
    }
    let other = OtherModel {
        version: version.clone(),
        model: client.model().to_owned(),
        prompt: clip(&golden.prompt),
        expected: clip(golden.expected.first().map_or("", |text| text.trim())),
        said: clip(said.trim()),
    };
    Err(Error::permanent(other.to_string()).because(other))
}
