use super::*;
use crate::host::ErrorKind;
use crate::recorder::OutcomeClass;
use crate::telemetry::tests::{endpoint, serve};
use axum::Router;
use axum::http::{HeaderMap as Headers, StatusCode, Uri};
use proptest::prelude::*;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

type Got = Arc<Mutex<Vec<(String, Headers, Json)>>>;

/// A collector that answers like this.
async fn collector(status: u16, answer: &'static str) -> (String, Got) {
    let got = Got::default();
    let sink = Arc::clone(&got);
    let app = Router::new().fallback(async move |uri: Uri, headers: Headers, body: String| {
        let body = serde_json::from_str(&body).unwrap();
        sink.lock()
            .unwrap()
            .push((uri.path().to_owned(), headers, body));
        (StatusCode::from_u16(status).unwrap(), answer)
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/otel/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address, got)
}

fn metric<'a>(body: &'a Json, name: &str) -> &'a Json {
    let metrics = body["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
        .as_array()
        .unwrap();
    metrics.iter().find(|m| m["name"] == name).unwrap()
}

#[tokio::test]
async fn collectors_get_cumulative_histograms_in_the_usual_buckets() {
    let (address, got) = collector(200, "{}").await;
    let endpoint = endpoint().await;
    let exporter = OtlpExporter::builder(&address, &endpoint)
        .header("x-key", "S3CRET")
        .provider("vllm");
    let mut exporter = exporter.build().unwrap();
    serve(&endpoint, 3, Duration::from_secs(2), OutcomeClass::Ok);
    exporter.push().await.unwrap();
    serve(&endpoint, 2, Duration::from_secs(200), OutcomeClass::Ok);
    exporter.push().await.unwrap();
    assert!(!format!("{exporter:?}").contains("S3CRET"));
    let got = got.lock().unwrap();
    let [(path, headers, first), (_, _, second)] = &got[..] else {
        panic!("{got:?}")
    };
    assert_eq!(
        (path.as_str(), &headers["x-key"]),
        ("/otel/v1/metrics", &"S3CRET".parse().unwrap())
    );
    for (body, counts) in [(first, [3_u64, 0]), (second, [3, 2])] {
        let point = &metric(body, "gen_ai.server.request.duration")["histogram"]["dataPoints"][0];
        let bounds: Vec<f64> = serde_json::from_value(point["explicitBounds"].clone()).unwrap();
        let buckets: Vec<u64> = serde_json::from_value(point["bucketCounts"].clone()).unwrap();
        assert_eq!((bounds.len(), buckets.len()), (14, 15));
        // 2 s lie between 1.28 and 2.56, 200 s above all.
        assert_eq!([buckets[8], buckets[14]], counts);
        assert_eq!(point["count"], counts[0] + counts[1]);
        let sum = point["sum"].as_f64().unwrap();
        let exact = (2 * counts[0] + 200 * counts[1]) as f64;
        assert!((sum / exact - 1.0).abs() < 0.017, "{sum} {exact}");
        let tokens = &metric(body, "gen_ai.client.token.usage")["histogram"]["dataPoints"][0];
        assert_eq!(tokens["sum"], 11.0 * (counts[0] + counts[1]) as f64);
        let requests = metric(body, "llm.rollout.requests");
        assert_eq!(requests["sum"]["isMonotonic"], true);
        assert_eq!(requests["sum"]["aggregationTemporality"], 2);
    }
    let start =
        |body| &metric(body, "llm.rollout.requests")["sum"]["dataPoints"][0]["startTimeUnixNano"];
    assert_eq!(
        start(first),
        start(second),
        "cumulative since the same moment"
    );
    let provider = json!({"key": "gen_ai.provider.name", "value": {"stringValue": "vllm"}});
    let attributes = &metric(first, "llm.rollout.requests")["sum"]["dataPoints"][0]["attributes"];
    assert!(attributes.as_array().unwrap().contains(&provider));
}

#[tokio::test]
async fn refusals_say_whether_to_try_again() {
    let endpoint = endpoint().await;
    let partly = r#"{"partialSuccess": {"rejectedDataPoints": "3", "errorMessage": "too old"}}"#;
    for (status, answer, kind) in [
        (200, "", None),
        (
            200,
            r#"{"partialSuccess": {"rejectedDataPoints": "0"}}"#,
            None,
        ),
        (200, partly, Some(ErrorKind::Permanent)),
        (400, "bad", Some(ErrorKind::Permanent)),
        (415, "protobuf only", Some(ErrorKind::Permanent)),
        (503, "full", Some(ErrorKind::Transient)),
    ] {
        let (address, _) = collector(status, answer).await;
        let mut exporter = OtlpExporter::builder(&address, &endpoint).build().unwrap();
        let pushed = exporter.push().await;
        assert_eq!(pushed.as_ref().err().map(Error::kind), kind, "{pushed:?}");
    }
    for builder in [
        OtlpExporter::builder("collector:4318", &endpoint),
        OtlpExporter::builder("http://collector:4318", &endpoint).header("a b", "x"),
        OtlpExporter::builder("http://collector:4318", &endpoint).header("a", "x\ny"),
    ] {
        assert_eq!(builder.build().unwrap_err().kind(), ErrorKind::Permanent);
    }
}

proptest! {
    #[test]
    fn folding_keeps_every_value(values in proptest::collection::vec((0.0..200.0_f64, 1..9_u64), 0..50)) {
        let bounds = super::super::DURATION;
        let counts = fold(&values, bounds);
        for (i, bound) in bounds.iter().enumerate() {
            let below: u64 = values.iter().filter(|(v, _)| v <= bound).map(|(_, n)| n).sum();
            prop_assert_eq!(counts[..=i].iter().sum::<u64>(), below);
        }
        prop_assert_eq!(counts.iter().sum::<u64>(), values.iter().map(|(_, n)| n).sum::<u64>());
    }
}
