//! Before a rollout: what a plan can and cannot catch, how soon, at what price in requests, and what it costs.
//!
//! A [`Planner`] holds a plan and its traffic. [`Planner::forecast`] says for a harm that one makes up, stage by stage, how probably it is
//! found, and how many requests are exposed and harmed until then; [`Planner::least_found`] says which harm is found at all;
//! [`design`] turns requirements into a plan; [`Fleet`] says which shares the candidate's replicas can carry, and what the rollout costs.
//!
//! The numbers come from the distribution of the very evidence that the gates gather
//! ([`llm_gates::planner::Passage`]), not from a formula for another test. They are held against simulated lives of random plans.
//!
//! # The classic exercise
//!
//! *A 70 B model on four GPUs a replica; which latency regression is detectable with 95 % confidence after 10,000 requests?* Latency is gated by how many
//! requests exceed the baseline's 99th percentile, so that the question is which increase of that 1 % is found with probability 0.95
//! among 10,000 requests of the candidate, where a harmless one is sent back with probability 0.05 at the most:
//!
//! ```
//! use llm_rollout::forecast::{Fleet, Planner};
//! use llm_rollout::{Expected, Plan, Traffic};
//! let plan = Plan::from_toml(r#"
//!     alpha = 0.05
//!     [metrics]
//!     slow = { first_token_over = "2s" }       # the baseline's 99th percentile
//!     [[gates]]
//!     metric = "slow"
//!     weight = 1.0
//!     [[stages]]
//!     serve = 5.0
//!     dwell = "2h 47m"                         # 10,000 requests of the candidate
//!     min_samples = 9_500
//! "#)?;
//! let traffic = Traffic::new(20.0).metric("slow", Expected::new(0.01, 1.5));
//! let planner = Planner::new(plan, traffic)?;
//!
//! // One and a half times as many slow replies are found just so ...
//! let least = planner.least_found("slow", 0, 0.95).unwrap();
//! assert!((1.45..1.55).contains(&least), "{least}");
//! // ... which is a latency 11 % up in all of its distribution (log-normal, with a deviation of 0.6) ...
//! let scale = planner.as_scale("slow", least, 0.6)?;
//! assert!((1.08..1.12).contains(&scale), "{scale}");
//! // ... and one that is 30 % up is gone after some 430 requests, of which 8 are slower than they would have been.
//! let forecast = planner.forecast(&[("slow", planner.as_ratio("slow", 1.3, 0.6)?)])?;
//! assert!(forecast.detected > 0.999 && forecast.exposed < 500.0 && forecast.harmed < 10.0, "{forecast:?}");
//!
//! // A replica carries 3 requests a second and there are GPUs for one: 15 % of the traffic at the most, less at the peak.
//! let fleet = Fleet { gpus: 4.0, requests_per_second: 3.0, replicas: 1, ..Fleet::default() };
//! assert_eq!(fleet.largest_share(20.0).percent(), 15.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cost;
mod stages;
#[cfg(test)]
mod tests;

pub use cost::{Caps, Cost, Fleet, StageCost};

use crate::presets::{Gates, Pace};
use crate::{BadTraffic, Plan, PlanError, Share, Traffic, presets};
use llm_gates::LiveGate;
use llm_gates::planner::Passage;
use llm_gates::special::normal;
use std::time::Duration;

/// How often the baseline's requests are bad, of a metric of which nothing is said.
pub const USUAL_RATE: f64 = 0.01;

/// A plan, and the traffic that it will run in.
#[derive(Debug, Clone)]
pub struct Planner {
    plan: Plan,
    traffic: Traffic,
    reaction: Duration,
}

/// What happens to a candidate of one kind, on average over all that might be.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Forecast {
    /// Each stage, in order.
    pub stages: Vec<StageForecast>,
    /// Probability that evidence of harm sends it back; of a harmless candidate, that of a false alarm.
    pub detected: f64,
    /// Probability that a stage reaches its limit undecided.
    pub undecided: f64,
    /// Probability that every stage passes.
    pub passed: f64,
    /// Expected requests that it answers before it goes back or is promoted.
    pub exposed: f64,
    /// Expected events among them that would not have happened on the baseline.
    pub harmed: f64,
    /// Time from the first share until half of those that are found have been found.
    pub median_time: Option<Duration>,
    /// The same for 19 of 20 of those that are found.
    pub longest_time: Option<Duration>,
    /// What is left out of it, in words: nothing where the plan judges rates alone.
    pub notes: Vec<String>,
}

/// What happens in one stage, over all candidates, those that never reach it included.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct StageForecast {
    /// The candidate's share.
    pub share: Share,
    /// How long it lasts where nothing is found.
    pub lasts: Duration,
    /// Probability that it is reached.
    pub reached: f64,
    /// Probability that evidence of harm sends the candidate back in it.
    pub detected: f64,
    /// Probability that it reaches its limit undecided.
    pub undecided: f64,
    /// Expected requests that the candidate answers in it.
    pub exposed: f64,
    /// Expected events among them that would not have happened on the baseline.
    pub harmed: f64,
}

/// What cannot be planned.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BadForecast {
    /// The traffic makes no sense.
    #[error(transparent)]
    Traffic(#[from] BadTraffic),
    /// The designed plan makes no sense.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The plan has no gate on the metric.
    #[error("no gate looks at {name:?}; the gates look at: {known}")]
    Metric {
        /// The metric.
        name: String,
        /// The metrics that have gates.
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
}

fn number(
    what: impl Into<String>,
    value: f64,
    holds: bool,
    range: &'static str,
) -> Result<(), BadForecast> {
    if holds {
        return Ok(());
    }
    let what = what.into();
    Err(BadForecast::Number { what, value, range })
}

impl Planner {
    /// Routers that carry out a decision within a second; see [`Self::reaction`].
    ///
    /// # Errors
    /// The traffic makes no sense.
    pub fn new(plan: Plan, traffic: Traffic) -> Result<Self, BadForecast> {
        traffic.check()?;
        Ok(Self {
            plan,
            traffic,
            reaction: Duration::from_secs(1),
        })
    }

    /// How long it takes from a decision until every router has carried it out: the candidate is exposed for so much longer.
    #[must_use]
    pub const fn reaction(mut self, time: Duration) -> Self {
        self.reaction = time;
        self
    }

    /// The plan.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The traffic.
    pub const fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// What happens to a candidate that is bad so many times as often as the baseline by these metrics, and harmless by the others.
    ///
    /// # Errors
    /// No gate looks at a metric, or a ratio is not finite and above 0.
    pub fn forecast(&self, harm: &[(&str, f64)]) -> Result<Forecast, BadForecast> {
        for (metric, ratio) in harm {
            self.gate(metric)?;
            let holds = *ratio > 0.0 && ratio.is_finite();
            number(
                format!("the harm in {metric:?}"),
                *ratio,
                holds,
                "be finite and above 0",
            )?;
        }
        stages::forecast(self, harm, |_| true)
    }

    /// The probability that the gate on this metric alone has found a candidate that is bad so many times as often, by the end of each stage.
    ///
    /// # Errors
    /// As [`Self::forecast`].
    pub fn found_by(&self, metric: &str, ratio: f64) -> Result<Vec<f64>, BadForecast> {
        self.gate(metric)?;
        let holds = ratio > 0.0 && ratio.is_finite();
        number(
            format!("the harm in {metric:?}"),
            ratio,
            holds,
            "be finite and above 0",
        )?;
        let forecast = stages::forecast(self, &[(metric, ratio)], |gate| gate == metric)?;
        let mut sum = 0.0;
        let add = |stage: &StageForecast| {
            sum += stage.detected;
            sum
        };
        Ok(forecast.stages.iter().map(add).collect())
    }

    /// The least ratio that the metric's gate finds with this probability until the end of a stage (from 0), the stages before it included; `None` where not even
    /// a candidate that is bad 100 times as often (or always) is.
    pub fn least_found(&self, metric: &str, stage: usize, power: f64) -> Option<f64> {
        let rate = self.rate(metric);
        let most = (0.999 / rate).min(100.0);
        let found = |ratio: f64| {
            let by = self.found_by(metric, ratio).ok()?;
            Some(*by.get(stage)? >= power)
        };
        if !found(most)? {
            return None;
        }
        let (mut low, mut high) = (1.0, most);
        while high / low > 1.01 {
            let middle = (low * high).sqrt();
            if found(middle)? {
                high = middle;
            } else {
                low = middle;
            }
        }
        Some(high)
    }

    /// How many times as many requests are late where latencies are `scale` times as long, log-normal with this deviation of the logarithm.
    ///
    /// # Errors
    /// No gate looks at the metric, or a number is not above 0.
    pub fn as_ratio(&self, metric: &str, scale: f64, spread: f64) -> Result<f64, BadForecast> {
        self.gate(metric)?;
        let positive = |x: f64| x > 0.0 && x.is_finite();
        number("the scale", scale, positive(scale), "be finite and above 0")?;
        number(
            "the spread",
            spread,
            positive(spread),
            "be finite and above 0",
        )?;
        let rate = self.rate(metric);
        Ok(normal::sf(normal::upper_quantile(rate) - scale.ln() / spread) / rate)
    }

    /// The other way round: how many times as long latencies are where so many times as many requests are late.
    ///
    /// # Errors
    /// No gate looks at the metric, a number is not above 0, or more than all requests would be late.
    pub fn as_scale(&self, metric: &str, ratio: f64, spread: f64) -> Result<f64, BadForecast> {
        self.gate(metric)?;
        let rate = self.rate(metric);
        let holds = ratio > 0.0 && ratio * rate < 1.0;
        number(
            "the ratio",
            ratio,
            holds,
            "be above 0, and leave some requests in time",
        )?;
        let positive = spread > 0.0 && spread.is_finite();
        number("the spread", spread, positive, "be finite and above 0")?;
        let z = normal::upper_quantile(rate) - normal::upper_quantile(ratio * rate);
        Ok((z * spread).exp())
    }

    fn gate(&self, metric: &str) -> Result<&LiveGate, BadForecast> {
        let gates = &self.plan.spec().gates;
        let found = gates.iter().find(|g| g.metric == metric);
        found.ok_or_else(|| BadForecast::Metric {
            name: metric.to_owned(),
            known: gates
                .iter()
                .map(|g| g.metric.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    /// How often the baseline's requests are bad.
    fn rate(&self, metric: &str) -> f64 {
        self.traffic
            .metrics
            .get(metric)
            .map_or(USUAL_RATE, |e| e.rate)
    }

    /// Share of the requests that the metric is known of, each counting as much as it does where users resemble themselves.
    fn known(&self, metric: &str) -> f64 {
        let sampled = self.traffic.metrics.get(metric).map_or(1.0, |e| e.sampled);
        sampled / self.traffic.design_effect
    }
}

/// Candidate requests until a harm is found with this probability (`power`) at this share of the traffic, and how many on average until it is found, where some fifty looks
/// are taken until then. `None` where even a hundred times as many do not do, or a number makes no sense.
///
/// ```
/// use llm_rollout::forecast::requests_needed;
/// // Twice 1 %, 5 % of the traffic, alpha 0.05: with 95 % after some 2,500 requests, on average after 1,050.
/// let (with_power, on_average) = requests_needed(0.01, 2.0, 0.0, 0.05, 0.05, 0.95).unwrap();
/// assert!((2_400.0..2_600.0).contains(&with_power) && (1_000.0..1_100.0).contains(&on_average));
/// ```
pub fn requests_needed(
    rate: f64,
    ratio: f64,
    margin: f64,
    share: f64,
    alpha: f64,
    power: f64,
) -> Option<(f64, f64)> {
    let harm = ratio / (1.0 + margin);
    let part = share > 0.0 && share < 1.0;
    if !(part && power > 0.0 && power < 1.0 && harm > 1.0) {
        return None;
    }
    let detection = llm_gates::planner::Detection::new(rate, harm, share, alpha, 1.5).ok()?;
    let look = (detection.expected_requests() / 50.0).max(1.0);
    let mut passage = Passage::new(rate, ratio, margin, alpha).ok()?;
    let (mut needed, mut sum, mut mean) = (None, 0.0, 0.0);
    for i in 1..=5_000_u32 {
        let found = passage.look(look, look * (1.0 - share) / share);
        let n = look * f64::from(i);
        sum += found;
        mean += n * found;
        if sum >= power {
            needed.get_or_insert(n);
        }
        if needed.is_some() && passage.alive() < 1e-4 {
            break;
        }
    }
    needed.map(|n| (n, mean / sum))
}

/// What a plan must achieve.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "plain data, written by people")]
pub struct Demand {
    /// Each stage finds the least harm of every gate (the traffic's `effect`) by itself with this probability; in (0, 1).
    pub power: f64,
    /// No stage lasts longer than this, whatever it can then see.
    pub longest: Duration,
    /// What the candidate runs on; without it, every share is possible.
    pub fleet: Option<Fleet>,
}

/// A canary whose stages last as long as each needs to find, by itself, the least harm of every gate that the traffic describes. Shares that the candidate's
/// replicas cannot carry are left out; at 100 % a stage lasts as long as `longest`, as there is no baseline beside it.
///
/// # Errors
/// The traffic or the gates make no sense, the power is no probability, or no share can be carried.
pub fn design(
    gates: Gates,
    shares: impl IntoIterator<Item = Share>,
    traffic: &Traffic,
    demand: Demand,
) -> Result<Plan, BadForecast> {
    traffic.check()?;
    let holds = demand.power > 0.0 && demand.power < 1.0;
    number("the power", demand.power, holds, "lie between 0 and 1")?;
    let rps = traffic.requests_per_second;
    let most = demand
        .fleet
        .map_or(Share::ALL, |fleet| fleet.largest_share(rps));
    let shares: Vec<Share> = shares.into_iter().filter(|share| *share <= most).collect();
    if shares.is_empty() {
        return Err(BadForecast::Number {
            what: "the largest share that the replicas can carry, in per cent,".to_owned(),
            value: most.percent(),
            range: "be at least the first share",
        });
    }
    let longest = demand.longest;
    let plan = presets::canary(gates, shares, Pace::new(longest, 0))?;
    let mut spec = plan.spec().clone();
    for stage in &mut spec.stages {
        let part = stage.serve.0.percent() / 100.0;
        let mut slowest = if part < 1.0 {
            60.0_f64
        } else {
            longest.as_secs_f64()
        };
        let mut samples = 0.0_f64;
        for gate in spec.gates.iter().filter(|g| g.shares_budget()) {
            let Some(expected) = traffic.metrics.get(&gate.metric) else {
                continue;
            };
            let alpha = spec.alpha * gate.weight;
            let (rate, ratio) = (expected.rate, expected.effect);
            let needed = requests_needed(rate, ratio, gate.margin, part, alpha, demand.power);
            let seconds = needed.map_or(f64::INFINITY, |(n, _)| {
                samples = samples.max(n);
                n * traffic.design_effect / (rps * part * expected.sampled)
            });
            slowest = slowest.max(seconds);
        }
        let seconds = slowest.min(longest.as_secs_f64()).ceil();
        let known = |g: &LiveGate| traffic.metrics.get(&g.metric).map_or(1.0, |e| e.sampled);
        let least = spec.gates.iter().map(known).fold(1.0, f64::min);
        stage.dwell = Duration::try_from_secs_f64(seconds).unwrap_or(longest);
        if part < 1.0 {
            // A tenth less than what is expected in that time, so that chance does not prolong it.
            let fits = rps * part * least * seconds;
            stage.min_samples = floor(0.9 * samples.min(fits));
        }
    }
    Ok(spec.try_into()?)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "not negative, and casts saturate"
)]
const fn floor(x: f64) -> u64 {
    x as u64
}
