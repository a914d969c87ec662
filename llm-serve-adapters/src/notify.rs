//! Telling people: a line in a log, or a signed webhook (feature `webhook`).

mod log;
#[cfg(feature = "webhook")]
mod webhook;

pub use log::LogNotifier;
#[cfg(feature = "webhook")]
pub use webhook::WebhookNotifier;
