//! Inputs that targets accept, and the fuzzer begins with.

use llm_version_core::registry::{LogEntry, MemoryStore, Note, Publish, Registry};
use llm_version_core::{
    Component, ComponentKind, ComponentPath, Digest, Draft, Manifest, Metadata, Name, Tensor,
    Version,
};
use serde_json::json;
use std::io::Read;

type Error = Box<dyn std::error::Error>;
type Seeds = Vec<(String, Vec<u8>)>;

/// The seeds of a target, by name.
///
/// # Panics
/// Where they cannot be made, which is a mistake in this file.
pub fn seeds(target: &str) -> Seeds {
    let made = match target {
        "manifest" => manifests(),
        "reference" => Ok(references()),
        "safetensors" => Ok(safetensors()),
        "gguf" => Ok(ggufs()),
        "metadata" => metadata(),
        "content" => Ok(contents()),
        "oms" => Ok(statements()),
        "log" => log(),
        "oci" => oci(),
        "hf" => Ok(hf()),
        "tree" => trees(),
        other => Err(format!("there is no target {other}").into()),
    };
    made.unwrap_or_else(|error| panic!("{target}: {error}"))
}

fn named<T: AsRef<[u8]>>(seeds: impl IntoIterator<Item = (&'static str, T)>) -> Seeds {
    let owned = |(name, bytes): (&str, T)| (name.to_owned(), bytes.as_ref().to_vec());
    seeds.into_iter().map(owned).collect()
}

fn parts(parts: &[&[u8]]) -> Vec<u8> {
    parts.join(crate::parts::BETWEEN)
}

/// The manifests of the specification's vectors; the last states everything that can be stated.
fn vectors() -> Result<Vec<String>, Error> {
    let text = include_str!("../../llm-version-core/tests/vectors/canonical.json");
    let cases: Vec<serde_json::Value> = serde_json::from_str(text)?;
    let manifest = |case: &serde_json::Value| case["manifest"].as_str().map(ToOwned::to_owned);
    Ok(cases.iter().filter_map(manifest).collect())
}

fn full() -> Result<Manifest, Error> {
    let last = vectors()?.pop().ok_or("no vectors")?;
    Ok(Manifest::parse(last.as_bytes())?)
}

fn draft() -> Result<Draft, Error> {
    let mut draft = Draft::new(Name::new("chat")?, Version::new(1, 2, 3));
    let files: [(&str, ComponentKind, &[u8]); 3] = [
        ("config/generation.json", ComponentKind::Generation, b"{}"),
        (
            "model/weights/model.safetensors",
            ComponentKind::Weights,
            b"weights",
        ),
        ("prompt/system.txt", ComponentKind::Prompt, b"Be kind."),
    ];
    for (path, kind, bytes) in files {
        let path = ComponentPath::new(path)?;
        let mut component = Component::new(path, kind, bytes.len() as u64, Digest::of(bytes));
        if kind == ComponentKind::Weights {
            component.chunks.push(Digest::of(bytes));
            let tensor = Tensor::new("a.weight", "BF16", vec![2, 3], Digest::of(b"a"));
            component.tensors.push(tensor);
        }
        draft.components.push(component);
    }
    Ok(draft)
}

fn manifests() -> Result<Seeds, Error> {
    let mut seeds = named([("plain", draft()?.finish()?.to_bytes())]);
    for (n, manifest) in vectors()?.into_iter().enumerate() {
        seeds.push((format!("vector-{n}"), manifest.into_bytes()));
    }
    Ok(seeds)
}

fn references() -> Seeds {
    let digest = Digest::of(b"").to_string();
    named([
        ("name", "chat".to_owned()),
        ("version", "chat/v1.2.3".to_owned()),
        ("short", format!("chat/v1.2.3-{}", &digest[..12])),
        ("id", format!("chat/v1.2.3-{digest}")),
        ("digest", digest),
        (
            "path",
            "model/weights/a-0001-of-0002.safetensors".to_owned(),
        ),
    ])
}

fn safetensors() -> Seeds {
    let file = |header: &str, size: u64| [&size.to_le_bytes()[..], header.as_bytes()].concat();
    let two = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,2],"data_offsets":[4,12]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let empty = r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#;
    // Two bytes of text for each number in memory.
    let zeros = vec!["0"; 1_500].join(",");
    let wide = format!(r#"{{"a":{{"dtype":"U8","shape":[{zeros}],"data_offsets":[0,0]}}}}"#);
    let tensor = |n| format!(r#""{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let many = format!("{{{}}}", (0..60).map(tensor).collect::<Vec<_>>().join(","));
    named([
        ("wide", file(&wide, 8 + wide.len() as u64)),
        ("many", file(&many, 8 + many.len() as u64)),
        ("two", file(two, 20 + two.len() as u64)),
        ("empty", file(empty, 8 + empty.len() as u64)),
        ("none", file("{}", 10)),
    ])
}

/// A GGUF file with metadata of several types and tensors of two.
fn gguf(tensors: &[(&str, u32, u64)]) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend(3_u64.to_le_bytes());
    bytes.extend(
        [
            text("general.architecture"),
            vec![8, 0, 0, 0],
            text("llama"),
        ]
        .concat(),
    );
    bytes.extend([text("general.alignment"), vec![4, 0, 0, 0, 32, 0, 0, 0]].concat());
    bytes.extend([text("tokenizer.ggml.tokens"), vec![9, 0, 0, 0, 8, 0, 0, 0]].concat());
    bytes.extend(2_u64.to_le_bytes());
    bytes.extend([text("a"), text("bc")].concat());
    let mut offset = 0_u64;
    for (name, kind, elements) in tensors {
        bytes.extend([text(name), 1_u32.to_le_bytes().to_vec()].concat());
        bytes.extend(elements.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        offset += 64;
    }
    bytes.resize(bytes.len().next_multiple_of(32) + 64 * tensors.len(), 7);
    bytes
}

fn ggufs() -> Seeds {
    let names: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), 0, 1)).collect();
    named([
        ("many", gguf(&many)),
        (
            "two",
            gguf(&[("token_embd.weight", 0, 16), ("output.weight", 2, 32)]),
        ),
        ("none", gguf(&[])),
    ])
}

fn metadata() -> Result<Seeds, Error> {
    let plain = Metadata::new(Name::new("chat")?, Version::new(1, 0, 0));
    let mut many = plain.clone();
    many.contract.stop_tokens = (0..900).map(|n| format!("{n}")).collect();
    Ok(named([
        ("many", serde_json::to_string(&many)?),
        ("full", Metadata::of(&full()?).to_pretty()),
        ("plain", plain.to_pretty()),
    ]))
}

fn contents() -> Seeds {
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n",
        Digest::of(b"")
    );
    named([
        ("pointer", pointer.as_bytes()),
        ("pickle", b"\x80\x04\x95\x05\0\0\0\0\0\0\0]\x94."),
        ("old-pickle", b"cposix\nsystem\np0\n(Vtrue\np1\ntp2\nRp3\n."),
        ("onnx", b"\x08\x07\x12\x07pytorch"),
        ("page", b"<!doctype html><html>"),
        ("archive", b"MAR-INF/MANIFEST.json\nmodel/data.pkl"),
        (
            "url",
            b"see postgres://u:pw@db/x, not postgres://u:${P}@db/x",
        ),
        (
            "config",
            br#"{"model_type":"llama","architectures":["LlamaForCausalLM"]}"#,
        ),
    ])
}

fn statements() -> Seeds {
    let resource = |name: &str| json!({"name": name, "algorithm": "sha256", "digest": Digest::of(name.as_bytes())});
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "chat", "digest": {"sha256": "$root$"}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {
                "method": "files", "hash_type": "sha256", "allow_symlinks": false, "ignore_paths": [".git"]
            },
            "resources": [resource("a/b"), resource("a-b")],
        },
    });
    let bundle = json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": ""}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": "e30=",
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": "MEUCIQ==", "keyid": ""}],
        },
    });
    named([
        ("statement", format!("s{statement}")),
        ("bundle", bundle.to_string()),
        ("key", "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n".to_owned()),
    ])
}

/// What is sealed of an entry.
fn unsealed(entry: &LogEntry) -> Result<String, Error> {
    let event = serde_json::to_string(&entry.event)?;
    let note = serde_json::to_string(&entry.note)?;
    Ok(format!(r#""event":{event},"note":{note}"#))
}

fn log() -> Result<Seeds, Error> {
    let registry = Registry::open(MemoryStore::new())?;
    let note = Note::new(1, "ana").because("a test");
    let source = |component: &Component| -> std::io::Result<Box<dyn Read>> {
        Ok(if component.kind == ComponentKind::Prompt {
            Box::new(&b"Be kind."[..])
        } else {
            Box::new(&b"{}"[..])
        })
    };
    let mut draft = draft()?;
    draft
        .components
        .retain(|c| c.kind != ComponentKind::Weights);
    let manifest: Manifest = draft.finish()?;
    let id = registry.publish(&manifest, &source, &Publish::new(), &note)?;
    let (name, alias) = (Name::new("chat")?, Name::new("production")?);
    registry.move_alias(&name, &alias, None, Some(&id), &note)?;
    registry.pin(&id, "rollout", &note)?;
    registry.unpin(&id, "rollout", &note)?;
    registry.record(&id, "evaluation", b"good", &note)?;
    registry.set_floor(&name, Version::new(1, 0, 0), &note)?;
    registry.revoke(&id, &note)?;
    let entries = registry.verify_log(None)?;
    let lines = entries
        .iter()
        .map(unsealed)
        .collect::<Result<Vec<_>, _>>()?;
    Ok(named([
        ("all", lines.join("\n")),
        ("two", lines[..2].join("\n")),
    ]))
}

fn layer(n: usize, path: &str) -> serde_json::Value {
    json!({
        "mediaType": "application/vnd.cncf.model.weight.config.v1.raw",
        "digest": format!("sha256:${n}$"),
        "size": format!("#{n}#"),
        "annotations": {"org.cncf.model.filepath": path},
    })
}

/// A layout whose sizes are numbers, although they are known only later.
fn layout(layers: &[serde_json::Value], blobs: &[&[u8]]) -> Vec<u8> {
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": "sha256:$1$", "size": "#1#",
            "annotations": {"org.opencontainers.image.ref.name": "v1"},
        }],
    });
    let image = json!({
        "schemaVersion": 2,
        "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.cncf.model.config.v1+json", "digest": "sha256:$2$", "size": "#2#",
        },
        "layers": layers,
    });
    let numbers = |value: serde_json::Value| {
        value
            .to_string()
            .replace("\"#", "#")
            .replace("#\"", "#")
            .into_bytes()
    };
    let (index, image) = (numbers(index), numbers(image));
    parts(&[&[&index[..], &image, b"{}"], blobs].concat())
}

fn oci() -> Result<Seeds, Error> {
    let mut draft = draft()?;
    draft.components.retain(|c| c.kind == ComponentKind::Prompt);
    let manifest = draft.finish()?;
    let metadata = Metadata::of(&manifest).to_pretty();
    let ours = layout(
        &[
            layer(3, "prompt/system.txt"),
            layer(4, "metadata.json"),
            layer(5, "manifest.json"),
        ],
        &[b"Be kind.", metadata.as_bytes(), &manifest.to_bytes()],
    );
    let theirs = layout(
        &[layer(3, "model.safetensors"), layer(4, "a/config.json")],
        &[b"weights", b"{}"],
    );
    let climbing = layout(&[layer(3, "../x")], &[b"x"]);
    Ok(named([
        ("ours", ours),
        ("theirs", theirs),
        ("climbing", climbing),
    ]))
}

fn hf() -> Seeds {
    let listing = |files: &[(&str, usize)]| {
        let files: serde_json::Map<String, serde_json::Value> = files
            .iter()
            .map(|(path, n)| {
                let entry = json!({
                    "size": format!("#{n}#"), "blob_id": format!("${n}$"), "lfs_sha256": format!("${n}$"),
                });
                ((*path).to_owned(), entry)
            })
            .collect();
        let text = json!({"format_version": 1, "files": files}).to_string();
        text.replace("\"#", "#").replace("#\"", "#").into_bytes()
    };
    let two = listing(&[("config.json", 1), ("onnx/model.onnx", 2)]);
    let one = listing(&[("model.safetensors", 1)]);
    named([
        (
            "two",
            parts(&[
                &two,
                b"config.json\n{}",
                b"onnx/model.onnx\n\x08\x07\x12\x01x",
            ]),
        ),
        (
            "adapter",
            parts(&[&one, b"model.safetensors\nx", b"adapter_config.json\n{}"]),
        ),
        ("unlisted", parts(&[b"", b"tokenizer.json\n{}"])),
    ])
}

/// A zip archive of one stored, empty entry.
fn zip(name: &str) -> Vec<u8> {
    let short = |n: usize| (n as u16).to_le_bytes();
    let local = [
        b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0",
        &[0; 12][..],
        &short(name.len()),
        &[0; 2],
        name.as_bytes(),
    ]
    .concat();
    let entry = [
        b"PK\x01\x02\x14\0\x14\0\0\0\0\0\0\0\0\0",
        &[0; 12][..],
        &short(name.len()),
        &[0; 16],
        name.as_bytes(),
    ]
    .concat();
    let place = |n: usize| (n as u32).to_le_bytes();
    let end = [
        b"PK\x05\x06\0\0\0\0\x01\0\x01\0",
        &place(entry.len())[..],
        &place(local.len()),
        &[0; 2],
    ]
    .concat();
    [local, entry, end].concat()
}

fn trees() -> Result<Seeds, Error> {
    let file = |path: &str, bytes: &[u8]| [path.as_bytes(), b"\n", bytes].concat();
    let header = br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    let tensors = [&(header.len() as u64).to_le_bytes()[..], header, b"x"].concat();
    let index = br#"{"metadata":{"total_size":1},"weight_map":{"a":"m-1.safetensors"}}"#;
    let shards = parts(&[
        &file("model/weights/model.safetensors.index.json", index),
        &file("model/weights/m-1.safetensors", &tensors),
        &file("prompt/system.txt", b"Be kind."),
        &file("config/dependencies.json", br#"{"vllm":"0.11.0"}"#),
    ]);
    let archives = parts(&[
        &file("model/weights/a.pt", &zip("a/data.pkl")),
        &file("model/weights/b.mar", &zip("MAR-INF/MANIFEST.json")),
        &file("model/weights/c.bin", b"\x80\x02}q\0."),
    ]);
    let models = parts(&[
        &file("model/weights/m.gguf", &gguf(&[("a", 0, 16)])),
        // A model whose only tensor lies in another file.
        &file(
            "model/weights/m.onnx",
            b"\x08\x09\x12\x04test\x3a\x24\x2a\x22\x10\x01\x6a\x0f\x0a\x08location\x12\x03m.d\x6a\x0b\x0a\x06length\x12\x011\x70\x01",
        ),
        &file("model/weights/m.d", b"x"),
    ]);
    let metadata = parts(&[
        &file(
            "metadata.json",
            Metadata::of(&full()?).to_pretty().as_bytes(),
        ),
        &file("prompt/system.txt", b"sk"),
    ]);
    Ok(named([
        ("shards", shards),
        ("archives", archives),
        ("models", models),
        ("metadata", metadata),
    ]))
}
