//! `OpenSSF` Model Signing v1.0: signing a tree with an ECDSA key, and verifying such signatures (feature `oms`).
//!
//! A signature is a Sigstore bundle around an in-toto statement that lists every file with its SHA-256. This module
//! reads and writes bundles; `fs::sign_tree` and `fs::verify_tree_signature` connect them with directories.
//!
//! It is stricter than the reference implementation where that accepts what it should not: duplicate names among the
//! resources, duplicate JSON keys, absolute and climbing paths are refused.

use std::collections::BTreeMap;
use std::fmt;

use base64ct::{Base64, Encoding as _};
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _, EncodePublicKey as _, LineEnding};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::digest::Digest;
use crate::json::{self, JsonError};
use crate::path::{ComponentPath, PathConflict, PathError, check_conflicts};

/// The largest signature file that is read, in bytes.
pub const MAX_BUNDLE_BYTES: u64 = 128 << 20;

const BUNDLE_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";

/// What a signature says: the files of a tree and their digests.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SignedTree {
    /// What the signer calls the tree.
    pub name: String,
    /// The files.
    pub files: BTreeMap<ComponentPath, Digest>,
    /// Paths at the top of the tree that the signature does not cover.
    pub ignored: Vec<String>,
    /// Whether the signer followed symbolic links.
    pub symlinks: bool,
}

/// A private key on P-256 or P-384. It is never shown.
#[derive(Clone)]
pub struct SigningKey(Private);

#[derive(Clone)]
enum Private {
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
}

/// A public key on P-256 or P-384.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyingKey(Public);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Public {
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
}

/// Why a signature could not be made or does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OmsError {
    /// Not a key that can be used.
    #[error("not a PEM key on P-256 or P-384 ({expected})")]
    Key {
        /// What was expected.
        expected: &'static str,
    },
    /// Signing failed.
    #[error("signing failed")]
    Signing,
    /// Not JSON of the expected shape.
    #[error("{part}: {error}")]
    Json {
        /// Which part of the file.
        part: &'static str,
        /// What is wrong.
        error: JsonError,
    },
    /// A part that is not what the format demands.
    #[error("{part}: {found:?} where {expected} is expected")]
    Unexpected {
        /// Which part.
        part: &'static str,
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// The signature is not by this key, or the signed text was altered.
    #[error("the signature does not hold: another key, or the signed text was altered")]
    BadSignature,
    /// The bundle says that it was signed by another key.
    #[error("the signature names the key {found}, this one is {expected}")]
    OtherKey {
        /// The key that it names.
        found: String,
        /// The key given.
        expected: String,
    },
    /// The root is not the digest of the resources.
    #[error("the subject's digest is not that of the listed files")]
    WrongRoot,
    /// A name that cannot be in a tree.
    #[error("resource: {0}")]
    Path(#[from] PathError),
    /// Names that cannot stand side by side, or one twice.
    #[error("resources: {0}")]
    Conflict(#[from] PathConflict),
    /// A hash that is not supported here.
    #[error("hash {0:?} is not supported; sign with sha256 over whole files")]
    Hash(String),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Envelope,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    #[serde(default)]
    public_key: Option<Hint>,
    #[serde(default)]
    tlog_entries: Vec<serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
struct Hint {
    #[serde(default)]
    hint: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
struct Signature {
    sig: String,
    #[serde(default)]
    keyid: String,
}

#[derive(Serialize, Deserialize)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Serialize, Deserialize)]
struct Subject {
    name: String,
    digest: BTreeMap<String, Digest>,
}

#[derive(Serialize, Deserialize)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Resource>,
}

#[derive(Serialize, Deserialize)]
struct Serialization {
    method: String,
    #[serde(default)]
    hash_type: String,
    #[serde(default)]
    allow_symlinks: bool,
    #[serde(default)]
    ignore_paths: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Resource {
    name: String,
    algorithm: String,
    digest: String,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Private::P256(_) => "SigningKey(P-256, ..)",
            Private::P384(_) => "SigningKey(P-384, ..)",
        })
    }
}

impl SigningKey {
    /// Reads a PEM private key (PKCS#8, `BEGIN PRIVATE KEY`).
    ///
    /// # Errors
    /// When it is no such key; the message never holds any of it.
    pub fn from_pem(pem: &str) -> Result<Self, OmsError> {
        if let Ok(key) = p256::ecdsa::SigningKey::from_pkcs8_pem(pem) {
            return Ok(Self(Private::P256(key)));
        }
        match p384::ecdsa::SigningKey::from_pkcs8_pem(pem) {
            Ok(key) => Ok(Self(Private::P384(key))),
            Err(_) => Err(OmsError::Key {
                expected: "PKCS#8, `BEGIN PRIVATE KEY`; convert with `openssl pkcs8 -topk8 -nocrypt`",
            }),
        }
    }

    /// The public half.
    pub fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey(match &self.0 {
            Private::P256(key) => Public::P256(*key.verifying_key()),
            Private::P384(key) => Public::P384(*key.verifying_key()),
        })
    }

    /// Signs without randomness (RFC 6979): the same tree and key give the same signature.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, OmsError> {
        match &self.0 {
            Private::P256(key) => {
                let signature: p256::ecdsa::Signature =
                    key.try_sign(message).map_err(|_| OmsError::Signing)?;
                Ok(signature.to_der().as_bytes().to_vec())
            }
            Private::P384(key) => {
                let signature: p384::ecdsa::Signature =
                    key.try_sign(message).map_err(|_| OmsError::Signing)?;
                Ok(signature.to_der().as_bytes().to_vec())
            }
        }
    }
}

impl VerifyingKey {
    /// Reads a PEM public key (`BEGIN PUBLIC KEY`).
    ///
    /// # Errors
    /// When it is no such key.
    pub fn from_pem(pem: &str) -> Result<Self, OmsError> {
        if let Ok(key) = p256::ecdsa::VerifyingKey::from_public_key_pem(pem) {
            return Ok(Self(Public::P256(key)));
        }
        match p384::ecdsa::VerifyingKey::from_public_key_pem(pem) {
            Ok(key) => Ok(Self(Public::P384(key))),
            Err(_) => Err(OmsError::Key {
                expected: "SubjectPublicKeyInfo, `BEGIN PUBLIC KEY`",
            }),
        }
    }

    /// The key as PEM.
    ///
    /// # Errors
    /// When it cannot be encoded, which no key that was read does.
    pub fn to_pem(&self) -> Result<String, OmsError> {
        let pem = match &self.0 {
            Public::P256(key) => key.to_public_key_pem(LineEnding::LF),
            Public::P384(key) => key.to_public_key_pem(LineEnding::LF),
        };
        pem.map_err(|_| OmsError::Key {
            expected: "a key that can be encoded",
        })
    }

    /// How signatures name the key: SHA-256 over its PEM text.
    ///
    /// # Errors
    /// As [`VerifyingKey::to_pem`].
    pub fn hint(&self) -> Result<String, OmsError> {
        Ok(Digest::of(self.to_pem()?.as_bytes()).to_string())
    }

    fn verify(&self, message: &[u8], der: &[u8]) -> Result<(), OmsError> {
        let held = match &self.0 {
            Public::P256(key) => {
                p256::ecdsa::Signature::from_der(der).and_then(|s| key.verify(message, &s))
            }
            Public::P384(key) => {
                p384::ecdsa::Signature::from_der(der).and_then(|s| key.verify(message, &s))
            }
        };
        held.map_err(|_| OmsError::BadSignature)
    }
}

/// What is really signed: the payload with its type, each with its length.
fn pre_authentication(payload: &[u8]) -> Vec<u8> {
    let head = format!(
        "DSSEv1 {} {PAYLOAD_TYPE} {} ",
        PAYLOAD_TYPE.len(),
        payload.len()
    );
    [head.as_bytes(), payload].concat()
}

/// SHA-256 over the digests one after the other, in the order given.
fn root<'a>(digests: impl Iterator<Item = &'a Digest>) -> Digest {
    let mut hash = Sha256::new();
    digests.for_each(|digest| hash.update(digest.as_bytes()));
    Digest::new(hash.finalize().into())
}

fn expect(part: &'static str, found: &str, expected: &str) -> Result<(), OmsError> {
    if found == expected {
        return Ok(());
    }
    Err(OmsError::Unexpected {
        part,
        found: crate::version::clip(found).to_owned(),
        expected: expected.to_owned(),
    })
}

impl SignedTree {
    /// A tree called `name`.
    pub fn new(name: impl Into<String>, files: BTreeMap<ComponentPath, Digest>) -> Self {
        Self {
            name: name.into(),
            files,
            ignored: Vec::new(),
            symlinks: false,
        }
    }

    /// Signs the tree: the bytes of a signature file that other implementations verify.
    ///
    /// # Errors
    /// When two paths cannot stand side by side, or signing fails.
    pub fn sign(&self, key: &SigningKey) -> Result<Vec<u8>, OmsError> {
        check_conflicts(self.files.keys())?;
        let root = root(self.files.values());
        let statement = Statement {
            kind: STATEMENT_TYPE.to_owned(),
            subject: vec![Subject {
                name: self.name.clone(),
                digest: [("sha256".to_owned(), root)].into(),
            }],
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: Predicate {
                serialization: Serialization {
                    method: "files".to_owned(),
                    hash_type: "sha256".to_owned(),
                    allow_symlinks: self.symlinks,
                    ignore_paths: self.ignored.clone(),
                },
                resources: self
                    .files
                    .iter()
                    .map(|(path, digest)| Resource {
                        name: path.to_string(),
                        algorithm: "sha256".to_owned(),
                        digest: digest.to_string(),
                    })
                    .collect(),
            },
        };
        // Strings and booleans serialise without failing.
        let payload = serde_json::to_vec(&statement).unwrap_or_default();
        let signature = key.sign(&pre_authentication(&payload))?;
        let bundle = Bundle {
            media_type: BUNDLE_TYPE.to_owned(),
            verification_material: Material {
                public_key: Some(Hint {
                    hint: key.verifying_key().hint()?,
                }),
                tlog_entries: Vec::new(),
            },
            dsse_envelope: Envelope {
                payload: Base64::encode_string(&payload),
                payload_type: PAYLOAD_TYPE.to_owned(),
                signatures: vec![Signature {
                    sig: Base64::encode_string(&signature),
                    keyid: String::new(),
                }],
            },
        };
        Ok(serde_json::to_vec(&bundle).unwrap_or_default())
    }

    /// Checks a signature file against a key and returns what was signed. Nothing in the file is believed before the
    /// signature holds.
    ///
    /// # Errors
    /// Says what does not hold.
    pub fn verify(bundle: &[u8], key: &VerifyingKey) -> Result<Self, OmsError> {
        let part = |part| move |error| OmsError::Json { part, error };
        let bundle: Bundle = json::from_slice(bundle, MAX_BUNDLE_BYTES).map_err(part("bundle"))?;
        expect("mediaType", &bundle.media_type, BUNDLE_TYPE)?;
        let Envelope {
            payload,
            payload_type,
            signatures,
        } = bundle.dsse_envelope;
        expect("payloadType", &payload_type, PAYLOAD_TYPE)?;
        let [signature] = &signatures[..] else {
            return Err(OmsError::Unexpected {
                part: "signatures",
                found: signatures.len().to_string(),
                expected: "one signature".to_owned(),
            });
        };
        let decode = |part, text: &str| {
            Base64::decode_vec(text).map_err(|_| OmsError::Unexpected {
                part,
                found: crate::version::clip(text).to_owned(),
                expected: "base64".to_owned(),
            })
        };
        let payload = decode("payload", &payload)?;
        let der = decode("sig", &signature.sig)?;
        if let Some(Hint { hint }) = bundle.verification_material.public_key {
            let expected = key.hint()?;
            if !hint.is_empty() && hint != expected {
                let found = crate::version::clip(&hint).to_owned();
                return Err(OmsError::OtherKey { found, expected });
            }
        }
        key.verify(&pre_authentication(&payload), &der)?;
        let statement = json::from_slice(&payload, MAX_BUNDLE_BYTES).map_err(part("payload"))?;
        Self::from_statement(statement)
    }

    fn from_statement(statement: Statement) -> Result<Self, OmsError> {
        expect("_type", &statement.kind, STATEMENT_TYPE)?;
        expect("predicateType", &statement.predicate_type, PREDICATE_TYPE)?;
        let Serialization {
            method,
            hash_type,
            allow_symlinks,
            ignore_paths,
        } = statement.predicate.serialization;
        expect("method", &method, "files")?;
        if hash_type != "sha256" {
            return Err(OmsError::Hash(crate::version::clip(&hash_type).to_owned()));
        }
        let mut listed = Vec::with_capacity(statement.predicate.resources.len());
        for resource in statement.predicate.resources {
            if resource.algorithm != "sha256" {
                return Err(OmsError::Hash(
                    crate::version::clip(&resource.algorithm).to_owned(),
                ));
            }
            let digest: Digest = resource.digest.parse().map_err(|_| OmsError::Unexpected {
                part: "digest",
                found: crate::version::clip(&resource.digest).to_owned(),
                expected: "64 hexadecimal digits".to_owned(),
            })?;
            listed.push((ComponentPath::new(resource.name)?, digest));
        }
        let [subject] = &statement.subject[..] else {
            return Err(OmsError::Unexpected {
                part: "subject",
                found: statement.subject.len().to_string(),
                expected: "one subject".to_owned(),
            });
        };
        // The order of the list counts, whatever it is.
        if subject.digest.get("sha256") != Some(&root(listed.iter().map(|(_, d)| d))) {
            return Err(OmsError::WrongRoot);
        }
        check_conflicts(listed.iter().map(|(path, _)| path))?;
        Ok(Self {
            name: subject.name.clone(),
            files: listed.into_iter().collect(),
            ignored: ignore_paths,
            symlinks: allow_symlinks,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys() -> [SigningKey; 2] {
        [
            SigningKey(Private::P256(
                p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap(),
            )),
            SigningKey(Private::P384(
                p384::ecdsa::SigningKey::from_slice(&[7; 48]).unwrap(),
            )),
        ]
    }

    fn tree() -> SignedTree {
        let file = |path: &str, text: &str| {
            (
                ComponentPath::new(path).unwrap(),
                Digest::of(text.as_bytes()),
            )
        };
        SignedTree::new(
            "chat",
            [file("a/b", "1"), file("a-b", "2"), file("empty", "")].into(),
        )
    }

    #[test]
    fn what_is_signed_verifies_with_that_key_only() {
        for key in keys() {
            let bundle = tree().sign(&key).unwrap();
            assert_eq!(
                bundle,
                tree().sign(&key).unwrap(),
                "signing is deterministic"
            );
            assert_eq!(
                SignedTree::verify(&bundle, &key.verifying_key()).unwrap(),
                tree()
            );
            for other in keys()
                .iter()
                .filter(|k| k.verifying_key() != key.verifying_key())
            {
                assert!(matches!(
                    SignedTree::verify(&bundle, &other.verifying_key()),
                    Err(OmsError::OtherKey { .. })
                ));
            }
            let pem = key.verifying_key().to_pem().unwrap();
            assert_eq!(VerifyingKey::from_pem(&pem).unwrap(), key.verifying_key());
            assert!(!format!("{key:?}").contains('7'));
        }
        assert!(SigningKey::from_pem("x").is_err() && VerifyingKey::from_pem("x").is_err());
    }

    /// Signs any payload, honest or not.
    fn sign_payload(payload: &str) -> Result<SignedTree, OmsError> {
        let [key, _] = keys();
        let signature = key.sign(&pre_authentication(payload.as_bytes())).unwrap();
        let bundle = format!(
            r#"{{"mediaType":"{BUNDLE_TYPE}","verificationMaterial":{{}},"dsseEnvelope":{{"payload":"{}","payloadType":"{PAYLOAD_TYPE}","signatures":[{{"sig":"{}"}}]}}}}"#,
            Base64::encode_string(payload.as_bytes()),
            Base64::encode_string(&signature)
        );
        SignedTree::verify(bundle.as_bytes(), &key.verifying_key())
    }

    fn payload(resources: &[(&str, &str)], hash: &str) -> String {
        let digests: Vec<Digest> = resources
            .iter()
            .map(|(_, text)| Digest::of(text.as_bytes()))
            .collect();
        let listed: Vec<String> = resources
            .iter()
            .zip(&digests)
            .map(|((name, _), digest)| {
                format!(r#"{{"name":"{name}","algorithm":"{hash}","digest":"{digest}"}}"#)
            })
            .collect();
        format!(
            r#"{{"_type":"{STATEMENT_TYPE}","subject":[{{"name":"x","digest":{{"sha256":"{}"}}}}],"predicateType":"{PREDICATE_TYPE}","predicate":{{"serialization":{{"method":"files","hash_type":"{hash}","allow_symlinks":false}},"resources":[{}]}}}}"#,
            root(digests.iter()),
            listed.join(",")
        )
    }

    #[test]
    fn statements_that_others_accept_are_refused() {
        assert_eq!(
            sign_payload(&payload(&[("b", "1"), ("a", "2")], "sha256"))
                .unwrap()
                .files
                .len(),
            2,
            "any order"
        );
        let twice = payload(&[("a", "1"), ("a", "2")], "sha256");
        assert!(matches!(sign_payload(&twice), Err(OmsError::Conflict(_))));
        for path in ["../a", "/a", "a/../../b", "a\\\\b"] {
            assert!(
                matches!(
                    sign_payload(&payload(&[(path, "1")], "sha256")),
                    Err(OmsError::Path(_))
                ),
                "{path}"
            );
        }
        assert!(matches!(
            sign_payload(&payload(&[("a", "1")], "blake2b")),
            Err(OmsError::Hash(_))
        ));
        let good = payload(&[("a", "1")], "sha256");
        let keys_twice = good.replace("\"subject\"", "\"_type\":\"x\",\"subject\"");
        assert!(matches!(
            sign_payload(&keys_twice),
            Err(OmsError::Json { .. })
        ));
        let other_root = good.replace(
            &root([Digest::of(b"1")].iter()).to_string(),
            &Digest::of(b"z").to_string(),
        );
        assert_eq!(sign_payload(&other_root), Err(OmsError::WrongRoot));
    }

    proptest! {
        #[test]
        fn one_changed_byte_never_verifies_as_something_else(at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let [key, _] = keys();
            let mut bundle = tree().sign(&key).unwrap();
            let at = at.index(bundle.len());
            bundle[at] = to;
            if let Ok(found) = SignedTree::verify(&bundle, &key.verifying_key()) {
                prop_assert_eq!(found, tree());
            }
        }
    }
}
