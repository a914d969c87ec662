//! Documents to learn from, and documents kept back.

use super::{FIELDS_PROMPT, SYSTEM_PROMPT, grammar};
use crate::chat::ChatTemplate;
use crate::rng::SplitMix64;

const TRAIN_SEED: u64 = 0x7EAC_4E12;
const HELDOUT_SEED: u64 = 0x4E1D_0017;

/// A conversation of one message and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Document {
    /// Everything before the answer, as the chat template lays it out.
    pub prompt: String,
    /// The answer.
    pub reply: String,
    /// Whether training may cut off the beginning, as it does with plain
    /// transcripts; instructed documents are learnt whole.
    pub may_crop: bool,
}

/// The `index`-th document of the training corpus.
///
/// A third are transcripts without a system prompt, answered in prose; the
/// others carry a system prompt and are answered as it says.
pub fn training(template: &ChatTemplate, index: u64) -> Document {
    let mut rng = SplitMix64::nth(TRAIN_SEED, index);
    match rng.below(100) {
        0..33 => chat(template, &mut rng),
        33..43 => instructed(template, &mut rng, FIELDS_PROMPT, super::Order::to_fields),
        _ => instructed(template, &mut rng, SYSTEM_PROMPT, super::Order::to_json),
    }
}

/// The first `count` texts of the held-out set: transcripts whose seeds the
/// corpus never uses.
pub fn heldout(template: &ChatTemplate, count: usize) -> Vec<String> {
    (0..count as u64)
        .map(|index| {
            let document = chat(template, &mut SplitMix64::nth(HELDOUT_SEED, index));
            document.prompt + &document.reply
        })
        .collect()
}

fn chat(template: &ChatTemplate, rng: &mut SplitMix64) -> Document {
    let drawn = grammar::order(rng);
    let message = message(rng, &drawn);
    let reply = grammar::chat_answer(rng, &drawn);
    Document {
        prompt: template.render("", &message),
        reply,
        may_crop: true,
    }
}

fn instructed(
    template: &ChatTemplate,
    rng: &mut SplitMix64,
    system: &str,
    answer: impl Fn(&super::Order) -> String,
) -> Document {
    let drawn = grammar::order(rng);
    let message = message(rng, &drawn);
    Document {
        prompt: template.render(system, &message),
        reply: answer(&drawn.order),
        may_crop: false,
    }
}

fn message(rng: &mut SplitMix64, drawn: &grammar::Drawn) -> String {
    if rng.chance(50) {
        grammar::long_message(rng, drawn)
    } else {
        grammar::short_message(rng, drawn)
    }
}
