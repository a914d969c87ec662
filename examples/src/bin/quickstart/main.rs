//! Three rollouts of a real small language model, over HTTP, in one process.
//!
//! It builds and verifies the bundles, serves them through the tower layer, lets customers write letters over real HTTP, and
//! submits three candidates against one baseline: a damaged one (blocked before anybody sees it), one that passes the offline
//! suite and fails on live traffic (rolled back by evidence), and a better one (promoted). Killed at any moment, it goes on with
//! `--resume`.

mod args;
mod bundles;
mod evaluate;
mod plan;
mod story;
mod summary;

use args::Args;
use bundles::{BASELINE, BETTER, Bundle, Cast, DAMAGED, NARROW, TWIN, difference};
use evaluate::{Desk, Shared};
use examples::load::{Load, Settings};
use examples::server::{self, Engines};
use examples::terminal::Terminal;
use llm_rollout::{Phase, RolloutId, Share, Timestamp};
use llm_serve_adapters::journal::End;
use llm_serve_adapters::layer::{KeySource as _, RolloutLayer, header};
use llm_serve_adapters::notify::LogNotifier;
use llm_serve_adapters::store::SqliteStore;
use llm_serve_adapters::{Bootstrap, Endpoint, Run, Status};
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> ExitCode {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(wrong) => return complain(&format!("{wrong}\n\n{}", args::USAGE)),
    };
    if args.help {
        Terminal::new(false).say(args::USAGE);
        return ExitCode::SUCCESS;
    }
    match run(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&format!("quickstart: {error}")),
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a program that fails")]
fn complain(text: &str) -> ExitCode {
    eprintln!("{text}");
    ExitCode::FAILURE
}

/// What the log of notices is called in the state directory.
const NOTICES: &str = "notices.log";
/// What the customers' counts are called in the state directory.
const TALLY: &str = "tally.jsonl";

async fn run(args: &Args) -> Result<()> {
    let terminal = Terminal::new(args.json);
    let dir = &args.dir;
    prepare(dir, args.resume)?;

    terminal.section("Bundles: built, and verified byte by byte");
    let casts: &[Cast] = if args.aa {
        &[TWIN]
    } else {
        &[DAMAGED, NARROW, BETTER]
    };
    let baseline = BASELINE.bundle(&dir.join("bundles"), terminal)?;
    let candidates = casts
        .iter()
        .map(|cast| Ok((*cast, cast.bundle(&dir.join("bundles"), terminal)?)))
        .collect::<Result<Vec<_>>>()?;
    let all: Vec<&Bundle> = std::iter::once(&baseline)
        .chain(candidates.iter().map(|(_, b)| b))
        .collect();

    // The endpoint: recorded split if there is one, the baseline only the very first time.
    let desk = Shared(Arc::new(Desk::new(&all)));
    let engines = Engines::new(all.iter().map(|b| (b.id.clone(), b.directory.clone())));
    let notices = std::fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join(NOTICES))?;
    let chat = Endpoint::builder(
        "chat",
        SqliteStore::open(dir.join("rollouts.db"))?,
        Bootstrap(baseline.id.clone()),
    )
    .backend(engines.clone())
    .evaluator(desk.clone())
    .notifier(LogNotifier::to(notices))
    .flags([server::BAD_FORMAT])
    .open()
    .await?;

    // What is in production must be loaded before the first request; a candidate with a share is loaded again after a kill.
    engines
        .load(
            &chat
                .status()
                .ledger
                .split()
                .map_or(baseline.id.clone(), |split| split.baseline),
        )
        .await?;
    if let Some(rollout) = &chat.status().ledger.rollout
        && !rollout.is_settled()
        && rollout.state().load != llm_rollout::Load::None
    {
        engines.load(rollout.candidate()).await?;
        engines.load(rollout.baseline()).await?;
    }

    // The request path: any tower host.
    let rollouts = RolloutLayer::new(&chat).key(header("x-session-id").or_request());
    let app = server::chat(engines.clone())
        .layer(rollouts)
        .merge(server::about(engines));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });

    // The customers: they know an address and nothing else.
    let settings = Settings {
        rate: RATE,
        tally: Some(dir.join(TALLY)),
        ..Settings::default()
    };
    let load = Load::start(address, args.seed, settings)?;
    terminal.say(&format!(
        "\n  serving http://{address}/v1/chat/completions, {RATE} letters a second"
    ));

    let slow = desk.usual_longest(&baseline.id).await? * 4 + Duration::from_millis(50);
    let plan = plan::plan(args.seconds, slow)?;
    for (cast, bundle) in &candidates {
        let id = RolloutId::new(format!("desk-{}", bundle.id.version()))?;
        terminal.section(&format!(
            "{} → {}: {}",
            baseline.id.reference(),
            bundle.id.reference(),
            cast.what()
        ));
        terminal.say(&indent(&difference(&baseline, bundle)));

        // The control path. The same id again attaches, or returns the recorded end.
        let run = chat.submit(id, bundle.id.clone(), plan.clone()).await?;
        let end = watch(&chat, &run, terminal).await?;
        terminal.say(&indent(&conclusion(&end)));
    }

    // Some letters more: whoever is in production now answers them.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let tally = load.stop().await?;
    let serving_now = chat
        .status()
        .ledger
        .production
        .clone()
        .unwrap_or(baseline.id.clone());
    serving.abort();
    let stories = story::read(&chat).await?;
    let differences = candidates
        .iter()
        .map(|(cast, b)| (b.id.clone(), cast.what(), difference(&baseline, b)));
    let told = summary::tell(&stories, &tally, &differences.collect::<Vec<_>>());
    let report = args
        .report
        .clone()
        .unwrap_or_else(|| dir.join("report.html"));
    std::fs::write(&report, summary::html(&told))?;
    if args.json {
        summary::print(&told, &tally, &serving_now)?;
    } else {
        terminal.section("Summary");
        terminal.say(&summary::table(&told, &tally));
        terminal.say(&format!("\n  report: {}", report.display()));
    }
    Ok(())
}

/// Letters a second.
const RATE: f64 = 24.0;

/// A fresh state directory, unless it is to go on. Only what this program has made is removed.
fn prepare(dir: &Path, resume: bool) -> Result<()> {
    if !resume {
        for file in [
            "rollouts.db",
            "rollouts.db-wal",
            "rollouts.db-shm",
            "rollouts.db-lock",
            TALLY,
            NOTICES,
            "report.html",
        ] {
            match std::fs::remove_file(dir.join(file)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
    }
    std::fs::create_dir_all(dir.join("bundles"))?;
    Ok(())
}

/// Tells what happens until the end, which every router has confirmed.
async fn watch(chat: &Endpoint, run: &Run, terminal: Terminal) -> Result<End> {
    let mut status = chat.watch();
    let mut shown: Option<Phase> = None;
    let mut finished = Box::pin(run.finished());
    loop {
        tokio::select! {
            end = &mut finished => return Ok(end?),
            changed = status.changed() => changed?,
        }
        let now = status.borrow_and_update().clone();
        let Some(rollout) = now.ledger.rollout.as_ref().filter(|r| r.id() == run.id()) else {
            continue;
        };
        let line = live_line(
            &now,
            rollout.last().map_or(Timestamp::default(), |(_, at)| at),
        );
        if shown == Some(rollout.phase()) {
            terminal.now(&line);
        } else {
            if let (None | Some(Phase::PreFlight), Some(report)) =
                (shown, last_report(chat, &now).await)
            {
                terminal.say(&indent(&report));
            }
            terminal.say(&line);
            shown = Some(rollout.phase());
        }
    }
}

/// The gates before deployment, once they have been evaluated.
async fn last_report(chat: &Endpoint, status: &Status) -> Option<String> {
    let rollout = status.ledger.rollout.as_ref()?;
    let stories = story::read(chat).await.ok()?;
    let story = stories.iter().find(|s| s.id == *rollout.id())?;
    story.gates.as_ref().map(ToString::to_string)
}

/// Share, samples, evidence against its bound, time.
fn live_line(status: &Status, now: Timestamp) -> String {
    let Some(rollout) = &status.ledger.rollout else {
        return String::new();
    };
    let state = rollout.state();
    let share = if state.split.baseline == *rollout.candidate() {
        Share::ALL
    } else {
        state.split.share
    };
    let mut line = format!(
        "  {:<26} candidate {:>5}",
        rollout.phase().to_string(),
        share.to_string()
    );
    if let (Some(judgement), true) = (rollout.judgement(), rollout.phase().stage().is_some()) {
        let counted: u64 = judgement.gates.iter().map(|g| g.candidate.k).sum();
        let seen = format!(
            "   samples {:>4}   bad events {counted:>3}   ln E {:>5.2} of {:.2}   {:>4.1} s in phase",
            judgement.samples,
            judgement.log_evidence,
            judgement.bound,
            now.since(state.since).as_secs_f64()
        );
        line.push_str(&seen);
    }
    line
}

fn conclusion(end: &End) -> String {
    let cause = end
        .cause
        .as_ref()
        .map(|cause| format!(": {cause}"))
        .unwrap_or_default();
    format!("⇒ {}{cause}", end.phase)
}

fn indent(text: &str) -> String {
    text.lines()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}
