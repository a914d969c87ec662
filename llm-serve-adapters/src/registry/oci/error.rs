//! What can go wrong between a folder and a registry.

use crate::host::{self, ErrorKind};
use llm_version_core::Digest;
use llm_version_core::fs::OciError;
use serde::Deserialize;
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;
use thiserror::Error;

/// What a registry refuses with, by the codes of the distribution specification.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum OciCode {
    /// `BLOB_UNKNOWN`.
    BlobUnknown,
    /// `BLOB_UPLOAD_INVALID`.
    BlobUploadInvalid,
    /// `BLOB_UPLOAD_UNKNOWN`: the upload has expired.
    BlobUploadUnknown,
    /// `DIGEST_INVALID`: what arrived is not what its digest says.
    DigestInvalid,
    /// `MANIFEST_BLOB_UNKNOWN`: a manifest names a blob that is not there.
    ManifestBlobUnknown,
    /// `MANIFEST_INVALID`.
    ManifestInvalid,
    /// `MANIFEST_UNKNOWN`: no such tag or digest.
    ManifestUnknown,
    /// `NAME_INVALID`.
    NameInvalid,
    /// `NAME_UNKNOWN`: no such repository.
    NameUnknown,
    /// `SIZE_INVALID`.
    SizeInvalid,
    /// `UNAUTHORIZED`: no credentials, or wrong ones.
    Unauthorized,
    /// `DENIED`: these credentials may not.
    Denied,
    /// `UNSUPPORTED`.
    Unsupported,
    /// `TOOMANYREQUESTS`.
    TooManyRequests,
    /// A code outside the specification; empty for a refusal without one.
    Other(String),
}

impl OciCode {
    fn of(code: &str, status: u16) -> Self {
        match (code, status) {
            ("BLOB_UNKNOWN", _) => Self::BlobUnknown,
            ("BLOB_UPLOAD_INVALID", _) => Self::BlobUploadInvalid,
            ("BLOB_UPLOAD_UNKNOWN", _) => Self::BlobUploadUnknown,
            ("DIGEST_INVALID", _) => Self::DigestInvalid,
            ("MANIFEST_BLOB_UNKNOWN", _) => Self::ManifestBlobUnknown,
            ("MANIFEST_INVALID", _) => Self::ManifestInvalid,
            ("MANIFEST_UNKNOWN", _) => Self::ManifestUnknown,
            ("NAME_INVALID", _) => Self::NameInvalid,
            ("NAME_UNKNOWN", _) => Self::NameUnknown,
            ("SIZE_INVALID", _) => Self::SizeInvalid,
            // Proxies in front of registries answer without a code.
            ("UNAUTHORIZED", _) | ("", 401) => Self::Unauthorized,
            ("DENIED", _) | ("", 403) => Self::Denied,
            ("UNSUPPORTED", _) => Self::Unsupported,
            ("TOOMANYREQUESTS", _) | ("", 429) => Self::TooManyRequests,
            (other, _) => Self::Other(crate::http_client::clip(other)),
        }
    }

    fn advice(&self) -> &'static str {
        match self {
            Self::DigestInvalid | Self::SizeInvalid => {
                "the bytes were altered on the way; try again"
            }
            Self::BlobUnknown
            | Self::BlobUploadInvalid
            | Self::BlobUploadUnknown
            | Self::ManifestBlobUnknown => "push the artifact again",
            Self::ManifestUnknown | Self::NameUnknown => "check repository, tag and digest",
            Self::NameInvalid => "check the name of the repository",
            Self::Unauthorized => "check user and password",
            Self::Denied => "grant the user this repository",
            Self::TooManyRequests => "wait, then try again",
            Self::ManifestInvalid | Self::Unsupported => {
                "the registry has to take OCI artifacts (specification 1.1)"
            }
            Self::Other(_) => "see the registry's log",
        }
    }
}

impl fmt::Display for OciCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Other(code) if code.is_empty() => "no code",
            Self::Other(code) => code,
        })
    }
}

/// Why a bundle was not pushed or pulled.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OciRegistryError {
    /// An address, a name or a reference that cannot be one.
    #[error("{what} cannot be used: {why}")]
    Address {
        /// What.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The registry refuses.
    #[error("{what} is refused ({status}, {code}{}{said}): {}", if said.is_empty() { "" } else { ": " }, code.advice())]
    Refused {
        /// What was tried.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The specification's code.
        code: OciCode,
        /// What the registry says, clipped.
        said: String,
        /// When it may be tried again, if the registry says so.
        retry_after: Option<Duration>,
    },
    /// The registry cannot be reached, or the connection broke.
    #[error("{what}: {error}")]
    Unreachable {
        /// What was tried.
        what: String,
        /// What happened.
        error: host::Error,
    },
    /// Nothing has moved for as long as is waited for it.
    #[error(
        "{what}: nothing has moved for {patience:?}; check that the registry is not stuck or overloaded"
    )]
    Stuck {
        /// What was tried.
        what: String,
        /// How long.
        patience: Duration,
    },
    /// An answer that no registry should give.
    #[error("{what}: {found}; check that the address is that of an OCI registry")]
    Answer {
        /// What was asked.
        what: String,
        /// What came.
        found: String,
    },
    /// Bytes that are not what their digest says: altered in the registry or on the way.
    #[error(
        "{what}: the bytes have digest {found}, not {expected}; they were altered or cut, push them again"
    )]
    WrongDigest {
        /// What was fetched.
        what: String,
        /// The digest that it was asked for by.
        expected: Digest,
        /// The digest that it has.
        found: Digest,
    },
    /// A file that is not what the manifest says any more; the registry has not taken it.
    #[error(
        "{path} is not what its digest {expected} says any more, nothing of it was stored: build the bundle again"
    )]
    Changed {
        /// The file.
        path: String,
        /// The digest that it was to have.
        expected: Digest,
    },
    /// More than is fetched.
    #[error("{what} is above the limit of {limit} bytes; raise the limit if it is meant")]
    TooLarge {
        /// What.
        what: String,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The folder exists and is not this version.
    #[error("{path} exists and cannot be told to be this artifact; pull it into another folder")]
    Exists {
        /// The folder.
        path: String,
    },
    /// Another process is pulling the same artifact to the same place.
    #[error("{path} is being written by another pull; wait for its end")]
    Busy {
        /// The folder.
        path: String,
    },
    /// The bundle or the artifact is not what it should be.
    #[error(transparent)]
    Artifact(#[from] OciError),
    /// Something here cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// What.
        path: String,
        /// What the system said.
        error: io::Error,
    },
}

impl OciRegistryError {
    /// Whether trying again may help.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { status, code, .. } => match code {
                // An upload that has expired is begun anew; bytes that were altered on the way are sent again.
                OciCode::BlobUploadUnknown
                | OciCode::BlobUploadInvalid
                | OciCode::DigestInvalid => ErrorKind::Transient,
                _ => crate::http_client::refusal(*status).unwrap_or(ErrorKind::Permanent),
            },
            Self::Unreachable { error, .. } => error.kind(),
            Self::Stuck { .. } | Self::Busy { .. } => ErrorKind::Transient,
            _ => ErrorKind::Permanent,
        }
    }
}

pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> OciRegistryError + '_ {
    move |error| OciRegistryError::Io {
        path: path.display().to_string(),
        error,
    }
}

/// The body of a refusal.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Body {
    errors: Vec<Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    code: String,
    message: String,
}

/// The refusal that a status and a body mean.
pub(super) fn refused(
    what: &str,
    status: u16,
    body: &[u8],
    retry_after: Option<Duration>,
) -> OciRegistryError {
    let first = serde_json::from_slice::<Body>(body)
        .ok()
        .and_then(|body| body.errors.into_iter().next());
    let entry = first.unwrap_or_default();
    OciRegistryError::Refused {
        what: what.to_owned(),
        status,
        code: OciCode::of(&entry.code, status),
        said: crate::http_client::clip(&entry.message),
        retry_after,
    }
}
