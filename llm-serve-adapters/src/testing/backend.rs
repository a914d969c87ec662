//! What every [`ServingBackend`] must do.

use super::{Violation, accepted, ensure};
use crate::host::{ErrorKind, Result as HostResult, ServingBackend};
use futures_util::future::{Either, join, select};
use llm_rollout::{Fence, Position, Seq};
use llm_version_core::VersionId;
use std::fmt::Debug;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

type Outcome = Result<(), Violation>;

/// How often is asked again while something is waited for.
const AGAIN: Duration = Duration::from_millis(20);

/// Runs every check but [`in_flight_tells_what_runs`], which needs somebody to ask the version something.
///
/// `known` is a version that the backend can serve, and that nobody uses meanwhile; it is loaded and retired several times and in
/// the end retired. `unknown` is one that it has no place for. No single call may take longer than `within`. The suite begins
/// at fence 1: the backend must not have been told about `known` before. It needs a tokio runtime with time.
///
/// ```
/// # use llm_rollout::Position;
/// # use llm_serve_adapters::{host::{Error, Result, ServingBackend}, testing};
/// # use llm_version_core::VersionId;
/// # use std::{collections::BTreeMap, sync::Mutex, time::Duration};
/// /// Serves one version with something in this process, of which it remembers when it was loaded or retired last.
/// #[derive(Debug)]
/// struct InProcess { version: VersionId, newest: Mutex<Option<Position>>, ready: Mutex<bool> }
///
/// impl InProcess {
///     fn order(&self, at: Position, ready: bool) -> Result<()> {
///         let mut newest = self.newest.lock().unwrap();
///         if newest.is_some_and(|newest| at < newest) {
///             return Err(Error::permanent("a later step came before this one"));
///         }
///         (*newest, *self.ready.lock().unwrap()) = (Some(at), ready);
///         Ok(())
///     }
/// }
///
/// #[async_trait::async_trait]
/// impl ServingBackend for InProcess {
///     async fn prepare(&self, version: &VersionId, at: Position) -> Result<()> {
///         if *version != self.version {
///             return Err(Error::permanent("this process has one version"));
///         }
///         self.order(at, true)
///     }
///     async fn healthy(&self, version: &VersionId) -> Result<Option<bool>> {
///         Ok(Some(*version == self.version && *self.ready.lock().unwrap()))
///     }
///     async fn in_flight(&self, _: &VersionId) -> Result<Option<u64>> {
///         Ok(None)
///     }
///     async fn retire(&self, version: &VersionId, at: Position) -> Result<()> {
///         if *version == self.version { self.order(at, false) } else { Ok(()) }
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
/// let known: VersionId = format!("chat/v1.0.0-{}", "0".repeat(64)).parse()?;
/// let unknown: VersionId = format!("chat/v9.0.0-{}", "9".repeat(64)).parse()?;
/// let backend = InProcess { version: known.clone(), newest: Mutex::default(), ready: Mutex::default() };
/// testing::backend::suite(&backend, &known, &unknown, Duration::from_secs(5)).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// The first rule that the backend breaks.
pub async fn suite(
    backend: &dyn ServingBackend,
    known: &VersionId,
    unknown: &VersionId,
    within: Duration,
) -> Outcome {
    let subject = Subject { backend, within };
    subject.unknown(unknown).await?;
    subject.loads(known, 1).await?;
    subject.older(known, 2).await?;
    subject.retires(known, 3).await?;
    subject.standby(known, 4).await?;
    subject.cancelled(known, 5).await?;
    subject.concurrent(known, 6).await?;
    subject.race(known, 7).await
}

/// While a request runs on a version that is loaded, the backend says that at least one does, or that it cannot tell; once it has
/// ended, that none does. `request` runs on the version, for longer than the backend needs to be asked a few times.
///
/// # Errors
/// The rule that is broken.
pub async fn in_flight_tells_what_runs(
    backend: &dyn ServingBackend,
    version: &VersionId,
    within: Duration,
    request: impl Future,
) -> Outcome {
    let subject = Subject { backend, within };
    let rule = "in_flight counts a request that runs";
    let seen = async {
        loop {
            match subject.in_flight(version).await? {
                Some(0) => tokio::time::sleep(AGAIN).await,
                told => return Ok(told),
            }
        }
    };
    let (mut request, seen) = (pin!(request), pin!(seen));
    let told = match select(seen, request.as_mut()).await {
        Either::Left((told, _)) => told?,
        Either::Right(_) => return ensure(rule, false, "none, until it had ended"),
    };
    request.await;
    if told.is_none() {
        return Ok(());
    }
    let rule = "in_flight says 0 once nothing runs";
    let none = async {
        while subject.in_flight(version).await? != Some(0) {
            tokio::time::sleep(AGAIN).await;
        }
        Ok(())
    };
    match tokio::time::timeout(within, none).await {
        Ok(told) => told,
        Err(_) => ensure(rule, false, subject.in_flight(version).await?),
    }
}

/// Moments of a suite: a fence for each check, a step for each call.
fn at(fence: u64, seq: u64) -> Position {
    Position {
        fence: Fence::new(fence),
        seq: Seq::new(seq),
    }
}

struct Subject<'a> {
    backend: &'a dyn ServingBackend,
    within: Duration,
}

impl Subject<'_> {
    /// A call, which must end.
    async fn call<T>(
        &self,
        call: impl Future<Output = HostResult<T>>,
    ) -> Result<HostResult<T>, Violation> {
        let ended = tokio::time::timeout(self.within, call).await;
        accepted("every call ends within its time", ended)
    }

    async fn prepare(
        &self,
        version: &VersionId,
        at: Position,
    ) -> Result<HostResult<()>, Violation> {
        self.call(self.backend.prepare(version, at)).await
    }

    async fn retire(&self, version: &VersionId, at: Position) -> Result<HostResult<()>, Violation> {
        self.call(self.backend.retire(version, at)).await
    }

    async fn in_flight(&self, version: &VersionId) -> Result<Option<u64>, Violation> {
        let told = self.call(self.backend.in_flight(version)).await?;
        accepted("in_flight of a loaded version is told", told)
    }

    /// It can serve, or the backend cannot tell.
    async fn serves(&self, rule: &'static str, version: &VersionId) -> Outcome {
        let said = self.call(self.backend.healthy(version)).await?;
        ensure(rule, matches!(said, Ok(Some(true) | None)), &said)
    }

    /// It cannot serve, or the backend cannot tell.
    async fn rests(&self, rule: &'static str, version: &VersionId) -> Outcome {
        let said = self.call(self.backend.healthy(version)).await?;
        ensure(rule, !matches!(said, Ok(Some(true))), &said)
    }

    async fn unknown(&self, version: &VersionId) -> Outcome {
        is_permanent(
            "a version that has no place cannot be loaded: Permanent",
            &self.prepare(version, at(1, 0)).await?,
        )?;
        self.rests("a version that has no place is not healthy", version)
            .await?;
        accepted(
            "what runs nowhere can be retired",
            self.retire(version, at(1, 1)).await?,
        )?;
        let told = self.call(self.backend.in_flight(version)).await?;
        let rule = "nothing runs on a version that has no place";
        ensure(rule, !matches!(told, Ok(Some(1..))), &told)
    }

    async fn loads(&self, version: &VersionId, fence: u64) -> Outcome {
        let rule = "a version can be loaded";
        accepted(rule, self.prepare(version, at(fence, 1)).await?)?;
        self.serves("what was loaded can serve", version).await?;
        let told = self.in_flight(version).await?;
        let rule = "nothing runs on what nobody uses";
        ensure(rule, matches!(told, None | Some(0)), told)?;
        let rule = "loading again at the same position changes nothing";
        accepted(rule, self.prepare(version, at(fence, 1)).await?)?;
        self.serves(rule, version).await?;
        let rule = "loading again later changes nothing";
        accepted(rule, self.prepare(version, at(fence, 2)).await?)?;
        self.serves(rule, version).await
    }

    /// Begins with a version that is loaded.
    async fn older(&self, version: &VersionId, fence: u64) -> Outcome {
        accepted(
            "a newer fence loads",
            self.prepare(version, at(fence, 5)).await?,
        )?;
        for old in [at(fence, 4), at(fence - 1, 9)] {
            let rule = "a retirement older than the newest load is refused: Permanent";
            is_permanent(rule, &self.retire(version, old).await?)?;
            self.serves(rule, version).await?;
            let rule = "a load older than the newest load is refused: Permanent";
            is_permanent(rule, &self.prepare(version, old).await?)?;
            self.serves(rule, version).await?;
            // Whether it says so or not.
            let _ignored = self.call(self.backend.standby(version, old)).await?;
            let rule = "a standby older than the newest load has no effect";
            self.serves(rule, version).await?;
        }
        Ok(())
    }

    async fn retires(&self, version: &VersionId, fence: u64) -> Outcome {
        let rule = "a version can be retired";
        accepted(rule, self.retire(version, at(fence, 5)).await?)?;
        self.rests("what was retired does not serve", version)
            .await?;
        let rule = "retiring again at the same position changes nothing";
        accepted(rule, self.retire(version, at(fence, 5)).await?)?;
        let rule = "retiring again later changes nothing";
        accepted(rule, self.retire(version, at(fence, 6)).await?)?;
        self.rests(rule, version).await?;
        let told = self.call(self.backend.in_flight(version)).await?;
        let rule = "nothing runs on what was retired";
        ensure(rule, !matches!(told, Ok(Some(1..))), &told)?;
        for old in [at(fence, 5), at(fence - 1, 9)] {
            let rule = "a load older than the newest retirement is refused: Permanent";
            is_permanent(rule, &self.prepare(version, old).await?)?;
            self.rests(rule, version).await?;
        }
        let rule = "a version can be loaded after it was retired";
        accepted(rule, self.prepare(version, at(fence, 7)).await?)?;
        self.serves(rule, version).await
    }

    async fn standby(&self, version: &VersionId, fence: u64) -> Outcome {
        let standby = async |seq| {
            self.call(self.backend.standby(version, at(fence, seq)))
                .await
        };
        accepted("a version can be put on standby", standby(1).await?)?;
        accepted(
            "standby again at the same position changes nothing",
            standby(1).await?,
        )?;
        let rule = "a version can be loaded from standby";
        accepted(rule, self.prepare(version, at(fence, 2)).await?)?;
        self.serves(rule, version).await?;
        accepted("a version can be put on standby", standby(3).await?)?;
        let rule = "a version can be retired from standby";
        accepted(rule, self.retire(version, at(fence, 4)).await?)?;
        self.rests(rule, version).await
    }

    /// A call whose caller has gone: a controller that stopped.
    async fn cancelled(&self, version: &VersionId, fence: u64) -> Outcome {
        {
            let mut call = self.backend.prepare(version, at(fence, 1));
            poll_fn(|cx| {
                let _begun = call.as_mut().poll(cx);
                Poll::Ready(())
            })
            .await;
        }
        let rule = "a load that was given up can be done again";
        accepted(rule, self.prepare(version, at(fence, 1)).await?)?;
        self.serves(rule, version).await
    }

    async fn concurrent(&self, version: &VersionId, fence: u64) -> Outcome {
        let (one, other) = join(
            self.prepare(version, at(fence, 1)),
            self.prepare(version, at(fence, 1)),
        )
        .await;
        let (one, other) = (one?, other?);
        let rule = "the same load twice at once loads";
        ensure(rule, one.is_ok() || other.is_ok(), (&one, &other))?;
        self.serves(rule, version).await
    }

    /// Ends with the version retired.
    async fn race(&self, version: &VersionId, fence: u64) -> Outcome {
        let rule = "a retirement during a load wins";
        accepted(rule, self.retire(version, at(fence, 1)).await?)?;
        let retire = async {
            // Once the load has begun.
            tokio::task::yield_now().await;
            self.retire(version, at(fence, 3)).await
        };
        let (loaded, retired) = join(self.prepare(version, at(fence, 2)), retire).await;
        let (_either, retired) = (loaded?, retired?);
        accepted(rule, retired)?;
        self.rests(rule, version).await
    }
}

fn is_permanent<T: Debug>(rule: &'static str, outcome: &HostResult<T>) -> Outcome {
    let holds = outcome
        .as_ref()
        .is_err_and(|e| e.kind() == ErrorKind::Permanent);
    ensure(rule, holds, outcome)
}

#[cfg(test)]
mod tests;
