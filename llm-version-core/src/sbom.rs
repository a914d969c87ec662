//! `CycloneDX` bills of materials for machine learning (feature `sbom`).
//!
//! [`cyclonedx`] writes what a manifest says as a `CycloneDX` 1.6 document: the model with its model card, licences,
//! pedigree and data sets, every file with its SHA-256, and what it runs on. The same manifest gives the same bytes: the
//! serial number comes from the record digest, and there is no time in it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::digest::Digest;
use crate::json;
use crate::lineage::Dataset;
use crate::manifest::{Component, Manifest};

/// The largest `model/config.json` that is looked at.
const CONFIG_LIMIT: u64 = 4 << 20;

/// What a model card says and a manifest does not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelDetails {
    /// What the model is for, such as `text-generation`.
    pub task: Option<String>,
    /// The family of architectures, such as `llama`.
    pub family: Option<String>,
    /// The architecture, such as `LlamaForCausalLM`.
    pub architecture: Option<String>,
}

impl ModelDetails {
    /// Nothing known.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a `model/config.json` in the form of Hugging Face Transformers says; nothing where it is of another form.
    pub fn of_config(bytes: &[u8]) -> Self {
        let config: Value = json::from_slice(bytes, CONFIG_LIMIT).unwrap_or_default();
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(ToOwned::to_owned);
        Self {
            task: None,
            family: text(config.get("model_type")),
            architecture: text(config.pointer("/architectures/0")),
        }
    }
}

/// The bill of materials of a version, as indented JSON.
///
/// ```
/// # use llm_version_core::{Component, ComponentKind, Digest, Draft, Name, Version};
/// use llm_version_core::sbom::{ModelDetails, cyclonedx};
///
/// # let prompt = b"You are helpful.";
/// # let mut draft = Draft::new(Name::new("chat")?, Version::new(1, 0, 0));
/// # draft.components.push(Component::new(
/// #     "prompt/system.txt".parse()?, ComponentKind::Prompt, prompt.len() as u64, Digest::of(prompt),
/// # ));
/// # let manifest = draft.finish()?;
/// let bom = cyclonedx(&manifest, &ModelDetails::new());
/// assert!(bom.contains("machine-learning-model") && bom.contains("prompt/system.txt"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn cyclonedx(manifest: &Manifest, details: &ModelDetails) -> String {
    let id = manifest.id().to_string();
    let dependencies = manifest.dependencies().iter().map(|(name, version)| {
        json!({"type": "library", "bom-ref": library(name), "name": name, "version": version})
    });
    let datasets = manifest.lineage().datasets.iter().enumerate();
    let parts: Vec<Value> = dependencies
        .chain(datasets.map(|(n, data)| dataset(n, data)))
        .collect();
    let mut needs = vec![json!({
        "ref": id,
        "dependsOn": manifest.dependencies().keys().map(|n| library(n)).collect::<Vec<_>>(),
    })];
    needs.extend(
        manifest
            .dependencies()
            .keys()
            .map(|n| json!({"ref": library(n)})),
    );
    let bom = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": serial(&manifest.record_digest()),
        "version": 1,
        "metadata": {"component": model(manifest, details)},
        "components": parts,
        "dependencies": needs,
    });
    let mut text = format!("{bom:#}");
    text.push('\n');
    text
}

/// How other parts of the document name a dependency.
fn library(name: &str) -> String {
    format!("dependency:{name}")
}

/// How other parts of the document name the data set number `at`.
fn data(at: usize) -> String {
    format!("dataset:{at}")
}

fn model(manifest: &Manifest, details: &ModelDetails) -> Value {
    let files = manifest.components().iter().map(|c| file(manifest, c));
    let mut model = Map::new();
    let mut put = |key: &str, value: Value| {
        let empty = match &value {
            Value::Null => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        if !empty {
            model.insert(key.to_owned(), value);
        }
    };
    put("type", json!("machine-learning-model"));
    put("bom-ref", json!(manifest.id()));
    put("name", json!(manifest.name()));
    put("version", json!(manifest.version()));
    put("licenses", licences(manifest, str::is_empty));
    put("pedigree", pedigree(manifest));
    put(
        "externalReferences",
        json!([{
            "type": "other",
            "url": "manifest.json",
            "comment": "the canonical manifest of the version",
            "hashes": [sha256(&Digest::of(&manifest.to_bytes()))],
        }]),
    );
    put("components", files.collect());
    put("properties", properties(manifest));
    put("modelCard", card(manifest, details));
    Value::Object(model)
}

fn file(manifest: &Manifest, component: &Component) -> Value {
    let (path, kind) = (component.path.as_str(), component.kind.as_str());
    let mut file = json!({
        "type": "file",
        "bom-ref": format!("file:{path}"),
        "name": path,
        "hashes": [sha256(&component.digest)],
        "properties": [
            property("kind", kind),
            property("size", &component.size.to_string()),
        ],
    });
    let own = licences(manifest, |scope| scope == path || scope == kind);
    if let (Some(fields), false) = (file.as_object_mut(), own.is_null()) {
        fields.insert("licenses".to_owned(), own);
    }
    file
}

/// One expression for all licences whose scope `applies`; nothing where there are none.
fn licences(manifest: &Manifest, applies: impl Fn(&str) -> bool) -> Value {
    let found = manifest.licences().iter().filter(|l| applies(&l.scope));
    let ids: BTreeSet<&str> = found.map(|l| l.id.as_str()).collect();
    let joined: Vec<String> = if ids.len() > 1 {
        ids.iter()
            .map(|id| {
                if id.contains(' ') {
                    format!("({id})")
                } else {
                    (*id).to_owned()
                }
            })
            .collect()
    } else {
        ids.iter().map(|id| (*id).to_owned()).collect()
    };
    if joined.is_empty() {
        return Value::Null;
    }
    json!([{"expression": joined.join(" AND ")}])
}

/// What the version was made from, and by which code.
fn pedigree(manifest: &Manifest) -> Value {
    let lineage = manifest.lineage();
    let mut ancestors = Vec::new();
    if let Some(base) = &lineage.base_model {
        let mut ancestor = json!({"type": "machine-learning-model", "name": base.name});
        if let Some(revision) = &base.revision {
            ancestor["version"] = json!(revision);
        }
        if let Some(digest) = &base.digest {
            // Of its weights or its bundle: not the hash of one file.
            ancestor["properties"] = json!([property("digest", &digest.to_string())]);
        }
        ancestors.push(ancestor);
    }
    ancestors.extend(lineage.parents.iter().map(|parent| {
        json!({
            "type": "machine-learning-model",
            "name": parent.name(),
            "version": parent.version(),
            "properties": [property("id", &parent.to_string())],
        })
    }));
    let mut pedigree = Map::new();
    if !ancestors.is_empty() {
        pedigree.insert("ancestors".to_owned(), json!(ancestors));
    }
    if let Some(code) = &lineage.code {
        let mut commit = json!({"uid": code.commit});
        if code.dirty {
            commit["message"] = json!("with uncommitted changes");
        }
        pedigree.insert("commits".to_owned(), json!([commit]));
    }
    Value::Object(pedigree)
}

fn card(manifest: &Manifest, details: &ModelDetails) -> Value {
    let mut parameters = Map::new();
    let texts = [
        ("task", &details.task),
        ("architectureFamily", &details.family),
        ("modelArchitecture", &details.architecture),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            parameters.insert(key.to_owned(), json!(text));
        }
    }
    let datasets = 0..manifest.lineage().datasets.len();
    let datasets: Vec<Value> = datasets.map(|n| json!({"ref": data(n)})).collect();
    if !datasets.is_empty() {
        parameters.insert("datasets".to_owned(), json!(datasets));
    }
    json!({"modelParameters": parameters})
}

fn dataset(at: usize, dataset: &Dataset) -> Value {
    let mut component = json!({
        "type": "data",
        "bom-ref": data(at),
        "name": dataset.name,
        "version": dataset.version,
    });
    let mut contents = json!({"type": "dataset", "name": dataset.name});
    if let Some(source) = &dataset.source {
        contents["contents"] = json!({"properties": [property("source", source)]});
    }
    component["data"] = json!([contents]);
    if let Some(digest) = &dataset.digest {
        match hash(digest) {
            Some(hash) => component["hashes"] = json!([hash]),
            None => component["properties"] = json!([property("digest", digest)]),
        }
    }
    component
}

/// A digest of a data set in the form of the document, where it has one.
fn hash(digest: &str) -> Option<Value> {
    let (algorithm, hex, digits) = match digest.split_once(':') {
        None => ("SHA-256", digest, 64),
        Some(("sha256", hex)) => ("SHA-256", hex, 64),
        Some(("sha1", hex)) => ("SHA-1", hex, 40),
        Some(("md5", hex)) => ("MD5", hex, 32),
        Some(_) => return None,
    };
    let fits = hex.len() == digits && crate::digest::first_non_hex(hex).is_none();
    fits.then(|| json!({"alg": algorithm, "content": hex}))
}

fn sha256(digest: &Digest) -> Value {
    json!({"alg": "SHA-256", "content": digest})
}

fn property(name: &str, value: &str) -> Value {
    json!({"name": format!("llm-version:{name}"), "value": value})
}

/// What has no place of its own in the document.
fn properties(manifest: &Manifest) -> Value {
    let lineage = manifest.lineage();
    let mut list = vec![
        property("digest", &manifest.digest().to_string()),
        property("record", &manifest.record_digest().to_string()),
    ];
    if let Some(length) = manifest.contract().context_length {
        list.push(property("context_length", &length.to_string()));
    }
    let modalities = manifest.contract().modalities.iter();
    list.extend(modalities.map(|m| property("modality", m)));
    if let Some(config) = &lineage.config {
        list.push(property("config", &config.digest.to_string()));
    }
    let named = [
        ("seed", &lineage.seeds),
        ("hyper_parameter", &lineage.hyper_parameters),
    ];
    for (group, values) in named {
        let pairs = values.iter();
        list.extend(pairs.map(|(name, value)| property(&format!("{group}:{name}"), value)));
    }
    // Licences of words that are no file and no kind of file.
    let placed = |scope: &str| {
        let mut files = manifest.components().iter();
        scope.is_empty() || files.any(|c| scope == c.path.as_str() || scope == c.kind.as_str())
    };
    let others = manifest.licences().iter().filter(|l| !placed(&l.scope));
    list.extend(others.map(|l| property(&format!("licence:{}", l.scope), &l.id)));
    Value::Array(list)
}

/// A UUID of version 8 made from a digest.
fn serial(digest: &Digest) -> String {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(digest.as_bytes()) {
        *to = *from;
    }
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let mut text = "urn:uuid:".to_owned();
    for (n, byte) in bytes.iter().enumerate() {
        if matches!(n, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::VersionId;
    use crate::kind::ComponentKind;
    use crate::lineage::{BaseModel, CodeRevision, Licence};
    use crate::manifest::Draft;
    use crate::name::Name;
    use crate::version::Version;

    fn draft() -> Draft {
        let mut draft = Draft::new(Name::new("chat").unwrap(), Version::new(1, 0, 0));
        for (path, kind) in [
            ("model/weights/model.safetensors", ComponentKind::Weights),
            ("prompt/system.txt", ComponentKind::Prompt),
        ] {
            let digest = Digest::of(path.as_bytes());
            draft
                .components
                .push(Component::new(path.parse().unwrap(), kind, 3, digest));
        }
        draft
    }

    fn bom(draft: Draft, details: &ModelDetails) -> Value {
        let manifest = draft.finish().unwrap();
        let text = cyclonedx(&manifest, details);
        assert_eq!(text, cyclonedx(&manifest, details));
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_bare_version_has_its_files() {
        let bom = bom(draft(), &ModelDetails::new());
        let model = &bom["metadata"]["component"];
        assert_eq!(model["type"], "machine-learning-model");
        assert_eq!(model["version"], "1.0.0");
        assert!(model["licenses"].is_null() && model["pedigree"].is_null());
        let files = model["components"].as_array().unwrap();
        assert_eq!(files.len(), 2);
        let digest = Digest::of(b"prompt/system.txt");
        assert_eq!(
            files[1]["hashes"],
            json!([{"alg": "SHA-256", "content": digest}])
        );
        let serial = bom["serialNumber"].as_str().unwrap();
        assert!(
            serial.len() == 45 && serial.as_bytes()[23] == b'8',
            "{serial}"
        );
    }

    #[test]
    fn lineage_licences_and_dependencies_have_their_places() {
        let mut draft = draft();
        let scoped = |id: &str, scope: &str| {
            let mut licence = Licence::new(id);
            scope.clone_into(&mut licence.scope);
            licence
        };
        draft.licences = BTreeSet::from([
            scoped("MIT OR Apache-2.0", ""),
            scoped("CC-BY-4.0", ""),
            scoped("Apache-2.0", "weights"),
            scoped("LicenseRef-x", "voices"),
        ]);
        draft.dependencies.insert("vllm".into(), "0.9.1".into());
        let lineage = &mut draft.lineage;
        let mut base = BaseModel::new("org/base");
        base.revision = Some("abc".into());
        base.digest = Some(Digest::of(b"b"));
        lineage.base_model = Some(base);
        let parent = VersionId::new(
            Name::new("chat").unwrap(),
            Version::new(0, 9, 0),
            Digest::of(b"p"),
        );
        lineage.parents.push(parent);
        lineage.code = Some(CodeRevision::new("0123", true));
        lineage.seeds.insert("torch".into(), "7".into());
        for digest in ["md5:d41d8cd98f00b204e9800998ecf8427e", "crc:1"] {
            let mut data = Dataset::new("letters", "2");
            data.digest = Some(digest.into());
            data.source = Some("s3://bucket/letters".into());
            lineage.datasets.push(data);
        }
        let config = br#"{"model_type":"llama","architectures":["LlamaForCausalLM"]}"#;
        let bom = bom(draft, &ModelDetails::of_config(config));
        let model = &bom["metadata"]["component"];
        assert_eq!(
            model["licenses"],
            json!([{"expression": "CC-BY-4.0 AND (MIT OR Apache-2.0)"}])
        );
        assert_eq!(
            model["components"][0]["licenses"],
            json!([{"expression": "Apache-2.0"}])
        );
        assert!(model["components"][1]["licenses"].is_null());
        let properties = model["properties"].as_array().unwrap();
        for wanted in [
            property("licence:voices", "LicenseRef-x"),
            property("seed:torch", "7"),
        ] {
            assert!(properties.contains(&wanted), "{wanted}");
        }
        let pedigree = &model["pedigree"];
        assert_eq!(pedigree["ancestors"][0]["name"], "org/base");
        assert_eq!(pedigree["ancestors"][1]["version"], "0.9.0");
        assert_eq!(pedigree["commits"][0]["uid"], "0123");
        let card = &model["modelCard"]["modelParameters"];
        assert_eq!(card["modelArchitecture"], "LlamaForCausalLM");
        assert_eq!(
            card["datasets"],
            json!([{"ref": "dataset:0"}, {"ref": "dataset:1"}])
        );
        assert_eq!(bom["components"][0]["name"], "vllm");
        assert_eq!(bom["components"][1]["hashes"][0]["alg"], "MD5");
        assert_eq!(bom["components"][2]["properties"][0]["value"], "crc:1");
        assert_eq!(
            bom["dependencies"][0]["dependsOn"],
            json!(["dependency:vllm"])
        );
    }

    #[test]
    fn configurations_of_other_forms_say_nothing() {
        for bytes in [&b""[..], b"[]", b"{}", b"{\"model_type\":1}", b"\xff"] {
            assert_eq!(ModelDetails::of_config(bytes), ModelDetails::new());
        }
    }
}
