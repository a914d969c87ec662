//! Weights by their tensors, whatever files hold them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, Change, Detail, Risk, Subject};
use crate::kind::ComponentKind;
use crate::manifest::{Component, Manifest, Tensor};
use crate::version::Bump;

/// Compares weights and adapters whose tensors are recorded on both sides; returns the kinds that this settles.
pub(super) fn compare(
    old: &Manifest,
    new: &Manifest,
    changes: &mut Vec<Change>,
) -> BTreeSet<ComponentKind> {
    let mut covered = BTreeSet::new();
    for kind in [ComponentKind::Weights, ComponentKind::Adapter] {
        if let (Some(before), Some(after)) = (tensors(old, kind), tensors(new, kind)) {
            covered.insert(kind);
            changes.extend(change(old, new, kind, &before, &after));
        }
    }
    covered
}

type ByName<'a> = BTreeMap<(&'a str, &'a str), &'a Tensor>;

/// The tensors of a kind by folder and name: several adapters share tensor names, each in its own folder. `None` where
/// a file has none recorded, or a name stands twice.
fn tensors(manifest: &Manifest, kind: ComponentKind) -> Option<ByName<'_>> {
    let mut found = BTreeMap::new();
    for component in manifest.components().iter().filter(|c| c.kind == kind) {
        if component.tensors.is_empty() {
            // Settings of an adapter lie beside its weights; their changes are not covered here.
            return None;
        }
        let folder = match kind {
            ComponentKind::Adapter => folder(component),
            _ => "",
        };
        for tensor in &component.tensors {
            if found
                .insert((folder, tensor.name.as_str()), tensor)
                .is_some()
            {
                return None;
            }
        }
    }
    (!found.is_empty()).then_some(found)
}

fn folder(component: &Component) -> &str {
    component
        .path
        .as_str()
        .rsplit_once('/')
        .map_or("", |(f, _)| f)
}

fn change(
    old: &Manifest,
    new: &Manifest,
    kind: ComponentKind,
    before: &ByName<'_>,
    after: &ByName<'_>,
) -> Option<Change> {
    let (mut structure, mut types, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for (name, tensor) in before {
        let Some(other) = after.get(name) else {
            structure.push(Detail::Note(format!("tensor {} is gone", name.1)));
            continue;
        };
        if tensor.shape != other.shape {
            structure.push(Detail::Value {
                at: name.1.to_owned(),
                old: Some(format!("{:?}", tensor.shape)),
                new: Some(format!("{:?}", other.shape)),
            });
        } else if tensor.dtype != other.dtype {
            types.push(Detail::Value {
                at: name.1.to_owned(),
                old: Some(tensor.dtype.clone()),
                new: Some(other.dtype.clone()),
            });
        } else if tensor.digest != other.digest {
            values.push(Detail::Note(format!("tensor {} has other values", name.1)));
        }
    }
    let added = after.keys().filter(|name| !before.contains_key(*name));
    structure.extend(added.map(|name| Detail::Note(format!("tensor {} is new", name.1))));
    let total = after.len();
    let (bump, risk, reason) = if !structure.is_empty() && kind == ComponentKind::Weights {
        (
            Bump::Major,
            Risk::Interface,
            format!(
                "{} tensors came, went or changed shape: another architecture",
                structure.len()
            ),
        )
    } else if !structure.is_empty() {
        (
            Bump::Minor,
            Risk::Behavioural,
            format!(
                "{} tensors of adapters came, went or changed shape",
                structure.len()
            ),
        )
    } else if !types.is_empty() {
        (
            Bump::Minor,
            Risk::Behavioural,
            format!(
                "{} of {total} tensors have another element type: requantised",
                types.len()
            ),
        )
    } else if !values.is_empty() {
        (
            Bump::Minor,
            Risk::Behavioural,
            format!(
                "{} of {total} tensors have other values: fine-tuned",
                values.len()
            ),
        )
    } else if files(old, kind) != files(new, kind) {
        (
            Bump::Patch,
            Risk::Operational,
            "other files, the same tensors: repacked, weight gates can be skipped".to_owned(),
        )
    } else {
        return None;
    };
    structure.extend(types);
    structure.extend(values);
    Some(Change::new(Subject::Tensors(kind), Action::Modified, bump, risk, reason).with(structure))
}

fn files(manifest: &Manifest, kind: ComponentKind) -> Vec<(&str, &crate::digest::Digest)> {
    let index =
        |c: &Component| kind == ComponentKind::Weights && c.kind == ComponentKind::WeightsIndex;
    let components = manifest
        .components()
        .iter()
        .filter(|c| c.kind == kind || index(c));
    components.map(|c| (c.path.as_str(), &c.digest)).collect()
}
