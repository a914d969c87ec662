//! The few protocol buffers of Envoy's runtime discovery (v3), written and read by hand: six small messages need no compiler.

use std::time::Duration;

/// Type of what is asked for and told.
pub(super) const RUNTIME: &str = "type.googleapis.com/envoy.service.runtime.v3.Runtime";
const RESOURCE: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// A value of Envoy's runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    /// A weight.
    Number(u32),
    /// So many of ten thousand.
    Fraction(u32),
}

/// What Envoy asks, or says about what it was told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Request {
    /// The version that it has taken over last; none at its start.
    pub(super) version: String,
    /// The layer that it asks for.
    pub(super) resource: String,
    /// The nonce of the response that it answers; none for the first of a stream.
    pub(super) nonce: String,
    /// Why it has refused that.
    pub(super) error: Option<String>,
}

impl Request {
    /// From a `DiscoveryRequest`; none if it is not one.
    pub(super) fn read(message: &[u8]) -> Option<Self> {
        let mut request = Self::default();
        for field in Fields(message) {
            let (number, value) = field?;
            match (number, value) {
                (1, Field::Bytes(text)) => request.version = string(text)?,
                (3, Field::Bytes(text)) => request.resource = string(text)?,
                (5, Field::Bytes(text)) => request.nonce = string(text)?,
                (6, Field::Bytes(status)) => {
                    let mut why = String::new();
                    for field in Fields(status) {
                        if let (2, Field::Bytes(text)) = field? {
                            why = string(text)?;
                        }
                    }
                    request.error = Some(why);
                }
                _ => {}
            }
        }
        Some(request)
    }
}

/// A `DiscoveryResponse` that gives a layer these values, for so long, framed for gRPC. The nonce is the version.
pub(super) fn response(
    version: &str,
    layer: &str,
    values: &[(String, Value)],
    ttl: Option<Duration>,
) -> Vec<u8> {
    let mut fields = Vec::new();
    for (key, value) in values {
        let mut entry = Vec::new();
        text(&mut entry, 1, key);
        bytes(&mut entry, 2, &value.encoded());
        bytes(&mut fields, 1, &entry);
    }
    let mut runtime = Vec::new();
    text(&mut runtime, 1, layer);
    bytes(&mut runtime, 2, &fields);
    let mut resource = Vec::new();
    text(&mut resource, 1, version);
    bytes(&mut resource, 2, &any(RUNTIME, &runtime));
    text(&mut resource, 3, layer);
    if let Some(ttl) = ttl {
        let mut duration = Vec::new();
        integer(&mut duration, 1, ttl.as_secs());
        integer(&mut duration, 2, u64::from(ttl.subsec_nanos()));
        bytes(&mut resource, 6, &duration);
    }
    let mut response = Vec::new();
    text(&mut response, 1, version);
    bytes(&mut response, 2, &any(RESOURCE, &resource));
    text(&mut response, 4, RUNTIME);
    text(&mut response, 5, version);
    // Not compressed, then the length.
    let mut framed = vec![0];
    framed.extend_from_slice(
        &u32::try_from(response.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    framed.append(&mut response);
    framed
}

impl Value {
    /// As a `google.protobuf.Value`.
    fn encoded(self) -> Vec<u8> {
        let number = |n: u32| {
            let mut value = vec![(2 << 3) | 1];
            value.extend_from_slice(&f64::from(n).to_le_bytes());
            value
        };
        match self {
            Self::Number(n) => number(n),
            // A number alone is of a hundred, which people can read.
            Self::Fraction(n) if n % 100 == 0 => number(n / 100),
            Self::Fraction(n) => {
                let mut denominator = Vec::new();
                text(&mut denominator, 3, "TEN_THOUSAND");
                let mut fields = Vec::new();
                for (key, value) in [("denominator", denominator), ("numerator", number(n))] {
                    let mut entry = Vec::new();
                    text(&mut entry, 1, key);
                    bytes(&mut entry, 2, &value);
                    bytes(&mut fields, 1, &entry);
                }
                let mut value = Vec::new();
                bytes(&mut value, 5, &fields);
                value
            }
        }
    }
}

fn any(kind: &str, message: &[u8]) -> Vec<u8> {
    let mut any = Vec::new();
    text(&mut any, 1, kind);
    bytes(&mut any, 2, message);
    any
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap_or(0) | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap_or(0));
}

fn integer(out: &mut Vec<u8>, field: u8, value: u64) {
    varint(out, u64::from(field) << 3);
    varint(out, value);
}

fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    varint(out, (u64::from(field) << 3) | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn text(out: &mut Vec<u8>, field: u8, value: &str) {
    bytes(out, field, value.as_bytes());
}

fn string(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

enum Field<'a> {
    Bytes(&'a [u8]),
    Other,
}

/// The fields of a message; `None` ends one that is cut off or none at all.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, n: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(n).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => self.varint().map(|_| Field::Other),
            1 => self.take(8).map(|_| Field::Other),
            2 => {
                let length = self.varint()?;
                self.take(length).map(Field::Bytes)
            }
            5 => self.take(4).map(|_| Field::Other),
            _ => None,
        };
        Some((tag >> 3, value?))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read() {
        let mut message = Vec::new();
        text(&mut message, 1, "v7");
        bytes(&mut message, 2, b"\x0a\x04node");
        text(&mut message, 3, "edge-1");
        text(&mut message, 4, RUNTIME);
        text(&mut message, 5, "n7");
        let mut request = Request::read(&message).unwrap();
        assert_eq!(
            (
                request.version.as_str(),
                request.resource.as_str(),
                request.nonce.as_str()
            ),
            ("v7", "edge-1", "n7")
        );
        assert_eq!(request.error, None);
        let mut status = Vec::new();
        integer(&mut status, 1, 13);
        text(&mut status, 2, "no such key");
        bytes(&mut message, 6, &status);
        request = Request::read(&message).unwrap();
        assert_eq!(request.error.as_deref(), Some("no such key"));
        // Whatever is cut off, or is no message, is none.
        for cut in 1..message.len() {
            let _is_no_panic = Request::read(&message[..cut]);
        }
        assert_eq!(Request::read(b"\x0a\xff"), None);
        assert_eq!(Request::read(&[0xff; 20]), None);
        assert_eq!(Request::read(b""), Some(Request::default()));
    }

    /// Bytes as protobuf 7.36.2 for Python writes these messages, with keys in order.
    #[test]
    fn a_response_is_what_the_compiler_would_write() {
        let values = [
            ("m".to_owned(), Value::Fraction(250)),
            ("w".to_owned(), Value::Number(5)),
        ];
        let framed = response("3", "l", &values, Some(Duration::from_millis(1500)));
        let hex: String = framed.iter().fold(String::new(), |mut s, b| {
            use std::fmt::Write as _;
            let _never_fails = write!(s, "{b:02x}");
            s
        });
        assert_eq!(hex, include_str!("response.hex").trim());
    }
}
