//! An OpenAI-compatible reverse proxy that rolls out versions: a template to copy, with nothing hidden in a helper.
//!
//! ```text
//! GATEWAY_TOKEN=secret gateway --store gateway.db --listen 127.0.0.1:8080 --admin 127.0.0.1:8081 \
//!     --version 1.0.0 http://127.0.0.1:9001 qwen --version 1.1.0 http://127.0.0.1:9002 qwen-tuned
//! curl -H 'authorization: Bearer secret' --data-binary @canary.toml http://127.0.0.1:8081/submit/chat-v2/1.1.0
//! curl -H 'authorization: Bearer secret' -d 'evals read' http://127.0.0.1:8081/approve
//! ```
//!
//! The first `--version` is served the very first time; afterwards what is recorded. Clients talk to `--listen`: chat,
//! completions and responses, streamed or not, with `x-session-id` (or the body's `user`) as the session. People and dashboards talk
//! to `--admin`: `/metrics`, and with the token `/status`, `/submit`, `/approve`, `/hold`, `/resume`, `/abort` and
//! `/force-baseline`; what is sent along is the reason that the log keeps.
//!
//! Where things are: `proxy.rs` the request path, `backend.rs` warm-up, `admin.rs` and `metrics.rs` what people use, `args.rs` what
//! it is started with.

mod admin;
mod args;
mod backend;
mod metrics;
mod proxy;

use args::{Args, Served};
use axum::serve::ListenerExt as _;
use llm_serve_adapters::apply::Profiles;
use llm_serve_adapters::layer::{FailOver, KeySource as _, RolloutLayer, from_fn, header};
use llm_serve_adapters::router::{Key, VersionSlot};
use llm_serve_adapters::shadow::{Limits, Normalised, Shadow};
use llm_serve_adapters::store::SqliteStore;
use llm_serve_adapters::{Bootstrap, Breaker, Caps, Endpoint};
use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tower_layer::Layer as _;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A stream that says nothing for so long is cut off, and is its version's fault.
const IDLE: Duration = Duration::from_secs(60);
/// How long the candidate may take for its first token before the baseline is asked instead.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the candidate is asked for a real reply, besides what users ask it.
const CHECK: Duration = Duration::from_secs(10);

#[tokio::main]
#[expect(clippy::print_stderr, reason = "the last word of a program that fails")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway: {error}");
            ExitCode::FAILURE
        }
    }
}

#[expect(
    clippy::print_stdout,
    reason = "where it listens, for whoever started it"
)]
async fn run() -> Result<()> {
    let args = Args::parse(
        std::env::args().skip(1),
        std::env::var("GATEWAY_TOKEN").ok(),
    )?;
    let first = args.versions.first().map(|served| served.id.clone());
    let first = first.ok_or("at least one --version is needed")?;

    // What each version makes of a request, and where it is served.
    let profile = |served: &Served| (served.id.clone(), served.profile.clone());
    let profiles = args.versions.iter().map(profile);
    let profiles = profiles.fold(Profiles::default(), |all, (id, profile)| {
        all.version(&id, profile)
    });

    // The endpoint: its controller runs on this runtime until the last handle is dropped.
    let upstreams = proxy::Upstreams::new(profiles);
    let store = SqliteStore::open(&args.store)?;
    let endpoint = Endpoint::builder("chat", store, Bootstrap(first))
        .backend(backend::Servers(upstreams.clone()))
        .open()
        .await?;
    let plane = endpoint.data_plane().clone().breaker(Breaker::default());

    // The request path: key, decision, a second chance on the baseline, the reply followed as it streams.
    let shadow = Shadow::new(Limits::default(), Normalised);
    let proxy = proxy::Proxy::new(plane.clone(), upstreams.clone(), shadow.clone());
    let second = FailOver::new(&plane, |request: &proxy::Asked| Some(request.clone()));
    let second = second.patience(PATIENCE);
    let user = from_fn(|head| {
        head.extensions
            .get::<proxy::User>()
            .map(|user| Key::session(user.0.as_bytes()))
    });
    let key = header("x-session-id").or(user).or_request().dated();
    let layer = RolloutLayer::new(&plane).key(key).idle(IDLE);
    let app = proxy::app(layer.layer(second.layer(proxy)));

    // A candidate never gets more than half of all tokens, whatever the plan says.
    let kept = plane.clone();
    tokio::spawn(async move {
        let half = llm_rollout::Share::from_percent(50.0).ok();
        let caps = Caps {
            requests: None,
            tokens: half,
        };
        loop {
            tokio::time::sleep(Duration::from_secs(10)).await;
            // Tried again in ten seconds; until then the share stays as it is.
            let _realised = kept.keep_within(&caps);
        }
    });

    // Its health, by real replies: a candidate that gives none is suspended until it does.
    let watched = plane.clone();
    tokio::spawn(async move {
        let probe = |slot: VersionSlot| {
            let upstreams = upstreams.clone();
            async move {
                match slot.version() {
                    Some(version) => upstreams.generate(version.id()).await.is_ok(),
                    None => false,
                }
            }
        };
        watched.watch_health(CHECK, 3, probe).await;
    });

    let (public, private) = (
        TcpListener::bind(args.listen).await?,
        TcpListener::bind(args.admin).await?,
    );
    println!("clients: http://{}", public.local_addr()?);
    // Else the kernel holds tokens back until the client has acknowledged those before.
    let public = public.tap_io(|stream| drop(stream.set_nodelay(true)));
    println!("admin: http://{}", private.local_addr()?);
    let admin = admin::app(admin::Desk {
        endpoint,
        plane,
        shadow,
        versions: args.versions,
        token: Arc::from(args.token),
    });
    tokio::select! {
        ended = axum::serve(public, app) => ended?,
        ended = axum::serve(private, admin) => ended?,
    }
    Ok(())
}
