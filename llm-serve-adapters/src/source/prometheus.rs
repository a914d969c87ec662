//! A Prometheus server as a metric source.

use super::measure::{Measure, Measures, Readings, Series, Wanted};
use super::series::{Arm, Gains, Group, Groups, Sample, Stand, count, reading, until};
use crate::host::{Cursor, Error, MetricSource, Past, Query, Reading, Result};
use crate::http_client::{Address, Authorities, Call, Http, bearer, clip, refusal};
use async_trait::async_trait;
use llm_gates::Counts;
use llm_rollout::Timestamp;
use llm_version_core::VersionId;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How long one query may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How old the newest sample of an arm may be.
const FRESH: Duration = Duration::from_secs(60);
/// Hours of history that are asked for, one query each for every series.
const HOURS: u64 = 24;
/// Bytes of a reply that are read.
const REPLY: usize = 32 << 20;

type Naming = Arc<dyn Fn(&VersionId) -> String + Send + Sync>;

/// Reads the plan's metrics from a Prometheus server, or from anything with its HTTP API.
///
/// Series carry a label that tells the version (`version`, with the whole version id, unless told otherwise). Every look asks for
/// the raw samples since the last one, at an explicit time (`metric[window]` at `time=`), and counts itself: a counter that
/// falls has been reset; a series that begins while its process (labels `job` and `instance`) was watched began at zero, so that
/// the first error of a version counts; one that is met with its process counts from its first sample on. Histograms, classic or
/// native, give the requests above the metric's limit by the upper bounds of their buckets: have a bucket end at the limit.
///
/// What is empty, NaN, infinite, older than [`fresh`](PrometheusSourceBuilder::fresh), or partial (a warning of Thanos, say) is an
/// error. A version that was never asked anything may have no series: that is an error too, until its first request was scraped;
/// but a `bad` series that does not exist counts zero, as exporters make it with the first error. The server's clock and this
/// one must agree within a scrape interval. There is no heartbeat, no control arm, and only where the exporter has a label for the
/// epoch ([`epoch_label`](PrometheusSourceBuilder::epoch_label)) are late requests of an earlier stage left out. The baseline's noise is learnt
/// from its last 24 hours, where the server has kept them. Scraping is coarse: recording at the gateway is better where it can be had.
///
/// ```
/// use llm_serve_adapters::source::{PrometheusSource, Series};
///
/// let requests = Series::new("gateway_requests_total").is("route", "chat");
/// let source = PrometheusSource::builder("http://prometheus:9090")
///     .ratio("faults", requests.clone(), requests.starts_with("code", "5"))
///     .histogram("slow", Series::new("gateway_first_token_seconds"))
///     .build()?;
/// # Ok::<(), llm_serve_adapters::host::Error>(())
/// ```
pub struct PrometheusSource {
    http: Http,
    to: Address,
    headers: HeaderMap,
    label: String,
    epoch_label: Option<String>,
    naming: Naming,
    measures: Measures,
    fresh: Duration,
    timeout: Duration,
}

/// Builds a [`PrometheusSource`].
#[must_use = "it does nothing until it is built"]
pub struct PrometheusSourceBuilder {
    address: String,
    token: Option<String>,
    label: String,
    epoch_label: Option<String>,
    naming: Naming,
    measures: Measures,
    fresh: Duration,
    timeout: Duration,
    authorities: Authorities,
}

impl PrometheusSourceBuilder {
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

    /// Counts a metric of the plan that has a limit in time by a classic histogram of seconds, or of
    /// [milliseconds](Series::milliseconds).
    pub fn histogram(mut self, metric: impl Into<String>, series: Series) -> Self {
        self.measures
            .insert(metric.into(), Measure::Classic(series));
        self
    }

    /// The same, by a native histogram.
    pub fn native_histogram(mut self, metric: impl Into<String>, series: Series) -> Self {
        self.measures.insert(metric.into(), Measure::Native(series));
        self
    }

    /// Sends this bearer token.
    pub fn bearer(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// The label that tells the version, and what it says; two versions must not have the same.
    pub fn version_label(
        mut self,
        label: impl Into<String>,
        value: impl Fn(&VersionId) -> String + Send + Sync + 'static,
    ) -> Self {
        self.label = label.into();
        self.naming = Arc::new(value);
        self
    }

    /// The label that tells the epoch under which a request was assigned, as a number.
    pub fn epoch_label(mut self, label: impl Into<String>) -> Self {
        self.epoch_label = Some(label.into());
        self
    }

    /// How old the newest sample of an arm may be: some scrape intervals; 60 seconds unless told otherwise.
    pub fn fresh(mut self, within: Duration) -> Self {
        self.fresh = within;
        self
    }

    /// Trusts these certificate authorities beside those of the system.
    pub fn trust(mut self, authorities: Authorities) -> Self {
        self.authorities = authorities;
        self
    }

    /// How long one query may take, 10 seconds unless told otherwise.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The source.
    ///
    /// # Errors
    /// `Permanent` for an address, a token, a series or a label that cannot be one.
    pub fn build(self) -> Result<PrometheusSource> {
        let base = Address::parse(&self.address)?;
        let to = base.with_path(&format!("{}/api/v1/query", base.path()));
        self.measures.check()?;
        for label in [Some(&self.label), self.epoch_label.as_ref()]
            .into_iter()
            .flatten()
        {
            Series::new("x").is(label, "").check()?;
        }
        Ok(PrometheusSource {
            http: Http::trusting(&self.authorities)?,
            to,
            headers: self
                .token
                .as_deref()
                .map_or_else(|| Ok(HeaderMap::new()), bearer)?,
            label: self.label,
            epoch_label: self.epoch_label,
            naming: self.naming,
            measures: self.measures,
            fresh: self.fresh.max(Duration::from_millis(1)),
            timeout: self.timeout,
        })
    }
}

impl fmt::Debug for PrometheusSourceBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrometheusSourceBuilder")
            .field("measures", &self.measures)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for PrometheusSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrometheusSource")
            .field("to", &self.to)
            .field("measures", &self.measures)
            .finish_non_exhaustive()
    }
}

/// Requests of which epochs are asked for.
#[derive(Debug, Clone, Copy)]
enum Epochs {
    This,
    All,
}

/// The answer to a query, good or bad.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    status: String,
    data: Option<Data>,
    error: Option<String>,
    #[serde(default)]
    warnings: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    result_type: String,
    /// Only a matrix is looked into.
    result: Box<RawValue>,
}

#[derive(Deserialize)]
struct Row {
    metric: BTreeMap<String, String>,
    #[serde(default)]
    values: Vec<(f64, String)>,
    #[serde(default)]
    histograms: Vec<(f64, Native)>,
}

#[derive(Deserialize)]
struct Native {
    count: String,
    /// Which bounds belong to it, lower bound, upper bound, count.
    #[serde(default)]
    buckets: Vec<(u8, String, String, String)>,
}

impl PrometheusSource {
    /// Begins with nothing but the server's address, without `/api/v1`; a path before that is kept.
    pub fn builder(address: impl Into<String>) -> PrometheusSourceBuilder {
        PrometheusSourceBuilder {
            address: address.into(),
            token: None,
            label: "version".to_owned(),
            epoch_label: None,
            naming: Arc::new(ToString::to_string),
            measures: Measures::default(),
            fresh: FRESH,
            timeout: TIMEOUT,
            authorities: Authorities::default(),
        }
    }

    /// Everything that the metrics need, over this long before now.
    async fn readings(
        &self,
        query: &Query<'_>,
        now: Timestamp,
        over: Duration,
        epochs: Epochs,
    ) -> Result<Readings> {
        let mut readings = Readings::new();
        for (name, def) in query.metrics {
            for wanted in self.measures.of(name, def)?.series() {
                if let Entry::Vacant(unread) = readings.entry(wanted.key()) {
                    unread.insert(self.groups(&wanted, query, now, over, epochs).await?);
                }
            }
        }
        Ok(readings)
    }

    async fn groups(
        &self,
        wanted: &Wanted,
        query: &Query<'_>,
        now: Timestamp,
        over: Duration,
        epochs: Epochs,
    ) -> Result<Groups> {
        let candidate = (self.naming)(query.candidate);
        let baseline = (self.naming)(query.baseline);
        if candidate == baseline {
            return Err(Error::permanent(format!(
                "candidate and baseline are both called {candidate:?} in the label {:?}: name versions so that they differ",
                self.label
            )));
        }
        let series = match wanted {
            Wanted::Counter(series) | Wanted::Native(series) => series.clone(),
            Wanted::Classic(series) => series.buckets(),
        };
        let series = match (&self.epoch_label, epochs) {
            (Some(label), Epochs::This) => series.is(label, query.epoch.to_string()),
            _ => series,
        };
        let selector = series.selector(&self.label, &[&candidate, &baseline]);
        let rows = self
            .ask(&format!("{selector}[{}ms]", over.as_millis()), now)
            .await?;
        let mut raw = Vec::new();
        for row in rows {
            let arm = match row.metric.get(&self.label) {
                Some(version) if *version == candidate => Arm::Candidate,
                Some(version) if *version == baseline => Arm::Baseline,
                // Not what was asked for.
                _ => continue,
            };
            raw.push((arm, row));
        }
        match wanted {
            Wanted::Counter(_) => raw
                .into_iter()
                .map(|(arm, row)| counter(&series, arm, &row))
                .collect(),
            Wanted::Native(_) => raw
                .into_iter()
                .map(|(arm, row)| native(&series, arm, row))
                .collect(),
            Wanted::Classic(_) => classic(&series, raw),
        }
    }

    /// The series that an expression finds, evaluated at exactly this time.
    async fn ask(&self, expression: &str, now: Timestamp) -> Result<Vec<Row>> {
        let time = format!("{}.{:03}", now.as_millis() / 1000, now.as_millis() % 1000);
        let call = Call {
            to: &self
                .to
                .with_query(&[("query", expression), ("time", &time)]),
            headers: self.headers.clone(),
            json: None,
            timeout: self.timeout,
            limit: REPLY,
        };
        let reply = self.http.send(call).await?;
        let answer = serde_json::from_slice::<Answer>(&reply.body);
        let to = &self.to;
        if let Some(kind) = refusal(reply.status) {
            let said = answer
                .ok()
                .and_then(|a| a.error)
                .unwrap_or_else(|| String::from_utf8_lossy(&reply.body).into_owned());
            return Err(Error::new(
                kind,
                format!(
                    "{to} answers {} to {expression} ({}): ask it by hand",
                    reply.status,
                    clip(&said)
                ),
            ));
        }
        let strange = |e: serde_json::Error| {
            let message = format!("{to} does not answer as Prometheus does: check its address");
            Error::permanent(message).because(e)
        };
        let answer = answer.map_err(strange)?;
        if let Some(warning) = answer.warnings.first() {
            return Err(Error::transient(format!(
                "{to} answers {expression} with a warning ({}): a partial answer is none",
                clip(warning)
            )));
        }
        match answer.data {
            Some(data) if answer.status == "success" && data.result_type == "matrix" => {
                serde_json::from_str(data.result.get()).map_err(strange)
            }
            _ => Err(Error::transient(format!(
                "{to} has no samples for {expression}: ask it by hand"
            ))),
        }
    }
}

fn millis(seconds: f64) -> u64 {
    // What Prometheus writes has three decimals.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates"
    )]
    let millis = (seconds * 1000.0).round() as u64;
    millis
}

fn number(series: &Series, text: &str) -> Result<f64> {
    text.parse().map_err(|e| {
        Error::transient(format!("{series} is {:?}, which is no number", clip(text))).because(e)
    })
}

/// A name that stays the same as long as the labels do, and the process that they come from.
pub(super) fn names(labels: &BTreeMap<String, String>) -> (String, String) {
    let of = |label: &str| labels.get(label).map_or("", String::as_str);
    let target = format!("{}/{}", of("job"), of("instance"));
    let all = labels
        .iter()
        .filter(|(label, _)| *label != "le" && *label != "__name__");
    let all: Vec<_> = all
        .map(|(label, value)| format!("{label}={value:?}"))
        .collect();
    let hash = |text: &str| format!("{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()));
    (hash(&all.join(",")), hash(&target))
}

fn counter(series: &Series, arm: Arm, row: &Row) -> Result<(String, Group)> {
    let (name, target) = names(&row.metric);
    if !row.histograms.is_empty() {
        return Err(Error::permanent(format!(
            "{series} is a native histogram: name a counter, or read it as what it is"
        )));
    }
    let mut samples = Vec::new();
    let last = row.values.len().saturating_sub(1);
    for (i, (at, value)) in row.values.iter().enumerate() {
        let value = number(series, value)?;
        // A gap in between: the counter goes on after it. At the end there is no answer.
        if value.is_finite() || i == last {
            let total = count(&series.to_string(), value)?;
            samples.push(Sample {
                at: millis(*at),
                total,
                below: Vec::new(),
            });
        }
    }
    Ok((
        name,
        Group {
            arm,
            target,
            samples,
        },
    ))
}

fn native(series: &Series, arm: Arm, row: Row) -> Result<(String, Group)> {
    let (name, target) = names(&row.metric);
    if !row.values.is_empty() {
        return Err(Error::permanent(format!(
            "{series} is no native histogram: read it as a classic one, or as a counter"
        )));
    }
    let own = series.to_string();
    let mut samples = Vec::new();
    for (at, histogram) in row.histograms {
        let (mut below, mut cumulative) = (Vec::new(), 0u64);
        for (_, _, upper, inside) in &histogram.buckets {
            let inside = count(&own, number(series, inside)?)?;
            cumulative = cumulative.saturating_add(inside);
            below.push((series.seconds(number(series, upper)?), cumulative));
        }
        let total = count(&own, number(series, &histogram.count)?)?;
        samples.push(Sample {
            at: millis(at),
            total,
            below,
        });
    }
    Ok((
        name,
        Group {
            arm,
            target,
            samples,
        },
    ))
}

/// The buckets of a classic histogram by the time of their scrape: bound and cumulative count.
type Scrapes = BTreeMap<u64, Vec<(f64, f64)>>;

/// Buckets that differ in `le` alone are one histogram.
fn classic(series: &Series, rows: Vec<(Arm, Row)>) -> Result<Groups> {
    let mut histograms: BTreeMap<String, (Arm, String, Scrapes)> = BTreeMap::new();
    for (arm, row) in rows {
        let (name, target) = names(&row.metric);
        let bound = bound(series, row.metric.get("le"))?;
        let (_, _, samples) = histograms
            .entry(name)
            .or_insert_with(|| (arm, target, Scrapes::new()));
        for (at, value) in row.values {
            samples
                .entry(millis(at))
                .or_default()
                .push((bound, number(series, &value)?));
        }
    }
    histograms
        .into_iter()
        .map(|(name, (arm, target, samples))| {
            let newest = samples.last_key_value().map(|(at, _)| *at);
            // As with counters: a gap in between tells nothing, one at the end is no answer.
            let told = samples.into_iter().filter(|(at, buckets)| {
                Some(*at) == newest || buckets.iter().all(|(_, value)| value.is_finite())
            });
            let samples = told
                .map(|(at, buckets)| whole(series, at, &buckets))
                .collect::<Result<_>>()?;
            Ok((
                name,
                Group {
                    arm,
                    target,
                    samples,
                },
            ))
        })
        .collect()
}

/// The bound that a label `le` tells.
pub(super) fn bound(series: &Series, le: Option<&String>) -> Result<f64> {
    le.and_then(|le| le.parse().ok())
        .filter(|bound: &f64| !bound.is_nan())
        .map(|bound| series.seconds(bound))
        .ok_or_else(|| {
            Error::permanent(format!(
                "{series} has no bound in its label \"le\": it is no histogram"
            ))
        })
}

/// One sample of a classic histogram, from the buckets of one scrape.
pub(super) fn whole(series: &Series, at: u64, buckets: &[(f64, f64)]) -> Result<Sample> {
    let counts = |(bound, value): &(f64, f64)| Ok((*bound, count(&series.to_string(), *value)?));
    let mut below = buckets.iter().map(counts).collect::<Result<Vec<_>>>()?;
    below.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    match below.pop() {
        Some((f64::INFINITY, total)) => Ok(Sample { at, total, below }),
        _ => Err(Error::transient(format!(
            "{series} has no bucket \"+Inf\" at {at} ms: the scrape was not whole"
        ))),
    }
}

#[async_trait]
impl MetricSource for PrometheusSource {
    async fn open(&self, query: Query<'_>, now: Timestamp) -> Result<Cursor> {
        let readings = self.readings(&query, now, self.fresh, Epochs::This).await?;
        let mut stand = Stand::new(&query, now);
        let gains = stand.advance(&readings, now)?;
        self.check(&query, &gains, &[Arm::Baseline], now)?;
        stand.cursor()
    }

    async fn read(&self, query: Query<'_>, cursor: &Cursor, now: Timestamp) -> Result<Reading> {
        let mut stand = Stand::read(&query, cursor, now)?;
        let from = stand.at;
        let over = Duration::from_millis(now.as_millis().saturating_sub(from.as_millis()));
        let over = over.max(self.fresh);
        let readings = self.readings(&query, now, over, Epochs::This).await?;
        let gains = stand.advance(&readings, now)?;
        self.check(&query, &gains, &[Arm::Candidate, Arm::Baseline], now)?;
        reading(&query, &self.measures, &gains, from, &stand)
    }

    async fn history(&self, query: Query<'_>, now: Timestamp) -> Result<Vec<Past>> {
        const PER_HOUR: u64 = 12;
        let block = u64::try_from(Past::BLOCK.as_millis()).unwrap_or(u64::MAX);
        let end = now.as_millis() / block * block;
        let begin = end.saturating_sub(HOURS * PER_HOUR * block);
        let mut stand = Stand::new(&query, Timestamp::from_millis(begin));
        let mut blocks: BTreeMap<&String, Vec<[Counts; 2]>> = BTreeMap::new();
        // A sample before the hour tells where it began.
        let over = Duration::from_millis(PER_HOUR * block).saturating_add(self.fresh);
        for hour in 0..HOURS {
            let from = begin + hour * PER_HOUR * block;
            let to = Timestamp::from_millis(from + PER_HOUR * block);
            let readings = self.readings(&query, to, over, Epochs::All).await?;
            for at in (1..=PER_HOUR).map(|n| from + n * block) {
                let gains = stand.advance(&until(&readings, at), Timestamp::from_millis(at))?;
                for (name, def) in query.metrics {
                    let measure = self.measures.of(name, def)?;
                    let gain = |wanted: &Wanted| gains.gain(&wanted.key(), Arm::Baseline);
                    // A block that makes no sense, or has no requests, tells nothing.
                    if let Ok(counts) = measure.counts(name, def, &gain)
                        && counts.n > 0
                    {
                        let told = blocks.entry(name).or_default();
                        told.push([counts, Counts::default()]);
                    }
                }
            }
        }
        let past = |(metric, blocks): (&String, _)| Past {
            metric: metric.clone(),
            blocks,
        };
        Ok(blocks.into_iter().map(past).collect())
    }
}

impl PrometheusSource {
    /// Whether these arms have been seen lately in every metric.
    fn check(&self, query: &Query<'_>, gains: &Gains, arms: &[Arm], now: Timestamp) -> Result<()> {
        for (name, def) in query.metrics {
            let measure = self.measures.of(name, def)?;
            for wanted in measure.series().iter().take(1) {
                arms.iter()
                    .try_for_each(|arm| gains.fresh(wanted, *arm, now, self.fresh))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
