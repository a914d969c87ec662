//! The table of phases in the documentation, drawn from the machine itself.

#![expect(
    clippy::disallowed_methods,
    reason = "the test compares a file, and writes it when asked"
)]

use crate::explore::{Leads, PHASES, Table, inputs, table};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::LazyLock;

static TABLE: LazyLock<Table> = LazyLock::new(table);

/// A phase as people read it.
fn words(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push(' ');
        }
        text.push(c.to_ascii_lowercase());
    }
    match text.strip_prefix("rolling back ") {
        Some(part) => format!("rolling back: {part}"),
        None => text,
    }
}

fn diagram(table: &Table, text: &mut String) {
    let inputs = inputs();
    let mut edges = BTreeMap::<(usize, usize), Vec<&str>>::new();
    let place = |name: &str| PHASES.iter().position(|p| *p == name).unwrap();
    for ((from, input), leads) in table {
        for lead in leads {
            if let Leads::To(to) = lead {
                let edge = edges.entry((place(from), place(to))).or_default();
                edge.push(inputs[*input].0);
            }
        }
    }
    text.push_str("```mermaid\nstateDiagram-v2\n    [*] --> Planned\n");
    for name in PHASES.iter().filter(|n| words(n) != n.to_lowercase()) {
        let _ = writeln!(text, "    {name}: {}", words(name).replace(':', ","));
    }
    for ((from, to), mut why) in edges {
        why.sort_unstable();
        // A label of a diagram is short; the table below holds them all.
        let label = if why.len() > 3 {
            format!("{}, {} and {} more", why[0], why[1], why.len() - 2)
        } else {
            why.join(", ")
        };
        let label = label.replace(':', "");
        let _ = writeln!(text, "    {} --> {}: {label}", PHASES[from], PHASES[to]);
    }
    for end in ["Promoted", "RolledBack", "Blocked", "Concluded"] {
        let _ = writeln!(text, "    {end} --> [*]");
    }
    text.push_str("```\n");
}

fn lists(table: &Table, text: &mut String) {
    let inputs = inputs();
    for phase in PHASES {
        let _ = writeln!(
            text,
            "\n## {}\n\n| input | leads to |\n|---|---|",
            words(phase)
        );
        let mut other = BTreeMap::<&str, Vec<&str>>::new();
        for (i, (input, _)) in inputs.iter().enumerate() {
            let Some(leads) = table.get(&(phase, i)) else {
                continue;
            };
            let only = |lead| leads.len() == 1 && leads.contains(&lead);
            if only(Leads::Refused) {
                other.entry("refused").or_default().push(input);
            } else if only(Leads::Nowhere) {
                other.entry("no news").or_default().push(input);
            } else {
                let leads: Vec<_> = leads
                    .iter()
                    .map(|lead| match lead {
                        Leads::To(to) => format!("**{}**", words(to)),
                        Leads::Stays => "noted".to_owned(),
                        Leads::Nowhere => "no news".to_owned(),
                        Leads::Refused => "refused".to_owned(),
                    })
                    .collect();
                let _ = writeln!(text, "| {input} | {} |", leads.join(", "));
            }
        }
        for (what, which) in other {
            let _ = writeln!(text, "| {} | {what} |", which.join("; "));
        }
    }
}

const INTRODUCTION: &str = "\
# Phases

What each input does in each phase. Drawn by a test from the machine itself, which tries every input in every state that the
inputs lead to; `UPDATE_PHASES=1 cargo test -p llm-rollout --test strategies` writes it anew.

**Bold** is another phase; *noted* is a logged step that stays in the phase; *no news* logs nothing; *refused* is a typed error, and
nothing changes. Where there is more than one, plan and state decide: which, says `src/transition.rs`. A cold baseline is warmed
before anybody is sent to it; while the baseline is unhealthy, what would go back is noted and waits.

";

#[test]
fn the_table_in_the_documentation_is_current() {
    let table = &*TABLE;
    let mut text = INTRODUCTION.to_owned();
    diagram(table, &mut text);
    lists(table, &mut text);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/phases.md");
    if std::env::var_os("UPDATE_PHASES").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    let differs = kept.lines().zip(text.lines()).position(|(a, b)| a != b);
    assert!(
        kept == text,
        "docs/phases.md is not what the machine does (first at line {:?}): run UPDATE_PHASES=1 cargo test -p llm-rollout --test strategies",
        differs.map(|line| line + 1)
    );
}

#[test]
fn every_phase_is_reached_and_takes_every_input() {
    let table = &*TABLE;
    let reached: BTreeSet<_> = table.keys().map(|(phase, _)| *phase).collect();
    assert_eq!(reached, PHASES.into_iter().collect());
    let ends = ["Promoted", "RolledBack", "Blocked", "Concluded"];
    for ((phase, input), leads) in table {
        let leaves = leads.iter().any(|l| matches!(l, Leads::To(_)));
        assert!(
            !(ends.contains(phase) && leaves),
            "{phase} is an end, and {:?} leaves it",
            inputs()[*input].0
        );
    }
    for phase in PHASES {
        let leaves = |((from, _), leads): (&(&str, usize), &BTreeSet<Leads>)| {
            *from == phase && leads.iter().any(|l| matches!(l, Leads::To(_)))
        };
        assert_ne!(table.iter().any(leaves), ends.contains(&phase), "{phase}");
    }
}
