//! What to do next: a pure rollout state machine for LLM versions.
//!
//! A [`Rollout`] is data. [`Rollout::decide`] says what an input leads to, as a [`Step`] to log; [`Rollout::apply`] folds a
//! logged step in and never consults plan, gates or time, so an old log replays for ever. Nothing here reads a clock, waits,
//! or talks to anybody: that is what a controller does, in the order decide, append, apply, carry out, feed back.
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
