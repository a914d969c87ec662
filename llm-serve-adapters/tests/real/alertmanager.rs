//! Notices as alerts of a real Alertmanager: grouped, not doubled, silenced by their key. And the other way: its alerts as alarms.

use crate::process::{Process, free_port, http, ready, until, version_of};
use llm_rollout::{Cause, EndpointId, IntentId, Notice, Phase, Plan, RolloutId, Seq};
use llm_serve_adapters::alarm::{AlarmService, AlarmWebhook};
use llm_serve_adapters::host::{Letter, Notifier as _};
use llm_serve_adapters::notify::AlertmanagerNotifier;
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Bootstrap, Endpoint};
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

/// A tenth of the users, for as long as it takes.
const PLAN: &str = r#"
    alpha = 0.05
    ungated = true
    [[stages]]
    serve = 10.0
    dwell = "10m"
    limit = "20m"
    [triggers]
    other_alarms = "hold"
    [triggers.alarms]
    ChatErrors = "rollback"
"#;

#[tokio::test]
#[ignore = "needs prometheus-alertmanager: e2e/run alertmanager"]
async fn a_firing_alert_rolls_back() {
    const TOKEN: &str = "a token of 16 bytes or more";
    let folder = tempfile::tempdir().unwrap();
    let version = |n: u8| {
        format!("chat/v1.{n}.0-{}", n.to_string().repeat(64))
            .parse()
            .unwrap()
    };
    let endpoint = Endpoint::open("chat", MemoryStore::new(), Bootstrap(version(0)));
    let endpoint = endpoint.await.unwrap();
    let webhook = AlarmWebhook::builder().token(TOKEN).only("service", "chat");
    let service = AlarmService::new(webhook.build().unwrap(), &endpoint);
    let app = axum::Router::new().route_service("/alarms", service);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hook = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });

    let config = format!(
        "route: {{receiver: rollout, group_by: [alertname], group_wait: 100ms, group_interval: 100ms}}\n\
         receivers:\n\
         - name: rollout\n  webhook_configs:\n  - url: 'http://{hook}/alarms'\n    http_config: {{authorization: {{credentials: '{TOKEN}'}}}}\n"
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
            &listen,
        ],
    );
    ready(port, "/-/ready").await;

    let plan = Plan::from_toml(PLAN).unwrap();
    let run = endpoint
        .submit(RolloutId::new("chat-v2").unwrap(), version(1), plan)
        .await
        .unwrap();
    let phase = async || run.rollout().map(|rollout| rollout.phase());
    until("the first stage", async || {
        phase().await.filter(|p| matches!(p, Phase::Soaking { .. }))
    })
    .await;

    // Without the token nobody is heard.
    let forged = json!({"version": "4", "alerts": [{
        "status": "firing", "labels": {"alertname": "ChatErrors", "service": "chat"}, "startsAt": "2026-01-01T00:00:00Z"}]});
    let (status, _) = http(hook.port(), "POST", "/alarms", &forged.to_string())
        .await
        .unwrap();
    assert_eq!(status, 401);

    let fire = async |name: &str, service: &str| {
        let alert = json!([{"labels": {"alertname": name, "service": service}, "annotations": {"summary": "2 % of requests fail"}}]);
        let (status, body) = http(port, "POST", "/api/v2/alerts", &alert.to_string())
            .await
            .unwrap();
        assert_eq!(status, 200, "{body}");
    };
    // Of another service, then of another name: held, not rolled back.
    fire("ChatErrors", "search").await;
    fire("QueueLong", "chat").await;
    until("the hold", async || {
        phase().await.filter(|p| matches!(p, Phase::Held { .. }))
    })
    .await;
    let begun = std::time::Instant::now();
    fire("ChatErrors", "chat").await;
    let end = run.finished().await.unwrap();
    assert_eq!(end.phase, Phase::RolledBack);
    let cause = Cause::Alarm {
        name: "ChatErrors".to_owned(),
        detail: "2 % of requests fail".to_owned(),
    };
    assert_eq!(end.cause, Some(cause));
    println!(
        "ok      alert to rollback: fired, posted, rolled back and confirmed within {} ms",
        begun.elapsed().as_millis()
    );
    crate::verified(
        "alarm-webhook",
        "Alertmanager",
        &version_of("prometheus-alertmanager", "--version"),
    );
}
