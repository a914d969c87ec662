//! The interface contract, field by field.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

use super::{Action, Change, Detail, Risk, Subject};
use crate::contract::{Contract, OutputField, OutputSchema};
use crate::version::Bump;

/// Compares two contracts. A field that was not stated before, and is now, breaks nothing.
pub(super) fn compare(old: &Contract, new: &Contract, changes: &mut Vec<Change>) {
    let mut push = |name: &str, verdict: Option<(Action, Bump, String)>, details: Vec<Detail>| {
        changes.extend(verdict.map(|(action, bump, reason)| {
            let risk = match bump {
                Bump::Major => Risk::Interface,
                Bump::Minor => Risk::Behavioural,
                _ => Risk::Operational,
            };
            Change::new(
                Subject::Contract(name.to_owned()),
                action,
                bump,
                risk,
                reason,
            )
            .with(details)
        }));
    };
    push(
        "adapter_base",
        stated(
            old.adapter_base.as_ref(),
            new.adapter_base.as_ref(),
            "adapters need another base model",
        ),
        both(&old.adapter_base, &new.adapter_base),
    );
    push(
        "api",
        stated(
            old.api.as_ref(),
            new.api.as_ref(),
            "callers use another API",
        ),
        both(&old.api, &new.api),
    );
    // The text of the template is a file; what callers see is how probes render.
    let template = if !old.probes.is_empty() && old.probes == new.probes {
        stated(old.chat_template.as_ref(), new.chat_template.as_ref(), "").map(|(action, ..)| {
            (
                action,
                Bump::Patch,
                "the template's text differs, its rendered probes do not".to_owned(),
            )
        })
    } else {
        stated(
            old.chat_template.as_ref(),
            new.chat_template.as_ref(),
            "the conversation format may differ",
        )
    };
    push(
        "chat_template",
        template,
        both(&old.chat_template, &new.chat_template),
    );
    push(
        "context_length",
        context(old.context_length, new.context_length),
        both(&old.context_length, &new.context_length),
    );
    push(
        "embedding_space",
        stated(
            old.embedding_space.as_ref(),
            new.embedding_space.as_ref(),
            "stored vectors cannot be compared with new ones",
        ),
        both(&old.embedding_space, &new.embedding_space),
    );
    push(
        "languages",
        sets(
            &old.languages,
            &new.languages,
            "languages are gone",
            "languages are new",
        ),
        set_details(&old.languages, &new.languages),
    );
    push(
        "modalities",
        sets(
            &old.modalities,
            &new.modalities,
            "modalities are gone",
            "modalities are new",
        ),
        set_details(&old.modalities, &new.modalities),
    );
    let (verdict, details) = schema(old.output_schema.as_ref(), new.output_schema.as_ref());
    push("output_schema", verdict, details);
    let probes: Vec<Detail> = old
        .probes
        .iter()
        .filter(|(name, digest)| new.probes.get(*name).is_some_and(|d| d != *digest))
        .map(|(name, _)| Detail::Note(format!("probe {name} renders differently")))
        .collect();
    let rendered = (!probes.is_empty()).then(|| {
        (
            Action::Modified,
            Bump::Major,
            "conversations render differently".to_owned(),
        )
    });
    push("probes", rendered, probes);
    let runtime = (old.runtime != new.runtime).then(|| {
        (
            Action::Modified,
            Bump::Minor,
            "it needs other runtimes".to_owned(),
        )
    });
    push("runtime", runtime, both(&old.runtime, &new.runtime));
    let stops = (old.stop_tokens != new.stop_tokens && !old.stop_tokens.is_empty()).then(|| {
        (
            Action::Modified,
            Bump::Major,
            "replies end elsewhere".to_owned(),
        )
    });
    push(
        "stop_tokens",
        stops,
        set_details(&old.stop_tokens, &new.stop_tokens),
    );
    push(
        "tokenizer",
        stated(
            old.tokenizer.as_ref(),
            new.tokenizer.as_ref(),
            "token ids may differ",
        ),
        tokenizer(old, new),
    );
    push(
        "tool_format",
        stated(
            old.tool_format.as_ref(),
            new.tool_format.as_ref(),
            "tool calls have another format",
        ),
        both(&old.tool_format, &new.tool_format),
    );
}

fn stated<T: PartialEq>(
    old: Option<&T>,
    new: Option<&T>,
    words: &str,
) -> Option<(Action, Bump, String)> {
    match (old, new) {
        (Some(a), Some(b)) if a != b => Some((Action::Modified, Bump::Major, words.to_owned())),
        (Some(_), None) => Some((
            Action::Removed,
            Bump::Major,
            "no longer promised".to_owned(),
        )),
        (None, Some(_)) => Some((
            Action::Added,
            Bump::Patch,
            "promised for the first time".to_owned(),
        )),
        _ => None,
    }
}

fn both<T: Serialize>(old: &T, new: &T) -> Vec<Detail> {
    vec![Detail::Note(format!("{} -> {}", words(old), words(new)))]
}

/// A value of the contract as a person writes it: texts in quotes, numbers bare, what is absent in words.
fn words<T: Serialize>(value: &T) -> String {
    fn of(value: &Value) -> String {
        match value {
            Value::Null => "not stated".to_owned(),
            Value::Object(fields) if fields.is_empty() => "nothing".to_owned(),
            Value::Object(fields) => {
                let parts = fields.iter().map(|(name, v)| format!("{name} {}", of(v)));
                parts.collect::<Vec<_>>().join(", ")
            }
            other => other.to_string(),
        }
    }
    // Texts, integers and maps with text keys become values without failing.
    of(&serde_json::to_value(value).unwrap_or_default())
}

fn context(old: Option<u64>, new: Option<u64>) -> Option<(Action, Bump, String)> {
    match (old, new) {
        (Some(a), Some(b)) if b > a => Some((
            Action::Modified,
            Bump::Minor,
            "longer contexts fit".to_owned(),
        )),
        _ => stated(
            old.as_ref(),
            new.as_ref(),
            "long conversations no longer fit",
        ),
    }
}

fn sets(
    old: &BTreeSet<String>,
    new: &BTreeSet<String>,
    gone: &str,
    fresh: &str,
) -> Option<(Action, Bump, String)> {
    if !old.is_subset(new) {
        return Some((Action::Removed, Bump::Major, gone.to_owned()));
    }
    (old != new).then(|| {
        let bump = if old.is_empty() {
            Bump::Patch
        } else {
            Bump::Minor
        };
        (Action::Added, bump, fresh.to_owned())
    })
}

fn set_details(old: &BTreeSet<String>, new: &BTreeSet<String>) -> Vec<Detail> {
    let gone = old
        .difference(new)
        .map(|x| Detail::Note(format!("- {x:?}")));
    gone.chain(
        new.difference(old)
            .map(|x| Detail::Note(format!("+ {x:?}"))),
    )
    .collect()
}

fn tokenizer(old: &Contract, new: &Contract) -> Vec<Detail> {
    let (Some(a), Some(b)) = (&old.tokenizer, &new.tokenizer) else {
        return Vec::new();
    };
    let mut details = Vec::new();
    if a.vocabulary_size != b.vocabulary_size {
        details.push(Detail::Note(format!(
            "tokens in the vocabulary: {} -> {}",
            words(&a.vocabulary_size),
            words(&b.vocabulary_size)
        )));
    }
    details.extend(
        a.special
            .difference(&b.special)
            .map(|t| Detail::Note(format!("- {:?} = {}", t.token, t.id))),
    );
    details.extend(
        b.special
            .difference(&a.special)
            .map(|t| Detail::Note(format!("+ {:?} = {}", t.token, t.id))),
    );
    details
}

type Verdict = (Option<(Action, Bump, String)>, Vec<Detail>);

/// A field that is gone, no longer always there, or can take a type that callers do not expect, breaks them.
fn schema(old: Option<&OutputSchema>, new: Option<&OutputSchema>) -> Verdict {
    let (Some(a), Some(b)) = (old, new) else {
        return (stated(old, new, ""), Vec::new());
    };
    if a == b {
        return (None, Vec::new());
    }
    if a.fields.is_empty() || b.fields.is_empty() {
        let words = "another schema, whose fields are not stated".to_owned();
        return (
            Some((Action::Modified, Bump::Major, words)),
            both(&a.version, &b.version),
        );
    }
    let find = |s: &OutputSchema, name: &str| s.fields.iter().find(|f| f.name == name).cloned();
    let (mut breaks, mut details) = (false, Vec::new());
    for field in &a.fields {
        let other = find(b, &field.name);
        if let Some(words) = breaking(field, other.as_ref()) {
            breaks = true;
            details.push(Detail::Note(format!("field {} {words}", field.name)));
        } else if other.as_ref() != Some(field) {
            details.push(Detail::Note(format!(
                "field {} is promised more exactly",
                field.name
            )));
        }
    }
    for field in b.fields.iter().filter(|f| find(a, &f.name).is_none()) {
        details.push(Detail::Note(format!("field {} is new", field.name)));
    }
    let verdict = if breaks {
        (Bump::Major, "callers that read the old replies break")
    } else if details.is_empty() {
        (Bump::Patch, "the schema's text differs, its fields do not")
    } else {
        (Bump::Minor, "replies say more, or more exactly")
    };
    (
        Some((Action::Modified, verdict.0, verdict.1.to_owned())),
        details,
    )
}

fn breaking(old: &OutputField, new: Option<&OutputField>) -> Option<String> {
    let Some(new) = new else {
        return Some("is gone".to_owned());
    };
    if old.required && !new.required {
        return Some("is no longer always there".to_owned());
    }
    let fresh: Vec<&str> = new
        .types
        .difference(&old.types)
        .map(String::as_str)
        .collect();
    (!fresh.is_empty() && !old.types.is_empty()).then(|| format!("can now be {}", fresh.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::EmbeddingSpace;

    #[test]
    fn values_are_words() {
        let details = |change: &dyn Fn(&mut Contract, &mut Contract)| {
            let (mut old, mut new, mut changes) =
                (Contract::default(), Contract::default(), Vec::new());
            change(&mut old, &mut new);
            compare(&old, &new, &mut changes);
            let details = changes.iter().flat_map(|c| &c.details);
            details.map(ToString::to_string).collect::<Vec<_>>()
        };
        let context =
            details(&|a, b| (a.context_length, b.context_length) = (Some(320), Some(182)));
        assert_eq!(context, ["320 -> 182"]);
        let api = details(&|a, _| a.api = Some("openai-chat/v1".into()));
        assert_eq!(api, ["\"openai-chat/v1\" -> not stated"]);
        let space = details(&|_, b| b.embedding_space = Some(EmbeddingSpace::new("one", 8)));
        assert_eq!(space, ["not stated -> dimensions 8, id \"one\""]);
        let runtime = details(&|a, _| {
            a.runtime.insert("vllm".into(), ">=0.9".into());
        });
        assert_eq!(runtime, ["vllm \">=0.9\" -> nothing"]);
    }
}
