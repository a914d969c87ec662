//! The published recurrences: latent noise on eleven nodes.
//!
//! A node stands for 0.6 standard deviations of noise. That is fine as long as a block's counts tell the ratio of the arms no better than that, which is about a hundred events in a block: with
//! more, a ratio between two nodes fits neither, and a shifted grid fits better than an honest one.

use serde::{Deserialize, Serialize};

use super::tables::TABLES;
use super::{LEVELS, NODES, RATIOS, SPREADS, level, sized, stationary};
use crate::Counts;

/// Per ratio and spread: the greatest ln-likelihood of the block over the nodes, and the likelihoods relative to it.
type Block = [(f64, [f64; NODES]); RATIOS * SPREADS];

/// Latent node probabilities per ratio and level; L; G of the current block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Nodes {
    #[serde(deserialize_with = "sized::<_, _, { RATIOS * LEVELS }>")]
    latent: Vec<[f64; NODES]>,
    #[serde(deserialize_with = "sized::<_, _, { RATIOS * LEVELS }>")]
    likelihood: Vec<f64>,
    #[serde(deserialize_with = "sized::<_, _, { RATIOS * SPREADS }>")]
    gains: Vec<[f64; NODES]>,
}

impl Nodes {
    pub(super) fn new() -> Self {
        Self {
            latent: vec![stationary(); RATIOS * LEVELS],
            likelihood: vec![0.0; RATIOS * LEVELS],
            gains: vec![[0.0; NODES]; RATIOS * SPREADS],
        }
    }

    /// L of all closed blocks.
    pub(super) fn likelihood(&self) -> &[f64] {
        &self.likelihood
    }

    pub(super) fn look(&mut self, ln_theta0: f64, candidate: Counts, baseline: Counts) {
        let pi = candidate.n as f64 / (candidate.n as f64 + baseline.n as f64);
        let (k_c, k) = (candidate.k as f64, candidate.k as f64 + baseline.k as f64);
        let theta0 = libm::exp(ln_theta0);
        for (gains, points) in self.gains.iter_mut().zip(&TABLES.points) {
            let one = |(x, theta): (f64, f64)| {
                k_c * (ln_theta0 + x) - k * libm::log1p(pi * (theta0 * theta - 1.0))
            };
            if points.spread == 0 {
                // Without noise all nodes are one.
                let gain = one(points.nodes[0]);
                for g in gains.iter_mut() {
                    *g += gain;
                }
            } else {
                for (gain, point) in gains.iter_mut().zip(points.nodes) {
                    *gain += one(point);
                }
            }
        }
    }

    /// Likelihoods of the current block per ratio, spread and node, relative to the greatest over the nodes, and its ln.
    fn block_likelihoods(&self) -> Block {
        std::array::from_fn(|i| {
            if i % SPREADS == 0 {
                return (self.gains[i][0], [1.0; NODES]);
            }
            let max = self.gains[i]
                .iter()
                .copied()
                .fold(f64::NEG_INFINITY, f64::max);
            (max, self.gains[i].map(|g| libm::exp(g - max)))
        })
    }

    /// C: ln-likelihood of everything so far, per ratio and level.
    fn likelihood_in(&self, block: &Block) -> [f64; RATIOS * LEVELS] {
        std::array::from_fn(|i| {
            let (j, q) = (i / LEVELS, i % LEVELS);
            if q == 0 {
                return self.likelihood[i] + self.gains[j * SPREADS][0];
            }
            let (max, weights) = &block[j * SPREADS + level(q).0];
            let sum: f64 = self.latent[i].iter().zip(weights).map(|(a, w)| a * w).sum();
            // Nodes that matter may have no probability left: the likelihood is then nothing that a log can hold.
            self.likelihood[i] + max + libm::log(sum.max(f64::MIN_POSITIVE))
        })
    }

    /// C, up to now.
    pub(super) fn now(&self) -> [f64; RATIOS * LEVELS] {
        self.likelihood_in(&self.block_likelihoods())
    }

    pub(super) fn close(&mut self) {
        let block = self.block_likelihoods();
        let now = self.likelihood_in(&block);
        for (i, nodes) in self.latent.iter_mut().enumerate() {
            let (j, q) = (i / LEVELS, i % LEVELS);
            if q == 0 {
                continue;
            }
            let (spread, phi) = level(q);
            if phi == 0 {
                // Noise without memory is fresh in every block.
                *nodes = TABLES.stationary;
                continue;
            }
            let (_, relative) = &block[j * SPREADS + spread];
            let weights: [f64; NODES] = std::array::from_fn(|n| nodes[n] * relative[n]);
            let sum: f64 = weights.iter().sum();
            if sum <= 0.0 {
                *nodes = TABLES.stationary;
                continue;
            }
            let mut next = [0.0; NODES];
            for (weight, row) in weights.iter().zip(&TABLES.transitions[phi]) {
                for (to, share) in next.iter_mut().zip(row) {
                    *to += weight / sum * share;
                }
            }
            *nodes = next;
        }
        self.likelihood.copy_from_slice(&now);
        self.gains.fill([0.0; NODES]);
    }
}
