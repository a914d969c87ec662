//! What the layer understands of each kind of reply.

use super::*;
use proptest::prelude::*;

const SSE: &str = "text/event-stream";

/// Runs a reply of these parts through the layer; what was recorded of it.
async fn recorded(kind: &'static str, parts: &'static [&'static str]) -> Row {
    let world = World::new();
    let text = run(&world, 200, kind, parts).await;
    let whole = parts
        .iter()
        .filter(|part| **part != "!")
        .copied()
        .collect::<String>();
    assert_eq!(text, whole, "passed on as it was");
    let row = world.row();
    assert_eq!((row.assigned(), row.finished()), (1, 1));
    row
}

fn class(row: &Row) -> OutcomeClass {
    let ended = |class: &OutcomeClass| row.ended(*class) > 0;
    OutcomeClass::ALL.into_iter().find(ended).unwrap()
}

// The events of the responses API, as OpenAI writes them.
const CREATED: &str = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"r\",\"status\":\"in_progress\",\"error\":null,\"output\":[]}}\n\n";
const DELTA: &str = "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"item_id\":\"m\",\"output_index\":0,\"content_index\":0,\"delta\":\"Hello\"}\n\n";
const COMPLETED: &str = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\",\"status\":\"completed\",\"error\":null,\"usage\":{\"input_tokens\":9,\"output_tokens\":7}}}\n\n";
const FAILED: &str = "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"status\":\"failed\",\"error\":{\"code\":\"server_error\",\"message\":\"boom\"}}}\n\n";
const INCOMPLETE: &str = "event: response.incomplete\ndata: {\"type\":\"response.incomplete\",\"response\":{\"status\":\"incomplete\",\"incomplete_details\":{\"reason\":\"max_output_tokens\"},\"usage\":{\"output_tokens\":3}}}\n\n";

#[tokio::test]
async fn the_responses_api_is_understood() {
    let row = recorded(SSE, &[CREATED, DELTA, DELTA, COMPLETED]).await;
    assert_eq!(
        (class(&row), row.tokens(), row.started()),
        (OutcomeClass::Ok, 7, 1)
    );
    let row = recorded(SSE, &[CREATED, DELTA, INCOMPLETE]).await;
    assert_eq!((class(&row), row.tokens()), (OutcomeClass::Ok, 3));
    let row = recorded(SSE, &[CREATED, FAILED]).await;
    assert_eq!(
        (class(&row), row.started()),
        (OutcomeClass::MidStreamError, 0)
    );
    let row = recorded(SSE, &[CREATED, DELTA]).await;
    assert_eq!(class(&row), OutcomeClass::MidStreamError, "cut off");
    let whole = &[
        "{\"object\":\"response\",\"error\":null,\"output\":[{\"content\":[{\"type\":\"output_text\",\"text\":\"Hi\"}]}],\"usage\":{\"output_tokens\":2}}",
    ];
    let row = recorded("application/json", whole).await;
    assert_eq!((class(&row), row.tokens()), (OutcomeClass::Ok, 2));
}

#[tokio::test]
async fn completions_are_understood() {
    let parts = &[
        "data: {\"choices\":[{\"text\":\"\",\"index\":0}]}\n\n",
        "data: {\"choices\":[{\"text\":\"a\",\"index\":0}]}\n\n",
        "data: {\"choices\":[{\"text\":\"b\",\"finish_reason\":\"length\"}]}\n\n",
        DONE,
    ];
    let row = recorded(SSE, parts).await;
    assert_eq!(
        (class(&row), row.tokens(), row.started()),
        (OutcomeClass::Ok, 2, 1)
    );
}

#[tokio::test]
async fn what_is_said_in_other_ways_than_text_is_a_first_token_too() {
    for delta in [
        "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"name\":\"pay\"}}]}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"refusal\":\"I cannot\"}}]}\n\n",
    ] {
        let world = World::new();
        let mut service = world.service(move |_: &Request<()>| {
            let parts =
                [ROLE, delta, DONE].map(|part| Ok::<_, String>(Frame::data(Bytes::from(part))));
            Answer::Ok(reply(
                200,
                SSE,
                StreamBody::new(futures_util::stream::iter(parts)),
            ))
        });
        let body = service.call(Request::new(())).await.unwrap().into_body();
        body.collect().await.unwrap();
        assert_eq!(
            (world.row().started(), world.row().tokens()),
            (1, 1),
            "{delta}"
        );
    }
}

#[tokio::test]
async fn plain_chunks_begin_with_their_first_byte() {
    let world = World::new();
    let mut service = world.service(|_: &Request<()>| {
        Answer::Ok(reply(
            200,
            "application/octet-stream",
            frames(&["one", "two", "three"]),
        ))
    });
    let mut body = service.call(Request::new(())).await.unwrap().into_body();
    for ms in [30, 40, 90] {
        world.at(ms);
        body.frame().await.unwrap().unwrap();
    }
    assert!(body.frame().await.is_none());
    assert!(world.ended(OutcomeClass::Ok));
    assert_eq!(
        world.row().first_token(0.5),
        Some(Duration::from_millis(30))
    );
}

/// A gRPC reply of messages of these lengths, with this status at its end.
fn grpc(
    lengths: &[u32],
    status: Option<&'static str>,
) -> impl Body<Data = Bytes, Error = String> + Unpin + use<> {
    let mut frames = Vec::new();
    for length in lengths {
        let mut message = vec![0];
        message.extend(length.to_be_bytes());
        message.extend(std::iter::repeat_n(b'x', usize::try_from(*length).unwrap()));
        frames.push(Ok(Frame::data(Bytes::from(message))));
    }
    if let Some(status) = status {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(status));
        frames.push(Ok(Frame::trailers(trailers)));
    }
    StreamBody::new(futures_util::stream::iter(frames))
}

#[tokio::test]
async fn a_grpc_reply_ends_as_its_trailers_say() {
    type Case = (&'static [u32], Option<&'static str>, OutcomeClass, u64);
    let cases: [Case; 6] = [
        (&[0, 3, 4], Some("0"), OutcomeClass::Ok, 2),
        (&[3], Some("13"), OutcomeClass::MidStreamError, 1),
        (&[], Some("14"), OutcomeClass::UpstreamError, 0),
        (&[], Some("8"), OutcomeClass::Overload, 0),
        (&[], Some("3"), OutcomeClass::ClientError, 0),
        (&[3], None, OutcomeClass::MidStreamError, 1),
    ];
    for (lengths, status, class, tokens) in cases {
        let world = World::new();
        let mut service = world.service(move |_: &Request<()>| {
            Answer::Ok(reply(200, "application/grpc+proto", grpc(lengths, status)))
        });
        let mut body = service.call(Request::new(())).await.unwrap().into_body();
        for _ in 0..lengths.len() + usize::from(status.is_some()) {
            body.frame().await.unwrap().unwrap();
        }
        // A server sends nothing after trailers, and asks for nothing.
        if status.is_none() {
            assert!(body.frame().await.is_none());
        }
        assert!(world.ended(class), "{lengths:?} {status:?}");
        assert_eq!(world.row().tokens(), tokens);
    }
    // One that fails at once says so in its head.
    let world = World::new();
    let mut service = world.service(|_: &Request<()>| {
        let mut failed = reply(200, "application/grpc", Empty::<Bytes>::new());
        failed
            .headers_mut()
            .insert("grpc-status", HeaderValue::from_static("14"));
        Answer::Ok(failed)
    });
    drop(service.call(Request::new(())).await.unwrap());
    assert!(world.ended(OutcomeClass::UpstreamError));
}

#[test]
fn hosts_with_phases_follow_replies_by_hand() {
    let world = World::new();
    let (router, recorder) = (&world.plane.router, &world.plane.recorder);
    let decision = router.decide(&Key::session(b"s"), router.now());
    let head = |kind: &'static str| {
        http::HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))])
    };
    let mut ticket = recorder.begin(decision, router.now());
    let mut observer = Observer::new(StatusCode::OK, &head(SSE));
    for part in [ROLE, PIECE, PIECE, USAGE, DONE] {
        observer.data(&mut ticket, part.as_bytes(), router.now());
    }
    assert_eq!(
        observer.finish(ticket, End::Complete, router.now()),
        OutcomeClass::Ok
    );
    let ticket = recorder.begin(decision, router.now());
    let observer = Observer::new(StatusCode::BAD_GATEWAY, &head("text/html"));
    assert_eq!(
        observer.finish(ticket, End::Dropped, router.now()),
        OutcomeClass::UpstreamError
    );
    let ticket = recorder.begin(decision, router.now());
    let observer = Observer::settled(OutcomeClass::Malformed);
    assert_eq!(
        observer.finish(ticket, End::Complete, router.now()),
        OutcomeClass::Malformed
    );
    let row = world.row();
    assert_eq!((row.finished(), row.tokens(), row.faults()), (3, 42, 2));
}

proptest! {
    #[test]
    fn whatever_a_reply_holds_it_passes_unchanged_and_is_recorded_once(
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..6), kind in 0..4_usize,
    ) {
        let kind = [SSE, "application/json", "application/grpc", "text/plain"][kind];
        let world = World::new();
        let whole = parts.concat();
        let mut service = world.service(move |_: &Request<()>| {
            let frames = parts.clone().into_iter().map(|part| Ok::<_, String>(Frame::data(Bytes::from(part))));
            Answer::Ok(reply(200, kind, StreamBody::new(futures_util::stream::iter(frames))))
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let got = runtime.block_on(async {
            service.call(Request::new(())).await.unwrap().into_body().collect().await.unwrap().to_bytes()
        });
        prop_assert_eq!(got, whole);
        prop_assert_eq!((world.row().assigned(), world.row().finished()), (1, 1));
    }
}
