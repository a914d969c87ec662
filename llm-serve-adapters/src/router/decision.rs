//! What is asked of a router per request, and what it answers.

use super::versions::VersionSlot;
use llm_rollout::Epoch;
use std::fmt;

/// What a request is assigned by.
///
/// The bytes are hashed and nothing else: a key is stored nowhere and appears in no output.
#[derive(Clone, Copy)]
pub struct Key<'a> {
    pub(crate) session: Option<&'a [u8]>,
    pub(crate) pin: Option<Pin>,
    pub(crate) randomised: bool,
}

impl<'a> Key<'a> {
    /// By session: the same bytes go to the same side, on every replica.
    #[inline]
    pub const fn session(bytes: &'a [u8]) -> Self {
        Self {
            session: Some(bytes),
            pin: None,
            randomised: true,
        }
    }

    /// Without a session: each request by itself. The router counts them ([`super::InProcessRouter::keyless`]).
    #[inline]
    pub const fn keyless() -> Self {
        Self {
            session: None,
            pin: None,
            randomised: true,
        }
    }

    /// To one side, whatever the hash says: internal users, a tenant's policy, a header. Not evidence.
    ///
    /// A pin to the candidate holds only while a candidate is being served; then as now it is the lease that decides.
    #[must_use]
    pub const fn pinned(mut self, pin: Pin) -> Self {
        self.pin = Some(pin);
        self.randomised = false;
        self
    }

    /// Assigned as ever, but recorded apart from the evidence: a retry, a probe, a warm-up.
    #[must_use]
    pub const fn apart(mut self) -> Self {
        self.randomised = false;
        self
    }
}

impl fmt::Debug for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("session", &self.session.is_some())
            .field("pin", &self.pin)
            .field("randomised", &self.randomised)
            .finish()
    }
}

/// A side that a request is sent to whatever the hash says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a rollout has two sides")]
pub enum Pin {
    /// The version in production.
    Baseline,
    /// The version being rolled out.
    Candidate,
}

/// What a request counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(clippy::exhaustive_enums, reason = "hosts and recorders handle each")]
pub enum Role {
    /// Served by the version in production.
    Baseline,
    /// Served by the version being rolled out.
    Candidate,
    /// Served by the version in production, treated like the candidate and compared with it.
    Control,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Baseline, Self::Candidate, Self::Control];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Baseline => "baseline",
            Self::Candidate => "candidate",
            Self::Control => "control",
        })
    }
}

/// Why a request was assigned as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// By the hash of its key.
    Assigned,
    /// It has no key: by chance, this once.
    Keyless,
    /// It was pinned.
    Pinned,
    /// The lease has run out, or the router has started anew: everything goes to the baseline.
    Lapsed,
    /// Somebody has forced the baseline.
    Forced,
    /// The split was being replaced for longer than a request waits: to the baseline, this once.
    Busy,
}

/// Where a request goes, and what it counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decision {
    /// What it counts as.
    pub role: Role,
    /// Why.
    pub reason: Reason,
    /// The split it was decided under.
    pub epoch: Epoch,
    /// The version that serves it; see [`VersionSlot::version`]. It stays valid when the split changes.
    pub version: VersionSlot,
    /// Whether chance decided: only then is it evidence.
    pub randomised: bool,
    /// Whether the split has a control arm, which is then what the candidate is compared with.
    pub controlled: bool,
}
