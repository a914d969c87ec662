//! One request over HTTP, judged by the bytes that come back.

use super::sse::Events;
use bytes::Bytes;
use desk_model::desk::{self, Order};
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// The response header that names the version.
pub(super) const VERSION_HEADER: &str = "x-llm-version";
/// The request header that names the session.
const SESSION_HEADER: &str = "x-session-id";
/// The most bytes of one reply's text; more is malformed.
const LONGEST: usize = 1 << 20;

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// No connection, or it broke before there was a response.
    Transport,
    /// A status other than 200.
    Status(u16),
    /// An error event in the stream.
    ErrorEvent,
    /// The body broke off.
    Cut,
    /// The body ended in order, but without `[DONE]`.
    Unfinished,
    /// What came is no stream of completion chunks.
    Malformed,
    /// It took too long.
    TimedOut,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport => f.write_str("no connection"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::ErrorEvent => f.write_str("error event"),
            Self::Cut => f.write_str("cut body"),
            Self::Unfinished => f.write_str("no [DONE]"),
            Self::Malformed => f.write_str("malformed stream"),
            Self::TimedOut => f.write_str("time-out"),
        }
    }
}

/// What was seen of one request.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) version: Option<String>,
    pub(super) fault: Option<Fault>,
    pub(super) first: Option<Duration>,
    pub(super) total: Duration,
    pub(super) format_ok: bool,
    pub(super) correct: bool,
}

/// A client with one connection, opened when it is needed.
#[derive(Debug)]
pub(super) struct Client {
    addr: SocketAddr,
    sender: Option<SendRequest<Full<Bytes>>>,
}

/// What has come back so far.
#[derive(Debug, Default)]
struct Progress {
    version: Option<String>,
    first: Option<Duration>,
    text: String,
    done: bool,
}

impl Client {
    pub(super) fn new(addr: SocketAddr) -> Self {
        Self { addr, sender: None }
    }

    /// Sends a request and takes its reply in, within `limit`.
    pub(super) async fn ask(
        &mut self,
        session: &str,
        model: &str,
        request: &desk::Request,
        limit: Duration,
    ) -> Seen {
        let body = json!({
            "model": model,
            "messages": [{"role": "user", "content": request.text}],
            "stream": true,
        });
        let began = Instant::now();
        let mut progress = Progress::default();
        let exchange = self.exchange(session, body.to_string(), began, &mut progress);
        let fault = match tokio::time::timeout(limit, exchange).await {
            Ok(Ok(())) => None,
            Ok(Err(fault)) => Some(fault),
            Err(_) => Some(Fault::TimedOut),
        };
        let total = began.elapsed();
        if fault.is_some() {
            self.sender = None;
        }
        let (format_ok, correct) = judge(&progress.text, &request.expected);
        Seen {
            version: progress.version,
            fault,
            first: progress.first,
            total,
            format_ok,
            correct,
        }
    }

    async fn exchange(
        &mut self,
        session: &str,
        body: String,
        began: Instant,
        progress: &mut Progress,
    ) -> Result<(), Fault> {
        let request = Request::post("/v1/chat/completions")
            .header(HOST, self.addr.to_string())
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "text/event-stream")
            .header(SESSION_HEADER, session)
            .body(Full::from(body))
            .map_err(|_| Fault::Transport)?;
        let sender = self.connected().await?;
        let response = sender.send_request(request).await;
        let response = response.map_err(|_| Fault::Transport)?;
        let version = response.headers().get(VERSION_HEADER);
        progress.version = version
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        if response.status() != StatusCode::OK {
            return Err(Fault::Status(response.status().as_u16()));
        }
        let mut body = response.into_body();
        let mut events = Events::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Fault::Cut)?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            for event in events.feed(&data).map_err(|_| Fault::Malformed)? {
                progress.take(&event, began)?;
            }
        }
        if progress.done {
            Ok(())
        } else {
            Err(Fault::Unfinished)
        }
    }

    /// The connection, opened anew where it is closed.
    async fn connected(&mut self) -> Result<&mut SendRequest<Full<Bytes>>, Fault> {
        let usable = match &mut self.sender {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            let stream = TcpStream::connect(self.addr).await;
            let stream = stream.map_err(|_| Fault::Transport)?;
            // without it the kernel may hold small frames back, and latencies would be its own
            stream.set_nodelay(true).map_err(|_| Fault::Transport)?;
            let shaken = http1::handshake(TokioIo::new(stream)).await;
            let (sender, connection) = shaken.map_err(|_| Fault::Transport)?;
            // it ends when the sender and the body are dropped; its errors come out of those
            tokio::spawn(connection);
            self.sender = Some(sender);
        }
        self.sender.as_mut().ok_or(Fault::Transport)
    }
}

impl Progress {
    /// Takes one event in.
    fn take(&mut self, event: &str, began: Instant) -> Result<(), Fault> {
        if self.done {
            return Ok(());
        }
        if event == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk: Value = serde_json::from_str(event).map_err(|_| Fault::Malformed)?;
        if chunk.get("error").is_some_and(|error| !error.is_null()) {
            return Err(Fault::ErrorEvent);
        }
        if chunk.get("choices").and_then(Value::as_array).is_none() {
            return Err(Fault::Malformed);
        }
        let content = chunk.pointer("/choices/0/delta/content");
        let content = content.and_then(Value::as_str).unwrap_or_default();
        if !content.is_empty() {
            self.first.get_or_insert_with(|| began.elapsed());
            self.text.push_str(content);
        }
        if self.text.len() > LONGEST {
            return Err(Fault::Malformed);
        }
        Ok(())
    }
}

/// Whether a text has the right form, and whether it is right.
fn judge(text: &str, expected: &Order) -> (bool, bool) {
    match desk::check(text, expected) {
        Ok(()) => (true, true),
        Err(error) => (!error.is_format(), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    fn request() -> desk::Request {
        desk::live_request(1, 1)
    }

    fn chunk(content: &str) -> String {
        let chunk = json!({"choices": [{"index": 0, "delta": {"content": content}}]});
        format!("data: {chunk}\n\n")
    }

    /// What is seen of a server that answers with these bytes, then closes.
    async fn seen(answer: String) -> Seen {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 1 << 16];
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(read > 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
            if answer.ends_with("hang") {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        });
        let mut client = Client::new(addr);
        let seen = client
            .ask("s", "desk", &request(), Duration::from_secs(1))
            .await;
        server.abort();
        seen
    }

    fn stream(length: usize, body: &str) -> String {
        format!(
            "HTTP/1.1 200 OK\r\nx-llm-version: a/v1.0.0-0\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    }

    async fn stream_of(body: &str) -> Seen {
        seen(stream(body.len(), body)).await
    }

    #[tokio::test]
    async fn a_whole_right_reply_is_good() {
        let json = request().expected.to_json();
        let (one, two) = json.split_at(7);
        let body = format!("{}{}{}data: [DONE]\n\n", chunk(""), chunk(one), chunk(two));
        let seen = stream_of(&body).await;
        assert_eq!(seen.fault, None);
        assert_eq!(seen.version.as_deref(), Some("a/v1.0.0-0"));
        assert!(seen.format_ok && seen.correct);
        assert!(seen.first.unwrap() <= seen.total);
    }

    #[tokio::test]
    async fn wrong_and_unusable_replies_are_told_apart() {
        let wrong = r#"{"item":"ghost","count":0,"city":"Nowhere"}"#;
        let seen = stream_of(&format!("{}data: [DONE]\n\n", chunk(wrong))).await;
        assert_eq!(
            (seen.fault, seen.format_ok, seen.correct),
            (None, true, false)
        );
        let seen = stream_of(&format!("{}data: [DONE]\n\n", chunk("Dear friend,"))).await;
        assert_eq!(
            (seen.fault, seen.format_ok, seen.correct),
            (None, false, false)
        );
        let seen = stream_of("data: [DONE]\n\n").await;
        assert_eq!(
            (seen.fault, seen.first, seen.format_ok),
            (None, None, false)
        );
    }

    #[tokio::test]
    async fn every_way_to_fail_has_its_name() {
        let whole = chunk("{}") + "data: [DONE]\n\n";
        let error = "data: {\"error\":{\"message\":\"x\"}}\n\n";
        for (answer, fault) in [
            (String::new(), Fault::Transport),
            ("SMTP ready\r\n\r\n".to_owned(), Fault::Transport),
            (stream(0, "").replace("200", "503"), Fault::Status(503)),
            (stream(error.len(), error), Fault::ErrorEvent),
            (stream(whole.len() + 9, &whole), Fault::Cut),
            (stream(chunk("{}").len(), &chunk("{}")), Fault::Unfinished),
            (stream(whole.len() - 2, whole.trim_end()), Fault::Unfinished),
            (stream(9, "data: x\n\n"), Fault::Malformed),
            (stream(10, "data: {}\n\n"), Fault::Malformed),
            (stream(99, "hang"), Fault::TimedOut),
        ] {
            let seen = seen(answer.clone()).await;
            assert_eq!(seen.fault, Some(fault), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_a_fault_of_an_unknown_version() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        drop(listener);
        let mut client = Client::new(addr);
        let seen = client
            .ask("s", "desk", &request(), Duration::from_secs(1))
            .await;
        assert_eq!((seen.fault, seen.version), (Some(Fault::Transport), None));
    }
}
