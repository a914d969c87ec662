//! Argo Rollouts (2026-08): measurements, limits, and what a run makes of its metrics.

/// What a measurement, a metric or a run has come to; the later, the worse among those that are complete.
#[expect(clippy::exhaustive_enums, reason = "the peer's own list")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Nothing measured yet.
    Pending,
    /// Goes on.
    Running,
    /// All is well.
    Successful,
    /// Neither well nor ill.
    Inconclusive,
    /// Could not be measured.
    Error,
    /// Ill.
    Failed,
}

/// What an expression came to; an error where it cannot be evaluated.
pub type Condition = Result<bool, Unevaluable>;

/// An expression that has no value.
#[expect(clippy::exhaustive_structs, reason = "a mark")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unevaluable;

/// One measurement: failure is looked at first, and a condition that is missing is the other's opposite. NaN makes every comparison false, so that with a failure condition alone it is a success.
pub fn measured(success: Option<Condition>, failure: Option<Condition>) -> Phase {
    let (success, failure) = match (success, failure) {
        (None, None) => (Ok(true), Ok(false)),
        (Some(s), None) => (s, s.map(|s| !s)),
        (None, Some(f)) => (f.map(|f| !f), f),
        (Some(s), Some(f)) => (s, f),
    };
    match (success, failure) {
        (Err(_), _) | (_, Err(_)) => Phase::Error,
        (_, Ok(true)) => Phase::Failed,
        (Ok(true), _) => Phase::Successful,
        (Ok(false), Ok(false)) => Phase::Inconclusive,
    }
}

/// Limits of a metric, with the peer's defaults.
#[expect(clippy::exhaustive_structs, reason = "plain data")]
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// More failed measurements than this fail the metric; `None` switches it off.
    pub failure: Option<u64>,
    /// More inconclusive ones than this make it inconclusive.
    pub inconclusive: u64,
    /// More errors in a row than this make it an error.
    pub consecutive_error: u64,
    /// So many successes in a row complete it.
    pub consecutive_success: Option<u64>,
    /// So many measurements complete it.
    pub count: Option<u64>,
    /// Whether it is measured again and again; without, and without a count, once.
    pub repeats: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            failure: Some(0),
            inconclusive: 0,
            consecutive_error: 4,
            consecutive_success: None,
            count: None,
            repeats: false,
        }
    }
}

/// What a metric has measured so far.
#[expect(clippy::exhaustive_structs, reason = "plain data")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    /// Measurements that were no errors.
    pub count: u64,
    /// Of them, failed.
    pub failed: u64,
    /// Of them, inconclusive.
    pub inconclusive: u64,
    /// Errors.
    pub error: u64,
    /// Errors since anything else.
    pub consecutive_error: u64,
    /// Successes since anything else.
    pub consecutive_success: u64,
}

impl Measured {
    /// Counts a completed measurement.
    pub const fn record(&mut self, phase: Phase) {
        if matches!(phase, Phase::Error) {
            self.error += 1;
            self.consecutive_error += 1;
            self.consecutive_success = 0;
            return;
        }
        self.count += 1;
        self.consecutive_error = 0;
        match phase {
            Phase::Successful => self.consecutive_success += 1,
            Phase::Failed => {
                self.failed += 1;
                self.consecutive_success = 0;
            }
            _ => {
                self.inconclusive += 1;
                self.consecutive_success = 0;
            }
        }
    }
}

/// What a metric has come to. `last` is its newest measurement: `None` before the first, [`Phase::Running`] in flight.
pub fn assess(
    limits: &Limits,
    measured: &Measured,
    last: Option<Phase>,
    terminating: bool,
) -> Phase {
    match last {
        None => return Phase::Pending,
        Some(Phase::Running) => return Phase::Running,
        Some(_) => {}
    }
    // A later check overrides an earlier one.
    if measured.consecutive_error > limits.consecutive_error {
        return Phase::Error;
    }
    if measured.inconclusive > limits.inconclusive {
        return Phase::Inconclusive;
    }
    if limits.failure.is_some_and(|limit| measured.failed > limit) {
        return Phase::Failed;
    }
    let row = |limit| measured.consecutive_success >= limit;
    if limits.consecutive_success.is_some_and(row) {
        return Phase::Successful;
    }
    let wanted = limits.count.or((!limits.repeats).then_some(1));
    if wanted.is_some_and(|count| measured.count >= count) {
        return match (limits.failure, limits.consecutive_success) {
            (Some(_), Some(_)) => Phase::Inconclusive,
            (None, Some(_)) => Phase::Failed,
            (_, None) => Phase::Successful,
        };
    }
    if terminating {
        Phase::Successful
    } else {
        Phase::Running
    }
}

/// What a run has come to: it goes on until every metric is complete, then is as its worst that is no dry run.
pub fn run(metrics: &[(Phase, bool)]) -> Phase {
    if metrics.iter().any(|(phase, _)| *phase <= Phase::Running) {
        return Phase::Running;
    }
    let real = metrics.iter().filter(|(_, dry)| !dry);
    real.map(|(phase, _)| *phase)
        .max()
        .unwrap_or(Phase::Successful)
}

/// The metric that a run's message names: the first that is as bad as the run.
pub fn named(metrics: &[(Phase, bool)]) -> Option<usize> {
    let worst = run(metrics);
    metrics
        .iter()
        .position(|(phase, dry)| !dry && *phase == worst)
}

/// Which metrics run dry; `None`, an error of the configuration, where a rule fits none.
pub fn dry<'a>(metrics: &[&'a str], fits: impl Fn(&'a str) -> bool) -> Option<Vec<bool>> {
    let dry: Vec<bool> = metrics.iter().map(|name| fits(name)).collect();
    dry.contains(&true).then_some(dry)
}
