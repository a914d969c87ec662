//! A suite of questions, one per line.

use super::checks::{Check, Expected};
use super::schema::Schema;
use crate::backend::{ChatRequest, Role};
use crate::host::Error;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

/// Bytes of a suite.
const BYTES: usize = 64 << 20;
/// Bytes of a line.
const LINE: usize = 1 << 20;
/// Cases of a suite.
const CASES: usize = 100_000;
/// Messages of a case, and its ideal answers.
const PARTS: usize = 256;

/// Why a suite cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadSuite {
    /// A line is not a case. Lines and columns (in bytes) count from 1.
    #[error("line {line}, column {column}: {why}")]
    Line {
        /// The line.
        line: usize,
        /// Where in it.
        column: usize,
        /// What is wrong, and what to do.
        why: String,
    },
    /// There is no case in it.
    #[error("the suite has no cases: write one JSON object per line")]
    Empty,
    /// It is longer than this many bytes, or has more cases.
    #[error("the suite is longer than {BYTES} bytes or {CASES} cases: split it")]
    TooLong,
    /// It cannot be read.
    #[error("the suite cannot be read: {0}")]
    Read(#[from] std::io::Error),
}

impl From<BadSuite> for Error {
    fn from(bad: BadSuite) -> Self {
        Self::permanent(bad.to_string()).because(bad)
    }
}

/// Questions, and what is expected of the answers.
///
/// One JSON object per line; empty lines are skipped:
///
/// | field | what it is |
/// |---|---|
/// | `input` | the question: a text, or a list of messages `{"role": "system", "content": "..."}` (`system`, `user`, `assistant`), the last one of the user |
/// | `ideal` | a good answer, or a list of them |
/// | `check` | `match`, `includes` or `fuzzy_match` (see [`Check`]); the suite's own one if it is not given |
/// | `schema` | instead of a check: the answer must be JSON of this [`Schema`] |
/// | `name` | unique in the suite; `line N` if it is not given |
///
/// Samples of `OpenAI` Evals (`input`, `ideal`) are such lines. A case without `ideal` and `schema` expects nothing: it is asked for judges and classifiers.
///
/// ```
/// use llm_serve_adapters::evaluate::{Check, Suite};
///
/// let suite = Suite::from_jsonl(r#"{"input": "2 + 2?", "ideal": ["4", "four"]}"#, Check::Includes)?;
/// assert_eq!((suite.len(), suite.cases()[0].name()), (1, "line 1"));
/// let bad = Suite::from_jsonl("{\"input\": \"2 + 2?\", \"ideel\": \"4\"}", Check::Includes).unwrap_err();
/// assert!(bad.to_string().starts_with("line 1, column 27: unknown field `ideel`"), "{bad}");
/// # Ok::<(), llm_serve_adapters::evaluate::BadSuite>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Suite {
    cases: Vec<Case>,
}

/// One question. Its debug output leaves the texts out.
#[derive(Clone, PartialEq)]
pub struct Case {
    name: String,
    /// The last one is the user's.
    messages: Vec<(Role, String)>,
    ideal: Vec<String>,
    expected: Option<Expected>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: Option<String>,
    input: Input,
    ideal: Option<OneOrMore>,
    check: Option<Check>,
    schema: Option<Schema>,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "`input` is a text, or a list of messages of `role` and `content`"
)]
enum Input {
    Text(String),
    Messages(Vec<Message>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    role: Speaker,
    content: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Speaker {
    System,
    User,
    Assistant,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`ideal` is a text, or a list of texts")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl Suite {
    /// Reads a suite from its text. Lines with `ideal` and without `check` get this check.
    ///
    /// # Errors
    /// [`BadSuite`], the first thing that is wrong, and where.
    pub fn from_jsonl(text: &str, check: Check) -> Result<Self, BadSuite> {
        Self::from_bytes(text.as_bytes(), check)
    }

    /// Reads a suite, such as from a file.
    ///
    /// # Errors
    /// As [`Self::from_jsonl`].
    pub fn read(from: impl Read, check: Check) -> Result<Self, BadSuite> {
        let mut bytes = Vec::new();
        from.take(BYTES as u64 + 1).read_to_end(&mut bytes)?;
        Self::from_bytes(&bytes, check)
    }

    fn from_bytes(bytes: &[u8], check: Check) -> Result<Self, BadSuite> {
        if bytes.len() > BYTES {
            return Err(BadSuite::TooLong);
        }
        let mut cases = Vec::new();
        let mut names = BTreeMap::new();
        for (line, bytes) in (1..).zip(bytes.split(|&b| b == b'\n')) {
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            if cases.len() == CASES {
                return Err(BadSuite::TooLong);
            }
            let refuse = |column, why| BadSuite::Line { line, column, why };
            if bytes.len() > LINE {
                let why = format!("the line is longer than {LINE} bytes: shorten it");
                return Err(refuse(LINE + 1, why));
            }
            let parsed = serde_json::from_slice::<Line>(bytes).map_err(|e| {
                let why = e.to_string();
                let why = why.rsplit_once(" at line ").map_or(&*why, |(why, _)| why);
                refuse(e.column().max(1), why.to_owned())
            })?;
            let case = case(line, parsed, check).map_err(|why| refuse(1, why))?;
            if let Some(first) = names.insert(case.name.clone(), line) {
                let why = format!(
                    "line {first} is called {:?} too: give each case its own name",
                    case.name
                );
                return Err(refuse(1, why));
            }
            cases.push(case);
        }
        if cases.is_empty() {
            return Err(BadSuite::Empty);
        }
        Ok(Self { cases })
    }

    /// How many cases; at least one.
    #[expect(clippy::len_without_is_empty, reason = "a suite has a case")]
    pub fn len(&self) -> usize {
        self.cases.len()
    }

    /// The cases, in the order of the lines.
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }
}

fn case(line: usize, parsed: Line, check: Check) -> Result<Case, String> {
    let messages = match parsed.input {
        Input::Text(text) => vec![(Role::User, text)],
        Input::Messages(messages) => messages
            .into_iter()
            .map(|m| {
                let role = match m.role {
                    Speaker::System => Role::System,
                    Speaker::User => Role::User,
                    Speaker::Assistant => Role::Assistant,
                };
                (role, m.content)
            })
            .collect(),
    };
    if !messages.last().is_some_and(|(role, _)| *role == Role::User) {
        return Err("the last message of `input` must be the user's".to_owned());
    }
    let given = parsed.ideal.is_some();
    let ideal = match parsed.ideal {
        None => Vec::new(),
        Some(OneOrMore::One(one)) => vec![one],
        Some(OneOrMore::More(more)) => more,
    };
    if messages.len() > PARTS || ideal.len() > PARTS {
        return Err(format!(
            "more than {PARTS} messages or ideal answers: give fewer"
        ));
    }
    if given && ideal.is_empty() {
        return Err("`ideal` is an empty list: give an answer, or leave it out".to_owned());
    }
    let expected = match (parsed.check, parsed.schema) {
        (Some(_), Some(_)) => return Err("give `check` or `schema`, not both".to_owned()),
        (Some(_), None) if !given => return Err("`check` needs an `ideal` answer".to_owned()),
        (None, Some(schema)) => Some(Expected::Json(schema)),
        (own, None) => given.then(|| Expected::Text(own.unwrap_or(check), ideal.clone())),
    };
    // Every answer holds the empty text.
    if let Some(Expected::Text(Check::Match | Check::Includes, ideal)) = &expected
        && ideal.iter().any(String::is_empty)
    {
        return Err(
            "an empty `ideal` answer would let every answer pass: write what is wanted".to_owned(),
        );
    }
    Ok(Case {
        name: parsed.name.unwrap_or_else(|| format!("line {line}")),
        messages,
        ideal,
        expected,
    })
}

impl Case {
    /// Its name, unique in its suite.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The messages, oldest first; the last one is the user's.
    pub fn messages(&self) -> impl Iterator<Item = (Role, &str)> {
        self.messages
            .iter()
            .map(|(role, text)| (*role, text.as_str()))
    }

    /// What the user asks, in the end.
    pub fn question(&self) -> &str {
        self.messages.last().map_or("", |(_, text)| text)
    }

    /// Good answers; none if there are none to hold an answer against.
    pub fn ideal(&self) -> &[String] {
        &self.ideal
    }

    /// What is expected, if anything is.
    pub fn expected(&self) -> Option<&Expected> {
        self.expected.as_ref()
    }

    /// As a request.
    pub(super) fn request(&self) -> ChatRequest {
        let mut request = ChatRequest::new(self.question());
        for (role, text) in self.messages.iter().rev().skip(1).rev() {
            request = request.before(*role, text);
        }
        request
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .field("messages", &self.messages.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(text: &str) -> String {
        Suite::from_jsonl(text, Check::Match)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn lines_become_cases() {
        let text = concat!(
            "{\"name\": \"a\", \"input\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \"u\"}], \"ideal\": [\"x\", \"y\"]}\r\n",
            "\n",
            "{\"input\": \"q\", \"schema\": {\"type\": \"string\"}}\n",
            "{\"input\": \"q\"}\n",
            "{\"input\": \"q\", \"ideal\": \"z\", \"check\": \"fuzzy_match\"}",
        );
        let suite = Suite::from_jsonl(text, Check::Includes).unwrap();
        assert_eq!(
            suite,
            Suite::read(text.as_bytes(), Check::Includes).unwrap()
        );
        let [a, b, c, d] = suite.cases() else {
            panic!()
        };
        assert_eq!(
            a.messages().collect::<Vec<_>>(),
            [(Role::System, "s"), (Role::User, "u")]
        );
        let both = vec!["x".to_owned(), "y".to_owned()];
        assert_eq!(a.expected(), Some(&Expected::Text(Check::Includes, both)));
        assert!(matches!(b.expected(), Some(Expected::Json(_))) && b.name() == "line 3");
        assert!(c.expected().is_none() && c.question() == "q");
        assert!(matches!(
            d.expected(),
            Some(Expected::Text(Check::FuzzyMatch, _))
        ));
        let request = ChatRequest::new("u").before(Role::System, "s");
        assert_eq!(a.request(), request);
    }

    #[test]
    fn bad_lines_are_named_with_line_and_column() {
        let fine = "{\"input\": \"q\"}\n";
        // What the column must be at, or right behind; nothing where it is the line as a whole.
        for (line, at, why) in [
            (r#"{"input": "q",}"#, "}", "trailing comma"),
            (r#"{"input": 5}"#, "5}", "`input` is a text, or a list"),
            (r#"{"ideal": "q"}"#, "}", "missing field `input`"),
            (
                r#"{"input": "q", "idael": "x"}"#,
                "\"idael\"",
                "unknown field `idael`",
            ),
            (
                r#"{"input": "q", "ideal": "x", "check": "exact"}"#,
                "\"exact\"",
                "unknown variant `exact`",
            ),
            (r#"{"input": "q"} x"#, "x", "trailing characters"),
            ("\u{feff}{\"input\": \"q\"}", "\u{feff}", "expected value"),
            (
                r#"{"input": "q", "schema": {"pattern": "x"}}"#,
                r#"{"pattern": "x"}}"#,
                "`pattern`",
            ),
            (
                r#"{"input": "q", "check": "match"}"#,
                "",
                "needs an `ideal`",
            ),
            (r#"{"input": "q", "ideal": []}"#, "", "empty list"),
            (r#"{"input": "q", "ideal": ""}"#, "", "every answer"),
            (
                r#"{"input": [{"role": "assistant", "content": "q"}]}"#,
                "",
                "the user's",
            ),
            (
                r#"{"input": "q", "name": "line 1"}"#,
                "",
                "line 1 is called",
            ),
            (
                r#"{"input": "q", "ideal": "x", "check": "match", "schema": true}"#,
                "",
                "not both",
            ),
        ] {
            let error = Suite::from_jsonl(&format!("{fine}{line}\n"), Check::Match).unwrap_err();
            let BadSuite::Line {
                line: 2,
                column,
                why: said,
            } = &error
            else {
                panic!("{error}")
            };
            let first = line.find(at).unwrap() + 1;
            assert!(
                said.contains(why) && (first..=first + at.len()).contains(column),
                "{line}: {error}"
            );
        }
        assert!(refused("\n \n").contains("no cases"));
        let bytes = b"{\"input\": \"\xff\"}".as_slice();
        let error = Suite::read(bytes, Check::Match).unwrap_err().to_string();
        assert!(error.starts_with("line 1, column "), "{error}");
        let long = format!("{fine}{{\"input\": \"{}\"}}", "x".repeat(LINE));
        assert!(refused(&long).contains("longer than"));
        let many: String = (0..=CASES).map(|_| fine).collect();
        assert!(refused(&many).contains("split it"));
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(text in "[\\PC\\n]{0,200}") {
            let _ = Suite::from_jsonl(&text, Check::Match);
        }
    }
}
