//! What else a host brings: users, their metrics, engines, an evaluation suite, somebody to tell.

use crate::faults::Fault;
use crate::history::{Doing, Version, What};
use crate::world::{Link, MOST, Process, World, number_of, version};
use async_trait::async_trait;
use llm_gates::{Counts, Increment, Measurement, Measurements, Sample, Window};
use llm_rollout::{Heartbeat, Position, Timestamp};
use llm_serve_adapters::host::{
    Cursor, Error, Evaluator, Letter, MetricSource, Notifier, Query, Reading, Result,
    ServingBackend,
};
use llm_version_core::VersionId;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::sleep;

/// What a version is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quality {
    Good,
    /// Two requests in five fail, from a true time on.
    Bad(u64),
    /// Never answers.
    Silent,
    /// Fails the evaluation before any exposure.
    Toxic,
    /// Cannot be loaded.
    Unloadable,
}

impl Quality {
    /// Whether it must not be promoted by gates.
    pub(crate) fn is_bad(self) -> bool {
        matches!(self, Self::Bad(0) | Self::Silent | Self::Unloadable)
    }
}

type Counted = BTreeMap<(u64, Version), Counts>;

/// Users and what became of their requests, as the monitoring of the host knows it.
#[derive(Debug)]
pub(crate) struct Users {
    quality: [Quality; MOST + 2],
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    truth: Counted,
    /// What monitoring holds: the truth since its counts were lost.
    counted: Counted,
    /// How the counts stood some seconds ago, the oldest first.
    earlier: VecDeque<Counted>,
    life: u64,
    exposed: BTreeMap<Version, u64>,
    /// When the oldest request came that waits for its first token.
    waiting: BTreeMap<Version, u64>,
}

impl Users {
    pub(crate) fn new(quality: [Quality; MOST + 2]) -> Arc<Self> {
        Arc::new(Self {
            quality,
            inner: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn quality(&self, version: Version) -> Quality {
        self.quality[usize::from(version)]
    }

    /// Requests were given to a version; those that chance assigned are evidence.
    pub(crate) fn served(
        &self,
        world: &World,
        epoch: u64,
        version: Version,
        candidate: bool,
        n: u32,
    ) {
        let now = world.now();
        let rate = match self.quality(version) {
            Quality::Bad(from) if now >= from => 0.4,
            _ => 0.02,
        };
        let mut inner = self.lock();
        if candidate {
            *inner.exposed.entry(version).or_default() += u64::from(n);
        }
        if self.quality(version) == Quality::Silent {
            inner.waiting.entry(version).or_insert(now);
            return;
        }
        let mut world = world.lock();
        let k = (0..n).filter(|_| world.rng.chance(rate)).count() as u64;
        let Inner { truth, counted, .. } = &mut *inner;
        for counts in [truth, counted] {
            let counts = counts.entry((epoch, version)).or_default();
            counts.n += u64::from(n);
            counts.k += k;
        }
    }

    /// Some time has passed.
    pub(crate) fn pass(&self) {
        let mut inner = self.lock();
        let now = inner.counted.clone();
        inner.earlier.push_back(now);
        if inner.earlier.len() > 6 {
            inner.earlier.pop_front();
        }
    }

    /// Monitoring loses its counts.
    pub(crate) fn forget(&self) {
        let mut inner = self.lock();
        inner.life += 1;
        inner.counted.clear();
        inner.earlier.clear();
    }

    pub(crate) fn truth(&self) -> Vec<(u64, Version, u64, u64)> {
        let inner = self.lock();
        let told = |(&(epoch, version), counts): (&(u64, Version), &Counts)| {
            (epoch, version, counts.n, counts.k)
        };
        inner.truth.iter().map(told).collect()
    }
}

/// Where a read stood: the life of the counts, the epoch, both arms, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stand {
    life: u64,
    epoch: u64,
    candidate: Counts,
    baseline: Counts,
    at: u64,
}

impl Stand {
    fn write(self) -> Cursor {
        let Self {
            life,
            epoch,
            candidate: c,
            baseline: b,
            at,
        } = self;
        Cursor::new(format!(
            "{life} {epoch} {} {} {} {} {at}",
            c.n, c.k, b.n, b.k
        ))
    }

    fn read(cursor: &Cursor) -> Option<Self> {
        let mut parts = cursor.as_str().split(' ').map(|part| part.parse().ok());
        let mut next = || parts.next().flatten();
        Some(Self {
            life: next()?,
            epoch: next()?,
            candidate: Counts {
                n: next()?,
                k: next()?,
            },
            baseline: Counts {
                n: next()?,
                k: next()?,
            },
            at: next()?,
        })
    }
}

/// What a process holds of the monitoring.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) world: Arc<World>,
    pub(crate) process: Arc<Process>,
    pub(crate) users: Arc<Users>,
    /// What it said last.
    said: Mutex<Option<Reading>>,
}

impl Source {
    pub(crate) fn new(world: Arc<World>, process: Arc<Process>, users: Arc<Users>) -> Self {
        let said = Mutex::default();
        Self {
            world,
            process,
            users,
            said,
        }
    }

    async fn stand(&self, query: Query<'_>, now: Timestamp) -> Result<(Stand, Heartbeat)> {
        let users = Arc::clone(&self.users);
        let (candidate, baseline) = (number_of(query.candidate), number_of(query.baseline));
        let epoch = query.epoch.get();
        let deliver = move |world: &World| {
            let late = world.strikes(Fault::SourceLate);
            let inner = users.lock();
            let counted = match inner.earlier.front() {
                Some(earlier) if late => earlier,
                _ => &inner.counted,
            };
            let of = |version| counted.get(&(epoch, version)).copied().unwrap_or_default();
            let stand = Stand {
                life: inner.life,
                epoch,
                candidate: of(candidate),
                baseline: of(baseline),
                at: now.as_millis(),
            };
            let since = inner.waiting.get(&candidate).copied();
            let beat = Heartbeat {
                exposed: inner.exposed.get(&candidate).copied().unwrap_or_default(),
                waiting: Duration::from_millis(since.map_or(0, |since| world.now() - since)),
            };
            Ok((stand, beat))
        };
        self.world
            .call(&self.process, Link::Source, None, deliver)
            .await
    }
}

#[async_trait]
impl MetricSource for Source {
    async fn open(&self, query: Query<'_>, now: Timestamp) -> Result<Cursor> {
        Ok(self.stand(query, now).await?.0.write())
    }

    async fn read(&self, query: Query<'_>, cursor: &Cursor, now: Timestamp) -> Result<Reading> {
        let (stand, heartbeat) = self.stand(query, now).await?;
        let anew = || Error::permanent("the counts do not go on from the cursor: open anew");
        let mut before = Stand::read(cursor)
            .filter(|b| b.life == stand.life)
            .ok_or_else(anew)?;
        if before.epoch != stand.epoch {
            // It goes by time: of this split nothing had been counted then.
            (before.candidate, before.baseline) = Default::default();
        }
        let gained = |now: Counts, before: Counts| {
            let (n, k) = (now.n.checked_sub(before.n)?, now.k.checked_sub(before.k)?);
            Some(Counts { n, k })
        };
        let late = || Error::transient("nothing newer is known yet");
        if stand.at <= before.at {
            return Err(late());
        }
        let increment = Increment::Binary {
            candidate: gained(stand.candidate, before.candidate).ok_or_else(late)?,
            baseline: gained(stand.baseline, before.baseline).ok_or_else(late)?,
        };
        let metrics = query
            .metrics
            .keys()
            .map(|name| (name.clone(), increment.clone()));
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(said) = said.as_ref().filter(|s| s.window.epoch != stand.epoch)
            && self.world.strikes(Fault::SourceStale)
        {
            return Ok(said.clone());
        }
        let reading = Reading {
            window: Window {
                epoch: stand.epoch,
                from: before.at,
                to: stand.at,
                metrics: metrics.collect(),
            },
            cursor: stand.write(),
            heartbeat: Some(heartbeat),
        };
        *said = Some(reading.clone());
        Ok(reading)
    }
}

/// The engines: they know what is loaded, and the newest order about each version.
#[derive(Debug, Default)]
pub(crate) struct Engines {
    loaded: Mutex<BTreeMap<Version, (Position, bool)>>,
    /// The version that cannot serve for now; 0 for none.
    down: AtomicU8,
}

impl Engines {
    pub(crate) fn with_first() -> Arc<Self> {
        let first = BTreeMap::from([(1, (Position::default(), true))]);
        Arc::new(Self {
            loaded: Mutex::new(first),
            down: AtomicU8::new(0),
        })
    }

    pub(crate) fn take_down(&self, version: Version) {
        self.down.store(version, Ordering::SeqCst);
    }

    fn order(&self, version: Version, at: Position, loads: bool) -> Result<()> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = loaded.entry(version).or_default();
        if at < entry.0 {
            return Err(Error::permanent(
                "something newer was ordered for this version",
            ));
        }
        *entry = (at, loads);
        Ok(())
    }
}

/// What a process holds of the engines.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) world: Arc<World>,
    pub(crate) process: Arc<Process>,
    pub(crate) engines: Arc<Engines>,
    pub(crate) users: Arc<Users>,
}

impl Backend {
    async fn order(&self, doing: Doing, version: Version, at: Position, loads: bool) -> Result<()> {
        if self.world.strikes(Fault::BackendFails) {
            sleep(Duration::from_millis(200)).await;
            return Err(Error::transient("the engine did not do it"));
        }
        let engines = Arc::clone(&self.engines);
        let process = self.process.number;
        let deliver = move |world: &World| {
            let answer = engines.order(version, at, loads);
            let accepted = answer.is_ok();
            let (fence, seq) = (at.fence.get(), at.seq.get());
            world.record(What::Backend {
                process,
                doing,
                fence,
                seq,
                accepted,
            });
            world.tell(|| {
                format!("backend {doing:?} {fence}.{seq} by process {process}: {accepted}")
            });
            answer
        };
        self.world
            .call(&self.process, Link::Backend, None, deliver)
            .await?;
        if self.world.strikes(Fault::BackendSlow) {
            sleep(Duration::from_millis(self.world.between(1, 6_000))).await;
        }
        Ok(())
    }
}

#[async_trait]
impl ServingBackend for Backend {
    async fn prepare(&self, id: &VersionId, at: Position) -> Result<()> {
        let n = number_of(id);
        if self.users.quality(n) == Quality::Unloadable {
            return Err(Error::permanent("it does not fit into any engine"));
        }
        self.order(Doing::Prepare(n), n, at, true).await
    }

    async fn standby(&self, id: &VersionId, at: Position) -> Result<()> {
        let n = number_of(id);
        self.order(Doing::Standby(n), n, at, false).await
    }

    async fn healthy(&self, id: &VersionId) -> Result<Option<bool>> {
        let (n, engines) = (number_of(id), Arc::clone(&self.engines));
        let deliver = move |_: &World| Ok(Some(engines.down.load(Ordering::SeqCst) != n));
        self.world
            .call(&self.process, Link::Backend, None, deliver)
            .await
    }

    async fn in_flight(&self, _: &VersionId) -> Result<Option<u64>> {
        Ok(match self.world.between(0, 3) {
            0 => None,
            1 => Some(1),
            _ => Some(0),
        })
    }

    async fn retire(&self, id: &VersionId, at: Position) -> Result<()> {
        let n = number_of(id);
        self.order(Doing::Retire(n), n, at, false).await
    }
}

/// What a process holds of the evaluation suite.
#[derive(Debug)]
pub(crate) struct Suite {
    pub(crate) world: Arc<World>,
    pub(crate) process: Arc<Process>,
    pub(crate) users: Arc<Users>,
}

#[async_trait]
impl Evaluator for Suite {
    async fn evaluate(&self, candidate: &VersionId, _: &VersionId) -> Result<Measurements> {
        if self.world.strikes(Fault::EvaluatorFails) {
            return Err(Error::transient("the suite fell over"));
        }
        let toxic = self.users.quality(number_of(candidate)) == Quality::Toxic;
        let mean = if toxic { 0.2 } else { 0.01 };
        let deliver = move |_: &World| {
            let sample = Sample::Mean {
                mean,
                sd: 0.05,
                n: 500,
            };
            Ok(Measurements::from([(
                "toxicity".to_owned(),
                Measurement::of(sample),
            )]))
        };
        self.world
            .call(&self.process, Link::Evaluator, None, deliver)
            .await
    }
}

/// What a process holds of the pager.
#[derive(Debug)]
pub(crate) struct Pager {
    pub(crate) world: Arc<World>,
    pub(crate) process: Arc<Process>,
}

#[async_trait]
impl Notifier for Pager {
    async fn notify(&self, letter: &Letter<'_>) -> Result<()> {
        if self.world.strikes(Fault::NotifierFails) {
            return Err(Error::transient("the pager is down"));
        }
        let (id, process) = (letter.id, self.process.number);
        let text = letter
            .notice
            .text
            .bytes()
            .fold(7_u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        let deliver = move |world: &World| {
            world.record(What::Notified { process, id, text });
            Ok(())
        };
        self.world
            .call(&self.process, Link::Notifier, None, deliver)
            .await
    }
}

pub(crate) fn first() -> VersionId {
    version(1)
}
