//! Versions on servers of llama.cpp: one model each, many that are loaded and unloaded, or LoRA adapters of one.

use super::chat::{ChatClient, Upstream};
use super::fleet::{Fleet, Wish};
use super::warm_up::WarmUp;
use crate::host::{Error, Result, ServingBackend};
use crate::http_client::{Authorities, Http, clip, refusal};
use crate::metrics_text::lines;
use async_trait::async_trait;
use llm_rollout::Position;
use llm_version_core::VersionId;
use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// For a question about the server itself.
const QUICK: Duration = Duration::from_secs(10);
/// How often is looked whether a model is loaded.
const AGAIN: Duration = Duration::from_millis(100);
/// Answered while a model is being loaded.
const LOADING: u16 = 503;
/// Answered where the server was started without what is asked for.
const NOT_ENABLED: u16 = 501;

/// Where a version runs on a `llama-server`, and how.
///
/// A server of one model answers requests for any model name, in the name that it was started with (`--alias`): give that as the
/// upstream's model, and say with [`Upstream::golden`] what the version answers.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaCpp {
    upstream: Upstream,
    mode: Mode,
    file: Option<String>,
    adapter: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Alone,
    Routed,
    Lora { id: u32, scale: f32 },
}

impl LlamaCpp {
    fn new(upstream: Upstream, mode: Mode) -> Self {
        Self {
            upstream,
            mode,
            file: None,
            adapter: None,
        }
    }

    /// A server of this model alone. The host starts and stops it; standby and retirement leave it running.
    pub fn server(upstream: Upstream) -> Self {
        Self::new(upstream, Mode::Alone)
    }

    /// A model of a server of many (`--models-dir` or `--models-preset`, and `--no-models-autoload`, without which anybody's request loads what it
    /// names). The model is loaded by `prepare`, and unloaded by `standby` and `retire`, unless another version runs as the same.
    pub fn routed(upstream: Upstream) -> Self {
        Self::new(upstream, Mode::Routed)
    }

    /// A LoRA adapter of a server of one model: by its number there, with this scale. Nobody gets it unless a request asks for it: give
    /// **each** version of that server the field of [`Self::lora_field`]; the base is the same adapter with scale 0.
    ///
    /// The server must be started with `--lora-scaled FILE:0` (`--lora-init-without-apply` leaves the scale at 1, whatever its help says) and
    /// `--cache-ram 0`. Otherwise, and for a request without the field, what the server remembers of a prompt may come from another scale:
    /// the answer is neither version's, with status 200.
    pub fn lora(upstream: Upstream, id: u32, scale: f32) -> Self {
        Self::new(upstream, Mode::Lora { id, scale })
    }

    /// The file that must be loaded, as the server names it: its path, or the end of it.
    #[must_use]
    pub fn file(mut self, path: impl Into<String>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// The file of the LoRA adapter, as the server names it: its path, or the end of it.
    #[must_use]
    pub fn adapter_file(mut self, path: impl Into<String>) -> Self {
        self.adapter = Some(path.into());
        self
    }

    /// What requests must hold as `lora` for this version to answer, for [`crate::apply::Profile::fixed`].
    ///
    /// ```
    /// use llm_serve_adapters::apply::Profile;
    /// use llm_serve_adapters::backend::{LlamaCpp, Upstream};
    ///
    /// let of_scale = |scale| LlamaCpp::lora(Upstream::new("http://10.0.0.7:8080", "chat"), 0, scale);
    /// let (base, tuned) = (of_scale(0.0), of_scale(1.0).adapter_file("/models/tuned.gguf"));
    /// let profiles = [&base, &tuned].map(|version| Profile::new("chat").fixed("lora", version.lora_field()));
    /// assert_eq!(tuned.lora_field(), serde_json::json!([{"id": 0, "scale": 1.0}]));
    /// # drop(profiles);
    /// ```
    pub fn lora_field(&self) -> Value {
        match self.mode {
            Mode::Lora { id, scale } => json!([{"id": id, "scale": scale}]),
            Mode::Alone | Mode::Routed => json!([]),
        }
    }
}

/// Serves versions through servers of llama.cpp (`llama-server`).
///
/// | | one model | router | LoRA |
/// |---|---|---|---|
/// | `prepare` | waits while it loads | loads the model | checks the adapter, and that nobody else gets it |
/// | `standby`, `retire` | leave it running | unload it | leave it running |
/// | `healthy` | by `/health` and its name | by its state | by `/health` and its name |
/// | `in_flight` | by `/metrics`, else `/slots` | the same of the model | cannot tell: other versions run there too |
///
/// `prepare` ends with real generations, and with the upstream's golden ones. What the server says of itself is never
/// enough: a single server answers for any model name, and a router's `/health` is 200 with nothing loaded.
///
/// On SIGTERM a `llama-server` closes its port, stops generating at once, leaves open streams silent for half a minute and then cuts them off with status
/// 200 and without `[DONE]`. To stop one: share 0 at the router, wait for `in_flight` 0, only then stop it.
///
/// Which position was newest for a version is kept in memory: right after a restart an old retirement is not recognised.
///
/// ```
/// use llm_serve_adapters::backend::{Golden, LlamaCpp, LlamaCppBackend, Upstream};
///
/// let v1 = format!("chat/v1.0.0-{}", "0".repeat(64)).parse()?;
/// let v2 = format!("chat/v1.1.0-{}", "1".repeat(64)).parse()?;
/// let golden = Golden::new("Name three colors.", "1. Red\n2. Blue\n3. Green").field("cache_prompt", false.into());
/// let backend = LlamaCppBackend::builder()
///     .version(v1, LlamaCpp::server(Upstream::new("http://10.0.0.7:8080", "v1")).file("/models/v1.gguf"))
///     .version(v2, LlamaCpp::routed(Upstream::new("http://10.0.0.8:8080", "v2").golden(golden)))
///     .build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LlamaCppBackend {
    http: Http,
    fleet: Fleet<Place>,
    warm_up: WarmUp,
}

/// Builds a [`LlamaCppBackend`].
#[must_use = "it does nothing until it is built"]
pub struct LlamaCppBackendBuilder {
    versions: Vec<(VersionId, LlamaCpp)>,
    warm_up: WarmUp,
    authorities: Authorities,
}

impl LlamaCppBackendBuilder {
    /// Where a version runs.
    pub fn version(mut self, version: VersionId, place: LlamaCpp) -> Self {
        self.versions.push((version, place));
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

    /// How long the whole of one `prepare` may take, and an unloading; 60 seconds unless told otherwise.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.warm_up.deadline = deadline;
        self
    }

    /// The backend.
    ///
    /// # Errors
    /// `Permanent` for an upstream that cannot be used, a version with two, or a warm-up that asks nothing.
    pub fn build(self) -> Result<LlamaCppBackend> {
        let backend = LlamaCppBackend {
            http: Http::trusting(&self.authorities)?,
            fleet: Fleet::default(),
            warm_up: self.warm_up.checked()?,
        };
        for (version, place) in self.versions {
            backend.add(version, place)?;
        }
        Ok(backend)
    }
}

impl fmt::Debug for LlamaCppBackendBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LlamaCppBackendBuilder")
            .field("versions", &self.versions)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
struct Place {
    client: ChatClient,
    of: LlamaCpp,
    /// Held while the server is told to load or unload: so that a later wish is told later.
    turn: Arc<Mutex<()>>,
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.of == other.of
    }
}

/// What a router of models is doing with one.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Unloaded,
    Loading,
    Loaded,
    /// The next request wakes it.
    Asleep,
    /// It ended by itself, as this was said of it.
    Failed(String),
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    status: Option<Status>,
}

#[derive(Deserialize)]
struct Status {
    value: String,
    #[serde(default)]
    failed: bool,
    exit_code: Option<i64>,
}

#[derive(Deserialize)]
struct Props {
    #[serde(default)]
    model_path: String,
}

#[derive(Deserialize)]
struct Adapter {
    id: u32,
    #[serde(default)]
    path: String,
    scale: f64,
}

#[derive(Deserialize)]
struct Working {
    #[serde(default)]
    is_processing: bool,
}

impl LlamaCppBackend {
    /// Begins with no version, and a warm-up of three short questions, 16 tokens each, within 60 seconds.
    pub fn builder() -> LlamaCppBackendBuilder {
        LlamaCppBackendBuilder {
            versions: Vec::new(),
            warm_up: WarmUp::default(),
            authorities: Authorities::default(),
        }
    }

    /// Says where a new version runs. Saying the same again changes nothing.
    ///
    /// # Errors
    /// `Permanent` for an upstream that cannot be used, or a version that has another one already.
    pub fn add(&self, version: VersionId, place: LlamaCpp) -> Result<()> {
        let client = ChatClient::with(self.http.clone(), &place.upstream)?;
        let place = Place {
            client,
            of: place,
            turn: Arc::default(),
        };
        self.fleet.add(version, place)
    }

    /// A client for the model that the version runs as, if it has a place.
    pub fn client(&self, version: &VersionId) -> Option<ChatClient> {
        self.fleet.place(version).map(|place| place.client)
    }

    /// Whether the version has been prepared, and neither retired nor put on standby since.
    pub fn is_ready(&self, version: &VersionId) -> bool {
        self.fleet.is_ready(version)
    }

    /// Has the router load the model, and waits until it has.
    async fn load(
        &self,
        version: &VersionId,
        place: &Place,
        at: Position,
        left: &(impl Fn() -> Result<Duration> + Sync),
    ) -> Result<()> {
        let mut told = false;
        loop {
            self.fleet.stands(Wish::Load, version, at)?;
            match place.state(left()?).await? {
                State::Loaded | State::Asleep => return Ok(()),
                State::Loading => {}
                State::Failed(why) if told => {
                    return Err(Error::transient(format!(
                        "model {:?} of version {version} could not be loaded ({why}): look at the log of its llama-server; \
                         its file may be damaged, or the memory too small",
                        place.client.model()
                    )));
                }
                State::Unloaded | State::Failed(_) => {
                    let _turn = place.turn.lock().await;
                    self.fleet.stands(Wish::Load, version, at)?;
                    place.tell("/models/load", "already", left()?).await?;
                    told = true;
                }
            }
            tokio::time::sleep(AGAIN.min(left()?)).await;
        }
    }

    /// Has the router unload the model, unless another version needs it or a later wish has come, and waits until it has.
    async fn unload(
        &self,
        wish: Wish,
        version: &VersionId,
        place: &Place,
        at: Position,
    ) -> Result<()> {
        let left = self.warm_up.clock(version, &place.client);
        loop {
            match place.state(left()?).await? {
                State::Unloaded | State::Failed(_) => return Ok(()),
                State::Loaded | State::Asleep | State::Loading => {
                    let _turn = place.turn.lock().await;
                    let shared = self
                        .fleet
                        .is_shared(version, |other| place.is_same_model(other));
                    if shared || self.fleet.stands(wish, version, at).is_err() {
                        return Ok(());
                    }
                    place.tell("/models/unload", "not running", left()?).await?;
                }
            }
            tokio::time::sleep(AGAIN.min(left()?)).await;
        }
    }
}

impl Place {
    fn is_same_model(&self, other: &Self) -> bool {
        other.of.mode == Mode::Routed
            && self.client.elsewhere("/models", &[]).identity()
                == other.client.elsewhere("/models", &[]).identity()
            && self.client.model() == other.client.model()
    }

    /// The query that says which model of a router is meant.
    fn query(&self) -> Vec<(&str, &str)> {
        match self.of.mode {
            Mode::Routed => vec![("model", self.client.model())],
            Mode::Alone | Mode::Lora { .. } => Vec::new(),
        }
    }

    /// What the server says at this path: its status, and what it says.
    async fn says(
        &self,
        path: &str,
        query: &[(&str, &str)],
        within: Duration,
    ) -> Result<(u16, Vec<u8>)> {
        let to = self.client.elsewhere(path, query);
        let reply = self.client.raw(&to, None, within).await?;
        Ok((reply.status, reply.body))
    }

    /// The same as JSON; an error for another status than 200.
    async fn told<T: for<'de> Deserialize<'de>>(
        &self,
        path: &str,
        query: &[(&str, &str)],
        within: Duration,
    ) -> Result<T> {
        let (status, body) = self.says(path, query, within).await?;
        if let Some(kind) = refusal(status) {
            let said = self.client.said(&body);
            return Err(Error::new(
                kind,
                format!(
                    "{} answers {status} at {path} ({said}): check that it is a llama-server",
                    self.client.elsewhere("", &[])
                ),
            ));
        }
        serde_json::from_slice(&body).map_err(|e| {
            Error::permanent(format!(
                "{} answers at {path} with what llama-server does not (line {}, column {}): check the address",
                self.client.elsewhere("", &[]),
                e.line(),
                e.column()
            ))
        })
    }

    /// Tells a router of models to load or unload it; a refusal that says so is as good.
    async fn tell(&self, path: &str, done: &str, within: Duration) -> Result<()> {
        let to = self.client.elsewhere(path, &[]);
        let json = json!({"model": self.client.model()}).to_string();
        let reply = self
            .client
            .raw(&to, Some(json.into_bytes()), within)
            .await?;
        let said = self.client.said(&reply.body);
        match refusal(reply.status) {
            Some(_) if said.contains(done) => Ok(()),
            Some(kind) => Err(Error::new(
                kind,
                format!(
                    "{to} answers {} at {path} for model {:?} ({said}): check that it runs with --models-dir or --models-preset",
                    reply.status,
                    self.client.model()
                ),
            )),
            None => Ok(()),
        }
    }

    /// What a router of models is doing with it.
    async fn state(&self, within: Duration) -> Result<State> {
        let models: Models = self.told("/models", &[], within.min(QUICK)).await?;
        let wanted = self.client.model();
        let Some(model) = models.data.iter().find(|model| model.id == wanted) else {
            let names: Vec<_> = models.data.iter().take(20).map(|m| clip(&m.id)).collect();
            return Err(Error::permanent(format!(
                "{} has no model {wanted:?}, but {names:?}: put its file into the server's folder of models, or correct the name",
                self.client.elsewhere("", &[])
            )));
        };
        let Some(status) = &model.status else {
            return Err(Error::permanent(format!(
                "{} does not say whether model {wanted:?} is loaded: it is a server of one model; say `LlamaCpp::server`",
                self.client.elsewhere("", &[])
            )));
        };
        Ok(match status.value.as_str() {
            "loaded" => State::Loaded,
            "sleeping" => State::Asleep,
            "loading" => State::Loading,
            "unloaded" if !status.failed => State::Unloaded,
            other => State::Failed(match status.exit_code {
                Some(code) => format!("{}, exit code {code}", clip(other)),
                None => clip(other),
            }),
        })
    }

    /// Waits while a server of one model is loading it.
    async fn loaded(&self, left: &(impl Fn() -> Result<Duration> + Sync)) -> Result<()> {
        loop {
            let (status, body) = self.says("/health", &[], left()?.min(QUICK)).await?;
            match refusal(status) {
                None => return Ok(()),
                Some(_) if status == LOADING => tokio::time::sleep(AGAIN.min(left()?)).await,
                Some(kind) => {
                    let said = self.client.said(&body);
                    let to = self.client.elsewhere("", &[]);
                    let text = format!(
                        "{to} answers {status} at /health ({said}): check that it is a llama-server"
                    );
                    return Err(Error::new(kind, text));
                }
            }
        }
    }

    /// Checks that the file that is loaded is the version's.
    async fn check_file(&self, version: &VersionId, within: Duration) -> Result<()> {
        let Some(file) = &self.of.file else {
            return Ok(());
        };
        let props: Props = self.told("/props", &self.query(), within).await?;
        if is_path(&props.model_path, file) {
            return Ok(());
        }
        Err(Error::permanent(format!(
            "version {version} is not what runs as model {:?}: the server has loaded {:?} instead of {file:?}; start it with the right file",
            self.client.model(),
            clip(&props.model_path)
        )))
    }

    /// Checks that the adapter is there, that it is the right one, and that nobody gets one who does not ask for it.
    async fn check_adapters(&self, version: &VersionId, within: Duration) -> Result<()> {
        let Mode::Lora { id: wanted, .. } = self.of.mode else {
            return Ok(());
        };
        let adapters: Vec<Adapter> = self.told("/lora-adapters", &[], within).await?;
        let to = self.client.elsewhere("", &[]);
        let Some(mine) = adapters.iter().find(|adapter| adapter.id == wanted) else {
            return Err(Error::permanent(format!(
                "{to} has {} LoRA adapters, and none of number {wanted}: start it with --lora-scaled FILE:0",
                adapters.len()
            )));
        };
        if let Some(file) = self.of.adapter.as_ref().filter(|f| !is_path(&mine.path, f)) {
            return Err(Error::permanent(format!(
                "version {version} is not LoRA adapter {wanted} of {to}: that is {:?} instead of {file:?}; correct the number, or start \
                 the server with the right file",
                clip(&mine.path)
            )));
        }
        match adapters.iter().find(|adapter| adapter.scale != 0.0) {
            None => Ok(()),
            Some(adapter) => Err(Error::permanent(format!(
                "{to} gives LoRA adapter {} with scale {} to everybody, users of other versions too: start it with \
                 --lora-scaled FILE:0 (--lora-init-without-apply leaves the scale at 1), or set it to 0 at POST /lora-adapters",
                adapter.id, adapter.scale
            ))),
        }
    }

    fn fields(&self) -> Vec<(&'static str, Value)> {
        match self.of.mode {
            Mode::Lora { .. } => vec![("lora", self.of.lora_field())],
            Mode::Alone | Mode::Routed => Vec::new(),
        }
    }

    /// Requests that run or wait, by the server's metrics; none if it was started without.
    async fn by_metrics(&self) -> Result<Option<u64>> {
        let (status, body) = self.says("/metrics", &self.query(), QUICK).await?;
        if status == LOADING {
            return Ok(Some(0));
        }
        if status == NOT_ENABLED {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&body);
        let names = ["llamacpp:requests_processing", "llamacpp:requests_deferred"];
        let found = lines(&text, &|name| names.contains(&name))?;
        if refusal(status).is_some() || found.len() != names.len() {
            return Err(Error::transient(format!(
                "{} answers {status} at /metrics without {names:?}: check that it is a llama-server",
                self.client.elsewhere("", &[])
            )));
        }
        let sum: f64 = found.iter().map(|line| line.value).sum();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count; what is none becomes 0 or the most"
        )]
        Ok(Some(sum as u64))
    }

    /// Requests that run, by the server's slots; none if it was started without.
    async fn by_slots(&self) -> Result<Option<u64>> {
        let (status, body) = self.says("/slots", &self.query(), QUICK).await?;
        if status == NOT_ENABLED {
            return Ok(None);
        }
        let slots: Option<Vec<Working>> = serde_json::from_slice(&body).ok();
        match slots {
            Some(slots) if status == 200 => {
                let busy = slots.iter().filter(|slot| slot.is_processing).count();
                Ok(Some(busy as u64))
            }
            _ => Err(Error::transient(format!(
                "{} answers {status} at /slots with what is none: check that it is a llama-server",
                self.client.elsewhere("", &[])
            ))),
        }
    }
}

/// Whether the server's path is this file, or ends with it.
fn is_path(path: &str, file: &str) -> bool {
    path.strip_suffix(file)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('/') || file.starts_with('/'))
}

#[async_trait]
impl ServingBackend for LlamaCppBackend {
    async fn prepare(&self, version: &VersionId, at: Position) -> Result<()> {
        let place = self.fleet.load(version, at)?;
        let left = self.warm_up.clock(version, &place.client);
        match place.of.mode {
            Mode::Routed => self.load(version, &place, at, &left).await?,
            Mode::Alone | Mode::Lora { .. } => {
                place.loaded(&left).await?;
                place.client.listed(left()?).await?;
            }
        }
        place.check_file(version, left()?.min(QUICK)).await?;
        place.check_adapters(version, left()?.min(QUICK)).await?;
        let fields = place.fields();
        self.warm_up
            .run(version, &place.client, &fields, left)
            .await?;
        self.fleet.ready(version, at)
    }

    async fn standby(&self, version: &VersionId, at: Position) -> Result<()> {
        let routed = |place: &Place| place.of.mode == Mode::Routed;
        match self.fleet.place(version) {
            Some(place) if routed(&place) => {
                self.fleet.begin(Wish::Standby, version, at)?;
                self.unload(Wish::Standby, version, &place, at).await
            }
            // It goes on running, and can serve at once.
            _ => Ok(()),
        }
    }

    async fn healthy(&self, version: &VersionId) -> Result<Option<bool>> {
        let Some(place) = self.fleet.place(version).filter(|_| self.is_ready(version)) else {
            return Ok(Some(false));
        };
        Ok(Some(match place.of.mode {
            Mode::Routed => matches!(place.state(QUICK).await?, State::Loaded | State::Asleep),
            Mode::Alone | Mode::Lora { .. } => {
                let (status, _) = place.says("/health", &[], QUICK).await?;
                status == 200 && place.client.listed(QUICK).await.is_ok()
            }
        }))
    }

    async fn in_flight(&self, version: &VersionId) -> Result<Option<u64>> {
        let Some(place) = self.fleet.place(version) else {
            return Ok(Some(0));
        };
        match place.of.mode {
            Mode::Lora { .. } => return Ok(None),
            // A question about a model that is not loaded may load or wake it.
            Mode::Routed if place.state(QUICK).await? != State::Loaded => return Ok(Some(0)),
            Mode::Alone | Mode::Routed => {}
        }
        match place.by_metrics().await? {
            None => place.by_slots().await,
            told => Ok(told),
        }
    }

    async fn retire(&self, version: &VersionId, at: Position) -> Result<()> {
        match self.fleet.begin(Wish::Retire, version, at)? {
            Some(place) if place.of.mode == Mode::Routed => {
                self.unload(Wish::Retire, version, &place, at).await
            }
            // What runs nowhere has been retired.
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
