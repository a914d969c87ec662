//! Notices to Slack, Mattermost, and whatever else takes Slack's incoming webhooks.

use super::post::{self, Post};
use crate::host::{Letter, Notifier, Result};
use crate::http_client::{Address, Authorities};
use async_trait::async_trait;
use reqwest::header::HeaderMap;
use serde::Serialize;
use std::time::Duration;

/// Longest text, in characters: Slack cuts an attachment's text off at some thousand.
const LONGEST: usize = 3_000;

/// Posts each notice to an incoming webhook of Slack, or of Mattermost, which takes the same payload.
///
/// A page is red and begins with `PAGE`. The text is shown as it is: `&`, `<` and `>` are escaped, formatting is off, and an `@`
/// in it calls nobody (a zero-width space follows it). The footer holds the notice's key. Neither product knows keys, so a notice
/// that is sent again after a lost reply shows twice.
///
/// 2xx is success; 4xx other than 408, 425 and 429 is `Permanent`; the rest is `Transient`. Redirects are not followed, and
/// proxies are not used. The webhook's address is its secret: only scheme, host and port show up in errors and debug output.
///
/// ```
/// use llm_serve_adapters::notify::SlackNotifier;
///
/// let channel = SlackNotifier::new("https://hooks.slack.com/services/T000/B000/S3CRET")?;
/// assert!(!format!("{channel:?}").contains("S3CRET"));
/// # Ok::<(), llm_serve_adapters::host::Error>(())
/// ```
#[derive(Debug)]
pub struct SlackNotifier {
    post: Post,
}

#[derive(Serialize)]
struct Payload {
    /// What shows in a notification outside the channel.
    text: String,
    mrkdwn: bool,
    attachments: [Attachment; 1],
}

#[derive(Serialize)]
struct Attachment {
    color: &'static str,
    fallback: String,
    text: String,
    footer: String,
    /// No field is formatted.
    mrkdwn_in: [&'static str; 0],
}

impl SlackNotifier {
    /// Posts to this incoming webhook.
    ///
    /// # Errors
    /// `Permanent` for an address that is not one.
    pub fn new(webhook: &str) -> Result<Self> {
        Ok(Self {
            post: Post::new(Address::parse(webhook)?)?,
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
}

#[async_trait]
impl Notifier for SlackNotifier {
    async fn notify(&self, letter: &Letter<'_>) -> Result<()> {
        let json = post::json(letter, &payload(letter))?;
        self.post.send(letter, HeaderMap::new(), json).await
    }
}

fn payload(letter: &Letter<'_>) -> Payload {
    let notice = letter.notice;
    let page = if notice.page { "PAGE " } else { "" };
    let title = format!("{page}{}: rollout {}", letter.endpoint, notice.rollout);
    let text = inert(&post::shorten(&notice.text, LONGEST));
    Payload {
        text: inert(&title),
        mrkdwn: false,
        attachments: [Attachment {
            color: if notice.page { "danger" } else { "good" },
            fallback: text.clone(),
            text,
            footer: inert(&letter.key()),
            mrkdwn_in: [],
        }],
    }
}

/// Text that links nowhere and calls nobody.
fn inert(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '@' => out.push_str("@\u{200b}"),
            '\n' => out.push('\n'),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Error, ErrorKind};
    use crate::notify::post::testing::{Sent, receiver};
    use proptest::prelude::*;
    use serde_json::json;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn posts_what_slack_takes() {
        let (address, got) = receiver(200, "ok").await;
        let notifier = SlackNotifier::new(&format!("{address}/services/T0/B0/S3CRET")).unwrap();
        for sent in [
            Sent::new(true, "<!channel> p99 > 2 s & @here\nrolled back"),
            Sent::new(false, "5 %"),
        ] {
            notifier.notify(&sent.letter()).await.unwrap();
        }
        let got = got.lock().unwrap();
        let [(path, headers, page), (_, _, plain)] = &got[..] else {
            panic!("{got:?}")
        };
        assert_eq!(path, "/services/T0/B0/S3CRET");
        assert_eq!(headers["content-type"], "application/json");
        let text = "&lt;!channel&gt; p99 &gt; 2 s &amp; @\u{200b}here\nrolled back";
        let expected = json!({
            "text": "PAGE chat: rollout chat-v2",
            "mrkdwn": false,
            "attachments": [{"color": "danger", "fallback": text, "text": text, "footer": "chat.chat-v2.12.0", "mrkdwn_in": []}],
        });
        assert_eq!(page, &expected);
        assert_eq!(plain["text"], "chat: rollout chat-v2");
        assert_eq!(plain["attachments"][0]["color"], "good");
    }

    #[tokio::test]
    async fn answers_say_whether_to_try_again() {
        // As Slack documents them, and a 200 of Mattermost.
        for (status, answer, kind) in [
            (200, "ok", None),
            (400, "invalid_payload", Some(ErrorKind::Permanent)),
            (403, "action_prohibited", Some(ErrorKind::Permanent)),
            (404, "no_service", Some(ErrorKind::Permanent)),
            (410, "channel_is_archived", Some(ErrorKind::Permanent)),
            (429, "rate_limited", Some(ErrorKind::Transient)),
            (500, "rollup_error", Some(ErrorKind::Transient)),
        ] {
            let (address, _) = receiver(status, answer).await;
            let sent = Sent::new(true, "x");
            let said = SlackNotifier::new(&format!("{address}/S3CRET"))
                .unwrap()
                .notify(&sent.letter())
                .await;
            assert_eq!(said.as_ref().err().map(Error::kind), kind, "{said:?}");
            if let Err(e) = said {
                let text = format!("{e} {e:?}");
                assert!(
                    text.contains(answer) && text.contains("chat.chat-v2.12.0"),
                    "{text}"
                );
                assert!(!text.contains("S3CRET"), "{text}");
            }
        }
    }

    #[tokio::test]
    async fn a_receiver_that_hangs_or_is_gone_is_transient() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/S3CRET", listener.local_addr().unwrap());
        let notifier = SlackNotifier::new(&address)
            .unwrap()
            .timeout(Duration::from_millis(100));
        let sent = Sent::new(true, "x");
        let hangs = notifier.notify(&sent.letter()).await.unwrap_err();
        drop(listener);
        let gone = notifier.notify(&sent.letter()).await.unwrap_err();
        for error in [hangs, gone] {
            assert_eq!(error.kind(), ErrorKind::Transient);
            assert!(!format!("{error:?}").contains("S3CRET"), "{error:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_escapes(text in any::<String>()) {
            let sent = Sent::new(true, &text);
            let payload = payload(&sent.letter());
            let shown = &payload.attachments[0].text;
            let entities = ["amp;", "lt;", "gt;"];
            let escaped = shown.split('&').skip(1).all(|rest| entities.iter().any(|e| rest.starts_with(e)));
            let calls_nobody = shown.split('@').skip(1).all(|rest| rest.starts_with('\u{200b}'));
            let shows = shown.chars().all(|c| c == '\n' || !c.is_control());
            prop_assert!(!shown.contains(['<', '>']) && escaped && calls_nobody && shows, "{}", shown);
            // What a reader sees is the text.
            let seen = shown.replace("@\u{200b}", "@").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
            let wanted: String = text.chars().map(|c| if c != '\n' && c.is_control() { ' ' } else { c }).collect();
            prop_assert_eq!(seen, wanted.replace("@\u{200b}", "@"));
        }
    }

    #[test]
    fn texts_end_somewhere() {
        let sent = Sent::new(true, &"é".repeat(100_000));
        let text = &payload(&sent.letter()).attachments[0].text;
        assert_eq!(text.chars().count(), LONGEST + 4);
    }
}
