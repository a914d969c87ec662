//! Before any user sees it: the offline suite, the held-out text, the time it takes.

use crate::bundles::{Bundle, SUITE, held_out};
use async_trait::async_trait;
use desk_model::{Model, desk};
use llm_gates::{Measurement, Measurements, Sample};
use llm_serve_adapters::host::{Error, Evaluator, Result};
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Runs both versions over the offline suite.
#[derive(Debug)]
pub(crate) struct Desk {
    directories: BTreeMap<VersionId, PathBuf>,
    measured: Mutex<BTreeMap<VersionId, Arc<Scores>>>,
}

/// What one version scored.
#[derive(Debug)]
pub(crate) struct Scores {
    exact: Vec<bool>,
    well_formed: u64,
    bits_per_byte: Vec<f64>,
    seconds: Vec<f64>,
}

impl Desk {
    pub(crate) fn new(bundles: &[&Bundle]) -> Self {
        let directories = bundles
            .iter()
            .map(|b| (b.id.clone(), b.directory.clone()))
            .collect();
        Self {
            directories,
            measured: Mutex::default(),
        }
    }

    async fn scores(&self, version: &VersionId) -> Result<Arc<Scores>> {
        let known = |desk: &Self| {
            desk.measured
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(version)
                .cloned()
        };
        if let Some(scores) = known(self) {
            return Ok(scores);
        }
        let directory = self
            .directories
            .get(version)
            .ok_or_else(|| Error::permanent(format!("no bundle directory is known for {version}")))?
            .clone();
        let run = tokio::task::spawn_blocking(move || measure(&directory)).await;
        let scores = Arc::new(
            run.map_err(|e| Error::transient("the evaluation was interrupted").because(e))??,
        );
        self.measured
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(version.clone(), Arc::clone(&scores));
        Ok(scores)
    }
}

/// Loads the bundle and lets it answer.
fn measure(directory: &Path) -> Result<Scores> {
    let model = Model::load(directory).map_err(|e| {
        Error::permanent(format!(
            "the model in {} does not load",
            directory.display()
        ))
        .because(e)
    })?;
    let mut scores = Scores {
        exact: Vec::new(),
        well_formed: 0,
        bits_per_byte: Vec::new(),
        seconds: Vec::new(),
    };
    for (seed, request) in (0..).zip(desk::offline_suite(SUITE)) {
        let begun = Instant::now();
        let reply = model.answer(&request.text, seed);
        scores.seconds.push(begun.elapsed().as_secs_f64());
        let checked = desk::check(&reply.text, &request.expected);
        scores.exact.push(checked.is_ok());
        scores.well_formed += u64::from(!checked.is_err_and(|e| e.is_format()));
    }
    scores.bits_per_byte = held_out()
        .iter()
        .map(|text| model.bits_per_byte(text))
        .collect();
    Ok(scores)
}

impl Scores {
    /// The time below which 90 % of the replies stay.
    pub(crate) fn usual_longest(&self) -> Duration {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        Duration::from_secs_f64(sorted.get(sorted.len() * 9 / 10).copied().unwrap_or(0.1))
    }

    fn mean(values: &[f64]) -> Sample {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let sd =
            (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0)).sqrt();
        Sample::Mean {
            mean,
            sd,
            n: values.len() as u64,
        }
    }
}

#[async_trait]
impl Evaluator for Desk {
    async fn evaluate(&self, candidate: &VersionId, baseline: &VersionId) -> Result<Measurements> {
        let (new, old) = (self.scores(candidate).await?, self.scores(baseline).await?);
        let n = new.exact.len() as u64;
        let pairs = || new.exact.iter().zip(&old.exact);
        let wins = pairs().filter(|(new, old)| **new && !**old).count() as u64;
        let losses = pairs().filter(|(new, old)| !**new && **old).count() as u64;
        let comparison = Sample::Comparison {
            wins,
            losses,
            ties: n - wins - losses,
        };
        let well_formed = |s: &Scores| Sample::Proportion {
            k: s.well_formed,
            n,
        };
        Ok(Measurements::from([
            ("well_formed".to_owned(), Measurement::of(well_formed(&new))),
            ("win_rate".to_owned(), Measurement::of(comparison)),
            (
                "bits_per_byte".to_owned(),
                Measurement::against(
                    Scores::mean(&new.bits_per_byte),
                    Scores::mean(&old.bits_per_byte),
                ),
            ),
            (
                "seconds_per_reply".to_owned(),
                Measurement::against(Scores::mean(&new.seconds), Scores::mean(&old.seconds)),
            ),
        ]))
    }
}

#[async_trait]
impl Evaluator for Shared {
    async fn evaluate(&self, candidate: &VersionId, baseline: &VersionId) -> Result<Measurements> {
        self.0.evaluate(candidate, baseline).await
    }
}

/// A handle that the endpoint and the story share.
#[derive(Debug, Clone)]
pub(crate) struct Shared(pub(crate) Arc<Desk>);

impl Shared {
    pub(crate) async fn usual_longest(&self, version: &VersionId) -> Result<Duration> {
        Ok(self.0.scores(version).await?.usual_longest())
    }
}
