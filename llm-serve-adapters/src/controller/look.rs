//! Looks at the evidence: read the source, judge, read the routers back, decide.

use super::learn::Saved;
use super::{Controller, is_back};
use crate::host::{Cursor, ErrorKind, Query, Result};
use crate::journal::{Checkpoint, Seen};
use llm_gates::{GatePlan, Judgement};
use llm_rollout::{Epoch, Heartbeat, Input, Look, MetricDef, Observed, Phase, Rollout};
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What a look in a stage is about.
#[derive(Debug)]
pub(super) struct Sight {
    pub(super) gates: GatePlan,
    pub(super) metrics: BTreeMap<String, MetricDef>,
    pub(super) epoch: Epoch,
    candidate: VersionId,
    baseline: VersionId,
    /// The candidate's, in basis points.
    share: u16,
}

impl Sight {
    /// None in a stage that no gate watches.
    fn of(rollout: &Rollout, stage: usize) -> Option<Self> {
        let gates = rollout.plan().gate_plan(stage)?;
        let metrics = rollout.plan().spec().metrics.iter();
        let metrics = metrics.filter(|(name, _)| gates.watches(name));
        let split = &rollout.state().split;
        Some(Self {
            metrics: metrics.map(|(n, d)| (n.clone(), d.clone())).collect(),
            gates,
            epoch: split.epoch,
            candidate: rollout.candidate().clone(),
            baseline: rollout.baseline().clone(),
            share: split.share.basis_points(),
        })
    }

    pub(super) fn query(&self) -> Query<'_> {
        Query {
            metrics: &self.metrics,
            epoch: self.epoch,
            candidate: &self.candidate,
            baseline: &self.baseline,
        }
    }
}

impl Controller {
    /// One look: read the source, judge, read the routers back, decide; evidence and decision in one append.
    pub(super) async fn look(&mut self) -> Result<()> {
        let now = self.now();
        let Some(rollout) = self.rollout() else {
            return Ok(());
        };
        let (Phase::Soaking { stage } | Phase::Held { stage }) = rollout.phase() else {
            self.next_look = None;
            return Ok(());
        };
        let epoch = rollout.state().split.epoch;
        let every = rollout.plan().spec().look_every;
        let Some(sight) = Sight::of(rollout, stage) else {
            return self.look_at_nothing(epoch, every).await;
        };
        let query = sight.query();
        let source = Arc::clone(&self.parts.source);

        let Some(mut checkpoint) = self.ledger.checkpoint.clone().filter(|c| c.epoch == epoch)
        else {
            // The epoch is confirmed and has no cursor yet: windows begin now.
            return self.begin_epoch(&sight, every).await;
        };
        if self.next_look.is_some_and(|due| now < due) {
            return Ok(());
        }
        self.next_look = Some(now.after(every));
        let reading = match source.read(query, &checkpoint.cursor, now).await {
            Ok(reading) => reading,
            Err(error) => {
                if error.kind() == ErrorKind::Permanent {
                    // An earlier life of the source: what lies between counts as nothing. The evidence stays.
                    if let Ok(cursor) = source.open(query, now).await {
                        self.reopened(Checkpoint {
                            cursor,
                            ..checkpoint
                        });
                        return Ok(());
                    }
                }
                return self
                    .feed(Input::SourceFailed {
                        reason: error.to_string(),
                    })
                    .await;
            }
        };
        checkpoint.evidence.expose(sight.share);
        let judgement = match checkpoint.evidence.observe(&sight.gates, &reading.window) {
            Ok(judgement) => judgement,
            Err(bad) => {
                return self
                    .feed(Input::SourceFailed {
                        reason: bad.to_string(),
                    })
                    .await;
            }
        };
        checkpoint.cursor = reading.cursor;
        let learnt = self.learn_slices(&mut checkpoint).await;
        let heartbeat = reading
            .heartbeat
            .map(|beat| self.in_all(&sight.candidate, beat));
        let saved = if learnt || self.learner.wants_whole() {
            Saved::Whole(Box::new(checkpoint))
        } else {
            Saved::Added(Seen {
                window: reading.window,
                cursor: checkpoint.cursor,
            })
        };
        self.judged(judgement, heartbeat, saved).await
    }

    /// While an append is in doubt: harm still sends users back. What is seen is not kept; the log decides again when it is back.
    pub(super) async fn look_for_harm(&mut self) -> Result<()> {
        let now = self.now();
        let told = self.doubt.as_ref().is_some_and(|d| d.left.is_some());
        if told || !self.may_go_back_unlogged() || self.next_look.is_some_and(|due| now < due) {
            return Ok(());
        }
        let at = self.rollout().and_then(|r| {
            let stage = r.phase().stage()?;
            Some((Sight::of(r, stage)?, r.plan().spec().look_every))
        });
        let (Some((sight, every)), Some(saved)) = (at, &self.ledger.checkpoint) else {
            return Ok(());
        };
        self.next_look = Some(now.after(every));
        let mut evidence = saved.evidence.clone();
        let source = Arc::clone(&self.parts.source);
        let Ok(reading) = source.read(sight.query(), &saved.cursor, now).await else {
            return Ok(());
        };
        evidence.expose(sight.share);
        let Ok(judgement) = evidence.observe(&sight.gates, &reading.window) else {
            return Ok(());
        };
        let look = Look {
            judgement,
            heartbeat: reading.heartbeat,
            fence: self.fence,
            routers: Observed::default(),
        };
        match self.decide(Input::Judged(Box::new(look))) {
            Ok(Some(step)) if is_back(&step) => self.take(step, None).await.map(drop),
            _ => Ok(()),
        }
    }

    /// A look in a stage that no gate watches: time passes, and the routers are read back.
    async fn look_at_nothing(&mut self, epoch: Epoch, every: Duration) -> Result<()> {
        let now = self.now();
        let saved = self.ledger.checkpoint.clone();
        let begun = saved
            .as_ref()
            .filter(|c| c.epoch == epoch)
            .and_then(|c| c.cursor.as_str().parse::<u64>().ok());
        let cursor = Cursor::new(now.as_millis().to_string());
        match (begun, saved) {
            (Some(_), _) if self.next_look.is_some_and(|due| now < due) => return Ok(()),
            (Some(from), Some(saved)) => {
                let mut checkpoint = Checkpoint { cursor, ..saved };
                self.learn_slices(&mut checkpoint).await;
                let judgement = Judgement::ungated(epoch.get(), from, now.as_millis());
                let saved = Saved::Whole(Box::new(checkpoint));
                self.judged(judgement, None, saved).await?;
            }
            (_, saved) => self.reopened(Checkpoint {
                evidence: saved.map(|c| c.evidence).unwrap_or_default(),
                cursor,
                epoch,
                ahead: Vec::new(),
            }),
        }
        self.next_look = Some(now.after(every));
        Ok(())
    }

    async fn judged(
        &mut self,
        judgement: Judgement,
        heartbeat: Option<Heartbeat>,
        saved: Saved,
    ) -> Result<()> {
        // Read back after the judgement was made: a verdict counts only if every router is still what it was.
        let routers = self.routers_round().await?;
        let look = Look {
            judgement,
            heartbeat,
            fence: self.fence,
            routers,
        };
        if let Ok(Some(step)) = self.decide(Input::Judged(Box::new(look))) {
            self.take(step, Some(saved)).await?;
        }
        Ok(())
    }

    /// A heartbeat that counts over all processes that have run the rollout.
    fn in_all(&mut self, candidate: &VersionId, beat: Heartbeat) -> Heartbeat {
        let before = self.rollout().map_or(0, |r| r.state().exposed);
        let last = self
            .heard
            .insert(candidate.clone(), beat.exposed)
            .unwrap_or(0);
        Heartbeat {
            exposed: before + beat.exposed.saturating_sub(last),
            ..beat
        }
    }
}
