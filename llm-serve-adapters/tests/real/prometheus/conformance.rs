//! The conformance suite of metric sources against a real Prometheus.

use super::{Gateway, start, version};
use crate::process::{Process, free_port, http, ready, until};
use async_trait::async_trait;
use llm_gates::Counts;
use llm_rollout::{Epoch, MetricDef, Timestamp};
use llm_serve_adapters::SystemClock;
use llm_serve_adapters::host::{Clock as _, MetricSource};
use llm_serve_adapters::source::{PrometheusSource, Series};
use llm_serve_adapters::testing::source::{Arm, Traffic, Trouble, suite};
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const FRESH: Duration = Duration::from_secs(2);

struct Host {
    gateway: Gateway,
    server: Process,
    port: u16,
    source: Arc<PrometheusSource>,
    clock: SystemClock,
    last: Timestamp,
}

fn name(arm: Arm) -> &'static str {
    match arm {
        Arm::Candidate => "v1.1.0",
        Arm::Baseline => "v1.0.0",
    }
}

impl Host {
    /// Waits until Prometheus shows what the gateway shows, of both versions.
    async fn scraped(&self) {
        let counted = self.gateway.counted.lock().unwrap().clone();
        for (version, (good, bad, _)) in counted {
            let path =
                format!("/api/v1/query?query=sum(requests_total%7Bversion%3D%22{version}%22%7D)");
            let all = format!("\"{}\"]", good + bad);
            until("a scrape", async || {
                let (_, body) = http(self.port, "GET", &path, "").await?;
                body.contains(&all).then_some(())
            })
            .await;
        }
    }
}

#[async_trait(?Send)]
impl Traffic for Host {
    fn source(&self) -> Arc<dyn MetricSource> {
        Arc::clone(&self.source) as Arc<dyn MetricSource>
    }

    fn metrics(&self) -> BTreeMap<String, MetricDef> {
        let limit = Duration::from_millis(500);
        BTreeMap::from([
            ("faults".to_owned(), MetricDef::Fault {}),
            ("slow".to_owned(), MetricDef::FirstTokenOver(limit)),
        ])
    }

    fn versions(&self) -> [VersionId; 2] {
        [version(1), version(0)]
    }

    fn now(&mut self) -> Timestamp {
        let next = self.last.after(Duration::from_millis(1));
        self.last = self.clock.now().max(next);
        self.last
    }

    async fn serve(&mut self, _: Epoch, arm: Arm, served: Counts) {
        // What is bad is slow, too.
        self.gateway
            .count(name(arm), served.n - served.k, served.k, served.k);
        self.scraped().await;
    }

    fn tells_epochs(&self) -> bool {
        false
    }

    async fn strike(&mut self, trouble: Trouble) -> bool {
        match trouble {
            Trouble::Unreachable => self.server.signal("STOP"),
            Trouble::NotANumber => {
                *self.gateway.poison.lock().unwrap() = true;
                until("NaN", async || {
                    let path = "/api/v1/query?query=requests_total%7Bversion%3D%22v1.1.0%22%2Ccode%3D%22200%22%7D";
                    let (_, body) = http(self.port, "GET", path, "").await?;
                    body.contains("NaN").then_some(())
                })
                .await;
            }
            Trouble::Absent => {
                let mut counted = self.gateway.counted.lock().unwrap().clone();
                counted.remove("v1.1.0");
                *self.gateway.instead.lock().unwrap() = Some(super::text(&counted));
                tokio::time::sleep(FRESH * 2).await;
            }
            Trouble::Stale => {
                *self.gateway.instead.lock().unwrap() =
                    Some("# nothing\nthis is no metric".to_owned());
                tokio::time::sleep(FRESH * 2).await;
            }
            _ => return false,
        }
        true
    }

    async fn mend(&mut self) {
        self.server.signal("CONT");
        *self.gateway.poison.lock().unwrap() = false;
        *self.gateway.instead.lock().unwrap() = None;
        self.scraped().await;
    }

    async fn restart(&mut self) -> bool {
        // The gateway begins anew: its counters fall to zero.
        self.gateway.counted.lock().unwrap().clear();
        until("a scrape without counts", async || {
            let (_, body) =
                http(self.port, "GET", "/api/v1/query?query=requests_total", "").await?;
            body.contains("\"result\":[]").then_some(())
        })
        .await;
        true
    }
}

#[tokio::test]
#[ignore = "needs prometheus: e2e/run prometheus"]
async fn a_real_prometheus_keeps_the_rules_of_metric_sources() {
    let folder = tempfile::tempdir().unwrap();
    let (gateway, metrics) = Gateway::start().await;
    let config = format!(
        "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\n\
         scrape_configs: [{{job_name: gateway, static_configs: [{{targets: ['127.0.0.1:{metrics}']}}]}}]\n"
    );
    std::fs::write(folder.path().join("prom.yml"), config).unwrap();
    let port = free_port();
    let server = start(folder.path(), port);
    ready(port, "/-/ready").await;
    let requests = Series::new("requests_total");
    let source = PrometheusSource::builder(format!("http://127.0.0.1:{port}"))
        .ratio(
            "faults",
            requests.clone(),
            requests.starts_with("code", "5"),
        )
        .histogram("slow", Series::new("ttft_seconds"))
        .version_label("version", |v| format!("v{}", v.version()))
        .fresh(FRESH)
        .timeout(Duration::from_secs(2))
        .build()
        .unwrap();
    let clock = SystemClock::new();
    let last = clock.now();
    let mut host = Host {
        gateway,
        server,
        port,
        source: Arc::new(source),
        clock,
        last,
    };
    suite(&mut host).await.unwrap();
    println!(
        "ok      conformance of metric sources: every rule holds on Prometheus, with 4 kinds of trouble"
    );
}
