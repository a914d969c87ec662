//! How a rollout is done: host traits, controller, router, recorder, stores, tower layer.
#![deny(missing_docs)]

#[cfg(feature = "openai")]
pub mod backend;
pub mod host;
#[cfg(any(feature = "openai", feature = "webhook"))]
mod http_client;
pub mod notify;
mod plane;
pub mod recorder;
pub mod router;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use plane::DataPlane;
