//! Where a plan is wrong, what is wrong there, and what to write instead.

use super::place::{Place, meant};
use std::fmt;

/// Why a plan was refused. Its text names the line and quotes it, where the plan was read from a text.
///
/// ```
/// let error = llm_rollout::Plan::from_toml("alpha = 0.05\nstagse = []").unwrap_err();
/// assert_eq!(error.position(), Some((2, 1)));
/// let shown = error.in_file("canary.toml").to_string();
/// assert!(shown.starts_with("canary.toml: line 2, column 1: unknown field `stagse`"));
/// assert!(shown.ends_with("
///    |
///  2 | stagse = []
///    | ^^^^^^
///    = help: did you mean `stages`?"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanError(Box<Inner>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Inner {
    file: Option<String>,
    /// `stages[1].serve`, where the text can be read but makes no sense.
    path: Option<String>,
    /// Where the text is at hand.
    at: Option<Place>,
    problem: String,
    help: Option<String>,
}

impl std::error::Error for PlanError {}

impl PlanError {
    pub(crate) fn new(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::made(Some(path.into()), None, problem.into())
    }

    fn made(path: Option<String>, at: Option<Place>, problem: String) -> Self {
        Self(Box::new(Inner {
            file: None,
            path,
            at,
            help: None,
            problem,
        }))
    }

    pub(super) fn toml(text: &str, error: &toml::de::Error) -> Self {
        let at = error.span().map(|span| Place::of(text, &span));
        Self::made(None, at, error.message().to_owned()).suggesting()
    }

    pub(super) fn json(text: &str, error: &serde_json::Error) -> Self {
        // serde_json ends its message with the position, which is said in front here.
        let message = error.to_string();
        let problem = message
            .rsplit_once(" at line ")
            .map_or(message.as_str(), |(what, _)| what)
            .to_owned();
        let mut at = Place::at(text, error.line(), error.column());
        // What is unknown has been read to its end by then.
        if let Some(name) = problem
            .strip_prefix("unknown ")
            .and_then(|p| p.split('`').nth(1))
        {
            at = Place::before(text, error.line(), error.column(), &format!("{name:?}"))
                .unwrap_or(at);
        }
        Self::made(None, Some(at), problem).suggesting()
    }

    /// Looks for the name that was meant where serde says which are known: "unknown field `dwel`, expected one of `serve`, `dwell`".
    fn suggesting(mut self) -> Self {
        let problem = &self.0.problem;
        if problem.starts_with("unknown ") {
            let mut names = problem.split('`').skip(1).step_by(2);
            let written = names.next().unwrap_or_default();
            self.0.help = meant(written, names).map(|name| format!("did you mean `{name}`?"));
        }
        self
    }

    /// Says which of the known names was probably meant.
    pub(super) fn meaning<'a>(
        mut self,
        written: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        self.0.help = meant(written, known).map(|name| format!("did you mean {name:?}?"));
        self
    }

    /// Adds the position of the path in the text that it came from.
    pub(super) fn located(mut self, text: &str) -> Self {
        let path = self.0.path.as_deref();
        self.0.at = path.and_then(|path| Place::find(text, path));
        self
    }

    /// With the name of the file that the text was read from.
    #[must_use]
    pub fn in_file(mut self, name: impl Into<String>) -> Self {
        self.0.file = Some(name.into());
        self
    }

    /// The path of the value, such as `stages[1].serve`, where the text could be read.
    pub fn path(&self) -> Option<&str> {
        self.0.path.as_deref()
    }

    /// Line and column, from 1, where known.
    pub fn position(&self) -> Option<(usize, usize)> {
        self.0.at.as_ref().map(|at| (at.line, at.column))
    }

    /// What is wrong, without the place.
    pub fn problem(&self) -> &str {
        &self.0.problem
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner {
            file,
            path,
            at,
            problem,
            help,
        } = &*self.0;
        if let Some(file) = file {
            write!(f, "{file}: ")?;
        }
        if let Some(at) = at {
            write!(f, "line {}, column {}: ", at.line, at.column)?;
        }
        if let Some(path) = path {
            write!(f, "{path}: ")?;
        }
        f.write_str(problem)?;
        match (at, help) {
            (Some(at), help) => {
                at.quote(f)?;
                match help {
                    Some(help) => {
                        let margin = at.line.to_string().len();
                        write!(f, "\n {:margin$} = help: {help}", "")
                    }
                    None => Ok(()),
                }
            }
            (None, Some(help)) => write!(f, "; {help}"),
            (None, None) => Ok(()),
        }
    }
}
