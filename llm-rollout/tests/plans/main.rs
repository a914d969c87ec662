//! Plans that are bad, each with the message that a person gets, and plans that are good.
//!
//! A plan says in comments (`#:`) what its traffic is like. A bad plan is called after the finding that it must lead to, or `refused-...` where it is no
//! plan; what is said of it stands beside it. `UPDATE_PLANS=1 cargo test -p llm-rollout --test plans` writes that anew.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test reads its plans from files, and fails by panicking"
)]

mod findings;
mod presets;

use llm_rollout::plan::lint::Finding;
use llm_rollout::{Plan, Traffic};
use std::fs;
use std::path::{Path, PathBuf};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/plans")
        .join(name)
}

/// The plans of a folder: path, name, text.
fn plans(of: &str) -> Vec<(PathBuf, String, String)> {
    let files = fs::read_dir(folder(of)).unwrap();
    let mut plans: Vec<_> = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e != "txt"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let text = fs::read_to_string(&path).unwrap();
            (path, name, text)
        })
        .collect();
    plans.sort();
    plans
}

fn read(path: &Path, text: &str) -> Result<Plan, String> {
    let read = if path.extension().is_some_and(|e| e == "json") {
        Plan::from_json(text)
    } else {
        Plan::from_toml(text)
    };
    let name = path.file_name().unwrap().to_str().unwrap();
    read.map_err(|error| error.in_file(name).to_string())
}

fn lint(plan: &Plan, text: &str) -> Vec<Finding> {
    let said: Vec<_> = text.lines().filter_map(|l| l.strip_prefix("#: ")).collect();
    let traffic: Traffic = toml::from_str(&said.join("\n")).unwrap();
    plan.lint(&traffic).unwrap()
}

#[test]
fn each_bad_plan_gets_the_message_that_one_would_want() {
    let (update, plans) = (std::env::var_os("UPDATE_PLANS").is_some(), plans("bad"));
    assert!(plans.len() >= 20);
    for (path, name, text) in plans {
        let said = match read(&path, &text) {
            Err(error) => {
                assert!(name.starts_with("refused-"), "{name}: {error}");
                error
            }
            Ok(plan) => {
                let findings = lint(&plan, &text);
                assert!(
                    findings.iter().any(|f| f.code == name),
                    "{name} is not found: {findings:#?}"
                );
                let all: Vec<_> = findings.iter().map(|f| f.show(&text)).collect();
                for finding in &findings {
                    assert!(
                        finding.position(&text).is_some() || !text.contains(&finding.path),
                        "{name}: no line for {}",
                        finding.path
                    );
                }
                all.join("\n\n")
            }
        } + "\n";
        let beside = path.with_extension("txt");
        if update {
            fs::write(&beside, &said).unwrap();
        }
        let expected = fs::read_to_string(&beside).unwrap_or_default();
        assert_eq!(
            said, expected,
            "{name}: what is said has changed; UPDATE_PLANS=1 writes it anew"
        );
    }
}

#[test]
fn good_plans_lead_to_no_finding() {
    let plans = plans("good");
    assert!(plans.len() >= 5);
    for (path, name, text) in plans {
        let plan = read(&path, &text).unwrap_or_else(|error| panic!("{error}"));
        let findings: Vec<_> = lint(&plan, &text).iter().map(|f| f.show(&text)).collect();
        assert!(findings.is_empty(), "{name}:\n{}", findings.join("\n\n"));
    }
}
