//! The per-reply check.

use super::Order;
use serde_json::Value;
use thiserror::Error;

/// What is wrong with a reply.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CheckError {
    /// Not one JSON object.
    #[error("the reply is not a JSON object")]
    NotJson,
    /// A JSON object with other keys, or values of other types, than asked for.
    #[error("the reply lacks `{0}` or has it with another type, or has further keys")]
    Shape(&'static str),
    /// The right form with a wrong value.
    #[error("the reply has a wrong `{0}`")]
    Value(&'static str),
}

impl CheckError {
    /// Whether the form is broken, so that no program could use the reply; a
    /// well-formed reply with a wrong value is not.
    pub fn is_format(&self) -> bool {
        match self {
            Self::NotJson | Self::Shape(_) => true,
            Self::Value(_) => false,
        }
    }
}

/// Checks a whole reply against the order it should contain.
///
/// # Errors
///
/// The first thing that is wrong, the form before the values.
pub fn check(reply: &str, expected: &Order) -> Result<(), CheckError> {
    let Ok(Value::Object(fields)) = serde_json::from_str(reply) else {
        return Err(CheckError::NotJson);
    };
    let item = fields
        .get("item")
        .and_then(Value::as_str)
        .ok_or(CheckError::Shape("item"))?;
    let count = fields
        .get("count")
        .and_then(Value::as_u64)
        .ok_or(CheckError::Shape("count"))?;
    let city = fields
        .get("city")
        .and_then(Value::as_str)
        .ok_or(CheckError::Shape("city"))?;
    if fields.len() != 3 {
        return Err(CheckError::Shape("item, count and city alone"));
    }
    if item != expected.item {
        return Err(CheckError::Value("item"));
    }
    if count != u64::from(expected.count) {
        return Err(CheckError::Value("count"));
    }
    if city != expected.city {
        return Err(CheckError::Value("city"));
    }
    Ok(())
}
