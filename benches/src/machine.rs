//! Group `machine`: a thousand rollouts in one process, and inputs that are no news.

use crate::data::version;
use crate::figure::{Figure, Limit};
use crate::{Error, Scale};
use async_trait::async_trait;
use llm_gates::{Counts, Increment, Window};
use llm_rollout::{EndpointId, Fence, Heartbeat, Phase, Plan, RouterId, Seq, Split, Timestamp};
use llm_serve_adapters::host::{
    Cursor, MetricSource, Owned, Page, Query, Reading, Result, RouterMemory, StateStore,
};
use llm_serve_adapters::{Bootstrap, Endpoint};
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::time::Duration;

/// Its name.
pub const GROUP: &str = "machine";

/// Endpoints in the process, each with a rollout.
const ENDPOINTS: usize = 1_000;
/// Virtual seconds over which the cost is taken, one look each.
const SECONDS: u64 = 30;

/// Acknowledges and forgets: what is left is the work without I/O.
#[derive(Debug, Clone, Default)]
struct Forgetful;

#[async_trait]
impl StateStore for Forgetful {
    async fn acquire(&self, _: &EndpointId) -> Result<Owned> {
        Ok(Owned {
            fence: Fence::new(1),
            next: Seq::default(),
        })
    }

    async fn append(
        &self,
        _: &EndpointId,
        _: Fence,
        _: Seq,
        _: &[u8],
        _: Option<&Split>,
    ) -> Result<()> {
        Ok(())
    }

    async fn read(&self, _: &EndpointId, _: Seq) -> Result<Page> {
        Ok(Page::default())
    }

    async fn split(&self, _: &EndpointId) -> Result<Option<Split>> {
        Ok(None)
    }

    fn router_memory(&self, _: &EndpointId, _: &RouterId) -> Option<Arc<dyn RouterMemory>> {
        None
    }
}

/// Ten requests a second, none of which fails.
#[derive(Debug)]
struct Steady;

#[async_trait]
impl MetricSource for Steady {
    async fn open(&self, _: Query<'_>, now: Timestamp) -> Result<Cursor> {
        Ok(Cursor::new(now.as_millis().to_string()))
    }

    async fn read(&self, query: Query<'_>, cursor: &Cursor, now: Timestamp) -> Result<Reading> {
        let from = cursor.as_str().parse().unwrap_or(0);
        let counts = || Increment::Binary {
            candidate: Counts::new(1, 0),
            baseline: Counts::new(9, 0),
        };
        Ok(Reading {
            window: Window {
                epoch: query.epoch.get(),
                from,
                to: now.as_millis(),
                metrics: query
                    .metrics
                    .keys()
                    .map(|name| (name.clone(), counts()))
                    .collect(),
            },
            cursor: Cursor::new(now.as_millis().to_string()),
            heartbeat: Some(Heartbeat::default()),
        })
    }
}

fn plan() -> std::result::Result<Plan, Error> {
    Ok(Plan::from_toml(
        r#"
        alpha = 0.05
        look_every = "1s"
        [metrics]
        faults = { fault = {} }
        slow = { first_token_over = "800ms" }
        refused = { flag = "refused" }
        [[gates]]
        metric = "faults"
        weight = 0.4
        [[gates]]
        metric = "slow"
        weight = 0.3
        [[gates]]
        metric = "refused"
        weight = 0.3
        [[stages]]
        serve = 10.0
        dwell = "24h"
        "#,
    )?)
}

/// Processor time of this thread, in seconds.
fn used() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Resident memory in bytes, where the system tells.
fn resident() -> Option<f64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: f64 = pages.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as f64)
}

/// Measures the group.
///
/// # Errors
/// A rollout cannot be set up, or does not get as far as its looks.
pub fn run(_: Scale) -> std::result::Result<Vec<Figure>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    runtime.block_on(measured())
}

async fn measured() -> std::result::Result<Vec<Figure>, Error> {
    let (plan, before) = (plan()?, resident());
    let mut endpoints = Vec::with_capacity(ENDPOINTS);
    for n in 0..ENDPOINTS {
        let endpoint = Endpoint::builder(&format!("chat-{n}"), Forgetful, Bootstrap(version(1)?))
            .source(Steady)
            .flags(["refused"])
            .open()
            .await?;
        endpoint
            .submit("v2".parse()?, version(2)?, plan.clone())
            .await?;
        endpoints.push(endpoint);
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    let logged = |endpoints: &[Endpoint]| -> u64 {
        endpoints.iter().map(|e| e.status().ledger.next.get()).sum()
    };
    let (start, looked) = (used(), logged(&endpoints));
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    let (cost, looks) = (used() - start, logged(&endpoints) - looked);
    let soaking = |e: &Endpoint| {
        let status = e.status();
        let rollout = status.ledger.rollout.as_ref();
        rollout.is_some_and(|r| matches!(r.phase(), Phase::Soaking { .. }))
    };
    if !endpoints.iter().all(soaking) {
        return Err("not every rollout is soaking".into());
    }
    let wanted = ENDPOINTS as u64 * SECONDS;
    if looks < wanted * 9 / 10 {
        return Err(format!("{looks} looks were logged where {wanted} were due").into());
    }
    let share = cost / SECONDS as f64;
    let name = format!("{ENDPOINTS} endpoints, a rollout and a look a second each, without I/O");
    let mut figures = vec![
        Figure::new(GROUP, name, share, "of a core").limit(Limit::AtMost(0.1)),
        Figure::new(
            GROUP,
            "one look of three gates: read, judge, read back, decide, encode, apply",
            cost / looks as f64 * 1e6,
            "us",
        ),
    ];
    if let (Some(before), Some(after)) = (before, resident()) {
        figures.push(Figure::new(
            GROUP,
            "memory of an endpoint with a rollout: controller, router, recorder",
            (after - before) / ENDPOINTS as f64 / 1024.0,
            "KiB",
        ));
    }
    Ok(figures)
}
