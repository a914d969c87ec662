//! One change over several endpoints, in virtual time.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use async_trait::async_trait;
use common::{Cuttable, Host, Reads, alike, id, plan, second_is_bad, version};
use llm_rollout::waves::{Member, OnFailure, Phase, Progress, Schedule, Spec, Verb, Wave};
use llm_rollout::{EndpointId, Seq};
use llm_serve_adapters::host::{Error, Letter, Notifier, Result, StateStore as _};
use llm_serve_adapters::{Bootstrap, Endpoint, WavesBuilder, WavesRun};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const NAMES: [&str; 3] = ["chat-eu", "chat-us", "chat-ap"];

fn schedule(on_failure: OnFailure) -> Schedule {
    let member = |name: &str| Member {
        endpoint: name.parse().unwrap(),
        rollout: id("chat-v2"),
        candidate: version(2),
        traffic: 1.0,
        plan: plan(),
    };
    let mut spec = Spec::new(vec![
        Wave::of([member(NAMES[0])]),
        Wave::of([member(NAMES[1]), member(NAMES[2])]),
    ]);
    spec.on_failure = on_failure;
    spec.try_into().unwrap()
}

async fn hosts(store: &Cuttable) -> Vec<Host> {
    let mut hosts = Vec::new();
    for name in NAMES {
        let endpoint = Endpoint::open(name, store.clone(), Bootstrap(version(1)))
            .await
            .unwrap();
        hosts.push(Host::of(endpoint));
    }
    hosts
}

async fn waves(store: &Cuttable, hosts: &[Host], on_failure: OnFailure) -> WavesRun {
    let builder = WavesBuilder::new(id("release-2"), store.clone());
    let all = hosts
        .iter()
        .fold(builder, |b, host| b.endpoint(&host.endpoint));
    all.start(schedule(on_failure)).await.unwrap()
}

/// Seconds of life in which these endpoints serve a bad version 2.
async fn live(hosts: &mut [Host], seconds: u32, bad: &[usize]) {
    for _ in 0..seconds {
        for (n, host) in hosts.iter_mut().enumerate() {
            let faults: common::Faults<'_> = if bad.contains(&n) {
                &second_is_bad
            } else {
                &alike
            };
            host.serve(40, faults);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn in_production(hosts: &[Host]) -> Vec<u8> {
    let production = |h: &Host| h.endpoint.status().ledger.production.clone().unwrap();
    hosts
        .iter()
        .map(|h| if production(h) == version(2) { 2 } else { 1 })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_good_version_goes_round_wave_by_wave_over_a_restart() {
    let store = Cuttable::default();
    let mut hosts = hosts(&store).await;
    let run = waves(&store, &hosts, OnFailure::Stop).await;
    live(&mut hosts, 30, &[]).await;
    assert_eq!(run.waves().phase(), Phase::Running { wave: 0 });
    assert!(
        hosts[1].endpoint.status().ledger.rollout.is_none(),
        "the second wave waits for the first"
    );
    // The process is killed and starts again.
    drop(run);
    for host in hosts {
        host.kill().await;
    }
    let mut hosts = self::hosts(&store).await;
    let run = waves(&store, &hosts, OnFailure::Stop).await;
    live(&mut hosts, 1_500, &[]).await;
    assert_eq!(run.finished().await, Ok(Phase::Completed));
    assert_eq!(in_production(&hosts), [2, 2, 2]);
    drop(run);
    // Said again, it attaches to the recorded end.
    let again = waves(&store, &hosts, OnFailure::Stop).await;
    assert_eq!(again.finished().await, Ok(Phase::Completed));
}

#[tokio::test(start_paused = true)]
async fn one_region_that_fails_stops_or_takes_everything_back() {
    for (on_failure, end, production) in [
        // One is in flight at a time: the third is never begun.
        (OnFailure::Stop, Phase::Stopped, [2, 1, 1]),
        (OnFailure::RollBackAll, Phase::RolledBack, [1, 1, 1]),
    ] {
        let store = Cuttable::default();
        let mut hosts = hosts(&store).await;
        let run = waves(&store, &hosts, on_failure).await;
        live(&mut hosts, 1_800, &[1]).await;
        assert_eq!(run.finished().await, Ok(end));
        assert_eq!(in_production(&hosts), production, "{on_failure:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_whole_is_taken_back_by_hand_and_only_known_words_are_taken() {
    let store = Cuttable::default();
    let mut hosts = hosts(&store).await;
    let run = waves(&store, &hosts, OnFailure::Stop).await;
    live(&mut hosts, 400, &[]).await;
    assert_eq!(in_production(&hosts), [2, 1, 1]);
    let typo = Verb::Resume {
        name: "typo".into(),
    };
    assert!(run.say(typo, "ana", "").await.is_err());
    run.say(Verb::RollBack, "ana", "a customer calls")
        .await
        .unwrap();
    live(&mut hosts, 200, &[]).await;
    assert_eq!(run.finished().await, Ok(Phase::RolledBack));
    assert_eq!(in_production(&hosts), [1, 1, 1]);
    assert!(matches!(
        &run.waves().state().members[&NAMES[0].parse().unwrap()],
        Progress::Returned
    ));
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_down_nothing_is_begun() {
    let store = Cuttable::default();
    let mut hosts = hosts(&store).await;
    let run = waves(&store, &hosts, OnFailure::Stop).await;
    live(&mut hosts, 200, &[]).await;
    store.cut(true);
    live(&mut hosts, 30, &[]).await;
    assert!(run.say(Verb::Stop, "ana", "").await.is_err());
    store.cut(false);
    live(&mut hosts, 1_500, &[]).await;
    assert_eq!(run.finished().await, Ok(Phase::Completed));
}

#[tokio::test(start_paused = true)]
async fn a_member_without_endpoint_is_refused() {
    let store = Cuttable::default();
    let hosts = hosts(&store).await;
    let builder = WavesBuilder::new(id("release-2"), store).endpoint(&hosts[0].endpoint);
    let error = builder.start(schedule(OnFailure::Stop)).await.unwrap_err();
    assert!(error.to_string().contains("chat-us"), "{error}");
}

/// Hears nothing for the first minute.
#[derive(Debug, Clone, Default)]
struct Late(Arc<Mutex<(Vec<String>, u32)>>);

#[async_trait]
impl Notifier for Late {
    async fn notify(&self, letter: &Letter<'_>) -> Result<()> {
        let mut heard = self.0.lock().unwrap();
        heard.1 += 1;
        if heard.1 < 12 {
            return Err(Error::transient("down"));
        }
        heard.0.push(letter.notice.text.clone());
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn what_people_are_to_hear_is_told_until_they_do() {
    let (store, late) = (Cuttable::default(), Late::default());
    let mut hosts = hosts(&store).await;
    let builder = WavesBuilder::new(id("release-2"), store.clone()).notifier(late.clone());
    let all = hosts
        .iter()
        .fold(builder, |b, host| b.endpoint(&host.endpoint));
    let run = all.start(schedule(OnFailure::RollBackAll)).await.unwrap();
    live(&mut hosts, 1_800, &[0]).await;
    assert_eq!(run.finished().await, Ok(Phase::RolledBack));
    assert!(!late.0.lock().unwrap().0.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_log_of_waves_is_read_page_by_page_and_begun_once() {
    let store = Cuttable::default();
    let mut hosts = hosts(&store).await;
    let run = waves(&store, &hosts, OnFailure::Stop).await;
    live(&mut hosts, 400, &[]).await;
    let before = run.waves();
    assert_eq!(in_production(&hosts), [2, 1, 1]);
    drop(run);
    for host in hosts {
        host.kill().await;
    }
    store.reads(Reads::Small);
    let hosts = self::hosts(&store).await;
    let appended = store.tries();
    let mut pages = Vec::new();
    for reads in [Reads::Small, Reads::Whole] {
        store.reads(reads);
        let read = store.pages.load(Ordering::SeqCst);
        let run = waves(&store, &hosts, OnFailure::Stop).await;
        assert_eq!(*run.waves(), *before);
        pages.push(store.pages.load(Ordering::SeqCst) - read);
    }
    let log = store.read(&log(), Seq::default()).await.unwrap();
    assert_eq!(pages, [log.entries.len() as u64, 1]);
    assert!(pages[0] > 2);
    assert_eq!(store.tries(), appended, "what has begun is not begun again");
}

fn log() -> EndpointId {
    EndpointId::new("release-2").unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_has_been_replaced_is_not_followed() {
    let mut logs = Vec::new();
    for on_failure in [OnFailure::Stop, OnFailure::RollBackAll] {
        let store = Cuttable::default();
        let mut hosts = hosts(&store).await;
        let run = waves(&store, &hosts, on_failure).await;
        live(&mut hosts, 10, &[]).await;
        drop(run);
        let page = store.read(&log(), Seq::default()).await.unwrap();
        logs.push(page.entries);
    }
    let store = Cuttable::default();
    let fence = store.acquire(&log()).await.unwrap().fence;
    for (seq, bytes) in [&logs[0][0], &logs[1][1]] {
        store
            .append(&log(), fence, *seq, bytes, None)
            .await
            .unwrap();
    }
    let hosts = hosts(&store).await;
    let builder = WavesBuilder::new(id("release-2"), store);
    let builder = hosts.iter().fold(builder, |b, h| b.endpoint(&h.endpoint));
    let error = builder.start(schedule(OnFailure::Stop)).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("entry 1") && text.contains("does not follow"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_damaged_log_stops_the_waves_and_says_where() {
    let store = Cuttable::default();
    let mut hosts = hosts(&store).await;
    let run = waves(&store, &hosts, OnFailure::Stop).await;
    live(&mut hosts, 30, &[]).await;
    store.reads(Reads::Damaged);
    live(&mut hosts, 30, &[]).await;
    let said = run.say(Verb::Stop, "ana", "").await.unwrap_err();
    assert!(said.to_string().contains("entry 7"), "{said}");
    let ended = run.finished().await.unwrap_err();
    assert!(ended.to_string().contains("entry 7"), "{ended}");
}

#[tokio::test(start_paused = true)]
async fn a_member_in_progress_is_called_off_with_the_whole_even_if_its_store_is_down() {
    let (store, own) = (Cuttable::default(), Cuttable::default());
    let mut hosts = hosts(&store).await;
    let run = waves(&own, &hosts, OnFailure::Stop).await;
    live(&mut hosts, 60, &[]).await;
    assert!(hosts[0].candidate_share() > 0);
    store.cut(true);
    run.say(Verb::RollBack, "ana", "a customer calls")
        .await
        .unwrap();
    live(&mut hosts, 10, &[]).await;
    assert_eq!(hosts[0].candidate_share(), 0);
    assert!(!run.waves().phase().is_end(), "nothing of it is logged");
    store.cut(false);
    live(&mut hosts, 120, &[]).await;
    assert_eq!(run.waves().phase(), Phase::RolledBack);
    assert_eq!(in_production(&hosts), [1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_waits_for_its_turn_is_called_off_once_its_store_is_back() {
    let (store, own) = (Cuttable::default(), Cuttable::default());
    let mut hosts = hosts(&store).await;
    let barred = hosts[0].endpoint.bar("freeze", "ana", "a holiday");
    barred.await.unwrap();
    let run = waves(&own, &hosts, OnFailure::Stop).await;
    live(&mut hosts, 10, &[]).await;
    assert_eq!(hosts[0].endpoint.status().ledger.queue.len(), 1);
    store.cut(true);
    run.say(Verb::RollBack, "ana", "a customer calls")
        .await
        .unwrap();
    live(&mut hosts, 30, &[]).await;
    assert!(!run.waves().phase().is_end());
    store.cut(false);
    live(&mut hosts, 30, &[]).await;
    assert_eq!(run.waves().phase(), Phase::RolledBack);
    assert!(hosts[0].endpoint.status().ledger.queue.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_member_whose_return_is_called_off_is_stuck_with_the_candidate() {
    let store = Cuttable::default();
    let mut hosts = hosts(&store).await;
    let run = waves(&store, &hosts, OnFailure::Stop).await;
    live(&mut hosts, 400, &[]).await;
    assert_eq!(in_production(&hosts), [2, 1, 1]);
    let barred = hosts[0].endpoint.bar("freeze", "ana", "a holiday");
    barred.await.unwrap();
    run.say(Verb::RollBack, "ana", "a customer calls")
        .await
        .unwrap();
    live(&mut hosts, 10, &[]).await;
    let back = hosts[0].endpoint.attach(&id("chat-v2-return")).unwrap();
    back.abort("ben", "leave it").await.unwrap();
    live(&mut hosts, 30, &[]).await;
    let waves = run.waves();
    let member = &waves.state().members[&NAMES[0].parse().unwrap()];
    assert!(
        matches!(member, Progress::Stuck { why } if why.contains("leave it")),
        "{member:?}"
    );
    assert_eq!(in_production(&hosts), [2, 1, 1]);
}

/// Refuses for good, or hears nothing for ever.
#[derive(Debug, Clone)]
struct Never(bool, Arc<Mutex<std::collections::BTreeMap<String, u32>>>);

#[async_trait]
impl Notifier for Never {
    async fn notify(&self, letter: &Letter<'_>) -> Result<()> {
        *self.1.lock().unwrap().entry(letter.key()).or_default() += 1;
        let error = if self.0 {
            Error::transient
        } else {
            Error::permanent
        };
        Err(error("nobody is there"))
    }
}

#[tokio::test(start_paused = true)]
async fn who_cannot_be_told_is_given_up_in_the_end() {
    for (may_pass, tries) in [(true, 100), (false, 1)] {
        let (store, never) = (Cuttable::default(), Never(may_pass, Arc::default()));
        let mut hosts = hosts(&store).await;
        let builder = WavesBuilder::new(id("release-2"), store.clone()).notifier(never.clone());
        let all = hosts
            .iter()
            .fold(builder, |b, host| b.endpoint(&host.endpoint));
        let run = all.start(schedule(OnFailure::RollBackAll)).await.unwrap();
        live(&mut hosts, 300, &[0]).await;
        tokio::time::sleep(Duration::from_secs(3_000)).await;
        drop(run);
        let told = never.1.lock().unwrap();
        assert!(
            !told.is_empty() && told.values().all(|n| *n == tries),
            "{told:?}"
        );
    }
}
