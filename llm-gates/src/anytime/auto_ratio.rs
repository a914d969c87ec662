//! `AutoRatio`: the ratio of two rates when the arms' noise is unknown and may be correlated in time.
//!
//! A universal-inference likelihood ratio: under every noise level q = (s, phi) of a grid the log ratio of the arms carries latent Gaussian AR(1) noise of standard deviation s and
//! correlation phi from block to block. The numerator is a mixture over ratios above theta0 and noise levels, the denominator the greatest likelihood at theta0 over the
//! noise levels that the baseline's own history leaves plausible. So the evidence is as quick as [`crate::RateRatio`] on quiet arms and does not
//! take noise for harm on loud ones.
//!
//! Exact: the likelihood ratio given the noise model, and the set of plausible noise levels given the Kalman model (Ville's inequality at level alpha1, joined by the union bound).
//! Approximate: independence of the noise from a block's total count, Gaussian log counts, the grids, and that the candidate is as noisy as the history's groups.
//! Measured: noise in the candidate only, or noise and drift together, can double the stated error.

mod noise;
mod tables;

use serde::{Deserialize, Serialize};

use self::noise::Noise;
use self::tables::TABLES;
use super::EProcess;
use crate::fixed::{BadSample, open_unit, parameter};
use crate::numbers::log_sum_exp;
use crate::special::normal;
use crate::{BadCounts, Counts};

/// Standard deviations and correlations of the noise grid, in this order after (0, 0).
const S: [f64; 6] = [0.1, 0.2, 0.3, 0.5, 0.8, 1.2];
const PHI: [f64; 4] = [0.0, 0.6, 0.9, 0.97];
/// (0, 0) and S x PHI.
const LEVELS: usize = 25;
/// Nodes of the latent noise: -3, -2.4, ..., 3 standard deviations.
const NODES: usize = 11;
/// theta0 and the seven ratios of [`Grid::Rr7`].
const RATIOS: usize = 8;
/// Distinct standard deviations: 0 and S.
const SPREADS: usize = 7;

/// What the history of the baseline's noise looks like.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum History {
    /// Two groups of the baseline's replicas, kept apart: what they share cancels.
    #[default]
    Groups,
    /// The pooled baseline only: its own drift has to be told from noise.
    Pooled,
    /// Nothing is learnt: every noise level stays plausible. Valid, and slow.
    Unknown,
}

/// Spread and correlation of a noise level.
const fn level(q: usize) -> (usize, usize) {
    if q == 0 {
        (0, 0)
    } else {
        (1 + (q - 1) / PHI.len(), (q - 1) % PHI.len())
    }
}

fn node(n: usize) -> f64 {
    -3.0 + 0.6 * n as f64
}

/// Prior weight of a noise level.
fn ln_weight(q: usize) -> f64 {
    if q == 0 {
        -std::f64::consts::LN_2
    } else {
        libm::log(0.5 / (LEVELS - 1) as f64)
    }
}

/// Standard normal weights of the nodes.
pub(super) fn stationary() -> [f64; NODES] {
    let mut g: [f64; NODES] = std::array::from_fn(|n| libm::exp(-0.5 * node(n) * node(n)));
    let sum: f64 = g.iter().sum();
    for w in &mut g {
        *w /= sum;
    }
    g
}

/// Where the noise goes in one block from node i.
fn transition(phi: f64, i: usize) -> [f64; NODES] {
    if phi <= 0.0 {
        return stationary();
    }
    let sd = libm::sqrt(1.0 - phi * phi);
    std::array::from_fn(|k| {
        let at = |edge: f64| normal::cdf((node(k) + edge - phi * node(i)) / sd);
        let low = if k == 0 { 0.0 } else { at(-0.3) };
        let high = if k + 1 == NODES { 1.0 } else { at(0.3) };
        high - low
    })
}

/// Log-likelihood of a candidate's events among those of both arms, at the log ratio x.
fn ln_likelihood(x: f64, pi: f64, k_c: f64, k: f64) -> f64 {
    k_c * x - k * libm::log1p(pi * libm::expm1(x))
}

/// Evidence that the candidate's rate exceeds theta0 times the baseline's, with noise that the baseline's history shows. Reject at [`AutoRatio::bound`].
///
/// Feed history before the ramp with [`AutoRatio::learn`] (3 days are recommended; without any it is valid but slow), then looks with [`AutoRatio::observe`], which allocate nothing. State is about
/// 3,000 numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AutoRatio {
    ln_theta0: f64,
    alpha1: f64,
    noise: Noise,
    /// Index of the current block, and its counts per baseline group.
    block: Option<u64>,
    groups: [Counts; 2],
    /// Latent node probabilities per ratio and level; L; G of the current block; logN and N.
    #[serde(deserialize_with = "sized::<_, _, { RATIOS * LEVELS }>")]
    nodes: Vec<[f64; NODES]>,
    #[serde(deserialize_with = "sized::<_, _, { RATIOS * LEVELS }>")]
    likelihood: Vec<f64>,
    #[serde(deserialize_with = "sized::<_, _, { RATIOS * SPREADS }>")]
    gains: Vec<[f64; NODES]>,
    numerator_before: f64,
    numerator: f64,
    log_e: f64,
    #[serde(skip)]
    past: Past,
}

/// Per ratio and spread: the greatest ln-likelihood of the block over the nodes, and the likelihoods relative to it.
type Block = [(f64, [f64; NODES]); RATIOS * SPREADS];

/// The mixture's ln-likelihood of all closed blocks, kept within a block: what can be computed anew is no part of the state.
#[derive(Debug, Clone, Copy, Default)]
struct Past(Option<f64>);

impl PartialEq for Past {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// A saved list of exactly N entries: state that was tampered with is refused rather than indexed.
fn sized<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>, const N: usize>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let list = Vec::deserialize(deserializer)?;
    if list.len() == N {
        Ok(list)
    } else {
        Err(serde::de::Error::invalid_length(
            list.len(),
            &"the entries of its grid",
        ))
    }
}

impl AutoRatio {
    /// Against "the candidate's rate is at most theta0 times the baseline's". `alpha1` is the part of the error spent on excluding noise levels, a tenth of the whole by custom.
    ///
    /// # Errors
    /// [`BadSample`] for theta0 outside [0.001, 1000] or alpha1 outside (0, 1).
    pub fn new(theta0: f64, history: History, alpha1: f64) -> Result<Self, BadSample> {
        parameter(
            (1e-3..=1e3).contains(&theta0),
            "theta0",
            theta0,
            "lie between 0.001 and 1000",
        )?;
        open_unit("alpha1", alpha1)?;
        Ok(Self {
            ln_theta0: libm::log(theta0),
            alpha1,
            noise: Noise::new(history),
            block: None,
            groups: [Counts::default(); 2],
            nodes: vec![stationary(); RATIOS * LEVELS],
            likelihood: vec![0.0; RATIOS * LEVELS],
            gains: vec![[0.0; NODES]; RATIOS * SPREADS],
            numerator_before: 0.0,
            numerator: 0.0,
            log_e: 0.0,
            past: Past::default(),
        })
    }

    /// Tests another ratio from the next look on; see [`crate::RateRatio::set_theta0`].
    ///
    /// # Errors
    /// [`BadSample`] outside [0.001, 1000]; nothing changes then.
    pub fn set_theta0(&mut self, theta0: f64) -> Result<(), BadSample> {
        parameter(
            (1e-3..=1e3).contains(&theta0),
            "theta0",
            theta0,
            "lie between 0.001 and 1000",
        )?;
        self.ln_theta0 = libm::log(theta0);
        Ok(())
    }

    /// The latent noise's distribution over its 11 nodes, -3 to 3 standard deviations.
    pub fn stationary_nodes() -> [f64; 11] {
        stationary()
    }

    /// Where the latent noise of correlation `phi` in [0, 1) goes in one block from a node, 0 to 10.
    ///
    /// # Errors
    /// [`BadSample`] for phi or a node out of range.
    pub fn transition_from(phi: f64, node: usize) -> Result<[f64; 11], BadSample> {
        parameter(
            (0.0..1.0).contains(&phi),
            "phi",
            phi,
            "be at least 0 and below 1",
        )?;
        parameter(node < NODES, "node", node as f64, "lie between 0 and 10")?;
        Ok(transition(phi, node))
    }

    /// ln-likelihood, up to a constant, of one block at the ratio `theta` with noise of standard deviation `s`, from fresh noise.
    ///
    /// # Errors
    /// [`BadSample`] for k > n, an empty arm, a ratio that is not above 0 or a negative deviation.
    pub fn block_log_likelihood(
        theta: f64,
        s: f64,
        candidate: Counts,
        baseline: Counts,
    ) -> Result<f64, BadSample> {
        parameter(
            theta > 0.0 && theta.is_finite(),
            "theta",
            theta,
            "be finite and above 0",
        )?;
        parameter(
            s >= 0.0 && s.is_finite(),
            "s",
            s,
            "be finite and not negative",
        )?;
        candidate.check()?;
        baseline.check()?;
        if candidate.n == 0 || baseline.n == 0 {
            return Err(BadSample::TooFew { needed: 1, got: 0 });
        }
        let pi = candidate.n as f64 / (candidate.n as f64 + baseline.n as f64);
        let (k_c, k) = (candidate.k as f64, candidate.k as f64 + baseline.k as f64);
        let terms: [f64; NODES] = std::array::from_fn(|n| {
            ln_likelihood(libm::log(theta) + s * node(n), pi, k_c, k) + libm::log(stationary()[n])
        });
        Ok(log_sum_exp(&terms))
    }

    /// ln(1 / (alpha - alpha1)): reject at level `alpha` where the evidence is at least this.
    pub fn bound(&self, alpha: f64) -> f64 {
        -libm::log((alpha - self.alpha1).max(0.0))
    }

    /// Part of the error spent on excluding noise levels.
    pub const fn alpha1(&self) -> f64 {
        self.alpha1
    }

    /// How many blocks of history have said something about the noise.
    pub const fn blocks_learnt(&self) -> u64 {
        self.noise.blocks()
    }

    /// ln of the posterior weights of the noise levels, and which of them are plausible.
    pub fn noise_levels(&self) -> Vec<NoiseLevel> {
        let support = self.noise.support();
        let posterior: Vec<_> = support
            .iter()
            .enumerate()
            .map(|(q, lb)| lb + ln_weight(q))
            .collect();
        let total = log_sum_exp(&posterior);
        let describe = |q: usize| {
            let (spread, phi) = level(q);
            NoiseLevel {
                sd: if spread == 0 { 0.0 } else { S[spread - 1] },
                correlation: if q == 0 { 0.0 } else { PHI[phi] },
                log_weight: posterior[q] - total,
                plausible: total - support[q] < -libm::log(self.alpha1),
            }
        };
        (0..LEVELS).map(describe).collect()
    }

    /// Whether history leaves no noise level plausible but none at all: then [`crate::RateRatio`] holds too, at the price of alpha1, and so do its late starts. False without history.
    pub fn is_quiet(&self) -> bool {
        self.noise_levels()
            .iter()
            .all(|level| level.sd <= 0.0 || !level.plausible)
    }

    /// Learns from one block (5 minutes by custom) of the baseline alone, before the ramp.
    ///
    /// # Errors
    /// [`BadCounts`] for k > n; nothing changes then.
    pub fn learn(&mut self, groups: [Counts; 2]) -> Result<(), BadCounts> {
        groups[0].check()?;
        groups[1].check()?;
        self.noise.learn(groups);
        self.past = Past(None);
        Ok(())
    }

    /// Adds new counts of the candidate and of both groups of the baseline (all in the first where there is but one), in the block with this index; indices must not fall. A look
    /// without candidate, baseline or events adds no evidence.
    ///
    /// # Errors
    /// [`BadCounts`] for k > n or sums beyond 64 bits; nothing changes then.
    pub fn observe(
        &mut self,
        block: u64,
        candidate: Counts,
        groups: [Counts; 2],
    ) -> Result<(), BadCounts> {
        candidate.check()?;
        groups[0].check()?;
        groups[1].check()?;
        let baseline = groups[0].plus(groups[1])?;
        candidate.plus(baseline)?;
        let fresh = self.block.is_some_and(|b| b != block);
        let before = if fresh {
            [Counts::default(); 2]
        } else {
            self.groups
        };
        let sums = [before[0].plus(groups[0])?, before[1].plus(groups[1])?];
        if fresh {
            self.close_block();
        }
        self.block = Some(block);
        self.groups = sums;
        if candidate.n > 0 && baseline.n > 0 && candidate.k + baseline.k > 0 {
            self.look(candidate, baseline);
        }
        Ok(())
    }

    fn look(&mut self, candidate: Counts, baseline: Counts) {
        let pi = candidate.n as f64 / (candidate.n as f64 + baseline.n as f64);
        let (k_c, k) = (candidate.k as f64, candidate.k as f64 + baseline.k as f64);
        let theta0 = libm::exp(self.ln_theta0);
        for (gains, points) in self.gains.iter_mut().zip(&TABLES.points) {
            let one = |(x, theta): (f64, f64)| {
                k_c * (self.ln_theta0 + x) - k * libm::log1p(pi * (theta0 * theta - 1.0))
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
        let now = self.likelihood_now(&self.block_likelihoods());
        let support = self.noise.support();
        let priors: [f64; LEVELS] = std::array::from_fn(|q| TABLES.ln_weights[q] + support[q]);
        let mixture = |l: &[f64]| {
            let mut terms = [f64::NEG_INFINITY; (RATIOS - 1) * LEVELS];
            for (i, (term, l)) in terms.iter_mut().zip(&l[LEVELS..]).enumerate() {
                *term = TABLES.ln_ratio_weights[i / LEVELS] + priors[i % LEVELS] + l;
            }
            log_sum_exp(&terms)
        };
        let past = *self.past.0.get_or_insert_with(|| mixture(&self.likelihood));
        self.numerator = self.numerator_before + mixture(&now) - past;
        let total = log_sum_exp(&priors);
        let ln_alpha1 = libm::log(self.alpha1);
        let mut denominator = f64::NEG_INFINITY;
        for (now, lb) in now.iter().zip(support) {
            // A level that history excludes still counts, at the price zeta = alpha1.
            let plausible = total - lb < -ln_alpha1;
            denominator = denominator.max(if plausible { *now } else { now + ln_alpha1 });
        }
        self.log_e = self.numerator - denominator;
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
    fn likelihood_now(&self, block: &Block) -> [f64; RATIOS * LEVELS] {
        std::array::from_fn(|i| {
            let (j, q) = (i / LEVELS, i % LEVELS);
            if q == 0 {
                return self.likelihood[i] + self.gains[j * SPREADS][0];
            }
            let (max, weights) = &block[j * SPREADS + level(q).0];
            let sum: f64 = self.nodes[i].iter().zip(weights).map(|(a, w)| a * w).sum();
            // Nodes that matter may have no probability left: the likelihood is then nothing that a log can hold.
            self.likelihood[i] + max + libm::log(sum.max(f64::MIN_POSITIVE))
        })
    }

    fn close_block(&mut self) {
        let block = self.block_likelihoods();
        let now = self.likelihood_now(&block);
        for (i, nodes) in self.nodes.iter_mut().enumerate() {
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
        self.numerator_before = self.numerator;
        self.likelihood.copy_from_slice(&now);
        self.gains.fill([0.0; NODES]);
        self.noise.learn(self.groups);
        self.groups = [Counts::default(); 2];
        self.past = Past(None);
    }
}

impl EProcess for AutoRatio {
    /// ln of the ratio of likelihoods. [`EProcess::rejects`] and [`EProcess::p`] do not know of alpha1: compare with [`AutoRatio::bound`].
    fn log_e(&self) -> f64 {
        self.log_e
    }

    fn rejects(&self, alpha: f64) -> bool {
        self.log_e >= self.bound(alpha)
    }

    fn p(&self) -> f64 {
        (libm::exp(-self.log_e) + self.alpha1).min(1.0)
    }
}

/// A noise level, and what history says about it.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NoiseLevel {
    /// Standard deviation of the arms' log ratio per block.
    pub sd: f64,
    /// Its correlation from block to block.
    pub correlation: f64,
    /// ln of its posterior weight.
    pub log_weight: f64,
    /// Whether history leaves it plausible.
    pub plausible: bool,
}
