//! Versions in a proxy with filter phases, as pingora has them: the synchronous ticket API instead of a tower layer.
//!
//! ```sh
//! cargo run -p examples --bin pingora_style
//! ```
//!
//! `gateway.rs` is what a host writes: a decision in `upstream_peer`, the version's header in `response_filter`, the reply
//! followed in `response_body_filter`, and the outcome recorded in `logging`. `proxy.rs` stands in for pingora, so that this
//! builds without it. The program serves two model servers, sends a hundred requests through the proxy, and prints what was
//! recorded of each version.

mod gateway;
mod proxy;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use bytes::Bytes;
use gateway::{Gateway, Peer};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use llm_rollout::{Plan, RolloutId};
use llm_serve_adapters::recorder::{OutcomeClass, Row};
use llm_serve_adapters::router::VersionSlot;
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Bootstrap, Endpoint};
use llm_version_core::{Digest, Name, Version, VersionId};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

const PLAN: &str = r#"
alpha = 0.05
[metrics]
faults = { fault = {} }
[[gates]]
metric = "faults"
weight = 1.0
[[stages]]
serve = 50.0
dwell = "4h"
min_samples = 500
[[stages]]
serve = 100.0
dwell = "4h"
min_samples = 500
"#;

fn version(minor: u32) -> Result<VersionId, Box<dyn Error>> {
    let digest = Digest::of(&minor.to_le_bytes());
    Ok(VersionId::new(
        Name::new("chat")?,
        Version::new(1, minor, 0),
        digest,
    ))
}

/// A model server that says who it is: whole, as a stream, as a stream that breaks off, or as one that never ends.
async fn model_server(name: &'static str) -> Result<SocketAddr, Box<dyn Error>> {
    let answer = move |wanted: String| async move {
        let piece = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{name}\"}}}}]}}\n\n");
        let stream = |text: Body| ([("content-type", "text/event-stream")], text).into_response();
        let response: Response = match wanted.as_str() {
            "whole" => {
                let reply = format!(
                    "{{\"choices\":[{{\"message\":{{\"content\":\"{name}\"}}}}],\"usage\":{{\"completion_tokens\":3}}}}"
                );
                ([("content-type", "application/json")], reply).into_response()
            }
            "stream" => stream((piece + "data: [DONE]\n\n").into()),
            "hang" => {
                let (mut to, from) =
                    http_body_util::channel::Channel::<Bytes, std::io::Error>::new(1);
                tokio::spawn(async move {
                    // Until nobody listens any more.
                    while to.send_data(Bytes::from(piece.clone())).await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                });
                stream(Body::new(from))
            }
            _ => stream(piece.into()),
        };
        response
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let app = Router::new().route("/v1/chat/completions", post(answer));
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "what there is to see")]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoint = Endpoint::open("chat", MemoryStore::new(), Bootstrap(version(0)?)).await?;
    endpoint
        .submit(
            RolloutId::new("chat-v1.1")?,
            version(1)?,
            Plan::from_toml(PLAN)?,
        )
        .await?;
    let plane = endpoint.data_plane().clone();
    let peers = vec![
        Peer {
            serves: VersionSlot::intern(&version(0)?)?,
            address: model_server("one").await?,
        },
        Peer {
            serves: VersionSlot::intern(&version(1)?)?,
            address: model_server("two").await?,
        },
    ];
    // Half of the sessions to version 1.1, as soon as the router has confirmed it.
    while plane.router.candidate().is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(proxy::serve(
        listener,
        Arc::new(Gateway {
            plane: plane.clone(),
            peers,
        }),
    ));

    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    for n in 0..100 {
        let wanted = ["whole", "stream", "broken", "hang"][n % 4];
        let request = http::Request::post(format!("http://{address}/v1/chat/completions"))
            .header("x-session-id", format!("session-{}", n / 4));
        let reply = client.request(request.body(Full::from(wanted))?).await?;
        let named = reply
            .headers()
            .get("x-llm-version")
            .ok_or("the version is not named")?
            .to_str()?;
        let expected = if named.starts_with("chat/v1.0.0") {
            "one"
        } else {
            "two"
        };
        let mut body = reply.into_body();
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                text.extend_from_slice(&data);
            }
            if wanted == "hang" {
                break;
            }
        }
        let text = String::from_utf8(text)?;
        if !text.contains(expected) {
            return Err(format!("{expected} did not say {text:?}").into());
        }
    }
    let lost = client
        .request(http::Request::get(format!("http://{address}/")).body(Full::from(""))?)
        .await?;
    if lost.status() != 404 {
        return Err("what is no request for a model went to one".into());
    }

    // A proxy notices that a client has gone when it next writes.
    let rows = loop {
        let rows = plane.recorder.snapshot()?.rows;
        if rows.iter().map(Row::finished).sum::<u64>() >= 100 {
            break rows;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    for row in rows {
        println!(
            "{}: {} requests, {} ok, {} broken off, {} cancelled",
            row.role(),
            row.assigned(),
            row.ended(OutcomeClass::Ok),
            row.ended(OutcomeClass::MidStreamError),
            row.ended(OutcomeClass::ClientCancel),
        );
    }
    Ok(())
}
