//! What people and dashboards use, on a listener of its own.

use crate::args::Served;
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderValue, StatusCode, header};
use llm_rollout::{Plan, Rollout, RolloutId};
use llm_serve_adapters::shadow::Shadow;
use llm_serve_adapters::{DataPlane, Endpoint, Run};
use serde_json::{Value, json};
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
    // Metrics are safe to show to whoever reaches this listener; everything else needs the token.
    let guarded = Router::new()
        .route("/status", get(status))
        .route("/submit/{rollout}/{version}", post(submit))
        .route("/approve", post(approve))
        .route("/hold/{name}", post(hold))
        .route("/resume/{name}", post(resume))
        .route("/abort", post(abort))
        .route("/force-baseline", post(force_baseline))
        .layer(from_fn_with_state(desk.clone(), authorise));
    Router::new()
        .route("/metrics", get(metrics))
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

/// Why, as the body of the request says; it goes into the log.
fn why(said: &str) -> &str {
    match said.trim() {
        "" => "over the admin endpoint",
        said => said,
    }
}

async fn approve(State(desk): State<Desk>, said: String) -> Response {
    match run(&desk) {
        Some(run) => done(run.approve("admin", why(&said)).await),
        None => refuse(&NONE),
    }
}

async fn hold(State(desk): State<Desk>, Path(name): Path<String>, said: String) -> Response {
    match run(&desk) {
        Some(run) => done(run.hold(&name, "admin", why(&said)).await),
        None => refuse(&NONE),
    }
}

async fn resume(State(desk): State<Desk>, Path(name): Path<String>, said: String) -> Response {
    match run(&desk) {
        Some(run) => done(run.resume(&name, "admin", why(&said)).await),
        None => refuse(&NONE),
    }
}

async fn abort(State(desk): State<Desk>, said: String) -> Response {
    match run(&desk) {
        Some(run) => done(run.abort("admin", why(&said)).await),
        None => refuse(&NONE),
    }
}

async fn force_baseline(State(desk): State<Desk>, said: String) -> Response {
    done(desk.endpoint.force_baseline(why(&said)))
}

async fn status(State(desk): State<Desk>) -> axum::Json<Value> {
    let status = desk.endpoint.status();
    let rollout = status.ledger.rollout.as_ref().map(|rollout| {
        json!({
            "id": rollout.id().as_str(),
            "phase": rollout.phase().to_string(),
            "candidate": rollout.candidate().reference().to_string(),
            "holds": rollout.state().holds.keys().collect::<Vec<_>>(),
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

async fn metrics(State(desk): State<Desk>) -> Response {
    match crate::metrics::page(&desk.plane, &desk.shadow) {
        Ok(page) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], page).into_response(),
        Err(busy) => (StatusCode::SERVICE_UNAVAILABLE, busy.to_string()).into_response(),
    }
}
