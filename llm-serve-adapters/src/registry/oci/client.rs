//! The distribution API: what is asked, by whom, how often, and how long for.

use super::auth::{Challenge, Credentials, token_address};
use super::error::{OciRegistryError, refused};
use super::{Result, transfer};
use crate::host::ErrorKind;
use crate::http_client::{Address, Authorities, Call, Http, Method, clip, secret};
use llm_version_core::Digest;
use llm_version_core::fs::{OciArtifact, OciSource};
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use reqwest::{Body, Response};
use serde::Deserialize;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
/// How often what may pass is tried.
const TRIES: u32 = 3;
/// The longest pause before another try that a registry may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Bytes of an image manifest that are read; registries take 4 MiB.
const MANIFEST: u64 = 16 << 20;
/// Bytes of a refusal or a token that are read.
const SMALL: u64 = 256 << 10;
/// Redirects that are followed, as registries keep blobs elsewhere.
const REDIRECTS: usize = 5;

pub(super) struct Client {
    http: Http,
    /// `.../v2/<name>`
    base: Address,
    name: String,
    pub(super) credentials: Option<Credentials>,
    /// What the registry wants to see, once it has said so.
    authorization: Mutex<Option<HeaderValue>>,
    /// Scopes that tokens are asked for beside the one that is demanded.
    pub(super) also: Vec<String>,
    pub(super) patience: Duration,
    /// Before the second try; twice as long before the third.
    pub(super) pause: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("registry", &self.base)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Path components of `[a-z0-9]+` with `.`, `_` and `-` between, as the specification has them.
pub(super) fn check_name(name: &str) -> Result<()> {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = |part: &str| {
        part.starts_with(alphanumeric)
            && part.ends_with(alphanumeric)
            && part
                .chars()
                .all(|c| alphanumeric(c) || matches!(c, '.' | '_' | '-'))
    };
    if name.len() <= 255 && name.split('/').all(good) {
        return Ok(());
    }
    Err(OciRegistryError::Address {
        what: format!("repository {:?}", clip(name)),
        why: "take parts of a-z, 0-9, '.', '_' and '-', with '/' between, such as models/chat"
            .to_owned(),
    })
}

#[derive(Deserialize)]
struct Token {
    #[serde(alias = "access_token")]
    token: String,
}

impl Client {
    pub(super) fn open(address: &str) -> Result<Self> {
        let unusable = |why: String| OciRegistryError::Address {
            what: "the address of the repository".to_owned(),
            why,
        };
        let parsed = Address::parse(address).map_err(|e| unusable(e.to_string()))?;
        if parsed.has_query() {
            return Err(unusable("it asks a query".to_owned()));
        }
        let name = parsed.path().trim_start_matches('/').to_owned();
        check_name(&name)?;
        Ok(Self {
            http: Http::new().map_err(|e| unusable(e.to_string()))?,
            base: parsed.with_path(&format!("/v2/{name}")),
            name,
            credentials: None,
            authorization: Mutex::new(None),
            also: Vec::new(),
            patience: PATIENCE,
            pause: Duration::from_secs(1),
        })
    }

    pub(super) fn trust(&mut self, authorities: &Authorities) -> Result<()> {
        self.http = Http::trusting(authorities).map_err(|e| OciRegistryError::Address {
            what: "the certificate authorities".to_owned(),
            why: e.to_string(),
        })?;
        Ok(())
    }

    /// Tries again what may pass.
    pub(super) async fn patiently<T, F>(&self, mut work: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut pause = self.pause;
        for _ in 1..TRIES {
            let error = match work().await {
                Err(error) if error.kind() == ErrorKind::Transient => error,
                outcome => return outcome,
            };
            let asked = match &error {
                OciRegistryError::Refused { retry_after, .. } => *retry_after,
                _ => None,
            };
            if asked.is_some_and(|asked| asked > LONGEST_PAUSE) {
                return Err(error);
            }
            tokio::time::sleep(asked.unwrap_or(pause)).await;
            pause *= 2;
        }
        work().await
    }

    fn below(&self, path: &str) -> Address {
        self.base.with_path(&format!("{}/{path}", self.base.path()))
    }

    fn what(&self, doing: &str, of: &str) -> String {
        format!("{doing} {of} of {}/{}", self.base, self.name)
    }

    fn authorization(&self) -> Option<HeaderValue> {
        let authorization = self.authorization.lock();
        authorization
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Sends it once; credentials go to the registry only.
    async fn once(
        &self,
        what: &str,
        method: Method,
        to: &Address,
        mut headers: HeaderMap,
        body: Option<Body>,
    ) -> Result<Response> {
        if to.same_origin(&self.base)
            && let Some(authorization) = self.authorization()
        {
            headers.insert(AUTHORIZATION, authorization);
        }
        let sent = self.http.open(method, to, headers, body);
        sent.await.map_err(|error| OciRegistryError::Unreachable {
            what: what.to_owned(),
            error,
        })
    }

    async fn timely<T>(&self, what: &str, work: impl Future<Output = T>) -> Result<T> {
        let stuck = |_| self.stuck(what);
        tokio::time::timeout(self.patience, work)
            .await
            .map_err(stuck)
    }

    fn stuck(&self, what: &str) -> OciRegistryError {
        OciRegistryError::Stuck {
            what: what.to_owned(),
            patience: self.patience,
        }
    }

    /// Sends it, gets a token if one is demanded, and follows what reads elsewhere.
    async fn ask(
        &self,
        what: &str,
        method: Method,
        to: &Address,
        headers: &HeaderMap,
        body: Option<&[u8]>,
    ) -> Result<Response> {
        let mut to = to.clone();
        let (mut asked, mut redirects) = (false, 0);
        loop {
            let body = body.map(|bytes| Body::from(bytes.to_vec()));
            let sent = self.once(what, method.clone(), &to, headers.clone(), body);
            let reply = self.timely(what, sent).await??;
            let status = reply.status().as_u16();
            if status == 401 && !asked && to.same_origin(&self.base) {
                asked = true;
                if self.identify(what, &reply).await? {
                    continue;
                }
            }
            let reads = method == Method::GET || method == Method::HEAD;
            if reads && matches!(status, 301 | 302 | 303 | 307 | 308) {
                redirects += 1;
                let next = location(what, &to, &reply)?;
                if redirects > REDIRECTS || (to.is_secure() && !next.is_secure()) {
                    return Err(answer(what, "it redirects too often, or out of TLS"));
                }
                to = next;
                continue;
            }
            return Ok(reply);
        }
    }

    /// Sets what the registry demands; whether there is anything to show.
    async fn identify(&self, what: &str, reply: &Response) -> Result<bool> {
        let headers = reply.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenges: Vec<_> = headers
            .filter_map(|header| Challenge::parse(header.to_str().ok()?))
            .collect();
        let bearer = challenges.iter().find(|c| **c != Challenge::Basic);
        let authorization = match bearer.or(challenges.first()) {
            None => return Ok(false),
            Some(Challenge::Basic) => match &self.credentials {
                None => return Ok(false),
                Some(credentials) => credentials.header(),
            },
            Some(Challenge::Bearer {
                realm,
                service,
                scope,
            }) => {
                let scopes = scope.iter().chain(&self.also).map(String::as_str);
                let scopes: Vec<_> = scopes.collect();
                self.token(what, realm, service.as_deref(), &scopes).await?
            }
        };
        *self
            .authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(authorization);
        Ok(true)
    }

    async fn token(
        &self,
        what: &str,
        realm: &str,
        service: Option<&str>,
        scopes: &[&str],
    ) -> Result<HeaderValue> {
        let to =
            token_address(&self.base, realm, service, scopes).map_err(|why| answer(what, &why))?;
        let mut headers = HeaderMap::new();
        if let Some(credentials) = &self.credentials {
            headers.insert(AUTHORIZATION, credentials.header());
        }
        let call = Call {
            to: &to,
            headers,
            json: None,
            timeout: self.patience,
            limit: usize::try_from(SMALL).unwrap_or(usize::MAX),
        };
        let what = format!("a token to {what}");
        let unreachable = |error| OciRegistryError::Unreachable {
            what: what.clone(),
            error,
        };
        let reply = self.http.send(call).await.map_err(unreachable)?;
        if !(200..300).contains(&reply.status) {
            return Err(refused(&what, reply.status, &reply.body, None));
        }
        let token: Token = serde_json::from_slice(&reply.body)
            .map_err(|_| answer(&what, "what comes holds no token"))?;
        secret("the token", &format!("Bearer {}", token.token)).map_err(unreachable)
    }

    /// The body, up to a limit.
    async fn small(&self, what: &str, mut reply: Response, limit: u64) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(block) = self
            .timely(what, reply.chunk())
            .await?
            .map_err(broke(what))?
        {
            if (body.len() + block.len()) as u64 > limit {
                return Err(OciRegistryError::TooLarge {
                    what: what.to_owned(),
                    limit,
                });
            }
            body.extend_from_slice(&block);
        }
        Ok(body)
    }

    async fn refusal(&self, what: &str, reply: Response) -> OciRegistryError {
        let status = reply.status().as_u16();
        let seconds = reply
            .headers()
            .get(RETRY_AFTER)
            .and_then(|v| v.to_str().ok());
        let after = seconds.and_then(|s| s.trim().parse().ok());
        let body = self.small(what, reply, SMALL).await.unwrap_or_default();
        refused(what, status, &body, after.map(Duration::from_secs))
    }

    /// Whether the repository has a blob.
    async fn has_blob(&self, digest: &Digest) -> Result<bool> {
        let what = self.what("look for", &format!("blob {digest}"));
        let to = self.below(&format!("blobs/sha256:{digest}"));
        let none = HeaderMap::new();
        let reply = self.ask(&what, Method::HEAD, &to, &none, None).await?;
        match reply.status().as_u16() {
            200..=299 => Ok(true),
            404 => Ok(false),
            _ => Err(self.refusal(&what, reply).await),
        }
    }

    /// Sees to it that the repository has a blob; whether it was sent.
    pub(super) async fn put_blob(
        &self,
        digest: &Digest,
        size: u64,
        source: &OciSource,
        mount_from: &[String],
    ) -> Result<bool> {
        if self.has_blob(digest).await? {
            return Ok(false);
        }
        let what = self.what("put", &format!("blob {digest}"));
        let uploads = self.below("blobs/uploads/");
        let digest_text = format!("sha256:{digest}");
        let mut begun = None;
        for from in mount_from {
            let to = uploads.and_query(&[("mount", &digest_text), ("from", from)]);
            let none = HeaderMap::new();
            let reply = self.ask(&what, Method::POST, &to, &none, Some(&[])).await?;
            match reply.status().as_u16() {
                201 => return Ok(false),
                // It is not there, and an upload has begun instead.
                202 => begun = Some(reply),
                // What it may not read it cannot mount.
                _ => {}
            }
        }
        let begun = if let Some(begun) = begun {
            begun
        } else {
            let none = HeaderMap::new();
            self.ask(&what, Method::POST, &uploads, &none, Some(&[]))
                .await?
        };
        if begun.status().as_u16() != 202 {
            return Err(self.refusal(&what, begun).await);
        }
        let upload = location(&what, &uploads, &begun)?;
        if self.base.is_secure() && !upload.is_secure() {
            return Err(answer(&what, "it wants the blob without TLS"));
        }
        let to = upload.and_query(&[("digest", &digest_text)]);
        let moved = Arc::new(AtomicU64::new(0));
        let (body, reading) = transfer::outgoing(source, *digest, size, Arc::clone(&moved));
        let headers = HeaderMap::from_iter([(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        )]);
        let sent = self.once(&what, Method::PUT, &to, headers, Some(Body::wrap(body)));
        let outcome = self.while_moving(&what, &moved, sent).await;
        // A registry may refuse before it has read everything, and leave the reader waiting.
        match tokio::time::timeout(self.patience, reading).await {
            Ok(Ok(Err(changed))) => {
                let away = self.once(&what, Method::DELETE, &upload, HeaderMap::new(), None);
                // What the registry keeps of it is no blob, and expires.
                let _ = self.timely(&what, away).await;
                return Err(changed);
            }
            Ok(Err(e)) => return Err(answer(&what, &e.to_string())),
            Ok(Ok(Ok(()))) | Err(_) => {}
        }
        let reply = outcome?;
        if reply.status().as_u16() != 201 {
            return Err(self.refusal(&what, reply).await);
        }
        Ok(true)
    }

    /// Waits for as long as bytes move.
    async fn while_moving<T>(
        &self,
        what: &str,
        moved: &AtomicU64,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let mut work = std::pin::pin!(work);
        let mut before = 0;
        loop {
            if let Ok(done) = tokio::time::timeout(self.patience, &mut work).await {
                return done;
            }
            let now = moved.load(Ordering::Relaxed);
            if now == before {
                return Err(self.stuck(what));
            }
            before = now;
        }
    }

    /// Stores a manifest under a tag.
    pub(super) async fn put_manifest(
        &self,
        tag: &str,
        bytes: &[u8],
        digest: &Digest,
    ) -> Result<()> {
        let what = self.what("put", &format!("tag {tag}"));
        let to = self.below(&format!("manifests/{tag}"));
        let media_type = HeaderValue::from_static(OciArtifact::MEDIA_TYPE);
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, media_type)]);
        let asked = self.ask(&what, Method::PUT, &to, &headers, Some(bytes));
        let reply = asked.await?;
        if reply.status().as_u16() != 201 {
            return Err(self.refusal(&what, reply).await);
        }
        same_digest(&what, digest, &reply)
    }

    /// A manifest by its tag or digest, checked as far as either tells.
    pub(super) async fn get_manifest(&self, reference: &str) -> Result<(Digest, Vec<u8>)> {
        let by_digest = if let Some(hex) = reference.strip_prefix("sha256:") {
            let bad = |e: llm_version_core::ParseDigestError| OciRegistryError::Address {
                what: format!("reference {:?}", clip(reference)),
                why: e.to_string(),
            };
            Some(hex.parse::<Digest>().map_err(bad)?)
        } else {
            OciArtifact::check_tag(reference)?;
            None
        };
        let what = self.what("get", reference);
        let to = self.below(&format!("manifests/{reference}"));
        let media_type = HeaderValue::from_static(OciArtifact::MEDIA_TYPE);
        let headers = HeaderMap::from_iter([(ACCEPT, media_type)]);
        let reply = self.ask(&what, Method::GET, &to, &headers, None).await?;
        if reply.status().as_u16() != 200 {
            return Err(self.refusal(&what, reply).await);
        }
        let stated = stated_digest(&reply);
        let bytes = self.small(&what, reply, MANIFEST).await?;
        let found = Digest::of(&bytes);
        for expected in by_digest.into_iter().chain(stated) {
            if expected != found {
                return Err(OciRegistryError::WrongDigest {
                    what,
                    expected,
                    found,
                });
            }
        }
        Ok((found, bytes))
    }

    /// A small blob.
    pub(super) async fn get_small_blob(&self, digest: &Digest, size: u64) -> Result<Vec<u8>> {
        let what = self.what("get", &format!("blob {digest}"));
        let to = self.below(&format!("blobs/sha256:{digest}"));
        let none = HeaderMap::new();
        let reply = self.ask(&what, Method::GET, &to, &none, None).await?;
        if reply.status().as_u16() != 200 {
            return Err(self.refusal(&what, reply).await);
        }
        let bytes = self.small(&what, reply, size).await?;
        check(&what, digest, Digest::of(&bytes)).map(|()| bytes)
    }

    /// Fetches a blob into a file, from where the file ends; how many bytes came.
    pub(super) async fn get_blob(&self, digest: &Digest, size: u64, target: &Path) -> Result<u64> {
        let begun = std::fs::metadata(target).is_ok_and(|file| file.len() > 0);
        match self.fetch(digest, size, target).await {
            // What was there may have been at fault: once more, from the first byte.
            Err(OciRegistryError::WrongDigest { .. }) if begun => {
                self.fetch(digest, size, target).await
            }
            outcome => outcome,
        }
    }

    async fn fetch(&self, digest: &Digest, size: u64, target: &Path) -> Result<u64> {
        let what = self.what("get", &format!("blob {digest}"));
        let path = target.to_owned();
        let mut file = transfer::aside(move || transfer::Incoming::open(&path, size)).await??;
        if file.there == size {
            if file.digest() == *digest {
                return Ok(0);
            }
            file.restart()?;
        }
        let to = self.below(&format!("blobs/sha256:{digest}"));
        let mut reply = loop {
            let from = file.there;
            let mut headers = HeaderMap::new();
            if let (1.., Ok(range)) = (from, HeaderValue::from_str(&format!("bytes={from}-"))) {
                headers.insert(RANGE, range);
            }
            let reply = self.ask(&what, Method::GET, &to, &headers, None).await?;
            match reply.status().as_u16() {
                206 if from > 0 => break reply,
                // All of it, asked for or not.
                200 => {
                    file.restart()?;
                    break reply;
                }
                416 if from > 0 => file.restart()?,
                _ => return Err(self.refusal(&what, reply).await),
            }
        };
        let (mut there, before) = (file.there, file.there);
        let (blocks, writing) = file.receive();
        let received = loop {
            let block = match self.timely(&what, reply.chunk()).await {
                Err(stuck) => break Err(stuck),
                Ok(Err(error)) => break Err(broke(&what)(error)),
                Ok(Ok(None)) => break Ok(()),
                Ok(Ok(Some(block))) => block,
            };
            there += block.len() as u64;
            if there > size {
                break Err(OciRegistryError::TooLarge {
                    what: what.clone(),
                    limit: size,
                });
            }
            // A writer that has stopped says why below.
            if blocks.send(block).await.is_err() {
                break Ok(());
            }
        };
        drop(blocks);
        // What has come is kept, for the next try.
        let mut file = match writing.await {
            Ok(written) => written?,
            Err(e) => return Err(answer(&what, &e.to_string())),
        };
        received?;
        if file.there < size {
            return Err(OciRegistryError::Answer {
                what,
                found: format!("{} bytes come where {size} are stated", file.there),
            });
        }
        let found = file.digest();
        if found != *digest {
            file.restart()?;
        }
        check(&what, digest, found).map(|()| there - before)
    }
}

fn answer(what: &str, found: &str) -> OciRegistryError {
    OciRegistryError::Answer {
        what: what.to_owned(),
        found: clip(found),
    }
}

/// Where a reply sends.
fn location(what: &str, asked: &Address, reply: &Response) -> Result<Address> {
    let location = reply.headers().get(LOCATION).and_then(|l| l.to_str().ok());
    match location.map(|location| asked.join(location)) {
        Some(Ok(next)) => Ok(next),
        _ => Err(answer(what, "it sends nowhere that can be read")),
    }
}

fn broke(what: &str) -> impl FnOnce(reqwest::Error) -> OciRegistryError {
    let what = what.to_owned();
    move |error| OciRegistryError::Unreachable {
        error: crate::host::Error::transient("the connection broke on the way: try again")
            .because(error.without_url()),
        what,
    }
}

fn check(what: &str, expected: &Digest, found: Digest) -> Result<()> {
    if found == *expected {
        return Ok(());
    }
    Err(OciRegistryError::WrongDigest {
        what: what.to_owned(),
        expected: *expected,
        found,
    })
}

/// What the registry says the digest is, if it says one that is known here.
fn stated_digest(reply: &Response) -> Option<Digest> {
    let header = reply.headers().get("docker-content-digest")?;
    header.to_str().ok()?.strip_prefix("sha256:")?.parse().ok()
}

fn same_digest(what: &str, expected: &Digest, reply: &Response) -> Result<()> {
    stated_digest(reply).map_or(Ok(()), |found| check(what, expected, found))
}
