//! Flagger (2026-07): checks, and the progression of a canary tick by tick.

/// Whether a value lies between its bounds, which belong to the range. No number fails, and counts.
pub fn in_range(value: f64, min: Option<f64>, max: Option<f64>) -> bool {
    !value.is_nan() && min.is_none_or(|m| value >= m) && max.is_none_or(|m| value <= m)
}

/// The old form of a limit: a minimum for the success rate, a maximum for all else.
pub fn in_threshold(metric: &str, value: f64, threshold: f64) -> bool {
    if metric == "success-rate" || metric == "request-success-rate" {
        in_range(value, Some(threshold), None)
    } else {
        in_range(value, None, Some(threshold))
    }
}

/// Whether a webhook's answer passes; `None` where it did not answer in time.
pub const fn webhook(status: Option<u16>) -> bool {
    matches!(status, Some(200..=202))
}

/// Whether this tick looks at metrics at all: not while nobody is served.
pub fn looks(weight: f64, iterations: u32, mirrored: bool) -> bool {
    weight > 0.0 || iterations > 0 || mirrored
}

/// Where a canary is.
#[expect(
    clippy::exhaustive_enums,
    reason = "the peer's own list, less what only pods can be"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No new revision.
    Initialized,
    /// Analysing.
    Progressing,
    /// At its greatest weight, waiting for somebody.
    WaitingPromotion,
    /// The primary is being replaced.
    Promoting,
    /// The canary is being scaled down.
    Finalising,
    /// Promoted.
    Succeeded,
    /// Rolled back.
    Failed,
}

/// How the weight rises.
#[expect(clippy::exhaustive_enums, reason = "the peer's own list")]
#[derive(Debug, Clone, PartialEq)]
pub enum Weights {
    /// By a step until at least the maximum: the last step may overshoot it.
    Step {
        /// Percentage points.
        step: f64,
        /// Percent.
        max: f64,
    },
    /// As listed.
    List(Vec<f64>),
    /// All who match at once, then so many analyses.
    Iterations(u32),
}

/// A canary's analysis.
#[expect(clippy::exhaustive_structs, reason = "plain data")]
#[derive(Debug, Clone, PartialEq)]
pub struct Canary {
    /// How the weight rises.
    pub weights: Weights,
    /// So many failed checks roll back; 0 means 1.
    pub threshold: u32,
    /// Percentage points by which the weight returns while promoting; 0 at once.
    pub promotion_step: f64,
    /// Where it is.
    pub phase: Phase,
    /// Percent of traffic.
    pub weight: f64,
    /// Failed checks since the revision came.
    pub failed: u32,
    /// Analyses of a canary that has no weights.
    pub iterations: u32,
}

/// What happens besides checks in a tick.
#[expect(clippy::exhaustive_structs, reason = "plain data")]
#[expect(clippy::struct_excessive_bools, reason = "as the peer has them")]
#[derive(Debug, Clone, Copy, Default)]
pub struct Around {
    /// The analysis is suspended.
    pub suspended: bool,
    /// A rollback webhook asks to go back.
    pub rollback: bool,
    /// The gate before promotion is closed.
    pub gate_closed: bool,
    /// The primary has missed its deadline.
    pub primary_dead: bool,
}

impl Canary {
    /// Before its first revision.
    pub const fn new(weights: Weights, threshold: u32) -> Self {
        Self {
            weights,
            threshold,
            promotion_step: 0.0,
            phase: Phase::Initialized,
            weight: 0.0,
            failed: 0,
            iterations: 0,
        }
    }

    /// Least seconds of analysis until promotion.
    pub fn least_seconds(&self, interval: f64) -> f64 {
        match &self.weights {
            Weights::Step { step, max } => interval * max / step,
            Weights::List(list) => interval * list.len() as f64,
            Weights::Iterations(count) => interval * f64::from(*count),
        }
    }

    /// One interval; `checks` is asked only where metrics are looked at, and says whether all pass.
    pub fn tick(&mut self, around: Around, checks: impl FnOnce() -> bool) {
        if around.suspended {
            return;
        }
        let analysing = matches!(self.phase, Phase::Progressing | Phase::WaitingPromotion);
        match self.phase {
            Phase::Initialized => self.phase = Phase::Progressing,
            Phase::Progressing | Phase::WaitingPromotion
                if around.rollback || self.failed >= self.threshold.max(1) =>
            {
                (self.phase, self.weight) = (Phase::Failed, 0.0);
            }
            Phase::Progressing | Phase::WaitingPromotion => {
                debug_assert!(analysing);
                if looks(self.weight, self.iterations, false) && !checks() {
                    self.failed += 1;
                    return;
                }
                self.advance(around.gate_closed);
            }
            Phase::Promoting if around.primary_dead => {
                (self.phase, self.weight) = (Phase::Failed, 100.0);
            }
            Phase::Promoting => {
                let left = self.weight - self.promotion_step;
                if self.promotion_step > 0.0 && left > 0.0 {
                    self.weight = left;
                } else {
                    (self.phase, self.weight) = (Phase::Finalising, 0.0);
                }
            }
            Phase::Finalising => self.phase = Phase::Succeeded,
            Phase::Succeeded | Phase::Failed => {}
        }
    }

    fn advance(&mut self, gate_closed: bool) {
        let next = match &self.weights {
            Weights::Step { step, max } => {
                (self.weight < *max).then(|| (self.weight + step).min(100.0))
            }
            // A weight that is not in the list jumps to the end.
            Weights::List(list) => match list.iter().position(|w| (w - self.weight).abs() < 1e-9) {
                Some(at) => list.get(at + 1).copied(),
                None if self.weight <= 0.0 => list.first().copied(),
                None => Some(100.0),
            },
            Weights::Iterations(count) => (self.iterations < *count).then_some(100.0),
        };
        match next {
            Some(weight) => {
                self.weight = weight;
                if let Weights::Iterations(_) = self.weights {
                    self.iterations += 1;
                }
            }
            None if gate_closed => self.phase = Phase::WaitingPromotion,
            None => self.phase = Phase::Promoting,
        }
    }
}
