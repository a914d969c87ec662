//! What an endpoint promises over several rollouts, in virtual time.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use async_trait::async_trait;
use common::{Cuttable, Host, alike, id, plan, second_is_bad, version};
use llm_rollout::plan::WatchSpec;
use llm_rollout::{
    Cause, EndpointId, Fence, Order, Phase, Plan, Position, Probed, Response, RouterClock,
    RouterId, RouterState, Seq, Timestamp,
};
use llm_serve_adapters::backend::Together;
use llm_serve_adapters::host::{
    Calendar, Error, Letter, Manifests, Notifier, Probe, Result, RouterCapabilities,
    ServingBackend, StateStore as _, Support, TrafficRouter,
};
use llm_serve_adapters::journal::{Entry, Event};
use llm_serve_adapters::{
    AdministerError, CommandError, Endpoint, Return, ReturnError, SubmitError, Supersede,
};
use llm_version_core::{
    Component, ComponentKind, Digest, Draft, Manifest, Name, Safety, Surroundings, Version,
    VersionId,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

async fn host() -> (Cuttable, Host) {
    let store = Cuttable::default();
    let host = Host::start(&store).await;
    (store, host)
}

/// Rolls this version out and waits for the end.
async fn release(host: &mut Host, name: &str, n: u8) {
    let run = host.endpoint.submit(id(name), version(n), plan()).await;
    host.live(600, 40, &alike).await;
    assert_eq!(
        run.unwrap().finished().await.unwrap().phase,
        Phase::Promoted
    );
}

#[tokio::test(start_paused = true)]
async fn rollouts_wait_for_their_turn_even_over_a_restart() {
    let (store, mut host) = host().await;
    let first = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    let queue = |host: &Host, name: &str, n| {
        let (endpoint, id) = (host.endpoint.clone(), id(name));
        async move {
            endpoint
                .submit_or(Supersede::Queue, id, version(n), plan())
                .await
        }
    };
    let second = queue(&host, "r2", 3).await.unwrap();
    let third = queue(&host, "r3", 4).await.unwrap();
    queue(&host, "r2", 3).await.unwrap();
    assert_eq!(
        host.endpoint.status().ledger.queue.len(),
        2,
        "the same id attaches"
    );
    assert_eq!(
        queue(&host, "r2", 5).await.unwrap_err(),
        SubmitError::OtherCandidate(id("r2"))
    );
    assert_eq!(
        host.endpoint
            .submit(id("r4"), version(5), plan())
            .await
            .unwrap_err(),
        SubmitError::Busy(id("r1"))
    );
    assert_eq!(
        second.approve("ana", "").await,
        Err(CommandError::Queued(id("r2")))
    );
    third.abort("ana", "not today").await.unwrap();
    assert!(matches!(
        third.finished().await.unwrap().cause,
        Some(Cause::Operator { .. })
    ));
    drop((first, second, third));
    host.live(60, 40, &alike).await;
    host.kill().await;

    let mut host = Host::start(&store).await;
    host.live(1_500, 40, &alike).await;
    let second = host.endpoint.attach(&id("r2")).unwrap();
    let end = second.finished().await.unwrap();
    assert_eq!((end.phase, end.baseline), (Phase::Promoted, version(2)));
}

#[tokio::test(start_paused = true)]
async fn a_newer_rollout_replaces_the_one_in_progress_and_whoever_waits() {
    let (store, mut host) = host().await;
    let first = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(30, 40, &alike).await;
    let waits = host
        .endpoint
        .submit_or(Supersede::Queue, id("r2"), version(3), plan())
        .await
        .unwrap();
    let newest = host
        .endpoint
        .submit_or(Supersede::Replace, id("r3"), version(4), plan())
        .await
        .unwrap();
    // Killed before the first had been told: what is logged is enough.
    host.kill().await;
    let by = id("r3");
    let mut host = Host::start(&store).await;
    host.live(900, 40, &alike).await;
    let ended = host.endpoint.status().ledger.ended.clone();
    assert_eq!(
        ended[&id("r1")].cause,
        Some(Cause::Superseded { by: by.clone() })
    );
    assert_eq!(ended[&id("r2")].cause, Some(Cause::Superseded { by }));
    let end = &ended[&id("r3")];
    assert_eq!((end.phase, &end.baseline), (Phase::Promoted, &version(1)));
    drop((first, waits, newest));
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded() {
    let (_store, host) = host().await;
    host.endpoint
        .submit(id("r0"), version(2), plan())
        .await
        .unwrap();
    for n in 1..=16 {
        let name = id(&format!("r{n}"));
        host.endpoint
            .submit_or(Supersede::Queue, name, version(2), plan())
            .await
            .unwrap();
    }
    let full = host
        .endpoint
        .submit_or(Supersede::Queue, id("r17"), version(2), plan())
        .await;
    assert_eq!(full.unwrap_err(), SubmitError::QueueFull);
}

#[tokio::test(start_paused = true)]
async fn a_retry_is_a_new_attempt() {
    let (_store, mut host) = host().await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    assert!(
        matches!(run.retry().await, Err(SubmitError::NothingToRetry(..))),
        "it runs"
    );
    host.live(300, 40, &second_is_bad).await;
    assert_eq!(run.finished().await.unwrap().phase, Phase::RolledBack);
    let again = run.retry().await.unwrap();
    assert_eq!(again.id(), &id("r1.2"));
    host.live(600, 40, &alike).await;
    assert_eq!(
        again.finished().await.unwrap().phase,
        Phase::Promoted,
        "its evidence begins anew"
    );
    assert!(matches!(
        again.retry().await,
        Err(SubmitError::NothingToRetry(..))
    ));
    assert!(
        matches!(run.retry().await, Err(SubmitError::NothingToRetry(..))),
        "not the newest"
    );
}

#[tokio::test(start_paused = true)]
async fn a_bar_keeps_new_rollouts_out_and_lets_the_queue_wait() {
    let (store, mut host) = host().await;
    host.endpoint
        .bar("watch-toxicity", "watch", "drift")
        .await
        .unwrap();
    let refused = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap_err();
    assert_eq!(
        refused,
        SubmitError::Barred("watch-toxicity".into(), "drift".into())
    );
    let run = host
        .endpoint
        .submit_or(Supersede::Queue, id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(60, 40, &alike).await;
    assert!(run.rollout().is_none());
    drop(run);
    host.kill().await;
    let mut host = Host::start(&store).await;
    host.live(60, 40, &alike).await;
    assert!(
        host.endpoint.status().ledger.rollout.is_none(),
        "a bar survives a restart"
    );
    let wrong = host.endpoint.unbar("watch", "ana", "").await;
    assert_eq!(wrong, Err(AdministerError::NoSuchBar("watch".into())));
    host.endpoint
        .unbar("watch-toxicity", "ana", "looked into")
        .await
        .unwrap();
    host.live(600, 40, &alike).await;
    assert_eq!(host.endpoint.status().ledger.production, Some(version(2)));
}

/// Manifests whose context length is what the test says.
#[derive(Debug)]
struct Registry {
    contexts: Vec<(u8, u64)>,
    longest: Arc<AtomicUsize>,
    revoked: Option<u8>,
    missing: Option<u8>,
}

fn manifest(n: u8, context: u64) -> Manifest {
    let mut draft = Draft::new(Name::new("chat").unwrap(), Version::new(u32::from(n), 0, 0));
    draft.contract.context_length = Some(context);
    let component = Component::new(
        "prompt/system.txt".parse().unwrap(),
        ComponentKind::Prompt,
        0,
        Digest::of(b""),
    );
    draft.components.push(component);
    draft.finish().unwrap()
}

#[async_trait]
impl Manifests for Registry {
    async fn manifest(&self, id: &VersionId) -> Result<Option<Manifest>> {
        let known = self.contexts.iter().find(|(n, _)| version(*n) == *id);
        Ok(known.map(|(n, context)| manifest(*n, *context)))
    }

    async fn surroundings(&self) -> Result<Surroundings> {
        let mut around = Surroundings::default();
        around.longest_session = Some(self.longest.load(Ordering::SeqCst) as u64);
        let named = |n: u8| manifest(n, 8_000).id().clone();
        around.revoked = self.revoked.map(named).into_iter().collect();
        around.unavailable = self.missing.map(named).into_iter().collect();
        Ok(around)
    }
}

#[tokio::test(start_paused = true)]
async fn a_candidate_without_a_way_back_is_refused() {
    for (revoked, missing, refused) in [
        (Some(2), None, true),
        (None, Some(1), true),
        // That one should leave a version is no reason to stay with it.
        (Some(1), None, false),
        (Some(1), Some(1), true),
    ] {
        let registry = Registry {
            contexts: vec![(1, 8_000), (2, 8_000)],
            longest: Arc::default(),
            revoked,
            missing,
        };
        let host = Host::with(&Cuttable::default(), |b| b.manifests(registry)).await;
        let submit = |n| host.endpoint.submit(id("r1"), version(n), plan());
        let unknown = submit(3).await.unwrap_err();
        assert!(matches!(unknown, SubmitError::Manifests(_)), "{unknown}");
        let said = submit(2).await;
        let closed = matches!(said, Err(SubmitError::NoWayBack { .. }));
        assert_eq!(
            (closed, said.is_ok()),
            (refused, !refused),
            "{revoked:?} revoked, {missing:?} missing: {said:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn after_promotion_one_goes_back_within_the_window_if_the_contract_allows() {
    let store = Cuttable::default();
    let longest = Arc::new(AtomicUsize::new(0));
    let registry = Registry {
        contexts: vec![(1, 8_000), (2, 8_000), (3, 32_000)],
        longest: Arc::clone(&longest),
        revoked: None,
        missing: None,
    };
    let mut host = Host::with(&store, |b| b.manifests(registry).rollback_window(1)).await;
    let none = host.endpoint.roll_back(Return::last(), "ana", "slow").await;
    assert!(
        matches!(none, Err(ReturnError::OutsideWindow { .. })),
        "there is no past yet"
    );
    release(&mut host, "r1", 2).await;
    release(&mut host, "r2", 3).await;
    let far = Return {
        to: Some(version(1)),
        ..Return::last()
    };
    let error = host
        .endpoint
        .roll_back(far, "ana", "slow")
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains(&version(2).to_string()),
        "{error}"
    );

    longest.store(20_000, Ordering::SeqCst);
    let way = Return::last();
    let error = host
        .endpoint
        .roll_back(way.clone(), "ana", "slow")
        .await
        .unwrap_err();
    assert!(matches!(
        &error,
        ReturnError::NotSafe {
            safety: Safety::NeedsAction(_),
            ..
        }
    ));
    assert!(
        error.to_string().contains("8000"),
        "it says what to do: {error}"
    );
    let way = Return {
        steps_taken: true,
        ..way
    };
    let run = host.endpoint.roll_back(way, "ana", "slow").await.unwrap();
    host.live(60, 40, &alike).await;
    assert_eq!(run.finished().await.unwrap().phase, Phase::Promoted);
    assert_eq!(
        host.serve(100, &alike).keys().collect::<Vec<_>>(),
        [&version(2)]
    );
    let ledger = host.endpoint.status().ledger;
    assert_eq!(
        ledger.history,
        [version(1), version(3)],
        "oldest first, without what is in production"
    );
    let mut log = Vec::new();
    loop {
        let next = host.endpoint.log(Seq::new(log.len() as u64)).await.unwrap();
        if next.is_empty() {
            break;
        }
        log.extend(next);
    }
    let said = log.iter().find_map(|(_, entry)| match &entry.event {
        Event::Submitted { said, .. } => said.clone(),
        _ => None,
    });
    assert_eq!(
        said.map(|s| (s.by, s.why)),
        Some(("ana".into(), "slow".into()))
    );
}

/// A router in another process that dies.
#[derive(Debug, Clone)]
struct Remote {
    id: RouterId,
    core: Arc<Mutex<llm_serve_adapters::router::RouterCore>>,
    dead: Arc<AtomicBool>,
    begun: tokio::time::Instant,
}

impl Remote {
    fn new() -> Self {
        let first = llm_rollout::Split::steady(None, version(1), llm_rollout::Epoch::default());
        Self {
            id: RouterId::new("gateway-b").unwrap(),
            core: Arc::new(Mutex::new(llm_serve_adapters::router::RouterCore::new(
                1, first,
            ))),
            dead: Arc::default(),
            begun: tokio::time::Instant::now(),
        }
    }

    fn ask<E: ToString>(
        &self,
        what: impl FnOnce(
            &mut llm_serve_adapters::router::RouterCore,
            Timestamp,
        ) -> std::result::Result<(), E>,
    ) -> Result<RouterState> {
        if self.dead.load(Ordering::SeqCst) {
            return Err(Error::transient("gone"));
        }
        let now = Timestamp::from_millis(u64::try_from(self.begun.elapsed().as_millis()).unwrap());
        let mut core = self.core.lock().unwrap();
        what(&mut core, now).map_err(|e| Error::permanent(e.to_string()))?;
        Ok(core.state(now))
    }
}

#[async_trait]
impl TrafficRouter for Remote {
    fn id(&self) -> &RouterId {
        &self.id
    }

    fn capabilities(&self) -> RouterCapabilities {
        RouterCapabilities {
            fencing: Support::Native,
            lease: Support::Native,
        }
    }

    async fn observe(&self, fence: Fence) -> Result<RouterState> {
        self.ask(|core, now| core.observe(fence, now))
    }

    async fn set(&self, order: &Order) -> Result<RouterState> {
        self.ask(|core, now| core.set(order, now))
    }

    async fn renew(&self, at: Position, clock: RouterClock) -> Result<RouterState> {
        self.ask(|core, now| core.renew(at, clock, now))
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_router_blocks_until_it_is_removed_by_hand_and_not_before_its_lease_is_over() {
    let (store, remote) = (Cuttable::default(), Remote::new());
    let router = remote.clone();
    let mut host = Host::with(&store, |b| b.router(router)).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(60, 40, &alike).await;
    remote.dead.store(true, Ordering::SeqCst);
    run.abort("ana", "x").await.unwrap();
    let early = host
        .endpoint
        .remove_router(&remote.id, "ana", "burnt")
        .await;
    assert!(
        matches!(early, Err(AdministerError::MayServe(_, left)) if left > Duration::from_secs(10))
    );
    host.live(60, 10, &alike).await;
    assert!(
        matches!(run.rollout().unwrap().phase(), Phase::RollingBack { .. }),
        "not confirmed"
    );
    host.endpoint
        .remove_router(&remote.id, "ana", "burnt")
        .await
        .unwrap();
    host.live(30, 10, &alike).await;
    assert_eq!(run.finished().await.unwrap().phase, Phase::RolledBack);
    let again = host
        .endpoint
        .remove_router(&remote.id, "ana", "burnt")
        .await;
    assert_eq!(again, Err(AdministerError::NoSuchRouter(remote.id.clone())));
    host.endpoint
        .restore_router(&remote.id, "ana", "replaced")
        .await
        .unwrap();
    assert!(host.endpoint.status().ledger.removed.is_empty());
}

#[derive(Debug)]
struct Until(Timestamp);

impl Calendar for Until {
    fn frozen_until(&self, now: Timestamp) -> Option<Timestamp> {
        (now < self.0).then_some(self.0)
    }
}

#[tokio::test(start_paused = true)]
async fn a_calendar_freezes_the_advance() {
    let store = Cuttable::default();
    let now = llm_serve_adapters::host::Clock::now(&llm_serve_adapters::SystemClock::new());
    let calendar = Until(now.after(Duration::from_secs(900)));
    let mut host = Host::with(&store, |b| b.calendar(calendar)).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(840, 40, &alike).await;
    assert_eq!(
        run.rollout().unwrap().phase(),
        Phase::Warming,
        "nothing begins"
    );
    host.live(900, 40, &alike).await;
    assert_eq!(run.finished().await.unwrap().phase, Phase::Promoted);
}

/// A backend whose baseline can fail.
#[derive(Debug, Clone, Default)]
struct Backend {
    sick: Arc<AtomicBool>,
    retired: Arc<AtomicUsize>,
}

#[async_trait]
impl ServingBackend for Backend {
    async fn prepare(&self, _: &VersionId, _: Position) -> Result<()> {
        Ok(())
    }

    async fn healthy(&self, v: &VersionId) -> Result<Option<bool>> {
        Ok(Some(*v != version(1) || !self.sick.load(Ordering::SeqCst)))
    }

    async fn in_flight(&self, _: &VersionId) -> Result<Option<u64>> {
        Ok(Some(0))
    }

    async fn retire(&self, _: &VersionId, _: Position) -> Result<()> {
        self.retired.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn with_an_unhealthy_baseline_users_stay_on_the_candidate() {
    let (store, backend) = (Cuttable::default(), Backend::default());
    let serving = backend.clone();
    let mut host = Host::with(&store, |b| b.backend(serving)).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(60, 40, &alike).await;
    backend.sick.store(true, Ordering::SeqCst);
    host.live(30, 40, &alike).await;
    assert!(run.rollout().unwrap().state().baseline_down);
    let share = host.candidate_share();
    run.abort("ana", "slow").await.unwrap();
    host.live(120, 40, &alike).await;
    assert_eq!(host.candidate_share(), share, "there is nowhere to go");
    backend.sick.store(false, Ordering::SeqCst);
    host.live(60, 40, &alike).await;
    assert_eq!(run.finished().await.unwrap().phase, Phase::RolledBack);
    assert_eq!(backend.retired.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn an_alarm_reaches_the_rollout_and_is_logged() {
    let (_store, mut host) = host().await;
    let mut spec = plan().spec().clone();
    spec.triggers.other_alarms = Response::Rollback;
    let plan: Plan = spec.try_into().unwrap();
    host.endpoint
        .alarm("quiet", "nothing is in progress")
        .await
        .unwrap();
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan)
        .await
        .unwrap();
    host.live(30, 40, &alike).await;
    host.endpoint
        .alarm("toxicity", "0.4 over 0.05")
        .await
        .unwrap();
    assert_eq!(
        host.candidate_share(),
        0,
        "acknowledged means that users are off, or will be by the next turn"
    );
    host.live(30, 40, &alike).await;
    assert!(
        matches!(run.finished().await.unwrap().cause, Some(Cause::Alarm { name, .. }) if name == "toxicity")
    );
}

#[tokio::test(start_paused = true)]
async fn a_damaged_log_is_named_and_nothing_is_overwritten() {
    let (store, mut host) = host().await;
    host.endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(60, 40, &alike).await;
    host.kill().await;
    let chat = EndpointId::new("chat").unwrap();
    let entries = store.read(&chat, Seq::default()).await.unwrap().entries;
    for (seq, bytes) in &entries {
        assert!(Entry::decode(&chat, *seq, bytes).is_ok());
        let elsewhere = Entry::decode(&chat, seq.next(), bytes).unwrap_err();
        assert!(
            elsewhere.to_string().contains("seal"),
            "an entry knows its place: {elsewhere}"
        );
        // Every digit of the event counts.
        let text = String::from_utf8(bytes.clone()).unwrap();
        let event = text.find("\"event\"").unwrap();
        let digit = text[event..]
            .find(|c: char| ('1'..='8').contains(&c))
            .unwrap()
            + event;
        let mut damaged = bytes.clone();
        damaged[digit] += 1;
        let error = Entry::decode(&chat, *seq, &damaged)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("entry {seq}")) && error.contains("chat"),
            "{error}"
        );
    }
    // An entry that is whole, but follows another history.
    let other = Cuttable::default();
    let mut second = Host::start(&other).await;
    second
        .endpoint
        .submit(id("r9"), version(3), plan())
        .await
        .unwrap();
    second.live(60, 40, &alike).await;
    let foreign = other.read(&chat, Seq::default()).await.unwrap().entries;
    let mixed = Cuttable::default();
    let owned = mixed.acquire(&chat).await.unwrap();
    for (seq, bytes) in entries[..2].iter().chain(&foreign[2..]) {
        mixed
            .append(&chat, owned.fence, *seq, bytes, None)
            .await
            .unwrap();
    }
    let error = Endpoint::open(
        "chat",
        mixed.clone(),
        llm_serve_adapters::Bootstrap(version(1)),
    )
    .await
    .unwrap_err();
    assert!(format!("{error}").contains("entry 2"), "{error}");
    assert_eq!(
        mixed
            .read(&chat, Seq::default())
            .await
            .unwrap()
            .entries
            .len(),
        foreign.len()
    );
}

/// Canonical questions that a version begins to get wrong.
#[derive(Debug, Clone, Default)]
struct Canonical(Arc<AtomicBool>);

#[async_trait]
impl Probe for Canonical {
    fn name(&self) -> &'static str {
        "canonical"
    }

    async fn probe(&self, v: &VersionId) -> Result<Probed> {
        Ok(if *v == version(2) && self.0.load(Ordering::SeqCst) {
            Probed::Failed("7 of 40 wrong".to_owned())
        } else {
            Probed::Passed
        })
    }
}

fn watched(action: Response, bake: u64) -> Plan {
    let mut spec = plan().spec().clone();
    spec.bake = Duration::from_secs(bake);
    spec.watch = vec![WatchSpec {
        fails: 2,
        of: 3,
        ..WatchSpec::new("canonical", Duration::from_secs(10), action)
    }];
    spec.try_into().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_promoted_version_is_watched_and_an_alarm_does_what_the_plan_says() {
    let (_, mut without) = host().await;
    let refused = without
        .endpoint
        .submit(id("r1"), version(2), watched(Response::Hold, 0))
        .await;
    assert_eq!(
        refused.unwrap_err(),
        SubmitError::NoProbe("canonical".into())
    );
    without.live(1, 1, &alike).await;

    for action in [Response::Page, Response::Hold, Response::Rollback] {
        let (store, probe) = (Cuttable::default(), Canonical::default());
        let with = |probe: &Canonical| {
            let probe = probe.clone();
            move |b: llm_serve_adapters::EndpointBuilder| b.probe(probe)
        };
        let mut host = Host::with(&store, with(&probe)).await;
        let plan = watched(action, 0);
        let run = host
            .endpoint
            .submit(id("r1"), version(2), plan)
            .await
            .unwrap();
        host.live(400, 40, &alike).await;
        assert_eq!(run.finished().await.unwrap().phase, Phase::Promoted);
        drop(run);
        host.live(100, 40, &alike).await;
        assert!(host.endpoint.status().ledger.bars.is_empty());
        // The watch goes on after a restart.
        host.kill().await;
        let mut host = Host::with(&store, with(&probe)).await;
        probe.0.store(true, Ordering::SeqCst);
        host.live(100, 40, &alike).await;
        let ledger = host.endpoint.status().ledger;
        let back = action == Response::Rollback;
        assert_eq!(
            ledger.production,
            Some(version(if back { 1 } else { 2 })),
            "{action:?}"
        );
        let barred = ledger.bars.contains_key("watch-canonical");
        assert_eq!(barred, action == Response::Hold, "{action:?}");
        let entries = store
            .read(host.endpoint.id(), Seq::default())
            .await
            .unwrap()
            .entries;
        let alarms = entries.iter().filter(|(seq, bytes)| {
            let entry = Entry::decode(host.endpoint.id(), *seq, bytes).unwrap();
            matches!(entry.event, Event::Alarmed { .. })
        });
        assert_eq!(alarms.count(), 1, "one alarm for one trouble");
    }
}

#[tokio::test(start_paused = true)]
async fn while_it_bakes_an_alarm_takes_the_quick_way_back() {
    let (store, probe) = (Cuttable::default(), Canonical::default());
    let watching = probe.clone();
    let mut host = Host::with(&store, |b| b.probe(watching)).await;
    let plan = watched(Response::Rollback, 3_600);
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan)
        .await
        .unwrap();
    host.live(500, 40, &alike).await;
    assert_eq!(run.rollout().unwrap().phase(), Phase::Baking);
    probe.0.store(true, Ordering::SeqCst);
    host.live(60, 40, &alike).await;
    let end = run.finished().await.unwrap();
    assert!(matches!(end.cause, Some(Cause::Alarm { name, .. }) if name == "canonical"));
    assert_eq!(host.endpoint.status().ledger.production, Some(version(1)));
}

/// Hears nothing until it is repaired.
#[derive(Debug, Clone, Default)]
struct Deaf {
    works: Arc<AtomicBool>,
    heard: Arc<Mutex<Vec<(String, String)>>>,
    tries: Arc<AtomicUsize>,
}

#[async_trait]
impl Notifier for Deaf {
    async fn notify(&self, letter: &Letter<'_>) -> Result<()> {
        self.tries.fetch_add(1, Ordering::SeqCst);
        if !self.works.load(Ordering::SeqCst) {
            return Err(Error::transient("down"));
        }
        let (key, text) = (letter.key(), letter.notice.text.clone());
        self.heard.lock().unwrap().push((key, text));
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_notifier_that_is_down_blocks_nothing_and_hears_it_later() {
    let (store, deaf) = (Cuttable::default(), Deaf::default());
    let pager = deaf.clone();
    let mut host = Host::with(&store, |b| b.notifier(pager)).await;
    let run = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(200, 40, &second_is_bad).await;
    assert_eq!(run.finished().await.unwrap().phase, Phase::RolledBack);
    let next = host
        .endpoint
        .submit(id("r2"), version(3), plan())
        .await
        .unwrap();
    host.live(60, 40, &alike).await;
    assert!(deaf.tries.load(Ordering::SeqCst) > 3 && deaf.heard.lock().unwrap().is_empty());
    drop((run, next));
    host.kill().await;
    // Repaired, and the process has been killed in between.
    deaf.works.store(true, Ordering::SeqCst);
    let pager = deaf.clone();
    let mut host = Host::with(&store, |b| b.notifier(pager)).await;
    host.live(120, 40, &alike).await;
    let heard = deaf.heard.lock().unwrap().clone();
    assert!(
        heard
            .iter()
            .any(|(_, text)| text.starts_with("rolling back")),
        "{heard:?}"
    );
    let mut keys: Vec<_> = heard.iter().map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(
        keys.len(),
        heard.len(),
        "nothing is told twice once it has arrived"
    );
}

/// Engines that serve `LoRA` adapters, one a version, on base weights that all of them share.
#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<SharedWeights>>);

#[derive(Debug, Default)]
struct SharedWeights {
    /// The newest order about each adapter, and whether it is loaded.
    adapters: BTreeMap<VersionId, (Position, bool)>,
    base_loads: usize,
    base_unloads: usize,
}

impl Shared {
    /// With the adapter of the first version loaded.
    fn with_first() -> Self {
        let shared = Self::default();
        shared
            .order(&version(1), Position::default(), true)
            .unwrap();
        shared
    }

    fn order(&self, v: &VersionId, at: Position, load: bool) -> Result<()> {
        let mut weights = self.0.lock().unwrap();
        let newest = weights.adapters.get(v).map_or(at, |(newest, _)| *newest);
        if at < newest {
            return Err(Error::permanent("something newer was ordered"));
        }
        let before = weights.adapters.values().any(|(_, loaded)| *loaded);
        weights.adapters.insert(v.clone(), (at, load));
        let after = weights.adapters.values().any(|(_, loaded)| *loaded);
        weights.base_loads += usize::from(!before && after);
        weights.base_unloads += usize::from(before && !after);
        Ok(())
    }

    /// Versions whose adapter is loaded; how often the base weights were loaded, and unloaded.
    fn stands(&self) -> (Vec<VersionId>, usize, usize) {
        let weights = self.0.lock().unwrap();
        let loaded = weights.adapters.iter().filter(|(_, (_, loaded))| *loaded);
        let loaded = loaded.map(|(v, _)| v.clone()).collect();
        (loaded, weights.base_loads, weights.base_unloads)
    }
}

#[async_trait]
impl ServingBackend for Shared {
    async fn prepare(&self, v: &VersionId, at: Position) -> Result<()> {
        self.order(v, at, true)
    }

    async fn healthy(&self, v: &VersionId) -> Result<Option<bool>> {
        Ok(Some(self.stands().0.contains(v)))
    }

    async fn in_flight(&self, _: &VersionId) -> Result<Option<u64>> {
        Ok(Some(0))
    }

    async fn retire(&self, v: &VersionId, at: Position) -> Result<()> {
        self.order(v, at, false)
    }
}

#[tokio::test(start_paused = true)]
async fn adapters_come_and_go_on_base_weights_that_stay_in_all_parts_alike() {
    let (store, prefill, decode) = (
        Cuttable::default(),
        Shared::with_first(),
        Shared::with_first(),
    );
    let parts = Together::new()
        .part("prefill", prefill.clone())
        .part("decode", decode.clone());
    let mut host = Host::with(&store, |b| b.backend(parts)).await;
    let both = |loaded: &[u8], when: &str| {
        let loaded: Vec<_> = loaded.iter().copied().map(version).collect();
        for part in [&prefill, &decode] {
            assert_eq!(part.stands(), (loaded.clone(), 1, 0), "{when}");
        }
    };
    let bad = host
        .endpoint
        .submit(id("r1"), version(2), plan())
        .await
        .unwrap();
    host.live(30, 40, &alike).await;
    both(&[1, 2], "side by side");
    host.live(900, 40, &second_is_bad).await;
    assert_eq!(bad.finished().await.unwrap().phase, Phase::RolledBack);
    both(&[1], "the candidate's adapter goes, and nothing else");

    release(&mut host, "r2", 3).await;
    host.live(60, 40, &alike).await;
    both(
        &[3],
        "the old adapter goes after promotion, and nothing else",
    );
}
