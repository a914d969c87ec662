//! Comparing what was found with what a manifest says, without touching files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use thiserror::Error;

use crate::digest::Digest;
use crate::id::VersionId;
use crate::manifest::Manifest;
use crate::path::ComponentPath;

/// How a tree differs from its manifest: missing, extra and modified apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Error)]
#[non_exhaustive]
pub struct Mismatch {
    /// In the manifest, not found.
    pub missing: BTreeSet<ComponentPath>,
    /// Found, not in the manifest.
    pub extra: BTreeSet<ComponentPath>,
    /// Found with another content or size.
    pub modified: BTreeSet<ComponentPath>,
}

impl Mismatch {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty() && self.modified.is_empty()
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 5;
        f.write_str("the tree differs from its manifest")?;
        let groups = [
            ("missing", &self.missing),
            ("extra", &self.extra),
            ("modified", &self.modified),
        ];
        for (word, paths) in groups {
            if paths.is_empty() {
                continue;
            }
            write!(f, "; {} {word}: ", paths.len())?;
            for (n, path) in paths.iter().take(SHOWN).enumerate() {
                write!(f, "{}{path}", if n == 0 { "" } else { ", " })?;
            }
            if paths.len() > SHOWN {
                write!(f, ", and {} more", paths.len() - SHOWN)?;
            }
        }
        Ok(())
    }
}

/// Compares digests found by any means with a manifest. Extra paths are a mismatch.
///
/// # Errors
/// Everything that is missing, extra or modified.
///
/// ```
/// # use llm_version_core::{Component, ComponentKind, Digest, Draft, Name, Version, verify};
/// # let mut draft = Draft::new(Name::new("chat")?, Version::new(1, 0, 0));
/// # draft.components.push(Component::new(
/// #     "prompt/system.txt".parse()?, ComponentKind::Prompt, 2, Digest::of(b"hi"),
/// # ));
/// # let manifest = draft.finish()?;
/// let mut found = std::collections::BTreeMap::new();
/// found.insert("prompt/system.txt".parse()?, Digest::of(b"hi"));
/// assert_eq!(&verify(&manifest, &found)?, manifest.id());
///
/// found.insert("prompt/system.txt".parse()?, Digest::of(b"ho"));
/// assert_eq!(verify(&manifest, &found).unwrap_err().modified.len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn verify(
    manifest: &Manifest,
    found: &BTreeMap<ComponentPath, Digest>,
) -> Result<VersionId, Mismatch> {
    let mut mismatch = Mismatch::default();
    for component in manifest.components() {
        match found.get(&component.path) {
            None => mismatch.missing.insert(component.path.clone()),
            Some(digest) if *digest != component.digest => {
                mismatch.modified.insert(component.path.clone())
            }
            Some(_) => continue,
        };
    }
    for path in found.keys() {
        if manifest.component(path).is_none() {
            mismatch.extra.insert(path.clone());
        }
    }
    if mismatch.is_empty() {
        Ok(manifest.id().clone())
    } else {
        Err(mismatch)
    }
}
