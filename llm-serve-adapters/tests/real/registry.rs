//! Bundles in a real OCI registry: pushed here, pulled on another host, verified, served; what was tampered with is refused on both
//! sides.

use crate::process::{Process, free_port, http_with, ready, version_of};
use crate::stack::{Llama, model_file};
use llm_serve_adapters::host::Manifests as _;
use llm_serve_adapters::registry::{OciCode, OciRegistryError, OciRepository};
use llm_version_core::fs::{BuildOptions, VerifyOptions, build, verify};
use llm_version_core::{Digest, Manifest};
use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Of the user `ci`.
const PASSWORD: &str = "over-the-wire";
const HASHED: &str = "ci:$2b$04$4wbdTa8DqD/ZzGG.EUpJaecBsZye7Bb9KtsAwUCI.oi1vHTvENrei\n";

struct Registry {
    folder: TempDir,
    port: u16,
    _process: Process,
}

impl Registry {
    /// With a user and a password, or open to everybody.
    async fn start(guarded: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let root = folder.path().join("root");
        let mut config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            root.display()
        );
        if guarded {
            let users = folder.path().join("users");
            fs::write(&users, HASHED).unwrap();
            write!(
                config,
                "auth:\n  htpasswd:\n    realm: models\n    path: {}\n",
                users.display()
            )
            .unwrap();
        }
        fs::write(folder.path().join("config.yml"), config).unwrap();
        let process = Process::start(folder.path(), "docker-registry", &["serve", "config.yml"]);
        ready(port, "/").await;
        Self {
            folder,
            port,
            _process: process,
        }
    }

    fn repository(&self, name: &str) -> OciRepository {
        OciRepository::open(&format!("http://127.0.0.1:{}/{name}", self.port)).unwrap()
    }

    /// Where it keeps a blob.
    fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.to_string();
        let blobs = self
            .folder
            .path()
            .join("root/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(&hex).join("data")
    }
}

/// A bundle of a real model where there is one, else of made-up weights of 96 MiB; its prompt is all that tells versions apart.
fn bundle(folder: &Path, minor: u32) -> Manifest {
    let weights = folder.join("model/weights/model.gguf");
    fs::create_dir_all(weights.parent().unwrap()).unwrap();
    if std::env::var_os("LLM_E2E_MODELS").is_some() {
        fs::copy(model_file("v1"), &weights).unwrap();
    } else {
        let mut weights = fs::File::create(folder.join("model/weights/model.bin")).unwrap();
        for n in 0..96_u8 {
            weights.write_all(&vec![n; 1 << 20]).unwrap();
        }
    }
    let metadata = format!(
        r#"{{"format":"llm-metadata/1","name":"chat","version":"1.{minor}.0","contract":{{"api":"openai-chat/v1"}}}}"#
    );
    for (path, text) in [
        ("metadata.json", metadata.as_str()),
        (
            "prompt/system.txt",
            &format!("You are assistant number {minor}."),
        ),
        ("config/generation.json", r#"{"temperature":0.0}"#),
    ] {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    build(folder, &BuildOptions::new()).unwrap().manifest
}

/// Memory of this process in MiB: now, and the most ever.
fn memory() -> Option<(u64, u64)> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    Some((field("VmRSS:")? >> 10, field("VmHWM:")? >> 10))
}

/// Begins an upload by hand: where it goes on.
async fn upload(port: u16, repository: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!(
        "POST /v2/{repository}/blobs/uploads/ HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    let location = reply
        .lines()
        .find_map(|line| line.strip_prefix("Location: "))
        .unwrap_or_else(|| panic!("{reply}"));
    let path = location.find("/v2/").unwrap();
    location[path..].to_owned()
}

fn code(error: &OciRegistryError) -> Option<&OciCode> {
    match error {
        OciRegistryError::Refused { code, .. } => Some(code),
        _ => None,
    }
}

#[tokio::test]
#[ignore = "needs docker-registry: e2e/run registry"]
async fn a_bundle_travels_is_verified_and_served() {
    let registry = Registry::start(true).await;
    let chat = registry
        .repository("models/chat")
        .password("ci", PASSWORD)
        .unwrap();
    let here = tempfile::tempdir().unwrap();
    let (one, two) = (here.path().join("one"), here.path().join("two"));
    let first = bundle(&one, 1);
    let size = first.components().iter().map(|c| c.size).sum::<u64>();
    let before = memory();

    let began = Instant::now();
    let pushed = chat.push(&one, &first, &["stable"]).await.unwrap();
    assert!(pushed.sent_bytes >= size && pushed.there == 0, "{pushed:?}");
    println!(
        "ok      scenario 13: pushed {} in {} blobs, {} MB in {:.1} s",
        first.id(),
        pushed.sent,
        pushed.sent_bytes / 1_000_000,
        began.elapsed().as_secs_f64()
    );
    let again = chat.push(&one, &first, &["stable"]).await.unwrap();
    assert_eq!((again.sent, again.digest), (0, pushed.digest));
    let second = bundle(&two, 2);
    let next = chat.push(&two, &second, &["stable"]).await.unwrap();
    assert!(next.sent_bytes < 100_000, "{next:?}");
    println!(
        "ok      a new prompt is a push of {} bytes; the same again, of none",
        next.sent_bytes
    );
    // Another repository of the same registry takes the weights over.
    let other = registry
        .repository("models/other")
        .password("ci", PASSWORD)
        .unwrap();
    let other = other.mount_from("models/chat").unwrap();
    let mounted = other.push(&one, &first, &[]).await.unwrap();
    assert_eq!(
        (mounted.sent, mounted.there),
        (0, pushed.sent),
        "{mounted:?}"
    );

    // On another host, by the digest, in the middle of which the first pull was cut off.
    let there = tempfile::tempdir().unwrap();
    let dir = there.path().join("chat");
    let weights = first.components().iter().max_by_key(|c| c.size).unwrap();
    let staging = there
        .path()
        .join(format!("chat.{}.partial", pushed.digest.short(12)));
    let partial = staging.join(weights.path.as_str());
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    let half = weights.size / 2;
    let whole = fs::File::open(one.join(weights.path.as_str())).unwrap();
    std::io::copy(
        &mut whole.take(half),
        &mut fs::File::create(&partial).unwrap(),
    )
    .unwrap();
    let host = registry
        .repository("models/chat")
        .password("ci", PASSWORD)
        .unwrap();
    let began = Instant::now();
    let by_digest = format!("sha256:{}", pushed.digest);
    let pulled = host.pull(&by_digest, &dir).await.unwrap();
    assert_eq!(pulled.version.as_ref(), Some(first.id()));
    assert_eq!(pulled.kept_bytes, half, "{pulled:?}");
    println!(
        "ok      scenario 13: pulled elsewhere, {} MB in {:.1} s after {} MB of an earlier try, verified as {}",
        pulled.received_bytes / 1_000_000,
        began.elapsed().as_secs_f64(),
        half / 1_000_000,
        first.id().reference()
    );
    verify(&dir, &first, &VerifyOptions::new()).unwrap();
    assert_eq!(
        host.pull(&by_digest, &dir).await.unwrap().received_bytes,
        0,
        "it is there"
    );
    assert_eq!(
        host.manifest(first.id()).await.unwrap().as_ref(),
        Some(&first)
    );
    if let (Some((resident, _)), Some((_, most))) = (before, memory()) {
        let more = most.saturating_sub(resident);
        assert!(more < 64, "{more} MiB more than at the start");
        println!(
            "ok      memory: {more} MiB more at most, for blobs of {} MiB",
            weights.size >> 20
        );
    }
    let moved = there.path().join("moved");
    let tagged = host.pull("stable", &moved).await.unwrap();
    assert_eq!(tagged.version.as_ref(), Some(second.id()), "a tag moves");

    if std::env::var_os("LLM_E2E_LLAMA_SERVER").is_some() {
        let model = dir.join("model/weights/model.gguf");
        let engine = Llama::serving(there.path(), "pulled", &model).await;
        let body = r#"{"model":"pulled","max_tokens":8,"messages":[{"role":"user","content":"Name three colors."}]}"#;
        let (status, said) =
            crate::process::http(engine.port(), "POST", "/v1/chat/completions", body)
                .await
                .unwrap();
        assert!(
            status == 200 && said.contains("\"pulled\""),
            "{status} {said}"
        );
        println!("ok      scenario 13: served by llama-server from the pulled bundle");
    } else {
        println!(
            "SKIPPED: serving the pulled bundle: there is no llama-server, e2e/run registry installs it"
        );
    }
    crate::verified(
        "oci",
        "docker-registry",
        &version_of("docker-registry", "--version"),
    );
}

#[tokio::test]
#[ignore = "needs docker-registry: e2e/run registry"]
async fn what_was_tampered_with_is_refused_on_both_sides() {
    let registry = Registry::start(false).await;
    let chat = registry.repository("models/chat");
    let here = tempfile::tempdir().unwrap();
    let manifest = bundle(&here.path().join("one"), 1);
    let pushed = chat
        .push(&here.path().join("one"), &manifest, &[])
        .await
        .unwrap();

    // Bytes that are not what their digest says, to the registry itself.
    let upload = upload(registry.port, "models/chat").await;
    let digest = Digest::of(b"what was meant");
    let to = format!("{upload}&digest=sha256:{digest}");
    let kind = "Content-Type: application/octet-stream\r\n";
    let put = http_with(registry.port, "PUT", &to, kind, "what was sent").await;
    let (status, said) = put.unwrap();
    assert!(
        status == 400 && said.contains("DIGEST_INVALID"),
        "{status} {said}"
    );
    println!("ok      tampered on the way: the registry says {status}, DIGEST_INVALID");

    // A file that is altered after the build.
    let two = here.path().join("two");
    let changed = bundle(&two, 2);
    fs::write(two.join("prompt/system.txt"), "Say yes to everything!").unwrap();
    let error = chat.push(&two, &changed, &[]).await.unwrap_err();
    println!("ok      tampered before the push: {error}");
    let unknown = chat
        .pull(&changed.id().to_oci_tag(), &here.path().join("none"))
        .await
        .unwrap_err();
    assert_eq!(code(&unknown), Some(&OciCode::ManifestUnknown), "{unknown}");

    // A blob that is altered where the registry keeps it.
    let weights = manifest.components().iter().max_by_key(|c| c.size).unwrap();
    let kept = registry.blob(&weights.digest);
    let mut bytes = fs::read(&kept).unwrap();
    let last = bytes.last_mut().unwrap();
    *last = !*last;
    fs::write(&kept, bytes).unwrap();
    let target = here.path().join("pulled");
    let error = chat
        .pull(&format!("sha256:{}", pushed.digest), &target)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, OciRegistryError::WrongDigest { expected, .. } if *expected == weights.digest),
        "{error}"
    );
    assert!(!target.exists(), "nothing of it is in place");
    println!("ok      tampered in the registry: {error}");
}

#[tokio::test]
#[ignore = "needs docker-registry: e2e/run registry"]
async fn refusals_are_typed() {
    let registry = Registry::start(true).await;
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("x");
    for repository in [
        registry.repository("models/chat"),
        registry
            .repository("models/chat")
            .password("ci", "wrong")
            .unwrap(),
    ] {
        let error = repository.pull("stable", &dir).await.unwrap_err();
        assert_eq!(code(&error), Some(&OciCode::Unauthorized), "{error}");
        assert!(!format!("{error} {error:?} {repository:?}").contains("wrong"));
        println!("ok      {error}");
    }
    let chat = registry
        .repository("models/chat")
        .password("ci", PASSWORD)
        .unwrap();
    let error = chat.pull("stable", &dir).await.unwrap_err();
    assert!(
        matches!(
            code(&error),
            Some(OciCode::ManifestUnknown | OciCode::NameUnknown)
        ),
        "{error}"
    );
    println!("ok      {error}");
}
