//! The registry in a bucket of a real S3 server.

use crate::process::{PATIENCE, Process, free_port, http, until, version_of};
use crate::stack::env;
use async_trait::async_trait;
use http_body_util::BodyExt as _;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use llm_serve_adapters::registry::BucketStore;
use llm_version_core::Digest;
use llm_version_core::registry::{Store as _, conformance};
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use object_store::{ObjectStore, Result};
use std::io::Read as _;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpStream;

/// HTTP to the loopback interface: `object_store` brings none that is as small as this.
#[derive(Debug)]
struct Plain;

impl HttpConnector for Plain {
    fn connect(&self, _: &ClientOptions) -> Result<HttpClient> {
        Ok(HttpClient::new(Self))
    }
}

fn failed(kind: HttpErrorKind) -> impl Fn(hyper::Error) -> HttpError {
    move |error| HttpError::new(kind, error)
}

#[async_trait]
impl HttpService for Plain {
    async fn call(&self, mut request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
        let place = request.uri().authority().unwrap().clone();
        let path = request.uri().path_and_query().unwrap().as_str().to_owned();
        request
            .headers_mut()
            .insert("host", place.as_str().parse().unwrap());
        *request.uri_mut() = path.parse().unwrap();
        let stream = TcpStream::connect(place.as_str()).await;
        let stream = stream.map_err(|e| HttpError::new(HttpErrorKind::Connect, e))?;
        let hands = handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = hands.map_err(failed(HttpErrorKind::Connect))?;
        tokio::spawn(connection);
        let reply = sender.send_request(request).await;
        let reply = reply.map_err(failed(HttpErrorKind::Request))?;
        Ok(reply
            .map(|body| HttpResponseBody::new(body.map_err(failed(HttpErrorKind::Interrupted)))))
    }
}

fn bucket(port: u16) -> Arc<dyn ObjectStore> {
    let client = AmazonS3Builder::new()
        .with_http_connector(Plain)
        .with_endpoint(format!("http://127.0.0.1:{port}"))
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_bucket_name("models")
        .with_access_key_id("any")
        .with_secret_access_key("any")
        .with_conditional_put(S3ConditionalPut::ETagMatch);
    Arc::new(client.build().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SeaweedFS: e2e/run s3"]
async fn a_bucket_holds_a_registry() {
    let folder = tempfile::tempdir().unwrap();
    let ports: Vec<String> = (0..7).map(|_| free_port().to_string()).collect();
    let (port, weed) = (free_port(), env("LLM_E2E_WEED"));
    let number = port.to_string();
    let mut args = vec![
        "server",
        "-dir",
        ".",
        "-ip",
        "127.0.0.1",
        "-s3",
        "-s3.port",
        &number,
    ];
    args.extend(["-volume.max", "50", "-master.telemetry=false"]);
    args.extend(["-s3.port.iceberg", "0", "-s3.port.lance", "0"]);
    // Beside each port it would take one 10,000 above it.
    let flags = [
        "-s3.port.grpc",
        "-master.port",
        "-master.port.grpc",
        "-volume.port",
        "-volume.port.grpc",
        "-filer.port",
        "-filer.port.grpc",
    ];
    for (flag, port) in flags.into_iter().zip(&ports) {
        args.extend([flag, port]);
    }
    let _server = Process::start(folder.path(), &weed, &args);
    until("a bucket", async || {
        let made = http(port, "PUT", "/models", "").await;
        made.filter(|(status, _)| matches!(status, 200 | 409))
    })
    .await;
    // It takes objects once it has a volume for them.
    let client = bucket(port);
    let opened = until("a bucket that can be written", async || {
        let client = Arc::clone(&client);
        let open = move || BucketStore::open_with(client, "ready", PATIENCE);
        tokio::task::spawn_blocking(open).await.unwrap().ok()
    })
    .await;
    let work = move || {
        let began = Instant::now();
        conformance::check(|| BucketStore::open(bucket(port), "conformance").unwrap()).unwrap();
        println!(
            "ok      conformance suite of registries: {:.1} s",
            began.elapsed().as_secs_f64()
        );
        // More than one part, of which the last is short.
        let blob: Vec<u8> = (0..80 << 20)
            .map(|n: u32| n.to_le_bytes()[(n >> 7) as usize % 3])
            .collect();
        let (digest, began) = (Digest::of(&blob), Instant::now());
        opened.put_blob(&digest, &mut &blob[..]).unwrap();
        let put = began.elapsed().as_secs_f64();
        let mut back = Vec::new();
        opened
            .open_blob(&digest)
            .unwrap()
            .unwrap()
            .read_to_end(&mut back)
            .unwrap();
        assert_eq!(Digest::of(&back), digest);
        let other = Digest::of(b"something else");
        let error = opened.put_blob(&other, &mut &blob[..]).unwrap_err();
        assert_eq!(opened.blob_size(&other).unwrap(), None, "{error}");
        println!("ok      a blob of 84 MB in parts: {put:.1} s there; tampered: {error}");
    };
    tokio::task::spawn_blocking(work).await.unwrap();
    crate::verified(
        "object-store",
        "SeaweedFS (S3)",
        &version_of(&weed, "version"),
    );
}
