//! Judges: pairwise comparisons, their position bias, and cheap judges corrected by few human labels.

use serde::{Deserialize, Serialize};

use crate::Counts;
use crate::Moments;
use crate::fixed::{self, BadSample, finite, open_unit};
use crate::special::{binomial, normal};

/// Candidate against baseline in pairs.
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Comparisons {
    /// Pairs in which the candidate was better.
    pub wins: u64,
    /// Pairs without a difference.
    pub ties: u64,
    /// Pairs in which the baseline was better.
    pub losses: u64,
}

impl Comparisons {
    fn n(&self) -> f64 {
        self.wins as f64 + self.ties as f64 + self.losses as f64
    }

    /// Wins and half the ties among all pairs; `None` without pairs.
    pub fn win_rate(&self) -> Option<f64> {
        (self.n() > 0.0).then(|| (self.wins as f64 + 0.5 * self.ties as f64) / self.n())
    }

    /// Standard error of the win rate; `None` without pairs.
    pub fn standard_error(&self) -> Option<f64> {
        let rate = self.win_rate()?;
        let square = (self.wins as f64 + 0.25 * self.ties as f64) / self.n();
        Some(libm::sqrt((square - rate * rate).max(0.0) / self.n()))
    }

    /// z of the win rate against one half; 0 without any variation at one half, `None` without pairs.
    pub fn z(&self) -> Option<f64> {
        let (d, se) = (self.win_rate()? - 0.5, self.standard_error()?);
        Some(if se > 0.0 {
            d / se
        } else if d.abs() > 0.0 {
            libm::copysign(f64::MAX, d)
        } else {
            0.0
        })
    }

    /// Exact p-value of the sign test on decided pairs: a small one shows that the candidate is better.
    pub fn p_better(&self) -> f64 {
        binomial::sf_inclusive(self.wins.saturating_add(self.losses), self.wins, 0.5)
    }

    /// Wilson's interval of wins among decided pairs at confidence 1 - alpha.
    ///
    /// # Errors
    /// [`BadSample`] without decided pairs or for alpha outside (0, 1).
    pub fn decided_interval(&self, alpha: f64) -> Result<(f64, f64), BadSample> {
        fixed::wilson(
            Counts::new(self.wins.saturating_add(self.losses), self.wins),
            alpha,
        )
    }
}

/// What a judge said of one pair.
#[expect(
    clippy::exhaustive_enums,
    reason = "a comparison of two has three outcomes"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preference {
    /// The answer shown first.
    First,
    /// Neither.
    Tie,
    /// The answer shown second.
    Second,
}

/// Comparisons freed of the judge's preference for a position.
#[expect(
    clippy::exhaustive_structs,
    reason = "the correction gives these numbers"
)]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Unbiased {
    /// Wins and losses that both orders agree on; everything else is a tie.
    pub comparisons: Comparisons,
    /// Share of decided single judgements that preferred the first position, 1/2 without bias; 1/2 where none was decided.
    pub first_position: f64,
    /// Pairs in which the order changed the preferred answer.
    pub inconsistent: u64,
}

/// Judges each pair in both orders: (candidate shown first, candidate shown second). An answer wins only where it is preferred in both orders, or in one with a tie in the other.
pub fn unbiased(pairs: impl IntoIterator<Item = (Preference, Preference)>) -> Unbiased {
    let (mut comparisons, mut inconsistent, mut first, mut decided) =
        (Comparisons::default(), 0, 0.0, 0.0);
    for (candidate_first, candidate_second) in pairs {
        let score = |p: Preference| match p {
            Preference::First => 1,
            Preference::Tie => 0,
            Preference::Second => -1,
        };
        for p in [candidate_first, candidate_second] {
            first += f64::from(u8::from(p == Preference::First));
            decided += f64::from(u8::from(p != Preference::Tie));
        }
        let (a, b) = (score(candidate_first), -score(candidate_second));
        inconsistent += u64::from(a * b < 0);
        match (a + b).cmp(&0) {
            std::cmp::Ordering::Greater => comparisons.wins += 1,
            std::cmp::Ordering::Equal => comparisons.ties += 1,
            std::cmp::Ordering::Less => comparisons.losses += 1,
        }
    }
    Unbiased {
        comparisons,
        first_position: if decided > 0.0 { first / decided } else { 0.5 },
        inconsistent,
    }
}

/// Mean of human labels, estimated from many cheap judgements and the judge's error on the few that both saw (prediction-powered inference, Angelopoulos et al. 2023): (estimate, lower, upper) at
/// confidence 1 - alpha. `weight` of the judge, 1 by custom; 0 ignores it.
///
/// # Errors
/// [`BadSample`] for fewer than two values, `labels` and `judged` of unequal length, values that are not finite, or parameters out of range.
pub fn prediction_powered_mean(
    labels: &[f64],
    judged: &[f64],
    unlabelled: &[f64],
    weight: f64,
    alpha: f64,
) -> Result<(f64, f64, f64), BadSample> {
    finite(labels, 2)?;
    finite(judged, labels.len())?;
    finite(unlabelled, 2)?;
    if judged.len() != labels.len() {
        return Err(BadSample::TooFew {
            needed: judged.len(),
            got: labels.len(),
        });
    }
    open_unit("alpha", alpha)?;
    fixed::parameter(
        (0.0..=1.0).contains(&weight),
        "weight",
        weight,
        "lie between 0 and 1",
    )?;
    let errors: Vec<f64> = labels
        .iter()
        .zip(judged)
        .map(|(y, f)| y - weight * f)
        .collect();
    let part = |values: &[f64], scale: f64| {
        let moments = Moments::of(values);
        let n = values.len() as f64;
        // The variance with n, as in the paper.
        (
            moments.mean().unwrap_or(0.0) * scale,
            moments.variance().unwrap_or(0.0) * (n - 1.0) / n / n * scale * scale,
        )
    };
    let ((error, v_error), (judge, v_judge)) = (part(&errors, 1.0), part(unlabelled, weight));
    let half = normal::upper_quantile(0.5 * alpha) * libm::sqrt(v_error + v_judge);
    let estimate = judge + error;
    Ok((estimate, estimate - half, estimate + half))
}
