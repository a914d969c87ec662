//! What each thread owns of a recorder, and what is left of it when the thread ends.

use super::cell::{Cell, Interrupted, Subject, Totals};
use super::waiting::Waiting;
use crate::router::{Decision, Grow, Role, VersionSlot};
use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// How many epochs a thread keeps: what ends later than that is counted as late.
const EPOCHS: usize = 4;
/// Three roles, each at random or apart.
const KINDS: usize = 6;
/// Versions whose load is found without a search: most processes never serve more.
const FEW: usize = 8;

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

#[inline]
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
    /// Of the versions with the lowest slots; further ones are in `more`.
    load: [Load; FEW],
    more: Grow<Load>,
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
            load: Default::default(),
            more: Grow::new(Load::default()),
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
        match self.load.get(usize::from(version.index())) {
            Some(load) => load,
            None => self.more.entry(version.index()),
        }
    }

    /// The same for a reader, who makes nothing.
    fn known_load(&self, index: u16) -> Option<&Load> {
        match self.load.get(usize::from(index)) {
            Some(load) => Some(load),
            None => self.more.get(index),
        }
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
        for (index, load) in (0..).zip(&other.load).chain(other.more.made()) {
            let own = self.load(VersionSlot::new(index));
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
/// Every recorder of this process, for threads that meet one for the first time; those that are gone are dropped when
/// another is made.
static KNOWN: Mutex<Vec<(u64, Weak<Registry>)>> = Mutex::new(Vec::new());

fn known(recorder: u64) -> Option<Arc<Registry>> {
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known
        .iter()
        .find(|(number, _)| *number == recorder)?
        .1
        .upgrade()
}

thread_local! {
    static OWN: Own = const { Own { first: [const { OnceCell::new() }; FIRST], more: RefCell::new(Vec::new()) } };
}

/// Shards that a thread finds without a borrow to note.
const FIRST: usize = 4;

/// The shards of this thread, each with its recorder's number; folded into what is left when it ends. Those beyond the first
/// few are forgotten when their recorder is gone.
struct Own {
    first: [OnceCell<(u64, Arc<Shard>)>; FIRST],
    more: RefCell<Vec<(u64, Arc<Shard>)>>,
}

impl Own {
    /// The shard of a recorder, if it is one of the first.
    #[inline]
    fn first(&self, recorder: u64) -> Option<&Shard> {
        let mut first = self.first.iter().filter_map(OnceCell::get);
        first
            .find(|(number, _)| *number == recorder)
            .map(|(_, shard)| &**shard)
    }

    /// Any shard, made if this thread has none yet; none if the recorder is gone, or is being looked for already.
    fn any(&self, recorder: u64) -> Option<Arc<Shard>> {
        let mut more = self.more.try_borrow_mut().ok()?;
        if let Some((_, shard)) = more.iter().find(|(number, _)| *number == recorder) {
            return Some(Arc::clone(shard));
        }
        let shard = known(recorder)?.add();
        let mut entry = (recorder, Arc::clone(&shard));
        for first in &self.first {
            match first.set(entry) {
                Ok(()) => return Some(shard),
                Err(refused) => entry = refused,
            }
        }
        more.retain(|(_, shard)| shard.owner.strong_count() > 0);
        more.push(entry);
        Some(shard)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let first = self.first.iter_mut().filter_map(OnceCell::take);
        for (_, shard) in first.chain(self.more.get_mut().drain(..)) {
            if let Some(registry) = shard.owner.upgrade() {
                registry.retire(&shard);
            }
        }
    }
}

/// Runs on this thread's shard of a recorder; none if the recorder is gone.
#[inline]
pub(crate) fn on_own<R>(recorder: u64, run: impl FnOnce(&Shard) -> R) -> Option<R> {
    let mut run = Some(run);
    let usual = OWN.try_with(|own| {
        let shard = own.first(recorder)?;
        run.take().map(|run| run(shard))
    });
    match usual {
        Ok(Some(done)) => Some(done),
        _ => on_other(recorder, run?),
    }
}

/// The same where the shard is none of the first, there is none yet, or none any more.
#[cold]
#[inline(never)]
fn on_other<R>(recorder: u64, run: impl FnOnce(&Shard) -> R) -> Option<R> {
    if let Ok(Some(shard)) = OWN.try_with(|own| own.any(recorder)) {
        return Some(run(&shard));
    }
    // The thread is ending and has handed in its shard, or the recorder is gone.
    known(recorder).map(|registry| registry.on_retired(run))
}

impl Registry {
    pub(crate) fn new(flags: Vec<String>) -> Arc<Self> {
        let registry = Arc::new_cyclic(|own| Self {
            recorder: RECORDERS.fetch_add(1, Ordering::Relaxed),
            waiting: Arc::new(Waiting::new()),
            flags: flags.into(),
            own: Weak::clone(own),
            shards: Mutex::new(Shards {
                live: Vec::new(),
                retired: OnceLock::new(),
                next: 1,
            }),
        });
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_, registry)| registry.strong_count() > 0);
        known.push((registry.recorder, Arc::downgrade(&registry)));
        drop(known);
        registry
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

    pub(crate) fn on_retired<R>(&self, run: impl FnOnce(&Shard) -> R) -> R {
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
            if let Some(load) = shard.known_load(version.index()) {
                // The end first: a request that ends in between is then still in flight, never negative.
                sum.1 = sum.1.wrapping_add(load.ended.load(Ordering::Acquire));
            }
            Ok(())
        });
        let counted = counted.and_then(|()| {
            self.each(|shard| {
                if let Some(load) = shard.known_load(version.index()) {
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
