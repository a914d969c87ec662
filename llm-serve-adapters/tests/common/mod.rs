//! A host in virtual time: real router, recorder, controller and store code, made-up requests.

#![allow(dead_code, reason = "each test target uses its part")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use async_trait::async_trait;
use llm_rollout::{EndpointId, Fence, Plan, RolloutId, RouterId, Seq, Split, Timestamp};
use llm_serve_adapters::host::{Clock, Error, Owned, Page, Result, RouterMemory, StateStore};
use llm_serve_adapters::recorder::OutcomeClass;
use llm_serve_adapters::router::{Key, Role};
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Bootstrap, Endpoint, EndpointBuilder};
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) fn version(n: u8) -> VersionId {
    format!("chat/v{n}.0.0-{}", format!("{n:02x}").repeat(32))
        .parse()
        .unwrap()
}

pub(crate) fn id(name: &str) -> RolloutId {
    RolloutId::new(name).unwrap()
}

pub(crate) fn plan() -> Plan {
    Plan::from_toml(
        r#"
        alpha = 0.05
        look_every = "5s"
        bake = "30s"
        [metrics]
        faults = { fault = {} }
        [[gates]]
        metric = "faults"
        weight = 1.0
        [[stages]]
        serve = 5.0
        dwell = "2m"
        limit = "20m"
        min_samples = 50
        [[stages]]
        serve = 50.0
        dwell = "2m"
        limit = "20m"
        min_samples = 50
        [triggers]
        candidate_silent = "30s"
        no_verdict = "3m"
        [lease]
        ttl = "20s"
        renew_every = "5s"
        grace = "1m"
        lapses = 9
        [outcomes]
        shift = "2m"
    "#,
    )
    .unwrap()
}

/// A store that can be cut off.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cuttable {
    inner: MemoryStore,
    down: Arc<AtomicBool>,
    /// Takes no entry, and can be read.
    full: Arc<AtomicBool>,
    /// The next append of an entry with this in it is stored, and then reported as lost.
    lose_reply: Arc<Mutex<Option<&'static str>>>,
    reads: Arc<Mutex<Reads>>,
    pub(crate) appends: Arc<AtomicU64>,
    /// Appends that were tried.
    pub(crate) tries: Arc<AtomicU64>,
    /// Pages that were asked for.
    pub(crate) pages: Arc<AtomicU64>,
}

/// What reading the log comes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Reads {
    #[default]
    Whole,
    /// An entry a page.
    Small,
    /// Without the newest entry.
    Behind,
    Down,
    Damaged,
}

impl Cuttable {
    pub(crate) fn cut(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    pub(crate) fn fill(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    pub(crate) fn lose_next_reply(&self) {
        self.lose_reply_about("");
    }

    pub(crate) fn lose_reply_about(&self, what: &'static str) {
        *self.lose_reply.lock().unwrap() = Some(what);
    }

    /// Whether the reply has been lost that was to be lost.
    pub(crate) fn has_lost(&self) -> bool {
        self.lose_reply.lock().unwrap().is_none()
    }

    pub(crate) fn reads(&self, reads: Reads) {
        *self.reads.lock().unwrap() = reads;
    }

    pub(crate) fn tries(&self) -> u64 {
        self.tries.load(Ordering::SeqCst)
    }

    fn up(&self) -> Result<()> {
        if self.down.load(Ordering::SeqCst) {
            Err(Error::transient("the store is cut off"))
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl StateStore for Cuttable {
    async fn acquire(&self, endpoint: &EndpointId) -> Result<Owned> {
        self.up()?;
        self.inner.acquire(endpoint).await
    }

    async fn append(
        &self,
        endpoint: &EndpointId,
        fence: Fence,
        at: Seq,
        entry: &[u8],
        split: Option<&Split>,
    ) -> Result<()> {
        self.tries.fetch_add(1, Ordering::SeqCst);
        self.up()?;
        if self.full.load(Ordering::SeqCst) {
            return Err(Error::transient("no space is left"));
        }
        self.inner.append(endpoint, fence, at, entry, split).await?;
        self.appends.fetch_add(1, Ordering::SeqCst);
        let text = String::from_utf8_lossy(entry);
        let mut about = self.lose_reply.lock().unwrap();
        if about.take_if(|about| text.contains(*about)).is_some() {
            return Err(Error::transient("the reply was lost"));
        }
        Ok(())
    }

    async fn read(&self, endpoint: &EndpointId, from: Seq) -> Result<Page> {
        self.up()?;
        self.pages.fetch_add(1, Ordering::SeqCst);
        let mut page = self.inner.read(endpoint, from).await?;
        let reads = *self.reads.lock().unwrap();
        match reads {
            Reads::Whole => {}
            Reads::Small => {
                page.more |= page.entries.len() > 1;
                page.entries.truncate(1);
            }
            Reads::Behind => drop(page.entries.pop()),
            Reads::Down => return Err(Error::transient("the log cannot be read")),
            Reads::Damaged => return Err(Error::permanent("entry 7 is damaged")),
        }
        Ok(page)
    }

    async fn split(&self, endpoint: &EndpointId) -> Result<Option<Split>> {
        self.up()?;
        self.inner.split(endpoint).await
    }

    fn router_memory(
        &self,
        endpoint: &EndpointId,
        router: &RouterId,
    ) -> Option<Arc<dyn RouterMemory>> {
        self.inner.router_memory(endpoint, router)
    }
}

/// Virtual time from a fixed moment: the same in every run.
#[derive(Debug)]
pub(crate) struct Fixed(tokio::time::Instant);

impl Fixed {
    pub(crate) fn new() -> Self {
        Self(tokio::time::Instant::now())
    }
}

#[async_trait]
impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000).after(self.0.elapsed())
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// One process: dropping it is `kill -9` as far as everything but the store is concerned.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) endpoint: Endpoint,
    random: u64,
    session: u64,
}

/// Probability of a fault by version.
pub(crate) type Faults<'a> = &'a dyn Fn(&VersionId) -> f64;

impl Host {
    pub(crate) async fn start(store: &Cuttable) -> Self {
        Self::with(store, |builder| builder).await
    }

    pub(crate) async fn with(
        store: &Cuttable,
        more: impl FnOnce(EndpointBuilder) -> EndpointBuilder,
    ) -> Self {
        let builder = Endpoint::builder("chat", store.clone(), Bootstrap(version(1)));
        Self::of(more(builder).open().await.unwrap())
    }

    pub(crate) fn of(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            random: 42,
            session: 0,
        }
    }

    pub(crate) fn unit(&mut self) -> f64 {
        // splitmix64
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Serves this many requests of new sessions; returns how many each version got.
    pub(crate) fn serve(&mut self, requests: u32, faults: Faults<'_>) -> BTreeMap<VersionId, u32> {
        let mut served = BTreeMap::new();
        for _ in 0..requests {
            self.session += 1;
            let plane = self.endpoint.data_plane().clone();
            let now = plane.router.now();
            let key = format!("session-{}", self.session);
            let decision = plane.router.decide(&Key::session(key.as_bytes()), now);
            let served_by = VersionId::clone(decision.version().unwrap().id());
            let mut ticket = plane.recorder.begin(decision, now);
            ticket.first_token(now);
            let class = if self.unit() < faults(&served_by) {
                OutcomeClass::UpstreamError
            } else {
                OutcomeClass::Ok
            };
            ticket.finish(class, now.after(Duration::from_millis(80)));
            *served.entry(served_by).or_insert(0) += 1;
        }
        served
    }

    /// How many of 1,000 new sessions the candidate would get right now.
    pub(crate) fn candidate_share(&self) -> usize {
        let router = &self.endpoint.data_plane().router;
        let now = router.now();
        (0..1_000u32)
            .map(|i| format!("probe-{i}"))
            .filter(|key| {
                router.decide(&Key::session(key.as_bytes()), now).role() == Role::Candidate
            })
            .count()
    }

    /// Lets virtual time pass, with this many requests a second.
    pub(crate) async fn live(
        &mut self,
        seconds: u32,
        per_second: u32,
        faults: Faults<'_>,
    ) -> BTreeMap<VersionId, u32> {
        let mut total = BTreeMap::new();
        for _ in 0..seconds {
            for (version, n) in self.serve(per_second, faults) {
                *total.entry(version).or_insert(0) += n;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        total
    }

    /// Stops everything in this process at once.
    pub(crate) async fn kill(self) {
        drop(self.endpoint);
        // Lets the controller's task see that nobody holds the endpoint any more.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// One per cent of all requests fail, whoever serves them.
pub(crate) fn alike(_: &VersionId) -> f64 {
    0.01
}

/// Version 2 fails one request in five.
pub(crate) fn second_is_bad(v: &VersionId) -> f64 {
    if *v == version(2) { 0.2 } else { 0.01 }
}
