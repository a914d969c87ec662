//! The rest of group `layer`: a reverse proxy in axum with the layer and without it, over HTTP on loopback, and the memory of
//! streams that are open in an axum host.
//!
//! Throughput per core is one over the processor time of a request: that of the gateway's one thread, which waits for nobody
//! while it has it. The two gateways take turns in short batches with the same client, the same engine and the same events. Each
//! pair of batches gives a ratio, and the median of all ratios stands: what others do to this machine changes both batches of a
//! pair, and how many events arrive at once (the fewer, the more a reply costs with and without the layer) drifts with that. The
//! middle half of the ratios is shown beside it. The gateways have a processor to themselves, client and engine another:
//! where they share one, the scheduler decides how many events arrive at once. Every connection has `TCP_NODELAY`, as those of
//! anything that streams tokens must: else the kernel holds back a second event until the first is acknowledged, which takes up to
//! 40 ms, and then sends all the others in one piece.

use crate::figure::{Figure, Limit};
use crate::measure::{median, pin, quantile, thread_time, unpin};
use crate::{Error, data};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use axum::routing::post;
use axum::serve::{Listener, ListenerExt as _};
use futures_util::stream::{self, StreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use llm_serve_adapters::DataPlane;
use llm_serve_adapters::layer::{KeySource as _, RolloutLayer, header};
use llm_serve_adapters::recorder::Recorder;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::yield_now;

const GROUP: &str = crate::layer::GROUP;
/// Events of a reply, the end mark and the usage among them.
const EVENTS: usize = 50;
/// Connections that are asked on at once, and requests on each of them in one batch.
const CONNECTIONS: usize = 8;
const EACH: usize = 12;
/// The processors of the gateways, and of the client and the engine.
const GATEWAYS: usize = 1;
const OTHERS: usize = 0;
/// How long batches are run, and how many there are at least.
const BUDGET: Duration = Duration::from_secs(30);
const FEWEST: usize = 6;
/// Streams that are open at once where memory is measured.
const OPEN: usize = 10_000;

fn runtime() -> Result<Runtime, Error> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

fn plane() -> Result<DataPlane, Error> {
    let recorder = Recorder::new(["bad_format"])?;
    Ok(DataPlane::new(
        Arc::new(data::router(5.0)?),
        Arc::new(recorder),
    ))
}

fn with(layer: Option<&DataPlane>, app: Router) -> Router {
    match layer {
        Some(plane) => app.layer(RolloutLayer::new(plane).key(header("x-session-id").or_request())),
        None => app,
    }
}

fn streamed(body: Body) -> Response {
    let mut response = Response::new(body);
    let kind = http::HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// A reply of events, each sent by itself, as tokens come.
async fn engine(State(events): State<Arc<[Bytes]>>) -> Response {
    let events = (0..EVENTS).filter_map(move |n| events.get(n).cloned());
    streamed(Body::from_stream(stream::iter(events).then(
        |event| async {
            yield_now().await;
            Ok::<_, Infallible>(event)
        },
    )))
}

type Proxy = (Client<HttpConnector, Body>, Uri);

/// Hands a request on, and its reply back as it comes.
async fn forward(State((client, to)): State<Proxy>, mut request: Request) -> Response {
    *request.uri_mut() = to;
    if let Ok(reply) = client.request(request).await {
        return reply.map(Body::new);
    }
    let mut reply = Response::new(Body::empty());
    *reply.status_mut() = StatusCode::BAD_GATEWAY;
    reply
}

/// A server on a thread of its own, which tells how much processor time it has used.
struct Side {
    to: SocketAddr,
    spent: mpsc::UnboundedSender<oneshot::Sender<Option<Duration>>>,
}

impl Side {
    fn start(app: Router, processor: usize) -> Result<Self, Error> {
        let (runtime, listener) = (runtime()?, std::net::TcpListener::bind("127.0.0.1:0")?);
        listener.set_nonblocking(true)?;
        let to = listener.local_addr()?;
        let (spent, mut asked) = mpsc::unbounded_channel::<oneshot::Sender<Option<Duration>>>();
        std::thread::spawn(move || {
            pin(processor);
            runtime.block_on(async move {
                let Ok(listener) = TcpListener::from_std(listener) else {
                    return;
                };
                // Without it events wait for one another: see above.
                let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
                tokio::spawn(async move { axum::serve(listener, app).await });
                while let Some(answer) = asked.recv().await {
                    // Whoever asked may have given up.
                    let _ = answer.send(thread_time());
                }
            });
        });
        Ok(Self { to, spent })
    }

    async fn spent(&self) -> Option<Duration> {
        let (answer, answered) = oneshot::channel();
        self.spent.send(answer).ok()?;
        answered.await.ok()?
    }
}

/// A gateway, its connections, and what was measured of it.
struct Measured {
    side: Side,
    connections: Vec<SendRequest<Full<Bytes>>>,
    /// Microseconds of its thread for each request, by batch.
    spent: Vec<f64>,
    /// Microseconds from a request to the end of its reply.
    latencies: Vec<f64>,
}

impl Measured {
    async fn start(layer: Option<&DataPlane>, engine: SocketAddr) -> Result<Self, Error> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let uri = format!("http://{engine}/").parse::<Uri>()?;
        let app = Router::new()
            .route("/", post(forward))
            .with_state((client, uri));
        let side = Side::start(with(layer, app), GATEWAYS)?;
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            let stream = TcpStream::connect(side.to).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            connections.push(sender);
        }
        Ok(Self {
            side,
            connections,
            spent: Vec::new(),
            latencies: Vec::new(),
        })
    }

    async fn batch(&mut self) -> Result<(), Error> {
        let before = self.side.spent().await;
        let all = self
            .connections
            .iter_mut()
            .enumerate()
            .map(|(n, sender)| ask(sender, n));
        let mut latencies = Vec::with_capacity(CONNECTIONS * EACH);
        for found in futures_util::future::join_all(all).await {
            latencies.extend(found?);
        }
        if let (Some(before), Some(after)) = (before, self.side.spent().await) {
            let spent = after.saturating_sub(before).as_secs_f64() * 1e6;
            self.spent.push(spent / (CONNECTIONS * EACH) as f64);
        }
        self.latencies.extend(latencies);
        Ok(())
    }
}

/// Asks some requests one after the other; how long each took, in microseconds.
async fn ask(sender: &mut SendRequest<Full<Bytes>>, n: usize) -> Result<Vec<f64>, Error> {
    let mut latencies = Vec::with_capacity(EACH);
    for turn in 0..EACH {
        sender.ready().await?;
        let request = Request::post("/").header(HOST, "gateway");
        let request = request.header("x-session-id", format!("session-{n}-{turn}"));
        let begun = Instant::now();
        let reply = sender.send_request(request.body(Full::from("{}"))?).await?;
        let body = reply.into_body().collect().await?.to_bytes();
        latencies.push(begun.elapsed().as_secs_f64() * 1e6);
        if !body.ends_with(b"data: [DONE]\n\n") {
            return Err("a reply was cut off".into());
        }
    }
    Ok(latencies)
}

async fn take_turns(
    without: &mut Measured,
    layered: &mut Measured,
    budget: Duration,
) -> Result<(), Error> {
    for side in [&mut *without, &mut *layered] {
        side.batch().await?;
        side.spent.clear();
        side.latencies.clear();
    }
    let (begun, mut rounds) = (Instant::now(), 0);
    while begun.elapsed() < budget || rounds < FEWEST {
        // Whoever comes second has warmer caches: they take turns in that too.
        let pair = if rounds % 2 == 0 {
            [&mut *without, &mut *layered]
        } else {
            [&mut *layered, &mut *without]
        };
        for side in pair {
            side.batch().await?;
        }
        rounds += 1;
    }
    Ok(())
}

/// The gateway with the layer and without, in batches that take turns.
pub(crate) fn proxied(events: &Arc<[Bytes]>, budget: Duration) -> Result<Vec<Figure>, Error> {
    let plane = plane()?;
    let app = Router::new()
        .route("/", post(engine))
        .with_state(Arc::clone(events));
    let engine = Side::start(app, OTHERS)?;
    let runtime = runtime()?;
    let (mut without, mut layered) = runtime.block_on(async {
        let without = Measured::start(None, engine.to).await?;
        let layered = Measured::start(Some(&plane), engine.to).await?;
        Ok::<_, Error>((without, layered))
    })?;
    // Only now: a thread may use what the thread that made it may.
    let before = pin(OTHERS);
    let ran = runtime.block_on(take_turns(&mut without, &mut layered, budget));
    unpin(before);
    ran?;
    let mut figures = Vec::new();
    let lost = "throughput of a gateway lost to the layer, 50 events over loopback";
    let pairs = without.spent.iter().zip(&layered.spent);
    let lost_of_each: Vec<f64> = pairs
        .map(|(bare, with)| (1.0 - bare / with) * 100.0)
        .collect();
    let spent = median(&without.spent).zip(median(&layered.spent));
    match median(&lost_of_each).zip(spent) {
        Some((part, (bare, with))) => {
            figures.push(Figure::new(GROUP, lost, part, "%").limit(Limit::AtMost(3.0)));
            for (name, part) in [("lower", 0.25), ("upper", 0.75)] {
                let name = format!("the same, {name} quartile of {} rounds", lost_of_each.len());
                let value = quantile(&lost_of_each, part).unwrap_or(f64::NAN);
                figures.push(Figure::new(GROUP, name, value, "%"));
            }
            for (name, micros) in [("without", bare), ("with", with)] {
                let name = format!("gateway {name} the layer, requests per second and core");
                figures.push(Figure::new(GROUP, name, 1e6 / micros, "/s"));
            }
        }
        _ => figures.push(Figure::missing(
            GROUP,
            lost,
            "%",
            "a thread's processor time is not known here",
        )),
    }
    for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
        let of = |side: &Measured| quantile(&side.latencies, part).unwrap_or(f64::NAN);
        let (bare, with) = (of(&without), of(&layered));
        let eight = format!("{name} of a reply through the gateway, {CONNECTIONS} at once");
        figures.push(Figure::new(
            GROUP,
            format!("{eight}, without the layer"),
            bare,
            "us",
        ));
        figures.push(Figure::new(
            GROUP,
            format!("{eight}, added by the layer"),
            with - bare,
            "us",
        ));
    }
    Ok(figures)
}

/// Connections in memory.
struct Inward(mpsc::Receiver<DuplexStream>);

impl Listener for Inward {
    type Io = DuplexStream;
    type Addr = ();

    async fn accept(&mut self) -> (DuplexStream, ()) {
        match self.0.recv().await {
            Some(stream) => (stream, ()),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A reply that has begun and does not end.
async fn unending(State(events): State<Arc<[Bytes]>>) -> Response {
    let first = events.first().cloned().unwrap_or_default();
    let body = stream::once(async { Ok::<_, Infallible>(first) }).chain(stream::pending());
    streamed(Body::from_stream(body))
}

/// Bytes that each of so many open streams holds in an axum host, its connection and its client's end of it included.
pub(crate) fn held(
    layer: Option<&DataPlane>,
    events: &Arc<[Bytes]>,
    open: usize,
) -> Result<f64, Error> {
    let app = Router::new()
        .route("/", post(unending))
        .with_state(Arc::clone(events));
    let app = with(layer, app);
    let runtime = runtime()?;
    let mut clients = Vec::with_capacity(open);
    let mut failed = None;
    let counted = allocation_counter::measure(|| {
        let opened = runtime.block_on(async {
            let (connect, accepted) = mpsc::channel(16);
            tokio::spawn(async move { axum::serve(Inward(accepted), app).await });
            for n in 0..open {
                let (mut client, server) = duplex(1_024);
                connect.send(server).await?;
                let request = format!(
                    "POST / HTTP/1.1\r\nhost: gateway\r\nx-session-id: session-{n:08}\r\ncontent-length: 0\r\n\r\n"
                );
                client.write_all(request.as_bytes()).await?;
                let (mut seen, mut buffer) = (Vec::<u8>::new(), [0; 1_024]);
                while !seen.windows(6).any(|part| part == b"data: ") {
                    let n = client.read(&mut buffer).await?;
                    if n == 0 {
                        return Err("a connection was closed".into());
                    }
                    seen.extend(buffer.iter().take(n));
                }
                clients.push(client);
            }
            Ok::<_, Error>(())
        });
        failed = opened.err();
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(counted.bytes_current as f64 / open as f64),
    }
}

/// Measures what a gateway pays.
pub(crate) fn run(events: &Arc<[Bytes]>) -> Result<Vec<Figure>, Error> {
    let mut figures = proxied(events, BUDGET)?;
    let bare = held(None, events, OPEN)?;
    let layered = held(Some(&plane()?), events, OPEN)?;
    figures.push(
        Figure::new(
            GROUP,
            "memory added to an open stream in axum, 10,000 of them",
            layered - bare,
            "B",
        )
        .limit(Limit::AtMost(1024.0)),
    );
    let name = "memory of an open stream in axum, without the layer";
    figures.push(Figure::new(GROUP, name, bare, "B"));
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::events;

    #[test]
    fn both_gateways_are_measured() {
        let figures = proxied(&events(), Duration::ZERO).unwrap();
        assert!(figures.len() >= 5);
        assert!(
            figures
                .iter()
                .filter(|f| f.unit == "/s")
                .all(|f| f.value > Some(0.0))
        );
    }

    #[test]
    fn the_layer_holds_little() {
        let events = events();
        let bare = held(None, &events, 200).unwrap();
        let layered = held(Some(&plane().unwrap()), &events, 200).unwrap();
        // A thread's first counters are among it: 25 KB for each role, and 32 KB for those that wait.
        assert!(bare > 1_000.0 && layered > bare && layered - bare < 1_024.0 + 100_000.0 / 200.0);
    }
}
