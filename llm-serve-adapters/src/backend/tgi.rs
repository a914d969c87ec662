//! What text-generation-inference does in its own way.

use super::engine::{Dialect, EngineBackend, EngineBackendBuilder, Place, same_weights};
use super::fleet::Deadline;
use crate::host::{Error, Result};
use std::time::Duration;

impl EngineBackend {
    /// Of servers of Hugging Face's text-generation-inference (TGI), with a warm-up of one short question and no version yet.
    ///
    /// A server serves one model, which the host starts and stops: `standby` and `retire` leave it running. Give the version's
    /// [`super::EngineVersion::server`] the model's id (`--model-id`), and as [`weights`](super::EngineVersion::weights) the revision that must
    /// run, which `/info` tells as `model_sha`; it tells none of a model from a folder, where only a golden generation can.
    /// **A reply carries the model name that was asked for, whatever runs**, and a name that the server does not know is answered by the
    /// base model: what a reply says of its model proves nothing.
    ///
    /// A generation that fails has status 424, and within a stream an error that says 422 with `[DONE]` after it. What runs is
    /// the queue and the batch in `/metrics`; before the first request the server shows neither, and nothing is known.
    ///
    /// ```
    /// # use llm_serve_adapters::backend::{EngineBackend, EngineVersion};
    /// # let v1 = format!("chat/v1.0.0-{}", "0".repeat(64)).parse().unwrap();
    /// let place = EngineVersion::server("http://10.0.0.7:8080", "org/chat").weights("e985a63cdc139290c5f700ff1929f0b5942cced2");
    /// let backend = EngineBackend::tgi().version(v1, place).build()?;
    /// # Ok::<(), llm_serve_adapters::host::Error>(())
    /// ```
    pub fn tgi() -> EngineBackendBuilder {
        Self::of(Dialect::Tgi)
    }
}

/// It is never asleep.
pub(super) fn wake(path: Option<&str>) -> Result<()> {
    match path {
        None => Ok(()),
        Some(_) => Err(Error::permanent(
            "text-generation-inference serves the weights that it was started with: start a server for the version, or leave `load_from` out",
        )),
    }
}

pub(super) async fn verify(place: &Place, what: &str, deadline: Deadline) -> Result<()> {
    if place.version.weights.is_none() {
        return Ok(());
    }
    let told = place.told("/info", deadline.left(what)?).await?;
    same_weights(place, told.as_ref(), "model_sha")
}

pub(super) async fn running(place: &Place, within: Duration) -> Result<Option<u64>> {
    let gauges = ["tgi_queue_size", "tgi_batch_current_size"];
    place.control.gauge("/metrics", &gauges, &[], within).await
}

#[cfg(test)]
mod tests;
