//! The `/metrics` of engines and gateways as a metric source.

use super::measure::{Measure, Measures, Readings, Series, Wanted};
use super::prometheus::{bound, names, whole};
use super::series::{Arm, Group, Groups, Stand, reading};
use super::text::{Line, lines};
use crate::host::{Cursor, Error, MetricSource, Query, Reading, Result};
use crate::http_client::{Address, Authorities, Call, Http, bearer, clip, refusal};
use async_trait::async_trait;
use llm_rollout::Timestamp;
use llm_version_core::VersionId;
use reqwest::header::HeaderMap;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long one scrape may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a reply that are read.
const REPLY: usize = 8 << 20;
/// The most replicas of all versions together.
const REPLICAS: usize = 256;

/// Reads the plan's metrics from the `/metrics` of the replicas that serve each version, without a Prometheus server.
///
/// A proxy, or a server with several versions in it, has the series of all versions at one address:
/// [`labelled`](ScrapeSourceBuilder::labelled) tells which are whose. Which series to name:
///
/// | at | requests and faults | times |
/// |---|---|---|
/// | vLLM | `vllm:request_success_total` by `finished_reason` | `vllm:time_to_first_token_seconds`, `vllm:e2e_request_latency_seconds` |
/// | text-generation-inference | `tgi_request_count`, and `tgi_request_failure` by `err` | `tgi_request_duration`; no first token |
/// | mistral.rs, by `model` | `http_requests_total` by `status` | `mistralrs_time_to_first_token_seconds` (streams), `http_request_duration_seconds` |
/// | Envoy, by `envoy_cluster_name` | `envoy_cluster_upstream_rq_xx` by `envoy_response_code_class` | `envoy_cluster_upstream_rq_time`, in milliseconds |
/// | HAProxy, by `server` | `haproxy_server_http_responses_total` by `code` | - |
/// | Triton, by `version` | `nv_inference_request_success` and `nv_inference_request_failure`, [`apart`](ScrapeSourceBuilder::apart) | - |
/// | TorchServe, by `model_version` | `ts_inference_requests_total`, without faults | - |
/// | llama.cpp server | - | - |
///
/// Every replica of both versions must answer each time, or there is no window: half an answer is none. Counters that fall have
/// been reset; a replica that is new counts from its first scrape on. **What engines count is not what users meet**: most have no
/// counter of errors, some no latencies (llama.cpp has neither, vLLM's "success" includes errors and aborts), and none knows
/// the epoch. Recording at the gateway is better where it can be had.
///
/// ```
/// use llm_serve_adapters::source::{ScrapeSource, Series};
///
/// let v1 = format!("chat/v1.0.0-{}", "0".repeat(64)).parse()?;
/// let v2 = format!("chat/v1.1.0-{}", "1".repeat(64)).parse()?;
/// let finished = Series::new("vllm:request_success_total");
/// let source = ScrapeSource::builder()
///     .replica(v1, "http://10.0.0.7:8000/metrics")
///     .replica(v2, "http://10.0.0.8:8000/metrics")
///     .ratio("aborted", finished.clone(), finished.is("finished_reason", "abort"))
///     .histogram("slow", Series::new("vllm:time_to_first_token_seconds"))
///     .build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ScrapeSource {
    http: Http,
    headers: HeaderMap,
    replicas: Mutex<Vec<Replica>>,
    measures: Measures,
    timeout: Duration,
}

/// A label and its value, where that tells whose a series is.
type Label = Option<(String, String)>;

/// Where a version's series are found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Replica {
    version: VersionId,
    address: Address,
    /// Only series with this label are the version's.
    label: Label,
}

/// Builds a [`ScrapeSource`].
#[must_use = "it does nothing until it is built"]
pub struct ScrapeSourceBuilder {
    replicas: Vec<(VersionId, String, Label)>,
    token: Option<String>,
    measures: Measures,
    timeout: Duration,
    authorities: Authorities,
}

impl ScrapeSourceBuilder {
    /// A replica of a version, by the address of its metrics.
    pub fn replica(mut self, version: VersionId, address: impl Into<String>) -> Self {
        self.replicas.push((version, address.into(), None));
        self
    }

    /// The same, where series with this label alone are the version's: a proxy's metrics tell of all versions.
    pub fn labelled(
        mut self,
        version: VersionId,
        address: impl Into<String>,
        label: impl Into<String>,
        value: impl Into<String>,
    ) -> Self {
        let label = Some((label.into(), value.into()));
        self.replicas.push((version, address.into(), label));
        self
    }

    /// Counts a metric of the plan by two counters: all requests, and those among them that count.
    pub fn ratio(mut self, metric: impl Into<String>, all: Series, bad: Series) -> Self {
        self.measures
            .insert(metric.into(), Measure::Ratio { all, bad });
        self
    }

    /// Counts a metric of the plan by two counters that have nothing in common: requests that do not count, and those that do, as
    /// Triton has them.
    pub fn apart(mut self, metric: impl Into<String>, good: Series, bad: Series) -> Self {
        self.measures
            .insert(metric.into(), Measure::Apart { good, bad });
        self
    }

    /// Counts a metric of the plan that has a limit in time by a histogram of seconds, or of [milliseconds](Series::milliseconds).
    pub fn histogram(mut self, metric: impl Into<String>, series: Series) -> Self {
        self.measures
            .insert(metric.into(), Measure::Classic(series));
        self
    }

    /// Sends this bearer token to every replica.
    pub fn bearer(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Trusts these certificate authorities beside those of the system.
    pub fn trust(mut self, authorities: Authorities) -> Self {
        self.authorities = authorities;
        self
    }

    /// How long one scrape may take, 10 seconds unless told otherwise.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The source.
    ///
    /// # Errors
    /// `Permanent` for an address, a token or a series that cannot be one, or too many replicas.
    pub fn build(self) -> Result<ScrapeSource> {
        self.measures.check()?;
        let source = ScrapeSource {
            http: Http::trusting(&self.authorities)?,
            headers: self
                .token
                .as_deref()
                .map_or_else(|| Ok(HeaderMap::new()), bearer)?,
            replicas: Mutex::default(),
            measures: self.measures,
            timeout: self.timeout,
        };
        for (version, address, label) in self.replicas {
            source.add_labelled(version, &address, label)?;
        }
        Ok(source)
    }
}

impl fmt::Debug for ScrapeSourceBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the addresses: before they are checked they may hold a password.
        f.debug_struct("ScrapeSourceBuilder")
            .field("measures", &self.measures)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ScrapeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScrapeSource")
            .field("replicas", &*self.replicas())
            .field("measures", &self.measures)
            .finish_non_exhaustive()
    }
}

impl ScrapeSource {
    /// Begins with no replica and no metric.
    pub fn builder() -> ScrapeSourceBuilder {
        ScrapeSourceBuilder {
            replicas: Vec::new(),
            token: None,
            measures: Measures::default(),
            timeout: TIMEOUT,
            authorities: Authorities::default(),
        }
    }

    /// Adds a replica of a version; adding it again changes nothing.
    ///
    /// # Errors
    /// `Permanent` for an address that is none, or too many replicas.
    pub fn add(&self, version: VersionId, address: &str) -> Result<()> {
        self.add_labelled(version, address, None)
    }

    fn add_labelled(&self, version: VersionId, address: &str, label: Label) -> Result<()> {
        let address = Address::parse(address)?;
        let replica = Replica {
            version,
            address,
            label,
        };
        let mut replicas = self.replicas();
        if replicas.contains(&replica) {
            return Ok(());
        }
        if replicas.len() >= REPLICAS {
            return Err(Error::permanent(format!(
                "{REPLICAS} replicas are scraped already: let a Prometheus server do it"
            )));
        }
        replicas.push(replica);
        Ok(())
    }

    /// Forgets a replica that is gone.
    ///
    /// # Errors
    /// `Permanent` for an address that is none.
    pub fn remove(&self, version: &VersionId, address: &str) -> Result<()> {
        let address = Address::parse(address)?;
        self.replicas()
            .retain(|replica| (&replica.version, &replica.address) != (version, &address));
        Ok(())
    }

    fn replicas(&self) -> MutexGuard<'_, Vec<Replica>> {
        // Whoever panicked in here left it whole.
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn readings(&self, query: &Query<'_>, now: Timestamp) -> Result<Readings> {
        let mut wanted = Vec::new();
        for (name, def) in query.metrics {
            wanted.extend(self.measures.of(name, def)?.series());
        }
        let mut readings: Readings = wanted
            .iter()
            .map(|wanted| (wanted.key(), Groups::new()))
            .collect();
        let replicas = self.replicas().clone();
        let mut met = [false; 2];
        let mut texts: BTreeMap<String, String> = BTreeMap::new();
        for replica in replicas {
            let arm = match () {
                () if replica.version == *query.candidate => Arm::Candidate,
                () if replica.version == *query.baseline => Arm::Baseline,
                () => continue,
            };
            met[usize::from(arm == Arm::Baseline)] = true;
            let address = &replica.address;
            // One address may tell of both.
            let text = match texts.entry(address.identity().to_owned()) {
                Entry::Occupied(text) => text.into_mut(),
                Entry::Vacant(unread) => unread.insert(self.scrape(address).await?),
            };
            for wanted in &wanted {
                let groups = found(wanted, arm, &replica, text, now)
                    .map_err(|e| Error::new(e.kind(), format!("{address}: {e}")).because(e))?;
                readings.entry(wanted.key()).or_default().extend(groups);
            }
        }
        if met != [true; 2] {
            return Err(Error::transient(format!(
                "candidate {} and baseline {} need a replica each that can be scraped: add it",
                query.candidate, query.baseline
            )));
        }
        Ok(readings)
    }

    async fn scrape(&self, address: &Address) -> Result<String> {
        let call = Call {
            to: address,
            headers: self.headers.clone(),
            json: None,
            timeout: self.timeout,
            limit: REPLY,
        };
        let reply = self.http.send(call).await?;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        match refusal(reply.status) {
            None => Ok(text),
            Some(kind) => Err(Error::new(
                kind,
                format!(
                    "{address} answers {} to a scrape ({}): check the address, and that its metrics are switched on",
                    reply.status,
                    clip(&text)
                ),
            )),
        }
    }
}

/// What one replica's text holds of a series.
fn found(
    wanted: &Wanted,
    arm: Arm,
    replica: &Replica,
    text: &str,
    now: Timestamp,
) -> Result<Groups> {
    let series = match wanted {
        Wanted::Counter(series) | Wanted::Native(series) => series.clone(),
        Wanted::Classic(series) => series.buckets(),
    };
    let mut lines = lines(text, &|name| name == series.name())?;
    let own = |line: &Line<'_>| {
        let label = replica.label.as_ref();
        label.is_none_or(|(label, value)| line.labels.get(label) == Some(value))
    };
    lines.retain(|line| own(line) && series.admits(&line.labels));
    let at = now.as_millis();
    let target = format!(
        "{:016x}",
        xxhash_rust::xxh3::xxh3_64(replica.address.identity().as_bytes())
    );
    let mut samples: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for Line { labels, value, .. } in lines {
        let name = format!("{target}-{}", names(&labels).0);
        let bound = match wanted {
            Wanted::Classic(_) => bound(&series, labels.get("le"))?,
            Wanted::Counter(_) | Wanted::Native(_) => f64::INFINITY,
        };
        samples.entry(name).or_default().push((bound, value));
    }
    let group = |(name, buckets): (String, Vec<_>)| {
        let samples = vec![whole(&series, at, &buckets)?];
        Ok((
            name,
            Group {
                arm,
                target: target.clone(),
                samples,
            },
        ))
    };
    samples.into_iter().map(group).collect()
}

#[async_trait]
impl MetricSource for ScrapeSource {
    async fn open(&self, query: Query<'_>, now: Timestamp) -> Result<Cursor> {
        let readings = self.readings(&query, now).await?;
        let mut stand = Stand::new(&query, now);
        stand.advance(&readings, now)?;
        stand.cursor()
    }

    async fn read(&self, query: Query<'_>, cursor: &Cursor, now: Timestamp) -> Result<Reading> {
        let mut stand = Stand::read(&query, cursor, now)?;
        let from = stand.at;
        let readings = self.readings(&query, now).await?;
        let gains = stand.advance(&readings, now)?;
        for (name, def) in query.metrics {
            for wanted in self.measures.of(name, def)?.series().iter().take(1) {
                gains.fresh(wanted, Arm::Candidate, now, self.timeout)?;
                gains.fresh(wanted, Arm::Baseline, now, self.timeout)?;
            }
        }
        reading(&query, &self.measures, &gains, from, &stand)
    }
}

#[cfg(test)]
mod recorded;
#[cfg(test)]
mod tests;
