//! Where something stands in the text of a plan, TOML or JSON.

use std::fmt::{self, Write};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Characters of a line that are quoted at most.
const WIDE: usize = 100;

/// A place in a text, with its line to quote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// From 1.
    pub(super) line: usize,
    /// In characters, from 1.
    pub(super) column: usize,
    /// What is quoted of the line.
    quoted: String,
    /// Where the carets begin in it, and how many they are.
    carets: (usize, usize),
}

impl Place {
    /// The place of a range of bytes.
    pub(super) fn of(text: &str, span: &Range<usize>) -> Self {
        let start = (0..=span.start.min(text.len()))
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        let (before, after) = text.split_at(start);
        let begin = before.rfind('\n').map_or(0, |at| at + 1);
        let end = after.find('\n').map_or(text.len(), |at| start + at);
        let column = text[begin..start].chars().count();
        let line: Vec<char> = text[begin..end].trim_end().chars().collect();
        let marked = text
            .get(start..span.end.min(end))
            .map_or(1, |marked| marked.trim_end().chars().count());
        // A minified plan is one long line.
        let cut = if line.len() > WIDE {
            column.saturating_sub(WIDE / 2)
        } else {
            0
        };
        let mut quoted: String = line.iter().skip(cut).take(WIDE).collect();
        let ahead = if cut > 0 { "..." } else { "" };
        quoted.insert_str(0, ahead);
        let carets = marked.clamp(1, (cut + WIDE).saturating_sub(column).max(1));
        Self {
            line: before.matches('\n').count() + 1,
            column: column + 1,
            quoted,
            carets: (column - cut + ahead.len(), carets),
        }
    }

    /// The place of a line and a column of bytes, both from 1.
    pub(super) fn at(text: &str, line: usize, column: usize) -> Self {
        let at = offset(text, line, column);
        Self::of(text, &(at..at))
    }

    /// The place of the last such words before a line and a column.
    pub(super) fn before(text: &str, line: usize, column: usize, words: &str) -> Option<Self> {
        let read = text.get(..(offset(text, line, column) + 1).min(text.len()))?;
        let at = read.rfind(words)?;
        Some(Self::of(text, &(at..at + words.len())))
    }

    /// The place of a path such as `stages[1].serve`, or of its nearest ancestor that is there; TOML, or JSON where the text begins with a brace.
    pub(super) fn find(text: &str, path: &str) -> Option<Self> {
        let span = if text.trim_start().starts_with('{') {
            Json { text, at: 0 }.find(path)
        } else {
            in_toml(text, path)
        };
        span.map(|span| Self::of(text, &span))
    }

    /// The line with carets below it.
    pub(super) fn quote(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.line.to_string();
        let (margin, (blanks, carets)) = (number.len(), self.carets);
        let mut under = " ".repeat(blanks);
        under.write_str(&"^".repeat(carets))?;
        let quoted = &self.quoted;
        write!(
            f,
            "\n {:margin$} |\n {number} | {quoted}\n {:margin$} | {under}",
            "", ""
        )
    }
}

/// The byte at a line and a column of bytes, both from 1.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let lines = text.split_inclusive('\n').take(line.saturating_sub(1));
    lines.map(str::len).sum::<usize>() + column.saturating_sub(1)
}

/// `stages`, `1`, `serve`: a list's index as it stands in the path.
fn parts(path: &str) -> impl Iterator<Item = (&str, Option<usize>)> {
    path.split(['.', '[']).map(|part| {
        let index = part.strip_suffix(']').and_then(|i| i.parse().ok());
        (part, index)
    })
}

fn in_toml(text: &str, path: &str) -> Option<Range<usize>> {
    let table = DeTable::parse(text).ok()?;
    let mut span = None;
    let mut here: Option<&Spanned<DeValue<'_>>> = None;
    for (part, index) in parts(path) {
        let next = match (index, here) {
            (Some(index), here) => here.and_then(|v| v.get_ref().as_array()?.get(index)),
            (None, None) => table.get_ref().get(part),
            (None, Some(value)) => value.get_ref().as_table().and_then(|t| t.get(part)),
        };
        let Some(next) = next else { break };
        span = Some(next.span());
        here = Some(next);
    }
    span
}

/// A walk through a text that is known to be JSON.
struct Json<'a> {
    text: &'a str,
    at: usize,
}

impl Json<'_> {
    fn find(mut self, path: &str) -> Option<Range<usize>> {
        let mut span = None;
        for (part, index) in parts(path) {
            let found = match index {
                Some(index) => self.item(index),
                None => self.key(part),
            };
            if found.is_none() {
                break;
            }
            let from = self.at;
            let end = Json { ..self }.skip();
            span = Some(from..end);
        }
        span
    }

    fn peek(&mut self) -> Option<u8> {
        let rest = self.text.get(self.at..)?;
        self.at += rest.len() - rest.trim_start().len();
        self.text.as_bytes().get(self.at).copied()
    }

    /// Past one of these characters.
    fn eat(&mut self, wanted: u8) -> Option<()> {
        (self.peek()? == wanted).then(|| self.at += 1)
    }

    /// To the value of a key of the object here.
    fn key(&mut self, name: &str) -> Option<()> {
        self.eat(b'{')?;
        loop {
            self.peek()?;
            let from = self.at;
            let end = self.skip();
            let key = self.text.get(from + 1..end.checked_sub(1)?)?;
            self.at = end;
            self.eat(b':')?;
            self.peek()?;
            if key == name {
                return Some(());
            }
            self.at = self.skip();
            self.eat(b',')?;
        }
    }

    /// To this item of the list here.
    fn item(&mut self, index: usize) -> Option<()> {
        self.eat(b'[')?;
        for _ in 0..index {
            self.peek()?;
            self.at = self.skip();
            self.eat(b',')?;
        }
        (self.peek()? != b']').then_some(())
    }

    /// The end of the value here.
    fn skip(&self) -> usize {
        let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
        for (i, byte) in self.text.bytes().enumerate().skip(self.at) {
            if quoted {
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' => escaped = true,
                    b'"' => quoted = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => quoted = true,
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth == 0 => return i,
                b'}' | b']' => {
                    depth -= 1;
                    if depth == 0 {
                        return i + 1;
                    }
                }
                b',' | b':' | b' ' | b'\n' | b'\r' | b'\t' if depth == 0 => return i,
                _ => {}
            }
        }
        self.text.len()
    }
}

/// The name that was probably meant: few letters away, and of the same length or nearly so.
pub(super) fn meant<'a>(
    written: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let few = (written.chars().count() / 3).clamp(1, 3);
    let near = names
        .into_iter()
        .map(|name| (distance(written, name), name));
    near.filter(|(d, _)| *d <= few).min().map(|(_, name)| name)
}

/// Letters to change, add or take away (Levenshtein 1965), with a swap of neighbours as one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) =
        (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut next = vec![i + 1];
        for j in 0..b.len() {
            let change = row[j] + usize::from(a[i] != b[j]);
            let mut least = change.min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(before[j - 1] + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Shown(Place);

    impl fmt::Display for Shown {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.quote(f)
        }
    }

    fn found(text: &str, path: &str) -> (usize, usize, String) {
        let place = Place::find(text, path).unwrap();
        let shown = Shown(place.clone()).to_string();
        let (quoted, under) = (&place.quoted, shown.lines().last().unwrap());
        let carets = under.split_once("| ").unwrap().1;
        let marked = quoted
            .chars()
            .zip(carets.chars())
            .filter(|(_, c)| *c == '^')
            .map(|(q, _)| q)
            .collect();
        (place.line, place.column, marked)
    }

    #[test]
    fn paths_are_found_in_both_languages() {
        let toml = "alpha = 0.05\n[metrics]\na = { flag = \"x\" }\n[[stages]]\nserve = 1\n[[stages]]\nserve = 22.5 # ü\n";
        let json = "{\n \"alpha\": 0.05, \"metrics\": {\"a\": {\"flag\": \"\\\"}x\"}},\n \"stages\": [ {\"serve\": 1}, {\"other\": [1, {}],\n  \"serve\" : 22.5} ]\n}";
        for (path, in_toml, in_json) in [
            ("alpha", (1, 9, "0.05"), (2, 11, "0.05")),
            ("stages[1].serve", (7, 9, "22.5"), (4, 13, "22.5")),
            ("metrics.a.flag", (3, 14, "\"x\""), (2, 43, "\"\\\"}x\"")),
        ] {
            let own = |(l, c, m): (usize, usize, &str)| (l, c, m.to_owned());
            assert_eq!(found(toml, path), own(in_toml), "{path} in TOML");
            assert_eq!(found(json, path), own(in_json), "{path} in JSON");
        }
        assert_eq!(
            found(json, "stages[0].nothing").2,
            "{\"serve\": 1}",
            "the nearest ancestor"
        );
        assert_eq!(Place::find(json, "nothing"), None);
    }

    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let json = format!("{{\"a\": [{}7], \"b\": 12345}}", "1, ".repeat(500));
        let (line, column, marked) = found(&json, "b");
        assert_eq!((line, marked.as_str()), (1, "12345"));
        assert!(column > 1_500);
        let place = Place::find(&json, "b").unwrap();
        let (before, _) = place.quoted.split_once("\"b\"").unwrap();
        assert!(before.starts_with("...") && before.len() > 30, "{before}");
        let place = Place::find(&json, "a").unwrap();
        assert!(Shown(place).to_string().len() < 4 * WIDE);
        let just = format!("{{\"a\": \"{}\", \"b\": 12}}", "x".repeat(WIDE - 18));
        assert_eq!(just.len(), WIDE);
        assert_eq!(Place::find(&just, "b").unwrap().quoted, just);
    }

    #[test]
    fn lines_and_columns_are_counted_from_one() {
        let text = "{\n \"a\": 1,\n \"b\": 2\n}";
        for (line, column) in [(1, 1), (2, 5), (3, 7)] {
            let place = Place::at(text, line, column);
            assert_eq!((place.line, place.column), (line, column));
            assert_eq!(place.carets, (column - 1, 1));
        }
    }

    #[test]
    fn near_names_are_meant() {
        for (written, expected) in [
            ("dwel", Some("dwell")),
            ("sreve", Some("serve")),
            ("advnace", Some("advance")),
            ("avdence", Some("advance")),
            ("wall", None),
            ("nothing", None),
        ] {
            assert_eq!(meant(written, ["serve", "dwell", "advance"]), expected);
        }
        for (a, b, letters) in [
            ("kitten", "sitting", 3),
            ("saturday", "sunday", 3),
            ("aab", "b", 2),
            ("b", "aab", 2),
            ("abcd", "", 4),
            ("ab", "ba", 1),
            ("abcd", "badc", 2),
        ] {
            assert_eq!(distance(a, b), letters, "{a} to {b}");
        }
    }
}
