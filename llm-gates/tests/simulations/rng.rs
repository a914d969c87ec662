//! Seeded random numbers for simulations.

use llm_gates::Counts;

/// xoshiro256++ (Blackman and Vigna 2019), seeded by splitmix64.
pub(crate) struct Rng([u64; 4]);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        let mut state = seed;
        Self(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        }))
    }

    pub(crate) fn uniform(&mut self) -> f64 {
        let s = &mut self.0;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        ((out >> 11) as f64 + 0.5) / 9_007_199_254_740_992.0
    }

    pub(crate) fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// By inversion up to a mean of 40, beyond that as a sum.
    pub(crate) fn poisson(&mut self, mean: f64) -> u64 {
        if mean > 40.0 {
            if mean > 2_000.0 {
                // Skewness below .023.
                return whole((mean + mean.sqrt() * self.normal() + 0.5).max(0.0));
            }
            let half = 0.5 * mean;
            return self.poisson(half) + self.poisson(mean - half);
        }
        let (mut k, mut p, mut u) = (0u32, (-mean).exp(), self.uniform());
        while u > p && k < 1_000 {
            u -= p;
            k += 1;
            p *= mean / f64::from(k);
        }
        u64::from(k)
    }

    pub(crate) fn counts(&mut self, requests: f64, rate: f64) -> Counts {
        let n = self.poisson(requests);
        Counts::new(n, self.poisson(n as f64 * rate).min(n))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "not negative"
)]
fn whole(x: f64) -> u64 {
    x as u64
}
