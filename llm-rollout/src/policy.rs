//! Tests of a policy, in virtual time: what a plan does to thousands of candidates that one makes up.
//!
//! A [`Scenario`] says what the traffic is like and what is wrong with the candidate; [`Scenario::lives`] runs the **real**
//! [`crate::Rollout`] and the **real** [`llm_gates::Evidence`] through it, as often as one wants, on all cores; [`Lives`] answers with
//! distributions. Nothing waits and nothing reads a clock: the 77 hours of the reference schedule take milliseconds. The same seed
//! gives the same lives, however many threads there are.
//!
//! ```
//! use llm_rollout::policy::{Scale, Scenario};
//! # fn plan() -> llm_rollout::Plan {
//! # llm_rollout::Plan::from_toml(r#"
//! #     alpha = 0.05
//! #     [metrics]
//! #     ttft = { first_token_over = "800ms" }
//! #     [[gates]]
//! #     metric = "ttft"
//! #     weight = 1.0
//! #     [[stages]]
//! #     serve = 5.0
//! #     dwell = "4h"
//! #     min_samples = 1000
//! # "#).unwrap()
//! # }
//! let lives = Scenario::new(plan()).requests_per_second(20.0).effect("ttft", Scale(1.3)).lives(200);
//! assert!(lives.rolled_back() >= 0.99 && lives.exposed_requests().p95() < 2_000, "{lives}");
//! ```
//!
//! With `"{lives}"` as the message, a failing assertion shows what became of all lives and tells the worst of them as a story, with
//! the seed that brings it back.
//!
//! Everything is counted per request, as the recorder counts it: arrivals are Poisson, outcomes are independent given the rates of their
//! time, and rates may follow the day, drift, and fluctuate by replica. Not simulated: users who come again and resemble themselves.

mod driver;
mod effect;
mod lives;
mod random;
mod world;

#[cfg(test)]
mod tests;

pub use effect::{Change, Change::Rate, Change::Ratio, Change::Scale, Effect, Noise};
pub use lives::{Life, Lives, Proportion, Sample, Story};

use crate::{Expected, MetricDef, Plan, Traffic};
use driver::Driver;
use llm_gates::Measurements;
use std::collections::BTreeMap;
use std::time::Duration;
use world::{Labels, Setting};

/// A plan, the traffic it runs in, and what goes wrong. Times are since the rollout began.
#[derive(Debug, Clone)]
pub struct Scenario {
    plan: Plan,
    traffic: Traffic,
    /// Amplitude of the day, and the hour at which the rollout begins.
    day: (f64, f64),
    drift: f64,
    latency_spread: f64,
    noise: Option<Noise>,
    effects: BTreeMap<String, Vec<Effect>>,
    labels: BTreeMap<String, Labels>,
    outages: Vec<(Duration, Duration)>,
    crashes: Vec<(Duration, Duration)>,
    restarts: Vec<Duration>,
    silent: Option<Duration>,
    measured: Option<Measurements>,
    approval: Option<Duration>,
    abort: Option<Duration>,
    reaction: Duration,
    horizon: Duration,
    seed: u64,
    threads: Option<usize>,
}

/// What cannot be simulated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BadScenario {
    /// The plan does not know the metric.
    #[error("the plan has no metric {name:?}; it has: {known}")]
    Metric {
        /// The metric.
        name: String,
        /// Those that it has.
        known: String,
    },
    /// A number outside its range.
    #[error("{what} is {value}: it must {range}")]
    Number {
        /// Which.
        what: String,
        /// Its value.
        value: f64,
        /// What it must do.
        range: &'static str,
    },
    /// The traffic makes no sense.
    #[error(transparent)]
    Traffic(#[from] crate::BadTraffic),
}

impl Scenario {
    /// How often requests of the baseline are bad, of a metric of which nothing is said.
    pub const USUAL_RATE: f64 = 0.01;

    /// A harmless candidate: 20 requests a second, each metric bad in 1 % of the requests (of pairs, lost in 40 %), no noise, and people who
    /// approve at once and never abort.
    pub fn new(plan: Plan) -> Self {
        Self {
            plan,
            traffic: Traffic::new(20.0),
            day: (0.0, 0.0),
            drift: 0.0,
            latency_spread: 0.6,
            noise: None,
            effects: BTreeMap::new(),
            labels: BTreeMap::new(),
            outages: Vec::new(),
            crashes: Vec::new(),
            restarts: Vec::new(),
            silent: None,
            measured: None,
            approval: Some(Duration::ZERO),
            abort: None,
            reaction: Duration::from_secs(1),
            horizon: Duration::from_secs(30 * 24 * 3600),
            seed: 1,
            threads: None,
        }
    }

    /// Requests of all users in a second, on average.
    #[must_use]
    pub const fn requests_per_second(mut self, rate: f64) -> Self {
        self.traffic.requests_per_second = rate;
        self
    }

    /// All that is known of the traffic; the effects that a plan must find in it are not applied: see [`Self::effect`].
    ///
    /// With a history, the tests learn the arms' noise from it before the ramp.
    #[must_use]
    pub fn traffic(mut self, traffic: Traffic) -> Self {
        self.traffic = traffic;
        self
    }

    /// How often the baseline's requests are bad by this metric (of pairs: how often an equal candidate loses, and wins).
    #[must_use]
    pub fn rate(mut self, metric: &str, rate: f64) -> Self {
        let known = self.traffic.metrics.get(metric).copied();
        let expected = known.unwrap_or(Expected::new(rate, 1.5));
        self.traffic
            .metrics
            .insert(metric.to_owned(), Expected { rate, ..expected });
        self
    }

    /// What the candidate does to a metric: more than one effect on a metric multiply.
    #[must_use]
    pub fn effect(mut self, metric: &str, effect: impl Into<Effect>) -> Self {
        self.effects
            .entry(metric.to_owned())
            .or_default()
            .push(effect.into());
        self
    }

    /// Traffic that rises and falls by this part of its average, 0 to 1, over 24 hours, with its peak at 14:00.
    #[must_use]
    pub const fn day_and_night(mut self, amplitude: f64) -> Self {
        self.day.0 = amplitude;
        self
    }

    /// The hour of the day at which the rollout begins: 0 where nothing is said.
    #[must_use]
    pub const fn begins_at(mut self, hour: f64) -> Self {
        self.day.1 = hour;
        self
    }

    /// Rates of both arms that rise and fall by this part of themselves, 0 to 1, over 24 hours.
    #[must_use]
    pub const fn drift(mut self, amplitude: f64) -> Self {
        self.drift = amplitude;
        self
    }

    /// Deviation of the logarithm of latencies, by which [`Scale`] is turned into how many are late: 0.6 where nothing is said.
    #[must_use]
    pub const fn latency_spread(mut self, spread: f64) -> Self {
        self.latency_spread = spread;
        self
    }

    /// Rates that fluctuate by replica: those of the candidate, and of each half of the baseline.
    #[must_use]
    pub const fn noise(mut self, noise: Noise) -> Self {
        self.noise = Some(noise);
        self
    }

    /// This share of the metric's labels never arrives, in both arms.
    #[must_use]
    pub fn missing_labels(mut self, metric: &str, share: f64) -> Self {
        self.labels.entry(metric.to_owned()).or_default().missing = share;
        self
    }

    /// The metric's labels arrive so long after their request. Those of an earlier share are dropped.
    #[must_use]
    pub fn delayed_labels(mut self, metric: &str, delay: Duration) -> Self {
        self.labels.entry(metric.to_owned()).or_default().delay = delay;
        self
    }

    /// The metric source cannot answer from `at` on for so long. What happens meanwhile is counted, and read afterwards.
    #[must_use]
    pub fn source_outage(mut self, at: Duration, lasting: Duration) -> Self {
        self.outages.push((at, lasting));
        self
    }

    /// The controller is gone from `at` on for so long: nobody looks and no lease is renewed.
    #[must_use]
    pub fn controller_crash(mut self, at: Duration, lasting: Duration) -> Self {
        self.crashes.push((at, lasting));
        self
    }

    /// The router restarts, and serves the baseline until the controller resumes the share.
    #[must_use]
    pub fn router_restart(mut self, at: Duration) -> Self {
        self.restarts.push(at);
        self
    }

    /// From `at` on the candidate answers nobody.
    #[must_use]
    pub const fn candidate_silent(mut self, at: Duration) -> Self {
        self.silent = Some(at);
        self
    }

    /// What the gates before deployment measure. Where nothing is said, they pass.
    #[must_use]
    pub fn pre_flight(mut self, measured: Measurements) -> Self {
        self.measured = Some(measured);
        self
    }

    /// How long a person takes to approve what waits for it; `None`: nobody approves. At once where nothing is said.
    #[must_use]
    pub const fn approval(mut self, after: Option<Duration>) -> Self {
        self.approval = after;
        self
    }

    /// How long a person takes to abort what is held for anything but an approval; `None`, as where nothing is said: nobody does.
    #[must_use]
    pub const fn abort_if_held(mut self, after: Option<Duration>) -> Self {
        self.abort = after;
        self
    }

    /// How long the routers take to carry out what has been decided: 1 s where nothing is said.
    #[must_use]
    pub const fn reaction(mut self, time: Duration) -> Self {
        self.reaction = time;
        self
    }

    /// Where a life is broken off that has not ended: 30 days where nothing is said.
    #[must_use]
    pub const fn horizon(mut self, time: Duration) -> Self {
        self.horizon = time;
        self
    }

    /// Another seed than 1: other lives.
    #[must_use]
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// On so many threads; on all cores where nothing is said. The lives are the same.
    #[must_use]
    pub const fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Runs so many lives.
    ///
    /// # Panics
    /// The scenario makes no sense ([`Self::try_lives`] says it as a value).
    #[track_caller]
    #[expect(clippy::panic, reason = "a test fails by panicking")]
    pub fn lives(&self, count: usize) -> Lives {
        match self.try_lives(count) {
            Ok(lives) => lives,
            Err(bad) => panic!("{bad}"),
        }
    }

    /// The same, as a value.
    ///
    /// # Errors
    /// [`BadScenario`]: an unknown metric, or a number outside its range.
    pub fn try_lives(&self, count: usize) -> Result<Lives, BadScenario> {
        let setting = Setting::new(self)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self
            .threads
            .unwrap_or(cores)
            .clamp(1, 256)
            .min(count.max(1));
        let mut lives = Vec::with_capacity(count);
        // Interleaved, so that every thread gets its part of each kind; put in order afterwards.
        std::thread::scope(|scope| {
            let part = |first: usize| {
                let setting = &setting;
                move || {
                    (first..count)
                        .step_by(threads)
                        .map(|i| (i, Driver::new(setting, i as u64, false).run().0))
                        .collect::<Vec<_>>()
                }
            };
            let others: Vec<_> = (1..threads).map(|t| scope.spawn(part(t))).collect();
            lives.extend(part(0)());
            for other in others {
                match other.join() {
                    Ok(found) => lives.extend(found),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
        lives.sort_by_key(|(i, _)| *i);
        let lives = lives.into_iter().map(|(_, life)| life).collect();
        Ok(Lives::new(self.clone(), lives))
    }

    /// One life once more, step by step: the one of this index (see [`Life::index`]).
    ///
    /// # Errors
    /// As [`Self::try_lives`].
    pub fn story(&self, index: u64) -> Result<Story, BadScenario> {
        let setting = Setting::new(self)?;
        let (life, incident) = Driver::new(&setting, index, true).run();
        Ok(Story::new(self.seed, life, incident))
    }

    fn check_metric(&self, name: &str) -> Result<&MetricDef, BadScenario> {
        let metrics = &self.plan.spec().metrics;
        metrics.get(name).ok_or_else(|| BadScenario::Metric {
            name: name.to_owned(),
            known: metrics.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }
}
