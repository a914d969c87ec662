//! What happens to requests: how many come, and what becomes of them.

use super::effect::{Change, Noise};
use super::random::Random;
use super::{BadScenario, Scenario};
use crate::{Epoch, MetricDef, Share};
use llm_gates::quality::Comparisons;
use llm_gates::special::normal;
use llm_gates::{Counts, Direction, GatePlan, GateTable, Increment, TableReport, Window};
use std::collections::VecDeque;
use std::f64::consts::TAU;
use std::time::Duration;

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Labels {
    pub(super) missing: f64,
    pub(super) delay: Duration,
}

/// When every life begins, in ms since the Unix epoch: a midnight.
pub(super) const BEGIN: u64 = 1_704_067_200_000;
/// Length of a block of noise, ms.
const BLOCK: u64 = 300_000;
const DAY: f64 = 86_400_000.0;

/// A metric as its requests are drawn.
#[derive(Debug)]
struct Metric {
    mirrored: bool,
    better: bool,
    rate: f64,
    /// Share of the requests of which it is known.
    known: f64,
    delay: u64,
    /// Ratio of the candidate's rate, from when on, from which share (basis points) on.
    effects: Vec<(f64, u64, u16)>,
}

/// A scenario, checked and ready to be lived through.
#[derive(Debug)]
pub(super) struct Setting<'a> {
    pub(super) scenario: &'a Scenario,
    metrics: Vec<Metric>,
    names: Vec<String>,
    pub(super) gates: Vec<Option<GatePlan>>,
    pub(super) report: TableReport,
    /// Blocks of history that the tests learn from.
    pub(super) history: u64,
    pub(super) interrupts: Vec<(u64, Interrupt)>,
}

/// Something that does not wait for a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interrupt {
    /// The controller is gone for so many ms.
    Crash(u64),
    Restart,
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn within(
    what: impl Into<String>,
    value: f64,
    holds: bool,
    range: &'static str,
) -> Result<(), BadScenario> {
    if holds {
        return Ok(());
    }
    Err(BadScenario::Number {
        what: what.into(),
        value,
        range,
    })
}

/// The rate at which latencies that are `factor` times as long exceed what the baseline exceeds at `rate`.
fn late(rate: f64, factor: f64, spread: f64) -> f64 {
    normal::sf(normal::upper_quantile(rate) - factor.ln() / spread)
}

impl<'a> Setting<'a> {
    pub(super) fn new(scenario: &'a Scenario) -> Result<Self, BadScenario> {
        scenario.traffic.check()?;
        let unit =
            |what: &str, x: f64| within(what, x, (0.0..=1.0).contains(&x), "lie between 0 and 1");
        unit("the amplitude of the day", scenario.day.0)?;
        unit("the amplitude of the drift", scenario.drift)?;
        let hour = scenario.day.1;
        within(
            "the hour of the day",
            hour,
            (0.0..24.0).contains(&hour),
            "lie between 0 and 24",
        )?;
        let spread = scenario.latency_spread;
        let holds = spread > 0.0 && spread.is_finite();
        within("the spread of latencies", spread, holds, "be above 0")?;
        if let Some(Noise { cv, correlation }) = scenario.noise {
            within(
                "the noise",
                cv,
                (0.0..=10.0).contains(&cv),
                "lie between 0 and 10",
            )?;
            let holds = (0.0..1.0).contains(&correlation);
            within(
                "the noise's correlation",
                correlation,
                holds,
                "be at least 0 and below 1",
            )?;
        }
        let named = scenario.effects.keys().chain(scenario.labels.keys());
        for name in named.chain(scenario.traffic.metrics.keys()) {
            scenario.check_metric(name)?;
        }
        let spec = scenario.plan.spec();
        let (mut metrics, mut names) = (Vec::new(), Vec::new());
        for (name, def) in &spec.metrics {
            let gate = spec.gates.iter().find(|g| g.metric == *name);
            let watched = gate.is_some()
                || spec.thresholds.iter().any(|t| t.metric == *name)
                || spec.hard_limits.iter().any(|l| l.metric == *name);
            if !watched {
                continue;
            }
            let direction = gate.map(|g| g.direction).unwrap_or_default();
            metrics.push(metric(scenario, name, def, direction)?);
            names.push(name.clone());
        }
        let stages = spec.stages.len();
        let measured = scenario.measured.clone().unwrap_or_default();
        let report = match (&spec.pre_flight, &scenario.measured) {
            (Some(spec), Some(_)) => spec.gates.evaluate(&measured),
            _ => GateTable::new(Vec::new()).evaluate(&measured),
        };
        let crashes = scenario.crashes.iter();
        let crashes = crashes.map(|(at, long)| (millis(*at), Interrupt::Crash(millis(*long))));
        let restarts = scenario.restarts.iter();
        let restarts = restarts.map(|at| (millis(*at), Interrupt::Restart));
        let mut interrupts: Vec<_> = crashes.chain(restarts).collect();
        interrupts.sort_by_key(|(at, _)| *at);
        Ok(Self {
            scenario,
            metrics,
            names,
            gates: (0..stages).map(|i| scenario.plan.gate_plan(i)).collect(),
            report,
            history: (millis(scenario.traffic.history) / BLOCK).min(10_000),
            interrupts,
        })
    }

    /// The source cannot answer at this time.
    pub(super) fn is_out(&self, at: u64) -> bool {
        let mut outages = self.scenario.outages.iter();
        outages.any(|(from, long)| {
            let from = millis(*from);
            from <= at && at < from.saturating_add(millis(*long))
        })
    }

    /// For how long the candidate has answered nobody.
    pub(super) fn silence(&self, at: u64) -> Option<u64> {
        let silent = self.scenario.silent.map(millis)?;
        at.checked_sub(silent)
    }
}

fn metric(
    scenario: &Scenario,
    name: &str,
    def: &MetricDef,
    direction: Direction,
) -> Result<Metric, BadScenario> {
    let mirrored = def.is_mirrored();
    let usual = if mirrored { 0.4 } else { Scenario::USUAL_RATE };
    let expected = scenario.traffic.metrics.get(name);
    let (rate, sampled) = expected.map_or((usual, 1.0), |e| (e.rate, e.sampled));
    let of = |what: &str| format!("{what} of {name:?}");
    if mirrored {
        within(
            of("the rate"),
            rate,
            rate <= 0.5,
            "be at most 0.5: as many pairs are won",
        )?;
    }
    let labels = scenario.labels.get(name).copied().unwrap_or_default();
    let missing = labels.missing;
    let holds = (0.0..=1.0).contains(&missing);
    within(
        of("the share of missing labels"),
        missing,
        holds,
        "lie between 0 and 1",
    )?;
    let mut effects = Vec::new();
    for effect in scenario.effects.get(name).into_iter().flatten() {
        let ratio = match effect.change {
            Change::Rate(x) => {
                within(
                    of("the rate"),
                    x,
                    (0.0..=1.0).contains(&x),
                    "lie between 0 and 1",
                )?;
                x / rate
            }
            Change::Scale(x) | Change::Ratio(x) => {
                let holds = x > 0.0 && x.is_finite();
                within(of("the effect"), x, holds, "be finite and above 0")?;
                let latency = matches!(
                    def,
                    MetricDef::FirstTokenOver(_) | MetricDef::DurationOver(_)
                );
                if latency && matches!(effect.change, Change::Scale(_)) {
                    late(rate, x, scenario.latency_spread) / rate
                } else {
                    x
                }
            }
        };
        let share = Share::from_percent(effect.from_share).map_err(|_| BadScenario::Number {
            what: of("the least share"),
            value: effect.from_share,
            range: "lie between 0 and 100, in steps of 0.01",
        })?;
        effects.push((ratio, millis(effect.after), share.basis_points()));
    }
    Ok(Metric {
        mirrored,
        better: direction == Direction::GreaterIsBetter,
        rate,
        known: sampled * (1.0 - missing),
        delay: millis(labels.delay),
        effects,
    })
}

impl Metric {
    fn ratio(&self, at: u64, share: u16) -> f64 {
        let on = |(ratio, after, least): &(f64, u64, u16)| {
            (at >= *after && share >= *least).then_some(*ratio)
        };
        self.effects.iter().filter_map(on).product()
    }
}

/// What a metric has gained since the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Gain {
    candidate: Counts,
    baseline: [Counts; 2],
    pairs: Comparisons,
}

impl Gain {
    fn add(&mut self, more: &Self) {
        let plus = |to: &mut Counts, from: Counts| {
            to.n += from.n;
            to.k += from.k;
        };
        plus(&mut self.candidate, more.candidate);
        plus(&mut self.baseline[0], more.baseline[0]);
        plus(&mut self.baseline[1], more.baseline[1]);
        self.pairs.wins += more.pairs.wins;
        self.pairs.ties += more.pairs.ties;
        self.pairs.losses += more.pairs.losses;
    }
}

/// Labels on their way.
#[derive(Debug)]
struct Late {
    due: u64,
    epoch: Epoch,
    metric: usize,
    gain: Gain,
}

/// What is served.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Served {
    pub(super) share: Share,
    pub(super) control: Share,
    pub(super) mirror: Share,
    /// What the observations carry; none while they do not count.
    pub(super) epoch: Option<Epoch>,
}

/// What became of the candidate's requests in a span of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) exposed: u64,
    pub(super) harmed: u64,
}

/// The requests of one life.
#[derive(Debug)]
pub(super) struct World<'a> {
    setting: &'a Setting<'a>,
    random: Random,
    open: Vec<Gain>,
    late: VecDeque<Late>,
    /// Of the candidate and both halves of the baseline: the state and the factor.
    noise: [(f64, f64); 3],
    block: u64,
    window: Window,
}

impl<'a> World<'a> {
    pub(super) fn new(setting: &'a Setting<'a>, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let noise = setting.scenario.noise.map_or([(0.0, 1.0); 3], |noise| {
            std::array::from_fn(|_| {
                let z = random.normal();
                (z, factor(noise, z))
            })
        });
        let empty = |m: &Metric| {
            if m.mirrored {
                Increment::Compared(Comparisons::default())
            } else if setting.history > 0 {
                Increment::Grouped {
                    candidate: Counts::default(),
                    baseline: [Counts::default(); 2],
                }
            } else {
                Increment::Binary {
                    candidate: Counts::default(),
                    baseline: Counts::default(),
                }
            }
        };
        let metrics = setting.names.iter().zip(&setting.metrics);
        Self {
            setting,
            random,
            open: vec![Gain::default(); setting.metrics.len()],
            late: VecDeque::new(),
            noise,
            block: 0,
            window: Window {
                epoch: 0,
                from: 0,
                to: 0,
                metrics: metrics.map(|(name, m)| (name.clone(), empty(m))).collect(),
            },
        }
    }

    /// Blocks of the baseline alone, for the tests to learn from: each metric's name and the counts of both halves.
    pub(super) fn history(&mut self, mut learn: impl FnMut(&str, [Counts; 2])) {
        let setting = self.setting;
        let requests = setting.scenario.traffic.requests_per_second * BLOCK as f64 / 1000.0;
        for _ in 0..setting.history {
            self.next_block();
            for (name, m) in setting.names.iter().zip(&setting.metrics) {
                if !m.mirrored {
                    let (one, two) = (self.noise[1].1, self.noise[2].1);
                    let half = requests * m.known / 2.0;
                    let groups = [one, two].map(|f| {
                        let n = self.random.poisson(half);
                        let k = self.random.binomial(n, m.rate * f);
                        Counts::new(n, if m.better { n - k } else { k })
                    });
                    learn(name, groups);
                }
            }
        }
    }

    fn next_block(&mut self) {
        if let Some(noise) = self.setting.scenario.noise {
            for (z, by) in &mut self.noise {
                let phi = noise.correlation;
                *z = phi * *z + (1.0 - phi * phi).sqrt() * self.random.normal();
                *by = factor(noise, *z);
            }
        }
    }

    /// Requests per millisecond at this time, and what the rates of both arms are multiplied by.
    fn at(&self, at: f64) -> (f64, f64) {
        let scenario = self.setting.scenario;
        let per_ms = scenario.traffic.requests_per_second / 1000.0;
        let (amplitude, hour) = scenario.day;
        if amplitude <= 0.0 && scenario.drift <= 0.0 {
            return (per_ms, 1.0);
        }
        let turn = TAU * ((at / DAY) + (hour - 14.0) / 24.0);
        let rate = per_ms * (1.0 + amplitude * turn.cos());
        (rate, 1.0 + scenario.drift * turn.sin())
    }

    /// Time passes from `from` to `to`, ms since the rollout began.
    pub(super) fn pass(&mut self, from: u64, to: u64, served: Served) -> Span {
        let setting = self.setting;
        let mut span = Span::default();
        if to <= from {
            return span;
        }
        while self.block < to / BLOCK {
            if setting.scenario.noise.is_none() {
                self.block = to / BLOCK;
            } else {
                self.block += 1;
                self.next_block();
            }
        }
        let long = (to - from) as f64;
        let (per_ms, drift) = self.at(from as f64 + 0.5 * long);
        let all = per_ms * long;
        let part = |share: Share| share.percent() / 100.0;
        let n_c = self.random.poisson(all * part(served.share));
        let compared = if served.control > Share::NONE {
            part(served.control)
        } else {
            1.0 - part(served.share)
        };
        let n_m = self.random.poisson(all * part(served.mirror));
        span.exposed = n_c;
        let silent = setting.silence(from).is_some();
        if silent {
            span.harmed = n_c;
        }
        let n_b = if served.epoch.is_some() {
            self.random.poisson(all * compared)
        } else {
            0
        };
        let share = served.share.max(served.mirror).basis_points();
        let [(_, f_c), (_, f_1), (_, f_2)] = self.noise;
        for (i, m) in setting.metrics.iter().enumerate() {
            let ratio = m.ratio(from, share);
            let rate = (m.rate * drift).min(1.0);
            let worse = (rate * ratio * f_c).min(1.0);
            let mut gain = Gain::default();
            if m.mirrored {
                let n = self.known(n_m, m.known);
                let losses = self.random.binomial(n, worse);
                let wins = rate.min(1.0 - worse);
                let wins = self
                    .random
                    .binomial(n - losses, wins / (1.0 - worse).max(1e-300));
                gain.pairs = Comparisons {
                    wins,
                    ties: n - losses - wins,
                    losses,
                };
            } else {
                let n = if silent { 0 } else { self.known(n_c, m.known) };
                let k = self.random.binomial(n, worse);
                if ratio > 1.0 && !silent {
                    let caused = (1.0 - 1.0 / ratio).max(0.0);
                    span.harmed += self.random.binomial(k, caused);
                    span.harmed += self.random.binomial(n_c - n, worse * caused);
                }
                let bad = |n, k| Counts::new(n, if m.better { n - k } else { k });
                gain.candidate = bad(n, k);
                if n_b > 0 {
                    let n = self.known(n_b, m.known);
                    gain.baseline = if setting.history > 0 || setting.scenario.noise.is_some() {
                        let one = self.random.binomial(n, 0.5);
                        [(one, f_1), (n - one, f_2)].map(|(n, f)| {
                            let k = self.random.binomial(n, rate * f);
                            bad(n, k)
                        })
                    } else {
                        let k = self.random.binomial(n, rate);
                        [bad(n, k), Counts::default()]
                    };
                }
            }
            match (served.epoch, self.open.get_mut(i)) {
                (Some(_), Some(open)) if m.delay == 0 => open.add(&gain),
                (Some(epoch), _) => self.late.push_back(Late {
                    due: to.saturating_add(m.delay),
                    epoch,
                    metric: i,
                    gain,
                }),
                _ => {}
            }
        }
        span
    }

    fn known(&mut self, n: u64, share: f64) -> u64 {
        if share >= 1.0 {
            n
        } else {
            self.random.binomial(n, share)
        }
    }

    /// A new epoch: what was counted before does not count for it.
    pub(super) fn forget(&mut self) {
        self.open.fill(Gain::default());
    }

    /// Everything that has arrived since the last look.
    pub(super) fn window(&mut self, epoch: Epoch, from: u64, to: u64) -> &Window {
        if !self.late.is_empty() {
            let open = &mut self.open;
            self.late.retain(|late| {
                if late.due <= to
                    && late.epoch == epoch
                    && let Some(open) = open.get_mut(late.metric)
                {
                    open.add(&late.gain);
                }
                late.due > to && late.epoch == epoch
            });
        }
        let window = &mut self.window;
        (window.epoch, window.from, window.to) = (epoch.get(), BEGIN + from, BEGIN + to);
        for (increment, gain) in window.metrics.values_mut().zip(&mut self.open) {
            let gain = std::mem::take(gain);
            let [one, two] = gain.baseline;
            match increment {
                Increment::Compared(pairs) => *pairs = gain.pairs,
                Increment::Grouped {
                    candidate,
                    baseline,
                } => (*candidate, *baseline) = (gain.candidate, gain.baseline),
                Increment::Binary {
                    candidate,
                    baseline,
                } => {
                    *candidate = gain.candidate;
                    *baseline = Counts::new(one.n + two.n, one.k + two.k);
                }
                _ => {}
            }
        }
        window
    }
}

fn factor(noise: Noise, z: f64) -> f64 {
    let variance = (noise.cv * noise.cv).ln_1p();
    (variance.sqrt() * z - 0.5 * variance).exp()
}
