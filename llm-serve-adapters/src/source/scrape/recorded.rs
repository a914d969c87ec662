//! What real engines and proxies show, as recorded: the mapping in the documentation of [`ScrapeSource`], checked.

use super::tests::{engine, version};
use super::*;
use llm_gates::Increment;
use llm_rollout::{Epoch, MetricDef};
use std::sync::Arc;

/// With other values behind some series, and series that were not there before.
fn with(text: &str, changes: &[(&str, &str)]) -> String {
    let mut out = Vec::new();
    let mut left: Vec<_> = changes.to_vec();
    for line in text.lines() {
        let series = line.rsplit_once(' ').map_or(line, |(series, _)| series);
        match left.iter().position(|(changed, _)| *changed == series) {
            Some(at) => out.push(format!("{series} {}\n", left.remove(at).1)),
            None => out.push(format!("{line}\n")),
        }
    }
    for (series, value) in left {
        out.push(format!("{series} {value}\n"));
    }
    out.concat()
}

type Arms = [(u64, u64); 2];

/// Counts between two texts for each arm.
async fn counted(
    source: &ScrapeSource,
    def: MetricDef,
    shown: &[Arc<Mutex<String>>],
    later: &[String],
) -> Result<Arms> {
    let metrics = BTreeMap::from([("m".to_owned(), def)]);
    let (candidate, baseline) = (version(1), version(0));
    let query = Query {
        metrics: &metrics,
        epoch: Epoch::new(1),
        candidate: &candidate,
        baseline: &baseline,
    };
    let at = Timestamp::from_millis;
    let cursor = source.open(query, at(1_000)).await?;
    for (shown, later) in shown.iter().zip(later) {
        later.clone_into(&mut shown.lock().unwrap());
    }
    let reading = source.read(query, &cursor, at(2_000)).await?;
    match &reading.window.metrics["m"] {
        Increment::Binary {
            candidate,
            baseline,
        } => Ok([candidate, baseline].map(|counts| (counts.n, counts.k))),
        other => panic!("{other:?}"),
    }
}

/// A server of its own for each version.
async fn each(text: &str) -> (ScrapeSourceBuilder, [Arc<Mutex<String>>; 2]) {
    let (old, shown_old) = engine(text).await;
    let (new, shown_new) = engine(text).await;
    let builder = ScrapeSource::builder()
        .replica(version(0), old)
        .replica(version(1), new);
    (builder, [shown_new, shown_old])
}

/// One address for both, told apart by a label.
async fn both(
    text: &str,
    label: &str,
    values: [&str; 2],
) -> (ScrapeSourceBuilder, [Arc<Mutex<String>>; 1]) {
    let (at, shown) = engine(text).await;
    let [new, old] = values;
    let builder = ScrapeSource::builder();
    let builder =
        builder
            .labelled(version(0), &at, label, old)
            .labelled(version(1), &at, label, new);
    (builder, [shown])
}

#[tokio::test]
async fn vllm() {
    let text = include_str!("recorded/vllm-0.32.prom");
    let finished = |reason: &str| {
        format!(
            "vllm:request_success_total{{engine=\"0\",finished_reason=\"{reason}\",model_name=\"smol-v1\"}}"
        )
    };
    let later = |stop: &str, error: &str| {
        with(
            text,
            &[(&finished("stop"), stop), (&finished("error"), error)],
        )
    };
    let (builder, shown) = each(text).await;
    let all = Series::new("vllm:request_success_total");
    let source = builder
        .ratio("m", all.clone(), all.is("finished_reason", "error"))
        .build()
        .unwrap();
    let later = [later("5.0", "2.0"), later("11.0", "0.0")];
    let arms = counted(&source, MetricDef::Fault {}, &shown, &later)
        .await
        .unwrap();
    assert_eq!(arms, [(6, 2), (10, 0)]);

    let bucket = |le: &str| {
        format!(
            "vllm:time_to_first_token_seconds_bucket{{engine=\"0\",le=\"{le}\",model_name=\"smol-v1\"}}"
        )
    };
    let upper = [
        "0.5", "0.75", "1.0", "2.5", "5.0", "7.5", "10.0", "20.0", "40.0", "80.0", "160.0",
        "640.0", "2560.0", "+Inf",
    ];
    // Three more replies, all of them between 0.25 and 0.5 s.
    let changes: Vec<_> = upper.iter().map(|le| (bucket(le), "5.0")).collect();
    let changes: Vec<_> = changes
        .iter()
        .map(|(series, value)| (series.as_str(), *value))
        .collect();
    let later = with(text, &changes);
    for (limit, slow) in [(0.25, 3), (0.5, 0)] {
        let (builder, shown) = each(text).await;
        let source = builder
            .histogram("m", Series::new("vllm:time_to_first_token_seconds"))
            .build()
            .unwrap();
        let def = MetricDef::FirstTokenOver(Duration::from_secs_f64(limit));
        let arms = counted(&source, def, &shown, &[later.clone(), text.to_owned()])
            .await
            .unwrap();
        assert_eq!(arms, [(3, slow), (0, 0)], "over {limit} s");
    }
}

/// As the exporter of text-generation-inference 3.3 writes what its source counts: a series comes to be when it is counted first.
#[tokio::test]
async fn text_generation_inference() {
    let text = "# TYPE tgi_request_count counter\ntgi_request_count 5\n\n\
        # TYPE tgi_request_failure counter\ntgi_request_failure{err=\"validation\"} 2\n";
    let failed = "tgi_request_failure{err=\"generation\"}";
    let later = with(text, &[("tgi_request_count", "15"), (failed, "3")]);
    let fine = with(text, &[("tgi_request_count", "25")]);
    let (builder, shown) = each(text).await;
    let source = builder
        .ratio(
            "m",
            Series::new("tgi_request_count"),
            Series::new("tgi_request_failure").is("err", "generation"),
        )
        .build()
        .unwrap();
    let arms = counted(&source, MetricDef::Fault {}, &shown, &[later, fine])
        .await
        .unwrap();
    assert_eq!(arms, [(10, 3), (20, 0)]);
}

/// As mistral.rs documents what it counts.
#[tokio::test]
async fn mistral_rs() {
    let series = |model: &str, status: &str| {
        format!(
            "http_requests_total{{method=\"POST\",path=\"/v1/chat/completions\",model=\"{model}\",status=\"{status}\"}}"
        )
    };
    let (old, new, bad) = (
        series("v1", "200"),
        series("v2", "200"),
        series("v2", "500"),
    );
    let text = format!("# TYPE http_requests_total counter\n{old} 100\n{new} 1\n");
    let later = with(&text, &[(&old, "150"), (&new, "8"), (&bad, "3")]);
    let (builder, shown) = both(&text, "model", ["v2", "v1"]).await;
    let all = Series::new("http_requests_total");
    let source = builder
        .ratio("m", all.clone(), all.is("status", "500"))
        .build()
        .unwrap();
    let arms = counted(&source, MetricDef::Fault {}, &shown, &[later])
        .await
        .unwrap();
    assert_eq!(arms, [(10, 3), (50, 0)]);
}

#[tokio::test]
async fn envoy() {
    let text = include_str!("recorded/envoy-1.40.prom");
    let class = |cluster: &str, class: &str| {
        format!(
            "envoy_cluster_upstream_rq_xx{{envoy_response_code_class=\"{class}\",envoy_cluster_name=\"{cluster}\"}}"
        )
    };
    let (stable, good, bad) = (
        class("stable", "2"),
        class("canary", "2"),
        class("canary", "5"),
    );
    // Series of the canary come to be with its first replies.
    let later = with(text, &[(&stable, "103"), (&good, "9"), (&bad, "1")]);
    let (builder, shown) = both(text, "envoy_cluster_name", ["canary", "stable"]).await;
    let all = Series::new("envoy_cluster_upstream_rq_xx");
    let source = builder
        .ratio("m", all.clone(), all.is("envoy_response_code_class", "5"))
        .build()
        .unwrap();
    let arms = counted(&source, MetricDef::Fault {}, &shown, &[later])
        .await
        .unwrap();
    assert_eq!(arms, [(10, 1), (100, 0)]);

    // Its times are milliseconds.
    let bucket = |le: &str| {
        format!(
            "envoy_cluster_upstream_rq_time_bucket{{envoy_cluster_name=\"stable\",le=\"{le}\"}}"
        )
    };
    let upper = [
        "1000", "2500", "5000", "10000", "30000", "60000", "300000", "600000", "1800000",
        "3600000", "+Inf",
    ];
    let mut changes: Vec<_> = upper.iter().map(|le| (bucket(le), "7")).collect();
    let of_canary =
        |(series, _): &(String, &'static str)| (series.replace("stable", "canary"), "2");
    let canary: Vec<_> = changes.iter().map(of_canary).collect();
    changes.extend(canary);
    changes.push((bucket("500").replace("stable", "canary"), "0"));
    let changes: Vec<_> = changes
        .iter()
        .map(|(series, value)| (series.as_str(), *value))
        .collect();
    let later = with(text, &changes);
    let (builder, shown) = both(text, "envoy_cluster_name", ["canary", "stable"]).await;
    let source = builder
        .histogram(
            "m",
            Series::new("envoy_cluster_upstream_rq_time").milliseconds(),
        )
        .build()
        .unwrap();
    let def = MetricDef::DurationOver(Duration::from_millis(500));
    let arms = counted(&source, def, &shown, &[later]).await.unwrap();
    assert_eq!(arms, [(2, 2), (4, 4)], "above 500 ms, not 500 s");
}

#[tokio::test]
async fn haproxy() {
    let text = include_str!("recorded/haproxy-2.6.prom");
    let code = |server: &str, code: &str| {
        format!(
            "haproxy_server_http_responses_total{{proxy=\"llm\",server=\"{server}\",code=\"{code}\"}}"
        )
    };
    let (stable, good, bad) = (
        code("stable", "2xx"),
        code("canary", "2xx"),
        code("canary", "5xx"),
    );
    let later = with(text, &[(&stable, "90"), (&good, "8"), (&bad, "3")]);
    let (builder, shown) = both(text, "server", ["canary", "stable"]).await;
    let all = Series::new("haproxy_server_http_responses_total").is("proxy", "llm");
    let source = builder
        .ratio("m", all.clone(), all.is("code", "5xx"))
        .build()
        .unwrap();
    let arms = counted(&source, MetricDef::Fault {}, &shown, &[later])
        .await
        .unwrap();
    assert_eq!(arms, [(11, 3), (90, 0)]);
}

#[tokio::test]
async fn triton() {
    let text = include_str!("recorded/triton-2.51.prom");
    let good = |v: u8| format!("nv_inference_request_success{{model=\"llm\",version=\"{v}\"}}");
    let bad = |v: u8, reason: &str| {
        format!("nv_inference_request_failure{{model=\"llm\",reason=\"{reason}\",version=\"{v}\"}}")
    };
    let later = with(
        text,
        &[
            (&good(1), "41"),
            (&bad(1, "BACKEND"), "2"),
            // The second version was loaded in between.
            (&good(2), "5"),
            (&bad(2, "BACKEND"), "1"),
            (&bad(2, "OTHER"), "1"),
        ],
    );
    let (builder, shown) = both(text, "version", ["2", "1"]).await;
    let of = |name| Series::new(name).is("model", "llm");
    let source = builder
        .apart(
            "m",
            of("nv_inference_request_success"),
            of("nv_inference_request_failure"),
        )
        .build()
        .unwrap();
    let arms = counted(&source, MetricDef::Fault {}, &shown, &[later])
        .await
        .unwrap();
    assert_eq!(arms, [(7, 2), (42, 2)]);
}

#[tokio::test]
async fn torchserve_counts_requests_and_llama_server_none() {
    let text = include_str!("recorded/torchserve-0.12.prom");
    let requests = |v: &str| {
        format!(
            "ts_inference_requests_total{{model_name=\"llm\",model_version=\"{v}\",hostname=\"vm\",}}"
        )
    };
    let later = with(
        text,
        &[(&requests("default"), "31.0"), (&requests("2.0"), "4.0")],
    );
    let (builder, shown) = both(text, "model_version", ["2.0", "default"]).await;
    let all = Series::new("ts_inference_requests_total");
    // It counts no faults: a series that is not there counts none.
    let source = builder
        .ratio("m", all, Series::new("ts_inference_errors_total"))
        .build()
        .unwrap();
    let arms = counted(&source, MetricDef::Fault {}, &shown, &[later])
        .await
        .unwrap();
    assert_eq!(arms, [(4, 0), (30, 0)]);

    let text = include_str!("recorded/llama-server.prom");
    let (builder, shown) = each(text).await;
    let seconds = Series::new("llamacpp:prompt_seconds_total");
    let source = builder
        .ratio("m", seconds.clone(), seconds)
        .build()
        .unwrap();
    let error = counted(&source, MetricDef::Fault {}, &shown, &[])
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("counts nothing"),
        "seconds are no requests: {error}"
    );
}
