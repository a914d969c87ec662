//! JSON Schema: the part of it that structured answers need.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Number, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Schemas within schemas.
const DEEPEST: usize = 32;

/// Why a schema cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the schema at {at:?} cannot be used: {why}")]
#[non_exhaustive]
pub struct BadSchema {
    /// JSON pointer to the place.
    pub at: String,
    /// What is wrong there.
    pub why: String,
}

/// A JSON Schema (2020-12) out of these keywords: `type`, `enum`, `const`; `properties`, `required`, `additionalProperties`, `minProperties`,
/// `maxProperties`; `items`, `minItems`, `maxItems`; `minLength`, `maxLength`; `minimum`, `maximum`, `exclusiveMinimum`, `exclusiveMaximum`;
/// `allOf`, `anyOf`, `oneOf`, `not`; and schemas that are `true` or `false`. `title`, `description`, `default`, `examples`, `$schema`, `$id` and
/// `$comment` say nothing about values. **Any other keyword is refused**, so that nothing is left unchecked in silence.
///
/// ```
/// use llm_serve_adapters::evaluate::Schema;
///
/// let schema: Schema = serde_json::from_str(r#"{"type": "object", "required": ["n"], "properties": {"n": {"type": "integer", "minimum": 1}}}"#)?;
/// assert!(schema.accepts(&serde_json::json!({"n": 2})) && !schema.accepts(&serde_json::json!({"n": 0.5})));
/// let refused = serde_json::from_str::<Schema>(r#"{"properties": {"n": {"format": "date"}}}"#).unwrap_err();
/// assert!(refused.to_string().contains("\"/properties/n\""));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Schema(Vec<Rule>);

#[derive(Debug, Clone, PartialEq)]
enum Rule {
    Nothing,
    Types(Vec<Type>),
    OneOfValues(Vec<Value>),
    Properties {
        known: BTreeMap<String, Schema>,
        others: Option<Box<Schema>>,
    },
    Required(BTreeSet<String>),
    PropertyCount(u64, u64),
    Items(Box<Schema>),
    ItemCount(u64, u64),
    Length(u64, u64),
    Number(Bound, f64),
    All(Vec<Schema>),
    Any(Vec<Schema>),
    One(Vec<Schema>),
    Not(Box<Schema>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bound {
    AtLeast,
    AtMost,
    Above,
    Below,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Type {
    Null,
    Boolean,
    Object,
    Array,
    Number,
    Integer,
    String,
}

impl Schema {
    /// Reads a schema.
    ///
    /// # Errors
    /// [`BadSchema`] for a keyword that is not among those above, or a value that the keyword cannot have.
    pub fn new(value: &Value) -> Result<Self, BadSchema> {
        schema(value, &mut String::new(), 0)
    }

    /// Whether a value is of this schema.
    pub fn accepts(&self, value: &Value) -> bool {
        self.0.iter().all(|rule| rule.accepts(value))
    }
}

impl<'de> Deserialize<'de> for Schema {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(&Value::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

fn bad<T>(at: &str, why: impl Into<String>) -> Result<T, BadSchema> {
    Err(BadSchema {
        at: at.to_owned(),
        why: why.into(),
    })
}

/// Reads the part of a schema at this place; the place is as it was when it returns a schema.
fn within(
    value: &Value,
    at: &mut String,
    depth: usize,
    parts: &[&str],
) -> Result<Schema, BadSchema> {
    let length = at.len();
    for part in parts {
        at.push('/');
        at.push_str(&part.replace('~', "~0").replace('/', "~1"));
    }
    let schema = schema(value, at, depth + 1)?;
    at.truncate(length);
    Ok(schema)
}

fn schema(value: &Value, at: &mut String, depth: usize) -> Result<Schema, BadSchema> {
    if depth > DEEPEST {
        return bad(at, format!("more than {DEEPEST} schemas within each other"));
    }
    let keywords = match value {
        Value::Bool(true) => return Ok(Schema(Vec::new())),
        Value::Bool(false) => return Ok(Schema(vec![Rule::Nothing])),
        Value::Object(keywords) => keywords,
        _ => return bad(at, "a schema is an object, true or false"),
    };
    let mut rules = Vec::new();
    for (keyword, value) in keywords {
        let list = |at: &mut String| -> Result<Vec<Schema>, BadSchema> {
            match value.as_array() {
                Some(parts) if !parts.is_empty() => (0..)
                    .zip(parts)
                    .map(|(i, part)| within(part, at, depth, &[keyword, &i.to_string()]))
                    .collect(),
                _ => bad(
                    at,
                    format!("`{keyword}` is a list of schemas, and not empty"),
                ),
            }
        };
        let count = |at: &str| match size(value) {
            Some(n) => Ok(n),
            None => bad(at, format!("`{keyword}` is a whole number from 0 on")),
        };
        let number = |at: &str, bound| match value.as_f64() {
            Some(n) => Ok(Rule::Number(bound, n)),
            None => bad(at, format!("`{keyword}` is a number")),
        };
        rules.push(match keyword.as_str() {
            "type" => Rule::Types(types(value, at)?),
            "const" => Rule::OneOfValues(vec![value.clone()]),
            "enum" => match value.as_array() {
                Some(values) => Rule::OneOfValues(values.clone()),
                None => return bad(at, "`enum` is a list of values"),
            },
            "properties" => Rule::Properties {
                known: properties(keywords, at, depth)?,
                others: None,
            },
            "additionalProperties" => Rule::Properties {
                // The names alone: what they must be like is said by `properties`.
                known: match keywords.get("properties") {
                    Some(Value::Object(parts)) => parts
                        .keys()
                        .map(|name| (name.clone(), Schema(Vec::new())))
                        .collect(),
                    _ => BTreeMap::new(),
                },
                others: Some(Box::new(within(value, at, depth, &[keyword])?)),
            },
            "required" => match serde_json::from_value(value.clone()) {
                Ok(names) => Rule::Required(names),
                Err(_) => return bad(at, "`required` is a list of names"),
            },
            "minProperties" => Rule::PropertyCount(count(at)?, u64::MAX),
            "maxProperties" => Rule::PropertyCount(0, count(at)?),
            "items" => Rule::Items(Box::new(within(value, at, depth, &[keyword])?)),
            "minItems" => Rule::ItemCount(count(at)?, u64::MAX),
            "maxItems" => Rule::ItemCount(0, count(at)?),
            "minLength" => Rule::Length(count(at)?, u64::MAX),
            "maxLength" => Rule::Length(0, count(at)?),
            "minimum" => number(at, Bound::AtLeast)?,
            "maximum" => number(at, Bound::AtMost)?,
            "exclusiveMinimum" => number(at, Bound::Above)?,
            "exclusiveMaximum" => number(at, Bound::Below)?,
            "allOf" => Rule::All(list(at)?),
            "anyOf" => Rule::Any(list(at)?),
            "oneOf" => Rule::One(list(at)?),
            "not" => Rule::Not(Box::new(within(value, at, depth, &[keyword])?)),
            "title" | "description" | "default" | "examples" | "$schema" | "$id" | "$comment" => {
                continue;
            }
            other => {
                return bad(
                    at,
                    format!(
                        "the keyword `{}` is not supported: leave it out, or check it elsewhere",
                        crate::http_client::clip(other)
                    ),
                );
            }
        });
    }
    Ok(Schema(rules))
}

/// A whole number, which may be written as 2.0.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it is whole, and in range"
)]
fn size(value: &Value) -> Option<u64> {
    let whole = |f: &f64| f.fract().abs() < f64::MIN_POSITIVE && (0.0..1e15).contains(f);
    value
        .as_u64()
        .or_else(|| value.as_f64().filter(whole).map(|f| f as u64))
}

fn types(value: &Value, at: &str) -> Result<Vec<Type>, BadSchema> {
    let names = match value {
        Value::Array(names) => names.as_slice(),
        one => std::slice::from_ref(one),
    };
    names
        .iter()
        .map(|name| {
            Ok(match name.as_str() {
                Some("null") => Type::Null,
                Some("boolean") => Type::Boolean,
                Some("object") => Type::Object,
                Some("array") => Type::Array,
                Some("number") => Type::Number,
                Some("integer") => Type::Integer,
                Some("string") => Type::String,
                _ => return bad(at, "`type` is one of null, boolean, object, array, number, integer, string, or a list of them"),
            })
        })
        .collect()
}

fn properties(
    keywords: &Map<String, Value>,
    at: &mut String,
    depth: usize,
) -> Result<BTreeMap<String, Schema>, BadSchema> {
    match keywords.get("properties") {
        None => Ok(BTreeMap::new()),
        Some(Value::Object(parts)) => parts
            .iter()
            .map(|(name, part)| {
                let schema = within(part, at, depth, &["properties", name])?;
                Ok((name.clone(), schema))
            })
            .collect(),
        Some(_) => bad(at, "`properties` is an object of schemas"),
    }
}

impl Rule {
    fn accepts(&self, value: &Value) -> bool {
        let inside = |low: &u64, n: usize, high: &u64| (*low..=*high).contains(&(n as u64));
        match (self, value) {
            (Self::Nothing, _) => false,
            (Self::Types(types), _) => types.iter().any(|t| t.is_of(value)),
            (Self::OneOfValues(values), _) => values.iter().any(|v| equal(v, value)),
            (Self::Properties { known, others }, Value::Object(fields)) => {
                fields
                    .iter()
                    .all(|(name, field)| match (known.get(name), others) {
                        (Some(schema), _) => schema.accepts(field),
                        (None, Some(schema)) => schema.accepts(field),
                        (None, None) => true,
                    })
            }
            (Self::Required(names), Value::Object(fields)) => {
                names.iter().all(|name| fields.contains_key(name))
            }
            (Self::PropertyCount(low, high), Value::Object(fields)) => {
                inside(low, fields.len(), high)
            }
            (Self::Items(schema), Value::Array(items)) => items.iter().all(|i| schema.accepts(i)),
            (Self::ItemCount(low, high), Value::Array(items)) => inside(low, items.len(), high),
            (Self::Length(low, high), Value::String(text)) => {
                inside(low, text.chars().count(), high)
            }
            (Self::Number(bound, limit), Value::Number(n)) => {
                n.as_f64().is_some_and(|n| match bound {
                    Bound::AtLeast => n >= *limit,
                    Bound::AtMost => n <= *limit,
                    Bound::Above => n > *limit,
                    Bound::Below => n < *limit,
                })
            }
            (Self::All(schemas), _) => schemas.iter().all(|s| s.accepts(value)),
            (Self::Any(schemas), _) => schemas.iter().any(|s| s.accepts(value)),
            (Self::One(schemas), _) => schemas.iter().filter(|s| s.accepts(value)).count() == 1,
            (Self::Not(schema), _) => !schema.accepts(value),
            // A keyword says nothing about values of another type.
            _ => true,
        }
    }
}

impl Type {
    fn is_of(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Null, Value::Null)
            | (Self::Boolean, Value::Bool(_))
            | (Self::Object, Value::Object(_))
            | (Self::Array, Value::Array(_))
            | (Self::Number, Value::Number(_))
            | (Self::String, Value::String(_)) => true,
            (Self::Integer, Value::Number(n)) => {
                !n.is_f64()
                    || n.as_f64()
                        .is_some_and(|f| f.fract().abs() < f64::MIN_POSITIVE)
            }
            _ => false,
        }
    }
}

/// Equality of JSON Schema: 1 and 1.0 are the same number.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            a == b || whole(a).is_some() && whole(a) == whole(b)
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(name, a)| b.get(name).is_some_and(|b| equal(a, b)))
        }
        (a, b) => a == b,
    }
}

/// The whole number that it is, if it is one that JSON parsers keep whole.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a whole number within the range"
)]
fn whole(n: &Number) -> Option<i128> {
    let float = || {
        n.as_f64()
            .filter(|f| f.fract().abs() < f64::MIN_POSITIVE && f.abs() < 1e30)
    };
    let signed = n.as_i64().map(i128::from);
    signed
        .or_else(|| n.as_u64().map(i128::from))
        .or_else(|| float().map(|f| f as i128))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Vectors {
        schemas: Vec<Vector>,
    }

    #[derive(Deserialize)]
    struct Vector {
        schema: Schema,
        values: Vec<(Value, bool)>,
    }

    /// What the Python package `jsonschema` says (vectors.py).
    #[test]
    fn agrees_with_the_reference() {
        let vectors: Vectors = serde_json::from_str(include_str!("text/vectors.json")).unwrap();
        let mut n = 0;
        for vector in vectors.schemas {
            for (value, accepted) in vector.values {
                assert_eq!(
                    vector.schema.accepts(&value),
                    accepted,
                    "{:?} {value}",
                    vector.schema
                );
                n += 1;
            }
        }
        assert!(n > 400, "{n}");
    }

    #[test]
    fn what_is_not_known_is_refused_and_located() {
        for (text, at, why) in [
            (r#"{"pattern": "x"}"#, "", "`pattern` is not supported"),
            (
                r#"{"properties": {"a/b": {"$ref": "http://x"}}}"#,
                "/properties/a~1b",
                "`$ref`",
            ),
            (
                r#"{"anyOf": [true, {"type": "text"}]}"#,
                "/anyOf/1",
                "`type` is one of",
            ),
            (r#"{"anyOf": []}"#, "", "not empty"),
            (r#"{"minLength": -1}"#, "", "whole number"),
            (r#"{"items": [true]}"#, "/items", "a schema is an object"),
            (r#"{"not": 5}"#, "/not", "a schema is an object"),
        ] {
            let error = Schema::new(&serde_json::from_str(text).unwrap()).unwrap_err();
            assert!(error.at == at && error.why.contains(why), "{text}: {error}");
        }
        let mut deep = Value::Bool(true);
        for _ in 0..40 {
            deep = serde_json::json!({"not": deep});
        }
        assert!(
            Schema::new(&deep)
                .unwrap_err()
                .why
                .contains("within each other")
        );
    }
}
