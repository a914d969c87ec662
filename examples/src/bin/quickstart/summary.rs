//! What came of it: for people, for programs, and as a page.

use crate::story::Story;
use examples::load::{Latency, Tally};
use examples::report::{
    EvidenceLine, GateResult, GateRow, LatencyLine, Outcome, Report, RolloutReport, TimelineEntry,
};
use llm_gates::Verdict;
use llm_rollout::Phase;
use llm_version_core::VersionId;
use serde_json::json;
use std::io::Write;

/// One rollout, as the log tells it and as the customers have counted it.
#[derive(Debug)]
pub(crate) struct Told {
    report: RolloutReport,
    rollout: String,
}

/// Joins what the log says with what the customers received.
pub(crate) fn tell(
    stories: &[Story],
    tally: &Tally,
    differences: &[(VersionId, &str, String)],
) -> Vec<Told> {
    stories
        .iter()
        .map(|story| one(story, tally, differences))
        .collect()
}

fn one(story: &Story, tally: &Tally, differences: &[(VersionId, &str, String)]) -> Told {
    let candidate = story.candidate.reference().to_string();
    let baseline = story.baseline.reference().to_string();
    let (from, to) = (
        story.begun.as_millis() / 1000,
        story.ended.as_millis() / 1000 + 1,
    );
    let during = tally.between(from, to);
    // A candidate that is gone counts to its last reply, however late; a promoted one until it was promoted.
    let counts = if story.phase == Phase::Promoted {
        during.version(&candidate)
    } else {
        tally.version(&candidate)
    };
    let (what, difference) = differences
        .iter()
        .find(|(id, ..)| *id == story.candidate)
        .map(|(_, what, text)| ((*what).to_owned(), text.clone()))
        .unwrap_or_default();
    let seconds = |at: llm_rollout::Timestamp| at.since(story.begun).as_secs_f64();
    let mut share = story.share.clone();
    let last = share.last().map_or(0.0, |(_, percent)| *percent);
    share.push((story.duration().as_secs_f64(), last));
    let mut evidence = vec![EvidenceLine {
        name: "all gates".to_owned(),
        points: story.evidence.clone(),
    }];
    evidence.extend(story.by_gate.iter().map(|(name, points)| EvidenceLine {
        name: name.clone(),
        points: points.clone(),
    }));
    let latency = |version: &str, arm: &str| LatencyLine {
        arm: arm.to_owned(),
        points: during.latency(version, 0.5, from, 2, Latency::Total),
    };
    let gates = story
        .gates
        .iter()
        .flat_map(|table| &table.rows)
        .map(|row| GateRow {
            gate: row.metric.clone(),
            result: match row.verdict {
                Verdict::Pass => GateResult::Pass,
                Verdict::Inconclusive => GateResult::Inconclusive,
                Verdict::Fail => GateResult::Fail,
            },
            measured: row
                .observed
                .map_or_else(|| "–".to_owned(), |v| format!("{v:.3}")),
            required: row
                .threshold
                .map_or_else(|| "–".to_owned(), |v| format!("{v:.3}")),
            note: row.words.clone(),
        });
    let report = RolloutReport {
        title: what,
        candidate: candidate.clone(),
        baseline: baseline.clone(),
        outcome: match story.phase {
            Phase::Promoted => Outcome::Promoted,
            Phase::Blocked => Outcome::Blocked,
            Phase::RolledBack => Outcome::RolledBack,
            _ => Outcome::Running,
        },
        cause: story
            .cause
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        seconds: story.duration().as_secs_f64(),
        exposed: counts.replies,
        harmed: counts.harmed(),
        failed_elsewhere: during.failed_elsewhere(&candidate),
        difference,
        gates: gates.collect(),
        timeline: story
            .timeline
            .iter()
            .map(|(at, phase)| TimelineEntry {
                seconds: seconds(*at),
                phase: phase.to_string(),
                text: String::new(),
            })
            .collect(),
        share,
        evidence,
        bound: story.bound,
        latency: vec![
            latency(&baseline, "baseline"),
            latency(&candidate, "candidate"),
        ],
        incident: story.incident(),
    };
    Told {
        report,
        rollout: story.id.to_string(),
    }
}

/// The page.
pub(crate) fn html(told: &[Told]) -> String {
    examples::report::html(&Report {
        title: "Rollouts of the order desk".to_owned(),
        subtitle: "A real small language model behind an OpenAI-compatible API; every number is counted from the bytes that \
                   customers received, or read from the rollout's own log."
            .to_owned(),
        rollouts: told.iter().map(|t| t.report.clone()).collect(),
    })
}

/// For programs: one JSON object.
pub(crate) fn print(told: &[Told], tally: &Tally, serving: &VersionId) -> std::io::Result<()> {
    let rollouts = told.iter().map(|Told { report, rollout }| {
        json!({
            "rollout": rollout,
            "candidate": report.candidate,
            "baseline": report.baseline,
            "outcome": word(report.outcome),
            "cause": report.cause,
            "exposed": report.exposed,
            "harmed": report.harmed,
            "failed_elsewhere": report.failed_elsewhere,
            "seconds": (report.seconds * 10.0).round() / 10.0,
        })
    });
    let summary = json!({
        "rollouts": rollouts.collect::<Vec<_>>(),
        "serving": serving.reference().to_string(),
        "replies": tally.replies(),
    });
    writeln!(std::io::stdout().lock(), "{summary}")
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Promoted => "promoted",
        Outcome::Blocked => "blocked",
        Outcome::RolledBack => "rolled_back",
        Outcome::Running => "in_progress",
    }
}

/// For people.
pub(crate) fn table(told: &[Told], tally: &Tally) -> String {
    let mut lines = vec![format!(
        "  {:<26} {:<12} {:>8} {:>7} {:>17} {:>8}",
        "candidate", "outcome", "exposed", "harmed", "failed elsewhere", "seconds"
    )];
    for Told { report, .. } in told {
        lines.push(format!(
            "  {:<26} {:<12} {:>8} {:>7} {:>17} {:>8.1}",
            report.candidate,
            word(report.outcome),
            report.exposed,
            report.harmed,
            report.failed_elsewhere,
            report.seconds
        ));
        if !report.cause.is_empty() {
            lines.push(format!("    {}", report.cause));
        }
        let incident = report.incident.iter().flatten().skip(3);
        lines.extend(incident.map(|(what, value)| format!("      {what}: {value}")));
    }
    lines.push(format!(
        "\n  {} replies in all, counted from the bytes that customers received",
        tally.replies()
    ));
    lines.join("\n")
}
