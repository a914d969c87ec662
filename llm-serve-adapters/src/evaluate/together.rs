//! Several evaluators as one.

use super::answers::twice;
use crate::host::{Evaluator, Result};
use async_trait::async_trait;
use llm_gates::Measurements;
use llm_version_core::VersionId;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Runs evaluators one after the other, and gives what all of them measure. The first error of one is the error of all.
#[derive(Debug, Clone, Default)]
pub struct Together {
    parts: Vec<Arc<dyn Evaluator>>,
}

impl Together {
    /// Of no evaluator yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// With another evaluator.
    ///
    /// # Errors
    /// `Permanent` if it measures what another one measures already, as far as both can tell; what cannot be told beforehand is refused by
    /// [`Evaluator::evaluate`].
    pub fn with(mut self, evaluator: impl Evaluator) -> Result<Self> {
        let new = evaluator.measures().unwrap_or_default();
        for part in &self.parts {
            let old = part.measures().unwrap_or_default();
            if let Some(name) = new.intersection(&old).next() {
                return Err(twice(name));
            }
        }
        self.parts.push(Arc::new(evaluator));
        Ok(self)
    }
}

#[async_trait]
impl Evaluator for Together {
    async fn evaluate(&self, candidate: &VersionId, baseline: &VersionId) -> Result<Measurements> {
        let mut all = Measurements::new();
        for part in &self.parts {
            for (name, value) in part.evaluate(candidate, baseline).await? {
                if all.insert(name.clone(), value).is_some() {
                    return Err(twice(&name));
                }
            }
        }
        Ok(all)
    }

    /// What all of them measure, if each of them can tell.
    fn measures(&self) -> Option<BTreeSet<String>> {
        self.parts
            .iter()
            .try_fold(BTreeSet::new(), |mut all, part| {
                all.extend(part.measures()?);
                Some(all)
            })
    }
}
