//! How a rollout is done: host traits, controller, router, recorder, stores, tower layer.
#![deny(missing_docs)]

pub mod host;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
