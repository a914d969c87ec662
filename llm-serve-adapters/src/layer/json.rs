//! Looks through JSON without keeping any of it: what a reply's parts say about its tokens and its end.

use super::scan;

/// What matters in a reply, so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Non-empty pieces of content, reasoning, tool calls or refusals.
    pub(crate) deltas: u64,
    /// Output tokens, as the reply itself says.
    pub(crate) usage: Option<u64>,
    /// An error object at the top.
    pub(crate) error: bool,
    /// A safety filter ended it.
    pub(crate) filtered: bool,
    /// An event that ends a stream, other than `[DONE]`.
    pub(crate) ended: bool,
}

/// Keys that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Text,
    Calls,
    Tokens,
    Error,
    Finish,
    Type,
}

impl Name {
    /// Those that end in these two letters.
    #[inline]
    fn ending(letters: [u8; 2]) -> &'static [(&'static [u8], Self)] {
        match &letters {
            b"nt" => &[(b"content", Self::Text), (b"reasoning_content", Self::Text)],
            b"ng" => &[(b"reasoning", Self::Text), (b"thinking", Self::Text)],
            b"al" => &[(b"refusal", Self::Text)],
            b"xt" => &[(b"text", Self::Text)],
            b"ta" => &[(b"delta", Self::Text)],
            b"ls" => &[(b"tool_calls", Self::Calls)],
            b"ll" => &[(b"function_call", Self::Calls)],
            b"ns" => &[
                (b"completion_tokens", Self::Tokens),
                (b"output_tokens", Self::Tokens),
            ],
            b"or" => &[(b"error", Self::Error)],
            b"on" => &[
                (b"finish_reason", Self::Finish),
                (b"stop_reason", Self::Finish),
            ],
            b"pe" => &[(b"type", Self::Type)],
            _ => &[],
        }
    }

    fn of(key: &[u8]) -> Option<Self> {
        let mut known = Self::ending(*key.last_chunk()?).iter();
        known
            .find(|(known, _)| *known == key)
            .map(|(_, name)| *name)
    }
}

/// Why a safety filter ends a reply.
const FILTERED: &[&[u8]] = &[b"content_filter", b"refusal"];
/// Types of events that end a stream.
const ENDED: &[&[u8]] = &[
    b"response.completed",
    b"response.incomplete",
    b"message_stop",
];
/// Types of events that say that it failed.
const FAILED: &[&[u8]] = &[b"response.failed", b"error"];

/// Whether a string is one of these, by what comes after its first quote.
fn is_among(text: &[u8], known: &[&[u8]]) -> bool {
    let is = |known: &&[u8]| matches!(text.strip_prefix(*known), Some([b'"', ..]));
    known.iter().any(is)
}

/// A number with one more digit.
fn appended(number: u64, digit: u8) -> u64 {
    let digit = digit.saturating_sub(b'0');
    number.saturating_mul(10).saturating_add(u64::from(digit))
}

impl Seen {
    /// Takes in what comes with this colon, as if it came after a key. `false`: it takes a closer look to tell.
    #[inline]
    fn member(&mut self, text: &[u8], colon: usize) -> bool {
        let letters = match text.get(..colon) {
            Some([.., one, last, b'"']) => [*one, *last],
            // There may be room between a key and its colon.
            Some([.., last]) => return !last.is_ascii_whitespace(),
            _ => return true,
        };
        let names = Name::ending(letters);
        names.is_empty() || self.named(names, text, colon)
    }

    /// The same of one with one of these names, if it has. Within a string a quote has a backslash before it: a quote, a name, a
    /// quote and a colon are a key, or with a backslash before them the end of a longer one.
    #[inline(never)]
    fn named(&mut self, names: &[(&[u8], Name)], text: &[u8], colon: usize) -> bool {
        let Some((before, [b':', value @ ..])) = text.split_at_checked(colon) else {
            return true;
        };
        let key = before.strip_suffix(b"\"").unwrap_or_default();
        let found = names.iter().find_map(|(name, what)| {
            let before = key.strip_suffix(*name)?.strip_suffix(b"\"")?;
            Some((before, *what))
        });
        let what = match found {
            Some(([.., b'\\'], _)) => return false,
            Some((_, what)) => what,
            None => return true,
        };
        match (what, value.trim_ascii_start()) {
            (Name::Text, [b'"', next, ..]) => self.deltas += u64::from(*next != b'"'),
            (Name::Calls, [b'[' | b'{', within @ ..]) => {
                let first = within.trim_ascii_start().first();
                self.deltas += u64::from(!matches!(first, Some(b']' | b'}')));
            }
            (Name::Tokens, digits @ [b'0'..=b'9', ..]) => {
                let digits = digits.iter().take_while(|digit| digit.is_ascii_digit());
                self.usage = Some(digits.fold(0, |number, digit| appended(number, *digit)));
            }
            (Name::Finish, [b'"', text @ ..]) => self.filtered |= is_among(text, FILTERED),
            // What these say depends on where they are.
            (Name::Error, [b'"' | b'[' | b'{', ..]) => return false,
            (Name::Type, [b'"', text @ ..]) => {
                return !is_among(text, ENDED) && !is_among(text, FAILED);
            }
            _ => {}
        }
        true
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// Between tokens.
    #[default]
    Between,
    /// In a string.
    Text,
    /// After a backslash in a string.
    Escape,
    /// In a number that is wanted.
    Number(u64),
    /// Right after a bracket that a wanted key opened.
    Opened,
}

/// Longer strings are none that matter.
pub(super) const LONGEST: usize = 24;

/// Keeps as much of a text as there is room for behind so much of it; how much there is now.
pub(super) fn keep(buffer: &mut [u8; LONGEST], length: usize, text: &[u8]) -> usize {
    let room = buffer.get_mut(length..).unwrap_or_default();
    room.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
    length.saturating_add(text.len())
}

/// The scanner's whole memory: no input makes it grow.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Json {
    state: State,
    depth: u32,
    buffer: [u8; LONGEST],
    length: usize,
    /// The string before, which is a key if a colon follows.
    string: Option<Name>,
    /// The key whose value comes now.
    key: Option<Name>,
    pub(crate) seen: Seen,
}

impl Json {
    /// The next document; what has been seen stays.
    pub(crate) fn restart(&mut self) {
        *self = Self {
            seen: self.seen,
            ..Self::default()
        };
    }

    /// What will have been seen after this line, which begins with a whole document, and where it ends: from key to key, several
    /// times as fast as byte by byte, and of valid JSON the same. None: it has to be looked through byte by byte.
    pub(crate) fn glance(&self, line: &[u8]) -> Option<(Seen, usize)> {
        let between = self.state == State::Between && self.depth == 0;
        if !between || self.string.is_some() || self.key.is_some() {
            return None;
        }
        let mut seen = self.seen;
        let end = scan::line(line, b':', |colon| seen.member(line, colon))?;
        matches!(line.get(..end), Some([b'{', .., b'}'])).then_some((seen, end))
    }

    /// The same as byte by byte; what is within a string is passed over at once.
    pub(crate) fn feed_all(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((byte, tail)) = rest.split_first() {
            if self.state == State::Text {
                let within = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'));
                let (text, after) = rest.split_at(within.unwrap_or(rest.len()));
                self.length = keep(&mut self.buffer, self.length, text);
                if !text.is_empty() {
                    rest = after;
                    continue;
                }
            }
            self.feed(*byte);
            rest = tail;
        }
    }

    pub(crate) fn feed(&mut self, byte: u8) {
        match self.state {
            State::Text => self.in_string(byte),
            State::Escape => {
                self.state = State::Text;
                self.keep(byte);
            }
            State::Number(n) if byte.is_ascii_digit() => {
                self.state = State::Number(appended(n, byte));
            }
            State::Number(n) => {
                self.seen.usage = Some(n);
                self.state = State::Between;
                self.between(byte);
            }
            State::Opened if byte.is_ascii_whitespace() => {}
            State::Opened => {
                if !matches!(byte, b']' | b'}') {
                    self.seen.deltas += 1;
                }
                self.state = State::Between;
                self.between(byte);
            }
            State::Between => self.between(byte),
        }
    }

    fn keep(&mut self, byte: u8) {
        if let Some(place) = self.buffer.get_mut(self.length) {
            *place = byte;
        }
        self.length = self.length.saturating_add(1);
    }

    fn in_string(&mut self, byte: u8) {
        match byte {
            b'"' => {
                self.state = State::Between;
                self.end_of_string();
            }
            b'\\' => self.state = State::Escape,
            _ => self.keep(byte),
        }
    }

    fn end_of_string(&mut self) {
        let text = self.buffer.get(..self.length).unwrap_or_default();
        match self.key.take() {
            None => self.string = Name::of(text),
            Some(Name::Text) if self.length > 0 => self.seen.deltas += 1,
            Some(Name::Error) if self.depth == 1 => self.seen.error = true,
            Some(Name::Finish) => {
                self.seen.filtered |= FILTERED.contains(&text);
            }
            Some(Name::Type) if self.depth == 1 => {
                self.seen.ended |= ENDED.contains(&text);
                self.seen.error |= FAILED.contains(&text);
            }
            Some(_) => {}
        }
    }

    fn between(&mut self, byte: u8) {
        if byte.is_ascii_whitespace() {
            return;
        }
        if byte == b':' {
            self.key = self.string.take();
            return;
        }
        self.string = None;
        match byte {
            b'"' => {
                self.state = State::Text;
                self.length = 0;
                return;
            }
            b'{' | b'[' => {
                match self.key {
                    Some(Name::Calls) => self.state = State::Opened,
                    Some(Name::Error) if self.depth == 1 => self.seen.error = true,
                    _ => {}
                }
                self.depth = self.depth.saturating_add(1);
            }
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            b'0'..=b'9' if self.key == Some(Name::Tokens) => {
                self.state = State::Number(appended(0, byte));
            }
            _ => {}
        }
        self.key = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seen(text: &str) -> Seen {
        let mut json = Json::default();
        text.bytes().for_each(|b| json.feed(b));
        json.seen
    }

    #[test]
    fn pieces_that_are_not_empty_count() {
        for one in [
            r#"{"choices":[{"delta":{"content":"Hi"}}]}"#,
            r#"{"choices":[{"delta":{"role":"assistant","content":null,"reasoning_content":"\n"}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#,
            r#"{"choices":[{"delta":{"refusal":"no"}}]}"#,
            r#"{"choices":[{"text" : "a"}]}"#,
            r#"{"type":"response.output_text.delta","delta":"a"}"#,
        ] {
            assert_eq!(seen(one).deltas, 1, "{one}");
        }
        for none in [
            r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
            r#"{"choices":[{"delta":{"content":null,"tool_calls":[ ]}}]}"#,
            r#"{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":null}"#,
            r#"{"model":"content","x":["content","text"]}"#,
            r#"{"x":"\"content\":\"Hi\""}"#,
        ] {
            assert_eq!(seen(none).deltas, 0, "{none}");
        }
    }

    #[test]
    fn usage_errors_and_ends_are_seen() {
        assert_eq!(
            seen(r#"{"usage":{"prompt_tokens":9,"completion_tokens":42,"total_tokens":51}}"#).usage,
            Some(42)
        );
        assert_eq!(seen(r#"{"usage":{"output_tokens": 7}}"#).usage, Some(7));
        assert_eq!(seen(r#"{"usage":null}"#).usage, None);
        assert!(seen(r#"{"error":{"message":"boom"}}"#).error);
        assert!(seen(r#"{"error":"boom"}"#).error);
        assert!(!seen(r#"{"error":null,"id":"error"}"#).error);
        assert!(!seen(r#"{"x":{"error":{"message":"of a tool"}}}"#).error);
        assert!(seen(r#"{"choices":[{"finish_reason":"content_filter"}]}"#).filtered);
        assert!(seen(r#"{"type":"response.completed","response":{}}"#).ended);
        assert!(seen(r#"{"type":"response.failed"}"#).error);
    }

    proptest! {
        #[test]
        fn at_once_is_as_byte_by_byte(
            text in "([ -~]|\\\\\"|\"content\": ?\"|\\{|\\}|é){0,60}", cut in 0..60_usize,
        ) {
            let (mut one, mut all) = (Json::default(), Json::default());
            text.bytes().for_each(|byte| one.feed(byte));
            let (head, tail) = text.as_bytes().split_at(cut.min(text.len()));
            all.feed_all(head);
            all.feed_all(tail);
            prop_assert_eq!(one.seen, all.seen);
            prop_assert_eq!((one.state, one.length, one.depth), (all.state, all.length, all.depth));
        }

        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut json = Json::default();
            for byte in bytes {
                json.feed(byte);
            }
        }

        #[test]
        fn what_is_in_a_string_is_only_text(text in ".*") {
            let document = serde_json::json!({"choices": [{"delta": {"content": text}}]}).to_string();
            let found = seen(&document);
            prop_assert_eq!(found, Seen { deltas: u64::from(!text.is_empty()), ..Seen::default() });
        }
    }
}
