//! Real programs: started, looked at, stopped, killed.

use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long a component may take for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A program that is killed when its test ends.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// Whether what it has started is killed with it.
    family: bool,
}

impl Process {
    /// Starts it; what it says goes to a file of its name in the folder.
    pub(crate) fn start(folder: &Path, program: &str, args: &[&str]) -> Self {
        Self::start_with(folder, program, args, &[])
    }

    /// The same with these variables in its environment.
    pub(crate) fn start_with(
        folder: &Path,
        program: &str,
        args: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        Self::run(folder, program, args, |command| {
            command.envs(variables.iter().copied())
        })
    }

    /// The same of a program that starts others, which would outlive it if it is killed: they are killed with it.
    pub(crate) fn start_family(folder: &Path, program: &str, args: &[&str]) -> Self {
        let mut me = Self::run(folder, program, args, |command| command.process_group(0));
        me.family = true;
        me
    }

    fn run(
        folder: &Path,
        program: &str,
        args: &[&str],
        how: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Self {
        let name = Path::new(program).file_name().unwrap().to_string_lossy();
        let log = std::fs::File::create(folder.join(format!("{name}.log"))).unwrap();
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = how(&mut command).spawn().unwrap_or_else(|e| {
            panic!("{program} cannot be started ({e}): e2e/run installs what is missing")
        });
        Self {
            child,
            family: false,
        }
    }

    /// Sends it a signal: `STOP`, `CONT`, `TERM`, `INT`.
    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args(["-s", signal, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success(), "{self:?} is gone");
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end.
    pub(crate) async fn ended(mut self) {
        until("the end of a program", async || {
            self.child.try_wait().unwrap().map(|_| ())
        })
        .await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.family {
            let group = format!("-{}", self.child.id());
            let _gone_already = Command::new("kill")
                .args(["-s", "KILL", "--", &group])
                .status();
        }
        let _gone_already = self.child.kill();
        let _gone_already = self.child.wait();
    }
}

/// A port of the loopback interface that nobody listens on.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// The version that a program tells of itself: the first number with points in what it says.
pub(crate) fn version_of(program: impl AsRef<std::ffi::OsStr>, arg: &str) -> String {
    let said = Command::new(program).arg(arg).output().unwrap();
    let said = [said.stdout, said.stderr].concat();
    String::from_utf8_lossy(&said)
        .split(|c: char| !(c.is_ascii_digit() || c == '.'))
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
        .expect("a version")
        .to_owned()
}

/// Asks again and again, until there is an answer.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(
            Instant::now() < end,
            "waited {PATIENCE:?} for {what}, in vain"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Asks over HTTP/1.1; none if nobody listens.
pub(crate) async fn http(port: u16, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    http_with(
        port,
        method,
        path,
        "Content-Type: application/json\r\n",
        body,
    )
    .await
}

/// The same with these headers, each with its line end.
pub(crate) async fn http_with(
    port: u16,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Option<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut reply = Vec::new();
        // Some keep the connection open all the same: then the length says where the end is.
        while !is_whole(&reply) && stream.read_buf(&mut reply).await.ok()? > 0 {}
        Some(reply)
    };
    // A server that hangs is one that does not answer.
    let reply = tokio::time::timeout(Duration::from_secs(20), exchange)
        .await
        .ok()??;
    let end = reply.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let (head, body) = (String::from_utf8_lossy(&reply[..end]), &reply[end + 4..]);
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let body = if is_chunked(&head) {
        joined(body)?
    } else {
        body.to_vec()
    };
    Some((status, String::from_utf8_lossy(&body).into_owned()))
}

fn is_chunked(head: &str) -> bool {
    head.to_ascii_lowercase()
        .contains("transfer-encoding: chunked")
}

/// The chunks of a body in one.
fn joined(mut chunks: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = chunks.windows(2).position(|bytes| bytes == b"\r\n")?;
        let length = std::str::from_utf8(&chunks[..end]).ok()?;
        let length = usize::from_str_radix(length, 16).ok()?;
        if length == 0 {
            return Some(body);
        }
        let rest = &chunks[end + 2..];
        body.extend_from_slice(rest.get(..length)?);
        chunks = rest.get(length + 2..)?;
    }
}

/// Whether a reply has as many bytes as it says.
fn is_whole(reply: &[u8]) -> bool {
    let Some(end) = reply.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&reply[..end]).to_ascii_lowercase();
    if is_chunked(&head) {
        return joined(&reply[end + 4..]).is_some();
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    length.is_some_and(|length| length.trim().parse() == Ok(reply.len() - end - 4))
}

/// Waits until it answers this path with 200.
pub(crate) async fn ready(port: u16, path: &str) {
    until(&format!("port {port} {path}"), async || {
        http(port, "GET", path, "")
            .await
            .filter(|(status, _)| *status == 200)
    })
    .await;
}
