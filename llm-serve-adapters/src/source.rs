//! Metric sources beside the [recorder](crate::recorder): a Prometheus server, or the `/metrics` of engines and gateways (feature
//! `prometheus`).
//!
//! Both take raw counters and histograms at both ends of a window and count what lies between themselves: no `rate`, no
//! `increase`, no extrapolation. Resets are noticed; what was lost by one counts as nothing. An answer that is empty, stale,
//! partial, infinite or no number is an error and never a window.

#[cfg(test)]
mod conformance;
mod measure;
mod prometheus;
mod scrape;
mod series;

use crate::metrics_text as text;
pub use measure::Series;
pub use prometheus::{PrometheusSource, PrometheusSourceBuilder};
pub use scrape::{ScrapeSource, ScrapeSourceBuilder};
