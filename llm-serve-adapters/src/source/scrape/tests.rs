use super::*;
use crate::host::ErrorKind;
use axum::Router;
use axum::http::StatusCode;
use llm_gates::Increment;
use llm_rollout::{Epoch, MetricDef};
use std::sync::Arc;
use tokio::net::TcpListener;

/// An engine whose metrics can be changed.
pub(super) async fn engine(text: &str) -> (String, Arc<Mutex<String>>) {
    let shown = Arc::new(Mutex::new(text.to_owned()));
    let source = Arc::clone(&shown);
    let app = Router::new().fallback(async move || source.lock().unwrap().clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/metrics", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address, shown)
}

/// As vLLM writes them: names with colons, floats, labels of its own.
fn vllm(stop: u32, abort: u32, first: [u32; 3]) -> String {
    let [a, b, all] = first;
    format!(
        "# HELP vllm:request_success_total Count of successfully processed requests.\n\
         # TYPE vllm:request_success_total counter\n\
         vllm:request_success_total{{engine=\"0\",finished_reason=\"stop\",model_name=\"m\"}} {stop}.0\n\
         vllm:request_success_total{{engine=\"0\",finished_reason=\"abort\",model_name=\"m\"}} {abort}.0\n\
         vllm:request_success_created{{engine=\"0\",finished_reason=\"stop\",model_name=\"m\"}} 1.79e+09\n\
         vllm:time_to_first_token_seconds_sum{{engine=\"0\",model_name=\"m\"}} 1.25\n\
         vllm:time_to_first_token_seconds_bucket{{engine=\"0\",le=\"0.5\",model_name=\"m\"}} {a}.0\n\
         vllm:time_to_first_token_seconds_bucket{{engine=\"0\",le=\"1.0\",model_name=\"m\"}} {b}.0\n\
         vllm:time_to_first_token_seconds_bucket{{engine=\"0\",le=\"+Inf\",model_name=\"m\"}} {all}.0\n"
    )
}

pub(super) fn version(n: u8) -> VersionId {
    format!("chat/v1.{n}.0-{}", n.to_string().repeat(64))
        .parse()
        .unwrap()
}

#[tokio::test]
async fn counts_both_arms_from_their_engines() {
    let (old, shown_old) = engine(&vllm(100, 3, [50, 80, 103])).await;
    let (new, shown_new) = engine(&vllm(7, 0, [7, 7, 7])).await;
    let finished = Series::new("vllm:request_success_total");
    let source = ScrapeSource::builder()
        .replica(version(0), &old)
        .replica(version(1), &new)
        .ratio(
            "aborted",
            finished.clone(),
            finished.is("finished_reason", "abort"),
        )
        .histogram("slow", Series::new("vllm:time_to_first_token_seconds"))
        .build()
        .unwrap();
    let metrics = BTreeMap::from([
        ("aborted".to_owned(), MetricDef::Fault {}),
        (
            "slow".to_owned(),
            MetricDef::FirstTokenOver(Duration::from_secs(1)),
        ),
    ]);
    let (candidate, baseline) = (version(1), version(0));
    let query = Query {
        metrics: &metrics,
        epoch: Epoch::new(2),
        candidate: &candidate,
        baseline: &baseline,
    };
    let at = Timestamp::from_millis;
    let cursor = source.open(query, at(1_000)).await.unwrap();
    *shown_old.lock().unwrap() = vllm(120, 4, [60, 95, 124]);
    // The candidate was started anew.
    *shown_new.lock().unwrap() = vllm(5, 1, [2, 4, 6]);
    let reading = source.read(query, &cursor, at(2_000)).await.unwrap();
    let counts = |name: &str| match &reading.window.metrics[name] {
        Increment::Binary {
            candidate,
            baseline,
        } => [(candidate.n, candidate.k), (baseline.n, baseline.k)],
        other => panic!("{other:?}"),
    };
    assert_eq!(counts("aborted"), [(6, 1), (21, 1)]);
    assert_eq!(counts("slow"), [(6, 2), (21, 6)]);

    let mut errors = Vec::new();
    for text in [
        "",
        "vllm:request_success_total{finished_reason=\"stop\"} NaN\n",
        "vllm:request_success_total{x\n",
    ] {
        text.clone_into(&mut shown_new.lock().unwrap());
        errors.push(
            source
                .read(query, &reading.cursor, at(3_000))
                .await
                .unwrap_err(),
        );
    }
    source.remove(&version(1), &new).unwrap();
    errors.push(
        source
            .read(query, &reading.cursor, at(3_000))
            .await
            .unwrap_err(),
    );
    for (error, part) in errors.iter().zip([
        "nothing of the Candidate",
        "is NaN",
        "line 1",
        "need a replica each",
    ]) {
        assert_eq!(error.kind(), ErrorKind::Transient);
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn an_engine_that_is_gone_or_refuses_leaves_no_window() {
    let (old, _) = engine(&vllm(1, 0, [1, 1, 1])).await;
    let app =
        Router::new().fallback(async || (StatusCode::NOT_IMPLEMENTED, "start it with --metrics"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refuses = format!("http://{}/metrics", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    for (new, part) in [
        ("http://127.0.0.1:9/metrics", "cannot be reached"),
        (refuses.as_str(), "--metrics"),
    ] {
        let all = Series::new("vllm:request_success_total");
        let source = ScrapeSource::builder()
            .replica(version(0), &old)
            .replica(version(1), new)
            .ratio("m", all.clone(), all)
            .build()
            .unwrap();
        let metrics = BTreeMap::from([("m".to_owned(), MetricDef::Fault {})]);
        let (candidate, baseline) = (version(1), version(0));
        let query = Query {
            metrics: &metrics,
            epoch: Epoch::new(2),
            candidate: &candidate,
            baseline: &baseline,
        };
        let error = source
            .open(query, Timestamp::from_millis(1))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient);
        assert!(error.to_string().contains(part), "{error}");
    }
}
