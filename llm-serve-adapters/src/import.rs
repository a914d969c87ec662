//! Plans from the files of other tools, with notes on what does not carry over.
//!
//! [`argo`] reads an Argo Rollouts `Rollout` with its `AnalysisTemplate`s, [`flagger`] a Flagger `Canary` with its
//! `MetricTemplate`s, [`sagemaker`] the deployment configuration of Amazon `SageMaker`, each as YAML or JSON. What comes out is a
//! valid [`Plan`] to print, review and change; nothing is contacted and no query is run. A field that has no counterpart is named
//! in a note: nothing is dropped silently.
//!
//! ```
//! let imported = llm_serve_adapters::import::argo(r#"
//! apiVersion: argoproj.io/v1alpha1
//! kind: Rollout
//! metadata: { name: chat }
//! spec:
//!   strategy:
//!     canary:
//!       steps:
//!       - setWeight: 5
//!       - pause: { duration: 1h }
//!       - setWeight: 50
//!       - pause: {}
//! "#)?;
//! assert_eq!(imported.plan.stages().len(), 2);
//! assert!(imported.notes.iter().any(|n| n.text.contains("no gate")));
//! # Ok::<(), llm_serve_adapters::import::ImportError>(())
//! ```

mod argo;
mod document;
mod flagger;
mod metric;
mod sagemaker;

pub use argo::argo;
pub use flagger::flagger;
pub use sagemaker::sagemaker;

use document::Node;
use llm_rollout::presets::sagemaker::Refused;
use llm_rollout::{Plan, PlanError};
use std::fmt;

/// A plan, and what a person should know before using it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Imported {
    /// The plan.
    pub plan: Plan,
    /// What was taken over differently, and what was not taken over at all, in the order of the file.
    pub notes: Vec<Note>,
}

/// One difference between a file and the plan made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Note {
    /// The field, such as `spec.strategy.canary.steps[2]`; empty where it is about the whole.
    pub place: String,
    /// What became of it.
    pub carried: Carried,
    /// In words.
    pub text: String,
}

/// What became of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Carried {
    /// It is in the plan, but means something else there: read the text.
    Differently,
    /// It is not in the plan.
    Not,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let carried = match self.carried {
            Carried::Differently => "differs",
            Carried::Not => "left out",
        };
        let place = if self.place.is_empty() {
            "the whole"
        } else {
            &self.place
        };
        write!(f, "{carried}: {place}: {}", self.text)
    }
}

/// Why a file makes no plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// It is neither YAML nor JSON.
    #[error("it cannot be read as YAML or JSON: {0}")]
    Syntax(String),
    /// It is larger than such a file can be.
    #[error("it has {bytes} bytes: at most 1 MiB is read")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Nothing in it is what the importer reads.
    #[error("it holds {found}: there must be {wanted}")]
    Nothing {
        /// What would be read.
        wanted: &'static str,
        /// What is there.
        found: String,
    },
    /// A field that has to be there is not.
    #[error("`{place}` is missing")]
    Missing {
        /// Its place.
        place: String,
    },
    /// A field holds something else than it should.
    #[error("`{place}` is {found}: it must be {expected}")]
    Value {
        /// Its place.
        place: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// It names something that is not in the file.
    #[error(
        "`{place}` names the {what} `{name}`, which is not in the file: put it into the same file, after a line `---`"
    )]
    Dangling {
        /// Where it is named.
        place: String,
        /// What it is.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A limit of the platform itself.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// What it says makes no plan.
    #[error("what it says makes no plan: {0}")]
    Plan(#[from] PlanError),
}

/// The notes of one import.
#[derive(Debug, Default)]
struct Notes(Vec<Note>);

impl Notes {
    fn differs(&mut self, node: &Node<'_>, text: impl Into<String>) {
        self.add(node.place(), Carried::Differently, text);
    }

    /// Notes that it is left out, and that nobody needs to say so again.
    fn left(&mut self, node: &Node<'_>, text: impl Into<String>) {
        node.seen();
        self.add(node.place(), Carried::Not, text);
    }

    /// As [`Notes::left`], where the field is there.
    fn left_if(&mut self, node: &Node<'_>, key: &str, text: &str) {
        if let Some(node) = node.get(key) {
            self.left(&node, text);
        }
    }

    fn add(&mut self, place: &str, carried: Carried, text: impl Into<String>) {
        self.0.push(Note {
            place: place.to_owned(),
            carried,
            text: text.into(),
        });
    }

    /// Everything in a document that nobody has read.
    fn unread(&mut self, root: &Node<'_>) {
        for place in root.unread() {
            self.add(
                &place,
                Carried::Not,
                "has no counterpart in a plan, or nothing uses it",
            );
        }
    }
}
