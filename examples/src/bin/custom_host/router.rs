//! A router beside the in-process one: a proxy that reads how to split its traffic from a file.

use crate::store::replace;
use async_trait::async_trait;
use llm_rollout::{Direction, Fence, Order, Position, RouterClock, RouterId, RouterState, Split};
use llm_serve_adapters::host::{
    Clock, Error, ErrorKind, Result, RouterCapabilities, Support, TrafficRouter,
};
use llm_serve_adapters::router::{Refused, RouterCore};
use std::fmt::Write as _;
use std::hash::{BuildHasher as _, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Keeps the rules by [`RouterCore`]; what is left to do is to remember, to tell the proxy, and to lapse in time.
#[derive(Debug, Clone)]
pub(crate) struct EdgeRouter(Arc<Edge>);

#[derive(Debug)]
struct Edge {
    id: RouterId,
    folder: PathBuf,
    clock: Arc<dyn Clock>,
    core: Mutex<RouterCore>,
}

impl EdgeRouter {
    /// Goes on from what it remembers in this folder; the very first time it serves this split.
    pub(crate) fn open(
        id: RouterId,
        folder: PathBuf,
        clock: impl Clock,
        first: Split,
    ) -> Result<Self> {
        let boot = RandomState::new().hash_one("boot");
        let core = match std::fs::read(folder.join("record.json")) {
            Ok(record) => RouterCore::from_json(boot, &record).map_err(|e| {
                Error::permanent(format!("router {id} cannot read its record")).because(e)
            })?,
            Err(_) => RouterCore::new(boot, first),
        };
        let edge = Edge {
            id,
            folder,
            clock: Arc::new(clock),
            core: Mutex::new(core.clone()),
        };
        std::fs::create_dir_all(&edge.folder).map_err(|e| edge.not_written(e))?;
        edge.remember(&core)?;
        edge.tell(&core)?;
        Ok(Self(Arc::new(edge)))
    }

    /// Takes the share away once its lease is over, controller or no controller. Runs until it is dropped.
    pub(crate) async fn lapse_in_time(self) {
        let edge = &*self.0;
        let mut raised = false;
        loop {
            edge.clock.sleep(Duration::from_secs(1)).await;
            let core = edge.core.lock().unwrap_or_else(PoisonError::into_inner);
            let now = core.raised(edge.clock.now());
            if raised && !now {
                // Tried again in a second, by the state that it is in then.
                raised = edge.tell(&core).is_err();
            } else {
                raised = now;
            }
        }
    }
}

impl Edge {
    fn not_written(&self, cause: std::io::Error) -> Error {
        Error::transient(format!(
            "router {} cannot write to {}",
            self.id,
            self.folder.display()
        ))
        .because(cause)
    }

    fn remember(&self, core: &RouterCore) -> Result<()> {
        let record = core
            .to_json()
            .map_err(|e| Error::permanent("a record cannot be written").because(e))?;
        let file = self.folder.join("record.json");
        replace(&self.folder, &file, &record).map_err(|e| self.not_written(e))
    }

    /// What the proxy reads: who gets how much.
    fn tell(&self, core: &RouterCore) -> Result<()> {
        let now = self.clock.now();
        let split = core.clone().state(now).split;
        let mut text = format!("baseline {}\n", split.baseline.reference());
        if let Some(candidate) = split.candidate.filter(|_| core.raised(now)) {
            let (candidate, share) = (candidate.reference(), split.share.percent());
            // Writing to a string cannot fail.
            let _ = writeln!(text, "candidate {candidate} {share} %");
        }
        let file = self.folder.join("weights");
        replace(&self.folder, &file, text.as_bytes()).map_err(|e| self.not_written(e))
    }

    fn change(
        &self,
        lowers: bool,
        rules: impl FnOnce(&mut RouterCore, llm_rollout::Timestamp) -> std::result::Result<(), Refused>,
    ) -> Result<RouterState> {
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        let mut next = core.clone();
        rules(&mut next, now).map_err(|refused| {
            let kind = match refused {
                Refused::Fenced { .. } => ErrorKind::Fenced,
                _ => ErrorKind::Permanent,
            };
            Error::new(kind, format!("router {}: {refused}", self.id))
        })?;
        // A raise is remembered before it is in force, anything else is in force first; both before they are acknowledged.
        if lowers {
            *core = next;
            self.tell(&core)?;
            self.remember(&core)?;
        } else {
            self.remember(&next)?;
            *core = next;
            self.tell(&core)?;
        }
        Ok(core.state(now))
    }
}

#[async_trait]
impl TrafficRouter for EdgeRouter {
    fn id(&self) -> &RouterId {
        &self.0.id
    }

    fn capabilities(&self) -> RouterCapabilities {
        // The proxy itself knows of neither; what stands here beside it does both.
        RouterCapabilities {
            fencing: Support::Emulated,
            lease: Support::Emulated,
        }
    }

    async fn observe(&self, fence: Fence) -> Result<RouterState> {
        self.0.change(false, |core, now| core.observe(fence, now))
    }

    async fn set(&self, order: &Order) -> Result<RouterState> {
        let lowers = order.direction == Direction::Back;
        self.0.change(lowers, |core, now| core.set(order, now))
    }

    async fn renew(&self, at: Position, clock: RouterClock) -> Result<RouterState> {
        self.0.change(false, |core, now| core.renew(at, clock, now))
    }
}
