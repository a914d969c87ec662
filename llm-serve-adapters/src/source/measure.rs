//! Which series a metric of a plan is counted from.

use super::series::{Gain, Groups};
use crate::host::{Error, Result};
use llm_gates::{Counts, Sketch};
use llm_rollout::MetricDef;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A bucket of the sketch that a histogram goes through is this fine: 2^-5, 3 %.
const PRECISION: u8 = 5;

/// A counter or a histogram by its name, and which labels it must carry.
///
/// ```
/// use llm_serve_adapters::source::Series;
///
/// let failed = Series::new("gateway_requests_total").is("route", "chat").starts_with("code", "5");
/// assert_eq!(failed.to_string(), r#"gateway_requests_total{route="chat",code=~"5.*"}"#);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    name: String,
    rules: Vec<(String, Rule)>,
    /// Whether the bounds of a histogram are milliseconds.
    milliseconds: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    Is(String),
    IsNot(String),
    StartsWith(String),
}

impl Series {
    /// All series of this name. A counter's name is whole (with `_total`); a histogram's is without `_bucket`.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            rules: Vec::new(),
            milliseconds: false,
        }
    }

    /// A histogram whose bounds are milliseconds, as Envoy's are, rather than seconds.
    #[must_use]
    pub fn milliseconds(mut self) -> Self {
        self.milliseconds = true;
        self
    }

    /// A bound of a histogram, in seconds.
    pub(super) fn seconds(&self, bound: f64) -> f64 {
        if self.milliseconds {
            bound / 1_000.0
        } else {
            bound
        }
    }

    /// Only those with this label.
    #[must_use]
    pub fn is(self, label: impl Into<String>, value: impl Into<String>) -> Self {
        self.rule(label, Rule::Is(value.into()))
    }

    /// Only those without this label.
    #[must_use]
    pub fn is_not(self, label: impl Into<String>, value: impl Into<String>) -> Self {
        self.rule(label, Rule::IsNot(value.into()))
    }

    /// Only those whose label begins so.
    #[must_use]
    pub fn starts_with(self, label: impl Into<String>, value: impl Into<String>) -> Self {
        self.rule(label, Rule::StartsWith(value.into()))
    }

    fn rule(mut self, label: impl Into<String>, rule: Rule) -> Self {
        self.rules.push((label.into(), rule));
        self
    }

    /// Whether its names are names.
    pub(super) fn check(&self) -> Result<()> {
        let name = |text: &str, colons: bool| {
            let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
            !text.is_empty()
                && text.chars().all(good)
                && !text.starts_with(|c: char| c.is_ascii_digit())
        };
        if name(&self.name, true) && self.rules.iter().all(|(label, _)| name(label, false)) {
            return Ok(());
        }
        Err(Error::permanent(format!(
            "{self} is no series: names are letters, digits and '_', no digit first (those of series ':' too)"
        )))
    }

    /// With another name: `_bucket` at the end.
    pub(super) fn buckets(&self) -> Self {
        Self {
            name: format!("{}_bucket", self.name),
            ..self.clone()
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it carries what it must.
    pub(super) fn admits(&self, labels: &BTreeMap<String, String>) -> bool {
        self.rules.iter().all(|(label, rule)| {
            let value = labels.get(label).map_or("", String::as_str);
            match rule {
                Rule::Is(wanted) => value == wanted,
                Rule::IsNot(other) => value != other,
                Rule::StartsWith(start) => value.starts_with(start),
            }
        })
    }

    /// As `PromQL` selects it, where one label has one of these values.
    pub(super) fn selector(&self, label: &str, values: &[&str]) -> String {
        let any: Vec<_> = values.iter().map(|value| literal(value)).collect();
        let mut rules = vec![format!("{label}=~{}", quoted(&any.join("|")))];
        rules.extend(self.matchers());
        format!("{}{{{}}}", self.name, rules.join(","))
    }

    fn matchers(&self) -> impl Iterator<Item = String> {
        self.rules.iter().map(|(label, rule)| match rule {
            Rule::Is(value) => format!("{label}={}", quoted(value)),
            Rule::IsNot(value) => format!("{label}!={}", quoted(value)),
            Rule::StartsWith(value) => format!("{label}=~{}", quoted(&(literal(value) + ".*"))),
        })
    }
}

impl std::fmt::Display for Series {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let matchers: Vec<_> = self.matchers().collect();
        if matchers.is_empty() {
            return f.write_str(&self.name);
        }
        write!(f, "{}{{{}}}", self.name, matchers.join(","))
    }
}

/// A `PromQL` string.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => {
                let _to_a_string = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A regular expression for exactly this text.
fn literal(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// How a metric of a plan is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Measure {
    /// Requests, and those among them that count.
    Ratio { all: Series, bad: Series },
    /// Requests that do not count, and those that do, in counters of their own.
    Apart { good: Series, bad: Series },
    /// Requests by their seconds, in a histogram of buckets.
    Classic(Series),
    /// The same in a native histogram.
    Native(Series),
}

/// How all metrics of a plan are counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Measures(BTreeMap<String, Measure>);

impl Measures {
    pub(super) fn insert(&mut self, metric: String, measure: Measure) {
        self.0.insert(metric, measure);
    }

    pub(super) fn check(&self) -> Result<()> {
        self.0.values().try_for_each(|measure| match measure {
            Measure::Ratio { all: one, bad } | Measure::Apart { good: one, bad } => {
                one.check().and_then(|()| bad.check())
            }
            Measure::Classic(series) | Measure::Native(series) => series.check(),
        })
    }

    /// How this metric is counted.
    pub(super) fn of(&self, metric: &str, def: &MetricDef) -> Result<&Measure> {
        let measure = self.0.get(metric).ok_or_else(|| {
            Error::permanent(format!(
                "metric {metric:?} is read from nowhere: name its series when the source is built; it knows {:?}",
                self.0.keys()
            ))
        })?;
        let timed = matches!(
            def,
            MetricDef::FirstTokenOver(_) | MetricDef::DurationOver(_)
        );
        match (measure, def) {
            (_, MetricDef::Pair(_)) => Err(Error::permanent(format!(
                "metric {metric:?} compares answers in pairs, which no counter can: take it from another source"
            ))),
            (Measure::Classic(_) | Measure::Native(_), _) if !timed => {
                Err(Error::permanent(format!(
                    "metric {metric:?} has no limit in seconds ({def:?}), but is read from a histogram: name counters instead"
                )))
            }
            _ => Ok(measure),
        }
    }
}

impl Measure {
    /// Every series that it takes; the first one tells how many requests there were.
    pub(super) fn series(&self) -> Vec<Wanted> {
        match self {
            Self::Ratio { all: one, bad } | Self::Apart { good: one, bad } => {
                vec![Wanted::Counter(one.clone()), Wanted::Counter(bad.clone())]
            }
            Self::Classic(series) => vec![Wanted::Classic(series.clone())],
            Self::Native(series) => vec![Wanted::Native(series.clone())],
        }
    }

    /// Requests, and those among them that count.
    pub(super) fn counts(
        &self,
        metric: &str,
        def: &MetricDef,
        gain: &dyn Fn(&Wanted) -> Gain,
    ) -> Result<Counts> {
        let counts = match (self, self.series().as_slice()) {
            (Self::Ratio { .. }, [all, bad]) => Counts {
                n: gain(all).total,
                k: gain(bad).total,
            },
            (Self::Apart { .. }, [good, bad]) => {
                let (good, bad) = (gain(good).total, gain(bad).total);
                Counts {
                    n: good.saturating_add(bad),
                    k: bad,
                }
            }
            (_, [histogram]) => over(metric, def, &gain(histogram))?,
            _ => Counts::default(),
        };
        if counts.k > counts.n {
            return Err(Error::transient(format!(
                "metric {metric:?} counts {} of {} requests: if this goes on, its two series do not count the same requests",
                counts.k, counts.n
            )));
        }
        Ok(counts)
    }
}

/// Requests in a histogram, and those that took longer than the metric's limit.
fn over(metric: &str, def: &MetricDef, gain: &Gain) -> Result<Counts> {
    let (MetricDef::FirstTokenOver(limit) | MetricDef::DurationOver(limit)) = def else {
        return Ok(Counts::default());
    };
    let limit = limit.as_secs_f64();
    if gain.total > 0
        && gain.below.last().is_none_or(|(bound, _)| *bound < limit)
        && gain.beyond() > 0
    {
        return Err(Error::permanent(format!(
            "metric {metric:?} has a limit of {limit} s, above every bucket of its histogram: give the histogram a bucket there"
        )));
    }
    let mut buckets = gain.below.clone();
    buckets.push((f64::INFINITY, gain.total));
    let sketch = Sketch::from_prometheus(PRECISION, &buckets).map_err(|e| {
        Error::transient(format!(
            "the histogram of metric {metric:?} contradicts itself: read it again"
        ))
        .because(e)
    })?;
    Ok(sketch.above(limit))
}

/// A series to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    Counter(Series),
    Classic(Series),
    Native(Series),
}

impl Wanted {
    /// Its name among the readings.
    pub(super) fn key(&self) -> String {
        match self {
            Self::Counter(series) | Self::Native(series) => series.to_string(),
            Self::Classic(series) => series.buckets().to_string(),
        }
    }
}

/// What was read, by [`Wanted::key`].
pub(super) type Readings = BTreeMap<String, Groups>;
