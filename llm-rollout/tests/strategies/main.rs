//! Strategies as plans, the table of phases, incident records and waves.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![expect(clippy::print_stdout, reason = "what does not apply is said")]

mod argo;
mod explore;
mod flagger;
mod host;
mod incident;
#[path = "../machine/life.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod life;
mod oracle;
mod phases;
mod platforms;
mod replay;
mod waves;
