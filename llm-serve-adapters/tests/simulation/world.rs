//! The world that processes live in: true time, chance, a network, and a record of everything.

use crate::faults::{Fault, Weather};
use crate::history::{Asked, Event, Millis, Sent, Version, What};
use crate::rng::Rng;
use llm_rollout::{Direction, RolloutId, Timestamp};
use llm_serve_adapters::host::{Clock, Error, ErrorKind, Result};
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep};

/// How long a caller waits for an answer of anything but a router.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whom a process talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Link {
    /// The store, from one slot.
    Store(usize),
    /// A router, from one slot.
    Router(usize, usize),
    Source,
    Backend,
    Evaluator,
    Notifier,
}

#[derive(Debug)]
pub(crate) struct World {
    origin: Instant,
    inner: Mutex<Inner>,
    /// Somebody is in doubt.
    pub(crate) doubted: Notify,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) rng: Rng,
    pub(crate) weather: Weather,
    pub(crate) events: Vec<Event>,
    pub(crate) fired: [u32; Fault::ALL.len()],
    /// Links that are down: whether a caller is left waiting.
    pub(crate) cut: BTreeMap<Link, bool>,
    pub(crate) log: Vec<Vec<u8>>,
    /// Numbers for boots, processes and the like.
    pub(crate) number: u64,
    /// Slots whose process does not know whether an append was taken.
    pub(crate) doubts: Vec<usize>,
    /// What each router will hear when somebody is about to lead it on.
    crossing: BTreeMap<usize, Vec<Crossing>>,
    /// Whether a trace is kept for people.
    pub(crate) trace: Option<Vec<String>>,
}

/// A message that is still on its way.
struct Crossing(Box<dyn FnOnce(&World) + Send>);

impl fmt::Debug for Crossing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Crossing")
    }
}

/// What the network does to one call.
#[derive(Debug, Default)]
struct Fate {
    cut: Option<bool>,
    lost: bool,
    reply_lost: bool,
    there: u64,
    back: u64,
    again: Option<u64>,
}

impl World {
    pub(crate) fn new(seed: u64, trace: bool) -> Arc<Self> {
        Arc::new(Self {
            origin: Instant::now(),
            doubted: Notify::new(),
            inner: Mutex::new(Inner {
                rng: Rng::new(seed),
                weather: Weather::CALM,
                events: Vec::with_capacity(2_048),
                fired: [0; Fault::ALL.len()],
                cut: BTreeMap::new(),
                log: Vec::new(),
                number: 0,
                doubts: Vec::new(),
                crossing: BTreeMap::new(),
                trace: trace.then(Vec::new),
            }),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True time.
    pub(crate) fn now(&self) -> Millis {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap()
    }

    /// The newest fence that the store has given.
    pub(crate) fn newest(&self) -> u64 {
        let inner = self.lock();
        let fences = inner.events.iter().rev().filter_map(|e| match e.what {
            What::Acquired { fence, .. } => Some(fence),
            _ => None,
        });
        fences.max().unwrap_or(0)
    }

    pub(crate) fn record(&self, what: What) {
        let at = self.now();
        self.lock().events.push(Event { at, what });
    }

    /// For people only.
    pub(crate) fn tell(&self, text: impl FnOnce() -> String) {
        let at = self.now();
        if let Some(trace) = &mut self.lock().trace {
            trace.push(format!("{:>9.3} s  {}", at as f64 / 1_000.0, text()));
        }
    }

    pub(crate) fn number(&self) -> u64 {
        let mut inner = self.lock();
        inner.number += 1;
        inner.number
    }

    pub(crate) fn between(&self, low: u64, high: u64) -> u64 {
        self.lock().rng.between(low, high)
    }

    /// Whether a fault happens now; notes it.
    pub(crate) fn strikes(&self, fault: Fault) -> bool {
        let mut inner = self.lock();
        let p = inner.weather.of(fault);
        let struck = inner.rng.chance(p);
        inner.fired[fault.index()] += u32::from(struck);
        struck
    }

    /// The process in a slot does not know whether its append was taken; people may see that.
    pub(crate) fn doubt(&self, slot: usize) {
        if self.strikes(Fault::Nervous) {
            self.lock().doubts.push(slot);
            self.doubted.notify_one();
        }
    }

    /// Takes links down for a while. `waits`: callers are left waiting.
    pub(crate) fn cut(self: &Arc<Self>, links: &[Link], longest: u64) {
        let lasts = Duration::from_millis(self.between(200, longest));
        let waits = self.between(0, 1) == 0;
        self.tell(|| format!("{links:?} cut for {lasts:?}"));
        let cut = links.iter().map(|link| (*link, waits));
        self.lock().cut.extend(cut);
        let (world, links) = (Arc::clone(self), links.to_vec());
        tokio::spawn(async move {
            sleep(lasts).await;
            for link in links {
                world.lock().cut.remove(&link);
            }
        });
    }

    fn fate(&self, link: Link, order: Option<&Sent>) -> Fate {
        let cut = {
            let inner = self.lock();
            inner.cut.get(&link).copied()
        };
        if let Some(waits) = cut {
            return Fate {
                cut: Some(waits),
                ..Fate::default()
            };
        }
        let mut fate = Fate {
            lost: self.strikes(Fault::LostRequest),
            reply_lost: self.strikes(Fault::LostReply),
            ..Fate::default()
        };
        if self.strikes(Fault::Delay) {
            let longest = if self.between(0, 3) == 0 {
                15_000
            } else {
                1_000
            };
            fate.there = self.between(1, longest);
        } else if self.between(0, 3) == 0 {
            fate.there = self.between(1, 20);
        }
        if order.is_some_and(|o| matches!(o.asked, Asked::Set(_) | Asked::Renew))
            && self.strikes(Fault::LateOrder)
        {
            fate.there = self.between(200, 20_000);
        }
        if self.between(0, 7) == 0 {
            fate.back = self.between(1, 20);
        }
        if self.strikes(Fault::Duplicate) {
            let longest = self.lock().rng.pick(&[1_000, 20_000, 60_000]);
            fate.again = Some(self.between(1, longest));
        }
        fate
    }

    /// A router is about to be told this: what is to come before a raise does.
    fn cross(&self, order: &Sent) {
        let raises = [Direction::Forward, Direction::Promote].map(Asked::Set);
        if !raises.contains(&order.asked) {
            return;
        }
        let late = self.lock().crossing.remove(&order.router);
        for Crossing(deliver) in late.into_iter().flatten() {
            self.tell(|| format!("(meanwhile, at router {})", order.router));
            deliver(self);
        }
    }

    /// A process calls something outside of it: what is called may happen, later, twice or not at all, and the process may
    /// not hear of it, or die before or after.
    pub(crate) async fn call<T, F>(
        self: &Arc<Self>,
        process: &Arc<Process>,
        link: Link,
        order: Option<Sent>,
        deliver: F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&Self) -> Result<T> + Send + Sync + 'static,
    {
        process.point(self).await;
        self.record(What::Calls {
            process: process.number,
            order,
        });
        let fate = self.fate(link, order.as_ref());
        if let Some(waits) = fate.cut {
            sleep(if waits {
                PATIENCE
            } else {
                Duration::from_millis(5)
            })
            .await;
            return Err(Error::transient("it cannot be reached"));
        }
        if fate.lost {
            sleep(PATIENCE).await;
            return Err(Error::transient("the request was lost"));
        }
        let deliver = Arc::new(move |world: &Self| {
            if let Some(order) = order {
                world.cross(&order);
            }
            deliver(world)
        });
        let back = order.filter(|o| o.asked == Asked::Set(Direction::Back));
        if let Some(order) = back
            && self.strikes(Fault::Crossing)
        {
            let deliver = Arc::clone(&deliver);
            let late = Crossing(Box::new(move |world| drop(deliver(world))));
            self.lock()
                .crossing
                .entry(order.router)
                .or_default()
                .push(late);
            sleep(PATIENCE).await;
            return Err(Error::transient("no answer came in time"));
        }
        let answer = if fate.there == 0 && fate.again.is_none() {
            deliver(self)
        } else {
            let (reply, answer) = oneshot::channel();
            let world = Arc::clone(self);
            tokio::spawn(async move {
                sleep(Duration::from_millis(fate.there)).await;
                drop(reply.send(deliver(&world)));
                if let Some(again) = fate.again {
                    sleep(Duration::from_millis(again)).await;
                    world.tell(|| format!("(again: {link:?} {order:?})"));
                    drop(deliver(&world));
                }
            });
            match tokio::time::timeout(PATIENCE, answer).await {
                Ok(Ok(answer)) => answer,
                _ => Err(Error::transient("no answer came in time")),
            }
        };
        process.point(self).await;
        if fate.reply_lost {
            sleep(PATIENCE).await;
            return Err(Error::transient("the reply was lost"));
        }
        if fate.back > 0 {
            sleep(Duration::from_millis(fate.back)).await;
        }
        if !process.is_alive() {
            std::future::pending::<()>().await;
        }
        if answer
            .as_ref()
            .is_err_and(|e| e.kind() == ErrorKind::Fenced)
        {
            self.record(What::Fenced {
                process: process.number,
            });
        }
        answer
    }
}

/// A process that may die at any moment. Its tasks are left to themselves then, but none of their calls goes out any more,
/// and nothing that they have kept is ever looked at.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) number: u32,
    pub(crate) slot: usize,
    alive: AtomicBool,
    /// Calls, counted at both ends, after which it dies.
    left: AtomicU64,
    /// True time until which it stands still.
    still: AtomicU64,
    pub(crate) died: Notify,
}

impl Process {
    pub(crate) fn new(number: u32, slot: usize) -> Arc<Self> {
        Arc::new(Self {
            number,
            slot,
            alive: AtomicBool::new(true),
            left: AtomicU64::new(u64::MAX),
            still: AtomicU64::new(0),
            died: Notify::new(),
        })
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::SeqCst)
    }

    pub(crate) fn die_after(&self, calls: u64) {
        self.left.store(calls, Ordering::SeqCst);
    }

    pub(crate) fn pause(&self, until: Millis) {
        self.still.store(until, Ordering::SeqCst);
    }

    pub(crate) fn die(&self, world: &World) {
        if self.alive.swap(false, Ordering::SeqCst) {
            world.record(What::Died {
                process: self.number,
            });
            world.tell(|| format!("process {} dies", self.number));
            self.died.notify_one();
        }
    }

    /// A point at which it may die; nothing comes after that.
    async fn point(&self, world: &World) {
        let still = self
            .still
            .load(Ordering::SeqCst)
            .saturating_sub(world.now());
        if still > 0 {
            sleep(Duration::from_millis(still)).await;
        }
        let left = self.left.load(Ordering::SeqCst);
        if left == 0 {
            self.die(world);
        } else if left != u64::MAX {
            self.left.store(left - 1, Ordering::SeqCst);
        }
        if !self.is_alive() {
            std::future::pending::<()>().await;
        }
    }
}

/// A clock with an error of its own. It shows 0 at true time 0, plus its offset.
#[derive(Debug)]
pub(crate) struct Crooked {
    world: Arc<World>,
    /// Milliseconds ahead of true time at true time 0.
    ahead: AtomicU64,
    /// Milliseconds per second of true time, at least 1.
    rate: u64,
}

impl Crooked {
    pub(crate) fn new(world: &Arc<World>, ahead: u64, rate: u64) -> Self {
        Self {
            world: Arc::clone(world),
            ahead: AtomicU64::new(ahead),
            rate,
        }
    }

    pub(crate) fn jump(&self, by: u64) {
        self.ahead.fetch_add(by, Ordering::SeqCst);
    }

    pub(crate) fn ahead(&self) -> u64 {
        self.ahead.load(Ordering::SeqCst)
    }

    /// The true time at which it showed this, to a millisecond.
    pub(crate) fn when(&self, shown: Timestamp) -> Millis {
        shown.as_millis().saturating_sub(self.ahead()) * 1_000 / self.rate
    }
}

#[async_trait::async_trait]
impl Clock for Crooked {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.ahead() + self.world.now() * self.rate / 1_000)
    }

    async fn sleep(&self, duration: Duration) {
        sleep(duration).await;
    }
}

/// A clock that more than one holds.
#[derive(Debug, Clone)]
pub(crate) struct Shared(pub(crate) Arc<Crooked>);

#[async_trait::async_trait]
impl Clock for Shared {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    async fn sleep(&self, duration: Duration) {
        self.0.sleep(duration).await;
    }
}

/// Rollouts of one life, at the most.
pub(crate) const MOST: usize = 3;

static VERSIONS: LazyLock<[VersionId; MOST + 2]> = LazyLock::new(|| {
    std::array::from_fn(|n| n).map(|n| {
        format!("chat/v{n}.0.0-{}", format!("{n:02x}").repeat(32))
            .parse()
            .unwrap()
    })
});

pub(crate) fn version(n: Version) -> VersionId {
    VERSIONS[usize::from(n)].clone()
}

pub(crate) fn number_of(version: &VersionId) -> Version {
    u8::try_from(version.version().major()).unwrap()
}

pub(crate) fn rollout(n: u8) -> RolloutId {
    RolloutId::new(format!("r{n}")).unwrap()
}

pub(crate) fn number_of_rollout(id: &RolloutId) -> u8 {
    id.as_str()[1..].parse().unwrap()
}
