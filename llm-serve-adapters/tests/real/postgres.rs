//! Logs in a real PostgreSQL: the rules of a store, several owners, a server that stops, hangs, is damaged, and is gone
//! when users have to be taken off.

use crate::made_up::{Users, plan, version};
use crate::process::{Process, free_port, until, version_of};
use llm_rollout::{Cause, EndpointId, Fence, Phase, RolloutId, RouterId, Seq};
use llm_serve_adapters::host::{ErrorKind, StateStore};
use llm_serve_adapters::journal::incident;
use llm_serve_adapters::store::PostgresStore;
use llm_serve_adapters::testing;
use llm_serve_adapters::{Bootstrap, CommandError, Endpoint};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;
use tempfile::TempDir;

/// The newest installed one; Debian keeps them off the path.
fn programs() -> PathBuf {
    let mut found: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found
        .pop()
        .expect("PostgreSQL is not installed: e2e/run postgres does it")
}

/// Runs as the user of the database if this is root, whom the server refuses.
fn as_user(program: &Path, args: &[&str]) -> (String, Vec<String>) {
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let program = program.to_str().unwrap().to_owned();
    let args = args.iter().map(|arg| (*arg).to_owned());
    if !root {
        return (program, args.collect());
    }
    let user = ["-u", "postgres", "--", &program].map(str::to_owned);
    ("runuser".to_owned(), user.into_iter().chain(args).collect())
}

struct Cluster {
    folder: TempDir,
    port: u16,
}

impl Cluster {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("pg").tempdir().unwrap();
        // The user of the database has to get in.
        let open = Command::new("chmod")
            .args(["777", folder.path().to_str().unwrap()])
            .status()
            .unwrap();
        assert!(open.success());
        let data = folder.path().join("data");
        let args = [
            "-D",
            data.to_str().unwrap(),
            "-U",
            "rollouts",
            "-A",
            "trust",
            "-N",
            "--no-instructions",
        ];
        let (program, args) = as_user(&programs().join("initdb"), &args);
        let made = Command::new(program)
            .args(args)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        Self {
            folder,
            port: free_port(),
        }
    }

    async fn start(&self) -> Process {
        let (data, port) = (self.folder.path().join("data"), self.port.to_string());
        let args = [
            "-D",
            data.to_str().unwrap(),
            "-p",
            &port,
            "-h",
            "127.0.0.1",
            "-k",
            "",
        ];
        let (program, args) = as_user(&programs().join("postgres"), &args);
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let begin = || Process::start(self.folder.path(), &program, &args);
        let mut process = begin();
        until("PostgreSQL", async || {
            // After a kill it refuses to start as long as anything of its former life is there.
            if process.has_ended() {
                process = begin();
            }
            self.sql("SELECT 1")
        })
        .await;
        process
    }

    /// The process that takes connections, whatever started it.
    fn postmaster(&self) -> String {
        let file = std::fs::read_to_string(self.folder.path().join("data/postmaster.pid")).unwrap();
        file.lines().next().unwrap().to_owned()
    }

    /// Sends a signal to the server and everything that it started.
    fn signal(&self, signal: &str) {
        let postmaster = self.postmaster();
        let children = Command::new("pgrep")
            .args(["-P", &postmaster])
            .output()
            .unwrap()
            .stdout;
        let children = String::from_utf8(children).unwrap();
        for process in children.lines().chain([postmaster.as_str()]) {
            let _some_end_meanwhile = Command::new("kill").args(["-s", signal, process]).output();
        }
    }

    /// What this says, in one line; none if it fails.
    fn sql(&self, sql: &str) -> Option<String> {
        let port = self.port.to_string();
        let said = Command::new(programs().join("psql"))
            .args([
                "-h",
                "127.0.0.1",
                "-p",
                &port,
                "-U",
                "rollouts",
                "-d",
                "postgres",
                "-XAtqc",
                sql,
            ])
            .output()
            .unwrap();
        said.status
            .success()
            .then(|| String::from_utf8_lossy(&said.stdout).trim().to_owned())
    }

    fn open(&self) -> PostgresStore {
        let settings = format!(
            "host=127.0.0.1 port={} user=rollouts dbname=postgres",
            self.port
        );
        PostgresStore::open(&settings).unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Whoever started it as another user has not ended it.
        if self.folder.path().join("data/postmaster.pid").exists() {
            self.signal("KILL");
        }
    }
}

fn chat() -> EndpointId {
    EndpointId::new("chat").unwrap()
}

async fn log(store: &PostgresStore) -> Vec<Vec<u8>> {
    let page = store.read(&chat(), Seq::new(0)).await.unwrap();
    page.entries.into_iter().map(|(_, entry)| entry).collect()
}

#[tokio::test]
#[ignore = "needs PostgreSQL: e2e/run postgres"]
async fn it_keeps_to_the_rules_of_a_store() {
    let cluster = Cluster::new();
    let _server = cluster.start().await;
    testing::store::suite(async || Ok(Arc::new(cluster.open()) as Arc<dyn StateStore>))
        .await
        .unwrap();
    println!("ok      conformance suite of stores");
    let version = version_of(programs().join("postgres"), "--version");
    crate::verified("postgres", "PostgreSQL", &version);

    // Two hosts open a new database at once, and own in turn.
    cluster.sql("DROP TABLE llm_rollout_format, llm_rollout_endpoints, llm_rollout_entries, llm_rollout_routers").unwrap();
    let stores: Vec<_> = (0..4).map(|_| cluster.open()).collect();
    let endpoint = chat();
    let owned =
        futures_util::future::join_all(stores.iter().map(|store| store.acquire(&endpoint))).await;
    let mut fences: Vec<_> = owned
        .into_iter()
        .map(|owned| owned.unwrap().fence)
        .collect();
    let appends = stores.iter().zip(&fences);
    let appends =
        appends.map(|(store, fence)| store.append(&endpoint, *fence, Seq::new(0), b"mine", None));
    let outcomes = futures_util::future::join_all(appends).await;
    let newest = *fences.iter().max().unwrap();
    for (fence, outcome) in fences.iter().zip(&outcomes) {
        assert_eq!(outcome.is_ok(), *fence == newest, "{fence} {outcome:?}");
        let kind = outcome
            .as_ref()
            .err()
            .map(llm_serve_adapters::host::Error::kind);
        assert!(
            kind.is_none_or(|kind| kind == ErrorKind::Fenced),
            "{outcome:?}"
        );
    }
    fences.sort_unstable();
    assert_eq!(fences, (1..=4).map(Fence::new).collect::<Vec<_>>());
    println!("ok      four hosts at once: fences 1 to 4, the newest appends");

    // A format that is not known is left alone.
    cluster
        .sql("UPDATE llm_rollout_format SET major = 2")
        .unwrap();
    let error = cluster.open().acquire(&chat()).await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Permanent && error.to_string().contains("format 2.0"),
        "{error}"
    );
}

#[tokio::test]
#[ignore = "needs PostgreSQL: e2e/run postgres"]
async fn a_server_that_stops_or_hangs_loses_nothing() {
    let cluster = Cluster::new();
    let server = cluster.start().await;
    let store = cluster.open();
    let fence = store.acquire(&chat()).await.unwrap().fence;
    let router = store
        .router_memory(&chat(), &RouterId::new("one").unwrap())
        .unwrap();
    store
        .append(&chat(), fence, Seq::new(0), b"zero", None)
        .await
        .unwrap();

    // Killed as by a power cut.
    cluster.signal("KILL");
    server.ended().await;
    let error = store
        .append(&chat(), fence, Seq::new(1), b"one", None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    println!("ok      server gone: {error}");
    let error = store.split(&chat()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    let remembered = {
        let router = Arc::clone(&router);
        tokio::task::spawn_blocking(move || router.save(b"x"))
            .await
            .unwrap()
    };
    assert_eq!(remembered.unwrap_err().kind(), ErrorKind::Transient);
    let server = cluster.start().await;
    assert_eq!(log(&store).await, [b"zero"]);
    store
        .append(&chat(), fence, Seq::new(1), b"one", None)
        .await
        .unwrap();
    println!("ok      started again: the same store goes on");

    // Stopped in an orderly way, while the connection is idle: the next call finds another one.
    cluster.signal("INT");
    server.ended().await;
    let server = cluster.start().await;
    store
        .append(&chat(), fence, Seq::new(2), b"two", None)
        .await
        .unwrap();
    println!("ok      restarted while idle: nobody notices");

    // It hangs. Whether the append took effect is unknown until the log is read again.
    cluster.signal("STOP");
    let began = Instant::now();
    let error = store
        .append(&chat(), fence, Seq::new(3), b"three", None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(
        error.to_string().contains("may still take effect"),
        "{error}"
    );
    println!(
        "ok      hangs: error after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    cluster.signal("CONT");
    let entries = until("the store to answer again", async || {
        let page = store.read(&chat(), Seq::new(0)).await.ok()?;
        Some(page.entries.len() as u64)
    })
    .await;
    assert!((3..=4).contains(&entries), "{entries}");
    let owned = store.acquire(&chat()).await.unwrap();
    store
        .append(&chat(), owned.fence, owned.next, b"next", None)
        .await
        .unwrap();
    let log = log(&store).await;
    assert_eq!(
        (&log[..3], log.last().map(Vec::as_slice)),
        (
            &[b"zero".to_vec(), b"one".to_vec(), b"two".to_vec()][..],
            Some(&b"next"[..])
        )
    );
    drop(server);
}

#[tokio::test]
#[ignore = "needs PostgreSQL: e2e/run postgres"]
async fn damage_is_found_and_named() {
    let cluster = Cluster::new();
    let _server = cluster.start().await;
    let store = cluster.open();
    let fence = store.acquire(&chat()).await.unwrap().fence;
    for at in 0..4 {
        store
            .append(&chat(), fence, Seq::new(at), b"entry", None)
            .await
            .unwrap();
    }
    let whole =
        "SELECT coalesce(string_agg(e::text, ',' ORDER BY seq), '') FROM llm_rollout_entries e";
    for (damage, undo, part) in [
        (
            "UPDATE llm_rollout_entries SET entry = 'entrx' WHERE seq = 2",
            "UPDATE llm_rollout_entries SET entry = 'entry' WHERE seq = 2",
            "position 2 of endpoint chat is damaged",
        ),
        (
            "UPDATE llm_rollout_entries SET seq = seq + 10 WHERE seq = 1; DELETE FROM llm_rollout_entries WHERE seq = 9",
            "UPDATE llm_rollout_entries SET seq = 1 WHERE seq = 11",
            "endpoint chat is damaged",
        ),
        (
            "UPDATE llm_rollout_endpoints SET fence = fence + 1",
            "UPDATE llm_rollout_endpoints SET fence = fence - 1",
            "its checksum is wrong",
        ),
    ] {
        cluster.sql(damage).unwrap();
        let before = cluster.sql(whole);
        let error = store.read(&chat(), Seq::new(0)).await.unwrap_err();
        assert!(
            error.kind() == ErrorKind::Permanent && error.to_string().contains(part),
            "{part}: {error}"
        );
        if part != "position 2 of endpoint chat is damaged" {
            assert_eq!(
                store.acquire(&chat()).await.unwrap_err().kind(),
                ErrorKind::Permanent
            );
        }
        assert_eq!(cluster.sql(whole), before, "nothing is overwritten");
        cluster.sql(undo).unwrap();
        println!("ok      {error}");
    }
    assert_eq!(log(&store).await.len(), 4);

    // A user without rights is told which.
    cluster
        .sql("CREATE USER guest; REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        .unwrap();
    let guest = PostgresStore::open(&format!(
        "host=127.0.0.1 port={} user=guest dbname=postgres",
        cluster.port
    ))
    .unwrap();
    let error = guest.acquire(&chat()).await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Permanent && error.to_string().contains("grant the user"),
        "{error}"
    );
    // A server that may not be written is no store.
    cluster
        .sql("ALTER SYSTEM SET default_transaction_read_only = on")
        .unwrap();
    cluster.sql("SELECT pg_reload_conf()").unwrap();
    let error = until("a server that is read only", async || {
        cluster.open().acquire(&chat()).await.err()
    })
    .await;
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    println!("ok      read only: {error}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: e2e/run postgres"]
async fn users_are_taken_off_while_the_store_is_down_and_the_log_is_right_afterwards() {
    let cluster = Cluster::new();
    let server = cluster.start().await;
    let endpoint = Endpoint::builder("chat", cluster.open(), Bootstrap(version(1)));
    let endpoint = endpoint.open().await.unwrap();
    let users = Users::begin(&endpoint);
    let share = async |wanted: std::ops::Range<usize>| {
        let began = Instant::now();
        until(&format!("a share of {wanted:?}"), async || {
            wanted.contains(&users.candidate_share()).then_some(())
        })
        .await;
        began.elapsed().as_secs_f64()
    };
    let mut server = Some(server);
    for (major, by_hand) in [(2, false), (3, true)] {
        let name = RolloutId::new(format!("to-v{major}")).unwrap();
        let run = endpoint
            .submit(name.clone(), version(major), plan("10m", "1s"))
            .await
            .unwrap();
        share(400..600).await;
        // Evidence is looked at from here on: before that there is none, and what bounds the harm is grace and lease.
        until("the first look", async || {
            let ledger = endpoint.status().ledger;
            let epoch = ledger.rollout.as_ref()?.state().split.epoch;
            let seen = ledger.checkpoint.as_ref()?.epoch == epoch;
            (seen && users.served(major) > 200).then_some(())
        })
        .await;
        cluster.signal("KILL");
        server.take().unwrap().ended().await;
        let entries = endpoint.status().ledger.next;
        let exposed = users.served(major);
        if by_hand {
            // The router keeps its record in the same store: it obeys, and cannot promise that it will remember.
            let said = run.abort("ana", "users complain").await;
            assert!(
                matches!(said, Ok(()) | Err(CommandError::StoreUnavailable)),
                "{said:?}"
            );
        } else {
            users.broken(major);
        }
        let off = share(0..1).await;
        let harmed = users.served(major) - exposed;
        assert!(
            run.rollout()
                .is_some_and(|rollout| !rollout.state().phase.is_end()),
            "it ends in the log"
        );
        assert_eq!(
            endpoint.status().ledger.next,
            entries,
            "nothing was logged meanwhile"
        );
        server = Some(cluster.start().await);
        let end = run.finished().await.unwrap();
        assert_eq!(end.phase, Phase::RolledBack);
        let as_meant = match end.cause.as_ref().unwrap() {
            Cause::Operator { by, .. } => by_hand && by == "ana",
            Cause::Gate { .. } => !by_hand,
            _ => false,
        };
        assert!(as_meant, "{:?}", end.cause);
        // Whoever reads the log now sees the same.
        let incident = incident(&cluster.open(), &chat(), &name)
            .await
            .unwrap()
            .unwrap();
        let in_force = cluster.open().split(&chat()).await.unwrap().unwrap();
        assert_eq!((in_force.baseline, in_force.candidate), (version(1), None));
        assert_eq!(users.candidate_share(), 0);
        println!(
            "ok      scenario 10: store gone, {}: users off after {off:.1} s ({harmed} requests), logged once it was back: {}",
            if by_hand {
                "aborted by hand"
            } else {
                "harm found"
            },
            incident.cause.unwrap()
        );
        users.broken(0);
    }
    users.finish().await;
}
