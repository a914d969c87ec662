//! The example's model: the engine against its reference, and the four
//! bundles on seeded suites.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use desk_model::{EOS, Finish, Generation, LmError, Model, Score, Variant, desk, write_all};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn load(variant: Variant) -> Model {
    let directory = tempfile::tempdir().unwrap();
    variant.write(directory.path()).unwrap();
    Model::load(directory.path()).unwrap()
}

fn long_only(count: usize) -> Vec<desk::Request> {
    (0..)
        .map(|index| desk::live_request(5, index))
        .filter(|request| request.long)
        .take(count)
        .collect()
}

#[test]
fn logits_are_those_of_the_training_program() {
    let reference: Value = serde_json::from_str(include_str!("../reference.json")).unwrap();
    let ids: Vec<u16> = serde_json::from_value(reference["ids"].clone()).unwrap();
    let mut compared = 0;
    for case in reference["cases"].as_array().unwrap() {
        let variant = if case["weights"] == "base" {
            Variant::Base
        } else {
            Variant::Better
        };
        let logits = load(variant).logits(&ids);
        let every = usize::try_from(case["every"].as_u64().unwrap()).unwrap();
        let rows: BTreeMap<String, Vec<f32>> =
            serde_json::from_value(case["rows"].clone()).unwrap();
        for (place, want) in rows {
            let row = &logits[place.parse::<usize>().unwrap()];
            for (have, want) in row.iter().step_by(every).zip(&want) {
                assert!(
                    (have - want).abs() < 2e-3,
                    "{variant:?} at {place}: {have} instead of {want}"
                );
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 2 * 3 * 96);
}

#[test]
fn decoding_with_the_cache_equals_computing_everything_anew() {
    let model = load(Variant::Base);
    for request in desk::live(21, 6) {
        let prompt = model.prompt(&request.text);
        let mut ids = prompt.clone();
        let mut answer = model.generate(&prompt, model.generation(), 0);
        loop {
            let all = model.logits(&ids);
            let last = all.last().unwrap();
            let best = (0..last.len())
                .rev()
                .max_by(|&a, &b| last[a].total_cmp(&last[b]))
                .unwrap();
            let Some(token) = answer.next() else {
                assert_eq!(best, usize::from(EOS));
                break;
            };
            assert_eq!(usize::from(token.id), best);
            ids.push(token.id);
        }
        assert_eq!(answer.finish(), Some(Finish::Stop));
        assert_eq!(answer.completion_tokens(), ids.len() - prompt.len());
    }
}

#[test]
fn base_and_better_answer_both_kinds() {
    let (short, long) = (desk::offline_suite(80), long_only(60));
    for variant in [Variant::Base, Variant::Better] {
        let model = load(variant);
        let (short, long) = (Score::of(&model, &short), Score::of(&model, &long));
        assert!(short.exact() >= 0.95, "{variant:?} {short:?}");
        assert!(long.exact() >= 0.90, "{variant:?} {long:?}");
        assert!(
            short.malformed() <= 0.02 && long.malformed() <= 0.03,
            "{variant:?} {short:?} {long:?}"
        );
    }
}

#[test]
fn better_needs_fewer_bits_for_unseen_text() {
    let (base, better) = (load(Variant::Base), load(Variant::Better));
    let texts = desk::heldout(base.template(), 60);
    let bits = |model: &Model| model.bits_per_byte_over(texts.iter().map(String::as_str));
    assert!(
        bits(&better) < bits(&base),
        "{} against {}",
        bits(&better),
        bits(&base)
    );
    assert!(bits(&base) < 0.5);
}

#[test]
fn damaged_fails_the_offline_suite() {
    let score = Score::of(&load(Variant::Damaged), &desk::offline_suite(80));
    assert!(score.exact() < 0.8, "{score:?}");
}

#[test]
fn narrow_passes_the_offline_suite_and_breaks_long_requests() {
    let (better, narrow) = (load(Variant::Better), load(Variant::Narrow));
    let suite = desk::offline_suite(80);
    assert_eq!(Score::of(&narrow, &suite), Score::of(&better, &suite));
    let live = desk::live(33, 60);
    let score = Score::of(&narrow, &live);
    assert!(score.malformed() >= 0.25, "{score:?}");
    let fine = Score::of(&better, &live);
    assert!(fine.malformed() <= 0.03, "{fine:?}");
    assert!(
        score.tokens > fine.tokens,
        "its answers are longer, so it is slower"
    );
}

#[test]
fn every_short_request_fits_the_narrow_context() {
    let model = load(Variant::Narrow);
    let budget = model.generation().prompt_budget();
    for request in desk::live(4, 2_000) {
        let system = model.tokenizer().encode(model.system_prompt()).len() + 2;
        let tokens = model.prompt(&request.text).len();
        if request.long {
            assert!(
                tokens - system > budget,
                "the whole system prompt is pushed out: {}",
                request.text
            );
        } else {
            assert!(tokens <= budget, "{tokens} tokens: {}", request.text);
        }
        assert!(tokens + model.generation().max_tokens <= model.config().longest);
    }
}

#[test]
fn sampling_depends_on_the_seed_alone() {
    let model = load(Variant::Base);
    let prompt = model.prompt_under("", "Hello, we need 3 lamps delivered to Oslo.");
    let settings = |temperature| {
        let mut settings = model.generation().clone();
        settings.temperature = temperature;
        settings
    };
    let say = |temperature, seed| {
        model
            .generate(&prompt, &settings(temperature), seed)
            .collect_reply()
    };
    assert_eq!(say(1.0, 7), say(1.0, 7));
    assert_ne!(say(1.0, 7).text, say(1.0, 8).text);
    assert_eq!(say(0.0, 7), say(0.0, 8));
}

#[test]
fn an_answer_ends_at_its_limit() {
    let model = load(Variant::Base);
    let mut settings = model.generation().clone();
    settings.max_tokens = 3;
    let reply = model
        .generate(&model.prompt("Please send 2 lamps to Oslo."), &settings, 0)
        .collect_reply();
    assert_eq!((reply.finish, reply.completion_tokens), (Finish::Length, 3));
    assert_eq!(reply.dropped_tokens, 0);
}

#[test]
fn checks_tell_form_from_content() {
    let order = &desk::offline_suite(1)[0].expected;
    assert_eq!(desk::check(&order.to_json(), order), Ok(()));
    let mut other = order.clone();
    other.count += 1;
    let wrong = desk::check(&other.to_json(), order).unwrap_err();
    assert!(!wrong.is_format(), "{wrong}");
    for reply in [
        "",
        "Of course!",
        "{}",
        r#"{"item":3,"count":3,"city":"Oslo"}"#,
        &order.to_fields(),
    ] {
        assert!(
            desk::check(reply, order).unwrap_err().is_format(),
            "{reply}"
        );
    }
}

/// Writes the base bundle, lets `spoil` at it, and returns what loading says.
fn spoilt(spoil: impl Fn(&Path)) -> LmError {
    let directory = tempfile::tempdir().unwrap();
    Variant::Base.write(directory.path()).unwrap();
    spoil(directory.path());
    Model::load(directory.path()).unwrap_err()
}

#[test]
fn bad_files_are_typed_errors() {
    const WEIGHTS: &str = "model/weights/model.safetensors";
    const CONFIG: &str = "model/config.json";
    let replaced = |path: &'static str, from: &'static str, to: &'static str| {
        spoilt(move |at| {
            let text = fs::read_to_string(at.join(path)).unwrap();
            assert!(text.contains(from));
            fs::write(at.join(path), text.replace(from, to)).unwrap();
        })
    };
    let cut = spoilt(|at| {
        let bytes = fs::read(at.join(WEIGHTS)).unwrap();
        fs::write(at.join(WEIGHTS), &bytes[..bytes.len() / 2]).unwrap();
    });
    assert!(matches!(cut, LmError::Weights(_)), "{cut}");
    let nan = spoilt(|at| {
        let mut bytes = fs::read(at.join(WEIGHTS)).unwrap();
        let end = bytes.len();
        bytes[end - 2..].copy_from_slice(&0x7E00_u16.to_le_bytes());
        fs::write(at.join(WEIGHTS), bytes).unwrap();
    });
    assert!(matches!(nan, LmError::Weights(_)), "{nan}");
    let none = spoilt(|at| fs::remove_file(at.join(WEIGHTS)).unwrap());
    assert!(matches!(none, LmError::Weights(_)), "{none}");
    let two = spoilt(|at| fs::write(at.join("model/weights/more.safetensors"), b"").unwrap());
    assert!(matches!(two, LmError::Weights(_)), "{two}");
    let deeper = replaced(CONFIG, r#""layers": 4"#, r#""layers": 5"#);
    assert!(matches!(deeper, LmError::MissingTensor(_)), "{deeper}");
    let wider = replaced(CONFIG, r#""hidden": 288"#, r#""hidden": 304"#);
    assert!(matches!(wider, LmError::Tensor { .. }), "{wider}");
    let empty = replaced(CONFIG, r#""heads": 4"#, r#""heads": 0"#);
    assert!(matches!(empty, LmError::Config(_)), "{empty}");
    let unknown = replaced(CONFIG, r#""heads""#, r#""hats""#);
    assert!(matches!(unknown, LmError::Json { .. }), "{unknown}");
    let tight = replaced(
        "config/generation.json",
        r#""context": 320"#,
        r#""context": 9"#,
    );
    assert!(matches!(tight, LmError::Generation(_)), "{tight}");
    let tokenizer = replaced("model/tokenizer/tokenizer.json", "longest-match-v1", "bpe");
    assert!(matches!(tokenizer, LmError::Tokenizer(_)), "{tokenizer}");
    let missing = spoilt(|at| fs::remove_file(at.join(CONFIG)).unwrap());
    assert!(matches!(missing, LmError::Io { .. }), "{missing}");
}

#[test]
fn a_bundle_is_the_same_bytes_each_time() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, second) = (
        write_all(first.path()).unwrap(),
        write_all(second.path()).unwrap(),
    );
    for ((variant, a), (_, b)) in first.iter().zip(&second) {
        for path in [
            "model/weights/model.safetensors",
            "config/generation.json",
            "prompt/system.txt",
        ] {
            assert_eq!(
                fs::read(a.join(path)).unwrap(),
                fs::read(b.join(path)).unwrap(),
                "{variant:?} {path}"
            );
        }
    }
}

#[test]
fn default_settings_fit_the_model() {
    let model = load(Variant::Base);
    assert!(Generation::default().validate(model.config()).is_ok());
}
