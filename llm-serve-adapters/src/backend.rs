//! Serving backends: parts that move together, and (feature `openai`) an OpenAI-compatible server whose versions run as model
//! names or upstreams, or (feature `llama-cpp`) servers of llama.cpp that load and unload them.

#[cfg(feature = "openai")]
mod chat;
#[cfg(feature = "openai")]
mod identity;
#[cfg(feature = "llama-cpp")]
mod llama_cpp;
#[cfg(feature = "openai")]
mod openai;
#[cfg(feature = "openai")]
mod slots;
mod together;
#[cfg(feature = "openai")]
mod warm_up;

#[cfg(feature = "openai")]
pub use chat::{ChatClient, ChatReply, ChatRequest, Role, Upstream};
#[cfg(feature = "openai")]
pub use identity::{Golden, OtherModel};
#[cfg(feature = "llama-cpp")]
pub use llama_cpp::{LlamaCpp, LlamaCppBackend, LlamaCppBackendBuilder};
#[cfg(feature = "openai")]
pub use openai::{OpenAiBackend, OpenAiBackendBuilder};
pub use together::Together;
