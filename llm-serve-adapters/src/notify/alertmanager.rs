//! Pages as alerts of Alertmanager.

use super::post::{self, Post};
use crate::host::{Error, Letter, Notifier, Result};
use crate::http_client::{Address, Authorities, bearer};
use async_trait::async_trait;
use reqwest::header::HeaderMap;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// When an alert counts as resolved, unless told otherwise.
const RESOLVED: Duration = Duration::from_secs(60 * 60);
/// Longest summary, in characters.
const LONGEST: usize = 3_000;
/// The labels that every alert has.
const OWN: [&str; 5] = ["alertname", "endpoint", "key", "rollout", "severity"];

/// Posts pages to Alertmanager as alerts (`POST /api/v2/alerts`), which routes, groups, silences and inhibits them by their labels:
///
/// | label | value |
/// |---|---|
/// | `alertname` | `LlmRollout`, or [as told](Self::alertname) |
/// | `endpoint`, `rollout` | whose notice it is |
/// | `severity` | `critical` for a page, `info` for the rest |
/// | `key` | unique to the notice: sent again, it is the same alert |
///
/// The text is the annotation `summary`. Notices tell of events rather than of states, so an alert ends by itself:
/// [`resolve_after`](Self::resolve_after), 1 hour unless told otherwise, after it was sent. Notices that page nobody are left out
/// unless [`all_notices`](Self::all_notices) asks for them.
///
/// Of a cluster, every member must be told, as by Prometheus: give a notifier for each. 2xx is success; 4xx other than 408, 425
/// and 429 is `Permanent`; the rest is `Transient`. Neither the bearer token nor the path of the address shows up in errors or
/// debug output.
///
/// ```
/// use llm_serve_adapters::notify::AlertmanagerNotifier;
/// use std::time::Duration;
///
/// let pager = AlertmanagerNotifier::new("http://alertmanager:9093")?
///     .label("team", "inference")?
///     .resolve_after(Duration::from_secs(30 * 60));
/// # Ok::<(), llm_serve_adapters::host::Error>(())
/// ```
#[derive(Debug)]
pub struct AlertmanagerNotifier {
    post: Post,
    headers: HeaderMap,
    labels: BTreeMap<String, String>,
    resolve_after: Duration,
    all: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Alert<'a> {
    labels: BTreeMap<&'a str, &'a str>,
    annotations: BTreeMap<&'a str, String>,
    ends_at: String,
}

impl AlertmanagerNotifier {
    /// Posts to the Alertmanager at this address, without `/api/v2`; a path before that (its route prefix) is kept.
    ///
    /// # Errors
    /// `Permanent` for an address that is not one.
    pub fn new(address: &str) -> Result<Self> {
        let base = Address::parse(address)?;
        let to = base.with_path(&format!("{}/api/v2/alerts", base.path()));
        let name = ("alertname".to_owned(), "LlmRollout".to_owned());
        Ok(Self {
            post: Post::new(to)?,
            headers: HeaderMap::new(),
            labels: BTreeMap::from([name]),
            resolve_after: RESOLVED,
            all: false,
        })
    }

    /// Calls the alerts so.
    #[must_use]
    pub fn alertname(mut self, name: impl Into<String>) -> Self {
        self.labels.insert("alertname".to_owned(), name.into());
        self
    }

    /// Gives the alerts another label.
    ///
    /// # Errors
    /// `Permanent` for a name that is no label's (letters, digits and `_`, no digit first), or is set by the notifier itself.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let good = name.chars().all(letter) && !name.starts_with(|c: char| c.is_ascii_digit());
        if name.is_empty() || !good || OWN.contains(&name.as_str()) {
            return Err(Error::permanent(format!(
                "{name:?} cannot be an alert's label: take letters, digits and '_', no digit first, and none of {OWN:?}"
            )));
        }
        self.labels.insert(name, value.into());
        Ok(self)
    }

    /// Sends this bearer token.
    ///
    /// # Errors
    /// `Permanent` for a token that no header can hold.
    pub fn bearer(mut self, token: &str) -> Result<Self> {
        self.headers = bearer(token)?;
        Ok(self)
    }

    /// How long after it was sent an alert ends by itself.
    #[must_use]
    pub fn resolve_after(mut self, time: Duration) -> Self {
        self.resolve_after = time;
        self
    }

    /// Sends notices that page nobody too, with the severity `info`.
    #[must_use]
    pub fn all_notices(mut self) -> Self {
        self.all = true;
        self
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

    fn body(&self, letter: &Letter<'_>, now: SystemTime) -> Result<Vec<u8>> {
        let notice = letter.notice;
        let key = letter.key();
        let severity = if notice.page { "critical" } else { "info" };
        let own = [
            ("endpoint", letter.endpoint.as_str()),
            ("rollout", notice.rollout.as_str()),
            ("severity", severity),
            ("key", &key),
        ];
        let given = self.labels.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let ends = now.checked_add(self.resolve_after).ok_or_else(|| {
            Error::permanent(format!(
                "{:?} after now is no time: let alerts resolve earlier",
                self.resolve_after
            ))
        })?;
        let alert = Alert {
            labels: given.chain(own).collect(),
            annotations: BTreeMap::from([("summary", post::shorten(&notice.text, LONGEST))]),
            ends_at: humantime::format_rfc3339_millis(ends).to_string(),
        };
        post::json(letter, &[alert])
    }
}

#[async_trait]
impl Notifier for AlertmanagerNotifier {
    async fn notify(&self, letter: &Letter<'_>) -> Result<()> {
        if !letter.notice.page && !self.all {
            return Ok(());
        }
        let json = self.body(letter, SystemTime::now())?;
        self.post.send(letter, self.headers.clone(), json).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ErrorKind;
    use crate::notify::post::testing::{Sent, receiver};
    use serde_json::json;
    use std::time::UNIX_EPOCH;

    #[tokio::test]
    async fn posts_pages_as_alerts() {
        let (address, got) = receiver(200, "").await;
        let notifier = AlertmanagerNotifier::new(&format!("{address}/am/"))
            .unwrap()
            .label("team", "inference")
            .unwrap()
            .bearer("S3CRET")
            .unwrap();
        let (page, plain) = (
            Sent::new(true, "rolled back: \"slow\""),
            Sent::new(false, "5 %"),
        );
        for sent in [&page, &plain, &page] {
            notifier.notify(&sent.letter()).await.unwrap();
        }
        assert!(!format!("{notifier:?}").contains("S3CRET"));
        {
            let got = got.lock().unwrap();
            let [(path, headers, body), (_, _, again)] = &got[..] else {
                panic!("{got:?}")
            };
            assert_eq!(path, "/am/api/v2/alerts");
            assert_eq!(headers["authorization"], "Bearer S3CRET");
            let labels = json!({
                "alertname": "LlmRollout", "endpoint": "chat", "key": "chat.chat-v2.12.0", "rollout": "chat-v2",
                "severity": "critical", "team": "inference",
            });
            assert_eq!(body[0]["labels"], labels);
            assert_eq!(body[0]["annotations"]["summary"], "rolled back: \"slow\"");
            assert_eq!(again[0]["labels"], labels, "a repetition is the same alert");
        }
        notifier
            .all_notices()
            .notify(&plain.letter())
            .await
            .unwrap();
        assert_eq!(
            got.lock().unwrap()[2].2[0]["labels"]["severity"],
            "info",
            "when asked for, the rest is told too"
        );
    }

    #[test]
    fn alerts_end_by_themselves() {
        let sent = Sent::new(true, "x");
        let now = UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        let notifier = AlertmanagerNotifier::new("http://localhost:9093").unwrap();
        let ends = |notifier: &AlertmanagerNotifier| {
            let body = notifier.body(&sent.letter(), now).unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            body[0]["endsAt"].as_str().unwrap().to_owned()
        };
        assert_eq!(ends(&notifier), "2023-11-14T23:13:20.250Z");
        let notifier = notifier.resolve_after(Duration::from_secs(60));
        assert_eq!(ends(&notifier), "2023-11-14T22:14:20.250Z");
        let error = notifier
            .resolve_after(Duration::MAX)
            .body(&sent.letter(), now)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent);
    }

    #[tokio::test]
    async fn refusals_are_told() {
        for (status, kind) in [
            (400, ErrorKind::Permanent),
            (401, ErrorKind::Permanent),
            (503, ErrorKind::Transient),
        ] {
            // The answer is that of Alertmanager 0.25 to an alert without labels.
            let (address, _) = receiver(status, r#""at least one label pair required""#).await;
            let sent = Sent::new(true, "x");
            let error = AlertmanagerNotifier::new(&address)
                .unwrap()
                .notify(&sent.letter())
                .await
                .unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(
                error.to_string().contains("at least one label pair"),
                "{error}"
            );
        }
    }

    #[test]
    fn labels_are_checked() {
        for bad in ["", "1st", "a-b", "a b", "é", "alertname", "key"] {
            let notifier = AlertmanagerNotifier::new("http://localhost:9093").unwrap();
            assert!(notifier.label(bad, "x").is_err(), "{bad}");
        }
        assert!(AlertmanagerNotifier::new("localhost:9093").is_err());
    }
}
