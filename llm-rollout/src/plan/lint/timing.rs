//! Waits that end too early or too late.

use super::view::{View, words};
use super::{Findings, Severity};
use crate::{Advance, Finish, MetricDef, Share};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

pub(super) fn check(view: &View<'_>, findings: &mut Findings) {
    check_verdicts(view, findings);
    check_switches(view, findings);
    check_people(view, findings);
    check_end(view, findings);
}

fn check_verdicts(view: &View<'_>, findings: &mut Findings) {
    let (look, deadline) = (view.spec.look_every, view.spec.triggers.no_verdict);
    if deadline <= look {
        findings.add(
            Severity::Error,
            "no-verdict-before-look",
            "triggers.no_verdict",
            format!("a verdict is missed after {}, and the first look comes after {}: every stage would end for want of a verdict", words(deadline), words(look)),
            "several times look_every",
        );
    } else if deadline < 3 * look {
        findings.add(
            Severity::Warning,
            "no-verdict-hasty",
            "triggers.no_verdict",
            format!("with a look each {}, one or two failed reads of the metrics end the stage after {}", words(look), words(deadline)),
            "at least three times look_every",
        );
    }
}

/// The dead-man's switches.
fn check_switches(view: &View<'_>, findings: &mut Findings) {
    let spec = view.spec;
    let silent = spec.triggers.candidate_silent;
    for (name, def) in &spec.metrics {
        if let MetricDef::FirstTokenOver(slow) = def
            && silent <= *slow
        {
            findings.add(
                Severity::Error,
                "silence-hides-slowness",
                "triggers.candidate_silent",
                format!("one request that waits {} sends the candidate back, and {name:?} calls it slow only after {}", words(silent), words(*slow)),
                "several times what is called slow",
            );
        }
        if let MetricDef::DurationOver(long) = def
            && spec.recovery.drain < *long
        {
            findings.add(
                Severity::Note,
                "drain-short",
                "recovery.drain",
                format!(
                    "requests are cut off after {}, and {name:?} calls them long only after {}",
                    words(spec.recovery.drain),
                    words(*long)
                ),
                "as long as a usual request may take",
            );
        }
    }
    if silent > 10 * MINUTE {
        findings.add(
            Severity::Warning,
            "silence-long",
            "triggers.candidate_silent",
            format!("a candidate that hangs is noticed after {}", words(silent)),
            "a few times the longest wait for a first token that users bear",
        );
    }
    let ttl = spec.lease.ttl;
    let serving = spec
        .stages
        .iter()
        .filter(|s| s.serve.0 > Share::NONE && !s.dwell.is_zero());
    let shortest = serving.map(|s| s.dwell).min();
    if shortest.is_some_and(|dwell| ttl > dwell) || ttl > 10 * MINUTE {
        findings.add(
            Severity::Warning,
            "lease-long",
            "lease.ttl",
            match shortest {
                Some(dwell) if ttl > dwell => format!(
                    "a share outlives its controller by {}, longer than a whole stage ({})",
                    words(ttl),
                    words(dwell)
                ),
                _ => format!("a share outlives its controller by {}", words(ttl)),
            },
            "60s with renewals each 10s are usual",
        );
    }
    if spec.outcomes.shift <= spec.lease.renew_every {
        findings.add(
            Severity::Error,
            "shift-too-hasty",
            "outcomes.shift",
            format!("routers have {} to confirm a share, and are spoken to each {}: one lost message sends the candidate back", words(spec.outcomes.shift), words(spec.lease.renew_every)),
            "several times lease.renew_every",
        );
    }
}

fn check_people(view: &View<'_>, findings: &mut Findings) {
    let held = view.spec.outcomes.held;
    if held >= 60 * MINUTE {
        return;
    }
    let manual = view.stages().find(|(_, s)| s.advance == Advance::Manual);
    if let Some((i, _)) = manual {
        findings.add(
            if held < MINUTE {
                Severity::Error
            } else {
                Severity::Warning
            },
            "approval-too-hasty",
            "outcomes.held",
            format!(
                "stages[{i}] waits for a person's approval, and goes back after {}",
                words(held)
            ),
            "a working day or more",
        );
    }
}

fn check_end(view: &View<'_>, findings: &mut Findings) {
    let (spec, bake) = (view.spec, view.spec.bake);
    if spec.finish == Finish::Return {
        return;
    }
    if bake.is_zero() {
        findings.add(
            Severity::Warning,
            "no-bake",
            "bake",
            "the old version is retired as soon as the candidate is promoted: a return is then a new rollout",
            "a day: what shows up late goes back at once",
        );
    } else if bake < spec.triggers.no_verdict {
        findings.add(
            Severity::Warning,
            "bake-short",
            "bake",
            format!(
                "it ends after {}, sooner than a missing verdict would be noticed ({})",
                words(bake),
                words(spec.triggers.no_verdict)
            ),
            "a day: what shows up late goes back at once",
        );
    }
    let probe = spec.watch.iter().enumerate().find(|(_, w)| w.every > bake);
    if let Some((i, watch)) = probe {
        findings.add(
            Severity::Warning,
            "probe-after-bake",
            format!("watch[{i}].every"),
            format!(
                "{:?} answers first after {}, when the old version is gone (bake: {})",
                watch.probe,
                words(watch.every),
                words(bake)
            ),
            "probe more often, or bake longer",
        );
    }
}
