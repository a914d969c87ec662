//! What SGLang does in its own way.

use super::engine::{Dialect, EngineBackend, EngineBackendBuilder, Place, same_weights};
use super::fleet::Deadline;
use crate::host::{Error, Result};
use serde_json::{Value, json};
use std::time::Duration;

impl EngineBackend {
    /// Of SGLang servers, with a warm-up of one short question and no version yet.
    ///
    /// Requests of a version must be sent under the name that was given with `--served-model-name`. After `standby` the weights are gone
    /// unless the server was started with `--enable-weights-cpu-backup`: give [`super::EngineVersion::load_from`], so that `prepare` loads
    /// them again.
    pub fn sglang() -> EngineBackendBuilder {
        Self::of(Dialect::Sglang)
    }
}

pub(super) async fn wake(
    place: &Place,
    path: Option<&str>,
    what: &str,
    deadline: Deadline,
) -> Result<()> {
    // Continuing what is not paused changes nothing. What it says of its memory is not told, so only who released it resumes it.
    place
        .switch(
            "/continue_generation",
            &[],
            Some(&json!({})),
            deadline.left(what)?,
        )
        .await?;
    let runs = weights(place, deadline.left(what)?).await?;
    let asleep = runs.as_deref() == Some(ASLEEP);
    if asleep {
        place
            .switch(
                "/resume_memory_occupation",
                &[],
                Some(&json!({})),
                deadline.left(what)?,
            )
            .await?;
    }
    match (path, &place.version.weights) {
        (Some(path), Some(wanted)) if asleep || runs.as_ref() != Some(wanted) => {
            let body = json!({
                "model_path": path, "weight_version": wanted, "abort_all_requests": false, "flush_cache": true,
            });
            let said = place
                .control
                .post("/update_weights_from_disk", &body, deadline.left(what)?)
                .await?;
            let told = said
                .accepted("the weights cannot be loaded: check their folder")?
                .json("the outcome of loading")?;
            if told.get("success") == Some(&json!(true)) {
                return Ok(());
            }
            Err(Error::permanent(format!(
                "the weights in {path:?} were not loaded: see the server's log"
            )))
        }
        (Some(_), None) => Err(Error::permanent(
            "weights that are loaded from a folder need a name: give it with `weights`",
        )),
        _ => {
            if asleep {
                rename(
                    place,
                    place.version.weights.as_deref().unwrap_or("default"),
                    what,
                    deadline,
                )
                .await?;
            }
            Ok(())
        }
    }
}

/// What the weights are called while their memory is released: SGLang does not tell that, but keeps a name.
const ASLEEP: &str = "released";

/// What it calls the weights that it runs.
async fn weights(place: &Place, within: Duration) -> Result<Option<String>> {
    let told = place.told("/model_info", within).await?;
    let name = told.as_ref().and_then(|told| told.get("weight_version"));
    Ok(name.and_then(Value::as_str).map(str::to_owned))
}

async fn rename(place: &Place, name: &str, what: &str, deadline: Deadline) -> Result<()> {
    let body = json!({"new_version": name, "abort_all_requests": false});
    place
        .switch(
            "/update_weight_version",
            &[],
            Some(&body),
            deadline.left(what)?,
        )
        .await
        .map(drop)
}

pub(super) async fn verify(place: &Place, what: &str, deadline: Deadline) -> Result<()> {
    if place.version.weights.is_none() {
        return Ok(());
    }
    let told = place.told("/model_info", deadline.left(what)?).await?;
    same_weights(place, told.as_ref(), "weight_version")
}

pub(super) async fn sleep(place: &Place, what: &str, deadline: Deadline) -> Result<()> {
    // Releasing it twice would end the server.
    if weights(place, deadline.left(what)?).await?.as_deref() == Some(ASLEEP) {
        return Ok(());
    }
    // Its memory can only be released when nothing runs: wait for that, since its own drain has no end.
    let mut pause = Duration::ZERO;
    while running(place, deadline.left(what)?)
        .await?
        .is_some_and(|n| n > 0)
    {
        deadline.pause(what, &mut pause).await?;
    }
    // First the name: if the rest fails, a `prepare` knows that it has to look.
    rename(place, ASLEEP, what, deadline).await?;
    place
        .switch(
            "/release_memory_occupation",
            &[],
            Some(&json!({})),
            deadline.left(what)?,
        )
        .await
        .map(drop)
}

pub(super) async fn stop(place: &Place, within: Duration) -> Result<()> {
    place
        .switch(
            "/pause_generation",
            &[],
            Some(&json!({"mode": "abort"})),
            within,
        )
        .await
        .map(drop)
}

pub(super) async fn running(place: &Place, within: Duration) -> Result<Option<u64>> {
    let gauges = ["sglang:num_running_reqs", "sglang:num_queue_reqs"];
    place.control.gauge("/metrics", &gauges, &[], within).await
}
