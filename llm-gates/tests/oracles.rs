//! Reference values of other programs, from `tests/oracles` or the folder that `LLM_GATES_ORACLES` names.
//!
//! Each file has `cases` of `{fn, args, expect, rtol, atol}`. A wrong value fails the test; kinds without a counterpart here are listed.
#![expect(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::print_stdout,
    clippy::unnecessary_wraps,
    clippy::unwrap_used,
    reason = "a test that reads files and prints a table"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use llm_gates::{Counts, Grid, RateRatio};
use serde_json::Value;

#[path = "kinds/anytime.rs"]
mod anytime;
#[path = "kinds/design.rs"]
mod design;
#[path = "kinds/fixed.rs"]
mod fixed;

/// Values by name, or why there are none.
type Answer = Option<Vec<(&'static str, Value)>>;

fn number(args: &Value, name: &str) -> f64 {
    args[name]
        .as_f64()
        .unwrap_or_else(|| panic!("argument `{name}` of {args}"))
}

fn numbers(args: &Value, name: &str) -> Vec<f64> {
    args[name]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap())
        .collect()
}

fn count(args: &Value, name: &str) -> u64 {
    args[name]
        .as_u64()
        .unwrap_or_else(|| panic!("argument `{name}` of {args}"))
}

fn rows(args: &Value, name: &str) -> Vec<[u64; 4]> {
    let row = |r: &Value| std::array::from_fn(|i| r[i].as_u64().unwrap());
    args[name].as_array().unwrap().iter().map(row).collect()
}

fn rate_ratio(args: &Value, mut process: RateRatio) -> Vec<f64> {
    let look = |[n_c, k_c, n_b, k_b]: [u64; 4]| {
        process.observe(Counts::new(n_c, k_c), Counts::new(n_b, k_b));
        process.log_e()
    };
    rows(args, "batches").into_iter().map(look).collect()
}

fn answer(file: &str, kind: &str, args: &Value) -> Answer {
    let wide = |theta0| RateRatio::new(theta0, Grid::Wide16).unwrap();
    Some(match (file, kind) {
        ("eprocess_rate_ratio", "rate_ratio_trace") => vec![(
            "log_e",
            rate_ratio(args, wide(number(args, "theta0"))).into(),
        )],
        ("eprocess_rate_ratio", "rate_ratio_extreme") => {
            vec![(
                "log_e_final",
                rate_ratio(args, wide(number(args, "theta0")))
                    .last()
                    .copied()
                    .into(),
            )]
        }
        ("eprocess_rate_ratio", "rate_ratio_changepoint_trace") => {
            let horizon = args["horizon"].as_u64().unwrap().try_into().unwrap();
            let process = RateRatio::with_late_starts(
                number(args, "theta0"),
                Grid::Wide16,
                number(args, "prior_start"),
                horizon,
            )
            .unwrap();
            vec![("log_e", rate_ratio(args, process).into())]
        }
        _ => {
            return fixed::answer(file, kind, args)
                .or_else(|| anytime::answer(file, kind, args))
                .or_else(|| design::answer(file, kind, args));
        }
    })
}

/// Worst relative error (where the tolerance is relative) over all numbers of the expected value.
fn compare(expected: &Value, got: &Value, rtol: f64, atol: f64) -> Result<f64, String> {
    match (expected, got) {
        (Value::Array(e), Value::Array(g)) if e.len() == g.len() => {
            e.iter().zip(g).try_fold(0.0, |worst: f64, (e, g)| {
                Ok(worst.max(compare(e, g, rtol, atol)?))
            })
        }
        (Value::Number(e), Value::Number(g)) => {
            let (e, g) = (e.as_f64().unwrap(), g.as_f64().unwrap());
            let allowed = atol + rtol * e.abs();
            if (e - g).abs() <= allowed {
                Ok((e - g).abs()
                    / (e.abs() + if rtol > 0.0 { atol / rtol } else { atol }).max(1e-300))
            } else {
                Err(format!("expected {e}, got {g}"))
            }
        }
        (Value::Object(e), Value::Object(g)) if e.len() == g.len() => {
            e.iter().try_fold(0.0, |worst: f64, (k, e)| {
                Ok(worst.max(compare(e, g.get(k).unwrap_or(&Value::Null), rtol, atol)?))
            })
        }
        (e, g) if e == g => Ok(0.0),
        (e, g) => Err(format!("expected {e}, got {g}")),
    }
}

/// What has been compared: by function, how many values, and their worst relative error.
type Met = BTreeMap<String, (usize, f64)>;

const HEAD: &str = "| function | values | worst relative error |\n|---|---|---|\n";

/// Errors are rounded up to one digit.
fn table(met: &Met) -> String {
    let row = |(label, (count, error)): (&String, &(usize, f64))| {
        let text = format!("{:.0e}", (error * 1.5).max(1e-16));
        format!("| {label} | {count} | {text} |\n")
    };
    HEAD.to_owned() + &met.iter().map(row).collect::<String>()
}

/// The documented table says no less than what was met, of every function. `LLM_GATES_BLESS=1` writes it anew.
fn check_documented(met: &Met) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/accuracy.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let at = text.find(HEAD).unwrap();
    if std::env::var_os("LLM_GATES_BLESS").is_some() {
        std::fs::write(&path, text[..at].to_owned() + &table(met)).unwrap();
        return;
    }
    let rows: BTreeMap<&str, (usize, f64)> = text[at + HEAD.len()..]
        .lines()
        .map(|line| {
            let cells: Vec<_> = line.trim_matches(['|', ' ']).split(" | ").collect();
            let [label, count, error] = cells.try_into().unwrap();
            (label, (count.parse().unwrap(), error.parse().unwrap()))
        })
        .collect();
    for (label, (count, error)) in met {
        let (documented, at_most) = rows
            .get(label.as_str())
            .unwrap_or_else(|| panic!("docs/accuracy.md lacks {label}: set LLM_GATES_BLESS=1"));
        assert_eq!(documented, count, "docs/accuracy.md, {label}");
        assert!(
            error <= at_most,
            "{label}: {error}, and docs/accuracy.md says {at_most}"
        );
    }
    assert_eq!(rows.len(), met.len(), "docs/accuracy.md has other rows");
}

#[test]
fn every_reference_value_is_met() {
    let folder = std::env::var_os("LLM_GATES_ORACLES").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oracles"),
        PathBuf::from,
    );
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "json"));
    files.sort();
    assert!(
        !files.is_empty(),
        "no reference values in {}",
        folder.display()
    );
    let mut wrong = Vec::new();
    let mut met = Met::new();
    let mut unknown: BTreeMap<String, usize> = BTreeMap::new();
    for file in files {
        let stem = file.file_stem().unwrap().to_string_lossy().into_owned();
        // `scipy_FAMILY.json` and `scipy_FAMILY-PART.json`: further random cases of a family, frozen by the programs in tests/scripts.
        let name = stem.strip_prefix("scipy_").unwrap_or(&stem);
        let name = name.split('-').next().unwrap_or(name);
        let content: Value =
            serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        for case in content["cases"].as_array().unwrap() {
            let kind = case["fn"].as_str().unwrap();
            let label = format!("{name}/{kind}");
            let Some(answers) = answer(name, kind, &case["args"]) else {
                *unknown.entry(label).or_default() += 1;
                continue;
            };
            let (rtol, atol) = (
                case["rtol"].as_f64().unwrap_or(0.0),
                case["atol"].as_f64().unwrap_or(0.0),
            );
            let expected = &case["expect"];
            for (key, got) in answers {
                let expected = if key.is_empty() {
                    expected
                } else {
                    &expected[key]
                };
                match compare(expected, &got, rtol, atol) {
                    Ok(error) => {
                        let entry = met.entry(label.clone()).or_default();
                        *entry = (entry.0 + 1, entry.1.max(error));
                    }
                    Err(said) => wrong.push(format!("{stem} {label} {} {key}: {said}", case["id"])),
                }
            }
        }
    }
    print!("{}", table(&met));
    for (label, count) in &unknown {
        println!("not known: {label} ({count} cases)");
    }
    assert!(
        wrong.is_empty(),
        "{} wrong values:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(
        !met.is_empty(),
        "no known reference values in {}",
        folder.display()
    );
    if std::env::var_os("LLM_GATES_ORACLES").is_none() {
        check_documented(&met);
    }
}
