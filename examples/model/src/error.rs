//! What can be wrong with a bundle's model.

use std::path::PathBuf;
use thiserror::Error;

/// Why a model could not be loaded or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LmError {
    /// A file could not be read or written.
    #[error("{}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A JSON file has another form than it should.
    #[error("{}: {message}", path.display())]
    Json {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it, and where.
        message: String,
    },
    /// The vocabulary is unusable.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The model's configuration is impossible.
    #[error("model configuration: {0}")]
    Config(String),
    /// The generation settings are impossible.
    #[error("generation settings: {0}")]
    Generation(String),
    /// The weight file is no safetensors file, or a malformed one.
    #[error("weights: {0}")]
    Weights(String),
    /// A tensor is missing.
    #[error("weights: no tensor `{0}`")]
    MissingTensor(String),
    /// A tensor has another shape or type than the configuration asks for.
    #[error("weights: tensor `{name}` is {found}, wanted {wanted}")]
    Tensor {
        /// Which tensor.
        name: String,
        /// What the file has.
        found: String,
        /// What the configuration asks for.
        wanted: String,
    },
}
