//! What every [`MetricSource`] must do.

use super::{Violation, ensure};
use crate::host::{Cursor, Error, ErrorKind, MetricSource, Past, Query, Reading};
use async_trait::async_trait;
use llm_gates::{Counts, Increment};
use llm_rollout::{Epoch, MetricDef, Timestamp};
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

type Outcome = Result<(), Violation>;

/// Whose requests the suite asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "hosts serve both")]
pub enum Arm {
    /// The version that is being rolled out.
    Candidate,
    /// The version that it is compared with.
    Baseline,
}

/// Why a source may be unable to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trouble {
    /// Whatever it reads from cannot be reached, or hangs.
    Unreachable,
    /// A count of the candidate is not a number.
    NotANumber,
    /// The candidate's counts have vanished.
    Absent,
    /// The candidate's counts have not been renewed for longer than the source takes them for fresh.
    Stale,
}

impl Trouble {
    const ALL: [Self; 4] = [
        Self::Unreachable,
        Self::NotANumber,
        Self::Absent,
        Self::Stale,
    ];
}

/// What the suite needs of a host: a source, traffic that the source counts, and trouble.
///
/// The suite says what is served; the host serves it, by whatever way the source learns of requests, and **returns once the
/// source can know of it**. All times are the host's: virtual where the source lives in virtual time, real where a real component
/// has a clock of its own.
///
/// Its futures need not be `Send`: implement it with `#[async_trait(?Send)]`.
#[async_trait(?Send)]
pub trait Traffic {
    /// The source as it is now; a new one after [`Self::restart`].
    fn source(&self) -> Arc<dyn MetricSource>;

    /// Metrics that the source counts as [`Increment::Binary`]. Each counts the same: all requests, and those that the suite
    /// calls bad.
    fn metrics(&self) -> BTreeMap<String, MetricDef>;

    /// The candidate, and the baseline.
    fn versions(&self) -> [VersionId; 2];

    /// The time; later with each call.
    fn now(&mut self) -> Timestamp;

    /// Serves this many requests of an arm under an epoch: `n`, of which `k` are bad. Ends once the source can know of them.
    async fn serve(&mut self, epoch: Epoch, arm: Arm, served: Counts);

    /// Whether requests of different epochs are told apart.
    fn tells_epochs(&self) -> bool {
        true
    }

    /// Brings trouble about, until [`Self::mend`]; `false` where this source cannot meet it.
    async fn strike(&mut self, trouble: Trouble) -> bool;

    /// Ends all trouble, and ends once the source can answer again.
    async fn mend(&mut self);

    /// Starts a new life of whatever keeps the counts: they begin at zero, or wherever it has kept them. Ends once the source
    /// can answer; `false` where there is no such thing.
    async fn restart(&mut self) -> bool;

    /// How long one call may take, in real time or in the runtime's paused time: with time to spare.
    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// Runs every check; metrics and versions stay the same throughout. It needs a tokio runtime with time.
///
/// ```
/// # use async_trait::async_trait;
/// # use llm_gates::Counts;
/// # use llm_rollout::{Epoch, MetricDef, Timestamp};
/// # use llm_serve_adapters::{host::MetricSource, testing};
/// # use llm_serve_adapters::recorder::{OutcomeClass, Recorder};
/// # use llm_serve_adapters::router::Decision;
/// # use llm_serve_adapters::testing::source::{Arm, Traffic, Trouble};
/// # use llm_version_core::VersionId;
/// # use std::{collections::BTreeMap, sync::Arc, time::Duration};
/// struct Gateway { recorder: Arc<Recorder>, ms: u64 }
///
/// #[async_trait(?Send)]
/// impl Traffic for Gateway {
///     fn source(&self) -> Arc<dyn MetricSource> {
///         Arc::clone(&self.recorder) as Arc<dyn MetricSource>
///     }
///     fn metrics(&self) -> BTreeMap<String, MetricDef> {
///         BTreeMap::from([("faults".to_owned(), MetricDef::Fault {})])
///     }
/// #   fn versions(&self) -> [VersionId; 2] {
/// #       [1, 2].map(|n| format!("chat/v{n}.0.0-{}", "ab".repeat(32)).parse().expect("a version"))
/// #   }
/// #   fn now(&mut self) -> Timestamp { self.ms += 1; Timestamp::from_millis(self.ms) }
///     async fn serve(&mut self, epoch: Epoch, arm: Arm, served: Counts) {
///         // ... requests through the gateway, `served.k` of them failing ...
/// #       let [candidate, baseline] = self.versions();
/// #       for i in 0..served.n {
/// #           let class = if i < served.k { OutcomeClass::Timeout } else { OutcomeClass::Ok };
/// #           let version = if arm == Arm::Candidate { &candidate } else { &baseline };
/// #           let now = self.now();
/// #           self.recorder.begin(testing::source::assigned(version, arm, epoch), now).finish(class, now);
/// #       }
///     }
///     async fn strike(&mut self, _: Trouble) -> bool { false } // it lives in this process
///     async fn mend(&mut self) {}
///     async fn restart(&mut self) -> bool {
///         self.recorder = Arc::new(Recorder::new(Vec::<String>::new()).expect("no flags"));
///         true
///     }
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), testing::Violation> {
/// # let recorder = Arc::new(Recorder::new(Vec::<String>::new()).expect("no flags"));
/// testing::source::suite(&mut Gateway { recorder, ms: 1_000 }).await
/// # }
/// ```
///
/// # Errors
/// The first rule that the source breaks.
pub async fn suite(traffic: &mut dyn Traffic) -> Outcome {
    counted_once(traffic).await?;
    cursors_are_not_used_up(traffic).await?;
    windows_have_a_length(traffic).await?;
    strange_cursors(traffic).await?;
    only_this_epoch(traffic).await?;
    nothing_is_made_up(traffic).await?;
    unknown_metrics(traffic).await?;
    the_past(traffic).await?;
    another_life(traffic).await
}

/// A decision as an in-process router makes it by chance, for a [`Traffic`] that feeds a [`Recorder`](crate::recorder::Recorder).
///
/// # Panics
/// If this process has met more versions than it can tell apart.
#[expect(clippy::expect_used, reason = "a test's own versions are few")]
pub fn assigned(version: &VersionId, arm: Arm, epoch: Epoch) -> crate::router::Decision {
    use crate::router::{Decision, Role, VersionSlot};
    let slot = VersionSlot::intern(version).expect("few versions");
    let role = match arm {
        Arm::Candidate => Role::Candidate,
        Arm::Baseline => Role::Baseline,
    };
    Decision::new(slot, role, epoch.get(), false)
}

const EPOCH: Epoch = Epoch::new(7);

/// A look at a source by the suite: what it asks for, kept.
struct Eye {
    metrics: BTreeMap<String, MetricDef>,
    candidate: VersionId,
    baseline: VersionId,
    patience: Duration,
}

/// What both arms gained: candidate, baseline.
type Gain = [Counts; 2];

fn add(sum: &mut Gain, more: Gain) {
    for (sum, more) in sum.iter_mut().zip(more) {
        sum.n += more.n;
        sum.k += more.k;
    }
}

impl Eye {
    fn on(traffic: &dyn Traffic) -> Self {
        let [candidate, baseline] = traffic.versions();
        Self {
            metrics: traffic.metrics(),
            candidate,
            baseline,
            patience: traffic.patience(),
        }
    }

    fn query(&self, epoch: Epoch) -> Query<'_> {
        Query {
            metrics: &self.metrics,
            epoch,
            candidate: &self.candidate,
            baseline: &self.baseline,
        }
    }

    async fn bounded<T>(&self, what: impl Future<Output = T>) -> Result<T, Violation> {
        tokio::time::timeout(self.patience, what)
            .await
            .map_err(|_| Violation {
                rule: "every call ends by itself",
                found: format!("it waited {:?}", self.patience),
            })
    }

    async fn try_open(
        &self,
        traffic: &mut dyn Traffic,
        epoch: Epoch,
    ) -> Result<Result<Cursor, Error>, Violation> {
        let (source, now) = (traffic.source(), traffic.now());
        let opened = self.bounded(source.open(self.query(epoch), now)).await?;
        // A log keeps its text alone.
        Ok(opened.map(|cursor| Cursor::new(cursor.as_str())))
    }

    async fn open(&self, traffic: &mut dyn Traffic, epoch: Epoch) -> Result<Cursor, Violation> {
        accepted(
            "a source that can answer opens",
            self.try_open(traffic, epoch).await?,
        )
    }

    async fn try_read(
        &self,
        traffic: &mut dyn Traffic,
        epoch: Epoch,
        cursor: &Cursor,
    ) -> Result<Result<Reading, Error>, Violation> {
        let (source, now) = (traffic.source(), traffic.now());
        let read = self
            .bounded(source.read(self.query(epoch), cursor, now))
            .await?;
        if let Ok(reading) = &read {
            self.window(reading, epoch, now)?;
        }
        Ok(read.map(|reading| Reading {
            cursor: Cursor::new(reading.cursor.as_str()),
            ..reading
        }))
    }

    async fn read(
        &self,
        traffic: &mut dyn Traffic,
        cursor: &Cursor,
    ) -> Result<(Gain, Reading), Violation> {
        let read = self.try_read(traffic, EPOCH, cursor).await?;
        let reading = accepted("a source that can answer reads", read)?;
        Ok((Self::gain(&reading)?, reading))
    }

    /// What holds of every window.
    fn window(&self, reading: &Reading, epoch: Epoch, now: Timestamp) -> Outcome {
        let window = &reading.window;
        ensure(
            "a window is of the epoch that was asked for",
            window.epoch == epoch.get(),
            window,
        )?;
        ensure(
            "a window has a length, and ends by now",
            window.from < window.to && window.to <= now.as_millis(),
            (window, now),
        )?;
        ensure(
            "a window holds every metric that was asked for, and no other",
            window.metrics.keys().eq(self.metrics.keys()),
            window,
        )
    }

    /// What both arms gained, the same in all metrics.
    fn gain(reading: &Reading) -> Result<Gain, Violation> {
        let mut gains = Vec::new();
        for increment in reading.window.metrics.values() {
            let Increment::Binary {
                candidate,
                baseline,
            } = increment
            else {
                return Err(Violation {
                    rule: "the metrics of the suite are binary",
                    found: format!("{increment:?}"),
                });
            };
            for counts in [candidate, baseline] {
                ensure(
                    "no more events than requests",
                    counts.check().is_ok(),
                    counts,
                )?;
            }
            gains.push([*candidate, *baseline]);
        }
        let first = gains.first().copied().unwrap_or_default();
        let rule = "metrics that count the same requests agree";
        ensure(rule, gains.iter().all(|gain| *gain == first), reading)?;
        Ok(first)
    }
}

fn accepted<T>(rule: &'static str, result: Result<T, Error>) -> Result<T, Violation> {
    result.map_err(|e| Violation {
        rule,
        found: format!("{e:?}"),
    })
}

fn refused<T: Debug>(rule: &'static str, result: &Result<T, Error>, kind: ErrorKind) -> Outcome {
    ensure(
        rule,
        result.as_ref().is_err_and(|e| e.kind() == kind),
        result,
    )
}

async fn serve_both(traffic: &mut dyn Traffic, epoch: Epoch, served: Gain) {
    let [candidate, baseline] = served;
    traffic.serve(epoch, Arm::Baseline, baseline).await;
    traffic.serve(epoch, Arm::Candidate, candidate).await;
}

/// Both arms have been met, and the source has a cursor from here on.
async fn begin(eye: &Eye, traffic: &mut dyn Traffic) -> Result<Cursor, Violation> {
    serve_both(traffic, EPOCH, [Counts::new(3, 1), Counts::new(5, 2)]).await;
    eye.open(traffic, EPOCH).await
}

/// Windows follow one another, and every request is in exactly one of them: none before the cursor, none twice, none lost.
///
/// # Errors
/// The rule that is broken.
pub async fn counted_once(traffic: &mut dyn Traffic) -> Outcome {
    let eye = Eye::on(traffic);
    let mut cursor = begin(&eye, traffic).await?;
    let mut end = None;
    let rounds = [
        (
            [Counts::default(); 2],
            "a window in which nobody was served is empty, and holds nothing from before the cursor",
        ),
        (
            [Counts::new(7, 2), Counts::new(11, 3)],
            "a window holds exactly what was served since the cursor",
        ),
        (
            [Counts::new(1, 1), Counts::new(40, 0)],
            "a window holds exactly what was served since the cursor",
        ),
        (
            [Counts::default(), Counts::new(2, 2)],
            "an arm that nobody asked gains nothing",
        ),
        (
            [Counts::default(); 2],
            "what was counted once is not counted again",
        ),
    ];
    for (served, rule) in rounds {
        serve_both(traffic, EPOCH, served).await;
        let (gain, reading) = eye.read(traffic, &cursor).await?;
        ensure(rule, gain == served, (gain, "of", served))?;
        ensure(
            "windows follow one another without a gap",
            end.is_none_or(|end| reading.window.from == end),
            (end, &reading.window),
        )?;
        end = Some(reading.window.to);
        cursor = reading.cursor;
    }
    // What lies between reads, in whatever portions, adds up.
    let mut sum = Gain::default();
    for n in 1..=3 {
        let served = [Counts::new(n, n / 2), Counts::new(2 * n, 1)];
        serve_both(traffic, EPOCH, served).await;
        if n == 2 {
            let (gain, reading) = eye.read(traffic, &cursor).await?;
            add(&mut sum, gain);
            cursor = reading.cursor;
        }
    }
    let (gain, _) = eye.read(traffic, &cursor).await?;
    add(&mut sum, gain);
    let all = [Counts::new(6, 2), Counts::new(12, 3)];
    ensure(
        "windows add up to what was served",
        sum == all,
        (sum, "of", all),
    )
}

/// A controller that died before it saved a reading reads again from the same cursor; another may read beside it.
///
/// # Errors
/// The rule that is broken.
pub async fn cursors_are_not_used_up(traffic: &mut dyn Traffic) -> Outcome {
    let eye = Eye::on(traffic);
    let cursor = begin(&eye, traffic).await?;
    let mut all = [Counts::new(4, 1), Counts::new(9, 0)];
    serve_both(traffic, EPOCH, all).await;
    let (first, _) = eye.read(traffic, &cursor).await?;
    let other = eye.open(traffic, EPOCH).await?;
    let (again, reading) = eye.read(traffic, &cursor).await?;
    let rule = "the same cursor gives the same again, whoever has read in between";
    ensure(rule, first == all && again == all, (first, again))?;
    let more = [Counts::new(2, 2), Counts::new(1, 0)];
    serve_both(traffic, EPOCH, more).await;
    add(&mut all, more);
    let (wide, _) = eye.read(traffic, &cursor).await?;
    ensure(rule, wide == all, (wide, "of", all))?;
    for cursor in [reading.cursor, other] {
        let (rest, _) = eye.read(traffic, &cursor).await?;
        ensure(rule, rest == more, (rest, "of", more))?;
    }
    Ok(())
}

/// A read at the very time of its cursor has no window.
///
/// # Errors
/// The rule that is broken.
pub async fn windows_have_a_length(traffic: &mut dyn Traffic) -> Outcome {
    let eye = Eye::on(traffic);
    begin(&eye, traffic).await?;
    let (source, now) = (traffic.source(), traffic.now());
    let rule = "a source that can answer opens";
    let opened = eye.bounded(source.open(eye.query(EPOCH), now)).await?;
    let cursor = accepted(rule, opened)?;
    let read = eye
        .bounded(source.read(eye.query(EPOCH), &cursor, now))
        .await?;
    let rule = "without time there is no window: Transient";
    refused(rule, &read, ErrorKind::Transient)
}

/// A cursor that is not of this source, or of another epoch, is refused for good: the caller opens anew.
///
/// # Errors
/// The rule that is broken.
pub async fn strange_cursors(traffic: &mut dyn Traffic) -> Outcome {
    let eye = Eye::on(traffic);
    let cursor = begin(&eye, traffic).await?;
    for strange in ["", "0", "{}", "no cursor of anybody's", "[1,2", "\u{0}"] {
        let read = eye.try_read(traffic, EPOCH, &Cursor::new(strange)).await?;
        let rule = "a cursor that is not the source's own is refused: Permanent";
        refused(rule, &read, ErrorKind::Permanent)?;
    }
    let read = eye
        .try_read(traffic, Epoch::new(EPOCH.get() + 1), &cursor)
        .await?;
    let rule = "a cursor of another epoch is refused: Permanent";
    refused(rule, &read, ErrorKind::Permanent)
}

/// Requests that were assigned under another epoch are no evidence in this one.
///
/// # Errors
/// The rule that is broken.
pub async fn only_this_epoch(traffic: &mut dyn Traffic) -> Outcome {
    if !traffic.tells_epochs() {
        return Ok(());
    }
    let eye = Eye::on(traffic);
    let cursor = begin(&eye, traffic).await?;
    let next = Epoch::new(EPOCH.get() + 1);
    let served = [Counts::new(2, 1), Counts::new(3, 1)];
    serve_both(traffic, next, [Counts::new(10, 5), Counts::new(20, 6)]).await;
    serve_both(traffic, EPOCH, served).await;
    let (gain, _) = eye.read(traffic, &cursor).await?;
    let rule = "requests of another epoch do not count";
    ensure(rule, gain == served, (gain, "of", served))
}

/// A source that has no answer says so, in time, and makes up nothing; once it can answer again, it counts right.
///
/// # Errors
/// The rule that is broken.
pub async fn nothing_is_made_up(traffic: &mut dyn Traffic) -> Outcome {
    let eye = Eye::on(traffic);
    for trouble in Trouble::ALL {
        let mut cursor = begin(&eye, traffic).await?;
        let before = [Counts::new(3, 0), Counts::new(4, 1)];
        serve_both(traffic, EPOCH, before).await;
        if !traffic.strike(trouble).await {
            continue;
        }
        let read = eye.try_read(traffic, EPOCH, &cursor).await;
        let again = eye.try_read(traffic, EPOCH, &cursor).await;
        traffic.mend().await;
        for read in [read?, again?] {
            let rule = match trouble {
                Trouble::Unreachable => "a source that cannot be reached has no window: Transient",
                Trouble::NotANumber => "what is not a number is no window: Transient",
                Trouble::Absent => "counts that have vanished are no window: Transient",
                Trouble::Stale => "counts that are not renewed are no window: Transient",
            };
            refused(rule, &read, ErrorKind::Transient)?;
        }
        let (late, reading) = eye.read(traffic, &cursor).await?;
        let most = late
            .iter()
            .zip(before)
            .all(|(gain, served)| gain.n <= served.n && gain.k <= served.k);
        let rule = "after trouble nothing counts that was not served";
        ensure(rule, most, (trouble, late, "of", before))?;
        cursor = reading.cursor;
        let after = [Counts::new(5, 1), Counts::new(6, 2)];
        serve_both(traffic, EPOCH, after).await;
        let (gain, _) = eye.read(traffic, &cursor).await?;
        let rule = "after trouble it counts right again";
        ensure(rule, gain == after, (trouble, gain, "of", after))?;
    }
    Ok(())
}

/// A metric that the source does not count is an error, not an empty window.
///
/// # Errors
/// The rule that is broken.
pub async fn unknown_metrics(traffic: &mut dyn Traffic) -> Outcome {
    let mut eye = Eye::on(traffic);
    begin(&eye, traffic).await?;
    eye.metrics.insert(
        "conformance-nobody-counts-this".to_owned(),
        MetricDef::Flag("conformance-nobody-raises-this".to_owned()),
    );
    let rule = "a metric that the source does not count is an error, not an empty window";
    match eye.try_open(traffic, EPOCH).await? {
        Err(_) => Ok(()),
        Ok(cursor) => {
            let read = eye.try_read(traffic, EPOCH, &cursor).await?;
            ensure(rule, read.is_err(), read)
        }
    }
}

/// Slices and history hold counts that can be, of metrics that were asked for.
///
/// # Errors
/// The rule that is broken.
pub async fn the_past(traffic: &mut dyn Traffic) -> Outcome {
    let eye = Eye::on(traffic);
    begin(&eye, traffic).await?;
    let (source, now) = (traffic.source(), traffic.now());
    let rule = "what is told of slices and of the past can be";
    let sane = |counts: &Counts| counts.check().is_ok();
    let slices = eye.bounded(source.slices(eye.query(EPOCH))).await?;
    for slice in accepted("a source that can answer tells its slices", slices)? {
        let known = eye.metrics.contains_key(&slice.metric);
        let good = known && sane(&slice.candidate) && sane(&slice.baseline);
        ensure(rule, good, slice)?;
    }
    let history = eye.bounded(source.history(eye.query(EPOCH), now)).await?;
    for past in accepted("a source that can answer tells its history", history)? {
        let known = eye.metrics.contains_key(&past.metric);
        let sane = past.blocks.iter().flatten().all(sane);
        let good = known && sane && past.blocks.len() <= Past::MOST;
        ensure(rule, good, past)?;
    }
    Ok(())
}

/// A cursor of an earlier life is refused for good, unless the source goes on from it without losing or doubling anything; the
/// heartbeat of a life never falls.
///
/// # Errors
/// The rule that is broken.
pub async fn another_life(traffic: &mut dyn Traffic) -> Outcome {
    let eye = Eye::on(traffic);
    let mut cursor = begin(&eye, traffic).await?;
    let mut exposed = 0;
    for _ in 0..2 {
        let served = [Counts::new(2, 0), Counts::new(2, 0)];
        serve_both(traffic, EPOCH, served).await;
        let (_, reading) = eye.read(traffic, &cursor).await?;
        let beat = reading.heartbeat.map_or(exposed, |beat| beat.exposed);
        let rule = "a candidate's requests never become fewer";
        ensure(rule, beat >= exposed, (beat, exposed))?;
        (exposed, cursor) = (beat, reading.cursor);
    }
    if !traffic.restart().await {
        return Ok(());
    }
    let served = [Counts::new(6, 1), Counts::new(7, 2)];
    serve_both(traffic, EPOCH, served).await;
    let rule = "a cursor of an earlier life is refused (Permanent), or goes on exactly";
    match eye.try_read(traffic, EPOCH, &cursor).await? {
        Err(e) => ensure(rule, e.kind() == ErrorKind::Permanent, e)?,
        Ok(reading) => {
            let gain = Eye::gain(&reading)?;
            ensure(rule, gain == served, (gain, "of", served))?;
        }
    }
    let cursor = eye.open(traffic, EPOCH).await?;
    serve_both(traffic, EPOCH, served).await;
    let (gain, _) = eye.read(traffic, &cursor).await?;
    let rule = "in a new life it counts right from where it was opened anew";
    ensure(rule, gain == served, (gain, "of", served))
}

#[cfg(test)]
mod tests;
