//! The JSON Schema of a plan: it is what is in the repository, valid plans keep it, and bad ones do not.

#![expect(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test reads files, and fails by panicking"
)]

use llm_rollout::Plan;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn the_schema_in_the_repository_is_current() {
    let (path, schema) = (at("docs/plan.schema.json"), Plan::schema());
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        fs::write(&path, text).unwrap();
    }
    let kept: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(
        kept, schema,
        "UPDATE_SCHEMA=1 cargo test -p llm-rollout --features schema --test schema"
    );
}

/// Whether a value keeps a schema, by the keywords that this one uses (JSON Schema 2020-12); any other keyword is a failure of the test.
fn keeps(root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let rules = match schema {
        Value::Bool(true) => return Ok(()),
        Value::Bool(false) => return Err(format!("nothing may be here: {value}")),
        schema => schema.as_object().unwrap(),
    };
    let all = |list: &Value| -> Vec<Result<(), String>> {
        let schemas = list.as_array().unwrap().iter();
        schemas.map(|s| keeps(root, s, value)).collect()
    };
    let is = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        kind => panic!("unknown type {kind}"),
    };
    for (keyword, rule) in rules {
        let kept = match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" | "default" | "format" | "examples" => {
                true
            }
            "$ref" => {
                let target = root.pointer(rule.as_str().unwrap().trim_start_matches('#'));
                keeps(root, target.unwrap(), value)?;
                true
            }
            "type" => match rule {
                Value::String(kind) => is(kind),
                kinds => kinds
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|k| is(k.as_str().unwrap())),
            },
            "properties" => {
                for (name, schema) in rule.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        keeps(root, schema, value).map_err(|e| format!("{name}: {e}"))?;
                    }
                }
                true
            }
            "additionalProperties" => {
                let known = rules.get("properties").and_then(Value::as_object);
                for (name, value) in value.as_object().into_iter().flatten() {
                    if known.is_none_or(|known| !known.contains_key(name)) {
                        keeps(root, rule, value).map_err(|e| format!("{name}: {e}"))?;
                    }
                }
                true
            }
            "required" => {
                let names = rule.as_array().unwrap().iter();
                !value.is_object()
                    || names
                        .into_iter()
                        .all(|n| value.get(n.as_str().unwrap()).is_some())
            }
            "items" => {
                for value in value.as_array().into_iter().flatten() {
                    keeps(root, rule, value)?;
                }
                true
            }
            "enum" => rule.as_array().unwrap().contains(value),
            "const" => rule == value,
            "oneOf" => all(rule).iter().filter(|r| r.is_ok()).count() == 1,
            "anyOf" => all(rule).iter().any(Result::is_ok),
            "minimum" => value.as_f64().is_none_or(|v| v >= rule.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|v| v <= rule.as_f64().unwrap()),
            keyword => panic!("the schema uses {keyword}, which this test does not know"),
        };
        if !kept {
            return Err(format!("{value} does not keep {keyword} {rule}"));
        }
    }
    Ok(())
}

#[test]
fn what_is_a_plan_keeps_the_schema_and_what_cannot_be_read_does_not() {
    let (schema, mut plans, mut refused) = (Plan::schema(), 0, 0);
    for folder in ["tests/plans/good", "tests/plans/bad"] {
        for file in fs::read_dir(at(folder)).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|e| e != "toml") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let Ok(written) = toml::from_str::<Value>(&text) else {
                continue;
            };
            let kept = keeps(&schema, &schema, &written);
            match Plan::from_toml(&text) {
                Ok(plan) => {
                    kept.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                    let whole = serde_json::to_value(&plan).unwrap();
                    keeps(&schema, &schema, &whole)
                        .unwrap_or_else(|e| panic!("{} as written out: {e}", path.display()));
                    plans += 1;
                }
                // Without a path: what cannot be read at all. Durations are words to a schema.
                Err(error) if error.path().is_none() && !error.problem().contains("duration") => {
                    assert!(kept.is_err(), "{}: {error}", path.display());
                    refused += 1;
                }
                Err(_) => {}
            }
        }
    }
    assert!(
        plans >= 40 && refused >= 2,
        "{plans} plans, {refused} refused"
    );
}
