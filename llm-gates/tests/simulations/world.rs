//! Traffic, noise and users of a rollout.

use llm_gates::Counts;

use super::rng::Rng;

/// Share of the candidate in basis points, and minutes.
pub(crate) const RAMP: [(u16, u32); 4] = [(100, 60), (500, 240), (2500, 1440), (5000, 2880)];
/// One a minute along the ramp.
pub(crate) const LOOKS: u32 = 4_620;
pub(crate) const REQUESTS_PER_MINUTE: f64 = 1200.0;
pub(crate) const RATE: f64 = 0.01;

#[derive(Clone, Copy)]
pub(crate) struct World {
    /// Events per request.
    pub(crate) rate: f64,
    /// A daily cycle of traffic and error rate, and bursts of errors that all arms share.
    pub(crate) drift: bool,
    /// Coefficient of variation of each arm's rate per 5 minutes, and its correlation from block to block.
    pub(crate) noise: f64,
    pub(crate) correlation: f64,
    pub(crate) baseline: Baseline,
}

/// What the two groups of the baseline are.
#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) enum Baseline {
    /// Halves with noise of their own.
    #[default]
    Groups,
    /// Halves of one arm with one noise.
    OneArm,
    /// Halves without noise: only the candidate has it.
    Quiet,
    /// A control arm as great as the candidate, and the rest.
    Control,
}

pub(crate) const QUIET: World = World {
    rate: RATE,
    drift: false,
    noise: 0.0,
    correlation: 0.0,
    baseline: Baseline::Groups,
};
pub(crate) const DRIFT: World = World {
    drift: true,
    ..QUIET
};

pub(crate) const fn noisy(noise: f64, correlation: f64) -> World {
    World {
        noise,
        correlation,
        ..QUIET
    }
}

/// One look of the ramp.
#[derive(Clone, Copy)]
pub(crate) struct Minute {
    pub(crate) at: u64,
    pub(crate) stage: usize,
    pub(crate) basis_points: u16,
    /// Of the candidate.
    pub(crate) share: f64,
    /// Requests of all arms.
    pub(crate) traffic: f64,
    /// Factor of the error rate of all arms.
    pub(crate) rate: f64,
}

/// The looks of one life.
pub(crate) fn minutes(rng: &mut Rng, drift: bool) -> impl Iterator<Item = Minute> + use<> {
    let phase = rng.uniform();
    // Ten minutes at five times the errors, at random once in 300 minutes.
    let (mut burst, mut dice) = (0u32, Rng::new((phase * 1e15).to_bits()));
    RAMP.into_iter()
        .enumerate()
        .flat_map(|(stage, (basis_points, minutes))| {
            std::iter::repeat_n((stage, basis_points), minutes as usize)
        })
        .zip(0..)
        .map(move |((stage, basis_points), at)| {
            let (mut traffic, mut rate) = (REQUESTS_PER_MINUTE, 1.0);
            if drift {
                let day = (std::f64::consts::TAU * (at as f64 / 1440.0 + phase)).sin();
                traffic *= 1.0 + 0.6 * day;
                rate *= 1.0 + 0.5 * day;
                burst = match burst {
                    0 if dice.uniform() < 1.0 / 300.0 => 10,
                    left => left.saturating_sub(1),
                };
                rate *= if burst > 0 { 5.0 } else { 1.0 };
            }
            Minute {
                at,
                stage,
                basis_points,
                share: f64::from(basis_points) / 10_000.0,
                traffic,
                rate,
            }
        })
}

/// Log-normal noise with correlation from block to block and mean 1.
pub(crate) struct Noise {
    world: World,
    z: f64,
    /// Of the current block.
    pub(crate) factor: f64,
}

impl Noise {
    pub(crate) fn new(world: World, rng: &mut Rng) -> Self {
        let mut noise = Self {
            world,
            z: rng.normal(),
            factor: 1.0,
        };
        noise.set();
        noise
    }

    fn set(&mut self) {
        let s2 = (1.0 + self.world.noise * self.world.noise).ln();
        self.factor = (s2.sqrt() * self.z - 0.5 * s2).exp();
    }

    pub(crate) fn next(&mut self, rng: &mut Rng) {
        if self.world.noise > 0.0 {
            let phi = self.world.correlation;
            self.z = phi * self.z + (1.0 - phi * phi).sqrt() * rng.normal();
            self.set();
        }
    }
}

/// Minutes of both arms along the ramp, the baseline in two groups. `look` returns true to end the life.
pub(crate) fn ramp(
    rng: &mut Rng,
    world: World,
    ratio: f64,
    look: impl FnMut(&Minute, Counts, [Counts; 2]) -> bool,
) -> bool {
    let minutes = minutes(rng, world.drift);
    along(rng, world, |_| ratio, minutes, look)
}

/// The same along other minutes, with a ratio that may change with time.
pub(crate) fn along(
    rng: &mut Rng,
    world: World,
    ratio: impl Fn(&Minute) -> f64,
    minutes: impl Iterator<Item = Minute>,
    mut look: impl FnMut(&Minute, Counts, [Counts; 2]) -> bool,
) -> bool {
    let mut noise = [0; 3].map(|_| Noise::new(world, rng));
    for minute in minutes {
        let (traffic, rate) = (minute.traffic, world.rate * minute.rate);
        let rest = 1.0 - minute.share;
        let factors = match world.baseline {
            Baseline::Groups | Baseline::Control => [noise[1].factor, noise[2].factor],
            Baseline::OneArm => [noise[1].factor; 2],
            Baseline::Quiet => [1.0; 2],
        };
        let shares = match world.baseline {
            Baseline::Control => [minute.share, rest - minute.share],
            _ => [0.5 * rest; 2],
        };
        let mut arm =
            |share: f64, factor: f64| rng.counts(traffic * share, (rate * factor).min(1.0));
        let c = arm(minute.share, ratio(&minute) * noise[0].factor);
        let b = [arm(shares[0], factors[0]), arm(shares[1], factors[1])];
        if look(&minute, c, b) {
            return true;
        }
        if minute.at % 5 == 4 {
            for n in &mut noise {
                n.next(rng);
            }
        }
    }
    false
}

/// Blocks of 5 minutes before the ramp, in which both groups of the baseline serve everybody.
pub(crate) fn history(rng: &mut Rng, world: World, hours: u32, mut learn: impl FnMut([Counts; 2])) {
    let mut noise = [0; 2].map(|_| Noise::new(world, rng));
    for block in 0..hours * 12 {
        let day = (std::f64::consts::TAU * f64::from(block) / 288.0).sin();
        let (traffic, rate) = if world.drift {
            (1.0 + 0.6 * day, world.rate * (1.0 + 0.5 * day))
        } else {
            (1.0, world.rate)
        };
        learn([0, 1].map(|i: usize| {
            let factor = if world.baseline == Baseline::Quiet {
                1.0
            } else {
                noise[i].factor
            };
            rng.counts(
                2.5 * traffic * REQUESTS_PER_MINUTE,
                (rate * factor).min(1.0),
            )
        }));
        for n in &mut noise {
            n.next(rng);
        }
    }
}

/// A world of sticky users: keys with Zipf(1) traffic and unequal error rates, whole requests of a key in one arm.
pub(crate) struct Users {
    /// Traffic, error rate, and place on the line that slices cut.
    keys: Vec<(f64, f64, f64)>,
}

impl Users {
    pub(crate) fn new(rng: &mut Rng, keys: u32, sd: f64) -> Self {
        let total: f64 = (1..=keys).map(|i| 1.0 / f64::from(i)).sum();
        let key = |i: u32, rng: &mut Rng| {
            let rate = (RATE * (sd * rng.normal() - 0.5 * sd * sd).exp()).min(0.4);
            (1.0 / f64::from(i) / total, rate, rng.uniform())
        };
        Self {
            keys: (1..=keys).map(|i| key(i, rng)).collect(),
        }
    }

    /// Share of traffic and error rate of the users inside (or outside) a slice.
    pub(crate) fn arm(&self, basis_points: u16, inside: bool) -> (f64, f64) {
        let edge = f64::from(basis_points) / 10_000.0;
        let mine = self.keys.iter().filter(|k| (k.2 < edge) == inside);
        let (traffic, errors) = mine.fold((0.0, 0.0), |(t, e), k| (t + k.0, e + k.0 * k.1));
        (traffic, if traffic > 0.0 { errors / traffic } else { 0.0 })
    }
}
