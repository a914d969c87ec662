//! What requests are assigned by, through the layer.

use super::*;
use base64::Engine as _;
use proptest::prelude::*;
use std::sync::Mutex;
use std::sync::atomic::AtomicU16;

/// Which side each session of this name gets, as the router itself says.
fn side(world: &World, session: &str) -> Role {
    let router = &world.plane.router;
    router
        .decide(&Key::session(session.as_bytes()), router.now())
        .role()
}

/// Half to the candidate.
async fn halves() -> World {
    use crate::host::TrafficRouter as _;
    let world = World::new();
    let clock = world.plane.router.state().clock;
    world
        .plane
        .router
        .set(&forward(1, 1, 1, 50.0, clock))
        .await
        .unwrap();
    world
}

/// Says who was assigned what.
fn who() -> Handler<impl FnMut(&Request<()>) -> Answer<Empty<Bytes>> + Clone> {
    Handler(|request: &Request<()>| {
        let decision = request.extensions().get::<Assignment>().unwrap().decision();
        let mut response = reply(200, "text/plain", Empty::new());
        let said = format!("{} {:?}", decision.role(), decision.reason());
        response
            .headers_mut()
            .insert("x-said", said.parse().unwrap());
        Answer::Ok(response)
    })
}

#[tokio::test]
async fn a_session_is_the_same_wherever_it_is_named() {
    let world = halves().await;
    let key = header("x-session-id")
        .or(cookie("sid"))
        .or(bearer_subject())
        .or(bearer_hash());
    let mut service = RolloutLayer::new(&world.plane).key(key).layer(who());
    let mut seen = [0, 0];
    for n in 0..40 {
        let session = format!("session-{n}");
        let expected = format!("{} Assigned", side(&world, &session));
        seen[usize::from(expected.starts_with("candidate"))] += 1;
        let claims = format!("{{\"exp\":{n},\"sub\":\"{session}\"}}");
        let claims = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(claims);
        for (name, value) in [
            ("x-session-id", session.clone()),
            ("cookie", format!("theme=dark; sid={session}")),
            ("authorization", format!("Bearer {session}")),
            ("authorization", format!("Bearer e30.{claims}.c2ln")),
        ] {
            let request = Request::builder().header(name, value).body(()).unwrap();
            let response = service.call(request).await.unwrap();
            assert_eq!(response.headers()["x-said"], expected, "{name}");
        }
    }
    assert!(seen[0] > 5 && seen[1] > 5, "{seen:?}");
}

#[tokio::test]
async fn keys_that_clients_make_up_are_hashed_with_the_secret() {
    let world = halves().await;
    let mut service = RolloutLayer::new(&world.plane)
        .key(header("x-session-id").untrusted())
        .layer(who());
    let mut differ = 0;
    for n in 0..200 {
        let session = format!("session-{n}");
        let untrusted = world
            .plane
            .router
            .decide(&Key::untrusted(session.as_bytes()), at(0))
            .role();
        let request = Request::builder()
            .header("x-session-id", &session)
            .body(())
            .unwrap();
        let response = service.call(request).await.unwrap();
        assert_eq!(
            response.headers()["x-said"],
            format!("{untrusted} Assigned")
        );
        differ += u32::from(untrusted != side(&world, &session));
    }
    // Expected 100, standard deviation 7.
    assert!((65..135).contains(&differ), "{differ}");
}

type Got = Arc<Mutex<Vec<(Option<Reason>, Role, Vec<u8>, bool)>>>;

/// Sends this body in these pieces, `!` for one that breaks off, to a service that reads it whole; what that saw.
async fn sent(
    world: &World,
    kind: &'static str,
    pieces: Vec<Vec<u8>>,
    limit: usize,
) -> (Reason, Role, Vec<u8>, bool) {
    let got = Got::default();
    let seen = Arc::clone(&got);
    let inner = Reads(move |request: &Request<()>, body, broken| {
        let decision = request.extensions().get::<Assignment>().unwrap().decision();
        seen.lock()
            .unwrap()
            .push((Some(decision.reason()), decision.role(), body, broken));
    });
    let rollout = RolloutLayer::new(&world.plane).key(from_body().or_request());
    let mut service = BodyField::new(["user"], limit).layer(rollout.layer(inner));
    let frames = pieces.into_iter().map(|piece| match &piece[..] {
        b"!" => Err("cut off".to_owned()),
        _ => Ok(Frame::data(Bytes::from(piece))),
    });
    let request = Request::builder().header(CONTENT_TYPE, kind);
    let request = request
        .body(StreamBody::new(futures_util::stream::iter(frames)))
        .unwrap();
    service.call(request).await.unwrap();
    let (reason, role, body, broken) = got.lock().unwrap().pop().unwrap();
    (reason.unwrap(), role, body, broken)
}

/// Reads a request's body before it answers.
#[derive(Clone)]
struct Reads<F>(F);

impl<F, B> Service<Request<B>> for Reads<F>
where
    F: Fn(&Request<()>, Vec<u8>, bool) + Clone + 'static,
    B: Body<Data = Bytes> + Unpin + 'static,
{
    type Response = Response<Empty<Bytes>>;
    type Error = std::convert::Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let tell = self.0.clone();
        let (parts, mut body) = request.into_parts();
        Box::pin(async move {
            let (mut whole, mut broken) = (Vec::new(), false);
            while let Some(frame) = body.frame().await {
                let Ok(frame) = frame else {
                    broken = true;
                    break;
                };
                whole.extend_from_slice(frame.data_ref().unwrap());
            }
            tell(&Request::from_parts(parts, ()), whole, broken);
            Ok(reply(200, "text/plain", Empty::new()))
        })
    }
}

#[tokio::test]
async fn a_field_of_the_body_is_a_key() {
    let world = halves().await;
    for n in 0..40 {
        let user = format!("user-{n}");
        let body =
            format!("{{\"messages\":[{{\"content\":\"Hi\"}}],\"user\":\"{user}\"}}").into_bytes();
        let expected = (Reason::Assigned, side(&world, &user), body.clone(), false);
        let pieces: Vec<Vec<u8>> = body.chunks(1 + n).map(<[u8]>::to_vec).collect();
        assert_eq!(
            sent(&world, "application/json", pieces, 1_000).await,
            expected
        );
        assert_eq!(
            sent(
                &world,
                "Application/JSON; charset=utf-8",
                vec![body.clone()],
                body.len()
            )
            .await,
            expected
        );
    }
}

#[tokio::test]
async fn what_is_too_long_or_no_json_passes_unchanged_without_a_key() {
    let world = halves().await;
    let body = b"{\"user\": \"u\", \"messages\": []}".to_vec();
    let halves: Vec<Vec<u8>> = body.chunks(8).map(<[u8]>::to_vec).collect();
    let cases = [
        ("application/json", halves.clone(), body.len() - 1),
        ("application/json", vec![body.clone()], 10),
        ("application/json", vec![body.clone()], 0),
        ("application/json", vec![body[..20].to_vec()], 1_000),
        ("text/plain", halves.clone(), 1_000),
        ("application/json", vec![], 1_000),
        (
            "application/json",
            vec![b"{\"user\": null}".to_vec()],
            1_000,
        ),
    ];
    for (kind, pieces, limit) in cases {
        let whole = pieces.concat();
        let (reason, _, got, broken) = sent(&world, kind, pieces, limit).await;
        assert_eq!((reason, got, broken), (Reason::Keyless, whole, false));
    }
    // One that breaks off breaks off for whoever reads it, where it did.
    let pieces = vec![body[..9].to_vec(), b"!".to_vec()];
    let (reason, _, got, broken) = sent(&world, "application/json", pieces, 1_000).await;
    assert_eq!(
        (reason, got, broken),
        (Reason::Keyless, body[..9].to_vec(), true)
    );
}

/// A body that counts how often it was asked for more.
struct Counted(u32, Arc<AtomicU16>);

impl Body for Counted {
    type Data = Bytes;
    type Error = String;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0 += 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"[1, 2, 3")))))
    }
}

#[tokio::test]
async fn an_upload_without_an_end_is_read_ahead_to_the_limit_only() {
    let world = halves().await;
    let asked = Arc::new(AtomicU16::new(0));
    let seen = Arc::clone(&asked);
    let inner = Handler(move |_: &Request<Replayed<Counted>>| {
        assert_eq!(
            seen.load(Ordering::Relaxed),
            13,
            "12 pieces of 8 bytes are within 100 bytes"
        );
        Answer::Ok(reply(200, "text/plain", Empty::<Bytes>::new()))
    });
    let rollout = RolloutLayer::new(&world.plane).key(from_body().or_request());
    let mut service = BodyField::new(["user"], 100).layer(rollout.layer(inner));
    let request = Request::builder().header(CONTENT_TYPE, "application/json");
    service
        .call(request.body(Counted(0, asked)).unwrap())
        .await
        .unwrap();
}

proptest! {
    #[test]
    fn a_body_passes_whole_however_it_is_cut(
        body in proptest::collection::vec(any::<u8>().prop_filter("marks", |b| *b != b'!'), 0..200),
        cuts in proptest::collection::vec(0..200_usize, 0..6), limit in 0..250_usize, json in any::<bool>(),
    ) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(body.len())).collect();
        cuts.extend([0, body.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| body[pair[0]..pair[1]].to_vec()).collect();
        let kind = if json { "application/json" } else { "application/octet-stream" };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (_, _, got, broken) = runtime.block_on(async {
            let world = halves().await;
            sent(&world, kind, pieces, limit).await
        });
        prop_assert_eq!((got, broken), (body, false));
    }
}

#[tokio::test]
async fn flips_are_counted_where_nothing_says_when_a_session_began() {
    use crate::host::TrafficRouter as _;
    use llm_rollout::{Raise, Share};
    let world = World::new();
    let share = |percent| Share::from_percent(percent).unwrap();
    let mut order = forward(1, 1, 1, 40.0, world.plane.router.state().clock);
    order.split.ramp = vec![
        Raise {
            before: at(1_000),
            share: Share::NONE,
            control: Share::NONE,
        },
        Raise {
            before: at(2_000),
            share: share(10.0),
            control: Share::NONE,
        },
    ];
    world.plane.router.set(&order).await.unwrap();
    let layer = RolloutLayer::new(&world.plane).key(header("x-session-id").or_request().dated());
    let mut service = layer.layer(who());
    let mut candidates = 0_u64;
    for n in 0..2_000 {
        let request = Request::builder()
            .header("x-session-id", format!("session-{n}"))
            .body(())
            .unwrap();
        let response = service.call(request).await.unwrap();
        candidates += u64::from(response.headers()["x-said"] == "candidate Assigned");
    }
    // Of 800 those three in four that were not in at 10 %; standard deviations 22 and 21.
    assert!((690..910).contains(&candidates), "{candidates}");
    let flips = world.plane.flips();
    assert!((495..705).contains(&flips), "{flips}");
    // Who says when it began, has no session, or was pinned, does not flip.
    for n in 0..200_u32 {
        let uuid = format!("017f22e2-79b0-7cc3-98c4-dc0c{n:08x}");
        service
            .call(
                Request::builder()
                    .header("x-session-id", uuid)
                    .body(())
                    .unwrap(),
            )
            .await
            .unwrap();
        service.call(Request::new(())).await.unwrap();
    }
    assert_eq!(world.plane.flips(), flips);
    assert_eq!(world.plane.router.keyless(), 200);
}
