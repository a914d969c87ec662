//! Fills the sentence patterns of [`super::words`] from a random stream.

use super::Order;
use super::words;
use crate::rng::SplitMix64;

/// A drawn order and the two ways its goods are written.
#[derive(Debug, Clone)]
pub(super) struct Drawn {
    pub(super) order: Order,
    goods: String,
}

/// Draws an order.
pub(super) fn order(rng: &mut SplitMix64) -> Drawn {
    let (single, plural) = item(rng);
    let count = count(rng);
    let goods = goods(rng, count, plural);
    let city = rng.pick(&words::CITIES);
    Drawn {
        order: Order {
            item: single.to_owned(),
            count,
            city: city.to_owned(),
        },
        goods,
    }
}

/// A message of one order sentence with at most a greeting and a closing.
pub(super) fn short_message(rng: &mut SplitMix64, drawn: &Drawn) -> String {
    let mut parts = Vec::with_capacity(3);
    let frame = rng.below(10);
    if frame < 4 {
        parts.push(fill(rng, &words::GREETINGS, Some(drawn)));
    }
    parts.push(fill(rng, &words::ORDERS, Some(drawn)));
    if (4..8).contains(&frame) {
        parts.push(fill(rng, &words::CLOSINGS, Some(drawn)));
    }
    parts.join(" ")
}

/// A rambling message: the order sentence among unrelated ones.
pub(super) fn long_message(rng: &mut SplitMix64, drawn: &Drawn) -> String {
    let want = 290 + rng.below(150);
    let mut fillers = Vec::new();
    let mut bytes = 80;
    while bytes < want {
        let sentence = fill(rng, &words::FILLERS, None);
        bytes += sentence.len() + 1;
        fillers.push(sentence);
    }
    let at = rng.below(fillers.len() + 1);
    fillers.insert(at, fill(rng, &words::ORDERS, Some(drawn)));
    let mut parts = Vec::with_capacity(fillers.len() + 2);
    if rng.chance(70) {
        parts.push(fill(rng, &words::GREETINGS, Some(drawn)));
    }
    parts.append(&mut fillers);
    if rng.chance(70) {
        parts.push(fill(rng, &words::CLOSINGS, Some(drawn)));
    }
    parts.join(" ")
}

/// An answer in friendly prose, as nobody's program could read it.
pub(super) fn chat_answer(rng: &mut SplitMix64, drawn: &Drawn) -> String {
    let mut parts = vec![fill(rng, &words::CHAT_OPENINGS, Some(drawn))];
    let more = 2 + rng.below(3);
    let at = rng.below(2);
    for index in 0..more {
        if index == at {
            parts.push(fill(rng, &words::CHAT_CONFIRMS, Some(drawn)));
        }
        parts.push(fill(rng, &words::CHAT_FILLERS, Some(drawn)));
    }
    parts.push(fill(rng, &words::CHAT_CLOSINGS, Some(drawn)));
    parts.join(" ")
}

fn item(rng: &mut SplitMix64) -> (&'static str, &'static str) {
    words::ITEMS
        .get(rng.below(words::ITEMS.len()))
        .copied()
        .unwrap_or(("lamp", "lamps"))
}

/// Two and more: nobody writes a letter for one spoon.
fn count(rng: &mut SplitMix64) -> u32 {
    let bound = match rng.below(10) {
        0..6 => 11,
        _ => 59,
    };
    u32::try_from(2 + rng.below(bound)).unwrap_or(2)
}

fn goods(rng: &mut SplitMix64, count: u32, plural: &str) -> String {
    let word = usize::try_from(count)
        .ok()
        .and_then(|n| words::NUMBERS.get(n.checked_sub(1)?));
    match word {
        Some(word) if rng.chance(50) => format!("{word} {plural}"),
        _ => format!("{count} {plural}"),
    }
}

/// Draws one of `patterns` and fills its slots; `{goods}` and `{city}` are
/// those of `own` if there is one, and drawn anew otherwise.
fn fill(rng: &mut SplitMix64, patterns: &[&str], own: Option<&Drawn>) -> String {
    let mut rest = rng.pick(patterns);
    let mut out = String::with_capacity(rest.len() + 16);
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        let Some((slot, tail)) = after.split_once('}') else {
            break;
        };
        out.push_str(&value(rng, slot, own));
        rest = tail;
    }
    out.push_str(rest);
    out
}

fn value(rng: &mut SplitMix64, slot: &str, own: Option<&Drawn>) -> String {
    match (slot, own) {
        ("goods", Some(drawn)) => return drawn.goods.clone(),
        ("city", Some(drawn)) => return drawn.order.city.clone(),
        _ => {}
    }
    match slot {
        "goods" => order(rng).goods,
        "items" => item(rng).1.to_owned(),
        "city" => rng.pick(&words::CITIES).to_owned(),
        "name" => rng.pick(&words::NAMES).to_owned(),
        "small" => (2 + rng.below(18)).to_string(),
        "day" => rng.pick(&words::DAYS).to_owned(),
        "month" => rng.pick(&words::MONTHS).to_owned(),
        "relation" => rng.pick(&words::RELATIONS).to_owned(),
        "place" => rng.pick(&words::PLACES).to_owned(),
        "mood" => rng.pick(&words::MOODS).to_owned(),
        "quality" => rng.pick(&words::QUALITIES).to_owned(),
        "weather" => rng.pick(&words::WEATHERS).to_owned(),
        "animal" => rng.pick(&words::ANIMALS).to_owned(),
        _ => String::new(),
    }
}
