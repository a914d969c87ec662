//! Evaluators against servers on the loopback interface.

use super::*;
use crate::backend::{ChatClient, Upstream};
use crate::host::{ErrorKind, Evaluator, Result};
use crate::testing;
use async_trait::async_trait;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Json, Router};
use llm_gates::{Measurement, Measurements, Sample};
use llm_version_core::VersionId;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;

fn version(digit: char) -> VersionId {
    let digest = digit.to_string().repeat(64);
    format!("chat/v1.0.0-{digest}").parse().unwrap()
}

type Reply = Arc<dyn Fn(&str, &Value) -> Response + Send + Sync>;

/// A server that answers requests to each path by a function of the path and the request.
async fn server(reply: impl Fn(&str, &Value) -> Response + Send + Sync + 'static) -> String {
    async fn answer(State(reply): State<Reply>, uri: Uri, Json(request): Json<Value>) -> Response {
        reply(uri.path(), &request)
    }
    let reply: Reply = Arc::new(reply);
    let app = Router::new().fallback(post(answer)).with_state(reply);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

fn says(request: &Value, text: &str) -> Response {
    Json(json!({
        "model": request["model"],
        "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
    }))
    .into_response()
}

fn client(address: &str, model: &str) -> ChatClient {
    ChatClient::new(&Upstream::new(address, model)).unwrap()
}

/// Version 1 is "old", version 2 is "new", on the same server.
fn models(address: &str) -> Models {
    Models::from_iter([
        (version('1'), client(address, "old")),
        (version('2'), client(address, "new")),
    ])
}

fn last(request: &Value) -> &str {
    let messages = request["messages"].as_array().unwrap();
    messages.last().unwrap()["content"].as_str().unwrap()
}

fn quick() -> Effort {
    Effort::default().tries(1).deadline(Duration::from_secs(30))
}

fn four() -> Suite {
    let lines = [
        json!({"name": "both", "input": "q0", "ideal": "yes"}),
        json!({"name": "lost", "input": "q1", "ideal": "yes"}),
        json!({"name": "won", "input": "q2", "ideal": "yes"}),
        json!({"name": "json", "input": "q3", "schema": {"type": "array"}}),
    ];
    let text: Vec<_> = lines.iter().map(ToString::to_string).collect();
    Suite::from_jsonl(&text.join("\n"), Check::Match).unwrap()
}

/// Both answer q0 rightly; only "old" q1; only "new" q2; q3 in JSON.
fn answers_of_four(request: &Value) -> Response {
    let right = match (last(request), request["model"].as_str()) {
        ("q0", _) | ("q1", Some("old")) | ("q2", Some("new")) => "yes",
        ("q3", _) => "[1]",
        _ => "no",
    };
    says(request, right)
}

async fn holds(evaluator: &dyn Evaluator) {
    let [known, other, unknown] = ['1', '2', '3'].map(version);
    testing::evaluator::suite(testing::evaluator::Subject {
        evaluator,
        version: &known,
        other: &other,
        unknown: &unknown,
        noise: |_: &str| 0.0,
        within: Duration::from_secs(60),
    })
    .await
    .unwrap();
}

fn of(k: u64, n: u64) -> Sample {
    Sample::Proportion { k, n }
}

fn compared(wins: u64, ties: u64, losses: u64) -> Measurement {
    Measurement::of(Sample::Comparison { wins, ties, losses })
}

#[tokio::test]
async fn a_suite_is_asked_of_both_and_compared_in_pairs() {
    let address = server(|_, request| {
        assert_eq!(
            (&request["temperature"], &request["seed"]),
            (&json!(0.0), &json!(0))
        );
        answers_of_four(request)
    })
    .await;
    let evaluator = SuiteEvaluator::builder("s", four(), models(&address))
        .scorer(Checks::new("passed"))
        .effort(quick())
        .build()
        .unwrap();
    let measured = evaluator
        .evaluate(&version('2'), &version('1'))
        .await
        .unwrap();
    assert_eq!(measured["passed"], Measurement::against(of(3, 4), of(3, 4)));
    assert_eq!(measured["passed.win_rate"], compared(1, 2, 1));
    assert_eq!(measured["passed.negative_flips"], Measurement::of(of(1, 4)));
    assert_eq!(
        measured["s.unanswered"],
        Measurement::against(of(0, 4), of(0, 4))
    );
    let answers = evaluator
        .answers(&version('2'), &version('1'))
        .await
        .unwrap();
    assert_eq!(answers.failed(), ["lost"]);
    assert!((answers.flips().worse().p - 0.75).abs() < 1e-12);
    holds(&evaluator).await;
}

#[tokio::test]
async fn what_is_not_answered_is_counted_and_lowers_no_bar() {
    // The candidate fails on q0, the baseline on q1.
    let address = server(
        |_, request| match (last(request), request["model"].as_str()) {
            ("q0", Some("new")) | ("q1", Some("old")) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "broken").into_response()
            }
            _ => answers_of_four(request),
        },
    )
    .await;
    let evaluator = SuiteEvaluator::builder("s", four(), models(&address))
        .scorer(Checks::new("passed"))
        .effort(quick())
        .build()
        .unwrap();
    let measured = evaluator
        .evaluate(&version('2'), &version('1'))
        .await
        .unwrap();
    assert_eq!(measured["passed"], Measurement::against(of(2, 4), of(2, 3)));
    assert_eq!(measured["passed.win_rate"], compared(1, 1, 1));
    assert_eq!(
        measured["s.unanswered"],
        Measurement::against(of(1, 4), of(1, 4))
    );
    let answers = evaluator
        .answers(&version('2'), &version('1'))
        .await
        .unwrap();
    let unanswered: Vec<_> = answers
        .unanswered()
        .map(|(name, new, _)| (name, new))
        .collect();
    assert_eq!(unanswered, [("both", true), ("lost", false)]);
}

#[tokio::test]
async fn a_version_that_answers_nothing_is_an_error() {
    for (status, kind) in [(503, ErrorKind::Transient), (404, ErrorKind::Permanent)] {
        let address = server(move |_, request| match request["model"].as_str() {
            Some("new") => StatusCode::from_u16(status).unwrap().into_response(),
            _ => says(request, "yes"),
        })
        .await;
        let evaluator = SuiteEvaluator::builder("s", four(), models(&address))
            .scorer(Checks::new("passed"))
            .effort(quick())
            .build()
            .unwrap();
        let error = evaluator
            .evaluate(&version('2'), &version('1'))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().contains("answers none of 4"), "{error}");
    }
}

fn judged(judge: Judge, new: &[&str], old: &[&str]) -> (Judge, Answers) {
    let lines: Vec<_> = (0..new.len())
        .map(|i| json!({"input": format!("q{i}")}).to_string())
        .collect();
    let suite = Suite::from_jsonl(&lines.join("\n"), Check::Match).unwrap();
    let texts = |texts: &[&str]| {
        let answered = |t: &&str| (*t != "-").then(|| (*t).to_owned());
        texts.iter().map(answered).collect()
    };
    (judge, Answers::new(suite, texts(new), texts(old)).unwrap())
}

#[tokio::test]
async fn a_judge_sees_both_orders() {
    // Prefers the longer answer, or the first one if it is told that it may.
    let address = server(|_, request| {
        let asked = last(request);
        let (first, second) = asked.split_once('|').unwrap();
        let said = if asked.contains("biased") || first.len() > second.len() {
            "[[A]]"
        } else if first.len() == second.len() {
            "[[C]]"
        } else {
            "[[B]]"
        };
        says(request, said)
    })
    .await;
    let judge = Judge::new("win", client(&address, "judge"))
        .prompt("{first}|{second}{question}")
        .unwrap();
    // The question's length counts for the second answer: it is the same in both orders.
    let prompt = "{question}{first}|{question}{second}";
    assert!(
        judge.clone().prompt(prompt).is_err(),
        "a place holder stands there twice"
    );
    let (judge, answers) = judged(
        judge,
        &["a long answer", "short", "same", "-", "x", "biased 1"],
        &["short", "a long answer", "same ", "y", "-", "biased 2"],
    );
    let measured = judge.score(&answers, &quick()).await.unwrap();
    assert_eq!(measured["win"], compared(1, 2, 2));
    assert_eq!(measured["win.inconsistent"], Measurement::of(of(1, 5)));
    assert_eq!(measured["win.unjudged"], Measurement::of(of(0, 5)));
    assert_eq!(
        measured.into_keys().collect::<BTreeSet<_>>(),
        judge.measures()
    );
}

#[tokio::test]
async fn a_judge_who_cannot_be_understood_is_no_judge() {
    let replies = AtomicU64::new(0);
    let address = server(move |_, request| {
        let unclear = replies.fetch_add(1, Ordering::SeqCst) == 0;
        says(request, if unclear { "Well, well." } else { "[[A]]" })
    })
    .await;
    let judge = Judge::new("win", client(&address, "judge"));
    let (judge, answers) = judged(judge, &["a", "b"], &["c", "d"]);
    let error = judge
        .score(&answers, &quick().concurrency(1))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("1 of 4 replies of the judge"),
        "{error}"
    );

    let address = server(|_, request| {
        let unclear = last(request).contains("odd");
        says(request, if unclear { "Well, well." } else { "[[A]]" })
    })
    .await;
    let judge = Judge::new("win", client(&address, "judge")).most_unjudged(0.5);
    let (judge, answers) = judged(judge, &["a", "odd"], &["c", "d"]);
    let measured = judge.score(&answers, &quick()).await.unwrap();
    assert_eq!(measured["win"], compared(0, 1, 0));
    assert_eq!(measured["win.unjudged"], Measurement::of(of(1, 2)));
}

#[tokio::test]
async fn a_classifier_counts_by_category() {
    let address = server(|_, request| {
        let roles: Vec<_> = request["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["role"].clone())
            .collect();
        assert_eq!(roles, ["user", "assistant"]);
        let said = match last(request) {
            "bad" => "\n\nunsafe\nS1,S10",
            "worse" => "unsafe\nS99",
            _ => "safe",
        };
        says(request, said)
    })
    .await;
    let guard = Guard::new("unsafe", client(&address, "guard")).categories(["S1", "S2"]);
    let (_, answers) = judged(
        Judge::new("unused", client(&address, "judge")),
        &["bad", "worse", "fine", "-"],
        &["fine", "fine", "bad", "fine"],
    );
    let measured = guard.score(&answers, &quick()).await.unwrap();
    let against = |new, old| Measurement::against(of(new, 3), of(old, 4));
    assert_eq!(measured["unsafe"], against(2, 1));
    assert_eq!(measured["unsafe.S1"], against(1, 1));
    assert_eq!(measured["unsafe.S2"], against(0, 0));
    assert_eq!(measured["unsafe.other"], against(2, 1));
    assert_eq!(measured["unsafe.unclassified"], against(0, 0));
    assert_eq!(
        measured.into_keys().collect::<BTreeSet<_>>(),
        guard.measures()
    );
}

#[tokio::test]
async fn a_service_scores_texts() {
    let address = server(|path, request| {
        assert_eq!(path, "/predict");
        let score = if request["inputs"] == "rude" {
            0.75
        } else {
            0.25
        };
        Json(json!([{"label": "toxic", "score": score}])).into_response()
    })
    .await;
    let toxicity = Toxicity::new(
        "toxicity",
        &format!("{address}/predict"),
        Scores::Classification("toxic".to_owned()),
    )
    .unwrap();
    let (_, answers) = judged(
        Judge::new("unused", client(&address, "judge")),
        &["rude", "rude", "fine", "-"],
        &["fine", "", "rude", "fine"],
    );
    let measured = toxicity.score(&answers, &quick()).await.unwrap();
    let Sample::Mean { mean, n, .. } = measured["toxicity"].candidate else {
        panic!()
    };
    assert!((mean - 1.75 / 3.0).abs() < 1e-12 && n == 3);
    let Some(Sample::Mean { mean, n, .. }) = measured["toxicity"].baseline else {
        panic!()
    };
    assert!((mean - 1.25 / 4.0).abs() < 1e-12 && n == 4);
    assert_eq!(
        measured["toxicity.above"],
        Measurement::against(of(2, 3), of(1, 4))
    );
    assert_eq!(
        measured.into_keys().collect::<BTreeSet<_>>(),
        toxicity.measures()
    );
    let other = Toxicity::new(
        "toxicity",
        &format!("{address}/predict"),
        Scores::Perspective("TOXICITY".to_owned()),
    )
    .unwrap();
    let error = other.score(&answers, &quick()).await.unwrap_err();
    assert!(error.to_string().contains("holds no score"), "{error}");
}

#[tokio::test]
async fn answers_are_compared_with_references() {
    let suite = Suite::from_jsonl(
        r#"{"input": "q", "ideal": ["the cat sat", "a dog"]}"#,
        Check::Match,
    )
    .unwrap();
    let answers = |new: Option<&str>, old: Option<&str>| {
        Answers::new(
            suite.clone(),
            vec![new.map(str::to_owned)],
            vec![old.map(str::to_owned)],
        )
        .unwrap()
    };
    for scorer in [
        Similarity::bleu("x"),
        Similarity::rouge_1("x"),
        Similarity::rouge_2("x"),
        Similarity::rouge_l("x"),
    ] {
        let measured = scorer
            .score(&answers(Some("The cat sat"), Some("nothing")), &quick())
            .await
            .unwrap();
        assert!(
            measured["x"].candidate.value() > 0.4
                && measured["x.difference"].candidate.value() > 0.4
        );
        assert!(measured["x"].baseline.unwrap().value() < 1e-9);
        let measured = scorer
            .score(&answers(None, Some("a dog")), &quick())
            .await
            .unwrap();
        assert!(
            measured["x"].candidate.value() < 1e-9
                && measured["x.difference"].candidate.value() < -0.9
        );
        assert_eq!(
            measured.into_keys().collect::<BTreeSet<_>>(),
            scorer.measures()
        );
    }
}

/// Text "ab cd" is three tokens; "new" finds each less probable.
fn ln(model: &Value, at: usize) -> f64 {
    -(at as f64) - if model == "new" { 0.5 } else { 0.0 }
}

fn likelihood(address: &str, form: LogProbs) -> LogLikelihood {
    LogLikelihood::new("held_out", ["ab cd"], form, models(address))
        .unwrap()
        .effort(quick())
}

fn check_likelihood(measured: &Measurements, bytes: f64) {
    // Tokens 1 and 2 of 0 to 2: 1.5 nats on average, 3 in all.
    let both = &measured["held_out"];
    assert!((both.baseline.unwrap().value() - 1.5).abs() < 1e-12);
    assert!((both.candidate.value() - 2.0).abs() < 1e-12);
    assert!((measured["held_out.difference"].candidate.value() - 0.5).abs() < 1e-12);
    let bits = measured["held_out.bits_per_byte"].baseline.unwrap().value();
    assert!(
        (bits - 3.0 / std::f64::consts::LN_2 / bytes).abs() < 1e-12,
        "{bits}"
    );
}

#[tokio::test]
async fn log_probabilities_are_echoed() {
    // As vLLM with a token at the beginning (`<s>`), and without one; the token that had to be made comes last.
    for (first, bytes) in [("<s>", 5.0), ("ab", 3.0)] {
        let address = server(move |path, request| {
            assert_eq!((path, &request["prompt"], &request["echo"]), ("/v1/completions", &json!("ab cd"), &json!(true)));
            let model = &request["model"];
            let logs = json!([null, ln(model, 1), ln(model, 2), -9.0]);
            Json(json!({
                "model": model, "usage": {"prompt_tokens": 3},
                "choices": [{"text": "", "logprobs": {"tokens": [first, " c", "d", "!"], "token_logprobs": logs}}],
            }))
            .into_response()
        })
        .await;
        let evaluator = likelihood(&address, LogProbs::Echo);
        let measured = evaluator
            .evaluate(&version('2'), &version('1'))
            .await
            .unwrap();
        check_likelihood(&measured, bytes);
        holds(&evaluator).await;
    }
    // llama.cpp takes the request, and tells of the token that it made.
    let address = server(|_, request| {
        Json(json!({
            "model": request["model"], "usage": {"prompt_tokens": 3},
            "choices": [{"text": "!", "logprobs": {"content": [{"id": 1, "token": "!", "logprob": -1.0}]}}],
        }))
        .into_response()
    })
    .await;
    let error = likelihood(&address, LogProbs::Echo)
        .evaluate(&version('2'), &version('1'))
        .await
        .unwrap_err();
    assert!(
        error.kind() == ErrorKind::Permanent && error.to_string().contains("LogProbs::LlamaCpp"),
        "{error}"
    );
}

#[tokio::test]
async fn log_probabilities_are_forced() {
    let address = server(|path, request| match path {
        "/tokenize" => Json(json!({"tokens": [{"id": 7, "piece": "ab"}, {"id": 8, "piece": " c"}, {"id": 9, "piece": [100]}]})).into_response(),
        "/completion" => {
            let prompt = request["prompt"].as_array().unwrap();
            let id = &request["logit_bias"][0][0];
            assert_eq!(*id, 7 + prompt.len());
            let log = ln(&request["model"], prompt.len());
            Json(json!({"model": request["model"], "completion_probabilities": [{"id": id, "logprob": log}]})).into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    })
    .await;
    let evaluator = likelihood(&address, LogProbs::LlamaCpp);
    let measured = evaluator
        .evaluate(&version('2'), &version('1'))
        .await
        .unwrap();
    check_likelihood(&measured, 3.0);
    holds(&evaluator).await;
    let error = evaluator
        .most_tokens(2)
        .evaluate(&version('2'), &version('1'))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("3 tokens"), "{error}");
}

/// Measures one thing, and says so or not.
#[derive(Debug)]
struct One(&'static str, bool);

#[async_trait]
impl Evaluator for One {
    async fn evaluate(&self, _: &VersionId, _: &VersionId) -> Result<Measurements> {
        Ok(Measurements::from([(
            self.0.to_owned(),
            Measurement::of(of(1, 2)),
        )]))
    }

    fn measures(&self) -> Option<BTreeSet<String>> {
        self.1.then(|| [self.0.to_owned()].into())
    }
}

#[tokio::test]
async fn evaluators_are_joined_and_nothing_is_measured_twice() {
    let both = Together::new()
        .with(One("a", true))
        .unwrap()
        .with(One("b", true))
        .unwrap();
    assert_eq!(
        both.measures(),
        Some(["a".to_owned(), "b".to_owned()].into())
    );
    let measured = both.evaluate(&version('2'), &version('1')).await.unwrap();
    assert_eq!(measured.len(), 2);
    let error = both.clone().with(One("b", true)).unwrap_err();
    assert!(
        error.to_string().contains("\"b\" would be measured twice"),
        "{error}"
    );
    let unknown = both.with(One("a", false)).unwrap();
    assert_eq!(unknown.measures(), None);
    let error = unknown
        .evaluate(&version('2'), &version('1'))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("\"a\" would be measured twice"),
        "{error}"
    );

    let address = server(|_, request| answers_of_four(request)).await;
    let builder = || SuiteEvaluator::builder("s", four(), models(&address));
    assert!(builder().build().is_err());
    let twice = builder()
        .scorer(Checks::new("a"))
        .scorer(Similarity::bleu("a"))
        .build();
    assert!(
        twice
            .unwrap_err()
            .to_string()
            .contains("\"a\" would be measured twice")
    );
    assert!(
        builder()
            .scorer(Checks::new("a"))
            .max_tokens(0)
            .build()
            .is_err()
    );
}
