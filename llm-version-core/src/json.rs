//! JSON read strictly: no duplicate keys, and where bytes are canonical, no second spelling.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor,
};
use thiserror::Error;

/// The largest integer that every JSON implementation reads exactly: 2^53 - 1.
pub const MAX_INTEGER: u64 = (1 << 53) - 1;

/// What is wrong with a JSON text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum JsonError {
    /// Not JSON, or not of the expected shape (unknown or missing field, wrong type).
    #[error("line {line}, column {column}: {message}")]
    Invalid {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser says.
        message: String,
    },
    /// A key stands twice in one object; readers disagree about which one counts.
    #[error("line {line}, column {column}: key {key:?} stands twice in one object; remove one")]
    DuplicateKey {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// The key.
        key: String,
    },
    /// A value outside the canonical form.
    #[error("line {line}, column {column}: {what}")]
    NotCanonical {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// Which rule it breaks, and the remedy.
        what: String,
    },
    /// The text is larger than the reader accepts.
    #[error("the text has {found} bytes, more than the {limit} accepted here")]
    TooLarge {
        /// Bytes in the text.
        found: u64,
        /// The limit.
        limit: u64,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// Duplicate keys are refused.
    Strict,
    /// And keys are ASCII and ascending, numbers are integers from 0 to 2^53 - 1.
    Canonical,
}

enum Found {
    Duplicate(String),
    Canonical(String),
}

#[derive(Clone, Copy)]
struct Scan<'a> {
    rules: Rules,
    found: &'a RefCell<Option<Found>>,
}

impl Scan<'_> {
    fn canonical<E: serde::de::Error>(self, what: impl FnOnce() -> String) -> Result<(), E> {
        if self.rules == Rules::Strict {
            return Ok(());
        }
        self.found.replace(Some(Found::Canonical(what())));
        Err(E::custom("not canonical"))
    }
}

impl<'de> DeserializeSeed<'de> for Scan<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scan<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.canonical(|| format!("integer {value} is negative"))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        if value <= MAX_INTEGER {
            return Ok(());
        }
        self.canonical(|| format!("integer {value} exceeds 2^53 - 1; write it as a string"))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.canonical(|| format!("{value} is not an integer; write decimals as strings"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if keys.contains(&key) {
                self.found.replace(Some(Found::Duplicate(key)));
                return Err(A::Error::custom("duplicate key"));
            }
            if self.rules == Rules::Canonical {
                if !key.is_ascii() {
                    self.canonical(|| format!("key {key:?} is not ASCII"))?;
                }
                if keys.last().is_some_and(|last| *last > key) {
                    self.canonical(|| format!("key {key:?} is not in ascending order"))?;
                }
            }
            keys.insert(key);
            map.next_value_seed(self)?;
        }
        Ok(())
    }
}

fn invalid(error: &serde_json::Error) -> JsonError {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    JsonError::Invalid {
        line: error.line(),
        column: error.column(),
        message: text.strip_suffix(&place).unwrap_or(&text).to_owned(),
    }
}

fn scan(bytes: &[u8], rules: Rules) -> Result<(), JsonError> {
    let found = RefCell::new(None);
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let scanned = Scan {
        rules,
        found: &found,
    }
    .deserialize(&mut deserializer)
    .and_then(|()| deserializer.end());
    scanned.map_err(|error| {
        let (line, column) = (error.line(), error.column());
        match found.take() {
            Some(Found::Duplicate(key)) => JsonError::DuplicateKey { line, column, key },
            Some(Found::Canonical(what)) => JsonError::NotCanonical { line, column, what },
            None => invalid(&error),
        }
    })
}

/// Reads a JSON text of at most `limit` bytes, refusing duplicate keys anywhere in it.
///
/// # Errors
/// Says what is wrong and where.
pub(crate) fn from_slice<T: DeserializeOwned>(bytes: &[u8], limit: u64) -> Result<T, JsonError> {
    let found = bytes.len() as u64;
    if found > limit {
        return Err(JsonError::TooLarge { found, limit });
    }
    scan(bytes, Rules::Strict)?;
    serde_json::from_slice(bytes).map_err(|error| invalid(&error))
}

/// Checks the rules of the canonical form that a parser can see: ASCII keys in ascending order, none twice; numbers
/// are integers from 0 to 2^53 - 1.
pub(crate) fn check_canonical(bytes: &[u8]) -> Result<(), JsonError> {
    scan(bytes, Rules::Canonical)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn duplicates_at_any_depth() {
        for text in [r#"{"a":1,"a":1}"#, r#"[{"b":{"a":1,"\u0061":2}}]"#] {
            assert!(matches!(
                from_slice::<Value>(text.as_bytes(), 100),
                Err(JsonError::DuplicateKey { line: 1, .. })
            ));
        }
        assert!(from_slice::<Value>(br#"{"a":{"a":1},"b":[{"a":1}]}"#, 100).is_ok());
        assert!(matches!(
            from_slice::<Value>(b"{}", 1),
            Err(JsonError::TooLarge { found: 2, limit: 1 })
        ));
        let deep = "[".repeat(100_000);
        assert!(matches!(
            from_slice::<Value>(deep.as_bytes(), 1 << 20),
            Err(JsonError::Invalid { .. })
        ));
    }

    #[test]
    fn canonical_rules() {
        assert!(check_canonical(br#"{"a":9007199254740991,"b":["x",null,true]}"#).is_ok());
        for bad in [
            r#"{"a":9007199254740992}"#,
            r#"{"a":-1}"#,
            r#"{"a":1.5}"#,
            r#"{"a":1e3}"#,
            r#"{"b":1,"a":1}"#,
            "{\"\u{e9}\":1}",
        ] {
            assert!(
                matches!(
                    check_canonical(bad.as_bytes()),
                    Err(JsonError::NotCanonical { .. })
                ),
                "{bad}"
            );
        }
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json_where_no_key_repeats(text in r#"[\[\]{}",:a-c0-9 .\\-]{0,40}"#) {
            let theirs = serde_json::from_str::<Value>(&text);
            match from_slice::<Value>(text.as_bytes(), 1000) {
                Ok(ours) => prop_assert_eq!(ours, theirs.unwrap()),
                Err(JsonError::DuplicateKey { .. }) => prop_assert!(theirs.is_ok() || theirs.is_err()),
                Err(_) => prop_assert!(theirs.is_err()),
            }
        }
    }
}
