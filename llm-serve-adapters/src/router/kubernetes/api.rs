//! One object behind the API server: read whole, and replaced if nobody has changed it since.

use super::object::Kind;
use crate::host::{Error, Result};
use kube::Client;
use kube::core::params::{GetParams, PostParams};
use kube::core::request::Request;
use serde_json::Value;
use std::time::Duration;

/// How long one exchange with the API server may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How a replacement ended that was not refused.
pub(super) enum Replaced {
    /// The object as it is now.
    Now(Value),
    /// Somebody else has changed it since it was read; nothing has been written.
    Meanwhile,
    /// Nobody knows whether it has been written.
    Perhaps(Error),
}

/// One object, by its name.
pub(super) struct Object {
    pub(super) client: Client,
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Object {
    /// Reads it, as of now.
    pub(super) async fn get(&self) -> Result<Value> {
        let request = self.requests().get(&self.name, &GetParams::default());
        let request = request.map_err(|e| self.unnameable(e))?;
        self.ask(request).await.map_err(|failed| failed.error)
    }

    /// Replaces it by what was made of what [`Self::get`] has read: `metadata.resourceVersion` says which that was.
    ///
    /// # Errors
    /// It was refused; nothing has been written.
    pub(super) async fn replace(&self, object: &Value) -> Result<Replaced> {
        let requests = self.requests();
        let bytes = object.to_string().into_bytes();
        let request = requests.replace(&self.name, &PostParams::default(), bytes);
        let request = request.map_err(|e| self.unnameable(e))?;
        match self.ask(request).await {
            Ok(object) => Ok(Replaced::Now(object)),
            Err(Failed { code: 409, .. }) => Ok(Replaced::Meanwhile),
            Err(Failed {
                code: 400..500,
                error,
            }) => Err(error),
            Err(failed) => Ok(Replaced::Perhaps(failed.error)),
        }
    }

    fn requests(&self) -> Request {
        Request::new(self.kind.path(&self.namespace))
    }

    fn unnameable(&self, e: kube::core::request::Error) -> Error {
        Error::permanent(format!("{self} cannot be asked for: check its name")).because(e)
    }

    async fn ask(&self, request: http::Request<Vec<u8>>) -> std::result::Result<Value, Failed> {
        match tokio::time::timeout(TIMEOUT, self.client.request(request)).await {
            Ok(Ok(object)) => Ok(object),
            Ok(Err(e)) => Err(self.failed(e)),
            Err(_) => Err(Failed {
                code: 0,
                error: Error::transient(format!(
                    "the API server did not answer about {self} within {TIMEOUT:?}"
                )),
            }),
        }
    }

    fn failed(&self, e: kube::Error) -> Failed {
        let kube::Error::Api(status) = &e else {
            let text = format!("the API server cannot be reached about {self}: {e}");
            return Failed {
                code: 0,
                error: Error::transient(text).because(e),
            };
        };
        let (code, said) = (
            status.code,
            format!("{} {}: {}", status.code, status.reason, status.message),
        );
        let error = match code {
            404 => Error::permanent(format!("there is no {self} ({said}): create it first")),
            401 | 403 => Error::permanent(format!(
                "the API server refuses {self} ({said}): its role needs the verbs get and update"
            )),
            // Too many requests, or a server that cannot.
            408 | 429 | 500.. => {
                Error::transient(format!("the API server cannot now serve {self} ({said})"))
            }
            _ => Error::permanent(format!("the API server refuses {self} ({said})")),
        };
        Failed {
            code,
            error: error.because(e),
        }
    }
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind.name(), self.namespace, self.name)
    }
}

/// No object. The code is 0 if the server did not say one.
struct Failed {
    code: u16,
    error: Error,
}
