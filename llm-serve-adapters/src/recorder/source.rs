//! The recorder as a metric source: disjoint increments since a cursor.

use super::Recorder;
use super::cell::{CLASSES, FLAGS, Totals};
use super::ticket::OutcomeClass;
use crate::host::{Cursor, Error, MetricSource, Past, Query, Reading, Result};
use crate::router::{Role, Slice, VersionSlot};
use async_trait::async_trait;
use llm_gates::{Counts, Increment, Window};
use llm_rollout::{Heartbeat, MetricDef, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where a read stood: cumulative counts, in this life of the recorder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stand {
    boot: u64,
    epoch: u64,
    at: Timestamp,
    metrics: BTreeMap<String, Arms>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Arms {
    candidate: Counts,
    baseline: Counts,
    control: Counts,
}

/// What one metric has counted of one slice of users, all of them served by the baseline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data: hosts write metric sources against it"
)]
pub struct SliceCounts {
    /// The metric's name.
    pub metric: String,
    /// Which of [`llm_rollout::Split::ahead`]: the share whose users these are.
    pub index: usize,
    /// Those who will get the candidate at that share.
    pub candidate: Counts,
    /// As many from the other end of the hash range, whence control arms come.
    pub baseline: Counts,
}

impl Recorder {
    fn stand(&self, query: &Query<'_>, now: Timestamp) -> Result<(Stand, bool)> {
        let totals = self
            .registry
            .totals(Some(query.epoch.get()))
            .map_err(|e| Error::transient(e.to_string()).because(e))?;
        let controlled = totals.values().any(|(about, _)| about.controlled());
        let of = |role| {
            let kinds = totals.iter();
            let kinds = kinds.filter(|((_, kind), _)| kind.randomised() && kind.role() == role);
            let mut sum = Totals::default();
            kinds.for_each(|(_, (_, totals))| sum.add(totals));
            sum
        };
        let [baseline, candidate, control] = Role::ALL.map(of);
        let mut metrics = BTreeMap::new();
        for (name, def) in query.metrics {
            let arms = Arms {
                candidate: self.count(name, def, &candidate)?,
                baseline: self.count(name, def, &baseline)?,
                control: self.count(name, def, &control)?,
            };
            metrics.insert(name.clone(), arms);
        }
        let stand = Stand {
            boot: self.boot,
            epoch: query.epoch.get(),
            at: now,
            metrics,
        };
        Ok((stand, controlled))
    }

    /// Requests that have ended, and those among them that the metric is about.
    pub(super) fn count(&self, name: &str, def: &MetricDef, totals: &Totals) -> Result<Counts> {
        let class = |class: OutcomeClass| totals.get(CLASSES + class.index());
        let k = match def {
            MetricDef::Fault {} => {
                let faults = OutcomeClass::ALL
                    .into_iter()
                    .filter(|c| c.is_fault())
                    .map(class)
                    .sum::<u64>();
                faults
                    + if self.overload_is_fault {
                        class(OutcomeClass::Overload)
                    } else {
                        0
                    }
            }
            MetricDef::FirstTokenOver(limit) => totals.first_token_over(*limit),
            MetricDef::DurationOver(limit) => totals.duration_over(*limit),
            MetricDef::Flag(flag) => {
                let index = self.registry.flags.iter().position(|known| known == flag).ok_or_else(|| {
                    Error::permanent(format!(
                        "metric {name:?} counts the flag {flag:?}, which the recorder was not built with; it has {:?}",
                        self.registry.flags
                    ))
                })?;
                totals.get(FLAGS + index)
            }
            other => {
                return Err(Error::permanent(format!(
                    "metric {name:?} is of a kind that this recorder does not count: {other:?}"
                )));
            }
        };
        Ok(Counts {
            n: totals.finished(),
            k,
        })
    }

    /// What the plan's binary metrics have counted of each slice of users while the baseline serves everybody: what
    /// [`llm_gates::Evidence::learn_slice`] is told before the ramp. The slice of a share is everybody who will get the
    /// candidate at that share; it is compared with those who will be its control arm, where slices of either side were
    /// counted.
    ///
    /// # Errors
    /// As [`MetricSource::open`].
    pub fn slices(&self, query: &Query<'_>) -> Result<Vec<SliceCounts>> {
        let totals = self
            .registry
            .totals(Some(query.epoch.get()))
            .map_err(|e| Error::transient(e.to_string()).because(e))?;
        let mut slices = Vec::new();
        let within = |index: usize, control: bool| {
            let kinds = totals
                .iter()
                .filter_map(|((_, kind), (_, totals))| Some((kind.slice()?, totals)));
            let kinds =
                kinds.filter(|(slice, _)| slice.is_control() == control && slice.index() <= index);
            let mut sum = Totals::default();
            kinds.for_each(|(_, totals)| sum.add(totals));
            sum
        };
        let known = totals.keys().filter_map(|(_, kind)| kind.slice());
        let Some(last) = known.map(Slice::index).max() else {
            return Ok(slices);
        };
        for index in 0..=last {
            let (candidate, control) = (within(index, false), within(index, true));
            for (name, def) in query.metrics {
                slices.push(SliceCounts {
                    metric: name.clone(),
                    index,
                    candidate: self.count(name, def, &candidate)?,
                    baseline: self.count(name, def, &control)?,
                });
            }
        }
        Ok(slices)
    }

    fn heartbeat(&self, query: &Query<'_>, now: Timestamp) -> Heartbeat {
        let Some(slot) = VersionSlot::find(query.candidate) else {
            return Heartbeat::default();
        };
        let Ok((_, _, exposed)) = self.registry.load(slot) else {
            // It comes again with the next reading.
            return Heartbeat::default();
        };
        Heartbeat {
            exposed,
            waiting: self.registry.waiting.oldest(slot, now),
        }
    }
}

fn write(stand: &Stand) -> Result<Cursor> {
    serde_json::to_string(stand)
        .map(Cursor::new)
        .map_err(|e| Error::permanent("a cursor cannot be written").because(e))
}

fn gained(name: &str, now: Counts, before: Counts) -> Result<Counts> {
    match (now.n.checked_sub(before.n), now.k.checked_sub(before.k)) {
        (Some(n), Some(k)) if k <= n => Ok(Counts { n, k }),
        _ => Err(Error::permanent(format!(
            "the counts of metric {name:?} do not go on from the cursor's (its epoch is over and has been forgotten): open anew"
        ))),
    }
}

#[async_trait]
impl MetricSource for Recorder {
    async fn slices(&self, query: Query<'_>) -> Result<Vec<SliceCounts>> {
        Self::slices(self, &query)
    }

    async fn history(&self, query: Query<'_>, now: Timestamp) -> Result<Vec<Past>> {
        self.note(now);
        self.past(&query)
    }

    async fn open(&self, query: Query<'_>, now: Timestamp) -> Result<Cursor> {
        write(&self.stand(&query, now)?.0)
    }

    async fn read(&self, query: Query<'_>, cursor: &Cursor, now: Timestamp) -> Result<Reading> {
        let before: Stand = serde_json::from_str(cursor.as_str()).map_err(|e| {
            Error::permanent("the cursor is not one of this recorder's: open anew").because(e)
        })?;
        if before.boot != self.boot {
            return Err(Error::permanent(
                "the cursor is of an earlier life of the recorder: open anew",
            ));
        }
        if before.epoch != query.epoch.get() {
            return Err(Error::permanent(format!(
                "the cursor is of epoch {}, not {}: open anew",
                before.epoch, query.epoch
            )));
        }
        if now <= before.at {
            return Err(Error::transient(
                "no time has passed since the cursor: read again later",
            ));
        }
        let (stand, controlled) = self.stand(&query, now)?;
        let mut metrics = BTreeMap::new();
        for (name, arms) in &stand.metrics {
            let Some(old) = before.metrics.get(name) else {
                return Err(Error::permanent(format!(
                    "the cursor does not know metric {name:?}: open anew"
                )));
            };
            let candidate = gained(name, arms.candidate, old.candidate)?;
            let baseline = if controlled {
                gained(name, arms.control, old.control)?
            } else {
                gained(name, arms.baseline, old.baseline)?
            };
            metrics.insert(
                name.clone(),
                Increment::Binary {
                    candidate,
                    baseline,
                },
            );
        }
        let window = Window {
            epoch: before.epoch,
            from: before.at.as_millis(),
            to: now.as_millis(),
            metrics,
        };
        let heartbeat = Some(self.heartbeat(&query, now));
        Ok(Reading {
            window,
            cursor: write(&stand)?,
            heartbeat,
        })
    }
}
