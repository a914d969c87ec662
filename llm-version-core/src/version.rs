//! Versions: MAJOR.MINOR.PATCH and nothing else.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::digest::string_serde;

/// A version, MAJOR.MINOR.PATCH, ordered by that triple.
///
/// There is no pre-release and no build part: in semver `1.2.3-<hash>` is a *pre-release* that sorts below 1.2.3 and
/// fails to parse when the hash is all digits with a leading zero. Here the hash is part of the identity
/// ([`VersionId`](crate::VersionId)) and never of the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

/// The size of a step between two versions, smallest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(
    clippy::exhaustive_enums,
    reason = "semantic versioning has these steps and no others"
)]
pub enum Bump {
    /// The same version.
    None,
    /// 1.2.3 to 1.2.4: parameters, fixes.
    Patch,
    /// 1.2.3 to 1.3.0: fine-tune, adapter, prompt, few-shot.
    Minor,
    /// 1.2.3 to 2.0.0: base model, architecture, tokenizer, interface break.
    Major,
}

/// Why a text is not a [`Version`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ParseVersionError {
    /// There are not exactly three numbers.
    #[error("a version is MAJOR.MINOR.PATCH, this one has {found} part(s)")]
    Parts {
        /// Parts separated by dots.
        found: usize,
    },
    /// A part is not a decimal number without leading zeros that fits 32 bits.
    #[error("{part} {found:?} is not a decimal number without leading zeros up to 4294967295")]
    Number {
        /// Which part.
        part: &'static str,
        /// What stands there.
        found: String,
    },
    /// A pre-release or build suffix.
    #[error(
        "version {found:?} has a suffix; versions here are MAJOR.MINOR.PATCH only, write a hash as `name/vMAJOR.MINOR.PATCH-<hash>`"
    )]
    Suffix {
        /// The whole text.
        found: String,
    },
}

impl Version {
    /// A version from its three numbers.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }

    /// The first number.
    pub const fn major(&self) -> u32 {
        self.major
    }

    /// The second number.
    pub const fn minor(&self) -> u32 {
        self.minor
    }

    /// The third number.
    pub const fn patch(&self) -> u32 {
        self.patch
    }

    /// The next version after a step of size `bump`; `None` when a number would overflow.
    ///
    /// ```
    /// use llm_version_core::{Bump, Version};
    /// let v = Version::new(1, 2, 3);
    /// assert_eq!(v.bumped(Bump::Minor), Some(Version::new(1, 3, 0)));
    /// ```
    pub fn bumped(&self, bump: Bump) -> Option<Self> {
        Some(match bump {
            Bump::None => *self,
            Bump::Patch => Self::new(self.major, self.minor, self.patch.checked_add(1)?),
            Bump::Minor => Self::new(self.major, self.minor.checked_add(1)?, 0),
            Bump::Major => Self::new(self.major.checked_add(1)?, 0, 0),
        })
    }

    /// The size of the step from `self` up to `newer`; `None` when `newer` is older.
    pub fn step_to(&self, newer: &Self) -> Option<Bump> {
        if newer < self {
            None
        } else if newer.major != self.major {
            Some(Bump::Major)
        } else if newer.minor != self.minor {
            Some(Bump::Minor)
        } else if newer.patch != self.patch {
            Some(Bump::Patch)
        } else {
            Some(Bump::None)
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = ParseVersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(['-', '+']) {
            return Err(ParseVersionError::Suffix {
                found: clip(text).to_owned(),
            });
        }
        let mut parts = text.split('.');
        let (Some(major), Some(minor), Some(patch), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ParseVersionError::Parts {
                found: text.split('.').count(),
            });
        };
        Ok(Self {
            major: number("major", major)?,
            minor: number("minor", minor)?,
            patch: number("patch", patch)?,
        })
    }
}

fn number(part: &'static str, text: &str) -> Result<u32, ParseVersionError> {
    let canonical = !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_digit())
        && (text.len() == 1 || !text.starts_with('0'));
    text.parse()
        .ok()
        .filter(|_| canonical)
        .ok_or_else(|| ParseVersionError::Number {
            part,
            found: clip(text).to_owned(),
        })
}

/// At most 64 characters of a text, for error messages.
pub(crate) fn clip(text: &str) -> &str {
    match text.char_indices().nth(64) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

impl fmt::Display for Bump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Patch => "patch",
            Self::Minor => "minor",
            Self::Major => "major",
        })
    }
}

string_serde!(Version, "a version such as `1.2.3`");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_semver_allows_and_more() {
        for bad in [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "01.2.3",
            "1.02.3",
            "1.2.3-a",
            "1.2.3+a",
            "v1.2.3",
            "1.2.+3",
            "1..3",
            " 1.2.3",
            "4294967296.0.0",
            "1.2.٣",
        ] {
            assert!(bad.parse::<Version>().is_err(), "{bad:?}");
        }
        assert!(matches!(
            "1.2.3-012345678901".parse::<Version>(),
            Err(ParseVersionError::Suffix { .. })
        ));
    }

    proptest! {
        // Oracle: the `semver` crate orders plain triples, and prints them the same way.
        #[test]
        fn agrees_with_semver_on_triples(a in any::<(u32, u32, u32)>(), b in any::<(u32, u32, u32)>()) {
            let ours = |t: (u32, u32, u32)| Version::new(t.0, t.1, t.2);
            let theirs = |t: (u32, u32, u32)| semver::Version::new(t.0.into(), t.1.into(), t.2.into());
            prop_assert_eq!(ours(a).cmp(&ours(b)), theirs(a).cmp(&theirs(b)));
            prop_assert_eq!(ours(a).to_string(), theirs(a).to_string());
            prop_assert_eq!(ours(a).to_string().parse::<Version>().unwrap(), ours(a));
        }

        #[test]
        fn a_bump_is_the_step_it_says(a in any::<(u16, u16, u16)>(), n in 0..4_usize) {
            let v = Version::new(a.0.into(), a.1.into(), a.2.into());
            let bump = [Bump::None, Bump::Patch, Bump::Minor, Bump::Major][n];
            prop_assert_eq!(v.step_to(&v.bumped(bump).unwrap()), Some(bump));
        }
    }
}
