//! What each thread owns of a recorder, and what is left of it when the thread ends.

use super::cell::{Cell, Interrupted, Subject, Totals};
use super::waiting::Waiting;
use crate::router::{Decision, Grow, Role, VersionSlot};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// How many epochs a thread keeps: what ends later than that is counted as late.
const EPOCHS: usize = 4;
/// Three roles, each at random or apart.
const KINDS: usize = 6;

/// What a request counts as: its role, and whether chance decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind(usize);

impl Kind {
    pub(crate) const fn new(role: Role, randomised: bool) -> Self {
        let role = match role {
            Role::Baseline => 0,
            Role::Candidate => 1,
            Role::Control => 2,
        };
        Self(if randomised { role } else { role + 3 })
    }

    pub(crate) const fn role(self) -> Role {
        match self.0 % 3 {
            0 => Role::Baseline,
            1 => Role::Candidate,
            _ => Role::Control,
        }
    }

    pub(crate) const fn randomised(self) -> bool {
        self.0 < 3
    }
}

/// Requests of one version, over all epochs.
#[derive(Debug, Default)]
pub(crate) struct Load {
    pub(crate) begun: AtomicU64,
    pub(crate) ended: AtomicU64,
    /// Begun in the role of the candidate.
    pub(crate) exposed: AtomicU64,
}

pub(crate) fn bump(word: &AtomicU64) {
    word.store(
        word.load(Ordering::Relaxed).wrapping_add(1),
        Ordering::Relaxed,
    );
}

/// One thread's part of a recorder: only that thread writes it (the part of ended threads: whoever holds the registry).
#[repr(align(128))]
pub(crate) struct Shard {
    pub(crate) recorder: u64,
    pub(crate) owner: Weak<Registry>,
    pub(crate) waiting: Arc<Waiting>,
    pub(crate) flags: Arc<[String]>,
    /// Where its search for a place among the waiting begins; no two threads begin at the same.
    pub(crate) home: usize,
    cells: [[OnceLock<Box<Cell>>; KINDS]; EPOCHS],
    load: Grow<Load>,
    late: AtomicU64,
}

impl Shard {
    fn new(registry: &Registry, number: usize) -> Self {
        Self {
            recorder: registry.recorder,
            owner: Weak::clone(&registry.own),
            waiting: Arc::clone(&registry.waiting),
            flags: Arc::clone(&registry.flags),
            home: number.wrapping_mul(64),
            cells: [const { [const { OnceLock::new() }; KINDS] }; EPOCHS],
            load: Grow::new(Load::default()),
            late: AtomicU64::new(0),
        }
    }

    /// The cell to record in; none (and counted) if its epoch is too long ago.
    #[inline]
    pub(crate) fn cell(&self, decision: &Decision) -> Option<&Cell> {
        let subject = Subject {
            epoch: decision.epoch.get(),
            version: decision.version,
            controlled: decision.controlled,
        };
        self.cell_of(subject, Kind::new(decision.role, decision.randomised))
    }

    #[inline]
    fn cell_of(&self, subject: Subject, kind: Kind) -> Option<&Cell> {
        let slot = usize::try_from(subject.epoch % EPOCHS as u64).unwrap_or(0);
        let cell = self
            .cells
            .get(slot)?
            .get(kind.0)?
            .get_or_init(|| Box::new(Cell::new()));
        if cell.claim(subject) {
            Some(cell)
        } else {
            bump(&self.late);
            None
        }
    }

    #[inline]
    pub(crate) fn load(&self, version: VersionSlot) -> &Load {
        self.load.entry(version.index())
    }

    fn cells(&self) -> impl Iterator<Item = (Kind, &Cell)> {
        self.cells
            .iter()
            .flat_map(|kinds| kinds.iter().enumerate())
            .filter_map(|(kind, cell)| Some((Kind(kind), &**cell.get()?)))
    }

    /// Adds everything that an ended thread has left.
    fn absorb(&self, other: &Self) {
        for (kind, cell) in other.cells() {
            // Its writer has ended, so that nothing is ever in the middle of a write.
            if let Ok(Some((subject, totals))) = cell.read()
                && let Some(own) = self.cell_of(subject, kind)
            {
                own.absorb(&totals);
            }
        }
        for index in 0..=u16::MAX {
            let Some(load) = other.load.get(index) else {
                break;
            };
            let own = self.load.entry(index);
            for (to, from) in [
                (&own.begun, &load.begun),
                (&own.ended, &load.ended),
                (&own.exposed, &load.exposed),
            ] {
                let sum = to
                    .load(Ordering::Relaxed)
                    .wrapping_add(from.load(Ordering::Relaxed));
                to.store(sum, Ordering::Relaxed);
            }
        }
        let late = self.late.load(Ordering::Relaxed) + other.late.load(Ordering::Relaxed);
        self.late.store(late, Ordering::Relaxed);
    }
}

/// Sums over all threads, by epoch and kind.
pub(crate) type Sums = BTreeMap<(u64, Kind), (Subject, Totals)>;

/// All shards of a recorder.
pub(crate) struct Registry {
    pub(crate) recorder: u64,
    pub(crate) waiting: Arc<Waiting>,
    pub(crate) flags: Arc<[String]>,
    own: Weak<Self>,
    shards: Mutex<Shards>,
}

struct Shards {
    live: Vec<Arc<Shard>>,
    /// What ended threads have left.
    retired: OnceLock<Arc<Shard>>,
    next: usize,
}

static RECORDERS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static OWN: RefCell<Own> = const { RefCell::new(Own(Vec::new())) };
}

/// The shards of this thread; folded into what is left when it ends.
struct Own(Vec<Arc<Shard>>);

impl Drop for Own {
    fn drop(&mut self) {
        for shard in self.0.drain(..) {
            if let Some(registry) = shard.owner.upgrade() {
                registry.retire(&shard);
            }
        }
    }
}

/// Runs on this thread's shard of the recorder that `shard` belongs to.
#[inline]
pub(crate) fn on_own<R>(
    recorder: u64,
    owner: &Weak<Registry>,
    run: impl FnOnce(&Arc<Shard>) -> R,
) -> Option<R> {
    let mut run = Some(run);
    let done = OWN.try_with(|own| {
        let mut own = own.try_borrow_mut().ok()?;
        let index = match own.0.iter().position(|shard| shard.recorder == recorder) {
            Some(index) => index,
            None => register(&mut own.0, owner)?,
        };
        run.take().map(|run| run(&own.0[index]))
    });
    match done {
        Ok(Some(result)) => Some(result),
        // The thread is ending and has handed in its shard, or the recorder is gone.
        _ => owner
            .upgrade()
            .zip(run)
            .map(|(registry, run)| registry.on_retired(run)),
    }
}

#[cold]
fn register(own: &mut Vec<Arc<Shard>>, owner: &Weak<Registry>) -> Option<usize> {
    let registry = owner.upgrade()?;
    own.retain(|shard| shard.owner.strong_count() > 0);
    own.push(registry.add());
    Some(own.len() - 1)
}

impl Registry {
    pub(crate) fn new(flags: Vec<String>) -> Arc<Self> {
        Arc::new_cyclic(|own| Self {
            recorder: RECORDERS.fetch_add(1, Ordering::Relaxed),
            waiting: Arc::new(Waiting::new()),
            flags: flags.into(),
            own: Weak::clone(own),
            shards: Mutex::new(Shards {
                live: Vec::new(),
                retired: OnceLock::new(),
                next: 1,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Shards> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self) -> Arc<Shard> {
        let mut shards = self.lock();
        let shard = Arc::new(Shard::new(self, shards.next));
        shards.next = shards.next.wrapping_add(1);
        shards.live.push(Arc::clone(&shard));
        shard
    }

    fn retire(&self, shard: &Arc<Shard>) {
        let mut shards = self.lock();
        shards.live.retain(|live| !Arc::ptr_eq(live, shard));
        shards
            .retired
            .get_or_init(|| Arc::new(Shard::new(self, 0)))
            .absorb(shard);
    }

    pub(crate) fn own(&self) -> &Weak<Self> {
        &self.own
    }

    pub(crate) fn on_retired<R>(&self, run: impl FnOnce(&Arc<Shard>) -> R) -> R {
        let shards = self.lock();
        run(shards.retired.get_or_init(|| Arc::new(Shard::new(self, 0))))
    }

    fn each(
        &self,
        mut visit: impl FnMut(&Shard) -> Result<(), Interrupted>,
    ) -> Result<(), Interrupted> {
        let shards = self.lock();
        shards
            .live
            .iter()
            .chain(shards.retired.get())
            .try_for_each(|shard| visit(shard))
    }

    /// Sums over all threads, by epoch and kind. Writers go on meanwhile.
    pub(crate) fn totals(&self, epoch: Option<u64>) -> Result<Sums, Interrupted> {
        let mut sums = Sums::new();
        self.each(|shard| {
            for (kind, cell) in shard.cells() {
                if let Some((subject, totals)) = cell.read()?
                    && epoch.is_none_or(|epoch| epoch == subject.epoch)
                {
                    sums.entry((subject.epoch, kind))
                        .and_modify(|(_, sum)| sum.add(&totals))
                        .or_insert((subject, totals));
                }
            }
            Ok(())
        })?;
        Ok(sums)
    }

    /// Requests of a version that have begun, ended, and begun in the role of the candidate.
    pub(crate) fn load(&self, version: VersionSlot) -> (u64, u64, u64) {
        let mut sum = (0_u64, 0_u64, 0_u64);
        let counted = self.each(|shard| {
            if let Some(load) = shard.load.get(version.index()) {
                // The end first: a request that ends in between is then still in flight, never negative.
                sum.1 = sum.1.wrapping_add(load.ended.load(Ordering::Acquire));
            }
            Ok(())
        });
        let counted = counted.and_then(|()| {
            self.each(|shard| {
                if let Some(load) = shard.load.get(version.index()) {
                    sum.0 = sum.0.wrapping_add(load.begun.load(Ordering::Acquire));
                    sum.2 = sum.2.wrapping_add(load.exposed.load(Ordering::Acquire));
                }
                Ok(())
            })
        });
        debug_assert!(counted.is_ok(), "nothing here waits for a writer");
        sum
    }

    pub(crate) fn late(&self) -> u64 {
        let shards = self.lock();
        shards
            .live
            .iter()
            .chain(shards.retired.get())
            .map(|s| s.late.load(Ordering::Relaxed))
            .sum()
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard")
            .field("recorder", &self.recorder)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("recorder", &self.recorder)
            .finish_non_exhaustive()
    }
}
