//! Files of other tools, and the plans and notes made of them. `UPDATE_IMPORTS=1` writes the expectations anew.
#![cfg(feature = "import")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use llm_rollout::Plan;
use llm_serve_adapters::import::{ImportError, Imported, argo, flagger, sagemaker};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

type Importer = fn(&str) -> Result<Imported, ImportError>;

const IMPORTERS: [(&str, Importer); 3] = [
    ("argo", argo),
    ("flagger", flagger),
    ("sagemaker", sagemaker),
];

fn files(name: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/import")
        .join(name);
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml" || e == "json"))
        .collect();
    files.sort();
    assert!(files.len() >= 5, "{name}: {} files", files.len());
    files
}

/// The notes as comments, then the plan.
fn told(imported: &Imported) -> String {
    let mut text = String::new();
    for note in &imported.notes {
        writeln!(text, "# {note}").unwrap();
    }
    text + &toml::to_string(imported.plan.spec()).unwrap()
}

#[test]
fn every_file_gives_its_plan_and_its_notes() {
    let mut differ = Vec::new();
    for (name, import) in IMPORTERS {
        for path in files(name) {
            let text = std::fs::read_to_string(&path).unwrap();
            let imported = import(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let found = told(&imported);
            let beside = path.with_extension("toml");
            if std::env::var_os("UPDATE_IMPORTS").is_some() {
                std::fs::write(&beside, &found).unwrap();
            } else if std::fs::read_to_string(&beside).unwrap_or_default() != found {
                differ.push(format!("{}:\n{found}", beside.display()));
            }
        }
    }
    assert!(
        differ.is_empty(),
        "not as written; UPDATE_IMPORTS=1 writes it: {}",
        differ.join("\n")
    );
}

#[test]
fn what_is_printed_is_a_plan_again() {
    for (name, import) in IMPORTERS {
        for path in files(name) {
            let imported = import(&std::fs::read_to_string(&path).unwrap()).unwrap();
            assert_eq!(Plan::from_toml(&told(&imported)).unwrap(), imported.plan);
        }
    }
}

/// Every field is read, known to need no word, or named in a note: one more field makes one more note.
#[test]
fn nothing_is_dropped_silently() {
    for (name, import) in IMPORTERS {
        for path in files(name)
            .iter()
            .filter(|p| p.extension().unwrap() == "json")
        {
            let text = std::fs::read_to_string(path).unwrap();
            let before = import(&text).unwrap().notes;
            let more = text.replacen('{', "{ \"surprise\": { \"inside\": [1, 2] },", 1);
            let after = import(&more).unwrap().notes;
            let places: Vec<_> = after.iter().map(|n| n.place.as_str()).collect();
            assert_eq!(
                after.len(),
                before.len() + 1,
                "{}: {places:?}",
                path.display()
            );
            assert!(places.contains(&"surprise"), "{places:?}");
        }
    }
}

/// Each importer refuses the others' files by saying what it found.
#[test]
fn a_file_of_another_tool_is_named() {
    for (name, import) in IMPORTERS {
        for (other, _) in IMPORTERS.iter().filter(|(other, _)| *other != name) {
            for path in files(other) {
                let error = import(&std::fs::read_to_string(&path).unwrap()).unwrap_err();
                assert!(
                    matches!(error, ImportError::Nothing { .. }),
                    "{}: {error}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let refused = |import: Importer, text: &str, words: &str| {
        let error = import(text).unwrap_err().to_string();
        assert!(error.contains(words), "{error}\nhas no: {words}");
    };
    let rollout = |steps: &str| {
        format!("kind: Rollout\nspec: {{ strategy: {{ canary: {{ steps: {steps} }} }} }}")
    };
    refused(argo, "", "it holds nothing: there must be a `Rollout`");
    refused(argo, "kind: [", "cannot be read as YAML or JSON");
    refused(argo, &"# \n".repeat(400_000), "at most 1 MiB");
    refused(argo, "kind: Rollout", "`spec` is missing");
    refused(
        argo,
        "kind: Rollout\nspec: { strategy: {} }",
        "`spec.strategy.canary` is missing",
    );
    refused(
        argo,
        &rollout("5"),
        "`spec.strategy.canary.steps` is 5: it must be a list",
    );
    refused(
        argo,
        &rollout("[ { setWeight: many } ]"),
        "steps[0].setWeight` is \"many\": it must be a number",
    );
    refused(
        argo,
        &rollout("[ { setWeight: 50 }, { setWeight: 5 } ]"),
        "makes no plan",
    );
    refused(
        argo,
        &rollout("[ { pause: { duration: soon } } ]"),
        "a duration such as",
    );
    refused(
        argo,
        &rollout("[ { analysis: { templates: [ { templateName: gone } ] } } ]"),
        "names the AnalysisTemplate `gone`, which is not in the file",
    );
    let canary = |analysis: &str| format!("kind: Canary\nspec: {{ analysis: {{ {analysis} }} }}");
    refused(
        flagger,
        "kind: Canary\nspec: {}",
        "`spec.analysis` is missing",
    );
    refused(
        flagger,
        &canary("interval: 1m"),
        "`spec.analysis.stepWeight` is missing",
    );
    refused(
        flagger,
        &canary("interval: 1m, stepWeight: 0, maxWeight: 50"),
        "makes no plan",
    );
    refused(
        flagger,
        &canary(
            "interval: 1m, stepWeight: 10, metrics: [ { name: a, templateRef: { name: gone } } ]",
        ),
        "names the MetricTemplate `gone`",
    );
    let update = |policy: &str| format!("DeploymentConfig: {{ {policy} }}");
    refused(sagemaker, "{}", "a document without a kind");
    refused(sagemaker, &update(""), "BlueGreenUpdatePolicy` is missing");
    refused(
        sagemaker,
        &update(
            "BlueGreenUpdatePolicy: { TrafficRoutingConfiguration: { Type: CANARY, CanarySize: { Type: CAPACITY_PERCENT, Value: 51 } } }",
        ),
        "1 to 50 %",
    );
    refused(
        sagemaker,
        &update("BlueGreenUpdatePolicy: { TrafficRoutingConfiguration: { Type: SUDDEN } }"),
        "it must be ALL_AT_ONCE, CANARY or LINEAR",
    );
}
