//! ONNX models: the files beside them in which their tensors lie.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Seek};

use thiserror::Error;

/// The messages on the way to an external tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    Model,
    Graph,
    Function,
    Training,
    Node,
    Attribute,
    Sparse,
    Tensor,
    Entry,
}

impl Message {
    /// The message in a field, by the numbers that ONNX gives its fields.
    const fn inside(self, field: u64) -> Option<Self> {
        Some(match (self, field) {
            (Self::Model, 7) | (Self::Training, 1 | 2) | (Self::Attribute, 6 | 11) => Self::Graph,
            (Self::Model, 20) => Self::Training,
            (Self::Model, 25) => Self::Function,
            (Self::Graph, 1) | (Self::Function, 7) => Self::Node,
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::Sparse, 1 | 2) => Self::Tensor,
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Self::Sparse,
            (Self::Node, 5) => Self::Attribute,
            (Self::Tensor, 13) => Self::Entry,
            _ => return None,
        })
    }
}

/// What is wrong with an ONNX file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// A message claims more bytes than there are.
    #[error("truncated: what begins at byte {at} does not end in the file; download it again")]
    Truncated {
        /// Where in the file.
        at: u64,
    },
    /// Not the bytes of a model.
    #[error("byte {at}: {why}; this is no ONNX file, or it is damaged")]
    Malformed {
        /// Where in the file.
        at: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
}

/// Messages within messages that are followed.
const MAX_DEPTH: usize = 64;
/// The longest entry of an external tensor, in bytes: a path or a number.
const MAX_ENTRY: u64 = 8192;
/// Files that one model may lie in.
const MAX_FILES: usize = 10_000;

/// The files in which tensors of the model lie, as the model names them, with the bytes that they must have at least.
///
/// Only tensors that lie elsewhere are looked at; the others are stepped over. Memory is proportional to the number of
/// files.
pub(crate) fn external_files(
    file: impl Read + Seek,
    size: u64,
) -> Result<BTreeMap<String, u64>, OnnxError> {
    let mut walk = Walk {
        file: BufReader::with_capacity(64 << 10, file),
        at: 0,
        found: BTreeMap::new(),
    };
    // Open messages with their ends, the innermost last; and the tensor that is being read.
    let mut open = vec![(Message::Model, size)];
    let mut tensor = External::default();
    while let Some((message, end)) = open.last().copied() {
        if walk.at == end {
            open.pop();
            if message == Message::Tensor {
                walk.note(std::mem::take(&mut tensor))?;
            }
            continue;
        }
        let begin = walk.at;
        let tag = walk.varint(end)?;
        let (number, wire) = (tag >> 3, tag & 7);
        let length = match wire {
            0 => {
                let value = walk.varint(end)?;
                // Where a tensor's data lie: 1 is elsewhere.
                if message == Message::Tensor && number == 14 {
                    tensor.elsewhere = value == 1;
                }
                continue;
            }
            1 => 8,
            5 => 4,
            2 => walk.varint(end)?,
            _ => {
                return Err(OnnxError::Malformed {
                    at: begin,
                    why: "a field of an unknown type",
                });
            }
        };
        let close = walk.at.checked_add(length).filter(|close| *close <= end);
        let close = close.ok_or(OnnxError::Truncated { at: begin })?;
        match message.inside(number).filter(|_| wire == 2) {
            Some(Message::Entry) => {
                let entry = walk.bytes(length)?;
                tensor.set(&entry, begin)?;
            }
            Some(inner) if open.len() < MAX_DEPTH => open.push((inner, close)),
            Some(_) => {
                return Err(OnnxError::Malformed {
                    at: begin,
                    why: "graphs within graphs, too deep",
                });
            }
            None => walk.skip(length)?,
        }
    }
    Ok(walk.found)
}

/// A tensor that may lie elsewhere.
#[derive(Default)]
struct External {
    elsewhere: bool,
    location: String,
    offset: u64,
    length: u64,
}

impl External {
    /// Takes up an entry: a key and a value.
    fn set(&mut self, entry: &[u8], at: u64) -> Result<(), OnnxError> {
        let malformed = || OnnxError::Malformed {
            at,
            why: "an entry of an external tensor that cannot be read",
        };
        let (mut key, mut value) = ("", "");
        let mut rest = entry;
        while let Some((tag, tail)) = rest.split_first() {
            let mut length = 0_usize;
            let mut tail = tail;
            for shift in [0, 7] {
                let (byte, more) = tail.split_first().ok_or_else(malformed)?;
                length |= usize::from(byte & 0x7f) << shift;
                tail = more;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let text = tail.get(..length).ok_or_else(malformed)?;
            let text = std::str::from_utf8(text).map_err(|_| malformed())?;
            match tag {
                0x0a => key = text,
                0x12 => value = text,
                _ => return Err(malformed()),
            }
            rest = tail.get(length..).unwrap_or_default();
        }
        match key {
            "location" => value.clone_into(&mut self.location),
            "offset" => self.offset = value.parse().map_err(|_| malformed())?,
            "length" => self.length = value.parse().map_err(|_| malformed())?,
            _ => {}
        }
        Ok(())
    }
}

struct Walk<F> {
    file: BufReader<F>,
    at: u64,
    found: BTreeMap<String, u64>,
}

impl<F: Read + Seek> Walk<F> {
    fn failed(&self, error: &io::Error) -> OnnxError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => OnnxError::Truncated { at: self.at },
            _ => OnnxError::Unreadable(error.to_string()),
        }
    }

    /// A number in groups of seven bits, before `end`.
    fn varint(&mut self, end: u64) -> Result<u64, OnnxError> {
        let begin = self.at;
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            if self.at >= end {
                return Err(OnnxError::Truncated { at: begin });
            }
            let mut byte = [0];
            self.file
                .read_exact(&mut byte)
                .map_err(|error| self.failed(&error))?;
            self.at += 1;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(OnnxError::Malformed {
            at: begin,
            why: "a number that does not end",
        })
    }

    fn bytes(&mut self, length: u64) -> Result<Vec<u8>, OnnxError> {
        if length > MAX_ENTRY {
            return Err(OnnxError::Malformed {
                at: self.at,
                why: "an entry of an external tensor that is too long",
            });
        }
        let mut bytes = Vec::new();
        let read = (&mut self.file).take(length).read_to_end(&mut bytes);
        let read = read.map_err(|error| self.failed(&error))? as u64;
        if read != length {
            return Err(OnnxError::Truncated { at: self.at });
        }
        self.at += length;
        Ok(bytes)
    }

    fn skip(&mut self, length: u64) -> Result<(), OnnxError> {
        // Lengths were checked against the file's size, which fits.
        let step = i64::try_from(length).map_err(|_| OnnxError::Truncated { at: self.at })?;
        self.file
            .seek_relative(step)
            .map_err(|error| self.failed(&error))?;
        self.at += length;
        Ok(())
    }

    fn note(&mut self, tensor: External) -> Result<(), OnnxError> {
        if !tensor.elsewhere {
            return Ok(());
        }
        let needed = tensor.offset.saturating_add(tensor.length);
        let known = self.found.entry(tensor.location).or_default();
        *known = needed.max(*known);
        if self.found.len() > MAX_FILES {
            return Err(OnnxError::Malformed {
                at: self.at,
                why: "tensors in more files than any model has",
            });
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    /// A field of bytes.
    fn message(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut length = bytes.len();
        let mut out = vec![number << 3 | 2];
        while length >= 0x80 {
            out.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
            length >>= 7;
        }
        out.push(u8::try_from(length).unwrap());
        out.extend(bytes);
        out
    }

    fn entry(key: &str, value: &str) -> Vec<u8> {
        message(
            13,
            &[message(1, key.as_bytes()), message(2, value.as_bytes())].concat(),
        )
    }

    /// A model whose tensors lie in other files, each with an offset and a length; one of them in a branch of a node.
    pub(crate) fn model(tensors: &[(&str, u64, u64)]) -> Vec<u8> {
        let mut initializers = message(5, &[vec![0x10, 1], message(9, &[1; 300])].concat());
        for (n, (location, offset, length)) in tensors.iter().enumerate() {
            let tensor = [
                vec![0x10, 1],
                entry("location", location),
                entry("offset", &offset.to_string()),
                entry("length", &length.to_string()),
                vec![0x70, 1],
            ]
            .concat();
            let tensor = message(5, &tensor);
            initializers.extend(if n == 0 {
                message(1, &message(5, &message(6, &tensor)))
            } else {
                tensor
            });
        }
        [
            vec![8, 9, 0x12, 4],
            b"test".to_vec(),
            message(7, &initializers),
        ]
        .concat()
    }

    fn files(bytes: &[u8]) -> Result<BTreeMap<String, u64>, OnnxError> {
        external_files(Cursor::new(bytes), bytes.len() as u64)
    }

    #[test]
    fn files_are_found_with_the_bytes_that_they_need() {
        let bytes = model(&[("a.data", 64, 100), ("b.data", 0, 8), ("a.data", 0, 64)]);
        let expected = [("a.data".to_owned(), 164), ("b.data".to_owned(), 8)];
        assert_eq!(files(&bytes).unwrap(), expected.into());
        assert!(files(&model(&[])).unwrap().is_empty());
        assert!(files(b"").unwrap().is_empty());
    }

    #[test]
    fn cut_and_damaged_models_are_named() {
        let bytes = model(&[("a.data", 64, 100)]);
        let cut = files(&bytes[..bytes.len() - 1]);
        assert!(matches!(cut, Err(OnnxError::Truncated { .. })), "{cut:?}");
        for bad in [
            &b"PK\x03\x04"[..],
            &[0x0a, 0xff, 0xff, 0xff, 0x7f],
            &[0xff; 12],
        ] {
            assert!(files(bad).is_err(), "{bad:?}");
        }
        let mut deep = Vec::new();
        for _ in 0..100 {
            deep = message(6, &message(1, &message(5, &deep)));
        }
        let deep = message(7, &message(1, &message(5, &deep)));
        assert!(matches!(files(&deep), Err(OnnxError::Malformed { .. })));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = files(&bytes);
        }

        #[test]
        fn an_altered_byte_does_not_panic(at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut bytes = model(&[("a.data", 64, 100)]);
            let at = at.index(bytes.len());
            bytes[at] = to;
            let _ = files(&bytes);
        }
    }
}
