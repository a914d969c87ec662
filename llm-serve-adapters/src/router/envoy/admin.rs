//! Envoy's admin interface: what its runtime holds, and what its configuration makes of it.

use crate::host::{Error, Result};
use crate::http_client::{Address, Call, Http, clip, refusal};
use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long one exchange may take.
const TIMEOUT: Duration = Duration::from_millis(1_500);
/// Bytes of the runtime that are read.
const RUNTIME: usize = 4 << 20;
/// Bytes of the configuration that are read.
const CONFIG: usize = 64 << 20;

/// Envoy's admin interface.
pub(super) struct Admin {
    http: Http,
    address: Address,
}

#[derive(Deserialize)]
struct Runtime {
    entries: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    final_value: String,
}

impl Admin {
    pub(super) fn new(address: &str) -> Result<Self> {
        Ok(Self {
            http: Http::new()?,
            address: Address::parse(address)?,
        })
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// What the runtime holds, of all its layers together.
    pub(super) async fn runtime(&self) -> Result<BTreeMap<String, String>> {
        let body = self.ask("/runtime", &[], None, RUNTIME).await?;
        let runtime: Runtime = serde_json::from_slice(&body).map_err(|e| self.not_envoy(e))?;
        let entries = runtime.entries.into_iter();
        Ok(entries
            .map(|(key, entry)| (key, entry.final_value))
            .collect())
    }

    /// Takes out what people have changed by hand.
    pub(super) async fn clear(&self, keys: &[&str]) -> Result<()> {
        let query: Vec<_> = keys.iter().map(|key| (*key, "")).collect();
        let posted = Some(Vec::new());
        self.ask("/runtime_modify", &query, posted, RUNTIME).await?;
        Ok(())
    }

    /// The clusters that are weighted by this runtime key prefix.
    pub(super) async fn clusters(&self, prefix: &str) -> Result<BTreeSet<String>> {
        let body = self.ask("/config_dump", &[], None, CONFIG).await?;
        let config: Json = serde_json::from_slice(&body).map_err(|e| self.not_envoy(e))?;
        let mut found = BTreeSet::new();
        weighted(&config, prefix, &mut found);
        Ok(found)
    }

    async fn ask(
        &self,
        path: &str,
        query: &[(&str, &str)],
        json: Option<Vec<u8>>,
        limit: usize,
    ) -> Result<Vec<u8>> {
        let to = self
            .address
            .with_path(&format!("{}{path}", self.address.path()));
        let reply = self
            .http
            .send(Call {
                to: &if query.is_empty() {
                    to
                } else {
                    to.with_query(query)
                },
                headers: HeaderMap::new(),
                json,
                timeout: TIMEOUT,
                limit,
            })
            .await?;
        let Some(kind) = refusal(reply.status) else {
            return Ok(reply.body);
        };
        Err(Error::new(
            kind,
            format!(
                "Envoy's admin interface at {} answers {} to {path} ({}): check its configuration",
                self.address,
                reply.status,
                clip(String::from_utf8_lossy(&reply.body).trim())
            ),
        ))
    }

    fn not_envoy(&self, e: serde_json::Error) -> Error {
        Error::permanent(format!(
            "what answers at {} is not Envoy's admin interface: check the address",
            self.address
        ))
        .because(e)
    }
}

/// Looks for weighted clusters, wherever a configuration has them.
fn weighted(config: &Json, prefix: &str, found: &mut BTreeSet<String>) {
    match config {
        Json::Array(items) => items.iter().for_each(|item| weighted(item, prefix, found)),
        Json::Object(fields) => {
            if fields.get("runtime_key_prefix").and_then(Json::as_str) == Some(prefix) {
                let clusters = fields.get("clusters").and_then(Json::as_array);
                let names = clusters.into_iter().flatten().filter_map(|c| c.get("name"));
                found.extend(names.filter_map(Json::as_str).map(str::to_owned));
            }
            fields
                .values()
                .for_each(|field| weighted(field, prefix, found));
        }
        _ => {}
    }
}
