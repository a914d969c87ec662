//! Evidence as state: saved after each look, never reset within an attempt.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::gain::{Gain, Kind, directed, others};
use super::metric::{MetricEvidence, Slice, Tolerated, suits};
use super::threshold::{Block, Breaches, has_share, has_value};
use super::{
    Arm, Assumed, BadWindow, ColdStart, Direction, GateEvidence, GatePlan, HardLimit,
    HardLimitEvidence, Increment, Judgement, LiveGate, LiveThreshold, Look, ThresholdEvidence,
    Window,
};
use crate::anytime::{AutoRatio, History};
use crate::fixed::BadSample;
use crate::numbers::LogSum;
use crate::{Action, Counts, Verdict};

/// Everything that the windows of one attempt have said, in O(1) state per metric. Save it with the cursor of the metric source.
///
/// Evidence of harm accumulates over all epochs (stages) of an attempt: losing it restarts the test and with it the error budget.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Evidence {
    epoch: u64,
    /// Start and end of the last counted window, ms.
    #[serde(default)]
    start: u64,
    end: u64,
    failed: bool,
    metrics: BTreeMap<String, MetricEvidence>,
    /// Tests that have learnt the noise of a metric that no window has shown yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    history: BTreeMap<String, AutoRatio>,
    /// Slices of users before the ramp, by metric and the candidate's share in basis points.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    slices: BTreeMap<String, BTreeMap<u16, Slice>>,
    /// The slice that is exposed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    share: Option<u16>,
    /// What thresholds have counted, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    breaches: BTreeMap<String, Breaches>,
    /// Blocks of hard limits, by metric.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    blocks: BTreeMap<String, Block>,
}

/// Part of alpha that tests which learn noise spend on excluding noise levels.
const NOISE_SHARE: f64 = 0.1;

impl Evidence {
    /// No evidence yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// End of the last counted window, in ms; 0 before the first.
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Whether the rollback gates have ever reached their bound.
    pub const fn failed(&self) -> bool {
        self.failed
    }

    /// Learns the arms' noise from one block of 5 minutes in which the baseline served everybody, its replicas in two stable groups (the second empty where there is but
    /// one). Three days of it are recommended. The metric is then tested with [`AutoRatio`]; a metric without history with [`crate::RateRatio`], which takes noise that outlasts a
    /// window for harm.
    ///
    /// # Errors
    /// [`BadWindow`] for a metric without a gate, counts that cannot be, or history after the metric's first window; nothing changes then.
    pub fn learn(
        &mut self,
        plan: &GatePlan,
        metric: &str,
        groups: [Counts; 2],
    ) -> Result<(), BadWindow> {
        plan.validate()?;
        let bad = |why| BadWindow::History {
            metric: metric.to_owned(),
            why,
        };
        let gate = plan
            .gates
            .iter()
            .find(|g| g.metric == metric)
            .ok_or_else(|| bad("has no gate that could use it"))?;
        if self.metrics.contains_key(metric) {
            return Err(bad(
                "comes after the metric's first window: learn before the ramp",
            ));
        }
        let counts = |source| BadWindow::Counts {
            metric: metric.to_owned(),
            arm: Arm::Baseline,
            source,
        };
        for group in groups {
            group.check().map_err(counts)?;
        }
        let groups = match gate.direction {
            Direction::GreaterIsWorse => groups,
            Direction::GreaterIsBetter => groups.map(others),
        };
        if let Some(auto) = self.history.get_mut(metric) {
            return auto.learn(groups).map_err(counts);
        }
        let mut auto = noisy(plan, gate, groups[1].n > 0)
            .ok_or_else(|| bad("needs a plan with a usable alpha"))?;
        auto.learn(groups).map_err(counts)?;
        self.history.insert(metric.to_owned(), auto);
        Ok(())
    }

    /// Whether history of a metric would come too late, or again: some has been learnt, or windows have been counted.
    pub fn has_begun(&self, metric: &str) -> bool {
        self.history.contains_key(metric) || self.metrics.contains_key(metric)
    }

    /// Counts a future slice of users, named by the candidate's share in basis points, while the baseline still serves everybody: `candidate` for those who will get the
    /// candidate at that share, `baseline` for the rest (or the control arm). Sticky users differ persistently, so two slices of one baseline differ too; the upper bound of their ratio enters
    /// the null hypothesis once [`Evidence::expose`] says that the slice is exposed. 24 hours are recommended.
    ///
    /// # Errors
    /// [`BadWindow`] for counts that cannot be, or once windows of the metric have been counted; nothing changes then.
    pub fn learn_slice(
        &mut self,
        metric: &str,
        share: u16,
        candidate: Counts,
        baseline: Counts,
    ) -> Result<(), BadWindow> {
        if self.metrics.contains_key(metric) {
            return Err(BadWindow::History {
                metric: metric.to_owned(),
                why: "comes after the metric's first window: count slices before the ramp",
            });
        }
        let slice = self
            .slices
            .get(metric)
            .and_then(|s| s.get(&share))
            .copied()
            .unwrap_or_default();
        let add = |arm, sum: Counts, more: Counts| {
            more.check()
                .and_then(|()| sum.plus(more))
                .map_err(|source| BadWindow::Counts {
                    metric: metric.to_owned(),
                    arm,
                    source,
                })
        };
        let sum = Slice {
            candidate: add(Arm::Candidate, slice.candidate, candidate)?,
            baseline: add(Arm::Baseline, slice.baseline, baseline)?,
        };
        self.slices
            .entry(metric.to_owned())
            .or_default()
            .insert(share, sum);
        Ok(())
    }

    /// Says which slice of users, by the candidate's share in basis points, the following windows are about.
    pub const fn expose(&mut self, share: u16) {
        self.share = Some(share);
    }

    /// Adds a window and says what all windows together mean, with a report of each gate.
    ///
    /// # Errors
    /// [`BadWindow`] when the window cannot be evidence; the evidence is then as it was.
    pub fn observe(&mut self, plan: &GatePlan, window: &Window) -> Result<Judgement, BadWindow> {
        let look = self.look(plan, window)?;
        Ok(self.describe(plan, look, true))
    }

    /// The same with a report that lacks what only people read and what takes longer than all the rest: `interval`, `needed` and `detectable` are `None`. For those who judge a million times over.
    ///
    /// # Errors
    /// [`BadWindow`] when the window cannot be evidence; the evidence is then as it was.
    pub fn observe_brief(
        &mut self,
        plan: &GatePlan,
        window: &Window,
    ) -> Result<Judgement, BadWindow> {
        let look = self.look(plan, window)?;
        Ok(self.describe(plan, look, false))
    }

    /// The same without the report. Once every metric has been seen, it allocates nothing, but where a sketch reaches further than ever before.
    ///
    /// # Errors
    /// [`BadWindow`] when the window cannot be evidence; the evidence is then as it was.
    pub fn look(&mut self, plan: &GatePlan, window: &Window) -> Result<Look, BadWindow> {
        plan.validate()?;
        let fresh = self.check(plan, window)?;
        for (name, metric) in fresh {
            self.history.remove(&name);
            self.metrics.insert(name, metric);
        }
        if window.epoch > self.epoch {
            for metric in self.metrics.values_mut() {
                metric.samples = 0;
            }
            self.breaches
                .values_mut()
                .for_each(|b| *b = Breaches::default());
            self.blocks.values_mut().for_each(|b| *b = Block::default());
        }
        self.epoch = window.epoch;
        (self.start, self.end) = (window.from, window.to);
        for gate in &plan.gates {
            let tolerated = Tolerated {
                users: self.users(gate),
                at: window.from,
            };
            let gain = window
                .metrics
                .get(&gate.metric)
                .and_then(|i| Gain::of(&gate.metric, i).ok()?.toward(gate.direction));
            if let (Some(metric), Some(gain)) = (self.metrics.get_mut(&gate.metric), gain) {
                metric.paired = matches!(
                    window.metrics.get(&gate.metric),
                    Some(Increment::Compared(_) | Increment::Paired(_))
                );
                metric.ask(&plan.pass);
                metric.observe(&gain, tolerated);
            }
        }
        self.count(plan, window);
        let look = self.judge(plan);
        self.failed |= look.verdict == Verdict::Fail;
        Ok(look)
    }

    /// What thresholds and hard limits make of a window that has been checked.
    fn count(&mut self, plan: &GatePlan, window: &Window) {
        let gain = |metric: &String| Gain::of(metric, window.metrics.get(metric)?).ok();
        for threshold in &plan.thresholds {
            let Some(gain) = gain(&threshold.metric) else {
                continue;
            };
            let seen = |seen: &mut Breaches| seen.observe(threshold, &gain);
            with(&mut self.breaches, threshold.name(), seen);
        }
        for limit in &plan.hard_limits {
            let Some(gain) = gain(&limit.metric) else {
                continue;
            };
            let seen = |seen: &mut Block| seen.observe(limit, &gain);
            with(&mut self.blocks, &limit.metric, seen);
        }
    }

    /// Bounds of the ratio that the exposed users alone may cause.
    fn users(&self, gate: &LiveGate) -> (f64, f64) {
        let slice = self
            .share
            .and_then(|share| self.slices.get(&gate.metric)?.get(&share));
        slice
            .and_then(|slice| Some((slice, self.metrics.get(&gate.metric)?)))
            .map_or((1.0, 1.0), |(slice, metric)| {
                slice.tolerated(gate.direction, metric.kind)
            })
    }

    fn assumed(&self, gate: &LiveGate, metric: &MetricEvidence) -> Vec<Assumed> {
        // Both arms have answered the same requests, or drift is looked for, which is no ratio of two arms.
        if metric.paired || matches!(metric.kind, Kind::Categories(_) | Kind::Embedding(_)) {
            return Vec::new();
        }
        let slices = self.slices.get(&gate.metric);
        let slice = self.share.and_then(|share| slices?.get(&share));
        let counted = slice.is_some_and(|s| s.candidate.n > 0 && s.baseline.n > 0);
        let quiet = (!metric.knows_noise()).then_some(Assumed::QuietArms);
        let equal = (!counted || metric.kind == Kind::Score).then_some(Assumed::EqualUsers);
        quiet.into_iter().chain(equal).collect()
    }

    /// Everything that can be wrong with a window, before anything changes; returns the metrics that it is the first window of.
    fn check(
        &self,
        plan: &GatePlan,
        window: &Window,
    ) -> Result<Vec<(String, MetricEvidence)>, BadWindow> {
        let &Window {
            epoch, from, to, ..
        } = window;
        if epoch < self.epoch {
            return Err(BadWindow::OldEpoch {
                current: self.epoch,
                got: epoch,
            });
        }
        if from >= to {
            return Err(BadWindow::NoTime { from, to });
        }
        if from < self.end {
            return Err(BadWindow::Overlap {
                end: self.end,
                from,
            });
        }
        for (metric, increment) in &window.metrics {
            let gain = Gain::of(metric, increment)?;
            let seen = self
                .metrics
                .get(metric)
                .map(|m| (m.candidate, m.baseline))
                .unwrap_or_default();
            for (arm, total, more) in [
                (Arm::Candidate, seen.0, gain.candidate),
                (Arm::Baseline, seen.1, gain.baseline),
            ] {
                total.plus(more).map_err(|source| BadWindow::Counts {
                    metric: metric.clone(),
                    arm,
                    source,
                })?;
            }
            gain.candidate
                .plus(gain.baseline)
                .map_err(|source| BadWindow::Counts {
                    metric: metric.clone(),
                    arm: Arm::Baseline,
                    source,
                })?;
        }
        let mut fresh = Vec::new();
        for gate in &plan.gates {
            let metric = || gate.metric.clone();
            let increment = window
                .metrics
                .get(&gate.metric)
                .ok_or_else(|| BadWindow::Missing { metric: metric() })?;
            if directed(increment) && gate.direction == Direction::GreaterIsBetter {
                return Err(BadWindow::Directed { metric: metric() });
            }
            let kind = Kind::of(increment);
            suits(gate, &plan.pass, kind)?;
            match self.metrics.get(&gate.metric) {
                Some(saved) if saved.kind != kind => {
                    return Err(BadWindow::Kind { metric: metric() });
                }
                Some(saved) if saved.direction != gate.direction => {
                    return Err(BadWindow::Turned { metric: metric() });
                }
                Some(saved) => {
                    if let Some((then, now)) = saved.changed(gate, &plan.pass) {
                        return Err(BadWindow::PlanChanged {
                            metric: metric(),
                            then,
                            now,
                        });
                    }
                }
                None => {
                    let careful = plan.cold_start == ColdStart::Careful && kind == Kind::Rate;
                    let grouped = matches!(increment, Increment::Grouped { .. });
                    let learnt = match self.history.get(&gate.metric) {
                        Some(learnt) => Some(learnt.clone()),
                        None if careful => noisy(plan, gate, grouped),
                        None => None,
                    };
                    if learnt.is_some() && kind != Kind::Rate {
                        return Err(BadWindow::History {
                            metric: metric(),
                            why: "was learnt from counts, and its first window has another kind",
                        });
                    }
                    let new =
                        MetricEvidence::new(gate, &plan.pass, kind, learnt).ok_or_else(|| {
                            BadWindow::Scores {
                                metric: metric(),
                                source: BadSample::Parameter {
                                    name: "margin",
                                    value: gate.margin,
                                    range: "suit a test of this kind",
                                },
                            }
                        })?;
                    fresh.push((metric(), new));
                }
            }
        }
        let kind = |metric: &String| match window.metrics.get(metric) {
            Some(increment) => Ok(Kind::of(increment)),
            None => Err(BadWindow::Missing {
                metric: metric.clone(),
            }),
        };
        for threshold in &plan.thresholds {
            has_value(&threshold.metric, kind(&threshold.metric)?)?;
        }
        for limit in &plan.hard_limits {
            has_share(&limit.metric, kind(&limit.metric)?)?;
        }
        Ok(fresh)
    }

    /// Gates that have seen something, in the order of the plan.
    fn gated<'a>(
        &'a self,
        plan: &'a GatePlan,
    ) -> impl Iterator<Item = (&'a LiveGate, &'a MetricEvidence)> {
        let seen = |g: &'a LiveGate| Some((g, self.metrics.get(&g.metric)?));
        plan.gates.iter().filter_map(seen)
    }

    /// Thresholds with what they have counted, in the order of the plan.
    fn counted<'a>(
        &'a self,
        plan: &'a GatePlan,
    ) -> impl Iterator<Item = (&'a LiveThreshold, Breaches)> {
        let seen = |t: &'a LiveThreshold| {
            let seen = self.breaches.get(t.name());
            (t, seen.copied().unwrap_or_default())
        };
        plan.thresholds.iter().map(seen)
    }

    /// What all windows so far mean under this plan, without the report of each gate: a function of both alone, which allocates nothing.
    pub fn judge(&self, plan: &GatePlan) -> Look {
        let (mut action, mut samples, mut all_pass) = (None, u64::MAX, true);
        let (mut evidence, mut spent) = (LogSum::default(), 0.0);
        for (gate, metric) in self.gated(plan).filter(|(g, _)| !g.dry_run) {
            if gate.shares_budget() {
                evidence.add(libm::log(gate.weight) + metric.log_e());
                spent += metric.alpha1();
            } else if fails_alone(plan, metric) {
                action = Action::worse(action, Some(gate.action));
                all_pass &= gate.action != Action::Hold;
            }
            all_pass &= metric.passes(gate, &plan.pass);
            samples = samples.min(metric.samples);
        }
        for (threshold, seen) in self.counted(plan).filter(|(t, _)| !t.dry_run) {
            let verdict = seen.verdict(plan.pass.min_samples());
            if verdict == Verdict::Fail {
                action = Action::worse(action, Some(threshold.action));
            }
            all_pass &= threshold.action == Action::Warn || verdict == Verdict::Pass;
            samples = samples.min(seen.samples);
        }
        let hit = |limit: &HardLimit| self.blocks.get(&limit.metric).is_some_and(|b| b.hit);
        let stopped = action == Some(Action::Rollback) || plan.hard_limits.iter().any(hit);
        if samples == u64::MAX {
            samples = 0;
        }
        let bound = -libm::log(plan.alpha - spent);
        let log_evidence = evidence.ln().max(f64::MIN);
        let paused = plan
            .pause_alpha
            .is_some_and(|p| log_evidence >= -libm::log(p));
        let verdict = if self.failed || stopped || log_evidence >= bound {
            action = Some(Action::Rollback);
            Verdict::Fail
        } else if all_pass && !paused {
            Verdict::Pass
        } else {
            Verdict::Inconclusive
        };
        Look {
            verdict,
            action,
            samples,
            log_evidence,
            bound,
            paused,
        }
    }

    /// What all windows so far mean under this plan, with everything that each gate, threshold and hard limit has seen: a function of both alone.
    pub fn report(&self, plan: &GatePlan) -> Judgement {
        self.describe(plan, self.judge(plan), true)
    }

    /// `look` is what [`Evidence::judge`] says.
    fn describe(&self, plan: &GatePlan, look: Look, estimates: bool) -> Judgement {
        // Each test's evidence is worked out once.
        let seen: Vec<_> = self.gated(plan).map(|(g, m)| (g, m, m.log_e())).collect();
        let rollback: Vec<_> = seen
            .iter()
            .filter(|(g, ..)| g.shares_budget())
            .map(|(g, _, log_e)| (g.weight, *log_e))
            .collect();
        let mut blamed = blame(&rollback).into_iter();
        let describe = |(gate, metric, log_e): (&LiveGate, &MetricEvidence, f64)| {
            let blamed = gate.shares_budget().then(|| blamed.next()).flatten();
            let users = self.users(gate).1;
            let (bound, share) = if gate.shares_budget() {
                (look.bound, gate.weight)
            } else {
                (own_bound(plan, metric), 1.0)
            };
            let failed = blamed.unwrap_or(log_e) >= bound;
            let estimated = Some(metric).filter(|_| estimates);
            GateEvidence {
                metric: gate.metric.clone(),
                unit: gate.unit.clone(),
                weight: gate.weight,
                log_e,
                candidate: metric.candidate,
                baseline: metric.baseline,
                ratio: metric.ratio(),
                interval: estimated.and_then(|m| m.interval(plan.alpha)),
                verdict: match (failed, metric.passes(gate, &plan.pass)) {
                    (true, _) => Verdict::Fail,
                    (false, true) => Verdict::Pass,
                    (false, false) => Verdict::Inconclusive,
                },
                users: (users > 1.0).then_some(users),
                late_starts: metric.late_starts(),
                dry_run: gate.dry_run,
                bound: Some(bound),
                blamed,
                no_harm: metric.no_harm(&plan.pass),
                needed: estimated.and_then(|m| m.needed(&plan.pass)),
                detectable: estimated.and_then(|m| m.detectable(libm::exp(-bound) * share)),
                noise: metric.noise(),
                assumed: self.assumed(gate, metric),
            }
        };
        let gates = seen.into_iter().map(describe).collect();
        let Look {
            verdict,
            action,
            samples,
            log_evidence,
            bound,
            paused,
        } = look;
        let min_samples = plan.pass.min_samples();
        let thresholds = self
            .counted(plan)
            .map(|(t, seen)| ThresholdEvidence::of(t, seen, min_samples));
        let blocks = |l: &HardLimit| self.blocks.get(&l.metric).copied().unwrap_or_default();
        let limits = plan.hard_limits.iter();
        Judgement {
            verdict,
            action,
            epoch: self.epoch,
            from: self.start,
            to: self.end,
            samples,
            log_evidence,
            bound,
            paused,
            gates,
            thresholds: thresholds.collect(),
            hard_limits: limits
                .map(|l| HardLimitEvidence::of(l, blocks(l)))
                .collect(),
        }
    }
}

/// Changes the state of this name, which is begun where it is new; the name is copied then only.
fn with<T: Default>(states: &mut BTreeMap<String, T>, name: &str, change: impl FnOnce(&mut T)) {
    if let Some(state) = states.get_mut(name) {
        return change(state);
    }
    change(states.entry(name.to_owned()).or_default());
}

/// A test that allows for noise, nothing of which is known yet; `None` for a plan without a usable alpha.
fn noisy(plan: &GatePlan, gate: &LiveGate, grouped: bool) -> Option<AutoRatio> {
    let share = if gate.shares_budget() {
        gate.weight
    } else {
        1.0
    };
    let history = if grouped {
        History::Groups
    } else {
        History::Pooled
    };
    AutoRatio::continuous(1.0, history, NOISE_SHARE * plan.alpha * share).ok()
}

/// Whether a gate with a budget of its own has reached its bound.
fn fails_alone(plan: &GatePlan, metric: &MetricEvidence) -> bool {
    metric.log_e() >= own_bound(plan, metric)
}

fn own_bound(plan: &GatePlan, metric: &MetricEvidence) -> f64 {
    -libm::log(plan.alpha - metric.alpha1())
}

/// ln of each gate's e-value after closed testing with weighted means: the least weighted mean over all sets of gates that hold it (Vovk and Wang 2021).
fn blame(gates: &[(f64, f64)]) -> Vec<f64> {
    let mut order: Vec<_> = (0..gates.len()).collect();
    order.sort_by(|a, b| gates[*a].1.total_cmp(&gates[*b].1));
    let adjusted = |i: usize| {
        let (own, log) = gates[i];
        // Relative to the gate's own evidence.
        let (mut weight, mut sum) = (own, own);
        for (w, l) in order.iter().filter(|j| **j != i).map(|j| gates[*j]) {
            let e = libm::exp(l - log);
            if e * weight >= sum {
                break; // Neither this one nor a greater one lowers the mean.
            }
            weight += w;
            sum += w * e;
        }
        log + libm::log(sum / weight)
    };
    (0..gates.len()).map(adjusted).collect()
}
