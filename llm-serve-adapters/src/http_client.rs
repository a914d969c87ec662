//! The HTTP client that adapters share: no redirects, no proxies, no unbounded bodies, no call without an end, and nothing
//! secret in an error or a debug output.
#![allow(dead_code, reason = "each adapter needs its part of it")]

mod authorities;

pub use self::authorities::Authorities;

use crate::host::{Error, ErrorKind, Result};
pub(crate) use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Client, Url, redirect};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an idle connection is kept: short, as servers close theirs.
const IDLE: Duration = Duration::from_secs(5);

/// An address that has been checked. It is shown without path and query: those of webhooks hold secrets.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Address(Url);

impl Address {
    /// Checks an address: `http` or `https`, a host, no user, no fragment.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            Err(Error::permanent(format!(
                "the address cannot be used: {why}; write for example http://10.0.0.7:8000"
            )))
        };
        let Ok(url) = Url::parse(text) else {
            return refuse("it is not a URL");
        };
        if !matches!(url.scheme(), "http" | "https") {
            return refuse("it is neither http nor https");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("it holds a user or a password (give a key instead)");
        }
        if url.fragment().is_some() {
            return refuse("it holds a '#'");
        }
        Ok(Self(url))
    }

    /// Whether it asks a query.
    pub(crate) fn has_query(&self) -> bool {
        self.0.query().is_some()
    }

    /// Its path, without a slash at the end.
    pub(crate) fn path(&self) -> &str {
        self.0.path().trim_end_matches('/')
    }

    /// With another path.
    pub(crate) fn with_path(&self, path: &str) -> Self {
        let mut url = self.0.clone();
        url.set_path(path);
        Self(url)
    }

    /// With this query instead of its own.
    pub(crate) fn with_query(&self, pairs: &[(&str, &str)]) -> Self {
        let mut url = self.0.clone();
        url.query_pairs_mut().clear().extend_pairs(pairs);
        Self(url)
    }

    /// With this query after its own.
    pub(crate) fn and_query(&self, pairs: &[(&str, &str)]) -> Self {
        let mut url = self.0.clone();
        url.query_pairs_mut().extend_pairs(pairs);
        Self(url)
    }

    /// Where a `Location` header of its reply leads, which may be relative.
    pub(crate) fn join(&self, location: &str) -> Result<Self> {
        let url = self.0.join(location).map_err(|_| {
            Error::permanent(format!("{self} sends to an address that cannot be read"))
        })?;
        Self::parse(url.as_str())
    }

    /// Whether what is sent there is encrypted.
    pub(crate) fn is_secure(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// Whether it is of the same server.
    pub(crate) fn same_origin(&self, other: &Self) -> bool {
        self.0.origin() == other.0.origin()
    }

    /// All of it, to tell addresses apart; it may hold secrets.
    pub(crate) fn identity(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}://{}",
            self.0.scheme(),
            self.0.host_str().unwrap_or_default()
        )?;
        self.0.port().map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A request: GET, or POST where there is JSON to send, unless it is sent as something else.
pub(crate) struct Call<'a> {
    pub(crate) to: &'a Address,
    pub(crate) headers: HeaderMap,
    pub(crate) json: Option<Vec<u8>>,
    /// For all of it, to the last byte of the reply.
    pub(crate) timeout: Duration,
    /// Bytes of the reply that are read.
    pub(crate) limit: usize,
}

/// A reply, whatever its status.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

#[derive(Clone)]
pub(crate) struct Http {
    client: Client,
    /// Why `https` cannot be had, if it cannot.
    untrusting: Option<String>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").finish_non_exhaustive()
    }
}

impl Http {
    pub(crate) fn new() -> Result<Self> {
        Self::trusting(&Authorities::default())
    }

    /// Trusts these authorities too.
    pub(crate) fn trusting(authorities: &Authorities) -> Result<Self> {
        let unusable =
            |e: &dyn fmt::Display| Error::permanent(format!("no HTTP client can be made: {e}"));
        // The provider is named here: nothing is installed for the whole process.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| unusable(&e))?;
        let (tls, untrusting) = match rustls_platform_verifier::Verifier::new_with_extra_roots(
            authorities.certificates(),
            provider,
        ) {
            Ok(verifier) => (
                tls.dangerous()
                    .with_custom_certificate_verifier(Arc::new(verifier)),
                None,
            ),
            // A container without certificates can still talk to its neighbours in the clear.
            Err(e) => (
                tls.with_root_certificates(rustls::RootCertStore::empty()),
                Some(e.to_string()),
            ),
        };
        let client = Client::builder()
            .tls_backend_preconfigured(tls.with_no_client_auth())
            .redirect(redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT)
            .pool_idle_timeout(IDLE)
            .user_agent(concat!("llm-serve-adapters/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| unusable(&e))?;
        Ok(Self { client, untrusting })
    }

    /// Sends it, and hands back the reply as soon as its head is there. It has no end of its own: the caller bounds it.
    #[cfg(feature = "oci")]
    pub(crate) async fn open(
        &self,
        method: Method,
        to: &Address,
        headers: HeaderMap,
        body: Option<reqwest::Body>,
    ) -> Result<reqwest::Response> {
        self.ready(to)?;
        let mut request = self.client.request(method, to.0.clone()).headers(headers);
        if let Some(body) = body {
            request = request.body(body);
        }
        request.send().await.map_err(|e| failure(to, CONNECT, e))
    }

    /// Whether anything can be sent there.
    fn ready(&self, to: &Address) -> Result<()> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(Error::permanent(format!(
                "calling {to} needs a tokio runtime: call it from within one"
            )));
        }
        if let (Some(why), "https") = (&self.untrusting, to.0.scheme()) {
            return Err(Error::permanent(format!(
                "{to} cannot be trusted, as this system has no certificates ({why}): install its ca-certificates"
            )));
        }
        Ok(())
    }

    /// Sends it and reads the reply.
    pub(crate) async fn send(&self, call: Call<'_>) -> Result<Reply> {
        let method = if call.json.is_some() {
            Method::POST
        } else {
            Method::GET
        };
        self.send_as(method, call).await
    }

    /// The same with this method.
    pub(crate) async fn send_as(&self, method: Method, call: Call<'_>) -> Result<Reply> {
        let Call {
            to,
            headers,
            json,
            timeout,
            limit,
        } = call;
        self.ready(to)?;
        let mut request = self
            .client
            .request(method, to.0.clone())
            .headers(headers)
            .timeout(timeout);
        if let Some(json) = json {
            request = request.header(CONTENT_TYPE, "application/json").body(json);
        }
        let failed = |e: reqwest::Error| failure(to, timeout, e);
        let mut reply = request.send().await.map_err(failed)?;
        let mut body = Vec::new();
        while let Some(chunk) = reply.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > limit {
                return Err(Error::permanent(format!(
                    "{to} answers with more than {limit} bytes: check that the address is the right one"
                )));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Reply {
            status: reply.status().as_u16(),
            body,
        })
    }
}

/// What a status other than success means for the caller; `None` for success.
pub(crate) fn refusal(status: u16) -> Option<ErrorKind> {
    match status {
        200..=299 => None,
        // 424 is what text-generation-inference says of a generation that failed.
        408 | 424 | 425 | 429 => Some(ErrorKind::Transient),
        400..=499 => Some(ErrorKind::Permanent),
        _ => Some(ErrorKind::Transient),
    }
}

/// A header that no debug output shows.
pub(crate) fn secret(what: &str, value: &str) -> Result<reqwest::header::HeaderValue> {
    let mut value = reqwest::header::HeaderValue::from_str(value).map_err(|_| {
        Error::permanent(format!(
            "{what} holds characters that no header can: give it without line ends"
        ))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// `Authorization: Bearer` with this key.
pub(crate) fn bearer(key: &str) -> Result<HeaderMap> {
    Ok(HeaderMap::from_iter([(
        reqwest::header::AUTHORIZATION,
        secret("the key", &format!("Bearer {key}"))?,
    )]))
}

/// The start of a text from elsewhere, in one line, fit for an error message.
pub(crate) fn clip(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut line: String = text
        .chars()
        .take(LONGEST)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        line.push_str(" ...");
    }
    line
}

fn failure(to: &Address, timeout: Duration, error: reqwest::Error) -> Error {
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let why = clip(&cause.to_string());
    let out = if error.is_builder() {
        Error::permanent(format!(
            "a request to {to} cannot be made ({why}): check the address"
        ))
    } else if error.is_connect() {
        Error::transient(format!(
            "{to} cannot be reached ({why}): check that it runs and listens there"
        ))
    } else if error.is_timeout() {
        Error::transient(format!(
            "{to} did not answer within {timeout:?}: check that it is not stuck or overloaded"
        ))
    } else {
        Error::transient(format!("the connection to {to} broke ({why}): try again"))
    };
    out.because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_and_shown_without_secrets() {
        for bad in [
            "",
            "chat",
            "ftp://x/",
            "http://",
            "http://user@host/",
            "http://u:p@host/",
            "http://host/#x",
        ] {
            let error = Address::parse(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Permanent, "{bad}");
        }
        let address = Address::parse("https://hooks.example:444/T0KEN?key=SECRET").unwrap();
        assert_eq!(
            format!("{address} {address:?}"),
            "https://hooks.example:444 https://hooks.example:444"
        );
    }

    #[test]
    fn statuses_say_what_to_do() {
        assert_eq!(refusal(204), None);
        for again in [301, 408, 424, 425, 429, 500, 503, 599, 100] {
            assert_eq!(refusal(again), Some(ErrorKind::Transient), "{again}");
        }
        for never in [400, 401, 403, 404, 410, 422] {
            assert_eq!(refusal(never), Some(ErrorKind::Permanent), "{never}");
        }
    }

    #[test]
    fn clipped_texts_are_one_short_line() {
        assert_eq!(clip("a\nb\u{1b}c"), "a b c");
        assert_eq!(clip(&"é".repeat(300)).chars().count(), 204);
    }

    #[test]
    fn without_a_runtime_it_is_an_error() {
        use std::task::{Context, Poll, Waker};
        let http = Http::new().unwrap();
        let to = Address::parse("http://127.0.0.1:1").unwrap();
        let call = Call {
            to: &to,
            headers: HeaderMap::new(),
            json: None,
            timeout: Duration::from_secs(1),
            limit: 10,
        };
        let mut future = Box::pin(http.send(call));
        let Poll::Ready(Err(e)) = future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        else {
            panic!()
        };
        assert!(e.to_string().contains("needs a tokio runtime"), "{e}");
    }
}
