//! What an LLM version is: bundles, manifests, digests, references
#![deny(missing_docs)]
