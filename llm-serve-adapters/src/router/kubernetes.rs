//! Objects of Kubernetes as routers: `HTTPRoute` of the Gateway API, `VirtualService` of Istio.

mod api;
mod object;
#[cfg(test)]
mod tests;

use self::api::{Object, Replaced};
use self::object::{Kind, Remembered};
use super::core::{Refused, RouterCore};
use super::refused;
use super::served::{Served, due, told};
use crate::SystemClock;
use crate::host::{
    Clock as _, Error, ErrorKind, Result, RouterCapabilities, Support, TrafficRouter,
};
use async_trait::async_trait;
use llm_rollout::{
    Direction, Fence, Order, Position, RouterClock, RouterId, RouterState, Share, Split, Timestamp,
};
use llm_version_core::VersionId;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::AbortHandle;

/// How often it is tried again if somebody else writes the object at the same time.
const TRIES: u32 = 5;
/// How long the guard waits before it tries again to take users off.
const GUARD: Duration = Duration::from_secs(1);

/// Has what serves an `HTTPRoute` (any implementation of the Gateway API) or a `VirtualService` (Istio) serve splits, by the weights
/// that the object gives to the versions' services.
///
/// What a router must remember (fences, positions, marks, the latch) is written with the weights, in one replacement of the object, as
/// its annotation `llm-serve-adapters/router`. A replacement is refused by the API server if anybody has changed the object since it was
/// read; it is then read and decided anew. So replicas of a host may have a router each for one object: the newest fence wins, and whoever
/// takes over first takes a share away that it finds there. What is read back is what the object says. An `HTTPRoute` counts once every gateway has
/// reported that it serves this generation; a `VirtualService` says nothing of that, so that its proxies may lag behind.
///
/// Its limits, which are the product's:
///
/// - **The lease is emulated.** Kubernetes does not take weights back by itself: a guard in this process does when the lease ends, and
///   tries until it succeeds, also after the router was dropped. If all processes that have a router for the object die, or none
///   reaches the API server, a share stays until one is back. Let them have replicas on several nodes.
/// - **Conversations do not stick** unless the gateway keeps sessions by itself: weights place requests.
/// - There is neither a control arm nor a mirror, and a `VirtualService` has whole percents only: other plans are refused.
/// - Who applies manifests over it (Argo CD, Flux) must leave weights and annotation alone.
///
/// The host brings its own [`kube::Client`], with the TLS and the credentials that it uses, and chooses a version of `k8s-openapi`
/// (a feature such as `v1_33`) in its own `Cargo.toml`, as that crate asks. The role needs `get` and `update` of the object.
///
/// ```no_run
/// use llm_rollout::{Epoch, RouterId, Split};
/// use llm_serve_adapters::router::KubernetesRouter;
///
/// # fn open(client: kube::Client, v1: llm_version_core::VersionId, v2: llm_version_core::VersionId) -> Result<(), Box<dyn std::error::Error>> {
/// let first = Split::steady(None, v1.clone(), Epoch::default());
/// // For Istio: `virtual_service`, and targets such as "chat/v1" (host and subset).
/// let router = KubernetesRouter::http_route(RouterId::new("edge")?, client, "models", "chat", first)
///     .target(v1, "chat-v1")
///     .target(v2, "chat-v2")
///     .open()?;
/// # Ok(())
/// # }
/// ```
pub struct KubernetesRouter(Arc<Shared>);

/// Builds a [`KubernetesRouter`].
#[must_use = "it does nothing until it is opened"]
pub struct KubernetesRouterBuilder {
    id: RouterId,
    object: Object,
    first: Split,
    targets: BTreeMap<VersionId, String>,
}

impl KubernetesRouterBuilder {
    /// What serves a version: the service's name in an `HTTPRoute`; `HOST` or `HOST/SUBSET` in a `VirtualService`. Each rule of the
    /// object that has such a target serves the split.
    pub fn target(mut self, version: VersionId, target: impl Into<String>) -> Self {
        self.targets.insert(version, target.into());
        self
    }

    /// The router. Does not connect yet.
    ///
    /// # Errors
    /// Two versions have one target.
    pub fn open(self) -> Result<KubernetesRouter> {
        let mut names: Vec<_> = self.targets.values().collect();
        names.sort();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(Error::permanent(
                "two versions have one target: what is read back could not be told apart",
            ));
        }
        let random = RandomState::new();
        let boot = random.hash_one("boot");
        Ok(KubernetesRouter(Arc::new(Shared {
            id: self.id,
            object: self.object,
            targets: self.targets,
            clock: SystemClock::new(),
            random,
            control: Mutex::new(Control {
                core: RouterCore::new(boot, self.first),
                boot,
                written: false,
                owed: false,
                guard: None,
            }),
        })))
    }
}

impl fmt::Debug for KubernetesRouterBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesRouterBuilder")
            .field("id", &self.id)
            .field("object", &self.object.to_string())
            .finish_non_exhaustive()
    }
}

impl KubernetesRouter {
    /// The weights of this `HTTPRoute`. An object without the annotation is taken to serve this split's baseline.
    pub fn http_route(
        id: RouterId,
        client: kube::Client,
        namespace: impl Into<String>,
        name: impl Into<String>,
        first: Split,
    ) -> KubernetesRouterBuilder {
        Self::builder(
            Kind::HttpRoute,
            id,
            client,
            namespace.into(),
            name.into(),
            first,
        )
    }

    /// The same of this `VirtualService`.
    pub fn virtual_service(
        id: RouterId,
        client: kube::Client,
        namespace: impl Into<String>,
        name: impl Into<String>,
        first: Split,
    ) -> KubernetesRouterBuilder {
        Self::builder(
            Kind::VirtualService,
            id,
            client,
            namespace.into(),
            name.into(),
            first,
        )
    }

    fn builder(
        kind: Kind,
        id: RouterId,
        client: kube::Client,
        namespace: String,
        name: String,
        first: Split,
    ) -> KubernetesRouterBuilder {
        KubernetesRouterBuilder {
            id,
            object: Object {
                client,
                kind,
                namespace,
                name,
            },
            first,
            targets: BTreeMap::new(),
        }
    }

    /// Everything to the baseline at once, and for good: raises are refused until the rollout has ended.
    ///
    /// # Errors
    /// `Transient` if the object cannot be written now; the guard tries again while this process lives.
    pub async fn force_baseline(&self, why: &str) -> Result<()> {
        let why = why.to_owned();
        let force = move |core: &mut RouterCore, now| {
            core.force_baseline(&why, now);
            Ok(())
        };
        let change = Change::new(Manner::ComeWhatMay, force);
        self.0.exchange(change).await.map(drop)
    }
}

impl fmt::Debug for KubernetesRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesRouter")
            .field("id", &self.0.id)
            .field("object", &self.0.object.to_string())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl TrafficRouter for KubernetesRouter {
    fn id(&self) -> &RouterId {
        &self.0.id
    }

    fn capabilities(&self) -> RouterCapabilities {
        RouterCapabilities {
            fencing: Support::Emulated,
            lease: Support::Emulated,
        }
    }

    async fn observe(&self, fence: Fence) -> Result<RouterState> {
        let observe = move |core: &mut RouterCore, now| core.observe(fence, now);
        let change = Change::new(Manner::Observe, observe);
        self.0.exchange(change).await
    }

    async fn set(&self, order: &Order) -> Result<RouterState> {
        self.0.check(&order.split)?;
        let told = order.clone();
        let set = move |core: &mut RouterCore, now| core.set(&told, now);
        let manner = if order.direction == Direction::Back {
            Manner::ComeWhatMay
        } else {
            Manner::Order
        };
        self.0.exchange(Change::new(manner, set)).await
    }

    async fn renew(&self, at: Position, clock: RouterClock) -> Result<RouterState> {
        let renew = move |core: &mut RouterCore, now| core.renew(at, clock, now);
        let change = Change::new(Manner::Renew, renew);
        self.0.exchange(change).await
    }
}

type Act = dyn Fn(&mut RouterCore, Timestamp) -> std::result::Result<(), Refused> + Send + Sync;

/// What is to happen to the router's rules, and to the object, in one exchange.
struct Change {
    act: Box<Act>,
    manner: Manner,
}

impl Change {
    fn new(
        manner: Manner,
        act: impl Fn(&mut RouterCore, Timestamp) -> std::result::Result<(), Refused>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let act = Box::new(act);
        Self { act, manner }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// The object's weights stay as they are, unless they are owed.
    Observe,
    /// As well; and what somebody has changed is told, not prolonged.
    Renew,
    /// The object's weights are written as the rules say, whatever they are.
    Order,
    /// As well; and it counts even while the object cannot be read or written: the guard writes it later.
    ComeWhatMay,
    /// As an order; but what another process has written since is left alone.
    Guard,
}

/// What the router and its guard share.
struct Shared {
    id: RouterId,
    object: Object,
    targets: BTreeMap<VersionId, String>,
    clock: SystemClock,
    random: RandomState,
    control: Mutex<Control>,
}

/// What this process wants the object to say, and knows of it.
struct Control {
    core: RouterCore,
    /// Which life of this program: an object with another one has been written by somebody else since.
    boot: u64,
    /// Whether the object has been seen with this boot.
    written: bool,
    /// The weights may differ from what the rules say.
    owed: bool,
    /// Takes users off when the lease ends.
    guard: Option<AbortHandle>,
}

impl Control {
    fn pass(&mut self, now: Timestamp) {
        let served = self.core.deadline().is_some();
        self.core.pass(now);
        self.owed |= served && self.core.deadline().is_none();
    }
}

impl Shared {
    /// Whether the object can serve this split.
    fn check(&self, split: &Split) -> Result<()> {
        if split.control != Share::NONE || split.mirror != Share::NONE {
            return Err(Error::permanent(format!(
                "router {} has neither a control arm nor a mirror: take them out of the plan",
                self.id
            )));
        }
        self.object.kind.weights(split.share)?;
        let mut versions = split.candidate.iter().chain([&split.baseline]);
        versions.try_for_each(|version| self.target(version).map(drop))
    }

    fn target(&self, version: &VersionId) -> Result<&str> {
        let target = self.targets.get(version).map(String::as_str);
        target.ok_or_else(|| {
            Error::permanent(format!(
                "version {version} has no target in {}: name it when router {} is built",
                self.object, self.id
            ))
        })
    }

    /// To its end, even if nobody waits for it any more: what has been written must be known.
    async fn exchange(self: &Arc<Self>, change: Change) -> Result<RouterState> {
        let shared = Arc::clone(self);
        let exchange = tokio::spawn(async move { shared.exchanged(&change).await });
        let ended = exchange.await;
        ended.unwrap_or_else(|e| Err(Error::transient("the exchange was broken off").because(e)))
    }

    /// Reads the object, does what is to happen, and writes it if that changes anything; anew if somebody else has written meanwhile.
    async fn exchanged(self: &Arc<Self>, change: &Change) -> Result<RouterState> {
        let mut control = self.control.lock().await;
        let mut outcome = Err(Error::transient(format!(
            "{} is written by others all the time: try again",
            self.object
        )));
        for _ in 0..TRIES {
            match self.attempt(&mut control, change).await {
                Ok(None) => {}
                Ok(Some(state)) => {
                    outcome = Ok(state);
                    break;
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        if let (Err(error), true) = (&outcome, change.manner == Manner::ComeWhatMay)
            && error.kind() != ErrorKind::Fenced
        {
            let mut next = control.core.clone();
            if (change.act)(&mut next, self.clock.now()).is_ok() {
                control.core = next;
                control.owed = true;
            }
        }
        self.guard(&mut control);
        outcome
    }

    /// Once; none if somebody else has written meanwhile.
    async fn attempt(&self, control: &mut Control, change: &Change) -> Result<Option<RouterState>> {
        control.pass(self.clock.now());
        let mut object = self.object.get().await?;
        let found = Remembered::of(&object)?;
        let own = match &found {
            Some(remembered) => remembered.boot == control.boot,
            // New to it; or the object was made anew, and has forgotten.
            None => !control.written,
        };
        let now = self.clock.now();
        if own {
            control.written = found.is_some();
        } else if change.manner == Manner::Guard {
            // Whoever has written it has a guard for it.
            control.core = control.core.restarted(control.boot);
            control.owed = false;
            return Err(Error::permanent(
                "somebody else has written the object since",
            ));
        } else {
            self.adopt(control, found, now)?;
        }
        let exposed = control.core.raised(now);
        control.pass(now);
        let served = self.served(control.core.split(), &object)?;
        let split = control.core.split();
        if change.manner == Manner::Renew
            && exposed
            && (&served.baseline, served.share) != (&split.baseline, split.share)
        {
            // What somebody has changed is told, not prolonged.
            self.object.kind.taken(&object)?;
            return Ok(Some(told(&mut control.core, served, now)));
        }
        let mut next = control.core.clone();
        (change.act)(&mut next, now).map_err(|e| refused(&self.id, &e))?;
        let keeps = matches!(change.manner, Manner::Observe | Manner::Renew);
        let weights = !keeps || control.owed;
        let mut news = Remembered::write(&mut object, control.boot, &next)?;
        if weights {
            let before = object.get("spec").cloned();
            self.write(&mut object, &next, now)?;
            news |= object.get("spec") != before.as_ref();
        }
        if news {
            object = match self.object.replace(&object).await? {
                Replaced::Now(object) => object,
                Replaced::Meanwhile => return Ok(None),
                Replaced::Perhaps(error) => {
                    // What may have been written is what is wanted, until the object says something else.
                    control.core = next;
                    control.owed |= weights;
                    return Err(error);
                }
            };
        }
        control.core = next;
        control.written = true;
        control.owed &= !weights;
        self.object.kind.taken(&object)?;
        let served = self.served(control.core.split(), &object)?;
        Ok(Some(told(&mut control.core, served, self.clock.now())))
    }

    /// Goes on from what somebody else has written since, or from what the object has forgotten, as after a restart.
    fn adopt(
        &self,
        control: &mut Control,
        found: Option<Remembered>,
        now: Timestamp,
    ) -> Result<()> {
        let boot = self.random.hash_one((control.boot, now.as_millis()));
        control.core = match found {
            Some(remembered) => remembered.restored(boot)?,
            None => control.core.restarted(boot),
        };
        // A share that is still served ended with the life of who ordered it.
        control.owed = control.core.lapsed();
        (control.boot, control.written) = (boot, false);
        Ok(())
    }

    /// What the rules say.
    fn write(&self, object: &mut Value, core: &RouterCore, now: Timestamp) -> Result<()> {
        let split = core.split();
        let baseline = self.target(&split.baseline)?;
        let (kind, known) = (self.object.kind, self.known());
        let raised = split
            .candidate
            .as_ref()
            .filter(|_| due(core, now).is_some());
        let share = raised.map_or(Share::NONE, |_| split.share);
        let (share, rest) = kind.weights(share)?;
        let mut to = vec![(baseline, rest)];
        if let Some(candidate) = raised {
            to.push((self.target(candidate)?, share));
        }
        for rule in kind.read(object, &known)? {
            if let Some((missing, _)) = to.iter().find(|(name, _)| !rule.contains_key(*name)) {
                return Err(Error::permanent(format!(
                    "a rule of {} has no target {missing:?}: add it, with the weight 0",
                    self.object
                )));
            }
        }
        kind.write(object, &known, &to);
        Ok(())
    }

    fn known(&self) -> Vec<&str> {
        self.targets.values().map(String::as_str).collect()
    }

    /// What the object says. Where its rules differ, what differs from what was told.
    fn served(&self, told: &Split, object: &Value) -> Result<Served> {
        let rules = self.object.kind.read(object, &self.known())?;
        let mut all = None;
        for rule in rules {
            let targets = self.targets.iter();
            let weights =
                targets.map(|(version, name)| (version, rule.get(name).copied().unwrap_or(0)));
            let Some(served) = Served::by_weight(weights.collect(), told) else {
                return Err(Error::permanent(format!(
                    "{} serves nobody by a rule, all of whose weights are 0: take out what was changed by hand",
                    self.object
                )));
            };
            let as_told = (&served.baseline, served.share) == (&told.baseline, told.share);
            if all.is_none() || !as_told {
                all = Some(served);
            }
        }
        all.ok_or_else(|| Error::permanent(format!("{} serves nobody", self.object)))
    }

    /// Has users taken off when the lease ends, or as soon as the object can be written.
    fn guard(self: &Arc<Self>, control: &mut Control) {
        if let Some(guard) = control.guard.take() {
            guard.abort();
        }
        let now = self.clock.now();
        let wait = match control.core.deadline() {
            _ if control.owed => GUARD,
            Some(deadline) => deadline.since(now),
            None => return,
        };
        let shared = Arc::clone(self);
        let guard = tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let change = Change::new(Manner::Guard, |_, _| Ok(()));
            // It sets the next guard, if one is needed.
            let _tried_again = shared.exchanged(&change).await;
        });
        control.guard = Some(guard.abort_handle());
    }
}
