//! Checksums of what stores keep: what has changed by itself is found.

use llm_rollout::{EndpointId, Fence, RouterId, Seq};
use xxhash_rust::xxh3::Xxh3Default;

/// Of an entry of a log.
pub(super) fn entry(endpoint: &EndpointId, at: Seq, fence: Fence, entry: &[u8]) -> i64 {
    let (at, fence) = (at.get().to_le_bytes(), fence.get().to_le_bytes());
    sum(&[endpoint.as_str().as_bytes(), &at, &fence, entry])
}

/// Of the head of a log.
pub(super) fn head(endpoint: &EndpointId, fence: Fence, next: Seq, split: Option<&[u8]>) -> i64 {
    sum(&[
        endpoint.as_str().as_bytes(),
        &fence.get().to_le_bytes(),
        &next.get().to_le_bytes(),
        &[u8::from(split.is_some())],
        split.unwrap_or_default(),
    ])
}

/// Of a router's record.
pub(super) fn record(endpoint: &EndpointId, router: &RouterId, record: &[u8]) -> i64 {
    let (endpoint, router) = (endpoint.as_str().as_bytes(), router.as_str().as_bytes());
    sum(&[endpoint, router, record])
}

/// `xxh3_64` over the parts, each after its length, so that no two lists of parts are alike.
fn sum(parts: &[&[u8]]) -> i64 {
    let mut hash = Xxh3Default::new();
    for part in parts {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.digest().cast_signed()
}
