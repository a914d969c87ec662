//! The machine as a whole.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod life;
mod limits;
mod lives;
mod plans;
mod recovery;
mod stages;
mod verbs;
