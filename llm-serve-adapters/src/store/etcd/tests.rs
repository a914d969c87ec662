//! A cluster of one on the loopback interface that does what etcd does with the requests of this store, and fails as told.

use super::*;
use crate::host::ErrorKind;
use crate::testing;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;
use tokio::net::TcpListener;

#[derive(Default)]
struct Etcd {
    revision: u64,
    /// Value, revision at creation, revision at the last write.
    keys: BTreeMap<Vec<u8>, (Vec<u8>, u64, u64)>,
    /// What the next requests are refused with.
    refusals: Vec<(u16, &'static str)>,
    /// Tokens are demanded, and this one is good.
    token: Option<u64>,
}

fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

impl Etcd {
    fn transact(&mut self, txn: &Value) -> Value {
        let holds = |compare: &Value| {
            let found = self.keys.get(&bytes(&compare["key"]));
            let (stated, found) = match compare["target"].as_str().unwrap() {
                "MOD" => (&compare["mod_revision"], found.map_or(0, |f| f.2)),
                "CREATE" => (&compare["create_revision"], found.map_or(0, |f| f.1)),
                other => panic!("{other}"),
            };
            stated.as_str().unwrap().parse() == Ok(found)
        };
        let none = Vec::new();
        if !txn["compare"].as_array().unwrap_or(&none).iter().all(holds) {
            // Fields of no value are left out.
            return json!({"header": {}});
        }
        let operations = txn["success"].as_array().unwrap();
        if operations.iter().any(|o| o.get("request_put").is_some()) {
            self.revision += 1;
        }
        let responses: Vec<_> = operations.iter().map(|o| self.operate(o)).collect();
        json!({"header": {}, "succeeded": true, "responses": responses})
    }

    fn operate(&mut self, operation: &Value) -> Value {
        if let Some(put) = operation.get("request_put") {
            let key = bytes(&put["key"]);
            let created = self.keys.get(&key).map_or(self.revision, |k| k.1);
            let value = (bytes(&put["value"]), created, self.revision);
            self.keys.insert(key, value);
            return json!({"response_put": {"header": {}}});
        }
        let range = &operation["request_range"];
        let from = bytes(&range["key"]);
        let end = match range.get("range_end") {
            Some(end) => bytes(end),
            None => [from.clone(), vec![0]].concat(),
        };
        let keys_only = range["keys_only"] == true;
        let mut found: Vec<_> = self
            .keys
            .range(from..end)
            .map(|(key, (value, _, written))| {
                let value = if keys_only { "" } else { &STANDARD.encode(value) };
                json!({"key": STANDARD.encode(key), "value": value, "mod_revision": written.to_string()})
            })
            .collect();
        if range["sort_order"] == "DESCEND" {
            found.reverse();
        }
        found.truncate(range["limit"].as_str().unwrap().parse().unwrap());
        json!({"response_range": {"header": {}, "kvs": found}})
    }
}

type Shared = Arc<Mutex<Etcd>>;

async fn answer(
    State(etcd): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
    body: String,
) -> (StatusCode, String) {
    let mut etcd = etcd.lock().unwrap();
    if let Some((status, message)) = etcd.refusals.pop() {
        // As etcd does it: a trailer stands after the JSON.
        let body = json!({"error": message, "message": message, "code": 3}).to_string();
        let body = format!("{body}Grpc-Trailer-Content-Type: application/grpc\r\n");
        return (StatusCode::from_u16(status).unwrap(), body);
    }
    let body: Value = serde_json::from_str(&body).unwrap();
    let reply = match uri.path() {
        "/v3/auth/authenticate" => {
            assert_eq!(body, json!({"name": "root", "password": "S3CRET"}));
            json!({"header": {}, "token": etcd.token.unwrap().to_string()})
        }
        "/v3/kv/txn" => {
            let token = etcd.token.map(|t| t.to_string());
            let given = headers.get("authorization").map(|v| v.to_str().unwrap());
            if token.is_some() && given != token.as_deref() {
                let body = json!({"message": "etcdserver: invalid auth token", "code": 16});
                return (StatusCode::UNAUTHORIZED, body.to_string());
            }
            etcd.transact(&body)
        }
        other => panic!("{other}"),
    };
    (StatusCode::OK, reply.to_string())
}

async fn cluster() -> (Shared, String) {
    let etcd = Shared::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().fallback(answer).with_state(Arc::clone(&etcd));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (etcd, address)
}

fn chat() -> EndpointId {
    EndpointId::new("chat").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    let (_etcd, address) = cluster().await;
    testing::store::suite(async || {
        Ok(Arc::new(EtcdStore::open(&[&address], "test/")?) as Arc<dyn StateStore>)
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_what_to_do() {
    let (etcd, address) = cluster().await;
    let store = EtcdStore::open(&[&address], "").unwrap();
    for (status, message, kind, part) in [
        (503, "etcdserver: no leader", ErrorKind::Transient, "leader"),
        (
            429,
            "etcdserver: mvcc: database space exceeded",
            ErrorKind::Transient,
            "no space",
        ),
        (
            400,
            "etcdserver: request is too large",
            ErrorKind::Permanent,
            "too large",
        ),
        (
            403,
            "etcdserver: permission denied",
            ErrorKind::Permanent,
            "role",
        ),
    ] {
        etcd.lock().unwrap().refusals = vec![(status, message)];
        let error = store.acquire(&chat()).await.unwrap_err();
        assert!(
            error.kind() == kind && error.to_string().contains(part),
            "{error}"
        );
    }
    assert_eq!(store.acquire(&chat()).await.unwrap().fence, Fence::new(1));
    for members in [&[][..], &["chat"], &["http://x", "ftp://y"]] {
        let error = EtcdStore::open(members, "").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_gone_gives_way_to_the_next() {
    let (_etcd, address) = cluster().await;
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = format!("http://{}", port.local_addr().unwrap());
    drop(port);
    let store = EtcdStore::open(&[&gone, &address], "").unwrap();
    assert_eq!(store.acquire(&chat()).await.unwrap().fence, Fence::new(1));
    let alone = EtcdStore::open(&[&gone], "").unwrap();
    let error = alone.split(&chat()).await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Transient && error.to_string().contains("cannot be reached"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_has_run_out_is_renewed_and_never_shown() {
    let (etcd, address) = cluster().await;
    etcd.lock().unwrap().token = Some(1);
    let store = EtcdStore::open_as(
        &[&address],
        "",
        EtcdAccess::default().user("root", "S3CRET"),
    )
    .unwrap();
    store.acquire(&chat()).await.unwrap();
    etcd.lock().unwrap().token = Some(2);
    store.acquire(&chat()).await.unwrap();
    assert!(!format!("{store:?}").contains("S3CRET"));
    let error = EtcdStore::open(&[&address], "")
        .unwrap()
        .acquire(&chat())
        .await
        .unwrap_err();
    assert!(
        error.kind() == ErrorKind::Permanent && error.to_string().contains("user and password"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_named() {
    let (etcd, address) = cluster().await;
    let store = EtcdStore::open(&[&address], "p/").unwrap();
    let fence = store.acquire(&chat()).await.unwrap().fence;
    for at in 0..3 {
        store
            .append(&chat(), fence, Seq::new(at), b"entry", None)
            .await
            .unwrap();
    }
    let key = |part: &str| format!("p/chat/{part}").into_bytes();
    for (place, damage, part) in [
        (
            "log/00000000000000000001",
            Some("xx"),
            "position 1 of endpoint chat is damaged",
        ),
        (
            "log/00000000000000000001",
            None,
            "position 1 of endpoint chat is missing",
        ),
        (
            "log/00000000000000000002",
            None,
            "it counts 3 entries and the log has 2",
        ),
        ("head", Some("xx"), "it is no head"),
        ("head", None, "it counts 0 entries and the log has 3"),
    ] {
        let whole = etcd.lock().unwrap().keys.clone();
        match damage {
            None => drop(etcd.lock().unwrap().keys.remove(&key(place))),
            Some(text) => {
                etcd.lock().unwrap().keys.get_mut(&key(place)).unwrap().0 = text.into();
            }
        }
        let error = store.read(&chat(), Seq::new(0)).await.unwrap_err();
        assert!(
            error.kind() == ErrorKind::Permanent && error.to_string().contains(part),
            "{part}: {error}"
        );
        etcd.lock().unwrap().keys = whole;
    }
    let newer = br#"{"format":"2.0","fence":1,"next":3,"split":null,"sum":0}"#;
    etcd.lock().unwrap().keys.get_mut(&key("head")).unwrap().0 = newer.to_vec();
    let error = store.acquire(&chat()).await.unwrap_err();
    assert!(error.to_string().contains("format 2.0"), "{error}");
    let long = vec![0; EtcdStore::MAX_ENTRY_BYTES + 1];
    etcd.lock().unwrap().keys.clear();
    let fence = store.acquire(&chat()).await.unwrap().fence;
    let error = store
        .append(&chat(), fence, Seq::new(0), &long, None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
}
