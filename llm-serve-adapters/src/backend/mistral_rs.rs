//! What mistral.rs does in its own way.

use super::engine::{Dialect, EngineBackend, EngineBackendBuilder, Place, same_weights};
use super::fleet::Deadline;
use crate::host::{Error, ErrorKind, Result};
use crate::http_client::clip;
use serde_json::{Value, json};
use std::time::Duration;

impl EngineBackend {
    /// Of servers of mistral.rs, with a warm-up of one short question and no version yet.
    ///
    /// A version is a model of a server, which may have others: `prepare` loads it, `standby` unloads it once nothing runs on it, and
    /// `retire` at once, whatever runs. A server tells of these by status 200 always, so that what it says is read. **Any request for a
    /// model that is unloaded loads it again**: a version that has been retired stays away only if the routers send it nothing. What runs
    /// is told by `/metrics` for each model by its name, so requests must not name it `default`.
    ///
    /// The server does not tell which weights it runs: give a golden generation instead of
    /// [`weights`](super::EngineVersion::weights).
    ///
    /// ```
    /// # use llm_serve_adapters::backend::{EngineBackend, EngineVersion};
    /// # let v1 = format!("chat/v1.0.0-{}", "0".repeat(64)).parse().unwrap();
    /// # let v2 = format!("chat/v1.1.0-{}", "1".repeat(64)).parse().unwrap();
    /// let backend = EngineBackend::mistral_rs()
    ///     .version(v1, EngineVersion::server("http://10.0.0.7:1234", "chat-v1"))
    ///     .version(v2, EngineVersion::server("http://10.0.0.7:1234", "chat-v2"))
    ///     .build()?;
    /// # Ok::<(), llm_serve_adapters::host::Error>(())
    /// ```
    pub fn mistral_rs() -> EngineBackendBuilder {
        Self::of(Dialect::MistralRs)
    }
}

/// What it says of a model.
struct State {
    status: String,
    error: String,
}

/// Tells it to do this with the model, or asks how it is.
async fn tell(place: &Place, verb: &str, within: Duration) -> Result<State> {
    let body = json!({"model_id": place.model});
    let said = place
        .control
        .post(&format!("/v1/models/{verb}"), &body, within)
        .await?;
    let told = said
        .accepted("check that it is a mistral.rs server that can have several models")?
        .json("the state of a model")?;
    let text = |field: &str| clip(told.get(field).and_then(Value::as_str).unwrap_or_default());
    Ok(State {
        status: text("status"),
        error: text("error"),
    })
}

impl State {
    fn refused(&self, place: &Place) -> Error {
        let (model, status, error) = (&place.model, &self.status, &self.error);
        match status.as_str() {
            "not_found" => Error::permanent(format!(
                "the server has no model {model:?}: add it to its configuration, or correct the name"
            )),
            "no_loader_config" => Error::permanent(format!(
                "the server cannot load model {model:?} again, since it was not told how: start it with a configuration of models"
            )),
            _ => Error::new(
                ErrorKind::Transient,
                format!("model {model:?} is {status:?} ({error}): see the server's log"),
            ),
        }
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
            "mistral.rs loads models by its configuration: put the weights there, and leave `load_from` out",
        ));
    }
    // Loading what is loaded changes nothing.
    let (mut state, mut pause) = (
        tell(place, "reload", deadline.left(what)?).await?,
        Duration::ZERO,
    );
    // Somebody else has it loaded already.
    while state.status == "reloading" {
        deadline.pause(what, &mut pause).await?;
        state = tell(place, "status", deadline.left(what)?).await?;
    }
    match state.status.as_str() {
        "loaded" => Ok(()),
        _ => Err(state.refused(place)),
    }
}

/// It does not tell which weights it runs.
pub(super) fn verify(place: &Place) -> Result<()> {
    same_weights(place, None, "")
}

pub(super) async fn sleep(place: &Place, what: &str, deadline: Deadline) -> Result<()> {
    // Unloading cuts off what runs.
    let mut pause = Duration::ZERO;
    while running(place, deadline.left(what)?)
        .await?
        .is_some_and(|n| n > 0)
    {
        deadline.pause(what, &mut pause).await?;
    }
    stop(place, deadline.left(what)?).await
}

pub(super) async fn stop(place: &Place, within: Duration) -> Result<()> {
    let state = tell(place, "unload", within).await?;
    match state.status.as_str() {
        // What it does not have does not run; what it cannot unload goes on, as a server of one model does.
        "unloaded" | "not_found" | "no_loader_config" => Ok(()),
        _ => Err(state.refused(place)),
    }
}

pub(super) async fn running(place: &Place, within: Duration) -> Result<Option<u64>> {
    let of = async |labels: &[(&str, &str)]| {
        let gauge = ["http_requests_in_flight"];
        place
            .control
            .gauge("/metrics", &gauge, labels, within)
            .await
    };
    match of(&[("model", &place.model)]).await? {
        Some(running) => Ok(Some(running)),
        // Nobody has asked it anything yet, if the server counts at all.
        None => Ok(of(&[]).await?.map(|_| 0)),
    }
}

#[cfg(test)]
mod tests;
