//! A rollout of seconds in front of servers that are asked by version: users ask, each request is decided, asked and counted.

use futures_util::future::BoxFuture;
use llm_rollout::Plan;
use llm_serve_adapters::DataPlane;
use llm_serve_adapters::recorder::OutcomeClass;
use llm_serve_adapters::router::Key;
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;

/// Asks a version; whether it answered, and as itself.
pub(crate) type Ask = Arc<dyn Fn(VersionId) -> BoxFuture<'static, bool> + Send + Sync>;

/// Answered and failed requests by version.
pub(crate) type Tally = BTreeMap<VersionId, (u64, u64)>;

/// A version of the endpoint "chat".
pub(crate) fn version(n: u8) -> VersionId {
    format!("chat/v{n}.0.0-{}", format!("{n:02x}").repeat(32))
        .parse()
        .unwrap()
}

/// A tenth, a half, everybody, within seconds; faults are what matters.
pub(crate) fn plan() -> Plan {
    Plan::from_toml(
        r#"
        alpha = 0.05
        look_every = "100ms"
        bake = "500ms"
        [metrics]
        faults = { fault = {} }
        [[gates]]
        metric = "faults"
        weight = 1.0
        [[stages]]
        serve = 10.0
        dwell = "700ms"
        limit = "60s"
        min_samples = 10
        [[stages]]
        serve = 50.0
        dwell = "700ms"
        limit = "60s"
        min_samples = 20
        [[stages]]
        serve = 100.0
        dwell = "300ms"
        limit = "60s"
        [recovery]
        drain = "5s"
        [triggers]
        candidate_silent = "20s"
        no_verdict = "40s"
        [lease]
        ttl = "8s"
        renew_every = "2s"
        lapses = 50
        longest_lapse = "1h"
    "#,
    )
    .unwrap()
}

/// Users who ask until they are dropped.
#[derive(Debug)]
pub(crate) struct Users {
    _asking: JoinSet<()>,
    tally: Arc<Mutex<Tally>>,
}

impl Users {
    pub(crate) fn start(plane: &DataPlane, ask: &Ask) -> Self {
        let (mut asking, tally) = (JoinSet::new(), Arc::<Mutex<Tally>>::default());
        for user in 0..3 {
            let (plane, ask, tally) = (plane.clone(), Arc::clone(ask), Arc::clone(&tally));
            asking.spawn(async move {
                for request in 0_u64.. {
                    let key = format!("user-{user}-{request}");
                    let decision = plane.decide(&Key::session(key.as_bytes()), plane.router.now());
                    let version = VersionId::clone(decision.version().unwrap().id());
                    let mut ticket = plane.recorder.begin(decision, plane.router.now());
                    let answered = ask(version.clone()).await;
                    let now = plane.router.now();
                    let class = if answered {
                        ticket.first_token(now);
                        OutcomeClass::Ok
                    } else {
                        OutcomeClass::UpstreamError
                    };
                    ticket.finish(class, now);
                    {
                        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                        let (ok, failed) = tally.entry(version).or_default();
                        *(if answered { ok } else { failed }) += 1;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
        Self {
            _asking: asking,
            tally,
        }
    }

    /// What has happened since this was asked last.
    pub(crate) fn take(&self) -> Tally {
        std::mem::take(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// In words.
pub(crate) fn shown(tally: &Tally) -> String {
    let counts = tally.iter().map(|(version, (ok, failed))| {
        format!("v{} answered {ok} and failed {failed}", version.version())
    });
    counts.collect::<Vec<_>>().join(", ")
}
