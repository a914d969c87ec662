use super::*;
use crate::host::ErrorKind;
use axum::Router;
use axum::extract::RawQuery;
use axum::http::{HeaderMap as Headers, StatusCode};
use llm_gates::{Counts, Increment};
use llm_rollout::{Epoch, MetricDef};
use std::sync::Mutex;
use tokio::net::TcpListener;

const NOW: u64 = 1_700_000_100_000;

fn version(n: u8) -> VersionId {
    format!("chat/v1.{n}.0-{}", n.to_string().repeat(64))
        .parse()
        .unwrap()
}

fn metrics(def: MetricDef) -> BTreeMap<String, MetricDef> {
    BTreeMap::from([("m".to_owned(), def)])
}

/// Each query with its bearer token.
type Asked = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// Version, further labels, samples: seconds before now, and value.
type Row<'a> = (&'a str, &'a str, &'a [(u64, &'a str)]);

/// A server that gives these answers in turn, and keeps what it was asked.
struct Server {
    address: String,
    asked: Asked,
}

impl Server {
    async fn start(answers: Vec<(u16, String)>) -> Self {
        let asked = Asked::default();
        let (sink, answers) = (
            Arc::clone(&asked),
            Arc::new(Mutex::new(answers.into_iter())),
        );
        let app =
            Router::new().fallback(async move |RawQuery(query): RawQuery, headers: Headers| {
                let token = headers
                    .get("authorization")
                    .map(|v| v.to_str().unwrap().to_owned());
                let query = reqwest::Url::parse(&format!("http://x/?{}", query.unwrap())).unwrap();
                let query: Vec<_> = query
                    .query_pairs()
                    .map(|(k, v)| format!("{k}={v}"))
                    .collect();
                sink.lock().unwrap().push((query.join(" "), token));
                let (status, body) = answers.lock().unwrap().next().expect("another answer");
                (StatusCode::from_u16(status).unwrap(), body)
            });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/prom/", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, asked }
    }
}

/// An answer as Prometheus 2.42 gives it: series, each with samples.
fn matrix(rows: &[Row<'_>]) -> (u16, String) {
    let rows: Vec<_> = rows
        .iter()
        .map(|(version, labels, samples)| {
            let samples: Vec<_> = samples
                .iter()
                .map(|(before, value)| format!("[{}.25,\"{value}\"]", NOW / 1000 - before))
                .collect();
            format!(
                r#"{{"metric":{{"__name__":"x","job":"gw","instance":"i","version":"{version}"{labels}}},"values":[{}]}}"#,
                samples.join(",")
            )
        })
        .collect();
    let rows = rows.join(",");
    (
        200,
        format!(r#"{{"status":"success","data":{{"resultType":"matrix","result":[{rows}]}}}}"#),
    )
}

fn naming(version: &VersionId) -> String {
    format!("v{}", version.version())
}

fn source(address: &str) -> PrometheusSource {
    PrometheusSource::builder(address)
        .ratio(
            "m",
            Series::new("all_total"),
            Series::new("all_total").starts_with("code", "5"),
        )
        .version_label("version", naming)
        .bearer("S3CRET")
        .build()
        .unwrap()
}

fn later(seconds: i64) -> Timestamp {
    Timestamp::from_millis(NOW.checked_add_signed(seconds * 1000).unwrap())
}

async fn window(source: &PrometheusSource, def: MetricDef) -> Result<Reading> {
    let (metrics, candidate, baseline) = (metrics(def), version(1), version(0));
    let query = Query {
        metrics: &metrics,
        epoch: Epoch::new(3),
        candidate: &candidate,
        baseline: &baseline,
    };
    let cursor = source.open(query, later(-60)).await?;
    source.read(query, &cursor, later(0)).await
}

fn counts(reading: &Reading) -> [(u64, u64); 2] {
    let Increment::Binary {
        candidate,
        baseline,
    } = &reading.window.metrics["m"]
    else {
        panic!("{reading:?}")
    };
    [candidate, baseline].map(|Counts { n, k }| (*n, *k))
}

#[tokio::test]
async fn counts_what_lies_between_two_looks() {
    let server = Server::start(vec![
        // At the opening: the baseline alone.
        matrix(&[("v1.0.0", r#","code":"200""#, &[(70, "1000")])]),
        matrix(&[]),
        // The baseline is reset in between; the candidate begins, with an error first.
        matrix(&[
            (
                "v1.0.0",
                r#","code":"200""#,
                &[(70, "1000"), (40, "1100"), (10, "30")],
            ),
            ("v1.1.0", r#","code":"200""#, &[(40, "5"), (10, "20")]),
            ("v1.1.0", r#","code":"500""#, &[(10, "2")]),
            ("somebody-else", "", &[(10, "7")]),
        ]),
        matrix(&[("v1.1.0", r#","code":"500""#, &[(10, "2")])]),
    ])
    .await;
    let reading = window(&source(&server.address), MetricDef::Fault {})
        .await
        .unwrap();
    assert_eq!(counts(&reading), [(22, 2), (130, 0)]);
    assert_eq!(
        (reading.window.epoch, reading.window.from, reading.window.to),
        (3, NOW - 60_000, NOW)
    );
    let asked = server.asked.lock().unwrap();
    let expected = format!(
        r#"query=all_total{{version=~"v1\\.1\\.0|v1\\.0\\.0",code=~"5.*"}}[60000ms] time={}.000"#,
        NOW / 1000
    );
    assert_eq!(asked[3], (expected, Some("Bearer S3CRET".to_owned())));
}

/// A version's bucket at one moment.
type Bucket<'a> = (&'a str, String, [(u64, &'a str); 1]);

#[tokio::test]
async fn histograms_give_what_is_above_the_limit() {
    let le = |bound: &str| format!(r#","le":"{bound}""#);
    let rows = |version: &'static str, at: u64, counts: [&'static str; 3]| {
        ["0.25", "0.5", "+Inf"]
            .into_iter()
            .zip(counts)
            .map(move |(b, c)| (version, le(b), [(at, c)]))
    };
    let answer = |rows: Vec<Bucket<'_>>| {
        let rows: Vec<_> = rows
            .iter()
            .map(|(v, l, s)| (*v, l.as_str(), &s[..]))
            .collect();
        matrix(&rows)
    };
    let open = answer(rows("v1.0.0", 61, ["10", "20", "30"]).collect());
    let read = answer(
        rows("v1.0.0", 1, ["15", "30", "42"])
            .chain(rows("v1.1.0", 1, ["1", "4", "9"]))
            .collect(),
    );
    let server = Server::start(vec![open.clone(), read.clone(), open, read]).await;
    let source = PrometheusSource::builder(&server.address)
        .histogram("m", Series::new("ttft_seconds"))
        .version_label("version", naming)
        .build()
        .unwrap();
    let limit = |seconds| MetricDef::FirstTokenOver(Duration::from_secs_f64(seconds));
    let reading = window(&source, limit(0.5)).await.unwrap();
    assert_eq!(counts(&reading), [(9, 5), (12, 2)]);
    let error = window(&source, limit(0.8)).await.unwrap_err();
    assert!(error.to_string().contains("above every bucket"), "{error}");
}

#[tokio::test]
async fn native_histograms_too() {
    let row = |version: &str, at: u64, count: u64, buckets: &str| {
        format!(
            r#"{{"metric":{{"job":"gw","instance":"i","version":"{version}"}},"histograms":[[{}.5,{{"count":"{count}","sum":"3.5","buckets":[{buckets}]}}]]}}"#,
            NOW / 1000 - at
        )
    };
    let answer = |rows: String| {
        (
            200,
            format!(r#"{{"status":"success","data":{{"resultType":"matrix","result":[{rows}]}}}}"#),
        )
    };
    let server = Server::start(vec![
        answer(row(
            "v1.0.0",
            61,
            10,
            r#"[3,"-0.001","0.001","1"],[0,"0.5","1","9"]"#,
        )),
        answer(format!(
            "{},{}",
            // A bucket in between has appeared.
            row(
                "v1.0.0",
                1,
                16,
                r#"[3,"-0.001","0.001","1"],[0,"0.25","0.5","2"],[0,"0.5","1","13"]"#
            ),
            row("v1.1.0", 1, 4, r#"[0,"0.5","1","1"],[0,"1","2","3"]"#)
        )),
    ])
    .await;
    let source = PrometheusSource::builder(&server.address)
        .native_histogram("m", Series::new("ttft_seconds"))
        .version_label("version", naming)
        .build()
        .unwrap();
    let reading = window(&source, MetricDef::DurationOver(Duration::from_secs(1)))
        .await
        .unwrap();
    assert_eq!(counts(&reading), [(4, 3), (6, 0)]);
}

#[tokio::test]
async fn what_is_no_answer_is_an_error() {
    let good = || matrix(&[("v1.0.0", "", &[(61, "10")])]);
    let none = || matrix(&[]);
    let of = |candidate: &'static str, at| {
        matrix(&[
            ("v1.0.0", "", &[(1, "12")]),
            ("v1.1.0", "", &[(at, candidate)]),
        ])
    };
    let success = |result: &str| (200, format!(r#"{{"status":"success","data":{result}}}"#));
    for (answer, kind, part) in [
        (of("NaN", 1), ErrorKind::Transient, "is NaN"),
        (of("+Inf", 1), ErrorKind::Transient, "is inf"),
        (of("-1", 1), ErrorKind::Permanent, "counts nothing"),
        (of("soon", 1), ErrorKind::Transient, "no number"),
        (of("1", 90), ErrorKind::Transient, "was last seen"),
        (none(), ErrorKind::Transient, "nothing of the Candidate"),
        (success(r#"{"resultType":"scalar","result":[1700000000,"+Inf"]}"#), ErrorKind::Transient, "has no samples"),
        (success(r#"{"resultType":"vector","result":[]}"#), ErrorKind::Transient, "has no samples"),
        (
            (200, r#"{"status":"success","warnings":["store b is down"],"data":{"resultType":"matrix","result":[]}}"#.to_owned()),
            ErrorKind::Transient,
            "store b is down",
        ),
        (
            (400, r#"{"status":"error","errorType":"bad_data","error":"parse error"}"#.to_owned()),
            ErrorKind::Permanent,
            "parse error",
        ),
        (
            (503, r#"{"status":"error","errorType":"timeout","error":"query timed out"}"#.to_owned()),
            ErrorKind::Transient,
            "query timed out",
        ),
        ((401, "Unauthorized\n".to_owned()), ErrorKind::Permanent, "Unauthorized"),
        ((200, "<html>".to_owned()), ErrorKind::Permanent, "not answer as Prometheus"),
        ((200, "{\"status\":\"succ".to_owned()), ErrorKind::Permanent, "not answer as Prometheus"),
    ] {
        let server = Server::start(vec![good(), none(), answer, none()]).await;
        let error = window(&source(&server.address), MetricDef::Fault {}).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(part), "{part}: {error}");
        assert!(!format!("{error:?}").contains("S3CRET"), "{error:?}");
    }
}

#[tokio::test]
async fn it_opens_only_on_a_baseline_that_is_there() {
    for rows in [matrix(&[]), matrix(&[("v1.0.0", "", &[(200, "10")])])] {
        let server = Server::start(vec![rows, matrix(&[])]).await;
        let error = window(&source(&server.address), MetricDef::Fault {})
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    }
}

#[tokio::test]
async fn a_server_that_hangs_or_is_gone_is_transient() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let source = PrometheusSource::builder(&address)
        .ratio("m", Series::new("a"), Series::new("b"))
        .timeout(Duration::from_millis(100))
        .build()
        .unwrap();
    let hangs = window(&source, MetricDef::Fault {}).await.unwrap_err();
    drop(listener);
    let gone = window(&source, MetricDef::Fault {}).await.unwrap_err();
    for error in [hangs, gone] {
        assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    }
}

#[tokio::test]
async fn what_cannot_be_counted_is_refused_at_once() {
    let builder = || PrometheusSource::builder("http://127.0.0.1:1");
    let a = || Series::new("a");
    assert!(
        builder()
            .ratio("m", Series::new("a b"), a())
            .build()
            .is_err()
    );
    assert!(
        builder()
            .ratio("m", a(), a().is("x-y", ""))
            .build()
            .is_err()
    );
    assert!(
        builder()
            .version_label("1", ToString::to_string)
            .build()
            .is_err()
    );
    assert!(builder().bearer("a\nb").build().is_err());
    assert!(
        PrometheusSource::builder("prometheus:9090")
            .build()
            .is_err()
    );
    for (source, def) in [
        (builder().build(), MetricDef::Fault {}),
        (builder().histogram("m", a()).build(), MetricDef::Fault {}),
        (
            builder().ratio("m", a(), a()).build(),
            MetricDef::Pair("judge".to_owned()),
        ),
        (
            builder()
                .ratio("m", a(), a())
                .version_label("v", |_| "same".to_owned())
                .build(),
            MetricDef::Fault {},
        ),
    ] {
        let error = window(&source.unwrap(), def).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
    }
}

#[tokio::test]
async fn history_is_counted_in_blocks_of_the_baseline() {
    // A hundred requests a minute, one of them bad, since twelve hours ago; the version of before is not asked for.
    let count = |before: u64, each: u64| (12 * 60 - before / 60) * each;
    let hour = |until: u64, each: u64| {
        let minutes = (0..=65).rev().map(|m| until + 60 * m);
        let samples: Vec<_> = minutes.filter(|before| *before <= 12 * 3_600).collect();
        let texts: Vec<_> = samples
            .iter()
            .map(|b| count(*b, each).to_string())
            .collect();
        let rows: Vec<_> = samples
            .iter()
            .zip(&texts)
            .map(|(b, t)| (*b, t.as_str()))
            .collect();
        let rows: &[(u64, &str)] = &rows;
        if rows.is_empty() {
            matrix(&[])
        } else {
            matrix(&[("v1.1.0", "", rows), ("v1.2.0", "", rows)])
        }
    };
    let hours = (0..24).rev().map(|hour| hour * 3_600);
    let answers = hours.flat_map(|until| [hour(until, 100), hour(until, 1)]);
    let server = Server::start(answers.collect()).await;
    let (metrics, candidate, baseline) = (metrics(MetricDef::Fault {}), version(2), version(1));
    let query = Query {
        metrics: &metrics,
        epoch: Epoch::new(3),
        candidate: &candidate,
        baseline: &baseline,
    };
    let source = source(&server.address);
    let past = source.history(query, Timestamp::from_millis(NOW + 9_000));
    let past = past.await.unwrap().remove(0);
    assert_eq!(past.metric, "m");
    let [first, rest @ ..] = &past.blocks[..] else {
        panic!("no blocks")
    };
    assert!(first[0].n < 500, "its first sample tells nothing");
    assert_eq!(rest.len(), 12 * 12 - 1);
    let whole = [Counts::new(500, 5), Counts::default()];
    assert!(rest.iter().all(|groups| *groups == whole), "{rest:?}");
    assert_eq!(server.asked.lock().unwrap().len(), 48);
}
