//! A model as a bundle directory holds it.

use super::chat::ChatTemplate;
use super::config::{Config, Generation};
use super::error::LmError;
use super::generate::{Generate, Reply};
use super::network::Network;
use super::tokenizer::{BOS, Tokenizer};
use super::weights::Weights;
use serde::de::DeserializeOwned;
use std::fs;
use std::path::Path;

/// No weight file of this architecture is larger; a bad one is not read whole.
const LARGEST_FILE: u64 = 1 << 30;

/// A loaded model with its prompt and settings. Immutable; share it freely.
#[derive(Debug, Clone)]
pub struct Model {
    config: Config,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    system: String,
    generation: Generation,
    network: Network,
}

impl Model {
    /// Loads the native layout of a bundle: `model/config.json`,
    /// `model/weights/*.safetensors` (exactly one),
    /// `model/tokenizer/{tokenizer,chat_template}.json`,
    /// `config/generation.json`, and `prompt/system.txt` if there is one.
    ///
    /// # Errors
    ///
    /// A file is missing, malformed, or does not fit the others.
    pub fn load(directory: &Path) -> Result<Self, LmError> {
        let config: Config = json(&directory.join("model/config.json"))?;
        config.validate()?;
        let tokenizer =
            Tokenizer::from_json(&text(&directory.join("model/tokenizer/tokenizer.json"))?)?;
        if tokenizer.size() > config.vocabulary {
            return Err(LmError::Config(format!(
                "`vocabulary` is {}, the tokenizer has {}",
                config.vocabulary,
                tokenizer.size()
            )));
        }
        let template = json(&directory.join("model/tokenizer/chat_template.json"))?;
        let generation: Generation = json(&directory.join("config/generation.json"))?;
        generation.validate(&config)?;
        let prompt = directory.join("prompt/system.txt");
        let system = match fs::read_to_string(&prompt) {
            Ok(system) => system.trim_end_matches(['\r', '\n']).to_owned(),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => {
                return Err(LmError::Io {
                    path: prompt,
                    source,
                });
            }
        };
        let weights = read_weights(&directory.join("model/weights"))?;
        let network = Network::new(&config, &weights)?;
        Ok(Self {
            config,
            tokenizer,
            template,
            system,
            generation,
            network,
        })
    }

    /// The shape of the network.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The bundle's generation settings.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// The bundle's system prompt; may be empty.
    pub fn system_prompt(&self) -> &str {
        &self.system
    }

    /// The bundle's chat template.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// The bundle's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    /// The token ids to continue for a message under the bundle's own system
    /// prompt.
    pub fn prompt(&self, user: &str) -> Vec<u16> {
        self.prompt_under(&self.system, user)
    }

    /// The token ids to continue for a message under another system prompt.
    pub fn prompt_under(&self, system: &str, user: &str) -> Vec<u16> {
        let mut ids = vec![BOS];
        ids.extend(self.tokenizer.encode(&self.template.render(system, user)));
        ids
    }

    /// Starts an answer. `settings` are usually [`Model::generation`], or a
    /// changed copy that passes [`Generation::validate`]; `seed` matters only
    /// when the temperature is above 0.
    pub fn generate(&self, prompt: &[u16], settings: &Generation, seed: u64) -> Generate<'_> {
        Generate::new(self, prompt, settings, seed)
    }

    /// Answers a message with the bundle's own prompt and settings.
    pub fn answer(&self, user: &str, seed: u64) -> Reply {
        self.generate(&self.prompt(user), &self.generation, seed)
            .collect_reply()
    }

    /// The scores of every next token after each of `ids`, one row each.
    ///
    /// At most [`Config::longest`] ids count; the rest is left out.
    pub fn logits(&self, ids: &[u16]) -> Vec<Vec<f32>> {
        let ids = ids.get(..self.config.longest).unwrap_or(ids);
        let hidden = self.network.advance(&mut self.network.cache(), ids);
        let mut out = Vec::new();
        self.network.logits(&hidden, &mut out);
        out.chunks_exact(self.config.vocabulary)
            .map(<[f32]>::to_vec)
            .collect()
    }

    /// How many bits the model needs for each byte of a text: lower is better.
    ///
    /// 0 for an empty text. A text longer than the context is taken in pieces.
    pub fn bits_per_byte(&self, text: &str) -> f64 {
        if text.is_empty() {
            0.0
        } else {
            self.bits(text) / text.len() as f64
        }
    }

    /// The bits per byte over many texts, each begun afresh.
    pub fn bits_per_byte_over<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> f64 {
        let (mut bits, mut bytes) = (0.0, 0_usize);
        for text in texts {
            bits += self.bits(text);
            bytes += text.len();
        }
        if bytes == 0 { 0.0 } else { bits / bytes as f64 }
    }

    fn bits(&self, text: &str) -> f64 {
        let ids = self.tokenizer.encode(text);
        let window = self.config.longest.saturating_sub(1).max(1);
        let mut nats = 0.0;
        for piece in ids.chunks(window) {
            let mut seen = vec![BOS];
            seen.extend_from_slice(piece);
            for (row, &id) in self.logits(&seen).iter().zip(piece) {
                let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = row
                    .iter()
                    .map(|&score| f64::from(libm::expf(score - most)))
                    .sum();
                let own = row
                    .get(usize::from(id))
                    .copied()
                    .unwrap_or(f32::NEG_INFINITY);
                nats += libm::log(sum) - f64::from(own - most);
            }
        }
        nats / std::f64::consts::LN_2
    }
}

fn text(path: &Path) -> Result<String, LmError> {
    fs::read_to_string(path).map_err(|source| LmError::Io {
        path: path.to_owned(),
        source,
    })
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T, LmError> {
    serde_json::from_str(&text(path)?).map_err(|error| LmError::Json {
        path: path.to_owned(),
        message: error.to_string(),
    })
}

/// Reads the one safetensors file in `directory`.
fn read_weights(directory: &Path) -> Result<Weights, LmError> {
    let failed = |source| LmError::Io {
        path: directory.to_owned(),
        source,
    };
    let mut found = None;
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            if found.is_some() {
                return Err(LmError::Weights(format!(
                    "{} has several weight files",
                    directory.display()
                )));
            }
            found = Some(path);
        }
    }
    let path = found
        .ok_or_else(|| LmError::Weights(format!("{} has no weight file", directory.display())))?;
    let io = |source| LmError::Io {
        path: path.clone(),
        source,
    };
    if fs::metadata(&path).map_err(io)?.len() > LARGEST_FILE {
        return Err(LmError::Weights(format!("{} is too large", path.display())));
    }
    Weights::read(&fs::read(&path).map_err(io)?)
}
