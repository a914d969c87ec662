//! Many lives, on all cores, and what they add up to.

use crate::faults::Fault;
use crate::invariants::{check, justice};
use crate::life::live;
use llm_rollout::Phase;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Seeds of lives that broke something, at most, in each thread; after that a campaign ends. `SIMULATION_BROKEN` says another;
/// with `SIMULATION_INVARIANT` only that invariant counts.
const MOST_BROKEN: u64 = 10;

#[derive(Debug, Default)]
pub(crate) struct Campaign {
    lives: u64,
    took: Duration,
    promoted: u64,
    rolled_back: u64,
    blocked: u64,
    concluded: u64,
    entries: u64,
    events: u64,
    /// How often each kind of fault has happened.
    fired: BTreeMap<Fault, u64>,
    broken: Vec<(u64, String)>,
    justice: justice::Tally,
}

pub(crate) fn of_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

impl Campaign {
    /// Lives the seeds from `first` on.
    pub(crate) fn run(first: u64, lives: u64) -> Self {
        let begun = Instant::now();
        let next = AtomicU64::new(first);
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let mut whole = Self::default();
        thread::scope(|scope| {
            let threads: Vec<_> = (0..workers)
                .map(|_| scope.spawn(|| Self::part(&next, first + lives)))
                .collect();
            for thread in threads {
                whole.add(thread.join().unwrap());
            }
        });
        whole.took = begun.elapsed();
        whole
    }

    fn part(next: &AtomicU64, end: u64) -> Self {
        let mut part = Self::default();
        let most = of_env("SIMULATION_BROKEN").unwrap_or(MOST_BROKEN);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end || part.broken.len() as u64 >= most {
                return part;
            }
            part.live(seed);
        }
    }

    fn live(&mut self, seed: u64) {
        let lived = std::panic::catch_unwind(|| live(seed, false));
        self.lives += 1;
        let Ok(life) = lived else {
            self.broken.push((seed, "it panicked".to_owned()));
            return;
        };
        for (_, phase) in &life.ends {
            match phase {
                Phase::Promoted => self.promoted += 1,
                Phase::RolledBack => self.rolled_back += 1,
                Phase::Blocked => self.blocked += 1,
                _ => self.concluded += 1,
            }
        }
        self.entries += life.log.len() as u64;
        self.events += life.history.events.len() as u64;
        for (fault, n) in Fault::ALL.into_iter().zip(life.fired) {
            *self.fired.entry(fault).or_default() += u64::from(n);
        }
        self.justice.add(&justice::tally(&life.history));
        let only = std::env::var("SIMULATION_INVARIANT").ok();
        let counts = |invariant| only.as_deref().is_none_or(|only| only == invariant);
        let violations = check(&life.history);
        if let Some(violation) = violations.iter().find(|v| counts(v.invariant)) {
            self.broken.push((seed, format!("{violation:?}")));
        }
    }

    fn add(&mut self, other: Self) {
        self.lives += other.lives;
        self.promoted += other.promoted;
        self.rolled_back += other.rolled_back;
        self.blocked += other.blocked;
        self.concluded += other.concluded;
        self.entries += other.entries;
        self.events += other.events;
        for (fault, n) in other.fired {
            *self.fired.entry(fault).or_default() += n;
        }
        self.broken.extend(other.broken);
        self.justice.add(&other.justice);
    }

    fn ends(&self) -> u64 {
        self.promoted + self.rolled_back + self.blocked + self.concluded
    }

    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        assert!(
            self.broken.is_empty(),
            "{} lives broke an invariant; the first: {}\n\
             tell it: SIMULATION_SEED={} cargo test -p llm-serve-adapters --test simulation one_life -- --nocapture",
            self.broken.len(),
            self.broken[0].1,
            self.broken[0].0,
        );
    }

    /// Promotion and going back must both be common, or the lives show little.
    #[track_caller]
    pub(crate) fn assert_both_endings(&self) {
        let fifth = self.ends() / 5;
        assert!(self.promoted >= fifth, "few were promoted: {self}");
        assert!(self.rolled_back >= fifth, "few went back: {self}");
    }

    fn fired(&self, fault: Fault) -> u64 {
        self.fired.get(&fault).copied().unwrap_or(0)
    }

    #[track_caller]
    pub(crate) fn assert_every_fault(&self) {
        for fault in Fault::ALL {
            assert!(self.fired(fault) > 0, "{fault:?} never happened: {self}");
        }
    }

    #[track_caller]
    pub(crate) fn assert_just(&self) {
        let verdict = self.justice.verdict();
        assert!(verdict.is_ok(), "{verdict:?}: {self}");
    }
}

impl fmt::Display for Campaign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_life = |n: u64| n as f64 / self.lives.max(1) as f64;
        let part = |n: u64| 100.0 * n as f64 / self.ends().max(1) as f64;
        writeln!(
            f,
            "{} lives in {:.1} s ({:.0} a second), {:.0} log entries and {:.0} events each",
            self.lives,
            self.took.as_secs_f64(),
            self.lives as f64 / self.took.as_secs_f64(),
            per_life(self.entries),
            per_life(self.events),
        )?;
        writeln!(
            f,
            "{} rollouts: promoted {:.1} %, rolled back {:.1} %, blocked {:.1} %, concluded {:.1} %",
            self.ends(),
            part(self.promoted),
            part(self.rolled_back),
            part(self.blocked),
            part(self.concluded),
        )?;
        writeln!(f, "{:?}", self.justice)?;
        for fault in Fault::ALL {
            write!(f, "{fault:?} {:.2}  ", per_life(self.fired(fault)))?;
        }
        writeln!(f, "per life")?;
        for (seed, what) in &self.broken {
            writeln!(f, "BROKEN seed {seed}: {what}")?;
        }
        Ok(())
    }
}
