//! Notices as signed webhooks.

use super::post::{self, Post};
use crate::host::{Letter, Notifier, Result};
use crate::http_client::{Address, Authorities, secret};
use crate::signature::Secret;
use async_trait::async_trait;
use reqwest::header::{HeaderMap, HeaderName};
use serde::Serialize;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest text, in characters: a body then has less than 64 KiB, however it is escaped.
const LONGEST: usize = 8_000;

/// Posts each notice as JSON, signed as the Standard Webhooks specification has it, so that receivers can use a ready library.
///
/// The body is `{"id", "endpoint", "rollout", "page", "text"}`. `webhook-id` is the same text as `id` in the body and stays the
/// same when a notice is sent again; `webhook-timestamp` is the time of sending in Unix seconds; `webhook-signature` is `v1,`
/// and the base64 form of HMAC-SHA256 over `id.timestamp.body`. A receiver checks the signature, refuses old timestamps, and
/// drops ids that it has seen. A text of more than 8,000 characters is cut off.
///
/// 2xx is success; 4xx other than 408, 425 and 429 is `Permanent`; the rest is `Transient`. Redirects are not followed, and
/// proxies are not used. Neither the secret nor the path of the address shows up in errors or debug output.
///
/// ```
/// use llm_serve_adapters::notify::WebhookNotifier;
///
/// let pager = WebhookNotifier::new("https://hooks.example/llm/T0KEN", "a secret of 16 bytes or more")?;
/// assert!(!format!("{pager:?}").contains("secret of"));
/// assert!(!format!("{pager:?}").contains("T0KEN"));
/// # Ok::<(), llm_serve_adapters::host::Error>(())
/// ```
pub struct WebhookNotifier {
    post: Post,
    secret: Secret,
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    endpoint: &'a str,
    rollout: &'a str,
    page: bool,
    text: String,
}

impl WebhookNotifier {
    /// Posts to this address, signed with this secret (of at least 16 bytes, used as it is).
    ///
    /// # Errors
    /// `Permanent` for an address that is not one, or a secret that is too short.
    pub fn new(address: &str, secret: impl AsRef<[u8]>) -> Result<Self> {
        Ok(Self {
            post: Post::new(Address::parse(address)?)?,
            secret: Secret::new(secret.as_ref())?,
        })
    }

    /// Trusts these certificate authorities beside those of the system.
    ///
    /// # Errors
    /// `Permanent` if no client can be made with them.
    pub fn trust(mut self, authorities: &Authorities) -> Result<Self> {
        self.post.trust(authorities)?;
        Ok(self)
    }

    /// How long one attempt may take, 10 seconds unless told otherwise.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.post.timeout = timeout;
        self
    }

    /// The whole request but its address.
    fn message(&self, letter: &Letter<'_>, seconds: u64) -> Result<(HeaderMap, Vec<u8>)> {
        let notice = letter.notice;
        let id = letter.key();
        let body = Body {
            id: &id,
            endpoint: letter.endpoint.as_str(),
            rollout: notice.rollout.as_str(),
            page: notice.page,
            text: post::shorten(&notice.text, LONGEST),
        };
        let body = post::json(letter, &body)?;
        let signature = self.secret.sign(&id, seconds, &body);
        let headers = HeaderMap::from_iter([
            (
                HeaderName::from_static("webhook-id"),
                secret("the id", &id)?,
            ),
            (HeaderName::from_static("webhook-timestamp"), seconds.into()),
            (
                HeaderName::from_static("webhook-signature"),
                secret("the signature", &signature)?,
            ),
        ]);
        Ok((headers, body))
    }
}

impl fmt::Debug for WebhookNotifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookNotifier")
            .field("post", &self.post)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Notifier for WebhookNotifier {
    async fn notify(&self, letter: &Letter<'_>) -> Result<()> {
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let (headers, json) = self.message(letter, seconds)?;
        self.post.send(letter, headers, json).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ErrorKind;
    use axum::Router;
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::post;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use hmac::{Hmac, KeyInit, Mac};
    use llm_rollout::{EndpointId, IntentId, Notice, RolloutId, Seq};
    use sha2::Sha256;
    use std::sync::{Arc, Mutex};
    use tokio::net::TcpListener;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn chat() -> EndpointId {
        EndpointId::new("chat").unwrap()
    }

    fn letter<'a>(endpoint: &'a EndpointId, id: IntentId, notice: &'a Notice) -> Letter<'a> {
        Letter {
            endpoint,
            id,
            notice,
        }
    }

    fn notice() -> (IntentId, Notice) {
        let id = IntentId {
            seq: Seq::new(12),
            index: 0,
        };
        (
            id,
            Notice {
                page: true,
                rollout: RolloutId::new("chat-v2").unwrap(),
                text: "rolled \"back\"".to_owned(),
            },
        )
    }

    async fn serve(app: Router) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/hook/T0KEN", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        address
    }

    #[tokio::test]
    async fn posts_what_a_receiver_can_check() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let app = Router::new().route(
            "/hook/T0KEN",
            post(async move |headers: HeaderMap, body: String| {
                sink.lock().unwrap().push((headers, body));
                StatusCode::NO_CONTENT
            }),
        );
        let notifier = WebhookNotifier::new(&serve(app).await, SECRET).unwrap();
        let (id, notice) = notice();
        notifier
            .notify(&letter(&chat(), id, &notice))
            .await
            .unwrap();
        notifier
            .notify(&letter(&chat(), id, &notice))
            .await
            .unwrap();
        let seen = seen.lock().unwrap();
        let [(headers, body), (again, same)] = &seen[..] else {
            panic!("{seen:?}")
        };
        assert_eq!(
            body,
            r#"{"id":"chat.chat-v2.12.0","endpoint":"chat","rollout":"chat-v2","page":true,"text":"rolled \"back\""}"#
        );
        assert_eq!(
            (same, &again["webhook-id"]),
            (body, &headers["webhook-id"]),
            "a repetition has the same id"
        );
        assert_eq!(headers["webhook-id"], "chat.chat-v2.12.0");
        assert_eq!(headers["content-type"], "application/json");
        let time = headers["webhook-timestamp"].to_str().unwrap();
        // As a receiver does it.
        let mut mac = Hmac::<Sha256>::new_from_slice(SECRET).unwrap();
        mac.update(format!("chat.chat-v2.12.0.{time}.{body}").as_bytes());
        let signature = headers["webhook-signature"]
            .to_str()
            .unwrap()
            .strip_prefix("v1,")
            .unwrap();
        mac.verify_slice(&STANDARD.decode(signature).unwrap())
            .unwrap();
    }

    #[test]
    fn signs_as_the_specification_does() {
        // The test vector of the Standard Webhooks reference libraries.
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let notifier = WebhookNotifier::new("http://localhost", secret).unwrap();
        assert_eq!(
            notifier.secret.sign(
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                br#"{"test": 2432232314}"#
            ),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[tokio::test]
    async fn answers_say_whether_to_try_again() {
        let (id, notice) = notice();
        for (status, kind) in [
            (400, ErrorKind::Permanent),
            (404, ErrorKind::Permanent),
            (408, ErrorKind::Transient),
            (429, ErrorKind::Transient),
            (307, ErrorKind::Transient),
            (500, ErrorKind::Transient),
            (503, ErrorKind::Transient),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let app = Router::new()
                .fallback(async move || (status, [("location", "/elsewhere")], "because\nof it"));
            let error = WebhookNotifier::new(&serve(app).await, SECRET)
                .unwrap()
                .notify(&letter(&chat(), id, &notice))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            let text = error.to_string();
            assert!(
                text.contains(status.as_str()) && text.contains("because of it"),
                "{text}"
            );
            assert!(!text.contains("T0KEN"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_receiver_that_hangs_or_is_not_there_is_transient() {
        let (id, notice) = notice();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/T0KEN", listener.local_addr().unwrap());
        let notifier = WebhookNotifier::new(&address, SECRET)
            .unwrap()
            .timeout(Duration::from_millis(100));
        let hangs = notifier
            .notify(&letter(&chat(), id, &notice))
            .await
            .unwrap_err();
        drop(listener);
        let gone = notifier
            .notify(&letter(&chat(), id, &notice))
            .await
            .unwrap_err();
        for (error, part) in [
            (hangs, "did not answer within 100ms"),
            (gone, "cannot be reached"),
        ] {
            assert_eq!(error.kind(), ErrorKind::Transient);
            assert!(error.to_string().contains(part), "{error}");
            assert!(!format!("{error:?}").contains("T0KEN"), "{error:?}");
        }
    }

    #[test]
    fn weak_secrets_and_bad_addresses_are_refused() {
        assert!(WebhookNotifier::new("http://localhost", "short").is_err());
        assert!(WebhookNotifier::new("localhost", SECRET).is_err());
        let shown = format!(
            "{:?}",
            WebhookNotifier::new("http://localhost/T0KEN", SECRET).unwrap()
        );
        assert!(
            !shown.contains("0123") && !shown.contains("T0KEN"),
            "{shown}"
        );
    }
}
