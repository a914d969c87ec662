//! The routers: read back, told what the log says, renewed.

use super::{Controller, is_back};
use crate::host::{ErrorKind, Result, Support, TrafficRouter};
use futures_util::future::join_all;
use llm_rollout::{
    Direction, Fence, Input, Observed, Order, Position, Rollout, RouterClock, RouterState, Step,
};
use std::sync::Arc;
use std::time::Duration;

/// A router that has not answered by then is unreachable in this round.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// Whether a plan that advances by itself may run on this router.
pub(super) fn is_safe(router: &dyn TrafficRouter) -> bool {
    let can = router.capabilities();
    can.fencing != Support::None && can.lease != Support::None
}

impl Controller {
    /// The routers that are waited for.
    fn routers(&self) -> impl Iterator<Item = &Arc<dyn TrafficRouter>> {
        let removed = &self.ledger.removed;
        self.parts
            .routers
            .iter()
            .filter(|router| !removed.contains_key(router.id()))
    }

    /// Reads every router back and brings it to what the log says: the order if it is behind, a renewal if it is not.
    ///
    /// # Errors
    /// A router has seen a newer fence: this controller must stop.
    pub(super) async fn routers_round(&mut self) -> Result<Observed> {
        let now = self.now();
        let grace = self
            .rollout()
            .map(|r| r.plan().spec().lease.grace)
            .unwrap_or_default();
        let within_grace = self
            .store_down_since
            .is_none_or(|since| now < since.after(grace));
        let forward =
            self.active && self.doubt.is_none() && self.rollout().is_some_and(Rollout::may_raise);
        // What a router has said holds until it says something else.
        let raise = forward && !self.routers().any(|r| self.latched.contains(r.id()));
        let may = May {
            forward,
            raise,
            within_grace,
        };
        let (fence, rollout) = (self.fence, self.rollout());
        let round = join_all(self.routers().map(async |router| {
            let mut heard = false;
            let visit = visit(&**router, fence, rollout, may, &mut heard);
            let answer = within(visit).await;
            (router.id().clone(), heard, answer)
        }))
        .await;
        let over = self.now();
        let mut said = Vec::with_capacity(round.len());
        for (id, heard, answer) in round {
            if heard {
                self.answered.insert(id.clone(), over);
            }
            let state = match answer {
                Err(error) if error.kind() == ErrorKind::Fenced => return Err(error),
                answer => answer.ok(),
            };
            match &state {
                Some(state) if state.latch.is_some() => {
                    self.latched.insert(id.clone());
                }
                Some(_) => {
                    self.latched.remove(&id);
                }
                None => {}
            }
            said.push((id, state));
        }
        let observed = Observed::new(said);
        self.note_round(&observed);
        Ok(observed)
    }

    /// While an append is in doubt: nothing but renewals, within the grace; or the way back, if that is what is in doubt, or what the
    /// routers say.
    ///
    /// # Errors
    /// As [`Self::routers_round`].
    pub(super) async fn renew_only(&mut self) -> Result<()> {
        if self.now() >= self.next_round {
            if let Some(step) = self.doubt.as_ref().and_then(|d| d.left.clone()) {
                self.emergency(&step).await?;
            } else {
                let (fence, routers) = (self.fence, self.routers_round().await?);
                if let Some(doubt) = &mut self.doubt
                    && routers
                        .reachable()
                        .any(|(_, r)| r.latch.is_some() || r.mark.is_some())
                {
                    doubt.heard = Some(routers.clone());
                }
                if self.may_go_back_unlogged()
                    && let Ok(Some(step)) = self.decide(Input::Found { fence, routers })
                    && is_back(&step)
                {
                    self.take(step, None).await?;
                }
            }
            let every = self
                .rollout()
                .map_or(super::IDLE, |r| r.plan().spec().lease.renew_every);
            self.next_round = self.now().after(every.min(super::IDLE));
        }
        Ok(())
    }

    /// Tells the routers to go back before the log can be written. `true`: all of them have accepted it.
    ///
    /// # Errors
    /// As [`Self::routers_round`].
    pub(super) async fn emergency(&mut self, step: &Step) -> Result<bool> {
        let Some((seq, direction @ Direction::Back)) = step.state.routed else {
            return Ok(false);
        };
        let fence = self.fence;
        let split = &step.state.split;
        let round = join_all(self.routers().map(async |router| {
            let clock = match within(router.observe(fence)).await {
                Ok(state) => state.clock,
                Err(error) if error.kind() == ErrorKind::Fenced => return Err(error),
                // Who cannot be read may hear all the same; the way back needs no clock.
                Err(_) => RouterClock::default(),
            };
            let order = Order {
                at: Position { fence, seq },
                direction,
                split: split.clone(),
                clock,
            };
            within(router.set(&order)).await
        }))
        .await;
        let accepted = round.iter().all(std::result::Result::is_ok);
        let fenced = round.into_iter().filter_map(std::result::Result::err);
        match { fenced }.find(|error| error.kind() == ErrorKind::Fenced) {
            Some(error) => Err(error),
            None => Ok(accepted),
        }
    }
}

pub(super) async fn within<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(ANSWER, call).await {
        Ok(answer) => answer,
        Err(_) => Err(crate::host::Error::transient("no answer in time")),
    }
}

/// What routers may be told in a round, beside the way back.
#[derive(Debug, Clone, Copy)]
struct May {
    forward: bool,
    /// Forward to a share, or to a promotion: no router has a latch.
    raise: bool,
    /// Renewals.
    within_grace: bool,
}

async fn visit(
    router: &dyn TrafficRouter,
    fence: Fence,
    rollout: Option<&Rollout>,
    may: May,
    heard: &mut bool,
) -> Result<RouterState> {
    let state = match router.observe(fence).await {
        // From here on its lease may be prolonged, whether or not its answer to that arrives.
        Ok(state) => {
            *heard = true;
            state
        }
        Err(error) => {
            // Who cannot be read may hear all the same; the way back needs no clock.
            let order = rollout.and_then(|r| r.order(fence, RouterClock::default()));
            return match order.filter(|order| order.direction == Direction::Back) {
                Some(order) if error.kind() != ErrorKind::Fenced => router.set(&order).await,
                _ => Err(error),
            };
        }
    };
    let Some(order) = rollout.and_then(|r| r.order(fence, state.clock)) else {
        return Ok(state);
    };
    // What it says is enough to go back; an order that is refused, or whose answer is lost, would only hide it.
    // So is a newer split than ours, which a router without a memory has from the store: somebody else owns the log.
    let told_back = rollout.is_some_and(|r| {
        state.latch.is_some()
            || state.mark.as_ref() == Some(r.id())
            || state.split.epoch > order.split.epoch
    });
    let allowed = match order.direction {
        Direction::Back => true,
        Direction::End => may.forward,
        Direction::Forward | Direction::Promote => may.raise && !told_back,
    };
    let told = if state.at < order.at && allowed {
        router.set(&order).await
    } else if state.at == order.at
        && order.direction == Direction::Forward
        && !state.lapsed
        && !told_back
        && may.within_grace
    {
        router.renew(order.at, state.clock).await
    } else {
        return Ok(state);
    };
    match told {
        // Refused: what it says when it is read back tells why, and the machine decides.
        Err(error) if error.kind() == ErrorKind::Permanent => Ok(state),
        told => told,
    }
}
