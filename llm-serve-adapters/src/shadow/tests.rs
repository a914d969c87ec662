use super::*;
use proptest::prelude::*;
use serde_json::json;
use std::future::pending;

type Said = Result<String, &'static str>;

fn say(text: &str) -> impl Future<Output = Said> + Send + 'static + use<> {
    let text = text.to_owned();
    async move { Ok(text) }
}

/// Lets everything run that can.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

fn limits() -> Limits {
    Limits {
        concurrent: 2,
        queue: 1,
        deadline: Duration::from_secs(10),
        tokens: 1_000,
    }
}

#[tokio::test(start_paused = true)]
async fn pairs_are_compared_and_everything_adds_up() {
    let shadow = Shadow::new(limits(), Normalised);
    shadow
        .offer(Request::safe(), || say("Hello, world"))
        .answered("hello world!");
    settle().await;
    shadow.offer(Request::safe(), || say("no")).answered("yes");
    settle().await;
    shadow
        .offer(Request::safe(), || async { Err::<String, _>("refused") })
        .answered("x");
    settle().await;
    drop(shadow.offer(Request::safe(), || say("no baseline")));
    settle().await;
    shadow
        .offer(Request::acting(), || say("never sent"))
        .answered("x");
    let counts = shadow.counts();
    assert_eq!((counts.offered, counts.pairs, counts.failed), (5, 2, 1));
    assert_eq!(
        (counts.single, counts.unsafe_, counts.mean()),
        (1, 1, Some(0.5))
    );
    assert_eq!(counts.faults(), Some(0.25));
    assert!(
        shadow.samples().is_empty(),
        "nothing is kept unless that is switched on"
    );
}

#[tokio::test(start_paused = true)]
async fn a_hung_candidate_holds_nobody_up() {
    let shadow = Shadow::new(limits(), Exact);
    let mut pairs = Vec::new();
    for _ in 0..5 {
        pairs.push(shadow.offer(Request::safe(), pending::<Said>));
        settle().await;
    }
    // Two run, one waits, two were skipped at once.
    assert_eq!(shadow.counts().full, 2);
    assert_eq!(pairs.iter().filter(|pair| pair.is_mirrored()).count(), 3);
    tokio::time::sleep(Duration::from_secs(11)).await;
    let counts = shadow.counts();
    assert_eq!((counts.offered, counts.full, counts.late), (5, 2, 3));
    assert!(pairs.iter().all(|pair| !pair.is_mirrored()));
    // And there is room again.
    shadow.offer(Request::safe(), || say("a")).answered("a");
    settle().await;
    assert_eq!(shadow.counts().pairs, 1);
}

#[tokio::test(start_paused = true)]
async fn a_budget_is_never_exceeded() {
    let shadow = Shadow::new(limits(), Exact);
    for tokens in [600, 300, 200, 100, u64::MAX, 1] {
        shadow
            .offer(Request::safe().tokens(tokens), || say("a"))
            .answered("a");
        settle().await;
    }
    let counts = shadow.counts();
    assert_eq!((counts.pairs, counts.spent), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn samples_are_redacted_cut_bounded_and_expire() {
    let redact = |text: &str| text.replace("Ana", "***");
    let review = Review::new(2, 8, Duration::from_secs(100), redact);
    let alike = Judge::new(|_, candidate: String| async move {
        candidate
            .len()
            .to_string()
            .parse()
            .ok()
            .map(|n: f64| n / 100.0)
    });
    let shadow = Shadow::reviewed(limits(), alike, review);
    for candidate in ["Ana is here", "ééééé", "a", "abc"] {
        shadow
            .offer(Request::safe(), || say(candidate))
            .answered("Ana");
        settle().await;
    }
    let samples = shadow.samples();
    assert_eq!(
        samples
            .iter()
            .map(|s| s.candidate.as_str())
            .collect::<Vec<_>>(),
        ["a", "abc"]
    );
    assert!(samples.iter().all(|sample| sample.baseline == "***"));
    shadow.delete(|sample| sample.candidate == "a");
    assert_eq!(shadow.samples().len(), 1);
    tokio::time::sleep(Duration::from_secs(101)).await;
    assert!(shadow.samples().is_empty());
    // A text is cut between characters.
    let cut = Review::new(1, 5, Duration::from_secs(1), str::to_owned).cut("ééééé");
    assert_eq!(cut, "éé");
}

#[tokio::test(start_paused = true)]
async fn a_comparison_that_cannot_tell_is_no_pair() {
    let odd = Judge::new(|_, _| async { Some(7.0) });
    let shadow = Shadow::new(limits(), odd);
    shadow.offer(Request::safe(), || say("a")).answered("a");
    settle().await;
    let hung = Shadow::new(limits(), Judge::new(|_, _| pending::<Option<f64>>()));
    hung.offer(Request::safe(), || say("a")).answered("a");
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!((shadow.counts().untold, hung.counts().untold), (1, 1));
}

#[tokio::test]
async fn embeddings_are_compared_by_their_angle() {
    let embed = |text: String| async move {
        Some(
            text.bytes()
                .map(|b| f32::from(b) - 96.0)
                .collect::<Vec<_>>(),
        )
    };
    let by = Embedding::new(embed);
    assert!((by.alike("ab", "bd").await.unwrap() - 1.0).abs() < 1e-9);
    assert!(by.alike("ab", "ba").await.unwrap() < 0.9);
    assert_eq!(by.alike("ab", "abc").await, None);
    assert_eq!(by.alike("", "").await, None);
}

#[test]
fn without_a_runtime_nothing_is_mirrored() {
    let shadow = Shadow::new(limits(), Exact);
    assert!(!shadow.offer(Request::safe(), || say("a")).is_mirrored());
    assert_eq!(shadow.counts().failed, 1);
}

#[test]
fn requests_with_tools_are_not_safe() {
    for (body, safe) in [
        (json!({"messages": []}), true),
        (json!({"tools": []}), true),
        (json!({"tools": null, "functions": null}), true),
        (json!({"tools": [{"type": "function"}]}), false),
        (json!({"functions": [{"name": "pay"}]}), false),
        (json!({"web_search_options": {}}), false),
    ] {
        assert_eq!(Request::of_body(&body).safe, safe, "{body}");
    }
}

proptest! {
    #[test]
    fn comparisons_are_symmetric_and_know_the_same(a in ".{0,20}", b in ".{0,20}") {
        let run = tokio::runtime::Builder::new_current_thread().build().unwrap();
        run.block_on(async {
            prop_assert_eq!(Normalised.alike(&a, &b).await, Normalised.alike(&b, &a).await);
            prop_assert_eq!(Normalised.alike(&a, &a).await, Some(1.0));
            prop_assert_eq!(Exact.alike(&a, &b).await, Some(f64::from(u8::from(a == b))));
            Ok(())
        })?;
    }
}
