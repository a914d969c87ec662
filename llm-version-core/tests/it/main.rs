//! The crate from outside, as hosts use it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod canonical;
#[cfg(feature = "fs")]
mod common;
#[cfg(feature = "fs")]
mod content;
#[cfg(feature = "fs")]
mod crash;
mod diff;
#[cfg(feature = "fs")]
mod hf;
#[cfg(feature = "fs")]
mod oci;
#[cfg(feature = "fs")]
mod registry;
#[cfg(feature = "fs")]
mod tree;
#[cfg(feature = "fs")]
mod wandb;
