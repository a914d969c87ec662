//! Mean and variance of a stream, without cancellation.

use serde::{Deserialize, Serialize};

/// Count, mean and variance of values, kept as sums of differences from a pivot near the mean (the baseline's, say), so that a mean far greater
/// than the standard deviation does not cancel. Sums can be merged, and added at the price of two additions and one product.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Moments {
    n: u64,
    pivot: f64,
    sum: f64,
    square: f64,
}

impl Moments {
    /// Nothing yet; `pivot` is any finite value near the mean.
    pub fn around(pivot: f64) -> Self {
        Self {
            pivot: if pivot.is_finite() { pivot } else { 0.0 },
            ..Self::default()
        }
    }

    /// The moments of a slice, around its first value.
    pub fn of(values: &[f64]) -> Self {
        let mut moments = Self::around(values.first().copied().unwrap_or(0.0));
        for v in values {
            moments.add(*v);
        }
        moments
    }

    /// Moments of `n` values with the given mean and standard deviation.
    pub fn from_summary(n: u64, mean: f64, sd: f64) -> Self {
        Self {
            n,
            pivot: mean,
            sum: 0.0,
            square: sd * sd * (n.saturating_sub(1)) as f64,
        }
    }

    /// Adds a value; returns whether it was finite, and else leaves it out.
    pub fn add(&mut self, value: f64) -> bool {
        let d = value - self.pivot;
        let fine = d.is_finite();
        if fine {
            self.n += 1;
            self.sum += d;
            self.square += d * d;
        }
        fine
    }

    /// Adds all of another stream.
    pub fn merge(&mut self, other: &Self) {
        let shift = other.pivot - self.pivot;
        self.sum += other.sum + other.n as f64 * shift;
        self.square += other.square + 2.0 * shift * other.sum + other.n as f64 * shift * shift;
        self.n += other.n;
    }

    /// How many values.
    pub const fn n(&self) -> u64 {
        self.n
    }

    /// The mean; `None` without values.
    pub fn mean(&self) -> Option<f64> {
        (self.n > 0).then(|| self.pivot + self.sum / self.n as f64)
    }

    /// The variance of a single value, with n - 1; `None` with fewer than two values.
    pub fn variance(&self) -> Option<f64> {
        let n = self.n as f64;
        (self.n > 1).then(|| ((self.square - self.sum * self.sum / n) / (n - 1.0)).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn merging_is_adding(a in prop::collection::vec(-5.0..5.0f64, 2..50), b in prop::collection::vec(-5.0..5.0f64, 2..50), at in -1e6..1e6f64) {
            let shifted = |v: &[f64]| v.iter().map(|x| x + at).collect::<Vec<_>>();
            let whole = Moments::of(&shifted(&[a.clone(), b.clone()].concat()));
            let mut merged = Moments::of(&shifted(&a));
            merged.merge(&Moments::of(&shifted(&b)));
            prop_assert_eq!(merged.n(), whole.n());
            prop_assert!((merged.mean().unwrap() - whole.mean().unwrap()).abs() < 1e-9);
            prop_assert!((merged.variance().unwrap() - whole.variance().unwrap()).abs() < 1e-7);
        }

        #[test]
        fn a_far_mean_does_not_cancel(values in prop::collection::vec(0u8..8, 2..50)) {
            let near: Vec<_> = values.iter().map(|v| f64::from(*v)).collect();
            let far: Vec<_> = near.iter().map(|v| v + 1e12).collect();
            let (a, b) = (Moments::of(&near).variance().unwrap(), Moments::of(&far).variance().unwrap());
            prop_assert!((a - b).abs() < 1e-9);
        }
    }

    #[test]
    fn what_is_not_finite_is_left_out() {
        let mut moments = Moments::around(f64::NAN);
        assert!(!moments.add(f64::NAN) && !moments.add(f64::INFINITY) && moments.add(1.0));
        assert_eq!(
            (moments.n(), moments.mean(), moments.variance()),
            (1, Some(1.0), None)
        );
    }
}
