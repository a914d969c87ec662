//! How a rollout is done: host traits, controller, router, recorder, stores, tower layer.
#![deny(missing_docs)]

#[cfg(feature = "alarm-webhook")]
pub mod alarm;
pub mod apply;
pub mod backend;
#[cfg(feature = "calendar")]
mod calendar;
mod clock;
mod controller;
mod endpoint;
#[cfg(feature = "evaluators")]
pub mod evaluate;
pub mod host;
#[cfg(feature = "http-client")]
mod http_client;
#[cfg(feature = "import")]
pub mod import;
mod incidents;
mod joined;
pub mod journal;
#[cfg(feature = "tower")]
pub mod layer;
#[cfg(feature = "http-client")]
mod metrics_text;
pub mod notify;
mod plane;
pub mod recorder;
#[cfg(any(feature = "mlflow", feature = "object-store", feature = "oci"))]
pub mod registry;
pub mod router;
pub mod shadow;
#[cfg(any(feature = "alarm-webhook", feature = "webhook"))]
mod signature;
#[cfg(feature = "prometheus")]
pub mod source;
pub mod store;
mod sync;
#[cfg(any(feature = "metrics", feature = "opentelemetry"))]
pub mod telemetry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod waves;

pub use plane::{Breaker, Caps, DataPlane};

#[cfg(feature = "calendar")]
pub use calendar::{BadCalendar, FreezeCalendar};
pub use clock::SystemClock;
pub use endpoint::{
    AdministerError, Bootstrap, CommandError, Endpoint, EndpointBuilder, OpenError, Return,
    ReturnError, Run, Status, SubmitError, Supersede,
};
#[cfg(feature = "http-client")]
pub use http_client::Authorities;
pub use incidents::IncidentFolder;
pub use waves::{WavesBuilder, WavesError, WavesRun};
