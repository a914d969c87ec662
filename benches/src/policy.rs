//! Group `policy`: simulated lives of the 77-hour plan, by the policy test kit.

use crate::figure::{Figure, Limit};
use crate::{Error, Scale};
use llm_rollout::forecast::Planner;
use llm_rollout::policy::{Scale as Times, Scenario};
use llm_rollout::presets::{Reference, reference};
use llm_rollout::{Expected, Traffic};
use rustix::time::{ClockId, clock_gettime};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Its name.
pub const GROUP: &str = "policy";

/// Lives that the claim is about.
const LIVES: usize = 1_000;
/// Lives in which the tests have learnt the noise: each costs about fifteen times as much.
const LEARNT: usize = 20;

/// Processor time of all threads, in seconds.
fn used() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Processor time and time on the wall that so many lives on two threads take.
fn timed(scenario: &Scenario, lives: usize) -> (f64, f64) {
    let (begun, before) = (Instant::now(), used());
    black_box(scenario.clone().threads(2).lives(lives));
    (used() - before, begun.elapsed().as_secs_f64())
}

/// Measures the group.
///
/// # Errors
/// The reference plan makes no sense, which it does.
pub fn run(_: Scale) -> Result<Vec<Figure>, Error> {
    let plan = reference(Reference::default())?;
    let harmless = Scenario::new(plan.clone());
    let (cpu, wall) = timed(&harmless, LIVES);
    let name = format!(
        "{LIVES} harmless lives of the 77-hour plan (five gates, a look a minute), two threads"
    );
    let mut figures = vec![
        // Two cores for ten seconds, whoever else uses them.
        Figure::new(GROUP, format!("{name}: processor time"), cpu, "s").limit(Limit::Below(20.0)),
        Figure::new(GROUP, format!("{name}: on the wall"), wall, "s"),
    ];
    let looks = LIVES as f64 * 77.5 * 60.0;
    figures.push(Figure::new(
        GROUP,
        "one look of five gates: draw requests, judge, decide, apply",
        cpu / looks * 1e6,
        "us",
    ));
    let slower = harmless.clone().effect("latency", Times(1.3));
    let (cpu, _) = timed(&slower, LIVES);
    figures.push(Figure::new(
        GROUP,
        format!("{LIVES} lives of a candidate that is 30 % slower: processor time"),
        cpu,
        "s",
    ));
    let mut traffic = Traffic::new(20.0).history(Duration::from_secs(24 * 3600));
    for gate in &plan.spec().gates {
        traffic = traffic.metric(gate.metric.as_str(), Expected::new(0.01, 1.5));
    }
    let (cpu, _) = timed(&harmless.traffic(traffic.clone()), LEARNT);
    figures.push(Figure::new(
        GROUP,
        format!("{LIVES} harmless lives with noise learnt from a day of history (from {LEARNT}): processor time"),
        cpu * LIVES as f64 / LEARNT as f64,
        "s",
    ));
    let before = used();
    black_box(Planner::new(plan, traffic)?.forecast(&[("latency", 1.5)])?);
    figures.push(Figure::new(
        GROUP,
        "a forecast of the same plan: processor time",
        (used() - before) * 1e3,
        "ms",
    ));
    Ok(figures)
}
