//! Quality of answers: what judges, regression suites and log-probabilities say about a new version.
//!
//! Scores that need the text (BLEU, ROUGE, embeddings) come from the host.

mod judge;

use serde::{Deserialize, Serialize};

pub use judge::{Comparisons, Preference, Unbiased, prediction_powered_mean, unbiased};

use crate::Counts;
use crate::fixed::{BadSample, Side, Tested, mcnemar};

/// The same questions answered by two versions.
#[expect(
    clippy::exhaustive_structs,
    reason = "plain data that hosts write as literals"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Flips {
    /// Right before and now.
    pub both_right: u64,
    /// Right before, wrong now: negative flips.
    pub negative: u64,
    /// Wrong before, right now.
    pub positive: u64,
    /// Wrong before and now.
    pub both_wrong: u64,
}

impl Flips {
    /// Counts pairs of (right before, right now).
    pub fn of(pairs: impl IntoIterator<Item = (bool, bool)>) -> Self {
        let mut flips = Self::default();
        for pair in pairs {
            match pair {
                (true, true) => flips.both_right += 1,
                (true, false) => flips.negative += 1,
                (false, true) => flips.positive += 1,
                (false, false) => flips.both_wrong += 1,
            }
        }
        flips
    }

    fn n(&self) -> f64 {
        [
            self.both_right,
            self.negative,
            self.positive,
            self.both_wrong,
        ]
        .map(|k| k as f64)
        .iter()
        .sum()
    }

    /// Negative flips among all questions (Yan et al. 2021); 0 without questions.
    pub fn negative_flip_rate(&self) -> f64 {
        self.negative as f64 / self.n().max(1.0)
    }

    /// Questions whose correctness changed, either way; 0 without questions.
    pub fn churn(&self) -> f64 {
        (self.negative as f64 + self.positive as f64) / self.n().max(1.0)
    }

    /// Agreement beyond chance (Cohen 1960), in [-1, 1]; `None` where chance alone agrees always.
    pub fn kappa(&self) -> Option<f64> {
        let n = self.n();
        let (before, now) = (
            (self.both_right + self.negative) as f64 / n,
            (self.both_right + self.positive) as f64 / n,
        );
        let chance = before * now + (1.0 - before) * (1.0 - now);
        (chance < 1.0).then(|| (1.0 - self.churn() - chance) / (1.0 - chance))
    }

    /// Whether there are more negative flips than positive ones (McNemar's exact test).
    pub fn worse(&self) -> Tested {
        mcnemar(self.negative, self.positive, Side::Greater)
    }
}

/// A suite of which every case must pass.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Suite {
    /// Passed of all.
    pub counts: Counts,
    /// Names of the cases that failed, in order.
    pub failed: Vec<String>,
    /// 95 % upper bound of the failure rate on cases like these (Clopper and Pearson 1934): what 100 % passed really says. 1 without cases.
    pub failure_rate_at_most: f64,
}

/// Sums up a regression suite or a list of canonical questions. An empty suite has not passed.
pub fn suite<'a>(cases: impl IntoIterator<Item = (&'a str, bool)>) -> Suite {
    let (mut counts, mut failed) = (Counts::default(), Vec::new());
    for (name, passed) in cases {
        counts.n += 1;
        counts.k += u64::from(passed);
        if !passed {
            failed.push(name.to_owned());
        }
    }
    let misses = Counts::new(counts.n, counts.n - counts.k);
    let failure_rate_at_most =
        crate::fixed::clopper_pearson_one_sided(misses, 0.05).map_or(1.0, |(_, high)| high);
    Suite {
        counts,
        failed,
        failure_rate_at_most,
    }
}

impl Suite {
    /// Whether there are cases and all of them passed.
    pub const fn passed(&self) -> bool {
        self.counts.n > 0 && self.counts.k == self.counts.n
    }
}

/// exp of the mean negative log-probability per token, from natural logs.
///
/// # Errors
/// [`BadSample`] without tokens, or for log-probabilities that are above 0 or not finite.
pub fn perplexity(ln_probabilities: &[f64]) -> Result<f64, BadSample> {
    Ok(libm::exp(
        negative_sum(ln_probabilities)? / ln_probabilities.len() as f64,
    ))
}

/// Bits per byte of the text that the tokens spell: comparable between tokenizers, unlike perplexity.
///
/// # Errors
/// [`BadSample`] without tokens or bytes, or for log-probabilities that are above 0 or not finite.
pub fn bits_per_byte(ln_probabilities: &[f64], bytes: u64) -> Result<f64, BadSample> {
    if bytes == 0 {
        return Err(BadSample::TooFew { needed: 1, got: 0 });
    }
    Ok(negative_sum(ln_probabilities)? / std::f64::consts::LN_2 / bytes as f64)
}

fn negative_sum(ln_probabilities: &[f64]) -> Result<f64, BadSample> {
    crate::fixed::finite(ln_probabilities, 1)?;
    for ln in ln_probabilities {
        crate::fixed::parameter(*ln <= 1e-9, "ln_probability", *ln, "be at most 0")?;
    }
    Ok(-ln_probabilities.iter().sum::<f64>())
}

/// Answers that equal the expected text, after trimming white space at both ends.
pub fn exact_match<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Counts {
    let mut counts = Counts::default();
    for (expected, answer) in pairs {
        counts.n += 1;
        counts.k += u64::from(expected.trim() == answer.trim());
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flips_are_counted_and_churn_is_both_ways() {
        let flips = Flips::of([
            (true, true),
            (true, false),
            (true, false),
            (false, true),
            (false, false),
        ]);
        assert_eq!((flips.negative, flips.positive), (2, 1));
        assert!(
            (flips.negative_flip_rate() - 0.4).abs() < 1e-15 && (flips.churn() - 0.6).abs() < 1e-15
        );
        // Agreement 0.4; chance 0.6 * 0.4 + 0.4 * 0.6 = 0.48.
        assert!((flips.kappa().unwrap() + 0.08 / 0.52).abs() < 1e-12);
        assert!(Flips::default().kappa().is_none() || Flips::default().kappa().unwrap().is_nan());
    }

    #[test]
    fn an_empty_suite_has_not_passed_and_a_passed_one_says_how_little_it_says() {
        assert!(!suite([]).passed());
        let perfect = suite(["a", "b", "c"].map(|name| (name, true)));
        assert!(
            perfect.passed()
                && (perfect.failure_rate_at_most - (1.0 - 0.05f64.powf(1.0 / 3.0))).abs() < 1e-12
        );
        assert_eq!(suite([("a", true), ("b", false)]).failed, ["b"]);
    }

    #[test]
    fn a_uniform_model_has_the_perplexity_of_its_vocabulary() {
        let ln = [(1.0f64 / 256.0).ln(); 10];
        assert!((perplexity(&ln).unwrap() - 256.0).abs() < 1e-9);
        assert!((bits_per_byte(&ln, 10).unwrap() - 8.0).abs() < 1e-12);
        assert!(
            perplexity(&[]).is_err()
                && perplexity(&[0.1]).is_err()
                && perplexity(&[f64::NAN]).is_err()
                && bits_per_byte(&ln, 0).is_err()
        );
        assert_eq!(exact_match([(" a", "a "), ("a", "b")]), Counts::new(2, 1));
    }
}
