//! Group `layer`: what the tower layer adds to a reply of 50 events. Here in the process alone, without any network; the rest
//! is in `gateway.rs`.

use crate::data;
use crate::figure::{Figure, Limit};
use crate::measure::{Design, allocations, interleave};
use crate::routing::absolute;
use crate::{Error, Scale, gateway};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::StreamBody;
use llm_serve_adapters::DataPlane;
use llm_serve_adapters::layer::{End, KeySource, Observer, RolloutLayer, header as key_header};
use llm_serve_adapters::recorder::Recorder;
use llm_serve_adapters::router::Key;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tower_layer::Layer as _;
use tower_service::Service;

/// Its name.
pub const GROUP: &str = "layer";

/// Events of a reply, the end mark and the usage among them.
const EVENTS: usize = 50;
/// Streams that are open at once where memory is measured.
const OPEN: usize = 10_000;

/// Replies with a stream of ready events.
#[derive(Debug, Clone)]
struct Streams {
    events: Arc<[Bytes]>,
}

/// What a reply consists of.
pub(crate) fn events() -> Arc<[Bytes]> {
    let piece = |n| {
        format!(
            "data: {{\"id\":\"chatcmpl-0123456789\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" word{n}\"}},\"finish_reason\":null}}]}}\n\n"
        )
    };
    let mut events: Vec<String> = (0..EVENTS - 2).map(piece).collect();
    events.push("data: {\"choices\":[],\"usage\":{\"completion_tokens\":48}}\n\n".to_owned());
    events.push("data: [DONE]\n\n".to_owned());
    events.into_iter().map(Bytes::from).collect()
}

impl Streams {
    fn new() -> Self {
        Self { events: events() }
    }
}

/// The events of one reply, in order.
#[derive(Debug)]
struct Events {
    events: Arc<[Bytes]>,
    next: usize,
}

impl futures_util::Stream for Events {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Self::Item>> {
        let event = self.events.get(self.next).cloned();
        self.next += 1;
        Poll::Ready(event.map(|event| Ok(Frame::data(event))))
    }
}

impl Service<Request<()>> for Streams {
    type Response = Response<StreamBody<Events>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        let events = Arc::clone(&self.events);
        let mut response = Response::new(StreamBody::new(Events { events, next: 0 }));
        let kind = header::HeaderValue::from_static("text/event-stream");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        ready(Ok(response))
    }
}

fn request(session: &[u8]) -> Request<()> {
    let mut request = Request::new(());
    if let Ok(value) = header::HeaderValue::from_bytes(session) {
        request.headers_mut().insert("x-session-id", value);
    }
    // Something is in the extensions of every request by the time that it reaches a layer of axum: its path, its client.
    request.extensions_mut().insert(session.len());
    request
}

/// The head of a reply; nothing here waits.
fn head<S: Service<Request<()>>>(service: &mut S, session: &[u8]) -> Option<S::Response> {
    let mut waiting = Context::from_waker(Waker::noop());
    match pin!(service.call(request(session))).poll(&mut waiting) {
        Poll::Ready(Ok(response)) => Some(response),
        _ => None,
    }
}

/// Reads a body to its end; how many frames it had.
fn drain<B: Body>(body: B) -> usize {
    let mut waiting = Context::from_waker(Waker::noop());
    let mut body = pin!(body);
    let mut frames = 0;
    while let Poll::Ready(Some(Ok(frame))) = body.as_mut().poll_frame(&mut waiting) {
        black_box(&frame);
        frames += 1;
    }
    frames
}

fn requests<S, B>(service: &S, keys: &[Box<[u8]>], passes: usize)
where
    S: Service<Request<()>, Response = Response<B>> + Clone,
    B: Body,
{
    let mut service = service.clone();
    for key in keys.iter().cycle().take(passes * PASS) {
        if let Some(response) = head(&mut service, key) {
            black_box(drain(response.into_body()));
        }
    }
}

/// Requests of one pass.
const PASS: usize = 4;

/// Bytes that an open stream holds, its head read, nothing of its body.
fn held<S, B>(service: &S, keys: &[Box<[u8]>]) -> f64
where
    S: Service<Request<()>, Response = Response<B>> + Clone,
{
    let mut service = service.clone();
    let mut open = Vec::with_capacity(OPEN);
    let counted = allocation_counter::measure(|| {
        open.extend(
            keys.iter()
                .cycle()
                .take(OPEN)
                .filter_map(|key| head(&mut service, key)),
        );
    });
    let inline = size_of::<Response<B>>() as f64;
    let held = counted.bytes_current as f64 / OPEN as f64 + inline;
    drop(open);
    held
}

fn plane() -> Result<DataPlane, Error> {
    let recorder = Recorder::new(["bad_format"])?;
    Ok(DataPlane::new(
        Arc::new(data::router(5.0)?),
        Arc::new(recorder),
    ))
}

fn by_session(plane: &DataPlane) -> RolloutLayer<impl KeySource + Clone + use<>> {
    RolloutLayer::new(plane).key(key_header("x-session-id").or_request())
}

/// Sends so many requests (in fours) through the layer, or past it, and reads their replies of 50 events.
///
/// # Errors
/// The layer cannot be set up.
pub fn reply(layered: bool, times: usize) -> Result<(), Error> {
    let (keys, bare) = (data::keys(), Streams::new());
    if layered {
        requests(
            &by_session(&plane()?).layer(bare),
            &keys,
            times.div_ceil(PASS),
        );
    } else {
        requests(&bare, &keys, times.div_ceil(PASS));
    }
    Ok(())
}

/// Shows so many events with a token to an observer, as the layer does with each, the time given.
///
/// # Errors
/// The router or the recorder cannot be set up.
pub fn observe(times: usize) -> Result<(), Error> {
    let (plane, events) = (plane()?, events());
    let now = plane.router.now();
    let key = Key::session(b"session");
    let mut ticket = plane.recorder.begin(plane.decide(&key, now), now);
    let headers = [(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/event-stream"),
    )];
    let mut observer = Observer::new(StatusCode::OK, &HeaderMap::from_iter(headers));
    let tokens = events.iter().take(EVENTS - 2);
    for event in tokens.cycle().take(times) {
        observer.data(&mut ticket, black_box(event), now);
    }
    observer.finish(ticket, End::Complete, now);
    Ok(())
}

/// Measures the group.
///
/// # Errors
/// A design cannot be set up.
pub fn run(_: Scale) -> Result<Vec<Figure>, Error> {
    let keys = data::keys();
    let bare = Streams::new();
    let layered = by_session(&plane()?).layer(bare.clone());
    let designs = [
        Design::new(
            "reply of 50 events, without the layer",
            PASS,
            |_, passes| {
                requests(&bare, &keys, passes);
            },
        ),
        Design::new("reply of 50 events, with the layer", PASS, |_, passes| {
            requests(&layered, &keys, passes);
        }),
    ];
    let timings = interleave(&designs, Duration::from_secs(6));
    let mut figures = Vec::new();
    let ([without, with], [bare_timing, timing]) = (&designs, timings.as_slice()) else {
        return Ok(figures);
    };
    let added = allocations(with) - allocations(without);
    figures.push(
        Figure::new(GROUP, "allocations added to a request", added, "").limit(Limit::AtMost(3.0)),
    );
    let memory = held(&layered, &keys) - held(&bare, &keys);
    figures.push(
        Figure::new(
            GROUP,
            "memory added to an open stream, 10,000 of them",
            memory,
            "B",
        )
        .limit(Limit::AtMost(1024.0)),
    );
    figures.push(Figure::new(
        GROUP,
        "added to each event",
        (timing.one - bare_timing.one) / EVENTS as f64,
        "ns",
    ));
    for (design, timing) in designs.iter().zip(&timings) {
        figures.extend(absolute(GROUP, design.name(), *timing));
    }
    figures.extend(gateway::run(&bare.events)?);
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use llm_serve_adapters::recorder::OutcomeClass;

    #[test]
    fn the_layer_passes_every_event_and_records_one_reply() {
        let keys = data::keys();
        let recorder = Arc::new(Recorder::new(Vec::<String>::new()).unwrap());
        let plane = DataPlane::new(Arc::new(data::router(5.0).unwrap()), Arc::clone(&recorder));
        let bare = Streams::new();
        let mut layered = RolloutLayer::new(&plane).layer(bare.clone());
        assert_eq!(
            drain(head(&mut bare.clone(), &keys[0]).unwrap().into_body()),
            EVENTS
        );
        assert_eq!(
            drain(head(&mut layered, &keys[0]).unwrap().into_body()),
            EVENTS
        );
        let rows = recorder.snapshot().unwrap().rows;
        let sum =
            |of: fn(&llm_serve_adapters::recorder::Row) -> u64| rows.iter().map(of).sum::<u64>();
        assert_eq!(sum(|row| row.ended(OutcomeClass::Ok)), 1);
        assert_eq!(sum(llm_serve_adapters::recorder::Row::tokens), 48);
    }
}
