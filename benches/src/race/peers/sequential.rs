//! Rules on two rates: a z-test at every look, mSPRT, and `TensorZero`'s stopping rule.

use llm_gates::Counts;

/// Pooled z statistic of the candidate's rate against the baseline's; `None` without events or requests.
pub fn z(candidate: Counts, baseline: Counts) -> Option<f64> {
    let (n_c, n_b) = (candidate.n as f64, baseline.n as f64);
    let p = (candidate.k as f64 + baseline.k as f64) / (n_c + n_b);
    let variance = p * (1.0 - p) * (1.0 / n_c + 1.0 / n_b);
    (n_c > 0.0 && n_b > 0.0 && variance > 0.0)
        .then(|| (candidate.k as f64 / n_c - baseline.k as f64 / n_b) / variance.sqrt())
}

/// ln of the mixture likelihood ratio of a difference of rates, normal with standard deviation `tau` around 0 (Johari, Koomen, Pekelis and Walsh 2017); two-sided.
pub fn msprt(candidate: Counts, baseline: Counts, tau: f64) -> Option<f64> {
    let (n_c, n_b) = (candidate.n as f64, baseline.n as f64);
    let p = (candidate.k as f64 + baseline.k as f64) / (n_c + n_b);
    let v = p * (1.0 - p) * (1.0 / n_c + 1.0 / n_b);
    (n_c > 0.0 && n_b > 0.0 && v > 0.0).then(|| {
        let d = candidate.k as f64 / n_c - baseline.k as f64 / n_b;
        let t = tau * tau;
        0.5 * (v / (v + t)).ln() + d * d * t / (2.0 * v * (v + t))
    })
}

/// What a variant's rewards are.
#[expect(clippy::exhaustive_structs, reason = "plain data")]
#[derive(Debug, Clone, Copy)]
pub struct Arm {
    /// How many.
    pub pulls: u64,
    /// Their mean.
    pub mean: f64,
    /// Their variance.
    pub variance: f64,
}

/// How `TensorZero` stops; the defaults are its own.
#[expect(clippy::exhaustive_structs, reason = "plain data")]
#[derive(Debug, Clone, Copy)]
pub struct Stopping {
    /// Rewards of each variant before it may stop.
    pub min_pulls: u64,
    /// Least variance.
    pub ridge: f64,
    /// How much worse than the best the winner may be.
    pub epsilon: f64,
    /// Stated error.
    pub delta: f64,
}

impl Default for Stopping {
    fn default() -> Self {
        Self {
            min_pulls: 10,
            ridge: 1e-12,
            epsilon: 0.0,
            delta: 0.05,
        }
    }
}

impl Stopping {
    /// The winner, once the least generalised likelihood ratio of the leader against another exceeds ln((1 + ln t) / delta) after t rewards in all.
    pub fn winner(&self, arms: &[Arm]) -> Option<usize> {
        if arms.len() < 2 || arms.iter().any(|a| a.pulls < self.min_pulls) {
            return None;
        }
        let variance = |a: &Arm| a.variance.max(self.ridge);
        let spread = |a: &Arm| variance(a) / a.pulls.max(1) as f64;
        let best = arms
            .iter()
            .map(|a| a.mean)
            .fold(f64::NEG_INFINITY, f64::max);
        let (leader, arm) = arms
            .iter()
            .enumerate()
            .filter(|(_, a)| (a.mean - best).abs() < 1e-10)
            .min_by(|a, b| spread(a.1).total_cmp(&spread(b.1)))?;
        let ratio = |other: &Arm| {
            let gap = arm.mean - other.mean + self.epsilon;
            if gap <= 0.0 || other.pulls == 0 {
                return 0.0;
            }
            gap * gap / (2.0 * (spread(arm) + spread(other)))
        };
        let others = arms.iter().enumerate().filter(|(i, _)| *i != leader);
        let least = others.map(|(_, a)| ratio(a)).fold(f64::INFINITY, f64::min);
        let total = arms.iter().map(|a| a.pulls).sum::<u64>() as f64;
        (least > ((1.0 + total.ln()) / self.delta).ln()).then_some(leader)
    }
}

/// An alarm on m of the last n data points, as `SageMaker`'s guardrails watch while they bake.
#[derive(Debug, Clone)]
pub struct Alarm {
    breaches: std::collections::VecDeque<bool>,
    m: usize,
    n: usize,
}

impl Alarm {
    /// On `m` of the last `n`.
    pub fn new(m: usize, n: usize) -> Self {
        Self {
            breaches: std::collections::VecDeque::with_capacity(n + 1),
            m,
            n,
        }
    }

    /// Adds a data point, `None` where there was none, and says whether the alarm is on.
    pub fn look(&mut self, breach: Option<bool>) -> bool {
        if let Some(breach) = breach {
            self.breaches.push_back(breach);
            if self.breaches.len() > self.n {
                self.breaches.pop_front();
            }
        }
        self.breaches.iter().filter(|b| **b).count() >= self.m
    }
}
