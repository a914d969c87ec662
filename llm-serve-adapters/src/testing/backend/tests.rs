use super::*;
use crate::host::Error;
use async_trait::async_trait;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

fn version(n: u8) -> VersionId {
    format!("chat/v{n}.0.0-{}", format!("{n:02x}").repeat(32))
        .parse()
        .unwrap()
}

/// How a backend may be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nowhere,
    LoadsUnknown,
    CallsUnknownTransient,
    UnknownIsHealthy,
    RefusesToRetireUnknown,
    CountsUnknown,
    Fails,
    NotHealthyOnceLoaded,
    CountsNobody,
    RefusesTheSamePosition,
    TakesOldRetirements,
    CallsOldRetirementsTransient,
    TakesOldLoads,
    TakesOldLoadsOnceRetired,
    TakesOldStandbys,
    KeepsWhatIsRetired,
    RefusesToRetireTwice,
    CountsWhatIsRetired,
    LoadsOnce,
    RefusesStandby,
    RefusesToLoadFromStandby,
    RefusesToRetireFromStandby,
    StaysLockedWhenGivenUp,
    FailsAtOnce,
    LoadsAfterARetirement,
    Hangs,
    DoesNotCount,
    CountsForEver,
}

#[derive(Debug, Default)]
struct State {
    newest: Option<Position>,
    ready: bool,
    asleep: bool,
    loading: u64,
    /// Two loads at once, until both have ended.
    crowd: bool,
    loads: u64,
}

/// A load that goes on, or is given up.
struct Loading<'a>(&'a InProcess);

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap();
        if !self.0.is(Broken::StaysLockedWhenGivenUp) {
            state.loading -= 1;
            state.crowd &= state.loading > 0;
        }
    }
}

/// The reference: one version in this process, loaded in two turns of the runtime. Or one that is broken.
#[derive(Debug)]
struct InProcess {
    broken: Broken,
    state: Mutex<State>,
    running: AtomicU64,
}

impl InProcess {
    fn new(broken: Broken) -> Self {
        Self {
            broken,
            state: Mutex::default(),
            running: AtomicU64::new(0),
        }
    }

    fn is(&self, broken: Broken) -> bool {
        self.broken == broken
    }
}

fn order(
    newest: &mut Option<Position>,
    at: Position,
    take_old: bool,
    kind: ErrorKind,
) -> HostResult<()> {
    if newest.is_some_and(|newest| at < newest) && !take_old {
        return Err(Error::new(kind, "a later step came before"));
    }
    *newest = Some(at);
    Ok(())
}

#[async_trait]
impl ServingBackend for InProcess {
    async fn prepare(&self, v: &VersionId, at: Position) -> HostResult<()> {
        if *v != version(1) && !self.is(Broken::LoadsUnknown) {
            let kind = if self.is(Broken::CallsUnknownTransient) {
                ErrorKind::Transient
            } else {
                ErrorKind::Permanent
            };
            return Err(Error::new(kind, "it has no place"));
        }
        if self.is(Broken::Fails) {
            return Err(Error::transient("out of memory"));
        }
        if self.is(Broken::Hangs) {
            std::future::pending::<()>().await;
        }
        {
            let mut state = self.state.lock().unwrap();
            let retired = state.newest.is_some() && !state.ready && state.loading == 0;
            let old = self.is(Broken::TakesOldLoads)
                || (retired && self.is(Broken::TakesOldLoadsOnceRetired));
            let same = state.newest == Some(at) && self.is(Broken::RefusesTheSamePosition);
            let asleep = state.asleep && self.is(Broken::RefusesToLoadFromStandby);
            let again = retired && !state.asleep && state.loads > 0 && self.is(Broken::LoadsOnce);
            let locked = state.loading > 0 && self.is(Broken::StaysLockedWhenGivenUp);
            if same || asleep || again || locked {
                return Err(Error::permanent("not now"));
            }
            order(&mut state.newest, at, old, ErrorKind::Permanent)?;
            state.loading += 1;
            state.crowd |= state.loading > 1;
        }
        let _loading = Loading(self);
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        let mut state = self.state.lock().unwrap();
        if self.is(Broken::StaysLockedWhenGivenUp) {
            state.loading = 0;
        }
        if state.crowd && self.is(Broken::FailsAtOnce) {
            return Err(Error::transient("busy"));
        }
        if state.newest != Some(at) && !self.is(Broken::LoadsAfterARetirement) {
            return Err(Error::permanent("a later step came meanwhile"));
        }
        (state.ready, state.asleep) = (true, false);
        state.loads += 1;
        Ok(())
    }

    async fn standby(&self, v: &VersionId, at: Position) -> HostResult<()> {
        if *v == version(1) {
            if self.is(Broken::RefusesStandby) {
                return Err(Error::permanent("it cannot sleep"));
            }
            let mut state = self.state.lock().unwrap();
            order(
                &mut state.newest,
                at,
                self.is(Broken::TakesOldStandbys),
                ErrorKind::Permanent,
            )?;
            (state.ready, state.asleep) = (false, true);
        }
        Ok(())
    }

    async fn healthy(&self, v: &VersionId) -> HostResult<Option<bool>> {
        let state = self.state.lock().unwrap();
        Ok(Some(if *v == version(1) {
            state.ready && !self.is(Broken::NotHealthyOnceLoaded)
        } else {
            self.is(Broken::UnknownIsHealthy)
        }))
    }

    async fn in_flight(&self, v: &VersionId) -> HostResult<Option<u64>> {
        let (known, ready) = (*v == version(1), self.state.lock().unwrap().ready);
        let wrong = (!known && self.is(Broken::CountsUnknown))
            || (known && ready && self.is(Broken::CountsNobody))
            || (known && !ready && self.is(Broken::CountsWhatIsRetired));
        let running = self.running.load(Ordering::SeqCst);
        Ok(Some(match self.broken {
            _ if wrong => 7,
            Broken::DoesNotCount => 0,
            Broken::CountsForEver if running > 0 => {
                self.running.store(u64::MAX / 2, Ordering::SeqCst);
                running
            }
            _ => running,
        }))
    }

    async fn retire(&self, v: &VersionId, at: Position) -> HostResult<()> {
        if *v != version(1) {
            return if self.is(Broken::RefusesToRetireUnknown) {
                Err(Error::permanent("what is that"))
            } else {
                Ok(())
            };
        }
        let mut state = self.state.lock().unwrap();
        let asleep = state.asleep && self.is(Broken::RefusesToRetireFromStandby);
        let twice = state.newest == Some(at) && self.is(Broken::RefusesToRetireTwice);
        if asleep || twice {
            return Err(Error::permanent("not now"));
        }
        let kind = if self.is(Broken::CallsOldRetirementsTransient) {
            ErrorKind::Transient
        } else {
            ErrorKind::Permanent
        };
        order(
            &mut state.newest,
            at,
            self.is(Broken::TakesOldRetirements),
            kind,
        )?;
        state.asleep = false;
        state.ready &= self.is(Broken::KeepsWhatIsRetired);
        Ok(())
    }
}

const WITHIN: Duration = Duration::from_secs(60);

async fn found(broken: Broken) -> Option<&'static str> {
    let backend = InProcess::new(broken);
    let outcome = suite(&backend, &version(1), &version(9), WITHIN).await;
    outcome.err().map(|violation| violation.rule())
}

#[tokio::test(start_paused = true)]
async fn the_reference_passes_and_each_broken_one_is_caught_by_its_rule() {
    assert_eq!(found(Broken::Nowhere).await, None);
    for (broken, rule) in [
        (
            Broken::LoadsUnknown,
            "a version that has no place cannot be loaded: Permanent",
        ),
        (
            Broken::CallsUnknownTransient,
            "a version that has no place cannot be loaded: Permanent",
        ),
        (
            Broken::UnknownIsHealthy,
            "a version that has no place is not healthy",
        ),
        (
            Broken::RefusesToRetireUnknown,
            "what runs nowhere can be retired",
        ),
        (
            Broken::CountsUnknown,
            "nothing runs on a version that has no place",
        ),
        (Broken::Fails, "a version can be loaded"),
        (Broken::NotHealthyOnceLoaded, "what was loaded can serve"),
        (Broken::CountsNobody, "nothing runs on what nobody uses"),
        (
            Broken::RefusesTheSamePosition,
            "loading again at the same position changes nothing",
        ),
        (
            Broken::TakesOldRetirements,
            "a retirement older than the newest load is refused: Permanent",
        ),
        (
            Broken::CallsOldRetirementsTransient,
            "a retirement older than the newest load is refused: Permanent",
        ),
        (
            Broken::TakesOldLoads,
            "a load older than the newest load is refused: Permanent",
        ),
        (
            Broken::TakesOldLoadsOnceRetired,
            "a load older than the newest retirement is refused: Permanent",
        ),
        (
            Broken::TakesOldStandbys,
            "a standby older than the newest load has no effect",
        ),
        (
            Broken::KeepsWhatIsRetired,
            "what was retired does not serve",
        ),
        (
            Broken::RefusesToRetireTwice,
            "retiring again at the same position changes nothing",
        ),
        (
            Broken::CountsWhatIsRetired,
            "nothing runs on what was retired",
        ),
        (
            Broken::LoadsOnce,
            "a version can be loaded after it was retired",
        ),
        (Broken::RefusesStandby, "a version can be put on standby"),
        (
            Broken::RefusesToLoadFromStandby,
            "a version can be loaded from standby",
        ),
        (
            Broken::RefusesToRetireFromStandby,
            "a version can be retired from standby",
        ),
        (
            Broken::StaysLockedWhenGivenUp,
            "a load that was given up can be done again",
        ),
        (Broken::FailsAtOnce, "the same load twice at once loads"),
        (
            Broken::LoadsAfterARetirement,
            "a retirement during a load wins",
        ),
        (Broken::Hangs, "every call ends within its time"),
    ] {
        assert_eq!(found(broken).await, Some(rule), "{broken:?}");
    }
}

async fn counted(broken: Broken) -> Option<&'static str> {
    let backend = InProcess::new(broken);
    let request = async {
        backend.running.store(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(1)).await;
        if !backend.is(Broken::CountsForEver) {
            backend.running.store(0, Ordering::SeqCst);
        }
    };
    let outcome = in_flight_tells_what_runs(&backend, &version(1), WITHIN, request).await;
    outcome.err().map(|violation| violation.rule())
}

#[tokio::test(start_paused = true)]
async fn who_does_not_count_or_counts_for_ever_is_caught() {
    assert_eq!(counted(Broken::Nowhere).await, None);
    let rule = "in_flight counts a request that runs";
    assert_eq!(counted(Broken::DoesNotCount).await, Some(rule));
    let rule = "in_flight says 0 once nothing runs";
    assert_eq!(counted(Broken::CountsForEver).await, Some(rule));
}
