//! Versions on a server that speaks the Open Inference Protocol (KServe V2), such as NVIDIA Triton.

use super::control::{Control, Said, name};
use super::fleet::{Deadline, Fleet, Wish};
use crate::host::{Error, ErrorKind, Result, ServingBackend};
use crate::http_client::{Authorities, Http, clip};
use async_trait::async_trait;
use llm_rollout::Position;
use llm_version_core::VersionId;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

const DEADLINE: Duration = Duration::from_secs(300);
/// One question about health or what runs.
const GLANCE: Duration = Duration::from_secs(5);

type Counter = Arc<dyn Fn(&VersionId) -> Option<u64> + Send + Sync>;

/// What a version is on the server: a numbered version of a model, or a model of its own.
///
/// ```
/// use llm_serve_adapters::backend::KServeModel;
///
/// // The folder `chat/2` of the repository; a golden generation says that it is the right one.
/// let v2 = KServeModel::new("chat").version(2).tensors("text_input", "text_output").golden("2 + 2 =", " 4");
/// ```
#[derive(Debug, Clone)]
pub struct KServeModel {
    model: String,
    version: Option<u32>,
    config: Option<String>,
    input: String,
    output: String,
    more: Vec<String>,
    golden: Vec<(String, String)>,
}

/// Places are told apart by where they are, not by what is asked of them.
impl PartialEq for KServeModel {
    fn eq(&self, other: &Self) -> bool {
        (&self.model, self.version) == (&other.model, other.version)
    }
}

impl KServeModel {
    /// A model of the server's repository that is this version and no other.
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            version: None,
            config: None,
            input: "text_input".to_owned(),
            output: "text_output".to_owned(),
            more: Vec::new(),
            golden: Vec::new(),
        }
    }

    /// One numbered version of the model; others of its versions may be loaded beside it.
    #[must_use]
    pub fn version(mut self, number: u32) -> Self {
        self.version = Some(number);
        self
    }

    /// The model's configuration as JSON, for when none of its versions is loaded. Without it the model is loaded as its repository
    /// says, and the configuration read back.
    #[must_use]
    pub fn config(mut self, json: impl Into<String>) -> Self {
        self.config = Some(json.into());
        self
    }

    /// The names of the tensors that take the prompt and give the answer, `text_input` and `text_output` unless told otherwise.
    #[must_use]
    pub fn tensors(mut self, input: impl Into<String>, output: impl Into<String>) -> Self {
        (self.input, self.output) = (input.into(), output.into());
        self
    }

    /// Another tensor that every request needs, as the protocol writes it:
    /// `{"name": "max_tokens", "datatype": "INT32", "shape": [1], "data": [16]}`.
    #[must_use]
    pub fn with_tensor(mut self, json: impl Into<String>) -> Self {
        self.more.push(json.into());
        self
    }

    /// What the right version answers to a prompt, to the letter; pin sampling so that it does.
    #[must_use]
    pub fn golden(mut self, prompt: impl Into<String>, answer: impl Into<String>) -> Self {
        self.golden.push((prompt.into(), answer.into()));
        self
    }

    fn checked(self) -> Result<Self> {
        name("the model name", &self.model)?;
        let texts = self.more.iter().chain(&self.config);
        for text in texts {
            parse(text)?;
        }
        Ok(self)
    }
}

impl fmt::Display for KServeModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "model {:?}", self.model)?;
        self.version.map_or(Ok(()), |n| write!(f, " version {n}"))
    }
}

fn parse(text: &str) -> Result<Value> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        _ => Err(Error::permanent(format!(
            "{:?} is no JSON object: write configurations and tensors as the protocol does",
            clip(text)
        ))),
    }
}

/// Serves versions through one server of the Open Inference Protocol with its extension for model repositories: NVIDIA Triton with
/// `--model-control-mode=explicit`, MLServer. Requests reach a version under `/v2/models/MODEL/versions/N/infer`.
///
/// - **Several versions of one model stay loaded**: `prepare` overrides the model's `version_policy` with all that are loaded and the
///   new one, so that those in service go on, and are not loaded anew. A version that cannot be loaded leaves the others as they are.
///   Who else changes the policy of these models may undo it: one controller for each model.
/// - A version is ready once it says so itself, under its own number, and has answered: each prompt of the warm-up with some text, each
///   golden one to the letter, and every answer in the name of the right model and version.
/// - **Unloading is asynchronous**: the version takes no requests from then on and finishes those that it has. `retire` and `standby`
///   wait for the end of it, within the deadline, and are to be called again if that was too short. Nothing is cut off.
/// - What runs is known in part: the metrics count requests that wait for execution (`nv_inference_pending_request_count`), not those
///   that execute. So `in_flight` is unknown while none waits, unless the host counts its own requests.
/// - Which position was newest is kept in memory: right after a restart an old retirement is not recognised.
///
/// For replicas that serve the same versions, make one of these for each and join them with [`super::Together`].
///
/// ```
/// use llm_serve_adapters::backend::{KServeBackend, KServeModel};
///
/// let v1 = format!("chat/v1.0.0-{}", "0".repeat(64)).parse()?;
/// let v2 = format!("chat/v1.1.0-{}", "1".repeat(64)).parse()?;
/// let backend = KServeBackend::builder("http://10.0.0.7:8000")
///     .metrics("http://10.0.0.7:8002/metrics")
///     .version(v1, KServeModel::new("chat").version(1))
///     .version(v2, KServeModel::new("chat").version(2))
///     .build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct KServeBackend {
    server: Control,
    metrics: Option<Control>,
    fleet: Fleet<KServeModel>,
    prompts: Vec<String>,
    deadline: Duration,
    counter: Option<Counter>,
    /// Reading which versions are loaded and asking for others is one thing.
    turn: Mutex<()>,
}

/// Builds a [`KServeBackend`].
#[must_use = "it does nothing until it is built"]
pub struct KServeBackendBuilder {
    address: String,
    key: Option<String>,
    metrics: Option<String>,
    versions: Vec<(VersionId, KServeModel)>,
    prompts: Vec<String>,
    deadline: Duration,
    counter: Option<Counter>,
    authorities: Authorities,
}

impl KServeBackendBuilder {
    /// Trusts these certificate authorities beside those of the system.
    pub fn trust(mut self, authorities: Authorities) -> Self {
        self.authorities = authorities;
        self
    }

    /// Sends this key as a bearer token.
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Where the server's metrics are.
    pub fn metrics(mut self, address: impl Into<String>) -> Self {
        self.metrics = Some(address.into());
        self
    }

    /// What a version is on the server.
    pub fn version(mut self, version: VersionId, model: KServeModel) -> Self {
        self.versions.push((version, model));
        self
    }

    /// What the warm-up asks, instead of one short question.
    pub fn warm_up(mut self, prompts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.prompts = prompts.into_iter().map(Into::into).collect();
        self
    }

    /// How long one `prepare`, `standby` or `retire` may take, five minutes unless told otherwise.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
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
    /// `Permanent` for an address, a name or a tensor that cannot be used, two versions in one place, or a deadline of nothing.
    pub fn build(self) -> Result<KServeBackend> {
        if self.prompts.is_empty() || self.deadline.is_zero() {
            return Err(Error::permanent(
                "a warm-up needs a prompt and some time: give them, or leave the defaults",
            ));
        }
        let server = Control::new(
            Http::trusting(&self.authorities)?,
            &self.address,
            self.key.as_deref(),
        )?;
        let backend = KServeBackend {
            metrics: self
                .metrics
                .as_deref()
                .map(|to| server.at(to))
                .transpose()?,
            server,
            fleet: Fleet::default(),
            prompts: self.prompts,
            deadline: self.deadline,
            counter: self.counter,
            turn: Mutex::default(),
        };
        for (version, model) in self.versions {
            backend.add(version, model)?;
        }
        Ok(backend)
    }
}

impl fmt::Debug for KServeBackendBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KServeBackendBuilder")
            .field("versions", &self.versions)
            .finish_non_exhaustive()
    }
}

impl KServeBackend {
    /// Of the server at this address, with a warm-up of one short question and no version yet.
    pub fn builder(address: impl Into<String>) -> KServeBackendBuilder {
        KServeBackendBuilder {
            address: address.into(),
            key: None,
            metrics: None,
            versions: Vec::new(),
            prompts: vec!["Say hello.".to_owned()],
            deadline: DEADLINE,
            counter: None,
            authorities: Authorities::default(),
        }
    }

    /// Says what a new version is on the server. Saying the same again changes nothing.
    ///
    /// # Errors
    /// `Permanent` for a model that cannot be used, or a version or model that is taken.
    pub fn add(&self, version: VersionId, model: KServeModel) -> Result<()> {
        self.fleet.add_alone(version, model.checked()?)
    }

    /// Whether the version has been prepared, and not retired since.
    pub fn is_ready(&self, version: &VersionId) -> bool {
        self.fleet.is_ready(version)
    }

    /// What the repository says of a model: each of its versions and its state.
    async fn states(&self, model: &str, within: Duration) -> Result<Vec<(u32, String)>> {
        let said = self
            .server
            .post("/v2/repository/index", &json!({}), within)
            .await?;
        let advice = "it needs the extension for model repositories";
        let index = said.accepted(advice)?.json("an index of models")?;
        let Some(entries) = index.as_array() else {
            return Err(Error::permanent(
                "the index of models is no list: check the address",
            ));
        };
        let text = |entry: &Value, field: &str| {
            entry
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let of_model = entries.iter().filter(|entry| text(entry, "name") == model);
        // A model that has never been loaded has neither; one without numbers is its own version 0.
        Ok(of_model
            .map(|entry| {
                (
                    text(entry, "version").parse().unwrap_or(0),
                    text(entry, "state"),
                )
            })
            .collect())
    }

    /// The versions of a model that serve, or are about to.
    async fn serving(&self, model: &str, within: Duration) -> Result<BTreeSet<u32>> {
        let states = self.states(model, within).await?.into_iter();
        let serve = states.filter(|(_, state)| matches!(state.as_str(), "READY" | "LOADING"));
        Ok(serve.map(|(number, _)| number).collect())
    }

    /// The configuration of a model, if any of its versions is loaded.
    async fn config(&self, model: &str, within: Duration) -> Result<Option<Value>> {
        let said = self
            .server
            .get(&format!("/v2/models/{model}/config"), within)
            .await?;
        match said.status {
            // 400 and 404: nothing of it is loaded; 501: there is no such thing here.
            400 | 404 | 501 | 503 => Ok(None),
            _ => said
                .accepted("see the server's log")?
                .json("a configuration")
                .map(Some),
        }
    }

    async fn repository(
        &self,
        model: &str,
        verb: &str,
        body: &Value,
        within: Duration,
    ) -> Result<()> {
        let path = format!("/v2/repository/models/{model}/{verb}");
        let said = self.server.post(&path, body, within).await?;
        if said.is_ok() {
            return Ok(());
        }
        let text = said.text();
        // Triton answers 500 for a model that it does not have, and 503 where it may not load at all.
        Err(if text.contains("failed to poll from model repository") {
            said.error(
                ErrorKind::Permanent,
                "put the model into the server's repository, or correct its name",
            )
        } else if text.contains("is not allowed") {
            said.error(
                ErrorKind::Permanent,
                "start the server with --model-control-mode=explicit",
            )
        } else {
            let kind = crate::http_client::refusal(said.status).unwrap_or(ErrorKind::Transient);
            said.error(
                kind,
                "the version cannot be loaded or unloaded: see the server's log",
            )
        })
    }

    /// Has the server serve exactly these versions of a model.
    async fn serve(
        &self,
        place: &KServeModel,
        versions: &BTreeSet<u32>,
        what: &str,
        deadline: Deadline,
    ) -> Result<()> {
        if versions.is_empty() {
            return self
                .repository(&place.model, "unload", &json!({}), deadline.left(what)?)
                .await;
        }
        let loaded = self.config(&place.model, deadline.left(what)?).await?;
        let mut config = match (loaded, &place.config) {
            (Some(loaded), _) => loaded,
            (None, Some(given)) => parse(given)?,
            (None, None) => {
                // As the repository says, to learn its configuration.
                self.repository(&place.model, "load", &json!({}), deadline.left(what)?)
                    .await?;
                let config = self.config(&place.model, deadline.left(what)?).await?;
                config.ok_or_else(|| {
                    Error::permanent(format!(
                        "the server does not tell the configuration of {place}: give it"
                    ))
                })?
            }
        };
        if let Some(fields) = config.as_object_mut() {
            fields.insert("name".to_owned(), json!(place.model));
            fields.insert(
                "version_policy".to_owned(),
                json!({"specific": {"versions": versions}}),
            );
        }
        let body = json!({"parameters": {"config": config.to_string()}});
        self.repository(&place.model, "load", &body, deadline.left(what)?)
            .await
    }

    async fn load(&self, place: &KServeModel, what: &str, deadline: Deadline) -> Result<()> {
        let mut versions = BTreeSet::new();
        if let Some(number) = place.version {
            versions = self.serving(&place.model, deadline.left(what)?).await?;
            versions.insert(number);
            self.serve(place, &versions, what, deadline).await?;
        } else {
            self.repository(&place.model, "load", &json!({}), deadline.left(what)?)
                .await?;
        }
        let mut pause = Duration::ZERO;
        while !self.says_ready(place, deadline.left(what)?).await? {
            deadline.pause(what, &mut pause).await?;
        }
        let now = self.serving(&place.model, deadline.left(what)?).await?;
        if !versions.is_subset(&now) {
            return Err(Error::transient(format!(
                "{what}: versions {versions:?} were asked for and {now:?} are served; somebody else changes the model's version policy"
            )));
        }
        Ok(())
    }

    async fn unload(&self, place: &KServeModel, what: &str, deadline: Deadline) -> Result<()> {
        let is_it = |number: u32| place.version.is_none_or(|own| own == number);
        let mut versions = self.serving(&place.model, deadline.left(what)?).await?;
        if versions.iter().any(|&n| is_it(n)) {
            versions.retain(|&n| !is_it(n));
            self.serve(place, &versions, what, deadline).await?;
        }
        // Until the last of its requests is done.
        let mut pause = Duration::ZERO;
        loop {
            let mut states = self.states(&place.model, deadline.left(what)?).await?;
            states.retain(|(number, state)| {
                is_it(*number) && matches!(state.as_str(), "READY" | "LOADING" | "UNLOADING")
            });
            if states.is_empty() {
                return Ok(());
            }
            deadline.pause(what, &mut pause).await?;
        }
    }

    fn path(place: &KServeModel, end: &str) -> String {
        let model = &place.model;
        match place.version {
            Some(number) => format!("/v2/models/{model}/versions/{number}{end}"),
            None => format!("/v2/models/{model}{end}"),
        }
    }

    async fn says_ready(&self, place: &KServeModel, within: Duration) -> Result<bool> {
        let said = self
            .server
            .get(&Self::path(place, "/ready"), within)
            .await?;
        match said.status {
            // So it says of versions that it does not serve.
            400 | 404 | 503 => Ok(false),
            _ => said.accepted("see the server's log").map(|_| true),
        }
    }

    /// What the version answers to a prompt.
    async fn generate(
        &self,
        place: &KServeModel,
        shape: &Value,
        prompt: &str,
        within: Duration,
    ) -> Result<String> {
        let mut inputs = vec![
            json!({"name": place.input, "datatype": "BYTES", "shape": shape, "data": [prompt]}),
        ];
        for tensor in &place.more {
            inputs.push(parse(tensor)?);
        }
        let body = json!({"inputs": inputs});
        let said: Said = self
            .server
            .post(&Self::path(place, "/infer"), &body, within)
            .await?;
        let reply = said
            .accepted("the version does not answer: see its tensors and the server's log")?
            .json("the answer of a model")?;
        let field = |name: &str| reply.get(name).and_then(Value::as_str).unwrap_or_default();
        let number = place.version.map(|n| n.to_string());
        if field("model_name") != place.model || number.is_some_and(|n| n != field("model_version"))
        {
            return Err(Error::permanent(format!(
                "{place} was asked and {:?} version {:?} answers: check what stands before the server",
                clip(field("model_name")),
                clip(field("model_version"))
            )));
        }
        let outputs = reply.get("outputs").and_then(Value::as_array);
        let output = outputs.and_then(|all| {
            all.iter()
                .find(|output| output.get("name").and_then(Value::as_str) == Some(&place.output))
        });
        let text = output
            .and_then(|output| output.pointer("/data/0"))
            .and_then(Value::as_str);
        text.map(str::to_owned).ok_or_else(|| {
            Error::permanent(format!(
                "{place} answers without a text in {:?}: name its tensors",
                place.output
            ))
        })
    }

    async fn check(&self, place: &KServeModel, what: &str, deadline: Deadline) -> Result<()> {
        let said = self
            .server
            .get(&Self::path(place, ""), deadline.left(what)?)
            .await?;
        let metadata = said
            .accepted("it says that it is ready, and not what it is")?
            .json("what a model is")?;
        let inputs = metadata.get("inputs").and_then(Value::as_array);
        let input = inputs.and_then(|all| {
            all.iter()
                .find(|input| input.get("name").and_then(Value::as_str) == Some(&place.input))
        });
        // One prompt, however many dimensions it has to have.
        let dimensions = input
            .and_then(|input| input.get("shape"))
            .and_then(Value::as_array);
        let shape = json!(vec![1; dimensions.map_or(1, |d| d.len().clamp(1, 8))]);
        let mut silent = true;
        for prompt in &self.prompts {
            let text = self
                .generate(place, &shape, prompt, deadline.left(what)?)
                .await?;
            silent &= text.trim().is_empty();
        }
        if silent {
            return Err(Error::permanent(format!(
                "{place} answers the whole warm-up with nothing: check its weights and its template"
            )));
        }
        for (prompt, wanted) in &place.golden {
            let text = self
                .generate(place, &shape, prompt, deadline.left(what)?)
                .await?;
            if text != *wanted {
                return Err(Error::permanent(format!(
                    "{place} does not give the golden answer ({} bytes, {} expected): it is another version than it should be, or samples",
                    text.len(),
                    wanted.len()
                )));
            }
        }
        Ok(())
    }

    async fn take_off(&self, version: &VersionId, place: &KServeModel) -> Result<()> {
        let deadline = Deadline::after(self.deadline);
        let what = format!("unloading version {version} ({place})");
        let _turn = deadline.of(&what, self.turn.lock()).await?;
        // Prepared again in the meantime: it stays.
        if self.fleet.is_ready(version) {
            return Ok(());
        }
        self.unload(place, &what, deadline).await
    }
}

impl fmt::Debug for KServeBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KServeBackend")
            .field("server", &self.server)
            .field("versions", &self.fleet)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl ServingBackend for KServeBackend {
    async fn prepare(&self, version: &VersionId, at: Position) -> Result<()> {
        let place = self.fleet.load(version, at)?;
        let deadline = Deadline::after(self.deadline);
        let what = format!("loading version {version} ({place})");
        let done = async {
            {
                let _turn = deadline.of(&what, self.turn.lock()).await?;
                self.fleet.stands(Wish::Load, version, at)?;
                self.load(&place, &what, deadline).await?;
            }
            self.check(&place, &what, deadline).await
        };
        let done = done.await;
        // Whatever went wrong: if a later order came, that is why.
        self.fleet.stands(Wish::Load, version, at)?;
        done?;
        self.fleet.ready(version, at)
    }

    async fn standby(&self, version: &VersionId, at: Position) -> Result<()> {
        self.retire(version, at).await
    }

    async fn healthy(&self, version: &VersionId) -> Result<Option<bool>> {
        match self.fleet.place(version) {
            Some(_) if self.fleet.rests(version) => Ok(Some(false)),
            Some(place) => self.says_ready(&place, GLANCE).await.map(Some),
            None => Ok(None),
        }
    }

    async fn in_flight(&self, version: &VersionId) -> Result<Option<u64>> {
        let counted = self.counter.as_ref().and_then(|count| count(version));
        let (Some(metrics), Some(place)) = (&self.metrics, self.fleet.place(version)) else {
            return Ok(counted);
        };
        let number = place.version.map(|n| n.to_string());
        let mut labels = vec![("model", place.model.as_str())];
        labels.extend(number.as_deref().map(|number| ("version", number)));
        let waiting = metrics
            .gauge("", &["nv_inference_pending_request_count"], &labels, GLANCE)
            .await?;
        Ok(match (counted, waiting) {
            (Some(counted), waiting) => Some(counted.max(waiting.unwrap_or(0))),
            // Whether any executes is not told.
            (None, waiting) => waiting.filter(|&n| n > 0),
        })
    }

    async fn retire(&self, version: &VersionId, at: Position) -> Result<()> {
        match self.fleet.begin(Wish::Retire, version, at)? {
            Some(place) => self.take_off(version, &place).await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
