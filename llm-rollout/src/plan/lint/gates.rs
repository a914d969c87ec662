//! What gates watch, and what the error budget is spent on.

use super::view::{MIXTURE, View, count, needed, percent};
use super::{Findings, Severity};
use crate::Response;
use llm_gates::{Action, ColdStart, LiveGate};
use std::time::Duration;

/// Baseline history that shows the noise of most services.
const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn check(view: &View<'_>, findings: &mut Findings) {
    check_metrics(view, findings);
    check_ways_back(view, findings);
    check_budget(view, findings);
    check_pause(view, findings);
    for (i, gate) in view.spec.gates.iter().enumerate() {
        check_gate(view, i, gate, findings);
    }
    check_history(view, findings);
}

fn check_metrics(view: &View<'_>, findings: &mut Findings) {
    let spec = view.spec;
    for name in spec.metrics.keys() {
        let watched = spec.gates.iter().any(|g| g.metric == *name)
            || spec.thresholds.iter().any(|t| t.metric == *name)
            || spec.hard_limits.iter().any(|l| l.metric == *name);
        if !watched {
            findings.add(
                Severity::Warning,
                "metric-unwatched",
                format!("metrics.{name}"),
                "it is measured, and neither a gate nor a threshold nor a hard limit looks at it",
                "give it a gate under [[gates]], or leave it out",
            );
        } else if view.expected(name).is_none() {
            findings.add(
                Severity::Note,
                "metric-unknown",
                format!("metrics.{name}"),
                "the traffic's description does not say how often it is bad, so nothing about it was checked",
                "describe its rate and the effect that must be found",
            );
        }
    }
    for name in view.traffic.metrics.keys() {
        if !spec.metrics.contains_key(name) {
            findings.add(
                Severity::Warning,
                "objective-without-metric",
                "metrics",
                format!("{name:?} must not get worse, as the traffic's description says, and the plan does not measure it"),
                "add it under [metrics], and a gate on it",
            );
        }
    }
}

/// What takes the candidate out by itself.
fn check_ways_back(view: &View<'_>, findings: &mut Findings) {
    let spec = view.spec;
    let alarms = spec.triggers.alarms.values();
    let back = spec.gates.iter().any(LiveGate::shares_budget)
        || spec
            .thresholds
            .iter()
            .any(|t| t.action == Action::Rollback && !t.dry_run)
        || !spec.hard_limits.is_empty()
        || spec.triggers.other_alarms == Response::Rollback
        || alarms
            .chain(spec.watch.iter().map(|w| &w.action))
            .any(|r| *r == Response::Rollback);
    if back {
        return;
    }
    if spec.ungated {
        findings.add(
            Severity::Note,
            "no-way-back",
            "ungated",
            "only a candidate that answers nobody, lapsed leases and people send it back",
            "add a gate, or an alarm under [triggers.alarms] that does \"rollback\"",
        );
    } else {
        findings.add(
            Severity::Error,
            "no-way-back",
            "gates",
            "no gate, threshold, hard limit or alarm rolls back: harm is reported while users stay with the candidate",
            "let a gate do action = \"rollback\" (without dry_run), or an alarm under [triggers.alarms]",
        );
    }
}

fn check_budget(view: &View<'_>, findings: &mut Findings) {
    let spec = view.spec;
    let sharing = || spec.gates.iter().filter(|g| g.shares_budget());
    if spec.alpha > 0.2 && sharing().next().is_some() {
        findings.add(
            Severity::Warning,
            "alpha-large",
            "alpha",
            format!(
                "up to {} of all harmless candidates would be rolled back",
                percent(spec.alpha)
            ),
            "0.05 is usual",
        );
    }
    let certain = |weight: f64| MIXTURE - (spec.alpha * weight).ln();
    for (i, gate) in spec
        .gates
        .iter()
        .enumerate()
        .filter(|(_, g)| g.shares_budget())
    {
        let more = certain(gate.weight) / certain(1.0) - 1.0;
        if more > 0.6 {
            findings.add(
                Severity::Warning,
                "alpha-spread-thin",
                format!("gates[{i}].weight"),
                format!(
                    "with {} of the error budget, {:?} needs {} more evidence than alone",
                    percent(gate.weight),
                    gate.metric,
                    percent(more)
                ),
                "merge gates that fail together, let the less grave ones hold or warn (they have a budget of their own), or give this one more weight",
            );
        }
    }
    let spent: f64 = sharing().map(|g| g.weight).sum();
    if spent > 0.0 && spent < 0.5 {
        findings.add(
            Severity::Warning,
            "alpha-unspent",
            "gates",
            format!("the weights of gates that roll back sum to {spent:.2}: most of alpha is never used, and detection is slower than it need be"),
            "let the weights sum to 1",
        );
    }
}

fn check_pause(view: &View<'_>, findings: &mut Findings) {
    let spec = view.spec;
    let Some(pause) = spec.pause_alpha else {
        return;
    };
    let mut add = |problem: String, help| {
        findings.add(
            Severity::Warning,
            "pause-pointless",
            "pause_alpha",
            problem,
            help,
        );
    };
    if !spec.gates.iter().any(LiveGate::shares_budget) {
        add(
            "no gate shares alpha, so there is no evidence that could reach the pause level"
                .to_owned(),
            "leave it out, or let a gate roll back",
        );
    } else if pause < 1.5 * spec.alpha {
        add(
            format!(
                "the ramp freezes at nearly the evidence ({:.1}) at which it goes back ({:.1})",
                1.0 / pause,
                1.0 / spec.alpha
            ),
            "0.25 is usual",
        );
    } else if pause > 0.5 {
        add(
            format!(
                "up to {} of all harmless candidates would be frozen",
                percent(pause)
            ),
            "0.25 is usual",
        );
    }
}

fn check_gate(view: &View<'_>, i: usize, gate: &LiveGate, findings: &mut Findings) {
    if !view
        .spec
        .stages
        .iter()
        .any(|s| view.spec.feeds(s, &gate.metric))
    {
        findings.add(
            Severity::Error,
            "gate-never-fed",
            format!("gates[{i}].metric"),
            format!("no stage gives {:?} anything to count", gate.metric),
            "pairs need a stage with mirror above 0, everything else one with serve above 0",
        );
        return;
    }
    let Some(expected) = view.expected(&gate.metric) else {
        return;
    };
    if expected.effect <= 1.0 + gate.margin {
        findings.add(
            Severity::Error,
            "margin-hides-effect",
            format!("gates[{i}].margin"),
            format!(
                "a candidate that is {:.2} times as bad must be found, and up to {:.2} times is tolerated: the gate can never fail for it",
                expected.effect,
                1.0 + gate.margin
            ),
            "tolerate less than must be found",
        );
        return;
    }
    if !view.is_blind(gate) {
        return;
    }
    let found = view.found_by(view.spec.stages.len(), gate);
    let samples = view
        .stages()
        .map(|(_, s)| view.samples(s, &gate.metric, s.dwell));
    let least = view
        .stages()
        .filter_map(|(_, s)| needed(&view.detection(s, gate)?))
        .min_by(f64::total_cmp);
    findings.add(
        Severity::Error,
        "gate-blind",
        format!("gates[{i}].metric"),
        format!(
            "over all stages it finds a candidate that is {:.2} times as bad in {} of the cases only: {} samples, where at least {} are needed",
            expected.effect,
            percent(found),
            count(samples.sum()),
            least.map_or_else(|| "more".to_owned(), count)
        ),
        "longer stages, larger shares, a metric that is measured on more requests, or a larger effect to be found",
    );
}

fn check_history(view: &View<'_>, findings: &mut Findings) {
    let (spec, history) = (view.spec, view.traffic.history);
    if history >= DAY || !spec.gates.iter().any(|g| !g.dry_run) {
        return;
    }
    let hours = history.as_secs() / 3600;
    match spec.cold_start {
        ColdStart::Quick => findings.add(
            Severity::Note,
            "cold-start",
            "cold_start",
            format!("with {hours} h of the baseline's history the noise of the arms is hardly known, and a quick test takes noise for harm: alpha then holds only where equal arms differ by sampling alone"),
            "measure the baseline for three days before the ramp, or write cold_start = \"careful\"",
        ),
        ColdStart::Careful => findings.add(
            Severity::Note,
            "cold-start",
            "cold_start",
            format!("with {hours} h of the baseline's history a careful test is slow: a doubled error rate at 5 % of the traffic is found in about a third of the rollouts, with a day of history in nearly all"),
            "measure the baseline for three days before the ramp",
        ),
    }
}
