//! Alarms from outside, as webhooks whose sender is checked: what Alertmanager sends, `CloudWatch` alarms through SNS, and
//! whatever a host signs itself (feature `alarm-webhook`).
//!
//! [`AlarmWebhook::receive`] turns headers and a body into alarms, without any transport; [`AlarmService`] puts them before an
//! [`Endpoint`](crate::Endpoint), for tower, axum and hyper hosts. What an alarm does is the plan's choice, under
//! `[triggers.alarms]` by its name.

mod payload;
mod seen;
mod service;
mod sns;

pub use service::AlarmService;

use crate::host::Error;
use crate::host::Result as HostResult;
use crate::signature::Secret;
use payload::Payload;
use seen::Seen;
use sha2::{Digest as _, Sha256};
use sns::Certificates;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes of a body that are read, unless told otherwise.
const LARGEST: usize = 1 << 20;
/// How far the time of a signature may be from now, unless told otherwise.
const WINDOW: Duration = Duration::from_secs(300);
/// How far the time of an SNS message may be: SNS tries for about that long.
const SNS_WINDOW: Duration = Duration::from_secs(60 * 60);
/// Shortest token.
const SHORTEST: usize = 16;

/// Checks who sends an alarm, and reads it.
///
/// | sender | how it shows who it is | set up with |
/// |---|---|---|
/// | Alertmanager's `webhook_configs` | it signs nothing: a bearer token (`authorization`), or the same as a password (`basic_auth`) | [`token`](AlarmWebhookBuilder::token) |
/// | SNS, subscribed by `https` | its signature (version 2, SHA-256), and the topic; or a password in the subscribed address | [`sns`](AlarmWebhookBuilder::sns), [`token`](AlarmWebhookBuilder::token) |
/// | the host's own, a signing proxy | `webhook-id`, `-timestamp` and `-signature` of the Standard Webhooks specification | [`secret`](AlarmWebhookBuilder::secret) |
///
/// **A token shows who sends, but not what**: behind it, TLS must keep others from reading and changing messages, and whoever has
/// seen one may send it again. Signed messages are refused when they are older or newer than a window, and taken once.
///
/// Payloads are told apart by what they hold: Alertmanager's (version 4; each alert that is firing is an alarm called by its
/// `alertname`; resolved ones are none, nor are this family's own, `LlmRollout`), an SNS notification of a `CloudWatch` alarm (one whose new state is `ALARM`
/// is an alarm called by its `AlarmName`), and `{"name": "...", "detail": "..."}`.
///
/// ```
/// use llm_serve_adapters::alarm::{AlarmWebhook, Delivered};
/// use std::time::SystemTime;
///
/// let webhook = AlarmWebhook::builder().token("a token of 16 bytes or more").only("service", "chat").build()?;
/// let body = br#"{"version": "4", "alerts": [{
///     "status": "firing", "fingerprint": "a1", "startsAt": "2026-01-01T00:00:00Z",
///     "labels": {"alertname": "ChatErrors", "service": "chat"}, "annotations": {"summary": "2 % fail"}}]}"#;
/// let headers = |name: &str| (name == "authorization").then_some("Bearer a token of 16 bytes or more");
/// let Delivered::Alarms(delivery) = webhook.receive(headers, body, SystemTime::now())? else { panic!() };
/// assert_eq!((&*delivery.alarms[0].name, &*delivery.alarms[0].detail), ("ChatErrors", "2 % fail"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct AlarmWebhook {
    secrets: Vec<Secret>,
    tokens: Vec<[u8; 32]>,
    certificates: Certificates,
    only: BTreeMap<String, String>,
    largest: usize,
    window: Duration,
    seen: Mutex<Seen>,
}

/// Builds an [`AlarmWebhook`].
#[must_use = "it does nothing until it is built"]
#[derive(Default)]
pub struct AlarmWebhookBuilder {
    secrets: Vec<Vec<u8>>,
    tokens: Vec<String>,
    certificates: Vec<String>,
    topics: Vec<String>,
    only: BTreeMap<String, String>,
    largest: Option<usize>,
    window: Option<Duration>,
}

/// An alarm to put before an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Raised {
    /// Its name, as in the plan's `triggers.alarms`; at most 200 characters.
    pub name: String,
    /// In one line of at most 500 characters.
    pub detail: String,
}

/// The alarms of one message. Once they cannot be put before the endpoint, give the delivery back to
/// [`AlarmWebhook::failed`]: the sender's next try is then taken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivery {
    /// What has gone off and was not delivered lately; may be empty.
    pub alarms: Vec<Raised>,
    /// What was noted as seen.
    noted: Vec<String>,
}

/// What a message holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delivered {
    /// Alarms.
    Alarms(Delivery),
    /// SNS asks whether the topic is to send here: whoever visits this address within three days says yes.
    Confirm {
        /// An address of SNS, checked to be one.
        url: String,
    },
}

/// Why a message is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// It is too large.
    #[error("the body has more than {0} bytes")]
    TooLarge(usize),
    /// Nothing shows that the sender is who it should be.
    #[error("the sender is not known: {0}")]
    Unknown(String),
    /// It was signed too long ago, or in the future.
    #[error("the message is {0:?} away from now: check the clocks, or send it anew")]
    Stale(Duration),
    /// It cannot be read.
    #[error("the message cannot be read: {0}")]
    Malformed(String),
}

impl Refused {
    /// The HTTP status to answer with: one that senders do not take for a reason to try again.
    pub fn status(&self) -> u16 {
        match self {
            Self::TooLarge(_) => 413,
            Self::Unknown(_) | Self::Stale(_) => 401,
            Self::Malformed(_) => 400,
        }
    }
}

impl AlarmWebhookBuilder {
    /// Takes what is signed with this secret, of at least 16 bytes. Several are taken while one replaces another.
    pub fn secret(mut self, secret: impl AsRef<[u8]>) -> Self {
        self.secrets.push(secret.as_ref().to_vec());
        self
    }

    /// Takes what comes with this bearer token, of at least 16 bytes, or with it as the password of basic authentication.
    /// Several are taken while one replaces another.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.tokens.push(token.into());
        self
    }

    /// Takes what SNS has signed with this certificate (PEM, from the address that messages tell as `SigningCertURL`: fetch it
    /// over TLS, from a host of `amazonaws.com`). Needs [`topic`](Self::topic), as SNS signs everybody's messages alike, and a topic
    /// whose `SignatureVersion` is 2. SNS replaces its certificate now and then; several may be given.
    pub fn sns(mut self, certificate: impl Into<String>) -> Self {
        self.certificates.push(certificate.into());
        self
    }

    /// Takes SNS messages of this topic (its ARN) only; several may be given.
    pub fn topic(mut self, arn: impl Into<String>) -> Self {
        self.topics.push(arn.into());
        self
    }

    /// Takes only those of Alertmanager's alerts that carry this label: an Alertmanager may tell of other services too.
    pub fn only(mut self, label: impl Into<String>, value: impl Into<String>) -> Self {
        self.only.insert(label.into(), value.into());
        self
    }

    /// How many bytes a body may have; 1 MiB unless told otherwise.
    pub fn largest(mut self, bytes: usize) -> Self {
        self.largest = Some(bytes);
        self
    }

    /// How far the time of a signature may be from now, 5 minutes unless told otherwise. For that long a message that comes again is
    /// not taken again (at most 10,000 are remembered). For messages of SNS it is an hour.
    pub fn window(mut self, window: Duration) -> Self {
        self.window = Some(window);
        self
    }

    /// The webhook.
    ///
    /// # Errors
    /// `Permanent` if nothing is given by which senders are known, a secret or token is short, or a certificate cannot be one.
    pub fn build(self) -> HostResult<AlarmWebhook> {
        if self.secrets.is_empty() && self.tokens.is_empty() && self.certificates.is_empty() {
            return Err(Error::permanent(
                "anybody could raise alarms: give a secret, a token, or a certificate of SNS",
            ));
        }
        if !self.certificates.is_empty() && self.topics.is_empty() {
            return Err(Error::permanent(
                "SNS signs the messages of all its customers alike: name your topics",
            ));
        }
        if self.tokens.iter().any(|token| token.len() < SHORTEST) {
            return Err(Error::permanent(format!(
                "the token is too short: give at least {SHORTEST} random bytes"
            )));
        }
        let secrets = self.secrets.iter().map(|secret| Secret::new(secret));
        let window = self.window.unwrap_or(WINDOW);
        Ok(AlarmWebhook {
            secrets: secrets.collect::<HostResult<_>>()?,
            tokens: self.tokens.iter().map(|t| digest(t.as_bytes())).collect(),
            certificates: Certificates::new(&self.certificates, self.topics)?,
            only: self.only,
            largest: self.largest.unwrap_or(LARGEST),
            window,
            seen: Mutex::new(Seen::default()),
        })
    }
}

impl fmt::Debug for AlarmWebhookBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlarmWebhookBuilder")
            .field("topics", &self.topics)
            .field("only", &self.only)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for AlarmWebhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlarmWebhook")
            .field("only", &self.only)
            .field("largest", &self.largest)
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// How a message has shown who sent it.
enum Known {
    /// By a signature over this id.
    Signed(String),
    ByToken,
}

impl AlarmWebhook {
    /// Begins with nobody's alarms.
    pub fn builder() -> AlarmWebhookBuilder {
        AlarmWebhookBuilder::default()
    }

    /// How many bytes of a body are of use: what is larger is refused.
    pub fn largest(&self) -> usize {
        self.largest
    }

    /// Reads a message, once its sender is known. `headers` gives the value of a header by its name in small letters.
    ///
    /// # Errors
    /// See [`Refused`]; nothing was noted.
    pub fn receive<'a>(
        &self,
        headers: impl Fn(&str) -> Option<&'a str>,
        body: &[u8],
        now: SystemTime,
    ) -> Result<Delivered, Refused> {
        if body.len() > self.largest {
            return Err(Refused::TooLarge(self.largest));
        }
        let signed = self.signed(&headers, body, now)?;
        let token = self.has_token(&headers);
        if signed.is_none() && !token && self.certificates.is_empty() {
            return Err(Refused::Unknown(
                "it has no signature and no token that are right".to_owned(),
            ));
        }
        // Of a stranger no more than this is read: SNS puts its signature into the body.
        let payload = Payload::read(body);
        let known = match (signed, &payload) {
            (Some(id), _) => Known::Signed(id),
            (None, Ok(Payload::Sns(message))) if !self.certificates.is_empty() => {
                self.certificates.check(message)?;
                let sent = humantime::parse_rfc3339_weak(&message.timestamp)
                    .map_err(|e| Refused::Malformed(format!("its Timestamp is no time: {e}")))?;
                fresh(sent, now, SNS_WINDOW)?;
                Known::Signed(message.id.clone())
            }
            (None, _) if token => Known::ByToken,
            (None, _) => {
                return Err(Refused::Unknown(
                    "it has no signature and no token that are right".to_owned(),
                ));
            }
        };
        let payload = payload.map_err(Refused::Malformed)?;
        if let Payload::Sns(message) = &payload {
            self.certificates.check_topic(message)?;
            if let Some(url) = message.to_confirm()? {
                return Ok(Delivered::Confirm { url });
            }
        }
        let found = payload.alarms(&self.only).map_err(Refused::Malformed)?;
        Ok(Delivered::Alarms(self.note(known, found, now)))
    }

    /// The alarms of this delivery could not be put before the endpoint: when they come again, they are taken.
    #[expect(clippy::needless_pass_by_value, reason = "it is given back")]
    pub fn failed(&self, delivery: Delivery) {
        let mut seen = self.seen();
        delivery.noted.iter().for_each(|id| seen.forget(id));
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Whoever panicked in here left it whole.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves out what was delivered lately: the whole message if it was signed, else alert by alert.
    fn note(&self, known: Known, found: Vec<payload::Found>, now: SystemTime) -> Delivery {
        let mut seen = self.seen();
        // Whatever is let in by its time must still be remembered then.
        let until = now + self.window.max(SNS_WINDOW) * 2;
        let mut delivery = Delivery {
            alarms: Vec::new(),
            noted: Vec::new(),
        };
        if let Known::Signed(id) = known {
            let id = format!("message {id}");
            if !seen.first(&id, now, until) {
                return delivery;
            }
            delivery.noted.push(id);
        }
        for found in found {
            let id = format!("alert {}", found.id);
            // Alertmanager repeats what goes on firing, hours later: that is told again.
            if seen.first(&id, now, now + self.window) {
                delivery.noted.push(id);
                delivery.alarms.push(found.alarm);
            }
        }
        delivery
    }

    /// The id of a message whose signature is right; none if it has none, or nobody here could tell.
    fn signed<'a>(
        &self,
        headers: &impl Fn(&str) -> Option<&'a str>,
        body: &[u8],
        now: SystemTime,
    ) -> Result<Option<String>, Refused> {
        let id = headers("webhook-id");
        let (Some(id), Some(time), Some(signature)) = (
            id,
            headers("webhook-timestamp"),
            headers("webhook-signature"),
        ) else {
            return Ok(None);
        };
        if self.secrets.is_empty() {
            return Ok(None);
        }
        let Ok(seconds) = time.parse::<u64>() else {
            return Err(Refused::Malformed(
                "webhook-timestamp is no time in Unix seconds".to_owned(),
            ));
        };
        let mut secrets = self.secrets.iter();
        if !secrets.any(|secret| secret.verifies(id, seconds, body, signature)) {
            return Err(Refused::Unknown("its signature does not fit".to_owned()));
        }
        let sent = UNIX_EPOCH
            .checked_add(Duration::from_secs(seconds))
            .ok_or_else(|| Refused::Malformed("webhook-timestamp is no time".to_owned()))?;
        fresh(sent, now, self.window)?;
        Ok(Some(id.to_owned()))
    }

    fn has_token<'a>(&self, headers: &impl Fn(&str) -> Option<&'a str>) -> bool {
        use base64::Engine as _;
        let Some(given) = headers("authorization") else {
            return false;
        };
        let (scheme, rest) = given.split_once(' ').unwrap_or_default();
        let token = match scheme.to_ascii_lowercase().as_str() {
            "bearer" => rest.trim().as_bytes().to_vec(),
            "basic" => {
                let decoded = base64::engine::general_purpose::STANDARD.decode(rest.trim());
                let decoded = decoded.unwrap_or_default();
                let colon = decoded.iter().position(|b| *b == b':');
                colon.map_or_else(Vec::new, |at| decoded[at + 1..].to_vec())
            }
            _ => return false,
        };
        // Compared by their digests: how long it takes tells nothing of the token.
        self.tokens.contains(&digest(&token))
    }
}

fn fresh(sent: SystemTime, now: SystemTime, window: Duration) -> Result<(), Refused> {
    let age = now
        .duration_since(sent)
        .unwrap_or_else(|early| early.duration());
    if age > window {
        return Err(Refused::Stale(age));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
