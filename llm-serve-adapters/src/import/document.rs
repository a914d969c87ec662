//! A document of somebody else, read field by field: what nobody asked for is told at the end.

use super::ImportError;
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// More than any such file has.
const MOST_BYTES: usize = 1 << 20;

/// One document, and the places in it that have been read.
#[derive(Debug)]
pub(super) struct Document {
    value: Value,
    read: RefCell<BTreeSet<String>>,
}

impl Document {
    /// All of a text, YAML or JSON; empty ones are left out.
    pub(super) fn all(text: &str) -> Result<Vec<Self>, ImportError> {
        if text.len() > MOST_BYTES {
            return Err(ImportError::TooLarge { bytes: text.len() });
        }
        let values: Vec<Value> =
            serde_saphyr::from_multiple(text).map_err(|e| ImportError::Syntax(e.to_string()))?;
        let read = RefCell::default;
        Ok(values
            .into_iter()
            .map(|value| Self {
                value,
                read: read(),
            })
            .collect())
    }

    /// What it says it is; nothing if it does not.
    pub(super) fn kind(&self) -> &str {
        self.value
            .get("kind")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    pub(super) fn root(&self) -> Node<'_> {
        self.named("")
    }

    /// With places that begin with this name, where there are several documents.
    pub(super) fn named(&self, name: &str) -> Node<'_> {
        Node {
            value: &self.value,
            place: name.to_owned(),
            read: &self.read,
        }
    }

    /// `metadata.name`.
    pub(super) fn name(&self) -> Result<&str, ImportError> {
        let missing = || ImportError::Missing {
            place: format!("metadata.name of a {}", self.kind()),
        };
        let metadata = self.value.get("metadata").ok_or_else(missing)?;
        let name = metadata.get("name").and_then(Value::as_str);
        name.ok_or_else(missing)
    }
}

/// What a text holds, for an error.
pub(super) fn kinds(documents: &[Document]) -> String {
    let names: Vec<_> = documents
        .iter()
        .map(|d| match d.kind() {
            "" => "a document without a kind",
            kind => kind,
        })
        .collect();
    if names.is_empty() {
        "nothing".to_owned()
    } else {
        names.join(", ")
    }
}

/// A value and its place, such as `spec.analysis.metrics[0]`.
#[derive(Debug, Clone)]
pub(super) struct Node<'a> {
    value: &'a Value,
    place: String,
    read: &'a RefCell<BTreeSet<String>>,
}

impl<'a> Node<'a> {
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// A field; a null is none.
    pub(super) fn get(&self, key: &str) -> Option<Self> {
        let value = self.value.get(key).filter(|v| !v.is_null())?;
        Some(self.child(value, self.below(key)))
    }

    /// A field that has to be there.
    pub(super) fn need(&self, key: &'static str) -> Result<Self, ImportError> {
        self.get(key).ok_or_else(|| ImportError::Missing {
            place: self.below(key),
        })
    }

    /// The entries of a list; none if the field is missing.
    pub(super) fn list(&self, key: &str) -> Result<Vec<Self>, ImportError> {
        let Some(node) = self.get(key) else {
            return Ok(Vec::new());
        };
        let Value::Array(entries) = node.value else {
            return Err(node.wrong("a list"));
        };
        let entry = |(i, value)| node.child(value, format!("{}[{i}]", node.place));
        Ok(entries.iter().enumerate().map(entry).collect())
    }

    /// The values of a map, in order of their keys.
    pub(super) fn fields(&self) -> Vec<Self> {
        let Value::Object(fields) = self.value else {
            return Vec::new();
        };
        let field = |(key, value): (&'a String, &'a Value)| self.child(value, self.below(key));
        fields.iter().map(field).collect()
    }

    /// The first text under this key, here or below.
    pub(super) fn search(&self, key: &str) -> Option<String> {
        if let Some(text) = self.value.get(key).and_then(Value::as_str) {
            return Some(text.to_owned());
        }
        self.fields().iter().find_map(|field| field.search(key))
    }

    /// A point in time: RFC 3339, or seconds since 1970.
    pub(super) fn instant(&self) -> Result<SystemTime, ImportError> {
        self.seen();
        let instant = match self.value {
            Value::String(text) => humantime::parse_rfc3339_weak(text).ok(),
            value => value
                .as_u64()
                .and_then(|s| UNIX_EPOCH.checked_add(Duration::from_secs(s))),
        };
        instant.ok_or_else(|| self.wrong("a time such as 2026-01-31T12:00:00Z"))
    }

    pub(super) fn text(&self) -> Result<&'a str, ImportError> {
        self.seen();
        self.value.as_str().ok_or_else(|| self.wrong("a text"))
    }

    pub(super) fn flag(&self) -> Result<bool, ImportError> {
        self.seen();
        self.value
            .as_bool()
            .ok_or_else(|| self.wrong("true or false"))
    }

    pub(super) fn count(&self) -> Result<u32, ImportError> {
        self.seen();
        let count = match self.value {
            Value::String(text) => text.trim().parse().ok(),
            value => value.as_u64().and_then(|n| u32::try_from(n).ok()),
        };
        count.ok_or_else(|| self.wrong("a count from 0 to 4294967295"))
    }

    pub(super) fn number(&self) -> Result<f64, ImportError> {
        self.seen();
        let number = match self.value {
            Value::String(text) => text.trim().trim_end_matches('%').parse().ok(),
            value => value.as_f64(),
        };
        number
            .filter(|n: &f64| n.is_finite())
            .ok_or_else(|| self.wrong("a number"))
    }

    pub(super) fn seconds(&self) -> Result<Duration, ImportError> {
        self.count().map(|s| Duration::from_secs(u64::from(s)))
    }

    /// `90`, `90s`, `1m30s`: a number without a unit is seconds.
    pub(super) fn duration(&self) -> Result<Duration, ImportError> {
        let Value::String(text) = self.value else {
            return self.seconds();
        };
        self.seen();
        let bare = text.trim().parse::<u32>().ok();
        bare.map(|s| Duration::from_secs(u64::from(s)))
            .or_else(|| humantime::parse_duration(text).ok())
            .ok_or_else(|| self.wrong("a duration such as 30s, 5m or 1h30m"))
    }

    /// This and all that is below it is known and needs no word.
    pub(super) fn pass(&self, keys: &[&str]) {
        for key in keys {
            if let Some(node) = self.get(key) {
                node.seen();
            }
        }
    }

    /// That it was read, with all that is below it.
    pub(super) fn seen(&self) {
        self.read.borrow_mut().insert(self.place.clone());
    }

    pub(super) fn wrong(&self, expected: &'static str) -> ImportError {
        let mut found = self.value.to_string();
        if found.chars().count() > 60 {
            found = found.chars().take(60).chain(['…']).collect();
        }
        ImportError::Value {
            place: self.place.clone(),
            expected,
            found,
        }
    }

    /// The places of what was not read, the outermost of each.
    pub(super) fn unread(&self) -> Vec<String> {
        let mut left = Vec::new();
        self.collect_unread(&mut left);
        left
    }

    /// Whether anything in or below it was read.
    fn collect_unread(&self, left: &mut Vec<String>) -> bool {
        if self.read.borrow().contains(&self.place) {
            return true;
        }
        let mark = left.len();
        let mut any = false;
        let children: Vec<Self> = match self.value {
            Value::Object(fields) => fields
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| self.child(value, self.below(key)))
                .collect(),
            Value::Array(entries) => {
                let entry = |(i, value)| self.child(value, format!("{}[{i}]", self.place));
                entries.iter().enumerate().map(entry).collect()
            }
            _ => Vec::new(),
        };
        for child in &children {
            any |= child.collect_unread(left);
        }
        if !any && !self.place.is_empty() {
            left.truncate(mark);
            left.push(self.place.clone());
        }
        any
    }

    fn below(&self, key: &str) -> String {
        if self.place.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.place)
        }
    }

    fn child(&self, value: &'a Value, place: String) -> Self {
        Self {
            value,
            place,
            read: self.read,
        }
    }
}
