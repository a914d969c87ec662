//! A record as text: one list of blocks, written as Markdown or as HTML.

use super::{Incident, Moment, Went};
use crate::{Share, Timestamp};
use std::fmt::Write as _;
use std::time::Duration;

/// A piece of the record. Text in it is data: each form escapes it.
enum Block {
    Title(String),
    Heading(&'static str),
    Line(String),
    /// For a person to write.
    Ask(&'static str),
    Table {
        head: &'static [&'static str],
        rows: Vec<Vec<String>>,
    },
}

impl Incident {
    /// As Markdown with tables.
    pub fn to_markdown(&self) -> String {
        let mut text = String::new();
        for block in self.blocks() {
            // Writing to a string cannot fail.
            let _ = match block {
                Block::Title(title) => writeln!(text, "# {}\n", plain(&title)),
                Block::Heading(heading) => writeln!(text, "## {heading}\n"),
                Block::Line(line) => writeln!(text, "{}\n", plain(&line)),
                Block::Ask(what) => writeln!(text, "_To be written: {what}_\n"),
                Block::Table { head, rows } => {
                    let _ = writeln!(text, "| {} |", head.join(" | "));
                    let _ = writeln!(text, "|{}", "---|".repeat(head.len()));
                    for row in rows {
                        let cells: Vec<_> = row.iter().map(|c| plain(c)).collect();
                        let _ = writeln!(text, "| {} |", cells.join(" | "));
                    }
                    writeln!(text)
                }
            };
        }
        text
    }

    /// As one HTML page that refers to nothing outside itself and runs no script.
    pub fn to_html(&self) -> String {
        let mut body = String::new();
        let title = escaped(&self.title());
        for block in self.blocks() {
            let _ = match block {
                Block::Title(title) => writeln!(body, "<h1>{}</h1>", escaped(&title)),
                Block::Heading(heading) => writeln!(body, "<h2>{heading}</h2>"),
                Block::Line(line) => writeln!(body, "<p>{}</p>", escaped(&line)),
                Block::Ask(what) => writeln!(body, "<p><em>To be written: {what}</em></p>"),
                Block::Table { head, rows } => {
                    let cells = |tag: &str, cells: &[String]| {
                        let cell = |c: &String| format!("<{tag}>{}</{tag}>", escaped(c));
                        format!("<tr>{}</tr>\n", cells.iter().map(cell).collect::<String>())
                    };
                    let head: Vec<_> = head.iter().map(|h| (*h).to_owned()).collect();
                    let rows: String = rows.iter().map(|row| cells("td", row)).collect();
                    writeln!(body, "<table>\n{}{rows}</table>", cells("th", &head))
                }
            };
        }
        format!("{HEAD}<title>{title}</title>\n</head>\n<body>\n{body}</body>\n</html>\n")
    }

    fn title(&self) -> String {
        format!("Rollout {}: {}", self.rollout, self.phase)
    }

    fn blocks(&self) -> Vec<Block> {
        let mut blocks = vec![Block::Title(self.title())];
        self.summary(&mut blocks);
        self.seen(&mut blocks);
        let rows = self.timeline.iter().map(row).collect();
        table(
            &mut blocks,
            "Timeline",
            &["step", "time", "what", "then", "share"],
            rows,
        );
        if self.omitted > 0 {
            blocks.push(Block::Line(format!(
                "{} moments in the middle are left out.",
                self.omitted
            )));
        }
        let rows = self.ran.iter().map(|r| {
            let part = if r.recovery { "recovery" } else { "rollout" };
            vec![
                r.intent.to_string(),
                moment(r.asked),
                part.to_owned(),
                r.what.clone(),
                ended(&r.went, r.asked),
            ]
        });
        table(
            &mut blocks,
            "What ran",
            &["intent", "asked", "part of", "what", "outcome"],
            rows.collect(),
        );
        let rows = self.told.iter().map(|t| {
            let how = if t.page { "page" } else { "note" };
            vec![
                t.intent.to_string(),
                moment(t.at),
                how.to_owned(),
                t.text.clone(),
                ended(&t.went, t.at),
            ]
        });
        table(
            &mut blocks,
            "Who was told",
            &["intent", "time", "how", "what", "outcome"],
            rows.collect(),
        );
        for (heading, what) in POST_MORTEM {
            blocks.push(Block::Heading(heading));
            blocks.push(Block::Ask(what));
        }
        blocks
    }

    fn summary(&self, blocks: &mut Vec<Block>) {
        let mut line = |text: String| blocks.push(Block::Line(text));
        line(format!(
            "{} was to replace {}.",
            self.candidate, self.baseline
        ));
        if let Some(cause) = &self.cause {
            line(format!("Cause: {cause}."));
        }
        line(format!(
            "Submitted {}; {} since {}.",
            moment(self.submitted),
            self.phase,
            moment(self.since)
        ));
        if let Some(decided) = self.decided {
            let contained = match self.contained {
                Some(at) => format!(
                    "no new request reached the candidate from {} on, {} later",
                    moment(at),
                    long(at.since(decided))
                ),
                None => "no router had confirmed it by the last step".to_owned(),
            };
            line(format!(
                "Decided to go back {}; {contained}.",
                moment(decided)
            ));
        }
        let exposure = &self.exposure;
        let mirrored = if exposure.largest_mirror > Share::NONE {
            format!(", {} mirrored", exposure.largest_mirror)
        } else {
            String::new()
        };
        line(format!(
            "Exposure: {} requests, at most {} of the traffic{mirrored}, over {}.",
            exposure.requests,
            exposure.largest_share,
            long(exposure.time)
        ));
    }

    fn seen(&self, blocks: &mut Vec<Block>) {
        if let Some(report) = &self.pre_flight {
            let number = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.4}"));
            let rows = report.rows.iter().map(|row| {
                vec![
                    row.metric.clone(),
                    number(row.observed),
                    number(row.threshold),
                    row.verdict.to_string(),
                    row.action.to_string(),
                    row.words.clone(),
                ]
            });
            table(
                blocks,
                "Gates before deployment",
                &["metric", "observed", "threshold", "verdict", "else", "why"],
                rows.collect(),
            );
        }
        let Some(evidence) = &self.evidence else {
            return;
        };
        let rows = evidence.gates.iter().map(|gate| {
            vec![
                gate.metric.clone(),
                format!("{} of {}", gate.candidate.k, gate.candidate.n),
                format!("{} of {}", gate.baseline.k, gate.baseline.n),
                gate.ratio
                    .map_or_else(|| "-".to_owned(), |r| format!("{r:.2}")),
                format!("{:.2}", gate.log_e),
                gate.verdict.to_string(),
            ]
        });
        table(
            blocks,
            "What the gates saw",
            &[
                "metric",
                "candidate",
                "baseline",
                "ratio",
                "ln E",
                "verdict",
            ],
            rows.collect(),
        );
        blocks.push(Block::Line(format!(
            "At step {}, {}: ln E {:.2} of all gates together, bound {:.2}, {} samples in the stage.",
            evidence.seq,
            moment(evidence.at),
            evidence.log_evidence.max(-999.0),
            evidence.bound.min(999.0),
            evidence.samples
        )));
        for gate in &evidence.gates {
            for assumed in &gate.assumed {
                blocks.push(Block::Line(format!("{}: {assumed}.", gate.metric)));
            }
        }
    }
}

const POST_MORTEM: [(&str, &str); 5] = [
    (
        "Summary",
        "what happened, in three sentences for somebody who was not there.",
    ),
    (
        "Impact",
        "who noticed what, for how long; start from the exposure above.",
    ),
    (
        "Root cause",
        "why the candidate was worse, and why nothing before the rollout showed it.",
    ),
    ("What went well", "what found it, what kept it small."),
    (
        "Actions",
        "each with an owner and a date; a gate or probe that would have caught it sooner.",
    ),
];

const HEAD: &str = "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
<meta name=\"viewport\" content=\"width=device-width\">\n\
<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse}td,th{border:1px solid #999;padding:.2rem .5rem;text-align:left;vertical-align:top}</style>\n";

fn table(
    blocks: &mut Vec<Block>,
    heading: &'static str,
    head: &'static [&'static str],
    rows: Vec<Vec<String>>,
) {
    if !rows.is_empty() {
        blocks.push(Block::Heading(heading));
        blocks.push(Block::Table { head, rows });
    }
}

fn row(happened: &Moment) -> Vec<String> {
    vec![
        happened.seq.to_string(),
        moment(happened.at),
        happened.what.clone(),
        happened.to.map(|p| p.to_string()).unwrap_or_default(),
        happened.share.map(|s| s.to_string()).unwrap_or_default(),
    ]
}

fn ended(went: &Went, from: Timestamp) -> String {
    match went {
        Went::Open => "not heard of".to_owned(),
        Went::Done { at } => format!("done after {}", long(at.since(from))),
        Went::Failed { at, reason } => {
            format!("failed after {}: {reason}", long(at.since(from)))
        }
        Went::Overtaken { at } => format!("overtaken after {}", long(at.since(from))),
    }
}

fn long(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

/// A moment for people: UTC where it can be a date, else milliseconds of the host's own origin.
pub(super) fn moment(at: Timestamp) -> String {
    // The last moment of the year 9999, beyond which the form has no room.
    const LAST: u64 = 253_402_300_799_999;
    let ms = at.as_millis();
    if ms > LAST {
        return format!("{ms} ms");
    }
    let since = Duration::from_millis(ms);
    match std::time::UNIX_EPOCH.checked_add(since) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string(),
        None => format!("{ms} ms"),
    }
}

/// One line of Markdown in which nothing is markup, a link or HTML.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' | '!' => {
                out.push('\\');
                out.push(c);
            }
            // Keeps bare addresses from becoming links.
            '@' => out.push_str("&#64;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out.replace("://", "&#58;//").replace("www.", "www&#46;")
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() && c != '\n' && c != '\t' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates_where_they_can_be() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_000_000_000, "1970-01-12T13:46:40Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59Z"),
            (253_402_300_800_000, "253402300800000 ms"),
        ] {
            assert_eq!(moment(Timestamp::from_millis(ms)), text);
        }
        assert_eq!(long(Duration::from_secs(3_602)), "1h 2s");
    }

    #[test]
    fn control_characters_are_blanks() {
        assert_eq!(escaped("a\u{7}b\nc\td"), "a b\nc\td");
        assert_eq!(plain("a\u{7}b\nc"), "a b c");
    }
}
