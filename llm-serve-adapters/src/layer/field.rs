//! A key that is a field of the request's body.

use super::key::{Head, KeySource};
use super::observer::pieces;
use super::replay::Replayed;
use crate::router::Key;
use bytes::Buf;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, Request};
use http_body::Body;
use pin_project_lite::pin_project;
use serde::de::DeserializeSeed;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// Looks for a field of JSON bodies before anything is decided, so that requests can be assigned by it ([`from_body`]). To be put
/// **outside** a [`super::RolloutLayer`].
///
/// ```
/// use llm_serve_adapters::layer::{BodyField, KeySource as _, RolloutLayer, from_body, header};
///
/// # fn with(plane: &llm_serve_adapters::DataPlane) {
/// let field = BodyField::new(["user"], 256 << 10);
/// let rollout = RolloutLayer::new(plane).key(header("x-session-id").or(from_body()).or_request());
/// // axum: the layer that is added last sees requests first.
/// // let app = app.layer(rollout).layer(field);
/// # drop((field, rollout));
/// # }
/// ```
///
/// It reads at most so many bytes ahead, and the piece that goes beyond them; what was read comes first, as it was, then the
/// rest. A body that is longer, that is not JSON by its content type or as it reads, that is encoded, or that has no such field
/// passes unchanged and without a key. The decision waits for the end of the body, or for the limit, whichever comes first: how
/// long a client may take to send it is up to the server.
#[derive(Debug, Clone)]
pub struct BodyField {
    path: Arc<[String]>,
    limit: usize,
}

impl BodyField {
    /// The field with this name, or within objects of these names (`["metadata", "session"]`), of bodies up to so many bytes. Text
    /// that is not empty, and whole numbers, are keys. Of a name that is there twice the last counts, as JSON readers have it.
    pub fn new<N: Into<String>>(path: impl IntoIterator<Item = N>, limit: usize) -> Self {
        Self {
            path: path.into_iter().map(Into::into).collect(),
            limit,
        }
    }
}

impl<S> Layer<S> for BodyField {
    type Service = BodyFieldService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        BodyFieldService {
            inner,
            layer: self.clone(),
        }
    }
}

/// By the field that a [`BodyField`] outside has found: see there.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct FromBody;

/// By the field that a [`BodyField`] outside has found.
pub fn from_body() -> FromBody {
    FromBody
}

impl KeySource for FromBody {
    fn key<'r>(&self, head: Head<'r>) -> Option<Key<'r>> {
        let Found(text) = head.extensions.get::<Found>()?;
        Some(Key::session(text))
    }
}

/// In a request's extensions. Shown by nothing.
#[derive(Clone)]
struct Found(Arc<[u8]>);

/// A service that looks into bodies first: see [`BodyField`].
#[derive(Debug, Clone)]
pub struct BodyFieldService<S> {
    inner: S,
    layer: BodyField,
}

impl<S, B> Service<Request<B>> for BodyFieldService<S>
where
    S: Service<Request<Replayed<B>>> + Clone,
    B: Body + Unpin,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BodyFieldFuture<S, S::Future, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let request = request.map(Replayed::new);
        let lower = request.body().size_hint().lower();
        if !is_json(request.headers()) || lower > self.layer.limit as u64 {
            return BodyFieldFuture {
                reading: None,
                answer: Some(self.inner.call(request)),
            };
        }
        // The one that is ready is used up by the call.
        let next = self.inner.clone();
        let reading = Reading {
            service: std::mem::replace(&mut self.inner, next),
            request,
            layer: self.layer.clone(),
            bytes: 0,
        };
        BodyFieldFuture {
            reading: Some(reading),
            answer: None,
        }
    }
}

struct Reading<S, B: Body> {
    service: S,
    request: Request<Replayed<B>>,
    layer: BodyField,
    bytes: usize,
}

impl<S, B: Body + Unpin> Reading<S, B> {
    /// Ready once nothing more is to be read ahead.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.request.body().is_end() {
                break;
            }
            match ready!(self.request.body_mut().poll_ahead(cx)) {
                Some(Ok(frame)) => {
                    let more = frame.data_ref().map_or(0, Buf::remaining);
                    self.bytes = self.bytes.saturating_add(more);
                    if self.bytes > self.layer.limit {
                        return Poll::Ready(());
                    }
                }
                Some(Err(())) => return Poll::Ready(()),
                None => break,
            }
        }
        if let Some(found) = self.find() {
            self.request.extensions_mut().insert(Found(found.into()));
        }
        Poll::Ready(())
    }

    fn find(&self) -> Option<Vec<u8>> {
        let body = self.request.body();
        let path = &self.layer.path;
        let mut parts = body.read();
        let first = parts.next()?;
        if first.chunk().len() == self.bytes {
            return find(first.chunk(), path);
        }
        let mut whole = Vec::with_capacity(self.bytes);
        for data in body.read() {
            if !pieces(data, |piece| whole.extend_from_slice(piece)) {
                return None;
            }
        }
        find(&whole, path)
    }
}

pin_project! {
    /// The reply to come, once the body has been looked into.
    pub struct BodyFieldFuture<S, F, B>
    where
        B: Body,
    {
        reading: Option<Reading<S, B>>,
        #[pin]
        answer: Option<F>,
    }
}

impl<S, B> Future for BodyFieldFuture<S, S::Future, B>
where
    S: Service<Request<Replayed<B>>>,
    B: Body + Unpin,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(reading) = this.reading {
            ready!(reading.poll(cx));
        }
        if let Some(mut reading) = this.reading.take() {
            this.answer.set(Some(reading.service.call(reading.request)));
        }
        match this.answer.as_pin_mut() {
            Some(answer) => answer.poll(cx),
            // There is a body to read, or an answer to wait for.
            None => Poll::Pending,
        }
    }
}

impl<S, F, B: Body> fmt::Debug for BodyFieldFuture<S, F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyFieldFuture").finish_non_exhaustive()
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], |v| v.as_bytes());
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default();
    let kind = kind.trim_ascii().to_ascii_lowercase();
    let json = kind == b"application/json"
        || kind.starts_with(b"application/") && kind.ends_with(b"+json");
    json && !headers.contains_key(CONTENT_ENCODING)
}

/// The text, or the whole number, at this place of a document; none if there is none or it is no JSON.
pub(super) fn find(document: &[u8], path: &[impl AsRef<str>]) -> Option<Vec<u8>> {
    let mut reader = serde_json::Deserializer::from_slice(document);
    let found = At(path).deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    found.filter(|text| !text.is_empty())
}

/// Reads what is at this place and passes over everything else.
struct At<'p, N>(&'p [N]);

impl<'de, N: AsRef<str>> DeserializeSeed<'de> for At<'_, N> {
    type Value = Option<Vec<u8>>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, N: AsRef<str>> Visitor<'de> for At<'_, N> {
    type Value = Option<Vec<u8>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.0.is_empty().then(|| text.as_bytes().to_vec()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        IgnoredAny.visit_seq(list).map(|_| None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let Some((name, within)) = self.0.split_first() else {
            return IgnoredAny.visit_map(fields).map(|_| None);
        };
        let mut found = None;
        while let Some(here) = fields.next_key_seed(Is(name.as_ref()))? {
            if here {
                found = fields.next_value_seed(At(within))?;
            } else {
                fields.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Whether a name is this one.
struct Is<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(document: &str, path: &[&str]) -> Option<String> {
        find(document.as_bytes(), path).map(|text| String::from_utf8(text).unwrap())
    }

    #[test]
    fn a_field_is_found_by_its_place() {
        let document = r#"{"messages": [{"user": "no"}], "user": "an\u00e9", "n": -7, "metadata": {"session": "s", "user": {}}, "e": ""}"#;
        assert_eq!(found(document, &["user"]).as_deref(), Some("ané"));
        assert_eq!(
            found(document, &["metadata", "session"]).as_deref(),
            Some("s")
        );
        assert_eq!(found(document, &["n"]).as_deref(), Some("-7"));
        for path in [
            &["e"][..],
            &["metadata"],
            &["metadata", "user"],
            &["messages"],
            &["none"],
            &["user", "x"],
        ] {
            assert_eq!(found(document, path), None, "{path:?}");
        }
        for broken in [
            "",
            "{",
            "[]",
            "7",
            "{\"user\": \"a\"} x",
            "{\"user\": \"a\"",
            "{\"user\": true}",
        ] {
            assert_eq!(found(broken, &["user"]), None, "{broken}");
        }
        assert_eq!(
            found("{\"user\": 1, \"user\": 2}", &["user"]).as_deref(),
            Some("2")
        );
    }

    #[test]
    fn depth_has_an_end() {
        let deep = format!("{{\"a\": {}, \"user\": \"u\"}}", "[".repeat(100_000));
        assert_eq!(found(&deep, &["user"]), None);
    }

    proptest! {
        #[test]
        fn it_finds_what_a_whole_reading_finds(text in ".*", other in ".*", nested in any::<bool>()) {
            let field = if nested { serde_json::json!({"session": text}) } else { serde_json::json!(text) };
            let document = serde_json::json!({"messages": [{"content": other}], "key": field}).to_string();
            let path = if nested { &["key", "session"][..] } else { &["key"] };
            prop_assert_eq!(found(&document, path), Some(text).filter(|text| !text.is_empty()));
        }

        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = find(&bytes, &["user"]);
        }
    }
}
