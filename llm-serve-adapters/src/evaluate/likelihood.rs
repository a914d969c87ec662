//! How probable versions find given texts.

use super::effort::Effort;
use super::models::Models;
use super::tally::{MOST_MISSING, mean, not_too_many_missing, share};
use crate::backend::ChatClient;
use crate::host::{Error, Evaluator, Result};
use async_trait::async_trait;
use llm_gates::quality::bits_per_byte;
use llm_gates::{Measurement, Measurements};
use llm_version_core::VersionId;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

/// Texts, and bytes of one.
const TEXTS: usize = 10_000;
const BYTES: usize = 256 << 10;
/// What forces a token to come next, beyond any difference of logits.
const FORCE: f64 = 1e6;

/// How a server tells log-probabilities of a text that it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogProbs {
    /// `/v1/completions` with `echo` and `logprobs`, as vLLM, `SGLang` and the older servers of `OpenAI` have it: one request per text. A server that takes the request and does not
    /// echo, such as llama.cpp's, is recognised and refused.
    Echo,
    /// llama.cpp's own `/tokenize` and `/completion`: one request per token, in which the token that comes next in the text is forced by `logit_bias`; the log-probability that
    /// the server tells is the one before the bias. For short texts.
    LlamaCpp,
}

/// Asks both versions how probable they find held-out texts.
///
/// Measures, for the name that it is given, over the texts:
/// - `NAME`: the mean over a text's tokens of the negative natural log-probability, of the candidate against the baseline. Its exponential is the perplexity; the lower, the better.
///   Between versions with different tokenizers it says nothing: use the next one.
/// - `NAME.bits_per_byte`: bits per byte of the text, of the candidate against the baseline;
/// - `NAME.difference`: in pairs, `NAME` of the candidate minus that of the baseline: above 0 where the candidate finds the text less probable. Far less noisy than a comparison of
///   the two means.
/// - `NAME.unscored`: texts without log-probabilities, of the candidate against the baseline; more than a tenth is an error.
///
/// The first token counts only where the server puts another one before it.
///
/// ```
/// use llm_serve_adapters::evaluate::{LogLikelihood, LogProbs, Models};
/// use llm_serve_adapters::host::Evaluator;
///
/// let models = Models::new(|_version| None);
/// let held_out = LogLikelihood::new("held_out", ["The capital of France is Paris."], LogProbs::LlamaCpp, models)?;
/// assert!(held_out.measures().is_some_and(|names| names.contains("held_out.difference")));
/// # Ok::<(), llm_serve_adapters::host::Error>(())
/// ```
#[derive(Debug)]
pub struct LogLikelihood {
    name: String,
    texts: Vec<String>,
    form: LogProbs,
    models: Models,
    effort: Effort,
    most_tokens: usize,
}

/// A text's log-probabilities.
struct Scored {
    /// Mean of the negative natural logarithms.
    nats: f64,
    bits_per_byte: f64,
}

#[derive(Deserialize)]
struct Echoed {
    model: Option<String>,
    #[serde(default)]
    choices: Vec<EchoedChoice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct EchoedChoice {
    logprobs: Option<EchoedLogProbs>,
}

#[derive(Deserialize)]
struct EchoedLogProbs {
    #[serde(default)]
    tokens: Vec<Option<String>>,
    #[serde(default)]
    token_logprobs: Vec<Option<f64>>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<usize>,
}

#[derive(Deserialize)]
struct Tokenized {
    tokens: Vec<Piece>,
}

#[derive(Deserialize)]
struct Piece {
    id: u32,
    /// A text, or a list of bytes where it is none.
    piece: Value,
}

#[derive(Deserialize)]
struct Forced {
    model: Option<String>,
    #[serde(default)]
    completion_probabilities: Vec<ForcedToken>,
}

#[derive(Deserialize)]
struct ForcedToken {
    id: u32,
    logprob: f64,
}

impl LogLikelihood {
    /// Measures under this name, of these texts.
    ///
    /// # Errors
    /// `Permanent` without texts, for more than 10,000, or for one that is empty or longer than 256 KiB.
    pub fn new(
        name: impl Into<String>,
        texts: impl IntoIterator<Item = impl Into<String>>,
        form: LogProbs,
        models: Models,
    ) -> Result<Self> {
        let name = name.into();
        let texts: Vec<String> = texts.into_iter().take(TEXTS + 1).map(Into::into).collect();
        let unfit = |text: &String| text.is_empty() || text.len() > BYTES;
        if !(1..=TEXTS).contains(&texts.len()) || texts.iter().any(unfit) {
            return Err(Error::permanent(format!(
                "{name:?} needs 1 to {TEXTS} texts, none of them empty or longer than {BYTES} bytes"
            )));
        }
        Ok(Self {
            name,
            texts,
            form,
            models,
            effort: Effort::default(),
            most_tokens: 2048,
        })
    }

    /// How hard to try; the default unless told otherwise. The patience is for one text, however many requests it takes.
    #[must_use]
    pub fn effort(mut self, effort: Effort) -> Self {
        self.effort = effort;
        self
    }

    /// The most tokens of a text, 2,048 unless told otherwise; a longer one is refused.
    #[must_use]
    pub fn most_tokens(mut self, tokens: usize) -> Self {
        self.most_tokens = tokens;
        self
    }

    async fn score(&self, client: &ChatClient, text: &str, within: Duration) -> Result<Scored> {
        let (logs, bytes) = match self.form {
            LogProbs::Echo => self.echo(client, text, within).await?,
            LogProbs::LlamaCpp => self.forced(client, text, within).await?,
        };
        let bits = bits_per_byte(&logs, bytes as u64).map_err(|e| {
            Error::permanent(format!(
                "these are no log-probabilities of {bytes} bytes: {e}"
            ))
        })?;
        Ok(Scored {
            nats: -logs.iter().sum::<f64>() / logs.len() as f64,
            bits_per_byte: bits,
        })
    }

    fn not_too_many(&self, tokens: usize) -> Result<()> {
        if tokens > self.most_tokens {
            return Err(Error::permanent(format!(
                "a text has {tokens} tokens, more than the {} that are allowed: shorten it, or allow more",
                self.most_tokens
            )));
        }
        Ok(())
    }

    /// The log-probabilities of all tokens that have one, and the bytes that they spell.
    async fn echo(
        &self,
        client: &ChatClient,
        text: &str,
        within: Duration,
    ) -> Result<(Vec<f64>, usize)> {
        // One token has to be made: not every server can make none.
        let body = json!({
            "model": client.model(), "prompt": text, "echo": true, "logprobs": 1, "max_tokens": 1, "temperature": 0, "seed": 0,
        });
        let reply: Echoed = client
            .post(
                "/v1/completions",
                "a completion with log-probabilities",
                &body,
                within,
            )
            .await?;
        client.check_model(reply.model.as_deref())?;
        let silent = || {
            Error::permanent(
                "the server does not tell the log-probabilities of what it is given (`echo` with `logprobs`): for llama.cpp use LogProbs::LlamaCpp",
            )
        };
        let found = reply.choices.into_iter().next().and_then(|c| c.logprobs);
        let (Some(found), Some(prompt)) = (found, reply.usage.and_then(|u| u.prompt_tokens)) else {
            return Err(silent());
        };
        self.not_too_many(prompt)?;
        // The text's own tokens; the one that had to be made comes after them.
        let Some((first, rest)) = found
            .token_logprobs
            .get(..prompt)
            .and_then(<[_]>::split_first)
        else {
            return Err(silent());
        };
        let mut logs: Vec<f64> = rest.iter().copied().flatten().collect();
        if logs.len() != rest.len() || logs.is_empty() {
            return Err(silent());
        }
        let head = found.tokens.first().and_then(Option::as_deref);
        let unscored = match first {
            Some(first) => {
                logs.insert(0, *first);
                0
            }
            None => head.filter(|h| text.starts_with(h)).map_or(0, str::len),
        };
        Ok((logs, text.len() - unscored))
    }

    /// The same, token by token.
    async fn forced(
        &self,
        client: &ChatClient,
        text: &str,
        within: Duration,
    ) -> Result<(Vec<f64>, usize)> {
        let end = Instant::now() + within;
        let left = || {
            end.saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1))
        };
        let body = json!({"content": text, "add_special": true, "with_pieces": true, "model": client.model()});
        let reply: Tokenized = client
            .post("/tokenize", "a list of tokens", &body, left())
            .await?;
        self.not_too_many(reply.tokens.len())?;
        let ids: Vec<u32> = reply.tokens.iter().map(|t| t.id).collect();
        let mut logs = Vec::with_capacity(ids.len());
        for (at, id) in ids.iter().enumerate().skip(1) {
            let body = json!({
                "model": client.model(), "prompt": ids[..at], "n_predict": 1, "n_probs": 1, "logit_bias": [[id, FORCE]],
                "cache_prompt": true, "stream": false, "seed": 0,
            });
            let reply: Forced = client
                .post(
                    "/completion",
                    "a completion with log-probabilities",
                    &body,
                    left(),
                )
                .await?;
            client.check_model(reply.model.as_deref())?;
            match reply.completion_probabilities.as_slice() {
                [token, ..] if token.id == *id => logs.push(token.logprob),
                _ => {
                    return Err(Error::permanent(
                        "the server does not tell the log-probability of a token that is forced by `logit_bias`: check that it is llama.cpp's, of 2025 or later",
                    ));
                }
            }
        }
        let head = reply.tokens.first().and_then(|t| t.piece.as_str());
        let unscored = head.filter(|h| text.starts_with(h)).map_or(0, str::len);
        Ok((logs, text.len() - unscored))
    }
}

#[async_trait]
impl Evaluator for LogLikelihood {
    async fn evaluate(&self, candidate: &VersionId, baseline: &VersionId) -> Result<Measurements> {
        let clients = [
            self.models.client(candidate)?,
            self.models.client(baseline)?,
        ];
        let scores = self
            .effort
            .each(2 * self.texts.len(), &|index, within| {
                Box::pin(self.score(&clients[index % 2], &self.texts[index / 2], within))
            })
            .await?;
        for (arm, version) in [candidate, baseline].iter().enumerate() {
            let who = format!("{} on {:?}", version.reference(), self.name);
            let of_arm = scores.iter().skip(arm).step_by(2);
            not_too_many_missing(&who, MOST_MISSING, of_arm)?;
        }
        let arm = |arm: usize, of: fn(&Scored) -> f64| {
            let scores = scores.iter().skip(arm).step_by(2);
            mean(&scores.flatten().map(of).collect::<Vec<_>>())
        };
        let both = |of| Measurement::against(arm(0, of), arm(1, of));
        let difference: Vec<f64> = scores
            .chunks(2)
            .filter_map(|pair| match pair {
                [Ok(new), Ok(old)] => Some(new.nats - old.nats),
                _ => None,
            })
            .collect();
        let unscored = |arm| share(scores.iter().skip(arm).step_by(2).map(Result::is_err));
        let name = &self.name;
        Ok(Measurements::from([
            (name.clone(), both(|s| s.nats)),
            (format!("{name}.bits_per_byte"), both(|s| s.bits_per_byte)),
            (
                format!("{name}.difference"),
                Measurement::of(mean(&difference)),
            ),
            (
                format!("{name}.unscored"),
                Measurement::against(unscored(0), unscored(1)),
            ),
        ]))
    }

    fn measures(&self) -> Option<BTreeSet<String>> {
        let parts = ["", ".bits_per_byte", ".difference", ".unscored"];
        Some(parts.map(|part| format!("{}{part}", self.name)).into())
    }
}
