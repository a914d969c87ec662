//! The four versions of the example, written as bundle directories.

use super::chat::ChatTemplate;
use super::config::Generation;
use super::damage::quantise;
use super::desk;
use super::error::LmError;
use std::fs;
use std::path::{Path, PathBuf};

const CONFIG: &[u8] = include_bytes!("../weights/config.json");
const TOKENIZER: &[u8] = include_bytes!("../weights/tokenizer.json");
const BASE: &[u8] = include_bytes!("../weights/base.safetensors");
const BETTER: &[u8] = include_bytes!("../weights/better.safetensors");

/// The bits a number that [`Variant::Damaged`] has left.
const DAMAGED_BITS: u32 = 3;
/// The tokens of prompt and answer together in [`Variant::Narrow`]: enough for
/// every short request, so the offline suite cannot tell.
const NARROW_CONTEXT: usize = 182;

/// One of the versions that the example rolls out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Variant {
    /// The version in production.
    Base,
    /// The same network and beginnings, trained longer.
    Better,
    /// [`Variant::Better`], quantised too far.
    Damaged,
    /// [`Variant::Better`] in a context so small that a long letter pushes
    /// the system prompt out of it.
    Narrow,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Base, Self::Better, Self::Damaged, Self::Narrow];

    /// A word for it, fit for a path.
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Better => "better",
            Self::Damaged => "damaged",
            Self::Narrow => "narrow",
        }
    }

    /// Its generation settings.
    pub fn generation(self) -> Generation {
        let context = match self {
            Self::Narrow => NARROW_CONTEXT,
            Self::Base | Self::Better | Self::Damaged => Generation::default().context,
        };
        Generation {
            context,
            ..Generation::default()
        }
    }

    /// The bytes of its weight file.
    ///
    /// # Errors
    ///
    /// [`LmError::Weights`] if the committed weights are unreadable.
    pub fn weights(self) -> Result<Vec<u8>, LmError> {
        match self {
            Self::Base => Ok(BASE.to_vec()),
            Self::Better | Self::Narrow => Ok(BETTER.to_vec()),
            Self::Damaged => quantise(BETTER, DAMAGED_BITS),
        }
    }

    /// Writes everything that determines its behaviour into `directory`, in
    /// the native layout. `metadata.json` is the caller's: it names the
    /// version and its lineage, which this function cannot know.
    ///
    /// # Errors
    ///
    /// [`LmError::Io`] if a file cannot be written.
    pub fn write(self, directory: &Path) -> Result<(), LmError> {
        let put = |path: &str, bytes: &[u8]| put(&directory.join(path), bytes);
        put("model/config.json", CONFIG)?;
        put("model/tokenizer/tokenizer.json", TOKENIZER)?;
        put(
            "model/tokenizer/chat_template.json",
            &pretty(&ChatTemplate::default())?,
        )?;
        put("model/weights/model.safetensors", &self.weights()?)?;
        put(
            "prompt/system.txt",
            format!("{}\n", desk::SYSTEM_PROMPT).as_bytes(),
        )?;
        put("config/generation.json", &pretty(&self.generation())?)
    }
}

/// Writes every variant under `parent`, each in a directory of its name.
///
/// # Errors
///
/// [`LmError::Io`] if a file cannot be written.
pub fn write_all(parent: &Path) -> Result<Vec<(Variant, PathBuf)>, LmError> {
    Variant::ALL
        .into_iter()
        .map(|variant| {
            let directory = parent.join(variant.name());
            variant.write(&directory)?;
            Ok((variant, directory))
        })
        .collect()
}

fn pretty<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, LmError> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|error| LmError::Config(error.to_string()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), LmError> {
    let io = |source| LmError::Io {
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(io)?;
    }
    fs::write(path, bytes).map_err(io)
}
