//! Whose turn it is: submitting, waiting, making way, and what is said about the endpoint as a whole.

use super::{Administer, Controller, What, routers};
use crate::endpoint::{AdministerError, CommandError, Return, ReturnError, SubmitError, Supersede};
use crate::host::{Error, ErrorKind, Result};
use crate::journal::{Event, QUEUE, Queued};
use llm_rollout::{
    Cause, Command, Input, Plan, Rollout, RolloutId, RouterId, Said, Timestamp, Verb, presets,
};
use llm_version_core::{Obstacle, Safety, Transition, VersionId, transition};
use std::time::Duration;

/// A rollout that somebody wants.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) id: RolloutId,
    pub(crate) candidate: VersionId,
    pub(crate) plan: Plan,
    pub(crate) supersede: Supersede,
    /// Who wants it, and why.
    pub(crate) said: Option<(String, String)>,
}

type Submitted = std::result::Result<(), SubmitError>;

impl Controller {
    pub(super) async fn submit(&mut self, wanted: Wanted) -> Result<Submitted> {
        if self.doubt.is_some() && !self.resolve_doubt().await? {
            return Ok(Err(SubmitError::StoreUnavailable));
        }
        let Wanted { id, candidate, .. } = &wanted;
        if let Some(known) = self.candidate_of(id) {
            return Ok(if known == candidate {
                Ok(())
            } else {
                Err(SubmitError::OtherCandidate(id.clone()))
            });
        }
        if let Some(pre_flight) = &wanted.plan.spec().pre_flight {
            let Some(evaluator) = &self.parts.evaluator else {
                return Ok(Err(SubmitError::NoEvaluator));
            };
            if let Some(known) = evaluator.measures() {
                let mut gates = pre_flight.gates.gates.iter();
                if let Some(gate) = gates.find(|gate| !known.contains(&gate.metric)) {
                    let metric = gate.metric.clone();
                    return Ok(Err(SubmitError::NotMeasured { metric, known }));
                }
            }
        }
        let watches = &wanted.plan.spec().watch;
        let missing = watches
            .iter()
            .find(|w| !self.parts.probes.iter().any(|p| p.name() == w.probe));
        if let Some(watch) = missing {
            return Ok(Err(SubmitError::NoProbe(watch.probe.clone())));
        }
        if let Some(router) = self.parts.routers.iter().find(|r| !routers::is_safe(&***r)) {
            return Ok(Err(SubmitError::UnsafeRouter(router.id().clone())));
        }
        if let Err(refused) = self.has_way_back(candidate).await {
            return Ok(Err(refused));
        }
        let busy = self.rollout().filter(|r| !r.is_settled());
        let ahead = busy
            .map(Rollout::id)
            .or(self.ledger.queue.first().map(|q| &q.id));
        let why_not = match (ahead, self.ledger.bars.first_key_value()) {
            (Some(ahead), _) => SubmitError::Busy(ahead.clone()),
            (None, Some((name, said))) => SubmitError::Barred(name.clone(), said.why.clone()),
            (None, None) => return self.begin(wanted).await,
        };
        match wanted.supersede {
            Supersede::Reject => Ok(Err(why_not)),
            Supersede::Queue => self.enqueue(wanted).await,
            Supersede::Replace => self.replace(wanted).await,
        }
    }

    /// The candidate of a rollout that this endpoint knows, however it stands.
    fn candidate_of(&self, id: &RolloutId) -> Option<&VersionId> {
        let now = self.rollout().filter(|r| r.id() == id);
        let queued = || self.ledger.queue.iter().find(|q| q.id == *id);
        now.map(Rollout::candidate)
            .or_else(|| queued().map(|q| &q.candidate))
            .or_else(|| self.ledger.ended.get(id).map(|end| &end.candidate))
    }

    /// Begins the rollout whose turn it is, or asks the one in progress to make way for it.
    pub(super) async fn next_in_line(&mut self) -> Result<()> {
        let Some(next) = self.ledger.queue.first() else {
            return Ok(());
        };
        if let Some(rollout) = self.rollout().filter(|r| !r.is_settled()) {
            // One that ends or goes back already refuses it.
            if !next.replaces || rollout.state().superseded_by.is_some() {
                return Ok(());
            }
            let command = Command {
                verb: Verb::Supersede {
                    by: next.id.clone(),
                },
                by: next.id.to_string(),
                why: "a newer rollout replaces this one".to_owned(),
            };
            return self.feed(Input::Operator(command)).await;
        }
        if !self.ledger.bars.is_empty() {
            return Ok(());
        }
        let next = next.clone();
        let wanted = Wanted {
            id: next.id,
            candidate: next.candidate,
            plan: next.plan,
            supersede: Supersede::Reject,
            said: next.said.map(|said| (said.by, said.why)),
        };
        // What could not be logged is still queued.
        self.begin(wanted).await.map(drop)
    }

    async fn begin(&mut self, wanted: Wanted) -> Result<Submitted> {
        let Some(production) = self.ledger.production.clone() else {
            return Ok(Err(SubmitError::StoreUnavailable));
        };
        let Wanted {
            id,
            candidate,
            plan,
            said,
            ..
        } = wanted;
        let salt = xxhash_rust::xxh3::xxh3_64(format!("{}/{id}", self.parts.endpoint).as_bytes());
        let (epoch, now) = (self.ledger.epoch, self.now());
        let rollout = Rollout::new(id, production, candidate, plan, salt, epoch, now);
        let logged = self
            .log(Event::Submitted {
                rollout: Box::new(rollout),
                said: said.map(|(by, why)| Said { by, why, at: now }),
            })
            .await?;
        if logged {
            self.next_look = None;
        }
        Ok(answered(logged))
    }

    async fn enqueue(&mut self, wanted: Wanted) -> Result<Submitted> {
        if self.ledger.queue.len() >= QUEUE {
            return Ok(Err(SubmitError::QueueFull));
        }
        let at = self.now();
        let queued = Queued {
            id: wanted.id,
            candidate: wanted.candidate,
            plan: wanted.plan,
            replaces: wanted.supersede == Supersede::Replace,
            said: wanted.said.map(|(by, why)| Said { by, why, at }),
            at,
        };
        Ok(answered(self.log(Event::Queued(Box::new(queued))).await?))
    }

    /// Takes the place of everybody who waits and of who is in progress.
    async fn replace(&mut self, wanted: Wanted) -> Result<Submitted> {
        let by = wanted.id.clone();
        while let Some(waiting) = self.ledger.queue.first() {
            let cause = Cause::Superseded { by: by.clone() };
            let id = waiting.id.clone();
            if !self.withdraw(&id, cause).await? {
                return Ok(Err(SubmitError::StoreUnavailable));
            }
        }
        self.enqueue(wanted).await
    }

    /// Back to a version of the past, if it is in the window and the interface contracts allow.
    pub(super) async fn go_to(
        &mut self,
        way: Return,
        by: String,
        why: String,
    ) -> Result<std::result::Result<RolloutId, ReturnError>> {
        let ledger = &self.ledger;
        let past = ledger.history.iter().rev().take(self.parts.window);
        let window: Vec<_> = past.cloned().collect();
        let to = match &way.to {
            Some(to) => window.iter().find(|v| *v == to),
            None => window.first(),
        };
        let Some(to) = to.cloned() else {
            let to = way.to;
            return Ok(Err(ReturnError::OutsideWindow { to, window }));
        };
        if let Err(unsafe_) = self.is_safe(&to, &way).await {
            return Ok(Err(unsafe_));
        }
        let nth = self.ledger.ended.len() + self.ledger.queue.len() + 1;
        let id = format!("return-{nth}-to-{}", to.version());
        let id = match RolloutId::new(id) {
            Ok(id) => id,
            Err(error) => return Ok(Err(Error::permanent(error.to_string()).into())),
        };
        let plan = match presets::instant(Duration::ZERO) {
            Ok(plan) => plan,
            Err(error) => return Ok(Err(Error::permanent(error.to_string()).into())),
        };
        let wanted = Wanted {
            id: id.clone(),
            candidate: to,
            plan,
            supersede: Supersede::Replace,
            said: Some((by, why)),
        };
        let submitted = self.submit(wanted).await?;
        Ok(submitted.map(|()| id).map_err(Into::into))
    }

    async fn is_safe(&self, to: &VersionId, way: &Return) -> std::result::Result<(), ReturnError> {
        let Some(moved) = self.moved(to).await? else {
            return Ok(());
        };
        let safety = moved.forward;
        let safe = match &safety {
            Safety::Safe => true,
            Safety::NeedsAction(_) => way.steps_taken,
            Safety::Forbidden(_) => false,
        };
        if safe {
            return Ok(());
        }
        let to = to.clone();
        Err(ReturnError::NotSafe { to, safety })
    }

    /// What the contracts say of going from the version in production to this one, and back; none without manifests.
    async fn moved(&self, to: &VersionId) -> std::result::Result<Option<Transition>, ReturnError> {
        let (Some(manifests), Some(from)) = (&self.parts.manifests, &self.ledger.production) else {
            return Ok(None);
        };
        let known = async |version: &VersionId| {
            let manifest = routers::within(manifests.manifest(version)).await?;
            manifest.ok_or_else(|| ReturnError::NoManifest(version.clone()))
        };
        let around = routers::within(manifests.surroundings()).await?;
        let (from, to) = (known(from).await?, known(to).await?);
        Ok(Some(transition(&from, &to, &around)))
    }

    /// A rollout that cannot come back is not a rollout.
    async fn has_way_back(&self, candidate: &VersionId) -> Submitted {
        match self.moved(candidate).await {
            Ok(Some(Transition { forward, back, .. }))
                if matches!(forward, Safety::Forbidden(_)) || is_closed(&back) =>
            {
                Err(SubmitError::NoWayBack {
                    candidate: candidate.clone(),
                    there: Box::new(forward),
                    back: Box::new(back),
                })
            }
            Ok(_) => Ok(()),
            Err(error) => Err(SubmitError::Manifests(error.to_string())),
        }
    }

    async fn withdraw(&mut self, id: &RolloutId, cause: Cause) -> Result<bool> {
        let (rollout, at) = (id.clone(), self.now());
        self.log(Event::Withdrawn { rollout, cause, at }).await
    }

    /// A command about a rollout that waits for its turn: it can only be called off.
    pub(super) async fn withdraw_on(
        &mut self,
        id: &RolloutId,
        command: &Command,
    ) -> Result<std::result::Result<(), CommandError>> {
        if !matches!(command.verb, Verb::Abort | Verb::AbortNow) {
            return Ok(Err(CommandError::Queued(id.clone())));
        }
        let logged = self.withdraw(id, command.into()).await?;
        Ok(if logged {
            Ok(())
        } else {
            Err(CommandError::StoreUnavailable)
        })
    }

    pub(super) async fn administer(
        &mut self,
        order: Administer,
    ) -> Result<std::result::Result<(), AdministerError>> {
        let said = Said {
            by: order.by,
            why: order.why,
            at: self.now(),
        };
        let event = match order.what {
            What::Bar(name) => Event::Barred { name, said },
            What::Unbar(name) if self.ledger.bars.contains_key(&name) => {
                Event::Unbarred { name, said }
            }
            What::Unbar(name) => return Ok(Err(AdministerError::NoSuchBar(name))),
            What::RemoveRouter(router) => {
                if let Some(refused) = self.needs_router(&router) {
                    return Ok(Err(refused));
                }
                Event::RouterRemoved { router, said }
            }
            What::RestoreRouter(router) if self.ledger.removed.contains_key(&router) => {
                Event::RouterRestored { router, said }
            }
            What::RestoreRouter(router) => return Ok(Err(AdministerError::NoSuchRouter(router))),
        };
        let logged = self.log(event).await?;
        self.next_round = self.now();
        Ok(if logged {
            Ok(())
        } else {
            Err(AdministerError::StoreUnavailable)
        })
    }

    /// Why a router cannot be left out: its lease must certainly have run out.
    fn needs_router(&self, router: &RouterId) -> Option<AdministerError> {
        let known = self.parts.routers.iter().any(|r| r.id() == router);
        if !known || self.ledger.removed.contains_key(router) {
            return Some(AdministerError::NoSuchRouter(router.clone()));
        }
        let lease = self
            .rollout()
            .map_or(Duration::ZERO, |r| r.plan().spec().lease.ttl);
        // A clock that runs one part in a hundred slow, and a renewal that was on its way.
        let certain = lease + lease / 100 + routers::ANSWER;
        let heard: Timestamp = self.answered.get(router).copied().unwrap_or_default();
        let left = heard.after(certain).since(self.now());
        (!left.is_zero()).then(|| AdministerError::MayServe(router.clone(), left))
    }

    /// Logs what is no step. `false`: whether it is in the log is not known, and it is looked up before anything goes on.
    pub(super) async fn log(&mut self, event: Event) -> Result<bool> {
        match self.append(event).await {
            Ok(()) => {
                self.publish();
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::Fenced => Err(error),
            Err(_) => {
                self.in_doubt(false, None);
                Ok(false)
            }
        }
    }
}

/// Whether nothing leads back. That the version in production should not serve any more is a reason to leave it.
fn is_closed(back: &Safety) -> bool {
    let unwanted = |o: &Obstacle| {
        matches!(
            o,
            Obstacle::Revoked(_) | Obstacle::KeyRevoked(_) | Obstacle::BelowFloor { .. }
        )
    };
    matches!(back, Safety::Forbidden(obstacles) if !obstacles.iter().all(unwanted))
}

fn answered(logged: bool) -> Submitted {
    if logged {
        Ok(())
    } else {
        Err(SubmitError::StoreUnavailable)
    }
}
