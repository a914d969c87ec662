//! Signed notices to a receiver that was not written in Rust: it checks the signature with Python's own means.

use crate::process::{Process, free_port, ready, version_of};
use llm_rollout::{EndpointId, IntentId, Notice, RolloutId, Seq};
use llm_serve_adapters::host::{ErrorKind, Letter, Notifier as _};
use llm_serve_adapters::notify::WebhookNotifier;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

#[tokio::test]
#[ignore = "needs python3: e2e/run webhook"]
async fn a_receiver_in_python_takes_what_is_signed_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let script = std::env::var("LLM_E2E_WEBHOOK").expect("e2e/run webhook sets LLM_E2E_WEBHOOK");
    let port = free_port();
    let _receiver = Process::start(
        folder.path(),
        "python3",
        &[&script, &port.to_string(), SECRET],
    );
    ready(port, "/").await;
    let endpoint = EndpointId::new("chat").unwrap();
    let tell = async |secret: &str, seq: u64, text: &str| {
        let notifier =
            WebhookNotifier::new(&format!("http://127.0.0.1:{port}/hook"), secret).unwrap();
        let rollout = RolloutId::new("chat-v2").unwrap();
        let notice = Notice {
            page: true,
            rollout,
            text: text.to_owned(),
        };
        let id = IntentId {
            seq: Seq::new(seq),
            index: 0,
        };
        notifier
            .notify(&Letter {
                endpoint: &endpoint,
                id,
                notice: &notice,
            })
            .await
    };
    let texts = [
        "rolled back",
        "\"quotes\"\n\u{1f600} \u{0}",
        &"é".repeat(100_000),
    ];
    for (seq, text) in (1..).zip(texts) {
        tell(SECRET, seq, text).await.unwrap();
    }
    tell(SECRET, 1, "rolled back").await.unwrap();
    let refused = tell("another secret of 16 bytes", 9, "x")
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Permanent, "{refused}");
    let said = std::fs::read_to_string(folder.path().join("python3.log")).unwrap();
    let said: Vec<_> = said.lines().collect();
    let expected = [
        "204 chat.chat-v2.1.0",
        "204 chat.chat-v2.2.0",
        "204 chat.chat-v2.3.0",
        "200 chat.chat-v2.1.0",
        "401 chat.chat-v2.9.0",
    ];
    assert_eq!(said, expected);
    println!(
        "ok      signed webhooks: 3 of 3 verified, 1 repetition known by its id, 1 forgery refused"
    );
    crate::verified(
        "webhook",
        "Python hmac",
        &version_of("python3", "--version"),
    );
}
