//! Rolls out a change of the system prompt on one engine: no second server, no weights, two profiles.
//!
//! ```sh
//! cargo run --release -p examples --bin prompt_canary
//! ```
//!
//! One real small language model answers customers' letters for a program that reads JSON. Somebody has a nicer prompt that
//! makes it answer in plain fields. It gets a fifth of the sessions, the program's parser raises a flag, and the prompt goes away by
//! itself, while four fifths of the customers never noticed.

use desk_model::{Model, Variant, desk};
use llm_rollout::{Plan, RolloutId};
use llm_serve_adapters::apply::{Api, Profile, Profiles};
use llm_serve_adapters::recorder::OutcomeClass;
use llm_serve_adapters::router::{Key, Role};
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Bootstrap, Endpoint};
use llm_version_core::{Digest, Name, Version, VersionId};
use serde_json::{Value, json};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

const PLAN: &str = r#"
alpha = 0.05
look_every = "200ms"
[metrics]
bad_format = { flag = "bad_format" }
[[gates]]
metric = "bad_format"
weight = 1.0
margin = 0.1
[[stages]]
serve = 20.0
dwell = "10s"
limit = "60s"
min_samples = 20
[[stages]]
serve = 100.0
dwell = "10s"
limit = "60s"
min_samples = 20
"#;

/// A version is what determines behaviour: here the prompt, since the rest is the same.
fn version(number: u32, prompt: &str) -> Result<VersionId, Box<dyn Error>> {
    let digest = Digest::of(prompt.as_bytes());
    Ok(VersionId::new(
        Name::new("desk")?,
        Version::new(1, number, 0),
        digest,
    ))
}

/// The one engine. It knows of no versions: it answers what it is asked, under the system prompt that comes with it.
fn answer(model: &Model, request: &Value) -> String {
    let said = |role: &str| {
        let messages = request["messages"].as_array().into_iter().flatten();
        let of_role = messages.filter(|message| message["role"] == role);
        of_role
            .filter_map(|message| message["content"].as_str())
            .collect::<Vec<_>>()
            .join("\n")
    };
    let prompt = model.prompt_under(&said("system"), &said("user"));
    model
        .generate(&prompt, model.generation(), 0)
        .collect_reply()
        .text
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "what there is to see")]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("prompt-canary-{}", std::process::id()));
    Variant::Base.write(&folder)?;
    let model = Arc::new(Model::load(&folder)?);
    std::fs::remove_dir_all(&folder)?;

    // Two versions, one engine.
    let (v1, v2) = (
        version(0, desk::SYSTEM_PROMPT)?,
        version(1, desk::FIELDS_PROMPT)?,
    );
    let profiles = Profiles::default()
        .version(&v1, Profile::new("desk").system(desk::SYSTEM_PROMPT))
        .version(&v2, Profile::new("desk").system(desk::FIELDS_PROMPT));

    let endpoint = Endpoint::builder("desk", MemoryStore::new(), Bootstrap(v1))
        .flags(["bad_format"])
        .open()
        .await?;
    let run = endpoint
        .submit(RolloutId::new("plain-fields")?, v2, Plan::from_toml(PLAN)?)
        .await?;
    let plane = endpoint.data_plane().clone();

    let mut ended = Box::pin(run.finished());
    let (mut letters, mut harmed) = (0_u64, 0_u64);
    let end = loop {
        // A customer writes.
        let letter = desk::live_request(7, letters);
        letters += 1;
        let session = format!("customer-{letters}");
        let mut body =
            json!({"model": "desk", "messages": [{"role": "user", "content": letter.text}]});

        // The request path: decide, make the request its version's, answer, record.
        let now = plane.router.now();
        let decision = plane.router.decide(&Key::session(session.as_bytes()), now);
        let mut ticket = decision.begin(&plane.recorder, now);
        decision.apply(&profiles, Api::Chat, &mut body)?;
        let engine = Arc::clone(&model);
        let reply = tokio::task::spawn_blocking(move || answer(&engine, &body)).await?;
        ticket.first_token(plane.router.now());
        // What the program behind it makes of the reply.
        if serde_json::from_str::<desk::Order>(&reply).is_err() {
            ticket.flag("bad_format");
            harmed += u64::from(decision.role() == Role::Candidate);
        }
        ticket.finish(OutcomeClass::Ok, plane.router.now());

        tokio::select! {
            end = &mut ended => break end?,
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
    };
    println!(
        "{} after {letters} letters, {harmed} of them answered badly by the new prompt",
        end.phase
    );
    Ok(())
}
