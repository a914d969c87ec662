//! Latent noise by its mean and variance: for any number of events in a block.
//!
//! Given its past the noise of a block is taken for Gaussian; the integral of the block's likelihood over it, and its mean and variance after the block, come from adaptive Gauss-Hermite quadrature
//! (Liu and Pierce 1994) about the mode, which is found by Newton's method on a concave function.

use serde::{Deserialize, Serialize};

use super::noise::Noise;
use super::{LEVELS, PHI, RATIOS, S, level, sized};
use crate::{Counts, Grid};

/// Positive abscissas and weights of Gauss-Hermite quadrature for the standard normal density, five points.
const OUTER: [(f64, f64); 2] = [
    (1.355_626_179_974_266, 0.222_075_922_005_612_6),
    (2.856_970_013_872_806, 0.011_257_411_327_720_69),
];
const MIDDLE: f64 = 0.533_333_333_333_333_3;

/// ln of the likelihood of a level that has been given up.
const GONE: f64 = -1e300;
/// ln of the share below which it is: of the numerator's mixture, where any choice made before the data is fair; of the greatest likelihood in the denominator, which the truth falls below once in e^60.
const NEGLIGIBLE: f64 = -60.0;

/// Mean and variance of the noise before the current segment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Latent {
    mean: f64,
    variance: f64,
}

/// One per ratio and level.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Moments {
    #[serde(deserialize_with = "sized::<_, _, { RATIOS * LEVELS }>")]
    latent: Vec<Latent>,
    #[serde(deserialize_with = "sized::<_, _, { RATIOS * LEVELS }>")]
    likelihood: Vec<f64>,
    /// Without noise, look by look: exact also where shares change.
    quiet: [f64; RATIOS],
    ln_theta0: f64,
    candidate: Counts,
    baseline: Counts,
}

/// ln of each ratio, theta0 itself first.
fn ln_ratios() -> [f64; RATIOS] {
    let mut ln = [0.0; RATIOS];
    for (x, known) in ln.iter_mut().skip(1).zip(Grid::Rr7.ln_thetas()) {
        *x = known;
    }
    ln
}

fn spread(q: usize) -> (f64, f64) {
    let (spread, phi) = level(q);
    if spread == 0 {
        (0.0, 0.0)
    } else {
        (S[spread - 1], PHI[phi])
    }
}

/// A segment's counts as a function of the log ratio.
#[derive(Debug, Clone, Copy)]
struct Segment {
    k_c: f64,
    k: f64,
    pi: f64,
}

impl Segment {
    fn of(candidate: Counts, baseline: Counts) -> Self {
        let k_c = candidate.k as f64;
        Self {
            k_c,
            k: k_c + baseline.k as f64,
            pi: candidate.n as f64 / (candidate.n as f64 + baseline.n as f64),
        }
    }

    fn ln_likelihood(&self, x: f64) -> f64 {
        self.k_c * x - self.k * libm::log(1.0 - self.pi + self.pi * libm::exp(x))
    }

    /// ln of the mean likelihood at `x` with the noise on top, and the noise after it.
    fn integrate(&self, x: f64, prior: Latent) -> (f64, Latent) {
        let Latent { mean, variance } = prior;
        let precision = 1.0 / variance;
        let slope = |e: f64| {
            let odds = self.pi * libm::exp(x + e);
            let share = odds / (1.0 - self.pi + odds);
            (
                self.k_c - self.k * share - (e - mean) * precision,
                self.k * share * (1.0 - share) + precision,
            )
        };
        // From what the counts alone say, half an event added to each side.
        let data =
            libm::log((self.k_c + 0.5) * (1.0 - self.pi) / ((self.k - self.k_c + 0.5) * self.pi));
        let information = (self.k_c + 0.5) * (self.k - self.k_c + 0.5) / (self.k + 1.0);
        let mut mode = (information * (data - x) + precision * mean) / (information + precision);
        let mut curvature = precision;
        for _ in 0..8 {
            let (gradient, bend) = slope(mode);
            curvature = bend;
            let step = (gradient / bend).clamp(-2.0, 2.0);
            mode += step;
            if step * step * bend < 1e-4 {
                break;
            }
        }
        let sd = 1.0 / libm::sqrt(curvature);
        let height = |e: f64| self.ln_likelihood(x + e) - 0.5 * (e - mean) * (e - mean) * precision;
        let peak = height(mode);
        let (mut sum, mut first, mut second) = (MIDDLE, 0.0, 0.0);
        for (u, weight) in OUTER {
            let up = weight * libm::exp(0.5 * u * u + height(mode + sd * u) - peak);
            let down = weight * libm::exp(0.5 * u * u + height(mode - sd * u) - peak);
            sum += up + down;
            first += (up - down) * u;
            second += (up + down) * u * u;
        }
        let (first, second) = (first / sum, second / sum);
        let after = Latent {
            mean: mode + sd * first,
            variance: (sd * sd * (second - first * first)).max(1e-12),
        };
        (peak + libm::log(sum * sd * libm::sqrt(precision)), after)
    }
}

impl Moments {
    pub(super) fn new() -> Self {
        let fresh = |i: usize| {
            let (s, _) = spread(i % LEVELS);
            Latent {
                mean: 0.0,
                variance: s * s,
            }
        };
        Self {
            latent: (0..RATIOS * LEVELS).map(fresh).collect(),
            likelihood: vec![0.0; RATIOS * LEVELS],
            quiet: [0.0; RATIOS],
            ln_theta0: 0.0,
            candidate: Counts::default(),
            baseline: Counts::default(),
        }
    }

    pub(super) fn likelihood(&self) -> &[f64] {
        &self.likelihood
    }

    /// Whether a look cannot be pooled with the looks before it: another null hypothesis, or another share.
    pub(super) fn differs(&self, ln_theta0: f64, candidate: Counts, baseline: Counts) -> bool {
        if self.candidate.n == 0 || self.baseline.n == 0 {
            return false;
        }
        let before = Segment::of(self.candidate, self.baseline).pi;
        let n = candidate.n as f64 + baseline.n as f64;
        let off = candidate.n as f64 - n * before;
        (ln_theta0 - self.ln_theta0).abs() > 1e-12
            || off * off > 50.0 * (n * before * (1.0 - before) + 1.0)
    }

    pub(super) fn look(&mut self, ln_theta0: f64, candidate: Counts, baseline: Counts) {
        self.ln_theta0 = ln_theta0;
        let look = Segment::of(candidate, baseline);
        for (quiet, ln) in self.quiet.iter_mut().zip(ln_ratios()) {
            *quiet += look.ln_likelihood(ln_theta0 + ln);
        }
        // Sums that would overflow were refused before.
        if let (Ok(c), Ok(b)) = (self.candidate.plus(candidate), self.baseline.plus(baseline)) {
            (self.candidate, self.baseline) = (c, b);
        }
    }

    pub(super) fn now(&self) -> [f64; RATIOS * LEVELS] {
        let segment = Segment::of(self.candidate, self.baseline);
        let ln = ln_ratios();
        std::array::from_fn(|i| {
            let (j, q) = (i / LEVELS, i % LEVELS);
            let before = self.likelihood[i];
            if before <= GONE {
                GONE
            } else if q == 0 {
                before + self.quiet[j]
            } else {
                before + segment.integrate(self.ln_theta0 + ln[j], self.latent[i]).0
            }
        })
    }

    /// Closes a segment: the noise moves on, and what no longer matters is given up.
    pub(super) fn close(&mut self, noise: &Noise) {
        let ln = ln_ratios();
        let empty = self.candidate.n == 0 || self.baseline.n == 0;
        let segment = Segment::of(self.candidate, self.baseline);
        for (i, latent) in self.latent.iter_mut().enumerate() {
            let (j, q) = (i / LEVELS, i % LEVELS);
            let likelihood = &mut self.likelihood[i];
            if *likelihood <= GONE {
                continue;
            }
            if q == 0 {
                *likelihood += self.quiet[j];
                continue;
            }
            if !empty {
                let (gain, after) = segment.integrate(self.ln_theta0 + ln[j], *latent);
                *likelihood += gain;
                *latent = after;
            }
            let (s, phi) = spread(q);
            latent.mean *= phi;
            latent.variance = phi * phi * latent.variance + s * s * (1.0 - phi * phi);
        }
        self.quiet = [0.0; RATIOS];
        self.candidate = Counts::default();
        self.baseline = Counts::default();
        self.give_up(&noise.ln_posterior());
    }

    fn give_up(&mut self, levels: &[f64; LEVELS]) {
        let (null, harm) = self.likelihood.split_at_mut(LEVELS);
        let greatest = |list: &mut dyn Iterator<Item = f64>| list.fold(f64::NEG_INFINITY, f64::max);
        let best = greatest(&mut null.iter().copied());
        for likelihood in null {
            if *likelihood < best + NEGLIGIBLE {
                *likelihood = GONE;
            }
        }
        let share = |i: usize, likelihood: f64| levels[i % LEVELS] + likelihood;
        let best = greatest(&mut harm.iter().enumerate().map(|(i, l)| share(i, *l)));
        for (i, likelihood) in harm.iter_mut().enumerate() {
            if share(i, *likelihood) < best + NEGLIGIBLE {
                *likelihood = GONE;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same integral and moments by summing over 40,001 points.
    fn summed(segment: Segment, x: f64, prior: Latent) -> (f64, Latent) {
        let sd = prior.variance.sqrt();
        let points: Vec<(f64, f64)> = (-20_000..=20_000)
            .map(|i| {
                let e = prior.mean + sd * f64::from(i) / 2_000.0;
                let z = (e - prior.mean) / sd;
                (e, segment.ln_likelihood(x + e) - 0.5 * z * z)
            })
            .collect();
        let top = points.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
        let (mut sum, mut first, mut second) = (0.0, 0.0, 0.0);
        for (e, log) in &points {
            let w = (log - top).exp();
            sum += w;
            first += w * e;
            second += w * e * e;
        }
        let mean = first / sum;
        let ln = top + (sum / 2_000.0 / std::f64::consts::TAU.sqrt()).ln();
        let variance = second / sum - mean * mean;
        (ln, Latent { mean, variance })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
        /// From no event to a million of them.
        #[test]
        fn an_integral_is_what_a_sum_says(ln_k in 0.0..14.0f64, part in 0.0..1.0f64, pi in 0.005..0.6f64, x in -0.5..3.0f64, mean in -1.0..1.0f64, s in 0.05..1.2f64) {
            let k = (ln_k.exp() - 1.0).round();
            // Not further from the prior than it can be believed to be.
            let odds = pi * (x + mean + 3.0 * s * (2.0 * part - 1.0)).exp();
            let k_c = (k * odds / (1.0 - pi + odds)).round();
            let (segment, prior) = (Segment { k_c, k, pi }, Latent { mean, variance: s * s });
            let (ln, after) = segment.integrate(x, prior);
            let (exact, moments) = summed(segment, x, prior);
            prop_assert!((ln - exact).abs() < 0.02, "{ln}, not {exact}");
            let sd = moments.variance.sqrt();
            prop_assert!((after.mean - moments.mean).abs() < 0.05 * sd, "{after:?}, not {moments:?}");
            prop_assert!((after.variance / moments.variance - 1.0).abs() < 0.1, "{after:?}, not {moments:?}");
        }

        #[test]
        fn is_finite_on_anything(counts in prop::collection::vec((0u64..1 << 40, 0u64..1 << 40, 0.0..1.0f64, 0.0..1.0f64), 1..12)) {
            let mut moments = Moments::new();
            let noise = Noise::new(super::super::History::Unknown);
            for (n_c, n_b, c, b) in counts {
                let part = |n: u64, p: f64| Counts::new(n, crate::numbers::whole(n as f64 * p).min(n));
                let (c, b) = (part(n_c, c), part(n_b, b));
                if c.n > 0 && b.n > 0 && c.k + b.k > 0 {
                    if moments.differs(0.0, c, b) {
                        moments.close(&noise);
                    }
                    moments.look(0.0, c, b);
                    prop_assert!(moments.now().iter().all(|l| l.is_finite()));
                }
            }
            moments.close(&noise);
            prop_assert!(moments.likelihood().iter().all(|l| l.is_finite()));
            prop_assert!(moments.latent.iter().all(|l| l.mean.is_finite() && l.variance.is_finite()));
            prop_assert!(moments.likelihood()[..LEVELS].iter().any(|l| *l > GONE));
        }
    }
}
