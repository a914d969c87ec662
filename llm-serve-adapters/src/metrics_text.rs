//! The text form of metrics, as far as counters and histograms need it.
#![allow(dead_code, reason = "not every adapter reads metrics")]

use crate::host::{Error, Result};
use crate::http_client::clip;
use std::collections::BTreeMap;

/// A line: name, labels, value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// The lines of these names. Comments, time stamps and exemplars are passed over.
pub(crate) fn lines<'a>(text: &'a str, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Line<'a>>> {
    let mut out = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        let end = line
            .find(|c: char| c == '{' || c.is_ascii_whitespace())
            .unwrap_or(line.len());
        let (name, rest) = line.split_at(end);
        if name.is_empty() || name.starts_with('#') || !wanted(name) {
            continue;
        }
        let line = parse(name, rest).ok_or_else(|| {
            Error::transient(format!(
                "line {} of the metrics cannot be read: {:?}",
                number + 1,
                clip(line)
            ))
        })?;
        out.push(line);
    }
    Ok(out)
}

fn parse<'a>(name: &'a str, rest: &str) -> Option<Line<'a>> {
    let (labels, rest) = match rest.trim_start().strip_prefix('{') {
        Some(inside) => labels(inside)?,
        None => (BTreeMap::new(), rest),
    };
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Line {
        name,
        labels,
        value,
    })
}

/// The labels, and what follows their closing brace.
fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (label, after) = rest.split_once('=')?;
        let mut value = String::new();
        let mut chars = after.trim_start().strip_prefix('"')?.char_indices();
        let inside = chars.as_str();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    c => c,
                }),
                (_, c) => value.push(c),
            }
        };
        labels.insert(label.trim().to_owned(), value);
        rest = inside.get(end + 1..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_read_as_exporters_write_them() {
        let text = concat!(
            "# HELP a_total what\\n it is\n# TYPE a_total counter\n",
            "a_total 3\n",
            "a_total{model=\"x\\\"y\\\\\",code=\"5\\n\",} 4.0 1700000000000\n",
            "a_total { } NaN\n",
            "b{le=\"+Inf\"} 7 # {trace=\"x\"} 0.5\n",
            "c{broken\n",
        );
        let found = lines(text, &|name| name != "c").unwrap();
        let read: Vec<_> = found
            .iter()
            .map(|l| (l.name, l.value, l.labels.len()))
            .collect();
        assert_eq!(read[0], ("a_total", 3.0, 0));
        assert_eq!(found[1].labels["model"], "x\"y\\");
        assert_eq!(found[1].labels["code"], "5\n");
        assert!(found[2].value.is_nan());
        assert_eq!(
            (found[3].value, found[3].labels["le"].as_str()),
            (7.0, "+Inf")
        );
        let error = lines(text, &|name| name == "c").unwrap_err();
        assert!(error.to_string().contains("line 7"), "{error}");
    }

    proptest! {
        #[test]
        fn nothing_panics(text in any::<String>(), tail in "[a-z{}=\", \\\\]{0,40}") {
            let _any = lines(&text, &|_| true);
            let _any = lines(&format!("x{{{tail}"), &|_| true);
        }

        #[test]
        fn labels_come_back(value in any::<String>()) {
            let written = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            // A line ends at a carriage return before a line feed only.
            let text = format!("x{{a=\"{written}\"}} 1");
            let found = lines(&text, &|_| true).unwrap();
            prop_assert_eq!(found.first().map(|l| l.labels["a"].as_str()), Some(value.as_str()));
        }
    }
}
