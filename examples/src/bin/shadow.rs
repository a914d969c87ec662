//! Shadow: a quarter of the sessions is mirrored to a candidate, whose answers nobody sees; they are compared in pairs, and the pairs
//! are judged like any other metric. v2 has another word for every tenth question and may finish; v3 is wrong about every other
//! question, and goes away by itself.

use examples::desk::{self, version};
use examples::terminal::Terminal;
use llm_rollout::presets::{self, Gates, Pace};
use llm_rollout::{MetricDef, Phase, Plan, PlanError, Share};
use llm_serve_adapters::shadow::{Limits, Normalised, Request, Shadow};
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Bootstrap, Endpoint};
use std::error::Error;
use std::time::Duration;

/// A quarter is mirrored until there are 200 pairs, for four seconds at least; a fifth of the answers may differ.
fn plan() -> Result<Plan, PlanError> {
    let answers = MetricDef::Pair("same-words".to_owned());
    let gates = Gates::nothing().gate("answers", answers, 1.0, 0.2);
    let quarter = Share::from_percent(25.0).unwrap_or(Share::ALL);
    let plan = presets::shadow(gates, quarter, Pace::new(Duration::from_secs(4), 200))?;
    // A shadow of seconds: pairs bet once a look, so look often.
    let mut spec = plan.spec().clone();
    spec.look_every = Duration::from_millis(50);
    spec.try_into()
}

/// What each version would say.
fn answer(version: &str, question: u64) -> String {
    match (version, question % 10) {
        ("2.0.0", 3) => format!("Perhaps {question}."),
        ("3.0.0", 0..5) => format!("It is {}.", question + 1),
        _ => format!("It is {question}."),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let terminal = Terminal::new(false);
    let limits = Limits {
        concurrent: 4,
        deadline: Duration::from_secs(1),
        ..Limits::default()
    };
    let shadow = Shadow::new(limits, Normalised);
    // The plan's `{ pair = "same-words" }` is what this shadow's comparisons say.
    let chat = Endpoint::builder("chat", MemoryStore::new(), Bootstrap(version("chat", 1)?))
        .shadow("same-words", &shadow)
        .open()
        .await?;

    let (plane, mirror) = (chat.data_plane().clone(), shadow.clone());
    let users = tokio::spawn(async move {
        let mut pace = tokio::time::interval(Duration::from_millis(2));
        for question in 0u64.. {
            pace.tick().await;
            let session = question.to_string();
            // Off the user's path: what exceeds its limits is skipped and counted.
            let mirrored = plane.router.mirror(session.as_bytes(), plane.router.now());
            let pair = mirrored.map(|candidate| {
                let name = candidate.version().map(|v| v.id().version().to_string());
                mirror.offer(candidate, Request::safe().tokens(10), async move || {
                    Ok::<_, String>(answer(&name.ok_or("unknown")?, question))
                })
            });
            // The user's own request.
            let reply = answer("1.0.0", question);
            if let Some(pair) = pair {
                pair.answered(reply);
            }
        }
    });

    for (n, expected) in [(2, Phase::Concluded), (3, Phase::RolledBack)] {
        let id = desk::rollout(&format!("shadow-v{n}"))?;
        let before = shadow.counts();
        let run = chat.submit(id, version("chat", n)?, plan()?).await?;
        let end = desk::follow(&chat, &run, |phase, _| {
            terminal.say(&format!("  v{n} {phase}"));
        })
        .await?;
        let counts = shadow.counts();
        let cause = end.cause.map(|cause| cause.to_string());
        terminal.say(&format!(
            "  v{n} {} ({}): {} pairs, {} lost, {} failed or late; users got {} of its answers\n",
            end.phase,
            cause.unwrap_or_default(),
            counts.pairs - before.pairs,
            counts.losses - before.losses,
            counts.failed + counts.late - before.failed - before.late,
            end.exposed,
        ));
        if end.phase != expected || end.exposed > 0 {
            return Err(format!("expected v{n} to be {expected}").into());
        }
    }
    users.abort();
    Ok(())
}
