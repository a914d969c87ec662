//! Versions on OpenAI-compatible servers that somebody else starts and stops.

use super::chat::{ChatClient, ChatRequest, Upstream};
use crate::host::{Error, Result, ServingBackend};
use crate::http_client::Http;
use async_trait::async_trait;
use llm_rollout::Position;
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);
const TOKENS: u32 = 16;
/// The most prompts of a warm-up.
const PROMPTS: usize = 64;

type Counter = Arc<dyn Fn(&VersionId) -> Option<u64> + Send + Sync>;

/// Serves versions through OpenAI-compatible servers: each version is a model name on some server.
///
/// Starting and stopping the servers is up to the host. `prepare` makes sure that the server lists the model, then has it answer a few prompts:
/// every one must succeed, in the name of the right model, and at least one with text. `retire` only forgets that the version
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
    slots: Mutex<BTreeMap<VersionId, Slot>>,
    prompts: Vec<String>,
    tokens: u32,
    deadline: Duration,
    counter: Option<Counter>,
}

struct Slot {
    client: ChatClient,
    upstream: Upstream,
    /// The newest load or retirement.
    newest: Option<Position>,
    ready: bool,
}

/// Builds an [`OpenAiBackend`].
#[must_use = "it does nothing until it is built"]
pub struct OpenAiBackendBuilder {
    upstreams: Vec<(VersionId, Upstream)>,
    prompts: Vec<String>,
    tokens: u32,
    deadline: Duration,
    counter: Option<Counter>,
}

impl OpenAiBackendBuilder {
    /// Where a version runs.
    pub fn upstream(mut self, version: VersionId, upstream: Upstream) -> Self {
        self.upstreams.push((version, upstream));
        self
    }

    /// What the warm-up asks, instead of three short questions.
    pub fn warm_up(mut self, prompts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.prompts = prompts
            .into_iter()
            .take(PROMPTS + 1)
            .map(Into::into)
            .collect();
        self
    }

    /// The longest answer of a warm-up, 16 tokens unless told otherwise.
    pub fn warm_up_tokens(mut self, tokens: u32) -> Self {
        self.tokens = tokens;
        self
    }

    /// How long the whole of one `prepare` may take, 60 seconds unless told otherwise.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
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
            prompts,
            tokens,
            deadline,
            counter,
        } = self;
        if !(1..=PROMPTS).contains(&prompts.len()) || tokens == 0 || deadline.is_zero() {
            return Err(Error::permanent(format!(
                "a warm-up needs 1 to {PROMPTS} prompts, a token and some time: give them, or leave the defaults"
            )));
        }
        let backend = OpenAiBackend {
            http: Http::new()?,
            slots: Mutex::default(),
            prompts,
            tokens,
            deadline,
            counter,
        };
        for (version, upstream) in upstreams {
            backend.add(version, upstream)?;
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
        let prompts = [
            "Say hello.",
            "What is 2 + 2?",
            "Name a colour and say why you like it.",
        ];
        OpenAiBackendBuilder {
            upstreams: Vec::new(),
            prompts: prompts.map(str::to_owned).to_vec(),
            tokens: TOKENS,
            deadline: DEADLINE,
            counter: None,
        }
    }

    /// Says where a new version runs. Saying the same again changes nothing.
    ///
    /// # Errors
    /// `Permanent` for an upstream that cannot be used, or a version that has another one already.
    pub fn add(&self, version: VersionId, upstream: Upstream) -> Result<()> {
        let client = ChatClient::with(self.http.clone(), &upstream)?;
        let mut slots = self.slots();
        match slots.get(&version) {
            Some(slot) if slot.upstream == upstream => Ok(()),
            Some(_) => Err(Error::permanent(format!(
                "version {version} has another upstream already: one version runs in one place; remove one of the two"
            ))),
            None => {
                slots.insert(
                    version,
                    Slot {
                        client,
                        upstream,
                        newest: None,
                        ready: false,
                    },
                );
                Ok(())
            }
        }
    }

    /// Whether the version has been prepared, and not retired since.
    pub fn is_ready(&self, version: &VersionId) -> bool {
        self.slots().get(version).is_some_and(|slot| slot.ready)
    }

    /// A client for the model that the version runs as, if it has an upstream.
    pub fn client(&self, version: &VersionId) -> Option<ChatClient> {
        self.slots().get(version).map(|slot| slot.client.clone())
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<VersionId, Slot>> {
        // Whoever panicked in here left it whole.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn warm_up(&self, version: &VersionId, client: &ChatClient) -> Result<()> {
        let began = Instant::now();
        let left = || match self.deadline.checked_sub(began.elapsed()) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(Error::transient(format!(
                "version {version} (model {:?}) was not warm within {:?}: give it more time, or look at its server",
                client.model(),
                self.deadline
            ))),
        };
        client.listed(left()?).await?;
        let mut silent = true;
        for prompt in &self.prompts {
            let request = ChatRequest::new(prompt).max_tokens(self.tokens);
            silent &= client.complete(&request, left()?).await?.is_empty();
        }
        if silent {
            return Err(Error::permanent(format!(
                "version {version} (model {:?}) answers all {} prompts of the warm-up with nothing: check its weights and its chat template",
                client.model(),
                self.prompts.len()
            )));
        }
        Ok(())
    }
}

impl Slot {
    /// Takes note of a load or retirement, or refuses it for its age.
    fn order(&mut self, what: &str, version: &VersionId, at: Position) -> Result<()> {
        if let Some(newest) = self.newest.filter(|&newest| at < newest) {
            return Err(Error::permanent(format!(
                "{what} version {version} at fence {} step {} is refused: fence {} step {} came later; its controller has been replaced",
                at.fence, at.seq, newest.fence, newest.seq
            )));
        }
        self.newest = Some(at);
        self.ready = false;
        Ok(())
    }
}

impl fmt::Debug for OpenAiBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slots = self.slots();
        f.debug_struct("OpenAiBackend")
            .field(
                "versions",
                &slots.keys().map(ToString::to_string).collect::<Vec<_>>(),
            )
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl ServingBackend for OpenAiBackend {
    async fn prepare(&self, version: &VersionId, at: Position) -> Result<()> {
        let client = {
            let mut slots = self.slots();
            let slot = slots.get_mut(version).ok_or_else(|| {
                Error::permanent(format!(
                    "version {version} has no upstream: say where it runs with `add` or `upstream`"
                ))
            })?;
            slot.order("loading", version, at)?;
            slot.client.clone()
        };
        self.warm_up(version, &client).await?;
        let mut slots = self.slots();
        match slots.get_mut(version) {
            Some(slot) if slot.newest == Some(at) => {
                slot.ready = true;
                Ok(())
            }
            _ => Err(Error::permanent(format!(
                "version {version} was loaded or retired by a later step during its warm-up"
            ))),
        }
    }

    async fn in_flight(&self, version: &VersionId) -> Result<Option<u64>> {
        Ok(self.counter.as_ref().and_then(|count| count(version)))
    }

    async fn retire(&self, version: &VersionId, at: Position) -> Result<()> {
        match self.slots().get_mut(version) {
            Some(slot) => slot.order("retiring", version, at),
            // What runs nowhere has been retired.
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
