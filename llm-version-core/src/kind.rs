//! What a component is, decided by where it lies in the native layout.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::path::ComponentPath;

/// What a component is. The kind is part of the bundle digest, by its [`ComponentKind::as_str`] spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ComponentKind {
    /// `LoRA` and other adapters (`model/adapters/`).
    Adapter,
    /// The template that renders conversations (`model/tokenizer/chat_template*`).
    ChatTemplate,
    /// Program code that the model loads (`model/*.py`, `model/code/`).
    Code,
    /// Versions of what the bundle runs on (`config/dependencies.json`).
    Dependencies,
    /// Examples given with each request (`prompt/few_shot/`).
    FewShot,
    /// Sampling parameters (`config/generation.json`, `model/generation_config.json`).
    Generation,
    /// Architecture and shape (`model/config.json` and other JSON files beside it).
    ModelConfig,
    /// Anything else that lies in a part of the layout which is in the digest.
    Other,
    /// The system prompt and other prompt text (`prompt/`).
    Prompt,
    /// Requirements and rules of the version for routing (`config/routing.json`).
    Routing,
    /// Guardrails (`config/safety.json`).
    Safety,
    /// Vocabulary, merges, special tokens and tokenizer settings (`model/tokenizer/`).
    Tokenizer,
    /// Checkpoint files (`model/weights/`).
    Weights,
    /// Which tensor lies in which shard (`model/weights/*.index.json`).
    WeightsIndex,
}

impl ComponentKind {
    /// Every kind, in the order of their spellings.
    pub const ALL: [Self; 14] = [
        Self::Adapter,
        Self::ChatTemplate,
        Self::Code,
        Self::Dependencies,
        Self::FewShot,
        Self::Generation,
        Self::ModelConfig,
        Self::Other,
        Self::Prompt,
        Self::Routing,
        Self::Safety,
        Self::Tokenizer,
        Self::Weights,
        Self::WeightsIndex,
    ];

    /// The spelling that goes into the digest and the manifest.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Adapter => "adapter",
            Self::ChatTemplate => "chat_template",
            Self::Code => "code",
            Self::Dependencies => "dependencies",
            Self::FewShot => "few_shot",
            Self::Generation => "generation",
            Self::ModelConfig => "model_config",
            Self::Other => "other",
            Self::Prompt => "prompt",
            Self::Routing => "routing",
            Self::Safety => "safety",
            Self::Tokenizer => "tokenizer",
            Self::Weights => "weights",
            Self::WeightsIndex => "weights_index",
        }
    }

    /// The kind of the component at `path` in the native layout.
    ///
    /// `None` means that the path is outside of the layout's three folders (`model/`, `prompt/`, `config/`).
    pub fn of_path(path: &ComponentPath) -> Option<Self> {
        let (top, rest) = path.as_str().split_once('/')?;
        let name = path.file_name();
        Some(match top {
            "model" => match rest.split_once('/') {
                Some(("weights", _)) if name.ends_with(".index.json") => Self::WeightsIndex,
                Some(("weights", _)) => Self::Weights,
                Some(("tokenizer", _)) if name.starts_with("chat_template") => Self::ChatTemplate,
                Some(("tokenizer", _)) => Self::Tokenizer,
                Some(("adapters", _)) => Self::Adapter,
                Some(("code", _)) => Self::Code,
                Some(_) => Self::Other,
                None if name == "generation_config.json" => Self::Generation,
                None if has_extension(name, "py") => Self::Code,
                None if has_extension(name, "json") => Self::ModelConfig,
                None => Self::Other,
            },
            "prompt" if rest.starts_with("few_shot/") => Self::FewShot,
            "prompt" => Self::Prompt,
            "config" => match rest {
                "generation.json" => Self::Generation,
                "safety.json" => Self::Safety,
                "routing.json" => Self::Routing,
                "dependencies.json" => Self::Dependencies,
                _ => Self::Other,
            },
            _ => return None,
        })
    }
}

/// Whether `name` ends in `.extension`, whatever the letter case.
pub(crate) fn has_extension(name: &str, extension: &str) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(_, found)| found.eq_ignore_ascii_case(extension))
}

impl fmt::Display for ComponentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_agree_and_are_sorted() {
        for kind in ComponentKind::ALL {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
        }
        assert!(
            ComponentKind::ALL
                .windows(2)
                .all(|w| w[0].as_str() < w[1].as_str() && w[0] < w[1])
        );
    }

    #[test]
    fn the_layout_decides() {
        let kind = |p: &str| ComponentKind::of_path(&ComponentPath::new(p).unwrap());
        for (path, expected) in [
            ("model/weights/model.safetensors", ComponentKind::Weights),
            (
                "model/weights/model.safetensors.index.json",
                ComponentKind::WeightsIndex,
            ),
            ("model/tokenizer/tokenizer.json", ComponentKind::Tokenizer),
            (
                "model/tokenizer/chat_template.jinja",
                ComponentKind::ChatTemplate,
            ),
            ("model/config.json", ComponentKind::ModelConfig),
            ("model/modeling_x.py", ComponentKind::Code),
            (
                "model/adapters/a/adapter.safetensors",
                ComponentKind::Adapter,
            ),
            ("prompt/system.txt", ComponentKind::Prompt),
            ("prompt/few_shot/001.json", ComponentKind::FewShot),
            ("config/generation.json", ComponentKind::Generation),
            ("config/safety.json", ComponentKind::Safety),
            ("config/routing.json", ComponentKind::Routing),
            ("config/dependencies.json", ComponentKind::Dependencies),
            ("config/extra.toml", ComponentKind::Other),
        ] {
            assert_eq!(kind(path), Some(expected), "{path}");
        }
        assert_eq!(kind("tests/a.json"), None);
        assert_eq!(kind("metadata.json"), None);
    }
}
