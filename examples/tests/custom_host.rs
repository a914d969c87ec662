//! A host with every part of its own takes one version into production, another out again, and a third not at all.

use std::process::Command;

#[test]
fn two_rollouts_run_to_their_ends_on_parts_of_the_hosts_own() {
    let folder = tempfile::tempdir().unwrap();
    let ran = Command::new(env!("CARGO_BIN_EXE_custom_host"))
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8(ran.stdout).unwrap();
    let wrong = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.success(), "{said}{wrong}");
    let (one, two) = said.split_once("chat-v1.2:").unwrap();
    assert!(one.contains("\n  promoted after "), "{said}");
    assert!(two.contains("\n  rolled back after "), "{said}");
    // What the proxy was told last: the version that was promoted, and nobody else.
    let weights = std::fs::read_to_string(folder.path().join("edge/weights")).unwrap();
    assert!(
        weights.starts_with("baseline chat/v1.1.0-") && weights.lines().count() == 1,
        "{weights}"
    );
    assert!(folder.path().join("incidents/chat.chat-v1.2.md").is_file());
    assert!(!folder.path().join("incidents/chat.chat-v1.1.md").exists());
    // A revoked version is refused before anything happens.
    let (_, three) = two.split_once("\nchat-v1.3: ").unwrap();
    assert!(three.contains("revoked"), "{said}");
}
