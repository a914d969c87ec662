//! Looking after the version in production, as the plan that brought it there says.

use super::Controller;
use crate::endpoint::Return;
use crate::host::{Error, Result};
use crate::journal::Event;
use llm_rollout::{
    Alarm, Input, Phase, Plan, Probed, Response, RolloutId, Timestamp, Watch, WatchAlarm,
};
use llm_version_core::VersionId;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::task::JoinSet;

/// The watch over one version, and the probes that run.
#[derive(Debug, Default)]
pub(super) struct Watching {
    over: Option<(RolloutId, Watch)>,
    running: JoinSet<(RolloutId, String, Probed)>,
    answers: VecDeque<(RolloutId, String, Probed)>,
}

impl Watching {
    /// Waits until a probe has answered; for ever if none runs.
    pub(super) async fn answered(&mut self) {
        match self.running.join_next().await {
            Some(Ok(answer)) => self.answers.push_back(answer),
            // A probe that panicked: what it looked at is watched anew.
            Some(Err(_)) => self.over = None,
            None => std::future::pending().await,
        }
    }

    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.over.as_ref()?.1.next_due()
    }
}

impl Controller {
    /// Begins the probes that are due, and acts on what they have answered.
    pub(super) async fn look_after(&mut self) -> Result<()> {
        let now = self.now();
        let Some((rollout, version, plan)) = self.watched() else {
            self.watch.over = None;
            return Ok(());
        };
        let watched = self
            .watch
            .over
            .as_ref()
            .is_some_and(|(id, _)| *id == rollout);
        if !watched {
            let watch = Watch::new(plan.spec().watch.iter().cloned(), now);
            self.watch.over = Some((rollout.clone(), watch));
        }
        let mut alarms = Vec::new();
        if let Some((id, watch)) = &mut self.watch.over {
            while let Some((about, probe, answer)) = self.watch.answers.pop_front() {
                if about == *id {
                    alarms.extend(watch.answered(&probe, answer, now));
                }
            }
            let due: Vec<_> = watch.due(now).map(str::to_owned).collect();
            for name in due {
                watch.begun(&name);
                let every = plan.spec().watch.iter().find(|w| w.probe == name);
                let limit = every.map(|w| w.every).unwrap_or_default();
                let probe = self.parts.probes.iter().find(|p| p.name() == name);
                let (probe, id, version) = (probe.map(Arc::clone), id.clone(), version.clone());
                self.watch.running.spawn(async move {
                    let found = match probe {
                        Some(probe) => {
                            let looking = tokio::time::timeout(limit, probe.probe(&version));
                            looking
                                .await
                                .unwrap_or_else(|_| Err(Error::transient("no answer in time")))
                        }
                        None => Err(Error::permanent("the endpoint has no probe of that name")),
                    };
                    let answer = found.unwrap_or_else(|e| Probed::Unanswered(e.to_string()));
                    (id, name, answer)
                });
            }
        }
        for alarm in alarms {
            self.alarmed(rollout.clone(), alarm).await?;
        }
        Ok(())
    }

    /// What is watched: a promoted version while it bakes, and for as long as it stays in production.
    fn watched(&self) -> Option<(RolloutId, VersionId, Plan)> {
        if let Some(rollout) = self.rollout().filter(|r| r.phase() == Phase::Baking) {
            let plan = rollout.plan().clone();
            return Some((rollout.id().clone(), rollout.candidate().clone(), plan));
        }
        let watched = self.ledger.watched.as_ref()?;
        let still = self.ledger.production.as_ref() == Some(&watched.version);
        let of = || {
            (
                watched.rollout.clone(),
                watched.version.clone(),
                watched.plan.clone(),
            )
        };
        still.then(of)
    }

    async fn alarmed(&mut self, rollout: RolloutId, alarm: WatchAlarm) -> Result<()> {
        if self.rollout().is_some_and(|r| r.phase() == Phase::Baking) {
            let (name, detail) = (alarm.probe, alarm.detail);
            return self.feed(Input::Alarm(Alarm { name, detail })).await;
        }
        let WatchAlarm {
            probe,
            mut response,
            mut detail,
        } = alarm;
        if response == Response::Rollback {
            let why = format!("{probe}: {detail}");
            match self.go_to(Return::last(), "watch".to_owned(), why).await? {
                Ok(back) => detail = format!("{detail}; going back by rollout {back}"),
                Err(error) => {
                    response = Response::Hold;
                    detail = format!("{detail}; cannot go back: {error}");
                }
            }
        }
        let at = self.now();
        self.log(Event::Alarmed {
            probe,
            rollout,
            response,
            detail,
            at,
        })
        .await?;
        Ok(())
    }
}
