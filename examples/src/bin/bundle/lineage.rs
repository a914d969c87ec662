//! `lineage`: where a bundle comes from, captured into its `metadata.json`.

use std::fs;
use std::path::Path;

use llm_version_core::fs::{Capture, METADATA_FILE, capture_lineage, dvc_digest};
use llm_version_core::{BaseModel, Dataset, Lineage, Metadata};
use serde_json::json;

use crate::args::Request;
use crate::failure::{Code, Failure};
use crate::folder::outline;
use crate::{Done, Outcome};

pub(crate) fn lineage(request: &Request) -> Done {
    let path = Path::new(request.word(0)).join(METADATA_FILE);
    let io = |error| Failure::io(path.display(), &error);
    let bytes = fs::read(&path).map_err(io)?;
    let mut metadata = Metadata::parse(&bytes)
        .map_err(|error| Failure::new(Code::Check, format!("{}: {error}", path.display())))?;
    let before = metadata.lineage.clone();
    capture(request, &mut metadata.lineage)?;
    state(request, &mut metadata.lineage)?;
    if metadata.lineage != before {
        let partial = path.with_extension("json.partial");
        fs::write(&partial, metadata.to_pretty()).map_err(io)?;
        fs::rename(&partial, &path).map_err(io)?;
    }
    let lineage = json!(metadata.lineage);
    let text = match outline(&lineage, 0) {
        text if text.is_empty() => "nothing is stated; --help lists what can be".to_owned(),
        text => text,
    };
    Ok(Outcome::new(text)
        .with("changed", metadata.lineage != before)
        .with("lineage", lineage))
}

/// What can be read: the checkout, the configuration, the packages.
fn capture(request: &Request, lineage: &mut Lineage) -> Result<(), Failure> {
    let path = |option| request.value(option).map(Into::into);
    let mut capture = Capture::new();
    capture.checkout = path("--code");
    capture.config = path("--config");
    capture.overrides = path("--overrides");
    capture.packages = path("--packages");
    if capture.overrides.is_some() && capture.config.is_none() {
        return Err(Failure::usage("--overrides belongs to a --config"));
    }
    let found =
        capture_lineage(&capture).map_err(|error| Failure::new(Code::Environment, error))?;
    if found.code.is_some() {
        lineage.code = found.code;
    }
    if found.config.is_some() {
        lineage.config = found.config;
    }
    if capture.packages.is_some() {
        lineage.environment = found.environment;
    }
    Ok(())
}

/// What can only be said.
fn state(request: &Request, lineage: &mut Lineage) -> Result<(), Failure> {
    if let Some(word) = request.value("--base-model") {
        let (name, revision) = word.rsplit_once('@').unwrap_or((word, ""));
        let mut base = BaseModel::new(name);
        base.revision = Some(revision.to_owned()).filter(|r| !r.is_empty());
        lineage.base_model = Some(base);
    }
    for word in request.values("--parent") {
        let id = word
            .parse()
            .map_err(|error| Failure::usage(format!("--parent {word:?}: {error}")))?;
        if !lineage.parents.contains(&id) {
            lineage.parents.push(id);
        }
    }
    for word in request.values("--dataset") {
        let (named, path) = match word.split_once('=') {
            Some((named, path)) => (named, Some(path)),
            None => (word, None),
        };
        let (name, version) = named
            .rsplit_once('@')
            .ok_or_else(|| Failure::usage(format!("--dataset {word:?} is not NAME@VERSION")))?;
        let mut dataset = Dataset::new(name, version);
        if let Some(path) = path {
            let digest = dvc_digest(Path::new(path));
            dataset.digest = Some(digest.map_err(|error| Failure::new(Code::Environment, error))?);
        }
        lineage.datasets.retain(|known| known.name != name);
        lineage.datasets.push(dataset);
    }
    for (option, map) in [
        ("--seed", &mut lineage.seeds),
        ("--parameter", &mut lineage.hyper_parameters),
    ] {
        for word in request.values(option) {
            let (name, value) = word
                .split_once('=')
                .ok_or_else(|| Failure::usage(format!("{option} {word:?} is not NAME=VALUE")))?;
            map.insert(name.to_owned(), value.to_owned());
        }
    }
    Ok(())
}
