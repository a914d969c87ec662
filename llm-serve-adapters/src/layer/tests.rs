use super::*;

mod fail_over;
mod formats;
mod keys;

use crate::recorder::{Recorder, Row};
use crate::router::tests::durable::Virtual;
use crate::router::tests::{at, first, forward, version};
use crate::router::{InProcessRouter, Reason, Role, VersionSlot};
use bytes::{Buf, Bytes};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use llm_rollout::RouterId;
use std::future::{Ready, ready as done};
use std::sync::atomic::Ordering;
use std::time::Duration;

struct World {
    plane: DataPlane,
    clock: Arc<Virtual>,
}

impl World {
    fn new() -> Self {
        let clock = Arc::<Virtual>::default();
        let id = RouterId::new("r1").unwrap();
        let host: Arc<dyn crate::host::Clock> = Arc::clone(&clock) as _;
        let router = InProcessRouter::builder(id, first())
            .clock(host)
            .open()
            .unwrap();
        let recorder = Recorder::new(["thumbs_down", "bad_format"]).unwrap();
        Self {
            plane: DataPlane::new(Arc::new(router), Arc::new(recorder)),
            clock,
        }
    }

    fn at(&self, ms: u64) {
        self.clock.0.store(ms, Ordering::Relaxed);
    }

    fn service<F>(&self, reply: F) -> RolloutService<Handler<F>, Or<FromHeader, PerRequest>> {
        let layer = RolloutLayer::new(&self.plane).key(header("x-session-id").or_request());
        layer.layer(Handler(reply))
    }

    fn row(&self) -> Row {
        let slot = VersionSlot::find(&version(1)).unwrap();
        self.plane
            .recorder
            .snapshot()
            .unwrap()
            .version(slot, Role::Baseline)
            .unwrap()
    }

    fn ended(&self, class: OutcomeClass) -> bool {
        let row = self.row();
        (row.assigned(), row.finished(), row.ended(class)) == (1, 1, 1)
    }
}

/// A service that replies at once.
#[derive(Clone)]
struct Handler<F>(F);

impl<F, B, R, E> Service<Request<B>> for Handler<F>
where
    F: FnMut(&Request<B>) -> Result<Response<R>, E>,
{
    type Response = Response<R>;
    type Error = E;
    type Future = Ready<Result<Response<R>, E>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        done((self.0)(&request))
    }
}

type Answer<R> = Result<Response<R>, String>;

fn reply<R>(status: u16, kind: &str, body: R) -> Response<R> {
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, kind)
        .body(body)
        .unwrap()
}

fn frames(parts: &[&'static str]) -> impl Body<Data = Bytes, Error = String> + Unpin + use<> {
    let frames = parts.iter().map(|part| match *part {
        "!" => Err("the engine died".to_owned()),
        part => Ok(Frame::data(Bytes::from_static(part.as_bytes()))),
    });
    StreamBody::new(futures_util::stream::iter(frames.collect::<Vec<_>>()))
}

const PIECE: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hello\"}}]}\n\n";
const ROLE: &str =
    "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"completion_tokens\":42}}\n\n";
const DONE: &str = "data: [DONE]\n\n";
const ERROR: &str = "data: {\"error\":{\"message\":\"out of memory\"}}\n\n";

/// Runs one request to the end of its body; what it got, and what became of it.
async fn run(
    world: &World,
    status: u16,
    kind: &'static str,
    parts: &'static [&'static str],
) -> String {
    let mut service =
        world.service(move |_: &Request<()>| Answer::Ok(reply(status, kind, frames(parts))));
    let mut body = service.call(Request::new(())).await.unwrap().into_body();
    let mut text = String::new();
    while let Some(Ok(frame)) = body.frame().await {
        text += str::from_utf8(frame.data_ref().unwrap()).unwrap();
    }
    text
}

#[tokio::test]
async fn a_stream_passes_untouched_and_is_understood() {
    let world = World::new();
    let parts = &[ROLE, PIECE, PIECE, USAGE, DONE];
    let mut service = world.service(|request: &Request<()>| {
        let assignment = request.extensions().get::<Assignment>().unwrap();
        assert_eq!(assignment.decision().reason(), Reason::Assigned);
        assert_eq!(**assignment.version().unwrap().id(), version(1));
        assert!(assignment.flag("bad_format") && !assignment.flag("unknown"));
        Answer::Ok(reply(
            200,
            "text/event-stream; charset=utf-8",
            frames(parts),
        ))
    });
    let request = Request::builder()
        .header("x-session-id", "s")
        .body(())
        .unwrap();
    let response = service.call(request).await.unwrap();
    assert_eq!(
        response.headers()[VERSION_HEADER],
        version(1).reference().to_string()
    );
    let mut body = response.into_body();
    for (part, ms) in parts.iter().zip([20, 50, 70, 80, 90]) {
        assert_eq!(world.row().finished(), 0);
        world.at(ms);
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), part.as_bytes());
    }
    assert!(body.frame().await.is_none());
    assert!(world.ended(OutcomeClass::Ok));
    let row = world.row();
    assert_eq!(
        row.first_token(0.5),
        Some(Duration::from_millis(50)),
        "not the role, which is empty"
    );
    assert_eq!(row.tokens(), 42);
    assert_eq!(
        (row.flagged("bad_format"), row.flagged("thumbs_down")),
        (Some(1), Some(0))
    );
    assert_eq!(world.plane.recorder.in_flight(&version(1)), 0);
}

#[tokio::test]
async fn how_a_body_ends_decides() {
    const SSE: &str = "text/event-stream";
    const JSON: &str = "application/json";
    let cases: [(&'static str, &'static [&'static str], OutcomeClass); 10] = [
        (SSE, &[PIECE, DONE], OutcomeClass::Ok),
        (SSE, &[PIECE], OutcomeClass::MidStreamError),
        (SSE, &[], OutcomeClass::MidStreamError),
        (SSE, &[PIECE, ERROR, DONE], OutcomeClass::MidStreamError),
        (SSE, &[PIECE, "!"], OutcomeClass::MidStreamError),
        (
            SSE,
            &[
                "data: {\"choices\":[{\"finish_reason\":\"content_filter\"}]}\n\n",
                DONE,
            ],
            OutcomeClass::SafetyBlock,
        ),
        (
            JSON,
            &[
                "{\"choices\":[{\"message\":{\"content\":\"a\"}}],\"usage\":{\"completion_tokens\":3}}",
            ],
            OutcomeClass::Ok,
        ),
        (
            JSON,
            &["{\"err", "or\":{\"message\":\"boom\"}}"],
            OutcomeClass::UpstreamError,
        ),
        ("text/plain", &["no stream, no mark"], OutcomeClass::Ok),
        ("text/plain", &["so far", "!"], OutcomeClass::MidStreamError),
    ];
    for (kind, parts, class) in cases {
        let world = World::new();
        run(&world, 200, kind, parts).await;
        assert!(world.ended(class), "{kind} {parts:?} {class:?}");
    }
}

#[tokio::test]
async fn status_decides_before_the_body() {
    let cases = [
        (400, OutcomeClass::ClientError),
        (404, OutcomeClass::ClientError),
        (408, OutcomeClass::ClientError),
        (424, OutcomeClass::UpstreamError),
        (429, OutcomeClass::Overload),
        (499, OutcomeClass::ClientCancel),
        (500, OutcomeClass::UpstreamError),
        (502, OutcomeClass::UpstreamError),
        (503, OutcomeClass::Overload),
        (504, OutcomeClass::Timeout),
        (529, OutcomeClass::Overload),
    ];
    for (status, class) in cases {
        let world = World::new();
        run(&world, status, "application/json", &["{\"error\":{}}"]).await;
        assert!(world.ended(class), "{status}");
        assert_eq!(
            world.row().first_token(0.5),
            None,
            "an error page is no first token"
        );
    }
}

#[tokio::test]
async fn a_body_of_known_length_is_complete_without_being_polled_to_its_end() {
    let world = World::new();
    let mut service = world.service(|_: &Request<()>| {
        Answer::Ok(reply(
            200,
            "application/json",
            Full::new(Bytes::from_static(b"{}")),
        ))
    });
    let mut body = service.call(Request::new(())).await.unwrap().into_body();
    assert_eq!(body.size_hint().exact(), Some(2));
    body.frame().await.unwrap().unwrap();
    drop(body);
    assert!(world.ended(OutcomeClass::Ok));

    let world = World::new();
    let mut service = world
        .service(|_: &Request<()>| Answer::Ok(reply(200, "text/plain", Empty::<Bytes>::new())));
    drop(service.call(Request::new(())).await.unwrap());
    assert!(
        world.ended(OutcomeClass::Ok),
        "an empty body is never polled at all"
    );
}

#[tokio::test]
async fn what_nobody_waits_for_is_cancelled() {
    for (taken, early) in [(0, 1), (1, 1), (2, 0)] {
        let world = World::new();
        let mut service = world.service(|_: &Request<()>| {
            Answer::Ok(reply(
                200,
                "text/event-stream",
                frames(&[ROLE, PIECE, PIECE, DONE]),
            ))
        });
        let mut body = service.call(Request::new(())).await.unwrap().into_body();
        for _ in 0..taken {
            body.frame().await.unwrap().unwrap();
        }
        drop(body);
        assert!(world.ended(OutcomeClass::ClientCancel));
        assert_eq!(world.row().cancelled_early(), early);
        assert!(
            world.row().duration(0.5).is_some(),
            "and it is known how long it took"
        );
    }
    let world = World::new();
    let mut service =
        world.service(|_: &Request<()>| Answer::Ok(reply(200, "text/plain", frames(&[]))));
    drop(service.call(Request::new(())));
    assert!(
        world.ended(OutcomeClass::ClientCancel),
        "before there was a reply"
    );
}

#[tokio::test]
async fn a_stream_is_whole_once_its_mark_has_passed() {
    for (parts, class) in [
        (&[PIECE, DONE, "\n"], OutcomeClass::Ok),
        (&[PIECE, ERROR, "\n"], OutcomeClass::MidStreamError),
    ] {
        let world = World::new();
        let mut service = world
            .service(|_: &Request<()>| Answer::Ok(reply(200, "text/event-stream", frames(parts))));
        let mut body = service.call(Request::new(())).await.unwrap().into_body();
        body.frame().await;
        body.frame().await;
        drop(body);
        assert!(world.ended(class));
    }
}

#[tokio::test]
async fn a_service_that_fails_is_charged() {
    let world = World::new();
    let mut service =
        world.service(|_: &Request<()>| Err::<Response<Empty<Bytes>>, _>("refused".to_owned()));
    assert_eq!(service.call(Request::new(())).await.unwrap_err(), "refused");
    assert!(world.ended(OutcomeClass::UpstreamError));
}

#[tokio::test]
async fn a_host_that_knows_better_says_so() {
    let world = World::new();
    let mut service = world.service(|_: &Request<()>| {
        let mut response = reply(200, "text/plain", frames(&["gibberish"]));
        response.extensions_mut().insert(OutcomeClass::Malformed);
        Answer::Ok(response)
    });
    service
        .call(Request::new(()))
        .await
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap();
    assert!(world.ended(OutcomeClass::Malformed));
}

#[tokio::test]
async fn the_end_mark_can_be_waived_and_encoded_bodies_are_left_alone() {
    let world = World::new();
    let layer = RolloutLayer::new(&world.plane).done_marker(false);
    let mut service = layer.layer(Handler(|_: &Request<()>| {
        Answer::Ok(reply(200, "text/event-stream", frames(&[PIECE])))
    }));
    service
        .call(Request::new(()))
        .await
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap();
    assert!(world.ended(OutcomeClass::Ok));

    let world = World::new();
    let mut service = world.service(|_: &Request<()>| {
        let mut response = reply(200, "text/event-stream", frames(&["\x1f\u{8b}"]));
        response
            .headers_mut()
            .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        Answer::Ok(response)
    });
    service
        .call(Request::new(()))
        .await
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap();
    assert!(world.ended(OutcomeClass::Ok));
}

#[tokio::test]
async fn without_a_key_a_request_is_no_evidence() {
    let world = World::new();
    let layer = RolloutLayer::new(&world.plane).key(header("x-session-id"));
    let mut service = layer.layer(Handler(|request: &Request<()>| {
        let decision = request.extensions().get::<Assignment>().unwrap().decision();
        assert_eq!(
            (decision.role(), decision.reason(), decision.randomised()),
            (Role::Baseline, Reason::Pinned, false)
        );
        Answer::Ok(reply(200, "text/plain", Empty::<Bytes>::new()))
    }));
    service.call(Request::new(())).await.unwrap();
    assert!(!world.row().randomised());
}

#[tokio::test]
async fn data_in_several_pieces_is_seen_whole() {
    let world = World::new();
    let mut service = world.service(|_: &Request<()>| {
        let (head, tail) = PIECE.split_at(20);
        let data = Bytes::from_static(head.as_bytes()).chain(Bytes::from_static(tail.as_bytes()));
        let data = data.chain(Bytes::from_static(DONE.as_bytes()));
        let frames = futures_util::stream::iter([Ok::<_, String>(Frame::data(data))]);
        Answer::Ok(reply(200, "text/event-stream", StreamBody::new(frames)))
    });
    let mut body = service.call(Request::new(())).await.unwrap().into_body();
    while body.frame().await.is_some() {}
    assert!(world.ended(OutcomeClass::Ok));
    assert_eq!(world.row().tokens(), 1);
    assert_eq!(at(0), world.plane.router.now());
}

/// All to the candidate, version 2.
async fn candidate_for_all() -> World {
    use crate::host::TrafficRouter as _;
    let world = World::new();
    let clock = world.plane.router.state().clock;
    world
        .plane
        .router
        .set(&forward(1, 1, 1, 100.0, clock))
        .await
        .unwrap();
    world
}

fn by_role(world: &World, role: Role) -> Option<Row> {
    let rows = world.plane.recorder.snapshot().unwrap().rows;
    rows.into_iter().find(|row| row.role() == role)
}

#[tokio::test]
async fn a_breaker_takes_a_failing_candidate_away_for_a_while() {
    let mut world = candidate_for_all().await;
    let breaker = crate::Breaker {
        failures: 3,
        pause: Duration::from_secs(1),
    };
    world.plane = world.plane.clone().breaker(breaker);
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let asked = Arc::clone(&broken);
    let mut service = world.service(move |request: &Request<()>| {
        let decision = request.extensions().get::<Assignment>().unwrap().decision();
        let fails = decision.role() == Role::Candidate && asked.load(Ordering::Relaxed);
        Answer::Ok(reply(
            if fails { 500 } else { 200 },
            "text/plain",
            Empty::<Bytes>::new(),
        ))
    });
    let mut ask = async |ms| {
        world.at(ms);
        service
            .call(Request::new(()))
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    let mut statuses = Vec::new();
    for ms in [0, 1, 2, 3, 1_001, 1_002, 1_003, 2_001] {
        statuses.push(ask(ms).await);
    }
    // Three in a row, then the baseline; after the pause one failure is enough.
    assert_eq!(statuses, [500, 500, 500, 200, 200, 500, 200, 200]);
    broken.store(false, Ordering::Relaxed);
    assert_eq!(ask(2_002).await, 200);
    broken.store(true, Ordering::Relaxed);
    assert_eq!(
        [ask(2_003).await, ask(2_004).await],
        [500, 500],
        "it has a clean record again"
    );
    let row = by_role(&world, Role::Candidate).unwrap();
    assert_eq!((row.faults(), row.ended(OutcomeClass::Ok)), (6, 1));
    assert!(!by_role(&world, Role::Baseline).unwrap().randomised());
}

#[tokio::test(start_paused = true)]
async fn a_candidate_without_a_real_reply_is_suspended_until_it_gives_one() {
    let world = candidate_for_all().await;
    let well = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let (plane, asked) = (world.plane.clone(), Arc::clone(&well));
    let every = Duration::from_secs(1);
    let task = tokio::spawn(async move {
        let probe = |slot: VersionSlot| {
            assert_eq!(**slot.version().unwrap().id(), version(2));
            let well = asked.load(Ordering::Relaxed);
            async move { well || std::future::pending().await }
        };
        plane.watch_health(every, 2, probe).await;
    });
    let role = |world: &World| {
        world
            .plane
            .router
            .decide(&Key::session(b"k"), world.plane.router.now())
            .role()
    };
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(role(&world), Role::Candidate);
    well.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(role(&world), Role::Baseline);
    well.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(role(&world), Role::Candidate);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_says_nothing_for_too_long_is_ended() {
    let world = World::new();
    let layer = RolloutLayer::new(&world.plane).idle(Duration::from_secs(10));
    let mut service = layer.layer(Handler(|_: &Request<()>| {
        let stream = futures_util::stream::unfold(0_u64, |n| async move {
            // 5, 10 and then 15 seconds between two pieces.
            tokio::time::sleep(Duration::from_millis(4_999 * n)).await;
            Some((
                Ok::<_, String>(Frame::data(Bytes::from_static(PIECE.as_bytes()))),
                n + 1,
            ))
        });
        Answer::Ok(reply(
            200,
            "text/event-stream",
            StreamBody::new(Box::pin(stream)),
        ))
    }));
    let mut body = service.call(Request::new(())).await.unwrap().into_body();
    for _ in 0..3 {
        assert_eq!(
            body.frame().await.unwrap().unwrap().into_data().unwrap(),
            PIECE
        );
    }
    assert!(body.frame().await.is_none() && body.is_end_stream());
    assert!(body.frame().await.is_none());
    assert!(world.ended(OutcomeClass::Timeout));
    assert_eq!(world.row().started(), 1);
}

#[tokio::test]
async fn tenants_and_headers_have_a_say() {
    use crate::router::{Policies, TenantPolicy};
    let world = candidate_for_all().await;
    let policies = Policies::new(TenantPolicy::OPEN).tenant("bank", TenantPolicy::CLOSED);
    let layer = RolloutLayer::new(&world.plane)
        .key(
            header("x-session-id")
                .or_request()
                .dated()
                .pinned_by("x-pin"),
        )
        .policy(move |head| {
            let tenant = head.headers.get("x-tenant");
            policies.of(tenant.map_or(b"", HeaderValue::as_bytes))
        });
    let mut service = layer.layer(Handler(|request: &Request<()>| {
        let assignment = request.extensions().get::<Assignment>().unwrap();
        let decision = assignment.decision();
        let said = format!(
            "{} {:?} {}",
            decision.role(),
            decision.reason(),
            assignment.policy().no_store
        );
        Answer::Ok(reply(200, "text/plain", Full::new(Bytes::from(said))))
    }));
    for (headers, said) in [
        (&[][..], "candidate Keyless false"),
        (&[("x-session-id", "s")], "candidate Assigned false"),
        (&[("x-pin", "baseline")], "baseline Pinned false"),
        (&[("x-pin", "nonsense")], "candidate Keyless false"),
        (
            &[("x-tenant", "bank"), ("x-pin", "candidate")],
            "baseline Pinned true",
        ),
    ] {
        let mut request = Request::new(());
        for (name, value) in headers {
            let value = HeaderValue::from_static(value);
            request
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
        let body = service.call(request).await.unwrap().into_body();
        assert_eq!(
            body.collect().await.unwrap().to_bytes(),
            said,
            "{headers:?}"
        );
    }
}
