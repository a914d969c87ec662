//! What vLLM does in its own way. Most of it needs `VLLM_SERVER_DEV_MODE=1`; without it those addresses answer 404.

use super::engine::{Dialect, EngineBackend, EngineBackendBuilder, Place, same_weights};
use super::fleet::Deadline;
use crate::host::{Error, Result};
use serde_json::{Value, json};
use std::time::Duration;

impl EngineBackend {
    /// Of vLLM servers, with a warm-up of one short question and no version yet.
    pub fn vllm() -> EngineBackendBuilder {
        Self::of(Dialect::Vllm)
    }
}

pub(super) async fn wake(
    place: &Place,
    path: Option<&str>,
    what: &str,
    deadline: Deadline,
) -> Result<()> {
    if path.is_some() {
        return Err(Error::permanent(
            "vLLM serves the weights that it was started with: start a server for the version, or leave `load_from` out",
        ));
    }
    if is(place, "sleeping", deadline.left(what)?).await? {
        place
            .switch("/wake_up", &[], None, deadline.left(what)?)
            .await?;
    }
    if is(place, "paused", deadline.left(what)?).await? {
        place
            .switch("/resume", &[], None, deadline.left(what)?)
            .await?;
    }
    Ok(())
}

/// Whether it is sleeping, or paused; without the dev mode it is neither.
async fn is(place: &Place, what: &str, within: Duration) -> Result<bool> {
    let told = place.told(&format!("/is_{what}"), within).await?;
    Ok(told.is_some_and(|told| told.get(format!("is_{what}")) == Some(&json!(true))))
}

pub(super) async fn verify(place: &Place, what: &str, deadline: Deadline) -> Result<()> {
    if place.version.weights.is_some() {
        let told = place.told("/weight_info", deadline.left(what)?).await?;
        same_weights(place, told.as_ref(), "weight_version")?;
    }
    if place.version.checksums.is_empty() {
        return Ok(());
    }
    let body = json!({"action": "compare", "baseline": place.version.checksums});
    let said = place
        .control
        .post("/weight_checker", &body, deadline.left(what)?)
        .await?;
    let told = said
        .accepted(
            "checksums need VLLM_SERVER_DEV_MODE=1: start it with that, or leave `checksums` out",
        )?
        .json("a comparison of weights")?;
    if told.get("match") == Some(&json!(true)) {
        return Ok(());
    }
    let differ = told
        .get("mismatches")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    Err(Error::permanent(format!(
        "model {:?} runs other weights than it should: {differ} checksums differ",
        place.model
    )))
}

pub(super) async fn sleep(place: &Place, what: &str, deadline: Deadline) -> Result<()> {
    if is(place, "sleeping", deadline.left(what)?).await? {
        return Ok(());
    }
    // By default it would abort what runs. Without the dev mode it stays awake.
    let query = [("level", "1"), ("mode", "wait")];
    place
        .switch("/sleep", &query, None, deadline.left(what)?)
        .await
        .map(drop)
}

pub(super) async fn stop(place: &Place, within: Duration) -> Result<()> {
    place
        .switch("/pause", &[("mode", "abort")], None, within)
        .await
        .map(drop)
}

pub(super) async fn running(place: &Place, within: Duration) -> Result<Option<u64>> {
    let gauges = ["vllm:num_requests_running", "vllm:num_requests_waiting"];
    if let Some(running) = place
        .control
        .gauge("/metrics", &gauges, &[], within)
        .await?
    {
        return Ok(Some(running));
    }
    // Counts only with --enable-server-load-tracking; without it, it always says 0.
    let told = place.told("/load", within).await?;
    let load = told
        .as_ref()
        .and_then(|told| told.get("server_load"))
        .and_then(Value::as_u64);
    Ok(load.filter(|&n| n > 0))
}
