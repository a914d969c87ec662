//! A small bundle, and short ways to build, verify and break it.

use std::fs;
use std::path::Path;

use llm_version_core::Manifest;
use llm_version_core::fs::{
    BuildError, BuildOptions, ProblemKind, VerifyError, VerifyOptions, VerifyReport, build, verify,
};

pub(crate) const FILES: [(&str, &str); 8] = [
    (
        "metadata.json",
        r#"{"format":"llm-metadata/1","name":"chat","version":"1.2.3","contract":{"api":"openai-chat/v1"}}"#,
    ),
    ("model/config.json", r#"{"hidden_size":8}"#),
    ("model/tokenizer/tokenizer.json", "{}"),
    ("prompt/system.txt", "You are helpful."),
    ("prompt/few_shot/1.json", "[]"),
    ("config/generation.json", r#"{"temperature":0.7}"#),
    ("config/dependencies.json", r#"{"vllm":"0.9.1"}"#),
    ("tests/eval.json", r#"{"score":1}"#),
];

pub(crate) fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

pub(crate) fn bundle() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in FILES {
        write(folder.path(), path, text);
    }
    folder
}

pub(crate) fn manifest(root: &Path) -> Manifest {
    build(root, &BuildOptions::new()).unwrap().manifest
}

pub(crate) fn report(root: &Path, manifest: &Manifest) -> VerifyReport {
    match verify(root, manifest, &VerifyOptions::new()) {
        Err(VerifyError::Differs(report)) => *report,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn names(
    paths: &std::collections::BTreeSet<llm_version_core::ComponentPath>,
) -> Vec<&str> {
    paths
        .iter()
        .map(llm_version_core::ComponentPath::as_str)
        .collect()
}

pub(crate) fn problems(root: &Path) -> Vec<(String, ProblemKind)> {
    match build(root, &BuildOptions::new()) {
        Err(BuildError::Tree(problems)) => problems.into_iter().map(|p| (p.path, p.kind)).collect(),
        other => panic!("{other:?}"),
    }
}
