//! Version ids (for machines) and bundle references (for people).

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::digest::{Digest, first_non_hex, string_serde};
use crate::name::{Name, ParseNameError};
use crate::version::{ParseVersionError, Version, clip};

/// What logs, splits and commands hold: name, version and the full digest, written `name/v1.2.3-<64 hex>`.
///
/// Ids order by name, then version, then digest; the digest is identity and only breaks ties.
///
/// ```
/// use llm_version_core::{Digest, Name, Version, VersionId};
///
/// let id = VersionId::new(Name::new("chat")?, Version::new(1, 2, 3), Digest::of(b"..."));
/// assert_eq!(id.to_string().parse::<VersionId>()?, id);
/// assert!(id.reference().matches(&id));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionId {
    name: Name,
    version: Version,
    digest: Digest,
}

/// A bundle reference for people: `name/v1.2.3-<hash>` with 12 to 64 hexadecimal digits of the digest.
///
/// It may be ambiguous in principle; a registry resolves it to a [`VersionId`] or says ambiguous or unknown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BundleRef {
    name: Name,
    version: Version,
    hash: String,
}

/// Why a text is neither a version id nor a bundle reference.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ParseIdError {
    /// No `/v` between name and version.
    #[error(
        "{found:?} is not `name/vMAJOR.MINOR.PATCH-<hash>`: there must be exactly one '/', followed by 'v'"
    )]
    Shape {
        /// The (clipped) text.
        found: String,
    },
    /// No hash after the version.
    #[error(
        "{found:?} has no hash; write `name/vMAJOR.MINOR.PATCH-<hash>` with at least 12 hexadecimal digits"
    )]
    NoHash {
        /// The (clipped) text.
        found: String,
    },
    /// The name is outside its grammar.
    #[error("bad name: {0}")]
    Name(#[from] ParseNameError),
    /// The version is not MAJOR.MINOR.PATCH.
    #[error("bad version: {0}")]
    Version(#[from] ParseVersionError),
    /// The hash is shorter or longer than allowed.
    #[error("the hash has {found} digits; {expected}")]
    HashLength {
        /// Digits found.
        found: usize,
        /// What is allowed.
        expected: &'static str,
    },
    /// The hash has a character outside 0-9, a-f.
    #[error("character {found:?} at digit {at} of the hash is not a lower-case hexadecimal digit")]
    HashCharacter {
        /// The offending character.
        found: char,
        /// Its position in the hash.
        at: usize,
    },
}

impl VersionId {
    /// An id from its parts.
    pub const fn new(name: Name, version: Version, digest: Digest) -> Self {
        Self {
            name,
            version,
            digest,
        }
    }

    /// The bundle's name.
    pub const fn name(&self) -> &Name {
        &self.name
    }

    /// The bundle's version.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// The bundle's full digest.
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The shortest reference for people: 12 hexadecimal digits.
    pub fn reference(&self) -> BundleRef {
        self.reference_with(BundleRef::MIN_DIGITS)
    }

    /// A reference with `digits` hexadecimal digits, clamped to 12..=64.
    pub fn reference_with(&self, digits: usize) -> BundleRef {
        BundleRef {
            name: self.name.clone(),
            version: self.version,
            hash: self
                .digest
                .short(digits.clamp(BundleRef::MIN_DIGITS, BundleRef::MAX_DIGITS)),
        }
    }

    /// The version in strict semver form, the hash as build metadata: `1.2.3+sha.<64 hex>`.
    ///
    /// Build metadata does not take part in the order, so tools that want semver sort it rightly.
    pub fn to_semver(&self) -> String {
        format!("{}+sha.{}", self.version, self.digest)
    }

    /// A tag for OCI registries, which allow neither `+` nor `/`: `1.2.3-<12 hex>`.
    pub fn to_oci_tag(&self) -> String {
        format!(
            "{}-{}",
            self.version,
            self.digest.short(BundleRef::MIN_DIGITS)
        )
    }
}

impl BundleRef {
    /// The fewest hexadecimal digits a reference carries.
    pub const MIN_DIGITS: usize = 12;
    /// The most: the whole digest.
    pub const MAX_DIGITS: usize = 64;

    /// The bundle's name.
    pub const fn name(&self) -> &Name {
        &self.name
    }

    /// The bundle's version.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// The leading hexadecimal digits of the digest.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Whether this reference means `id`: same name, same version, and the hash is a prefix of the digest.
    pub fn matches(&self, id: &VersionId) -> bool {
        self.name == id.name
            && self.version == id.version
            && id.digest.to_string().starts_with(&self.hash)
    }
}

impl From<&VersionId> for BundleRef {
    fn from(id: &VersionId) -> Self {
        id.reference_with(Self::MAX_DIGITS)
    }
}

fn split(text: &str) -> Result<(Name, Version, &str), ParseIdError> {
    let shape = || ParseIdError::Shape {
        found: clip(text).to_owned(),
    };
    let (name, rest) = text.split_once('/').ok_or_else(shape)?;
    if rest.contains('/') {
        return Err(shape());
    }
    let rest = rest.strip_prefix('v').ok_or_else(shape)?;
    let (version, hash) = rest.split_once('-').ok_or_else(|| ParseIdError::NoHash {
        found: clip(text).to_owned(),
    })?;
    let (name, version) = (Name::new(name)?, version.parse()?);
    if let Some((at, found)) = first_non_hex(hash) {
        return Err(ParseIdError::HashCharacter { found, at });
    }
    Ok((name, version, hash))
}

impl FromStr for VersionId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, version, hash) = split(text)?;
        let digest = hash.parse().map_err(|_| ParseIdError::HashLength {
            found: hash.len(),
            expected: "a version id has exactly 64; a registry resolves shorter references",
        })?;
        Ok(Self {
            name,
            version,
            digest,
        })
    }
}

impl FromStr for BundleRef {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, version, hash) = split(text)?;
        if !(Self::MIN_DIGITS..=Self::MAX_DIGITS).contains(&hash.len()) {
            return Err(ParseIdError::HashLength {
                found: hash.len(),
                expected: "a reference has 12 to 64",
            });
        }
        Ok(Self {
            name,
            version,
            hash: hash.to_owned(),
        })
    }
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/v{}-{}", self.name, self.version, self.digest)
    }
}

impl fmt::Debug for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VersionId({self})")
    }
}

impl fmt::Display for BundleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/v{}-{}", self.name, self.version, self.hash)
    }
}

impl fmt::Debug for BundleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BundleRef({self})")
    }
}

string_serde!(
    VersionId,
    "a version id such as `chat/v1.2.3-<64 hexadecimal digits>`"
);
string_serde!(
    BundleRef,
    "a bundle reference such as `chat/v1.2.3-0123456789ab`"
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids() -> impl Strategy<Value = VersionId> {
        (
            "[a-z0-9][a-z0-9._-]{0,20}",
            any::<(u32, u32, u32)>(),
            any::<[u8; 32]>(),
        )
            .prop_map(|(n, v, d)| {
                VersionId::new(
                    Name::new(n).unwrap(),
                    Version::new(v.0, v.1, v.2),
                    Digest::new(d),
                )
            })
    }

    #[test]
    fn the_semver_trap_is_not_ours() {
        // All digits with a leading zero: no semver pre-release, a fine reference here.
        let text = "chat/v1.2.3-012345678901";
        assert!(semver::Version::parse("1.2.3-012345678901").is_err());
        assert_eq!(text.parse::<BundleRef>().unwrap().to_string(), text);
    }

    #[test]
    fn errors_are_precise() {
        let err = |text: &str| text.parse::<BundleRef>().unwrap_err();
        assert!(matches!(err("chat"), ParseIdError::Shape { .. }));
        assert!(matches!(
            err("chat/1.2.3-000000000000"),
            ParseIdError::Shape { .. }
        ));
        assert!(matches!(
            err("a/b/v1.2.3-000000000000"),
            ParseIdError::Shape { .. }
        ));
        assert!(matches!(err("chat/v1.2.3"), ParseIdError::NoHash { .. }));
        assert!(matches!(
            err("Chat/v1.2.3-000000000000"),
            ParseIdError::Name(_)
        ));
        assert!(matches!(
            err("chat/v1.2-000000000000"),
            ParseIdError::Version(_)
        ));
        assert_eq!(
            err("chat/v1.2.3-00000000000"),
            ParseIdError::HashLength {
                found: 11,
                expected: "a reference has 12 to 64"
            }
        );
        assert_eq!(
            err("chat/v1.2.3-00000000000G"),
            ParseIdError::HashCharacter { found: 'G', at: 11 }
        );
        assert!(matches!(
            "chat/v1.2.3-000000000000".parse::<VersionId>().unwrap_err(),
            ParseIdError::HashLength { found: 12, .. }
        ));
    }

    proptest! {
        #[test]
        fn ids_round_trip(id in ids(), digits in 0..80_usize) {
            prop_assert_eq!(&id.to_string().parse::<VersionId>().unwrap(), &id);
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(json.clone(), format!("\"{id}\""));
            prop_assert_eq!(&serde_json::from_str::<VersionId>(&json).unwrap(), &id);
            let reference = id.reference_with(digits);
            prop_assert!(reference.matches(&id));
            prop_assert_eq!(&reference.to_string().parse::<BundleRef>().unwrap(), &reference);
            prop_assert_eq!(semver::Version::parse(&id.to_semver()).unwrap().pre, semver::Prerelease::EMPTY);
        }

        #[test]
        fn order_is_name_then_version(a in ids(), b in ids()) {
            prop_assert_eq!(
                a.cmp(&b),
                a.name().cmp(b.name()).then(a.version().cmp(&b.version())).then(a.digest().cmp(b.digest()))
            );
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,100}") {
            let _ = (text.parse::<VersionId>(), text.parse::<BundleRef>());
        }
    }
}
