//! Decision rules of peers, re-created from their source and documentation. `tests/peers.rs` shows that they answer as the peers do, weak points included.

pub mod argo;
pub mod flagger;
pub mod kayenta;
pub mod sequential;
