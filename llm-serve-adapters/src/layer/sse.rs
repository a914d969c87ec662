//! Looks through a server-sent event stream as it passes, without keeping any of it.

use super::json::{Json, LONGEST, Seen, keep};
use super::scan;

/// What a field of an event is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Field {
    /// Its name is still coming.
    #[default]
    Name,
    /// Right after the colon, where one space is allowed.
    Colon(bool),
    Data,
    Event,
    Other,
}

/// The scanner's whole memory: no input makes it grow.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sse {
    field: Field,
    line: [u8; LONGEST],
    length: usize,
    after_return: bool,
    done: bool,
    error: bool,
    json: Json,
}

impl Sse {
    /// Some more bytes of the stream.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((&byte, tail)) = rest.split_first() {
            if self.field == Field::Name
                && self.length == 0
                && let Some(after) = self.whole(rest)
            {
                rest = after;
                continue;
            }
            if matches!(self.field, Field::Data | Field::Event | Field::Other) {
                let end = scan::either(rest, b'\n', b'\r');
                let (line, after) = rest.split_at(end.unwrap_or(rest.len()));
                if !line.is_empty() {
                    self.after_return = false;
                    self.within_value(line);
                    rest = after;
                    continue;
                }
            }
            let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => self.end_of_line(),
                _ => self.within_line(byte),
            }
            rest = tail;
        }
    }

    /// Takes in an event of one line of data, as most are, if all of it is here; what comes after it. None: nothing was taken in.
    fn whole<'b>(&mut self, bytes: &'b [u8]) -> Option<&'b [u8]> {
        let value = bytes.strip_prefix(b"data:")?;
        let value = value.strip_prefix(b" ").unwrap_or(value);
        let (seen, length) = self.json.glance(value)?;
        let end = value.get(length..)?;
        let after = end.strip_prefix(b"\n\n");
        let after = after.or_else(|| end.strip_prefix(b"\r\n\r\n"))?;
        self.json.seen = seen;
        self.after_return = false;
        Some(after)
    }

    /// Non-empty pieces so far, and what the last chunks said.
    pub(crate) fn seen(&self) -> Seen {
        self.json.seen
    }

    /// An event said that it failed.
    pub(crate) fn failed(&self) -> bool {
        self.error || self.json.seen.error
    }

    /// It has come to its end: `[DONE]`, or an event that says so.
    pub(crate) fn is_done(&self) -> bool {
        self.done || self.json.seen.ended
    }

    fn text(&self) -> &[u8] {
        self.line.get(..self.length).unwrap_or_default()
    }

    fn within_line(&mut self, byte: u8) {
        match self.field {
            Field::Name if byte == b':' => {
                self.field = match self.text() {
                    b"data" => Field::Colon(true),
                    b"event" => Field::Colon(false),
                    _ => Field::Other,
                };
                self.length = 0;
            }
            Field::Name => self.length = keep(&mut self.line, self.length, &[byte]),
            Field::Colon(data) => {
                self.field = if data { Field::Data } else { Field::Event };
                if byte != b' ' {
                    self.within_line(byte);
                }
            }
            Field::Data | Field::Event | Field::Other => self.within_value(&[byte]),
        }
    }

    /// A part of a value that no line ends in.
    fn within_value(&mut self, part: &[u8]) {
        match self.field {
            Field::Data => {
                self.length = keep(&mut self.line, self.length, part);
                self.json.feed_all(part);
            }
            Field::Event => self.length = keep(&mut self.line, self.length, part),
            Field::Name | Field::Colon(_) | Field::Other => {}
        }
    }

    fn end_of_line(&mut self) {
        match (self.field, self.text()) {
            // An empty line ends an event.
            (Field::Name, b"") => self.json.restart(),
            (Field::Data, b"[DONE]") => self.done = true,
            (Field::Data, _) => self.json.feed(b'\n'),
            (Field::Event, b"error" | b"response.failed") => self.error = true,
            (Field::Event, b"response.completed" | b"message_stop") => self.done = true,
            _ => {}
        }
        self.field = Field::Name;
        self.length = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAM: &str = concat!(
        ": ping\r\n\r\n",
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
        "data:{\"choices\":[{\"delta\":{\"content\":\"Hello\"}}]}\n\n",
        "event: message\r\ndata: {\"choices\":[{\"delta\":{\"content\":\" you\"},\r\ndata: \"finish_reason\":\"stop\"}]}\r\n\r\n",
        "data: {\"choices\":[],\"usage\":{\"completion_tokens\":2}}\n\n",
        "data: [DONE]\n\n",
    );

    fn scan(text: &str) -> Sse {
        let mut sse = Sse::default();
        sse.feed(text.as_bytes());
        sse
    }

    #[test]
    fn a_chat_stream_is_understood() {
        let sse = scan(STREAM);
        assert!(sse.is_done() && !sse.failed());
        assert_eq!((sse.seen().deltas, sse.seen().usage), (2, Some(2)));
        let cut = &STREAM[..STREAM.len() - 8];
        assert!(!scan(cut).is_done());
    }

    #[test]
    fn most_events_are_taken_in_at_once() {
        for event in [
            "data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"content\":\"a: b\"},\"finish_reason\":null}],\"usage\":null}\n\n",
            "data: {\"choices\": [{\"delta\": {\"tool_calls\": [{\"type\": \"function\"}]}}]}\r\n\r\n",
            "data: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n",
            "data: {\"choices\":[],\"usage\":{\"completion_tokens\":2}}\n\n",
        ] {
            assert_eq!(
                Sse::default().whole(event.as_bytes()),
                Some(&[][..]),
                "{event}"
            );
        }
        for event in [
            "data: {\"error\":{\"message\":\"out of memory\"}}\n\n",
            "data: {\"type\":\"response.completed\"}\n\n",
            "data: {\"choices\" : []}\n\n",
            "data: {\ndata: }\n\n",
            "data: [DONE]\n\n",
        ] {
            assert_eq!(Sse::default().whole(event.as_bytes()), None, "{event}");
        }
    }

    #[test]
    fn errors_inside_a_stream_are_seen() {
        assert!(scan("data: {\"error\":{\"message\":\"out of memory\"}}\n\n").failed());
        assert!(scan("event: error\ndata: {}\n\n").failed());
        assert!(!scan("data: {\"choices\":[{\"delta\":{\"content\":\"error\"}}]}\n\n").failed());
        assert!(scan("event: response.completed\ndata: {}\n\n").is_done());
    }

    /// Events as servers write them, of keys and texts that matter, and of such as look like them.
    mod events {
        use proptest::prelude::*;
        use serde_json::{Map, Value};

        const NAMES: &[&str] = &[
            "content",
            "reasoning_content",
            "reasoning",
            "thinking",
            "refusal",
            "text",
            "delta",
            "tool_calls",
            "function_call",
            "completion_tokens",
            "output_tokens",
            "error",
            "finish_reason",
            "stop_reason",
            "type",
        ];
        const NEARLY: &[&str] = &[
            "nt",
            "my_content",
            "contents",
            "a\"content",
            "a\\",
            "content ",
            "usage",
            "choices",
        ];
        const TEXTS: &[&str] = &[
            "",
            "content",
            "\"content\":\"Hi\"",
            "\\\"content\":",
            "\\",
            "a : b",
            "error",
            "content_filter",
            "refusal",
            "response.completed",
            "response.failed",
            "function",
            "null}",
        ];
        const OTHERS: &[&str] = &[
            "data: [DONE]\n\n",
            "data: 1\ndata: 2\n\n",
            "data: {}\nid: 7\n\n",
            "data: \"content\"\n",
            "data: {\n",
            "\n",
        ];

        fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = String> {
            proptest::sample::select(texts).prop_map(str::to_owned)
        }

        fn text() -> impl Strategy<Value = String> {
            prop_oneof![2 => one_of(TEXTS), 1 => ".{0,30}"]
        }

        fn key() -> impl Strategy<Value = String> {
            prop_oneof![4 => one_of(NAMES), 2 => one_of(NEARLY), 1 => text()]
        }

        fn value() -> impl Strategy<Value = Value> {
            let leaf = prop_oneof![
                3 => text().prop_map(Value::from),
                1 => Just(Value::Null),
                1 => any::<bool>().prop_map(Value::from),
                1 => any::<i64>().prop_map(Value::from),
                1 => (-1e6..1e6).prop_map(Value::from),
            ];
            leaf.prop_recursive(4, 20, 4, |inner| {
                prop_oneof![
                    1 => proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                    3 => object(inner).prop_map(Value::from),
                ]
            })
        }

        fn object(
            value: impl Strategy<Value = Value>,
        ) -> impl Strategy<Value = Map<String, Value>> {
            proptest::collection::vec((key(), value), 0..4)
                .prop_map(|members| members.into_iter().collect())
        }

        /// With this after each comma, and this in place of each colon.
        fn write(value: &Value, comma: &str, colon: &str) -> String {
            let quoted = |text: &str| Value::from(text).to_string();
            match value {
                Value::Object(members) => {
                    let members = members.iter();
                    let members = members
                        .map(|(key, value)| quoted(key) + colon + &write(value, comma, colon));
                    format!("{{{}}}", members.collect::<Vec<_>>().join(comma))
                }
                Value::Array(values) => {
                    let values = values.iter().map(|value| write(value, comma, colon));
                    format!("[{}]", values.collect::<Vec<_>>().join(comma))
                }
                plain => plain.to_string(),
            }
        }

        pub(super) fn any_event() -> impl Strategy<Value = String> {
            let style = proptest::sample::select(vec![
                ("data: ", ",", ":", "\n"),
                ("data:", ", ", ": ", "\n"),
                ("data: ", ",", ":", "\r\n"),
                ("data: ", ",", " :", "\n"),
                ("event: x\ndata: ", ",\t", ":\t", "\n"),
                (": ping\n\ndata:  ", ",", ":", "\r"),
            ]);
            let event =
                (object(value()), style).prop_map(|(object, (field, comma, colon, end))| {
                    format!("{field}{}{end}{end}", write(&object.into(), comma, colon))
                });
            prop_oneof![6 => event, 1 => one_of(OTHERS)]
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]
        #[test]
        fn whole_events_say_the_same_as_their_bytes(
            events in proptest::collection::vec(events::any_event(), 1..6), cut in any::<proptest::sample::Index>(),
        ) {
            let stream = events.concat();
            let (mut whole, mut bytes) = (Sse::default(), Sse::default());
            let (head, tail) = stream.as_bytes().split_at(cut.index(stream.len()));
            whole.feed(head);
            whole.feed(tail);
            stream.as_bytes().chunks(1).for_each(|byte| bytes.feed(byte));
            prop_assert_eq!(whole.seen(), bytes.seen());
            prop_assert_eq!((whole.is_done(), whole.failed()), (bytes.is_done(), bytes.failed()));
            prop_assert_eq!((whole.field, whole.after_return, whole.text()), (bytes.field, bytes.after_return, bytes.text()));
        }

        #[test]
        fn where_it_is_cut_makes_no_difference(cuts in proptest::collection::vec(0..STREAM.len(), 0..20)) {
            let mut cuts = cuts;
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let mut sse = Sse::default();
            for pair in cuts.windows(2) {
                sse.feed(&STREAM.as_bytes()[pair[0]..pair[1]]);
            }
            prop_assert!(sse.is_done() && !sse.failed());
            prop_assert_eq!(sse.seen(), scan(STREAM).seen());
        }

        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            Sse::default().feed(&bytes);
        }
    }
}
