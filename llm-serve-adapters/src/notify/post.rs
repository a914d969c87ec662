//! Posting a notice as JSON: what the notifiers over HTTP share.

use crate::host::{Error, Letter, Result};
use crate::http_client::{Address, Authorities, Call, Http, clip, refusal};
use reqwest::header::HeaderMap;
use serde::Serialize;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a reply that are looked at.
const REPLY: usize = 64 << 10;

/// Where notices are posted. Shown without path and query, which may be secret.
#[derive(Debug)]
pub(super) struct Post {
    http: Http,
    to: Address,
    pub(super) timeout: Duration,
}

impl Post {
    pub(super) fn new(to: Address) -> Result<Self> {
        Ok(Self {
            http: Http::new()?,
            to,
            timeout: TIMEOUT,
        })
    }

    /// Trusts these authorities too.
    pub(super) fn trust(&mut self, authorities: &Authorities) -> Result<()> {
        self.http = Http::trusting(authorities)?;
        Ok(())
    }

    /// Posts it. 2xx is success; 4xx other than 408, 425 and 429 is `Permanent`; the rest is `Transient`.
    pub(super) async fn send(
        &self,
        letter: &Letter<'_>,
        headers: HeaderMap,
        json: Vec<u8>,
    ) -> Result<()> {
        let call = Call {
            to: &self.to,
            headers,
            json: Some(json),
            timeout: self.timeout,
            limit: REPLY,
        };
        let reply = self.http.send(call).await?;
        let Some(kind) = refusal(reply.status) else {
            return Ok(());
        };
        let advice = match reply.status {
            300..=399 => "redirects are not followed: give the final address",
            401 | 403 => "check its address and secret",
            404 | 410 => "check its address",
            _ => "see the receiver's own log",
        };
        let said = clip(&String::from_utf8_lossy(&reply.body));
        let (to, status, id) = (&self.to, reply.status, letter.key());
        Err(Error::new(
            kind,
            format!("{to} answers {status} to the notice {id} ({said}): {advice}"),
        ))
    }
}

/// A notice as JSON.
pub(super) fn json(letter: &Letter<'_>, body: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(body).map_err(|e| {
        Error::permanent(format!(
            "the notice {} cannot be written as JSON",
            letter.key()
        ))
        .because(e)
    })
}

/// At most this many characters, with a sign that some were left out.
pub(super) fn shorten(text: &str, most: usize) -> String {
    let mut short: String = text.chars().take(most).collect();
    if text.chars().nth(most).is_some() {
        short.push_str(" ...");
    }
    short
}

/// Letters, and receivers on the loopback interface that keep what they get.
#[cfg(test)]
pub(super) mod testing {
    use crate::host::Letter;
    use axum::Router;
    use axum::http::{HeaderMap, StatusCode, Uri};
    use llm_rollout::{EndpointId, IntentId, Notice, RolloutId, Seq};
    use std::sync::{Arc, Mutex};
    use tokio::net::TcpListener;

    pub(crate) struct Sent {
        endpoint: EndpointId,
        notice: Notice,
    }

    impl Sent {
        pub(crate) fn new(page: bool, text: &str) -> Self {
            Self {
                endpoint: EndpointId::new("chat").unwrap(),
                notice: Notice {
                    page,
                    rollout: RolloutId::new("chat-v2").unwrap(),
                    text: text.to_owned(),
                },
            }
        }

        /// Its key is `chat.chat-v2.12.0`.
        pub(crate) fn letter(&self) -> Letter<'_> {
            Letter {
                endpoint: &self.endpoint,
                id: IntentId {
                    seq: Seq::new(12),
                    index: 0,
                },
                notice: &self.notice,
            }
        }
    }

    /// Serves it, and says at which address.
    pub(crate) async fn serve(app: Router) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        address
    }

    /// What a receiver got: path, headers and body of each request.
    pub(crate) type Got = Arc<Mutex<Vec<(String, HeaderMap, serde_json::Value)>>>;

    /// A receiver that keeps what it gets, and answers like this.
    pub(crate) async fn receiver(status: u16, answer: &'static str) -> (String, Got) {
        let got = Got::default();
        let sink = Arc::clone(&got);
        let status = StatusCode::from_u16(status).unwrap();
        let app =
            Router::new().fallback(async move |uri: Uri, headers: HeaderMap, body: String| {
                let body = serde_json::from_str(&body).unwrap();
                sink.lock()
                    .unwrap()
                    .push((uri.path().to_owned(), headers, body));
                (status, answer)
            });
        (serve(app).await, got)
    }
}
