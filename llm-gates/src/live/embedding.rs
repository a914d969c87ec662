//! Drift of embeddings whose scale nobody stated.

use serde::{Deserialize, Serialize};

use crate::anytime::EProcess;
use crate::drift::{EmbeddingDrift, RandomFeatures};
use crate::fixed::BadSample;

/// Random features: enough for a mean difference, few enough to save at each look.
const FEATURES: usize = 64;
const SEED: u64 = 0x6c6c_6d67_6174_6573;

/// [`EmbeddingDrift`] whose kernel is as wide as the first window's baseline is spread: gamma = 1 / the mean squared distance. That window adds no evidence, so the choice is made before the bets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Embeddings {
    dimension: usize,
    drift: Option<EmbeddingDrift>,
}

impl Embeddings {
    pub(super) const fn new(dimension: usize) -> Self {
        Self {
            dimension,
            drift: None,
        }
    }

    /// Twice the summed variance; `None` for fewer than two vectors or vectors that are all alike.
    fn mean_square_distance(vectors: &[Vec<f64>]) -> Option<f64> {
        let n = vectors.len() as f64;
        let (first, rest) = vectors.split_first()?;
        let (mut sum, mut square) = (vec![0.0; first.len()], 0.0);
        // Differences from the first vector: no cancellation where all lie far from 0.
        for vector in rest {
            for (s, (v, origin)) in sum.iter_mut().zip(vector.iter().zip(first)) {
                *s += v - origin;
                square += (v - origin) * (v - origin);
            }
        }
        let means: f64 = sum.iter().map(|s| s / n * (s / n)).sum();
        let distance = 2.0 * (square / n - means);
        (distance > 0.0 && distance.is_finite()).then_some(distance)
    }

    pub(super) fn observe(
        &mut self,
        candidate: &[Vec<f64>],
        baseline: &[Vec<f64>],
    ) -> Result<(), BadSample> {
        if let Some(drift) = &mut self.drift {
            return drift.observe(candidate, baseline);
        }
        let Some(distance) = Self::mean_square_distance(baseline) else {
            return Ok(());
        };
        let features = RandomFeatures::new(self.dimension, FEATURES, 1.0 / distance, SEED)?;
        self.drift
            .insert(EmbeddingDrift::new(features))
            .observe(candidate, baseline)
    }

    pub(super) fn log_e(&self) -> f64 {
        self.drift.as_ref().map_or(0.0, EProcess::log_e)
    }
}
