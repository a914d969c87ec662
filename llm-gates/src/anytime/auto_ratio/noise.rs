//! What the baseline's own history says about the noise: a Kalman filter per noise level.

use serde::{Deserialize, Serialize};

use super::{History, LEVELS, PHI, S, level, ln_weight, sized};
use crate::Counts;
use crate::numbers::log_sum_exp;

/// Candidate noise relative to the history's groups: 1 means as noisy.
const KAPPA: f64 = 1.0;

/// Log-likelihoods of all levels, and the state of their filters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Noise {
    history: History,
    blocks: u64,
    #[serde(deserialize_with = "sized::<_, _, LEVELS>")]
    filters: Vec<Filter>,
    #[serde(deserialize_with = "sized::<_, _, LEVELS>")]
    support: Vec<f64>,
}

/// Level of the series and noise on top of it, with their covariance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Filter {
    mean: [f64; 2],
    /// P00, P01, P11.
    covariance: [f64; 3],
    outliers: u8,
}

impl Noise {
    pub(super) fn new(history: History) -> Self {
        let filter = Filter {
            mean: [0.0; 2],
            covariance: [0.0; 3],
            outliers: 0,
        };
        Self {
            history,
            blocks: 0,
            filters: vec![filter; LEVELS],
            support: vec![0.0; LEVELS],
        }
    }

    pub(super) const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// ln of the likelihood of each level relative to the greatest.
    pub(super) fn support(&self) -> &[f64] {
        &self.support
    }

    /// ln of the posterior weight of each level.
    pub(super) fn ln_posterior(&self) -> [f64; LEVELS] {
        let mut terms: [f64; LEVELS] = std::array::from_fn(|q| self.support[q] + ln_weight(q));
        let total = log_sum_exp(&terms);
        for term in &mut terms {
            *term -= total;
        }
        terms
    }

    /// Learns from a block, if it has enough events.
    pub(super) fn learn(&mut self, [one, two]: [Counts; 2]) {
        let (n1, k1, n2, k2) = (one.n as f64, one.k as f64, two.n as f64, two.k as f64);
        let (y, r, walk, outlier) = match self.history {
            History::Groups if k1 >= 1.0 && k2 >= 1.0 && k1 + k2 >= 5.0 => {
                let y = libm::log((k2 + 0.5) / n2) - libm::log((k1 + 0.5) / n1);
                (y, 1.0 / (k1 + 0.5) + 1.0 / (k2 + 0.5), 1e-6, 1e-12)
            }
            History::Pooled if k1 + k2 >= 5.0 => {
                let k = k1 + k2 + 0.5;
                (libm::log(k / (n1 + n2)), 1.0 / k, 2e-4, 0.02)
            }
            History::Groups | History::Pooled | History::Unknown => return,
        };
        let first = self.blocks == 0;
        self.blocks = self.blocks.saturating_add(1);
        for (q, (filter, support)) in self.filters.iter_mut().zip(&mut self.support).enumerate() {
            let (spread, phi) = level(q);
            let sd = if spread == 0 { 0.0 } else { S[spread - 1] };
            let v = match self.history {
                History::Groups => sd * sd / KAPPA,
                History::Pooled | History::Unknown => sd * sd / (1.0 + KAPPA),
            };
            if first {
                *filter = Filter {
                    mean: [y, 0.0],
                    covariance: [100.0, 0.0, v],
                    outliers: 0,
                };
            }
            let likelihood =
                filter.step(y, r, v, if q == 0 { 0.0 } else { PHI[phi] }, walk, outlier);
            if !first {
                *support += likelihood;
            }
        }
        let max = self
            .support
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max);
        self.support
            .iter_mut()
            .for_each(|s| *s = (*s - max).max(-1e300));
    }
}

impl Filter {
    /// Predicts, weighs and updates; returns the log-likelihood of y.
    fn step(&mut self, y: f64, r: f64, v: f64, phi: f64, walk: f64, outlier: f64) -> f64 {
        let [mut p00, mut p01, mut p11] = self.covariance;
        p00 += walk;
        self.mean[1] *= phi;
        p01 *= phi;
        p11 = phi * phi * p11 + v * (1.0 - phi * phi);
        let s = p00 + 2.0 * p01 + p11 + r;
        let innovation = y - self.mean[0] - self.mean[1];
        let square = innovation * innovation;
        let usual = libm::log1p(-outlier) - 0.5 * libm::log(s) - square / (2.0 * s);
        let odd = libm::log(outlier) - 0.5 * libm::log(s + 1.0) - square / (2.0 * (s + 1.0));
        if odd > usual {
            self.outliers = self.outliers.saturating_add(1);
            if self.outliers >= 4 {
                p00 += 1.0;
                self.outliers = 0;
            }
        } else {
            self.outliers = 0;
            let (k0, k1) = ((p00 + p01) / s, (p01 + p11) / s);
            self.mean[0] += k0 * innovation;
            self.mean[1] += k1 * innovation;
            p00 -= k0 * k0 * s;
            p01 -= k0 * k1 * s;
            p11 -= k1 * k1 * s;
        }
        self.covariance = [p00, p01, p11];
        log_sum_exp(&[usual, odd])
    }
}
