//! Bounded scores: judges, rewards, graded answers (Waudby-Smith and Ramdas 2024).

use serde::{Deserialize, Serialize};

use super::{EProcess, Logs};
use crate::fixed::{BadSample, open_unit, parameter};

/// Sums over the scores of one arm in a block; scores lie in [0, 1].
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Scores {
    /// How many.
    pub n: u64,
    /// Their sum.
    pub sum: f64,
    /// The sum of their squares.
    pub square: f64,
}

impl Scores {
    /// Sums over values.
    pub fn of(values: &[f64]) -> Self {
        Self {
            n: values.len() as u64,
            sum: values.iter().sum(),
            square: values.iter().map(|v| v * v).sum(),
        }
    }

    /// A block with users as units: the scores are the users' means, so that a heavy user counts no more than others. Give each arm's users of one window, those who are new in it where the same users return
    /// for days: what sets returning users apart lasts, and no test within windows can tell it from harm.
    ///
    /// # Errors
    /// [`BadSample`] for sums that scores in [0, 1] cannot have; users without scores are left out.
    pub fn of_users(users: impl IntoIterator<Item = Self>) -> Result<Self, BadSample> {
        let mut block = Self::default();
        for user in users {
            user.check()?;
            if user.n > 0 {
                let mean = (user.sum / user.n as f64).min(1.0);
                block.n = block.n.saturating_add(1);
                block.sum += mean;
                block.square += mean * mean;
            }
        }
        Ok(block)
    }

    /// Checks that scores in [0, 1] can have these sums.
    ///
    /// # Errors
    /// [`BadSample`] where they cannot.
    pub fn check(self) -> Result<(), BadSample> {
        let n = self.n as f64 * (1.0 + 1e-9) + 1e-9;
        parameter(
            self.sum >= 0.0 && self.sum <= n,
            "sum",
            self.sum,
            "lie between 0 and the number of scores",
        )?;
        parameter(
            self.square >= 0.0 && self.square <= self.sum * (1.0 + 1e-9) + 1e-9,
            "square",
            self.square,
            "lie between 0 and the sum",
        )?;
        Ok(())
    }
}

/// Differences that [`BoundedMeans`] bets on.
const DELTA: [f64; 6] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2];

/// Evidence that the candidate's mean exceeds the baseline's by more than a margin, block by block: `ln(1 + lambda D)`, D = the difference of the block means less the margin. Needs only that
/// the expected difference given the past is within the margin: requests of one block may depend on each other in any way.
///
/// For scores that are mostly tiny (toxicity around .01) the bets are too small: count those above a threshold instead ([`crate::RateRatio`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BoundedMeans {
    margin: f64,
    logs: Logs,
    /// All past scores of both arms, for the variance that sizes the next bet.
    past: Scores,
}

impl BoundedMeans {
    /// Against "the candidate's mean exceeds the baseline's by at most `margin`", in (-1, 1); a negative margin asks for evidence that it is not lower by that much. Greater must mean worse: give 1 - x for scores of quality.
    ///
    /// # Errors
    /// [`BadSample`] for a margin outside (-1, 1).
    pub fn new(margin: f64) -> Result<Self, BadSample> {
        parameter(
            margin.abs() < 1.0,
            "margin",
            margin,
            "lie above -1 and below 1",
        )?;
        Ok(Self {
            margin,
            logs: Logs::uniform(DELTA.len()),
            past: Scores::default(),
        })
    }

    /// Adds a block; one with an empty arm adds nothing.
    ///
    /// # Errors
    /// [`BadSample`] for sums that scores in [0, 1] cannot have; nothing changes then.
    pub fn observe(&mut self, candidate: Scores, baseline: Scores) -> Result<(), BadSample> {
        candidate.check()?;
        baseline.check()?;
        if candidate.n == 0 || baseline.n == 0 {
            return Ok(());
        }
        let (n_c, n_b) = (candidate.n as f64, baseline.n as f64);
        let d = (candidate.sum / n_c - baseline.sum / n_b - self.margin)
            .clamp(-1.0 - self.margin, 1.0 - self.margin);
        // One fake score of variance 1/4 keeps the first bets small.
        let n = self.past.n as f64;
        let spread = if n > 0.0 {
            (self.past.square - self.past.sum * self.past.sum / n).max(0.0)
        } else {
            0.0
        };
        let variance = (spread + 0.25) / (n + 1.0) * (1.0 / n_c + 1.0 / n_b);
        let cap = 0.5 / (1.0 + self.margin.abs());
        self.logs.add(
            DELTA
                .iter()
                .map(|delta| libm::log1p((delta / (variance + delta * delta)).min(cap) * d)),
        );
        self.past.n = self
            .past
            .n
            .saturating_add(candidate.n)
            .saturating_add(baseline.n);
        self.past.sum += candidate.sum + baseline.sum;
        self.past.square += candidate.square + baseline.square;
        Ok(())
    }
}

impl EProcess for BoundedMeans {
    fn log_e(&self) -> f64 {
        self.logs.log_e()
    }
}

/// The predictable plug-in bets of Waudby-Smith and Ramdas: `sqrt(2 ln(1 / alpha) / (s2 t ln(1 + t)))`, s2 from the past with one fake observation of mean 1/2
/// and variance 1/4.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Bets {
    t: u64,
    sum: f64,
    /// Sum of squared differences from the running means.
    square: f64,
}

impl Bets {
    /// The bet on the next value, before truncation.
    fn next(&self, ln_1_alpha: f64) -> f64 {
        let t = self.t as f64 + 1.0;
        let variance = (0.25 + self.square) / t;
        libm::sqrt(2.0 * ln_1_alpha / (variance * t * libm::log1p(t)))
    }

    fn mean_before(&self) -> f64 {
        (0.5 + self.sum) / (self.t as f64 + 1.0)
    }

    fn add(&mut self, x: f64) {
        self.t = self.t.saturating_add(1);
        self.sum += x;
        let d = x - self.mean_before();
        self.square += d * d;
    }
}

/// Evidence, value by value, that a mean in [0, 1] exceeds a limit: one arm against a fixed objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BettingMean {
    limit: f64,
    ln_1_alpha: f64,
    bets: Bets,
    log: f64,
}

impl BettingMean {
    /// Against "the mean is at most `limit`", in (0, 1), betting so as to be quick at level alpha.
    ///
    /// # Errors
    /// [`BadSample`] for a limit or alpha outside (0, 1).
    pub fn new(limit: f64, alpha: f64) -> Result<Self, BadSample> {
        open_unit("limit", limit)?;
        open_unit("alpha", alpha)?;
        Ok(Self {
            limit,
            ln_1_alpha: -libm::log(alpha),
            bets: Bets::default(),
            log: 0.0,
        })
    }

    /// Adds a value in [0, 1].
    ///
    /// # Errors
    /// [`BadSample`] for a value outside [0, 1]; nothing changes then.
    pub fn observe(&mut self, x: f64) -> Result<(), BadSample> {
        parameter((0.0..=1.0).contains(&x), "x", x, "lie between 0 and 1")?;
        let lambda = self.bets.next(self.ln_1_alpha).min(0.5 / self.limit);
        self.log += libm::log1p(lambda * (x - self.limit));
        self.bets.add(x);
        Ok(())
    }
}

impl EProcess for BettingMean {
    fn log_e(&self) -> f64 {
        self.log
    }
}

/// A confidence sequence for the mean of values in [0, 1], for display: the empirical Bernstein sequence with predictable bets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmpiricalBernstein {
    alpha: f64,
    bets: Bets,
    lambda: f64,
    weighted: f64,
    /// Penalties of the lower and the upper end, which guess the first value as 0 and as 1.
    penalty: (f64, f64),
}

impl EmpiricalBernstein {
    /// A sequence that contains the mean at all times with probability 1 - alpha.
    ///
    /// # Errors
    /// [`BadSample`] for alpha outside (0, 1).
    pub fn new(alpha: f64) -> Result<Self, BadSample> {
        open_unit("alpha", alpha)?;
        Ok(Self {
            alpha,
            bets: Bets::default(),
            lambda: 0.0,
            weighted: 0.0,
            penalty: (0.0, 0.0),
        })
    }

    /// Adds a value in [0, 1].
    ///
    /// # Errors
    /// [`BadSample`] for a value outside [0, 1]; nothing changes then.
    pub fn observe(&mut self, x: f64) -> Result<(), BadSample> {
        parameter((0.0..=1.0).contains(&x), "x", x, "lie between 0 and 1")?;
        let lambda = self.bets.next(libm::log(2.0 / self.alpha)).min(0.5);
        let guess = |first: f64| {
            if self.bets.t == 0 {
                first
            } else {
                self.bets.sum / self.bets.t as f64
            }
        };
        let (below, above) = (x - guess(0.0), x - guess(1.0));
        let psi = -libm::log1p(-lambda) - lambda;
        self.lambda += lambda;
        self.weighted += lambda * x;
        self.penalty.0 += below * below * psi;
        self.penalty.1 += above * above * psi;
        self.bets.add(x);
        Ok(())
    }

    /// The interval at this look; [0, 1] at the start.
    pub fn interval(&self) -> (f64, f64) {
        if self.lambda <= 0.0 {
            return (0.0, 1.0);
        }
        let centre = self.weighted / self.lambda;
        let half = |penalty: f64| (libm::log(2.0 / self.alpha) + penalty) / self.lambda;
        (
            (centre - half(self.penalty.0)).max(0.0),
            (centre + half(self.penalty.1)).min(1.0),
        )
    }
}
