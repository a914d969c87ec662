//! Expected properties of answers: the basic kinds of `OpenAI` Evals.

use super::answers::{Answers, Scorer};
use super::effort::Effort;
use super::schema::Schema;
use super::tally::share;
use crate::host::{Error, Result};
use async_trait::async_trait;
use llm_gates::quality::Flips;
use llm_gates::{Measurement, Measurements, Sample};
use serde::Deserialize;
use std::collections::BTreeSet;

/// How an answer is held against the ideal ones. The names in suites are `match`, `includes` and `fuzzy_match`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Check {
    /// It begins with one of them, white space at its ends aside.
    Match,
    /// It holds one of them anywhere.
    Includes,
    /// It holds one of them or is held by it, apart from case, ASCII punctuation, the articles a, an and the, and white space. What is empty then
    /// matches only what is empty too.
    FuzzyMatch,
}

/// What an answer must be like.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Expected {
    /// As one of these texts, in the way of the check.
    Text(Check, Vec<String>),
    /// JSON, and nothing but JSON, of this schema.
    Json(Schema),
}

impl Expected {
    /// Whether the answer is like that.
    pub fn holds(&self, answer: &str) -> bool {
        let answer = answer.trim();
        match self {
            Self::Text(Check::Match, ideal) => ideal.iter().any(|i| answer.starts_with(i)),
            Self::Text(Check::Includes, ideal) => ideal.iter().any(|i| answer.contains(i)),
            Self::Text(Check::FuzzyMatch, ideal) => {
                let answer = normalised(answer);
                ideal.iter().any(|i| {
                    let ideal = normalised(i);
                    if answer.is_empty() || ideal.is_empty() {
                        return answer == ideal;
                    }
                    answer.contains(&ideal) || ideal.contains(&answer)
                })
            }
            Self::Json(schema) => {
                serde_json::from_str(answer).is_ok_and(|value| schema.accepts(&value))
            }
        }
    }
}

/// Lower case, without ASCII punctuation and articles, words apart by one space.
fn normalised(text: &str) -> String {
    let text: String = text
        .to_lowercase()
        .chars()
        .filter(|c| !c.is_ascii_punctuation())
        .collect();
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(first) = rest.chars().next() {
        let of_word = |c: char| c.is_alphanumeric();
        let end = rest
            .find(|c| of_word(c) != of_word(first))
            .unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        out.push_str(if matches!(run, "a" | "an" | "the") {
            " "
        } else {
            run
        });
        rest = after;
    }
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Scores answers by the expectations of their cases; cases without any are left out.
///
/// Measures, for the name that it is given:
/// - `NAME`: how many answers of the candidate pass, of all cases, against those of the baseline, of its answers. What the candidate does not answer has failed.
/// - `NAME.win_rate`: the same cases in pairs, where the baseline answered: won is what passes now only.
/// - `NAME.negative_flips`: cases that passed with the baseline and fail now, among all pairs (Yan et al. 2021).
///
/// [`Answers::flips`] gives the paired counts themselves, for an exact paired test ([`Flips::worse`]).
#[derive(Debug, Clone)]
pub struct Checks {
    name: String,
}

impl Checks {
    /// Measures under this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }
}

impl Answers {
    /// Which cases with an expectation passed with the baseline and with the candidate, where the baseline answered. What the candidate did not answer has failed.
    pub fn flips(&self) -> Flips {
        Flips::of(self.pairs().filter_map(|pair| {
            let expected = pair.case.expected()?;
            let before = expected.holds(pair.baseline?);
            Some((before, pair.candidate.is_some_and(|a| expected.holds(a))))
        }))
    }

    /// The names of the cases that the candidate failed, in the order of the suite.
    pub fn failed(&self) -> Vec<&str> {
        self.pairs()
            .filter(|pair| {
                pair.case
                    .expected()
                    .is_some_and(|expected| !pair.candidate.is_some_and(|a| expected.holds(a)))
            })
            .map(|pair| pair.case.name())
            .collect()
    }
}

#[async_trait]
impl Scorer for Checks {
    fn measures(&self) -> BTreeSet<String> {
        ["", ".win_rate", ".negative_flips"]
            .map(|part| format!("{}{part}", self.name))
            .into()
    }

    async fn score(&self, answers: &Answers, _effort: &Effort) -> Result<Measurements> {
        let name = &self.name;
        let cases = || {
            answers
                .pairs()
                .filter_map(|pair| Some((pair.case.expected()?, pair)))
        };
        let now = share(cases().map(|(e, pair)| pair.candidate.is_some_and(|a| e.holds(a))));
        let before = share(cases().filter_map(|(e, pair)| Some(e.holds(pair.baseline?))));
        if now.n() == 0 {
            return Err(Error::permanent(format!(
                "{name:?} has nothing to check: no case of the suite expects anything (`ideal` or `schema`)"
            )));
        }
        let flips = answers.flips();
        let ties = flips.both_right + flips.both_wrong;
        Ok(Measurements::from([
            (name.clone(), Measurement::against(now, before)),
            (
                format!("{name}.win_rate"),
                Measurement::of(Sample::Comparison {
                    wins: flips.positive,
                    ties,
                    losses: flips.negative,
                }),
            ),
            (
                format!("{name}.negative_flips"),
                Measurement::of(Sample::Proportion {
                    k: flips.negative,
                    n: ties + flips.positive + flips.negative,
                }),
            ),
        ]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(check: Check, ideal: &[&str]) -> Expected {
        Expected::Text(check, ideal.iter().map(|&i| i.to_owned()).collect())
    }

    #[test]
    fn answers_are_held_against_ideals() {
        let begins = text(Check::Match, &["Paris", "It is Paris"]);
        assert!(begins.holds(" Paris, of course.") && begins.holds("It is Paris"));
        assert!(!begins.holds("In Paris") && !begins.holds("paris") && !begins.holds(""));
        let holds = text(Check::Includes, &["Paris"]);
        assert!(holds.holds("In Paris.") && !holds.holds("in paris"));
        let fuzzy = text(Check::FuzzyMatch, &["The Eiffel Tower!"]);
        assert!(fuzzy.holds("It's an eiffel   tower.") && fuzzy.holds("eiffel"));
        assert!(!fuzzy.holds("tower of Eiffel") && !fuzzy.holds("the") && !fuzzy.holds(""));
        assert!(text(Check::FuzzyMatch, &["the"]).holds("an!"));
        let json = Expected::Json(serde_json::from_str(r#"{"type": "object"}"#).unwrap());
        assert!(json.holds(" {} ") && !json.holds("[]") && !json.holds("Here it is: {}"));
    }

    #[test]
    fn articles_are_whole_words() {
        assert_eq!(
            normalised("The theatre, a-n an' them–the–a"),
            "theatre them– –"
        );
    }

    proptest! {
        #[test]
        fn an_answer_is_like_itself(answer in "\\PC{0,40}") {
            prop_assert!(text(Check::Match, &[answer.trim()]).holds(&answer));
            prop_assert!(text(Check::Includes, &[answer.trim()]).holds(&answer));
            prop_assert!(text(Check::FuzzyMatch, &[&answer]).holds(&answer));
            prop_assert_eq!(normalised(&normalised(&answer)), normalised(&answer));
        }
    }
}
