//! Server-sent events out of bytes that arrive in pieces.

/// The most bytes of one event; more is an error, not memory.
const LONGEST: usize = 1 << 18;

/// An event that cannot be taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadEvent {
    /// It has no end in sight.
    TooLong,
    /// It is not UTF-8.
    NotText,
}

/// What has arrived of a stream.
///
/// Only `data` matters to this program: names, ids and comments are passed
/// over. Lines end in LF, CR LF or CR; an event that the stream ends in the
/// middle of never happened.
#[derive(Debug, Default)]
pub(super) struct Events {
    line: Vec<u8>,
    data: Option<String>,
    after_cr: bool,
    begun: bool,
}

impl Events {
    /// Takes bytes in and gives the `data` of each event that they complete.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<String>, BadEvent> {
        let mut out = Vec::new();
        for &byte in bytes {
            let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => out.extend(self.end_line()?),
                _ if self.line.len() >= LONGEST => return Err(BadEvent::TooLong),
                _ => self.line.push(byte),
            }
        }
        Ok(out)
    }

    fn end_line(&mut self) -> Result<Option<String>, BadEvent> {
        let line = std::mem::take(&mut self.line);
        let line = std::str::from_utf8(&line).map_err(|_| BadEvent::NotText)?;
        let line = if std::mem::replace(&mut self.begun, true) {
            line
        } else {
            line.strip_prefix('\u{feff}').unwrap_or(line)
        };
        if line.is_empty() {
            return Ok(self.data.take());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        if field == "data" {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match &mut self.data {
                None => self.data = Some(value.to_owned()),
                Some(data) if data.len() + value.len() < LONGEST => {
                    data.push('\n');
                    data.push_str(value);
                }
                Some(_) => return Err(BadEvent::TooLong),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(stream: &[u8]) -> Vec<String> {
        Events::default().feed(stream).unwrap()
    }

    #[test]
    fn line_ends_comments_and_other_fields_do_not_matter() {
        let want = vec!["{\"a\":1}".to_owned(), "[DONE]".to_owned()];
        for stream in [
            "data: {\"a\":1}\n\ndata: [DONE]\n\n",
            "data: {\"a\":1}\r\n\r\ndata: [DONE]\r\n\r\n",
            "data: {\"a\":1}\r\rdata: [DONE]\r\r",
            "\u{feff}: hello\nevent: x\nid: 7\ndata:{\"a\":1}\n\n\n\nretry: 10\ndata: [DONE]\n\n",
        ] {
            assert_eq!(all(stream.as_bytes()), want, "{stream:?}");
        }
    }

    #[test]
    fn several_data_lines_are_one_event() {
        assert_eq!(all(b"data: a\ndata\ndata:  b\n\n"), ["a\n\n b"]);
    }

    #[test]
    fn an_event_that_is_cut_never_happened() {
        for cut in ["data: [DONE]", "data: [DONE]\n", "data: [DO", "data"] {
            assert!(all(cut.as_bytes()).is_empty(), "{cut:?}");
        }
    }

    #[test]
    fn what_is_no_text_or_has_no_end_is_refused() {
        assert_eq!(
            Events::default().feed(b"data: \xff\n\n"),
            Err(BadEvent::NotText)
        );
        let mut events = Events::default();
        let chunk = vec![b'x'; 1 << 16];
        let fed: Result<Vec<_>, _> = (0..8).map(|_| events.feed(&chunk)).collect();
        assert_eq!(fed, Err(BadEvent::TooLong));
        let mut events = Events::default();
        let fed: Result<Vec<_>, _> = (0..1 << 15)
            .map(|_| events.feed(b"data: 0123456789abcdef\n"))
            .collect();
        assert_eq!(fed, Err(BadEvent::TooLong));
    }

    proptest! {
        #[test]
        fn where_the_stream_is_cut_into_pieces_does_not_matter(
            texts in prop::collection::vec("[a-zäöü{}:, ]{0,20}", 1..6),
            ends in prop::sample::select(vec!["\n", "\r\n", "\r"]),
            sizes in prop::collection::vec(1_usize..9, 1..40),
        ) {
            let events: Vec<String> = texts
                .iter()
                .map(|text| format!("data: {text}{ends}{ends}"))
                .collect();
            let stream = events.concat();
            let mut events = Events::default();
            let mut found = Vec::new();
            let mut rest = stream.as_bytes();
            let mut sizes = sizes.iter().cycle();
            while !rest.is_empty() {
                let size = rest.len().min(*sizes.next().unwrap());
                let (piece, after) = rest.split_at(size);
                found.extend(events.feed(piece).unwrap());
                rest = after;
            }
            prop_assert_eq!(found, texts);
        }
    }
}
