//! `AutoRatio`: the ratio of two rates when the arms' noise is unknown and may be correlated in time.
//!
//! A universal-inference likelihood ratio: under every noise level q = (s, phi) of a grid the log ratio of the arms carries latent Gaussian AR(1) noise of standard deviation s and
//! correlation phi from block to block. The numerator is a mixture over ratios above theta0 and noise levels, the denominator the greatest likelihood at theta0 over the
//! noise levels that the baseline's own history leaves plausible. So the evidence is as quick as [`crate::RateRatio`] on quiet arms and does not
//! take noise for harm on loud ones.
//!
//! Two ways to follow the latent noise. [`AutoRatio::new`] has it on eleven nodes, as published, for up to about a hundred events in a block: with more, a ratio between two nodes fits neither, and a
//! ratio above theta0 shifts them to where they fit (measured: 44 % false rollbacks with noise of .5, correlation .8 and a daily cycle that brings 300 events into a block). [`AutoRatio::continuous`], which live gates use,
//! follows its mean and variance, for any number (there: .5 %).
//!
//! Exact: the likelihood ratio given the noise model, and the set of plausible noise levels given the Kalman model (Ville's inequality at level alpha1, joined by the union bound).
//! Approximate: independence of the noise from a block's total count, Gaussian log counts, the grids, and that the candidate is as noisy as the history's groups. Noise that only the candidate has
//! is unknown to history: without memory, and of a usual spread, it keeps to the bound (measured: 4 %); noise in the candidate alone that lasts, half an hour say, is not told from harm (about 20 % at a spread of .5).

mod moments;
mod nodes;
mod noise;
mod tables;

use serde::{Deserialize, Serialize};

use self::moments::Moments;
use self::nodes::Nodes;
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

/// ln of the price at which a level that history excludes still counts, for continuous noise. History cannot know of noise that only the candidate has: usual spreads cost less, and most so where they have no
/// memory, which hides little harm.
fn ln_price(q: usize) -> f64 {
    let (spread, phi) = level(q);
    match (S.get(spread.wrapping_sub(1)), phi) {
        (Some(s), 0) if *s <= 0.5 => -3.0,
        (Some(s), _) if *s <= 0.5 => -4.0,
        _ => -5.3,
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
    latent: Latent,
    /// logN and N.
    numerator_before: f64,
    numerator: f64,
    log_e: f64,
    #[serde(skip)]
    past: Past,
}

/// How the latent noise is followed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Latent {
    Nodes(Nodes),
    Moments(Moments),
}

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
            latent: Latent::Nodes(Nodes::new()),
            numerator_before: 0.0,
            numerator: 0.0,
            log_e: 0.0,
            past: Past::default(),
        })
    }

    /// The same with noise that is followed by its mean and variance instead of on nodes: for any number of events in a block, and with a tenth of the state.
    ///
    /// # Errors
    /// As [`AutoRatio::new`].
    pub fn continuous(theta0: f64, history: History, alpha1: f64) -> Result<Self, BadSample> {
        let mut process = Self::new(theta0, history, alpha1)?;
        process.latent = Latent::Moments(Moments::new());
        Ok(process)
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
        if let Latent::Moments(latent) = &self.latent
            && latent.differs(self.ln_theta0, candidate, baseline)
        {
            self.close_segment();
        }
        let now = match &mut self.latent {
            Latent::Nodes(latent) => {
                latent.look(self.ln_theta0, candidate, baseline);
                latent.now()
            }
            Latent::Moments(latent) => {
                latent.look(self.ln_theta0, candidate, baseline);
                latent.now()
            }
        };
        let support = self.noise.support();
        let priors: [f64; LEVELS] = std::array::from_fn(|q| TABLES.ln_weights[q] + support[q]);
        let ratios = match self.latent {
            Latent::Nodes(_) => &TABLES.ln_ratio_weights,
            Latent::Moments(_) => &TABLES.ln_tilted_weights,
        };
        let mixture = |l: &[f64]| {
            let mut terms = [f64::NEG_INFINITY; (RATIOS - 1) * LEVELS];
            for (i, (term, l)) in terms.iter_mut().zip(&l[LEVELS..]).enumerate() {
                *term = ratios[i / LEVELS] + priors[i % LEVELS] + l;
            }
            log_sum_exp(&terms)
        };
        let closed = match &self.latent {
            Latent::Nodes(latent) => latent.likelihood(),
            Latent::Moments(latent) => latent.likelihood(),
        };
        let past = *self.past.0.get_or_insert_with(|| mixture(closed));
        self.numerator = self.numerator_before + mixture(&now) - past;
        let total = log_sum_exp(&priors);
        let ln_alpha1 = libm::log(self.alpha1);
        let prices: [f64; LEVELS] = match self.latent {
            Latent::Nodes(_) => [ln_alpha1; LEVELS],
            Latent::Moments(_) => std::array::from_fn(ln_price),
        };
        let mut denominator = f64::NEG_INFINITY;
        for ((now, lb), price) in now.iter().zip(support).zip(prices) {
            // A level that history excludes still counts, at a price.
            let plausible = total - lb < -ln_alpha1;
            denominator = denominator.max(if plausible { *now } else { now + price });
        }
        self.log_e = self.numerator - denominator;
    }

    fn close_block(&mut self) {
        self.close_segment();
        self.noise.learn(self.groups);
        self.groups = [Counts::default(); 2];
    }

    fn close_segment(&mut self) {
        match &mut self.latent {
            Latent::Nodes(latent) => latent.close(),
            Latent::Moments(latent) => latent.close(&self.noise),
        }
        self.numerator_before = self.numerator;
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
