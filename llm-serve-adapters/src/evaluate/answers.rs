//! The answers of both versions to the same questions, and who scores them.

use super::effort::Effort;
use super::models::Models;
use super::suite::{Case, Suite};
use super::tally::share;
use crate::backend::ChatRequest;
use crate::host::{Error, ErrorKind, Evaluator, Result};
use async_trait::async_trait;
use llm_gates::{Measurement, Measurements};
use llm_version_core::VersionId;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

/// Measures something of the answers of both versions.
#[async_trait]
pub trait Scorer: Debug + Send + Sync + 'static {
    /// The metrics that [`Self::score`] gives, exactly.
    fn measures(&self) -> BTreeSet<String>;

    /// Scores the answers. Whom it asks it asks with this effort.
    ///
    /// # Errors
    /// As [`Evaluator::evaluate`].
    async fn score(&self, answers: &Answers, effort: &Effort) -> Result<Measurements>;
}

/// What both versions answered, in the order of the suite.
#[derive(Debug)]
pub struct Answers {
    suite: Arc<Suite>,
    candidate: Vec<Result<String>>,
    baseline: Vec<Result<String>>,
}

/// One case, and what both versions answered; none where there was no answer.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Pair<'a> {
    /// The case.
    pub case: &'a Case,
    /// What the candidate answered.
    pub candidate: Option<&'a str>,
    /// What the baseline answered.
    pub baseline: Option<&'a str>,
}

impl Answers {
    /// Of answers from elsewhere, in the order of the suite; none where there was no answer.
    ///
    /// # Errors
    /// `Permanent` if these are not as many as there are cases.
    pub fn new(
        suite: Suite,
        candidate: Vec<Option<String>>,
        baseline: Vec<Option<String>>,
    ) -> Result<Self> {
        if [candidate.len(), baseline.len()] != [suite.len(); 2] {
            return Err(Error::permanent(format!(
                "{} and {} answers to {} cases: give one for each",
                candidate.len(),
                baseline.len(),
                suite.len()
            )));
        }
        let results = |answers: Vec<Option<String>>| {
            answers
                .into_iter()
                .map(|answer| answer.ok_or_else(|| Error::permanent("no answer")))
                .collect()
        };
        Ok(Self {
            suite: Arc::new(suite),
            candidate: results(candidate),
            baseline: results(baseline),
        })
    }

    /// The cases with their answers, in order.
    pub fn pairs(&self) -> impl Iterator<Item = Pair<'_>> {
        let answers = self.candidate.iter().zip(&self.baseline);
        let cases = self.suite.cases().iter().zip(answers);
        cases.map(|(case, (candidate, baseline))| Pair {
            case,
            candidate: candidate.as_deref().ok(),
            baseline: baseline.as_deref().ok(),
        })
    }

    /// Why cases were not answered: the name of the case, whether it was the candidate, and the error.
    pub fn unanswered(&self) -> impl Iterator<Item = (&str, bool, &Error)> {
        let names = || self.suite.cases().iter().map(Case::name);
        let failed = |answers, candidate| {
            let answers: &Vec<Result<String>> = answers;
            let errors = names().zip(answers);
            errors.filter_map(move |(name, a)| Some((name, candidate, a.as_ref().err()?)))
        };
        failed(&self.candidate, true).chain(failed(&self.baseline, false))
    }
}

/// Asks both versions the questions of a suite, and lets scorers judge the answers.
///
/// Each case is asked of the candidate and of the baseline, one after the other, at temperature 0 with seed 0 unless told otherwise. It measures what its
/// scorers measure, and `NAME.unanswered`: cases without an answer, of the candidate against the baseline.
#[derive(Debug)]
pub struct SuiteEvaluator {
    name: String,
    suite: Arc<Suite>,
    models: Models,
    scorers: Vec<Arc<dyn Scorer>>,
    effort: Effort,
    sampling: Sampling,
}

#[derive(Debug, Clone, Copy)]
struct Sampling {
    tokens: u32,
    temperature: f64,
    seed: Option<u64>,
}

/// Builds a [`SuiteEvaluator`].
#[derive(Debug)]
#[must_use = "it does nothing until it is built"]
pub struct SuiteEvaluatorBuilder(SuiteEvaluator);

impl SuiteEvaluatorBuilder {
    /// Scores the answers; more than one is fine.
    pub fn scorer(mut self, scorer: impl Scorer) -> Self {
        self.0.scorers.push(Arc::new(scorer));
        self
    }

    /// How hard to try; the default unless told otherwise.
    pub fn effort(mut self, effort: Effort) -> Self {
        self.0.effort = effort;
        self
    }

    /// The longest answer, 256 tokens unless told otherwise.
    pub fn max_tokens(mut self, tokens: u32) -> Self {
        self.0.sampling.tokens = tokens;
        self
    }

    /// Temperature, 0 unless told otherwise: the most likely token each time.
    pub fn temperature(mut self, temperature: f64) -> Self {
        self.0.sampling.temperature = temperature;
        self
    }

    /// Seed of the servers' samplers, 0 unless told otherwise; `None` leaves it to them.
    pub fn seed(mut self, seed: Option<u64>) -> Self {
        self.0.sampling.seed = seed;
        self
    }

    /// The evaluator.
    ///
    /// # Errors
    /// `Permanent` without a scorer, for a metric that two would measure, or for sampling that no server can do.
    pub fn build(self) -> Result<SuiteEvaluator> {
        let it = self.0;
        if it.scorers.is_empty() {
            return Err(Error::permanent(format!(
                "the evaluator {:?} has no scorer: give it one, such as `Checks`",
                it.name
            )));
        }
        if it.sampling.tokens == 0 || !(0.0..=100.0).contains(&it.sampling.temperature) {
            return Err(Error::permanent(format!(
                "the evaluator {:?} cannot sample {} tokens at temperature {}",
                it.name, it.sampling.tokens, it.sampling.temperature
            )));
        }
        let mut names = BTreeSet::from([it.unanswered()]);
        for scorer in &it.scorers {
            for name in scorer.measures() {
                if !names.insert(name.clone()) {
                    return Err(twice(&name));
                }
            }
        }
        Ok(it)
    }
}

/// Two measure the same.
pub(super) fn twice(metric: &str) -> Error {
    Error::permanent(format!(
        "the metric {metric:?} would be measured twice: give one of the two another name"
    ))
}

impl SuiteEvaluator {
    /// Begins with no scorer, under a name for what it measures itself.
    pub fn builder(name: impl Into<String>, suite: Suite, models: Models) -> SuiteEvaluatorBuilder {
        SuiteEvaluatorBuilder(Self {
            name: name.into(),
            suite: Arc::new(suite),
            models,
            scorers: Vec::new(),
            effort: Effort::default(),
            sampling: Sampling {
                tokens: 256,
                temperature: 0.0,
                seed: Some(0),
            },
        })
    }

    fn unanswered(&self) -> String {
        format!("{}.unanswered", self.name)
    }

    fn request(&self, case: &Case) -> ChatRequest {
        let Sampling {
            tokens,
            temperature,
            seed,
        } = self.sampling;
        let request = case.request().max_tokens(tokens).temperature(temperature);
        match seed {
            Some(seed) => request.seed(seed),
            None => request,
        }
    }

    /// What both versions answer.
    ///
    /// # Errors
    /// `Permanent` for a version that nobody knows; what a version fails with that answers nothing at all; `Transient` if the deadline passes.
    pub async fn answers(&self, candidate: &VersionId, baseline: &VersionId) -> Result<Answers> {
        let clients = [
            self.models.client(candidate)?,
            self.models.client(baseline)?,
        ];
        let requests: Vec<_> = self.suite.cases().iter().map(|c| self.request(c)).collect();
        // Candidate and baseline by turns: what changes with time meets both.
        let replies = self
            .effort
            .each(2 * requests.len(), &|index, within| {
                let (client, request) = (&clients[index % 2], &requests[index / 2]);
                Box::pin(async move { Ok(client.complete(request, within).await?.text) })
            })
            .await?;
        let mut answers = Answers {
            suite: Arc::clone(&self.suite),
            candidate: Vec::with_capacity(requests.len()),
            baseline: Vec::with_capacity(requests.len()),
        };
        let mut replies = replies.into_iter();
        while let (Some(new), Some(old)) = (replies.next(), replies.next()) {
            answers.candidate.push(new);
            answers.baseline.push(old);
        }
        for (version, answers) in [
            (candidate, &answers.candidate),
            (baseline, &answers.baseline),
        ] {
            says_something(version, answers)?;
        }
        Ok(answers)
    }
}

/// Refuses a version that answers nothing at all. What may pass outweighs what may not.
fn says_something(version: &VersionId, answers: &[Result<String>]) -> Result<()> {
    let mut worst: Option<&Error> = None;
    for answer in answers {
        match answer {
            Ok(_) => return Ok(()),
            Err(e) if worst.is_none_or(|w| w.kind() != ErrorKind::Transient) => worst = Some(e),
            Err(_) => {}
        }
    }
    match worst {
        Some(e) => Err(Error::new(
            e.kind(),
            format!(
                "{} answers none of {} questions: {e}",
                version.reference(),
                answers.len()
            ),
        )),
        None => Ok(()),
    }
}

#[async_trait]
impl Evaluator for SuiteEvaluator {
    async fn evaluate(&self, candidate: &VersionId, baseline: &VersionId) -> Result<Measurements> {
        let answers = self.answers(candidate, baseline).await?;
        let mut measured = Measurements::from([(
            self.unanswered(),
            Measurement::against(
                share(answers.candidate.iter().map(Result::is_err)),
                share(answers.baseline.iter().map(Result::is_err)),
            ),
        )]);
        for scorer in &self.scorers {
            for (name, value) in scorer.score(&answers, &self.effort).await? {
                if measured.insert(name.clone(), value).is_some() {
                    return Err(twice(&name));
                }
            }
        }
        Ok(measured)
    }

    fn measures(&self) -> Option<BTreeSet<String>> {
        let scored = self.scorers.iter().flat_map(|s| s.measures());
        Some(scored.chain([self.unanswered()]).collect())
    }
}
