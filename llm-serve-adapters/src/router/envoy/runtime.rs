//! What Envoy asks for its runtime: a small server of its runtime discovery service (RTDS), by gRPC over HTTP/2.

use super::wire::{self, Request, Value};
use crate::host::{Error, Result};
use bytes::Bytes;
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

const METHOD: &str = "/envoy.service.runtime.v3.RuntimeDiscoveryService/StreamRuntime";
/// How often a connection is asked whether it lives, and how long it may take to say so: what is on its way for longer than the two
/// together is never delivered.
const PING: Duration = Duration::from_secs(2);
const PONG: Duration = Duration::from_secs(3);
/// Bytes of a request that are read: the first one of a stream lists all that Envoy can do.
const REQUEST: usize = 4 << 20;
/// Connections at a time, over all Envoys.
const CONNECTIONS: usize = 1_024;
/// How long Envoy may take to say that it has taken something over.
const TAKEN: Duration = Duration::from_millis(1_500);

/// Answers Envoys that ask for their runtime, and so tells them what to serve: one for all [`super::EnvoyRouter`]s of a host.
///
/// It speaks gRPC in the clear: let it listen on the loopback interface, or in a network where only Envoys and hosts are, or put a
/// proxy in front of it that checks certificates. Whoever can connect reads shares, and changes nothing but whether the router
/// believes that its Envoy has started anew (it then gives the candidate's share up).
///
/// It listens until it and all routers opened with it are dropped.
#[derive(Clone)]
pub struct EnvoyRuntime(Arc<Listening>);

struct Listening {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Its connections go with it.
        self.accepting.abort();
    }
}

struct Shared {
    /// Begins every version that this server gives out.
    boot: u64,
    layers: Mutex<BTreeMap<String, Arc<Layer>>>,
}

impl EnvoyRuntime {
    /// Listens here. Call it within a tokio runtime, in whose tasks it works.
    ///
    /// # Errors
    /// It cannot listen there.
    pub async fn listen(address: SocketAddr) -> Result<Self> {
        let cannot = |e: std::io::Error| {
            Error::permanent(format!("cannot listen for Envoys on {address}: {e}")).because(e)
        };
        let listener = TcpListener::bind(address).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        let shared = Arc::new(Shared {
            boot: RandomState::new().hash_one("boot"),
            layers: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self(Arc::new(Listening {
            shared,
            address,
            accepting,
        })))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// The layer of this name; a leased one is taken from whoever starts anew.
    pub(super) fn layer(&self, name: &str, leased: bool) -> Arc<Layer> {
        let mut layers = self.0.shared.lock();
        let layer = layers.entry(name.to_owned()).or_insert_with(|| {
            Arc::new(Layer {
                name: name.to_owned(),
                leased,
                told: watch::Sender::new(None),
                heard: watch::Sender::new(Heard::default()),
            })
        });
        Arc::clone(layer)
    }
}

impl fmt::Debug for EnvoyRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnvoyRuntime")
            .field("address", &self.0.address)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Layer>>> {
        // Changed by an insertion only.
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A layer of one Envoy's runtime: what it is told, and what it has said about it.
pub(super) struct Layer {
    name: String,
    leased: bool,
    told: watch::Sender<Option<Told>>,
    heard: watch::Sender<Heard>,
}

#[derive(Debug, Clone, PartialEq)]
struct Told {
    number: u64,
    values: Arc<Vec<(String, Value)>>,
    until: Option<Instant>,
}

#[derive(Debug, Clone, Default)]
struct Heard {
    /// Streams that ask for it now.
    streams: usize,
    /// How often somebody has asked who had not been told before: Envoy started anew.
    life: u64,
    /// The newest that it has taken over.
    taken: u64,
    /// What it has refused, and why.
    refused: Option<(u64, String)>,
}

impl Layer {
    /// Tells it this from now on; whether that is news: what is the same, and has no end, is not told again.
    pub(super) fn tell(&self, values: Vec<(String, Value)>, until: Option<Instant>) -> bool {
        self.told.send_if_modified(|told| {
            let same = told.as_ref().is_some_and(|told| {
                until.is_none() && told.until.is_none() && *told.values == values
            });
            if !same {
                *told = Some(Told {
                    number: told.as_ref().map_or(0, |told| told.number) + 1,
                    values: Arc::new(values),
                    until,
                });
            }
            !same
        })
    }

    /// Which start of Envoy listens.
    pub(super) fn life(&self) -> Result<u64> {
        let heard = self.heard.borrow();
        match heard.streams {
            1 => Ok(heard.life),
            0 => Err(Error::transient(format!(
                "no Envoy asks for its runtime layer {}: check that it runs, and its rtds_layer and the cluster that this names",
                self.name
            ))),
            several => Err(Error::transient(format!(
                "{several} Envoys ask for the runtime layer {}: give each a name of its own",
                self.name
            ))),
        }
    }

    /// Waits until Envoy has taken over what it was told last.
    pub(super) async fn taken(&self) -> Result<()> {
        let number = self.told.borrow().as_ref().map_or(0, |told| told.number);
        let mut heard = self.heard.subscribe();
        let answered = heard.wait_for(|heard| {
            heard.taken >= number || heard.refused.as_ref().is_some_and(|(n, _)| *n >= number)
        });
        match timeout(TAKEN, answered).await {
            Ok(Ok(heard)) => match &heard.refused {
                Some((refused, why)) if *refused >= number => Err(Error::permanent(format!(
                    "Envoy refuses its runtime layer {}: {why}",
                    self.name
                ))),
                _ => Ok(()),
            },
            _ => Err(Error::transient(format!(
                "Envoy has not taken over its runtime layer {} within {TAKEN:?}: check that it runs and reaches this host",
                self.name
            ))),
        }
    }

    /// Somebody asks for it, who was or was not told before.
    fn join(&self, known: bool) {
        self.heard.send_modify(|heard| {
            heard.streams += 1;
            if !known {
                heard.life += 1;
                heard.taken = 0;
            }
        });
        if !known && self.leased {
            // Who starts anew starts with the baseline.
            self.told.send_if_modified(|told| {
                let Some(told) = told.as_mut().filter(|told| told.until.is_some()) else {
                    return false;
                };
                *told = Told {
                    number: told.number + 1,
                    values: Arc::default(),
                    until: None,
                };
                true
            });
        }
    }

    fn leave(&self) {
        self.heard.send_modify(|heard| heard.streams -= 1);
    }

    /// What to send now, as its number and its bytes.
    fn message(&self, boot: u64) -> Option<(u64, Vec<u8>)> {
        let told = self.told.borrow().clone()?;
        let left = told.until.map(|until| {
            let left = until.saturating_duration_since(Instant::now());
            // Envoy counts from when it reads it: what may be late on its way is taken off.
            left.saturating_sub((left / 4).min(PING + PONG))
        });
        // Nothing lasts for no time at all.
        let (values, ttl) = match left {
            Some(left) if left < Duration::from_millis(1) => (&[][..], None),
            left => (&told.values[..], left),
        };
        let version = version(boot, told.number);
        Some((
            told.number,
            wire::response(&version, &self.name, values, ttl),
        ))
    }
}

fn version(boot: u64, number: u64) -> String {
    format!("{boot:016x}-{number}")
}

/// The number of a version that this server has given out.
fn number(boot: u64, version: &str) -> Option<u64> {
    let (of, number) = version.split_once('-')?;
    (of == format!("{boot:016x}")).then(|| number.parse().ok())?
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, for example.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            serve(stream, shared).await;
            drop(place);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let _is_only_slower = stream.set_nodelay(true);
    // What could not be sent is forgotten with the connection: told later, it would outlive its lease.
    let _is_only_later = stream.set_zero_linger();
    let service = hyper::service::service_fn(|request: http::Request<Incoming>| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(request, shared)) }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .max_concurrent_streams(16)
        .serve_connection(TokioIo::new(stream), service);
    // Whatever ends it, Envoy connects again.
    let _ended = connection.await;
}

fn answer(request: http::Request<Incoming>, shared: Arc<Shared>) -> http::Response<Messages> {
    let (send, receive) = mpsc::channel(1);
    let mut response = http::Response::new(Messages(receive));
    let headers = response.headers_mut();
    headers.insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/grpc"),
    );
    if request.uri().path() == METHOD {
        tokio::spawn(talk(request.into_body(), send, shared));
    } else {
        // Unimplemented.
        headers.insert("grpc-status", http::HeaderValue::from_static("12"));
    }
    response
}

/// One stream: Envoy asks for one layer, is told, says that it has taken it over, is told again.
async fn talk(mut body: Incoming, send: mpsc::Sender<Bytes>, shared: Arc<Shared>) {
    let mut buffer = Vec::new();
    let Some(first) = next(&mut body, &mut buffer).await else {
        return;
    };
    let Some(layer) = shared.lock().get(&first.resource).cloned() else {
        // Envoy asks again; perhaps its router has been opened by then.
        return;
    };
    let boot = shared.boot;
    let mut told = layer.told.subscribe();
    layer.join(number(boot, &first.version).is_some());
    let _joined = Leaving(&layer);
    loop {
        told.mark_unchanged();
        if let Some((_, message)) = layer.message(boot)
            && send.send(message.into()).await.is_err()
        {
            return;
        }
        loop {
            tokio::select! {
                changed = told.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                said = next(&mut body, &mut buffer) => match said {
                    Some(said) => hear(&layer, boot, said),
                    None => return,
                },
            }
        }
    }
}

struct Leaving<'a>(&'a Layer);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

fn hear(layer: &Layer, boot: u64, said: Request) {
    let Some(number) = number(boot, &said.nonce) else {
        return;
    };
    layer.heard.send_modify(|heard| match said.error {
        None => heard.taken = heard.taken.max(number),
        Some(why) => heard.refused = Some((number, crate::http_client::clip(&why))),
    });
}

/// The next message of a stream; none at its end, and where it is none. Nothing is lost if it is not waited for.
async fn next(body: &mut Incoming, buffer: &mut Vec<u8>) -> Option<Request> {
    loop {
        if let Some((&[compressed, a, b, c, d], rest)) = buffer.split_first_chunk() {
            let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
            if compressed != 0 || length > REQUEST {
                return None;
            }
            if let Some(message) = rest.get(..length) {
                let request = Request::read(message);
                buffer.drain(..5 + length);
                return request;
            }
        }
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        if let Ok(data) = frame?.ok()?.into_data() {
            buffer.extend_from_slice(&data);
        }
    }
}

/// The messages of a stream, as a body.
struct Messages(mpsc::Receiver<Bytes>);

impl Body for Messages {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(cx)
            .map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
