//! What the evidence of a live rollout is fed with besides the recorder's counts, in virtual time with the real controller: pairs of
//! mirrored answers, late labels, the baseline's history.

#![expect(clippy::print_stdout, reason = "what was measured is said")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use async_trait::async_trait;
use common::{Cuttable, Fixed, Host, id, version};
use llm_gates::{Assumed, Counts, Evidence, GateEvidence, Increment, Window};
use llm_rollout::incident::Moment;
use llm_rollout::presets::{self, Gates, Pace};
use llm_rollout::{Cause, EndpointId, MetricDef, Phase, Plan, Seq, Share, Timestamp};
use llm_serve_adapters::host::{
    Cursor, Error, MetricSource, Past, Query, Reading, Result, SliceCounts, StateStore,
};
use llm_serve_adapters::journal::End;
use llm_serve_adapters::recorder::{Labels, OutcomeClass};
use llm_serve_adapters::router::{Key, Role};
use llm_serve_adapters::shadow::{Limits, Normalised, Request, Shadow};
use llm_version_core::VersionId;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn share(percent: f64) -> Share {
    Share::from_percent(percent).unwrap()
}

fn rolled_back_on(end: &End, name: &str) -> bool {
    end.phase == Phase::RolledBack
        && matches!(&end.cause, Some(Cause::Gate { metric, .. }) if metric == name)
}

/// What the candidate says to a mirrored question; every user gets a yes.
#[derive(Debug, Clone, Copy)]
enum Says {
    Yes,
    /// No to three of ten questions.
    No,
    /// It fails three of ten.
    Fails,
    Hangs,
}

/// Ten users a second, each mirrored or served as the split says; nothing fails.
async fn mirrored(host: &mut Host, shadow: &Shadow, seconds: u32, says: Says) {
    for second in 0..seconds {
        for user in 0..10 {
            let plane = host.endpoint.data_plane().clone();
            let (now, key) = (plane.router.now(), format!("{second}-{user}"));
            let key = key.as_bytes();
            let decision = plane.router.decide(&Key::session(key), now);
            let odd = host.unit() < 0.3;
            if decision.role() != Role::Candidate
                && let Some(candidate) = plane.router.mirror(key, now)
            {
                let pair = shadow.offer(candidate, Request::safe(), move || async move {
                    match says {
                        Says::No if odd => Ok("No."),
                        Says::Fails if odd => Err("refused"),
                        Says::Hangs => std::future::pending().await,
                        _ => Ok("yes"),
                    }
                    .map(str::to_owned)
                });
                pair.answered("Yes!");
            }
            let ticket = plane.recorder.begin(decision, now);
            ticket.finish(OutcomeClass::Ok, now.after(Duration::from_millis(80)));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// A tenth of the answers may differ.
fn pairs() -> Gates {
    Gates::nothing().gate("answers", MetricDef::Pair("words".into()), 0.5, 0.1)
}

async fn shadowed(plan: Plan, says: Says) -> (End, Shadow) {
    let limits = Limits {
        deadline: Duration::from_secs(20),
        ..Limits::default()
    };
    let shadow = Shadow::new(limits, Normalised);
    let mut host = Host::with(&Cuttable::default(), |b| b.shadow("words", &shadow)).await;
    let run = host.endpoint.submit(id("r1"), version(2), plan);
    let run = run.await.unwrap();
    mirrored(&mut host, &shadow, 1_200, says).await;
    (run.finished().await.unwrap(), shadow)
}

#[tokio::test(start_paused = true)]
async fn a_shadow_is_judged_in_pairs_and_serves_nobody() {
    let pace = Pace::new(Duration::from_secs(300), 200);
    let plan = presets::shadow(pairs(), share(50.0), pace).unwrap();
    for (says, worse) in [
        (Says::Yes, false),
        (Says::No, true),
        (Says::Fails, true),
        (Says::Hangs, true),
    ] {
        let (end, shadow) = shadowed(plan.clone(), says).await;
        if worse {
            assert!(rolled_back_on(&end, "answers"), "{says:?}: {end:?}");
        } else {
            assert_eq!(end.phase, Phase::Concluded, "{says:?}");
            assert!(shadow.counts().pairs >= 200);
        }
        assert_eq!((end.exposed, end.largest_share), (0, Share::NONE));
    }
}

#[tokio::test(start_paused = true)]
async fn a_canary_follows_a_shadow_that_was_good_and_nobody_gets_one_that_was_not() {
    let pace = Pace::new(Duration::from_secs(120), 50);
    let gates = pairs().gate("faults", MetricDef::Fault {}, 0.5, 0.0);
    let stages = [share(20.0), share(50.0)];
    let plan = presets::shadow_then_canary(gates, (share(50.0), pace), stages, pace).unwrap();
    let mut spec = plan.spec().clone();
    spec.bake = Duration::from_secs(30);
    let plan: Plan = spec.try_into().unwrap();
    let (end, _) = shadowed(plan.clone(), Says::Yes).await;
    assert_eq!((end.phase, end.cause), (Phase::Promoted, None));
    let (end, _) = shadowed(plan, Says::No).await;
    assert!(rolled_back_on(&end, "answers"), "{end:?}");
    assert_eq!(end.exposed, 0);
}

#[tokio::test(start_paused = true)]
async fn a_comparator_that_nobody_has_registered_is_no_verdict() {
    let pace = Pace::new(Duration::from_secs(60), 50);
    let plan = presets::shadow(pairs(), share(50.0), pace).unwrap();
    let mut host = Host::start(&Cuttable::default()).await;
    let run = host.endpoint.submit(id("r1"), version(2), plan);
    let run = run.await.unwrap();
    host.live(700, 1, &common::alike).await;
    let end = run.finished().await.unwrap();
    assert_eq!(
        (end.phase, end.cause),
        (Phase::RolledBack, Some(Cause::NoVerdict))
    );
}

/// Half of the users get the candidate, judged by their thumbs; who says nothing is counted.
fn thumbs() -> Plan {
    Plan::from_toml(
        r#"
        alpha = 0.05
        look_every = "10s"
        bake = "30s"
        [metrics]
        thumbs = { label = "thumbs_down" }
        silent = { unlabelled = "thumbs_down" }
        [[gates]]
        metric = "thumbs"
        weight = 0.9
        margin = 0.02
        [[gates]]
        metric = "silent"
        weight = 0.1
        action = "warn"
        [[stages]]
        serve = 50.0
        dwell = "5m"
        limit = "1h"
        min_samples = 200
    "#,
    )
    .unwrap()
}

/// Ten users a second, of whom six have an opinion, so many seconds later.
async fn judged(
    down: impl Fn(&VersionId) -> f64,
    delay: u32,
    seconds: u32,
) -> (End, Vec<GateEvidence>) {
    let maturity = Duration::from_secs(60);
    let labels = Arc::new(Labels::new(["thumbs_down"], 100_000, maturity));
    let mut host = Host::with(&Cuttable::default(), |b| b.labels(&labels)).await;
    let run = host.endpoint.submit(id("r1"), version(2), thumbs());
    let run = run.await.unwrap();
    let mut waiting: VecDeque<(u32, String, f64)> = VecDeque::new();
    let mut gates = Vec::new();
    for second in 0..seconds {
        let plane = host.endpoint.data_plane().clone();
        let now = plane.router.now();
        while waiting.front().is_some_and(|(due, ..)| *due <= second) {
            let (_, name, value) = waiting.pop_front().unwrap();
            labels
                .label(name.as_bytes(), "thumbs_down", value, now)
                .unwrap();
        }
        for user in 0..10 {
            let name = format!("{second}-{user}");
            let decision = plane.router.decide(&Key::session(name.as_bytes()), now);
            let ticket = plane.recorder.begin(decision, now);
            ticket.finish(OutcomeClass::Ok, now);
            labels.remember(name.as_bytes(), decision, now);
            let version = decision.version().unwrap().id();
            if host.unit() < 0.6 {
                let value = f64::from(u8::from(host.unit() < down(version)));
                waiting.push_back((second + delay, name, value));
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let status = host.endpoint.status();
        let rollout = status.ledger.rollout.as_ref();
        if let Some(judgement) = rollout.and_then(|r| r.judgement()) {
            gates.clone_from(&judgement.gates);
        }
    }
    (run.finished().await.unwrap(), gates)
}

#[tokio::test(start_paused = true)]
async fn labels_that_come_late_in_both_arms_do_no_harm_and_who_says_nothing_is_counted() {
    for delay in [1, 50] {
        let (end, gates) = judged(|_| 0.1, delay, 1_000).await;
        assert_eq!((end.phase, end.cause), (Phase::Promoted, None), "{delay} s");
        let silent = gates.iter().find(|g| g.metric == "silent").unwrap();
        for arm in [silent.candidate, silent.baseline] {
            let rate = arm.k as f64 / arm.n as f64;
            assert!((0.33..0.47).contains(&rate), "{delay} s: {arm:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_candidate_whose_users_are_less_happy_is_rolled_back_on_their_thumbs() {
    let unhappy = |v: &VersionId| if *v == version(2) { 0.4 } else { 0.1 };
    let (end, _) = judged(unhappy, 50, 1_000).await;
    assert!(rolled_back_on(&end, "thumbs"), "{end:?}");
}

/// Every version's rate of faults swings by itself: log-normal, CV .5, a correlation of .8 from five minutes to the next.
fn swings(version: &VersionId, at: Duration, seed: u64) -> f64 {
    let block = at.as_secs() / 300;
    let normal = |n: u64| {
        let mut bytes = version.to_string().into_bytes();
        bytes.extend(n.to_le_bytes());
        bytes.extend(seed.to_le_bytes());
        let hash = llm_serve_adapters::router::place(&bytes, 1);
        // A sum of uniform numbers is normal enough.
        let parts = hash.to_le_bytes().map(|b| f64::from(b) / 256.0 - 0.5);
        parts.iter().sum::<f64>() * 3.0_f64.sqrt()
    };
    let weights = (0..20).map(|lag| 0.6 * 0.8_f64.powi(lag));
    let lags = (0..20).map(|lag| normal(1_000 + block - lag));
    let z: f64 = weights.zip(lags).map(|(w, z)| w * z).sum();
    0.05 * (0.47 * z).exp()
}

async fn noisy(host: &mut Host, seconds: u32, begun: tokio::time::Instant, seed: u64) {
    for _ in 0..seconds {
        let at = begun.elapsed();
        host.serve(10, &move |v| swings(v, at, seed));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn half_an_hour(cold_start: &str) -> Plan {
    Plan::from_toml(&format!(
        r#"
        alpha = 0.05
        cold_start = "{cold_start}"
        look_every = "30s"
        bake = "30s"
        [metrics]
        faults = {{ fault = {{}} }}
        [[gates]]
        metric = "faults"
        weight = 1.0
        [[stages]]
        serve = 50.0
        dwell = "90m"
        limit = "100m"
        min_samples = 500
    "#
    ))
    .unwrap()
}

/// How a life ends, what its last judgement took for granted, and its store.
async fn life(history: u32, cold_start: &str, seed: u64) -> (End, Vec<Assumed>, Cuttable) {
    let store = Cuttable::default();
    let mut host = Host::with(&store, |b| b.clock(Fixed::new())).await;
    let begun = tokio::time::Instant::now();
    noisy(&mut host, history, begun, seed).await;
    let run = host.endpoint.submit(
        id(&format!("r{seed}")),
        version(2),
        half_an_hour(cold_start),
    );
    let run = run.await.unwrap();
    let mut assumed = Vec::new();
    while run.rollout().is_some_and(|r| !r.phase().is_end()) {
        noisy(&mut host, 60, begun, seed).await;
        let rollout = run.rollout();
        if let Some(gate) = rollout.as_ref().and_then(|r| r.judgement()?.gates.first()) {
            assumed.clone_from(&gate.assumed);
        }
    }
    (run.finished().await.unwrap(), assumed, store)
}

#[tokio::test(start_paused = true)]
async fn noise_that_was_learnt_from_history_is_no_harm() {
    // Seeded. A cold start takes the noise for harm in most lives; with six hours of history one life in twenty would be too many.
    let (mut cold, mut warm, mut careful) = (0, 0, 0);
    for seed in 0..4 {
        let (end, assumed, _) = life(0, "quick", seed).await;
        cold += usize::from(end.phase == Phase::RolledBack);
        assert_eq!(assumed, [Assumed::QuietArms, Assumed::EqualUsers]);
        let (end, assumed, _) = life(6 * 3_600, "quick", seed).await;
        warm += usize::from(end.phase == Phase::RolledBack);
        assert_eq!(assumed, [Assumed::EqualUsers]);
        let (end, assumed, _) = life(0, "careful", seed).await;
        careful += usize::from(end.phase == Phase::RolledBack);
        assert_eq!(assumed, [Assumed::EqualUsers]);
    }
    println!("rolled back of 4: {cold} cold, {warm} warm, {careful} careful");
    assert!(cold >= 2, "{cold}");
    assert_eq!((warm, careful), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_was_learnt_is_logged_once_and_survives_a_restart() {
    let (_, _, store) = life(3 * 3_600, "quick", 1).await;
    let endpoint = EndpointId::new("chat").unwrap();
    let (mut next, mut sizes, mut whole) = (Seq::default(), Vec::new(), 0);
    loop {
        let page = store.read(&endpoint, next).await.unwrap();
        for (seq, bytes) in &page.entries {
            next = seq.next();
            sizes.push(bytes.len());
            let text = String::from_utf8_lossy(bytes);
            whole += usize::from(text.contains(r#""checkpoint""#));
        }
        if !page.more {
            break;
        }
    }
    assert!((1..=4).contains(&whole), "whole evidence {whole} times");
    let largest = sizes.iter().max();
    println!("{whole} whole entries, the largest of {largest:?} bytes");
    sizes.sort_unstable();
    let median = sizes[sizes.len() / 2];
    println!("half of {} entries are below {median} bytes", sizes.len());
    assert!(sizes.len() > 100 && median < 4_000, "{median}");

    // In the middle of a ramp: another process adds up the same evidence.
    let store = Cuttable::default();
    let mut host = Host::with(&store, |b| b.clock(Fixed::new())).await;
    let begun = tokio::time::Instant::now();
    noisy(&mut host, 3 * 3_600, begun, 1).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), half_an_hour("quick"));
    let run = run.await.unwrap();
    noisy(&mut host, 3_000, begun, 1).await;
    let before = host.endpoint.status().ledger.checkpoint.clone().unwrap();
    assert!(before.evidence.has_begun("faults"));
    drop(run);
    host.kill().await;
    let again = Host::with(&store, |b| b.clock(Fixed::new())).await;
    let after = again.endpoint.status().ledger.checkpoint.clone().unwrap();
    assert_eq!(before, after);
}

type Names = Vec<String>;

/// A source that has counted what the test says, and nothing during the rollout.
#[derive(Debug, Clone, Default)]
struct Known {
    past: Vec<Past>,
    slices: Arc<Mutex<Vec<SliceCounts>>>,
    /// The metrics whose history it was asked for, each time; and whose slices, the last time.
    histories: Arc<Mutex<Vec<Names>>>,
    sliced: Arc<Mutex<Names>>,
    down: bool,
}

fn names(query: &Query<'_>) -> Names {
    query.metrics.keys().cloned().collect()
}

#[async_trait]
impl MetricSource for Known {
    async fn open(&self, _: Query<'_>, now: Timestamp) -> Result<Cursor> {
        if self.down {
            return Err(Error::transient("nobody counts"));
        }
        Ok(Cursor::new(now.as_millis().to_string()))
    }

    async fn read(&self, query: Query<'_>, cursor: &Cursor, now: Timestamp) -> Result<Reading> {
        let nothing = Increment::Binary {
            candidate: Counts::default(),
            baseline: Counts::default(),
        };
        let metrics = query.metrics.keys();
        let window = Window {
            epoch: query.epoch.get(),
            from: cursor.as_str().parse().unwrap(),
            to: now.as_millis(),
            metrics: metrics.map(|n| (n.clone(), nothing.clone())).collect(),
        };
        Ok(Reading {
            window,
            cursor: Cursor::new(now.as_millis().to_string()),
            heartbeat: None,
        })
    }

    async fn history(&self, query: Query<'_>, _: Timestamp) -> Result<Vec<Past>> {
        self.histories.lock().unwrap().push(names(&query));
        Ok(self.past.clone())
    }

    async fn slices(&self, query: Query<'_>) -> Result<Vec<SliceCounts>> {
        *self.sliced.lock().unwrap() = names(&query);
        Ok(self.slices.lock().unwrap().clone())
    }
}

fn counts(n: u64, k: u64) -> Counts {
    Counts { n, k }
}

/// So many blocks in which so many of a thousand count, now more and now less.
fn past(metric: &str, blocks: u64, k: u64) -> Past {
    let block = |i: u64| [counts(1_000, k + i % 7), counts(1_000, k + i % 5)];
    Past {
        metric: metric.to_owned(),
        blocks: (0..blocks).map(block).collect(),
    }
}

/// Two metrics of requests, one of labels, and one that nobody judges.
fn four_metrics(cold_start: &str, look_every: &str, stages: &str) -> Plan {
    Plan::from_toml(&format!(
        r#"
        alpha = 0.05
        cold_start = "{cold_start}"
        look_every = "{look_every}"
        bake = "30s"
        [metrics]
        faults = {{ fault = {{}} }}
        slow = {{ first_token_over = "1s" }}
        spare = {{ first_token_over = "9s" }}
        thumbs = {{ label = "thumbs_down" }}
        [[gates]]
        metric = "faults"
        weight = 0.5
        [[gates]]
        metric = "slow"
        weight = 0.3
        [[gates]]
        metric = "thumbs"
        weight = 0.2
        {stages}
        [[stages]]
        serve = 5.0
        dwell = "5m"
        [[stages]]
        serve = 50.0
        dwell = "5m"
    "#
    ))
    .unwrap()
}

async fn fed(source: &Known, plan: &Plan) -> (Host, llm_serve_adapters::Run) {
    let of = source.clone();
    let mut host = Host::with(&Cuttable::default(), |b| b.source(of)).await;
    let run = host.endpoint.submit(id("r1"), version(2), plan.clone());
    let run = run.await.unwrap();
    host.live(20, 1, &common::alike).await;
    (host, run)
}

#[tokio::test(start_paused = true)]
async fn history_is_learnt_once_by_metric_where_there_is_enough_of_it() {
    for (cold_start, blocks, enough) in [
        ("quick", 23, false),
        ("quick", 24, true),
        ("careful", 3, true),
    ] {
        let pasts = [("faults", 10), ("slow", 90), ("thumbs", 50)];
        let source = Known {
            past: pasts.map(|(metric, k)| past(metric, blocks, k)).into(),
            ..Known::default()
        };
        // Before anything has been seen of the rollout, evidence is what was learnt.
        let plan = four_metrics(cold_start, "1h", "");
        let (mut host, run) = fed(&source, &plan).await;
        run.skip("ana", "in a hurry").await.unwrap();
        host.live(10, 1, &common::alike).await;
        run.hold("look", "ana", "what has been learnt")
            .await
            .unwrap();
        let (gates, mut expected) = (plan.gate_plan(0).unwrap(), Evidence::new());
        for past in source.past.iter().take(2).filter(|_| enough) {
            for block in &past.blocks {
                expected.learn(&gates, &past.metric, *block).unwrap();
            }
        }
        let ledger = host.endpoint.status().ledger;
        let evidence = &ledger.checkpoint.as_ref().unwrap().evidence;
        assert_eq!(*evidence, expected, "{cold_start}, {blocks} blocks");
        let asked = source.histories.lock().unwrap();
        assert!(asked.iter().all(|names| *names == ["faults", "slow"]));
        assert_eq!(asked.len(), if enough { 1 } else { 2 });
    }
}

#[tokio::test(start_paused = true)]
async fn slices_are_added_up_over_looks_and_over_a_source_that_begins_anew() {
    let source = Known::default();
    let tell = |told: &[(&str, usize, Counts, Counts)]| {
        let told = told
            .iter()
            .map(|(metric, index, candidate, baseline)| SliceCounts {
                metric: (*metric).to_owned(),
                index: *index,
                candidate: *candidate,
                baseline: *baseline,
            });
        *source.slices.lock().unwrap() = told.collect();
    };
    let nobody = "[[stages]]\nserve = 0.0\ndwell = \"5m\"";
    tell(&[
        ("faults", 0, counts(100, 5), counts(90, 4)),
        ("faults", 1, counts(1_000, 50), counts(900, 40)),
        ("slow", 0, counts(100, 20), counts(90, 10)),
        // A share that no stage has.
        ("faults", 7, counts(10, 10), counts(10, 10)),
    ]);
    let (mut host, run) = fed(&source, &four_metrics("quick", "5s", nobody)).await;
    for faults in [
        // Goes on; begins anew, with less and with more than before.
        (counts(150, 9), counts(120, 6)),
        (counts(10, 1), counts(10, 2)),
        (counts(20, 15), counts(30, 2)),
    ] {
        tell(&[("faults", 0, faults.0, faults.1)]);
        host.live(10, 1, &common::alike).await;
    }
    let mut expected = Evidence::new();
    for (metric, share, candidate, baseline) in [
        (
            "faults",
            500,
            counts(150 + 10 + 20, 9 + 1 + 15),
            counts(120 + 10 + 20, 6 + 2),
        ),
        ("faults", 5_000, counts(1_000, 50), counts(900, 40)),
        ("slow", 500, counts(100, 20), counts(90, 10)),
    ] {
        let learnt = expected.learn_slice(metric, share, candidate, baseline);
        learnt.unwrap();
    }
    let ledger = host.endpoint.status().ledger;
    assert_eq!(ledger.checkpoint.as_ref().unwrap().evidence, expected);
    assert_eq!(*source.sliced.lock().unwrap(), ["faults", "slow"]);
    drop(run);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_cannot_be_opened_is_why_there_is_no_verdict() {
    let source = Known {
        down: true,
        ..Known::default()
    };
    let (mut host, run) = fed(&source, &four_metrics("quick", "7s", "")).await;
    host.live(700, 1, &common::alike).await;
    let end = run.finished().await.unwrap();
    assert_eq!(end.cause, Some(Cause::NoVerdict));
    let incident = host.endpoint.incident(run.id()).await.unwrap().unwrap();
    let said = |m: &Moment| m.what.contains("no metrics: nobody counts");
    assert!(incident.timeline.iter().any(said), "{incident:?}");
}
