//! Logs in a real etcd: the rules of a store, a server that is killed, hangs, is full, is damaged.

use crate::process::{Process, free_port, ready, until, version_of};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use llm_rollout::{EndpointId, Fence, Seq};
use llm_serve_adapters::host::{ErrorKind, StateStore};
use llm_serve_adapters::store::EtcdStore;
use llm_serve_adapters::testing;
use std::sync::Arc;
use tempfile::TempDir;

struct Member {
    folder: TempDir,
    port: u16,
    peers: u16,
}

impl Member {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            port: free_port(),
            peers: free_port(),
        }
    }

    async fn start(&self, more: &[&str]) -> Process {
        let (clients, peers) = (self.address(), format!("http://127.0.0.1:{}", self.peers));
        let alone = format!("one={peers}");
        let mut args = vec!["--name", "one", "--data-dir", "data"];
        args.extend(["--listen-client-urls", &clients]);
        args.extend(["--advertise-client-urls", &clients]);
        args.extend(["--listen-peer-urls", &peers]);
        args.extend(["--initial-advertise-peer-urls", &peers]);
        args.extend(["--initial-cluster", &alone]);
        args.extend(more);
        let process = Process::start(self.folder.path(), "etcd", &args);
        ready(self.port, "/health").await;
        process
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn open(&self) -> EtcdStore {
        EtcdStore::open(&[&self.address()], "rollouts/").unwrap()
    }

    /// Writes over a key, as something else than the store would.
    async fn put(&self, key: &str, value: &[u8]) {
        let (key, value) = (STANDARD.encode(key), STANDARD.encode(value));
        let body = format!("{{\"key\":\"{key}\",\"value\":\"{value}\"}}");
        let put = crate::process::http(self.port, "POST", "/v3/kv/put", &body).await;
        assert_eq!(put.unwrap().0, 200);
    }
}

fn chat() -> EndpointId {
    EndpointId::new("chat").unwrap()
}

async fn log(store: &EtcdStore) -> Vec<Vec<u8>> {
    let page = store.read(&chat(), Seq::new(0)).await.unwrap();
    page.entries.into_iter().map(|(_, entry)| entry).collect()
}

#[tokio::test]
#[ignore = "needs etcd: e2e/run etcd"]
async fn it_keeps_to_the_rules_of_a_store() {
    let member = Member::new();
    let _server = member.start(&[]).await;
    let began = std::time::Instant::now();
    testing::store::suite(async || Ok(Arc::new(member.open()) as Arc<dyn StateStore>))
        .await
        .unwrap();
    println!(
        "ok      conformance suite of stores: {:.1} s",
        began.elapsed().as_secs_f64()
    );
    crate::verified("etcd", "etcd", &version_of("etcd", "--version"));

    // Four hosts own a new endpoint at once.
    let stores: Vec<_> = (0..4).map(|_| member.open()).collect();
    let endpoint = chat();
    let owned = stores.iter().map(|store| store.acquire(&endpoint));
    let owned = futures_util::future::join_all(owned).await;
    let mut fences: Vec<_> = owned.into_iter().map(|o| o.unwrap().fence).collect();
    let appends = stores.iter().zip(&fences);
    let appends =
        appends.map(|(store, fence)| store.append(&endpoint, *fence, Seq::new(0), b"mine", None));
    let outcomes = futures_util::future::join_all(appends).await;
    let newest = *fences.iter().max().unwrap();
    for (fence, outcome) in fences.iter().zip(&outcomes) {
        let kind = outcome
            .as_ref()
            .map_err(llm_serve_adapters::host::Error::kind);
        let expected = if *fence == newest {
            Ok(&())
        } else {
            Err(ErrorKind::Fenced)
        };
        assert_eq!(kind, expected, "{outcome:?}");
    }
    fences.sort_unstable();
    assert_eq!(fences, (1..=4).map(Fence::new).collect::<Vec<_>>());
    println!("ok      four hosts at once: fences 1 to 4, the newest appends");

    // An entry of the longest kind, which is near what etcd takes in one request.
    let store = member.open();
    let fence = store.acquire(&endpoint).await.unwrap().fence;
    let long = vec![7; EtcdStore::MAX_ENTRY_BYTES];
    store
        .append(&endpoint, fence, Seq::new(1), &long, None)
        .await
        .unwrap();
    assert_eq!(log(&store).await[1], long);
}

#[tokio::test]
#[ignore = "needs etcd: e2e/run etcd"]
async fn a_server_that_is_killed_or_hangs_loses_nothing() {
    let member = Member::new();
    let server = member.start(&[]).await;
    let store = member.open();
    let fence = store.acquire(&chat()).await.unwrap().fence;
    let append = async |at: u64, entry: &'static [u8]| {
        store
            .append(&chat(), fence, Seq::new(at), entry, None)
            .await
    };
    append(0, b"zero").await.unwrap();

    server.signal("KILL");
    server.ended().await;
    let error = append(1, b"one").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    println!("ok      server gone: {error}");
    let server = member.start(&[]).await;
    assert_eq!(log(&store).await, [b"zero"]);
    append(1, b"one").await.unwrap();
    println!("ok      started again: the same store goes on");

    // Whether the append took effect is unknown until the log is read again; the next owner settles it.
    server.signal("STOP");
    let began = std::time::Instant::now();
    let error = append(2, b"two").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    println!(
        "ok      hangs: error after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    server.signal("CONT");
    let owned = until("the store to answer again", async || {
        store.acquire(&chat()).await.ok()
    })
    .await;
    let late = append(2, b"late").await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Fenced, "{late}");
    store
        .append(&chat(), owned.fence, owned.next, b"next", None)
        .await
        .unwrap();
    let found = log(&store).await;
    assert_eq!(found[..2], [b"zero".to_vec(), b"one".to_vec()]);
    assert_eq!(found.last().map(Vec::as_slice), Some(&b"next"[..]));
}

#[tokio::test]
#[ignore = "needs etcd: e2e/run etcd"]
async fn a_full_server_refuses_and_damage_is_named() {
    let member = Member::new();
    // The smallest there is: some appends of the longest entries fill it.
    let server = member.start(&["--quota-backend-bytes", "16777216"]).await;
    let store = member.open();
    let fence = store.acquire(&chat()).await.unwrap().fence;
    let long = vec![7; EtcdStore::MAX_ENTRY_BYTES];
    let mut at = 0;
    let error = loop {
        match store
            .append(&chat(), fence, Seq::new(at), &long, None)
            .await
        {
            Ok(()) => at += 1,
            Err(error) => break error,
        }
        assert!(at < 64, "it never fills");
    };
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(error.to_string().contains("no space left"), "{error}");
    println!("ok      full after {at} entries of 1 MiB: {error}");
    let page = store.read(&chat(), Seq::new(0)).await.unwrap();
    assert!(!page.entries.is_empty(), "what is there can be read");
    drop(server);

    let member = Member::new();
    let _server = member.start(&[]).await;
    let store = member.open();
    let fence = store.acquire(&chat()).await.unwrap().fence;
    for at in 0..3 {
        store
            .append(&chat(), fence, Seq::new(at), b"entry", None)
            .await
            .unwrap();
    }
    for (key, part) in [
        (
            "log/00000000000000000001",
            "position 1 of endpoint chat is damaged",
        ),
        (
            "log/00000000000000000007",
            "it counts 3 entries and the log has 8",
        ),
        ("head", "it is no head"),
    ] {
        member.put(&format!("rollouts/chat/{key}"), b"xx").await;
        let error = store.read(&chat(), Seq::new(0)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent);
        assert!(error.to_string().contains(part), "{error}");
        println!("ok      {error}");
    }
    let error = store.acquire(&chat()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
}
