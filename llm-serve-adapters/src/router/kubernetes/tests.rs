use super::*;
use crate::testing::{self, router::Subject};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use llm_rollout::{Epoch, RolloutId, Seq};
use serde_json::json;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex as StdMutex;
use std::task::{Context, Poll};

const LEASE: Duration = Duration::from_secs(60);

fn version(n: u8) -> VersionId {
    format!("chat/v{n}.0.0-{}", n.to_string().repeat(64))
        .parse()
        .unwrap()
}

/// An object as an API server shows it to those who ask for JSON.
fn recorded(kind: Kind) -> Value {
    let text = match kind {
        Kind::HttpRoute => include_str!("httproute.json"),
        Kind::VirtualService => include_str!("virtualservice.json"),
    };
    serde_json::from_str(text).unwrap()
}

/// What happens to the next requests, in their order.
#[derive(Debug, Clone)]
enum Fault {
    /// Nobody listens.
    Unreachable,
    /// What is written is carried out, and the answer is lost.
    Lost,
    /// What is written does not arrive.
    Cut,
    /// What is written is carried out, and the answer takes its time.
    Slow(Duration),
    /// Somebody else writes first.
    Meanwhile,
    /// It is refused with this status.
    Refused(u16, &'static str),
}

/// An API server with one object. It knows what counts here: versions of resources, generations, who may write what.
#[derive(Clone)]
struct Server(Arc<StdMutex<Inside>>);

struct Inside {
    object: Value,
    faults: VecDeque<Fault>,
    written: u32,
    /// Whether the gateway follows at once.
    follows: bool,
}

impl Server {
    fn with(kind: Kind) -> Self {
        Self(Arc::new(StdMutex::new(Inside {
            object: recorded(kind),
            faults: VecDeque::new(),
            written: 0,
            follows: true,
        })))
    }

    fn inside<T>(&self, f: impl FnOnce(&mut Inside) -> T) -> T {
        f(&mut self.0.lock().unwrap())
    }

    fn will(&self, fault: Fault) {
        self.inside(|inside| inside.faults.push_back(fault));
    }

    /// As somebody with `kubectl edit`.
    fn edit(&self, change: impl FnOnce(&mut Value)) {
        self.inside(|inside| {
            let mut object = inside.object.clone();
            change(&mut object);
            inside.put(object);
        });
    }

    /// The weights of `chat-v1` and `chat-v2`, in this order.
    fn weights(&self) -> (u64, u64) {
        self.inside(|inside| {
            let targets = inside
                .object
                .pointer("/spec/rules/0/backendRefs")
                .or_else(|| inside.object.pointer("/spec/http/0/route"))
                .unwrap();
            let weight = |n: usize| targets[n]["weight"].as_u64().unwrap();
            (weight(0), weight(1))
        })
    }

    fn written(&self) -> u32 {
        self.inside(|inside| inside.written)
    }

    fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    fn router(&self, kind: Kind) -> KubernetesRouter {
        let first = Split::steady(None, version(1), Epoch::default());
        let id = RouterId::new("edge").unwrap();
        let (client, [v1, v2]) = (self.client(), ["chat-v1", "chat-v2"]);
        let builder = match kind {
            Kind::HttpRoute => KubernetesRouter::http_route(id, client, "models", "chat", first),
            Kind::VirtualService => {
                KubernetesRouter::virtual_service(id, client, "models", "chat", first)
            }
        };
        let (v1, v2) = match kind {
            Kind::HttpRoute => (v1.to_owned(), v2.to_owned()),
            Kind::VirtualService => ("chat/v1".to_owned(), "chat/v2".to_owned()),
        };
        builder
            .target(version(1), v1)
            .target(version(2), v2)
            .open()
            .unwrap()
    }
}

impl Inside {
    fn put(&mut self, mut object: Value) {
        let version: u64 = self.object["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        object["metadata"]["resourceVersion"] = json!((version + 1).to_string());
        let generation = self.object["metadata"]["generation"].as_u64().unwrap();
        let changed = object["spec"] != self.object["spec"];
        object["metadata"]["generation"] = json!(generation + u64::from(changed));
        // A replacement does not reach the status, which is the gateway's.
        object["status"] = self.object["status"].clone();
        self.object = object;
        if self.follows {
            self.follow();
        }
    }

    fn follow(&mut self) {
        let generation = self.object["metadata"]["generation"].clone();
        let parents = self
            .object
            .pointer_mut("/status/parents")
            .and_then(Value::as_array_mut);
        for parent in parents.into_iter().flatten() {
            for condition in parent["conditions"].as_array_mut().unwrap() {
                condition["observedGeneration"] = generation.clone();
            }
        }
    }

    fn answer(&mut self, method: &http::Method, body: &[u8]) -> (u16, Value) {
        let failed = |code: u16, reason: &str| {
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "said so",
                                "reason": reason, "code": code});
            (code, status)
        };
        if method == http::Method::GET {
            return (200, self.object.clone());
        }
        let object: Value = serde_json::from_slice(body).unwrap();
        if object["metadata"]["resourceVersion"] != self.object["metadata"]["resourceVersion"] {
            return failed(409, "Conflict");
        }
        self.written += 1;
        self.put(object);
        (200, self.object.clone())
    }
}

type Answer = std::result::Result<http::Response<Full<Bytes>>, std::io::Error>;

impl tower_service::Service<http::Request<kube::client::Body>> for Server {
    type Response = http::Response<Full<Bytes>>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<kube::client::Body>) -> Self::Future {
        let me = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let path = head.uri.path();
            assert!(
                path.starts_with("/apis/") && path.contains("/namespaces/models/"),
                "{path}"
            );
            assert!(path.ends_with("/chat"), "{path}");
            let gone = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
            let put = head.method == http::Method::PUT;
            let fault = me.inside(|inside| match inside.faults.front() {
                // These are about writing.
                Some(Fault::Lost | Fault::Cut | Fault::Slow(_) | Fault::Meanwhile) if !put => None,
                _ => inside.faults.pop_front(),
            });
            if matches!(fault, Some(Fault::Unreachable | Fault::Cut)) {
                return Err(gone());
            }
            if matches!(fault, Some(Fault::Meanwhile)) {
                me.edit(|object| object["metadata"]["labels"]["touched"] = json!("yes"));
            }
            let (code, said) = match fault {
                Some(Fault::Refused(code, reason)) => {
                    let status = json!({"kind": "Status", "status": "Failure", "message": "said so", "reason": reason, "code": code});
                    (code, status)
                }
                _ => me.inside(|inside| inside.answer(&head.method, &body)),
            };
            match fault {
                Some(Fault::Lost) => return Err(gone()),
                Some(Fault::Slow(by)) => tokio::time::sleep(by).await,
                _ => {}
            }
            let response = http::Response::builder().status(code);
            Ok(response.body(Full::from(said.to_string())).unwrap())
        })
    }
}

/// An order of this fence for the rollout from version 1 to version 2.
fn order(fence: u64, seq: u64, direction: Direction, points: u16, last: &RouterState) -> Order {
    let rollout = Some(RolloutId::new("chat-v2").unwrap());
    let baseline = version(if direction == Direction::Promote {
        2
    } else {
        1
    });
    let mut split = Split::steady(rollout, baseline, Epoch::new(seq));
    if points > 0 {
        split.candidate = Some(version(2));
        split.share = Share::new(points).unwrap();
        split.lease = Some(LEASE);
    }
    Order {
        at: Position {
            fence: Fence::new(fence),
            seq: Seq::new(seq),
        },
        direction,
        split,
        clock: last.clock,
    }
}

async fn raised(router: &KubernetesRouter, fence: u64, points: u16) -> RouterState {
    let state = router.observe(Fence::new(fence)).await.unwrap();
    let order = order(
        fence,
        state.at.seq.get() + 1,
        Direction::Forward,
        points,
        &state,
    );
    router.set(&order).await.unwrap()
}

struct Conforming {
    server: Server,
    kind: Kind,
    router: StdMutex<Option<Arc<KubernetesRouter>>>,
}

#[async_trait]
impl Subject for Conforming {
    fn versions(&self) -> [VersionId; 2] {
        [version(1), version(2)]
    }

    async fn open(&self) -> Result<Arc<dyn TrafficRouter>> {
        let router = Arc::new(self.server.router(self.kind));
        *self.router.lock().unwrap() = Some(Arc::clone(&router));
        Ok(router)
    }

    async fn ask(&self) -> Option<VersionId> {
        match self.server.weights() {
            (0, 0) => None,
            (0, _) => Some(version(2)),
            _ => Some(version(1)),
        }
    }

    async fn force_baseline(&self) -> Option<Result<()>> {
        let router = self.router.lock().unwrap().clone()?;
        Some(router.force_baseline("test").await)
    }

    async fn wait(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

#[tokio::test(start_paused = true)]
async fn both_objects_pass_the_suite_of_routers() {
    for kind in [Kind::HttpRoute, Kind::VirtualService] {
        let subject = Conforming {
            server: Server::with(kind),
            kind,
            router: StdMutex::default(),
        };
        testing::router::suite(&subject).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_but_weights_and_the_annotation_is_touched_and_renewals_write_nothing() {
    for (kind, rest, share) in [
        (Kind::HttpRoute, 7_500, 2_500),
        (Kind::VirtualService, 75, 25),
    ] {
        let server = Server::with(kind);
        let router = server.router(kind);
        let state = raised(&router, 5, 2_500).await;
        assert_eq!(
            (server.weights(), state.split.share.basis_points()),
            ((rest, share), 2_500)
        );
        let written = server.written();
        for _ in 0..10 {
            tokio::time::sleep(LEASE / 3).await;
            let state = router.observe(Fence::new(5)).await.unwrap();
            router.renew(state.at, state.clock).await.unwrap();
        }
        assert_eq!(
            (server.written(), server.weights()),
            (written, (rest, share))
        );

        let mut now = server.inside(|inside| inside.object.clone());
        let before = recorded(kind);
        let annotations = now["metadata"]["annotations"].as_object_mut().unwrap();
        assert!(annotations.remove(object::ANNOTATION).is_some());
        for field in ["resourceVersion", "generation"] {
            now["metadata"][field] = before["metadata"][field].clone();
        }
        now["status"] = before["status"].clone();
        kind.write(&mut now, &["chat-v1", "chat/v1", "chat-v2", "chat/v2"], &[]);
        let mut unweighted = before;
        kind.write(
            &mut unweighted,
            &["chat-v1", "chat/v1", "chat-v2", "chat/v2"],
            &[],
        );
        assert_eq!(now, unweighted);
    }
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_writes_at_the_same_time_is_kept() {
    let server = Server::with(Kind::HttpRoute);
    let router = server.router(Kind::HttpRoute);
    let state = router.observe(Fence::new(5)).await.unwrap();
    server.will(Fault::Meanwhile);
    server.will(Fault::Meanwhile);
    let raise = order(5, 1, Direction::Forward, 100, &state);
    assert_eq!(router.set(&raise).await.unwrap().split, raise.split);
    assert_eq!(server.weights(), (9_900, 100));
    assert_eq!(
        server.inside(|i| i.object["metadata"]["labels"]["touched"].clone()),
        "yes"
    );
    // Again and again: it gives up, and nothing is written.
    for _ in 0..TRIES {
        server.will(Fault::Meanwhile);
    }
    let more = order(5, 2, Direction::Forward, 5_000, &state);
    let error = router.set(&more).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert_eq!(server.weights(), (9_900, 100));
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_without_anybody_and_as_soon_as_it_can_be_told() {
    let server = Server::with(Kind::HttpRoute);
    let router = server.router(Kind::HttpRoute);
    raised(&router, 5, 10_000).await;
    assert_eq!(server.weights(), (0, 10_000));
    // Dropped: the guard goes on.
    drop(router);
    tokio::time::sleep(LEASE.mul_f64(0.99)).await;
    assert_eq!(server.weights(), (0, 10_000));
    for _ in 0..3 {
        server.will(Fault::Unreachable);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(server.weights(), (0, 10_000));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(server.weights(), (10_000, 0));
    // And then it rests.
    let written = server.written();
    server.edit(|object| object["spec"]["rules"][0]["backendRefs"][1]["weight"] = json!(7));
    tokio::time::sleep(LEASE).await;
    assert_eq!((server.written(), server.weights()), (written, (10_000, 7)));
}

#[tokio::test(start_paused = true)]
async fn replicas_take_over_from_each_other_by_their_fences() {
    let server = Server::with(Kind::HttpRoute);
    let (one, two) = (
        server.router(Kind::HttpRoute),
        server.router(Kind::HttpRoute),
    );
    let state = raised(&one, 5, 5_000).await;
    // Whoever takes over takes the share away that it did not give.
    let found = two.observe(Fence::new(6)).await.unwrap();
    assert!(
        found.lapsed && found.clock.boot != state.clock.boot,
        "{found:?}"
    );
    assert_eq!(server.weights(), (10_000, 0));
    let again = order(6, 2, Direction::Forward, 2_500, &found);
    two.set(&again).await.unwrap();
    for refused in [
        one.observe(Fence::new(5)).await,
        one.renew(state.at, state.clock).await,
        one.set(&order(5, 3, Direction::Forward, 10_000, &state))
            .await,
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Fenced);
    }
    // The guard of the first leaves alone what is not its own.
    tokio::time::sleep(LEASE / 2).await;
    let state = two.observe(Fence::new(6)).await.unwrap();
    two.renew(state.at, state.clock).await.unwrap();
    tokio::time::sleep(LEASE / 2 + Duration::from_secs(5)).await;
    assert_eq!(server.weights(), (7_500, 2_500));
    // Going back is for everybody.
    let back = order(5, 4, Direction::Back, 0, &state);
    let gone = one.set(&back).await.unwrap();
    assert_eq!((gone.mark.is_some(), server.weights()), (true, (10_000, 0)));
    let refused = two
        .set(&order(6, 5, Direction::Forward, 100, &gone))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("go back"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_lost_is_found_again() {
    let server = Server::with(Kind::HttpRoute);
    let router = server.router(Kind::HttpRoute);
    let state = router.observe(Fence::new(5)).await.unwrap();
    server.will(Fault::Lost);
    let raise = order(5, 1, Direction::Forward, 5_000, &state);
    assert_eq!(
        router.set(&raise).await.unwrap_err().kind(),
        ErrorKind::Transient
    );
    let written = server.written();
    let found = router.observe(Fence::new(5)).await.unwrap();
    assert_eq!(
        (found.at, &found.split, found.lapsed),
        (raise.at, &raise.split, false)
    );
    assert_eq!(server.written(), written);
    // It did not arrive at all: the next exchange carries it out, as if it had come late.
    server.will(Fault::Cut);
    let more = order(5, 2, Direction::Forward, 7_500, &found);
    assert!(router.set(&more).await.is_err());
    assert_eq!(server.weights(), (5_000, 5_000));
    let found = router.observe(Fence::new(5)).await.unwrap();
    assert_eq!(
        (found.split, server.weights()),
        (more.split, (2_500, 7_500))
    );
}

#[tokio::test(start_paused = true)]
async fn an_exchange_that_nobody_waits_for_goes_on_to_its_end() {
    let server = Server::with(Kind::HttpRoute);
    let router = server.router(Kind::HttpRoute);
    let state = raised(&router, 5, 5_000).await;
    let moment = Duration::from_millis(100);
    server.will(Fault::Slow(10 * moment));
    let back = order(5, 2, Direction::Back, 0, &state);
    let waited = tokio::time::timeout(moment, router.set(&back)).await;
    assert!(waited.is_err() && server.weights() == (10_000, 0));
    let state = router.observe(Fence::new(5)).await.unwrap();
    assert!(state.mark.is_some() && state.at == back.at, "{state:?}");
    server.will(Fault::Slow(10 * moment));
    let end = order(5, 3, Direction::End, 0, &state);
    router.set(&end).await.unwrap();
    // A raise whose answer nobody heard ends as well.
    let state = router.observe(Fence::new(5)).await.unwrap();
    server.will(Fault::Slow(10 * moment));
    let raise = order(5, 4, Direction::Forward, 5_000, &state);
    let waited = tokio::time::timeout(moment, router.set(&raise)).await;
    assert!(waited.is_err() && server.weights() == (5_000, 5_000));
    tokio::time::sleep(LEASE).await;
    tokio::time::sleep(GUARD).await;
    assert_eq!(server.weights(), (10_000, 0));
}

#[tokio::test(start_paused = true)]
async fn going_back_counts_while_nobody_can_be_told() {
    let server = Server::with(Kind::HttpRoute);
    let router = server.router(Kind::HttpRoute);
    let state = raised(&router, 5, 5_000).await;
    for forced in [false, true] {
        for _ in 0..2 {
            server.will(Fault::Unreachable);
        }
        let error = if forced {
            router.force_baseline("page").await.unwrap_err()
        } else {
            let back = order(5, 2, Direction::Back, 0, &state);
            router.set(&back).await.unwrap_err()
        };
        assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(server.weights(), (10_000, 0));
        let state = router.observe(Fence::new(5)).await.unwrap();
        assert_eq!(
            (state.mark.is_some(), state.latch.is_some()),
            (true, forced)
        );
    }
    // Another process finds both.
    let state = server
        .router(Kind::HttpRoute)
        .observe(Fence::new(6))
        .await
        .unwrap();
    assert!(
        state.mark.is_some() && state.latch == Some(version(1)),
        "{state:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_route_counts_once_its_gateway_serves_it() {
    let server = Server::with(Kind::HttpRoute);
    let router = server.router(Kind::HttpRoute);
    let state = router.observe(Fence::new(5)).await.unwrap();
    server.inside(|inside| inside.follows = false);
    let raise = order(5, 1, Direction::Forward, 5_000, &state);
    let error = router.set(&raise).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(error.to_string().contains("generation"), "{error}");
    assert!(router.observe(Fence::new(5)).await.is_err());
    server.inside(Inside::follow);
    let state = router.observe(Fence::new(5)).await.unwrap();
    assert_eq!(state.split, raise.split);
}

#[tokio::test(start_paused = true)]
async fn what_is_changed_by_hand_is_told_and_not_prolonged() {
    let server = Server::with(Kind::HttpRoute);
    let router = server.router(Kind::HttpRoute);
    let state = raised(&router, 5, 1_000).await;
    let turn = |v1: u64, v2: u64| {
        server.edit(|object| {
            let targets = &mut object["spec"]["rules"][0]["backendRefs"];
            (targets[0]["weight"], targets[1]["weight"]) = (json!(v1), json!(v2));
        });
    };
    turn(1, 9);
    let seen = router.observe(Fence::new(5)).await.unwrap();
    assert_eq!(seen.split.share.basis_points(), 9_000);
    let seen = router.renew(state.at, state.clock).await.unwrap();
    assert_eq!(seen.split.share.basis_points(), 9_000);
    assert_eq!(server.weights(), (1, 9));
    turn(0, 0);
    let error = router.observe(Fence::new(5)).await.unwrap_err();
    assert!(error.to_string().contains("serves nobody"), "{error}");
    turn(0, 3);
    router
        .set(&order(5, 2, Direction::Back, 0, &state))
        .await
        .unwrap();
    assert_eq!(server.weights(), (10_000, 0));
    // Made anew, without the annotation, as it was at first.
    server.edit(|object| {
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.remove("annotations");
    });
    let state = router.observe(Fence::new(5)).await.unwrap();
    assert!(state.mark.is_some(), "{state:?}");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_served_or_asked_is_named() {
    let server = Server::with(Kind::VirtualService);
    let router = server.router(Kind::VirtualService);
    let state = router.observe(Fence::new(5)).await.unwrap();
    let mut finer = order(5, 1, Direction::Forward, 150, &state);
    let mut others = Vec::new();
    others.push((finer.clone(), "whole percents"));
    finer.split.share = Share::new(100).unwrap();
    finer.split.candidate = Some(version(3));
    others.push((finer.clone(), "no target"));
    finer.split.candidate = Some(version(2));
    finer.split.mirror = Share::ALL;
    others.push((finer, "mirror"));
    for (bad, part) in others {
        let error = router.set(&bad).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    for (code, reason, kind, part) in [
        (
            403,
            "Forbidden",
            ErrorKind::Permanent,
            "verbs get and update",
        ),
        (404, "NotFound", ErrorKind::Permanent, "create it first"),
        (422, "Invalid", ErrorKind::Permanent, "422 Invalid: said so"),
        (429, "TooManyRequests", ErrorKind::Transient, "429"),
        (500, "InternalError", ErrorKind::Transient, "500"),
    ] {
        server.will(Fault::Refused(code, reason));
        let error = router.observe(Fence::new(5)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(server.weights(), (100, 0));
    // A rule that has no place for the candidate.
    server.edit(|object| {
        object["spec"]["http"][0]["route"]
            .as_array_mut()
            .unwrap()
            .truncate(1);
    });
    let raise = order(5, 1, Direction::Forward, 100, &state);
    let error = router.set(&raise).await.unwrap_err();
    assert!(error.to_string().contains("\"chat/v2\": add it"), "{error}");
    // An annotation that nobody can read is not overwritten.
    server.edit(|object| object["metadata"]["annotations"][object::ANNOTATION] = json!("{"));
    let error = router.observe(Fence::new(5)).await.unwrap_err();
    assert!(error.to_string().contains("cannot be read"), "{error}");

    let first = Split::steady(None, version(1), Epoch::default());
    let builder = KubernetesRouter::http_route(
        RouterId::new("x").unwrap(),
        server.client(),
        "a",
        "b",
        first,
    );
    assert!(
        builder
            .target(version(1), "v")
            .target(version(2), "v")
            .open()
            .is_err()
    );
}
