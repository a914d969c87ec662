//! What to do next: a pure rollout state machine for LLM versions.
//!
//! A [`Rollout`] is data. [`Rollout::decide`] says what an input leads to, as a [`Step`] to log; [`Rollout::apply`] folds a
//! logged step in and never consults plan, gates or time, so an old log replays for ever. Nothing here reads a clock, waits,
//! or talks to anybody: that is what a controller does, in the order decide, append, apply, carry out, feed back.
//!
//! ## A plan before it runs
//!
//! A [`Plan`] that exists is valid; what cannot be is refused with its line quoted. Gates share one false-alarm bound; thresholds
//! (`error rate over 5 %`, `p99 20 % over the baseline`, in so many windows) and hard limits (half of 20 requests) are for what a team has
//! promised or cannot wait for, and have none. Whether a valid plan can do what it says depends on the traffic: [`Plan::lint`] compares the two.
//!
//! ```
//! use llm_rollout::{Expected, Plan, Traffic};
//! let plan = Plan::from_toml(r#"
//!     alpha = 0.05
//!     bake = "24h"
//!     metrics = { faults = { fault = {} } }
//!     gates = [{ metric = "faults", weight = 1.0 }]
//!     hard_limits = [{ metric = "faults" }]
//!     stages = [{ serve = 1.0, dwell = "20m" }, { serve = 10.0, dwell = "12h" }]
//!     [[thresholds]]
//!     metric = "faults"
//!     worse_than = { absolute = 0.05 }
//!     min_samples = 10
//!     sustained = { of_last = { breaches = 4, windows = 5 } }
//! "#)?;
//! let traffic = Traffic::new(20.0)
//!     .history(std::time::Duration::from_secs(3 * 86_400))
//!     .metric("faults", Expected::new(0.01, 2.0));
//! let codes: Vec<_> = plan.lint(&traffic)?.into_iter().map(|finding| finding.code).collect();
//! assert_eq!(codes, ["stage-too-short", "threshold-hides-effect"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ## Where to look
//!
//! What each input does in each phase: [`phases`]. Plans for the usual strategies: [`presets`]. Many endpoints, one change:
//! [`waves`]. What happened, for people: [`incident`]. What a plan can and cannot catch: [`forecast`]. Tests of one's own policy, in
//! virtual time: `policy` (feature `policy-tests`).
#![deny(missing_docs)]

mod draft;
pub mod forecast;
mod ids;
pub mod incident;
pub mod plan;
#[cfg(feature = "policy-tests")]
pub mod policy;
pub mod presets;
pub mod replay;
mod rollout;
mod split;
mod step;
mod time;
mod traffic;
mod transition;
mod watch;
pub mod waves;

pub use ids::{
    BadFormat, BadName, BadShare, EndpointId, Epoch, Fence, Format, RolloutId, RouterId, Seq, Share,
};
pub use plan::{
    Advance, Finish, MetricDef, Plan, PlanError, PlanSpec, Response, StageSpec, Standby,
};
pub use rollout::{Cause, Load, Phase, Recovery, Replay, Rollout, Said, State};
pub use split::{Direction, Observed, Order, Position, Raise, RouterClock, RouterState, Split};
pub use step::{
    Alarm, Command, Effect, Heartbeat, Input, Intent, IntentId, Look, Notice, Outcome, Step, Verb,
};
pub use time::Timestamp;
pub use traffic::{BadTraffic, Expected, Traffic};
pub use transition::Rejected;
pub use watch::{Probed, Watch, WatchAlarm};

#[doc = include_str!("../docs/phases.md")]
pub mod phases {}
