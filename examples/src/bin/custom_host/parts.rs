//! The smaller parts of a host: who loads versions, who measures them, who is told, when nothing may advance.

use crate::models::Models;
use async_trait::async_trait;
use llm_gates::{Measurement, Measurements, Sample};
use llm_rollout::incident::Incident;
use llm_rollout::{EndpointId, Position, Probed, Timestamp};
use llm_serve_adapters::host::{
    Calendar, Error, Evaluator, Incidents, Letter, Manifests, Notifier, Probe, Result,
    ServingBackend,
};
use llm_version_core::{Manifest, Surroundings, VersionId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Loads models and takes them out of service, and refuses what comes late.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    pub(crate) models: Arc<Models>,
    pub(crate) newest: Arc<Mutex<Position>>,
}

impl Pool {
    fn in_order(&self, at: Position) -> Result<()> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if at < *newest {
            return Err(Error::permanent(format!(
                "{} {} has been overtaken by a newer order",
                at.fence, at.seq
            )));
        }
        *newest = at;
        Ok(())
    }
}

#[async_trait]
impl ServingBackend for Pool {
    async fn prepare(&self, version: &VersionId, at: Position) -> Result<()> {
        self.in_order(at)?;
        self.models.load(version);
        // Warm means that it has answered.
        match self.models.answer(version, "Say hello.") {
            Some(text) if !text.is_empty() => Ok(()),
            _ => Err(Error::permanent(format!(
                "{} does not answer",
                version.reference()
            ))),
        }
    }

    async fn healthy(&self, version: &VersionId) -> Result<Option<bool>> {
        Ok(Some(self.models.answer(version, "Say hello.").is_some()))
    }

    async fn in_flight(&self, _: &VersionId) -> Result<Option<u64>> {
        // Answers are made at once.
        Ok(Some(0))
    }

    async fn retire(&self, version: &VersionId, at: Position) -> Result<()> {
        self.in_order(at)?;
        self.models.unload(version);
        Ok(())
    }
}

/// Asks a candidate before any user does.
#[derive(Debug)]
pub(crate) struct Suite(pub(crate) Arc<Models>);

#[async_trait]
impl Evaluator for Suite {
    async fn evaluate(&self, candidate: &VersionId, _: &VersionId) -> Result<Measurements> {
        // For its tests; whether it is loaded for users is the backend's business.
        self.0.load(candidate);
        let n = 100;
        let answered = (0..n).filter(|i| {
            let answer = self.0.answer(candidate, &format!("question {i}"));
            answer.is_some_and(|answer| !answer.is_empty())
        });
        let k = answered.count() as u64;
        Ok(Measurements::from([(
            "answered".to_owned(),
            Measurement::of(Sample::Proportion { k, n }),
        )]))
    }
}

/// Prints what people should know, once.
#[derive(Debug, Default)]
pub(crate) struct Printer(Mutex<BTreeSet<String>>);

#[async_trait]
impl Notifier for Printer {
    #[expect(clippy::print_stdout, reason = "this is how it tells people")]
    async fn notify(&self, letter: &Letter<'_>) -> Result<()> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.insert(letter.key()) {
            let page = if letter.notice.page { "PAGE " } else { "" };
            println!("  {page}{}: {}", letter.notice.rollout, letter.notice.text);
        }
        Ok(())
    }
}

/// A file for each rollout that went wrong.
#[derive(Debug)]
pub(crate) struct Records(pub(crate) PathBuf);

#[async_trait]
impl Incidents for Records {
    async fn keep(&self, endpoint: &EndpointId, incident: &Incident) -> Result<()> {
        let write = || {
            std::fs::create_dir_all(&self.0)?;
            let file = self.0.join(format!("{endpoint}.{}.md", incident.rollout));
            std::fs::write(file, incident.to_markdown())
        };
        write().map_err(|e| Error::transient("an incident record was not written").because(e))
    }
}

/// What versions consist of, and which of them their makers have revoked: whether there and back is safe is read from this.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    pub(crate) manifests: BTreeMap<VersionId, Manifest>,
    pub(crate) revoked: BTreeSet<VersionId>,
}

#[async_trait]
impl Manifests for Catalogue {
    async fn manifest(&self, version: &VersionId) -> Result<Option<Manifest>> {
        Ok(self.manifests.get(version).cloned())
    }

    async fn surroundings(&self) -> Result<Surroundings> {
        let mut around = Surroundings::default();
        around.revoked.extend(self.revoked.iter().cloned());
        Ok(around)
    }
}

/// Asks the version in production one question that it must know.
#[derive(Debug)]
pub(crate) struct Canonical(pub(crate) Arc<Models>);

#[async_trait]
impl Probe for Canonical {
    fn name(&self) -> &'static str {
        "canonical"
    }

    async fn probe(&self, version: &VersionId) -> Result<Probed> {
        Ok(match self.0.answer(version, "What is 2 + 2?") {
            Some(_) => Probed::Passed,
            None => Probed::Failed("it does not answer".to_owned()),
        })
    }
}

/// Nothing advances at weekends (UTC).
#[derive(Debug)]
pub(crate) struct Weekends;

impl Calendar for Weekends {
    fn frozen_until(&self, now: Timestamp) -> Option<Timestamp> {
        const DAY: u64 = 86_400_000;
        // The first day of Unix time was a Thursday.
        let day = now.as_millis() / DAY;
        let weekday = (day + 3) % 7;
        (weekday >= 5).then(|| Timestamp::from_millis((day + 7 - weekday) * DAY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weekends_end_on_mondays() {
        let hours = |n: u64| Timestamp::from_millis(n * 3_600_000);
        // From Friday, 2 January 1970.
        assert_eq!(Weekends.frozen_until(hours(24 + 23)), None);
        for hour in [48, 60, 72, 95] {
            assert_eq!(
                Weekends.frozen_until(hours(hour)),
                Some(hours(96)),
                "{hour}"
            );
        }
        assert_eq!(Weekends.frozen_until(hours(96)), None);
    }
}
