//! How a command ends badly: what is said, and with which exit code.

use std::fmt::Display;
use std::io;

use llm_version_core::fs::{
    BuildError, HfError, OciError, TreeSignatureError, VerifyError, VerifyReport, WandbError,
};
use llm_version_core::registry::{RegistryError, StoreError};
use llm_version_core::{ManifestError, Mismatch};
use serde_json::{Map, Value, json};

/// Why a command failed; the exit codes of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// What was checked does not hold.
    Check = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Something cannot be read or written.
    Environment = 3,
    /// The state does not allow it.
    Refused = 4,
}

/// A command that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
    /// More fields for programs.
    pub(crate) details: Map<String, Value>,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Display) -> Self {
        Self {
            code,
            message: message.to_string(),
            details: Map::new(),
        }
    }

    /// A wrong command line.
    pub(crate) fn usage(message: impl Display) -> Self {
        Self::new(Code::Usage, message)
    }

    /// A path that cannot be read or written.
    pub(crate) fn io(path: impl Display, error: &io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::AlreadyExists => Code::Refused,
            _ => Code::Environment,
        };
        Self::new(code, format!("{path}: {error}"))
    }

    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        self.details.insert(key.to_owned(), value);
        self
    }

    fn of_io(error: &io::Error, message: impl Display) -> Self {
        let mut failure = Self::io("", error);
        failure.message = message.to_string();
        failure
    }

    fn differing(self, mismatch: &Mismatch) -> Self {
        self.with("missing", json!(mismatch.missing))
            .with("extra", json!(mismatch.extra))
            .with("modified", json!(mismatch.modified))
    }

    fn report(self, report: &VerifyReport) -> Self {
        let problems: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
        self.differing(&report.mismatch)
            .with("problems", json!(problems))
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        match &error {
            BuildError::Folder { error: io, .. } | BuildError::Io { error: io, .. } => {
                Self::of_io(io, &error)
            }
            BuildError::Tree(problems) => {
                let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
                Self::new(Code::Check, &error).with("problems", json!(problems))
            }
            BuildError::Cancelled => Self::new(Code::Environment, error),
            _ => Self::new(Code::Check, error),
        }
    }
}

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        match &error {
            VerifyError::Differs(report) => Self::new(Code::Check, &error).report(report),
            VerifyError::Folder { error: io, .. } => Self::of_io(io, &error),
            VerifyError::Cancelled => Self::new(Code::Environment, error),
            _ => Self::new(Code::Check, error),
        }
    }
}

impl From<ManifestError> for Failure {
    fn from(error: ManifestError) -> Self {
        Self::new(Code::Check, error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match error {
            StoreError::WrongDigest { .. } => Code::Check,
            _ => Code::Environment,
        };
        Self::new(code, error)
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        use RegistryError as E;
        match error {
            E::Store(error) => error.into(),
            E::SmallBump(small) => Self::new(
                Code::Check,
                format!("{small}; or say with --small-bump why it is right"),
            )
            .with("required", json!(small.required))
            .with("next", json!(small.next)),
            E::Log { .. } | E::LogCut { .. } | E::BadManifest { .. } | E::BlobMissing { .. } => {
                Self::new(Code::Check, error)
            }
            E::Source {
                error: ref source, ..
            }
            | E::Folder {
                error: ref source, ..
            } => Self::of_io(source, &error),
            error => Self::new(Code::Refused, error),
        }
    }
}

impl From<HfError> for Failure {
    fn from(error: HfError) -> Self {
        match &error {
            HfError::Io { error: io, .. } => Self::of_io(io, &error),
            _ => Self::new(Code::Check, error),
        }
    }
}

impl From<WandbError> for Failure {
    fn from(error: WandbError) -> Self {
        match &error {
            WandbError::Io { error: io, .. } => Self::of_io(io, &error),
            _ => Self::new(Code::Check, error),
        }
    }
}

impl From<OciError> for Failure {
    fn from(error: OciError) -> Self {
        match error {
            OciError::Io { error: ref io, .. } => Self::of_io(io, &error),
            OciError::Tag { .. } => Self::usage(error),
            OciError::Choice { .. } => Self::new(Code::Refused, error),
            OciError::Blob(error) => error.into(),
            OciError::Verify(error) => error.into(),
            error => Self::new(Code::Check, error),
        }
    }
}

impl From<TreeSignatureError> for Failure {
    fn from(error: TreeSignatureError) -> Self {
        match &error {
            TreeSignatureError::Io { error: io, .. } => Self::of_io(io, &error),
            TreeSignatureError::Place { .. } => Self::usage(error),
            TreeSignatureError::Differs(mismatch) => {
                Self::new(Code::Check, &error).differing(mismatch)
            }
            _ => Self::new(Code::Check, error),
        }
    }
}
