//! Names and numbers that order and address things.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{kind} {name:?} is not usable: use 1 to 64 of the characters a-z, 0-9, '.', '_' and '-', starting with a letter or digit"
)]
pub struct BadName {
    kind: &'static str,
    name: String,
}

fn check(kind: &'static str, name: String) -> Result<String, BadName> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let fits = (1..=64).contains(&name.len())
        && name.bytes().next().is_some_and(plain)
        && name
            .bytes()
            .all(|b| plain(b) || matches!(b, b'.' | b'_' | b'-'));
    if fits {
        Ok(name)
    } else {
        Err(BadName { kind, name })
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        ///
        /// 1 to 64 of the characters `a-z0-9._-`, starting with a letter or digit.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps a name.
            ///
            /// # Errors
            /// When the name is empty, too long or holds another character.
            pub fn new(name: impl Into<String>) -> Result<Self, BadName> {
                check($kind, name.into()).map(Self)
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;
            fn try_from(name: String) -> Result<Self, BadName> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadName;
            fn from_str(name: &str) -> Result<Self, BadName> {
                Self::new(name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// What clients call ("chat"). It has one rollout at a time, over all replicas.
    EndpointId,
    "endpoint"
);
name!(
    /// A rollout, unique per endpoint for ever: submitting an id again attaches or returns its end.
    RolloutId,
    "rollout id"
);
name!(
    /// One registered router of an endpoint.
    RouterId,
    "router"
);

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a number.
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The number.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The one after it (saturating).
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Ownership of an endpoint's log: rises with each acquisition, over all its rollouts. Only the newest may append.
    Fence
);
number!(
    /// Position of an entry in an endpoint's log, over all its rollouts, starting at 0.
    Seq
);
number!(
    /// Number of a split: rises whenever what is served changes or resumes. Observations carry it.
    Epoch
);

/// A share of traffic in basis points: 0 is nothing, 10 000 everything. Exact, so that sums and comparisons are.
///
/// ```
/// use llm_rollout::Share;
/// assert_eq!(Share::from_percent(5.0)?.basis_points(), 500);
/// assert_eq!(Share::from_percent(0.01)?.to_string(), "0.01 %");
/// assert!(Share::from_percent(100.1).is_err());
/// # Ok::<(), llm_rollout::BadShare>(())
/// ```
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "u16", into = "u16")]
pub struct Share(u16);

/// A share outside 0 to 100 %, or finer than 0.01 %.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("a share of {0} % cannot be served: give 0 to 100, in steps of 0.01")]
pub struct BadShare(f64);

impl Share {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Everything.
    pub const ALL: Self = Self(10_000);

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the signature that serde's `skip_serializing_if` asks for"
    )]
    pub(crate) const fn is_none(&self) -> bool {
        self.0 == 0
    }

    /// From basis points.
    ///
    /// # Errors
    /// Above 10 000.
    pub fn new(basis_points: u16) -> Result<Self, BadShare> {
        if basis_points <= 10_000 {
            Ok(Self(basis_points))
        } else {
            Err(BadShare(f64::from(basis_points) / 100.0))
        }
    }

    /// From per cent, 0 to 100 in steps of 0.01.
    ///
    /// # Errors
    /// Outside that range, not a number, or finer than a basis point.
    pub fn from_percent(percent: f64) -> Result<Self, BadShare> {
        let points = percent * 100.0;
        let rounded = points.round();
        if !(0.0..=10_000.0).contains(&rounded) || (points - rounded).abs() > 1e-6 {
            return Err(BadShare(percent));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked above to be an integer in 0..=10000"
        )]
        Ok(Self(rounded as u16))
    }

    /// In basis points.
    pub const fn basis_points(self) -> u16 {
        self.0
    }

    /// In per cent.
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl TryFrom<u16> for Share {
    type Error = BadShare;
    fn try_from(basis_points: u16) -> Result<Self, BadShare> {
        Self::new(basis_points)
    }
}

impl From<Share> for u16 {
    fn from(share: Share) -> u16 {
        share.0
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.percent())
    }
}

/// The format of logs and splits: a reader ignores unknown fields of a newer minor and refuses another major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Format {
    major: u16,
    minor: u16,
}

impl Format {
    /// What this program writes.
    pub const CURRENT: Self = Self { major: 1, minor: 0 };

    /// Whether this program can read it.
    pub const fn readable(self) -> bool {
        self.major == Self::CURRENT.major
    }
}

/// Text that is not `major.minor`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("format {0:?} is not of the form major.minor")]
pub struct BadFormat(String);

impl TryFrom<String> for Format {
    type Error = BadFormat;
    fn try_from(text: String) -> Result<Self, BadFormat> {
        let parts = text
            .split_once('.')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        match parts {
            Some((major, minor)) => Ok(Self { major, minor }),
            None => Err(BadFormat(text)),
        }
    }
}

impl From<Format> for String {
    fn from(format: Format) -> String {
        format.to_string()
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_on_every_way_in() {
        for bad in ["", "Chat", "a b", "-a", "é", &"x".repeat(65)] {
            assert!(EndpointId::new(bad).is_err(), "{bad:?}");
            assert!(serde_json::from_str::<RolloutId>(&format!("{bad:?}")).is_err());
        }
        assert_eq!(RolloutId::new("chat-v2.1").unwrap().as_str(), "chat-v2.1");
    }

    #[test]
    fn shares_are_exact_and_bounded() {
        assert!(Share::new(10_001).is_err());
        assert!(Share::from_percent(f64::NAN).is_err());
        assert!(Share::from_percent(-1.0).is_err());
        assert!(Share::from_percent(0.005).is_err());
        assert!(serde_json::from_str::<Share>("10001").is_err());
        for points in 0..=10_000 {
            let share = Share::new(points).unwrap();
            assert_eq!(Share::from_percent(share.percent()).unwrap(), share);
        }
    }

    #[test]
    fn another_major_is_not_readable() {
        let newer_minor: Format = serde_json::from_str("\"1.7\"").unwrap();
        let newer_major: Format = serde_json::from_str("\"2.0\"").unwrap();
        assert!(newer_minor.readable());
        assert!(!newer_major.readable());
        assert!(serde_json::from_str::<Format>("\"1\"").is_err());
    }
}
