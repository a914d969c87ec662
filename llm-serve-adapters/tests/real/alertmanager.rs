//! Notices as alerts of a real Alertmanager: grouped, not doubled, silenced by their key.

use crate::process::{Process, free_port, http, ready, until, version_of};
use llm_rollout::{EndpointId, IntentId, Notice, RolloutId, Seq};
use llm_serve_adapters::host::{Letter, Notifier as _};
use llm_serve_adapters::notify::AlertmanagerNotifier;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

async fn alerts(port: u16) -> Vec<Value> {
    let (status, body) = http(port, "GET", "/am/api/v2/alerts", "").await.unwrap();
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test]
#[ignore = "needs prometheus-alertmanager: e2e/run alertmanager"]
async fn a_page_reaches_people_once_and_can_be_silenced() {
    let folder = tempfile::tempdir().unwrap();
    // What Alertmanager tells people goes to this receiver.
    let told = Arc::new(Mutex::new(Vec::<Value>::new()));
    let sink = Arc::clone(&told);
    let app = axum::Router::new().fallback(async move |body: String| {
        sink.lock()
            .unwrap()
            .push(serde_json::from_str(&body).unwrap());
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hook = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let config = format!(
        "route: {{receiver: people, group_by: [endpoint, rollout], group_wait: 1s}}\n\
         receivers: [{{name: people, webhook_configs: [{{url: 'http://{hook}/'}}]}}]\n"
    );
    std::fs::write(folder.path().join("am.yml"), config).unwrap();
    let port = free_port();
    let listen = format!("--web.listen-address=127.0.0.1:{port}");
    let _alertmanager = Process::start(
        folder.path(),
        "prometheus-alertmanager",
        &[
            "--config.file=am.yml",
            "--storage.path=data",
            "--cluster.listen-address=",
            "--web.route-prefix=/am",
            &listen,
        ],
    );
    ready(port, "/am/-/ready").await;

    let notifier = AlertmanagerNotifier::new(&format!("http://127.0.0.1:{port}/am"))
        .unwrap()
        .label("team", "inference")
        .unwrap();
    let endpoint = EndpointId::new("chat").unwrap();
    let tell = async |seq: u64, page: bool, text: &str| {
        let notice = Notice {
            page,
            rollout: RolloutId::new("chat-v2").unwrap(),
            text: text.to_owned(),
        };
        let id = IntentId {
            seq: Seq::new(seq),
            index: 0,
        };
        let letter = Letter {
            endpoint: &endpoint,
            id,
            notice: &notice,
        };
        notifier.notify(&letter).await.unwrap();
        letter.key()
    };
    let key = tell(12, true, "rolled back: ttft 31 % slower").await;
    tell(12, true, "rolled back: ttft 31 % slower").await;
    tell(13, false, "drained").await;
    let silenced = tell(14, true, "the baseline is unhealthy").await;

    let found = alerts(port).await;
    assert_eq!(
        found.len(),
        2,
        "one alert for each page, sent twice or not: {found:?}"
    );
    let first = found.iter().find(|a| a["labels"]["key"] == *key).unwrap();
    let labels = json!({
        "alertname": "LlmRollout", "endpoint": "chat", "key": key, "rollout": "chat-v2", "severity": "critical",
        "team": "inference",
    });
    assert_eq!(first["labels"], labels);
    assert_eq!(
        first["annotations"]["summary"],
        "rolled back: ttft 31 % slower"
    );

    let page = until("the page", async || told.lock().unwrap().first().cloned()).await;
    assert_eq!(page["status"], "firing");
    assert_eq!(
        page["groupLabels"],
        json!({"endpoint": "chat", "rollout": "chat-v2"})
    );

    let silence = json!({
        "matchers": [{"name": "key", "value": silenced, "isRegex": false, "isEqual": true}],
        "startsAt": "2020-01-01T00:00:00Z", "endsAt": "2099-01-01T00:00:00Z", "createdBy": "ana", "comment": "known",
    });
    let (status, body) = http(port, "POST", "/am/api/v2/silences", &silence.to_string())
        .await
        .unwrap();
    assert_eq!(status, 200, "{body}");
    until("the silence", async || {
        let alerts = alerts(port).await;
        let state = |key: &str| {
            let alert = alerts.iter().find(|a| a["labels"]["key"] == *key)?;
            alert["status"]["state"].as_str().map(str::to_owned)
        };
        (state(&silenced)? == "suppressed" && state(&key)? == "active").then_some(())
    })
    .await;
    crate::verified(
        "alertmanager",
        "Alertmanager",
        &version_of("prometheus-alertmanager", "--version"),
    );
}
