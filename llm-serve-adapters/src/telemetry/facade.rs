//! To the recorder of the crate `metrics`.

use super::{Attributes, Gatherer, Point, Value};
use crate::endpoint::Endpoint;
use crate::host::Result;
use crate::recorder::Heights;
use metrics::{Key, Label, Level, Metadata, SharedString, Unit};
use std::collections::BTreeMap;

/// Tells what an endpoint counts and does to whatever recorder the host has given to the crate `metrics`: see
/// [the metrics](super). `gen_ai.client.token.usage` is a counter here, as the facade has nothing for sums with a count.
///
/// ```no_run
/// # use llm_serve_adapters::{Endpoint, telemetry::MetricsExporter};
/// # fn main() -> llm_serve_adapters::host::Result<()> {
/// # let endpoint: Endpoint = todo!();
/// let mut exporter = MetricsExporter::new(&endpoint);
/// // Now and then, before the host's own metrics are read:
/// exporter.record()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct MetricsExporter {
    gatherer: Gatherer,
    /// What histograms were told before.
    told: BTreeMap<(&'static str, Attributes), Heights>,
}

const ABOUT: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

impl MetricsExporter {
    /// Of this endpoint.
    pub fn new(endpoint: &Endpoint) -> Self {
        Self {
            gatherer: Gatherer::new(endpoint),
            told: BTreeMap::new(),
        }
    }

    /// What serves the models, as `gen_ai.provider.name`; `self-hosted` unless told otherwise.
    #[must_use]
    pub fn provider(mut self, name: impl Into<String>) -> Self {
        self.gatherer.naming.provider = name.into();
        self
    }

    /// What requests ask for, as `gen_ai.operation.name`; `chat` unless told otherwise.
    #[must_use]
    pub fn operation(mut self, name: impl Into<String>) -> Self {
        self.gatherer.naming.operation = name.into();
        self
    }

    /// Tells everything as it is now.
    ///
    /// # Errors
    /// `Transient` if the recorder cannot be read now; nothing was told, and nothing is lost.
    pub fn record(&mut self) -> Result<()> {
        let gathered = self.gatherer.gather()?;
        metrics::with_recorder(|recorder| {
            for metric in gathered {
                let (name, unit) = (metric.name, unit(metric.unit));
                let (key_name, about) = (name.into(), SharedString::const_str(metric.about));
                match metric.points.first().map(|p| &p.value) {
                    Some(Value::Gauge(_)) => recorder.describe_gauge(key_name, unit, about),
                    Some(Value::Histogram(..)) => {
                        recorder.describe_histogram(key_name, unit, about);
                    }
                    Some(_) => recorder.describe_counter(key_name, unit, about),
                    None => {}
                }
                for Point { attributes, value } in metric.points {
                    let labels = attributes.iter().map(|(k, v)| Label::new(*k, v.clone()));
                    let key = Key::from_parts(name, labels.collect::<Vec<_>>());
                    match value {
                        Value::Counter(n) | Value::Summed(n, _) => {
                            recorder.register_counter(&key, &ABOUT).absolute(n);
                        }
                        Value::Gauge(x) => recorder.register_gauge(&key, &ABOUT).set(x),
                        Value::Histogram(heights, _) => {
                            let told = self.told.entry((name, attributes)).or_default();
                            let histogram = recorder.register_histogram(&key, &ABOUT);
                            for (value, n) in fresh(&heights, told) {
                                histogram
                                    .record_many(value, usize::try_from(n).unwrap_or(usize::MAX));
                            }
                            *told = heights;
                        }
                    }
                }
            }
        });
        Ok(())
    }
}

/// What has come since: both are in order of their values.
fn fresh(heights: &[(f64, u64)], told: &[(f64, u64)]) -> Heights {
    let before = |value: f64| {
        let at = told.partition_point(|(other, _)| *other < value);
        let same = told.get(at).filter(|(other, _)| *other <= value);
        same.map_or(0, |(_, n)| *n)
    };
    let gained = heights
        .iter()
        .map(|(value, n)| (*value, n.saturating_sub(before(*value))));
    gained.filter(|(_, n)| *n > 0).collect()
}

fn unit(name: &str) -> Option<Unit> {
    match name {
        "s" => Some(Unit::Seconds),
        "{request}" | "{token}" => Some(Unit::Count),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
