//! Native histograms, which a real Prometheus scrapes as protocol buffers and stores as such.

use super::version;
use crate::process::{Process, free_port, ready, until};
use llm_gates::{Counts, Increment};
use llm_rollout::{Epoch, MetricDef};
use llm_serve_adapters::SystemClock;
use llm_serve_adapters::host::{Clock as _, MetricSource as _, Query};
use llm_serve_adapters::source::{PrometheusSource, Series};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Of each version: requests up to 0.5 s, up to 1 s, up to 2 s.
type Heights = BTreeMap<&'static str, [u64; 3]>;

fn varint(mut n: u64, out: &mut Vec<u8>) {
    loop {
        let low = u8::try_from(n & 0x7f).unwrap();
        n >>= 7;
        out.push(low | if n > 0 { 0x80 } else { 0 });
        if n == 0 {
            return;
        }
    }
}

fn number(field: u64, n: u64, out: &mut Vec<u8>) {
    varint(field << 3, out);
    varint(n, out);
}

fn bytes(field: u64, inside: &[u8], out: &mut Vec<u8>) {
    varint(field << 3 | 2, out);
    varint(inside.len() as u64, out);
    out.extend_from_slice(inside);
}

fn double(field: u64, x: f64, out: &mut Vec<u8>) {
    varint(field << 3 | 1, out);
    out.extend_from_slice(&x.to_le_bytes());
}

/// Small for numbers near zero of either sign.
fn zigzag(n: i64) -> u64 {
    (n.cast_unsigned() << 1) ^ (n >> 63).cast_unsigned()
}

/// A `MetricFamily` of `io.prometheus.client`, with its length before it: buckets of schema 0 end at powers of two.
fn family(heights: &Heights) -> Vec<u8> {
    let mut family = Vec::new();
    bytes(1, b"ttft_native_seconds", &mut family);
    number(3, 4, &mut family);
    for (version, counts) in heights {
        let (mut label, mut span, mut histogram, mut metric) = (vec![], vec![], vec![], vec![]);
        bytes(1, b"version", &mut label);
        bytes(2, version.as_bytes(), &mut label);
        number(1, counts.iter().sum(), &mut histogram);
        double(2, 1.0, &mut histogram);
        number(5, zigzag(0), &mut histogram);
        double(6, 1e-9, &mut histogram);
        number(7, 0, &mut histogram);
        number(1, zigzag(-1), &mut span);
        number(2, 3, &mut span);
        bytes(12, &span, &mut histogram);
        let mut last = 0;
        for count in counts {
            number(13, zigzag(count.cast_signed() - last), &mut histogram);
            last = count.cast_signed();
        }
        bytes(1, &label, &mut metric);
        bytes(7, &histogram, &mut metric);
        bytes(4, &metric, &mut family);
    }
    let mut out = Vec::new();
    varint(family.len() as u64, &mut out);
    out.extend(family);
    out
}

#[tokio::test]
#[ignore = "needs prometheus: e2e/run prometheus"]
async fn native_histograms_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let shown = Arc::new(Mutex::new(Heights::from([("v1.0.0", [100, 5, 2])])));
    let source = Arc::clone(&shown);
    let app = axum::Router::new().fallback(async move || {
        let kind = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
        ([("content-type", kind)], family(&source.lock().unwrap()))
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let metrics = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let config = format!(
        "global: {{scrape_interval: 250ms, scrape_timeout: 250ms}}\n\
         scrape_configs: [{{job_name: gateway, static_configs: [{{targets: ['{metrics}']}}]}}]\n"
    );
    std::fs::write(folder.path().join("prom.yml"), config).unwrap();
    let port = free_port();
    let listen = format!("--web.listen-address=127.0.0.1:{port}");
    let _server = Process::start(
        folder.path(),
        "prometheus",
        &[
            "--config.file=prom.yml",
            "--storage.tsdb.path=data",
            "--enable-feature=native-histograms",
            &listen,
        ],
    );
    ready(port, "/-/ready").await;
    let source = PrometheusSource::builder(format!("http://127.0.0.1:{port}"))
        .native_histogram("slow", Series::new("ttft_native_seconds"))
        .version_label("version", |v| format!("v{}", v.version()))
        .build()
        .unwrap();
    let limit = MetricDef::FirstTokenOver(Duration::from_millis(500));
    let defs = BTreeMap::from([("slow".to_owned(), limit)]);
    let (candidate, baseline) = (version(1), version(0));
    let query = Query {
        metrics: &defs,
        epoch: Epoch::new(1),
        candidate: &candidate,
        baseline: &baseline,
    };
    let clock = SystemClock::new();
    let cursor = until("the first scrape", async || {
        source.open(query, clock.now()).await.ok()
    })
    .await;
    shown.lock().unwrap().insert("v1.0.0", [140, 6, 2]);
    shown.lock().unwrap().insert("v1.1.0", [7, 2, 3]);
    let expected = [Counts::new(12, 5), Counts::new(41, 1)];
    until("what was counted", async || {
        let reading = source.read(query, &cursor, clock.now()).await.ok()?;
        let Increment::Binary {
            candidate,
            baseline,
        } = reading.window.metrics["slow"]
        else {
            panic!("{reading:?}")
        };
        ([candidate, baseline] == expected).then_some(())
    })
    .await;
    println!("ok      native histograms: candidate 5 of 12 above 0.5 s, baseline 1 of 41");
}
