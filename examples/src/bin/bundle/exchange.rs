//! Commands that exchange: signatures, Hugging Face snapshots, OCI image layouts, bills of materials.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use examples::terminal::Terminal;
use llm_version_core::fs::{
    BuildOptions, HfSnapshot, MANIFEST_FILE, WandbFolder, export_oci, import_oci, sign_tree,
    verify_tree_signature,
};
use llm_version_core::oms::{OmsError, SigningKey, VerifyingKey};
use llm_version_core::sbom::{ModelDetails, cyclonedx};
use llm_version_core::{Contents as _, Licence, MAX_COMPARED_BYTES, Metadata};
use serde_json::json;

use crate::args::Request;
use crate::failure::Failure;
use crate::folder::{described, finish_build};
use crate::target::{Target, manifest_of, name_and_version};
use crate::{Done, Outcome};

/// The largest key file that is read.
const KEY_LIMIT: u64 = 64 << 10;

fn read_key(path: &str) -> Result<String, Failure> {
    let io = |error| Failure::io(path, &error);
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(io)?;
    file.take(KEY_LIMIT).read_to_string(&mut text).map_err(io)?;
    Ok(text)
}

fn key<K>(path: &str, read: impl Fn(&str) -> Result<K, OmsError>) -> Result<K, Failure> {
    read(&read_key(path)?).map_err(|error| Failure::usage(format!("{path}: {error}")))
}

fn given_key(request: &Request) -> Result<&str, Failure> {
    request
        .value("--key")
        .ok_or_else(|| Failure::usage("give --key FILE"))
}

/// Beside the folder, so that the folder stays what its manifest says.
fn signature(request: &Request) -> Result<PathBuf, Failure> {
    if let Some(path) = request.value("--signature") {
        return Ok(path.into());
    }
    let dir = Path::new(request.word(0));
    // `.` and `..` have no name to put a suffix to.
    let name = dir
        .file_name()
        .ok_or_else(|| Failure::usage("give --signature FILE"))?;
    let mut name = name.to_owned();
    name.push(".sig");
    Ok(dir.with_file_name(name))
}

pub(crate) fn sign(request: &Request) -> Done {
    let dir = Path::new(request.word(0));
    let key = key(given_key(request)?, SigningKey::from_pem)?;
    let signature = signature(request)?;
    sign_tree(dir, &signature, &key)?;
    let hint = key.verifying_key().hint().map_err(Failure::usage)?;
    let text = format!("signed       {}\nkey          {hint}", signature.display());
    Ok(Outcome::new(text)
        .with("signature", signature.display().to_string())
        .with("key", hint))
}

pub(crate) fn verify_signature(request: &Request) -> Done {
    let dir = Path::new(request.word(0));
    let key = key(given_key(request)?, VerifyingKey::from_pem)?;
    let signature = signature(request)?;
    let tree = verify_tree_signature(dir, &signature, &key)?;
    let text = format!(
        "the signature holds: {} files, all as signed, and no other",
        tree.files.len()
    );
    Ok(Outcome::new(text)
        .with("signature", signature.display().to_string())
        .with("files", json!(tree.files)))
}

pub(crate) fn public_key(request: &Request) -> Done {
    let key = key(request.word(0), SigningKey::from_pem)?.verifying_key();
    let pem = key.to_pem().map_err(Failure::usage)?;
    let hint = key.hint().map_err(Failure::usage)?;
    Ok(Outcome::new(pem.trim_end())
        .with("pem", pem)
        .with("key", hint))
}

fn given_metadata(request: &Request, dir: &Path) -> Result<Metadata, Failure> {
    let (name, version) = name_and_version(request, dir)?;
    let mut metadata = Metadata::new(name, version);
    metadata
        .licences
        .extend(request.value("--licence").map(Licence::new));
    Ok(metadata)
}

/// Of a folder that has been imported.
fn build_imported(request: &Request, dir: &Path, terminal: Terminal) -> Done {
    let options = BuildOptions::new()
        .allow_pickles(request.flag("--allow-pickles"))
        .allow_secrets(request.flag("--allow-secrets"));
    finish_build(dir, options, &dir.join(MANIFEST_FILE), terminal)
}

pub(crate) fn import_wandb(request: &Request, terminal: Terminal) -> Done {
    let (from, dir) = (Path::new(request.word(0)), Path::new(request.word(1)));
    let metadata = given_metadata(request, dir)?;
    let manifest = request.value("--manifest").map(Path::new);
    let links = request.value("--links").map(Path::new);
    let found = match (request.flag("--cache"), request.flag("--run"), manifest) {
        (true, false, Some(manifest)) if links.is_none() => WandbFolder::cached(from, manifest)?,
        (false, true, None) => WandbFolder::run(from, links)?,
        (false, false, manifest) if links.is_none() => WandbFolder::open(from, manifest)?,
        _ => {
            return Err(Failure::usage(
                "a cache needs --manifest FILE; a run has none; only a run can have --links",
            ));
        }
    };
    let unknown = found.files.values().filter(|f| f.expected.is_none());
    let unknown = unknown.count();
    terminal.say(&format!(
        "{} {}: {} files, {}",
        found.name.as_deref().unwrap_or("a folder"),
        found.version.as_deref().unwrap_or("of an unknown version"),
        found.files.len(),
        match (found.listed, unknown) {
            (true, 0) => "complete and each checked by the artifact's manifest".to_owned(),
            (true, n) =>
                format!("complete by the artifact's manifest, {n} of them without a digest"),
            (false, _) => "with nothing to check them against".to_owned(),
        }
    ));
    found.import(dir, metadata)?;
    let outcome = build_imported(request, dir, terminal)?;
    Ok(outcome
        .with("artifact", json!(found.name))
        .with("artifact_version", json!(found.version))
        .with("artifact_digest", json!(found.digest))
        .with("listed", found.listed)
        .with("unchecked", unknown))
}

pub(crate) fn import_hf(request: &Request, terminal: Terminal) -> Done {
    let dir = Path::new(request.word(1));
    let metadata = given_metadata(request, dir)?;
    let from = Path::new(request.word(0));
    let snapshot = if request.flag("--part") {
        HfSnapshot::open_part(from)?
    } else {
        HfSnapshot::open(from)?
    };
    let unknown = snapshot.files.values().filter(|f| f.expected.is_none());
    let unknown = unknown.count();
    terminal.say(&format!(
        "{} at {}: {} files, {}",
        snapshot
            .repository
            .as_deref()
            .unwrap_or("a download folder"),
        snapshot.commit.as_deref().unwrap_or("an unknown commit"),
        snapshot.files.len(),
        match (snapshot.listed, unknown) {
            (true, _) if !snapshot.left_out.is_empty() => format!(
                "{} more of the repository were left out",
                snapshot.left_out.len()
            ),
            (true, _) => "complete by the repository's own listing".to_owned(),
            (false, 0) => "each with a digest; no listing says that none is missing".to_owned(),
            (false, n) => format!("{n} of them without a digest to check against"),
        }
    ));
    snapshot.import(dir, metadata)?;
    let outcome = build_imported(request, dir, terminal)?;
    Ok(outcome
        .with("repository", json!(snapshot.repository))
        .with("commit", json!(snapshot.commit))
        .with("listed", snapshot.listed)
        .with("left_out", json!(snapshot.left_out))
        .with("unchecked", unknown))
}

pub(crate) fn to_oci(request: &Request, terminal: Terminal) -> Done {
    let (dir, layout) = (Path::new(request.word(0)), Path::new(request.word(1)));
    let manifest = manifest_of(dir, terminal)?;
    let tag = request.value("--tag").map(ToOwned::to_owned);
    let tag = tag.unwrap_or_else(|| manifest.id().to_oci_tag());
    let digest = export_oci(dir, &manifest, layout, &tag)?;
    let text = format!(
        "{}\nartifact     sha256:{digest}\nlayout       {}:{tag}",
        manifest.id(),
        layout.display()
    );
    Ok(described(Outcome::new(text), &manifest)
        .with("artifact", format!("sha256:{digest}"))
        .with("tag", tag))
}

pub(crate) fn from_oci(request: &Request) -> Done {
    let (layout, dir) = (Path::new(request.word(0)), Path::new(request.word(1)));
    let id = import_oci(layout, request.value("--tag"), dir)?;
    let text = match &id {
        Some(id) => format!("{id}\nin {}, verified against its manifest", dir.display()),
        None => format!(
            "in {}: no manifest of ours came along; arrange the files, then run `bundle build`",
            dir.display()
        ),
    };
    Ok(Outcome::new(text).with("id", json!(id)))
}

pub(crate) fn bill(request: &Request) -> Done {
    // Silent: without --out the document is all there is on standard output.
    let target = Target::find(request.word(0), request, Terminal::new(true))?;
    let components = target.manifest.components();
    let config = components
        .iter()
        .find(|c| c.path.as_str() == "model/config.json" && c.size <= MAX_COMPARED_BYTES);
    let config = config.and_then(|c| target.read(c)).unwrap_or_default();
    let mut details = ModelDetails::of_config(&config);
    details.task = Some(request.value("--task").unwrap_or("text-generation").into());
    let bom = cyclonedx(&target.manifest, &details);
    let outcome = match request.value("--out") {
        Some(path) => {
            std::fs::write(path, &bom).map_err(|error| Failure::io(path, &error))?;
            Outcome::new(format!("{}\nbill         {path}", target.manifest.id())).with("out", path)
        }
        // It was made as JSON just now.
        None => Outcome::new(bom.trim_end()).with(
            "bom",
            serde_json::from_str::<serde_json::Value>(&bom).unwrap_or_default(),
        ),
    };
    Ok(described(outcome, &target.manifest))
}
