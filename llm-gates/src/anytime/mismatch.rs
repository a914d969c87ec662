//! Sample-ratio mismatch: does the router send what it says?

use serde::{Deserialize, Serialize};

use super::EProcess;
use crate::fixed::{BadSample, parameter};
use crate::special::gamma::{deviance, stirling_error};

/// Evidence that units are not assigned with the stated shares: the Dirichlet-multinomial e-process (Lindon and Malek 2020). Count what is routed
/// as a unit: users or sessions where routing is sticky, never their requests. An alarm at 1e-3 means that routing is broken, not that the candidate is bad.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mismatch {
    concentration: f64,
    shares: Vec<f64>,
    counts: Vec<u64>,
    /// ln E of the stages before this one.
    before: f64,
}

fn checked(weights: &[f64]) -> Result<Vec<f64>, BadSample> {
    if weights.len() < 2 {
        return Err(BadSample::TooFew {
            needed: 2,
            got: weights.len(),
        });
    }
    for w in weights {
        parameter(
            *w > 0.0 && w.is_finite(),
            "weight",
            *w,
            "be finite and above 0",
        )?;
    }
    let total: f64 = weights.iter().sum();
    Ok(weights.iter().map(|w| w / total).collect())
}

impl Mismatch {
    /// Against assignment with these weights; the concentration 10,000 is usual, less looks for greater mismatches.
    ///
    /// # Errors
    /// [`BadSample`] for fewer than two weights, or numbers that are not finite and above 0.
    pub fn new(weights: &[f64], concentration: f64) -> Result<Self, BadSample> {
        parameter(
            concentration > 0.0 && concentration.is_finite(),
            "concentration",
            concentration,
            "be finite and above 0",
        )?;
        let shares = checked(weights)?;
        Ok(Self {
            concentration,
            counts: vec![0; shares.len()],
            shares,
            before: 0.0,
        })
    }

    /// Adds newly assigned units per arm.
    ///
    /// # Errors
    /// [`BadSample`] unless there is a count per arm; nothing changes then.
    pub fn observe(&mut self, units: &[u64]) -> Result<(), BadSample> {
        if units.len() != self.counts.len() {
            return Err(BadSample::TooFew {
                needed: self.counts.len(),
                got: units.len(),
            });
        }
        for (sum, more) in self.counts.iter_mut().zip(units) {
            *sum = sum.saturating_add(*more);
        }
        Ok(())
    }

    /// Goes on with other weights; the evidence so far stays.
    ///
    /// # Errors
    /// [`BadSample`] for another number of weights, or weights that are not finite and above 0; nothing changes then.
    pub fn next_stage(&mut self, weights: &[f64]) -> Result<(), BadSample> {
        if weights.len() != self.counts.len() {
            return Err(BadSample::TooFew {
                needed: self.counts.len(),
                got: weights.len(),
            });
        }
        let shares = checked(weights)?;
        self.before = self.log_e();
        self.shares = shares;
        self.counts.fill(0);
        Ok(())
    }
}

impl EProcess for Mismatch {
    /// By Stirling's formula the log-gammas of the definition leave deviances of the counts from their expectation, which do not cancel.
    fn log_e(&self) -> f64 {
        let c = self.concentration;
        let total = c + self.counts.iter().map(|k| *k as f64).sum::<f64>();
        let mut log = 0.5 * libm::log(total / c) + stirling_error(c) - stirling_error(total);
        for (k, p) in self.counts.iter().zip(&self.shares) {
            let prior = c * p;
            let posterior = prior + *k as f64;
            log += deviance(posterior, total * p) - 0.5 * libm::log(posterior / prior)
                + stirling_error(posterior)
                - stirling_error(prior);
        }
        self.before + log
    }
}
