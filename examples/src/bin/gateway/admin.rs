//! What people and dashboards use, on a listener of its own.

use crate::args::Served;
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderValue, StatusCode, header};
use llm_rollout::{Plan, Rollout, RolloutId};
use llm_serve_adapters::recorder::OutcomeClass;
use llm_serve_adapters::shadow::Shadow;
use llm_serve_adapters::{DataPlane, Endpoint, Run};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::sync::Arc;

/// What the admin endpoints are about.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    pub(crate) endpoint: Endpoint,
    pub(crate) plane: DataPlane,
    pub(crate) shadow: Shadow,
    pub(crate) versions: Vec<Served>,
    pub(crate) token: Arc<str>,
}

pub(crate) fn app(desk: Desk) -> Router {
    // What changes something needs the token; what is read is safe to show to whoever reaches this listener.
    let guarded = Router::new()
        .route("/submit/{rollout}/{version}", post(submit))
        .route("/approve", post(approve))
        .route("/hold/{name}", post(hold))
        .route("/resume/{name}", post(resume))
        .route("/abort", post(abort))
        .route("/force-baseline", post(force_baseline))
        .layer(from_fn_with_state(desk.clone(), authorise));
    Router::new()
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .merge(guarded)
        .with_state(desk)
}

async fn authorise(State(desk): State<Desk>, request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .map(HeaderValue::as_bytes);
    let given = given
        .and_then(|value| value.strip_prefix(b"Bearer "))
        .unwrap_or_default();
    let wanted = desk.token.as_bytes();
    // How long it takes says nothing about where they differ.
    let differ = given
        .iter()
        .zip(wanted)
        .fold(given.len() ^ wanted.len(), |sum, (a, b)| {
            sum | usize::from(a ^ b)
        });
    if differ == 0 {
        next.run(request).await
    } else {
        (StatusCode::UNAUTHORIZED, "a bearer token is needed\n").into_response()
    }
}

/// A refusal, in words.
fn refuse(why: &impl ToString) -> Response {
    (StatusCode::CONFLICT, why.to_string() + "\n").into_response()
}

fn done(result: Result<(), impl ToString>) -> Response {
    match result {
        Ok(()) => "done\n".into_response(),
        Err(why) => refuse(&why),
    }
}

async fn submit(
    State(desk): State<Desk>,
    Path((rollout, version)): Path<(String, String)>,
    plan: String,
) -> Response {
    let known = desk
        .versions
        .iter()
        .find(|served| served.id.version().to_string() == version);
    let Some(served) = known else {
        return refuse(&"no such version: the gateway was not started with it");
    };
    let (id, plan) = match (RolloutId::new(rollout), Plan::from_toml(&plan)) {
        (Ok(id), Ok(plan)) => (id, plan),
        (Err(wrong), _) => return refuse(&wrong),
        (_, Err(wrong)) => return refuse(&wrong),
    };
    done(
        desk.endpoint
            .submit(id, served.id.clone(), plan)
            .await
            .map(drop),
    )
}

/// The rollout in progress, or the newest.
fn run(desk: &Desk) -> Option<Run> {
    let status = desk.endpoint.status();
    desk.endpoint
        .attach(status.ledger.rollout.as_ref().map(Rollout::id)?)
}

const NONE: &str = "there is no rollout";

async fn approve(State(desk): State<Desk>) -> Response {
    match run(&desk) {
        Some(run) => done(run.approve("admin", "over the admin endpoint").await),
        None => refuse(&NONE),
    }
}

async fn hold(State(desk): State<Desk>, Path(name): Path<String>) -> Response {
    match run(&desk) {
        Some(run) => done(run.hold(&name, "admin", "over the admin endpoint").await),
        None => refuse(&NONE),
    }
}

async fn resume(State(desk): State<Desk>, Path(name): Path<String>) -> Response {
    match run(&desk) {
        Some(run) => done(run.resume(&name, "admin", "over the admin endpoint").await),
        None => refuse(&NONE),
    }
}

async fn abort(State(desk): State<Desk>) -> Response {
    match run(&desk) {
        Some(run) => done(run.abort("admin", "over the admin endpoint").await),
        None => refuse(&NONE),
    }
}

async fn force_baseline(State(desk): State<Desk>) -> Response {
    done(desk.endpoint.force_baseline("over the admin endpoint"))
}

async fn status(State(desk): State<Desk>) -> axum::Json<Value> {
    let status = desk.endpoint.status();
    let rollout = status.ledger.rollout.as_ref().map(|rollout| {
        json!({
            "id": rollout.id().as_str(),
            "phase": rollout.phase().to_string(),
            "candidate": rollout.candidate().reference().to_string(),
        })
    });
    let split = desk.plane.router.state().split;
    axum::Json(json!({
        "baseline": split.baseline.reference().to_string(),
        "share": split.share.percent(),
        "rollout": rollout,
        "stopped": status.stopped.map(|error| error.to_string()),
    }))
}

/// In the text format of Prometheus. No key, user or content is in it.
async fn metrics(State(desk): State<Desk>) -> Response {
    let snapshot = match desk.plane.recorder.snapshot() {
        Ok(snapshot) => snapshot,
        Err(busy) => return (StatusCode::SERVICE_UNAVAILABLE, busy.to_string()).into_response(),
    };
    let mut text = String::new();
    for row in &snapshot.rows {
        let version = row
            .version()
            .version()
            .map_or("unknown", |version| version.reference());
        let labels = format!(
            "version=\"{version}\",role=\"{}\",epoch=\"{}\",randomised=\"{}\"",
            row.role(),
            row.epoch(),
            row.randomised()
        );
        // Writing to a string cannot fail.
        for class in OutcomeClass::ALL {
            let _ = writeln!(
                text,
                "llm_requests_total{{{labels},outcome=\"{class:?}\"}} {}",
                row.ended(class)
            );
        }
        let _ = writeln!(
            text,
            "llm_requests_assigned_total{{{labels}}} {}",
            row.assigned()
        );
        let _ = writeln!(text, "llm_output_tokens_total{{{labels}}} {}", row.tokens());
        for (name, of) in [
            ("time_to_first_token", row.first_token(0.99)),
            ("time_per_output_token", row.per_token(0.99)),
            ("request_duration", row.duration(0.99)),
        ] {
            if let Some(value) = of {
                let _ = writeln!(
                    text,
                    "llm_{name}_seconds{{{labels},quantile=\"0.99\"}} {}",
                    value.as_secs_f64()
                );
            }
        }
    }
    let realised = snapshot.realised(desk.plane.router.state().split.epoch);
    for (name, share) in [
        ("requests", realised.request_share()),
        ("tokens", realised.token_share()),
    ] {
        let _ = writeln!(
            text,
            "llm_candidate_share{{of=\"{name}\"}} {}",
            share.unwrap_or(0.0)
        );
    }
    let mirrored = desk.shadow.counts();
    let skipped = mirrored.unsafe_ + mirrored.full + mirrored.spent;
    for (became, n) in [
        ("pairs", mirrored.pairs),
        ("skipped", skipped),
        ("failed", mirrored.failed + mirrored.late),
    ] {
        let _ = writeln!(text, "llm_mirrored_total{{became=\"{became}\"}} {n}");
    }
    text.into_response()
}
