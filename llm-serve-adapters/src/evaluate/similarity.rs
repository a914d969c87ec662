//! How near answers are to reference answers.

use super::answers::{Answers, Scorer};
use super::effort::Effort;
use super::tally::mean;
use super::text;
use crate::host::{Error, Result};
use async_trait::async_trait;
use llm_gates::{Measurement, Measurements};
use std::collections::BTreeSet;

/// Scores answers by how near they are to the `ideal` ones of their cases; cases without any are left out.
///
/// What the candidate does not answer has the score 0; what the baseline does not answer is left out.
///
/// Measures, for the name that it is given:
/// - `NAME`: the mean over the cases of the candidate, against the baseline;
/// - `NAME.difference`: the mean over the cases that the baseline answered of candidate minus baseline: above 0 where the candidate is nearer.
#[derive(Debug, Clone)]
pub struct Similarity {
    name: String,
    score: fn(&str, &[String]) -> std::result::Result<f64, text::TooLong>,
}

impl Similarity {
    /// BLEU of each answer, from 0 to 100 (see [`text::bleu`]).
    pub fn bleu(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            score: |answer, ideal| text::bleu(answer, ideal),
        }
    }

    /// ROUGE-1: the F-measure of words, from 0 to 1, with the nearest ideal answer.
    pub fn rouge_1(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            score: |answer, ideal| nearest(ideal, |i| text::rouge_n(answer, i, 1)),
        }
    }

    /// ROUGE-2: the F-measure of pairs of words, from 0 to 1, with the nearest ideal answer.
    pub fn rouge_2(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            score: |answer, ideal| nearest(ideal, |i| text::rouge_n(answer, i, 2)),
        }
    }

    /// ROUGE-L: the F-measure of the longest common subsequence of words, from 0 to 1, with the nearest ideal answer.
    pub fn rouge_l(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            score: |answer, ideal| nearest(ideal, |i| text::rouge_l(answer, i)),
        }
    }
}

fn nearest(
    ideal: &[String],
    score: impl Fn(&str) -> std::result::Result<text::Rouge, text::TooLong>,
) -> std::result::Result<f64, text::TooLong> {
    ideal
        .iter()
        .try_fold(0.0, |best: f64, i| Ok(best.max(score(i)?.f)))
}

#[async_trait]
impl Scorer for Similarity {
    fn measures(&self) -> BTreeSet<String> {
        [self.name.clone(), format!("{}.difference", self.name)].into()
    }

    async fn score(&self, answers: &Answers, _effort: &Effort) -> Result<Measurements> {
        let (mut new, mut old, mut difference) = (Vec::new(), Vec::new(), Vec::new());
        for pair in answers.pairs().filter(|pair| !pair.case.ideal().is_empty()) {
            let score = |answer: Option<&str>| match answer {
                None => Ok(None),
                Some(answer) => (self.score)(answer, pair.case.ideal())
                    .map(Some)
                    .map_err(|e| {
                        let case = pair.case.name();
                        Error::permanent(format!("case {case:?}: {e}")).because(e)
                    }),
            };
            let now = score(pair.candidate)?.unwrap_or(0.0);
            new.push(now);
            if let Some(before) = score(pair.baseline)? {
                old.push(before);
                difference.push(now - before);
            }
        }
        if new.is_empty() {
            return Err(Error::permanent(format!(
                "{:?} has nothing to compare with: no case of the suite has an `ideal` answer",
                self.name
            )));
        }
        Ok(Measurements::from([
            (
                self.name.clone(),
                Measurement::against(mean(&new), mean(&old)),
            ),
            (
                format!("{}.difference", self.name),
                Measurement::of(mean(&difference)),
            ),
        ]))
    }
}
