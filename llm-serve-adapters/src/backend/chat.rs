//! A client for chat completions of one model on one server.

use super::identity::Golden;
use crate::host::{Error, ErrorKind, Result};
use crate::http_client::{Address, Authorities, Call, Http, Reply, bearer, clip, refusal};
use reqwest::header::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::time::Duration;

/// Bytes of a reply that are read; a chat completion is far below, and so is a list of models.
const REPLY: usize = 8 << 20;

/// Where a version runs: a server, and the model name that it goes by there. Never part of a bundle.
///
/// The key does not show up in debug output or errors.
#[derive(Clone, PartialEq, Eq)]
pub struct Upstream {
    base_url: String,
    model: String,
    answers_as: Option<String>,
    api_key: Option<String>,
    golden: Vec<Golden>,
}

impl Upstream {
    /// A model on the server at this address, with or without `/v1` at the end.
    pub fn new(base_url: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            model: model.into(),
            answers_as: None,
            api_key: None,
            golden: Vec::new(),
        }
    }

    /// Sends this key as a bearer token.
    #[must_use]
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.api_key = Some(key.into());
        self
    }

    /// The model name that replies carry, where it differs from the one asked for.
    #[must_use]
    pub fn answers_as(mut self, model: impl Into<String>) -> Self {
        self.answers_as = Some(model.into());
        self
    }

    /// What the version's own model answers, by which it is told from others before it may serve. Any number of them, all of which
    /// must hold.
    #[must_use]
    pub fn golden(mut self, golden: Golden) -> Self {
        self.golden.push(golden);
        self
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the address: before it is checked it may hold a password.
        f.debug_struct("Upstream")
            .field("model", &self.model)
            .field("answers_as", &self.answers_as)
            .field("api_key", &self.api_key.as_ref().map(|_| "..."))
            .field("golden", &self.golden.len())
            .finish_non_exhaustive()
    }
}

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Role {
    /// The operator.
    System,
    /// The user.
    User,
    /// The model, earlier on.
    Assistant,
}

#[derive(Clone, PartialEq, Serialize)]
struct Message {
    role: Role,
    content: String,
}

/// What to ask for. Its debug output leaves the texts out.
///
/// ```
/// use llm_serve_adapters::backend::{ChatRequest, Role};
///
/// let request = ChatRequest::new("What is the capital of France?").before(Role::System, "Answer in one word.").max_tokens(8);
/// assert!(!format!("{request:?}").contains("France"));
/// ```
#[derive(Clone, PartialEq)]
pub struct ChatRequest {
    messages: Vec<Message>,
    max_tokens: Option<u32>,
    temperature: Option<f64>,
    seed: Option<u64>,
    fields: Map<String, Value>,
}

impl ChatRequest {
    /// One message of a user; the server's own defaults for everything else.
    pub fn new(user: impl Into<String>) -> Self {
        let message = Message {
            role: Role::User,
            content: user.into(),
        };
        Self {
            messages: vec![message],
            max_tokens: None,
            temperature: None,
            seed: None,
            fields: Map::new(),
        }
    }

    /// With a message before the last one, after any that were put there already.
    #[must_use]
    pub fn before(mut self, role: Role, content: impl Into<String>) -> Self {
        let last = self.messages.len().saturating_sub(1);
        self.messages.insert(
            last,
            Message {
                role,
                content: content.into(),
            },
        );
        self
    }

    /// With a message after the last one.
    #[must_use]
    pub fn then(mut self, role: Role, content: impl Into<String>) -> Self {
        self.messages.push(Message {
            role,
            content: content.into(),
        });
        self
    }

    /// At most this many tokens.
    #[must_use]
    pub fn max_tokens(mut self, tokens: u32) -> Self {
        self.max_tokens = Some(tokens);
        self
    }

    /// Sampling temperature; 0 for the most likely token each time.
    #[must_use]
    pub fn temperature(mut self, temperature: f64) -> Self {
        self.temperature = Some(temperature);
        self
    }

    /// Seed of the sampler, where the server has one.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// With a field that only some servers know, such as `cache_prompt` or `lora` of llama.cpp.
    #[must_use]
    pub fn field(mut self, name: impl Into<String>, value: Value) -> Self {
        self.fields.insert(name.into(), value);
        self
    }
}

impl fmt::Debug for ChatRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatRequest")
            .field("messages", &self.messages.len())
            .field("max_tokens", &self.max_tokens)
            .field("temperature", &self.temperature)
            .field("seed", &self.seed)
            .field("fields", &self.fields.len())
            .finish()
    }
}

/// What came back. Its debug output leaves the texts out.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChatReply {
    /// The answer; empty if there is none.
    pub text: String,
    /// What the model thought, where the server tells it apart.
    pub reasoning: String,
    /// Why it ended: `stop`, `length`, ...
    pub finish: Option<String>,
    /// The model that answered, as the server says.
    pub model: Option<String>,
    /// Tokens of the prompt, as the server counts.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer, as the server counts.
    pub completion_tokens: Option<u64>,
}

impl ChatReply {
    /// Whether the model said nothing at all.
    pub fn is_empty(&self) -> bool {
        self.text.trim().is_empty() && self.reasoning.trim().is_empty()
    }
}

impl fmt::Debug for ChatReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatReply")
            .field("text_bytes", &self.text.len())
            .field("reasoning_bytes", &self.reasoning.len())
            .field("finish", &self.finish)
            .field("model", &self.model)
            .field("prompt_tokens", &self.prompt_tokens)
            .field("completion_tokens", &self.completion_tokens)
            .finish()
    }
}

/// Asks one model on one server. Needs a tokio runtime with time and I/O.
///
/// ```no_run
/// use llm_serve_adapters::backend::{ChatClient, ChatRequest, Upstream};
/// use std::time::Duration;
///
/// # async fn ask() -> llm_serve_adapters::host::Result<()> {
/// let client = ChatClient::new(&Upstream::new("http://10.0.0.7:8000", "chat-v2"))?;
/// let reply = client.complete(&ChatRequest::new("Say hello.").max_tokens(16), Duration::from_secs(30)).await?;
/// println!("{}", reply.text);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ChatClient {
    http: Http,
    upstream: Upstream,
    /// The path before `/v1`.
    root: String,
    models: Address,
    completions: Address,
    headers: HeaderMap,
}

#[derive(Serialize)]
struct WireRequest<'a> {
    model: &'a str,
    messages: &'a [Message],
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(flatten)]
    fields: &'a Map<String, Value>,
}

#[derive(Deserialize)]
struct WireReply {
    model: Option<String>,
    #[serde(default)]
    choices: Vec<WireChoice>,
    usage: Option<WireUsage>,
}

#[derive(Deserialize)]
struct WireChoice {
    message: WireMessage,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct WireMessage {
    content: Option<String>,
    // One of these two, as the server likes.
    reasoning_content: Option<String>,
    reasoning: Option<String>,
}

#[derive(Deserialize)]
struct WireUsage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct WireModels {
    data: Vec<WireModel>,
}

#[derive(Deserialize)]
struct WireModel {
    id: String,
}

impl ChatClient {
    /// A client for this model.
    ///
    /// # Errors
    /// `Permanent` for an address, a model name or a key that cannot be used.
    pub fn new(upstream: &Upstream) -> Result<Self> {
        Self::with(Http::new()?, upstream)
    }

    /// The same, trusting these certificate authorities beside those of the system.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn trusting(upstream: &Upstream, authorities: &Authorities) -> Result<Self> {
        Self::with(Http::trusting(authorities)?, upstream)
    }

    pub(super) fn with(http: Http, upstream: &Upstream) -> Result<Self> {
        let base = Address::parse(&upstream.base_url)?;
        if base.has_query() {
            return Err(Error::permanent(format!(
                "the address of {base} holds a '?': give it without a query"
            )));
        }
        if upstream.model.is_empty() {
            return Err(Error::permanent(format!(
                "no model name is given for {base}: give one of those under /v1/models"
            )));
        }
        let path = base.path();
        let root = path.strip_suffix("/v1").unwrap_or(path);
        let (models, completions) = (
            format!("{root}/v1/models"),
            format!("{root}/v1/chat/completions"),
        );
        let headers = match &upstream.api_key {
            Some(key) => bearer(key)?,
            None => HeaderMap::new(),
        };
        let (models, completions) = (base.with_path(&models), base.with_path(&completions));
        Ok(Self {
            http,
            upstream: upstream.clone(),
            root: root.to_owned(),
            models,
            completions,
            headers,
        })
    }

    /// What the version's own model answers.
    pub(super) fn golden(&self) -> &[Golden] {
        &self.upstream.golden
    }

    /// Asks the same server for something else.
    #[cfg(feature = "llama-cpp")]
    pub(super) fn elsewhere(&self, path: &str, query: &[(&str, &str)]) -> Address {
        let root = self.models.path().strip_suffix("/v1/models").unwrap_or("");
        let to = self.models.with_path(&format!("{root}{path}"));
        if query.is_empty() {
            to
        } else {
            to.with_query(query)
        }
    }

    /// The reply to that, whatever its status.
    #[cfg(feature = "llama-cpp")]
    pub(super) async fn raw(
        &self,
        to: &Address,
        json: Option<Vec<u8>>,
        timeout: Duration,
    ) -> Result<Reply> {
        let call = Call {
            to,
            headers: self.headers.clone(),
            json,
            timeout,
            limit: REPLY,
        };
        self.http.send(call).await
    }

    /// The model name that is asked for.
    pub fn model(&self) -> &str {
        &self.upstream.model
    }

    /// What the model answers, within this time.
    ///
    /// # Errors
    /// `Permanent` where the server refuses (unknown model, bad request or key), answers with what is no chat completion, or
    /// answers as another model; `Transient` if it cannot be reached, is overloaded, fails or is late.
    pub async fn complete(&self, request: &ChatRequest, within: Duration) -> Result<ChatReply> {
        let ChatRequest {
            messages,
            max_tokens,
            temperature,
            seed,
            fields,
        } = request;
        let wire = WireRequest {
            model: &self.upstream.model,
            messages,
            stream: false,
            max_tokens: *max_tokens,
            temperature: *temperature,
            seed: *seed,
            fields,
        };
        let json = serde_json::to_vec(&wire)
            .map_err(|e| Error::permanent("the request cannot be written as JSON").because(e))?;
        let reply = self.ask(&self.completions, Some(json), within).await?;
        let wire: WireReply = self.parse(&self.completions, "a chat completion", &reply)?;
        let Some(choice) = wire.choices.into_iter().next() else {
            return Err(Error::permanent(format!(
                "{} answers without a choice: check that it is an OpenAI-compatible server",
                self.completions
            )));
        };
        let message = choice.message;
        self.check_model(wire.model.as_deref())?;
        Ok(ChatReply {
            text: message.content.unwrap_or_default(),
            reasoning: message
                .reasoning_content
                .or(message.reasoning)
                .unwrap_or_default(),
            finish: choice.finish_reason,
            model: wire.model,
            prompt_tokens: wire.usage.as_ref().and_then(|u| u.prompt_tokens),
            completion_tokens: wire.usage.as_ref().and_then(|u| u.completion_tokens),
        })
    }

    /// What another path of the same server answers. The path begins after the part of the address before `/v1`.
    #[cfg(feature = "evaluators")]
    pub(crate) async fn post<T: for<'de> Deserialize<'de>>(
        &self,
        path: &str,
        what: &str,
        body: &Value,
        within: Duration,
    ) -> Result<T> {
        let to = self.completions.with_path(&format!("{}{path}", self.root));
        let reply = self
            .ask(&to, Some(body.to_string().into_bytes()), within)
            .await?;
        self.parse(&to, what, &reply)
    }

    /// Checks that this is the model that was asked for, if the server says which it was.
    pub(crate) fn check_model(&self, answered: Option<&str>) -> Result<()> {
        let wanted = self
            .upstream
            .answers_as
            .as_deref()
            .unwrap_or(&self.upstream.model);
        match answered {
            Some(model) if model != wanted => Err(Error::permanent(format!(
                "{} was asked for model {:?} and answers as {:?}: check what runs there, \
                 or say with `answers_as` that this is right",
                self.completions,
                self.upstream.model,
                clip(model)
            ))),
            _ => Ok(()),
        }
    }

    /// Checks that the server lists the model.
    pub(super) async fn listed(&self, within: Duration) -> Result<()> {
        let reply = self.ask(&self.models, None, within).await?;
        let models: WireModels = self.parse(&self.models, "a list of models", &reply)?;
        if models
            .data
            .iter()
            .any(|model| model.id == self.upstream.model)
        {
            return Ok(());
        }
        let names: Vec<_> = models
            .data
            .iter()
            .take(20)
            .map(|model| clip(&model.id))
            .collect();
        Err(Error::permanent(format!(
            "{} does not list model {:?} under /v1/models, but {names:?}: load it there, or correct the name",
            self.models, self.upstream.model
        )))
    }

    async fn ask(&self, to: &Address, json: Option<Vec<u8>>, timeout: Duration) -> Result<Reply> {
        let reply = self
            .http
            .send(Call {
                to,
                headers: self.headers.clone(),
                json,
                timeout,
                limit: REPLY,
            })
            .await?;
        let Some(kind) = refusal(reply.status) else {
            return Ok(reply);
        };
        let advice = match reply.status {
            300..=399 => "redirects are not followed: give the final address",
            401 | 403 => "check the key",
            404 => "load the model there, or correct its name or the address",
            429 | 503 => "it is overloaded or still loading: try again",
            500..=599 => "see the server's own log",
            _ => "the server does not take this request",
        };
        let (status, said) = (reply.status, self.said(&reply.body));
        Err(Error::new(
            kind,
            format!(
                "{to} answers {status} for model {:?} ({said}): {advice}",
                self.upstream.model
            ),
        ))
    }

    /// Reads a reply of status 200; some servers report errors in such, too.
    fn parse<T: for<'de> Deserialize<'de>>(
        &self,
        to: &Address,
        what: &str,
        reply: &Reply,
    ) -> Result<T> {
        let error = match serde_json::from_slice::<Value>(&reply.body) {
            Ok(value) if value.get("error").is_some_and(|e| !e.is_null()) => {
                let code = value.pointer("/error/code").and_then(Value::as_u64);
                let kind = match code
                    .and_then(|code| u16::try_from(code).ok())
                    .and_then(refusal)
                {
                    Some(kind) => kind,
                    None => ErrorKind::Permanent,
                };
                let said = self.said(&reply.body);
                return Err(Error::new(
                    kind,
                    format!("{to} answers 200 with an error ({said}): see the server's own log"),
                ));
            }
            Ok(value) => match serde_json::from_value(value) {
                Ok(parsed) => return Ok(parsed),
                Err(e) => e,
            },
            Err(e) => e,
        };
        // The error of serde_json may quote the reply, which can be anybody's text: only where it is gets told.
        Err(Error::permanent(format!(
            "{to} answers with what is not {what} (line {}, column {}): check that it is an OpenAI-compatible server",
            error.line(),
            error.column()
        )))
    }

    /// What the server says about an error, cut short and without the key.
    pub(super) fn said(&self, body: &[u8]) -> String {
        let value: Option<Value> = serde_json::from_slice(body).ok();
        let text = value.as_ref().and_then(|value| {
            let error = value.get("error").unwrap_or(value);
            error
                .get("message")
                .or(Some(error))
                .and_then(Value::as_str)
                .map(str::to_owned)
        });
        let text = text.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
        match &self.upstream.api_key {
            Some(key) if !key.is_empty() => clip(&text.replace(key, "...")),
            _ => clip(&text),
        }
    }
}

impl PartialEq for ChatClient {
    fn eq(&self, other: &Self) -> bool {
        self.upstream == other.upstream
    }
}

impl fmt::Debug for ChatClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatClient")
            .field("to", &self.completions)
            .field("upstream", &self.upstream)
            .finish_non_exhaustive()
    }
}
