//! `kill -9` at ten random moments, and `--resume`: the same ends each time, and nobody meets a rolled-back candidate again.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use desk_model::SplitMix64;
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How many processes are killed, and how many of them live at a time.
const KILLS: u64 = 10;
const AT_A_TIME: u64 = 5;
/// Moments lie in here; the story takes somewhat longer.
const WITHIN: Duration = Duration::from_secs(17);
/// Far beyond what a slow machine needs: a story that hangs must fail, not wait.
const PATIENCE: Duration = Duration::from_secs(400);

fn start(dir: &Path, resume: bool) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quickstart"));
    command
        .args(["--json", "--seconds", "10", "--dir"])
        .arg(dir);
    if resume {
        command.arg("--resume");
    }
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn summary(mut child: Child) -> Value {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("the story did not end within {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(50));
    }
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn ends(summary: &Value) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let rollouts = summary["rollouts"].as_array().unwrap();
    rollouts
        .iter()
        .map(|r| (text(&r["rollout"]), text(&r["outcome"])))
        .collect()
}

fn killed_once(number: u64) {
    let dir = tempfile::tempdir().unwrap();
    let millis = u64::try_from(WITHIN.as_millis()).unwrap();
    let moment = Duration::from_millis(SplitMix64::nth(0xD1E, number).next_u64() % millis);
    let mut first = start(dir.path(), false);
    thread::sleep(moment);
    first.kill().unwrap(); // SIGKILL
    first.wait().unwrap();

    let resumed = summary(start(dir.path(), true));
    let expected = [
        ("desk-1.2.0", "blocked"),
        ("desk-2.0.0", "rolled_back"),
        ("desk-1.1.0", "promoted"),
    ]
    .map(|(id, end)| (id.to_owned(), end.to_owned()));
    assert_eq!(
        ends(&resumed),
        expected,
        "killed after {moment:?}: {resumed:#}"
    );
    assert_eq!(
        resumed["serving"], resumed["rollouts"][2]["candidate"],
        "killed after {moment:?}"
    );

    // Started again after the end, with the same ids and under load: the recorded ends, the promoted version, and not one
    // more request to what was blocked or rolled back.
    let again = summary(start(dir.path(), true));
    assert_eq!(ends(&again), expected);
    assert_eq!(again["serving"], resumed["serving"]);
    for i in 0..2 {
        assert_eq!(
            again["rollouts"][i]["exposed"],
            resumed["rollouts"][i]["exposed"]
        );
    }
    let replies = |s: &Value| s["replies"].as_u64().unwrap();
    assert!(
        replies(&again) > replies(&resumed),
        "there was load after the end"
    );
}

#[test]
fn killed_at_any_moment_it_ends_the_same() {
    for round in 0..KILLS / AT_A_TIME {
        thread::scope(|scope| {
            for number in 0..AT_A_TIME {
                scope.spawn(move || killed_once(round * AT_A_TIME + number));
            }
        });
    }
}
