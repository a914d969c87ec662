//! Made-up requests through the router and the recorder of an endpoint, in this process and in real time: for scenarios in which
//! it does not matter what serves them.

use llm_rollout::Plan;
use llm_serve_adapters::recorder::OutcomeClass;
use llm_serve_adapters::router::{Key, Role};
use llm_serve_adapters::{DataPlane, Endpoint};
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;

pub(crate) fn version(major: u8) -> VersionId {
    format!("chat/v{major}.0.0-{}", format!("{major:02x}").repeat(32))
        .parse()
        .unwrap()
}

/// A plan of seconds: half of the users for this long at the least, then it bakes this long. Its lease outlasts every test, so that
/// what takes users off is not that it has run out.
pub(crate) fn plan(dwell: &str, bake: &str) -> Plan {
    let plan = r#"
        alpha = 0.05
        look_every = "1s"
        bake = "BAKE"
        [metrics]
        faults = { fault = {} }
        [[gates]]
        metric = "faults"
        weight = 1.0
        [[stages]]
        serve = 50.0
        dwell = "DWELL"
        limit = "20m"
        min_samples = 50
        [lease]
        ttl = "5m"
        renew_every = "2s"
        grace = "10m"
        lapses = 9
        [outcomes]
        shift = "2m"
    "#;
    Plan::from_toml(&plan.replace("DWELL", dwell).replace("BAKE", bake)).unwrap()
}

/// Users who ask all the time, each once.
pub(crate) struct Users {
    plane: DataPlane,
    /// The major version that fails every request; 0 for none.
    broken: Arc<AtomicU32>,
    served: Arc<Mutex<BTreeMap<VersionId, u64>>>,
    end: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Users {
    pub(crate) fn begin(endpoint: &Endpoint) -> Self {
        let plane = endpoint.data_plane().clone();
        let (broken, end) = (
            Arc::new(AtomicU32::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let served = Arc::new(Mutex::new(BTreeMap::new()));
        let task = {
            let (plane, broken, end) = (plane.clone(), Arc::clone(&broken), Arc::clone(&end));
            let served = Arc::clone(&served);
            async move {
                let mut session = 0_u64;
                while !end.load(Ordering::Relaxed) {
                    session += 1;
                    let now = plane.router.now();
                    let key = format!("session-{session}");
                    let decision = plane.router.decide(&Key::session(key.as_bytes()), now);
                    let by = VersionId::clone(decision.version().unwrap().id());
                    let mut ticket = plane.recorder.begin(decision, now);
                    let broken = broken.load(Ordering::Relaxed);
                    ticket.first_token(now);
                    let class = if by.version().major() == broken {
                        OutcomeClass::UpstreamError
                    } else {
                        OutcomeClass::Ok
                    };
                    ticket.finish(class, now.after(Duration::from_millis(50)));
                    *served.lock().unwrap().entry(by).or_insert(0) += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        };
        Self {
            plane,
            broken,
            served,
            end,
            task: tokio::spawn(task),
        }
    }

    /// From now on every request to this version fails.
    pub(crate) fn broken(&self, major: u8) {
        self.broken.store(major.into(), Ordering::Relaxed);
    }

    /// How many of 1,000 new sessions the candidate would get right now.
    pub(crate) fn candidate_share(&self) -> usize {
        let now = self.plane.router.now();
        let asked = (0..1_000).map(|i| format!("probe-{i}"));
        let role = |key: &String| {
            self.plane
                .router
                .decide(&Key::session(key.as_bytes()), now)
                .role()
        };
        asked.filter(|key| role(key) == Role::Candidate).count()
    }

    /// Requests that each version has had.
    pub(crate) fn served(&self, major: u8) -> u64 {
        let served = self.served.lock().unwrap();
        served.get(&version(major)).copied().unwrap_or_default()
    }

    pub(crate) async fn finish(self) {
        self.end.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}
