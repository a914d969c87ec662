//! The cluster: its members, asked in turn, over the JSON gateway of the v3 API.

use super::EtcdAccess;
use crate::host::{Error, ErrorKind, Result};
use crate::http_client::{Address, Call, Http, clip, refusal, secret};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};

/// How long a call may take, whoever is asked: less than the caller waits.
pub(super) const LIMIT: Duration = Duration::from_secs(8);
/// How long one member may take.
const MEMBER: Duration = Duration::from_secs(3);
/// Bytes of a reply: the entries of one request, each of 1.5 MiB at most, in base64.
const REPLY: usize = 24 << 20;

/// A part of a transaction. Keys and values travel in base64, numbers as text.
#[derive(Serialize)]
pub(super) struct Transaction {
    pub(super) compare: Vec<Compare>,
    pub(super) success: Vec<Operation>,
}

#[derive(Serialize)]
pub(super) struct Compare {
    target: &'static str,
    result: &'static str,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mod_revision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    create_revision: Option<String>,
}

impl Compare {
    /// The key was last written at this revision; at none, if it is not there.
    pub(super) fn written(key: &str, at: &str) -> Self {
        Self {
            target: "MOD",
            result: "EQUAL",
            key: STANDARD.encode(key),
            mod_revision: Some(at.to_owned()),
            create_revision: None,
        }
    }

    /// The key is not there.
    pub(super) fn absent(key: &str) -> Self {
        Self {
            target: "CREATE",
            result: "EQUAL",
            key: STANDARD.encode(key),
            mod_revision: None,
            create_revision: Some("0".to_owned()),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Operation {
    RequestPut(Put),
    RequestRange(Range),
}

#[derive(Serialize)]
pub(super) struct Put {
    key: String,
    value: String,
}

impl Put {
    pub(super) fn new(key: &str, value: &[u8]) -> Self {
        Self {
            key: STANDARD.encode(key),
            value: STANDARD.encode(value),
        }
    }
}

/// Keys from one on, up to another one.
#[derive(Serialize)]
pub(super) struct Range {
    key: String,
    #[serde(rename = "range_end", skip_serializing_if = "Option::is_none")]
    end: Option<String>,
    limit: String,
    sort_order: &'static str,
    sort_target: &'static str,
    keys_only: bool,
}

impl Range {
    pub(super) fn one(key: &str) -> Self {
        Self {
            key: STANDARD.encode(key),
            end: None,
            limit: "1".to_owned(),
            sort_order: "ASCEND",
            sort_target: "KEY",
            keys_only: false,
        }
    }

    pub(super) fn between(from: &str, end: &str, limit: usize) -> Self {
        Self {
            end: Some(STANDARD.encode(end)),
            limit: limit.to_string(),
            ..Self::one(from)
        }
    }

    /// The last key alone, without its value.
    pub(super) fn last(from: &str, end: &str) -> Self {
        Self {
            sort_order: "DESCEND",
            keys_only: true,
            ..Self::between(from, end, 1)
        }
    }
}

/// What a transaction answers; fields of no value are left out.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Outcome {
    pub(super) succeeded: bool,
    pub(super) responses: Vec<Response>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Response {
    response_range: Found,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Found {
    kvs: Vec<Encoded>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Encoded {
    key: String,
    value: String,
    mod_revision: String,
}

/// A key and its value.
pub(super) struct Pair {
    pub(super) key: String,
    pub(super) value: Vec<u8>,
    pub(super) revision: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Token {
    token: String,
}

/// What the gateway says of an error.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    message: String,
}

/// A cluster, by its members.
pub(super) struct Server {
    name: String,
    http: Http,
    members: Vec<Address>,
    /// Which of them is asked.
    current: usize,
    pub(super) prefix: String,
    user: Option<(String, String)>,
    token: HeaderMap,
    runtime: Runtime,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What is being done, and until when.
pub(super) struct Task<'a> {
    pub(super) what: &'a str,
    end: Instant,
}

impl<'a> Task<'a> {
    pub(super) fn begin(what: &'a str) -> Self {
        Self {
            what,
            end: Instant::now() + LIMIT,
        }
    }

    fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    pub(super) fn is_over(&self) -> bool {
        self.left().is_zero()
    }
}

impl Server {
    pub(super) fn new(members: &[&str], prefix: &str, access: EtcdAccess) -> Result<Self> {
        let members: Vec<_> = members
            .iter()
            .map(|m| Address::parse(m))
            .collect::<Result<_>>()?;
        let Some(first) = members.first() else {
            return Err(Error::permanent(
                "the store has no members: give the client addresses of an etcd cluster, such as http://10.0.0.1:2379",
            ));
        };
        // Connections live on a thread of their own: between calls too they notice their end.
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|e| {
                Error::transient("cannot start a runtime for the store: free some resources")
                    .because(e)
            })?;
        Ok(Self {
            name: format!("the etcd store {first}"),
            http: Http::trusting(&access.authorities)?,
            members,
            current: 0,
            prefix: prefix.to_owned(),
            user: access.user,
            token: HeaderMap::new(),
            runtime,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Reads: every range as of one moment. A member that does not answer gives way to the next.
    pub(super) fn read(&mut self, task: &Task<'_>, ranges: Vec<Range>) -> Result<Vec<Vec<Pair>>> {
        let body = Transaction {
            compare: Vec::new(),
            success: ranges.into_iter().map(Operation::RequestRange).collect(),
        };
        let mut tries = self.members.len();
        let outcome: Outcome = loop {
            tries -= 1;
            match self.ask(task, "v3/kv/txn", &body, "nothing has been changed") {
                Err(e) if e.kind() == ErrorKind::Transient && tries > 0 && !task.is_over() => {}
                outcome => break outcome?,
            }
        };
        let ranges = outcome.responses.into_iter().map(|r| r.response_range.kvs);
        let decoded = ranges.map(|kvs| kvs.into_iter().map(pair).collect::<Option<Vec<_>>>());
        decoded.collect::<Option<_>>().ok_or_else(|| {
            Error::permanent(format!(
                "{} answers with what is no base64: check that the address is that of an etcd",
                self.name
            ))
        })
    }

    /// Writes if the comparisons hold; whether they did.
    pub(super) fn write(&mut self, task: &Task<'_>, body: &Transaction) -> Result<bool> {
        let fate = "whether it took effect is unknown";
        let outcome: Outcome = self.ask(task, "v3/kv/txn", body, fate)?;
        Ok(outcome.succeeded)
    }

    fn ask<T: serde::de::DeserializeOwned>(
        &mut self,
        task: &Task<'_>,
        path: &str,
        body: &impl Serialize,
        fate: &str,
    ) -> Result<T> {
        let mut fresh = false;
        if self.token.is_empty() && self.user.is_some() {
            self.log_in(task)?;
            fresh = true;
        }
        let mut answer = self.post(task, path, body, fate)?;
        // A token lasts some minutes. Whoever is refused for it has done nothing.
        if answer.0 == 401 && !fresh && self.user.is_some() {
            self.log_in(task)?;
            answer = self.post(task, path, body, fate)?;
        }
        self.understand(task, &answer, fate)
    }

    fn log_in(&mut self, task: &Task<'_>) -> Result<()> {
        let Some((name, password)) = &self.user else {
            return Ok(());
        };
        let body = serde_json::json!({"name": name, "password": password});
        self.token = HeaderMap::new();
        let fate = "nothing has been changed";
        let answer = self.post(task, "v3/auth/authenticate", &body, fate)?;
        let token: Token = self.understand(task, &answer, fate)?;
        let token = secret("the token", &token.token)?;
        self.token = HeaderMap::from_iter([(AUTHORIZATION, token)]);
        Ok(())
    }

    fn post(
        &mut self,
        task: &Task<'_>,
        path: &str,
        body: &impl Serialize,
        fate: &str,
    ) -> Result<(u16, Vec<u8>)> {
        let Some(member) = self.members.get(self.current) else {
            return Err(Error::permanent("the store has no members"));
        };
        let json = serde_json::to_vec(body)
            .map_err(|e| Error::permanent("a request cannot be written as JSON").because(e))?;
        let call = Call {
            to: &member.with_path(&format!("{}/{path}", member.path())),
            headers: self.token.clone(),
            json: Some(json),
            timeout: MEMBER.min(task.left()),
            limit: REPLY,
        };
        match self.runtime.block_on(self.http.send(call)) {
            Ok(reply) => {
                if reply.status >= 500 {
                    self.next();
                }
                Ok((reply.status, reply.body))
            }
            Err(e) => {
                self.next();
                let (name, what) = (&self.name, task.what);
                Err(Error::new(
                    e.kind(),
                    format!("{name} could not {what}, {fate}: {e}"),
                ))
            }
        }
    }

    fn next(&mut self) {
        self.current = (self.current + 1) % self.members.len();
    }

    fn understand<T: serde::de::DeserializeOwned>(
        &self,
        task: &Task<'_>,
        (status, body): &(u16, Vec<u8>),
        fate: &str,
    ) -> Result<T> {
        let (name, what) = (&self.name, task.what);
        let Some(kind) = refusal(*status) else {
            return serde_json::from_slice(body).map_err(|e| {
                Error::permanent(format!(
                    "{name} answers with what is no JSON of etcd: check that the address is that of an etcd of 3.4 or newer"
                ))
                .because(e)
            });
        };
        // Trailers may follow the JSON.
        let said = serde_json::Deserializer::from_slice(body).into_iter::<Refusal>();
        let said = said.flatten().next().unwrap_or_default().message;
        let (fate, advice) = match status {
            429 => (
                "nothing has been changed",
                "it has no space left or too much to do; compact and defragment it, and disarm its alarm",
            ),
            401 | 403 => (
                "nothing has been changed",
                "check user and password, and its role",
            ),
            404 => (
                "nothing has been changed",
                "check that the address is that of an etcd of 3.4 or newer",
            ),
            400..=499 => ("nothing has been changed", "see its log"),
            _ => (fate, "check that it has a leader, then try again"),
        };
        Err(Error::new(
            kind,
            format!(
                "{name} could not {what}, {fate} ({status}, {}): {advice}",
                clip(&said)
            ),
        ))
    }
}

fn pair(encoded: Encoded) -> Option<Pair> {
    Some(Pair {
        key: String::from_utf8(STANDARD.decode(encoded.key).ok()?).ok()?,
        value: STANDARD.decode(encoded.value).ok()?,
        revision: encoded.mod_revision,
    })
}
