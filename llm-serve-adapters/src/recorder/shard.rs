//! What each thread owns of a recorder, and what is left of it when the thread ends.

use super::cell::{Cell, Interrupted, Totals};
use super::waiting::Waiting;
use crate::router::{Decision, Grow, Role, Slice, VersionSlot};
use crate::sync::{AtomicU64, Mutex, MutexGuard, OnceLock, Ordering, SMALL, fence, yield_now};
use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicU64 as StdAtomicU64;
use std::sync::{Arc, Mutex as StdMutex, OnceLock as StdOnceLock, PoisonError, Weak};

/// How many epochs a thread keeps: what ends later than that is counted as late.
const EPOCHS: usize = if SMALL { 2 } else { 4 };
/// See [`Decision::kind`].
const KINDS: usize = if SMALL { 2 } else { 23 };
/// How often a reader tries before it gives up; it lets others run in between.
const TRIES: usize = if SMALL { 2 } else { 2_000 };
/// Versions whose load is found without a search: most processes never serve more.
const FEW: usize = if SMALL { 2 } else { 8 };

/// The place of a decision's epoch among the last few.
#[inline]
fn turn(decision: Decision) -> usize {
    usize::try_from(decision.epoch().get() % EPOCHS as u64).unwrap_or(0)
}

/// Where a shard keeps what a decision counts for: the place of its epoch, then its kind.
#[derive(Clone, Copy)]
pub(crate) struct CellIndex(u16);

impl CellIndex {
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    pub(crate) fn of(decision: Decision) -> Self {
        Self::at(decision, decision.kind())
    }

    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "there are a few dozen cells"
    )]
    fn at(decision: Decision, kind: usize) -> Self {
        // One of no kind that is kept is beyond the end.
        let known = kind < KINDS;
        Self(if known {
            (turn(decision) * KINDS + kind) as u16
        } else {
            u16::MAX
        })
    }
}

/// What a request counts as: its role, whether chance decided, its slice. See [`Decision::kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind(usize);

impl Kind {
    pub(crate) const fn role(self) -> Role {
        match self.0 {
            1 | 5 => Role::Candidate,
            2 | 6 => Role::Control,
            _ => Role::Baseline,
        }
    }

    pub(crate) const fn randomised(self) -> bool {
        !matches!(self.0, 4..=6)
    }

    pub(crate) fn slice(self) -> Option<Slice> {
        Slice::of(self.0.checked_sub(7)?)
    }
}

/// Requests of one version that its cells tell nothing of any more.
#[derive(Debug, Default)]
pub(crate) struct Load {
    pub(crate) begun: AtomicU64,
    pub(crate) ended: AtomicU64,
    /// Begun in the role of the candidate.
    pub(crate) exposed: AtomicU64,
}

fn add(word: &AtomicU64, by: u64) {
    let sum = word.load(Ordering::Relaxed).wrapping_add(by);
    word.store(sum, Ordering::Relaxed);
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
    /// See [`CellIndex`].
    cells: [OnceLock<Box<Cell>>; EPOCHS * KINDS],
    /// Odd while a cell's load is handed over to `load`.
    folds: AtomicU64,
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
            cells: std::array::from_fn(|_| OnceLock::new()),
            folds: AtomicU64::new(0),
            load: Default::default(),
            more: Grow::new(Load::default()),
            late: AtomicU64::new(0),
        }
    }

    /// The cell to record in, which is this decision's; none if its epoch is too long ago.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    pub(crate) fn cell(&self, index: CellIndex, decision: Decision) -> Option<&Cell> {
        let cell = self.cells.get(usize::from(index.0))?;
        match cell.get() {
            Some(cell) if cell.is_about(decision) => Some(cell),
            _ => self.claim(cell, decision),
        }
    }

    /// Makes it about this decision's epoch, unless it is about a newer one.
    #[cold]
    #[inline(never)]
    fn claim<'a>(&self, cell: &'a OnceLock<Box<Cell>>, decision: Decision) -> Option<&'a Cell> {
        let cell = cell.get_or_init(|| Box::new(Cell::new()));
        match cell.about() {
            Some(held) if held.epoch() > decision.epoch() => return None,
            // A split was lowered within its epoch: the same requests.
            Some(held) if held.epoch() == decision.epoch() => {}
            Some(held) => self.fold(cell, held.slot(), decision),
            None => cell.recycle(decision),
        }
        Some(cell)
    }

    /// Hands over what a cell tells about the load of a version, before it forgets.
    fn fold(&self, cell: &Cell, version: VersionSlot, next: Decision) {
        let sequence = self.folds.load(Ordering::Relaxed);
        self.folds
            .store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        let ((begun, ended), load) = (cell.load(), self.load(version));
        add(&load.begun, begun);
        add(&load.ended, ended);
        if next.role() == Role::Candidate {
            add(&load.exposed, begun);
        }
        cell.recycle(next);
        self.folds
            .store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// A request has begun, or ended, whose epoch is too long ago to be counted otherwise.
    #[cold]
    pub(crate) fn late(&self, decision: Decision, ended: bool) {
        let load = self.load(decision.slot());
        if ended {
            add(&load.ended, 1);
            add(&self.late, 1);
        } else {
            add(&load.begun, 1);
            if decision.role() == Role::Candidate {
                add(&load.exposed, 1);
            }
        }
    }

    /// Requests of a version that have begun, ended, and begun in the role of the candidate.
    fn total_load(&self, version: VersionSlot) -> Result<(u64, u64, u64), Interrupted> {
        for _ in 0..TRIES {
            let before = self.folds.load(Ordering::Acquire);
            let (mut begun, mut ended, mut exposed) = (0_u64, 0_u64, 0_u64);
            if let Some(load) = self.known_load(version.index()) {
                ended = load.ended.load(Ordering::Acquire);
                begun = load.begun.load(Ordering::Acquire);
                exposed = load.exposed.load(Ordering::Acquire);
            }
            for (kind, cell) in self.cells() {
                if cell.about().is_some_and(|held| held.slot() == version) {
                    let (more, fewer) = cell.load();
                    begun = begun.wrapping_add(more);
                    ended = ended.wrapping_add(fewer);
                    if kind.role() == Role::Candidate {
                        exposed = exposed.wrapping_add(more);
                    }
                }
            }
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.folds.load(Ordering::Relaxed) == before {
                return Ok((begun, ended, exposed));
            }
            yield_now();
        }
        Err(Interrupted)
    }

    fn load(&self, version: VersionSlot) -> &Load {
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
        let cells = self.cells.iter().enumerate();
        cells.filter_map(|(index, cell)| Some((Kind(index % KINDS), &**cell.get()?)))
    }

    /// Adds everything that an ended thread has left.
    fn absorb(&self, other: &Self) {
        for (kind, cell) in other.cells() {
            // Its writer has ended, so that nothing is ever in the middle of a write.
            let Ok(Some((about, totals))) = cell.read() else {
                continue;
            };
            let own = self.cells.get(usize::from(CellIndex::at(about, kind.0).0));
            let own = own.and_then(|own| match own.get() {
                Some(own) if own.is_about(about) => Some(&**own),
                _ => self.claim(own, about.in_role(kind.role())),
            });
            if let Some(own) = own {
                own.absorb(&totals);
            } else {
                let ((begun, ended), load) = (cell.load(), self.load(about.slot()));
                add(&load.begun, begun);
                add(&load.ended, ended);
                if kind.role() == Role::Candidate {
                    add(&load.exposed, begun);
                }
            }
        }
        for (index, load) in (0..).zip(&other.load).chain(other.more.made()) {
            let own = self.load(VersionSlot::new(index));
            for (to, from) in [
                (&own.begun, &load.begun),
                (&own.ended, &load.ended),
                (&own.exposed, &load.exposed),
            ] {
                add(to, from.load(Ordering::Relaxed));
            }
        }
        add(&self.late, other.late.load(Ordering::Relaxed));
    }
}

/// Sums over all threads, by epoch and kind.
pub(crate) type Sums = BTreeMap<(u64, Kind), (Decision, Totals)>;

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
    retired: StdOnceLock<Arc<Shard>>,
    next: usize,
}

static RECORDERS: StdAtomicU64 = StdAtomicU64::new(0);
/// Every recorder of this process, for threads that meet one for the first time; those that are gone are dropped when
/// another is made.
static KNOWN: StdMutex<Vec<(u64, Weak<Registry>)>> = StdMutex::new(Vec::new());

fn known(recorder: u64) -> Option<Arc<Registry>> {
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known
        .iter()
        .find(|(number, _)| *number == recorder)?
        .1
        .upgrade()
}

#[cfg(not(loom_check))]
thread_local! {
    static OWN: Own = const { Own::new() };
}

#[cfg(loom_check)]
loom::thread_local! {
    static OWN: Own = Own::new();
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
    const fn new() -> Self {
        Self {
            first: [const { OnceCell::new() }; FIRST],
            more: RefCell::new(Vec::new()),
        }
    }

    /// The shard of a recorder, if it is one of the first.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a call, or a value that goes through memory, costs as much as the work"
    )]
    fn first(&self, recorder: u64) -> Option<&Shard> {
        match self.first[0].get() {
            // Most threads know one recorder.
            Some((number, shard)) if *number == recorder => Some(shard),
            _ => self.further(recorder),
        }
    }

    #[inline(never)]
    fn further(&self, recorder: u64) -> Option<&Shard> {
        let mut further = self.first.iter().skip(1).filter_map(OnceCell::get);
        further
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

/// Runs on this thread's shard of a recorder, if that is one of its first few; see [`on_other`].
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "measured: a call, or a value that goes through memory, costs as much as the work"
)]
pub(crate) fn on_first<R>(recorder: u64, run: impl FnOnce(&Shard) -> R) -> Option<R> {
    OWN.try_with(|own| own.first(recorder).map(run))
        .ok()
        .flatten()
}

/// This thread's shard of a recorder; none if the recorder is gone, or the thread is ending.
pub(crate) fn own(recorder: u64) -> Option<Arc<Shard>> {
    let found = OWN.try_with(|own| {
        let mut first = own.first.iter().filter_map(OnceCell::get);
        let first = first.find(|(number, _)| *number == recorder);
        first.map_or_else(|| own.any(recorder), |(_, shard)| Some(Arc::clone(shard)))
    });
    found.ok().flatten()
}

/// Runs on any shard of a recorder that this thread may use: for where it is none of the first, there is none yet, or none any
/// more. None if the recorder is gone.
#[cold]
#[inline(never)]
pub(crate) fn on_other<R>(recorder: u64, run: impl FnOnce(&Shard) -> R) -> Option<R> {
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
                retired: StdOnceLock::new(),
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

    pub(crate) fn add(&self) -> Arc<Shard> {
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

    /// Sums over all threads, by epoch and kind. Writers go on meanwhile; what has ended has been assigned.
    pub(crate) fn totals(&self, epoch: Option<u64>) -> Result<Sums, Interrupted> {
        let mut sums = Sums::new();
        let shards = self.lock();
        let cells = || {
            let shards = shards.live.iter().chain(shards.retired.get());
            shards.flat_map(|shard| shard.cells())
        };
        for (kind, cell) in cells() {
            if let Some((about, totals)) = cell.read()?
                && epoch.is_none_or(|epoch| epoch == about.epoch().get())
            {
                sums.entry((about.epoch().get(), kind))
                    .and_modify(|(_, sum)| sum.add(&totals))
                    .or_insert((about, totals));
            }
        }
        // A request may begin on one thread and end on another, whose counters were read later.
        let mut assigned: BTreeMap<(u64, Kind), u64> = BTreeMap::new();
        for (kind, cell) in cells() {
            if let Some((about, count)) = cell.assigned()? {
                let sum = assigned.entry((about.epoch().get(), kind)).or_default();
                *sum = sum.wrapping_add(count);
            }
        }
        for (key, (_, totals)) in &mut sums {
            totals.raise_assigned(assigned.get(key).copied().unwrap_or(0));
        }
        Ok(sums)
    }

    /// Requests of a version that have begun, ended, and begun in the role of the candidate.
    pub(crate) fn load(&self, version: VersionSlot) -> Result<(u64, u64, u64), Interrupted> {
        let mut sum = (0_u64, 0_u64, 0_u64);
        // A request may begin on one thread and end on another: all ends first, so that one that ends in between is still
        // in flight, never negative.
        self.each(|shard| {
            sum.1 = sum.1.wrapping_add(shard.total_load(version)?.1);
            Ok(())
        })?;
        self.each(|shard| {
            let (begun, _, exposed) = shard.total_load(version)?;
            sum.0 = sum.0.wrapping_add(begun);
            sum.2 = sum.2.wrapping_add(exposed);
            Ok(())
        })?;
        Ok(sum)
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
