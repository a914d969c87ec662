//! Whether going from one version to another is safe, and back again; if not, what must move with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use semver::VersionReq;
use serde::{Deserialize, Serialize};

use crate::contract::{Contract, EmbeddingSpace, OutputField};
use crate::digest::Digest;
use crate::id::VersionId;
use crate::kind::ComponentKind;
use crate::manifest::Manifest;
use crate::version::Version;

/// Whether a move from one version to another is safe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "hosts must handle every answer")]
pub enum Safety {
    /// Nothing needs to move with it.
    Safe,
    /// Safe once these steps are taken.
    NeedsAction(Vec<Step>),
    /// Not safe whatever is done.
    Forbidden(Vec<Obstacle>),
}

/// Something that must be done for a move to be safe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Step {
    /// Stored vectors belong to another space than those the target makes.
    RestoreIndex {
        /// The space of the stored vectors, as far as it is stated.
        stored: Option<EmbeddingSpace>,
        /// The target's space.
        target: Option<EmbeddingSpace>,
    },
    /// Running sessions keep their version until they end; caches of prompts are flushed.
    PinSessions {
        /// What differs.
        because: String,
    },
    /// Stored conversations must be checked, or converted, before the target renders them.
    ConvertHistories,
    /// Running sessions are longer than the target's context.
    ShortenSessions {
        /// Tokens in the longest session.
        longest: u64,
        /// The target's context.
        context: u64,
    },
    /// A consumer needs more than the target promises; it must move too.
    MoveConsumer {
        /// The consumer.
        consumer: String,
        /// What it needs.
        needs: String,
    },
    /// A runtime must be changed first.
    ChangeRuntime {
        /// The runtime.
        runtime: String,
        /// The version there is; `None` where it is absent or unknown.
        found: Option<String>,
        /// What the target needs.
        needs: String,
    },
}

/// Something that makes a move unsafe whatever is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Obstacle {
    /// The target was revoked.
    Revoked(VersionId),
    /// The target is below the anti-rollback floor.
    BelowFloor {
        /// The target's version.
        target: Version,
        /// The lowest version that may serve.
        floor: Version,
    },
    /// The target's bytes are missing or were not verified.
    BytesMissing(VersionId),
    /// The key that signed the target was revoked.
    KeyRevoked(VersionId),
    /// The target's adapters belong to other base weights than those that are loaded.
    AdapterBase {
        /// The base that the adapters need.
        needs: Digest,
        /// The base that is there.
        found: Digest,
    },
    /// The two versions are of different bundles.
    OtherBundle {
        /// The name of the one.
        from: String,
        /// The name of the other.
        to: String,
    },
}

/// What a consumer relies on at least.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Requirement {
    /// The API.
    pub api: Option<String>,
    /// The shortest context it can live with.
    pub context_length: Option<u64>,
    /// The embedding space of the vectors that it keeps.
    pub embedding_space: Option<EmbeddingSpace>,
    /// Fields of replies that it reads.
    pub fields: BTreeSet<OutputField>,
    /// Languages.
    pub languages: BTreeSet<String>,
    /// Modalities.
    pub modalities: BTreeSet<String>,
    /// The format of tool calls.
    pub tool_format: Option<String>,
}

/// The surroundings of a move: what is stored, who is served, what is allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Surroundings {
    /// Consumers by name, with what they rely on.
    pub consumers: BTreeMap<String, Requirement>,
    /// Whether vectors of the version that is left have been stored since it serves.
    pub index_written: bool,
    /// Whether sessions are running.
    pub live_sessions: bool,
    /// Tokens in the longest running session.
    pub longest_session: Option<u64>,
    /// Whether conversations are stored and rendered again later.
    pub stored_histories: bool,
    /// Runtimes there are: name to version.
    pub runtimes: BTreeMap<String, String>,
    /// Versions that must never serve again.
    pub revoked: BTreeSet<VersionId>,
    /// Versions whose signing key was revoked.
    pub key_revoked: BTreeSet<VersionId>,
    /// The lowest version that may serve.
    pub floor: Option<Version>,
    /// Versions whose bytes are missing or unverified.
    pub unavailable: BTreeSet<VersionId>,
    /// The base weights that are loaded, for versions that are adapters: their tensor root or file digest.
    pub base_weights: Option<Digest>,
}

/// Both directions of a move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Transition {
    /// From the old version to the new one.
    pub forward: Safety,
    /// From the new version back to the old one.
    pub back: Safety,
}

/// Says whether going from `old` to `new`, and back, is safe.
///
/// A rollout that cannot come back is not a rollout: hosts refuse to start one whose way back is `Forbidden`, and see to
/// the steps of one that needs action.
///
/// ```
/// # use llm_version_core::{Component, ComponentKind, Digest, Draft, Name, Version};
/// use llm_version_core::{Safety, Surroundings, transition};
/// # let version = |version, context| {
/// #     let mut draft = Draft::new(Name::new("chat").unwrap(), version);
/// #     draft.contract.context_length = Some(context);
/// #     draft.components.push(Component::new(
/// #         "prompt/system.txt".parse().unwrap(), ComponentKind::Prompt, 0, Digest::of(b""),
/// #     ));
/// #     draft.finish().unwrap()
/// # };
/// let (old, new) = (version(Version::new(1, 0, 0), 8_192), version(Version::new(1, 1, 0), 32_768));
///
/// let mut surroundings = Surroundings::default();
/// surroundings.longest_session = Some(20_000);
/// let moved = transition(&old, &new, &surroundings);
/// assert_eq!(moved.forward, Safety::Safe);
/// assert!(matches!(moved.back, Safety::NeedsAction(_)), "sessions have outgrown the old context");
/// ```
pub fn transition(old: &Manifest, new: &Manifest, surroundings: &Surroundings) -> Transition {
    Transition {
        forward: one_way(old, new, surroundings),
        back: one_way(new, old, surroundings),
    }
}

fn one_way(from: &Manifest, to: &Manifest, around: &Surroundings) -> Safety {
    let obstacles = obstacles(from, to, around);
    if !obstacles.is_empty() {
        return Safety::Forbidden(obstacles);
    }
    let steps = steps(from, to, around);
    if steps.is_empty() {
        Safety::Safe
    } else {
        Safety::NeedsAction(steps)
    }
}

fn obstacles(from: &Manifest, to: &Manifest, around: &Surroundings) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let id = to.id();
    if from.name() != to.name() {
        found.push(Obstacle::OtherBundle {
            from: from.name().to_string(),
            to: to.name().to_string(),
        });
    }
    if around.revoked.contains(id) {
        found.push(Obstacle::Revoked(id.clone()));
    }
    if around.key_revoked.contains(id) {
        found.push(Obstacle::KeyRevoked(id.clone()));
    }
    if around.unavailable.contains(id) {
        found.push(Obstacle::BytesMissing(id.clone()));
    }
    if let Some(floor) = around.floor.filter(|floor| to.version() < *floor) {
        found.push(Obstacle::BelowFloor {
            target: to.version(),
            floor,
        });
    }
    let here = around.base_weights.or_else(|| own_base(to));
    if let (Some(needs), Some(base)) = (to.contract().adapter_base, here)
        && needs != base
        && own_base(to) != Some(needs)
        && !holds_file(to, needs)
    {
        found.push(Obstacle::AdapterBase { needs, found: base });
    }
    found
}

fn own_base(manifest: &Manifest) -> Option<Digest> {
    manifest.tensor_root(ComponentKind::Weights)
}

fn holds_file(manifest: &Manifest, digest: Digest) -> bool {
    let weights = |kind| kind == ComponentKind::Weights;
    manifest
        .components()
        .iter()
        .any(|c| weights(c.kind) && c.digest == digest)
}

fn steps(from: &Manifest, to: &Manifest, around: &Surroundings) -> Vec<Step> {
    let (a, b) = (from.contract(), to.contract());
    let mut steps = Vec::new();
    if around.index_written && a.embedding_space != b.embedding_space {
        steps.push(Step::RestoreIndex {
            stored: a.embedding_space.clone(),
            target: b.embedding_space.clone(),
        });
    }
    let mut differs = Vec::new();
    if tokenizer_differs(from, to) {
        differs.push("tokenizer");
    }
    let template = template_differs(from, to);
    if template {
        differs.push("chat template");
    }
    if around.live_sessions && !differs.is_empty() {
        steps.push(Step::PinSessions {
            because: differs.join(" and "),
        });
    }
    if around.stored_histories && (template || a.tool_format != b.tool_format) {
        steps.push(Step::ConvertHistories);
    }
    if let (Some(longest), Some(context)) = (around.longest_session, b.context_length)
        && longest > context
    {
        steps.push(Step::ShortenSessions { longest, context });
    }
    for (consumer, requirement) in &around.consumers {
        for needs in requirement.unmet(b) {
            steps.push(Step::MoveConsumer {
                consumer: consumer.clone(),
                needs,
            });
        }
    }
    for (runtime, needs) in &b.runtime {
        let found = around.runtimes.get(runtime);
        if !runtime_fits(needs, found.map(String::as_str)) {
            steps.push(Step::ChangeRuntime {
                runtime: runtime.clone(),
                found: found.cloned(),
                needs: needs.clone(),
            });
        }
    }
    steps
}

/// A runtime that is not known, or a requirement that cannot be read, does not fit.
fn runtime_fits(needs: &str, found: Option<&str>) -> bool {
    let (Ok(needs), Some(found)) = (VersionReq::parse(needs), found) else {
        return false;
    };
    // Runtimes number themselves with two parts, with four, or with a suffix; three numbers are compared.
    let mut numbers = found
        .trim_start_matches('v')
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|n| n.parse().ok());
    let Some(major) = numbers.next() else {
        return false;
    };
    let version = semver::Version::new(
        major,
        numbers.next().unwrap_or(0),
        numbers.next().unwrap_or(0),
    );
    needs.matches(&version)
}

/// The digests of all files of a kind, or what the contract says where it says something on both sides.
fn files_differ(from: &Manifest, to: &Manifest, kind: ComponentKind) -> bool {
    let files = |m: &Manifest| -> Vec<(String, Digest)> {
        let of_kind = m.components().iter().filter(|c| c.kind == kind);
        of_kind.map(|c| (c.path.to_string(), c.digest)).collect()
    };
    files(from) != files(to)
}

fn tokenizer_differs(from: &Manifest, to: &Manifest) -> bool {
    match (&from.contract().tokenizer, &to.contract().tokenizer) {
        (Some(a), Some(b)) => a != b,
        _ => files_differ(from, to, ComponentKind::Tokenizer),
    }
}

fn template_differs(from: &Manifest, to: &Manifest) -> bool {
    let (a, b) = (from.contract(), to.contract());
    if !a.probes.is_empty() && a.probes.keys().eq(b.probes.keys()) {
        return a.probes != b.probes;
    }
    match (a.chat_template, b.chat_template) {
        (Some(a), Some(b)) => a != b,
        _ => files_differ(from, to, ComponentKind::ChatTemplate),
    }
}

impl Requirement {
    /// What of this requirement a contract does not promise, in words.
    pub fn unmet(&self, contract: &Contract) -> Vec<String> {
        let mut unmet = Vec::new();
        if let Some(api) = self
            .api
            .as_ref()
            .filter(|api| contract.api.as_ref() != Some(*api))
        {
            unmet.push(format!("API {api}"));
        }
        if let Some(least) = self.context_length
            && contract.context_length.is_none_or(|n| n < least)
        {
            unmet.push(format!("a context of {least} tokens"));
        }
        if let Some(space) = &self.embedding_space
            && contract.embedding_space.as_ref() != Some(space)
        {
            unmet.push(format!("embedding space {}", space.id));
        }
        let fields = contract.output_schema.as_ref().map(|s| &s.fields);
        for field in &self.fields {
            let promised = fields.and_then(|f| f.iter().find(|p| p.name == field.name));
            let kept = promised.is_some_and(|p| {
                (p.required || !field.required)
                    && (field.types.is_empty()
                        || (!p.types.is_empty() && p.types.is_subset(&field.types)))
            });
            if !kept {
                unmet.push(format!("reply field {}", field.name));
            }
        }
        let missing =
            |need: &BTreeSet<String>, have: &BTreeSet<String>, what: &str| -> Vec<String> {
                need.difference(have)
                    .map(|x| format!("{what} {x}"))
                    .collect()
            };
        unmet.extend(missing(&self.languages, &contract.languages, "language"));
        unmet.extend(missing(&self.modalities, &contract.modalities, "modality"));
        if let Some(format) = self
            .tool_format
            .as_ref()
            .filter(|f| contract.tool_format.as_ref() != Some(*f))
        {
            unmet.push(format!("tool calls in the format {format}"));
        }
        unmet
    }
}

impl fmt::Display for Safety {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Safe => f.write_str("safe"),
            Self::NeedsAction(steps) => {
                f.write_str("safe after:")?;
                steps.iter().try_for_each(|s| write!(f, "\n  {s}"))
            }
            Self::Forbidden(obstacles) => {
                f.write_str("forbidden:")?;
                obstacles.iter().try_for_each(|o| write!(f, "\n  {o}"))
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = |s: &Option<EmbeddingSpace>| {
            s.as_ref()
                .map_or_else(|| "an unstated space".to_owned(), |s| s.id.clone())
        };
        match self {
            Self::RestoreIndex { stored, target } => write!(
                f,
                "restore the vector index or keep two: stored vectors are of {}, the target makes {}",
                space(stored),
                space(target)
            ),
            Self::PinSessions { because } => write!(
                f,
                "pin running sessions to their version and flush prompt caches: the {because} differs"
            ),
            Self::ConvertHistories => f.write_str(
                "check that stored conversations render in the target's format, or convert them",
            ),
            Self::ShortenSessions { longest, context } => write!(
                f,
                "end or shorten sessions of more than {context} tokens; the longest has {longest}"
            ),
            Self::MoveConsumer { consumer, needs } => {
                write!(f, "move consumer {consumer} too: it needs {needs}")
            }
            Self::ChangeRuntime {
                runtime,
                found,
                needs,
            } => write!(
                f,
                "run it on {runtime} {needs}; there is {}",
                found.as_deref().unwrap_or("none known")
            ),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Revoked(id) => write!(f, "{} was revoked", id.reference()),
            Self::BelowFloor { target, floor } => {
                write!(
                    f,
                    "version {target} is below {floor}, the lowest that may serve"
                )
            }
            Self::BytesMissing(id) => {
                write!(
                    f,
                    "the bytes of {} are missing or not verified",
                    id.reference()
                )
            }
            Self::KeyRevoked(id) => write!(f, "the key that signed {} was revoked", id.reference()),
            Self::AdapterBase { needs, found } => write!(
                f,
                "its adapters belong to base weights {}, loaded are {}",
                needs.short(12),
                found.short(12)
            ),
            Self::OtherBundle { from, to } => write!(f, "{from} and {to} are different bundles"),
        }
    }
}
