//! Where versions are kept, beyond one machine: a [`Store`](llm_version_core::registry::Store) of the registry of
//! `llm-version-core` in a bucket (feature `object-store`), repositories of OCI registries (feature `oci`), and the
//! models of MLflow (feature `mlflow`).

#[cfg(feature = "object-store")]
mod bucket;
#[cfg(feature = "object-store")]
mod io;
#[cfg(feature = "mlflow")]
mod mlflow;
#[cfg(feature = "oci")]
mod oci;
#[cfg(feature = "object-store")]
#[cfg(test)]
mod tests;

#[cfg(feature = "object-store")]
pub use bucket::{BucketError, BucketStore};
#[cfg(feature = "mlflow")]
pub use mlflow::{MlflowAlias, MlflowCode, MlflowError, MlflowModel};
#[cfg(feature = "oci")]
pub use oci::{OciCode, OciRegistryError, OciRepository, Pulled, Pushed};
