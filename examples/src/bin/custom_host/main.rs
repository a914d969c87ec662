//! A host that brings everything itself: the traits of `llm_serve_adapters::host`, implemented by hand.
//!
//! ```sh
//! cargo run -p examples --bin custom_host -- FOLDER
//! ```
//!
//! A store in a folder, a router for a proxy that reads a file, a metric source that is a table, a backend, an evaluator, a
//! notifier, incident records, a catalogue of manifests, a probe, a calendar, and a clock that the program moves, so that hours
//! pass in a second. Two rollouts run to their ends: version 1.1 is as good as 1.0 and is promoted; 1.2 passes its tests, fails its
//! users, and is taken back. A third is refused: 1.3 was revoked by its makers. What is in the folder afterwards is what a real host would find after a crash.

mod clock;
mod models;
mod parts;
mod router;
mod source;
mod store;

use clock::HandClock;
use llm_rollout::{Epoch, Plan, RolloutId, RouterId, Split, Timestamp};
use llm_serve_adapters::host::Clock as _;
use llm_serve_adapters::router::{Key, Role};
use llm_serve_adapters::{Bootstrap, Endpoint, Run, SubmitError};
use models::{Models, manifest};
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

const PLAN: &str = r#"
alpha = 0.05
look_every = "10s"
bake = "2m"
[metrics]
faults = { fault = {} }
[[gates]]
metric = "faults"
weight = 1.0
[pre_flight]
deadline = "2m"
[[pre_flight.gates.gates]]
metric = "answered"
must_be = "at_least"
threshold = { absolute = 0.95 }
criterion = { point = { min_n = 60 } }
action = "block"
[[stages]]
serve = 10.0
dwell = "3m"
limit = "4h"
min_samples = 150
[[stages]]
serve = 50.0
dwell = "3m"
limit = "4h"
min_samples = 150
[[watch]]
probe = "canonical"
every = "1m"
fails = 2
of = 3
action = "rollback"
"#;

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stderr, reason = "the last word of a program that fails")]
async fn main() -> ExitCode {
    let Some(folder) = std::env::args().nth(1) else {
        eprintln!("custom_host: say in which folder it may write");
        return ExitCode::FAILURE;
    };
    match run(PathBuf::from(folder)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("custom_host: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The parts that the request path needs.
struct Host {
    endpoint: Endpoint,
    clock: HandClock,
    models: Arc<Models>,
    tally: source::Tally,
    asked: u64,
}

#[expect(clippy::print_stdout, reason = "what there is to see")]
async fn run(folder: PathBuf) -> Result<(), Box<dyn Error>> {
    // A Monday.
    let clock = HandClock::starting(Timestamp::from_millis(1_767_571_200_000));
    let (models, tally) = (Arc::new(Models::default()), source::Tally::default());
    let mut catalogue = parts::Catalogue::default();
    let mut known = Vec::new();
    for minor in 0..4 {
        let manifest = manifest(minor)?;
        known.push(manifest.id().clone());
        catalogue.manifests.insert(manifest.id().clone(), manifest);
    }
    let [first, better, worse, revoked] = &known[..] else {
        return Err("four versions were made".into());
    };
    catalogue.revoked.insert(revoked.clone());
    models.load(first);

    let steady = Split::steady(None, first.clone(), Epoch::default());
    let edge = router::EdgeRouter::open(
        RouterId::new("edge")?,
        folder.join("edge"),
        clock.clone(),
        steady,
    )?;
    tokio::spawn(edge.clone().lapse_in_time());
    let pool = parts::Pool {
        models: Arc::clone(&models),
        newest: Arc::default(),
    };
    let store = store::FolderStore::new(folder.join("store"));
    let endpoint = Endpoint::builder("chat", store, Bootstrap(first.clone()))
        .clock(clock.clone())
        .router(edge)
        .source(tally.clone())
        .backend(pool)
        .evaluator(parts::Suite(Arc::clone(&models)))
        .notifier(parts::Printer::default())
        .incidents(parts::Records(folder.join("incidents")))
        .manifests(catalogue)
        .probe(parts::Canonical(Arc::clone(&models)))
        .calendar(parts::Weekends)
        .open()
        .await?;
    let mut host = Host {
        endpoint,
        clock,
        models,
        tally,
        asked: 0,
    };

    for (name, candidate) in [("chat-v1.1", better), ("chat-v1.2", worse)] {
        println!("{name}:");
        let plan = Plan::from_toml(PLAN)?;
        let run = host
            .endpoint
            .submit(RolloutId::new(name)?, candidate.clone(), plan)
            .await?;
        let begun = host.clock.now();
        let (phase, by_candidate) = host.live(&run).await?;
        let minutes = (host.clock.now().as_millis() - begun.as_millis()) / 60_000;
        println!(
            "  {phase} after {minutes} minutes, {by_candidate} requests answered by the candidate"
        );
        println!(
            "  the proxy was told: {}",
            std::fs::read_to_string(folder.join("edge/weights"))?.trim()
        );
    }
    let (name, plan) = (RolloutId::new("chat-v1.3")?, Plan::from_toml(PLAN)?);
    match host.endpoint.submit(name, revoked.clone(), plan).await {
        Err(refused @ SubmitError::NoWayBack { .. }) => println!("chat-v1.3: {refused}"),
        other => return Err(format!("version 1.3 was not refused: {other:?}").into()),
    }
    Ok(())
}

impl Host {
    /// Users ask, time passes, until the rollout is over: its end, and how many the candidate has answered.
    async fn live(&mut self, run: &Run) -> Result<(String, u64), Box<dyn Error>> {
        let mut by_candidate = 0;
        let mut ended = Box::pin(run.finished());
        loop {
            for _ in 0..5 {
                by_candidate += u64::from(self.serve());
            }
            let clock = self.clock.clone();
            tokio::select! {
                biased;
                end = &mut ended => return Ok((end?.phase.to_string(), by_candidate)),
                () = clock.pass(Duration::from_millis(500)) => {}
            }
        }
    }

    /// One request: decide, answer, count. Whether the candidate had it.
    fn serve(&mut self) -> bool {
        self.asked += 1;
        let session = format!("session-{}", self.asked);
        let plane = self.endpoint.data_plane();
        let decision = plane
            .router
            .decide(&Key::session(session.as_bytes()), plane.router.now());
        let answer = decision
            .version()
            .and_then(|version| self.models.answer(version.id(), "user: hello"));
        self.tally.count(decision, answer.is_none());
        decision.role() == Role::Candidate
    }
}
