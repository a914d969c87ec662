//! What `model/config.json` and `config/generation.json` say.

use super::error::LmError;
use serde::{Deserialize, Serialize};

const ARCHITECTURE: &str = "desk-decoder-v1";
/// No dimension of this architecture needs more; it bounds what a bad file
/// can make the loader allocate.
const LIMIT: usize = 1 << 14;

/// The shape of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// Which forward pass the weights are for.
    pub architecture: String,
    /// How many token ids there are.
    pub vocabulary: usize,
    /// The width of the residual stream.
    pub width: usize,
    /// How many layers.
    pub layers: usize,
    /// How many attention heads in each.
    pub heads: usize,
    /// The width inside the feed-forward part.
    pub hidden: usize,
    /// The base of the rotary position angles.
    pub rope_base: f64,
    /// What keeps the normalisation from dividing by zero.
    pub norm_epsilon: f32,
    /// The most tokens that prompt and answer may have together.
    pub longest: usize,
}

impl Config {
    /// Checks that a network of this shape can exist.
    ///
    /// # Errors
    ///
    /// [`LmError::Config`] naming the field.
    pub fn validate(&self) -> Result<(), LmError> {
        let bad = |what: String| Err(LmError::Config(what));
        if self.architecture != ARCHITECTURE {
            return bad(format!("unknown architecture `{}`", self.architecture));
        }
        let sizes = [
            ("vocabulary", self.vocabulary),
            ("width", self.width),
            ("layers", self.layers),
            ("heads", self.heads),
            ("hidden", self.hidden),
            ("longest", self.longest),
        ];
        for (name, size) in sizes {
            if size == 0 || size > LIMIT {
                return bad(format!("`{name}` is {size}, wanted 1 to {LIMIT}"));
            }
        }
        if !self.width.is_multiple_of(2 * self.heads) {
            return bad(format!(
                "`width` {} does not split into {} even heads",
                self.width, self.heads
            ));
        }
        if !(self.rope_base.is_finite() && self.rope_base > 1.0) {
            return bad(format!("`rope_base` is {}", self.rope_base));
        }
        if !(self.norm_epsilon.is_finite() && self.norm_epsilon > 0.0) {
            return bad(format!("`norm_epsilon` is {}", self.norm_epsilon));
        }
        Ok(())
    }

    pub(super) fn head_size(&self) -> usize {
        self.width / self.heads
    }
}

/// How answers are generated, unless a request says otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Generation {
    /// 0 takes the likeliest token each time.
    pub temperature: f32,
    /// The probability mass that sampling keeps, the likeliest first.
    pub top_p: f32,
    /// The most tokens of an answer.
    pub max_tokens: usize,
    /// The tokens of prompt and answer together. A prompt that leaves no room
    /// for `max_tokens` loses its **beginning**.
    pub context: usize,
}

impl Default for Generation {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            max_tokens: 128,
            context: 320,
        }
    }
}

impl Generation {
    /// Checks the settings against the model that they are for.
    ///
    /// # Errors
    ///
    /// [`LmError::Generation`] naming the field.
    pub fn validate(&self, config: &Config) -> Result<(), LmError> {
        let bad = |what: String| Err(LmError::Generation(what));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return bad(format!("`temperature` is {}", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad(format!(
                "`top_p` is {}, wanted above 0 and at most 1",
                self.top_p
            ));
        }
        if self.max_tokens == 0 || self.max_tokens >= self.context {
            return bad(format!(
                "`max_tokens` is {} in a context of {}",
                self.max_tokens, self.context
            ));
        }
        if self.context > config.longest {
            return bad(format!(
                "`context` is {}, the model has at most {}",
                self.context, config.longest
            ));
        }
        Ok(())
    }

    /// How many tokens of a prompt the model sees.
    pub fn prompt_budget(&self) -> usize {
        self.context.saturating_sub(self.max_tokens)
    }
}
