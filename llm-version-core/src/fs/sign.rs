//! Directories and their `OpenSSF` Model Signing signatures.

use std::collections::BTreeMap;
use std::path::Path;

use thiserror::Error;

use super::build::{Cancelled, read_small, sort_out};
use super::hash::{Plan, Run, hash_files};
use super::problem::Problem;
use super::walk::{Symlinks, walk};
use crate::digest::Digest;
use crate::oms::{MAX_BUNDLE_BYTES, OmsError, SignedTree, SigningKey, VerifyingKey};
use crate::path::ComponentPath;
use crate::verify::Mismatch;

/// What the reference implementation leaves out at the top of a tree.
const IGNORED: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];

/// Why a directory could not be signed, or does not agree with its signature.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TreeSignatureError {
    /// The signature itself.
    #[error(transparent)]
    Signature(#[from] OmsError),
    /// Something cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// What.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Entries that cannot be signed or checked: links, special files, odd names.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Tree(Vec<Problem>),
    /// The directory differs from what was signed.
    #[error(transparent)]
    Differs(#[from] Mismatch),
    /// The signature file must lie at the top of the directory, or outside.
    #[error("{path}: put the signature file at the top of the directory, or outside of it")]
    Place {
        /// Where it was to lie.
        path: String,
    },
    /// The signer followed links; what was signed cannot be told from the links.
    #[error("the signature was made following symbolic links; sign the files themselves")]
    Symlinks,
}

/// Signs every file below `dir` but for git's own and the signature, and writes the signature to `signature`.
///
/// # Errors
/// When an entry cannot be signed, or something cannot be read or written.
pub fn sign_tree(dir: &Path, signature: &Path, key: &SigningKey) -> Result<(), TreeSignatureError> {
    let ignored = ignored(dir, signature)?;
    let name = dir.file_name().and_then(|n| n.to_str()).unwrap_or("model");
    let mut tree = SignedTree::new(name, digests(dir, &ignored)?);
    tree.ignored = ignored;
    let bytes = tree.sign(key)?;
    std::fs::write(signature, bytes).map_err(|error| TreeSignatureError::Io {
        path: signature.display().to_string(),
        error,
    })
}

/// Verifies that `dir` holds exactly the files that `signature` covers, and that `key` signed them.
///
/// # Errors
/// When the signature does not hold, or lists missing, extra and modified files apart.
pub fn verify_tree_signature(
    dir: &Path,
    signature: &Path,
    key: &VerifyingKey,
) -> Result<SignedTree, TreeSignatureError> {
    let name = signature.display().to_string();
    let bytes =
        read_small(signature, &name, MAX_BUNDLE_BYTES).map_err(|error| TreeSignatureError::Io {
            path: name,
            error: std::io::Error::other(error.to_string()),
        })?;
    let tree = SignedTree::verify(&bytes, key)?;
    if tree.symlinks {
        return Err(TreeSignatureError::Symlinks);
    }
    // What the signer left out beyond git's files and the signature is not left out here: it shows as extra.
    let found = digests(dir, &ignored(dir, signature)?)?;
    let mut mismatch = Mismatch::default();
    for (path, digest) in &tree.files {
        match found.get(path) {
            None => mismatch.missing.insert(path.clone()),
            Some(other) if other != digest => mismatch.modified.insert(path.clone()),
            Some(_) => continue,
        };
    }
    let extra = found.keys().filter(|path| !tree.files.contains_key(*path));
    mismatch.extra.extend(extra.cloned());
    if mismatch.is_empty() {
        Ok(tree)
    } else {
        Err(mismatch.into())
    }
}

/// Names at the top of `dir` that a signature does not cover.
fn ignored(dir: &Path, signature: &Path) -> Result<Vec<String>, TreeSignatureError> {
    let mut ignored: Vec<String> = IGNORED.iter().map(|n| (*n).to_owned()).collect();
    let place = || TreeSignatureError::Place {
        path: signature.display().to_string(),
    };
    let folder = signature.parent().filter(|p| !p.as_os_str().is_empty());
    let real = |path: &Path| {
        std::fs::canonicalize(path).map_err(|error| TreeSignatureError::Io {
            path: path.display().to_string(),
            error,
        })
    };
    let (dir, folder) = (real(dir)?, real(folder.unwrap_or(Path::new(".")))?);
    if folder == dir {
        let name = signature
            .file_name()
            .and_then(|n| n.to_str())
            .ok_or_else(place)?;
        ignored.push(name.to_owned());
    } else if folder.starts_with(&dir) {
        return Err(place());
    }
    Ok(ignored)
}

fn digests(
    dir: &Path,
    ignored: &[String],
) -> Result<BTreeMap<ComponentPath, Digest>, TreeSignatureError> {
    // Every entry counts, records too.
    let tree = walk(dir, Symlinks::Refuse, &|_| true).map_err(|error| TreeSignatureError::Io {
        path: dir.display().to_string(),
        error,
    })?;
    let left_out = |path: &str| {
        let top = path.split('/').next().unwrap_or(path);
        ignored.iter().any(|name| name == top)
    };
    let mut problems = tree.problems;
    problems.retain(|p| !left_out(&p.path));
    let files: Vec<_> = tree
        .files
        .into_iter()
        .filter(|f| !left_out(f.path.as_str()))
        .collect();
    let plans = vec![Plan::WHOLE; files.len()];
    let results = hash_files(&files, &plans, Run::default());
    let hashes = sort_out(&files, results, &mut problems)
        // Nobody can cancel this run.
        .map_err(|Cancelled| TreeSignatureError::Tree(Vec::new()))?;
    if !problems.is_empty() {
        return Err(TreeSignatureError::Tree(problems));
    }
    let pairs = files.into_iter().zip(hashes);
    Ok(pairs
        .filter_map(|(file, hashes)| Some((file.path, hashes?.whole?)))
        .collect())
}
