//! One metric source of several: what the recorder or a host's own source counts, pairs of mirrored answers, and late labels.

use crate::host::{Cursor, Error, MetricSource, Past, Query, Reading, Result, SliceCounts};
use crate::recorder::{Cohorts, Labels};
use crate::router::VersionSlot;
use crate::shadow::Shadow;
use async_trait::async_trait;
use llm_gates::quality::Comparisons;
use llm_gates::{BadCounts, Counts, Increment};
use llm_rollout::{MetricDef, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// A source, with shadows by the name of their comparator, and labels.
#[derive(Debug)]
pub(crate) struct Joined {
    source: Arc<dyn MetricSource>,
    shadows: BTreeMap<String, Shadow>,
    labels: Option<Arc<Labels>>,
    /// Differs for every life: counts begin at zero.
    boot: u64,
}

/// Where everything stood.
#[derive(Debug, Serialize, Deserialize)]
struct Stand {
    boot: u64,
    source: Cursor,
    #[serde(flatten)]
    counted: Counted,
}

/// Cumulative counts by metric.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Counted {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pairs: BTreeMap<String, Comparisons>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, Cohorts>,
}

impl Joined {
    /// The source itself, where there is nothing to join.
    pub(crate) fn of(
        source: Arc<dyn MetricSource>,
        shadows: BTreeMap<String, Shadow>,
        labels: Option<Arc<Labels>>,
    ) -> Arc<dyn MetricSource> {
        if shadows.is_empty() && labels.is_none() {
            return source;
        }
        Arc::new(Self {
            source,
            shadows,
            labels,
            boot: RandomState::new().hash_one("joined"),
        })
    }

    /// Whether a metric is counted here; the rest is the source's.
    fn owns(&self, def: &MetricDef) -> bool {
        match def {
            MetricDef::Pair(name) => self.shadows.contains_key(name),
            MetricDef::Label(name) | MetricDef::Unlabelled(name) => {
                self.labels.as_ref().is_some_and(|l| l.knows(name))
            }
            _ => false,
        }
    }

    fn rest(&self, query: &Query<'_>) -> BTreeMap<String, MetricDef> {
        let metrics = query.metrics.iter().filter(|(_, def)| !self.owns(def));
        metrics.map(|(n, d)| (n.clone(), d.clone())).collect()
    }

    fn counted(&self, query: &Query<'_>, now: Timestamp) -> Counted {
        let mut counted = Counted::default();
        for (metric, def) in query.metrics {
            match (def, &self.labels) {
                (MetricDef::Pair(name), _) => {
                    let Some(shadow) = self.shadows.get(name) else {
                        continue;
                    };
                    // A version that nobody has served yet has not been mirrored to.
                    let slot = VersionSlot::find(query.candidate);
                    let counts = slot.map(|slot| shadow.counts_of(slot).comparisons());
                    let pairs = &mut counted.pairs;
                    pairs.insert(metric.clone(), counts.unwrap_or_default());
                }
                (MetricDef::Label(name) | MetricDef::Unlabelled(name), Some(labels)) => {
                    if let Some(cohorts) = labels.cohorts(query.epoch, name, now) {
                        counted.labels.insert(metric.clone(), cohorts);
                    }
                }
                _ => {}
            }
        }
        counted
    }

    fn cursor(&self, source: Cursor, counted: Counted) -> Result<Cursor> {
        let boot = self.boot;
        let stand = Stand {
            boot,
            source,
            counted,
        };
        serde_json::to_string(&stand)
            .map(Cursor::new)
            .map_err(|e| Error::permanent("a cursor cannot be written").because(e))
    }
}

fn anew(metric: &str) -> Error {
    Error::permanent(format!(
        "the counts of metric {metric:?} do not go on from the cursor's: open anew"
    ))
}

fn compared(metric: &str, now: Comparisons, before: Comparisons) -> Result<Increment> {
    let gained = |now: u64, before: u64| now.checked_sub(before).ok_or_else(|| anew(metric));
    Ok(Increment::Compared(Comparisons {
        wins: gained(now.wins, before.wins)?,
        ties: gained(now.ties, before.ties)?,
        losses: gained(now.losses, before.losses)?,
    }))
}

fn labelled(metric: &str, def: &MetricDef, now: &Cohorts, before: &Cohorts) -> Result<Increment> {
    let gained = now.since(before).ok_or_else(|| anew(metric))?;
    let (candidate, baseline) = gained.arms();
    if let MetricDef::Label(_) = def {
        return Ok(Increment::Scores {
            candidate: candidate.scores(),
            baseline: baseline.scores(),
        });
    }
    let check = |counts: Counts| counts.check().map(|()| counts);
    let bad = |e: BadCounts| Error::transient(format!("metric {metric:?}: {e}")).because(e);
    Ok(Increment::Binary {
        candidate: check(candidate.unlabelled()).map_err(bad)?,
        baseline: check(baseline.unlabelled()).map_err(bad)?,
    })
}

#[async_trait]
impl MetricSource for Joined {
    async fn open(&self, query: Query<'_>, now: Timestamp) -> Result<Cursor> {
        let metrics = self.rest(&query);
        let metrics = &metrics;
        let source = self.source.open(Query { metrics, ..query }, now).await?;
        self.cursor(source, self.counted(&query, now))
    }

    async fn read(&self, query: Query<'_>, cursor: &Cursor, now: Timestamp) -> Result<Reading> {
        let before: Stand = serde_json::from_str(cursor.as_str()).map_err(|e| {
            Error::permanent("the cursor is not one of these sources': open anew").because(e)
        })?;
        if before.boot != self.boot {
            return Err(Error::permanent(
                "the cursor is of an earlier life of these sources: open anew",
            ));
        }
        let metrics = self.rest(&query);
        let metrics = &metrics;
        let rest = Query { metrics, ..query };
        let mut reading = self.source.read(rest, &before.source, now).await?;
        let counted = self.counted(&query, now);
        for (metric, now) in &counted.pairs {
            let before = before.counted.pairs.get(metric);
            let increment = compared(metric, *now, *before.ok_or_else(|| anew(metric))?)?;
            reading.window.metrics.insert(metric.clone(), increment);
        }
        for (metric, now) in &counted.labels {
            let before = before.counted.labels.get(metric);
            let before = before.ok_or_else(|| anew(metric))?;
            if let Some(def) = query.metrics.get(metric) {
                let increment = labelled(metric, def, now, before)?;
                reading.window.metrics.insert(metric.clone(), increment);
            }
        }
        reading.cursor = self.cursor(reading.cursor, counted)?;
        Ok(reading)
    }

    async fn slices(&self, query: Query<'_>) -> Result<Vec<SliceCounts>> {
        let metrics = self.rest(&query);
        let metrics = &metrics;
        self.source.slices(Query { metrics, ..query }).await
    }

    async fn history(&self, query: Query<'_>, now: Timestamp) -> Result<Vec<Past>> {
        let metrics = self.rest(&query);
        let metrics = &metrics;
        self.source.history(Query { metrics, ..query }, now).await
    }
}
