//! The layer in other hosts over real sockets: axum 0.7 and 0.8, and plain hyper with HTTP/1.1 and HTTP/2.
//!
//! Each serves the same model behind the same layers, and is asked for streams, replies of known length, replies without a
//! body, trailers, uploads, streams that break off, and streams that nobody reads to their end.
#![cfg(feature = "tower")]
#![expect(clippy::unwrap_used, reason = "a test")]

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use llm_rollout::{Direction, Epoch, Fence, Order, Position, RouterId, Seq, Share, Split};
use llm_serve_adapters::DataPlane;
use llm_serve_adapters::host::TrafficRouter as _;
use llm_serve_adapters::layer::{
    BodyField, FailOver, KeySource as _, Or, PerRequest, RolloutLayer, from_body, header,
};
use llm_serve_adapters::layer::{FromBody, FromHeader};
use llm_serve_adapters::recorder::{OutcomeClass, Recorder, Row};
use llm_serve_adapters::router::{InProcessRouter, Key, Role};
use llm_version_core::{Digest, Name, Version, VersionId};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tower_layer::Layer as _;
use tower_service::Service;

type Out = UnsyncBoxBody<Bytes, Infallible>;

/// Answers by the path that it is asked for.
#[derive(Clone)]
struct Model;

const PIECE: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hello\"}}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";
const WHOLE: &str =
    "{\"choices\":[{\"message\":{\"content\":\"Hello\"}}],\"usage\":{\"completion_tokens\":5}}";

/// These pieces, each a while after the one before; then the end, or silence.
fn pieces(parts: Vec<Frame<Bytes>>, ends: bool) -> Out {
    let parts = futures_util::stream::iter(parts).then(|part| async move {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(part)
    });
    if ends {
        StreamBody::new(parts).boxed_unsync()
    } else {
        StreamBody::new(parts.chain(futures_util::stream::pending())).boxed_unsync()
    }
}

fn data(text: &'static str) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(text.as_bytes()))
}

fn reply(kind: &'static str, body: Out) -> Response<Out> {
    let mut reply = Response::new(body);
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

async fn answer<B: Body<Data = Bytes> + Unpin>(request: Request<B>) -> Response<Out> {
    const SSE: &str = "text/event-stream";
    let (parts, body) = request.into_parts();
    match parts.uri.path() {
        "/stream" => reply(
            SSE,
            pieces(vec![data(PIECE), data(PIECE), data(DONE)], true),
        ),
        "/cut" => reply(SSE, pieces(vec![data(PIECE)], true)),
        "/hang" => reply(SSE, pieces(vec![data(PIECE)], false)),
        "/whole" => reply("application/json", Full::from(WHOLE).boxed_unsync()),
        "/echo" => {
            let body = body
                .collect()
                .await
                .map_or_else(|_| Bytes::new(), http_body_util::Collected::to_bytes);
            reply("text/plain", Full::from(body).boxed_unsync())
        }
        "/trailers" => {
            let trailers = HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                HeaderValue::from_static("0"),
            )]);
            let message = data("\0\0\0\0\x02ok");
            reply(
                "application/grpc",
                pieces(vec![message, Frame::trailers(trailers)], true),
            )
        }
        _ => {
            let mut nothing = Response::new(Empty::new().boxed_unsync());
            *nothing.status_mut() = http::StatusCode::NO_CONTENT;
            nothing
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin + Send + 'static> Service<Request<B>> for Model {
    type Response = Response<Out>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Out>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        Box::pin(async move { Ok(answer(request).await) })
    }
}

fn version(n: u32) -> VersionId {
    let digest = Digest::of(&n.to_le_bytes());
    VersionId::new(Name::new("chat").unwrap(), Version::new(n, 0, 0), digest)
}

/// Half to version 2.
async fn plane() -> DataPlane {
    let first = Split::steady(None, version(1), Epoch::new(0));
    let router = InProcessRouter::builder(RouterId::new("r1").unwrap(), first);
    let router = router.open().unwrap();
    let split = Split {
        candidate: Some(version(2)),
        share: Share::from_percent(50.0).unwrap(),
        salt: 7,
        lease: Some(Duration::from_secs(600)),
        ..Split::steady(Some("a".parse().unwrap()), version(1), Epoch::new(1))
    };
    let order = Order {
        at: Position {
            fence: Fence::new(1),
            seq: Seq::new(1),
        },
        direction: Direction::Forward,
        split,
        clock: router.state().clock,
    };
    router.set(&order).await.unwrap();
    let recorder = Recorder::new(Vec::<String>::new()).unwrap();
    DataPlane::new(Arc::new(router), Arc::new(recorder))
}

type Keys = Or<Or<FromHeader, FromBody>, PerRequest>;

fn layers(plane: &DataPlane) -> (BodyField, RolloutLayer<Keys>) {
    let key = header("x-session-id").or(from_body()).or_request();
    (
        BodyField::new(["user"], 1_000),
        RolloutLayer::new(plane).key(key),
    )
}

#[derive(Clone, Copy, Debug)]
enum Http {
    One,
    Two,
}

/// Opens a connection, asks on it for all of these at once (one after the other with HTTP/1.1), and reads the replies unless a
/// path hangs: version and text of each.
async fn ask(
    to: SocketAddr,
    http: Http,
    asked: Vec<Request<Full<Bytes>>>,
) -> Vec<(String, String)> {
    let mut replies = Vec::new();
    match http {
        Http::One => {
            for request in asked {
                let stream = TokioIo::new(TcpStream::connect(to).await.unwrap());
                let (mut client, connection) =
                    hyper::client::conn::http1::handshake(stream).await.unwrap();
                let connection = tokio::spawn(connection);
                let hangs = request.uri().path() == "/hang";
                replies.push(read(client.send_request(request).await.unwrap(), hangs).await);
                drop(client);
                if !hangs {
                    connection.await.unwrap().unwrap();
                }
            }
        }
        Http::Two => {
            let stream = TokioIo::new(TcpStream::connect(to).await.unwrap());
            let executor = TokioExecutor::new();
            let (client, connection) = hyper::client::conn::http2::handshake(executor, stream)
                .await
                .unwrap();
            tokio::spawn(connection);
            let all = asked.into_iter().map(|request| {
                let mut client = client.clone();
                async move {
                    let hangs = request.uri().path() == "/hang";
                    read(client.send_request(request).await.unwrap(), hangs).await
                }
            });
            replies = join_all(all).await;
        }
    }
    replies
}

async fn read(reply: Response<Incoming>, hangs: bool) -> (String, String) {
    let version = reply.headers()["x-llm-version"]
        .to_str()
        .unwrap()
        .to_owned();
    let mut body = reply.into_body();
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.unwrap().into_data() {
            text.extend_from_slice(&data);
        }
        if hangs {
            break;
        }
    }
    (version, String::from_utf8(text).unwrap())
}

/// Asks the host at this address for everything, and looks at what was recorded.
async fn exercise(plane: &DataPlane, to: SocketAddr, http: Http) {
    const ROUNDS: usize = 12;
    let paths = [
        "/stream",
        "/cut",
        "/hang",
        "/whole",
        "/echo",
        "/trailers",
        "/nothing",
    ];
    let request = |n: usize, path: &str| {
        let body = match path {
            // Longer than is looked into, and sent all the same.
            "/echo" if n % 2 == 1 => {
                format!("{{\"user\":\"user-{n}\",\"x\":\"{}\"}}", "x".repeat(3_000))
            }
            _ => format!("{{\"user\":\"user-{n}\"}}"),
        };
        let uri = match http {
            Http::One => path.to_owned(),
            Http::Two => format!("http://localhost{path}"),
        };
        let request = Request::post(uri)
            .header("host", "localhost")
            .header("te", "trailers")
            .header(CONTENT_TYPE, "application/json");
        (
            request.body(Full::from(body.clone())).unwrap(),
            path.to_owned(),
            body,
        )
    };
    let asked: Vec<_> = (0..ROUNDS)
        .flat_map(|n| paths.map(|path| (n, request(n, path))))
        .collect();
    let requests = asked.iter().map(|(_, (request, _, _))| request.clone());
    let replies = ask(to, http, requests.collect()).await;
    for ((n, (_, path, body)), (version, text)) in asked.iter().zip(replies) {
        let expected = match path.as_str() {
            "/stream" => [PIECE, PIECE, DONE].concat(),
            "/cut" | "/hang" => PIECE.to_owned(),
            "/whole" => WHOLE.to_owned(),
            "/trailers" => "\0\0\0\0\x02ok".to_owned(),
            "/echo" => body.clone(),
            _ => String::new(),
        };
        assert_eq!(text, expected, "{path}");
        if body.len() <= 1_000 {
            let user = format!("user-{n}");
            let decision = plane
                .router
                .decide(&Key::session(user.as_bytes()), plane.router.now());
            assert_eq!(
                version,
                **decision.version().unwrap().reference(),
                "{path} of {user}"
            );
        }
    }
    // A server notices that a client has gone when it next looks.
    let ended = |class| {
        let rows = plane.recorder.snapshot().unwrap().rows;
        rows.iter().map(|row| row.ended(class)).sum::<u64>()
    };
    let each = ROUNDS as u64;
    for _ in 0..1_000 {
        if ended(OutcomeClass::ClientCancel) == each {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(ended(OutcomeClass::ClientCancel), each);
    assert_eq!(ended(OutcomeClass::MidStreamError), each);
    assert_eq!(ended(OutcomeClass::Ok), 5 * each);
    let rows = plane.recorder.snapshot().unwrap().rows;
    for role in [Role::Baseline, Role::Candidate] {
        let sum = |of: fn(&Row) -> u64| {
            rows.iter()
                .filter(|row| row.role() == role)
                .map(of)
                .sum::<u64>()
        };
        assert!(sum(Row::assigned) > 10);
        assert_eq!(sum(Row::assigned), sum(Row::finished));
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn axum_0_7() {
    let plane = plane().await;
    let (field, rollout) = layers(&plane);
    let app = axum07::Router::new()
        .fallback_service(Model)
        .layer(rollout)
        .layer(field);
    let (listener, to) = listen().await;
    tokio::spawn(async move { axum07::serve(listener, app).await });
    exercise(&plane, to, Http::One).await;
}

#[tokio::test]
async fn axum_0_8() {
    let plane = plane().await;
    let (field, rollout) = layers(&plane);
    let app = axum::Router::new()
        .fallback_service(Model)
        .layer(rollout)
        .layer(field);
    let (listener, to) = listen().await;
    tokio::spawn(async move { axum::serve(listener, app).await });
    exercise(&plane, to, Http::One).await;
}

async fn serve_hyper(plane: &DataPlane, http: Http) -> SocketAddr {
    let (field, rollout) = layers(plane);
    // A second chance where nothing can be sent twice changes nothing.
    let second = FailOver::new(plane, |_: &Request<_>| None);
    let service = field.layer(rollout.layer(second.layer(Model)));
    let (listener, to) = listen().await;
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (stream, service) = (
                TokioIo::new(stream),
                TowerToHyperService::new(service.clone()),
            );
            tokio::spawn(async move {
                // A client that hangs up is no concern of the server's.
                let _ = match http {
                    Http::One => {
                        let server = hyper::server::conn::http1::Builder::new();
                        server.serve_connection(stream, service).await
                    }
                    Http::Two => {
                        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        server.serve_connection(stream, service).await
                    }
                };
            });
        }
    });
    to
}

#[tokio::test]
async fn hyper_with_http_1() {
    let plane = plane().await;
    let to = serve_hyper(&plane, Http::One).await;
    exercise(&plane, to, Http::One).await;
}

#[tokio::test]
async fn hyper_with_http_2() {
    let plane = plane().await;
    let to = serve_hyper(&plane, Http::Two).await;
    exercise(&plane, to, Http::Two).await;
}
