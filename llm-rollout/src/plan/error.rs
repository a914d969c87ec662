//! Where a plan is wrong, what is wrong there, and what to write instead.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Why a plan was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", self.place())]
pub struct PlanError {
    /// `stages[1].serve`, where the text can be read but makes no sense.
    path: Option<String>,
    /// Line and column from 1, where the text is at hand.
    at: Option<(usize, usize)>,
    problem: String,
}

impl PlanError {
    pub(crate) fn new(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            path: Some(path.into()),
            at: None,
            problem: problem.into(),
        }
    }

    pub(super) fn toml(text: &str, error: &toml::de::Error) -> Self {
        let at = error.span().map(|span| position(text, span.start));
        Self {
            path: None,
            at,
            problem: error.message().to_owned(),
        }
    }

    pub(super) fn json(error: &serde_json::Error) -> Self {
        // serde_json ends its message with the position, which is said in front here.
        let message = error.to_string();
        let problem = message
            .rsplit_once(" at line ")
            .map_or(message.as_str(), |(what, _)| what)
            .to_owned();
        Self {
            path: None,
            at: Some((error.line(), error.column())),
            problem,
        }
    }

    /// Adds the position of the path in the TOML text that it came from.
    pub(super) fn located(mut self, text: &str) -> Self {
        self.at = self
            .path
            .as_deref()
            .and_then(|path| find(text, path))
            .map(|offset| position(text, offset));
        self
    }

    /// The path of the value, such as `stages[1].serve`, where the text could be read.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// Line and column, from 1, where known.
    pub fn position(&self) -> Option<(usize, usize)> {
        self.at
    }

    fn place(&self) -> String {
        let at = self
            .at
            .map(|(line, column)| format!("line {line}, column {column}: "))
            .unwrap_or_default();
        let path = self
            .path
            .as_deref()
            .map(|path| format!("{path}: "))
            .unwrap_or_default();
        at + &path
    }
}

/// The byte offset of a path such as `stages[1].serve` in a TOML text, or of its nearest ancestor that is there.
fn find(text: &str, path: &str) -> Option<usize> {
    let table = DeTable::parse(text).ok()?;
    let mut offset = None;
    let mut here: Option<&Spanned<DeValue<'_>>> = None;
    for part in path.split(['.', '[']) {
        let next = if let Some(index) = part.strip_suffix(']') {
            here.and_then(|value| {
                value
                    .get_ref()
                    .as_array()?
                    .get(index.parse::<usize>().ok()?)
            })
        } else {
            let table = match here {
                None => Some(table.get_ref()),
                Some(value) => value.get_ref().as_table(),
            };
            table.and_then(|table| table.get(part))
        };
        let Some(next) = next else { break };
        offset = Some(next.span().start);
        here = Some(next);
    }
    offset
}

fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .map_or(0, |last| last.chars().count())
        + 1;
    (line, column)
}
