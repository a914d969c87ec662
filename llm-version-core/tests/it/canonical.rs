//! The canonical form against vectors from a second implementation (`tests/vectors/make.py`), and against mutation.

use llm_version_core::{
    Component, ComponentKind, ComponentPath, Digest, Draft, Manifest, ManifestError, Name, Version,
};
use proptest::prelude::*;
use serde_json::Value;

fn cases() -> Vec<Value> {
    serde_json::from_str(include_str!("../vectors/canonical.json")).unwrap()
}

fn bytes(case: &Value) -> Vec<u8> {
    case["manifest"].as_str().unwrap().as_bytes().to_vec()
}

#[test]
fn vectors_of_the_second_implementation() {
    for case in cases() {
        let manifest =
            Manifest::parse(&bytes(&case)).unwrap_or_else(|e| panic!("{}: {e}", case["what"]));
        assert_eq!(manifest.to_bytes(), bytes(&case), "{}", case["what"]);
        assert_eq!(
            manifest.digest().to_string(),
            case["bundle_digest"],
            "{}",
            case["what"]
        );
        assert_eq!(
            manifest.record_digest().to_string(),
            case["record_digest"],
            "{}",
            case["what"]
        );
        let root = manifest
            .tensor_root(ComponentKind::Weights)
            .map(|d| d.to_string());
        assert_eq!(
            root.as_deref(),
            case["tensor_root"].as_str(),
            "{}",
            case["what"]
        );
    }
}

#[test]
fn other_spellings_of_the_same_content_are_refused() {
    let case = cases().swap_remove(0);
    let text = case["manifest"].as_str().unwrap();
    let spaced = text.replace("\":", "\": ");
    let reordered = {
        // The same object with `format` first.
        let format = "\"format\":\"llm-manifest/1\",";
        text.replace(format, "")
            .replacen('{', &format!("{{{format}"), 1)
    };
    let escaped = text.replace("system", "\\u0073ystem");
    let slashed = text.replace("prompt/system.txt", "prompt\\/system.txt");
    let float = text.replace("\"size\":16", "\"size\":16.0");
    let twice = text.replacen("\"contract\":{},", "\"contract\":{},\"contract\":{},", 1);
    let unknown = text.replacen("\"contract\":{},", "\"contract\":{},\"contractx\":{},", 1);
    let newline = format!("{text}\n");
    let empty_list = text.replacen("\"components\":[{", "\"components\":[{\"chunks\":[],", 1);
    for bad in [
        spaced, reordered, escaped, slashed, float, twice, unknown, newline, empty_list,
    ] {
        assert_ne!(bad, text);
        assert!(Manifest::parse(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn content_that_does_not_belong_to_the_digest_is_refused() {
    let case = cases().swap_remove(0);
    let text = case["manifest"].as_str().unwrap();
    for (from, to) in [
        ("prompt/system.txt", "prompt/System.txt"),
        ("\"size\":16", "\"size\":17"),
        ("\"kind\":\"prompt\"", "\"kind\":\"safety\""),
        ("\"contract\":{}", "\"contract\":{\"api\":\"x\"}"),
        ("\"dependencies\":{}", "\"dependencies\":{\"a\":\"1\"}"),
    ] {
        let bad = text.replace(from, to);
        assert!(
            matches!(
                Manifest::parse(bad.as_bytes()),
                Err(ManifestError::WrongDigest { .. })
            ),
            "{to}"
        );
    }
    // Lineage and licences are recorded beside the digest: another record, the same bundle.
    let other = text.replace("\"lineage\":{}", "\"lineage\":{\"seeds\":{\"a\":\"1\"}}");
    let (old, new) = (
        Manifest::parse(text.as_bytes()).unwrap(),
        Manifest::parse(other.as_bytes()).unwrap(),
    );
    assert_eq!(old.id(), new.id());
    assert_ne!(old.record_digest(), new.record_digest());
}

fn draft() -> impl Strategy<Value = Draft> {
    let component = (
        "[a-z]{1,6}",
        0..1_u64 << 53,
        any::<[u8; 32]>(),
        0..ComponentKind::ALL.len(),
    );
    proptest::collection::btree_map("[a-z0-9]{1,8}", component, 1..8).prop_map(|components| {
        let mut draft = Draft::new(Name::new("chat").unwrap(), Version::new(1, 0, 0));
        for (file, (folder, size, digest, kind)) in components {
            let path = ComponentPath::new(format!("{folder}_/{file}")).unwrap();
            draft.components.push(Component::new(
                path,
                ComponentKind::ALL[kind],
                size,
                Digest::new(digest),
            ));
        }
        draft
    })
}

proptest! {
    #[test]
    fn order_of_components_does_not_matter(draft in draft(), seed in any::<u64>()) {
        let mut shuffled = draft.clone();
        let n = shuffled.components.len();
        for i in (1..n).rev() {
            let j = usize::try_from(seed.rotate_left(u32::try_from(i).unwrap()) % (i as u64 + 1)).unwrap();
            shuffled.components.swap(i, j);
        }
        prop_assert_eq!(draft.finish().unwrap(), shuffled.finish().unwrap());
    }

    #[test]
    fn manifests_round_trip(draft in draft()) {
        let manifest = draft.finish().unwrap();
        prop_assert_eq!(Manifest::parse(&manifest.to_bytes()).unwrap(), manifest);
    }

    // Whatever byte is changed, a parse either fails or gives another record; the same bytes are the only way back.
    #[test]
    fn one_changed_byte_never_goes_unnoticed(draft in draft(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let manifest = draft.finish().unwrap();
        let mut bytes = manifest.to_bytes();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != to);
        bytes[at] = to;
        if let Ok(other) = Manifest::parse(&bytes) {
            // Name and version are outside the digest; nothing else here is.
            prop_assert_ne!(other.id(), manifest.id());
            prop_assert_eq!(other.digest(), manifest.digest());
        }
    }

    #[test]
    fn every_field_of_a_component_is_bound(draft in draft(), which in 0..4_usize, at in any::<prop::sample::Index>()) {
        let before = draft.clone().finish().unwrap();
        let mut draft = draft;
        let component = at.index(draft.components.len());
        let component = &mut draft.components[component];
        match which {
            0 => component.path = ComponentPath::new(format!("{}0x", component.path)).unwrap(),
            1 => component.size = (component.size + 1) % (1 << 53),
            2 => component.digest = Digest::of(component.digest.as_bytes()),
            _ => {
                component.kind = if component.kind == ComponentKind::Other { ComponentKind::Code } else { ComponentKind::Other };
            }
        }
        let after = draft.finish().unwrap();
        prop_assert_ne!(after.digest(), before.digest());
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Manifest::parse(&bytes).is_err());
    }
}
