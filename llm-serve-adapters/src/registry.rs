//! Where versions are kept, beyond one machine: a [`Store`](llm_version_core::registry::Store) of the registry of
//! `llm-version-core` in a bucket (feature `object-store`).

mod bucket;
mod io;
#[cfg(test)]
mod tests;

pub use bucket::{BucketError, BucketStore};
