//! What an endpoint counts and does, to the systems that watch it: OpenTelemetry collectors (feature `opentelemetry`), and the
//! facade of the crate `metrics` (feature `metrics`).
//!
//! Both read the recorder's counts and the log's state now and then; requests pay nothing. Names follow OpenTelemetry's
//! conventions for generative AI where there are any:
//!
//! | metric | kind, unit | of |
//! |---|---|---|
//! | `gen_ai.server.request.duration` | histogram, s | requests that have ended, failed ones too |
//! | `gen_ai.server.time_to_first_token` | histogram, s | replies that began |
//! | `gen_ai.server.time_per_output_token` | histogram, s | replies that came in pieces |
//! | `gen_ai.client.token.usage` | sum and count, `{token}` | output tokens by request |
//! | `llm.rollout.requests` | counter, `{request}` | requests that have ended, by `outcome` |
//! | `llm.rollout.share` | gauge, 1 | the share that the rollout gives its candidate |
//! | `llm.rollout.exposed` | counter, `{request}` | requests that the candidate was given, by `rollout` |
//! | `llm.rollout.state` | gauge, 1 | 1 for the `phase` that the rollout is in, 0 for the others |
//! | `llm.rollout.verdict` | gauge, 1 | 1 pass, 0 inconclusive, -1 fail: by `gate`, and `all` of them together |
//! | `llm.rollout.evidence` | gauge, 1 | ln of the evidence of harm, by `gate`; `bound` is where `all` rolls back |
//!
//! The attributes of the first five are `gen_ai.operation.name`, `gen_ai.provider.name`, `gen_ai.request.model` (the version's
//! name), `llm.rollout.endpoint`, `llm.rollout.version` (the bundle reference) and `llm.rollout.role`. Neither keys nor users appear
//! anywhere. Versions accumulate: at most 256 series of version and role are followed, those met first.
//!
//! Values in histograms are known to 1.6 %, and so are their sums: near a bucket's bound a value may fall into its neighbour.

#[cfg(feature = "metrics")]
mod facade;
#[cfg(feature = "opentelemetry")]
mod otlp;

#[cfg(feature = "metrics")]
pub use facade::MetricsExporter;
#[cfg(feature = "opentelemetry")]
pub use otlp::{OtlpExporter, OtlpExporterBuilder};

use crate::endpoint::Endpoint;
use crate::host::Result;
use crate::recorder::{Heights, OutcomeClass, Row};
use crate::router::{Role, Slice, VersionSlot};
use llm_gates::Verdict;
use llm_rollout::{Phase, Rollout};
use std::collections::BTreeMap;

/// The most series of version and role that are followed.
const MOST: usize = 256;

/// What the conventions want to know, and a gateway must be told.
#[derive(Debug, Clone)]
pub(crate) struct Naming {
    /// `gen_ai.operation.name`.
    pub(crate) operation: String,
    /// `gen_ai.provider.name`.
    pub(crate) provider: String,
}

impl Default for Naming {
    fn default() -> Self {
        Self {
            operation: "chat".to_owned(),
            provider: "self-hosted".to_owned(),
        }
    }
}

/// A metric, and what it is now.
#[derive(Debug, Clone, PartialEq)]
struct Metric {
    name: &'static str,
    unit: &'static str,
    about: &'static str,
    points: Vec<Point>,
}

type Attributes = Vec<(&'static str, String)>;

#[derive(Debug, Clone, PartialEq)]
struct Point {
    attributes: Attributes,
    value: Value,
}

/// Cumulative since the exporter began, but for gauges.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Counter(u64),
    Gauge(f64),
    /// Values and how often each was met, fine; and the bounds that are usual for them.
    Histogram(Heights, &'static [f64]),
    /// A sum, and of how many.
    Summed(u64, u64),
}

/// As the conventions advise.
const DURATION: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
const PER_TOKEN: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
];

/// One epoch, role and kind of assignment of the recorder.
type Kind = (u64, Role, bool, Option<Slice>, VersionSlot);

/// Reads an endpoint again and again.
#[derive(Debug)]
struct Gatherer {
    endpoint: Endpoint,
    naming: Naming,
    /// As of the last reading: the recorder forgets old epochs.
    last: BTreeMap<Kind, Row>,
    sums: BTreeMap<(VersionSlot, Role), Row>,
}

impl Gatherer {
    fn new(endpoint: &Endpoint) -> Self {
        Self {
            endpoint: endpoint.clone(),
            naming: Naming::default(),
            last: BTreeMap::new(),
            sums: BTreeMap::new(),
        }
    }

    /// Everything as it is now.
    fn gather(&mut self) -> Result<Vec<Metric>> {
        let snapshot = self.endpoint.data_plane().recorder.snapshot()?;
        self.take(snapshot.rows);
        let mut metrics = self.served();
        let status = self.endpoint.status();
        if let Some(rollout) = &status.ledger.rollout {
            metrics.extend(self.rollout(rollout));
        }
        Ok(metrics)
    }

    fn take(&mut self, rows: Vec<Row>) {
        let mut seen = BTreeMap::new();
        for row in rows {
            let kind = (
                row.epoch().get(),
                row.role(),
                row.randomised(),
                row.slice(),
                row.version(),
            );
            let key = (row.version(), row.role());
            let before = self.last.get(&kind);
            let room = self.sums.len() < MOST;
            if let Some(sum) = self.sums.get_mut(&key) {
                sum.gain(&row, before);
            } else if room {
                self.sums.insert(key, row.clone());
            }
            seen.insert(kind, row);
        }
        self.last = seen;
    }

    fn served(&self) -> Vec<Metric> {
        let metric = |name, unit, about| Metric {
            name,
            unit,
            about,
            points: Vec::new(),
        };
        let mut duration = metric(
            "gen_ai.server.request.duration",
            "s",
            "Time from the request to the end of its reply",
        );
        let mut first = metric(
            "gen_ai.server.time_to_first_token",
            "s",
            "Time from the request to the first token of its reply",
        );
        let mut pace = metric(
            "gen_ai.server.time_per_output_token",
            "s",
            "Time per output token after the first",
        );
        let mut tokens = metric(
            "gen_ai.client.token.usage",
            "{token}",
            "Output tokens of requests that have ended",
        );
        let mut requests = metric(
            "llm.rollout.requests",
            "{request}",
            "Requests that have ended, by outcome",
        );
        for ((slot, role), row) in &self.sums {
            let Some(version) = slot.version() else {
                continue;
            };
            let own = vec![
                ("gen_ai.operation.name", self.naming.operation.clone()),
                ("gen_ai.provider.name", self.naming.provider.clone()),
                ("gen_ai.request.model", version.id().name().to_string()),
                ("llm.rollout.endpoint", self.endpoint.id().to_string()),
                ("llm.rollout.role", role.to_string()),
                ("llm.rollout.version", version.reference().to_string()),
            ];
            let with = |more: Option<(&'static str, &str)>, value| {
                let mut attributes = own.clone();
                attributes.extend(more.map(|(k, v)| (k, v.to_owned())));
                Point { attributes, value }
            };
            let [took, began, paced] = row.heights();
            duration
                .points
                .push(with(None, Value::Histogram(took, DURATION)));
            first
                .points
                .push(with(None, Value::Histogram(began, FIRST_TOKEN)));
            pace.points
                .push(with(None, Value::Histogram(paced, PER_TOKEN)));
            let output = Some(("gen_ai.token.type", "output"));
            tokens
                .points
                .push(with(output, Value::Summed(row.tokens(), row.finished())));
            for class in OutcomeClass::ALL {
                let outcome = Some(("outcome", class.name()));
                requests
                    .points
                    .push(with(outcome, Value::Counter(row.ended(class))));
            }
        }
        vec![duration, first, pace, tokens, requests]
    }

    fn rollout(&self, rollout: &Rollout) -> Vec<Metric> {
        let reference = |id: &llm_version_core::VersionId| id.reference().to_string();
        let own: Attributes = vec![
            ("llm.rollout.endpoint", self.endpoint.id().to_string()),
            ("llm.rollout.id", rollout.id().to_string()),
            ("llm.rollout.version", reference(rollout.candidate())),
        ];
        let point = |more: Option<(&'static str, String)>, value| {
            let mut attributes = own.clone();
            attributes.extend(more);
            Point { attributes, value }
        };
        let one = |name, unit, about, points| Metric {
            name,
            unit,
            about,
            points,
        };
        let state = rollout.state();
        let share = f64::from(state.split.share.basis_points()) / 10_000.0;
        // A split of a rollout that is over has no candidate.
        let share = if rollout.is_settled() { 0.0 } else { share };
        let now = phase(rollout.phase());
        let phases = PHASES.iter().map(|name| {
            let value = f64::from(u8::from(*name == now));
            point(Some(("phase", (*name).to_owned())), Value::Gauge(value))
        });
        let mut metrics = vec![
            one(
                "llm.rollout.share",
                "1",
                "Share of requests that the candidate is to get",
                vec![point(None, Value::Gauge(share))],
            ),
            one(
                "llm.rollout.exposed",
                "{request}",
                "Requests that the candidate was given",
                vec![point(None, Value::Counter(state.exposed))],
            ),
            one(
                "llm.rollout.state",
                "1",
                "1 for the phase that the rollout is in",
                phases.collect(),
            ),
        ];
        if let Some(judgement) = rollout.judgement() {
            let gates = judgement.gates.iter();
            let mut verdicts: Vec<_> = gates
                .clone()
                .map(|g| (g.metric.clone(), verdict(g.verdict)))
                .collect();
            verdicts.push(("all".to_owned(), verdict(judgement.verdict)));
            let mut evidence: Vec<_> = gates.map(|g| (g.metric.clone(), g.log_e)).collect();
            evidence.push(("all".to_owned(), judgement.log_evidence));
            evidence.push(("bound".to_owned(), judgement.bound));
            let points = |values: Vec<(String, f64)>| {
                let values = values
                    .into_iter()
                    .filter(|(_, v)| v.is_finite() && *v > f64::MIN);
                values
                    .map(|(gate, v)| point(Some(("gate", gate)), Value::Gauge(v)))
                    .collect()
            };
            metrics.push(one(
                "llm.rollout.verdict",
                "1",
                "1 pass, 0 inconclusive, -1 fail",
                points(verdicts),
            ));
            metrics.push(one(
                "llm.rollout.evidence",
                "1",
                "ln of the evidence of harm",
                points(evidence),
            ));
        }
        metrics
    }
}

fn verdict(verdict: Verdict) -> f64 {
    match verdict {
        Verdict::Pass => 1.0,
        Verdict::Inconclusive => 0.0,
        Verdict::Fail => -1.0,
    }
}

const PHASES: [&str; 13] = [
    "planned",
    "pre-flight",
    "warming",
    "shifting",
    "soaking",
    "held",
    "promoting",
    "baking",
    "rolling-back",
    "promoted",
    "rolled-back",
    "blocked",
    "concluded",
];

fn phase(phase: Phase) -> &'static str {
    let index = match phase {
        Phase::Planned => 0,
        Phase::PreFlight => 1,
        Phase::Warming => 2,
        Phase::Shifting { .. } => 3,
        Phase::Soaking { .. } => 4,
        Phase::Held { .. } => 5,
        Phase::Promoting => 6,
        Phase::Baking => 7,
        Phase::RollingBack { .. } => 8,
        Phase::Promoted => 9,
        Phase::RolledBack => 10,
        Phase::Blocked => 11,
        Phase::Concluded => 12,
    };
    PHASES.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
