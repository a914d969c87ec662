use super::*;
use crate::host::Error;
use crate::notify::LogNotifier;
use std::io::Write;
use std::sync::Mutex;

/// How a notifier is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    FreshKeys,
    KeyIsTheText,
    KeyWithoutRollout,
    Unbounded,
    SplitsLines,
    SwallowsErrors,
    AllTransient,
    AllPermanent,
    Fenced,
    Hangs,
    TellsSecrets,
    LosesText,
    RefusesQuietNotices,
    StaysBroken,
}

const SECRET: &str = "S3CRET-T0KEN";

#[derive(Debug)]
struct State {
    how: Behaviour,
    broken: bool,
    told: u64,
    received: Vec<Received>,
}

/// A notifier and its receiver in one, with one fault.
#[derive(Debug, Clone)]
struct Simple {
    fault: Fault,
    state: Arc<Mutex<State>>,
}

#[async_trait]
impl Notifier for Simple {
    async fn notify(&self, letter: &Letter<'_>) -> HostResult<()> {
        let fault = self.fault;
        if fault == Fault::RefusesQuietNotices && !letter.notice.page {
            return Err(Error::permanent("not a page"));
        }
        let how = self.state.lock().unwrap().how;
        let error = match how {
            Behaviour::Accepts | Behaviour::Floods => None,
            Behaviour::Refuses => Some(ErrorKind::Permanent),
            _ => Some(ErrorKind::Transient),
        };
        if how == Behaviour::Hangs && fault == Fault::Hangs {
            std::future::pending::<()>().await;
        }
        if how == Behaviour::Floods && fault == Fault::Fenced {
            return Err(Error::fenced("a flood"));
        }
        let mut state = self.state.lock().unwrap();
        state.broken |= error.is_some() && fault == Fault::StaysBroken;
        match (error, fault) {
            _ if state.broken => {
                return Err(Error::new(error.unwrap_or(ErrorKind::Transient), "broken"));
            }
            (Some(_), Fault::SwallowsErrors) => return Ok(()),
            (Some(_), Fault::AllTransient) => return Err(Error::transient("no")),
            (Some(_), Fault::AllPermanent) => return Err(Error::permanent("no")),
            (Some(kind), Fault::TellsSecrets) => {
                return Err(Error::new(kind, format!("http://hooks/{SECRET} says no")));
            }
            (Some(kind), _) => return Err(Error::new(kind, "no")),
            (None, _) => {}
        }
        state.told += 1;
        let key = match fault {
            Fault::FreshKeys => state.told.to_string(),
            Fault::KeyIsTheText => letter.notice.text.clone(),
            Fault::KeyWithoutRollout => format!("{}.{}", letter.endpoint, letter.id),
            _ => letter.key(),
        };
        let most = if fault == Fault::Unbounded {
            usize::MAX
        } else {
            1_000
        };
        let text: String = match fault {
            Fault::LosesText => "something happened".to_owned(),
            _ => letter.notice.text.chars().take(most).collect(),
        };
        let parts: Vec<_> = match fault {
            Fault::SplitsLines => text.split('\n').map(str::to_owned).collect(),
            _ => vec![text],
        };
        state
            .received
            .extend(parts.into_iter().map(|text| Received {
                key: key.clone(),
                bytes: text.len(),
                text,
            }));
        Ok(())
    }
}

#[async_trait(?Send)]
impl Receiver for Simple {
    fn notifier(&self) -> Arc<dyn Notifier> {
        Arc::new(self.clone())
    }

    async fn received(&mut self) -> Vec<Received> {
        std::mem::take(&mut self.state.lock().unwrap().received)
    }

    async fn behave(&mut self, how: Behaviour) -> bool {
        self.state.lock().unwrap().how = how;
        true
    }

    fn secret(&self) -> Option<String> {
        Some(SECRET.to_owned())
    }
}

async fn judge(fault: Fault) -> Outcome {
    let state = State {
        how: Behaviour::Accepts,
        broken: false,
        told: 0,
        received: Vec::new(),
    };
    let state = Arc::new(Mutex::new(state));
    suite(&mut Simple { fault, state }).await
}

#[tokio::test(start_paused = true)]
async fn a_notifier_that_keeps_the_rules_passes() {
    judge(Fault::None).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_broken_notifier_is_caught_by_its_rule() {
    for (fault, rule) in [
        (Fault::FreshKeys, "sent again, it has the same key"),
        (Fault::KeyIsTheText, "another notice has another key"),
        (Fault::KeyWithoutRollout, "another notice has another key"),
        (Fault::Unbounded, "larger than 64 KiB"),
        (Fault::SplitsLines, "arrives as one message"),
        (Fault::SwallowsErrors, "a refusal for good is Permanent"),
        (Fault::AllTransient, "a refusal for good is Permanent"),
        (Fault::AllPermanent, "cannot now is Transient"),
        (Fault::Fenced, "never fenced out"),
        (Fault::Hangs, "every call ends by itself"),
        (Fault::TellsSecrets, "hold no secret"),
        (Fault::LosesText, "arrives with its text"),
        (Fault::RefusesQuietNotices, "no page is no error"),
        (Fault::StaysBroken, "a receiver that accepts is told"),
    ] {
        let violation = judge(fault).await.unwrap_err();
        assert!(violation.rule().contains(rule), "{fault:?}: {violation}");
    }
}

/// A log in memory, which can be full.
#[derive(Debug, Clone, Default)]
struct Log {
    lines: Arc<Mutex<(Vec<u8>, bool)>>,
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut lines = self.lines.lock().unwrap();
        if lines.1 {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        lines.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct LogReader {
    log: Log,
    notifier: Arc<LogNotifier>,
}

#[async_trait(?Send)]
impl Receiver for LogReader {
    fn notifier(&self) -> Arc<dyn Notifier> {
        Arc::clone(&self.notifier) as Arc<dyn Notifier>
    }

    async fn received(&mut self) -> Vec<Received> {
        let lines = std::mem::take(&mut self.log.lines.lock().unwrap().0);
        let lines = String::from_utf8(lines).unwrap();
        // "PAGE chat: rollout chat-v2: what happened [12.0]"
        let read = |line: &str| {
            let bytes = line.len();
            let line = line.trim_start_matches("PAGE ");
            let (head, rest) = line.split_once(": rollout ").unwrap();
            let (rollout, rest) = rest.split_once(": ").unwrap();
            let (text, id) = rest.rsplit_once(" [").unwrap();
            Received {
                key: format!("{head} {rollout} {id}"),
                text: text.to_owned(),
                bytes,
            }
        };
        lines.split_terminator('\n').map(read).collect()
    }

    async fn behave(&mut self, how: Behaviour) -> bool {
        self.log.lines.lock().unwrap().1 = how == Behaviour::Busy;
        matches!(how, Behaviour::Accepts | Behaviour::Busy)
    }
}

#[tokio::test]
async fn the_log_keeps_the_rules() {
    let log = Log::default();
    let notifier = Arc::new(LogNotifier::to(log.clone()));
    suite(&mut LogReader { log, notifier }).await.unwrap();
}

#[cfg(any(feature = "alertmanager", feature = "slack", feature = "webhook"))]
mod http {
    use super::*;
    use serde_json::Value;
    use std::collections::VecDeque;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    type Bodies = Arc<Mutex<VecDeque<Vec<u8>>>>;

    /// A receiver on the loopback interface, which behaves as it is told.
    struct Http<R> {
        notifier: Arc<dyn Notifier>,
        how: Arc<Mutex<Behaviour>>,
        bodies: Bodies,
        read: R,
    }

    /// The body of one request; none if the other side is gone.
    async fn request(stream: &mut TcpStream) -> Option<Vec<u8>> {
        let mut got = Vec::new();
        loop {
            let mut more = [0; 4096];
            let n = stream.read(&mut more).await.ok().filter(|n| *n > 0)?;
            got.extend_from_slice(&more[..n]);
            let Some(end) = got.windows(4).position(|w| w == b"\r\n\r\n") else {
                continue;
            };
            let head = String::from_utf8_lossy(&got[..end]).to_lowercase();
            let (_, length) = head.split_once("content-length: ")?;
            let length: usize = length.lines().next()?.trim().parse().ok()?;
            if got.len() >= end + 4 + length {
                return Some(got[end + 4..].to_vec());
            }
        }
    }

    async fn answer(mut stream: TcpStream, how: Behaviour, bodies: Bodies) {
        if how == Behaviour::Gone {
            return;
        }
        let Some(body) = request(&mut stream).await else {
            return;
        };
        let (status, ended) = match how {
            Behaviour::Accepts => ("200 OK", true),
            Behaviour::Refuses => ("403 Forbidden", true),
            Behaviour::Busy => ("503 Service Unavailable", true),
            Behaviour::Floods => ("200 OK", false),
            _ => return std::future::pending().await,
        };
        if how == Behaviour::Accepts {
            bodies.lock().unwrap().push_back(body);
        }
        let length = if ended { "content-length: 2\r\n" } else { "" };
        let head = format!("HTTP/1.1 {status}\r\n{length}connection: close\r\n\r\nok");
        let mut sent = stream.write_all(head.as_bytes()).await;
        while !ended && sent.is_ok() {
            sent = stream.write_all(&[b'x'; 4096]).await;
        }
    }

    impl<R: Fn(&Value) -> (String, String) + Send> Http<R> {
        async fn start(build: impl FnOnce(&str) -> Arc<dyn Notifier>, read: R) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = format!("http://{}", listener.local_addr().unwrap());
            let (how, bodies) = (Arc::new(Mutex::new(Behaviour::Accepts)), Bodies::default());
            let (now, sink) = (Arc::clone(&how), Arc::clone(&bodies));
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let how = *now.lock().unwrap();
                    tokio::spawn(answer(stream, how, Arc::clone(&sink)));
                }
            });
            Self {
                notifier: build(&address),
                how,
                bodies,
                read,
            }
        }
    }

    #[async_trait(?Send)]
    impl<R: Fn(&Value) -> (String, String) + Send + Sync> Receiver for Http<R> {
        fn notifier(&self) -> Arc<dyn Notifier> {
            Arc::clone(&self.notifier)
        }

        async fn received(&mut self) -> Vec<Received> {
            let bodies = std::mem::take(&mut *self.bodies.lock().unwrap());
            let read = |body: Vec<u8>| {
                let (key, text) = (self.read)(&serde_json::from_slice(&body).unwrap());
                Received {
                    key,
                    text,
                    bytes: body.len(),
                }
            };
            bodies.into_iter().map(read).collect()
        }

        async fn behave(&mut self, how: Behaviour) -> bool {
            *self.how.lock().unwrap() = how;
            true
        }

        fn secret(&self) -> Option<String> {
            Some(SECRET.to_owned())
        }
    }

    fn text(value: &Value) -> String {
        value.as_str().unwrap().to_owned()
    }

    /// Long enough for a loaded machine, short enough to wait for once.
    const SHORT: Duration = Duration::from_secs(2);

    #[cfg(feature = "webhook")]
    #[tokio::test]
    async fn webhooks_keep_the_rules() {
        use crate::notify::WebhookNotifier;
        let build = |address: &str| {
            let address = format!("{address}/{SECRET}");
            let notifier = WebhookNotifier::new(&address, SECRET.repeat(2)).unwrap();
            Arc::new(notifier.timeout(SHORT)) as Arc<dyn Notifier>
        };
        let read = |body: &Value| (text(&body["id"]), text(&body["text"]));
        suite(&mut Http::start(build, read).await).await.unwrap();
    }

    #[cfg(feature = "slack")]
    #[tokio::test]
    async fn slack_keeps_the_rules() {
        use crate::notify::SlackNotifier;
        let build = |address: &str| {
            let notifier = SlackNotifier::new(&format!("{address}/{SECRET}")).unwrap();
            Arc::new(notifier.timeout(SHORT)) as Arc<dyn Notifier>
        };
        let read = |body: &Value| {
            let told = &body["attachments"][0];
            (text(&told["footer"]), text(&told["text"]))
        };
        suite(&mut Http::start(build, read).await).await.unwrap();
    }

    #[cfg(feature = "alertmanager")]
    #[tokio::test]
    async fn alertmanager_keeps_the_rules() {
        use crate::notify::AlertmanagerNotifier;
        let build = |address: &str| {
            let notifier = AlertmanagerNotifier::new(address).unwrap();
            let notifier = notifier.bearer(SECRET).unwrap().timeout(SHORT);
            Arc::new(notifier) as Arc<dyn Notifier>
        };
        let read = |body: &Value| {
            let told = &body[0];
            (
                told["labels"].to_string(),
                text(&told["annotations"]["summary"]),
            )
        };
        suite(&mut Http::start(build, read).await).await.unwrap();
    }
}
