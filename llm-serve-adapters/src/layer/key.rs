//! What a request is assigned by: a header, a cookie, the bearer token, or itself.

use crate::router::{Key, Pin};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, COOKIE, HeaderName};
use http::{Extensions, HeaderMap, Request, Uri};
use std::cell::OnceCell;

/// What a key may be made of.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Head<'r> {
    /// Its address.
    pub uri: &'r Uri,
    /// Its headers.
    pub headers: &'r HeaderMap,
    /// What layers outside this one know about it.
    pub extensions: &'r Extensions,
    scratch: &'r Scratch,
}

/// Where a key is kept that is not in the request as it stands.
pub(crate) type Scratch = OnceCell<Vec<u8>>;

impl<'r> Head<'r> {
    pub(crate) fn of<B>(request: &'r Request<B>, scratch: &'r Scratch) -> Self {
        Self {
            uri: request.uri(),
            headers: request.headers(),
            extensions: request.extensions(),
            scratch,
        }
    }

    /// Keeps a text that was worked out, so that a key can be made of it. There is room for one.
    pub fn keep(self, text: Vec<u8>) -> Option<&'r [u8]> {
        self.scratch.set(text).ok()?;
        self.scratch.get().map(Vec::as_slice)
    }
}

/// Where the key of a request comes from.
pub trait KeySource {
    /// The key, if the request has one.
    fn key<'r>(&self, head: Head<'r>) -> Option<Key<'r>>;

    /// This key, or that one.
    #[must_use]
    fn or<K: KeySource>(self, other: K) -> Or<Self, K>
    where
        Self: Sized,
    {
        Or {
            first: self,
            second: other,
        }
    }

    /// This key, unless this header says `candidate` or `baseline`: then the request goes there and is no evidence. Whoever may
    /// set the header may choose; take it off at the edge from everybody else.
    #[must_use]
    fn pinned_by(self, header: &str) -> PinnedBy<Self>
    where
        Self: Sized,
    {
        PinnedBy {
            key: self,
            header: HeaderName::from_bytes(header.as_bytes()).ok(),
        }
    }

    /// This key, with the moment at which a session began where its id is a UUID of version 7: see [`Key::dated`].
    #[must_use]
    fn dated(self) -> Dated<Self>
    where
        Self: Sized,
    {
        Dated(self)
    }

    /// This key, as one that clients may make up: hashed with the router's secret, so that nobody can work out a key that gets
    /// the candidate. See [`Key::untrusted`].
    #[must_use]
    fn untrusted(self) -> Untrusted<Self>
    where
        Self: Sized,
    {
        Untrusted(self)
    }

    /// This key, or each request by itself. Without it, a request without a key goes to the baseline and is no evidence.
    #[must_use]
    fn or_request(self) -> Or<Self, PerRequest>
    where
        Self: Sized,
    {
        self.or(PerRequest)
    }
}

/// A source, unless a header pins the request: see [`KeySource::pinned_by`].
#[derive(Debug, Clone)]
pub struct PinnedBy<K> {
    key: K,
    header: Option<HeaderName>,
}

impl<K: KeySource> KeySource for PinnedBy<K> {
    fn key<'r>(&self, head: Head<'r>) -> Option<Key<'r>> {
        let key = self.key.key(head);
        let said = self.header.as_ref().and_then(|name| head.headers.get(name));
        let pin = match said.map(http::HeaderValue::as_bytes) {
            Some(b"candidate") => Pin::Candidate,
            Some(b"baseline") => Pin::Baseline,
            _ => return key,
        };
        Some(key.unwrap_or(Key::keyless()).pinned(pin))
    }
}

/// A source whose sessions tell when they began: see [`KeySource::dated`].
#[derive(Debug, Clone, Copy)]
pub struct Dated<K>(K);

impl<K: KeySource> KeySource for Dated<K> {
    fn key<'r>(&self, head: Head<'r>) -> Option<Key<'r>> {
        self.0.key(head).map(Key::dated)
    }
}

/// A source whose keys clients may make up: see [`KeySource::untrusted`].
#[derive(Debug, Clone, Copy)]
pub struct Untrusted<K>(K);

impl<K: KeySource> KeySource for Untrusted<K> {
    fn key<'r>(&self, head: Head<'r>) -> Option<Key<'r>> {
        let mut key = self.0.key(head)?;
        key.chosen = true;
        Some(key)
    }
}

/// One source, or else another.
#[derive(Debug, Clone, Copy)]
pub struct Or<A, B> {
    first: A,
    second: B,
}

impl<A: KeySource, B: KeySource> KeySource for Or<A, B> {
    fn key<'r>(&self, head: Head<'r>) -> Option<Key<'r>> {
        self.first.key(head).or_else(|| self.second.key(head))
    }
}

/// Each request by itself: not sticky.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct PerRequest;

impl KeySource for PerRequest {
    fn key<'r>(&self, _: Head<'r>) -> Option<Key<'r>> {
        Some(Key::keyless())
    }
}

/// The value of a header: see [`header`].
#[derive(Debug, Clone)]
pub struct FromHeader(Option<HeaderName>);

/// By the value of a header, such as a session id. An empty value is none; a name that no header can have is never found.
pub fn header(name: &str) -> FromHeader {
    FromHeader(HeaderName::from_bytes(name.as_bytes()).ok())
}

impl KeySource for FromHeader {
    fn key<'r>(&self, head: Head<'r>) -> Option<Key<'r>> {
        let value = head.headers.get(self.0.as_ref()?)?.as_bytes();
        (!value.is_empty()).then(|| Key::session(value))
    }
}

/// The bearer token: see [`bearer_hash`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct BearerHash;

/// By the hash of the bearer token: one caller, one side. The token itself is stored nowhere. Where tokens are renewed now and
/// then, [`bearer_subject`] keeps callers where they are.
pub fn bearer_hash() -> BearerHash {
    BearerHash
}

impl KeySource for BearerHash {
    fn key<'r>(&self, head: Head<'r>) -> Option<Key<'r>> {
        bearer(head).map(Key::session)
    }
}

fn bearer(head: Head<'_>) -> Option<&[u8]> {
    let value = head.headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

/// The subject of the bearer token: see [`bearer_subject`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct BearerSubject;

/// By the subject (`sub`) of a bearer token that is a JSON Web Token: the same caller with every new token. Other tokens have
/// none, so `bearer_subject().or(bearer_hash())` takes both.
///
/// The token's signature is **not** checked, here or anywhere in the layer: something outside it must, as it must for any
/// request. Where nothing does, callers choose their subjects, and [`KeySource::untrusted`] is right.
pub fn bearer_subject() -> BearerSubject {
    BearerSubject
}

/// Longer claims are not looked into.
const LONGEST_CLAIMS: usize = 16 << 10;

impl KeySource for BearerSubject {
    fn key<'r>(&self, head: Head<'r>) -> Option<Key<'r>> {
        let mut parts = bearer(head)?.split(|byte| *byte == b'.');
        let (_, claims, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next())
        else {
            return None;
        };
        if claims.len() > LONGEST_CLAIMS {
            return None;
        }
        let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
        let subject = super::field::find(&claims, &["sub"])?;
        head.keep(subject).map(Key::session)
    }
}

/// The value of a cookie: see [`cookie`].
#[derive(Debug, Clone)]
pub struct FromCookie(Box<[u8]>);

/// By the value of a cookie. An empty value is none.
pub fn cookie(name: &str) -> FromCookie {
    FromCookie(name.as_bytes().into())
}

impl KeySource for FromCookie {
    fn key<'r>(&self, head: Head<'r>) -> Option<Key<'r>> {
        head.headers
            .get_all(COOKIE)
            .iter()
            .flat_map(|line| line.as_bytes().split(|b| *b == b';'))
            .filter_map(|pair| pair.trim_ascii().strip_prefix(&*self.0)?.strip_prefix(b"="))
            .find(|value| !value.is_empty())
            .map(Key::session)
    }
}

/// Whatever a function finds: see [`from_fn`].
#[derive(Debug, Clone, Copy)]
pub struct FromFn<F>(F);

/// By whatever a function finds: pins of internal users, a tenant's policy, a subject that an outer layer has verified.
///
/// ```
/// use llm_serve_adapters::layer::{KeySource as _, from_fn, header};
/// use llm_serve_adapters::router::{Key, Pin};
///
/// let internal = from_fn(|head| {
///     head.headers.contains_key("x-internal").then(|| Key::keyless().pinned(Pin::Candidate))
/// });
/// let key = internal.or(header("x-session-id")).or_request();
/// # drop(key);
/// ```
pub fn from_fn<F: for<'r> Fn(Head<'r>) -> Option<Key<'r>>>(find: F) -> FromFn<F> {
    FromFn(find)
}

impl<F: for<'r> Fn(Head<'r>) -> Option<Key<'r>>> KeySource for FromFn<F> {
    fn key<'r>(&self, head: Head<'r>) -> Option<Key<'r>> {
        (self.0)(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(source: &impl KeySource, headers: &[(&str, &str)]) -> Option<String> {
        let mut request = Request::new(());
        for (name, value) in headers {
            request.headers_mut().append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.parse().unwrap(),
            );
        }
        let scratch = Scratch::default();
        let key = source.key(Head::of(&request, &scratch))?;
        Some(key.session.map_or("by itself".to_owned(), |b| {
            String::from_utf8(b.to_vec()).unwrap()
        }))
    }

    #[test]
    fn the_first_source_that_has_a_key_gives_it() {
        let source = header("X-Session-Id")
            .or(cookie("sid"))
            .or(bearer_hash())
            .or_request();
        let found = |headers: &[(&str, &str)]| session(&source, headers).unwrap();
        assert_eq!(
            found(&[("x-session-id", "s1"), ("authorization", "Bearer t")]),
            "s1"
        );
        assert_eq!(
            found(&[("x-session-id", ""), ("authorization", "bearer  t ")]),
            "t"
        );
        assert_eq!(
            found(&[("cookie", "a=b; sid=s2"), ("authorization", "Bearer t")]),
            "s2"
        );
        assert_eq!(found(&[("cookie", "sid=; ssid=x")]), "by itself");
        assert_eq!(found(&[("authorization", "Basic x")]), "by itself");
        assert_eq!(found(&[("authorization", "Bearer")]), "by itself");
        assert_eq!(session(&header("x-session-id"), &[]), None);
        assert_eq!(session(&header("not a name"), &[]), None);
    }

    /// An unsigned token with these claims.
    fn token(claims: &str) -> String {
        let claims = URL_SAFE_NO_PAD.encode(claims);
        format!("Bearer eyJhbGciOiJub25lIn0.{claims}.c2ln")
    }

    #[test]
    fn callers_stay_where_they_are_when_their_tokens_are_renewed() {
        let source = bearer_subject().or(bearer_hash());
        let found = |value: &str| session(&source, &[("authorization", value)]).unwrap();
        for issued in [1_700_000_000, 1_700_003_600] {
            let claims = format!("{{\"iat\": {issued}, \"sub\": \"ana@example.org\"}}");
            assert_eq!(found(&token(&claims)), "ana@example.org");
        }
        // The example of RFC 7519, section 3.1, has no subject; nor has what is no such token.
        let example = "Bearer eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        assert_eq!(found(example), example["Bearer ".len()..]);
        for other in [
            token("{\"sub\": \"\"}"),
            token("{\"sub\": {}}"),
            token("no JSON"),
            "Bearer a.!.c".to_owned(),
            "Bearer a.b".to_owned(),
            format!("{}.d", token("{\"sub\": \"five parts\"}")),
        ] {
            assert_eq!(found(&other), other["Bearer ".len()..]);
        }
    }

    #[test]
    fn keys_that_clients_make_up_are_marked_so() {
        let request = Request::builder()
            .header("x-session-id", "s")
            .body(())
            .unwrap();
        let (one, two) = (Scratch::default(), Scratch::default());
        let source = header("x-session-id");
        assert!(!source.key(Head::of(&request, &one)).unwrap().chosen);
        assert!(
            source
                .untrusted()
                .key(Head::of(&request, &two))
                .unwrap()
                .chosen
        );
    }
}
