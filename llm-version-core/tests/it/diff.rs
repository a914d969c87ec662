//! What a difference requires, and whether one can go back.

use std::collections::BTreeMap;

use llm_version_core::{
    BaseModel, Bump, Component, ComponentKind, ComponentPath, Contract, Detail, Diff, Digest,
    Draft, EmbeddingSpace, Licence, Manifest, Name, Obstacle, OutputField, OutputSchema,
    Requirement, Risk, Safety, Step, Subject, Surroundings, Tensor, TokenizerContract, Version,
    diff, diff_contents, transition,
};
use proptest::prelude::*;

type ContractChange = Box<dyn Fn(&mut Contract)>;
type Happening = fn(&mut Surroundings, &Manifest);
type Expected = fn(&Obstacle) -> bool;
type Files<'a> = &'a [(&'a str, &'a str)];

fn manifest(files: Files<'_>, change: impl FnOnce(&mut Draft)) -> Manifest {
    let mut draft = Draft::new(Name::new("chat").unwrap(), Version::new(1, 0, 0));
    for (path, text) in files {
        let path: ComponentPath = path.parse().unwrap();
        let kind = ComponentKind::of_path(&path).unwrap();
        draft.components.push(Component::new(
            path,
            kind,
            text.len() as u64,
            Digest::of(text.as_bytes()),
        ));
    }
    change(&mut draft);
    draft.finish().unwrap()
}

fn contents(old: Files<'_>, new: Files<'_>) -> Diff {
    let read = |files: Files<'_>| -> BTreeMap<String, Vec<u8>> {
        files
            .iter()
            .map(|(p, t)| ((*p).to_owned(), t.as_bytes().to_vec()))
            .collect()
    };
    let (a, b) = (read(old), read(new));
    diff_contents(
        &manifest(old, |_| ()),
        &manifest(new, |_| ()),
        &|c: &Component| a.get(c.path.as_str()).cloned(),
        &|c: &Component| b.get(c.path.as_str()).cloned(),
    )
}

fn file(path: &str, old: &str, new: &str) -> (Bump, Risk, Diff) {
    let diff = contents(&[(path, old)], &[(path, new)]);
    (diff.required(), diff.risk(), diff)
}

#[test]
fn each_kind_of_file_requires_what_the_table_says() {
    for (path, bump, risk) in [
        ("model/config.json", Bump::Major, Risk::Interface),
        (
            "model/tokenizer/tokenizer.json",
            Bump::Major,
            Risk::Interface,
        ),
        (
            "model/tokenizer/chat_template.jinja",
            Bump::Major,
            Risk::Interface,
        ),
        ("model/weights/model.gguf", Bump::Minor, Risk::Behavioural),
        (
            "model/adapters/a/adapter.safetensors",
            Bump::Minor,
            Risk::Behavioural,
        ),
        ("prompt/system.txt", Bump::Minor, Risk::Behavioural),
        ("prompt/few_shot/1.json", Bump::Minor, Risk::Behavioural),
        ("config/safety.json", Bump::Minor, Risk::Safety),
        ("config/generation.json", Bump::Patch, Risk::Behavioural),
        ("config/routing.json", Bump::Patch, Risk::Operational),
    ] {
        let one = manifest(&[("prompt/x", ""), (path, "a")], |_| ());
        let two = manifest(&[("prompt/x", ""), (path, "b")], |_| ());
        let none = manifest(&[("prompt/x", "")], |_| ());
        for (old, new) in [(&one, &two), (&one, &none), (&none, &one)] {
            let found = diff(old, new);
            assert_eq!(
                (found.required(), found.risk(), found.changes.len()),
                (bump, risk, 1),
                "{path}"
            );
        }
        assert!(diff(&one, &one).changes.is_empty());
    }
}

#[test]
fn configurations_are_compared_by_value() {
    let config = "model/config.json";
    let (bump, risk, found) = file(
        config,
        r#"{"hidden_size":8,"a":{"b":[1]}}"#,
        r#"{"a":{"b":[1]}, "hidden_size":16}"#,
    );
    assert_eq!((bump, risk), (Bump::Major, Risk::Interface));
    assert_eq!(
        found.changes[0].details,
        [value("/hidden_size", Some("8"), Some("16"))]
    );
    assert_eq!(
        file(config, r#"{"a":1,"b":2}"#, r#"{"b":2, "a":1}"#).0,
        Bump::Patch,
        "only written differently"
    );
    assert_eq!(
        file(
            config,
            r#"{"transformers_version":"4"}"#,
            r#"{"transformers_version":"5"}"#
        )
        .0,
        Bump::Patch
    );
    assert_eq!(
        file(
            config,
            r#"{"torch_dtype":"float32"}"#,
            r#"{"torch_dtype":"bfloat16"}"#
        )
        .0,
        Bump::Minor
    );
    let length = |n| format!("{{\"max_position_embeddings\":{n}}}");
    assert_eq!(file(config, &length(8), &length(16)).0, Bump::Minor);
    assert_eq!(file(config, &length(16), &length(8)).0, Bump::Major);
    let generation = "config/generation.json";
    assert_eq!(
        file(
            generation,
            r#"{"temperature":0.7}"#,
            r#"{"temperature":0.9}"#
        )
        .0,
        Bump::Patch
    );
    assert_eq!(
        file(generation, r#"{"stop":["a"]}"#, r#"{"stop":["b"]}"#).0,
        Bump::Major
    );
}

fn value(at: &str, old: Option<&str>, new: Option<&str>) -> Detail {
    // The enum is open; a diff is asked for one instead.
    let text = |v: Option<&str>| v.map_or_else(|| "null".to_owned(), |v| format!("\"{v}\""));
    let json = format!(
        r#"{{"value":{{"at":"{at}","old":{},"new":{}}}}}"#,
        text(old),
        text(new)
    );
    serde_json::from_str(&json).unwrap()
}

#[test]
fn prompts_are_shown_as_a_unified_diff() {
    let (bump, risk, found) = file(
        "prompt/system.txt",
        "Be kind.\nBe brief.\n",
        "Be kind.\nBe exact.\n",
    );
    assert_eq!((bump, risk), (Bump::Minor, Risk::Behavioural));
    let text = found.to_string();
    assert!(
        text.contains("-Be brief.") && text.contains("+Be exact."),
        "{text}"
    );
}

#[test]
fn examples_are_compared_one_by_one() {
    let example = |n: u32| format!(r#"{{"user":"q{n}","reply":"a{n}"}}"#);
    let list = |numbers: &[u32]| {
        let examples: Vec<String> = numbers.iter().map(|n| example(*n)).collect();
        format!("[{}]", examples.join(","))
    };
    let path = "prompt/few_shot/chat.json";
    let details = |old: &str, new: &str| {
        let (bump, risk, found) = file(path, old, new);
        assert_eq!((bump, risk), (Bump::Minor, Risk::Behavioural));
        found.changes[0].details.clone()
    };
    // One put in between is one that is new, not a change of all that follow.
    let found = details(&list(&[1, 2, 3]), &list(&[1, 9, 2, 3]));
    let [
        Detail::Value {
            at,
            old: None,
            new: Some(new),
        },
    ] = &found[..]
    else {
        panic!("{found:?}")
    };
    assert!(at == "/1" && new.contains("q9"));
    assert!(matches!(
        &details(&list(&[1, 2, 3]), &list(&[1, 3]))[..],
        [Detail::Value { at, old: Some(_), new: None }] if at == "/1"
    ));
    let reply = list(&[1, 2]).replace("a2", "b2");
    assert_eq!(
        details(&list(&[1, 2]), &reply),
        [value("/1/reply", Some("\\\"a2\\\""), Some("\\\"b2\\\""))]
    );
}

#[test]
fn tokenizers_are_compared_by_what_they_do() {
    let path = "model/tokenizer/tokenizer.json";
    let old = r#"{"model":{"vocab":{"a":0,"b":1,"c":2},"merges":["a b"]},"added_tokens":[{"id":3,"content":"<end>","special":true}]}"#;
    let new = r#"{"model":{"vocab":{"a":0,"b":2,"d":1},"merges":["a d"]},"added_tokens":[{"id":4,"content":"<end>","special":true}]}"#;
    let (bump, _, found) = file(path, old, new);
    let text = found.to_string();
    assert_eq!(bump, Bump::Major);
    for words in [
        "1 tokens are gone, such as \"c\"",
        "1 tokens are new, such as \"d\"",
        "moved to another id, such as \"b\"",
        "merges differ",
        "\"<end>\" = 3 is gone",
        "\"<end>\" = 4 is new",
    ] {
        assert!(text.contains(words), "{words} not in {text}");
    }
    assert_eq!(file(path, old, &old.replace(',', ", ")).0, Bump::Patch);
}

#[test]
fn contents_that_are_not_what_the_manifest_says_change_nothing() {
    let (old, new) = (
        manifest(&[("model/config.json", "{\"a\":1}")], |_| ()),
        manifest(&[("model/config.json", "{\"a\":2}")], |_| ()),
    );
    let lies = |_: &Component| Some(b"{}".to_vec());
    assert_eq!(
        diff_contents(&old, &new, &lies, &lies).required(),
        Bump::Major
    );
}

/// Path, bytes, and tensors as name, element type, length and data.
type Shard<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str, u64, &'a str)]);

fn weights(files: &[Shard<'_>]) -> Manifest {
    manifest(&[("prompt/x", "")], |draft| {
        for (path, bytes, tensors) in files {
            let path: ComponentPath = path.parse().unwrap();
            let kind = ComponentKind::of_path(&path).unwrap();
            let mut component = Component::new(path, kind, 8, Digest::of(bytes.as_bytes()));
            component.tensors = tensors
                .iter()
                .map(|(name, dtype, n, data)| {
                    Tensor::new(*name, *dtype, vec![*n], Digest::of(data.as_bytes()))
                })
                .collect();
            draft.components.push(component);
        }
    })
}

#[test]
fn weights_are_compared_by_tensor() {
    let w = "model/weights/1.safetensors";
    let old = weights(&[(w, "file", &[("a", "F32", 2, "x"), ("b", "F32", 3, "y")])]);
    let check = |new: &Manifest, bump, words: &str| {
        let found = diff(&old, new);
        assert_eq!(
            (found.required(), found.changes.len()),
            (bump, 1),
            "{found}"
        );
        assert!(found.changes[0].reason.contains(words), "{found}");
        assert_eq!(
            found.changes[0].subject,
            Subject::Tensors(ComponentKind::Weights)
        );
    };
    check(
        &weights(&[
            ("model/weights/2.safetensors", "f1", &[("b", "F32", 3, "y")]),
            (w, "f2", &[("a", "F32", 2, "x")]),
        ]),
        Bump::Patch,
        "repacked",
    );
    check(
        &weights(&[(w, "f", &[("a", "F32", 2, "x"), ("b", "F32", 3, "z")])]),
        Bump::Minor,
        "1 of 2 tensors have other values",
    );
    let tuned = weights(&[(w, "f", &[("a", "F32", 2, "x"), ("b", "F32", 3, "z")])]);
    let named = diff(&old, &tuned).to_string();
    assert!(named.contains("tensor b has other values"), "{named}");
    check(
        &weights(&[(w, "f", &[("a", "F16", 2, "p"), ("b", "F16", 3, "q")])]),
        Bump::Minor,
        "requantised",
    );
    check(
        &weights(&[(w, "f", &[("a", "F32", 4, "x"), ("b", "F32", 3, "y")])]),
        Bump::Major,
        "another architecture",
    );
    check(
        &weights(&[(w, "f", &[("a", "F32", 2, "x")])]),
        Bump::Major,
        "another architecture",
    );
}

fn with_contract(change: impl FnOnce(&mut Contract)) -> Manifest {
    manifest(&[("prompt/x", "")], |draft| {
        let contract = &mut draft.contract;
        contract.api = Some("openai-chat/v1".into());
        contract.context_length = Some(8192);
        contract.modalities = ["text".to_owned()].into();
        contract.tool_format = Some("hermes".into());
        contract.stop_tokens = ["<end>".to_owned()].into();
        contract.embedding_space = Some(EmbeddingSpace::new("one", 8));
        contract.tokenizer = Some(TokenizerContract::new(Digest::of(b"t")));
        contract.probes = [("hello".to_owned(), Digest::of(b"rendered"))].into();
        contract.runtime = [("vllm".to_owned(), ">=0.9, <0.11".to_owned())].into();
        let mut schema = OutputSchema::default();
        schema.fields = [OutputField::new("answer", true, ["string"])].into();
        contract.output_schema = Some(schema);
        change(contract);
    })
}

#[test]
fn contracts_break_or_grow() {
    let old = with_contract(|_| ());
    let fields = |c: &mut Contract, fields: &[OutputField]| {
        let mut schema = OutputSchema::default();
        schema.fields = fields.iter().cloned().collect();
        c.output_schema = Some(schema);
    };
    let answer = || OutputField::new("answer", true, ["string"]);
    let cases: Vec<(Bump, ContractChange)> = vec![
        (Bump::None, Box::new(|_| ())),
        (Bump::Major, Box::new(|c| c.api = Some("other".into()))),
        (Bump::Major, Box::new(|c| c.api = None)),
        (Bump::Major, Box::new(|c| c.context_length = Some(4096))),
        (Bump::Minor, Box::new(|c| c.context_length = Some(9000))),
        (Bump::Major, Box::new(|c| c.modalities.clear())),
        (
            Bump::Minor,
            Box::new(|c| {
                c.modalities.insert("image".into());
            }),
        ),
        (
            Bump::Major,
            Box::new(|c| c.tool_format = Some("openai".into())),
        ),
        (
            Bump::Major,
            Box::new(|c| {
                c.stop_tokens.insert("x".into());
            }),
        ),
        (
            Bump::Major,
            Box::new(|c| c.embedding_space = Some(EmbeddingSpace::new("two", 8))),
        ),
        (
            Bump::Major,
            Box::new(|c| c.tokenizer = Some(TokenizerContract::new(Digest::of(b"u")))),
        ),
        (
            Bump::Major,
            Box::new(|c| {
                c.probes.insert("hello".into(), Digest::of(b"other"));
            }),
        ),
        (
            Bump::Patch,
            Box::new(|c| c.chat_template = Some(Digest::of(b"text"))),
        ),
        (
            Bump::Minor,
            Box::new(|c| {
                c.runtime.insert("vllm".into(), ">=0.10".into());
            }),
        ),
        (
            Bump::Major,
            Box::new(move |c| fields(c, &[OutputField::new("answer", false, ["string"])])),
        ),
        (
            Bump::Major,
            Box::new(move |c| fields(c, &[OutputField::new("answer", true, ["null", "string"])])),
        ),
        (
            Bump::Major,
            Box::new(move |c| fields(c, &[OutputField::new("other", true, ["string"])])),
        ),
        (
            Bump::Minor,
            Box::new(move |c| fields(c, &[answer(), OutputField::new("more", false, ["string"])])),
        ),
    ];
    for (n, (bump, change)) in cases.iter().enumerate() {
        let found = diff(&old, &with_contract(change));
        assert_eq!(found.required(), *bump, "case {n}: {found}");
    }
}

#[test]
fn dependencies_licences_and_base_models_count() {
    let base = |change: fn(&mut Draft)| {
        manifest(&[("prompt/x", "")], |d| {
            d.dependencies.insert("vllm".into(), "1.2.3".into());
            d.licences.insert(Licence::new("Apache-2.0"));
            d.lineage.base_model = Some(BaseModel::new("org/base"));
            change(d);
        })
    };
    let old = base(|_| ());
    for (bump, change) in [
        (Bump::None, (|_| ()) as fn(&mut Draft)),
        (Bump::Patch, |d| {
            d.dependencies.insert("vllm".into(), "1.2.4".into());
        }),
        (Bump::Major, |d| {
            d.dependencies.insert("vllm".into(), "2.0".into());
        }),
        (Bump::Minor, |d| {
            d.dependencies.clear();
        }),
        (Bump::Major, |d| {
            d.licences = [Licence::new("CC-BY-NC-4.0")].into();
        }),
        (Bump::None, |d| {
            d.licences = [Licence::new("MIT")].into();
        }),
        (Bump::Major, |d| {
            d.lineage.base_model = Some(BaseModel::new("org/other"));
        }),
        (Bump::None, |d| {
            d.lineage.seeds.insert("a".into(), "1".into());
        }),
    ] {
        let found = diff(&old, &base(change));
        assert_eq!(found.required(), bump, "{found}");
    }
}

#[test]
fn a_bump_that_is_too_small_is_refused_with_the_version_that_is_not() {
    let old = manifest(&[("prompt/system.txt", "a")], |_| ());
    let at = |version, text| manifest(&[("prompt/system.txt", text)], |d| d.version = version);
    let error = diff(&old, &at(Version::new(1, 0, 1), "b"))
        .check_bump()
        .unwrap_err();
    assert_eq!(
        (error.required, error.next.as_str()),
        (Bump::Minor, "1.1.0")
    );
    assert!(error.to_string().contains("prompt/system.txt"), "{error}");
    for version in [Version::new(1, 1, 0), Version::new(2, 0, 0)] {
        assert!(diff(&old, &at(version, "b")).bump_suffices());
    }
    assert!(
        !diff(&old, &at(Version::new(0, 9, 0), "b")).bump_suffices(),
        "versions only grow"
    );
    assert!(
        !diff(&old, &at(Version::new(1, 0, 0), "b")).bump_suffices(),
        "same number, other content"
    );
    assert!(diff(&old, &at(Version::new(1, 0, 0), "a")).bump_suffices());
}

fn steps(safety: &Safety) -> &[Step] {
    match safety {
        Safety::NeedsAction(steps) => steps,
        other => panic!("{other}"),
    }
}

#[test]
fn going_back_needs_what_has_moved_on() {
    let (old, other) = (
        with_contract(|_| ()),
        with_contract(|c| {
            c.embedding_space = Some(EmbeddingSpace::new("two", 8));
            c.tokenizer = Some(TokenizerContract::new(Digest::of(b"u")));
            c.probes.insert("hello".into(), Digest::of(b"other"));
            c.context_length = Some(32_768);
        }),
    );
    let mut around = Surroundings::default();
    around.runtimes.insert("vllm".into(), "0.10.2".into());
    assert_eq!(
        transition(&old, &other, &around).back,
        Safety::Safe,
        "nothing is stored and nobody is served"
    );
    around.index_written = true;
    around.live_sessions = true;
    around.stored_histories = true;
    around.longest_session = Some(20_000);
    let mut needs = Requirement::default();
    needs.context_length = Some(16_000);
    around.consumers.insert("app".into(), needs);
    let found = transition(&old, &other, &around);
    let back = steps(&found.back);
    assert!(matches!(&back[0], Step::RestoreIndex { stored: Some(s), .. } if s.id == "two"));
    assert!(
        matches!(&back[1], Step::PinSessions { because } if because == "tokenizer and chat template")
    );
    assert_eq!(back[2], Step::ConvertHistories);
    assert!(matches!(
        back[3],
        Step::ShortenSessions {
            longest: 20_000,
            context: 8192
        }
    ));
    assert!(matches!(&back[4], Step::MoveConsumer { consumer, .. } if consumer == "app"));
    assert_eq!(back.len(), 5);
    assert_eq!(steps(&found.forward).len(), 3);
    around.runtimes.insert("vllm".into(), "0.8.5.post1".into());
    assert!(matches!(
        steps(&transition(&old, &old, &around).forward).last(),
        Some(Step::ChangeRuntime { .. })
    ));
}

#[test]
fn some_ways_back_are_closed() {
    let (old, new) = (
        with_contract(|_| ()),
        with_contract(|c| c.api = Some("b".into())),
    );
    let cases: [(Happening, Expected); 4] = [
        (
            |s, old| {
                s.revoked.insert(old.id().clone());
            },
            |o| matches!(o, Obstacle::Revoked(_)),
        ),
        (
            |s, old| {
                s.unavailable.insert(old.id().clone());
            },
            |o| matches!(o, Obstacle::BytesMissing(_)),
        ),
        (
            |s, old| {
                s.key_revoked.insert(old.id().clone());
            },
            |o| matches!(o, Obstacle::KeyRevoked(_)),
        ),
        (
            |s, _| s.floor = Some(Version::new(1, 0, 1)),
            |o| matches!(o, Obstacle::BelowFloor { .. }),
        ),
    ];
    for (change, expected) in cases {
        let mut around = Surroundings::default();
        change(&mut around, &old);
        match transition(&old, &new, &around).back {
            Safety::Forbidden(found) => {
                assert!(expected(&found[0]) && found.len() == 1, "{found:?}");
            }
            other => panic!("{other}"),
        }
    }
    let adapter = with_contract(|c| c.adapter_base = Some(Digest::of(b"base")));
    let mut around = Surroundings::default();
    around.base_weights = Some(Digest::of(b"another"));
    assert!(matches!(
        transition(&old, &adapter, &around).forward,
        Safety::Forbidden(_)
    ));
    around.base_weights = Some(Digest::of(b"base"));
    assert!(!matches!(
        transition(&old, &adapter, &around).forward,
        Safety::Forbidden(_)
    ));
}

proptest! {
    // A tree compared with itself requires nothing, and the list of changed paths is symmetric.
    #[test]
    fn differences_are_symmetric_in_what_they_name(
        a in proptest::collection::btree_map("(model/weights|prompt|config)/[a-c]{1,2}", 0..3_u8, 1..6),
        b in proptest::collection::btree_map("(model/weights|prompt|config)/[a-c]{1,2}", 0..3_u8, 1..6),
    ) {
        let build = |m: &BTreeMap<String, u8>| {
            let texts: Vec<String> = m.values().map(u8::to_string).collect();
            let files: Vec<(&str, &str)> = m.keys().map(String::as_str).zip(texts.iter().map(String::as_str)).collect();
            manifest(&files, |_| ())
        };
        let (old, new) = (build(&a), build(&b));
        prop_assert!(diff(&old, &old).changes.is_empty());
        let subjects = |d: Diff| d.changes.into_iter().map(|c| c.subject).collect::<Vec<_>>();
        let forward = diff(&old, &new);
        prop_assert_eq!(forward.changes.is_empty(), old.digest() == new.digest());
        prop_assert_eq!(subjects(forward), subjects(diff(&new, &old)));
    }
}
