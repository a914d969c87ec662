//! Envoy as a router, through its runtime.

mod admin;
mod runtime;
mod wire;

pub use self::runtime::EnvoyRuntime;

use self::admin::Admin;
use self::runtime::Layer;
use self::wire::Value;
use super::remote::{Proxy, Raised, Remote};
use super::served::Served;
use crate::host::{Error, Result, RouterCapabilities, RouterMemory, Support, TrafficRouter};
use async_trait::async_trait;
use llm_rollout::{Fence, Order, Position, RouterClock, RouterId, RouterState, Share, Split};
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Everybody, as a weight.
const ALL: u32 = 10_000;

/// Has Envoy (1.36 or newer) serve splits.
///
/// Weights of clusters and fractions of mirrors are values of Envoy's **runtime**. Envoy asks an [`EnvoyRuntime`] of this host for
/// two layers of it and is told of every change at once: one holds the baseline, and the other, on top of it, the candidate's share, with
/// a time to live. **Envoy itself takes that layer away when it is not renewed, and that is the lease**: with every controller dead,
/// and with Envoy cut off from everybody, the baseline serves. Nothing beside Envoy has to be alive for that. A third layer is for people:
/// what they post to `/runtime_modify` wins over both; what is served is read back from `/runtime`, so that it is noticed, and the next order
/// takes it out again.
///
/// This is the configuration for two versions, as the tests start it:
///
/// ```yaml
#[doc = include_str!("envoy/envoy.yaml")]
/// ```
///
/// Sessions stick by the header that `hash_policy` names, and who is in at 1 % is in at 5 %, but by Envoy's hash: an in-process router
/// would place them elsewhere, and a conversation may flip once per ramp; without the header it is by chance, request by request. What
/// is mirrored is chosen request by request, and the candidate's answers to it are thrown away: engines or a gateway
/// behind Envoy see them (the mirrored request carries the same `x-request-id`, and `-shadow` behind its host), and Envoy counts them with
/// the candidate's cluster. There is no control arm. The weights of all clusters are told, so every cluster of the route needs a version.
///
/// Kept here and in the [`RouterMemory`] are fences, positions, marks and the latch, since Envoy knows none of them: one `EnvoyRouter`
/// per Envoy, whose layers only one `EnvoyRuntime` answers for. What does not work, and how it shows:
///
/// - Envoy cannot reach the host: no share lasts longer than its lease; orders fail as `Transient`, a way back too, but it is kept and
///   told on return. What was told less than five seconds before may still arrive; so much, or a quarter, is taken off the time to live.
///   An Envoy whose process is stopped counts nothing meanwhile: a share may last so much longer.
/// - The admin interface cannot be reached: going back still takes the users off at once, but is not confirmed; shares are
///   not renewed, since nobody knows what is served, and end.
/// - Envoy starts anew: it is told the recorded baseline before it listens (`initial_fetch_timeout`, 15 s, if the host is away: then the
///   weights of its configuration hold; keep them up to date after a promotion). The share counts as lapsed.
/// - What people changed by hand has no time to live, and stays until a router goes back or is told anew.
///
/// ```no_run
/// use llm_rollout::{Epoch, RouterId, Split};
/// use llm_serve_adapters::router::{EnvoyRouter, EnvoyRuntime};
///
/// # async fn open(v1: llm_version_core::VersionId, v2: llm_version_core::VersionId) -> Result<(), Box<dyn std::error::Error>> {
/// let runtime = EnvoyRuntime::listen("127.0.0.1:18000".parse()?).await?;
/// let first = Split::steady(None, v1.clone(), Epoch::default());
/// let router = EnvoyRouter::builder(RouterId::new("edge-1")?, "http://127.0.0.1:9901", &runtime, first)
///     .runtime_key_prefix("llm")
///     .cluster(v1, "chat-v1")
///     .cluster(v2, "chat-v2")
///     .open()?;
/// # Ok(())
/// # }
/// ```
pub struct EnvoyRouter(Remote<Envoy>);

/// Builds an [`EnvoyRouter`].
#[derive(Debug)]
#[must_use = "it does nothing until it is opened"]
pub struct EnvoyRouterBuilder {
    id: RouterId,
    admin: String,
    runtime: EnvoyRuntime,
    first: Split,
    prefix: String,
    clusters: BTreeMap<VersionId, String>,
    memory: Option<Arc<dyn RouterMemory>>,
}

impl EnvoyRouterBuilder {
    /// The prefix of the keys of weights (`PREFIX.CLUSTER`) and of fractions that are mirrored (`PREFIX.mirror.CLUSTER`): `llm`
    /// unless told otherwise.
    pub fn runtime_key_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The cluster that serves a version.
    pub fn cluster(mut self, version: VersionId, cluster: impl Into<String>) -> Self {
        self.clusters.insert(version, cluster.into());
        self
    }

    /// Remembers here what it was told.
    pub fn memory(mut self, memory: Arc<dyn RouterMemory>) -> Self {
        self.memory = Some(memory);
        self
    }

    /// The router. From now on an Envoy that asks for the layers `ID` and `ID-share` is told the baseline.
    ///
    /// # Errors
    /// The address cannot be used, a name that a runtime key cannot hold, two versions with one cluster, a baseline without one, or a
    /// record that cannot be read.
    pub fn open(self) -> Result<EnvoyRouter> {
        let Self {
            id,
            admin,
            runtime,
            first,
            prefix,
            clusters,
            memory,
        } = self;
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let mut names: Vec<_> = clusters.values().collect();
        for name in names.iter().copied().chain([&prefix]) {
            if name.is_empty() || !name.chars().all(plain) || name.starts_with("mirror.") {
                return Err(Error::permanent(format!(
                    "{name:?} cannot be part of a key of Envoy's runtime here: use letters, digits and _-."
                )));
            }
        }
        names.sort();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(Error::permanent(
                "two versions have one cluster: what is read back could not be told apart",
            ));
        }
        let envoy = Envoy {
            admin: Admin::new(&admin)?,
            baseline: runtime.layer(&id.to_string(), false),
            share: runtime.layer(&format!("{id}-share"), true),
            id: id.clone(),
            prefix,
            clusters,
            checked: AtomicU64::new(0),
            _runtime: runtime,
        };
        let mut remote = Remote::open(id, envoy, first, memory)?;
        let baseline = remote.baseline();
        remote.proxy.cluster(&baseline)?;
        remote
            .proxy
            .baseline
            .tell(remote.proxy.steady(&baseline), None);
        remote.proxy.share.tell(Vec::new(), None);
        Ok(EnvoyRouter(remote))
    }
}

impl EnvoyRouter {
    /// Serves this split's baseline the very first time; afterwards what its memory says. `admin` is the address of Envoy's admin
    /// interface.
    pub fn builder(
        id: RouterId,
        admin: impl Into<String>,
        runtime: &EnvoyRuntime,
        first: Split,
    ) -> EnvoyRouterBuilder {
        EnvoyRouterBuilder {
            id,
            admin: admin.into(),
            runtime: runtime.clone(),
            first,
            prefix: "llm".to_owned(),
            clusters: BTreeMap::new(),
            memory: None,
        }
    }

    /// Everything to the baseline at once, and for good: raises are refused until the rollout has ended.
    ///
    /// # Errors
    /// `Transient` if Envoy cannot be reached (a share then ends with its lease), or it could not be made durable.
    pub async fn force_baseline(&self, why: &str) -> Result<()> {
        self.0.force_baseline(why).await
    }
}

impl fmt::Debug for EnvoyRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnvoyRouter")
            .field("id", &self.0.id)
            .field("admin", self.0.proxy.admin.address())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl TrafficRouter for EnvoyRouter {
    fn id(&self) -> &RouterId {
        &self.0.id
    }

    fn capabilities(&self) -> RouterCapabilities {
        RouterCapabilities {
            fencing: Support::Emulated,
            lease: Support::Native,
        }
    }

    async fn observe(&self, fence: Fence) -> Result<RouterState> {
        self.0.observe(fence).await
    }

    async fn set(&self, order: &Order) -> Result<RouterState> {
        self.0.set(order).await
    }

    async fn renew(&self, at: Position, clock: RouterClock) -> Result<RouterState> {
        self.0.renew(at, clock).await
    }
}

/// Envoy between its runtime's layers and its admin interface.
struct Envoy {
    id: RouterId,
    admin: Admin,
    baseline: Arc<Layer>,
    share: Arc<Layer>,
    prefix: String,
    clusters: BTreeMap<VersionId, String>,
    /// The start of Envoy whose configuration has been looked at.
    checked: AtomicU64,
    _runtime: EnvoyRuntime,
}

impl Envoy {
    fn cluster(&self, version: &VersionId) -> Result<&str> {
        let found = self.clusters.get(version).map(String::as_str);
        found.ok_or_else(|| {
            Error::permanent(format!(
                "version {version} has no cluster in Envoy: name it when router {} is built",
                self.id
            ))
        })
    }

    fn weight(&self, cluster: &str) -> String {
        format!("{}.{cluster}", self.prefix)
    }

    fn mirror(&self, cluster: &str) -> String {
        format!("{}.mirror.{cluster}", self.prefix)
    }

    /// Everything to the baseline.
    fn steady(&self, baseline: &VersionId) -> Vec<(String, Value)> {
        let mut values = Vec::new();
        for (version, cluster) in &self.clusters {
            let weight = if version == baseline { ALL } else { 0 };
            values.push((self.weight(cluster), Value::Number(weight)));
            values.push((self.mirror(cluster), Value::Fraction(0)));
        }
        values
    }

    /// What a raise puts on top of that.
    fn raised(&self, baseline: &VersionId, raise: &Raised<'_>) -> Result<Vec<(String, Value)>> {
        let (baseline, candidate) = (self.cluster(baseline)?, self.cluster(raise.candidate)?);
        let share = u32::from(raise.share.basis_points());
        let mirror = u32::from(raise.mirror.basis_points());
        Ok(vec![
            (self.weight(baseline), Value::Number(ALL - share)),
            (self.weight(candidate), Value::Number(share)),
            (self.mirror(candidate), Value::Fraction(mirror)),
        ])
    }

    /// Takes out what somebody has changed by hand, if it is in the way.
    async fn overrule(&self, wanted: &[(String, Value)]) -> Result<()> {
        let differing = async || {
            let holds = self.admin.runtime().await?;
            let differs = |(key, value): &&(String, Value)| {
                let holds = holds.get(key);
                match *value {
                    Value::Number(n) => holds.and_then(|text| weight(text)) != Some(n.into()),
                    Value::Fraction(n) => holds.and_then(|text| fraction(text)) != Some(n.into()),
                }
            };
            Ok::<_, Error>(
                wanted
                    .iter()
                    .filter(differs)
                    .map(|(key, _)| key.as_str())
                    .collect::<Vec<_>>(),
            )
        };
        let changed = differing().await?;
        if changed.is_empty() {
            return Ok(());
        }
        self.admin.clear(&changed).await?;
        let still = differing().await?;
        if still.is_empty() {
            return Ok(());
        }
        Err(Error::permanent(format!(
            "Envoy's runtime does not take over {}: check that {} is the admin interface of the Envoy that asks for the layers of router {}, and that no layer but that of `admin_layer` is above them",
            still.join(", "),
            self.admin.address(),
            self.id
        )))
    }

    /// What is configured must be what is told, or it would have no effect.
    async fn check_routes(&self) -> Result<()> {
        let weighted = self.admin.clusters(&self.prefix).await?;
        for cluster in self.clusters.values() {
            if !weighted.contains(cluster) {
                return Err(Error::permanent(format!(
                    "Envoy has no weighted cluster {cluster} with runtime_key_prefix {}: add it to the route",
                    self.prefix
                )));
            }
        }
        match weighted
            .iter()
            .find(|name| !self.clusters.values().any(|known| known == *name))
        {
            Some(unknown) => Err(Error::permanent(format!(
                "Envoy's route has a cluster {unknown:?} that router {} knows no version of: name it when the router is built",
                self.id
            ))),
            None => Ok(()),
        }
    }
}

/// A weight, as Envoy shows it.
fn weight(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// A fraction as Envoy shows it, in ten-thousandths: a number alone is of a hundred; anything else is the text form of a protocol buffer,
/// or what somebody has written by hand.
fn fraction(text: &str) -> Option<u64> {
    if let Some(percent) = weight(text) {
        return Some(percent.saturating_mul(100).min(ALL.into()));
    }
    let (_, numerator) = ["number_value", "numerator"]
        .into_iter()
        .find_map(|name| text.split_once(name))?;
    let digits = numerator.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit());
    let numerator: u64 = digits.get(..end.unwrap_or(digits.len()))?.parse().ok()?;
    let points = if text.contains("TEN_THOUSAND") {
        numerator
    } else if text.contains("MILLION") {
        numerator / 100
    } else {
        numerator.saturating_mul(100)
    };
    Some(points.min(ALL.into()))
}

#[async_trait]
impl Proxy for Envoy {
    fn check(&self, split: &Split) -> Result<()> {
        if split.control != Share::NONE {
            return Err(Error::permanent(format!(
                "router {} has no control arm: take it out of the plan",
                self.id
            )));
        }
        let mut versions = split.candidate.iter().chain([&split.baseline]);
        versions.try_for_each(|version| self.cluster(version).map(drop))
    }

    async fn life(&self) -> Result<String> {
        let (baseline, share) = (self.baseline.life()?, self.share.life()?);
        if self.checked.load(Ordering::Relaxed) != share {
            self.check_routes().await?;
            self.checked.store(share, Ordering::Relaxed);
        }
        Ok(format!("{baseline} {share}"))
    }

    async fn served(&self, told: &Split) -> Result<Served> {
        let runtime = self.admin.runtime().await?;
        let mut weights = Vec::new();
        let mut mirrored = None;
        for (version, cluster) in &self.clusters {
            let holds = runtime.get(&self.weight(cluster));
            let Some(weight) = holds.and_then(|text| weight(text)) else {
                return Err(Error::permanent(format!(
                    "Envoy's runtime at {} has no weight for {cluster}: check that its layers ask for {} and {}-share",
                    self.admin.address(),
                    self.id,
                    self.id
                )));
            };
            weights.push((version, weight));
            // What cannot be read is not what it was told.
            let mirror = runtime
                .get(&self.mirror(cluster))
                .map_or(0, |text| fraction(text).unwrap_or(ALL.into()));
            if mirror > 0 {
                mirrored = Some((version, mirror));
            }
        }
        let Some(mut served) = Served::by_weight(weights, told) else {
            return Err(Error::permanent(
                "Envoy serves nobody: all its weights are 0; take out what was changed by hand",
            ));
        };
        if let Some((version, mirror)) = mirrored {
            let mirror = u16::try_from(mirror).ok();
            let mirror = mirror.and_then(|points| Share::new(points).ok());
            served.mirror = mirror.unwrap_or(Share::ALL);
            served.candidate.get_or_insert_with(|| version.clone());
        }
        Ok(served)
    }

    async fn apply(&self, baseline: &VersionId, raise: Option<Raised<'_>>) -> Result<()> {
        self.cluster(baseline)?;
        let mut wanted = self.steady(baseline);
        let changed = self.baseline.tell(wanted.clone(), None);
        let taken = async || {
            if changed {
                self.baseline.taken().await
            } else {
                Ok(())
            }
        };
        if let Some(raise) = raise {
            let raised = self.raised(baseline, &raise)?;
            taken().await?;
            self.share.tell(raised.clone(), Some(raise.until));
            self.share.taken().await?;
            wanted.retain(|(key, _)| !raised.iter().any(|(of, _)| of == key));
            wanted.extend(raised);
            return self.overrule(&wanted).await;
        }
        // The new baseline first, so that after a promotion nobody is served by the old one in between.
        let baseline = taken().await;
        self.share.tell(Vec::new(), None);
        let share = self.share.taken().await;
        baseline.and(share)?;
        self.overrule(&wanted).await
    }
}

#[cfg(test)]
mod tests;
