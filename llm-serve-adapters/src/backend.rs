//! Serving backends: parts that move together, and (feature `openai`) an OpenAI-compatible server whose versions run as model
//! names or upstreams.

#[cfg(feature = "openai")]
mod chat;
#[cfg(feature = "openai")]
mod openai;
mod together;

#[cfg(feature = "openai")]
pub use chat::{ChatClient, ChatReply, ChatRequest, Role, Upstream};
#[cfg(feature = "openai")]
pub use openai::{OpenAiBackend, OpenAiBackendBuilder};
pub use together::Together;
