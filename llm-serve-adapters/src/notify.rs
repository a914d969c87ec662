//! Telling people: a line in a log, a signed webhook (feature `webhook`), a channel of Slack or Mattermost (feature `slack`), an
//! alert of Alertmanager (feature `alertmanager`).

#[cfg(feature = "alertmanager")]
mod alertmanager;
mod log;
#[cfg(any(feature = "alertmanager", feature = "slack", feature = "webhook"))]
mod post;
#[cfg(feature = "slack")]
mod slack;
#[cfg(feature = "webhook")]
mod webhook;

#[cfg(feature = "alertmanager")]
pub use alertmanager::AlertmanagerNotifier;
pub use log::LogNotifier;
#[cfg(feature = "slack")]
pub use slack::SlackNotifier;
#[cfg(feature = "webhook")]
pub use webhook::WebhookNotifier;
