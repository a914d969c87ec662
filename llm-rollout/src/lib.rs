//! What to do next: a pure rollout state machine for LLM versions
#![deny(missing_docs)]
