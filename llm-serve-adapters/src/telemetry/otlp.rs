//! To an OpenTelemetry collector, over OTLP/HTTP in JSON.

use super::{Gatherer, Metric, Point, Value};
use crate::endpoint::Endpoint;
use crate::host::{Error, Result};
use crate::http_client::{Address, Authorities, Call, Http, clip, refusal, secret};
use reqwest::header::{HeaderMap, HeaderName};
use serde_json::{Value as Json, json};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a reply that are read.
const REPLY: usize = 64 << 10;
/// Cumulative, since the exporter began.
const CUMULATIVE: u8 = 2;

/// Sends what an endpoint counts and does to an OpenTelemetry collector, or to anything that takes OTLP over HTTP in JSON: see
/// [the metrics](super). It speaks the protocol itself, as ready histograms cannot be handed to OpenTelemetry's own crates.
///
/// What does not arrive is lost to nobody: counts are cumulative, and come again with the next push.
///
/// ```no_run
/// # use llm_serve_adapters::{Endpoint, telemetry::OtlpExporter};
/// # use std::time::Duration;
/// # fn main() -> llm_serve_adapters::host::Result<()> {
/// # let endpoint: Endpoint = todo!();
/// let exporter = OtlpExporter::builder("http://collector:4318", &endpoint).provider("vllm").build()?;
/// tokio::spawn(exporter.run(Duration::from_secs(15), |failed| eprintln!("{failed}")));
/// # Ok(())
/// # }
/// ```
pub struct OtlpExporter {
    gatherer: Gatherer,
    http: Http,
    to: Address,
    headers: HeaderMap,
    service: String,
    timeout: Duration,
    since: u64,
}

/// Builds an [`OtlpExporter`].
#[must_use = "it does nothing until it is built"]
pub struct OtlpExporterBuilder {
    gatherer: Gatherer,
    address: String,
    headers: Vec<(String, String)>,
    service: String,
    timeout: Duration,
    authorities: Authorities,
}

impl OtlpExporterBuilder {
    /// What serves the models, as `gen_ai.provider.name`; `self-hosted` unless told otherwise.
    pub fn provider(mut self, name: impl Into<String>) -> Self {
        self.gatherer.naming.provider = name.into();
        self
    }

    /// What requests ask for, as `gen_ai.operation.name`; `chat` unless told otherwise.
    pub fn operation(mut self, name: impl Into<String>) -> Self {
        self.gatherer.naming.operation = name.into();
        self
    }

    /// The host, as the resource's `service.name`; `llm-gateway` unless told otherwise.
    pub fn service(mut self, name: impl Into<String>) -> Self {
        self.service = name.into();
        self
    }

    /// Sends this header, such as a key of the collector's.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Trusts these certificate authorities beside those of the system.
    pub fn trust(mut self, authorities: Authorities) -> Self {
        self.authorities = authorities;
        self
    }

    /// How long one push may take, 10 seconds unless told otherwise.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The exporter.
    ///
    /// # Errors
    /// `Permanent` for an address or a header that cannot be one.
    pub fn build(self) -> Result<OtlpExporter> {
        let base = Address::parse(&self.address)?;
        let to = base.with_path(&format!("{}/v1/metrics", base.path()));
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|e| Error::permanent(format!("{name:?} is no header: {e}")))?;
            headers.insert(name, secret("the header", value)?);
        }
        Ok(OtlpExporter {
            gatherer: self.gatherer,
            http: Http::trusting(&self.authorities)?,
            to,
            headers,
            service: self.service,
            timeout: self.timeout,
            since: nanos(),
        })
    }
}

impl fmt::Debug for OtlpExporterBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtlpExporterBuilder")
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for OtlpExporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtlpExporter")
            .field("to", &self.to)
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

fn nanos() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

impl OtlpExporter {
    /// To the collector at this address, without `/v1/metrics`; a path before that is kept.
    pub fn builder(address: impl Into<String>, endpoint: &Endpoint) -> OtlpExporterBuilder {
        OtlpExporterBuilder {
            gatherer: Gatherer::new(endpoint),
            address: address.into(),
            headers: Vec::new(),
            service: "llm-gateway".to_owned(),
            timeout: TIMEOUT,
            authorities: Authorities::default(),
        }
    }

    /// Sends everything as it is now.
    ///
    /// # Errors
    /// `Transient` if the collector or the recorder cannot now, `Permanent` if the collector refuses; push again later.
    pub async fn push(&mut self) -> Result<()> {
        let metrics = self.gatherer.gather()?;
        let body = request(&metrics, &self.service, self.since, nanos());
        let call = Call {
            to: &self.to,
            headers: self.headers.clone(),
            json: Some(body.to_string().into_bytes()),
            timeout: self.timeout,
            limit: REPLY,
        };
        let reply = self.http.send(call).await?;
        let said = || clip(&String::from_utf8_lossy(&reply.body));
        if let Some(kind) = refusal(reply.status) {
            return Err(Error::new(
                kind,
                format!(
                    "{} answers {} to metrics ({}): check that it takes OTLP in JSON there",
                    self.to,
                    reply.status,
                    said()
                ),
            ));
        }
        let rejected = serde_json::from_slice::<Json>(&reply.body)
            .ok()
            .map(|reply| reply["partialSuccess"]["rejectedDataPoints"].clone());
        match rejected {
            // 64-bit numbers are texts in this JSON.
            Some(n) if !n.is_null() && n != 0 && n != "0" => Err(Error::permanent(format!(
                "{} has refused {n} of the data points ({})",
                self.to,
                said()
            ))),
            _ => Ok(()),
        }
    }

    /// Pushes for ever, this often; says what fails.
    pub async fn run(mut self, every: Duration, failed: impl Fn(&Error) + Send) {
        loop {
            if let Err(error) = self.push().await {
                failed(&error);
            }
            tokio::time::sleep(every).await;
        }
    }
}

/// A request to `/v1/metrics`.
fn request(metrics: &[Metric], service: &str, since: u64, now: u64) -> Json {
    let metrics: Vec<_> = metrics
        .iter()
        .filter(|metric| !metric.points.is_empty())
        .map(|metric| one(metric, since, now))
        .collect();
    json!({"resourceMetrics": [{
        "resource": {"attributes": [attribute("service.name", service)]},
        "scopeMetrics": [{
            "scope": {"name": "llm-serve-adapters", "version": env!("CARGO_PKG_VERSION")},
            "metrics": metrics,
        }],
    }]})
}

fn attribute(key: &str, value: &str) -> Json {
    json!({"key": key, "value": {"stringValue": value}})
}

fn one(metric: &Metric, since: u64, now: u64) -> Json {
    let mut out = json!({"name": metric.name, "unit": metric.unit, "description": metric.about});
    let points: Vec<_> = metric.points.iter().map(|p| point(p, since, now)).collect();
    match metric.points.first().map(|point| &point.value) {
        Some(Value::Gauge(_)) => out["gauge"] = json!({"dataPoints": points}),
        Some(Value::Counter(_)) => {
            out["sum"] = json!({"dataPoints": points, "aggregationTemporality": CUMULATIVE, "isMonotonic": true});
        }
        _ => {
            out["histogram"] = json!({"dataPoints": points, "aggregationTemporality": CUMULATIVE});
        }
    }
    out
}

fn point(point: &Point, since: u64, now: u64) -> Json {
    let attributes = point.attributes.iter().map(|(k, v)| attribute(k, v));
    let mut out = json!({
        "attributes": attributes.collect::<Vec<_>>(),
        "startTimeUnixNano": since.to_string(),
        "timeUnixNano": now.to_string(),
    });
    let (count, sum, counts, bounds) = match &point.value {
        Value::Gauge(value) => {
            out["asDouble"] = json!(value);
            return out;
        }
        Value::Counter(value) => {
            out["asInt"] = json!(value.to_string());
            return out;
        }
        Value::Summed(sum, count) => (*count, *sum as f64, vec![*count], &[][..]),
        Value::Histogram(heights, bounds) => {
            let counts = fold(heights, bounds);
            let count: u64 = counts.iter().sum();
            let sum = heights.iter().map(|(value, n)| value * *n as f64).sum();
            (count, sum, counts, *bounds)
        }
    };
    // Texts would do as well, but collectors in Rust take a histogram with texts for none.
    out["count"] = json!(count);
    out["sum"] = json!(sum);
    out["bucketCounts"] = json!(counts);
    out["explicitBounds"] = json!(bounds);
    out
}

/// How many values lie up to each bound, above the one before; the last are above all.
fn fold(heights: &[(f64, u64)], bounds: &[f64]) -> Vec<u64> {
    let mut counts = vec![0; bounds.len() + 1];
    for (value, n) in heights {
        let index = bounds.partition_point(|bound| bound < value);
        if let Some(count) = counts.get_mut(index) {
            *count += n;
        }
    }
    counts
}

#[cfg(test)]
mod tests;
