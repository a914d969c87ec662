//! Evaluation before deployment: a suite of letters, asked of two versions over HTTP, and the gates that look at it.
//!
//! `evaluate [SUITE.jsonl]`: without a file it writes the suite that it runs to standard output first. The versions are those of the quickstart: one in
//! production, one trained longer, one quantised too far; each is served as any OpenAI-compatible server would.

use desk_model::{Variant, desk};
use examples::server::{self, Engines};
use examples::terminal::Terminal;
use llm_gates::{Action, Bound, Criterion, GateTable, TableGate, Threshold};
use llm_serve_adapters::backend::{ChatClient, Upstream};
use llm_serve_adapters::evaluate::{Check, Checks, Models, Similarity, Suite, SuiteEvaluator};
use llm_serve_adapters::host::Evaluator as _;
use llm_serve_adapters::layer::{KeySource as _, RolloutLayer, header};
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Bootstrap, Endpoint};
use llm_version_core::fs::{BuildOptions, build};
use llm_version_core::{Metadata, Name, Version, VersionId};
use serde_json::json;
use std::error::Error;
use std::path::Path;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Letters of the suite.
const LETTERS: usize = 40;

/// The quickstart's letters as lines: what is ordered must come back as JSON, exactly.
fn letters() -> String {
    let line = |(index, letter): (usize, desk::Request)| {
        let order = &letter.expected;
        json!({
            "name": format!("letter {index}"),
            "input": letter.text,
            "ideal": order.to_json(),
            "schema": {
                "type": "object",
                "required": ["item", "count", "city"],
                "properties": {"item": {"const": order.item}, "count": {"const": order.count}, "city": {"const": order.city}},
                "additionalProperties": false,
            },
        })
        .to_string()
    };
    let lines = (1..).zip(desk::offline_suite(LETTERS)).map(line);
    lines.collect::<Vec<_>>().join("\n")
}

/// Serves one version on a port of its own.
async fn serve(variant: Variant, folder: &Path) -> Result<(VersionId, ChatClient)> {
    let directory = folder.join(variant.name());
    variant.write(&directory)?;
    let metadata = Metadata::new(Name::new("desk")?, Version::new(1, 0, 0));
    std::fs::write(directory.join("metadata.json"), metadata.to_pretty())?;
    let version = build(&directory, &BuildOptions::new())?
        .manifest
        .id()
        .clone();
    let engines = Engines::new([(version.clone(), directory)]);
    engines.load(&version).await?;
    let endpoint = Endpoint::builder(
        variant.name(),
        MemoryStore::new(),
        Bootstrap(version.clone()),
    )
    .open()
    .await?;
    let layer = RolloutLayer::new(&endpoint).key(header("x-session-id").or_request());
    let app = server::chat(engines.clone())
        .layer(layer)
        .merge(server::about(engines));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    // The desk answers in the name of the version.
    let upstream = Upstream::new(format!("http://{}", listener.local_addr()?), server::MODEL)
        .answers_as(version.reference().to_string());
    tokio::spawn(async move {
        let _open_as_long_as_it_serves = endpoint;
        axum::serve(listener, app).await
    });
    Ok((version, ChatClient::new(&upstream)?))
}

#[tokio::main]
async fn main() -> Result<()> {
    let terminal = Terminal::new(false);
    let suite = if let Some(file) = std::env::args().nth(1) {
        Suite::read(std::fs::File::open(file)?, Check::Match)?
    } else {
        terminal.say(&letters());
        Suite::from_jsonl(&letters(), Check::Match)?
    };
    let folder = std::env::temp_dir().join(format!("evaluate-{}", std::process::id()));
    let told = run(terminal, suite, &folder).await;
    std::fs::remove_dir_all(&folder)?;
    told
}

async fn run(terminal: Terminal, suite: Suite, folder: &Path) -> Result<()> {
    let mut versions = Vec::new();
    for variant in [Variant::Base, Variant::Better, Variant::Damaged] {
        versions.push((variant, serve(variant, folder).await?));
    }
    let models: Models = versions.iter().map(|(_, served)| served.clone()).collect();
    let evaluator = SuiteEvaluator::builder("letters", suite, models)
        .scorer(Checks::new("orders"))
        .scorer(Similarity::rouge_l("rouge_l"))
        .build()?;
    // At most one order in ten may go wrong that went right before, and no request may be left without an answer.
    let point = |metric: &str, must_be, threshold| {
        TableGate::new(
            metric,
            must_be,
            Threshold::Absolute(threshold),
            Action::Block,
        )
        .criterion(Criterion::Point { min_n: 10 })
    };
    let gates = GateTable::new(vec![
        point("orders.negative_flips", Bound::AtMost, 0.1),
        point("letters.unanswered", Bound::AtMost, 0.0),
        TableGate::new(
            "rouge_l",
            Bound::AtLeast,
            Threshold::BaselinePlus(0.0),
            Action::Warn,
        ),
    ]);
    let (_, (baseline, _)) = &versions[0];
    for (variant, (candidate, _)) in versions.iter().skip(1) {
        terminal.section(&format!(
            "{} against {}",
            variant.name(),
            Variant::Base.name()
        ));
        let measured = evaluator.evaluate(candidate, baseline).await?;
        terminal.say(&gates.evaluate(&measured).to_string());
    }
    Ok(())
}
