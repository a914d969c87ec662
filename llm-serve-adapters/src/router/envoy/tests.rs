use super::*;
use crate::host::ErrorKind;
use llm_rollout::Epoch;

fn version(n: u8) -> VersionId {
    format!("chat/v{n}.0.0-{}", n.to_string().repeat(64))
        .parse()
        .unwrap()
}

async fn builder() -> EnvoyRouterBuilder {
    let runtime = EnvoyRuntime::listen(([127, 0, 0, 1], 0).into())
        .await
        .unwrap();
    let first = Split::steady(None, version(1), Epoch::default());
    let id = RouterId::new("edge").unwrap();
    EnvoyRouter::builder(id, "http://127.0.0.1:1", &runtime, first)
        .cluster(version(1), "v1")
        .cluster(version(2), "v2")
}

#[test]
fn fractions_are_read_as_envoy_shows_them() {
    let shown = "goo.gle/debugproto  \nfields {\n  key: \"denominator\"\n  value {\n    string_value: \"TEN_THOUSAND\"\n  }\n}\nfields {\n  key: \"numerator\"\n  value {\n    number_value: 250\n  }\n}\n";
    assert_eq!(fraction(shown), Some(250));
    assert_eq!(
        fraction(&shown.replace("TEN_THOUSAND", "HUNDRED")),
        Some(10_000)
    );
    assert_eq!(fraction(&shown.replace("TEN_THOUSAND", "MILLION")), Some(2));
    assert_eq!(fraction("7"), Some(700));
    assert_eq!(fraction("{numerator: 7, denominator: HUNDRED}"), Some(700));
    for unreadable in ["", "some", "numerator", "{numerator: x}"] {
        assert_eq!(fraction(unreadable), None, "{unreadable:?}");
    }
}

#[tokio::test]
async fn names_that_no_key_holds_are_refused() {
    for bad in ["", "a b", "v1&x=1", "mirror.v1"] {
        assert!(
            builder().await.cluster(version(1), bad).open().is_err(),
            "{bad:?}"
        );
        assert!(
            builder().await.runtime_key_prefix(bad).open().is_err(),
            "{bad:?}"
        );
    }
    assert!(builder().await.cluster(version(2), "v1").open().is_err());
    assert!(builder().await.open().is_ok());
}

#[tokio::test]
async fn without_an_envoy_it_is_transient_and_remembered() {
    let router = builder().await.open().unwrap();
    let error = router.observe(Fence::new(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(error.to_string().contains("no Envoy asks"), "{error}");
    // A latch counts all the same, as soon as it can be reached.
    assert!(router.force_baseline("page").await.is_err());
    assert_eq!(router.0.latch().await, Some(version(1)));
}
