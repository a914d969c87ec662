//! Timing on a machine that others use too.
//!
//! Designs run in turn, in repetitions of about a hundred microseconds, far below a scheduler's slice, so that most are not
//! interrupted; a low quantile over all rounds stands for a design. Two threads count only where they really ran at the
//! same time: else contention would be measured where there was none.

use std::fmt;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long one repetition should take.
const REPETITION: Duration = Duration::from_micros(100);
/// The quantile that stands for a design.
const LOW: f64 = 0.05;
/// Repetitions in a row, before the next design has its turn.
const SPELL: usize = 8;
/// Rounds that only warm up.
const WARM: usize = 5;
/// Fewer repetitions than this say nothing.
const FEWEST: usize = 20;
/// With fewer repetitions on two threads than this, a measurement takes up to twice its time.
const WANTED: usize = 400;

/// The value below which this part (0 to 1) of all values lies; none if there are none.
pub fn quantile(values: &[f64], part: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the last index"
    )]
    let at = (part.clamp(0.0, 1.0) * last as f64).round() as usize;
    sorted.get(at).copied()
}

/// The middle value; none if there are none.
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The smallest value; infinite if there are none.
pub fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// What part of the longer of two spans both share.
fn overlap(a: (Instant, Instant), b: (Instant, Instant)) -> f64 {
    let both = a.1.min(b.1).saturating_duration_since(a.0.max(b.0));
    let longer = a.1.duration_since(a.0).max(b.1.duration_since(b.0));
    both.as_secs_f64() / longer.as_secs_f64().max(f64::MIN_POSITIVE)
}

/// One way of doing a piece of work.
pub struct Design<'a> {
    name: &'static str,
    run: Box<dyn Fn(usize, usize) + Sync + 'a>,
    per_pass: usize,
}

impl<'a> Design<'a> {
    /// `run(thread, passes)` does `passes` times `per_pass` operations; `thread` is 0 or 1.
    pub fn new(
        name: &'static str,
        per_pass: usize,
        run: impl Fn(usize, usize) + Sync + 'a,
    ) -> Self {
        Self {
            name,
            run: Box::new(run),
            per_pass,
        }
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Runs one pass on the calling thread.
    pub fn pass(&self) {
        (self.run)(0, 1);
    }

    fn timed(&self, thread: usize, passes: usize) -> (Instant, Instant) {
        // What ran before has left caches and predictors in its own state.
        (self.run)(thread, passes.div_ceil(8));
        let begin = Instant::now();
        (self.run)(thread, passes);
        (begin, Instant::now())
    }

    fn passes(&self) -> usize {
        let took = (0..8)
            .map(|_| {
                let (begin, end) = self.timed(0, 1);
                end.duration_since(begin)
            })
            .min()
            .unwrap_or_default();
        let fit = REPETITION.as_nanos() / took.as_nanos().max(1);
        usize::try_from(fit).unwrap_or(usize::MAX).clamp(1, 10_000)
    }
}

impl fmt::Debug for Design<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Design")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What was measured of one design, in nanoseconds per operation and thread.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Timing {
    /// Alone.
    pub one: f64,
    /// While another thread does the same; none if they hardly ever ran at the same time.
    pub two: Option<f64>,
}

impl Timing {
    /// Two threads against one.
    pub fn scaling(&self) -> Option<f64> {
        self.two.map(|two| two / self.one)
    }
}

#[cfg(target_os = "linux")]
pub(crate) type Processors = Option<rustix::thread::CpuSet>;
#[cfg(not(target_os = "linux"))]
pub(crate) type Processors = ();

/// Keeps the calling thread to the n-th of the processors that it may use, so that two threads do not share one; what it could
/// use before. Without an effect where that is not possible.
#[cfg(target_os = "linux")]
pub(crate) fn pin(n: usize) -> Processors {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let before = sched_getaffinity(None).ok()?;
    let nth = (0..CpuSet::MAX_CPU)
        .filter(|cpu| before.is_set(*cpu))
        .nth(n)?;
    let mut only = CpuSet::new();
    only.set(nth);
    sched_setaffinity(None, &only).ok()?;
    Some(before)
}

#[cfg(not(target_os = "linux"))]
fn pin(_: usize) -> Processors {}

#[cfg(target_os = "linux")]
pub(crate) fn unpin(before: Processors) {
    if let Some(before) = before {
        // At worst the rest of the report runs on one processor, and says so.
        let _ = rustix::thread::sched_setaffinity(None, &before);
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn unpin((): Processors) {}

/// Both threads have come to the same point.
fn meet(gate: &AtomicUsize, meetings: &mut usize) {
    *meetings += 1;
    gate.fetch_add(1, Ordering::AcqRel);
    let mut spins = 0_u32;
    while gate.load(Ordering::Acquire) < 2 * *meetings {
        spins += 1;
        // The other thread may be waiting for this processor.
        if spins.is_multiple_of(100_000) {
            std::thread::yield_now();
        } else {
            spin_loop();
        }
    }
}

/// Nanoseconds per operation on the first thread: alone, and while the second does the same.
type Samples = (Vec<f64>, Vec<f64>);

/// Runs all designs in turn, alone and on two threads, until the budget is spent; up to twice that where two threads
/// seldom run at the same time.
pub fn interleave(designs: &[Design<'_>], budget: Duration) -> Vec<Timing> {
    let passes = designs.iter().map(Design::passes).collect::<Vec<_>>();
    let job = |at: usize, thread| {
        let (design, passes) = designs.get(at).zip(passes.get(at))?;
        Some(design.timed(thread, *passes))
    };
    let together = |at: usize, thread, gate: &AtomicUsize, meetings: &mut usize| {
        (0..SPELL)
            .filter_map(|_| {
                meet(gate, meetings);
                job(at, thread)
            })
            .collect::<Vec<_>>()
    };
    let gate = AtomicUsize::new(0);
    let mut samples = vec![Samples::default(); designs.len()];
    std::thread::scope(|scope| {
        let (to, jobs) = mpsc::channel::<usize>();
        let (answers, from) = mpsc::channel();
        let (gate, together) = (&gate, &together);
        scope.spawn(move || {
            pin(1);
            let mut meetings = 0;
            for at in jobs {
                if answers.send(together(at, 1, gate, &mut meetings)).is_err() {
                    return;
                }
            }
        });
        // Only now: a thread may use what the thread that made it may.
        let before = pin(0);
        let (begun, mut round, mut meetings) = (Instant::now(), 0, 0);
        loop {
            let few = samples.iter().any(|(_, two): &Samples| two.len() < WANTED);
            let budget = if few { 2 * budget } else { budget };
            if begun.elapsed() >= budget && round >= WARM + FEWEST {
                unpin(before);
                return;
            }
            for turn in 0..designs.len() {
                let at = (turn + round) % designs.len();
                let alone = (0..SPELL).filter_map(|_| job(at, 0)).collect::<Vec<_>>();
                if to.send(at).is_err() {
                    return;
                }
                let own = together(at, 0, gate, &mut meetings);
                let Ok(other) = from.recv() else { return };
                let known = designs.get(at).zip(passes.get(at)).zip(samples.get_mut(at));
                let Some(((design, passes), (one, two))) = known.filter(|_| round >= WARM) else {
                    continue;
                };
                let operations = (design.per_pass * passes) as f64;
                let nanos = |(begin, end): (Instant, Instant)| {
                    end.duration_since(begin).as_secs_f64() * 1e9 / operations
                };
                one.extend(alone.into_iter().map(nanos));
                for (own, other) in own.into_iter().zip(other) {
                    if overlap(own, other) > 0.9 {
                        // Against itself: where a thread's stack lies matters by some percent.
                        two.push(nanos(own));
                    }
                }
            }
            round += 1;
        }
    });
    samples
        .iter()
        .map(|(one, two)| Timing {
            one: quantile(one, LOW).unwrap_or(f64::NAN),
            two: quantile(two, LOW).filter(|_| two.len() >= FEWEST),
        })
        .collect()
}

/// Allocations per operation over a few passes, once warm.
pub fn allocations(design: &Design<'_>) -> f64 {
    const PASSES: u32 = 8;
    design.pass();
    let counted = allocation_counter::measure(|| (0..PASSES).for_each(|_| design.pass()));
    counted.count_total as f64 / (f64::from(PASSES) * design.per_pass as f64)
}

/// Processor time that this process has used so far, on all threads; wall time where that is not known.
pub fn processor_time() -> Duration {
    #[cfg(unix)]
    {
        let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::try_from(spent).unwrap_or_default()
    }
    #[cfg(not(unix))]
    {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        START.get_or_init(Instant::now).elapsed()
    }
}

/// Processor time that the calling thread has used so far; none where that is not known.
pub fn thread_time() -> Option<Duration> {
    #[cfg(unix)]
    {
        let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::try_from(spent).ok()
    }
    #[cfg(not(unix))]
    {
        None
    }
}

/// How long something took.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Took {
    /// Seconds on the wall.
    pub wall: f64,
    /// Seconds of processor time, of all threads of this process.
    pub processor: f64,
}

/// How long this takes.
///
/// # Errors
/// What it fails with.
pub fn took<E>(run: impl FnOnce() -> Result<(), E>) -> Result<Took, E> {
    let (wall, processor) = (Instant::now(), processor_time());
    run()?;
    Ok(Took {
        wall: wall.elapsed().as_secs_f64(),
        processor: processor_time().saturating_sub(processor).as_secs_f64(),
    })
}

/// One thing to time in [`in_turn`].
pub type Turn<'a, E> = Box<dyn FnMut() -> Result<(), E> + 'a>;

/// Times all of them in turn until the budget is spent, three rounds at least, after one to warm up; up to twice the budget while
/// it is not enough. The best of each, by wall and by processor.
///
/// # Errors
/// What one of them fails with.
pub fn in_turn<E>(
    turns: &mut [Turn<'_, E>],
    budget: Duration,
    enough: impl Fn(&[Took]) -> bool,
) -> Result<Vec<Took>, E> {
    let mut best = Vec::new();
    for turn in turns.iter_mut() {
        turn()?;
        best.push(Took {
            wall: f64::INFINITY,
            processor: f64::INFINITY,
        });
    }
    let (begun, mut rounds) = (Instant::now(), 0);
    loop {
        let budget = if enough(&best) { budget } else { 2 * budget };
        if rounds >= 3 && begun.elapsed() >= budget {
            return Ok(best);
        }
        for (turn, best) in turns.iter_mut().zip(&mut best) {
            let spent = took(turn)?;
            best.wall = best.wall.min(spent.wall);
            best.processor = best.processor.min(spent.processor);
        }
        rounds += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_of_the_sample() {
        let values = [5.0, 1.0, 3.0, 2.0, 4.0];
        assert_eq!(median(&values), Some(3.0));
        assert_eq!(quantile(&values, 0.0), Some(1.0));
        assert_eq!(quantile(&values, 1.0), Some(5.0));
        assert_eq!(quantile(&values, 0.05), Some(1.0));
        assert_eq!(median(&[]), None);
        assert!((least(&values) - 1.0).abs() < f64::EPSILON);
        assert!(least(&[]).is_infinite());
    }

    #[test]
    fn spans_overlap_by_part_of_the_longer() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert!((overlap((at(0), at(10)), (at(5), at(15))) - 0.5).abs() < 1e-9);
        assert!(overlap((at(0), at(10)), (at(10), at(20))) < 1e-9);
        assert!((overlap((at(0), at(10)), (at(0), at(10))) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn every_design_is_timed_and_allocations_are_counted() {
        let designs = [
            Design::new("nothing", 64, |_, passes| {
                (0..passes * 64).for_each(|i| {
                    std::hint::black_box(i);
                });
            }),
            Design::new("a box", 64, |_, passes| {
                (0..passes * 64).for_each(|i| {
                    std::hint::black_box(Box::new(i));
                });
            }),
        ];
        let timings = interleave(&designs, Duration::from_millis(1));
        assert_eq!(timings.len(), 2);
        assert!(timings.iter().all(|t| t.one > 0.0));
        assert!(allocations(&designs[0]).abs() < 1e-12);
        assert!((allocations(&designs[1]) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn turns_are_taken_and_errors_passed_on() {
        let (mut a, mut b) = (0, 0);
        let mut turns: Vec<Turn<'_, String>> = vec![
            Box::new(|| {
                a += 1;
                Ok(())
            }),
            Box::new(|| {
                b += 1;
                if b < 100 { Ok(()) } else { Err("b".to_owned()) }
            }),
        ];
        assert_eq!(
            in_turn(&mut turns, Duration::ZERO, |_| true).unwrap().len(),
            2
        );
        assert_eq!(
            in_turn(&mut turns, Duration::from_secs(60), |_| true),
            Err("b".to_owned())
        );
        drop(turns);
        assert_eq!((a, b), (100, 100));
    }
}
