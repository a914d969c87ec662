//! The router in the host's own process: who is served by what, and the switch that needs nobody else.
//!
//! Per request, [`InProcessRouter::decide`] is synchronous and wait-free: it reads no clock, takes no lock and allocates
//! nothing. Control comes through [`TrafficRouter`]: absolute orders, ordered by fence and log position, with a lease that
//! lapses to the baseline by itself ([`RouterCore`] has the rules, [`place`] the assignment).

mod assign;
mod core;
mod decision;
#[cfg(feature = "envoy")]
mod envoy;
#[cfg(all(unix, feature = "haproxy"))]
mod haproxy;
mod hash;
#[cfg(all(test, loom_check))]
mod interleavings;
mod key;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod policy;
mod published;
#[cfg(any(feature = "envoy", all(unix, feature = "haproxy")))]
mod remote;
#[cfg(any(
    feature = "envoy",
    feature = "kubernetes",
    all(unix, feature = "haproxy")
))]
mod served;
#[cfg(test)]
pub(crate) mod tests;
mod versions;

pub use self::assign::{Secret, place};
pub use self::core::{Refused, RouterCore, UnreadableRecord};
pub use self::decision::{Decision, Reason, Role, Slice};
#[cfg(feature = "envoy")]
pub use self::envoy::{EnvoyRouter, EnvoyRouterBuilder, EnvoyRuntime};
#[cfg(all(unix, feature = "haproxy"))]
pub use self::haproxy::{HaproxyRouter, HaproxyRouterBuilder};
pub use self::key::{Key, Pin};
#[cfg(feature = "kubernetes")]
pub use self::kubernetes::{KubernetesRouter, KubernetesRouterBuilder};
pub use self::policy::{Policies, TenantPolicy};
pub(crate) use self::versions::Grow;
pub use self::versions::{TooManyVersions, Version, VersionSlot};

use self::core::Record;
use self::published::{Published, View};
use crate::host::{
    Clock, Error, ErrorKind, Result, RouterCapabilities, RouterMemory, Support, TrafficRouter,
};
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering};
use async_trait::async_trait;
use llm_rollout::{
    Direction, Fence, Order, Position, RouterClock, RouterId, RouterState, Share, Split, Timestamp,
};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A router in the host's own process.
///
/// With a [`RouterMemory`] it remembers what it was told over a restart. It then serves the recorded baseline, never the one it
/// was configured with, and says that it has lapsed if a candidate had a share. Without one (volatile) it forgets: whoever
/// opens it must pass the split as of a linearizable read of the store, a share in that counts as lapsed, and fence, mark
/// and latch are gone, so that a controller that finds it restarted during a rollout has to go back.
///
/// ```
/// use llm_rollout::{Epoch, RouterId, Split};
/// use llm_serve_adapters::router::{InProcessRouter, Key, Role};
/// # use llm_version_core::{Digest, Name, Version, VersionId};
/// # let v1 = VersionId::new(Name::new("chat")?, Version::new(1, 0, 0), Digest::of(b"v1"));
///
/// let router = InProcessRouter::builder(RouterId::new("gateway-0")?, Split::steady(None, v1.clone(), Epoch::default())).open()?;
/// let decision = router.decide(&Key::session(b"session-7"), router.now());
/// assert_eq!(decision.role(), Role::Baseline);
/// assert_eq!(decision.version().map(|v| v.id().as_ref()), Some(&v1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct InProcessRouter {
    id: RouterId,
    published: Published,
    secret: Secret,
    keyless: Keyless,
    control: Mutex<Control>,
    memory: Option<Arc<dyn RouterMemory>>,
    clock: Time,
}

/// What changes by orders: the rules' state, and what is certainly durable of it.
struct Control {
    core: RouterCore,
    durable: Option<Record>,
    /// How much of the candidate's share is served at the most.
    cap: Share,
    suspended: Timestamp,
}

/// Requests without a key so far. Threads count in different places, each on a cache line of its own, so that they do not
/// wait for one another; with more threads than places, some share one.
#[derive(Debug)]
struct Keyless {
    counts: [Apart<AtomicU64>; PLACES],
    origin: u64,
}

const PLACES: usize = 16;

#[repr(align(128))]
#[derive(Debug, Default)]
struct Apart<T>(T);

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Where this thread counts.
    static PLACE: usize = THREADS.fetch_add(1, Ordering::Relaxed) % PLACES;
}

impl Keyless {
    fn new(origin: u64) -> Self {
        Self {
            counts: Default::default(),
            origin,
        }
    }

    /// Another number for each request without a key, and for each process.
    #[inline]
    fn chance(&self) -> u64 {
        let place = PLACE.with(|place| *place) % PLACES;
        let count = self.counts[place].0.fetch_add(1, Ordering::Relaxed);
        (count.wrapping_mul(PLACES as u64) + place as u64).wrapping_add(self.origin)
    }

    fn sum(&self) -> u64 {
        let counts = self.counts.iter();
        counts.map(|count| count.0.load(Ordering::Relaxed)).sum()
    }
}

/// How a router is opened.
#[derive(Debug)]
pub struct RouterBuilder {
    id: RouterId,
    first: Split,
    memory: Option<Arc<dyn RouterMemory>>,
    clock: Option<Arc<dyn Clock>>,
    boot: Option<u64>,
    secret: Option<Secret>,
}

impl RouterBuilder {
    /// Remembers what it was told here.
    #[must_use]
    pub fn memory(mut self, memory: Arc<dyn RouterMemory>) -> Self {
        self.memory = Some(memory);
        self
    }

    /// Uses this clock instead of the machine's; it must not go back.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Uses this boot id instead of a random one; for reproducible tests. It must differ for every start.
    #[must_use]
    pub fn boot(mut self, boot: u64) -> Self {
        self.boot = Some(boot);
        self
    }

    /// Hashes keys that their senders choose ([`Key::untrusted`]) with this secret, which all replicas of the endpoint share.
    /// Without one it is another for every process: replicas then disagree about such keys.
    #[must_use]
    pub fn secret(mut self, secret: Secret) -> Self {
        self.secret = Some(secret);
        self
    }

    /// Opens it. A record in its memory wins over the split that the builder was given.
    ///
    /// # Errors
    /// The record cannot be read, is damaged or of an unknown format (nothing is overwritten), or the first record cannot be saved.
    pub fn open(self) -> Result<InProcessRouter> {
        let Self {
            id,
            first,
            memory,
            clock,
            boot,
            secret,
        } = self;
        let boot = boot.unwrap_or_else(|| RandomState::new().hash_one("boot"));
        let saved = match &memory {
            Some(memory) => memory.load()?,
            None => None,
        };
        let core = match &saved {
            Some(bytes) => read_record(&id, boot, bytes)?,
            None => RouterCore::new(boot, first),
        };
        let router = InProcessRouter {
            published: Published::new(&view(&core)?),
            id,
            secret: secret.unwrap_or_else(|| {
                let random = || RandomState::new().hash_one(boot);
                Secret::of_process([random(), random()])
            }),
            keyless: Keyless::new(RandomState::new().hash_one(boot)),
            control: Mutex::new(Control {
                durable: saved.is_some().then(|| core.record()),
                core,
                cap: Share::ALL,
                suspended: Timestamp::default(),
            }),
            memory,
            clock: clock.map_or_else(Time::machine, Time::Host),
        };
        router.save(&mut router.lock())?;
        Ok(router)
    }
}

impl InProcessRouter {
    /// A router that serves this split's baseline the very first time; afterwards what its memory says.
    pub fn builder(id: RouterId, first: Split) -> RouterBuilder {
        RouterBuilder {
            id,
            first,
            memory: None,
            clock: None,
            boot: None,
            secret: None,
        }
    }

    /// Where a request goes. Wait-free, without allocation, clock or lock; `now` is [`Self::now`], read once per request.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    pub fn decide(&self, key: &Key<'_>, now: Timestamp) -> Decision {
        if let Some(session) = key.usual()
            && let Some(decision) = self.published.assign(session, now)
        {
            return decision;
        }
        self.unusual(key, now)
    }

    /// The candidate, if a request of this session is to be mirrored to it now: a share of sessions, independent of who is
    /// served by what. Wait-free, without allocation, clock or lock.
    pub fn mirror(&self, session: &[u8], now: Timestamp) -> Option<VersionSlot> {
        self.published.mirror(session, now)
    }

    /// Serves at the most this part of the candidate's share, until told otherwise: the keys that came in last go back to the
    /// baseline first, as [`Reason::Capped`] and no evidence. See [`crate::DataPlane::keep_within`].
    pub fn cap(&self, part: Share) {
        let mut control = self.lock();
        if control.cap != part {
            control.cap = part;
            self.publish(&control);
        }
    }

    /// Whether the newest raise of the share is what brought the session of this key in, and nothing says when it began.
    pub(crate) fn may_have_flipped(&self, key: &Key<'_>) -> bool {
        self.published.may_have_flipped(key, &self.secret)
    }

    /// The router's clock: the time base of decisions, leases and recordings.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Requests without a key so far.
    pub fn keyless(&self) -> u64 {
        self.keyless.sum()
    }

    /// The version that is being rolled out, while it gets requests or is mirrored to.
    pub fn candidate(&self) -> Option<VersionSlot> {
        let split = self.lock().core.state(self.now()).split;
        VersionSlot::find(split.candidate.as_ref().filter(|_| split.exposes())?)
    }

    /// Sends the candidate's requests to the baseline until then, pinned ones too: [`Reason::Suspended`], and no evidence. It only
    /// ever takes away; a moment that has passed gives the candidate its share again. See [`crate::Breaker`].
    pub fn suspend(&self, until: Timestamp) {
        let mut control = self.lock();
        control.suspended = until;
        self.publish(&control);
    }

    /// What it serves now; installs no fence.
    pub fn state(&self) -> RouterState {
        self.lock().core.state(self.now())
    }

    /// Everything to the baseline at once, and for good: raises are refused until the rollout has ended. Needs neither
    /// store nor controller.
    ///
    /// It pins the baseline of the split in force. While a promotion is under way routers may thus pin different versions; the
    /// rollout, seeing a latch, goes back, and all of them then serve the old baseline.
    ///
    /// # Errors
    /// It is in force in this process, but could not be made durable: a restart would forget it.
    pub fn force_baseline(&self, why: &str) -> Result<()> {
        let mut control = self.lock();
        control.core.force_baseline(why, self.now());
        self.publish(&control);
        self.save(&mut control)
    }

    /// Keyless, pinned, dated, lapsed, forced, capped or counted ahead, or the split is being replaced.
    #[inline(never)]
    fn unusual(&self, key: &Key<'_>, now: Timestamp) -> Decision {
        let chance = if key.session.is_none() {
            self.keyless.chance()
        } else {
            0
        };
        self.published
            .decide(key, now, chance, &self.secret)
            .unwrap_or_else(|| self.published.fallback())
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        // It is changed by assignments that cannot panic half-way.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes it durable unless it is.
    fn save(&self, control: &mut Control) -> Result<()> {
        let record = control.core.record();
        if control.durable.as_ref() != Some(&record) {
            // Until it has certainly been saved, nobody knows what is.
            control.durable = None;
            self.write(&record)?;
            control.durable = Some(record);
        }
        Ok(())
    }

    fn write(&self, record: &Record) -> Result<()> {
        let Some(memory) = &self.memory else {
            return Ok(());
        };
        save_record(&self.id, &**memory, record)
    }

    /// Makes request threads see it. What it serves has been interned before; if not, what is in force stays.
    fn publish(&self, control: &Control) {
        if let Ok(mut view) = view(&control.core) {
            let part = u64::from(control.cap.basis_points());
            view.capped_from = view.candidate_below * part / 10_000;
            if self.now() < control.suspended {
                view.suspended_until = control.suspended.as_millis();
            }
            self.published.write(&view);
        }
    }

    /// Carries out a change. A raise is durable before it is in force; anything else is in force first, since it can only do
    /// good. Either is durable before it is acknowledged.
    fn change(
        &self,
        raises: bool,
        rules: impl FnOnce(&mut RouterCore, Timestamp) -> std::result::Result<(), Refused>,
    ) -> Result<RouterState> {
        let mut control = self.lock();
        let now = self.now();
        control.core.pass(now);
        let mut next = control.core.clone();
        rules(&mut next, now).map_err(|e| refused(&self.id, &e))?;
        view(&next)?;
        if raises {
            let mut saved = Control {
                core: next,
                durable: control.durable.take(),
                cap: control.cap,
                suspended: control.suspended,
            };
            self.save(&mut saved)?;
            *control = saved;
            self.publish(&control);
        } else {
            control.core = next;
            self.publish(&control);
            self.save(&mut control)?;
        }
        Ok(control.core.state(now))
    }
}

/// What a router answers to what its rules refuse.
fn refused(id: &RouterId, refused: &Refused) -> Error {
    let kind = match refused {
        Refused::Fenced { .. } => ErrorKind::Fenced,
        _ => ErrorKind::Permanent,
    };
    Error::new(kind, format!("router {id}: {refused}")).because(refused.clone())
}

fn save_record(id: &RouterId, memory: &dyn RouterMemory, record: &Record) -> Result<()> {
    let bytes = serde_json::to_vec(record)
        .map_err(|e| Error::permanent("a router's record cannot be written").because(e))?;
    memory.save(&bytes).map_err(|e| {
        Error::transient(format!("router {id} could not make its state durable")).because(e)
    })
}

/// The router of a record, if this program can read it.
fn read_record(id: &RouterId, boot: u64, bytes: &[u8]) -> Result<RouterCore> {
    RouterCore::from_json(boot, bytes).map_err(|unreadable| match unreadable {
        UnreadableRecord::Damaged(e) => Error::permanent(format!(
            "the record of router {id} is damaged; nothing was overwritten: restore it, or remove it to start from the store's split"
        ))
        .because(e),
        UnreadableRecord::Format(format) => Error::permanent(format!(
            "the record of router {id} has format {format}, which this program cannot read; nothing was overwritten"
        )),
    })
}

fn view(core: &RouterCore) -> Result<View> {
    let full = |e: TooManyVersions| Error::permanent(e.to_string()).because(e);
    let split = core.split();
    let baseline = VersionSlot::intern(&split.baseline).map_err(full)?;
    let candidate = match &split.candidate {
        Some(candidate) if split.exposes() => Some(VersionSlot::intern(candidate).map_err(full)?),
        _ => None,
    };
    Ok(View::new(
        split,
        baseline,
        candidate,
        core.deadline(),
        core.lapsed(),
        core.latched(),
    ))
}

#[async_trait]
impl TrafficRouter for InProcessRouter {
    fn id(&self) -> &RouterId {
        &self.id
    }

    fn capabilities(&self) -> RouterCapabilities {
        RouterCapabilities {
            fencing: Support::Native,
            lease: Support::Native,
        }
    }

    async fn observe(&self, fence: Fence) -> Result<RouterState> {
        self.change(true, |core, now| core.observe(fence, now))
    }

    async fn set(&self, order: &Order) -> Result<RouterState> {
        let raises = !matches!(order.direction, Direction::Back);
        self.change(raises, |core, now| core.set(order, now))
    }

    async fn renew(&self, at: Position, clock: RouterClock) -> Result<RouterState> {
        self.change(true, |core, now| core.renew(at, clock, now))
    }
}

impl fmt::Debug for InProcessRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcessRouter")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Where a router's time comes from.
enum Time {
    /// Wall time as of its making, then monotonic.
    Machine {
        origin: Timestamp,
        start: Instant,
    },
    Host(Arc<dyn Clock>),
}

impl Time {
    fn machine() -> Self {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self::Machine {
            origin: Timestamp::default().after(unix),
            start: Instant::now(),
        }
    }

    fn now(&self) -> Timestamp {
        match self {
            Self::Machine { origin, start } => origin.after(start.elapsed()),
            Self::Host(clock) => clock.now(),
        }
    }
}
