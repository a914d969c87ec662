//! Waves: one change over three regions, each an endpoint of its own; the second is harmed by it, and the first is taken back.

use examples::desk::{Users, version};
use examples::terminal::Terminal;
use llm_rollout::Plan;
use llm_rollout::presets::{self, Gates, Pace};
use llm_rollout::waves::{Member, OnFailure, Phase, Schedule, Spec, Wave};
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Bootstrap, Endpoint, WavesBuilder};
use std::error::Error;
use std::time::{Duration, Instant};

/// A canary in seconds instead of hours.
fn plan() -> Result<Plan, Box<dyn Error>> {
    let gates = Gates::usual(Duration::from_secs(1));
    let pace = Pace::new(Duration::from_millis(1500), 100);
    let canary = presets::canary(gates, presets::shares([20.0, 50.0])?, pace)?;
    let mut spec = canary.spec().clone();
    spec.bake = Duration::from_millis(500);
    spec.look_every = Duration::from_millis(200);
    Ok(spec.try_into()?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let terminal = Terminal::new(false);
    let begun = Instant::now();
    let store = MemoryStore::new();
    let (mut regions, mut users) = (Vec::new(), Vec::new());
    for name in ["chat-eu", "chat-us", "chat-ap"] {
        let first = Bootstrap(version("chat", 1)?);
        let chat = Endpoint::open(name, store.clone(), first).await?;
        // In one region, the new version fails every third request.
        let harmed = name == "chat-us";
        users.push(Users::ask(chat.data_plane(), move |n| harmed && n % 3 == 0));
        regions.push(chat);
    }
    let member = |name: &str| {
        Ok::<_, Box<dyn Error>>(Member {
            endpoint: name.parse()?,
            rollout: "chat-v2".parse()?,
            candidate: version("chat", 2)?,
            traffic: 1.0,
            plan: plan()?,
        })
    };

    // One region first, then the others, one at a time; what fails anywhere goes back everywhere.
    let mut spec = Spec::new(vec![
        Wave::of([member("chat-eu")?]),
        Wave::of([member("chat-us")?, member("chat-ap")?]),
    ]);
    spec.on_failure = OnFailure::RollBackAll;
    let mut waves = WavesBuilder::new("all-v2".parse()?, store);
    for chat in &regions {
        waves = waves.endpoint(chat);
    }
    let run = waves.start(Schedule::try_from(spec)?).await?;

    let mut shown = None;
    let mut finished = Box::pin(run.finished());
    let end = loop {
        let end = tokio::select! {
            end = &mut finished => Some(end?),
            () = tokio::time::sleep(Duration::from_millis(50)) => None,
        };
        let state = run.waves().state().clone();
        if shown.as_ref() != Some(&state) {
            let seconds = begun.elapsed().as_secs_f64();
            terminal.say(&format!("  {seconds:4.1} s  {}", state.phase));
            for (region, progress) in &state.members {
                terminal.say(&format!("          {region}: {progress:?}"));
            }
            shown = Some(state);
        }
        if let Some(end) = end {
            break end;
        }
    };
    for chat in &regions {
        let production = chat.status().ledger.production.clone();
        let serving = production.map(|v| v.reference().to_string());
        terminal.say(&format!(
            "  {} serves {}",
            chat.id(),
            serving.unwrap_or_default()
        ));
    }
    let cause = run.waves().state().cause.clone().unwrap_or_default();
    terminal.say(&format!("  {end}, because {cause}"));
    if end != Phase::RolledBack || !cause.contains("chat-us") {
        return Err("expected everything to go back for chat-us".into());
    }
    Ok(())
}
