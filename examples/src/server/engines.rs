//! The versions that are loaded, and who may compute on them.

use async_trait::async_trait;
use desk_model::{LmError, Model, desk};
use llm_rollout::Position;
use llm_serve_adapters::host::{Error, Result, ServingBackend};
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long loading and warming up may take.
const LOADING: Duration = Duration::from_secs(120);
/// A short and a long letter, so that every buffer has had its size once.
const WARM_UP: u64 = 2;

/// How much is computed at a time, and how much may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct Limits {
    /// Generations that run at a time.
    pub cores: usize,
    /// Requests that may wait for one; more are turned away.
    pub queue: usize,
    /// How long one of them may wait.
    pub wait: Duration,
    /// How long a reply may take.
    pub reply: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cores: std::thread::available_parallelism().map_or(2, usize::from),
            queue: 64,
            wait: Duration::from_secs(10),
            reply: Duration::from_secs(30),
        }
    }
}

/// The versions that this process can serve: what a rollout loads, drains and
/// retires. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Engines {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    versions: Mutex<BTreeMap<VersionId, Slot>>,
    limits: Limits,
    cores: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

/// What is known of one version.
#[derive(Debug)]
struct Slot {
    directory: PathBuf,
    /// Of the newest load or retirement.
    at: Position,
    engine: Option<Arc<Engine>>,
    running: Arc<AtomicU64>,
}

/// One loaded version.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) model: Model,
    pub(super) reference: String,
    retired: AtomicBool,
}

impl Engine {
    /// Whether what runs on it is to stop.
    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }
}

/// Counts one request as running for as long as it lives.
#[derive(Debug)]
pub(super) struct Running {
    count: Arc<AtomicU64>,
}

impl Running {
    fn begin(count: &Arc<AtomicU64>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self {
            count: Arc::clone(count),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A core to compute on.
#[derive(Debug)]
pub(super) struct Turn {
    _core: OwnedSemaphorePermit,
    _place: OwnedSemaphorePermit,
}

/// Why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoTurn {
    /// Too many wait already.
    Full,
    /// It took too long.
    Late,
}

impl Engines {
    /// Of these versions, each in its directory. They are loaded by
    /// [`Self::load`], or when a rollout prepares them.
    pub fn new<P: Into<PathBuf>>(versions: impl IntoIterator<Item = (VersionId, P)>) -> Self {
        let engines = Self::with_limits(Limits::default());
        for (version, directory) in versions {
            engines.add(version, directory);
        }
        engines
    }

    /// Of no version yet, with limits of one's own.
    pub fn with_limits(limits: Limits) -> Self {
        let cores = limits.cores.clamp(1, 4_096);
        let places = cores.saturating_add(limits.queue).min(1 << 20);
        Self {
            shared: Arc::new(Shared {
                versions: Mutex::default(),
                limits,
                cores: Arc::new(Semaphore::new(cores)),
                places: Arc::new(Semaphore::new(places)),
            }),
        }
    }

    /// Says where a version lies.
    pub fn add(&self, version: VersionId, directory: impl Into<PathBuf>) {
        let directory = directory.into();
        let mut versions = self.versions();
        if let Some(slot) = versions.get_mut(&version) {
            slot.directory = directory;
        } else {
            let slot = Slot {
                directory,
                at: Position::default(),
                engine: None,
                running: Arc::default(),
            };
            versions.insert(version, slot);
        }
    }

    /// Loads a version outside of any rollout: those of the recorded split,
    /// when the process starts.
    ///
    /// # Errors
    ///
    /// As [`ServingBackend::prepare`].
    pub async fn load(&self, version: &VersionId) -> Result<()> {
        let at = self.versions().get(version).map(|slot| slot.at);
        self.bring_up(version, at.unwrap_or_default()).await
    }

    /// The versions that are loaded.
    pub fn loaded(&self) -> Vec<VersionId> {
        let versions = self.versions();
        let loaded = versions.iter().filter(|(_, slot)| slot.engine.is_some());
        loaded.map(|(version, _)| version.clone()).collect()
    }

    /// Requests that are running on a version.
    pub fn running(&self, version: &VersionId) -> u64 {
        let versions = self.versions();
        let slot = versions.get(version);
        slot.map_or(0, |slot| slot.running.load(Ordering::Acquire))
    }

    pub(super) fn limits(&self) -> Limits {
        self.shared.limits
    }

    /// A request begins on a version; nothing if it is not loaded.
    pub(super) fn begin(&self, version: &VersionId) -> Option<(Arc<Engine>, Running)> {
        let versions = self.versions();
        let slot = versions.get(version)?;
        let engine = slot.engine.as_ref()?;
        // counted under the lock: nobody can retire it uncounted
        Some((Arc::clone(engine), Running::begin(&slot.running)))
    }

    /// Waits for a core, within the limits.
    pub(super) async fn turn(&self) -> std::result::Result<Turn, NoTurn> {
        let place = Arc::clone(&self.shared.places);
        let place = place.try_acquire_owned().map_err(|_| NoTurn::Full)?;
        let core = Arc::clone(&self.shared.cores).acquire_owned();
        match tokio::time::timeout(self.shared.limits.wait, core).await {
            Ok(Ok(core)) => Ok(Turn {
                _core: core,
                _place: place,
            }),
            Ok(Err(_)) | Err(_) => Err(NoTurn::Late),
        }
    }

    /// Whether another request could wait for a core.
    #[cfg(test)]
    pub(super) fn turn_would_wait(&self) -> bool {
        self.shared.places.available_permits() > 0
    }

    /// Whether nothing is being computed.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.shared.cores.available_permits() == self.shared.limits.cores
    }

    fn versions(&self) -> MutexGuard<'_, BTreeMap<VersionId, Slot>> {
        // every change under the lock is one assignment, so a panic cannot have torn it
        let versions = self.shared.versions.lock();
        versions.unwrap_or_else(PoisonError::into_inner)
    }

    async fn bring_up(&self, version: &VersionId, at: Position) -> Result<()> {
        let directory = {
            let mut versions = self.versions();
            let slot = versions
                .get_mut(version)
                .ok_or_else(|| Error::permanent(format!("nothing is known of {version}")))?;
            slot.accept(version, at)?;
            if slot.engine.is_some() {
                return Ok(());
            }
            slot.directory.clone()
        };
        let reference = version.reference().to_string();
        let loading = tokio::task::spawn_blocking(move || {
            let model = Model::load(&directory)?;
            for index in 0..WARM_UP {
                model.answer(&desk::live_request(0, index).text, index);
            }
            Ok(model)
        });
        let model = match tokio::time::timeout(LOADING, loading).await {
            Ok(Ok(model)) => model.map_err(|error| refusal(version, error))?,
            Ok(Err(panic)) => {
                return Err(Error::permanent(format!("{version} cannot run")).because(panic));
            }
            Err(late) => {
                return Err(Error::transient(format!("{version} is still loading")).because(late));
            }
        };
        let mut versions = self.versions();
        let slot = versions
            .get_mut(version)
            .filter(|slot| slot.at <= at)
            .ok_or_else(|| superseded(version))?;
        slot.engine.get_or_insert_with(|| {
            Arc::new(Engine {
                model,
                reference,
                retired: AtomicBool::new(false),
            })
        });
        Ok(())
    }
}

impl Slot {
    fn accept(&mut self, version: &VersionId, at: Position) -> Result<()> {
        if at < self.at {
            return Err(superseded(version));
        }
        self.at = at;
        Ok(())
    }
}

fn superseded(version: &VersionId) -> Error {
    Error::permanent(format!("{version} has been loaded or retired since"))
}

/// What is wrong in a bundle stays wrong; a file that cannot be read now may
/// be readable later.
fn refusal(version: &VersionId, error: LmError) -> Error {
    let message = format!("{version} cannot be loaded: {error}");
    match &error {
        LmError::Io { source, .. } if source.kind() != std::io::ErrorKind::NotFound => {
            Error::transient(message).because(error)
        }
        _ => Error::permanent(message).because(error),
    }
}

#[async_trait]
impl ServingBackend for Engines {
    async fn prepare(&self, version: &VersionId, at: Position) -> Result<()> {
        self.bring_up(version, at).await
    }

    async fn in_flight(&self, version: &VersionId) -> Result<Option<u64>> {
        Ok(Some(self.running(version)))
    }

    async fn retire(&self, version: &VersionId, at: Position) -> Result<()> {
        let mut versions = self.versions();
        let Some(slot) = versions.get_mut(version) else {
            return Ok(());
        };
        slot.accept(version, at)?;
        if let Some(engine) = slot.engine.take() {
            engine.retired.store(true, Ordering::Release);
        }
        Ok(())
    }
}

impl fmt::Display for NoTurn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "too many requests are waiting; try again shortly",
            Self::Late => "the request has waited too long for a core",
        })
    }
}
