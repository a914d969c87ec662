//! What every [`TrafficRouter`] must do.

use super::{Violation, accepted, ensure};
use crate::host::{ErrorKind, Result as HostResult, Support, TrafficRouter};
use async_trait::async_trait;
use llm_rollout::{
    Direction, Epoch, Fence, Order, Position, RolloutId, RouterState, Seq, Share, Split, Timestamp,
};
use llm_version_core::VersionId;
use std::sync::Arc;
use std::time::Duration;

type Outcome = Result<(), Violation>;

/// A router under test, with users in front of it.
#[async_trait]
pub trait Subject: Sync {
    /// The version that it serves at first, and another one that it can serve.
    fn versions(&self) -> [VersionId; 2];

    /// Opens the router: **the same one** each time, like a program that was killed and starts again. Nothing is dropped before,
    /// and only what was opened last is used.
    async fn open(&self) -> HostResult<Arc<dyn TrafficRouter>>;

    /// Which version answers one request of a new user now; `None` if none does.
    async fn ask(&self) -> Option<VersionId>;

    /// Pins the baseline by whatever the router opened last has for that. `None`: it has nothing, and no rule about it is asked.
    async fn force_baseline(&self) -> Option<HostResult<()>> {
        None
    }

    /// The lease of the suite's shares: the suite takes about eight of them. Where time is real, longer than the machine may
    /// stall.
    fn lease(&self) -> Duration {
        Duration::from_secs(60)
    }

    /// Waits, by the clock of the router.
    async fn wait(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// Runs every check, one after the other, each on the router opened anew. What a router says it cannot do
/// ([`crate::host::RouterCapabilities`]) is not asked. Rollouts are named `conformance-*`.
///
/// ```
/// # use llm_rollout::{Epoch, RouterId, Split};
/// # use llm_serve_adapters::SystemClock;
/// # use llm_serve_adapters::host::{Result, RouterMemory, StateStore as _, TrafficRouter};
/// # use llm_serve_adapters::router::{InProcessRouter, Key};
/// # use llm_serve_adapters::store::MemoryStore;
/// # use llm_serve_adapters::testing::{self, router::Subject};
/// # use llm_version_core::{Digest, Name, Version, VersionId};
/// # use std::sync::{Arc, Mutex};
/// # fn version(n: u32) -> VersionId { VersionId::new(Name::new("chat").unwrap(), Version::new(n, 0, 0), Digest::of(b"")) }
/// struct Gateway { memory: Arc<dyn RouterMemory>, router: Mutex<Option<Arc<InProcessRouter>>> }
///
/// #[async_trait::async_trait]
/// impl Subject for Gateway {
///     fn versions(&self) -> [VersionId; 2] { [version(1), version(2)] }
///
///     async fn open(&self) -> Result<Arc<dyn TrafficRouter>> {
///         let first = Split::steady(None, version(1), Epoch::default());
///         let builder = InProcessRouter::builder(RouterId::new("gateway").unwrap(), first);
///         let router = builder.memory(Arc::clone(&self.memory)).clock(Arc::new(SystemClock::new())).open()?;
///         let router = Arc::new(router);
///         *self.router.lock().unwrap() = Some(Arc::clone(&router));
///         Ok(router)
///     }
///
///     async fn ask(&self) -> Option<VersionId> {
///         let router = self.router.lock().unwrap().clone()?;
///         let decision = router.decide(&Key::keyless(), router.now());
///         Some(decision.version()?.id().as_ref().clone())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> std::result::Result<(), testing::Violation> {
/// # let (chat, id) = (llm_rollout::EndpointId::new("chat").unwrap(), RouterId::new("gateway").unwrap());
/// # let memory = MemoryStore::new().router_memory(&chat, &id).unwrap();
/// testing::router::suite(&Gateway { memory, router: Mutex::default() }).await
/// # }
/// ```
///
/// # Errors
/// The first rule that the router breaks.
pub async fn suite(subject: &dyn Subject) -> Outcome {
    read_back(subject).await?;
    let can = opened(subject).await?.capabilities();
    if can.fencing != Support::None {
        fencing(subject).await?;
    }
    order(subject).await?;
    going_back(subject).await?;
    latch(subject).await?;
    boots(subject).await?;
    restarts(subject).await?;
    if can.lease != Support::None {
        lapses(subject).await?;
        renewals(subject).await?;
        late_orders(subject).await?;
    }
    Ok(())
}

/// What is read back is what was ordered, and what users get.
async fn read_back(subject: &dyn Subject) -> Outcome {
    let mut talk = Talk::begin(subject, "conformance-read-back").await?;
    let rule = "what is read back is what was ordered";
    for points in [100, 5_000, 10_000, 2_500] {
        let order = talk.forward(points);
        let state = accepted("a forward order is carried out", talk.set(&order).await)?;
        let as_ordered = state.split == order.split && state.at == order.at && !state.lapsed;
        ensure(rule, as_ordered, (&order, &state))?;
        let again = talk.observe().await?;
        let same = again.split == state.split && again.at == state.at && !again.lapsed;
        ensure("an observation changes nothing", same, (&state, &again))?;
    }
    talk.raise().await?;
    let order = talk.steady(Direction::Promote, &talk.candidate.clone());
    let state = accepted("a promotion is carried out", talk.set(&order).await)?;
    ensure(rule, state.split == order.split, (&order, &state))?;
    talk.everybody(
        "after a promotion everybody gets the new version",
        &talk.candidate,
    )
    .await?;
    let order = talk.steady(Direction::End, &talk.candidate.clone());
    let state = accepted("an end is carried out", talk.set(&order).await)?;
    ensure(rule, state.split == order.split, (&order, &state))
}

/// An observation installs its fence.
async fn fencing(subject: &dyn Subject) -> Outcome {
    let mut talk = Talk::begin(subject, "conformance-fencing").await?;
    let older = talk.raise().await?;
    talk.fence = talk.fence.next();
    let state = talk.observe().await?;
    ensure(
        "an observation says its fence",
        state.fence == talk.fence,
        &state,
    )?;
    let rule = "an older fence is refused as Fenced";
    let fenced = |outcome: HostResult<RouterState>| is_kind(rule, ErrorKind::Fenced, outcome);
    fenced(talk.router.observe(older.at.fence).await)?;
    fenced(talk.router.renew(older.at, talk.last.clock).await)?;
    let mut late = talk.forward(5_000);
    late.at = Position {
        fence: older.at.fence,
        seq: Seq::new(older.at.seq.get() + 1),
    };
    fenced(talk.router.set(&late).await)?;
    let after = talk.observe().await?;
    let rule = "what was refused leaves no trace";
    ensure(
        rule,
        after.split == state.split && after.at == state.at,
        (&state, &after),
    )
}

/// Orders are ordered by their position.
async fn order(subject: &dyn Subject) -> Outcome {
    let mut talk = Talk::begin(subject, "conformance-order").await?;
    let first = talk.forward(2_500);
    accepted("a forward order is carried out", talk.set(&first).await)?;
    let small = talk.forward(100);
    let state = accepted("a share may fall", talk.set(&small).await)?;
    let older = Order {
        clock: talk.last.clock,
        ..first
    };
    is_kind(
        "an older position is refused as Permanent",
        ErrorKind::Permanent,
        talk.router.set(&older).await,
    )?;
    let mut equal = small.clone();
    equal.clock = talk.last.clock;
    accepted("an equal position is acknowledged", talk.set(&equal).await)?;
    equal.split.share = Share::ALL;
    accepted("an equal position is acknowledged", talk.set(&equal).await)?;
    let after = talk.observe().await?;
    let rule = "an equal position raises nothing";
    ensure(
        rule,
        after.split == state.split && after.at == state.at,
        (&state, &after),
    )?;
    ensure(
        "only what was set can be renewed",
        talk.router
            .renew(talk.next_position(), talk.last.clock)
            .await
            .is_err(),
        (),
    )
}

/// Going back marks, and a mark refuses.
async fn going_back(subject: &dyn Subject) -> Outcome {
    let mut talk = Talk::begin(subject, "conformance-back").await?;
    let mut back = talk.steady(Direction::Back, &talk.baseline.clone());
    let raised = talk.raise().await?;
    // Decided earlier, or by somebody who knows less.
    back.clock = talk.last.clock;
    let lowered = "going back takes the candidate's users off, whatever its position";
    let state = accepted(lowered, talk.set(&back).await)?;
    let marked = "going back sets a mark, whatever its position";
    ensure(marked, state.mark == Some(talk.rollout.clone()), &state)?;
    ensure(lowered, state.split.share == Share::NONE, &state)?;
    talk.everybody(lowered, &talk.baseline).await?;
    let mut again = raised.clone();
    again.clock = talk.last.clock;
    accepted("an equal position is acknowledged", talk.set(&again).await)?;
    talk.everybody("an equal position revives nothing", &talk.baseline)
        .await?;
    talk.refuses_raises(
        "a marked router refuses Forward",
        "a marked router refuses Promote",
    )
    .await?;
    talk.end("an end releases the mark").await?;

    // A controller that somebody newer has replaced may still take users off.
    talk.raise().await?;
    let older = talk.last.at.fence;
    talk.fence = talk.fence.next();
    talk.observe().await?;
    let mut back = talk.steady(Direction::Back, &talk.baseline.clone());
    back.at.fence = older;
    let state = accepted(lowered, talk.set(&back).await)?;
    ensure(marked, state.mark == Some(talk.rollout.clone()), &state)?;
    talk.everybody(lowered, &talk.baseline).await?;
    talk.end("an end releases the mark").await
}

/// A forced baseline refuses raises until the end.
async fn latch(subject: &dyn Subject) -> Outcome {
    let mut talk = Talk::begin(subject, "conformance-latch").await?;
    talk.raise().await?;
    let Some(forced) = subject.force_baseline().await else {
        return Ok(());
    };
    accepted("the baseline can be forced", forced)?;
    talk.everybody("a forced baseline serves everybody", &talk.baseline)
        .await?;
    let latched = "a forced baseline is told";
    let state = talk.observe().await?;
    ensure(
        latched,
        state.latch.as_ref() == Some(&talk.baseline),
        &state,
    )?;
    let refuses = "a latched router refuses Forward";
    talk.refuses_raises(refuses, "a latched router refuses Promote")
        .await?;
    talk.restart().await?;
    let state = talk.observe().await?;
    let outlives = "a latch outlives a restart";
    ensure(
        outlives,
        state.latch.as_ref() == Some(&talk.baseline),
        &state,
    )?;
    let back = talk.steady(Direction::Back, &talk.baseline.clone());
    accepted("a latched router goes back", talk.set(&back).await)?;
    talk.end("an end releases the latch").await?;
    let state = talk.observe().await?;
    ensure("an end releases the latch", state.latch.is_none(), &state)
}

/// Orders are for one life of the router.
async fn boots(subject: &dyn Subject) -> Outcome {
    let mut talk = Talk::begin(subject, "conformance-boots").await?;
    let raised = talk.raise().await?;
    let mut other = talk.last.clock;
    other.boot = other.boot.wrapping_add(1);
    let mut meant_for_another = talk.forward(5_000);
    meant_for_another.clock = other;
    let rule = "what is meant for another boot is refused as Permanent";
    let outcome = talk.router.set(&meant_for_another).await;
    is_kind(rule, ErrorKind::Permanent, outcome)?;
    is_kind(
        rule,
        ErrorKind::Permanent,
        talk.router.renew(raised.at, other).await,
    )
}

/// What is acknowledged outlives a restart, but a share.
async fn restarts(subject: &dyn Subject) -> Outcome {
    let mut talk = Talk::begin(subject, "conformance-restarts").await?;
    let raised = talk.raise().await?;
    let before = talk.observe().await?;
    talk.restart().await?;
    let state = talk.observe().await?;
    let rule = "the newest position outlives a restart";
    ensure(rule, state.at == raised.at, (&before, &state))?;
    let rule = "a restarted router has a new boot";
    ensure(
        rule,
        state.clock.boot != before.clock.boot,
        (&before, &state),
    )?;
    let rule = "a restarted router says that its share has lapsed";
    ensure(rule, state.lapsed, &state)?;
    talk.everybody("a restarted router serves the baseline", &talk.baseline)
        .await?;
    is_kind(
        "a restarted router refuses renewals",
        ErrorKind::Permanent,
        talk.router.renew(state.at, state.clock).await,
    )?;

    let older = talk.fence;
    talk.fence = talk.fence.next();
    talk.observe().await?;
    talk.restart().await?;
    is_kind(
        "a fence outlives a restart",
        ErrorKind::Fenced,
        talk.router.observe(older).await,
    )?;
    talk.observe().await?;

    let back = talk.steady(Direction::Back, &talk.baseline.clone());
    accepted("going back is carried out", talk.set(&back).await)?;
    talk.restart().await?;
    let state = talk.observe().await?;
    let rule = "a mark outlives a restart";
    ensure(rule, state.mark == Some(talk.rollout.clone()), &state)?;
    talk.end("an end releases the mark").await?;

    talk.raise().await?;
    let order = talk.steady(Direction::Promote, &talk.candidate.clone());
    accepted("a promotion is carried out", talk.set(&order).await)?;
    talk.restart().await?;
    let state = talk.observe().await?;
    let rule = "a promoted baseline outlives a restart";
    ensure(rule, state.split.baseline == talk.candidate, &state)?;
    talk.everybody(rule, &talk.candidate).await?;
    let order = talk.steady(Direction::End, &talk.candidate.clone());
    accepted("an end is carried out", talk.set(&order).await).map(drop)
}

/// A share that nobody renews ends, and comes back only by a newer epoch.
async fn lapses(subject: &dyn Subject) -> Outcome {
    let mut talk = Talk::begin(subject, "conformance-lapses").await?;
    let raised = talk.raise().await?;
    subject.wait(subject.lease()).await;
    talk.everybody("a share that nobody renews ends", &talk.baseline)
        .await?;
    let state = talk.observe().await?;
    let rule = "a router says that its share has lapsed";
    ensure(rule, state.lapsed && state.at == raised.at, &state)?;
    is_kind(
        "a lapsed router refuses renewals",
        ErrorKind::Permanent,
        talk.router.renew(state.at, state.clock).await,
    )?;
    let mut equal = raised.clone();
    equal.clock = state.clock;
    let state = accepted("an equal position is acknowledged", talk.set(&equal).await)?;
    let rule = "an equal position revives nothing";
    ensure(rule, state.lapsed, &state)?;
    talk.everybody(rule, &talk.baseline).await?;
    let mut same_epoch = talk.forward(10_000);
    same_epoch.split.epoch = raised.split.epoch;
    is_kind(
        "a lapsed router refuses a Forward whose epoch is not newer",
        ErrorKind::Permanent,
        talk.router.set(&same_epoch).await,
    )?;
    talk.raise().await.map(drop)
}

/// A share goes on while it is renewed, and not by what is late.
async fn renewals(subject: &dyn Subject) -> Outcome {
    let mut talk = Talk::begin(subject, "conformance-renewals").await?;
    let lease = subject.lease();
    // Where the machine stalls for longer than a router may bear, it is tried again.
    for attempts_left in (0..5).rev() {
        let first = talk.raise().await?;
        let end = first.clock.at.after(lease + lease / 4);
        let renewed = loop {
            subject.wait(lease / 12).await;
            let since = talk.last.clock.at;
            match talk.router.renew(first.at, talk.last.clock).await {
                Ok(state) if state.clock.at > end => break Some(state),
                Ok(state) => talk.last = state,
                Err(e) => {
                    let stalled = talk.observe().await?.clock.at > since.after(lease / 4);
                    let rule = "a share goes on while it is renewed";
                    ensure(rule, stalled && attempts_left > 0, &e)?;
                    break None;
                }
            }
        };
        let Some(state) = renewed else { continue };
        let rule = "a share goes on while it is renewed";
        ensure(rule, !state.lapsed && state.split == first.split, &state)?;
        talk.everybody(rule, &talk.candidate).await?;
        let late = talk.router.renew(first.at, first.clock).await;
        let rule = "a renewal that arrives after its lease is refused as Permanent";
        return is_kind(rule, ErrorKind::Permanent, late);
    }
    Ok(())
}

/// A lease counts from the clock reading that an order carries.
async fn late_orders(subject: &dyn Subject) -> Outcome {
    let mut talk = Talk::begin(subject, "conformance-late").await?;
    let lease = subject.lease();
    let read = talk.last.clock;
    subject.wait(lease).await;
    let mut late = talk.forward(10_000);
    late.clock = read;
    is_kind(
        "an order that arrives after its lease is refused as Permanent",
        ErrorKind::Permanent,
        talk.router.set(&late).await,
    )?;
    let read = talk.observe().await?.clock;
    subject.wait(lease / 2).await;
    let mut order = talk.forward(10_000);
    order.clock = read;
    match talk.set(&order).await {
        Ok(_) => {}
        // Who cannot end a share early enough may refuse it.
        refused => {
            let rule = "what is refused is refused as Permanent";
            return is_kind(rule, ErrorKind::Permanent, refused);
        }
    }
    let over: Timestamp = read.at.after(lease);
    let now = talk.observe().await?.clock.at;
    subject.wait(over.since(now)).await;
    talk.everybody(
        "a lease counts from the order's clock reading",
        &talk.baseline,
    )
    .await
}

/// How many users are asked.
const USERS: usize = 16;

/// One rollout, told to a router.
struct Talk<'a> {
    subject: &'a dyn Subject,
    router: Arc<dyn TrafficRouter>,
    rollout: RolloutId,
    baseline: VersionId,
    candidate: VersionId,
    fence: Fence,
    seq: u64,
    epoch: u64,
    /// What it said last.
    last: RouterState,
}

async fn opened(subject: &dyn Subject) -> Result<Arc<dyn TrafficRouter>, Violation> {
    accepted("a router opens, and opens again", subject.open().await)
}

impl<'a> Talk<'a> {
    async fn begin(subject: &'a dyn Subject, rollout: &str) -> Result<Self, Violation> {
        let router = opened(subject).await?;
        let rollout = accepted("a name", RolloutId::new(rollout))?;
        // A fence that is newer than all that were told before.
        let mut fence = Fence::new(1);
        loop {
            match router.observe(fence).await {
                Ok(_) => break,
                Err(e) if e.kind() == ErrorKind::Fenced && fence.get() < 1 << 62 => {
                    fence = Fence::new(fence.get() * 2);
                }
                Err(e) => return accepted("a router can be observed", Err(e)),
            }
        }
        fence = fence.next();
        let last = accepted("a router can be observed", router.observe(fence).await)?;
        let [one, other] = subject.versions();
        let baseline = last.split.baseline.clone();
        let rule = "a router serves one of its versions";
        ensure(rule, baseline == one || baseline == other, &last)?;
        let candidate = if baseline == one { other } else { one };
        let mut talk = Self {
            subject,
            router,
            rollout,
            baseline,
            candidate,
            fence,
            seq: 0,
            epoch: last.split.epoch.get(),
            last,
        };
        talk.end("an end is carried out").await?;
        Ok(talk)
    }

    /// The router object again; nobody has stopped the old one.
    async fn restart(&mut self) -> Outcome {
        self.router = opened(self.subject).await?;
        Ok(())
    }

    async fn observe(&mut self) -> Result<RouterState, Violation> {
        let observed = self.router.observe(self.fence).await;
        self.last = accepted("a router can be observed", observed)?;
        Ok(self.last.clone())
    }

    async fn set(&mut self, order: &Order) -> HostResult<RouterState> {
        let state = self.router.set(order).await?;
        self.last = state.clone();
        Ok(state)
    }

    fn next_position(&self) -> Position {
        Position {
            fence: self.fence,
            seq: Seq::new(self.seq + 1),
        }
    }

    /// The next order, to this version alone.
    fn steady(&mut self, direction: Direction, to: &VersionId) -> Order {
        let at = self.next_position();
        self.seq += 1;
        self.epoch += 1;
        Order {
            at,
            direction,
            split: Split::steady(
                Some(self.rollout.clone()),
                to.clone(),
                Epoch::new(self.epoch),
            ),
            clock: self.last.clock,
        }
    }

    /// The next order, with a share for the candidate.
    fn forward(&mut self, points: u16) -> Order {
        let mut order = self.steady(Direction::Forward, &self.baseline.clone());
        order.split.candidate = Some(self.candidate.clone());
        order.split.share = Share::new(points).unwrap_or(Share::ALL);
        order.split.salt = 7;
        order.split.lease = Some(self.subject.lease());
        order
    }

    /// Everybody to the candidate.
    async fn raise(&mut self) -> Result<Order, Violation> {
        self.observe().await?;
        let order = self.forward(10_000);
        accepted("a forward order is carried out", self.set(&order).await)?;
        self.everybody("what is read back is what users get", &self.candidate)
            .await?;
        Ok(order)
    }

    async fn end(&mut self, rule: &'static str) -> Outcome {
        let order = self.steady(Direction::End, &self.baseline.clone());
        let state = accepted(rule, self.set(&order).await)?;
        ensure(rule, state.mark.is_none(), &state)?;
        self.everybody("what is read back is what users get", &self.baseline)
            .await
    }

    async fn refuses_raises(&mut self, forward: &'static str, promote: &'static str) -> Outcome {
        let order = self.forward(10_000);
        is_kind(forward, ErrorKind::Permanent, self.router.set(&order).await)?;
        let order = self.steady(Direction::Promote, &self.candidate.clone());
        is_kind(promote, ErrorKind::Permanent, self.router.set(&order).await)?;
        self.everybody("what was refused leaves no trace", &self.baseline)
            .await
    }

    /// All users get this version, as soon as the last thread of a proxy knows of it.
    async fn everybody(&self, rule: &'static str, version: &VersionId) -> Outcome {
        let mut found = Vec::new();
        for _ in 0..40 {
            found.clear();
            for _ in 0..USERS {
                found.push(self.subject.ask().await);
            }
            if found.iter().all(|by| by.as_ref() == Some(version)) {
                return Ok(());
            }
            self.subject.wait(Duration::from_millis(10)).await;
        }
        ensure(rule, false, &found)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "called on the call itself")]
fn is_kind(rule: &'static str, kind: ErrorKind, outcome: HostResult<RouterState>) -> Outcome {
    ensure(
        rule,
        outcome.as_ref().is_err_and(|e| e.kind() == kind),
        &outcome,
    )
}
