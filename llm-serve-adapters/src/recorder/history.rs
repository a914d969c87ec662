//! What each version has counted in past blocks of five minutes: the noise of an arm, before there is a candidate.

use super::Recorder;
use super::cell::Totals;
use super::shard::Kind;
use crate::host::{Past, Query, Result};
use crate::router::VersionSlot;
use llm_gates::Counts;
use llm_rollout::Timestamp;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Blocks by version, the newest last: at most three days of one version. A block takes a kilobyte, as a rule; 18 at the most.
#[derive(Default)]
pub(super) struct Ring(Mutex<Blocks>);

/// What has been counted, by epoch and kind.
type Counted = BTreeMap<(u64, Kind), Totals>;

/// The counts of one version in one block, those that are not 0.
type Block = (VersionSlot, Box<[(u16, u32)]>);

#[derive(Default)]
struct Blocks {
    /// Number of the block under way, and what had been counted when it began.
    open: Option<(u64, Counted)>,
    closed: VecDeque<Block>,
}

impl Recorder {
    /// Time passes: what was counted in a block that is over is kept. To be called more often than once a block (the controller does);
    /// a block in which it was not called counts with the next one.
    pub(crate) fn note(&self, now: Timestamp) {
        let length = u64::try_from(Past::BLOCK.as_millis()).unwrap_or(u64::MAX);
        let number = now.as_millis() / length;
        let mut blocks = self.past.0.lock().unwrap_or_else(PoisonError::into_inner);
        if blocks
            .open
            .as_ref()
            .is_some_and(|(open, _)| *open >= number)
        {
            return;
        }
        // It comes again with the next note.
        let Ok(totals) = self.registry.totals(None) else {
            return;
        };
        let mut gains: BTreeMap<VersionSlot, Totals> = BTreeMap::new();
        if let Some((_, before)) = &blocks.open {
            for ((epoch, kind), (about, totals)) in &totals {
                if kind.randomised() {
                    let gain = gains.entry(about.slot()).or_default();
                    gain.gain(totals, before.get(&(*epoch, *kind)));
                }
            }
        }
        for (slot, gain) in gains.iter().filter(|(_, gain)| gain.finished() > 0) {
            if blocks.closed.len() >= Past::MOST {
                blocks.closed.pop_front();
            }
            blocks.closed.push_back((*slot, gain.sparse()));
        }
        let standing = totals.into_iter().map(|(key, (_, totals))| (key, totals));
        blocks.open = Some((number, standing.collect()));
    }

    /// What the baseline has counted in past blocks. Its replicas are not told apart: halves of its users share them, and would look
    /// quiet however noisy they are.
    pub(super) fn past(&self, query: &Query<'_>) -> Result<Vec<Past>> {
        let Some(slot) = VersionSlot::find(query.baseline) else {
            return Ok(Vec::new());
        };
        let blocks = self.past.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pasts: Vec<_> = query
            .metrics
            .keys()
            .map(|m| (m.clone(), Vec::new()))
            .collect();
        for (_, sparse) in blocks.closed.iter().filter(|(of, _)| *of == slot) {
            let totals = Totals::dense(sparse);
            for ((name, def), (_, blocks)) in query.metrics.iter().zip(&mut pasts) {
                blocks.push([self.count(name, def, &totals)?, Counts::default()]);
            }
        }
        let past = |(metric, blocks)| Past { metric, blocks };
        Ok(pasts.into_iter().map(past).collect())
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::OutcomeClass;
    use crate::router::{Decision, Role};
    use llm_rollout::{Epoch, MetricDef};
    use llm_version_core::VersionId;

    fn version(n: u8) -> VersionId {
        let digest = format!("{n:02x}").repeat(32);
        format!("history/v{n}.0.0-{digest}").parse().unwrap()
    }

    fn past(recorder: &Recorder, baseline: u8) -> Vec<[Counts; 2]> {
        let metrics = BTreeMap::from([("faults".to_owned(), MetricDef::Fault {})]);
        let (candidate, baseline) = (version(9), version(baseline));
        let query = Query {
            metrics: &metrics,
            epoch: Epoch::new(1),
            candidate: &candidate,
            baseline: &baseline,
        };
        let past = recorder.past(&query).unwrap().pop();
        past.map(|past| past.blocks).unwrap_or_default()
    }

    fn at(minute: u64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + 60_000 * minute)
    }

    fn serve(recorder: &Recorder, decision: Decision, requests: u64, faults: u64) {
        for n in 0..requests {
            let class = if n < faults {
                OutcomeClass::Timeout
            } else {
                OutcomeClass::Ok
            };
            recorder.begin(decision, at(0)).finish(class, at(0));
        }
    }

    #[test]
    fn each_version_has_its_blocks_and_what_chance_did_not_decide_is_left_out() {
        let recorder = Recorder::new([""; 0]).unwrap();
        let [one, two] = [1, 2].map(|n| VersionSlot::intern(&version(n)).unwrap());
        let of = |slot, role, epoch| Decision::new(slot, role, epoch, false);
        serve(&recorder, of(one, Role::Baseline, 1), 50, 9);
        recorder.note(at(1)); // Nobody knows since when.
        serve(&recorder, of(one, Role::Baseline, 1), 10, 1);
        recorder.note(at(4));
        serve(&recorder, of(one, Role::Baseline, 1), 10, 2);
        let pinned = of(one, Role::Baseline, 1).evidence_if(false);
        serve(&recorder, pinned, 10, 10);
        recorder.note(at(5));
        // A new epoch in the middle of a block; the other version is the candidate.
        serve(&recorder, of(one, Role::Control, 2), 7, 0);
        serve(&recorder, of(one, Role::Baseline, 1), 3, 1);
        serve(&recorder, of(two, Role::Candidate, 2), 5, 4);
        recorder.note(at(12));
        recorder.note(at(20)); // Nothing came.
        serve(&recorder, of(two, Role::Baseline, 3), 2, 0);
        recorder.note(at(21));
        let alone = |n, k| [Counts::new(n, k), Counts::default()];
        assert_eq!(past(&recorder, 1), [alone(20, 3), alone(10, 1)]);
        assert_eq!(past(&recorder, 2), [alone(5, 4)]);
        assert!(past(&recorder, 3).is_empty());
        recorder.note(at(26));
        assert_eq!(past(&recorder, 2), [alone(5, 4), alone(2, 0)]);
    }

    #[test]
    fn three_days_are_kept() {
        let recorder = Recorder::new([""; 0]).unwrap();
        let slot = VersionSlot::intern(&version(1)).unwrap();
        for block in 0..Past::MOST as u64 + 10 {
            recorder.note(at(5 * block));
            let decision = Decision::new(slot, Role::Baseline, 1, false);
            serve(&recorder, decision, 1 + block % 2, 0);
        }
        let blocks = past(&recorder, 1);
        assert_eq!(blocks.len(), Past::MOST);
        assert_eq!(blocks[Past::MOST - 1][0].n, 1 + (Past::MOST as u64 + 8) % 2);
    }
}
