//! Evaluators on real models of a real llama-server: one as published, the same in another quantisation, and one with noise in its weights.

use crate::stack::{Llama, env, version};
use llm_gates::{Action, Bound, Criterion, GateTable, Measurements, TableGate, Threshold, Verdict};
use llm_serve_adapters::backend::{ChatClient, Upstream};
use llm_serve_adapters::evaluate::{
    Check, Checks, Effort, Guard, Judge, LogLikelihood, LogProbs, Models, Scorer, Suite,
    SuiteEvaluator, Together,
};
use llm_serve_adapters::host::{ErrorKind, Evaluator};
use llm_serve_adapters::testing;
use std::time::Duration;

/// What even so small a model knows.
const SUITE: &str = r#"
{"name": "colours", "input": "Name three colors.", "ideal": ["Red", "red"]}
{"name": "sum", "input": "What is 2 + 2?", "ideal": "4"}
{"name": "hot", "input": "What is the opposite of hot?", "ideal": "cold"}
{"name": "sky", "input": "What color is the sky?", "ideal": "blue"}
{"name": "week", "input": "How many days are in a week?", "ideal": ["7", "seven"]}
{"name": "meow", "input": "Which animal says meow?", "ideal": "The cat!", "check": "fuzzy_match"}
{"name": "play", "input": "Who wrote Romeo and Juliet?", "ideal": "Shakespeare"}
"#;
/// What it has read in some form.
const TEXTS: [&str; 4] = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Water boils at one hundred degrees and freezes at zero degrees.",
    "The sun rises in the east and sets in the west every day.",
    "A week has seven days, and a year has twelve months.",
];

/// The three models, each on its own server.
struct Engines {
    running: Vec<Llama>,
    _folder: tempfile::TempDir,
}

const NAMES: [&str; 3] = ["v1", "v2", "bad"];

impl Engines {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut running = Vec::new();
        for name in NAMES {
            running.push(Llama::start(folder.path(), name).await);
        }
        Self {
            running,
            _folder: folder,
        }
    }

    fn client(&self, name: &str) -> ChatClient {
        let at = NAMES.iter().position(|known| *known == name).unwrap();
        let address = format!("http://127.0.0.1:{}", self.running[at].port());
        ChatClient::new(&Upstream::new(address, name)).unwrap()
    }

    fn models(&self) -> Models {
        Models::from_iter(NAMES.map(|name| (version(name), self.client(name))))
    }
}

fn effort() -> Effort {
    Effort::default().concurrency(2)
}

fn suite(engines: &Engines, lines: usize) -> SuiteEvaluator {
    let lines: Vec<_> = SUITE.trim().lines().take(lines).collect();
    let suite = Suite::from_jsonl(&lines.join("\n"), Check::Includes).unwrap();
    SuiteEvaluator::builder("suite", suite, engines.models())
        .scorer(Checks::new("passed"))
        .effort(effort())
        .max_tokens(12)
        .build()
        .unwrap()
}

fn held_out(engines: &Engines, texts: usize) -> LogLikelihood {
    let texts = TEXTS.into_iter().take(texts);
    LogLikelihood::new("nats", texts, LogProbs::LlamaCpp, engines.models())
        .unwrap()
        .effort(effort())
}

fn gates() -> GateTable {
    let point = |metric, must_be, threshold| {
        TableGate::new(metric, must_be, threshold, Action::Block)
            .criterion(Criterion::Point { min_n: 4 })
    };
    GateTable::new(vec![
        point("passed", Bound::AtLeast, Threshold::BaselinePlus(-0.3)),
        point("nats.difference", Bound::Below, Threshold::Absolute(0.25)),
    ])
}

fn value(measured: &Measurements, metric: &str) -> f64 {
    measured[metric].candidate.value()
}

#[tokio::test]
#[ignore = "needs llama-server: e2e/run evals"]
async fn the_damaged_model_is_blocked_and_the_sound_one_is_not() {
    let engines = Engines::start().await;
    let both = Together::new()
        .with(suite(&engines, 100))
        .unwrap()
        .with(held_out(&engines, 100))
        .unwrap();
    for (name, verdict) in [("v2", Verdict::Pass), ("bad", Verdict::Fail)] {
        let measured = both.evaluate(&version(name), &version("v1")).await.unwrap();
        let report = gates().evaluate(&measured);
        let of = |metric: &str| value(&measured, metric);
        let baseline = |metric: &str| measured[metric].baseline.unwrap().value();
        println!(
            "ok      {} against v1: passes {:.0} % (v1 {:.0} %), unanswered {:.0} %, mean log-probability {:.2} (v1 {:.2}), in pairs {:+.2}; bits per byte {:.2} (v1 {:.2}): {:?}",
            name,
            100.0 * of("passed"),
            100.0 * baseline("passed"),
            100.0 * of("suite.unanswered"),
            -of("nats"),
            -baseline("nats"),
            -of("nats.difference"),
            of("nats.bits_per_byte"),
            baseline("nats.bits_per_byte"),
            report.verdict,
        );
        assert_eq!(report.verdict, verdict, "{report}");
        assert!(baseline("passed") >= 0.5, "{measured:?}");
        if verdict == Verdict::Fail {
            // Noise of 0.35 standard deviations costs some 7 nats a token and more.
            assert!(
                of("passed") < 0.2 && of("nats.difference") > 5.0,
                "{measured:?}"
            );
        }
    }
    crate::verified("evaluators", "llama.cpp", &env("LLM_E2E_LLAMA_VERSION"));
}

#[tokio::test]
#[ignore = "needs llama-server: e2e/run evals"]
async fn the_conformance_suite_holds_on_a_real_engine() {
    let engines = Engines::start().await;
    let both = Together::new()
        .with(suite(&engines, 3))
        .unwrap()
        .with(held_out(&engines, 1))
        .unwrap();
    testing::evaluator::suite(testing::evaluator::Subject {
        evaluator: &both,
        version: &version("v1"),
        other: &version("v2"),
        unknown: &format!("chat/v9.9.9-{}", "9".repeat(64)).parse().unwrap(),
        // Greedy answers may differ where the engine computes in other batches, and so may the last digits of logarithms.
        noise: |metric: &str| {
            if metric.starts_with("nats") {
                0.05
            } else {
                0.34
            }
        },
        within: Duration::from_secs(300),
    })
    .await
    .unwrap();
    println!("ok      the evaluators' conformance suite on llama-server");
}

#[tokio::test]
#[ignore = "needs llama-server: e2e/run evals"]
async fn what_the_engine_cannot_do_is_an_error_and_no_measurement() {
    let engines = Engines::start().await;
    // llama-server takes `echo` and ignores it.
    let echo = LogLikelihood::new("nats", [TEXTS[0]], LogProbs::Echo, engines.models()).unwrap();
    let error = echo
        .evaluate(&version("v2"), &version("v1"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent);
    assert!(error.to_string().contains("LogProbs::LlamaCpp"), "{error}");
    // A model that can neither judge nor classify is recognised by its replies.
    let answers = suite(&engines, 5)
        .answers(&version("bad"), &version("v1"))
        .await
        .unwrap();
    let judge = Judge::new("win_rate", engines.client("bad")).max_tokens(8);
    let guard = Guard::new("unsafe", engines.client("bad"));
    for scorer in [&judge as &dyn Scorer, &guard] {
        let error = scorer
            .score(&answers, &effort().tries(1))
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("missing or cannot be understood"),
            "{error}"
        );
    }
    println!(
        "ok      no log-probabilities of the text, a judge and a classifier that cannot: refused, not measured"
    );
}
