//! One answer, token by token.

use super::Model;
use super::config::Generation;
use super::network::{Cache, softmax};
use super::rng::SplitMix64;
use super::tokenizer::EOS;

/// One step of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Token {
    /// Which token it is.
    pub id: u16,
    /// The text that it completes: empty while a character is still partial.
    pub text: String,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a generation ends by itself or is ended"
)]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// It reached `max_tokens`.
    Length,
}

impl Finish {
    /// The word that the OpenAI-compatible API has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reply {
    /// Its text.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// How many tokens of the prompt the model saw.
    pub prompt_tokens: usize,
    /// How many tokens of the prompt did not fit and were dropped.
    pub dropped_tokens: usize,
    /// How many tokens the answer has.
    pub completion_tokens: usize,
}

/// An answer being generated: an iterator over its tokens.
///
/// The prompt is taken in on the first call of `next`, so making one costs
/// nothing.
#[derive(Debug)]
pub struct Generate<'a> {
    model: &'a Model,
    settings: Generation,
    rng: SplitMix64,
    cache: Cache,
    /// What the network has not seen yet.
    waiting: Vec<u16>,
    logits: Vec<f32>,
    partial: Vec<u8>,
    prompt_tokens: usize,
    dropped_tokens: usize,
    completion_tokens: usize,
    finish: Option<Finish>,
}

impl<'a> Generate<'a> {
    pub(super) fn new(model: &'a Model, prompt: &[u16], settings: &Generation, seed: u64) -> Self {
        let budget = settings.prompt_budget().max(1);
        let dropped = prompt.len().saturating_sub(budget);
        let kept = prompt.get(dropped..).unwrap_or_default();
        Self {
            model,
            settings: settings.clone(),
            rng: SplitMix64::new(seed),
            cache: model.network().cache(),
            waiting: kept.to_vec(),
            logits: Vec::new(),
            partial: Vec::new(),
            prompt_tokens: kept.len(),
            dropped_tokens: dropped,
            completion_tokens: 0,
            finish: None,
        }
    }

    /// Why the answer ended; nothing while it has not.
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// How many tokens of the prompt the model sees.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// How many tokens of the prompt did not fit in the context.
    pub fn dropped_tokens(&self) -> usize {
        self.dropped_tokens
    }

    /// How many tokens the answer has so far.
    pub fn completion_tokens(&self) -> usize {
        self.completion_tokens
    }

    /// Runs to the end.
    pub fn collect_reply(mut self) -> Reply {
        let mut text = String::new();
        for token in &mut self {
            text.push_str(&token.text);
        }
        Reply {
            text,
            finish: self.finish.unwrap_or(Finish::Length),
            prompt_tokens: self.prompt_tokens,
            dropped_tokens: self.dropped_tokens,
            completion_tokens: self.completion_tokens,
        }
    }

    fn choose(&mut self) -> u16 {
        let network = self.model.network();
        let hidden = network.advance_to_last(&mut self.cache, &self.waiting);
        network.logits(&hidden, &mut self.logits);
        if self.settings.temperature <= 0.0 {
            likeliest(&self.logits)
        } else {
            sample(&mut self.logits, &self.settings, &mut self.rng)
        }
    }

    fn text(&mut self, id: u16) -> String {
        self.partial.extend(self.model.tokenizer().bytes(id));
        let whole = match std::str::from_utf8(&self.partial) {
            Ok(_) => self.partial.len(),
            // an incomplete character at the end waits for its other bytes
            Err(error)
                if error.error_len().is_none()
                    && self.completion_tokens < self.settings.max_tokens =>
            {
                error.valid_up_to()
            }
            Err(_) => self.partial.len(),
        };
        let rest = self.partial.split_off(whole);
        let done = std::mem::replace(&mut self.partial, rest);
        String::from_utf8_lossy(&done).into_owned()
    }
}

impl Iterator for Generate<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        if self.finish.is_some() {
            return None;
        }
        if self.completion_tokens >= self.settings.max_tokens {
            self.finish = Some(Finish::Length);
            return None;
        }
        let id = self.choose();
        self.waiting.clear();
        self.waiting.push(id);
        if id == EOS {
            self.finish = Some(Finish::Stop);
            return None;
        }
        self.completion_tokens += 1;
        let text = self.text(id);
        Some(Token { id, text })
    }
}

/// The place of the highest score; the first of equals.
fn likeliest(logits: &[f32]) -> u16 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &score) in logits.iter().enumerate() {
        if score > best.1 {
            best = (id, score);
        }
    }
    u16::try_from(best.0).unwrap_or(EOS)
}

fn sample(logits: &mut [f32], settings: &Generation, rng: &mut SplitMix64) -> u16 {
    for score in &mut *logits {
        *score /= settings.temperature;
    }
    softmax(logits);
    let mut ranked: Vec<(usize, f64)> = logits.iter().map(|&p| f64::from(p)).enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut mass = 0.0;
    let kept = ranked.iter().take_while(|(_, p)| {
        let wanted = mass < f64::from(settings.top_p);
        mass += p;
        wanted
    });
    let kept: Vec<(usize, f64)> = kept.copied().collect();
    let mut left = rng.unit() * kept.iter().map(|(_, p)| p).sum::<f64>();
    for &(id, p) in &kept {
        left -= p;
        if left < 0.0 {
            return u16::try_from(id).unwrap_or(EOS);
        }
    }
    kept.last()
        .and_then(|&(id, _)| u16::try_from(id).ok())
        .unwrap_or(EOS)
}
