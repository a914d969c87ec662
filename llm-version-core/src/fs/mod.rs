//! Bundle directories: building manifests from them and verifying them (feature `fs`).
//!
//! Everything here streams: files are read in blocks of 256 KiB on several threads, and memory is proportional to the
//! number of files, never to their size.

mod arrange;
mod build;
mod cache;
mod capture;
mod dvc;
mod hash;
mod hf;
mod inspect;
mod materialise;
mod oci;
mod onnx;
mod problem;
mod shards;
#[cfg(feature = "oms")]
mod sign;
mod store;
mod verify;
mod walk;
mod wandb;

pub use build::{BuildError, BuildOptions, Built, Folder, build};
pub use cache::{CacheError, HashCache};
pub use capture::{Capture, CaptureError, capture_lineage};
pub use dvc::{DvcError, dvc_digest};
pub use hf::{HfDigest, HfError, HfFile, HfSnapshot};
pub use materialise::{FolderSource, Materialised, Sharing, materialise};
pub use oci::{OciArtifact, OciBlob, OciError, OciFiles, OciSource, export_oci, import_oci};
pub use onnx::OnnxError;
pub use problem::{Problem, ProblemKind, Warning, WarningKind};
#[cfg(feature = "oms")]
pub use sign::{TreeSignatureError, sign_tree, verify_tree_signature};
pub use store::FolderStore;
pub use verify::{VerifyError, VerifyOptions, VerifyReport, verify};
pub use walk::Symlinks;
pub use wandb::{WandbDigest, WandbError, WandbFile, WandbFolder};

use crate::path::ComponentPath;

/// How far a build or a verification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// Bytes hashed.
    pub done_bytes: u64,
    /// Bytes to hash.
    pub total_bytes: u64,
    /// Parts finished: files, chunks and tensors.
    pub done_parts: u64,
    /// Parts to hash.
    pub total_parts: u64,
    /// The file that this report comes from; other threads work on others.
    pub current: &'a ComponentPath,
}

/// A progress callback. It is called from several threads at once and should return quickly.
pub type OnProgress<'a> = &'a (dyn Fn(&Progress<'_>) + Sync);

/// The file that holds name, version, contract, licences and lineage.
pub const METADATA_FILE: &str = "metadata.json";
/// The file name under which a manifest may lie in its own bundle; outside the digest.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The folder of evaluation results; outside the digest.
pub const TESTS_FOLDER: &str = "tests";
