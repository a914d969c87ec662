//! What changed between two versions, the least bump that this requires, and the risk, which is another matter.

mod components;
mod content;
mod contract;
mod facts;
mod tensors;

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use content::{Contents, MAX_COMPARED_BYTES};

use crate::id::VersionId;
use crate::kind::ComponentKind;
use crate::manifest::Manifest;
use crate::path::ComponentPath;
use crate::version::{Bump, Version};

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
    /// The tensors of all weights or adapters together, in whatever files they lie.
    Tensors(ComponentKind),
}

/// A part of a change: what exactly differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Detail {
    /// A value in a configuration.
    Value {
        /// Where, as a JSON pointer.
        at: String,
        /// The old value as JSON; `None` where it is new.
        old: Option<String>,
        /// The new value as JSON; `None` where it is gone.
        new: Option<String>,
    },
    /// A text, as a unified diff.
    Text(String),
    /// Anything else, in words.
    Note(String),
}

/// Details kept per change; what was left out is counted in a last note.
const MOST_DETAILS: usize = 50;

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
    /// What exactly differs, where contents were compared.
    pub details: Vec<Detail>,
}

impl Change {
    fn new(
        subject: Subject,
        action: Action,
        bump: Bump,
        risk: Risk,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            subject,
            action,
            bump,
            risk,
            reason: reason.into(),
            details: Vec::new(),
        }
    }

    fn with(mut self, mut details: Vec<Detail>) -> Self {
        let more = details.len().saturating_sub(MOST_DETAILS);
        details.truncate(MOST_DETAILS);
        if more > 0 {
            details.push(Detail::Note(format!("and {more} more")));
        }
        self.details = details;
        self
    }
}

/// The version number did not move as far as the changes require.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{old} -> {new} is {}, but the changes require {required}: {why}; the next version is {next}",
    declared.map_or_else(|| "a step back".to_owned(), |b| format!("a step of size `{b}`"))
)]
#[non_exhaustive]
pub struct BumpTooSmall {
    /// The older version.
    pub old: Version,
    /// The newer version.
    pub new: Version,
    /// The step between them; `None` when it goes back.
    pub declared: Option<Bump>,
    /// The step required.
    pub required: Bump,
    /// The first reason.
    pub why: String,
    /// The least version that suffices.
    pub next: String,
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
        self.check_bump().is_ok()
    }

    /// Refuses a version number that did not move as far as the changes require; moving further is allowed.
    ///
    /// # Errors
    /// Names the step required, the reason and the least version that suffices.
    pub fn check_bump(&self) -> Result<(), BumpTooSmall> {
        let (declared, required) = (self.declared(), self.required());
        if declared.is_some_and(|bump| bump >= required) {
            return Ok(());
        }
        let old = self.old.version();
        let why = self.reasons().next().map_or_else(
            || "versions only grow".to_owned(),
            |c| format!("{} {} ({})", c.subject, c.action, c.reason),
        );
        Err(BumpTooSmall {
            old,
            new: self.new.version(),
            declared,
            required,
            why,
            next: old
                .bumped(required)
                .map_or_else(|| "out of range".to_owned(), |v| v.to_string()),
        })
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
    compare(old, new, None)
}

/// Compares two manifests and the contents of small files that differ: configurations key by key, prompts as unified
/// diffs, tokenizers by vocabulary, merges and special tokens.
///
/// With contents the verdict is often milder than [`diff`] alone can give: a reformatted configuration is no new
/// architecture. A file that `old_contents` or `new_contents` cannot give is weighed as by [`diff`].
pub fn diff_contents(
    old: &Manifest,
    new: &Manifest,
    old_contents: &dyn Contents,
    new_contents: &dyn Contents,
) -> Diff {
    compare(old, new, Some((old_contents, new_contents)))
}

type Both<'a> = Option<(&'a dyn Contents, &'a dyn Contents)>;

fn compare(old: &Manifest, new: &Manifest, contents: Both<'_>) -> Diff {
    let mut changes = Vec::new();
    let covered = tensors::compare(old, new, &mut changes);
    components::compare(old, new, &covered, contents, &mut changes);
    contract::compare(old.contract(), new.contract(), &mut changes);
    facts::compare(old, new, &mut changes);
    changes.sort_by(|a, b| (&a.subject, a.action).cmp(&(&b.subject, b.action)));
    Diff {
        old: old.id().clone(),
        new: new.id().clone(),
        changes,
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
            Self::Tensors(kind) => write!(f, "{kind}"),
        }
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value { at, old, new } => write!(
                f,
                "{at}: {} -> {}",
                old.as_deref().unwrap_or("absent"),
                new.as_deref().unwrap_or("absent")
            ),
            Self::Text(text) | Self::Note(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}: {} ({} bump, {} risk)",
            self.action, self.subject, self.reason, self.bump, self.risk
        )?;
        self.details.iter().try_for_each(|detail| {
            let text = detail.to_string();
            text.lines()
                .try_for_each(|line| write!(f, "\n      {line}"))
        })
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
