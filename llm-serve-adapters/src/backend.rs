//! Serving backends: an OpenAI-compatible server whose versions run as model names or upstreams.

mod chat;
mod openai;

pub use chat::{ChatClient, ChatReply, ChatRequest, Role, Upstream};
pub use openai::{OpenAiBackend, OpenAiBackendBuilder};
