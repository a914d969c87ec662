//! The layer over real HTTP/1 on loopback, in an axum host: streams, replies of known length, and clients that hang up.
#![cfg(feature = "tower")]
#![expect(clippy::unwrap_used, reason = "a test")]

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Extension;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use axum::routing::post;
use llm_rollout::{Direction, Epoch, Fence, Order, Position, RouterId, Seq, Share, Split};
use llm_serve_adapters::DataPlane;
use llm_serve_adapters::host::TrafficRouter;
use llm_serve_adapters::layer::{Assignment, KeySource as _, RolloutLayer, bearer_hash, header};
use llm_serve_adapters::recorder::{OutcomeClass, Recorder, Row};
use llm_serve_adapters::router::{InProcessRouter, Role};
use llm_version_core::{Digest, Name, Version, VersionId};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn version(n: u32) -> VersionId {
    VersionId::new(
        Name::new("chat").unwrap(),
        Version::new(n, 0, 0),
        Digest::of(&n.to_le_bytes()),
    )
}

async fn plane() -> DataPlane {
    let first = Split::steady(None, version(1), Epoch::new(0));
    let router = InProcessRouter::builder(RouterId::new("r1").unwrap(), first)
        .open()
        .unwrap();
    let split = Split {
        candidate: Some(version(2)),
        share: Share::from_percent(50.0).unwrap(),
        salt: 7,
        lease: Some(Duration::from_secs(600)),
        ..Split::steady(Some("a".parse().unwrap()), version(1), Epoch::new(1))
    };
    let at = Position {
        fence: Fence::new(1),
        seq: Seq::new(1),
    };
    let order = Order {
        at,
        direction: Direction::Forward,
        split,
        clock: router.state().clock,
    };
    router.set(&order).await.unwrap();
    DataPlane::new(
        Arc::new(router),
        Arc::new(Recorder::new(["bad_format"]).unwrap()),
    )
}

/// Replies with the version that was assigned, as a stream or whole.
async fn chat(Extension(assignment): Extension<Assignment>, wanted: String) -> Response {
    let name = assignment.version().unwrap().reference().to_string();
    if wanted == "whole" {
        let body = format!(
            "{{\"choices\":[{{\"message\":{{\"content\":\"{name}\"}}}}],\"usage\":{{\"completion_tokens\":5}}}}"
        );
        return Response::builder()
            .header(CONTENT_TYPE, "application/json")
            .body(body.into())
            .unwrap();
    }
    let piece = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{name}\"}}}}]}}\n\n");
    let last = if wanted == "hang" {
        None
    } else {
        Some("data: [DONE]\n\n".to_owned())
    };
    let parts = std::iter::repeat_n(piece, 3)
        .chain(last)
        .collect::<std::collections::VecDeque<_>>();
    let stream = futures_util::stream::unfold(parts, |mut parts| async {
        let Some(part) = parts.pop_front() else {
            tokio::time::sleep(Duration::from_secs(60)).await;
            return None;
        };
        let end = part.contains("[DONE]");
        tokio::time::sleep(Duration::from_millis(1)).await;
        if end {
            parts.push_front(String::new());
        }
        Some((Ok::<_, std::io::Error>(Bytes::from(part)), parts))
    });
    let stream = futures_util::StreamExt::take_while(stream, |part| {
        std::future::ready(part.as_ref().is_ok_and(|part| !part.is_empty()))
    });
    Response::builder()
        .header(CONTENT_TYPE, "text/event-stream")
        .body(Body::from_stream(stream))
        .unwrap()
}

/// Sends one request on a connection of its own and reads until the other side closes, or hangs up after the first piece.
async fn ask(to: SocketAddr, session: &str, wanted: &str) -> String {
    let mut connection = TcpStream::connect(to).await.unwrap();
    let request = format!(
        "POST /chat HTTP/1.1\r\nhost: x\r\nx-session-id: {session}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{wanted}",
        wanted.len()
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    let (mut reply, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let n = connection.read(&mut buffer).await.unwrap();
        reply.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&reply);
        if n == 0 || (wanted == "hang" && text.contains("data: ")) {
            return text.into_owned();
        }
    }
}

fn row(plane: &DataPlane, role: Role) -> Option<Row> {
    plane
        .recorder
        .snapshot()
        .unwrap()
        .rows
        .into_iter()
        .find(|row| row.role() == role)
}

#[tokio::test]
async fn every_request_is_answered_by_its_version_and_counted_once() {
    const EACH: u64 = 40;
    let plane = plane().await;
    let key = header("x-session-id").or(bearer_hash()).or_request();
    let app = Router::new()
        .route("/chat", post(chat))
        .layer(RolloutLayer::new(&plane).key(key));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, app).await });

    let (mut served, mut hung) = ([0_u64; 2], 0);
    for n in 0..EACH {
        for wanted in ["stream", "whole", "hang"] {
            let reply = ask(to, &format!("session-{n}"), wanted).await;
            let head = reply.split("\r\n\r\n").next().unwrap();
            let named = head
                .lines()
                .find_map(|line| line.strip_prefix("x-llm-version: "))
                .unwrap();
            let index = [1, 2]
                .iter()
                .position(|n| version(*n).reference().to_string() == named)
                .unwrap();
            assert!(
                reply.matches(named).count() >= 2,
                "the header says what replied"
            );
            if wanted == "hang" {
                hung += 1;
            } else {
                served[index] += 1;
            }
            if wanted == "stream" {
                assert!(reply.contains("[DONE]"));
            }
        }
    }
    // A server notices that a client has hung up when it next looks.
    let counted = |class| {
        [Role::Baseline, Role::Candidate]
            .map(|role| row(&plane, role).map_or(0, |row| row.ended(class)))
    };
    for _ in 0..500 {
        if counted(OutcomeClass::ClientCancel).iter().sum::<u64>() == hung {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(counted(OutcomeClass::Ok), served);
    assert_eq!(
        counted(OutcomeClass::ClientCancel).iter().sum::<u64>(),
        hung
    );
    for role in [Role::Baseline, Role::Candidate] {
        let row = row(&plane, role).unwrap();
        assert_eq!((row.assigned(), row.faults()), (row.finished(), 0));
        assert!(row.tokens() > 0 && row.first_token(0.5).is_some());
    }
    server.abort();
}
