//! A small vocabulary: every byte, three marks, and the commonest words.
//!
//! A text is cut from left to right, always at the longest piece that fits;
//! whatever is in no piece falls back to bytes, so any text can be written.
//! The marks have no spelling, so no text can forge one.

use super::error::LmError;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

const FORMAT: &str = "longest-match-v1";
const BYTES: usize = 256;
const MARKS: usize = 3;

/// Marks the beginning of a document.
pub const BOS: u16 = 256;
/// Marks the end of an answer: the stop token.
pub const EOS: u16 = 257;
/// Fills up rows in training; never generated on purpose.
pub const PAD: u16 = 258;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Spelled {
    format: String,
    pieces: Vec<String>,
}

/// Turns text into token ids and back.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    pieces: Vec<Vec<u8>>,
    ids: HashMap<Vec<u8>, u16>,
    longest: usize,
}

impl Tokenizer {
    /// Learns a vocabulary of `size` ids from `texts`: words with the space
    /// before them, and runs of punctuation, by the bytes that they save.
    pub fn train<'a>(texts: impl IntoIterator<Item = &'a str>, size: usize) -> Self {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for text in texts {
            for word in words(text) {
                *counts.entry(word).or_default() += 1;
            }
        }
        let mut ranked: Vec<(usize, &str)> = counts
            .into_iter()
            .filter(|(word, _)| word.len() > 1)
            .map(|(word, count)| (count * (word.len() - 1), word))
            .collect();
        ranked.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        ranked.truncate(size.saturating_sub(BYTES + MARKS));
        Self::new(ranked.into_iter().map(|(_, word)| word.to_owned()))
    }

    fn new(pieces: impl IntoIterator<Item = String>) -> Self {
        let pieces: Vec<Vec<u8>> = pieces.into_iter().map(String::into_bytes).collect();
        let ids = pieces
            .iter()
            .cloned()
            .zip((BYTES + MARKS..).filter_map(|id| u16::try_from(id).ok()))
            .collect();
        let longest = pieces.iter().map(Vec::len).max().unwrap_or(1);
        Self {
            pieces,
            ids,
            longest,
        }
    }

    /// Reads the JSON form.
    ///
    /// # Errors
    ///
    /// [`LmError::Tokenizer`] for anything but this module's own format.
    pub fn from_json(json: &str) -> Result<Self, LmError> {
        let spelled: Spelled =
            serde_json::from_str(json).map_err(|error| LmError::Tokenizer(error.to_string()))?;
        if spelled.format != FORMAT {
            return Err(LmError::Tokenizer(format!(
                "unknown format `{}`",
                spelled.format
            )));
        }
        if spelled.pieces.len() + BYTES + MARKS > usize::from(u16::MAX) {
            return Err(LmError::Tokenizer("too many pieces".to_owned()));
        }
        let count = spelled.pieces.len();
        let tokenizer = Self::new(spelled.pieces);
        if tokenizer.ids.len() != count || tokenizer.ids.contains_key(&Vec::new()) {
            return Err(LmError::Tokenizer(
                "a piece is empty or stands twice".to_owned(),
            ));
        }
        Ok(tokenizer)
    }

    /// Writes the JSON form.
    ///
    /// # Errors
    ///
    /// [`LmError::Tokenizer`] if a piece is not text.
    pub fn to_json(&self) -> Result<String, LmError> {
        let pieces = self
            .pieces
            .iter()
            .map(|piece| String::from_utf8_lossy(piece).into_owned())
            .collect();
        serde_json::to_string_pretty(&Spelled {
            format: FORMAT.to_owned(),
            pieces,
        })
        .map_err(|error| LmError::Tokenizer(error.to_string()))
    }

    /// How many ids there are.
    pub fn size(&self) -> usize {
        BYTES + MARKS + self.pieces.len()
    }

    /// The ids of a text, without marks.
    pub fn encode(&self, text: &str) -> Vec<u16> {
        let mut rest = text.as_bytes();
        let mut out = Vec::with_capacity(rest.len() / 3 + 1);
        while let Some(&byte) = rest.first() {
            let most = self.longest.min(rest.len());
            let found = (2..=most).rev().find_map(|len| {
                rest.get(..len)
                    .and_then(|head| self.ids.get(head))
                    .map(|&id| (id, len))
            });
            let (id, len) = found.unwrap_or((u16::from(byte), 1));
            out.push(id);
            rest = rest.get(len..).unwrap_or_default();
        }
        out
    }

    /// The bytes of one id; none for a mark or an id out of range.
    ///
    /// A multi-byte character may be spread over several ids.
    pub fn bytes(&self, id: u16) -> Vec<u8> {
        match (u8::try_from(id), usize::from(id).checked_sub(BYTES + MARKS)) {
            (Ok(byte), _) => vec![byte],
            (Err(_), Some(at)) => self.pieces.get(at).cloned().unwrap_or_default(),
            (Err(_), None) => Vec::new(),
        }
    }

    /// The text of `ids`; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u16]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.bytes(id)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Cuts a text into words with the one space before them, single digits, and
/// runs of other visible characters.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at;
        let first = *bytes.get(at)?;
        if first == b' ' {
            at += 1;
        }
        let kind = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' => 0_u8,
            b'!'..=b'/' | b':'..=b'@' | b'['..=b'`' | b'{'..=b'~' => 1,
            _ => 2,
        };
        let run = bytes.get(at).map(|&byte| kind(byte));
        match run {
            Some(run @ (0 | 1)) => {
                while bytes.get(at).is_some_and(|&byte| kind(byte) == run) {
                    at += 1;
                }
            }
            Some(_) if at == start => {
                at += 1;
                while !text.is_char_boundary(at) {
                    at += 1;
                }
            }
            _ => {}
        }
        text.get(start..at)
    })
}

#[cfg(test)]
mod tests {
    use super::{BOS, Tokenizer, words};

    #[test]
    fn cuts_words_with_their_space() {
        let cut: Vec<&str> = words("Hi, 12 lamps\n{\"a\":3}").collect();
        assert_eq!(
            cut,
            [
                "Hi", ",", " ", "1", "2", " lamps", "\n", "{\"", "a", "\":", "3", "}"
            ]
        );
    }

    #[test]
    fn round_trips_any_text_and_its_own_json() {
        let tokenizer = Tokenizer::train(["two lamps and two lamps", "é lamps"], 262);
        let again = Tokenizer::from_json(&tokenizer.to_json().unwrap()).unwrap();
        for text in ["", "two lamps", "Überlänge 雨 lamps\u{0}", "<bos>"] {
            let ids = again.encode(text);
            assert_eq!(ids, tokenizer.encode(text));
            assert_eq!(again.decode(&ids), text);
            assert!(!ids.contains(&BOS));
        }
        assert_eq!(tokenizer.encode(" lamps").len(), 1);
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        for json in [
            "{}",
            r#"{"format":"bpe","pieces":[]}"#,
            r#"{"format":"longest-match-v1","pieces":["a","a"]}"#,
        ] {
            assert!(Tokenizer::from_json(json).is_err(), "{json}");
        }
    }
}
