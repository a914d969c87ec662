//! Evidence as state: saved after each look, never reset within an attempt.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Arm, BadWindow, GatePlan, Increment, LiveGate, PassWhen, Window};
use crate::numbers::log_sum_exp;
use crate::{Action, Counts, Grid, RateRatio, Verdict};

/// Everything that the windows of one attempt have said, in O(1) state per metric. Save it with the cursor of the metric source.
///
/// Evidence of harm accumulates over all epochs (stages) of an attempt: losing it restarts the test and with it the error budget.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Evidence {
    epoch: u64,
    /// End of the last counted window, ms.
    end: u64,
    failed: bool,
    metrics: BTreeMap<String, MetricEvidence>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct MetricEvidence {
    candidate: Counts,
    baseline: Counts,
    /// Candidate samples of the current epoch that had a baseline beside them.
    samples: u64,
    /// Mantel-Haenszel sums over windows: k_c n_b / n and k_b n_c / n.
    mantel_haenszel: (f64, f64),
    harm: RateRatio,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    no_harm: Option<RateRatio>,
}

/// What one gate has seen.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateEvidence {
    /// Name of the metric.
    pub metric: String,
    /// Share of the rollback budget.
    pub weight: f64,
    /// ln of the evidence against "no harm beyond the margin".
    pub log_e: f64,
    /// All counts of the candidate.
    pub candidate: Counts,
    /// All counts of the baseline.
    pub baseline: Counts,
    /// Ratio of the rates, stratified by window (Mantel and Haenszel 1959), for display; `None` while the baseline has no event.
    pub ratio: Option<f64>,
    /// What this gate says by itself.
    pub verdict: Verdict,
}

/// What all gates say after a window.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// `Fail` iff the rollback gates together have reached their bound, now or ever before.
    pub verdict: Verdict,
    /// The graver of what failed gates do; a failed hold gate prevents `Pass`, a failed warn gate prevents nothing.
    pub action: Option<Action>,
    /// Epoch of the window.
    pub epoch: u64,
    /// Start of the window, ms.
    pub from: u64,
    /// End of the window, ms.
    pub to: u64,
    /// Candidate samples of this epoch, least over the gated metrics; windows whose baseline is empty do not count.
    pub samples: u64,
    /// ln of the weighted sum of the rollback gates' evidence; `f64::MIN` where there is no such gate.
    pub log_evidence: f64,
    /// ln(1 / alpha): evidence of at least this rolls back.
    pub bound: f64,
    /// Whether the evidence has reached the pause level.
    pub paused: bool,
    /// Each gate, in the order of the plan.
    pub gates: Vec<GateEvidence>,
}

impl MetricEvidence {
    fn new(gate: &LiveGate, pass: &PassWhen) -> Option<Self> {
        let no_harm = match *pass {
            PassWhen::NonInferior { margin, .. } => {
                Some(RateRatio::new(1.0 / (1.0 + margin), Grid::Rr7).ok()?)
            }
            PassWhen::NoEvidenceOfHarm { .. } => None,
        };
        Some(Self {
            candidate: Counts::default(),
            baseline: Counts::default(),
            samples: 0,
            mantel_haenszel: (0.0, 0.0),
            harm: RateRatio::new(1.0 + gate.margin, Grid::Rr7).ok()?,
            no_harm,
        })
    }

    fn observe(&mut self, candidate: Counts, baseline: Counts) {
        self.candidate = Counts {
            n: self.candidate.n.saturating_add(candidate.n),
            k: self.candidate.k.saturating_add(candidate.k),
        };
        self.baseline = Counts {
            n: self.baseline.n.saturating_add(baseline.n),
            k: self.baseline.k.saturating_add(baseline.k),
        };
        if baseline.n > 0 {
            self.samples = self.samples.saturating_add(candidate.n);
        }
        if candidate.n > 0 && baseline.n > 0 {
            let (n_c, n_b) = (candidate.n as f64, baseline.n as f64);
            self.mantel_haenszel.0 += candidate.k as f64 * n_b / (n_c + n_b);
            self.mantel_haenszel.1 += baseline.k as f64 * n_c / (n_c + n_b);
        }
        self.harm.observe(candidate, baseline);
        if let Some(no_harm) = &mut self.no_harm {
            no_harm.observe(baseline, candidate);
        }
    }

    /// Whether what this metric must show for a stage to pass has been shown.
    fn passes(&self, gate: &LiveGate, pass: &PassWhen) -> bool {
        self.samples >= pass.min_samples()
            && match (*pass, &self.no_harm) {
                (PassWhen::NoEvidenceOfHarm { .. }, _) => true,
                (PassWhen::NonInferior { .. }, _) if gate.action == Action::Warn => true,
                (PassWhen::NonInferior { beta, .. }, Some(no_harm)) => {
                    no_harm.log_e() >= -libm::log(beta)
                }
                (PassWhen::NonInferior { .. }, None) => false,
            }
    }
}

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

    /// Adds a window and says what all windows together mean.
    ///
    /// # Errors
    /// [`BadWindow`] when the window cannot be evidence; the evidence is then as it was.
    pub fn observe(&mut self, plan: &GatePlan, window: &Window) -> Result<Judgement, BadWindow> {
        plan.validate()?;
        self.check(plan, window)?;
        if window.epoch > self.epoch {
            for metric in self.metrics.values_mut() {
                metric.samples = 0;
            }
        }
        self.epoch = window.epoch;
        self.end = window.to;
        for gate in &plan.gates {
            let Some(&Increment::Binary {
                candidate,
                baseline,
            }) = window.metrics.get(&gate.metric)
            else {
                continue;
            };
            let Some(fresh) = MetricEvidence::new(gate, &plan.pass) else {
                continue;
            };
            let metric = self
                .metrics
                .entry(gate.metric.clone())
                .or_insert_with(|| fresh.clone());
            if metric.no_harm.is_none() {
                // An earlier stage did not ask for non-inferiority; this one does.
                metric.no_harm = fresh.no_harm;
            }
            metric.observe(candidate, baseline);
        }
        Ok(self.judge(plan, window))
    }

    /// Everything that can be wrong with a window, before anything changes.
    fn check(&self, plan: &GatePlan, window: &Window) -> Result<(), BadWindow> {
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
            let Increment::Binary {
                candidate,
                baseline,
            } = increment;
            let seen = self
                .metrics
                .get(metric)
                .map(|m| (m.candidate, m.baseline))
                .unwrap_or_default();
            for (arm, counts, total) in [
                (Arm::Candidate, candidate, seen.0),
                (Arm::Baseline, baseline, seen.1),
            ] {
                counts
                    .check()
                    .and_then(|()| total.plus(*counts))
                    .map_err(|source| BadWindow::Counts {
                        metric: metric.clone(),
                        arm,
                        source,
                    })?;
            }
        }
        for gate in &plan.gates {
            let metric = || gate.metric.clone();
            if !window.metrics.contains_key(&gate.metric) {
                return Err(BadWindow::Missing { metric: metric() });
            }
            let (Some(saved), Some(fresh)) = (
                self.metrics.get(&gate.metric),
                MetricEvidence::new(gate, &plan.pass),
            ) else {
                continue;
            };
            let changed = |saved: &RateRatio, fresh: &RateRatio| {
                (saved.theta0() - fresh.theta0()).abs() > 1e-12 * fresh.theta0()
            };
            let pairs = [
                (Some(&saved.harm), Some(&fresh.harm)),
                (saved.no_harm.as_ref(), fresh.no_harm.as_ref()),
            ];
            for (then, now) in pairs {
                if let (Some(then), Some(now)) = (then, now)
                    && changed(then, now)
                {
                    return Err(BadWindow::PlanChanged {
                        metric: metric(),
                        then: then.theta0(),
                        now: now.theta0(),
                    });
                }
            }
        }
        Ok(())
    }

    fn judge(&mut self, plan: &GatePlan, window: &Window) -> Judgement {
        let bound = -libm::log(plan.alpha);
        let mut gates = Vec::with_capacity(plan.gates.len());
        let mut logs = Vec::with_capacity(plan.gates.len());
        let (mut action, mut samples, mut all_pass) = (None, u64::MAX, true);
        for gate in &plan.gates {
            let Some(metric) = self.metrics.get(&gate.metric) else {
                continue;
            };
            let log_e = metric.harm.log_e();
            let share = if gate.action == Action::Rollback {
                logs.push(libm::log(gate.weight) + log_e);
                libm::log(gate.weight)
            } else {
                0.0
            };
            let failed = share + log_e >= bound;
            let passes = metric.passes(gate, &plan.pass);
            if failed && gate.action != Action::Rollback {
                action = Action::worse(action, Some(gate.action));
            }
            all_pass &= passes && !(failed && gate.action == Action::Hold);
            samples = samples.min(metric.samples);
            let (above, below) = metric.mantel_haenszel;
            gates.push(GateEvidence {
                metric: gate.metric.clone(),
                weight: gate.weight,
                log_e,
                candidate: metric.candidate,
                baseline: metric.baseline,
                ratio: (below > 0.0).then(|| above / below),
                verdict: match (failed, passes) {
                    (true, _) => Verdict::Fail,
                    (false, true) => Verdict::Pass,
                    (false, false) => Verdict::Inconclusive,
                },
            });
        }
        let log_evidence = log_sum_exp(&logs).max(f64::MIN);
        self.failed |= log_evidence >= bound;
        let paused = plan
            .pause_alpha
            .is_some_and(|p| log_evidence >= -libm::log(p));
        let verdict = if self.failed {
            action = Some(Action::Rollback);
            Verdict::Fail
        } else if all_pass && !paused {
            Verdict::Pass
        } else {
            Verdict::Inconclusive
        };
        let &Window {
            epoch, from, to, ..
        } = window;
        Judgement {
            verdict,
            action,
            epoch,
            from,
            to,
            samples,
            log_evidence,
            bound,
            paused,
            gates,
        }
    }
}
