//! Dependencies, licences and lineage.

use std::collections::BTreeMap;

use super::{Action, Change, Detail, Risk, Subject};
use crate::lineage::{BaseModel, Licence};
use crate::manifest::Manifest;
use crate::version::Bump;

pub(super) fn compare(old: &Manifest, new: &Manifest, changes: &mut Vec<Change>) {
    dependencies(old.dependencies(), new.dependencies(), changes);
    licences(old, new, changes);
    base_model(old, new, changes);
}

fn dependencies(
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
    changes: &mut Vec<Change>,
) {
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let subject = Subject::Dependency(name.clone());
        changes.extend(match (old.get(name), new.get(name)) {
            (Some(a), Some(b)) if a != b => {
                let (bump, words) = dependency_step(a, b);
                Some(
                    Change::new(subject, Action::Modified, bump, Risk::Operational, words)
                        .with(vec![value(name, Some(a), Some(b))]),
                )
            }
            (Some(a), None) => Some(
                Change::new(
                    subject,
                    Action::Removed,
                    Bump::Minor,
                    Risk::Operational,
                    "a dependency is gone",
                )
                .with(vec![value(name, Some(a), None)]),
            ),
            (None, Some(b)) => Some(
                Change::new(
                    subject,
                    Action::Added,
                    Bump::Minor,
                    Risk::Operational,
                    "a new dependency",
                )
                .with(vec![value(name, None, Some(b))]),
            ),
            _ => None,
        });
    }
}

fn value(at: &str, old: Option<&String>, new: Option<&String>) -> Detail {
    Detail::Value {
        at: at.to_owned(),
        old: old.cloned(),
        new: new.cloned(),
    }
}

/// The leading numbers of a version, whatever follows them.
fn numbers(version: &str) -> Option<Vec<u64>> {
    let numeric = version.trim_start_matches(['v', '=']);
    let end = numeric.find(|c: char| !c.is_ascii_digit() && c != '.');
    let numbers: Option<Vec<u64>> = numeric[..end.unwrap_or(numeric.len())]
        .trim_end_matches('.')
        .split('.')
        .map(|n| n.parse().ok())
        .collect();
    numbers.filter(|n| !n.is_empty())
}

/// In a version 0.x the second number plays the part of the first.
fn dependency_step(old: &str, new: &str) -> (Bump, &'static str) {
    let (Some(a), Some(b)) = (numbers(old), numbers(new)) else {
        return (Bump::Major, "versions that cannot be compared");
    };
    let part = |v: &[u64], n: usize| v.get(n).copied().unwrap_or(0);
    let differs = |n| part(&a, n) != part(&b, n);
    if differs(0) {
        (Bump::Major, "another major version")
    } else if differs(1) && part(&a, 0) == 0 {
        (
            Bump::Major,
            "another minor version below 1.0, which may break",
        )
    } else if differs(1) {
        (Bump::Minor, "another minor version")
    } else {
        (Bump::Patch, "another patch version")
    }
}

/// How much a licence demands: permissive, weak copyleft, strong copyleft, network copyleft, restricted or unknown.
fn strictness(id: &str) -> u8 {
    let id = id.to_ascii_uppercase();
    let any = |prefixes: &[&str]| prefixes.iter().any(|p| id.starts_with(p));
    if id.contains("-NC") || id.contains("-ND") {
        4
    } else if any(&[
        "MIT",
        "APACHE-",
        "BSD-",
        "ISC",
        "CC0-",
        "CC-BY-4",
        "CC-BY-3",
        "UNLICENSE",
        "ZLIB",
        "0BSD",
        "CDLA-PERMISSIVE",
    ]) {
        0
    } else if any(&["LGPL-", "MPL-", "EPL-", "CDDL-"]) {
        1
    } else if any(&["GPL-", "CC-BY-SA-"]) {
        2
    } else if any(&["AGPL-", "SSPL-"]) {
        3
    } else {
        4
    }
}

fn licences(old: &Manifest, new: &Manifest, changes: &mut Vec<Change>) {
    if old.licences() == new.licences() {
        return;
    }
    let known = |l: &Licence| {
        old.licences()
            .iter()
            .any(|o| o.id == l.id && o.scope == l.scope)
    };
    let strictest = |m: &Manifest, scope: &str| {
        let of_scope = m.licences().iter().filter(|l| l.scope == scope);
        of_scope.map(|l| strictness(&l.id)).max()
    };
    let stricter: Vec<&Licence> = new
        .licences()
        .iter()
        .filter(|l| !known(l))
        .filter(|l| strictest(old, &l.scope).is_none_or(|before| strictness(&l.id) > before))
        // A first statement of a permissive licence takes nothing away.
        .filter(|l| strictness(&l.id) > 0)
        .collect();
    let details = new
        .licences()
        .symmetric_difference(old.licences())
        .map(|l| {
            let sign = if new.licences().contains(l) {
                "now"
            } else {
                "no longer"
            };
            let scope = if l.scope.is_empty() {
                "everything"
            } else {
                &l.scope
            };
            Detail::Note(format!("{sign} {} for {scope}", l.id))
        })
        .collect();
    let (bump, words) = match stricter.first() {
        Some(licence) => (
            Bump::Major,
            format!("{} demands more than before, or is not known", licence.id),
        ),
        None => (Bump::None, "no stricter than before".to_owned()),
    };
    changes.push(
        Change::new(Subject::Licences, Action::Modified, bump, Risk::None, words).with(details),
    );
}

fn base_model(old: &Manifest, new: &Manifest, changes: &mut Vec<Change>) {
    let (before, after) = (&old.lineage().base_model, &new.lineage().base_model);
    if before == after {
        return;
    }
    let subject = Subject::Lineage("base_model".to_owned());
    let words = |model: &Option<BaseModel>| {
        model.as_ref().map(|m| match &m.revision {
            Some(revision) => format!("{}@{revision}", m.name),
            None => m.name.clone(),
        })
    };
    let detail = Detail::Value {
        at: "base_model".to_owned(),
        old: words(before),
        new: words(after),
    };
    let change = match (before, after) {
        (None, _) => Change::new(
            subject,
            Action::Added,
            Bump::None,
            Risk::None,
            "the base model is now stated",
        ),
        (_, None) => Change::new(
            subject,
            Action::Removed,
            Bump::None,
            Risk::None,
            "the base model is no longer stated",
        ),
        (Some(a), Some(b))
            if a.name == b.name
                && (a.digest.is_none() || b.digest.is_none() || a.digest == b.digest)
                && (a.revision.is_none() || b.revision.is_none() || a.revision == b.revision) =>
        {
            Change::new(
                subject,
                Action::Modified,
                Bump::None,
                Risk::None,
                "the base model is stated more or less exactly",
            )
        }
        (Some(_), Some(_)) => Change::new(
            subject,
            Action::Modified,
            Bump::Major,
            Risk::Interface,
            "another base model",
        ),
    };
    changes.push(change.with(vec![detail]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependency_steps() {
        for (old, new, bump) in [
            ("1.2.3", "1.2.4", Bump::Patch),
            ("1.2.3", "1.3.0", Bump::Minor),
            ("1.2.3", "2.0.0", Bump::Major),
            ("0.9.1", "0.10.0", Bump::Major),
            ("0.9.1", "0.9.2", Bump::Patch),
            ("v2.7", "2.7.0+cu128", Bump::Patch),
            ("main", "1.0", Bump::Major),
            ("", ".", Bump::Major),
        ] {
            assert_eq!(dependency_step(old, new).0, bump, "{old} -> {new}");
        }
    }

    #[test]
    fn licences_are_ranked() {
        let ranks = [
            "MIT",
            "MPL-2.0",
            "GPL-3.0-only",
            "AGPL-3.0-only",
            "LicenseRef-llama3",
        ]
        .map(strictness);
        assert_eq!(ranks, [0, 1, 2, 3, 4]);
        assert_eq!(strictness("CC-BY-NC-4.0"), 4);
        assert_eq!(strictness("CC-BY-SA-4.0"), 2);
    }
}
