//! Serving backends: parts that move together, and servers of versions, each a feature.
//!
//! | server | type | feature |
//! |---|---|---|
//! | the host's own, in its process | [`InProcessBackend`] | |
//! | OpenAI-compatible, started and stopped by the host | `OpenAiBackend` | `openai` |
//! | llama.cpp: one model, a router of models, LoRA adapters | `LlamaCppBackend` | `llama-cpp` |
//! | vLLM, SGLang, text-generation-inference, mistral.rs | `EngineBackend` | `vllm`, `sglang`, `tgi`, `mistral-rs` |
//! | Open Inference Protocol (KServe V2): NVIDIA Triton, MLServer | `KServeBackend` | `kserve` |
//! | TorchServe | `TorchServeBackend` | `torchserve` |

#[cfg(feature = "openai")]
mod chat;
#[cfg(feature = "http-client")]
mod control;
#[cfg(any(
    feature = "mistral-rs",
    feature = "sglang",
    feature = "tgi",
    feature = "vllm"
))]
mod engine;
#[cfg(test)]
mod fakes;
mod fleet;
#[cfg(feature = "openai")]
mod identity;
mod in_process;
#[cfg(feature = "kserve")]
mod kserve;
#[cfg(feature = "llama-cpp")]
mod llama_cpp;
#[cfg(feature = "mistral-rs")]
mod mistral_rs;
#[cfg(feature = "openai")]
mod openai;
#[cfg(feature = "sglang")]
mod sglang;
#[cfg(feature = "tgi")]
mod tgi;
mod together;
#[cfg(feature = "torchserve")]
mod torchserve;
#[cfg(feature = "vllm")]
mod vllm;
#[cfg(feature = "openai")]
mod warm_up;

#[cfg(feature = "openai")]
pub use chat::{ChatClient, ChatReply, ChatRequest, Role, Upstream};
#[cfg(any(
    feature = "mistral-rs",
    feature = "sglang",
    feature = "tgi",
    feature = "vllm"
))]
pub use engine::{EngineBackend, EngineBackendBuilder, EngineVersion};
#[cfg(feature = "openai")]
pub use identity::{Golden, OtherModel};
pub use in_process::{InProcessBackend, Model};
#[cfg(feature = "kserve")]
pub use kserve::{KServeBackend, KServeBackendBuilder, KServeModel};
#[cfg(feature = "llama-cpp")]
pub use llama_cpp::{LlamaCpp, LlamaCppBackend, LlamaCppBackendBuilder};
#[cfg(feature = "openai")]
pub use openai::{OpenAiBackend, OpenAiBackendBuilder};
pub use together::Together;
#[cfg(feature = "torchserve")]
pub use torchserve::{Archive, TorchServeBackend, TorchServeBackendBuilder};
