//! Versions as MLflow knows them, and its alias that follows what is in force.

mod alias;
#[cfg(test)]
mod tests;

pub use alias::MlflowAlias;

use crate::host::{self, Error, ErrorKind};
use crate::http_client::{Address, Authorities, Call, Http, Method, bearer, clip, refusal, secret};
use base64::Engine as _;
use llm_version_core::VersionId;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt;
use std::time::Duration;

type Result<T> = std::result::Result<T, MlflowError>;

/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a reply that are read.
const REPLY: usize = 4 << 20;
/// The tag that holds the whole id of a version.
const VERSION: &str = "llm.version";
/// The tag that holds its digest alone.
const DIGEST: &str = "llm.digest";

/// The code with which MLflow refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MlflowCode {
    /// `RESOURCE_DOES_NOT_EXIST`.
    ResourceDoesNotExist,
    /// `RESOURCE_ALREADY_EXISTS`.
    ResourceAlreadyExists,
    /// `INVALID_PARAMETER_VALUE`; for an alias that is not there too.
    InvalidParameterValue,
    /// `PERMISSION_DENIED`.
    PermissionDenied,
    /// `UNAUTHENTICATED`, or 401 without a code.
    Unauthenticated,
    /// `REQUEST_LIMIT_EXCEEDED`.
    RequestLimitExceeded,
    /// `TEMPORARILY_UNAVAILABLE`.
    TemporarilyUnavailable,
    /// `INTERNAL_ERROR`.
    InternalError,
    /// Another one; empty for a refusal without a code, such as a proxy's.
    Other(String),
}

impl MlflowCode {
    fn of(code: &str, status: u16) -> Self {
        match (code, status) {
            ("RESOURCE_DOES_NOT_EXIST", _) => Self::ResourceDoesNotExist,
            ("RESOURCE_ALREADY_EXISTS", _) => Self::ResourceAlreadyExists,
            ("INVALID_PARAMETER_VALUE", _) => Self::InvalidParameterValue,
            ("PERMISSION_DENIED", _) => Self::PermissionDenied,
            ("UNAUTHENTICATED", _) | ("", 401) => Self::Unauthenticated,
            ("REQUEST_LIMIT_EXCEEDED", _) => Self::RequestLimitExceeded,
            ("TEMPORARILY_UNAVAILABLE", _) => Self::TemporarilyUnavailable,
            ("INTERNAL_ERROR", _) => Self::InternalError,
            (other, _) => Self::Other(clip(other)),
        }
    }

    fn advice(&self) -> &'static str {
        match self {
            Self::ResourceDoesNotExist => "register it first",
            Self::ResourceAlreadyExists => "take what is there",
            Self::InvalidParameterValue => "change what it names",
            Self::PermissionDenied => "grant the user this model",
            Self::Unauthenticated => "check user and password, or the token",
            Self::RequestLimitExceeded | Self::TemporarilyUnavailable | Self::InternalError => {
                "try again later"
            }
            Self::Other(_) => "check that the address is that of an MLflow server",
        }
    }
}

impl fmt::Display for MlflowCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ResourceDoesNotExist => "RESOURCE_DOES_NOT_EXIST",
            Self::ResourceAlreadyExists => "RESOURCE_ALREADY_EXISTS",
            Self::InvalidParameterValue => "INVALID_PARAMETER_VALUE",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::RequestLimitExceeded => "REQUEST_LIMIT_EXCEEDED",
            Self::TemporarilyUnavailable => "TEMPORARILY_UNAVAILABLE",
            Self::InternalError => "INTERNAL_ERROR",
            Self::Other(code) if code.is_empty() => "no code",
            Self::Other(code) => code,
        })
    }
}

/// Why MLflow did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MlflowError {
    /// It refuses.
    #[error("{what} is refused ({status}, {code}{}{said}): {}", if said.is_empty() { "" } else { ": " }, code.advice())]
    Refused {
        /// What was tried.
        what: String,
        /// The HTTP status.
        status: u16,
        /// Its code.
        code: MlflowCode,
        /// What it says, clipped.
        said: String,
    },
    /// It cannot be reached, or did not answer in time.
    #[error("{what}: {error}")]
    Unreachable {
        /// What was tried.
        what: String,
        /// What happened.
        error: Error,
    },
    /// An answer that MLflow should not give.
    #[error("{what}: the answer is not MLflow's; check the address")]
    Answer {
        /// What was asked.
        what: String,
    },
    /// No version of the model has the digest that is to be in production.
    #[error("{model} has no version with the tag {VERSION} = {version}: register it first")]
    Unregistered {
        /// The registered model.
        model: String,
        /// The version.
        version: VersionId,
    },
}

impl MlflowError {
    /// Whether trying again may help.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { code, status, .. } => match code {
                MlflowCode::RequestLimitExceeded
                | MlflowCode::TemporarilyUnavailable
                | MlflowCode::InternalError => ErrorKind::Transient,
                _ => refusal(*status).unwrap_or(ErrorKind::Permanent),
            },
            Self::Unreachable { error, .. } => error.kind(),
            // It may be registered meanwhile.
            Self::Unregistered { .. } => ErrorKind::Transient,
            Self::Answer { .. } => ErrorKind::Permanent,
        }
    }

    fn is(&self, wanted: &MlflowCode) -> bool {
        matches!(self, Self::Refused { code, .. } if code == wanted)
    }
}

impl From<MlflowError> for Error {
    fn from(error: MlflowError) -> Self {
        Self::new(error.kind(), error.to_string()).because(error)
    }
}

/// A registered model of MLflow (2.3 or newer), whose versions carry our digests as tags.
///
/// ```no_run
/// use llm_serve_adapters::registry::MlflowModel;
/// # async fn example(v2: &llm_version_core::VersionId) -> Result<(), llm_serve_adapters::registry::MlflowError> {
/// let model = MlflowModel::open("https://mlflow.example", "chat")?.bearer("...")?;
/// // Once per version, wherever it is published; a second time it finds what is there.
/// let number = model.register(v2, "oci://registry.example/models/chat@sha256:...").await?;
/// assert_eq!(model.find(v2).await?, Some(number));
/// # Ok(())
/// # }
/// ```
///
/// Tags: `llm.version` is the whole id, by which versions are found, `llm.digest` its digest. MLflow gives numbers of its own; two hosts
/// that register one version at the same moment may get two of them, of which the lower counts. Keys and passwords show up
/// neither in errors nor in debug output. Each call takes 10 seconds at most, and is not repeated here. All calls need a tokio
/// runtime.
///
/// Its alias follows a rollout by [`MlflowAlias`].
#[derive(Debug, Clone)]
pub struct MlflowModel {
    http: Http,
    base: Address,
    name: String,
    headers: HeaderMap,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    error_code: String,
    message: String,
}

#[derive(Deserialize)]
struct Nothing {}

#[derive(Deserialize)]
struct One {
    model_version: Numbered,
}

#[derive(Deserialize)]
struct Many {
    /// Left out where there is none.
    #[serde(default)]
    model_versions: Vec<Numbered>,
}

#[derive(Deserialize)]
struct Numbered {
    version: String,
    #[serde(default)]
    tags: Vec<Tag>,
}

#[derive(Deserialize)]
struct Tag {
    key: String,
    #[serde(default)]
    value: String,
}

impl Numbered {
    fn id(&self) -> Option<VersionId> {
        let tag = self.tags.iter().find(|tag| tag.key == VERSION)?;
        tag.value.parse().ok()
    }

    fn number(&self) -> u64 {
        self.version.parse().unwrap_or(u64::MAX)
    }
}

impl MlflowModel {
    /// The registered model of this name on the server at this address, without `/api`. Does not connect.
    ///
    /// # Errors
    /// [`MlflowError::Unreachable`] for an address that is none.
    pub fn open(address: &str, name: &str) -> Result<Self> {
        let unusable = |error| MlflowError::Unreachable {
            what: "the address of MLflow".to_owned(),
            error,
        };
        let base = Address::parse(address).map_err(unusable)?;
        Ok(Self {
            http: Http::new().map_err(unusable)?,
            base: base.with_path(&format!("{}/api/2.0/mlflow", base.path())),
            name: name.to_owned(),
            headers: HeaderMap::new(),
        })
    }

    /// Trusts these certificate authorities beside those of the system.
    ///
    /// # Errors
    /// [`MlflowError::Unreachable`] if no client can be made of them.
    pub fn trust(mut self, authorities: &Authorities) -> Result<Self> {
        let what = "the certificate authorities".to_owned();
        self.http = Http::trusting(authorities)
            .map_err(|error| MlflowError::Unreachable { what, error })?;
        Ok(self)
    }

    /// Sends this bearer token.
    ///
    /// # Errors
    /// [`MlflowError::Unreachable`] for a token that no header can hold.
    pub fn bearer(mut self, token: &str) -> Result<Self> {
        let what = "the token".to_owned();
        self.headers = bearer(token).map_err(|error| MlflowError::Unreachable { what, error })?;
        Ok(self)
    }

    /// Sends this user and password.
    ///
    /// # Errors
    /// As [`Self::bearer`].
    pub fn password(mut self, user: &str, password: &str) -> Result<Self> {
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        let header = secret("the password", &format!("Basic {pair}"));
        let what = "the password".to_owned();
        let header = header.map_err(|error| MlflowError::Unreachable { what, error })?;
        self.headers = HeaderMap::from_iter([(AUTHORIZATION, header)]);
        Ok(self)
    }

    /// Registers a version, and the model if there is none. `source` is where the bundle is, by a scheme that the server allows, such
    /// as `oci://`. The version's number; that of an earlier registration if there was one.
    ///
    /// # Errors
    /// If MLflow refuses or cannot be reached.
    pub async fn register(&self, version: &VersionId, source: &str) -> Result<String> {
        let create = json!({ "name": self.name });
        let made = self.post::<Value>("register the model", "registered-models/create", &create);
        match made.await {
            Err(e) if !e.is(&MlflowCode::ResourceAlreadyExists) => return Err(e),
            _ => {}
        }
        if let Some(number) = self.find(version).await? {
            return Ok(number);
        }
        let create = json!({
            "name": self.name,
            "source": source,
            "tags": [
                { "key": VERSION, "value": version.to_string() },
                { "key": DIGEST, "value": version.digest().to_string() },
            ],
        });
        let made = self.post::<One>("register a version", "model-versions/create", &create);
        Ok(made.await?.model_version.version)
    }

    /// The number of a version, if it is registered.
    ///
    /// # Errors
    /// As [`Self::register`].
    pub async fn find(&self, version: &VersionId) -> Result<Option<String>> {
        let name = self.name.replace('\'', "''");
        let filter = format!("name='{name}' and tag.`{VERSION}`='{version}'");
        let to = self.at("model-versions/search", &[("filter", &filter)]);
        let found: Many = self.send("find a version", Method::GET, &to, None).await?;
        let same = found
            .model_versions
            .into_iter()
            .filter(|v| v.id().as_ref() == Some(version));
        Ok(same.min_by_key(Numbered::number).map(|v| v.version))
    }

    /// The version that an alias means; none if there is no such alias, or no version of ours behind it.
    ///
    /// # Errors
    /// As [`Self::register`].
    pub async fn aliased(&self, alias: &str) -> Result<Option<VersionId>> {
        let pairs = [("name", self.name.as_str()), ("alias", alias)];
        let to = self.at("registered-models/alias", &pairs);
        let found = self.send::<One>("read an alias", Method::GET, &to, None);
        match found.await {
            Ok(found) => Ok(found.model_version.id()),
            // So it says that an alias is not there.
            Err(e)
                if e.is(&MlflowCode::InvalidParameterValue)
                    || e.is(&MlflowCode::ResourceDoesNotExist) =>
            {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Moves an alias to a version; it is made if there is none.
    ///
    /// # Errors
    /// [`MlflowError::Unregistered`] for a version that MLflow does not have; else as [`Self::register`].
    pub async fn set_alias(&self, alias: &str, version: &VersionId) -> Result<()> {
        let Some(number) = self.find(version).await? else {
            return Err(MlflowError::Unregistered {
                model: self.name.clone(),
                version: version.clone(),
            });
        };
        let set = json!({ "name": self.name, "alias": alias, "version": number });
        let set = self.post::<Nothing>("move an alias", "registered-models/alias", &set);
        set.await.map(|_| ())
    }

    fn at(&self, path: &str, pairs: &[(&str, &str)]) -> Address {
        let to = self.base.with_path(&format!("{}/{path}", self.base.path()));
        if pairs.is_empty() {
            to
        } else {
            to.with_query(pairs)
        }
    }

    async fn post<T: DeserializeOwned>(&self, doing: &str, path: &str, body: &Value) -> Result<T> {
        let to = self.at(path, &[]);
        self.send(
            doing,
            Method::POST,
            &to,
            Some(body.to_string().into_bytes()),
        )
        .await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        doing: &str,
        method: Method,
        to: &Address,
        json: Option<Vec<u8>>,
    ) -> Result<T> {
        let what = format!("{doing} of {} at {}", self.name, self.base);
        let call = Call {
            to,
            headers: self.headers.clone(),
            json,
            timeout: TIMEOUT,
            limit: REPLY,
        };
        let reply = match self.http.send_as(method, call).await {
            Ok(reply) => reply,
            Err(error) => return Err(MlflowError::Unreachable { what, error }),
        };
        if refusal(reply.status).is_some() {
            let said: Refusal = serde_json::from_slice(&reply.body).unwrap_or_default();
            return Err(MlflowError::Refused {
                what,
                status: reply.status,
                code: MlflowCode::of(&said.error_code, reply.status),
                said: clip(&said.message),
            });
        }
        serde_json::from_slice(&reply.body).map_err(|_| MlflowError::Answer { what })
    }
}

impl MlflowModel {
    /// The same as a host component says it.
    async fn follow(&self, alias: &str, version: &VersionId) -> host::Result<()> {
        if self.aliased(alias).await?.as_ref() == Some(version) {
            return Ok(());
        }
        Ok(self.set_alias(alias, version).await?)
    }
}
