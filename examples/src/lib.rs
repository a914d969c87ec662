//! Shared parts of the examples.

pub mod lm;
pub mod load;
pub mod report;
pub mod server;
