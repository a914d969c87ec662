//! A plan and its traffic, as the numbers that the checks compare.

use crate::plan::PlanSpec;
use crate::{Expected, Plan, Share, StageSpec, Traffic};
use llm_gates::LiveGate;
use llm_gates::planner::Detection;
use std::time::Duration;

/// What a mixture over ratios costs, in nats (measured: 0.8 to 2.4).
pub(super) const MIXTURE: f64 = 1.5;
/// The power that a stage should have.
pub(super) const POWER: f64 = 0.8;

pub(super) struct View<'a> {
    pub(super) spec: &'a PlanSpec,
    pub(super) traffic: &'a Traffic,
}

impl<'a> View<'a> {
    pub(super) fn new(plan: &'a Plan, traffic: &'a Traffic) -> Self {
        Self {
            spec: plan.spec(),
            traffic,
        }
    }

    pub(super) fn stages(&self) -> impl Iterator<Item = (usize, &'a StageSpec)> + use<'a> {
        self.spec.stages.iter().enumerate()
    }

    pub(super) fn expected(&self, metric: &str) -> Option<Expected> {
        self.traffic.metrics.get(metric).copied()
    }

    fn mirrored(&self, metric: &str) -> bool {
        let def = self.spec.metrics.get(metric);
        def.is_some_and(crate::MetricDef::is_mirrored)
    }

    /// Candidate samples of the metric in a second of the stage; all requests where nothing else is known.
    pub(super) fn per_second(&self, stage: &StageSpec, metric: &str) -> f64 {
        let serve = part(stage.serve.0);
        let share = if self.mirrored(metric) {
            (1.0 - serve) * part(stage.mirror.0)
        } else {
            serve
        };
        let sampled = self.expected(metric).map_or(1.0, |e| e.sampled);
        self.traffic.requests_per_second * share * sampled
    }

    /// Candidate samples in so long a time.
    pub(super) fn samples(&self, stage: &StageSpec, metric: &str, time: Duration) -> f64 {
        self.per_second(stage, metric) * time.as_secs_f64()
    }

    /// The candidate's share of the requests that are compared; none where nothing is beside it.
    pub(super) fn compared(&self, stage: &StageSpec, metric: &str) -> Option<f64> {
        if self.mirrored(metric) {
            return (stage.mirror.0 > Share::NONE).then_some(0.5);
        }
        let (serve, control) = (part(stage.serve.0), part(stage.control.0));
        if serve <= 0.0 || serve >= 1.0 {
            return None;
        }
        Some(if control > 0.0 {
            serve / (serve + control)
        } else {
            serve
        })
    }

    /// The level at which a gate fails.
    pub(super) fn level(&self, gate: &LiveGate) -> f64 {
        if gate.shares_budget() {
            self.spec.alpha * gate.weight
        } else {
            self.spec.alpha
        }
    }

    /// How the gate's evidence grows in this stage if the candidate is as bad as must be found. None where nothing is compared, or the effect is tolerated.
    pub(super) fn detection(&self, stage: &StageSpec, gate: &LiveGate) -> Option<Detection> {
        let expected = self.expected(&gate.metric)?;
        let share = self.compared(stage, &gate.metric)?;
        let tolerated = 1.0 + gate.margin;
        let (rate, ratio) = (expected.rate * tolerated, expected.effect / tolerated);
        Detection::new(rate, ratio, share, self.level(gate), MIXTURE)
            .and_then(|d| d.with_design_effect(self.traffic.design_effect))
            .ok()
    }

    /// Probability that the gate has found the effect by the end of the stage, or of all of them, as evidence adds up over stages.
    pub(super) fn found_by(&self, stage: usize, gate: &LiveGate) -> f64 {
        let (mut drift, mut variance, mut barrier) = (0.0, 0.0, None);
        for (_, earlier) in self.stages().take(stage + 1) {
            if let Some(d) = self.detection(earlier, gate) {
                let n = self.samples(earlier, &gate.metric, earlier.dwell);
                drift += d.drift * n;
                variance += d.variance * n;
                barrier = Some(d.barrier);
            }
        }
        // All of it as one request whose evidence has this mean and variance.
        barrier.map_or(0.0, |barrier| {
            let whole = Detection {
                drift,
                variance,
                barrier,
            };
            whole.probability_by(1.0)
        })
    }

    /// Whether the gate misses the effect more often than not, over all stages.
    pub(super) fn is_blind(&self, gate: &LiveGate) -> bool {
        let compared = self
            .stages()
            .any(|(_, s)| self.detection(s, gate).is_some());
        compared && self.found_by(self.spec.stages.len(), gate) < 0.5
    }

    /// Whether the stage waits for the metric.
    pub(super) fn waits_for(&self, stage: &StageSpec, metric: &str) -> bool {
        match &stage.needs {
            Some(needs) => needs.iter().any(|m| m == metric),
            None => self.spec.feeds(stage, metric),
        }
    }
}

/// Candidate samples with which this stage alone finds the effect with the usual power.
pub(super) fn needed(detection: &Detection) -> Option<f64> {
    let mut high = detection.expected_requests().max(1.0);
    for _ in 0..40 {
        if detection.probability_by(high) >= POWER {
            break;
        }
        high *= 2.0;
    }
    let mut low = 0.0;
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if detection.probability_by(middle) >= POWER {
            high = middle;
        } else {
            low = middle;
        }
    }
    high.is_finite().then_some(high)
}

/// A share as a fraction.
pub(super) fn part(share: Share) -> f64 {
    share.percent() / 100.0
}

/// A number of requests, as people say it.
pub(super) fn count(n: f64) -> String {
    let rounded = if n < 10.0 {
        (n * 10.0).ceil() / 10.0
    } else {
        let unit = 10f64.powf(n.log10().floor() - 1.0).max(1.0);
        (n / unit).ceil() * unit
    };
    format!("{rounded}")
}

/// A probability in per cent.
pub(super) fn percent(p: f64) -> String {
    let p = 100.0 * p;
    if p >= 99.95 {
        "over 99.9 %".to_owned()
    } else if p >= 10.0 {
        format!("{p:.0} %")
    } else if p >= 0.1 {
        format!("{p:.1} %")
    } else {
        "under 0.1 %".to_owned()
    }
}

/// A time as people say it, rounded up to what matters.
pub(super) fn time(seconds: f64) -> String {
    let whole = |unit: f64| (seconds / unit).ceil() * unit;
    let rounded = if seconds >= 10.0 * 86_400.0 {
        return format!("{:.0} days", whole(86_400.0) / 86_400.0);
    } else if seconds >= 86_400.0 {
        return format!("{:.0}h", whole(3_600.0) / 3_600.0);
    } else if seconds >= 600.0 {
        whole(60.0)
    } else {
        whole(1.0)
    };
    words(Duration::from_secs_f64(rounded.max(0.0)))
}

/// A duration as it stands in plans.
pub(super) fn words(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers of users and pairs of answers, in three stages; a gate on each, alpha 0.04 shared half and half.
    fn plan() -> Plan {
        Plan::from_toml(
            r#"
            alpha = 0.04
            bake = "1h"
            [metrics]
            faults = { fault = {} }
            worse = { pair = "judge" }
            [[gates]]
            metric = "faults"
            weight = 0.5
            margin = 0.2
            [[gates]]
            metric = "worse"
            weight = 0.5
            [[stages]]
            mirror = 50.0
            serve = 0.0
            dwell = "10m"
            [[stages]]
            serve = 10.0
            control = 5.0
            mirror = 20.0
            dwell = "10m"
            [[stages]]
            serve = 10.0
            dwell = "10m"
            needs = ["worse"]
            mirror = 1.0
        "#,
        )
        .unwrap()
    }

    fn traffic() -> Traffic {
        Traffic::new(100.0)
            .metric("faults", Expected::new(0.05, 2.0))
            .metric("worse", Expected::new(0.1, 1.5).sampled(0.25))
    }

    fn near(value: f64, expected: f64) {
        assert!((value / expected - 1.0).abs() < 1e-9, "{value}");
    }

    #[test]
    fn pairs_come_of_requests_that_the_baseline_answers() {
        let (plan, traffic) = (plan(), traffic());
        let view = View::new(&plan, &traffic);
        let [shadow, canary, ..] = &view.spec.stages[..] else {
            panic!()
        };
        near(view.per_second(canary, "faults"), 10.0);
        near(view.per_second(shadow, "worse"), 12.5);
        near(view.per_second(canary, "worse"), 4.5);
        near(view.samples(canary, "worse", Duration::from_secs(8)), 36.0);
    }

    #[test]
    fn arms_are_compared_with_what_is_beside_them() {
        let (mut spec, traffic) = (plan().spec().clone(), traffic());
        spec.stages[0].mirror.0 = Share::NONE;
        let view = View {
            spec: &spec,
            traffic: &traffic,
        };
        let [nothing, controlled, canary] = &spec.stages[..] else {
            panic!()
        };
        assert_eq!(view.compared(nothing, "faults"), None);
        assert_eq!(view.compared(nothing, "worse"), None);
        near(view.compared(controlled, "faults").unwrap(), 2.0 / 3.0);
        near(view.compared(controlled, "worse").unwrap(), 0.5);
        near(view.compared(canary, "faults").unwrap(), 0.1);
    }

    #[test]
    fn what_is_tolerated_is_no_effect() {
        let (plan, traffic) = (plan(), traffic());
        let view = View::new(&plan, &traffic);
        let (gate, canary) = (&view.spec.gates[0], &view.spec.stages[2]);
        let expected = Detection::new(0.05 * 1.2, 2.0 / 1.2, 0.1, 0.04 * 0.5, MIXTURE).unwrap();
        assert_eq!(view.detection(canary, gate), Some(expected));
        let margin = |margin| LiveGate {
            margin,
            ..gate.clone()
        };
        assert_eq!(view.detection(canary, &margin(1.0)), None);
        assert_eq!(view.detection(canary, &margin(20.0)), None);
    }

    #[test]
    fn two_stages_find_what_one_of_both_their_times_does() {
        let (mut spec, mut traffic) = (plan().spec().clone(), traffic());
        traffic.requests_per_second = 10.0;
        spec.stages[1] = spec.stages[2].clone();
        let gate = spec.gates[0].clone();
        let found = |spec: &PlanSpec, stage| {
            View {
                spec,
                traffic: &traffic,
            }
            .found_by(stage, &gate)
        };
        let (first, both) = (found(&spec, 1), found(&spec, 2));
        assert!(
            (0.05..0.95).contains(&first) && both > first,
            "{first} {both}"
        );
        spec.stages[1].dwell *= 2;
        near(found(&spec, 1), both);
    }

    #[test]
    fn a_stage_waits_for_what_it_names_or_else_for_what_it_feeds() {
        let (plan, traffic) = (plan(), traffic());
        let view = View::new(&plan, &traffic);
        let waits = |stage: usize, metric| view.waits_for(&view.spec.stages[stage], metric);
        assert!(!waits(0, "faults") && waits(0, "worse"));
        assert!(waits(1, "faults") && waits(1, "worse"));
        assert!(!waits(2, "faults") && waits(2, "worse"));
    }

    #[test]
    fn numbers_are_rounded_up_to_two_digits_that_matter() {
        for (n, said) in [
            (0.42, "0.5"),
            (3.11, "3.2"),
            (10.0, "10"),
            (11.2, "12"),
            (1_234.0, "1300"),
        ] {
            assert_eq!(count(n), said);
        }
    }
}
