//! From a deployed version back to raw data.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Registry, RegistryError, Store};
use crate::id::{BundleRef, VersionId};
use crate::lineage::Lineage;

/// Versions followed at most.
const MOST: usize = 10_000;

/// A version with everything it was made from, as far as this registry knows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trace {
    /// The version that was asked for.
    pub root: VersionId,
    /// The lineage of it and of every ancestor that is here.
    pub lineages: BTreeMap<VersionId, Lineage>,
    /// Ancestors that this registry does not have, or has collected.
    pub unknown: BTreeSet<VersionId>,
}

impl<S: Store> Registry<S> {
    /// Follows a reference back over all parents to base models, data sets and code.
    ///
    /// A version's digest does not cover its lineage, so parents can be stated in a circle; each version is visited
    /// once.
    ///
    /// # Errors
    /// When the reference does not resolve, a manifest was altered, or there are more than 10,000 ancestors.
    pub fn trace(&self, reference: &BundleRef) -> Result<Trace, RegistryError> {
        let root = self.resolve(reference)?;
        let (mut lineages, mut unknown) = (BTreeMap::new(), BTreeSet::new());
        let mut open = vec![root.clone()];
        while let Some(id) = open.pop() {
            if lineages.contains_key(&id) || unknown.contains(&id) {
                continue;
            }
            if lineages.len() + unknown.len() >= MOST {
                return Err(RegistryError::TooLarge {
                    what: "the list of ancestors",
                    found: MOST as u64 + 1,
                    limit: MOST as u64,
                });
            }
            match self.manifest(&id) {
                Ok(manifest) => {
                    open.extend(manifest.lineage().parents.iter().cloned());
                    lineages.insert(id, manifest.lineage().clone());
                }
                Err(RegistryError::Unknown(_) | RegistryError::Removed(_)) => {
                    unknown.insert(id);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Trace {
            root,
            lineages,
            unknown,
        })
    }

    /// Whether a version made from these parents would be its own ancestor.
    pub(super) fn is_own_ancestor(
        &self,
        id: &VersionId,
        parents: &[VersionId],
    ) -> Result<bool, RegistryError> {
        let mut seen = BTreeSet::new();
        let mut open: Vec<VersionId> = parents.to_vec();
        while let Some(parent) = open.pop() {
            if parent == *id {
                return Ok(true);
            }
            if seen.len() >= MOST || !seen.insert(parent.clone()) {
                continue;
            }
            match self.manifest(&parent) {
                Ok(manifest) => open.extend(manifest.lineage().parents.iter().cloned()),
                Err(RegistryError::Unknown(_) | RegistryError::Removed(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Depth first from the root; a version that was shown is only named again.
        let mut shown = BTreeSet::new();
        let mut open = vec![(&self.root, 0_usize)];
        while let Some((id, depth)) = open.pop() {
            let indent = "  ".repeat(depth.min(32));
            write!(f, "{indent}{}", id.reference())?;
            let Some(lineage) = self.lineages.get(id) else {
                writeln!(f, " (not here)")?;
                continue;
            };
            if !shown.insert(id) {
                writeln!(f, " (see above)")?;
                continue;
            }
            writeln!(f)?;
            if let Some(base) = &lineage.base_model {
                let revision = base.revision.as_deref().unwrap_or("unpinned");
                writeln!(f, "{indent}  base model {} at {revision}", base.name)?;
            }
            if let Some(code) = &lineage.code {
                let dirty = if code.dirty {
                    ", with uncommitted changes"
                } else {
                    ""
                };
                writeln!(f, "{indent}  code {}{dirty}", code.commit)?;
            }
            for data in &lineage.datasets {
                let digest = data.digest.as_deref().unwrap_or("no digest");
                writeln!(
                    f,
                    "{indent}  data set {} {} ({digest})",
                    data.name, data.version
                )?;
            }
            open.extend(lineage.parents.iter().rev().map(|p| (p, depth + 1)));
        }
        Ok(())
    }
}
