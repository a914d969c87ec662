use super::*;
use crate::Bootstrap;
use crate::router::Key;
use crate::router::tests::version;
use crate::store::MemoryStore;
use std::time::Duration;

pub(super) async fn endpoint() -> Endpoint {
    Endpoint::open("chat", MemoryStore::new(), Bootstrap(version(1)))
        .await
        .unwrap()
}

/// Requests that take this long, with the first token after a tenth of it, in ten pieces.
pub(super) fn serve(endpoint: &Endpoint, n: u32, took: Duration, class: OutcomeClass) {
    let plane = endpoint.data_plane();
    for _ in 0..n {
        let now = plane.router.now();
        let decision = plane.router.decide(&Key::session(b"a session"), now);
        let mut ticket = plane.recorder.begin(decision, now);
        ticket.first_token(now.after(took / 10));
        ticket.tokens(11);
        ticket.finish(class, now.after(took));
    }
}

pub(super) fn points<'a>(metrics: &'a [Metric], name: &str) -> &'a [Point] {
    &metrics.iter().find(|m| m.name == name).unwrap().points
}

#[tokio::test]
async fn counts_go_on_when_the_recorder_forgets() {
    let endpoint = endpoint().await;
    let mut gatherer = Gatherer::new(&endpoint);
    let row = |epoch: u64, n: u32| {
        let recorder = crate::recorder::Recorder::new(Vec::<String>::new()).unwrap();
        let slot = VersionSlot::intern(&version(1)).unwrap();
        for _ in 0..n {
            let decision = crate::router::Decision::new(slot, Role::Baseline, epoch, false);
            let now = endpoint.data_plane().router.now();
            recorder.begin(decision, now).finish(OutcomeClass::Ok, now);
        }
        recorder.snapshot().unwrap().rows.remove(0)
    };
    gatherer.take(vec![row(1, 5)]);
    gatherer.take(vec![row(1, 7), row(2, 2)]);
    gatherer.take(vec![row(2, 3), row(3, 10)]);
    gatherer.take(vec![row(3, 10)]);
    let served = gatherer.served();
    let ok = points(&served, "llm.rollout.requests").iter();
    let ok: Vec<_> = ok
        .filter(|p| p.attributes.contains(&("outcome", "ok".to_owned())))
        .collect();
    assert_eq!(ok.len(), 1, "one series for a version and role");
    assert_eq!(ok[0].value, Value::Counter(7 + 3 + 10));
}

#[tokio::test]
async fn what_was_served_is_told_with_its_names() {
    let endpoint = endpoint().await;
    serve(&endpoint, 4, Duration::from_secs(2), OutcomeClass::Ok);
    serve(&endpoint, 1, Duration::from_secs(10), OutcomeClass::Timeout);
    let mut gatherer = Gatherer::new(&endpoint);
    let metrics = gatherer.gather().unwrap();
    let [duration] = points(&metrics, "gen_ai.server.request.duration") else {
        panic!()
    };
    let reference = version(1).reference().to_string();
    for attribute in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "self-hosted"),
        ("gen_ai.request.model", "chat"),
        ("llm.rollout.endpoint", "chat"),
        ("llm.rollout.role", "baseline"),
        ("llm.rollout.version", &reference),
    ] {
        let attribute = (attribute.0, attribute.1.to_owned());
        assert!(duration.attributes.contains(&attribute), "{duration:?}");
    }
    let Value::Histogram(heights, _) = &duration.value else {
        panic!()
    };
    let [(two, 4), (ten, 1)] = heights[..] else {
        panic!("{heights:?}")
    };
    assert!((two / 2.0 - 1.0).abs() < 0.017 && (ten / 10.0 - 1.0).abs() < 0.017);
    let outcome = |name: &str| {
        let points = points(&metrics, "llm.rollout.requests").iter();
        let mut points = points.filter(|p| p.attributes.contains(&("outcome", name.to_owned())));
        points.next().unwrap().value.clone()
    };
    assert_eq!(outcome("ok"), Value::Counter(4));
    assert_eq!(outcome("timeout"), Value::Counter(1));
    assert!(
        !metrics.iter().any(|m| m.name == "llm.rollout.share"),
        "no rollout"
    );
}
