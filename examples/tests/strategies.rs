//! The examples of strategies end as they say, and a log that one of them would leave can be decided again.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use examples::desk::{Users, rollout, version};
use llm_rollout::{Phase, Plan};
use llm_serve_adapters::store::SqliteStore;
use llm_serve_adapters::{Bootstrap, Endpoint};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

fn run(program: &str, words: &[&str]) -> Output {
    Command::new(program).args(words).output().unwrap()
}

#[track_caller]
fn ends_well(program: &str) -> String {
    let output = run(program, &[]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{error}");
    text
}

#[test]
fn blue_green_goes_back_by_one_split_and_stays_on_a_good_version() {
    let text = ends_well(env!("CARGO_BIN_EXE_blue_green"));
    assert!(
        text.contains("wrong-answers") && text.contains("  promoted"),
        "{text}"
    );
}

#[test]
fn a_shadow_serves_nobody() {
    let text = ends_well(env!("CARGO_BIN_EXE_shadow"));
    assert!(
        text.contains("  v2 concluded") && text.contains("  v3 rolled back"),
        "{text}"
    );
    let unseen = text.matches("users got 0 of its answers").count();
    assert_eq!(unseen, 2, "{text}");
}

#[test]
fn waves_go_back_everywhere() {
    let text = ends_well(env!("CARGO_BIN_EXE_waves"));
    let back = text.matches("serves chat/v1.0.0").count();
    assert_eq!(back, 3, "{text}");
}

/// A canary that is looked at every tenth of a second.
fn plan(alpha: f64) -> String {
    format!(
        r#"
alpha = {alpha}
look_every = "100ms"
[metrics]
faults = {{ fault = {{}} }}
slow = {{ first_token_over = "1s" }}
[[gates]]
metric = "faults"
weight = 0.6
[[gates]]
metric = "slow"
weight = 0.4
margin = 0.2
[[stages]]
serve = 20.0
dwell = "30s"
min_samples = 100
"#
    )
}

/// Leaves the log of a rollout that was found harmful.
async fn harmful(store: &Path) {
    let first = Bootstrap(version("chat", 1).unwrap());
    let chat = Endpoint::open("chat", SqliteStore::open(store).unwrap(), first)
        .await
        .unwrap();
    let users = Users::ask(chat.data_plane(), |n| n % 10 == 0);
    let id = rollout("chat-v2").unwrap();
    let strict = Plan::from_toml(&plan(0.000_001)).unwrap();
    let run = chat
        .submit(id, version("chat", 2).unwrap(), strict)
        .await
        .unwrap();
    let end = run.finished().await.unwrap();
    assert_eq!(end.phase, Phase::RolledBack);
    drop(users);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_told_and_decided_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("rollouts.db");
    harmful(&store).await;
    let bold = folder.path().join("bold.toml");
    std::fs::write(&bold, plan(0.05)).unwrap();
    let replay = |words: &[&str]| {
        let mut all = vec![store.to_str().unwrap()];
        all.extend(words);
        // The endpoint's tasks close the file a moment after its last handle is gone.
        for _ in 0..100 {
            let output = run(env!("CARGO_BIN_EXE_replay"), &all);
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            if !error.contains("is open in another process") {
                assert!(output.status.success(), "{error}");
                return String::from_utf8_lossy(&output.stdout).into_owned();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        unreachable!("the file is never closed")
    };
    let text = replay(&["--plan", bold.to_str().unwrap()]);
    for part in [
        "chat-v2: chat/v1.0.0",
        "shifting to stage 0 (20 %)",
        "rolled back with",
        "  sooner by ",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(
        !text.contains("not exact") && !text.contains("not judged"),
        "{text}"
    );

    // Lines of JSON tell the same.
    let lines = folder.path().join("log.jsonl");
    std::fs::write(&lines, replay(&["--dump"])).unwrap();
    let words = [lines.to_str().unwrap(), "--plan", bold.to_str().unwrap()];
    let again = run(env!("CARGO_BIN_EXE_replay"), &words);
    assert_eq!(String::from_utf8_lossy(&again.stdout), text);
    let page = replay(&["--rollout", "chat-v2", "--html"]);
    assert!(page.starts_with("<!doctype html>") && page.contains("Root cause"));
}
