//! The contents of files: configurations key by key, prompts line by line, tokenizers by what they do.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use similar::TextDiff;

use super::{Both, Change, Detail, Risk};
use crate::json;
use crate::kind::{ComponentKind, has_extension};
use crate::manifest::Component;
use crate::version::{Bump, clip};

/// Gives the contents of components, for [`diff_contents`](super::diff_contents). Closures do.
pub trait Contents {
    /// The bytes of a component; `None` where they cannot be had. Only called for components of at most
    /// [`MAX_COMPARED_BYTES`] bytes.
    fn read(&self, component: &Component) -> Option<Vec<u8>>;
}

/// The largest file whose content is compared, in bytes: tokenizers are large.
pub const MAX_COMPARED_BYTES: u64 = 64 << 20;
/// The largest file that is compared line by line.
const TEXT_LIMIT: usize = 1 << 20;

impl<F: Fn(&Component) -> Option<Vec<u8>>> Contents for F {
    fn read(&self, component: &Component) -> Option<Vec<u8>> {
        self(component)
    }
}

/// Makes a change more exact where both contents are at hand and are what the manifest says.
pub(super) fn refine(
    change: Change,
    old: &Component,
    new: &Component,
    contents: Both<'_>,
) -> Change {
    let Some((old_contents, new_contents)) = contents else {
        return change;
    };
    let (Some(a), Some(b)) = (fetch(old_contents, old), fetch(new_contents, new)) else {
        return change;
    };
    if has_extension(new.path.file_name(), "json") {
        let parse = |bytes: &[u8]| json::from_slice::<Value>(bytes, MAX_COMPARED_BYTES).ok();
        if let (Some(a), Some(b)) = (parse(&a), parse(&b)) {
            return structured(change, new, &a, &b);
        }
    }
    match (std::str::from_utf8(&a), std::str::from_utf8(&b)) {
        (Ok(a), Ok(b)) if a.len().max(b.len()) <= TEXT_LIMIT => {
            let text = TextDiff::from_lines(a, b)
                .unified_diff()
                .context_radius(2)
                .to_string();
            change.with(vec![Detail::Text(text)])
        }
        _ => change,
    }
}

/// Contents that do not have the recorded digest are not compared.
fn fetch(contents: &dyn Contents, component: &Component) -> Option<Vec<u8>> {
    if component.size > MAX_COMPARED_BYTES {
        return None;
    }
    let bytes = contents.read(component)?;
    (crate::digest::Digest::of(&bytes) == component.digest).then_some(bytes)
}

fn structured(change: Change, component: &Component, old: &Value, new: &Value) -> Change {
    if old == new {
        return Change {
            bump: Bump::Patch,
            risk: Risk::Operational,
            reason: "written differently, says the same".to_owned(),
            ..change
        };
    }
    if component.path.file_name() == "tokenizer.json" && component.kind == ComponentKind::Tokenizer
    {
        return tokenizer(change, old, new);
    }
    let mut details = Vec::new();
    values("", old, new, &mut details);
    let keys: BTreeSet<String> = details.iter().filter_map(top_key).collect();
    match component.kind {
        ComponentKind::Generation => generation(change, &keys).with(details),
        ComponentKind::ModelConfig if component.path.as_str() == "model/config.json" => {
            model_config(change, &keys, old, new).with(details)
        }
        _ => change.with(details),
    }
}

/// The first key on the way to a value.
fn top_key(detail: &Detail) -> Option<String> {
    let Detail::Value { at, .. } = detail else {
        return None;
    };
    Some(at.trim_start_matches('/').split('/').next()?.to_owned())
}

/// Collects differing leaves. The recursion is as deep as the JSON, which the parser bounds.
fn values(at: &str, old: &Value, new: &Value, details: &mut Vec<Detail>) {
    let detail = |at: String, old: Option<&Value>, new: Option<&Value>| {
        let text = |v: &Value| clip(&v.to_string()).to_owned();
        Detail::Value {
            at,
            old: old.map(text),
            new: new.map(text),
        }
    };
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let at = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
                match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => values(&at, a, b, details),
                    (a, b) => details.push(detail(at, a, b)),
                }
            }
        }
        // What stands at the same place from either end is the same; the rest is paired up in order.
        (Value::Array(a), Value::Array(b)) => {
            let same = |pairs: &mut dyn Iterator<Item = (&Value, &Value)>| {
                pairs.take_while(|(a, b)| a == b).count()
            };
            let head = same(&mut a.iter().zip(b));
            let (a, b) = (&a[head..], &b[head..]);
            let tail = same(&mut a.iter().rev().zip(b.iter().rev()));
            let (a, b) = (&a[..a.len() - tail], &b[..b.len() - tail]);
            for n in 0..a.len().max(b.len()) {
                let at = format!("{at}/{}", head + n);
                match (a.get(n), b.get(n)) {
                    (Some(a), Some(b)) => values(&at, a, b, details),
                    (a, b) => details.push(detail(at, a, b)),
                }
            }
        }
        (a, b) if a != b => details.push(detail(at.to_owned(), Some(a), Some(b))),
        _ => {}
    }
}

/// Parameters that say where a reply ends are part of the interface, the others are tuning.
fn generation(change: Change, keys: &BTreeSet<String>) -> Change {
    const STOPS: [&str; 6] = [
        "eos_token_id",
        "stop",
        "stop_strings",
        "stop_token_ids",
        "stop_sequences",
        "bos_token_id",
    ];
    const LABELS: [&str; 2] = ["transformers_version", "_from_model_config"];
    if keys.iter().any(|k| STOPS.contains(&k.as_str())) {
        return Change {
            bump: Bump::Major,
            risk: Risk::Interface,
            reason: "replies end elsewhere".to_owned(),
            ..change
        };
    }
    if keys.iter().all(|k| LABELS.contains(&k.as_str())) {
        return Change {
            risk: Risk::Operational,
            reason: "labels differ".to_owned(),
            ..change
        };
    }
    change
}

/// What a changed key of a model's configuration means: labels nothing, numeric formats a requantisation, everything
/// else another architecture, unless only longer contexts fit.
fn model_config(change: Change, keys: &BTreeSet<String>, old: &Value, new: &Value) -> Change {
    const LABELS: [&str; 3] = ["transformers_version", "_name_or_path", "use_cache"];
    const FORMATS: [&str; 3] = ["torch_dtype", "dtype", "quantization_config"];
    let mut verdict = (Bump::Patch, Risk::Operational, "labels differ");
    for key in keys {
        let this = match key.as_str() {
            k if LABELS.contains(&k) => (Bump::Patch, Risk::Operational, "labels differ"),
            k if FORMATS.contains(&k) => (
                Bump::Minor,
                Risk::Behavioural,
                "another number format: requantised",
            ),
            "max_position_embeddings" => {
                let length = |v: &Value| v.get("max_position_embeddings").and_then(Value::as_u64);
                match (length(old), length(new)) {
                    (Some(a), Some(b)) if b > a => {
                        (Bump::Minor, Risk::Behavioural, "longer contexts fit")
                    }
                    _ => (
                        Bump::Major,
                        Risk::Interface,
                        "long conversations no longer fit",
                    ),
                }
            }
            "eos_token_id" | "bos_token_id" | "pad_token_id" => (
                Bump::Major,
                Risk::Interface,
                "replies begin or end elsewhere",
            ),
            _ => (
                Bump::Major,
                Risk::Interface,
                "another architecture or shape",
            ),
        };
        if (this.0, this.1) > (verdict.0, verdict.1) {
            verdict = this;
        }
    }
    Change {
        bump: verdict.0,
        risk: verdict.1,
        reason: verdict.2.to_owned(),
        ..change
    }
}

/// What a `tokenizer.json` does: vocabulary, merges, added tokens; the rest of its pipeline by value.
fn tokenizer(change: Change, old: &Value, new: &Value) -> Change {
    let mut details = Vec::new();
    let (before, after) = (vocabulary(old), vocabulary(new));
    let mut counts = [("gone", 0_usize), ("new", 0), ("moved to another id", 0)];
    let mut samples: [Vec<String>; 3] = [Vec::new(), Vec::new(), Vec::new()];
    let mut note = |which: usize, token: &str| {
        counts[which].1 += 1;
        if samples[which].len() < 5 {
            samples[which].push(format!("{:?}", clip(token)));
        }
    };
    for (token, id) in &before {
        match after.get(token) {
            None => note(0, token),
            Some(other) if other != id => note(2, token),
            Some(_) => {}
        }
    }
    after
        .keys()
        .filter(|t| !before.contains_key(*t))
        .for_each(|t| note(1, t));
    for ((words, count), sample) in counts.iter().zip(&samples).filter(|((_, n), _)| *n > 0) {
        details.push(Detail::Note(format!(
            "{count} tokens are {words}, such as {}",
            sample.join(", ")
        )));
    }
    if old.pointer("/model/merges") != new.pointer("/model/merges") {
        details.push(Detail::Note("the merges differ".to_owned()));
    }
    let (special_before, special_after) = (special(old), special(new));
    for (token, id) in special_before.difference(&special_after) {
        details.push(Detail::Note(format!(
            "special token {token:?} = {id} is gone or moved"
        )));
    }
    for (token, id) in special_after.difference(&special_before) {
        details.push(Detail::Note(format!(
            "special token {token:?} = {id} is new or moved"
        )));
    }
    for stage in [
        "normalizer",
        "pre_tokenizer",
        "post_processor",
        "decoder",
        "truncation",
        "padding",
    ] {
        if old.get(stage) != new.get(stage) {
            details.push(Detail::Note(format!("the {stage} differs")));
        }
    }
    let reason = if details.is_empty() {
        details.push(Detail::Note(
            "settings of the model or of added tokens differ".to_owned(),
        ));
        "the tokenizer's settings differ".to_owned()
    } else {
        "token ids differ for the same text".to_owned()
    };
    Change { reason, ..change }.with(details)
}

/// Tokens and ids, from a map (BPE, `WordPiece`) or a list of pairs (Unigram).
fn vocabulary(tokenizer: &Value) -> BTreeMap<&str, u64> {
    match tokenizer.pointer("/model/vocab") {
        Some(Value::Object(map)) => map
            .iter()
            .filter_map(|(token, id)| Some((token.as_str(), id.as_u64()?)))
            .collect(),
        Some(Value::Array(list)) => list
            .iter()
            .zip(0..)
            .filter_map(|(pair, id)| Some((pair.get(0)?.as_str()?, id)))
            .collect(),
        _ => BTreeMap::new(),
    }
}

fn special(tokenizer: &Value) -> BTreeSet<(&str, u64)> {
    let added = tokenizer.get("added_tokens").and_then(Value::as_array);
    added
        .into_iter()
        .flatten()
        .filter(|t| t.get("special").and_then(Value::as_bool) == Some(true))
        .filter_map(|t| Some((t.get("content")?.as_str()?, t.get("id")?.as_u64()?)))
        .collect()
}
