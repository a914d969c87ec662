//! The header of a safetensors file, read strictly: what it says must be true of the file.

use std::collections::BTreeMap;

use serde::Deserialize;
use thiserror::Error;

use crate::json::{self, JsonError};

/// Where a tensor lies in a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorSpan {
    /// The tensor's name.
    pub name: String,
    /// Its element type.
    pub dtype: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// First byte in the file.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// What is wrong with a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SafetensorsError {
    /// The file is too short to hold its header.
    #[error("truncated: the file has {size} bytes, its header needs {needed}; download it again")]
    TruncatedHeader {
        /// Bytes in the file.
        size: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// The header is larger than the format allows.
    #[error(
        "the header claims {claimed} bytes, the format allows {max}; this is no safetensors file",
        max = SafetensorsHeader::MAX_BYTES
    )]
    HeaderTooLarge {
        /// Bytes claimed.
        claimed: u64,
    },
    /// The header does not begin with `{`.
    #[error("the header does not begin with '{{'; this is no safetensors file")]
    NotAnObject,
    /// The header is not JSON of the format's shape.
    #[error("header: {0}")]
    Json(#[from] JsonError),
    /// An element type that the format does not know.
    #[error("tensor {tensor:?} has the unknown element type {dtype:?}")]
    UnknownType {
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: String,
    },
    /// A tensor's span is not what its shape and type need.
    #[error("tensor {tensor:?} claims bytes {from}..{to}, its shape and type do not fit that")]
    Span {
        /// The tensor.
        tensor: String,
        /// First byte claimed.
        from: u64,
        /// End claimed.
        to: u64,
    },
    /// Bytes between tensors that belong to none, or to two.
    #[error(
        "tensor {tensor:?} begins at byte {found} of the data, expected {expected}: tensors overlap or leave a gap"
    )]
    Tiling {
        /// The tensor.
        tensor: String,
        /// Where it begins.
        found: u64,
        /// Where the one before it ends.
        expected: u64,
    },
    /// The tensors do not end where the file does.
    #[error(
        "the tensors need {expected} bytes of data, the file has {found}; it is truncated or something was appended"
    )]
    Length {
        /// Bytes that the tensors need.
        expected: u64,
        /// Bytes in the file after the header.
        found: u64,
    },
}

/// The header of a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SafetensorsHeader {
    /// The tensors, ordered by name.
    pub tensors: Vec<TensorSpan>,
    /// The text-to-text metadata.
    pub metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

#[derive(Default)]
struct Raw {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Entry>,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> serde::de::Visitor<'de> for Entries {
            type Value = Raw;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut raw = Raw::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        raw.metadata = map.next_value()?;
                    } else {
                        raw.tensors.insert(name, map.next_value()?);
                    }
                }
                Ok(raw)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl SafetensorsHeader {
    /// The largest header that the format allows, in bytes.
    pub const MAX_BYTES: u64 = 100_000_000;

    /// The length of the header that follows the first eight bytes of a file of `size` bytes.
    ///
    /// # Errors
    /// Refuses lengths that the format or the file does not allow, so that nothing is allocated for a lie.
    pub fn length(first: [u8; 8], size: u64) -> Result<u64, SafetensorsError> {
        let claimed = u64::from_le_bytes(first);
        if claimed > Self::MAX_BYTES {
            return Err(SafetensorsError::HeaderTooLarge { claimed });
        }
        let needed = claimed + 8;
        if needed > size {
            return Err(SafetensorsError::TruncatedHeader { size, needed });
        }
        Ok(claimed)
    }

    /// Reads the header text (without the eight bytes before it) of a file of `size` bytes.
    ///
    /// Stricter than the reference reader: duplicate tensor names and unknown fields are refused, since readers
    /// disagree about them.
    ///
    /// # Errors
    /// Says what is malformed or untrue.
    pub fn parse(header: &[u8], size: u64) -> Result<Self, SafetensorsError> {
        if header.first() != Some(&b'{') {
            return Err(SafetensorsError::NotAnObject);
        }
        let raw: Raw = json::from_slice(header, Self::MAX_BYTES)?;
        let data = 8 + header.len() as u64;
        let mut tensors = Vec::with_capacity(raw.tensors.len());
        for (name, entry) in raw.tensors {
            let (from, to) = entry.data_offsets;
            let fits = bytes_needed(&name, &entry)? == to.checked_sub(from);
            let (Some(start), Some(len), true) =
                (from.checked_add(data), to.checked_sub(from), fits)
            else {
                return Err(SafetensorsError::Span {
                    tensor: name,
                    from,
                    to,
                });
            };
            tensors.push(TensorSpan {
                name,
                dtype: entry.dtype,
                shape: entry.shape,
                start,
                len,
            });
        }
        let mut order: Vec<&TensorSpan> = tensors.iter().collect();
        order.sort_by_key(|t| (t.start, t.len));
        let mut expected = data;
        for tensor in order {
            if tensor.start != expected {
                return Err(SafetensorsError::Tiling {
                    tensor: tensor.name.clone(),
                    found: tensor.start - data,
                    expected: expected - data,
                });
            }
            // Both are below 2^64: `start + len` was an offset of the header plus the header's length.
            expected = expected.saturating_add(tensor.len);
        }
        if expected != size {
            return Err(SafetensorsError::Length {
                expected: expected - data,
                found: size.saturating_sub(data),
            });
        }
        Ok(Self {
            tensors,
            metadata: raw.metadata,
        })
    }
}

/// Bytes that shape and element type need; `None` on overflow or a broken byte.
fn bytes_needed(name: &str, entry: &Entry) -> Result<Option<u64>, SafetensorsError> {
    let bits: u64 = match entry.dtype.as_str() {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ"
        | "F8_E5M2FNUZ" => 8,
        "I16" | "U16" | "F16" | "BF16" => 16,
        "I32" | "U32" | "F32" => 32,
        "I64" | "U64" | "F64" | "C64" => 64,
        _ => {
            return Err(SafetensorsError::UnknownType {
                tensor: name.to_owned(),
                dtype: entry.dtype.clone(),
            });
        }
    };
    let total = entry
        .shape
        .iter()
        .try_fold(bits, |product, n| product.checked_mul(*n));
    Ok(total.filter(|bits| bits % 8 == 0).map(|bits| bits / 8))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A safetensors file with these F32 vectors, and `pad` metadata entries.
    pub(crate) fn file(tensors: &[(&str, &[f32])], pad: usize) -> Vec<u8> {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, values) in tensors {
            let from = data.len();
            values.iter().for_each(|v| data.extend(v.to_le_bytes()));
            let entry = serde_json::json!({"dtype": "F32", "shape": [values.len()], "data_offsets": [from, data.len()]});
            header.insert((*name).to_owned(), entry);
        }
        if pad > 0 {
            let metadata: BTreeMap<_, _> =
                (0..pad).map(|n| (n.to_string(), "x".to_owned())).collect();
            header.insert(
                "__metadata__".into(),
                serde_json::to_value(metadata).unwrap(),
            );
        }
        let header = serde_json::to_vec(&header).unwrap();
        [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
    }

    fn read(file: &[u8]) -> Result<SafetensorsHeader, SafetensorsError> {
        let n = SafetensorsHeader::length(file[..8].try_into().unwrap(), file.len() as u64)?;
        SafetensorsHeader::parse(&file[8..8 + usize::try_from(n).unwrap()], file.len() as u64)
    }

    fn with_header(header: &str, data: usize) -> Vec<u8> {
        [
            &(header.len() as u64).to_le_bytes()[..],
            header.as_bytes(),
            &vec![0; data],
        ]
        .concat()
    }

    #[test]
    fn reads_what_is_true() {
        let header = read(&file(&[("b", &[1.0, 2.0]), ("a", &[3.0])], 2)).unwrap();
        assert_eq!(
            header
                .tensors
                .iter()
                .map(|t| t.name.as_str())
                .collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!(header.metadata.len(), 2);
        assert!(read(&with_header("{}", 0)).unwrap().tensors.is_empty());
    }

    #[test]
    fn lies_are_named() {
        let good = file(&[("a", &[1.0])], 0);
        assert!(matches!(
            read(&good[..good.len() - 1]),
            Err(SafetensorsError::Length { .. })
        ));
        assert!(matches!(
            read(&[&good[..], b"x"].concat()),
            Err(SafetensorsError::Length { .. })
        ));
        assert!(matches!(
            read(&good[..20]),
            Err(SafetensorsError::TruncatedHeader { .. })
        ));
        assert!(matches!(
            read(&[0xff; 16]),
            Err(SafetensorsError::HeaderTooLarge { .. })
        ));
        assert!(matches!(
            read(&with_header(" {}", 0)),
            Err(SafetensorsError::NotAnObject)
        ));
        let t = |body: &str, data| read(&with_header(body, data)).unwrap_err();
        assert!(matches!(
            t(
                r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#,
                1
            ),
            SafetensorsError::Json(JsonError::DuplicateKey { .. })
        ));
        assert!(matches!(
            t(
                r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}}"#,
                1
            ),
            SafetensorsError::Span { .. }
        ));
        assert!(matches!(
            t(
                r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
                2
            ),
            SafetensorsError::Tiling { .. }
        ));
        assert!(matches!(
            t(
                r#"{"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,1]}}"#,
                1
            ),
            SafetensorsError::UnknownType { .. }
        ));
        assert!(matches!(
            t(
                r#"{"a":{"dtype":"U8","shape":[4294967296,4294967296,16],"data_offsets":[0,0]}}"#,
                0
            ),
            SafetensorsError::Span { .. }
        ));
        assert!(matches!(
            t(
                r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[5,5]}}"#,
                0
            ),
            SafetensorsError::Tiling { .. }
        ));
        assert!(matches!(
            t(
                r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]}}"#,
                1
            ),
            SafetensorsError::Span { .. }
        ));
    }

    proptest! {
        #[test]
        fn one_flipped_byte_of_a_header_never_panics(at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut bytes = file(&[("a", &[1.0, 2.0]), ("b", &[])], 1);
            let at = at.index(bytes.len());
            bytes[at] = to;
            let _ = read(&bytes);
        }
    }
}
