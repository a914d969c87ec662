//! Shards of a checkpoint against its index: the index says which files there must be, not their names.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::problem::{Problem, ProblemKind, Warning, WarningKind};
use super::walk::Found;
use crate::json::{self, JsonError};
use crate::kind::has_extension;
use crate::safetensors::SafetensorsHeader;

/// The largest index that is read.
pub(crate) const INDEX_LIMIT: u64 = 64 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The headers of the safetensors files of a tree, by path.
pub(crate) type Headers = BTreeMap<String, SafetensorsHeader>;

/// Checks one index (its bytes) against the files and headers of the tree.
pub(crate) fn check(
    index: &Found,
    bytes: &[u8],
    files: &[Found],
    headers: &Headers,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Warning>,
) -> Result<(), JsonError> {
    let Index { weight_map } = json::from_slice(bytes, INDEX_LIMIT)?;
    let folder = index.path.as_str().rsplit_once('/').map_or("", |(f, _)| f);
    let path = |shard: &str| format!("{folder}/{shard}");
    let here: BTreeSet<&str> = files.iter().map(|f| f.path.as_str()).collect();
    let mut of_shard: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (tensor, shard) in &weight_map {
        of_shard.entry(shard).or_default().insert(tensor);
    }
    let mut problem = |kind| problems.push(Problem::new(index.path.as_str(), kind));
    for (shard, tensors) in &of_shard {
        let shard_path = path(shard);
        if !here.contains(shard_path.as_str()) {
            let shard = (*shard).to_owned();
            problem(ProblemKind::MissingShard { shard });
            continue;
        }
        let Some(header) = headers.get(&shard_path) else {
            continue;
        };
        let held: BTreeSet<&str> = header.tensors.iter().map(|t| t.name.as_str()).collect();
        if let Some(tensor) = tensors.difference(&held).next() {
            problem(ProblemKind::TensorNotInShard {
                tensor: (*tensor).to_owned(),
                shard: (*shard).to_owned(),
            });
        }
        if let Some(tensor) = held.difference(tensors).next() {
            warnings.push(Warning::new(
                shard_path.as_str(),
                WarningKind::TensorNotInIndex {
                    tensor: (*tensor).to_owned(),
                },
            ));
        }
    }
    // Files of the same type in the same folder that the index does not know.
    let extension = of_shard
        .keys()
        .next()
        .and_then(|s| s.rsplit_once('.'))
        .map_or("safetensors", |(_, e)| e);
    for file in files {
        let Some(name) = file
            .path
            .as_str()
            .strip_prefix(folder)
            .and_then(|rest| rest.strip_prefix('/'))
        else {
            continue;
        };
        if !name.contains('/') && has_extension(name, extension) && !of_shard.contains_key(name) {
            warnings.push(Warning::new(file.path.as_str(), WarningKind::ExtraShard));
        }
    }
    Ok(())
}
