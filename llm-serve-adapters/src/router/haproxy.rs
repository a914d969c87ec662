//! HAProxy as a router, through its runtime socket.

use super::remote::{Proxy, Raised, Remote};
use super::served::Served;
use crate::host::{Error, Result, RouterCapabilities, RouterMemory, Support, TrafficRouter};
use async_trait::async_trait;
use llm_rollout::{Fence, Order, Position, RouterClock, RouterId, RouterState, Share, Split};
use llm_version_core::VersionId;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::Instant;

/// How long one exchange with the socket may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of a reply that are read.
const REPLY: u64 = 256 << 10;

/// Has HAProxy (2.4 or newer) serve splits.
///
/// Two things in HAProxy hold the split, both changed at run time, without a reload: a map says which backend is `baseline` and which
/// is `candidate`, and a stick table holds the candidate's share in basis points under the key `share`. **The table expires, and
/// that is the lease**: a share that is not renewed is gone even if every controller is dead, and without a share everybody
/// is served by the baseline. Its `expire` must be shorter than the plan's lease (45 s for 60 s); a longer one is refused. The
/// configuration, as the tests start it, where `chat-v1` and `chat-v2` are backends:
///
/// ```text
#[doc = include_str!("haproxy.cfg")]
/// ```
///
/// where `chat.map` holds the lines `baseline chat-v1` and `candidate chat-v1`. Sessions stick, and who is in at 1 % is in at 5 %,
/// but by HAProxy's hash: an in-process router would place them elsewhere.
///
/// Fences, positions, marks and the latch are kept here and in the [`RouterMemory`], since HAProxy knows none of them: one
/// `HaproxyRouter` per HAProxy, and nobody else at its socket. Whoever changes it by hand all the same is noticed, since what is read
/// back is what HAProxy says. HAProxy started anew or reloaded has lost the share, which counts as lapsed, and serves the
/// baseline of its map **file** until the next exchange: keep the file up to date after a promotion. There is neither a control arm nor
/// a mirror.
///
/// ```no_run
/// use llm_rollout::{Epoch, RouterId, Split};
/// use llm_serve_adapters::router::HaproxyRouter;
///
/// # fn open(v1: llm_version_core::VersionId, v2: llm_version_core::VersionId) -> Result<(), Box<dyn std::error::Error>> {
/// let first = Split::steady(None, v1.clone(), Epoch::default());
/// let router = HaproxyRouter::builder(RouterId::new("edge-1")?, "/run/haproxy/admin.sock", first)
///     .split_in("llm_split", "/etc/haproxy/chat.map")
///     .backend(v1, "chat-v1")
///     .backend(v2, "chat-v2")
///     .open()?;
/// # Ok(())
/// # }
/// ```
pub struct HaproxyRouter(Remote<Haproxy>);

/// Builds a [`HaproxyRouter`].
#[derive(Debug)]
#[must_use = "it does nothing until it is opened"]
pub struct HaproxyRouterBuilder {
    id: RouterId,
    socket: PathBuf,
    first: Split,
    table: String,
    map: String,
    backends: BTreeMap<VersionId, String>,
    memory: Option<Arc<dyn RouterMemory>>,
}

impl HaproxyRouterBuilder {
    /// The stick table and the map that hold the split: `llm_split` and `/etc/haproxy/llm_split.map` unless told otherwise.
    pub fn split_in(mut self, table: impl Into<String>, map: impl Into<String>) -> Self {
        self.table = table.into();
        self.map = map.into();
        self
    }

    /// The backend that serves a version.
    pub fn backend(mut self, version: VersionId, backend: impl Into<String>) -> Self {
        self.backends.insert(version, backend.into());
        self
    }

    /// Remembers here what it was told.
    pub fn memory(mut self, memory: Arc<dyn RouterMemory>) -> Self {
        self.memory = Some(memory);
        self
    }

    /// The router. Does not connect yet: the first exchange takes any share away that HAProxy still has.
    ///
    /// # Errors
    /// A name that the socket's commands cannot hold, two versions with one backend, or a record that cannot be read.
    pub fn open(self) -> Result<HaproxyRouter> {
        let Self {
            id,
            socket,
            first,
            table,
            map,
            backends,
            memory,
        } = self;
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.:/".contains(c);
        let mut names: Vec<_> = backends.values().collect();
        for name in names.iter().copied().chain([&table, &map]) {
            if name.is_empty() || !name.chars().all(plain) {
                return Err(Error::permanent(format!(
                    "{name:?} cannot be named in a command to HAProxy: use letters, digits and _-.:/"
                )));
            }
        }
        names.sort();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(Error::permanent(
                "two versions have one backend: what is read back could not be told apart",
            ));
        }
        let haproxy = Haproxy {
            id: id.clone(),
            socket,
            table,
            map,
            backends,
        };
        Ok(HaproxyRouter(Remote::open(id, haproxy, first, memory)?))
    }
}

impl HaproxyRouter {
    /// Serves this split's baseline the very first time; afterwards what its memory says.
    pub fn builder(id: RouterId, socket: impl Into<PathBuf>, first: Split) -> HaproxyRouterBuilder {
        HaproxyRouterBuilder {
            id,
            socket: socket.into(),
            first,
            table: "llm_split".to_owned(),
            map: "/etc/haproxy/llm_split.map".to_owned(),
            backends: BTreeMap::new(),
            memory: None,
        }
    }

    /// Everything to the baseline at once, and for good: raises are refused until the rollout has ended.
    ///
    /// # Errors
    /// `Transient` if HAProxy cannot be reached (a share then ends with its lease), or it could not be made durable.
    pub async fn force_baseline(&self, why: &str) -> Result<()> {
        self.0.force_baseline(why).await
    }
}

impl fmt::Debug for HaproxyRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HaproxyRouter")
            .field("id", &self.0.id)
            .field("socket", &self.0.proxy.socket)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl TrafficRouter for HaproxyRouter {
    fn id(&self) -> &RouterId {
        &self.0.id
    }

    fn capabilities(&self) -> RouterCapabilities {
        RouterCapabilities {
            fencing: Support::Emulated,
            lease: Support::Native,
        }
    }

    async fn observe(&self, fence: Fence) -> Result<RouterState> {
        self.0.observe(fence).await
    }

    async fn set(&self, order: &Order) -> Result<RouterState> {
        self.0.set(order).await
    }

    async fn renew(&self, at: Position, clock: RouterClock) -> Result<RouterState> {
        self.0.renew(at, clock).await
    }
}

/// HAProxy behind its socket.
struct Haproxy {
    id: RouterId,
    socket: PathBuf,
    table: String,
    map: String,
    backends: BTreeMap<VersionId, String>,
}

impl Haproxy {
    /// One command, one reply.
    async fn ask(&self, command: &str) -> Result<String> {
        let socket = self.socket.display();
        let exchange = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            stream.write_all(format!("{command}\n").as_bytes()).await?;
            let mut reply = String::new();
            stream.take(REPLY).read_to_string(&mut reply).await?;
            Ok::<_, std::io::Error>(reply.trim().to_owned())
        };
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(e)) => Err(Error::transient(format!(
                "HAProxy cannot be reached at {socket} ({e}): check that it runs and that its socket has `level admin`"
            ))
            .because(e)),
            Err(_) => Err(Error::transient(format!("HAProxy did not answer at {socket} within {TIMEOUT:?}: check that it is not stuck"))),
        }
    }

    /// A command that says nothing if all is well.
    async fn tell(&self, command: &str) -> Result<()> {
        let said = self.ask(command).await?;
        if said.is_empty() {
            return Ok(());
        }
        Err(Error::permanent(format!(
            "HAProxy answers {said:?} to {command:?}: check its configuration"
        )))
    }

    fn backend(&self, version: &VersionId) -> Result<&str> {
        self.backends
            .get(version)
            .map(String::as_str)
            .ok_or_else(|| {
                Error::permanent(format!(
                    "version {version} has no backend in HAProxy: name it when router {} is built",
                    self.id
                ))
            })
    }

    fn version(&self, backend: &str) -> Result<VersionId> {
        let found = self.backends.iter().find(|(_, name)| *name == backend);
        found.map(|(version, _)| version.clone()).ok_or_else(|| {
            Error::permanent(format!(
                "HAProxy serves the backend {backend:?}, which router {} knows no version of",
                self.id
            ))
        })
    }

    /// The table's entry for the share: basis points, and how long they last if nobody renews them.
    async fn share(&self) -> Result<(u64, Duration)> {
        let table = &self.table;
        let entries = self.ask(&format!("show table {table}")).await?;
        if !entries.starts_with("# table") {
            return Err(Error::permanent(format!(
                "HAProxy has no stick table {table} ({entries:?}): add it to the configuration"
            )));
        }
        let entry = entries
            .lines()
            .find(|line| line.contains(" key=share "))
            .unwrap_or_default();
        let number = |name: &str| {
            let words = entry.split_ascii_whitespace();
            words
                .filter_map(|word| word.strip_prefix(name))
                .find_map(|value| value.parse().ok())
                .unwrap_or(0)
        };
        Ok((number("gpt0="), Duration::from_millis(number("exp="))))
    }

    async fn clear(&self) -> Result<()> {
        self.tell(&format!("clear table {} key share", self.table))
            .await
    }
}

#[async_trait]
impl Proxy for Haproxy {
    fn check(&self, split: &Split) -> Result<()> {
        if split.control != Share::NONE || split.mirror != Share::NONE {
            return Err(Error::permanent(format!(
                "router {} has neither a control arm nor a mirror: take them out of the plan",
                self.id
            )));
        }
        let mut versions = split.candidate.iter().chain([&split.baseline]);
        versions.try_for_each(|version| self.backend(version).map(drop))
    }

    async fn life(&self) -> Result<String> {
        let info = self.ask("show info").await?;
        let life: Vec<_> = info
            .lines()
            .filter(|line| line.starts_with("Pid:") || line.starts_with("Start_time_sec:"))
            .collect();
        if life.is_empty() {
            return Err(Error::transient(format!(
                "what answers at {} is not HAProxy",
                self.socket.display()
            )));
        }
        Ok(life.join(" "))
    }

    async fn served(&self, _told: &Split) -> Result<Served> {
        let map = &self.map;
        let lines = self.ask(&format!("show map {map}")).await?;
        let of = |role: &str| {
            let found = lines.lines().find_map(|line| {
                let mut words = line.split_ascii_whitespace().skip(1);
                (words.next() == Some(role)).then(|| words.next()).flatten()
            });
            found.ok_or_else(|| {
                Error::permanent(format!(
                    "HAProxy's map {map} has no line for {role:?} ({lines:?}): add it to the file"
                ))
            })
        };
        let (baseline, candidate) = (of("baseline")?, of("candidate")?);
        let (share, _) = self.share().await?;
        let share = u16::try_from(share)
            .ok()
            .and_then(|share| Share::new(share).ok())
            .unwrap_or(Share::ALL);
        let candidate = (share != Share::NONE).then(|| self.version(candidate));
        Ok(Served {
            baseline: self.version(baseline)?,
            candidate: candidate.transpose()?,
            share,
            mirror: Share::NONE,
        })
    }

    /// A raise ends with the share; anything else takes it away, come what may.
    async fn apply(&self, baseline: &VersionId, raise: Option<Raised<'_>>) -> Result<()> {
        let baseline = format!("set map {} baseline {}", self.map, self.backend(baseline)?);
        let Some(raise) = raise else {
            let told = self.tell(&baseline).await;
            return self.clear().await.and(told);
        };
        self.tell(&baseline).await?;
        self.tell(&format!(
            "set map {} candidate {}",
            self.map,
            self.backend(raise.candidate)?
        ))
        .await?;
        self.tell(&format!(
            "set table {} key share data.gpt0 {}",
            self.table,
            raise.share.basis_points()
        ))
        .await?;
        let (_, left) = self.share().await?;
        if Instant::now() + left > raise.until {
            return self.clear().await.and(Err(Error::permanent(format!(
                "HAProxy's table {} would keep the share for {left:?}, beyond its lease: let the table expire a quarter earlier than the plan's lease",
                self.table
            ))));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ErrorKind;
    use llm_rollout::Epoch;
    use tokio::net::UnixListener;

    fn version(n: u8) -> VersionId {
        format!("chat/v{n}.0.0-{}", n.to_string().repeat(64))
            .parse()
            .unwrap()
    }

    fn builder(socket: impl Into<PathBuf>) -> HaproxyRouterBuilder {
        let first = Split::steady(None, version(1), Epoch::default());
        HaproxyRouter::builder(RouterId::new("edge").unwrap(), socket, first)
            .split_in("split", "/x/chat.map")
            .backend(version(1), "v1")
            .backend(version(2), "v2")
    }

    /// A socket that answers like this, once per connection.
    fn fake(answer: impl Fn(&str) -> String + Send + 'static) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = vec![0; 4096];
                let read = stream.read(&mut buffer).await.unwrap();
                let command = String::from_utf8_lossy(&buffer[..read]).trim().to_owned();
                let said = answer(&command) + "\n\n";
                stream.write_all(said.as_bytes()).await.unwrap();
            }
        });
        (folder, path)
    }

    #[test]
    fn names_that_would_be_commands_are_refused() {
        for bad in ["", "a b", "v1; shutdown", "v1\nquit", "v1\\"] {
            assert!(
                builder("x").backend(version(1), bad).open().is_err(),
                "{bad:?}"
            );
            assert!(builder("x").split_in(bad, "m").open().is_err(), "{bad:?}");
            assert!(builder("x").split_in("t", bad).open().is_err(), "{bad:?}");
        }
        assert!(builder("x").backend(version(2), "v1").open().is_err());
        assert!(builder("x").open().is_ok());
    }

    #[tokio::test]
    async fn what_cannot_be_reached_is_transient() {
        let router = builder("/nonexistent/admin.sock").open().unwrap();
        let error = router.observe(Fence::new(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
        // A latch counts all the same, as soon as it can be reached.
        assert!(router.force_baseline("page").await.is_err());
        assert_eq!(router.0.latch().await, Some(version(1)));
    }

    #[tokio::test]
    async fn what_is_set_up_otherwise_is_named() {
        let info = "Name: HAProxy\nPid: 7\nStart_time_sec: 9";
        for (map, table, part) in [
            (
                "Unknown map identifier.",
                "# table: split",
                "no line for \"baseline\"",
            ),
            (
                "0x1 baseline v1\n0x2 candidate v1",
                "No such table",
                "no stick table split",
            ),
            (
                "0x1 baseline v9\n0x2 candidate v1",
                "# table: split",
                "backend \"v9\"",
            ),
        ] {
            let (_folder, socket) = fake(move |command| match command {
                "show info" => info.to_owned(),
                "show map /x/chat.map" => map.to_owned(),
                "show table split" => table.to_owned(),
                _ => String::new(),
            });
            let error = builder(socket)
                .open()
                .unwrap()
                .observe(Fence::new(1))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
            assert!(error.to_string().contains(part), "{error}");
        }
        let (_folder, socket) = fake(|_| "Permission denied".to_owned());
        let error = builder(socket)
            .open()
            .unwrap()
            .observe(Fence::new(1))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("is not HAProxy"), "{error}");
    }
}
