//! Thresholds and hard limits: whether they can be judged, and what chance alone does to them.

use super::chances::{breach, share_reached, sustained};
use super::view::{View, count, percent, time, words};
use super::{Findings, Severity};
use crate::StageSpec;
use llm_gates::{Action, Direction, HardLimit, LiveThreshold, Threshold};

pub(super) fn check(view: &View<'_>, findings: &mut Findings) {
    for (i, threshold) in view.spec.thresholds.iter().enumerate() {
        if !check_judged(view, i, threshold, findings) {
            check_threshold(view, i, threshold, findings);
        }
    }
    for (i, limit) in view.spec.hard_limits.iter().enumerate() {
        check_limit(view, i, limit, findings);
    }
}

fn fed<'a>(view: &View<'a>, metric: &'a str) -> impl Iterator<Item = (usize, &'a StageSpec)> {
    let spec = view.spec;
    view.stages().filter(move |(_, s)| spec.feeds(s, metric))
}

fn judged<'a>(
    view: &View<'a>,
    threshold: &'a LiveThreshold,
) -> impl Iterator<Item = (usize, &'a StageSpec)> {
    let spec = view.spec;
    view.stages()
        .filter(move |(_, s)| spec.judges(s, threshold))
}

/// Windows are as long as the time between two looks; says whether some stage's never hold enough.
fn check_judged(
    view: &View<'_>,
    i: usize,
    threshold: &LiveThreshold,
    findings: &mut Findings,
) -> bool {
    let look = view.spec.look_every;
    let wanted = threshold.min_samples as f64;
    let small = judged(view, threshold)
        .map(|(stage, s)| (stage, view.samples(s, &threshold.metric, look)))
        .find(|(_, n)| *n < wanted);
    let Some((stage, n)) = small else {
        return false;
    };
    let takes = look.as_secs_f64() * wanted / n;
    findings.add(
        Severity::Error,
        "threshold-never-judged",
        format!("thresholds[{i}].min_samples"),
        format!(
            "a window of stages[{stage}] holds about {} samples in the {} between two looks, and {wanted} are asked for: it is never judged, so the stage can never pass",
            count(n),
            words(look)
        ),
        format!("look each {}, or ask for fewer samples", time(takes)),
    );
    true
}

fn check_threshold(view: &View<'_>, i: usize, threshold: &LiveThreshold, findings: &mut Findings) {
    let Some(expected) = view.expected(&threshold.metric) else {
        return;
    };
    if threshold.direction == Direction::GreaterIsBetter {
        return;
    }
    let path = format!("thresholds[{i}].worse_than");
    if let Threshold::Absolute(limit) = threshold.worse_than {
        if limit <= expected.rate {
            findings.add(
                Severity::Error,
                "threshold-below-baseline",
                path,
                format!(
                    "the baseline itself is bad in {} of the requests, beyond the threshold of {}",
                    percent(expected.rate),
                    percent(limit)
                ),
                "a threshold well above what is usual",
            );
            return;
        }
        if expected.rate * expected.effect <= limit {
            findings.add(
                Severity::Warning,
                "threshold-hides-effect",
                path.clone(),
                format!(
                    "the harm that must be found ({:.2} times {}) keeps the threshold of {}",
                    expected.effect,
                    percent(expected.rate),
                    percent(limit)
                ),
                "leave finding it to a gate, or lower the threshold",
            );
        }
    }
    let false_alarm = false_alarms(view, threshold, expected.rate);
    if threshold.action == Action::Rollback && !threshold.dry_run && false_alarm > view.spec.alpha {
        findings.add(
            Severity::Warning,
            "threshold-by-chance",
            path,
            format!("chance alone breaks it so often that {} of all harmless candidates are rolled back", percent(false_alarm)),
            "ask for more breaches or larger windows, let it hold or warn, or use a gate, whose false alarms are bounded",
        );
    }
}

/// Probability that an equal candidate fails the threshold in some stage.
fn false_alarms(view: &View<'_>, threshold: &LiveThreshold, rate: f64) -> f64 {
    let look = view.spec.look_every;
    let mut kept = 1.0;
    for (_, stage) in judged(view, threshold) {
        let n = view.samples(stage, &threshold.metric, look);
        let compared = view.compared(stage, &threshold.metric);
        let others = compared.map_or(0.0, |share| n * (1.0 - share) / share);
        let windows = (stage.dwell.as_secs_f64() / look.as_secs_f64()).ceil();
        if let Some(q) = breach(threshold.worse_than, n, others, rate) {
            kept *= 1.0 - sustained(threshold.sustained, q, windows);
        }
    }
    1.0 - kept
}

fn check_limit(view: &View<'_>, i: usize, limit: &HardLimit, findings: &mut Findings) {
    let wanted = limit.min_samples as f64;
    let slow =
        fed(view, &limit.metric).find(|(_, s)| view.samples(s, &limit.metric, s.dwell) < wanted);
    if let Some((stage, s)) = slow {
        findings.add(
            Severity::Warning,
            "hard-limit-slow",
            format!("hard_limits[{i}].min_samples"),
            format!(
                "stages[{stage}] has about {} samples in its {}, so a block of {wanted} is never full there: the limit cannot stop anything",
                count(view.samples(s, &limit.metric, s.dwell)),
                words(s.dwell)
            ),
            "20 samples are usual",
        );
    }
    let Some(expected) = view.expected(&limit.metric) else {
        return;
    };
    if limit.direction == Direction::GreaterIsBetter {
        return;
    }
    let mut kept = 1.0;
    for (_, stage) in fed(view, &limit.metric) {
        let all = view.samples(stage, &limit.metric, stage.dwell);
        let block = view
            .samples(stage, &limit.metric, view.spec.look_every)
            .max(wanted);
        let hit = share_reached(block, expected.rate, limit.share, false);
        kept *= (1.0 - hit).powf(all / block);
    }
    let false_alarm = 1.0 - kept;
    if false_alarm > 0.2 * view.spec.alpha {
        findings.add(
            Severity::Error,
            "hard-limit-by-chance",
            format!("hard_limits[{i}].share"),
            format!(
                "the baseline itself is bad in {} of the requests: blocks of {wanted} reach {} by chance in {} of all harmless rollouts",
                percent(expected.rate),
                percent(limit.share),
                percent(false_alarm)
            ),
            "a larger share or larger blocks; what is smaller is a gate's to find",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Expected, Plan, Traffic};

    #[test]
    fn a_threshold_is_broken_by_chance_as_often_as_its_windows_are() {
        let plan = Plan::from_toml(
            r#"
            alpha = 0.05
            bake = "1h"
            look_every = "10s"
            [metrics]
            faults = { fault = {} }
            [[thresholds]]
            metric = "faults"
            worse_than = { baseline_plus = 0.25 }
            min_samples = 50
            sustained = { total = 1 }
            [[stages]]
            serve = 20.0
            dwell = "10s"
            [[stages]]
            serve = 100.0
            dwell = "10s"
        "#,
        )
        .unwrap();
        let traffic = Traffic::new(100.0).metric("faults", Expected::new(0.2, 2.0));
        let view = View::new(&plan, &traffic);
        // A quarter more than a fifth, of 200 requests beside 800: 0.05 / sqrt(0.16 (1 / 200 + 1.5625 / 800)) standard deviations; then nothing is beside it.
        let chance = false_alarms(&view, &plan.spec().thresholds[0], 0.2);
        assert!((chance - 0.066_93).abs() < 1e-4, "{chance}");
    }
}
