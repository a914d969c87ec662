//! Targets that need no files.

use crate::parts::{find, replace};
use base64ct::{Base64, Encoding as _};
use llm_version_core::oms::{SignedTree, VerifyingKey};
use llm_version_core::registry::{MemoryStore, Registry, Store as _};
use llm_version_core::sbom::{ModelDetails, cyclonedx};
use llm_version_core::{
    BundleRef, ComponentPath, Digest, FileFormat, GgufHeader, LfsPointer, Manifest, ManifestError,
    Metadata, Name, SafetensorsError, SafetensorsHeader, Surroundings, Version, VersionId, diff,
    find_secrets, transition,
};
use p256::ecdsa::signature::Signer as _;
use p256::pkcs8::EncodePublicKey as _;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::LazyLock;

/// A manifest; where only its digest is wrong, also with the right one.
pub(crate) fn manifest(input: &[u8]) -> bool {
    let parsed = match Manifest::parse(input) {
        Err(ManifestError::WrongDigest {
            stated, computed, ..
        }) => {
            let mut right = input.to_vec();
            replace(
                &mut right,
                stated.to_string().as_bytes(),
                computed.to_string().as_bytes(),
            );
            Manifest::parse(&right).map(|manifest| (manifest, right))
        }
        other => other.map(|manifest| (manifest, input.to_vec())),
    };
    let Ok((manifest, bytes)) = parsed else {
        return false;
    };
    assert_eq!(manifest.to_bytes(), bytes, "there is one spelling");
    let again = manifest.clone().into_draft().finish();
    assert_eq!(
        again.as_ref(),
        Ok(&manifest),
        "the content makes the digest"
    );
    assert!(diff(&manifest, &manifest).changes.is_empty());
    let _ = transition(&manifest, &manifest, &Surroundings::default());
    let bom = cyclonedx(&manifest, &ModelDetails::new());
    assert!(serde_json::from_str::<serde_json::Value>(&bom).is_ok());
    true
}

fn round_trip<T: FromStr + Display + PartialEq>(text: &str) -> bool {
    let Ok(value) = text.parse::<T>() else {
        return false;
    };
    let shown = value.to_string();
    assert!(
        shown.parse::<T>().is_ok_and(|again| again == value),
        "{shown:?} does not mean what {text:?} means"
    );
    true
}

/// A reference, and everything else that is written in a line.
pub(crate) fn reference(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    let mut accepted = round_trip::<BundleRef>(text);
    accepted |= round_trip::<VersionId>(text);
    accepted |= round_trip::<Version>(text);
    accepted |= round_trip::<Name>(text);
    accepted |= round_trip::<Digest>(text);
    accepted |= round_trip::<ComponentPath>(text);
    if let (Ok(id), Ok(reference)) = (text.parse::<VersionId>(), text.parse::<BundleRef>()) {
        assert!(reference.matches(&id) && id.reference().matches(&id));
    }
    accepted
}

/// The size of a file in eight bytes, and a header; where only the size does not fit, also with the right one.
pub(crate) fn safetensors(input: &[u8]) -> bool {
    let Some((first, header)) = input.split_first_chunk::<8>() else {
        return false;
    };
    let size = u64::from_le_bytes(*first);
    let _ = SafetensorsHeader::length(*first, input.len() as u64);
    let begin = 8 + header.len() as u64;
    let (parsed, size) = match SafetensorsHeader::parse(header, size) {
        Err(SafetensorsError::Length { expected, .. }) => {
            let Some(size) = begin.checked_add(expected) else {
                return false;
            };
            (SafetensorsHeader::parse(header, size), size)
        }
        other => (other, size),
    };
    let Ok(parsed) = parsed else {
        return false;
    };
    let names = parsed.tensors.windows(2);
    assert!(names.into_iter().all(|w| w[0].name < w[1].name));
    let mut spans: Vec<(u64, u64)> = parsed.tensors.iter().map(|t| (t.start, t.len)).collect();
    spans.sort_unstable();
    let end = spans.iter().fold(begin, |at, (start, len)| {
        assert_eq!(at, *start, "tensors tile the file");
        start + len
    });
    assert_eq!(end, size, "to its end");
    true
}

/// The metadata of a bundle.
pub(crate) fn metadata(input: &[u8]) -> bool {
    let Ok(metadata) = Metadata::parse(input) else {
        return false;
    };
    let text = metadata.to_pretty();
    assert_eq!(Metadata::parse(text.as_bytes()).as_ref(), Ok(&metadata));
    true
}

/// What a file is by its content, pointers, and secrets.
pub(crate) fn content(input: &[u8]) -> bool {
    let format = FileFormat::of_prefix(input);
    if LfsPointer::parse(input).is_some() {
        assert_eq!(format, FileFormat::GitLfsPointer);
    }
    assert!(find_secrets(input).len() <= 16);
    if let Ok(text) = std::str::from_utf8(input) {
        let _ = FileFormat::of_archive(text.lines());
    }
    let _ = ModelDetails::of_config(input);
    format != FileFormat::Other
}

/// A key to sign with, and the same to verify with.
static KEYS: LazyLock<Option<(p256::ecdsa::SigningKey, VerifyingKey)>> = LazyLock::new(|| {
    let key = p256::ecdsa::SigningKey::from_slice(&[7; 32]).ok()?;
    let ending = p256::pkcs8::LineEnding::LF;
    let pem = key.verifying_key().to_public_key_pem(ending).ok()?;
    Some((key, VerifyingKey::from_pem(&pem).ok()?))
});

/// A signature file, or (after a first byte `s`) a statement, which is signed first: nothing is read before a signature holds.
pub(crate) fn oms(input: &[u8]) -> bool {
    const TYPE: &str = "application/vnd.in-toto+json";
    let Some((key, verifying)) = &*KEYS else {
        return false;
    };
    let Some((b's', statement)) = input.split_first() else {
        if let Ok(text) = std::str::from_utf8(input) {
            let _ = VerifyingKey::from_pem(text);
        }
        return SignedTree::verify(input, verifying).is_ok();
    };
    let mut statement = statement.to_vec();
    if find(&statement, b"$root$").is_some() {
        let root = root(&statement).to_string();
        replace(&mut statement, b"$root$", root.as_bytes());
    }
    let mut message = format!("DSSEv1 {} {TYPE} {} ", TYPE.len(), statement.len()).into_bytes();
    message.extend_from_slice(&statement);
    let signature: p256::ecdsa::Signature = key.sign(&message);
    let bundle = serde_json::json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {},
        "dsseEnvelope": {
            "payload": Base64::encode_string(&statement),
            "payloadType": TYPE,
            "signatures": [{"sig": Base64::encode_string(signature.to_der().as_bytes())}],
        },
    });
    let Ok(tree) = SignedTree::verify(bundle.to_string().as_bytes(), verifying) else {
        return false;
    };
    for path in tree.files.keys() {
        assert!(path.as_str().split('/').all(|segment| segment != ".."));
        assert!(!path.as_str().starts_with('/'));
    }
    true
}

/// The root digest over the resources of a statement, as far as it has some.
fn root(statement: &[u8]) -> Digest {
    let value: serde_json::Value = serde_json::from_slice(statement).unwrap_or_default();
    let resources = value["predicate"]["resources"].as_array();
    let digests = resources.into_iter().flatten().filter_map(|resource| {
        let digest: Digest = resource["digest"].as_str()?.parse().ok()?;
        Some(*digest.as_bytes())
    });
    Digest::of(&digests.flatten().collect::<Vec<u8>>())
}

/// The header of a GGUF file that is as large as it is, and of one that claims to be larger.
pub(crate) fn gguf(input: &[u8]) -> bool {
    let mut accepted = false;
    for size in [input.len() as u64, 1 << 40] {
        if let Ok(header) = GgufHeader::read(&mut &*input, size) {
            accepted = true;
            for tensor in header.tensors {
                let end = tensor.start.checked_add(tensor.len.unwrap_or_default());
                assert!(end.is_some_and(|end| end <= size), "{tensor:?}");
            }
        }
    }
    accepted
}

/// The log of a registry: event and note of an entry a line, which are sealed and linked.
pub(crate) fn log(input: &[u8]) -> bool {
    const DOMAIN: &[u8] = b"llm-version/log/1\0";
    let store = MemoryStore::new();
    let mut previous = Digest::of(DOMAIN);
    for (seq, line) in input.split(|b| *b == b'\n').take(20).enumerate() {
        let rest = [
            line,
            format!(r#","previous":"{previous}","seq":{seq}}}"#).as_bytes(),
        ]
        .concat();
        previous = Digest::of(&[DOMAIN, b"{", &rest].concat());
        let entry = [format!(r#"{{"digest":"{previous}","#).as_bytes(), &rest].concat();
        assert!(store.create(&format!("log/{seq:020}.json"), &entry).is_ok());
    }
    let Ok(registry) = Registry::open(store) else {
        return false;
    };
    assert!(registry.verify_log(None).is_ok(), "what opens verifies");
    assert!(registry.names().is_ok());
    true
}
