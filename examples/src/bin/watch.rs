//! Looks after a version that was promoted long ago: canonical questions on a schedule, and a detector of slow drift.
//!
//! ```sh
//! cargo run --release -p examples --bin watch
//! ```
//!
//! Version 2 passes its rollout and goes wrong afterwards, as versions do when an engine, a cache or the world around them
//! changes. First its refusals creep up, which the plan answers with a bar on new rollouts; then it gets canonical questions
//! wrong, and the endpoint returns to version 1 by itself.

use async_trait::async_trait;
use examples::terminal::Terminal;
use llm_gates::anytime::RateDetector;
use llm_gates::{Counts, Grid};
use llm_rollout::{Plan, Probed, RolloutId};
use llm_serve_adapters::host::{Error, Probe, Result};
use llm_serve_adapters::notify::LogNotifier;
use llm_serve_adapters::router::{Key, Role};
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Bootstrap, Endpoint};
use llm_version_core::{Digest, Name, Version, VersionId};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const PLAN: &str = r#"
alpha = 0.05
ungated = true          # this example is about what comes after the rollout
look_every = "100ms"
[[stages]]
serve = 100.0
dwell = "1s"
[[watch]]
probe = "refusals"
every = "1s"
action = "hold"
[[watch]]
probe = "canonical"
every = "1s"
fails = 2
of = 3
action = "rollback"
"#;

/// How badly version 2 has aged: 0 well, 1 refuses more, 2 is wrong too. A real model does this by itself.
type Age = Arc<AtomicU32>;

/// What a version answers. Version 1 is always right and refuses one request in a hundred.
fn answer(version: &VersionId, age: &Age, question: u32) -> &'static str {
    let aged = if version.version().major() == 1 {
        0
    } else {
        age.load(Ordering::SeqCst)
    };
    match (aged, question % 100) {
        (1.., ..12) | (0, 0) => "I cannot help with that.",
        (2.., 12..50) => "Berne",
        _ => "Paris",
    }
}

/// Forty questions whose answers are known.
#[derive(Debug)]
struct Canonical(Age);

#[async_trait]
impl Probe for Canonical {
    fn name(&self) -> &'static str {
        "canonical"
    }

    async fn probe(&self, version: &VersionId) -> Result<Probed> {
        let wrong = (15..55).filter(|q| answer(version, &self.0, *q) != "Paris");
        Ok(match wrong.count() {
            0 => Probed::Passed,
            n => Probed::Failed(format!("{n} of 40 canonical answers are wrong")),
        })
    }
}

/// The rate of refusals must stay below 3 %: an e-detector adds up evidence over weeks, and alarms falsely once in 10,000 looks on average.
#[derive(Debug)]
struct Refusals(Age, Mutex<RateDetector>);

#[async_trait]
impl Probe for Refusals {
    fn name(&self) -> &'static str {
        "refusals"
    }

    async fn probe(&self, version: &VersionId) -> Result<Probed> {
        let sampled = 200;
        let refused = (0..sampled).filter(|q| answer(version, &self.0, *q).starts_with("I cannot"));
        let counts = Counts::new(u64::from(sampled), refused.count() as u64);
        let mut detector = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        detector
            .observe(counts)
            .map_err(|e| Error::permanent(e.to_string()))?;
        Ok(if detector.alarms(10_000.0) {
            Probed::Failed(format!(
                "{} of {} sampled answers are refusals",
                counts.k, counts.n
            ))
        } else {
            Probed::Passed
        })
    }
}

fn version(number: u32) -> std::result::Result<VersionId, Box<dyn std::error::Error>> {
    let digest = Digest::of(&number.to_le_bytes());
    Ok(VersionId::new(
        Name::new("chat")?,
        Version::new(number, 0, 0),
        digest,
    ))
}

/// Which version a new conversation gets now.
fn serving(chat: &Endpoint) -> String {
    let router = &chat.data_plane().router;
    let decision = router.decide(&Key::session(b"a new conversation"), router.now());
    let role = if decision.role() == Role::Candidate {
        " (candidate)"
    } else {
        ""
    };
    match decision.version() {
        Some(served) => format!("version {}{role}", served.id().version()),
        None => "nothing".to_owned(),
    }
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let terminal = Terminal::new(false);
    let age = Age::default();
    let detector = RateDetector::new(0.03, Grid::Rr7)?;
    let chat = Endpoint::builder("chat", MemoryStore::default(), Bootstrap(version(1)?))
        .notifier(LogNotifier::stderr())
        .probe(Canonical(Arc::clone(&age)))
        .probe(Refusals(Arc::clone(&age), Mutex::new(detector)))
        .open()
        .await?;
    let run = chat
        .submit(
            RolloutId::new("chat-v2")?,
            version(2)?,
            Plan::from_toml(PLAN)?,
        )
        .await?;
    terminal.say(&format!("rollout ended: {}", run.finished().await?.phase));
    terminal.say(&format!("in production: {}", serving(&chat)));

    age.store(1, Ordering::SeqCst);
    terminal.section("version 2 begins to refuse one request in eight ...");
    wait_for(&chat, |ledger| ledger.bars.contains_key("watch-refusals")).await?;
    let refused = chat
        .submit(
            RolloutId::new("chat-v3")?,
            version(3)?,
            Plan::from_toml(PLAN)?,
        )
        .await;
    if let Err(error) = refused {
        terminal.say(&format!("a new rollout is refused: {error}"));
    }
    terminal.say(&format!("in production: {}", serving(&chat)));
    chat.unbar("watch-refusals", "ana", "known, being looked into")
        .await?;

    age.store(2, Ordering::SeqCst);
    terminal.section("version 2 begins to get canonical questions wrong ...");
    let first = version(1)?;
    wait_for(&chat, |ledger| ledger.production.as_ref() == Some(&first)).await?;
    terminal.say(&format!("in production: {}", serving(&chat)));
    Ok(())
}

/// Waits until the endpoint's log says so, for at most a minute.
async fn wait_for(
    chat: &Endpoint,
    ready: impl Fn(&llm_serve_adapters::journal::Ledger) -> bool,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut status = chat.watch();
    let settled = |s: &llm_serve_adapters::Status| {
        let busy = s.ledger.rollout.as_ref().is_some_and(|r| !r.is_settled());
        ready(&s.ledger) && !busy
    };
    tokio::time::timeout(Duration::from_secs(60), status.wait_for(settled)).await??;
    Ok(())
}
