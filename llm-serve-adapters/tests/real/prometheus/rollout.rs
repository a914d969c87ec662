//! A rollout judged from a Prometheus that is stopped, slow, killed, and shown NaN: it waits, and goes on once there is data.

use super::{Gateway, start, version};
use crate::process::{free_port, ready, until};
use llm_rollout::{Phase, Plan, RolloutId};
use llm_serve_adapters::router::Key;
use llm_serve_adapters::source::{PrometheusSource, Series};
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Bootstrap, Endpoint, Run};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How long each trouble lasts: several looks, and longer than any dwell.
const TROUBLE: Duration = Duration::from_secs(4);

const PLAN: &str = r#"
    alpha = 0.05
    look_every = "500ms"
    bake = "1s"
    [metrics]
    faults = { fault = {} }
    [[gates]]
    metric = "faults"
    weight = 1.0
    [[stages]]
    serve = 20.0
    dwell = "1s"
    limit = "10m"
    min_samples = 40
    [[stages]]
    serve = 50.0
    dwell = "1s"
    limit = "10m"
    min_samples = 40
    [triggers]
    no_verdict = "9m"
"#;

/// In front of the server: late, if it is told so.
async fn late(port: u16) -> (u16, Arc<AtomicBool>) {
    let slow = Arc::new(AtomicBool::new(false));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().port();
    let told = Arc::clone(&slow);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let slow = Arc::clone(&told);
            tokio::spawn(async move {
                let mut far = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
                let (mut there, mut back) = ([0; 8192], [0; 8192]);
                loop {
                    tokio::select! {
                        n = near.read(&mut there) => match n.ok()? {
                            0 => return Some(()),
                            n => far.write_all(&there[..n]).await.ok()?,
                        },
                        n = far.read(&mut back) => match n.ok()? {
                            0 => return Some(()),
                            n => {
                                if slow.load(Ordering::SeqCst) {
                                    tokio::time::sleep(Duration::from_secs(3)).await;
                                }
                                near.write_all(&back[..n]).await.ok()?;
                            }
                        },
                    }
                }
            });
        }
    });
    (at, slow)
}

/// Fifty users a second; one of a hundred requests fails, whoever serves it.
fn users(endpoint: &Endpoint, gateway: &Gateway) -> Arc<AtomicU64> {
    let (plane, gateway) = (endpoint.data_plane().clone(), gateway.clone());
    let served = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&served);
    tokio::spawn(async move {
        loop {
            let n = count.fetch_add(1, Ordering::SeqCst);
            let decision = plane
                .router
                .decide(&Key::session(&n.to_le_bytes()), plane.router.now());
            let by = decision.version().unwrap().id();
            let name = if **by == version(1) {
                "v1.1.0"
            } else {
                "v1.0.0"
            };
            let bad = u64::from(n % 100 == 99);
            gateway.count(name, 1 - bad, bad, 0);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    served
}

fn phase(run: &Run) -> Phase {
    run.rollout().unwrap().phase()
}

#[tokio::test]
#[ignore = "needs prometheus: e2e/run prometheus"]
async fn a_rollout_outlives_its_prometheus() {
    let folder = tempfile::tempdir().unwrap();
    let (gateway, metrics) = Gateway::start().await;
    let config = format!(
        "global: {{scrape_interval: 250ms, scrape_timeout: 250ms}}\n\
         scrape_configs: [{{job_name: gateway, static_configs: [{{targets: ['127.0.0.1:{metrics}']}}]}}]\n"
    );
    std::fs::write(folder.path().join("prom.yml"), config).unwrap();
    let port = free_port();
    let mut server = start(folder.path(), port);
    ready(port, "/-/ready").await;
    let (proxy, slow) = late(port).await;
    let requests = Series::new("requests_total");
    let source = PrometheusSource::builder(format!("http://127.0.0.1:{proxy}"))
        .ratio(
            "faults",
            requests.clone(),
            requests.starts_with("code", "5"),
        )
        .version_label("version", |v| format!("v{}", v.version()))
        .fresh(Duration::from_secs(3))
        .timeout(Duration::from_secs(1))
        .build()
        .unwrap();
    let endpoint =
        Endpoint::builder("chat", MemoryStore::new(), Bootstrap(version(0))).source(source);
    let endpoint = endpoint.open().await.unwrap();
    let served = users(&endpoint, &gateway);
    until("the first scrapes", async || {
        (served.load(Ordering::SeqCst) > 50).then_some(())
    })
    .await;

    // From the first moment on the server does not answer.
    server.signal("STOP");
    let plan = Plan::from_toml(PLAN).unwrap();
    let run = endpoint
        .submit(RolloutId::new("chat-v2").unwrap(), version(1), plan)
        .await
        .unwrap();
    until("the first stage", async || {
        matches!(phase(&run), Phase::Soaking { stage: 0 }).then_some(())
    })
    .await;
    let nothing_moves = async |what: &str| {
        let begun = Instant::now();
        let before = served.load(Ordering::SeqCst);
        while begun.elapsed() < TROUBLE {
            let phase = phase(&run);
            assert!(
                matches!(
                    phase,
                    Phase::Soaking { stage: 0 } | Phase::Held { stage: 0 }
                ),
                "{what}: {phase}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        format!(
            "{what} for {TROUBLE:?} ({} requests)",
            served.load(Ordering::SeqCst) - before
        )
    };
    let mut told = vec![nothing_moves("stopped").await];
    // NaN is there before the server is.
    *gateway.poison.lock().unwrap() = true;
    server.signal("CONT");
    told.push(nothing_moves("NaN").await);
    drop(server);
    *gateway.poison.lock().unwrap() = false;
    told.push(nothing_moves("killed").await);
    slow.store(true, Ordering::SeqCst);
    server = start(folder.path(), port);
    ready(port, "/-/ready").await;
    told.push(nothing_moves("slower than its time limit").await);
    slow.store(false, Ordering::SeqCst);

    let begun = Instant::now();
    let end = run.finished().await.unwrap();
    assert_eq!((end.phase, end.cause), (Phase::Promoted, None));
    println!(
        "ok      scenario 8, a rollout judged from Prometheus: {}: never promoted, never rolled back; promoted {:.1} s after the data was back",
        told.join(", "),
        begun.elapsed().as_secs_f64()
    );
    drop(server);
}
