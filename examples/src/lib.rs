//! Shared parts of the examples.

pub mod desk;
pub mod load;
pub mod report;
pub mod server;
pub mod terminal;

/// The README's embedding, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub mod readme {}
