//! What is learnt before the ramp: the baseline's noise from its history, and what users differ by. And how evidence is logged.

use super::look::Sight;
use super::{Controller, routers};
use crate::host::{Past, Query, Result};
use crate::journal::{Checkpoint, Seen};
use llm_gates::{ColdStart, Counts, Evidence};
use llm_rollout::{Epoch, Input, MetricDef};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Blocks of history, two hours of it, with which a quick start is a warm one.
const WARM: usize = 24;
/// Looks after which evidence is logged whole again: what a restart has to count anew.
const WHOLE_EVERY: u32 = 64;
/// How long history may take; then there is none.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a look's evidence is logged.
#[derive(Debug)]
pub(super) enum Saved {
    Whole(Box<Checkpoint>),
    Added(Seen),
}

type Answer = Result<Vec<Past>>;

#[derive(Debug, Default)]
pub(super) struct Learner {
    /// Looks since the evidence was logged whole; none where what is in memory is not what the log leads to.
    pub(super) since_whole: Option<u32>,
    /// History that is being read, and for which epoch.
    asked: Option<(Epoch, JoinHandle<Answer>)>,
}

impl Learner {
    pub(super) fn wants_whole(&self) -> bool {
        self.since_whole.is_none_or(|looks| looks >= WHOLE_EVERY)
    }

    /// What [`Self::since_whole`] is once this has been logged.
    pub(super) fn logged(&self, saved: Option<&Saved>) -> Option<u32> {
        match saved {
            None => self.since_whole,
            Some(Saved::Whole(_)) => Some(0),
            Some(Saved::Added(_)) => self.since_whole.map(|looks| looks.saturating_add(1)),
        }
    }

    /// The answer, at once where it is there at once; none while it is waited for.
    async fn answer(
        &mut self,
        epoch: Epoch,
        ask: impl FnOnce() -> Pin<Box<dyn Future<Output = Answer> + Send>>,
    ) -> Option<Answer> {
        match self.asked.take() {
            Some((of, asked)) if of == epoch && asked.is_finished() => {
                Some(asked.await.unwrap_or_else(|_| Ok(Vec::new())))
            }
            Some((of, asked)) if of == epoch => {
                self.asked = Some((of, asked));
                None
            }
            _ => {
                let mut asked = ask();
                let at_once = futures_util::future::poll_immediate(&mut asked).await;
                if at_once.is_none() {
                    self.asked = Some((epoch, tokio::spawn(asked)));
                }
                at_once
            }
        }
    }
}

/// Whether a metric's noise can be learnt: it counts requests of each arm.
fn has_noise(def: &MetricDef) -> bool {
    !def.is_mirrored() && !matches!(def, MetricDef::Label(_) | MetricDef::Unlabelled(_))
}

impl Controller {
    /// Windows of a confirmed epoch begin now, once history has been learnt where that is still possible.
    pub(super) async fn begin_epoch(&mut self, sight: &Sight, every: Duration) -> Result<()> {
        let now = self.now();
        let saved = self.ledger.checkpoint.as_ref();
        let evidence = saved.map(|c| c.evidence.clone()).unwrap_or_default();
        let Some(evidence) = self.learn_noise(sight, evidence).await else {
            // History is still being read.
            self.next_look = Some(now.after(Duration::from_millis(100)));
            return Ok(());
        };
        let source = Arc::clone(&self.parts.source);
        match source.open(sight.query(), now).await {
            Ok(cursor) => {
                self.reopened(Checkpoint {
                    evidence,
                    cursor,
                    epoch: sight.epoch,
                    ahead: Vec::new(),
                });
                self.next_look = Some(now.after(every));
            }
            // It is tried again with every turn.
            Err(error) => {
                self.next_look = Some(now.after(every));
                let reason = error.to_string();
                self.feed(Input::SourceFailed { reason }).await?;
            }
        }
        Ok(())
    }

    /// Evidence that no entry leads to: the next look logs it whole.
    pub(super) fn reopened(&mut self, checkpoint: Checkpoint) {
        self.ledger.checkpoint = Some(checkpoint);
        self.learner.since_whole = None;
    }

    /// With the baseline's history of every metric that has not been judged yet; none while it is being read.
    async fn learn_noise(&mut self, sight: &Sight, mut evidence: Evidence) -> Option<Evidence> {
        let rollout = self.ledger.rollout.as_ref()?;
        let careful = sight.gates.cold_start == ColdStart::Careful;
        let fresh = |name: &String, def: &MetricDef| has_noise(def) && !evidence.has_begun(name);
        let metrics = sight.metrics.iter().filter(|(n, d)| fresh(n, d));
        let metrics: BTreeMap<_, _> = metrics.map(|(n, d)| (n.clone(), d.clone())).collect();
        if metrics.is_empty() {
            return Some(evidence);
        }
        let (source, now, epoch) = (Arc::clone(&self.parts.source), self.now(), sight.epoch);
        let (candidate, baseline) = (rollout.candidate().clone(), rollout.baseline().clone());
        let of = metrics.clone();
        let ask = || {
            Box::pin(async move {
                let query = Query {
                    metrics: &of,
                    epoch,
                    candidate: &candidate,
                    baseline: &baseline,
                };
                let answer = tokio::time::timeout(PATIENCE, source.history(query, now)).await;
                answer.unwrap_or_else(|_| Ok(Vec::new()))
            }) as Pin<Box<dyn Future<Output = Answer> + Send>>
        };
        // A source that cannot tell has no history.
        let pasts = self.learner.answer(epoch, ask).await?.unwrap_or_default();
        for metric in metrics.keys() {
            let past = pasts.iter().find(|past| past.metric == *metric);
            let blocks = past.map_or(&[][..], |past| &past.blocks);
            // A little history is slow, and quick starts do without.
            if !careful && blocks.len() < WARM {
                continue;
            }
            for groups in &blocks[blocks.len().saturating_sub(Past::MOST)..] {
                // A block that cannot be teaches nothing.
                drop(evidence.learn(&sight.gates, metric, *groups));
            }
        }
        Some(evidence)
    }

    /// Before anybody is exposed: how much the users of later stages differ by themselves. False where nothing is counted ahead.
    pub(super) async fn learn_slices(&self, checkpoint: &mut Checkpoint) -> bool {
        let Some(rollout) = self.rollout() else {
            return false;
        };
        let (spec, split) = (rollout.plan().spec(), &rollout.state().split);
        if split.ahead.is_empty() {
            return false;
        }
        let counted = |name: &String, def: &MetricDef| {
            has_noise(def) && spec.gates.iter().any(|g| g.metric == *name)
        };
        let metrics = spec.metrics.iter().filter(|(name, def)| counted(name, def));
        let metrics = metrics.map(|(n, d)| (n.clone(), d.clone())).collect();
        let query = Query {
            metrics: &metrics,
            epoch: split.epoch,
            candidate: rollout.candidate(),
            baseline: rollout.baseline(),
        };
        let Ok(slices) = routers::within(self.parts.source.slices(query)).await else {
            return false;
        };
        let mut learnt = false;
        for slice in &slices {
            let Some(share) = split.ahead.get(slice.index) else {
                continue;
            };
            let mut before = checkpoint.ahead.iter();
            let before = before.find(|b| (&b.metric, b.index) == (&slice.metric, slice.index));
            // All counts of the epoch; a source that began anew begins at zero.
            let gained = |now: Counts, before: Counts| match (
                now.n.checked_sub(before.n),
                now.k.checked_sub(before.k),
            ) {
                (Some(n), Some(k)) if k <= n => Counts { n, k },
                _ => now,
            };
            let (candidate, baseline) = before.map_or((slice.candidate, slice.baseline), |b| {
                (
                    gained(slice.candidate, b.candidate),
                    gained(slice.baseline, b.baseline),
                )
            });
            let share = share.basis_points();
            learnt |= checkpoint
                .evidence
                .learn_slice(&slice.metric, share, candidate, baseline)
                .is_ok();
        }
        if learnt {
            checkpoint.ahead = slices;
        }
        learnt
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    /// A question that is answered when somebody sends the name of a metric.
    fn asks(
        hears: oneshot::Receiver<String>,
    ) -> impl FnOnce() -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        || {
            Box::pin(async {
                let metric = hears.await.unwrap();
                let blocks = Vec::new();
                Ok(vec![Past { metric, blocks }])
            })
        }
    }

    async fn heard(learner: &mut Learner, epoch: u64, of: oneshot::Receiver<String>) -> String {
        let answer = learner.answer(Epoch::new(epoch), asks(of)).await;
        answer.map_or_else(String::new, |past| past.unwrap().remove(0).metric)
    }

    #[tokio::test(start_paused = true)]
    async fn history_that_takes_long_is_asked_for_once_an_epoch() {
        let mut learner = Learner::default();
        let (first, of) = oneshot::channel();
        assert_eq!(heard(&mut learner, 1, of).await, "", "asked");
        let (unasked, of) = oneshot::channel();
        assert_eq!(heard(&mut learner, 1, of).await, "", "still being read");
        assert!(unasked.is_closed(), "nobody asks twice");
        first.send("first".to_owned()).unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(heard(&mut learner, 1, oneshot::channel().1).await, "first");
        let (late, of) = oneshot::channel();
        assert_eq!(heard(&mut learner, 1, of).await, "");
        late.send("late".to_owned()).unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let (second, of) = oneshot::channel();
        second.send("second".to_owned()).unwrap();
        let answer = heard(&mut learner, 2, of).await;
        assert_eq!(
            answer, "second",
            "what was asked for another epoch is not taken"
        );
    }

    #[test]
    fn evidence_is_logged_whole_now_and_then() {
        let mut learner = Learner::default();
        assert!(learner.wants_whole(), "after a restart");
        assert_eq!(learner.logged(None), None);
        learner.since_whole = Some(WHOLE_EVERY - 1);
        assert!(!learner.wants_whole());
        assert_eq!(learner.logged(None), Some(WHOLE_EVERY - 1));
        learner.since_whole = Some(WHOLE_EVERY);
        assert!(learner.wants_whole());
    }

    #[test]
    fn noise_is_that_of_requests_in_each_arm() {
        assert!(has_noise(&MetricDef::FirstTokenOver(PATIENCE)));
        assert!(!has_noise(&MetricDef::Label("rating".to_owned())));
        assert!(!has_noise(&MetricDef::Pair("judge".to_owned())));
    }
}
