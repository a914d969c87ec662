//! A process with controller and gateway that is killed (SIGKILL) at each step of a rollout, with its log in SQLite: it comes to the
//! same end as one that lives.

use crate::process::Process;
use crate::stack::{self, Gateway, Llama, Places, Users, endpoint, version};
use llm_rollout::{Phase, Plan, RolloutId};
use llm_serve_adapters::store::SqliteStore;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const ME: &str = "llama::killed::a_controller_that_is_killed_at_each_step_comes_to_the_same_end";
/// Tells a process that it is the one that is killed: folder, candidate, and the ports of v1 and of the candidate.
const CHILD: &str = "LLM_E2E_KILLED";

fn id() -> RolloutId {
    RolloutId::new("killed").unwrap()
}

/// Half of the users get it, and a damaged one is not promoted before it is found out.
fn plan(candidate: &str) -> Plan {
    let mut spec = stack::plan(&[50.0]).spec().clone();
    if candidate == "bad" {
        spec.stages[0].min_samples = 300;
    }
    spec.try_into().unwrap()
}

fn store(folder: &Path) -> SqliteStore {
    SqliteStore::open(folder.join("rollouts.db")).unwrap()
}

/// A host that dies as soon as it sees a phase that none before it has died at.
async fn live(folder: &Path, candidate: &str, places: Places) {
    let gateway = Gateway::open(endpoint(store(folder), |b| b).await, places).await;
    let users = Users::begin(gateway.port(), 3, &gateway.manner());
    let file = folder.join("died");
    let died: BTreeSet<String> = fs::read_to_string(&file)
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect();
    let mut status = gateway.endpoint.watch();
    let watch = async {
        loop {
            let rollout = status.borrow_and_update().ledger.rollout.clone();
            let phase = rollout.map(|rollout| format!("{:?}", rollout.phase()));
            if let Some(phase) = phase.filter(|phase| !died.contains(phase)) {
                let all: Vec<_> = died.iter().cloned().chain([phase]).collect();
                fs::write(&file, all.join("\n")).unwrap();
                let me = std::process::id().to_string();
                Command::new("kill")
                    .args(["-s", "KILL", &me])
                    .status()
                    .unwrap();
            }
            if status.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    // The same id attaches to what was begun.
    let run = async {
        let run = gateway
            .endpoint
            .submit(id(), version(candidate), plan(candidate));
        run.await.unwrap().finished().await.unwrap()
    };
    let end =
        tokio::select! { end = run => end, () = watch => unreachable!("it watches for ever") };
    let tally = users.finish().await;
    let told = format!(
        "{:?}, {} requests exposed, {} flipped",
        end.phase,
        end.exposed,
        tally.flipped.len()
    );
    fs::write(folder.join("end"), told).unwrap();
}

/// Starts one after the other until one comes to the end. How often one died.
async fn outlive(folder: &Path, candidate: &str, ports: (u16, u16)) -> usize {
    let me = std::env::current_exe().unwrap();
    let told = format!("{} {candidate} {} {}", folder.display(), ports.0, ports.1);
    for lives in 0..40 {
        let args = ["--ignored", "--exact", "--nocapture", ME];
        let mut child = Process::start_with(folder, me.to_str().unwrap(), &args, &[(CHILD, &told)]);
        let until = Instant::now() + Duration::from_secs(300);
        while !child.has_ended() {
            assert!(Instant::now() < until, "no step for minutes");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if folder.join("end").exists() {
            return lives;
        }
        let died = fs::read_to_string(folder.join("died")).unwrap_or_default();
        let log = fs::read_dir(folder).unwrap().filter_map(|file| {
            let path = file.unwrap().path();
            path.extension()
                .is_some_and(|e| e == "log")
                .then(|| fs::read_to_string(path).unwrap())
        });
        let log: String = log.collect();
        assert_eq!(died.lines().count(), lives + 1, "it ended otherwise: {log}");
    }
    panic!("it never ends");
}

async fn ends(candidate: &str, phase: Phase, production: &str) {
    let folder = tempfile::tempdir().unwrap();
    let v1 = Llama::start(folder.path(), "v1").await;
    let other = Llama::start(folder.path(), candidate).await;
    let began = Instant::now();
    let kills = outlive(folder.path(), candidate, (v1.port(), other.port())).await;
    let end = fs::read_to_string(folder.path().join("end")).unwrap();
    assert!(
        end.starts_with(&format!("{phase:?},")) && end.ends_with(" 0 flipped"),
        "{end}"
    );
    // Somebody else who opens the store finds the same end, once, and the same version in production.
    let endpoint = endpoint(store(folder.path()), |b| b).await;
    let status = endpoint.status();
    assert_eq!(status.ledger.ended.len(), 1);
    assert_eq!(status.ledger.production, Some(version(production)));
    assert_eq!(
        endpoint.data_plane().router.state().split.baseline,
        version(production)
    );
    let recorded = endpoint
        .submit(id(), version(candidate), plan(candidate))
        .await;
    assert_eq!(recorded.unwrap().finished().await.unwrap().phase, phase);
    let died = fs::read_to_string(folder.path().join("died")).unwrap();
    println!(
        "ok      controller SIGKILLed at each step towards {candidate}: {kills} times ({}); {end}, in {:.1?}",
        died.replace('\n', ", "),
        began.elapsed()
    );
    assert!(kills >= 5, "{died}");
}

#[tokio::test]
#[ignore = "needs llama-server and models: e2e/run llama"]
async fn a_controller_that_is_killed_at_each_step_comes_to_the_same_end() {
    if let Ok(told) = std::env::var(CHILD) {
        let mut words = told.split(' ');
        let folder = PathBuf::from(words.next().unwrap());
        let candidate = words.next().unwrap().to_owned();
        let mut port = || words.next().unwrap().parse().unwrap();
        let places = Places::default()
            .place("v1", port())
            .place(&candidate, port());
        return live(&folder, &candidate, places).await;
    }
    ends("v2", Phase::Promoted, "v2").await;
    ends("bad", Phase::RolledBack, "v1").await;
}
