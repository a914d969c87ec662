//! Looks through a server-sent event stream as it passes, without keeping any of it.

use super::json::{Json, LONGEST, Seen, keep};

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
            if matches!(self.field, Field::Data | Field::Event | Field::Other) {
                let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
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
    fn errors_inside_a_stream_are_seen() {
        assert!(scan("data: {\"error\":{\"message\":\"out of memory\"}}\n\n").failed());
        assert!(scan("event: error\ndata: {}\n\n").failed());
        assert!(!scan("data: {\"choices\":[{\"delta\":{\"content\":\"error\"}}]}\n\n").failed());
        assert!(scan("event: response.completed\ndata: {}\n\n").is_done());
    }

    proptest! {
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
