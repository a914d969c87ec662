//! What the fakes of servers share.
#![allow(dead_code, reason = "each test needs its part of it")]

use axum::Router;
use axum::http::Uri;
use llm_rollout::{Fence, Position, Seq};
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use tokio::net::TcpListener;

/// Serves on a free port of the loopback interface.
pub(super) async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

pub(super) fn version(n: u8) -> VersionId {
    format!("chat/v{n}.0.0-{}", format!("{n:02x}").repeat(32))
        .parse()
        .unwrap()
}

pub(super) fn at(seq: u64) -> Position {
    Position {
        fence: Fence::new(1),
        seq: Seq::new(seq),
    }
}

/// The query of an address whose values need no escapes.
pub(super) fn query(uri: &Uri) -> BTreeMap<String, String> {
    let pairs = uri.query().unwrap_or_default().split('&');
    let pairs = pairs.filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
