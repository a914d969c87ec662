//! Metrics to a real OpenTelemetry sink, which writes down what it has understood.

use crate::process::{Process, free_port, http, until, version_of};
use llm_serve_adapters::recorder::OutcomeClass;
use llm_serve_adapters::router::Key;
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::telemetry::OtlpExporter;
use llm_serve_adapters::{Bootstrap, Endpoint};
use llm_version_core::VersionId;
use std::time::Duration;

#[tokio::test]
#[ignore = "needs rotel: e2e/run otlp"]
async fn a_collector_understands_every_metric() {
    let folder = tempfile::tempdir().unwrap();
    let rotel = std::env::var("LLM_E2E_ROTEL").expect("e2e/run otlp sets LLM_E2E_ROTEL");
    let (port, grpc) = (free_port(), free_port());
    let [http_at, grpc_at] = [port, grpc].map(|port| format!("127.0.0.1:{port}"));
    let pid = folder.path().join("pid").display().to_string();
    let _sink = Process::start(
        folder.path(),
        &rotel,
        &[
            "start",
            "--exporter",
            "blackhole",
            "--debug-log",
            "metrics",
            "--debug-log-verbosity",
            "detailed",
            "--pid-file",
            &pid,
            "--otlp-http-endpoint",
            &http_at,
            "--otlp-grpc-endpoint",
            &grpc_at,
        ],
    );
    until("the sink", async || http(port, "GET", "/", "").await).await;

    let version: VersionId = format!("chat/v1.0.0-{}", "1".repeat(64)).parse().unwrap();
    let reference = version.reference().to_string();
    let endpoint = Endpoint::open("chat", MemoryStore::new(), Bootstrap(version))
        .await
        .unwrap();
    let plane = endpoint.data_plane().clone();
    for n in 0..7_u32 {
        let now = plane.router.now();
        let decision = plane.router.decide(&Key::session(&n.to_le_bytes()), now);
        let mut ticket = plane.recorder.begin(decision, now);
        ticket.first_token(now.after(Duration::from_millis(300)));
        ticket.tokens(21);
        let class = if n < 2 {
            OutcomeClass::Timeout
        } else {
            OutcomeClass::Ok
        };
        ticket.finish(class, now.after(Duration::from_secs(2)));
    }
    let mut exporter = OtlpExporter::builder(format!("http://{http_at}"), &endpoint)
        .provider("llama.cpp")
        .build()
        .unwrap();
    exporter.push().await.unwrap();

    let log = folder.path().join("rotel-agent.log");
    let said = until("what the sink has understood", async || {
        let said = std::fs::read_to_string(&log).unwrap();
        said.contains("llm.rollout.requests").then_some(said)
    })
    .await;
    assert!(!said.contains("DataType: Empty"), "{said}");
    let metric = |name: &str| {
        let (_, rest) = said.split_once(&format!("Name: {name}\n")).expect(name);
        rest.split("-> Name: ").next().unwrap().to_owned()
    };
    for name in [
        "gen_ai.server.request.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
        "gen_ai.client.token.usage",
    ] {
        let metric = metric(name);
        assert!(metric.contains("DataType: Histogram"), "{metric}");
        // Every reply came in one piece: there is no time between its tokens.
        let count = if name.ends_with("per_output_token") {
            0
        } else {
            7
        };
        let count = format!("Count: {count}\n");
        assert!(
            metric.contains("CUMULATIVE") && metric.contains(&count),
            "{metric}"
        );
    }
    // 2 s lie between 1.28 and 2.56.
    let duration = metric("gen_ai.server.request.duration");
    assert!(duration.contains("ExplicitBounds #8: 2.56"), "{duration}");
    assert!(duration.contains("Buckets #8, Count: 7"), "{duration}");
    assert!(metric("gen_ai.client.token.usage").contains("Sum: 147"));
    println!(
        "ok      OTLP: 4 histograms of 7 requests in the usual buckets, 147 tokens, outcomes, of {reference}"
    );
    crate::verified("opentelemetry", "rotel", &version_of(&rotel, "--version"));
}
