//! Versions on TorchServe: registered, scaled, and the one in production made the default.

use super::control::{Control, name};
use super::fleet::{Deadline, Fleet, Wish};
use crate::host::{Error, ErrorKind, Result, ServingBackend};
use crate::http_client::{Authorities, Http, Method, clip};
use async_trait::async_trait;
use llm_rollout::Position;
use llm_version_core::VersionId;
use serde_json::{Value, json};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

const DEADLINE: Duration = Duration::from_secs(300);
/// One question about health or what runs.
const GLANCE: Duration = Duration::from_secs(5);

type Counter = Arc<dyn Fn(&VersionId) -> Option<u64> + Send + Sync>;

/// What a version is on TorchServe: a model archive, and the model name and version that it carries.
///
/// ```
/// use llm_serve_adapters::backend::Archive;
///
/// let v2 = Archive::new("chat", "2.0", "chat-v2.mar").workers(2).golden("2 + 2 =", " 4");
/// ```
#[derive(Debug, Clone)]
pub struct Archive {
    model: String,
    version: String,
    url: String,
    workers: u32,
    golden: Vec<(String, String)>,
}

/// Places are told apart by where they are, not by what is asked of them.
impl PartialEq for Archive {
    fn eq(&self, other: &Self) -> bool {
        (&self.model, &self.version) == (&other.model, &other.version)
    }
}

impl Archive {
    /// An archive in the server's model store, or at an address that it may load from, with the names that were given to
    /// `torch-model-archiver` as `--model-name` and `--version`.
    pub fn new(
        model: impl Into<String>,
        version: impl Into<String>,
        url: impl Into<String>,
    ) -> Self {
        Self {
            model: model.into(),
            version: version.into(),
            url: url.into(),
            workers: 1,
            golden: Vec::new(),
        }
    }

    /// How many workers serve it, 1 unless told otherwise.
    #[must_use]
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers = workers;
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
        name("the model version", &self.version)?;
        if self.url.is_empty() || self.workers == 0 {
            return Err(Error::permanent(format!(
                "{self} needs an archive and a worker"
            )));
        }
        Ok(self)
    }
}

impl fmt::Display for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "model {:?} version {}", self.model, self.version)
    }
}

/// Serves versions through one `TorchServe`, started with `--enable-model-api` (0.12 and newer refuse to manage models without).
/// Requests reach a version under `/predictions/MODEL/VERSION`.
///
/// - `prepare` registers the archive without workers, scales it, and has it answer: each prompt of the warm-up with some text, each
///   golden one to the letter. A version that cannot be loaded is unregistered again: otherwise it would stay behind without a worker,
///   and as the first version of its model even as the default.
/// - **`TorchServe` has a default version**, for requests that name none: the first that was registered. Promotion is
///   [`TorchServeBackend::follow`], which keeps it at the endpoint's version in production, or a call of
///   [`TorchServeBackend::set_default`]. The default cannot be unregistered; `retire` hands it to the version that was
///   prepared last and still serves, if there is one.
/// - `standby` scales a version to no workers: requests get 503 until it is prepared again, in a fraction of the time that loading takes.
/// - Both **cut off what runs**: a request in execution ends with 500, one that waits is not answered before its client gives up. Drain
///   first.
/// - What runs is known in part: the server tells how many requests wait for a worker, not those that workers execute. So `in_flight`
///   is unknown while none waits, unless the host counts its own requests.
/// - Which position was newest is kept in memory: right after a restart an old retirement is not recognised.
///
/// Prompts go as JSON in one field and answers come in another, `prompt` and `text` unless told otherwise. The server
/// must not be reachable by others at its management address, since it has no users.
///
/// ```
/// use llm_serve_adapters::backend::{Archive, TorchServeBackend};
///
/// let v1 = format!("chat/v1.0.0-{}", "0".repeat(64)).parse()?;
/// let v2 = format!("chat/v1.1.0-{}", "1".repeat(64)).parse()?;
/// let backend = TorchServeBackend::builder("http://10.0.0.7:8080", "http://10.0.0.7:8081")
///     .version(v1, Archive::new("chat", "1.0", "chat-v1.mar"))
///     .version(v2, Archive::new("chat", "2.0", "chat-v2.mar").workers(2))
///     .build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct TorchServeBackend(Arc<Inner>);

struct Inner {
    inference: Control,
    management: Control,
    fleet: Fleet<Archive>,
    prompts: Vec<String>,
    fields: (String, String),
    deadline: Duration,
    counter: Option<Counter>,
    /// What concerns the default happens one after the other.
    turn: Mutex<()>,
}

/// Builds a [`TorchServeBackend`].
#[must_use = "it does nothing until it is built"]
pub struct TorchServeBackendBuilder {
    inference: String,
    management: String,
    key: Option<String>,
    versions: Vec<(VersionId, Archive)>,
    prompts: Vec<String>,
    fields: (String, String),
    deadline: Duration,
    counter: Option<Counter>,
    authorities: Authorities,
}

impl TorchServeBackendBuilder {
    /// Trusts these certificate authorities beside those of the system.
    pub fn trust(mut self, authorities: Authorities) -> Self {
        self.authorities = authorities;
        self
    }

    /// Sends this key as a bearer token (a server that was not started with `--disable-token-auth` has one for each address).
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// What a version is on the server.
    pub fn version(mut self, version: VersionId, archive: Archive) -> Self {
        self.versions.push((version, archive));
        self
    }

    /// The fields of the JSON in which the handler takes the prompt and gives the answer, `prompt` and `text` unless told otherwise.
    pub fn fields(mut self, prompt: impl Into<String>, answer: impl Into<String>) -> Self {
        self.fields = (prompt.into(), answer.into());
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
    /// `Permanent` for an address or a name that cannot be used, two versions in one place, or a deadline of nothing.
    pub fn build(self) -> Result<TorchServeBackend> {
        if self.prompts.is_empty() || self.deadline.is_zero() {
            return Err(Error::permanent(
                "a warm-up needs a prompt and some time: give them, or leave the defaults",
            ));
        }
        let inference = Control::new(
            Http::trusting(&self.authorities)?,
            &self.inference,
            self.key.as_deref(),
        )?;
        let backend = TorchServeBackend(Arc::new(Inner {
            management: inference.at(&self.management)?,
            inference,
            fleet: Fleet::default(),
            prompts: self.prompts,
            fields: self.fields,
            deadline: self.deadline,
            counter: self.counter,
            turn: Mutex::default(),
        }));
        for (version, archive) in self.versions {
            backend.add(version, archive)?;
        }
        Ok(backend)
    }
}

impl fmt::Debug for TorchServeBackendBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TorchServeBackendBuilder")
            .field("versions", &self.versions)
            .finish_non_exhaustive()
    }
}

impl TorchServeBackend {
    /// Of the server with these addresses for inference and management, with a warm-up of one short question and no version yet.
    pub fn builder(
        inference: impl Into<String>,
        management: impl Into<String>,
    ) -> TorchServeBackendBuilder {
        TorchServeBackendBuilder {
            inference: inference.into(),
            management: management.into(),
            key: None,
            versions: Vec::new(),
            prompts: vec!["Say hello.".to_owned()],
            fields: ("prompt".to_owned(), "text".to_owned()),
            deadline: DEADLINE,
            counter: None,
            authorities: Authorities::default(),
        }
    }

    /// Says what a new version is on the server. Saying the same again changes nothing.
    ///
    /// # Errors
    /// `Permanent` for an archive that cannot be used, or a version or place that is taken.
    pub fn add(&self, version: VersionId, archive: Archive) -> Result<()> {
        self.0.fleet.add_alone(version, archive.checked()?)
    }

    /// Whether the version has been prepared, and not retired since.
    pub fn is_ready(&self, version: &VersionId) -> bool {
        self.0.fleet.is_ready(version)
    }

    /// Makes a version the one that answers requests which name none. Doing it again changes nothing.
    ///
    /// # Errors
    /// `Permanent` for a version that is not known here or not registered there; `Transient` if the server cannot be reached.
    pub async fn set_default(&self, version: &VersionId) -> Result<()> {
        let Some(place) = self.0.fleet.place(version) else {
            return Err(Error::permanent(format!(
                "version {version} has no archive: say which with `add`"
            )));
        };
        let deadline = Deadline::after(GLANCE);
        let what = format!("making version {version} the default");
        let _turn = deadline.of(&what, self.0.turn.lock()).await?;
        self.0.make_default(&place, deadline.left(&what)?).await
    }

    /// Keeps the default at the version in production: each time that a rollout is promoted, or a version returns. What fails is tried again
    /// every few seconds. Ends when the endpoint does; run it beside it.
    ///
    /// ```no_run
    /// # use llm_serve_adapters::{Endpoint, backend::TorchServeBackend};
    /// # fn beside(chat: &Endpoint, backend: TorchServeBackend) {
    /// let status = chat.watch();
    /// tokio::spawn(async move { backend.follow(status).await });
    /// # }
    /// ```
    pub async fn follow(&self, mut status: tokio::sync::watch::Receiver<crate::Status>) {
        let mut done = None;
        loop {
            let production = status.borrow_and_update().ledger.production.clone();
            let failed = match production {
                Some(version) if done.as_ref() != Some(&version) => {
                    let failed = self.set_default(&version).await.is_err();
                    done = (!failed).then_some(version);
                    failed
                }
                _ => false,
            };
            let again = if failed { GLANCE } else { Duration::MAX };
            if matches!(
                tokio::time::timeout(again, status.changed()).await,
                Ok(Err(_))
            ) {
                return;
            }
        }
    }
}

impl Inner {
    fn path(place: &Archive, end: &str) -> String {
        format!("/models/{}/{}{end}", place.model, place.version)
    }

    async fn make_default(&self, place: &Archive, within: Duration) -> Result<()> {
        let path = Self::path(place, "/set-default");
        let said = self
            .management
            .call(Method::PUT, &path, &[], None, within)
            .await?;
        said.accepted("prepare the version first").map(drop)
    }

    /// What the server says of a version; none if it is not registered.
    async fn described(&self, place: &Archive, within: Duration) -> Result<Option<Value>> {
        let said = self.management.get(&Self::path(place, ""), within).await?;
        if said.status == 404 {
            return Ok(None);
        }
        let said = said.accepted("see the server's log")?;
        Ok(said.json("a description of a model")?.get(0).cloned())
    }

    async fn scale(&self, place: &Archive, workers: u32, within: Duration) -> Result<()> {
        let number = workers.to_string();
        // As many as that and no more: without a maximum the server keeps what it has.
        let query = [
            ("min_worker", number.as_str()),
            ("max_worker", number.as_str()),
            ("synchronous", "true"),
        ];
        let path = Self::path(place, "");
        let said = self
            .management
            .call(Method::PUT, &path, &query, None, within)
            .await?;
        if said.status == 500 {
            // The workers died while they loaded: they will again.
            return Err(said.error(
                ErrorKind::Permanent,
                "its workers do not start: see the server's log",
            ));
        }
        said.accepted("its workers cannot be scaled: see the server's log")
            .map(drop)
    }

    async fn load(&self, place: &Archive, what: &str, deadline: Deadline) -> Result<()> {
        if self.described(place, deadline.left(what)?).await?.is_none() {
            let query = [
                ("url", place.url.as_str()),
                ("initial_workers", "0"),
                ("synchronous", "true"),
            ];
            let said = self
                .management
                .call(Method::POST, "/models", &query, None, deadline.left(what)?)
                .await?;
            match said.status {
                // Somebody else was quicker, which is as good.
                409 => {}
                405 => {
                    return Err(said.error(
                        ErrorKind::Permanent,
                        "start the server with --enable-model-api",
                    ));
                }
                _ => drop(said.accepted(
                    "put the archive into the server's model store, or correct its name",
                )?),
            }
            if self.described(place, deadline.left(what)?).await?.is_none() {
                return Err(Error::permanent(format!(
                    "the archive {:?} was registered, and is not {place}: give the names that are in it",
                    clip(&place.url)
                )));
            }
        }
        let scaled = self.scale(place, place.workers, deadline.left(what)?).await;
        if scaled
            .as_ref()
            .is_err_and(|e| e.kind() == ErrorKind::Permanent)
        {
            // Left behind it would refuse requests, and maybe as the default.
            let _as_well_as_it_goes = self.unregister(place, GLANCE).await;
        }
        scaled
    }

    async fn unregister(&self, place: &Archive, within: Duration) -> Result<()> {
        let path = Self::path(place, "");
        let said = self
            .management
            .call(Method::DELETE, &path, &[], None, within)
            .await?;
        match said.status {
            404 => Ok(()),
            403 => Err(said.error(
                ErrorKind::Transient,
                "it is the default: make another version the default first",
            )),
            405 => Err(said.error(
                ErrorKind::Permanent,
                "start the server with --enable-model-api",
            )),
            _ => said
                .accepted("it cannot be unregistered: see the server's log")
                .map(drop),
        }
    }

    async fn unload(
        &self,
        version: &VersionId,
        place: &Archive,
        what: &str,
        deadline: Deadline,
    ) -> Result<()> {
        let first = self.unregister(place, deadline.left(what)?).await;
        // Only the default is refused in a way that may pass, and only while there are other versions.
        let (Err(refused), Some(other)) = (&first, self.fleet.newest_ready_but(version)) else {
            return first;
        };
        if refused.kind() != ErrorKind::Transient || other.model != place.model {
            return first;
        }
        self.make_default(&other, deadline.left(what)?).await?;
        self.unregister(place, deadline.left(what)?).await
    }

    async fn generate(&self, place: &Archive, prompt: &str, within: Duration) -> Result<String> {
        let (field, answer) = &self.fields;
        let path = format!("/predictions/{}/{}", place.model, place.version);
        let said = self
            .inference
            .post(&path, &json!({field: prompt}), within)
            .await?;
        let reply = said.accepted("the version does not answer: see the server's log")?;
        let reply = reply.json("the answer of a model")?;
        let text = reply.get(answer).and_then(Value::as_str);
        text.map(str::to_owned).ok_or_else(|| {
            Error::permanent(format!(
                "{place} answers without a text in {answer:?}: name the fields of its handler"
            ))
        })
    }

    async fn check(&self, place: &Archive, what: &str, deadline: Deadline) -> Result<()> {
        let mut silent = true;
        for prompt in &self.prompts {
            let text = self.generate(place, prompt, deadline.left(what)?).await?;
            silent &= text.trim().is_empty();
        }
        if silent {
            return Err(Error::permanent(format!(
                "{place} answers the whole warm-up with nothing: check its weights and its template"
            )));
        }
        for (prompt, wanted) in &place.golden {
            let text = self.generate(place, prompt, deadline.left(what)?).await?;
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
}

impl fmt::Debug for TorchServeBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TorchServeBackend")
            .field("management", &self.0.management)
            .field("versions", &self.0.fleet)
            .field("deadline", &self.0.deadline)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl ServingBackend for TorchServeBackend {
    async fn prepare(&self, version: &VersionId, at: Position) -> Result<()> {
        let this = &*self.0;
        let place = this.fleet.load(version, at)?;
        let deadline = Deadline::after(this.deadline);
        let what = format!("loading version {version} ({place})");
        let done = async {
            {
                let _turn = deadline.of(&what, this.turn.lock()).await?;
                this.fleet.stands(Wish::Load, version, at)?;
                this.load(&place, &what, deadline).await?;
            }
            // A version that is unregistered meanwhile may never answer.
            tokio::select! {
                checked = this.check(&place, &what, deadline) => checked,
                later = this.fleet.overtaken(version, at) => Err(later),
            }
        };
        let done = done.await;
        // Whatever went wrong: if a later order came, that is why.
        this.fleet.stands(Wish::Load, version, at)?;
        done?;
        this.fleet.ready(version, at)
    }

    async fn standby(&self, version: &VersionId, at: Position) -> Result<()> {
        let this = &*self.0;
        let Some(place) = this.fleet.begin(Wish::Retire, version, at)? else {
            return Ok(());
        };
        let deadline = Deadline::after(this.deadline);
        let what = format!("scaling down version {version} ({place})");
        let _turn = deadline.of(&what, this.turn.lock()).await?;
        if this.fleet.is_ready(version)
            || this
                .described(&place, deadline.left(&what)?)
                .await?
                .is_none()
        {
            return Ok(());
        }
        this.scale(&place, 0, deadline.left(&what)?).await
    }

    async fn healthy(&self, version: &VersionId) -> Result<Option<bool>> {
        let Some(place) = self.0.fleet.place(version) else {
            return Ok(None);
        };
        if self.0.fleet.rests(version) {
            return Ok(Some(false));
        }
        let described = self.0.described(&place, GLANCE).await?;
        let workers = described
            .as_ref()
            .and_then(|model| model.get("workers"))
            .and_then(Value::as_array);
        let ready = |worker: &Value| worker.get("status").and_then(Value::as_str) == Some("READY");
        Ok(Some(
            workers.is_some_and(|workers| workers.iter().any(ready)),
        ))
    }

    async fn in_flight(&self, version: &VersionId) -> Result<Option<u64>> {
        let counted = self.0.counter.as_ref().and_then(|count| count(version));
        let Some(place) = self.0.fleet.place(version) else {
            return Ok(counted);
        };
        let described = self.0.described(&place, GLANCE).await?;
        let waiting = described
            .as_ref()
            .and_then(|model| model.pointer("/jobQueueStatus/pendingRequests"))
            .and_then(Value::as_u64);
        Ok(match (counted, waiting) {
            (Some(counted), waiting) => Some(counted.max(waiting.unwrap_or(0))),
            // What is not registered runs nothing.
            (None, _) if described.is_none() => Some(0),
            // Whether any executes is not told.
            (None, waiting) => waiting.filter(|&n| n > 0),
        })
    }

    async fn retire(&self, version: &VersionId, at: Position) -> Result<()> {
        let this = &*self.0;
        let Some(place) = this.fleet.begin(Wish::Retire, version, at)? else {
            return Ok(());
        };
        let deadline = Deadline::after(this.deadline);
        let what = format!("unregistering version {version} ({place})");
        let _turn = deadline.of(&what, this.turn.lock()).await?;
        // Prepared again in the meantime: it stays.
        if this.fleet.is_ready(version) {
            return Ok(());
        }
        this.unload(version, &place, &what, deadline).await
    }
}

#[cfg(test)]
mod tests;
