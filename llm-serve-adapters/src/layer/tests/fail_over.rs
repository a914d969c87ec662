//! What the candidate fails before its first token, the baseline answers.

use super::*;

#[tokio::test]
async fn what_the_candidate_fails_is_saved_by_the_baseline_and_charged_to_the_candidate() {
    for (status, class) in [
        (500, OutcomeClass::UpstreamError),
        (504, OutcomeClass::Timeout),
        (429, OutcomeClass::Overload),
    ] {
        let world = candidate_for_all().await;
        let handler = Handler(move |request: &Request<&'static str>| {
            let decision = request.extensions().get::<Assignment>().unwrap().decision();
            let status = if decision.role() == Role::Candidate {
                status
            } else {
                200
            };
            Answer::Ok(reply(
                status,
                "text/plain",
                Full::new(Bytes::from(*request.body())),
            ))
        });
        let copy = |request: &Request<&'static str>| Some(request.clone());
        let inner = FailOver::new(&world.plane, copy).layer(handler);
        let mut service = RolloutLayer::new(&world.plane).layer(inner);
        let response = service.call(Request::new("hello")).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(
            response.headers()[VERSION_HEADER],
            version(1).reference().to_string()
        );
        assert_eq!(
            response.into_body().collect().await.unwrap().to_bytes(),
            "hello"
        );
        let row = by_role(&world, Role::Candidate).unwrap();
        assert_eq!(
            (row.assigned(), row.ended(class), row.finished()),
            (1, 1, 1)
        );
        assert!(by_role(&world, Role::Baseline).is_none());
    }
}

#[tokio::test]
async fn what_may_not_be_sent_twice_is_not() {
    let world = candidate_for_all().await;
    let handler = Handler(|_: &Request<()>| Err::<Response<Empty<Bytes>>, _>("refused"));
    let inner = FailOver::new(&world.plane, |_: &Request<()>| None).layer(handler.clone());
    let mut service = RolloutLayer::new(&world.plane).layer(inner);
    assert_eq!(service.call(Request::new(())).await.unwrap_err(), "refused");
    // And both may fail.
    let inner =
        FailOver::new(&world.plane, |_: &Request<()>| Some(Request::new(()))).layer(handler);
    let mut service = RolloutLayer::new(&world.plane).layer(inner);
    assert_eq!(service.call(Request::new(())).await.unwrap_err(), "refused");
    assert_eq!(
        by_role(&world, Role::Candidate)
            .unwrap()
            .ended(OutcomeClass::UpstreamError),
        2
    );
}

/// What the candidate says, piece by piece.
#[derive(Clone, Copy, Debug)]
enum Says {
    Piece(&'static str),
    /// It breaks off.
    Breaks,
    /// It says nothing any more.
    Hangs,
}
use Says::{Breaks, Hangs, Piece};

fn said(parts: &'static [Says]) -> impl Body<Data = Bytes, Error = String> + Unpin + use<> {
    let stream = futures_util::stream::unfold(parts.iter(), |mut parts| async {
        Some(match parts.next()? {
            Piece(text) => (Ok(Frame::data(Bytes::from_static(text.as_bytes()))), parts),
            Breaks => (Err("the engine died".to_owned()), parts),
            Hangs => std::future::pending().await,
        })
    });
    StreamBody::new(Box::pin(stream))
}

const SSE: &str = "text/event-stream";

/// What the user got and from which version, where the candidate says this and the baseline would answer well.
async fn asked(
    world: &World,
    kind: &'static str,
    candidate: &'static [Says],
    of: impl FnOnce(
        FailOver<fn(&Request<()>) -> Option<Request<()>>>,
    ) -> FailOver<fn(&Request<()>) -> Option<Request<()>>>,
) -> (bool, Result<String, String>) {
    let handler = Handler(move |request: &Request<()>| {
        let decision = request.extensions().get::<Assignment>().unwrap().decision();
        Answer::Ok(if decision.role() == Role::Candidate {
            reply(200, kind, said(candidate))
        } else {
            reply(200, SSE, said(&[Piece(USAGE), Piece(PIECE), Piece(DONE)]))
        })
    });
    let copy: fn(&Request<()>) -> Option<Request<()>> = |request| Some(request.clone());
    let inner = of(FailOver::new(&world.plane, copy)).layer(handler);
    let mut service = RolloutLayer::new(&world.plane).layer(inner);
    let response = service.call(Request::new(())).await.unwrap();
    let saved = response.headers()[VERSION_HEADER] == version(1).reference().to_string();
    let mut body = response.into_body();
    let mut text = String::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => text += str::from_utf8(frame.data_ref().unwrap()).unwrap(),
            Err(error) => return (saved, Err(error)),
        }
    }
    (saved, Ok(text))
}

#[tokio::test(start_paused = true)]
async fn what_fails_before_its_first_token_is_saved_too() {
    const PING: &str = ": ping\n\n";
    let cases: [(&'static str, &'static [Says], OutcomeClass); 9] = [
        (SSE, &[Piece(ROLE), Breaks], OutcomeClass::MidStreamError),
        (SSE, &[Breaks], OutcomeClass::MidStreamError),
        (
            SSE,
            &[Piece(ROLE), Piece(ERROR), Piece(DONE)],
            OutcomeClass::MidStreamError,
        ),
        (SSE, &[Piece(ROLE)], OutcomeClass::MidStreamError),
        (SSE, &[], OutcomeClass::MidStreamError),
        (
            SSE,
            &[Piece(PING), Piece(ROLE), Hangs],
            OutcomeClass::Timeout,
        ),
        (
            "application/json",
            &[Piece("{\"error\": {\"message\": \"boom\"}}")],
            OutcomeClass::UpstreamError,
        ),
        ("application/json", &[Breaks], OutcomeClass::MidStreamError),
        ("text/plain", &[Hangs], OutcomeClass::Timeout),
    ];
    for (kind, candidate, class) in cases {
        let world = candidate_for_all().await;
        let patience = |layer: FailOver<_>| layer.patience(Duration::from_secs(5));
        let (saved, text) = asked(&world, kind, candidate, patience).await;
        assert!(saved, "{kind} {candidate:?}");
        assert_eq!(
            text.unwrap(),
            [USAGE, PIECE, DONE].concat(),
            "nothing of the candidate's"
        );
        let row = by_role(&world, Role::Candidate).unwrap();
        assert_eq!(
            (
                row.assigned(),
                row.ended(class),
                row.finished(),
                row.tokens()
            ),
            (1, 1, 1, 0),
            "{kind} {candidate:?}"
        );
        assert!(by_role(&world, Role::Baseline).is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn from_the_first_token_on_nothing_is_retried() {
    type Case = (
        &'static str,
        &'static [Says],
        Result<&'static str, &'static str>,
        OutcomeClass,
    );
    let cases: [Case; 7] = [
        (
            SSE,
            &[Piece(ROLE), Piece(PIECE), Piece(DONE)],
            Ok("whole"),
            OutcomeClass::Ok,
        ),
        (
            SSE,
            &[Piece(ROLE), Piece(PIECE), Breaks],
            Err("the engine died"),
            OutcomeClass::MidStreamError,
        ),
        (
            SSE,
            &[Piece(PIECE), Piece(ERROR)],
            Ok("whole"),
            OutcomeClass::MidStreamError,
        ),
        // It has said that it will say nothing.
        (
            SSE,
            &[
                Piece("data: {\"choices\":[{\"finish_reason\":\"content_filter\"}]}\n\n"),
                Piece(DONE),
            ],
            Ok("whole"),
            OutcomeClass::SafetyBlock,
        ),
        (
            "application/json",
            &[Piece("{\"choices\": "), Breaks],
            Err("the engine died"),
            OutcomeClass::MidStreamError,
        ),
        (
            "text/plain",
            &[Piece("so"), Piece(" far")],
            Ok("whole"),
            OutcomeClass::Ok,
        ),
        ("text/plain", &[], Ok("whole"), OutcomeClass::Ok),
    ];
    for (kind, candidate, text, class) in cases {
        let world = candidate_for_all().await;
        let patience = |layer: FailOver<_>| layer.patience(Duration::from_secs(5));
        let (saved, got) = asked(&world, kind, candidate, patience).await;
        assert!(!saved, "{kind} {candidate:?}");
        let whole = candidate.iter().filter_map(|says| match says {
            Piece(text) => Some(*text),
            Breaks | Hangs => None,
        });
        let text = text.map(|_| whole.collect()).map_err(str::to_owned);
        assert_eq!(got, text, "{kind} {candidate:?}");
        let row = by_role(&world, Role::Candidate).unwrap();
        assert_eq!(
            (row.ended(class), row.finished()),
            (1, 1),
            "{kind} {candidate:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_back_is_bounded() {
    const PING: &str = ": a comment of twenty-eight\n\n";
    // With more before the first token than is kept, the reply passes as it comes.
    let candidate: &[Says] = &[Piece(PING), Piece(PING), Piece(PING), Breaks];
    let world = candidate_for_all().await;
    let (saved, got) = asked(&world, SSE, candidate, |layer| layer.hold(2 * PING.len())).await;
    assert_eq!((saved, got), (false, Err("the engine died".to_owned())));
    let world = candidate_for_all().await;
    let (saved, _) = asked(&world, SSE, candidate, |layer| layer.hold(3 * PING.len())).await;
    assert!(saved);
    // A stream that has no such pieces begins with its first bytes.
    let world = candidate_for_all().await;
    let (saved, got) = asked(&world, SSE, candidate, |layer| layer.done_marker(false)).await;
    assert_eq!((saved, got), (false, Err("the engine died".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_while_the_first_token_is_awaited_has_cancelled() {
    let world = candidate_for_all().await;
    let handler =
        Handler(|_: &Request<()>| Answer::Ok(reply(200, SSE, said(&[Piece(ROLE), Hangs]))));
    let inner = FailOver::new(&world.plane, |request: &Request<()>| Some(request.clone()));
    let mut service = RolloutLayer::new(&world.plane).layer(inner.layer(handler));
    let waited = tokio::time::timeout(Duration::from_secs(1), service.call(Request::new(())));
    assert!(waited.await.is_err());
    let row = by_role(&world, Role::Candidate).unwrap();
    assert_eq!((row.cancelled_early(), row.finished()), (1, 1));
}
