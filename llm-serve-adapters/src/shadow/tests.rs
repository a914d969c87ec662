use super::*;
use proptest::prelude::*;
use serde_json::json;
use std::future::pending;

type Said = Result<String, &'static str>;

const SLOT: VersionSlot = VersionSlot::new(1);

fn say(text: &str) -> impl Future<Output = Said> + Send + 'static + use<> {
    let text = text.to_owned();
    async move { Ok(text) }
}

/// A comparison by a function.
struct Told(fn(&str, &str) -> f64);

#[async_trait]
impl Compare for Told {
    async fn compare(&self, baseline: &str, candidate: &str) -> Option<Compared> {
        let alike = (self.0)(baseline, candidate);
        Some(Compared {
            alike,
            better: Better::Neither,
        })
    }
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
        .offer(SLOT, Request::safe(), || say("Hello, world"))
        .answered("hello world!");
    settle().await;
    shadow
        .offer(SLOT, Request::safe(), || say("no"))
        .answered("yes");
    settle().await;
    shadow
        .offer(SLOT, Request::safe(), || async {
            Err::<String, _>("refused")
        })
        .answered("x");
    settle().await;
    drop(shadow.offer(SLOT, Request::safe(), || say("no baseline")));
    settle().await;
    shadow
        .offer(SLOT, Request::acting(), || say("never sent"))
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
        pairs.push(shadow.offer(SLOT, Request::safe(), pending::<Said>));
        settle().await;
    }
    // Two run, one waits, two were skipped at once.
    assert_eq!(shadow.counts().full, 2);
    assert_eq!(pairs.iter().filter(|pair| pair.is_mirrored()).count(), 3);
    // One user goes away: nobody has answered that request.
    drop(pairs.remove(0));
    for pair in pairs {
        pair.answered("a");
    }
    tokio::time::sleep(Duration::from_secs(11)).await;
    let counts = shadow.counts();
    assert_eq!((counts.offered, counts.full), (5, 2));
    assert_eq!((counts.late, counts.single), (2, 1));
    let comparisons = counts.comparisons();
    assert_eq!(
        (comparisons.wins, comparisons.ties, comparisons.losses),
        (0, 0, 2),
        "a candidate that hangs loses"
    );
    // And there is room again.
    shadow
        .offer(SLOT, Request::safe(), || say("a"))
        .answered("a");
    settle().await;
    assert_eq!(shadow.counts().pairs, 1);
}

#[tokio::test(start_paused = true)]
async fn a_budget_is_never_exceeded() {
    let shadow = Shadow::new(limits(), Exact);
    for tokens in [600, 300, 200, 100, u64::MAX, 1] {
        shadow
            .offer(SLOT, Request::safe().tokens(tokens), || say("a"))
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
    let shadow = Shadow::reviewed(
        limits(),
        Told(|_, candidate| candidate.len() as f64 / 100.0),
        review,
    );
    for candidate in ["Ana is here", "ééééé", "a", "abc"] {
        shadow
            .offer(SLOT, Request::safe(), || say(candidate))
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
    let shadow = Shadow::new(limits(), Told(|_, _| 7.0));
    shadow
        .offer(SLOT, Request::safe(), || say("a"))
        .answered("a");
    settle().await;
    let hung = Shadow::new(limits(), Judge::new(|_, _| pending::<Option<Preference>>()));
    hung.offer(SLOT, Request::safe(), || say("a")).answered("a");
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
    let by = Embedding::new(embed, 0.9);
    let same = by.compare("ab", "bd").await.unwrap();
    assert!((same.alike - 1.0).abs() < 1e-9 && same.better == Better::Neither);
    let other = by.compare("ab", "ba").await.unwrap();
    assert!(other.alike < 0.9 && other.better == Better::Baseline);
    assert_eq!(by.compare("ab", "abc").await, None);
    assert_eq!(by.compare("", "").await, None);
}

#[tokio::test]
async fn a_judge_that_prefers_a_place_decides_nothing_and_one_that_knows_does() {
    let first = Judge::new(|_, _| async { Some(Preference::First) });
    let longer = Judge::new(|first: String, second: String| async move {
        Some(match first.len().cmp(&second.len()) {
            std::cmp::Ordering::Less => Preference::Second,
            std::cmp::Ordering::Equal => Preference::Tie,
            std::cmp::Ordering::Greater => Preference::First,
        })
    });
    let shadow = Shadow::new(limits(), longer);
    for (baseline, candidate) in [("a", "long"), ("long", "a"), ("b", "a"), ("b", "long")] {
        let said = first.compare(baseline, candidate).await.unwrap();
        assert_eq!(said.better, Better::Neither);
        shadow
            .offer(SLOT, Request::safe(), || say(candidate))
            .answered(baseline);
        settle().await;
    }
    // Another candidate's are counted apart.
    shadow
        .offer(VersionSlot::new(2), Request::safe(), || say("a"))
        .answered("long");
    settle().await;
    let comparisons = shadow.counts_of(SLOT).comparisons();
    assert_eq!(
        (comparisons.wins, comparisons.ties, comparisons.losses),
        (2, 1, 1)
    );
    let other = shadow.counts_of(VersionSlot::new(2));
    assert_eq!((other.losses, shadow.counts().pairs), (1, 5));
}

#[test]
fn the_counts_of_few_candidates_are_kept() {
    let shadow = Shadow::new(limits(), Exact);
    for slot in 0..40 {
        drop(shadow.offer(VersionSlot::new(slot), Request::acting(), || say("a")));
    }
    assert_eq!(shadow.counts().unsafe_, CANDIDATES as u64);
    assert_eq!(shadow.counts_of(VersionSlot::new(39)).unsafe_, 1);
}

#[test]
fn without_a_runtime_nothing_is_mirrored() {
    let shadow = Shadow::new(limits(), Exact);
    assert!(
        !shadow
            .offer(SLOT, Request::safe(), || say("a"))
            .is_mirrored()
    );
    assert_eq!((shadow.counts().full, shadow.counts().failed), (1, 0));
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
        (json!({"input": "Hi", "conversation": "conv_1"}), false),
        (json!({"input": "Hi", "background": true}), false),
        (json!({"input": "Hi", "background": false}), true),
    ] {
        assert_eq!(Request::of_body(&body).safe, safe, "{body}");
    }
}

proptest! {
    #[test]
    fn comparisons_are_symmetric_and_know_the_same(a in ".{0,20}", b in ".{0,20}") {
        let run = tokio::runtime::Builder::new_current_thread().build().unwrap();
        run.block_on(async {
            prop_assert_eq!(Normalised.compare(&a, &b).await, Normalised.compare(&b, &a).await);
            prop_assert_eq!(Normalised.compare(&a, &a).await, Compared::by_likeness(1.0, 1.0));
            let exact = Exact.compare(&a, &b).await.unwrap();
            prop_assert_eq!(exact.better == Better::Neither, a == b);
            Ok(())
        })?;
    }
}
