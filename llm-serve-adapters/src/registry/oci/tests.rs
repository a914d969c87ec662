//! A registry on the loopback interface that does what the specification says, and goes wrong as told.

use super::*;
use crate::host::ErrorKind;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, Uri};
use futures_util::StreamExt as _;
use llm_version_core::fs::{BuildOptions, build};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::net::TcpListener;

#[derive(Default)]
struct Registry {
    blobs: BTreeMap<String, Vec<u8>>,
    manifests: BTreeMap<String, Vec<u8>>,
    /// Requests, without their bodies.
    log: Vec<String>,
    /// What the next requests are refused with: status, code, header.
    refusals: Vec<(u16, &'static str, Option<Header>)>,
    /// Demanded of every request, once it is set: whoever asks `/token` with the password gets it.
    token: Option<&'static str>,
    /// Blobs are sent for to `/elsewhere`.
    redirects: bool,
    /// Of a blob only so many bytes come, at first.
    cut: Option<usize>,
}

type Shared = Arc<Mutex<Registry>>;
type Header = (&'static str, String);

fn reply(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response<Body> {
    let mut reply = Response::builder().status(status);
    for (name, value) in headers {
        reply = reply.header(*name, *value);
    }
    reply.body(body.into()).unwrap()
}

fn refuse(status: u16, code: &str) -> Response<Body> {
    let body = serde_json::json!({"errors": [{"code": code, "message": "as told", "detail": {}}]});
    reply(status, &[], body.to_string())
}

async fn answer(
    State((registry, address)): State<(Shared, String)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let mut registry = registry.lock().unwrap();
    let header = |name: &str| headers.get(name).map(|v| v.to_str().unwrap());
    let path = uri.path();
    if path == "/token" {
        // Of the user ci with the password S3CRET.
        if header("authorization") != Some("Basic Y2k6UzNDUkVU") {
            return refuse(401, "UNAUTHORIZED");
        }
        assert!(
            uri.query()
                .unwrap()
                .contains("scope=repository%3Achat%3Apull")
        );
        let token = serde_json::json!({"access_token": registry.token, "expires_in": 60});
        return reply(200, &[], token.to_string());
    }
    let line = format!("{method} {uri} {}", header("range").unwrap_or_default());
    registry.log.push(line.trim_end().to_owned());
    if let Some(token) = registry.token
        && !path.starts_with("/elsewhere")
        && header("authorization") != Some(&format!("Bearer {token}"))
    {
        let challenge = format!(
            "Bearer realm=\"{address}/token\",service=\"test\",scope=\"repository:chat:pull,push\""
        );
        return reply(401, &[("www-authenticate", challenge.as_str())], "{}");
    }
    if let Some((status, code, header)) = registry.refusals.pop() {
        let mut refused = refuse(status, code);
        if let Some((name, value)) = header {
            refused.headers_mut().insert(name, value.parse().unwrap());
        }
        return refused;
    }
    if path.starts_with("/elsewhere") {
        assert_eq!(
            header("authorization"),
            None,
            "credentials stay with the registry"
        );
    }
    let last = path.rsplit('/').next().unwrap().to_owned();
    let digest = |bytes: &[u8]| format!("sha256:{}", Digest::of(bytes));
    match (method.as_str(), path) {
        ("POST", "/v2/chat/blobs/uploads/") => {
            let mounted = uri.query().is_some_and(|q| q.contains("from=base"));
            if mounted && registry.blobs.contains_key("mountable") {
                return reply(201, &[], "");
            }
            // Relative, and with a query of its own.
            reply(202, &[("location", "/v2/chat/blobs/uploads/1?state=x")], "")
        }
        ("PUT", "/v2/chat/blobs/uploads/1") => {
            assert_eq!(header("content-length"), Some(&*body.len().to_string()));
            let query = uri.query().unwrap();
            let stated = query.split("digest=").nth(1).unwrap().replace("%3A", ":");
            if digest(&body) != stated {
                return refuse(400, "DIGEST_INVALID");
            }
            registry.blobs.insert(stated, body.to_vec());
            reply(201, &[], "")
        }
        ("DELETE", "/v2/chat/blobs/uploads/1") => reply(204, &[], ""),
        ("PUT", _) if path.starts_with("/v2/chat/manifests/") => {
            registry.manifests.insert(last, body.to_vec());
            registry.manifests.insert(digest(&body), body.to_vec());
            reply(201, &[("docker-content-digest", &digest(&body))], "")
        }
        ("GET", _) if path.starts_with("/v2/chat/manifests/") => {
            match registry.manifests.get(&last) {
                Some(bytes) => reply(
                    200,
                    &[("docker-content-digest", &digest(bytes))],
                    bytes.clone(),
                ),
                None => refuse(404, "MANIFEST_UNKNOWN"),
            }
        }
        ("HEAD" | "GET", _) => {
            let Some(bytes) = registry.blobs.get(&last).cloned() else {
                return refuse(404, "BLOB_UNKNOWN");
            };
            if registry.redirects && !path.starts_with("/elsewhere") {
                // Another name of this machine is another origin.
                let elsewhere = address.replace("127.0.0.1", "localhost");
                let to = format!("{elsewhere}/elsewhere/{last}");
                return reply(307, &[("location", &to)], "");
            }
            if method == Method::HEAD {
                return reply(200, &[], "");
            }
            let from = header("range").map(|r| r["bytes=".len()..r.len() - 1].parse().unwrap());
            let part = bytes[from.unwrap_or(0)..].to_vec();
            if let Some(cut) = registry.cut.filter(|cut| *cut < part.len()) {
                registry.cut = None;
                let length = part.len().to_string();
                let sent = [
                    Ok(Bytes::from(part[..cut].to_vec())),
                    Err(std::io::Error::other("cut off")),
                ];
                // What has been said so far gets on its way first.
                let sent = futures_util::stream::iter(sent).then(|part| async {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    part
                });
                return reply(200, &[("content-length", &length)], Body::from_stream(sent));
            }
            reply(if from.is_some() { 206 } else { 200 }, &[], part)
        }
        _ => panic!("{method} {uri}"),
    }
}

struct Place {
    registry: Shared,
    address: String,
    folder: TempDir,
    manifest: Manifest,
}

impl Place {
    async fn new() -> Self {
        let registry = Shared::default();
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let address = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let app = Router::new()
            .fallback(answer)
            .with_state((Arc::clone(&registry), address.clone()));
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().join("here");
        let weights = "0123456789".repeat(70_000);
        for (path, text) in [
            (
                "metadata.json",
                r#"{"format":"llm-metadata/1","name":"chat","version":"1.2.3","contract":{"api":"openai-chat/v1"}}"#,
            ),
            ("model/weights/model.bin", &weights),
            ("prompt/system.txt", "You are helpful."),
            ("prompt/few_shot/1.txt", "You are helpful."),
        ] {
            let path = here.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let manifest = build(&here, &BuildOptions::new()).unwrap().manifest;
        Self {
            registry,
            address,
            folder,
            manifest,
        }
    }

    fn repository(&self) -> OciRepository {
        let mut repository = OciRepository::open(&format!("{}/chat", self.address)).unwrap();
        repository.client.pause = Duration::from_millis(1);
        repository
    }

    async fn push(&self, repository: &OciRepository) -> Result<Pushed> {
        let here = self.folder.path().join("here");
        repository.push(&here, &self.manifest, &["stable"]).await
    }

    fn there(&self) -> PathBuf {
        self.folder.path().join("there")
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.registry.lock().unwrap().log)
    }

    /// The blob of a file.
    fn digest(&self, path: &str) -> String {
        let mut components = self.manifest.components().iter();
        let component = components.find(|c| c.path.as_str() == path).unwrap();
        format!("sha256:{}", component.digest)
    }
}

fn code(error: &OciRegistryError) -> &OciCode {
    match error {
        OciRegistryError::Refused { code, .. } => code,
        other => panic!("{other}"),
    }
}

const WEIGHTS: &str = "model/weights/model.bin";

#[tokio::test]
async fn what_is_there_is_neither_sent_nor_fetched_again() {
    let place = Place::new().await;
    let repository = place.repository();
    let pushed = place.push(&repository).await.unwrap();
    // Weights, a prompt that comes twice, two documents, a configuration.
    assert_eq!((pushed.sent, pushed.there), (5, 0));
    let again = place.push(&repository).await.unwrap();
    assert_eq!(
        (again.sent, again.there, again.digest),
        (0, 5, pushed.digest)
    );
    for reference in [
        "stable",
        &place.manifest.id().to_oci_tag(),
        &format!("sha256:{}", pushed.digest),
    ] {
        let dir = place.folder.path().join(reference.replace(':', "-"));
        let pulled = repository.pull(reference, &dir).await.unwrap();
        assert_eq!(pulled.version.as_ref(), Some(place.manifest.id()));
        assert_eq!(pulled.kept_bytes, 16, "the prompt that comes twice");
        place.log();
        let again = repository.pull(reference, &dir).await.unwrap();
        assert_eq!((again.received_bytes, again.version), (0, pulled.version));
        assert_eq!(place.log().len(), 1, "the manifest alone is asked for");
    }
    assert_eq!(
        repository.find(place.manifest.id()).await.unwrap().as_ref(),
        Some(&place.manifest)
    );
    let other = format!("chat/v9.0.0-{}", "9".repeat(64)).parse().unwrap();
    assert_eq!(repository.find(&other).await.unwrap(), None);
    let small = place.repository().most_bytes(100);
    let error = small.pull("stable", &place.there()).await.unwrap_err();
    assert!(
        matches!(error, OciRegistryError::TooLarge { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_download_that_is_cut_off_goes_on_in_the_middle() {
    let place = Place::new().await;
    let repository = place.repository();
    place.push(&repository).await.unwrap();
    place.log();
    place.registry.lock().unwrap().cut = Some(300_000);
    let pulled = repository.pull("stable", &place.there()).await.unwrap();
    assert_eq!(pulled.version.as_ref(), Some(place.manifest.id()));
    let asked = format!("GET /v2/chat/blobs/{} bytes=", place.digest(WEIGHTS));
    let log = place.log();
    assert!(log.iter().any(|line| line.starts_with(&asked)), "{log:?}");
}

#[tokio::test]
async fn tampering_is_noticed_on_both_sides() {
    let place = Place::new().await;
    let repository = place.repository();
    // Altered between the build and its way out: its last block stays here.
    let altered = place.folder.path().join("altered");
    fs::write(&altered, "abc").unwrap();
    for (meant, size) in [("abd", 3), ("ab", 2), ("abcd", 4)] {
        let digest = Digest::of(meant.as_bytes());
        let source = OciSource::File(altered.clone());
        let error = repository
            .client
            .put_blob(&digest, size, &source, &[])
            .await
            .unwrap_err();
        assert!(matches!(error, OciRegistryError::Changed { .. }), "{error}");
    }
    assert!(place.registry.lock().unwrap().blobs.is_empty());
    // Altered where it is kept: in its middle, shorter, longer.
    place.push(&repository).await.unwrap();
    let digest = place.digest(WEIGHTS);
    let whole = place.registry.lock().unwrap().blobs[&digest].clone();
    let mut other = whole.clone();
    other[5] = b'x';
    let longer = [&whole[..], b"x"].concat();
    for kept in [other, whole[..9].to_vec(), longer] {
        place
            .registry
            .lock()
            .unwrap()
            .blobs
            .insert(digest.clone(), kept);
        let error = repository.pull("stable", &place.there()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
        assert!(!place.there().exists());
    }
    place.registry.lock().unwrap().blobs.insert(digest, whole);
    // What an earlier try has left is not trusted either.
    repository.pull("stable", &place.there()).await.unwrap();
    // A manifest that is another one.
    let pushed = place.push(&repository).await.unwrap();
    let by_digest = format!("sha256:{}", pushed.digest);
    place
        .registry
        .lock()
        .unwrap()
        .manifests
        .insert(by_digest.clone(), b"{}".to_vec());
    let error = repository
        .pull(&by_digest, &place.folder.path().join("x"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, OciRegistryError::WrongDigest { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_the_rest_is_typed() {
    let place = Place::new().await;
    let repository = place.repository();
    place.push(&repository).await.unwrap();
    let soon = Some(("retry-after", "0".to_owned()));
    place.registry.lock().unwrap().refusals = vec![(429, "TOOMANYREQUESTS", soon), (503, "", None)];
    repository.pull("stable", &place.there()).await.unwrap();
    let later = Some(("retry-after", "3600".to_owned()));
    for (status, text, wanted, kind) in [
        (
            429,
            "TOOMANYREQUESTS",
            OciCode::TooManyRequests,
            ErrorKind::Transient,
        ),
        (403, "DENIED", OciCode::Denied, ErrorKind::Permanent),
        (
            401,
            "UNAUTHORIZED",
            OciCode::Unauthorized,
            ErrorKind::Permanent,
        ),
        (
            400,
            "NAME_INVALID",
            OciCode::NameInvalid,
            ErrorKind::Permanent,
        ),
        (
            404,
            "NAME_UNKNOWN",
            OciCode::NameUnknown,
            ErrorKind::Permanent,
        ),
        (
            400,
            "DIGEST_INVALID",
            OciCode::DigestInvalid,
            ErrorKind::Transient,
        ),
        (
            418,
            "TEAPOT",
            OciCode::Other("TEAPOT".to_owned()),
            ErrorKind::Permanent,
        ),
    ] {
        place.registry.lock().unwrap().refusals = vec![(status, text, later.clone())];
        let dir = place.folder.path().join("x");
        let error = repository.pull("stable", &dir).await.unwrap_err();
        assert!(*code(&error) == wanted && error.kind() == kind, "{error}");
        place.registry.lock().unwrap().refusals.clear();
    }
    let error = repository.pull("none", &place.there()).await.unwrap_err();
    assert_eq!(*code(&error), OciCode::ManifestUnknown);
    for bad in [
        "chat",
        "http://x",
        "http://x/Chat",
        "http://x/a//b",
        "http://x/a?b=c",
        "http://x/-a",
    ] {
        let error = OciRepository::open(bad).unwrap_err();
        assert!(matches!(error, OciRegistryError::Address { .. }), "{bad}");
    }
    for bad in ["a b", "../x", "sha256:1", ""] {
        assert!(repository.pull(bad, &place.there()).await.is_err(), "{bad}");
    }
}

#[tokio::test]
async fn tokens_are_got_and_stay_with_the_registry() {
    let place = Place::new().await;
    {
        let mut registry = place.registry.lock().unwrap();
        registry.token = Some("t0ken");
        registry.redirects = true;
    }
    let error = place.push(&place.repository()).await.unwrap_err();
    assert_eq!(*code(&error), OciCode::Unauthorized, "{error}");
    let repository = place.repository().password("ci", "S3CRET").unwrap();
    place.push(&repository).await.unwrap();
    let pulled = repository.pull("stable", &place.there()).await.unwrap();
    assert_eq!(pulled.version.as_ref(), Some(place.manifest.id()));
    assert!(place.log().iter().any(|line| line.contains("/elsewhere/")));
    let shown = format!("{repository:?} {error} {error:?}");
    assert!(
        !shown.contains("S3CRET") && !shown.contains("t0ken"),
        "{shown}"
    );
}

#[tokio::test]
async fn blobs_of_another_repository_are_taken_over() {
    let place = Place::new().await;
    let repository = place.repository().mount_from("base").unwrap();
    place
        .registry
        .lock()
        .unwrap()
        .blobs
        .insert("mountable".to_owned(), Vec::new());
    let pushed = place.push(&repository).await.unwrap();
    assert_eq!((pushed.sent, pushed.there), (0, 5));
    place.registry.lock().unwrap().blobs.clear();
    let pushed = place.push(&repository).await.unwrap();
    assert_eq!(
        (pushed.sent, pushed.there),
        (5, 0),
        "what is not there is sent"
    );
    assert!(place.repository().mount_from("../x").is_err());
}

#[tokio::test]
async fn nobody_waits_for_what_does_not_move() {
    let place = Place::new().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/chat", silent.local_addr().unwrap());
    let mut repository = OciRepository::open(&address)
        .unwrap()
        .patience(Duration::from_millis(50));
    repository.client.pause = Duration::from_millis(1);
    let error = repository.pull("stable", &place.there()).await.unwrap_err();
    assert!(matches!(error, OciRegistryError::Stuck { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Transient);
}

#[tokio::test]
async fn one_pull_at_a_time_writes_to_a_place() {
    let place = Place::new().await;
    let repository = place.repository();
    let pushed = place.push(&repository).await.unwrap();
    let held = Staging::open(&place.there(), &pushed.digest).unwrap();
    let error = repository.pull("stable", &place.there()).await.unwrap_err();
    assert!(matches!(error, OciRegistryError::Busy { .. }), "{error}");
    drop(held);
    repository.pull("stable", &place.there()).await.unwrap();
}
