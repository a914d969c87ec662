//! One answer: computed on a thread of its own, and read by the client at its
//! own speed.

use super::api::{Asked, Usage, Wording};
use super::engines::{Engine, Running, Turn};
use super::{BAD_FORMAT, raise};
use bytes::Bytes;
use desk_model::desk::{self, Order};
use desk_model::{Finish, Generation};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use llm_serve_adapters::layer::Assignment;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Frames of a stream besides its pieces of text: its opening, its closing, a cut.
const BESIDES: usize = 4;

/// The answer broke off: its version was taken out of service, or it took too
/// long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the answer broke off")
    }
}

impl std::error::Error for Cut {}

/// An answer on its way. It counts as running until it has been read to its
/// end, or is dropped; dropping it stops the computation.
#[derive(Debug)]
pub(super) struct Reply {
    frames: mpsc::Receiver<Result<Bytes, Cut>>,
    running: Option<Arc<Running>>,
}

impl Reply {
    /// The one frame of an answer that is no stream, still counted as running.
    pub(super) async fn whole(&mut self) -> Option<Whole> {
        let bytes = self.frames.recv().await?.ok()?;
        Some(Whole {
            bytes: Full::new(bytes),
            running: self.running.take(),
        })
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let frame = std::task::ready!(self.frames.poll_recv(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.running = None;
        }
        Poll::Ready(frame.map(|frame| frame.map(Frame::data)))
    }
}

/// An answer in one piece.
#[derive(Debug)]
pub(super) struct Whole {
    bytes: Full<Bytes>,
    running: Option<Arc<Running>>,
}

impl Body for Whole {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.bytes).poll_frame(cx));
        if self.bytes.is_end_stream() {
            self.running = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.bytes.size_hint()
    }
}

/// Starts computing an answer.
pub(super) fn start(
    engine: Arc<Engine>,
    asked: Asked,
    turn: Turn,
    assignment: Option<Assignment>,
    limit: Duration,
    running: Running,
) -> Reply {
    let settings = settings(&engine, &asked);
    // room for every frame: the computation never waits for the client
    let (frames, received) = mpsc::channel(settings.max_tokens.saturating_add(BESIDES));
    let running = Arc::new(running);
    let reply = Reply {
        frames: received,
        running: Some(Arc::clone(&running)),
    };
    let deadline = Instant::now() + limit;
    tokio::task::spawn_blocking(move || {
        // both end with the computation, even if the client has left long before
        let _held = (turn, running);
        compute(
            &engine,
            &asked,
            &settings,
            assignment.as_ref(),
            deadline,
            &frames,
        );
    });
    reply
}

/// The bundle's settings, with fewer tokens if the client asks for fewer.
fn settings(engine: &Engine, asked: &Asked) -> Generation {
    let mut settings = engine.model.generation().clone();
    if let Some(most) = asked.max_tokens {
        settings.max_tokens = settings.max_tokens.min(most);
    }
    settings
}

fn compute(
    engine: &Engine,
    asked: &Asked,
    settings: &Generation,
    assignment: Option<&Assignment>,
    deadline: Instant,
    frames: &mpsc::Sender<Result<Bytes, Cut>>,
) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let wording = Wording::new(number, &engine.reference, asked);
    // `Err`: the client has left, and there is nobody to tell
    let say = |frame| frames.try_send(Ok(frame)).is_ok();

    if asked.stream && !say(wording.opening()) {
        return;
    }
    let prompt = engine.model.prompt(&asked.text);
    let mut answer = engine.model.generate(&prompt, settings, asked.seed);
    let mut text = String::new();
    loop {
        if engine.is_retired() || Instant::now() > deadline {
            drop(frames.try_send(Err(Cut)));
            return;
        }
        if frames.is_closed() {
            return;
        }
        let Some(token) = answer.next() else {
            break;
        };
        text.push_str(&token.text);
        if asked.stream && !token.text.is_empty() && !say(wording.piece(&token.text)) {
            return;
        }
    }
    // before the last frame: whoever counts the reply at its end knows by then
    if !is_usable(&text) {
        raise(assignment, BAD_FORMAT);
    }
    let finish = answer.finish().unwrap_or(Finish::Length).as_str();
    let usage = Usage {
        prompt: answer.prompt_tokens(),
        completion: answer.completion_tokens(),
    };
    say(if asked.stream {
        wording.closing(finish, usage)
    } else {
        wording.whole(&text, finish, usage)
    });
}

/// Whether a program could use the reply. The right values are not known here.
fn is_usable(text: &str) -> bool {
    match desk::check(text, &Order::unknown()) {
        Ok(()) => true,
        Err(error) => !error.is_format(),
    }
}
