//! A router beside the process: a proxy that knows nothing of fences, positions, marks and latches, which are kept here.

use super::core::{Record, RouterCore};
use super::served::{Served, due, told};
use super::{read_record, refused, save_record};
use crate::SystemClock;
use crate::host::{Clock as _, Result, RouterMemory};
use async_trait::async_trait;
use llm_rollout::{
    Direction, Fence, Order, Position, RouterClock, RouterId, RouterState, Share, Split, Timestamp,
};
use llm_version_core::VersionId;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// A proxy that is told at run time whom to serve by what.
#[async_trait]
pub(super) trait Proxy: Send + Sync {
    /// Whether it can serve this split at all.
    fn check(&self, split: &Split) -> Result<()>;

    /// Which start of it this is: another one has forgotten what the last was told.
    async fn life(&self) -> Result<String>;

    /// What it says that it serves; `told` is what it was told.
    async fn served(&self, told: &Split) -> Result<Served>;

    /// Has it serve this baseline, and of the raise no more, and no longer, than it says. What somebody has changed by hand
    /// is overwritten.
    async fn apply(&self, baseline: &VersionId, raise: Option<Raised<'_>>) -> Result<()>;
}

/// What a candidate gets, and until when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Raised<'a> {
    pub(super) candidate: &'a VersionId,
    pub(super) share: Share,
    #[cfg_attr(not(feature = "envoy"), expect(dead_code, reason = "HAProxy has none"))]
    pub(super) mirror: Share,
    pub(super) until: Instant,
}

/// The rules of a router around a proxy, one exchange at a time.
pub(super) struct Remote<P> {
    pub(super) id: RouterId,
    pub(super) proxy: P,
    memory: Option<Arc<dyn RouterMemory>>,
    clock: SystemClock,
    random: RandomState,
    control: Mutex<Control>,
}

struct Control {
    core: RouterCore,
    /// What is certainly saved.
    durable: Option<Record>,
    /// Which start of the proxy the core has been told of.
    life: Option<String>,
}

impl<P: Proxy> Remote<P> {
    /// As its memory says; a first split otherwise.
    pub(super) fn open(
        id: RouterId,
        proxy: P,
        first: Split,
        memory: Option<Arc<dyn RouterMemory>>,
    ) -> Result<Self> {
        let saved = match &memory {
            Some(memory) => memory.load()?,
            None => None,
        };
        let random = RandomState::new();
        let boot = random.hash_one("boot");
        let core = match &saved {
            Some(bytes) => read_record(&id, boot, bytes)?,
            None => RouterCore::new(boot, first),
        };
        let durable = saved.is_some().then(|| core.record());
        Ok(Self {
            id,
            proxy,
            memory,
            clock: SystemClock::new(),
            random,
            control: Mutex::new(Control {
                core,
                durable,
                life: None,
            }),
        })
    }

    /// The baseline that is to be served.
    #[cfg(feature = "envoy")]
    pub(super) fn baseline(&mut self) -> VersionId {
        self.control.get_mut().core.split().baseline.clone()
    }

    #[cfg(test)]
    pub(super) async fn latch(&self) -> Option<VersionId> {
        let mut control = self.control.lock().await;
        control.core.state(Timestamp::default()).latch
    }

    pub(super) async fn force_baseline(&self, why: &str) -> Result<()> {
        let mut control = self.control.lock().await;
        control.core.force_baseline(why, self.clock.now());
        let applied = self.apply(&control.core).await;
        self.save(&mut control)?;
        applied
    }

    pub(super) async fn observe(&self, fence: Fence) -> Result<RouterState> {
        let mut control = self.control.lock().await;
        self.look(&mut control).await?;
        control
            .core
            .observe(fence, self.clock.now())
            .map_err(|e| refused(&self.id, &e))?;
        self.save(&mut control)?;
        self.state(&mut control.core).await
    }

    pub(super) async fn set(&self, order: &Order) -> Result<RouterState> {
        self.proxy.check(&order.split)?;
        let mut control = self.control.lock().await;
        let back = order.direction == Direction::Back;
        match self.look(&mut control).await {
            // Going back is remembered even while the proxy cannot be told: the lease ends the share.
            Err(_) if back => {}
            looked => looked?,
        }
        let mut next = control.core.clone();
        next.set(order, self.clock.now())
            .map_err(|e| refused(&self.id, &e))?;
        control.core = next;
        if back {
            let applied = self.apply(&control.core).await;
            self.save(&mut control)?;
            applied?;
        } else {
            self.save(&mut control)?;
            self.apply(&control.core).await?;
        }
        self.state(&mut control.core).await
    }

    pub(super) async fn renew(&self, at: Position, clock: RouterClock) -> Result<RouterState> {
        let mut control = self.control.lock().await;
        self.look(&mut control).await?;
        let split = control.core.split();
        let served = self.proxy.served(split).await?;
        // What somebody has changed is told, not prolonged.
        let changed = (&served.baseline, served.share, served.mirror)
            != (&split.baseline, split.share, split.mirror);
        if control.core.raised(self.clock.now()) && changed {
            return Ok(told(&mut control.core, served, self.clock.now()));
        }
        control
            .core
            .renew(at, clock, self.clock.now())
            .map_err(|e| refused(&self.id, &e))?;
        self.apply(&control.core).await?;
        self.state(&mut control.core).await
    }

    /// Notices a start of the proxy, and a share that has run out there.
    async fn look(&self, control: &mut Control) -> Result<()> {
        let life = self.proxy.life().await?;
        if control.life.as_ref() != Some(&life) {
            let boot = self.random.hash_one((&life, self.clock.now().as_millis()));
            control.core = RouterCore::restored(boot, control.core.record());
            self.apply(&control.core).await?;
            control.life = Some(life);
        }
        let now = self.clock.now();
        control.core.pass(now);
        if control.core.raised(now)
            && control.core.split().exposes()
            && !self.proxy.served(control.core.split()).await?.exposes()
        {
            control.core.pass(Timestamp::from_millis(u64::MAX));
        }
        Ok(())
    }

    /// Brings about what the core says.
    async fn apply(&self, core: &RouterCore) -> Result<()> {
        let (split, now) = (core.split(), self.clock.now());
        let raise = match (&split.candidate, due(core, now)) {
            (Some(candidate), Some(due)) => Some(Raised {
                candidate,
                share: split.share,
                mirror: split.mirror,
                until: Instant::now() + due.since(now),
            }),
            _ => None,
        };
        self.proxy.apply(&split.baseline, raise).await
    }

    async fn state(&self, core: &mut RouterCore) -> Result<RouterState> {
        let served = self.proxy.served(core.split()).await?;
        Ok(told(core, served, self.clock.now()))
    }

    /// Makes it durable unless it is.
    fn save(&self, control: &mut Control) -> Result<()> {
        let record = control.core.record();
        if let (Some(memory), false) = (&self.memory, control.durable.as_ref() == Some(&record)) {
            // Until it has certainly been saved, nobody knows what is.
            control.durable = None;
            save_record(&self.id, &**memory, &record)?;
        }
        control.durable = Some(record);
        Ok(())
    }
}
