//! What peers decide, as recorded cases.

use serde_json::Value;

/// The cases of one file.
pub(crate) fn cases(text: &str) -> Vec<Value> {
    let file: Value = serde_json::from_str(text).unwrap();
    file["cases"].as_array().unwrap().clone()
}

pub(crate) fn id(case: &Value) -> &str {
    case["id"].as_str().unwrap()
}

/// Every reason is about a case that is there, and none is given twice.
pub(crate) fn check_reasons<'a>(cases: &[Value], reasons: impl Iterator<Item = &'a str>) {
    for about in reasons {
        assert!(cases.iter().any(|c| id(c) == about), "{about} is no case");
    }
}
