//! Asking a server over HTTP to load, show and drop what it serves.
#![allow(dead_code, reason = "each server needs its part of it")]

use crate::host::{Error, ErrorKind, Result};
use crate::http_client::{Address, Call, Http, Method, bearer, clip, refusal};
use crate::metrics_text;
use reqwest::header::HeaderMap;
use serde_json::Value;
use std::fmt;
use std::time::Duration;

/// Bytes of a reply that are read; metrics are the longest.
const REPLY: usize = 8 << 20;

/// One server, and the key for it.
#[derive(Clone)]
pub(super) struct Control {
    http: Http,
    base: Address,
    headers: HeaderMap,
    key: Option<String>,
}

/// What the server answered, whatever its status.
pub(super) struct Said {
    from: Address,
    pub(super) status: u16,
    body: Vec<u8>,
    key: Option<String>,
}

impl Control {
    pub(super) fn new(http: Http, base: &str, key: Option<&str>) -> Result<Self> {
        let base = Address::parse(base)?;
        if base.has_query() {
            return Err(Error::permanent(format!(
                "the address of {base} holds a '?': give it without a query"
            )));
        }
        let headers = key.map(bearer).transpose()?.unwrap_or_default();
        Ok(Self {
            http,
            base,
            headers,
            key: key.map(str::to_owned),
        })
    }

    /// The same server at another address.
    pub(super) fn at(&self, base: &str) -> Result<Self> {
        let base = Address::parse(base)?;
        Ok(Self {
            base,
            ..self.clone()
        })
    }

    /// Sends it to this path below the server's address.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        json: Option<&Value>,
        timeout: Duration,
    ) -> Result<Said> {
        let to = self.base.with_path(&format!("{}{path}", self.base.path()));
        let to = if query.is_empty() {
            to
        } else {
            to.with_query(query)
        };
        let call = Call {
            to: &to,
            headers: self.headers.clone(),
            json: json.map(|json| json.to_string().into_bytes()),
            timeout,
            limit: REPLY,
        };
        let reply = self.http.send_as(method, call).await?;
        Ok(Said {
            from: self.base.clone(),
            status: reply.status,
            body: reply.body,
            key: self.key.clone(),
        })
    }

    pub(super) async fn get(&self, path: &str, timeout: Duration) -> Result<Said> {
        self.call(Method::GET, path, &[], None, timeout).await
    }

    pub(super) async fn post(&self, path: &str, json: &Value, timeout: Duration) -> Result<Said> {
        self.call(Method::POST, path, &[], Some(json), timeout)
            .await
    }

    /// The values of these metrics whose labels are wanted, added up; none if there is no such line, or are no metrics.
    pub(super) async fn gauge(
        &self,
        path: &str,
        names: &[&str],
        labels: &[(&str, &str)],
        timeout: Duration,
    ) -> Result<Option<u64>> {
        let said = self.get(path, timeout).await?;
        if said.status == 404 {
            return Ok(None);
        }
        let said = said.accepted("give the address of its metrics")?;
        let text = String::from_utf8_lossy(&said.body);
        let lines = metrics_text::lines(&text, &|name| names.contains(&name))?;
        let wanted = lines.iter().filter(|line| {
            let same =
                |(label, value): &(&str, &str)| line.labels.get(*label).is_some_and(|v| v == value);
            labels.iter().all(same)
        });
        let mut sum = None;
        for line in wanted {
            // A gauge of requests is a small whole number; anything else is none.
            if !(0.0..1e12).contains(&line.value) {
                return Err(Error::transient(format!(
                    "{} tells {} of {}, which is no number of requests",
                    self.base, line.value, line.name
                )));
            }
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "checked above"
            )]
            let value = line.value.ceil() as u64;
            sum = Some(sum.unwrap_or(0) + value);
        }
        Ok(sum)
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Control").field(&self.base).finish()
    }
}

impl Said {
    /// Whether the server did what it was asked for.
    pub(super) fn is_ok(&self) -> bool {
        refusal(self.status).is_none()
    }

    /// The reply if it is one of success, otherwise an error with this advice.
    pub(super) fn accepted(self, advice: &str) -> Result<Self> {
        match refusal(self.status) {
            None => Ok(self),
            Some(kind) => Err(self.error(kind, advice)),
        }
    }

    /// An error that tells what the server said.
    pub(super) fn error(&self, kind: ErrorKind, advice: &str) -> Error {
        let (from, status) = (&self.from, self.status);
        Error::new(
            kind,
            format!("{from} answers {status} ({}): {advice}", self.text()),
        )
    }

    /// What it says, in one short line and without the key: the message of an error, or the reply itself.
    pub(super) fn text(&self) -> String {
        let value: Option<Value> = serde_json::from_slice(&self.body).ok();
        let message = value.as_ref().and_then(|value| {
            let inner = value.get("error").filter(|e| !e.is_null()).unwrap_or(value);
            let message = ["message", "status"]
                .iter()
                .find_map(|name| inner.get(name));
            message.unwrap_or(inner).as_str().map(str::to_owned)
        });
        let text = message.unwrap_or_else(|| String::from_utf8_lossy(&self.body).into_owned());
        match &self.key {
            Some(key) if !key.is_empty() => clip(&text.replace(key, "...")),
            _ => clip(&text),
        }
    }

    /// The reply as JSON.
    pub(super) fn json(&self, what: &str) -> Result<Value> {
        // The error of serde_json may quote the reply, which can be anybody's text.
        serde_json::from_slice(&self.body).map_err(|e| {
            let (from, line, column) = (&self.from, e.line(), e.column());
            Error::permanent(format!(
                "{from} answers with what is not {what} (line {line}, column {column}): check the address"
            ))
        })
    }
}

/// Whether a name can stand in a path.
pub(super) fn name(what: &str, name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || !name.chars().all(fits) || name.chars().all(|c| c == '.') {
        return Err(Error::permanent(format!(
            "{what} {:?} cannot be used: letters, digits, '.', '_' and '-' can",
            clip(name)
        )));
    }
    Ok(())
}
