//! What an endpoint's traffic is like: the input of everything that looks ahead (the linter, forecasts, simulations).

use crate::time::Words;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// What an endpoint's traffic is like, and which harm must be found in it.
///
/// ```
/// use llm_rollout::{Expected, Traffic};
/// let traffic = Traffic::new(20.0)
///     .metric("faults", Expected::new(0.01, 2.0))
///     .metric("judged_worse", Expected::new(0.05, 1.5).sampled(0.1));
/// assert!(traffic.check().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "plain data, written by people")]
pub struct Traffic {
    /// Requests of all users in a second, on average; above 0.
    pub requests_per_second: f64,
    /// For how long the baseline has been measured before the ramp, so that its noise is known. Nothing: a cold start.
    #[serde(default, with = "Words")]
    pub history: Duration,
    /// As how many requests one counts, 1 or more, as users who come again resemble themselves ([`llm_gates::planner::design_effect`]).
    #[serde(default = "one")]
    pub design_effect: f64,
    /// What is known of each metric, by its name in the plan.
    #[serde(default)]
    pub metrics: BTreeMap<String, Expected>,
}

/// What is known of one metric.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "plain data, written by people")]
pub struct Expected {
    /// How often the baseline's requests are bad: a probability, in (0, 1). Of a metric of which the greater is better, how often they lack the event; of pairs, how often an equal candidate loses.
    pub rate: f64,
    /// The least harm that must be found, as a ratio above 1: at 1.5, a candidate that is bad one and a half times as often.
    pub effect: f64,
    /// Share of the requests (or of those mirrored) that the metric is known of, in (0, 1]: 0.1 where a judge reads each tenth answer.
    #[serde(default = "one")]
    pub sampled: f64,
}

const fn one() -> f64 {
    1.0
}

/// Why a description of traffic makes no sense.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{path} is {value}: it must {range}")]
#[non_exhaustive]
pub struct BadTraffic {
    /// Where: `metrics.faults.rate`.
    pub path: String,
    /// What it is.
    pub value: f64,
    /// What it must do.
    pub range: &'static str,
}

impl Traffic {
    /// Requests in a second, a cold start, no metric known.
    pub const fn new(requests_per_second: f64) -> Self {
        Self {
            requests_per_second,
            history: Duration::ZERO,
            design_effect: 1.0,
            metrics: BTreeMap::new(),
        }
    }

    /// With what is known of a metric.
    #[must_use]
    pub fn metric(mut self, name: impl Into<String>, expected: Expected) -> Self {
        self.metrics.insert(name.into(), expected);
        self
    }

    /// With so long a history of the baseline.
    #[must_use]
    pub const fn history(mut self, history: Duration) -> Self {
        self.history = history;
        self
    }

    /// Checks every number.
    ///
    /// # Errors
    /// [`BadTraffic`], the first number that makes no sense.
    pub fn check(&self) -> Result<(), BadTraffic> {
        let bad = |path: String, value, range| Err(BadTraffic { path, value, range });
        if !(self.requests_per_second > 0.0 && self.requests_per_second.is_finite()) {
            return bad(
                "requests_per_second".into(),
                self.requests_per_second,
                "be finite and above 0",
            );
        }
        if !(self.design_effect >= 1.0 && self.design_effect.is_finite()) {
            return bad(
                "design_effect".into(),
                self.design_effect,
                "be finite and at least 1",
            );
        }
        for (name, expected) in &self.metrics {
            let path = |field| format!("metrics.{name}.{field}");
            let Expected {
                rate,
                effect,
                sampled,
            } = *expected;
            if !(rate > 0.0 && rate < 1.0) {
                return bad(path("rate"), rate, "lie above 0 and below 1");
            }
            if !(effect > 1.0 && effect.is_finite()) {
                return bad(path("effect"), effect, "be finite and above 1");
            }
            if !(sampled > 0.0 && sampled <= 1.0) {
                return bad(path("sampled"), sampled, "lie above 0 and be at most 1");
            }
        }
        Ok(())
    }
}

impl Expected {
    /// A rate of the baseline and the ratio that must be found, known of every request.
    pub const fn new(rate: f64, effect: f64) -> Self {
        Self {
            rate,
            effect,
            sampled: 1.0,
        }
    }

    /// Known of this share of the requests only.
    #[must_use]
    pub const fn sampled(mut self, share: f64) -> Self {
        self.sampled = share;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_named() {
        let with = |expected| Traffic::new(1.0).metric("m", expected).check();
        for (traffic, path) in [
            (Traffic::new(0.0).check(), "requests_per_second"),
            (Traffic::new(f64::NAN).check(), "requests_per_second"),
            (with(Expected::new(0.0, 2.0)), "metrics.m.rate"),
            (with(Expected::new(0.1, 1.0)), "metrics.m.effect"),
            (
                with(Expected::new(0.1, 2.0).sampled(1.1)),
                "metrics.m.sampled",
            ),
        ] {
            assert_eq!(traffic.unwrap_err().path, path);
        }
        let long = Traffic::new(1.0).history(Duration::from_secs(3600));
        assert!(long.check().is_ok());
        let toml = toml::to_string(&long).unwrap();
        assert_eq!(toml::from_str::<Traffic>(&toml).unwrap(), long);
    }
}
