//! The header of a GGUF file, read strictly: the tensors that it lists must lie in the file.

use std::io::{self, Read};

use thiserror::Error;

/// Where a tensor lies in a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GgufTensor {
    /// The tensor's name.
    pub name: String,
    /// The number of its element type in ggml.
    pub kind: u32,
    /// Its dimensions, as the file orders them.
    pub shape: Vec<u64>,
    /// First byte in the file.
    pub start: u64,
    /// Bytes; `None` for an element type that is not known here.
    pub len: Option<u64>,
}

/// What is wrong with a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file does not begin with `GGUF`.
    #[error("does not begin with `GGUF`; this is no GGUF file")]
    NotGguf,
    /// A version of the format that is not known here, or a file for machines of the other byte order.
    #[error("GGUF version {0} is not known; versions 2 and 3 in little-endian order are")]
    Version(u32),
    /// The file ends within its header.
    #[error("truncated: the file's {size} bytes end within its header; download it again")]
    TruncatedHeader {
        /// Bytes in the file.
        size: u64,
    },
    /// A tensor lies beyond the end of the file.
    #[error(
        "truncated: tensor {tensor:?} ends at byte {end}, the file has {size}; download it again"
    )]
    Truncated {
        /// The tensor.
        tensor: String,
        /// The end that it needs.
        end: u64,
        /// Bytes in the file.
        size: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors {first:?} and {second:?} overlap; the file is damaged")]
    Overlap {
        /// One that begins first.
        first: String,
        /// One that begins before the first ends.
        second: String,
    },
    /// A name stands twice.
    #[error("tensor {0:?} stands twice; the file is damaged")]
    Twice(String),
    /// The header does not follow the format.
    #[error("header, byte {at}: {why}; the file is damaged")]
    Malformed {
        /// Where in the file.
        at: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// The header is larger than any real one.
    #[error("the header has more than {max} bytes", max = GgufHeader::MAX_BYTES)]
    TooLarge,
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
}

/// The header of a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GgufHeader {
    /// The version of the format.
    pub version: u32,
    /// The tensors, ordered by where they lie.
    pub tensors: Vec<GgufTensor>,
}

/// Names and keys are at most this long, in bytes.
const MAX_NAME: u64 = 65_535;

/// Elements and bytes of a block of each element type of ggml.
const fn block(kind: u32) -> Option<(u64, u64)> {
    Some(match kind {
        0 | 26 => (1, 4),      // F32, I32
        1 | 25 | 30 => (1, 2), // F16, I16, BF16
        24 => (1, 1),          // I8
        27 | 28 => (1, 8),     // I64, F64
        2 | 20 => (32, 18),    // Q4_0, IQ4_NL
        3 => (32, 20),         // Q4_1
        6 => (32, 22),         // Q5_0
        7 => (32, 24),         // Q5_1
        8 => (32, 34),         // Q8_0
        39 => (32, 17),        // MXFP4
        10 => (256, 84),       // Q2_K
        11 | 21 => (256, 110), // Q3_K, IQ3_S
        12 => (256, 144),      // Q4_K
        13 => (256, 176),      // Q5_K
        14 => (256, 210),      // Q6_K
        15 => (256, 292),      // Q8_K
        16 | 35 => (256, 66),  // IQ2_XXS, TQ2_0
        17 => (256, 74),       // IQ2_XS
        18 => (256, 98),       // IQ3_XXS
        19 => (256, 50),       // IQ1_S
        22 => (256, 82),       // IQ2_S
        23 => (256, 136),      // IQ4_XS
        29 => (256, 56),       // IQ1_M
        34 => (256, 54),       // TQ1_0
        _ => return None,
    })
}

impl GgufHeader {
    /// The largest header that is read, in bytes: vocabularies are in it.
    pub const MAX_BYTES: u64 = 512 << 20;

    /// Reads the header from the beginning of a file of `size` bytes. Values of metadata are stepped over; memory is
    /// proportional to the list of tensors.
    ///
    /// # Errors
    /// When the header is malformed, or lists tensors that do not lie in the file.
    pub fn read(file: &mut dyn Read, size: u64) -> Result<Self, GgufError> {
        let mut bytes = Bytes { file, at: 0, size };
        if bytes.array::<4>()? != *b"GGUF" {
            return Err(GgufError::NotGguf);
        }
        let version = bytes.u32()?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::Version(version));
        }
        let (tensors, values) = (bytes.u64()?, bytes.u64()?);
        let mut alignment = 32;
        for _ in 0..values {
            let key = bytes.name()?;
            let kind = bytes.u32()?;
            if key == b"general.alignment" && kind == 4 {
                alignment = u64::from(bytes.u32()?);
            } else {
                bytes.skip_value(kind)?;
            }
        }
        if !alignment.is_power_of_two() {
            return Err(bytes.malformed("the alignment is no power of two"));
        }
        // Grows with what is really there, whatever the count says.
        let mut header = Self {
            version,
            tensors: Vec::new(),
        };
        for _ in 0..tensors {
            header.tensors.push(bytes.tensor()?);
        }
        let data = bytes
            .at
            .checked_next_multiple_of(alignment)
            .ok_or_else(|| bytes.malformed("the data begins nowhere"))?;
        for tensor in &mut header.tensors {
            tensor.start = tensor.start.saturating_add(data);
        }
        header
            .tensors
            .sort_by(|a, b| (a.start, &a.name).cmp(&(b.start, &b.name)));
        header.check(size)?;
        Ok(header)
    }

    fn check(&self, size: u64) -> Result<(), GgufError> {
        for tensor in &self.tensors {
            let end = tensor.start.saturating_add(tensor.len.unwrap_or(0));
            if end > size {
                return Err(GgufError::Truncated {
                    tensor: tensor.name.clone(),
                    end,
                    size,
                });
            }
        }
        for pair in self.tensors.windows(2) {
            if let [first, second] = pair
                && first.start.saturating_add(first.len.unwrap_or(0)) > second.start
            {
                return Err(GgufError::Overlap {
                    first: first.name.clone(),
                    second: second.name.clone(),
                });
            }
        }
        let mut names: Vec<&str> = self.tensors.iter().map(|t| t.name.as_str()).collect();
        names.sort_unstable();
        let mut pairs = names.iter().zip(names.iter().skip(1));
        match pairs.find(|(a, b)| a == b) {
            Some((name, _)) => Err(GgufError::Twice((*name).to_owned())),
            None => Ok(()),
        }
    }
}

/// The header's bytes, counted.
struct Bytes<'a> {
    file: &'a mut dyn Read,
    at: u64,
    size: u64,
}

impl Bytes<'_> {
    const fn malformed(&self, why: &'static str) -> GgufError {
        GgufError::Malformed { at: self.at, why }
    }

    /// Steps over `bytes`, if the file has them.
    fn claim(&mut self, bytes: u64) -> Result<(), GgufError> {
        self.at = self.at.saturating_add(bytes);
        if self.at > self.size {
            return Err(GgufError::TruncatedHeader { size: self.size });
        }
        if self.at > GgufHeader::MAX_BYTES {
            return Err(GgufError::TooLarge);
        }
        Ok(())
    }

    fn failed(&self, error: &io::Error) -> GgufError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => GgufError::TruncatedHeader { size: self.size },
            _ => GgufError::Unreadable(error.to_string()),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        self.claim(N as u64)?;
        let mut array = [0; N];
        self.file
            .read_exact(&mut array)
            .map_err(|error| self.failed(&error))?;
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        self.array().map(u64::from_le_bytes)
    }

    fn name(&mut self) -> Result<Vec<u8>, GgufError> {
        let length = self.u64()?;
        if length > MAX_NAME {
            return Err(self.malformed("a name is longer than 65535 bytes"));
        }
        self.claim(length)?;
        let mut name = Vec::new();
        let read = (&mut *self.file).take(length).read_to_end(&mut name);
        let read = read.map_err(|error| self.failed(&error))?;
        if read as u64 == length {
            Ok(name)
        } else {
            Err(GgufError::TruncatedHeader { size: self.size })
        }
    }

    fn skip(&mut self, bytes: u64) -> Result<(), GgufError> {
        self.claim(bytes)?;
        let skipped = io::copy(&mut (&mut *self.file).take(bytes), &mut io::sink());
        match skipped.map_err(|error| self.failed(&error))? {
            skipped if skipped == bytes => Ok(()),
            _ => Err(GgufError::TruncatedHeader { size: self.size }),
        }
    }

    fn skip_value(&mut self, kind: u32) -> Result<(), GgufError> {
        if let Some(width) = width(kind) {
            return self.skip(width);
        }
        match kind {
            8 => self.skip_string(),
            9 => {
                let (element, count) = (self.u32()?, self.u64()?);
                match (width(element), element) {
                    (Some(width), _) => self.skip(width.saturating_mul(count)),
                    // Each takes eight bytes of the file at least, so the file's size bounds this.
                    (None, 8) => (0..count).try_for_each(|_| self.skip_string()),
                    _ => Err(self.malformed("an array of what no array holds")),
                }
            }
            _ => Err(self.malformed("a value of an unknown type")),
        }
    }

    fn skip_string(&mut self) -> Result<(), GgufError> {
        let length = self.u64()?;
        self.skip(length)
    }

    fn tensor(&mut self) -> Result<GgufTensor, GgufError> {
        let name = String::from_utf8(self.name()?)
            .map_err(|_| self.malformed("the name of a tensor is not UTF-8"))?;
        let dimensions = self.u32()?;
        if dimensions > 8 {
            return Err(self.malformed("a tensor of more than 8 dimensions"));
        }
        let shape = (0..dimensions)
            .map(|_| self.u64())
            .collect::<Result<Vec<u64>, _>>()?;
        let (kind, start) = (self.u32()?, self.u64()?);
        let elements = shape.iter().try_fold(1_u64, |n, d| n.checked_mul(*d));
        let elements = elements.ok_or_else(|| self.malformed("a tensor of too many elements"))?;
        let len = block(kind).map(|(each, bytes)| elements.div_ceil(each).saturating_mul(bytes));
        Ok(GgufTensor {
            name,
            kind,
            shape,
            start,
            len,
        })
    }
}

/// Bytes of a metadata value of fixed width.
const fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    /// A GGUF file of F32 tensors, as its specification lays it out.
    pub(crate) fn file(tensors: &[(&str, u64)]) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend(3_u64.to_le_bytes());
        bytes.extend(
            [
                string("general.architecture"),
                vec![8, 0, 0, 0],
                string("llama"),
            ]
            .concat(),
        );
        bytes.extend([string("general.alignment"), vec![4, 0, 0, 0, 64, 0, 0, 0]].concat());
        let tokens = [string("a"), string(""), string("bc")].concat();
        bytes.extend(string("tokenizer.ggml.tokens"));
        bytes.extend([9, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(tokens);
        let mut offset = 0_u64;
        for (name, elements) in tensors {
            bytes.extend(string(name));
            bytes.extend(1_u32.to_le_bytes());
            bytes.extend(elements.to_le_bytes());
            bytes.extend(0_u32.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            offset = (offset + elements * 4).next_multiple_of(64);
        }
        let data = bytes.len().next_multiple_of(64) as u64;
        let last = tensors.last().map_or(0, |(_, n)| n * 4);
        let end = data + offset - last.next_multiple_of(64) + last;
        bytes.resize(usize::try_from(end).unwrap(), 7);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<GgufHeader, GgufError> {
        GgufHeader::read(&mut &bytes[..], bytes.len() as u64)
    }

    #[test]
    fn tensors_are_found_where_they_lie() {
        let bytes = file(&[("a", 3), ("b", 100)]);
        let header = read(&bytes).unwrap();
        assert_eq!(header.version, 3);
        let (a, b) = (&header.tensors[0], &header.tensors[1]);
        assert_eq!((a.name.as_str(), a.len, b.len), ("a", Some(12), Some(400)));
        assert_eq!((a.start % 64, b.start - a.start), (0, 64));
        assert_eq!(b.start + 400, bytes.len() as u64);
        assert!(read(&file(&[])).unwrap().tensors.is_empty());
    }

    #[test]
    fn a_file_that_is_cut_anywhere_is_named_as_such() {
        let bytes = file(&[("a", 3), ("b", 100)]);
        for end in 0..bytes.len() {
            match read(&bytes[..end]) {
                Err(GgufError::TruncatedHeader { size }) => assert_eq!(size, end as u64),
                Err(GgufError::Truncated { tensor, size, .. }) => {
                    assert!(size == end as u64 && ["a", "b"].contains(&tensor.as_str()));
                }
                other => panic!("{end}: {other:?}"),
            }
        }
    }

    #[test]
    fn lies_are_named() {
        let bytes = file(&[("a", 3), ("b", 100)]);
        let edit = |from: &[u8], to: &[u8]| {
            let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
            let mut edited = bytes.clone();
            edited[at..at + to.len()].copy_from_slice(to);
            read(&edited).unwrap_err()
        };
        assert_eq!(edit(b"GGUF", b"GGML"), GgufError::NotGguf);
        assert_eq!(edit(b"GGUF\x03", b"GGUF\x01"), GgufError::Version(1));
        // `b` gets the offset and the name of `a`.
        let b = [
            &string("b")[..],
            &[1, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        let moved = [&b[..], &[0]].concat();
        assert!(matches!(edit(&b, &moved), GgufError::Overlap { .. }));
        assert_eq!(
            edit(&string("b"), &string("a")),
            GgufError::Twice("a".to_owned())
        );
        let long = [&string("b")[..], &[9]].concat();
        assert!(matches!(
            edit(&string("b"), &long),
            GgufError::Malformed { .. }
        ));
        let endless = [&string("b")[..], &[1, 0, 0, 0], &[255; 8]].concat();
        assert!(matches!(edit(&b, &endless), GgufError::Truncated { .. }));
        let count = [&b"GGUF\x03\0\0\0"[..], &[255; 8]].concat();
        assert!(read(&count).is_err());
        assert!(matches!(
            edit(b"GGUF\x03\0\0\0\x02", &count),
            GgufError::Malformed { .. } | GgufError::TruncatedHeader { .. }
        ));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(tail in proptest::collection::vec(any::<u8>(), 0..300), size in any::<u64>()) {
            let bytes = [&b"GGUF\x03\0\0\0"[..], &tail].concat();
            let _ = GgufHeader::read(&mut &bytes[..], size);
        }

        #[test]
        fn an_altered_byte_does_not_panic(at in 0..400_usize, to in any::<u8>()) {
            let mut bytes = file(&[("a", 3), ("b", 100)]);
            if let Some(byte) = bytes.get_mut(at) { *byte = to; }
            let _ = read(&bytes);
        }
    }
}
