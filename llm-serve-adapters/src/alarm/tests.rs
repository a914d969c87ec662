use super::*;
use crate::host::ErrorKind;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair, SigningKey as _};
use serde_json::{Value, json};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const TOKEN: &str = "a token of 16 bytes or more";
const TOPIC: &str = "arn:aws:sns:us-west-2:123456789012:alarms";
const NOW: u64 = 1_767_225_600; // 2026-01-01T00:00:00Z

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// As Alertmanager 0.25 posts it.
fn alertmanager(alerts: &Value) -> Vec<u8> {
    let body = json!({
        "receiver": "rollout", "status": "firing", "alerts": alerts, "groupLabels": {}, "commonLabels": {},
        "commonAnnotations": {}, "externalURL": "http://am:9093", "version": "4", "groupKey": "{}:{}", "truncatedAlerts": 0,
    });
    body.to_string().into_bytes()
}

fn alert(name: &str, status: &str, fingerprint: &str) -> Value {
    json!({
        "status": status, "labels": {"alertname": name, "service": "chat"},
        "annotations": {"summary": format!("{name}\nhas gone off")}, "startsAt": "2026-01-01T00:00:00Z",
        "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "http://prom/graph", "fingerprint": fingerprint,
    })
}

type Headers = Vec<(&'static str, String)>;

fn bearer(token: &str) -> Headers {
    vec![("authorization", format!("Bearer {token}"))]
}

fn signed(id: &str, seconds: u64, body: &[u8]) -> Headers {
    use hmac::{Hmac, KeyInit, Mac};
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET).unwrap();
    mac.update(format!("{id}.{seconds}.").as_bytes());
    mac.update(body);
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    vec![
        ("webhook-id", id.to_owned()),
        ("webhook-timestamp", seconds.to_string()),
        (
            "webhook-signature",
            format!("v1a,other v1,AAAA v1,{signature}"),
        ),
    ]
}

fn receive(
    webhook: &AlarmWebhook,
    headers: &Headers,
    body: &[u8],
    now: u64,
) -> Result<Delivered, Refused> {
    let header = |name: &str| {
        let found = headers.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.as_str())
    };
    webhook.receive(header, body, at(now))
}

fn delivery(received: Result<Delivered, Refused>) -> Delivery {
    match received {
        Ok(Delivered::Alarms(delivery)) => delivery,
        other => panic!("{other:?}"),
    }
}

fn names(received: Result<Delivered, Refused>) -> Vec<String> {
    let delivery = delivery(received);
    delivery.alarms.into_iter().map(|a| a.name).collect()
}

#[test]
fn alertmanager_is_known_by_its_token_and_tells_what_fires() {
    let webhook = AlarmWebhook::builder().token(TOKEN).only("service", "chat");
    let webhook = webhook.build().unwrap();
    let mut other = alert("Disk", "firing", "d");
    other["labels"]["service"] = "search".into();
    let body = alertmanager(&json!([
        alert("Errors", "firing", "a"),
        alert("Slow", "resolved", "b"),
        alert("LlmRollout", "firing", "c"),
        other,
    ]));
    let basic = format!("Basic {}", STANDARD.encode(format!("am:{TOKEN}")));
    for headers in [bearer(TOKEN), vec![("authorization", basic)]] {
        let found = delivery(receive(&webhook, &headers, &body, NOW));
        let [alarm] = &found.alarms[..] else {
            panic!("{found:?}")
        };
        assert_eq!(alarm.name, "Errors");
        assert_eq!(alarm.detail, "Errors has gone off", "in one line");
        // It comes again: a retry, or a second replica of Alertmanager.
        assert!(names(receive(&webhook, &headers, &body, NOW + 20)).is_empty());
        // It could not be dealt with after all.
        webhook.failed(found);
        assert_eq!(
            names(receive(&webhook, &headers, &body, NOW + 30)),
            ["Errors"]
        );
        // Hours later it is still firing.
        assert_eq!(
            names(receive(&webhook, &headers, &body, NOW + 4 * 3_600)),
            ["Errors"]
        );
        webhook.seen().forget("alert a 2026-01-01T00:00:00Z");
    }
    for headers in [
        bearer("a token of somebody else"),
        bearer(""),
        Headers::new(),
    ] {
        let refused = receive(&webhook, &headers, &body, NOW).unwrap_err();
        assert_eq!(refused.status(), 401, "{refused}");
        assert!(!refused.to_string().contains(TOKEN));
    }
    assert!(!format!("{webhook:?}").contains(TOKEN));
}

#[test]
fn a_signed_message_is_taken_once_and_while_it_is_fresh() {
    let webhook = AlarmWebhook::builder().secret(SECRET).build().unwrap();
    let body = br#"{"name": "quality", "detail": "the judge prefers v1"}"#;
    let headers = signed("m1", NOW, body);
    let found = delivery(receive(&webhook, &headers, body, NOW + 299));
    assert_eq!(found.alarms[0].name, "quality");
    assert!(
        names(receive(&webhook, &headers, body, NOW + 299)).is_empty(),
        "a replay"
    );
    webhook.failed(found);
    assert_eq!(
        names(receive(&webhook, &headers, body, NOW + 300)),
        ["quality"]
    );
    for (headers, body, now, part) in [
        (
            signed("m2", NOW, body),
            &body[..],
            NOW + 301,
            "away from now",
        ),
        (signed("m2", NOW + 301, body), body, NOW, "away from now"),
        (
            signed("m2", NOW, body),
            b"{\"name\": \"other\"}",
            NOW,
            "does not fit",
        ),
        (signed("m2", NOW, b"{}"), body, NOW, "does not fit"),
        (bearer(TOKEN), body, NOW, "no signature and no token"),
    ] {
        let refused = receive(&webhook, &headers, body, now).unwrap_err();
        assert!(refused.to_string().contains(part), "{refused}");
        assert_eq!(refused.status(), 401);
    }
    let mut moved = signed("m3", NOW, body);
    moved[1].1 = (NOW + 1).to_string();
    let refused = receive(&webhook, &moved, body, NOW).unwrap_err();
    assert!(refused.to_string().contains("does not fit"), "{refused}");
}

/// What SNS signs with. RSA keys are slow to make, so there is one in this file, made for it alone.
fn sns_key() -> (KeyPair, String) {
    let key =
        KeyPair::from_pem_and_sign_algo(include_str!("tests/sns.key.pem"), &rcgen::PKCS_RSA_SHA256)
            .unwrap();
    let certificate = CertificateParams::new(["sns.amazonaws.com".to_owned()]).unwrap();
    let pem = certificate.self_signed(&key).unwrap().pem();
    (key, pem)
}

fn sns(key: &KeyPair, kind: &str, id: &str, topic: &str, message: &str) -> Value {
    let time = "2026-01-01T00:00:00.000Z";
    let url = "https://sns.us-west-2.amazonaws.com/?Action=ConfirmSubscription&Token=2336";
    // As the documentation of SNS lists what is signed.
    let text = match kind {
        "Notification" => format!(
            "Message\n{message}\nMessageId\n{id}\nSubject\nALARM\nTimestamp\n{time}\nTopicArn\n{topic}\nType\n{kind}\n"
        ),
        _ => format!(
            "Message\n{message}\nMessageId\n{id}\nSubscribeURL\n{url}\nTimestamp\n{time}\nToken\n2336\nTopicArn\n{topic}\nType\n{kind}\n"
        ),
    };
    let signature = STANDARD.encode(key.sign(text.as_bytes()).unwrap());
    let mut body = json!({
        "Type": kind, "MessageId": id, "TopicArn": topic, "Message": message, "Timestamp": time,
        "SignatureVersion": "2", "Signature": signature,
        "SigningCertURL": "https://sns.us-west-2.amazonaws.com/SimpleNotificationService-x.pem",
    });
    if kind == "Notification" {
        body["Subject"] = "ALARM".into();
    } else {
        body["Token"] = "2336".into();
        body["SubscribeURL"] = url.into();
    }
    body
}

fn cloudwatch(state: &str) -> String {
    let alarm = json!({
        "AlarmName": "chat-p99", "AlarmDescription": null, "AWSAccountId": "123456789012", "NewStateValue": state,
        "NewStateReason": "Threshold Crossed: 1 datapoint [2.5] was greater than the threshold (2.0).",
        "StateChangeTime": "2026-01-01T00:00:00.000+0000", "Region": "US West (Oregon)", "OldStateValue": "OK",
        "AlarmArn": "arn:aws:cloudwatch:us-west-2:123456789012:alarm:chat-p99",
    });
    alarm.to_string()
}

#[test]
fn cloudwatch_alarms_come_through_sns_and_its_signature_is_checked() {
    let (key, pem) = sns_key();
    let webhook = AlarmWebhook::builder()
        .sns(pem)
        .topic(TOPIC)
        .build()
        .unwrap();
    let send =
        |body: &Value, now| receive(&webhook, &Headers::new(), body.to_string().as_bytes(), now);
    let alarm = sns(&key, "Notification", "n1", TOPIC, &cloudwatch("ALARM"));
    let found = delivery(send(&alarm, NOW + 60));
    assert_eq!(found.alarms[0].name, "chat-p99");
    assert!(
        found.alarms[0]
            .detail
            .contains("greater than the threshold")
    );
    assert!(
        names(send(&alarm, NOW + 120)).is_empty(),
        "SNS tries again with the same id"
    );
    let fine = sns(&key, "Notification", "n2", TOPIC, &cloudwatch("OK"));
    assert!(names(send(&fine, NOW)).is_empty());
    let asks = sns(
        &key,
        "SubscriptionConfirmation",
        "c1",
        TOPIC,
        "You have chosen to subscribe",
    );
    let Ok(Delivered::Confirm { url }) = send(&asks, NOW) else {
        panic!()
    };
    assert!(url.ends_with("Token=2336"));

    let mut forged = alarm.clone();
    forged["Message"] = cloudwatch("ALARM").replace("chat-p99", "other").into();
    let mut redirected = asks.clone();
    redirected["SubscribeURL"] = "https://evil.example/".into();
    let mut old_kind = alarm.clone();
    old_kind["SignatureVersion"] = "1".into();
    let elsewhere = sns(
        &key,
        "Notification",
        "n3",
        "arn:aws:sns:us-west-2:999:x",
        &cloudwatch("ALARM"),
    );
    for (body, now, part) in [
        (&forged, NOW, "fits its signature"),
        (&redirected, NOW, "fits its signature"),
        (&old_kind, NOW, "SignatureVersion to 2"),
        (&elsewhere, NOW, "another topic"),
        (&alarm, NOW + 3_601, "away from now"),
    ] {
        let refused = send(body, now).unwrap_err();
        assert!(refused.to_string().contains(part), "{part}: {refused}");
        assert_eq!(refused.status(), 401);
    }
    let unsubscribed = sns(&key, "UnsubscribeConfirmation", "u1", TOPIC, "x");
    assert_eq!(send(&unsubscribed, NOW).unwrap_err().status(), 400);
}

#[test]
fn sns_may_be_known_by_a_password_instead() {
    let webhook = AlarmWebhook::builder()
        .token(TOKEN)
        .topic(TOPIC)
        .build()
        .unwrap();
    let (key, _) = sns_key();
    let body = sns(&key, "Notification", "n1", TOPIC, &cloudwatch("ALARM")).to_string();
    let basic = format!("Basic {}", STANDARD.encode(format!("sns:{TOKEN}")));
    let headers = vec![("authorization", basic)];
    assert_eq!(
        names(receive(&webhook, &headers, body.as_bytes(), NOW)),
        ["chat-p99"]
    );
    let refused = receive(&webhook, &Headers::new(), body.as_bytes(), NOW);
    assert_eq!(refused.unwrap_err().status(), 401);
}

#[test]
fn what_cannot_be_read_is_refused_and_bounded() {
    let webhook = AlarmWebhook::builder()
        .token(TOKEN)
        .largest(400)
        .build()
        .unwrap();
    let long = format!("{{\"name\": \"{}\"}}", "x".repeat(400));
    for (body, status) in [
        ("", 400),
        ("[]", 400),
        ("{}", 400),
        ("{\"name\": \"\"}", 400),
        ("{\"alerts\": 3}", 400),
        ("{\"version\": \"5\", \"alerts\": []}", 400),
        ("{\"Type\": \"Notification\"}", 400),
        (&long, 413),
    ] {
        let refused = receive(&webhook, &bearer(TOKEN), body.as_bytes(), NOW).unwrap_err();
        assert_eq!(refused.status(), status, "{body}: {refused}");
    }
    let name = "n".repeat(250);
    let body = format!("{{\"name\": \"{name}\"}}");
    let found = names(receive(&webhook, &bearer(TOKEN), body.as_bytes(), NOW));
    assert_eq!(found[0].len(), 200);
}

#[test]
fn nobody_in_particular_is_no_sender() {
    let (_, pem) = sns_key();
    for builder in [
        AlarmWebhook::builder(),
        AlarmWebhook::builder().topic(TOPIC),
        AlarmWebhook::builder().token("short"),
        AlarmWebhook::builder().secret("short"),
        AlarmWebhook::builder().sns(pem),
        AlarmWebhook::builder().sns("no certificate").topic(TOPIC),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    }
}

proptest! {
    #[test]
    fn no_body_panics(body in any::<Vec<u8>>(), text in "\\{\"(Type|alerts|name)\":[ -~]{0,60}") {
        let webhook = AlarmWebhook::builder().token(TOKEN).build().unwrap();
        for body in [&body[..], text.as_bytes()] {
            let _any = receive(&webhook, &bearer(TOKEN), body, NOW);
            prop_assert!(receive(&webhook, &Headers::new(), body, NOW).is_err());
        }
    }
}
