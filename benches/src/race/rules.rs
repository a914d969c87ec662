//! The rules that race, and how each may be set.

use std::collections::BTreeMap;

use llm_gates::anytime::NormalMixture;
use llm_gates::{Action, Counts, Evidence, GatePlan, LiveGate, PassWhen, Verdict, Window};

use super::metrics::{Metric, Place, Seen, users};
use super::peers::argo::{self, Limits, Measured};
use super::peers::flagger::{self, Around, Canary, Weights};
use super::peers::kayenta::{self, Class, Direction};
use super::peers::sequential::{Alarm, Arm, Stopping, msprt, z};
use super::rng::Rng;
use super::world::{RAMP, REQUESTS_PER_MINUTE, history};

pub(super) const ALPHA: f64 = 0.05;

/// Whose rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    Ours,
    Argo,
    Flagger,
    Alarms,
    Kayenta,
    TensorZero,
    Msprt,
    Naive,
}

impl Family {
    pub(super) const PEERS: [Self; 7] = [
        Self::Argo,
        Self::Flagger,
        Self::Alarms,
        Self::Kayenta,
        Self::TensorZero,
        Self::Msprt,
        Self::Naive,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ours => "llm-gates",
            Self::Argo => "Argo Rollouts",
            Self::Flagger => "Flagger",
            Self::Alarms => "CloudWatch alarms (SageMaker)",
            Self::Kayenta => "Kayenta",
            Self::TensorZero => "TensorZero",
            Self::Msprt => "mSPRT",
            Self::Naive => "z-test at every look",
        }
    }
}

/// A rule and its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Setting {
    /// With history and slices, as the product runs.
    Ours,
    Argo {
        every: u64,
        limit: f64,
        failures: u64,
    },
    Flagger {
        every: u64,
        limit: f64,
        threshold: u32,
    },
    Alarms {
        every: u64,
        limit: f64,
        m: usize,
        n: usize,
    },
    Kayenta {
        every: u64,
        allowed: f64,
    },
    TensorZero {
        delta: f64,
    },
    Msprt {
        tau: f64,
        alpha: f64,
    },
    Naive {
        z: f64,
    },
}

impl Setting {
    pub(super) fn text(&self) -> String {
        let percent = |limit: f64| {
            let text = format!("{:.3}", 100.0 * limit);
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        };
        match *self {
            Self::Ours => "alpha .05, 3 days of history".to_owned(),
            Self::Argo {
                every,
                limit,
                failures,
            } => {
                format!(
                    "each {every} min, fails above {} %, failureLimit {failures}",
                    percent(limit)
                )
            }
            Self::Flagger {
                every,
                limit,
                threshold,
            } => {
                format!(
                    "each {every} min, fails above {} %, threshold {threshold}",
                    percent(limit)
                )
            }
            Self::Alarms { every, limit, m, n } => {
                format!(
                    "{m} of {n} periods of {every} min above {} %",
                    percent(limit)
                )
            }
            Self::Kayenta { every, allowed } => {
                format!("each {every} min, allowedIncrease {allowed}")
            }
            Self::TensorZero { delta } => format!("delta {delta}"),
            Self::Msprt { tau, alpha } => format!("tau {tau}, alpha {alpha}"),
            Self::Naive { z } => format!("z above {z:.2}"),
        }
    }
}

/// Limits that a careful person would set on what is watched: of error and safety rates 1.5, 2 and 3 times the usual, of latencies 1.2 times the 99th percentile for this share of requests, of lost
/// comparisons these shares. The middle one comes with the default settings.
const fn limits(metric: Metric) -> [f64; 3] {
    match metric {
        Metric::Errors => [0.015, 0.02, 0.03],
        Metric::Safety => [0.000_75, 0.001, 0.001_5],
        Metric::Latency => [0.0065, 0.01, 0.02],
        Metric::Wins => [0.52, 0.55, 0.58],
    }
}

/// Settings as documented; `None` where a peer has no rule for the metric.
pub(super) fn default(family: Family, metric: Metric) -> Option<Setting> {
    let limit = limits(metric)[1];
    let tau = match metric {
        Metric::Errors | Metric::Latency => 0.005,
        Metric::Safety => 0.000_25,
        Metric::Wins => 0.05,
    };
    Some(match family {
        Family::Ours => Setting::Ours,
        Family::Argo => Setting::Argo {
            every: 5,
            limit,
            failures: 3,
        },
        Family::Flagger => Setting::Flagger {
            every: 1,
            limit,
            threshold: 5,
        },
        Family::Alarms => Setting::Alarms {
            every: 1,
            limit,
            m: 3,
            n: 5,
        },
        Family::Kayenta | Family::TensorZero if metric == Metric::Wins => return None,
        Family::Kayenta => Setting::Kayenta {
            every: 60,
            allowed: 1.0,
        },
        Family::TensorZero => Setting::TensorZero { delta: 0.05 },
        Family::Msprt => Setting::Msprt { tau, alpha: ALPHA },
        Family::Naive => Setting::Naive {
            z: 1.644_853_626_951_472_7,
        },
    })
}

/// All settings that are tried for a peer.
pub(super) fn tried(family: Family, metric: Metric) -> Vec<Setting> {
    let Some(default) = default(family, metric) else {
        return Vec::new();
    };
    let limits = limits(metric);
    let mut all = Vec::new();
    match default {
        Setting::Ours => {}
        Setting::Argo { .. } => {
            for every in [1, 5, 10, 30, 60, 120] {
                for limit in limits {
                    all.extend([0, 1, 3, 5, 10, 20].map(|failures| Setting::Argo {
                        every,
                        limit,
                        failures,
                    }));
                }
            }
        }
        Setting::Flagger { .. } => {
            for every in [1, 5, 10, 30, 60, 120] {
                for limit in limits {
                    all.extend([1, 2, 5, 10, 20].map(|threshold| Setting::Flagger {
                        every,
                        limit,
                        threshold,
                    }));
                }
            }
        }
        Setting::Alarms { .. } => {
            for every in [1, 5, 10, 30, 60, 120] {
                for limit in limits {
                    let of = [(1, 1), (2, 3), (3, 3), (3, 5), (5, 5), (8, 10), (10, 10)];
                    all.extend(of.map(|(m, n)| Setting::Alarms { every, limit, m, n }));
                }
            }
        }
        Setting::Kayenta { .. } => {
            for every in [30, 60, 120, 240] {
                all.extend(
                    [1.0, 1.1, 1.25, 1.5].map(|allowed| Setting::Kayenta { every, allowed }),
                );
            }
        }
        Setting::TensorZero { .. } => {
            all.extend(
                [0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
                    .map(|delta| Setting::TensorZero { delta }),
            );
        }
        Setting::Msprt { tau, .. } => {
            for times in [0.25, 0.5, 1.0, 2.0, 4.0] {
                all.extend([0.05, 0.1].map(|alpha| Setting::Msprt {
                    tau: times * tau,
                    alpha,
                }));
            }
        }
        Setting::Naive { .. } => {
            all.extend(
                [2.0, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75, 4.0, 4.5].map(|z| Setting::Naive { z }),
            );
        }
    }
    all
}

/// Watched events of the interval that is open.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Interval {
    events: f64,
    all: f64,
}

impl Interval {
    fn add(&mut self, seen: &Seen) {
        self.events += seen.watched.0;
        self.all += seen.watched.1;
    }

    /// The share of events once the interval is over; NaN without any.
    fn close(&mut self, seen: &Seen, every: u64) -> Option<f64> {
        (seen.at + 1).is_multiple_of(every).then(|| {
            let Self { events, all } = std::mem::take(self);
            events / all
        })
    }
}

/// A rule in the course of a life.
pub(super) enum Racer {
    Ours(Box<Evidence>, Box<GatePlan>, Window),
    Argo(Setting, Interval, Measured),
    Flagger(Setting, Interval, Canary),
    Alarms(Setting, Interval, Alarm),
    Kayenta(Setting, Vec<f64>, Vec<f64>),
    Rates(Setting, Counts, Counts),
}

impl Racer {
    /// Before the ramp; what ours learns there comes from `rng`.
    pub(super) fn new(
        setting: Setting,
        metric: Metric,
        place: Place,
        rng: &mut Rng,
        life: u64,
    ) -> Self {
        match setting {
            Setting::Ours => ours(metric, place, rng, life),
            Setting::Argo { .. } => Self::Argo(setting, Interval::default(), Measured::default()),
            Setting::Flagger { threshold, .. } => {
                let mut canary = Canary::new(Weights::Iterations(u32::MAX), threshold);
                (canary.phase, canary.weight) = (flagger::Phase::Progressing, 100.0);
                Self::Flagger(setting, Interval::default(), canary)
            }
            Setting::Alarms { m, n, .. } => {
                Self::Alarms(setting, Interval::default(), Alarm::new(m, n))
            }
            Setting::Kayenta { .. } => Self::Kayenta(setting, Vec::new(), Vec::new()),
            _ => Self::Rates(setting, Counts::default(), Counts::default()),
        }
    }

    /// Whether the candidate goes back at this look.
    pub(super) fn look(&mut self, seen: &Seen) -> bool {
        match self {
            Self::Ours(evidence, plan, window) => {
                window.epoch = seen.stage as u64;
                (window.from, window.to) = (window.to, window.to + 60_000);
                if let Some(increment) = window.metrics.get_mut("metric") {
                    increment.clone_from(&seen.increment);
                }
                evidence.expose(seen.basis_points);
                evidence
                    .look(plan, window)
                    .is_ok_and(|look| look.verdict == Verdict::Fail)
            }
            Self::Argo(setting, interval, measured) => {
                let &mut Setting::Argo {
                    every,
                    limit,
                    failures,
                } = setting
                else {
                    return false;
                };
                interval.add(seen);
                let Some(value) = interval.close(seen, every) else {
                    return false;
                };
                let limits = Limits {
                    failure: Some(failures),
                    repeats: true,
                    ..Limits::default()
                };
                let phase = argo::measured(None, Some(Ok(value > limit)));
                measured.record(phase);
                argo::assess(&limits, measured, Some(phase), false) >= argo::Phase::Error
            }
            Self::Flagger(setting, interval, canary) => {
                let &mut Setting::Flagger { every, limit, .. } = setting else {
                    return false;
                };
                interval.add(seen);
                if let Some(value) = interval.close(seen, every) {
                    let passes = flagger::in_range(value, None, Some(limit));
                    canary.tick(Around::default(), || passes);
                }
                canary.phase == flagger::Phase::Failed
            }
            Self::Alarms(setting, interval, alarm) => {
                let &mut Setting::Alarms { every, limit, .. } = setting else {
                    return false;
                };
                interval.add(seen);
                interval
                    .close(seen, every)
                    .is_some_and(|value| alarm.look((!value.is_nan()).then_some(value > limit)))
            }
            Self::Kayenta(setting, experiment, control) => {
                let &mut Setting::Kayenta { every, allowed } = setting else {
                    return false;
                };
                if let Some((c, b)) = seen.values {
                    experiment.push(c);
                    control.push(b);
                }
                if !(seen.at + 1).is_multiple_of(every) {
                    return false;
                }
                let settings = kayenta::Settings {
                    direction: Direction::Increase,
                    allowed_increase: allowed,
                    ..kayenta::Settings::default()
                };
                let mut turn = 0.0;
                let noise = || {
                    turn += 1.0;
                    turn * 0.618 % 1.0 - 0.5
                };
                let found = kayenta::classify(&settings, experiment, control, noise);
                experiment.clear();
                control.clear();
                // One metric of one group: the score is 0 or 100.
                found.class == Class::High
            }
            Self::Rates(setting, candidate, baseline) => {
                let add = |sum: &mut Counts, more: Counts| {
                    sum.n += more.n;
                    sum.k += more.k;
                };
                add(candidate, seen.candidate);
                add(baseline, seen.baseline);
                rates(*setting, *candidate, *baseline, seen.paired)
            }
        }
    }
}

fn rates(setting: Setting, candidate: Counts, baseline: Counts, paired: bool) -> bool {
    // Losses against wins among the decided.
    let decided = Counts::new(candidate.k + baseline.k, candidate.k);
    let (n, half) = (decided.n as f64, 0.5 * decided.n as f64);
    match setting {
        Setting::Naive { z: limit } => {
            let found = if paired {
                (n > 0.0).then(|| 2.0 * (decided.k as f64 - half) / n.sqrt())
            } else {
                z(candidate, baseline)
            };
            found.is_some_and(|z| z > limit)
        }
        Setting::Msprt { tau, alpha } => {
            let worse = |c: Counts, b: Counts| c.k as f64 * b.n as f64 > b.k as f64 * c.n as f64;
            if paired {
                let s = decided.k as f64 - half;
                // The sum's variance is n / 4, and its drift 4 d per unit of that.
                let mixture = NormalMixture::with_rho(1.0 / (16.0 * tau * tau), false);
                s > 0.0 && mixture.is_ok_and(|m| m.log_e(s, 0.25 * n) >= (1.0 / alpha).ln())
            } else {
                worse(candidate, baseline)
                    && msprt(candidate, baseline, tau).is_some_and(|log| log >= (1.0 / alpha).ln())
            }
        }
        Setting::TensorZero { delta } => {
            let arm = |c: Counts| {
                let n = c.n as f64;
                let p = 1.0 - c.k as f64 / n;
                Arm {
                    pulls: c.n,
                    mean: p,
                    variance: if c.n > 1 {
                        p * (1.0 - p) * n / (n - 1.0)
                    } else {
                        0.0
                    },
                }
            };
            let rule = Stopping {
                delta,
                ..Stopping::default()
            };
            candidate.n > 0
                && baseline.n > 0
                && rule.winner(&[arm(candidate), arm(baseline)]) == Some(1)
        }
        _ => false,
    }
}

fn ours(metric: Metric, place: Place, rng: &mut Rng, life: u64) -> Racer {
    let plan = GatePlan::new(
        ALPHA,
        vec![LiveGate::new("metric", 1.0, 0.0, Action::Rollback)],
        PassWhen::NoEvidenceOfHarm { min_samples: 1 },
    );
    let mut evidence = Evidence::new();
    match (metric, place) {
        (Metric::Errors | Metric::Safety, Place::World(world)) => {
            history(rng, world, 72, |groups| {
                let _ = evidence.learn(&plan, "metric", groups);
            });
        }
        (Metric::Errors | Metric::Safety, Place::Sticky(keys, sd)) => {
            // The same users as in the ramp, whose life begins with them.
            let users = users(&mut Rng::new(life), keys, sd);
            for (basis_points, _) in RAMP {
                let day = 1_440.0 * REQUESTS_PER_MINUTE;
                let mut slice = |inside: bool| {
                    let (traffic, rate) = users.arm(basis_points, inside);
                    rng.counts(day * traffic, rate)
                };
                let _ = evidence.learn_slice("metric", basis_points, slice(true), slice(false));
            }
            let rate = users.arm(10_000, true).1;
            for _ in 0..864 {
                let groups = [0; 2].map(|_| rng.counts(2.5 * REQUESTS_PER_MINUTE, rate));
                let _ = evidence.learn(&plan, "metric", groups);
            }
        }
        _ => {}
    }
    let window = Window {
        epoch: 0,
        from: 0,
        to: 0,
        metrics: BTreeMap::from([(
            "metric".to_owned(),
            llm_gates::Increment::Binary {
                candidate: Counts::default(),
                baseline: Counts::default(),
            },
        )]),
    };
    Racer::Ours(Box::new(evidence), Box::new(plan), window)
}
