//! A real small language model, and the task that it has learnt.
//!
//! A decoder-only transformer of about 0.4 M parameters over a vocabulary of
//! 768 pieces, loaded from the native layout of a bundle and run by a few
//! hundred lines of plain `f32` code. Its `README.md` says how it was trained
//! and what it can do.

mod bundle;
mod chat;
mod config;
pub mod damage;
pub mod desk;
mod error;
mod generate;
mod matrix;
mod model;
mod network;
mod rng;
mod score;
mod tokenizer;
mod weights;

pub use bundle::{Variant, write_all};
pub use chat::ChatTemplate;
pub use config::{Config, Generation};
pub use error::LmError;
pub use generate::{Finish, Generate, Reply, Token};
pub use model::Model;
pub use rng::SplitMix64;
pub use score::Score;
pub use tokenizer::{BOS, EOS, PAD, Tokenizer};
pub use weights::{Tensor, Weights};
