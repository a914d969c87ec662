//! When the evidence of a gate reaches its bound: first passage, look by look, by numeric convolution.
//!
//! The evidence of [`crate::RateRatio`] is a mixture over ratios theta_j of exp(L_j), L_j = sum of k_c u_j - k_b v_j with v_j = ln(g(theta0 theta_j) / g(theta0)) and
//! u_j = ln theta_j - v_j. The counts deviate from what is expected by noise that moves all L_j together, nearly in proportion to ln theta_j: L_j = E L_j + Z ln theta_j, where
//! Z = sum of (u dk_c - v dk_b) / ln theta at the ratio that is in fact there. So Z is a martingale with independent increments, whose distribution is known (k_c is Poisson or
//! binomial, k_b is many), and the mixture reaches its bound where Z reaches a boundary that moves from look to look: the distribution of Z among the lives that have not reached
//! it yet is carried from look to look on a grid. Nothing is calibrated: overshoot, looks in steps, the price of the mixture at every effect and changes of the
//! share come out of it.

use crate::Grid;
use crate::fixed::{BadSample, open_unit, parameter};
use crate::special::normal;

/// Cells before the grid is made twice as coarse.
const CELLS: usize = 480;
/// First width of a cell, in events.
const STEP: f64 = 0.125;
/// What is left out at the ends of the grid.
const DUST: f64 = 1e-13;
/// Expected events in a look from which their number is taken as normal.
const MANY: f64 = 40.0;

/// The probability that a gate on a rate has reached its bound, look by look, while a candidate of a given ratio is exposed. For [`crate::RateRatio`] with [`Grid::Rr7`],
/// as [`crate::Evidence`] tests rates.
///
/// ```
/// use llm_gates::planner::Passage;
/// // Twice the errors of a baseline with 1 %, alpha 0.05, 5 % of 20 requests a second, a look a minute for four hours.
/// let mut passage = Passage::new(0.01, 2.0, 0.0, 0.05)?;
/// let found: f64 = (0..240).map(|_| passage.look(60.0, 1_140.0)).sum();
/// assert!(found > 0.999);
/// # Ok::<(), llm_gates::fixed::BadSample>(())
/// ```
#[derive(Debug, Clone)]
pub struct Passage {
    rate: f64,
    ratio: f64,
    theta0: f64,
    bound: f64,
    /// Of each ratio of the grid: its ln, and ln(weight) + E L_j.
    grid: Vec<(f64, f64)>,
    /// The ratio at which the noise is taken.
    theta: f64,
    /// Probabilities of Z = (first + i) * step.
    cells: Vec<f64>,
    first: i64,
    step: f64,
    boundary: f64,
    alive: f64,
    kernel: Option<Kernel>,
}

/// The distribution of one look's noise, in cells.
#[derive(Debug, Clone)]
struct Kernel {
    /// Candidate and baseline requests, and the width of a cell, that it is for.
    of: [f64; 3],
    first: i64,
    weights: Vec<f64>,
}

impl Passage {
    /// For a baseline that is bad at this `rate`, in (0, 1), a candidate that is bad `ratio` times as often (1 is harmless), the gate's `margin`, and its part of the budget:
    /// `alpha` of the plan times the gate's weight.
    ///
    /// # Errors
    /// [`BadSample`] for parameters out of range.
    pub fn new(rate: f64, ratio: f64, margin: f64, alpha: f64) -> Result<Self, BadSample> {
        open_unit("rate", rate)?;
        open_unit("alpha", alpha)?;
        let sane = |x: f64| x > 0.0 && x.is_finite();
        parameter(sane(ratio), "ratio", ratio, "be finite and above 0")?;
        let tolerated = (0.0..=100.0).contains(&margin);
        parameter(tolerated, "margin", margin, "lie between 0 and 100")?;
        let theta0 = 1.0 + margin;
        let ratio = ratio.min(1.0 / rate);
        let grid = Grid::Rr7;
        let rows = grid.alternatives().iter();
        let harm = ratio / theta0;
        Ok(Self {
            rate,
            ratio,
            theta0,
            bound: -libm::log(alpha),
            grid: rows
                .map(|a| (libm::log(a.theta), libm::log(a.weight)))
                .collect(),
            // Of a candidate within the margin, what would reach the bound looks like a modest harm.
            theta: if harm > 1.12 { harm.min(20.0) } else { 1.5 },
            cells: vec![1.0],
            first: 0,
            step: STEP,
            boundary: 0.0,
            alive: 1.0,
            kernel: None,
        })
    }

    /// The same with a bound that is this much higher, in nats: what a test that also learns noise gives up.
    #[must_use]
    pub fn dearer_by(mut self, nats: f64) -> Self {
        self.bound += nats.max(0.0);
        self
    }

    /// Probability that the bound has not been reached yet.
    pub const fn alive(&self) -> f64 {
        self.alive
    }

    /// One more look, after so many requests of both arms; returns the probability that it is the first to reach the bound. A look with an
    /// empty arm says nothing.
    pub fn look(&mut self, candidate: f64, baseline: f64) -> f64 {
        let counts = |x: f64| x > 0.0 && x.is_finite();
        if !counts(candidate) || !counts(baseline) || self.alive <= 0.0 {
            return 0.0;
        }
        let share = candidate / (candidate + baseline);
        let (events, others) = (candidate * self.rate * self.ratio, baseline * self.rate);
        for (ln, mean) in &mut self.grid {
            let v = gain(share, self.theta0, libm::exp(*ln));
            *mean += events * (*ln - v) - others * v;
        }
        self.boundary = self.reached_at();
        self.spread(candidate, baseline, share);
        self.absorb()
    }

    /// Where the mixture equals its bound: its logarithm is convex and rises with Z, so that Newton's steps come down to it.
    fn reached_at(&self) -> f64 {
        let value = |z: f64| {
            let most = self
                .grid
                .iter()
                .map(|(ln, m)| m + ln * z)
                .fold(f64::MIN, f64::max);
            let (mut sum, mut slope) = (0.0, 0.0);
            for (ln, mean) in &self.grid {
                let e = libm::exp(mean + ln * z - most);
                sum += e;
                slope += e * ln;
            }
            (most + libm::log(sum) - self.bound, slope / sum)
        };
        let mut z = self.boundary;
        for _ in 0..60 {
            let (over, slope) = value(z);
            let step = over / slope;
            z -= step;
            if step.abs() < 1e-7 * (1.0 + z.abs()) {
                break;
            }
        }
        z
    }

    /// Adds a look's noise.
    fn spread(&mut self, candidate: f64, baseline: f64, share: f64) {
        let of = [candidate, baseline, self.step];
        let same = |k: &Kernel| k.of.iter().zip(of).all(|(a, b)| (a - b).abs() <= 1e-12 * b);
        let kernel = match self.kernel.take().filter(same) {
            Some(kernel) => kernel,
            None => self.kernel_of(of, share),
        };
        let mut next = vec![0.0; self.cells.len() + kernel.weights.len()];
        for (i, cell) in self.cells.iter().enumerate() {
            for (to, weight) in next.iter_mut().skip(i).zip(&kernel.weights) {
                *to += cell * weight;
            }
        }
        self.first += kernel.first;
        self.cells = next;
        self.kernel = Some(kernel);
        self.trim();
    }

    fn kernel_of(&self, of: [f64; 3], share: f64) -> Kernel {
        let [candidate, baseline, step] = of;
        let ln = libm::log(self.theta);
        let v = gain(share, self.theta0, self.theta) / ln;
        let u = 1.0 - v;
        let bad = (self.rate * self.ratio).min(1.0);
        let events = candidate * bad;
        // In cells: jumps of the candidate's events, and the variance of the baseline's.
        let jump = u / step;
        let mut variance = v * v * baseline * self.rate * (1.0 - self.rate) / (step * step);
        let mut atoms: Vec<(f64, f64)> = Vec::new();
        if events > MANY || bad > 0.999 {
            variance += jump * jump * events * (1.0 - bad);
            atoms.push((0.0, 1.0));
        } else {
            for (k, p) in distribution(candidate, bad) {
                atoms.push((jump * (k - events), p));
            }
        }
        // Between two cells, mass goes to both: the mean stays, and the variance that this adds is taken off again.
        let split: f64 = atoms
            .iter()
            .map(|(x, p)| p * (x - x.floor()) * (x.ceil() - x))
            .sum();
        let normal = normal_weights((variance - split).max(0.0));
        let half = i64::try_from(normal.len() / 2).unwrap_or(0);
        let low = atoms
            .iter()
            .map(|(x, _)| whole(x.floor()))
            .min()
            .unwrap_or(0);
        let high = atoms
            .iter()
            .map(|(x, _)| whole(x.ceil()))
            .max()
            .unwrap_or(0);
        let size = usize::try_from(high - low + 1).unwrap_or(1);
        let mut lattice = vec![0.0; size];
        for (x, p) in &atoms {
            let (down, part) = (x.floor(), x - x.floor());
            let at = usize::try_from(whole(down) - low).unwrap_or(0);
            for (i, p) in [(at, p * (1.0 - part)), (at + 1, p * part)] {
                if let Some(cell) = lattice.get_mut(i) {
                    *cell += p;
                }
            }
        }
        let mut weights = vec![0.0; size + normal.len() - 1];
        for (i, p) in lattice.iter().enumerate() {
            for (to, weight) in weights.iter_mut().skip(i).zip(&normal) {
                *to += p * weight;
            }
        }
        Kernel {
            of,
            first: low - half,
            weights,
        }
    }

    /// What has reached the boundary leaves.
    fn absorb(&mut self) -> f64 {
        let before = self.alive;
        for (i, cell) in self.cells.iter_mut().enumerate() {
            let z = (self.first as f64 + i as f64) * self.step;
            if z >= self.boundary {
                *cell = 0.0;
            }
        }
        self.alive = self.cells.iter().sum::<f64>().clamp(0.0, before);
        self.trim();
        before - self.alive
    }

    /// Without its empty ends; where it is still long, twice as coarse.
    fn trim(&mut self) {
        let matters = |p: &f64| *p > DUST;
        let Some(low) = self.cells.iter().position(matters) else {
            self.cells = vec![0.0];
            self.alive = 0.0;
            return;
        };
        let high = self.cells.iter().rposition(matters).unwrap_or(low);
        self.cells.truncate(high + 1);
        self.cells.drain(..low);
        self.first += i64::try_from(low).unwrap_or(0);
        while self.cells.len() > CELLS {
            if self.first.rem_euclid(2) == 1 {
                self.cells.insert(0, 0.0);
                self.first -= 1;
            }
            let size = self.cells.len() / 2 + 2;
            let mut coarse = vec![0.0; size];
            for (i, p) in self.cells.iter().enumerate() {
                let halves = if i % 2 == 0 { (1.0, 0.0) } else { (0.5, 0.5) };
                for (j, part) in [(i / 2, halves.0), (i / 2 + 1, halves.1)] {
                    if let Some(cell) = coarse.get_mut(j) {
                        *cell += p * part;
                    }
                }
            }
            self.cells = coarse;
            self.first /= 2;
            self.step *= 2.0;
        }
    }
}

/// ln(g(theta0 theta) / g(theta0)) at this share.
fn gain(share: f64, theta0: f64, theta: f64) -> f64 {
    libm::log1p(share * (theta0 * theta - 1.0)) - libm::log1p(share * (theta0 - 1.0))
}

/// How many of `n` requests are bad, and with which probability: Poisson for rare events, else binomial.
fn distribution(n: f64, p: f64) -> Vec<(f64, f64)> {
    let mean = n * p;
    let most = mean + 9.0 * libm::sqrt(mean) + 12.0;
    let rare = p < 0.02;
    let (odds, mut pmf) = if rare {
        (0.0, libm::exp(-mean))
    } else {
        (p / (1.0 - p), libm::exp(n * libm::log1p(-p)))
    };
    let (mut k, mut list, mut sum, mut sum_k) = (0.0, Vec::new(), 0.0, 0.0);
    while k <= most && pmf > 0.0 {
        if pmf > 1e-12 {
            list.push((k, pmf));
            sum += pmf;
            sum_k += k * pmf;
        }
        pmf *= if rare {
            mean / (k + 1.0)
        } else {
            (n - k) * odds / (k + 1.0)
        };
        k += 1.0;
    }
    if list.is_empty() || sum <= 0.0 {
        return vec![(mean, 1.0)];
    }
    // Requests that are no whole number, and what was cut off: the mean is as it must be.
    let shift = mean - sum_k / sum;
    list.into_iter()
        .map(|(k, p)| (k + shift, p / sum))
        .collect()
}

/// A normal distribution of this variance on whole numbers, an odd number of them.
fn normal_weights(variance: f64) -> Vec<f64> {
    if variance <= 0.5 {
        return vec![0.5 * variance, 1.0 - variance, 0.5 * variance];
    }
    let sd = libm::sqrt(variance);
    let half = whole(libm::ceil(7.0 * sd)).max(1);
    let weights: Vec<f64> = (-half..=half)
        .map(|i| libm::exp(normal::ln_pdf(i as f64 / sd)))
        .collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / sum).collect()
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the cast saturates, and grids are short"
)]
const fn whole(x: f64) -> i64 {
    x as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(passage: &mut Passage, looks: usize, candidate: f64, baseline: f64) -> f64 {
        (0..looks).map(|_| passage.look(candidate, baseline)).sum()
    }

    /// The probabilities and median requests of the simulations that this grid was published with (5 % and 25 % of 20 requests a second, a baseline of
    /// 1 %, a look a minute): ratio, requests at half of the lives that were found.
    #[test]
    fn medians_are_as_simulated() {
        for (ratio, c, b, minutes, median) in [
            (1.5, 60.0, 1_140.0, 240, 2_989.0),
            (2.0, 60.0, 1_140.0, 240, 963.0),
            (5.0, 60.0, 1_140.0, 240, 172.0),
            (1.5, 300.0, 900.0, 1_440, 3_897.0),
            (2.0, 300.0, 900.0, 1_440, 1_521.0),
        ] {
            let mut passage = Passage::new(0.01, ratio, 0.0, 0.05).unwrap();
            let found: Vec<f64> = (0..minutes).map(|_| passage.look(c, b)).collect();
            let half = 0.5 * found.iter().sum::<f64>();
            let (mut sum, mut at) = (0.0, 0.0);
            for (minute, p) in found.iter().enumerate() {
                if sum < half {
                    at = c * (minute as f64 + 1.0);
                }
                sum += p;
            }
            assert!(
                (at / median - 1.0).abs() < 0.1 + c / median,
                "{ratio}: {at}, not {median}"
            );
        }
    }

    #[test]
    fn a_harmless_candidate_seldom_reaches_the_bound() {
        for (ratio, margin) in [(1.0, 0.0), (1.1, 0.1), (0.5, 0.0)] {
            let mut passage = Passage::new(0.01, ratio, margin, 0.05).unwrap();
            let found = after(&mut passage, 3_000, 60.0, 1_140.0);
            assert!(found < 0.06, "{ratio}: {found}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_or_says_nothing() {
        assert!(Passage::new(0.0, 2.0, 0.0, 0.05).is_err());
        assert!(Passage::new(0.1, f64::NAN, 0.0, 0.05).is_err());
        assert!(Passage::new(0.1, 2.0, -1.0, 0.05).is_err());
        assert!(Passage::new(0.1, 2.0, 0.0, 1.0).is_err());
        let mut passage = Passage::new(0.1, 2.0, 0.0, 0.05).unwrap();
        for x in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(passage.look(x, 10.0).abs() < 1e-300 && passage.look(10.0, x).abs() < 1e-300);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Probabilities are probabilities, whatever the traffic, and more harm is found sooner.
        #[test]
        fn probabilities_add_up(rate in 0.001..0.6f64, ratio in 0.3..12.0f64, margin in 0.0..1.0f64, looks in prop::collection::vec((-1.0..4.0f64, 0.0..5.0f64), 1..30)) {
            let run = |ratio| {
                let mut passage = Passage::new(rate, ratio, margin, 0.05).unwrap();
                let found: Vec<f64> = looks.iter().map(|(c, b)| passage.look(10f64.powf(*c), 10f64.powf(*b))).collect();
                (found, passage.alive())
            };
            let (found, alive) = run(ratio);
            prop_assert!(found.iter().all(|p| (-1e-9..=1.0).contains(p)));
            prop_assert!((found.iter().sum::<f64>() + alive - 1.0).abs() < 1e-6);
            let worse = (ratio * 1.5).min(1.0 / rate);
            if worse > ratio && ratio > (1.0 + margin) * 1.2 {
                prop_assert!(run(worse).1 <= alive + 0.05);
            }
        }
    }
}
