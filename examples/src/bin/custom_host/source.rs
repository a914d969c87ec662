//! A metric source: what became of requests, counted by hand.

use async_trait::async_trait;
use llm_gates::{Counts, Increment, Window};
use llm_rollout::{Epoch, Heartbeat, MetricDef, Timestamp};
use llm_serve_adapters::host::{Cursor, Error, MetricSource, Query, Reading, Result};
use llm_serve_adapters::router::{Decision, Role};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Counts by split and side. Clones are one table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally(Arc<Mutex<BTreeMap<Epoch, Sides>>>);

/// Requests that chance assigned, and those among them that failed.
#[derive(Debug, Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
struct Sides {
    candidate: Counts,
    baseline: Counts,
}

/// Where a read stood.
#[derive(serde::Serialize, serde::Deserialize)]
struct Stand {
    epoch: Epoch,
    at: Timestamp,
    sides: Sides,
}

/// Splits whose counts are kept.
const EPOCHS: usize = 8;

impl Tally {
    /// A request has ended.
    pub(crate) fn count(&self, decision: Decision, failed: bool) {
        // Pins, retries and the like are no evidence.
        if !decision.randomised() {
            return;
        }
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sides = table.entry(decision.epoch()).or_default();
        let side = match decision.role() {
            Role::Candidate => &mut sides.candidate,
            Role::Baseline | Role::Control => &mut sides.baseline,
        };
        side.n += 1;
        side.k += u64::from(failed);
        while table.len() > EPOCHS {
            table.pop_first();
        }
    }

    fn stand(&self, query: &Query<'_>, at: Timestamp) -> Result<Stand> {
        for (name, metric) in query.metrics {
            if !matches!(metric, MetricDef::Fault {}) {
                return Err(Error::permanent(format!(
                    "metric {name:?} is not counted here: only faults are"
                )));
            }
        }
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sides = table.get(&query.epoch).copied().unwrap_or_default();
        Ok(Stand {
            epoch: query.epoch,
            at,
            sides,
        })
    }
}

fn write(stand: &Stand) -> Result<Cursor> {
    let text = serde_json::to_string(stand);
    text.map(Cursor::new)
        .map_err(|e| Error::permanent("a cursor cannot be written").because(e))
}

#[async_trait]
impl MetricSource for Tally {
    async fn open(&self, query: Query<'_>, now: Timestamp) -> Result<Cursor> {
        write(&self.stand(&query, now)?)
    }

    async fn read(&self, query: Query<'_>, cursor: &Cursor, now: Timestamp) -> Result<Reading> {
        let before: Stand = serde_json::from_str(cursor.as_str()).map_err(|e| {
            Error::permanent("the cursor is not one of this table's: open anew").because(e)
        })?;
        let stand = self.stand(&query, now)?;
        let gained = |now: Counts, before: Counts| {
            let (n, k) = (now.n.checked_sub(before.n)?, now.k.checked_sub(before.k)?);
            Some(Counts { n, k })
        };
        let candidate = gained(stand.sides.candidate, before.sides.candidate);
        let baseline = gained(stand.sides.baseline, before.sides.baseline);
        // The table is of this process: after a restart it has less than the cursor says.
        let (Some(candidate), Some(baseline), true) =
            (candidate, baseline, before.epoch == query.epoch)
        else {
            return Err(Error::permanent(
                "the cursor is of an earlier life, or another split: open anew",
            ));
        };
        if now <= before.at {
            return Err(Error::transient(
                "no time has passed since the cursor: read again later",
            ));
        }
        let gain = |name: &String| {
            (
                name.clone(),
                Increment::Binary {
                    candidate,
                    baseline,
                },
            )
        };
        let window = Window {
            epoch: query.epoch.get(),
            from: before.at.as_millis(),
            to: now.as_millis(),
            metrics: query.metrics.keys().map(gain).collect(),
        };
        // Replies are whole here: nobody waits for a first token.
        let heartbeat = Heartbeat {
            exposed: stand.sides.candidate.n,
            waiting: Duration::ZERO,
        };
        Ok(Reading {
            window,
            cursor: write(&stand)?,
            heartbeat: Some(heartbeat),
        })
    }
}
