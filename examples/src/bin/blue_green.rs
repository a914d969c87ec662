//! Blue-green: v2 is warmed up and verified in a preview, switched to at once, found wanting, and left by one split; v3 stays.

use examples::desk::{self, Users, version};
use examples::terminal::Terminal;
use llm_rollout::presets::{self, BlueGreen, Gates};
use llm_rollout::{Advance, Phase, Plan, Response};
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Bootstrap, Endpoint};
use std::error::Error;
use std::time::{Duration, Instant};

/// Blue-green in seconds instead of hours. Who watches while the candidate serves everybody: probes, by their alarms.
fn plan() -> Result<Plan, Box<dyn Error>> {
    let mut gates = Gates::nothing();
    let probe = ("wrong-answers".to_owned(), Response::Rollback);
    gates.triggers.alarms.extend([probe]);
    let how = BlueGreen {
        verify: Duration::from_secs(1),
        approve: Advance::Manual,
        soak: Duration::from_secs(1),
        keep_warm: Duration::from_secs(2),
    };
    let mut spec = presets::blue_green(gates, how)?.spec().clone();
    spec.look_every = Duration::from_millis(200);
    Ok(spec.try_into()?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let terminal = Terminal::new(false);
    let blue = Bootstrap(version("chat", 1)?);
    let chat = Endpoint::open("chat", MemoryStore::new(), blue).await?;
    let users = Users::ask(chat.data_plane(), |_| false);
    for (number, good) in [(2, false), (3, true)] {
        let green = version("chat", number)?;
        terminal.section(&format!("chat/v1 → {}", green.reference()));
        let id = desk::rollout(&format!("green-v{number}"))?;
        let run = chat.submit(id, green, plan()?).await?;
        let begun = Instant::now();
        let (mut verified, mut probed) = (false, false);
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let person = tokio::spawn({
            let (chat, run) = (chat.clone(), run.clone());
            async move {
                while let Some(phase) = told.recv().await {
                    match phase {
                        // Somebody has looked at the preview.
                        Phase::Held { stage: 0 } if !verified => {
                            verified = true;
                            drop(run.approve("ana", "the preview answers well").await);
                        }
                        // A probe finds what nobody has seen in the preview.
                        Phase::Soaking { stage: 1 } if !good && !probed => {
                            probed = true;
                            drop(chat.alarm("wrong-answers", "5 of 7 probes failed").await);
                        }
                        _ => {}
                    }
                }
            }
        });
        let end = desk::follow(&chat, &run, |phase, split| {
            let (baseline, candidate) = users.answered();
            terminal.say(&format!(
                "  {:4.1} s  {phase}: {split}; {baseline} answers of the baseline, {candidate} of the candidate",
                begun.elapsed().as_secs_f64()
            ));
            // Who listens is gone only at the end.
            let _ = tell.send(phase);
        })
        .await?;
        person.abort();
        let why = end.cause.map(|c| format!(" ({c})")).unwrap_or_default();
        terminal.say(&format!("  {}{why}", end.phase));
        let expected = if good {
            Phase::Promoted
        } else {
            Phase::RolledBack
        };
        if end.phase != expected {
            return Err(format!("expected it to be {expected}").into());
        }
    }
    Ok(())
}
