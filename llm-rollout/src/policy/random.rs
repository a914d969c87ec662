//! Seeded numbers, and counts drawn from them: the same seed gives the same numbers, whoever asks.

/// xoshiro256++ (Blackman and Vigna 2021), its state filled by `SplitMix64`.
#[derive(Debug, Clone)]
pub(super) struct Random([u64; 4]);

/// One number of `SplitMix64`, which also makes one seed of two.
pub(super) const fn mix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self([mix(seed, 0), mix(seed, 1), mix(seed, 2), mix(seed, 3)])
    }

    const fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Between 0 and 1, neither of them.
    pub(super) fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// Standard normal (Box and Muller 1958).
    pub(super) fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// How many of events that come with this mean. 0 where it is not above 0; exact up to means of 10^15, and no more than that.
    pub(super) fn poisson(&mut self, mean: f64) -> u64 {
        if mean.is_nan() || mean <= 0.0 {
            0
        } else if mean < 10.0 {
            self.count_up((-mean).exp(), |k| mean / k)
        } else {
            self.poisson_far(mean.min(1e15))
        }
    }

    /// How many of `n` where each happens with probability `p`, which is cut to 0 to 1.
    pub(super) fn binomial(&mut self, n: u64, p: f64) -> u64 {
        if n == 0 || p.is_nan() || p <= 0.0 {
            return 0;
        }
        if p > 0.5 {
            return n - self.binomial(n, 1.0 - p);
        }
        let size = n as f64;
        if size * p < 10.0 {
            let odds = p / (1.0 - p);
            let none = (size * (-p).ln_1p()).exp();
            self.count_up(none, |k| (size - k + 1.0) * odds / k).min(n)
        } else {
            self.binomial_far(n, p)
        }
    }

    /// Inversion: from the probability of nothing, and that of k as a multiple of that of k - 1.
    fn count_up(&mut self, none: f64, step: impl Fn(f64) -> f64) -> u64 {
        let (mut left, mut p, mut k) = (self.uniform(), none, 0_u32);
        while left > p && k < 200 {
            left -= p;
            k += 1;
            p *= step(f64::from(k));
        }
        u64::from(k)
    }

    /// Transformed rejection, PTRS (Hörmann 1993).
    fn poisson_far(&mut self, mean: f64) -> u64 {
        let (root, ln) = (mean.sqrt(), mean.ln());
        let b = 0.931 + 2.53 * root;
        let a = -0.059 + 0.02483 * b;
        let inverse = 1.1239 + 1.1328 / (b - 3.4);
        let sure = 0.9277 - 3.6224 / (b - 2.0);
        loop {
            let (u, v) = (self.uniform() - 0.5, self.uniform());
            let us = 0.5 - u.abs();
            let k = ((2.0 * a / us + b) * u + mean + 0.43).floor();
            if us >= 0.07 && v <= sure {
                return whole(k);
            }
            if k < 0.0 || (us < 0.013 && v > us) {
                continue;
            }
            let hat = v.ln() + inverse.ln() - (a / (us * us) + b).ln();
            if hat <= k * ln - mean - ln_factorial(k) {
                return whole(k);
            }
        }
    }

    /// Transformed rejection, BTRS (Hörmann 1993).
    fn binomial_far(&mut self, n: u64, p: f64) -> u64 {
        let size = n as f64;
        let deviation = (size * p * (1.0 - p)).sqrt();
        let b = 1.15 + 2.53 * deviation;
        let a = -0.0873 + 0.0248 * b + 0.01 * p;
        let c = size * p + 0.5;
        let sure = 0.92 - 4.2 / b;
        let odds = p / (1.0 - p);
        let alpha = (2.83 + 5.1 / b) * deviation;
        let mode = ((size + 1.0) * p).floor();
        loop {
            let (u, v) = (self.uniform() - 0.5, self.uniform());
            let us = 0.5 - u.abs();
            let k = ((2.0 * a / us + b) * u + c).floor();
            if us >= 0.07 && v <= sure {
                return whole(k).min(n);
            }
            if k < 0.0 || k > size {
                continue;
            }
            let hat = (v * alpha / (a / (us * us) + b)).ln();
            let density = (mode + 0.5) * ((mode + 1.0) / (odds * (size - mode + 1.0))).ln()
                + (size + 1.0) * ((size - mode + 1.0) / (size - k + 1.0)).ln()
                + (k + 0.5) * (odds * (size - k + 1.0) / (k + 1.0)).ln()
                + tail(mode)
                + tail(size - mode)
                - tail(k)
                - tail(size - k);
            if hat <= density {
                return whole(k);
            }
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "whole, not negative, and casts saturate"
)]
const fn whole(x: f64) -> u64 {
    x as u64
}

/// What Stirling's formula about k + 1 lacks of ln k!.
fn tail(k: f64) -> f64 {
    const FIRST: [f64; 10] = [
        0.081_061_466_795_327_2,
        0.041_340_695_955_409_2,
        0.027_677_925_684_998_3,
        0.020_790_672_103_765_1,
        0.016_644_691_189_821_1,
        0.013_876_128_823_070_7,
        0.011_896_709_945_891_7,
        0.010_411_265_261_972,
        0.009_255_462_182_712_73,
        0.008_330_563_433_362_87,
    ];
    if let (true, Some(known)) = (k < 9.5, FIRST.get(usize::try_from(whole(k)).unwrap_or(0))) {
        return *known;
    }
    let x = k + 1.0;
    let square = x * x;
    (1.0 / 12.0 - (1.0 / 360.0 - 1.0 / 1260.0 / square) / square) / x
}

fn ln_factorial(k: f64) -> f64 {
    const HALF_LN_TAU: f64 = 0.918_938_533_204_672_7;
    (k + 0.5) * (k + 1.0).ln() - (k + 1.0) + HALF_LN_TAU + tail(k)
}

#[cfg(test)]
mod tests {
    use super::*;
    use llm_gates::special::gamma;

    /// ln of the probability of k, by the gamma function of the statistics crate.
    fn poisson(mean: f64, k: f64) -> f64 {
        k * mean.ln() - mean - gamma::ln_gamma(k + 1.0)
    }

    fn binomial(n: f64, p: f64, k: f64) -> f64 {
        gamma::ln_gamma(n + 1.0) - gamma::ln_gamma(k + 1.0) - gamma::ln_gamma(n - k + 1.0)
            + k * p.ln()
            + (n - k) * (-p).ln_1p()
    }

    /// Mean and variance within 5 standard errors, and a chi-square over the counts with at least 20 expected within its upper
    /// 10^-6: a right sampler fails about once in 10^5 seeds, and the seeds are fixed.
    fn agrees(name: &str, draws: &[u64], ln: impl Fn(f64) -> f64, mean: f64, variance: f64) {
        let n = draws.len() as f64;
        let found = draws.iter().map(|k| *k as f64).sum::<f64>() / n;
        let spread = draws
            .iter()
            .map(|k| (*k as f64 - mean).powi(2))
            .sum::<f64>()
            / n;
        let error = (variance / n).sqrt();
        assert!(
            (found - mean).abs() < 5.0 * error,
            "{name}: mean {found}, not {mean}"
        );
        let kurtosis = 3.0 + 1.0 / variance.max(1e-3);
        let error = variance * ((kurtosis - 1.0) / n).sqrt();
        assert!(
            (spread - variance).abs() < 5.0 * error.max(1e-9),
            "{name}: variance {spread}, not {variance}"
        );
        let mut seen = std::collections::BTreeMap::<u64, f64>::new();
        for k in draws {
            *seen.entry(*k).or_default() += 1.0;
        }
        let (low, high) = (
            whole((mean - 8.0 * variance.sqrt()).max(0.0)),
            whole(mean + 8.0 * variance.sqrt() + 8.0),
        );
        let (mut square, mut cells, mut rest) = (0.0, 0.0, (n, n));
        for k in low..=high {
            let expected = n * ln(k as f64).exp();
            if expected >= 20.0 {
                let observed = seen.get(&k).copied().unwrap_or(0.0);
                square += (observed - expected).powi(2) / expected;
                cells += 1.0;
                rest = (rest.0 - observed, rest.1 - expected);
            }
        }
        if rest.1 >= 20.0 {
            square += (rest.0 - rest.1).powi(2) / rest.1;
            cells += 1.0;
        }
        let p = gamma::ln_p_q((cells - 1.0_f64).max(1.0) / 2.0, square / 2.0)
            .1
            .exp();
        assert!(p > 1e-6, "{name}: chi-square {square} in {cells} cells");
    }

    #[test]
    fn counts_are_distributed_as_they_should() {
        let mut random = Random::new(11);
        let mut draws = |f: &mut dyn FnMut(&mut Random) -> u64| -> Vec<u64> {
            (0..40_000).map(|_| f(&mut random)).collect()
        };
        for mean in [0.02, 0.7, 5.0, 9.99, 10.01, 40.0, 1_188.0] {
            let found = draws(&mut |r| r.poisson(mean));
            agrees(
                &format!("Poisson {mean}"),
                &found,
                |k| poisson(mean, k),
                mean,
                mean,
            );
        }
        for (n, p) in [
            (1_u64, 0.3),
            (12, 0.01),
            (40, 0.9),
            (300, 0.02),
            (1_200, 0.01),
            (1_200, 0.3),
            (5_000, 0.99),
            (1_000_000, 0.000_1),
        ] {
            let size = n as f64;
            let found = draws(&mut |r| r.binomial(n, p));
            let name = format!("binomial {n}, {p}");
            agrees(
                &name,
                &found,
                |k| binomial(size, p, k),
                size * p,
                size * p * (1.0 - p),
            );
        }
    }

    #[test]
    fn the_normal_is_standard_and_seeds_differ() {
        let mut random = Random::new(3);
        let draws = (0..40_000).map(|_| random.normal()).collect::<Vec<_>>();
        let n = draws.len() as f64;
        let mean = draws.iter().sum::<f64>() / n;
        let variance = draws.iter().map(|z| z * z).sum::<f64>() / n;
        assert!(mean.abs() < 5.0 / n.sqrt() && (variance - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
        let first = |seed| Random::new(seed).uniform();
        assert!((first(1) - first(1)).abs() < f64::EPSILON && (first(1) - first(2)).abs() > 1e-9);
    }

    #[test]
    fn nothing_makes_it_loop_or_fail() {
        let mut random = Random::new(5);
        for mean in [f64::NAN, -1.0, 0.0, f64::MIN_POSITIVE, 1e12, f64::INFINITY] {
            let _ = random.poisson(mean);
        }
        for p in [f64::NAN, -1.0, 0.0, f64::MIN_POSITIVE, 0.5, 1.0, 2.0] {
            for n in [0, 1, 19, 20, 1 << 50] {
                assert!(random.binomial(n, p) <= n);
            }
        }
    }
}
