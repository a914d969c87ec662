//! `RateRatio`: an exact e-process for "the candidate's rate is at most theta0 times the baseline's".
//!
//! Increment for a batch with `k_c` of `n_c` events in the candidate and `k_b` of `n_b` in the baseline, pi = n_c / (n_c + n_b), g(x) = 1 + pi (x - 1):
//! `k_c ln theta - (k_c + k_b) ln(g(theta0 theta) / g(theta0))`, averaged over a grid of theta > 1. Given the exposures, its
//! exponential has mean at most 1 under the hypothesis for every pair of rates that may change with time (1 + x <= e^x for each Bernoulli), so by Ville's inequality
//! (Ville 1939) P(E ever reaches 1 / alpha) <= alpha at any number of looks. It needs requests that are independent given the
//! rates of their batch; persistent differences between sticky users belong into theta0, noise of replicas into an over-dispersed test.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Counts;
use crate::numbers::{log_add, log_sum_exp};

/// An alternative of a grid: a ratio relative to theta0, above 1, and its weight.
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alternative {
    /// Ratio of the rates relative to theta0; above 1.
    pub theta: f64,
    /// Weight, above 0; the weights of a grid sum to 1.
    pub weight: f64,
}

const fn alternative(theta: f64, weight: f64) -> Alternative {
    Alternative { theta, weight }
}

const RR7: [Alternative; 7] = [
    alternative(1.12, 0.05),
    alternative(1.4, 0.32),
    alternative(1.7, 0.28),
    alternative(2.2, 0.15),
    alternative(3.5, 0.10),
    alternative(7.0, 0.06),
    alternative(20.0, 0.04),
];

/// exp(exp(u)), u uniform on [ln ln 1.1, ln ln 30].
const WIDE16: [Alternative; 16] = [
    alternative(1.1, 0.0625),
    alternative(1.128_578_829_630_098, 0.0625),
    alternative(1.165_920_115_314_140_7, 0.0625),
    alternative(1.215_094_571_854_910_7, 0.0625),
    alternative(1.280_499_927_429_151_5, 0.0625),
    alternative(1.368_600_030_879_838_3, 0.0625),
    alternative(1.489_189_690_500_462, 0.0625),
    alternative(1.657_649_553_178_768_7, 0.0625),
    alternative(1.899_155_646_300_303_6, 0.0625),
    alternative(2.256_961_672_419_645_3, 0.0625),
    alternative(2.809_708_866_456_259_3, 0.0625),
    alternative(3.710_230_412_784_839, 0.0625),
    alternative(5.279_985_701_359_889, 0.0625),
    alternative(8.262_299_720_723_279, 0.0625),
    alternative(14.584_871_790_033_244, 0.0625),
    alternative(30.000_000_000_000_004, 0.0625),
];

static LN_RR7: LazyLock<[f64; 7]> = LazyLock::new(|| RR7.map(|a| libm::log(a.theta)));
static LN_WIDE16: LazyLock<[f64; 16]> = LazyLock::new(|| WIDE16.map(|a| libm::log(a.theta)));

/// The ratios that [`RateRatio`] bets on.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grid {
    /// Seven ratios from 1.12 to 20 with most weight on 1.4 to 1.7: quickest on regressions of 1.5 times and more.
    /// Effects below about 1.19 rest on 5 % of the weight.
    #[default]
    Rr7,
    /// Sixteen ratios from 1.1 to 30, evenly spread on a double-log scale.
    Wide16,
    /// Ratios of one's own, at most 64.
    Custom(Vec<Alternative>),
}

impl Grid {
    /// The ratios and their weights.
    pub fn alternatives(&self) -> &[Alternative] {
        match self {
            Self::Rr7 => &RR7,
            Self::Wide16 => &WIDE16,
            Self::Custom(own) => own,
        }
    }

    /// Half the weight on a declared least effect, half on [`Grid::Rr7`].
    ///
    /// # Errors
    /// [`BadRateRatio::Grid`] unless `theta` is finite and above 1.
    pub fn with_least_effect(theta: f64) -> Result<Self, BadRateRatio> {
        let rest = RR7.iter().map(|a| alternative(a.theta, a.weight / 2.0));
        let grid = Self::Custom(
            std::iter::once(alternative(theta, 0.5))
                .chain(rest)
                .collect(),
        );
        grid.check()?;
        Ok(grid)
    }

    /// ln(theta) of each.
    pub(crate) fn ln_thetas(&self) -> impl Iterator<Item = f64> {
        let known: &[f64] = match self {
            Self::Rr7 => &*LN_RR7,
            Self::Wide16 => &*LN_WIDE16,
            Self::Custom(_) => &[],
        };
        let own = |(i, a): (usize, &Alternative)| {
            let known = known.get(i).copied();
            known.unwrap_or_else(|| libm::log(a.theta))
        };
        self.alternatives().iter().enumerate().map(own)
    }

    fn check(&self) -> Result<(), BadRateRatio> {
        let rows = self.alternatives();
        let sum: f64 = rows.iter().map(|a| a.weight).sum();
        let proper = |a: &Alternative| a.theta > 1.0 && a.theta <= 1e6 && a.weight > 0.0;
        if rows.is_empty()
            || rows.len() > 64
            || !rows.iter().all(proper)
            || sum.is_nan()
            || (sum - 1.0).abs() > 1e-9
        {
            return Err(BadRateRatio::Grid);
        }
        Ok(())
    }
}

/// Parameters that make no test.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Error)]
pub enum BadRateRatio {
    /// theta0 is not a usable ratio.
    #[error("theta0 is {0}: it must lie in [0.001, 1000], 1 meaning no worse than the baseline")]
    Theta0(f64),
    /// The grid is not usable.
    #[error(
        "a grid has 1 to 64 ratios above 1 (and at most 1e6) with weights above 0 that sum to 1"
    )]
    Grid,
    /// The share of evidence kept for later starts is not usable.
    #[error("the weight kept for later starts is {0}: it must lie in (0, 1)")]
    Reserve(f64),
    /// Exposure that cannot be.
    #[error("the exposure is {0}: it must be finite and not negative")]
    Exposure(f64),
    /// Saved state that does not fit its own grid.
    #[error("saved evidence of a rate ratio is malformed: {0}")]
    State(&'static str),
}

/// Evidence that the candidate's rate exceeds theta0 times the baseline's. O(1) state; serde.
///
/// ```
/// use llm_gates::{Counts, Grid, RateRatio};
/// let mut harm = RateRatio::new(1.0, Grid::Rr7)?;
/// for _ in 0..10 {
///     harm.observe(Counts::new(1_000, 30), Counts::new(19_000, 190));
/// }
/// assert!(harm.log_e() > (1.0f64 / 0.05).ln()); // three times the baseline's rate: reject at 5 %
/// # Ok::<(), llm_gates::BadRateRatio>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub struct RateRatio {
    theta0: f64,
    grid: Grid,
    /// ln(w_j) + sum of increments, per alternative.
    logs: Vec<f64>,
    starts: Option<Starts>,
}

/// Change-point mixture: part of the evidence starts afresh at each of the next `horizon` looks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Starts {
    reserve: f64,
    horizon: u32,
    looks: u32,
}

#[derive(Serialize, Deserialize)]
struct Raw {
    theta0: f64,
    grid: Grid,
    logs: Vec<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    starts: Option<Starts>,
}

impl TryFrom<Raw> for RateRatio {
    type Error = BadRateRatio;

    fn try_from(raw: Raw) -> Result<Self, BadRateRatio> {
        check_theta0(raw.theta0)?;
        raw.grid.check()?;
        if raw.logs.len() != raw.grid.alternatives().len() {
            return Err(BadRateRatio::State(
                "the number of logs differs from the number of ratios",
            ));
        }
        if !raw.logs.iter().all(|l| l.is_finite()) {
            return Err(BadRateRatio::State("a log is not finite"));
        }
        if let Some(starts) = raw.starts {
            check_reserve(starts.reserve)?;
        }
        Ok(Self {
            theta0: raw.theta0,
            grid: raw.grid,
            logs: raw.logs,
            starts: raw.starts,
        })
    }
}

impl From<RateRatio> for Raw {
    fn from(r: RateRatio) -> Self {
        Self {
            theta0: r.theta0,
            grid: r.grid,
            logs: r.logs,
            starts: r.starts,
        }
    }
}

fn check_theta0(theta0: f64) -> Result<(), BadRateRatio> {
    if (1e-3..=1e3).contains(&theta0) {
        Ok(())
    } else {
        Err(BadRateRatio::Theta0(theta0))
    }
}

fn check_reserve(reserve: f64) -> Result<(), BadRateRatio> {
    if reserve > 0.0 && reserve < 1.0 {
        Ok(())
    } else {
        Err(BadRateRatio::Reserve(reserve))
    }
}

impl RateRatio {
    /// Evidence against `candidate rate <= theta0 * baseline rate`, starting from nothing.
    ///
    /// # Errors
    /// [`BadRateRatio`] when theta0 lies outside [0.001, 1000] or the grid is not usable.
    pub fn new(theta0: f64, grid: Grid) -> Result<Self, BadRateRatio> {
        check_theta0(theta0)?;
        grid.check()?;
        let logs = grid
            .alternatives()
            .iter()
            .map(|a| libm::log(a.weight))
            .collect();
        Ok(Self {
            theta0,
            grid,
            logs,
            starts: None,
        })
    }

    /// Like [`RateRatio::new`], with the weight `reserve` spread over fresh starts at each of the next `horizon` batches, so that a regression
    /// that begins late is found as quickly as an early one. The false-alarm bound stays; an early regression costs ln(1 / (1 - reserve)) more.
    ///
    /// Only for honest noise models: it chases bursts of noise.
    ///
    /// # Errors
    /// [`BadRateRatio`]; `reserve` must lie in (0, 1).
    pub fn with_late_starts(
        theta0: f64,
        grid: Grid,
        reserve: f64,
        horizon: u32,
    ) -> Result<Self, BadRateRatio> {
        check_reserve(reserve)?;
        let mut process = Self::new(theta0, grid)?;
        for log in &mut process.logs {
            *log += libm::log1p(-reserve);
        }
        process.starts = Some(Starts {
            reserve,
            horizon,
            looks: 0,
        });
        Ok(process)
    }

    /// The tolerated ratio of the rates.
    pub const fn theta0(&self) -> f64 {
        self.theta0
    }

    /// Tests another ratio from the next batch on. Each batch is a fair bet against the theta0 of its time, so the evidence stays valid as long as the new ratio was
    /// chosen before the batch: the null hypothesis is that no batch exceeds its own theta0.
    ///
    /// # Errors
    /// [`BadRateRatio::Theta0`] outside [0.001, 1000]; nothing changes then.
    pub fn set_theta0(&mut self, theta0: f64) -> Result<(), BadRateRatio> {
        check_theta0(theta0)?;
        self.theta0 = theta0;
        Ok(())
    }

    /// Adds a batch of new, disjoint counts; one with an empty arm adds no evidence. Counts with more events than requests are cut to their requests:
    /// check with [`Counts::check`] first.
    pub fn observe(&mut self, candidate: Counts, baseline: Counts) {
        self.start();
        let (n_c, n_b) = (candidate.n as f64, baseline.n as f64);
        self.add(
            n_c,
            candidate.k.min(candidate.n) as f64,
            n_b,
            baseline.k.min(baseline.n) as f64,
        );
    }

    /// Adds events that happened in new exposure (replica-seconds, tokens) of both arms: the same test for Poisson counts, which may exceed the exposure.
    ///
    /// # Errors
    /// [`BadRateRatio::Exposure`] for exposure that is negative or not finite; nothing changes then.
    pub fn observe_exposure(
        &mut self,
        candidate: (u64, f64),
        baseline: (u64, f64),
    ) -> Result<(), BadRateRatio> {
        for exposure in [candidate.1, baseline.1] {
            if !(exposure >= 0.0 && exposure.is_finite()) {
                return Err(BadRateRatio::Exposure(exposure));
            }
        }
        self.start();
        self.add(
            candidate.1,
            candidate.0 as f64,
            baseline.1,
            baseline.0 as f64,
        );
        Ok(())
    }

    /// Evidence that starts afresh at this batch.
    fn start(&mut self) {
        if let Some(starts) = &mut self.starts
            && starts.looks < starts.horizon
        {
            starts.looks += 1;
            let start = libm::log(starts.reserve / f64::from(starts.horizon));
            for (log, a) in self.logs.iter_mut().zip(self.grid.alternatives()) {
                *log = log_add(*log, libm::log(a.weight) + start);
            }
        }
    }

    fn add(&mut self, n_c: f64, k_c: f64, n_b: f64, k_b: f64) {
        let k = k_c + k_b;
        if n_c <= 0.0 || n_b <= 0.0 || k <= 0.0 {
            return;
        }
        let pi = n_c / (n_c + n_b);
        let ln_g0 = libm::log1p(pi * (self.theta0 - 1.0));
        let grid = self.grid.alternatives().iter().zip(self.grid.ln_thetas());
        for (log, (a, ln_theta)) in self.logs.iter_mut().zip(grid) {
            *log += k_c * ln_theta - k * (libm::log1p(pi * (self.theta0 * a.theta - 1.0)) - ln_g0);
        }
    }

    /// ln E. Reject at level alpha, at any look, where this is at least ln(1 / alpha).
    pub fn log_e(&self) -> f64 {
        let log = log_sum_exp(&self.logs);
        match self.starts {
            Some(s) if s.looks < s.horizon => {
                let left = s.reserve * (1.0 - f64::from(s.looks) / f64::from(s.horizon));
                log_add(log, libm::log(left))
            }
            _ => log,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(max: u64) -> impl Strategy<Value = Counts> {
        (0..=max)
            .prop_flat_map(|n| (Just(n), 0..=n))
            .prop_map(|(n, k)| Counts { n, k })
    }

    proptest! {
        #[test]
        fn is_finite_on_anything(batches in prop::collection::vec((counts(u64::MAX / 2), counts(u64::MAX / 2)), 0..20), theta0 in 0.001..1000.0f64) {
            for grid in [Grid::Rr7, Grid::Wide16] {
                let mut process = RateRatio::with_late_starts(theta0, grid, 0.5, 10).unwrap();
                for &(c, b) in &batches {
                    process.observe(c, b);
                    prop_assert!(process.log_e().is_finite());
                }
                let text = serde_json::to_string(&process).unwrap();
                prop_assert_eq!(serde_json::from_str::<RateRatio>(&text).unwrap(), process);
            }
        }

        #[test]
        fn more_harm_is_more_evidence(c in counts(100_000), b in counts(100_000), theta0 in 0.5..2.0f64) {
            prop_assume!(c.k < c.n && b.n > 0);
            let after = |c| {
                let mut process = RateRatio::new(theta0, Grid::Rr7).unwrap();
                process.observe(c, b);
                process.log_e()
            };
            let worse = Counts { k: c.k + 1, ..c };
            prop_assert!(after(worse) >= after(c));
        }

        /// E[exp(increment)] <= 1 on the boundary of the hypothesis, by summing over every outcome of one batch.
        #[test]
        fn is_a_bet_that_cannot_win_on_average(n_c in 1u64..12, n_b in 1u64..12, p_b in 0.0..1.0f64, theta0 in 0.5..2.0f64) {
            let p_c = (theta0 * p_b).min(1.0);
            let pmf = |n: u64, k: u64, p: f64| {
                let choose: f64 = (0..k).map(|i| (n - i) as f64 / (i + 1) as f64).product();
                choose * p.powf(k as f64) * (1.0 - p).powf((n - k) as f64)
            };
            let mut mean = 0.0;
            for k_c in 0..=n_c {
                for k_b in 0..=n_b {
                    let mut process = RateRatio::new(theta0, Grid::Rr7).unwrap();
                    process.observe(Counts { n: n_c, k: k_c }, Counts { n: n_b, k: k_b });
                    mean += pmf(n_c, k_c, p_c) * pmf(n_b, k_b, p_b) * process.log_e().exp();
                }
            }
            prop_assert!(mean <= 1.0 + 1e-9, "{}", mean);
        }
    }

    #[test]
    fn the_wide_grid_is_what_its_definition_says() {
        let (low, high) = (1.1f64.ln().ln(), 30f64.ln().ln());
        for (j, a) in Grid::Wide16.alternatives().iter().enumerate() {
            let theta = (low + (high - low) * j as f64 / 15.0).exp().exp();
            assert!((a.theta - theta).abs() < 1e-12 * theta);
        }
        for grid in [
            Grid::Rr7,
            Grid::Wide16,
            Grid::with_least_effect(1.3).unwrap(),
        ] {
            grid.check().unwrap();
        }
    }

    #[test]
    fn refuses_what_makes_no_test() {
        for theta0 in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(RateRatio::new(theta0, Grid::Rr7).is_err());
        }
        for theta in [1.0, 0.5, f64::NAN, f64::INFINITY] {
            assert!(Grid::with_least_effect(theta).is_err());
        }
        assert!(RateRatio::with_late_starts(1.0, Grid::Rr7, 1.0, 3).is_err());
        let raw = r#"{"theta0":1.0,"grid":"rr7","logs":[0.0]}"#;
        assert!(serde_json::from_str::<RateRatio>(raw).is_err());
    }
}
