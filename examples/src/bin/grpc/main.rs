//! A tonic server that rolls out versions: the same layer as in any tower host, with gRPC's trailers understood.
//!
//! ```sh
//! cargo run -p examples --features grpc --bin grpc
//! ```
//!
//! Clients send `x-session-id` as metadata and find the version that answered in `x-llm-version`. The status at the end of each
//! stream is what is recorded. What `tonic-build` would generate from a `.proto` file is written out, so that the example needs
//! no compiler for them; in a host with generated code, `.layer(...)` is all that is added.

mod service;

use http::uri::PathAndQuery;
use llm_rollout::{Plan, RolloutId};
use llm_serve_adapters::layer::{KeySource as _, RolloutLayer, header};
use llm_serve_adapters::recorder::OutcomeClass;
use llm_serve_adapters::router::Role;
use llm_serve_adapters::store::MemoryStore;
use llm_serve_adapters::{Bootstrap, Endpoint};
use llm_version_core::{Digest, Name, Version, VersionId};
use service::{ANSWER, ChatServer, Text};
use std::error::Error;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};

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

#[tokio::main]
#[expect(clippy::print_stdout, reason = "what there is to see")]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoint = Endpoint::open("chat", MemoryStore::new(), Bootstrap(version(0)?)).await?;

    // The server: one line more than without versions.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = Server::builder()
        .layer(RolloutLayer::new(&endpoint).key(header("x-session-id").or_request()))
        .add_service(ChatServer)
        .serve_with_incoming(TcpIncoming::from(listener));
    let server = tokio::spawn(server);

    // Half of the sessions to version 1.1, as soon as the router has confirmed it.
    endpoint
        .submit(
            RolloutId::new("chat-v1.1")?,
            version(1)?,
            Plan::from_toml(PLAN)?,
        )
        .await?;
    let plane = endpoint.data_plane();
    while plane.router.candidate().is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let channel = Channel::from_shared(format!("http://{address}"))?
        .connect()
        .await?;
    for n in 0..40 {
        // Every tenth question is one that the model breaks off at.
        let question = if n % 10 == 9 {
            "break off"
        } else {
            "hello there"
        };
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await?;
        let mut request = tonic::Request::new(question.to_owned());
        request
            .metadata_mut()
            .insert("x-session-id", format!("session-{n}").parse()?);
        let reply = client
            .server_streaming(request, PathAndQuery::from_static(ANSWER), Text)
            .await?;
        let named = reply
            .metadata()
            .get("x-llm-version")
            .ok_or("the version is not named")?
            .to_str()?
            .to_owned();
        let mut words = reply.into_inner();
        let mut said = Vec::new();
        let ended = loop {
            match words.message().await {
                Ok(Some(word)) => said.push(word),
                ended => break ended,
            }
        };
        if said.first() != Some(&named) {
            return Err(format!("{named} did not say {said:?}").into());
        }
        if ended.is_err() != (question == "break off") {
            return Err(format!("{question} ended with {ended:?}").into());
        }
    }
    drop(channel);

    for row in plane.recorder.snapshot()?.rows {
        if row.role() != Role::Control {
            println!(
                "{}: {} requests, {} ok, {} broken off, {} messages",
                row.role(),
                row.assigned(),
                row.ended(OutcomeClass::Ok),
                row.ended(OutcomeClass::MidStreamError),
                row.tokens(),
            );
        }
    }
    server.abort();
    Ok(())
}
