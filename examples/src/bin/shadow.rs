//! Shadow: a quarter of the sessions is mirrored to v2, whose answers nobody sees; they are compared, and v2 is taken out again.

use examples::desk::{self, version};
use examples::terminal::Terminal;
use llm_rollout::{Phase, Plan};
use llm_serve_adapters::shadow::{Limits, Normalised, Request, Shadow};
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Bootstrap, Endpoint};
use std::error::Error;
use std::time::Duration;

/// Nobody is exposed, so no live gate watches: answers that differ too much are an alarm.
const PLAN: &str = r#"
alpha = 0.05
ungated = true
look_every = "200ms"
finish = "return"

[[stages]]
mirror = 25.0
dwell = "3s"

[triggers.alarms]
"answers-differ" = "rollback"
"#;

/// What each version would say. The candidate has another word for every tenth question.
fn answer(version: u8, question: u64) -> String {
    match (version, question % 10) {
        (2, 3) => format!("Perhaps {question}."),
        _ => format!("It is {question}."),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let terminal = Terminal::new(false);
    let first = Bootstrap(version("chat", 1)?);
    let chat = Endpoint::open("chat", MemoryStore::new(), first).await?;
    let plane = chat.data_plane().clone();
    let limits = Limits {
        concurrent: 4,
        deadline: Duration::from_secs(1),
        ..Limits::default()
    };
    let shadow = Shadow::new(limits, Normalised);

    let mirror = shadow.clone();
    let users = tokio::spawn(async move {
        let mut pace = tokio::time::interval(Duration::from_millis(2));
        for question in 0u64.. {
            pace.tick().await;
            let session = question.to_string();
            // Off the user's path: what exceeds its limits is skipped and counted.
            let mirrored = plane.router.mirror(session.as_bytes(), plane.router.now());
            let pair = mirrored.map(|_candidate| {
                mirror.offer(Request::safe().tokens(10), async move || {
                    Ok::<_, String>(answer(2, question))
                })
            });
            // The user's own request.
            let reply = answer(1, question);
            if let Some(pair) = pair {
                pair.answered(reply);
            }
        }
    });

    let plan = Plan::from_toml(PLAN)?;
    let run = chat
        .submit(desk::rollout("shadow-v2")?, version("chat", 2)?, plan)
        .await?;
    // What a monitoring system would do: compare, and raise the alarm.
    let (watched, monitored) = (shadow.clone(), chat.clone());
    let monitor = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let counts = watched.counts();
            if counts.pairs >= 50
                && let Some(mean) = counts.mean().filter(|mean| *mean < 0.7)
            {
                let detail = format!("{:.0} % alike", 100.0 * mean);
                drop(monitored.alarm("answers-differ", &detail).await);
            }
        }
    });
    let end = desk::follow(&chat, &run, |phase, _| {
        let counts = shadow.counts();
        terminal.say(&format!("  {phase}: {} pairs compared", counts.pairs));
    })
    .await?;
    users.abort();
    monitor.abort();

    let counts = shadow.counts();
    terminal.say(&format!(
        "\n  {}: {} mirrored, {} pairs, {:.0} % alike, {:.0} % failed or late, {} skipped; users got {} answers of v2",
        end.phase,
        counts.offered,
        counts.pairs,
        100.0 * counts.mean().unwrap_or(0.0),
        100.0 * counts.faults().unwrap_or(0.0),
        counts.full + counts.spent + counts.unsafe_,
        end.exposed,
    ));
    if end.phase != Phase::Concluded || counts.pairs == 0 {
        return Err("expected a shadow that ends with pairs".into());
    }
    Ok(())
}
