//! What changed between two versions, the least bump that this requires, and the risk, which is another matter.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::VersionId;
use crate::kind::ComponentKind;
use crate::manifest::{Component, Manifest};
use crate::path::ComponentPath;
use crate::version::Bump;

/// Which gates a change should have to pass: separate from the bump, since a patch to a prompt can change behaviour as
/// much as a new model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Risk {
    /// Nothing that determines behaviour changed.
    None,
    /// Where and on what it runs changed: routing, dependencies, a repack of the same tensors.
    Operational,
    /// Replies can change: weights, adapters, prompts, few-shot, sampling.
    Behavioural,
    /// Guardrails changed.
    Safety,
    /// Another model or another interface.
    Interface,
}

/// What happened to the subject of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Action {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It is another.
    Modified,
}

/// What a change is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Subject {
    /// A file.
    Component {
        /// What it is.
        kind: ComponentKind,
        /// Where it lies.
        path: ComponentPath,
    },
    /// A field of the interface contract.
    Contract(String),
    /// A dependency.
    Dependency(String),
    /// A field of the lineage.
    Lineage(String),
    /// The licences.
    Licences,
}

/// One thing that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Change {
    /// What it is about.
    pub subject: Subject,
    /// What happened to it.
    pub action: Action,
    /// The least bump that it requires.
    pub bump: Bump,
    /// Its risk.
    pub risk: Risk,
    /// Why, in words.
    pub reason: String,
}

/// Everything that changed between two versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Diff {
    /// The older version.
    pub old: VersionId,
    /// The newer version.
    pub new: VersionId,
    /// What changed, ordered by subject.
    pub changes: Vec<Change>,
}

impl Diff {
    /// The least bump that the changes require together.
    pub fn required(&self) -> Bump {
        self.changes
            .iter()
            .map(|c| c.bump)
            .max()
            .unwrap_or(Bump::None)
    }

    /// The bump between the two version numbers; `None` when the new number is smaller.
    pub fn declared(&self) -> Option<Bump> {
        self.old.version().step_to(&self.new.version())
    }

    /// Whether the version number moved at least as far as the changes require.
    pub fn bump_suffices(&self) -> bool {
        self.declared().is_some_and(|bump| bump >= self.required())
    }

    /// The highest risk among the changes.
    pub fn risk(&self) -> Risk {
        self.changes
            .iter()
            .map(|c| c.risk)
            .max()
            .unwrap_or(Risk::None)
    }

    /// The changes that require the bump.
    pub fn reasons(&self) -> impl Iterator<Item = &Change> {
        let required = self.required();
        self.changes
            .iter()
            .filter(move |c| c.bump == required && required > Bump::None)
    }
}

/// Compares two manifests.
///
/// ```
/// # use llm_version_core::{Bump, Component, ComponentKind, Digest, Draft, Name, Risk, Version, diff};
/// # let version = |version, prompt: &[u8]| {
/// #     let mut draft = Draft::new(Name::new("chat").unwrap(), version);
/// #     draft.components.push(Component::new(
/// #         "prompt/system.txt".parse().unwrap(), ComponentKind::Prompt, prompt.len() as u64, Digest::of(prompt),
/// #     ));
/// #     draft.finish().unwrap()
/// # };
/// let old = version(Version::new(1, 0, 0), b"Be brief.");
/// let new = version(Version::new(1, 0, 1), b"Be kind.");
/// let diff = diff(&old, &new);
/// assert_eq!(diff.required(), Bump::Minor);
/// assert_eq!(diff.risk(), Risk::Behavioural);
/// assert!(!diff.bump_suffices());
/// ```
pub fn diff(old: &Manifest, new: &Manifest) -> Diff {
    let mut changes = Vec::new();
    components(old, new, &mut changes);
    changes.sort_by(|a: &Change, b: &Change| a.subject.cmp(&b.subject));
    Diff {
        old: old.id().clone(),
        new: new.id().clone(),
        changes,
    }
}

fn components(old: &Manifest, new: &Manifest, changes: &mut Vec<Change>) {
    let by_path = |m: &'_ Manifest| -> BTreeMap<ComponentPath, Component> {
        m.components()
            .iter()
            .map(|c| (c.path.clone(), c.clone()))
            .collect()
    };
    let (before, after) = (by_path(old), by_path(new));
    let mut note = |component: &Component, action| {
        let (bump, risk, what) = weigh(component.kind);
        changes.push(Change {
            subject: Subject::Component {
                kind: component.kind,
                path: component.path.clone(),
            },
            action,
            bump,
            risk,
            reason: what.to_owned(),
        });
    };
    for (path, component) in &before {
        match after.get(path) {
            None => note(component, Action::Removed),
            Some(other) if (other.digest, other.kind) != (component.digest, component.kind) => {
                note(other, Action::Modified);
            }
            Some(_) => {}
        }
    }
    for (path, component) in &after {
        if !before.contains_key(path) {
            note(component, Action::Added);
        }
    }
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
        ComponentKind::Safety => (Bump::Minor, Risk::Safety, "the guardrails differ"),
        ComponentKind::Other => (
            Bump::Minor,
            Risk::Behavioural,
            "a file of unknown purpose differs",
        ),
        ComponentKind::Generation => (Bump::Patch, Risk::Behavioural, "sampling parameters differ"),
        ComponentKind::Routing => (Bump::Patch, Risk::Operational, "routing rules differ"),
        ComponentKind::Dependencies => {
            (Bump::Patch, Risk::Operational, "dependency versions differ")
        }
    }
}

impl fmt::Display for Risk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Operational => "operational",
            Self::Behavioural => "behavioural",
            Self::Safety => "safety",
            Self::Interface => "interface",
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Modified => "modified",
        })
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Component { path, .. } => path.fmt(f),
            Self::Contract(field) => write!(f, "contract.{field}"),
            Self::Dependency(name) => write!(f, "dependency {name}"),
            Self::Lineage(field) => write!(f, "lineage.{field}"),
            Self::Licences => f.write_str("licences"),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}: {} ({} bump, {} risk)",
            self.action, self.subject, self.reason, self.bump, self.risk
        )
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} -> {}", self.old.reference(), self.new.reference())?;
        if self.changes.is_empty() {
            return f.write_str("nothing that determines behaviour changed");
        }
        for change in &self.changes {
            writeln!(f, "  {change}")?;
        }
        write!(
            f,
            "required bump: {}, declared: {}; risk: {}",
            self.required(),
            self.declared()
                .map_or_else(|| "backwards".to_owned(), |b| b.to_string()),
            self.risk()
        )
    }
}
