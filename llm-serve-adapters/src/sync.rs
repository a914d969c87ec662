//! What threads share memory with: the standard library's types, or, with `--cfg loom_check`, those of `loom`, so that the
//! code that serves is itself run in every order of its threads, with every value that the memory model lets a load see.
//!
//! With `loom_check` tables are small too: an order of two threads over a few dozen words can be told in full, one over thousands
//! cannot.

#[cfg(not(loom_check))]
pub(crate) use std::{
    hint::spin_loop,
    sync::atomic::{AtomicU64, Ordering, fence},
    sync::{Mutex, MutexGuard, OnceLock},
    thread::yield_now,
};

#[cfg(loom_check)]
pub(crate) use self::checked::*;

/// Whether tables are small. A constant, since what is called for an array's length can send the compiler (1.95) in circles.
pub(crate) const SMALL: bool = cfg!(loom_check);

#[cfg(loom_check)]
mod checked {
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::Ordering;
    pub(crate) use loom::sync::{Mutex, MutexGuard};
    pub(crate) use loom::thread::yield_now;
    use std::cell::Cell;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::time::{Duration, Instant};

    /// What orders memory, of which one can be left out to see whether the check finds what it prevents.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Part {
        AcquireLoads,
        ReleaseStores,
        AcquireFences,
        ReleaseFences,
    }

    impl Part {
        pub(crate) const ALL: [Self; 4] = [
            Self::AcquireLoads,
            Self::ReleaseStores,
            Self::AcquireFences,
            Self::ReleaseFences,
        ];
    }

    std::thread_local! {
        // Loom runs all threads of a model on the thread of its test.
        static WITHOUT: Cell<Option<Part>> = const { Cell::new(None) };
    }

    fn left_out(order: Ordering, acquire: Part, release: Part) -> bool {
        let part = match order {
            Ordering::Acquire => acquire,
            Ordering::Release => release,
            _ => return false,
        };
        WITHOUT.get() == Some(part)
    }

    fn access(order: Ordering) -> Ordering {
        if left_out(order, Part::AcquireLoads, Part::ReleaseStores) {
            Ordering::Relaxed
        } else {
            order
        }
    }

    pub(crate) fn fence(order: Ordering) {
        if !left_out(order, Part::AcquireFences, Part::ReleaseFences) {
            loom::sync::atomic::fence(order);
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct AtomicU64(loom::sync::atomic::AtomicU64);

    impl AtomicU64 {
        pub(crate) fn new(value: u64) -> Self {
            Self(loom::sync::atomic::AtomicU64::new(value))
        }

        pub(crate) fn load(&self, order: Ordering) -> u64 {
            self.0.load(access(order))
        }

        pub(crate) fn store(&self, value: u64, order: Ordering) {
            self.0.store(value, access(order));
        }

        pub(crate) fn fetch_add(&self, by: u64, order: Ordering) -> u64 {
            self.0.fetch_add(by, order)
        }

        pub(crate) fn compare_exchange(
            &self,
            current: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            self.0.compare_exchange(current, new, success, failure)
        }
    }

    /// Runs this in every order of its threads with at most this many preemptions, or in as many as there is time for:
    /// `LOOM_MAX_DURATION` seconds, else five.
    ///
    /// Loom remembers only who touched a word last: a thread that loads a word and then stores to it hides from it that another
    /// had loaded it before. Therefore models let writers run first, so that it is the readers who are seen to interfere.
    #[expect(clippy::print_stdout, reason = "says what was explored")]
    pub(crate) fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound.get_or_insert(preemptions);
        let longest = *builder.max_duration.get_or_insert(Duration::from_secs(5));
        builder.max_branches = 100_000;
        builder.checkpoint_interval = 100;
        let orders = Arc::new(AtomicUsize::new(0));
        let (count, begun) = (Arc::clone(&orders), Instant::now());
        builder.check(move || {
            count.fetch_add(1, Ordering::Relaxed);
            model();
        });
        let (orders, took) = (orders.load(Ordering::Relaxed), begun.elapsed());
        let all = if took < longest { "all" } else { "the first" };
        println!("{all} {orders} orders in {took:.1?}");
        assert!(orders > 1, "nothing was explored");
    }

    /// Whether some order of threads breaks this model.
    pub(crate) fn breaks(model: impl Fn() + Send + Sync + 'static) -> bool {
        let explored = std::panic::AssertUnwindSafe(|| explore(2, model));
        std::panic::catch_unwind(explored).is_err()
    }

    /// Whether this model breaks without that part.
    pub(crate) fn needs(part: Part, model: impl Fn() + Send + Sync + 'static) -> bool {
        WITHOUT.set(Some(part));
        let breaks = breaks(model);
        WITHOUT.set(None);
        breaks
    }

    /// Which of the parts this model can do without.
    pub(crate) fn superfluous(model: impl Fn() + Send + Sync + Copy + 'static) -> Vec<Part> {
        let parts = Part::ALL.into_iter();
        parts.filter(|part| !needs(*part, model)).collect()
    }

    /// Loom has none. What it holds is handed over by a word that loom knows of.
    #[derive(Debug)]
    pub(crate) struct OnceLock<T> {
        value: std::sync::OnceLock<T>,
        made: AtomicU64,
    }

    impl<T> OnceLock<T> {
        pub(crate) fn new() -> Self {
            Self {
                value: std::sync::OnceLock::new(),
                made: AtomicU64::new(0),
            }
        }

        pub(crate) fn get(&self) -> Option<&T> {
            if self.made.load(Ordering::Acquire) == 0 {
                return None;
            }
            self.value.get()
        }

        pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
            if let Some(value) = self.get() {
                return value;
            }
            let value = self.value.get_or_init(make);
            self.made.store(1, Ordering::Release);
            value
        }
    }
}
