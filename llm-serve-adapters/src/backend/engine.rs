//! Versions on OpenAI-compatible engines that can be told what to load: what vLLM and SGLang have in common.
#![allow(
    dead_code,
    unused_variables,
    reason = "each engine needs its part of it"
)]

use super::chat::{ChatClient, Upstream};
use super::control::{Control, Said};
use super::fleet::{Deadline, Fleet, Wish};
use super::identity::Golden;
use super::warm_up::WarmUp;
use crate::host::{Error, ErrorKind, Result, ServingBackend};
use crate::http_client::{Authorities, Http, clip, refusal};
use async_trait::async_trait;
use llm_rollout::Position;
use llm_version_core::VersionId;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

const DEADLINE: Duration = Duration::from_secs(300);
/// One question about health or what runs.
const GLANCE: Duration = Duration::from_secs(10);

type Counter = Arc<dyn Fn(&VersionId) -> Option<u64> + Send + Sync>;

/// What a version is on an engine: a server of its own, or a `LoRA` adapter on a server that others may share.
///
/// ```
/// use llm_serve_adapters::backend::{EngineVersion, Golden};
///
/// let v1 = EngineVersion::server("http://10.0.0.7:8000", "chat").weights("chat-v1");
/// let v2 = EngineVersion::lora("http://10.0.0.7:8000", "/models/adapters/chat-v2").golden(Golden::new("2 + 2 =", "4"));
/// ```
#[derive(Clone)]
pub struct EngineVersion {
    pub(super) server: String,
    key: Option<String>,
    pub(super) kind: Kind,
    /// What the engine calls the weights that it runs.
    pub(super) weights: Option<String>,
    pub(super) checksums: BTreeMap<String, String>,
    golden: Vec<Golden>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Server { model: String, path: Option<String> },
    Lora { path: String },
}

/// Places are told apart by where they are, not by what is asked of them.
impl PartialEq for EngineVersion {
    fn eq(&self, other: &Self) -> bool {
        (&self.server, &self.kind) == (&other.server, &other.kind)
    }
}

impl EngineVersion {
    fn new(server: impl Into<String>, kind: Kind) -> Self {
        Self {
            server: server.into(),
            key: None,
            kind,
            weights: None,
            checksums: BTreeMap::new(),
            golden: Vec::new(),
        }
    }

    /// A server that serves this version and no other, under this model name. The host starts and stops it.
    pub fn server(address: impl Into<String>, model: impl Into<String>) -> Self {
        let (model, path) = (model.into(), None);
        Self::new(address, Kind::Server { model, path })
    }

    /// An adapter in this folder, as the server sees it. It is loaded under a name with the version's hash, so that no
    /// other version ever had it; give each version a folder of its own, too.
    pub fn lora(address: impl Into<String>, path: impl Into<String>) -> Self {
        Self::new(address, Kind::Lora { path: path.into() })
    }

    /// Sends this key as a bearer token.
    #[must_use]
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// What the engine must call the weights that it runs (its "weight version").
    #[must_use]
    pub fn weights(mut self, name: impl Into<String>) -> Self {
        self.weights = Some(name.into());
        self
    }

    /// What the engine must find the checksums of its weights to be (vLLM).
    #[must_use]
    pub fn checksums<K: Into<String>, V: Into<String>>(
        mut self,
        checksums: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let pairs = checksums.into_iter().map(|(k, v)| (k.into(), v.into()));
        self.checksums.extend(pairs);
        self
    }

    /// Where the weights are, as the server sees it: an idle server that runs others is told to load these (`SGLang`). They
    /// go by the name given with [`Self::weights`].
    #[must_use]
    pub fn load_from(mut self, folder: impl Into<String>) -> Self {
        if let Kind::Server { path, .. } = &mut self.kind {
            *path = Some(folder.into());
        }
        self
    }

    /// A generation by which the version is told from every other.
    #[must_use]
    pub fn golden(mut self, golden: Golden) -> Self {
        self.golden.push(golden);
        self
    }
}

impl fmt::Debug for EngineVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the address: before it is checked it may hold a password.
        f.debug_struct("EngineVersion")
            .field("kind", &self.kind)
            .field("weights", &self.weights)
            .finish_non_exhaustive()
    }
}

/// What the engines do each in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    #[cfg(feature = "vllm")]
    Vllm,
    #[cfg(feature = "sglang")]
    Sglang,
    #[cfg(feature = "tgi")]
    Tgi,
    #[cfg(feature = "mistral-rs")]
    MistralRs,
}

/// One version on its server, ready to be talked to.
pub(super) struct Place {
    pub(super) control: Control,
    pub(super) version: EngineVersion,
    /// The model name that it goes by.
    pub(super) model: String,
}

impl Place {
    fn is_lora(&self) -> bool {
        matches!(self.version.kind, Kind::Lora { .. })
    }

    /// The name of a version's adapter: no other version has it.
    fn adapter(version: &VersionId) -> String {
        let hash = version.digest().to_string();
        let hash = hash.rsplit(':').next().unwrap_or_default();
        format!("{}-{}", version.name(), hash.get(..16).unwrap_or(hash))
    }

    /// A switch that only some servers have: whether it was thrown. A server without it answers 404 or 405.
    pub(super) async fn switch(
        &self,
        path: &str,
        query: &[(&str, &str)],
        json: Option<&Value>,
        within: Duration,
    ) -> Result<bool> {
        let said = self
            .control
            .call(crate::http_client::Method::POST, path, query, json, within)
            .await?;
        match said.status {
            404 | 405 => Ok(false),
            _ => said.accepted("see the server's log").map(|_| true),
        }
    }

    /// What only some servers tell.
    pub(super) async fn told(&self, path: &str, within: Duration) -> Result<Option<Value>> {
        let said = self.control.get(path, within).await?;
        match said.status {
            404 | 405 => Ok(None),
            _ => said
                .accepted("see the server's log")?
                .json("what it is asked for")
                .map(Some),
        }
    }
}

/// Serves versions through engines that are told over HTTP what to load: each version is a server of its own, or a `LoRA` adapter on a
/// server. Made by `EngineBackend::vllm` (feature `vllm`), `EngineBackend::sglang` (feature
/// `sglang`), `EngineBackend::tgi` (feature `tgi`) or `EngineBackend::mistral_rs` (feature `mistral-rs`); the last two serve no adapters here, and
/// tell of themselves there.
///
/// A version is ready once the engine is awake, lists the model, runs the weights that it should where it can tell
/// ([`EngineVersion::weights`], [`EngineVersion::checksums`]), and has answered: each prompt of the warm-up with some text, and as each
/// [`Golden`] says. Whether it is healthy is decided **by a real generation of one token**, never by `/health`, which goes on to say
/// 200 while an engine that shuts down answers 500 to everybody.
///
/// | | vLLM | SGLang |
/// |---|---|---|
/// | `prepare` of a server | wakes and resumes it (needs `VLLM_SERVER_DEV_MODE=1`; otherwise it must be awake) | continues it, resumes its memory, loads its weights from disk if it runs others |
/// | `prepare` of an adapter | loads it; never in place, which would keep stale cache blocks (needs `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True` and one API server) | loads it |
/// | `standby` of a server | sleeps at level 1, once its requests are done | releases its memory, once it is paused |
/// | `retire` of a server | aborts what runs and refuses more; the host stops it | the same |
/// | `standby` and `retire` of an adapter | unloads it; what runs on it ends by itself | unloads it once nothing runs on it |
/// | weights told | `/weight_info`, `/weight_checker` (both need the dev mode) | `/model_info` |
/// | what runs | running and waiting in `/metrics`; else `/load`, where 0 means nothing unless it is tracked | running and queued in `/metrics` (needs `--enable-metrics`) |
///
/// The metrics do not tell adapters apart: for an adapter, what runs is known only while nothing runs on its server, or from the host's own
/// count. **Stop a server only when nothing runs on it**: vLLM leaves open streams silent for minutes, and SGLang's own drain has no end. Which position was
/// newest is kept in memory: right after a restart an old retirement is not recognised.
///
/// ```
/// # #[cfg(feature = "vllm")]
/// # fn build() -> llm_serve_adapters::host::Result<()> {
/// use llm_serve_adapters::backend::{EngineBackend, EngineVersion};
/// # let v1 = format!("chat/v1.0.0-{}", "0".repeat(64)).parse().unwrap();
/// # let v2 = format!("chat/v1.1.0-{}", "1".repeat(64)).parse().unwrap();
///
/// let backend = EngineBackend::vllm()
///     .version(v1, EngineVersion::server("http://10.0.0.7:8000", "chat"))
///     .version(v2, EngineVersion::lora("http://10.0.0.7:8000", "/models/adapters/chat-v2"))
///     .build()?;
/// # Ok(())
/// # }
/// ```
pub struct EngineBackend {
    http: Http,
    dialect: Dialect,
    fleet: Fleet<EngineVersion>,
    warm_up: WarmUp,
    counter: Option<Counter>,
    /// One change at a time.
    turn: Mutex<()>,
}

/// Builds an [`EngineBackend`].
#[must_use = "it does nothing until it is built"]
pub struct EngineBackendBuilder {
    dialect: Dialect,
    versions: Vec<(VersionId, EngineVersion)>,
    warm_up: WarmUp,
    counter: Option<Counter>,
    authorities: Authorities,
}

impl EngineBackendBuilder {
    /// What a version is, and where.
    pub fn version(mut self, version: VersionId, place: EngineVersion) -> Self {
        self.versions.push((version, place));
        self
    }

    /// Trusts these certificate authorities beside those of the system.
    pub fn trust(mut self, authorities: Authorities) -> Self {
        self.authorities = authorities;
        self
    }

    /// What the warm-up asks, instead of one short question.
    pub fn warm_up(mut self, prompts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.warm_up = self.warm_up.prompts(prompts);
        self
    }

    /// How long one `prepare`, `standby` or `retire` may take, five minutes unless told otherwise.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.warm_up.deadline = deadline;
        self
    }

    /// How many requests are running on a version, as the host counts them. It must not block.
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
    /// `Permanent` for an address that cannot be used, two versions in one place, or a deadline of nothing.
    pub fn build(self) -> Result<EngineBackend> {
        let backend = EngineBackend {
            http: Http::trusting(&self.authorities)?,
            dialect: self.dialect,
            fleet: Fleet::default(),
            warm_up: self.warm_up.checked()?,
            counter: self.counter,
            turn: Mutex::default(),
        };
        for (version, place) in self.versions {
            backend.add(version, place)?;
        }
        Ok(backend)
    }
}

impl fmt::Debug for EngineBackendBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineBackendBuilder")
            .field("dialect", &self.dialect)
            .field("versions", &self.versions)
            .finish_non_exhaustive()
    }
}

impl EngineBackend {
    pub(super) fn of(dialect: Dialect) -> EngineBackendBuilder {
        let mut warm_up = WarmUp::default().prompts(["Say hello."]);
        warm_up.deadline = DEADLINE;
        EngineBackendBuilder {
            dialect,
            versions: Vec::new(),
            warm_up,
            counter: None,
            authorities: Authorities::default(),
        }
    }

    /// Says what a new version is, and where. Saying the same again changes nothing.
    ///
    /// # Errors
    /// `Permanent` for an address or key that cannot be used, or a version or place that is taken.
    pub fn add(&self, version: VersionId, place: EngineVersion) -> Result<()> {
        if matches!(place.kind, Kind::Lora { .. }) && self.dialect.adapters().is_none() {
            return Err(Error::permanent(format!(
                "version {version} is a LoRA adapter, which cannot be loaded into {:?} here: make it a model of its own",
                self.dialect
            )));
        }
        self.at(&version, &place)?;
        self.fleet.add_alone(version, place)
    }

    /// Whether the version has been prepared, and not retired since.
    pub fn is_ready(&self, version: &VersionId) -> bool {
        self.fleet.is_ready(version)
    }

    /// The model name that a version goes by on its server, if it is known here.
    pub fn model(&self, version: &VersionId) -> Option<String> {
        let place = self.at(version, &self.fleet.place(version)?);
        place.ok().map(|place| place.model)
    }

    fn at(&self, version: &VersionId, place: &EngineVersion) -> Result<Place> {
        let model = match &place.kind {
            Kind::Server { model, .. } if model.is_empty() => {
                return Err(Error::permanent(format!(
                    "version {version} has no model name: give one of those under /v1/models"
                )));
            }
            Kind::Server { model, .. } => model.clone(),
            Kind::Lora { .. } => Place::adapter(version),
        };
        let base = place.server.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base);
        Ok(Place {
            control: Control::new(self.http.clone(), base, place.key.as_deref())?,
            version: place.clone(),
            model,
        })
    }

    /// What the server lists: where the model of this name comes from, if it is there.
    async fn listed(place: &Place, within: Duration) -> Result<Option<String>> {
        let said = place.control.get("/v1/models", within).await?;
        let models = said
            .accepted("check the address and the key")?
            .json("a list of models")?;
        let all = models.get("data").and_then(Value::as_array);
        let text = |model: &Value, field: &str| {
            model.get(field).and_then(Value::as_str).map(str::to_owned)
        };
        let found = all.and_then(|all| {
            all.iter()
                .find(|m| text(m, "id").as_ref() == Some(&place.model))
        });
        Ok(found.map(|model| text(model, "root").unwrap_or_default()))
    }

    async fn load_adapter(
        &self,
        place: &Place,
        folder: &str,
        what: &str,
        deadline: Deadline,
    ) -> Result<()> {
        if Self::listed(place, deadline.left(what)?).await?.is_none() {
            let body = json!({"lora_name": place.model, "lora_path": folder});
            let said = place
                .control
                .post(self.dialect.adapter_path(0), &body, deadline.left(what)?)
                .await?;
            self.adapter_said(&said, place, "already")?;
        }
        match Self::listed(place, deadline.left(what)?).await? {
            // An engine that does not tell where it comes from says nothing against it.
            Some(root) if root.is_empty() || root == folder => Ok(()),
            Some(root) => Err(Error::permanent(format!(
                "the server has adapter {:?} from {:?}, not from {folder:?}: unload it there",
                place.model,
                clip(&root)
            ))),
            None => Err(Error::permanent(format!(
                "the server took adapter {:?} and does not list it under /v1/models: see its log",
                place.model
            ))),
        }
    }

    /// Whether an adapter was loaded or unloaded; that it was so before is as good.
    fn adapter_said(&self, said: &Said, place: &Place, before: &str) -> Result<()> {
        let text = said.text();
        if said.is_ok()
            || (matches!(said.status, 400 | 404)
                && text.contains(&place.model)
                && text.contains(before))
        {
            return Ok(());
        }
        if matches!(said.status, 404 | 405) && !text.contains(&place.model) {
            return Err(said.error(ErrorKind::Permanent, self.dialect.adapter_path(2)));
        }
        let kind = refusal(said.status).unwrap_or(ErrorKind::Transient);
        Err(said.error(
            kind,
            "the adapter cannot be loaded or unloaded: check its folder and its rank",
        ))
    }

    async fn unload_adapter(&self, place: &Place, what: &str, deadline: Deadline) -> Result<()> {
        if Self::listed(place, deadline.left(what)?).await?.is_none() {
            return Ok(());
        }
        let body = json!({"lora_name": place.model});
        let said = place
            .control
            .post(self.dialect.adapter_path(1), &body, deadline.left(what)?)
            .await?;
        self.adapter_said(&said, place, "cannot be found")
    }

    async fn check(
        &self,
        version: &VersionId,
        place: &Place,
        what: &str,
        deadline: Deadline,
    ) -> Result<()> {
        let mut upstream = Upstream::new(&place.version.server, &place.model);
        if let Some(key) = &place.version.key {
            upstream = upstream.api_key(key);
        }
        for golden in &place.version.golden {
            upstream = upstream.golden(golden.clone());
        }
        let client = ChatClient::with(self.http.clone(), &upstream)?;
        client.listed(deadline.left(what)?).await?;
        self.warm_up
            .run(version, &client, &[], || deadline.left(what))
            .await
    }

    /// Takes a version out of service, for good or to stand by.
    async fn take_off(&self, version: &VersionId, at: Position, for_good: bool) -> Result<()> {
        let Some(place) = self.fleet.begin(Wish::Retire, version, at)? else {
            return Ok(());
        };
        let place = self.at(version, &place)?;
        let deadline = Deadline::after(self.warm_up.deadline);
        let what = format!(
            "taking version {version} (model {:?}) out of service",
            place.model
        );
        let _turn = deadline.of(&what, self.turn.lock()).await?;
        // Prepared again in the meantime: it stays.
        if self.fleet.is_ready(version) {
            return Ok(());
        }
        if place.is_lora() {
            self.unload_adapter(&place, &what, deadline).await
        } else if for_good {
            self.dialect.stop(&place, deadline.left(&what)?).await
        } else {
            self.dialect.sleep(&place, &what, deadline).await
        }
    }
}

impl fmt::Debug for EngineBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineBackend")
            .field("dialect", &self.dialect)
            .field("versions", &self.fleet)
            .field("deadline", &self.warm_up.deadline)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl ServingBackend for EngineBackend {
    async fn prepare(&self, version: &VersionId, at: Position) -> Result<()> {
        let place = self.at(version, &self.fleet.load(version, at)?)?;
        let deadline = Deadline::after(self.warm_up.deadline);
        let what = format!("loading version {version} (model {:?})", place.model);
        let done = async {
            {
                let _turn = deadline.of(&what, self.turn.lock()).await?;
                self.fleet.stands(Wish::Load, version, at)?;
                match &place.version.kind {
                    Kind::Lora { path } => self.load_adapter(&place, path, &what, deadline).await?,
                    Kind::Server { path, .. } => {
                        self.dialect
                            .wake(&place, path.as_deref(), &what, deadline)
                            .await?;
                    }
                }
                self.dialect.verify(&place, &what, deadline).await?;
            }
            tokio::select! {
                done = self.check(version, &place, &what, deadline) => done,
                // A server that has been paused in the meantime holds back what it is asked.
                later = self.fleet.overtaken(version, at) => Err(later),
            }
        };
        let done = done.await;
        // Whatever went wrong: if a later order came, that is why.
        self.fleet.stands(Wish::Load, version, at)?;
        done?;
        self.fleet.ready(version, at)
    }

    async fn standby(&self, version: &VersionId, at: Position) -> Result<()> {
        self.take_off(version, at, false).await
    }

    async fn healthy(&self, version: &VersionId) -> Result<Option<bool>> {
        let Some(place) = self.fleet.place(version) else {
            return Ok(None);
        };
        // A server that could not be put to sleep goes on.
        if self.fleet.rests(version) {
            return Ok(Some(false));
        }
        let place = self.at(version, &place)?;
        let body = json!({
            "model": place.model, "max_tokens": 1, "stream": false,
            "messages": [{"role": "user", "content": "Say hello."}],
        });
        let said = place
            .control
            .post("/v1/chat/completions", &body, GLANCE)
            .await?;
        // Some engines put an error into a reply of status 200.
        let error = said
            .json("a chat completion")
            .ok()
            .is_none_or(|reply| reply.get("error").is_some_and(|e| !e.is_null()));
        Ok(Some(said.is_ok() && !error))
    }

    async fn in_flight(&self, version: &VersionId) -> Result<Option<u64>> {
        let counted = self.counter.as_ref().and_then(|count| count(version));
        let Some(place) = self.fleet.place(version) else {
            return Ok(counted);
        };
        let place = self.at(version, &place)?;
        let told = self.dialect.running(&place, GLANCE).await?;
        Ok(match (counted, told) {
            // The server's number is about all that it serves.
            (Some(counted), told) if !place.is_lora() => Some(counted.max(told.unwrap_or(0))),
            (Some(counted), _) => Some(counted),
            (None, told) => told.filter(|&n| n == 0 || !place.is_lora()),
        })
    }

    async fn retire(&self, version: &VersionId, at: Position) -> Result<()> {
        self.take_off(version, at, true).await
    }
}

impl Dialect {
    /// Where adapters are loaded and unloaded, and what to do if the server does not know these paths; an engine that cannot be told
    /// to load any has none.
    fn adapters(self) -> Option<[&'static str; 3]> {
        match self {
            #[cfg(feature = "vllm")]
            Self::Vllm => Some([
                "/v1/load_lora_adapter",
                "/v1/unload_lora_adapter",
                "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and with one API server",
            ]),
            #[cfg(feature = "sglang")]
            Self::Sglang => Some([
                "/load_lora_adapter",
                "/unload_lora_adapter",
                "start SGLang with --enable-lora",
            ]),
            #[cfg(feature = "tgi")]
            Self::Tgi => None,
            #[cfg(feature = "mistral-rs")]
            Self::MistralRs => None,
        }
    }

    fn adapter_path(self, n: usize) -> &'static str {
        self.adapters()
            .and_then(|all| all.get(n).copied())
            .unwrap_or_default()
    }

    async fn wake(
        self,
        place: &Place,
        path: Option<&str>,
        what: &str,
        deadline: Deadline,
    ) -> Result<()> {
        match self {
            #[cfg(feature = "vllm")]
            Self::Vllm => super::vllm::wake(place, path, what, deadline).await,
            #[cfg(feature = "sglang")]
            Self::Sglang => super::sglang::wake(place, path, what, deadline).await,
            #[cfg(feature = "tgi")]
            Self::Tgi => super::tgi::wake(path),
            #[cfg(feature = "mistral-rs")]
            Self::MistralRs => super::mistral_rs::wake(place, path, what, deadline).await,
        }
    }

    async fn verify(self, place: &Place, what: &str, deadline: Deadline) -> Result<()> {
        match self {
            #[cfg(feature = "vllm")]
            Self::Vllm => super::vllm::verify(place, what, deadline).await,
            #[cfg(feature = "sglang")]
            Self::Sglang => super::sglang::verify(place, what, deadline).await,
            #[cfg(feature = "tgi")]
            Self::Tgi => super::tgi::verify(place, what, deadline).await,
            #[cfg(feature = "mistral-rs")]
            Self::MistralRs => super::mistral_rs::verify(place),
        }
    }

    async fn sleep(self, place: &Place, what: &str, deadline: Deadline) -> Result<()> {
        match self {
            #[cfg(feature = "vllm")]
            Self::Vllm => super::vllm::sleep(place, what, deadline).await,
            #[cfg(feature = "sglang")]
            Self::Sglang => super::sglang::sleep(place, what, deadline).await,
            #[cfg(feature = "tgi")]
            // It goes on running, and can serve at once.
            Self::Tgi => Ok(()),
            #[cfg(feature = "mistral-rs")]
            Self::MistralRs => super::mistral_rs::sleep(place, what, deadline).await,
        }
    }

    async fn stop(self, place: &Place, within: Duration) -> Result<()> {
        match self {
            #[cfg(feature = "vllm")]
            Self::Vllm => super::vllm::stop(place, within).await,
            #[cfg(feature = "sglang")]
            Self::Sglang => super::sglang::stop(place, within).await,
            #[cfg(feature = "tgi")]
            Self::Tgi => Ok(()),
            #[cfg(feature = "mistral-rs")]
            Self::MistralRs => super::mistral_rs::stop(place, within).await,
        }
    }

    async fn running(self, place: &Place, within: Duration) -> Result<Option<u64>> {
        match self {
            #[cfg(feature = "vllm")]
            Self::Vllm => super::vllm::running(place, within).await,
            #[cfg(feature = "sglang")]
            Self::Sglang => super::sglang::running(place, within).await,
            #[cfg(feature = "tgi")]
            Self::Tgi => super::tgi::running(place, within).await,
            #[cfg(feature = "mistral-rs")]
            Self::MistralRs => super::mistral_rs::running(place, within).await,
        }
    }
}

/// What an engine calls its weights, in this field, must be what they should be called.
pub(super) fn same_weights(place: &Place, told: Option<&Value>, field: &str) -> Result<()> {
    let Some(wanted) = &place.version.weights else {
        return Ok(());
    };
    let found = told
        .and_then(|told| told.get(field))
        .and_then(Value::as_str);
    match found {
        Some(found) if found == wanted => Ok(()),
        Some(found) => Err(Error::permanent(format!(
            "model {:?} runs weights {:?}, not {wanted:?}: load the right ones, or correct their name",
            place.model,
            clip(found)
        ))),
        None => Err(Error::permanent(format!(
            "the server of model {:?} does not tell which weights it runs: start it so that it does, or leave `weights` out",
            place.model
        ))),
    }
}

#[cfg(test)]
mod tests;
