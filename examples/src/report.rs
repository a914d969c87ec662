//! What happened, as one HTML file that needs nothing beside itself: no
//! script, no font, no fetch.

mod markup;
mod plot;
#[cfg(test)]
mod tests;

use markup::{clock, count, difference, escape, span};
use plot::{Line, Plot, Shape};
use std::fmt::Write as _;

const STYLE: &str = include_str!("report/style.css");

/// A page about one or more rollouts.
#[derive(Debug, Clone, Default)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct Report {
    /// The heading of the page.
    pub title: String,
    /// What was run, in a sentence or two.
    pub subtitle: String,
    /// In the order in which they ran.
    pub rollouts: Vec<RolloutReport>,
}

/// How a rollout ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the page words each")]
pub enum Outcome {
    /// It has not.
    #[default]
    Running,
    /// The candidate is in production.
    Promoted,
    /// The candidate never met a user.
    Blocked,
    /// The candidate met users and is gone.
    RolledBack,
}

impl Outcome {
    fn badge(self) -> String {
        let (class, word) = match self {
            Self::Running => ("", "in progress"),
            Self::Promoted => ("good", "promoted"),
            Self::Blocked => ("warn", "blocked"),
            Self::RolledBack => ("bad", "rolled back"),
        };
        format!("<span class=\"badge {class}\">{word}</span>")
    }
}

/// One rollout. Times are seconds since it began.
#[derive(Debug, Clone, Default)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct RolloutReport {
    /// A few words: what was rolled out.
    pub title: String,
    /// The reference of the version that was rolled out.
    pub candidate: String,
    /// The reference of the version in production before.
    pub baseline: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it ended so; may be empty.
    pub cause: String,
    /// How long it took.
    pub seconds: f64,
    /// Requests that the candidate served.
    pub exposed: u64,
    /// Those of them that failed, or whose reply failed its check.
    pub harmed: u64,
    /// Failed requests of everybody else.
    pub failed_elsewhere: u64,
    /// What changed between the versions, preformatted.
    pub difference: String,
    /// The gates, before and during.
    pub gates: Vec<GateRow>,
    /// What happened when.
    pub timeline: Vec<TimelineEntry>,
    /// The candidate's share of traffic in per cent: each holds until the next.
    pub share: Vec<(f64, f64)>,
    /// Evidence of harm as ln E, by metric.
    pub evidence: Vec<EvidenceLine>,
    /// The evidence at which a rollout goes back: ln(1/alpha).
    pub bound: f64,
    /// Latency of each arm.
    pub latency: Vec<LatencyLine>,
    /// The incident record, if there is one: names and values.
    pub incident: Option<Vec<(String, String)>>,
}

/// What a gate said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the page words each")]
pub enum GateResult {
    /// Good enough.
    Pass,
    /// Not good enough.
    Fail,
    /// Too little is known.
    #[default]
    Inconclusive,
}

/// One gate and what it said.
#[derive(Debug, Clone, Default)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct GateRow {
    /// Its name.
    pub gate: String,
    /// What it said last.
    pub result: GateResult,
    /// What was measured.
    pub measured: String,
    /// What is asked for.
    pub required: String,
    /// More about it; may be empty.
    pub note: String,
}

/// One entry of the timeline.
#[derive(Debug, Clone, Default)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct TimelineEntry {
    /// When.
    pub seconds: f64,
    /// The phase that began.
    pub phase: String,
    /// What happened; may be empty.
    pub text: String,
}

/// The evidence in one metric over time.
#[derive(Debug, Clone, Default)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct EvidenceLine {
    /// The metric.
    pub name: String,
    /// Seconds and ln E.
    pub points: Vec<(f64, f64)>,
}

/// The latency of one arm over time.
#[derive(Debug, Clone, Default)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct LatencyLine {
    /// Which arm; `baseline` has the calm colour.
    pub arm: String,
    /// Seconds and milliseconds.
    pub points: Vec<(f64, f64)>,
}

/// The page.
pub fn html(report: &Report) -> String {
    let mut out = String::with_capacity(64 << 10);
    // writing to a string cannot fail
    let _ = page(&mut out, report);
    out
}

fn page(out: &mut String, report: &Report) -> std::fmt::Result {
    let title = escape(&report.title);
    let subtitle = escape(&report.subtitle);
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title>\n<style>\n{STYLE}</style></head>\n<body><main>\n\
         <h1>{title}</h1><p class=\"lead\">{subtitle}</p>\n"
    )?;
    summary(out, &report.rollouts)?;
    for (rollout, number) in report.rollouts.iter().zip(1..) {
        one(out, rollout, number)?;
    }
    out.push_str(
        "<footer>Exposed, harmed and failed requests were counted by the clients, from the bytes that they received. \
         Harmed: the request failed, or its reply failed the check of its form. \
         Evidence is ln E of an e-process: while the candidate is no worse than it may be, it reaches its bound with at most \
         the probability that the plan allows, however often one looks.</footer>\n</main></body></html>\n",
    );
    Ok(())
}

fn summary(out: &mut String, rollouts: &[RolloutReport]) -> std::fmt::Result {
    out.push_str(
        "<div class=\"card summary\"><table><thead><tr><th>Rollout</th><th>Outcome</th><th>Cause</th>\
         <th class=\"n\">Took</th><th class=\"n\">Exposed</th><th class=\"n\">Harmed</th>\
         <th class=\"n\">Failed<br>elsewhere</th></tr></thead><tbody>\n",
    );
    for (rollout, number) in rollouts.iter().zip(1..) {
        writeln!(
            out,
            "<tr><td><a href=\"#r{number}\"><b>{}</b></a><span class=\"sub\"><code>{}</code></span></td>\
             <td data-l=\"Outcome\">{}</td><td data-l=\"Cause\">{}</td><td class=\"n\" data-l=\"Took\">{}</td>\
             <td class=\"n\" data-l=\"Exposed\">{}</td><td class=\"n\" data-l=\"Harmed\">{}</td>\
             <td class=\"n\" data-l=\"Failed elsewhere\">{}</td></tr>",
            escape(name(rollout)),
            escape(&rollout.candidate),
            rollout.outcome.badge(),
            if rollout.cause.is_empty() {
                "\u{2013}".to_owned()
            } else {
                escape(&rollout.cause)
            },
            span(rollout.seconds),
            count(rollout.exposed),
            count(rollout.harmed),
            count(rollout.failed_elsewhere),
        )?;
    }
    out.push_str("</tbody></table></div>\n");
    Ok(())
}

fn name(rollout: &RolloutReport) -> &str {
    if rollout.title.is_empty() {
        &rollout.candidate
    } else {
        &rollout.title
    }
}

fn one(out: &mut String, rollout: &RolloutReport, number: usize) -> std::fmt::Result {
    write!(
        out,
        "<section class=\"rollout\" id=\"r{number}\"><div class=\"head\"><h2>{number}. {}</h2>{}</div>\
         <p class=\"versions\"><code>{}</code> against <code>{}</code></p>",
        escape(name(rollout)),
        rollout.outcome.badge(),
        escape(&rollout.candidate),
        escape(&rollout.baseline),
    )?;
    if !rollout.cause.is_empty() {
        write!(out, "<p class=\"cause\">{}</p>", escape(&rollout.cause))?;
    }
    let figure = |value: String, what: &str| {
        format!("<div class=\"card\"><b>{value}</b><span>{what}</span></div>")
    };
    let harmed = if rollout.exposed == 0 || rollout.harmed == 0 {
        "of them harmed".to_owned()
    } else {
        let share = 100.0 * rollout.harmed as f64 / rollout.exposed as f64;
        format!("of them harmed ({share:.1}\u{202f}%)")
    };
    write!(
        out,
        "<div class=\"figures\">{}{}{}{}</div>\n<div class=\"grid\">",
        figure(span(rollout.seconds), "from submission to the end"),
        figure(count(rollout.exposed), "requests served by the candidate"),
        figure(count(rollout.harmed), &harmed),
        figure(
            count(rollout.failed_elsewhere),
            "failed requests of everybody else"
        ),
    )?;
    let latency = plots(out, rollout);
    gates(out, &rollout.gates)?;
    write!(out, "<div class=\"column\">{latency}")?;
    if !rollout.difference.trim().is_empty() {
        write!(
            out,
            "<div class=\"card\"><h3>What changed</h3><pre>{}</pre></div>",
            difference(&rollout.difference)
        )?;
    }
    out.push_str("</div><div class=\"column\">");
    story(out, &rollout.timeline)?;
    if let Some(incident) = &rollout.incident {
        out.push_str("<div class=\"card\"><h3>Incident record</h3><dl>");
        for (name, value) in incident {
            write!(out, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value))?;
        }
        out.push_str("</dl></div>");
    }
    out.push_str("</div></div></section>\n");
    Ok(())
}

/// Writes the plots of share and evidence, and gives the one of latency,
/// which has its place further down.
fn plots(out: &mut String, rollout: &RolloutReport) -> String {
    let latest = |points: &[(f64, f64)]| {
        let times = points.iter().map(|(at, _)| *at);
        times.filter(|at| at.is_finite()).fold(0.0, f64::max)
    };
    let seen = rollout.evidence.iter().map(|line| latest(&line.points));
    let seen = seen.chain(rollout.latency.iter().map(|line| latest(&line.points)));
    let end = seen.fold(rollout.seconds.max(latest(&rollout.share)), f64::max);
    let served = rollout.share.iter().any(|(_, share)| *share > 0.0);
    if !served {
        out.push_str(
            "<div class=\"card wide\"><h3>No user met this candidate</h3>\
             <p class=\"note\">It served no request, so there is no share, no evidence and no latency to plot.</p></div>",
        );
        return String::new();
    }
    let card = |title: &str, note: &str, plot: &Plot<'_>| {
        let plot = plot.html();
        format!("<div class=\"card\"><h3>{title}</h3><p class=\"note\">{note}</p>{plot}</div>")
    };
    let share = [Line {
        name: "candidate",
        colour: 1,
        points: &rollout.share,
    }];
    let plot = Plot {
        label: "The candidate's share of traffic over time",
        unit: "%",
        lines: &share,
        shape: Shape::Steps,
        seconds: end,
        range: (0.0, 100.0),
        ticks: &[0.0, 25.0, 50.0, 75.0, 100.0],
        bound: None,
    };
    *out += &card(
        "Share of traffic",
        "What the candidate was given of all sessions.",
        &plot,
    );
    if !rollout.evidence.is_empty() {
        let lines: Vec<Line<'_>> = rollout
            .evidence
            .iter()
            .zip((1..=4).cycle())
            .map(|(line, colour)| Line {
                name: &line.name,
                colour,
                points: &line.points,
            })
            .collect();
        let plot = Plot {
            label: "Evidence of harm over time, and the bound at which the rollout goes back",
            unit: "ln E",
            lines: &lines,
            shape: Shape::Straight,
            seconds: end,
            range: evidence_range(rollout),
            ticks: &[],
            bound: (rollout.bound > 0.0).then_some((rollout.bound, "bound: roll back")),
        };
        *out += &card(
            "Evidence of harm",
            "At the bound the rollout goes back.",
            &plot,
        );
    }
    if rollout.latency.is_empty() {
        return String::new();
    }
    let lines: Vec<Line<'_>> = rollout
        .latency
        .iter()
        .zip(1..)
        .map(|(line, place)| Line {
            name: &line.arm,
            colour: if line.arm.starts_with("baseline") {
                0
            } else if line.arm.starts_with("candidate") {
                1
            } else {
                2 + place % 3
            },
            points: &line.points,
        })
        .collect();
    let values = lines.iter().flat_map(|line| line.points);
    let most = values.map(|(_, ms)| *ms).filter(|ms| ms.is_finite());
    let most = most.fold(1.0, f64::max);
    let ticks = round_up(most);
    let plot = Plot {
        label: "Latency of both arms over time",
        unit: "ms",
        lines: &lines,
        shape: Shape::Straight,
        seconds: end,
        range: (0.0, ticks.last().copied().unwrap_or(most)),
        ticks: &ticks,
        bound: None,
    };
    card("Latency of both arms", "As the clients measured it.", &plot)
}

/// Ticks from zero to the round number above the largest value.
fn round_up(most: f64) -> Vec<f64> {
    let mut steps = plot::ticks(0.0, most, 5.0);
    if let [_, step, ..] = steps[..] {
        let last = steps.last().copied().unwrap_or(step);
        if last < most * 1.02 {
            steps.push(last + step);
        }
    }
    steps
}

/// From the least evidence worth seeing to what lies above the bound.
/// Evidence falls without end where there is no harm, and that far down
/// nothing can be learnt from it.
fn evidence_range(rollout: &RolloutReport) -> (f64, f64) {
    let values = rollout.evidence.iter().flat_map(|line| &line.points);
    let values = values.map(|(_, value)| *value).filter(|v| v.is_finite());
    let (low, high) = values.fold((0.0_f64, 0.0_f64), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let bound = rollout.bound.clamp(1.0, 1e3);
    let high = high.min(3.0 * bound).max(bound);
    (low.max(-bound), high + 0.22 * bound)
}

fn gates(out: &mut String, gates: &[GateRow]) -> std::fmt::Result {
    if gates.is_empty() {
        return Ok(());
    }
    out.push_str(
        "<div class=\"card wide rows\"><h3>Gates</h3><table><thead><tr><th>Gate</th><th>Verdict</th>\
         <th class=\"n\">Measured</th><th class=\"apart\">Required</th><th>Note</th></tr></thead><tbody>",
    );
    for gate in gates {
        let (class, word) = match gate.result {
            GateResult::Pass => ("good", "pass"),
            GateResult::Fail => ("bad", "fail"),
            GateResult::Inconclusive => ("", "inconclusive"),
        };
        write!(
            out,
            "<tr><td><b>{}</b></td><td data-l=\"Verdict\"><span class=\"badge {class}\">{word}</span></td>\
             <td class=\"n\" data-l=\"Measured\">{}</td><td class=\"apart\" data-l=\"Required\">{}</td><td>{}</td></tr>",
            escape(&gate.gate),
            escape(&gate.measured),
            escape(&gate.required),
            escape(&gate.note),
        )?;
    }
    out.push_str("</tbody></table></div>");
    Ok(())
}

fn story(out: &mut String, timeline: &[TimelineEntry]) -> std::fmt::Result {
    if timeline.is_empty() {
        return Ok(());
    }
    out.push_str("<div class=\"card\"><h3>What happened</h3><ol class=\"story\">");
    for entry in timeline {
        let class = if entry.phase.starts_with("promoted") {
            "good"
        } else if entry.phase.starts_with("roll") || entry.phase.starts_with("blocked") {
            "bad"
        } else {
            ""
        };
        write!(
            out,
            "<li><time>{}</time><i></i><div><b class=\"{class}\">{}</b>{}</div></li>",
            clock(entry.seconds),
            escape(&entry.phase),
            if entry.text.is_empty() {
                String::new()
            } else {
                format!("<span class=\"sub\">{}</span>", escape(&entry.text))
            },
        )?;
    }
    out.push_str("</ol></div>");
    Ok(())
}
