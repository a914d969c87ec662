//! The race as text, Markdown, JSON and charts.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::course::{Found, Race, Row, Section, Share};

/// Begin of the block that [`replace`] keeps up to date.
pub const BEGIN: &str = "<!-- race: begin (written by `cargo run --release -p benches --bin race -- --update COMPARE.md`) -->";
/// Its end.
pub const END: &str = "<!-- race: end -->";

fn percent(share: Share) -> String {
    let (low, high) = share.interval();
    format!(
        "{:.1} ({:.1}–{:.1})",
        100.0 * share.value(),
        100.0 * low,
        100.0 * high
    )
}

/// Shares found in the stages, and never.
fn stages(found: &Found) -> String {
    let hits: u64 = found.stages.iter().map(|s| s.hits).sum();
    let all = found.stages[0].lives;
    let mut text = found
        .stages
        .iter()
        .map(|s| format!("{:.0}", 100.0 * s.value()))
        .collect::<Vec<_>>()
        .join(" / ");
    if hits < all {
        let _ = write!(
            text,
            ", never {:.0}",
            100.0 * (all - hits) as f64 / all as f64
        );
    }
    text
}

fn exposed(found: &Found) -> String {
    let (median, low, high) = found.exposed;
    let harmed = if found.harmed < 9.5 {
        format!("{:.1}", found.harmed)
    } else {
        format!("{:.0}", found.harmed)
    };
    format!("{median:.0} ({low:.0}–{high:.0}); {harmed}")
}

fn name(row: &Row) -> String {
    if row.how == "ours" {
        row.rule.to_owned()
    } else {
        format!("{}, {}", row.rule, row.how)
    }
}

/// The two tables of a section: heads and rows of cells.
fn tables(section: &Section) -> [(Vec<String>, Vec<Vec<String>>); 2] {
    let head = |rest: Vec<String>| std::iter::once("rule".to_owned()).chain(rest).collect();
    let harmless = section.rows.iter().map(|row| {
        let shares = row.harmless.iter().map(|s| percent(*s));
        std::iter::once(name(row)).chain(shares).collect()
    });
    let harmful = section.rows.iter().map(|row| {
        let found = row.harmful.iter().flat_map(|f| [stages(f), exposed(f)]);
        std::iter::once(name(row)).chain(found).collect()
    });
    let effects = section.effects.iter().flat_map(|e| {
        [
            format!("{e}: found in stage, %"),
            format!("{e}: requests; harmed"),
        ]
    });
    [
        (
            head(section.worlds.iter().map(ToString::to_string).collect()),
            harmless.collect(),
        ),
        (head(effects.collect()), harmful.collect()),
    ]
}

fn about(race: &Race) -> String {
    format!(
        "{} harmless and {} harmful lives per column (half as many for latencies), peers tuned on {}; seeds are fixed.",
        race.lives.harmless, race.lives.harmful, race.lives.tuning
    )
}

fn settings(section: &Section) -> String {
    let each = section
        .rows
        .iter()
        .map(|row| format!("{}: {}", name(row), row.settings));
    each.collect::<Vec<_>>().join("; ")
}

const HARMLESS: &str = "False rollbacks of a harmless candidate, % (95 % interval)";
const HARMFUL: &str = "A harmful candidate in the stationary world: stage 1 / 5 / 25 / 50 % in which it is found, median of the requests that it served until then, and of the events beyond the baseline's";

/// For a terminal.
pub fn text(race: &Race) -> String {
    let mut out = about(race);
    out.push('\n');
    for section in &race.sections {
        let _ = write!(out, "\n{}\n", section.metric.to_uppercase());
        for (title, (head, rows)) in [HARMLESS, HARMFUL].into_iter().zip(tables(section)) {
            let all: Vec<_> = std::iter::once(&head).chain(&rows).collect();
            let width = |column: usize| {
                let cells = all.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            };
            let _ = writeln!(out, "\n{title}");
            for row in &all {
                let mut line = String::new();
                for (column, cell) in row.iter().enumerate() {
                    let width = width(column);
                    let _ = write!(line, "{cell:<width$}  ");
                }
                let _ = writeln!(out, "{}", line.trim_end());
            }
        }
        let _ = writeln!(out, "\nsettings: {}", settings(section));
    }
    out
}

/// For a document, between [`BEGIN`] and [`END`].
pub fn markdown(race: &Race) -> String {
    let mut out = format!("{BEGIN}\n\n{}\n", about(race));
    for section in &race.sections {
        let _ = write!(out, "\n### Race: {}\n", section.metric);
        for (title, (head, rows)) in [HARMLESS, HARMFUL].into_iter().zip(tables(section)) {
            let _ = write!(
                out,
                "\n{title}:\n\n| {} |\n|{}\n",
                head.join(" | "),
                "---|".repeat(head.len())
            );
            for row in rows {
                let _ = writeln!(out, "| {} |", row.join(" | "));
            }
        }
        let _ = write!(out, "\nSettings: {}.\n", settings(section));
    }
    let _ = write!(out, "\n{END}");
    out
}

/// The document with its block replaced; `None` where it has none.
pub fn replace(document: &str, block: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{block}{after}"))
}

/// For programs: one object.
pub fn json(race: &Race) -> Value {
    let share = |s: &Share| {
        let (low, high) = s.interval();
        json!({ "hits": s.hits, "lives": s.lives, "low": low, "high": high })
    };
    let found = |f: &Found| {
        json!({
            "stages": f.stages.iter().map(share).collect::<Vec<_>>(),
            "exposed": { "median": f.exposed.0, "low": f.exposed.1, "high": f.exposed.2 },
            "harmed": f.harmed,
        })
    };
    let row = |row: &Row| {
        json!({
            "rule": row.rule,
            "how": row.how,
            "settings": row.settings,
            "harmless": row.harmless.iter().map(share).collect::<Vec<_>>(),
            "harmful": row.harmful.iter().map(found).collect::<Vec<_>>(),
        })
    };
    let section = |s: &Section| {
        json!({
            "metric": s.metric,
            "worlds": s.worlds,
            "effects": s.effects,
            "rows": s.rows.iter().map(row).collect::<Vec<_>>(),
        })
    };
    json!({
        "lives": { "harmless": race.lives.harmless, "harmful": race.lives.harmful, "tuning": race.lives.tuning },
        "sections": race.sections.iter().map(section).collect::<Vec<_>>(),
    })
}

const COLOURS: [&str; 3] = ["#2f6fb0", "#c2642b", "#7a9a3a"];

/// Bars of one quantity: a name, and per bar a value and its interval in [0, 1] of the width.
fn bars(
    title: &str,
    legend: &[&str],
    rows: &[(String, Vec<[f64; 3]>)],
    label: impl Fn(f64) -> String,
) -> String {
    let line = 9.0;
    let height = |row: &Vec<[f64; 3]>| line * row.len() as f64 + 8.0;
    let total = 40.0 + rows.iter().map(|(_, r)| height(r)).sum::<f64>();
    let mut out = format!(
        "<h3>{title}</h3><svg viewBox=\"0 0 900 {total}\" width=\"900\" role=\"img\" aria-label=\"{title}\" font-family=\"sans-serif\" font-size=\"9\">"
    );
    for (i, name) in legend.iter().enumerate() {
        let x = 240 + 200 * i;
        let colour = COLOURS[i % COLOURS.len()];
        let _ = write!(
            out,
            "<rect x=\"{x}\" y=\"6\" width=\"9\" height=\"9\" fill=\"{colour}\"/><text x=\"{}\" y=\"14\">{name}</text>",
            x + 13
        );
    }
    let mut y = 24.0;
    for (name, values) in rows {
        let _ = write!(
            out,
            "<text x=\"232\" y=\"{}\" text-anchor=\"end\">{name}</text>",
            y + height(values) / 2.0
        );
        for (i, [value, low, high]) in values.iter().enumerate() {
            let at = y + line * i as f64;
            let x = |v: f64| 240.0 + 590.0 * v.clamp(0.0, 1.0);
            let colour = COLOURS[i % COLOURS.len()];
            let _ = write!(
                out,
                "<rect x=\"240\" y=\"{at:.1}\" width=\"{:.1}\" height=\"7\" fill=\"{colour}\"/><line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#222\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                x(*value) - 240.0,
                x(*low),
                x(*high),
                at + 3.5,
                at + 3.5,
                x(*high) + 4.0,
                at + 7.0,
                label(*value)
            );
        }
        y += height(values);
    }
    out.push_str("</svg>");
    out
}

/// A page of its own: false rollbacks in the hardest worlds, and requests served until harm is found.
pub fn chart(race: &Race) -> String {
    let mut out = format!(
        "<!doctype html><meta charset=\"utf-8\"><title>The race</title><body style=\"font-family:sans-serif\"><h1>The race</h1><p>{}</p>",
        about(race)
    );
    for section in &race.sections {
        let _ = write!(out, "<h2>{}</h2>", section.metric);
        for (i, worlds) in section.worlds.chunks(3).enumerate() {
            let rows: Vec<_> = section
                .rows
                .iter()
                .map(|row| {
                    let shares = row.harmless.iter().skip(3 * i).take(worlds.len());
                    let each = |s: &Share| [s.value(), s.interval().0, s.interval().1];
                    (name(row), shares.map(each).collect())
                })
                .collect();
            out.push_str(&bars(
                "False rollbacks of a harmless candidate",
                worlds,
                &rows,
                |v| format!("{:.1} %", 100.0 * v),
            ));
        }
        // From 10 to 10 million requests, logarithmic.
        let place = |requests: f64| (requests.max(10.0).log10() - 1.0) / 6.0;
        let rows: Vec<_> = section
            .rows
            .iter()
            .map(|row| {
                let each = |f: &Found| [place(f.exposed.0), place(f.exposed.1), place(f.exposed.2)];
                (name(row), row.harmful.iter().map(each).collect())
            })
            .collect();
        let title = "Requests that a harmful candidate served (median, logarithmic)";
        out.push_str(&bars(title, &section.effects, &rows, |v| {
            format!("{:.0}", 10f64.powf(6.0 * v + 1.0))
        }));
    }
    out.push_str("</body>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::super::course::Lives;
    use super::*;

    fn tiny() -> Race {
        let share = |hits| Share { hits, lives: 40 };
        let row = |rule, how| Row {
            rule,
            how,
            settings: "as it is".to_owned(),
            harmless: vec![share(1), share(40)],
            harmful: vec![Found {
                stages: [share(4), share(20), share(0), share(0)],
                exposed: (1_234.0, 900.0, 2_000.0),
                harmed: 12.34,
            }],
        };
        Race {
            lives: Lives::QUICK,
            sections: vec![Section {
                metric: "error rate, 1 %",
                worlds: vec!["stationary", "drift"],
                effects: vec!["x 2"],
                rows: vec![row("llm-gates", "ours"), row("Flagger", "tuned")],
            }],
        }
    }

    /// Tables of a block: rows of cells, heads first.
    fn tables_of(block: &str) -> Vec<Vec<Vec<&str>>> {
        let cells = |line| {
            str::trim_matches(line, '|')
                .split('|')
                .map(str::trim)
                .collect()
        };
        let tables = block.split("\n\n").filter(|part| part.starts_with('|'));
        tables
            .map(|table| table.lines().map(cells).collect())
            .collect()
    }

    /// `3.3 (0.9–11.4)`.
    fn is_share(cell: &str) -> bool {
        let Some((value, rest)) = cell.split_once(" (") else {
            return false;
        };
        let Some((low, high)) = rest.trim_end_matches(')').split_once('–') else {
            return false;
        };
        let numbers = [low, value, high].map(|n| n.parse().unwrap_or(f64::NAN));
        numbers[0] <= numbers[1] && numbers[1] <= numbers[2] && numbers[2] <= 100.0
    }

    fn check(block: &str) {
        let tables = tables_of(block);
        assert!(!tables.is_empty() && tables.len().is_multiple_of(2));
        for (i, table) in tables.iter().enumerate() {
            let columns = table[0].len();
            assert!(
                table.iter().all(|row| row.len() == columns),
                "{:?}",
                table[0]
            );
            assert_eq!(table[0][0], "rule");
            assert!(table[1].iter().all(|cell| *cell == "---"));
            assert_eq!(table[2][0], "llm-gates");
            if i % 2 == 0 {
                let mut cells = table[2..].iter().flat_map(|row| &row[1..]);
                assert!(cells.all(|cell| is_share(cell)), "{:?}", table[0]);
            }
        }
    }

    #[test]
    fn a_block_replaces_the_one_before() {
        let block = markdown(&tiny());
        check(&block);
        assert!(
            block.contains("| Flagger, tuned | 2.5 (0.4–12.9) | 100.0 (91.2–100.0) |"),
            "{block}"
        );
        assert!(
            block.contains("| 10 / 50 / 0 / 0, never 40 | 1234 (900–2000); 12 |"),
            "{block}"
        );
        let document = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let once = replace(&document, &block).unwrap();
        assert_eq!(once, format!("before\n{block}\nafter\n"));
        assert_eq!(replace(&once, &block).unwrap(), once);
        assert_eq!(replace("no block", &block), None);
    }

    /// The form, not the figures.
    #[test]
    fn the_document_holds_a_block_as_it_is_written() {
        let document = include_str!("../../../COMPARE.md");
        let (_, rest) = document.split_once(BEGIN).unwrap();
        let (block, _) = rest.split_once(END).unwrap();
        assert_eq!(block.matches("\n### Race: ").count(), 4);
        assert_eq!(block.matches("\nSettings: llm-gates: ").count(), 4);
        assert_eq!(tables_of(block).len(), 8);
        check(block);
    }

    #[test]
    fn everything_else_shows_every_rule() {
        let race = tiny();
        for shown in [text(&race), chart(&race), json(&race).to_string()] {
            assert!(
                shown.contains("llm-gates") && shown.contains("Flagger"),
                "{shown}"
            );
        }
        assert_eq!(
            json(&race)["sections"][0]["rows"][1]["harmless"][1]["hits"],
            40
        );
        assert!(!chart(&race).contains("http"));
    }
}
