//! Both sources under the conformance suite, against a gateway and a Prometheus of this test in virtual time.

use super::{PrometheusSource, ScrapeSource, Series};
use crate::host::MetricSource;
use crate::testing::source::{Arm, Traffic, Trouble, suite};
use async_trait::async_trait;
use axum::Router;
use axum::extract::RawQuery;
use axum::http::StatusCode;
use llm_gates::Counts;
use llm_rollout::{Epoch, MetricDef, Timestamp};
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;

/// How old the newest sample may be.
const FRESH: Duration = Duration::from_secs(30);
const SCRAPE: u64 = 5_000;
const PATIENCE: Duration = Duration::from_secs(20);

fn version(n: u8) -> VersionId {
    format!("chat/v1.{n}.0-{}", n.to_string().repeat(64))
        .parse()
        .unwrap()
}

fn name(arm: Arm) -> &'static str {
    match arm {
        Arm::Candidate => "v1.1.0",
        Arm::Baseline => "v1.0.0",
    }
}

/// A series of one arm and epoch: version, epoch, and what else it carries.
type Labels = (&'static str, u64, &'static str);

/// What the gateway shows, and what has been scraped of it.
#[derive(Debug, Default)]
struct World {
    ms: u64,
    counted: BTreeMap<(&'static str, u64), Counts>,
    scraped: BTreeMap<(&'static str, Labels), Vec<(u64, String)>>,
    trouble: Option<Trouble>,
}

impl World {
    /// All series as they are now, in text: name, labels, value.
    fn series(&self) -> Vec<(&'static str, Labels, String)> {
        let mut series = Vec::new();
        for ((version, epoch), counts) in &self.counted {
            let ill = *version == name(Arm::Candidate);
            if ill && matches!(self.trouble, Some(Trouble::Absent)) {
                continue;
            }
            let good = match self.trouble {
                Some(Trouble::NotANumber) if ill => "NaN".to_owned(),
                _ => (counts.n - counts.k).to_string(),
            };
            series.push((
                "all_total",
                (*version, *epoch, "code=\"200\""),
                good.clone(),
            ));
            // Made with the first error, as exporters do it.
            if counts.k > 0 {
                series.push((
                    "all_total",
                    (*version, *epoch, "code=\"503\""),
                    counts.k.to_string(),
                ));
            }
            for (le, value) in [
                ("0.5", good.clone()),
                ("2", counts.n.to_string()),
                ("+Inf", counts.n.to_string()),
            ] {
                let le = match le {
                    "0.5" => "le=\"0.5\"",
                    "2" => "le=\"2\"",
                    _ => "le=\"+Inf\"",
                };
                series.push(("took_seconds_bucket", (*version, *epoch, le), value));
            }
        }
        series
    }

    fn scrape(&mut self) {
        self.ms += SCRAPE;
        if self.trouble == Some(Trouble::Stale) {
            return;
        }
        for (series, labels, value) in self.series() {
            let samples = self.scraped.entry((series, labels)).or_default();
            samples.push((self.ms, value));
        }
    }

    /// What Prometheus answers to `name{...}[N ms]` at a time.
    fn answer(&self, expression: &str, at: u64) -> String {
        let (wanted, rest) = expression.split_once('{').unwrap();
        let (rules, over) = rest.split_once("}[").unwrap();
        let over: u64 = over.trim_end_matches("ms]").parse().unwrap();
        let bad = rules.contains("code=~\"5.*\"");
        let rows = self
            .scraped
            .iter()
            .filter(|((series, (_, epoch, more)), _)| {
                *series == wanted
                    && rules.contains(&format!("epoch=\"{epoch}\""))
                    && (!bad || more.contains("503"))
            });
        let row = |((series, (version, epoch, more)), samples): (
            &(&str, Labels),
            &Vec<(u64, String)>,
        )| {
            let (label, value) = more.split_once('=').unwrap();
            let within = samples
                .iter()
                .filter(|(t, _)| *t <= at && *t > at.saturating_sub(over));
            let values: Vec<_> = within
                .map(|(t, v)| format!("[{}.{:03},\"{v}\"]", t / 1000, t % 1000))
                .collect();
            (!values.is_empty()).then(|| {
                format!(
                    r#"{{"metric":{{"__name__":"{series}","job":"gw","instance":"i","version":"{version}","epoch":"{epoch}","{label}":{value}}},"values":[{}]}}"#,
                    values.join(",")
                )
            })
        };
        let rows: Vec<_> = rows.filter_map(row).collect();
        format!(
            r#"{{"status":"success","data":{{"resultType":"matrix","result":[{}]}}}}"#,
            rows.join(",")
        )
    }
}

type Shared = Arc<Mutex<World>>;

async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

async fn hang() {
    std::future::pending::<()>().await;
}

/// Prometheus, as far as the source asks it.
async fn prometheus(world: &Shared) -> String {
    let world = Arc::clone(world);
    let app = Router::new().fallback(async move |RawQuery(query): RawQuery| {
        if world.lock().unwrap().trouble == Some(Trouble::Unreachable) {
            hang().await;
        }
        let url = reqwest::Url::parse(&format!("http://x/?{}", query.unwrap())).unwrap();
        let asked: BTreeMap<_, _> = url.query_pairs().into_owned().collect();
        let (seconds, ms) = asked["time"].split_once('.').unwrap();
        let at = seconds.parse::<u64>().unwrap() * 1000 + ms.parse::<u64>().unwrap();
        (
            StatusCode::OK,
            world.lock().unwrap().answer(&asked["query"], at),
        )
    });
    serve(app).await
}

/// The metrics of the replica that serves this arm.
async fn replica(world: &Shared, arm: Arm) -> String {
    let world = Arc::clone(world);
    let app = Router::new().fallback(async move || {
        let unreachable = world.lock().unwrap().trouble == Some(Trouble::Unreachable);
        if unreachable && arm == Arm::Candidate {
            hang().await;
        }
        let series = world.lock().unwrap().series();
        let own = series
            .into_iter()
            .filter(|(_, (version, ..), _)| *version == name(arm));
        let lines =
            own.map(|(series, (_, _, more), value)| format!("{series}{{{more}}} {value}\n"));
        lines.collect::<Vec<_>>().concat()
    });
    serve(app).await
}

struct Host {
    world: Shared,
    source: Arc<dyn MetricSource>,
    /// Whether series tell their epoch, and what was scraped is kept.
    kept: bool,
}

#[async_trait(?Send)]
impl Traffic for Host {
    fn source(&self) -> Arc<dyn MetricSource> {
        Arc::clone(&self.source)
    }

    fn metrics(&self) -> BTreeMap<String, MetricDef> {
        let limit = Duration::from_millis(500);
        BTreeMap::from([
            ("faults".to_owned(), MetricDef::Fault {}),
            ("slow".to_owned(), MetricDef::DurationOver(limit)),
        ])
    }

    fn versions(&self) -> [VersionId; 2] {
        [version(1), version(0)]
    }

    fn now(&mut self) -> Timestamp {
        let mut world = self.world.lock().unwrap();
        world.ms += 1;
        Timestamp::from_millis(world.ms)
    }

    async fn serve(&mut self, epoch: Epoch, arm: Arm, served: Counts) {
        let mut world = self.world.lock().unwrap();
        let counts = world.counted.entry((name(arm), epoch.get())).or_default();
        counts.n += served.n;
        counts.k += served.k;
        world.scrape();
    }

    fn tells_epochs(&self) -> bool {
        self.kept
    }

    async fn strike(&mut self, trouble: Trouble) -> bool {
        if trouble == Trouble::Stale && !self.kept {
            // A scrape is as fresh as can be.
            return false;
        }
        let mut world = self.world.lock().unwrap();
        world.trouble = Some(trouble);
        world.scrape();
        if matches!(trouble, Trouble::Absent | Trouble::Stale) {
            // Absence shows once the last samples are stale.
            world.ms += u64::try_from(FRESH.as_millis()).unwrap();
            world.scrape();
        }
        true
    }

    async fn mend(&mut self) {
        let mut world = self.world.lock().unwrap();
        world.trouble = None;
        world.scrape();
    }

    async fn restart(&mut self) -> bool {
        // The gateway starts anew: every counter falls to zero.
        self.world.lock().unwrap().counted.clear();
        true
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }
}

fn all() -> Series {
    Series::new("all_total")
}

fn bad() -> Series {
    all().starts_with("code", "5")
}

fn world() -> Shared {
    Arc::new(Mutex::new(World {
        ms: 1_700_000_000_000,
        ..World::default()
    }))
}

/// Long enough for a loaded machine, short enough to wait for twice.
const TIMEOUT: Duration = Duration::from_secs(2);

#[tokio::test]
async fn prometheus_keeps_the_rules() {
    let world = world();
    let source = PrometheusSource::builder(prometheus(&world).await)
        .ratio("faults", all(), bad())
        .histogram("slow", Series::new("took_seconds"))
        .version_label("version", |v| format!("v{}", v.version()))
        .epoch_label("epoch")
        .fresh(FRESH)
        .timeout(TIMEOUT)
        .build()
        .unwrap();
    let source = Arc::new(source);
    let mut host = Host {
        world,
        source,
        kept: true,
    };
    suite(&mut host).await.unwrap();
}

#[tokio::test]
async fn scraping_keeps_the_rules() {
    let world = world();
    let source = ScrapeSource::builder()
        .replica(version(1), replica(&world, Arm::Candidate).await)
        .replica(version(0), replica(&world, Arm::Baseline).await)
        .ratio("faults", all(), bad())
        .histogram("slow", Series::new("took_seconds"))
        .timeout(TIMEOUT)
        .build()
        .unwrap();
    let source = Arc::new(source);
    let mut host = Host {
        world,
        source,
        kept: false,
    };
    suite(&mut host).await.unwrap();
}
