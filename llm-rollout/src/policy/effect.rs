//! What may be wrong with a candidate, and with its replicas.

use std::time::Duration;

/// What the candidate does to a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "written by people")]
pub enum Change {
    /// What is measured is this many times as great: latencies take so many times as long (the share that is late follows from
    /// [`super::Scenario::latency_spread`]), everything else is bad so many times as often.
    Scale(f64),
    /// Requests are bad this many times as often, whatever is measured.
    Ratio(f64),
    /// Requests are bad with this probability.
    Rate(f64),
}

impl Change {
    /// Only so long after the rollout began.
    #[must_use]
    pub fn after(self, time: Duration) -> Effect {
        Effect::from(self).after(time)
    }

    /// Only while the candidate serves (or is mirrored) at least so many per cent.
    #[must_use]
    pub fn from_share(self, percent: f64) -> Effect {
        Effect::from(self).from_share(percent)
    }
}

/// A change, and when it begins.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Effect {
    /// What changes.
    pub change: Change,
    /// Not before this time since the rollout began.
    pub after: Duration,
    /// Not below this share, in per cent.
    pub from_share: f64,
}

impl From<Change> for Effect {
    fn from(change: Change) -> Self {
        Self {
            change,
            after: Duration::ZERO,
            from_share: 0.0,
        }
    }
}

impl Effect {
    /// Only so long after the rollout began.
    #[must_use]
    pub const fn after(mut self, time: Duration) -> Self {
        self.after = time;
        self
    }

    /// Only while the candidate serves (or is mirrored) at least so many per cent.
    #[must_use]
    pub const fn from_share(mut self, percent: f64) -> Self {
        self.from_share = percent;
        self
    }
}

/// Rates that fluctuate by replica: log-normal, of mean 1, with correlation from block to block.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "written by people")]
pub struct Noise {
    /// Coefficient of variation, 0 to 10.
    pub cv: f64,
    /// Correlation of neighbouring blocks of 5 minutes, 0 to below 1.
    pub correlation: f64,
}

impl Noise {
    /// Without correlation.
    pub const fn new(cv: f64) -> Self {
        Self {
            cv,
            correlation: 0.0,
        }
    }

    /// With this correlation from block to block.
    #[must_use]
    pub const fn correlation(mut self, correlation: f64) -> Self {
        self.correlation = correlation;
        self
    }
}
