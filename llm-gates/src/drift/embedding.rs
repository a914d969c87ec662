//! Embeddings: the maximum mean discrepancy (Gretton et al. 2012), exactly and with random features, and a test that is valid at every look.

use serde::{Deserialize, Serialize};

use crate::anytime::EProcess;
use crate::fixed::{BadSample, parameter};

/// Greatest number of pairs that [`mmd_rbf`] takes.
const PAIRS: usize = 100_000_000;

fn rectangular(x: &[Vec<f64>], dimension: usize) -> Result<(), BadSample> {
    for row in x {
        if row.len() != dimension {
            return Err(BadSample::TooFew {
                needed: dimension,
                got: row.len(),
            });
        }
        if let Some(index) = row.iter().position(|v| !v.is_finite()) {
            return Err(BadSample::NotFinite {
                index,
                value: row[index],
            });
        }
    }
    Ok(())
}

/// Squared maximum mean discrepancy with the kernel exp(-gamma |x - y|^2): (unbiased, biased). Quadratic in the number of rows.
///
/// # Errors
/// [`BadSample`] for fewer than two rows, rows of unequal length, values that are not finite, or a gamma not above 0.
pub fn mmd_rbf(x: &[Vec<f64>], y: &[Vec<f64>], gamma: f64) -> Result<(f64, f64), BadSample> {
    if x.len() < 2 || y.len() < 2 {
        return Err(BadSample::TooFew {
            needed: 2,
            got: x.len().min(y.len()),
        });
    }
    let pairs = (x.len() + y.len()).saturating_mul(x.len() + y.len());
    if pairs > PAIRS {
        return Err(BadSample::TooMany {
            limit: PAIRS,
            got: pairs,
        });
    }
    parameter(
        gamma > 0.0 && gamma.is_finite(),
        "gamma",
        gamma,
        "be finite and above 0",
    )?;
    rectangular(x, x[0].len())?;
    rectangular(y, x[0].len())?;
    let kernel = |a: &[f64], b: &[f64]| {
        libm::exp(-gamma * a.iter().zip(b).map(|(p, q)| (p - q) * (p - q)).sum::<f64>())
    };
    let sum = |a: &[Vec<f64>], b: &[Vec<f64>]| {
        a.iter()
            .map(|p| b.iter().map(|q| kernel(p, q)).sum::<f64>())
            .sum::<f64>()
    };
    let (m, n) = (x.len() as f64, y.len() as f64);
    let (xx, yy, xy) = (sum(x, x), sum(y, y), sum(x, y));
    let biased = xx / (m * m) + yy / (n * n) - 2.0 * xy / (m * n);
    let unbiased = (xx - m) / (m * (m - 1.0)) + (yy - n) / (n * (n - 1.0)) - 2.0 * xy / (m * n);
    Ok((unbiased, biased))
}

/// Random Fourier features (Rahimi and Recht 2007) of the kernel exp(-gamma |x - y|^2): a fixed map, drawn from a seed, under which mean discrepancies are differences of means. Saved as its
/// parameters and drawn again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Drawn", into = "Drawn")]
pub struct RandomFeatures {
    drawn: Drawn,
    dimension: usize,
    /// Frequencies, `features` rows of `dimension`, and phases.
    frequencies: Vec<f64>,
    phases: Vec<f64>,
}

/// What a map is drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Drawn {
    dimension: usize,
    features: usize,
    gamma: f64,
    seed: u64,
}

impl TryFrom<Drawn> for RandomFeatures {
    type Error = BadSample;

    fn try_from(d: Drawn) -> Result<Self, BadSample> {
        Self::new(d.dimension, d.features, d.gamma, d.seed)
    }
}

impl From<RandomFeatures> for Drawn {
    fn from(features: RandomFeatures) -> Self {
        features.drawn
    }
}

/// Splitmix64 (Steele, Lea and Flood 2014).
fn next(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / 9_007_199_254_740_992.0
}

impl RandomFeatures {
    /// A map of vectors of this dimension (1 to 65,536) to `features` (1 to 4,096) numbers in [-1, 1].
    ///
    /// # Errors
    /// [`BadSample`] for sizes or a gamma out of range.
    pub fn new(
        dimension: usize,
        features: usize,
        gamma: f64,
        seed: u64,
    ) -> Result<Self, BadSample> {
        parameter(
            (1..=65_536).contains(&dimension),
            "dimension",
            dimension as f64,
            "lie between 1 and 65,536",
        )?;
        parameter(
            (1..=4_096).contains(&features),
            "features",
            features as f64,
            "lie between 1 and 4,096",
        )?;
        parameter(
            gamma > 0.0 && gamma.is_finite(),
            "gamma",
            gamma,
            "be finite and above 0",
        )?;
        let mut state = seed;
        let scale = libm::sqrt(2.0 * gamma);
        let mut normal = || scale * crate::special::normal::quantile(next(&mut state).max(1e-300));
        let frequencies = (0..dimension * features).map(|_| normal()).collect();
        let phases = (0..features)
            .map(|_| std::f64::consts::TAU * next(&mut state))
            .collect();
        Ok(Self {
            drawn: Drawn {
                dimension,
                features,
                gamma,
                seed,
            },
            dimension,
            frequencies,
            phases,
        })
    }

    /// The features of a vector.
    ///
    /// # Errors
    /// [`BadSample`] for another dimension or values that are not finite.
    pub fn map(&self, x: &[f64]) -> Result<Vec<f64>, BadSample> {
        self.check(x)?;
        Ok(self.features(x).collect())
    }

    fn check(&self, x: &[f64]) -> Result<(), BadSample> {
        if x.len() != self.dimension {
            return Err(BadSample::TooFew {
                needed: self.dimension,
                got: x.len(),
            });
        }
        crate::fixed::finite(x, self.dimension)
    }

    fn features(&self, x: &[f64]) -> impl Iterator<Item = f64> {
        let project = move |row: &[f64]| row.iter().zip(x).map(|(w, v)| w * v).sum::<f64>();
        self.frequencies
            .chunks_exact(self.dimension)
            .zip(&self.phases)
            .map(move |(row, phase)| libm::cos(project(row) + phase))
    }
}

/// Bets on the payoff difference of a block.
const BETS: [f64; 4] = [0.05, 0.1, 0.2, 0.4];

/// Evidence, valid at every look, that the arms' embeddings differ (sequential two-sample testing by betting, Shekhar and Ramdas 2023): the payoff of a vector is the tanh of its
/// projection on the mean difference of the features seen *before* its block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingDrift {
    features: RandomFeatures,
    /// Sums of features and counts: candidate, baseline.
    sums: [Vec<f64>; 2],
    counts: [u64; 2],
    logs: [f64; 4],
    /// Room for the mean difference of the features, no part of the state.
    #[serde(skip)]
    room: Room,
}

#[derive(Debug, Clone, Default)]
struct Room(Vec<f64>);

impl PartialEq for Room {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl EmbeddingDrift {
    /// No evidence yet.
    pub fn new(features: RandomFeatures) -> Self {
        let zero = vec![0.0; features.phases.len()];
        Self {
            features,
            sums: [zero.clone(), zero],
            counts: [0; 2],
            logs: [-libm::log(BETS.len() as f64); 4],
            room: Room::default(),
        }
    }

    /// Adds a block of vectors of both arms; one with an empty arm adds no evidence.
    ///
    /// # Errors
    /// [`BadSample`] for vectors of another dimension or values that are not finite; nothing changes then.
    pub fn observe(
        &mut self,
        candidate: &[Vec<f64>],
        baseline: &[Vec<f64>],
    ) -> Result<(), BadSample> {
        for x in candidate.iter().chain(baseline) {
            self.features.check(x)?;
        }
        let arms = [candidate, baseline];
        let bets = self.counts.iter().all(|n| *n > 0) && arms.iter().all(|arm| !arm.is_empty());
        let [n_c, n_b] = self.counts.map(|n| n as f64);
        let weights = &mut self.room.0;
        weights.clear();
        weights.extend(
            self.sums[0]
                .iter()
                .zip(&self.sums[1])
                .map(|(c, b)| c / n_c - b / n_b),
        );
        let norm = libm::sqrt(weights.iter().map(|w| w * w).sum::<f64>()).max(1e-12);
        let mut means = [0.0; 2];
        for (i, arm) in arms.into_iter().enumerate() {
            for x in arm {
                let mut projected = 0.0;
                let to = self.sums[i].iter_mut().zip(weights.iter());
                for ((sum, weight), feature) in to.zip(self.features.features(x)) {
                    projected += feature * weight;
                    *sum += feature;
                }
                means[i] += libm::tanh(projected / norm) / arm.len() as f64;
            }
            self.counts[i] = self.counts[i].saturating_add(arm.len() as u64);
        }
        if bets {
            // In [-1, 1], with mean 0 where the arms have the same distribution.
            let d = 0.5 * (means[0] - means[1]);
            for (log, bet) in self.logs.iter_mut().zip(BETS) {
                *log += libm::log1p(bet * d);
            }
        }
        Ok(())
    }
}

impl EProcess for EmbeddingDrift {
    fn log_e(&self) -> f64 {
        crate::numbers::log_sum_exp(&self.logs)
    }
}
