//! Commands on folders: `init`, `build`, `verify`, `show`, `diff`.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use examples::terminal::Terminal;
use llm_version_core::fs::{BuildOptions, MANIFEST_FILE, METADATA_FILE, VerifyOptions};
use llm_version_core::{
    BaseModel, ComponentKind, Licence, Manifest, Metadata, Surroundings, transition,
};
use serde_json::{Value, json};

use crate::args::Request;
use crate::failure::{Code, Failure};
use crate::target::{
    Target, check, hash, links, name_and_version, number, open_registry, read_manifest, reference,
    resolve, size,
};
use crate::{Done, Outcome};

/// Sampling parameters that `init` writes.
const GENERATION: &str =
    "{\n  \"max_new_tokens\": 512,\n  \"temperature\": 0.7,\n  \"top_p\": 0.95\n}\n";
/// The prompt that `init` writes.
const PROMPT: &str = "You are a helpful assistant.\n";

/// Writes a file that must not exist.
fn create(path: &Path, text: &str) -> Result<(), Failure> {
    let written = File::create_new(path).and_then(|mut f| f.write_all(text.as_bytes()));
    written.map_err(|error| Failure::io(path.display(), &error))
}

pub(crate) fn init(request: &Request) -> Done {
    let dir = Path::new(request.word(0));
    let (name, version) = name_and_version(request, dir)?;
    let mut metadata = Metadata::new(name, version);
    metadata
        .licences
        .extend(request.value("--licence").map(Licence::new));
    metadata.lineage.base_model = request.value("--base-model").map(BaseModel::new);
    let metadata_file = dir.join(METADATA_FILE);
    if metadata_file.exists() {
        let message = format!("{}: is there already", metadata_file.display());
        return Err(Failure::new(Code::Refused, message));
    }
    for folder in [
        "model/weights",
        "model/tokenizer",
        "prompt",
        "config",
        "tests",
    ] {
        let folder = dir.join(folder);
        fs::create_dir_all(&folder).map_err(|e| Failure::io(folder.display(), &e))?;
    }
    for (path, text) in [
        ("prompt/system.txt", PROMPT),
        ("config/generation.json", GENERATION),
    ] {
        // A folder that is being turned into a bundle keeps its files.
        if !dir.join(path).exists() {
            create(&dir.join(path), text)?;
        }
    }
    // Last: a folder with metadata is a bundle.
    create(&metadata_file, &metadata.to_pretty())?;
    let text = format!(
        "{} {} in {}\n\nPut the checkpoint into model/weights and the tokenizer into model/tokenizer, look over \
         metadata.json, prompt/ and config/, then run `bundle build {}`.",
        metadata.name,
        metadata.version,
        dir.display(),
        dir.display()
    );
    Ok(Outcome::new(text)
        .with("name", metadata.name.as_str())
        .with("version", metadata.version.to_string()))
}

pub(crate) fn build_folder(request: &Request, terminal: Terminal) -> Done {
    let dir = Path::new(request.word(0));
    let options = BuildOptions::new()
        .threads(number(request, "--threads")?.unwrap_or(0))
        .symlinks(links(request))
        .chunk_digests(request.flag("--chunks"))
        .tensor_digests(!request.flag("--no-tensors"))
        .allow_pickles(request.flag("--allow-pickles"))
        .allow_secrets(request.flag("--allow-secrets"));
    let out = request
        .value("--out")
        .map_or_else(|| dir.join(MANIFEST_FILE), PathBuf::from);
    finish_build(dir, options, &out, terminal)
}

/// Builds, writes the manifest, and tells of both.
pub(crate) fn finish_build(
    dir: &Path,
    options: BuildOptions<'_>,
    out: &Path,
    terminal: Terminal,
) -> Done {
    let built = hash(dir, options, terminal)?;
    // Whole or not there: written beside, then renamed.
    let mut partial = out.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let io = |error| Failure::io(out.display(), &error);
    fs::write(&partial, built.manifest.to_bytes()).map_err(io)?;
    fs::rename(&partial, out).map_err(io)?;

    let mut text = summary(&built.manifest);
    let _ = writeln!(text, "manifest     {}", out.display());
    for warning in &built.warnings {
        let _ = writeln!(text, "warning      {warning}");
    }
    let warnings: Vec<String> = built.warnings.iter().map(ToString::to_string).collect();
    Ok(described(Outcome::new(text), &built.manifest)
        .with("manifest", out.display().to_string())
        .with("warnings", warnings))
}

pub(crate) fn verify_folder(request: &Request, terminal: Terminal) -> Done {
    let dir = Path::new(request.word(0));
    let mut manifest = None;
    let mut expected = None;
    if let Some(word) = request.value("--id") {
        if request.value("--registry").is_some() {
            let registry = open_registry(request)?;
            let id = resolve(&registry, word)?;
            // The log of the registry vouches for this one.
            manifest = Some(registry.manifest(&id)?);
            expected = Some(id.reference_with(64));
        } else {
            expected = Some(reference(word)?);
        }
    }
    let given = request.value("--manifest").map(PathBuf::from);
    let manifest = match (manifest, given) {
        (Some(manifest), None) => manifest,
        (_, given) => read_manifest(&given.unwrap_or_else(|| dir.join(MANIFEST_FILE)))?,
    };
    if let Some(expected) = expected.as_ref().filter(|e| !e.matches(manifest.id())) {
        let message = format!("the manifest is of {}, not of {expected}", manifest.id());
        return Err(Failure::new(Code::Check, message).with("id", json!(manifest.id())));
    }
    let options = VerifyOptions::new()
        .threads(number(request, "--threads")?.unwrap_or(0))
        .symlinks(links(request))
        .allow_extra(request.flag("--allow-extra"));
    let id = check(dir, &manifest, options, terminal)?;
    let mut text = format!(
        "{id}\n{} files, {}: every byte agrees with the manifest",
        manifest.components().len(),
        size(manifest.total_size())
    );
    if expected.is_none() {
        text.push_str(
            "\nThe manifest lay unsigned beside the files: with --id you say what they must be.",
        );
    }
    Ok(described(Outcome::new(text), &manifest).with("pinned", expected.is_some()))
}

/// The fields of a version that every command gives.
pub(crate) fn described(outcome: Outcome, manifest: &Manifest) -> Outcome {
    outcome
        .with("id", manifest.id().to_string())
        .with("reference", manifest.id().reference().to_string())
        .with("record", manifest.record_digest().to_string())
        .with("files", manifest.components().len())
        .with("bytes", manifest.total_size())
}

/// A version in a few lines.
fn summary(manifest: &Manifest) -> String {
    format!(
        "id           {}\nreference    {}\nrecord       {}\nfiles        {}, {}\n",
        manifest.id(),
        manifest.id().reference(),
        manifest.record_digest(),
        manifest.components().len(),
        size(manifest.total_size())
    )
}

pub(crate) fn show(request: &Request, terminal: Terminal) -> Done {
    let word = request.word(0);
    // A folder is described by its manifest; `verify` reads the files.
    let file = Path::new(word).join(MANIFEST_FILE);
    let target = if file.is_file() {
        Target::find(&file.to_string_lossy(), request, terminal)?
    } else {
        Target::find(word, request, terminal)?
    };
    let manifest = &target.manifest;
    let mut text = summary(manifest);
    let mut outcome = described(Outcome::default(), manifest);
    if let Some(registry) = target.registry() {
        let (info, id) = (registry.info(manifest.id())?, manifest.id());
        let aliases: Vec<String> = registry
            .aliases(id.name())?
            .into_iter()
            .filter(|(_, to)| to == id)
            .map(|(alias, _)| alias.to_string())
            .collect();
        if !aliases.is_empty() {
            let _ = writeln!(text, "aliases      {}", aliases.join(", "));
        }
        for (key, value) in &info.tags {
            let _ = writeln!(text, "tag          {key} = {value}");
        }
        for holder in &info.pins {
            let _ = writeln!(text, "held by      {holder}");
        }
        if let Some(note) = &info.revoked {
            let _ = writeln!(text, "REVOKED      by {}: {}", note.by, note.why);
        }
        for record in registry.records(id)? {
            let _ = writeln!(
                text,
                "{:<12} {} by {}",
                record.kind,
                record.body.short(12),
                record.note.by
            );
        }
        outcome = outcome
            .with("aliases", aliases)
            .with("tags", json!(info.tags))
            .with("pins", json!(info.pins))
            .with("revoked", json!(info.revoked));
    }
    // The same tensors in other files have the same root.
    let root = manifest.tensor_root(ComponentKind::Weights);
    if let Some(root) = root {
        let _ = writeln!(text, "tensor root  {root}");
    }
    outcome = outcome.with("tensor_root", json!(root));
    text.push('\n');
    for c in manifest.components() {
        let tensors = match c.tensors.len() {
            0 => String::new(),
            n => format!("  {n} tensors"),
        };
        let _ = writeln!(
            text,
            "{:<14} {:>10}  {}  {}{tensors}",
            c.kind,
            size(c.size),
            c.digest.short(12),
            c.path
        );
    }
    let sections = [
        ("contract", json!(manifest.contract())),
        ("dependencies", json!(manifest.dependencies())),
        ("licences", json!(manifest.licences())),
        ("lineage", json!(manifest.lineage())),
    ];
    for (title, section) in sections {
        let lines = outline(&section, 1);
        if !lines.is_empty() {
            let _ = write!(text, "\n{title}\n{lines}");
        }
        outcome = outcome.with(title, section);
    }
    outcome.text = text;
    Ok(outcome.with("components", json!(manifest.components())))
}

/// JSON as indented lines without punctuation.
pub(crate) fn outline(value: &Value, depth: usize) -> String {
    let indent = "  ".repeat(depth);
    let mut text = String::new();
    let mut line = |name: &str, value: &Value| match value {
        Value::Object(_) | Value::Array(_) => {
            let _ = write!(text, "{indent}{name}\n{}", outline(value, depth + 1));
        }
        Value::String(words) => {
            let rest = format!("\n{indent}    ");
            let _ = writeln!(
                text,
                "{indent}{name} {}",
                words.trim_end().replace('\n', &rest)
            );
        }
        other => {
            let _ = writeln!(text, "{indent}{name} {other}");
        }
    };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, v)| line(name, v)),
        Value::Array(items) => items.iter().for_each(|v| line("-", v)),
        _ => {}
    }
    text
}

pub(crate) fn compare(request: &Request, terminal: Terminal) -> Done {
    let old = Target::find(request.word(0), request, terminal)?;
    let new = Target::find(request.word(1), request, terminal)?;
    let diff = old.diff(&new);
    let moved = transition(&old.manifest, &new.manifest, &Surroundings::default());
    let bump = diff.check_bump();
    let mut text = format!(
        "{diff}\n\nthere: {}\nback:  {}\n",
        moved.forward, moved.back
    );
    let mut outcome = Outcome::default()
        .with("diff", json!(diff))
        .with("required", json!(diff.required()))
        .with("declared", json!(diff.declared()))
        .with("risk", json!(diff.risk()))
        .with("bump_suffices", bump.is_ok())
        .with("there", json!(moved.forward))
        .with("back", json!(moved.back));
    if let Err(small) = bump {
        let _ = writeln!(text, "\n{small}");
        if request.flag("--check") {
            let mut failure = Failure::new(Code::Check, text.trim_end());
            failure.details = outcome.fields;
            return Err(failure);
        }
    }
    outcome.text = text;
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_outlined() {
        let value = json!({"a": {"b": 1}, "c": ["x", {"d": "two\nlines\n"}]});
        assert_eq!(
            outline(&value, 0),
            "a\n  b 1\nc\n  - x\n  -\n    d two\n        lines\n"
        );
    }
}
