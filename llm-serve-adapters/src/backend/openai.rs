//! Versions on OpenAI-compatible servers that somebody else starts and stops.

use super::chat::{ChatClient, Upstream};
use super::fleet::{Fleet, Wish};
use super::warm_up::WarmUp;
use crate::host::{Result, ServingBackend};
use crate::http_client::{Authorities, Http};
use async_trait::async_trait;
use llm_rollout::Position;
use llm_version_core::VersionId;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

type Counter = Arc<dyn Fn(&VersionId) -> Option<u64> + Send + Sync>;

/// Serves versions through OpenAI-compatible servers: each version is a model name on some server.
///
/// Starting and stopping the servers is up to the host. `prepare` makes sure that the server lists the model, then has it answer a few prompts:
/// every one must succeed, in the name of the right model, and at least one with text; and it must answer the upstream's golden
/// prompts ([`Upstream::golden`]) as the version would. `retire` only forgets that the version
/// is ready: the server goes on, and what still runs there is not cut off. Which position was newest for a version is kept in
/// memory, so right after a restart an old retirement is not recognised; it cannot do harm here.
///
/// ```
/// use llm_serve_adapters::backend::{OpenAiBackend, Upstream};
///
/// let v1 = format!("chat/v1.0.0-{}", "0".repeat(64)).parse()?;
/// let v2 = format!("chat/v1.1.0-{}", "1".repeat(64)).parse()?;
/// let backend = OpenAiBackend::builder()
///     .upstream(v1, Upstream::new("http://10.0.0.7:8000", "chat-v1"))
///     .upstream(v2, Upstream::new("http://10.0.0.8:8000", "chat-v2").api_key("secret"))
///     .build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct OpenAiBackend {
    http: Http,
    fleet: Fleet<ChatClient>,
    warm_up: WarmUp,
    counter: Option<Counter>,
}

/// Builds an [`OpenAiBackend`].
#[must_use = "it does nothing until it is built"]
pub struct OpenAiBackendBuilder {
    upstreams: Vec<(VersionId, Upstream)>,
    warm_up: WarmUp,
    counter: Option<Counter>,
    authorities: Authorities,
}

impl OpenAiBackendBuilder {
    /// Where a version runs.
    pub fn upstream(mut self, version: VersionId, upstream: Upstream) -> Self {
        self.upstreams.push((version, upstream));
        self
    }

    /// Trusts these certificate authorities beside those of the system.
    pub fn trust(mut self, authorities: Authorities) -> Self {
        self.authorities = authorities;
        self
    }

    /// What the warm-up asks, instead of three short questions.
    pub fn warm_up(mut self, prompts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.warm_up = self.warm_up.prompts(prompts);
        self
    }

    /// The longest answer of a warm-up, 16 tokens unless told otherwise.
    pub fn warm_up_tokens(mut self, tokens: u32) -> Self {
        self.warm_up.tokens = tokens;
        self
    }

    /// How long the whole of one `prepare` may take, 60 seconds unless told otherwise.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.warm_up.deadline = deadline;
        self
    }

    /// How many requests are running on a version, as the host counts them; without it nobody can tell. It must not block.
    pub fn in_flight(
        mut self,
        count: impl Fn(&VersionId) -> Option<u64> + Send + Sync + 'static,
    ) -> Self {
        self.counter = Some(Arc::new(count));
        self
    }

    /// The backend.
    ///
    /// # Errors
    /// `Permanent` for an upstream that cannot be used, a version with two, or a warm-up that asks nothing.
    pub fn build(self) -> Result<OpenAiBackend> {
        let Self {
            upstreams,
            warm_up,
            counter,
            authorities,
        } = self;
        let backend = OpenAiBackend {
            http: Http::trusting(&authorities)?,
            fleet: Fleet::default(),
            warm_up: warm_up.checked()?,
            counter,
        };
        for (version, upstream) in upstreams {
            backend.add(version, &upstream)?;
        }
        Ok(backend)
    }
}

impl fmt::Debug for OpenAiBackendBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAiBackendBuilder")
            .field("upstreams", &self.upstreams)
            .finish_non_exhaustive()
    }
}

impl OpenAiBackend {
    /// Begins with no upstream, and a warm-up of three short questions, 16 tokens each, within 60 seconds.
    pub fn builder() -> OpenAiBackendBuilder {
        OpenAiBackendBuilder {
            upstreams: Vec::new(),
            warm_up: WarmUp::default(),
            counter: None,
            authorities: Authorities::default(),
        }
    }

    /// Says where a new version runs. Saying the same again changes nothing.
    ///
    /// # Errors
    /// `Permanent` for an upstream that cannot be used, or a version that has another one already.
    pub fn add(&self, version: VersionId, upstream: &Upstream) -> Result<()> {
        let client = ChatClient::with(self.http.clone(), upstream)?;
        self.fleet.add(version, client)
    }

    /// Whether the version has been prepared, and not retired since.
    pub fn is_ready(&self, version: &VersionId) -> bool {
        self.fleet.is_ready(version)
    }

    /// A client for the model that the version runs as, if it has an upstream.
    pub fn client(&self, version: &VersionId) -> Option<ChatClient> {
        self.fleet.place(version)
    }
}

impl fmt::Debug for OpenAiBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAiBackend")
            .field("versions", &self.fleet)
            .field("warm_up", &self.warm_up)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl ServingBackend for OpenAiBackend {
    async fn prepare(&self, version: &VersionId, at: Position) -> Result<()> {
        let client = self.fleet.load(version, at)?;
        let left = self.warm_up.clock(version, &client);
        client.listed(left()?).await?;
        self.warm_up.run(version, &client, &[], left).await?;
        self.fleet.ready(version, at)
    }

    async fn in_flight(&self, version: &VersionId) -> Result<Option<u64>> {
        Ok(self.counter.as_ref().and_then(|count| count(version)))
    }

    async fn retire(&self, version: &VersionId, at: Position) -> Result<()> {
        // What runs nowhere has been retired.
        self.fleet.begin(Wish::Retire, version, at).map(drop)
    }
}

#[cfg(test)]
mod tests;
