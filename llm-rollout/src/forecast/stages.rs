//! The stages one after the other, look by look.

use super::{BadForecast, Forecast, Planner, StageForecast};
use crate::plan::{PassSpec, StageSpec, Undecided};
use crate::{Advance, Share};
use llm_gates::planner::Passage;
use llm_gates::{Action, ColdStart};
use std::time::Duration;

/// Looks of a stage that are taken one by one; more are taken together.
const LOOKS: f64 = 6_000.0;
/// What a test that has learnt the noise gives up, in nats: as measured for arms that are quiet.
const LEARNT: f64 = 0.25;

/// A gate whose evidence is followed.
struct Gated {
    passage: Passage,
    known: f64,
    /// Events per request that would not have happened.
    harm: f64,
}

/// With the gates that are wanted.
pub(super) fn forecast(
    planner: &Planner,
    harm: &[(&str, f64)],
    wanted: impl Fn(&str) -> bool,
) -> Result<Forecast, BadForecast> {
    let (plan, traffic) = (planner.plan(), planner.traffic());
    let spec = plan.spec();
    let mut gated = Vec::new();
    for gate in spec.gates.iter().filter(|g| g.shares_budget()) {
        let mirrored = spec
            .metrics
            .get(&gate.metric)
            .is_some_and(crate::MetricDef::is_mirrored);
        if mirrored || !wanted(&gate.metric) {
            continue;
        }
        let of = harm.iter().filter(|(metric, _)| *metric == gate.metric);
        let ratio = of.map(|(_, ratio)| ratio).product::<f64>();
        let rate = planner.rate(&gate.metric);
        let alpha = spec.alpha * gate.weight;
        let passage =
            Passage::new(rate, ratio, gate.margin, alpha).map_err(|bad| BadForecast::Number {
                what: format!("what is known of {:?} ({bad})", gate.metric),
                value: rate,
                range: "make a test",
            })?;
        let learnt = traffic.history > Duration::ZERO;
        gated.push(Gated {
            passage: if learnt {
                passage.dearer_by(LEARNT)
            } else {
                passage
            },
            known: planner.known(&gate.metric),
            harm: (rate * (ratio - 1.0)).clamp(0.0, 1.0 - rate),
        });
    }
    let mut run = Run {
        planner,
        harm: gated.iter().map(|g| g.harm).sum(),
        gated,
        alive: 1.0,
        before: Share::NONE,
        seconds: 0.0,
        found: Vec::new(),
        stages: Vec::new(),
    };
    for stage in plan.stages() {
        run.stage(stage);
    }
    Ok(run.forecast())
}

struct Run<'a> {
    planner: &'a Planner,
    gated: Vec<Gated>,
    harm: f64,
    alive: f64,
    before: Share,
    seconds: f64,
    /// When how much was found.
    found: Vec<(f64, f64)>,
    stages: Vec<StageForecast>,
}

impl Run<'_> {
    /// Requests a second at this share.
    fn requests(&self, share: Share) -> f64 {
        self.planner.traffic().requests_per_second * share.percent() / 100.0
    }

    /// How many looks it takes where nothing is found, and whether it then passes.
    fn looks(&self, stage: &StageSpec) -> (f64, bool) {
        let (plan, traffic) = (self.planner.plan(), self.planner.traffic());
        let spec = plan.spec();
        let every = spec.look_every.as_secs_f64();
        let mut looks = (stage.dwell.as_secs_f64() / every).ceil().max(1.0);
        let alone = self.requests(stage.serve.0) >= traffic.requests_per_second;
        for gate in spec
            .gates
            .iter()
            .filter(|g| plan.needs(stage, &g.metric) && spec.feeds(stage, &g.metric))
        {
            let mirrored = spec
                .metrics
                .get(&gate.metric)
                .is_some_and(crate::MetricDef::is_mirrored);
            let share = if mirrored {
                stage.mirror.0
            } else {
                stage.serve.0
            };
            let sampled = traffic.metrics.get(&gate.metric).map_or(1.0, |e| e.sampled);
            let gained = self.requests(share) * sampled * every;
            let least = stage.min_samples as f64;
            if least > 0.0 {
                let none = gained <= 0.0 || (alone && !mirrored);
                looks = looks.max(if none {
                    f64::INFINITY
                } else {
                    (least / gained).ceil()
                });
            }
        }
        let late = self.planner.reaction.as_secs_f64();
        let most = ((stage.longest().as_secs_f64() - late) / every)
            .floor()
            .max(1.0);
        if looks <= most {
            return (looks, true);
        }
        let held = match spec.outcomes.undecided {
            Undecided::Hold => (spec.outcomes.held.as_secs_f64() / every).floor(),
            Undecided::Rollback => 0.0,
        };
        (most + held, false)
    }

    fn stage(&mut self, stage: &StageSpec) {
        let spec = self.planner.plan().spec();
        let share = stage.serve.0;
        let (rate, late) = (self.requests(share), self.planner.reaction.as_secs_f64());
        let mut this = StageForecast {
            share,
            lasts: Duration::ZERO,
            reached: self.alive,
            detected: 0.0,
            undecided: 0.0,
            exposed: self.alive * self.requests(self.before) * late,
            harmed: 0.0,
        };
        let (looks, passes) = self.looks(stage);
        // So many at a time that a long stage takes no longer than a short one.
        let steps = looks.min(LOOKS).ceil();
        let dt = spec.look_every.as_secs_f64() * looks / steps;
        let all = self.planner.traffic().requests_per_second;
        let compared = if stage.control.0 > Share::NONE {
            self.requests(stage.control.0)
        } else {
            all - rate
        };
        self.seconds += late;
        let mut step = 0.0;
        while step < steps {
            step += 1.0;
            this.exposed += self.alive * rate * dt;
            self.seconds += dt;
            let mut alive = 1.0;
            for gate in &mut self.gated {
                let n = gate.known * dt;
                gate.passage.look(n * rate, n * compared);
                alive *= gate.passage.alive();
            }
            let left = self.reached(alive);
            this.detected += left;
            this.exposed += left * rate * late;
            if left > 0.0 {
                self.found.push((self.seconds, left));
            }
            if self.alive < 1e-12 {
                break;
            }
        }
        if !passes {
            this.undecided = self.alive;
            this.exposed += self.alive * rate * late;
            self.alive = 0.0;
        }
        this.lasts = Duration::try_from_secs_f64(dt * steps).unwrap_or(Duration::MAX);
        this.harmed = this.exposed * self.harm;
        self.before = share;
        self.stages.push(this);
    }

    /// Takes note of who is left; returns how much has gone. Once a candidate has ended undecided, nobody is left.
    fn reached(&mut self, alive: f64) -> f64 {
        let ended: f64 = self.stages.iter().map(|s| s.undecided).sum();
        let alive = if ended > 0.0 {
            0.0
        } else {
            alive.min(self.alive)
        };
        let left = self.alive - alive;
        self.alive = alive;
        left
    }

    fn forecast(mut self) -> Forecast {
        let late = self.planner.reaction.as_secs_f64();
        let last = self.alive * self.requests(self.before) * late;
        if let Some(stage) = self.stages.last_mut() {
            stage.exposed += last;
            stage.harmed += last * self.harm;
        }
        let sum = |f: fn(&StageForecast) -> f64| self.stages.iter().map(f).sum::<f64>();
        let (detected, undecided) = (sum(|s| s.detected), sum(|s| s.undecided));
        Forecast {
            detected,
            undecided,
            passed: self.alive,
            exposed: sum(|s| s.exposed),
            harmed: sum(|s| s.harmed),
            median_time: after(&self.found, 0.5 * detected),
            longest_time: after(&self.found, 0.95 * detected),
            notes: notes(self.planner),
            stages: self.stages,
        }
    }
}

fn after(found: &[(f64, f64)], much: f64) -> Option<Duration> {
    let mut sum = 0.0;
    let at = found.iter().find(|(_, p)| {
        sum += p;
        sum >= much
    })?;
    Duration::try_from_secs_f64(at.0).ok()
}

/// What the numbers do not hold.
fn notes(planner: &Planner) -> Vec<String> {
    let (spec, traffic) = (planner.plan().spec(), planner.traffic());
    let mut notes = Vec::new();
    let mut note = |holds: bool, text: &str| {
        if holds {
            notes.push(text.to_owned());
        }
    };
    let mirrored = |m: &String| {
        spec.metrics
            .get(m)
            .is_some_and(crate::MetricDef::is_mirrored)
    };
    note(
        spec.gates.iter().any(|g| mirrored(&g.metric)),
        "pairs of mirrored requests are not forecast: simulate them",
    );
    note(
        spec.gates
            .iter()
            .any(|g| g.action == Action::Hold && !g.dry_run),
        "gates that hold are not forecast: a held rollout goes on as if nothing had been found",
    );
    note(
        !(spec.thresholds.is_empty() && spec.hard_limits.is_empty()),
        "thresholds and hard limits are not forecast: what they find comes on top, false alarms too",
    );
    note(
        spec.pause_alpha.is_some(),
        "pauses are not forecast: stages may last longer",
    );
    note(
        matches!(spec.pass, PassSpec::NonInferior { .. }),
        "evidence of no harm is not forecast: stages last until there is some, or to their limit",
    );
    note(
        traffic.history > Duration::ZERO,
        "the arms are taken as quiet: noise that the history shows makes harm harder to find",
    );
    note(
        spec.stages.iter().any(|s| s.advance == Advance::Manual),
        "people are taken to approve at once",
    );
    note(
        spec.cold_start == ColdStart::Careful && traffic.history == Duration::ZERO,
        "a careful cold start finds much less than this: forecast with history, or simulate it",
    );
    let assumed = spec
        .gates
        .iter()
        .filter(|g| !traffic.metrics.contains_key(&g.metric));
    for gate in assumed {
        notes.push(format!(
            "nothing is known of {:?}: 1 % of the baseline's requests are taken as bad",
            gate.metric
        ));
    }
    notes
}
