//! What scenarios share: llama-servers with real models, a small gateway of the project's layer in front of engines, users who
//! hold conversations, and a plan of seconds.
//!
//! ```text
//! let folder = tempfile::tempdir().unwrap();
//! let (v1, v2) = (Llama::start(folder.path(), "v1").await, Llama::start(folder.path(), "v2").await);
//! let places = Places::default().place("v1", v1.port()).place("v2", v2.port());
//! let endpoint = endpoint(MemoryStore::new(), |builder| builder).await;
//! let gateway = Gateway::open(endpoint, places).await;
//! let users = Users::begin(gateway.port(), 4, &gateway.manner());
//! let run = gateway.endpoint.submit(RolloutId::new("r").unwrap(), version("v2"), plan(&[1.0, 50.0])).await.unwrap();
//! let end = run.finished().await.unwrap();
//! let tally = users.finish().await;
//! ```

use crate::process::{PATIENCE, Process, free_port, ready};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use axum::routing::post;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use llm_rollout::Plan;
use llm_serve_adapters::host::StateStore;
use llm_serve_adapters::layer::{Assignment, FailOver, KeySource as _, RolloutLayer, header};
use llm_serve_adapters::router::place;
use llm_serve_adapters::{Bootstrap, DataPlane, Endpoint, EndpointBuilder};
use llm_version_core::VersionId;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tower_layer::Layer as _;
use tower_service::Service;

/// The version of the model of this name: v1, v2, bad.
pub(crate) fn version(model: &str) -> VersionId {
    let (number, digit) = match model {
        "v1" => ("1.0.0", "1"),
        "v2" => ("1.1.0", "2"),
        "bad" => ("1.2.0", "b"),
        other => panic!("there is no model {other}"),
    };
    format!("chat/v{number}-{}", digit.repeat(64))
        .parse()
        .unwrap()
}

/// What the lane says in this variable.
pub(crate) fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: e2e/run sets it, after it has installed what is missing")
    })
}

/// The file of a model: v1, v2, bad.
pub(crate) fn model_file(model: &str) -> PathBuf {
    Path::new(&env("LLM_E2E_MODELS")).join(format!("{model}.gguf"))
}

/// A llama-server with one model, on one thread, with room for two requests at a time.
#[derive(Debug)]
pub(crate) struct Llama {
    process: Process,
    port: u16,
}

impl Llama {
    /// Starts it, and waits until it has loaded its model, which it calls by the same name.
    pub(crate) async fn start(folder: &Path, model: &str) -> Self {
        let me = Self::loading(folder, model, model);
        ready(me.port, "/health").await;
        me
    }

    /// Starts it with the model in this file, which it calls by this name.
    pub(crate) async fn serving(folder: &Path, name: &str, file: &Path) -> Self {
        let file = file.to_str().unwrap();
        let me = Self::run(folder, name, &["--model", file, "--alias", name]);
        ready(me.port, "/health").await;
        me
    }

    /// Starts it under another name, and does not wait: it says 503 until it has loaded its model.
    pub(crate) fn loading(folder: &Path, model: &str, name: &str) -> Self {
        let file = model_file(model);
        let args = ["--model", file.to_str().unwrap(), "--alias", name];
        Self::run(folder, model, &args)
    }

    /// Starts it as a router of models, none of which is loaded.
    pub(crate) async fn router(folder: &Path) -> Self {
        let models = env("LLM_E2E_MODELS");
        let args = ["--models-dir", &models, "--no-models-autoload"];
        let me = Self::run(folder, "router", &args);
        ready(me.port, "/health").await;
        me
    }

    /// Starts v1 with a LoRA adapter that nobody should get who does not ask for it.
    pub(crate) async fn adapted(folder: &Path) -> Self {
        let (model, adapter) = (model_file("v1"), env("LLM_E2E_ADAPTER"));
        let args = ["--model", model.to_str().unwrap(), "--alias", "v1"];
        let lora = ["--lora", &adapter, "--lora-init-without-apply"];
        let args = [&args[..], &lora, &["--cache-ram", "0"]].concat();
        let me = Self::run(folder, "adapted", &args);
        ready(me.port, "/health").await;
        me
    }

    fn run(folder: &Path, name: &str, more: &[&str]) -> Self {
        let port = free_port();
        let own = folder.join(format!("{name}-{port}"));
        std::fs::create_dir(&own).unwrap();
        let (libraries, number) = (env("LLM_E2E_LLAMA_LIBRARIES"), port.to_string());
        let mut args = vec![
            "--host",
            "127.0.0.1",
            "--port",
            &number,
            "--device",
            "none",
            "--no-webui",
        ];
        args.extend([
            "--ctx-size",
            "2048",
            "--parallel",
            "2",
            "--threads",
            "1",
            "--seed",
            "1",
        ]);
        args.extend(["--metrics", "--slots"]);
        args.extend(more);
        let process = Process::start_with(
            &own,
            &env("LLM_E2E_LLAMA_SERVER"),
            &args,
            &[("LD_LIBRARY_PATH", &libraries)],
        );
        Self { process, port }
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The program: stop it, kill it.
    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// Where versions are served: a port, and the model's name there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places(Arc<BTreeMap<VersionId, (u16, String)>>);

impl Places {
    /// The version of this model is served here, under the same name.
    pub(crate) fn place(self, model: &str, port: u16) -> Self {
        let mut places = (*self.0).clone();
        places.insert(version(model), (port, model.to_owned()));
        Self(Arc::new(places))
    }

    fn model(&self, version: &VersionId) -> &str {
        self.0.get(version).map_or("nowhere", |(_, model)| model)
    }
}

/// An endpoint that begins with v1 and knows the flag `off_topic`, on this store.
pub(crate) async fn endpoint(
    store: impl StateStore,
    more: impl FnOnce(EndpointBuilder) -> EndpointBuilder,
) -> Endpoint {
    let builder = Endpoint::builder("chat", store, Bootstrap(version("v1"))).flags(["off_topic"]);
    more(builder).open().await.unwrap()
}

/// The layer in front of engines that speak `OpenAI`'s API. The candidate's failures before the first token go to the baseline, and
/// an answer that is not about its question raises the flag `off_topic`.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) endpoint: Endpoint,
    places: Places,
    port: u16,
    server: tokio::task::JoinHandle<()>,
}

/// How long a stream may say nothing, and the candidate may take for its first token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) idle: Duration,
    pub(crate) patience: Duration,
}

impl Gateway {
    /// With time to spare: nothing is cut off because the machine is slow.
    pub(crate) async fn open(endpoint: Endpoint, places: Places) -> Self {
        let limits = Limits {
            idle: PATIENCE,
            patience: PATIENCE,
        };
        Self::with(endpoint, places, limits).await
    }

    pub(crate) async fn with(endpoint: Endpoint, places: Places, limits: Limits) -> Self {
        let plane = endpoint.data_plane();
        let layer = RolloutLayer::new(plane)
            .key(header("x-session-id").dated().or_request())
            .idle(limits.idle);
        let again = FailOver::new(plane, |request: &Request<Bytes>| Some(request.clone()));
        let proxy = Proxy {
            places: places.clone(),
        };
        let service = layer.layer(again.patience(limits.patience).layer(proxy));
        let app = app(service);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            endpoint,
            places,
            port,
            server,
        }
    }

    /// Where users find it.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// How its users behave: their sessions tell when they began; one in five is among the first that a ramp reaches, so that small
    /// shares are seen within seconds; and they may be moved to the baseline only: by a promotion, by going back, or by a
    /// second chance.
    pub(crate) fn manner(&self) -> Manner {
        let (plane, places) = (self.endpoint.data_plane().clone(), self.places.clone());
        let sessions = sessions(plane.clone());
        Manner {
            session: sessions,
            may_move: Arc::new(move |to| {
                let baseline = plane.router.state().split.baseline;
                places.model(&baseline) == to
            }),
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The route that users call, around the layered service.
fn app<S, B>(service: S) -> Router
where
    S: Service<Request<Bytes>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    Router::new()
        .route("/v1/chat/completions", post(answer::<S, B>))
        .with_state(service)
}

async fn answer<S, B>(
    State(mut service): State<S>,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body>
where
    S: Service<Request<Bytes>, Response = Response<B>, Error = Infallible>,
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    let mut request = Request::new(body);
    *request.headers_mut() = headers;
    let Ok(()) = std::future::poll_fn(|cx| service.poll_ready(cx)).await;
    let Ok(response) = service.call(request).await;
    response.map(Body::new)
}

/// Session ids (UUIDs of version 7) for a gateway with this data plane.
fn sessions(plane: DataPlane) -> Arc<dyn Fn() -> String + Send + Sync> {
    let (count, told) = (AtomicU64::new(0), AtomicU64::new(0));
    Arc::new(move || {
        let begun = told.fetch_add(1, Ordering::Relaxed);
        let early = begun.is_multiple_of(5);
        let salt = plane.router.state().split.salt;
        let ms = plane.router.now().as_millis();
        loop {
            let n = count.fetch_add(1, Ordering::Relaxed);
            let id = format!("{:08x}-{:04x}-7000-8000-{n:012x}", ms >> 16, ms & 0xffff);
            let first = u64::from(place(id.as_bytes(), salt)) < (1 << 32) / 100;
            if first || !early {
                return id;
            }
        }
    })
}

#[derive(Debug, Clone)]
struct Proxy {
    places: Places,
}

impl Proxy {
    async fn answer(self, request: Request<Bytes>) -> Response<Body> {
        let assigned = request.extensions().get::<Assignment>().unwrap().clone();
        let mut asked: Value = serde_json::from_slice(request.body()).unwrap();
        let place = self.places.0.get(&**assigned.version().unwrap().id());
        let failed = |status: StatusCode| {
            Response::builder()
                .status(status)
                .body(Body::empty())
                .unwrap()
        };
        let Some((port, model)) = place else {
            return failed(StatusCode::NOT_FOUND);
        };
        asked["model"] = json!(model);
        let about = about(&asked);
        match send(*port, "", &asked).await {
            Ok(response) => checked(response, about, assigned),
            Err(_) => failed(StatusCode::BAD_GATEWAY),
        }
    }
}

impl Service<Request<Bytes>> for Proxy {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let me = self.clone();
        Box::pin(async move { Ok(me.answer(request).await) })
    }
}

/// Passes a reply on as it comes, and flags it before its end if it is not about its question.
fn checked(
    response: Response<Incoming>,
    about: Option<&'static [&'static str]>,
    assigned: Assignment,
) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(TRANSFER_ENCODING);
    let Some(about) = about.filter(|_| parts.status == StatusCode::OK) else {
        return Response::from_parts(parts, Body::new(body));
    };
    let mut text = String::new();
    let body = body.map_frame(move |frame| {
        if let Some(data) = frame.data_ref() {
            text.push_str(&String::from_utf8_lossy(data));
            if let Some(reply) = Reply::of(&text) {
                let said = reply.said.to_lowercase();
                if !about.iter().any(|word| said.contains(word)) {
                    assigned.flag("off_topic");
                }
            }
        }
        frame
    });
    Response::from_parts(parts, Body::new(body))
}

/// A whole reply: the model that gave it, and what it said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) model: String,
    pub(crate) said: String,
}

impl Reply {
    /// Of the bytes of a completion, or of a stream of them up to its end mark; none if it is not whole, or says that it failed.
    pub(crate) fn of(text: &str) -> Option<Self> {
        let mut reply = Self::default();
        let mut take = |value: &Value, field: &str| {
            let model = value["model"].as_str()?;
            model.clone_into(&mut reply.model);
            if let Some(content) = value["choices"][0][field]["content"].as_str() {
                reply.said.push_str(content);
            }
            Some(())
        };
        if !text.starts_with("data:") {
            let value: Value = serde_json::from_str(text).ok()?;
            take(&value, "message")?;
            return Some(reply);
        }
        for line in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
            if line == "[DONE]" {
                return Some(reply);
            }
            take(&serde_json::from_str(line).ok()?, "delta")?;
        }
        None
    }
}

/// What users ask, and what an answer is about that is not nonsense.
const QUESTIONS: [(&str, &[&str]); 6] = [
    ("Name three colors.", &["red", "blue", "green", "color"]),
    ("What is two plus two?", &["two", "four", "4"]),
    ("Name an animal.", &["animal", "cat", "dog", "lion"]),
    ("What do cows drink?", &["cow", "water", "milk"]),
    ("Say hello.", &["hello", "hi"]),
    ("Is the sky blue?", &["sky", "blue", "answer", "yes", "no"]),
];

fn about(asked: &Value) -> Option<&'static [&'static str]> {
    let question = asked["messages"][0]["content"].as_str()?;
    let known = QUESTIONS.iter().find(|(q, _)| *q == question);
    known.map(|(_, about)| *about)
}

/// Asks a server on this port for a chat completion, on a connection of its own.
pub(crate) async fn send(
    port: u16,
    session: &str,
    asked: &Value,
) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::post("/v1/chat/completions")
        .header(HOST, "localhost")
        .header(CONTENT_TYPE, "application/json")
        .body(serde_json::to_vec(asked)?.into())?;
    if !session.is_empty() {
        let session = HeaderValue::from_str(session)?;
        request.headers_mut().insert("x-session-id", session);
    }
    Ok(sender.send_request(request).await?)
}

/// Asks for a stream of exactly so many tokens.
pub(crate) fn long(tokens: u32) -> Value {
    json!({
        "model": "chat", "messages": [{"role": "user", "content": "Tell me a long story."}],
        "max_tokens": tokens, "ignore_eos": true, "temperature": 0, "seed": 1, "stream": true,
    })
}

/// How users behave.
#[derive(Clone)]
pub(crate) struct Manner {
    /// The id of a new conversation.
    pub(crate) session: Arc<dyn Fn() -> String + Send + Sync>,
    /// Whether a conversation may be moved to this model now.
    pub(crate) may_move: Arc<dyn Fn(&str) -> bool + Send + Sync>,
}

/// What became of what users asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) conversations: u64,
    pub(crate) sent: u64,
    /// Whole replies, by the model that gave them.
    pub(crate) whole: BTreeMap<String, u64>,
    /// Replies with another status than 200.
    pub(crate) refused: BTreeMap<u16, u64>,
    /// Replies that broke off, ended without their end mark, or said that they failed.
    pub(crate) cut: u64,
    /// Nobody answered.
    pub(crate) unanswered: u64,
    /// Conversations that were moved to a model that they may be moved to.
    pub(crate) moved: u64,
    /// Conversations that were moved otherwise: from, to.
    pub(crate) flipped: Vec<(String, String)>,
}

impl Tally {
    /// Whole replies of a model.
    pub(crate) fn by(&self, model: &str) -> u64 {
        self.whole.get(model).copied().unwrap_or(0)
    }

    /// Requests that got no whole reply.
    pub(crate) fn lost(&self) -> u64 {
        self.sent - self.whole.values().sum::<u64>()
    }
}

/// Users who hold one conversation after the other, of three questions each, every second one streamed.
#[derive(Debug)]
pub(crate) struct Users {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    tasks: JoinSet<()>,
}

impl Users {
    /// So many at once ask the server on this port.
    pub(crate) fn begin(port: u16, count: usize, manner: &Manner) -> Self {
        let questions: Vec<_> = QUESTIONS.iter().map(|(question, _)| *question).collect();
        Self::asking(port, count, manner, &questions, 8)
    }

    /// The same with these questions, answered in so many tokens at most.
    pub(crate) fn asking(
        port: u16,
        count: usize,
        manner: &Manner,
        questions: &[&'static str],
        tokens: u32,
    ) -> Self {
        let mut me = Self {
            stop: Arc::default(),
            tally: Arc::default(),
            tasks: JoinSet::new(),
        };
        let questions: Arc<[_]> = questions.into();
        for user in 0..count {
            let user = User {
                port,
                number: user,
                manner: manner.clone(),
                questions: Arc::clone(&questions),
                tokens,
                stop: Arc::clone(&me.stop),
                tally: Arc::clone(&me.tally),
            };
            me.tasks.spawn(user.live());
        }
        me
    }

    /// What has become of what they asked so far.
    pub(crate) fn tally(&self) -> Tally {
        self.tally.lock().unwrap().clone()
    }

    /// They ask no more, and wait for the answers they have not got yet.
    pub(crate) async fn finish(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.tally()
    }
}

struct User {
    port: u16,
    number: usize,
    manner: Manner,
    questions: Arc<[&'static str]>,
    tokens: u32,
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
}

impl User {
    async fn live(self) {
        let mut asked = self.number;
        loop {
            let session = (self.manner.session)();
            let mut last: Option<String> = None;
            for turn in 0..3 {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                self.note(|tally| tally.conversations += u64::from(turn == 0));
                asked += 1;
                let question = self.questions[asked % self.questions.len()];
                let Some(model) = self.ask(&session, question, asked.is_multiple_of(2)).await
                else {
                    continue;
                };
                if let Some(before) = last.filter(|before| *before != model) {
                    let may = (self.manner.may_move)(&model);
                    self.note(|tally| {
                        if may {
                            tally.moved += 1;
                        } else {
                            tally.flipped.push((before, model.clone()));
                        }
                    });
                }
                last = Some(model);
            }
        }
    }

    fn note(&self, what: impl FnOnce(&mut Tally)) {
        what(&mut self.tally.lock().unwrap());
    }

    /// Asks once; the model that gave the whole reply.
    async fn ask(&self, session: &str, question: &str, stream: bool) -> Option<String> {
        let asked = json!({
            "model": "chat", "messages": [{"role": "user", "content": question}],
            "max_tokens": self.tokens, "temperature": 0, "seed": 1, "stream": stream,
            // Else an answer would depend, by rounding, on what was asked before it.
            "cache_prompt": false,
        });
        self.note(|tally| tally.sent += 1);
        let got = async {
            let response = send(self.port, session, &asked).await.map_err(|_| 0_u16)?;
            let status = response.status().as_u16();
            let whole = response.into_body().collect().await;
            Ok::<_, u16>((status, whole.map(http_body_util::Collected::to_bytes)))
        };
        // Nobody waits for ever, but longer than anything here may take.
        let got = tokio::time::timeout(2 * PATIENCE, got).await;
        let reply = match &got {
            Ok(Ok((200, Ok(bytes)))) => Reply::of(&String::from_utf8_lossy(bytes)),
            _ => None,
        };
        self.note(|tally| match (&reply, got) {
            (Some(reply), _) => *tally.whole.entry(reply.model.clone()).or_default() += 1,
            (None, Ok(Ok((200, _)))) => tally.cut += 1,
            (None, Ok(Ok((status, _)))) => *tally.refused.entry(status).or_default() += 1,
            (None, Ok(Err(_)) | Err(_)) => {
                tally.unanswered += 1;
            }
        });
        if reply.is_none() {
            // Whoever gets nothing does not ask again at once.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        reply.map(|reply| reply.model)
    }
}

/// A plan of seconds with these shares, in percent. It looks no more often than that both arms have answered somebody since, even on a
/// busy machine: only what had a baseline beside it counts. It watches faults, and answers that are not about their questions.
pub(crate) fn plan(serve: &[f64]) -> Plan {
    plan_with(serve, "")
}

/// The same with more lines before its stages, such as other triggers.
pub(crate) fn plan_with(serve: &[f64], more: &str) -> Plan {
    plan_of(serve, &["faults", "off_topic"], more)
}

/// The same, which watches these alone.
pub(crate) fn plan_of(serve: &[f64], watched: &[&str], more: &str) -> Plan {
    let mut text = format!(
        r#"
        alpha = 0.05
        look_every = "3s"
        bake = "1s"
        [metrics]
        faults = {{ fault = {{}} }}
        off_topic = {{ flag = "off_topic" }}
        [recovery]
        drain = "2m"
        [lease]
        ttl = "2m"
        renew_every = "2s"
        lapses = 50
        longest_lapse = "1h"
        [outcomes]
        shift = "2m"
        {more}
        "#
    );
    for metric in watched {
        let weight = 1.0 / watched.len() as f64;
        let gate = format!("[[gates]]\nmetric = \"{metric}\"\nweight = {weight}\n");
        text.push_str(&gate);
    }
    if !more.contains("[triggers]") {
        text += "[triggers]\ncandidate_silent = \"3m\"\nno_verdict = \"5m\"\n";
    }
    for share in serve {
        // Few at the smallest shares, so that seconds are enough.
        let samples = match *share {
            // At 100 % there is no baseline beside it, and so no sample.
            100.0.. => 0,
            5.0.. => 6,
            _ => 2,
        };
        let stage = format!(
            "[[stages]]\nserve = {share:.1}\ndwell = \"1s\"\nlimit = \"10m\"\nmin_samples = {samples}\n"
        );
        text.push_str(&stage);
    }
    Plan::from_toml(&text).unwrap()
}
