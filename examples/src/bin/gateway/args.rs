//! What it is started with.

use llm_serve_adapters::apply::Profile;
use llm_version_core::{Digest, Name, Version, VersionId};
use std::net::SocketAddr;
use std::path::PathBuf;

/// A version that is served somewhere.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) id: VersionId,
    pub(crate) profile: Profile,
}

#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) store: PathBuf,
    pub(crate) token: String,
    pub(crate) versions: Vec<Served>,
}

impl Args {
    pub(crate) fn parse(
        mut words: impl Iterator<Item = String>,
        token: Option<String>,
    ) -> Result<Self, String> {
        let token = token.filter(|token| !token.is_empty());
        let mut args = Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin: SocketAddr::from(([127, 0, 0, 1], 8081)),
            store: PathBuf::from("gateway.db"),
            token: token.ok_or("GATEWAY_TOKEN is not set: nobody could use the admin endpoints")?,
            versions: Vec::new(),
        };
        while let Some(option) = words.next() {
            let mut value = || {
                words
                    .next()
                    .ok_or_else(|| format!("{option} needs a value"))
            };
            match option.as_str() {
                "--listen" => args.listen = address(&value()?)?,
                "--admin" => args.admin = address(&value()?)?,
                "--store" => args.store = PathBuf::from(value()?),
                "--version" => {
                    let (number, upstream, model) = (value()?, value()?, value()?);
                    args.versions.push(served(&number, &upstream, &model)?);
                }
                other => return Err(format!("{other:?} is no option: see the head of main.rs")),
            }
        }
        Ok(args)
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is no address such as 127.0.0.1:8080"))
}

/// A host with bundles takes their ids; here a version is what it was started with.
fn served(number: &str, upstream: &str, model: &str) -> Result<Served, String> {
    let version: Version = number
        .parse()
        .map_err(|_| format!("{number:?} is no version such as 1.0.0"))?;
    let name = Name::new("chat").map_err(|e| e.to_string())?;
    let digest = Digest::of(format!("{upstream}\n{model}").as_bytes());
    Ok(Served {
        id: VersionId::new(name, version, digest),
        profile: Profile::new(model).upstream(upstream.trim_end_matches('/')),
    })
}
