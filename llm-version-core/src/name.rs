//! Names of bundles: `[a-z0-9][a-z0-9._-]*`, at most [`Name::MAX_LEN`] bytes.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::digest::string_serde;

/// The name of a bundle: `[a-z0-9][a-z0-9._-]*`, at most [`Name::MAX_LEN`] bytes.
///
/// The grammar is small enough to be a directory name, a URL segment and an OCI repository at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// Why a text is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ParseNameError {
    /// The text is empty.
    #[error("a name must not be empty")]
    Empty,
    /// The text is too long.
    #[error("a name has at most {max} bytes, this one has {found}", max = Name::MAX_LEN)]
    TooLong {
        /// Bytes in the text.
        found: usize,
    },
    /// The first character is neither a lower-case letter nor a digit.
    #[error("a name starts with a-z or 0-9, not with {found:?}")]
    Start {
        /// The offending character.
        found: char,
    },
    /// A character is outside the grammar.
    #[error(
        "character {found:?} at byte {at} is not allowed in a name; use a-z, 0-9, '.', '_' or '-'"
    )]
    Character {
        /// The offending character.
        found: char,
        /// Its byte position.
        at: usize,
    },
}

impl Name {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 128;

    /// Checks `text` against the grammar.
    ///
    /// # Errors
    /// Says which rule `text` breaks, and where.
    pub fn new(text: impl Into<String>) -> Result<Self, ParseNameError> {
        let text = text.into();
        let Some(first) = text.chars().next() else {
            return Err(ParseNameError::Empty);
        };
        if text.len() > Self::MAX_LEN {
            return Err(ParseNameError::TooLong { found: text.len() });
        }
        if !matches!(first, 'a'..='z' | '0'..='9') {
            return Err(ParseNameError::Start { found: first });
        }
        let bad = text
            .char_indices()
            .find(|(_, c)| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-'));
        match bad {
            Some((at, found)) => Err(ParseNameError::Character { found, at }),
            None => Ok(Self(text)),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Name {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

string_serde!(Name, "a bundle name such as `chat` or `support-bot.v2`");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn errors_say_where() {
        assert_eq!(Name::new(""), Err(ParseNameError::Empty));
        assert_eq!(Name::new("-a"), Err(ParseNameError::Start { found: '-' }));
        assert_eq!(
            Name::new("a/b"),
            Err(ParseNameError::Character { found: '/', at: 1 })
        );
        assert_eq!(
            Name::new("chat").map(|n| n.to_string()),
            Ok("chat".to_owned())
        );
        assert_eq!(
            Name::new("a".repeat(129)),
            Err(ParseNameError::TooLong { found: 129 })
        );
    }

    proptest! {
        #[test]
        fn grammar_is_exact(text in "[a-z0-9A-Z._/ é-]{0,12}") {
            let mut bytes = text.bytes();
            let first = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            let rest = bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
            prop_assert_eq!(Name::new(text).is_ok(), first && rest);
        }
    }
}
