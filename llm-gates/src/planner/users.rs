//! Users as units: requests of one user resemble each other, so they tell less than as many requests of strangers.

use serde::{Deserialize, Serialize};

use crate::anytime::Scores;
use crate::fixed::{BadSample, parameter};

/// How much requests of one user resemble each other: one pass over users, O(1) state.
///
/// ```
/// use llm_gates::anytime::Scores;
/// use llm_gates::planner::{Detection, UserSpread};
/// // Two users who always fail and two who never do, five requests each: a user is worth one request.
/// let users = UserSpread::of([1.0, 1.0, 0.0, 0.0].map(|x| Scores::of(&[x; 5])))?;
/// assert!((users.design_effect().unwrap_or(1.0) - 5.0).abs() < 1e-12);
/// # Ok::<(), llm_gates::fixed::BadSample>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct UserSpread {
    users: u64,
    requests: f64,
    /// Sum of squared numbers of requests.
    squares: f64,
    sum: f64,
    /// Sum over users of sum^2 / n, and of the squares.
    between: f64,
    total: f64,
}

impl UserSpread {
    /// Nobody yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Over users: each one's requests, with scores in [0, 1] (of an event: 1 where it happened).
    ///
    /// # Errors
    /// [`BadSample`] for sums that scores in [0, 1] cannot have.
    pub fn of(users: impl IntoIterator<Item = Scores>) -> Result<Self, BadSample> {
        let mut spread = Self::new();
        for user in users {
            spread.add(user)?;
        }
        Ok(spread)
    }

    /// Adds one user's requests, all of them at once; without requests the user does not count.
    ///
    /// # Errors
    /// [`BadSample`] for sums that scores in [0, 1] cannot have; nothing changes then.
    pub fn add(&mut self, user: Scores) -> Result<(), BadSample> {
        user.check()?;
        if user.n == 0 {
            return Ok(());
        }
        let n = user.n as f64;
        self.users = self.users.saturating_add(1);
        self.requests += n;
        self.squares += n * n;
        self.sum += user.sum;
        self.between += user.sum * user.sum / n;
        self.total += user.square;
        Ok(())
    }

    /// How many users with requests.
    pub const fn users(&self) -> u64 {
        self.users
    }

    /// Requests of a user, as a request sees it: the mean over requests, sum of squares / sum (Kish 1987), which heavy users raise; `None` without users. At least 1.
    pub fn requests_per_user(&self) -> Option<f64> {
        (self.users > 0).then(|| self.squares / self.requests)
    }

    /// Intraclass correlation by analysis of variance (Donner 1986), cut to [0, 1]; `None` for fewer than two users, or where nobody has two requests. 0 where all scores are equal.
    pub fn icc(&self) -> Option<f64> {
        let users = self.users as f64;
        if self.users < 2 || self.requests <= users {
            return None;
        }
        let between = (self.between - self.sum * self.sum / self.requests).max(0.0) / (users - 1.0);
        let within = (self.total - self.between).max(0.0) / (self.requests - users);
        let size = (self.requests - self.squares / self.requests) / (users - 1.0);
        let spread = between + (size - 1.0) * within;
        // Rounding leaves about 1e-16 of sums where all scores are equal.
        if spread <= 1e-14 {
            return Some(0.0);
        }
        Some(((between - within) / spread).clamp(0.0, 1.0))
    }

    /// How many requests say as much as one of a stranger; at least 1. `None` where [`UserSpread::icc`] is.
    pub fn design_effect(&self) -> Option<f64> {
        Some(1.0 + (self.requests_per_user()? - 1.0) * self.icc()?)
    }
}

/// Design effect 1 + (m - 1) icc (Kish 1965): multiply with it each number of requests that was planned for independent ones. `requests_per_user` of 1 and more, `icc` in [0, 1].
///
/// # Errors
/// [`BadSample`] for parameters out of range.
pub fn design_effect(requests_per_user: f64, icc: f64) -> Result<f64, BadSample> {
    parameter(
        requests_per_user >= 1.0 && requests_per_user.is_finite(),
        "requests_per_user",
        requests_per_user,
        "be finite and at least 1",
    )?;
    parameter(
        (0.0..=1.0).contains(&icc),
        "icc",
        icc,
        "lie between 0 and 1",
    )?;
    Ok(1.0 + (requests_per_user - 1.0) * icc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::Detection;

    const ICC: f64 = 12.0 / 31.0;

    fn user(n: u64, k: f64) -> Scores {
        Scores {
            n,
            sum: k,
            square: k,
        }
    }

    #[test]
    fn agrees_with_an_analysis_of_variance() {
        // F of an analysis of variance of the 0/1 outcomes, in exact fractions, then (F - 1) / (F + size - 1).
        let spread =
            UserSpread::of([user(4, 0.0), user(6, 5.0), user(2, 1.0), user(9, 2.0)]).unwrap();
        assert!(
            (spread.icc().unwrap() - ICC).abs() < 1e-12,
            "{:?}",
            spread.icc()
        );
        let m = (16.0 + 36.0 + 4.0 + 81.0) / 21.0;
        assert!((spread.requests_per_user().unwrap() - m).abs() < 1e-12);
        let deff = design_effect(m, ICC).unwrap();
        assert!((spread.design_effect().unwrap() - deff).abs() < 1e-12);
    }

    #[test]
    fn strangers_and_equals_have_no_effect() {
        assert_eq!(UserSpread::new().icc(), None);
        assert_eq!(UserSpread::of([user(1, 1.0); 9]).unwrap().icc(), None);
        let alike = UserSpread::of([user(10, 5.0); 20]).unwrap();
        assert_eq!(alike.design_effect(), Some(1.0));
        let equal = UserSpread::of([Scores::of(&[0.1; 7]), Scores::of(&[0.1; 3])]).unwrap();
        assert_eq!(equal.icc(), Some(0.0));
        let mut spread = alike;
        assert!(spread.add(user(1, 2.0)).is_err() && spread.add(user(0, 0.0)).is_ok());
        assert_eq!(spread, alike);
    }

    #[test]
    fn plans_take_as_many_times_the_requests() {
        let independent = Detection::new(0.01, 2.0, 0.05, 0.05, 1.5).unwrap();
        let deff = design_effect(11.0, 0.1).unwrap();
        let users = independent.with_design_effect(deff).unwrap();
        let n = independent.expected_requests();
        assert!((users.expected_requests() / n - 2.0).abs() < 1e-12);
        assert!((users.probability_by(2.0 * n) - independent.probability_by(n)).abs() < 1e-12);
        assert!(independent.with_design_effect(0.5).is_err());
        assert!(independent.with_design_effect(f64::NAN).is_err());
        assert!(design_effect(0.5, 0.1).is_err() && design_effect(2.0, 1.1).is_err());
    }

    #[test]
    fn blocks_of_users_weigh_everybody_the_same() {
        let block =
            Scores::of_users([user(100, 100.0), user(1, 0.0), user(2, 1.0), user(0, 0.0)]).unwrap();
        assert_eq!(block, Scores::of(&[1.0, 0.0, 0.5]));
        assert!(Scores::of_users([user(1, 2.0)]).is_err());
    }
}
