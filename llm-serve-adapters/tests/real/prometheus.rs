//! Metrics from a real Prometheus that scrapes a gateway of this test, every second.

mod conformance;
mod native;
mod rollout;

use crate::process::{Process, free_port, http, ready, until, version_of};
use llm_gates::{Counts, Increment};
use llm_rollout::{Epoch, MetricDef, Timestamp};
use llm_serve_adapters::SystemClock;
use llm_serve_adapters::host::{
    Clock as _, Cursor, Error, ErrorKind, MetricSource as _, Query, Reading,
};
use llm_serve_adapters::source::{PrometheusSource, ScrapeSource, Series};
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the gateway has counted of each version: good, bad, and those of them that were slow.
type Counted = BTreeMap<&'static str, (u64, u64, u64)>;

#[derive(Clone, Default)]
struct Gateway {
    counted: Arc<Mutex<Counted>>,
    /// Said instead, while there is something.
    instead: Arc<Mutex<Option<String>>>,
    /// Whether the candidate's good requests are not a number.
    poison: Arc<Mutex<bool>>,
}

impl Gateway {
    async fn start() -> (Self, u16) {
        let gateway = Self::default();
        let shown = gateway.clone();
        let app = axum::Router::new().fallback(async move || shown.show());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, app).await });
        (gateway, port)
    }

    fn show(&self) -> String {
        if let Some(instead) = self.instead.lock().unwrap().clone() {
            return instead;
        }
        let text = text(&self.counted.lock().unwrap());
        if !*self.poison.lock().unwrap() {
            return text;
        }
        let poisoned = |line: &str| match line.split_once(' ') {
            Some((series, _)) if series.contains("v1.1.0") && series.contains("200") => {
                format!("{series} NaN\n")
            }
            _ => format!("{line}\n"),
        };
        text.lines().map(poisoned).collect()
    }

    fn count(&self, version: &'static str, good: u64, bad: u64, slow: u64) {
        let mut counted = self.counted.lock().unwrap();
        let (g, b, s) = counted.entry(version).or_default();
        *g += good;
        *b += bad;
        *s += slow;
    }
}

/// As a gateway shows it: the series of an error comes to be with the first error.
fn text(counted: &Counted) -> String {
    let mut lines = vec!["# TYPE requests_total counter".to_owned()];
    for (version, (good, bad, _)) in counted {
        lines.push(format!(
            "requests_total{{version=\"{version}\",code=\"200\"}} {good}"
        ));
        if *bad > 0 {
            lines.push(format!(
                "requests_total{{version=\"{version}\",code=\"503\"}} {bad}"
            ));
        }
    }
    lines.push("# TYPE ttft_seconds histogram".to_owned());
    for (version, (good, bad, slow)) in counted {
        let (all, fast) = (good + bad, good + bad - slow);
        for (le, count) in [("0.5", fast), ("2", all), ("+Inf", all)] {
            lines.push(format!(
                "ttft_seconds_bucket{{version=\"{version}\",le=\"{le}\"}} {count}"
            ));
        }
        lines.push(format!("ttft_seconds_sum{{version=\"{version}\"}} 1"));
        lines.push(format!("ttft_seconds_count{{version=\"{version}\"}} {all}"));
    }
    lines.join("\n") + "\n"
}

fn start(folder: &Path, port: u16) -> Process {
    let listen = format!("--web.listen-address=127.0.0.1:{port}");
    Process::start(
        folder,
        "prometheus",
        &[
            "--config.file=prom.yml",
            "--storage.tsdb.path=data",
            "--log.level=warn",
            &listen,
        ],
    )
}

fn version(n: u8) -> VersionId {
    format!("chat/v1.{n}.0-{}", n.to_string().repeat(64))
        .parse()
        .unwrap()
}

/// A rollout that looks.
struct Look {
    source: PrometheusSource,
    metrics: BTreeMap<String, MetricDef>,
    candidate: VersionId,
    baseline: VersionId,
    clock: SystemClock,
}

impl Look {
    fn query(&self) -> Query<'_> {
        Query {
            metrics: &self.metrics,
            epoch: Epoch::new(1),
            candidate: &self.candidate,
            baseline: &self.baseline,
        }
    }

    async fn open(&self) -> Result<Cursor, Error> {
        self.source.open(self.query(), self.clock.now()).await
    }

    async fn read(&self, cursor: &Cursor) -> Result<Reading, Error> {
        self.source
            .read(self.query(), cursor, self.clock.now())
            .await
    }

    /// Looks until so many requests of the candidate have been counted from here on; says what was counted then.
    async fn gather(&self, cursor: &mut Cursor, n: u64) -> [[Counts; 2]; 2] {
        let mut sum = [[Counts { n: 0, k: 0 }; 2]; 2];
        let mut windows: Vec<(u64, u64)> = Vec::new();
        until(&format!("{n} requests of the candidate"), async || {
            let reading = self.read(cursor).await.ok()?;
            *cursor = reading.cursor;
            windows.push((reading.window.from, reading.window.to));
            for (metric, sums) in ["faults", "slow"].into_iter().zip(&mut sum) {
                let Increment::Binary {
                    candidate,
                    baseline,
                } = reading.window.metrics[metric]
                else {
                    panic!("{metric}")
                };
                for (sum, gain) in sums.iter_mut().zip([candidate, baseline]) {
                    sum.n += gain.n;
                    sum.k += gain.k;
                }
            }
            sum.iter()
                .all(|[candidate, _]| candidate.n >= n)
                .then_some(())
        })
        .await;
        assert!(
            windows.windows(2).all(|w| w[0].1 == w[1].0),
            "windows follow each other: {windows:?}"
        );
        sum
    }
}

#[tokio::test]
#[ignore = "needs prometheus: e2e/run prometheus"]
async fn requests_are_counted_once_whatever_happens_to_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let (gateway, metrics) = Gateway::start().await;
    gateway.count("v1.0.0", 1_000, 7, 5);
    let config = format!(
        "global: {{scrape_interval: 1s}}\n\
         scrape_configs: [{{job_name: gateway, static_configs: [{{targets: ['127.0.0.1:{metrics}']}}]}}]\n"
    );
    std::fs::write(folder.path().join("prom.yml"), config).unwrap();
    let port = free_port();
    let server = start(folder.path(), port);
    ready(port, "/-/ready").await;

    let requests = Series::new("requests_total").is("job", "gateway");
    let look = Look {
        source: PrometheusSource::builder(format!("http://127.0.0.1:{port}"))
            .ratio(
                "faults",
                requests.clone(),
                requests.starts_with("code", "5"),
            )
            .histogram("slow", Series::new("ttft_seconds"))
            .version_label("version", |v| format!("v{}", v.version()))
            .fresh(Duration::from_secs(5))
            .timeout(Duration::from_secs(1))
            .build()
            .unwrap(),
        metrics: BTreeMap::from([
            ("faults".to_owned(), MetricDef::Fault {}),
            (
                "slow".to_owned(),
                MetricDef::FirstTokenOver(Duration::from_millis(500)),
            ),
        ]),
        candidate: version(1),
        baseline: version(0),
        clock: SystemClock::new(),
    };
    let early = look.open().await.map(|_| ());
    let mut cursor = until("the first scrape", async || look.open().await.ok()).await;
    if let Err(early) = early {
        assert!(
            early.to_string().contains("nothing of the Baseline"),
            "{early}"
        );
    }
    let unseen = look.read(&cursor).await.unwrap_err();
    assert!(
        unseen.to_string().contains("nothing of the Candidate"),
        "{unseen}"
    );

    // The candidate's first requests and its first error come with series that were not there.
    gateway.count("v1.0.0", 90, 2, 1);
    gateway.count("v1.1.0", 9, 3, 6);
    let counted = look.gather(&mut cursor, 12).await;
    let counts = |n, k| Counts { n, k };
    assert_eq!(
        counted,
        [
            [counts(12, 3), counts(92, 2)],
            [counts(12, 6), counts(92, 1)]
        ]
    );
    println!("ok      first series, first errors: candidate 3 of 12, baseline 2 of 92");

    // The gateway starts anew: its counters fall.
    gateway.counted.lock().unwrap().clear();
    gateway.count("v1.0.0", 20, 0, 0);
    gateway.count("v1.1.0", 5, 1, 0);
    let counted = look.gather(&mut cursor, 6).await;
    assert_eq!(
        counted,
        [[counts(6, 1), counts(20, 0)], [counts(6, 0), counts(20, 0)]]
    );
    println!("ok      counter reset: candidate 1 of 6, baseline 0 of 20");

    // NaN is no answer, and costs nothing once it is over.
    let nan =
        text(&gateway.counted.lock().unwrap()).replace("code=\"200\"} 5", "code=\"200\"} NaN");
    *gateway.instead.lock().unwrap() = Some(nan);
    let error = until("NaN", async || look.read(&cursor).await.err()).await;
    assert!(error.to_string().contains("is NaN"), "{error}");
    println!("ok      NaN: {error}");
    gateway.count("v1.1.0", 3, 0, 0);
    *gateway.instead.lock().unwrap() = None;
    let counted = look.gather(&mut cursor, 3).await;
    assert_eq!(counted[0], [counts(3, 0), counts(0, 0)]);

    // The server hangs, then goes on.
    server.signal("STOP");
    let error = look.read(&cursor).await.unwrap_err();
    assert!(
        error.to_string().contains("did not answer within 1s"),
        "{error}"
    );
    server.signal("CONT");
    gateway.count("v1.1.0", 4, 1, 0);
    let counted = look.gather(&mut cursor, 5).await;
    assert_eq!(counted[0], [counts(5, 1), counts(0, 0)]);
    println!("ok      server stopped and continued: candidate 1 of 5");

    // It is killed and started again: the requests in between are counted late, but once.
    drop(server);
    let error = look.read(&cursor).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    gateway.count("v1.1.0", 6, 2, 0);
    gateway.count("v1.0.0", 70, 0, 0);
    let server = start(folder.path(), port);
    ready(port, "/-/ready").await;
    let counted = look.gather(&mut cursor, 8).await;
    assert_eq!(counted[0], [counts(8, 2), counts(70, 0)]);
    println!("ok      server killed and started again: candidate 2 of 8, baseline 0 of 70");

    // The gateway is gone: what is stale is no answer.
    *gateway.instead.lock().unwrap() = Some("gone\u{0}".to_owned());
    let error = until("staleness", async || look.read(&cursor).await.err()).await;
    assert!(
        error.to_string().contains("last seen") || error.to_string().contains("nothing of"),
        "{error}"
    );
    println!("ok      scrape fails: {error}");
    crate::verified(
        "prometheus",
        "Prometheus",
        &version_of("prometheus", "--version"),
    );
    drop(server);
}

#[tokio::test]
#[ignore = "needs prometheus: e2e/run prometheus"]
async fn its_own_metrics_can_be_scraped() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("prom.yml"),
        "global: {scrape_interval: 1s}\n",
    )
    .unwrap();
    let port = free_port();
    let _server = start(folder.path(), port);
    ready(port, "/-/ready").await;
    // Two addresses, so that it passes for two replicas.
    let [old, new] = ["127.0.0.1", "localhost"].map(|host| format!("http://{host}:{port}/metrics"));
    let all = Series::new("prometheus_http_requests_total");
    let source = ScrapeSource::builder()
        .replica(version(0), old)
        .replica(version(1), new)
        .ratio("bad", all.clone(), all.starts_with("code", "4"))
        .histogram(
            "slow",
            Series::new("prometheus_http_request_duration_seconds"),
        )
        .build()
        .unwrap();
    let metrics = BTreeMap::from([
        ("bad".to_owned(), MetricDef::Fault {}),
        (
            "slow".to_owned(),
            MetricDef::DurationOver(Duration::from_secs(8)),
        ),
    ]);
    let (candidate, baseline) = (version(1), version(0));
    let query = Query {
        metrics: &metrics,
        epoch: Epoch::new(1),
        candidate: &candidate,
        baseline: &baseline,
    };
    let at = Timestamp::from_millis;
    let cursor = source.open(query, at(1)).await.unwrap();
    for _ in 0..5 {
        http(port, "GET", "/api/v1/query?query=%28", "")
            .await
            .unwrap();
    }
    let reading = source.read(query, &cursor, at(2)).await.unwrap();
    let Increment::Binary { candidate, .. } = reading.window.metrics["bad"] else {
        panic!()
    };
    assert!(candidate.k == 5 && candidate.n >= 5, "{candidate:?}");
    let Increment::Binary { candidate, .. } = reading.window.metrics["slow"] else {
        panic!()
    };
    assert!(candidate.n >= 5 && candidate.k == 0, "{candidate:?}");
}
