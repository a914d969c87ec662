//! The order desk: the little task that the example's model has learnt.
//!
//! A request is a customer's letter in plain English; the answer is one line
//! of JSON with the ordered item, the count and the city, or, to a desk that
//! was told nothing, friendly prose. This module is the only generator of
//! that text: the training corpus, the offline suite, the live mix and the
//! held-out text all come from it, each from seeds of its own.

mod check;
mod corpus;
mod grammar;
mod words;

pub use check::{CheckError, check};
pub use corpus::{Document, heldout, training};

use super::rng::SplitMix64;
use serde::{Deserialize, Serialize};

/// The system prompt that asks for JSON; the one of every bundle.
pub const SYSTEM_PROMPT: &str =
    "You are the order desk. Answer with one line of JSON: item, count, city.";

/// A system prompt that asks for plain fields; the model has learnt it too.
pub const FIELDS_PROMPT: &str =
    "You are the order desk. Answer with plain fields: item; count; city.";

const SUITE_SEED: u64 = 0x0FF1_1E5E;
const LIVE_SEED: u64 = 0x11FE_A11D;

/// What a customer orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Order {
    /// The item, in the singular.
    pub item: String,
    /// How many of it.
    pub count: u32,
    /// Where to.
    pub city: String,
}

impl Order {
    /// One that no answer has right: for who looks at the form only.
    pub const fn unknown() -> Self {
        Self {
            item: String::new(),
            count: 0,
            city: String::new(),
        }
    }

    /// The answer that the system prompt asks for.
    pub fn to_json(&self) -> String {
        format!(
            r#"{{"item":"{}","count":{},"city":"{}"}}"#,
            self.item, self.count, self.city
        )
    }

    /// The answer in plain fields.
    pub fn to_fields(&self) -> String {
        format!("{}; {}; {}", self.item, self.count, self.city)
    }
}

/// One request with the answer that is right for it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request {
    /// The customer's message.
    pub text: String,
    /// What it orders.
    pub expected: Order,
    /// Whether it is one of the rambling kind.
    pub long: bool,
}

impl Request {
    fn draw(rng: &mut SplitMix64, long: bool) -> Self {
        let drawn = grammar::order(rng);
        let text = if long {
            grammar::long_message(rng, &drawn)
        } else {
            grammar::short_message(rng, &drawn)
        };
        Self {
            text,
            expected: drawn.order,
            long,
        }
    }
}

/// The offline suite: short requests only, as a team might have collected
/// them before the first long letter arrived.
pub fn offline_suite(count: usize) -> Vec<Request> {
    (0..count as u64)
        .map(|index| Request::draw(&mut SplitMix64::nth(SUITE_SEED, index), false))
        .collect()
}

/// The `index`-th request of the live mix under `seed`: 60 % short, 40 % long.
pub fn live_request(seed: u64, index: u64) -> Request {
    let mut rng = SplitMix64::nth(seed ^ LIVE_SEED, index);
    let long = rng.chance(40);
    Request::draw(&mut rng, long)
}

/// The first `count` requests of the live mix under `seed`.
pub fn live(seed: u64, count: usize) -> Vec<Request> {
    (0..count as u64)
        .map(|index| live_request(seed, index))
        .collect()
}
