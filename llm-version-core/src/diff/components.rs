//! Files: a walk over two lists that are ordered by path.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::{Action, Both, Change, Risk, Subject, content};
use crate::kind::ComponentKind;
use crate::manifest::{Component, Manifest};
use crate::version::Bump;

/// Compares the files of two manifests, but for kinds that are `covered` already.
pub(super) fn compare(
    old: &Manifest,
    new: &Manifest,
    covered: &BTreeSet<ComponentKind>,
    contents: Both<'_>,
    changes: &mut Vec<Change>,
) {
    let same_probes =
        !old.contract().probes.is_empty() && old.contract().probes == new.contract().probes;
    let (mut before, mut after) = (
        old.components().iter().peekable(),
        new.components().iter().peekable(),
    );
    loop {
        let order = match (before.peek(), after.peek()) {
            (Some(a), Some(b)) => a.path.cmp(&b.path),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return,
        };
        let change = match order {
            Ordering::Less => before.next().map(|c| one_sided(c, Action::Removed)),
            Ordering::Greater => after.next().map(|c| one_sided(c, Action::Added)),
            Ordering::Equal => match (before.next(), after.next()) {
                (Some(a), Some(b)) if (a.digest, a.kind) != (b.digest, b.kind) => {
                    Some(modified(a, b, contents, same_probes))
                }
                _ => None,
            },
        };
        changes.extend(change.filter(|c| !is_covered(c, covered)));
    }
}

fn is_covered(change: &Change, covered: &BTreeSet<ComponentKind>) -> bool {
    match &change.subject {
        Subject::Component { kind, .. } => {
            let index =
                *kind == ComponentKind::WeightsIndex && covered.contains(&ComponentKind::Weights);
            index || covered.contains(kind)
        }
        _ => false,
    }
}

fn subject(component: &Component) -> Subject {
    Subject::Component {
        kind: component.kind,
        path: component.path.clone(),
    }
}

fn one_sided(component: &Component, action: Action) -> Change {
    let (bump, risk, reason) = weigh(component.kind);
    Change::new(subject(component), action, bump, risk, reason)
}

fn modified(old: &Component, new: &Component, contents: Both<'_>, same_probes: bool) -> Change {
    let (bump, risk, reason) = weigh(new.kind);
    let plain = Change::new(subject(new), Action::Modified, bump, risk, reason);
    if old.kind != new.kind {
        let (bump_old, risk_old, _) = weigh(old.kind);
        return Change {
            bump: bump.max(bump_old),
            risk: risk.max(risk_old),
            reason: format!("was {}, is {}", old.kind, new.kind),
            ..plain
        };
    }
    if new.kind == ComponentKind::ChatTemplate && same_probes {
        return Change {
            bump: Bump::Patch,
            risk: Risk::Behavioural,
            reason: "the template's text differs, its rendered probes do not".to_owned(),
            ..content::refine(plain, old, new, contents)
        };
    }
    content::refine(plain, old, new, contents)
}

/// What a change to a component of this kind means when nothing more is known.
const fn weigh(kind: ComponentKind) -> (Bump, Risk, &'static str) {
    match kind {
        ComponentKind::ModelConfig => (
            Bump::Major,
            Risk::Interface,
            "architecture or shape may differ",
        ),
        ComponentKind::Tokenizer => (Bump::Major, Risk::Interface, "token ids may differ"),
        ComponentKind::ChatTemplate => (
            Bump::Major,
            Risk::Interface,
            "the conversation format may differ",
        ),
        ComponentKind::Code => (Bump::Major, Risk::Interface, "model code may do anything"),
        ComponentKind::Weights | ComponentKind::WeightsIndex => {
            (Bump::Minor, Risk::Behavioural, "the weights differ")
        }
        ComponentKind::Adapter => (Bump::Minor, Risk::Behavioural, "the adapters differ"),
        ComponentKind::Prompt => (Bump::Minor, Risk::Behavioural, "the prompt differs"),
        ComponentKind::FewShot => (Bump::Minor, Risk::Behavioural, "the examples differ"),
        ComponentKind::Safety => (
            Bump::Minor,
            Risk::Safety,
            "the guardrails differ; loosening them needs approval",
        ),
        ComponentKind::Other => (
            Bump::Minor,
            Risk::Behavioural,
            "a file of unknown purpose differs",
        ),
        ComponentKind::Generation => (Bump::Patch, Risk::Behavioural, "sampling parameters differ"),
        ComponentKind::Routing => (Bump::Patch, Risk::Operational, "routing rules differ"),
        ComponentKind::Dependencies => (
            Bump::Patch,
            Risk::Operational,
            "the file of dependency versions differs",
        ),
    }
}
